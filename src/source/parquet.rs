//! The rows of a Parquet file as the lines that stand for them.
//!
//! The S3 sinks of Kafka Connect write a record's value as a row, whose columns and fields are those that its JSON has. A
//! line is what Connect's own JSON converter makes of the same value, so that a table reads both by the same settings:
//! decimals and bytes are base64, dates are days, times of Connect's own types are milliseconds; Debezium's types are the
//! numbers and texts they are anyway. A column of a type that no sink writes stops the file before anything is read of it.

use std::io::Write as _;
use std::sync::Arc;

use arrow::array::types::{
    Date32Type, Decimal128Type, Decimal256Type, Float32Type, Float64Type, Time32MillisecondType,
    TimestampMillisecondType,
};
use arrow::array::{Array, AsArray, PrimitiveArray, RecordBatch};
use arrow::datatypes::{ArrowPrimitiveType, DataType, FieldRef, Fields, TimeUnit};
use arrow::error::ArrowError;
use arrow::json::StructMode;
use arrow::json::writer::{Encoder, EncoderFactory, EncoderOptions, LineDelimited, NullableEncoder, WriterBuilder};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, TryStreamExt};
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStream, ParquetRecordBatchStreamBuilder};
use parquet::errors::ParquetError;
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};

use super::error::{Error, Reason, Result};
use super::history::HistoryFile;

/// What every Parquet file begins with.
const MAGIC: &[u8] = b"PAR1";

/// Rows of a batch at most, and about how many bytes those may have.
const BATCH_ROWS: usize = 1024;
const BATCH_BYTES: u64 = 4 << 20;

/// A Parquet file that is read from its first row to its last.
pub struct ParquetRows {
    file: String,
    bytes: u64,
    rows: u64,
    rows_read: u64,
    batches: ParquetRecordBatchStream<Reader>,
}

impl ParquetRows {
    /// Whether a file that begins like this is one.
    pub fn is_parquet(start: &[u8]) -> bool {
        start.starts_with(MAGIC)
    }

    pub async fn open(file: &HistoryFile) -> Result<Self> {
        let failed = |error| failure(file, error);
        let mut reader = Reader(file.clone());
        let footer = reader.get_metadata(None).await.map_err(failed)?;
        // What some writer's library would like the columns to be is not what they are.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::try_new(footer, options).map_err(failed)?;
        check(metadata.schema().fields(), "").map_err(|(column, found)| Error::Uncarried {
            file: file.location.clone(),
            column,
            found,
        })?;
        let rows = metadata.metadata().file_metadata().num_rows();
        let at_once = rows_at_once(metadata.metadata());
        let builder = ParquetRecordBatchStreamBuilder::new_with_metadata(reader, metadata);
        Ok(ParquetRows {
            file: file.location.clone(),
            bytes: file.bytes,
            rows: u64::try_from(rows).unwrap_or(0),
            rows_read: 0,
            batches: builder.with_batch_size(at_once).build().map_err(failed)?,
        })
    }

    /// The next rows, and how many of the file's bytes they stand for; none behind the last.
    pub async fn next(&mut self) -> Result<Option<(RecordBatch, u64)>> {
        let file = self.file.clone();
        let Some(batch) = self.batches.try_next().await.map_err(|error| failure_in(&file, error))? else {
            return Ok(None);
        };
        let share = |rows: u64| u128::from(self.bytes) * u128::from(rows) / u128::from(self.rows.max(1));
        let before = share(self.rows_read);
        self.rows_read += batch.num_rows() as u64;
        let bytes = u64::try_from(share(self.rows_read) - before).unwrap_or(0);
        Ok(Some((batch, bytes)))
    }

    /// Rows as JSON lines.
    pub fn lines(file: &str, rows: &RecordBatch) -> Result<Bytes> {
        let builder = WriterBuilder::new().with_explicit_nulls(true).with_struct_mode(StructMode::ObjectOnly);
        let mut writer = builder.with_encoder_factory(Arc::new(AsConnect)).build::<_, LineDelimited>(Vec::new());
        let written = writer.write(rows).and_then(|()| writer.finish());
        written.map_err(|error| Error::Damaged { file: file.to_string(), source: Reason::new(error.to_string()) })?;
        Ok(writer.into_inner().into())
    }
}

