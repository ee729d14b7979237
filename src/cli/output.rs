//! Rows and text on their way to stdout or a file.

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, StringBuilder};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, LineDelimited, make_encoder};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use clap::ValueEnum;
use futures::{Stream, StreamExt};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;

use crate::config::Environment;
use crate::error::{Error, Kind, Result, Situation};

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RowFormat {
    /// Columns for the eye; cut to the width of a terminal
    Table,
    /// With a header; structs and lists as JSON
    Csv,
    /// One JSON object per line
    Json,
    /// Parquet, compressed with zstd
    Parquet,
}

/// Where rows go, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    pub format: RowFormat,
    /// `None` is stdout.
    pub file: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error("`{}` does not say by its ending how rows are written", file.display())]
    UnknownEnding { file: PathBuf },
    #[error("Parquet is nothing to look at on a terminal")]
    BinaryToTerminal,
    #[error("cannot write `{}`", file.display())]
    Create {
        file: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write to {to}")]
    Write {
        to: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Situation for OutputError {
    fn kind(&self) -> Kind {
        match self {
            OutputError::UnknownEnding { .. } | OutputError::BinaryToTerminal | OutputError::Create { .. } => {
                Kind::Config
            }
            OutputError::Write { source, .. } if comes_from_io(source.as_ref()) => Kind::Unavailable,
            // A format that cannot hold the rows will not hold them next time either.
            OutputError::Write { .. } => Kind::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        let hint = match self {
            OutputError::UnknownEnding { .. } => "add `--format csv`, `json`, `parquet` or `table`",
            OutputError::BinaryToTerminal => "write it to a file with `-o rows.parquet`",
            OutputError::Create { .. } => "check that the folder exists and that this process may write there",
            OutputError::Write { .. } => return None,
        };
        Some(hint.to_string())
    }
}

fn comes_from_io(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<io::Error>() || error.source().is_some_and(comes_from_io)
}

impl Destination {
    pub fn new(format: Option<RowFormat>, file: Option<&Path>, stdout: &Stdout) -> Result<Self> {
        let ending = file.and_then(|file| file.extension()).and_then(|ending| ending.to_str()).unwrap_or_default();
        let format = match (format, file) {
            (Some(format), _) => format,
            (None, None) => RowFormat::Table,
            (None, Some(file)) => match ending {
                "csv" => RowFormat::Csv,
                "json" | "jsonl" | "ndjson" => RowFormat::Json,
                "parquet" => RowFormat::Parquet,
                "txt" => RowFormat::Table,
                _ => return Err(OutputError::UnknownEnding { file: file.to_path_buf() }.into()),
            },
        };
        if format == RowFormat::Parquet && file.is_none() && stdout.is_terminal() {
            return Err(OutputError::BinaryToTerminal.into());
        }
        Ok(Destination { format, file: file.map(Path::to_path_buf) })
    }
}

/// Standard output. When its reader goes away, writing ends without a complaint.
#[derive(Clone)]
pub struct Stdout {
    sink: Arc<Mutex<Box<dyn Write + Send>>>,
    closed: Arc<AtomicBool>,
    terminal: bool,
    columns: Option<usize>,
}

/// How wide a table may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Width {
    /// A file or a pipe: nothing is cut.
    Free,
    /// A terminal.
    Columns(usize),
    /// A terminal that does not tell; no cell is wider than a good part of a usual one.
    Unknown,
}

/// The widest cell on a terminal of unknown width.
const WIDEST_CELL: usize = 64;
/// No column is cut below this.
const NARROWEST_COLUMN: usize = 8;

impl Stdout {
    pub fn of_process(environment: &Environment) -> Self {
        Stdout {
            sink: Arc::new(Mutex::new(Box::new(io::stdout()))),
            closed: Arc::default(),
            terminal: io::stdout().is_terminal(),
            columns: terminal_size::terminal_size_of(io::stdout())
                .map(|(width, _)| usize::from(width.0))
                .or_else(|| environment.get("COLUMNS").and_then(|columns| columns.parse().ok()))
                .filter(|columns| *columns > 0),
        }
    }

    /// Output that goes somewhere else.
    pub fn to(sink: Box<dyn Write + Send>) -> Self {
        Stdout { sink: Arc::new(Mutex::new(sink)), closed: Arc::default(), terminal: false, columns: None }
    }

    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    pub fn width(&self) -> Width {
        match (self.terminal, self.columns) {
            (false, _) => Width::Free,
            (true, Some(columns)) => Width::Columns(columns),
            (true, None) => Width::Unknown,
        }
    }

    /// Writes a text as it is.
    pub fn print(&self, text: &str) -> Result<()> {
        self.print_bytes(text.as_bytes())
    }

    /// Writes bytes as they are.
    pub fn print_bytes(&self, bytes: &[u8]) -> Result<()> {
        let mut sink = self.clone();
        let written = sink.write_all(bytes).and_then(|()| sink.flush());
        self.forgive(written.map_err(|source| failed(None, source)))
    }

    /// Writes a value as JSON, indented.
    pub fn print_json<T: serde::Serialize + ?Sized>(&self, value: &T) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|source| failed(None, source))?;
        self.print(&format!("{text}\n"))
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// `head` and `less` close the pipe when they have seen enough. That is no error of anybody's.
    fn forgive<T: Default>(&self, result: Result<T>) -> Result<T> {
        if self.is_closed() { Ok(T::default()) } else { result }
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.sink.lock().unwrap_or_else(PoisonError::into_inner).write(bytes);
        self.watch(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.sink.lock().unwrap_or_else(PoisonError::into_inner).flush();
        self.watch(flushed)
    }
}

impl Stdout {
    /// The writers above hide the kind of an I/O error, so it is noticed here.
    fn watch<T>(&self, result: io::Result<T>) -> io::Result<T> {
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            self.closed.store(true, Ordering::Relaxed);
        }
        result
    }
}

impl fmt::Debug for Stdout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stdout").field("terminal", &self.terminal).finish()
    }
}

