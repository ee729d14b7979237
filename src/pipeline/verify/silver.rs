//! A silver table, or its quarantine, against a fold of its bronze table.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::{filter_record_batch, interleave};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::datasource::MemTable;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use super::fold::{self, Made, Step, What};
use super::history::{Columns, History, Identities};
use super::model::{self, Given, NUMBER, Side, with};
use super::report::{At, Check, Difference, Kind, Tally};
use super::rows::{self, Identity, Manner, Place, Rows, Unlike};
use super::settled::{open_columns, unsettled};
use super::slice::{Slice, hash};
use super::{Failure, Verifier, key_text};
use crate::engine::{self, register};
use crate::error::Result;
use crate::ids::TableName;
use crate::layout;
use crate::silver::{self, MadeFrom, OnDelete, Scd, SilverModel};
use crate::table::{At as AtSnapshot, Table, TableView};

const CHECK: &str = "fold";
const VALID_FROM: &str = "_valid_from";
const VALID_TO: &str = "_valid_to";
const IS_CURRENT: &str = "_is_current";
const IS_DELETED: &str = "_is_deleted";
const MERGED_AT: &str = "_merged_at";

/// How many bytes of memory a byte of a bronze file takes when its rows are folded and compared, about.
const EXPANSION: u64 = 8;

/// What a fold of a slice needs.
struct Fold<'a> {
    verifier: &'a Verifier<'a>,
    model: &'a SilverModel,
    side: Side,
    made: MadeFrom,
    session: SessionContext,
    columns: Columns,
    bronze: TableView,
    table: TableView,
    /// Columns of the table that cannot be foretold.
    open: Vec<String>,
}

/// Compares the table with what its bronze table says, as of the snapshot that its marker names.
pub(super) async fn against_bronze(verifier: &Verifier<'_>, model: &SilverModel, table: &Table) -> Result<Check> {
    let skipped = |why: String| Ok(Check::skipped(CHECK, why));
    let side = if *table.name() == model.quarantine() { Side::Quarantine } else { Side::Table };
    let Some(made) = silver::made_from(model, table)? else {
        return match table.summary().records {
            Some(0) => Ok(Tally::new(CHECK, "keys", 0).finish()),
            _ => skipped("it holds rows that icestream did not build".to_string()),
        };
    };
    if !made.by_this_model {
        return skipped(format!(
            "it was built by another model; `icestream build --full {}` takes up the one there is now",
            model.table.name()
        ));
    }
    let bronze = verifier.lake.table_if_exists(&model.from).await?.filter(|bronze| bronze.uuid() == made.bronze);
    let Some(bronze) = bronze else {
        return skipped(format!("`{}`, which it was made from, is gone or was made anew", model.from));
    };
    let Some(view) = at_snapshot(&bronze, made.snapshot_id)? else {
        return skipped(format!(
            "snapshot {} of `{}`, which it was made from, is expired; build it and verify again",
            made.snapshot_id, model.from
        ));
    };
    let Some(columns) = columns_of(model, &made, &view) else {
        return skipped(format!("the rows of `{}` are JSON text", model.from));
    };
    let fold = Fold {
        verifier,
        model,
        side,
        session: verifier.engine.session(),
        columns,
        bronze: view,
        table: table.view(AtSnapshot::Head)?,
        open: Vec::new(),
        made,
    };
    fold.run().await
}

/// A snapshot of a table under the columns it has now; `None` where it is expired.
pub(super) fn at_snapshot(table: &Table, snapshot_id: i64) -> Result<Option<TableView>> {
    Ok(match table.snapshot_id() {
        Some(head) if head == snapshot_id => Some(table.view(AtSnapshot::Head)?),
        _ if table.has_snapshot(snapshot_id) => Some(table.view_as_now(snapshot_id)?),
        _ => None,
    })
}

fn columns_of(model: &SilverModel, made: &MadeFrom, view: &TableView) -> Option<Columns> {
    let schema = view.arrow_schema();
    let DataType::Struct(fields) = schema.field_with_name(layout::AFTER).ok()?.data_type() else { return None };
    let all: Vec<_> = fields.iter().cloned().collect();
    let is_ignored = |name: &String| match &model.ignore_nulls {
        silver::IgnoreNulls::Nowhere => false,
        silver::IgnoreNulls::Everywhere => true,
        silver::IgnoreNulls::In(names) => names.contains(name),
    };
    let ignored = (0..all.len()).filter(|at| !made.keys.contains(all[*at].name()) && is_ignored(all[*at].name()));
    let ignored = ignored.collect();
    Some(Columns { all, keys: made.keys.clone(), ignored })
}

