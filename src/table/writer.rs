//! Writes rows into new Parquet files of a table. The files belong to nobody until a commit names them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray, RecordBatch, StructArray, UInt32Array, new_null_array};
use arrow::compute::{CastOptions, cast, cast_with_options, concat_batches, filter, is_not_null, take_record_batch};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Fields, SchemaRef as ArrowSchemaRef};
use arrow::row::{OwnedRow, RowConverter, SortField};
use arrow::util::display::FormatOptions;
use iceberg::arrow::arrow_primitive_to_literal;
use iceberg::io::FileIO;
use iceberg::spec::{
    DataContentType, DataFile, DataFileBuilder, DataFileFormat, PartitionSpecRef, SchemaRef, Struct, Transform, Type,
};
use parquet::basic::{Compression, GzipLevel, ZstdLevel};
use parquet::file::properties::{WriterProperties, WriterPropertiesBuilder};
use parquet::schema::types::ColumnPath;
use uuid::Uuid;

use super::error::{Error, Result};
use super::parquet_file::ParquetFile;
use super::storage::situation;
use super::{metrics, partition, schema};
use crate::ids::TableName;

/// At most this many files are open at once; past it the fullest is closed. Each holds a row group, or what waits to be one, in memory.
const MAX_OPEN_FILES: usize = 64;

/// A file is begun when it has so many bytes of rows; until then they wait as they are. A file that is written takes a
/// codec and pages for each of its columns, and tables that get few rows are many.
const WAITING_BYTES: usize = 4 << 20;

/// How many of a file's first rows are looked at.
const SAMPLED_ROWS: usize = 2048;

/// Rows of a row group, where its bytes do not end it before. Readers share a file out by row groups: with a million rows
/// in each, one of two that read ten million had a fifth more to do.
const ROW_GROUP_ROWS: usize = 1 << 19;

/// A file that was written for a table and is not yet part of it.
#[derive(Debug, Clone)]
pub struct WrittenFile {
    pub(super) file: DataFile,
    pub(super) spec_id: i32,
}

impl WrittenFile {
    pub fn path(&self) -> &str {
        self.file.file_path()
    }

    pub fn rows(&self) -> u64 {
        self.file.record_count()
    }

    pub fn bytes(&self) -> u64 {
        self.file.file_size_in_bytes()
    }

    pub fn holds_deletes(&self) -> bool {
        self.file.content_type() != DataContentType::Data
    }
}

/// Where and under which schema a writer writes; taken from a table by `Table::writer`.
#[derive(Clone)]
pub(super) struct WriteTarget {
    pub(super) table: TableName,
    pub(super) file_io: FileIO,
    pub(super) location: String,
    pub(super) schema: SchemaRef,
    pub(super) spec: PartitionSpecRef,
    pub(super) properties: Arc<HashMap<String, String>>,
}

impl WriteTarget {
    pub(super) fn data_file_location(&self, folder: &str, suffix: &str) -> String {
        let root = match self.properties.get("write.data.path") {
            Some(path) => path.trim_end_matches('/').to_string(),
            None => format!("{}/data", self.location.trim_end_matches('/')),
        };
        let separator = if folder.is_empty() { "" } else { "/" };
        format!("{root}{separator}{folder}/{}{suffix}.parquet", Uuid::now_v7())
    }
}

/// Takes batches in any order and lays their rows out by partition into files of about the target size.
///
/// Columns and fields are matched by name and cast to the table's types; a value that does not fit is an error. Times
/// finer than microseconds are cut. A column the batch lacks is null.
pub struct DataWriter {
    target: WriteTarget,
    arrow_schema: ArrowSchemaRef,
    partitioner: Option<Partitioner>,
    properties: WriterProperties,
    target_bytes: usize,
    open: HashMap<Option<OwnedRow>, OpenFile>,
    done: Vec<WrittenFile>,
    /// Everything started so far, for `discard`.
    started: Vec<String>,
}

struct OpenFile {
    partition: Struct,
    rows: Rows,
    nans: metrics::NanCounts,
}

enum Rows {
    Waiting { batches: Vec<RecordBatch>, bytes: usize },
    Written(Box<ParquetFile>),
}

