//! One attempt: the updates that make a change out of one particular head, and the files they name.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use iceberg::spec::{
    DataContentType, DataFile, MAIN_BRANCH, ManifestContentType, ManifestEntry, ManifestFile, Operation, PartitionSpec,
    PartitionSpecRef, SchemaRef, Snapshot, SnapshotReference, SnapshotRetention, Struct, Summary, TableMetadata,
};
use iceberg::{TableRequirement, TableUpdate};

use super::premise::{broken, marker, marker_keys};
use super::totals::{Changes, Totals};
use super::{COMMIT_ID, Change, Commit, Kind};
use crate::table::Table;
use crate::table::catalog::Head;
use crate::table::error::{Broken, Error, Result};
use crate::table::expire::references;
use crate::table::lineage::{ROWS_OF, rows_of};
use crate::table::manifest::{self, ManifestPlace};
use crate::table::scan::ScanFile;
use crate::table::writer::write_error;

/// Manifests of the files a change adds. They name no sequence number and no parent, so they serve every attempt.
#[derive(Default)]
pub(super) struct NewManifests {
    written: Option<Vec<ManifestFile>>,
}

impl NewManifests {
    pub(super) async fn discard(&mut self, table: &Table) {
        for manifest in self.written.take().into_iter().flatten() {
            table.lake.forget_file(&manifest.manifest_path).await;
        }
    }
}

/// A prepared attempt.
pub(super) struct Attempt {
    pub(super) updates: Vec<TableUpdate>,
    pub(super) requirements: Vec<TableRequirement>,
    /// Files only this attempt needs.
    files: Vec<String>,
}

impl Attempt {
    pub(super) async fn prepare(commit: &mut Commit, number: u32) -> Result<Attempt> {
        let metadata = commit.head.metadata.clone();
        let table = commit.change.table.name().clone();
        let markers = commit.change.premise.check(&table, &metadata)?;
        check_schema(&commit.change, &metadata)?;
        let mut updates = Vec::new();
        let mut requirements = vec![TableRequirement::UuidMatch { uuid: metadata.uuid() }];
        let mut files = Vec::new();
        if let Some(evolved) = &commit.change.schema {
            updates.push(TableUpdate::AddSchema { schema: evolved.schema.as_ref().clone() });
            updates.push(TableUpdate::SetCurrentSchema { schema_id: -1 });
            requirements.push(TableRequirement::CurrentSchemaIdMatch { current_schema_id: evolved.base_schema_id });
            requirements.push(TableRequirement::LastAssignedFieldIdMatch {
                last_assigned_field_id: evolved.base_last_column_id,
            });
        }
        let mut set: BTreeMap<String, String> = commit.change.set.clone();
        set.extend(markers.iter().cloned());
        if !set.is_empty() {
            updates.push(TableUpdate::SetProperties { updates: set.into_iter().collect() });
        }
        if !commit.change.unset.is_empty() {
            updates.push(TableUpdate::RemoveProperties { removals: commit.change.unset.clone() });
        }
        if commit.change.makes_snapshot() {
            requirements.push(TableRequirement::RefSnapshotIdMatch {
                r#ref: MAIN_BRANCH.to_string(),
                snapshot_id: metadata.current_snapshot_id(),
            });
            let snapshot = match build_snapshot(commit, &metadata, &markers, number, &mut files).await {
                Ok(snapshot) => snapshot,
                Err(error) => {
                    Attempt { updates: vec![], requirements: vec![], files }.discard(&commit.change.table).await;
                    return Err(error);
                }
            };
            updates.push(TableUpdate::AddSnapshot { snapshot });
            updates.push(TableUpdate::SetSnapshotRef {
                ref_name: MAIN_BRANCH.to_string(),
                reference: SnapshotReference::new(commit.snapshot_id, retention(&commit.head)),
            });
        }
        Ok(Attempt { updates, requirements, files })
    }

    pub(super) async fn discard(self, table: &Table) {
        for path in &self.files {
            table.lake.forget_file(path).await;
        }
    }
}

