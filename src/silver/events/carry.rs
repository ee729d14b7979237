//! Rows of keys whose last event does not say everything, made of what the keys were before and all their new events.

use std::collections::{BTreeMap, HashMap, HashSet};

use arrow::array::{ArrayRef, new_null_array};
use arrow::error::ArrowError;

use super::{EventRef, Images, Newest, Noted, Rows};
use crate::silver::order::Truncation;

/// What keys were before the new events.
#[derive(Default)]
pub(in crate::silver) struct Had {
    /// Where each key's row is, by the key's number.
    pub(in crate::silver) rows: HashMap<u32, (u32, u32)>,
    /// The keys whose row says that it was deleted.
    pub(in crate::silver) deleted: HashSet<u32>,
    /// Of the columns of the source that rows tell, the arrays that `rows` leads into.
    pub(in crate::silver) columns: BTreeMap<usize, Vec<ArrayRef>>,
    pub(in crate::silver) otherwise: Otherwise,
}

/// What a key was that has no row.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(in crate::silver) enum Otherwise {
    /// It never was: there are no events but the new ones.
    #[default]
    New,
    /// It was not there. Values that were sent before are not known.
    NotThere,
    /// Its row may have been left out.
    Unknown,
}

/// What became of some keys.
pub(in crate::silver) struct Carried {
    pub(in crate::silver) rows: Rows,
    /// Keys that only older events tell of.
    pub(in crate::silver) untold: Vec<u32>,
    /// Keys that have no row: they were deleted and never there.
    pub(in crate::silver) nothing: Vec<u32>,
}

impl Newest {
    /// Looks up all events of the keys that are wanted among those that were read.
    pub(in crate::silver) fn recall(&mut self, wanted: &[bool]) {
        let mut all = Vec::new();
        for (batch, events) in self.batches.iter().enumerate() {
            events.for_each_event_of(&self.keys, |row, number, leaves| {
                if wanted[number] {
                    all.push(events.noted(number, events.event(batch as u32, row, leaves)));
                }
            });
        }
        self.all = all;
    }

    /// What the events are remembered in, in bytes.
    pub(in crate::silver) fn bytes_of_all(&self) -> usize {
        self.all.capacity() * size_of::<Noted>()
    }

    /// The rows of some keys, in their order. None of their new events is before one that `had` has seen. `reads` says
    /// of which columns values have to be known; the others may be null.
    pub(in crate::silver) fn carry(
        &self,
        sorted: &[u32],
        had: &Had,
        reads: &[bool],
        truncation: Option<&Truncation>,
        images: &Images<'_>,
    ) -> Result<Carried, ArrowError> {
        let columns = images.columns;
        let ignored: Vec<Option<usize>> =
            columns.iter().map(|column| self.ignores.iter().position(|name| name == column.name())).collect();
        let keys: Vec<Option<usize>> =
            columns.iter().map(|column| images.keys.iter().position(|key| key == column.name())).collect();
        // The arrays of each column: those of the batches, one that is null, and those of the rows there were.
        let null = (self.batches.len() as u32, 0);
        let mut events = self.of_keys(sorted).into_iter().peekable();
        let mut carried = Carried { rows: Rows::default(), untold: Vec::new(), nothing: Vec::new() };
        let mut kept: Vec<Vec<(u32, u32)>> = vec![Vec::new(); columns.len()];
        let mut numbers = Vec::new();
        for number in sorted {
            let row = had.rows.get(number);
            let (mut is_there, mut is_row) = (row.is_some() && !had.deleted.contains(number), row.is_some());
            let before = |at: usize| match (row, had.otherwise) {
                (Some((batch, row)), _) => had.columns.get(&at).map(|_| (null.0 + 1 + batch, *row)),
                (None, Otherwise::New) => Some(null),
                (None, _) => None,
            };
            let mut says: Vec<Option<(u32, u32)>> = (0..columns.len()).map(before).collect();
            while let Some((_, event)) = events.next_if(|(of, _)| of == number) {
                if truncation.is_some_and(|truncation| truncation.takes(&self.place_of(event))) {
                    continue;
                }
                if event.is_delete {
                    is_there = false;
                    continue;
                }
                for (at, says) in says.iter_mut().enumerate() {
                    let says_nothing = is_there && ignored[at].is_some_and(|ignored| self.is_null(event, ignored));
                    if !says_nothing && !self.lacks(event, &columns[at..=at]) {
                        *says = Some((event.batch, event.row));
                    }
                }
                (is_there, is_row) = (true, true);
            }
            let is_told = |at: usize| says[at].is_some() || keys[at].is_some() || !reads[at];
            if row.is_none() && had.otherwise == Otherwise::Unknown {
                carried.untold.push(*number);
            } else if !is_row {
                match had.otherwise {
                    Otherwise::New => carried.nothing.push(*number),
                    _ => carried.untold.push(*number),
                }
            } else if !(0..columns.len()).all(is_told) {
                carried.untold.push(*number);
            } else {
                let last = self.last[*number as usize];
                carried.rows.rows.push((last.batch, last.row));
                carried.rows.gone.push(last.is_delete);
                kept.iter_mut().zip(says).for_each(|(kept, says)| kept.push(says.unwrap_or(null)));
                numbers.push(*number);
            }
        }
        let of_keys = self.key_columns(&numbers)?;
        carried.rows.parts = self.parts(images)?;
        for (at, kept) in kept.into_iter().enumerate() {
            let parts = &mut carried.rows.parts[at];
            let kept = match keys[at] {
                // An update that moves a row is of the key it leaves, too: what it says of keys is that of the other.
                Some(key) => {
                    *parts = vec![of_keys[key].clone()];
                    (0..numbers.len() as u32).map(|row| (0, row)).collect()
                }
                None => {
                    parts.push(new_null_array(columns[at].data_type(), 1));
                    parts.extend(had.columns.get(&at).into_iter().flatten().cloned());
                    kept
                }
            };
            carried.rows.kept.insert(at, kept);
        }
        Ok(carried)
    }

    /// The recalled events of some keys, each with the key's number, in the order of the keys and of events.
    fn of_keys(&self, sorted: &[u32]) -> Vec<(u32, EventRef)> {
        let mut is_wanted = vec![false; self.keys.len()];
        sorted.iter().for_each(|number| is_wanted[*number as usize] = true);
        let wanted = self.all.iter().filter(|noted| is_wanted[noted.number as usize]);
        let mut events: Vec<(u32, EventRef)> = wanted.map(|noted| (noted.number, noted.event)).collect();
        events.sort_unstable_by(|(number, event), (other_number, other)| {
            number.cmp(other_number).then_with(|| self.place_of(*event).cmp(&self.place_of(*other)))
        });
        events
    }
}
