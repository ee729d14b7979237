//! Row images, `before` or `after`, as a column of a batch: a struct where their shape is known, else JSON text.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{
    ArrayRef, AsArray, BooleanBuilder, Date32Builder, Decimal128Builder, Float32Builder, Float64Builder, Int32Builder,
    Int64Builder, LargeBinaryBuilder, NullBufferBuilder, StringBuilder, StructArray, TimestampMicrosecondBuilder,
};
use arrow::compute::cast;

use super::block::{Cells, Found, NULL_BYTES, Usual};
use super::error::{Error, Result};
use super::value::{self, Misfit, Value};
use crate::change::{FieldNames, Span};
use crate::evolution::{Form, TableColumns, legal_name};
use crate::json::{self, Stopped};
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

/// The names of values that were not sent, each with its row, and what stands in their place; nothing where all are sent.
#[derive(Debug)]
pub(super) struct Unavailable<'a> {
    pub(super) names: Vec<(usize, String)>,
    pub(super) placeholder: Option<&'a Placeholder>,
    /// The row that is being read.
    row: usize,
}

/// One image read and found fit, so that writing it cannot fail halfway.
#[derive(Debug)]
pub(super) enum Row<'a> {
    Null,
    /// A value for each column of the shape; then, if there was any, the object of what none was declared for.
    Values(Vec<Value<'a>>, &'a Columns),
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

impl<'a> Unavailable<'a> {
    pub(super) fn new(placeholder: Option<&'a Placeholder>) -> Self {
        Unavailable { names: Vec::new(), placeholder, row: 0 }
    }

    /// What silver has to carry forward is a value of `after`, so that only those go by their bare names.
    fn push(&mut self, image: &str, name: &str) {
        let name = if image == layout::BEFORE { format!("{}.{name}", layout::BEFORE) } else { name.to_string() };
        self.names.push((self.row, name));
    }

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
            self.unavailable.push(image, &columns.names[place]);
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
            unavailable.push(image, name);
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
            unavailable.push(image, &name);
        }
        json::push_field(&mut without, &name, if is_placeholder { "null" } else { value });
        Ok(())
    })
    .map_err(|_| Unfit::NotAnObject { image })?;
    without.push('}');
    let nothing_found = unavailable.names.len() == found_before;
    Ok(Row::Json(if nothing_found { Cow::Borrowed(json) } else { Cow::Owned(without) }))
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
        Value::Missing | Value::Null | Value::Unavailable => NULL_BYTES,
        Value::Long(_) | Value::Double(_) => 8,
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
                None => columns.push(ColumnBuilder::with_nulls(column.column_type, present.len())),
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

    /// Whether its columns are those of a plan, each in its place.
    pub(super) fn are_those_of(&self, plan: &Columns) -> bool {
        matches!(self, Images::Columns { columns, .. } if columns.len() == plan.sources.len())
    }

    /// Reads the images of some rows, whose fields are this column's, each once and in order, straight into it, and says
    /// how many bytes they take, about. Names of values that were not sent go to `unavailable`, with the row.
    ///
    /// [`Images::append_presence`] has to follow, or else [`Images::cut_last`]. `None`, when a value does not fit: nothing is
    /// left of the images then.
    pub(super) fn append_block(
        &mut self,
        images: &[Option<Found<'_>>],
        plan: &Columns,
        image: &'static str,
        unavailable: &mut Unavailable<'_>,
    ) -> Result<Option<usize>> {
        let mut size = Row::Null.size() * images.iter().filter(|image| image.is_none()).count();
        if images.iter().all(Option::is_none) {
            return Ok(Some(size));
        }
        self.make_room();
        self.append_nulls();
        let Images::Columns { columns, .. } = self else { return Ok(None) };
        for (index, (builder, usual)) in columns.iter_mut().zip(&plan.usual).enumerate() {
            let column = plan.column(index);
            let mut row = 0;
            while let Some(rest) = images.get(row..).filter(|rest| !rest.is_empty()) {
                let cells = Cells { images: rest, column: index };
                let appended = builder.append_usual(cells, *usual, unavailable.placeholder);
                size += appended.bytes;
                row += appended.count;
                // One that is written otherwise.
                let Some(next) = images.get(row) else { break };
                let value = match next {
                    None => Some(Value::Missing),
                    Some(found) => {
                        found.value(index).and_then(|(json, _)| value::read(json, column, unavailable.placeholder).ok())
                    }
                };
                let Some(value) = value else {
                    self.cut_last()?;
                    return Ok(None);
                };
                if next.is_some() {
                    size += value_size(&value);
                }
                if matches!(value, Value::Unavailable) {
                    unavailable.row = row;
                    unavailable.push(image, &plan.names[index]);
                }
                builder.append(value).map_err(|_| Error::WrongBuilder { column: column.name.clone() })?;
                row += 1;
            }
        }
        Ok(Some(size))
    }

    /// Which rows have the images that [`Images::append_block`] read.
    pub(super) fn append_presence(&mut self, images: &[Option<Found<'_>>]) {
        let Images::Columns { present, nulls, .. } = self else { return };
        if images.iter().all(Option::is_none) {
            *nulls += images.len();
        } else {
            images.iter().for_each(|image| present.append(image.is_some()));
        }
    }

    /// Takes away the values of images that are not to be rows after all.
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
            | (Images::Json(_) | Images::Open(_), Row::Values(..)) => {
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

    fn append_null(&mut self) {
        each_builder!(self, builder => builder.append_null());
    }

    fn append_nulls(&mut self, count: usize) {
        each_builder!(self, builder => builder.append_nulls(count));
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
