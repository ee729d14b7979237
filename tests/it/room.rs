//! What ingestion holds in memory has a bound, however many tables there are, and a table that is slow has only its part.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use iceberg::{TableRequirement, TableUpdate};
use icestream::change::RawRecord;
use icestream::clock::Clock;
use icestream::decode::Format;
use icestream::evolution::Evolution;
use icestream::ids::TableName;
use icestream::offsets::{Positions, TopicPartition};
use icestream::pipeline::{CommitTriggers, Event, Ingest, IngestReport, Observer, Route, Until};
use icestream::source::{Error, FetchLimits, Fetched, Source, Start};
use icestream::table::catalog::sqlite::SqliteCatalog;
use icestream::table::catalog::{Catalog, Head, NewTable, Swap};
use icestream::table::storage::{Storage, StorageOptions};
use icestream::table::{Error as TableError, Lake};
use rand::distr::Alphanumeric;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::{Notify, watch};

const MEMORY: usize = 32 << 20;

/// What a record has in bytes, about.
const RECORD: usize = 1_000;

/// A log of one partition for each topic, dealt out in turns.
struct Topics {
    ends: BTreeMap<TopicPartition, i64>,
    next: BTreeMap<TopicPartition, i64>,
    held: BTreeSet<TopicPartition>,
    /// Values that are as large in a file.
    noise: String,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    given: AtomicU64,
    committed: AtomicU64,
    /// The most that was given and not committed.
    most: AtomicU64,
    pauses: AtomicU64,
}

