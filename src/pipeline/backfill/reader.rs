//! Reads a file of a history into batches of rows: its bytes here, what becomes of them on the makers' threads. The rows of
//! a Parquet file are read as the lines they stand for.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::held::{Fate, Held};
use super::{BackfillError, Tick};
use crate::backfilled::RangeSet;
use crate::batch::{BLOCK_ROWS, ChangeBatchBuilder};
use crate::change::{ChangeBatch, Decoded, Op, RawRecord};
use crate::clock::Clock;
use crate::decode::Decoder;
use crate::error::{Error, Kind, Result};
use crate::evolution::TableImages;
use crate::offsets::{OffsetRange, TopicPartition};
use crate::pipeline::Dialect;
use crate::pipeline::makers::Makers;
use crate::source::{HistoryFile, Identity, Line, Lines, MOST_LINE_BYTES, ParquetRows};

/// A batch is handed over when it has so many records, or so many bytes of them, as in ingestion.
const CHUNK_ROWS: usize = 8_192;
const CHUNK_BYTES: usize = 4 << 20;

/// How much of a file is asked for at once.
const READ_BYTES: u64 = 4 << 20;

/// How much of it is unpacked at once: it may become a hundred times as much.
const PACKED_BYTES: usize = 256 << 10;

/// A file whose lines take no more than this is read whole before its lines are numbered. Sinks make files of some
/// thousand records.
const NUMBERED_WHOLE_BYTES: usize = 16 << 20;

/// Rows of one partition, and which offsets are done with by them.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) batch: ChangeBatch,
    pub(super) at: TopicPartition,
    pub(super) done: RangeSet,
    /// Of the records, unpacked.
    pub(super) bytes: usize,
}

/// What was met in a file besides new records.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Seen {
    pub(super) there: u64,
    pub(super) ahead: u64,
    /// Of all lines, unpacked.
    pub(super) bytes: u64,
    /// Files that do not come to the next one's offset, or of which it is not known which offsets their lines have.
    pub(super) with_gaps: usize,
}

impl std::ops::AddAssign for Seen {
    fn add_assign(&mut self, other: Self) {
        self.there += other.there;
        self.ahead += other.ahead;
        self.bytes += other.bytes;
        self.with_gaps += other.with_gaps;
    }
}

/// A file to be read.
pub(super) struct Work {
    pub(super) identity: Identity,
    pub(super) file: Arc<HistoryFile>,
    /// The offset of the next file of its partition, if there is one.
    pub(super) next: Option<i64>,
}

/// What all readers of a table share.
#[derive(Clone)]
pub(super) struct Reading {
    pub(super) makers: Makers,
    pub(super) dialect: Dialect,
    pub(super) clock: Clock,
    pub(super) epoch: i32,
    /// How the table's rows are to be built, which changes with its columns.
    pub(super) images: watch::Receiver<Arc<TableImages>>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) send: mpsc::Sender<Made>,
    pub(super) tick: Tick,
    /// How many bytes of files this table was told to be further.
    pub(super) ticked: Arc<AtomicI64>,
    pub(super) tombstones: Arc<Tombstones>,
}

/// Whether a sink left out the records without a value that stand behind deletes, as far as its files have shown.
#[derive(Debug, Default)]
pub(super) struct Tombstones(AtomicU8);

impl Tombstones {
    pub(super) fn new(left_out: Option<bool>) -> Self {
        let tombstones = Tombstones::default();
        left_out.into_iter().for_each(|left_out| tombstones.learn(left_out));
        tombstones
    }

    fn get(&self) -> Option<bool> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            known => Some(known == 1),
        }
    }

    fn learn(&self, left_out: bool) {
        self.0.store(if left_out { 1 } else { 2 }, Ordering::Relaxed);
    }
}

/// How reading a file ended.
pub(super) enum Ended {
    Whole,
    /// Somebody wanted it to.
    Stopped,
    /// It cannot be read further; the others can.
    Broken(Error),
}

