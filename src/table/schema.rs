//! Schema evolution: which changes are allowed, and what the schema is after them.
//!
//! The crate's builder adds any schema without asking whether old files still read under it, so the allow-list is here.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema as ArrowSchema, SchemaRef as ArrowSchemaRef};
use iceberg::arrow::{arrow_schema_to_schema_auto_assign_ids, schema_to_arrow_schema};
use iceberg::spec::{
    ListType, MapType, NestedField, NestedFieldRef, PrimitiveType, Schema, SchemaRef, StructType, TableMetadata, Type,
};

use serde::Serialize;

use super::error::{Error, Result};
use crate::ids::{TableName, check_column};

/// An ordered list of changes to a table's columns. Nested columns are named by their path, `after.status`.
///
/// Every step is idempotent: a step whose outcome is already there is skipped, so that the same change can be resolved
/// again on a newer schema.
#[derive(Debug, Clone, Default)]
pub struct SchemaChange {
    steps: Vec<Step>,
}

#[derive(Debug, Clone)]
enum Step {
    Add { parent: Option<String>, column: Field },
    Promote { path: String, to: DataType },
    MakeOptional { path: String },
    Rename { path: String, name: String },
    Drop { path: String },
    Describe { path: String, doc: String },
}

impl SchemaChange {
    pub fn new() -> Self {
        SchemaChange::default()
    }

    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What makes rows of `wanted` fit a table of `current`: columns and struct fields it lacks are added, narrower types
    /// widened. Whether each step is allowed shows when the change is resolved.
    pub fn to_fit(current: &ArrowSchema, wanted: &ArrowSchema) -> Self {
        let mut change = SchemaChange::new();
        fit_fields(&mut change, None, current.fields(), wanted.fields());
        change
    }

    /// Adds an optional column at the end, of the table or of the struct column `parent`.
    pub fn add(mut self, parent: Option<&str>, column: Field) -> Self {
        self.steps.push(Step::Add { parent: parent.map(str::to_string), column });
        self
    }

    /// Widens a column: int to long, float to double, a decimal to more digits of the same scale.
    pub fn promote(mut self, path: &str, to: DataType) -> Self {
        self.steps.push(Step::Promote { path: path.to_string(), to });
        self
    }

    pub fn make_optional(mut self, path: &str) -> Self {
        self.steps.push(Step::MakeOptional { path: path.to_string() });
        self
    }

    pub fn rename(mut self, path: &str, name: &str) -> Self {
        self.steps.push(Step::Rename { path: path.to_string(), name: name.to_string() });
        self
    }

    pub fn drop_column(mut self, path: &str) -> Self {
        self.steps.push(Step::Drop { path: path.to_string() });
        self
    }

    pub fn describe(mut self, path: &str, doc: &str) -> Self {
        self.steps.push(Step::Describe { path: path.to_string(), doc: doc.to_string() });
        self
    }
}

/// What a change makes of one column, named by its path; types as Iceberg writes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ColumnStep {
    pub column: String,
    /// `None` for a column that is new.
    pub before: Option<String>,
    /// `None` for a column that goes.
    pub after: Option<String>,
}

impl SchemaChange {
    /// What it does to columns: those that come, go, or get another type.
    pub fn column_steps(&self, current: &ArrowSchema) -> Vec<ColumnStep> {
        let before = |path: &str| type_at(current.fields(), path).map(|of| type_name(&of));
        let step = |step: &Step| match step {
            Step::Add { parent, column } => {
                let name = column.name();
                let path = parent.as_ref().map_or(name.clone(), |parent| format!("{parent}.{name}"));
                Some(ColumnStep { column: path, before: None, after: Some(type_name(column.data_type())) })
            }
            Step::Promote { path, to } => {
                Some(ColumnStep { column: path.clone(), before: before(path), after: Some(type_name(to)) })
            }
            Step::Drop { path } => Some(ColumnStep { column: path.clone(), before: before(path), after: None }),
            Step::MakeOptional { .. } | Step::Rename { .. } | Step::Describe { .. } => None,
        };
        self.steps.iter().filter_map(step).collect()
    }
}

