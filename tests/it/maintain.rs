//! Tables that are looked after while others write to them: nothing is lost or doubled, and what there is of files and
//! snapshots stays bounded.
//!
//! `ICESTREAM_SOAK_SECONDS` sets how long the writers go on, `ICESTREAM_SOAK_JSON` where the counts over time are
//! written, `ICESTREAM_SEED` which events there are.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use icestream::clock::Clock;
use icestream::config::{Config, MaintainConfig};
use icestream::decode::Format;
use icestream::demo::text_rows;
use icestream::engine::{self, Engine};
use icestream::ids::TableName;
use icestream::offsets::{Positions, TopicPartition};
use icestream::pipeline::maintain::{MaintainOptions, MaintainReport, Stage, Task, maintain};
use icestream::pipeline::{self, CommitTriggers, Event, Ingest, Models, Observer, Until, unobserved};
use icestream::source::{Assignment, EmbeddedBroker, EmbeddedProducer, KafkaConfig, KafkaSource};
use icestream::table::{At, Lake};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::sync::watch;

use crate::support;

const TOPIC: &str = "shop.public.orders";
const PARTITIONS: i32 = 2;
const EVENTS_PER_SECOND: u64 = 200;
const STATUSES: [&str; 5] = ["pending", "paid", "shipped", "delivered", "returned"];
const TABLES: [&str; 5] = [
    "shop_bronze.orders",
    "shop_silver.orders",
    "shop_silver.order_history",
    "shop_gold.by_status",
    "shop_gold.by_customer",
];

const FILES: [(&str, &str); 5] = [
    ("icestream.yaml", "name: shop\nsource: { kafka: { topics: [\"shop.public.*\"] } }\nmemory: 256MiB\n"),
    (
        "catalog/orders.yaml",
        "key: [id]\ncolumns:\n  - { name: id, type: int }\n  - { name: customer, type: int }\n  - { name: status, type: string }\n  \
         - { name: amount, type: long }\n",
    ),
    (
        "transforms/order_history.sql",
        "/* icestream\nfrom: orders\nkeys: [id]\nscd: 2\ntrack_history: [status]\n*/\nSELECT id, status FROM changes\n",
    ),
    (
        "sql/gold/by_status.sql",
        "/* icestream\nrefresh: incremental\ngroup_by: [status]\n*/\n\
         SELECT status, count(*) AS n, sum(amount) AS total FROM shop_silver.orders GROUP BY status\n",
    ),
    (
        "sql/gold/by_customer.sql",
        "SELECT customer, count(*) AS n, sum(amount) AS total FROM shop_silver.orders GROUP BY customer\n",
    ),
];

/// What maintenance aims at here: little of everything, so that there is always something to do.
const AIMS: MaintainConfig = MaintainConfig {
    target_bytes: 1 << 20,
    keep_snapshots_for: Duration::from_secs(10),
    keep_snapshots: 5,
    max_snapshots: 60,
    orphans_after: Duration::from_secs(3600),
};

struct Shop {
    lake: Lake,
    engine: Engine,
    models: Models,
    config: Config,
}

