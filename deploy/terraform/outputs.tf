output "role_arn" {
  description = "For the chart's serviceAccount.annotations: eks.amazonaws.com/role-arn."
  value       = aws_iam_role.pod.arn
}

output "warehouse" {
  description = "For `warehouse` in icestream.yaml."
  value       = local.warehouse
}

output "databases" {
  description = "The layers' databases."
  value       = { for layer, database in aws_glue_catalog_database.layer : layer => database.name }
}