fn type_at(fields: &Fields, path: &str) -> Option<DataType> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let of = fields.iter().find(|field| field.name() == name)?.data_type();
    match (of, rest) {
        (of, None) => Some(of.clone()),
        (DataType::Struct(inner), Some(rest)) => type_at(inner, rest),
        _ => None,
    }
}

/// A type as Iceberg writes it.
pub fn type_name(of: &DataType) -> String {
    let alone = ArrowSchema::new(vec![without_field_ids(&Field::new("alone", of.clone(), true))]);
    match arrow_schema_to_schema_auto_assign_ids(&alone) {
        Ok(schema) => show(&schema.as_struct().fields()[0].field_type),
        // No table can have it, which whoever makes one is told.
        Err(_) => of.to_string(),
    }
}

fn fit_fields(change: &mut SchemaChange, parent: Option<&str>, current: &Fields, wanted: &Fields) {
    for field in wanted {
        let path = parent.map_or(field.name().clone(), |parent| format!("{parent}.{}", field.name()));
        let Some(known) = current.iter().find(|known| known.name() == field.name()) else {
            let step = Step::Add { parent: parent.map(str::to_string), column: field.as_ref().clone() };
            change.steps.push(step);
            continue;
        };
        match (known.data_type(), field.data_type()) {
            (DataType::Struct(current), DataType::Struct(wanted)) => fit_fields(change, Some(&path), current, wanted),
            (_, wanted) if !holds(known.data_type(), &storable(wanted)) => {
                change.steps.push(Step::Promote { path, to: wanted.clone() });
            }
            _ => {}
        }
    }
}

/// Whether every value of `given` can be stored in a column of type `column` as it is.
fn holds(column: &DataType, given: &DataType) -> bool {
    match (column, given) {
        (DataType::Int64, DataType::Int32) | (DataType::Float64, DataType::Float32) => true,
        (DataType::Decimal128(wide, scale), DataType::Decimal128(narrow, given_scale)) => {
            wide >= narrow && scale == given_scale
        }
        (DataType::List(_), DataType::List(_)) | (DataType::Map(..), DataType::Map(..)) => true,
        (column, given) => column == given,
    }
}

/// A schema computed from one particular head. Files are written with its field ids, so a commit must find the same
/// schema and the same last column id at the head, or be planned again.
#[derive(Debug, Clone)]
pub struct EvolvedSchema {
    pub(super) base_schema_id: i32,
    pub(super) base_last_column_id: i32,
    pub(super) schema: SchemaRef,
}

impl EvolvedSchema {
    /// Applies a change to the table's current schema; `None` when nothing is left to do.
    pub(super) fn resolve(
        table: &TableName,
        metadata: &TableMetadata,
        change: &SchemaChange,
    ) -> Result<Option<EvolvedSchema>> {
        let current = metadata.current_schema();
        let mut evolution = Evolution { table, metadata, next_id: metadata.last_column_id() + 1 };
        let mut fields: Vec<NestedFieldRef> = current.as_struct().fields().to_vec();
        for step in &change.steps {
            fields = evolution.apply(fields, step)?;
        }
        if fields == current.as_struct().fields() {
            return Ok(None);
        }
        // An explicit fresh id: the local builder assigns its own, but other readers of the update take it literally.
        let id = metadata.schemas_iter().map(|schema| schema.schema_id()).max().unwrap_or(0) + 1;
        let schema = Schema::builder()
            .with_schema_id(id)
            .with_identifier_field_ids(current.identifier_field_ids())
            .with_fields(fields)
            .build()
            .map_err(|error| Error::Schema { table: table.clone(), problem: error.message().to_string() })?;
        Ok(Some(EvolvedSchema {
            base_schema_id: metadata.current_schema_id(),
            base_last_column_id: metadata.last_column_id(),
            schema: Arc::new(schema),
        }))
    }
}

struct Evolution<'a> {
    table: &'a TableName,
    metadata: &'a TableMetadata,
    next_id: i32,
}

