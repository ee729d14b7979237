//! What catalogs that only keep a pointer share: writing the next metadata file, and cleaning up after it.

use std::str::FromStr;
use std::sync::Arc;

use iceberg::spec::{FormatVersion, TableMetadata, TableMetadataBuilder};
use iceberg::{MetadataLocation, TableCreation, TableRequirement, TableUpdate};
use serde::Deserialize;
use uuid::Uuid;

use super::{Head, NewTable, Swap};
use crate::error::{Kind, Situation};
use crate::ids::TableName;
use crate::table::error::{Error, Result};
use crate::table::storage::{Storage, situation};

/// A metadata file that is written, and that no catalog points to yet.
pub(super) struct Staged {
    pub(super) metadata: Arc<TableMetadata>,
    pub(super) location: String,
    /// Metadata files that fall off the log once this one is current.
    expired: Vec<String>,
}

impl Staged {
    /// The head once the catalog points to it.
    pub(super) fn into_head(self, table: &TableName) -> Head {
        Head::new(table, self.metadata, self.location)
    }
}

/// Reads the metadata behind a pointer, unless it is the one already known.
pub(super) async fn read(
    storage: &Storage,
    table: &TableName,
    location: &str,
    known: Option<&Head>,
) -> Result<Arc<TableMetadata>> {
    if let Some(known) = known.filter(|known| known.metadata_location == location) {
        return Ok(known.metadata.clone());
    }
    let metadata = match TableMetadata::read_from(storage.file_io(), location).await {
        Ok(metadata) => metadata,
        Err(error) => return Err(unreadable(storage, table, location, error).await),
    };
    check_supported(table, &metadata)?;
    Ok(Arc::new(metadata))
}

async fn unreadable(storage: &Storage, table: &TableName, location: &str, error: iceberg::Error) -> Error {
    if let Some(known) = situation(&error) {
        return match known.kind() {
            Kind::Corrupt => Error::corrupt(table, format!("its metadata file `{location}` is not there"), known),
            _ => known,
        };
    }
    if let Ok(bytes) = storage.read(location).await
        && let Some(error) = newer_format(table, &bytes)
    {
        return error;
    }
    Error::corrupt(table, format!("its metadata file `{location}` does not parse"), error)
}

/// A format that came after this program fails to parse in ways that do not name the reason.
pub(super) fn newer_format(table: &TableName, metadata: &[u8]) -> Option<Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "kebab-case")]
    struct Version {
        format_version: u32,
    }
    let Version { format_version } = serde_json::from_slice(metadata).ok()?;
    (format_version != 2)
        .then(|| Error::Unsupported { table: table.clone(), feature: format!("format version {format_version}") })
}

/// Whether this is a table that we may read and write, for every catalog.
pub(super) fn check_supported(table: &TableName, metadata: &TableMetadata) -> Result<()> {
    let feature = match metadata.format_version() {
        FormatVersion::V1 => Some("format version 1"),
        FormatVersion::V3 => Some("format version 3"),
        FormatVersion::V2
            if metadata.properties().contains_key("encryption.key-id")
                || metadata.encryption_keys_iter().next().is_some() =>
        {
            Some("encryption")
        }
        FormatVersion::V2 => None,
    };
    match feature {
        Some(feature) => Err(Error::Unsupported { table: table.clone(), feature: feature.to_string() }),
        None => Ok(()),
    }
}

/// Where a new table goes when nobody says.
pub(super) fn default_location(warehouse: &str, table: &TableName) -> String {
    format!("{}/{}/{}", warehouse.trim_end_matches('/'), table.namespace(), table.name())
}

/// Writes the first metadata file of a table.
pub(super) async fn stage_first(storage: &Storage, new: NewTable, location: String) -> Result<Staged> {
    let table = new.table;
    let refused = |error: iceberg::Error| Error::Change { table: table.clone(), problem: error.message().to_string() };
    let creation = TableCreation::builder()
        .name(table.name().to_string())
        .location(location)
        .schema(new.schema)
        .partition_spec(new.partition_spec)
        .sort_order(new.sort_order)
        .properties(new.properties)
        .format_version(FormatVersion::V2)
        .build();
    let built = TableMetadataBuilder::from_table_creation(creation).and_then(TableMetadataBuilder::build);
    let metadata = built.map_err(refused)?.metadata;
    check_supported(&table, &metadata)?;
    let location = MetadataLocation::new_with_metadata(metadata.location(), &metadata);
    write(storage, &table, metadata, location, Vec::new()).await
}

