use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use clap::{ArgGroup, Args, ValueEnum};
use serde::Serialize;
use tokio::sync::watch;

use super::output::Grid;
use super::run::{RunError, Since, tell};
use super::tables::{number, print_grid, print_json, size};
use super::{Context, Outcome};
use crate::config::{Config, full_location};
use crate::error::{Kind, Result, Situation};
use crate::offsets::TopicPartition;
use crate::pipeline;
use crate::pipeline::backfill::{
    Backfill, BackfillReport, Outlook, Sorted, TableHistory, TableReport, Tick, Wanted, sort,
};
use crate::source::{self, FilePlace, list_history};

const AFTER_HELP: &str = "\
Examples:
  icestream backfill --files 's3://bucket/topics/**/*.json.gz' --dry-run
  icestream backfill --files 's3://bucket/topics/**/*.json.gz'
  icestream backfill --files /mnt/export/*.json --table orders --result /airflow/xcom/return.json
  icestream backfill --from-time 2026-03-01 --to-time 2026-03-02 --table orders
  icestream backfill --from-offset shop.public.orders/0=1200 --to-offset shop.public.orders/0=4711

Files are what the S3 sinks of Kafka Connect leave: JSON lines, plain or packed with gzip or zstd, or Parquet, in whatever
folders, called `<topic>+<partition>+<offset>` and an ending. Each line is a record's value, or an object with `value` and
some of `key`, `topic`, `partition`, `offset`, `timestamp` and `headers`; each row of Parquet is a value. In a pattern, `*`
stands for any characters and `**/` for any folders.

A record that the table holds by its topic, partition and offset does not come again, so that overlapping history, a second
run and two at once do no harm, also beside `icestream ingest`. What lies behind the offset at which ingestion reads on is
left to it. Ended in the middle, the same command goes on where it was. The next `icestream build` takes it all into silver.";

/// Add history to bronze tables, from files or from Kafka again, without what is there already
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP, group(
    ArgGroup::new("what").args(["files", "from_offset", "to_offset", "from_time", "to_time"]).multiple(true).required(true)
))]
pub struct BackfillArgs {
    /// Files, folders or patterns, here or as `s3://bucket/…`
    #[arg(long, value_name = "PATTERN", num_args = 1.., conflicts_with_all = ["from_offset", "to_offset", "from_time", "to_time"])]
    pub files: Vec<String>,

    /// From this offset of the project's Kafka on, as `shop.public.orders/0=4711`; can be repeated
    #[arg(long, value_name = "TOPIC/N=OFFSET")]
    pub from_offset: Vec<PartitionOffset>,

    /// Up to this offset, which is not read any more
    #[arg(long, value_name = "TOPIC/N=OFFSET")]
    pub to_offset: Vec<PartitionOffset>,

    /// From the first record of this time or later on: `2026-03-01`, `2026-03-01 12:00`, or a span back from now (`-6h`)
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub from_time: Option<Since>,

    /// Up to the first record of this time or later, which is not read any more
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    pub to_time: Option<Since>,

    /// Fill this bronze table only
    #[arg(long, value_name = "TABLE")]
    pub table: Option<String>,

    /// Which life of the topics the history is of, where tables have seen several: 0 for the first one
    #[arg(long, value_name = "N")]
    pub epoch: Option<i32>,

    /// Whether the sink kept records without a value, which stand behind deletes: asked for where files do not show it
    #[arg(long, value_name = "WHAT", requires = "files")]
    pub tombstones: Option<Tombstones>,

    /// Show what would be read and what is there, and do nothing
    #[arg(long)]
    pub dry_run: bool,

    /// Print JSON
    #[arg(long, requires = "dry_run")]
    pub json: bool,

    /// Write a JSON summary to this file
    #[arg(long, value_name = "FILE", conflicts_with = "dry_run")]
    pub result: Option<PathBuf>,
}

/// What a sink does with records that have no value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Tombstones {
    /// It made lines of them
    Kept,
    /// It left them out, as Confluent's does with `behavior.on.null.values=ignore`
    LeftOut,
}

/// An offset of a partition, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionOffset(TopicPartition, i64);

impl FromStr for PartitionOffset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (at, offset) = text.split_once('=')?;
            let (topic, partition) = at.rsplit_once('/')?;
            let (partition, offset) = (partition.parse().ok()?, offset.parse::<i64>().ok()?);
            (!topic.is_empty() && offset >= 0).then(|| PartitionOffset(TopicPartition::new(topic, partition), offset))
        };
        parse().ok_or_else(|| "write a topic, a partition and an offset: `shop.public.orders/0=4711`".to_string())
    }
}

