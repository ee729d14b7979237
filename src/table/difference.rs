//! The rows in which two snapshots of a table differ.
//!
//! Rows are told apart by where they lie, so one that a rewrite moved both went and came. How the one snapshot led to
//! the other does not matter: appends, position deletes, files replaced, a roll-back, another engine's commits. Only a
//! rewrite right behind the one or right before the other is seen through (`lineage`): it moved rows and changed none.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use roaring::RoaringTreemap;

use super::error::Result;
use super::scan::{DeletedPositions, ScanFile, Selection, TableView};

/// What is to be known of the rows that changed since a snapshot.
pub enum Since {
    Rows(Difference),
    /// The snapshot was expired, or it is of a table that was made anew since.
    SnapshotGone,
    /// The columns were others then.
    OtherSchema,
}

/// The rows that came and went between two snapshots, both under the later one's schema.
pub struct Difference {
    /// With their new values.
    pub added: TableView,
    /// With their old values.
    pub removed: TableView,
    /// How many rows came and went, at most.
    pub rows: u64,
    /// How many rows the later snapshot has, at most.
    pub rows_now: u64,
}

impl TableView {
    /// The rows in which this snapshot differs from another one of the table.
    pub async fn since(&self, snapshot_id: i64) -> Result<Since> {
        let Some(named) = self.earlier(snapshot_id)? else { return Ok(Since::SnapshotGone) };
        if named.iceberg_schema().schema_id() != self.iceberg_schema().schema_id() {
            return Ok(Since::OtherSchema);
        }
        let (then, now) = self.nearest(snapshot_id)?;
        let then = then.unwrap_or(named);
        let (old, new) = (then.files(None).await?, now.files(None).await?);
        let rows_now = new.iter().map(|file| file.record_count).sum();
        let added = rows_only_in((&now, &new), (&then, &old)).await?;
        let removed = rows_only_in((&then, &old), (&now, &new)).await?;
        let rows = [&added, &removed].into_iter().map(rows_of).sum();
        let (added, removed) = (now.selecting(added, None)?, then.selecting(removed, None)?);
        Ok(Since::Rows(Difference { added, removed, rows, rows_now }))
    }

    /// Whether the table's metadata, as of this view, has the snapshot.
    pub fn knows(&self, snapshot_id: i64) -> bool {
        self.metadata().snapshot_by_id(snapshot_id).is_some()
    }
}

fn rows_of(selection: &Selection) -> u64 {
    let left_out = |file: &ScanFile| selection.left_out.get(&file.path).map_or(0, |positions| positions.len());
    selection.files.iter().map(|file| file.record_count.saturating_sub(left_out(file))).sum()
}

/// The rows that live in `here` and not in `there`.
async fn rows_only_in(here: (&TableView, &[ScanFile]), there: (&TableView, &[ScanFile])) -> Result<Selection> {
    let theirs: HashMap<&str, &ScanFile> = there.1.iter().map(|file| (file.path.as_str(), file)).collect();
    let mut whole: Vec<ScanFile> = Vec::new();
    let mut shared: Vec<(ScanFile, ScanFile)> = Vec::new();
    for file in here.1 {
        match theirs.get(file.path.as_str()) {
            None => whole.push(file.clone()),
            Some(other) if deletes(other).is_subset(&deletes(file)) => {}
            Some(other) => shared.push((file.clone(), (*other).clone())),
        }
    }
    let mut left_out: DeletedPositions = match whole.iter().any(|file| !file.deletes.is_empty()) {
        true => here.0.deleted_positions(&whole).await?,
        false => DeletedPositions::new(),
    };
    let mut files = whole;
    let (ours, others): (Vec<ScanFile>, Vec<ScanFile>) = shared.into_iter().unzip();
    let dead_here = here.0.deleted_positions(&ours).await?;
    let dead_there = there.0.deleted_positions(&others).await?;
    // The other snapshot's file is the one that has the deletes these rows are known by.
    for file in others {
        let none = Arc::<RoaringTreemap>::default();
        let gone = dead_there.get(&file.path).unwrap_or(&none).as_ref();
        let wanted = gone - dead_here.get(&file.path).unwrap_or(&none).as_ref();
        if wanted.is_empty() {
            continue;
        }
        let mut rest = RoaringTreemap::new();
        rest.insert_range(0..file.record_count);
        rest -= wanted;
        left_out.insert(file.path.clone(), Arc::new(rest));
        files.push(file);
    }
    Ok(Selection { files, left_out })
}

fn deletes(file: &ScanFile) -> HashSet<&str> {
    file.deletes.iter().map(|delete| delete.path.as_str()).collect()
}
