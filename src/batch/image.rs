//! Row images, `before` or `after`, as a column of a batch: a struct where their shape is known, else JSON text.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{
    ArrayBuilder, ArrayRef, AsArray, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder, Float64Builder,
    Int32Builder, Int64Builder, LargeBinaryBuilder, NullBufferBuilder, StringBuilder, StructArray,
    TimestampMicrosecondBuilder,
};
use arrow::compute::cast;

use super::error::{Error, Result};
use super::value::{self, Misfit, Value};
use super::{base64, decimal, iso};
use crate::change::{FieldNames, Span};
use crate::evolution::{Form, TableColumns, legal_name};
use crate::json::{self, Escapes, Stopped};
use crate::layout::{self, UTC};
use crate::placeholder::Placeholder;
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

/// How images of one shape are read, and which columns of their table the values go to.
#[derive(Debug)]
pub(super) struct Columns {
    shape: Arc<RowShape>,
    by_name: HashMap<String, usize>,
    /// What each column is called in the table.
    names: Vec<String>,
    /// The value for each column of the table, as far as it has columns; the later ones are null.
    sources: Vec<Option<usize>>,
    /// How nearly all values of each column are written.
    usual: Vec<Usual>,
    /// Whether the table's columns are those of the shape, in its order.
    is_straight: bool,
    /// Whether fields of no column are kept, in [`crate::evolution::UNEXPECTED`].
    keeps_unexpected: bool,
}

/// The names of values that were not sent, and what stands in their place; nothing where all are sent.
#[derive(Debug)]
pub(super) struct Unavailable<'a> {
    pub(super) names: Vec<String>,
    pub(super) placeholder: Option<&'a Placeholder>,
}

/// One image read and found fit, so that writing it cannot fail halfway.
#[derive(Debug)]
pub(super) enum Row<'a> {
    Null,
    /// A value for each column of the shape; then, if there was any, the object of what none was declared for.
    Values(Vec<Value<'a>>, &'a Columns),
    /// Its values are in the columns already, and take so many bytes there ([`Images::append_found`]).
    Appended(usize),
    Json(Cow<'a, str>),
}

/// The column being built of all `before` or all `after` images.
#[derive(Debug)]
pub(super) enum Images {
    /// Nulls, until an image says what the others are.
    Open(usize),
    Columns {
        columns: Vec<ColumnBuilder>,
        present: NullBufferBuilder,
        shape: TableColumns,
        unexpected: Option<usize>,
        /// Nulls to come before the next image. Most tables have nothing but nulls in one of their two columns.
        nulls: usize,
        /// The rows of the last batch that had images, and the bytes of each column: what to make room for.
        room: (usize, Vec<usize>),
    },
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

/// How nearly all values of a column are written: those [`ColumnBuilder::append_usual`] knows.
#[derive(Debug, Clone, Copy)]
enum Usual {
    Boolean,
    Int,
    Long,
    Double,
    Days,
    Micros,
    Text,
    Decimal {
        precision: u8,
        scale: i8,
    },
    Instant,
    /// In one of many ways.
    Otherwise,
}

impl Usual {
    fn of(column: &Column) -> Self {
        match (column.column_type, column.encoding) {
            (ColumnType::String, Encoding::Native) => Usual::Text,
            (ColumnType::Decimal { precision, scale }, Encoding::Base64) => Usual::Decimal { precision, scale },
            (ColumnType::Timestamptz, Encoding::Iso) => Usual::Instant,
            (ColumnType::Boolean, _) => Usual::Boolean,
            (ColumnType::Int, _) => Usual::Int,
            (ColumnType::Long, _) => Usual::Long,
            (ColumnType::Double, _) => Usual::Double,
            (ColumnType::Date, Encoding::Days) => Usual::Days,
            (ColumnType::Timestamp | ColumnType::Timestamptz, Encoding::Micros) => Usual::Micros,
            _ => Usual::Otherwise,
        }
    }
}

impl Unavailable<'_> {
    fn stands(&self, json: &str) -> bool {
        self.placeholder.is_some_and(|placeholder| placeholder.is_any(json))
    }
}

