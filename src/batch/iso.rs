//! Dates and times in ISO 8601 text, as Java's formatters write them.

use chrono::NaiveDate;

/// Why a text is no date or time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotATime {
    #[error("it is not a date like 2025-01-31")]
    Date,
    #[error("it is not a timestamp like 2025-01-31T23:59:59.123456")]
    Timestamp,
    #[error("it is not a timestamp with a zone like 2025-01-31T23:59:59.123456Z")]
    Timestamptz,
    #[error("it has digits below the microsecond")]
    Nanoseconds,
}

const DAY_US: i64 = 86_400_000_000;

/// Days since 1970. Debezium's `IsoDate` has a `Z` behind it.
pub(super) fn date(text: &str) -> Result<i32, NotATime> {
    let (days, rest) = days(text.as_bytes()).ok_or(NotATime::Date)?;
    if rest.is_empty() || rest == b"Z" { Ok(days) } else { Err(NotATime::Date) }
}

/// Microseconds since 1970 of a time without a zone. Debezium's `IsoTimestamp` has a `Z` behind it.
pub(super) fn timestamp(text: &str) -> Result<i64, NotATime> {
    let (micros, rest) = date_time(text.as_bytes(), NotATime::Timestamp)?;
    if rest.is_empty() || rest == b"Z" { Ok(micros) } else { Err(NotATime::Timestamp) }
}

/// Microseconds since 1970 of a time with a zone.
pub(super) fn timestamptz(text: &str) -> Result<i64, NotATime> {
    let (micros, rest) = date_time(text.as_bytes(), NotATime::Timestamptz)?;
    let offset_seconds = offset(rest).ok_or(NotATime::Timestamptz)?;
    micros.checked_sub(offset_seconds * 1_000_000).ok_or(NotATime::Timestamptz)
}

fn date_time(text: &[u8], otherwise: NotATime) -> Result<(i64, &[u8]), NotATime> {
    let (Some(micros), rest, is_exact) = read_date_time(text) else {
        return Err(otherwise);
    };
    if is_exact { Ok((micros, rest)) } else { Err(NotATime::Nanoseconds) }
}

fn read_date_time(text: &[u8]) -> (Option<i64>, &[u8], bool) {
    let read = || {
        let (days, rest) = days(text)?;
        let [b'T' | b' ', rest @ ..] = rest else { return None };
        let (hour, rest) = number(rest, 2, 23)?;
        let rest = rest.strip_prefix(b":")?;
        let (minute, mut rest) = number(rest, 2, 59)?;
        let (mut second, mut fraction, mut is_exact) = (0, 0, true);
        if let Some(after) = rest.strip_prefix(b":") {
            (second, rest) = number(after, 2, 59)?;
            if let Some(after) = rest.strip_prefix(b".") {
                (fraction, is_exact, rest) = micros_of_fraction(after)?;
            }
        }
        let seconds = (hour * 60 + minute) * 60 + second;
        let micros = i64::from(days).checked_mul(DAY_US)?.checked_add(seconds * 1_000_000 + fraction)?;
        Some((micros, rest, is_exact))
    };
    match read() {
        Some((micros, rest, is_exact)) => (Some(micros), rest, is_exact),
        None => (None, text, true),
    }
}

/// A year of four digits, or of more with a sign, month and day.
fn days(text: &[u8]) -> Option<(i32, &[u8])> {
    let (sign, digits) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        _ => (1, text),
    };
    let width = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let is_signed = digits.len() != text.len();
    if !(width == 4 || is_signed && (4..=6).contains(&width)) {
        return None;
    }
    let (year, rest) = number(digits, width, 999_999)?;
    let (month, rest) = number(rest.strip_prefix(b"-")?, 2, 12)?;
    let (day, rest) = number(rest.strip_prefix(b"-")?, 2, 31)?;
    let date = NaiveDate::from_ymd_opt(sign * year as i32, month as u32, day as u32)?;
    let days = date.signed_duration_since(NaiveDate::default()).num_days();
    Some((i32::try_from(days).ok()?, rest))
}

