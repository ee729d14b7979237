locals {
  layers    = toset(["bronze", "silver", "gold"])
  warehouse = "s3://${aws_s3_bucket.lake.id}/${var.project}"
}

# The names that icestream gives the layers by itself. It would make missing ones too, but its role may not.
resource "aws_glue_catalog_database" "layer" {
  for_each     = local.layers
  name         = "${var.project}_${each.key}"
  description  = "The ${each.key} tables of ${var.project}"
  location_uri = "${local.warehouse}/${var.project}_${each.key}"
}
