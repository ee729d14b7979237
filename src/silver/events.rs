//! Events as they stand in bronze's files, and the last one of each key among them.

mod carry;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int32Array, Int64Array, ListArray, RecordBatch, StringArray, StructArray,
    make_array,
};
use arrow::buffer::NullBuffer;
use arrow::compute::kernels::zip::zip;
use arrow::compute::{cast, filter_record_batch, interleave, is_not_null};
use arrow::datatypes::{DataType, FieldRef, Int32Type, Int64Type, Schema};
use arrow::error::ArrowError;
use datafusion::execution::memory_pool::MemoryReservation;
use datafusion::physical_plan::spill::get_record_batch_memory_size;

use super::gate;
use super::keys::{KeyColumn, KeySet, KeyShape};
use super::order::{Frontier, LastEvents, PlaceRef, Truncation};
use super::versions::Before;
use crate::engine::struct_with;
use crate::layout;
use crate::quality::Origin;

pub(super) use carry::{Had, Otherwise};

/// Which columns of bronze are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// Whose events they are, and their order.
    Order,
    /// What the row became as well.
    Rows,
    /// And when.
    Versions,
}

pub(super) fn columns_to_read(bronze: &Schema, keys: &[String], depth: Depth) -> Vec<FieldRef> {
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let mut names = vec![
        layout::TOPIC,
        layout::PARTITION,
        layout::OFFSET,
        layout::OP,
        layout::POSITION,
        layout::EPOCH,
        layout::ERROR,
    ];
    if depth != Depth::Order {
        names.extend([layout::SOURCE_TS, layout::UNAVAILABLE, layout::AFTER]);
    }
    if depth == Depth::Versions {
        names.extend([layout::TIMESTAMP, layout::INGESTED_AT]);
    }
    let mut columns: Vec<FieldRef> =
        names.iter().filter_map(|name| bronze.field_with_name(name).ok().cloned().map(Arc::new)).collect();
    if depth == Depth::Order {
        columns.extend(struct_with(bronze, layout::AFTER, &keys));
    }
    columns.extend(struct_with(bronze, layout::BEFORE, &keys));
    columns
}

/// What is made of each event beside what was read and its key: the key's columns, when it was, what kind it is.
const BYTES_BESIDE: usize = 16;

/// For so many keys at once, memory is waited for before they are added.
const APPROACHED_AT_ONCE: usize = 64;

/// A batch of events.
#[derive(Debug)]
pub(super) struct Events {
    op: StringArray,
    epoch: Int32Array,
    position: StringArray,
    offset: Int64Array,
    topic: StringArray,
    partition: Int32Array,
    /// Whether it is about a row, and was understood.
    is_change: BooleanArray,
    keys: KeyColumn,
    key_columns: Vec<ArrayRef>,
    /// The key a row had before, and in which rows it is another one.
    left: Option<Left>,
    rest: Option<Rest>,
    bytes: usize,
}

#[derive(Debug)]
struct Left {
    keys: KeyColumn,
    columns: Vec<ArrayRef>,
    differs: BooleanArray,
}

#[derive(Debug)]
struct Rest {
    source_ts: ArrayRef,
    unavailable: ListArray,
    after: StructArray,
    /// When it happened, in microseconds: for the source, else for the broker, else for us.
    time: Option<Int64Array>,
    ingested_at: Option<Int64Array>,
}

/// One event of one key. An update that takes a row to another key is two: for the key it leaves, it is a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EventRef {
    batch: u32,
    row: u32,
    leaves: bool,
    is_delete: bool,
}

/// An event of the key with this number, and when it happened: what steps are made of, side by side in memory.
#[derive(Debug, Clone, Copy)]
struct Noted {
    number: u32,
    event: EventRef,
    time: i64,
}

impl Events {
    /// The events of a batch, or of those of its rows that `keep` names.
    pub(super) fn read(
        batch: &RecordBatch,
        keys: &[String],
        shape: &KeyShape,
        keep: impl Fn(&Events) -> Option<BooleanArray>,
    ) -> Result<Self, ArrowError> {
        let events = Events::new(batch, keys, shape)?;
        match keep(&events) {
            Some(kept) if kept.true_count() < batch.num_rows() => {
                Events::new(&filter_record_batch(batch, &kept)?, keys, shape)
            }
            _ => Ok(events),
        }
    }

