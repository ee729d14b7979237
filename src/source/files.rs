//! Files of records, read as if they were a log.
//!
//! A line is a record: either a record's value alone, or an object as the S3 sinks of Kafka Connect write it, with `value`
//! beside at least one of `key`, `topic`, `partition`, `offset`, `timestamp` and `headers`, and nothing else. Files may be
//! packed with gzip or zstd, whatever they are called.
//!
//! The files of a topic partition are one log, in the order of their names. **An offset is a file's place in that order
//! and a line in it**: `place << 32 | line`. So a position says where to go on without reading what comes before, and the
//! end is known from a listing. It also means that files may be added behind those that were read, and that nothing may be
//! added before or between them, taken away, or grow: where that shows, reading stops.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use tokio::time::Instant;

use super::error::{Error, Reason, Result};
use super::lines::{Line, Lines, MOST_LINE_BYTES};
use super::pattern::{TopicPattern, fits};
use super::{FetchLimits, Fetched, Source, Start};
use crate::change::RawRecord;
use crate::offsets::{Positions, RecordMark, TopicPartition};

const LINE_BITS: u32 = 32;

/// Which files to read.
#[derive(Debug, Clone)]
pub struct FilesConfig {
    pub places: Vec<FilePlace>,
    /// The topic the files are of. When not set, it is the name of the folder a file is in, but for folders such as
    /// `partition=0`.
    pub topic: Option<String>,
    /// How often to look for new files.
    pub discover_every: Duration,
}

/// A file, a folder, or a pattern in which `*` stands for any characters.
#[derive(Debug, Clone)]
pub struct FilePlace {
    /// As messages name it: `s3://bucket/path`, `file:///path`.
    pub location: String,
    pub store: Arc<dyn ObjectStore>,
    /// The location's path in the store.
    pub path: String,
}

pub struct FilesSource {
    config: FilesConfig,
    logs: Vec<FileLog>,
    told: BTreeSet<TopicPartition>,
    listed: Option<Instant>,
    /// Which log the next fetch starts with, so that each has its turn.
    turn: usize,
    /// Records that no fetch has given out yet, which outlive a fetch that is dropped.
    ready: Vec<RawRecord>,
    /// What was met behind the records that are ready.
    postponed: Option<Error>,
}

/// The files of one topic partition.
struct FileLog {
    at: TopicPartition,
    files: Vec<LogFile>,
    is_assigned: bool,
    is_paused: bool,
    next: i64,
    moved: bool,
    unverified: Option<RecordMark>,
    open: Option<OpenFile>,
}

#[derive(Debug, Clone)]
pub(super) struct LogFile {
    pub(super) location: String,
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) path: Path,
    pub(super) bytes: u64,
    pub(super) etag: Option<String>,
}

struct OpenFile {
    place: usize,
    chunks: BoxStream<'static, object_store::Result<Bytes>>,
    lines: Lines,
    /// The next line's number.
    line: i64,
    is_at_end: bool,
}

impl FilesSource {
    /// Nothing is looked at yet.
    pub fn new(config: FilesConfig) -> Self {
        FilesSource {
            config,
            logs: Vec::new(),
            told: BTreeSet::new(),
            listed: None,
            turn: 0,
            ready: Vec::new(),
            postponed: None,
        }
    }

    /// Finds the files there are now. Those that were there have to be where they were.
    async fn list(&mut self) -> Result<()> {
        let mut found: BTreeMap<TopicPartition, BTreeMap<NaturalOrder, LogFile>> = BTreeMap::new();
        for place in &self.config.places {
            for file in place.list().await? {
                let at = self.config.topic_partition(&file)?;
                found.entry(at).or_default().insert(NaturalOrder(file.location.clone()), file);
            }
        }
        self.listed = Some(Instant::now());
        for (at, files) in found {
            let files: Vec<LogFile> = files.into_values().collect();
            match self.logs.iter_mut().find(|log| log.at == at) {
                Some(log) => {
                    let mut pairs = log.files.iter().zip(&files);
                    let moved = pairs.find(|(old, new)| old.location != new.location).map(|(_, new)| new);
                    if let Some(file) = moved.or_else(|| log.files.get(files.len())) {
                        return Err(Error::FilesMoved { at, file: file.location.clone() });
                    }
                    log.files = files;
                }
                None => self.logs.push(FileLog::new(at, files)),
            }
        }
        Ok(())
    }

