//! The groups of a gold table that changes of its inputs reach: found, recomputed, and looked up in the table. Those whose
//! new row follows from the changes are settled by the [`Ledger`], and only the others recomputed.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow::compute::{cast, sort};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::common::{Column, DFSchema, JoinType, NullEquality, ScalarValue, TableReference};
use datafusion::dataframe::DataFrame;
use datafusion::datasource::{MemTable, provider_as_source};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, Join, JoinConstraint, LogicalPlan, LogicalPlanBuilder, col, lit};
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use roaring::RoaringTreemap;

use super::ledger::{Balance, Ledger};
use super::reach::{Held, Reach, is_exact, replace_scans};
use super::{Marker, NEVER_WRITTEN, WhyFull, is_at};
use crate::engine::{FILE_COLUMN, IcebergTableProvider, POSITION_COLUMN, Result};
use crate::ids::TableName;
use crate::table::{Difference, ScanFile, Since, TableView};

/// Below this many changed rows, it is not asked whether computing everything would be cheaper.
const FEW_ROWS: u64 = 100_000;

/// Groups to be computed anew, as sets of values of some of the group's columns: an input may tell only some of them.
pub(super) struct Touched {
    reach: Reach,
    sets: Vec<Keys>,
    /// What the ledger made of the other groups, if it could; it has looked up the old rows of all of them.
    balance: Option<Balance>,
}

/// Values of some of the group's columns.
pub(super) struct Keys {
    /// The answer's columns, by index.
    columns: Vec<usize>,
    values: LogicalPlan,
    /// For each column, the least and the greatest value; `None` where one of them is null.
    ranges: Vec<Option<(ScalarValue, ScalarValue)>>,
    count: u64,
}

impl Keys {
    pub(super) fn new(columns: Vec<usize>, session: &SessionContext, values: Vec<ArrayRef>) -> Result<Self> {
        let ranges = values.iter().map(range).collect::<Result<_>>()?;
        let count = values.first().map_or(0, |values| values.len()) as u64;
        let names = columns.iter().map(|column| key_name(*column));
        let nullable = names.zip(values).map(|(name, values)| (name, values, true));
        let values = RecordBatch::try_from_iter_with_nullable(nullable).map_err(DataFusionError::from)?;
        let table = session.read_table(Arc::new(MemTable::try_new(values.schema(), vec![vec![values]])?))?;
        let values = LogicalPlanBuilder::from(table.into_unoptimized_plan()).alias("touched")?.build()?;
        Ok(Keys { columns, values, ranges, count })
    }

    /// Leaves out rows whose expressions lie outside the values' range: unlike the values themselves, a scan can leave
    /// out whole files by it.
    fn within_range(&self, plan: LogicalPlan, exprs: &[Option<Expr>]) -> Result<LogicalPlan, DataFusionError> {
        let ranges = exprs.iter().zip(&self.ranges).filter_map(|(expr, range)| Some((expr.as_ref()?, range.as_ref()?)));
        let conditions = ranges.map(|(expr, (least, greatest))| {
            expr.clone().gt_eq(lit(least.clone())).and(expr.clone().lt_eq(lit(greatest.clone())))
        });
        match conditions.reduce(Expr::and) {
            Some(condition) => LogicalPlanBuilder::from(plan).filter(condition)?.build(),
            None => Ok(plan),
        }
    }

    /// The rows of a plan whose expressions have these values, or with [`JoinType::LeftAnti`] those that have not. A
    /// column without an expression may have any value.
    fn select(
        &self,
        plan: LogicalPlan,
        exprs: Vec<Option<Expr>>,
        join_type: JoinType,
    ) -> Result<LogicalPlan, DataFusionError> {
        let key = |column: &usize| Expr::Column(Column::new(Some("touched"), key_name(*column)));
        let on = exprs.into_iter().zip(&self.columns).filter_map(|(expr, column)| Some((expr?, key(column)))).collect();
        let (values, nulls) = (Arc::new(self.values.clone()), NullEquality::NullEqualsNull);
        let join = Join::try_new(Arc::new(plan), values, on, None, join_type, JoinConstraint::On, nulls, false)?;
        Ok(LogicalPlan::Join(join))
    }