impl Reading {
    /// Reads a file to its end. An error is one that is not about this file alone.
    pub(super) async fn read(&mut self, work: &Work, held: Arc<Held>) -> Result<(Ended, Seen)> {
        let file = &*work.file;
        let mut parser = Parser::new(self, work, held);
        let mut read: u64 = 0;
        let mut coming = Some(fetch(file, 0));
        while let Some(piece) = coming.take() {
            // A task that was cancelled is one whose runtime ends.
            let mut piece = match piece.await.unwrap_or_else(|_| Ok(Bytes::new())) {
                Ok(piece) => piece,
                Err(error) => return broken(error, parser.seen),
            };
            if read == 0 && ParquetRows::is_parquet(&piece) {
                return self.read_rows(parser, file).await;
            }
            if read == 0
                && let Some(format) = other_format(&piece)
            {
                return broken(BackfillError::OtherFormat { file: parser.file, format }.into(), parser.seen);
            }
            let next = read + piece.len() as u64;
            if next < file.bytes && !piece.is_empty() {
                coming = Some(fetch(file, next));
            }
            loop {
                if *self.stop.borrow() {
                    return Ok((Ended::Stopped, parser.seen));
                }
                let part = piece.split_to(piece.len().min(parser.bytes_at_once(&piece)));
                read += part.len() as u64;
                let (tick, is_end) = (part.len() as u64, coming.is_none() && piece.is_empty());
                let ended;
                (parser, ended) = self.work(parser, part, is_end).await?;
                self.told(tick as i64);
                if let Some(ended) = ended {
                    return Ok((ended, parser.seen));
                }
                if piece.is_empty() {
                    break;
                }
            }
        }
        Ok((Ended::Whole, parser.seen))
    }

    /// Reads the rows of a Parquet file.
    async fn read_rows(&mut self, mut parser: Parser, file: &HistoryFile) -> Result<(Ended, Seen)> {
        let mut rows = match ParquetRows::open(file).await {
            Ok(rows) => rows,
            Err(error) => return broken(error.into(), parser.seen),
        };
        loop {
            if *self.stop.borrow() {
                return Ok((Ended::Stopped, parser.seen));
            }
            let (lines, amount) = match rows.next().await {
                Ok(None) => (None, 0),
                Ok(Some((batch, amount))) => {
                    let file = parser.file.clone();
                    let made = self.makers.run(move || ParquetRows::lines(&file, &batch)).await;
                    match made.ok_or(BackfillError::ThreadsEnded)? {
                        Ok(lines) => (Some(lines), amount),
                        Err(error) => return broken(error.into(), parser.seen),
                    }
                }
                // What came before is good, as far as it is known which offsets it has.
                Err(error) => return broken(error.into(), parser.seen),
            };
            let is_end = lines.is_none();
            let ended;
            (parser, ended) = self.work(parser, lines.unwrap_or_default(), is_end).await?;
            self.told(i64::try_from(amount).unwrap_or(i64::MAX));
            if let Some(ended) = ended {
                return Ok((ended, parser.seen));
            }
            if is_end {
                return Ok((Ended::Whole, parser.seen));
            }
        }
    }

    /// Tells that the whole is further by so much.
    pub(super) fn told(&self, amount: i64) {
        self.ticked.fetch_add(amount, Ordering::Relaxed);
        (self.tick)(amount);
    }

    async fn work(&mut self, mut parser: Parser, part: Bytes, is_end: bool) -> Result<(Parser, Option<Ended>)> {
        if self.images.has_changed().unwrap_or(false) {
            parser.images = self.images.borrow_and_update().clone();
            parser.is_outdated = true;
        }
        let job = move || {
            let mut made = Vec::new();
            let outcome = parser.parse(&part, is_end, &mut made);
            (parser, made, outcome)
        };
        let (parser, made, outcome) = self.makers.run(job).await.ok_or(BackfillError::ThreadsEnded)?;
        for made in made {
            if self.send.send(made).await.is_err() {
                // Whoever writes has met something, and will tell.
                return Ok((parser, Some(Ended::Stopped)));
            }
        }
        match outcome {
            Ok(()) => Ok((parser, None)),
            Err(Trouble::OfFile(error)) => Ok((parser, Some(Ended::Broken(error)))),
            Err(Trouble::OfTable(error)) => Err(error),
        }
    }
}

/// How a file ended that cannot be read further. Where storage does not answer, no other will either.
fn broken(error: Error, seen: Seen) -> Result<(Ended, Seen)> {
    match error.kind() {
        Kind::Unavailable => Err(error),
        _ => Ok((Ended::Broken(error), seen)),
    }
}

fn fetch(file: &HistoryFile, from: u64) -> JoinHandle<Result<Bytes>> {
    let file = file.clone();
    tokio::spawn(async move {
        match file.bytes {
            // There is no range of nothing.
            0 => Ok(Bytes::new()),
            bytes => Ok(file.read(from..bytes.min(from + READ_BYTES)).await?),
        }
    })
}

