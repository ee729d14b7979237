//! The demo's run: the shop sends, the real stages read, and what they made is compared with what the shop did.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arrow::array::RecordBatch;
use serde::Serialize;
use tokio::sync::{Notify, watch};

use super::{Shop, Table, Truth, TruthError, text_rows};
use crate::config::{CatalogConfig, Config, Namespaces};
use crate::decode::Format;
use crate::engine::{self, Engine};
use crate::error::{Error as AnyError, Kind, Result, Situation};
use crate::ids::TableName;
use crate::offsets::{Positions, TopicPartition};
use crate::pipeline::{self, CommitTriggers, Event, Ingest, Models, Observer, Until};
use crate::quality::FINDINGS_TABLE;
use crate::source::{Assignment, EmbeddedBroker, EmbeddedProducer, KafkaConfig, KafkaSource};
use crate::table::{At, Lake};

/// The same shop every time, so that two runs can be compared.
const SEED: u64 = 42;
/// 2026-01-01T00:00:00Z.
const START_US: i64 = 1_767_225_600_000_000;

/// The embedded broker keeps little, and the shop waits for what is not durable yet: commit often.
const TRIGGERS: CommitTriggers =
    CommitTriggers { every: Duration::from_millis(250), rows: 50_000, bytes: 16 << 20, memory: 256 << 20 };

/// The sample project, for folders that have none. The settings make a folder a project, so they come last: what was cut
/// short is taken up again.
const SAMPLE: [(&str, &str); 19] = [
    ("catalog/customers.yaml", include_str!("../../catalog/customers.yaml")),
    ("catalog/order_items.yaml", include_str!("../../catalog/order_items.yaml")),
    ("catalog/orders.yaml", include_str!("../../catalog/orders.yaml")),
    ("catalog/products.yaml", include_str!("../../catalog/products.yaml")),
    ("transforms/customers.sql", include_str!("../../transforms/customers.sql")),
    ("transforms/order_items.sql", include_str!("../../transforms/order_items.sql")),
    ("transforms/order_status_history.sql", include_str!("../../transforms/order_status_history.sql")),
    ("transforms/orders.sql", include_str!("../../transforms/orders.sql")),
    ("transforms/products.sql", include_str!("../../transforms/products.sql")),
    ("transforms/product_price_history.sql", include_str!("../../transforms/product_price_history.sql")),
    ("sql/audits/revenue_adds_up.sql", include_str!("../../sql/audits/revenue_adds_up.sql")),
    ("sql/gold/customer_value.sql", include_str!("../../sql/gold/customer_value.sql")),
    ("sql/gold/daily_summary.sql", include_str!("../../sql/gold/daily_summary.sql")),
    ("sql/gold/inventory.sql", include_str!("../../sql/gold/inventory.sql")),
    ("sql/gold/order_details.sql", include_str!("../../sql/gold/order_details.sql")),
    ("sql/gold/product_popularity.sql", include_str!("../../sql/gold/product_popularity.sql")),
    ("sql/gold/revenue_per_day.sql", include_str!("../../sql/gold/revenue_per_day.sql")),
    ("sql/gold/sales_trends.sql", include_str!("../../sql/gold/sales_trends.sql")),
    ("icestream.yaml", include_str!("../../icestream.yaml")),
];

/// The tables of the demo's lake.
const CATALOG: &str = "catalog.db";

/// Says that a lake was made by the demo and may be made anew by it.
const LAKE_MARK: &str = ".made-by-demo";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("`{}` is no folder", folder.display())]
    NoFolder { folder: PathBuf },

    #[error("`{}` is the folder of another project, `{name}`", folder.display())]
    OtherProject { folder: PathBuf, name: String },

    #[error("`{}` holds a lake that the demo did not make", lake.display())]
    OtherLake { lake: PathBuf },

    #[error("the demo needs the sample project's settings: {problem}")]
    Settings { problem: String },

    #[error("cannot write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },

    #[error("the rows of `{table}` cannot be compared")]
    Compare {
        table: TableName,
        #[source]
        source: TruthError,
    },

    #[error("a part of the demo ended early: {problem}")]
    Ended { problem: String },
}

