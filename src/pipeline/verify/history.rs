//! All events of some keys, as bronze has them.
//!
//! They are read with plain SQL, and shared with nothing that merges: what an event is, whose, and what comes before what
//! is stated here a second time.

use std::collections::{BTreeMap, HashMap};

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, ListArray, RecordBatch, new_null_array};
use arrow::compute::{concat_batches, filter_record_batch, interleave};
use arrow::datatypes::{DataType, FieldRef, Int32Type, Int64Type};
use arrow::error::ArrowError;
use arrow::row::{RowConverter, SortField};

use super::report::At;
use super::rows::{Identity, as_type};
use super::slice::{Slice, hash};
use crate::layout;
use crate::quality::literal;

/// Rows of events that are kept together.
const BATCH_ROWS: usize = 32 * 1024;

/// One event of one key. An update that takes a row to another key is two: for the key it leaves, it is a delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) batch: u32,
    pub(super) row: u32,
    pub(super) leaves: bool,
}

/// What is before what: epoch, position, offset, and then, so that it is one order, topic and partition.
type Order<'a> = (Option<i32>, Option<&'a str>, i64, &'a str, i32);

/// A truncation: it takes what is of an earlier epoch, or of its own and not past its position.
pub(super) type Truncation = (i32, String);

/// The columns of the rows that events are about.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    pub(super) all: Vec<FieldRef>,
    pub(super) keys: Vec<String>,
    /// By their index in `all`: columns in which a null says nothing.
    pub(super) ignored: Vec<usize>,
}

/// The events of a slice of the keys.
pub(super) struct History {
    columns: Columns,
    slice: Slice,
    seed: u64,
    keys: RowConverter,
    places: RowConverter,
    pending: Vec<RecordBatch>,
    pending_rows: usize,
    batches: Vec<Batch>,
    events: HashMap<Identity, Vec<Event>>,
    /// Those that have no value for a key, by their place.
    keyless: HashMap<Identity, Event>,
    /// When each truncation happened.
    truncations: BTreeMap<Truncation, i64>,
}

struct Batch {
    rows: RecordBatch,
    /// The values of the key's columns, and those of the key that was left.
    keys: Vec<ArrayRef>,
    left: Vec<ArrayRef>,
    after: Vec<ArrayRef>,
}

impl Columns {
    /// Everything that a fold has to know of the events in `bronze.history`.
    pub(super) fn sql(&self) -> String {
        let mut selected: Vec<String> = [
            layout::TOPIC,
            layout::PARTITION,
            layout::OFFSET,
            layout::OP,
            layout::POSITION,
            layout::EPOCH,
            layout::SOURCE_TS,
            layout::UNAVAILABLE,
        ]
        .iter()
        .map(|name| name.to_string())
        .collect();
        selected.push("CAST(coalesce(_source_ts, _timestamp, _ingested_at) AS BIGINT) AS time".to_string());
        for (at, key) in self.keys.iter().enumerate() {
            let key = literal(key);
            selected.push(format!("coalesce(after[{key}], before[{key}]) AS key_{at}"));
            selected.push(format!("before[{key}] AS left_{at}"));
        }
        for (at, column) in self.all.iter().enumerate() {
            selected.push(format!("after[{}] AS after_{at}", literal(column.name())));
        }
        format!(
            "SELECT {} FROM bronze.history WHERE _error IS NULL AND _op IN ('c', 'u', 'r', 'd', 't')",
            selected.join(", ")
        )
    }

    fn key_types(&self) -> Vec<DataType> {
        let of = |key: &String| self.all.iter().find(|column| column.name() == key);
        self.keys.iter().filter_map(of).map(|column| column.data_type().clone()).collect()
    }
}

/// Makes the identities of rows that have the columns of a key.
pub(super) struct Identities {
    keys: RowConverter,
    places: RowConverter,
    types: Vec<DataType>,
}

impl Identities {
    pub(super) fn new(columns: &Columns) -> Result<Self, ArrowError> {
        let types = columns.key_types();
        Ok(Identities { keys: converter(&types)?, places: converter(&place_types())?, types })
    }

