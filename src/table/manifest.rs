//! Reads manifests and manifest lists, and writes the ones a commit adds.

use std::sync::Arc;

use iceberg::io::FileIO;
use iceberg::spec::{
    FormatVersion, ManifestContentType, ManifestEntryRef, ManifestFile, ManifestList, ManifestListWriter,
    ManifestWriter, ManifestWriterBuilder, PartitionSpec, SchemaRef, Snapshot, TableMetadata,
};
use uuid::Uuid;

use super::error::{Error, Result};
use super::storage::situation;
use super::writer::write_error;
use crate::error::Kind;
use crate::ids::TableName;

pub(super) async fn load_list(
    table: &TableName,
    file_io: &FileIO,
    snapshot: &Snapshot,
    metadata: &TableMetadata,
) -> Result<Vec<ManifestFile>> {
    let path = snapshot.manifest_list();
    let bytes = read(file_io, path).await?;
    let list = ManifestList::parse_with_version(&bytes, metadata.format_version())
        .map_err(|error| Error::corrupt(table, format!("manifest list `{path}` is damaged"), error))?;
    Ok(list.consume_entries().into_iter().collect())
}

pub(super) async fn load(
    table: &TableName,
    file_io: &FileIO,
    manifest: &ManifestFile,
) -> Result<Vec<ManifestEntryRef>> {
    let path = &manifest.manifest_path;
    match manifest.load_manifest(file_io).await {
        Ok(manifest) => Ok(manifest.into_parts().0),
        // The crate does not tell a file that is not there from one that is damaged; asking does.
        Err(error) => match read(file_io, path).await {
            Ok(_) => Err(Error::corrupt(table, format!("manifest `{path}` is damaged"), error)),
            Err(unreadable) => Err(unreadable),
        },
    }
}

async fn read(file_io: &FileIO, path: &str) -> Result<bytes::Bytes> {
    let failed = |error: iceberg::Error| {
        situation(&error).unwrap_or_else(|| Error::Storage {
            action: "read",
            location: path.to_string(),
            kind: Kind::Unavailable,
            source: Arc::new(error),
        })
    };
    file_io.new_input(path).map_err(failed)?.read().await.map_err(failed)
}

/// False for a manifest that only remembers files that are gone.
pub(super) fn may_hold_live_files(manifest: &ManifestFile) -> bool {
    manifest.added_files_count != Some(0) || manifest.existing_files_count != Some(0)
}

/// Where a commit's manifests go. Names carry the commit id, so that files of a failed commit can be told apart.
pub(super) struct ManifestPlace<'a> {
    pub(super) file_io: &'a FileIO,
    pub(super) metadata: &'a TableMetadata,
    pub(super) commit_id: Uuid,
    pub(super) snapshot_id: i64,
}

impl ManifestPlace<'_> {
    fn folder(&self) -> String {
        let configured = self.metadata.properties().get("write.metadata.path");
        let default = || format!("{}/metadata", self.metadata.location().trim_end_matches('/'));
        configured.map(|path| path.trim_end_matches('/').to_string()).unwrap_or_else(default)
    }

    /// A writer for one manifest. Every name is new: an attempt never writes over a file of an earlier one.
    pub(super) fn writer(
        &self,
        content: ManifestContentType,
        schema: &SchemaRef,
        spec: &PartitionSpec,
    ) -> Result<(String, ManifestWriter)> {
        let path = format!("{}/{}-{}.avro", self.folder(), self.commit_id, Uuid::new_v4().simple());
        let output = self.file_io.new_output(&path).map_err(|error| write_error(&path, error))?;
        let builder = ManifestWriterBuilder::new(output, Some(self.snapshot_id), schema.clone(), spec.clone());
        let writer = match content {
            ManifestContentType::Data => builder.build_v2_data(),
            ManifestContentType::Deletes => builder.build_v2_deletes(),
        };
        Ok((path, writer))
    }

    pub(super) async fn write_list(
        &self,
        manifests: Vec<ManifestFile>,
        parent: Option<i64>,
        sequence: i64,
        attempt: u32,
    ) -> Result<String> {
        debug_assert_eq!(self.metadata.format_version(), FormatVersion::V2);
        let path = format!("{}/snap-{}-{attempt}-{}.avro", self.folder(), self.snapshot_id, self.commit_id);
        let failed = |error: iceberg::Error| write_error(&path, error);
        let output = self.file_io.new_output(&path).map_err(failed)?;
        let mut writer =
            ManifestListWriter::v2(output.writer().await.map_err(failed)?, self.snapshot_id, parent, sequence);
        writer.add_manifests(manifests.into_iter()).map_err(failed)?;
        writer.close().await.map_err(failed)?;
        Ok(path)
    }
}
