//! One client stack for everything that is read and written: an `object_store` per bucket, and one for local folders.
//!
//! In come full locations (`s3://bucket/key`, `file:///absolute/path` or `/absolute/path`), out come bytes, listings,
//! and the `object_store` handle behind a location. The same stores serve DataFusion's scans and, through the Iceberg
//! crate's storage trait ([`Storage::file_io`]), manifests, metadata and Parquet writers. This folder knows nothing of
//! tables: what a file means and when it may go is decided elsewhere.
//!
//! **A file is never seen half written.** Locally it is written under another name, synced, and renamed; on S3 an
//! object appears when its upload completes.

mod file_io;
mod local;
mod location;
mod s3;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use iceberg::io::{FileIO, FileIOBuilder};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use url::Url;

use super::error::{Error, Result};
use crate::aws::AwsOptions;
use crate::error::Kind;

use file_io::Handle;
pub(crate) use local::{create_folder, write_kind};
use location::Place;
use s3::LazyS3;

/// Files that cannot be deleted after so many tries stay, and are orphans.
const DELETE_ATTEMPTS: u32 = 4;
const DELETE_PAUSE: Duration = Duration::from_millis(100);

/// How to reach the places where files live. Locations are full: `s3://bucket/key` or `file:///absolute/path`.
#[derive(Debug, Clone, Default)]
pub struct StorageOptions {
    pub s3: S3Options,
}

/// S3 and what speaks its protocol. What is not set comes from the default AWS chain: environment, profile, web
/// identity (IRSA), container and instance roles.
#[derive(Clone, Default)]
pub struct S3Options {
    pub endpoint: Option<String>,
    pub region: Option<String>,
    pub profile: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    pub session_token: Option<String>,
    /// `http://endpoint/bucket/key` in place of `http://bucket.endpoint/key`; most S3-compatible servers need it.
    pub path_style: bool,
    /// Server-side encryption and the like, in `object_store`'s own key names.
    pub extra: BTreeMap<String, String>,
}

impl S3Options {
    fn identity(&self) -> AwsOptions {
        AwsOptions {
            region: self.region.clone(),
            profile: self.profile.clone(),
            access_key_id: self.access_key_id.clone(),
            secret_access_key: self.secret_access_key.clone(),
            session_token: self.session_token.clone(),
        }
    }
}

impl fmt::Debug for S3Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("endpoint", &self.endpoint)
            .field("identity", &self.identity())
            .field("path_style", &self.path_style)
            // A customer's encryption key may be among the values.
            .field("extra", &self.extra.keys().collect::<Vec<_>>())
            .finish()
    }
}

/// A file that a listing found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedFile {
    /// Spelled like the prefix that was listed, so that it compares equal to the locations in a table's metadata.
    pub location: String,
    pub size: u64,
    pub modified_us: i64,
}

/// The stores behind all locations. Cheap to clone.
#[derive(Clone)]
pub struct Storage {
    stores: Arc<Stores>,
    file_io: FileIO,
}

/// One client per bucket, made when it is first asked for.
struct Stores {
    options: StorageOptions,
    local: Arc<LocalFileSystem>,
    buckets: Mutex<HashMap<String, Arc<LazyS3>>>,
}

impl Storage {
    pub fn new(options: StorageOptions) -> Result<Self> {
        s3::check(&options.s3)?;
        let stores =
            Arc::new(Stores { options, local: Arc::new(LocalFileSystem::new()), buckets: Mutex::new(HashMap::new()) });
        let file_io = FileIOBuilder::new(Arc::new(Handle::new(stores.clone()))).build();
        Ok(Storage { stores, file_io })
    }

    /// What the Iceberg crate reads and writes through.
    pub fn file_io(&self) -> &FileIO {
        &self.file_io
    }

    /// The store behind a location, and the location's path in it. Asks nobody: a wrong bucket or missing credentials
    /// show when the store is used.
    pub fn store(&self, location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
        self.stores.store(location)
    }

    /// Under which URL the store of a location is known to DataFusion: `s3://bucket` or `file:///`.
    pub fn object_store_url(&self, location: &str) -> Result<Url> {
        let text = match Place::parse(location)? {
            Place::Local(_) => "file:///".to_string(),
            Place::S3 { bucket, .. } => format!("s3://{bucket}"),
        };
        Url::parse(&text).map_err(|_| location::not_a_location(location))
    }

    pub async fn read(&self, location: &str) -> Result<Bytes> {
        self.stores.read(location).await
    }

    /// Writes a whole file, in place of the one that may be there.
    pub async fn write(&self, location: &str, bytes: Bytes) -> Result<()> {
        self.stores.write(location, bytes).await
    }

    pub async fn exists(&self, location: &str) -> Result<bool> {
        Ok(self.size(location).await?.is_some())
    }

    /// How many bytes a file has; `None` when it is not there.
    pub async fn size(&self, location: &str) -> Result<Option<u64>> {
        self.stores.size(location).await
    }

    /// Deletes files. One that is already gone counts as deleted.
    pub async fn delete_many(&self, locations: impl IntoIterator<Item = String>) -> Result<()> {
        self.stores.delete_many(locations).await
    }