impl Fold<'_> {
    async fn run(mut self) -> Result<Check> {
        let failed = |source: engine::Error| silver::Error::Query { table: self.model.table.clone(), source };
        let history = TableName::new("bronze", "history").map_err(crate::table::Error::from)?;
        register(&self.session, &history, self.bronze.clone()).map_err(failed)?;
        register(&self.session, self.table.name(), self.table.clone()).map_err(failed)?;
        let mut tally = self.tally();
        if let Some(why) = self.look_at_lookups(&mut tally).await? {
            return Ok(Check::skipped(CHECK, why));
        }
        let rows = self.table.amount().await?.rows;
        let sampled = match self.verifier.options.sample {
            Some(wanted) => Slice::sample(wanted, rows),
            None => Slice::WHOLE,
        };
        let bytes = self.bronze.amount().await?.bytes as f64 * EXPANSION as f64 * sampled.share();
        let parts = (bytes as u64).div_ceil((self.verifier.engine.memory() as u64 / 2).max(1));
        let mut open = sampled.parts(parts);
        open.reverse();
        while let Some(slice) = open.pop() {
            match self.compare(slice).await {
                Ok(part) => tally.join(part),
                // What does not fit is looked at in halves.
                Err(error) => match (error.is_out_of_memory(), slice.halves()) {
                    (true, Some([first, second])) => open.extend([second, first]),
                    _ => return Err(error.into()),
                },
            }
        }
        Ok(tally.finish())
    }

    fn tally(&self) -> Tally {
        Tally::new(CHECK, "keys", self.verifier.options.show)
    }

    /// Finds the lookups as the rows have seen them. Where that is not one state, what depends on them is left aside.
    async fn look_at_lookups(&mut self, tally: &mut Tally) -> Result<Option<String>> {
        let mut moved = Vec::new();
        for name in silver::lookups(self.model)? {
            let Some(table) = self.verifier.lake.table_if_exists(&name).await? else {
                return Ok(Some(format!("the lookup `{name}` is gone")));
            };
            let seen = self.made.lookups.get(&name);
            let view = match seen {
                Some(seen) if seen.first == seen.last => at_snapshot(&table, seen.last)?,
                _ => None,
            };
            let view = match view {
                Some(view) => view,
                None => {
                    moved.push(match seen {
                        Some(seen) if seen.first == seen.last => {
                            format!("snapshot {} of the lookup `{name}` is expired", seen.last)
                        }
                        Some(seen) => format!(
                            "rows were looked up in `{name}` at several of its snapshots, from {} to {}",
                            seen.first, seen.last
                        ),
                        None => format!("it is not known which state of `{name}` rows were looked up in"),
                    });
                    table.view(AtSnapshot::Head)?
                }
            };
            register(&self.session, &name, view).map_err(|source| self.failed(source))?;
        }
        let plan = self.plan().await?;
        let (open, filter) = open_columns(&plan);
        let is_unsettled = unsettled(&plan);
        if moved.is_empty() && is_unsettled.is_none() {
            return Ok(None);
        }
        let because = match &is_unsettled {
            Some(function) if moved.is_empty() => format!("what `{function}` gives is not settled by its arguments"),
            _ => moved.join("; "),
        };
        if let Some(filter) = filter {
            return Ok(Some(format!("{filter}, and {because}")));
        }
        let is_ruled = self.model.expect.iter().any(|rule| rule.action.removes());
        if is_ruled || matches!(self.model.scd, Scd::Two { .. }) {
            let what = if is_ruled { "its rules may look at" } else { "versions may begin by" };
            return Ok(Some(format!("{what} {}, and {because}", listed(open.iter()))));
        }
        tally.note(format!("not compared: {}; {because}", listed(open.iter())));
        self.open = open.into_iter().collect();
        Ok(None)
    }

    /// The model's SELECT as a plan.
    async fn plan(&self) -> Result<LogicalPlan> {
        let changes = MemTable::try_new(model::changes_schema(self.model, &self.columns), vec![Vec::new()]);
        let changes = Arc::new(changes.map_err(|error| self.failed(error.into()))?);
        self.session.register_table("changes", changes).map_err(|error| self.failed(error.into()))?;
        let select = silver::select(self.model, &self.made.keys, &[NUMBER])?;
        let frame = engine::plan(&self.session, &select).await.map_err(|source| self.failed(source))?;
        self.session.deregister_table("changes").map_err(|error| self.failed(error.into()))?;
        Ok(frame.logical_plan().clone())
    }

    fn failed(&self, source: engine::Error) -> silver::Error {
        silver::Error::Query { table: self.model.table.clone(), source }
    }

    /// Folds the events of a slice, and compares with the rows there are of it.
    async fn compare(&self, slice: Slice) -> Result<Tally, Failure> {
        let held = MemoryConsumer::new(format!("verify {}", self.table.name()))
            .register(&self.session.runtime_env().memory_pool);
        let history = self.history(slice, &held).await?;
        let found = self.found(slice, &held).await?;
        let expected = self.expected(&history, &held).await?;
        let mut tally = self.tally();
        let mut keys: HashSet<&Identity> = history.keys().collect();
        keys.extend(found.identities());
        keys.extend(expected.rows.identities());
        tally.checked = keys.len() as u64;
        drop(keys);
        let mut without = vec![NUMBER, MERGED_AT];
        without.extend(self.open.iter().map(String::as_str));
        let versions = [VALID_FROM, VALID_TO];
        let is_versioned = matches!(self.model.scd, Scd::Two { .. });
        let ordered_by: &[&str] = if is_versioned { &versions } else { &[] };
        let manner = Manner { without: &without, ordered_by, is_lenient: false };
        for unlike in rows::compare(&expected.rows, &found, manner)? {
            tally.add(self.difference(unlike, &expected, &found, &history));
        }
        if self.side == Side::Table && expected.quarantined > 0 {
            let quarantine = self.model.quarantine();
            if self.verifier.lake.table_if_exists(&quarantine).await?.is_none() {
                tally.add(Difference {
                    expected: Some(format!("`{quarantine}` with {} rows", expected.quarantined)),
                    found: Some("no such table".to_string()),
                    ..Difference::new(Kind::Missing)
                });
            }
        }
        Ok(tally)
    }

    async fn history(&self, slice: Slice, held: &MemoryReservation) -> Result<History, Failure> {
        let mut history = History::new(self.columns.clone(), slice, self.verifier.options.seed)?;
        let mut rows = engine::query(&self.session, &self.columns.sql()).await?;
        while let Some(batch) = rows.try_next().await? {
            held.try_grow(history.add(&batch)?)?;
        }
        history.settle()?;
        Ok(history)
    }

    /// The rows there are.
    async fn found(&self, slice: Slice, held: &MemoryReservation) -> Result<Rows, Failure> {
        let schema = self.table.arrow_schema();
        let mut found = Rows::new(schema);
        let mut identities = Identities::new(&self.columns)?;
        let mut rows = engine::query(&self.session, &format!("SELECT * FROM {}", self.table.name())).await?;
        while let Some(batch) = rows.try_next().await? {
            let of_rows = identities.of(&batch, &self.made.keys)?;
            let keep: Vec<bool> = of_rows.iter().map(|of| slice.holds(hash(self.verifier.options.seed, of))).collect();
            let kept = filter_record_batch(&batch, &BooleanArray::from(keep.clone()))?;
            if kept.num_rows() > 0 {
                held.try_grow(kept.get_array_memory_size() + kept.num_rows() * 64)?;
                let of_kept = of_rows.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(of, _)| of);
                found.push(kept, of_kept);
            }
        }
        Ok(found)
    }

    async fn expected(&self, history: &History, held: &MemoryReservation) -> Result<Expected, Failure> {
        let mut expected = Expected::default();
        let mut keys: Vec<&Identity> = history.keys().collect();
        keys.sort();
        match self.model.scd {
            Scd::One => self.latest(history, &keys, &mut expected, held).await?,
            Scd::Two { .. } => self.versions(history, &keys, &mut expected, held).await?,
        }
        if self.side == Side::Quarantine {
            let keyless: Vec<(&Identity, Made)> = history.keyless().map(|(of, event)| (of, Made::of(event))).collect();
            let made: Vec<&Made> = keyless.iter().map(|(_, made)| made).collect();
            let given = model::apply(&self.session, self.model, history, &made, self.side, true).await?;
            self.take(given, &keyless, history, &mut expected, held)?;
        }
        Ok(expected)
    }

    async fn latest(
        &self,
        history: &History,
        keys: &[&Identity],
        expected: &mut Expected,
        held: &MemoryReservation,
    ) -> Result<(), Failure> {
        let of_key = |key: &&Identity| {
            let made = fold::latest(history, &history.events(key), self.model.on_delete)?;
            Some(((*key).clone(), made))
        };
        let made: Vec<(Identity, Made)> = keys.iter().filter_map(of_key).collect();
        held.try_grow(made.len() * size_of::<(Identity, Made)>())?;
        let rows: Vec<&Made> = made.iter().map(|(_, made)| made).collect();
        let given = model::apply(&self.session, self.model, history, &rows, self.side, false).await?;
        let made: Vec<(&Identity, Made)> = made.iter().map(|(key, made)| (key, made.clone())).collect();
        self.take(given, &made, history, expected, held)
    }

    /// Adds the rows that the model gave.
    fn take(
        &self,
        given: Given,
        of: &[(&Identity, Made)],
        history: &History,
        expected: &mut Expected,
        held: &MemoryReservation,
    ) -> Result<(), Failure> {
        let numbers: HashMap<Place, usize> = given.places.iter().map(|(number, place)| (*place, *number)).collect();
        for (at, batch) in given.batches.into_iter().enumerate() {
            held.try_grow(batch.get_array_memory_size())?;
            let of_row = |row: usize| numbers.get(&(at, row)).map(|number| &of[*number]);
            let rows = batch.num_rows();
            let identities: Vec<Identity> = (0..rows).filter_map(|row| Some(of_row(row)?.0.clone())).collect();
            expected.places.push((0..rows).filter_map(|row| Some(history.place(of_row(row)?.1.last))).collect());
            expected.rows.push(batch, identities);
        }
        expected.quarantined += given.quarantined;
        Ok(())
    }

    async fn versions(
        &self,
        history: &History,
        keys: &[&Identity],
        expected: &mut Expected,
        held: &MemoryReservation,
    ) -> Result<(), Failure> {
        let of_keys: Vec<(&Identity, Vec<Step>)> =
            keys.iter().map(|key| (*key, fold::steps(history, &history.events(key)))).collect();
        let made: Vec<&Made> = of_keys
            .iter()
            .flat_map(|(_, steps)| steps)
            .filter_map(|step| match &step.what {
                What::Row(made) => Some(made),
                What::Deleted | What::Truncated => None,
            })
            .collect();
        held.try_grow(made.len() * size_of::<Step>())?;
        let given = model::apply(&self.session, self.model, history, &made, self.side, false).await?;
        expected.quarantined += given.quarantined;
        held.try_grow(given.batches.iter().map(RecordBatch::get_array_memory_size).sum())?;
        // The rows of each key's steps, by the step.
        let mut number = 0;
        let mut rows_of: Vec<Vec<Option<Place>>> = Vec::with_capacity(of_keys.len());
        for (_, steps) in &of_keys {
            let places = steps.iter().map(|step| match step.what {
                What::Row(_) => {
                    number += 1;
                    given.places.get(&(number - 1)).copied()
                }
                What::Deleted | What::Truncated => None,
            });
            rows_of.push(places.collect());
        }
        let differ = self.differences(&given, &rows_of)?;
        let mut whole: Vec<(usize, fold::Version)> = Vec::new();
        for (at, (_, steps)) in of_keys.iter().enumerate() {
            let rows = &rows_of[at];
            let is_row = |step: usize| rows[step].is_some();
            let differs = |_: usize, step: usize| differ.contains(&(at, step));
            let versions = fold::versions(steps, self.model.on_delete, is_row, differs);
            whole.extend(versions.into_iter().map(|version| (at, version)));
        }
        for chunk in whole.chunks(8192) {
            let places: Vec<Place> = chunk.iter().filter_map(|(at, version)| rows_of[*at][version.row]).collect();
            let batch = versions_batch(&given, &places, chunk, self.model.on_delete)?;
            held.try_grow(batch.get_array_memory_size())?;
            let place = |(at, version): &(usize, fold::Version)| match &of_keys[*at].1[version.row].what {
                What::Row(made) => Some(history.place(made.last)),
                What::Deleted | What::Truncated => None,
            };
            expected.places.push(chunk.iter().filter_map(place).collect());
            expected.rows.push(batch, chunk.iter().map(|(at, _)| of_keys[*at].0.clone()));
        }
        Ok(())
    }

    /// The steps, by their key and number, whose row differs in a tracked column from the row before it.
    fn differences(
        &self,
        given: &Given,
        rows_of: &[Vec<Option<Place>>],
    ) -> Result<HashSet<(usize, usize)>, ArrowError> {
        let mut pairs: Vec<((usize, usize), Place, Place)> = Vec::new();
        for (at, rows) in rows_of.iter().enumerate() {
            for step in 1..rows.len() {
                // What has no row between them ends a version in any case.
                if let (Some(before), Some(row)) = (rows[step - 1], rows[step]) {
                    pairs.push(((at, step), before, row));
                }
            }
        }
        let mut differing = HashSet::new();
        let Some(schema) = given.batches.first().map(RecordBatch::schema) else { return Ok(differing) };
        let tracked: Vec<usize> =
            (0..schema.fields().len()).filter(|at| self.is_tracked(schema.field(*at).name())).collect();
        for chunk in pairs.chunks(8192) {
            for column in &tracked {
                let parts: Vec<&dyn Array> = given.batches.iter().map(|batch| batch.column(*column).as_ref()).collect();
                let before = interleave(&parts, &chunk.iter().map(|(_, before, _)| *before).collect::<Vec<_>>())?;
                let after = interleave(&parts, &chunk.iter().map(|(_, _, after)| *after).collect::<Vec<_>>())?;
                if before.as_ref() == after.as_ref() {
                    continue;
                }
                let is_other = |row: &usize| before.slice(*row, 1).as_ref() != after.slice(*row, 1).as_ref();
                differing.extend((0..chunk.len()).filter(is_other).map(|row| chunk[row].0));
            }
        }
        Ok(differing)
    }

    fn is_tracked(&self, column: &str) -> bool {
        match &self.model.scd {
            Scd::One => false,
            Scd::Two { track_history } if track_history.is_empty() => {
                column != NUMBER && !layout::is_own_name(column) && !self.made.keys.iter().any(|key| key == column)
            }
            Scd::Two { track_history } => track_history.iter().any(|tracked| tracked == column),
        }
    }

    fn difference(&self, unlike: Unlike, expected: &Expected, found: &Rows, history: &History) -> Difference {
        let at = match unlike.expected_at {
            Some((batch, row)) => expected.places.get(batch).and_then(|places| places.get(row)).cloned(),
            // What is there and should not be was decided by the last that happened to its key.
            None => history.events(&unlike.identity).last().map(|event| history.place(*event)),
        };
        let keys: Vec<&str> = self.made.keys.iter().map(String::as_str).collect();
        let key = match (unlike.expected_at, unlike.found_at) {
            (Some(place), _) => expected.rows.text(place, &keys),
            (None, Some(place)) => found.text(place, &keys),
            (None, None) => String::new(),
        };
        Difference {
            kind: unlike.kind,
            key: key_text(key),
            column: unlike.column,
            expected: unlike.expected,
            found: unlike.found,
            at,
            file: None,
        }
    }
}

