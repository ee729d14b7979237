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

mod fates;
mod probe;
mod reading;
mod rows;
mod staged;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, StringArray};
use arrow::datatypes::FieldRef;
use datafusion::dataframe::DataFrame;
use datafusion::error::DataFusionError;
use datafusion::prelude::SessionContext;
use tokio::time::Instant;

use super::events::{Depth, Images, KeyRange, Seen, key_types};
use super::gate::{Gate, Side};
use super::keys::KeyShape;
use super::order::{Stragglers, Truncation};
use super::{Error, Extent, Merged, Result, Scd, SilverModel, check_columns_known, fold, row_columns, row_schema};
use crate::engine::{self, Engine};
use crate::ids::TableName;
use crate::table::{At, Lake, Table, TableView, WrittenFile};
pub(super) use fates::Fate;
pub(super) use probe::{Hits, add_to, with_deletes};
use reading::Changes;
pub(super) use rows::ROWS_TO_SPLIT;
pub(super) use staged::Staged;

/// How many bytes of events a byte of a bronze file becomes in memory, about. When it is more, a run is divided once it
/// is known.
const EXPANSION: u64 = 3;

/// A run that does not fit is divided further, up to here.
const MOST_PASSES_EVER: u64 = 1024;

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
    started: Instant,
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
        let started = Instant::now();
        Ok(Some(Run {
            lake,
            engine,
            model,
            side,
            session,
            view,
            columns,
            keys,
            ignores,
            extent,
            shape,
            has_lookups,
            started,
        }))
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
        let (mut base, mut passes) = (base, 1);
        let mut changes = None;
        loop {
            let mut staged = None;
            let silver = silver.clone();
            let outcome = self.stage_since(silver, base.as_ref(), &mut changes, &mut passes, &mut staged).await;
            let staged = match (&outcome, staged) {
                (Ok(Reach::Whole), Some(staged)) => return Ok(staged),
                (_, staged) => staged,
            };
            if let Some(staged) = staged {
                staged.silver.discard(&staged.written).await;
            }
            match outcome {
                Ok(Reach::Truncated) => (base, changes) = (None, None),
                Ok(Reach::Whole) => {
                    return Err(self.failed(engine::Error::Internal { problem: "a run staged nothing".to_string() }));
                }
                // What is laid out takes room that others need.
                Err(Error::Query { source: engine::Error::OutOfDisk { problem }, .. })
                    if changes.as_mut().is_some_and(Changes::forget_layout) =>
                {
                    tracing::warn!(
                        table = %self.model.table, layer = "silver", problem,
                        "the disk is full of changes that were laid out: each pass reads all of them"
                    );
                    // As few as there may be, since each has more to read now.
                    passes = 1;
                }
                // Whichever step it was: with fewer keys at a time, all of them take less.
                Err(Error::Query { source: engine::Error::OutOfMemory { problem }, .. })
                    if passes < MOST_PASSES_EVER =>
                {
                    passes *= 2;
                    tracing::debug!(table = %self.model.table, passes, problem, "divides the run further");
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// One attempt, in `passes` over the changes or more.
    async fn stage_since(
        &self,
        mut silver: Option<Table>,
        base: Option<&Base>,
        changes: &mut Option<Changes>,
        passes: &mut u64,
        staged: &mut Option<Staged>,
    ) -> Result<Reach> {
        let changes = match changes {
            Some(changes) => changes,
            None => changes.insert(self.changes(base).await?),
        };
        let versions = matches!(self.model.scd, Scd::Two { .. });
        // Rows that the model gives are kept next to the events they come from.
        let times = EXPANSION * (1 + u64::from(versions));
        let bytes = changes.files().map(|file| file.size).sum::<u64>() * times;
        *passes = match self.wants_keyless_only() {
            true => *passes,
            false => bytes.div_ceil((self.engine.memory() as u64 / 2).max(1)).max(*passes),
        };
        let depth = if versions { Depth::Versions } else { Depth::Rows };
        self.lay_out(changes, depth, passes).await;
        let (passes, changes) = (*passes, &*changes);
        let files = &changes.files;
        for number in 0..passes {
            let range = KeyRange { number, of: passes };
            let started = Instant::now();
            let mut newest = self.newest(changes, range, depth, base).await?;
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
                self.stage_versions(newest, files, base, merged, silver.take(), staged).await?;
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
            let mut fates = self.fates(&newest, &wanting, files, base, &merged).await?;
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
            let rows: Vec<u32> = of_fate(Fate::Row).collect();
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
                let frame = self.model_over(rows).await?;
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

    fn merged(&self, base: Option<&Base>, seen: &Seen) -> Merged {
        let mut merged = base.map(|base| base.merged.clone()).unwrap_or_default();
        merged.join(Merged {
            frontier: seen.frontier.clone(),
            truncation: seen.truncation.clone(),
            truncations: seen.truncations.clone().into_iter().collect(),
            unavailable: seen.unavailable.clone(),
            stragglers: Stragglers::default(),
        });
        merged.stragglers.update(&seen.last, &merged.frontier);
        merged
    }

    /// Whether the run folds every key it meets, whatever was merged of it.
    pub(super) fn mends(&self, base: Option<&Base>) -> bool {
        matches!(self.extent, Extent::Since(_)) && base.is_some()
    }

    /// Whether nothing but what has no key comes into quarantine, since no rule says otherwise.
    pub(super) fn wants_keyless_only(&self) -> bool {
        self.side == Side::Quarantine && !self.model.quarantines()
    }

    async fn frame(&self, sql: &str) -> Result<DataFrame> {
        engine::plan(&self.session, sql).await.map_err(|source| self.failed(source))
    }
}

/// How far a run got.
enum Reach {
    Whole,
    /// There is a new truncation: everything has to be folded.
    Truncated,
}

fn fates_is(fates: &[Fate], number: u32, fate: Fate) -> bool {
    fates[number as usize] == fate
}

pub(super) fn arrow_failed(error: arrow::error::ArrowError) -> engine::Error {
    DataFusionError::from(error).into()
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
