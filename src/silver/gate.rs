//! Which of the model's rows come into a table: rules decide.
//!
//! A silver table and its quarantine are two tables over the same changes, by the same model. Each keeps the rows that the
//! other does not: what a rule says of a row depends on nothing but the row, so that each of them is a function of
//! bronze, and both together are the fold. A row that breaks a rule to drop is in neither.
//!
//! With versions, it is the row of each event that is looked at: from an event whose row breaks a rule until one whose row
//! does not, a key's versions are in quarantine.
//!
//! The quarantine also holds each event that has no value for a key, for good: no later event is known to be about it. Those
//! that the model's WHERE leaves out are in neither, like all others.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, ListBuilder, RecordBatch, StringArray, StringBuilder, StructArray,
};
use arrow::buffer::BooleanBuffer;
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, FieldRef, Int32Type, Int64Type, Schema, SchemaRef};
use arrow::error::ArrowError;

use super::versions::{IS_CURRENT, VALID_FROM, VALID_TO};
use super::{MERGED_AT, SilverModel, versioned};
use crate::engine::{self, Engine};
use crate::layout;
use crate::quality::{Action, NULL_KEY, Origin, RULES_COLUMN, Rule, Tally, Watch};

/// Where the event of a row stands in its topic, as one column next to the row while it is made.
pub(super) const ORIGIN: &str = "_origin";

/// Which of a model's two tables is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Table,
    Quarantine,
}

impl SilverModel {
    /// The rules that a row by itself keeps or breaks.
    pub(super) fn row_rules(&self) -> impl Iterator<Item = (&Rule, String)> {
        self.expect.iter().filter_map(|rule| Some((rule, rule.condition()?)))
    }

    /// The rows of a SELECT that a run lets into the table, as SQL.
    pub(super) fn rows_that_pass(&self, select: String) -> String {
        // A null breaks nothing, and not every dialect has IS NOT FALSE. A comment must not swallow the parenthesis.
        let removing = self.row_rules().filter(|(rule, _)| rule.action.removes());
        let passes: Vec<String> = removing.map(|(_, condition)| format!("coalesce(({condition}\n), true)")).collect();
        match passes.is_empty() {
            true => select,
            false => format!("SELECT * FROM ({select}\n) AS rows WHERE {}", passes.join(" AND ")),
        }
    }

    /// Whether rows that break a rule are kept apart.
    pub fn quarantines(&self) -> bool {
        self.row_rules().any(|(rule, _)| rule.action == Action::Quarantine)
    }
}

impl Side {
    /// Whether rows have to say where their events stand.
    pub(super) fn wants_origin(self, model: &SilverModel) -> bool {
        self == Side::Quarantine || model.row_rules().any(|(rule, _)| rule.action == Action::Fail)
    }

    /// What else than the model tells whether rows were made by the same rules. Rules that only watch are none of it.
    pub(super) fn fingerprint(self, model: &SilverModel) -> Vec<String> {
        let of = |(rule, condition): (&Rule, String)| match self {
            Side::Table => format!("without {condition}"),
            Side::Quarantine => format!("{} {} {condition}", rule.action.as_str(), rule.name),
        };
        model.row_rules().filter(|(rule, _)| rule.action.removes()).map(of).collect()
    }
}

/// What became of the rows that came by.
#[derive(Debug, Clone, Default)]
pub(super) struct Passed {
    pub(super) tally: Tally,
    pub(super) dropped: u64,
    pub(super) quarantined: u64,
}

impl Passed {
    pub(super) fn join(&mut self, other: Passed) {
        self.tally.join(other.tally);
        self.dropped += other.dropped;
        self.quarantined += other.quarantined;
    }
}

/// Lets the rows of one side through.
pub(super) struct Gate {
    side: Side,
    names: Vec<String>,
    actions: Vec<Action>,
    watch: Watch,
}

impl Gate {
    /// For rows with these columns. Rules see what the model gives, and nothing else: what they say can be asked of the
    /// table again.
    pub(super) async fn plan(
        engine: &Engine,
        model: &SilverModel,
        side: Side,
        rows: &Schema,
    ) -> Result<Gate, engine::Error> {
        // Whether a watched rule is broken is no matter of the quarantine.
        let rules = model.row_rules().map(|(rule, _)| rule);
        let rules: Vec<&Rule> = rules.filter(|rule| side == Side::Table || rule.action.removes()).collect();
        Ok(Gate {
            side,
            names: rules.iter().map(|rule| rule.name.clone()).collect(),
            actions: rules.iter().map(|rule| rule.action).collect(),
            watch: Watch::plan(engine, rules, &rule_columns(rows)).await?,
        })
    }

    /// The columns of the table, when those of the model's rows with the ones of every silver table are these.
    pub(super) fn table_schema(&self, rows: &Schema) -> Schema {
        let fields = rows.fields().iter().filter(|field| field.name() != ORIGIN).cloned();
        let schema = Schema::new(fields.collect::<Vec<_>>());
        match self.side {
            Side::Table => schema,
            Side::Quarantine => quarantine_schema(&schema),
        }
    }

