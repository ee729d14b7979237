//! A Parquet file being written to a table's storage.

use std::io::{self, Write};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use iceberg::io::{FileIO, FileWrite};
use parquet::arrow::ArrowWriter;
use parquet::file::metadata::ParquetMetaData;
use parquet::file::properties::WriterProperties;

use super::error::Result;
use super::writer::write_error;

/// Encoded bytes are kept in parts up to this size. The crate's own writer for storages keeps a whole row group in one
/// growing piece of memory, and moving that took a tenth of the time of a merge.
const PART_BYTES: usize = 1 << 20;
const FIRST_PART_BYTES: usize = 64 << 10;

/// Row groups go to the storage when they are full; the file is there when [`ParquetFile::finish`] returns.
pub(super) struct ParquetFile {
    path: String,
    writer: ArrowWriter<Parts>,
    output: Box<dyn FileWrite>,
}

impl ParquetFile {
    pub(super) async fn create(
        file_io: &FileIO,
        path: String,
        schema: SchemaRef,
        properties: WriterProperties,
    ) -> Result<Self> {
        let output = file_io.new_output(&path).map_err(|error| write_error(&path, error))?;
        let output = output.writer().await.map_err(|error| write_error(&path, error))?;
        let writer = ArrowWriter::try_new(Parts::default(), schema, Some(properties));
        let writer = writer.map_err(|error| write_error(&path, error))?;
        Ok(ParquetFile { path, writer, output })
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).map_err(|error| write_error(&self.path, error))?;
        self.pass_on().await
    }

    pub(super) async fn finish(&mut self) -> Result<ParquetMetaData> {
        let metadata = self.writer.finish().map_err(|error| write_error(&self.path, error))?;
        self.pass_on().await?;
        self.output.close().await.map_err(|error| write_error(&self.path, error))?;
        Ok(metadata)
    }

    /// Bytes of memory held for the row group that is being filled.
    pub(super) fn held_bytes(&self) -> usize {
        self.writer.memory_size()
    }

    /// How large the file would be now.
    pub(super) fn expected_bytes(&self) -> usize {
        self.writer.bytes_written() + self.writer.in_progress_size()
    }

    pub(super) fn written_bytes(&self) -> u64 {
        self.writer.bytes_written() as u64
    }

    async fn pass_on(&mut self) -> Result<()> {
        for part in std::mem::take(&mut self.writer.inner_mut().0) {
            self.output.write(Bytes::from(part)).await.map_err(|error| write_error(&self.path, error))?;
        }
        Ok(())
    }
}

/// What was encoded and is not passed on yet.
#[derive(Default)]
struct Parts(Vec<Vec<u8>>);

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let full = match self.0.last() {
            Some(last) if last.len() < last.capacity() => None,
            last => Some(last.map_or(FIRST_PART_BYTES, |last| (2 * last.capacity()).min(PART_BYTES))),
        };
        if let Some(capacity) = full {
            self.0.push(Vec::with_capacity(capacity));
        }
        let Some(part) = self.0.last_mut() else { return Ok(0) };
        let taken = bytes.len().min(part.capacity() - part.len());
        part.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_what_was_written_in_order() {
        let mut parts = Parts::default();
        let bytes: Vec<u8> = (0..3 * PART_BYTES).map(|at| ((at * 31) >> 3) as u8).collect();
        for piece in bytes.chunks(8_191) {
            parts.write_all(piece).unwrap();
        }
        assert_eq!(parts.0.concat(), bytes);
        assert_eq!(parts.0[0].len(), FIRST_PART_BYTES);
        assert!(parts.0.iter().all(|part| part.capacity() <= PART_BYTES));
    }
}
