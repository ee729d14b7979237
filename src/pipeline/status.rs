//! How a project's tables are: how far behind, how fresh, how much was rejected.
//!
//! Everything comes from the tables, but for the ends of the topics, which come from the brokers. Nothing is kept.

use std::collections::BTreeMap;

use serde::Serialize;

use super::offsets::{Log, PartitionPosition, State, marker_of, positions, routed_tables};
use super::quality::{self, Latest};
use super::{Models, rejected};
use crate::bronze;
use crate::config::Config;
use crate::engine::Engine;
use crate::error::Result;
use crate::gold;
use crate::ids::TableName;
use crate::offsets::{Offsets, Positions, TopicPartition};
use crate::silver;
use crate::source::KafkaAdmin;
use crate::table::{At, Lake, SnapshotRow, Table};

/// How many of a bronze table's last commits are looked at for what is rejected lately.
const RECENT_COMMITS: usize = 20;

#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Why the brokers could not be asked, where they were to be.
    pub source_problem: Option<String>,
    pub bronze: Vec<BronzeStatus>,
    pub silver: Vec<SilverStatus>,
    pub gold: Vec<GoldStatus>,
    /// What each rule and audit found when it was last asked.
    pub quality: Vec<Latest>,
}

/// What is the same for every table.
#[derive(Debug, Clone, Default, Serialize)]
pub struct TableStatus {
    pub table: String,
    /// Whether the table is there: the first records, or the first build, make it.
    pub is_made: bool,
    /// `None` for a table that is not made yet, like all the rest.
    pub rows: Option<u64>,
    pub snapshots: u64,
    pub data_files: Option<u64>,
    pub delete_files: Option<u64>,
    pub bytes: Option<u64>,
    #[serde(skip)]
    pub last_commit_ms: Option<i64>,
    pub last_commit: Option<String>,
    pub seconds_since_commit: Option<i64>,
}

#[derive(Debug, Clone, Serialize)]
pub struct BronzeStatus {
    #[serde(flatten)]
    pub table: TableStatus,
    pub epoch: i32,
    pub topics: Vec<TopicStatus>,
    pub rejected: RejectedStatus,
    pub schema: SchemaStatus,
}

#[derive(Debug, Clone, Serialize)]
pub struct TopicStatus {
    pub topic: String,
    pub partitions: usize,
    /// Offsets that are in the topic and not yet in the table; `None` when the brokers were not asked, or a partition is
    /// not as the table left it.
    pub lag: Option<i64>,
    /// How long the oldest record that is not yet in the table has been in the topic; 0 when none is waiting.
    pub lag_seconds: Option<i64>,
    /// The worst of the partitions' states.
    pub state: &'static str,
}

#[derive(Debug, Clone, Default, Serialize)]
pub struct RejectedStatus {
    pub rows: u64,
    /// Of all rows, from 0 to 1.
    pub share: f64,
    /// The same for what the last commits brought.
    pub recent_rows: u64,
    pub recent_share: f64,
    /// Above this share of rejected records the table is stopped.
    pub stop_above: Option<String>,
    pub is_above: bool,
}

/// How the columns changed in the snapshots that are kept.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SchemaStatus {
    pub changes: usize,
    pub last_change: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
pub struct SilverStatus {
    #[serde(flatten)]
    pub table: TableStatus,
    pub from: String,
    pub is_behind: bool,
    /// Rows of the bronze table that are not merged yet; where that is not made either, what its topics hold. `None`
    /// when that is not known.
    pub records_behind: Option<i64>,
    /// Commits of the bronze table that are not merged yet; `None` when expiry has taken some of them.
    pub commits_behind: Option<usize>,
    /// How long the oldest of them has been waiting.
    pub seconds_behind: Option<i64>,
    /// Lookups that have moved since all rows were looked up in them: some rows may say what those said before.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lookups_moved: Vec<String>,
    /// Partitions whose last event is behind what was merged of them: events are sent again, or the source was restored to
    /// an earlier state (`offsets reset … --restored`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fell_back: Vec<silver::FallenBack>,
    pub quarantined: QuarantineStatus,
}

