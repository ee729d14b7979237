//! Partition specifications as users write them: `day(_ingested_at)`, `bucket(16, id)`, `truncate(4, code)`, `country`.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Date32Array, Int32Array};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType,
};
use chrono::{DateTime, NaiveDate, TimeDelta};
use iceberg::spec::{
    Literal, PartitionSpec, PrimitiveLiteral, PrimitiveType, Schema, Struct, Transform, Type, UnboundPartitionSpec,
};
use iceberg::transform::create_transform_function;

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

/// What a transform makes of a column.
///
/// Calendar units are computed here. The crate puts the last second of a day before 1970 into the day after, and has no
/// years past 262142, where PostgreSQL's `infinity` is. So is truncation, which the crate lets overflow at the lowest
/// numbers.
pub(super) fn transformed(transform: Transform, source: &ArrayRef) -> iceberg::Result<ArrayRef> {
    const DAY_US: i64 = 86_400_000_000;
    let days: Option<Date32Array> = match source.data_type() {
        DataType::Date32 => Some(source.as_primitive::<Date32Type>().clone()),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            // A day number of 64 bits of microseconds fits.
            Some(source.as_primitive::<TimestampMicrosecondType>().unary(|us| us.div_euclid(DAY_US) as i32))
        }
        _ => None,
    };
    let of_days = |days: Date32Array, unit: fn((i32, i32)) -> i32| -> ArrayRef {
        Arc::new(days.unary::<_, Int32Type>(|day| unit(year_and_month(day))) as Int32Array)
    };
    match (transform, days) {
        (Transform::Day, Some(days)) => return Ok(Arc::new(days)),
        (Transform::Month, Some(days)) => return Ok(of_days(days, |(year, month)| (year - 1970) * 12 + month - 1)),
        (Transform::Year, Some(days)) => return Ok(of_days(days, |(year, _)| year - 1970)),
        _ => {}
    }
    if let Transform::Truncate(width) = transform {
        let width = i64::from(width);
        match source.data_type() {
            DataType::Int32 => {
                let start = |value: i32| (i64::from(value) - i64::from(value).rem_euclid(width)).max(i32::MIN.into());
                return Ok(Arc::new(
                    source.as_primitive::<Int32Type>().unary::<_, Int32Type>(|value| start(value) as i32),
                ));
            }
            DataType::Int64 => {
                let start = |value: i64| value.saturating_sub(value.rem_euclid(width));
                return Ok(Arc::new(source.as_primitive::<Int64Type>().unary::<_, Int64Type>(start)));
            }
            DataType::Decimal128(..) => {
                let start = |value: i128| value.saturating_sub(value.rem_euclid(width.into()));
                let values = source.as_primitive::<Decimal128Type>().unary::<_, Decimal128Type>(start);
                return Ok(Arc::new(values.with_data_type(source.data_type().clone())));
            }
            _ => {}
        }
    }
    create_transform_function(&transform)?.transform(source.clone())
}

/// The year and the month (from 1) of a day counted from 1970, over the whole range of days.
fn year_and_month(day: i32) -> (i32, i32) {
    // Years that start in March have their leap day at the end; eras of 400 years are all alike.
    let day = i64::from(day) + 719_468;
    let (era, day_of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year as i32, month as i32)
}

/// A partition's field names and values, for people. The crate's own text of a partition panics at instants before 1970
/// and at dropped source columns.
pub(super) fn described(spec: &PartitionSpec, schema: &Schema, partition: &Struct) -> Vec<(String, String)> {
    let values = spec.fields().iter().zip(partition.fields());
    values
        .map(|(field, value)| {
            let result = schema
                .field_by_id(field.source_id)
                .and_then(|source| field.transform.result_type(&source.field_type).ok());
            let text = match value {
                Some(Literal::Primitive(value)) => value_text(value, result.as_ref()),
                _ => "null".to_string(),
            };
            (field.name.clone(), text)
        })
        .collect()
}

