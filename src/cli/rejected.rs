use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::output::Grid;
use super::tables::time;
use super::{Context, Outcome, lake as lakes};
use crate::config::Config;
use crate::error::{Kind, Result, Situation};
use crate::offsets::TopicPartition;
use crate::pipeline;
use crate::pipeline::rejected::{
    ReasonCount, RecordPlace, RejectedRecord, Replay, ReplayReport, Selection, reasons, record, records, replay,
};
use crate::table::Lake;

const AFTER_HELP: &str = "\
Examples:
  icestream rejected list orders
  icestream rejected show orders shop.public.orders/0/4711
  icestream rejected replay orders --dry-run

Records that cannot become rows are kept in bronze with the reason and their bytes. When the reason is put right, in
`catalog/` or by a newer release, a replay makes them the rows they should have been.";

const AFTER_HELP_LIST: &str = "\
Examples:
  icestream rejected list
  icestream rejected list orders --reason total_amount --limit 5
  icestream rejected list --json | jq '.[].reasons'";

const AFTER_HELP_SHOW: &str = "\
Examples:
  icestream rejected show orders shop.public.orders/0/4711
  icestream rejected show orders shop.public.orders/0/4711 --raw > record.bin
  icestream rejected show orders shop.public.orders/0/4711 --json > fixed.json   to correct, and to replay with `--file`";

const AFTER_HELP_REPLAY: &str = "\
Examples:
  icestream rejected replay                                          everything, with the catalog as it is now
  icestream rejected replay orders --only shop.public.orders/0/4711
  icestream rejected replay orders --file fixed.jsonl                with these payloads in place of the ones read

A line of the file: {\"topic\":\"shop.public.orders\",\"partition\":0,\"offset\":4711,\"value\":{…}}, where `value` is the
payload as it should have been. Replaying twice changes nothing. The rows have the time in `_replayed_at`; the next build
takes them into silver.";

/// List the records that could not become rows, look at one, or decode them again
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct RejectedArgs {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Debug, Subcommand)]
pub enum What {
    List(ListArgs),
    Show(ShowArgs),
    Replay(ReplayArgs),
}

/// The reasons with their counts, and the newest records
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP_LIST)]
pub struct ListArgs {
    /// A bronze table; all when none is named
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,

    /// Only records whose reason has this text in it
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// Show at most this many records of a table
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub limit: usize,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// One record: the reason, the key, and the payload as it was read
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP_SHOW)]
pub struct ShowArgs {
    /// The bronze table
    #[arg(value_name = "TABLE")]
    pub table: String,

    /// The record, `topic/partition/offset`
    #[arg(value_name = "RECORD")]
    pub record: RecordPlace,

    /// Write the payload to stdout, byte for byte, and nothing else
    #[arg(long, conflicts_with = "json")]
    pub raw: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Decode rejected records again and put the rows they make in their place, in one commit
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP_REPLAY)]
pub struct ReplayArgs {
    /// A bronze table; all when none is named
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,

    /// Only this record, `topic/partition/offset`
    #[arg(long, value_name = "RECORD", requires = "table")]
    pub only: Option<RecordPlace>,

    /// Only records whose reason has this text in it
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// Take the payloads of this file, JSON of `topic`, `partition`, `offset` and `value`; `-` is stdin
    #[arg(long, value_name = "FILE", requires = "table")]
    pub file: Option<PathBuf>,

    /// Show what would become of the records, and change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum RejectedFileError {
    #[error("the payloads cannot be read from `{}`", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("entry {entry} of `{}` is not a payload for a record", path.display())]
    Entry {
        path: PathBuf,
        entry: usize,
        #[source]
        source: serde_json::Error,
    },
    #[error("`{}` has the record `{place}` twice", path.display())]
    Twice { path: PathBuf, place: RecordPlace },
    #[error("`{}` gives no `value` for the record `{place}`", path.display())]
    NoValue { path: PathBuf, place: RecordPlace },
    #[error("`{}` holds no payload", path.display())]
    Empty { path: PathBuf },
}

impl Situation for RejectedFileError {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        match self {
            RejectedFileError::Entry { .. } | RejectedFileError::Empty { .. } => {
                Some("`icestream rejected show TABLE RECORD --json` writes an entry to start from".to_string())
            }
            RejectedFileError::NoValue { .. } => Some("write the payload as it should have been".to_string()),
            _ => None,
        }
    }

    fn state(&self) -> Option<String> {
        Some("nothing was replayed".to_string())
    }
}

