//! The events of a run, as they are read from bronze.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, Schema};
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::MemoryConsumer;
use futures::TryStreamExt;
use roaring::RoaringTreemap;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use super::{Base, MOST_PASSES_EVER, Run, arrow_failed, with_deletes};
use crate::engine::{PartReader, Parts, PartsFolder, Piece, RowReader, as_it_comes, in_parallel, pieces};
use crate::layout;
use crate::silver::events::{
    Depth, Events, KeyRange, Newest, columns_to_read, into_parts, of_range, of_range_in_part, without_key,
};
use crate::silver::order::Frontier;
use crate::silver::{Error, Extent, Result};
use crate::table::{ColumnStatistics, Prune, ScanFile, TableView};

/// From so many passes on, events are laid out by key before the first of them: writing and reading them costs about as
/// much as reading bronze two times.
const WORTH_LAYING_OUT: u64 = 4;

/// How many parts there may be: numbers that many others divide, since a pass takes some parts as a whole.
const PARTS: [usize; 5] = [6, 12, 24, 60, 120];

/// How many files hold parts at most, of all cores together. Each is open, twice while it is written, and few systems let a
/// process have more than a thousand.
const OPEN_FILES: usize = 128;

/// What waits on each core to be written to parts. Where memory is little, less.
const WAITING_BYTES: usize = 32 << 20;

/// What is written of a part at once should not be less than this.
const PIECE_BYTES: usize = 16 << 10;

