//! Dates and times in ISO 8601 text, as Java's formatters write them.

use crate::json;

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
    #[error("it is out of range")]
    Range,
}

/// What PostgreSQL's `infinity` and `-infinity` are as microseconds, in PostgreSQL and in Debezium.
const INFINITY_US: (i64, i64) = (i64::MAX, i64::MIN);
/// The same in milliseconds: what PostgreSQL's driver makes of them, and Debezium sends.
const INFINITY_MS: (i64, i64) = (9_223_372_036_825_200_000, -9_223_372_036_832_400_000);
/// The same as days of a change from the log, `+5877611-06-21` and `-5877611-06-22`.
const INFINITY_DAYS: (i64, i64) = (2_146_033_979, -2_147_472_691);
/// The same as days of a row from a snapshot, `+292278994-08-16` and `+292269055-12-02`, which no date holds.
const SNAPSHOT_INFINITY_DAYS: (i64, i64) = (106_751_991_166, 106_748_361_128);

const SECONDS: i64 = 86_400;

/// Days since 1970. Debezium's `IsoDate` has a `Z` behind it.
pub(super) fn date(text: &str) -> Result<i32, NotATime> {
    let (days, rest) = days(text.as_bytes()).ok_or(NotATime::Date)?;
    if !(rest.is_empty() || rest == b"Z") {
        return Err(NotATime::Date);
    }
    let days = match days {
        _ if days == SNAPSHOT_INFINITY_DAYS.0 => INFINITY_DAYS.0,
        _ if days == SNAPSHOT_INFINITY_DAYS.1 => INFINITY_DAYS.1,
        _ => days,
    };
    i32::try_from(days).map_err(|_| NotATime::Range)
}

/// Microseconds of a number of milliseconds since 1970.
pub(super) fn from_millis(millis: i64) -> Option<i64> {
    match millis {
        _ if millis == INFINITY_MS.0 => Some(INFINITY_US.0),
        _ if millis == INFINITY_MS.1 => Some(INFINITY_US.1),
        _ => millis.checked_mul(1000),
    }
}

/// A time of day, or a time span, from a number of parts of a second: `HH:MM:SS` and the parts in `digits` digits.
pub(super) fn time_text(count: i64, digits: usize) -> String {
    let per_second = 10u64.pow(digits as u32);
    let (seconds, part) = (count.unsigned_abs() / per_second, count.unsigned_abs() % per_second);
    let sign = if count < 0 { "-" } else { "" };
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{sign}{hours:02}:{minutes:02}:{seconds:02}.{part:0digits$}")
}

/// A timestamp with nine digits behind the second from nanoseconds since 1970.
pub(super) fn nanos_text(nanos: i64) -> String {
    const DAY_NS: i64 = SECONDS * 1_000_000_000;
    let (year, month, day) = civil(nanos.div_euclid(DAY_NS));
    format!("{year:04}-{month:02}-{day:02}T{}", time_text(nanos.rem_euclid(DAY_NS), 9))
}

/// Microseconds since 1970 of a time without a zone. Debezium's `IsoTimestamp` has a `Z` behind it.
pub(super) fn timestamp(text: &str) -> Result<i64, NotATime> {
    let (instant, rest) = date_time(text.as_bytes()).ok_or(NotATime::Timestamp)?;
    if rest.is_empty() || rest == b"Z" { instant.micros() } else { Err(NotATime::Timestamp) }
}

/// Microseconds since 1970 of a time with a zone, or of PostgreSQL's infinities.
pub(super) fn timestamptz(text: &str) -> Result<i64, NotATime> {
    match text {
        "infinity" => return Ok(INFINITY_US.0),
        "-infinity" => return Ok(INFINITY_US.1),
        _ => {}
    }
    let (instant, rest) = date_time(text.as_bytes()).ok_or(NotATime::Timestamptz)?;
    let offset_seconds = offset(rest).ok_or(NotATime::Timestamptz)?;
    Instant { seconds: instant.seconds - offset_seconds, ..instant }.micros()
}

struct Instant {
    seconds: i64,
    nanos: i64,
}

