//! Row images that are written alike, made columns one column after the other.
//!
//! Each loop has values of one kind then, and one place they go to: where rows are made one after the other, every value
//! is of another kind than the one before.

use arrow::array::{ArrowPrimitiveType, BooleanBuilder, PrimitiveBuilder, StringBuilder};

use super::image::ColumnBuilder;
use super::value;
use super::{base64, decimal, iso};
use crate::change::Span;
use crate::json::{self, Escapes};
use crate::placeholder::Placeholder;
use crate::row::{Column, ColumnType, Encoding};

/// So many rows become columns at once. Their texts should stay in a core's cache meanwhile.
pub const ROWS: usize = 64;

/// What a null takes in a column, about.
pub(super) const NULL_BYTES: usize = 8;

/// An image whose fields were found.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found<'a> {
    pub(super) json: &'a str,
    pub(super) spans: &'a [Span],
}

/// The values of one column in the images of some rows, some of which may have no image.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cells<'b, 'a> {
    pub(super) images: &'b [Option<Found<'a>>],
    pub(super) column: usize,
}

/// How many values were appended, and how many bytes they take.
#[derive(Debug, Default)]
pub(super) struct Appended {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

/// How nearly all values of a column are written: those [`ColumnBuilder::append_usual`] knows.
#[derive(Debug, Clone, Copy)]
pub(super) enum Usual {
    Boolean,
    Int,
    Long,
    Double,
    Days,
    Micros,
    Text,
    Decimal {
        precision: u8,
        scale: i8,
    },
    Instant,
    /// In one of many ways.
    Otherwise,
}

impl Usual {
    pub(super) fn of(column: &Column) -> Self {
        match (column.column_type, column.encoding) {
            (ColumnType::String, Encoding::Native) => Usual::Text,
            (ColumnType::Decimal { precision, scale }, Encoding::Base64) => Usual::Decimal { precision, scale },
            (ColumnType::Timestamptz, Encoding::Iso) => Usual::Instant,
            (ColumnType::Boolean, _) => Usual::Boolean,
            (ColumnType::Int, _) => Usual::Int,
            (ColumnType::Long, _) => Usual::Long,
            (ColumnType::Double, _) => Usual::Double,
            (ColumnType::Date, Encoding::Days) => Usual::Days,
            (ColumnType::Timestamp | ColumnType::Timestamptz, Encoding::Micros) => Usual::Micros,
            _ => Usual::Otherwise,
        }
    }
}

impl<'a> Found<'a> {
    pub(super) fn value(&self, column: usize) -> Option<(&'a str, Escapes)> {
        let span = self.spans.get(column)?;
        Some((span.of(self.json)?, span.escapes))
    }
}

impl<'a> Cells<'_, 'a> {
    /// Calls `append` with each value, and with nothing where it is null or the row has no image. It says how many bytes the
    /// value takes, or nothing of one that it does not know, which ends the walk.
    #[inline(always)]
    fn each(self, mut append: impl FnMut(Option<(&'a str, Escapes)>) -> Option<usize>) -> Appended {
        let mut appended = Appended::default();
        for image in self.images {
            let (value, null_bytes) = match image {
                // What a row without an image takes is not the columns' business.
                None => (None, 0),
                Some(found) => match found.value(self.column) {
                    None => break,
                    Some(("null", _)) => (None, NULL_BYTES),
                    value => (value, 0),
                },
            };
            let Some(bytes) = append(value) else { break };
            appended.count += 1;
            appended.bytes += bytes + null_bytes;
        }
        appended
    }

    /// Values of a fixed width.
    #[inline(always)]
    fn append_to<T: ArrowPrimitiveType>(
        self,
        builder: &mut PrimitiveBuilder<T>,
        read: impl Fn(&'a str, Escapes) -> Option<T::Native>,
    ) -> Appended {
        let (mut values, mut are_there) = ([T::Native::default(); ROWS], [true; ROWS]);
        let mut places = values.iter_mut().zip(&mut are_there);
        let mut are_all_there = true;
        let appended = self.each(|value| {
            let (place, is_there) = places.next()?;
            match value {
                Some((json, escapes)) => {
                    *place = read(json, escapes)?;
                    Some(size_of::<T::Native>())
                }
                None => {
                    (*is_there, are_all_there) = (false, false);
                    Some(0)
                }
            }
        });
        let (values, are_there) = (&values[..appended.count], &are_there[..appended.count]);
        match are_all_there {
            true => builder.append_slice(values),
            false => builder.append_values(values, are_there),
        }
        appended
    }

    fn append_to_booleans(self, builder: &mut BooleanBuilder) -> Appended {
        self.each(|value| {
            let value: Option<bool> = match value {
                Some((json, _)) => Some(json.parse().ok()?),
                None => None,
            };
            builder.append_option(value);
            Some(usize::from(value.is_some()))
        })
    }

    fn append_to_texts(self, builder: &mut StringBuilder, placeholder: Option<&Placeholder>) -> Appended {
        self.each(|value| match value {
            Some((json, _)) if placeholder.is_some_and(|placeholder| placeholder.may_be(json)) => None,
            Some((json, escapes)) => append_text(builder, json.strip_prefix('"')?.strip_suffix('"')?, escapes),
            None => {
                builder.append_null();
                Some(0)
            }
        })
    }
}

impl ColumnBuilder {
    /// Appends values, and nulls for rows without an image, up to a value that is not written as nearly all of its column
    /// are. That is left to [`value::read`].
    pub(super) fn append_usual(
        &mut self,
        cells: Cells<'_, '_>,
        usual: Usual,
        placeholder: Option<&Placeholder>,
    ) -> Appended {
        let whole = |json: &str, _| json::short_whole(json.as_bytes());
        let narrow = |json: &str, _| i32::try_from(json::short_whole(json.as_bytes())?).ok();
        match (usual, self) {
            (Usual::Text, ColumnBuilder::Text(builder)) => cells.append_to_texts(builder, placeholder),
            (Usual::Long, ColumnBuilder::Long(builder)) => cells.append_to(builder, whole),
            (Usual::Int, ColumnBuilder::Int(builder)) => cells.append_to(builder, narrow),
            (Usual::Days, ColumnBuilder::Date(builder)) => cells.append_to(builder, narrow),
            (Usual::Micros, ColumnBuilder::Timestamp(builder)) => cells.append_to(builder, whole),
            (Usual::Double, ColumnBuilder::Double(builder)) => {
                cells.append_to(builder, |json, _| value::double(json).ok())
            }
            (Usual::Boolean, ColumnBuilder::Boolean(builder)) => cells.append_to_booleans(builder),
            (Usual::Decimal { precision, scale }, ColumnBuilder::Decimal(builder)) => {
                cells.append_to(builder, |json, escapes| {
                    if placeholder.is_some_and(|placeholder| placeholder.may_be(json)) {
                        return None;
                    }
                    let (bytes, length) = base64::decode_short(plain(json, escapes)?)?;
                    decimal::from_bytes(bytes.get(..length)?, i64::from(scale), precision, scale).ok()
                })
            }
            (Usual::Instant, ColumnBuilder::Timestamp(builder)) => {
                cells.append_to(builder, |json, escapes| iso::timestamptz(plain(json, escapes)?).ok())
            }
            _ => Appended::default(),
        }
    }
}

/// The text of a string without escapes.
fn plain(json: &str, escapes: Escapes) -> Option<&str> {
    json.strip_prefix('"')?.strip_suffix('"').filter(|_| escapes == Escapes::None)
}

/// Appends the text that stands between quotes, where its escapes are of one character.
fn append_text(builder: &mut StringBuilder, inside: &str, escapes: Escapes) -> Option<usize> {
    use std::fmt::Write as _;
    match escapes {
        Escapes::None => {
            builder.append_value(inside);
            Some(inside.len() + 4)
        }
        Escapes::Short => {
            let mut length = 0;
            let whole = json::each_piece(inside, |piece| {
                length += piece.len();
                builder.write_str(piece).unwrap_or(());
            });
            debug_assert!(whole.is_some(), "an escape that is not short");
            builder.append_value("");
            Some(length + 4)
        }
        Escapes::Any => None,
    }
}
