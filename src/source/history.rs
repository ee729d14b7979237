//! Files that hold the history of topics, as the S3 sinks of Kafka Connect leave them, and what their names say.
//!
//! `<topic>+<partition>+<offset>.json.gz` holds records of one partition from that offset on, in whatever folders it is.
//! Such files may be read in any order and at the same time, as each of them says which offsets its lines are.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore};

use super::error::Result;
use super::files::{FilePlace, failure};
use crate::offsets::TopicPartition;

/// One file of a history.
#[derive(Clone)]
pub struct HistoryFile {
    pub location: String,
    pub bytes: u64,
    /// Which records it holds, where its name says so.
    pub identity: Option<Identity>,
    store: Arc<dyn ObjectStore>,
    path: Path,
    /// What tells whether it is still the same file.
    etag: Option<String>,
}

/// The partition a file is of, and the offset of its first record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Identity {
    pub at: TopicPartition,
    pub from: i64,
}

impl Identity {
    /// What a file's name says: `<topic>+<partition>+<offset>`, perhaps `+<last offset>`, and whatever ending.
    pub fn of_name(name: &str) -> Option<Self> {
        let mut parts = name.split('+');
        let (topic, partition, from) = (parts.next()?, parts.next()?, parts.next()?);
        let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let number = |text: &str| text.split('.').next().filter(|text| is_number(text)).map(str::to_string);
        let rest: Vec<&str> = parts.collect();
        let from = match rest[..] {
            [] => number(from)?,
            // The sinks to HDFS name the last one as well.
            [last] => number(last).and(number(from))?,
            _ => return None,
        };
        if topic.is_empty() || !is_number(partition) {
            return None;
        }
        Some(Identity { at: TopicPartition::new(topic, partition.parse().ok()?), from: from.parse().ok()? })
    }
}

impl HistoryFile {
    /// A part of its bytes. A file that was replaced since it was listed is an error.
    pub async fn read(&self, range: Range<u64>) -> Result<Bytes> {
        let failed = |error| failure(&self.location, &error);
        let options =
            GetOptions { range: Some(GetRange::Bounded(range)), if_match: self.etag.clone(), ..GetOptions::default() };
        self.store.get_opts(&self.path, options).await.map_err(failed)?.bytes().await.map_err(failed)
    }
}

/// The files there are at these places, each once, in the order of their names. In a pattern, `**/` stands for any
/// folders, or none.
pub async fn list_history(places: &[FilePlace]) -> Result<Vec<HistoryFile>> {
    let mut files = std::collections::BTreeMap::new();
    for place in places {
        let any_folders = |text: &str| text.replace("**/", "*");
        let (location, path) = (any_folders(&place.location), any_folders(&place.path));
        let place = FilePlace { location, path, store: place.store.clone() };
        for file in place.list().await? {
            let name = file.path.filename().unwrap_or_default();
            files.insert(
                file.location.clone(),
                HistoryFile {
                    identity: Identity::of_name(name),
                    bytes: file.bytes,
                    etag: file.etag,
                    store: file.store,
                    path: file.path,
                    location: file.location,
                },
            );
        }
    }
    Ok(files.into_values().collect())
}

impl fmt::Debug for HistoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HistoryFile")
            .field("location", &self.location)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;
    use object_store::{ObjectStoreExt, PutPayload};

    use super::*;

    #[test]
    fn names_say_topic_partition_and_offset() {
        for (name, expected) in [
            ("shop.public.orders+0+0000001000.json.gz", Some(("shop.public.orders", 0, 1000))),
            ("orders+12+7.json", Some(("orders", 12, 7))),
            ("orders+3+0000000007+0000000099.avro", Some(("orders", 3, 7))),
            ("orders+3+7", Some(("orders", 3, 7))),
            ("orders+3.json", None),
            ("part-0001.json", None),
            ("+0+1.json", None),
            ("orders+x+1.json", None),
            ("orders+0+-1.json", None),
            ("orders+0+1+2+3.json", None),
            ("orders+0+99999999999999999999.json", None),
        ] {
            let found = Identity::of_name(name);
            let found = found.as_ref().map(|of| (&*of.at.topic, of.at.partition, of.from));
            assert_eq!(found, expected, "{name}");
        }
    }

    #[tokio::test]
    async fn folders_of_any_depth_are_looked_through_and_files_come_once() {
        let store = Arc::new(InMemory::new());
        for path in [
            "topics/orders/year=2026/month=01/day=02/hour=03/orders+0+0000000000.json",
            "topics/orders/year=2026/month=01/day=02/hour=04/orders+0+0000000003.json.gz",
            "topics/orders+1+0000000000.json.gz",
            "topics/orders/orders+1+0000000009.txt",
            "other/orders+2+0000000000.json",
        ] {
            store.put(&path.into(), PutPayload::from_static(b"0123456789")).await.unwrap();
        }
        let place = |path: &str| FilePlace {
            location: format!("s3://bucket/{path}"),
            store: store.clone(),
            path: path.to_string(),
        };
        let places = ["topics/**/*.json*", "topics/**/hour=03/*"].map(place);
        let files = list_history(&places).await.unwrap();
        let found: Vec<String> = files.iter().map(|file| format!("{} {}", file.location, file.bytes)).collect();
        insta::assert_snapshot!(found.join("\n"), @"
        s3://bucket/topics/orders+1+0000000000.json.gz 10
        s3://bucket/topics/orders/year=2026/month=01/day=02/hour=03/orders+0+0000000000.json 10
        s3://bucket/topics/orders/year=2026/month=01/day=02/hour=04/orders+0+0000000003.json.gz 10
        ");
        assert_eq!(files[0].read(2..5).await.unwrap(), "234");
        store.put(&"topics/orders+1+0000000000.json.gz".into(), PutPayload::from_static(b"other")).await.unwrap();
        assert!(files[0].read(2..5).await.is_err(), "it is another file by now");
    }
}
