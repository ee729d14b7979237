//! What was checked, and what was found.

use serde::Serialize;

/// A text of a value is cut here: a report is for the eye.
const WIDEST_VALUE: usize = 300;

#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// What sampled keys were chosen by; the same seed chooses the same ones again.
    pub seed: u64,
    /// About how many keys of a table were looked at; `None` for all.
    pub sample: Option<u64>,
    pub tables: Vec<TableReport>,
}

#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    pub table: String,
    pub layer: &'static str,
    pub snapshot_id: Option<i64>,
    pub checks: Vec<Check>,
}

/// One thing that was asked of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub check: &'static str,
    pub verdict: Verdict,
    /// How many of what were looked at.
    pub checked: u64,
    pub of: &'static str,
    /// What else there is to know: why it was skipped, what could not be compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    pub differing: u64,
    /// The first of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Holds,
    Differs,
    Skipped,
}

/// What something that differs is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It should be there and is not.
    Missing,
    /// It is there and should not be.
    Unexpected,
    /// It is there more than once.
    Doubled,
    /// It is there and says something else.
    Differs,
}

/// One row, file or marker that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub kind: Kind,
    /// `id=7`
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// A column, or what else it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub found: Option<String>,
    /// Where the event stands that decides it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<At>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
}

/// The place of a record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct At {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

impl Report {
    pub fn is_sound(&self) -> bool {
        self.checks().all(|check| check.verdict != Verdict::Differs)
    }

    pub fn checks(&self) -> impl Iterator<Item = &Check> {
        self.tables.iter().flat_map(|table| &table.checks)
    }

    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks().filter(|check| check.verdict == verdict).count()
    }
}

impl Check {
    pub fn skipped(check: &'static str, why: impl Into<String>) -> Self {
        let notes = vec![why.into()];
        Check { check, verdict: Verdict::Skipped, checked: 0, of: "rows", notes, differing: 0, differences: Vec::new() }
    }
}

impl Difference {
    pub fn new(kind: Kind) -> Self {
        Difference { kind, key: None, column: None, expected: None, found: None, at: None, file: None }
    }
}

/// Gathers what one check finds.
#[derive(Debug)]
pub(super) struct Tally {
    check: &'static str,
    of: &'static str,
    pub checked: u64,
    pub notes: Vec<String>,
    show: usize,
    differing: u64,
    differences: Vec<Difference>,
}

impl Tally {
    /// `show` is how many differences are told one by one.
    pub(super) fn new(check: &'static str, of: &'static str, show: usize) -> Self {
        Tally { check, of, checked: 0, notes: Vec::new(), show, differing: 0, differences: Vec::new() }
    }

    pub(super) fn add(&mut self, mut difference: Difference) {
        self.differing += 1;
        if self.differences.len() < self.show {
            for text in [&mut difference.expected, &mut difference.found].into_iter().flatten() {
                cut(text);
            }
            self.differences.push(difference);
        }
    }

    /// Adds what was found of other rows.
    pub(super) fn join(&mut self, other: Tally) {
        self.checked += other.checked;
        self.differing += other.differing;
        let room = self.show.saturating_sub(self.differences.len());
        self.differences.extend(other.differences.into_iter().take(room));
        for note in other.notes {
            self.note(note);
        }
    }

    /// Says something once.
    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    pub(super) fn finish(self) -> Check {
        let Tally { check, of, checked, notes, differing, differences, .. } = self;
        let verdict = if differing == 0 { Verdict::Holds } else { Verdict::Differs };
        Check { check, verdict, checked, of, notes, differing, differences }
    }
}

fn cut(text: &mut String) {
    if let Some((at, _)) = text.char_indices().nth(WIDEST_VALUE) {
        text.truncate(at);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_differences_are_told_and_all_are_counted() {
        let mut whole = Tally::new("fold", "keys", 3);
        for part in 0..2 {
            let mut tally = Tally::new("fold", "keys", 3);
            tally.checked = 10;
            tally.note("said once".to_string());
            for _ in 0..2 {
                tally.add(Difference { found: Some("é".repeat(400)), ..Difference::new(Kind::Unexpected) });
            }
            assert_eq!(tally.differing, 2, "{part}");
            whole.join(tally);
        }
        let check = whole.finish();
        assert_eq!((check.checked, check.differing, check.differences.len()), (20, 4, 3));
        assert_eq!((check.verdict, check.notes.len()), (Verdict::Differs, 1));
        let found = check.differences[0].found.as_ref().unwrap();
        assert!(found.chars().count() == WIDEST_VALUE + 1 && found.ends_with("é…"));
        assert_eq!(Tally::new("fold", "keys", 3).finish().verdict, Verdict::Holds);
    }
}
