resource "aws_security_group" "fsx" {
  name_prefix = "${var.name}-fsx-"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_ingress_rule" "lustre" {
  for_each = {
    nodes    = aws_eks_cluster.this.vpc_config[0].cluster_security_group_id
    trainium = aws_security_group.efa.id
    servers  = aws_security_group.fsx.id
  }
  security_group_id            = aws_security_group.fsx.id
  referenced_security_group_id = each.value
  ip_protocol                  = "tcp"
  from_port                    = 988
  to_port                      = 1023
}

resource "aws_vpc_security_group_egress_rule" "lustre" {
  security_group_id            = aws_security_group.fsx.id
  referenced_security_group_id = aws_security_group.fsx.id
  ip_protocol                  = "tcp"
  from_port                    = 988
  to_port                      = 1023
}

resource "aws_fsx_lustre_file_system" "this" {
  storage_capacity            = var.fsx_gib
  subnet_ids                  = [aws_subnet.private[0].id]
  security_group_ids          = [aws_security_group.fsx.id]
  deployment_type             = "PERSISTENT_2"
  per_unit_storage_throughput = 500
  file_system_type_version    = "2.15"
  # Weights and artifacts took hours to make.
  lifecycle { prevent_destroy = true }
}

output "storage" {
  description = "For storage.model in the chart's values."
  value = {
    fileSystemId = aws_fsx_lustre_file_system.this.id
    dnsName      = aws_fsx_lustre_file_system.this.dns_name
    mountName    = aws_fsx_lustre_file_system.this.mount_name
  }
}

output "kubeconfig" {
  description = "The command that lets kubectl in."
  value       = "aws eks update-kubeconfig --region ${var.region} --name ${aws_eks_cluster.this.name}"
}
