//! Leaves out what a filter cannot match, from bounds and counts alone.
//!
//! Bounds are outer bounds: a file's lowest value is at or above its lower bound. Strings are cut, so nothing here may
//! take a bound for a value that exists.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::Session;
use datafusion::common::pruning::PruningStatistics;
use datafusion::common::tree_node::TreeNode;
use datafusion::common::{Column, DFSchema, ScalarValue, Statistics};
use datafusion::error::Result;
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::{PhysicalExpr, conjunction};
use datafusion::physical_optimizer::pruning::PruningPredicate;

use super::provider::FILE_COLUMN;
use crate::table::{ColumnStatistics, Prune, ScanFile};

/// A filter that can judge whole manifests and files.
pub(crate) struct FilterPrune {
    predicate: PruningPredicate,
}

impl FilterPrune {
    /// `None` when no filter says anything about bounds.
    pub(crate) fn new(filters: &[Expr], schema: &SchemaRef, session: &dyn Session) -> Result<Option<Self>> {
        let df_schema = DFSchema::try_from(schema.as_ref().clone())?;
        let mut exprs = Vec::with_capacity(filters.len());
        for filter in filters {
            // A filter that has no physical form yet (a subquery) stays above the scan.
            match session.create_physical_expr(filter.clone(), &df_schema) {
                Ok(expr) => exprs.push(expr),
                Err(error) => tracing::debug!(%error, "a filter is not used for pruning"),
            }
        }
        if exprs.is_empty() {
            return Ok(None);
        }
        let predicate = PruningPredicate::try_new(conjunction(exprs), schema.clone())?;
        Ok((!predicate.always_true()).then_some(FilterPrune { predicate }))
    }
}

impl Prune for FilterPrune {
    fn keep(&self, statistics: &dyn ColumnStatistics) -> Vec<bool> {
        keep(&self.predicate, &Containers(statistics), statistics.len())
    }
}

fn keep(predicate: &PruningPredicate, statistics: &impl PruningStatistics, len: usize) -> Vec<bool> {
    match predicate.prune(statistics) {
        Ok(keep) => keep,
        Err(error) => {
            tracing::debug!(%error, "a filter could not be evaluated on bounds");
            vec![true; len]
        }
    }
}

struct Containers<'a>(&'a dyn ColumnStatistics);

impl PruningStatistics for Containers<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.0.lower(&column.name)
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.0.upper(&column.name)
    }

    fn num_containers(&self) -> usize {
        self.0.len()
    }

    fn null_counts(&self, column: &Column) -> Option<ArrayRef> {
        self.0.null_counts(&column.name)
    }

    fn row_counts(&self, _column: &Column) -> Option<ArrayRef> {
        self.0.row_counts()
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// Keeps the files whose location the filters allow: a merge that comes back for known rows reads only their files.
pub(crate) fn keep_locations(filters: &[Expr], files: Vec<ScanFile>, session: &dyn Session) -> Result<Vec<ScanFile>> {
    let schema = Arc::new(Schema::new(vec![Field::new(FILE_COLUMN, DataType::Utf8, false)]));
    let about_location: Vec<Expr> = filters
        .iter()
        .filter(|filter| {
            let columns = filter.column_refs();
            columns.len() == 1 && columns.iter().all(|column| column.name == FILE_COLUMN)
        })
        .cloned()
        .collect();
    let Some(prune) = FilterPrune::new(&about_location, &schema, session)? else {
        return Ok(files);
    };
    let keep = keep(&prune.predicate, &Locations(&files), files.len());
    Ok(files.into_iter().zip(keep).filter_map(|(file, keep)| keep.then_some(file)).collect())
}

struct Locations<'a>(&'a [ScanFile]);

impl PruningStatistics for Locations<'_> {
    fn min_values(&self, _column: &Column) -> Option<ArrayRef> {
        Some(Arc::new(self.0.iter().map(|file| Some(file.path.as_str())).collect::<StringArray>()))
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.min_values(column)
    }

    fn num_containers(&self) -> usize {
        self.0.len()
    }

    fn null_counts(&self, _column: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self, _column: &Column) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, _column: &Column, values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        let named: HashSet<&str> = values.iter().filter_map(|value| value.try_as_str().flatten()).collect();
        Some(self.0.iter().map(|file| Some(named.contains(file.path.as_str()))).collect())
    }
}

/// Whether a file can hold a match of a filter that was not known when the scan was planned, like the keys a join has
/// collected by now. DataFusion's own check takes exact statistics only, and bounds are not exact.
pub(crate) fn may_match(filter: &Arc<dyn PhysicalExpr>, schema: &SchemaRef, statistics: &Statistics) -> bool {
    match PruningPredicate::try_new(filter.clone(), schema.clone()) {
        Ok(predicate) => {
            predicate.always_true() || keep(&predicate, &OneFile { schema, statistics }, 1).into_iter().all(|keep| keep)
        }
        Err(_) => true,
    }
}

struct OneFile<'a> {
    schema: &'a SchemaRef,
    statistics: &'a Statistics,
}

impl OneFile<'_> {
    fn column(&self, column: &Column) -> Option<&datafusion::common::ColumnStatistics> {
        self.statistics.column_statistics.get(self.schema.index_of(&column.name).ok()?)
    }
}

impl PruningStatistics for OneFile<'_> {
    fn min_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column)?.min_value.get_value()?.to_array().ok()
    }

    fn max_values(&self, column: &Column) -> Option<ArrayRef> {
        self.column(column)?.max_value.get_value()?.to_array().ok()
    }

    fn num_containers(&self) -> usize {
        1
    }

    fn null_counts(&self, _column: &Column) -> Option<ArrayRef> {
        None
    }

    fn row_counts(&self, _column: &Column) -> Option<ArrayRef> {
        None
    }

    fn contained(&self, _column: &Column, _values: &HashSet<ScalarValue>) -> Option<BooleanArray> {
        None
    }
}

/// Whether an expression speaks of a column.
pub(crate) fn mentions(expr: &Arc<dyn PhysicalExpr>, name: &str) -> bool {
    expr.exists(|expr| {
        Ok(expr
            .as_any()
            .downcast_ref::<datafusion::physical_expr::expressions::Column>()
            .is_some_and(|c| c.name() == name))
    })
    .unwrap_or(true)
}
