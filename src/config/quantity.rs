//! Sizes and durations as people write them.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes: `256MiB`, `2GiB`, `500kB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A span of time: `500ms`, `10s`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// A share in hundredths: `5%`, `0.5%`. Kept exactly, to a ten-thousandth of a percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent {
    millionths: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("`{text}` is not a share; write a number from 0 to 100 with `%`, such as `5%` or `0.5%`")]
    Percent { text: String },
    #[error("`{text}` is not a size; write a number and a unit, such as `256MiB`, `2GiB` or `500kB`")]
    Size { text: String },
    #[error("`{text}` is not a duration; write a number and a unit, such as `500ms`, `10s`, `1m` or `2h`")]
    Span { text: String },
}

/// Longest first, so that each is the right one for a number it divides. Those of Kubernetes (`2Gi`, `500M`) are read
/// but not written.
const UNITS: [(&str, &str, u64); 9] = [
    ("TiB", "Ti", 1 << 40),
    ("TB", "T", 1_000_000_000_000),
    ("GiB", "Gi", 1 << 30),
    ("GB", "G", 1_000_000_000),
    ("MiB", "Mi", 1 << 20),
    ("MB", "M", 1_000_000),
    ("KiB", "Ki", 1 << 10),
    ("kB", "k", 1_000),
    ("B", "", 1),
];

impl FromStr for Size {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let refused = || QuantityError::Size { text: text.to_string() };
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = (&trimmed[..split], trimmed[split..].trim_start());
        let factor = UNITS
            .iter()
            .find(|(long, short, _)| unit.eq_ignore_ascii_case(long) || unit.eq_ignore_ascii_case(short))
            .map(|(_, _, factor)| *factor)
            .ok_or_else(refused)?;
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(Size).ok_or_else(refused);
        }
        let number: f64 = number.parse().map_err(|_| refused())?;
        let bytes = number * factor as f64;
        if bytes.is_finite() && bytes < u64::MAX as f64 { Ok(Size(bytes.round() as u64)) } else { Err(refused()) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS.iter().find(|(_, _, factor)| self.0 > 0 && self.0.is_multiple_of(*factor));
        let (name, factor) = exact.map_or(("B", 1), |(name, _, factor)| (*name, *factor));
        write!(f, "{}{name}", self.0 / factor)
    }
}

impl FromStr for Span {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        humantime::parse_duration(text.trim()).map(Span).map_err(|_| QuantityError::Span { text: text.to_string() })
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&humantime::format_duration(self.0).to_string().replace(' ', ""))
    }
}

impl Percent {
    const WHOLE: u32 = 1_000_000;

    /// Whether `part` of `all` is more than this.
    pub fn is_below(self, part: u64, all: u64) -> bool {
        u128::from(part) * u128::from(Self::WHOLE) > u128::from(all) * u128::from(self.millionths)
    }
}

impl FromStr for Percent {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let refused = || QuantityError::Percent { text: text.to_string() };
        let number = text.trim().strip_suffix('%').ok_or_else(refused)?.trim_end();
        let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
        let is_plain = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !is_plain(whole) || !is_plain(part) || part.len() > 4 {
            return Err(refused());
        }
        let digits: u32 = format!("{whole}{part:0<4}").parse().map_err(|_| refused())?;
        Some(digits)
            .filter(|millionths| *millionths <= Self::WHOLE)
            .map(|millionths| Percent { millionths })
            .ok_or_else(refused)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.millionths / 10_000, format!("{:04}", self.millionths % 10_000));
        let part = part.trim_end_matches('0');
        if part.is_empty() { write!(f, "{whole}%") } else { write!(f, "{whole}.{part}%") }
    }
}

macro_rules! as_text {
    ($type:ty, $name:literal, $format:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $format })
            }
        }
    };
}

as_text!(Size, "Size", "size");
as_text!(Span, "Duration", "duration");
as_text!(Percent, "Percent", "percent");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_write() {
        let check = |text: &str, bytes: u64, shown: &str| {
            let size: Size = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert_eq!((size.0, size.to_string().as_str()), (bytes, shown), "{text}");
        };
        check("256MiB", 256 << 20, "256MiB");
        check("2Gi", 2 << 30, "2GiB");
        check("1.5 GiB", 3 << 29, "1536MiB");
        check("500k", 500_000, "500kB");
        check("10mb", 10_000_000, "10MB");
        check("123", 123, "123B");
        check("0", 0, "0B");
        for bad in ["", "MiB", "10 elephants", "-1MiB", "1e3", "1.2.3MB", "99999999999TiB", "infinite"] {
            assert!(bad.parse::<Size>().is_err(), "{bad} should be refused");
        }
    }

    #[test]
    fn shares_read_and_write() {
        for (text, shown) in [("5%", "5%"), ("0.5 %", "0.5%"), ("0%", "0%"), ("100%", "100%"), ("2.2500%", "2.25%")] {
            assert_eq!(text.parse::<Percent>().unwrap().to_string(), shown);
        }
        for bad in ["", "5", "%", "-1%", "101%", "100.0001%", "1e1%", "five%", "0.00001%", "+5%", ".5%"] {
            assert!(bad.parse::<Percent>().is_err(), "{bad} should be refused");
        }
        let five: Percent = "5%".parse().unwrap();
        assert!(five.is_below(6, 100) && !five.is_below(5, 100) && five.is_below(u64::MAX, u64::MAX));
    }

    #[test]
    fn durations_read_and_write() {
        let check = |text: &str, millis: u64, shown: &str| {
            let span: Span = text.parse().unwrap_or_else(|_| panic!("{text}"));
            assert_eq!((span.0, span.to_string().as_str()), (Duration::from_millis(millis), shown), "{text}");
        };
        check("500ms", 500, "500ms");
        check("10s", 10_000, "10s");
        check("90s", 90_000, "1m30s");
        check("1h 30m", 5_400_000, "1h30m");
        for bad in ["", "10", "ten seconds", "-1s", "s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad} should be refused");
        }
    }
}