    /// What rows of a table are known by: their key, or the place of the event where they have none.
    pub(super) fn of(&mut self, batch: &RecordBatch, keys: &[String]) -> Result<Vec<Identity>, ArrowError> {
        let column = |name: &str| {
            let missing = || ArrowError::SchemaError(format!("there is no column `{name}`"));
            batch.column_by_name(name).ok_or_else(missing)
        };
        let mut of_keys = Vec::new();
        for (name, data_type) in keys.iter().zip(&self.types) {
            of_keys.push(as_type(column(name)?, data_type)?);
        }
        let nulls = |row: usize| of_keys.iter().any(|column| column.is_null(row));
        let rows = self.keys.convert_columns(&of_keys)?;
        let mut identities: Vec<Identity> = rows.iter().map(|row| row.as_ref().into()).collect();
        if (0..batch.num_rows()).any(nulls)
            && let (Ok(topic), Ok(partition), Ok(offset)) =
                (column(layout::TOPIC), column(layout::PARTITION), column(layout::OFFSET))
        {
            let places = self.places.convert_columns(&[topic.clone(), partition.clone(), offset.clone()])?;
            for row in (0..batch.num_rows()).filter(|row| nulls(*row)) {
                identities[row] = of_place(places.row(row).as_ref());
            }
        }
        Ok(identities)
    }
}

fn converter(types: &[DataType]) -> Result<RowConverter, ArrowError> {
    RowConverter::new(types.iter().cloned().map(SortField::new).collect())
}

fn place_types() -> [DataType; 3] {
    [DataType::Utf8, DataType::Int32, DataType::Int64]
}

/// No key begins like this.
fn of_place(place: &[u8]) -> Identity {
    [&[0xff, 0xff], place].concat().into()
}

impl History {
    pub(super) fn new(columns: Columns, slice: Slice, seed: u64) -> Result<Self, ArrowError> {
        Ok(History {
            keys: converter(&columns.key_types())?,
            places: converter(&place_types())?,
            columns,
            slice,
            seed,
            pending: Vec::new(),
            pending_rows: 0,
            batches: Vec::new(),
            events: HashMap::new(),
            keyless: HashMap::new(),
            truncations: BTreeMap::new(),
        })
    }

    pub(super) fn columns(&self) -> &Columns {
        &self.columns
    }

    /// Takes what concerns the slice's keys from rows that [`Columns::sql`] gives. Gives how many bytes that takes.
    pub(super) fn add(&mut self, rows: &RecordBatch) -> Result<usize, ArrowError> {
        let batch = self.batch(rows.clone())?;
        let mut keep = vec![false; rows.num_rows()];
        self.each_event(&batch, |row, identity, _, is_in| {
            if is_in && identity.is_some() {
                keep[row] = true;
            }
        })?;
        for row in 0..rows.num_rows() {
            if batch.op(row) == "t"
                && let (Some(epoch), Some(position), _, _, _) = batch.order(row)
            {
                // One that is sent again happened when it was sent first.
                let time = batch.time(row);
                let known = self.truncations.entry((epoch, position.to_string())).or_insert(time);
                *known = time.min(*known);
            }
        }
        let kept = filter_record_batch(rows, &BooleanArray::from(keep))?;
        if kept.num_rows() == 0 {
            return Ok(0);
        }
        let bytes = kept.get_array_memory_size() + kept.num_rows() * 64;
        self.pending_rows += kept.num_rows();
        self.pending.push(kept);
        if self.pending_rows >= BATCH_ROWS {
            self.settle()?;
        }
        Ok(bytes)
    }

    /// Puts together what was added.
    pub(super) fn settle(&mut self) -> Result<(), ArrowError> {
        let pending = std::mem::take(&mut self.pending);
        self.pending_rows = 0;
        let Some(schema) = pending.first().map(RecordBatch::schema) else { return Ok(()) };
        let batch = self.batch(concat_batches(&schema, &pending)?)?;
        drop(pending);
        let number = self.batches.len() as u32;
        let (mut events, mut keyless) = (Vec::new(), Vec::new());
        self.each_event(&batch, |row, identity, leaves, is_in| {
            let (Some((identity, has_key)), true) = (identity, is_in) else { return };
            let event = Event { batch: number, row: row as u32, leaves };
            if has_key { events.push((identity, event)) } else { keyless.push((identity, event)) }
        })?;
        for (identity, event) in events {
            self.events.entry(identity).or_default().push(event);
        }
        self.keyless.extend(keyless);
        self.batches.push(batch);
        Ok(())
    }