/// What else sinks write, by a file's first bytes. As lines they would be rejected records, and their offsets done with.
fn other_format(start: &[u8]) -> Option<&'static str> {
    match start {
        [b'O', b'b', b'j', 1, ..] => Some("Avro"),
        [b'O', b'R', b'C', ..] => Some("ORC"),
        _ => None,
    }
}

enum Trouble {
    OfFile(Error),
    OfTable(Error),
}

fn is_delete(decoded: &Decoded) -> bool {
    matches!(decoded, Decoded::Change(event) if event.op == Op::Delete)
}

fn set_offset(decoded: &mut Decoded, offset: i64) {
    match decoded {
        Decoded::Change(event) => event.record.offset = offset,
        Decoded::Rejected(rejected) => rejected.record.offset = offset,
        Decoded::Consumed(record, _) => record.offset = offset,
    }
}

/// Makes rows of a file's bytes.
struct Parser {
    file: String,
    at: TopicPartition,
    /// From its first offset to that of the next file.
    range: OffsetRange,
    numbering: Numbering,
    tombstones: Arc<Tombstones>,
    held: Arc<Held>,
    images: Arc<TableImages>,
    /// Whether the table's columns are others than those that rows are built for.
    is_outdated: bool,
    is_packed: Option<bool>,
    lines: Lines,
    decoder: Decoder,
    builder: ChangeBatchBuilder,
    /// Records that are not in the builder yet, which takes many at once faster.
    waiting: Vec<Decoded>,
    dialect: Dialect,
    epoch: i32,
    clock: Clock,
    /// Lines given out so far.
    line: u64,
    next_offset: i64,
    /// Whether lines that say no offset leave one out behind each delete.
    skips_tombstones: bool,
    /// Behind the last record, if that was a delete: the offset of what Debezium sends then.
    tombstone: Option<i64>,
    /// The last line's offset, if it was one of a row that ingestion brought.
    row: Option<i64>,
    done: RangeSet,
    /// The last run of offsets that are done with.
    run: OffsetRange,
    records: usize,
    bytes: usize,
    seen: Seen,
}

/// Which offsets lines have that do not say it.
enum Numbering {
    /// Not known before the end: a sink may have left out what is no record for it.
    Open { lines: Vec<(Decoded, usize)>, bytes: usize, deletes: i64 },
    /// One after the other.
    InARow,
}

impl Parser {
    fn new(reading: &mut Reading, work: &Work, held: Arc<Held>) -> Self {
        let images = reading.images.borrow_and_update().clone();
        let Reading { dialect, clock, epoch, .. } = reading;
        let identity = &work.identity;
        Parser {
            file: work.file.location.clone(),
            at: identity.at.clone(),
            range: OffsetRange { from: identity.from, next: work.next.unwrap_or(i64::MAX) },
            numbering: Numbering::Open { lines: Vec::new(), bytes: 0, deletes: 0 },
            tombstones: reading.tombstones.clone(),
            held,
            is_outdated: false,
            is_packed: None,
            lines: Lines::default(),
            decoder: Decoder::new(dialect.format),
            builder: builder(&images, *epoch, clock, dialect),
            waiting: Vec::new(),
            images,
            dialect: dialect.clone(),
            epoch: *epoch,
            clock: clock.clone(),
            line: 0,
            next_offset: identity.from,
            skips_tombstones: false,
            tombstone: None,
            row: None,
            done: RangeSet::default(),
            run: OffsetRange { from: identity.from, next: identity.from },
            records: 0,
            bytes: 0,
            seen: Seen::default(),
        }
    }

    fn bytes_at_once(&mut self, piece: &[u8]) -> usize {
        let is_packed = *self.is_packed.get_or_insert_with(|| Lines::is_packed(piece));
        if is_packed { PACKED_BYTES } else { READ_BYTES as usize }
    }