/// How many rows make a batch that is not too large, where rows are about as large as each other.
fn rows_at_once(metadata: &ParquetMetaData) -> usize {
    let row_bytes = metadata.row_groups().iter().map(|group| {
        // A dictionary holds a text once, however many rows have it.
        let texts = group.columns().iter().filter_map(|column| column.unencoded_byte_array_data_bytes());
        let bytes = group.total_byte_size().max(texts.sum());
        u64::try_from(bytes).unwrap_or(0) / u64::try_from(group.num_rows()).unwrap_or(0).max(1)
    });
    usize::try_from(BATCH_BYTES / row_bytes.max().unwrap_or(0).max(1)).unwrap_or(BATCH_ROWS).clamp(1, BATCH_ROWS)
}

/// Reads ranges of a file's bytes.
struct Reader(HistoryFile);

impl AsyncFileReader for Reader {
    fn get_bytes(&mut self, range: std::ops::Range<u64>) -> BoxFuture<'_, parquet::errors::Result<Bytes>> {
        async move { self.0.read(range).await.map_err(|error| ParquetError::External(Box::new(error))) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        _: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, parquet::errors::Result<Arc<ParquetMetaData>>> {
        async move {
            let bytes = self.0.bytes;
            Ok(Arc::new(ParquetMetaDataReader::new().load_and_finish(self, bytes).await?))
        }
        .boxed()
    }
}

fn failure(file: &HistoryFile, error: ParquetError) -> Error {
    failure_in(&file.location, error)
}

/// What storage said comes out again as it was.
fn failure_in(file: &str, error: ParquetError) -> Error {
    let damaged = |text: String| Error::Damaged { file: file.to_string(), source: Reason::new(text) };
    match error {
        ParquetError::External(source) => match source.downcast::<Error>() {
            Ok(error) => *error,
            Err(other) => damaged(other.to_string()),
        },
        other => damaged(other.to_string()),
    }
}

/// The first column whose values JSON cannot carry as Connect does, by its path, and its type.
fn check(fields: &Fields, path: &str) -> Result<(), (String, String)> {
    for field in fields {
        let path = if path.is_empty() { field.name().clone() } else { format!("{path}.{}", field.name()) };
        check_type(field.data_type(), &path)?;
    }
    Ok(())
}

fn check_type(data_type: &DataType, path: &str) -> Result<(), (String, String)> {
    match data_type {
        DataType::Struct(fields) => check(fields, path),
        DataType::List(item) | DataType::LargeList(item) => check_type(item.data_type(), path),
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(entry) if entry.first().is_some_and(|key| *key.data_type() == DataType::Utf8) => {
                check(entry, path)
            }
            other => Err((path.to_string(), format!("map of {other}"))),
        },
        DataType::Null
        | DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Binary
        | DataType::FixedSizeBinary(_)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..)
        | DataType::Date32
        | DataType::Time32(TimeUnit::Millisecond)
        | DataType::Timestamp(TimeUnit::Millisecond, _) => Ok(()),
        other => Err((path.to_string(), other.to_string())),
    }
}

/// Writes values as Connect's JSON converter does, where Arrow's writer would not.
#[derive(Debug)]
struct AsConnect;