#[derive(Debug, Serialize)]
struct TableList {
    table: String,
    records: u64,
    reasons: Vec<ReasonRow>,
    newest: Vec<RecordRow>,
}

#[derive(Debug, Serialize)]
struct ReasonRow {
    reason: String,
    records: u64,
    first: EndRow,
    last: EndRow,
}

#[derive(Debug, Serialize)]
struct EndRow {
    topic: String,
    partition: i32,
    offset: i64,
    time: Option<String>,
}

#[derive(Debug, Serialize)]
struct RecordRow {
    topic: String,
    partition: i32,
    offset: i64,
    time: Option<String>,
    ingested_at: Option<String>,
    epoch: i32,
    key: Option<String>,
    reason: String,
}

/// A record as `show` gives it; with `value` corrected, what `replay --file` takes.
#[derive(Debug, Serialize)]
struct RecordDetail {
    table: String,
    #[serde(flatten)]
    record: RecordRow,
    /// Where in the payload it is, where that can be told.
    #[serde(rename = "where")]
    place: Option<String>,
    /// The payload, where it is JSON.
    value: Option<Box<RawValue>>,
    /// The payload, where it is other text.
    text: Option<String>,
    /// The payload, where it is no text.
    hex: Option<String>,
}

#[derive(Debug, Serialize)]
struct ReplayRow {
    table: String,
    dry_run: bool,
    #[serde(flatten)]
    report: ReplayReport,
}

#[derive(Debug, Deserialize)]
struct Entry {
    topic: String,
    partition: i32,
    offset: i64,
    value: Box<RawValue>,
}

pub async fn run(args: RejectedArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let lake = lakes::open(&config, context).await?;
    match args.what {
        What::List(args) => list(args, &config, &lake, context).await,
        What::Show(args) => show(args, &config, &lake, context).await,
        What::Replay(args) => run_replay(args, &config, &lake, context).await,
    }
}

async fn list(args: ListArgs, config: &Config, lake: &Lake, context: &Context) -> Result<Outcome> {
    let engine = pipeline::engine(config)?;
    let selection = Selection { only: None, reason: args.reason };
    let mut lists = Vec::new();
    for table in lakes::bronze_tables(args.table.as_deref(), config, lake).await? {
        let reasons = reasons(&table, &engine, &selection).await?;
        if reasons.is_empty() {
            continue;
        }
        lists.push(TableList {
            table: table.name().to_string(),
            records: reasons.iter().map(|reason| reason.records).sum(),
            reasons: reasons.into_iter().map(reason_row).collect(),
            newest: records(&table, &engine, &selection, args.limit).await?.iter().map(record_row).collect(),
        });
    }
    if args.json {
        context.stdout.print_json(&lists)?;
        return Ok(Outcome::Done);
    }
    if lists.is_empty() {
        context.note("no record is rejected");
    }
    let texts: Vec<String> = lists.iter().map(|list| described(list, context)).collect();
    context.stdout.print(&texts.join("\n"))?;
    Ok(Outcome::Done)
}

fn described(list: &TableList, context: &Context) -> String {
    let width = context.stdout.width();
    let end = |end: &EndRow| format!("{}/{}/{} {}", end.topic, end.partition, end.offset, or_unknown(&end.time));
    let mut grid = Grid::new(&[("records", true), ("reason", false), ("first", false), ("last", false)]);
    for row in &list.reasons {
        grid.push(vec![row.records.to_string(), row.reason.clone(), end(&row.first), end(&row.last)]);
    }
    let mut text = format!("{}: {} rejected\n\n{}", list.table, plural(list.records), grid.render(width));
    if !list.newest.is_empty() {
        let mut grid = Grid::new(&[("record", false), ("time", false), ("key", false), ("reason", false)]);
        for row in &list.newest {
            grid.push(vec![
                format!("{}/{}/{}", row.topic, row.partition, row.offset),
                or_unknown(&row.time),
                row.key.clone().unwrap_or_default(),
                row.reason.clone(),
            ]);
        }
        let _ = write!(text, "\n{}", grid.render(width));
    }
    text
}

fn or_unknown(time: &Option<String>) -> String {
    time.clone().unwrap_or_else(|| "?".to_string())
}

