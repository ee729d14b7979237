//! Rules about rows and tables: what a user asks of the data, and what was found.
//!
//! What stands here is what configuration, stages and reports agree on. `watch` asks the rules about rows while a stage
//! writes them, `whole` those about a whole table before it is committed; which rows there are is the stages' business.

mod watch;
mod whole;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub(crate) use watch::{Tally, Watch, unfit_rules};
pub(crate) use whole::ask_whole;

use crate::ids::TableName;

/// What logs say of data goes by this name, so that it can be turned up and down by itself.
pub(crate) const TARGET: &str = "icestream::quality";

/// Stands among the rules that a quarantined row broke when its event has no value for a key.
pub const NULL_KEY: &str = "null_key";

/// What the name of the table ends with that keeps a silver table's quarantined rows.
pub const QUARANTINE_SUFFIX: &str = "__quarantine";

/// The table of the gold namespace that keeps what rules and audits find.
pub const FINDINGS_TABLE: &str = "icestream_quality";

/// The list of the rules that a quarantined row broke.
pub const RULES_COLUMN: &str = "_rules";

/// What a snapshot's summary has for each rule begins with this: how many rows broke it.
const NOTE: &str = "icestream.rule.";

/// One thing that the data of a table must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub name: String,
    pub test: Test,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Test {
    /// A SQL condition over a row.
    That(String),
    NotNull {
        column: String,
    },
    AcceptedValues {
        column: String,
        values: Vec<String>,
    },
    /// No two rows are the same in these columns.
    Unique {
        columns: Vec<String>,
    },
    /// Each value is there in a column of another table.
    Relationship {
        column: String,
        table: TableName,
        to: String,
    },
    /// The newest time of a column is not longer ago than this. Without a column, it is when the source says that the
    /// last change happened.
    Freshness {
        column: Option<String>,
        within: Duration,
    },
}

/// What becomes of what breaks a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It is counted.
    Warn,
    /// The row is left out.
    Drop,
    /// The row is in the table's quarantine, and not in the table.
    Quarantine,
    /// The table stays as it was.
    Fail,
}

impl Action {
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Warn => "warn",
            Action::Drop => "drop",
            Action::Quarantine => "quarantine",
            Action::Fail => "fail",
        }
    }

    /// Whether it decides which rows a table has.
    pub fn removes(self) -> bool {
        matches!(self, Action::Drop | Action::Quarantine)
    }
}

impl Rule {
    /// What kind of test it is, as users write it.
    pub fn kind(&self) -> &'static str {
        match &self.test {
            Test::That(_) => "that",
            Test::NotNull { .. } => "not_null",
            Test::AcceptedValues { .. } => "accepted_values",
            Test::Unique { .. } => "unique",
            Test::Relationship { .. } => "relationship",
            Test::Freshness { .. } => "freshness",
        }
    }

    /// The SQL condition that a row breaks by its being false, not by its being null; `None` for a test that no row
    /// alone passes or fails.
    pub fn condition(&self) -> Option<String> {
        match &self.test {
            Test::That(condition) => Some(condition.clone()),
            Test::NotNull { column } => Some(format!("{} IS NOT NULL", quote(column))),
            Test::AcceptedValues { column, values } => {
                let values: Vec<String> = values.iter().map(|value| literal(value)).collect();
                Some(format!("CAST({} AS VARCHAR) IN ({})", quote(column), values.join(", ")))
            }
            Test::Unique { .. } | Test::Relationship { .. } | Test::Freshness { .. } => None,
        }
    }

    /// The columns of the table that the test names by themselves.
    pub fn columns(&self) -> Vec<&str> {
        match &self.test {
            Test::That(_) | Test::Freshness { column: None, .. } => Vec::new(),
            Test::NotNull { column }
            | Test::AcceptedValues { column, .. }
            | Test::Relationship { column, .. }
            | Test::Freshness { column: Some(column), .. } => vec![column],
            Test::Unique { columns } => columns.iter().map(String::as_str).collect(),
        }
    }
}

/// What one evaluation of a rule or an audit found.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// The table; for an audit that names none, the audit.
    pub table: String,
    pub rule: String,
    pub kind: &'static str,
    pub severity: &'static str,
    pub rows_checked: Option<u64>,
    pub rows_failed: u64,
    /// The snapshot that holds the rows; `None` where none was committed.
    pub snapshot_id: Option<i64>,
}

