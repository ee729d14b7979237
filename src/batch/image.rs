//! Row images, `before` or `after`, as a column of a batch: a struct where their shape is known, else JSON text.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder, Float64Builder, Int32Builder,
    Int64Builder, LargeBinaryBuilder, NullBufferBuilder, StringBuilder, StructArray, TimestampMicrosecondBuilder,
};
use arrow::datatypes::Fields;

use super::error::{Error, Result};
use super::value::{self, Misfit, Value};
use crate::json::{self, Stopped};
use crate::layout::{self, UTC};
use crate::row::{Column, ColumnType, Encoding, RowShape};

/// Why a row image does not fit its table. Names columns and types, and shows no value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unfit {
    #[error("`{image}` is not a JSON object")]
    NotAnObject { image: &'static str },
    #[error("`{image}.{field}` is not among the declared columns")]
    Undeclared { image: &'static str, field: String },
    #[error("`{image}.{column}` is given twice")]
    GivenTwice { image: &'static str, column: String },
    #[error("`{image}.{column}` does not fit {column_type} sent as {encoding}: {misfit}")]
    Value { image: &'static str, column: String, column_type: ColumnType, encoding: Encoding, misfit: Misfit },
}

/// A row shape with its columns findable by name.
#[derive(Debug)]
pub(super) struct Columns {
    shape: Arc<RowShape>,
    by_name: HashMap<String, usize>,
    fields: Fields,
}

/// One image read and found fit, so that writing it cannot fail halfway.
#[derive(Debug)]
pub(super) enum Row<'a> {
    Null,
    Values(Vec<Value<'a>>),
    Json(Cow<'a, str>),
}

/// The column being built of all `before` or all `after` images.
#[derive(Debug)]
pub(super) enum Images {
    Typed { columns: Vec<ColumnBuilder>, present: NullBufferBuilder, fields: Fields },
    Json(StringBuilder),
}

#[derive(Debug)]
pub(super) enum ColumnBuilder {
    Boolean(BooleanBuilder),
    Int(Int32Builder),
    Date(Date32Builder),
    Long(Int64Builder),
    Timestamp(TimestampMicrosecondBuilder),
    Float(Float32Builder),
    Double(Float64Builder),
    Decimal(Decimal128Builder),
    Text(StringBuilder),
    Bytes(LargeBinaryBuilder),
}

impl Columns {
    pub(super) fn new(shape: Arc<RowShape>) -> Self {
        let by_name = shape.columns.iter().enumerate().map(|(index, column)| (column.name.clone(), index)).collect();
        let fields = layout::image_fields(&shape);
        Columns { shape, by_name, fields }
    }

    pub(super) fn shape(&self) -> &RowShape {
        &self.shape
    }

    fn column(&self, index: usize) -> &Column {
        &self.shape.columns[index]
    }

    /// Reads an image. Names of values that were not sent go to `unavailable`.
    pub(super) fn read<'a>(
        &self,
        json: &'a str,
        image: &'static str,
        unavailable: &mut Vec<String>,
    ) -> Result<Row<'a>, Unfit> {
        let mut values = vec![Value::Missing; self.shape.columns.len()];
        let mut expected = 0;
        json::each_field(json, |name, value| {
            let index = self.position(&name, expected).ok_or_else(|| undeclared(image, &name))?;
            let column = self.column(index);
            if !matches!(values[index], Value::Missing) {
                return Err(Unfit::GivenTwice { image, column: column.name.clone() });
            }
            values[index] = value::read(value, column).map_err(|misfit| unfit(image, column, misfit))?;
            if matches!(values[index], Value::Unavailable) {
                unavailable.push(unavailable_name(image, &name));
            }
            expected = index + 1;
            Ok(())
        })
        .map_err(|stopped| match stopped {
            Stopped::Field(unfit) => unfit,
            Stopped::Syntax(_) => Unfit::NotAnObject { image },
        })?;
        Ok(Row::Values(values))
    }

    /// Sources send the columns of a table in one order, so that the next one is nearly always the one expected.
    fn position(&self, name: &str, expected: usize) -> Option<usize> {
        match self.shape.columns.get(expected) {
            Some(column) if column.name == name => Some(expected),
            _ => self.by_name.get(name).copied(),
        }
    }
}

/// Reads an image of a table whose columns are not known. A value that was not sent becomes `null` here as well.
pub(super) fn read_json<'a>(
    json: &'a str,
    image: &'static str,
    unavailable: &mut Vec<String>,
) -> Result<Row<'a>, Unfit> {
    if !value::mentions_placeholder(json) {
        return Ok(Row::Json(Cow::Borrowed(json)));
    }
    let mut without = "{".to_string();
    let found_before = unavailable.len();
    json::each_field::<Unfit>(json, |name, value| {
        let is_placeholder = value::is_any_placeholder(value);
        if is_placeholder {
            unavailable.push(unavailable_name(image, &name));
        }
        json::push_field(&mut without, &name, if is_placeholder { "null" } else { value });
        Ok(())
    })
    .map_err(|_| Unfit::NotAnObject { image })?;
    without.push('}');
    let nothing_found = unavailable.len() == found_before;
    Ok(Row::Json(if nothing_found { Cow::Borrowed(json) } else { Cow::Owned(without) }))
}

