//! Sets of keys: which keys a run is about, and which rows have one of them.
//!
//! Whole numbers (and what is stored as one) and texts are compared as they are; everything else, and keys of several
//! columns, as the bytes of Arrow's row format, whose order is that of the values.

use std::cmp::Ordering;
use std::ops::Range;
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
            Form::Texts | Form::Rows(_) => Store::Bytes(Bytes { expected: capacity, ..Bytes::default() }),
        };
        KeySet { store, slots: Slots::of(capacity), is_sealed: false, filter: OnceLock::new() }
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

    /// The hashes of all rows, or of some that follow each other.
    pub(super) fn hashes(&self, rows: Range<usize>, hashes: &mut Vec<u64>) {
        hashes.clear();
        match &self.values {
            Values::Numbers(values) => hashes.extend(values.values()[rows].iter().map(|value| hash_number(*value))),
            Values::Texts(values) => hashes.extend(rows.map(|row| hash_bytes(values.value(row).as_bytes()))),
            Values::Rows(values) => hashes.extend(rows.map(|row| hash_bytes(values.row(row).data()))),
        }
    }

    /// A key that is no number.
    fn bytes(&self, row: usize) -> &[u8] {
        match &self.values {
            Values::Numbers(_) => &[],
            Values::Texts(values) => values.value(row).as_bytes(),
            Values::Rows(rows) => rows.row(row).data(),
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
    slots: Slots,
    is_sealed: bool,
    /// One bit for about sixteen, so that most keys that are not in the set are known by one look at little memory. Made
    /// for the first who looks.
    filter: OnceLock<Vec<u64>>,
}

enum Store {
    Numbers(Vec<i64>),
    Bytes(Bytes),
}

/// Keys that are no numbers, one after the other.
#[derive(Default)]
struct Bytes {
    bytes: Vec<u8>,
    count: usize,
    /// How many there will be.
    expected: usize,
    ends: Ends,
}

/// Where keys end. Most often they are all as long as the first, and nothing has to be looked up.
enum Ends {
    Every(usize),
    Each(Vec<usize>),
}

impl Default for Ends {
    fn default() -> Self {
        Ends::Every(0)
    }
}

/// How many rows are looked up side by side: most of the time goes by waiting for memory, which can be waited for together.
const LOOKED_UP_AT_ONCE: usize = 64;

impl KeySet {
    pub(super) fn len(&self) -> usize {
        self.store.len()
    }

    pub(super) fn bytes(&self) -> usize {
        let stored = match &self.store {
            Store::Numbers(numbers) => numbers.capacity() * 8,
            Store::Bytes(keys) => keys.size(),
        };
        // There are two slots for a key, or more. While they are put in order, a key is there twice, with its number.
        stored
            + self.slots.len() * 4
            + self.slots.len() / 2 * 20
            + self.filter.get().map_or(0, |filter| filter.len() * 8)
    }

    /// The number of a row's key, and whether it is new.
    pub(super) fn insert(&mut self, keys: &KeyColumn, row: usize, hash: u64) -> (usize, bool) {
        let mut slot = self.slots.first(hash);
        while let Some((at, number)) = self.slots.next(slot, hash) {
            if self.store.is(number, keys, row) {
                return (number, false);
            }
            slot = at + 1;
        }
        let number = self.store.push(keys, row);
        self.is_sealed = false;
        self.filter.take();
        self.slots.put(hash, number);
        if self.len() * 2 > self.slots.len() {
            self.grow();
        }
        (number, true)
    }

    /// Waits for the memory where keys with these hashes are, or will be.
    pub(super) fn approach(&self, hashes: &[u64]) {
        let all = hashes.iter().fold(0, |all, hash| all ^ self.slots.slots[self.slots.first(*hash)]);
        std::hint::black_box(all);
    }

    fn grow(&mut self) {
        self.slots = Slots::of(self.slots.len());
        (0..self.len()).for_each(|number| self.slots.put(self.store.hash(number), number));
    }

    /// To be called once all keys are in: numbers them by their order. Gives the new number of each.
    pub(super) fn seal(&mut self) -> Vec<u32> {
        let order = self.store.sort();
        let mut numbers = vec![0; order.len()];
        (0..).zip(order).for_each(|(number, before)| numbers[before as usize] = number);
        self.slots.renumber(&numbers);
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
        let done = match &self.store {
            _ if !self.is_sealed => 0,
            Store::Numbers(values) => match keys.rising() {
                Some(rows) => walk_numbers(values, rows, &mut found),
                None => 0,
            },
            Store::Bytes(values) => values.walk(keys, &mut found),
        };
        if done < keys.len() {
            self.look_up(keys, done, found);
        }
    }

    /// The same for rows from one on, in whatever order.
    fn look_up(&self, keys: &KeyColumn, from: usize, mut found: impl FnMut(usize, usize)) {
        let filter = self.filter.get_or_init(|| self.filter());
        let mut hashes = Vec::with_capacity(LOOKED_UP_AT_ONCE);
        let mut places = [(0, 0); LOOKED_UP_AT_ONCE];
        for first in (from..keys.len()).step_by(LOOKED_UP_AT_ONCE) {
            keys.hashes(first..keys.len().min(first + LOOKED_UP_AT_ONCE), &mut hashes);
            // Whether a row is among them is not known until it is written: a branch would be guessed wrong too often.
            let mut maybe = 0;
            for (row, hash) in (first..).zip(&hashes) {
                let (word, bit) = place_in(filter, *hash);
                places[maybe] = (row, self.slots.first(*hash));
                maybe += usize::from(filter[word] & bit != 0);
            }
            let mut likely = 0;
            for at in 0..maybe {
                let (row, slot) = places[at];
                if let Some((slot, _)) = self.slots.next(slot, hashes[row - first]) {
                    places[likely] = (row, slot);
                    likely += 1;
                }
            }
            for (row, mut slot) in places[..likely].iter().copied().filter(|(row, _)| !keys.is_null(*row)) {
                while let Some((at, number)) = self.slots.next(slot, hashes[row - first]) {
                    if self.store.is(number, keys, row) {
                        found(row, number);
                        break;
                    }
                    slot = at + 1;
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
            Store::Bytes(keys) => keys.count,
        }
    }

    /// Puts the keys in order. Gives the number that each had.
    fn sort(&mut self) -> Vec<u32> {
        match self {
            Store::Numbers(values) => {
                let mut pairs: Vec<(i64, u32)> = values.iter().copied().zip(0..).collect();
                pairs.sort_unstable();
                values.iter_mut().zip(&pairs).for_each(|(value, (sorted, _))| *value = *sorted);
                pairs.into_iter().map(|(_, number)| number).collect()
            }
            Store::Bytes(keys) => {
                let order = keys.order();
                let (bytes, expected) = (Vec::with_capacity(keys.bytes.len()), keys.count);
                let ends = match &keys.ends {
                    Ends::Every(length) => Ends::Every(*length),
                    Ends::Each(ends) => Ends::Each(Vec::with_capacity(ends.len())),
                };
                let mut sorted = Bytes { bytes, count: 0, expected, ends };
                order.iter().for_each(|number| sorted.push(keys.of(*number as usize)));
                *keys = sorted;
                order
            }
        }
    }

    fn push(&mut self, keys: &KeyColumn, row: usize) -> usize {
        match (&mut *self, &keys.values) {
            (Store::Numbers(numbers), Values::Numbers(values)) => numbers.push(values.value(row)),
            (Store::Bytes(bytes), _) => bytes.push(keys.bytes(row)),
            // A set only meets keys of its own shape.
            (Store::Numbers(_), _) => {}
        }
        self.len() - 1
    }

    fn is(&self, number: usize, keys: &KeyColumn, row: usize) -> bool {
        match (self, &keys.values) {
            (Store::Numbers(numbers), Values::Numbers(values)) => numbers[number] == values.value(row),
            (Store::Numbers(_), _) | (_, Values::Numbers(_)) => false,
            (Store::Bytes(bytes), _) => bytes.of(number) == keys.bytes(row),
        }
    }

    /// How a key's first column compares with a bound.
    fn starts(&self, number: usize, bound: &KeyColumn, row: usize) -> Ordering {
        match (self, &bound.values) {
            (Store::Numbers(numbers), Values::Numbers(values)) => numbers[number].cmp(&values.value(row)),
            (Store::Bytes(bytes), Values::Texts(values)) => bytes.of(number).cmp(values.value(row).as_bytes()),
            (Store::Bytes(bytes), Values::Rows(rows)) => {
                let (key, bound) = (bytes.of(number), rows.row(row));
                key[..key.len().min(bound.data().len())].cmp(bound.data())
            }
            _ => Ordering::Equal,
        }
    }

    fn hash(&self, number: usize) -> u64 {
        match self {
            Store::Numbers(numbers) => hash_number(numbers[number]),
            Store::Bytes(bytes) => hash_bytes(bytes.of(number)),
        }
    }
}

impl Bytes {
    fn of(&self, number: usize) -> &[u8] {
        match &self.ends {
            Ends::Every(length) => &self.bytes[number * length..(number + 1) * length],
            Ends::Each(ends) => {
                let start = if number == 0 { 0 } else { ends[number - 1] };
                &self.bytes[start..ends[number]]
            }
        }
    }

    fn push(&mut self, key: &[u8]) {
        match &mut self.ends {
            Ends::Every(length) if self.count == 0 => *length = key.len(),
            Ends::Every(length) if *length != key.len() => {
                let mut ends = Vec::with_capacity(self.expected.max(self.count + 1));
                ends.extend((1..=self.count).map(|number| number * *length));
                ends.push(self.bytes.len() + key.len());
                self.ends = Ends::Each(ends);
            }
            Ends::Every(_) => {}
            Ends::Each(ends) => ends.push(self.bytes.len() + key.len()),
        }
        self.bytes.extend_from_slice(key);
        self.count += 1;
    }

    fn size(&self) -> usize {
        // Who asks before any key is there has to be told of ends as well: whether they are needed is not known then.
        let ends = match &self.ends {
            Ends::Every(_) => self.expected,
            Ends::Each(ends) => ends.capacity(),
        };
        self.bytes.capacity() + ends * size_of::<usize>()
    }

    /// The numbers of the keys in their order.
    fn order(&self) -> Vec<u32> {
        // Most keys differ in the few bytes behind what they all begin with: a look at those spares a look at the keys,
        // which lie all over memory.
        let first = if self.count == 0 { &[] } else { self.of(0) };
        let same = |number: usize| self.of(number).iter().zip(first).take_while(|(one, other)| one == other).count();
        let shared = (0..self.count).map(same).min().unwrap_or(0);
        let mut heads: Vec<(u64, u32)> =
            (0..self.count).map(|number| (head(&self.of(number)[shared..]), number as u32)).collect();
        heads.sort_unstable_by(|(head, number), (other_head, other)| {
            head.cmp(other_head).then_with(|| self.of(*number as usize).cmp(self.of(*other as usize)))
        });
        heads.into_iter().map(|(_, number)| number).collect()
    }

    /// Walks through the keys, which are in order, along with rows that are, too. Tells of each row whose key is here, and
    /// gives the first one that it did not look at since it is not in order.
    fn walk(&self, keys: &KeyColumn, found: &mut impl FnMut(usize, usize)) -> usize {
        if self.count == 0 || matches!(keys.values, Values::Numbers(_)) {
            return keys.len();
        }
        // All keys before `at` are less than the last row's.
        let mut at = None;
        for row in (0..keys.len()).filter(|row| !keys.is_null(*row)) {
            let key = keys.bytes(row);
            let mut here = match at {
                Some(at) if at == 0 || self.of(at - 1) < key => at,
                Some(_) => return row,
                None => self.first_not_less(0, self.count, key),
            };
            if here < self.count && self.of(here) < key {
                let mut step = 1;
                while here + step < self.count && self.of(here + step) < key {
                    (here, step) = (here + step, step * 2);
                }
                here = self.first_not_less(here + 1, self.count.min(here + step), key);
            }
            if here < self.count && self.of(here) == key {
                found(row, here);
            }
            at = Some(here);
        }
        keys.len()
    }

    /// The number of the first key in a range of numbers that is not less, or the range's end.
    fn first_not_less(&self, mut from: usize, mut until: usize, key: &[u8]) -> usize {
        while from < until {
            let middle = from.midpoint(until);
            match self.of(middle) < key {
                true => from = middle + 1,
                false => until = middle,
            }
        }
        from
    }
}

/// Tells of each row whose key is among the values. Both are in order.
fn walk_numbers(values: &[i64], rows: &[i64], found: &mut impl FnMut(usize, usize)) -> usize {
    let mut at = 0;
    for (row, key) in rows.iter().enumerate() {
        at = at_least(values, at, *key);
        match values.get(at) {
            Some(value) if value == key => found(row, at),
            Some(_) => {}
            None => break,
        }
    }
    rows.len()
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

/// Where keys are found by their hashes, by open addressing: a slot holds the number of a key plus one, or 0. The bits that
/// no number needs are those of the key's hash, so that few keys are looked at in vain.
struct Slots {
    slots: Vec<u32>,
}

impl Slots {
    /// For so many keys: two slots for each, or more.
    fn of(capacity: usize) -> Self {
        Slots { slots: vec![0; (capacity.max(8) * 2).next_power_of_two()] }
    }

    fn len(&self) -> usize {
        self.slots.len()
    }

    /// The bits of numbers.
    fn mask(&self) -> u32 {
        (self.slots.len() - 1) as u32
    }

    /// Where to begin to look.
    fn first(&self, hash: u64) -> usize {
        hash as usize & (self.slots.len() - 1)
    }

    /// The slot and the number of the next key, from a slot on, that may be one with this hash.
    fn next(&self, mut slot: usize, hash: u64) -> Option<(usize, usize)> {
        let tag = (hash >> 32) as u32 & !self.mask();
        loop {
            slot &= self.slots.len() - 1;
            match self.slots[slot] {
                0 => return None,
                found if found & !self.mask() == tag => return Some((slot, (found & self.mask()) as usize - 1)),
                _ => slot += 1,
            }
        }
    }

    fn put(&mut self, hash: u64, number: usize) {
        let mut slot = self.first(hash);
        while self.slots[slot] != 0 {
            slot = (slot + 1) & (self.slots.len() - 1);
        }
        self.slots[slot] = (hash >> 32) as u32 & !self.mask() | (number as u32 + 1);
    }

    fn renumber(&mut self, numbers: &[u32]) {
        let mask = self.mask();
        for slot in self.slots.iter_mut().filter(|slot| **slot != 0) {
            *slot = *slot & !mask | (numbers[(*slot & mask) as usize - 1] + 1);
        }
    }
}

/// The filter goes by other bits of the hash than the place of a slot does. In large sets it shares some with the tags.
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
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use arrow::array::Int32Array;
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

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
                assert_eq!(set.insert(&keys, row, keys.hash(row)), (row % 1000, row < 1000));
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

    fn add_all(set: &mut KeySet, keys: &KeyColumn) {
        for row in 0..keys.len() {
            set.insert(keys, row, keys.hash(row));
        }
    }

    fn of_letters(value: u32) -> String {
        "a".repeat(value as usize % 40) + &"b".repeat(value as usize / 40)
    }

    #[test]
    fn what_is_found_is_what_is_there_whatever_the_keys_and_their_order() {
        for seed in 0..300 {
            let mut random = StdRng::seed_from_u64(seed);
            let different = [3, 40, 3000][random.random_range(0..3)];
            let known_keys = [0.95, 1.0][random.random_range(0..2)];
            let form = random.random_range(0..4);
            let column = |values: &[Option<u32>]| -> Vec<ArrayRef> {
                let texts = |text: &dyn Fn(u32) -> String| -> ArrayRef {
                    Arc::new(values.iter().map(|value| value.map(text)).collect::<StringArray>())
                };
                let numbers = values.iter().map(|value| value.map(i64::from)).collect::<Int64Array>();
                match form {
                    0 => vec![Arc::new(numbers)],
                    1 => vec![texts(&|value| format!("{value:08}"))],
                    // Some begin others, and one is empty.
                    2 => vec![texts(&of_letters)],
                    _ => vec![Arc::new(numbers), texts(&|value| (value % 7).to_string())],
                }
            };
            let added: Vec<Option<u32>> =
                (0..random.random_range(0..2000)).map(|_| Some(random.random_range(0..different))).collect();
            let shape = KeyShape::new(column(&[]).iter().map(|column| column.data_type().clone()).collect()).unwrap();
            let keys = shape.keys(&column(&added)).unwrap();
            let (mut set, mut known) = (shape.set(random.random_range(0..100)), BTreeMap::new());
            for (row, value) in added.iter().enumerate() {
                let number = known.len();
                let expected = *known.entry(*value).or_insert(number);
                assert_eq!(set.insert(&keys, row, keys.hash(row)), (expected, expected == number), "seed {seed}");
            }
            for is_sealed in [false, true] {
                if is_sealed {
                    let numbers = set.seal();
                    known.values_mut().for_each(|number| *number = numbers[*number] as usize);
                    let mut order: Vec<_> = known.iter().map(|(value, number)| (*number, *value)).collect();
                    order.sort_unstable();
                    let sorted: Vec<Option<u32>> = order.into_iter().map(|(_, value)| value).collect();
                    let mut of_numbers = Vec::new();
                    set.for_each_match(&shape.keys(&column(&sorted)).unwrap(), |row, number| {
                        of_numbers.push((row, number));
                    });
                    assert_eq!(of_numbers, (0..known.len()).map(|number| (number, number)).collect::<Vec<_>>());
                }
                // In order, in order but for some, in none.
                let rows = random.random_range(0..700);
                let mut asked: Vec<Option<u32>> = (0..rows)
                    .map(|_| random.random_bool(known_keys).then(|| random.random_range(0..different + 5)))
                    .collect();
                let swaps = [usize::MAX, 0, 1, 20][random.random_range(0..4)];
                if swaps < usize::MAX {
                    let text = |value: u32| if form == 2 { of_letters(value) } else { format!("{value:08}") };
                    asked.sort_by_key(|value| value.map(text));
                }
                for _ in 0..swaps.min(rows) {
                    asked.swap(random.random_range(0..rows), random.random_range(0..rows));
                }
                let mut found = Vec::new();
                set.for_each_match(&shape.keys(&column(&asked)).unwrap(), |row, number| found.push((row, number)));
                let expected = asked.iter().enumerate().filter_map(|(row, value)| {
                    value.as_ref().and_then(|value| Some((row, *known.get(&Some(*value))?)))
                });
                assert_eq!(found, expected.collect::<Vec<_>>(), "seed {seed}");
            }
        }
    }

    #[test]
    fn keys_of_one_hash_are_told_apart() {
        let shape = KeyShape::new(vec![DataType::Utf8]).unwrap();
        let texts = |from: u32| -> ArrayRef {
            Arc::new((from..from + 100).map(|v| Some(v.to_string())).collect::<StringArray>())
        };
        let keys = shape.keys(&[texts(0)]).unwrap();
        let mut set = shape.set(100);
        for round in 0..2 {
            for row in 0..keys.len() {
                assert_eq!(set.insert(&keys, row, u64::MAX), (row, round == 0));
            }
        }
        assert!(!set.insert(&shape.keys(&[texts(99)]).unwrap(), 0, u64::MAX).1);
        assert!(set.insert(&shape.keys(&[texts(99)]).unwrap(), 1, u64::MAX).1);
        let mut slots = Slots::of(0);
        let (hash, other) = (u64::MAX, u64::from(u32::MAX));
        [(hash, 0), (other, 1), (hash, 2)].into_iter().for_each(|(hash, number)| slots.put(hash, number));
        let found = |slots: &Slots, hash: u64| {
            let mut found = Vec::new();
            let mut slot = slots.first(hash);
            while let Some((at, number)) = slots.next(slot, hash) {
                found.push(number);
                slot = at + 1;
            }
            found
        };
        assert_eq!((found(&slots, hash), found(&slots, other)), (vec![0, 2], vec![1]));
        slots.renumber(&[2, 0, 1]);
        assert_eq!((found(&slots, hash), found(&slots, other)), (vec![2, 1], vec![0]));
    }

    #[test]
    fn rows_whose_hashes_meet_are_found_by_their_keys() {
        // So many that some share both their slot and what a slot holds of the hash.
        let shape = KeyShape::new(vec![DataType::Int64]).unwrap();
        let numbers =
            |numbers: &mut dyn Iterator<Item = i64>| -> ArrayRef { Arc::new(Int64Array::from_iter_values(numbers)) };
        let keys = shape.keys(&[numbers(&mut (0..300_000).map(|number| number * 2))]).unwrap();
        let mut set = shape.set(0);
        (0..keys.len()).for_each(|row| assert_eq!(set.insert(&keys, row, keys.hash(row)), (row, true)));
        let asked = shape.keys(&[numbers(&mut (0..600_000).rev())]).unwrap();
        let mut found = Vec::new();
        set.for_each_match(&asked, |row, number| found.push((row, number)));
        let expected: Vec<(usize, usize)> = (0..600_000)
            .map(|row| (row, 599_999 - row))
            .filter(|(_, key)| key % 2 == 0)
            .map(|(row, key)| (row, key / 2))
            .collect();
        assert!(found == expected);
    }

    #[test]
    fn a_set_that_was_put_in_order_takes_more_keys() {
        let shape = KeyShape::new(vec![DataType::Utf8]).unwrap();
        let texts = |values: &[&str]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
        let mut set = shape.set(2);
        let add = |set: &mut KeySet, values: &[&str]| {
            let keys = shape.keys(&[texts(values)]).unwrap();
            add_all(set, &keys);
        };
        let found = |set: &KeySet| {
            let mut found = Vec::new();
            let all = texts(&["a", "m", "z", "bb", "x", "b", "q"]);
            set.for_each_match(&shape.keys(&[all]).unwrap(), |row, number| found.push((row, number)));
            found
        };
        add(&mut set, &["m", "b"]);
        set.seal();
        assert_eq!(found(&set), [(1, 1), (5, 0)]);
        add(&mut set, &["z", "a", "bb"]);
        assert_eq!(found(&set), [(0, 3), (1, 1), (2, 2), (3, 4), (5, 0)]);
        set.seal();
        assert_eq!(found(&set), [(0, 0), (1, 3), (2, 4), (3, 2), (5, 1)]);
    }

    #[test]
    fn keys_between_bounds_are_found() {
        let texts = |values: &[Option<&str>]| -> ArrayRef { Arc::new(StringArray::from(values.to_vec())) };
        let numbers = |values: &[i64]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
        let values = [Some("b"), Some("bb"), Some("d"), Some("f")];
        let check = |columns: Vec<ArrayRef>| {
            let shape = KeyShape::new(columns.iter().map(|column| column.data_type().clone()).collect()).unwrap();
            let keys = shape.keys(&columns).unwrap();
            let mut set = shape.set(0);
            add_all(&mut set, &keys);
            set.seal();
            let first = shape.of_first_column().unwrap();
            let bounds = |values: &[Option<&str>]| first.keys(&[texts(values)]).unwrap();
            let lower = bounds(&[Some("b"), Some("bb"), Some("a"), Some("c"), Some("g"), None, Some("dd")]);
            let upper = bounds(&[Some("d"), Some("bb"), Some("aa"), None, Some("z"), Some("b"), Some("e")]);
            (0..7).map(|row| set.between(&[0, 1, 2, 3], &lower, &upper, row)).collect::<Vec<_>>()
        };
        let expected = [Some((0, 2)), Some((1, 1)), None, Some((2, 3)), None, Some((0, 0)), None];
        assert_eq!(check(vec![texts(&values)]), expected);
        assert_eq!(check(vec![texts(&values), numbers(&[4, 3, 2, 1])]), expected);
    }

    #[test]
    fn an_empty_set_tells_what_its_keys_will_take() {
        let shape = KeyShape::new(vec![DataType::Utf8]).unwrap();
        let mut set = shape.set(1000);
        let before = set.bytes();
        let texts = (0..1000).map(|value| Some("x".repeat(value % 3))).collect::<StringArray>();
        let keys = shape.keys(&[Arc::new(texts) as ArrayRef]).unwrap();
        add_all(&mut set, &keys);
        // Which are some thousand bytes, and not known before.
        assert!(set.bytes() <= before + 2048, "{} and {before}", set.bytes());
        set.seal();
        assert!(set.bytes() <= before + 2048, "{} and {before}", set.bytes());
    }

    #[test]
    fn a_key_without_a_value_is_none() {
        let shape = KeyShape::new(vec![DataType::Int32, DataType::Int32]).unwrap();
        let column = |values: Vec<Option<i32>>| Arc::new(Int32Array::from(values)) as ArrayRef;
        let keys = shape.keys(&[column(vec![Some(1), None, Some(1)]), column(vec![Some(1), Some(1), None])]).unwrap();
        assert_eq!((0..3).map(|row| keys.is_null(row)).collect::<Vec<_>>(), [false, true, true]);
    }
}