#[derive(Debug, thiserror::Error)]
enum BackfillArgsError {
    #[error("`--files {text}`: {problem}")]
    Place { text: String, problem: String },

    #[error("there are no files at {places}")]
    NoFiles { places: String },

    #[error("`{file}` does not say in its name which records it holds{more}")]
    Nameless { file: String, more: String },

    #[error("none of the files is of a topic that goes to table `{table}`; they are for {known}")]
    NoneForTable { table: String, known: String },

    #[error("none of the files is of a topic that goes to a table: {topics}")]
    NoneRouted { topics: String },

    #[error("the topics hold nothing of that{}", table.as_ref().map(|name| format!(" for table `{name}`")).unwrap_or_default())]
    NothingInTopics { table: Option<String> },
}

impl Situation for BackfillArgsError {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            BackfillArgsError::Place { .. } => return None,
            BackfillArgsError::NoFiles { .. } => {
                "in a pattern, `*` stands for any characters; quote it, so that the shell leaves it as it is".to_string()
            }
            BackfillArgsError::Nameless { .. } => {
                "a name says it as `<topic>+<partition>+<offset>.json.gz`; `source.files` reads files of other names, as a \
                 project's source"
                    .to_string()
            }
            BackfillArgsError::NoneForTable { .. } => "name one of those".to_string(),
            BackfillArgsError::NothingInTopics { .. } => {
                "`icestream offsets show` lists the partitions and what they hold".to_string()
            }
            BackfillArgsError::NoneRouted { .. } => {
                "a topic goes to the table of its last part; name it as `topic` in a file in `catalog/` otherwise"
                    .to_string()
            }
        })
    }
}

/// What a scheduler reads.
#[derive(Debug, Serialize)]
struct Summary {
    backfilled: Backfilled,
}

#[derive(Debug, Serialize)]
struct Backfilled {
    /// Whether everything was read. When a signal came in between, the same command goes on.
    complete: bool,
    rows: u64,
    rejected: u64,
    commits: u64,
    tables: std::collections::BTreeMap<String, Table>,
    /// Files that could not be read to their end.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    broken_files: Vec<String>,
    /// Tables that were not filled, and why.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    failed_tables: std::collections::BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Table {
    rows: u64,
    rejected: u64,
    commits: u64,
    files: usize,
    files_skipped: usize,
    bytes: u64,
    bytes_unpacked: u64,
    /// Files that do not come to the next one's offset, or of which it is not known which offsets their lines have.
    files_with_gaps: usize,
    /// Records that were read and were there.
    records_there: u64,
    /// Records that ingestion will come to.
    records_left_to_ingest: u64,
}

impl Table {
    fn of(report: &TableReport) -> Self {
        let TableReport {
            rows,
            rejected,
            commits,
            there,
            ahead,
            files,
            files_skipped,
            bytes,
            bytes_unpacked,
            files_with_gaps,
        } = *report;
        let (records_there, records_left_to_ingest) = (there, ahead);
        Table {
            rows,
            rejected,
            commits,
            files,
            files_skipped,
            bytes,
            bytes_unpacked,
            files_with_gaps,
            records_there,
            records_left_to_ingest,
        }
    }
}

impl From<&BackfillReport> for Summary {
    fn from(report: &BackfillReport) -> Self {
        let sum = |of: fn(&TableReport) -> u64| report.tables.values().map(of).sum();
        Summary {
            backfilled: Backfilled {
                complete: report.is_complete,
                rows: sum(|table| table.rows),
                rejected: sum(|table| table.rejected),
                commits: sum(|table| table.commits),
                tables: report.tables.iter().map(|(table, of)| (table.to_string(), Table::of(of))).collect(),
                broken_files: report.broken.iter().map(|(file, _)| file.clone()).collect(),
                failed_tables: report
                    .failed
                    .iter()
                    .map(|(table, error)| (table.to_string(), error.to_string()))
                    .collect(),
            },
        }
    }
}