impl Situation for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::NoFolder { .. }
            | Error::OtherProject { .. }
            | Error::OtherLake { .. }
            | Error::Settings { .. }
            | Error::Write { .. } => Kind::Config,
            Error::Compare { .. } | Error::Ended { .. } => Kind::Bug,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::NoFolder { .. } | Error::OtherProject { .. } => {
                Some("give the demo a folder of its own with `--dir`".to_string())
            }
            Error::OtherLake { .. } => {
                Some("give the demo a folder of its own with `--dir`, or move that lake away".to_string())
            }
            Error::Settings { .. } => Some("run it with `--dir` in an empty folder".to_string()),
            Error::Write { .. } => Some("check that this process may write there".to_string()),
            _ => None,
        }
    }
}

/// How far a demo has come.
#[derive(Debug, Default)]
pub struct Progress {
    pub sent: AtomicU64,
    pub ingested: AtomicU64,
    pub merges: AtomicU64,
    pub refreshes: AtomicU64,
}

/// What a demo made, and whether it is what the shop did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub events: u64,
    pub records: u64,
    pub rejected: u64,
    pub bronze_commits: u64,
    pub silver_merges: u64,
    pub gold_refreshes: u64,
    pub seconds: f64,
    pub tables: Vec<Comparison>,
    pub equal: bool,
}

/// One table beside the truth.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub table: String,
    pub rows: usize,
    pub expected_rows: usize,
    pub equal: bool,
    /// The first row that only one side has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<String>,
}

/// Makes the folder a sample project, unless it is a project already. Nothing is written next to a lake of somebody
/// else's.
pub fn prepare(folder: &Path) -> Result<()> {
    if folder.exists() && !folder.is_dir() {
        return Err(Error::NoFolder { folder: folder.to_path_buf() }.into());
    }
    if !folder.join("icestream.yaml").exists() {
        let lake = folder.join("lake");
        check_lake(&lake)?;
        // Before there is a project that somebody could build: what a build makes there is the demo's as well.
        leave_mark(&lake)?;
        for (path, text) in SAMPLE {
            let path = folder.join(path);
            if !path.exists() {
                write_whole(&path, text)?;
            }
        }
    }
    Ok(())
}

/// Empties the lake for a new run.
pub fn fresh_lake(config: &Config) -> Result<()> {
    if config.name != "shop" {
        return Err(Error::OtherProject { folder: config.project_dir.clone(), name: config.name.clone() }.into());
    }
    let lake = config.project_dir.join("lake");
    check_settings(config, &lake)?;
    check_lake(&lake)?;
    let mark = lake.join(LAKE_MARK);
    if lake.exists() {
        // Killed anywhere, it leaves no table without its files: the catalog goes first. The mark stays to the end, so that
        // the next demo takes it up again.
        let entries = std::fs::read_dir(&lake).map_err(|source| Error::Write { path: lake.clone(), source })?;
        let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort_by_key(|path| *path != lake.join(CATALOG));
        for path in paths.into_iter().filter(|path| *path != mark) {
            let removed = if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            removed.map_err(|source| Error::Write { path, source })?;
        }
    }
    leave_mark(&lake)
}

fn leave_mark(lake: &Path) -> Result<()> {
    write(&lake.join(LAKE_MARK), "The next `icestream demo` in this folder replaces this lake.\n")
}

