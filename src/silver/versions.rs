//! Versions of rows (SCD 2): for each key, what its row was from when to when.
//!
//! - A version begins with an event that makes the row, or changes one of the tracked columns; an event that changes
//!   only others changes the version there is. It ends with the next version, a delete, or a truncation.
//! - **The time of an event** is the source's (`_source_ts`), else the broker's, else ours. **The times of a key never
//!   fall**: where an event's time is before the end or the beginning of the version before it, that counts instead. So
//!   versions neither overlap nor leave a hole; two events of one moment leave a version that lasted for none.
//! - With [`OnDelete::Mark`], a delete leaves a row of its own: the row as it last was, `_is_deleted`, and lasting for no
//!   time.

use super::OnDelete;
use super::events::{Step, What};

pub(super) const VALID_FROM: &str = "_valid_from";
pub(super) const VALID_TO: &str = "_valid_to";
pub(super) const IS_CURRENT: &str = "_is_current";
pub(super) const IS_DELETED: &str = "_is_deleted";

/// Where the values of a row are: which batch, and which row of it.
pub(super) type Source = (usize, usize);

/// A row of the silver table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) source: Source,
    pub(super) from: i64,
    pub(super) to: Option<i64>,
    /// It says that the row was deleted.
    pub(super) is_deleted: bool,
}

/// What the target knows of a key. There is one for each key: they are small.
#[derive(Debug, Clone, Copy)]
pub(super) struct Before {
    /// Where the version is that is current: which batch, and which row of it.
    pub(super) current: Option<(u32, u32)>,
    /// Since when it is.
    pub(super) from: i64,
    /// The last time at which a version began or ended.
    pub(super) until: i64,
}

impl Default for Before {
    fn default() -> Self {
        Before { current: None, from: i64::MIN, until: i64::MIN }
    }
}

/// The rows that are compared, in the order of the steps; `is_change` asks whether one differs from the one before it.
/// A step's row is `None` where the model does not select it.
pub(super) struct Timeline<'a> {
    pub(super) steps: &'a [Step],
    /// For each row step, in order.
    pub(super) rows: &'a [Option<Source>],
    /// What is known of each key, by its number; nothing where there are no more.
    pub(super) before: &'a [Before],
    pub(super) on_delete: OnDelete,
}

impl Timeline<'_> {
    /// For each row step, the row that it has to be compared with: the one the key had until then.
    pub(super) fn compared(&self) -> Vec<Option<(Source, Source)>> {
        let mut compared = Vec::with_capacity(self.rows.len());
        let compare = |row: Option<Source>, previous| {
            compared.push(row.zip(previous));
            false
        };
        self.walk(compare, |_| {});
        compared
    }

    /// The versions of all keys. `changes` says of each row step whether it differs in a tracked column.
    pub(super) fn versions(&self, changes: &[bool]) -> Vec<Version> {
        // No step ends more than one and begins more than one.
        let (mut at, mut versions) = (0, Vec::with_capacity(2 * self.steps.len()));
        let change = |_, _| {
            at += 1;
            changes[at - 1]
        };
        self.walk(change, |version| versions.push(version));
        versions
    }

    fn walk(&self, mut changes: impl FnMut(Option<Source>, Option<Source>) -> bool, mut ended: impl FnMut(Version)) {
        let mut current: Option<Version> = None;
        let (mut key, mut until) = (None, i64::MIN);
        let mut rows = self.rows.iter();
        for step in self.steps {
            if key.replace(step.key) != Some(step.key) {
                current.take().into_iter().for_each(&mut ended);
                let Before { current: place, from, until: known } =
                    self.before.get(step.key as usize).copied().unwrap_or_default();
                current = place.map(|(batch, row)| Version {
                    source: (batch as usize, row as usize),
                    from,
                    to: None,
                    is_deleted: false,
                });
                until = known;
            }
            let row = match step.what {
                What::Row(_) => rows.next().copied().flatten(),
                What::Deleted | What::Truncated => None,
            };
            let differs = match step.what {
                What::Row(_) => changes(row, current.as_ref().map(|version| version.source)),
                What::Deleted | What::Truncated => false,
            };
            match (row, &mut current) {
                (None, None) => {}
                (Some(row), Some(version)) if !differs => version.source = row,
                (row, _) => {
                    until = until.max(step.time);
                    if let Some(mut version) = current.take() {
                        version.to = Some(until);
                        let deleted = matches!(step.what, What::Deleted) && self.on_delete == OnDelete::Mark;
                        let marker = Version { from: until, is_deleted: true, ..version.clone() };
                        ended(version);
                        deleted.then_some(marker).into_iter().for_each(&mut ended);
                    }
                    current = row.map(|source| Version { source, from: until, to: None, is_deleted: false });
                }
            }
        }
        current.into_iter().for_each(ended);
    }
}