fn plural(records: u64) -> String {
    if records == 1 { "1 record".to_string() } else { format!("{records} records") }
}

fn micros(us: Option<i64>) -> Option<String> {
    us.map(|us| time(Some(us.div_euclid(1000))))
}

fn reason_row(count: ReasonCount) -> ReasonRow {
    let end = |(place, time): (RecordPlace, Option<i64>)| EndRow {
        topic: place.at.topic.to_string(),
        partition: place.at.partition,
        offset: place.offset,
        time: micros(time),
    };
    ReasonRow { reason: count.reason, records: count.records, first: end(count.first), last: end(count.last) }
}

fn record_row(record: &RejectedRecord) -> RecordRow {
    RecordRow {
        topic: record.place.at.topic.to_string(),
        partition: record.place.at.partition,
        offset: record.place.offset,
        time: micros(record.timestamp_us),
        ingested_at: micros(record.ingested_us),
        epoch: record.epoch,
        key: record.key.clone(),
        reason: record.reason.clone(),
    }
}

async fn show(args: ShowArgs, config: &Config, lake: &Lake, context: &Context) -> Result<Outcome> {
    let table = lakes::table(&lakes::bronze_name(&args.table, config)?, config, lake).await?;
    let record = record(&table, &pipeline::engine(config)?, &args.record).await?;
    let raw = record.raw.clone().unwrap_or_default();
    if args.raw {
        context.stdout.print_bytes(&raw)?;
        return Ok(Outcome::Done);
    }
    let text = std::str::from_utf8(&raw).ok();
    let value = text.and_then(|text| serde_json::from_str::<Box<RawValue>>(text).ok());
    let detail = RecordDetail {
        table: table.name().to_string(),
        record: record_row(&record),
        place: locate(&raw, &record.reason),
        text: text.filter(|_| value.is_none()).map(str::to_string),
        hex: text.is_none().then(|| raw.iter().map(|byte| format!("{byte:02x}")).collect()),
        value,
    };
    if args.json {
        context.stdout.print_json(&detail)?;
        return Ok(Outcome::Done);
    }
    let row = &detail.record;
    let kind = match (&detail.value, &detail.text) {
        (Some(_), _) => "JSON",
        (_, Some(_)) => "text that is not JSON",
        _ => "not text",
    };
    let facts = [
        ("record", args.record.to_string()),
        ("table", detail.table.clone()),
        ("reason", row.reason.clone()),
        ("where", detail.place.clone().unwrap_or_else(|| "not known".to_string())),
        ("key", row.key.clone().unwrap_or_else(|| "none".to_string())),
        ("time", or_unknown(&row.time)),
        ("ingested at", or_unknown(&row.ingested_at)),
        ("epoch", row.epoch.to_string()),
        ("payload", format!("{} bytes, {kind}", raw.len())),
    ];
    let mut shown: String = facts.iter().map(|(name, value)| format!("{name:<12} {}\n", visible(value))).collect();
    shown.push('\n');
    match text {
        Some(text) => shown.push_str(&visible(text)),
        None => shown.push_str(&hex_dump(&raw)),
    }
    if !shown.ends_with('\n') {
        shown.push('\n');
    }
    context.stdout.print(&shown)?;
    Ok(Outcome::Done)
}

/// Where in a payload the trouble is, where that can be told: a byte that is no text, a place that is no JSON, or the
/// value of the field that the reason names.
fn locate(raw: &[u8], reason: &str) -> Option<String> {
    const AROUND: usize = 20;
    if raw.is_empty() {
        return None;
    }
    let text = match std::str::from_utf8(raw) {
        Ok(text) => text,
        Err(error) => return Some(format!("byte {} is not UTF-8", error.valid_up_to())),
    };
    let value: serde_json::Value = match serde_json::from_str(text) {
        Ok(value) => value,
        Err(error) => {
            let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
            let column = line.floor_char_boundary(error.column().saturating_sub(1));
            let from = line.floor_char_boundary(column.saturating_sub(AROUND));
            let to = line.floor_char_boundary(column + AROUND);
            let excerpt = format!("{}⟨here⟩{}", &line[from..column], &line[column..to]);
            return Some(format!("line {}, column {}: {excerpt}", error.line(), error.column()));
        }
    };
    let payload = value.get("payload").filter(|_| value.get("schema").is_some()).unwrap_or(&value);
    // Reasons name a field in backticks, as `after.total_amount`.
    reason.split('`').skip(1).step_by(2).find_map(|path| {
        let mut parts = path.splitn(2, '.');
        let image = payload.get(parts.next()?)?;
        let field = match parts.next() {
            Some(name) => image.get(name)?,
            None => image,
        };
        Some(format!("`{path}` is {field}"))
    })
}