/// What a silver table keeps in quarantine.
#[derive(Debug, Clone, Default, Serialize)]
pub struct QuarantineStatus {
    pub rows: u64,
    /// Those of them that are events without a value for the key.
    pub null_keys: u64,
}

#[derive(Debug, Clone, Serialize)]
pub struct GoldStatus {
    #[serde(flatten)]
    pub table: TableStatus,
    pub is_behind: bool,
    /// The inputs that have moved since.
    pub moved: Vec<String>,
    /// How long the first of their commits that is not in it has been waiting.
    pub seconds_behind: Option<i64>,
}

impl Status {
    /// Looks at every table of the project. Without `kafka`, lag stays unknown.
    pub async fn look(
        lake: &Lake,
        engine: &Engine,
        config: &Config,
        models: &Models,
        kafka: Option<&KafkaAdmin>,
    ) -> Result<Self> {
        let now_ms = lake.clock().now_ms();
        let mut tables: BTreeMap<TableName, Table> = BTreeMap::new();
        for namespace in [&config.namespaces.bronze, &config.namespaces.silver, &config.namespaces.gold] {
            for name in lake.tables(namespace).await? {
                if let Some(table) = lake.table_if_exists(&name).await? {
                    tables.insert(name, table);
                }
            }
        }
        let bronze: Vec<&Table> =
            tables.values().filter(|table| table.name().namespace() == config.namespaces.bronze).collect();
        let markers: Vec<Offsets> = bronze.iter().map(|table| marker_of(table)).collect::<Result<_>>()?;
        let mut status = Status::default();
        let log = match kafka {
            Some(kafka) => Log::look(kafka, config, &markers.iter().collect::<Vec<_>>()).await.map(Some),
            None => Ok(None),
        };
        // The tables are there to be looked at whatever has become of the brokers.
        let log = log.unwrap_or_else(|error| {
            status.source_problem = Some(error.to_string());
            None
        });
        let mut names: Vec<TableName> = tables.keys().cloned().collect();
        names.extend(log.iter().flat_map(|log| routed_tables(config, log)));
        names.extend(declared_tables(config));
        names.retain(|name| name.namespace() == config.namespaces.bronze);
        names.sort();
        names.dedup();
        let mut of_table: BTreeMap<&TableName, Vec<PartitionPosition>> = BTreeMap::new();
        for name in &names {
            let marker = bronze.iter().zip(&markers).find(|(table, _)| table.name() == name);
            let marker = marker.map(|(_, marker)| marker.clone()).unwrap_or_default();
            of_table.insert(name, positions(config, name, &marker, log.as_ref()));
        }
        let waiting: Positions = of_table
            .values()
            .flatten()
            .filter(|position| position.lag().is_some_and(|lag| lag > 0))
            .filter_map(|position| Some((position.at.clone(), position.reads_from()?)))
            .collect();
        let times = match kafka {
            Some(kafka) if !waiting.is_empty() => kafka.times(&waiting).await,
            _ => Ok(BTreeMap::new()),
        };
        let times = times.unwrap_or_else(|error| {
            status.source_problem = Some(crate::error::Error::from(error).to_string());
            BTreeMap::new()
        });
        for (name, positions) in of_table {
            status.bronze.push(BronzeStatus {
                table: table_status(name, tables.get(name), now_ms),
                epoch: tables.get(name).map(bronze::epoch).transpose()?.unwrap_or(0),
                topics: topics(&positions, &times, now_ms),
                rejected: rejected_status(name, tables.get(name), engine, config).await?,
                schema: tables.get(name).map(schema_status).unwrap_or_default(),
            });
        }
        for model in &models.silver {
            let (silver, bronze) = (tables.get(&model.table), tables.get(&model.from));
            let of_bronze = status.bronze.iter().find(|of| of.table.table == model.from.to_string());
            let behind = Behind::of_silver(silver, bronze, of_bronze.and_then(BronzeStatus::lag))?;
            status.silver.push(SilverStatus {
                table: table_status(&model.table, silver, now_ms),
                from: model.from.to_string(),
                is_behind: behind.is_behind,
                records_behind: behind.records,
                commits_behind: behind.commits,
                seconds_behind: behind.since_ms.map(|since| seconds(now_ms, since)),
                lookups_moved: moved_lookups(silver, &tables)?,
                fell_back: silver.map(silver::fallen_back).transpose()?.unwrap_or_default(),
                quarantined: match tables.get(&model.quarantine()) {
                    Some(quarantine) => QuarantineStatus {
                        rows: table_status(quarantine.name(), Some(quarantine), now_ms).rows.unwrap_or(0),
                        null_keys: quality::null_keys(engine, quarantine).await?,
                    },
                    None => QuarantineStatus::default(),
                },
            });
        }
        for model in &models.gold {
            let gold = tables.get(&model.table);
            let (moved, since) = moved_inputs(gold, &tables);
            status.gold.push(GoldStatus {
                table: table_status(&model.table, gold, now_ms),
                is_behind: gold.is_none() || !moved.is_empty(),
                moved,
                seconds_behind: since.map(|since| seconds(now_ms, since)),
            });
        }
        if let Some(findings) = models.quality.as_ref().and_then(|kept| tables.get(&kept.table)) {
            status.quality = quality::latest(engine, findings).await?;
            // What nobody asks any more says nothing of the tables.
            status.quality.retain(|finding| models.asks(finding));
        }
        Ok(status)
    }
}