    fn new(batch: &RecordBatch, keys: &[String], shape: &KeyShape) -> Result<Self, ArrowError> {
        let column = |name: &str| {
            let missing = || ArrowError::SchemaError(format!("the changes have no column `{name}`"));
            batch.column_by_name(name).ok_or_else(missing)
        };
        let image = |name: &str| {
            let image = column(name)?;
            image.as_struct_opt().ok_or_else(|| ArrowError::SchemaError(format!("`{name}` is no struct")))
        };
        let text = |name: &str| Ok::<_, ArrowError>(column(name)?.as_string::<i32>().clone());
        let (before, after) = (image(layout::BEFORE)?, image(layout::AFTER)?);
        let op = text(layout::OP)?;
        let error = column(layout::ERROR)?;
        let is_change = (0..batch.num_rows())
            .map(|row| op.is_valid(row) && matches!(op.value(row), "c" | "u" | "r" | "d") && error.is_null(row));
        let is_change: BooleanArray = is_change.map(Some).collect();
        let of = |image: &StructArray| keys.iter().map(|key| field_of(image, key)).collect::<Result<Vec<_>, _>>();
        let (old, new) = (of(before)?, of(after)?);
        let key_columns =
            new.iter().zip(&old).map(|(new, old)| first_known(new, old)).collect::<Result<Vec<_>, ArrowError>>()?;
        let keys = shape.keys(&key_columns)?;
        let mut left = None;
        if old.iter().all(|column| column.null_count() < column.len()) {
            let old_keys = shape.keys(&old)?;
            let differs = (0..batch.num_rows()).map(|row| {
                is_change.value(row) && op.value(row) == "u" && !old_keys.is_null(row) && !old_keys.is_same(row, &keys)
            });
            let differs: BooleanArray = differs.map(Some).collect();
            if differs.true_count() > 0 {
                left = Some(Left { keys: old_keys, columns: old, differs });
            }
        }
        let rest = match column(layout::SOURCE_TS) {
            Ok(source_ts) => Some(Rest {
                source_ts: source_ts.clone(),
                unavailable: column(layout::UNAVAILABLE)?.as_list::<i32>().clone(),
                after: after.clone(),
                time: match (batch.column_by_name(layout::TIMESTAMP), batch.column_by_name(layout::INGESTED_AT)) {
                    (Some(timestamp), Some(ingested_at)) => {
                        let time = first_known(&first_known(source_ts, timestamp)?, ingested_at)?;
                        Some(cast(&time, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
                    }
                    _ => None,
                },
                ingested_at: match batch.column_by_name(layout::INGESTED_AT) {
                    Some(times) => Some(cast(times, &DataType::Int64)?.as_primitive::<Int64Type>().clone()),
                    None => None,
                },
            }),
            Err(_) => None,
        };
        let key_bytes = keys.size() + left.as_ref().map_or(0, |left| left.keys.size());
        Ok(Events {
            op,
            epoch: column(layout::EPOCH)?.as_primitive::<Int32Type>().clone(),
            position: text(layout::POSITION)?,
            offset: column(layout::OFFSET)?.as_primitive::<Int64Type>().clone(),
            topic: text(layout::TOPIC)?,
            partition: column(layout::PARTITION)?.as_primitive::<Int32Type>().clone(),
            is_change,
            keys,
            key_columns,
            left,
            rest,
            bytes: get_record_batch_memory_size(batch) + key_bytes + batch.num_rows() * BYTES_BESIDE,
        })
    }

    pub(super) fn len(&self) -> usize {
        self.op.len()
    }

    fn nulls_of(&self, column: &str) -> Option<NullBuffer> {
        field_of(&self.rest.as_ref()?.after, column).ok()?.logical_nulls()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether it is for every range of keys to see: a truncation, or an event without a key.
    fn concerns_all(&self, row: usize) -> bool {
        let is_truncation = self.op.is_valid(row) && self.op.value(row) == "t";
        is_truncation || self.is_change.value(row) && self.keys.is_null(row)
    }

    /// Of so many parts, those of the event's key and of the key that its row had before, if that is another one.
    fn parts(&self, row: usize, parts: usize) -> (Option<usize>, Option<usize>) {
        let part = |hash: u64| KeyRange::number(hash, parts as u64) as usize;
        let has_key = self.is_change.value(row) && !self.keys.is_null(row);
        let left = self.left.as_ref().filter(|left| left.differs.value(row));
        (has_key.then(|| part(self.keys.hash(row))), left.map(|left| part(left.keys.hash(row))))
    }

    fn event(&self, batch: u32, row: usize, leaves: bool) -> EventRef {
        EventRef { batch, row: row as u32, leaves, is_delete: leaves || self.op.value(row) == "d" }
    }

    fn noted(&self, number: usize, event: EventRef) -> Noted {
        Noted { number: number as u32, event, time: self.time(event.row as usize).unwrap_or(0) }
    }

    fn time(&self, row: usize) -> Option<i64> {
        self.rest.as_ref()?.time.as_ref().map(|time| time.value(row))
    }

    pub(super) fn place(&self, row: usize) -> PlaceRef<'_> {
        PlaceRef {
            epoch: self.epoch.is_valid(row).then(|| self.epoch.value(row)),
            position: self.position.is_valid(row).then(|| self.position.value(row)),
            offset: self.offset.value(row),
            topic: self.topic.value(row),
            partition: self.partition.value(row),
        }
    }

    /// Calls `found` with every event of a key of the set: the key's number, and the event's place.
    pub(super) fn for_each_of(&self, set: &KeySet, mut found: impl FnMut(usize, PlaceRef<'_>)) {
        self.for_each_event_of(set, |row, number, _| found(number, self.place(row)));
    }

    /// Calls `found` with the row and the key's number of every event of a key of the set.
    pub(super) fn for_each_row_of(&self, set: &KeySet, mut found: impl FnMut(usize, usize)) {
        self.for_each_event_of(set, |row, number, _| found(row, number));
    }

    fn for_each_event_of(&self, set: &KeySet, mut found: impl FnMut(usize, usize, bool)) {
        set.for_each_match(&self.keys, |row, number| {
            if self.is_change.value(row) {
                found(row, number, false);
            }
        });
        if let Some(left) = &self.left {
            set.for_each_match(&left.keys, |row, number| {
                if left.differs.value(row) {
                    found(row, number, true);
                }
            });
        }
    }
}

impl Events {
    /// Which of the chosen rows were ingested at a time or later.
    pub(super) fn ingested_since(&self, since: i64, chosen: Option<BooleanArray>) -> BooleanArray {
        let times = self.rest.as_ref().and_then(|rest| rest.ingested_at.as_ref());
        let is_later = |row: usize| times.is_none_or(|times| times.is_null(row) || times.value(row) >= since);
        let is_chosen = |row: usize| chosen.as_ref().is_none_or(|chosen| chosen.value(row));
        (0..self.len()).map(|row| Some(is_chosen(row) && is_later(row))).collect()
    }

    /// Those of the chosen rows that are not about a row without a key.
    pub(super) fn with_key(&self, chosen: BooleanArray) -> BooleanArray {
        let is_keyless = |row: usize| self.is_change.value(row) && self.keys.is_null(row);
        chosen.iter().enumerate().map(|(row, chosen)| Some(chosen == Some(true) && !is_keyless(row))).collect()
    }
}

/// The rows whose event has no value for a key.
pub(super) fn without_key(events: &Events) -> Option<BooleanArray> {
    let keyless = (0..events.len()).map(|row| Some(events.is_change.value(row) && events.keys.is_null(row)));
    Some(keyless.collect())
}

/// The rows that have an event of a range of keys, and what concerns all of them; `None` for every row.
pub(super) fn of_range(events: &Events, range: KeyRange) -> Option<BooleanArray> {
    if range.of == 1 {
        return None;
    }
    let in_range = (0..events.len()).map(|row| {
        let own = events.is_change.value(row) && (events.keys.is_null(row) || range.holds(events.keys.hash(row)));
        let left = events.left.as_ref().is_some_and(|left| left.differs.value(row) && range.holds(left.keys.hash(row)));
        Some(own || left || (events.op.is_valid(row) && events.op.value(row) == "t"))
    });
    Some(in_range.collect())
}

/// Puts the rows that `of_range` lets through into the parts that they are of. What concerns all comes into one more, behind
/// them.
pub(super) fn into_parts(events: &Events, parts: usize, mut put: impl FnMut(usize, usize)) {
    for row in 0..events.len() {
        if events.concerns_all(row) {
            put(row, parts);
            continue;
        }
        let (own, left) = events.parts(row, parts);
        own.into_iter().for_each(|part| put(row, part));
        left.into_iter().filter(|left| own != Some(*left)).for_each(|part| put(row, part));
    }
}

/// The rows of a part that have an event of a range of keys, but for those that are in another part of the range as well and
/// come from there.
pub(super) fn of_range_in_part(events: &Events, range: KeyRange, part: usize, parts: usize) -> BooleanArray {
    let of_range = of_range(events, range);
    let comes_from_here = |row: usize| match events.parts(row, parts) {
        (Some(own), Some(_)) if !events.concerns_all(row) => own == part || !range.is_in(own, parts),
        _ => true,
    };
    let is_of_range = |row: usize| of_range.as_ref().is_none_or(|rows| rows.value(row));
    (0..events.len()).map(|row| Some(is_of_range(row) && comes_from_here(row))).collect()
}

/// One of some parts that all keys are divided into.
#[derive(Debug, Clone, Copy)]
pub(super) struct KeyRange {
    pub(super) number: u64,
    pub(super) of: u64,
}

impl KeyRange {
    fn holds(self, hash: u64) -> bool {
        self.of == 1 || Self::number(hash, self.of) == self.number
    }

    /// Of so many parts that all keys are divided into in the same way, those that hold the range. One of these numbers
    /// divides the other.
    pub(super) fn parts(self, parts: usize) -> impl Iterator<Item = usize> {
        (0..parts).filter(move |part| self.is_in(*part, parts))
    }

    /// Whether a part holds some of the range.
    fn is_in(self, part: usize, parts: usize) -> bool {
        let common = self.of.min(parts as u64);
        part as u64 % common == self.number % common
    }

    /// Of so many ranges, the number of the one that a key is in. What is in a range of twice as many, or three times, is
    /// in the range of the same number modulo how many there are.
    fn number(hash: u64, of: u64) -> u64 {
        // By other bits than those that keys are stored by: keys of one range would lie close together.
        (hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % of
    }
}

/// A field of a struct, null where the struct is.
fn field_of(image: &StructArray, name: &str) -> Result<ArrayRef, ArrowError> {
    let field = image.column_by_name(name);
    let field = field.ok_or_else(|| ArrowError::SchemaError(format!("the changes have no field `{name}`")))?;
    if image.null_count() == 0 {
        return Ok(field.clone());
    }
    let nulls = NullBuffer::union(image.nulls(), field.nulls());
    Ok(make_array(field.to_data().into_builder().nulls(nulls).build()?))
}

fn first_known(first: &ArrayRef, second: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match first.null_count() {
        0 => Ok(first.clone()),
        count if count == first.len() => Ok(second.clone()),
        _ => zip(&is_not_null(first)?, first, second),
    }
}

/// What the new changes are, as far as a run has to know.
pub(super) struct Newest {
    pub(super) keys: KeySet,
    /// The last event of each key, by the key's number.
    last: Vec<EventRef>,
    /// Every event, where versions are made of them; else those that were recalled.
    all: Vec<Noted>,
    keeps_all: bool,
    batches: Vec<Events>,
    /// Columns in which a null says nothing, and for each batch where they are null.
    ignores: Vec<String>,
    nulls: Vec<Vec<Option<NullBuffer>>>,
    range: KeyRange,
    pub(super) seen: Seen,
    /// Whether every event is past all that was merged, of whatever partition.
    all_are_past: bool,
    /// The events without a key.
    keyless: Vec<EventRef>,
    /// What it takes from the memory budget.
    held: Option<MemoryReservation>,
}

/// What all events together say, of every key range.
#[derive(Debug, Default, Clone)]
pub(super) struct Seen {
    pub(super) frontier: Frontier,
    pub(super) last: LastEvents,
    pub(super) truncation: Option<Truncation>,
    /// All of them, and when they happened.
    pub(super) truncations: BTreeMap<Truncation, i64>,
    /// Columns that some event holds a placeholder for.
    pub(super) unavailable: BTreeSet<String>,
    pub(super) late: u64,
    pub(super) duplicates: u64,
    pub(super) null_keys: u64,
    pub(super) first_null_key: Option<Origin>,
}

impl Newest {
    pub(super) fn new(shape: &KeyShape, capacity: usize, range: KeyRange) -> Self {
        Newest {
            keys: shape.set(capacity),
            last: Vec::with_capacity(capacity),
            all: Vec::new(),
            keeps_all: false,
            batches: Vec::new(),
            ignores: Vec::new(),
            nulls: Vec::new(),
            range,
            seen: Seen::default(),
            all_are_past: true,
            keyless: Vec::new(),
            held: None,
        }
    }

    pub(super) fn keep_all(mut self) -> Self {
        self.keeps_all = true;
        self.all.reserve(self.last.capacity());
        self
    }

    pub(super) fn ignore_nulls(mut self, columns: &[String]) -> Self {
        self.ignores = columns.to_vec();
        self
    }

    pub(super) fn hold(&mut self, held: MemoryReservation) {
        self.held = Some(held);
    }

    /// What it takes, for those who hold its columns when it is gone.
    pub(super) fn into_held(self) -> Option<MemoryReservation> {
        self.held
    }

    pub(super) fn hold_more(&self, bytes: usize) -> datafusion::error::Result<()> {
        self.held.as_ref().map_or(Ok(()), |held| held.try_grow(bytes))
    }

    /// All events of its keys are about to be added.
    pub(super) fn forget_events(&mut self) {
        self.all.clear();
    }

    /// Adds events from before the new ones, of keys that are known and `wanted`.
    pub(super) fn add_earlier(&mut self, events: Events, wanted: &[bool]) {
        let batch = self.batches.len() as u32;
        let all = &mut self.all;
        events.for_each_event_of(&self.keys, |row, number, leaves| {
            if wanted[number] {
                all.push(events.noted(number, events.event(batch, row, leaves)));
            }
        });
        self.push(events);
    }

    fn push(&mut self, events: Events) {
        self.nulls.push(self.ignores.iter().map(|name| events.nulls_of(name)).collect());
        self.batches.push(events);
    }

    pub(super) fn add(&mut self, events: Events, merged: &Frontier) {
        let batch = self.batches.len() as u32;
        let merged_furthest = merged.furthest();
        let mut furthest: Option<PlaceRef<'_>> = None;
        // Of the same partition.
        let mut last: Option<PlaceRef<'_>> = None;
        let mut hashes = Vec::new();
        events.keys.hashes(0..events.len(), &mut hashes);
        for row in 0..events.len() {
            if row.is_multiple_of(APPROACHED_AT_ONCE) {
                self.keys.approach(&hashes[row..events.len().min(row + APPROACHED_AT_ONCE)]);
            }
            let place = events.place(row);
            if events.op.is_valid(row)
                && events.op.value(row) == "t"
                && let (Some(position), Some(epoch)) = (place.position, place.epoch)
            {
                let truncation = Truncation { epoch, position: position.to_string() };
                if let Some(time) = events.time(row) {
                    // One that is sent again happened when it was sent first.
                    self.seen
                        .truncations
                        .entry(truncation.clone())
                        .and_modify(|of| *of = time.min(*of))
                        .or_insert(time);
                }
                self.seen.truncation = self.seen.truncation.take().max(Some(truncation));
            }
            if !events.is_change.value(row) {
                continue;
            }
            let is_past = merged_furthest.is_none_or(|merged| place.is_past(merged));
            self.all_are_past &= is_past;
            if events.keys.is_null(row) {
                self.seen.null_keys += 1;
                self.keyless.push(events.event(batch, row, false));
                let at = Origin { topic: place.topic.to_string(), partition: place.partition, offset: place.offset };
                self.seen.first_null_key =
                    Some(self.seen.first_null_key.take().map_or(at.clone(), |first| first.min(at)));
            } else if self.range.holds(hashes[row]) {
                self.seen.late += u64::from(!is_past && !merged.is_behind(place));
                let (number, is_new) = self.keys.insert(&events.keys, row, hashes[row]);
                self.note(&events, batch, row, number, is_new, false);
            }
            if let Some(left) = events.left.as_ref().filter(|left| left.differs.value(row))
                && let hash = left.keys.hash(row)
                && self.range.holds(hash)
            {
                let (number, is_new) = self.keys.insert(&left.keys, row, hash);
                self.note(&events, batch, row, number, is_new, true);
            }
            // Most batches are of one partition, going forward: a look at the map for each would be a waste.
            let same = furthest.is_some_and(|known| (known.partition, known.topic) == (place.partition, place.topic));
            if !same && let Some(known) = last.take() {
                self.seen.last.note(known);
            }
            if last.is_none_or(|known| (known.epoch, known.offset) < (place.epoch, place.offset)) {
                last = Some(place);
            }
            match furthest {
                Some(known) if same && place < known => {}
                Some(known) if !same => {
                    self.seen.frontier.advance(known);
                    furthest = Some(place);
                }
                _ => furthest = Some(place),
            }
        }
        if let Some(furthest) = furthest {
            self.seen.frontier.advance(furthest);
        }
        if let Some(last) = last {
            self.seen.last.note(last);
        }
        if let Some(rest) = &events.rest
            && rest.unavailable.null_count() < rest.unavailable.len()
        {
            for row in (0..events.len()).filter(|row| rest.unavailable.is_valid(*row)) {
                for name in rest.unavailable.value(row).as_string::<i32>().iter().flatten() {
                    // What is missing of a row before the change is no row's value.
                    if !name.starts_with("before.") && !self.seen.unavailable.contains(name) {
                        self.seen.unavailable.insert(name.to_string());
                    }
                }
            }
        }
        self.push(events);
    }

    fn note(&mut self, events: &Events, batch: u32, row: usize, number: usize, is_new: bool, leaves: bool) {
        let event = events.event(batch, row, leaves);
        if self.keeps_all {
            self.all.push(events.noted(number, event));
        }
        if is_new {
            self.last.push(event);
            return;
        }
        let known = self.last[number];
        let of_known = if known.batch == batch { events } else { &self.batches[known.batch as usize] };
        let (place, known_place) = (events.place(row), of_known.place(known.row as usize));
        if (place.epoch, place.position) == (known_place.epoch, known_place.position)
            && place.position.is_some()
            && leaves == known.leaves
            && events.op.value(row) == of_known.op.value(known.row as usize)
        {
            self.seen.duplicates += 1;
        }
        if place > known_place {
            self.last[number] = event;
        }
    }

    /// To be called once all keys are in: numbers them by their order.
    pub(super) fn seal(&mut self) {
        let numbers = self.keys.seal();
        let mut last = self.last.clone();
        numbers.iter().zip(&self.last).for_each(|(number, event)| last[*number as usize] = *event);
        self.last = last;
        self.all.iter_mut().for_each(|noted| noted.number = numbers[noted.number as usize]);
    }

    pub(super) fn all_are_past(&self) -> bool {
        self.all_are_past
    }

    /// Whether an event may lack a value, or hold a null that says nothing.
    pub(super) fn may_lack(&self) -> bool {
        !self.seen.unavailable.is_empty() || !self.ignores.is_empty()
    }

    pub(super) fn place(&self, number: usize) -> PlaceRef<'_> {
        let event = self.last[number];
        self.batches[event.batch as usize].place(event.row as usize)
    }

    /// Whether the key's last event takes its row away.
    pub(super) fn is_delete(&self, number: usize) -> bool {
        self.last[number].is_delete
    }

    pub(super) fn last_of(&self, number: usize) -> EventRef {
        self.last[number]
    }

    /// Whether the key's last event lacks one of the columns.
    pub(super) fn lacks_any(&self, number: usize, columns: &[FieldRef]) -> bool {
        self.lacks(self.last[number], columns)
    }

    /// Whether the key's last event holds a null that says nothing, unless the row begins with it.
    pub(super) fn holds_ignored_null(&self, number: usize) -> bool {
        self.is_null_in_any(self.last[number])
    }

    fn is_null_in_any(&self, event: EventRef) -> bool {
        (0..self.ignores.len()).any(|ignored| self.is_null(event, ignored))
    }

    fn is_null(&self, event: EventRef, ignored: usize) -> bool {
        self.nulls[event.batch as usize][ignored].as_ref().is_some_and(|nulls| nulls.is_null(event.row as usize))
    }

    fn lacks(&self, event: EventRef, columns: &[FieldRef]) -> bool {
        let Some(rest) = &self.batches[event.batch as usize].rest else { return false };
        if rest.unavailable.is_null(event.row as usize) {
            return false;
        }
        let names = rest.unavailable.value(event.row as usize);
        names.as_string::<i32>().iter().flatten().any(|name| columns.iter().any(|column| column.name() == name))
    }

    /// The columns of some keys.
    pub(super) fn key_columns(&self, numbers: &[u32]) -> Result<Vec<ArrayRef>, ArrowError> {
        let width = self.batches.first().map_or(0, |batch| batch.key_columns.len());
        (0..width)
            .map(|column| {
                let parts = self.batches.iter().flat_map(|batch| {
                    let own = &batch.key_columns[column];
                    [own, batch.left.as_ref().map_or(own, |left| &left.columns[column])]
                });
                let parts: Vec<&dyn Array> = parts.map(|part| part.as_ref()).collect();
                let rows = numbers.iter().map(|number| {
                    let event = self.last[*number as usize];
                    (event.batch as usize * 2 + usize::from(event.leaves), event.row as usize)
                });
                interleave(&parts, &rows.collect::<Vec<_>>())
            })
            .collect()
    }

    /// What the last events of some keys, none of them a delete, say their rows are.
    pub(super) fn rows(&self, numbers: &[u32], images: &Images<'_>) -> Result<Rows, ArrowError> {
        let last = numbers.iter().map(|number| self.last[*number as usize]);
        let rows: Vec<(u32, u32)> = last.map(|event| (event.batch, event.row)).collect();
        Ok(Rows { parts: self.parts(images)?, rows, ..Rows::default() })
    }

    /// What the events without a key say.
    pub(super) fn keyless_rows(&self, images: &Images<'_>) -> Result<Rows, ArrowError> {
        let rows: Vec<(u32, u32)> = self.keyless.iter().map(|event| (event.batch, event.row)).collect();
        Ok(Rows { parts: self.parts(images)?, rows, ..Rows::default() })
    }

    fn parts(&self, images: &Images<'_>) -> Result<Vec<Vec<ArrayRef>>, ArrowError> {
        let Images { columns, keys, with_origin } = *images;
        let mut parts: Vec<Vec<ArrayRef>> = Vec::new();
        for column in columns {
            let key = keys.iter().position(|key| key == column.name());
            let of_batch = |batch: &Events| match (key, &batch.rest) {
                (Some(key), _) => Ok(batch.key_columns[key].clone()),
                (None, Some(rest)) => field_of(&rest.after, column.name()),
                (None, None) => Err(ArrowError::SchemaError("the changes were read without their rows".to_string())),
            };
            parts.push(self.batches.iter().map(of_batch).collect::<Result<_, _>>()?);
        }
        parts.push(self.batches.iter().map(|batch| Arc::new(batch.position.clone()) as ArrayRef).collect());
        parts.push(self.batches.iter().filter_map(|batch| Some(batch.rest.as_ref()?.source_ts.clone())).collect());
        if with_origin {
            let origins = |batch: &Events| {
                gate::origins(&batch.topic, Arc::new(batch.partition.clone()), Arc::new(batch.offset.clone()))
            };
            parts.push(self.batches.iter().map(origins).collect::<Result<_, _>>()?);
        }
        Ok(parts)
    }

    /// Whether any event of each key lacks, or may lack, one of the columns, and each key's first place.
    pub(super) fn firsts(&self, columns: &[FieldRef]) -> Vec<(Option<EventRef>, bool)> {
        let mut firsts: Vec<(Option<EventRef>, bool)> = vec![(None, false); self.keys.len()];
        for Noted { number, event, .. } in &self.all {
            let (first, lacks) = &mut firsts[*number as usize];
            if first.is_none_or(|first| self.place_of(*event) < self.place_of(first)) {
                *first = Some(*event);
            }
            *lacks |= !event.is_delete && (self.lacks(*event, columns) || self.is_null_in_any(*event));
        }
        firsts
    }

    pub(super) fn place_of(&self, event: EventRef) -> PlaceRef<'_> {
        self.batches[event.batch as usize].place(event.row as usize)
    }

    /// The events as steps, in the order of the keys and then of the events, each key with the truncations between its
    /// events.
    pub(super) fn steps(&self, truncations: &BTreeMap<Truncation, i64>) -> Vec<Step> {
        // Each key's events side by side: where they begin, then the events.
        let mut ends = vec![0u32; self.keys.len()];
        self.all.iter().for_each(|noted| ends[noted.number as usize] += 1);
        let mut begins = 0;
        for end in &mut ends {
            begins += std::mem::replace(end, begins);
        }
        let mut all = self.all.clone();
        for noted in &self.all {
            let end = &mut ends[noted.number as usize];
            all[*end as usize] = *noted;
            *end += 1;
        }
        let mut steps = Vec::with_capacity(all.len());
        let mut begin = 0;
        for (key, end) in (0..).zip(ends) {
            let group = &mut all[std::mem::replace(&mut begin, end as usize)..end as usize];
            group.sort_unstable_by(|left, right| self.place_of(left.event).cmp(&self.place_of(right.event)));
            let mut coming = truncations.iter().peekable();
            for (at, Noted { event, time, .. }) in group.iter().copied().enumerate() {
                // Looking at the place costs as much as the rest.
                if coming.peek().is_some() {
                    let place = self.place_of(event);
                    while let Some((_, time)) = coming.next_if(|(truncation, _)| !truncation.takes(&place)) {
                        if at > 0 {
                            steps.push(Step { key, time: *time, what: What::Truncated });
                        }
                    }
                }
                let what = if event.is_delete { What::Deleted } else { What::Row(event) };
                steps.push(Step { key, time, what });
            }
            steps.extend(coming.map(|(_, time)| Step { key, time: *time, what: What::Truncated }));
        }
        steps
    }

    /// What the row steps say their rows are, one after the other: values that were not sent are those sent before, and so
    /// are nulls that say nothing.
    pub(super) fn rows_of(&self, steps: &[Step], images: &Images<'_>) -> Result<Rows, ArrowError> {
        let columns = images.columns;
        let mut rows = Vec::new();
        let mut kept: BTreeMap<usize, Vec<(u32, u32)>> = BTreeMap::new();
        let mut ignored: BTreeMap<usize, usize> = BTreeMap::new();
        let position = |name: &String| columns.iter().position(|column| column.name() == name);
        for at in self.seen.unavailable.iter().filter_map(position) {
            kept.insert(at, Vec::new());
        }
        for (index, name) in self.ignores.iter().enumerate() {
            if let Some(at) = position(name) {
                kept.insert(at, Vec::new());
                ignored.insert(at, index);
            }
        }
        // Of the key before: it does not matter which.
        let mut key = None;
        let mut sent: BTreeMap<usize, (u32, u32)> = BTreeMap::new();
        let mut is_there = false;
        for step in steps {
            if key.replace(step.key) != Some(step.key) {
                sent.clear();
                is_there = false;
            }
            let What::Row(event) = step.what else {
                is_there = false;
                continue;
            };
            let own = (event.batch, event.row);
            rows.push(own);
            for (at, kept) in &mut kept {
                let says_nothing = is_there && ignored.get(at).is_some_and(|ignored| self.is_null(event, *ignored));
                if says_nothing || self.lacks(event, &columns[*at..=*at]) {
                    kept.push(sent.get(at).copied().unwrap_or(own));
                } else {
                    sent.insert(*at, own);
                    kept.push(own);
                }
            }
            is_there = true;
        }
        Ok(Rows { parts: self.parts(images)?, rows, kept, gone: Vec::new() })
    }

    pub(super) fn bytes(&self) -> usize {
        // Each event is noted, once more while they are put in order, and becomes a step. What the target has of the keys
        // is noted besides, as is where the events of each end.
        let noted = self.all.capacity() * (2 * size_of::<Noted>() + size_of::<Step>());
        let of_keys = if self.keeps_all { self.last.capacity() * (size_of::<Before>() + size_of::<u32>()) } else { 0 };
        self.keys.bytes() + self.last.capacity() * size_of::<EventRef>() + noted + of_keys
    }
}

/// What rows are made of: the columns of row images and, where asked for, the places of the events.
pub(super) struct Images<'a> {
    pub(super) columns: &'a [FieldRef],
    pub(super) keys: &'a [String],
    pub(super) with_origin: bool,
}

/// Rows chosen from many batches, in an order of their own; made when they are asked for.
#[derive(Debug, Default)]
pub(super) struct Rows {
    /// For each column, its array in each batch.
    parts: Vec<Vec<ArrayRef>>,
    rows: Vec<(u32, u32)>,
    /// Columns whose values come from other rows.
    kept: BTreeMap<usize, Vec<(u32, u32)>>,
    /// Which of them are rows that stay after they were deleted; empty when none is.
    gone: Vec<bool>,
}

/// What happens to a key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) key: u32,
    pub(super) time: i64,
    pub(super) what: What,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    Row(EventRef),
    Deleted,
    Truncated,
}

