//! What the entries of groups are, from the old rows, the rows that came and those that went; or that it cannot be told.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Int64Array, UInt32Array, UInt64Array};
use arrow::compute::kernels::cmp::not_distinct;
use arrow::compute::{interleave, take};
use arrow::datatypes::{DataType, Decimal128Type, DecimalType, Int64Type, UInt64Type};
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::error::DataFusionError;

use crate::engine::{self, Result};

/// An aggregate that can be carried forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// Of all rows, or of those with a value.
    Count {
        of_all: bool,
    },
    /// With the entry that counts the same values, if the model has one, and whether the answer has 0 in place of null.
    Sum {
        counted_by: Option<usize>,
        null_is_zero: bool,
    },
    Least,
    Greatest,
}

/// What becomes of a group's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Open,
    Gone,
    Same,
    New,
}

/// The groups that changes reach, by number.
pub(super) struct Book {
    converter: RowConverter,
    numbers: HashMap<OwnedRow, usize>,
    pub(super) groups: Vec<OwnedRow>,
}

/// The groups of a batch's rows; `None` for one that is not in the book.
pub(super) struct Page {
    pub(super) groups: Vec<Option<usize>>,
}

impl Book {
    pub(super) fn new(types: impl Iterator<Item = DataType>) -> Result<Book> {
        let converter = RowConverter::new(types.map(SortField::new).collect()).map_err(DataFusionError::from)?;
        Ok(Book { converter, numbers: HashMap::new(), groups: Vec::new() })
    }

    pub(super) fn page(&mut self, columns: &[ArrayRef], takes_in: bool) -> Result<Page> {
        let rows = self.converter.convert_columns(columns).map_err(DataFusionError::from)?;
        let mut groups = Vec::with_capacity(rows.num_rows());
        for row in rows.iter().map(|row| row.owned()) {
            let known = self.numbers.get(&row).copied();
            groups.push(known.or_else(|| {
                takes_in.then(|| {
                    self.groups.push(row.clone());
                    self.numbers.insert(row, self.groups.len() - 1);
                    self.groups.len() - 1
                })
            }));
        }
        Ok(Page { groups })
    }

    /// The values of all groups, or of some.
    pub(super) fn keys(&self, wanted: Option<&[bool]>) -> Result<Vec<ArrayRef>> {
        let is_wanted = |index: usize| wanted.is_none_or(|wanted| wanted[index]);
        let rows = self.groups.iter().enumerate().filter(|(index, _)| is_wanted(*index));
        Ok(self.converter.convert_rows(rows.map(|(_, row)| row.row())).map_err(DataFusionError::from)?)
    }
}

impl Page {
    /// A column with one value for each group of the book, null where the group is not on the page.
    pub(super) fn aligned(&self, column: &ArrayRef, size: usize) -> Result<ArrayRef> {
        let mut places: Vec<Option<u32>> = vec![None; size];
        for (row, group) in self.groups.iter().enumerate() {
            if let Some(group) = group {
                places[*group] = u32::try_from(row).ok();
            }
        }
        Ok(take(column, &UInt32Array::from(places), None).map_err(DataFusionError::from)?)
    }
}

/// What one of the old rows, the rows that came and those that went says of each group.
pub(super) struct Side {
    rows: Vec<usize>,
    columns: Vec<ArrayRef>,
}

impl Side {
    pub(super) fn new(page: &Page, columns: &[ArrayRef], size: usize) -> Result<Side> {
        let mut rows = vec![0; size];
        for group in page.groups.iter().flatten() {
            rows[*group] += 1;
        }
        let columns = columns.iter().map(|column| page.aligned(column, size)).collect::<Result<_>>()?;
        Ok(Side { rows, columns })
    }
}

/// What is known of the groups.
pub(super) struct Accounts<'a> {
    pub(super) entries: &'a [Entry],
    pub(super) is_filtered: bool,
    /// How many rows of each group came.
    pub(super) came: Vec<i64>,
    pub(super) old: Side,
    pub(super) added: Side,
    pub(super) removed: Side,
}