impl BronzeStatus {
    /// How many offsets of its topics are not yet in the table, where that is known.
    pub fn lag(&self) -> Option<i64> {
        self.topics.iter().map(|topic| topic.lag).sum::<Option<i64>>().filter(|_| !self.topics.is_empty())
    }
}

/// The bronze tables that files in `catalog/` describe.
fn declared_tables(config: &Config) -> impl Iterator<Item = TableName> {
    config.tables.iter().filter_map(|table| TableName::new(&config.namespaces.bronze, &table.name).ok())
}

fn seconds(now_ms: i64, since_ms: i64) -> i64 {
    // Clocks differ; nothing waits since the future.
    (now_ms - since_ms).max(0) / 1000
}

fn table_status(name: &TableName, table: Option<&Table>, now_ms: i64) -> TableStatus {
    let Some(table) = table else { return TableStatus { table: name.to_string(), ..Default::default() } };
    let summary = table.summary();
    TableStatus {
        table: name.to_string(),
        is_made: true,
        // Deleted rows are still counted as records of their files.
        rows: summary.records.zip(summary.position_deletes).map(|(rows, deleted)| rows.saturating_sub(deleted)),
        snapshots: summary.snapshots as u64,
        data_files: summary.data_files,
        delete_files: summary.delete_files,
        bytes: summary.bytes,
        last_commit_ms: summary.committed_ms,
        last_commit: summary.committed_ms.and_then(time),
        seconds_since_commit: summary.committed_ms.map(|at| seconds(now_ms, at)),
    }
}

pub(super) fn time(ms: i64) -> Option<String> {
    let time = chrono::DateTime::from_timestamp_millis(ms)?;
    Some(time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true))
}

fn topics(positions: &[PartitionPosition], times: &BTreeMap<TopicPartition, i64>, now_ms: i64) -> Vec<TopicStatus> {
    let of_topic = |positions: &[PartitionPosition]| {
        let lag = positions.iter().map(PartitionPosition::lag).sum::<Option<i64>>();
        let oldest = positions.iter().filter_map(|position| times.get(&position.at)).min();
        TopicStatus {
            topic: positions[0].at.topic.to_string(),
            partitions: positions.len(),
            lag,
            lag_seconds: match (lag, oldest) {
                (Some(0), _) => Some(0),
                (_, Some(oldest)) => Some(seconds(now_ms, *oldest)),
                _ => None,
            },
            state: worst(positions.iter().map(|position| position.state)).as_str(),
        }
    };
    positions.chunk_by(|left, right| left.at.topic == right.at.topic).map(of_topic).collect()
}

