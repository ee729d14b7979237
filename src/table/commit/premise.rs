//! What must hold at the head for a change to be right, and the markers that move with it.

use std::fmt;
use std::sync::Arc;

use iceberg::spec::TableMetadata;

use crate::ids::TableName;
use crate::table::error::{Broken, Error, Result};
use crate::table::lineage::have_same_rows;

/// Computes a marker's next value from its present one, or says why the change may not be applied.
pub type Advance = Arc<dyn Fn(Option<&str>) -> Result<String, Broken> + Send + Sync>;

/// Says why a change may not be applied on top of a marker.
type Check = Arc<dyn Fn(Option<&str>) -> Result<(), Broken> + Send + Sync>;

/// What must still hold at the head. Checked on every attempt.
#[derive(Clone, Default)]
pub struct Premise {
    head: Option<Option<i64>>,
    rows: Option<Option<i64>>,
    schema: Option<i32>,
    markers: Vec<(String, Advance)>,
    held: Vec<(String, Option<String>)>,
    asked: Vec<(String, Check)>,
}

impl Premise {
    pub fn new() -> Self {
        Premise::default()
    }

    /// The head is exactly this snapshot; `None`: nothing was ever committed.
    pub fn head_is(mut self, snapshot_id: Option<i64>) -> Self {
        self.head = Some(snapshot_id);
        self
    }

    /// The head has the rows that this snapshot had; they may be in other files since. `None`: nothing was ever
    /// committed.
    pub fn rows_are_of(mut self, snapshot_id: Option<i64>) -> Self {
        self.rows = Some(snapshot_id);
        self
    }

    /// The current schema is this one.
    pub fn schema_is(mut self, schema_id: i32) -> Self {
        self.schema = Some(schema_id);
        self
    }

    /// The marker takes the value that `advance` computes from the one at the head. It is written to the snapshot's
    /// summary and mirrored in a table property, so that no other engine's commit or expiry loses it.
    pub fn marker(
        mut self,
        key: &str,
        advance: impl Fn(Option<&str>) -> Result<String, Broken> + Send + Sync + 'static,
    ) -> Self {
        self.markers.push((key.to_string(), Arc::new(advance)));
        self
    }

    /// The marker goes from exactly `from` to `to`.
    pub fn marker_moves(self, key: &str, from: Option<String>, to: String) -> Self {
        let name = key.to_string();
        self.marker(key, move |found| {
            if found == from.as_deref() {
                return Ok(to.clone());
            }
            Err(other_marker(&name, from.as_deref(), found))
        })
    }

    /// The marker has exactly this value, or none, and keeps it.
    pub fn marker_is(mut self, key: &str, value: Option<String>) -> Self {
        self.held.push((key.to_string(), value));
        self
    }

    /// The marker is such that `check` has nothing against it, and keeps its value.
    pub fn marker_holds(
        mut self,
        key: &str,
        check: impl Fn(Option<&str>) -> Result<(), Broken> + Send + Sync + 'static,
    ) -> Self {
        self.asked.push((key.to_string(), Arc::new(check)));
        self
    }

    pub(super) fn and(mut self, other: Premise) -> Self {
        self.head = other.head.or(self.head);
        self.rows = other.rows.or(self.rows);
        self.schema = other.schema.or(self.schema);
        self.markers.extend(other.markers);
        self.held.extend(other.held);
        self.asked.extend(other.asked);
        self
    }

    pub(super) fn has_markers(&self) -> bool {
        !self.markers.is_empty()
    }

    /// Checks everything against a head and returns the markers' next values.
    pub(super) fn check(&self, table: &TableName, metadata: &TableMetadata) -> Result<Vec<(String, String)>> {
        let found = metadata.current_snapshot_id();
        let other_head = |expected: Option<i64>| {
            let show = |id: Option<i64>| id.map_or("none".to_string(), |id| id.to_string());
            Err(broken(table, Broken::Head { expected: show(expected), found: show(found) }))
        };
        if let Some(expected) = self.head.filter(|expected| *expected != found) {
            return other_head(expected);
        }
        if let Some(expected) = self.rows.filter(|expected| !have_same_rows(metadata, *expected, found)) {
            return other_head(expected);
        }
        if let Some(expected) = self.schema
            && expected != metadata.current_schema_id()
        {
            return Err(broken(table, Broken::Schema { expected, found: metadata.current_schema_id() }));
        }
        for (key, expected) in &self.held {
            let found = marker(metadata, key);
            if found != *expected {
                return Err(broken(table, other_marker(key, expected.as_deref(), found.as_deref())));
            }
        }
        for (key, check) in &self.asked {
            check(marker(metadata, key).as_deref()).map_err(|reason| broken(table, reason))?;
        }
        let advance = |(key, advance): &(String, Advance)| {
            let next = advance(marker(metadata, key).as_deref()).map_err(|reason| broken(table, reason))?;
            Ok((key.clone(), next))
        };
        self.markers.iter().map(advance).collect()
    }
}

impl fmt::Debug for Premise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let markers: Vec<&str> = self.markers.iter().map(|(key, _)| key.as_str()).collect();
        f.debug_struct("Premise")
            .field("head", &self.head)
            .field("rows", &self.rows)
            .field("schema", &self.schema)
            .field("markers", &markers)
            .finish()
    }
}

fn other_marker(key: &str, expected: Option<&str>, found: Option<&str>) -> Broken {
    let show = |value: Option<&str>| value.map_or("not set".to_string(), |value| format!("`{value}`"));
    Broken::Marker { key: key.to_string(), expected: show(expected), found: show(found) }
}

pub(super) fn broken(table: &TableName, broken: Broken) -> Error {
    Error::PremiseBroken { table: table.clone(), broken }
}

/// A marker's value at the head: from the newest snapshot of its line that has it (another engine's commits do not),
/// else, where that line is cut by expiry, from the table property that mirrors it.
///
/// The snapshots come first: when somebody rolls the table back, its rows and its marker go back together. A line that
/// is whole and never had the marker means that its rows were made without it.
pub(in crate::table) fn marker(metadata: &TableMetadata, key: &str) -> Option<String> {
    match line(metadata, key) {
        Line::Says(value) => Some(value),
        Line::Silent => None,
        Line::Cut => metadata.properties().get(key).cloned(),
    }
}

/// What the newest snapshot of the head's line that knows the marker says.
pub(in crate::table) fn marker_in_line(metadata: &TableMetadata, key: &str) -> Option<String> {
    match line(metadata, key) {
        Line::Says(value) => Some(value),
        Line::Silent | Line::Cut => None,
    }
}

/// What the snapshots from the head back say of a marker.
enum Line {
    Says(String),
    /// All of them are there, and none says anything.
    Silent,
    /// Those that are there say nothing.
    Cut,
}

fn line(metadata: &TableMetadata, key: &str) -> Line {
    let mut snapshot = metadata.current_snapshot();
    while let Some(current) = snapshot {
        if let Some(value) = current.summary().additional_properties.get(key) {
            return Line::Says(value.clone());
        }
        snapshot = match current.parent_snapshot_id() {
            Some(parent) => metadata.snapshot_by_id(parent),
            // The first commit has no parent. A later one without has lost it: pyiceberg's expiry takes it away.
            None if current.sequence_number() > 1 => None,
            None => return Line::Silent,
        };
    }
    Line::Cut
}

/// The markers a table has: the properties of ours that mirror them.
pub(in crate::table) fn marker_keys(metadata: &TableMetadata) -> impl Iterator<Item = &String> {
    metadata.properties().keys().filter(|key| key.starts_with("icestream."))
}
