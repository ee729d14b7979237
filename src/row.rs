//! The columns of a captured table: names, exact types, and how JSON carries their values.
//!
//! `catalog/<table>.yaml` declares it, a schema block can carry it, and `batch/` builds Arrow columns from it.

use std::fmt;
use std::str::FromStr;

use arrow::datatypes::{DataType, TimeUnit};

/// The columns of `before` and `after`, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RowShape {
    pub columns: Vec<Column>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub column_type: ColumnType,
    pub encoding: Encoding,
    pub doc: Option<String>,
}

/// A type that Iceberg v2 and Athena both have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ColumnType {
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: i8,
    },
    Date,
    /// A point on a calendar and clock without a zone, in microseconds.
    Timestamp,
    /// An instant, in microseconds.
    Timestamptz,
    String,
    Binary,
}

/// How a JSON value holds a column's value. A unit is always named and never guessed from the size of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// JSON's own way: a number, a string, `true` or `false`.
    Native,
    /// Days since 1970 (`io.debezium.time.Date`).
    Days,
    /// Milliseconds since 1970 (`io.debezium.time.Timestamp`).
    Millis,
    /// Microseconds since 1970 (`io.debezium.time.MicroTimestamp`).
    Micros,
    /// Nanoseconds since 1970 (`io.debezium.time.NanoTimestamp`).
    Nanos,
    /// ISO 8601 text (`io.debezium.time.ZonedTimestamp`).
    Iso,
    /// Base64 of bytes; for a decimal, of its unscaled big-endian two's complement (`decimal.handling.mode=precise`).
    Base64,
    /// Any JSON value, kept as its text: arrays, maps and structs.
    Json,
    /// Milliseconds since midnight (`io.debezium.time.Time`), which become `HH:MM:SS.mmm`.
    TimeMillis,
    /// Microseconds since midnight (`io.debezium.time.MicroTime`), which become `HH:MM:SS.uuuuuu`.
    TimeMicros,
    /// Nanoseconds since midnight (`io.debezium.time.NanoTime`), which become `HH:MM:SS.nnnnnnnnn`.
    TimeNanos,
    /// A decimal that no decimal type holds, as plain digits: base64 of its unscaled two's complement, with the scale of
    /// the column or, where there is none, of each value (`io.debezium.data.VariableScaleDecimal`).
    Digits { scale: Option<u32> },
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    #[error("`{text}` is not a column type; there are {}", ColumnType::NAMES)]
    UnknownType { text: String },
    #[error("`{text}`: a decimal has 1 to 38 digits, and not more of them behind the point than in all")]
    DecimalBounds { text: String },
    #[error("`{text}` is not an encoding; there are {}", Encoding::NAMES)]
    UnknownEncoding { text: String },
    #[error("{} {column_type} cannot be encoded as `{encoding}`; it can be {}", column_type.article(), column_type.encodings_text())]
    EncodingMismatch { column_type: ColumnType, encoding: Encoding },
}

impl ColumnType {
    pub const NAMES: &'static str =
        "boolean, int, long, float, double, decimal(P,S), date, timestamp, timestamptz, string, binary";

    pub fn to_arrow(self) -> DataType {
        match self {
            ColumnType::Boolean => DataType::Boolean,
            ColumnType::Int => DataType::Int32,
            ColumnType::Long => DataType::Int64,
            ColumnType::Float => DataType::Float32,
            ColumnType::Double => DataType::Float64,
            ColumnType::Decimal { precision, scale } => DataType::Decimal128(precision, scale),
            ColumnType::Date => DataType::Date32,
            ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
            ColumnType::Timestamptz => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
            ColumnType::String => DataType::Utf8,
            ColumnType::Binary => DataType::LargeBinary,
        }
    }