/// What the main branch says about keeping snapshots, which a commit must not change.
fn retention(head: &Head) -> SnapshotRetention {
    let read = || match references(&head.metadata).remove(MAIN_BRANCH) {
        Some(reference) => reference.retention,
        None => SnapshotRetention::branch(None, None, None),
    };
    head.retention.get_or_init(read).clone()
}

/// Files carry the field ids of the schema they were planned for.
fn check_schema(change: &Change, metadata: &TableMetadata) -> Result<()> {
    let Some(evolved) = &change.schema else { return Ok(()) };
    let found = metadata.current_schema_id();
    if found != evolved.base_schema_id || metadata.last_column_id() != evolved.base_last_column_id {
        return Err(broken(change.table.name(), Broken::Schema { expected: evolved.base_schema_id, found }));
    }
    Ok(())
}

async fn build_snapshot(
    commit: &mut Commit,
    metadata: &Arc<TableMetadata>,
    markers: &[(String, String)],
    number: u32,
    files: &mut Vec<String>,
) -> Result<Snapshot> {
    let change = &commit.change;
    let storage = change.table.lake.storage();
    let schema = match &change.schema {
        Some(evolved) => evolved.schema.clone(),
        None => metadata.current_schema().clone(),
    };
    let place = ManifestPlace {
        file_io: storage.file_io(),
        metadata,
        commit_id: commit.commit_id,
        snapshot_id: commit.snapshot_id,
    };
    let parent = metadata.current_snapshot();
    let carried = match parent {
        Some(parent) => manifest::load_list(change.table.name(), storage.file_io(), parent, metadata).await?,
        None => Vec::new(),
    };
    let mut totals = Totals::of_parent(change.table.name(), storage, parent.map(Arc::as_ref), &carried).await?;
    let mut removal = Removal { change, place: &place, schema: &schema, files, removed: Vec::new() };
    let kept = removal.apply(carried).await?;
    let removed = removal.removed;

    if commit.manifests.written.is_none() {
        commit.manifests.written = Some(write_added(change, &place, &schema).await?);
    }
    fail::fail_point!("commit-after-manifests");
    let added: Vec<ManifestFile> = commit.manifests.written.clone().unwrap_or_default();

    let mut changes = Changes::default();
    for (file, spec_id) in &removed {
        changes.remove(file, *spec_id);
        totals.add(file, -1);
    }
    for file in &change.add {
        changes.add(&file.file, file.spec_id);
        totals.add(&file.file, 1);
    }

    // New manifests first, as other writers do: the latest files are found first.
    let mut list = added;
    list.extend(merge(change, &place, &schema, metadata, kept, files).await?);
    let sequence = metadata.next_sequence_number();
    let list_path = place.write_list(list, metadata.current_snapshot_id(), sequence, number).await?;
    files.push(list_path.clone());
    fail::fail_point!("commit-after-manifest-list");

    let mut properties: HashMap<String, String> = change.notes.clone().into_iter().collect();
    if let (Kind::Rewrite | Kind::Manifests, Some(parent)) = (change.kind, metadata.current_snapshot_id()) {
        properties.insert(ROWS_OF.to_string(), rows_of(metadata, parent).to_string());
    }
    // Markers this change does not move are stamped again, so that the newest snapshot always has them all.
    for key in marker_keys(metadata) {
        if let Some(value) = marker(metadata, key) {
            properties.insert(key.clone(), value);
        }
    }
    properties.extend(markers.iter().cloned());
    changes.write_to(&mut properties);
    totals.write_to(&mut properties);
    properties.insert(COMMIT_ID.to_string(), commit.commit_id.to_string());
    properties.insert("engine-name".to_string(), "icestream".to_string());
    properties.insert("engine-version".to_string(), env!("CARGO_PKG_VERSION").to_string());

    let schema_id = match &change.schema {
        Some(evolved) => evolved.schema.schema_id(),
        None => metadata.current_schema_id(),
    };
    // Clocks differ between writers; a table's history only goes forward.
    let timestamp_ms = change.table.lake.clock().now_ms().max(metadata.last_updated_ms());
    Ok(Snapshot::builder()
        .with_snapshot_id(commit.snapshot_id)
        .with_parent_snapshot_id(metadata.current_snapshot_id())
        .with_sequence_number(sequence)
        .with_timestamp_ms(timestamp_ms)
        .with_manifest_list(list_path)
        .with_summary(Summary { operation: operation(change, &removed), additional_properties: properties })
        .with_schema_id(schema_id)
        .build())
}