    /// The rows that a gold table has of these groups: where each lies, and some of the answer's columns.
    pub(super) fn rows_in(&self, answer: &DFSchema, gold: &TableView, columns: &[usize]) -> Result<LogicalPlan> {
        let provider = IcebergTableProvider::with_row_positions(gold.clone())?;
        let scan = LogicalPlanBuilder::scan("gold", provider_as_source(Arc::new(provider)), None)?.build()?;
        let column = |column: &usize| Expr::Column(Column::new(Some("gold"), answer.field(*column).name()));
        let exprs: Vec<Option<Expr>> = self.columns.iter().map(|of| Some(column(of))).collect();
        let rows = self.select(self.within_range(scan, &exprs)?, exprs, JoinType::LeftSemi)?;
        let wanted = columns.iter().enumerate().map(|(place, of)| column(of).alias(key_name(place)));
        let wanted = [col(FILE_COLUMN), col(POSITION_COLUMN)].into_iter().chain(wanted);
        Ok(LogicalPlanBuilder::from(rows).project(wanted)?.build()?)
    }
}

/// Takes down where rows lie: the first two columns of [`Keys::rows_in`].
pub(super) fn note_places(rows: &RecordBatch, places: &mut BTreeMap<String, RoaringTreemap>) {
    let files = rows.column(0).as_any().downcast_ref::<StringArray>();
    let positions = rows.column(1).as_any().downcast_ref::<Int64Array>();
    for (file, position) in files.into_iter().flatten().zip(positions.into_iter().flatten()) {
        if let (Some(file), Some(position)) = (file, position) {
            places.entry(file.to_string()).or_default().insert(position as u64);
        }
    }
}

fn range(values: &ArrayRef) -> Result<Option<(ScalarValue, ScalarValue)>> {
    if values.null_count() > 0 || values.is_empty() {
        return Ok(None);
    }
    let sorted = sort(values, None).map_err(DataFusionError::from)?;
    let at = |index| ScalarValue::try_from_array(&sorted, index);
    Ok(Some((at(0)?, at(sorted.len() - 1)?)))
}

/// No column of a model has such a name.
fn key_name(column: usize) -> String {
    format!("key {column}")
}

fn column_of(plan: &LogicalPlan, index: usize) -> Expr {
    Expr::from(plan.schema().qualified_field(index))
}