/// What a slice of a table should hold.
struct Expected {
    rows: Rows,
    /// Of each batch, where the event stands that made each row.
    places: Vec<Vec<At>>,
    quarantined: u64,
}

impl Default for Expected {
    fn default() -> Self {
        Expected { rows: Rows::new(Arc::new(Schema::empty())), places: Vec::new(), quarantined: 0 }
    }
}

fn versions_batch(
    given: &Given,
    places: &[Place],
    versions: &[(usize, fold::Version)],
    on_delete: OnDelete,
) -> Result<RecordBatch, ArrowError> {
    let schema: SchemaRef = match given.batches.first() {
        Some(batch) => batch.schema(),
        None => Arc::new(Schema::empty()),
    };
    let nullable = schema.fields().iter().map(|field| Field::new(field.name(), field.data_type().clone(), true));
    let columns = (0..schema.fields().len()).map(|at| {
        let parts: Vec<&dyn Array> = given.batches.iter().map(|batch| batch.column(at).as_ref()).collect();
        interleave(&parts, places)
    });
    let columns: Vec<ArrayRef> = columns.collect::<Result<_, _>>()?;
    let mut batch = RecordBatch::try_new(Arc::new(Schema::new(nullable.collect::<Vec<_>>())), columns)?;
    let instants = |of: &dyn Fn(&fold::Version) -> Option<i64>| -> ArrayRef {
        let times = versions.iter().map(|(_, version)| of(version));
        Arc::new(TimestampMicrosecondArray::from_iter(times).with_timezone(layout::UTC))
    };
    let flags = |of: &dyn Fn(&fold::Version) -> bool| -> ArrayRef {
        Arc::new(versions.iter().map(|(_, version)| Some(of(version))).collect::<BooleanArray>())
    };
    batch = with(batch, VALID_FROM, instants(&|version| Some(version.from)))?;
    batch = with(batch, VALID_TO, instants(&|version| version.to))?;
    batch = with(batch, IS_CURRENT, flags(&|version| version.to.is_none()))?;
    match on_delete {
        OnDelete::Remove => Ok(batch),
        OnDelete::Mark => with(batch, IS_DELETED, flags(&|version| version.is_deleted)),
    }
}

fn listed<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
