//! Rows that are there against rows that should be: which are missing, too many, or say something else.
//!
//! Rows are told apart by an identity, a key's bytes or what else identifies one. Most agree, so they are compared column
//! by column first; only those of identities that do not agree are looked at one by one.

use std::collections::{BTreeSet, HashMap};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, new_null_array};
use arrow::compute::{cast, interleave};
use arrow::datatypes::{DataType, Float32Type, Float64Type, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::Bytes;

use super::report::Kind;

/// Rows that are compared at a time.
const CHUNK_ROWS: usize = 8192;

/// So many pairs of rows of one identity are compared, each with each.
const MOST_PAIRS: usize = 1_000_000;

/// A computed number and the same number computed in another order may differ by so much of themselves.
const TOLERANCE: f64 = 1e-9;

pub(super) type Identity = Box<[u8]>;

/// Which batch, and which row of it.
pub(super) type Place = (usize, usize);

/// Some rows in memory. Their batches need not have all of the columns.
#[derive(Debug)]
pub(super) struct Rows {
    /// The table's, where they are of one.
    schema: SchemaRef,
    batches: Vec<RecordBatch>,
    of: HashMap<Identity, Vec<Place>>,
}

/// How rows are compared.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Manner<'a> {
    /// Columns that are not looked at.
    pub(super) without: &'a [&'a str],
    /// Several rows of an identity stand in the order of these times.
    pub(super) ordered_by: &'a [&'a str],
    /// Whether floating-point numbers may differ in their last digits.
    pub(super) is_lenient: bool,
}

/// One thing in which they differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unlike {
    pub(super) identity: Identity,
    pub(super) kind: Kind,
    pub(super) column: Option<String>,
    pub(super) expected: Option<String>,
    pub(super) found: Option<String>,
    /// The row that is expected, where there is one.
    pub(super) expected_at: Option<Place>,
    pub(super) found_at: Option<Place>,
}

impl Rows {
    pub(super) fn new(schema: SchemaRef) -> Self {
        Rows { schema, batches: Vec::new(), of: HashMap::new() }
    }

    /// Adds rows, each with its identity.
    pub(super) fn push(&mut self, batch: RecordBatch, identities: impl IntoIterator<Item = Identity>) {
        let at = self.batches.len();
        for (row, identity) in identities.into_iter().enumerate() {
            self.of.entry(identity).or_default().push((at, row));
        }
        self.batches.push(batch);
    }

    pub(super) fn identities(&self) -> impl Iterator<Item = &Identity> {
        self.of.keys()
    }

    /// How many rows.
    pub(super) fn len(&self) -> usize {
        self.of.values().map(Vec::len).sum()
    }

    /// The values of a column, null where a batch does not have it; `None` where none has.
    fn column(&self, name: &str, places: &[Place]) -> Result<Option<ArrayRef>, ArrowError> {
        let found = self.batches.iter().find_map(|batch| batch.column_by_name(name));
        let Some(data_type) = found.map(|column| column.data_type().clone()) else { return Ok(None) };
        let of_batch = |batch: &RecordBatch| match batch.column_by_name(name) {
            Some(column) => column.clone(),
            None => new_null_array(&data_type, batch.num_rows()),
        };
        let parts: Vec<ArrayRef> = self.batches.iter().map(of_batch).collect();
        let parts: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).collect();
        Ok(Some(interleave(&parts, places)?))
    }

    /// The names of the columns, in their order.
    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for schema in self.batches.iter().map(RecordBatch::schema_ref) {
            for field in schema.fields() {
                if !names.contains(&field.name().as_str()) {
                    names.push(field.name());
                }
            }
        }
        names
    }

    /// A value as text; `None` where it is null.
    pub(super) fn value(&self, name: &str, place: Place) -> Option<String> {
        let column = self.batches.get(place.0)?.column_by_name(name)?;
        column.is_valid(place.1).then(|| text_of(column, place.1))
    }

    /// A value as bytes.
    pub(super) fn bytes(&self, name: &str, place: Place) -> Option<Bytes> {
        let column = self.batches.get(place.0)?.column_by_name(name)?;
        let column = cast(&column.slice(place.1, 1), &DataType::Binary).ok()?;
        let column = column.as_binary_opt::<i32>()?;
        column.is_valid(0).then(|| Bytes::copy_from_slice(column.value(0)))
    }

    /// A row's columns as text.
    pub(super) fn text(&self, place: Place, columns: &[&str]) -> String {
        let cell = |name: &&str| {
            let column = self.batches[place.0].column_by_name(name)?;
            Some(format!("{name}={}", text_of(column, place.1)))
        };
        columns.iter().filter_map(cell).collect::<Vec<_>>().join(", ")
    }
}

