//! What a process tells monitoring: numbers for Prometheus, and for Kubernetes whether it lives and reads.
//!
//! - In: the pipeline's events.
//! - Out: answers to `GET /metrics`, `/livez` and `/readyz`.
//! - It does not know: Kafka, the catalog, the storage. **Nobody is asked for an answer**, so that a scrape costs its text
//!   and nothing else, and works when everything outside is away.

mod names;
mod server;
mod text;
mod vitals;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::bronze::BronzeCommit;
use crate::change::ChangeCounts;
use crate::clock::Clock;
use crate::gold::GoldCommit;
use crate::ids::TableName;
use crate::pipeline::{Event, InHand, Layer, Observer, Standing};
use crate::quality::Finding;
use crate::silver::SilverCommit;
pub use server::{MetricsError, Server};
use text::{Family, Text};
use vitals::Vitals;

/// What this process has done so far, and how it is.
#[derive(Debug)]
pub struct Metrics {
    clock: Clock,
    memory_limit_bytes: u64,
    vitals: Vitals,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    tables: BTreeMap<(Layer, TableName), Table>,
    rules: BTreeMap<Rule, u64>,
    builds: u64,
    failed_builds: u64,
    last_build_ms: Option<i64>,
    in_hand_bytes: usize,
}

/// A table as this process knows it. Tables that it has not met are not there, rather than zero.
#[derive(Debug, Default)]
struct Table {
    records: u64,
    rejected: u64,
    rows: u64,
    deleted: u64,
    quarantined: u64,
    dropped: u64,
    bytes: u64,
    commits: u64,
    commit_seconds: f64,
    last_commit_ms: Option<i64>,
    newest_change_us: Option<i64>,
    lag: Option<i64>,
    is_stopped: bool,
    is_failing: bool,
    failures: u64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rule {
    table: String,
    rule: String,
    kind: &'static str,
    severity: &'static str,
}

const BRONZE: &[Layer] = &[Layer::Bronze];
const SILVER: &[Layer] = &[Layer::Silver];
const ALL: &[Layer] = &[Layer::Bronze, Layer::Silver, Layer::Gold];

/// A number of each table of some layers, where it is known.
type OfTable = (Family, &'static [Layer], fn(&Table) -> Option<f64>);

const OF_TABLE: [OfTable; 15] = [
    (names::RECORDS, BRONZE, |table| Some(table.records as f64)),
    (names::REJECTED_RECORDS, BRONZE, |table| Some(table.rejected as f64)),
    (names::ROWS, ALL, |table| Some(table.rows as f64)),
    (names::DELETED_ROWS, SILVER, |table| Some(table.deleted as f64)),
    (names::QUARANTINED_ROWS, SILVER, |table| Some(table.quarantined as f64)),
    (names::DROPPED_ROWS, SILVER, |table| Some(table.dropped as f64)),
    (names::BYTES, BRONZE, |table| Some(table.bytes as f64)),
    (names::COMMITS, ALL, |table| Some(table.commits as f64)),
    (names::COMMIT_SECONDS, ALL, |table| Some(table.commit_seconds)),
    (names::LAST_COMMIT, ALL, |table| table.last_commit_ms.map(|ms| ms as f64 / 1e3)),
    (names::NEWEST_CHANGE, BRONZE, |table| table.newest_change_us.map(|us| us as f64 / 1e6)),
    (names::LAG, BRONZE, |table| table.lag.map(|lag| lag as f64)),
    (names::STOPPED, BRONZE, |table| Some(f64::from(u8::from(table.is_stopped)))),
    (names::FAILING, ALL, |table| Some(f64::from(u8::from(table.is_failing)))),
    (names::FAILURES, ALL, |table| Some(table.failures as f64)),
];

impl Metrics {
    pub fn new(clock: Clock, memory_limit_bytes: u64) -> Self {
        Metrics { vitals: Vitals::new(&clock), clock, memory_limit_bytes, known: Mutex::default() }
    }

    /// Takes note of what the pipeline tells.
    pub fn observer(self: &Arc<Self>) -> Observer {
        let metrics = self.clone();
        Arc::new(move |event| metrics.note(event))
    }

    fn note(&self, event: &Event) {
        let now_ms = || self.clock.now_ms();
        let mut known = match event {
            // These come often, and wait for nobody.
            Event::Turned(turning) => return self.vitals.turned(*turning, &self.clock),
            Event::Ended(turning) => return self.vitals.ended(*turning),
            _ => self.known.lock().unwrap_or_else(PoisonError::into_inner),
        };
        match event {
            Event::Ingested(commit) => known.ingested(commit, now_ms()),
            Event::Merged(commit) => known.merged(commit, now_ms()),
            Event::Refreshed(commit) => known.refreshed(commit, now_ms()),
            Event::Checked(findings) => known.checked(findings),
            Event::Fares { layer, table, how } => known.table(*layer, table).fares(*how),
            Event::Reading(in_hand) => {
                known.reading(in_hand);
                self.vitals.reads();
            }
            Event::Built { is_whole } => known.built(*is_whole, now_ms()),
            Event::Turned(_) | Event::Ended(_) => {}
        }
    }

    /// What does not go round any more though it should, and since when.
    pub fn standstill(&self) -> Option<String> {
        self.vitals.standstill(&self.clock)
    }

    /// Whether reading has begun.
    pub fn is_ready(&self) -> bool {
        self.vitals.is_ready()
    }

    /// Everything, for Prometheus.
    pub fn text(&self) -> String {
        let mut text = Text::default();
        text.family(&names::BUILD_INFO);
        text.number(&names::BUILD_INFO, &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
        text.alone(&names::MEMORY_LIMIT_BYTES, self.memory_limit_bytes as f64);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).write(&mut text);
        text.finish()
    }
}

impl Known {
    fn table(&mut self, layer: Layer, name: &TableName) -> &mut Table {
        self.tables.entry((layer, name.clone())).or_default()
    }

    fn ingested(&mut self, commit: &BronzeCommit, now_ms: i64) {
        let ChangeCounts { changes, rejected, tombstones, heartbeats, transactions, schema_changes, unexpected: _ } =
            commit.counts;
        let table = self.table(Layer::Bronze, &commit.table);
        table.committed(commit.rows, commit.elapsed, now_ms);
        table.records += changes + rejected + tombstones + heartbeats + transactions + schema_changes;
        table.rejected += rejected;
        table.bytes += commit.bytes;
        table.newest_change_us = table.newest_change_us.max(commit.newest_change_us);
    }

    fn merged(&mut self, commit: &SilverCommit, now_ms: i64) {
        let table = self.table(Layer::Silver, &commit.table);
        table.committed(commit.rows_written, commit.elapsed, now_ms);
        table.deleted += commit.rows_deleted;
        table.quarantined += commit.rows_quarantined;
        table.dropped += commit.rows_dropped;
    }

    fn refreshed(&mut self, commit: &GoldCommit, now_ms: i64) {
        self.table(Layer::Gold, &commit.table).committed(commit.rows, commit.elapsed, now_ms);
    }

    fn checked(&mut self, findings: &[Finding]) {
        for Finding { table, rule, kind, severity, rows_failed, .. } in findings {
            let rule = Rule { table: table.clone(), rule: rule.clone(), kind, severity };
            self.rules.insert(rule, *rows_failed);
        }
    }

    fn reading(&mut self, in_hand: &InHand) {
        self.in_hand_bytes = in_hand.bytes;
        for ((layer, name), table) in &mut self.tables {
            if *layer == Layer::Bronze {
                table.lag = in_hand.lag.get(name).copied();
            }
        }
    }

    fn built(&mut self, is_whole: bool, now_ms: i64) {
        self.builds += 1;
        match is_whole {
            true => self.last_build_ms = Some(now_ms),
            false => self.failed_builds += 1,
        }
    }

    fn write(&self, text: &mut Text) {
        for (family, layers, number) in &OF_TABLE {
            text.family(family);
            for ((layer, name), table) in self.tables.iter().filter(|((layer, _), _)| layers.contains(layer)) {
                if let Some(number) = number(table) {
                    let labels = [("layer", &*layer.to_string()), ("table", &*name.to_string())];
                    text.number(family, &labels, number);
                }
            }
        }
        text.family(&names::BROKEN_RULE_ROWS);
        for (Rule { table, rule, kind, severity }, rows) in &self.rules {
            let labels = [("table", &**table), ("rule", rule), ("kind", kind), ("severity", severity)];
            text.number(&names::BROKEN_RULE_ROWS, &labels, *rows as f64);
        }
        text.alone(&names::BUILDS, self.builds as f64);
        text.alone(&names::FAILED_BUILDS, self.failed_builds as f64);
        if let Some(ms) = self.last_build_ms {
            text.alone(&names::LAST_BUILD, ms as f64 / 1e3);
        }
        text.alone(&names::IN_HAND_BYTES, self.in_hand_bytes as f64);
    }
}

impl Table {
    fn committed(&mut self, rows: u64, elapsed: std::time::Duration, now_ms: i64) {
        self.rows += rows;
        self.commits += 1;
        self.commit_seconds += elapsed.as_secs_f64();
        self.last_commit_ms = Some(now_ms);
    }

    fn fares(&mut self, how: Standing) {
        (self.is_stopped, self.is_failing) = match how {
            Standing::Well => (false, false),
            Standing::TriedAgain(_) => (false, true),
            Standing::Stopped(_) => (true, false),
        };
        self.failures += u64::from(how != Standing::Well);
    }
}

#[cfg(test)]
mod tests;
