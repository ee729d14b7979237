//! A silver model over rows that were folded here: its SELECT, and what its rules say of the rows it gives.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, ListBuilder, RecordBatch, StringArray, StringBuilder,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::datasource::MemTable;
use datafusion::prelude::SessionContext;

use super::Failure;
use super::fold::Made;
use super::history::{Columns, Event, History};
use super::rows::Place;
use crate::engine;
use crate::layout;
use crate::quality::{Action, NULL_KEY, RULES_COLUMN};
use crate::silver::{self, OnDelete, SilverModel};

/// Goes along with a row through the SELECT, to know it again.
pub(super) const NUMBER: &str = "_number";

/// Rows that are made at a time.
const CHUNK_ROWS: usize = 8192;

/// Which of a model's two tables is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Table,
    Quarantine,
}

/// The rows that a model gives, those of one side.
#[derive(Debug, Default)]
pub(super) struct Given {
    pub(super) batches: Vec<RecordBatch>,
    /// Where each row that went in came out.
    pub(super) places: HashMap<usize, Place>,
    /// Rows that belong to the quarantine.
    pub(super) quarantined: u64,
}

/// A model's SELECT, with a column for each rule that leaves rows out: whether the row keeps it.
pub(super) fn sql(model: &SilverModel, keys: &[String]) -> Result<String, silver::Error> {
    let select = silver::select(model, keys, &[NUMBER])?;
    let asked: Vec<String> = rules(model)
        .iter()
        .enumerate()
        // What is null breaks nothing. A comment must not swallow the parenthesis.
        .map(|(at, (_, _, condition))| format!("coalesce(({condition}\n), true) AS \"_keeps_{at}\""))
        .collect();
    Ok(match asked.is_empty() {
        true => select,
        false => format!("SELECT *, {} FROM ({select}\n) AS rows", asked.join(", ")),
    })
}

fn rules(model: &SilverModel) -> Vec<(&str, Action, String)> {
    let removing = model.expect.iter().filter(|rule| rule.action.removes());
    removing.filter_map(|rule| Some((rule.name.as_str(), rule.action, rule.condition()?))).collect()
}

/// Gives rows to the model. `keyless` ones are all of the quarantine.
pub(super) async fn apply(
    session: &SessionContext,
    model: &SilverModel,
    history: &History,
    rows: &[&Made],
    side: Side,
    keyless: bool,
) -> Result<Given, Failure> {
    let mut given = Given::default();
    if rows.is_empty() {
        return Ok(given);
    }
    let mut changes = Vec::new();
    for (chunk, from) in rows.chunks(CHUNK_ROWS).zip((0..).step_by(CHUNK_ROWS)) {
        changes.push(changes_of(model, history, chunk, from)?);
    }
    let changes = MemTable::try_new(changes_schema(model, history.columns()), vec![changes])?;
    session.register_table("changes", Arc::new(changes))?;
    let frame = engine::plan(session, &sql(model, &history.columns().keys)?).await?;
    let output = frame.collect().await?;
    session.deregister_table("changes")?;
    for batch in output {
        given.take(model, history, &batch, rows, side, keyless)?;
    }
    Ok(given)
}