/// A value as text.
pub(super) fn text_of(column: &ArrayRef, row: usize) -> String {
    let options = FormatOptions::default().with_null("null");
    match ArrayFormatter::try_new(column, &options) {
        Ok(shown) => shown.value(row).to_string(),
        Err(_) => "?".to_string(),
    }
}

/// In what `found` is not `expected`, in the order of the identities.
pub(super) fn compare(expected: &Rows, found: &Rows, manner: Manner<'_>) -> Result<Vec<Unlike>, ArrowError> {
    let is_compared = |name: &&str| !manner.without.contains(name);
    let names: Vec<&str> =
        found.schema.fields().iter().map(|field| field.name().as_str()).filter(is_compared).collect();
    let comparison = Comparison { expected, found, names, manner, lost: lost_columns(expected, found, manner.without) };
    let mut suspects: BTreeSet<&Identity> = BTreeSet::new();
    let (mut pairs, mut whose) = (Vec::new(), Vec::new());
    for (identity, places) in &expected.of {
        match found.of.get(identity) {
            Some(others) if others.len() == places.len() => {
                let ordered = |rows: &Rows, places: &[Place]| comparison.ordered(rows, places);
                pairs.extend(ordered(expected, places)?.into_iter().zip(ordered(found, others)?));
                whose.extend(std::iter::repeat_n(identity, places.len()));
            }
            _ => drop(suspects.insert(identity)),
        }
    }
    suspects.extend(found.of.keys().filter(|identity| !expected.of.contains_key(*identity)));
    for (pairs, whose) in pairs.chunks(CHUNK_ROWS).zip(whose.chunks(CHUNK_ROWS)) {
        let differing = comparison.differing(pairs)?;
        suspects.extend(whose.iter().zip(differing).filter(|(_, differs)| *differs).map(|(identity, _)| *identity));
    }
    let mut unlike = Vec::new();
    for identity in suspects {
        comparison.look_at(identity, &mut unlike)?;
    }
    Ok(unlike)
}

/// Columns that are expected and not there. One that would be null in every row says nothing: it came to the source later.
fn lost_columns<'a>(expected: &'a Rows, found: &Rows, without: &[&str]) -> Vec<&'a str> {
    let names = expected.names().into_iter();
    let is_lost = |name: &&str| !without.contains(name) && found.schema.index_of(name).is_err();
    let says = |name: &&str| {
        expected
            .batches
            .iter()
            .filter_map(|batch| batch.column_by_name(name))
            .any(|of| of.logical_null_count() < of.len())
    };
    names.filter(is_lost).filter(says).collect()
}

struct Comparison<'a> {
    expected: &'a Rows,
    found: &'a Rows,
    /// The columns that are compared.
    names: Vec<&'a str>,
    manner: Manner<'a>,
    lost: Vec<&'a str>,
}

