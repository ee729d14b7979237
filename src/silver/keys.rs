//! Sets of keys: which keys a run is about, and which rows have one of them.
//!
//! Whole numbers (and what is stored as one) and texts are compared as they are; everything else, and keys of several
//! columns, as the bytes of Arrow's row format, whose order is that of the values.

use std::cmp::Ordering;
use std::sync::OnceLock;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};

/// How the keys of a table are compared.
pub(super) struct KeyShape {
    types: Vec<DataType>,
    form: Form,
}

enum Form {
    Numbers,
    Texts,
    Rows(RowConverter),
}

/// The keys of a batch of rows.
#[derive(Debug)]
pub(super) struct KeyColumn {
    values: Values,
    /// A key that lacks one of its columns is none.
    nulls: Option<NullBuffer>,
}

#[derive(Debug)]
enum Values {
    Numbers(Int64Array),
    Texts(StringArray),
    Rows(Rows),
}

impl KeyShape {
    pub(super) fn new(types: Vec<DataType>) -> Result<Self, ArrowError> {
        let form = match types.as_slice() {
            [only] if is_number(only) => Form::Numbers,
            [DataType::Utf8] => Form::Texts,
            several => Form::Rows(RowConverter::new(several.iter().cloned().map(SortField::new).collect())?),
        };
        Ok(KeyShape { types, form })
    }

    /// The keys whose columns these are; columns of other types are cast.
    pub(super) fn keys(&self, columns: &[ArrayRef]) -> Result<KeyColumn, ArrowError> {
        let mut nulls: Option<NullBuffer> = None;
        let mut cast_columns = Vec::with_capacity(columns.len());
        for (column, wanted) in columns.iter().zip(&self.types) {
            let column = if column.data_type() == wanted { column.clone() } else { cast(column, wanted)? };
            nulls = NullBuffer::union(nulls.as_ref(), column.logical_nulls().as_ref());
            cast_columns.push(column);
        }
        let values = match &self.form {
            Form::Numbers => {
                Values::Numbers(cast(&cast_columns[0], &DataType::Int64)?.as_primitive::<Int64Type>().clone())
            }
            Form::Texts => Values::Texts(cast_columns[0].as_string::<i32>().clone()),
            Form::Rows(converter) => Values::Rows(converter.convert_columns(&cast_columns)?),
        };
        Ok(KeyColumn { values, nulls: nulls.filter(|nulls| nulls.null_count() > 0) })
    }

    /// The shape of the first column alone. Its keys compare with the beginnings of whole keys.
    pub(super) fn of_first_column(&self) -> Result<KeyShape, ArrowError> {
        let types = self.types[..1].to_vec();
        let form = match &self.form {
            Form::Numbers => Form::Numbers,
            Form::Texts => Form::Texts,
            Form::Rows(_) => Form::Rows(RowConverter::new(vec![SortField::new(types[0].clone())])?),
        };
        Ok(KeyShape { types, form })
    }

    pub(super) fn set(&self, capacity: usize) -> KeySet {
        let store = match self.form {
            Form::Numbers => Store::Numbers(Vec::with_capacity(capacity)),
            Form::Texts | Form::Rows(_) => Store::Bytes { bytes: Vec::new(), ends: Vec::with_capacity(capacity) },
        };
        KeySet { store, slots: vec![0; slots_for(capacity)], is_sealed: false, filter: OnceLock::new() }
    }
}

/// Whether a cast to a 64 bit integer keeps values apart, and in order.
fn is_number(data_type: &DataType) -> bool {
    use DataType::*;
    matches!(
        data_type,
        Int8 | Int16 | Int32 | Int64 | Date32 | Timestamp(TimeUnit::Microsecond, _) | Time64(TimeUnit::Microsecond)
    )
}

impl KeyColumn {
    /// What it takes in memory.
    pub(super) fn size(&self) -> usize {
        match &self.values {
            Values::Numbers(numbers) => numbers.get_array_memory_size(),
            Values::Texts(texts) => texts.get_array_memory_size(),
            Values::Rows(rows) => rows.size(),
        }
    }

