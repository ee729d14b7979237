//! Looks up single values in the pages of a Parquet column, where they stand.
//!
//! The Parquet reader makes an array of every value before rows can be chosen from it; who wants one row in ten pays for
//! the nine others. Here a page is unpacked, and values are taken from their places in it. This is for columns of plain
//! values in the encodings that nearly every file has; **of what it does not know, it says so**, and the Parquet reader
//! has to do it.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayData, ArrayRef, BooleanBufferBuilder, make_array};
use arrow::buffer::{Buffer, NullBuffer};
use arrow::datatypes::DataType;
use bytes::{Buf, Bytes};
use parquet::basic::{Encoding, Type as PhysicalType};
use parquet::column::page::{Page, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::page_index::offset_index::PageLocation;
use parquet::file::reader::{ChunkReader, Length};
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescriptor;

/// Room for texts that are yet to come is made at once up to here: a page may be of other texts than those behind it.
const MOST_RESERVED: usize = 8 << 20;

/// A column of a row group, of which some pages have been read.
pub(super) struct ChunkPages<'a> {
    pub(super) chunk: &'a ColumnChunkMetaData,
    pub(super) rows: usize,
    /// Where its pages are; without it, all of them have to have been read.
    pub(super) locations: Option<&'a [PageLocation]>,
    pub(super) bytes: Arc<ReadBytes>,
}

/// Parts of a file, in order, each with where it begins.
pub(super) struct ReadBytes(pub(super) Vec<(u64, Bytes)>);

impl ReadBytes {
    fn from(&self, start: u64) -> Result<Bytes> {
        let at = self.0.partition_point(|(begins, _)| *begins <= start);
        let part = at.checked_sub(1).and_then(|at| self.0.get(at));
        let rest = part.and_then(|(begins, bytes)| {
            let skipped = usize::try_from(start - begins).ok()?;
            (skipped <= bytes.len()).then(|| bytes.slice(skipped..))
        });
        rest.ok_or_else(|| corrupt("a page is not where the file says"))
    }
}

impl Length for ReadBytes {
    fn len(&self) -> u64 {
        self.0.last().map_or(0, |(begins, bytes)| begins + bytes.len() as u64)
    }
}

impl ChunkReader for ReadBytes {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(self.from(start)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let rest = self.from(start)?;
        if length > rest.len() {
            return Err(corrupt("a page is longer than the file says"));
        }
        Ok(rest.slice(..length))
    }
}

/// Whether values of such a column, which the Parquet reader would make arrays of this type of, can be looked up.
pub(super) fn can_pick(column: &ColumnDescriptor, data_type: &DataType) -> bool {
    let is_flat = column.max_rep_level() == 0 && column.max_def_level() <= 1;
    is_flat && Values::of(column, data_type, 0).is_some()
}

/// Whether nothing that a column says of its pages is unknown here.
pub(super) fn knows_encodings(chunk: &ColumnChunkMetaData) -> bool {
    // Which of them are of values and which of levels, it does not say.
    chunk.encodings().all(|encoding| {
        is_plain(encoding) || is_of_dictionary(encoding) || encoding == Encoding::RLE || is_of_old_levels(encoding)
    })
}

/// The values of these rows of a row group, which rise; `None` where a page has them in a way that is not known here.
pub(super) fn pick(pages: &ChunkPages<'_>, data_type: &DataType, rows: &[u32]) -> Result<Option<ArrayRef>> {
    let locations = pages.locations.map(<[PageLocation]>::to_vec);
    let mut reader = SerializedPageReader::new(pages.bytes.clone(), pages.chunk, pages.rows, locations)?;
    pick_from(&mut reader, pages.chunk.column_descr(), data_type, rows)
}