/// What a terminal would obey is shown instead.
fn visible(text: &str) -> String {
    let show = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.chars().map(show).collect()
}

fn hex_dump(raw: &[u8]) -> String {
    let mut text = String::new();
    for (index, line) in raw.chunks(16).enumerate() {
        let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
        let plain =
            line.iter().map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '.' });
        let _ = writeln!(text, "{:08x}  {:<47}  {}", index * 16, hex.join(" "), plain.collect::<String>());
    }
    text
}

async fn run_replay(args: ReplayArgs, config: &Config, lake: &Lake, context: &Context) -> Result<Outcome> {
    let payloads = match &args.file {
        Some(file) => read_payloads(file)?,
        None => BTreeMap::new(),
    };
    let engine = pipeline::engine(config)?;
    let what =
        Replay { selection: Selection { only: args.only, reason: args.reason }, payloads, dry_run: args.dry_run };
    let mut rows = Vec::new();
    for table in lakes::bronze_tables(args.table.as_deref(), config, lake).await? {
        let report = replay(lake, &engine, config, table.name(), &what).await?;
        if report == ReplayReport::default() && args.table.is_none() {
            continue;
        }
        rows.push(ReplayRow { table: table.name().to_string(), dry_run: args.dry_run, report });
    }
    if args.json {
        context.stdout.print_json(&rows)?;
        return Ok(Outcome::Done);
    }
    if rows.is_empty() {
        context.note("no record is rejected");
    }
    for row in &rows {
        context.stdout.print(&replay_text(row, context))?;
    }
    Ok(Outcome::Done)
}

fn replay_text(row: &ReplayRow, context: &Context) -> String {
    let ReplayReport { replayed, consumed, still_rejected, not_rejected, .. } = &row.report;
    let would = if row.dry_run { "would be " } else { "" };
    let mut text = format!("{}: {} {would}replayed", row.table, plural(*replayed));
    if *consumed > 0 {
        let _ = write!(text, ", {} {would}found to hold no change", plural(*consumed));
    }
    let _ = writeln!(text, ", {} still rejected", still_rejected.values().sum::<u64>());
    if !not_rejected.is_empty() {
        let _ = writeln!(text, "not rejected, or no more: {}", not_rejected.join(", "));
    }
    if !still_rejected.is_empty() {
        let mut grid = Grid::new(&[("records", true), ("still rejected because", false)]);
        for (reason, records) in still_rejected {
            grid.push(vec![records.to_string(), reason.clone()]);
        }
        let _ = write!(text, "\n{}", grid.render(context.stdout.width()));
    }
    text
}

fn read_payloads(path: &Path) -> Result<BTreeMap<RecordPlace, Bytes>> {
    let text =
        if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    let text = text.map_err(|source| RejectedFileError::Unreadable { path: path.to_path_buf(), source })?;
    Ok(payloads(path, &text)?)
}

