//! The values that a column had in a sample.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::change::{ChangeEvent, Image};
use crate::json;

/// What Debezium sends in place of a value that it was not sent itself, and the same for a column of bytes.
const PLACEHOLDERS: [&str; 2] = ["\"__debezium_unavailable_value\"", "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\""];

/// One column's values over all sampled row images.
#[derive(Debug, Default)]
pub(super) struct Seen<'a> {
    /// Neither nulls nor placeholders.
    pub(super) values: Vec<Sent<'a>>,
    /// Rows after a change that have the column, and those of them in which it is null.
    pub(super) rows: usize,
    pub(super) nulls: usize,
    pub(super) unavailable: usize,
    pub(super) kinds: Kinds,
}

/// One value as JSON text, and the event it was sent with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent<'a> {
    pub(super) json: &'a str,
    pub(super) event: &'a ChangeEvent,
}

/// Which kinds of JSON values there were.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kinds {
    pub(super) boolean: bool,
    pub(super) whole: bool,
    pub(super) fraction: bool,
    pub(super) text: bool,
    pub(super) object: bool,
    pub(super) array: bool,
}

impl Kinds {
    fn note(&mut self, json: &str) {
        let is_whole = || json.bytes().all(|byte| byte == b'-' || byte.is_ascii_digit());
        *match json.as_bytes().first() {
            Some(b'"') => &mut self.text,
            Some(b'{') => &mut self.object,
            Some(b'[') => &mut self.array,
            Some(b't' | b'f') => &mut self.boolean,
            _ if is_whole() => &mut self.whole,
            _ => &mut self.fraction,
        } = true;
    }

    /// The kinds in words, for a person who has to decide.
    pub(super) fn told(self) -> String {
        let all = [
            (self.boolean, "booleans"),
            (self.whole, "whole numbers"),
            (self.fraction, "numbers with a fraction"),
            (self.text, "text"),
            (self.object, "objects"),
            (self.array, "arrays"),
        ];
        let told: Vec<&str> = all.into_iter().filter(|(is_there, _)| *is_there).map(|(_, name)| name).collect();
        told.join(", ")
    }
}

impl<'a> Seen<'a> {
    pub(super) fn texts(&self) -> impl Iterator<Item = Cow<'a, str>> {
        self.values.iter().filter_map(|value| json::string(value.json))
    }

    pub(super) fn numbers(&self) -> impl Iterator<Item = i64> {
        self.values.iter().filter_map(|value| value.json.parse().ok())
    }

    /// Whether there are values, and all are text.
    pub(super) fn is_text(&self) -> bool {
        self.kinds == Kinds { text: true, ..Kinds::default() }
    }
}

/// The columns of the sampled rows, those of the newest rows first, and what was seen of each.
pub(super) fn columns<'a>(events: &[&'a ChangeEvent]) -> Vec<(Cow<'a, str>, Seen<'a>)> {
    let mut newest: Vec<&ChangeEvent> = events.to_vec();
    newest.sort_by_key(|event| (event.source_ts_us, event.record.timestamp_ms, event.record.offset));
    let mut columns: Vec<(Cow<'a, str>, Seen<'a>)> = Vec::new();
    let mut index: HashMap<Cow<'a, str>, usize> = HashMap::new();
    for event in newest.into_iter().rev() {
        for (image, is_after) in [(&event.after, true), (&event.before, false)] {
            let Some(text) = image.as_ref().map(Image::json) else { continue };
            for (name, json) in fields(text) {
                let at = *index.entry(name.clone()).or_insert_with(|| {
                    columns.push((name, Seen::default()));
                    columns.len() - 1
                });
                let seen = &mut columns[at].1;
                seen.rows += usize::from(is_after);
                if json == "null" {
                    seen.nulls += usize::from(is_after);
                } else if PLACEHOLDERS.contains(&json) {
                    seen.unavailable += 1;
                } else {
                    seen.kinds.note(json);
                    seen.values.push(Sent { json, event });
                }
            }
        }
    }
    columns
}

/// The fields of a JSON object; none when the text is no object.
pub(super) fn fields(text: &str) -> Vec<(Cow<'_, str>, &str)> {
    let mut found = Vec::new();
    let walked = json::each_field::<std::convert::Infallible>(text, |name, value| {
        found.push((name, value));
        Ok(())
    });
    if walked.is_err() {
        found.clear();
    }
    found
}