    /// Calls `found` with each event of a row: the row, by what its key is known and whether it has one, whether it
    /// leaves that key, and whether the key is of the slice.
    fn each_event(
        &self,
        batch: &Batch,
        mut found: impl FnMut(usize, Option<(Identity, bool)>, bool, bool),
    ) -> Result<(), ArrowError> {
        let (keys, left) = (self.keys.convert_columns(&batch.keys)?, self.keys.convert_columns(&batch.left)?);
        let column = |name: &str| batch.rows.column_by_name(name).cloned();
        let places = [column(layout::TOPIC), column(layout::PARTITION), column(layout::OFFSET)];
        let places = self.places.convert_columns(&places.into_iter().flatten().collect::<Vec<_>>())?;
        let is_in = |identity: &Identity| self.slice.holds(hash(self.seed, identity));
        for row in 0..batch.rows.num_rows() {
            if batch.op(row) == "t" {
                continue;
            }
            if batch.keys.iter().any(|column| column.is_null(row)) {
                let identity = of_place(places.row(row).as_ref());
                let is_in = is_in(&identity);
                found(row, Some((identity, false)), false, is_in);
                continue;
            }
            let (key, old) = (keys.row(row), left.row(row));
            let identity: Identity = key.as_ref().into();
            let in_slice = is_in(&identity);
            found(row, Some((identity, true)), false, in_slice);
            if batch.op(row) == "u" && batch.left.iter().all(|column| column.is_valid(row)) && key != old {
                let identity: Identity = old.as_ref().into();
                let in_slice = is_in(&identity);
                found(row, Some((identity, true)), true, in_slice);
            }
        }
        Ok(())
    }

    fn batch(&self, rows: RecordBatch) -> Result<Batch, ArrowError> {
        let types = self.columns.key_types();
        let column = |name: String| {
            let missing = || ArrowError::SchemaError(format!("the events have no column `{name}`"));
            rows.column_by_name(&name).cloned().ok_or_else(missing)
        };
        let of_key = |kind: &str| {
            let columns = types.iter().enumerate();
            columns.map(|(at, of)| as_type(&column(format!("{kind}_{at}"))?, of)).collect::<Result<Vec<_>, _>>()
        };
        let (keys, left) = (of_key("key")?, of_key("left")?);
        let after = (0..self.columns.all.len()).map(|at| column(format!("after_{at}"))).collect::<Result<_, _>>()?;
        Ok(Batch { keys, left, after, rows })
    }

    /// The keys, in no order.
    pub(super) fn keys(&self) -> impl Iterator<Item = &Identity> {
        self.events.keys()
    }

    /// The events without a key, by what their rows are known by.
    pub(super) fn keyless(&self) -> impl Iterator<Item = (&Identity, Event)> {
        self.keyless.iter().map(|(identity, event)| (identity, *event))
    }

    /// The events of a key, in their order.
    pub(super) fn events(&self, key: &Identity) -> Vec<Event> {
        let mut events = self.events.get(key).cloned().unwrap_or_default();
        events.sort_by(|left, right| self.order(*left).cmp(&self.order(*right)));
        events
    }

    pub(super) fn truncations(&self) -> &BTreeMap<Truncation, i64> {
        &self.truncations
    }

    pub(super) fn is_taken(&self, event: Event, truncation: &Truncation) -> bool {
        let (epoch, position, ..) = self.order(event);
        (epoch.unwrap_or(0), position) <= (truncation.0, Some(truncation.1.as_str()))
    }

    pub(super) fn deletes(&self, event: Event) -> bool {
        event.leaves || self.of(event).op(event.row as usize) == "d"
    }

    pub(super) fn time(&self, event: Event) -> i64 {
        self.of(event).time(event.row as usize)
    }

    pub(super) fn place(&self, event: Event) -> At {
        let (_, _, offset, topic, partition) = self.order(event);
        At { topic: topic.to_string(), partition, offset }
    }