/// Applies updates to the base and writes the metadata file that results.
pub(super) async fn stage(
    storage: &Storage,
    base: &Head,
    requirements: &[TableRequirement],
    updates: &[TableUpdate],
) -> Result<Staged, Swap> {
    let table = &base.table;
    // A requirement that the base itself does not meet was made for an older head.
    if requirements.iter().any(|requirement| requirement.check(Some(&base.metadata)).is_err()) {
        return Err(Swap::Lost);
    }
    let refused = |error: iceberg::Error| {
        Swap::Failed(Error::Change { table: table.clone(), problem: error.message().to_string() })
    };
    let mut builder = TableMetadata::clone(&base.metadata).into_builder(Some(base.metadata_location.clone()));
    for update in updates {
        builder = update.clone().apply(builder).map_err(refused)?;
    }
    let built = builder.build().map_err(refused)?;
    check_supported(table, &built.metadata).map_err(Swap::Failed)?;
    let location = next_location(&base.metadata_location, &built.metadata).map_err(refused)?;
    let expired = built.expired_metadata_logs.into_iter().map(|entry| entry.metadata_file).collect();
    let staged = write(storage, table, built.metadata, location, expired).await.map_err(Swap::Failed)?;
    fail::fail_point!("commit-after-metadata");
    Ok(staged)
}

async fn write(
    storage: &Storage,
    table: &TableName,
    metadata: TableMetadata,
    location: MetadataLocation,
    expired: Vec<String>,
) -> Result<Staged> {
    metadata.write_to(storage.file_io(), &location).await.map_err(|error| {
        situation(&error)
            .unwrap_or_else(|| Error::Change { table: table.clone(), problem: error.message().to_string() })
    })?;
    Ok(Staged { metadata: Arc::new(metadata), location: location.to_string(), expired })
}

/// The name of the next metadata file.
///
/// Its folder follows the table's location, and its number the current file's. Other writers name theirs differently
/// (Hadoop tables have `v3.metadata.json`), which the Iceberg crate refuses to count on from.
fn next_location(current: &str, next: &TableMetadata) -> iceberg::Result<MetadataLocation> {
    let version = version_of(current).map_or(0, |version| version.saturating_add(1));
    let name = format!("{}/metadata/{version:05}-{}.metadata.json", next.location(), Uuid::new_v4());
    Ok(MetadataLocation::from_str(&name)?.with_new_metadata(next))
}

fn version_of(location: &str) -> Option<i32> {
    let name = location.rsplit('/').next()?;
    let name = name.strip_prefix('v').unwrap_or(name);
    name[..name.find(|c: char| !c.is_ascii_digit())?].parse().ok()
}

/// Removes a staged file that no catalog will ever point to.
pub(super) async fn discard(storage: &Storage, staged: &Staged) {
    if let Err(error) = storage.delete_many([staged.location.clone()]).await {
        tracing::debug!(location = staged.location, %error, "a metadata file that lost stays as an orphan");
    }
}

/// Deletes the metadata files that fell off the log, when the table asks for it. They are of no use to the table, so
/// a failure leaves orphans and nothing worse.
pub(super) async fn prune(storage: &Storage, staged: &Staged) {
    let asked = staged.metadata.properties().get("write.metadata.delete-after-commit.enabled");
    if staged.expired.is_empty() || asked.is_none_or(|value| !value.eq_ignore_ascii_case("true")) {
        return;
    }
    if let Err(error) = storage.delete_many(staged.expired.iter().cloned()).await {
        tracing::warn!(table_location = staged.metadata.location(), %error, "old metadata files stay as orphans");
    }
}

#[cfg(test)]
pub(super) mod tests {
    use iceberg::spec::{NestedField, PrimitiveType, Schema, Type};

    use super::*;

    /// A table with the one column `id`.
    pub(in super::super) fn metadata(location: &str) -> TableMetadata {
        let id = NestedField::required(1, "id", Type::Primitive(PrimitiveType::Long));
        let creation = TableCreation::builder()
            .name("orders".to_string())
            .location(location.to_string())
            .schema(Schema::builder().with_fields([id.into()]).build().unwrap())
            .build();
        TableMetadataBuilder::from_table_creation(creation).unwrap().build().unwrap().metadata
    }

    pub(in super::super) fn staged(metadata: TableMetadata) -> Staged {
        let location = format!("{}/metadata/00001-x.metadata.json", metadata.location());
        Staged { metadata: Arc::new(metadata), location, expired: Vec::new() }
    }

    #[test]
    fn versions_count_on_from_any_name() {
        for (location, expected) in [
            ("s3://b/t/metadata/00007-2cd22b57-5127-4198-92ba-e4e67c79821b.metadata.json", Some(7)),
            ("s3://b/t/metadata/00012-2cd22b57-5127-4198-92ba-e4e67c79821b.gz.metadata.json", Some(12)),
            ("/t/metadata/v3.metadata.json", Some(3)),
            ("/t/metadata/v3.gz.metadata.json", Some(3)),
            ("/t/metadata/current.metadata.json", None),
            ("/t/metadata/99999999999999.metadata.json", None),
        ] {
            assert_eq!(version_of(location), expected, "{location}");
        }
    }

    #[test]
    fn formats_we_leave_alone_are_named() {
        let table = TableName::new("shop", "orders").unwrap();
        let check = |text: &str| newer_format(&table, text.as_bytes()).map(|error| error.to_string());
        insta::assert_snapshot!(check(r#"{"format-version": 4}"#).unwrap(), @"table `shop.orders` uses format version 4, which icestream does not read or write");
        assert_eq!(check(r#"{"format-version": 2}"#), None);
        assert_eq!(check("nonsense"), None);
    }
}
