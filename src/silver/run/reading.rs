//! The events of a run, as they are read from bronze.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryConsumer;
use futures::TryStreamExt;
use roaring::RoaringTreemap;
use tokio::sync::mpsc::Sender;

use super::{Base, Run, arrow_failed, with_deletes};
use crate::engine::{Piece, RowReader, as_it_comes, pieces};
use crate::layout;
use crate::silver::events::{Depth, Events, KeyRange, Newest, columns_to_read, of_range, without_key};
use crate::silver::gate::Side;
use crate::silver::order::Frontier;
use crate::silver::{Extent, Result};
use crate::table::{ColumnStatistics, Prune, ScanFile, TableView};

impl Run<'_> {
    /// What was merged before and is looked at again.
    pub(super) async fn again(&self, base: Option<&Base>, new: &[ScanFile]) -> Result<Again> {
        let (Extent::Since(since), Some(_)) = (self.extent, base) else { return Ok(Again::default()) };
        let new: HashSet<&str> = new.iter().map(|file| file.path.as_str()).collect();
        let mut files = self.view.files(Some(&IngestedSince(since))).await?;
        files.retain(|file| !new.contains(file.path.as_str()));
        Ok(Again { files, since })
    }

    /// Reads the new events of a range of keys.
    pub(super) async fn newest(
        &self,
        new: &TableView,
        files: &[ScanFile],
        again: &Again,
        range: KeyRange,
        depth: Depth,
        base: Option<&Base>,
    ) -> Result<Newest> {
        let rows = files.iter().map(|file| file.record_count).sum::<u64>() / range.of;
        let consumer = MemoryConsumer::new(format!("changes for {}", self.model.table));
        let held = consumer.register(&self.session.runtime_env().memory_pool);
        let mut newest = Newest::new(&self.shape, rows as usize, range).ignore_nulls(&self.ignores);
        if depth == Depth::Versions {
            newest = newest.keep_all();
        }
        let most = self.engine.memory() / 2;
        let mut outcome = held.try_grow(newest.bytes());
        let nothing = Frontier::default();
        let frontier = base.map_or(&nothing, |base| &base.merged.frontier);
        let mut take = |events: Events| {
            if outcome.is_ok() {
                outcome = match held.size() + events.bytes() <= most {
                    true => held.try_grow(events.bytes()),
                    // The rest is for those who write and sort.
                    false => Err(DataFusionError::ResourcesExhausted(format!("changes take more than {most} bytes"))),
                };
            }
            if outcome.is_ok() {
                newest.add(events, frontier);
            }
        };
        // Without a rule that says otherwise, nothing but what has no key comes into quarantine.
        let only_keyless = self.side == Side::Quarantine && !self.model.quarantines();
        let keep = move |events: &Events| if only_keyless { without_key(events) } else { of_range(events, range) };
        self.each_batch_of(new, files, depth, keep, |events| events, &mut take).await?;
        if !again.files.is_empty() && !only_keyless {
            let since = again.since;
            // What has no key stays where it is.
            let keep =
                move |events: &Events| Some(events.with_key(events.ingested_since(since, of_range(events, range))));
            self.each_batch_of(&self.view, &again.files, Depth::Versions, keep, |events| events, &mut take).await?;
        }
        outcome.map_err(|error| self.failed(error.into()))?;
        if self.mends(base) {
            // What is read again is neither late nor repeated.
            (newest.seen.late, newest.seen.duplicates) = (0, 0);
        }
        newest.seal();
        newest.hold(held);
        Ok(newest)
    }

    /// Reads events on every core, those of the rows that `keep` names, and hands what `look` makes of each batch to
    /// `take`.
    pub(in crate::silver) async fn each_batch_of<T: Send + 'static>(
        &self,
        view: &TableView,
        files: &[ScanFile],
        depth: Depth,
        keep: impl Fn(&Events) -> Option<BooleanArray> + Clone + Send + Sync + 'static,
        look: impl Fn(Events) -> T + Clone + Send + Sync + 'static,
        take: impl FnMut(T),
    ) -> Result<()> {
        let columns = columns_to_read(&view.arrow_schema(), &self.keys, depth);
        let reader = Arc::new(RowReader::new(&self.session, view, columns));
        let deleted = view.deleted_positions(&with_deletes(files)).await?;
        let parts = pieces(files).into_iter().map(|piece| {
            let file = files[piece.file].clone();
            let gone = deleted.get(&file.path).cloned();
            (piece, file, gone)
        });
        let work = |(piece, file, gone): (Piece, ScanFile, Option<Arc<RoaringTreemap>>), seen: Sender<T>| {
            let (reader, shape, keys) = (reader.clone(), self.shape.clone(), self.keys.clone());
            let (keep, look) = (keep.clone(), look.clone());
            async move {
                let mut batches = reader.read(&file, &piece, gone, None).await?;
                while let Some(batch) = batches.try_next().await? {
                    let of_batch = look(Events::read(&batch, &keys, &shape, &keep).map_err(arrow_failed)?);
                    if seen.send(of_batch).await.is_err() {
                        break;
                    }
                }
                Ok(())
            }
        };
        as_it_comes(self.engine.threads(), parts, work, take).await.map_err(|error| self.failed(error))
    }
}

/// Files that were merged before, and from when on their rows are looked at again.
#[derive(Default)]
pub(super) struct Again {
    pub(super) files: Vec<ScanFile>,
    pub(super) since: i64,
}

/// Keeps the files that may hold a row which was ingested at this time or later.
struct IngestedSince(i64);

impl Prune for IngestedSince {
    fn keep(&self, statistics: &dyn ColumnStatistics) -> Vec<bool> {
        let times = statistics.upper(layout::INGESTED_AT).and_then(|times| cast(&times, &DataType::Int64).ok());
        let Some(times) = times else { return vec![true; statistics.len()] };
        let times = times.as_primitive::<Int64Type>();
        (0..statistics.len()).map(|at| times.is_null(at) || times.value(at) >= self.0).collect()
    }
}