fn failed(file: Option<&Path>, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    let to = file.map_or("stdout".to_string(), |file| format!("`{}`", file.display()));
    OutputError::Write { to, source: source.into() }.into()
}

/// Writes a stream of rows, at most `limit` of them, and says how many there were. A file gets its name when it is
/// complete.
pub async fn write_rows<S, E>(
    to: &Destination,
    schema: SchemaRef,
    rows: S,
    limit: Option<usize>,
    stdout: &Stdout,
) -> Result<u64>
where
    S: Stream<Item = Result<RecordBatch, E>>,
    Error: From<E>,
{
    let Some(file) = &to.file else {
        let written = copy(to.format, schema, rows, limit, Box::new(stdout.clone()), stdout.width(), None).await;
        return stdout.forgive(written);
    };
    let partial = Partial(partial(file));
    let sink = File::create(&partial.0).map_err(|source| not_created(file, source))?;
    let rows = copy(to.format, schema, rows, limit, Box::new(sink), Width::Free, Some(file)).await?;
    std::fs::rename(&partial.0, file).map_err(|source| not_created(file, source))?;
    Ok(rows)
}

/// A file on its way. Whatever ends the writing before it has its name, an interrupt too, takes it away.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        // The error that is on its way says more than a failure to tidy up would; after the rename there is nothing.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn not_created(file: &Path, source: io::Error) -> Error {
    OutputError::Create { file: file.to_path_buf(), source }.into()
}

fn partial(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.partial", std::process::id()));
    file.with_file_name(name)
}