impl Given {
    fn take(
        &mut self,
        model: &SilverModel,
        history: &History,
        batch: &RecordBatch,
        rows: &[&Made],
        side: Side,
        keyless: bool,
    ) -> Result<(), ArrowError> {
        let missing = || ArrowError::SchemaError("the model lost the numbers of its rows".to_string());
        let rules = rules(model);
        let keeps: Vec<&BooleanArray> =
            (0..rules.len()).filter_map(|at| batch.column_by_name(&format!("_keeps_{at}"))?.as_boolean_opt()).collect();
        let breaks = |row: usize, action: Action| {
            let broken = rules.iter().zip(&keeps).filter(move |((_, of, _), keeps)| *of == action && !keeps.value(row));
            broken.map(|((name, ..), _)| *name)
        };
        let is_quarantined =
            |row: usize| breaks(row, Action::Drop).next().is_none() && breaks(row, Action::Quarantine).next().is_some();
        let is_kept = |row: usize| match side {
            Side::Quarantine => keyless || is_quarantined(row),
            Side::Table => breaks(row, Action::Drop).chain(breaks(row, Action::Quarantine)).next().is_none(),
        };
        self.quarantined += (0..batch.num_rows()).filter(|row| is_quarantined(*row)).count() as u64;
        let kept: Vec<usize> = (0..batch.num_rows()).filter(|row| is_kept(*row)).collect();
        let mask: BooleanArray = (0..batch.num_rows()).map(|row| Some(is_kept(row))).collect();
        let own: Vec<usize> =
            (0..batch.num_columns()).filter(|at| !batch.schema().field(*at).name().starts_with("_keeps_")).collect();
        let mut part = filter_record_batch(&batch.project(&own)?, &mask)?;
        let numbers = part.column_by_name(NUMBER).and_then(|column| column.as_primitive_opt::<Int64Type>());
        let numbers: Vec<usize> = numbers.ok_or_else(missing)?.values().iter().map(|number| *number as usize).collect();
        if side == Side::Quarantine {
            let mut reasons = ListBuilder::new(StringBuilder::new()).with_field(layout::unavailable_element());
            for row in &kept {
                match keyless {
                    true => reasons.values().append_value(NULL_KEY),
                    false => breaks(*row, Action::Quarantine).for_each(|name| reasons.values().append_value(name)),
                }
                reasons.append(true);
            }
            let places: Vec<_> = numbers.iter().map(|number| history.place(rows[*number].last)).collect();
            part = with(part, RULES_COLUMN, Arc::new(reasons.finish()))?;
            let topics = places.iter().map(|at| Some(at.topic.as_str()));
            part = with(part, layout::TOPIC, Arc::new(topics.collect::<StringArray>()))?;
            let partitions = Int32Array::from_iter_values(places.iter().map(|at| at.partition));
            part = with(part, layout::PARTITION, Arc::new(partitions))?;
            let offsets = Int64Array::from_iter_values(places.iter().map(|at| at.offset));
            part = with(part, layout::OFFSET, Arc::new(offsets))?;
        }
        let at = self.batches.len();
        self.places.extend(numbers.into_iter().enumerate().map(|(row, number)| (number, (at, row))));
        self.batches.push(part);
        Ok(())
    }
}

/// A batch with one column more, or with another one in its place.
pub(super) fn with(batch: RecordBatch, name: &str, column: ArrayRef) -> Result<RecordBatch, ArrowError> {
    let schema = batch.schema();
    let mut fields: Vec<FieldRef> = schema.fields().iter().cloned().collect();
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    let field = Arc::new(Field::new(name, column.data_type().clone(), true));
    match schema.index_of(name) {
        Ok(at) => (fields[at], columns[at]) = (field, column),
        Err(_) => {
            fields.push(field);
            columns.push(column);
        }
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// What a model selects from, for some rows; the first of them has the number `from`.
fn changes_of(model: &SilverModel, history: &History, rows: &[&Made], from: usize) -> Result<RecordBatch, ArrowError> {
    let columns = history.columns();
    let last: Vec<Option<Event>> = rows.iter().map(|made| Some(made.last)).collect();
    let mut arrays: Vec<ArrayRef> = Vec::new();
    for (at, column) in columns.all.iter().enumerate() {
        arrays.push(match columns.keys.iter().position(|key| key == column.name()) {
            Some(key) => history.key_values(key, &last)?,
            None => {
                let source = |made: &&Made| match made.kept.iter().find(|(of, _)| *of == at) {
                    Some((_, event)) => *event,
                    None => Some(made.image),
                };
                history.values(at, &rows.iter().map(source).collect::<Vec<_>>())?
            }
        });
    }
    arrays.push(history.system_values(layout::POSITION, &DataType::Utf8, &last)?);
    arrays.push(history.system_values(layout::SOURCE_TS, &layout::instant(), &last)?);
    if model.on_delete == OnDelete::Mark {
        arrays.push(Arc::new(rows.iter().map(|made| Some(made.is_deleted)).collect::<BooleanArray>()));
    }
    arrays.push(Arc::new(Int64Array::from_iter_values((from..).take(rows.len()).map(|number| number as i64))));
    RecordBatch::try_new(changes_schema(model, columns), arrays)
}

/// The columns of what a model selects from.
pub(super) fn changes_schema(model: &SilverModel, columns: &Columns) -> SchemaRef {
    let of_row = columns.all.iter().map(|column| Field::new(column.name(), column.data_type().clone(), true));
    let mut fields: Vec<Field> = of_row.collect();
    fields.push(Field::new(layout::POSITION, DataType::Utf8, true));
    fields.push(Field::new(layout::SOURCE_TS, layout::instant(), true));
    if model.on_delete == OnDelete::Mark {
        fields.push(Field::new("_is_deleted", DataType::Boolean, true));
    }
    fields.push(Field::new(NUMBER, DataType::Int64, true));
    Arc::new(Schema::new(fields))
}
