//! Rows on disk in parts, so that who goes through them part by part reads each of them once.

use arrow::array::RecordBatch;
use arrow::compute::interleave_record_batch;
use arrow::datatypes::SchemaRef;
use datafusion::config::SpillCompression;
use datafusion::error::DataFusionError;
use datafusion::execution::disk_manager::RefCountedTempFile;
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, SpillMetrics};
use datafusion::physical_plan::spill::{SpillManager, get_record_batch_memory_size};
use datafusion::prelude::SessionContext;
use futures::stream::{BoxStream, StreamExt};

use super::error::{Error, Result};

/// Says where rows go to before they are read again.
#[derive(Clone)]
pub(crate) struct PartsFolder {
    manager: SpillManager,
    parts: usize,
    waiting_bytes: usize,
}

impl PartsFolder {
    /// For rows of this schema, in so many parts. Each writer lets so many bytes wait, so that it does not write small
    /// pieces.
    pub(crate) fn new(session: &SessionContext, schema: SchemaRef, parts: usize, waiting_bytes: usize) -> Self {
        let metrics = SpillMetrics::new(&ExecutionPlanMetricsSet::new(), 0);
        let manager =
            SpillManager::new(session.runtime_env(), metrics, schema).with_compression_type(SpillCompression::Lz4Frame);
        PartsFolder { manager, parts, waiting_bytes }
    }

    pub(crate) fn writer(&self) -> PartsWriter {
        PartsWriter {
            folder: self.clone(),
            open: (0..self.parts).map(|_| None).collect(),
            written: vec![0; self.parts],
            waiting: Vec::new(),
            bytes: 0,
            rows: vec![Vec::new(); self.parts],
        }
    }

    fn open(&self) -> Result<Open> {
        let mut file = self.manager.create_in_progress_file("parts of a run")?;
        Ok(Box::new(move |rows| match rows {
            Some(rows) => file.append_batch(rows).map(|()| None),
            None => file.finish(),
        }))
    }

    /// What some writers have written.
    pub(crate) fn parts(self, written: impl IntoIterator<Item = WrittenParts>) -> Parts {
        let (mut files, mut bytes) = (vec![Vec::new(); self.parts], vec![0; self.parts]);
        for (part, file, bytes_of_rows) in written.into_iter().flat_map(|of_writer| of_writer.0) {
            files[part].push(file);
            bytes[part] += bytes_of_rows;
        }
        Parts { manager: self.manager, files, bytes }
    }
}

/// A file that is being written, which has a type without a name: takes rows, and ends with none.
type Open = Box<dyn FnMut(Option<&RecordBatch>) -> Result<Option<RefCountedTempFile>, DataFusionError> + Send>;

/// Writes rows to the parts they are of. Each core has one of its own.
pub(crate) struct PartsWriter {
    folder: PartsFolder,
    open: Vec<Option<Open>>,
    /// What the rows of each part take in memory.
    written: Vec<u64>,
    waiting: Vec<RecordBatch>,
    bytes: usize,
    /// For each part the batch and row of those that wait for it.
    rows: Vec<Vec<(usize, usize)>>,
}

/// Files, each with the number of the part that it is of and what its rows take in memory. They go when nobody has them
/// any more.
pub(crate) struct WrittenParts(Vec<(usize, RefCountedTempFile, u64)>);

impl PartsWriter {
    /// Adds rows of a batch to parts: `each` is handed what takes a row and its part.
    pub(crate) fn add(&mut self, batch: RecordBatch, each: impl FnOnce(&mut dyn FnMut(usize, usize))) -> Result<()> {
        let (number, rows) = (self.waiting.len(), &mut self.rows);
        let mut count = 0;
        each(&mut |row, part| {
            rows[part].push((number, row));
            count += 1;
        });
        self.bytes += get_record_batch_memory_size(&batch) + count * size_of::<(usize, usize)>();
        self.waiting.push(batch);
        if self.bytes >= self.folder.waiting_bytes { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        let waiting: Vec<&RecordBatch> = self.waiting.iter().collect();
        for ((open, rows), written) in self.open.iter_mut().zip(&mut self.rows).zip(&mut self.written) {
            if rows.is_empty() {
                continue;
            }
            let batch = interleave_record_batch(&waiting, rows).map_err(DataFusionError::from)?;
            let file = match open {
                Some(file) => file,
                None => open.insert(self.folder.open()?),
            };
            file(Some(&batch))?;
            *written += get_record_batch_memory_size(&batch) as u64;
            rows.clear();
        }
        self.waiting.clear();
        self.bytes = 0;
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<WrittenParts> {
        self.write()?;
        let mut written = Vec::new();
        for (part, (file, bytes)) in self.open.iter_mut().zip(&self.written).enumerate() {
            if let Some(file) = file
                && let Some(file) = file(None)?
            {
                written.push((part, file, *bytes));
            }
        }
        Ok(WrittenParts(written))
    }
}

/// Rows in parts. The files go when this does.
pub(crate) struct Parts {
    manager: SpillManager,
    files: Vec<Vec<RefCountedTempFile>>,
    bytes: Vec<u64>,
}

impl Parts {
    /// What the rows of each part take in memory.
    pub(crate) fn bytes(&self) -> &[u64] {
        &self.bytes
    }

    /// What reads a part's rows, in pieces that several may read at the same time.
    pub(crate) fn readers(&self, part: usize) -> Vec<PartReader> {
        let reader = |file: &RefCountedTempFile| PartReader { manager: self.manager.clone(), file: file.clone() };
        self.files[part].iter().map(reader).collect()
    }

    /// What the files take on disk.
    pub(crate) fn bytes_on_disk(&self) -> u64 {
        self.files.iter().flatten().map(RefCountedTempFile::current_disk_usage).sum()
    }
}

pub(crate) struct PartReader {
    manager: SpillManager,
    file: RefCountedTempFile,
}

impl PartReader {
    pub(crate) fn read(self) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let stream = self.manager.read_spill_as_stream(self.file, None)?;
        Ok(stream.map(|batch| batch.map_err(Error::from)).boxed())
    }
}