    pub(super) fn len(&self) -> usize {
        match &self.values {
            Values::Numbers(values) => values.len(),
            Values::Texts(values) => values.len(),
            Values::Rows(rows) => rows.num_rows(),
        }
    }

    pub(super) fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    pub(super) fn hash(&self, row: usize) -> u64 {
        match &self.values {
            Values::Numbers(values) => hash_number(values.value(row)),
            Values::Texts(values) => hash_bytes(values.value(row).as_bytes()),
            Values::Rows(rows) => hash_bytes(rows.row(row).data()),
        }
    }

    /// The keys, where they are numbers that do not fall from row to row and none is null.
    fn rising(&self) -> Option<&[i64]> {
        match &self.values {
            Values::Numbers(values) if self.nulls.is_none() && values.values().is_sorted() => Some(values.values()),
            _ => None,
        }
    }

    /// Whether a row's key is the same here and there; both must be of one shape.
    pub(super) fn is_same(&self, row: usize, other: &KeyColumn) -> bool {
        match (&self.values, &other.values) {
            (Values::Numbers(left), Values::Numbers(right)) => left.value(row) == right.value(row),
            (Values::Texts(left), Values::Texts(right)) => left.value(row) == right.value(row),
            (Values::Rows(left), Values::Rows(right)) => left.row(row) == right.row(row),
            _ => false,
        }
    }
}

/// Keys, each with a number, from 0 on: that in which they came, until the set is sealed; then that of their order.
pub(super) struct KeySet {
    store: Store,
    /// Open addressing: the number of a key plus one, or 0.
    slots: Vec<u32>,
    is_sealed: bool,
    /// One bit for about sixteen, so that most keys that are not in the set are known by one look at little memory. Made
    /// for the first who looks.
    filter: OnceLock<Vec<u64>>,
}

enum Store {
    Numbers(Vec<i64>),
    Bytes { bytes: Vec<u8>, ends: Vec<usize> },
}

impl KeySet {
    pub(super) fn len(&self) -> usize {
        self.store.len()
    }

    pub(super) fn bytes(&self) -> usize {
        let stored = match &self.store {
            Store::Numbers(numbers) => numbers.capacity() * 8,
            Store::Bytes { bytes, ends } => bytes.capacity() + ends.capacity() * 8,
        };
        // There are two slots for a key, or more. While they are put in order, a key is there twice, with its number.
        stored
            + self.slots.len() * 4
            + self.slots.len() / 2 * 20
            + self.filter.get().map_or(0, |filter| filter.len() * 8)
    }

    /// The number of a row's key, and whether it is new.
    pub(super) fn insert(&mut self, keys: &KeyColumn, row: usize) -> (usize, bool) {
        let mut slot = keys.hash(row) as usize & (self.slots.len() - 1);
        loop {
            match self.slots[slot] {
                0 => break,
                number if self.store.is(number as usize - 1, keys, row) => return (number as usize - 1, false),
                _ => slot = (slot + 1) & (self.slots.len() - 1),
            }
        }
        let number = self.store.push(keys, row);
        self.is_sealed = false;
        self.filter.take();
        self.slots[slot] = number as u32 + 1;
        if self.len() * 2 > self.slots.len() {
            self.grow();
        }
        (number, true)
    }

    fn grow(&mut self) {
        let mut slots = vec![0u32; self.slots.len() * 2];
        for number in 0..self.len() {
            let mut slot = self.store.hash(number) as usize & (slots.len() - 1);
            while slots[slot] != 0 {
                slot = (slot + 1) & (slots.len() - 1);
            }
            slots[slot] = number as u32 + 1;
        }
        self.slots = slots;
    }