impl Counts {
    fn give(&self, records: usize) {
        let given = self.given.fetch_add(records as u64, Ordering::SeqCst) + records as u64;
        self.most.fetch_max(given - self.committed.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

#[async_trait]
impl Source for Topics {
    async fn partitions(&mut self) -> Result<Vec<TopicPartition>, Error> {
        Ok(self.ends.keys().cloned().collect())
    }

    async fn assign(&mut self, starts: &BTreeMap<TopicPartition, Start>) -> Result<Positions, Error> {
        let position = |(at, start): (&TopicPartition, &Start)| {
            let next = if let Start::At { next, .. } = start { *next } else { 0 };
            (at.clone(), next)
        };
        let positions: Positions = starts.iter().map(position).collect();
        self.next.extend(positions.clone());
        Ok(positions)
    }

    async fn fetch(&mut self, limits: FetchLimits) -> Result<Fetched, Error> {
        let mut fetched = Fetched::default();
        let each = limits.records.min(limits.bytes / RECORD) / self.next.len();
        for (at, next) in self.next.iter_mut().filter(|(at, _)| !self.held.contains(*at)) {
            let to = self.ends[at].min(*next + each.max(1) as i64);
            if *next == to {
                continue;
            }
            for offset in *next..to {
                let filling = &self.noise[offset as usize * RECORD % (self.noise.len() - RECORD)..][..RECORD - 50];
                let payload = format!(r#"{{"op":"c","after":{{"id":{offset},"filling":"{filling}"}}}}"#);
                fetched.records.push(RawRecord {
                    topic: at.topic.clone(),
                    partition: at.partition,
                    offset,
                    timestamp_ms: None,
                    key: Some(Bytes::from(format!(r#"{{"id":{offset}}}"#))),
                    payload: Some(Bytes::from(payload)),
                });
            }
            *next = to;
            fetched.positions.insert(at.clone(), to);
        }
        if fetched.records.is_empty() {
            tokio::time::sleep(limits.wait).await;
        }
        self.counts.give(fetched.records.len());
        Ok(fetched)
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.counts.pauses.fetch_add(1, Ordering::SeqCst);
        self.held.extend(partitions.iter().cloned());
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<(), Error> {
        self.held.retain(|at| !partitions.contains(at));
        Ok(())
    }

    async fn end_offsets(&mut self) -> Result<Positions, Error> {
        Ok(self.ends.clone())
    }

    async fn durable(&mut self, _: &Positions) {}
}

/// A catalog that leaves commits of one table waiting.
#[derive(Debug)]
struct Stuck {
    catalog: SqliteCatalog,
    table: &'static str,
    is_free: AtomicBool,
    freed: Notify,
}

impl Stuck {
    fn free(&self) {
        self.is_free.store(true, Ordering::SeqCst);
        self.freed.notify_waiters();
    }
}

#[async_trait]
impl Catalog for Stuck {
    fn describe(&self) -> String {
        self.catalog.describe()
    }

    async fn namespaces(&self) -> Result<Vec<String>, TableError> {
        self.catalog.namespaces().await
    }

    async fn create_namespace(&self, namespace: &str) -> Result<(), TableError> {
        self.catalog.create_namespace(namespace).await
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<TableName>, TableError> {
        self.catalog.tables(namespace).await
    }

    async fn head(&self, table: &TableName, known: Option<&Head>) -> Result<Head, TableError> {
        self.catalog.head(table, known).await
    }

    async fn create(&self, new: NewTable) -> Result<Head, TableError> {
        self.catalog.create(new).await
    }

    async fn swap(
        &self,
        base: &Head,
        requirements: &[TableRequirement],
        updates: &[TableUpdate],
    ) -> Result<Head, Swap> {
        while base.table.name() == self.table && !self.is_free.load(Ordering::SeqCst) {
            let _ = tokio::time::timeout(Duration::from_millis(20), self.freed.notified()).await;
        }
        self.catalog.swap(base, requirements, updates).await
    }

    async fn drop_table(&self, table: &TableName) -> Result<(), TableError> {
        self.catalog.drop_table(table).await
    }
}

/// Ingests so many records of each topic, and tells of each commit.
async fn ingest(
    topics: &[(&str, i64)],
    stuck: &'static str,
    every: Duration,
    counts: &Arc<Counts>,
    told: impl Fn(&Stuck, &str, u64) + Send + Sync + 'static,
) -> IngestReport {
    let folder = tempfile::tempdir().unwrap();
    let storage = Storage::new(StorageOptions::default()).unwrap();
    let warehouse = format!("file://{}/warehouse", folder.path().display());
    let catalog =
        SqliteCatalog::open("test", folder.path().join("catalog.db"), warehouse, storage.clone()).await.unwrap();
    let catalog = Arc::new(Stuck { catalog, table: stuck, is_free: AtomicBool::new(false), freed: Notify::new() });
    let lake = Lake::new(catalog.clone(), storage, Clock::system());
    let ends: BTreeMap<TopicPartition, i64> =
        topics.iter().map(|(topic, records)| (TopicPartition::new(*topic, 0), *records)).collect();
    let noise = SmallRng::seed_from_u64(1).sample_iter(&Alphanumeric).take(4 << 20).map(char::from).collect();
    let (next, held) = (BTreeMap::new(), BTreeSet::new());
    let source = Topics { ends: ends.clone(), next, held, noise, counts: counts.clone() };
    let route = |topic: &str| {
        Some(Route {
            topic: topic.to_string(),
            table: TableName::new("bronze", topic).unwrap(),
            shape: None,
            evolution: Evolution::Evolve,
            stop_above: None,
            partition: Vec::new(),
            properties: BTreeMap::new(),
        })
    };
    let (of_event, sums) = (counts.clone(), Mutex::new(BTreeMap::<String, u64>::new()));
    let observer: Observer = Arc::new(move |event| {
        if let Event::Ingested(commit) = event {
            of_event.committed.fetch_add(commit.rows, Ordering::SeqCst);
            let mut sums = sums.lock().unwrap();
            let sum = sums.entry(commit.table.name().to_string()).or_default();
            *sum += commit.rows;
            told(&catalog, commit.table.name(), *sum);
        }
    });
    let triggers = CommitTriggers { every, rows: usize::MAX, bytes: usize::MAX, memory: MEMORY };
    let ingest = Ingest::start(&lake, Box::new(source), route, Format::DebeziumJson, triggers, observer).await.unwrap();
    let (_until, until) = watch::channel(Until::Reached(ends));
    tokio::time::timeout(Duration::from_secs(300), ingest.run(until)).await.expect("it ends").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tables_that_get_little_commit_before_they_take_more_than_there_is() {
    let names: Vec<String> = (0..60).map(|number| format!("t{number}")).collect();
    let topics: Vec<(&str, i64)> = names.iter().map(|name| (name.as_str(), 2_000)).collect();
    let counts = Arc::new(Counts::default());
    // Four times as much as there is memory for, and no other reason to commit.
    let report = ingest(&topics, "", Duration::from_secs(3600), &counts, |_, _, _| {}).await;
    assert_eq!(report.rows, 60 * 2_000);
    let most = counts.most.load(Ordering::SeqCst) as usize * RECORD;
    assert!(most < MEMORY, "{most} bytes were read and not committed");
    assert!(report.commits > 100, "{} commits", report.commits);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_commit_takes_its_part_of_the_room_and_the_others_go_on() {
    let counts = Arc::new(Counts::default());
    let (of_stuck, of_others) = (30_000, 40_000);
    let topics = [("stuck", of_stuck), ("one", of_others), ("two", of_others)];
    // It is let go when the others have come to their ends.
    let done = Mutex::new(BTreeSet::new());
    let report = ingest(&topics, "stuck", Duration::from_millis(300), &counts, move |catalog, table, rows| {
        if rows == of_others as u64 && done.lock().unwrap().insert(table.to_string()) && done.lock().unwrap().len() == 2
        {
            catalog.free();
        }
    })
    .await;
    assert_eq!(report.rows, (of_stuck + 2 * of_others) as u64);
    assert!(counts.pauses.load(Ordering::SeqCst) > 0, "the table was never held back");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_that_hangs_keeps_no_room_from_those_that_commit_to_make_some() {
    let counts = Arc::new(Counts::default());
    let (topics, enough) = ([("stuck", 60_000), ("one", 60_000), ("two", 60_000)], 30_000);
    // Nothing is due, so that tables commit for room alone.
    let done = Mutex::new(BTreeSet::new());
    let report = ingest(&topics, "stuck", Duration::from_secs(3600), &counts, move |catalog, table, rows| {
        let mut done = done.lock().unwrap();
        if rows >= enough && done.insert(table.to_string()) && done.len() == 2 {
            catalog.free();
        }
    })
    .await;
    assert_eq!(report.rows, 180_000);
}
