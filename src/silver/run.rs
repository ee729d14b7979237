//! One run over one table: what becomes of each key that the new changes touch.
//!
//! For most keys the last of the new events says it all. Not for those whose last event may not be their last:
//!
//! - An event at or before the furthest place merged of *any* partition may have been overtaken, since a key moves
//!   between partitions when partitions are added. Whether it was is looked up in the bronze files that reach that far.
//!   A key that was overtaken has its row already, unless values can come from events in between; then it is folded anew.
//! - An event that lacks values (a placeholder, or a null that the model ignores), or deletes a row that stays as it last
//!   was, goes on from the row that the key has (`before`). Where that does not tell, or where one of the key's new events
//!   may be before one that was merged, the key is folded anew from bronze's history.
//! - A truncation that is new folds everything that is past it.
//!
//! A run that mends goes by none of this: every key that has an event since the time it is given is folded anew.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, UInt32Array};
use arrow::compute::{cast, take};
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use datafusion::catalog::streaming::StreamingTable;
use datafusion::common::ScalarValue;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryConsumer;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::PartitionStream;
use datafusion::prelude::{SessionContext, ident, lit};
use futures::{StreamExt, TryStreamExt};
use roaring::RoaringTreemap;

use super::events::{
    Depth, EventRef, Events, Images, KeyRange, Newest, Rows, Seen, columns_to_read, key_types, of_range, without_key,
};
use super::fold::{self, Fold};
use super::gate::{Gate, ORIGIN, Passed, Side, origin_type};
use super::keys::{KeySet, KeyShape};
use super::order::{Place, PlaceRef, Truncation};
use super::versioned::EVENT;
use super::{
    Error, Extent, MARKER, Marker, Merged, OnDelete, Outcome, Result, Scd, SilverCommit, SilverModel,
    check_columns_known, check_names, definition as table_definition, row_columns, row_schema, select, upkeep,
};
use crate::definition;
use crate::engine::{self, Engine, Piece, RowReader, in_parallel, pieces};
use crate::ids::TableName;
use crate::layout;
use crate::quality::{Finding, Origin};
use crate::table::{
    At, ColumnStatistics, EvolvedSchema, Lake, Premise, Prune, ScanFile, SchemaChange, Table, TableView, WrittenFile,
};

/// How many bytes of events a byte of a bronze file becomes in memory, about. When it is more, a run is divided once it
/// is known.
const EXPANSION: u64 = 3;

/// A run that does not fit is divided further, up to here.
const MOST_PASSES_EVER: u64 = 1024;

/// Rows that are worth a file of their own for each core.
pub(super) const ROWS_TO_SPLIT: usize = 100_000;

/// Rows of new data that are made at a time.
const CHUNK_ROWS: usize = 8192;

/// What earlier runs have merged.
pub(super) struct Base {
    /// Of the bronze commit they reached.
    pub(super) sequence: i64,
    pub(super) merged: Merged,
}

pub(super) struct Run<'a> {
    pub(super) lake: &'a Lake,
    pub(super) engine: &'a Engine,
    pub(super) model: &'a SilverModel,
    pub(super) side: Side,
    pub(super) session: SessionContext,
    pub(super) view: TableView,
    pub(super) columns: Vec<FieldRef>,
    pub(super) keys: Vec<String>,
    /// Columns in which a null says nothing.
    ignores: Vec<String>,
    extent: Extent,
    shape: Arc<KeyShape>,
    has_lookups: bool,
}

/// The rows of a batch that are of keys: each one's position and the key's number; and columns of theirs.
pub(super) type Hits = (Vec<(u64, u32)>, Vec<ArrayRef>);

/// What becomes of a key's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is what the last event says.
    Row,
    /// It goes.
    Gone,
    /// It is what it was, but for what the new events say.
    Carry,
    /// Only all its events together say what it is.
    Fold,
    /// It is right as it is.
    Leave,
}

/// What a run did, for the snapshot's summary. Keys that are folded anew count by how many rows they have after it.
#[derive(Debug, Default, Clone, Copy)]
struct Counts {
    inserted: u64,
    updated: u64,
    deleted: u64,
    late: u64,
    duplicates: u64,
    /// Keys that went on from their rows, and that were folded from history.
    carried: u64,
    folded: u64,
}

impl Counts {
    /// `written` rows take the place of `replaced` ones.
    fn add(&mut self, written: u64, replaced: u64) {
        let updated = written.min(replaced);
        self.updated += updated;
        self.inserted += written - updated;
        self.deleted += replaced - updated;
    }

    fn notes(self) -> impl Iterator<Item = (String, String)> {
        let Counts { inserted, updated, deleted, late, duplicates, carried, folded } = self;
        let keys = [("carried", carried), ("folded", folded)].into_iter().filter(|(_, count)| *count > 0);
        let keys = keys.map(|(name, count)| (format!("icestream.keys-{name}"), count.to_string()));
        [("inserted", inserted), ("updated", updated), ("deleted", deleted), ("late", late), ("duplicates", duplicates)]
            .into_iter()
            .map(|(name, count)| (format!("icestream.rows-{name}"), count.to_string()))
            .chain(keys)
    }
}

/// Files and marker of a run, about to be committed.
pub(super) struct Staged {
    pub(super) silver: Table,
    pub(super) view: TableView,
    pub(super) written: Vec<WrittenFile>,
    doomed: Vec<(ScanFile, RoaringTreemap)>,
    pub(super) replaces_all: bool,
    /// The columns that the commit gives the table, where they are others.
    pub(super) evolved: Option<EvolvedSchema>,
    counts: Counts,
    pub(super) passed: Passed,
    /// Events that have no value for a key, and the first of them.
    pub(super) null_keys: u64,
    pub(super) first_null_key: Option<Origin>,
    pub(super) merged: Merged,
}