impl Instant {
    fn micros(&self) -> Result<i64, NotATime> {
        if self.nanos == 0 && self.seconds.checked_mul(1000) == Some(INFINITY_MS.0) {
            return Ok(INFINITY_US.0);
        }
        if self.nanos == 0 && self.seconds.checked_mul(1000) == Some(INFINITY_MS.1) {
            return Ok(INFINITY_US.1);
        }
        if self.nanos % 1000 != 0 {
            return Err(NotATime::Nanoseconds);
        }
        let micros = i128::from(self.seconds) * 1_000_000 + i128::from(self.nanos / 1000);
        i64::try_from(micros).map_err(|_| NotATime::Range)
    }
}

fn date_time(text: &[u8]) -> Option<(Instant, &[u8])> {
    if let Some(usual) = usual_date_time(text) {
        return Some(usual);
    }
    let (days, rest) = days(text)?;
    let [b'T' | b' ', rest @ ..] = rest else { return None };
    let (hour, rest) = number(rest, 2, 23)?;
    let rest = rest.strip_prefix(b":")?;
    let (minute, mut rest) = number(rest, 2, 59)?;
    let (mut second, mut nanos) = (0, 0);
    if let Some(after) = rest.strip_prefix(b":") {
        (second, rest) = number(after, 2, 59)?;
        if let Some(after) = rest.strip_prefix(b".") {
            (nanos, rest) = nanos_of_fraction(after)?;
        }
    }
    Some((Instant { seconds: days * SECONDS + (hour * 60 + minute) * 60 + second, nanos }, rest))
}

/// One that is written like `2026-01-31T23:59:59`, as nearly all are, with or without digits of a second behind it.
fn usual_date_time(text: &[u8]) -> Option<(Instant, &[u8])> {
    #[rustfmt::skip]
    let [y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1, b'T', h0, h1, b':', n0, n1, b':', s0, s1, rest @ ..] = text else {
        return None;
    };
    let digits = [y0, y1, y2, y3, m0, m1, d0, d1, h0, h1, n0, n1, s0, s1].map(|byte| byte.wrapping_sub(b'0'));
    // Without an early end, so that it costs one guess.
    if digits.iter().fold(false, |found, digit| found | (*digit > 9)) {
        return None;
    }
    let [y0, y1, y2, y3, m0, m1, d0, d1, h0, h1, n0, n1, s0, s1] = digits.map(i64::from);
    let days = from_civil(y0 * 1000 + y1 * 100 + y2 * 10 + y3, m0 * 10 + m1, d0 * 10 + d1)?;
    let (hour, minute, second) = (h0 * 10 + h1, n0 * 10 + n1, s0 * 10 + s1);
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let (nanos, rest) = match rest.strip_prefix(b".") {
        Some(after) => nanos_of_fraction(after)?,
        None => (0, rest),
    };
    Some((Instant { seconds: days * SECONDS + (hour * 60 + minute) * 60 + second, nanos }, rest))
}

/// Days since 1970 of a year of four digits, or of more with a sign, month and day.
fn days(text: &[u8]) -> Option<(i64, &[u8])> {
    let (sign, digits) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        _ => (1, text),
    };
    let width = digits.iter().take_while(|b| b.is_ascii_digit()).count();
    let is_signed = digits.len() != text.len();
    if !(width == 4 || is_signed && (4..=9).contains(&width)) {
        return None;
    }
    let (year, rest) = number(digits, width, 999_999_999)?;
    let (month, rest) = number(rest.strip_prefix(b"-")?, 2, 12)?;
    let (day, rest) = number(rest.strip_prefix(b"-")?, 2, 31)?;
    Some((from_civil(sign * year, month, day)?, rest))
}

/// Days since 1970 of a date in the Gregorian calendar, carried on before its beginning; `None` for a day that is not.
///
/// The calendar repeats after 400 years, and years are reckoned from March, so that the leap day is a year's last.
fn from_civil(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year.rem_euclid(4) == 0 && (year.rem_euclid(100) != 0 || year.rem_euclid(400) == 0);
    let last = match month {
        4 | 6 | 9 | 11 => 30,
        2 if is_leap => 29,
        2 => 28,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=last).contains(&day) {
        return None;
    }
    let year = if month <= 2 { year - 1 } else { year };
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    Some(year.div_euclid(400) * 146_097 + day_of_era - 719_468)
}

/// The date that is so many days after 1970 began.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = days.div_euclid(146_097) * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

