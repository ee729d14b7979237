//! Partition specifications as users write them: `day(_ingested_at)`, `bucket(16, id)`, `truncate(4, code)`, `country`.

use iceberg::spec::{Schema, Transform, UnboundPartitionSpec};

use super::error::{Error, Result};
use crate::ids::TableName;

/// Reads a list of partition fields against the schema they partition.
pub(super) fn parse(table: &TableName, schema: &Schema, fields: &[String]) -> Result<UnboundPartitionSpec> {
    let mut builder = UnboundPartitionSpec::builder();
    for text in fields {
        let refuse = |problem: String| Error::Schema { table: table.clone(), problem };
        let (transform, column) = parse_field(text).map_err(refuse)?;
        let source = schema
            .field_by_name(column)
            .ok_or_else(|| refuse(format!("partition field `{text}`: there is no column `{column}`")))?;
        transform.result_type(&source.field_type).map_err(|_| {
            refuse(format!(
                "partition field `{text}`: `{column}` is a {} and cannot be partitioned so",
                source.field_type
            ))
        })?;
        builder = builder
            .add_partition_field(source.id, field_name(column, transform), transform)
            .map_err(|error| refuse(format!("partition field `{text}`: {}", error.message())))?;
    }
    Ok(builder.build())
}

/// Whether the text is a partition field, without looking at a schema.
pub fn check_field(text: &str) -> Result<(), String> {
    parse_field(text).map(|_| ())
}

fn parse_field(text: &str) -> Result<(Transform, &str), String> {
    let text = text.trim();
    let Some((function, arguments)) = text.strip_suffix(')').and_then(|open| open.split_once('(')) else {
        if text.is_empty() || text.contains(['(', ')', ',', ' ']) {
            return Err(not_a_field(text));
        }
        return Ok((Transform::Identity, text));
    };
    let arguments: Vec<&str> = arguments.split(',').map(str::trim).collect();
    let number = |argument: &str| -> Result<u32, String> {
        match argument.parse::<u32>() {
            Ok(number) if number > 0 => Ok(number),
            _ => Err(format!("partition field `{text}`: `{argument}` is not a whole number above 0")),
        }
    };
    match (function.trim(), arguments.as_slice()) {
        ("identity", [column]) => Ok((Transform::Identity, column)),
        ("year" | "years", [column]) => Ok((Transform::Year, column)),
        ("month" | "months", [column]) => Ok((Transform::Month, column)),
        ("day" | "days", [column]) => Ok((Transform::Day, column)),
        ("hour" | "hours", [column]) => Ok((Transform::Hour, column)),
        ("bucket", [count, column]) => Ok((Transform::Bucket(number(count)?), column)),
        ("truncate", [width, column]) => Ok((Transform::Truncate(number(width)?), column)),
        _ => Err(not_a_field(text)),
    }
}

fn not_a_field(text: &str) -> String {
    format!(
        "`{text}` is not a partition field; write a column, or `year`, `month`, `day` or `hour(column)`, \
         `bucket(16, column)` or `truncate(4, column)`"
    )
}

/// Spark's names, so that tables look the same whoever made them.
fn field_name(column: &str, transform: Transform) -> String {
    let column = column.replace('.', "_");
    match transform {
        Transform::Year => format!("{column}_year"),
        Transform::Month => format!("{column}_month"),
        Transform::Day => format!("{column}_day"),
        Transform::Hour => format!("{column}_hour"),
        Transform::Bucket(_) => format!("{column}_bucket"),
        Transform::Truncate(_) => format!("{column}_trunc"),
        _ => column,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_read_as_written() {
        let check = |text: &str, transform: Transform, column: &str| {
            assert_eq!(parse_field(text), Ok((transform, column)), "{text}");
        };
        check("country", Transform::Identity, "country");
        check("day(_ingested_at)", Transform::Day, "_ingested_at");
        check("bucket( 16 , id )", Transform::Bucket(16), "id");
        check("truncate(4, code)", Transform::Truncate(4), "code");
        for bad in ["", "week(at)", "bucket(id)", "bucket(0, id)", "day(a, b)", "day(at", "a b"] {
            assert!(parse_field(bad).is_err(), "{bad} should be refused");
        }
    }
}