    fn log(&mut self, at: &TopicPartition) -> Option<&mut FileLog> {
        self.logs.iter_mut().find(|log| log.at == *at)
    }

    /// Reads on until there is enough, or nothing more in the files that are known.
    async fn read(&mut self, limits: FetchLimits) {
        let size = |record: &RawRecord| {
            let length = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
            length(&record.key) + length(&record.payload)
        };
        let mut bytes: usize = self.ready.iter().map(size).sum();
        let count = self.logs.len();
        for _ in 0..count {
            self.turn = (self.turn + 1) % count;
            let log = &mut self.logs[self.turn];
            while self.ready.len() < limits.records && bytes < limits.bytes {
                match log.step().await {
                    Ok(Some(record)) => {
                        bytes += size(&record);
                        self.ready.push(record);
                    }
                    Ok(None) => break,
                    Err(error) => {
                        // What is read again starts behind the last record.
                        log.open = None;
                        self.postponed = Some(error);
                        return;
                    }
                }
            }
        }
    }
}

#[async_trait]
impl Source for FilesSource {
    async fn partitions(&mut self) -> Result<Vec<TopicPartition>> {
        self.list().await?;
        self.told = self.logs.iter().map(|log| log.at.clone()).collect();
        Ok(self.told.iter().cloned().collect())
    }

    async fn assign(&mut self, starts: &BTreeMap<TopicPartition, Start>) -> Result<Positions> {
        if self.listed.is_none() {
            self.list().await?;
        }
        let mut positions = Positions::new();
        for (at, start) in starts {
            let missing = || Error::NoFiles { location: at.to_string() };
            let end = self.log(at).ok_or_else(missing)?.end();
            let next = match start {
                Start::Beginning => 0,
                Start::At { next, .. } => *next,
            };
            if next > end {
                return Err(Error::PastEnd { at: at.clone(), offset: next, end });
            }
            positions.insert(at.clone(), next);
        }
        for (at, next) in &positions {
            let last = match starts[at] {
                Start::At { last, .. } => last.filter(|last| last.offset < *next),
                Start::Beginning => None,
            };
            self.ready.retain(|record| record.topic != at.topic || record.partition != at.partition);
            self.told.insert(at.clone());
            if let Some(log) = self.log(at) {
                (log.next, log.unverified, log.open) = (*next, last, None);
                (log.is_assigned, log.moved) = (true, false);
            }
        }
        Ok(positions)
    }

    async fn fetch(&mut self, limits: FetchLimits) -> Result<Fetched> {
        let deadline = Instant::now() + limits.wait;
        loop {
            if self.ready.is_empty()
                && let Some(error) = self.postponed.take()
            {
                return Err(error);
            }
            if self.postponed.is_none() {
                self.read(limits).await;
            }
            let is_new = |log: &&FileLog| !self.told.contains(&log.at);
            let gained: Vec<TopicPartition> = self.logs.iter().filter(is_new).map(|log| log.at.clone()).collect();
            let moved = |log: &mut FileLog| std::mem::take(&mut log.moved).then(|| (log.at.clone(), log.next));
            let positions: Positions = self.logs.iter_mut().filter_map(moved).collect();
            let is_over = Instant::now() >= deadline;
            if !self.ready.is_empty() || !positions.is_empty() || !gained.is_empty() || is_over {
                self.told.extend(gained.iter().cloned());
                let records = std::mem::take(&mut self.ready);
                return Ok(Fetched { records, positions, gained, lost: Vec::new() });
            }
            if self.postponed.is_some() {
                continue;
            }
            let look = self.listed.map_or(deadline, |listed| listed + self.config.discover_every);
            tokio::time::sleep_until(look.min(deadline)).await;
            if look <= Instant::now() {
                self.list().await?;
            }
        }
    }