    /// The type whose Arrow type this is.
    pub fn from_arrow(data_type: &DataType) -> Option<Self> {
        use ColumnType::*;
        if let DataType::Decimal128(precision, scale) = data_type {
            return Some(Decimal { precision: *precision, scale: *scale });
        }
        let plain = [Boolean, Int, Long, Float, Double, Date, Timestamp, Timestamptz, String, Binary];
        plain.into_iter().find(|column_type| column_type.to_arrow() == *data_type)
    }

    /// The encodings a value of this type can have; the first is what Debezium's PostgreSQL connector sends unless it
    /// is told otherwise.
    pub fn encodings(self) -> &'static [Encoding] {
        match self {
            ColumnType::Decimal { .. } => &[Encoding::Base64, Encoding::Native],
            ColumnType::Date => &[Encoding::Days, Encoding::Iso],
            ColumnType::Timestamp => &[Encoding::Micros, Encoding::Millis, Encoding::Nanos, Encoding::Iso],
            ColumnType::Timestamptz => &[Encoding::Iso, Encoding::Micros, Encoding::Millis, Encoding::Nanos],
            ColumnType::Binary => &[Encoding::Base64],
            ColumnType::String => &[
                Encoding::Native,
                Encoding::Json,
                Encoding::Nanos,
                Encoding::TimeMillis,
                Encoding::TimeMicros,
                Encoding::TimeNanos,
                Encoding::Digits { scale: None },
            ],
            _ => &[Encoding::Native],
        }
    }

    fn article(self) -> &'static str {
        if self == ColumnType::Int { "an" } else { "a" }
    }

    fn encodings_text(&self) -> String {
        let names: Vec<String> = self.encodings().iter().map(|e| format!("`{e}`")).collect();
        names.join(", ")
    }
}

impl Column {
    /// A column whose encoding is given, or the usual one of its type.
    pub fn new(name: &str, column_type: ColumnType, encoding: Option<Encoding>) -> Result<Self, ShapeError> {
        let encoding = encoding.unwrap_or(column_type.encodings()[0]);
        let listed = match encoding {
            Encoding::Digits { .. } => Encoding::Digits { scale: None },
            other => other,
        };
        if !column_type.encodings().contains(&listed) {
            return Err(ShapeError::EncodingMismatch { column_type, encoding });
        }
        Ok(Column { name: name.to_string(), column_type, encoding, doc: None })
    }
}

impl FromStr for ColumnType {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        let plain: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        Ok(match plain.as_str() {
            "boolean" => ColumnType::Boolean,
            "int" => ColumnType::Int,
            "long" => ColumnType::Long,
            "float" => ColumnType::Float,
            "double" => ColumnType::Double,
            "date" => ColumnType::Date,
            "timestamp" => ColumnType::Timestamp,
            "timestamptz" => ColumnType::Timestamptz,
            "string" => ColumnType::String,
            "binary" => ColumnType::Binary,
            other => return decimal(other, text),
        })
    }
}

fn decimal(plain: &str, text: &str) -> Result<ColumnType, ShapeError> {
    let unknown = || ShapeError::UnknownType { text: text.to_string() };
    let inside = plain.strip_prefix("decimal(").and_then(|rest| rest.strip_suffix(')')).ok_or_else(unknown)?;
    let (precision, scale) = inside.split_once(',').ok_or_else(unknown)?;
    let precision: u8 = precision.parse().map_err(|_| unknown())?;
    let scale: i8 = scale.parse().map_err(|_| unknown())?;
    if !(1..=38).contains(&precision) || scale < 0 || scale as u8 > precision {
        return Err(ShapeError::DecimalBounds { text: text.to_string() });
    }
    Ok(ColumnType::Decimal { precision, scale })
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ColumnType::Boolean => f.write_str("boolean"),
            ColumnType::Int => f.write_str("int"),
            ColumnType::Long => f.write_str("long"),
            ColumnType::Float => f.write_str("float"),
            ColumnType::Double => f.write_str("double"),
            ColumnType::Decimal { precision, scale } => write!(f, "decimal({precision},{scale})"),
            ColumnType::Date => f.write_str("date"),
            ColumnType::Timestamp => f.write_str("timestamp"),
            ColumnType::Timestamptz => f.write_str("timestamptz"),
            ColumnType::String => f.write_str("string"),
            ColumnType::Binary => f.write_str("binary"),
        }
    }
}