impl Evolution<'_> {
    fn refuse<T>(&self, problem: String) -> Result<T> {
        Err(Error::Schema { table: self.table.clone(), problem })
    }

    fn apply(&mut self, fields: Vec<NestedFieldRef>, step: &Step) -> Result<Vec<NestedFieldRef>> {
        match step {
            Step::Add { parent: None, column } => self.add(fields, column, None),
            Step::Add { parent: Some(parent), column } => self.edit(fields, parent, parent, &mut |evolution, field| {
                let Type::Struct(inner) = field.field_type.as_ref() else {
                    return evolution.refuse(format!("column `{parent}` is not a struct and cannot take a field"));
                };
                let inner = evolution.add(inner.fields().to_vec(), column, Some(parent))?;
                *field.field_type = Type::Struct(StructType::new(inner));
                Ok(true)
            }),
            Step::Promote { path, to } => self.edit(fields, path, path, &mut |evolution, field| {
                *field.field_type = evolution.promoted(path, field, to)?;
                Ok(true)
            }),
            Step::MakeOptional { path } => self.edit(fields, path, path, &mut |_, field| {
                field.required = false;
                Ok(true)
            }),
            Step::Rename { path, name } => {
                let siblings = names_beside(&fields, path);
                if siblings.iter().any(|sibling| sibling == name) {
                    return self.refuse(format!("cannot rename `{path}`: there is a column `{name}` already"));
                }
                self.edit(fields, path, path, &mut |_, field| {
                    field.name = name.clone();
                    Ok(true)
                })
            }
            Step::Drop { path } => self.edit(fields, path, path, &mut |evolution, field| {
                evolution.check_not_partition_source(path, field.id, "drop")?;
                evolution.check_not_sorted_by(path, field.id)?;
                Ok(false)
            }),
            Step::Describe { path, doc } => self.edit(fields, path, path, &mut |_, field| {
                field.doc = Some(doc.clone());
                Ok(true)
            }),
        }
    }

    fn add(
        &mut self,
        mut fields: Vec<NestedFieldRef>,
        column: &Field,
        parent: Option<&str>,
    ) -> Result<Vec<NestedFieldRef>> {
        let full_name = parent.map_or(column.name().clone(), |parent| format!("{parent}.{}", column.name()));
        let wanted = self.fresh_type(&full_name, column)?;
        if let Some(existing) = fields.iter().find(|field| field.name == *column.name()) {
            if same_shape(&existing.field_type, &wanted) {
                return Ok(fields);
            }
            return self.refuse(format!(
                "column `{full_name}` exists already as {} and cannot be added as {}",
                show(&existing.field_type),
                show(&wanted)
            ));
        }
        if parent.is_none() {
            check_column(column.name())?;
        }
        let id = self.take_id();
        let mut field = NestedField::optional(id, column.name(), self.renumber(wanted));
        if let Some(doc) = column.metadata().get("doc") {
            field = field.with_doc(doc);
        }
        fields.push(Arc::new(field));
        Ok(fields)
    }

    fn fresh_type(&self, full_name: &str, column: &Field) -> Result<Type> {
        let alone = ArrowSchema::new(vec![without_field_ids(column)]);
        let schema = arrow_schema_to_schema_auto_assign_ids(&alone).map_err(|error| Error::Schema {
            table: self.table.clone(),
            problem: format!(
                "column `{full_name}` of type {} has no Iceberg type: {}",
                column.data_type(),
                error.message()
            ),
        })?;
        Ok(schema.as_struct().fields()[0].field_type.as_ref().clone())
    }

    /// Gives every nested field a new id, a level at a time as the specification asks.
    fn renumber(&mut self, of: Type) -> Type {
        match of {
            Type::Primitive(_) => of,
            Type::Struct(inner) => {
                let ids: Vec<i32> = inner.fields().iter().map(|_| self.take_id()).collect();
                let fields = inner.fields().iter().zip(ids).map(|(field, id)| self.renumbered(field, id)).collect();
                Type::Struct(StructType::new(fields))
            }
            Type::List(list) => {
                let id = self.take_id();
                Type::List(ListType::new(self.renumbered(&list.element_field, id)))
            }
            Type::Map(map) => {
                let (key_id, value_id) = (self.take_id(), self.take_id());
                Type::Map(MapType::new(
                    self.renumbered(&map.key_field, key_id),
                    self.renumbered(&map.value_field, value_id),
                ))
            }
        }
    }

    fn renumbered(&mut self, field: &NestedFieldRef, id: i32) -> NestedFieldRef {
        let mut field = field.as_ref().clone();
        field.id = id;
        field.field_type = Box::new(self.renumber(*field.field_type));
        Arc::new(field)
    }

    fn take_id(&mut self) -> i32 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn promoted(&self, path: &str, field: &NestedField, to: &DataType) -> Result<Type> {
        let target = self.fresh_type(path, &Field::new(&field.name, to.clone(), true))?;
        if same_shape(&field.field_type, &target) {
            return Ok(field.field_type.as_ref().clone());
        }
        let allowed = match (field.field_type.as_ref(), &target) {
            (Type::Primitive(from), Type::Primitive(to)) => can_promote(from, to),
            _ => false,
        };
        if !allowed {
            return self.refuse(format!(
                "column `{path}` cannot go from {} to {}",
                show(&field.field_type),
                show(&target)
            ));
        }
        // Readers prune by partition values of the old type, and manifests cannot be rewritten across it.
        self.check_not_partition_source(path, field.id, "widen")?;
        Ok(target)
    }

    fn check_not_partition_source(&self, path: &str, field_id: i32, action: &str) -> Result<()> {
        let is_source = self
            .metadata
            .partition_specs_iter()
            .any(|spec| spec.fields().iter().any(|field| field.source_id == field_id));
        if is_source {
            self.refuse(format!("cannot {action} `{path}`: the table is partitioned by it"))
        } else {
            Ok(())
        }
    }

    /// A sort order that names a column which is not there is no metadata that readers take.
    fn check_not_sorted_by(&self, path: &str, field_id: i32) -> Result<()> {
        let mut fields = self.metadata.sort_orders_iter().flat_map(|order| order.fields.iter());
        match fields.any(|field| field.source_id == field_id) {
            true => self.refuse(format!("cannot drop `{path}`: the table is sorted by it")),
            false => Ok(()),
        }
    }

    /// Edits the field at `path`; `edit` returns whether the field stays.
    fn edit(
        &mut self,
        fields: Vec<NestedFieldRef>,
        path: &str,
        full_path: &str,
        edit: &mut dyn FnMut(&mut Self, &mut NestedField) -> Result<bool>,
    ) -> Result<Vec<NestedFieldRef>> {
        let (head, rest) = match path.split_once('.') {
            Some((head, rest)) => (head, Some(rest)),
            None => (path, None),
        };
        let Some(index) = fields.iter().position(|field| field.name == head) else {
            return self.refuse(format!("there is no column `{full_path}`"));
        };
        let mut fields = fields;
        let mut field = fields[index].as_ref().clone();
        let stays = match rest {
            None => edit(self, &mut field)?,
            Some(rest) => {
                let Type::Struct(inner) = field.field_type.as_ref() else {
                    return self.refuse(format!("there is no column `{full_path}`: `{head}` is not a struct"));
                };
                let inner = self.edit(inner.fields().to_vec(), rest, full_path, edit)?;
                *field.field_type = Type::Struct(StructType::new(inner));
                true
            }
        };
        if stays {
            fields[index] = Arc::new(field);
        } else {
            fields.remove(index);
        }
        Ok(fields)
    }
}