impl Columns {
    /// `places` says for each column of the shape which of the table's it is.
    pub(super) fn new(shape: Arc<RowShape>, table: &TableColumns, places: &[usize], keeps_unexpected: bool) -> Self {
        let by_name = shape.columns.iter().enumerate().map(|(index, column)| (column.name.clone(), index)).collect();
        let mut sources = vec![None; table.len()];
        for (index, place) in places.iter().enumerate() {
            sources[*place] = Some(index);
        }
        Columns {
            by_name,
            names: places.iter().map(|place| table[*place].name.clone()).collect(),
            is_straight: sources.iter().enumerate().all(|(index, source)| *source == Some(index)),
            sources,
            usual: shape.columns.iter().map(Usual::of).collect(),
            keeps_unexpected,
            shape,
        }
    }

    pub(super) fn shape(&self) -> &Arc<RowShape> {
        &self.shape
    }

    fn column(&self, index: usize) -> &Column {
        &self.shape.columns[index]
    }

    /// Which column the fields of these names are for, where the shape has one.
    pub(super) fn places(&self, names: &FieldNames) -> Box<[Option<usize>]> {
        names.0.iter().enumerate().map(|(index, name)| self.position(name, index)).collect()
    }

    /// Whether fields of these columns are the table's columns, each once and in order.
    pub(super) fn are_straight(&self, places: &[Option<usize>]) -> bool {
        self.is_straight
            && places.len() == self.sources.len()
            && places.iter().enumerate().all(|(index, place)| *place == Some(index))
    }

    /// Reads an image. Names of values that were not sent go to `unavailable`.
    pub(super) fn read<'a>(
        &'a self,
        json: &'a str,
        image: &'static str,
        unavailable: &mut Unavailable<'_>,
    ) -> Result<Row<'a>, Unfit> {
        let mut reading = Reading::new(self, image, unavailable);
        let mut expected = 0;
        json::each_field(json, |name, value| {
            let place = self.position(&name, expected);
            expected = place.map_or(expected, |place| place + 1);
            reading.field(&name, place, value)
        })
        .map_err(|stopped| match stopped {
            Stopped::Field(unfit) => unfit,
            Stopped::Syntax(_) => Unfit::NotAnObject { image },
        })?;
        Ok(reading.row())
    }

    /// Reads an image whose fields were found already, and the columns they are for.
    pub(super) fn read_found<'a>(
        &'a self,
        json: &'a str,
        (names, spans, places): (&FieldNames, &[Span], &[Option<usize>]),
        image: &'static str,
        unavailable: &mut Unavailable<'_>,
    ) -> Result<Row<'a>, Unfit> {
        let mut reading = Reading::new(self, image, unavailable);
        for ((name, span), place) in names.0.iter().zip(spans).zip(places) {
            let value = span.of(json).ok_or(Unfit::NotAnObject { image })?;
            reading.field(name, *place, value)?;
        }
        Ok(reading.row())
    }

    /// Sources send the columns of a table in one order, so that the next one is nearly always the one expected. A
    /// declared name is legal everywhere, and stands for those that become it.
    fn position(&self, name: &str, expected: usize) -> Option<usize> {
        match self.shape.columns.get(expected) {
            Some(column) if column.name == name => Some(expected),
            _ => self.by_name.get(name).or_else(|| self.by_name.get(&legal_name(name))).copied(),
        }
    }
}

/// An image being read.
struct Reading<'a, 'u, 'p> {
    columns: &'a Columns,
    image: &'static str,
    values: Vec<Value<'a>>,
    unexpected: Unexpected,
    unavailable: &'u mut Unavailable<'p>,
}

impl<'a, 'u, 'p> Reading<'a, 'u, 'p> {
    fn new(columns: &'a Columns, image: &'static str, unavailable: &'u mut Unavailable<'p>) -> Self {
        let mut values = Vec::with_capacity(columns.shape.columns.len() + 1);
        values.resize(columns.shape.columns.len(), Value::Missing);
        Reading { columns, image, values, unexpected: Unexpected::default(), unavailable }
    }

