//! Source positions as text whose order is the stream's order.
//!
//! Every part is padded to the width of the largest value it can have, because readers compare positions as text.

use super::payload::Fields;
use crate::json::digits_in;

/// The digits of the largest number there is.
const WIDTH: usize = 20;
const ZEROS: &str = "00000000000000000000";

/// A position, and the fields of the source block it holds exactly, so that nobody needs to keep them a second time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) text: String,
    pub(super) holds: &'static [&'static str],
}

/// The fields that positions are made of.
pub(super) const IS_MADE_OF: &[&str] = &[
    "lsn",
    "sequence",
    "file",
    "pos",
    "row",
    "commit_lsn",
    "change_lsn",
    "event_serial_no",
    "ts_ms",
    "ord",
    "scn",
    "commit_scn",
    "ssn",
];

/// The position in `source`, the source block of an event of `connector`; `None` where it has none we know.
pub(super) fn position(connector: &str, source: &Fields<'_>) -> Option<Position> {
    match connector {
        "postgresql" => postgresql(source),
        "mysql" | "mariadb" => mysql(source),
        "sqlserver" => sqlserver(source),
        "mongodb" => mongodb(source),
        "oracle" => oracle(source),
        _ => None,
    }
}

/// Transactions reach us one after the other but overlap in the log, so that the last commit orders before the record's
/// own place. Before the first commit the connector knows none; the record's place is then the lower bound of it.
fn postgresql(source: &Fields<'_>) -> Option<Position> {
    let lsn = number(source, "lsn");
    let Some((commit, own)) = source.get("sequence").and_then(sequence) else {
        let lsn = lsn?;
        return Some(Position { text: pair(lsn, lsn), holds: &["lsn"] });
    };
    let (own_lsn, commit_lsn) = (own.or(lsn)?, commit);
    let text = pair(commit_lsn.unwrap_or(own_lsn), own_lsn);
    let holds: &[&str] = match (commit_lsn, lsn == Some(own_lsn)) {
        (Some(_), true) => &["sequence", "lsn"],
        (Some(_), false) => &["sequence"],
        (None, true) => &["lsn"],
        (None, false) => &[],
    };
    Some(Position { text, holds })
}

/// The two numbers of a sequence, which is JSON in a string: `"[\"24055024\",\"24055128\"]"`.
fn sequence(json: &str) -> Option<(Option<u64>, Option<u64>)> {
    // Nearly all look like this, and come with every event.
    if let Some((commit, own)) = plain_sequence(json) {
        return Some((digits(commit), digits(own)));
    }
    let text = crate::json::string(json)?;
    let [commit, own] = serde_json::from_str::<[Option<String>; 2]>(&text).ok()?;
    Some((commit.as_deref().and_then(digits), own.as_deref().and_then(digits)))
}

