//! The Iceberg crate's storage trait over our stores.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use iceberg::io::{FileMetadata, FileRead, FileWrite, InputFile, OutputFile, StorageConfig, StorageFactory};
use serde::{Deserialize, Serialize};

use super::{Stores, Writer};
use crate::table::error::{Error, Result};

/// Our stores as the Iceberg crate holds them.
///
/// The crate wants storages to survive serialisation, for engines that ship plans to other machines. We do not, and a
/// connection cannot be shipped: a handle that comes back from its serialised form says so on first use.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Handle {
    #[serde(skip)]
    stores: Option<Arc<Stores>>,
}

impl Handle {
    pub(super) fn new(stores: Arc<Stores>) -> Self {
        Handle { stores: Some(stores) }
    }

    fn stores(&self) -> iceberg::Result<&Arc<Stores>> {
        self.stores.as_ref().ok_or_else(|| {
            let message = "this storage was serialised, and its connections did not come along";
            iceberg::Error::new(iceberg::ErrorKind::FeatureUnsupported, message)
        })
    }
}

#[typetag::serde(name = "IcestreamStorageFactory")]
impl StorageFactory for Handle {
    fn build(&self, _config: &StorageConfig) -> iceberg::Result<Arc<dyn iceberg::io::Storage>> {
        self.stores()?;
        Ok(Arc::new(self.clone()))
    }
}

#[async_trait]
#[typetag::serde(name = "IcestreamStorage")]
impl iceberg::io::Storage for Handle {
    async fn exists(&self, path: &str) -> iceberg::Result<bool> {
        Ok(self.stores()?.size(path).await.map_err(carried)?.is_some())
    }

    async fn metadata(&self, path: &str) -> iceberg::Result<FileMetadata> {
        let size = self.stores()?.size(path).await.map_err(carried)?;
        let missing = || carried(missing(path));
        Ok(FileMetadata { size: size.ok_or_else(missing)? })
    }

    async fn read(&self, path: &str) -> iceberg::Result<Bytes> {
        self.stores()?.read(path).await.map_err(carried)
    }

    async fn reader(&self, path: &str) -> iceberg::Result<Box<dyn FileRead>> {
        Ok(Box::new(Reader { stores: self.stores()?.clone(), location: path.to_string() }))
    }

    async fn write(&self, path: &str, bytes: Bytes) -> iceberg::Result<()> {
        self.stores()?.write(path, bytes).await.map_err(carried)
    }

    async fn writer(&self, path: &str) -> iceberg::Result<Box<dyn FileWrite>> {
        Ok(Box::new(self.stores()?.writer(path).map_err(carried)?))
    }

    async fn delete(&self, path: &str) -> iceberg::Result<()> {
        self.stores()?.delete_many([path.to_string()]).await.map_err(carried)
    }

    async fn delete_prefix(&self, path: &str) -> iceberg::Result<()> {
        let stores = self.stores()?;
        let mut files = stores.list(path).map_err(carried)?.chunks(1000);
        while let Some(chunk) = files.next().await {
            let chunk: Result<Vec<String>> = chunk.into_iter().map(|file| Ok(file?.location)).collect();
            stores.delete_many(chunk.map_err(carried)?).await.map_err(carried)?;
        }
        Ok(())
    }

    async fn delete_stream(&self, paths: BoxStream<'static, String>) -> iceberg::Result<()> {
        let mut chunks = paths.chunks(1000);
        while let Some(chunk) = chunks.next().await {
            self.stores()?.delete_many(chunk).await.map_err(carried)?;
        }
        Ok(())
    }

    fn new_input(&self, path: &str) -> iceberg::Result<InputFile> {
        Ok(InputFile::new(Arc::new(self.clone()), path.to_string()))
    }

    fn new_output(&self, path: &str) -> iceberg::Result<OutputFile> {
        Ok(OutputFile::new(Arc::new(self.clone()), path.to_string()))
    }
}

struct Reader {
    stores: Arc<Stores>,
    location: String,
}

#[async_trait]
impl FileRead for Reader {
    async fn read(&self, range: Range<u64>) -> iceberg::Result<Bytes> {
        self.stores.read_range(&self.location, range).await.map_err(carried)
    }
}

#[async_trait]
impl FileWrite for Writer {
    async fn write(&mut self, bytes: Bytes) -> iceberg::Result<()> {
        Writer::write(self, bytes).await.map_err(carried)
    }

    async fn close(&mut self) -> iceberg::Result<()> {
        Writer::close(self).await.map_err(carried)
    }
}

/// Our error inside the Iceberg crate's, where [`super::situation`] finds it again.
fn carried(error: Error) -> iceberg::Error {
    iceberg::Error::new(iceberg::ErrorKind::Unexpected, "the storage failed").with_source(error)
}

fn missing(location: &str) -> Error {
    let source = std::io::Error::from(std::io::ErrorKind::NotFound);
    super::storage_error("read", location, crate::error::Kind::Corrupt, source)
}

#[cfg(test)]
mod tests {
    use super::super::{Storage, StorageOptions, situation};
    use super::*;

    #[tokio::test]
    async fn the_iceberg_crate_reads_and_writes_through_our_stores() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Storage::new(StorageOptions::default()).unwrap();
        let io = storage.file_io();
        let location = format!("file://{}/a/b", folder.path().display());
        let mut writer = io.new_output(&location).unwrap().writer().await.unwrap();
        writer.write(Bytes::from_static(b"0123456789")).await.unwrap();
        writer.close().await.unwrap();
        let input = io.new_input(&location).unwrap();
        assert_eq!(input.metadata().await.unwrap().size, 10);
        assert_eq!(input.reader().await.unwrap().read(2..5).await.unwrap(), "234");
        io.delete_prefix(format!("file://{}/a", folder.path().display())).await.unwrap();
        assert!(!io.exists(&location).await.unwrap());
        io.delete(&location).await.unwrap();
    }

    #[tokio::test]
    async fn our_error_comes_back_out_of_theirs() {
        let storage = Storage::new(StorageOptions::default()).unwrap();
        let error = storage.file_io().new_input("/no/such/file").unwrap().read().await.unwrap_err();
        let wrapped = parquet::errors::ParquetError::External(Box::new(error));
        assert_eq!(situation(&wrapped).unwrap().to_string(), "cannot read `/no/such/file`");
    }

    #[tokio::test]
    async fn a_shipped_handle_says_what_is_missing() {
        let storage = Storage::new(StorageOptions::default()).unwrap();
        let text = serde_json::to_string(&(Arc::new(Handle::new(storage.stores)) as Arc<dyn StorageFactory>)).unwrap();
        let back: Box<dyn StorageFactory> = serde_json::from_str(&text).unwrap();
        let error = back.build(&StorageConfig::new()).unwrap_err();
        insta::assert_snapshot!(error.message(), @"this storage was serialised, and its connections did not come along");
    }
}
