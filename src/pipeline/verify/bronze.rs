//! A bronze table against itself: each offset once in an epoch, none that its markers do not say was read in it.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::datatypes::{Int32Type, Int64Type};
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use super::epochs::Epochs;
use super::report::{At, Check, Difference, Kind, Tally};
use super::rows::text_of;
use super::{Topics, Verifier};
use crate::amendment;
use crate::backfilled;
use crate::engine::{self, FILE_COLUMN, POSITION_COLUMN, register};
use crate::error::Result;
use crate::layout;
use crate::offsets::{self, Offsets, TopicPartition};
use crate::quality::literal;
use crate::table::{At as AtSnapshot, SnapshotRow, Table};

const CHECK: &str = "offsets";

/// Which offsets of each partition have a row, by the epoch they were read in.
pub(super) type Held = BTreeMap<i32, BTreeMap<TopicPartition, RoaringTreemap>>;

/// Checks that each offset has one row, below the marker. Gives which there are.
pub(super) async fn offsets(verifier: &Verifier<'_>, table: &Table) -> Result<(Check, Held)> {
    let mut tally = Tally::new(CHECK, "rows", verifier.options.show);
    let name = table.name();
    let session = verifier.engine.session();
    register(&session, name, table.view(AtSnapshot::Head)?)?;
    let sql = format!(
        "SELECT {topic}, {partition}, {offset}, {epoch} FROM {name}",
        topic = layout::TOPIC,
        partition = layout::PARTITION,
        offset = layout::OFFSET,
        epoch = layout::EPOCH,
    );
    let mut held = Held::new();
    let mut doubled: BTreeMap<At, u64> = BTreeMap::new();
    let mut rows = engine::query(&session, &sql).await?;
    while let Some(batch) = rows.try_next().await.map_err(engine::Error::from)? {
        tally.checked += batch.num_rows() as u64;
        for (epoch, at) in places(&batch) {
            let of_partition =
                held.entry(epoch).or_default().entry(TopicPartition::new(at.topic.as_str(), at.partition)).or_default();
            if !of_partition.insert(at.offset as u64) {
                *doubled.entry(at).or_default() += 1;
            }
        }
    }
    for (at, again) in &doubled {
        tally.add(Difference {
            expected: Some("one row".to_string()),
            found: Some(format!("{} rows", again + 1)),
            at: Some(at.clone()),
            ..Difference::new(Kind::Doubled)
        });
    }
    let marker = match table.marker(offsets::MARKER).map(|text| Offsets::parse(&text)) {
        Some(Ok(marker)) => marker,
        Some(Err(error)) => {
            tally.add(of_marker(Kind::Differs, "an offsets marker", error.to_string()));
            return Ok((tally.finish(), held));
        }
        None if tally.checked == 0 || table.marker(backfilled::MARKER).is_some() => Offsets::default(),
        None => {
            tally.add(of_marker(Kind::Missing, "an offsets marker", "none".to_string()));
            return Ok((tally.finish(), held));
        }
    };
    let epochs = Epochs::of(table, marker)?;
    let between = each_in_its_epoch(&epochs, &held, &mut tally);
    // Where files are read, offsets say more than what comes after what.
    if between > 0 && !matches!(verifier.topics, Topics::Files) {
        tally.note(format!(
            "{between} offsets below the marker have no row: tombstones and other records that make none, or none at all; \
             only the broker can tell"
        ));
    }
    let mut check = tally.finish();
    name_rows(&session, table, &mut check).await?;
    Ok((check, held))
}

/// Checks that the offsets of each epoch are those that it read, or that a backfill has done with. Gives how many of the
/// present one have no row.
fn each_in_its_epoch(epochs: &Epochs, held: &Held, tally: &mut Tally) -> u64 {
    let mut between = 0;
    for (epoch, partitions) in held {
        for (partition, found) in partitions {
            let (from, next) = epochs.limits(partition, *epoch);
            let [first, end] = [from.unwrap_or(0), next.unwrap_or(i64::MAX)].map(|at| u64::try_from(at).unwrap_or(0));
            let is_now = *epoch == epochs.now;
            let expected = match (is_now, from, next) {
                (true, _, Some(0)) if epochs.offsets.next(&partition.topic, partition.partition).is_none() => {
                    "no marker of this partition".to_string()
                }
                (true, None | Some(0), Some(next)) => format!("offsets below {next}"),
                (_, None | Some(0), Some(next)) => format!("offsets below {next}, where epoch {epoch} ended"),
                (_, Some(from), Some(next)) => format!("offsets from {from} to below {next} in epoch {epoch}"),
                (_, from, None) => format!("offsets from {} on in epoch {epoch}", from.unwrap_or(0)),
            };
            let below = end.max(first).checked_sub(1).map_or(0, |last| found.rank(last));
            // One behind all of them is no record's: it says where an epoch ended.
            let behind = found.iter().skip(below as usize).take_while(|offset| *offset <= i64::MAX as u64);
            let outside = found.iter().take_while(|offset| *offset < first).chain(behind);
            for offset in outside.map(|offset| offset as i64) {
                if !epochs.is_backfilled(partition, *epoch, offset) {
                    let at = At { topic: partition.topic.to_string(), partition: partition.partition, offset };
                    tally.add(Difference {
                        expected: Some(expected.clone()),
                        found: Some("a row".to_string()),
                        at: Some(at),
                        ..Difference::new(Kind::Unexpected)
                    });
                }
            }
            if is_now && let Some(first) = found.min().filter(|first| *first < end) {
                between += end - first - found.range_cardinality(first..end);
            }
        }
    }
    between
}