impl Finding {
    pub(crate) fn of(table: &TableName, rule: &Rule, rows_checked: u64, rows_failed: u64) -> Self {
        Finding {
            table: table.to_string(),
            rule: rule.name.clone(),
            kind: rule.kind(),
            severity: rule.action.as_str(),
            rows_checked: Some(rows_checked),
            rows_failed,
            snapshot_id: None,
        }
    }

    /// What the summary of the snapshot says of it, whose rows it is about.
    pub(crate) fn note(&self) -> (String, String) {
        (format!("{NOTE}{}", self.rule), self.rows_failed.to_string())
    }

    /// What the summary of a snapshot says of the rules that there are.
    pub(crate) fn noted(
        table: &TableName,
        rules: &[Rule],
        snapshot_id: i64,
        summary: &BTreeMap<String, String>,
    ) -> Vec<Finding> {
        let of = |rule: &Rule| {
            let rows_failed = summary.get(&format!("{NOTE}{}", rule.name))?.parse().ok()?;
            let finding = Finding::of(table, rule, 0, rows_failed);
            Some(Finding { rows_checked: None, snapshot_id: Some(snapshot_id), ..finding })
        };
        rules.iter().filter_map(of).collect()
    }

    /// Whether it is a reason to stop.
    pub fn fails(&self) -> bool {
        self.rows_failed > 0 && self.severity == Action::Fail.as_str()
    }
}

/// Where an event stands in its topic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{} at offset {}", self.topic, self.partition, self.offset)
    }
}

/// A rule that was broken, and by how many rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    pub rule: String,
    pub rows: u64,
    /// The first event that made such a row, where it is known.
    pub first: Option<Origin>,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.rule)?;
        match self.rows {
            0 => {}
            1 => f.write_str(" by 1 row")?,
            rows => write!(f, " by {rows} rows")?,
        }
        match &self.first {
            Some(first) if self.rows == 1 => write!(f, ", from {first}"),
            Some(first) => write!(f, ", the first from {first}"),
            None => Ok(()),
        }
    }
}

/// Those of the findings that are a reason to stop.
pub(crate) fn failures(findings: &[Finding]) -> Vec<Broken> {
    let failed = findings.iter().filter(|finding| finding.fails());
    failed.map(|of| Broken { rule: of.rule.clone(), rows: of.rows_failed, first: None }).collect()
}

/// Several of them in one line.
pub fn listed(broken: &[Broken]) -> String {
    broken.iter().map(Broken::to_string).collect::<Vec<_>>().join("; ")
}

/// A name as SQL takes it literally.
pub(crate) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

pub(crate) fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_of_a_row_are_conditions() {
        let check = |test: Test| Rule { name: "r".to_string(), test, action: Action::Warn }.condition();
        let column = || "status".to_string();
        let conditions = [
            check(Test::That("a > 0".to_string())),
            check(Test::NotNull { column: column() }),
            check(Test::AcceptedValues { column: column(), values: vec!["paid".to_string(), "it's".to_string()] }),
            check(Test::Unique { columns: vec![column()] }),
        ];
        insta::assert_debug_snapshot!(conditions, @r#"
        [
            Some(
                "a > 0",
            ),
            Some(
                "\"status\" IS NOT NULL",
            ),
            Some(
                "CAST(\"status\" AS VARCHAR) IN ('paid', 'it''s')",
            ),
            None,
        ]
        "#);
    }

    #[test]
    fn broken_rules_are_told_without_values() {
        let first = Origin { topic: "shop.public.orders".to_string(), partition: 1, offset: 4711 };
        let broken = [
            Broken { rule: "total_not_negative".to_string(), rows: 3, first: Some(first.clone()) },
            Broken { rule: "has_customer".to_string(), rows: 1, first: Some(first) },
            Broken { rule: "fresh".to_string(), rows: 0, first: None },
        ];
        insta::assert_snapshot!(listed(&broken), @"`total_not_negative` by 3 rows, the first from shop.public.orders/1 at offset 4711; `has_customer` by 1 row, from shop.public.orders/1 at offset 4711; `fresh`");
    }
}
