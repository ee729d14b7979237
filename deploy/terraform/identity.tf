locals {
  partition = data.aws_partition.current.partition
  account   = data.aws_caller_identity.current.account_id
  issuer    = element(split("oidc-provider/", var.oidc_provider_arn), 1)
}

# Only this service account of this cluster.
data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRoleWithWebIdentity"]

    principals {
      type        = "Federated"
      identifiers = [var.oidc_provider_arn]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:sub"
      values   = ["system:serviceaccount:${var.kubernetes_namespace}:${var.service_account}"]
    }

    condition {
      test     = "StringEquals"
      variable = "${local.issuer}:aud"
      values   = ["sts.amazonaws.com"]
    }
  }
}

resource "aws_iam_role" "pod" {
  name               = "icestream-${var.project}"
  description        = "What the pods of ${var.project} may do"
  assume_role_policy = data.aws_iam_policy_document.trust.json
}

# What the program calls, and no more: docs/aws.md says for what, check_iam.py compares it with recorded calls.
resource "aws_iam_role_policy" "lake" {
  name = "lake"
  role = aws_iam_role.pod.id
  policy = templatefile("${path.module}/pod-policy.json.tftpl", {
    project = var.project
    bucket  = aws_s3_bucket.lake.arn
    glue    = "arn:${local.partition}:glue:${data.aws_region.current.region}:${local.account}"
  })
}

data "aws_iam_policy_document" "sources" {
  count = length(var.source_prefixes) > 0 ? 1 : 0

  statement {
    actions   = ["s3:GetObject"]
    resources = [for prefix in var.source_prefixes : "arn:${local.partition}:s3:::${trimsuffix(prefix, "/")}/*"]
  }

  statement {
    actions = ["s3:ListBucket"]
    resources = distinct([
      for prefix in var.source_prefixes : "arn:${local.partition}:s3:::${element(split("/", prefix), 0)}"
    ])
  }
}

resource "aws_iam_role_policy" "sources" {
  count  = length(var.source_prefixes) > 0 ? 1 : 0
  name   = "sources"
  role   = aws_iam_role.pod.id
  policy = data.aws_iam_policy_document.sources[0].json
}

data "aws_iam_policy_document" "key" {
  count = var.kms_key_arn == null ? 0 : 1

  statement {
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [var.kms_key_arn]
  }
}

resource "aws_iam_role_policy" "key" {
  count  = var.kms_key_arn == null ? 0 : 1
  name   = "key"
  role   = aws_iam_role.pod.id
  policy = data.aws_iam_policy_document.key[0].json
}

# Reading topics as the consumer group `icestream-PROJECT`.
data "aws_iam_policy_document" "kafka" {
  count = var.msk_cluster_arn == null ? 0 : 1

  statement {
    actions   = ["kafka-cluster:Connect"]
    resources = [var.msk_cluster_arn]
  }

  statement {
    actions   = ["kafka-cluster:DescribeTopic", "kafka-cluster:ReadData"]
    resources = ["${replace(var.msk_cluster_arn, ":cluster/", ":topic/")}/*"]
  }

  statement {
    actions   = ["kafka-cluster:AlterGroup", "kafka-cluster:DescribeGroup"]
    resources = ["${replace(var.msk_cluster_arn, ":cluster/", ":group/")}/icestream-${var.project}"]
  }
}

resource "aws_iam_role_policy" "kafka" {
  count  = var.msk_cluster_arn == null ? 0 : 1
  name   = "kafka"
  role   = aws_iam_role.pod.id
  policy = data.aws_iam_policy_document.kafka[0].json
}
