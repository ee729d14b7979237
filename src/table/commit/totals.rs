//! What a snapshot's summary counts: the six `total-*` entries, and what the commit itself added and removed.
//!
//! The crate computes the totals only for itself; its count of changes panics at partition values it cannot write as text.

use std::collections::{HashMap, HashSet};

use iceberg::spec::{DataContentType, DataFile, ManifestFile, Snapshot, Struct};

use crate::ids::TableName;
use crate::table::error::Result;
use crate::table::manifest;
use crate::table::storage::Storage;

/// What a table holds, as its summaries count it: records are rows of data files, deleted or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    data_files: i64,
    delete_files: i64,
    records: i64,
    bytes: i64,
    position_deletes: i64,
    equality_deletes: i64,
}

impl Totals {
    const KEYS: [&'static str; 6] = [
        "total-data-files",
        "total-delete-files",
        "total-records",
        "total-files-size",
        "total-position-deletes",
        "total-equality-deletes",
    ];

    /// From the parent's summary, or, when another engine left it incomplete, from the manifests themselves.
    pub(super) async fn of_parent(
        table: &TableName,
        storage: &Storage,
        parent: Option<&Snapshot>,
        manifests: &[ManifestFile],
    ) -> Result<Totals> {
        let Some(parent) = parent else { return Ok(Totals::default()) };
        if let Some(totals) = Totals::from_summary(&parent.summary().additional_properties) {
            return Ok(totals);
        }
        let mut totals = Totals::default();
        for manifest_file in manifests.iter().filter(|manifest| manifest::may_hold_live_files(manifest)) {
            for entry in manifest::load(table, storage.file_io(), manifest_file).await? {
                if entry.is_alive() {
                    totals.add(&entry.data_file, 1);
                }
            }
        }
        Ok(totals)
    }

    fn from_summary(summary: &HashMap<String, String>) -> Option<Totals> {
        let mut values = [0i64; 6];
        for (value, key) in values.iter_mut().zip(Self::KEYS) {
            *value = summary.get(key)?.parse().ok().filter(|value| *value >= 0)?;
        }
        let [data_files, delete_files, records, bytes, position_deletes, equality_deletes] = values;
        Some(Totals { data_files, delete_files, records, bytes, position_deletes, equality_deletes })
    }

    pub(super) fn add(&mut self, file: &DataFile, sign: i64) {
        let rows = sign * file.record_count() as i64;
        self.bytes += sign * file.file_size_in_bytes() as i64;
        match file.content_type() {
            DataContentType::Data => {
                self.data_files += sign;
                self.records += rows;
            }
            DataContentType::PositionDeletes => {
                self.delete_files += sign;
                self.position_deletes += rows;
            }
            DataContentType::EqualityDeletes => {
                self.delete_files += sign;
                self.equality_deletes += rows;
            }
        }
    }

    pub(super) fn write_to(&self, summary: &mut HashMap<String, String>) {
        let values = [
            self.data_files,
            self.delete_files,
            self.records,
            self.bytes,
            self.position_deletes,
            self.equality_deletes,
        ];
        for (key, value) in Self::KEYS.into_iter().zip(values) {
            summary.insert(key.to_string(), value.to_string());
        }
    }
}

/// What one commit adds and removes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    counts: HashMap<&'static str, u64>,
    partitions: HashSet<(i32, Struct)>,
}

impl Changes {
    pub(super) fn add(&mut self, file: &DataFile, spec_id: i32) {
        let keys = match file.content_type() {
            DataContentType::Data => ["added-data-files", "", "added-records"],
            DataContentType::PositionDeletes => {
                ["added-delete-files", "added-position-delete-files", "added-position-deletes"]
            }
            DataContentType::EqualityDeletes => {
                ["added-delete-files", "added-equality-delete-files", "added-equality-deletes"]
            }
        };
        self.count(file, spec_id, keys, "added-files-size");
    }

    pub(super) fn remove(&mut self, file: &DataFile, spec_id: i32) {
        let keys = match file.content_type() {
            DataContentType::Data => ["deleted-data-files", "", "deleted-records"],
            DataContentType::PositionDeletes => {
                ["removed-delete-files", "removed-position-delete-files", "removed-position-deletes"]
            }
            DataContentType::EqualityDeletes => {
                ["removed-delete-files", "removed-equality-delete-files", "removed-equality-deletes"]
            }
        };
        self.count(file, spec_id, keys, "removed-files-size");
    }

    fn count(&mut self, file: &DataFile, spec_id: i32, [files, kind, rows]: [&'static str; 3], bytes: &'static str) {
        for (key, count) in [(files, 1), (kind, 1), (rows, file.record_count()), (bytes, file.file_size_in_bytes())] {
            *self.counts.entry(key).or_default() += count;
        }
        if !file.partition().fields().is_empty() {
            self.partitions.insert((spec_id, file.partition().clone()));
        }
    }

    /// Counts of nothing are left out.
    pub(super) fn write_to(&self, summary: &mut HashMap<String, String>) {
        let counts = self.counts.iter().filter(|(key, _)| !key.is_empty()).map(|(key, count)| (*key, *count));
        for (key, count) in counts.chain([("changed-partition-count", self.partitions.len() as u64)]) {
            if count > 0 {
                summary.insert(key.to_string(), count.to_string());
            }
        }
    }
}