impl Comparison<'_> {
    fn ordered(&self, rows: &Rows, places: &[Place]) -> Result<Vec<Place>, ArrowError> {
        if places.len() < 2 || self.manner.ordered_by.is_empty() {
            return Ok(places.to_vec());
        }
        let mut by: Vec<(Vec<Option<i64>>, Place)> = Vec::new();
        for place in places {
            let mut times = Vec::new();
            for name in self.manner.ordered_by {
                times.push(match rows.batches[place.0].column_by_name(name) {
                    Some(column) => time(&column.slice(place.1, 1))?,
                    None => None,
                });
            }
            by.push((times, *place));
        }
        // What has no end is last.
        by.sort_by_key(|(times, place)| (times.iter().map(|of| of.unwrap_or(i64::MAX)).collect::<Vec<_>>(), *place));
        Ok(by.into_iter().map(|(_, place)| place).collect())
    }

    /// Which pairs of rows are not the same.
    fn differing(&self, pairs: &[(Place, Place)]) -> Result<Vec<bool>, ArrowError> {
        let (left, right): (Vec<Place>, Vec<Place>) = pairs.iter().copied().unzip();
        let mut differing = vec![!self.lost.is_empty(); pairs.len()];
        for name in &self.names {
            let Some(found) = self.found.column(name, &right)? else { continue };
            let expected = self.expected.column(name, &left)?;
            let expected = expected.unwrap_or_else(|| new_null_array(found.data_type(), pairs.len()));
            let Ok(expected) = as_type(&expected, found.data_type()) else {
                differing.fill(true);
                break;
            };
            if expected.as_ref() != found.as_ref() {
                for (row, differs) in differing.iter_mut().enumerate() {
                    *differs |= !self.is_same(&expected, row, &found, row);
                }
            }
        }
        Ok(differing)
    }

    fn is_same(&self, left: &ArrayRef, left_row: usize, right: &ArrayRef, right_row: usize) -> bool {
        let (left, right) = (left.slice(left_row, 1), right.slice(right_row, 1));
        if left.as_ref() == right.as_ref() {
            return true;
        }
        match (number(&left), number(&right)) {
            // 0.0 is -0.0, and what is no number is what is no number.
            (Some(left), Some(right)) if left == right || left.is_nan() && right.is_nan() => true,
            (Some(left), Some(right)) if self.manner.is_lenient => {
                (left - right).abs() <= TOLERANCE * left.abs().max(right.abs())
            }
            _ => false,
        }
    }

    /// Tells in what the rows of one identity are not those expected.
    fn look_at(&self, identity: &Identity, unlike: &mut Vec<Unlike>) -> Result<(), ArrowError> {
        let none = Vec::new();
        let places = |rows: &Rows| self.ordered(rows, rows.of.get(identity).unwrap_or(&none));
        let (mut expected, all) = (places(self.expected)?, places(self.found)?);
        // What reads the same is the same; that spares comparing each with each.
        let mut by_text: HashMap<String, usize> = HashMap::new();
        let texts: Vec<String> = all.iter().map(|place| self.found.text(*place, &self.names)).collect();
        texts.iter().for_each(|text| *by_text.entry(text.clone()).or_default() += 1);
        let mut met: HashMap<String, usize> = HashMap::new();
        if self.lost.is_empty() {
            expected.retain(|place| {
                let text = self.expected.text(*place, &self.names);
                match by_text.get_mut(&text).filter(|left| **left > 0) {
                    Some(left) => {
                        *left -= 1;
                        *met.entry(text).or_default() += 1;
                        false
                    }
                    None => true,
                }
            });
        }
        let mut found: Vec<Place> = Vec::new();
        for (place, text) in all.iter().zip(&texts) {
            match met.get_mut(text).filter(|left| **left > 0) {
                Some(left) => *left -= 1,
                None => found.push(*place),
            }
        }
        if expected.len() * found.len() <= MOST_PAIRS {
            found.retain(|place| {
                let same = expected.iter().position(|other| self.columns_unlike(*other, *place).is_empty());
                if let Some(at) = same {
                    expected.remove(at);
                }
                same.is_none()
            });
        }
        let new = |kind: Kind| Unlike {
            identity: identity.clone(),
            kind,
            column: None,
            expected: None,
            found: None,
            expected_at: None,
            found_at: None,
        };
        // Those that begin at the same time are meant to be the same; the rest is, in order.
        for by_time in [true, false] {
            let mut rest = Vec::new();
            for place in std::mem::take(&mut found) {
                let is_met = |other: &Place| !by_time || self.begin_alike(*other, place);
                let Some(at) = expected.iter().position(is_met) else {
                    rest.push(place);
                    continue;
                };
                let other = expected.remove(at);
                for (column, expected, found) in self.columns_unlike(other, place) {
                    unlike.push(Unlike {
                        column: Some(column),
                        expected: Some(expected),
                        found: Some(found),
                        expected_at: Some(other),
                        found_at: Some(place),
                        ..new(Kind::Differs)
                    });
                }
            }
            found = rest;
        }
        let columns = |rows: &Rows, place| Some(rows.text(place, &self.names));
        for place in expected {
            unlike.push(Unlike {
                expected: columns(self.expected, place),
                expected_at: Some(place),
                ..new(Kind::Missing)
            });
        }
        for place in found {
            let text = self.found.text(place, &self.names);
            let is_again = all.iter().any(|other| *other != place && self.found.text(*other, &self.names) == text);
            let kind = if is_again { Kind::Doubled } else { Kind::Unexpected };
            unlike.push(Unlike { found: Some(text), found_at: Some(place), ..new(kind) });
        }
        Ok(())
    }

    fn begin_alike(&self, expected: Place, found: Place) -> bool {
        let Some(name) = self.manner.ordered_by.first() else { return true };
        let of = |rows: &Rows, place: Place| {
            let column = rows.batches[place.0].column_by_name(name)?;
            time(&column.slice(place.1, 1)).ok().flatten()
        };
        of(self.expected, expected) == of(self.found, found)
    }

    /// The columns in which two rows differ, with both values.
    fn columns_unlike(&self, expected: Place, found: Place) -> Vec<(String, String, String)> {
        let mut unlike = Vec::new();
        for name in &self.names {
            let Some(right) = self.found.batches[found.0].column_by_name(name) else { continue };
            let left = self.expected.batches[expected.0].column_by_name(name).map(|column| column.slice(expected.1, 1));
            let left = left.unwrap_or_else(|| new_null_array(right.data_type(), 1));
            let is_same = match as_type(&left, right.data_type()) {
                Ok(left) => self.is_same(&left, 0, right, found.1),
                Err(_) => text_of(&left, 0) == text_of(right, found.1),
            };
            if !is_same {
                let left = as_type(&left, right.data_type()).unwrap_or(left);
                unlike.push((name.to_string(), text_of(&left, 0), text_of(right, found.1)));
            }
        }
        for name in &self.lost {
            let Some(left) = self.expected.batches[expected.0].column_by_name(name) else { continue };
            if left.is_valid(expected.1) {
                unlike.push((name.to_string(), text_of(left, expected.1), "no such column".to_string()));
            }
        }
        unlike
    }
}

