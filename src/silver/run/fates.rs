//! What becomes of each key.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};

use super::{Base, Run};
use crate::layout;
use crate::silver::events::{Depth, EventRef, Events, Newest};
use crate::silver::order::{Place, PlaceRef};
use crate::silver::{Merged, OnDelete, Result};
use crate::table::{ColumnStatistics, Prune, ScanFile};

/// What becomes of a key's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::silver) enum Fate {
    /// It is what the last event says.
    Row,
    /// It goes.
    Gone,
    /// It is what it was, but for what the new events say.
    Carry,
    /// Only all its events together say what it is.
    Fold,
    /// It is right as it is.
    Leave,
}

impl Run<'_> {
    /// Decides what becomes of each key.
    pub(super) async fn fates(
        &self,
        newest: &Arc<Newest>,
        wanting: &[bool],
        new_files: &[ScanFile],
        base: Option<&Base>,
        merged: &Merged,
    ) -> Result<Vec<Fate>> {
        if self.mends(base) {
            return Ok(vec![Fate::Fold; newest.keys.len()]);
        }
        let furthest = base.and_then(|base| base.merged.frontier.furthest());
        let mut doubtful = vec![None; newest.keys.len()];
        let mut earliest: Option<Place> = None;
        if let Some(furthest) = furthest.filter(|_| !newest.all_are_past()) {
            let takes = |place: &PlaceRef<'_>| merged.truncation.as_ref().is_some_and(|of| of.takes(place));
            let firsts = if wanting.contains(&true) { newest.firsts(&[]) } else { Vec::new() };
            for (number, doubtful) in doubtful.iter_mut().enumerate() {
                if takes(&newest.place(number)) {
                    continue;
                }
                // A key that goes on from its row must not have been overtaken by any of its new events.
                let first = firsts.get(number).and_then(|(first, _)| *first).filter(|_| wanting[number]);
                let event = first.unwrap_or_else(|| newest.last_of(number));
                let place = newest.place_of(event);
                if !place.is_past(furthest) {
                    *doubtful = Some(event);
                    if earliest.as_ref().is_none_or(|earliest| !place.reaches(earliest)) {
                        earliest = Some(place.to_place());
                    }
                }
            }
        }
        let overtaken = match earliest {
            Some(earliest) => self.overtaken(newest, doubtful, new_files, earliest).await?,
            None => HashSet::new(),
        };
        let values_from_before =
            self.model.on_delete == OnDelete::Mark || !merged.unavailable.is_empty() || !self.ignores.is_empty();
        let fate = |number: usize| {
            if merged.truncation.as_ref().is_some_and(|truncation| truncation.takes(&newest.place(number))) {
                Fate::Leave
            } else if overtaken.contains(&(number as u32)) {
                if values_from_before { Fate::Fold } else { Fate::Leave }
            } else if wanting[number] {
                Fate::Carry
            } else if newest.is_delete(number) {
                if self.model.on_delete == OnDelete::Mark { Fate::Fold } else { Fate::Gone }
            } else if !merged.unavailable.is_empty() && newest.lacks_any(number, &self.columns)
                || newest.holds_ignored_null(number)
            {
                Fate::Fold
            } else {
                Fate::Row
            }
        };
        Ok((0..newest.keys.len()).map(fate).collect())
    }

    /// Which of the doubtful keys have an event in the files before that is past the one given.
    pub(in crate::silver) async fn overtaken(
        &self,
        newest: &Arc<Newest>,
        doubtful: Vec<Option<EventRef>>,
        new_files: &[ScanFile],
        earliest: Place,
    ) -> Result<HashSet<u32>> {
        let new: HashSet<&str> = new_files.iter().map(|file| file.path.as_str()).collect();
        let mut files = self.view.files(Some(&Reaches(earliest))).await?;
        files.retain(|file| !new.contains(file.path.as_str()));
        let (newest, doubtful) = (newest.clone(), Arc::new(doubtful));
        let look = move |events: Events| {
            let mut overtaken = Vec::new();
            events.for_each_of(&newest.keys, |number, place| {
                if doubtful[number].is_some_and(|event| place > newest.place_of(event)) {
                    overtaken.push(number as u32);
                }
            });
            overtaken
        };
        let mut found = HashSet::new();
        let take = |overtaken: Vec<u32>| found.extend(overtaken);
        self.each_batch_of(&self.view, &files, Depth::Order, |_| None, look, take).await?;
        Ok(found)
    }
}

/// Keeps the files that may hold an event past a place.
struct Reaches(Place);

impl Prune for Reaches {
    fn keep(&self, statistics: &dyn ColumnStatistics) -> Vec<bool> {
        let Place(Some(epoch), position, offset) = &self.0 else { return vec![true; statistics.len()] };
        let epochs = statistics.upper(layout::EPOCH);
        let positions = statistics.upper(layout::POSITION);
        let offsets = statistics.upper(layout::OFFSET);
        let (nulls, rows) = (statistics.null_counts(layout::POSITION), statistics.row_counts());
        let long = |array: &Option<ArrayRef>, at: usize| {
            let array = cast(array.as_ref()?, &DataType::Int64).ok()?;
            array.is_valid(at).then(|| array.as_primitive::<Int64Type>().value(at))
        };
        let text = |array: &Option<ArrayRef>, at: usize| {
            let array = array.as_ref()?.as_string_opt::<i32>()?;
            array.is_valid(at).then(|| array.value(at).to_string())
        };
        let may_reach = |at: usize| {
            match long(&epochs, at) {
                None => return true,
                Some(highest) if highest != i64::from(*epoch) => return highest > i64::from(*epoch),
                Some(_) => {}
            }
            let has_no_position = long(&nulls, at).is_some_and(|nulls| long(&rows, at) == Some(nulls));
            match position {
                // A bound may be cut, and stands for more than itself then.
                Some(position) => text(&positions, at).is_none_or(|highest| highest >= *position) && !has_no_position,
                None if has_no_position => long(&offsets, at).is_none_or(|highest| highest >= *offset),
                None => true,
            }
        };
        (0..statistics.len()).map(may_reach).collect()
    }
}