fn of_marker(kind: Kind, expected: &str, found: String) -> Difference {
    Difference {
        column: Some(offsets::MARKER.to_string()),
        expected: Some(expected.to_string()),
        found: Some(found),
        ..Difference::new(kind)
    }
}

fn places(batch: &RecordBatch) -> impl Iterator<Item = (i32, At)> + '_ {
    let topics = batch.column(0).as_string::<i32>();
    let partitions = batch.column(1).as_primitive::<Int32Type>();
    let offsets = batch.column(2).as_primitive::<Int64Type>();
    let epochs = batch.column(3).as_primitive_opt::<Int32Type>();
    (0..batch.num_rows()).map(move |row| {
        let epoch = epochs.filter(|epochs| epochs.is_valid(row)).map_or(0, |epochs| epochs.value(row));
        let topic = topics.value(row).to_string();
        (epoch, At { topic, partition: partitions.value(row), offset: offsets.value(row) })
    })
}

/// Adds to the differences that are shown the key of their rows, and where these lie.
async fn name_rows(session: &datafusion::prelude::SessionContext, table: &Table, check: &mut Check) -> Result<()> {
    let wanted: Vec<At> = check.differences.iter().filter_map(|difference| difference.at.clone()).collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let is_wanted: Vec<String> = wanted
        .iter()
        .map(|At { topic, partition, offset }| {
            format!(
                "({} = {} AND {} = {partition} AND {} = {offset})",
                layout::TOPIC,
                literal(topic),
                layout::PARTITION,
                layout::OFFSET
            )
        })
        .collect();
    let sql = format!(
        "SELECT {}, {}, {}, 0, {}, {FILE_COLUMN}, {POSITION_COLUMN} FROM {}.\"{}$rows\" WHERE {} ORDER BY 5, 6",
        layout::TOPIC,
        layout::PARTITION,
        layout::OFFSET,
        layout::KEY,
        table.name().namespace(),
        table.name().name(),
        is_wanted.join(" OR ")
    );
    let mut rows = engine::query(session, &sql).await?;
    while let Some(batch) = rows.try_next().await.map_err(engine::Error::from)? {
        for (row, (_, at)) in places(&batch).enumerate() {
            let (key, file, position) = (batch.column(4), batch.column(5), batch.column(6));
            let lies = format!("{} row {}", text_of(file, row), text_of(position, row));
            for difference in check.differences.iter_mut().filter(|difference| difference.at.as_ref() == Some(&at)) {
                difference.key = key.is_valid(row).then(|| text_of(key, row));
                difference.file = Some(match difference.file.take() {
                    Some(others) => format!("{others}, {lies}"),
                    None => lies.clone(),
                });
            }
        }
    }
    Ok(())
}

/// Checks that rows only ever came, but for rewinds and replays, which are counted: of the snapshots that are kept.
pub(super) fn growth(verifier: &Verifier<'_>, table: &Table) -> Check {
    let mut tally = Tally::new("growth", "commits", verifier.options.show);
    let all: BTreeMap<i64, SnapshotRow> = table.snapshots().into_iter().map(|of| (of.id, of)).collect();
    let mut line: Vec<&SnapshotRow> = Vec::new();
    let mut next = table.snapshot_id();
    while let Some(snapshot) = next.and_then(|id| all.get(&id)) {
        line.push(snapshot);
        next = snapshot.parent;
    }
    line.reverse();
    let mut amended = line.first().and_then(|first| first.summary.get(amendment::MARKER));
    for pair in line.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        tally.checked += 1;
        let counted = after.summary.get(amendment::MARKER);
        let is_counted = counted.is_some() && counted != amended;
        amended = counted.or(amended);
        let fewer = live(before).zip(live(after)).map_or(0, |(before, after)| before.saturating_sub(after));
        let takes_rows = matches!(after.operation.as_str(), "overwrite" | "delete") || fewer > 0;
        if takes_rows && !is_counted {
            let how = match fewer {
                0 => String::new(),
                1 => ", 1 row fewer".to_string(),
                fewer => format!(", {fewer} rows fewer"),
            };
            tally.add(Difference {
                column: Some(format!("snapshot {}", after.id)),
                expected: Some("rows that only come, where no rewind and no replay is counted".to_string()),
                found: Some(format!("`{}`{how}", after.operation)),
                ..Difference::new(Kind::Missing)
            });
        }
    }
    tally.finish()
}

/// How many rows a snapshot has, by its summary.
fn live(snapshot: &SnapshotRow) -> Option<u64> {
    let total = |key: &str| snapshot.summary.get(key)?.parse::<u64>().ok();
    Some(total("total-records")?.saturating_sub(total("total-position-deletes").unwrap_or(0)))
}
