//! Finds files that lie in a table's folder and belong to none of its snapshots: what a crash leaves behind.

use std::collections::{BTreeSet, HashSet};

use futures::TryStreamExt;

use super::error::Result;
use super::{Table, manifest};

/// A file nobody names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orphan {
    pub path: String,
    pub bytes: u64,
    /// When it was written, milliseconds since 1970.
    pub modified_ms: i64,
}

/// Files older than `older_than_ms` that are not reachable. Younger ones may belong to a commit on its way.
pub(super) async fn find(table: &Table, older_than_ms: i64) -> Result<Vec<Orphan>> {
    // The listing comes first: what is committed after it is then among the reachable files.
    let listed = table.lake.storage().list(table.location()).try_collect::<Vec<_>>().await?;
    let mut present = table.clone();
    present.refresh().await?;
    let reachable = reachable_files(&present).await?;
    let reachable: HashSet<String> = reachable.iter().map(|path| normal(path)).collect();
    let mut orphans: Vec<Orphan> = listed
        .into_iter()
        .filter(|file| !reachable.contains(&normal(&file.location)))
        .map(|file| Orphan { path: file.location, bytes: file.size, modified_ms: file.modified_us.div_euclid(1000) })
        .filter(|orphan| orphan.modified_ms < older_than_ms)
        .collect();
    orphans.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(orphans)
}

/// Deletes what [`find`] finds. A table that may share files with another keeps them.
pub(super) async fn remove(table: &Table, older_than_ms: i64) -> Result<Vec<Orphan>> {
    table.check_owns_files("delete files that none of its snapshots names")?;
    let orphans = find(table, older_than_ms).await?;
    table.lake.storage().delete_many(orphans.iter().map(|orphan| orphan.path.clone())).await?;
    if !orphans.is_empty() {
        let bytes: u64 = orphans.iter().map(|orphan| orphan.bytes).sum();
        tracing::info!(table = %table.name(), files = orphans.len(), bytes, "deleted orphans");
    }
    Ok(orphans)
}

/// Every file any snapshot of the table names, with its metadata files.
pub(super) async fn reachable_files(table: &Table) -> Result<BTreeSet<String>> {
    let metadata = table.metadata();
    let file_io = table.lake.storage().file_io();
    let mut files: BTreeSet<String> = BTreeSet::from([table.metadata_location().to_string()]);
    files.extend(metadata.metadata_log().iter().map(|entry| entry.metadata_file.clone()));
    files.extend(metadata.statistics_iter().map(|statistics| statistics.statistics_path.clone()));
    files.extend(metadata.partition_statistics_iter().map(|statistics| statistics.statistics_path.clone()));
    // Hadoop-style tables keep a pointer file beside their metadata.
    files.insert(format!("{}/metadata/version-hint.text", table.location().trim_end_matches('/')));
    for snapshot in metadata.snapshots() {
        files.insert(snapshot.manifest_list().to_string());
        for manifest_file in manifest::load_list(table.name(), file_io, snapshot, metadata).await? {
            if !files.insert(manifest_file.manifest_path.clone()) {
                continue;
            }
            for entry in manifest::load(table.name(), file_io, &manifest_file).await? {
                files.insert(entry.file_path().to_string());
            }
        }
    }
    Ok(files)
}

/// One spelling for one place: engines write `s3a://` for `s3://`, and a path with or without `file:`.
fn normal(location: &str) -> String {
    let location = location.strip_prefix("file://").or_else(|| location.strip_prefix("file:")).unwrap_or(location);
    match location.strip_prefix("s3a://").or_else(|| location.strip_prefix("s3n://")) {
        Some(rest) => format!("s3://{rest}"),
        None => location.to_string(),
    }
}