fn pick_from(
    reader: &mut impl PageReader,
    column: &ColumnDescriptor,
    data_type: &DataType,
    rows: &[u32],
) -> Result<Option<ArrayRef>> {
    let Some(mut values) = Values::of(column, data_type, rows.len()) else { return Ok(None) };
    let mut present = Present::default();
    let (mut first, mut rest, mut at) = (0, rows, Vec::new());
    while !rest.is_empty() {
        let Some(next) = reader.peek_next_page()? else { return Err(corrupt("a column has fewer rows than its file")) };
        if next.is_dict {
            match reader.get_next_page()? {
                Some(Page::DictionaryPage { buf, num_values, encoding, .. }) if is_plain(encoding) => {
                    values.keep_dictionary(&buf, num_values as usize)?;
                }
                _ => return Ok(None),
            }
            continue;
        }
        let Some(count) = next.num_rows.or(next.num_levels) else { return Ok(None) };
        let (of_page, others) = rest.split_at(rest.partition_point(|row| (*row as usize) < first + count));
        if of_page.is_empty() {
            reader.skip_next_page()?;
        } else {
            let Some(page) = reader.get_next_page()? else { return Err(corrupt("a page is missing")) };
            let Some(page) = DataPage::of(page, column.max_def_level() > 0) else { return Ok(None) };
            if page.count != count {
                return Ok(None);
            }
            at.clear();
            present.find(&page, of_page.iter().map(|row| *row as usize - first), &mut at)?;
            if !values.take(&page, &at)? {
                return Ok(None);
            }
        }
        (first, rest) = (first + count, others);
    }
    values.finish(data_type, rows.len(), present.0).map(Some)
}

fn corrupt(problem: &str) -> ParquetError {
    ParquetError::General(problem.to_string())
}

/// The dictionary's own page says `PLAIN_DICTIONARY` in files of older writers, and means the same.
fn is_plain(encoding: Encoding) -> bool {
    #[allow(deprecated, reason = "old files have it")]
    let old = Encoding::PLAIN_DICTIONARY;
    encoding == Encoding::PLAIN || encoding == old
}

fn is_of_dictionary(encoding: Encoding) -> bool {
    #[allow(deprecated, reason = "old files have it")]
    let old = Encoding::PLAIN_DICTIONARY;
    encoding == Encoding::RLE_DICTIONARY || encoding == old
}

/// Older writers name it for levels that they have none of.
fn is_of_old_levels(encoding: Encoding) -> bool {
    #[allow(deprecated, reason = "old files have it")]
    let old = Encoding::BIT_PACKED;
    encoding == old
}

/// A page, taken apart.
struct DataPage {
    /// Of rows, null or not.
    count: usize,
    /// Which of them are not null, where any may be.
    levels: Option<Bytes>,
    values: Bytes,
    encoding: Encoding,
}

impl DataPage {
    fn of(page: Page, may_be_null: bool) -> Option<Self> {
        match page {
            Page::DataPage { mut buf, num_values, encoding, def_level_encoding, .. } => {
                let levels = match may_be_null {
                    true if def_level_encoding == Encoding::RLE && buf.len() >= 4 => {
                        let length = buf.get_u32_le() as usize;
                        (length <= buf.len()).then(|| Some(buf.split_to(length)))?
                    }
                    true => return None,
                    false => None,
                };
                Some(DataPage { count: num_values as usize, levels, values: buf, encoding })
            }
            Page::DataPageV2 { mut buf, num_rows, encoding, def_levels_byte_len, rep_levels_byte_len, .. } => {
                let levels = def_levels_byte_len as usize;
                if rep_levels_byte_len > 0 || levels > buf.len() {
                    return None;
                }
                let levels = Some(buf.split_to(levels)).filter(|_| may_be_null);
                Some(DataPage { count: num_rows as usize, levels, values: buf, encoding })
            }
            Page::DictionaryPage { .. } => None,
        }
    }
}

/// Small numbers as Parquet packs them: runs of one of them, and runs of them bit by bit.
struct Packed<'a> {
    bytes: &'a [u8],
    width: usize,
}

enum Packs<'a> {
    Same(u32),
    Bits(&'a [u8]),
}

