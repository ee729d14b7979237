use std::collections::BTreeMap;

use chrono::{DateTime, SecondsFormat};
use clap::{Args, Subcommand};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde::Serialize;

use super::output::Grid;
use super::{Context, Outcome, lake as lakes};
use crate::config::{Config, Span};
use crate::error::{Kind, Result, Situation};
use crate::ids::TableName;
use crate::table::{self, Lake, Table};

/// Each is a question to the catalog and one to the storage.
const LOADED_AT_ONCE: usize = 8;

const AFTER_HELP: &str = "\
Examples:
  icestream tables
  icestream tables show shop_silver.orders
  icestream tables snapshots shop_silver.orders --json | jq '.[0].snapshot_id'
  icestream tables orphans shop_bronze.orders --older-than 7d";

/// List tables; show one's columns, snapshots, files, properties or orphan files
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub struct TablesArgs {
    #[command(subcommand)]
    pub what: Option<What>,

    /// Print JSON
    #[arg(long, global = true)]
    pub json: bool,
}

#[derive(Debug, Subcommand)]
pub enum What {
    /// The tables of the project's namespaces, with sizes and the last commit (the default)
    List,
    /// One table: columns, partitioning, sizes, location
    Show {
        /// The table, `namespace.table`
        #[arg(value_name = "NS.TABLE")]
        table: TableName,
    },
    /// Its snapshots, newest first
    Snapshots {
        /// The table, `namespace.table`
        #[arg(value_name = "NS.TABLE")]
        table: TableName,
    },
    /// The files of its current snapshot
    Files {
        /// The table, `namespace.table`
        #[arg(value_name = "NS.TABLE")]
        table: TableName,
    },
    /// Its properties
    Properties {
        /// The table, `namespace.table`
        #[arg(value_name = "NS.TABLE")]
        table: TableName,
    },
    /// Files under its location that no snapshot refers to
    Orphans {
        /// The table, `namespace.table`
        #[arg(value_name = "NS.TABLE")]
        table: TableName,

        /// Leave out younger files: they may belong to a commit that is on its way
        #[arg(long, value_name = "DURATION", default_value = "3d")]
        older_than: Span,
    },
}

