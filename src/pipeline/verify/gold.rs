//! A gold table against its query over the very snapshots that its marker names.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Schema};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryReservation};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use super::report::{Check, Difference, Tally};
use super::rows::{self, Identity, Manner, Rows, as_type};
use super::settled::unsettled;
use super::silver::at_snapshot;
use super::slice::{Slice, hash};
use super::{Failure, Verifier, key_text};
use crate::engine::{self, register};
use crate::error::Result;
use crate::gold::{self, GoldModel, Stand};
use crate::ids::TableName;
use crate::table::{At, Table, TableView};

const CHECK: &str = "recomputed";

/// How many bytes of memory a byte of a file takes when its rows are compared, about.
const EXPANSION: u64 = 8;

struct Recomputation<'a> {
    verifier: &'a Verifier<'a>,
    model: &'a GoldModel,
    session: SessionContext,
    table: TableView,
    /// The columns that tell rows apart.
    identity: Vec<String>,
}

/// Compares the table with what its query gives.
pub(super) async fn against_inputs(verifier: &Verifier<'_>, model: &GoldModel, table: &Table) -> Result<Check> {
    let skipped = |why: String| Ok(Check::skipped(CHECK, why));
    let failed = |source| gold::Error::Query { table: model.table.clone(), source };
    match Stand::of(model, Some(table), &BTreeMap::new()) {
        Stand::New => return Ok(Tally::new(CHECK, "rows", 0).finish()),
        Stand::Foreign => return skipped("it holds rows that icestream did not build".to_string()),
        Stand::OtherModel(_) => {
            return skipped(
                "it was built by another query; the next `icestream build` takes up the one there is".to_string(),
            );
        }
        Stand::UpToDate | Stand::Moved(_) => {}
    }
    let session = verifier.engine.session();
    for (name, snapshot) in gold::inputs(table).unwrap_or_default() {
        let Ok(name) = name.parse::<TableName>() else {
            return skipped(format!("its marker names `{name}`, which is no table"));
        };
        let Some(input) = verifier.lake.table_if_exists(&name).await? else {
            return skipped(format!("`{name}`, which it was made from, is gone"));
        };
        let view = match snapshot {
            gold::NEVER_WRITTEN => None,
            snapshot => match at_snapshot(&input, snapshot)? {
                Some(view) => Some(view),
                None => {
                    return skipped(format!(
                        "snapshot {snapshot} of `{name}`, which it was made from, is expired; build it and verify again"
                    ));
                }
            },
        };
        match view {
            Some(view) => register(&session, &name, view).map_err(failed)?,
            None => engine::register_empty(&session, &name, input.schema()?).map_err(failed)?,
        }
    }
    let frame = engine::plan(&session, &model.sql).await.map_err(failed)?;
    if let Some(function) = unsettled(frame.logical_plan()) {
        return skipped(format!("what `{function}` gives is not settled by its arguments"));
    }
    let view = table.view(At::Head)?;
    register(&session, table.name(), view.clone()).map_err(failed)?;
    let identity = identity(model, &view.arrow_schema());
    Recomputation { verifier, model, session, table: view, identity }.run().await
}

/// The columns of the groups, where the model names them; else all in which two computations cannot differ a little.
fn identity(model: &GoldModel, columns: &Schema) -> Vec<String> {
    if !model.group_by.is_empty() {
        return model.group_by.clone();
    }
    let is_exact =
        |data_type: &DataType| !matches!(data_type, DataType::Float16 | DataType::Float32 | DataType::Float64);
    let exact = columns.fields().iter().filter(|field| is_exact(field.data_type()));
    exact.map(|field| field.name().clone()).collect()
}

impl Recomputation<'_> {
    async fn run(self) -> Result<Check> {
        let mut tally = self.tally();
        let bytes = self.table.amount().await?.bytes * EXPANSION * 2;
        let mut open = Slice::WHOLE.parts(bytes.div_ceil((self.verifier.engine.memory() as u64 / 2).max(1)));
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
        Tally::new(CHECK, "rows", self.verifier.options.show)
    }

    async fn compare(&self, slice: Slice) -> Result<Tally, Failure> {
        let held = MemoryConsumer::new(format!("verify {}", self.table.name()))
            .register(&self.session.runtime_env().memory_pool);
        let found = self.rows(&format!("SELECT * FROM {}", self.table.name()), slice, &held).await?;
        let expected = self.rows(&self.model.sql, slice, &held).await?;
        let mut tally = self.tally();
        tally.checked = expected.len() as u64;
        let manner = Manner { is_lenient: true, ..Manner::default() };
        let keys: Vec<&str> = self.model.group_by.iter().map(String::as_str).collect();
        for unlike in rows::compare(&expected, &found, manner)? {
            let key = match (unlike.expected_at, unlike.found_at) {
                (Some(place), _) => expected.text(place, &keys),
                (None, Some(place)) => found.text(place, &keys),
                (None, None) => String::new(),
            };
            tally.add(Difference {
                key: key_text(key),
                column: unlike.column,
                expected: unlike.expected,
                found: unlike.found,
                ..Difference::new(unlike.kind)
            });
        }
        Ok(tally)
    }

    /// The rows of a query that are of the slice.
    async fn rows(&self, sql: &str, slice: Slice, held: &MemoryReservation) -> Result<Rows, Failure> {
        let schema = self.table.arrow_schema();
        let mut rows = Rows::new(schema.clone());
        let mut converter: Option<RowConverter> = None;
        let mut stream = engine::query(&self.session, sql).await?;
        while let Some(batch) = stream.try_next().await? {
            let columns = self.identity_of(&batch, &schema)?;
            let converter = match &mut converter {
                Some(converter) => converter,
                none => {
                    let fields = columns.iter().map(|column| SortField::new(column.data_type().clone()));
                    none.insert(RowConverter::new(fields.collect())?)
                }
            };
            let identities = converter.convert_columns(&columns)?;
            let identities: Vec<Identity> = match columns.is_empty() {
                // A row of nothing but such numbers is like any other.
                true => vec![Identity::default(); batch.num_rows()],
                false => identities.iter().map(|row| row.as_ref().into()).collect(),
            };
            let is_in: Vec<bool> =
                identities.iter().map(|of| slice.holds(hash(self.verifier.options.seed, of))).collect();
            let kept: RecordBatch = filter_record_batch(&batch, &BooleanArray::from(is_in.clone()))?;
            if kept.num_rows() > 0 {
                held.try_grow(kept.get_array_memory_size() + kept.num_rows() * 64)?;
                rows.push(kept, identities.into_iter().zip(is_in).filter(|(_, is_in)| *is_in).map(|(of, _)| of));
            }
        }
        Ok(rows)
    }

    /// The columns by which a row is known, in the types that the table has them in.
    fn identity_of(&self, batch: &RecordBatch, table: &Arc<Schema>) -> Result<Vec<ArrayRef>, ArrowError> {
        let mut columns = Vec::new();
        for name in &self.identity {
            let data_type = table.field_with_name(name)?.data_type();
            columns.push(match batch.column_by_name(name) {
                Some(column) => as_type(column, data_type)?,
                None => arrow::array::new_null_array(data_type, batch.num_rows()),
            });
        }
        Ok(columns)
    }
}
