//! Forgets old snapshots, and deletes the files that only they needed.
//!
//! Snapshots go first and files after: a crash in between leaves orphans. Markers survive, because they are table
//! properties as well.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use iceberg::spec::{ManifestFile, SnapshotRef, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};

use super::catalog::Swap;
use super::commit::CommitPolicy;
use super::error::{Error, Result};
use super::{Table, manifest};

/// Which snapshots to keep.
#[derive(Debug, Clone, Copy)]
pub struct Expiry {
    /// Snapshots made before this time may go, milliseconds since 1970.
    pub older_than_ms: i64,
    /// The newest so many of each branch stay, however old.
    pub retain_last: usize,
}

/// What an expiry did.
#[derive(Debug, Clone, Default)]
pub struct Expired {
    pub snapshots: Vec<i64>,
    pub deleted_files: usize,
}

pub(super) async fn run(table: &Table, expiry: &Expiry) -> Result<Expired> {
    let policy = CommitPolicy::default();
    let mut table = table.clone();
    table.refresh().await?;
    for _ in 0..policy.attempts {
        let before = table.head.metadata.clone();
        let doomed = doomed(table.name(), &before, expiry)?;
        if doomed.is_empty() {
            return Ok(Expired::default());
        }
        let updates = [TableUpdate::RemoveSnapshots { snapshot_ids: doomed.clone() }];
        let requirements = [
            TableRequirement::UuidMatch { uuid: before.uuid() },
            TableRequirement::RefSnapshotIdMatch {
                r#ref: iceberg::spec::MAIN_BRANCH.to_string(),
                snapshot_id: before.current_snapshot_id(),
            },
        ];
        match table.lake.catalog().swap(&table.head, &requirements, &updates).await {
            Ok(head) => {
                table.head = head;
                let deleted_files = delete_unneeded(&table, &before, &doomed).await?;
                tracing::info!(table = %table.name(), snapshots = doomed.len(), deleted_files, "expired snapshots");
                return Ok(Expired { snapshots: doomed, deleted_files });
            }
            Err(Swap::Lost | Swap::Busy(_)) => {}
            Err(Swap::Failed(error)) => return Err(error),
            // Expiring is idempotent: whatever happened, the next look at the head says what is left to do. Files of
            // snapshots that did go are orphans then.
            Err(Swap::Unknown(error)) => {
                tracing::warn!(table = %table.name(), %error, "no answer to an expiry; looking again");
            }
        }
        tokio::time::sleep(policy.pause_min).await;
        table.refresh().await?;
    }
    Err(Error::Contention { table: table.name().clone(), attempts: policy.attempts })
}

/// The snapshots that may go: not kept by a branch's age or count, and not named by a branch or tag.
fn doomed(table: &crate::ids::TableName, metadata: &TableMetadata, expiry: &Expiry) -> Result<Vec<i64>> {
    let mut kept: HashSet<i64> = HashSet::new();
    for reference in references(table, metadata)? {
        kept.insert(reference.snapshot_id);
        if !reference.is_branch {
            continue;
        }
        let mut snapshot = metadata.snapshot_by_id(reference.snapshot_id);
        let mut position = 0;
        while let Some(current) = snapshot {
            if position < expiry.retain_last || current.timestamp_ms() >= expiry.older_than_ms {
                kept.insert(current.snapshot_id());
            }
            position += 1;
            snapshot = current.parent_snapshot_id().and_then(|id| metadata.snapshot_by_id(id));
        }
    }
    let mut doomed: Vec<&SnapshotRef> = metadata
        .snapshots()
        .filter(|snapshot| !kept.contains(&snapshot.snapshot_id()) && snapshot.timestamp_ms() < expiry.older_than_ms)
        .collect();
    doomed.sort_by_key(|snapshot| snapshot.sequence_number());
    Ok(doomed.into_iter().map(|snapshot| snapshot.snapshot_id()).collect())
}

struct Reference {
    snapshot_id: i64,
    is_branch: bool,
}

/// The crate keeps branches and tags to itself; the metadata's JSON form has them.
fn references(table: &crate::ids::TableName, metadata: &TableMetadata) -> Result<Vec<Reference>> {
    let json = serde_json::to_value(metadata)
        .map_err(|error| Error::corrupt(table, "its metadata cannot be written as JSON", error))?;
    let refs = json.get("refs").and_then(|refs| refs.as_object());
    let named = refs.into_iter().flatten().filter_map(|(_, reference)| {
        Some(Reference {
            snapshot_id: reference.get("snapshot-id")?.as_i64()?,
            is_branch: reference.get("type")?.as_str()? == "branch",
        })
    });
    let current = metadata.current_snapshot_id().map(|snapshot_id| Reference { snapshot_id, is_branch: true });
    Ok(named.chain(current).collect())
}

/// Deletes manifest lists, manifests and data files that the expired snapshots had and no remaining one has.
async fn delete_unneeded(table: &Table, before: &Arc<TableMetadata>, doomed: &[i64]) -> Result<usize> {
    let file_io = table.lake.storage().file_io();
    let mut kept_manifests: HashSet<String> = HashSet::new();
    let mut kept: Vec<ManifestFile> = Vec::new();
    for snapshot in table.metadata().snapshots() {
        for manifest_file in manifest::load_list(table.name(), file_io, snapshot, table.metadata()).await? {
            if kept_manifests.insert(manifest_file.manifest_path.clone()) {
                kept.push(manifest_file);
            }
        }
    }
    let mut unneeded: BTreeSet<String> = BTreeSet::new();
    let mut candidates: HashSet<String> = HashSet::new();
    let mut seen: HashSet<String> = HashSet::new();
    for id in doomed {
        let Some(snapshot) = before.snapshot_by_id(*id) else { continue };
        for manifest_file in manifest::load_list(table.name(), file_io, snapshot, before).await? {
            let path = &manifest_file.manifest_path;
            if kept_manifests.contains(path) || !seen.insert(path.clone()) {
                continue;
            }
            for entry in manifest::load(table.name(), file_io, &manifest_file).await? {
                candidates.insert(entry.file_path().to_string());
            }
            unneeded.insert(path.clone());
        }
        unneeded.insert(snapshot.manifest_list().to_string());
    }
    // What a remaining manifest lists as live is still needed. Stop looking once nothing is in question any more.
    for manifest_file in kept.iter().filter(|manifest| manifest::may_hold_live_files(manifest)) {
        if candidates.is_empty() {
            break;
        }
        for entry in manifest::load(table.name(), file_io, manifest_file).await? {
            if entry.is_alive() {
                candidates.remove(entry.file_path());
            }
        }
    }
    unneeded.extend(candidates);
    for path in &unneeded {
        table.lake.forget_file(path).await;
    }
    Ok(unneeded.len())
}
