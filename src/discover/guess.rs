//! What a column may be, by its values alone.

use chrono::DateTime;

use super::seen::{Kinds, Seen, fields};
use crate::json;
use crate::row::{ColumnType, Encoding};

/// A type that may be a column's, and what a person should know if it is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) column_type: ColumnType,
    pub(super) encoding: Encoding,
    pub(super) about: Option<String>,
    pub(super) ambiguous: Option<String>,
}

impl Candidate {
    pub(super) fn new(column_type: ColumnType, encoding: Encoding) -> Self {
        Candidate { column_type, encoding, about: None, ambiguous: None }
    }

    pub(super) fn plain(column_type: ColumnType) -> Self {
        Candidate::new(column_type, column_type.encodings()[0])
    }

    /// Any value, as its JSON text.
    pub(super) fn json() -> Self {
        Candidate::new(ColumnType::String, Encoding::Json)
    }

    pub(super) fn about(self, about: impl Into<String>) -> Self {
        Candidate { about: Some(about.into()), ..self }
    }

    pub(super) fn ambiguous(self, doubt: impl Into<String>) -> Self {
        Candidate { ambiguous: Some(doubt.into()), ..self }
    }
}

/// The types that the values allow, the most telling first.
pub(super) fn candidates(name: &str, seen: &Seen<'_>) -> Vec<Candidate> {
    let only = |expected: Kinds| seen.kinds == expected;
    let none = Kinds::default();
    let string = || Candidate::plain(ColumnType::String);
    if only(none) {
        let doubt = if seen.unavailable > 0 {
            "its values were never sent, as they are large; `string` is for text, and a row with another value would be rejected"
        } else {
            "no value was seen; `string` is for text, and a row with another value would be rejected"
        };
        vec![string().ambiguous(doubt)]
    } else if only(Kinds { boolean: true, ..none }) {
        vec![Candidate::plain(ColumnType::Boolean)]
    } else if only(Kinds { whole: true, ..none }) {
        vec![whole(name, seen)]
    } else if seen.kinds.fraction
        && only(Kinds { fraction: true, whole: seen.kinds.whole, text: seen.kinds.text, ..none })
    {
        let doubt =
            "a double, or a decimal that decimal.handling.mode=double has made one; the source's CREATE TABLE tells";
        vec![Candidate::plain(ColumnType::Double).ambiguous(doubt)]
    } else if seen.is_text() {
        text(seen)
    } else if only(Kinds { object: true, ..none }) && scales(seen).is_some() {
        variable_scale(seen)
    } else if only(Kinds { object: seen.kinds.object, array: seen.kinds.array, ..none }) {
        vec![Candidate::json().about("JSON text")]
    } else {
        let kinds = seen.kinds.told();
        let doubt = format!("its values are of different kinds, and each is kept as its JSON text: {kinds}");
        vec![Candidate::json().ambiguous(doubt)]
    }
}

fn whole(name: &str, seen: &Seen<'_>) -> Candidate {
    let long = Candidate::plain(ColumnType::Long);
    if let Some((example, unit)) = time_unit(name, seen) {
        let kind = if unit == Encoding::Days { "a date" } else { "a timestamp" };
        let time = date_of(example, unit);
        return long.ambiguous(format!("a number, or {kind} sent as {unit}: {example} would be {time}"));
    }
    if seen.numbers().all(|number| i32::try_from(number).is_ok()) {
        return long.about("fits `int` as well in the sample");
    }
    long
}

/// The unit in which the values may be times, between 1980 and 2100, with one that would be. Few other numbers are as
/// large, so that one of them is enough: the rest may stand for infinity. Numbers that would be days are common, so that
/// those have to be all, unless the name speaks of a date.
fn time_unit(name: &str, seen: &Seen<'_>) -> Option<(i64, Encoding)> {
    let name = name.to_ascii_lowercase();
    let speaks_of_date = ["date", "day", "birth", "_on"].iter().any(|word| name.contains(word));
    let units = [
        (Encoding::Days, 1),
        (Encoding::Millis, 86_400_000),
        (Encoding::Micros, 86_400_000_000),
        (Encoding::Nanos, 86_400_000_000_000),
    ];
    units.into_iter().find_map(|(unit, per_day)| {
        let numbers = || seen.numbers().filter(|number| *number != 0);
        let fits = |number: &i64| (3_653..47_482).contains(&number.div_euclid(per_day));
        let (all, fit) = (numbers().count(), numbers().filter(fits).count());
        let least = if unit == Encoding::Days && !speaks_of_date { all } else { 1 };
        let example = numbers().find(fits)?;
        (fit >= least).then_some((example, unit))
    })
}

/// The times that a number would be in each unit that makes one of it.
pub(super) fn in_units(count: i64) -> Vec<String> {
    let units = [Encoding::Millis, Encoding::Micros, Encoding::Nanos];
    units.iter().map(|unit| format!("{} in {unit}", date_of(count, *unit))).collect()
}