    fn field(&mut self, name: &str, place: Option<usize>, value: &'a str) -> Result<(), Unfit> {
        let Reading { columns, image, .. } = *self;
        let Some(place) = place else {
            return match columns.keeps_unexpected {
                true => self.unexpected.keep(name, value, image, self.unavailable),
                false => Err(undeclared(image, name)),
            };
        };
        let column = columns.column(place);
        if !matches!(self.values[place], Value::Missing) {
            return Err(Unfit::GivenTwice { image, column: column.name.clone() });
        }
        let placeholder = self.unavailable.placeholder;
        self.values[place] = value::read(value, column, placeholder).map_err(|misfit| unfit(image, column, misfit))?;
        if matches!(self.values[place], Value::Unavailable) {
            self.unavailable.names.push(unavailable_name(image, &columns.names[place]));
        }
        Ok(())
    }

    fn row(mut self) -> Row<'a> {
        self.values.extend(self.unexpected.value());
        Row::Values(self.values, self.columns)
    }
}

/// The fields of an image that have no column.
#[derive(Default)]
struct Unexpected {
    json: String,
    names: HashSet<String>,
}

impl Unexpected {
    fn keep(
        &mut self,
        name: &str,
        value: &str,
        image: &'static str,
        unavailable: &mut Unavailable<'_>,
    ) -> Result<(), Unfit> {
        if !self.names.insert(name.to_string()) {
            return Err(Unfit::GivenTwice { image, column: name.chars().take(255).collect() });
        }
        if self.json.is_empty() {
            self.json.push('{');
        }
        let is_placeholder = unavailable.stands(value);
        if is_placeholder {
            unavailable.names.push(unavailable_name(image, name));
        }
        json::push_field(&mut self.json, name, if is_placeholder { "null" } else { value });
        Ok(())
    }

    fn value(mut self) -> Option<Value<'static>> {
        if self.json.is_empty() {
            return None;
        }
        self.json.push('}');
        Some(Value::Text(Cow::Owned(self.json)))
    }
}