async fn copy<S, E>(
    format: RowFormat,
    schema: SchemaRef,
    rows: S,
    limit: Option<usize>,
    sink: Box<dyn Write + Send>,
    width: Width,
    file: Option<&Path>,
) -> Result<u64>
where
    S: Stream<Item = Result<RecordBatch, E>>,
    Error: From<E>,
{
    let mut writer = RowWriter::new(format, schema, sink, width).map_err(|error| failed(file, error))?;
    let mut left = limit.unwrap_or(usize::MAX);
    let mut written = 0;
    let mut rows = std::pin::pin!(rows);
    while left > 0
        && let Some(batch) = rows.next().await
    {
        let batch = batch?;
        let batch = batch.slice(0, batch.num_rows().min(left));
        left -= batch.num_rows();
        written += batch.num_rows() as u64;
        writer.write(&batch).map_err(|error| failed(file, error))?;
    }
    writer.finish().map_err(|error| failed(file, error))?;
    Ok(written)
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Sink = BufWriter<Box<dyn Write + Send>>;

/// Rows in one of the formats.
enum RowWriter {
    Table { grid: Grid, schema: SchemaRef, sink: Sink, width: Width },
    Csv { writer: Box<arrow::csv::Writer<Sink>>, schema: SchemaRef },
    Json { writer: arrow::json::Writer<Sink, LineDelimited> },
    Parquet { writer: Box<ArrowWriter<Sink>> },
}

/// So many rows decide how wide a table's columns are; they are held back until then.
const ROWS_MEASURED: usize = 1000;

impl RowWriter {
    fn new(format: RowFormat, schema: SchemaRef, sink: Box<dyn Write + Send>, width: Width) -> Result<Self, BoxError> {
        let sink = BufWriter::new(sink);
        Ok(match format {
            RowFormat::Table => {
                let columns: Vec<(&str, bool)> = schema
                    .fields()
                    .iter()
                    .map(|field| (field.name().as_str(), field.data_type().is_numeric()))
                    .collect();
                RowWriter::Table { grid: Grid::new(&columns), sink, width, schema }
            }
            RowFormat::Csv => {
                let writer = arrow::csv::WriterBuilder::new().with_header(true).build(sink);
                let mut writer = RowWriter::Csv { writer: Box::new(writer), schema: schema.clone() };
                // The header is written with the first batch, and a result without rows has a header too.
                writer.write(&RecordBatch::new_empty(schema))?;
                writer
            }
            RowFormat::Json => {
                let writer = arrow::json::WriterBuilder::new().with_explicit_nulls(true).build(sink);
                RowWriter::Json { writer }
            }
            RowFormat::Parquet => {
                let properties =
                    WriterProperties::builder().set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?)).build();
                RowWriter::Parquet { writer: Box::new(ArrowWriter::try_new(sink, schema, Some(properties))?) }
            }
        })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), BoxError> {
        match self {
            RowWriter::Table { grid, schema, sink, width } => {
                let options = FormatOptions::default().with_null("NULL");
                let columns = batch.columns().iter();
                let columns: Vec<_> = columns
                    .map(|column| ArrayFormatter::try_new(column, &options))
                    .collect::<Result<_, ArrowError>>()?;
                if is_explanation(schema) {
                    for row in 0..batch.num_rows() {
                        let [title, plan] = [0, 1].map(|column| columns[column].value(row).to_string());
                        writeln!(sink, "{title}\n{}\n", indented(&plan))?;
                    }
                    return Ok(());
                }
                for row in 0..batch.num_rows() {
                    grid.push(columns.iter().map(|column| column.value(row).to_string()).collect());
                }
                if grid.rows.len() >= ROWS_MEASURED {
                    sink.write_all(grid.drain(*width).as_bytes())?;
                }
            }
            RowWriter::Csv { writer, schema } => writer.write(&flat(batch, schema)?)?,
            RowWriter::Json { writer } => writer.write(batch)?,
            RowWriter::Parquet { writer } => writer.write(batch)?,
        }
        Ok(())
    }

    fn finish(self) -> Result<(), BoxError> {
        match self {
            RowWriter::Table { mut grid, mut sink, width, schema } => {
                if !schema.fields().is_empty() && !is_explanation(&schema) {
                    sink.write_all(grid.drain(width).as_bytes())?;
                }
                sink.flush()?;
            }
            RowWriter::Csv { writer, .. } => writer.into_inner().flush()?,
            RowWriter::Json { mut writer } => {
                writer.finish()?;
                writer.into_inner().flush()?;
            }
            RowWriter::Parquet { writer } => {
                let mut sink = writer.into_inner().map_err(|error: ParquetError| error)?;
                sink.flush()?;
            }
        }
        Ok(())
    }
}