pub async fn run(args: BackfillArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let histories = match args.files.is_empty() {
        true => of_topics(&config, &args, context).await?,
        false => of_files(&config, &args, context).await?,
    };
    let lake = pipeline::open_lake(&config, context.clock.clone()).await?;
    let engine = pipeline::engine(&config)?;
    let (dialect, triggers) = (pipeline::dialect(&config), pipeline::commit_triggers(&config));
    let backfill = Backfill::new(&lake, &engine, dialect, triggers, args.epoch, pipeline::unobserved())?
        .with_tombstones(args.tombstones.map(|what| what == Tombstones::LeftOut));
    if args.dry_run {
        let mut outlooks = Vec::new();
        for history in &histories {
            outlooks.extend(backfill.look(history).await?);
        }
        return show(&outlooks, args.json, context);
    }
    let amount = histories.iter().map(TableHistory::amount).sum();
    let bar = Arc::new(match args.files.is_empty() {
        true => context.progress.bar("backfill", amount),
        false => context.progress.bytes("backfill", amount),
    });
    let tick: Tick = {
        let bar = bar.clone();
        Arc::new(move |bytes| bar.move_by(bytes))
    };
    let (end, stop) = watch::channel(false);
    let (mut report, signal) = {
        let _heed = context.signals.heed();
        let mut filling = std::pin::pin!(backfill.run(&histories, &tick, &stop));
        tokio::select! {
            report = &mut filling => (report, None),
            signal = context.signals.asked() => {
                tracing::info!("a signal came: committing what is read");
                end.send_replace(true);
                (filling.await, Some(signal))
            }
        }
    };
    drop((tick, bar));
    tell(&Summary::from(&report), args.result.as_deref(), context)?;
    // What a retry may mend is worth less to know than what it will not.
    report.failed.sort_by_key(|(_, error)| error.kind() == Kind::Unavailable);
    let broken = report.broken.into_iter().map(|(_, error)| error);
    let failed = report.failed.into_iter().map(|(_, error)| error);
    let mut errors = failed.chain(broken);
    match (errors.next(), signal) {
        (Some(error), _) => {
            for other in errors {
                context.note(&other.render().replacen("error:", "also:", 1));
            }
            Err(error)
        }
        (None, Some(signal)) if !report.is_complete => Ok(Outcome::Interrupted(signal)),
        (None, _) => Ok(Outcome::Done),
    }
}

/// The ranges of each table's topics.
async fn of_topics(config: &Config, args: &BackfillArgs, context: &Context) -> Result<Vec<TableHistory>> {
    let kafka = match (&config.kafka.brokers, pipeline::kafka_admin(config, None)?) {
        (_, Some(kafka)) => kafka,
        (Some(_), None) => return Err(RunError::EmbeddedBroker.into()),
        (None, None) => return Err(RunError::NoBrokers.into()),
    };
    let positions = |offsets: &[PartitionOffset]| offsets.iter().map(|of| (of.0.clone(), of.1)).collect();
    let time_ms = |time: Option<Since>| time.map(|time| time.time_us(&context.clock).div_euclid(1000));
    let wanted = Wanted {
        from: positions(&args.from_offset),
        to: positions(&args.to_offset),
        from_ms: time_ms(args.from_time),
        to_ms: time_ms(args.to_time),
        table: args.table.clone(),
    };
    let spinner = context.progress.spinner("backfill");
    spinner.remark("asking the brokers");
    let histories = wanted.histories(config, &kafka).await?;
    match histories.is_empty() {
        true => Err(BackfillArgsError::NothingInTopics { table: args.table.clone() }.into()),
        false => Ok(histories),
    }
}

/// The files of each table.
async fn of_files(config: &Config, args: &BackfillArgs, context: &Context) -> Result<Vec<TableHistory>> {
    let folder = std::env::current_dir().map_err(|error| BackfillArgsError::Place {
        text: args.files.join(" "),
        problem: format!("the current folder is not known: {error}"),
    })?;
    let storage = pipeline::open_storage(config)?;
    let mut places = Vec::new();
    for text in &args.files {
        let location = full_location(text, &folder);
        let location = location.map_err(|problem| BackfillArgsError::Place { text: text.clone(), problem })?;
        let (store, path) = storage.store(&location)?;
        places.push(FilePlace { location, store, path: path.to_string() });
    }
    let none = || BackfillArgsError::NoFiles {
        places: args.files.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(", "),
    };
    let spinner = context.progress.spinner("backfill");
    spinner.remark("looking for files");
    let files = match list_history(&places).await {
        Err(source::Error::NoFiles { .. }) => return Err(none().into()),
        files => files?,
    };
    drop(spinner);
    if files.is_empty() {
        return Err(none().into());
    }
    let Sorted { mut tables, nameless, unrouted } = sort(files, |topic| pipeline::route(config, topic));
    if let Some(file) = nameless.first() {
        let more = match nameless.len() {
            1 => String::new(),
            many => format!(", nor do {} others", many - 1),
        };
        return Err(BackfillArgsError::Nameless { file: file.location.clone(), more }.into());
    }
    let listed = |names: Vec<String>| names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if tables.is_empty() {
        return Err(BackfillArgsError::NoneRouted { topics: listed(unrouted.into_iter().collect()) }.into());
    }
    for topic in &unrouted {
        context.note(&format!("topic `{topic}` goes to no table; its files are left out"));
    }
    if let Some(name) = &args.table {
        let known: Vec<String> = tables.iter().map(|table| table.route.table.to_string()).collect();
        tables.retain(|table| table.route.table.name() == name || table.route.table.to_string() == *name);
        if tables.is_empty() {
            return Err(BackfillArgsError::NoneForTable { table: name.clone(), known: listed(known) }.into());
        }
    }
    Ok(tables)
}