fn names_beside(fields: &[NestedFieldRef], path: &str) -> Vec<String> {
    let mut fields = fields.to_vec();
    let mut parts: Vec<&str> = path.split('.').collect();
    parts.pop();
    for part in parts {
        let inner = fields.iter().find(|field| field.name == part).map(|field| field.field_type.as_ref().clone());
        match inner {
            Some(Type::Struct(inner)) => fields = inner.fields().to_vec(),
            _ => return Vec::new(),
        }
    }
    fields.iter().map(|field| field.name.clone()).collect()
}

fn can_promote(from: &PrimitiveType, to: &PrimitiveType) -> bool {
    match (from, to) {
        (PrimitiveType::Int, PrimitiveType::Long) | (PrimitiveType::Float, PrimitiveType::Double) => true,
        (
            PrimitiveType::Decimal { precision: old, scale: old_scale },
            PrimitiveType::Decimal { precision: new, scale: new_scale },
        ) => new >= old && old_scale == new_scale,
        _ => false,
    }
}

/// Whether two types are the same but for the ids and documentation of nested fields.
fn same_shape(left: &Type, right: &Type) -> bool {
    match (left, right) {
        (Type::Primitive(left), Type::Primitive(right)) => left == right,
        (Type::Struct(left), Type::Struct(right)) => {
            left.fields().len() == right.fields().len()
                && left
                    .fields()
                    .iter()
                    .zip(right.fields())
                    .all(|(l, r)| l.name == r.name && same_shape(&l.field_type, &r.field_type))
        }
        (Type::List(left), Type::List(right)) => {
            same_shape(&left.element_field.field_type, &right.element_field.field_type)
        }
        (Type::Map(left), Type::Map(right)) => {
            same_shape(&left.key_field.field_type, &right.key_field.field_type)
                && same_shape(&left.value_field.field_type, &right.value_field.field_type)
        }
        _ => false,
    }
}