impl Accounts<'_> {
    /// What each entry is now, and what becomes of each group's row. Only the entries of new rows mean anything.
    pub(super) fn settle(&self) -> Result<(Vec<ArrayRef>, Vec<Fate>)> {
        let mut fates: Vec<Fate> = (0..self.came.len()).map(|group| self.before(group)).collect();
        let counted: Vec<Option<Vec<i64>>> = (0..self.entries.len()).map(|index| self.counted(index)).collect();
        let all = self.entries.iter().position(|entry| *entry == Entry::Count { of_all: true });
        // A group that has no more rows than came has those alone: it is what they say.
        let mut is_anew = vec![false; fates.len()];
        if let Some(Some(rows)) = all.map(|index| &counted[index]) {
            for (group, fate) in fates.iter_mut().enumerate().filter(|(_, fate)| **fate != Fate::Open) {
                match rows[group].cmp(&self.came[group]) {
                    Ordering::Less => *fate = Fate::Open,
                    Ordering::Equal if rows[group] == 0 => *fate = Fate::Gone,
                    Ordering::Equal => is_anew[group] = true,
                    Ordering::Greater => {}
                }
            }
        }
        let mut is_same: Vec<bool> = self.old.rows.iter().map(|rows| *rows == 1).collect();
        // Rows that came are there now, and so is a group that lost none.
        let mut is_there: Vec<bool> = self.came.iter().map(|came| *came > 0).collect();
        for (group, is_there) in is_there.iter_mut().enumerate() {
            *is_there |= self.old.rows[group] == 1 && self.removed.rows[group] == 0;
        }
        let mut values = Vec::with_capacity(self.entries.len());
        for (index, entry) in self.entries.iter().enumerate() {
            let (now, is_told) = match entry {
                Entry::Count { .. } => self.count(index, &counted, &is_anew),
                Entry::Sum { .. } => self.sum(index, &counted, &is_anew)?,
                Entry::Least => self.extreme(index, Ordering::Less, &is_anew)?,
                Entry::Greatest => self.extreme(index, Ordering::Greater, &is_anew)?,
            };
            let old = &self.old.columns[index];
            let is_equal = not_distinct(&now, old).map_err(DataFusionError::from)?;
            let may_be_null = self.may_be_null(index);
            for group in 0..fates.len() {
                if !is_told[group] && fates[group] == Fate::New {
                    fates[group] = Fate::Open;
                }
                is_there[group] |= match &counted[index] {
                    Some(counted) => counted[group] > 0,
                    None => now.is_valid(group),
                };
                is_same[group] &= is_equal.value(group) && !may_be_null[group];
            }
            values.push(now);
        }
        for (group, fate) in fates.iter_mut().enumerate().filter(|(_, fate)| **fate == Fate::New) {
            *fate = match (is_there[group], is_same[group]) {
                (false, _) => Fate::Open,
                (true, true) => Fate::Same,
                (true, false) => Fate::New,
            };
        }
        Ok((values, fates))
    }

    /// What the old rows say: a group without one had no rows, where that does not contradict the rows that went and
    /// HAVING could not have kept it out.
    fn before(&self, group: usize) -> Fate {
        match self.old.rows[group] {
            0 if self.is_filtered || self.removed.rows[group] > 0 => Fate::Open,
            0 | 1 => Fate::New,
            _ => Fate::Open,
        }
    }

    fn counted(&self, index: usize) -> Option<Vec<i64>> {
        let Entry::Count { .. } = self.entries[index] else { return None };
        let [old, came, went] = [&self.old, &self.added, &self.removed].map(|side| counts(&side.columns[index]));
        Some(
            old.iter()
                .zip(came)
                .zip(went)
                .map(|((old, came), went)| old.wrapping_add(came).wrapping_sub(went))
                .collect(),
        )
    }

    /// Of a sum that the answer has as 0: whether it may be that of nothing.
    fn may_be_null(&self, index: usize) -> Vec<bool> {
        let (old, size) = (&self.old.columns[index], self.came.len());
        match (self.entries[index], wide(old)) {
            (Entry::Sum { null_is_zero: true, .. }, Some(old)) => old.iter().map(|old| *old == Some(0)).collect(),
            _ => vec![false; size],
        }
    }

    fn count(&self, index: usize, counted: &[Option<Vec<i64>>], is_anew: &[bool]) -> (ArrayRef, Vec<bool>) {
        let came = counts(&self.added.columns[index]);
        let carried = counted[index].as_deref().unwrap_or_default();
        let now: Vec<i64> =
            (0..is_anew.len()).map(|group| if is_anew[group] { came[group] } else { carried[group] }).collect();
        let is_told = now.iter().map(|count| *count >= 0).collect();
        (Arc::new(Int64Array::from(now)), is_told)
    }

    fn sum(&self, index: usize, counted: &[Option<Vec<i64>>], is_anew: &[bool]) -> Result<(ArrayRef, Vec<bool>)> {
        let data_type = self.added.columns[index].data_type();
        let sides = [&self.old, &self.added, &self.removed].map(|side| wide(&side.columns[index]));
        let [Some(old), Some(came), Some(went)] = sides else {
            return Err(no_sum(data_type));
        };
        let left = match self.entries[index] {
            Entry::Sum { counted_by: Some(of), .. } => counted[of].as_deref(),
            _ => None,
        };
        let may_be_null = self.may_be_null(index);
        let now = (0..is_anew.len()).map(|group| {
            let told = match is_anew[group] {
                true => Some(came[group]),
                false => {
                    let old = Sum { value: old[group], may_be_null: may_be_null[group] };
                    old.after(came[group], went[group], left.map(|left| left[group]))
                }
            };
            told.filter(|sum| sum.is_none_or(|sum| fits(sum, data_type)))
        });
        let now: Vec<Option<Option<i128>>> = now.collect();
        let is_told = now.iter().map(Option::is_some).collect();
        Ok((narrow(now.into_iter().map(Option::flatten).collect(), data_type)?, is_told))
    }

    /// A least or greatest value: `best` is how it compares with the others.
    fn extreme(&self, index: usize, best: Ordering, is_anew: &[bool]) -> Result<(ArrayRef, Vec<bool>)> {
        let columns = [&self.old, &self.added, &self.removed].map(|side| &side.columns[index]);
        let [old, came, went] = columns;
        let converter = RowConverter::new(vec![SortField::new(came.data_type().clone())]);
        let converter = converter.map_err(DataFusionError::from)?;
        let rows =
            |column: &ArrayRef| converter.convert_columns(std::slice::from_ref(column)).map_err(DataFusionError::from);
        let (old_rows, came_rows, went_rows) = (rows(old)?, rows(came)?, rows(went)?);
        let (mut picks, mut is_told) = (Vec::with_capacity(is_anew.len()), Vec::with_capacity(is_anew.len()));
        for (group, is_anew) in is_anew.iter().enumerate() {
            let [old, came, went] = [(old, &old_rows), (came, &came_rows), (went, &went_rows)]
                .map(|(column, rows)| column.is_valid(group).then(|| rows.row(group)));
            let pick = match is_anew {
                true => Some(Pick::Came),
                false => Pick::of(old, came, went, best),
            };
            is_told.push(pick.is_some());
            picks.push((usize::from(pick == Some(Pick::Came)), group));
        }
        let now = interleave(&[old.as_ref(), came.as_ref()], &picks).map_err(DataFusionError::from)?;
        Ok((now, is_told))
    }
}