fn show(outlooks: &[Outlook], json: bool, context: &Context) -> Result<Outcome> {
    if json {
        let outlooks: Vec<serde_json::Value> = outlooks
            .iter()
            .map(|of| {
                serde_json::json!({
                    "table": of.table.to_string(), "topic": &*of.at.topic, "partition": of.at.partition,
                    "files": of.files, "bytes": of.bytes, "files_to_read": of.files - of.files_there,
                    "bytes_to_read": of.bytes - of.bytes_there, "first_offset": of.first, "last_file_from": of.last,
                    "offsets_to_read": of.offsets, "offsets_there": of.offsets_there, "ingests_from": of.ingests_from,
                })
            })
            .collect();
        return print_json(&outlooks, context);
    }
    let is_of_files = outlooks.iter().any(|of| of.files > 0);
    let mut columns = vec![("table", false), ("partition", false), ("from", true)];
    columns.extend(match is_of_files {
        true => [("last file from", true), ("files", true), ("size", true)].as_slice(),
        false => [("to", true)].as_slice(),
    });
    columns.extend([("ingestion reads from", true), ("offsets there", true)]);
    columns.extend(match is_of_files {
        true => [("files to read", true), ("size to read", true)].as_slice(),
        false => [("offsets to read", true)].as_slice(),
    });
    let mut grid = Grid::new(&columns);
    for of in outlooks {
        let mut row = vec![of.table.to_string(), of.at.to_string(), of.first.to_string(), of.last.to_string()];
        if is_of_files {
            row.extend([number(Some(of.files as u64)), size(Some(of.bytes))]);
        }
        row.extend([of.ingests_from.map(|next| next.to_string()).unwrap_or_default(), number(Some(of.offsets_there))]);
        row.extend(match is_of_files {
            true => vec![number(Some((of.files - of.files_there) as u64)), size(Some(of.bytes - of.bytes_there))],
            false => vec![number(Some(of.offsets))],
        });
        grid.push(row);
    }
    print_grid(&grid, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_done_says_what_can() {
        let errors = [
            BackfillArgsError::Place { text: "gs://b".to_string(), problem: "`gs://` is not supported".to_string() },
            BackfillArgsError::NoFiles { places: "`s3://bucket/topics/*.json`".to_string() },
            BackfillArgsError::Nameless { file: "s3://b/a.json".to_string(), more: ", nor do 3 others".to_string() },
            BackfillArgsError::NoneForTable { table: "users".to_string(), known: "`bronze.orders`".to_string() },
            BackfillArgsError::NoneRouted { topics: "`a.b!`".to_string() },
        ];
        let texts: Vec<String> = errors.into_iter().map(|error| crate::error::Error::from(error).render()).collect();
        insta::assert_snapshot!(texts.join("\n"), @r"
        error: `--files gs://b`: `gs://` is not supported
        error: there are no files at `s3://bucket/topics/*.json`
          hint: in a pattern, `*` stands for any characters; quote it, so that the shell leaves it as it is
        error: `s3://b/a.json` does not say in its name which records it holds, nor do 3 others
          hint: a name says it as `<topic>+<partition>+<offset>.json.gz`; `source.files` reads files of other names, as a project's source
        error: none of the files is of a topic that goes to table `users`; they are for `bronze.orders`
          hint: name one of those
        error: none of the files is of a topic that goes to a table: `a.b!`
          hint: a topic goes to the table of its last part; name it as `topic` in a file in `catalog/` otherwise
        ");
    }
}