impl Shop {
    async fn open(folder: &Path) -> Shop {
        for (path, text) in FILES {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let config = Config::load(folder, &Default::default(), &[]).unwrap();
        let lake = pipeline::open_lake(&config, Clock::system()).await.unwrap();
        let (engine, models) = (pipeline::engine(&config).unwrap(), pipeline::models(&config).unwrap());
        Shop { lake, engine, models, config }
    }

    async fn maintain(&self, options: &MaintainOptions) -> MaintainReport {
        let names: Vec<TableName> = TABLES.map(|name| name.parse().unwrap()).into();
        let (report, ended) = maintain(&self.lake, &self.engine, &self.models, &names, options, &|_: &Stage| {}).await;
        ended.unwrap();
        report
    }

    async fn rows(&self, table: &str, sql: &str, columns: &[&str]) -> Vec<Vec<String>> {
        let name: TableName = table.parse().unwrap();
        let session = self.engine.session();
        let view = self.lake.table(&name).await.unwrap().view(At::Head).unwrap();
        engine::register(&session, &name, view).unwrap();
        let batches = engine::plan(&session, sql).await.unwrap().collect().await.unwrap();
        text_rows(&batches, columns).unwrap()
    }

    /// Every table, beside what was sent.
    async fn check(&self, sent: &Sent) {
        let partitions = self
            .rows(
                "shop_bronze.orders",
                "SELECT _topic_partition AS p, count(*) AS n, count(DISTINCT _offset) AS d, min(_offset) AS lo, \
                 max(_offset) AS hi FROM shop_bronze.orders GROUP BY 1",
                &["p", "n", "d", "lo", "hi"],
            )
            .await;
        let expected: Vec<Vec<String>> = sent
            .next
            .iter()
            .map(|(partition, next)| [*partition as i64, *next, *next, 0, next - 1].map(|n| n.to_string()).to_vec())
            .collect();
        assert_eq!(partitions, expected, "bronze does not hold every offset once");

        let orders = self
            .rows(
                "shop_silver.orders",
                "SELECT id, customer, status, amount FROM shop_silver.orders",
                &["id", "customer", "status", "amount"],
            )
            .await;
        let mut expected: Vec<Vec<String>> = sent
            .orders
            .iter()
            .map(|(id, of)| vec![id.to_string(), of.customer.to_string(), of.status.to_string(), of.amount.to_string()])
            .collect();
        expected.sort();
        assert_eq!(orders, expected, "silver is not what was sent");

        let current = self
            .rows(
                "shop_silver.order_history",
                "SELECT id, status FROM shop_silver.order_history WHERE _is_current",
                &["id", "status"],
            )
            .await;
        let mut expected: Vec<Vec<String>> =
            sent.orders.iter().map(|(id, of)| vec![id.to_string(), of.status.to_string()]).collect();
        expected.sort();
        assert_eq!(current, expected, "the history's current rows are not what was sent");
        let versions =
            self.rows("shop_silver.order_history", "SELECT count(*) AS n FROM shop_silver.order_history", &["n"]);
        assert_eq!(versions.await, [[sent.versions.to_string()]], "the history does not hold every version");

        let mut groups: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        let mut customers: BTreeMap<String, (i64, i64)> = BTreeMap::new();
        for of in sent.orders.values() {
            for (groups, name) in [(&mut groups, of.status.to_string()), (&mut customers, of.customer.to_string())] {
                let group = groups.entry(name).or_default();
                *group = (group.0 + 1, group.1 + of.amount);
            }
        }
        for (table, column, groups) in
            [("shop_gold.by_status", "status", groups), ("shop_gold.by_customer", "customer", customers)]
        {
            let found =
                self.rows(table, &format!("SELECT {column}, n, total FROM {table}"), &[column, "n", "total"]).await;
            let expected: Vec<Vec<String>> =
                groups.into_iter().map(|(name, (n, total))| vec![name, n.to_string(), total.to_string()]).collect();
            assert_eq!(found, expected, "{table} is not what silver comes to");
        }
    }

    /// What there is of every table, and of files below it.
    async fn counts(&self, seconds: u64) -> serde_json::Value {
        let mut tables = serde_json::Map::new();
        for name in TABLES {
            let Some(table) = self.lake.table_if_exists(&name.parse().unwrap()).await.unwrap() else { continue };
            let summary = table.summary();
            let manifests = table.view(At::Head).unwrap().manifest_counts().await;
            let listed: Vec<_> = self.lake.storage().list(table.location()).try_collect().await.unwrap_or_default();
            tables.insert(
                name.to_string(),
                json!({
                    "snapshots": summary.snapshots,
                    "data_files": summary.data_files,
                    "delete_files": summary.delete_files,
                    "rows": summary.records,
                    "bytes": summary.bytes,
                    "manifests": manifests.map_or(0, |(data, deletes)| data + deletes),
                    "files_on_disk": listed.len(),
                    "bytes_on_disk": listed.iter().map(|file| file.size).sum::<u64>(),
                }),
            );
        }
        json!({ "seconds": seconds, "tables": tables })
    }
}

/// What an order is.
#[derive(Debug, Clone, Copy)]
struct Order {
    customer: i32,
    status: &'static str,
    amount: i64,
}

/// What was sent, and what it comes to.
#[derive(Debug, Default)]
struct Sent {
    orders: BTreeMap<i32, Order>,
    /// The orders that are there, in no order.
    live: Vec<i32>,
    versions: u64,
    next: BTreeMap<i32, i64>,
    issued: i32,
    position: u64,
}

impl Sent {
    /// Makes up the next event: its partition, key and payload.
    fn event(&mut self, random: &mut SmallRng) -> (i32, String, String) {
        self.position += 1;
        let some = |random: &mut SmallRng| Order {
            customer: random.random_range(0..20),
            status: STATUSES[random.random_range(0..STATUSES.len())],
            amount: random.random_range(1..1000),
        };
        // There are never many more orders than these: what grows all the same, grows for want of upkeep.
        const ORDERS: usize = 2000;
        let dice = random.random_range(0..100);
        let place = random.random_range(0..self.live.len().max(1));
        let (id, op, order) = match self.live.get(place).copied() {
            Some(id) if dice < 70 => (id, "u", Some(some(random))),
            Some(id) if dice < 85 && self.live.len() > ORDERS => {
                self.live.swap_remove(place);
                (id, "d", None)
            }
            _ => {
                self.issued += 1;
                self.live.push(self.issued);
                (self.issued, "c", Some(some(random)))
            }
        };
        let before = match order {
            Some(order) => self.orders.insert(id, order),
            None => self.orders.remove(&id),
        };
        self.versions +=
            u64::from(order.is_some_and(|order| before.is_none_or(|before| before.status != order.status)));
        let row = |order: Order| {
            format!(
                r#"{{"id":{id},"customer":{},"status":"{}","amount":{}}}"#,
                order.customer, order.status, order.amount
            )
        };
        let (before, after) = match order {
            Some(order) => ("null".to_string(), row(order)),
            None => (row(before.unwrap()), "null".to_string()),
        };
        let position = self.position;
        let payload = format!(
            r#"{{"before":{before},"after":{after},"source":{{"connector":"postgresql","db":"shop","schema":"public","table":"orders","txId":{position},"ts_ms":{},"sequence":"[\"{position}\",\"{position}\"]","lsn":{position}}},"op":"{op}"}}"#,
            1_767_225_600_000 + position
        );
        let partition = id % PARTITIONS;
        *self.next.entry(partition).or_default() += 1;
        (partition, format!(r#"{{"id":{id}}}"#), payload)
    }
}

/// Sends events at their rate, or as fast as they are taken.
async fn send(producer: &EmbeddedProducer, sent: &Mutex<Sent>, random: &mut SmallRng, events: u64, rate: Option<u64>) {
    let started = Instant::now();
    for number in 0..events {
        let (partition, key, payload) = sent.lock().unwrap().event(random);
        let at = TopicPartition::new(TOPIC, partition);
        producer.send(&at, Some(key.as_bytes()), Some(payload.as_bytes()), 1_767_225_600_000).await.unwrap();
        if let Some(rate) = rate.filter(|rate| number % (rate / 20).max(1) == 0) {
            let due = Duration::from_millis(number * 1000 / rate);
            tokio::time::sleep(due.saturating_sub(started.elapsed())).await;
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Counts what a round of maintenance did.
fn note(done: &mut (u64, BTreeMap<&'static str, u64>), report: &MaintainReport) {
    done.0 += 1;
    for table in &report.tables {
        let compacted = table.compacted.clone().unwrap_or_default();
        let expired = table.expired.map_or(0, |expired| expired.snapshots);
        for (what, count) in [
            ("files stored anew", compacted.files_before),
            ("delete files put together", compacted.delete_files_before),
            ("conflicts", compacted.conflicts),
            ("commits", compacted.commits),
            ("bytes written", compacted.bytes_written),
            ("snapshots expired", expired),
        ] {
            *done.1.entry(what).or_default() += count;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn nothing_is_lost_or_doubled_while_tables_are_looked_after() {
    let seconds = number("ICESTREAM_SOAK_SECONDS").unwrap_or(20);
    let seed = number("ICESTREAM_SEED").unwrap_or_else(|| rand::random::<u32>().into());
    println!("ICESTREAM_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(folder.path()).await;
    let broker = EmbeddedBroker::start().unwrap();
    broker.create_topic(TOPIC, PARTITIONS).unwrap();
    let producer = broker.producer().unwrap();
    let durable = producer.durable();
    let commits = Arc::new(AtomicU64::new(0));
    let observer: Observer = {
        let commits = commits.clone();
        Arc::new(move |event| {
            let Event::Ingested(commit) = event else { return };
            let positions: Positions = commit
                .offsets
                .topics()
                .flat_map(|(topic, offsets)| {
                    offsets.next.iter().map(move |(partition, next)| (TopicPartition::new(topic, *partition), *next))
                })
                .collect();
            durable.reached(&positions);
            commits.fetch_add(1, Ordering::Relaxed);
        })
    };
    let source = KafkaSource::connect(KafkaConfig {
        brokers: broker.brokers().to_string(),
        group: "icestream-shop".to_string(),
        topics: vec!["shop.public.*".to_string()],
        assignment: Assignment::Everything,
        discover_every: Duration::from_secs(30),
        properties: Default::default(),
        msk_iam: None,
        queue_bytes: 8 << 20,
    })
    .unwrap();
    let triggers = CommitTriggers { every: Duration::from_secs(1), rows: 1_000_000, bytes: 64 << 20, memory: 64 << 20 };
    let route = |topic: &str| pipeline::route(&shop.config, topic);
    let ingest = Ingest::start(&shop.lake, Box::new(source), route, Format::DebeziumJson, triggers, observer);
    let ingest = ingest.await.unwrap();
    let (tell, until) = watch::channel(Until::Forever);
    let sent = Mutex::new(Sent::default());
    let is_over = AtomicBool::new(false);

    let selling = async {
        send(&producer, &sent, &mut random, EVENTS_PER_SECOND * seconds, Some(EVENTS_PER_SECOND)).await;
        let end = producer.flush().await.unwrap();
        tell.send(Until::Reached(end)).unwrap();
    };
    let reading = async {
        let report = ingest.run(until).await.unwrap();
        is_over.store(true, Ordering::Relaxed);
        report
    };
    let builds = AtomicU64::new(0);
    let building = async {
        while !is_over.load(Ordering::Relaxed) {
            pipeline::build(&shop.lake, &shop.engine, &shop.models, &unobserved()).await.unwrap();
            builds.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    let done = Mutex::new((0, BTreeMap::new()));
    let maintaining = async {
        let options = MaintainOptions { remove_orphans: true, ..MaintainOptions::new(AIMS) };
        while !is_over.load(Ordering::Relaxed) {
            let report = shop.maintain(&options).await;
            note(&mut done.lock().unwrap(), &report);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let samples = Mutex::new(Vec::new());
    let sampling = async {
        let started = Instant::now();
        while !is_over.load(Ordering::Relaxed) {
            let counts = shop.counts(started.elapsed().as_secs()).await;
            samples.lock().unwrap().push(counts);
            if let Ok(path) = std::env::var("ICESTREAM_SOAK_JSON") {
                let text = json!({ "seed": seed, "seconds": seconds, "samples": &*samples.lock().unwrap() });
                std::fs::write(path, text.to_string()).unwrap();
            }
            let due = started.elapsed() + Duration::from_secs((seconds / 60).clamp(1, 20));
            while started.elapsed() < due && !is_over.load(Ordering::Relaxed) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    };
    let (_, report, _, _, _) = tokio::join!(selling, reading, building, maintaining, sampling);
    let sent = sent.into_inner().unwrap();
    let (rounds, done) = done.into_inner().unwrap();
    println!(
        "{} events, {} bronze commits, {} builds, {rounds} rounds of maintenance: {done:?}",
        report.rows,
        commits.load(Ordering::Relaxed),
        builds.load(Ordering::Relaxed)
    );
    assert!(rounds > 1 && done["commits"] > 0, "nothing was put together");

    pipeline::build(&shop.lake, &shop.engine, &shop.models, &unobserved()).await.unwrap();
    shop.check(&sent).await;

    // What is left to do changes no row, and gives nobody anything to read.
    let last = shop.maintain(&MaintainOptions::new(AIMS)).await;
    let built = pipeline::build(&shop.lake, &shop.engine, &shop.models, &unobserved()).await.unwrap();
    assert_eq!(built.built, Vec::<TableName>::new(), "{last:?}");
    shop.check(&sent).await;
    let orphans: Vec<usize> = {
        let mut counts = Vec::new();
        for name in TABLES {
            counts.push(shop.lake.table(&name.parse().unwrap()).await.unwrap().orphans(i64::MAX).await.unwrap().len());
        }
        counts
    };
    println!("orphans that are left: {orphans:?}");
    let last = shop.counts(seconds).await;
    println!("{last}");
    check_flat(&samples.into_inner().unwrap());
}

/// In a long run, what is counted in the last third is what was counted in the one before. Full files of bronze and of the
/// history add up, and slowly.
fn check_flat(samples: &[serde_json::Value]) {
    const SECONDS_TO_SETTLE: u64 = 600;
    if samples.last().and_then(|last| last["seconds"].as_u64()).is_none_or(|seconds| seconds < SECONDS_TO_SETTLE) {
        return;
    }
    let most = |samples: &[serde_json::Value], table: &str, what: &str| {
        samples.iter().filter_map(|sample| sample["tables"][table][what].as_u64()).max().unwrap_or(0)
    };
    let (before, after) = samples[samples.len() / 3..].split_at(samples.len() / 3);
    for table in TABLES {
        for what in ["snapshots", "data_files", "delete_files", "manifests", "files_on_disk"] {
            let (before, after) = (most(before, table, what), most(after, table, what));
            assert!(after <= before + before / 2 + 10, "{what} of {table} grow: {before}, then {after}");
        }
    }
}

/// A table with files to put together, all of them of rows `(id, 1)`.
async fn many_files(world: &support::World, name: &str, files: i64) -> icestream::table::Table {
    let mut table = world.create(name).await;
    for file in 0..files {
        table = support::append(&table, (file * 10..file * 10 + 10).map(|id| (id, 1))).await.table;
    }
    table
}

fn engine_in(folder: &Path) -> Engine {
    let options = engine::EngineOptions { memory_bytes: 64 << 20, threads: 2, spill_dir: folder.join("spill") };
    Engine::new(&options).unwrap()
}

fn only(task: Task) -> MaintainOptions {
    MaintainOptions { tasks: BTreeSet::from([task]), ..MaintainOptions::new(AIMS) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_compaction_whose_files_change_is_planned_again() {
    let world = support::sqlite_world().await;
    let table = many_files(&world, "orders", 8).await;
    let engine = engine_in(world.keep.as_ref().unwrap().path());
    let models = Models::default();
    // Rows of the files are deleted when they have been chosen and not yet been read, three times.
    let deleted = AtomicU64::new(0);
    let runtime = tokio::runtime::Handle::current();
    let disturb = |stage: &Stage| {
        let number = deleted.load(Ordering::SeqCst) as i64;
        if stage.bytes_in_all == 0 || number == 3 {
            return;
        }
        deleted.fetch_add(1, Ordering::SeqCst);
        tokio::task::block_in_place(|| {
            runtime.block_on(async {
                let table = world.lake.table(table.name()).await.unwrap();
                support::delete(&table, &[number * 10, number * 10 + 1]).await;
                support::append(&table, [(1000 + number, 1)]).await;
            })
        });
    };
    let names = [table.name().clone()];
    let (report, ended) = maintain(&world.lake, &engine, &models, &names, &only(Task::Compact), &disturb).await;
    ended.unwrap();
    let compacted = report.tables[0].compacted.clone().unwrap();
    assert_eq!((compacted.conflicts, compacted.commits), (3, 1), "{compacted:?}");
    let table = world.lake.table(table.name()).await.unwrap();
    let expected: BTreeSet<i64> =
        (0..80).filter(|id| ![0, 1, 10, 11, 20, 21].contains(id)).chain([1000, 1001, 1002]).collect();
    assert_eq!(support::read(&table).await.into_keys().collect::<BTreeSet<_>>(), expected);
    assert_eq!(table.summary().data_files, Some(1));
    assert_eq!(table.summary().delete_files, Some(0));
    // What conflicts threw away is gone.
    assert_eq!(table.orphans(i64::MAX).await.unwrap(), vec![]);

    // Somebody who never stops is yielded to.
    let table = many_files(&world, "busy", 8).await;
    let number = AtomicU64::new(0);
    let disturb = |stage: &Stage| {
        let number = number.fetch_add(1, Ordering::SeqCst) as i64;
        if stage.bytes_in_all > 0 {
            tokio::task::block_in_place(|| {
                runtime.block_on(async {
                    support::delete(&world.lake.table(table.name()).await.unwrap(), &[number]).await;
                })
            });
        }
    };
    let names = [table.name().clone()];
    let (report, ended) = maintain(&world.lake, &engine, &models, &names, &only(Task::Compact), &disturb).await;
    ended.unwrap();
    let compacted = report.tables[0].compacted.clone().unwrap();
    assert_eq!((compacted.conflicts, compacted.commits, compacted.files_before), (4, 0, 0), "{compacted:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_ends_a_run_between_two_commits() {
    let world = support::sqlite_world().await;
    let table = world.create_with("orders", &["bucket(4, id)"], &[]).await;
    let mut at = table.clone();
    for file in 0..6 {
        at = support::append(&at, (file * 100..file * 100 + 100).map(|id| (id, 1))).await.table;
    }
    let engine = engine_in(world.keep.as_ref().unwrap().path());
    let names = [table.name().clone()];
    let run = async |bytes: Option<u64>, time: Option<Duration>, dry_run: bool| {
        // One group fills a commit.
        let aims = MaintainConfig { target_bytes: 256, ..AIMS };
        let mut options = MaintainOptions { bytes_budget: bytes, time_budget: time, dry_run, ..only(Task::Compact) };
        options.aims =
            MaintainConfig { target_bytes: if dry_run { 1 << 20 } else { aims.target_bytes.max(1 << 20) }, ..aims };
        let models = Models::default();
        let (report, ended) = maintain(&world.lake, &engine, &models, &names, &options, &|_: &Stage| {}).await;
        ended.unwrap();
        report
    };
    let before = world.lake.table(table.name()).await.unwrap().snapshot_id();
    let report = run(None, None, true).await;
    assert_eq!(report.tables[0].compacted.as_ref().unwrap().files_before, 24, "{report:?}");
    let report = run(None, Some(Duration::ZERO), false).await;
    assert_eq!(report.not_reached, ["shop.orders"]);
    let report = run(Some(0), None, false).await;
    assert_eq!(report.tables[0].compacted.as_ref().unwrap().files_left, 24, "{report:?}");
    assert_eq!(world.lake.table(table.name()).await.unwrap().snapshot_id(), before);
    let report = run(Some(1), None, false).await;
    assert_eq!(report.tables[0].compacted.as_ref().unwrap().files_before, 24, "{report:?}");
    let table = world.lake.table(table.name()).await.unwrap();
    assert_eq!(table.summary().data_files, Some(4));
    assert_eq!(support::read(&table).await.len(), 600);
}

#[cfg(feature = "failpoints")]
mod killed {
    use std::fs::File;
    use std::process::{Command, Stdio};

    use super::*;

    const CHILD: &str = "ICESTREAM_TEST_MAINTAINED_FOLDER";
    const STOP_AT: &str = "ICESTREAM_TEST_MAINTAINED_STOP_AT";
    const TABLE: &str = "shop.orders";

    async fn maintain_in(folder: &Path) -> MaintainReport {
        let lake = support::sqlite_lake(folder).await;
        let aims = MaintainConfig { keep_snapshots_for: Duration::ZERO, keep_snapshots: 1, ..AIMS };
        let names = [TABLE.parse().unwrap()];
        let options = MaintainOptions::new(aims);
        let engine = engine_in(folder);
        let (report, ended) = maintain(&lake, &engine, &Models::default(), &names, &options, &|_: &Stage| {}).await;
        ended.unwrap();
        report
    }

    /// Not a test of its own: the body of the child process.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn child() {
        let Ok(folder) = std::env::var(CHILD) else { return };
        let reached = Path::new(&folder).join("reached");
        fail::cfg_callback(std::env::var(STOP_AT).unwrap(), move || {
            File::create(&reached).unwrap();
            loop {
                std::thread::park();
            }
        })
        .unwrap();
        maintain_in(Path::new(&folder)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn maintenance_that_is_killed_anywhere_leaves_the_rows_as_they_were() {
        for step in [
            "maintain-after-files",
            "commit-after-manifests",
            "commit-after-manifest-list",
            "commit-before-swap",
            "commit-after-metadata",
            "commit-after-swap",
            "expire-before-files",
        ] {
            let folder = tempfile::tempdir().unwrap();
            let world = support::World {
                lake: support::sqlite_lake(folder.path()).await,
                namespace: "shop".into(),
                keep: None,
            };
            let table = many_files(&world, "orders", 8).await;
            let mut table = support::delete(&table, &[5, 55]).await.table;
            let before = support::read(&table).await;

            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--exact", "maintain::killed::child", "--nocapture"]);
            command.env(CHILD, folder.path()).env(STOP_AT, step).stdout(Stdio::null()).stderr(Stdio::null());
            let mut child = command.spawn().unwrap();
            let started = Instant::now();
            while !folder.path().join("reached").exists() {
                assert!(child.try_wait().unwrap().is_none(), "{step}: the child ended by itself");
                assert!(started.elapsed() < Duration::from_secs(60), "{step}: the child did not get there");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            child.kill().unwrap();
            child.wait().unwrap();

            table.refresh().await.unwrap();
            assert_eq!(support::read(&table).await, before, "{step}");
            // The next run does the rest, and what the killed one has left can go.
            maintain_in(folder.path()).await;
            table.refresh().await.unwrap();
            let orphans = table.remove_orphans(i64::MAX).await.unwrap();
            assert!(!orphans.is_empty() || step == "commit-after-swap", "{step}");
            assert_eq!(support::read(&table).await, before, "{step}");
            let summary = table.summary();
            assert_eq!((summary.data_files, summary.delete_files, summary.snapshots), (Some(1), Some(0), 1), "{step}");
        }
    }
}