    /// The rows of a batch that belong here.
    pub(super) fn pass(&self, batch: &RecordBatch) -> Result<(RecordBatch, Passed), engine::Error> {
        let rows = batch.num_rows();
        let broken = self.watch.broken(batch)?;
        let any = |action: Action| {
            let of_action = broken.iter().zip(&self.actions).filter(|(_, of)| **of == action);
            of_action.fold(BooleanBuffer::new_unset(rows), |any, (broken, _)| &any | broken)
        };
        let dropped = any(Action::Drop);
        let quarantined = &any(Action::Quarantine) & &!&dropped;
        let origins = batch.column_by_name(ORIGIN).and_then(|column| column.as_struct_opt());
        let passed = Passed {
            tally: Tally::of(&broken, rows, |broken| first(broken, origins)),
            dropped: dropped.count_set_bits() as u64,
            quarantined: quarantined.count_set_bits() as u64,
        };
        let keep = match self.side {
            Side::Table => !&(&dropped | &quarantined),
            Side::Quarantine => quarantined,
        };
        let batch = match self.side {
            Side::Table => without_origin(batch).map_err(failed)?,
            Side::Quarantine => {
                let named: Vec<(&str, &BooleanBuffer)> = (self.names.iter().zip(&broken).zip(&self.actions))
                    .filter(|(_, action)| **action == Action::Quarantine)
                    .map(|((name, broken), _)| (name.as_str(), broken))
                    .collect();
                with_reasons(batch, |row, reasons| {
                    for (name, _) in named.iter().filter(|(_, broken)| broken.value(row)) {
                        reasons.values().append_value(name);
                    }
                })
                .map_err(failed)?
            }
        };
        if keep.count_set_bits() == rows {
            return Ok((batch, passed));
        }
        Ok((filter_record_batch(&batch, &BooleanArray::new(keep, None)).map_err(failed)?, passed))
    }

    /// Rows of events that have no value for a key, which nothing but that is said of.
    pub(super) fn keyless(&self, batch: &RecordBatch) -> Result<RecordBatch, engine::Error> {
        with_reasons(batch, |_, reasons| reasons.values().append_value(NULL_KEY)).map_err(failed)
    }
}

/// The columns of a model's rows that rules may look at.
pub(super) fn rule_columns(rows: &Schema) -> Schema {
    // Neither what comes along only while rows are made, nor what is known when they are written.
    let hidden = [ORIGIN, versioned::EVENT, VALID_FROM, VALID_TO, IS_CURRENT, MERGED_AT];
    let fields = rows.fields().iter().filter(|field| !hidden.contains(&field.name().as_str()));
    Schema::new(fields.cloned().collect::<Vec<_>>())
}

/// The columns of the quarantine of a table with these.
pub(super) fn quarantine_schema(table: &Schema) -> Schema {
    // An event without a key is a row here.
    let nullable = |field: &FieldRef| Arc::new(field.as_ref().clone().with_nullable(true));
    let mut fields: Vec<FieldRef> = table.fields().iter().map(nullable).collect();
    let merged_at = fields.pop();
    fields.extend(own_columns().map(Arc::new));
    fields.extend(merged_at);
    Schema::new(fields)
}

/// What a quarantined row carries besides the model's columns: the rules it broke, and the event that made it.
fn own_columns() -> [Field; 4] {
    [
        Field::new(RULES_COLUMN, DataType::List(layout::unavailable_element()), true),
        Field::new(layout::TOPIC, DataType::Utf8, true),
        Field::new(layout::PARTITION, DataType::Int32, true),
        Field::new(layout::OFFSET, DataType::Int64, true),
    ]
}

/// The type of [`ORIGIN`].
pub(super) fn origin_type() -> DataType {
    DataType::Struct(own_columns()[1..].to_vec().into())
}

fn first(broken: &BooleanBuffer, origins: Option<&StructArray>) -> Option<Origin> {
    let origins = origins?;
    let topics = origins.column(0).as_string_opt::<i32>()?;
    let partitions = origins.column(1).as_primitive_opt::<Int32Type>()?;
    let offsets = origins.column(2).as_primitive_opt::<Int64Type>()?;
    let origin = |row: usize| Origin {
        topic: topics.value(row).to_string(),
        partition: partitions.value(row),
        offset: offsets.value(row),
    };
    broken.set_indices().map(origin).min()
}

fn without_origin(batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
    match batch.schema().index_of(ORIGIN) {
        Ok(at) => {
            let rest: Vec<usize> = (0..batch.num_columns()).filter(|column| *column != at).collect();
            batch.project(&rest)
        }
        Err(_) => Ok(batch.clone()),
    }
}

/// The batch with the columns of a quarantine.
fn with_reasons(
    batch: &RecordBatch,
    reasons_of: impl Fn(usize, &mut ListBuilder<StringBuilder>),
) -> Result<RecordBatch, ArrowError> {
    let missing = || ArrowError::SchemaError("the model lost the places of its events".to_string());
    let origins = batch.column_by_name(ORIGIN).and_then(|column| column.as_struct_opt()).ok_or_else(missing)?.clone();
    let mut reasons = ListBuilder::new(StringBuilder::new()).with_field(layout::unavailable_element());
    for row in 0..batch.num_rows() {
        reasons_of(row, &mut reasons);
        reasons.append(true);
    }
    let batch = without_origin(batch)?;
    let mut columns: Vec<ArrayRef> = batch.columns().to_vec();
    columns.push(Arc::new(reasons.finish()));
    columns.extend(origins.columns().iter().cloned());
    let fields = batch.schema().fields().iter().cloned().chain(own_columns().map(Arc::new)).collect::<Vec<_>>();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    RecordBatch::try_new(schema, columns)
}

fn failed(error: ArrowError) -> engine::Error {
    datafusion::error::DataFusionError::from(error).into()
}

/// The places of events, as the column [`ORIGIN`].
pub(super) fn origins(topic: &StringArray, partition: ArrayRef, offset: ArrayRef) -> Result<ArrayRef, ArrowError> {
    let DataType::Struct(fields) = origin_type() else { return Err(ArrowError::SchemaError(String::new())) };
    Ok(Arc::new(StructArray::try_new(fields, vec![Arc::new(topic.clone()), partition, offset], None)?))
}