    /// To be called once all keys are in: numbers them by their order. Gives the new number of each.
    pub(super) fn seal(&mut self) -> Vec<u32> {
        let order = self.store.sort();
        let mut numbers = vec![0; order.len()];
        (0..).zip(order).for_each(|(number, before)| numbers[before as usize] = number);
        for slot in self.slots.iter_mut().filter(|slot| **slot != 0) {
            *slot = numbers[*slot as usize - 1] + 1;
        }
        self.is_sealed = true;
        numbers
    }

    fn filter(&self) -> Vec<u64> {
        let words = (self.len().max(4) * 16 / 64).next_power_of_two();
        let mut filter = vec![0u64; words];
        for number in 0..self.len() {
            let (word, bit) = place_in(&filter, self.store.hash(number));
            filter[word] |= bit;
        }
        filter
    }

    /// Tells of each row whose key is in the set, with the key's number. Where both are in order, that is one walk
    /// through the two, and nothing is looked up.
    pub(super) fn for_each_match(&self, keys: &KeyColumn, mut found: impl FnMut(usize, usize)) {
        if let (Store::Numbers(values), true, Some(rows)) = (&self.store, self.is_sealed, keys.rising()) {
            let mut at = 0;
            for (row, key) in rows.iter().enumerate() {
                at = at_least(values, at, *key);
                match values.get(at) {
                    Some(value) if value == key => found(row, at),
                    Some(_) => {}
                    None => break,
                }
            }
            return;
        }
        let filter = self.filter.get_or_init(|| self.filter());
        for row in 0..keys.len() {
            if keys.is_null(row) {
                continue;
            }
            let hash = keys.hash(row);
            let (word, bit) = place_in(filter, hash);
            if filter[word] & bit == 0 {
                continue;
            }
            let mut slot = hash as usize & (self.slots.len() - 1);
            loop {
                match self.slots[slot] {
                    0 => break,
                    number if self.store.is(number as usize - 1, keys, row) => {
                        found(row, number as usize - 1);
                        break;
                    }
                    _ => slot = (slot + 1) & (self.slots.len() - 1),
                }
            }
        }
    }

    /// The first and the last of sorted keys whose first column is between two bounds; one that is null bounds nothing.
    pub(super) fn between(
        &self,
        sorted: &[u32],
        lower: &KeyColumn,
        upper: &KeyColumn,
        row: usize,
    ) -> Option<(u32, u32)> {
        let from = match lower.is_null(row) {
            true => 0,
            false => sorted.partition_point(|number| self.store.starts(*number as usize, lower, row).is_lt()),
        };
        let until = match upper.is_null(row) {
            true => sorted.len(),
            false => sorted.partition_point(|number| self.store.starts(*number as usize, upper, row).is_le()),
        };
        (from < until).then(|| (sorted[from], sorted[until - 1]))
    }
}

impl Store {
    fn len(&self) -> usize {
        match self {
            Store::Numbers(numbers) => numbers.len(),
            Store::Bytes { ends, .. } => ends.len(),
        }
    }

    /// Puts the keys in order. Gives the number that each had.
    fn sort(&mut self) -> Vec<u32> {
        if let Store::Numbers(values) = self {
            let mut pairs: Vec<(i64, u32)> = values.iter().copied().zip(0..).collect();
            pairs.sort_unstable();
            values.iter_mut().zip(&pairs).for_each(|(value, (sorted, _))| *value = *sorted);
            return pairs.into_iter().map(|(_, number)| number).collect();
        }
        let order = self.order_of_bytes();
        let (mut bytes, mut ends) = (Vec::new(), Vec::with_capacity(order.len()));
        for number in &order {
            bytes.extend_from_slice(self.bytes(*number as usize));
            ends.push(bytes.len());
        }
        *self = Store::Bytes { bytes, ends };
        order
    }