    fn pause(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        partitions.iter().for_each(|at| self.log(at).into_iter().for_each(|log| log.is_paused = true));
        Ok(())
    }

    fn resume(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        partitions.iter().for_each(|at| self.log(at).into_iter().for_each(|log| log.is_paused = false));
        Ok(())
    }

    async fn end_offsets(&mut self) -> Result<Positions> {
        let assigned = self.logs.iter().filter(|log| log.is_assigned);
        Ok(assigned.map(|log| (log.at.clone(), log.end())).collect())
    }

    async fn durable(&mut self, _: &Positions) {}
}

impl FilesConfig {
    fn topic_partition(&self, file: &LogFile) -> Result<TopicPartition> {
        let mut folders: Vec<&str> = file.path.as_ref().split('/').collect();
        folders.pop();
        let partition = folders.iter().rev().find_map(|folder| folder.strip_prefix("partition=")?.parse().ok());
        let folder = folders.iter().rev().find(|folder| !folder.contains('='));
        let topic = self.topic.as_deref().or(folder.copied());
        let is_topic = |topic: &&str| TopicPattern::parse(topic).is_ok_and(|topic| topic.literal().is_some());
        let topic = topic.filter(is_topic).ok_or_else(|| Error::NoTopic { file: file.location.clone() })?;
        Ok(TopicPartition::new(topic, partition.unwrap_or(0)))
    }
}

impl FilePlace {
    /// The files there are.
    pub(super) async fn list(&self) -> Result<Vec<LogFile>> {
        let root = self.location.strip_suffix(&self.path).unwrap_or(&self.location);
        let file = |meta: ObjectMeta| LogFile {
            location: format!("{root}{}", meta.location),
            store: self.store.clone(),
            path: meta.location,
            bytes: meta.size,
            etag: meta.e_tag,
        };
        let path = |text: &str| {
            Path::parse(text).map_err(|error| Error::Files {
                location: self.location.clone(),
                source: Reason::new(error.to_string()),
                is_missing: true,
            })
        };
        let fixed = self.path.split('*').next().unwrap_or_default();
        let (folder, is_pattern) = match fixed.len() == self.path.len() {
            true => (fixed, false),
            false => (fixed.rsplit_once('/').map_or("", |(folder, _)| folder), true),
        };
        let folder = path(folder)?;
        let listed = self.store.list(Some(&folder)).try_collect::<Vec<ObjectMeta>>().await;
        let listed = listed.map_err(|error| self.failure(&error))?;
        // What Spark, Hadoop and editors leave beside data starts so.
        let is_data = |path: &Path| !path.filename().unwrap_or_default().starts_with(['_', '.']);
        let wanted = |meta: &ObjectMeta| match is_pattern {
            true => fits(&self.path, meta.location.as_ref()),
            false => is_data(&meta.location),
        };
        let mut files: Vec<LogFile> = listed.into_iter().filter(wanted).map(file).collect();
        if files.is_empty() && !is_pattern {
            match self.store.head(&folder).await {
                Ok(meta) => files.push(file(meta)),
                Err(object_store::Error::NotFound { .. }) => {
                    return Err(Error::NoFiles { location: self.location.clone() });
                }
                Err(error) => return Err(self.failure(&error)),
            }
        }
        Ok(files)
    }

    fn failure(&self, error: &object_store::Error) -> Error {
        failure(&self.location, error)
    }
}

impl FileLog {
    fn new(at: TopicPartition, files: Vec<LogFile>) -> Self {
        let (is_assigned, is_paused, moved) = (false, false, false);
        FileLog { at, files, is_assigned, is_paused, next: 0, moved, unverified: None, open: None }
    }

    fn end(&self) -> i64 {
        offset(self.files.len(), 0)
    }