impl OpenFile {
    fn held_bytes(&self) -> usize {
        match &self.rows {
            Rows::Waiting { bytes, .. } => *bytes,
            Rows::Written(file) => file.held_bytes(),
        }
    }
}

impl DataWriter {
    pub(super) fn new(target: WriteTarget) -> Result<Self> {
        let arrow_schema = schema::to_arrow(&target.table, &target.schema)?;
        let partitioner =
            if target.spec.is_unpartitioned() { None } else { Some(Partitioner::new(&target, &arrow_schema)?) };
        let properties = parquet_properties(&target)?;
        let target_bytes = size_property(&target, "write.target-file-size-bytes", 512 << 20)?;
        Ok(DataWriter {
            target,
            arrow_schema,
            partitioner,
            properties,
            target_bytes,
            open: HashMap::new(),
            done: Vec::new(),
            started: Vec::new(),
        })
    }

    /// Closes files at this size, where the table's property `write.target-file-size-bytes` does not say another.
    pub fn target_bytes(mut self, target_bytes: u64) -> Result<Self> {
        let default = usize::try_from(target_bytes).unwrap_or(usize::MAX).max(1);
        self.target_bytes = size_property(&self.target, "write.target-file-size-bytes", default)?;
        Ok(self)
    }

    /// The schema rows are stored under; batches that have it already are not copied.
    pub fn schema(&self) -> &ArrowSchemaRef {
        &self.arrow_schema
    }

    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let batch = conform(&self.target.table, batch, &self.arrow_schema)?;
        let Some(partitioner) = &self.partitioner else {
            return self.write_rows(None, Struct::empty(), batch).await;
        };
        for (key, partition, rows) in partitioner.split(&self.target.table, &batch)? {
            self.write_rows(Some(key), partition, rows).await?;
        }
        Ok(())
    }

    /// Bytes held in memory for rows that are not in a file yet.
    pub fn buffered_bytes(&self) -> usize {
        self.open.values().map(OpenFile::held_bytes).sum()
    }

    /// Closes every file and hands them over. When one of them cannot be closed, none is left.
    pub async fn finish(mut self) -> Result<Vec<WrittenFile>> {
        // The fan-out is a hash map; files get an order that does not change from run to run.
        let mut open: Vec<_> = std::mem::take(&mut self.open).into_iter().collect();
        open.sort_by(|(left, _), (right, _)| left.cmp(right));
        for (_, file) in open {
            if let Err(error) = self.close(file).await {
                self.discard().await;
                return Err(error);
            }
        }
        self.done.sort_by(|left, right| left.path().cmp(right.path()));
        Ok(self.done)
    }

    /// Removes what was written so far.
    pub async fn discard(mut self) {
        self.open.clear();
        for path in &self.started {
            if let Err(error) = self.target.file_io.delete(path).await {
                tracing::debug!(table = %self.target.table, %path, %error, "could not remove a discarded file");
            }
        }
    }

    async fn write_rows(&mut self, key: Option<OwnedRow>, partition: Struct, rows: RecordBatch) -> Result<()> {
        if !self.open.contains_key(&key) {
            if self.open.len() >= MAX_OPEN_FILES {
                let fullest = self.open.iter().max_by_key(|(_, file)| file.held_bytes());
                let fullest = fullest.map(|(key, _)| key.clone());
                if let Some(fullest) = fullest.and_then(|key| self.open.remove(&key)) {
                    self.close(fullest).await?;
                }
            }
            let rows = Rows::Waiting { batches: Vec::new(), bytes: 0 };
            let file = OpenFile { partition, rows, nans: metrics::NanCounts::new(&self.arrow_schema) };
            self.open.insert(key.clone(), file);
        }
        let Some(mut file) = self.open.remove(&key) else { return Ok(()) };
        file.nans.add(&rows);
        match &mut file.rows {
            Rows::Written(file) => file.write(&rows).await?,
            Rows::Waiting { batches, bytes } => {
                *bytes += rows.get_array_memory_size();
                batches.push(rows);
                if *bytes >= WAITING_BYTES.min(self.target_bytes) {
                    let waiting = std::mem::take(batches);
                    file.rows = Rows::Written(Box::new(self.begin(&file.partition, waiting).await?));
                }
            }
        }
        let is_full = matches!(&file.rows, Rows::Written(file) if file.expected_bytes() >= self.target_bytes);
        match is_full {
            true => self.close(file).await,
            false => {
                self.open.insert(key, file);
                Ok(())
            }
        }
    }

    /// A file with its first rows.
    async fn begin(&mut self, partition: &Struct, first: Vec<RecordBatch>) -> Result<ParquetFile> {
        let folder = match &self.partitioner {
            Some(partitioner) => partitioner.folder(&self.target, partition),
            None => String::new(),
        };
        let path = self.target.data_file_location(&folder, "");
        self.started.push(path.clone());
        let properties = fitted(&self.properties, &self.sample(&first)?);
        let mut file = ParquetFile::create(&self.target.file_io, path, self.arrow_schema.clone(), properties).await?;
        for rows in first {
            file.write(&rows).await?;
        }
        Ok(file)
    }

    /// Some of the first rows.
    fn sample(&self, first: &[RecordBatch]) -> Result<RecordBatch> {
        let (mut some, mut left) = (Vec::new(), SAMPLED_ROWS);
        for rows in first {
            let taken = rows.slice(0, rows.num_rows().min(left));
            left -= taken.num_rows();
            some.push(taken);
            if left == 0 {
                break;
            }
        }
        let failed = |error: arrow::error::ArrowError| write_error(&self.target.location, error);
        concat_batches(&self.arrow_schema, &some).map_err(failed)
    }

    async fn close(&mut self, file: OpenFile) -> Result<()> {
        let mut rows = match file.rows {
            Rows::Written(rows) => *rows,
            Rows::Waiting { batches, .. } => self.begin(&file.partition, batches).await?,
        };
        let parquet = rows.finish().await?;
        let mut builder = DataFileBuilder::default();
        builder
            .content(DataContentType::Data)
            .file_path(rows.path().to_string())
            .file_format(DataFileFormat::Parquet)
            .partition(file.partition)
            .partition_spec_id(self.target.spec.spec_id())
            .file_size_in_bytes(rows.written_bytes());
        metrics::describe(&mut builder, &parquet, &self.target.schema, file.nans);
        let data_file = builder.build().map_err(|error| write_error(rows.path(), error))?;
        self.done.push(WrittenFile { file: data_file, spec_id: self.target.spec.spec_id() });
        Ok(())
    }
}