impl<'a> Packed<'a> {
    /// The next run and how long it is, which may be more than there are values.
    fn next(&mut self) -> Option<(Packs<'a>, usize)> {
        let (mut header, mut shift) = (0u64, 0);
        loop {
            let (byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            header |= u64::from(byte & 0x7f).checked_shl(shift)?;
            shift += 7;
            if byte & 0x80 == 0 {
                break;
            }
        }
        // More than any page has; what follows need not fear to add such.
        let count = usize::try_from(header >> 1).ok()?.min(1 << 32);
        if header & 1 == 0 {
            let (value, rest) = self.bytes.split_at_checked(self.width.div_ceil(8))?;
            self.bytes = rest;
            let value = value.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte));
            return Some((Packs::Same(value), count));
        }
        // The last of them need not be whole.
        let length = (count * self.width).min(self.bytes.len());
        let (bits, rest) = self.bytes.split_at_checked(length)?;
        self.bytes = rest;
        Some((Packs::Bits(bits), count * 8))
    }

    /// The numbers at these places, which rise.
    fn at(mut self, places: &[u32], found: &mut Vec<u32>) -> Result<()> {
        let (mut first, mut rest) = (0, places);
        while !rest.is_empty() {
            let Some((run, count)) = self.next() else { return Err(corrupt("a page ends before its values do")) };
            let (of_run, others) = rest.split_at(rest.partition_point(|place| (*place as usize) < first + count));
            match run {
                Packs::Same(value) => found.extend(of_run.iter().map(|_| value)),
                Packs::Bits(bits) => {
                    for place in of_run {
                        found.push(number_in(bits, self.width, *place as usize - first)?);
                    }
                }
            }
            (first, rest) = (first + count, others);
        }
        Ok(())
    }
}