/// A type as people write it: `struct<id: int, tags: list<string>>`. The crate's own form runs the fields together.
pub(super) fn show(of: &Type) -> String {
    match of {
        Type::Primitive(primitive) => primitive.to_string().replace(", ", ","),
        Type::Struct(inner) => {
            let fields: Vec<String> =
                inner.fields().iter().map(|field| format!("{}: {}", field.name, show(&field.field_type))).collect();
            format!("struct<{}>", fields.join(", "))
        }
        Type::List(list) => format!("list<{}>", show(&list.element_field.field_type)),
        Type::Map(map) => format!("map<{}, {}>", show(&map.key_field.field_type), show(&map.value_field.field_type)),
    }
}

/// The Arrow form of an Iceberg schema; every field carries its id as `PARQUET:field_id`.
pub(super) fn to_arrow(table: &TableName, schema: &Schema) -> Result<ArrowSchemaRef> {
    let arrow = schema_to_arrow_schema(schema)
        .map_err(|error| Error::Schema { table: table.clone(), problem: error.message().to_string() })?;
    Ok(Arc::new(arrow))
}

/// The Iceberg form of an Arrow schema, with ids of its own. What the Arrow schema carries as ids is ignored.
pub(super) fn from_arrow(table: &TableName, schema: &ArrowSchema) -> Result<Schema> {
    let fields: Vec<Field> = schema.fields().iter().map(|field| without_field_ids(field)).collect();
    arrow_schema_to_schema_auto_assign_ids(&ArrowSchema::new(fields))
        .map_err(|error| Error::Schema { table: table.clone(), problem: error.message().to_string() })
}

/// DataFusion and Kafka hand over view types, large strings and other units; a table has one form of each.
fn without_field_ids(field: &Field) -> Field {
    let metadata = field.metadata().iter().filter(|(key, _)| key.as_str() == "doc");
    let metadata = metadata.map(|(key, value)| (key.clone(), value.clone())).collect();
    Field::new(field.name(), storable(field.data_type()), field.is_nullable()).with_metadata(metadata)
}