fn value_text(value: &PrimitiveLiteral, of: Option<&Type>) -> String {
    let of = match of {
        Some(Type::Primitive(of)) => Some(of),
        _ => None,
    };
    let time =
        |us: i64| DateTime::from_timestamp_micros(us).map(|time| time.format("%Y-%m-%dT%H:%M:%S%.6f").to_string());
    match (value, of) {
        (PrimitiveLiteral::Int(days), Some(PrimitiveType::Date)) => {
            let date =
                TimeDelta::try_days(i64::from(*days)).and_then(|days| NaiveDate::default().checked_add_signed(days));
            date.map_or_else(|| days.to_string(), |date| date.to_string())
        }
        (PrimitiveLiteral::Long(us), Some(PrimitiveType::Timestamp)) => time(*us).unwrap_or_else(|| us.to_string()),
        (PrimitiveLiteral::Long(us), Some(PrimitiveType::Timestamptz)) => {
            time(*us).map_or_else(|| us.to_string(), |time| time + "Z")
        }
        (PrimitiveLiteral::Int128(value), Some(PrimitiveType::Decimal { scale, .. })) if *scale > 0 => {
            let scale = *scale as usize;
            let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            format!("{}{whole}.{fraction}", if *value < 0 { "-" } else { "" })
        }
        (PrimitiveLiteral::UInt128(value), _) => uuid::Uuid::from_u128(*value).to_string(),
        (PrimitiveLiteral::Boolean(value), _) => value.to_string(),
        (PrimitiveLiteral::Int(value), _) => value.to_string(),
        (PrimitiveLiteral::Long(value), _) => value.to_string(),
        (PrimitiveLiteral::Int128(value), _) => value.to_string(),
        (PrimitiveLiteral::Float(value), _) => value.to_string(),
        (PrimitiveLiteral::Double(value), _) => value.to_string(),
        (PrimitiveLiteral::String(value), _) => value.clone(),
        (PrimitiveLiteral::Binary(value), _) => value.iter().map(|byte| format!("{byte:02x}")).collect(),
        (PrimitiveLiteral::AboveMax | PrimitiveLiteral::BelowMin, _) => "out of range".to_string(),
    }
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
    use arrow::array::{Decimal128Array, Int64Array, TimestampMicrosecondArray};

    use super::*;

    #[test]
    fn calendar_units_go_by_the_day_an_instant_is_in() {
        let units = |time: i64| {
            let source: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![time]));
            let of = |transform| transformed(transform, &source).unwrap();
            let (year, month) = (of(Transform::Year), of(Transform::Month));
            let day = of(Transform::Day).as_primitive::<Date32Type>().value(0);
            (year.as_primitive::<Int32Type>().value(0), month.as_primitive::<Int32Type>().value(0), day)
        };
        const DAY: i64 = 86_400_000_000;
        for (time, expected) in [
            (0, (0, 0, 0)),
            (-1, (-1, -1, -1)),
            (-DAY, (-1, -1, -1)),
            (-DAY - 1, (-1, -1, -2)),
            (-DAY - 500_000, (-1, -1, -2)),
            (-DAY - 1_000_000, (-1, -1, -2)),
            (59 * DAY - 1, (0, 1, 58)),
            (59 * DAY, (0, 2, 59)),
            (1_709_210_096_789_012, (54, 649, 19_782)),
            (i64::MAX, (292_277, 3_507_324, 106_751_991)),
            (i64::MIN, (-292_278, -3_507_325, -106_751_992)),
        ] {
            assert_eq!(units(time), expected, "{time}");
        }
        for day in (-1_000_000..1_000_000).step_by(17) {
            let date = NaiveDate::default() + TimeDelta::days(day);
            let expected = (chrono::Datelike::year(&date), chrono::Datelike::month(&date) as i32);
            assert_eq!(year_and_month(day as i32), expected, "{date}");
        }
    }

    #[test]
    fn truncation_stops_at_the_lowest_number() {
        let ints: ArrayRef = Arc::new(Int32Array::from(vec![i32::MIN, -11, -1, 0, 9, i32::MAX]));
        let truncated = transformed(Transform::Truncate(10), &ints).unwrap();
        assert_eq!(truncated.as_primitive::<Int32Type>().values(), &[i32::MIN, -20, -10, 0, 0, 2_147_483_640]);
        let longs: ArrayRef = Arc::new(Int64Array::from(vec![i64::MIN, -1]));
        let truncated = transformed(Transform::Truncate(10), &longs).unwrap();
        assert_eq!(truncated.as_primitive::<Int64Type>().values(), &[i64::MIN, -10]);
        let decimals = Decimal128Array::from(vec![-1, 149]).with_precision_and_scale(9, 2).unwrap();
        let truncated = transformed(Transform::Truncate(50), &(Arc::new(decimals) as ArrayRef)).unwrap();
        assert_eq!(truncated.as_primitive::<Decimal128Type>().values(), &[-50, 100]);
        assert_eq!(truncated.data_type(), &DataType::Decimal128(9, 2));
    }

    #[test]
    fn values_are_told_as_people_write_them() {
        let check = |value: PrimitiveLiteral, of: PrimitiveType, expected: &str| {
            assert_eq!(value_text(&value, Some(&Type::Primitive(of))), expected);
        };
        check(PrimitiveLiteral::Long(-1), PrimitiveType::Timestamptz, "1969-12-31T23:59:59.999999Z");
        check(PrimitiveLiteral::Long(i64::MAX), PrimitiveType::Timestamp, "9223372036854775807");
        check(PrimitiveLiteral::Int(-1), PrimitiveType::Date, "1969-12-31");
        check(PrimitiveLiteral::Int(i32::MAX), PrimitiveType::Date, "2147483647");
        check(PrimitiveLiteral::Int128(-5), PrimitiveType::Decimal { precision: 9, scale: 2 }, "-0.05");
        check(PrimitiveLiteral::Int128(1234), PrimitiveType::Decimal { precision: 9, scale: 2 }, "12.34");
        check(PrimitiveLiteral::Binary(vec![0, 255]), PrimitiveType::Binary, "00ff");
        assert_eq!(value_text(&PrimitiveLiteral::Int(3), None), "3");
    }

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
