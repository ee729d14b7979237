//! Goes through the files of a table, several at once.

use std::sync::Arc;

use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::BackfillError;
use super::held::Held;
use super::reader::{Ended, Reading, Seen, Work};
use crate::error::Error;

/// What became of files.
pub(super) struct Read {
    pub(super) seen: Seen,
    pub(super) is_complete: bool,
    pub(super) broken: Vec<(String, Error)>,
    pub(super) error: Option<Error>,
}

impl Default for Read {
    fn default() -> Self {
        Read { seen: Seen::default(), is_complete: true, broken: Vec::new(), error: None }
    }
}

/// Reads all files, several at once; each partition's last one at the end, because only the others show how a sink numbers.
pub(super) async fn read_all(reading: Reading, files: Vec<Work>, threads: usize, held: Arc<Held>) -> Read {
    let (last, others): (Vec<Work>, Vec<Work>) = files.into_iter().rev().partition(|work| work.next.is_none());
    let mut all = Read::default();
    for files in [others, last] {
        let files = Arc::new(Mutex::new(files));
        let mut readers = JoinSet::new();
        for _ in 0..threads {
            readers.spawn(read_files(reading.clone(), files.clone(), held.clone()));
        }
        while let Some(read) = readers.join_next().await {
            let panicked = || Read { error: Some(BackfillError::ThreadsEnded.into()), ..Read::default() };
            let read = read.unwrap_or_else(|_| panicked());
            all.seen += read.seen;
            all.is_complete &= read.is_complete;
            all.broken.extend(read.broken);
            all.error = all.error.or(read.error);
        }
        if !all.is_complete {
            break;
        }
    }
    all
}

/// Reads one file after the other until there is none left.
async fn read_files(mut reading: Reading, files: Arc<Mutex<Vec<Work>>>, held: Arc<Held>) -> Read {
    let mut all = Read::default();
    loop {
        let Some(work) = files.lock().await.pop() else { return all };
        match reading.read(&work, held.clone()).await {
            Ok((ended, seen)) => {
                all.seen += seen;
                match ended {
                    Ended::Whole => {}
                    Ended::Stopped => return Read { is_complete: false, ..all },
                    Ended::Broken(error) => {
                        let file = work.file.location.clone();
                        tracing::error!(%file, %error, "a file cannot be read; the others go on");
                        all.broken.push((file, error));
                    }
                }
            }
            Err(error) => return Read { is_complete: false, error: Some(error), ..all },
        }
    }
}
