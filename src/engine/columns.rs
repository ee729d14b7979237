//! Maps a data file's columns to the table's.
//!
//! Iceberg knows a column by its field id: a file written before a rename, a reorder, a promotion or a drop and re-add
//! under the same name still reads right, because names are never compared. A file without any field id (written
//! elsewhere and added to the table later) is mapped by name.
//!
//! A promoted column becomes a plain cast only when the cast keeps the order of values and loses nothing: DataFusion
//! moves such a cast to the literal's side of a comparison and prunes row groups through it. Every other difference goes
//! through [`MappedColumn`], which the optimiser cannot look into.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, MapArray, RecordBatch, StructArray, new_null_array};
use arrow::array::{AsArray, ListArray};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema, SchemaRef};
use arrow::error::ArrowError;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column, lit};
use datafusion::physical_expr_adapter::{PhysicalExprAdapter, PhysicalExprAdapterFactory};
use datafusion::scalar::ScalarValue;
use parquet::arrow::PARQUET_FIELD_ID_META_KEY;

use crate::ids::TableName;
use crate::table;

/// Rewrites expressions over the table's columns into expressions over one file's columns.
#[derive(Debug)]
pub(crate) struct FieldIdAdapterFactory {
    table: TableName,
}

impl FieldIdAdapterFactory {
    pub(crate) fn new(table: TableName) -> Self {
        FieldIdAdapterFactory { table }
    }
}

impl PhysicalExprAdapterFactory for FieldIdAdapterFactory {
    fn create(&self, logical: SchemaRef, physical: SchemaRef) -> Result<Arc<dyn PhysicalExprAdapter>> {
        let by_id: HashMap<i32, usize> =
            physical.fields().iter().enumerate().filter_map(|(i, field)| Some((field_id(field)?, i))).collect();
        Ok(Arc::new(FieldIdAdapter { table: self.table.clone(), logical, physical, by_id }))
    }
}

#[derive(Debug)]
struct FieldIdAdapter {
    table: TableName,
    logical: SchemaRef,
    physical: SchemaRef,
    /// Empty for a file that carries no field ids.
    by_id: HashMap<i32, usize>,
}

impl PhysicalExprAdapter for FieldIdAdapter {
    fn rewrite(&self, expr: Arc<dyn PhysicalExpr>) -> Result<Arc<dyn PhysicalExpr>> {
        expr.transform_up(|expr| match expr.as_any().downcast_ref::<Column>() {
            Some(column) => match self.logical.fields().find(column.name()) {
                Some((_, field)) => Ok(Transformed::yes(self.map(field)?)),
                // Not a column of the file: a row's position, which the reader adds.
                None => Ok(Transformed::no(expr)),
            },
            None => Ok(Transformed::no(expr)),
        })
        .data()
    }
}

impl FieldIdAdapter {
    fn map(&self, field: &FieldRef) -> Result<Arc<dyn PhysicalExpr>> {
        let position = if self.by_id.is_empty() {
            self.physical.fields().find(field.name()).map(|(i, _)| i)
        } else {
            field_id(field).and_then(|id| self.by_id.get(&id).copied())
        };
        let Some(position) = position else {
            if !field.is_nullable() {
                return Err(self.unreadable(field, "a data file lacks it, and it may not be null".to_string()));
            }
            return Ok(lit(ScalarValue::try_new_null(field.data_type())?));
        };
        let found = self.physical.field(position);
        let column: Arc<dyn PhysicalExpr> = Arc::new(Column::new(found.name(), position));
        if found.data_type() == field.data_type() {
            return Ok(column);
        }
        if keeps_order(found.data_type(), field.data_type()) {
            return Ok(Arc::new(CastExpr::new(column, field.data_type().clone(), None)));
        }
        let recipe = recipe(found.data_type(), field.data_type(), !self.by_id.is_empty())
            .map_err(|problem| self.unreadable(field, problem))?;
        Ok(Arc::new(MappedColumn { column, field: field.clone(), recipe: Arc::new(recipe) }))
    }

    fn unreadable(&self, field: &Field, problem: String) -> DataFusionError {
        DataFusionError::External(Box::new(table::error::Error::Corrupt {
            table: self.table.clone(),
            problem: format!("column `{}`: {problem}", field.name()),
            source: None,
        }))
    }
}

