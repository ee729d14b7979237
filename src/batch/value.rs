//! One JSON value as a column's exact value.

use std::borrow::Cow;

use serde::Deserialize;

use super::decimal::Inexact;
use super::iso::NotATime;
use super::{base64, decimal, iso};
use crate::json;
use crate::placeholder::{Placeholder, compact};
use crate::row::{Column, ColumnType, Encoding};

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    /// The image has no such field.
    Missing,
    Null,
    Unavailable,
    Boolean(bool),
    /// An int or the days of a date.
    Int(i32),
    /// A long or the microseconds of a timestamp.
    Long(i64),
    Float(f32),
    Double(f64),
    Decimal(i128),
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
}

/// Why a JSON value is not a value of its column. Never shows the value.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misfit {
    #[error("it is {found}, and {expected} is expected")]
    Kind { found: &'static str, expected: &'static str },
    #[error("it is not a whole number")]
    Fraction,
    #[error("it is out of range")]
    Range,
    #[error("it has more digits than the type holds")]
    FloatDigits,
    #[error("it has digits below the microsecond")]
    Nanoseconds,
    #[error("it is not base64")]
    Base64,
    #[error("it is a number in digits, which `encoding: native` is for")]
    Digits,
    #[error("it has a half of a surrogate pair, which is no Unicode text")]
    Surrogate,
    #[error(transparent)]
    Decimal(#[from] Inexact),
    #[error(transparent)]
    Time(#[from] NotATime),
}

/// Reads the JSON text of one value. `placeholder` is what may stand in its place.
pub(super) fn read<'a>(json: &'a str, column: &Column, placeholder: Option<&Placeholder>) -> Result<Value<'a>, Misfit> {
    if json == "null" {
        return Ok(Value::Null);
    }
    if placeholder.is_some_and(|placeholder| stands_for(placeholder, json, column)) {
        return Ok(Value::Unavailable);
    }
    match (column.column_type, column.encoding) {
        (ColumnType::Boolean, _) => match json {
            "true" => Ok(Value::Boolean(true)),
            "false" => Ok(Value::Boolean(false)),
            _ => Err(kind(json, "true or false")),
        },
        (ColumnType::Int, _) => i32::try_from(whole(json)?).map(Value::Int).map_err(|_| Misfit::Range),
        (ColumnType::Long, _) => whole(json).map(Value::Long),
        (ColumnType::Float, _) => float(json).map(Value::Float),
        (ColumnType::Double, _) => double(json).map(Value::Double),
        (ColumnType::Decimal { precision, scale }, Encoding::Base64) => {
            // Nearly all are this short; whatever is wrong with others is said below.
            if let Some((bytes, length)) = json::plain_string(json).and_then(base64::decode_short) {
                let unscaled = decimal::from_bytes(&bytes[..length], i64::from(scale), precision, scale)?;
                return Ok(Value::Decimal(unscaled));
            }
            let bytes = decimal_bytes(json, Some(i64::from(scale)));
            let (bytes, sent_scale) =
                bytes.map_err(|misfit| if is_number_in_digits(json) { Misfit::Digits } else { misfit })?;
            Ok(Value::Decimal(decimal::from_bytes(&bytes, sent_scale, precision, scale)?))
        }
        (ColumnType::Decimal { precision, scale }, _) => {
            let text = if json.starts_with('"') { text(json)? } else { Cow::Borrowed(number(json)?) };
            Ok(Value::Decimal(decimal::from_text(&text, precision, scale)?))
        }
        (ColumnType::Date, Encoding::Iso) => Ok(Value::Int(iso::date(&text(json)?)?)),
        (ColumnType::Date, _) => i32::try_from(whole(json)?).map(Value::Int).map_err(|_| Misfit::Range),
        (ColumnType::Timestamp, Encoding::Iso) => Ok(Value::Long(iso::timestamp(&text(json)?)?)),
        (ColumnType::Timestamptz, Encoding::Iso) => Ok(Value::Long(iso::timestamptz(&text(json)?)?)),
        (ColumnType::Timestamp | ColumnType::Timestamptz, unit) => micros(whole(json)?, unit).map(Value::Long),
        (ColumnType::String, Encoding::Json) => Ok(Value::Text(compact(json))),
        (ColumnType::String, Encoding::Nanos) => Ok(Value::Text(iso::nanos_text(whole(json)?).into())),
        (ColumnType::String, Encoding::TimeMillis) => Ok(Value::Text(iso::time_text(whole(json)?, 3).into())),
        (ColumnType::String, Encoding::TimeMicros) => Ok(Value::Text(iso::time_text(whole(json)?, 6).into())),
        (ColumnType::String, Encoding::TimeNanos) => Ok(Value::Text(iso::time_text(whole(json)?, 9).into())),
        (ColumnType::String, Encoding::Digits { scale }) => {
            let (bytes, scale) = decimal_bytes(json, scale.map(i64::from))?;
            Ok(Value::Text(decimal::text_of_bytes(&bytes, scale)?.into()))
        }
        (ColumnType::String, _) => text(json).map(Value::Text),
        (ColumnType::Binary, _) => base64::decode(&text(json)?).map(Value::Bytes).ok_or(Misfit::Base64),
    }
}