/// The demo replaces its lake and knows its tables by name, so both must be where the sample project has them.
fn check_settings(config: &Config, lake: &Path) -> Result<()> {
    let problem = |problem: String| Err(Error::Settings { problem }.into());
    let expected = format!("file://{}", lake.join("warehouse").display());
    if config.warehouse != expected {
        return problem(format!("the warehouse is `{}` and not `lake/warehouse`", config.warehouse));
    }
    if config.catalog != (CatalogConfig::Sqlite { path: lake.join(CATALOG) }) {
        return problem("the catalog is not the SQLite file `lake/catalog.db`".to_string());
    }
    let Namespaces { bronze, silver, gold } = &config.namespaces;
    if [bronze, silver, gold] != ["shop_bronze", "shop_silver", "shop_gold"] {
        return problem("the namespaces are not `shop_bronze`, `shop_silver` and `shop_gold`".to_string());
    }
    if let Some(table) = Table::ALL.iter().find(|table| !config.reads_topic(table.topic())) {
        return problem(format!("no pattern of `source.kafka.topics` matches `{}`", table.topic()));
    }
    let models = pipeline::models(config)?;
    let made: BTreeSet<String> = models
        .silver
        .iter()
        .map(|model| &model.table)
        .chain(models.gold.iter().map(|model| &model.table))
        .cloned()
        .chain(models.silver.iter().filter(|model| model.quarantines()).map(|model| model.quarantine()))
        .map(|table| table.to_string())
        .collect();
    match Truth::TABLES
        .iter()
        .chain(&Truth::HISTORIES)
        .chain(&Truth::QUARANTINES)
        .map(|(namespace, name)| format!("{namespace}.{name}"))
        .find(|table| !made.contains(table))
    {
        Some(table) => problem(format!("nothing makes table `{table}`")),
        None => Ok(()),
    }
}

/// A lake may be replaced when the demo made it, or when there is nothing in it.
fn check_lake(lake: &Path) -> Result<()> {
    let is_empty = std::fs::read_dir(lake).is_ok_and(|mut entries| entries.next().is_none());
    if lake.exists() && !is_empty && !lake.join(LAKE_MARK).exists() {
        return Err(Error::OtherLake { lake: lake.to_path_buf() }.into());
    }
    Ok(())
}

/// A file that is there is there as a whole, also when the process is killed meanwhile.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let draft = path.with_extension("part");
    let written = put(&draft, text).and_then(|()| std::fs::rename(&draft, path));
    written.map_err(|source| Error::Write { path: path.to_path_buf(), source }.into())
}

fn write(path: &Path, text: &str) -> Result<()> {
    put(path, text).map_err(|source| Error::Write { path: path.to_path_buf(), source }.into())
}

fn put(path: &Path, text: &str) -> std::io::Result<()> {
    match path.parent() {
        Some(folder) => std::fs::create_dir_all(folder).and_then(|()| std::fs::write(path, text)),
        None => std::fs::write(path, text),
    }
}