/// What EXPLAIN gives: plans of many lines, which a cell would run together.
fn is_explanation(schema: &Schema) -> bool {
    schema.fields().iter().map(|field| field.name().as_str()).eq(["plan_type", "plan"])
}

fn indented(text: &str) -> String {
    text.trim_end().lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

/// The batch with its structs, lists and maps as JSON text, which is all that CSV can hold.
fn flat(batch: &RecordBatch, schema: &Schema) -> Result<RecordBatch, ArrowError> {
    let mut fields = Vec::new();
    let mut columns: Vec<ArrayRef> = Vec::new();
    for (field, column) in schema.fields().iter().zip(batch.columns()) {
        if !column.data_type().is_nested() {
            fields.push(field.clone());
            columns.push(column.clone());
            continue;
        }
        let options = EncoderOptions::default().with_explicit_nulls(true);
        let mut encoder = make_encoder(field, column.as_ref(), &options)?;
        let mut texts = StringBuilder::new();
        let mut text = Vec::new();
        for row in 0..column.len() {
            if encoder.is_null(row) {
                texts.append_null();
                continue;
            }
            text.clear();
            encoder.encode(row, &mut text);
            texts.append_value(String::from_utf8_lossy(&text));
        }
        fields.push(Arc::new(Field::new(field.name(), DataType::Utf8, true)));
        columns.push(Arc::new(texts.finish()));
    }
    let options = arrow::record_batch::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
}

/// Text in columns.
#[derive(Debug)]
pub struct Grid {
    /// Title, and whether the column holds numbers, which stand on the right.
    columns: Vec<(String, bool)>,
    rows: VecDeque<Vec<String>>,
    /// Set when the head has been written: all that follows keeps to it.
    widths: Option<Vec<usize>>,
}

impl Grid {
    pub fn new(columns: &[(&str, bool)]) -> Self {
        let columns = columns.iter().map(|(title, right)| (tame(title), *right)).collect();
        Grid { columns, rows: VecDeque::new(), widths: None }
    }

    pub fn push(&mut self, row: Vec<String>) {
        self.rows.push_back(row.iter().map(|cell| tame(cell)).collect());
    }

    /// The whole grid.
    pub fn render(&self, width: Width) -> String {
        let widths = self.measure(width);
        let mut text = self.head(&widths);
        self.rows.iter().for_each(|row| text.push_str(&self.line(row, &widths, width)));
        text
    }

    /// What has been pushed since the last time, with the head the first time.
    fn drain(&mut self, width: Width) -> String {
        let (widths, mut text) = match self.widths.take() {
            Some(widths) => (widths, String::new()),
            None => {
                let widths = self.measure(width);
                let head = self.head(&widths);
                (widths, head)
            }
        };
        for row in std::mem::take(&mut self.rows) {
            text.push_str(&self.line(&row, &widths, width));
        }
        self.widths = Some(widths);
        text
    }

    fn measure(&self, width: Width) -> Vec<usize> {
        let cells = |index: usize| self.rows.iter().filter_map(move |row| row.get(index)).map(|cell| columns(cell));
        let mut widths: Vec<usize> = (0..self.columns.len())
            .map(|index| cells(index).chain([columns(&self.columns[index].0)]).max().unwrap_or_default())
            .collect();
        match width {
            Width::Free => {}
            Width::Unknown => widths.iter_mut().for_each(|width| *width = (*width).min(WIDEST_CELL)),
            Width::Columns(columns) => {
                // A blank on either side of a cell, and a bar between two.
                let mut total = widths.iter().sum::<usize>() + (3 * widths.len()).saturating_sub(1);
                while total > columns
                    && let Some(widest) = widths.iter_mut().max()
                    && *widest > NARROWEST_COLUMN
                {
                    *widest -= 1;
                    total -= 1;
                }
            }
        }
        widths
    }

    fn head(&self, widths: &[usize]) -> String {
        let titles: Vec<String> = self.columns.iter().map(|(title, _)| title.clone()).collect();
        let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
        format!("{}{}\n", self.line(&titles, widths, Width::Unknown), rule.join("+"))
    }

    fn line(&self, row: &[String], widths: &[usize], width: Width) -> String {
        let mut line = String::new();
        for (index, (cell, limit)) in row.iter().zip(widths).enumerate() {
            let cell = if width == Width::Free { cell.clone() } else { cut(cell, *limit) };
            let gap = " ".repeat(limit.saturating_sub(columns(&cell)));
            let right = self.columns.get(index).is_some_and(|(_, right)| *right);
            let bar = if index == 0 { "" } else { "|" };
            line.push_str(&if right { format!("{bar} {gap}{cell} ") } else { format!("{bar} {cell}{gap} ") });
        }
        format!("{}\n", line.trim_end())
    }
}

/// A cell on one line, with nothing in it that a terminal would obey.
fn tame(cell: &str) -> String {
    if !cell.chars().any(char::is_control) {
        return cell.to_string();
    }
    cell.chars().map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() }).collect()
}