/// Nanoseconds of the digits behind the point.
fn nanos_of_fraction(text: &[u8]) -> Option<(i64, &[u8])> {
    /// Nanoseconds of the last of so many digits.
    const LAST: [i64; 10] = [0, 100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1000, 100, 10, 1];
    let (digits, rest) = text.split_at_checked(json::digits_in(text))?;
    Some((json::short_whole(digits)? * LAST.get(digits.len())?, rest))
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
        check("+5881580-07-11", Ok(i32::MAX));
        check("-5877641-06-23", Ok(i32::MIN));
        check("+5881580-07-12", Err(NotATime::Range));
        for bad in ["", "infinity", "-infinity", "2023-02-29", "2024-13-01", "24-01-01", "20240101", "2024-01-01T00:00"]
        {
            check(bad, Err(NotATime::Date));
        }
        for bad in [
            "10000-01-01",
            "+2147483647-01-01",
            "1900-02-29",
            "2024-04-31",
            "2024-1-1",
            "2024-01-01+01:00",
            "٢٠٢٤-01-01",
            "2024-00-10",
        ] {
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
        check("+262143-01-01T00:00:00", Ok(8_210_266_876_800_000_000));
        check("+294247-01-10T04:00:54.775807", Ok(i64::MAX));
        check("+294247-01-10T04:00:54.775808", Err(NotATime::Range));
        check("-290308-12-21T19:59:05.224192", Ok(i64::MIN));
    }

    #[test]
    fn the_infinities_of_postgresql_stay_apart_from_every_other_time() {
        assert_eq!(timestamptz("infinity"), Ok(i64::MAX));
        assert_eq!(timestamptz("-infinity"), Ok(i64::MIN));
        assert_eq!(timestamp("+292278994-08-16T23:00:00Z"), Ok(i64::MAX));
        assert_eq!(timestamp("-292275055-05-16T23:00:00Z"), Ok(i64::MIN));
        assert_eq!(timestamp("+292278994-08-16T23:00:01Z"), Err(NotATime::Range));
        assert_eq!(from_millis(9_223_372_036_825_200_000), Some(i64::MAX));
        assert_eq!(from_millis(-9_223_372_036_832_400_000), Some(i64::MIN));
        assert_eq!(
            (from_millis(9_223_372_036_854_775), from_millis(i64::MAX)),
            (Some(9_223_372_036_854_775_000), None)
        );
        assert_eq!(date("+292278994-08-16Z"), date("+5877611-06-21Z"));
        assert_eq!(date("+292269055-12-02Z"), date("-5877611-06-22Z"));
        assert_eq!(date("+292278994-08-17Z"), Err(NotATime::Range));
    }

    #[test]
    fn a_day_has_one_date() {
        for day in (-200_000_000..200_000_000).step_by(9973).chain(-1000..1000) {
            let (year, month, date) = civil(day);
            assert_eq!(from_civil(year, month, date), Some(day));
        }
        assert_eq!((civil(0), civil(-1), civil(19_782)), ((1970, 1, 1), (1969, 12, 31), (2024, 2, 29)));
    }

    #[test]
    fn numbers_as_text() {
        assert_eq!(time_text(86_399_999_999, 6), "23:59:59.999999");
        assert_eq!(time_text(86_400_000, 3), "24:00:00.000");
        assert_eq!(time_text(-3_020_399_000_000, 6), "-838:59:59.000000");
        assert_eq!(time_text(i64::MIN, 9), "-2562047:47:16.854775808");
        assert_eq!(nanos_text(1_709_210_096_123_456_789), "2024-02-29T12:34:56.123456789");
        assert_eq!(nanos_text(-1), "1969-12-31T23:59:59.999999999");
        assert_eq!(nanos_text(i64::MIN), "1677-09-21T00:12:43.145224192");
        assert_eq!(nanos_text(i64::MAX), "2262-04-11T23:47:16.854775807");
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
        for bad in ["1970-01-01T00:00:00", "1970-01-01T00:00:00z", "1970-01-01T00:00:00+1", "Infinity", "now"] {
            check(bad, Err(NotATime::Timestamptz));
        }
        check("1970-01-01T00:00:00.0000001Z", Err(NotATime::Nanoseconds));
    }
}