fn worst(states: impl Iterator<Item = State>) -> State {
    let badness = |state: &State| match state {
        State::Ok => 0,
        State::NotStarted => 1,
        State::Unknown => 2,
        State::Gone => 3,
        State::PastEnd => 4,
        State::Expired => 5,
    };
    states.max_by_key(badness).unwrap_or(State::Unknown)
}

async fn rejected_status(
    name: &TableName,
    table: Option<&Table>,
    engine: &Engine,
    config: &Config,
) -> Result<RejectedStatus> {
    let stop_above = config.stop_above(name);
    let mut status = RejectedStatus { stop_above: stop_above.map(|limit| limit.to_string()), ..Default::default() };
    let Some(table) = table else { return Ok(status) };
    // A table of that namespace that is not ours is shown without.
    if table.schema()?.index_of(crate::layout::ERROR).is_err() {
        return Ok(status);
    }
    let view = table.view(At::Head)?;
    let snapshots = table.snapshots();
    let since = snapshots.iter().rev().nth(RECENT_COMMITS).map_or(0, |snapshot| snapshot.sequence);
    let recent = view.added_since(since);
    let rows_of = |files: Vec<crate::table::ScanFile>| files.iter().map(|file| file.record_count).sum::<u64>();
    let (all_rows, recent_rows) = (rows_of(view.files(None).await?), rows_of(recent.files(None).await?));
    status.rows = rejected::count(view, engine).await?;
    let recent_rejected = if recent_rows == all_rows { status.rows } else { rejected::count(recent, engine).await? };
    let share = |part: u64, all: u64| if all == 0 { 0.0 } else { part as f64 / all as f64 };
    status.share = share(status.rows, all_rows);
    status.recent_rows = recent_rejected;
    status.recent_share = share(recent_rejected, recent_rows);
    status.is_above = stop_above.is_some_and(|limit| limit.is_below(recent_rejected, recent_rows));
    Ok(status)
}

fn schema_status(table: &Table) -> SchemaStatus {
    let snapshots = table.snapshots();
    let changed = |pair: &&[SnapshotRow]| pair[0].schema_id != pair[1].schema_id;
    let changes: Vec<i64> = snapshots.windows(2).filter(changed).map(|pair| pair[1].committed_ms).collect();
    SchemaStatus { changes: changes.len(), last_change: changes.last().and_then(|at| time(*at)) }
}

#[derive(Debug, Default)]
struct Behind {
    is_behind: bool,
    records: Option<i64>,
    commits: Option<usize>,
    since_ms: Option<i64>,
}

impl Behind {
    /// `lag` is what the bronze table's topics hold and it does not.
    fn of_silver(silver: Option<&Table>, bronze: Option<&Table>, lag: Option<i64>) -> Result<Self> {
        let Some(bronze) = bronze.filter(|bronze| bronze.snapshot_id().is_some()) else {
            // What waits for a table that was never made waits in the topics.
            let is_behind = silver.is_none() && lag != Some(0);
            return Ok(Behind { is_behind, records: lag, commits: Some(0), since_ms: None });
        };
        let merged =
            silver.map(silver::progress).transpose()?.flatten().filter(|merged| merged.bronze == bronze.uuid());
        if merged.is_some_and(|merged| bronze.has_rows_of(merged.snapshot_id)) {
            return Ok(Behind { records: Some(0), commits: Some(0), ..Behind::default() });
        }
        let sequence = merged.map_or(0, |merged| merged.sequence);
        let waiting: Vec<_> = bronze.snapshots().into_iter().filter(|snapshot| snapshot.sequence > sequence).collect();
        // The first of them may have been expired.
        let is_whole = waiting.first().is_some_and(|first| first.sequence == sequence + 1);
        // Compaction brings nothing to merge.
        let news: Vec<&SnapshotRow> = waiting.iter().filter(|snapshot| snapshot.operation != "replace").collect();
        let added = |snapshot: &&SnapshotRow| match snapshot.summary.get("added-records") {
            Some(count) => count.parse::<i64>().ok(),
            None => Some(0),
        };
        Ok(Behind {
            is_behind: true,
            records: news.iter().map(added).sum::<Option<i64>>().filter(|_| is_whole),
            commits: is_whole.then_some(news.len()),
            since_ms: news.first().map(|first| first.committed_ms),
        })
    }
}

