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
    let unnamed: HashSet<String> =
        unnamed(table.location(), listed.iter().map(|file| file.location.as_str()), &reachable);
    let mut orphans: Vec<Orphan> = listed
        .into_iter()
        .filter(|file| unnamed.contains(&file.location))
        .map(|file| Orphan { path: file.location, bytes: file.size, modified_ms: file.modified_us.div_euclid(1000) })
        .filter(|orphan| orphan.modified_ms < older_than_ms)
        .collect();
    orphans.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(orphans)
}

/// Which of the files below a table's location are none of its own. In doubt a file is kept: one whose name, which no
/// other file has, is in use under another spelling of its place; and all of a table that lies below this one.
fn unnamed<'a>(
    location: &str,
    listed: impl Iterator<Item = &'a str> + Clone,
    reachable: &BTreeSet<String>,
) -> HashSet<String> {
    let root = normal(location.trim_end_matches('/'));
    let places: HashSet<String> = reachable.iter().map(|path| normal(path)).collect();
    let names: HashSet<&str> = reachable.iter().filter_map(|path| path.rsplit('/').next()).collect();
    let tables_below: BTreeSet<String> = listed
        .clone()
        .filter(|path| path.ends_with(".metadata.json"))
        .filter_map(|path| Some(normal(path.rsplit_once("/metadata/")?.0)))
        .filter(|folder| *folder != root)
        .collect();
    let is_named = |path: &str| {
        let place = normal(path);
        places.contains(&place)
            || path.rsplit('/').next().is_some_and(|name| names.contains(name))
            || tables_below
                .iter()
                .any(|folder| place.strip_prefix(folder.as_str()).is_some_and(|rest| rest.starts_with('/')))
    };
    listed.filter(|path| !is_named(path)).map(str::to_string).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_somebody_s_is_no_orphan() {
        let check = |location: &str, listed: &[&str], reachable: &[&str], expected: &[&str]| {
            let reachable = reachable.iter().map(|path| path.to_string()).collect();
            let found = unnamed(location, listed.iter().copied(), &reachable);
            assert_eq!(found, expected.iter().map(|path| path.to_string()).collect(), "{listed:?}");
        };
        let own = "s3://lake/t/metadata/1.metadata.json";
        check("s3://lake/t", &[own, "s3://lake/t/data/a.parquet"], &[own, "s3://lake/t/data/a.parquet"], &[]);
        check("s3://lake/t/", &[own, "s3://lake/t/data/b.parquet"], &[own], &["s3://lake/t/data/b.parquet"]);
        // The same place in another spelling, known and unknown.
        check("s3://lake/t", &["s3://lake/t/data/a.parquet"], &["s3a://lake/t/data/a.parquet"], &[]);
        check("s3://lake/t", &["s3://lake/t/data/a%3D1/a.parquet"], &["s3://lake/t/data/a=1/a.parquet"], &[]);
        // Another table's files, and one whose name only begins like that table's.
        let other =
            ["s3://lake/t/u/metadata/9.metadata.json", "s3://lake/t/u/data/x.parquet", "s3://lake/t/u2/x.parquet"];
        check("s3://lake/t", &other, &[own], &["s3://lake/t/u2/x.parquet"]);
    }
}