fn operation(change: &Change, removed: &[(DataFile, i32)]) -> Operation {
    let adds_rows = change.add.iter().any(|file| !file.holds_deletes());
    let takes_rows = !removed.is_empty() || change.add.iter().any(|file| file.holds_deletes());
    match (change.kind, adds_rows, takes_rows) {
        (Kind::Rewrite | Kind::Manifests, _, _) => Operation::Replace,
        (Kind::ReplaceAll, true, _) => Operation::Overwrite,
        (_, true, true) => Operation::Overwrite,
        (_, false, true) => Operation::Delete,
        (_, _, false) => Operation::Append,
    }
}

fn spec_of(change: &Change, metadata: &TableMetadata, spec_id: i32) -> Result<PartitionSpecRef> {
    metadata.partition_spec_by_id(spec_id).cloned().ok_or_else(|| Error::Corrupt {
        table: change.table.name().clone(),
        problem: format!("partition spec {spec_id} is not there"),
        source: None,
    })
}

/// A schema that still has the spec's source columns: another engine may have dropped one after it changed the spec.
fn schema_for(metadata: &TableMetadata, current: &SchemaRef, spec: &PartitionSpec) -> SchemaRef {
    let mut schemas = std::iter::once(current).chain(metadata.schemas_iter());
    schemas.find(|schema| spec.partition_type(schema).is_ok()).unwrap_or(current).clone()
}

/// One manifest per content and partition spec for everything the change adds.
async fn write_added(change: &Change, place: &ManifestPlace<'_>, schema: &SchemaRef) -> Result<Vec<ManifestFile>> {
    let mut groups: BTreeMap<(bool, i32), Vec<&DataFile>> = BTreeMap::new();
    for file in &change.add {
        groups.entry((file.holds_deletes(), file.spec_id)).or_default().push(&file.file);
    }
    // Rewritten rows keep their age; -1 lets the rest take the commit's own.
    let age = change.remove.iter().map(|file| file.sequence).max().filter(|_| change.kind == Kind::Rewrite);
    let mut written = Vec::new();
    for ((holds_deletes, spec_id), files) in groups {
        let content = if holds_deletes { ManifestContentType::Deletes } else { ManifestContentType::Data };
        let (path, mut writer) = place.writer(content, schema, spec_of(change, place.metadata, spec_id)?.as_ref())?;
        let sequence = age.filter(|_| !holds_deletes).unwrap_or(-1);
        for file in files {
            writer.add_file(file.clone(), sequence).map_err(|error| write_error(&path, error))?;
        }
        written.push(writer.write_manifest_file().await.map_err(|error| write_error(&path, error))?);
    }
    Ok(written)
}

/// Takes files out of the manifests that list them, checking on the way that they may be taken.
struct Removal<'a> {
    change: &'a Change,
    place: &'a ManifestPlace<'a>,
    schema: &'a SchemaRef,
    files: &'a mut Vec<String>,
    removed: Vec<(DataFile, i32)>,
}

