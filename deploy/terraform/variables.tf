variable "project" {
  description = "The `name` of the project in icestream.yaml. Databases and the role are named after it."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9_]*$", var.project))
    error_message = "Lower-case letters, digits and underscores, as in icestream.yaml."
  }
}

variable "bucket" {
  description = "The bucket to make for the tables' files. The project's `warehouse` is s3://BUCKET/PROJECT."
  type        = string
}

variable "oidc_provider_arn" {
  description = "The OIDC provider of the EKS cluster, whose service account takes the role."
  type        = string
}

variable "kubernetes_namespace" {
  description = "Where the chart is installed."
  type        = string
  default     = "icestream"
}

variable "service_account" {
  description = "The service account that the chart makes: the release's name where nothing else is set."
  type        = string
  default     = "icestream"
}

variable "kms_key_arn" {
  description = "A KMS key to encrypt the bucket with; S3's own keys where it is not set."
  type        = string
  default     = null
}

variable "source_prefixes" {
  description = "Where `source.files` and `backfill --files` read in other buckets, as `bucket/prefix`."
  type        = list(string)
  default     = []
}

variable "msk_cluster_arn" {
  description = "The MSK cluster to read with `auth: aws-msk-iam`."
  type        = string
  default     = null
}

variable "noncurrent_days" {
  description = "How long an object that was overwritten or deleted can still be got back."
  type        = number
  default     = 14
}