fn number_in(bits: &[u8], width: usize, at: usize) -> Result<u32> {
    let bit = at * width;
    let from = bit / 8;
    if bit + width > bits.len() * 8 {
        return Err(corrupt("a page ends before its values do"));
    }
    let word = match bits.get(from..).and_then(|rest| rest.first_chunk::<8>()) {
        Some(word) => u64::from_le_bytes(*word),
        None => bits[from..].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    Ok((word >> (bit % 8) & ((1 << width) - 1)) as u32)
}

/// Which of the rows that are wanted are not null; nothing while all are.
#[derive(Default)]
struct Present(Option<BooleanBufferBuilder>, usize);

impl Present {
    /// Notes for rows of a page whether they are there, and adds the place of each that is among the page's values.
    fn find(&mut self, page: &DataPage, rows: impl Iterator<Item = usize>, at: &mut Vec<u32>) -> Result<()> {
        let mut levels = Packed { bytes: page.levels.as_deref().unwrap_or_default(), width: 1 };
        // The first row of the run, how many values were before it, and the run.
        let (mut first, mut before) = (0, 0);
        let (mut run, mut count) = match page.levels {
            Some(_) => (Packs::Same(0), 0),
            None => (Packs::Same(1), page.count),
        };
        // Within a run of bits: how many bytes were gone past, and how many values were in them.
        let (mut bytes_done, mut in_them) = (0, 0);
        for row in rows {
            while row >= first + count {
                before += match run {
                    Packs::Same(level) => level as usize * count,
                    Packs::Bits(bits) => in_them + ones(bits.get(bytes_done..).unwrap_or_default()),
                };
                first += count;
                (bytes_done, in_them) = (0, 0);
                (run, count) = levels.next().ok_or_else(|| corrupt("a page ends before its levels do"))?;
                if matches!(run, Packs::Same(level) if level > 1) {
                    return Err(corrupt("a column that is not nested has levels as if it were"));
                }
            }
            let place = match run {
                Packs::Same(0) => None,
                Packs::Same(_) => Some(before + row - first),
                Packs::Bits(bits) => {
                    let (byte, bit) = ((row - first) / 8, (row - first) % 8);
                    let passed = bits.get(bytes_done..byte).unwrap_or_default();
                    (in_them, bytes_done) = (in_them + ones(passed), byte);
                    let here = *bits.get(byte).ok_or_else(|| corrupt("a page ends before its levels do"))?;
                    let earlier = (here & ((1u8 << bit) - 1)).count_ones() as usize;
                    (here >> bit & 1 == 1).then_some(before + in_them + earlier)
                }
            };
            self.note(place.is_some());
            at.extend(place.map(|place| place as u32));
        }
        Ok(())
    }

    fn note(&mut self, is_there: bool) {
        if !is_there && self.0.is_none() {
            let mut all = BooleanBufferBuilder::new(self.1 + 1);
            all.append_n(self.1, true);
            self.0 = Some(all);
        }
        if let Some(some) = &mut self.0 {
            some.append(is_there);
        }
        self.1 += 1;
    }
}

fn ones(bytes: &[u8]) -> usize {
    let (words, rest) = bytes.as_chunks::<8>();
    let in_words = words.iter().map(|word| u64::from_le_bytes(*word).count_ones() as usize).sum::<usize>();
    in_words + rest.iter().map(|byte| byte.count_ones() as usize).sum::<usize>()
}

/// The values that were found, without the nulls among them.
enum Values {
    Bits(Vec<bool>),
    Int(Fixed<i32>),
    Long(Fixed<i64>),
    Float(Fixed<f32>),
    Double(Fixed<f64>),
    /// Decimals, however many bytes the file has for them.
    Wide(Fixed<i128>),
    Bytes(Texts),
}

/// Values of one width.
struct Fixed<T> {
    width: usize,
    read: fn(&[u8]) -> T,
    dictionary: Vec<T>,
    found: Vec<T>,
}

/// Values of any length, one after the other, and where each ends.
#[derive(Default)]
struct Texts {
    dictionary: Bytes,
    /// Where each value of the dictionary is in it.
    places: Vec<Range<usize>>,
    ends: Vec<i32>,
    found: Vec<u8>,
}

fn fixed<T>(rows: usize, width: usize, read: fn(&[u8]) -> T) -> Fixed<T> {
    Fixed { width, read, dictionary: Vec::new(), found: Vec::with_capacity(rows) }
}

/// The bytes of a number; fewer than it has would stand for nothing, and whoever calls has counted.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

fn big_endian(bytes: &[u8]) -> i128 {
    let sign = bytes.first().map_or(0, |first| -i128::from(first >> 7));
    bytes.iter().fold(sign, |number, byte| number << 8 | i128::from(*byte))
}

impl Values {
    /// `rows` is how many are to be found.
    fn of(column: &ColumnDescriptor, data_type: &DataType, rows: usize) -> Option<Self> {
        use PhysicalType::{BOOLEAN, BYTE_ARRAY, DOUBLE, FIXED_LEN_BYTE_ARRAY, FLOAT, INT32, INT64};
        let int = |bytes: &[u8]| i32::from_le_bytes(first(bytes));
        let long = |bytes: &[u8]| i64::from_le_bytes(first(bytes));
        Some(match (column.physical_type(), data_type) {
            (BOOLEAN, DataType::Boolean) => Values::Bits(Vec::with_capacity(rows)),
            (INT32, DataType::Int32 | DataType::Date32) => Values::Int(fixed(rows, 4, int)),
            (INT64, DataType::Int64 | DataType::Timestamp(..) | DataType::Time64(_)) => {
                Values::Long(fixed(rows, 8, long))
            }
            (FLOAT, DataType::Float32) => Values::Float(fixed(rows, 4, |bytes| f32::from_le_bytes(first(bytes)))),
            (DOUBLE, DataType::Float64) => Values::Double(fixed(rows, 8, |bytes| f64::from_le_bytes(first(bytes)))),
            (INT32, DataType::Decimal128(..)) => {
                Values::Wide(fixed(rows, 4, |bytes| i128::from(i32::from_le_bytes(first(bytes)))))
            }
            (INT64, DataType::Decimal128(..)) => {
                Values::Wide(fixed(rows, 8, |bytes| i128::from(i64::from_le_bytes(first(bytes)))))
            }
            (FIXED_LEN_BYTE_ARRAY, DataType::Decimal128(..)) => {
                let width = usize::try_from(column.type_length()).ok().filter(|width| (1..=16).contains(width))?;
                Values::Wide(fixed(rows, width, big_endian))
            }
            (BYTE_ARRAY, DataType::Utf8 | DataType::Binary) => {
                Values::Bytes(Texts { ends: Vec::with_capacity(rows), ..Texts::default() })
            }
            _ => return None,
        })
    }

    fn keep_dictionary(&mut self, page: &Bytes, count: usize) -> Result<()> {
        match self {
            Values::Bits(_) => Err(corrupt("a column of booleans has a dictionary")),
            Values::Int(values) => values.keep_dictionary(page, count),
            Values::Long(values) => values.keep_dictionary(page, count),
            Values::Float(values) => values.keep_dictionary(page, count),
            Values::Double(values) => values.keep_dictionary(page, count),
            Values::Wide(values) => values.keep_dictionary(page, count),
            Values::Bytes(values) => values.keep_dictionary(page, count),
        }
    }

    /// Takes the values at these places of a page, which rise; `false` where its encoding is not known here.
    fn take(&mut self, page: &DataPage, at: &[u32]) -> Result<bool> {
        let bytes = &page.values[..];
        let mut numbers = Vec::new();
        let is_of_dictionary = is_of_dictionary(page.encoding);
        if is_of_dictionary {
            numbers.reserve(at.len());
            if !at.is_empty() {
                let (width, rest) = bytes.split_first().ok_or_else(|| corrupt("a page ends before its values do"))?;
                let width = usize::from(*width);
                if width > 32 {
                    return Err(corrupt("a page has numbers of more than 32 bits"));
                }
                Packed { bytes: rest, width }.at(at, &mut numbers)?;
            }
        } else if let (Values::Bits(_), Encoding::RLE) = (&*self, page.encoding) {
            Packed { bytes: bytes.get(4..).unwrap_or_default(), width: 1 }.at(at, &mut numbers)?;
        } else if page.encoding != Encoding::PLAIN {
            return Ok(false);
        }
        match self {
            Values::Bits(found) if page.encoding == Encoding::PLAIN => {
                for place in at {
                    found.push(number_in(bytes, 1, *place as usize)? == 1);
                }
            }
            Values::Bits(found) if !is_of_dictionary => found.extend(numbers.iter().map(|number| *number == 1)),
            Values::Bits(_) => return Err(corrupt("a column of booleans has a dictionary")),
            Values::Int(values) => values.take(bytes, at, is_of_dictionary.then_some(&numbers))?,
            Values::Long(values) => values.take(bytes, at, is_of_dictionary.then_some(&numbers))?,
            Values::Float(values) => values.take(bytes, at, is_of_dictionary.then_some(&numbers))?,
            Values::Double(values) => values.take(bytes, at, is_of_dictionary.then_some(&numbers))?,
            Values::Wide(values) => values.take(bytes, at, is_of_dictionary.then_some(&numbers))?,
            Values::Bytes(values) if is_of_dictionary => return values.take_numbered(&numbers),
            Values::Bytes(values) => return values.take(bytes, at),
        }
        Ok(true)
    }

    fn len(&self) -> usize {
        match self {
            Values::Bits(found) => found.len(),
            Values::Int(values) => values.found.len(),
            Values::Long(values) => values.found.len(),
            Values::Float(values) => values.found.len(),
            Values::Double(values) => values.found.len(),
            Values::Wide(values) => values.found.len(),
            Values::Bytes(values) => values.ends.len(),
        }
    }

    fn finish(self, data_type: &DataType, rows: usize, present: Option<BooleanBufferBuilder>) -> Result<ArrayRef> {
        let present = present.map(|mut present| NullBuffer::new(present.finish()));
        let nulls = present.as_ref();
        if self.len() != rows - nulls.map_or(0, NullBuffer::null_count) {
            return Err(corrupt("a column has fewer values than rows"));
        }
        let buffers = match self {
            Values::Bits(found) => {
                let mut bits = BooleanBufferBuilder::new(rows);
                spread(found, rows, nulls).into_iter().for_each(|bit| bits.append(bit));
                vec![bits.finish().into_inner()]
            }
            Values::Int(values) => vec![Buffer::from_vec(spread(values.found, rows, nulls))],
            Values::Long(values) => vec![Buffer::from_vec(spread(values.found, rows, nulls))],
            Values::Float(values) => vec![Buffer::from_vec(spread(values.found, rows, nulls))],
            Values::Double(values) => vec![Buffer::from_vec(spread(values.found, rows, nulls))],
            Values::Wide(values) => vec![Buffer::from_vec(spread(values.found, rows, nulls))],
            Values::Bytes(Texts { ends, mut found, .. }) => {
                // It is kept for long, and counted by what it takes.
                found.shrink_to_fit();
                let (mut offsets, mut ends) = (Vec::with_capacity(rows + 1), ends.into_iter());
                let mut last = 0;
                offsets.push(last);
                for row in 0..rows {
                    if nulls.is_none_or(|nulls| nulls.is_valid(row)) {
                        last = ends.next().unwrap_or(last);
                    }
                    offsets.push(last);
                }
                vec![Buffer::from_vec(offsets), Buffer::from_vec(found)]
            }
        };
        // Which checks that texts are texts, among other things.
        let data = ArrayData::builder(data_type.clone()).len(rows).buffers(buffers).nulls(present).build()?;
        Ok(make_array(data))
    }
}

/// The values with room among them where there are nulls.
fn spread<T: Copy + Default>(found: Vec<T>, rows: usize, nulls: Option<&NullBuffer>) -> Vec<T> {
    let Some(nulls) = nulls else { return found };
    let mut found = found.into_iter();
    let value = |row| if nulls.is_valid(row) { found.next().unwrap_or_default() } else { T::default() };
    (0..rows).map(value).collect()
}

impl<T: Copy> Fixed<T> {
    fn keep_dictionary(&mut self, page: &[u8], count: usize) -> Result<()> {
        self.dictionary.extend(page.chunks_exact(self.width).take(count).map(self.read));
        match self.dictionary.len() == count {
            true => Ok(()),
            false => Err(corrupt("a dictionary ends before its values do")),
        }
    }

    /// The values at these places, or of these numbers.
    fn take(&mut self, page: &[u8], at: &[u32], numbers: Option<&Vec<u32>>) -> Result<()> {
        let Fixed { width, read, dictionary, found } = self;
        if let Some(numbers) = numbers {
            let missing = || corrupt("a page has a number that its dictionary lacks");
            for number in numbers {
                found.push(*dictionary.get(*number as usize).ok_or_else(missing)?);
            }
            return Ok(());
        }
        let last = at.last().map_or(0, |last| (*last as usize + 1) * *width);
        if last > page.len() {
            return Err(corrupt("a page ends before its values do"));
        }
        found.extend(at.iter().map(|place| {
            let from = *place as usize * *width;
            read(&page[from..from + *width])
        }));
        Ok(())
    }
}

impl Texts {
    fn keep_dictionary(&mut self, page: &Bytes, count: usize) -> Result<()> {
        let mut at = 0;
        for _ in 0..count {
            let (value, _) = text_in(&page[at..])?;
            let from = at + size_of::<u32>();
            at = from + value.len();
            self.places.push(from..at);
        }
        self.dictionary = page.clone();
        Ok(())
    }

    /// The values at these places; `false` where they are more than an array holds.
    fn take(&mut self, page: &[u8], at: &[u32]) -> Result<bool> {
        let (mut rest, mut next) = (page, 0);
        let (before, first) = (self.found.len(), self.ends.len());
        for place in at {
            while next < *place {
                (_, rest) = text_in(rest)?;
                next += 1;
            }
            let (value, others) = text_in(rest)?;
            (rest, next) = (others, next + 1);
            if !push(&mut self.found, &mut self.ends, value) {
                return Ok(false);
            }
        }
        // The others will be about as long.
        if first == 0 && !at.is_empty() {
            let expected = (self.found.len() - before).div_ceil(at.len()) * self.ends.capacity();
            self.found.reserve(expected.min(MOST_RESERVED).saturating_sub(self.found.len()));
        }
        Ok(true)
    }

    fn take_numbered(&mut self, numbers: &[u32]) -> Result<bool> {
        let Texts { dictionary, places, ends, found } = self;
        for number in numbers {
            let place = places.get(*number as usize).cloned();
            let place = place.ok_or_else(|| corrupt("a page has a number that its dictionary lacks"))?;
            if !push(found, ends, &dictionary[place]) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Adds a value; `false` where an array could not hold it as well.
fn push(found: &mut Vec<u8>, ends: &mut Vec<i32>, value: &[u8]) -> bool {
    let Ok(end) = i32::try_from(found.len() + value.len()) else { return false };
    found.extend_from_slice(value);
    ends.push(end);
    true
}

/// A value of any length at the beginning, and what follows it.
fn text_in(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let found = bytes.split_first_chunk::<4>().and_then(|(length, rest)| {
        let length = u32::from_le_bytes(*length) as usize;
        rest.split_at_checked(length)
    });
    found.ok_or_else(|| corrupt("a page ends before its values do"))
}

#[cfg(test)]
mod tests {
    use arrow::array::{
        Array, BinaryArray, BooleanArray, Date32Array, Decimal128Array, Float32Array, Float64Array, Int32Array,
        Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt32Array,
    };
    use arrow::compute::take;
    use parquet::arrow::ArrowWriter;
    use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::metadata::PageIndexPolicy;
    use parquet::file::properties::{WriterProperties, WriterVersion};
    use rand::rngs::StdRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Columns of every type, some of whose values repeat and some of which are null, in runs and one by one.
    fn columns(random: &mut StdRng, rows: usize) -> RecordBatch {
        let (nulls, run, different) = (
            [0.0, 0.1, 0.9, 1.0][random.random_range(0..4)],
            [1, 50][random.random_range(0..2)],
            [3, 1 << 40][random.random_range(0..2)],
        );
        let mut numbers = || -> Vec<Option<i64>> {
            let mut is_null = false;
            let number = |row: usize| {
                if row.is_multiple_of(run) {
                    is_null = random.random_bool(nulls);
                }
                (!is_null).then(|| random.random_range(-different..different))
            };
            (0..rows).map(number).collect()
        };
        let text = |number: i64| "é".repeat(number.unsigned_abs() as usize % 5) + &number.to_string();
        let texts = numbers().into_iter().map(|number| number.map(text)).collect::<Vec<_>>();
        let decimals = |numbers: Vec<Option<i64>>, modulus: i64, precision, scale| {
            let numbers = numbers.into_iter().map(|number| number.map(|number| i128::from(number % modulus)));
            Decimal128Array::from_iter(numbers).with_precision_and_scale(precision, scale).unwrap()
        };
        let sure = (0..rows).map(|row| row as i64 * 7 % 1000);
        RecordBatch::try_from_iter_with_nullable([
            (
                "bool",
                Arc::new(numbers().into_iter().map(|n| n.map(|n| n % 3 == 0)).collect::<BooleanArray>()) as ArrayRef,
                true,
            ),
            ("int", Arc::new(numbers().into_iter().map(|n| n.map(|n| n as i32)).collect::<Int32Array>()), true),
            (
                "date",
                Arc::new(numbers().into_iter().map(|n| n.map(|n| n as i32 % 99_999)).collect::<Date32Array>()),
                true,
            ),
            ("long", Arc::new(Int64Array::from(numbers())), true),
            ("instant", Arc::new(TimestampMicrosecondArray::from(numbers()).with_timezone("UTC")), true),
            (
                "float",
                Arc::new(numbers().into_iter().map(|n| n.map(|n| n as f32 / 3.0)).collect::<Float32Array>()),
                true,
            ),
            (
                "double",
                Arc::new(numbers().into_iter().map(|n| n.map(|n| n as f64 / 3.0)).collect::<Float64Array>()),
                true,
            ),
            ("in 4 bytes", Arc::new(decimals(numbers(), 1_000_000_000, 9, 2)), true),
            ("in 8 bytes", Arc::new(decimals(numbers(), 1 << 50, 18, 2)), true),
            ("in more", Arc::new(decimals(numbers(), i64::MAX, 30, 5)), true),
            ("text", Arc::new(StringArray::from(texts.clone())), true),
            (
                "bytes",
                Arc::new(BinaryArray::from_iter(texts.iter().map(|text| text.as_ref().map(|text| text.as_bytes())))),
                true,
            ),
            ("sure", Arc::new(Int64Array::from_iter_values(sure)), false),
        ])
        .unwrap()
    }

    fn written(random: &mut StdRng, batch: &RecordBatch) -> Bytes {
        let mut properties = WriterProperties::builder()
            .set_dictionary_enabled(random.random())
            .set_data_page_row_count_limit(random.random_range(20..2000))
            .set_write_batch_size(random.random_range(1..100))
            .set_offset_index_disabled(random.random())
            .set_dictionary_page_size_limit([64, 1 << 20][random.random_range(0..2)]);
        if random.random() {
            properties = properties.set_writer_version(WriterVersion::PARQUET_2_0);
            // Otherwise, its writer takes encodings that are not known here.
            for column in batch.schema().fields().iter().filter(|column| column.name() != "bool") {
                properties = properties.set_column_encoding(vec![column.name().clone()].into(), Encoding::PLAIN);
            }
        }
        if random.random() {
            properties = properties.set_compression(Compression::ZSTD(ZstdLevel::default()));
        }
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties.build())).unwrap();
        writer.write(batch).unwrap();
        writer.close().unwrap();
        bytes.into()
    }

    /// What is picked of a column, its pages being made others on the way.
    fn picked_of(
        bytes: &Bytes,
        column: usize,
        rows: &[u32],
        change: impl FnMut(&mut Vec<u8>) + Send,
    ) -> Option<ArrayRef> {
        let options =
            ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional).with_skip_arrow_metadata(true);
        let footer = ArrowReaderMetadata::load(bytes, options).unwrap();
        let data_type = footer.schema().field(column).data_type();
        let index = footer.metadata().offset_index().map(|index| index[0][column].page_locations().to_vec());
        let group = footer.metadata().row_group(0);
        let chunk = group.column(column);
        assert!(can_pick(chunk.column_descr(), data_type), "{data_type}");
        let bytes = Arc::new(ReadBytes(vec![(0, bytes.clone())]));
        let pages = SerializedPageReader::new(bytes, chunk, group.num_rows() as usize, index).unwrap();
        let found = pick_from(&mut Changed { pages, change }, chunk.column_descr(), data_type, rows);
        found.unwrap_or(None).filter(|_| knows_encodings(chunk))
    }

    fn picked(bytes: &Bytes, column: usize, rows: &[u32]) -> Option<ArrayRef> {
        picked_of(bytes, column, rows, |_| ())
    }

    struct Changed<P, F> {
        pages: P,
        change: F,
    }

    impl<P: PageReader, F: FnMut(&mut Vec<u8>) + Send> Iterator for Changed<P, F> {
        type Item = Result<Page>;

        fn next(&mut self) -> Option<Result<Page>> {
            self.get_next_page().transpose()
        }
    }

    impl<P: PageReader, F: FnMut(&mut Vec<u8>) + Send> PageReader for Changed<P, F> {
        fn get_next_page(&mut self) -> Result<Option<Page>> {
            let mut page = self.pages.get_next_page()?;
            if let Some(Page::DataPage { buf, .. } | Page::DataPageV2 { buf, .. } | Page::DictionaryPage { buf, .. }) =
                &mut page
            {
                let mut bytes = buf.to_vec();
                (self.change)(&mut bytes);
                *buf = bytes.into();
            }
            Ok(page)
        }

        fn peek_next_page(&mut self) -> Result<Option<parquet::column::page::PageMetadata>> {
            self.pages.peek_next_page()
        }

        fn skip_next_page(&mut self) -> Result<()> {
            self.pages.skip_next_page()
        }
    }

    #[test]
    fn what_is_picked_is_what_the_parquet_reader_would_have_given() {
        for seed in 0..150 {
            let mut random = StdRng::seed_from_u64(seed);
            let batch = columns(&mut random, 1 + seed as usize * 37);
            let bytes = written(&mut random, &batch);
            let part = [0.0, 0.01, 0.1, 1.0][random.random_range(0..4)];
            let rows: Vec<u32> = (0..batch.num_rows() as u32).filter(|_| random.random_bool(part)).collect();
            for (at, column) in batch.columns().iter().enumerate() {
                let found = picked(&bytes, at, &rows).unwrap();
                let expected = take(column, &UInt32Array::from(rows.clone()), None).unwrap();
                assert_eq!(found.data_type(), expected.data_type());
                assert_eq!(&found, &expected, "seed {seed}, column `{}`", batch.schema().field(at).name());
            }
        }
    }

    #[test]
    fn what_is_not_known_is_left_to_the_parquet_reader() {
        let longs = Arc::new(Int64Array::from_iter_values(0..100)) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("long", longs)]).unwrap();
        let properties = WriterProperties::builder()
            .set_dictionary_enabled(false)
            .set_encoding(Encoding::DELTA_BINARY_PACKED)
            .build();
        let mut bytes = Vec::new();
        let mut writer = ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        assert_eq!(picked(&bytes.into(), 0, &[3]), None);
    }

    #[test]
    fn broken_pages_are_errors_and_nothing_worse() {
        let mut failed = 0;
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let batch = columns(&mut random, 500);
            let bytes = written(&mut random, &batch);
            for column in 0..batch.num_columns() {
                let found = picked_of(&bytes, column, &[0, 17, 250, 499], |page| match random.random_range(0..3) {
                    0 => page.truncate(random.random_range(0..=page.len())),
                    _ if page.is_empty() => {}
                    1 => {
                        let at = random.random_range(0..page.len().min(8));
                        page[at] = random.random();
                    }
                    _ => {
                        let at = random.random_range(0..page.len());
                        page[at] = random.random();
                    }
                });
                failed += usize::from(found.is_none());
                assert!(found.is_none_or(|found| found.len() == 4));
            }
        }
        assert!(failed > 100, "{failed}");
    }
}