/// Whether a value stands for one that was not sent. Only values that a source may leave out of its log have such
/// forms: text, bytes, exact numbers, documents and lists.
pub(super) fn stands_for(placeholder: &Placeholder, json: &str, column: &Column) -> bool {
    match (column.column_type, column.encoding) {
        (ColumnType::String, Encoding::Native) => placeholder.is_text(json) || placeholder.is_map_in_text(json),
        (ColumnType::String, Encoding::Json) => placeholder.is_structure(json),
        (ColumnType::String, Encoding::Digits { .. }) => placeholder.is_text(json),
        (ColumnType::Binary | ColumnType::Decimal { .. }, Encoding::Base64) => {
            placeholder.is_text(json) || placeholder.is_base64(json)
        }
        (ColumnType::Decimal { .. }, _) => placeholder.is_text(json),
        _ => false,
    }
}

fn whole(json: &str) -> Result<i64, Misfit> {
    if let Some(number) = json::short_whole(json.as_bytes()) {
        return Ok(number);
    }
    let number = number_or(json, "a whole number")?;
    if !number.bytes().all(|b| b == b'-' || b.is_ascii_digit()) {
        return Err(Misfit::Fraction);
    }
    number.parse().map_err(|_| Misfit::Range)
}

fn micros(count: i64, unit: Encoding) -> Result<i64, Misfit> {
    match unit {
        Encoding::Millis => iso::from_millis(count).ok_or(Misfit::Range),
        Encoding::Nanos if count % 1000 != 0 => Err(Misfit::Nanoseconds),
        Encoding::Nanos => Ok(count / 1000),
        _ => Ok(count),
    }
}

/// A float is exact when its number has no more digits than a float tells apart, or is the very value of a float, which
/// is what a source sends that widens its floats.
fn float(json: &str) -> Result<f32, Misfit> {
    if let Some(special) = special(json) {
        return Ok(special as f32);
    }
    let text = number(json)?;
    let single: f32 = text.parse().map_err(|_| kind(json, "a number"))?;
    let double: f64 = text.parse().map_err(|_| kind(json, "a number"))?;
    if !single.is_finite() {
        return Err(Misfit::Range);
    }
    if significant_digits(text) <= 9 && (single != 0.0 || double == 0.0) || f64::from(single) == double {
        Ok(single)
    } else {
        Err(Misfit::FloatDigits)
    }
}

pub(super) fn double(json: &str) -> Result<f64, Misfit> {
    if let Some(special) = special(json) {
        return Ok(special);
    }
    let double: f64 = number(json)?.parse().map_err(|_| kind(json, "a number"))?;
    if double.is_finite() { Ok(double) } else { Err(Misfit::Range) }
}

/// The values that JSON has no number for, as Connect's JSON converter writes them.
fn special(json: &str) -> Option<f64> {
    match json {
        "\"NaN\"" => Some(f64::NAN),
        "\"Infinity\"" => Some(f64::INFINITY),
        "\"-Infinity\"" => Some(f64::NEG_INFINITY),
        _ => None,
    }
}

fn significant_digits(number: &str) -> usize {
    let mantissa = number.split(['e', 'E']).next().unwrap_or(number);
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    digits.trim_matches('0').len()
}

/// The bytes of a decimal and their scale, which is the column's unless the value brings its own
/// (`io.debezium.data.VariableScaleDecimal`).
fn decimal_bytes(json: &str, scale: Option<i64>) -> Result<(Vec<u8>, i64), Misfit> {
    #[derive(Deserialize)]
    struct VariableScale<'a> {
        scale: i64,
        #[serde(borrow)]
        value: Cow<'a, str>,
    }
    let expected = if scale.is_some() { "base64 text" } else { "an object of scale and value" };
    if json.starts_with('{') {
        let own: VariableScale<'_> = serde_json::from_str(json).map_err(|_| kind(json, expected))?;
        return Ok((base64::decode(&own.value).ok_or(Misfit::Base64)?, own.scale));
    }
    match scale {
        Some(scale) if json.starts_with('"') => Ok((base64::decode(&text(json)?).ok_or(Misfit::Base64)?, scale)),
        _ => Err(kind(json, expected)),
    }
}