/// The groups that the inputs' changes since `known` reach, or why every group has to be computed.
pub(super) async fn find(
    session: &SessionContext,
    frame: &DataFrame,
    groups: &[usize],
    known: &Marker,
    inputs: &BTreeMap<TableName, TableView>,
    gold: &TableView,
) -> Result<Result<Touched, WhyFull>> {
    let reach = Reach::of(frame.logical_plan())?;
    if let Some(function) = &reach.unsettled {
        return Ok(Err(WhyFull::Unsettled { function: function.clone() }));
    }
    let mut differences: Vec<(&TableName, Difference)> = Vec::new();
    for (name, view) in inputs {
        let difference = match known.inputs.get(&name.to_string()) {
            Some(snapshot) if is_at(view, *snapshot) => continue,
            Some(&NEVER_WRITTEN) => return Ok(Err(WhyFull::WasEmpty { input: name.clone() })),
            Some(snapshot) => view.since(*snapshot).await?,
            None => Since::SnapshotGone,
        };
        let difference = match difference {
            Since::Rows(difference) => difference,
            Since::SnapshotGone => return Ok(Err(WhyFull::SnapshotGone { input: name.clone() })),
            Since::OtherSchema => return Ok(Err(WhyFull::OtherSchema { input: name.clone() })),
        };
        if difference.rows == 0 {
            continue;
        }
        if difference.rows > FEW_ROWS && difference.rows > difference.rows_now / 2 {
            return Ok(Err(WhyFull::MostChanged { input: name.clone() }));
        }
        if reach.in_subqueries.iter().any(|table| is_of(table, name)) {
            return Ok(Err(WhyFull::ReachesAll { input: name.clone() }));
        }
        differences.push((name, difference));
    }
    let mut changed: Vec<(usize, &TableName, &Difference)> = Vec::new();
    for (name, difference) in &differences {
        let scans = reach.scans.iter().enumerate().filter(|(_, scan)| is_of(&scan.table, name));
        changed.extend(scans.map(|(number, _)| (number, *name, difference)));
    }
    if let [(scan, _, difference)] = changed[..] {
        match Ledger::of(frame.logical_plan(), scan, &gold.arrow_schema()) {
            Ok(ledger) => {
                if let Some(mut balance) = ledger.balance(session, difference, gold).await? {
                    let sets = balance.open.take().into_iter().collect();
                    return Ok(Ok(Touched { reach, sets, balance: Some(balance) }));
                }
            }
            Err(why) => tracing::debug!(table = %gold.name(), why, "changed groups are computed from the inputs"),
        }
    }
    let mut found: BTreeMap<Vec<usize>, Distinct> = BTreeMap::new();
    for (number, name, difference) in changed {
        let scan = &reach.scans[number];
        let columns = told(&scan.reaches, groups, frame);
        if columns.is_empty() {
            return Ok(Err(WhyFull::ReachesAll { input: name.clone() }));
        }
        let distinct = match found.entry(columns.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(Distinct::new(&columns, frame)?),
        };
        for view in [&difference.added, &difference.removed] {
            let rows = provider_as_source(Arc::new(IcebergTableProvider::new(view.clone())));
            let exprs =
                columns.iter().filter_map(|column| Some(scan.reaches.get(column)?.clone().alias(key_name(*column))));
            let keys = LogicalPlanBuilder::scan(scan.table.clone(), rows, None)?.project(exprs)?.build()?;
            distinct.add(DataFrame::new(session.state(), keys)).await?;
        }
    }
    let mut sets = Vec::new();
    for (columns, distinct) in found {
        if !distinct.rows.is_empty() {
            sets.push(Keys::new(columns, session, distinct.values()?)?);
        }
    }
    Ok(Ok(Touched { reach, sets, balance: None }))
}

/// Whether a plan's reference means the table, or the table with the places of its rows.
fn is_of(reference: &TableReference, table: &TableName) -> bool {
    let plain = reference.table().split('$').next().unwrap_or_default();
    reference.schema() == Some(table.namespace()) && plain == table.name()
}

fn is_scan_of(plan: &LogicalPlan, table: &TableReference) -> bool {
    matches!(plan, LogicalPlan::TableScan(scan) if scan.table_name == *table)
}

/// Different values of some columns, as they come.
struct Distinct {
    schema: SchemaRef,
    converter: RowConverter,
    rows: HashSet<OwnedRow>,
}