impl Removal<'_> {
    async fn apply(&mut self, manifests: Vec<ManifestFile>) -> Result<Vec<ManifestFile>> {
        // A manifest that only remembers removed files has served its snapshot.
        let manifests: Vec<ManifestFile> = manifests.into_iter().filter(manifest::may_hold_live_files).collect();
        if self.change.kind == Kind::ReplaceAll {
            let mut kept = Vec::new();
            for manifest_file in manifests {
                kept.extend(self.rewrite(&manifest_file, |_| true).await?);
            }
            return Ok(kept);
        }
        if self.change.remove.is_empty() && self.change.touched.is_empty() {
            return Ok(manifests);
        }
        self.check_no_new_deletes(&manifests).await?;
        let wanted: HashSet<&str> = self.change.remove.iter().map(|file| file.path.as_str()).collect();
        // Delete files about one removed data file go with it. Those about several stay; without their target they do
        // nothing.
        let own_deletes: HashSet<&str> = self
            .change
            .remove
            .iter()
            .flat_map(ScanFile::own_deletes)
            .chain(&self.change.outdone)
            .map(|delete| delete.path.as_str())
            .collect();
        let listed_in: HashSet<&str> = self
            .change
            .remove
            .iter()
            .flat_map(|file| {
                std::iter::once(file.manifest.as_ref())
                    .chain(file.deletes.iter().map(|delete| delete.manifest.as_ref()))
            })
            .chain(self.change.outdone.iter().map(|delete| delete.manifest.as_ref()))
            .collect();
        let mut live: HashSet<String> = HashSet::new();
        let present: HashSet<&str> = manifests.iter().map(|manifest| manifest.manifest_path.as_str()).collect();
        // A manifest is never changed in place: while it is listed, so are its live files.
        for file in &self.change.touched {
            if present.contains(file.manifest.as_ref()) {
                live.insert(file.path.clone());
            }
        }
        // Somebody may have merged manifests since; then every one may be the right one.
        let all_where_planned = listed_in.iter().all(|path| present.contains(path))
            && self.change.touched.iter().all(|file| live.contains(&file.path));
        let mut kept = Vec::new();
        for manifest_file in &manifests {
            if all_where_planned && !listed_in.contains(manifest_file.manifest_path.as_str()) {
                kept.push(manifest_file.clone());
                continue;
            }
            let is_removed =
                |entry: &ManifestEntry| wanted.contains(entry.file_path()) || own_deletes.contains(entry.file_path());
            kept.extend(self.rewrite_noting(manifest_file, is_removed, &mut live).await?);
        }
        let removed: HashSet<&str> = self.removed.iter().map(|(file, _)| file.file_path()).collect();
        let gone = |path: &str| Err(broken(self.change.table.name(), Broken::FileGone { path: path.to_string() }));
        if let Some(path) = wanted.iter().find(|path| !removed.contains(**path)) {
            return gone(path);
        }
        if let Some(file) = self.change.touched.iter().find(|file| !live.contains(&file.path)) {
            return gone(&file.path);
        }
        Ok(kept)
    }

    async fn rewrite(
        &mut self,
        manifest_file: &ManifestFile,
        is_removed: impl Fn(&ManifestEntry) -> bool,
    ) -> Result<Option<ManifestFile>> {
        self.rewrite_noting(manifest_file, is_removed, &mut HashSet::new()).await
    }

    /// Writes the manifest again without the removed files, which it keeps as removed by this snapshot. Notes in `live`
    /// what stays. A manifest nothing is removed from is returned as it is.
    async fn rewrite_noting(
        &mut self,
        manifest_file: &ManifestFile,
        is_removed: impl Fn(&ManifestEntry) -> bool,
        live: &mut HashSet<String>,
    ) -> Result<Option<ManifestFile>> {
        let table = self.change.table.name();
        let entries = manifest::load(table, self.place.file_io, manifest_file).await?;
        let alive: Vec<_> = entries.iter().filter(|entry| entry.is_alive()).collect();
        live.extend(alive.iter().filter(|entry| !is_removed(entry)).map(|entry| entry.file_path().to_string()));
        if !alive.iter().any(|entry| is_removed(entry)) {
            return Ok(Some(manifest_file.clone()));
        }
        let spec = spec_of(self.change, self.place.metadata, manifest_file.partition_spec_id)?;
        let schema = schema_for(self.place.metadata, self.schema, &spec);
        let (path, mut writer) = self.place.writer(manifest_file.content, &schema, spec.as_ref())?;
        for entry in alive {
            let sequence = entry.sequence_number().unwrap_or(manifest_file.sequence_number);
            let file_sequence = entry.file_sequence_number.or(Some(manifest_file.sequence_number));
            let outcome = if is_removed(entry) {
                self.removed.push((entry.data_file.clone(), manifest_file.partition_spec_id));
                writer.add_delete_file(entry.data_file.clone(), sequence, file_sequence)
            } else {
                let snapshot = entry.snapshot_id().unwrap_or(manifest_file.added_snapshot_id);
                writer.add_existing_file(entry.data_file.clone(), snapshot, sequence, file_sequence)
            };
            outcome.map_err(|error| write_error(&path, error))?;
        }
        let written = writer.write_manifest_file().await.map_err(|error| write_error(&path, error))?;
        self.files.push(path);
        Ok(Some(written))
    }

    /// A removed file's rows may have been deleted since the plan; the new files would bring them back.
    async fn check_no_new_deletes(&self, manifests: &[ManifestFile]) -> Result<()> {
        let Some(planned) = self.change.planned_sequence.filter(|_| !self.change.remove.is_empty()) else {
            return Ok(());
        };
        let newer: Vec<ManifestFile> = manifests
            .iter()
            .filter(|manifest| manifest.content == ManifestContentType::Deletes && manifest.sequence_number > planned)
            .cloned()
            .collect();
        if newer.is_empty() {
            return Ok(());
        }
        let deletes =
            crate::table::scan::load_deletes(self.change.table.name(), self.change.table.lake.storage(), newer).await?;
        let by_path: HashSet<&str> = self.change.remove.iter().map(|file| file.path.as_str()).collect();
        let by_partition: HashMap<(i32, &Struct), &str> =
            self.change.remove.iter().map(|file| ((file.spec_id, file.data.partition()), file.path.as_str())).collect();
        for delete in deletes.iter().filter(|delete| delete.sequence > planned) {
            let hit = match &delete.covers {
                // Those of an unpartitioned spec reach into every partition.
                _ if delete.data.content_type() == DataContentType::EqualityDeletes => {
                    self.change.remove.first().map(|file| file.path.as_str())
                }
                Some(path) => by_path.get(path.as_str()).copied(),
                None => by_partition.get(&(delete.spec_id, delete.data.partition())).copied(),
            };
            if let Some(path) = hit {
                return Err(broken(self.change.table.name(), Broken::NewDeletes { path: path.to_string() }));
            }
        }
        Ok(())
    }
}