/// Where a column of the table is among a file's, and how its array becomes the table's; the first is `None` where the
/// file lacks it, and all rows are null. Of what can only be told as an error, it says nothing.
pub(super) fn placed(field: &FieldRef, physical: &Schema) -> Option<(Option<usize>, Recipe)> {
    let by_id = physical.fields().iter().any(|candidate| field_id(candidate).is_some());
    let id = field_id(field);
    let position = match by_id {
        true => physical.fields().iter().rposition(|candidate| id.is_some() && field_id(candidate) == id),
        false => physical.fields().find(field.name()).map(|(at, _)| at),
    };
    match position {
        Some(at) => Some((Some(at), recipe(physical.field(at).data_type(), field.data_type(), by_id).ok()?)),
        None => field.is_nullable().then(|| (None, Recipe::Null(field.data_type().clone()))),
    }
}

/// The Iceberg field id that a Parquet file or a table schema carries in its Arrow metadata.
pub(crate) fn field_id(field: &Field) -> Option<i32> {
    field.metadata().get(PARQUET_FIELD_ID_META_KEY)?.parse().ok()
}

/// Whether a cast loses nothing and keeps the order of values, so that a comparison may be made on either side of it.
///
/// Timestamps of another unit are not among them: comparing on the coarser side would round the literal.
fn keeps_order(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    match (from, to) {
        (Int8, Int16 | Int32 | Int64) | (Int16, Int32 | Int64) | (Int32, Int64) => true,
        (UInt8, Int16 | Int32 | Int64) | (UInt16, Int32 | Int64) | (UInt32, Int64) => true,
        (Float32, Float64) => true,
        (Decimal128(p1, s1), Decimal128(p2, s2)) => s1 == s2 && p1 <= p2,
        // The instants are the same numbers, whatever the zone is called.
        (Timestamp(u1, z1), Timestamp(u2, z2)) => u1 == u2 && (z1.is_some() == z2.is_some()),
        _ => false,
    }
}

/// Leaf types that stand for the same values in files of other writers.
fn converts(from: &DataType, to: &DataType) -> bool {
    use DataType::*;
    keeps_order(from, to)
        || match (from, to) {
            (Timestamp(..), Timestamp(..)) | (Time32(_) | Time64(_), Time64(_)) => true,
            // What Iceberg calls `binary` is large in its Arrow schema, and not in a file's.
            (Utf8 | Binary | LargeBinary, Utf8 | Binary | LargeBinary) => true,
            (FixedSizeBinary(_), Binary | LargeBinary) | (Binary | LargeBinary, FixedSizeBinary(_)) => true,
            (from, to) => from.is_integer() && to.is_integer(),
        }
}

/// How a file's array becomes the table's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Recipe {
    Keep,
    Null(DataType),
    Cast(DataType),
    /// For each field of the table, the file's child it comes from.
    Struct(Fields, Vec<(Option<usize>, Recipe)>),
    List(FieldRef, Box<Recipe>),
    Map(FieldRef, bool, Box<[Recipe; 2]>),
}

fn recipe(from: &DataType, to: &DataType, by_id: bool) -> Result<Recipe, String> {
    if from == to {
        return Ok(Recipe::Keep);
    }
    match (from, to) {
        (DataType::Struct(from), DataType::Struct(to)) => {
            let mut children = Vec::with_capacity(to.len());
            for field in to {
                let found = from.iter().position(|candidate| match by_id {
                    true => field_id(candidate).is_some() && field_id(candidate) == field_id(field),
                    false => candidate.name() == field.name(),
                });
                let child = match found {
                    Some(i) => (Some(i), recipe(from[i].data_type(), field.data_type(), by_id)?),
                    None if field.is_nullable() => (None, Recipe::Null(field.data_type().clone())),
                    None => {
                        return Err(format!("a data file lacks its field `{}`, which may not be null", field.name()));
                    }
                };
                children.push(child);
            }
            Ok(Recipe::Struct(to.clone(), children))
        }
        (DataType::List(from), DataType::List(to)) => {
            let element = recipe(from.data_type(), to.data_type(), by_id)?;
            Ok(Recipe::List(to.clone(), Box::new(element)))
        }
        (DataType::Map(from, _), DataType::Map(to, sorted)) => match (from.data_type(), to.data_type()) {
            (DataType::Struct(f), DataType::Struct(t)) if f.len() == 2 && t.len() == 2 => {
                let key = recipe(f[0].data_type(), t[0].data_type(), by_id)?;
                let value = recipe(f[1].data_type(), t[1].data_type(), by_id)?;
                Ok(Recipe::Map(to.clone(), *sorted, Box::new([key, value])))
            }
            _ => Err("a data file holds a map without key and value".to_string()),
        },
        (from, to) if converts(from, to) => Ok(Recipe::Cast(to.clone())),
        (from, to) => Err(format!("it is {}, and a data file holds {}", called(to), called(from))),
    }
}