/// Writes columns as their first rows suggest. One that does not repeat its values has no dictionary, which would be
/// filled, found too large and thrown away, in every file. Numbers that zstd makes hardly smaller are left as they are: the
/// files grow by little, and no reader has to unpack them.
fn fitted(properties: &WriterProperties, rows: &RecordBatch) -> WriterProperties {
    let mut builder = properties.clone().into_builder();
    for (field, column) in rows.schema().fields().iter().zip(rows.columns()) {
        builder = each_leaf(builder, properties, vec![field.name().clone()], column);
    }
    builder.build()
}

fn each_leaf(
    builder: WriterPropertiesBuilder,
    properties: &WriterProperties,
    path: Vec<String>,
    column: &ArrayRef,
) -> WriterPropertiesBuilder {
    if let Some(columns) = column.as_any().downcast_ref::<StructArray>() {
        return columns.fields().iter().zip(columns.columns()).fold(builder, |builder, (field, column)| {
            let path = path.iter().cloned().chain([field.name().clone()]).collect();
            each_leaf(builder, properties, path, column)
        });
    }
    let values = column.len() - column.null_count();
    let different = match values < SAMPLED_ROWS / 8 {
        true => 0,
        false => different_values(column).unwrap_or(0),
    };
    if different < values.div_ceil(4) {
        return builder;
    }
    let path = ColumnPath::new(path);
    let builder = builder.set_column_dictionary_enabled(path.clone(), false);
    // Who asked for another codec or level has it for all columns. Values that come twice in so few rows come often enough
    // in a page for zstd to find.
    let is_left = properties.compression(&path) == Compression::ZSTD(ZstdLevel::default())
        && 50 * different >= 49 * values
        && bytes_of_numbers(column).is_some_and(|bytes| !shrinks(&bytes));
    match is_left {
        true => builder.set_column_compression(path, Compression::UNCOMPRESSED),
        false => builder,
    }
}