/// The digits of a sequence of two numbers.
fn plain_sequence(json: &str) -> Option<(&str, &str)> {
    let rest = json.strip_prefix(r#""[\""#)?;
    let (commit, rest) = rest.split_at_checked(digits_in(rest.as_bytes()))?;
    let rest = rest.strip_prefix(r#"\",\""#)?;
    let (own, rest) = rest.split_at_checked(digits_in(rest.as_bytes()))?;
    (rest == r#"\"]""#).then_some((commit, own))
}

/// What [`postgresql`] makes of a sequence of two numbers, the second of which is `lsn`; nothing where that is not sure.
pub(super) fn of_sequence(json: &str, lsn: &str) -> Option<String> {
    /// So many digits are a number that cannot be out of range.
    const MOST_DIGITS: usize = 19;
    let (commit, own) = plain_sequence(json)?;
    let is_short = |digits: &str| (1..=MOST_DIGITS).contains(&digits.len());
    if !is_short(commit) || !is_short(own) || own != lsn {
        return None;
    }
    let mut text = String::with_capacity(2 * WIDTH + 1);
    text.push_str(ZEROS.get(commit.len()..)?);
    text.push_str(commit);
    text.push(':');
    text.push_str(ZEROS.get(own.len()..)?);
    text.push_str(own);
    Some(text)
}

/// Two numbers in as many digits each as the largest one has.
fn pair(first: u64, second: u64) -> String {
    format!("{first:0WIDTH$}:{second:0WIDTH$}")
}

/// Binlog files are numbered in order, `mysql-bin.000003`; the number grows past its padding after 999999.
fn mysql(source: &Fields<'_>) -> Option<Position> {
    let file = source.text("file")?;
    let file = digits(file.rsplit_once('.')?.1)?;
    let (pos, row) = (number(source, "pos")?, number(source, "row")?);
    Some(Position { text: format!("{file:020}:{pos:020}:{row:020}"), holds: &["pos", "row"] })
}

/// Log sequence numbers come as hexadecimal of a fixed width already. A snapshot's rows have no change number.
fn sqlserver(source: &Fields<'_>) -> Option<Position> {
    let commit = log_sequence_number(&source.text("commit_lsn")?)?;
    let change = match source.text("change_lsn") {
        Some(text) => log_sequence_number(&text)?,
        None => "00000000:00000000:0000".to_string(),
    };
    let serial = number(source, "event_serial_no").unwrap_or(0);
    Some(Position { text: format!("{commit}:{change}:{serial:020}"), holds: &[] })
}

fn mongodb(source: &Fields<'_>) -> Option<Position> {
    let (time, ordinal) = (number(source, "ts_ms")?, number(source, "ord")?);
    Some(Position { text: format!("{time:020}:{ordinal:020}"), holds: &["ord"] })
}

/// LogMiner gives a transaction's changes when it commits, so that the commit's number orders before the change's own.
fn oracle(source: &Fields<'_>) -> Option<Position> {
    let scn = number(source, "scn")?;
    let commit = number(source, "commit_scn").unwrap_or(scn);
    let sequence = number(source, "ssn").unwrap_or(0);
    Some(Position { text: format!("{commit:020}:{scn:020}:{sequence:020}"), holds: &[] })
}

fn log_sequence_number(text: &str) -> Option<String> {
    let parts: Vec<&str> = text.split(':').collect();
    let widths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    let legal = widths == [8, 8, 4] && parts.iter().all(|part| part.bytes().all(|b| b.is_ascii_hexdigit()));
    legal.then(|| text.to_ascii_lowercase())
}

/// A whole number that is written as a number or as a string.
fn number(source: &Fields<'_>, name: &str) -> Option<u64> {
    match source.text(name) {
        Some(text) => digits(&text),
        None => digits(source.get(name)?),
    }
}

fn digits(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(connector: &str, source: &str, expected: Option<(&str, &[&str])>) {
        let found = position(connector, &Fields::read(source).unwrap());
        let found = found.as_ref().map(|position| (position.text.as_str(), position.holds));
        assert_eq!(found, expected, "{connector} {source}");
    }

    #[test]
    fn a_position_has_one_width_per_connector() {
        let both: &[&str] = &["sequence", "lsn"];
        check(
            "postgresql",
            r#"{"sequence":"[\"24023128\",\"24023456\"]","lsn":24023456}"#,
            Some(("00000000000024023128:00000000000024023456", both)),
        );
        check(
            "postgresql",
            r#"{"sequence":"[\"1\",\"2\"]","lsn":3}"#,
            Some(("00000000000000000001:00000000000000000002", &["sequence"])),
        );
        check(
            "postgresql",
            r#"{"sequence":"[null,\"24023456\"]","lsn":24023456}"#,
            Some(("00000000000024023456:00000000000024023456", &["lsn"])),
        );
        check(
            "postgresql",
            r#"{"sequence":null,"lsn":18446744073709551615}"#,
            Some(("18446744073709551615:18446744073709551615", &["lsn"])),
        );
        check("postgresql", r#"{"sequence":"[]","lsn":null}"#, None);
        check("postgresql", r#"{"lsn":-1}"#, None);
        check("postgresql", r#"{"lsn":1.5}"#, None);
        check(
            "mysql",
            r#"{"file":"mysql-bin.1000000","pos":154,"row":2}"#,
            Some(("00000000000001000000:00000000000000000154:00000000000000000002", &["pos", "row"])),
        );
        check("mysql", r#"{"file":"binlog","pos":154,"row":2}"#, None);
        check(
            "sqlserver",
            r#"{"commit_lsn":"00000027:00000AC0:0002","change_lsn":"00000027:00000ac0:0001","event_serial_no":2}"#,
            Some(("00000027:00000ac0:0002:00000027:00000ac0:0001:00000000000000000002", &[])),
        );
        check(
            "sqlserver",
            r#"{"commit_lsn":"00000027:00000ac0:0002","change_lsn":null,"event_serial_no":null}"#,
            Some(("00000027:00000ac0:0002:00000000:00000000:0000:00000000000000000000", &[])),
        );
        check("sqlserver", r#"{"commit_lsn":"27:ac0:2","change_lsn":null}"#, None);
        check(
            "mongodb",
            r#"{"ts_ms":1700000000000,"ord":31}"#,
            Some(("00000001700000000000:00000000000000000031", &["ord"])),
        );
        check(
            "oracle",
            r#"{"scn":"2122185","commit_scn":"2122195","ssn":1}"#,
            Some(("00000000000002122195:00000000000002122185:00000000000000000001", &[])),
        );
        check("vitess", r#"{"vgtid":"x"}"#, None);
    }

    #[test]
    fn positions_of_one_stream_sort_as_the_stream_does() {
        let stream = [
            r#"{"sequence":"[null,\"900\"]","lsn":900}"#,
            r#"{"sequence":"[null,\"950\"]","lsn":950}"#,
            r#"{"sequence":"[\"1000\",\"940\"]","lsn":940}"#,
            r#"{"sequence":"[\"1000\",\"1010\"]","lsn":1010}"#,
            r#"{"sequence":"[\"1020\",\"980\"]","lsn":980}"#,
        ];
        let texts: Vec<String> =
            stream.map(|source| position("postgresql", &Fields::read(source).unwrap()).unwrap().text).into();
        assert!(texts.is_sorted(), "{texts:#?}");
    }
}