    /// The columns that the event does not say, by their index.
    pub(super) fn unsaid(&self, event: Event) -> Vec<usize> {
        let batch = self.of(event);
        let Some(names) = batch.unavailable().filter(|names| names.is_valid(event.row as usize)) else {
            return Vec::new();
        };
        let names = names.value(event.row as usize);
        let names = names.as_string::<i32>().iter().flatten();
        names.filter_map(|name| self.columns.all.iter().position(|column| column.name() == name)).collect()
    }

    pub(super) fn is_null(&self, event: Event, column: usize) -> bool {
        self.of(event).after[column].is_null(event.row as usize)
    }

    fn of(&self, event: Event) -> &Batch {
        &self.batches[event.batch as usize]
    }

    fn order(&self, event: Event) -> Order<'_> {
        self.of(event).order(event.row as usize)
    }

    /// The values of a column in the rows of some events; null where there is none.
    pub(super) fn values(&self, column: usize, of: &[Option<Event>]) -> Result<ArrayRef, ArrowError> {
        let parts: Vec<&ArrayRef> = self.batches.iter().map(|batch| &batch.after[column]).collect();
        gathered(&parts, self.columns.all[column].data_type(), of, |event| event.batch as usize)
    }

    /// The values of a key's column.
    pub(super) fn key_values(&self, key: usize, of: &[Option<Event>]) -> Result<ArrayRef, ArrowError> {
        let parts: Vec<&ArrayRef> =
            self.batches.iter().flat_map(|batch| [&batch.keys[key], &batch.left[key]]).collect();
        let types = self.columns.key_types();
        gathered(&parts, &types[key], of, |event| event.batch as usize * 2 + usize::from(event.leaves))
    }

    /// The values of one of the columns that every record has.
    pub(super) fn system_values(
        &self,
        name: &str,
        as_type: &DataType,
        of: &[Option<Event>],
    ) -> Result<ArrayRef, ArrowError> {
        let parts: Vec<&ArrayRef> = self.batches.iter().filter_map(|batch| batch.rows.column_by_name(name)).collect();
        gathered(&parts, as_type, of, |event| event.batch as usize)
    }
}

impl Batch {
    fn op(&self, row: usize) -> &str {
        self.text(layout::OP, row).unwrap_or_default()
    }

    fn text(&self, name: &str, row: usize) -> Option<&str> {
        let column = self.rows.column_by_name(name)?.as_string_opt::<i32>()?;
        column.is_valid(row).then(|| column.value(row))
    }

    fn order(&self, row: usize) -> Order<'_> {
        let int = |name: &str| {
            let column = self.rows.column_by_name(name)?.as_primitive_opt::<Int32Type>()?;
            column.is_valid(row).then(|| column.value(row))
        };
        let topic = self.text(layout::TOPIC, row).unwrap_or_default();
        let partition = int(layout::PARTITION).unwrap_or_default();
        (int(layout::EPOCH), self.text(layout::POSITION, row), self.long(layout::OFFSET, row), topic, partition)
    }

    fn time(&self, row: usize) -> i64 {
        self.long("time", row)
    }

    fn long(&self, name: &str, row: usize) -> i64 {
        let column = self.rows.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int64Type>());
        column.filter(|column| column.is_valid(row)).map_or(0, |column| column.value(row))
    }

    fn unavailable(&self) -> Option<&ListArray> {
        self.rows.column_by_name(layout::UNAVAILABLE)?.as_list_opt::<i32>()
    }
}

/// The values of some events, out of their batches.
fn gathered(
    parts: &[&ArrayRef],
    data_type: &DataType,
    of: &[Option<Event>],
    part: impl Fn(Event) -> usize,
) -> Result<ArrayRef, ArrowError> {
    let parts = parts.iter().map(|part| as_type(part, data_type)).collect::<Result<Vec<_>, _>>()?;
    let nothing = new_null_array(data_type, 1);
    let arrays: Vec<&dyn Array> = parts.iter().map(|part| part.as_ref()).chain([nothing.as_ref()]).collect();
    let last = arrays.len() - 1;
    let places = of.iter().map(|event| match event {
        Some(event) => (part(*event), event.row as usize),
        None => (last, 0),
    });
    interleave(&arrays, &places.collect::<Vec<_>>())
}