impl Run<'_> {
    /// What there is to be read.
    pub(super) async fn changes(&self, base: Option<&Base>) -> Result<Changes> {
        let new = self.view.added_since(base.map_or(0, |base| base.sequence));
        let files = new.files(None).await?;
        let again = self.again(base, &files).await?;
        Ok(Changes { new, files, again, layout: Layout::None })
    }

    /// What was merged before and is looked at again.
    async fn again(&self, base: Option<&Base>, new: &[ScanFile]) -> Result<Again> {
        let (Extent::Since(since), Some(_)) = (self.extent, base) else { return Ok(Again::default()) };
        let new: HashSet<&str> = new.iter().map(|file| file.path.as_str()).collect();
        let mut files = self.view.files(Some(&IngestedSince(since))).await?;
        files.retain(|file| !new.contains(file.path.as_str()));
        Ok(Again { files, since })
    }

    /// Lays the events out on disk by key, where so many passes would read all of them. Where that cannot be done, each pass
    /// reads bronze. The passes become as many as it takes for the events of each to fit.
    pub(super) async fn lay_out(&self, changes: &mut Changes, depth: Depth, passes: &mut u64) {
        if *passes < WORTH_LAYING_OUT || self.wants_keyless_only() {
            return;
        }
        if matches!(changes.layout, Layout::None) {
            let started = Instant::now();
            let made = async {
                let (parts, new) = self.parts_of(&changes.new, &changes.files, depth, None).await?;
                let Again { files, since } = &changes.again;
                let (_, again) = self.parts_of(&self.view, files, Depth::Versions, Some(*since)).await?;
                Ok::<_, Error>(LaidOut { parts, new, again })
            };
            match made.await {
                Ok(laid_out) => {
                    tracing::debug!(
                        table = %self.model.table, bytes = laid_out.new.bytes_on_disk() + laid_out.again.bytes_on_disk(),
                        elapsed_ms = started.elapsed().as_millis() as u64, "laid the changes out by key"
                    );
                    changes.layout = Layout::Done(Box::new(laid_out));
                }
                Err(error) => {
                    tracing::warn!(
                        table = %self.model.table, layer = "silver", %error,
                        "the changes do not fit into memory and could not be laid out on disk: each pass reads all of them"
                    );
                    changes.layout = Layout::GivenUp;
                }
            }
        }
        if let Layout::Done(laid_out) = &changes.layout {
            // Rows that the model gives are kept next to the events they come from.
            let share = if depth == Depth::Versions { 4 } else { 2 };
            *passes = laid_out.passes(*passes, self.engine.memory() as u64 / share);
        }
    }

    /// Of events that were ingested since a time, where there is one, those that have a key.
    async fn parts_of(
        &self,
        view: &TableView,
        files: &[ScanFile],
        depth: Depth,
        since: Option<i64>,
    ) -> Result<(usize, Parts)> {
        let threads = self.engine.threads().clamp(1, OPEN_FILES / PARTS[0]);
        let waiting = (self.engine.memory() / 16 / threads).min(WAITING_BYTES);
        let most = (OPEN_FILES / threads).min(waiting / PIECE_BYTES);
        let parts = PARTS.into_iter().rfind(|parts| *parts <= most).unwrap_or(PARTS[0]);
        // What waits is there twice while it is written.
        let consumer = MemoryConsumer::new(format!("laying out changes for {}", self.model.table));
        let held = consumer.register(&self.session.runtime_env().memory_pool);
        held.try_grow(2 * waiting * threads).map_err(|error| self.failed(error.into()))?;
        let columns = columns_to_read(&view.arrow_schema(), &self.keys, depth);
        let folder = PartsFolder::new(&self.session, Arc::new(Schema::new(columns.clone())), parts + 1, waiting);
        let reader = Arc::new(RowReader::new(&self.session, view, columns));
        let deleted = view.deleted_positions(&with_deletes(files)).await?;
        let waiting_pieces: VecDeque<(Piece, ScanFile, Option<Arc<RoaringTreemap>>)> = pieces(files)
            .into_iter()
            .map(|piece| {
                let file = files[piece.file].clone();
                let gone = deleted.get(&file.path).cloned();
                (piece, file, gone)
            })
            .collect();
        // Who is done with one takes the next: many pieces are empty, since row groups are larger.
        let queue = Arc::new(Mutex::new(waiting_pieces));
        let work = |_| {
            let (reader, shape, keys, queue) = (reader.clone(), self.shape.clone(), self.keys.clone(), queue.clone());
            let mut writer = folder.writer();
            async move {
                loop {
                    let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((piece, file, gone)) = next else { break };
                    let mut batches = reader.read(&file, &piece, gone, None).await?;
                    while let Some(batch) = batches.try_next().await? {
                        let events = Events::read(&batch, &keys, &shape, |_| None).map_err(arrow_failed)?;
                        let chosen = since.map(|since| events.with_key(events.ingested_since(since, None)));
                        let is_chosen = |row: usize| chosen.as_ref().is_none_or(|chosen| chosen.value(row));
                        writer.add(batch, |put| {
                            into_parts(&events, parts, |row, part| {
                                if is_chosen(row) {
                                    put(row, part);
                                }
                            })
                        })?;
                    }
                }
                writer.finish()
            }
        };
        let mut written = Vec::new();
        let outcome = in_parallel(threads, 0..threads, work, |of_worker| written.push(of_worker)).await;
        outcome.map_err(|error| self.failed(error))?;
        Ok((parts, folder.parts(written)))
    }

    /// Reads the new events of a range of keys.
    pub(super) async fn newest(
        &self,
        changes: &Changes,
        range: KeyRange,
        depth: Depth,
        base: Option<&Base>,
    ) -> Result<Newest> {
        let Changes { new, files, again, layout } = changes;
        let only_keyless = self.wants_keyless_only();
        let rows = match only_keyless {
            true => 0,
            false => files.iter().map(|file| file.record_count).sum::<u64>() / range.of,
        };
        let consumer = MemoryConsumer::new(format!("changes for {}", self.model.table));
        let held = consumer.register(&self.session.runtime_env().memory_pool);
        let mut newest = Newest::new(&self.shape, rows as usize, range).ignore_nulls(&self.ignores);
        if depth == Depth::Versions {
            newest = newest.keep_all();
        }
        let most = self.engine.memory() / 2;
        let mut outcome = held.try_grow(newest.bytes());
        let nothing = Frontier::default();
        let frontier = base.map_or(&nothing, |base| &base.merged.frontier);
        let mut take = |events: Events| {
            if outcome.is_ok() {
                outcome = match held.size() + events.bytes() <= most {
                    true => held.try_grow(events.bytes()),
                    // The rest is for those who write and sort.
                    false => Err(DataFusionError::ResourcesExhausted(format!("changes take more than {most} bytes"))),
                };
            }
            if outcome.is_ok() {
                newest.add(events, frontier);
            }
        };
        let keep = move |events: &Events| if only_keyless { without_key(events) } else { of_range(events, range) };
        match layout {
            Layout::Done(laid_out) => self.each_batch_of_parts(laid_out, &laid_out.new, range, &mut take).await?,
            _ => self.each_batch_of(new, files, depth, keep, |events| events, &mut take).await?,
        }
        if !again.files.is_empty() && !only_keyless {
            let since = again.since;
            // What has no key stays where it is.
            let keep =
                move |events: &Events| Some(events.with_key(events.ingested_since(since, of_range(events, range))));
            let (view, depth) = (&self.view, Depth::Versions);
            match layout {
                // Only those since then are laid out.
                Layout::Done(laid_out) => self.each_batch_of_parts(laid_out, &laid_out.again, range, &mut take).await?,
                _ => self.each_batch_of(view, &again.files, depth, keep, |events| events, &mut take).await?,
            }
        }
        outcome.map_err(|error| self.failed(error.into()))?;
        if self.mends(base) {
            // What is read again is neither late nor repeated.
            (newest.seen.late, newest.seen.duplicates) = (0, 0);
        }
        newest.seal();
        newest.hold(held);
        Ok(newest)
    }

    /// Reads what lies on disk of a range of keys, each event once.
    async fn each_batch_of_parts(
        &self,
        laid_out: &LaidOut,
        of: &Parts,
        range: KeyRange,
        take: impl FnMut(Events),
    ) -> Result<()> {
        let parts = laid_out.parts;
        let work = |(part, reader): (usize, PartReader), seen: Sender<Events>| {
            let (shape, keys) = (self.shape.clone(), self.keys.clone());
            let keep = move |events: &Events| Some(of_range_in_part(events, range, part, parts));
            async move {
                let mut batches = reader.read()?;
                while let Some(batch) = batches.try_next().await? {
                    let of_batch = Events::read(&batch, &keys, &shape, keep).map_err(arrow_failed)?;
                    if seen.send(of_batch).await.is_err() {
                        break;
                    }
                }
                Ok(())
            }
        };
        let numbers = range.parts(parts).chain([parts]);
        let of_part = |part: usize| of.readers(part).into_iter().map(move |reader| (part, reader));
        let readers: Vec<(usize, PartReader)> = numbers.flat_map(of_part).collect();
        as_it_comes(self.engine.threads(), readers, work, take).await.map_err(|error| self.failed(error))
    }

    /// Reads events on every core, those of the rows that `keep` names, and hands what `look` makes of each batch to
    /// `take`.
    pub(in crate::silver) async fn each_batch_of<T: Send + 'static>(
        &self,
        view: &TableView,
        files: &[ScanFile],
        depth: Depth,
        keep: impl Fn(&Events) -> Option<BooleanArray> + Clone + Send + Sync + 'static,
        look: impl Fn(Events) -> T + Clone + Send + Sync + 'static,
        take: impl FnMut(T),
    ) -> Result<()> {
        let columns = columns_to_read(&view.arrow_schema(), &self.keys, depth);
        let reader = Arc::new(RowReader::new(&self.session, view, columns));
        let deleted = view.deleted_positions(&with_deletes(files)).await?;
        let parts = pieces(files).into_iter().map(|piece| {
            let file = files[piece.file].clone();
            let gone = deleted.get(&file.path).cloned();
            (piece, file, gone)
        });
        let work = |(piece, file, gone): (Piece, ScanFile, Option<Arc<RoaringTreemap>>), seen: Sender<T>| {
            let (reader, shape, keys) = (reader.clone(), self.shape.clone(), self.keys.clone());
            let (keep, look) = (keep.clone(), look.clone());
            async move {
                let mut batches = reader.read(&file, &piece, gone, None).await?;
                while let Some(batch) = batches.try_next().await? {
                    let of_batch = look(Events::read(&batch, &keys, &shape, &keep).map_err(arrow_failed)?);
                    if seen.send(of_batch).await.is_err() {
                        break;
                    }
                }
                Ok(())
            }
        };
        as_it_comes(self.engine.threads(), parts, work, take).await.map_err(|error| self.failed(error))
    }
}