fn moved_lookups(silver: Option<&Table>, tables: &BTreeMap<TableName, Table>) -> Result<Vec<String>> {
    let seen = silver.map(silver::lookups_seen).transpose()?.unwrap_or_default();
    let is_at = |lookup: &TableName, snapshot| tables.get(lookup).is_some_and(|table| table.has_rows_of(snapshot));
    Ok(seen.iter().filter(|(lookup, seen)| !is_at(lookup, seen.first)).map(|(lookup, _)| lookup.to_string()).collect())
}

/// The inputs that have moved since a gold table was computed, and when the first of them did.
fn moved_inputs(gold: Option<&Table>, tables: &BTreeMap<TableName, Table>) -> (Vec<String>, Option<i64>) {
    let Some(inputs) = gold.and_then(gold::inputs) else { return (Vec::new(), None) };
    let (mut moved, mut since) = (Vec::new(), None);
    for (input, snapshot) in inputs {
        let table = input.parse::<TableName>().ok().and_then(|name| tables.get(&name));
        let Some(table) = table else { continue };
        if table.snapshot_id().unwrap_or(-1) == snapshot || table.has_rows_of(snapshot) {
            continue;
        }
        let snapshots = table.snapshots();
        let known = snapshots.iter().find(|of| of.id == snapshot).map_or(0, |of| of.sequence);
        let first = snapshots.iter().find(|of| of.sequence > known).map(|of| of.committed_ms);
        since = [since, first].into_iter().flatten().min();
        moved.push(input);
    }
    (moved, since)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Bounds;

    #[test]
    fn a_topic_s_lag_is_that_of_its_partitions() {
        let position = |partition: i32, next: i64, state: State| PartitionPosition {
            at: TopicPartition::new("t", partition),
            next: Some(next),
            bounds: Some(Bounds { first: 0, end: 100 }),
            state,
        };
        let check = |positions: &[PartitionPosition],
                     times: &[(i32, i64)],
                     expected: (Option<i64>, Option<i64>, &str)| {
            let times = times.iter().map(|(partition, time)| (TopicPartition::new("t", *partition), *time)).collect();
            let topic = topics(positions, &times, 60_000).remove(0);
            assert_eq!((topic.lag, topic.lag_seconds, topic.state), expected);
        };
        check(&[position(0, 100, State::Ok), position(1, 100, State::Ok)], &[], (Some(0), Some(0), "ok"));
        // The record that waits longest says for how long.
        let both = [position(0, 90, State::Ok), position(1, 60, State::Ok)];
        check(&both, &[(0, 50_000), (1, 20_000)], (Some(50), Some(40), "ok"));
        check(&both, &[(0, 70_000)], (Some(50), Some(0), "ok"));
        check(&both, &[], (Some(50), None, "ok"));
        check(&[position(0, 100, State::Ok), position(1, 101, State::PastEnd)], &[], (None, None, "past end"));
        check(&[position(0, 100, State::Expired), position(1, 101, State::PastEnd)], &[], (None, None, "expired"));
    }
}
