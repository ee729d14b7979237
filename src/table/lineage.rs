//! Which snapshots have the same rows. A rewrite puts rows into other files and changes none of them, so whoever has read
//! the snapshot before it has nothing new to read.

use iceberg::spec::{Operation, TableMetadata};

use super::error::Result;
use super::{Table, TableView};

/// In the summary of a rewrite: the snapshot whose rows these are. It speaks also when the ones between were expired.
pub(super) const ROWS_OF: &str = "icestream.rows-of";

/// The snapshot that had the rows of this one first, as far back as the metadata tells. Other engines' rewrites count as
/// well: `replace` promises it.
pub(super) fn rows_of(metadata: &TableMetadata, snapshot_id: i64) -> i64 {
    let mut id = snapshot_id;
    while let Some(snapshot) = metadata.snapshot_by_id(id)
        && snapshot.summary().operation == Operation::Replace
    {
        let noted = snapshot.summary().additional_properties.get(ROWS_OF).and_then(|text| text.parse().ok());
        if let Some(noted) = noted {
            return noted;
        }
        let Some(parent) = snapshot.parent_snapshot_id() else { break };
        id = parent;
    }
    id
}

/// Whether two snapshots have the same rows; `None` stands for a table that nothing was written to.
pub(super) fn have_same_rows(metadata: &TableMetadata, one: Option<i64>, other: Option<i64>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one == other || rows_of(metadata, one) == rows_of(metadata, other),
        (None, None) => true,
        _ => false,
    }
}

/// The latest snapshot, up to a sequence number, that has the rows of another.
fn latest_with_rows_of(metadata: &TableMetadata, snapshot_id: i64, up_to: i64) -> i64 {
    let rows = rows_of(metadata, snapshot_id);
    let same = metadata
        .snapshots()
        .filter(|snapshot| snapshot.sequence_number() <= up_to && rows_of(metadata, snapshot.snapshot_id()) == rows);
    same.max_by_key(|snapshot| snapshot.sequence_number()).map_or(snapshot_id, |snapshot| snapshot.snapshot_id())
}

impl Table {
    /// The snapshots that [`TableView::since`] looks at to tell what has changed since one: itself, or what rewrites alone
    /// made of it; and what rewrites alone made the head of.
    pub fn compared_since(&self, snapshot_id: i64) -> Vec<i64> {
        let latest = latest_with_rows_of(self.metadata(), snapshot_id, i64::MAX);
        let head = self.snapshot_id().map(|head| rows_of(self.metadata(), head));
        [snapshot_id, latest].into_iter().chain(head).collect()
    }

    /// Whether the head has the very rows that this snapshot had: it is that one, or only rewrites came after it.
    pub fn has_rows_of(&self, snapshot_id: i64) -> bool {
        have_same_rows(self.metadata(), self.snapshot_id(), Some(snapshot_id))
    }
}

impl TableView {
    /// Whether this snapshot has the very rows that another one had: it is that one, or rewrites alone lie between them.
    pub fn has_rows_of(&self, snapshot_id: i64) -> bool {
        have_same_rows(self.metadata(), self.snapshot_id(), Some(snapshot_id))
    }

    /// Another snapshot and this one, without the rewrites behind the one and before the other: what they moved is in
    /// neither's files then.
    pub(super) fn nearest(&self, snapshot_id: i64) -> Result<(Option<TableView>, TableView)> {
        let (metadata, schema) = (self.metadata(), self.iceberg_schema().schema_id());
        let latest = latest_with_rows_of(metadata, snapshot_id, self.sequence_number());
        let under_schema = |view: &TableView| view.iceberg_schema().schema_id() == schema;
        let then = match self.earlier(latest)?.filter(under_schema) {
            Some(then) => Some(then),
            None => self.earlier(snapshot_id)?,
        };
        let now = self.snapshot_id().map(|now| self.earlier(rows_of(metadata, now))).transpose()?.flatten();
        Ok((then, now.filter(under_schema).unwrap_or_else(|| self.clone())))
    }
}
