//! The fold of a key's events into its row, or into the versions of its row: what a silver table must hold.
//!
//! One event after the other, in their order, as one would do it by hand. Nothing of it is shared with `silver/`, which
//! comes to the same rows from the last event, from SQL and from what was there before.

use std::collections::BTreeMap;

use super::history::{Event, History};
use crate::silver::OnDelete;

/// A row as events have made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Made {
    /// The event that came last: it says the key, and where and when.
    pub(super) last: Event,
    /// The event whose image it is.
    pub(super) image: Event,
    /// Columns whose values are of other events; `None` where none said any.
    pub(super) kept: Vec<(usize, Option<Event>)>,
    pub(super) is_deleted: bool,
}

impl Made {
    /// The row of one event alone.
    pub(super) fn of(event: Event) -> Self {
        Made { last: event, image: event, kept: Vec::new(), is_deleted: false }
    }
}

/// What happens to a key that has versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) time: i64,
    pub(super) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum What {
    Row(Made),
    Deleted,
    Truncated,
}

/// From when to when a row was what it was; `row` is the number of its step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) row: usize,
    pub(super) from: i64,
    pub(super) to: Option<i64>,
    pub(super) is_deleted: bool,
}

/// What is known of a row's columns while its events go by.
#[derive(Default)]
struct Said {
    /// Which event last said something of a column; of those columns that some event says nothing of.
    of: BTreeMap<usize, Option<Event>>,
    is_there: bool,
}

impl Said {
    fn new(history: &History, events: &[Event]) -> Self {
        let unsaid = events.iter().filter(|event| !event.leaves).flat_map(|event| history.unsaid(*event));
        let open = unsaid.chain(history.columns().ignored.iter().copied());
        Said { of: open.map(|column| (column, None)).collect(), is_there: false }
    }

    fn row(&mut self, history: &History, event: Event) -> Made {
        let unsaid = history.unsaid(event);
        for (column, said) in &mut self.of {
            let is_nothing = history.columns().ignored.contains(column) && history.is_null(event, *column);
            let says = !is_nothing || !self.is_there;
            if says && !unsaid.contains(column) {
                *said = Some(event);
            }
        }
        self.is_there = true;
        let kept = self.of.iter().filter(|(_, said)| **said != Some(event)).map(|(column, said)| (*column, *said));
        Made { last: event, image: event, kept: kept.collect(), is_deleted: false }
    }
}

/// The row of a key; `None` when it has none.
pub(super) fn latest(history: &History, events: &[Event], on_delete: OnDelete) -> Option<Made> {
    let truncation = history.truncations().last_key_value().map(|(truncation, _)| truncation);
    let is_live = |event: &Event| truncation.is_none_or(|truncation| !history.is_taken(*event, truncation));
    let live: Vec<Event> = events.iter().copied().filter(is_live).collect();
    let (mut said, mut row) = (Said::new(history, &live), None::<Made>);
    for event in live {
        if !history.deletes(event) {
            row = Some(said.row(history, event));
            continue;
        }
        said.is_there = false;
        match on_delete {
            OnDelete::Remove => row = None,
            OnDelete::Mark => {
                if let Some(row) = &mut row {
                    (row.last, row.is_deleted) = (event, true);
                }
            }
        }
    }
    row
}

/// What happened to a key, truncations of the table between its events.
pub(super) fn steps(history: &History, events: &[Event]) -> Vec<Step> {
    let mut said = Said::new(history, events);
    let mut truncations = history.truncations().iter().peekable();
    let mut steps = Vec::new();
    for event in events {
        while let Some((_, time)) = truncations.next_if(|(truncation, _)| !history.is_taken(*event, truncation)) {
            said.is_there = false;
            steps.push(Step { time: *time, what: What::Truncated });
        }
        let what = match history.deletes(*event) {
            true => {
                said.is_there = false;
                What::Deleted
            }
            false => What::Row(said.row(history, *event)),
        };
        steps.push(Step { time: history.time(*event), what });
    }
    steps.extend(truncations.map(|(_, time)| Step { time: *time, what: What::Truncated }));
    steps
}

/// The versions that a key's steps make. `is_row` says whether the step has a row in the table that is made, `differs`
/// whether it is another one than that of an earlier step.
pub(super) fn versions(
    steps: &[Step],
    on_delete: OnDelete,
    is_row: impl Fn(usize) -> bool,
    differs: impl Fn(usize, usize) -> bool,
) -> Vec<Version> {
    let mut versions: Vec<Version> = Vec::new();
    // Since when the present version is, and the last moment at which anything began or ended.
    let (mut current, mut moment) = (None::<Version>, i64::MIN);
    for (at, step) in steps.iter().enumerate() {
        let has_row = matches!(step.what, What::Row(_)) && is_row(at);
        if let (Some(version), true) = (&mut current, has_row)
            && !differs(version.row, at)
        {
            version.row = at;
            continue;
        }
        if current.is_none() && !has_row {
            continue;
        }
        moment = moment.max(step.time);
        if let Some(version) = current.take() {
            let ended = Version { to: Some(moment), ..version };
            let is_marked = step.what == What::Deleted && on_delete == OnDelete::Mark;
            let mark = Version { from: moment, is_deleted: true, ..ended.clone() };
            versions.push(ended);
            versions.extend(is_marked.then_some(mark));
        }
        current = has_row.then_some(Version { row: at, from: moment, to: None, is_deleted: false });
    }
    versions.extend(current);
    versions
}
