//! Bounds of manifests and files as Arrow arrays, in the columns' current types.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int32Array,
    Int64Array, LargeBinaryArray, StringArray, Time64MicrosecondArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, TimeUnit};
use iceberg::spec::{
    Datum, Literal, ManifestFile, NestedField, PartitionSpec, PrimitiveLiteral, PrimitiveType, Transform, Type,
};
use iceberg::transform::create_transform_function;

use super::scan::{ColumnStatistics, ScanFile, TableView};
use super::{Table, WrittenFile};

/// Statistics of data files, one element per file.
pub(super) struct FileStatistics<'a> {
    view: &'a TableView,
    files: &'a [ScanFile],
}

impl<'a> FileStatistics<'a> {
    pub(super) fn new(view: &'a TableView, files: &'a [ScanFile]) -> Self {
        FileStatistics { view, files }
    }
}

impl Table {
    /// The latest time that these files have in a column of timestamps, in microseconds since 1970, as their statistics
    /// say it.
    pub fn newest_us(&self, files: &[WrittenFile], column: &str) -> Option<i64> {
        let id = self.metadata().current_schema().field_id_by_name(column)?;
        let upper = |file: &WrittenFile| match file.file.upper_bounds().get(&id).map(Datum::literal) {
            Some(PrimitiveLiteral::Long(us)) => Some(*us),
            _ => None,
        };
        files.iter().filter_map(upper).max()
    }
}

impl ColumnStatistics for FileStatistics<'_> {
    fn len(&self) -> usize {
        self.files.len()
    }

    fn lower(&self, column: &str) -> Option<ArrayRef> {
        let (field, arrow_type) = column_of(self.view, column)?;
        let literals = self.files.iter().map(|file| file.data.lower_bounds().get(&field.id).map(Datum::literal));
        to_array(literals, &arrow_type)
    }

    fn upper(&self, column: &str) -> Option<ArrayRef> {
        let (field, arrow_type) = column_of(self.view, column)?;
        let literals = self.files.iter().map(|file| {
            // Bounds leave NaN out, and the engine orders it above everything.
            let has_no_nan = !arrow_type.is_floating()
                || file.data.nan_value_counts().get(&field.id).is_some_and(|count| *count == 0);
            file.data.upper_bounds().get(&field.id).filter(|_| has_no_nan).map(Datum::literal)
        });
        to_array(literals, &arrow_type)
    }

    fn null_counts(&self, column: &str) -> Option<ArrayRef> {
        let (field, _) = column_of(self.view, column)?;
        let counts = self.files.iter().map(|file| file.data.null_value_counts().get(&field.id).copied());
        Some(Arc::new(UInt64Array::from_iter(counts)))
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        Some(Arc::new(UInt64Array::from_iter_values(self.files.iter().map(|file| file.record_count))))
    }

    fn contains_any(&self, column: &str, values: &ArrayRef) -> Option<Vec<Option<bool>>> {
        let (field, _) = column_of(self.view, column)?;
        let metadata = self.view.metadata();
        let per_spec: HashMap<i32, Option<(usize, Vec<i32>)>> =
            metadata.partition_specs_iter().map(|spec| (spec.spec_id(), buckets_of(spec, field, values))).collect();
        let verdict = |file: &ScanFile| -> Option<bool> {
            let (position, buckets) = per_spec.get(&file.spec_id)?.as_ref()?;
            match file.data.partition().fields().get(*position) {
                Some(Some(Literal::Primitive(PrimitiveLiteral::Int(bucket)))) => {
                    (!buckets.contains(bucket)).then_some(false)
                }
                _ => None,
            }
        };
        Some(self.files.iter().map(verdict).collect())
    }
}

/// Statistics of manifests, from the summaries of their partition fields.
pub(super) struct ManifestStatistics<'a> {
    view: &'a TableView,
    manifests: &'a [ManifestFile],
}

impl<'a> ManifestStatistics<'a> {
    pub(super) fn new(view: &'a TableView, manifests: &'a [ManifestFile]) -> Self {
        ManifestStatistics { view, manifests }
    }

    fn bounds(&self, column: &str, side: Side) -> Option<ArrayRef> {
        let (field, arrow_type) = column_of(self.view, column)?;
        let found: Vec<Option<PrimitiveLiteral>> =
            self.manifests.iter().map(|manifest| self.bound(manifest, field, side)).collect();
        to_array(found.iter().map(Option::as_ref), &arrow_type)
    }