/// Microseconds of the digits behind the point, and whether nothing was below them.
fn micros_of_fraction(text: &[u8]) -> Option<(i64, bool, &[u8])> {
    let width = text.iter().take_while(|b| b.is_ascii_digit()).count();
    if !(1..=9).contains(&width) {
        return None;
    }
    let (digits, rest) = text.split_at(width);
    let nanos = (0..9).fold(0i64, |nanos, place| nanos * 10 + digits.get(place).map_or(0, |b| i64::from(b - b'0')));
    Some((nanos / 1000, nanos % 1000 == 0, rest))
}

/// Seconds east of Greenwich: `Z`, `+01`, `+01:00`, `+0100` or `+01:00:00`.
fn offset(text: &[u8]) -> Option<i64> {
    let (sign, rest) = match text {
        b"Z" => return Some(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return None,
    };
    let (hours, mut rest) = number(rest, 2, 18)?;
    let (mut minutes, mut seconds) = (0, 0);
    if !rest.is_empty() {
        (minutes, rest) = number(rest.strip_prefix(b":").unwrap_or(rest), 2, 59)?;
    }
    if !rest.is_empty() {
        (seconds, rest) = number(rest.strip_prefix(b":").unwrap_or(rest), 2, 59)?;
    }
    rest.is_empty().then_some(sign * (hours * 3600 + minutes * 60 + seconds))
}

fn number(text: &[u8], width: usize, most: i64) -> Option<(i64, &[u8])> {
    let (digits, rest) = text.split_at_checked(width)?;
    let number =
        digits.iter().try_fold(0i64, |number, b| b.is_ascii_digit().then(|| number * 10 + i64::from(b - b'0')))?;
    (number <= most).then_some((number, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        let check = |text: &str, expected| assert_eq!(date(text), expected, "{text}");
        check("1970-01-01", Ok(0));
        check("2024-02-29", Ok(19_782));
        check("1969-12-31Z", Ok(-1));
        check("-4713-11-24", Ok(-2_440_588));
        check("+10000-01-01", Ok(2_932_897));
        for bad in ["", "infinity", "-infinity", "2023-02-29", "2024-13-01", "24-01-01", "20240101", "2024-01-01T00:00"]
        {
            check(bad, Err(NotATime::Date));
        }
        for bad in ["10000-01-01", "+2147483647-01-01", "2024-1-1", "2024-01-01+01:00", "٢٠٢٤-01-01", "2024-00-10"]
        {
            check(bad, Err(NotATime::Date));
        }
    }

    #[test]
    fn timestamps() {
        let check = |text: &str, expected| assert_eq!(timestamp(text), expected, "{text}");
        check("1970-01-01T00:00:00", Ok(0));
        check("1970-01-01 00:00:01.5", Ok(1_500_000));
        check("1969-12-31T23:59:59.999999Z", Ok(-1));
        check("2025-01-31T23:59", Ok(1_738_367_940_000_000));
        check("2025-01-31T23:59:59.123456000", Ok(1_738_367_999_123_456));
        check("2025-01-31T23:59:59.1234561", Err(NotATime::Nanoseconds));
        for bad in ["infinity", "2025-01-31", "2025-01-31T24:00:00", "2025-01-31T23:59:60", "2025-01-31T23:59:59."] {
            check(bad, Err(NotATime::Timestamp));
        }
        check("2025-01-31T23:59:59+01:00", Err(NotATime::Timestamp));
        check("+262143-01-01T00:00:00", Err(NotATime::Timestamp));
    }

    #[test]
    fn timestamps_with_a_zone() {
        let check = |text: &str, expected| assert_eq!(timestamptz(text), expected, "{text}");
        check("1970-01-01T00:00:00Z", Ok(0));
        check("1970-01-01T01:00:00+01:00", Ok(0));
        check("1969-12-31T18:30:00-05:30", Ok(0));
        check("1970-01-01T01:00:00+01", Ok(0));
        check("1970-01-01T00:00:00.000001+0000", Ok(1));
        check("1883-11-18T12:03:57-04:56:02", Ok(-2_717_650_801_000_000));
        for bad in ["1970-01-01T00:00:00", "1970-01-01T00:00:00z", "1970-01-01T00:00:00+1", "infinity", "now"] {
            check(bad, Err(NotATime::Timestamptz));
        }
        check("1970-01-01T00:00:00.0000001Z", Err(NotATime::Nanoseconds));
    }
}
