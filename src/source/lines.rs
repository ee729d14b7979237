//! Lines out of the bytes of a file, and records out of lines.
//!
//! Files may be packed with gzip or zstd, whatever they are called. A line is either a record's value alone, or an object
//! as the S3 sinks of Kafka Connect write it, with `value` beside at least one of `key`, `topic`, `partition`, `offset`,
//! `timestamp` and `headers`, and nothing else. Nothing here waits for anything.

use std::borrow::Cow;
use std::io::Write;

use bytes::{Buf, Bytes, BytesMut};
use flate2::write::MultiGzDecoder;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;
use zstd::stream::raw;
use zstd::stream::zio;

/// By how many bytes a packed file is known.
const PACKING_BYTES: usize = 4;

/// A line that is longer than any record of Kafka's is no line.
pub const MOST_LINE_BYTES: usize = 256 * 1024 * 1024;

/// Takes a file apart that is fed to it piece by piece.
#[derive(Default)]
pub struct Lines {
    /// The file's first bytes, until there are enough of them to know how it is packed.
    start: Vec<u8>,
    packing: Option<Packing>,
    /// What was unpacked and not given out.
    buffer: BytesMut,
    /// How much of the buffer is known to hold no end of a line.
    searched: usize,
    is_at_end: bool,
}

enum Packing {
    None,
    Gzip(Box<MultiGzDecoder<Vec<u8>>>),
    Zstd(zio::Writer<Vec<u8>, raw::Decoder<'static>>),
}

/// What a line says of the record it is.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Line {
    pub topic: Option<String>,
    pub partition: Option<i32>,
    pub offset: Option<i64>,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Bytes>,
    pub payload: Option<Bytes>,
}

/// A record as the sinks write it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Envelope<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
    #[serde(borrow, default)]
    key: Option<&'a RawValue>,
    #[serde(borrow, default)]
    topic: Option<Cow<'a, str>>,
    #[serde(default)]
    partition: Option<serde_json::Value>,
    #[serde(default)]
    offset: Option<serde_json::Value>,
    #[serde(default)]
    timestamp: Option<serde_json::Value>,
    #[serde(default)]
    headers: Option<IgnoredAny>,
}

impl Lines {
    /// Whether a file that begins like this is packed.
    pub fn is_packed(start: &[u8]) -> bool {
        !matches!(Packing::of(start), Packing::None)
    }

    /// Takes the next bytes of the file. What was unpacked before an error can still be read.
    pub fn feed(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if let Some(packing) = &mut self.packing {
            return packing.feed(bytes, &mut self.buffer);
        }
        self.start.extend_from_slice(bytes);
        match self.start.len() < PACKING_BYTES {
            true => Ok(()),
            false => self.begin(),
        }
    }

    fn begin(&mut self) -> std::io::Result<()> {
        let start = std::mem::take(&mut self.start);
        self.packing.insert(Packing::of(&start)).feed(&start, &mut self.buffer)
    }

    /// Says that the file is over. A packed file that was cut short is an error; the line it was cut in is none.
    pub fn finish(&mut self) -> std::io::Result<()> {
        if self.packing.is_none() {
            self.begin()?;
        }
        if let Some(packing) = &mut self.packing {
            packing.finish(&mut self.buffer)?;
        }
        self.is_at_end = true;
        Ok(())
    }

    /// The next line without its end, where the whole of it is there. Behind the last line there may be no end.
    pub fn next_line(&mut self) -> Option<Bytes> {
        if let Some(length) = memchr::memchr(b'\n', &self.buffer[self.searched..]) {
            let line = self.buffer.split_to(self.searched + length).freeze();
            self.buffer.advance(1);
            self.searched = 0;
            return Some(line);
        }
        self.searched = self.buffer.len();
        if !self.is_at_end || self.buffer.is_empty() {
            return None;
        }
        self.searched = 0;
        Some(self.buffer.split().freeze())
    }

    /// How much is there of a line whose end was not seen yet.
    pub fn waiting_bytes(&self) -> usize {
        self.buffer.len()
    }
}

impl Packing {
    /// What a file's first bytes say. No JSON starts like this.
    fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Packing::Gzip(Box::new(MultiGzDecoder::new(Vec::new()))),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => match raw::Decoder::new() {
                Ok(decoder) => Packing::Zstd(zio::Writer::new(Vec::new(), decoder)),
                // There was no memory for it; the bytes will be rejected as what they are.
                Err(_) => Packing::None,
            },
            _ => Packing::None,
        }
    }

    fn feed(&mut self, chunk: &[u8], buffer: &mut BytesMut) -> std::io::Result<()> {
        match self {
            Packing::None => buffer.extend_from_slice(chunk),
            Packing::Gzip(decoder) => {
                decoder.write_all(chunk)?;
                pour(decoder.get_mut(), buffer);
            }
            Packing::Zstd(decoder) => {
                decoder.write_all(chunk)?;
                pour(decoder.writer_mut(), buffer);
            }
        }
        Ok(())
    }

    /// A file that was cut short is an error.
    fn finish(&mut self, buffer: &mut BytesMut) -> std::io::Result<()> {
        match self {
            Packing::None => {}
            Packing::Gzip(decoder) => {
                decoder.try_finish()?;
                pour(decoder.get_mut(), buffer);
            }
            Packing::Zstd(decoder) => {
                decoder.finish()?;
                pour(decoder.writer_mut(), buffer);
            }
        }
        Ok(())
    }
}

fn pour(from: &mut Vec<u8>, to: &mut BytesMut) {
    to.extend_from_slice(from);
    from.clear();
}

impl Line {
    /// What is not JSON is a record's value all the same: saying so is not the source's business.
    pub fn read(line: &Bytes) -> Self {
        let line = line.slice_ref(line.trim_ascii());
        // A sink that keeps records without a value makes such lines of them.
        let alone = |line: Bytes| Line { payload: Some(line).filter(|line| *line != "null"), ..Line::default() };
        let Ok(envelope) = serde_json::from_slice::<Envelope<'_>>(&line) else { return alone(line) };
        let Envelope { value, key, topic, partition, offset, timestamp, headers } = envelope;
        let has_position = topic.is_some() || partition.is_some() || offset.is_some();
        if !has_position && key.is_none() && timestamp.is_none() && headers.is_none() {
            return alone(line);
        }
        Line {
            topic: topic.map(Cow::into_owned),
            partition: partition.and_then(|partition| partition.as_i64()?.try_into().ok()),
            offset: offset.and_then(|offset| offset.as_i64()),
            timestamp_ms: timestamp.as_ref().and_then(milliseconds),
            key: key.and_then(|key| content(key, &line)),
            payload: content(value, &line),
        }
    }
}

/// The bytes a key or a value stands for. Converters for strings put JSON into a JSON string.
fn content(json: &RawValue, line: &Bytes) -> Option<Bytes> {
    let text = json.get();
    if text == "null" {
        return None;
    }
    if text.starts_with('"')
        && let Ok(inner) = serde_json::from_str::<String>(text)
        && inner.trim_start().starts_with(['{', '['])
    {
        return Some(inner.into());
    }
    Some(line.slice_ref(text.as_bytes()))
}

/// Milliseconds since 1970, of a number of them or a time as text.
fn milliseconds(timestamp: &serde_json::Value) -> Option<i64> {
    let parsed = || chrono::DateTime::parse_from_rfc3339(timestamp.as_str()?).ok();
    timestamp.as_i64().or_else(|| parsed().map(|time| time.timestamp_millis()))
}