impl EncoderFactory for AsConnect {
    fn make_default_encoder<'a>(
        &self,
        _: &'a FieldRef,
        array: &'a dyn Array,
        _: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let encoder: Box<dyn Encoder + 'a> = match array.data_type() {
            DataType::Binary => Box::new(Base64(|row| array.as_binary::<i32>().value(row).to_vec())),
            DataType::FixedSizeBinary(_) => Box::new(Base64(|row| array.as_fixed_size_binary().value(row).to_vec())),
            DataType::Decimal128(..) => {
                let values = array.as_primitive::<Decimal128Type>();
                Box::new(Base64(|row| shortest(&values.value(row).to_be_bytes())))
            }
            DataType::Decimal256(..) => {
                let values = array.as_primitive::<Decimal256Type>();
                Box::new(Base64(|row| shortest(&values.value(row).to_be_bytes())))
            }
            DataType::Date32 => whole(array.as_primitive::<Date32Type>()),
            DataType::Time32(TimeUnit::Millisecond) => whole(array.as_primitive::<Time32MillisecondType>()),
            DataType::Timestamp(TimeUnit::Millisecond, _) => whole(array.as_primitive::<TimestampMillisecondType>()),
            DataType::Float32 => float(array.as_primitive::<Float32Type>()),
            DataType::Float64 => float(array.as_primitive::<Float64Type>()),
            _ => return Ok(None),
        };
        Ok(Some(NullableEncoder::new(encoder, array.nulls().cloned())))
    }
}

/// Bytes as text.
struct Base64<F: Fn(usize) -> Vec<u8>>(F);

impl<F: Fn(usize) -> Vec<u8>> Encoder for Base64<F> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        out.push(b'"');
        out.extend_from_slice(STANDARD.encode((self.0)(row)).as_bytes());
        out.push(b'"');
    }
}

/// Numbers as text.
struct Text<F: Fn(usize, &mut Vec<u8>)>(F);

impl<F: Fn(usize, &mut Vec<u8>)> Encoder for Text<F> {
    fn encode(&mut self, row: usize, out: &mut Vec<u8>) {
        (self.0)(row, out);
    }
}

fn whole<'a, T>(values: &'a PrimitiveArray<T>) -> Box<dyn Encoder + 'a>
where
    T: ArrowPrimitiveType,
    T::Native: std::fmt::Display,
{
    // Writing to memory does not fail.
    Box::new(Text(|row, out: &mut Vec<u8>| drop(write!(out, "{}", values.value(row)))))
}

/// JSON has no numbers for some, which Connect puts in quotes.
fn float<'a, T>(values: &'a PrimitiveArray<T>) -> Box<dyn Encoder + 'a>
where
    T: ArrowPrimitiveType,
    T::Native: Into<f64> + std::fmt::Debug,
{
    Box::new(Text(|row, out: &mut Vec<u8>| {
        let value = values.value(row);
        let wide: f64 = value.into();
        let special = match () {
            () if wide.is_nan() => "\"NaN\"",
            () if wide == f64::INFINITY => "\"Infinity\"",
            () if wide == f64::NEG_INFINITY => "\"-Infinity\"",
            () => return drop(write!(out, "{value:?}")),
        };
        out.extend_from_slice(special.as_bytes());
    }))
}