fn date_of(count: i64, unit: Encoding) -> String {
    let micros = match unit {
        Encoding::Days => count.checked_mul(86_400_000_000),
        Encoding::Millis => count.checked_mul(1000),
        Encoding::Nanos => Some(count / 1000),
        _ => Some(count),
    };
    let format = if unit == Encoding::Days { "%Y-%m-%d" } else { "%Y-%m-%dT%H:%M:%SZ" };
    match micros.and_then(DateTime::from_timestamp_micros) {
        Some(time) => time.format(format).to_string(),
        None => "no date".to_string(),
    }
}

fn text(seen: &Seen<'_>) -> Vec<Candidate> {
    let string = Candidate::plain(ColumnType::String);
    if seen.texts().all(|text| matches!(&*text, "NaN" | "Infinity" | "-Infinity")) {
        return vec![Candidate::plain(ColumnType::Double).ambiguous("only NaN and infinities were seen"), string];
    }
    if looks_like_base64(seen) {
        let doubt = "looks like base64: a decimal (decimal.handling.mode=precise; which scale is not in the record), bytes \
                     or text; the source's CREATE TABLE tells";
        return vec![string.ambiguous(doubt)];
    }
    let is_day =
        |text: &str| text.len() >= 10 && text.as_bytes()[4] == b'-' && text.as_bytes()[7] == b'-' && text.len() <= 11;
    if seen.texts().all(|text| is_day(&text)) {
        let doubt = "a date (time.precision.mode=isostring), or text that looks like one";
        return vec![Candidate::new(ColumnType::Date, Encoding::Iso).ambiguous(doubt), string];
    }
    if seen.texts().all(|text| text.contains('T')) {
        let local =
            Candidate::new(ColumnType::Timestamp, Encoding::Iso).ambiguous("timestamps without a zone, or text");
        return vec![Candidate::new(ColumnType::Timestamptz, Encoding::Iso), local, string];
    }
    let is_time =
        |text: &str| text.len() >= 16 && text.starts_with(|c: char| c.is_ascii_digit()) && text[10..].starts_with('T');
    let times = seen.texts().filter(|text| text.is_ascii() && is_time(text)).count();
    if times * 2 >= seen.values.len() && times > 0 {
        return vec![string.ambiguous("most of its values are timestamps, and some are not")];
    }
    vec![string]
}

/// Whether every value is base64, and some are that for certain by their padding.
fn looks_like_base64(seen: &Seen<'_>) -> bool {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    let fits = |text: &str| {
        let digits = text.trim_end_matches('=');
        text.len().is_multiple_of(4) && text.len() - digits.len() <= 2 && digits.bytes().all(is_digit)
    };
    seen.texts().any(|text| text.ends_with('=')) && seen.texts().all(|text| fits(&text))
}

/// The largest scale of values that bring their own (`io.debezium.data.VariableScaleDecimal`).
fn scales(seen: &Seen<'_>) -> Option<i64> {
    let scale = |json: &str| {
        let fields = fields(json);
        let value = |name: &str| fields.iter().find(|(field, _)| field == name).map(|(_, value)| *value);
        json::string(value("value")?)?;
        (fields.len() == 2).then_some(value("scale")?.parse::<i64>().ok()?)
    };
    seen.values.iter().map(|value| scale(value.json)).try_fold(0, |most, scale| Some(most.max(scale?)))
}

/// A number without a declared scale.
pub(super) fn variable_scale(seen: &Seen<'_>) -> Vec<Candidate> {
    let mut found = Vec::new();
    let encoding = if seen.is_text() { Encoding::Native } else { Encoding::Base64 };
    let holds_all = if encoding == Encoding::Native { "" } else { " sent as `digits`" };
    let behind_point = |text: &str| text.split_once('.').map_or(0, |(_, digits)| digits.len() as i64);
    let sent = match encoding {
        Encoding::Native => Some(seen.texts().map(|text| behind_point(&text)).max().unwrap_or(0)),
        _ => scales(seen),
    };
    for scale in [sent.map(|sent| sent.max(9)), sent].into_iter().flatten().filter(|scale| (0..=38).contains(scale)) {
        let column_type = ColumnType::Decimal { precision: 38, scale: scale as i8 };
        let doubt = format!(
            "its type sets no scale; {column_type} holds what was seen, and a value with more digits would be rejected; \
             a `string`{holds_all} holds every one"
        );
        found.push(Candidate::new(column_type, encoding).ambiguous(doubt));
    }
    if seen.kinds.whole || seen.kinds.fraction {
        let lossy =
            "sent as a number (decimal.handling.mode=double), which has lost digits already where there were many";
        found.push(Candidate::plain(ColumnType::Double).ambiguous(lossy));
    }
    found.push(match encoding {
        Encoding::Native => Candidate::plain(ColumnType::String).about("as it is sent"),
        _ => {
            Candidate::new(ColumnType::String, Encoding::Digits { scale: None }).about("no one decimal type holds them")
        }
    });
    found
}