    fn parse(&mut self, bytes: &[u8], is_end: bool, made: &mut Vec<Made>) -> Result<(), Trouble> {
        if std::mem::take(&mut self.is_outdated) {
            self.finish(made)?;
            self.builder = builder(&self.images, self.epoch, &self.clock, &self.dialect);
        }
        let mut unpacked = self.lines.feed(bytes);
        if is_end && unpacked.is_ok() {
            unpacked = self.lines.finish();
        }
        // What was unpacked before something broke is good.
        let mut taken = Ok(());
        while taken.is_ok()
            && let Some(line) = self.lines.next_line()
        {
            self.line += 1;
            taken = self.take(line);
            if taken.is_ok() && matches!(self.numbering, Numbering::Open { bytes, .. } if bytes > NUMBERED_WHOLE_BYTES)
            {
                taken = self.settle(false, made);
            }
            if self.is_full() {
                self.finish(made)?;
            }
        }
        // Records that are not in the batch may count as read.
        if matches!(taken, Err(Trouble::OfTable(_))) {
            return taken;
        }
        if is_end || unpacked.is_err() || taken.is_err() {
            taken = match (unpacked.is_ok(), taken) {
                (true, Ok(())) => self.settle(true, made),
                // What is not known to be whole is not numbered.
                (_, taken) => taken,
            };
            self.finish(made)?;
        }
        taken?;
        let (file, line) = (|| self.file.clone(), self.line);
        let of_file = |error: BackfillError| Trouble::OfFile(error.into());
        unpacked.map_err(|source| of_file(BackfillError::Damaged { file: file(), line, source }))?;
        match self.lines.waiting_bytes() > MOST_LINE_BYTES {
            true => Err(of_file(BackfillError::LongLine { file: file(), line: line + 1 })),
            false => Ok(()),
        }
    }

    fn take(&mut self, line: Bytes) -> Result<(), Trouble> {
        if line.trim_ascii().is_empty() {
            return Ok(());
        }
        self.seen.bytes += line.len() as u64 + 1;
        let bytes = line.len();
        let Line { topic, partition, offset, timestamp_ms, key, payload } = Line::read(&line);
        let file = || self.file.clone();
        let of_file = |error: BackfillError| Err(Trouble::OfFile(error.into()));
        let is_other = topic.as_ref().is_some_and(|topic| **topic != *self.at.topic)
            || partition.is_some_and(|partition| partition != self.at.partition);
        if is_other {
            let topic = topic.map_or(self.at.topic.clone(), Arc::from);
            let found = TopicPartition::new(topic, partition.unwrap_or(self.at.partition));
            let at = self.at.clone();
            return of_file(BackfillError::OtherPartition { file: file(), line: self.line, at, found });
        }
        let record = |offset, at: &TopicPartition| {
            let (topic, partition) = (at.topic.clone(), at.partition);
            RawRecord { topic, partition, offset, timestamp_ms, key: key.clone(), payload: payload.clone() }
        };
        if let (None, Numbering::Open { lines, bytes: held, deletes }) = (offset, &mut self.numbering) {
            let decoded = self.decoder.decode(record(self.next_offset, &self.at));
            *deletes += i64::from(is_delete(&decoded));
            *held += bytes;
            lines.push((decoded, bytes));
            return Ok(());
        }
        let is_said = offset.is_some();
        let offset = offset.unwrap_or(self.next_offset);
        if offset < self.next_offset {
            let expected = self.next_offset;
            return of_file(BackfillError::Disorder { file: file(), line: self.line, offset, expected });
        }
        self.next_offset = offset + 1;
        if self.tombstone.take().is_some_and(|tombstone| tombstone + 1 == offset) {
            self.note_left_out(offset - 1);
        }
        let is_new = self.is_new(offset);
        let skips = self.skips_tombstones && !is_said;
        if !is_new && !skips {
            return Ok(());
        }
        let decoded = self.decoder.decode(record(offset, &self.at));
        if is_delete(&decoded) {
            if skips {
                self.next_offset += 1;
            }
            self.tombstone = Some(offset + 1);
        }
        if is_new { self.push(decoded, bytes) } else { Ok(()) }
    }

    /// Notes that there is nothing at an offset that a row would be made of.
    fn note_left_out(&mut self, offset: i64) {
        if self.held.fate(&self.at, offset) == Fate::New {
            self.note(offset);
        }
    }

    fn is_full(&self) -> bool {
        self.records >= CHUNK_ROWS || self.bytes >= CHUNK_BYTES
    }

    /// Whether a record is to become a row. Notes what is known of its offset.
    fn is_new(&mut self, offset: i64) -> bool {
        let before = self.row.take();
        match self.held.fate(&self.at, offset) {
            Fate::New => self.note(offset),
            Fate::Row => {
                if before.is_some_and(|row| self.run.next == row + 1) {
                    // Between rows of lines that follow each other, there was nothing that becomes one.
                    self.run.next = offset;
                }
                self.note(offset);
                self.row = Some(offset);
                self.seen.there += 1;
                return false;
            }
            Fate::Done => {
                self.seen.there += 1;
                return false;
            }
            Fate::Ahead => {
                self.seen.ahead += 1;
                return false;
            }
        }
        true
    }