fn called(data_type: &DataType) -> String {
    match data_type {
        DataType::Struct(_) => "a struct".to_string(),
        DataType::List(_) => "a list".to_string(),
        DataType::Map(..) => "a map".to_string(),
        leaf => format!("`{leaf}`"),
    }
}

impl Recipe {
    pub(super) fn apply(&self, array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
        Ok(match self {
            Recipe::Keep => array.clone(),
            Recipe::Null(data_type) => new_null_array(data_type, array.len()),
            Recipe::Cast(data_type) => {
                // An error, not a null, for a value that does not fit.
                cast_with_options(array, data_type, &CastOptions { safe: false, ..Default::default() })?
            }
            Recipe::Struct(fields, children) => {
                let from = array.as_struct();
                let columns = children
                    .iter()
                    .map(|(source, recipe)| match source {
                        Some(i) => recipe.apply(from.column(*i)),
                        None => recipe.apply(array),
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                let nulls = from.nulls().cloned();
                Arc::new(StructArray::try_new_with_length(fields.clone(), columns, nulls, from.len())?)
            }
            Recipe::List(field, element) => {
                let from = array.as_list::<i32>();
                let values = element.apply(from.values())?;
                Arc::new(ListArray::try_new(field.clone(), from.offsets().clone(), values, from.nulls().cloned())?)
            }
            Recipe::Map(field, sorted, parts) => {
                let from = array.as_map();
                let DataType::Struct(fields) = field.data_type() else {
                    return Err(ArrowError::SchemaError("a map's entries are a struct".to_string()));
                };
                let columns = vec![parts[0].apply(from.keys())?, parts[1].apply(from.values())?];
                let entries = StructArray::try_new(fields.clone(), columns, None)?;
                let nulls = from.nulls().cloned();
                Arc::new(MapArray::try_new(field.clone(), from.offsets().clone(), entries, nulls, *sorted)?)
            }
        })
    }
}

/// A column of the file made into a column of the table.
#[derive(Debug, Clone)]
struct MappedColumn {
    column: Arc<dyn PhysicalExpr>,
    field: FieldRef,
    recipe: Arc<Recipe>,
}

impl PartialEq for MappedColumn {
    fn eq(&self, other: &Self) -> bool {
        self.column.eq(&other.column) && self.field == other.field && self.recipe == other.recipe
    }
}

impl Eq for MappedColumn {}

impl Hash for MappedColumn {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.column.hash(state);
        self.field.hash(state);
        self.recipe.hash(state);
    }
}

impl fmt::Display for MappedColumn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "map({} as {})", self.column, self.field.data_type())
    }
}

impl PhysicalExpr for MappedColumn {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn data_type(&self, _input_schema: &Schema) -> Result<DataType> {
        Ok(self.field.data_type().clone())
    }

    fn nullable(&self, _input_schema: &Schema) -> Result<bool> {
        Ok(self.field.is_nullable())
    }

    fn return_field(&self, _input_schema: &Schema) -> Result<FieldRef> {
        Ok(self.field.clone())
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        let array = self.column.evaluate(batch)?.into_array(batch.num_rows())?;
        Ok(ColumnarValue::Array(self.recipe.apply(&array)?))
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.column]
    }

    fn with_new_children(self: Arc<Self>, mut children: Vec<Arc<dyn PhysicalExpr>>) -> Result<Arc<dyn PhysicalExpr>> {
        match children.pop() {
            Some(column) => Ok(Arc::new(MappedColumn { column, ..(*self).clone() })),
            None => Ok(self),
        }
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.column.fmt_sql(f)
    }
}