fn cut(cell: &str, width: usize) -> String {
    if columns(cell) <= width {
        return cell.to_string();
    }
    let mut cut = String::new();
    let mut left = width.saturating_sub(1);
    for c in cell.chars() {
        match left.checked_sub(columns_of(c)) {
            Some(rest) => left = rest,
            None => break,
        }
        cut.push(c);
    }
    cut.push('…');
    cut
}

fn columns(text: &str) -> usize {
    text.chars().map(columns_of).sum()
}

/// How many columns of a terminal a character takes: none for marks that combine, two for East Asian scripts and
/// pictures.
fn columns_of(c: char) -> usize {
    match c as u32 {
        0x0300..=0x036F | 0x200B..=0x200F | 0xFE00..=0xFE0F => 0,
        0x1100..=0x115F
        | 0x2E80..=0x303E
        | 0x3041..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1F64F
        | 0x1F900..=0x1F9FF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use arrow::array::{
        BooleanArray, Decimal128Array, Int32Array, StringArray, StructArray, TimestampMicrosecondArray,
    };
    use arrow::datatypes::TimeUnit;

    use super::*;

    /// A sink whose content a test can read; closed after so many bytes.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>, Option<usize>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let mut content = self.0.lock().unwrap();
            if self.1.is_some_and(|most| content.len() + bytes.len() > most) {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            content.extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn batch() -> RecordBatch {
        let inner = Field::new("a", DataType::Int32, true);
        let nested = StructArray::from(vec![(
            Arc::new(inner.clone()),
            Arc::new(Int32Array::from(vec![Some(1), None, Some(3)])) as ArrayRef,
        )]);
        let fields = vec![
            Field::new("id", DataType::Int32, false),
            Field::new("status", DataType::Utf8, true),
            Field::new("amount", DataType::Decimal128(10, 2), true),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())), true),
            Field::new("ok", DataType::Boolean, true),
            Field::new("after", DataType::Struct(vec![inner].into()), true),
        ];
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int32Array::from(vec![1, 20, 300])),
            Arc::new(StringArray::from(vec![Some("paid"), None, Some("a \"quoted\", long\nline")])),
            Arc::new(Decimal128Array::from(vec![Some(1250), Some(-5), None]).with_precision_and_scale(10, 2).unwrap()),
            Arc::new(
                TimestampMicrosecondArray::from(vec![Some(1_740_830_400_000_000), Some(250), None])
                    .with_timezone("+00:00"),
            ),
            Arc::new(BooleanArray::from(vec![Some(true), Some(false), None])),
            Arc::new(nested),
        ];
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    fn written(format: RowFormat, batches: Vec<RecordBatch>, schema: SchemaRef, limit: Option<usize>) -> Vec<u8> {
        let sink = Shared::default();
        let stdout = Stdout::to(Box::new(sink.clone()));
        let to = Destination { format, file: None };
        let rows = futures::stream::iter(batches.into_iter().map(Ok::<_, OutputError>));
        futures::executor::block_on(write_rows(&to, schema, rows, limit, &stdout)).unwrap();
        sink.0.lock().unwrap().clone()
    }

    fn text(format: RowFormat) -> String {
        String::from_utf8(written(format, vec![batch()], batch().schema(), None)).unwrap()
    }

    #[test]
    fn a_table_is_for_the_eye() {
        insta::assert_snapshot!(text(RowFormat::Table), @r#"
          id | status                 | amount | at                          | ok    | after
        -----+------------------------+--------+-----------------------------+-------+-----------
           1 | paid                   |  12.50 | 2025-03-01T12:00:00Z        | true  | {a: 1}
          20 | NULL                   |  -0.05 | 1970-01-01T00:00:00.000250Z | false | {a: NULL}
         300 | a "quoted", long\nline |   NULL | NULL                        | NULL  | {a: 3}
        "#);
    }

    #[test]
    fn csv_has_a_header_and_json_in_cells() {
        insta::assert_snapshot!(text(RowFormat::Csv), @r#"
        id,status,amount,at,ok,after
        1,paid,12.50,2025-03-01T12:00:00Z,true,"{""a"":1}"
        20,,-0.05,1970-01-01T00:00:00.000250Z,false,"{""a"":null}"
        300,"a ""quoted"", long
        line",,,,"{""a"":3}"
        "#);
        let empty = written(RowFormat::Csv, vec![], batch().schema(), None);
        assert_eq!(String::from_utf8(empty).unwrap(), "id,status,amount,at,ok,after\n");
    }

    #[test]
    fn json_keeps_nulls_and_exact_numbers() {
        insta::assert_snapshot!(text(RowFormat::Json), @r#"
        {"id":1,"status":"paid","amount":12.50,"at":"2025-03-01T12:00:00Z","ok":true,"after":{"a":1}}
        {"id":20,"status":null,"amount":-0.05,"at":"1970-01-01T00:00:00.000250Z","ok":false,"after":{"a":null}}
        {"id":300,"status":"a \"quoted\", long\nline","amount":null,"at":null,"ok":null,"after":{"a":3}}
        "#);
    }

    #[test]
    fn parquet_reads_back() {
        let bytes = written(RowFormat::Parquet, vec![batch(), batch()], batch().schema(), Some(4));
        let reader =
            parquet::arrow::arrow_reader::ParquetRecordBatchReader::try_new(bytes::Bytes::from(bytes), 1024).unwrap();
        let batches: Vec<RecordBatch> = reader.map(|batch| batch.unwrap()).collect();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 4);
        assert_eq!(batches[0].slice(0, 3), batch());
    }

    #[test]
    fn a_limit_ends_the_rows() {
        let lines = |limit| {
            let bytes = written(RowFormat::Json, vec![batch(), batch()], batch().schema(), Some(limit));
            String::from_utf8(bytes).unwrap().lines().count()
        };
        assert_eq!((lines(0), lines(2), lines(3), lines(4), lines(9)), (0, 2, 3, 4, 6));
    }

    #[test]
    fn a_closed_pipe_is_a_quiet_end() {
        let many: Vec<RecordBatch> = (0..2000).map(|_| batch()).collect();
        for format in [RowFormat::Table, RowFormat::Csv, RowFormat::Json, RowFormat::Parquet] {
            let stdout = Stdout::to(Box::new(Shared(Arc::default(), Some(100))));
            let rows = futures::stream::iter(many.clone().into_iter().map(Ok::<_, OutputError>));
            let to = Destination { format, file: None };
            let written = futures::executor::block_on(write_rows(&to, batch().schema(), rows, None, &stdout));
            assert!(written.is_ok(), "{format:?}");
        }
        let stdout = Stdout::to(Box::new(Shared(Arc::default(), Some(0))));
        stdout.print("nobody reads this").unwrap();
    }

    #[test]
    fn a_file_has_its_name_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rows.csv");
        let stdout = Stdout::to(Box::new(Shared::default()));
        let to = Destination::new(None, Some(&file), &stdout).unwrap();
        let failing = futures::stream::iter([Ok(batch()), Err(OutputError::BinaryToTerminal)]);
        let error = futures::executor::block_on(write_rows(&to, batch().schema(), failing, None, &stdout));
        assert!(error.is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let rows = futures::stream::iter([Ok::<_, OutputError>(batch())]);
        futures::executor::block_on(write_rows(&to, batch().schema(), rows, None, &stdout)).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text(RowFormat::Csv));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn places_that_cannot_be_written_say_so() {
        let stdout = Stdout::to(Box::new(Shared::default()));
        let refused = |file: &str| Destination::new(None, Some(Path::new(file)), &stdout).unwrap_err().render();
        insta::assert_snapshot!(refused("rows.xls"), @"
        error: `rows.xls` does not say by its ending how rows are written
          hint: add `--format csv`, `json`, `parquet` or `table`
        ");
        let to = Destination::new(None, Some(Path::new("/no/such/folder/rows.csv")), &stdout).unwrap();
        let rows = futures::stream::iter([Ok::<_, OutputError>(batch())]);
        let error = futures::executor::block_on(write_rows(&to, batch().schema(), rows, None, &stdout)).unwrap_err();
        insta::assert_snapshot!(error.render(), @"
        error: cannot write `/no/such/folder/rows.csv`
          caused by: No such file or directory (os error 2)
          hint: check that the folder exists and that this process may write there
        ");
        let terminal = Stdout { terminal: true, ..stdout };
        insta::assert_snapshot!(Destination::new(Some(RowFormat::Parquet), None, &terminal).unwrap_err().render(), @"
        error: Parquet is nothing to look at on a terminal
          hint: write it to a file with `-o rows.parquet`
        ");
    }

    #[test]
    fn a_terminal_gets_what_fits() {
        let mut grid = Grid::new(&[("id", true), ("text", false), ("more", false)]);
        grid.push(vec!["1".into(), "abcdefghijklmnopqrstuvwxyz".into(), "short".into()]);
        grid.push(vec!["22".into(), "日本語のテキストがここにある".into(), "\x1b[2J".into()]);
        insta::assert_snapshot!(grid.render(Width::Columns(36)), @r"
         id | text              | more
        ----+-------------------+-----------
          1 | abcdefghijklmnop… | short
         22 | 日本語のテキスト… | \u{1b}[2J
        ");
        insta::assert_snapshot!(grid.render(Width::Columns(5)), @r"
         id | text     | more
        ----+----------+----------
          1 | abcdefg… | short
         22 | 日本語…  | \u{1b}[…
        ");
        let widths: BTreeMap<usize, usize> = grid.render(Width::Columns(36)).lines().map(|l| (columns(l), 0)).collect();
        assert!(widths.keys().all(|width| *width <= 36), "{widths:?}");
    }

    #[test]
    fn rows_that_come_late_keep_to_the_head() {
        let sink = Shared::default();
        let mut writer =
            RowWriter::new(RowFormat::Table, batch().schema(), Box::new(sink.clone()), Width::Free).unwrap();
        for _ in 0..700 {
            writer.write(&batch()).unwrap();
        }
        writer.finish().unwrap();
        let text = String::from_utf8(sink.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 2 + 2100);
        assert_eq!(text.lines().filter(|line| line.contains("----")).count(), 1);
    }
}
