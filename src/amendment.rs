//! How often rows were taken out of a bronze table again, as the marker in its snapshots says it.
//!
//! Ingestion only ever adds rows, and is guarded by the offsets it adds them for. What takes rows out (a rewind, a replay)
//! is guarded by this count, so that of two at once one has to look again; and silver tells by it that rows are gone.

use serde::{Deserialize, Serialize};

use crate::table::Table;

/// The marker's key in snapshot summaries and table properties.
pub const MARKER: &str = "icestream.amended";

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Amendments {
    /// Rows were deleted, to be read again.
    pub rewinds: u64,
    /// Rejected rows were replaced by what they should have been.
    pub replays: u64,
}

impl Amendments {
    /// As of the head the table was loaded at. Text that nobody of ours wrote counts as none.
    pub fn of(table: &Table) -> Self {
        table.marker(MARKER).and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    pub fn text(self) -> String {
        // Numbers always serialise.
        serde_json::to_string(&self).unwrap_or_default()
    }
}