pub(super) fn as_type(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to { Ok(array.clone()) } else { cast(array, to) }
}

fn time(value: &ArrayRef) -> Result<Option<i64>, ArrowError> {
    let value = cast(value, &DataType::Int64)?;
    let value: &Int64Array = value.as_primitive();
    Ok(value.is_valid(0).then(|| value.value(0)))
}

fn number(value: &ArrayRef) -> Option<f64> {
    if value.is_null(0) {
        return None;
    }
    match value.data_type() {
        DataType::Float32 => Some(f64::from(value.as_primitive::<Float32Type>().value(0))),
        DataType::Float64 => Some(value.as_primitive::<Float64Type>().value(0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Float64Array, Int32Array, StringArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    type Row = (i32, Option<&'static str>, f64, Option<i64>);

    fn rows(of: &[Row]) -> Rows {
        let schema = Arc::new(Schema::new(vec![
            Field::new("id", DataType::Int32, true),
            Field::new("name", DataType::Utf8, true),
            Field::new("sum", DataType::Float64, true),
            Field::new("since", DataType::Int64, true),
        ]));
        let mut rows = Rows::new(schema.clone());
        for row in of {
            let columns: Vec<ArrayRef> = vec![
                Arc::new(Int32Array::from(vec![row.0])),
                Arc::new(StringArray::from(vec![row.1])),
                Arc::new(Float64Array::from(vec![row.2])),
                Arc::new(Int64Array::from(vec![row.3])),
            ];
            let batch = RecordBatch::try_new(schema.clone(), columns).unwrap();
            rows.push(batch, [row.0.to_be_bytes().to_vec().into_boxed_slice()]);
        }
        rows
    }

    fn check(expected: &[Row], found: &[Row], manner: Manner<'_>, told: &str) {
        let unlike = compare(&rows(expected), &rows(found), manner).unwrap();
        let texts = unlike.iter().map(|of| {
            let id = i32::from_be_bytes(of.identity.as_ref().try_into().unwrap());
            let text = |text: &Option<String>| text.clone().unwrap_or("-".to_string());
            format!("{:?} {id} {}: {} / {}", of.kind, text(&of.column), text(&of.expected), text(&of.found))
        });
        assert_eq!(texts.collect::<Vec<_>>().join("\n"), told);
    }

    #[test]
    fn rows_are_told_from_others() {
        let whole = Manner::default();
        let a = (1, Some("a"), 0.5, None);
        let b = (2, Some("b"), f64::NAN, None);
        check(&[a, b], &[b, a], whole, "");
        check(&[a, b], &[b], whole, "Missing 1 -: id=1, name=a, sum=0.5, since=null / -");
        check(&[a], &[a, b], whole, "Unexpected 2 -: - / id=2, name=b, sum=NaN, since=null");
        check(&[a], &[a, a], whole, "Doubled 1 -: - / id=1, name=a, sum=0.5, since=null");
        let other = (1, None, 0.25, None);
        check(&[a], &[other], whole, "Differs 1 name: a / null\nDiffers 1 sum: 0.5 / 0.25");
        check(&[a], &[other], Manner { without: &["name", "sum"], ..whole }, "");
    }

    #[test]
    fn numbers_may_differ_in_their_last_digits_where_that_is_allowed() {
        let lenient = Manner { is_lenient: true, ..Manner::default() };
        let of = |sum| [(1, None, sum, None)];
        check(&of(0.3), &of(0.1 + 0.2), Manner::default(), "Differs 1 sum: 0.3 / 0.30000000000000004");
        check(&of(0.3), &of(0.1 + 0.2), lenient, "");
        check(&of(0.0), &of(-0.0), Manner::default(), "");
        check(&of(0.3), &of(0.3001), lenient, "Differs 1 sum: 0.3 / 0.3001");
        check(&of(f64::NAN), &of(0.3), lenient, "Differs 1 sum: NaN / 0.3");
    }

    #[test]
    fn versions_are_compared_in_their_order() {
        let manner = Manner { ordered_by: &["since"], ..Manner::default() };
        let version = |name, since| (1, Some(name), 0.0, Some(since));
        let all = [version("a", 1), version("b", 2), version("c", 3)];
        check(&all, &[all[2], all[0], all[1]], manner, "");
        check(&all, &[all[0], all[2]], manner, "Missing 1 -: id=1, name=b, sum=0.0, since=2 / -");
        check(&all, &[all[0], version("x", 2), all[2]], manner, "Differs 1 name: b / x");
        check(&all, &[all[0], version("b", 9), all[2]], manner, "Differs 1 since: 2 / 9");
        // Of one moment, in whatever order they lie.
        check(&[version("a", 1), version("b", 1)], &[version("b", 1), version("a", 1)], manner, "");
    }
}
