locals {
  role_policies = {
    cluster = ["AmazonEKSClusterPolicy"]
    node    = ["AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy", "AmazonEC2ContainerRegistryReadOnly"]
  }
  addons = ["vpc-cni", "coredns", "kube-proxy", "eks-pod-identity-agent", "aws-fsx-csi-driver"]
}

data "aws_iam_policy_document" "assume" {
  for_each = { cluster = "eks.amazonaws.com", node = "ec2.amazonaws.com", pod = "pods.eks.amazonaws.com" }
  statement {
    actions = each.key == "pod" ? ["sts:AssumeRole", "sts:TagSession"] : ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = [each.value]
    }
  }
}

resource "aws_iam_role" "this" {
  for_each           = local.role_policies
  name_prefix        = "${var.name}-${each.key}-"
  assume_role_policy = data.aws_iam_policy_document.assume[each.key].json
}

resource "aws_iam_role_policy_attachment" "this" {
  for_each = merge([
    for role, policies in local.role_policies : { for policy in policies : policy => role }
  ]...)
  role       = aws_iam_role.this[each.value].name
  policy_arn = "arn:aws:iam::aws:policy/${each.key}"
}

resource "aws_eks_cluster" "this" {
  name     = var.name
  version  = "1.34"
  role_arn = aws_iam_role.this["cluster"].arn
  vpc_config {
    subnet_ids              = aws_subnet.private[*].id
    endpoint_private_access = true
    endpoint_public_access  = true
  }
  access_config {
    authentication_mode                         = "API"
    bootstrap_cluster_creator_admin_permissions = true
  }
  enabled_cluster_log_types = ["api", "audit", "authenticator"]
  depends_on                = [aws_iam_role_policy_attachment.this]
}

resource "aws_eks_addon" "this" {
  for_each     = toset(local.addons)
  cluster_name = aws_eks_cluster.this.name
  addon_name   = each.key
  # Without it NetworkPolicy objects have no effect.
  configuration_values = each.key == "vpc-cni" ? jsonencode({ enableNetworkPolicy = "true" }) : null
  depends_on           = [aws_eks_node_group.system]
}

# The chart's service account `models` may read the weights, and nothing else.
resource "aws_iam_role" "models" {
  name_prefix        = "${var.name}-models-"
  assume_role_policy = data.aws_iam_policy_document.assume["pod"].json
}

data "aws_iam_policy_document" "weights" {
  statement {
    actions   = ["s3:ListBucket"]
    resources = ["arn:aws:s3:::${var.weights_bucket}"]
  }
  statement {
    actions   = ["s3:GetObject"]
    resources = ["arn:aws:s3:::${var.weights_bucket}/*"]
  }
}

resource "aws_iam_role_policy" "models" {
  role   = aws_iam_role.models.id
  policy = data.aws_iam_policy_document.weights.json
}

resource "aws_eks_pod_identity_association" "models" {
  cluster_name    = aws_eks_cluster.this.name
  namespace       = "models"
  service_account = "models"
  role_arn        = aws_iam_role.models.arn
}
