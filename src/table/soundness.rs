//! Whether the files that the head names are there and are what it says of them, and whether its markers agree.
//!
//! Nothing here reads a row: sizes come from the storage, row counts from footers, and of delete files the positions.

use std::collections::HashMap;

use futures::stream::{self, StreamExt, TryStreamExt};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetObjectReader};

use super::commit::marker_keys;
use super::error::Result;
use super::{At, FileRow, ScanFile, Table};

/// Files looked at at the same time.
const FILES_AT_ONCE: usize = 16;

/// What was looked at, and what is wrong with it.
#[derive(Debug, Clone, Default)]
pub struct Soundness {
    pub data_files: u64,
    pub delete_files: u64,
    /// Rows of the data files, deleted or not.
    pub rows: u64,
    pub faults: Vec<Fault>,
    /// Whether every file can be read: rows cannot be looked at where one is missing.
    pub is_readable: bool,
}

/// A file, or the table as a whole, that is not as it is said to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    pub file: Option<String>,
    pub what: &'static str,
    pub expected: String,
    pub found: String,
}

/// A marker, in both places where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MarkerPlaces {
    pub key: String,
    /// In the newest snapshot of the head's line that has it; `None` when expiry has taken those.
    pub in_summary: Option<String>,
    pub in_property: Option<String>,
}

impl Table {
    /// Looks at every file of the head.
    pub async fn soundness(&self) -> Result<Soundness> {
        let files = self.files().await?;
        let mut sound = Soundness { is_readable: true, ..Soundness::default() };
        for file in &files {
            match file.content {
                "data" => {
                    sound.data_files += 1;
                    sound.rows += file.rows;
                }
                _ => sound.delete_files += 1,
            }
        }
        let looked_at: Vec<Option<Fault>> =
            stream::iter(&files).map(|file| self.fault_of(file)).buffered(FILES_AT_ONCE).try_collect().await?;
        sound.faults.extend(looked_at.into_iter().flatten());
        sound.is_readable = sound.faults.is_empty();
        self.count(&mut sound);
        if sound.is_readable {
            let found = self.deletes_out_of_bounds().await?;
            sound.faults.extend(found);
        }
        Ok(sound)
    }

    /// Every marker of the table.
    pub fn marker_places(&self) -> Vec<MarkerPlaces> {
        let metadata = self.metadata();
        let mut keys: Vec<&String> = marker_keys(metadata).collect();
        keys.sort();
        let places = keys.into_iter().map(|key| MarkerPlaces {
            key: key.clone(),
            in_summary: super::commit::marker_in_line(metadata, key),
            in_property: metadata.properties().get(key).cloned(),
        });
        places.collect()
    }

    async fn fault_of(&self, file: &FileRow) -> Result<Option<Fault>> {
        let storage = self.lake().storage();
        let fault = |what, expected: String, found: String| {
            Ok(Some(Fault { file: Some(file.path.clone()), what, expected, found }))
        };
        let Some(size) = storage.size(&file.path).await? else {
            return fault("file", "a file".to_string(), "none".to_string());
        };
        if size != file.bytes {
            return fault("bytes", file.bytes.to_string(), size.to_string());
        }
        let (store, path) = storage.store(&file.path)?;
        let mut reader = ParquetObjectReader::new(store, path).with_file_size(size);
        match reader.get_metadata(None).await {
            Ok(footer) => match u64::try_from(footer.file_metadata().num_rows()) {
                Ok(rows) if rows == file.rows => Ok(None),
                rows => fault("rows", file.rows.to_string(), rows.unwrap_or_default().to_string()),
            },
            Err(error) => match super::storage::situation(&error) {
                Some(error) => Err(error),
                None => fault("footer", "a Parquet footer".to_string(), error.to_string()),
            },
        }
    }

    /// Compares the totals that the head's summary gives with what its manifests list. Another engine may give none.
    fn count(&self, sound: &mut Soundness) {
        let summary = self.summary();
        let totals = [
            ("total-data-files", summary.data_files, sound.data_files),
            ("total-delete-files", summary.delete_files, sound.delete_files),
            ("total-records", summary.records, sound.rows),
        ];
        for (what, said, listed) in totals {
            if let Some(said) = said.filter(|said| *said != listed) {
                let (expected, found) = (said.to_string(), listed.to_string());
                sound.faults.push(Fault { file: None, what, expected, found });
            }
        }
    }

    async fn deletes_out_of_bounds(&self) -> Result<Vec<Fault>> {
        let view = self.view(At::Head)?;
        let files: Vec<ScanFile> = view.files(None).await?;
        let rows: HashMap<&str, u64> = files.iter().map(|file| (file.path.as_str(), file.record_count)).collect();
        let with_deletes: Vec<ScanFile> = files.iter().filter(|file| !file.deletes.is_empty()).cloned().collect();
        let deleted = view.deleted_positions(&with_deletes).await?;
        let beyond = |(path, positions): (&String, &std::sync::Arc<roaring::RoaringTreemap>)| {
            let rows = rows.get(path.as_str()).copied().unwrap_or(0);
            let last = positions.max().filter(|last| *last >= rows)?;
            Some(Fault {
                file: Some(path.clone()),
                what: "deleted position",
                expected: format!("below {rows}"),
                found: last.to_string(),
            })
        };
        let mut faults: Vec<Fault> = deleted.iter().filter_map(beyond).collect();
        faults.sort_by(|left, right| left.file.cmp(&right.file));
        Ok(faults)
    }
}
