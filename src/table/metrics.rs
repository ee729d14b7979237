//! A data file's column metrics, taken from its Parquet footer.
//!
//! The crate's own conversion drops a row group's bound when the statistics were cut and keeps the others', which makes
//! bounds too narrow and hides rows from every reader that prunes. Here a cut bound is still a bound, and one row group
//! without a bound takes the whole column's away.

use std::collections::{HashMap, HashSet};

use arrow::array::{Array, Float32Array, Float64Array, RecordBatch};
use arrow::datatypes::{DataType, Schema as ArrowSchema};
use iceberg::spec::{DataFileBuilder, Datum, PrimitiveType, Schema, Type};
use parquet::basic::LogicalType;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::statistics::Statistics;

/// Text bounds are cut to this many characters, as other Iceberg writers do.
const BOUND_CHARACTERS: usize = 16;

/// NaNs per top-level floating point column. They are not part of the bounds.
pub(super) struct NanCounts {
    columns: Vec<(usize, i32, u64)>,
}

impl NanCounts {
    pub(super) fn new(schema: &ArrowSchema) -> Self {
        let columns = schema.fields().iter().enumerate().filter_map(|(index, field)| {
            let id = field.metadata().get(parquet::arrow::PARQUET_FIELD_ID_META_KEY)?.parse().ok()?;
            matches!(field.data_type(), DataType::Float32 | DataType::Float64).then_some((index, id, 0))
        });
        NanCounts { columns: columns.collect() }
    }

    pub(super) fn add(&mut self, batch: &RecordBatch) {
        for (index, _, count) in &mut self.columns {
            let array = batch.column(*index);
            let any = array.as_any();
            if let Some(values) = any.downcast_ref::<Float64Array>() {
                *count += values.iter().flatten().filter(|value| value.is_nan()).count() as u64;
            } else if let Some(values) = any.downcast_ref::<Float32Array>() {
                *count += values.iter().flatten().filter(|value| value.is_nan()).count() as u64;
            }
        }
    }
}

/// Fills in what the footer says: row count, sizes, null counts, bounds, row group offsets.
pub(super) fn describe(builder: &mut DataFileBuilder, parquet: &ParquetMetaData, schema: &Schema, nans: NanCounts) {
    let mut sizes: HashMap<i32, u64> = HashMap::new();
    let mut values: HashMap<i32, u64> = HashMap::new();
    let mut nulls: HashMap<i32, u64> = HashMap::new();
    let mut bounds: HashMap<i32, Bounds> = HashMap::new();
    let mut without_bounds: HashSet<i32> = HashSet::new();
    for row_group in parquet.row_groups() {
        for column in row_group.columns() {
            let descriptor = column.column_descr();
            let basic = descriptor.self_type().get_basic_info();
            // Inside lists and maps a value is not a row, and nobody prunes by it.
            if !basic.has_id() || descriptor.max_rep_level() > 0 {
                continue;
            }
            let id = basic.id();
            *sizes.entry(id).or_default() += column.compressed_size() as u64;
            *values.entry(id).or_default() += column.num_values() as u64;
            let Some(primitive) = primitive_of(schema, id) else { continue };
            let statistics = column.statistics();
            match statistics.and_then(Statistics::null_count_opt) {
                Some(count) => *nulls.entry(id).or_default() += count,
                None => {
                    without_bounds.insert(id);
                    continue;
                }
            }
            let all_null = statistics.and_then(Statistics::null_count_opt) == Some(column.num_values() as u64);
            if all_null {
                continue;
            }
            let is_unsigned = matches!(basic.logical_type_ref(), Some(LogicalType::Integer { is_signed: false, .. }));
            match statistics.filter(|_| !is_unsigned).and_then(|statistics| bounds_of(statistics, &primitive)) {
                Some(found) => match bounds.get_mut(&id) {
                    Some(known) => known.widen(found),
                    None => {
                        bounds.insert(id, found);
                    }
                },
                None => {
                    without_bounds.insert(id);
                }
            }
        }
    }
    bounds.retain(|id, _| !without_bounds.contains(id));
    let mut lower = HashMap::new();
    let mut upper = HashMap::new();
    for (id, found) in bounds {
        if let Some(datum) = cut_lower(found.lower) {
            lower.insert(id, datum);
        }
        if let Some(datum) = cut_upper(found.upper) {
            upper.insert(id, datum);
        }
    }
    let row_groups = parquet.row_groups().iter();
    builder
        .record_count(parquet.file_metadata().num_rows() as u64)
        .column_sizes(sizes)
        .value_counts(values)
        .null_value_counts(nulls)
        .nan_value_counts(nans.columns.into_iter().map(|(_, id, count)| (id, count)).collect())
        .lower_bounds(lower)
        .upper_bounds(upper)
        .split_offsets(Some(row_groups.filter_map(|group| group.file_offset()).collect()));
}