/// Whether packing saves a seventh.
fn shrinks(bytes: &[u8]) -> bool {
    zstd::bulk::compress(bytes, 1).is_ok_and(|packed| 7 * packed.len() <= 6 * bytes.len())
}

/// The values of a column of numbers as a file has them; `None` of other columns.
fn bytes_of_numbers(column: &ArrayRef) -> Option<Vec<u8>> {
    let width = match column.data_type() {
        DataType::Decimal128(..=9, _) => 4,
        DataType::Decimal128(10..=18, _) => 8,
        other => other.primitive_width().filter(|width| [4, 8].contains(width))?,
    };
    let valid = filter(column, &is_not_null(column).ok()?).ok()?;
    if let Some(decimals) = valid.as_primitive_opt::<Decimal128Type>() {
        let bytes = |decimal: &i128| decimal.to_le_bytes().into_iter().take(width);
        return Some(decimals.values().iter().flat_map(bytes).collect());
    }
    let values = valid.to_data();
    let from = values.offset() * width;
    Some(values.buffers().first()?.as_slice().get(from..from + values.len() * width)?.to_vec())
}

/// How many different values a column has; `None` of a nested one.
fn different_values(column: &ArrayRef) -> Option<usize> {
    if column.data_type().is_nested() {
        return None;
    }
    let converter = RowConverter::new(vec![SortField::new(column.data_type().clone())]).ok()?;
    let rows = converter.convert_columns(std::slice::from_ref(column)).ok()?;
    let different: HashSet<&[u8]> = (0..rows.num_rows()).map(|index| rows.row(index).data()).collect();
    Some(different.len())
}

/// Brings a batch into the table's schema: order, types, nested fields, missing columns.
fn conform(table: &TableName, batch: &RecordBatch, schema: &ArrowSchemaRef) -> Result<RecordBatch> {
    if batch.schema_ref() == schema {
        return Ok(batch.clone());
    }
    let refuse = |problem: String| Error::Schema { table: table.clone(), problem };
    for field in batch.schema_ref().fields() {
        if schema.index_of(field.name()).is_err() {
            return Err(refuse(format!("the rows have a column `{}` that the table does not", field.name())));
        }
    }
    let mut columns = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let column = match batch.column_by_name(field.name()) {
            Some(column) => conform_array(column, field).map_err(refuse)?,
            None => new_null_array(field.data_type(), batch.num_rows()),
        };
        if !field.is_nullable() && column.null_count() > 0 {
            return Err(refuse(format!(
                "column `{}` is required, and {} rows have none",
                field.name(),
                column.null_count()
            )));
        }
        columns.push(column);
    }
    RecordBatch::try_new(schema.clone(), columns).map_err(|error| refuse(error.to_string()))
}

fn conform_array(array: &ArrayRef, field: &Field) -> Result<ArrayRef, String> {
    if array.data_type() == field.data_type() {
        return Ok(array.clone());
    }
    if let (DataType::Struct(_), DataType::Struct(wanted)) = (array.data_type(), field.data_type()) {
        return conform_struct(array, field.name(), wanted);
    }
    if let (DataType::List(_) | DataType::LargeList(_), DataType::List(element)) =
        (array.data_type(), field.data_type())
    {
        return conform_list(array, field.name(), element);
    }
    if let (DataType::Decimal128(_, given), DataType::Decimal128(_, wanted)) = (array.data_type(), field.data_type())
        && given > wanted
    {
        return Err(format!(
            "column `{}` has {wanted} digits behind the point, and the rows have {given}",
            field.name()
        ));
    }
    // `safe: false` makes what does not fit an error in place of a null.
    let options = CastOptions { safe: false, format_options: FormatOptions::default() };
    cast_with_options(array, field.data_type(), &options)
        .map_err(|error| format!("column `{}` cannot be stored as {}: {error}", field.name(), field.data_type()))
}

/// Elements are matched as columns are, so that structs in lists go by name too.
fn conform_list(array: &ArrayRef, name: &str, element: &FieldRef) -> Result<ArrayRef, String> {
    let failed = |error: arrow::error::ArrowError| format!("column `{name}`: {error}");
    let plain = DataType::List(Arc::new(Field::new("item", list_element(array), true)));
    let plain = cast(array, &plain).map_err(failed)?;
    let list = plain.as_any().downcast_ref::<ListArray>().ok_or_else(|| format!("column `{name}` is not a list"))?;
    let values = conform_array(list.values(), element)?;
    let list = ListArray::try_new(element.clone(), list.offsets().clone(), values, list.nulls().cloned());
    Ok(Arc::new(list.map_err(failed)?))
}