    fn push(&mut self, decoded: Decoded, bytes: usize) -> Result<(), Trouble> {
        self.records += 1;
        self.bytes += bytes;
        self.waiting.push(decoded);
        if self.waiting.len() < BLOCK_ROWS { Ok(()) } else { self.push_waiting() }
    }

    fn push_waiting(&mut self) -> Result<(), Trouble> {
        self.builder.push_all(self.waiting.drain(..)).map_err(|error| Trouble::OfTable(error.into()))
    }

    /// Numbers the lines that were kept until it is known how. Sinks are often told to leave out records without a value:
    /// Debezium sends one such behind each delete, and where just as many offsets are missing as there are deletes, it
    /// is known which.
    fn settle(&mut self, is_whole: bool, made: &mut Vec<Made>) -> Result<(), Trouble> {
        let OffsetRange { from, next } = self.range;
        let has_next = next < i64::MAX;
        let numbering = std::mem::replace(&mut self.numbering, Numbering::InARow);
        let Numbering::Open { lines, deletes, .. } = numbering else {
            self.seen.with_gaps += usize::from(is_whole && has_next && self.next_offset < next);
            return Ok(());
        };
        if lines.is_empty() {
            // They said their offsets.
            return Ok(());
        }
        let count = lines.len() as i64;
        let (end, end_with_tombstones) = (from + count, from + count + deletes);
        let known = self.tombstones.get();
        let left_out = match (deletes > 0, is_whole && has_next) {
            (false, _) => Some(false),
            (true, true) if next == end_with_tombstones => Some(true),
            (true, true) if next <= end => Some(false),
            (true, true) if next < end_with_tombstones => None,
            (true, _) => known,
        };
        if let Some(left_out) = left_out
            && deletes > 0
            && is_whole
            && has_next
        {
            self.tombstones.learn(left_out);
        }
        let is_short = has_next && is_whole && if left_out == Some(true) { end_with_tombstones } else { end } < next;
        self.seen.with_gaps += usize::from(is_short || left_out.is_none());
        if left_out.is_none() {
            let held = self.held.count_rows(&self.at, OffsetRange { from, next: end_with_tombstones });
            if held > 0 {
                let file = self.file.clone();
                return Err(Trouble::OfFile(BackfillError::Seam { file, deletes, held }.into()));
            }
        }
        let left_out = left_out.unwrap_or(false);
        self.skips_tombstones = left_out || (!is_whole && known == Some(true));
        for (mut decoded, bytes) in lines {
            let offset = self.next_offset;
            self.next_offset += 1;
            let is_followed = self.skips_tombstones && is_delete(&decoded);
            self.next_offset += i64::from(is_followed);
            if self.is_new(offset) {
                set_offset(&mut decoded, offset);
                self.push(decoded, bytes)?;
            }
            if is_followed {
                self.note_left_out(offset + 1);
            }
            if self.is_full() {
                self.finish(made)?;
            }
        }
        Ok(())
    }

    fn note(&mut self, offset: i64) {
        if offset != self.run.next {
            self.done.insert(self.run);
            self.run = OffsetRange { from: offset, next: offset };
        }
        self.run.next = offset + 1;
    }

    fn finish(&mut self, made: &mut Vec<Made>) -> Result<(), Trouble> {
        self.done.insert(self.run);
        self.run.from = self.run.next;
        let done = std::mem::take(&mut self.done);
        // What lies between rows may have been done with before.
        let done: RangeSet =
            done.iter().flat_map(|range| self.held.missing(&self.at, range).iter().collect::<Vec<_>>()).collect();
        if done.is_empty() {
            return Ok(());
        }
        self.push_waiting()?;
        let batch = self.builder.finish().map_err(|error| Trouble::OfTable(error.into()))?;
        self.records = 0;
        made.push(Made { batch, at: self.at.clone(), done, bytes: std::mem::take(&mut self.bytes) });
        Ok(())
    }
}

pub(super) fn builder(images: &TableImages, epoch: i32, clock: &Clock, dialect: &Dialect) -> ChangeBatchBuilder {
    ChangeBatchBuilder::new(images.clone(), epoch, clock.clone()).with_placeholder(dialect.placeholder.clone())
}
