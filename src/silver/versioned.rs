//! One run over a table of versions: the new events go on from what each key's row was, or, where that is not to be
//! had, from all its events before.
//!
//! A key is folded from all its events when a new one is not past all that was merged of it, lacks values (or has nulls
//! that the model ignores), or is before a truncation. All its versions are replaced then.

mod known;
mod pool;
mod work;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{BooleanArray, RecordBatch};
use arrow::datatypes::{DataType, Field, FieldRef, Schema};
use arrow::error::ArrowError;
use datafusion::execution::memory_pool::MemoryConsumer;

use super::events::{Depth, EventRef, Events, Images, Newest, Rows, Step};
use super::order::{Place, Truncation};
use super::run::{Base, Fate, Run, Staged, arrow_failed};
use super::versions::{IS_CURRENT, IS_DELETED, VALID_FROM, VALID_TO};
use super::{Error, MERGED_AT, Merged, Result, Scd, SilverModel, row_schema};
use crate::engine;
use crate::layout;
use crate::table::{ScanFile, Table};
use known::Known;
use pool::Pool;
use work::Work;

/// Says which step a row that the model gives is of.
pub(super) const EVENT: &str = "_event";

/// Columns of a version that say what became of it, whatever its row was.
const MADE_ANEW: [&str; 5] = [VALID_FROM, VALID_TO, IS_CURRENT, IS_DELETED, MERGED_AT];