fn list_element(array: &ArrayRef) -> DataType {
    match array.data_type() {
        DataType::List(element) | DataType::LargeList(element) => element.data_type().clone(),
        other => other.clone(),
    }
}

/// Struct fields are matched by name, as columns are; Arrow's own cast goes by position.
fn conform_struct(array: &ArrayRef, name: &str, wanted: &Fields) -> Result<ArrayRef, String> {
    let Some(given) = array.as_any().downcast_ref::<StructArray>() else {
        return Err(format!("column `{name}` is not a struct"));
    };
    for field in given.fields() {
        if !wanted.iter().any(|known| known.name() == field.name()) {
            return Err(format!("the rows have a field `{name}.{}` that the table does not", field.name()));
        }
    }
    let mut columns = Vec::with_capacity(wanted.len());
    for field in wanted {
        columns.push(match given.column_by_name(field.name()) {
            Some(column) => conform_array(column, field)?,
            None => new_null_array(field.data_type(), given.len()),
        });
    }
    let conformed = StructArray::try_new_with_length(wanted.clone(), columns, given.nulls().cloned(), given.len());
    Ok(Arc::new(conformed.map_err(|error| format!("column `{name}`: {error}"))?))
}

/// Computes each row's partition values and groups rows by them.
struct Partitioner {
    fields: Vec<PartitionColumn>,
    converter: RowConverter,
}

struct PartitionColumn {
    /// The path to the source column, outermost first.
    source: Vec<String>,
    transform: Transform,
    result: Type,
}

impl Partitioner {
    fn new(target: &WriteTarget, arrow_schema: &ArrowSchemaRef) -> Result<Self> {
        let refuse = |problem: String| Error::Schema { table: target.table.clone(), problem };
        let mut fields = Vec::new();
        let mut sort_fields = Vec::new();
        for field in target.spec.fields() {
            let source = target
                .schema
                .name_by_field_id(field.source_id)
                .ok_or_else(|| refuse(format!("partition field `{}` has no source column any more", field.name)))?;
            let source_type = &target
                .schema
                .field_by_id(field.source_id)
                .ok_or_else(|| refuse(format!("partition field `{}` has no source column any more", field.name)))?
                .field_type;
            let result =
                field.transform.result_type(source_type).map_err(|error| refuse(error.message().to_string()))?;
            let source: Vec<String> = source.split('.').map(str::to_string).collect();
            let empty = RecordBatch::new_empty(arrow_schema.clone());
            let values = partition::transformed(field.transform, &column_at(&empty, &source).map_err(refuse)?)
                .map_err(|error| refuse(error.message().to_string()))?;
            sort_fields.push(SortField::new(values.data_type().clone()));
            fields.push(PartitionColumn { source, transform: field.transform, result });
        }
        let converter = RowConverter::new(sort_fields).map_err(|error| refuse(error.to_string()))?;
        Ok(Partitioner { fields, converter })
    }

    fn split(&self, table: &TableName, batch: &RecordBatch) -> Result<Vec<(OwnedRow, Struct, RecordBatch)>> {
        let refuse = |problem: String| Error::Schema { table: table.clone(), problem };
        let mut values = Vec::with_capacity(self.fields.len());
        for field in &self.fields {
            let source = column_at(batch, &field.source).map_err(refuse)?;
            let of_field = partition::transformed(field.transform, &source);
            values.push(of_field.map_err(|error| refuse(error.message().to_string()))?);
        }
        let rows = self.converter.convert_columns(&values).map_err(|error| refuse(error.to_string()))?;
        let mut order: Vec<OwnedRow> = Vec::new();
        let mut groups: HashMap<OwnedRow, Vec<u32>> = HashMap::new();
        // Rows that come together are nearly always of one partition.
        let is_one = rows.num_rows() > 0 && rows.iter().all(|row| row == rows.row(0));
        if is_one {
            let key = rows.row(0).owned();
            let literals = self.literals(&values, 0).map_err(refuse)?;
            return Ok(vec![(key, literals, batch.clone())]);
        }
        for (index, row) in rows.iter().enumerate() {
            let row = row.owned();
            groups
                .entry(row)
                .or_insert_with_key(|row| {
                    order.push(row.clone());
                    Vec::new()
                })
                .push(index as u32);
        }
        let mut parts = Vec::with_capacity(order.len());
        for key in order {
            let Some(indices) = groups.remove(&key) else { continue };
            let first = indices[0] as usize;
            let literals = self.literals(&values, first).map_err(refuse)?;
            let rows = if indices.len() == batch.num_rows() {
                batch.clone()
            } else {
                take_record_batch(batch, &UInt32Array::from(indices)).map_err(|error| refuse(error.to_string()))?
            };
            parts.push((key, literals, rows));
        }
        Ok(parts)
    }

