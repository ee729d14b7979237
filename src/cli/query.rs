use std::path::{Path, PathBuf};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, NaiveDate, NaiveDateTime};
use clap::Args;
use futures::{Stream, TryStreamExt};

use super::output::{self, Destination, RowFormat};
use super::{Context, Outcome, lake};
use crate::engine;
use crate::error::{Error, Kind, Result, Situation};
use crate::ids::TableName;
use crate::pipeline;
use crate::table::At;

const AFTER_HELP: &str = "\
Examples:
  icestream query \"select count(*) from shop_silver.orders\"
  icestream query -f report.sql --format csv -o report.csv
  icestream query \"select * from shop_gold.revenue_per_day\" --as-of '2025-03-01 12:00'
  echo 'select 1' | icestream query -f -";

/// Run SQL over the lake
///
/// Tables are named `namespace.table`. The result goes to stdout or, with `-o`, to a file that appears when it is
/// complete.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub struct QueryArgs {
    /// The SQL
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    pub sql: Option<String>,

    /// Read the SQL from a file; `-` is stdin
    #[arg(short, long, value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// How rows are written [default: by the ending of FILE, else table]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<RowFormat>,

    /// Write to a file
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Read the tables as they were in this snapshot; for queries over one table
    #[arg(long, value_name = "ID", conflicts_with = "as_of", allow_negative_numbers = true)]
    pub snapshot: Option<i64>,

    /// Read the tables as they were at this time: `2025-03-01`, `2025-03-01 12:00[:00]` (both UTC) or
    /// `2025-03-01T12:00:00+01:00`
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub as_of: Option<Instant>,

    /// Write at most this many rows
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// Milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(pub i64);

/// A query as the arguments describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub sql: String,
    pub at: At,
    pub to: Destination,
    pub limit: Option<usize>,
}

#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    #[error("the SQL cannot be read from `{}`", path.display())]
    Unreadable {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("there is no SQL to run")]
    Empty,
    #[error("`{name}` does not name a table: write `namespace.table`")]
    NoNamespace { name: String, candidates: Vec<TableName> },
}

impl Situation for QueryError {
    fn kind(&self) -> Kind {
        match self {
            QueryError::Unreadable { .. } | QueryError::Empty => Kind::Config,
            QueryError::NoNamespace { .. } => Kind::Input,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            QueryError::NoNamespace { candidates, .. } if candidates.is_empty() => {
                Some("`icestream tables` lists the tables there are".to_string())
            }
            QueryError::NoNamespace { candidates, .. } => {
                let names: Vec<String> = candidates.iter().map(|table| format!("`{table}`")).collect();
                Some(format!("did you mean {}?", names.join(" or ")))
            }
            QueryError::Unreadable { .. } => None,
            QueryError::Empty => Some("for example `icestream query \"select 1\"`".to_string()),
        }
    }
}

impl QueryArgs {
    /// Reads the SQL and decides where the rows go.
    pub fn request(&self, context: &Context) -> Result<Request> {
        let sql = match (&self.sql, &self.file) {
            (Some(sql), _) => sql.clone(),
            (None, Some(file)) => read(file)?,
            (None, None) => String::new(),
        };
        let sql = sql.trim().trim_end_matches(';').trim_end().to_string();
        if sql.is_empty() {
            return Err(QueryError::Empty.into());
        }
        let at = match (self.snapshot, self.as_of) {
            (Some(snapshot), _) => At::Snapshot(snapshot),
            (None, Some(time)) => At::TimeMs(time.0),
            (None, None) => At::Head,
        };
        let to = Destination::new(self.format, self.output.as_deref(), &context.stdout)?;
        Ok(Request { sql, at, to, limit: self.limit })
    }
}

fn read(path: &Path) -> Result<String> {
    let text =
        if path == Path::new("-") { std::io::read_to_string(std::io::stdin()) } else { std::fs::read_to_string(path) };
    text.map_err(|source| QueryError::Unreadable { path: path.to_path_buf(), source }.into())
}

/// Runs the query over the tables it names, each at the state asked for.
pub async fn run(args: QueryArgs, context: &Context) -> Result<Outcome> {
    let request = args.request(context)?;
    let config = context.config()?;
    let names = match engine::referenced_tables(&request.sql) {
        Err(engine::Error::NotATableName { name }) => {
            let tables = lake::open(&config, context).await?;
            let candidates = lake::known_tables(&config, &tables).await?.into_iter();
            let candidates = candidates.filter(|table| table.name() == name).collect();
            return Err(QueryError::NoNamespace { name, candidates }.into());
        }
        names => names?,
    };
    let tables = lake::open(&config, context).await?;
    let session = pipeline::engine(&config)?.session();
    for name in names {
        let Some(table) = lake::load(&name, &config, &tables).await? else {
            let known = lake::known_tables(&config, &tables).await?;
            return Err(engine::Error::unknown_table(&name, &known).into());
        };
        engine::register(&session, &name, table.view(request.at)?)?;
    }
    let rows = engine::query(&session, &request.sql).await?;
    show(&request, rows.schema(), rows.map_err(engine::Error::from), context).await
}

/// Writes a query's rows to where the request wants them.
pub async fn show<S, E>(request: &Request, schema: SchemaRef, rows: S, context: &Context) -> Result<Outcome>
where
    S: Stream<Item = Result<RecordBatch, E>>,
    Error: From<E>,
{
    let written = output::write_rows(&request.to, schema, rows, request.limit, &context.stdout).await?;
    if context.progress.is_visible() && (request.to.file.is_some() || request.to.format == RowFormat::Table) {
        let rows = if written == 1 { "1 row".to_string() } else { format!("{written} rows") };
        let to = request.to.file.as_ref().map_or(String::new(), |file| format!(" written to `{}`", file.display()));
        context.note(&format!("{rows}{to}"));
    }
    Ok(Outcome::Done)
}

pub(super) fn parse_time(text: &str) -> Result<Instant, String> {
    let text = text.trim();
    if let Ok(time) = DateTime::parse_from_rfc3339(text) {
        return Ok(Instant(time.timestamp_millis()));
    }
    for format in ["%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%dT%H:%M"] {
        if let Ok(time) = NaiveDateTime::parse_from_str(text.trim_end_matches('Z'), format) {
            return Ok(Instant(time.and_utc().timestamp_millis()));
        }
    }
    match NaiveDate::parse_from_str(text, "%Y-%m-%d").ok().and_then(|day| day.and_hms_opt(0, 0, 0)) {
        Some(midnight) => Ok(Instant(midnight.and_utc().timestamp_millis())),
        None => Err("write `2025-03-01`, `2025-03-01 12:00` or `2025-03-01T12:00:00+01:00`".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_utc_unless_they_say_otherwise() {
        let noon = 1_740_830_400_000;
        for text in [
            "2025-03-01 12:00",
            "2025-03-01T12:00",
            "2025-03-01 12:00:00",
            "2025-03-01T12:00:00Z",
            "2025-03-01T13:00:00+01:00",
        ] {
            assert_eq!(parse_time(text), Ok(Instant(noon)), "{text}");
        }
        assert_eq!(parse_time("2025-03-01"), Ok(Instant(noon - 12 * 3_600_000)));
        assert_eq!(parse_time("2025-03-01 12:00:00.250"), Ok(Instant(noon + 250)));
        for bad in ["yesterday", "2025-13-01", "12:00", "1740830400", ""] {
            assert!(parse_time(bad).is_err(), "{bad} should be refused");
        }
    }
}