/// Runs the shop for so many events through the whole way of the data, and compares.
pub async fn run(
    lake: &Lake,
    engine: &Engine,
    config: &Config,
    events: u64,
    progress: Arc<Progress>,
) -> Result<Report> {
    let started = tokio::time::Instant::now();
    let models = pipeline::models(config)?;
    let broker = EmbeddedBroker::start()?;
    for table in Table::ALL {
        broker.create_topic(table.topic(), table.partitions())?;
    }
    let producer = broker.producer()?;
    let durable = producer.durable();
    let committed = Arc::new(Notify::new());
    let counts = Arc::new(Counts::default());
    let observer: Observer = {
        let (progress, committed, counts) = (progress.clone(), committed.clone(), counts.clone());
        Arc::new(move |event| match event {
            Event::Ingested(commit) => {
                let positions: Positions = commit
                    .offsets
                    .topics()
                    .flat_map(|(topic, offsets)| {
                        offsets
                            .next
                            .iter()
                            .map(move |(partition, next)| (TopicPartition::new(topic, *partition), *next))
                    })
                    .collect();
                durable.reached(&positions);
                progress.ingested.fetch_add(commit.rows, Ordering::Relaxed);
                counts.commits.fetch_add(1, Ordering::Relaxed);
                committed.notify_one();
            }
            Event::Merged(_) => drop(progress.merges.fetch_add(1, Ordering::Relaxed)),
            Event::Refreshed(_) => drop(progress.refreshes.fetch_add(1, Ordering::Relaxed)),
            _ => {}
        })
    };
    let source = KafkaSource::connect(KafkaConfig {
        brokers: broker.brokers().to_string(),
        group: config.kafka.group.clone(),
        topics: config.kafka.topics.iter().map(|pattern| pattern.as_str().to_string()).collect(),
        assignment: Assignment::Everything,
        discover_every: config.kafka.discover_every,
        properties: Default::default(),
        msk_iam: None,
        queue_bytes: 32 << 20,
    })?;
    let route = |topic: &str| pipeline::route(config, topic);
    let ingest = Ingest::start(lake, Box::new(source), route, Format::DebeziumJson, TRIGGERS, observer.clone()).await?;
    let (tell, until) = watch::channel(Until::Forever);

    let selling = sell(producer, events, progress.clone());
    let selling = async {
        let (shop, end) = selling.await?;
        // The receiver is there until ingestion ends.
        let _ = tell.send(Until::Reached(end));
        Ok::<Shop, AnyError>(shop)
    };
    let building = build_while(lake, engine, &models, &observer, &committed);
    let reading = async {
        let ended = ingest.run(until).await;
        committed.notify_one();
        ended
    };
    // Building goes along with reading and is given up in the middle when reading is done: the pass after it does the
    // rest, as it would after a crash.
    let reading_and_building = async {
        tokio::select! {
            ended = reading => ended,
            error = building => Err(error),
        }
    };
    let (shop, ingested) = tokio::try_join!(selling, reading_and_building)?;
    let truth = shop.truth();
    pipeline::build(lake, engine, &models, &observer).await?;

    let tables = compare(lake, engine, config, truth).await?;
    let equal = tables.iter().all(|table| table.equal) && ingested.rejected == truth.rejected();
    Ok(Report {
        events,
        records: truth.produced().values().sum(),
        rejected: ingested.rejected,
        bronze_commits: counts.commits.load(Ordering::Relaxed),
        silver_merges: progress.merges.load(Ordering::Relaxed),
        gold_refreshes: progress.refreshes.load(Ordering::Relaxed),
        seconds: started.elapsed().as_secs_f64(),
        tables,
        equal,
    })
}

#[derive(Debug, Default)]
struct Counts {
    commits: AtomicU64,
}

/// Sends the whole life of the shop. Gives the shop, which knows what is true now, and the end of every partition.
async fn sell(producer: EmbeddedProducer, events: u64, progress: Arc<Progress>) -> Result<(Shop, Positions)> {
    let mut shop = Shop::new(SEED, START_US, events);
    let mut records = Vec::new();
    while shop.next_transaction(&mut records) {
        for record in &records {
            let to = TopicPartition::new(record.topic(), record.partition);
            producer.send(&to, record.key.as_deref(), record.payload.as_deref(), record.timestamp_ms).await?;
        }
        progress.sent.store(shop.emitted(), Ordering::Relaxed);
        // The generator never waits by itself; let the others have the core.
        tokio::task::yield_now().await;
    }
    let end = producer.flush().await?;
    Ok((shop, end))
}

/// Builds silver and gold again and again, whenever bronze moved. Ends only with an error.
async fn build_while(
    lake: &Lake,
    engine: &Engine,
    models: &Models,
    observer: &Observer,
    committed: &Notify,
) -> AnyError {
    const PAUSE: Duration = Duration::from_secs(1);
    loop {
        committed.notified().await;
        tokio::time::sleep(PAUSE).await;
        if let Err(error) = pipeline::build(lake, engine, models, observer).await {
            return error;
        }
    }
}

async fn compare(lake: &Lake, engine: &Engine, config: &Config, truth: &Truth) -> Result<Vec<Comparison>> {
    let mut comparisons = Vec::new();
    for table in Table::ALL {
        comparisons.push(compare_bronze(lake, engine, config, truth, table).await?);
    }
    for (namespace, name) in Truth::TABLES.into_iter().chain(Truth::HISTORIES).chain(Truth::QUARANTINES) {
        let Some(expected) = truth.table(namespace, name) else { continue };
        let columns: Vec<String> = expected.columns.iter().map(|column| format!("\"{column}\"")).collect();
        let table = TableName::new(namespace, name).map_err(crate::table::Error::from)?;
        let sql = format!("SELECT {} FROM {table}", columns.join(", "));
        let batches = rows(lake, engine, &table, &sql).await?;
        let columns: Vec<&str> = expected.columns.iter().map(AsRef::as_ref).collect();
        let found = text_rows(&batches, &columns).map_err(|source| Error::Compare { table: table.clone(), source })?;
        comparisons.push(beside(table.to_string(), &found, &expected.rows));
    }
    comparisons.push(compare_findings(lake, engine, config, truth).await?);
    Ok(comparisons)
}

