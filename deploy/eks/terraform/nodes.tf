locals {
  # EFA pins memory, and pods inherit containerd's limit.
  user_data      = <<-MIME
    MIME-Version: 1.0
    Content-Type: multipart/mixed; boundary="//"

    --//
    Content-Type: text/x-shellscript; charset="us-ascii"

    #!/bin/bash
    mkdir -p /etc/systemd/system/containerd.service.d
    printf '[Service]\nLimitMEMLOCK=infinity\n' > /etc/systemd/system/containerd.service.d/memlock.conf
    systemctl daemon-reload
    --//
    Content-Type: application/node.eks.aws

    apiVersion: node.eks.aws/v1alpha1
    kind: NodeConfig
    spec:
      instance:
        localStorage: {strategy: RAID0}
    --//--
  MIME
  efa_interfaces = 8
}

resource "aws_eks_node_group" "system" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "system"
  node_role_arn   = aws_iam_role.this["node"].arn
  subnet_ids      = aws_subnet.private[*].id
  instance_types  = ["m6i.xlarge"]
  scaling_config {
    desired_size = 2
    min_size     = 2
    max_size     = 3
  }
}

resource "aws_eks_node_group" "compile" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "compile"
  node_role_arn   = aws_iam_role.this["node"].arn
  subnet_ids      = [aws_subnet.private[0].id]
  instance_types  = [var.compile_instance]
  disk_size       = 500
  labels          = { "rufus-serve/nodes" = "compile" }
  scaling_config {
    desired_size = var.compile_nodes
    min_size     = 0
    max_size     = 1
  }
}

resource "aws_placement_group" "trn1" {
  name     = "${var.name}-trn1"
  strategy = "cluster"
}

resource "aws_launch_template" "trn1" {
  name_prefix   = "${var.name}-trn1-"
  instance_type = "trn1.32xlarge"
  user_data     = base64encode(local.user_data)
  placement { group_name = aws_placement_group.trn1.name }
  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
  block_device_mappings {
    device_name = "/dev/xvda"
    ebs {
      volume_size = 200
      volume_type = "gp3"
      encrypted   = true
    }
  }
  # One per network card; all but the first card's are device 1 of theirs.
  dynamic "network_interfaces" {
    for_each = range(local.efa_interfaces)
    content {
      network_card_index = network_interfaces.value
      device_index       = network_interfaces.value == 0 ? 0 : 1
      interface_type     = "efa"
      security_groups = [
        aws_security_group.efa.id,
        aws_eks_cluster.this.vpc_config[0].cluster_security_group_id,
      ]
    }
  }
  dynamic "instance_market_options" {
    for_each = var.capacity_block ? [1] : []
    content { market_type = "capacity-block" }
  }
  dynamic "capacity_reservation_specification" {
    for_each = var.capacity_reservation_id == "" ? [] : [var.capacity_reservation_id]
    content {
      capacity_reservation_target {
        capacity_reservation_id = capacity_reservation_specification.value
      }
    }
  }
}

resource "aws_eks_node_group" "trn1" {
  cluster_name    = aws_eks_cluster.this.name
  node_group_name = "trn1"
  node_role_arn   = aws_iam_role.this["node"].arn
  subnet_ids      = [aws_subnet.private[0].id]
  ami_type        = "AL2023_x86_64_NEURON"
  capacity_type   = var.capacity_block ? "CAPACITY_BLOCK" : "ON_DEMAND"
  launch_template {
    id      = aws_launch_template.trn1.id
    version = aws_launch_template.trn1.latest_version
  }
  scaling_config {
    desired_size = var.trn1_nodes
    min_size     = 0
    max_size     = max(4, var.trn1_nodes)
  }
  update_config { max_unavailable = 1 }
  taint {
    key    = "aws.amazon.com/neuron"
    value  = "true"
    effect = "NO_SCHEDULE"
  }
}