impl Run<'_> {
    /// One pass of a run, over the keys of a range.
    pub(super) async fn stage_versions(
        &self,
        mut newest: Newest,
        new_files: &[ScanFile],
        base: Option<&Base>,
        merged: Merged,
        silver: Option<Table>,
        staged: &mut Option<Staged>,
    ) -> Result<()> {
        let failed = |error: ArrowError| self.failed(arrow_failed(error));
        let started = tokio::time::Instant::now();
        let elapsed_ms = || started.elapsed().as_millis() as u64;
        newest.seen.unavailable.extend(merged.unavailable.iter().cloned());
        let mut fates = vec![Fate::Row; newest.keys.len()];
        if self.mends(base) {
            fates.fill(Fate::Fold);
            newest.forget_events();
            newest = self.with_history(newest, &fates, &[]).await?;
        } else if let Some(base) = base {
            let (known, of_keys) = self.keys_to_fold(newest, new_files, base, &merged).await?;
            (newest, fates) = (known, of_keys);
            if fates.contains(&Fate::Fold) {
                newest = self.with_history(newest, &fates, new_files).await?;
            }
        }
        let truncations: BTreeMap<_, _> = merged.truncations.iter().cloned().collect();
        // What comes out has the same columns whatever goes in.
        let frame = self.model_over_parts(Rows::default(), Vec::new(), true).await?;
        let gate = self.gate(&frame).await?;
        let schema = versions_schema(&gate.table_schema(&row_schema(&frame, &self.keys)));
        let staged = self.staged(staged, silver, &schema, base, &merged).await?;
        staged.merged.join(merged);
        let newest = Arc::new(newest);
        let replaces_all = staged.replaces_all;
        let found = async {
            let known = match replaces_all {
                true => Known::default(),
                false => self.known(staged, &newest, fates).await?,
            };
            Ok::<_, Error>((staged, known, elapsed_ms()))
        };
        // What steps there are is found by one core, and what is read by both.
        let made = async {
            let (steps, rows) = self.steps(&newest, truncations).await?;
            Ok::<_, Error>((steps, rows, elapsed_ms()))
        };
        // Both to their ends: what one of them still does would hold memory that the next attempt needs.
        let (found, made) = tokio::join!(found, made);
        let ((staged, known, found_ms), (steps, rows, steps_ms)) = (found?, made?);
        // The rows hold the events' columns, until they are written.
        let held = self.alone(newest)?.into_held();
        let bytes = known.rows.iter().map(RecordBatch::get_array_memory_size).sum();
        let of_known = MemoryConsumer::new(format!("versions for {}", self.model.table))
            .register(&self.session.runtime_env().memory_pool);
        of_known.try_grow(bytes).map_err(|error| self.failed(error.into()))?;
        let mut pool = Pool::new(staged.schema()?);
        known.rows.iter().try_for_each(|batch| pool.add(batch)).map_err(failed)?;
        let tracked = tracked(self.model, &self.keys, &pool.schema)?;
        let now = self.lake.clock().now_us();
        let on_delete = self.model.on_delete;
        let count = steps.len();
        let work = Work { steps, rows: rows.len(), before: known.before, on_delete, pool, tracked, now, gate };
        let (written, passed) = self.write_versions(staged, work, rows).await?;
        staged.written.extend(written);
        staged.passed.join(passed);
        drop(held);
        tracing::debug!(
            table = %self.model.table, steps = count, steps_ms, found_ms, written_ms = elapsed_ms(),
            "went through the versions"
        );
        Ok(())
    }

    /// The events as steps, and what they say rows are.
    async fn steps(&self, newest: &Arc<Newest>, truncations: BTreeMap<Truncation, i64>) -> Result<(Vec<Step>, Rows)> {
        let (of, columns, keys) = (newest.clone(), self.columns.clone(), self.keys.clone());
        let with_origin = self.images().with_origin;
        let task = tokio::task::spawn_blocking(move || {
            let steps = of.steps(&truncations);
            let rows = of.rows_of(&steps, &Images { columns: &columns, keys: &keys, with_origin })?;
            Ok((steps, rows))
        });
        let ended = task.await.map_err(|error| self.failed(engine::Error::Internal { problem: error.to_string() }))?;
        ended.map_err(|error: ArrowError| self.failed(arrow_failed(error)))
    }

    /// Which keys have to be folded from all their events.
    async fn keys_to_fold(
        &self,
        newest: Newest,
        new_files: &[ScanFile],
        base: &Base,
        merged: &Merged,
    ) -> Result<(Newest, Vec<Fate>)> {
        let mut fates = vec![Fate::Row; newest.keys.len()];
        if newest.all_are_past() && !newest.may_lack() && merged.truncations.is_empty() {
            return Ok((newest, fates));
        }
        let firsts = newest.firsts(&self.columns);
        let furthest = base.merged.frontier.furthest();
        let mut doubtful: Vec<Option<EventRef>> = vec![None; newest.keys.len()];
        let mut earliest: Option<Place> = None;
        for (number, (first, lacks)) in firsts.into_iter().enumerate() {
            let Some(first) = first else { continue };
            let place = newest.place_of(first);
            if lacks || merged.truncations.iter().any(|(truncation, _)| truncation.takes(&place)) {
                fates[number] = Fate::Fold;
            } else if furthest.is_some_and(|furthest| !place.is_past(furthest)) {
                doubtful[number] = Some(first);
                if earliest.as_ref().is_none_or(|earliest| !place.reaches(earliest)) {
                    earliest = Some(place.to_place());
                }
            }
        }
        let Some(earliest) = earliest else { return Ok((newest, fates)) };
        let newest = Arc::new(newest);
        for number in self.overtaken(&newest, doubtful, new_files, earliest).await? {
            fates[number as usize] = Fate::Fold;
        }
        Ok((self.alone(newest)?, fates))
    }

    /// Adds the events from before of the keys that are folded.
    async fn with_history(&self, newest: Newest, fates: &[Fate], new_files: &[ScanFile]) -> Result<Newest> {
        let new: HashSet<&str> = new_files.iter().map(|file| file.path.as_str()).collect();
        let mut files = self.view.files(None).await?;
        files.retain(|file| !new.contains(file.path.as_str()));
        let newest = Arc::new(newest);
        let (set, folded) =
            (newest.clone(), Arc::new(fates.iter().map(|fate| *fate == Fate::Fold).collect::<Vec<_>>()));
        let of_folded = move |events: &Events| {
            let mut keep = vec![false; events.len()];
            events.for_each_row_of(&set.keys, |row, number| keep[row] |= folded[number]);
            Some(BooleanArray::from(keep))
        };
        let mut found = Vec::new();
        self.each_batch_of(
            &self.view,
            &files,
            Depth::Versions,
            of_folded,
            |events| events,
            |events| found.push(events),
        )
        .await?;
        let mut newest = self.alone(newest)?;
        let folded: Vec<bool> = fates.iter().map(|fate| *fate == Fate::Fold).collect();
        for events in found.into_iter().filter(|events| events.len() > 0) {
            newest.hold_more(events.bytes()).map_err(|error| self.failed(error.into()))?;
            newest.add_earlier(events, &folded);
        }
        Ok(newest)
    }

    /// The tasks that shared it have ended.
    fn alone(&self, newest: Arc<Newest>) -> Result<Newest> {
        let shared = || engine::Error::Internal { problem: "a task outlived its work".to_string() };
        Arc::try_unwrap(newest).map_err(|_| self.failed(shared()))
    }
}

/// The columns whose change makes a version.
pub(super) fn tracked(model: &SilverModel, keys: &[String], schema: &Schema) -> Result<Vec<usize>> {
    let Scd::Two { track_history } = &model.scd else { return Ok(Vec::new()) };
    let missing = |name: &String| Error::Model {
        table: model.table.clone(),
        problem: format!("`track_history` names `{name}`, which the model does not select"),
    };
    if !track_history.is_empty() {
        return track_history.iter().map(|name| schema.index_of(name).map_err(|_| missing(name))).collect();
    }
    let own = |name: &str| layout::is_own_name(name) || keys.iter().any(|key| key == name);
    Ok((0..schema.fields().len()).filter(|at| !own(schema.field(*at).name())).collect())
}

/// The columns of a table of versions whose model gives these.
pub(super) fn versions_schema(rows: &Schema) -> Schema {
    let mut fields: Vec<FieldRef> = rows.fields().iter().filter(|field| field.name() != EVENT).cloned().collect();
    let own = [
        Field::new(VALID_FROM, layout::instant(), true),
        Field::new(VALID_TO, layout::instant(), true),
        Field::new(IS_CURRENT, DataType::Boolean, true),
    ];
    let merged_at = fields.pop();
    fields.extend(own.map(Arc::new));
    fields.extend(merged_at);
    Schema::new(fields)
}