/// The small manifests to put together: those of one content and partition spec, where there are many of them. Of the
/// snapshot in the making, none: manifests that its attempt rewrote have no sequence number yet.
fn small_manifests(
    change: Option<&Change>,
    metadata: &TableMetadata,
    manifests: &[ManifestFile],
    making: Option<i64>,
) -> BTreeMap<(bool, i32), Vec<Vec<usize>>> {
    let properties = metadata.properties();
    let number = |key: &str, default: i64| properties.get(key).and_then(|text| text.parse().ok()).unwrap_or(default);
    let is_asked_for = change.is_none_or(|change| change.kind == Kind::Manifests);
    if !is_asked_for && properties.get("commit.manifest-merge.enabled").is_some_and(|value| value == "false") {
        return BTreeMap::new();
    }
    let target_bytes = number("commit.manifest.target-size-bytes", 8 << 20);
    let least = match is_asked_for {
        true => 2,
        false => number("commit.manifest.min-count-to-merge", DEFAULT_MIN_COUNT_TO_MERGE).max(2) as usize,
    };
    let is_small =
        |manifest: &ManifestFile| manifest.manifest_length < target_bytes && Some(manifest.added_snapshot_id) != making;
    let mut groups: BTreeMap<(bool, i32), Vec<usize>> = BTreeMap::new();
    for (index, manifest) in manifests.iter().enumerate().filter(|(_, manifest)| is_small(manifest)) {
        let key = (manifest.content == ManifestContentType::Deletes, manifest.partition_spec_id);
        groups.entry(key).or_default().push(index);
    }
    groups.retain(|_, members| members.len() >= least);
    groups.into_iter().map(|(key, members)| (key, bins(manifests, &members, target_bytes))).collect()
}