impl<'a> Run<'a> {
    /// `None` when nothing says yet what the keys are, because there is no change.
    pub(super) async fn new(
        lake: &'a Lake,
        engine: &'a Engine,
        (model, side): (&'a SilverModel, Side),
        view: TableView,
        keys: Option<Vec<String>>,
        extent: Extent,
        lookups: &BTreeMap<TableName, TableView>,
    ) -> Result<Option<Self>> {
        let columns = row_columns(model, &view)?;
        let session = engine.session();
        // What is made in the order of the keys stays in it.
        session.state_ref().write().config_mut().options_mut().optimizer.enable_round_robin_repartition = false;
        let history = TableName::new("bronze", "history").map_err(crate::table::Error::from)?;
        for (name, view) in lookups.iter().chain([(&history, &view)]) {
            engine::register(&session, name, view.clone())
                .map_err(|source| Error::Query { table: model.table.clone(), source })?;
        }
        let keys = match keys {
            Some(keys) => keys,
            None if !model.keys.is_empty() => model.keys.clone(),
            None => match keys_of_messages(&session, model).await? {
                Some(keys) => keys,
                None => return Ok(None),
            },
        };
        check_columns_known(model, &keys, &columns)?;
        let ignores = model.ignore_nulls.columns(&columns, &keys);
        let failed = |error: arrow::error::ArrowError| Error::Query {
            table: model.table.clone(),
            source: DataFusionError::from(error).into(),
        };
        let shape = Arc::new(KeyShape::new(key_types(&columns, &keys)).map_err(failed)?);
        let has_lookups = !lookups.is_empty();
        Ok(Some(Run { lake, engine, model, side, session, view, columns, keys, ignores, extent, shape, has_lookups }))
    }

    pub(super) fn ignores(&self) -> &[String] {
        &self.ignores
    }

    /// Columns that some event of all holds a placeholder for.
    pub(super) async fn unavailable(&self) -> Result<Vec<String>> {
        let batches = self.frame(fold::UNAVAILABLE).await?.collect().await;
        let batches = batches.map_err(|error| self.failed(error.into()))?;
        let names = batches.iter().flat_map(|batch| batch.column(0).as_string::<i32>().iter().flatten());
        Ok(names.map(str::to_string).collect())
    }

    /// Writes everything the run has to write. Nothing is left behind when it fails.
    pub(super) async fn stage(&self, silver: Option<Table>, base: Option<Base>) -> Result<Staged> {
        let (mut base, mut least_passes) = (base, 1);
        loop {
            let mut staged = None;
            let outcome = self.stage_since(silver.clone(), base.as_ref(), least_passes, &mut staged).await;
            let staged = match (&outcome, staged) {
                (Ok(Reach::Whole), Some(staged)) => return Ok(staged),
                (_, staged) => staged,
            };
            if let Some(staged) = staged {
                staged.silver.discard(&staged.written).await;
            }
            match outcome {
                Ok(Reach::Truncated) => base = None,
                Ok(Reach::OutOfMemory { passes, .. }) if passes < MOST_PASSES_EVER => least_passes = passes * 2,
                Ok(Reach::OutOfMemory { source, .. }) => return Err(self.failed(source)),
                Ok(Reach::Whole) => {
                    return Err(self.failed(engine::Error::Internal { problem: "a run staged nothing".to_string() }));
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn stage_since(
        &self,
        mut silver: Option<Table>,
        base: Option<&Base>,
        least_passes: u64,
        staged: &mut Option<Staged>,
    ) -> Result<Reach> {
        let new = self.view.added_since(base.map_or(0, |base| base.sequence));
        let files = new.files(None).await?;
        let again = self.again(base, &files).await?;
        let versions = matches!(self.model.scd, Scd::Two { .. });
        // Rows that the model gives are kept next to the events they come from.
        let bytes =
            files.iter().chain(&again.files).map(|file| file.size).sum::<u64>() * EXPANSION * (1 + u64::from(versions));
        let passes = bytes.div_ceil((self.engine.memory() as u64 / 2).max(1)).max(least_passes);
        for number in 0..passes {
            let range = KeyRange { number, of: passes };
            let depth = if versions { Depth::Versions } else { Depth::Rows };
            let started = tokio::time::Instant::now();
            let mut newest = match self.newest(&new, &files, &again, range, depth, base).await {
                Ok(newest) => newest,
                Err(Error::Query { source: source @ engine::Error::OutOfMemory { .. }, .. }) => {
                    return Ok(Reach::OutOfMemory { passes, source });
                }
                Err(error) => return Err(error),
            };
            if let Some(base) = base {
                let known = &base.merged;
                let knows = |of: &Truncation| known.truncations.iter().any(|(truncation, _)| truncation == of);
                if newest.seen.truncation > known.truncation || (versions && !newest.seen.truncations.keys().all(knows))
                {
                    return Ok(Reach::Truncated);
                }
            }
            let merged = self.merged(base, &newest.seen);
            let keyless = match number == 0 && self.side == Side::Quarantine {
                true => Some(newest.keyless_rows(&self.images()).map_err(|error| self.failed_arrow(error))?),
                false => None,
            };
            // Every pass sees them.
            let null_keys = (newest.seen.null_keys, newest.seen.first_null_key.clone());
            if versions {
                self.stage_versions(newest, &files, base, merged, silver.take(), staged).await?;
                self.stage_keyless(keyless, null_keys, staged).await?;
                continue;
            }
            let mut wanting = self.wanting(&newest, !merged.unavailable.is_empty());
            if self.mends(base) || !wanting.contains(&true) {
                wanting.fill(false);
            } else {
                newest.recall(&wanting);
                // Too many to remember: history has them all.
                if newest.hold_more(newest.bytes_of_all()).is_err() {
                    newest.forget_events();
                    wanting.fill(false);
                }
            }
            let newest = Arc::new(newest);
            let read_ms = started.elapsed().as_millis() as u64;
            let mut fates = self.fates(&newest, &wanting, &files, base, &merged).await?;
            let target = match (base, staged.as_ref(), silver.as_ref()) {
                (None, ..) => None,
                (Some(_), Some(staged), _) => Some(staged.view.clone()),
                (Some(_), None, silver) => silver.map(|silver| silver.view(At::Head)).transpose()?,
            };
            let carried = self.carry(&newest, &mut fates, target.as_ref(), merged.truncation.as_ref()).await?;
            let fates = Arc::new(fates);
            let judged_ms = started.elapsed().as_millis() as u64;
            let all = fates.as_slice();
            let of_fate = |fate: Fate| (0..fates.len() as u32).filter(move |number| fates_is(all, *number, fate));
            let mut rows: Vec<u32> = of_fate(Fate::Row).collect();
            newest.keys.sort(&mut rows);
            let frame = self.latest(&newest, &rows).await?;
            let gate = self.gate(&frame).await?;
            let schema = gate.table_schema(&row_schema(&frame, &self.keys));
            let whole = &mut *staged;
            let staged = self.staged(whole, silver.take(), &schema, base, &merged).await?;
            staged.merged.join(merged.clone());
            let mut written = Vec::new();
            if !rows.is_empty() {
                written = self.write(staged, frame, &gate).await?;
            }
            if let Some(rows) = carried {
                staged.counts.carried += rows.len() as u64;
                let frame = self.model_over(rows, false).await?;
                let frame = if self.has_lookups { self.by_key(frame)? } else { frame };
                written.extend(self.write(staged, frame, &gate).await?);
            }
            let folded: Vec<u32> = of_fate(Fate::Fold).collect();
            staged.counts.folded += folded.len() as u64;
            if !folded.is_empty() {
                let frame = self.fold(&newest, &folded, &merged).await?;
                written.extend(self.write(staged, frame, &gate).await?);
            }
            staged.counts.late += newest.seen.late;
            staged.counts.duplicates += newest.seen.duplicates;
            let written_rows = written.iter().map(WrittenFile::rows).sum();
            let written_ms = started.elapsed().as_millis() as u64;
            let (replaced, gone) = match staged.replaces_all {
                true => (0, 0),
                false => self.find(staged, &newest, &fates).await?,
            };
            staged.counts.add(written_rows, replaced);
            staged.counts.deleted += gone;
            tracing::debug!(
                table = %self.model.table, pass = number, passes, keys = fates.len(), rows = rows.len(),
                folded = folded.len(), late = newest.seen.late, duplicates = newest.seen.duplicates, read_ms, judged_ms,
                written_ms, found_ms = started.elapsed().as_millis() as u64, "went through the changes"
            );
            self.stage_keyless(keyless, null_keys, whole).await?;
        }
        Ok(Reach::Whole)
    }

    /// Commits what was staged, and discards it when that is not to be.
    pub(super) async fn commit(
        &self,
        staged: Staged,
        from: Option<String>,
        next: &Marker,
        mut findings: Vec<Finding>,
    ) -> Result<Outcome> {
        let Staged { silver, view, written, doomed, replaces_all, evolved, counts, passed, null_keys, .. } = staged;
        let rows_deleted = doomed.iter().map(|(_, positions)| positions.len()).sum();
        let rows_written = written.iter().map(WrittenFile::rows).sum();
        let mut all = written.clone();
        let columns = view.arrow_schema().fields().to_vec();
        let reader = |view: &TableView| RowReader::new(&self.session, view, columns.clone());
        let removal = match replaces_all {
            true => Ok(upkeep::Removal::default()),
            false => upkeep::remove(reader, self.engine.threads(), &silver, &view, doomed, &mut all).await,
        };
        let removal = match removal {
            Ok(removal) => removal,
            Err(error) => {
                silver.discard(&all).await;
                return Err(self.failed(error));
            }
        };
        let premise = Premise::new().marker_moves(MARKER, from, next.text()).rows_are_of(silver.snapshot_id());
        let change = match replaces_all {
            true => silver.change().replace_all(written),
            false => {
                let change = silver.change().row_delta(&view, written, removal.deletes);
                change.overwrite(&view, removal.remove, removal.add)
            }
        };
        // Versions are not rows that come, change and go.
        let notes = counts.notes().filter(|_| self.model.scd == Scd::One);
        let notes = notes.chain(quality_notes(&findings, &passed, null_keys));
        let change = notes.fold(change, |change, (name, count)| change.note(name, count));
        let change = match evolved {
            Some(evolved) => change.schema(evolved),
            None => change,
        };
        let definition = self.model.definition(self.side);
        let change = match definition.is_of(&silver) {
            true => change,
            false => change.set_property(definition::PROPERTY, definition.text()),
        };
        match change.premise(premise).commit().await {
            Ok(committed) => {
                findings.iter_mut().for_each(|finding| finding.snapshot_id = committed.snapshot_id);
                Ok(Outcome::Merged(SilverCommit {
                    table: silver.name().clone(),
                    snapshot_id: committed.snapshot_id,
                    bronze_snapshot_id: next.snapshot,
                    rows_written,
                    rows_deleted,
                    findings,
                    rows_quarantined: passed.quarantined + null_keys,
                    rows_dropped: passed.dropped,
                    null_keys,
                }))
            }
            Err(error) if error.is_premise_broken() => {
                silver.discard(&all).await;
                tracing::info!(table = %silver.name(), layer = "silver", %error, "yielded to another builder");
                Ok(Outcome::Yielded)
            }
            Err(error) => {
                if !matches!(error, crate::table::Error::Unresolved { .. }) {
                    silver.discard(&all).await;
                }
                Err(error.into())
            }
        }
    }

    pub(super) fn failed(&self, source: engine::Error) -> Error {
        Error::Query { table: self.model.table.clone(), source }
    }

    pub(super) fn failed_arrow(&self, error: arrow::error::ArrowError) -> Error {
        self.failed(DataFusionError::from(error).into())
    }

    pub(super) fn images(&self) -> Images<'_> {
        let with_origin = self.side.wants_origin(self.model);
        Images { columns: &self.columns, keys: &self.keys, with_origin }
    }

    /// Lets those rows through that belong into the table.
    pub(super) async fn gate(&self, rows: &DataFrame) -> Result<Arc<Gate>> {
        let gate = Gate::plan(self.engine, self.model, self.side, rows.schema().as_arrow()).await;
        Ok(Arc::new(gate.map_err(|source| self.failed(source))?))
    }

    /// Notes the events without a key and, for a quarantine, writes what they say.
    async fn stage_keyless(
        &self,
        rows: Option<Rows>,
        (count, first): (u64, Option<Origin>),
        staged: &mut Option<Staged>,
    ) -> Result<()> {
        let Some(staged) = staged else { return Ok(()) };
        (staged.null_keys, staged.first_null_key) = (count, first);
        let Some(rows) = rows.filter(|rows| rows.len() > 0) else { return Ok(()) };
        let frame = self.model_over(rows, false).await?;
        let gate = self.gate(&frame).await?;
        let written = self.write_with(staged, frame, move |batch| Ok((gate.keyless(&batch)?, Passed::default())));
        let (files, _) = written.await?;
        staged.counts.inserted += files.iter().map(WrittenFile::rows).sum::<u64>();
        staged.written.extend(files);
        Ok(())
    }

    fn merged(&self, base: Option<&Base>, seen: &Seen) -> Merged {
        let mut merged = base.map(|base| base.merged.clone()).unwrap_or_default();
        merged.join(Merged {
            frontier: seen.frontier.clone(),
            truncation: seen.truncation.clone(),
            truncations: seen.truncations.clone().into_iter().collect(),
            unavailable: seen.unavailable.clone(),
        });
        merged
    }

    /// What was staged already, or room to stage rows of this schema.
    pub(super) async fn staged<'s>(
        &self,
        staged: &'s mut Option<Staged>,
        silver: Option<Table>,
        rows: &Schema,
        base: Option<&Base>,
        merged: &Merged,
    ) -> Result<&'s mut Staged> {
        if let Some(staged) = staged {
            return Ok(staged);
        }
        let (table, evolved) = self.target(silver, rows).await?;
        let new = Staged::new(table, base.is_none(), merged.clone())?;
        Ok(staged.insert(Staged { evolved, ..new }))
    }

    /// The table to write to, with room for the rows. A rebuild changes its columns only in the commit that replaces the
    /// rows, and takes away those that the model does not give.
    async fn target(&self, silver: Option<Table>, rows: &Schema) -> Result<(Table, Option<EvolvedSchema>)> {
        let Some(silver) = silver else {
            return Ok((self.lake.ensure(&table_definition(self.model, rows.clone())).await?, None));
        };
        let stored = silver.schema()?;
        let mut change = SchemaChange::to_fit(&stored, rows);
        if self.extent == Extent::Everything {
            for field in stored.fields().iter().filter(|field| rows.index_of(field.name()).is_err()) {
                match silver.evolve(&SchemaChange::new().drop_column(field.name())) {
                    Ok(_) => change = change.drop_column(field.name()),
                    Err(error) => tracing::warn!(
                        table = %self.model.table, layer = "silver", column = field.name(), %error,
                        "a column that the model does not give stays, and is null"
                    ),
                }
            }
            let evolved = silver.evolve(&change)?;
            return Ok((silver, evolved));
        }
        match silver.evolve(&change)? {
            Some(evolved) => Ok((silver.change().schema(evolved).commit().await?.table, None)),
            None => Ok((silver, None)),
        }
    }

    /// Whether the run folds every key it meets, whatever was merged of it.
    pub(super) fn mends(&self, base: Option<&Base>) -> bool {
        matches!(self.extent, Extent::Since(_)) && base.is_some()
    }

    /// What was merged before and is looked at again.
    async fn again(&self, base: Option<&Base>, new: &[ScanFile]) -> Result<Again> {
        let (Extent::Since(since), Some(_)) = (self.extent, base) else { return Ok(Again::default()) };
        let new: HashSet<&str> = new.iter().map(|file| file.path.as_str()).collect();
        let mut files = self.view.files(Some(&IngestedSince(since))).await?;
        files.retain(|file| !new.contains(file.path.as_str()));
        Ok(Again { files, since })
    }

    /// Reads the new events of a range of keys.
    async fn newest(
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
        let nothing = super::Frontier::default();
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
        newest.keys.seal();
        newest.hold(held);
        Ok(newest)
    }

    /// Reads events on every core, those of the rows that `keep` names, and hands what `look` makes of each batch to
    /// `take`.
    pub(super) async fn each_batch_of<T: Send + 'static>(
        &self,
        view: &TableView,
        files: &[ScanFile],
        depth: Depth,
        keep: impl Fn(&Events) -> Option<BooleanArray> + Clone + Send + Sync + 'static,
        look: impl Fn(Events) -> T + Clone + Send + Sync + 'static,
        mut take: impl FnMut(T),
    ) -> Result<()> {
        let columns = columns_to_read(&view.arrow_schema(), &self.keys, depth);
        let reader = Arc::new(RowReader::new(&self.session, view, columns));
        let deleted = view.deleted_positions(&with_deletes(files)).await?;
        let parts = pieces(files).into_iter().map(|piece| {
            let file = files[piece.file].clone();
            let gone = deleted.get(&file.path).cloned();
            (piece, file, gone)
        });
        let work = |(piece, file, gone): (Piece, ScanFile, Option<Arc<RoaringTreemap>>)| {
            let (reader, shape, keys) = (reader.clone(), self.shape.clone(), self.keys.clone());
            let (keep, look) = (keep.clone(), look.clone());
            async move {
                let mut batches = reader.read(&file, &piece, gone, None).await?;
                let mut seen = Vec::new();
                while let Some(batch) = batches.try_next().await? {
                    seen.push(look(Events::read(&batch, &keys, &shape, &keep).map_err(arrow_failed)?));
                }
                Ok(seen)
            }
        };
        let take = |seen: Vec<T>| seen.into_iter().for_each(&mut take);
        in_parallel(self.engine.threads(), parts, work, take).await.map_err(|error| self.failed(error))
    }

    /// Decides what becomes of each key.
    async fn fates(
        &self,
        newest: &Arc<Newest>,
        wanting: &[bool],
        new_files: &[ScanFile],
        base: Option<&Base>,
        merged: &Merged,
    ) -> Result<Vec<Fate>> {
        if self.mends(base) {
            return Ok(vec![Fate::Fold; newest.keys.len()]);
        }
        let furthest = base.and_then(|base| base.merged.frontier.furthest());
        let mut doubtful = vec![None; newest.keys.len()];
        let mut earliest: Option<Place> = None;
        if let Some(furthest) = furthest {
            let takes = |place: &PlaceRef<'_>| merged.truncation.as_ref().is_some_and(|of| of.takes(place));
            let firsts = if wanting.contains(&true) { newest.firsts(&[]) } else { Vec::new() };
            for (number, doubtful) in doubtful.iter_mut().enumerate() {
                if takes(&newest.place(number)) {
                    continue;
                }
                // A key that goes on from its row must not have been overtaken by any of its new events.
                let first = firsts.get(number).and_then(|(first, _)| *first).filter(|_| wanting[number]);
                let event = first.unwrap_or_else(|| newest.last_of(number));
                let place = newest.place_of(event);
                if !place.is_past(furthest) {
                    *doubtful = Some(event);
                    if earliest.as_ref().is_none_or(|earliest| !place.reaches(earliest)) {
                        earliest = Some(place.to_place());
                    }
                }
            }
        }
        let overtaken = match earliest {
            Some(earliest) => self.overtaken(newest, doubtful, new_files, earliest).await?,
            None => HashSet::new(),
        };
        let values_from_before =
            self.model.on_delete == OnDelete::Mark || !merged.unavailable.is_empty() || !self.ignores.is_empty();
        let fate = |number: usize| {
            if merged.truncation.as_ref().is_some_and(|truncation| truncation.takes(&newest.place(number))) {
                Fate::Leave
            } else if overtaken.contains(&(number as u32)) {
                if values_from_before { Fate::Fold } else { Fate::Leave }
            } else if wanting[number] {
                Fate::Carry
            } else if newest.is_delete(number) {
                if self.model.on_delete == OnDelete::Mark { Fate::Fold } else { Fate::Gone }
            } else if !merged.unavailable.is_empty() && newest.lacks_any(number, &self.columns)
                || newest.holds_ignored_null(number)
            {
                Fate::Fold
            } else {
                Fate::Row
            }
        };
        Ok((0..newest.keys.len()).map(fate).collect())
    }

    /// Which of the doubtful keys have an event in the files before that is past the one given.
    pub(super) async fn overtaken(
        &self,
        newest: &Arc<Newest>,
        doubtful: Vec<Option<EventRef>>,
        new_files: &[ScanFile],
        earliest: Place,
    ) -> Result<HashSet<u32>> {
        let new: HashSet<&str> = new_files.iter().map(|file| file.path.as_str()).collect();
        let mut files = self.view.files(Some(&Reaches(earliest))).await?;
        files.retain(|file| !new.contains(file.path.as_str()));
        let (newest, doubtful) = (newest.clone(), Arc::new(doubtful));
        let look = move |events: Events| {
            let mut overtaken = Vec::new();
            events.for_each_of(&newest.keys, |number, place| {
                if doubtful[number].is_some_and(|event| place > newest.place_of(event)) {
                    overtaken.push(number as u32);
                }
            });
            overtaken
        };
        let mut found = HashSet::new();
        let take = |overtaken: Vec<u32>| found.extend(overtaken);
        self.each_batch_of(&self.view, &files, Depth::Order, |_| None, look, take).await?;
        Ok(found)
    }

    async fn frame(&self, sql: &str) -> Result<DataFrame> {
        engine::plan(&self.session, sql).await.map_err(|source| self.failed(source))
    }

    /// The model over what the last events say.
    async fn latest(&self, newest: &Newest, numbers: &[u32]) -> Result<DataFrame> {
        let rows = newest.rows(numbers, &self.images()).map_err(|error| self.failed_arrow(error))?;
        let frame = self.model_over(rows, false).await?;
        match self.has_lookups {
            true => self.by_key(frame),
            false => Ok(frame),
        }
    }

    fn by_key(&self, frame: DataFrame) -> Result<DataFrame> {
        let keys = self.keys.iter().map(|key| ident(key.as_str()).sort(true, false)).collect();
        frame.sort(keys).map_err(|error| self.failed(error.into()))
    }

    /// The model over rows, with the number of each where `counts` says so. Without lookups, the rows stay in order.
    pub(super) async fn model_over(&self, rows: Rows, counts: bool) -> Result<DataFrame> {
        let failed = |error: DataFusionError| self.failed(error.into());
        let marks = self.model.on_delete == OnDelete::Mark;
        let mut fields: Vec<FieldRef> = self
            .columns
            .iter()
            .map(|column| Arc::new(Field::new(column.name(), column.data_type().clone(), true)))
            .collect();
        fields.push(Arc::new(Field::new(layout::POSITION, DataType::Utf8, true)));
        fields.push(Arc::new(Field::new(layout::SOURCE_TS, layout::instant(), true)));
        let with_origin = self.side.wants_origin(self.model);
        if with_origin {
            fields.push(Arc::new(Field::new(ORIGIN, origin_type(), true)));
        }
        if marks {
            fields.push(Arc::new(Field::new("_is_deleted", DataType::Boolean, true)));
        }
        if counts {
            fields.push(Arc::new(Field::new(EVENT, DataType::Int64, true)));
        }
        let schema = Arc::new(Schema::new(fields));
        let rows = Arc::new(rows);
        let parts = (rows.len() / ROWS_TO_SPLIT).clamp(1, self.engine.threads());
        let partition = |part: usize| {
            let bound = |part: usize| rows.len() * part / parts;
            let (rows, schema) = (rows.clone(), schema.clone());
            Arc::new(Chosen { rows, schema, from: bound(part), until: bound(part + 1), marks, counts })
                as Arc<dyn PartitionStream>
        };
        let table = StreamingTable::try_new(schema.clone(), (0..parts).map(partition).collect()).map_err(failed)?;
        self.session.deregister_table("changes").map_err(failed)?;
        self.session.register_table("changes", Arc::new(table)).map_err(failed)?;
        self.selected(counts).await
    }

    /// The model's SELECT over `changes`.
    async fn selected(&self, counts: bool) -> Result<DataFrame> {
        let hidden = counts.then_some(EVENT).into_iter();
        let hidden = hidden.chain(self.side.wants_origin(self.model).then_some(ORIGIN));
        let frame = self.frame(&select(self.model, &self.keys, &hidden.collect::<Vec<_>>())?).await?;
        check_names(self.model, &frame)?;
        Ok(frame)
    }

    /// The model over the fold of all events of some keys, sorted by key.
    async fn fold(&self, newest: &Newest, numbers: &[u32], merged: &Merged) -> Result<DataFrame> {
        let failed = |error: DataFusionError| self.failed(error.into());
        let columns = newest.key_columns(numbers).map_err(|error| self.failed_arrow(error))?;
        let fields =
            self.keys.iter().zip(&columns).map(|(key, column)| Field::new(key, column.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let batch = RecordBatch::try_new(schema.clone(), columns).map_err(|error| self.failed_arrow(error))?;
        let table = MemTable::try_new(schema, vec![vec![batch]]).map_err(failed)?;
        self.session.deregister_table("touched").map_err(failed)?;
        self.session.register_table("touched", Arc::new(table)).map_err(failed)?;
        let unavailable: Vec<String> = merged.unavailable.iter().cloned().collect();
        let fold = Fold {
            columns: self.columns.iter().map(|column| column.name().as_str()).collect(),
            keys: self.keys.iter().map(String::as_str).collect(),
            unavailable: &unavailable,
            ignores: &self.ignores,
            marks_deletes: self.model.on_delete == OnDelete::Mark,
            truncation: merged.truncation.as_ref(),
            with_origin: self.side.wants_origin(self.model),
        };
        let changes = self.frame(&fold.sql()).await?;
        self.session.deregister_table("changes").map_err(failed)?;
        self.session.register_table("changes", changes.into_view()).map_err(failed)?;
        let frame = self.selected(false).await?;
        self.by_key(frame)
    }

    /// Writes those of the rows that belong into the table.
    async fn write(&self, staged: &mut Staged, frame: DataFrame, gate: &Arc<Gate>) -> Result<Vec<WrittenFile>> {
        let gate = gate.clone();
        let (files, passed) = self.write_with(staged, frame, move |batch| gate.pass(&batch)).await?;
        staged.passed.join(passed);
        staged.written.extend(files.iter().cloned());
        Ok(files)
    }

    /// Writes what `pass` makes of rows, on as many cores as they are spread over.
    async fn write_with(
        &self,
        staged: &Staged,
        frame: DataFrame,
        pass: impl Fn(RecordBatch) -> Result<(RecordBatch, Passed), engine::Error> + Clone + Send + 'static,
    ) -> Result<(Vec<WrittenFile>, Passed)> {
        let (silver, evolved) = (&staged.silver, staged.evolved.as_ref());
        let failed = |error: DataFusionError| self.failed(error.into());
        let now = ScalarValue::TimestampMicrosecond(Some(self.lake.clock().now_us()), Some(layout::UTC.into()));
        let frame = frame.with_column("_merged_at", lit(now)).map_err(failed)?;
        let streams = frame.execute_stream_partitioned().await.map_err(failed)?;
        let (mut written, mut passed) = (Vec::new(), Passed::default());
        let work = |stream| {
            let (silver, evolved, table) = (silver.clone(), evolved.cloned(), self.model.table.clone());
            let pass = pass.clone();
            // A failure must not end the others before they have said what they wrote.
            async move { Ok(write_stream(&silver, evolved.as_ref(), &table, stream, pass).await) }
        };
        let mut failure = None;
        in_parallel(streams.len(), streams, work, |outcome: Result<(Vec<WrittenFile>, Passed)>| match outcome {
            Ok((files, of_stream)) => {
                written.extend(files);
                passed.join(of_stream);
            }
            Err(error) => drop(failure.get_or_insert(error)),
        })
        .await
        .map_err(|error| self.failed(error))?;
        match failure {
            None => Ok((written, passed)),
            Some(error) => {
                silver.discard(&written).await;
                Err(error)
            }
        }
    }

    /// Adds where the rows of the keys are in the target. They are looked for in the very state that the commit stands
    /// on. Gives how many make way for others, and how many just go.
    async fn find(&self, staged: &mut Staged, newest: &Arc<Newest>, fates: &Arc<Vec<Fate>>) -> Result<(u64, u64)> {
        let (mut replaced, mut gone) = (0, 0);
        for (file, hits) in self.probe(&staged.view, newest, fates, &[]).await? {
            let hits = || hits.iter().flat_map(|(rows, _)| rows);
            let of_gone = hits().filter(|(_, number)| fates_is(fates, *number, Fate::Gone)).count() as u64;
            gone += of_gone;
            replaced += hits().count() as u64 - of_gone;
            staged.doom(file, set_of(hits().map(|(position, _)| *position).collect()));
        }
        Ok((replaced, gone))
    }

    /// Finds the rows of the keys in the target: for each file, where they are, whose, and some columns of theirs.
    pub(super) async fn probe(
        &self,
        view: &TableView,
        newest: &Arc<Newest>,
        fates: &Arc<Vec<Fate>>,
        with: &[&str],
    ) -> Result<Vec<(ScanFile, Vec<Hits>)>> {
        let mut sorted: Vec<u32> =
            (0..fates.len() as u32).filter(|number| !fates_is(fates, *number, Fate::Leave)).collect();
        if sorted.is_empty() {
            return Ok(Vec::new());
        }
        newest.keys.sort(&mut sorted);
        let key = self.keys[0].as_str();
        let files = view.files(None).await?;
        let spans = self.spans(view, &files, &newest.keys, &sorted)?;
        let (files, spans): (Vec<ScanFile>, Vec<(u32, u32)>) =
            files.into_iter().zip(spans).filter_map(|(file, span)| Some((file, span?))).unzip();
        let schema = view.arrow_schema();
        let names = self.keys.iter().map(String::as_str).chain(with.iter().copied());
        let columns = names.map(|name| {
            let missing = |error| self.failed_arrow(error);
            Ok(Arc::new(schema.field_with_name(name).map_err(missing)?.clone()))
        });
        let columns = columns.collect::<Result<Vec<FieldRef>>>()?;
        let key_type = columns[0].data_type().clone();
        let reader = Arc::new(RowReader::new(&self.session, view, columns).with_positions());
        let deleted = view.deleted_positions(&with_deletes(&files)).await?;
        let mut parts = Vec::new();
        for piece in pieces(&files) {
            let (file, (first, last)) = (files[piece.file].clone(), spans[piece.file]);
            let ends = newest.key_columns(&[first, last]).map_err(|error| self.failed_arrow(error))?;
            let ends = cast(&ends[0], &key_type).map_err(|error| self.failed_arrow(error))?;
            let end = |row| ScalarValue::try_from_array(&ends, row).map_err(|error| self.failed(error.into()));
            let gone = deleted.get(&file.path).cloned();
            parts.push((piece, file, gone, (key.to_string(), end(0)?, end(1)?)));
        }
        let work = |(piece, file, gone, (key, low, high)): (Piece, ScanFile, _, (String, _, _))| {
            let (reader, shape) = (reader.clone(), self.shape.clone());
            let (newest, fates, width) = (newest.clone(), fates.clone(), self.keys.len());
            async move {
                let mut batches = reader.read(&file, &piece, gone, Some((&key, low, high))).await?;
                let mut found: Vec<Hits> = Vec::new();
                while let Some(batch) = batches.try_next().await? {
                    let (positions, columns) = match batch.columns().split_last() {
                        Some((positions, columns)) => (positions.as_primitive::<Int64Type>(), columns),
                        None => continue,
                    };
                    let keys = shape.keys(&columns[..width]).map_err(arrow_failed)?;
                    let (mut rows, mut hits) = (Vec::new(), Vec::new());
                    newest.keys.for_each_match(&keys, |row, number| {
                        if fates[number] != Fate::Leave {
                            rows.push(row as u32);
                            hits.push((positions.value(row) as u64, number as u32));
                        }
                    });
                    if hits.is_empty() {
                        continue;
                    }
                    let rows = UInt32Array::from(rows);
                    let of_hits = columns[width..].iter().map(|column| take(column, &rows, None));
                    found.push((hits, of_hits.collect::<Result<_, _>>().map_err(arrow_failed)?));
                }
                Ok((piece.file, found))
            }
        };
        let mut found: BTreeMap<usize, Vec<Hits>> = BTreeMap::new();
        let take = |(file, hits): (usize, Vec<Hits>)| found.entry(file).or_default().extend(hits);
        in_parallel(self.engine.threads(), parts, work, take).await.map_err(|error| self.failed(error))?;
        Ok(found
            .into_iter()
            .filter(|(_, hits)| !hits.is_empty())
            .map(|(file, hits)| (files[file].clone(), hits))
            .collect())
    }

    /// For each file, the first and the last of the sorted keys that may be in it; `None` when none can.
    fn spans(
        &self,
        view: &TableView,
        files: &[ScanFile],
        set: &KeySet,
        sorted: &[u32],
    ) -> Result<Vec<Option<(u32, u32)>>> {
        let whole = sorted.first().copied().zip(sorted.last().copied());
        let statistics = view.statistics(files);
        let key = &self.keys[0];
        let (Some(lower), Some(upper)) = (statistics.lower(key), statistics.upper(key)) else {
            return Ok(vec![whole; files.len()]);
        };
        let first = self.shape.of_first_column().map_err(|error| self.failed_arrow(error))?;
        let bounds = |column: ArrayRef| first.keys(&[column]).map_err(|error| self.failed_arrow(error));
        let (lower, upper) = (bounds(lower)?, bounds(upper)?);
        Ok((0..files.len()).map(|file| set.between(sorted, &lower, &upper, file)).collect())
    }
}

/// How far a run got.
enum Reach {
    Whole,
    /// There is a new truncation: everything has to be folded.
    Truncated,
    /// The changes of one pass do not fit.
    OutOfMemory {
        passes: u64,
        source: engine::Error,
    },
}

/// What the rules said, for the snapshot's summary. Where none said anything, nothing is noted.
fn quality_notes(findings: &[Finding], passed: &Passed, null_keys: u64) -> impl Iterator<Item = (String, String)> {
    let counts =
        [("quarantined", passed.quarantined + null_keys), ("dropped", passed.dropped), ("null-key", null_keys)];
    let rows = counts.into_iter().filter(|(_, count)| *count > 0);
    let rows = rows.map(|(name, count)| (format!("icestream.rows-{name}"), count.to_string()));
    let rules = findings.iter().map(|of| (format!("icestream.rule.{}", of.rule), of.rows_failed.to_string()));
    rows.chain(rules.collect::<Vec<_>>())
}

fn fates_is(fates: &[Fate], number: u32, fate: Fate) -> bool {
    fates[number as usize] == fate
}

/// Positions as a set, which is much faster made of sorted ones.
pub(super) fn set_of(mut positions: Vec<u64>) -> RoaringTreemap {
    positions.sort_unstable();
    positions.dedup();
    RoaringTreemap::from_sorted_iter(positions.iter().copied()).unwrap_or_else(|_| positions.into_iter().collect())
}

pub(super) fn with_deletes(files: &[ScanFile]) -> Vec<ScanFile> {
    files.iter().filter(|file| !file.deletes.is_empty()).cloned().collect()
}

pub(super) fn arrow_failed(error: arrow::error::ArrowError) -> engine::Error {
    DataFusionError::from(error).into()
}

async fn write_stream(
    silver: &Table,
    evolved: Option<&EvolvedSchema>,
    table: &TableName,
    mut stream: SendableRecordBatchStream,
    pass: impl Fn(RecordBatch) -> Result<(RecordBatch, Passed), engine::Error>,
) -> Result<(Vec<WrittenFile>, Passed)> {
    let (mut writer, mut passed) = (silver.writer(evolved)?, Passed::default());
    loop {
        let outcome = match stream.try_next().await {
            Ok(Some(batch)) => match pass(batch) {
                Ok((batch, of_batch)) => {
                    passed.join(of_batch);
                    writer.write(&batch).await.map_err(Error::from)
                }
                Err(source) => Err(Error::Query { table: table.clone(), source }),
            },
            Ok(None) => break,
            Err(error) => Err(Error::Query { table: table.clone(), source: error.into() }),
        };
        if let Err(error) = outcome {
            writer.discard().await;
            return Err(error);
        }
    }
    Ok((writer.finish().await?, passed))
}

/// The rows of a part of the keys.
#[derive(Debug)]
struct Chosen {
    rows: Arc<Rows>,
    schema: SchemaRef,
    from: usize,
    until: usize,
    marks: bool,
    counts: bool,
}

impl PartitionStream for Chosen {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (rows, schema, until) = (self.rows.clone(), self.schema.clone(), self.until);
        let (marks, counts) = (self.marks, self.counts);
        let chunks = (self.from..until).step_by(CHUNK_ROWS).map(move |from| {
            let end = until.min(from + CHUNK_ROWS);
            let mut columns = rows.gather(from, end)?;
            if marks {
                columns.push(Arc::new(rows.gone(from, end)));
            }
            if counts {
                columns.push(Arc::new(Int64Array::from_iter_values(from as i64..end as i64)));
            }
            Ok(RecordBatch::try_new(schema.clone(), columns)?)
        });
        Box::pin(RecordBatchStreamAdapter::new(self.schema.clone(), futures::stream::iter(chunks).boxed()))
    }
}

/// Files that were merged before, and from when on their rows are looked at again.
#[derive(Default)]
struct Again {
    files: Vec<ScanFile>,
    since: i64,
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

/// Keeps the files that may hold an event past a place.
struct Reaches(Place);

impl Prune for Reaches {
    fn keep(&self, statistics: &dyn ColumnStatistics) -> Vec<bool> {
        let Place(Some(epoch), position, offset) = &self.0 else { return vec![true; statistics.len()] };
        let epochs = statistics.upper(layout::EPOCH);
        let positions = statistics.upper(layout::POSITION);
        let offsets = statistics.upper(layout::OFFSET);
        let (nulls, rows) = (statistics.null_counts(layout::POSITION), statistics.row_counts());
        let long = |array: &Option<ArrayRef>, at: usize| {
            let array = cast(array.as_ref()?, &DataType::Int64).ok()?;
            array.is_valid(at).then(|| array.as_primitive::<Int64Type>().value(at))
        };
        let text = |array: &Option<ArrayRef>, at: usize| {
            let array = array.as_ref()?.as_string_opt::<i32>()?;
            array.is_valid(at).then(|| array.value(at).to_string())
        };
        let may_reach = |at: usize| {
            match long(&epochs, at) {
                None => return true,
                Some(highest) if highest != i64::from(*epoch) => return highest > i64::from(*epoch),
                Some(_) => {}
            }
            let has_no_position = long(&nulls, at).is_some_and(|nulls| long(&rows, at) == Some(nulls));
            match position {
                // A bound may be cut, and stands for more than itself then.
                Some(position) => text(&positions, at).is_none_or(|highest| highest >= *position) && !has_no_position,
                None if has_no_position => long(&offsets, at).is_none_or(|highest| highest >= *offset),
                None => true,
            }
        };
        (0..statistics.len()).map(may_reach).collect()
    }
}

impl Staged {
    pub(super) fn new(silver: Table, replaces_all: bool, merged: Merged) -> Result<Self> {
        let view = silver.view(At::Head)?;
        Ok(Staged {
            silver,
            view,
            written: Vec::new(),
            doomed: Vec::new(),
            replaces_all,
            evolved: None,
            counts: Counts::default(),
            passed: Passed::default(),
            null_keys: 0,
            first_null_key: None,
            merged,
        })
    }

    pub(super) fn changes_nothing(&self) -> bool {
        self.written.is_empty() && self.doomed.is_empty() && !self.replaces_all
    }

    /// The columns of the rows to be written.
    pub(super) fn schema(&self) -> Result<SchemaRef> {
        Ok(match &self.evolved {
            Some(evolved) => evolved.arrow(self.silver.name())?,
            None => self.silver.schema()?,
        })
    }

    /// The table as it would be.
    pub(super) async fn view_of_all(&self) -> Result<TableView> {
        if self.replaces_all {
            return Ok(self.view.of_staged(&self.written, self.evolved.as_ref())?);
        }
        Ok(self.view.with_staged(&self.doomed, &self.written, self.evolved.as_ref()).await?)
    }

    pub(super) fn doom(&mut self, file: ScanFile, positions: RoaringTreemap) {
        match self.doomed.iter_mut().find(|(known, _)| known.path == file.path) {
            Some((_, known)) => *known |= positions,
            None if positions.is_empty() => {}
            None => self.doomed.push((file, positions)),
        }
    }
}

/// The names in the first message key there is; `None` when there is no change yet.
async fn keys_of_messages(session: &SessionContext, model: &SilverModel) -> Result<Option<Vec<String>>> {
    let failed = |source: engine::Error| Error::Query { table: model.table.clone(), source };
    let no_keys = || Error::NoKeys { table: model.table.clone(), from: model.from.clone() };
    let batches = engine::plan(session, fold::FIRST_KEY).await.map_err(failed)?.collect().await;
    let batches = batches.map_err(|error| failed(error.into()))?;
    let Some(batch) = batches.iter().find(|batch| batch.num_rows() > 0) else { return Ok(None) };
    let key = batch.column(0).as_any().downcast_ref::<StringArray>().filter(|keys| keys.is_valid(0));
    let text = key.map(|keys| keys.value(0)).ok_or_else(no_keys)?;
    match serde_json::from_str::<serde_json::Value>(text) {
        Ok(serde_json::Value::Object(fields)) if !fields.is_empty() => Ok(Some(fields.keys().cloned().collect())),
        _ => Err(no_keys()),
    }
}
