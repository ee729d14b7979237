use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use clap::Args;
use serde::Serialize;
use tokio::sync::watch;

use super::query::parse_time;
use super::{Context, Outcome};
use crate::clock::Clock;
use crate::config::{Brokers, Config, Span};
use crate::engine::Engine;
use crate::error::{Error as AnyError, Kind, Result, Situation};
use crate::gold::Refreshed;
use crate::ids::TableName;
use crate::metrics::{Metrics, Server};
use crate::pipeline::{self, Event, Ingest, IngestReport, Models, Observer, Until};
use crate::quality::Finding;
use crate::silver::Extent;
use crate::source::{Assignment, KafkaConfig, KafkaSource, STATISTICS_EVERY, Source};
use crate::table::Lake;

const AFTER_HELP_INGEST: &str = "\
Examples:
  icestream ingest                 until a signal ends it
  icestream ingest --drain         everything that is in the topics now
  icestream ingest --drain --result /airflow/xcom/return.json";

const AFTER_HELP_BUILD: &str = "\
Examples:
  icestream build                          every table that is behind
  icestream build orders revenue_per_day   these only
  icestream build --full orders            all of bronze again: after the transform was changed
  icestream build --from 2026-03-01        mend silver: every key that has an event since then is folded again
  icestream build --from -6h orders        the same for one table

`--from` goes by when events were ingested (`_ingested_at`), and replaces the rows of their keys in one commit per table,
whatever has become of them. Rows of other keys stay as they are: `--full` mends those, too.";

const AFTER_HELP_RUN: &str = "\
Examples:
  icestream run                    ingest and build, until a signal ends it
  icestream run --drain            everything that is in the topics now, through to gold";

/// Read Kafka into bronze tables
///
/// Reading starts where the tables' own markers stand. A signal (SIGTERM, SIGINT) commits what is read and ends.
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP_INGEST)]
pub struct IngestArgs {
    #[command(flatten)]
    pub reading: ReadingArgs,
}

/// Bring silver and gold tables up to date
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP_BUILD)]
pub struct BuildArgs {
    /// Tables to build, by name; all when none is named
    #[arg(value_name = "TABLE")]
    pub tables: Vec<String>,

    /// Fold these silver tables anew, from all of bronze; readers see the old rows until the new ones are there
    #[arg(long, requires = "tables")]
    pub full: bool,

    /// Fold again, from all their events, the keys that have one since this time: `2026-03-01`, `2026-03-01 12:00`, or a
    /// span back from now (`-6h`)
    #[arg(long, value_name = "TIME", conflicts_with = "full", allow_hyphen_values = true)]
    pub from: Option<Since>,

    /// Write a JSON summary to this file
    #[arg(long, value_name = "FILE")]
    pub result: Option<PathBuf>,
}

/// A time, or a span back from now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Since {
    AtMs(i64),
    Ago(Duration),
}

impl FromStr for Since {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(span) = text.trim().strip_prefix('-') {
            return Ok(Since::Ago(span.parse::<Span>().map_err(|error| error.to_string())?.0));
        }
        parse_time(text).map(|time| Since::AtMs(time.0)).map_err(|help| format!("{help}, or `-6h`"))
    }
}

impl Since {
    pub(super) fn time_us(self, clock: &Clock) -> i64 {
        match self {
            Since::AtMs(time) => time.saturating_mul(1000),
            Since::Ago(span) => clock.now_us().saturating_sub(i64::try_from(span.as_micros()).unwrap_or(i64::MAX)),
        }
    }
}

/// Ingest and build, again and again
#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP_RUN)]
pub struct RunArgs {
    #[command(flatten)]
    pub reading: ReadingArgs,
}

#[derive(Debug, Args)]
pub struct ReadingArgs {
    /// Read what is there when it starts, then end
    #[arg(long)]
    pub drain: bool,

    /// Write a JSON summary to this file
    #[arg(long, value_name = "FILE")]
    pub result: Option<PathBuf>,

    /// Answer `/metrics`, `/livez` and `/readyz` at this address, such as `127.0.0.1:9464` [default: `metrics.listen`]
    #[arg(long, value_name = "ADDR", value_parser = listen)]
    pub metrics: Option<String>,
}