/// What silver has to carry forward is a value of `after`, so that only those go by their bare names.
fn unavailable_name(image: &str, name: &str) -> String {
    if image == layout::BEFORE { format!("{}.{name}", layout::BEFORE) } else { name.to_string() }
}

fn undeclared(image: &'static str, name: &str) -> Unfit {
    Unfit::Undeclared { image, field: name.chars().take(255).collect() }
}

fn unfit(image: &'static str, column: &Column, misfit: Misfit) -> Unfit {
    let Column { name, column_type, encoding, .. } = column;
    Unfit::Value { image, column: name.clone(), column_type: *column_type, encoding: *encoding, misfit }
}

impl Row<'_> {
    /// How many bytes the image takes in a batch, about.
    pub(super) fn size(&self) -> usize {
        match self {
            Row::Null => 4,
            Row::Json(json) => json.len() + 4,
            Row::Values(values) => values.iter().map(value_size).sum(),
        }
    }
}

fn value_size(value: &Value<'_>) -> usize {
    match value {
        Value::Missing | Value::Null | Value::Unavailable | Value::Long(_) | Value::Double(_) => 8,
        Value::Boolean(_) => 1,
        Value::Int(_) | Value::Float(_) => 4,
        Value::Decimal(_) => 16,
        Value::Text(text) => text.len() + 4,
        Value::Bytes(bytes) => bytes.len() + 8,
    }
}

impl Images {
    pub(super) fn new(columns: Option<&Columns>) -> Self {
        match columns {
            Some(columns) => Images::Typed {
                columns: columns.shape.columns.iter().map(|column| ColumnBuilder::new(column.column_type)).collect(),
                present: NullBufferBuilder::new(0),
                fields: columns.fields.clone(),
            },
            None => Images::Json(StringBuilder::new()),
        }
    }

    pub(super) fn append(&mut self, row: Row<'_>) -> Result<()> {
        match (self, row) {
            (Images::Typed { columns, present, .. }, Row::Null) => {
                columns.iter_mut().for_each(ColumnBuilder::append_null);
                present.append_null();
            }
            (Images::Typed { columns, present, fields }, Row::Values(values)) => {
                for ((column, value), field) in columns.iter_mut().zip(values).zip(fields.iter()) {
                    column.append(value).map_err(|_| Error::WrongBuilder { column: field.name().clone() })?;
                }
                present.append_non_null();
            }
            (Images::Json(json), Row::Null) => json.append_null(),
            (Images::Json(json), Row::Json(text)) => json.append_value(text),
            (Images::Typed { .. }, Row::Json(_)) | (Images::Json(_), Row::Values(_)) => {
                return Err(Error::WrongBuilder { column: "before` or `after".to_string() });
            }
        }
        Ok(())
    }

