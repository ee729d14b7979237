//! Files in a local folder: whole or not at all.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use uuid::Uuid;

use super::{find, storage_error};
use crate::error::Kind;
use crate::table::error::{Error, Result};

/// Writes are gathered to this size, so that a row group's many small pages do not each cost a trip to another thread.
const CHUNK_BYTES: usize = 1 << 20;

pub(super) async fn write(path: &str, bytes: Bytes) -> Result<()> {
    let mut writer = Writer::new(path);
    writer.pending.push(bytes);
    writer.close().await
}

/// A file on its way to `path`. Until [`Writer::close`] returns, nothing is there; dropped before, nothing stays.
pub(super) struct Writer {
    path: PathBuf,
    draft: Option<Draft>,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    closed: bool,
}

impl Writer {
    pub(super) fn new(path: &str) -> Self {
        Writer { path: PathBuf::from(path), draft: None, pending: Vec::new(), pending_bytes: 0, closed: false }
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        if self.closed {
            return Err(self.failed(io::Error::other("the file is closed")));
        }
        self.pending_bytes += bytes.len();
        self.pending.push(bytes);
        if self.pending_bytes < CHUNK_BYTES {
            return Ok(());
        }
        let draft = self.advance(Ok).await?;
        self.draft = Some(draft);
        Ok(())
    }

    pub(super) async fn close(&mut self) -> Result<()> {
        if self.closed {
            return Err(self.failed(io::Error::other("the file is closed")));
        }
        self.closed = true;
        let path = self.path.clone();
        self.advance(move |draft| draft.publish(&path)).await
    }

    /// Writes what is pending on a thread that may block, and goes on there with `then`.
    async fn advance<T: Send + 'static>(
        &mut self,
        then: impl FnOnce(Draft) -> io::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (draft, path) = (self.draft.take(), self.path.clone());
        let pending = std::mem::take(&mut self.pending);
        self.pending_bytes = 0;
        let work = move || {
            let mut draft = match draft {
                Some(draft) => draft,
                None => Draft::create(&path)?,
            };
            for bytes in pending {
                draft.file.write_all(&bytes)?;
            }
            then(draft)
        };
        let outcome = tokio::task::spawn_blocking(work).await.map_err(io::Error::other).flatten();
        outcome.map_err(|error| {
            self.closed = true;
            self.failed(error)
        })
    }

    fn failed(&self, error: io::Error) -> Error {
        storage_error("write", &self.path.display().to_string(), write_kind(&error), error)
    }
}

/// A file under a passing name. Removed when dropped.
struct Draft {
    file: File,
    path: PathBuf,
}

impl Draft {
    fn create(target: &Path) -> io::Result<Self> {
        let folder = target.parent().unwrap_or(Path::new("/"));
        create_folder(folder)?;
        let name = target.file_name().unwrap_or_default().to_string_lossy();
        let path = folder.join(format!(".{name}.{}.part", Uuid::new_v4().simple()));
        let file = File::create_new(&path)?;
        Ok(Draft { file, path })
    }

    fn publish(self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.path, target)?;
        sync_folder(target.parent().unwrap_or(Path::new("/")))
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // After `publish` the name is gone, and this finds nothing.
        let _ = fs::remove_file(&self.path);
    }
}

/// Makes a folder and those above it, each durable before something is put into it.
pub(crate) fn create_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        create_folder(parent)?;
        match fs::create_dir(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists || !folder.is_dir() => return Err(error),
            _ => sync_folder(parent)?,
        }
    }
    Ok(())
}

/// A rename is durable only when its folder is.
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder)?.sync_all() {
        // Some network file systems have no such thing as syncing a folder.
        Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => Ok(()),
        outcome => outcome,
    }
}

/// A full disk or a failing one may get better by itself; a missing right or a file where a folder should be does not.
pub(crate) fn write_kind(error: &io::Error) -> Kind {
    match error.kind() {
        ErrorKind::NotFound
        | ErrorKind::PermissionDenied
        | ErrorKind::ReadOnlyFilesystem
        | ErrorKind::NotADirectory
        | ErrorKind::IsADirectory
        | ErrorKind::AlreadyExists
        | ErrorKind::InvalidInput
        | ErrorKind::InvalidFilename => Kind::Config,
        _ => Kind::Unavailable,
    }
}

/// What a failed read, listing or deletion means.
pub(super) fn failure(action: &'static str, location: &str, error: object_store::Error) -> Error {
    let kind = match find::<io::Error>(&error) {
        // Somebody's metadata names this file.
        Some(cause) if cause.kind() == ErrorKind::NotFound => Kind::Corrupt,
        Some(cause) => write_kind(cause),
        None => Kind::Unavailable,
    };
    storage_error(action, location, kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Situation;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    #[tokio::test]
    async fn a_file_appears_whole_when_it_is_closed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/er/file.parquet");
        let mut writer = Writer::new(path.to_str().unwrap());
        for _ in 0..5 {
            writer.write(Bytes::from(vec![7; CHUNK_BYTES / 2])).await.unwrap();
        }
        assert!(!path.exists());
        assert_eq!(names(path.parent().unwrap()).len(), 1);
        writer.close().await.unwrap();
        assert_eq!(names(path.parent().unwrap()), ["file.parquet"]);
        assert_eq!(fs::metadata(&path).unwrap().len() as usize, 5 * CHUNK_BYTES / 2);
        assert!(writer.write(Bytes::from_static(b"more")).await.is_err());
        assert!(writer.close().await.is_err());
    }

    #[tokio::test]
    async fn a_file_that_is_not_closed_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = Writer::new(folder.path().join("file").to_str().unwrap());
        writer.write(Bytes::from(vec![7; CHUNK_BYTES])).await.unwrap();
        assert_eq!(names(folder.path()).len(), 1);
        drop(writer);
        assert_eq!(names(folder.path()), Vec::<String>::new());
    }

    #[tokio::test]
    async fn a_file_where_a_folder_should_be_is_for_the_user_to_fix() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "x").unwrap();
        let error = write(folder.path().join("file/inner").to_str().unwrap(), Bytes::new()).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Config);
        assert!(error.to_string().starts_with("cannot write `/"), "{error}");
    }

    #[test]
    fn a_full_disk_may_get_better_and_a_missing_right_does_not() {
        for (kind, expected) in [
            (ErrorKind::StorageFull, Kind::Unavailable),
            (ErrorKind::QuotaExceeded, Kind::Unavailable),
            (ErrorKind::Other, Kind::Unavailable),
            (ErrorKind::PermissionDenied, Kind::Config),
            (ErrorKind::ReadOnlyFilesystem, Kind::Config),
            (ErrorKind::NotFound, Kind::Config),
        ] {
            assert_eq!(write_kind(&io::Error::from(kind)), expected, "{kind}");
        }
    }
}