/// One table of the list.
#[derive(Debug, Clone, Serialize)]
pub struct TableRow {
    #[serde(serialize_with = "as_text")]
    pub table: TableName,
    pub rows: Option<u64>,
    pub data_files: Option<u64>,
    pub delete_files: Option<u64>,
    pub bytes: Option<u64>,
    pub snapshots: u64,
    #[serde(rename = "last_commit", serialize_with = "as_time")]
    pub last_commit_ms: Option<i64>,
    /// Why it could not be looked at; the other fields are empty then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// All about one table.
#[derive(Debug, Clone, Serialize)]
pub struct TableDetail {
    #[serde(flatten)]
    pub summary: TableRow,
    pub format_version: u8,
    pub uuid: String,
    pub location: String,
    pub metadata_location: String,
    pub snapshot_id: Option<i64>,
    /// Such as `day(_ingested_at), bucket(16, id)`; empty for an unpartitioned table.
    pub partition: String,
    /// Such as `id asc nulls first`; empty for an unsorted table.
    pub sort: String,
    pub columns: Vec<ColumnRow>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ColumnRow {
    pub id: i32,
    pub name: String,
    #[serde(rename = "type")]
    pub column_type: String,
    pub required: bool,
    pub doc: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SnapshotRow {
    pub snapshot_id: i64,
    pub parent_id: Option<i64>,
    #[serde(rename = "committed_at", serialize_with = "as_time")]
    pub committed_at_ms: Option<i64>,
    pub operation: String,
    pub added_rows: Option<u64>,
    pub deleted_rows: Option<u64>,
    pub total_rows: Option<u64>,
    pub summary: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct FileRow {
    /// `data`, `position deletes` or `equality deletes`.
    pub content: String,
    pub partition: String,
    pub rows: u64,
    pub bytes: u64,
    pub sequence_number: Option<i64>,
    pub path: String,
}

#[derive(Debug, Clone, Serialize)]
pub struct OrphanRow {
    pub bytes: u64,
    #[serde(rename = "modified", serialize_with = "as_time")]
    pub modified_ms: Option<i64>,
    pub path: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{unreadable} of {tables} tables cannot be read")]
struct Unreadable {
    unreadable: usize,
    tables: usize,
}

impl Situation for Unreadable {
    fn kind(&self) -> Kind {
        Kind::Corrupt
    }

    fn hint(&self) -> Option<String> {
        Some("`icestream tables show NS.TABLE` says more of one".to_string())
    }
}

pub async fn run(args: TablesArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let lake = lakes::open(&config, context).await?;
    let find = async |name: TableName| lakes::table(&name, &config, &lake).await;
    match args.what {
        None | Some(What::List) => {
            let names = lakes::known_tables(&config, &lake).await?;
            let rows = stream::iter(names).map(|name| list_row(name, &config, &lake)).buffered(LOADED_AT_ONCE);
            let rows: Vec<TableRow> = rows.try_filter_map(async |row| Ok(row)).try_collect().await?;
            show_list(&rows, args.json, context)?;
            match rows.iter().filter(|row| row.problem.is_some()).count() {
                0 => Ok(Outcome::Done),
                unreadable => Err(Unreadable { unreadable, tables: rows.len() }.into()),
            }
        }
        Some(What::Show { table }) => {
            let table = find(table).await?;
            show_table(&detail(&table)?, args.json, context)
        }
        Some(What::Snapshots { table }) => {
            let table = find(table).await?;
            let rows: Vec<SnapshotRow> = table.snapshots().into_iter().rev().map(snapshot_row).collect();
            show_snapshots(&rows, args.json, context)
        }
        Some(What::Files { table }) => {
            let files = find(table).await?.files().await?;
            let row = |file: table::FileRow| FileRow {
                content: file.content.to_string(),
                partition: file.partition,
                rows: file.rows,
                bytes: file.bytes,
                sequence_number: file.sequence_number,
                path: file.path,
            };
            show_files(&files.into_iter().map(row).collect::<Vec<_>>(), args.json, context)
        }
        Some(What::Properties { table }) => {
            let properties = find(table).await?.properties().clone();
            show_properties(&properties.into_iter().collect(), args.json, context)
        }
        Some(What::Orphans { table, older_than }) => {
            let table = find(table).await?;
            let limit = context.clock.now_ms().saturating_sub(older_than.0.as_millis() as i64);
            let row = |orphan: table::Orphan| OrphanRow {
                bytes: orphan.bytes,
                modified_ms: Some(orphan.modified_ms),
                path: orphan.path,
            };
            let rows: Vec<OrphanRow> = table.orphans(limit).await?.into_iter().map(row).collect();
            show_orphans(&rows, args.json, context)
        }
    }
}

/// A table for the list; `None` for one that was dropped meanwhile. One that cannot be read must not hide the others.
async fn list_row(name: TableName, config: &Config, lake: &Lake) -> Result<Option<TableRow>> {
    match lakes::load(&name, config, lake).await {
        Ok(table) => Ok(table.as_ref().map(summary_row)),
        Err(error) if error.kind() == Kind::Unavailable => Err(error),
        Err(error) => Ok(Some(TableRow::of_problem(name, error.chain().swap_remove(0)))),
    }
}

impl TableRow {
    fn of_problem(table: TableName, problem: String) -> Self {
        TableRow {
            table,
            rows: None,
            data_files: None,
            delete_files: None,
            bytes: None,
            snapshots: 0,
            last_commit_ms: None,
            problem: Some(problem),
        }
    }
}

fn summary_row(table: &Table) -> TableRow {
    let summary = table.summary();
    TableRow {
        table: table.name().clone(),
        // Deleted rows are still counted as records of their files.
        rows: summary.records.zip(summary.position_deletes).map(|(rows, deleted)| rows.saturating_sub(deleted)),
        data_files: summary.data_files,
        delete_files: summary.delete_files,
        bytes: summary.bytes,
        snapshots: summary.snapshots as u64,
        last_commit_ms: summary.committed_ms,
        problem: None,
    }
}

fn detail(table: &Table) -> Result<TableDetail> {
    let summary = table.summary();
    let columns = table.columns().into_iter().map(|column| ColumnRow {
        id: column.id,
        name: column.name,
        column_type: column.column_type,
        required: column.required,
        doc: column.doc,
    });
    Ok(TableDetail {
        summary: summary_row(table),
        format_version: 2,
        uuid: table.uuid().to_string(),
        location: table.location().to_string(),
        metadata_location: table.metadata_location().to_string(),
        snapshot_id: summary.snapshot_id,
        partition: summary.partition,
        sort: summary.sort,
        columns: columns.collect(),
    })
}

fn snapshot_row(snapshot: table::SnapshotRow) -> SnapshotRow {
    let number = |key: &str| snapshot.summary.get(key).and_then(|text| text.parse().ok());
    SnapshotRow {
        snapshot_id: snapshot.id,
        parent_id: snapshot.parent,
        committed_at_ms: Some(snapshot.committed_ms),
        added_rows: number("added-records"),
        deleted_rows: match (number("deleted-records"), number("added-position-deletes")) {
            (None, None) => None,
            (files, positions) => Some(files.unwrap_or(0) + positions.unwrap_or(0)),
        },
        total_rows: number("total-records"),
        operation: snapshot.operation,
        summary: snapshot.summary,
    }
}

pub fn show_list(rows: &[TableRow], json: bool, context: &Context) -> Result<Outcome> {
    if json {
        return print_json(rows, context);
    }
    if rows.is_empty() {
        context.note("there are no tables yet");
        return Ok(Outcome::Done);
    }
    let mut grid = Grid::new(&[
        ("table", false),
        ("rows", true),
        ("data files", true),
        ("delete files", true),
        ("size", true),
        ("snapshots", true),
        ("last commit", false),
    ]);
    for row in rows {
        let last =
            row.problem.as_ref().map(|problem| format!("! {problem}")).unwrap_or_else(|| time(row.last_commit_ms));
        grid.push(vec![
            row.table.to_string(),
            number(row.rows),
            number(row.data_files),
            number(row.delete_files),
            size(row.bytes),
            row.snapshots.to_string(),
            last,
        ]);
    }
    print_grid(&grid, context)
}

pub fn show_table(detail: &TableDetail, json: bool, context: &Context) -> Result<Outcome> {
    if json {
        return print_json(detail, context);
    }
    let summary = &detail.summary;
    let or_none = |text: &str| if text.is_empty() { "none".to_string() } else { text.to_string() };
    let facts = [
        ("table", summary.table.to_string()),
        ("rows", number(summary.rows)),
        ("files", format!("{} data, {} delete", number(summary.data_files), number(summary.delete_files))),
        ("size", size(summary.bytes)),
        ("snapshots", summary.snapshots.to_string()),
        ("snapshot", detail.snapshot_id.map_or("none".to_string(), |id| id.to_string())),
        ("last commit", time(summary.last_commit_ms)),
        ("partition", or_none(&detail.partition)),
        ("sort", or_none(&detail.sort)),
        ("format", format!("version {}", detail.format_version)),
        ("uuid", detail.uuid.clone()),
        ("location", detail.location.clone()),
        ("metadata", detail.metadata_location.clone()),
    ];
    let mut text: String = facts.iter().map(|(name, value)| format!("{name:<12} {value}\n")).collect();
    text.push('\n');
    let mut grid = Grid::new(&[("id", true), ("column", false), ("type", false), ("required", false), ("doc", false)]);
    for column in &detail.columns {
        grid.push(vec![
            column.id.to_string(),
            column.name.clone(),
            column.column_type.clone(),
            if column.required { "yes".to_string() } else { String::new() },
            column.doc.clone().unwrap_or_default(),
        ]);
    }
    text.push_str(&grid.render(context.stdout.width()));
    context.stdout.print(&text)?;
    Ok(Outcome::Done)
}

pub fn show_snapshots(rows: &[SnapshotRow], json: bool, context: &Context) -> Result<Outcome> {
    if json {
        return print_json(rows, context);
    }
    let mut grid = Grid::new(&[
        ("snapshot", true),
        ("committed at", false),
        ("operation", false),
        ("added rows", true),
        ("deleted rows", true),
        ("total rows", true),
    ]);
    for row in rows {
        grid.push(vec![
            row.snapshot_id.to_string(),
            time(row.committed_at_ms),
            row.operation.clone(),
            number(row.added_rows),
            number(row.deleted_rows),
            number(row.total_rows),
        ]);
    }
    print_grid(&grid, context)
}

pub fn show_files(rows: &[FileRow], json: bool, context: &Context) -> Result<Outcome> {
    if json {
        return print_json(rows, context);
    }
    let mut grid =
        Grid::new(&[("content", false), ("partition", false), ("rows", true), ("size", true), ("path", false)]);
    for row in rows {
        grid.push(vec![
            row.content.clone(),
            row.partition.clone(),
            row.rows.to_string(),
            size(Some(row.bytes)),
            row.path.clone(),
        ]);
    }
    print_grid(&grid, context)
}

pub fn show_properties(properties: &BTreeMap<String, String>, json: bool, context: &Context) -> Result<Outcome> {
    if json {
        return print_json(properties, context);
    }
    let mut grid = Grid::new(&[("property", false), ("value", false)]);
    for (name, value) in properties {
        grid.push(vec![name.clone(), value.clone()]);
    }
    print_grid(&grid, context)
}

pub fn show_orphans(rows: &[OrphanRow], json: bool, context: &Context) -> Result<Outcome> {
    if json {
        return print_json(rows, context);
    }
    if rows.is_empty() {
        context.note("there are no orphan files");
        return Ok(Outcome::Done);
    }
    let mut grid = Grid::new(&[("size", true), ("modified", false), ("path", false)]);
    for row in rows {
        grid.push(vec![size(Some(row.bytes)), time(row.modified_ms), row.path.clone()]);
    }
    print_grid(&grid, context)
}

pub(super) fn print_grid(grid: &Grid, context: &Context) -> Result<Outcome> {
    context.stdout.print(&grid.render(context.stdout.width()))?;
    Ok(Outcome::Done)
}

pub(super) fn print_json<T: Serialize + ?Sized>(value: &T, context: &Context) -> Result<Outcome> {
    context.stdout.print_json(value)?;
    Ok(Outcome::Done)
}

pub(super) fn number(number: Option<u64>) -> String {
    number.map(|number| number.to_string()).unwrap_or_default()
}

/// A size as people read it: three digits that count.
pub(super) fn size(bytes: Option<u64>) -> String {
    let Some(bytes) = bytes else { return String::new() };
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB", "TiB"] {
        if value < 1000.0 || unit == "TiB" {
            return match unit {
                "B" => format!("{bytes} B"),
                _ if value < 10.0 => format!("{value:.2} {unit}"),
                _ if value < 100.0 => format!("{value:.1} {unit}"),
                _ => format!("{value:.0} {unit}"),
            };
        }
        value /= 1024.0;
    }
    String::new()
}

pub(super) fn time(ms: Option<i64>) -> String {
    let time = ms.and_then(DateTime::from_timestamp_millis);
    time.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)).unwrap_or_default()
}

fn as_text<S: serde::Serializer>(name: &TableName, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(name)
}

fn as_time<S: serde::Serializer>(ms: &Option<i64>, serializer: S) -> Result<S::Ok, S::Error> {
    match ms {
        Some(_) => serializer.serialize_str(&time(*ms)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_that_count() {
        for (bytes, expected) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1536, "1.50 KiB"),
            (52_428_800, "50.0 MiB"),
            (1 << 30, "1.00 GiB"),
            (5 << 50, "5120 TiB"),
        ] {
            assert_eq!(size(Some(bytes)), expected);
        }
    }
}