impl Distinct {
    fn new(columns: &[usize], frame: &DataFrame) -> Result<Self> {
        let fields = columns.iter().map(|column| {
            let data_type = frame.schema().field(*column).data_type().clone();
            Field::new(key_name(*column), data_type, true)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let types = schema.fields().iter().map(|field| SortField::new(field.data_type().clone()));
        let converter = RowConverter::new(types.collect()).map_err(DataFusionError::from)?;
        Ok(Distinct { schema, converter, rows: HashSet::new() })
    }

    async fn add(&mut self, rows: DataFrame) -> Result<()> {
        let mut stream = rows.execute_stream().await?;
        while let Some(batch) = stream.try_next().await? {
            // A number that does not fit the answer's column is in no group of it.
            let columns = batch.columns().iter().zip(self.schema.fields());
            let columns: Result<Vec<ArrayRef>, ArrowError> =
                columns.map(|(column, field)| cast(column, field.data_type())).collect();
            let rows = columns.and_then(|columns| self.converter.convert_columns(&columns));
            for row in rows.map_err(DataFusionError::from)?.iter() {
                self.rows.insert(row.owned());
            }
        }
        Ok(())
    }

    fn values(self) -> Result<Vec<ArrayRef>> {
        let columns = self.converter.convert_rows(self.rows.iter().map(OwnedRow::row));
        Ok(columns.map_err(DataFusionError::from)?)
    }
}

/// The group columns whose value is known of the rows that a scan's rows reach.
fn told(held: &Held, groups: &[usize], frame: &DataFrame) -> Vec<usize> {
    let is_told = |index: &&usize| held.contains_key(*index) && is_exact(frame.schema().field(**index).data_type());
    groups.iter().filter(is_told).copied().collect()
}

impl Touched {
    /// The present rows of the touched groups.
    pub(super) fn rows(&self, session: &SessionContext, frame: &DataFrame) -> Result<DataFrame> {
        let whole = frame.logical_plan();
        let mut rows: Option<LogicalPlanBuilder> = None;
        for (index, keys) in self.sets.iter().enumerate() {
            // Rows that reach other groups alone need not be read.
            let mut plan = replace_scans(whole.clone(), |scan, plan| {
                let scan = self.reach.scans.get(scan);
                let held = scan.filter(|scan| is_scan_of(&plan, &scan.table)).map(|scan| &scan.reaches);
                let exprs: Vec<Option<Expr>> = keys.columns.iter().map(|column| held?.get(column).cloned()).collect();
                let restricted = exprs.iter().any(Option::is_some).then(|| {
                    let near = keys.within_range(plan, &exprs)?;
                    keys.select(near, exprs, JoinType::LeftSemi)
                });
                restricted.transpose()
            })?;
            for (other, join_type) in std::iter::once((keys, JoinType::LeftSemi))
                .chain(self.sets[..index].iter().map(|set| (set, JoinType::LeftAnti)))
            {
                let exprs = other.columns.iter().map(|column| Some(column_of(whole, *column))).collect();
                plan = other.select(plan, exprs, join_type)?;
            }
            rows = Some(match rows {
                None => LogicalPlanBuilder::from(plan),
                Some(rows) => rows.union(plan)?,
            });
        }
        if let Some(balance) = &self.balance {
            rows = Some(match rows {
                None => LogicalPlanBuilder::from(balance.rows.clone()),
                Some(rows) => rows.union(balance.rows.clone())?,
            });
        }
        let rows = match rows {
            Some(rows) => rows.build()?,
            None => LogicalPlanBuilder::from(whole.clone()).limit(0, Some(0))?.build()?,
        };
        Ok(DataFrame::new(session.state(), rows))
    }

    /// Where the rows lie that the gold table has of the touched groups, and that are not as they should be.
    pub(super) async fn present(
        &self,
        session: &SessionContext,
        frame: &DataFrame,
        gold: &TableView,
    ) -> Result<Vec<(ScanFile, RoaringTreemap)>> {
        let mut places: BTreeMap<String, RoaringTreemap> = BTreeMap::new();
        match &self.balance {
            Some(balance) => places = balance.doomed.clone(),
            None => {
                for keys in &self.sets {
                    let rows = keys.rows_in(frame.schema(), gold, &[])?;
                    for batch in DataFrame::new(session.state(), rows).collect().await? {
                        note_places(&batch, &mut places);
                    }
                }
            }
        }
        let files = gold.files(None).await?;
        Ok(files.into_iter().filter_map(|file| places.remove(&file.path).map(|rows| (file, rows))).collect())
    }

    /// How many groups the changes alone settled.
    pub(super) fn settled(&self) -> u64 {
        self.balance.as_ref().map_or(0, |balance| balance.settled)
    }

    /// How many sets of group values are computed from the inputs.
    pub(super) fn computed(&self) -> u64 {
        self.sets.iter().map(|keys| keys.count).sum()
    }
}
