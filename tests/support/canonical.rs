//! Rows as JSON, in the one form per type that `tests/readers/canonical.py` defines, so that what different engines say
//! of a table compares as text. Rows to be written are given in the same form.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, SchemaRef,
    Time64MicrosecondType, TimeUnit, TimestampMicrosecondType,
};
use arrow::json::ReaderBuilder;
use chrono::DateTime;
use futures::TryStreamExt;
use icestream::engine::{self, Engine, EngineOptions};
use icestream::table::{At, Table};
use serde_json::{Map, Value, json};

pub type Row = Map<String, Value>;

/// A batch of rows; a column that a row lacks is null.
pub fn batch(schema: &SchemaRef, rows: &[Row]) -> RecordBatch {
    let mut decoder = ReaderBuilder::new(schema.clone()).with_strict_mode(true).build_decoder().unwrap();
    decoder.serialize(rows).unwrap();
    decoder.flush().unwrap().unwrap_or_else(|| RecordBatch::new_empty(schema.clone()))
}

/// Rows as arrays in column order, sorted by their text.
pub fn rows_of(batches: &[RecordBatch]) -> Vec<Value> {
    let mut rows = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            rows.push(Value::Array(batch.columns().iter().map(|column| value(column, row)).collect()));
        }
    }
    sorted(rows)
}

pub fn sorted(mut rows: Vec<Value>) -> Vec<Value> {
    rows.sort_by_cached_key(Value::to_string);
    rows
}

fn value(array: &dyn Array, row: usize) -> Value {
    if array.is_null(row) {
        return Value::Null;
    }
    match array.data_type() {
        DataType::Boolean => json!(array.as_boolean().value(row)),
        DataType::Int32 => json!(array.as_primitive::<Int32Type>().value(row)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(row)),
        DataType::Float32 => json!(float(f64::from(array.as_primitive::<Float32Type>().value(row)))),
        DataType::Float64 => json!(float(array.as_primitive::<Float64Type>().value(row))),
        DataType::Decimal128(..) => json!(array.as_primitive::<Decimal128Type>().value_as_string(row)),
        DataType::Date32 => {
            let date = array.as_primitive::<Date32Type>().value_as_date(row).unwrap();
            json!(date.format("%Y-%m-%d").to_string())
        }
        DataType::Time64(TimeUnit::Microsecond) => {
            let time = array.as_primitive::<Time64MicrosecondType>().value_as_time(row).unwrap();
            json!(time.format("%H:%M:%S%.6f").to_string())
        }
        DataType::Timestamp(TimeUnit::Microsecond, zone) => {
            let time = DateTime::from_timestamp_micros(array.as_primitive::<TimestampMicrosecondType>().value(row));
            let text = time.unwrap().format("%Y-%m-%dT%H:%M:%S%.6f").to_string();
            json!(text + if zone.is_some() { "Z" } else { "" })
        }
        DataType::Utf8 => json!(array.as_string::<i32>().value(row)),
        DataType::LargeUtf8 => json!(array.as_string::<i64>().value(row)),
        DataType::Binary => json!(hex(array.as_binary::<i32>().value(row))),
        DataType::LargeBinary => json!(hex(array.as_binary::<i64>().value(row))),
        // Sixteen bytes are a UUID here.
        DataType::FixedSizeBinary(16) => {
            json!(uuid::Uuid::from_slice(array.as_fixed_size_binary().value(row)).unwrap().to_string())
        }
        DataType::FixedSizeBinary(_) => json!(hex(array.as_fixed_size_binary().value(row))),
        DataType::List(_) => {
            let list = array.as_list::<i32>().value(row);
            Value::Array((0..list.len()).map(|index| value(&list, index)).collect())
        }
        DataType::Struct(fields) => {
            let array = array.as_struct();
            let pairs = fields.iter().zip(array.columns());
            Value::Object(pairs.map(|(field, column)| (field.name().clone(), value(column, row))).collect())
        }
        DataType::Map(..) => {
            let entries = array.as_map().value(row);
            let pair = |index| json!([value(entries.column(0), index), value(entries.column(1), index)]);
            Value::Array(sorted((0..entries.len()).map(pair).collect()))
        }
        other => panic!("no canonical form for {other}"),
    }
}

/// As Python's `repr` writes it.
pub fn float(value: f64) -> String {
    if !value.is_finite() {
        return format!("{value}").to_lowercase();
    }
    let (mantissa, exponent) =
        format!("{value:e}").split_once('e').map(|(m, e)| (m.to_string(), e.to_string())).unwrap();
    let exponent: i32 = exponent.parse().unwrap();
    if (-4..16).contains(&exponent) {
        let text = value.to_string();
        return if text.contains('.') { text } else { text + ".0" };
    }
    format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What our own engine answers, `{table}` being the table.
pub async fn query(table: &Table, at: At, sql: &str) -> engine::Result<Vec<Value>> {
    let spill = tempfile::tempdir().unwrap();
    let options = EngineOptions { memory_bytes: 256 << 20, threads: 2, spill_dir: spill.path().to_path_buf() };
    let context = Engine::new(&options)?.session();
    engine::register(&context, table.name(), table.view(at)?)?;
    let sql = sql.replace("{table}", &table.name().to_string());
    let stream = engine::query(&context, &sql).await?;
    let batches: Vec<RecordBatch> = stream.try_collect().await?;
    Ok(rows_of(&batches))
}

/// Every row of the head, filtered where there is a filter.
pub async fn select(table: &Table, filter: Option<&str>) -> Vec<Value> {
    let condition = filter.map(|filter| format!(" WHERE {filter}")).unwrap_or_default();
    let sql = format!("SELECT * FROM {{table}}{condition}");
    query(table, At::Head, &sql).await.unwrap_or_else(|error| panic!("{}: {sql}: {error:?}", table.name()))
}

/// The columns of the head.
pub fn columns(table: &Table) -> Vec<String> {
    table.schema().unwrap().fields().iter().map(|field| field.name().clone()).collect()
}

/// Without field ids, as rows come from elsewhere.
pub fn without_ids(schema: &SchemaRef) -> SchemaRef {
    Arc::new(arrow::datatypes::Schema::new(schema.fields().clone()))
}

/// Rows from a JSON array of objects.
pub fn json_rows(of: Value) -> Vec<Row> {
    serde_json::from_value(of).unwrap()
}