/// One object behind the other, each on a line of its own or over several.
fn payloads(path: &Path, text: &str) -> Result<BTreeMap<RecordPlace, Bytes>, RejectedFileError> {
    let path = path.to_path_buf();
    let mut payloads = BTreeMap::new();
    for (index, entry) in serde_json::Deserializer::from_str(text).into_iter::<Entry>().enumerate() {
        let entry = match entry {
            Ok(entry) => entry,
            Err(source) => return Err(RejectedFileError::Entry { path, entry: index + 1, source }),
        };
        let place = RecordPlace { at: TopicPartition::new(entry.topic, entry.partition), offset: entry.offset };
        // What `show` writes for a payload that is not JSON, until somebody corrects it.
        if entry.value.get() == "null" {
            return Err(RejectedFileError::NoValue { path, place });
        }
        let payload = Bytes::from(String::from(Box::<str>::from(entry.value)));
        if payloads.insert(place.clone(), payload).is_some() {
            return Err(RejectedFileError::Twice { path, place });
        }
    }
    if payloads.is_empty() { Err(RejectedFileError::Empty { path }) } else { Ok(payloads) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_trouble_is() {
        let check = |raw: &[u8], reason: &str| locate(raw, reason).unwrap_or_else(|| "-".to_string());
        insta::assert_snapshot!(check(b"poison", "the payload is not JSON"), @"line 1, column 1: ⟨here⟩poison");
        insta::assert_snapshot!(check(b"{\"op\":\"c\",\"after\":{\"id\":1,}}", "the payload is not JSON"), @r#"line 1, column 27: "c","after":{"id":1,⟨here⟩}}"#);
        insta::assert_snapshot!(check("{\"näme\":\"ö\" \"x\":1}".as_bytes(), "the payload is not JSON"), @r#"line 1, column 15: {"näme":"ö" ⟨here⟩"x":1}"#);
        insta::assert_snapshot!(check(b"abc\xff", "the payload is not UTF-8 text"), @"byte 3 is not UTF-8");
        let event = br#"{"before":null,"after":{"id":1,"total.net":"x","total":{"scale":2}},"op":"c"}"#;
        insta::assert_snapshot!(check(event, "`after.total.net` does not fit double sent as native: it is a string"), @r#"`after.total.net` is "x""#);
        insta::assert_snapshot!(check(event, "`after.total` does not fit double sent as native"), @r#"`after.total` is {"scale":2}"#);
        insta::assert_snapshot!(check(event, "`after` is not a JSON object"), @r#"`after` is {"id":1,"total.net":"x","total":{"scale":2}}"#);
        insta::assert_snapshot!(check(event, "`after.gone` is not among the declared columns"), @"-");
        let block = br#"{"schema":{},"payload":{"after":{"id":"x"}}}"#;
        insta::assert_snapshot!(check(block, "`after.id` does not fit long"), @r#"`after.id` is "x""#);
        insta::assert_snapshot!(check(b"", "the payload is empty"), @"-");
    }

    #[test]
    fn bytes_are_shown_and_never_obeyed() {
        assert_eq!(visible("a\x1b[31m\tb\r\n"), "a\\u{1b}[31m\tb\\r\n");
        insta::assert_snapshot!(hex_dump(b"\x00\xffabc def ghi jkl mno"), @"
        00000000  00 ff 61 62 63 20 64 65 66 20 67 68 69 20 6a 6b  ..abc def ghi jk
        00000010  6c 20 6d 6e 6f                                   l mno
        ");
    }

    #[test]
    fn payloads_are_read_one_behind_the_other() {
        let read = |text: &str| payloads(Path::new("fixed.jsonl"), text);
        let text = "{\"topic\":\"t\",\"partition\":0,\"offset\":1,\"value\":{\"a\": 1.10}}\n\n{\n  \"reason\": \"x\",\n  \
                    \"topic\": \"t\", \"partition\": 0,\n  \"offset\": 2,\n  \"value\": \"x\"\n}\n";
        let found = read(text).unwrap();
        let places: Vec<String> = found.keys().map(ToString::to_string).collect();
        assert_eq!(places, ["t/0/1", "t/0/2"]);
        // Byte for byte: numbers keep their digits.
        assert_eq!(found.values().next().unwrap(), &Bytes::from_static(b"{\"a\": 1.10}"));
        let error = |text: &str| crate::error::Error::from(read(text).unwrap_err()).render();
        insta::assert_snapshot!(error("{\"topic\":\"t\",\"partition\":0,\"value\":{}}"), @"
        error: entry 1 of `fixed.jsonl` is not a payload for a record
          caused by: missing field `offset` at line 1 column 38
          nothing was replayed
          hint: `icestream rejected show TABLE RECORD --json` writes an entry to start from
        ");
        let twice = "{\"topic\":\"t\",\"partition\":0,\"offset\":1,\"value\":{}}".repeat(2);
        insta::assert_snapshot!(error(&twice), @"
        error: `fixed.jsonl` has the record `t/0/1` twice
          nothing was replayed
        ");
        insta::assert_snapshot!(error("{\"topic\":\"t\",\"partition\":0,\"offset\":1,\"value\":null}"), @"
        error: `fixed.jsonl` gives no `value` for the record `t/0/1`
          nothing was replayed
          hint: write the payload as it should have been
        ");
        insta::assert_snapshot!(error("\n"), @"
        error: `fixed.jsonl` holds no payload
          nothing was replayed
          hint: `icestream rejected show TABLE RECORD --json` writes an entry to start from
        ");
    }
}