/// A sum as the answer has it.
struct Sum {
    value: Option<i128>,
    may_be_null: bool,
}

impl Sum {
    /// The sum after values came and went (null where none did) and so many are left, if that is known; `None` where it
    /// cannot be told.
    fn after(&self, came: Option<i128>, went: Option<i128>, left: Option<i64>) -> Option<Option<i128>> {
        if went.is_some() && self.value.is_none() {
            return None;
        }
        let sum = self.value.unwrap_or(0).checked_add(came.unwrap_or(0))?.checked_sub(went.unwrap_or(0))?;
        match left {
            Some(0) => (sum == 0).then_some(None),
            Some(_) => Some(Some(sum)),
            None if came.is_some() => Some(Some(sum)),
            None if went.is_none() && !self.may_be_null => Some(self.value),
            // Zero may be the sum of values, or of none that is left.
            None => (sum != 0).then_some(Some(sum)),
        }
    }
}

/// Which value an extreme has now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pick {
    Old,
    Came,
}

impl Pick {
    /// The better of the old extreme and the best that came, given the best that went; `None` where another may follow.
    fn of<T: Ord>(old: Option<T>, came: Option<T>, went: Option<T>, best: Ordering) -> Option<Pick> {
        let reaches = |one: &T, other: &T| one.cmp(other) != best.reverse();
        match (old, came, went) {
            (Some(old), came, Some(went)) if reaches(&went, &old) => {
                came.is_some_and(|came| reaches(&came, &old)).then_some(Pick::Came)
            }
            (None, _, Some(_)) => None,
            (Some(old), Some(came), _) => Some(if reaches(&came, &old) { Pick::Came } else { Pick::Old }),
            (None, Some(_), None) => Some(Pick::Came),
            (_, None, _) => Some(Pick::Old),
        }
    }
}

pub(super) fn counts(column: &ArrayRef) -> Vec<i64> {
    column.as_primitive::<Int64Type>().iter().map(Option::unwrap_or_default).collect()
}