    fn bound(&self, manifest: &ManifestFile, field: &NestedField, side: Side) -> Option<PrimitiveLiteral> {
        let spec = self.view.metadata().partition_spec_by_id(manifest.partition_spec_id)?;
        let summaries = manifest.partitions.as_ref()?;
        spec.fields().iter().zip(summaries).filter(|(of, _)| of.source_id == field.id).find_map(|(of, summary)| {
            let bytes = match side {
                Side::Lower => summary.lower_bound.as_ref()?,
                Side::Upper => summary.upper_bound.as_ref()?,
            };
            let Type::Primitive(result) = of.transform.result_type(&field.field_type).ok()? else { return None };
            // The specification lets a day be written as an int or a date; the crate declares a date.
            let value = Datum::try_from_bytes(bytes, result).ok()?;
            source_bound(of.transform, value.literal(), &field.field_type, side)
        })
    }
}

impl ColumnStatistics for ManifestStatistics<'_> {
    fn len(&self) -> usize {
        self.manifests.len()
    }

    fn lower(&self, column: &str) -> Option<ArrayRef> {
        self.bounds(column, Side::Lower)
    }

    fn upper(&self, column: &str) -> Option<ArrayRef> {
        self.bounds(column, Side::Upper)
    }

    fn null_counts(&self, _: &str) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self) -> Option<ArrayRef> {
        None
    }

    fn contains_any(&self, column: &str, values: &ArrayRef) -> Option<Vec<Option<bool>>> {
        let (field, _) = column_of(self.view, column)?;
        let verdict = |manifest: &ManifestFile| -> Option<bool> {
            let spec = self.view.metadata().partition_spec_by_id(manifest.partition_spec_id)?;
            let (position, buckets) = buckets_of(spec, field, values)?;
            let summary = manifest.partitions.as_ref()?.get(position)?;
            let bound = |bytes: &[u8]| Some(i32::from_le_bytes(bytes.try_into().ok()?));
            let lower = bound(summary.lower_bound.as_ref()?)?;
            let upper = bound(summary.upper_bound.as_ref()?)?;
            (!buckets.iter().any(|bucket| (lower..=upper).contains(bucket))).then_some(false)
        };
        Some(self.manifests.iter().map(verdict).collect())
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Side {
    Lower,
    Upper,
}

fn column_of<'a>(view: &'a TableView, column: &str) -> Option<(&'a NestedField, DataType)> {
    // Top-level columns only: a dot in the name would mean a nested one.
    let field = view.iceberg_schema().as_struct().fields().iter().find(|field| field.name == column)?;
    let arrow_type = view.arrow_schema().field_with_name(column).ok()?.data_type().clone();
    Some((field, arrow_type))
}

/// The bucket partition field of a column, and the buckets the values fall into.
fn buckets_of(spec: &PartitionSpec, field: &NestedField, values: &ArrayRef) -> Option<(usize, Vec<i32>)> {
    let (position, of) = spec
        .fields()
        .iter()
        .enumerate()
        .find(|(_, of)| of.source_id == field.id && matches!(of.transform, Transform::Bucket(_)))?;
    let buckets = create_transform_function(&of.transform).ok()?.transform(values.clone()).ok()?;
    let buckets = buckets.as_any().downcast_ref::<Int32Array>()?;
    // A null literal has no bucket and proves nothing.
    if buckets.iter().any(|bucket| bucket.is_none()) {
        return None;
    }
    Some((position, buckets.values().to_vec()))
}