    /// The column of all images appended since the last call.
    pub(super) fn finish(&mut self) -> Result<ArrayRef> {
        match self {
            Images::Json(json) => Ok(Arc::new(json.finish())),
            Images::Typed { columns, present, fields } => {
                let arrays = columns.iter_mut().map(ColumnBuilder::finish).collect();
                let images = StructArray::try_new(fields.clone(), arrays, present.finish()).map_err(Error::Columns)?;
                Ok(Arc::new(images))
            }
        }
    }
}

/// Calls a method of whichever builder it is.
macro_rules! each_builder {
    ($column:expr, $builder:ident => $call:expr) => {
        match $column {
            ColumnBuilder::Boolean($builder) => $call,
            ColumnBuilder::Int($builder) => $call,
            ColumnBuilder::Date($builder) => $call,
            ColumnBuilder::Long($builder) => $call,
            ColumnBuilder::Timestamp($builder) => $call,
            ColumnBuilder::Float($builder) => $call,
            ColumnBuilder::Double($builder) => $call,
            ColumnBuilder::Decimal($builder) => $call,
            ColumnBuilder::Text($builder) => $call,
            ColumnBuilder::Bytes($builder) => $call,
        }
    };
}

/// A value of another type than the builder's.
struct WrongType;

impl ColumnBuilder {
    fn new(column_type: ColumnType) -> Self {
        match column_type {
            ColumnType::Boolean => ColumnBuilder::Boolean(BooleanBuilder::new()),
            ColumnType::Int => ColumnBuilder::Int(Int32Builder::new()),
            ColumnType::Long => ColumnBuilder::Long(Int64Builder::new()),
            ColumnType::Float => ColumnBuilder::Float(Float32Builder::new()),
            ColumnType::Double => ColumnBuilder::Double(Float64Builder::new()),
            ColumnType::Decimal { .. } => {
                ColumnBuilder::Decimal(Decimal128Builder::new().with_data_type(column_type.to_arrow()))
            }
            ColumnType::Date => ColumnBuilder::Date(Date32Builder::new()),
            ColumnType::Timestamp => ColumnBuilder::Timestamp(TimestampMicrosecondBuilder::new()),
            ColumnType::Timestamptz => ColumnBuilder::Timestamp(TimestampMicrosecondBuilder::new().with_timezone(UTC)),
            ColumnType::String => ColumnBuilder::Text(StringBuilder::new()),
            ColumnType::Binary => ColumnBuilder::Bytes(LargeBinaryBuilder::new()),
        }
    }

    fn append_null(&mut self) {
        each_builder!(self, builder => builder.append_null());
    }

    fn append(&mut self, value: Value<'_>) -> Result<(), WrongType> {
        match (self, value) {
            (column, Value::Missing | Value::Null | Value::Unavailable) => column.append_null(),
            (ColumnBuilder::Boolean(builder), Value::Boolean(value)) => builder.append_value(value),
            (ColumnBuilder::Int(builder), Value::Int(value)) => builder.append_value(value),
            (ColumnBuilder::Date(builder), Value::Int(value)) => builder.append_value(value),
            (ColumnBuilder::Long(builder), Value::Long(value)) => builder.append_value(value),
            (ColumnBuilder::Timestamp(builder), Value::Long(value)) => builder.append_value(value),
            (ColumnBuilder::Float(builder), Value::Float(value)) => builder.append_value(value),
            (ColumnBuilder::Double(builder), Value::Double(value)) => builder.append_value(value),
            (ColumnBuilder::Decimal(builder), Value::Decimal(value)) => builder.append_value(value),
            (ColumnBuilder::Text(builder), Value::Text(value)) => builder.append_value(value),
            (ColumnBuilder::Bytes(builder), Value::Bytes(value)) => builder.append_value(value),
            _ => return Err(WrongType),
        }
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        each_builder!(self, builder => Arc::new(builder.finish()))
    }
}