    /// The next record; none at the end of the files, or when nothing is to be read.
    async fn step(&mut self) -> Result<Option<RawRecord>> {
        if !self.is_assigned || self.is_paused {
            return Ok(None);
        }
        loop {
            let place = (self.unverified.map_or(self.next, |mark| mark.offset) >> LINE_BITS) as usize;
            let Some(file) = self.files.get(place) else { return Ok(None) };
            let open = match &mut self.open {
                Some(open) if open.place == place => open,
                _ => self.open.insert(OpenFile::new(place, file).await?),
            };
            let number = open.line;
            let here = offset(place, number);
            let Some(line) = open.line(file).await? else {
                if self.unverified.is_some() {
                    return Err(self.replaced());
                }
                self.open = None;
                self.next = offset(place + 1, 0);
                self.moved = true;
                continue;
            };
            let is_before = here < self.next;
            if (is_before && self.unverified.is_none_or(|mark| mark.offset != here)) || line.trim_ascii().is_empty() {
                continue;
            }
            let record = record(&self.at, here, line, file, number)?;
            if is_before {
                if self.unverified != Some(RecordMark::of(&record)) {
                    return Err(self.replaced());
                }
                self.unverified = None;
                continue;
            }
            self.next = here + 1;
            self.moved = true;
            return Ok(Some(record));
        }
    }

    /// Nothing more is read until the partition is assigned again.
    fn replaced(&mut self) -> Error {
        self.is_assigned = false;
        let offset = self.unverified.take().map_or(self.next, |mark| mark.offset);
        Error::Replaced { at: self.at.clone(), offset, mark: None }
    }
}

impl OpenFile {
    async fn new(place: usize, file: &LogFile) -> Result<Self> {
        let failed = |error| failure(&file.location, &error);
        let chunks = file.store.get(&file.path).await.map_err(failed)?.into_stream();
        Ok(OpenFile { place, chunks, lines: Lines::default(), line: 0, is_at_end: false })
    }

    /// The next line without its end; none behind the last.
    async fn line(&mut self, file: &LogFile) -> Result<Option<Bytes>> {
        loop {
            if let Some(line) = self.lines.next_line() {
                self.line += 1;
                return Ok(Some(line));
            }
            if self.is_at_end {
                self.line += 1;
                return Ok(None);
            }
            if self.lines.waiting_bytes() > MOST_LINE_BYTES {
                return Err(Error::LongLine { file: file.location.clone(), line: self.line + 1 });
            }
            let chunk = self.chunks.try_next().await.map_err(|error| failure(&file.location, &error))?;
            let unpacked = match chunk {
                Some(chunk) => self.lines.feed(&chunk),
                None => {
                    self.is_at_end = true;
                    self.lines.finish()
                }
            };
            unpacked.map_err(|error| damaged(file, &error))?;
        }
    }
}

fn offset(place: usize, line: i64) -> i64 {
    ((place as i64) << LINE_BITS) + line
}

/// A line as a record. What is not JSON is a record all the same: saying so is not the source's business.
fn record(at: &TopicPartition, offset: i64, line: Bytes, file: &LogFile, number: i64) -> Result<RawRecord> {
    let Line { topic: found, timestamp_ms, key, payload, .. } = Line::read(&line);
    if let Some(found) = found.filter(|found| **found != *at.topic) {
        let file = file.location.clone();
        return Err(Error::OtherTopic { file, line: number + 1, topic: at.topic.to_string(), found });
    }
    let (topic, partition) = (at.topic.clone(), at.partition);
    Ok(RawRecord { topic, partition, offset, timestamp_ms, key, payload })
}

fn damaged(file: &LogFile, error: &std::io::Error) -> Error {
    Error::Damaged { file: file.location.clone(), source: Reason::new(error.to_string()) }
}

pub(super) fn failure(location: &str, error: &object_store::Error) -> Error {
    let is_missing = matches!(error, object_store::Error::NotFound { .. });
    Error::Files { location: location.to_string(), source: Reason::new(error.to_string()), is_missing }
}

/// Names in the order people count in: `part-9` is before `part-10`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NaturalOrder(String);

impl Ord for NaturalOrder {
    fn cmp(&self, other: &Self) -> Ordering {
        let (mut left, mut right) = (self.0.as_bytes(), other.0.as_bytes());
        loop {
            let order = match (left.split_first(), right.split_first()) {
                (Some((a, _)), Some((b, _))) if a.is_ascii_digit() && b.is_ascii_digit() => {
                    let (a, b) = (number(&mut left), number(&mut right));
                    a.len().cmp(&b.len()).then(a.cmp(b))
                }
                (Some((a, rest)), Some((b, others))) => {
                    (left, right) = (rest, others);
                    a.cmp(b)
                }
                (left, right) => return left.is_some().cmp(&right.is_some()).then(self.0.cmp(&other.0)),
            };
            if order != Ordering::Equal {
                return order;
            }
        }
    }
}