    /// The partition of one row.
    fn literals(&self, values: &[ArrayRef], row: usize) -> Result<Struct, String> {
        let literal = |(field, values): (&PartitionColumn, &ArrayRef)| {
            let one = arrow_primitive_to_literal(&values.slice(row, 1), &field.result);
            Ok(one.map_err(|error| error.message().to_string())?.into_iter().next().flatten())
        };
        let literals: Vec<_> = self.fields.iter().zip(values).map(literal).collect::<Result<_, String>>()?;
        Ok(Struct::from_iter(literals))
    }

    /// A folder name for people. Readers take partition values from metadata, so anything a URL or a file system could
    /// read in two ways is replaced, and what is too long for one is cut.
    fn folder(&self, target: &WriteTarget, partition: &Struct) -> String {
        const LONGEST: usize = 100;
        let plain = |text: String| -> String {
            let plain = text.chars().map(|c| if c.is_ascii_alphanumeric() || "_-.".contains(c) { c } else { '_' });
            plain.take(LONGEST).collect()
        };
        let fields = partition::described(&target.spec, &target.schema, partition).into_iter();
        fields.map(|(name, value)| format!("{}={}", plain(name), plain(value))).collect::<Vec<_>>().join("/")
    }
}

fn column_at(batch: &RecordBatch, path: &[String]) -> Result<ArrayRef, String> {
    let missing = || format!("partition source column `{}` is not in the rows", path.join("."));
    let (first, rest) = path.split_first().ok_or_else(missing)?;
    let mut column = batch.column_by_name(first).ok_or_else(missing)?.clone();
    for name in rest {
        let inner = column.as_any().downcast_ref::<StructArray>().ok_or_else(missing)?;
        column = inner.column_by_name(name).ok_or_else(missing)?.clone();
    }
    Ok(column)
}

/// The storage's own account of a failed write where the crates carried it through, else what they say.
pub(super) fn write_error(path: &str, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    situation(&error).unwrap_or_else(|| Error::Storage {
        action: "write",
        location: path.to_string(),
        kind: crate::error::Kind::Unavailable,
        source: Arc::new(error),
    })
}

/// The table's `write.parquet.*` properties, with our own defaults where it has none.
fn parquet_properties(target: &WriteTarget) -> Result<WriterProperties> {
    let mut builder = parquet_builder(target)?;
    for (key, value) in target.properties.iter() {
        if let Some(column) = key.strip_prefix("write.parquet.bloom-filter-enabled.column.") {
            let path = ColumnPath::new(column.split('.').map(str::to_string).collect());
            builder = builder.set_column_bloom_filter_enabled(path, value == "true");
        }
    }
    Ok(builder.build())
}

pub(super) fn parquet_builder(target: &WriteTarget) -> Result<WriterPropertiesBuilder> {
    let row_group_bytes = size_property(target, "write.parquet.row-group-size-bytes", 128 << 20)?;
    let page_bytes = size_property(target, "write.parquet.page-size-bytes", 1 << 20)?;
    let page_rows = size_property(target, "write.parquet.page-row-limit", 20_000)?;
    Ok(WriterProperties::builder()
        .set_created_by(concat!("icestream ", env!("CARGO_PKG_VERSION")).to_string())
        .set_compression(compression(target)?)
        .set_max_row_group_bytes(Some(row_group_bytes))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_data_page_size_limit(page_bytes)
        .set_data_page_row_count_limit(page_rows))
}