/// Reads an image of a table whose columns are not known. A value that was not sent becomes `null` here as well.
pub(super) fn read_json<'a>(
    json: &'a str,
    image: &'static str,
    unavailable: &mut Unavailable<'_>,
) -> Result<Row<'a>, Unfit> {
    if !unavailable.placeholder.is_some_and(|placeholder| placeholder.may_be_in(json)) {
        return Ok(Row::Json(Cow::Borrowed(json)));
    }
    let mut without = "{".to_string();
    let found_before = unavailable.names.len();
    json::each_field::<Unfit>(json, |name, value| {
        let is_placeholder = unavailable.stands(value);
        if is_placeholder {
            unavailable.names.push(unavailable_name(image, &name));
        }
        json::push_field(&mut without, &name, if is_placeholder { "null" } else { value });
        Ok(())
    })
    .map_err(|_| Unfit::NotAnObject { image })?;
    without.push('}');
    let nothing_found = unavailable.names.len() == found_before;
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
            Row::Appended(size) => *size,
            Row::Json(json) => json.len() + 4,
            Row::Values(values, _) => values.iter().map(value_size).sum(),
        }
    }

    /// Whether the image had fields of no column.
    pub(super) fn has_unexpected(&self) -> bool {
        matches!(self, Row::Values(values, columns) if values.len() > columns.shape.columns.len())
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
    pub(super) fn new(form: &Form) -> Self {
        let mut images = Images::Open(0);
        // Nothing is in it that could fail to be cast.
        let _ = images.fit(form);
        images
    }

    /// Makes room for rows of a form that the present one can become. What is there already stays: a new column is null
    /// in it, and a widened one holds the same values.
    pub(super) fn fit(&mut self, form: &Form) -> Result<()> {
        if let Images::Open(count) = self {
            let count = *count;
            match form {
                Form::Open => return Ok(()),
                Form::Text => {
                    let mut json = StringBuilder::with_capacity(count, 0);
                    json.append_nulls(count);
                    *self = Images::Json(json);
                    return Ok(());
                }
                Form::Columns(_) => {
                    let mut present = NullBufferBuilder::new(0);
                    present.append_n_nulls(count);
                    let shape = TableColumns::default();
                    let room = (0, Vec::new());
                    *self = Images::Columns { columns: Vec::new(), present, shape, unexpected: None, nulls: 0, room };
                }
            }
        }
        self.append_nulls();
        let (Images::Columns { columns, present, shape, unexpected, .. }, Form::Columns(wanted)) = (self, form) else {
            return Ok(());
        };
        for (index, column) in wanted.iter().enumerate() {
            match columns.get_mut(index) {
                Some(builder) if shape[index].column_type != column.column_type => builder.widen(column.column_type)?,
                Some(_) => {}
                None => {
                    // An image may be in its columns that is not in `present` yet.
                    let rows = columns.first().map_or(present.len(), ColumnBuilder::len);
                    columns.push(ColumnBuilder::with_nulls(column.column_type, rows));
                }
            }
        }
        *unexpected = wanted.unexpected();
        *shape = wanted.clone();
        Ok(())
    }

    /// How many bytes a null takes, about.
    pub(super) fn width(&self) -> usize {
        match self {
            Images::Open(_) => 0,
            Images::Json(_) => 4,
            Images::Columns { columns, .. } => 8 * columns.len(),
        }
    }

    /// Appends the nulls that are due.
    fn append_nulls(&mut self) {
        if let Images::Columns { columns, present, nulls, .. } = self
            && *nulls > 0
        {
            columns.iter_mut().for_each(|column| column.append_nulls(*nulls));
            present.append_n_nulls(*nulls);
            *nulls = 0;
        }
    }

    /// Makes the builders of a batch's first image.
    fn make_room(&mut self) {
        if let Images::Columns { columns, present, shape, room: (rows, bytes), .. } = self
            && present.is_empty()
        {
            for (index, (builder, column)) in columns.iter_mut().zip(shape.iter()).enumerate() {
                *builder =
                    ColumnBuilder::with_room(column.column_type, *rows, bytes.get(index).copied().unwrap_or_default());
            }
        }
    }

    /// Reads an image whose fields are this column's, each once and in order, straight into it, which spares putting its
    /// values together first. `None` where the column is not like that. When a value does not fit, nothing is left of
    /// the image; else a [`Row::Appended`] has to follow.
    pub(super) fn append_found<'a>(
        &mut self,
        json: &'a str,
        spans: &[Span],
        plan: &Columns,
        image: &'static str,
        unavailable: &mut Unavailable<'_>,
    ) -> Result<Option<Result<Row<'a>, Unfit>>> {
        match self {
            Images::Columns { columns, .. } if columns.len() == spans.len() => {}
            _ => return Ok(None),
        }
        self.make_room();
        self.append_nulls();
        let Images::Columns { columns, .. } = self else { return Ok(None) };
        let named = unavailable.names.len();
        let mut size = 0;
        for (index, ((builder, span), usual)) in columns.iter_mut().zip(spans).zip(&plan.usual).enumerate() {
            let value = span.of(json);
            let appended = |value| builder.append_usual(value, span.escapes, *usual, unavailable.placeholder);
            if let Some(bytes) = value.and_then(appended) {
                size += bytes;
                continue;
            }
            let column = plan.column(index);
            let read = match value {
                Some(value) => {
                    value::read(value, column, unavailable.placeholder).map_err(|misfit| unfit(image, column, misfit))
                }
                None => Err(Unfit::NotAnObject { image }),
            };
            let appended = read.map(|value| {
                size += value_size(&value);
                if matches!(value, Value::Unavailable) {
                    unavailable.names.push(unavailable_name(image, &plan.names[index]));
                }
                builder.append(value)
            });
            match appended {
                Ok(Ok(())) => {}
                Ok(Err(WrongType)) => return Err(Error::WrongBuilder { column: column.name.clone() }),
                Err(unfit) => {
                    unavailable.names.truncate(named);
                    self.cut_last()?;
                    return Ok(Some(Err(unfit)));
                }
            }
        }
        Ok(Some(Ok(Row::Appended(size))))
    }

    /// Takes away the values of an image that is not to be a row after all.
    pub(super) fn cut_last(&mut self) -> Result<()> {
        if let Images::Columns { columns, present, shape, .. } = self {
            for (builder, column) in columns.iter_mut().zip(shape.iter()) {
                builder.truncate(column.column_type, present.len())?;
            }
        }
        Ok(())
    }

    pub(super) fn append(&mut self, row: Row<'_>) -> Result<()> {
        if matches!(row, Row::Values(..)) {
            self.make_room();
            self.append_nulls();
        }
        match (self, row) {
            (Images::Open(count), Row::Null) => *count += 1,
            (Images::Columns { nulls, .. }, Row::Null) => *nulls += 1,
            (Images::Columns { present, .. }, Row::Appended(_)) => present.append_non_null(),
            (Images::Columns { columns, present, shape, unexpected, .. }, Row::Values(mut values, plan)) => {
                let wrong = |index: usize| Error::WrongBuilder { column: shape[index].name.clone() };
                if plan.is_straight && plan.sources.len() == columns.len() && values.len() == columns.len() {
                    for (index, (column, value)) in columns.iter_mut().zip(values).enumerate() {
                        column.append(value).map_err(|_| wrong(index))?;
                    }
                } else {
                    let last = plan.shape.columns.len();
                    for (index, column) in columns.iter_mut().enumerate() {
                        let source = if *unexpected == Some(index) {
                            Some(last)
                        } else {
                            plan.sources.get(index).copied().flatten()
                        };
                        let value = source.and_then(|source| values.get_mut(source));
                        let value = value.map_or(Value::Missing, |value| std::mem::replace(value, Value::Missing));
                        column.append(value).map_err(|_| wrong(index))?;
                    }
                }
                present.append_non_null();
            }
            (Images::Json(json), Row::Null) => json.append_null(),
            (Images::Json(json), Row::Json(text)) => json.append_value(text),
            (Images::Columns { .. } | Images::Open(_), Row::Json(_))
            | (Images::Json(_) | Images::Open(_), Row::Values(..) | Row::Appended(_)) => {
                return Err(Error::WrongBuilder { column: "before` or `after".to_string() });
            }
        }
        Ok(())
    }

    /// The column of all images appended since the last call; `None` while it is open what they are.
    pub(super) fn finish(&mut self) -> Result<Option<ArrayRef>> {
        let has_images = matches!(self, Images::Columns { present, .. } if !present.is_empty());
        self.append_nulls();
        match self {
            Images::Open(count) => {
                *count = 0;
                Ok(None)
            }
            Images::Json(json) => Ok(Some(Arc::new(json.finish()))),
            Images::Columns { columns, present, shape, room, .. } => {
                if has_images {
                    *room = (present.len(), columns.iter().map(|column| roomy(column.bytes())).collect());
                }
                let arrays = columns.iter_mut().map(ColumnBuilder::finish).collect();
                let images = StructArray::try_new(shape.fields(), arrays, present.finish()).map_err(Error::Columns)?;
                Ok(Some(Arc::new(images)))
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

/// Room for a batch that has a little more text than the last one, which would else be copied into twice the room.
pub(super) fn roomy(bytes: usize) -> usize {
    bytes + bytes / 16
}

/// A value of another type than the builder's.
struct WrongType;

impl ColumnBuilder {
    fn with_room(column_type: ColumnType, rows: usize, bytes: usize) -> Self {
        let timestamps = || TimestampMicrosecondBuilder::with_capacity(rows);
        match column_type {
            ColumnType::Boolean => ColumnBuilder::Boolean(BooleanBuilder::with_capacity(rows)),
            ColumnType::Int => ColumnBuilder::Int(Int32Builder::with_capacity(rows)),
            ColumnType::Long => ColumnBuilder::Long(Int64Builder::with_capacity(rows)),
            ColumnType::Float => ColumnBuilder::Float(Float32Builder::with_capacity(rows)),
            ColumnType::Double => ColumnBuilder::Double(Float64Builder::with_capacity(rows)),
            ColumnType::Decimal { .. } => {
                let builder = Decimal128Builder::with_capacity(rows);
                ColumnBuilder::Decimal(builder.with_data_type(column_type.to_arrow()))
            }
            ColumnType::Date => ColumnBuilder::Date(Date32Builder::with_capacity(rows)),
            ColumnType::Timestamp => ColumnBuilder::Timestamp(timestamps()),
            ColumnType::Timestamptz => ColumnBuilder::Timestamp(timestamps().with_timezone(UTC)),
            ColumnType::String => ColumnBuilder::Text(StringBuilder::with_capacity(rows, bytes)),
            ColumnType::Binary => ColumnBuilder::Bytes(LargeBinaryBuilder::with_capacity(rows, bytes)),
        }
    }

    /// How many bytes of values of no fixed width it holds.
    fn bytes(&self) -> usize {
        match self {
            ColumnBuilder::Text(builder) => builder.values_slice().len(),
            ColumnBuilder::Bytes(builder) => builder.values_slice().len(),
            _ => 0,
        }
    }

    fn with_nulls(column_type: ColumnType, count: usize) -> Self {
        let mut column = ColumnBuilder::with_room(column_type, count, 0);
        column.append_nulls(count);
        column
    }

    /// Goes on as a builder of a wider type, which has every value as it is.
    fn widen(&mut self, column_type: ColumnType) -> Result<()> {
        let array = cast(&self.finish(), &column_type.to_arrow()).map_err(Error::Columns)?;
        let mut wider = ColumnBuilder::with_room(column_type, array.len(), 0);
        match &mut wider {
            ColumnBuilder::Long(builder) => builder.append_array(array.as_primitive()),
            ColumnBuilder::Double(builder) => builder.append_array(array.as_primitive()),
            ColumnBuilder::Decimal(builder) => builder.append_array(array.as_primitive()),
            _ => return Err(Error::WrongBuilder { column: column_type.to_string() }),
        }
        *self = wider;
        Ok(())
    }

    /// Keeps the first so many values.
    fn truncate(&mut self, column_type: ColumnType, rows: usize) -> Result<()> {
        let array = self.finish().slice(0, rows);
        let mut again = ColumnBuilder::with_room(column_type, rows, 0);
        match &mut again {
            ColumnBuilder::Boolean(builder) => builder.append_array(array.as_boolean()),
            ColumnBuilder::Int(builder) => builder.append_array(array.as_primitive()),
            ColumnBuilder::Date(builder) => builder.append_array(array.as_primitive()),
            ColumnBuilder::Long(builder) => builder.append_array(array.as_primitive()),
            ColumnBuilder::Timestamp(builder) => builder.append_array(array.as_primitive()),
            ColumnBuilder::Float(builder) => builder.append_array(array.as_primitive()),
            ColumnBuilder::Double(builder) => builder.append_array(array.as_primitive()),
            ColumnBuilder::Decimal(builder) => builder.append_array(array.as_primitive()),
            ColumnBuilder::Text(builder) => builder.append_array(array.as_string()).map_err(Error::Columns)?,
            ColumnBuilder::Bytes(builder) => builder.append_array(array.as_binary()).map_err(Error::Columns)?,
        }
        *self = again;
        Ok(())
    }

    fn len(&self) -> usize {
        each_builder!(self, builder => builder.len())
    }

    fn append_null(&mut self) {
        each_builder!(self, builder => builder.append_null());
    }

    fn append_nulls(&mut self, count: usize) {
        each_builder!(self, builder => builder.append_nulls(count));
    }

    /// Appends a value that is written as nearly all of its column are, which spares making a [`Value`] of it, and says how
    /// many bytes it takes. Of one that is not, it says nothing and leaves it to [`value::read`].
    #[inline]
    fn append_usual(
        &mut self,
        json: &str,
        escapes: Escapes,
        usual: Usual,
        placeholder: Option<&Placeholder>,
    ) -> Option<usize> {
        let is_placeholder = || placeholder.is_some_and(|placeholder| placeholder.may_be(json));
        let inside = || json.strip_prefix('"')?.strip_suffix('"');
        let plain = || inside().filter(|_| escapes == Escapes::None);
        let whole = || json::short_whole(json.as_bytes());
        if json == "null" {
            self.append_null();
            return Some(value_size(&Value::Null));
        }
        match (usual, self) {
            (Usual::Text, ColumnBuilder::Text(builder)) if !is_placeholder() => {
                append_text(builder, inside()?, escapes)
            }
            (Usual::Long, ColumnBuilder::Long(builder)) => {
                builder.append_value(whole()?);
                Some(8)
            }
            (Usual::Int, ColumnBuilder::Int(builder)) => {
                builder.append_value(whole()?.try_into().ok()?);
                Some(4)
            }
            (Usual::Days, ColumnBuilder::Date(builder)) => {
                builder.append_value(whole()?.try_into().ok()?);
                Some(4)
            }
            (Usual::Micros, ColumnBuilder::Timestamp(builder)) => {
                builder.append_value(whole()?);
                Some(8)
            }
            (Usual::Double, ColumnBuilder::Double(builder)) => {
                builder.append_value(value::double(json).ok()?);
                Some(8)
            }
            (Usual::Boolean, ColumnBuilder::Boolean(builder)) => {
                builder.append_value(json.parse().ok()?);
                Some(1)
            }
            (Usual::Decimal { precision, scale }, ColumnBuilder::Decimal(builder)) if !is_placeholder() => {
                let (bytes, length) = base64::decode_short(plain()?)?;
                let bytes = bytes.get(..length)?;
                builder.append_value(decimal::from_bytes(bytes, i64::from(scale), precision, scale).ok()?);
                Some(16)
            }
            (Usual::Instant, ColumnBuilder::Timestamp(builder)) => {
                builder.append_value(iso::timestamptz(plain()?).ok()?);
                Some(8)
            }
            _ => None,
        }
    }

    fn append(&mut self, value: Value<'_>) -> Result<(), WrongType> {
        match (self, value) {
            (column, Value::Missing | Value::Null | Value::Unavailable) => column.append_null(),
            (ColumnBuilder::Boolean(builder), Value::Boolean(value)) => builder.append_value(value),
            (ColumnBuilder::Int(builder), Value::Int(value)) => builder.append_value(value),
            (ColumnBuilder::Date(builder), Value::Int(value)) => builder.append_value(value),
            (ColumnBuilder::Long(builder), Value::Long(value)) => builder.append_value(value),
            // Rows of before the column was widened, which may come late.
            (ColumnBuilder::Long(builder), Value::Int(value)) => builder.append_value(i64::from(value)),
            (ColumnBuilder::Double(builder), Value::Float(value)) => builder.append_value(f64::from(value)),
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

/// Appends the text that stands between quotes, where its escapes are of one character.
fn append_text(builder: &mut StringBuilder, inside: &str, escapes: Escapes) -> Option<usize> {
    match escapes {
        Escapes::None => {
            builder.append_value(inside);
            Some(inside.len() + 4)
        }
        Escapes::Short => {
            let mut length = 0;
            let whole = json::each_piece(inside, |piece| {
                length += piece.len();
                builder.write_str(piece).unwrap_or(());
            });
            debug_assert!(whole.is_some(), "an escape that is not short");
            builder.append_value("");
            Some(length + 4)
        }
        Escapes::Any => None,
    }
}