/// Whether it is a number that somebody could read, as itself or as text.
fn is_number_in_digits(json: &str) -> bool {
    let digits = if json.starts_with('"') { text(json).ok() } else { number(json).ok().map(Cow::Borrowed) };
    digits.is_some_and(|digits| digits.parse::<f64>().is_ok_and(f64::is_finite))
}

fn text(json: &str) -> Result<Cow<'_, str>, Misfit> {
    if !json.starts_with('"') {
        return Err(kind(json, "text"));
    }
    json::string(json).ok_or(Misfit::Surrogate)
}

fn number(json: &str) -> Result<&str, Misfit> {
    number_or(json, "a number")
}

fn number_or<'a>(json: &'a str, expected: &'static str) -> Result<&'a str, Misfit> {
    if json.starts_with(|c: char| c == '-' || c.is_ascii_digit()) { Ok(json) } else { Err(kind(json, expected)) }
}

fn kind(json: &str, expected: &'static str) -> Misfit {
    let found = match json.as_bytes().first() {
        Some(b'"') => "text",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        _ => "a number",
    };
    Misfit::Kind { found, expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::placeholder::DEFAULT;

    fn check(declared: &str, json: &str, expected: Result<Value<'_>, &str>) {
        let (column_type, encoding) = declared.split_once(' ').unwrap_or((declared, ""));
        let encoding = (!encoding.is_empty()).then(|| encoding.parse().unwrap());
        let column = Column::new("c", column_type.parse().unwrap(), encoding).unwrap();
        let found = read(json, &column, Some(&Placeholder::default())).map_err(|misfit| misfit.to_string());
        assert_eq!(found, expected.map_err(str::to_string), "{declared} from {json}");
    }

    #[test]
    fn null_fits_every_column() {
        for declared in ["boolean", "int", "double", "decimal(5,2)", "date", "timestamptz", "string", "binary"] {
            check(declared, "null", Ok(Value::Null));
        }
    }

    #[test]
    fn booleans_and_whole_numbers() {
        let fraction = Err("it is not a whole number");
        let range = Err("it is out of range");
        check("boolean", "true", Ok(Value::Boolean(true)));
        check("boolean", "false", Ok(Value::Boolean(false)));
        check("boolean", "1", Err("it is a number, and true or false is expected"));
        check("boolean", "\"true\"", Err("it is text, and true or false is expected"));
        check("int", "2147483647", Ok(Value::Int(i32::MAX)));
        check("int", "-2147483648", Ok(Value::Int(i32::MIN)));
        check("int", "2147483648", range.clone());
        check("int", "-0", Ok(Value::Int(0)));
        check("int", "1.0", fraction.clone());
        check("int", "1e3", fraction.clone());
        check("int", "\"1\"", Err("it is text, and a whole number is expected"));
        check("int", "true", Err("it is a boolean, and a whole number is expected"));
        check("long", "9223372036854775807", Ok(Value::Long(i64::MAX)));
        check("long", "-9223372036854775808", Ok(Value::Long(i64::MIN)));
        check("long", "9223372036854775808", range);
        check("long", "1.5", fraction);
        check("long", "[1]", Err("it is an array, and a whole number is expected"));
    }

    #[test]
    fn floats_and_doubles() {
        let digits = Err("it has more digits than the type holds");
        check("float", "0.1", Ok(Value::Float(0.1)));
        check("float", "-3", Ok(Value::Float(-3.0)));
        check("float", "0.10000000149011612", Ok(Value::Float(0.1)));
        check("float", "0.1234567891", digits.clone());
        check("float", "16777217", Ok(Value::Float(16_777_216.0)));
        check("float", "1e-60", digits);
        check("float", "0.0", Ok(Value::Float(0.0)));
        check("float", "3.5e38", Err("it is out of range"));
        check("float", "\"Infinity\"", Ok(Value::Float(f32::INFINITY)));
        check("float", "\"1.0\"", Err("it is text, and a number is expected"));
        check("double", "0.1", Ok(Value::Double(0.1)));
        check("double", "1", Ok(Value::Double(1.0)));
        check("double", "\"-Infinity\"", Ok(Value::Double(f64::NEG_INFINITY)));
        check("double", "1e400", Err("it is out of range"));
        check("double", "true", Err("it is a boolean, and a number is expected"));
        let column = Column::new("c", ColumnType::Double, None).unwrap();
        assert!(matches!(read("\"NaN\"", &column, None), Ok(Value::Double(nan)) if nan.is_nan()));
    }

    #[test]
    fn decimals() {
        let digits = Err("it has more digits than the type holds");
        let scale = Err("it has more digits behind the point than the type holds");
        check("decimal(10,2)", "\"BOI=\"", Ok(Value::Decimal(1250)));
        check("decimal(10,2)", "\"+x4=\"", Ok(Value::Decimal(-1250)));
        check("decimal(10,2)", "\"\\u002bx4=\"", Ok(Value::Decimal(-1250)));
        check("decimal(3,2)", "\"BOI=\"", digits.clone());
        check("decimal(10,2)", "\"BOI\"", Err("it is not base64"));
        check("decimal(10,2)", "\"\"", Err("it is not a decimal number"));
        let native = Err("it is a number in digits, which `encoding: native` is for");
        check("decimal(10,2)", "12.5", native.clone());
        check("decimal(10,2)", "\"-12.50\"", native);
        check("decimal(10,2)", "\"NaN\"", Err("it is not base64"));
        check("decimal(10,2)", "true", Err("it is a boolean, and base64 text is expected"));
        check("decimal(10,2)", r#"{"scale":3,"value":"MNQ="}"#, Ok(Value::Decimal(1250)));
        check("decimal(10,2)", r#"{"scale":3,"value":"MNU="}"#, scale.clone());
        check("decimal(10,2)", r#"{"value":"MNU="}"#, Err("it is an object, and base64 text is expected"));
        check("decimal(10,2) native", "12.5", Ok(Value::Decimal(1250)));
        check("decimal(10,2) native", "-12.50", Ok(Value::Decimal(-1250)));
        check("decimal(10,2) native", "\"12.500\"", Ok(Value::Decimal(1250)));
        check("decimal(10,2) native", "0.1", Ok(Value::Decimal(10)));
        check("decimal(10,2) native", "12.505", scale);
        check("decimal(3,2) native", "12.5", digits);
        check("decimal(10,2) native", "\"NaN\"", Err("it is not a decimal number"));
        check("decimal(10,2) native", "false", Err("it is a boolean, and a number is expected"));
        let most = "99999999999999999999999999999999999999";
        check("decimal(38,0) native", most, Ok(Value::Decimal(10i128.pow(38) - 1)));
    }

    #[test]
    fn dates_and_timestamps() {
        let range = Err("it is out of range");
        check("date", "20089", Ok(Value::Int(20_089)));
        check("date", "-719162", Ok(Value::Int(-719_162)));
        check("date", "2147483648", range.clone());
        check("date", "\"2025-01-01\"", Err("it is text, and a whole number is expected"));
        check("date iso", "\"2025-01-01\"", Ok(Value::Int(20_089)));
        check("date iso", "\"infinity\"", Err("it is not a date like 2025-01-31"));
        check("date iso", "20089", Err("it is a number, and text is expected"));
        for declared in ["timestamp", "timestamptz"] {
            let check = |unit: &str, json: &str, expected| check(&format!("{declared} {unit}"), json, expected);
            check("micros", "-1", Ok(Value::Long(-1)));
            check("millis", "1735689600123", Ok(Value::Long(1_735_689_600_123_000)));
            check("millis", "9223372036854775", Ok(Value::Long(9_223_372_036_854_775_000)));
            check("millis", "9223372036854776", range.clone());
            check("nanos", "-1735689600123456000", Ok(Value::Long(-1_735_689_600_123_456)));
            check("nanos", "1735689600123456789", Err("it has digits below the microsecond"));
            check("micros", "1.5", Err("it is not a whole number"));
        }
        check("timestamp iso", "\"2025-01-01T00:00:00.5\"", Ok(Value::Long(1_735_689_600_500_000)));
        check("timestamptz", "\"2025-01-01T01:00:00.5+01:00\"", Ok(Value::Long(1_735_689_600_500_000)));
        check("timestamptz", "\"infinity\"", Ok(Value::Long(i64::MAX)));
        check("timestamptz", "\"never\"", Err("it is not a timestamp with a zone like 2025-01-31T23:59:59.123456Z"));
        check("timestamp millis", "9223372036825200000", Ok(Value::Long(i64::MAX)));
        check("timestamp micros", "-9223372036854775808", Ok(Value::Long(i64::MIN)));
        check("timestamptz", "\"2025-01-01T00:00:00.1234567Z\"", Err("it has digits below the microsecond"));
    }

    #[test]
    fn text_and_bytes() {
        check("string", "\"\"", Ok(Value::Text("".into())));
        check("string", "\"Zoë ☕\"", Ok(Value::Text("Zoë ☕".into())));
        check("string", r#""a\n\"\u2615\ud83d\ude00""#, Ok(Value::Text("a\n\"☕😀".into())));
        check("string", r#""\ud83d""#, Err("it has a half of a surrogate pair, which is no Unicode text"));
        check("string", "5", Err("it is a number, and text is expected"));
        check("string", "{}", Err("it is an object, and text is expected"));
        check("binary", "\"AP8=\"", Ok(Value::Bytes(vec![0, 255])));
        check("binary", "\"\"", Ok(Value::Bytes(vec![])));
        check("binary", "\"AP8\"", Err("it is not base64"));
        check("binary", "[0]", Err("it is an array, and text is expected"));
    }

    #[test]
    fn the_placeholder_stands_for_a_value_not_sent() {
        let (text, base64) = (format!("\"{DEFAULT}\""), "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"");
        for declared in ["string", "binary", "decimal(10,2)", "decimal(10,2) native", "string digits"] {
            check(declared, &text, Ok(Value::Unavailable));
        }
        check("binary", base64, Ok(Value::Unavailable));
        check("decimal(10,2)", base64, Ok(Value::Unavailable));
        check("string", base64, Ok(Value::Text(base64.trim_matches('"').into())));
        let map = format!(r#"{{"{DEFAULT}":"{DEFAULT}"}}"#);
        let mut map_in_text = String::new();
        json::push_string(&mut map_in_text, &map);
        check("string", &map_in_text, Ok(Value::Unavailable));
        for (structure, what) in [(map, "an object"), (format!("[{text}]"), "an array")] {
            check("string json", &structure, Ok(Value::Unavailable));
            check("string", &structure, Err(&format!("it is {what}, and text is expected")));
        }
        // Nothing stands for anything where there is none.
        let column = Column::new("c", ColumnType::String, None).unwrap();
        assert_eq!(read(&text, &column, None), Ok(Value::Text(DEFAULT.into())));
    }

    #[test]
    fn a_column_that_is_always_sent_has_no_placeholder() {
        let plain = format!("\"{DEFAULT}\"");
        for declared in
            ["boolean", "int", "long", "float", "double", "date", "date iso", "timestamp iso", "timestamptz"]
        {
            let column = declared.split_once(' ').unwrap_or((declared, ""));
            let encoding = (!column.1.is_empty()).then(|| column.1.parse().unwrap());
            let column = Column::new("c", column.0.parse().unwrap(), encoding).unwrap();
            assert!(read(&plain, &column, Some(&Placeholder::default())).is_err(), "{declared}");
        }
        check("string json", &plain, Ok(Value::Text(plain.as_str().into())));
        check(
            "string json",
            r#"["__debezium_unavailable_value","b"]"#,
            Ok(Value::Text(r#"["__debezium_unavailable_value","b"]"#.into())),
        );
    }

    #[test]
    fn what_iceberg_has_no_type_for_is_text() {
        let text = |text: &str| Ok(Value::Text(text.to_string().into()));
        check("string time-millis", "45296789", text("12:34:56.789"));
        check("string time-micros", "86399999999", text("23:59:59.999999"));
        check("string time-micros", "-1", text("-00:00:00.000001"));
        check("string time-nanos", "1", text("00:00:00.000000001"));
        check("string time-micros", "\"12:00\"", Err("it is text, and a whole number is expected"));
        check("string nanos", "1735689600123456789", text("2025-01-01T00:00:00.123456789"));
        check("string nanos", "1.5", Err("it is not a whole number"));
        check("string json", r#"[1.10,null,"a b"]"#, text(r#"[1.10,null,"a b"]"#));
        check("string json", r#"{ "a" : [ 1 ] }"#, text(r#"{"a":[1]}"#));
        check("string json", "7", text("7"));
        check("string json", "null", Ok(Value::Null));
        check("string digits", r#"{"scale":2,"value":"MDk="}"#, text("123.45"));
        check("string digits", "\"MDk=\"", Err("it is text, and an object of scale and value is expected"));
        check("string digits", "{}", Err("it is an object, and an object of scale and value is expected"));
        check("string digits(20)", "\"MDk=\"", text("0.00000000000000012345"));
        check("string digits(20)", "12", Err("it is a number, and base64 text is expected"));
        check("string digits(2)", "\"*\"", Err("it is not base64"));
    }
}