impl Encoding {
    pub const NAMES: &'static str = "native, days, millis, micros, nanos, iso, base64, json, time-millis, time-micros, time-nanos, digits, digits(SCALE)";
}

impl FromStr for Encoding {
    type Err = ShapeError;

    fn from_str(text: &str) -> Result<Self, ShapeError> {
        Ok(match text {
            "native" => Encoding::Native,
            "days" => Encoding::Days,
            "millis" => Encoding::Millis,
            "micros" => Encoding::Micros,
            "nanos" => Encoding::Nanos,
            "iso" => Encoding::Iso,
            "base64" => Encoding::Base64,
            "json" => Encoding::Json,
            "time-millis" => Encoding::TimeMillis,
            "time-micros" => Encoding::TimeMicros,
            "time-nanos" => Encoding::TimeNanos,
            "digits" => Encoding::Digits { scale: None },
            other => {
                let scale = other.strip_prefix("digits(").and_then(|rest| rest.strip_suffix(')'));
                match scale.and_then(|scale| scale.trim().parse().ok()) {
                    Some(scale) => Encoding::Digits { scale: Some(scale) },
                    None => return Err(ShapeError::UnknownEncoding { text: text.to_string() }),
                }
            }
        })
    }
}

impl fmt::Display for Encoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Encoding::Native => "native",
            Encoding::Days => "days",
            Encoding::Millis => "millis",
            Encoding::Micros => "micros",
            Encoding::Nanos => "nanos",
            Encoding::Iso => "iso",
            Encoding::Base64 => "base64",
            Encoding::Json => "json",
            Encoding::TimeMillis => "time-millis",
            Encoding::TimeMicros => "time-micros",
            Encoding::TimeNanos => "time-nanos",
            Encoding::Digits { scale: None } => "digits",
            Encoding::Digits { scale: Some(scale) } => return write!(f, "digits({scale})"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_reads_back_from_its_own_text() {
        for text in
            ["boolean", "int", "long", "float", "double", "decimal(38,9)", "date", "timestamp", "timestamptz", "string"]
        {
            assert_eq!(text.parse::<ColumnType>().unwrap().to_string(), text);
        }
        assert_eq!("decimal( 10, 2 )".parse(), Ok(ColumnType::Decimal { precision: 10, scale: 2 }));
    }

    #[test]
    fn wrong_types_and_encodings_say_what_is_allowed() {
        for bad in ["decimal", "decimal(39,2)", "decimal(5,6)", "decimal(5,-1)", "varchar(10)", "INT"] {
            assert!(bad.parse::<ColumnType>().is_err(), "{bad} should be refused");
        }
        let error = Column::new("placed_on", ColumnType::Date, Some(Encoding::Micros)).unwrap_err();
        insta::assert_snapshot!(error, @"a date cannot be encoded as `micros`; it can be `days`, `iso`");
        let error = Column::new("total", ColumnType::Long, Some(Encoding::Digits { scale: Some(2) })).unwrap_err();
        insta::assert_snapshot!(error, @"a long cannot be encoded as `digits(2)`; it can be `native`");
        assert!(Column::new("total", ColumnType::String, Some(Encoding::Digits { scale: Some(2) })).is_ok());
        for bad in ["", "digits(", "digits(-1)", "digits(x)", "digits2", "JSON"] {
            assert!(bad.parse::<Encoding>().is_err(), "{bad} should be refused");
        }
    }

    #[test]
    fn an_encoding_reads_back_from_its_own_text() {
        let words = Encoding::NAMES.split(", ").map(|word| word.replace("SCALE", "20"));
        for word in words {
            assert_eq!(word.parse::<Encoding>().unwrap().to_string(), word);
        }
    }
}