impl Rows {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn gone(&self, from: usize, until: usize) -> BooleanArray {
        let gone = |row: usize| Some(self.gone.get(row).copied().unwrap_or(false));
        (from..until).map(gone).collect()
    }

    pub(super) fn gather(&self, from: usize, until: usize) -> Result<Vec<ArrayRef>, ArrowError> {
        let places = |rows: &[(u32, u32)]| -> Vec<(usize, usize)> {
            rows[from..until].iter().map(|(batch, row)| (*batch as usize, *row as usize)).collect()
        };
        let rows = places(&self.rows);
        let column = |(at, parts): (usize, &Vec<ArrayRef>)| {
            let parts: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).collect();
            match self.kept.get(&at) {
                Some(kept) => interleave(&parts, &places(kept)),
                None => interleave(&parts, &rows),
            }
        };
        self.parts.iter().enumerate().map(column).collect()
    }
}

/// The type of a key's column in the row images.
pub(super) fn key_types(columns: &[FieldRef], keys: &[String]) -> Vec<DataType> {
    let of = |key: &String| columns.iter().find(|column| column.name() == key).map(|column| column.data_type().clone());
    keys.iter().filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_in_the_parts_it_names_and_those_of_all_ranges_are_all() {
        for (parts, of) in [(6, 1), (6, 3), (6, 6), (6, 12), (24, 8), (24, 240), (240, 5)] {
            let ranges: Vec<KeyRange> = (0..of).map(|number| KeyRange { number, of }).collect();
            for range in &ranges {
                let named: BTreeSet<usize> = range.parts(parts).collect();
                for hash in (0..5000).map(|at: u64| at.wrapping_mul(0x2545_f491_4f6c_dd1d)) {
                    let part = KeyRange::number(hash, parts as u64) as usize;
                    assert!(!range.holds(hash) || named.contains(&part), "{range:?} of {parts} parts");
                }
                assert_eq!(named.len(), (parts as u64 / of).max(1) as usize, "{range:?} of {parts} parts");
            }
            let all: BTreeSet<usize> = ranges.iter().flat_map(|range| range.parts(parts)).collect();
            assert_eq!(all.len(), parts);
        }
    }
}