fn compression(target: &WriteTarget) -> Result<Compression> {
    let codec = target.properties.get("write.parquet.compression-codec").map_or("zstd", String::as_str);
    let level = target.properties.get("write.parquet.compression-level").map(|level| level.parse::<i32>());
    let refuse = || Error::Schema {
        table: target.table.clone(),
        problem: format!(
            "its properties ask for Parquet compression `{codec}`{}; there are zstd (1 to 22), gzip (0 to 9), snappy, \
             lz4 and uncompressed",
            target
                .properties
                .get("write.parquet.compression-level")
                .map(|l| format!(" at level `{l}`"))
                .unwrap_or_default()
        ),
    };
    let level = level.transpose().map_err(|_| refuse())?;
    Ok(match codec.to_ascii_lowercase().as_str() {
        "zstd" => Compression::ZSTD(ZstdLevel::try_new(level.unwrap_or(1)).map_err(|_| refuse())?),
        "gzip" => {
            let level = u32::try_from(level.unwrap_or(6)).map_err(|_| refuse())?;
            Compression::GZIP(GzipLevel::try_new(level).map_err(|_| refuse())?)
        }
        "snappy" => Compression::SNAPPY,
        "lz4" | "lz4_raw" => Compression::LZ4_RAW,
        "uncompressed" | "none" => Compression::UNCOMPRESSED,
        _ => return Err(refuse()),
    })
}

fn size_property(target: &WriteTarget, key: &str, default: usize) -> Result<usize> {
    match target.properties.get(key) {
        None => Ok(default),
        Some(text) => match text.parse() {
            Ok(value) if value > 0 => Ok(value),
            _ => Err(Error::Schema {
                table: target.table.clone(),
                problem: format!("its property `{key}` is `{text}`, which is not a whole number above 0"),
            }),
        },
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Decimal128Array, Float64Array, Int64Array, StringArray};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn only_numbers_that_zstd_makes_no_smaller_are_left_as_they_are() {
        let mut random = StdRng::seed_from_u64(1);
        let scores: Float64Array = (0..2048).map(|_| random.random_bool(0.9).then(|| random.random::<f64>())).collect();
        let pool: Vec<i64> = (0..5000).map(|_| random.random()).collect();
        let drawn = Int64Array::from_iter_values((0..2048).map(|_| pool[random.random_range(0..pool.len())]));
        let totals = Decimal128Array::from_iter_values((0..2048).map(|_| random.random_range(0..1i128 << 58)));
        let small = Decimal128Array::from_iter_values((0..2048).map(|_| random.random_range(0..1i128 << 29)));
        let columns: Vec<(&str, ArrayRef, bool)> = vec![
            ("score", Arc::new(scores.slice(3, 2000)), true),
            ("total", Arc::new(totals.clone().with_precision_and_scale(18, 2).unwrap()), true),
            ("small", Arc::new(small.with_precision_and_scale(9, 2).unwrap()), true),
            // Thirteen bytes each in a file.
            ("wide", Arc::new(totals.with_precision_and_scale(30, 2).unwrap()), false),
            ("id", Arc::new(Int64Array::from_iter_values(0..2048)), false),
            // In a page of 20,000 rows each value comes four times.
            ("drawn", Arc::new(drawn), false),
            ("few", Arc::new(Int64Array::from_iter_values((0..2048).map(|at| at % 5 * (i64::MAX / 7)))), false),
            ("text", Arc::new(StringArray::from_iter_values((0..2048).map(|at| format!("text {at}")))), false),
        ];
        for (name, column, expected) in columns {
            let rows = RecordBatch::try_from_iter([(name, column)]).unwrap();
            let found = |codec| {
                let properties = WriterProperties::builder().set_compression(codec).build();
                fitted(&properties, &rows).compression(&ColumnPath::from(name))
            };
            let zstd = |level| Compression::ZSTD(ZstdLevel::try_new(level).unwrap());
            assert_eq!(found(zstd(1)), if expected { Compression::UNCOMPRESSED } else { zstd(1) }, "{name}");
            // Whoever asks for something else gets it.
            for other in [Compression::SNAPPY, zstd(3)] {
                assert_eq!(found(other), other, "{name}");
            }
        }
    }
}