/// A two's complement number without the leading bytes that say nothing.
fn shortest(bytes: &[u8]) -> Vec<u8> {
    let says_nothing = |two: &[u8]| matches!((two[0], two[1] >> 7), (0x00, 0) | (0xff, 1));
    let skipped = bytes.windows(2).take_while(|two| says_nothing(two)).count();
    bytes[skipped..].to_vec()
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        ArrayRef, BinaryArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array, Float64Array,
        Int64Array, ListArray, MapBuilder, StringArray, StringBuilder, StructArray, Time32MillisecondArray,
        TimestampMillisecondArray,
    };
    use arrow::array::{Int32Builder, MapArray};
    use arrow::datatypes::{Field, Int32Type};

    use super::*;

    #[test]
    fn a_row_is_the_line_that_connect_s_converter_makes_of_it() {
        let check = |column: ArrayRef, expected: &[&str]| {
            let rows = RecordBatch::try_from_iter_with_nullable([("x", column, true)]).unwrap();
            let (fields, lines) = (rows.schema(), ParquetRows::lines("f", &rows).unwrap());
            let expected: String = expected.iter().map(|value| format!("{{\"x\":{value}}}\n")).collect();
            assert_eq!(String::from_utf8(lines.to_vec()).unwrap(), expected, "{fields:?}");
            check_type(fields.field(0).data_type(), "x").unwrap();
        };
        let decimals =
            |values: Vec<Option<i128>>| Decimal128Array::from(values).with_precision_and_scale(20, 2).unwrap();
        let decimals = decimals(vec![Some(0), Some(-1), Some(1999), Some(-256), Some(128), None]);
        check(Arc::new(decimals), &["\"AA==\"", "\"/w==\"", "\"B88=\"", "\"/wA=\"", "\"AIA=\"", "null"]);
        check(
            Arc::new(Int64Array::from(vec![Some(i64::MAX), Some(i64::MIN), None])),
            &["9223372036854775807", "-9223372036854775808", "null"],
        );
        check(
            Arc::new(Float64Array::from(vec![0.1, -0.0, 1e300, f64::NAN, f64::INFINITY, f64::NEG_INFINITY])),
            &["0.1", "-0.0", "1e300", "\"NaN\"", "\"Infinity\"", "\"-Infinity\""],
        );
        check(Arc::new(Float32Array::from(vec![0.1, f32::NAN])), &["0.1", "\"NaN\""]);
        check(Arc::new(Date32Array::from(vec![Some(-1), Some(20_000), None])), &["-1", "20000", "null"]);
        check(Arc::new(Time32MillisecondArray::from(vec![86_399_999])), &["86399999"]);
        check(Arc::new(TimestampMillisecondArray::from(vec![-1]).with_timezone("UTC")), &["-1"]);
        check(
            Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\xff\x00"), Some(b""), None])),
            &["\"/wA=\"", "\"\"", "null"],
        );
        let fixed = FixedSizeBinaryArray::try_from_iter([[1u8, 2, 3]].into_iter()).unwrap();
        check(Arc::new(fixed), &["\"AQID\""]);
        check(Arc::new(StringArray::from(vec![Some("a\"\n\u{1}é"), None])), &["\"a\\\"\\n\\u0001é\"", "null"]);
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), Some(vec![]), None]);
        check(Arc::new(list), &["[1,null]", "[]", "null"]);
        let mut map = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
        map.keys().append_value("k");
        map.values().append_null();
        map.append(true).unwrap();
        let map: MapArray = map.finish();
        check(Arc::new(map), &["{\"k\":null}"]);
        let date: ArrayRef = Arc::new(Date32Array::from(vec![None, Some(7)]));
        let inner = StructArray::from(vec![(Arc::new(Field::new("d", DataType::Date32, true)), date)]);
        check(Arc::new(inner), &["{\"d\":null}", "{\"d\":7}"]);
    }

    #[test]
    fn batches_of_large_rows_have_few_of_them() {
        let check = |texts: Vec<String>, expected: usize| {
            let rows = RecordBatch::try_from_iter([("x", Arc::new(StringArray::from(texts)) as ArrayRef)]).unwrap();
            let mut file = Vec::new();
            let mut writer = parquet::arrow::ArrowWriter::try_new(&mut file, rows.schema(), None).unwrap();
            writer.write(&rows).unwrap();
            let metadata = writer.close().unwrap();
            assert_eq!(rows_at_once(&metadata), expected);
        };
        check(vec![], BATCH_ROWS);
        check(vec!["a".repeat(10); 5000], BATCH_ROWS);
        check(vec!["a".repeat(1 << 20); 8], 4);
        check((0..8).map(|row| row.to_string().repeat(1 << 20)).collect(), 3);
        check(vec!["a".repeat(20 << 20)], 1);
    }

    #[test]
    fn types_that_no_sink_writes_are_named_with_their_column() {
        let check = |data_type: DataType, expected: &str| {
            let fields = Fields::from(vec![Field::new("a", data_type, true)]);
            let fields = Fields::from(vec![Field::new("after", DataType::Struct(fields), true)]);
            let (column, found) = check(&fields, "").unwrap_err();
            assert_eq!(format!("{column}: {found}"), expected);
        };
        check(DataType::Timestamp(TimeUnit::Microsecond, None), "after.a: Timestamp(µs)");
        check(DataType::Time64(TimeUnit::Microsecond), "after.a: Time64(µs)");
        let item = Arc::new(Field::new("item", DataType::Timestamp(TimeUnit::Nanosecond, None), true));
        check(DataType::List(item), "after.a: Timestamp(ns)");
    }
}