    /// All files under a folder, at any depth. A folder that is not there has none.
    pub fn list(&self, folder: &str) -> BoxStream<'static, Result<ListedFile>> {
        match self.stores.list(folder) {
            Ok(files) => files,
            Err(error) => futures::stream::once(async { Err(error) }).boxed(),
        }
    }
}

impl fmt::Debug for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.stores.fmt(f)
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Storage").field("options", &self.options).finish()
    }
}

async fn delete_all(store: &Arc<dyn ObjectStore>, paths: &[Path]) -> object_store::Result<()> {
    let paths: Vec<object_store::Result<Path>> = paths.iter().cloned().map(Ok).collect();
    let mut outcomes = store.delete_stream(futures::stream::iter(paths).boxed());
    while let Some(outcome) = outcomes.next().await {
        match outcome {
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Stores {
    fn store(&self, location: &str) -> Result<(Arc<dyn ObjectStore>, Path)> {
        match Place::parse(location)? {
            Place::Local(path) => {
                let path = Path::parse(path).map_err(|_| location::not_a_location(location))?;
                Ok((self.local.clone(), path))
            }
            Place::S3 { bucket, key } => {
                let path = Path::parse(key).map_err(|_| location::not_a_location(location))?;
                Ok((self.bucket(bucket), path))
            }
        }
    }

    fn bucket(&self, bucket: &str) -> Arc<LazyS3> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets
            .entry(bucket.to_string())
            .or_insert_with(|| Arc::new(LazyS3::new(bucket.to_string(), self.options.s3.clone())))
            .clone()
    }

    /// A failure of a store, told as the situation it is.
    fn failure(&self, action: &'static str, location: &str, error: object_store::Error) -> Error {
        if let Some(known) = situation(&error) {
            return known;
        }
        match Place::parse(location) {
            Ok(Place::S3 { bucket, .. }) => s3::failure(action, location, bucket, &self.options.s3, error),
            _ => local::failure(action, location, error),
        }
    }

    async fn read(&self, location: &str) -> Result<Bytes> {
        let (store, path) = self.store(location)?;
        let bytes = async { store.get(&path).await?.bytes().await };
        bytes.await.map_err(|error| self.failure("read", location, error))
    }

    async fn read_range(&self, location: &str, range: std::ops::Range<u64>) -> Result<Bytes> {
        let (store, path) = self.store(location)?;
        store.get_range(&path, range).await.map_err(|error| self.failure("read", location, error))
    }

    /// The file's size, or `None` where there is no such file.
    async fn size(&self, location: &str) -> Result<Option<u64>> {
        let (store, path) = self.store(location)?;
        match store.head(&path).await {
            Ok(file) => Ok(Some(file.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failure("read", location, error)),
        }
    }

    async fn write(&self, location: &str, bytes: Bytes) -> Result<()> {
        match Place::parse(location)? {
            Place::Local(path) => local::write(path, bytes).await,
            Place::S3 { .. } => {
                let mut writer = self.writer(location)?;
                writer.write(bytes).await?;
                writer.close().await
            }
        }
    }

    fn writer(&self, location: &str) -> Result<Writer> {
        match Place::parse(location)? {
            Place::Local(path) => Ok(Writer::Local(local::Writer::new(path))),
            Place::S3 { bucket, .. } => {
                let (_, path) = self.store(location)?;
                Ok(Writer::S3(s3::Writer::new(self.bucket(bucket), path, location)))
            }
        }
    }

    async fn delete_many(&self, locations: impl IntoIterator<Item = String>) -> Result<()> {
        type Group = (String, Arc<dyn ObjectStore>, Vec<Path>);
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        for location in locations {
            let (store, path) = self.store(&location)?;
            let key = match Place::parse(&location)? {
                Place::Local(_) => String::new(),
                Place::S3 { bucket, .. } => bucket.to_string(),
            };
            groups.entry(key).or_insert_with(|| (location, store, Vec::new())).2.push(path);
        }
        for (location, store, paths) in groups.into_values() {
            // Many are deleted with a POST, which the client does not send again by itself; a delete may be.
            let mut attempt = 1;
            while let Err(error) = delete_all(&store, &paths).await {
                if attempt == DELETE_ATTEMPTS {
                    return Err(self.failure("delete files next to", &location, error));
                }
                tokio::time::sleep(DELETE_PAUSE * attempt).await;
                attempt += 1;
            }
        }
        Ok(())
    }

    fn list(self: &Arc<Self>, folder: &str) -> Result<BoxStream<'static, Result<ListedFile>>> {
        let folder = folder.trim_end_matches('/').to_string();
        let (store, path) = self.store(&folder)?;
        // Stripping the path leaves what every location under this folder starts with: `s3://bucket/`, `file:///`, `/`.
        let start = folder.strip_suffix(path.as_ref()).map(str::to_string);
        let start = start.ok_or_else(|| location::not_a_location(&folder))?;
        let start = if start.ends_with('/') { start } else { format!("{start}/") };
        let stores = self.clone();
        let files = store
            .list(Some(&path))
            .map_ok(move |file| ListedFile {
                location: format!("{start}{}", file.location),
                size: file.size,
                modified_us: file.last_modified.timestamp_micros(),
            })
            .map_err(move |error| stores.failure("list", &folder, error));
        Ok(files.boxed())
    }
}

/// A file being written.
enum Writer {
    Local(local::Writer),
    S3(s3::Writer),
}

impl Writer {
    async fn write(&mut self, bytes: Bytes) -> Result<()> {
        match self {
            Writer::Local(writer) => writer.write(bytes).await,
            Writer::S3(writer) => writer.write(bytes).await,
        }
    }

    async fn close(&mut self) -> Result<()> {
        match self {
            Writer::Local(writer) => writer.close().await,
            Writer::S3(writer) => writer.close().await,
        }
    }
}

/// The situation that other crates carried through their own error types, if there is one.
pub(crate) fn situation(error: &(dyn std::error::Error + 'static)) -> Option<Error> {
    find::<Error>(error).cloned()
}

/// The first error of type `E` in a chain of sources.
pub(crate) fn find<'a, E: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<E>() {
            return Some(found);
        }
        // An `io::Error` made from another error hides it from `source`, which skips to that error's own source.
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map(|inner| inner as &(dyn std::error::Error + 'static)).or_else(|| error.source());
    }
    None
}

fn storage_error(
    action: &'static str,
    location: &str,
    kind: Kind,
    source: impl std::error::Error + Send + Sync + 'static,
) -> Error {
    Error::Storage { action, location: location.to_string(), kind, source: Arc::new(source) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Situation;

    fn storage() -> Storage {
        Storage::new(StorageOptions::default()).unwrap()
    }

    #[test]
    fn secrets_are_not_printed() {
        let options = StorageOptions {
            s3: S3Options {
                endpoint: Some("http://localhost:9000".to_string()),
                access_key_id: Some("AKIAVISIBLE".to_string()),
                secret_access_key: Some("do-not-show".to_string()),
                session_token: Some("do-not-show".to_string()),
                extra: BTreeMap::from([("aws_sse_customer_key_base64".to_string(), "do-not-show".to_string())]),
                ..S3Options::default()
            },
        };
        let shown = format!("{options:?} {:?}", Storage::new(options.clone()).unwrap());
        assert!(shown.contains("AKIAVISIBLE") && !shown.contains("do-not-show"), "{shown}");
    }

    #[tokio::test]
    async fn a_local_file_is_written_listed_read_and_deleted_under_one_spelling() {
        let folder = tempfile::tempdir().unwrap();
        for start in ["", "file://"] {
            let storage = storage();
            let base = format!("{start}{}/a b%20c", folder.path().display());
            let location = format!("{base}/x=1%2F2/00000-1.parquet");
            storage.write(&location, Bytes::from_static(b"one")).await.unwrap();
            storage.write(&location, Bytes::from_static(b"three")).await.unwrap();
            assert_eq!(storage.read(&location).await.unwrap(), "three");
            let listed: Vec<ListedFile> = storage.list(&format!("{base}/")).try_collect().await.unwrap();
            assert_eq!(listed.iter().map(|file| file.location.as_str()).collect::<Vec<_>>(), [location.as_str()]);
            assert_eq!(listed[0].size, 5);
            assert!(listed[0].modified_us > 1_600_000_000_000_000);
            storage.delete_many([location.clone(), format!("{base}/never-there")]).await.unwrap();
            assert!(!storage.exists(&location).await.unwrap());
        }
        let nothing: Vec<ListedFile> = storage().list("/no/such/folder").try_collect().await.unwrap();
        assert_eq!(nothing, []);
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_location_is_said() {
        let storage = storage();
        let check =
            async |location: &str| crate::error::Error::from(storage.read(location).await.unwrap_err()).render();
        insta::assert_snapshot!(check("lake/warehouse/x").await, @"
        error: `lake/warehouse/x` is not a location that icestream can reach
          hint: locations look like `s3://bucket/prefix`, `file:///absolute/path` or `/absolute/path`
        ");
        insta::assert_snapshot!(check("gs://bucket/x").await, @"
        error: `gs://bucket/x` is not a location that icestream can reach
          hint: locations look like `s3://bucket/prefix`, `file:///absolute/path` or `/absolute/path`
        ");
        let missing = storage.read("/no/such/file").await.unwrap_err();
        assert_eq!(missing.kind(), Kind::Corrupt);
        insta::assert_snapshot!(missing, @"cannot read `/no/such/file`");
    }

    #[test]
    fn datafusion_knows_stores_by_scheme_and_bucket() {
        let url = |location: &str| storage().object_store_url(location).unwrap().to_string();
        assert_eq!(url("s3://lake/a/b"), "s3://lake");
        assert_eq!(url("s3a://lake/a/b"), "s3://lake");
        assert_eq!(url("file:///a/b"), "file:///");
        assert_eq!(url("/a/b"), "file:///");
    }
}
