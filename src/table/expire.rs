//! Forgets old snapshots, and deletes the files that only they needed.
//!
//! Snapshots go first and files after: a crash in between leaves orphans. Markers survive, because they are table
//! properties as well.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use iceberg::spec::{MAIN_BRANCH, ManifestFile, SnapshotRef, SnapshotReference, SnapshotRetention, TableMetadata};
use iceberg::{TableRequirement, TableUpdate};

use super::catalog::Swap;
use super::commit::{CommitPolicy, marker, marker_keys};
use super::error::{Error, Result};
use super::{Table, manifest};

/// Manifest lists read at the same time.
const LISTS_AT_ONCE: usize = 16;

/// Which snapshots to keep.
#[derive(Debug, Clone, Default)]
pub struct Expiry {
    /// Snapshots made before this time may go, milliseconds since 1970.
    pub older_than_ms: i64,
    /// The newest so many of each branch stay, however old.
    pub retain_last: usize,
    /// Of each branch, no more than so many stay, however young; 0 for all of them.
    pub at_most: usize,
    /// These stay, however old: somebody goes on from them.
    pub keep: BTreeSet<i64>,
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
    table.check_owns_files("expire its snapshots")?;
    for _ in 0..policy.attempts {
        let before = table.head.metadata.clone();
        let doomed = doomed(&before, expiry, table.lake.clock().now_ms());
        if doomed.is_empty() {
            return Ok(Expired::default());
        }
        let mut updates = vec![TableUpdate::RemoveSnapshots { snapshot_ids: doomed.clone() }];
        // After this the line of snapshots is cut, and the properties speak for it.
        let markers = marker_keys(&before).filter_map(|key| Some((key.clone(), marker(&before, key)?)));
        let markers: HashMap<String, String> =
            markers.filter(|(key, value)| before.properties().get(key) != Some(value)).collect();
        if !markers.is_empty() {
            updates.push(TableUpdate::SetProperties { updates: markers });
        }
        let requirements = [
            TableRequirement::UuidMatch { uuid: before.uuid() },
            TableRequirement::RefSnapshotIdMatch {
                r#ref: MAIN_BRANCH.to_string(),
                snapshot_id: before.current_snapshot_id(),
            },
        ];
        match table.lake.catalog().swap(&table.head, &requirements, &updates).await {
            Ok(head) => {
                table.head = head;
                fail::fail_point!("expire-before-files");
                let deleted_files = delete_unneeded(&table, &before, &doomed).await?;
                tracing::info!(table = %table.name(), snapshots = doomed.len(), deleted_files, "expired snapshots");
                return Ok(Expired { snapshots: doomed, deleted_files });
            }
            Err(Swap::Lost | Swap::Busy(_)) => {}
            // A REST server compares the head's snapshot only, and refuses to forget what somebody has it forget already.
            Err(Swap::Failed(error)) => {
                let refused_at = table.metadata_location().to_string();
                table.refresh().await?;
                if table.metadata_location() == refused_at {
                    return Err(error);
                }
                continue;
            }
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

/// The snapshots that may go: not kept by a branch's age or count, and not named by a branch or tag. What a branch asks
/// for itself is kept besides what the expiry asks for.
pub(super) fn doomed(metadata: &TableMetadata, expiry: &Expiry, now_ms: i64) -> Vec<i64> {
    let mut kept: HashSet<i64> = expiry.keep.iter().copied().collect();
    let mut too_many: HashSet<i64> = HashSet::new();
    let at_most = if expiry.at_most == 0 { usize::MAX } else { expiry.at_most };
    for reference in references(metadata).into_values() {
        kept.insert(reference.snapshot_id);
        let SnapshotRetention::Branch { min_snapshots_to_keep, max_snapshot_age_ms, .. } = reference.retention else {
            continue;
        };
        let least =
            min_snapshots_to_keep.map_or(0, |least| usize::try_from(least).unwrap_or(0)).max(expiry.retain_last);
        let cutoff = max_snapshot_age_ms.map_or(expiry.older_than_ms, |age| expiry.older_than_ms.min(now_ms - age));
        let mut snapshot = metadata.snapshot_by_id(reference.snapshot_id);
        let mut position = 0;
        while let Some(current) = snapshot {
            if position < least || (current.timestamp_ms() >= cutoff && position < at_most) {
                kept.insert(current.snapshot_id());
            } else if position >= at_most {
                too_many.insert(current.snapshot_id());
            }
            position += 1;
            snapshot = current.parent_snapshot_id().and_then(|id| metadata.snapshot_by_id(id));
        }
    }
    let mut doomed: Vec<&SnapshotRef> = metadata
        .snapshots()
        .filter(|snapshot| !kept.contains(&snapshot.snapshot_id()))
        .filter(|snapshot| snapshot.timestamp_ms() < expiry.older_than_ms || too_many.contains(&snapshot.snapshot_id()))
        .collect();
    doomed.sort_by_key(|snapshot| snapshot.sequence_number());
    doomed.into_iter().map(|snapshot| snapshot.snapshot_id()).collect()
}

/// The branches and tags. The crate keeps them to itself; the metadata's JSON form has them.
pub(super) fn references(metadata: &TableMetadata) -> HashMap<String, SnapshotReference> {
    let json = serde_json::to_value(metadata).unwrap_or_default();
    let named = json.get("refs").cloned().and_then(|refs| serde_json::from_value(refs).ok());
    let mut references: HashMap<String, SnapshotReference> = named.unwrap_or_default();
    if let Some(id) = metadata.current_snapshot_id() {
        let unnamed = || SnapshotReference::new(id, SnapshotRetention::branch(None, None, None));
        references.entry(MAIN_BRANCH.to_string()).or_insert_with(unnamed);
    }
    references
}

/// Deletes manifest lists, manifests and data files that the expired snapshots had and no remaining one has.
async fn delete_unneeded(table: &Table, before: &Arc<TableMetadata>, doomed: &[i64]) -> Result<usize> {
    let file_io = table.lake.storage().file_io();
    let mut kept_manifests: HashSet<String> = HashSet::new();
    let mut kept: Vec<ManifestFile> = Vec::new();
    let snapshots: Vec<SnapshotRef> = table.metadata().snapshots().cloned().collect();
    let mut lists = stream::iter(snapshots)
        .map(|snapshot| {
            // Its own: with references in it the compiler cannot tell that the future may go to another thread.
            let table = table.clone();
            async move {
                let file_io = table.lake.storage().file_io();
                manifest::load_list(table.name(), file_io, &snapshot, table.metadata()).await
            }
        })
        .buffered(LISTS_AT_ONCE);
    while let Some(list) = lists.try_next().await? {
        for manifest_file in list {
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
    let deleted_files = unneeded.len();
    // What cannot be deleted now is an orphan, which harms nobody.
    if let Err(error) = table.lake.storage().delete_many(unneeded).await {
        tracing::warn!(table = %table.name(), %error, "could not delete every file that is not needed any more");
    }
    Ok(deleted_files)
}