fn storable(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
        DataType::Binary | DataType::BinaryView => DataType::LargeBinary,
        DataType::Int8 | DataType::Int16 | DataType::UInt8 | DataType::UInt16 => DataType::Int32,
        DataType::UInt32 => DataType::Int64,
        // Counts come as unsigned from DataFusion's functions; a cast refuses what does not fit.
        DataType::UInt64 => DataType::Int64,
        DataType::Date64 => DataType::Date32,
        DataType::Timestamp(_, None) => DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, None),
        DataType::Timestamp(_, Some(_)) => {
            DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("+00:00".into()))
        }
        DataType::Dictionary(_, value) => storable(value),
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|field| without_field_ids(field)).collect::<Fields>())
        }
        DataType::List(element) | DataType::LargeList(element) | DataType::ListView(element) => {
            DataType::List(Arc::new(without_field_ids(element)))
        }
        DataType::Map(entries, sorted) => DataType::Map(Arc::new(without_field_ids(entries)), *sorted),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use iceberg::TableCreation;
    use iceberg::spec::{TableMetadataBuilder, Transform, UnboundPartitionSpec};

    use super::*;

    fn metadata() -> TableMetadata {
        let after = StructType::new(vec![
            Arc::new(NestedField::optional(5, "id", Type::Primitive(PrimitiveType::Int))),
            Arc::new(NestedField::optional(6, "status", Type::Primitive(PrimitiveType::String))),
        ]);
        let schema = Schema::builder()
            .with_fields([
                Arc::new(NestedField::required(1, "id", Type::Primitive(PrimitiveType::Int))),
                Arc::new(NestedField::required(2, "qty", Type::Primitive(PrimitiveType::Int))),
                Arc::new(NestedField::optional(
                    3,
                    "price",
                    Type::Primitive(PrimitiveType::Decimal { precision: 10, scale: 2 }),
                )),
                Arc::new(NestedField::optional(4, "after", Type::Struct(after))),
            ])
            .build()
            .unwrap();
        let spec =
            UnboundPartitionSpec::builder().add_partition_field(1, "id_bucket", Transform::Bucket(4)).unwrap().build();
        let creation = TableCreation::builder()
            .name("t".to_string())
            .location("file:///tmp/t".to_string())
            .schema(schema)
            .partition_spec(spec)
            .properties(HashMap::new())
            .build();
        TableMetadataBuilder::from_table_creation(creation).unwrap().build().unwrap().metadata
    }

    fn outcome(change: SchemaChange) -> String {
        let table: TableName = "shop.t".parse().unwrap();
        match EvolvedSchema::resolve(&table, &metadata(), &change) {
            Err(error) => format!("refused: {error}"),
            Ok(None) => "nothing to do".to_string(),
            Ok(Some(evolved)) => {
                let show = |field: &NestedFieldRef| {
                    let optional = if field.required { "" } else { "?" };
                    format!("{}:{}{} {}", field.id, field.name, optional, show(&field.field_type))
                };
                let lines: Vec<String> = evolved.schema.as_struct().fields().iter().map(show).collect();
                format!("schema {}\n{}", evolved.schema.schema_id(), lines.join("\n"))
            }
        }
    }

    #[test]
    fn columns_are_added_widened_and_relaxed_in_one_step_list() {
        let change = SchemaChange::new()
            .add(None, Field::new("note", DataType::Utf8View, true))
            .add(Some("after"), Field::new("total", DataType::Decimal128(10, 2), true))
            .promote("qty", DataType::Int64)
            .promote("price", DataType::Decimal128(12, 2))
            .make_optional("qty");
        insta::assert_snapshot!(outcome(change), @r"
        schema 1
        1:id int
        2:qty? long
        3:price? decimal(12,2)
        4:after? struct<id: int, status: string, total: decimal(10,2)>
        7:note? string
        ");
    }

    #[test]
    fn a_change_that_is_already_there_is_nothing() {
        let change = SchemaChange::new()
            .add(None, Field::new("qty", DataType::Int32, true))
            .add(Some("after"), Field::new("status", DataType::Utf8, true))
            .promote("qty", DataType::Int32)
            .make_optional("price");
        assert_eq!(outcome(change), "nothing to do");
    }

    #[test]
    fn what_old_files_could_not_be_read_under_is_refused() {
        let cases = [
            SchemaChange::new().promote("qty", DataType::Utf8),
            SchemaChange::new().promote("price", DataType::Decimal128(12, 3)),
            SchemaChange::new().promote("price", DataType::Decimal128(9, 2)),
            SchemaChange::new().promote("id", DataType::Int64),
            SchemaChange::new().drop_column("id"),
            SchemaChange::new().add(None, Field::new("qty", DataType::Utf8, true)),
            SchemaChange::new().rename("qty", "price"),
            SchemaChange::new().make_optional("nothing"),
            SchemaChange::new().promote("after.nothing", DataType::Int64),
        ];
        let outcomes: Vec<String> = cases.into_iter().map(outcome).collect();
        insta::assert_snapshot!(outcomes.join("\n"), @r"
        refused: table `shop.t`: column `qty` cannot go from int to string
        refused: table `shop.t`: column `price` cannot go from decimal(10,2) to decimal(12,3)
        refused: table `shop.t`: column `price` cannot go from decimal(10,2) to decimal(9,2)
        refused: table `shop.t`: cannot widen `id`: the table is partitioned by it
        refused: table `shop.t`: cannot drop `id`: the table is partitioned by it
        refused: table `shop.t`: column `qty` exists already as int and cannot be added as string
        refused: table `shop.t`: cannot rename `qty`: there is a column `price` already
        refused: table `shop.t`: there is no column `nothing`
        refused: table `shop.t`: there is no column `after.nothing`
        ");
    }
}