/// What a partition value says about the source column: the least or the greatest value it can stand for.
fn source_bound(transform: Transform, value: &PrimitiveLiteral, source: &Type, side: Side) -> Option<PrimitiveLiteral> {
    let number = match value {
        PrimitiveLiteral::Int(value) => Some(i64::from(*value)),
        PrimitiveLiteral::Long(value) => Some(*value),
        _ => None,
    };
    match transform {
        Transform::Identity => Some(value.clone()),
        Transform::Truncate(width) => match (side, value) {
            (Side::Lower, _) => Some(value.clone()),
            (Side::Upper, PrimitiveLiteral::Int(start)) => {
                Some(PrimitiveLiteral::Int(start.checked_add(i32::try_from(width).ok()? - 1)?))
            }
            (Side::Upper, PrimitiveLiteral::Long(start)) => {
                Some(PrimitiveLiteral::Long(start.checked_add(i64::from(width) - 1)?))
            }
            _ => None,
        },
        Transform::Hour | Transform::Day | Transform::Month | Transform::Year => {
            let unit = number?;
            let (from, until) = (unit_start_us(transform, unit)?, unit_start_us(transform, unit + 1)?);
            const DAY_US: i64 = 86_400_000_000;
            let at = if side == Side::Lower { from } else { until - 1 };
            match source {
                Type::Primitive(PrimitiveType::Date) => Some(PrimitiveLiteral::Int(at.div_euclid(DAY_US) as i32)),
                Type::Primitive(PrimitiveType::Timestamp | PrimitiveType::Timestamptz) => {
                    Some(PrimitiveLiteral::Long(at))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn unit_start_us(transform: Transform, unit: i64) -> Option<i64> {
    const HOUR_US: i64 = 3_600_000_000;
    let date_us = |year: i64, month: u32| {
        let date = chrono::NaiveDate::from_ymd_opt(i32::try_from(year).ok()?, month, 1)?;
        Some(date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_micros())
    };
    match transform {
        Transform::Hour => unit.checked_mul(HOUR_US),
        Transform::Day => unit.checked_mul(24 * HOUR_US),
        Transform::Month => date_us(1970 + unit.div_euclid(12), unit.rem_euclid(12) as u32 + 1),
        Transform::Year => date_us(1970 + unit, 1),
        _ => None,
    }
}

/// Literals as an array of the column's type. A value of another type than the column can be read as is not known.
fn to_array<'a>(literals: impl Iterator<Item = Option<&'a PrimitiveLiteral>>, to: &DataType) -> Option<ArrayRef> {
    use PrimitiveLiteral as Value;
    let array: ArrayRef = match to {
        DataType::Boolean => Arc::new(BooleanArray::from_iter(literals.map(|value| match value {
            Some(Value::Boolean(value)) => Some(*value),
            _ => None,
        }))),
        DataType::Int32 => Arc::new(Int32Array::from_iter(literals.map(int))),
        DataType::Date32 => Arc::new(Date32Array::from_iter(literals.map(int))),
        DataType::Int64 => Arc::new(Int64Array::from_iter(literals.map(long))),
        DataType::Time64(TimeUnit::Microsecond) => Arc::new(Time64MicrosecondArray::from_iter(literals.map(long))),
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            Arc::new(TimestampMicrosecondArray::from_iter(literals.map(long)).with_timezone_opt(zone.clone()))
        }
        DataType::Float32 => Arc::new(Float32Array::from_iter(literals.map(|value| match value {
            Some(Value::Float(value)) => Some(value.0),
            _ => None,
        }))),
        DataType::Float64 => Arc::new(Float64Array::from_iter(literals.map(|value| match value {
            Some(Value::Double(value)) => Some(value.0),
            Some(Value::Float(value)) => Some(f64::from(value.0)),
            _ => None,
        }))),
        DataType::Decimal128(precision, scale) => {
            let values = literals.map(|value| match value {
                Some(Value::Int128(value)) => Some(*value),
                _ => None,
            });
            Arc::new(Decimal128Array::from_iter(values).with_precision_and_scale(*precision, *scale).ok()?)
        }
        DataType::Utf8 => Arc::new(StringArray::from_iter(literals.map(|value| match value {
            Some(Value::String(value)) => Some(value.as_str()),
            _ => None,
        }))),
        DataType::LargeBinary => Arc::new(LargeBinaryArray::from_iter(literals.map(bytes_of))),
        DataType::Binary => Arc::new(BinaryArray::from_iter(literals.map(bytes_of))),
        _ => return None,
    };
    Some(array)
}

fn int(value: Option<&PrimitiveLiteral>) -> Option<i32> {
    match value {
        Some(PrimitiveLiteral::Int(value)) => Some(*value),
        _ => None,
    }
}

fn long(value: Option<&PrimitiveLiteral>) -> Option<i64> {
    match value {
        Some(PrimitiveLiteral::Long(value)) => Some(*value),
        // Written before the column was widened.
        Some(PrimitiveLiteral::Int(value)) => Some(i64::from(*value)),
        _ => None,
    }
}

fn bytes_of(value: Option<&PrimitiveLiteral>) -> Option<&[u8]> {
    match value {
        Some(PrimitiveLiteral::Binary(value)) => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_value_bounds_its_source_column() {
        let timestamptz = Type::Primitive(PrimitiveType::Timestamptz);
        let check = |transform, value: i32, source: &Type, expected: (i64, i64)| {
            let bound = |side| match source_bound(transform, &PrimitiveLiteral::Int(value), source, side) {
                Some(PrimitiveLiteral::Long(value)) => value,
                Some(PrimitiveLiteral::Int(value)) => i64::from(value),
                other => panic!("{other:?}"),
            };
            assert_eq!((bound(Side::Lower), bound(Side::Upper)), expected, "{transform} {value}");
        };
        const DAY: i64 = 86_400_000_000;
        check(Transform::Day, 0, &timestamptz, (0, DAY - 1));
        check(Transform::Hour, 1, &timestamptz, (DAY / 24, DAY / 12 - 1));
        check(Transform::Month, 1, &timestamptz, (31 * DAY, 59 * DAY - 1));
        check(Transform::Year, 1, &timestamptz, (365 * DAY, 730 * DAY - 1));
        check(Transform::Month, 12, &Type::Primitive(PrimitiveType::Date), (365, 395));
        check(Transform::Day, -1, &timestamptz, (-DAY, -1));
        check(Transform::Truncate(10), 40, &Type::Primitive(PrimitiveType::Int), (40, 49));
    }
}