impl PartialOrd for NaturalOrder {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Takes the digits at the front, and gives them without zeros in front.
fn number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let length = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at(length);
    *text = rest;
    let zeros = digits.iter().take_while(|byte| **byte == b'0').count();
    &digits[zeros..]
}

impl fmt::Debug for FilesSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilesSource").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use object_store::PutPayload;
    use object_store::memory::InMemory;

    use super::*;

    const LIMITS: FetchLimits = FetchLimits { records: 3, bytes: 1 << 20, wait: Duration::from_millis(20) };

    struct World {
        store: Arc<InMemory>,
    }

    impl World {
        fn new() -> Self {
            World { store: Arc::new(InMemory::new()) }
        }

        async fn put(&self, path: &str, content: impl Into<Vec<u8>>) {
            self.store.put(&path.into(), PutPayload::from(content.into())).await.unwrap();
        }

        fn source(&self, paths: &[&str], topic: Option<&str>) -> FilesSource {
            let place = |path: &&str| FilePlace {
                location: format!("s3://bucket/{path}"),
                store: self.store.clone(),
                path: path.to_string(),
            };
            FilesSource::new(FilesConfig {
                places: paths.iter().map(place).collect(),
                topic: topic.map(str::to_string),
                discover_every: Duration::ZERO,
            })
        }
    }

    fn at(topic: &str, partition: i32) -> TopicPartition {
        TopicPartition::new(topic, partition)
    }

    async fn from_beginning(source: &mut FilesSource) {
        let partitions = source.partitions().await.unwrap();
        let starts = partitions.into_iter().map(|at| (at, Start::Beginning)).collect();
        source.assign(&starts).await.unwrap();
    }

    /// Everything to the ends there are now.
    async fn drain(source: &mut FilesSource) -> Result<Vec<RawRecord>> {
        let ends = source.end_offsets().await?;
        let (mut records, mut positions) = (Vec::new(), Positions::new());
        while positions != ends {
            let fetched = source.fetch(LIMITS).await?;
            assert!(fetched.records.len() <= LIMITS.records);
            records.extend(fetched.records);
            positions.extend(fetched.positions);
        }
        Ok(records)
    }

    fn texts(records: &[RawRecord]) -> Vec<String> {
        let text = |bytes: &Option<Bytes>| {
            bytes.as_ref().map_or("-".to_string(), |bytes| String::from_utf8_lossy(bytes).into_owned())
        };
        let text = |r: &RawRecord| {
            let (place, line) = (r.offset >> LINE_BITS, r.offset & 0xffff_ffff);
            let time = r.timestamp_ms.map_or(String::new(), |time| format!(" @{time}"));
            format!("{}/{} {place}:{line} {}={}{time}", r.topic, r.partition, text(&r.key), text(&r.payload))
        };
        records.iter().map(text).collect()
    }

    fn gzip(text: &str) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text.as_bytes()).unwrap();
        encoder.finish().unwrap()
    }

    #[tokio::test]
    async fn files_are_one_log_in_the_order_people_count_in() {
        let world = World::new();
        world.put("dump/part-9.jsonl", "{\"a\":1}\n\n {\"a\":2} \r\n").await;
        world.put("dump/part-10.jsonl.gz", [gzip("{\"a\":3}\n{\"a\""), gzip(":4}")].concat()).await;
        let packed = zstd::encode_all("{\"a\":5}\nnot json\n".as_bytes(), 0).unwrap();
        world.put("dump/part-11", [packed.clone(), packed].concat()).await;
        world.put("dump/_SUCCESS", "").await;
        let mut source = world.source(&["dump"], Some("shop.public.orders"));
        assert_eq!(source.partitions().await.unwrap(), [at("shop.public.orders", 0)]);
        from_beginning(&mut source).await;
        let records = drain(&mut source).await.unwrap();
        insta::assert_snapshot!(texts(&records).join("\n"), @r#"
        shop.public.orders/0 0:0 -={"a":1}
        shop.public.orders/0 0:2 -={"a":2}
        shop.public.orders/0 1:0 -={"a":3}
        shop.public.orders/0 1:1 -={"a":4}
        shop.public.orders/0 2:0 -={"a":5}
        shop.public.orders/0 2:1 -=not json
        shop.public.orders/0 2:2 -={"a":5}
        shop.public.orders/0 2:3 -=not json
        "#);
        // From any position and its mark, what follows comes.
        for (index, last) in records.iter().enumerate() {
            let start = Start::At { next: last.offset + 1, last: Some(RecordMark::of(last)) };
            source.assign(&[(at("shop.public.orders", 0), start)].into()).await.unwrap();
            assert_eq!(drain(&mut source).await.unwrap(), records[index + 1..]);
        }
        let end = Start::At { next: offset(3, 0), last: records.last().map(RecordMark::of) };
        source.assign(&[(at("shop.public.orders", 0), end)].into()).await.unwrap();
        world.put("dump/part-12", "{\"a\":6}\n").await;
        let fetched = async {
            loop {
                let fetched = source.fetch(LIMITS).await.unwrap();
                if !fetched.records.is_empty() {
                    break fetched;
                }
            }
        };
        let fetched = tokio::time::timeout(Duration::from_secs(30), fetched).await.unwrap();
        assert_eq!(texts(&fetched.records), ["shop.public.orders/0 3:0 -={\"a\":6}"]);
        world.put("dump/part-1", "").await;
        let error = source.partitions().await.unwrap_err();
        insta::assert_snapshot!(crate::error::Error::from(error).render(), @r"
        error: topic `shop.public.orders` partition 0: the files are not those that were there before, from `s3://bucket/dump/part-1` on
          hint: files are read in the order of their names: put new ones behind those that were read, and leave those where they are
        ");
    }

    #[tokio::test]
    async fn lines_are_values_or_records_of_a_sink() {
        let world = World::new();
        let lines = [
            r#"{"before":null,"after":{"id":1},"op":"c"}"#,
            r#"{"key":{"id":1},"value":{"op":"c"},"topic":"t","partition":3,"offset":7,"timestamp":5,"headers":[]}"#,
            r#"{"key":"k","value":null,"offset":8}"#,
            r#"{"key":"{\"id\":1}","value":"{\"op\":\"d\"}","timestamp":"1970-01-01T00:00:01Z"}"#,
            r#"{"value":1}"#,
            r#"{"key":1,"value":2,"of a table":true}"#,
            r#"[1]"#,
            "null",
        ];
        world.put("t/0.json", lines.join("\n")).await;
        let mut source = world.source(&["t/0.json"], None);
        from_beginning(&mut source).await;
        insta::assert_snapshot!(texts(&drain(&mut source).await.unwrap()).join("\n"), @r#"
        t/0 0:0 -={"before":null,"after":{"id":1},"op":"c"}
        t/0 0:1 {"id":1}={"op":"c"} @5
        t/0 0:2 "k"=-
        t/0 0:3 {"id":1}={"op":"d"} @1000
        t/0 0:4 -={"value":1}
        t/0 0:5 -={"key":1,"value":2,"of a table":true}
        t/0 0:6 -=[1]
        t/0 0:7 -=-
        "#);
    }

    #[tokio::test]
    async fn folders_name_topics_and_partitions() {
        let world = World::new();
        for (path, line) in [
            ("topics/shop.orders/partition=0/shop.orders+0+0.json", "1"),
            ("topics/shop.orders/partition=12/shop.orders+12+0.json", "2"),
            ("topics/shop.users/year=2026/a.json", "3"),
            ("topics/other/a.json", "4"),
        ] {
            world.put(path, line).await;
        }
        let mut source = world.source(&["topics/shop.*.json", "topics/shop.users"], None);
        let partitions = source.partitions().await.unwrap();
        assert_eq!(partitions, [at("shop.orders", 0), at("shop.orders", 12), at("shop.users", 0)]);
        let starts = partitions[1..].iter().map(|at| (at.clone(), Start::Beginning)).collect();
        source.assign(&starts).await.unwrap();
        source.pause(&[at("shop.users", 0)]).unwrap();
        assert_eq!(texts(&source.fetch(LIMITS).await.unwrap().records), ["shop.orders/12 0:0 -=2"]);
        assert!(source.fetch(LIMITS).await.unwrap().positions.is_empty());
        source.resume(&[at("shop.users", 0)]).unwrap();
        assert_eq!(texts(&source.fetch(LIMITS).await.unwrap().records), ["shop.users/0 0:0 -=3"]);
        world.put("topics/shop.items/a.json", "5").await;
        assert_eq!(source.fetch(LIMITS).await.unwrap().gained, [at("shop.items", 0)]);
        assert_eq!(source.fetch(LIMITS).await.unwrap().gained, [], "told once");
    }

    #[tokio::test]
    async fn what_cannot_be_read_says_why() {
        let world = World::new();
        world.put("t/0.json", "{\"topic\":\"u\",\"value\":1}\n").await;
        world.put("cut/0.json.gz", &gzip(&"0123456789\n".repeat(1000))[..40]).await;
        world.put("no topic/0.json", "1").await;
        let packed = zstd::encode_all("0123456789\n".repeat(1000).as_bytes(), 0).unwrap();
        world.put("cut-too/0.json", &packed[..packed.len() - 5]).await;
        let mut messages = Vec::new();
        for path in ["t", "cut", "cut-too", "no topic", "nowhere"] {
            let mut source = world.source(&[path], None);
            let error = match source.partitions().await {
                Ok(_) => {
                    from_beginning(&mut source).await;
                    drain(&mut source).await.unwrap_err()
                }
                Err(error) => error,
            };
            messages.push(crate::error::Error::from(error).render());
        }
        insta::assert_snapshot!(messages.join("\n"), @r"
        error: line 1 of `s3://bucket/t/0.json` is of topic `u`, and the file is read as one of `t`
          hint: read the files of each topic from a folder with the topic's name, or correct `source.files.topic`
        error: `s3://bucket/cut/0.json.gz` cannot be unpacked
          caused by: corrupt gzip stream does not have a matching checksum
          hint: the file was probably cut short: write it again
        error: `s3://bucket/cut-too/0.json` cannot be unpacked
          caused by: incomplete frame
          hint: the file was probably cut short: write it again
        error: which topic `s3://bucket/no topic/0.json` is of is not known
          hint: set `source.files.topic`, or put the file into a folder with the topic's name
        error: there is no file at `s3://bucket/nowhere`
          hint: check `source.files.paths`; a pattern with `*` may match nothing yet
        ");
    }

    #[tokio::test]
    async fn other_files_under_the_old_names_are_not_read_on() {
        let world = World::new();
        world.put("t/1.json", "1\n2\n3\n").await;
        world.put("t/2.json", "4\n").await;
        let mut source = world.source(&["t"], None);
        from_beginning(&mut source).await;
        let records = drain(&mut source).await.unwrap();
        for (content, read) in [("1\nx\n3\n", 1), ("1\n", 2), ("1\n2\n", 3)] {
            world.put("t/1.json", content).await;
            let mut source = world.source(&["t"], None);
            let last = &records[read.min(2)];
            let start = Start::At { next: last.offset + 1, last: Some(RecordMark::of(last)) };
            source.assign(&[(at("t", 0), start)].into()).await.unwrap();
            let error = drain(&mut source).await.unwrap_err();
            assert!(matches!(error, Error::Replaced { offset, .. } if offset == last.offset), "{error:?}");
            let fetched = source.fetch(LIMITS).await.unwrap();
            assert!(fetched.records.is_empty() && fetched.positions.is_empty());
        }
        let past = Start::At { next: offset(2, 1), last: None };
        let error = source.assign(&[(at("t", 0), past)].into()).await.unwrap_err();
        assert!(matches!(error, Error::PastEnd { .. }), "{error:?}");
    }
}