    fn order_of_bytes(&self) -> Vec<u32> {
        let count = self.len();
        // Most keys differ in the few bytes behind what they all begin with: a look at those spares a look at the keys,
        // which lie all over memory.
        let first = if count == 0 { &[] } else { self.bytes(0) };
        let same = |number: usize| self.bytes(number).iter().zip(first).take_while(|(one, other)| one == other).count();
        let shared = (0..count).map(same).min().unwrap_or(0);
        let mut heads: Vec<(u64, u32)> =
            (0..count).map(|number| (head(&self.bytes(number)[shared..]), number as u32)).collect();
        heads.sort_unstable_by(|(head, number), (other_head, other)| {
            head.cmp(other_head).then_with(|| self.bytes(*number as usize).cmp(self.bytes(*other as usize)))
        });
        heads.into_iter().map(|(_, number)| number).collect()
    }
}

/// The place of the first value from `at` on that is not less, which is most often near.
fn at_least(values: &[i64], mut at: usize, key: i64) -> usize {
    let mut step = 1;
    while let Some(value) = values.get(at + step - 1)
        && *value < key
    {
        (at, step) = (at + step, step * 2);
    }
    at + values[at..values.len().min(at + step - 1)].partition_point(|value| *value < key)
}

/// The first bytes of a text, in a number that is ordered as they are. A shorter text comes before those it begins.
fn head(bytes: &[u8]) -> u64 {
    let mut head = [0; 8];
    let length = bytes.len().min(8);
    head[..length].copy_from_slice(&bytes[..length]);
    u64::from_be_bytes(head)
}

impl Store {
    fn push(&mut self, keys: &KeyColumn, row: usize) -> usize {
        match (self, &keys.values) {
            (Store::Numbers(numbers), Values::Numbers(values)) => {
                numbers.push(values.value(row));
                numbers.len() - 1
            }
            (Store::Bytes { bytes, ends }, values) => {
                match values {
                    Values::Texts(values) => bytes.extend_from_slice(values.value(row).as_bytes()),
                    Values::Rows(rows) => bytes.extend_from_slice(rows.row(row).data()),
                    Values::Numbers(values) => bytes.extend_from_slice(&values.value(row).to_be_bytes()),
                }
                ends.push(bytes.len());
                ends.len() - 1
            }
            // A set only meets keys of its own shape.
            (Store::Numbers(numbers), _) => numbers.len(),
        }
    }

    fn is(&self, number: usize, keys: &KeyColumn, row: usize) -> bool {
        match (self, &keys.values) {
            (Store::Numbers(numbers), Values::Numbers(values)) => numbers[number] == values.value(row),
            (_, Values::Texts(values)) => self.bytes(number) == values.value(row).as_bytes(),
            (_, Values::Rows(rows)) => self.bytes(number) == rows.row(row).data(),
            _ => false,
        }
    }

    /// How a key's first column compares with a bound.
    fn starts(&self, number: usize, bound: &KeyColumn, row: usize) -> Ordering {
        match (self, &bound.values) {
            (Store::Numbers(numbers), Values::Numbers(values)) => numbers[number].cmp(&values.value(row)),
            (_, Values::Texts(values)) => self.bytes(number).cmp(values.value(row).as_bytes()),
            (_, Values::Rows(rows)) => {
                let (key, bound) = (self.bytes(number), rows.row(row));
                key[..key.len().min(bound.data().len())].cmp(bound.data())
            }
            _ => Ordering::Equal,
        }
    }

    fn bytes(&self, number: usize) -> &[u8] {
        match self {
            Store::Numbers(_) => &[],
            Store::Bytes { bytes, ends } => {
                let start = if number == 0 { 0 } else { ends[number - 1] };
                &bytes[start..ends[number]]
            }
        }
    }

    fn hash(&self, number: usize) -> u64 {
        match self {
            Store::Numbers(numbers) => hash_number(numbers[number]),
            Store::Bytes { .. } => hash_bytes(self.bytes(number)),
        }
    }
}

fn slots_for(capacity: usize) -> usize {
    (capacity.max(8) * 2).next_power_of_two()
}

/// The filter goes by other bits of the hash than the slots do.
fn place_in(filter: &[u64], hash: u64) -> (usize, u64) {
    let at = (hash >> 32) as usize;
    ((at >> 6) & (filter.len() - 1), 1 << (at & 63))
}

