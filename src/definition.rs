//! What a model said when its table was built, kept beside the rows so that a change of it can be shown.
//!
//! It stands in a table property and is written in the commit that builds by it. Whether a model changed is for the
//! fingerprint in the marker to say; this only says in what. A table built before there was such a property gets it with
//! its next commit.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::table::Table;

/// The table property.
pub const PROPERTY: &str = "icestream.model";

/// The parts of a model that its rows depend on, by the names a person writes them under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Definition {
    /// Of the model, as the marker has it.
    fingerprint: String,
    #[serde(flatten)]
    parts: BTreeMap<String, String>,
}

/// A part of a model that is not what it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub part: String,
    pub before: Option<String>,
    pub after: Option<String>,
}

impl Definition {
    pub fn new(fingerprint: String, parts: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        Definition { fingerprint, parts: parts.into_iter().map(|(part, text)| (part.to_string(), text)).collect() }
    }

    /// What a table was built by; `None` when that is not known: nothing says so, or what does is not of the model with
    /// this fingerprint.
    pub fn of(table: &Table, fingerprint: &str) -> Option<Self> {
        let text = table.properties().get(PROPERTY)?;
        serde_json::from_str::<Definition>(text).ok().filter(|of| of.fingerprint == fingerprint)
    }

    pub fn text(&self) -> String {
        // Maps of strings always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Whether the table says so already.
    pub fn is_of(&self, table: &Table) -> bool {
        table.properties().get(PROPERTY) == Some(&self.text())
    }

    /// What is not the same in `after`.
    pub fn differences(&self, after: &Definition) -> Vec<Difference> {
        let mut parts: Vec<&String> = self.parts.keys().chain(after.parts.keys()).collect();
        parts.sort();
        parts.dedup();
        let both = |part: &String| (self.parts.get(part).cloned(), after.parts.get(part).cloned());
        let differs = |part: &&String| self.parts.get(*part) != after.parts.get(*part);
        let told = parts.into_iter().filter(differs).map(|part| (part, both(part)));
        told.map(|(part, (before, after))| Difference { part: part.clone(), before, after }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_differ_are_told() {
        let of = |parts: &[(&'static str, &str)]| {
            Definition::new("f".to_string(), parts.iter().map(|(part, text)| (*part, text.to_string())))
        };
        let before = of(&[("keys", "id"), ("sql", "SELECT 1")]);
        assert_eq!(before.text(), r#"{"fingerprint":"f","keys":"id","sql":"SELECT 1"}"#);
        assert_eq!(serde_json::from_str::<Definition>(&before.text()).unwrap(), before);
        let check = |after: &Definition, expected: &str| {
            let told = before.differences(after).into_iter();
            let told: Vec<String> = told.map(|of| format!("{}: {:?} {:?}", of.part, of.before, of.after)).collect();
            assert_eq!(told.join("; "), expected);
        };
        check(&before, "");
        check(&of(&[("keys", "id"), ("sql", "SELECT 2")]), r#"sql: Some("SELECT 1") Some("SELECT 2")"#);
        check(&of(&[("sql", "SELECT 1"), ("scd", "2")]), r#"keys: Some("id") None; scd: None Some("2")"#);
    }
}