/// How many manifests the head has, and how many there would be once the small ones are put together.
pub(in crate::table) async fn manifests_to_merge(table: &Table) -> Result<(usize, usize)> {
    let metadata = table.metadata();
    let Some(snapshot) = metadata.current_snapshot() else { return Ok((0, 0)) };
    let list = manifest::load_list(table.name(), table.lake.storage().file_io(), snapshot, metadata).await?;
    let live: Vec<ManifestFile> = list.iter().filter(|file| manifest::may_hold_live_files(file)).cloned().collect();
    let bins = small_manifests(None, metadata, &live, None);
    let spared: usize = bins.values().flatten().map(|bin| bin.len() - 1).sum();
    Ok((list.len(), live.len() - spared))
}

/// Merges small manifests once there are many, so that planning stays bounded however many commits there were.
async fn merge(
    change: &Change,
    place: &ManifestPlace<'_>,
    schema: &SchemaRef,
    metadata: &TableMetadata,
    manifests: Vec<ManifestFile>,
    files: &mut Vec<String>,
) -> Result<Vec<ManifestFile>> {
    let groups = small_manifests(Some(change), metadata, &manifests, Some(place.snapshot_id));
    if groups.is_empty() {
        return Ok(manifests);
    }
    let merged_away: HashSet<usize> = groups.values().flatten().flatten().copied().collect();
    let mut result: Vec<ManifestFile> = Vec::new();
    for ((_, spec_id), bins) in groups {
        let spec = spec_of(change, metadata, spec_id)?;
        for bin in bins {
            // Rewriting one alone would gain nothing, at every commit again.
            if let [alone] = bin.as_slice() {
                result.push(manifests[*alone].clone());
                continue;
            }
            let schema = schema_for(metadata, schema, &spec);
            let (path, mut writer) = place.writer(manifests[bin[0]].content, &schema, spec.as_ref())?;
            for index in bin {
                let manifest_file = &manifests[index];
                for entry in manifest::load(change.table.name(), place.file_io, manifest_file).await? {
                    if !entry.is_alive() {
                        continue;
                    }
                    writer
                        .add_existing_file(
                            entry.data_file.clone(),
                            entry.snapshot_id().unwrap_or(manifest_file.added_snapshot_id),
                            entry.sequence_number().unwrap_or(manifest_file.sequence_number),
                            entry.file_sequence_number.or(Some(manifest_file.sequence_number)),
                        )
                        .map_err(|error| write_error(&path, error))?;
                }
            }
            result.push(writer.write_manifest_file().await.map_err(|error| write_error(&path, error))?);
            files.push(path);
        }
    }
    let untouched = manifests.into_iter().enumerate().filter(|(index, _)| !merged_away.contains(index));
    result.extend(untouched.map(|(_, manifest)| manifest));
    Ok(result)
}

/// Other writers' default is 100; each small manifest costs a read when planning, and a streaming table makes one per
/// commit.
const DEFAULT_MIN_COUNT_TO_MERGE: i64 = 50;

/// Fills bins up to the target size, in order.
fn bins(manifests: &[ManifestFile], members: &[usize], target_bytes: i64) -> Vec<Vec<usize>> {
    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut filled = i64::MAX;
    for &index in members {
        let bytes = manifests[index].manifest_length;
        match bins.last_mut() {
            Some(bin) if filled.saturating_add(bytes) <= target_bytes => {
                bin.push(index);
                filled += bytes;
            }
            _ => {
                bins.push(vec![index]);
                filled = bytes;
            }
        }
    }
    bins
}