fn hash_number(value: i64) -> u64 {
    mixed(value as u64 ^ 0x243f_6a88_85a3_08d3)
}

fn hash_bytes(bytes: &[u8]) -> u64 {
    let mut hash = bytes.len() as u64 ^ 0x1319_8a2e_0370_7344;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        hash = mixed(hash ^ u64::from_le_bytes(word));
    }
    let rest = chunks.remainder();
    let mut word = [0; 8];
    word[..rest.len()].copy_from_slice(rest);
    mixed(hash ^ u64::from_le_bytes(word))
}

/// Both halves of a wide product, folded: every bit of the input reaches every bit of the answer.
fn mixed(value: u64) -> u64 {
    let product = u128::from(value) * 0x9e37_79b9_7f4a_7c15_u128;
    let folded = product as u64 ^ (product >> 64) as u64;
    (folded ^ (folded >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int32Array;

    use super::*;

    #[test]
    fn keys_of_every_shape_are_found_and_sorted() {
        let numbers = |values: Vec<Option<i32>>| Arc::new(Int32Array::from(values)) as ArrayRef;
        let texts = |values: &[i32]| {
            Arc::new(values.iter().map(|v| Some(format!("key-{v:06}"))).collect::<StringArray>()) as ArrayRef
        };
        let check = |columns: &dyn Fn(&[i32]) -> Vec<ArrayRef>| {
            let types = columns(&[]).iter().map(|column| column.data_type().clone()).collect();
            let shape = KeyShape::new(types).unwrap();
            // Added in a scrambled order, each twice.
            let added: Vec<i32> = (0..2000).map(|i| (i * 7919) % 1000 * 3).collect();
            let keys = shape.keys(&columns(&added)).unwrap();
            let mut set = shape.set(4);
            for row in 0..keys.len() {
                assert_eq!(set.insert(&keys, row), (row % 1000, row < 1000));
            }
            let asked: Vec<i32> = (0..3000).collect();
            let mut found = Vec::new();
            set.for_each_match(&shape.keys(&columns(&asked)).unwrap(), |row, number| {
                assert_eq!(added[number], row as i32);
                found.push(row);
            });
            assert_eq!(found, (0..3000).step_by(3).collect::<Vec<_>>());
            let numbers = set.seal();
            assert!(added.iter().zip(&numbers).all(|(key, number)| *key == *number as i32 * 3));
            // Once in order, by a walk where the rows are in order too: with repeated ones, a part of all, or none.
            let falling: Vec<i32> = asked.iter().rev().copied().collect();
            for asked in [&asked, &falling, &vec![2, 3, 3, 3, 4, 9], &vec![2997, 2998, 5000], &vec![-3, -1], &vec![]] {
                let mut found = Vec::new();
                set.for_each_match(&shape.keys(&columns(asked)).unwrap(), |row, number| {
                    assert_eq!(number as i32 * 3, asked[row]);
                    found.push(row);
                });
                let is_there = |row: &usize| asked[*row] % 3 == 0 && (0..3000).contains(&asked[*row]);
                assert_eq!(found, (0..asked.len()).filter(is_there).collect::<Vec<_>>(), "{asked:?}");
            }
        };
        check(&|values| vec![numbers(values.iter().copied().map(Some).collect())]);
        check(&|values| vec![texts(values)]);
        check(&|values| vec![numbers(values.iter().map(|_| Some(1)).collect()), texts(values)]);
    }

    #[test]
    fn a_key_without_a_value_is_none() {
        let shape = KeyShape::new(vec![DataType::Int32, DataType::Int32]).unwrap();
        let column = |values: Vec<Option<i32>>| Arc::new(Int32Array::from(values)) as ArrayRef;
        let keys = shape.keys(&[column(vec![Some(1), None, Some(1)]), column(vec![Some(1), Some(1), None])]).unwrap();
        assert_eq!((0..3).map(|row| keys.is_null(row)).collect::<Vec<_>>(), [false, true, true]);
    }
}