fn listen(text: &str) -> Result<String, String> {
    crate::config::check_listen(text).map(|()| text.to_string())
}

impl ReadingArgs {
    /// Whoever watches this process, where anybody is to.
    fn watch(&self, config: &Config, context: &Context) -> Result<Watch> {
        let Some(listen) = self.metrics.as_ref().or(config.metrics_listen.as_ref()) else { return Ok(Watch::none()) };
        let metrics = Arc::new(Metrics::new(context.clock.clone(), config.memory_bytes));
        let server = Server::start(listen, metrics.clone())?;
        Ok(Watch { metrics: Some(metrics.observer()), _server: Some(server) })
    }

    /// How reading ended: a drain has an end to reach, and without one a signal is how it ends.
    fn outcome(&self, context: &Context) -> Outcome {
        match context.signals.came() {
            Some(signal) if self.drain => Outcome::Interrupted(signal),
            _ => Outcome::Done,
        }
    }
}

/// What is told to whom, for as long as it is there.
struct Watch {
    metrics: Option<Observer>,
    _server: Option<Server>,
}

impl Watch {
    fn none() -> Self {
        Watch { metrics: None, _server: None }
    }

    /// Tells one more.
    fn observer(&self, other: Observer) -> Observer {
        let Some(metrics) = self.metrics.clone() else { return other };
        Arc::new(move |event| {
            metrics(event);
            other(event);
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("the project does not say which Kafka brokers to read from")]
    NoBrokers,
    #[error("the broker `embedded` is there only while `icestream demo` runs")]
    EmbeddedBroker,
    #[error("the project does not say which topics to read")]
    NoTopics,
    #[error("the project does not read the topic `{topic}`")]
    TopicNotRead { topic: String },
    #[error("there is no model of a table `{name}`")]
    UnknownModel { name: String, known: String },
    #[error("the project has no table `{name}`")]
    UnknownTable { name: String, known: String },
    #[error("`{flag}` is for silver tables, and `{table}` is a gold table")]
    NotSilver { flag: &'static str, table: TableName },
    #[error("cannot write the result to `{}`", path.display())]
    Result {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

impl Situation for RunError {
    fn kind(&self) -> Kind {
        Kind::Config
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            RunError::NoBrokers | RunError::EmbeddedBroker => {
                "set `source.kafka.brokers: \"host:9092\"` in `icestream.yaml`, or ICESTREAM_SOURCE__KAFKA__BROKERS"
                    .to_string()
            }
            RunError::NoTopics => "set `source.kafka.topics: [\"shop.public.*\"]` in `icestream.yaml`".to_string(),
            RunError::TopicNotRead { .. } => "check the name, and `source.kafka.topics`".to_string(),
            RunError::UnknownModel { known, .. } | RunError::UnknownTable { known, .. } => format!("there are {known}"),
            RunError::NotSilver { .. } => {
                "a gold table is computed anew by itself when its model or what it reads changes; leave it out"
                    .to_string()
            }
            RunError::Result { .. } => "check that the folder exists and that this process may write there".to_string(),
        })
    }
}

/// What a scheduler is told.
#[derive(Debug, Default, Serialize)]
struct Summary {
    #[serde(skip_serializing_if = "Option::is_none")]
    ingested: Option<Ingested>,
    #[serde(skip_serializing_if = "Option::is_none")]
    built: Option<Built>,
}

#[derive(Debug, Serialize)]
struct Ingested {
    rows: u64,
    rejected: u64,
    commits: u64,
    /// The next offset of each partition.
    offsets: std::collections::BTreeMap<String, i64>,
}

#[derive(Debug, Default, Serialize)]
struct Built {
    silver_merges: u64,
    silver_rows_written: u64,
    silver_rows_deleted: u64,
    /// Rows that went into quarantine, and events without a value for the key among them.
    silver_rows_quarantined: u64,
    silver_null_keys: u64,
    silver_rows_dropped: u64,
    gold_refreshes: u64,
    /// Gold tables that go by groups and were computed in full all the same, and why.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    gold_in_full: std::collections::BTreeMap<String, String>,
    /// Gold tables of which only changed groups were refreshed.
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    gold_groups: std::collections::BTreeMap<String, Groups>,
    /// What rules and audits found, of what was committed and of what was not.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    quality: Vec<Finding>,
}

#[derive(Debug, Default, Serialize)]
struct Groups {
    /// Groups whose rows followed from their old ones and the changes.
    from_changes: u64,
    /// Groups that were computed from the inputs.
    from_inputs: u64,
}

impl From<IngestReport> for Ingested {
    fn from(report: IngestReport) -> Self {
        Ingested {
            rows: report.rows,
            rejected: report.rejected,
            commits: report.commits,
            offsets: report.positions.into_iter().map(|(partition, next)| (partition.to_string(), next)).collect(),
        }
    }
}

pub async fn ingest(args: IngestArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let watch = args.reading.watch(&config, context)?;
    let lake = pipeline::open_lake(&config, context.clock.clone()).await?;
    let observer = watch.observer(pipeline::unobserved());
    let report = read(&config, &lake, &args.reading, &watch, observer, context).await?;
    let summary = Summary { ingested: Some(report.into()), built: None };
    tell(&summary, args.reading.result.as_deref(), context)?;
    Ok(args.reading.outcome(context))
}

pub async fn build(args: BuildArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let (extent, flag) = match (args.full, args.from) {
        (true, _) => (Extent::Everything, Some("--full")),
        (false, Some(from)) => (Extent::Since(from.time_us(&context.clock)), Some("--from")),
        (false, None) => (Extent::New, None),
    };
    let models = Models { extent, ..chosen(pipeline::models(&config)?, &args.tables)? };
    if let (Some(flag), Some(model)) = (flag.filter(|_| !args.tables.is_empty()), models.gold.first()) {
        return Err(RunError::NotSilver { flag, table: model.table.clone() }.into());
    }
    let lake = pipeline::open_lake(&config, context.clock.clone()).await?;
    let engine = pipeline::engine(&config)?;
    let tally = Tally::default();
    let built = pipeline::build(&lake, &engine, &models, &tally.observer()).await;
    conclude(built, Summary { ingested: None, built: Some(tally.built()) }, args.result.as_deref(), context)
}

/// Tells what was done, also where a rule or an audit is the reason that it was not all: a scheduler wants to know which.
fn conclude(
    built: Result<pipeline::BuildReport>,
    summary: Summary,
    result: Option<&Path>,
    context: &Context,
) -> Result<Outcome> {
    match built {
        Ok(_) => finish(&summary, result, context),
        Err(error) if error.kind() == Kind::Quality => {
            finish(&summary, result, context)?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}

pub async fn run(args: RunArgs, context: &Context) -> Result<Outcome> {
    let config = context.config()?;
    let models = pipeline::models(&config)?;
    let watch = args.reading.watch(&config, context)?;
    let lake = pipeline::open_lake(&config, context.clock.clone()).await?;
    let engine = pipeline::engine(&config)?;
    let tally = Tally::default();
    let observer = watch.observer(tally.observer());
    let reading = read(&config, &lake, &args.reading, &watch, observer.clone(), context);
    let report = match args.reading.drain {
        true => reading.await?,
        // A build that is given up in the middle leaves no trace: the next one does it.
        false => tokio::select! {
            ended = reading => ended?,
            error = build_for_ever(&lake, &engine, &models, &observer, config.build_every) => return Err(error),
        },
    };
    let ingested = Some(report.into());
    if context.signals.came().is_some() {
        // Whoever asked waits. What is in bronze is built by the next run.
        tell(&Summary { ingested, built: Some(tally.built()) }, args.reading.result.as_deref(), context)?;
        return Ok(args.reading.outcome(context));
    }
    let built = pipeline::build(&lake, &engine, &models, &observer).await;
    conclude(built, Summary { ingested, built: Some(tally.built()) }, args.reading.result.as_deref(), context)
}

/// Builds at intervals. Ends only with an error that trying again will not mend.
async fn build_for_ever(
    lake: &Lake,
    engine: &Engine,
    models: &Models,
    observer: &Observer,
    every: Duration,
) -> AnyError {
    loop {
        tokio::time::sleep(every).await;
        match pipeline::build(lake, engine, models, observer).await {
            Ok(_) => {}
            Err(error) if error.kind().is_retryable() => {
                tracing::warn!(%error, "tables were not built; trying again at the next interval");
            }
            // Bad data is no reason to stop taking in what comes, and what comes may mend it.
            Err(error) if error.kind() == Kind::Quality => {
                tracing::error!(%error, "a rule or an audit failed; trying again at the next interval");
            }
            Err(error) => return error,
        }
    }
}

/// Reads the project's topics into bronze until the goal is reached or a signal comes.
async fn read(
    config: &Config,
    lake: &Lake,
    args: &ReadingArgs,
    watch: &Watch,
    observer: Observer,
    context: &Context,
) -> Result<IngestReport> {
    let source = source(config, args.drain, watch.metrics.is_some())?;
    let route = |topic: &str| pipeline::route(config, topic);
    let triggers = pipeline::commit_triggers(config);
    let mut ingest = Ingest::start(lake, source, route, pipeline::dialect(config), triggers, observer).await?;
    let goal = if args.drain { Until::Reached(ingest.end().await?) } else { Until::Forever };
    let (tell, until) = watch::channel(goal);
    let _heed = context.signals.heed();
    let listening = async {
        context.signals.asked().await;
        tracing::info!("a signal came: committing what is read");
        // The receiver is there until reading ends.
        let _ = tell.send(Until::Now);
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        ended = ingest.run(until) => ended,
        never = listening => match never {},
    }
}

/// How often the Kafka client tells how far partitions go, in milliseconds.
const ENDS_EVERY_MS: &str = "5000";

/// What the project reads. A source whose lag is watched knows how far it goes.
fn source(config: &Config, drain: bool, is_watched: bool) -> Result<Box<dyn Source>> {
    if let Some(files) = pipeline::files_source(config)? {
        return Ok(Box::new(files));
    }
    let brokers = match &config.kafka.brokers {
        None => return Err(RunError::NoBrokers.into()),
        Some(Brokers::Embedded) => return Err(RunError::EmbeddedBroker.into()),
        Some(Brokers::At(brokers)) => brokers.clone(),
    };
    if config.kafka.topics.is_empty() {
        return Err(RunError::NoTopics.into());
    }
    let mut kafka = KafkaConfig {
        // A drain has an end to reach, whoever else reads.
        assignment: if drain { Assignment::Everything } else { Assignment::Group },
        ..pipeline::kafka_config(config, &brokers)
    };
    if is_watched {
        kafka.properties.entry(STATISTICS_EVERY.to_string()).or_insert_with(|| ENDS_EVERY_MS.to_string());
    }
    Ok(Box::new(KafkaSource::connect(kafka)?))
}

/// The models of the named tables, or all.
pub(super) fn chosen(models: Models, names: &[String]) -> Result<Models> {
    if names.is_empty() {
        return Ok(models);
    }
    let tables = || {
        let silver = models.silver.iter().map(|model| &model.table);
        silver.chain(models.gold.iter().map(|model| &model.table))
    };
    for name in names {
        if !tables().any(|table| table.name() == name || table.to_string() == *name) {
            let known: Vec<String> = tables().map(|table| format!("`{table}`")).collect();
            return Err(RunError::UnknownModel { name: name.clone(), known: known.join(", ") }.into());
        }
    }
    let is_named = |table: &TableName| names.iter().any(|name| table.name() == name || table.to_string() == *name);
    Ok(Models {
        silver: models.silver.into_iter().filter(|model| is_named(&model.table)).collect(),
        gold: models.gold.into_iter().filter(|model| is_named(&model.table)).collect(),
        extent: models.extent,
        audits: models.audits.into_iter().filter(|audit| audit.reads(is_named)).collect(),
        quality: models.quality,
    })
}

/// The tables that a person names, with or without their namespace; all of them when none is named.
pub(super) fn chosen_tables(known: Vec<TableName>, names: &[String]) -> Result<Vec<TableName>> {
    let is = |table: &TableName, name: &String| table.name() == name || table.to_string() == *name;
    if let Some(name) = names.iter().find(|name| !known.iter().any(|table| is(table, name))) {
        let known: Vec<String> = known.iter().map(|table| format!("`{table}`")).collect();
        let known = if known.is_empty() { "no tables yet".to_string() } else { known.join(", ") };
        return Err(RunError::UnknownTable { name: name.clone(), known }.into());
    }
    Ok(known.into_iter().filter(|table| names.is_empty() || names.iter().any(|name| is(table, name))).collect())
}

/// Counts what is built.
#[derive(Clone, Default)]
struct Tally(Arc<Mutex<Built>>);

impl Tally {
    fn observer(&self) -> Observer {
        let built = self.0.clone();
        Arc::new(move |event| {
            let mut built = built.lock().unwrap_or_else(PoisonError::into_inner);
            match event {
                Event::Merged(commit) => {
                    built.silver_merges += 1;
                    built.silver_rows_written += commit.rows_written;
                    built.silver_rows_deleted += commit.rows_deleted;
                    built.silver_rows_quarantined += commit.rows_quarantined;
                    built.silver_null_keys += commit.null_keys;
                    built.silver_rows_dropped += commit.rows_dropped;
                }
                Event::Refreshed(commit) => {
                    built.gold_refreshes += 1;
                    let table = commit.table.to_string();
                    match &commit.refreshed {
                        Refreshed::Full => {}
                        Refreshed::FullBecause(why) => drop(built.gold_in_full.insert(table, why.to_string())),
                        Refreshed::Groups { settled, computed, .. } => {
                            let groups = built.gold_groups.entry(table).or_default();
                            groups.from_changes += settled;
                            groups.from_inputs += computed;
                        }
                    }
                }
                Event::Checked(findings) => built.quality.extend(findings.iter().cloned()),
                _ => {}
            }
        })
    }

    fn built(&self) -> Built {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn finish(summary: &Summary, result: Option<&Path>, context: &Context) -> Result<Outcome> {
    tell(summary, result, context)?;
    Ok(Outcome::Done)
}

/// Prints a summary, and writes it to a file where one is named.
pub(super) fn tell(summary: &impl Serialize, result: Option<&Path>, context: &Context) -> Result<()> {
    // Numbers and strings always serialise.
    let text = serde_json::to_string_pretty(summary).unwrap_or_default() + "\n";
    if let Some(path) = result {
        write_result(path, summary)?;
    }
    context.stdout.print(&text)
}

/// Writes what `--result` asks for.
pub(super) fn write_result(path: &Path, summary: &impl Serialize) -> Result<()> {
    // Numbers and strings always serialise.
    let text = serde_json::to_string_pretty(summary).unwrap_or_default() + "\n";
    let failed = |source| RunError::Result { path: path.to_path_buf(), source };
    // Whoever waits for the file must not find half of it.
    let draft = path.with_extension("part");
    std::fs::write(&draft, &text).and_then(|()| std::fs::rename(&draft, path)).map_err(failed)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gold::{GoldCommit, WhyFull};

    #[test]
    fn the_summary_says_how_gold_tables_were_refreshed() {
        let tally = Tally::default();
        let observer = tally.observer();
        for (table, refreshed) in [
            ("gold.whole", Refreshed::Full),
            ("gold.first", Refreshed::FullBecause(WhyFull::First)),
            ("gold.carried", Refreshed::Groups { rows_deleted: 3, settled: 4, computed: 1 }),
            ("gold.carried", Refreshed::Groups { rows_deleted: 2, settled: 2, computed: 0 }),
        ] {
            let table = table.parse().unwrap();
            let inputs = std::collections::BTreeMap::new();
            let findings = Vec::new();
            observer(&Event::Refreshed(GoldCommit {
                table,
                snapshot_id: Some(1),
                inputs,
                rows: 5,
                refreshed,
                elapsed: Duration::ZERO,
                findings,
            }));
        }
        insta::assert_snapshot!(serde_json::to_string_pretty(&tally.built()).unwrap(), @r#"
        {
          "silver_merges": 0,
          "silver_rows_written": 0,
          "silver_rows_deleted": 0,
          "silver_rows_quarantined": 0,
          "silver_null_keys": 0,
          "silver_rows_dropped": 0,
          "gold_refreshes": 4,
          "gold_in_full": {
            "gold.first": "it is built for the first time"
          },
          "gold_groups": {
            "gold.carried": {
              "from_changes": 6,
              "from_inputs": 1
            }
          }
        }
        "#);
    }
}