/// Integers and decimals in one width; `None` for another type.
fn wide(column: &ArrayRef) -> Option<Vec<Option<i128>>> {
    Some(match column.data_type() {
        DataType::Int64 => column.as_primitive::<Int64Type>().iter().map(|value| value.map(i128::from)).collect(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().iter().map(|value| value.map(i128::from)).collect(),
        DataType::Decimal128(..) => column.as_primitive::<Decimal128Type>().iter().collect(),
        _ => return None,
    })
}

fn fits(value: i128, data_type: &DataType) -> bool {
    match data_type {
        DataType::Int64 => i64::try_from(value).is_ok(),
        DataType::UInt64 => u64::try_from(value).is_ok(),
        DataType::Decimal128(precision, _) => Decimal128Type::is_valid_decimal_precision(value, *precision),
        _ => false,
    }
}

fn no_sum(data_type: &DataType) -> engine::Error {
    DataFusionError::Internal(format!("a sum of type {data_type}")).into()
}

fn narrow(values: Vec<Option<i128>>, data_type: &DataType) -> Result<ArrayRef> {
    Ok(match data_type {
        DataType::Int64 => {
            Arc::new(values.into_iter().map(|v| v.and_then(|v| v.try_into().ok())).collect::<Int64Array>())
        }
        DataType::UInt64 => {
            Arc::new(values.into_iter().map(|v| v.and_then(|v| v.try_into().ok())).collect::<UInt64Array>())
        }
        DataType::Decimal128(..) => {
            Arc::new(values.into_iter().collect::<Decimal128Array>().with_data_type(data_type.clone()))
        }
        _ => return Err(no_sum(data_type)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_is_told_from_what_came_and_went_or_not_at_all() {
        let check = |old: Option<i128>, came, went, left, expected: Option<Option<i128>>| {
            let sum = Sum { value: old, may_be_null: false };
            assert_eq!(sum.after(came, went, left), expected, "{old:?} + {came:?} - {went:?}, {left:?} left");
        };
        check(Some(5), Some(2), None, None, Some(Some(7)));
        check(Some(5), None, Some(2), None, Some(Some(3)));
        check(Some(5), None, Some(5), None, None);
        check(Some(5), None, Some(5), Some(0), Some(None));
        check(Some(5), None, Some(5), Some(1), Some(Some(0)));
        check(Some(5), None, Some(4), Some(0), None);
        check(Some(5), Some(0), Some(5), None, Some(Some(0)));
        check(Some(0), None, None, None, Some(Some(0)));
        check(None, None, None, None, Some(None));
        check(None, Some(0), None, None, Some(Some(0)));
        check(None, Some(3), Some(3), None, None);
        check(Some(i128::MAX), Some(1), None, None, None);
        // Where the answer has 0 for null, it may have been either.
        let zero = || Sum { value: Some(0), may_be_null: true };
        assert_eq!(zero().after(None, None, None), None);
        assert_eq!(zero().after(Some(2), None, None), Some(Some(2)));
        assert_eq!(zero().after(Some(0), None, None), Some(Some(0)));
        assert_eq!(zero().after(None, Some(2), None), Some(Some(-2)));
    }

    #[test]
    fn an_extreme_stays_until_it_is_taken_away_and_none_that_reaches_it_comes() {
        let check = |old: Option<i32>, came, went, expected| {
            assert_eq!(Pick::of(old, came, went, Ordering::Greater), expected, "{old:?} + {came:?} - {went:?}");
            let [old, came, went] = [old, came, went].map(|value: Option<i32>| value.map(|value| -value));
            assert_eq!(Pick::of(old, came, went, Ordering::Less), expected, "least: {old:?} + {came:?} - {went:?}");
        };
        check(Some(5), None, None, Some(Pick::Old));
        check(Some(5), Some(4), None, Some(Pick::Old));
        check(Some(5), Some(6), None, Some(Pick::Came));
        check(Some(5), None, Some(4), Some(Pick::Old));
        check(Some(5), Some(4), Some(4), Some(Pick::Old));
        check(Some(5), Some(6), Some(4), Some(Pick::Came));
        check(Some(5), None, Some(5), None);
        check(Some(5), Some(4), Some(5), None);
        check(Some(5), Some(5), Some(5), Some(Pick::Came));
        check(Some(5), Some(6), Some(5), Some(Pick::Came));
        check(Some(5), None, Some(6), None);
        check(None, Some(1), None, Some(Pick::Came));
        check(None, None, None, Some(Pick::Old));
        check(None, None, Some(1), None);
        check(None, Some(2), Some(1), None);
    }
}