struct Bounds {
    lower: Datum,
    upper: Datum,
}

impl Bounds {
    fn widen(&mut self, other: Bounds) {
        if other.lower < self.lower {
            self.lower = other.lower;
        }
        if other.upper > self.upper {
            self.upper = other.upper;
        }
    }
}

fn primitive_of(schema: &Schema, id: i32) -> Option<PrimitiveType> {
    match schema.field_by_id(id)?.field_type.as_ref() {
        Type::Primitive(primitive) => Some(primitive.clone()),
        _ => None,
    }
}

fn bounds_of(statistics: &Statistics, primitive: &PrimitiveType) -> Option<Bounds> {
    let datum = |bytes: Option<&[u8]>| -> Option<Datum> {
        let datum = Datum::try_from_bytes(&to_iceberg(bytes?, statistics, primitive)?, primitive.clone()).ok()?;
        (!datum.is_nan()).then_some(datum)
    };
    Some(Bounds { lower: datum(statistics.min_bytes_opt())?, upper: datum(statistics.max_bytes_opt())? })
}

/// Parquet's plain bytes as Iceberg's single-value bytes: the same but for decimals, which Iceberg keeps big-endian.
fn to_iceberg(bytes: &[u8], statistics: &Statistics, primitive: &PrimitiveType) -> Option<Vec<u8>> {
    Some(match (primitive, statistics) {
        (PrimitiveType::Decimal { .. }, Statistics::Int32(_) | Statistics::Int64(_)) => {
            bytes.iter().rev().copied().collect()
        }
        _ => bytes.to_vec(),
    })
}

fn text_of(datum: &Datum) -> Option<String> {
    match datum.literal() {
        iceberg::spec::PrimitiveLiteral::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn cut_lower(datum: Datum) -> Option<Datum> {
    match (datum.data_type(), text_of(&datum)) {
        (PrimitiveType::String, Some(text)) if text.chars().count() > BOUND_CHARACTERS => {
            Some(Datum::string(text.chars().take(BOUND_CHARACTERS).collect::<String>()))
        }
        // A prefix of bytes is a lower bound, but of no use to anybody; binary columns are not compared.
        (PrimitiveType::Binary | PrimitiveType::Fixed(_), _) => None,
        _ => Some(datum),
    }
}

fn cut_upper(datum: Datum) -> Option<Datum> {
    match (datum.data_type(), text_of(&datum)) {
        (PrimitiveType::String, Some(text)) if text.chars().count() > BOUND_CHARACTERS => {
            let cut: Vec<char> = text.chars().take(BOUND_CHARACTERS).collect();
            successor(cut).map(Datum::string)
        }
        (PrimitiveType::Binary | PrimitiveType::Fixed(_), _) => None,
        _ => Some(datum),
    }
}

/// The smallest text of at most this length that is above every text starting with `prefix`.
fn successor(mut prefix: Vec<char>) -> Option<String> {
    while let Some(last) = prefix.pop() {
        // Stepping over the surrogate range, where there is no character.
        let next = if last == '\u{D7FF}' { Some('\u{E000}') } else { char::from_u32(last as u32 + 1) };
        if let Some(next) = next {
            prefix.push(next);
            return Some(prefix.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_upper_bound_is_above_all_it_stands_for() {
        let check = |text: &str, expected: Option<&str>| {
            let cut = cut_upper(Datum::string(text)).map(|datum| text_of(&datum).unwrap());
            assert_eq!(cut.as_deref(), expected, "{text}");
        };
        check("short", Some("short"));
        check("0123456789abcdef", Some("0123456789abcdef"));
        check("0123456789abcdefg", Some("0123456789abcdeg"));
        check(&format!("0123456789abcde{}z", '\u{10FFFF}'), Some("0123456789abcdf"));
        check(&"\u{10FFFF}".repeat(17), None);
        assert_eq!(text_of(&cut_lower(Datum::string("0123456789abcdefg")).unwrap()).unwrap(), "0123456789abcdef");
    }
}