/// Of every rule about single rows that some row breaks, the table of findings must say so, and of none that no row ever
/// broke. What a merge never came by, because it was mended before, is not in it.
async fn compare_findings(lake: &Lake, engine: &Engine, config: &Config, truth: &Truth) -> Result<Comparison> {
    let name = TableName::new(&config.namespaces.gold, FINDINGS_TABLE).map_err(crate::table::Error::from)?;
    let (broken, ever_broken) = (truth.broken_rules(), truth.rules_ever_broken());
    let mut found = Vec::new();
    // There is no such table where nothing was ever asked.
    if lake.table_if_exists(&name).await?.is_some() {
        let of_rows = "kind IN ('that', 'not_null', 'accepted_values')";
        let sql = format!("SELECT DISTINCT table_name, rule FROM {name} WHERE NOT passed AND {of_rows}");
        let batches = rows(lake, engine, &name, &sql).await?;
        found = text_rows(&batches, &["table_name", "rule"])
            .map_err(|source| Error::Compare { table: name.clone(), source })?;
    }
    found.retain(|rule| broken.contains(rule) || !ever_broken.contains(rule));
    Ok(beside(name.to_string(), &found, &broken))
}

/// Bronze must hold a row for every offset that carries one, each once.
async fn compare_bronze(
    lake: &Lake,
    engine: &Engine,
    config: &Config,
    truth: &Truth,
    table: Table,
) -> Result<Comparison> {
    let name = TableName::new(&config.namespaces.bronze, table.name()).map_err(crate::table::Error::from)?;
    let sql = format!(
        "SELECT _topic_partition AS partition, count(*) AS rows, count(DISTINCT _offset) AS offsets FROM {name} GROUP BY _topic_partition"
    );
    let batches = rows(lake, engine, &name, &sql).await?;
    let found = text_rows(&batches, &["partition", "rows", "offsets"])
        .map_err(|source| Error::Compare { table: name.clone(), source })?;
    let mut expected: Vec<Vec<String>> = truth
        .bronze()
        .iter()
        .filter(|((of, _), rows)| *of == table && **rows > 0)
        .map(|((_, partition), rows)| vec![partition.to_string(), rows.to_string(), rows.to_string()])
        .collect();
    expected.sort();
    let mut comparison = beside(name.to_string(), &found, &expected);
    let total = |rows: &[Vec<String>]| rows.iter().filter_map(|row| row[1].parse::<usize>().ok()).sum();
    (comparison.rows, comparison.expected_rows) = (total(&found), total(&expected));
    Ok(comparison)
}

async fn rows(lake: &Lake, engine: &Engine, table: &TableName, sql: &str) -> Result<Vec<RecordBatch>> {
    let session = engine.session();
    engine::register(&session, table, lake.table(table).await?.view(At::Head)?)?;
    let frame = engine::plan(&session, sql).await?;
    Ok(frame.collect().await.map_err(engine::Error::from)?)
}

fn beside(table: String, found: &[Vec<String>], expected: &[Vec<String>]) -> Comparison {
    let equal = found == expected;
    let difference = (!equal).then(|| {
        let (ours, theirs): (BTreeSet<_>, BTreeSet<_>) = (found.iter().collect(), expected.iter().collect());
        if let Some(row) = ours.difference(&theirs).next() {
            return format!("only in the table: {}", row.join(", "));
        }
        match theirs.difference(&ours).next() {
            Some(row) => format!("only in the shop: {}", row.join(", ")),
            None => "rows that are there more than once".to_string(),
        }
    });
    Comparison { table, rows: found.len(), expected_rows: expected.len(), equal, difference }
}