/// What a run reads.
pub(super) struct Changes {
    /// What came since the last merge.
    new: TableView,
    pub(super) files: Vec<ScanFile>,
    again: Again,
    layout: Layout,
}

/// Whether it lies on disk by key.
enum Layout {
    None,
    Done(Box<LaidOut>),
    /// There was no room, or it could not be done.
    GivenUp,
}

/// Events on disk, in parts by key, and in one more behind them what concerns all.
struct LaidOut {
    parts: usize,
    new: Parts,
    again: Parts,
}

impl Changes {
    pub(super) fn files(&self) -> impl Iterator<Item = &ScanFile> {
        self.files.iter().chain(&self.again.files)
    }

    /// Makes room on disk. Says whether there was anything.
    pub(super) fn forget_layout(&mut self) -> bool {
        matches!(std::mem::replace(&mut self.layout, Layout::GivenUp), Layout::Done(_))
    }
}

impl LaidOut {
    /// How many passes it takes, so many at least, for the events of each to fit into a number of bytes.
    fn passes(&self, least: u64, most_bytes: u64) -> u64 {
        let bytes: Vec<u64> = self.new.bytes().iter().zip(self.again.bytes()).map(|(new, again)| new + again).collect();
        let (of_keys, of_all) = bytes.split_at(self.parts);
        let of_all: u64 = of_all.iter().sum();
        let largest = |passes: u64| {
            let of_pass = |number: u64| of_keys.iter().skip(number as usize).step_by(passes as usize).sum::<u64>();
            (0..passes).map(of_pass).max().unwrap_or(0) + of_all
        };
        let mean = |passes: u64| of_keys.iter().sum::<u64>() / passes + of_all;
        // Keys and places are held beside the events.
        let fits = |bytes: u64| bytes / 4 * 5 <= most_bytes;
        let parts = self.parts as u64;
        let divisors = || (least..=parts).filter(|passes| parts.is_multiple_of(*passes));
        // Where one key has more events than there is room for, no number of passes parts them.
        let by_largest = divisors().find(|passes| fits(largest(*passes)));
        let found = by_largest.or_else(|| divisors().find(|passes| fits(mean(*passes))));
        let more = || {
            let estimate = mean(parts) / 4 * 5 / most_bytes.max(1) * parts;
            least.max(estimate.min(MOST_PASSES_EVER)).next_multiple_of(parts)
        };
        found.unwrap_or_else(more)
    }
}

/// Files that were merged before, and from when on their rows are looked at again.
#[derive(Default)]
struct Again {
    files: Vec<ScanFile>,
    since: i64,
}

/// Keeps the files that may hold a row which was ingested at this time or later.
struct IngestedSince(i64);

impl Prune for IngestedSince {
    fn keep(&self, statistics: &dyn ColumnStatistics) -> Vec<bool> {
        let times = statistics.upper(layout::INGESTED_AT).and_then(|times| cast(&times, &DataType::Int64).ok());
        let Some(times) = times else { return vec![true; statistics.len()] };
        let times = times.as_primitive::<Int64Type>();
        (0..statistics.len()).map(|at| times.is_null(at) || times.value(at) >= self.0).collect()
    }
}
