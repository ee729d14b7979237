//! How a connector sends the values of a declared SQL type.
//!
//! What stands here is what Debezium's documentation says and `tests/fixtures/README.md` shows. The connector's settings
//! are not known; which of them is in force is read off the values where those tell, and assumed to be the default where
//! not. A unit is never read off the size of a number: that only shows when the default cannot be right.

use super::ddl::SqlType;
use super::guess::{Candidate, in_units, variable_scale};
use super::seen::Seen;
use crate::row::{ColumnType, Encoding};

/// The ways the values may be sent, the likeliest first.
pub(super) fn candidates(connector: &str, sql: &SqlType, seen: &Seen<'_>) -> Vec<Candidate> {
    if sql.is_array {
        return vec![Candidate::json().about("an array, as JSON text")];
    }
    match connector {
        _ if matches!(sql.name.as_str(), "" | "computed") => Vec::new(),
        "postgresql" => postgresql(sql, seen),
        "mysql" | "mariadb" => mysql(sql, seen),
        "sqlserver" => sqlserver(sql, seen),
        "oracle" => oracle(sql, seen),
        _ => Vec::new(),
    }
}

fn postgresql(sql: &SqlType, seen: &Seen<'_>) -> Vec<Candidate> {
    let precision = sql.number(0).unwrap_or(6);
    match sql.name.as_str() {
        "smallint" | "int2" | "smallserial" | "serial2" | "integer" | "int" | "int4" | "serial" | "serial4" => {
            plain(ColumnType::Int)
        }
        "bigint" | "int8" | "bigserial" | "serial8" | "oid" => plain(ColumnType::Long),
        "real" | "float4" => plain(ColumnType::Float),
        "float" if sql.number(0).is_some_and(|bits| bits <= 24) => plain(ColumnType::Float),
        "double precision" | "float8" | "float" => plain(ColumnType::Double),
        "numeric" | "decimal" | "dec" => match sql.number(0) {
            Some(digits) => decimal(digits, sql.number(1).unwrap_or(0), seen),
            None => variable_scale(seen),
        },
        "money" => decimal(19, 2, seen),
        "boolean" | "bool" => plain(ColumnType::Boolean),
        "bit" if sql.number(0).unwrap_or(1) == 1 => plain(ColumnType::Boolean),
        "bit" | "bit varying" | "varbit" | "bytea" => bytes(seen),
        "date" => date(seen),
        "time" if !sql.has_zone => clock(if precision <= 3 { Encoding::Millis } else { Encoding::Micros }, DAY_S, seen),
        "timestamp" | "timestamptz" if sql.has_zone || sql.name == "timestamptz" => instant(),
        "timestamp" => timestamp(if precision <= 3 { Encoding::Millis } else { Encoding::Micros }, seen),
        "interval" => duration(),
        "hstore" => vec![
            Candidate::plain(ColumnType::String),
            Candidate::json().about("hstore.handling.mode=map: a map, as JSON text"),
        ],
        "point" | "geometry" | "geography" | "sparsevec" => structure("struct"),
        "vector" | "halfvec" => structure("array"),
        _ => plain(ColumnType::String),
    }
}

fn mysql(sql: &SqlType, seen: &Seen<'_>) -> Vec<Candidate> {
    let precision = sql.number(0).unwrap_or(0);
    match sql.name.as_str() {
        "tinyint" | "boolean" | "bool" => [plain(ColumnType::Int), plain(ColumnType::Boolean)].concat(),
        "int" | "integer" | "int4" if sql.is_unsigned => plain(ColumnType::Long),
        "smallint" | "mediumint" | "int" | "integer" | "int4" | "year" => plain(ColumnType::Int),
        "bigint" | "serial" if sql.is_unsigned || sql.name == "serial" => {
            let wraps = "unsigned: values from 2^63 on come as negative numbers unless the connector has \
                         bigint.unsigned.handling.mode=precise";
            let precise = ColumnType::Decimal { precision: 20, scale: 0 };
            vec![
                Candidate::plain(ColumnType::Long).ambiguous(wraps),
                Candidate::new(precise, Encoding::Base64).about("bigint.unsigned.handling.mode=precise"),
            ]
        }
        "bigint" => plain(ColumnType::Long),
        "decimal" | "numeric" | "dec" | "fixed" => {
            decimal(sql.number(0).unwrap_or(10), sql.number(1).unwrap_or(0), seen)
        }
        "float" if sql.arguments.len() < 2 && precision <= 24 => {
            [plain(ColumnType::Float), plain(ColumnType::Double)].concat()
        }
        "float" | "double" | "double precision" | "real" => plain(ColumnType::Double),
        "bit" if sql.number(0).unwrap_or(1) == 1 => plain(ColumnType::Boolean),
        "bit" | "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => bytes(seen),
        "date" => date(seen),
        // Up to `838:59:59`, as it is a span of time as well.
        "time" => clock(Encoding::Micros, 839 * 3600, seen),
        "datetime" => timestamp(if precision <= 3 { Encoding::Millis } else { Encoding::Micros }, seen),
        "timestamp" => instant(),
        "geometry" | "point" | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
        | "geometrycollection" | "geomcollection" => structure("struct"),
        "vector" => structure("array"),
        _ => plain(ColumnType::String),
    }
}

fn sqlserver(sql: &SqlType, seen: &Seen<'_>) -> Vec<Candidate> {
    let precision = sql.number(0).unwrap_or(7);
    match sql.name.as_str() {
        "tinyint" | "smallint" | "int" | "integer" => plain(ColumnType::Int),
        "bigint" => plain(ColumnType::Long),
        "bit" => plain(ColumnType::Boolean),
        "decimal" | "numeric" | "dec" => decimal(sql.number(0).unwrap_or(18), sql.number(1).unwrap_or(0), seen),
        "money" => decimal(19, 4, seen),
        "smallmoney" => decimal(10, 4, seen),
        "real" => plain(ColumnType::Float),
        "float" | "double precision" => plain(ColumnType::Double),
        "binary" | "varbinary" | "image" | "rowversion" | "timestamp" => bytes(seen),
        "date" => date(seen),
        "time" => clock(unit(precision), DAY_S, seen),
        "datetime" | "smalldatetime" => timestamp(Encoding::Millis, seen),
        "datetime2" => timestamp(unit(precision), seen),
        "datetimeoffset" => instant(),
        "geometry" | "geography" => structure("struct"),
        _ => plain(ColumnType::String),
    }
}

fn oracle(sql: &SqlType, seen: &Seen<'_>) -> Vec<Candidate> {
    match (sql.name.as_str(), sql.number(0)) {
        ("number" | "numeric" | "decimal" | "dec", Some(digits)) => match sql.number(1).unwrap_or(0) {
            // What has no fraction is sent as the smallest integer that holds it.
            scale if scale <= 0 && digits - scale < 10 => plain(ColumnType::Int),
            scale if scale <= 0 && digits - scale < 19 => plain(ColumnType::Long),
            scale if scale <= 0 => decimal(digits - scale, 0, seen),
            scale => decimal(digits, scale, seen),
        },
        ("integer" | "int" | "smallint" | "numeric" | "decimal" | "dec", None) => decimal(38, 0, seen),
        ("number" | "float" | "real" | "double precision", _) => variable_scale(seen),
        ("binary_float", _) => plain(ColumnType::Float),
        ("binary_double", _) => plain(ColumnType::Double),
        ("raw" | "long raw" | "blob", _) => bytes(seen),
        ("date", _) => timestamp(Encoding::Millis, seen),
        ("timestamp", _) if sql.has_zone => instant(),
        ("timestamp", precision) => timestamp(unit(precision.unwrap_or(6)), seen),
        ("interval", _) => duration(),
        _ => plain(ColumnType::String),
    }
}

fn plain(column_type: ColumnType) -> Vec<Candidate> {
    vec![Candidate::plain(column_type)]
}

/// The unit that `time.precision.mode=adaptive` gives to so many digits of a second.
fn unit(precision: i64) -> Encoding {
    match precision {
        ..=3 => Encoding::Millis,
        4..=6 => Encoding::Micros,
        _ => Encoding::Nanos,
    }
}

/// `decimal.handling.mode`: base64 unless told otherwise, digits in text, or a number that lost digits.
fn decimal(digits: i64, scale: i64, seen: &Seen<'_>) -> Vec<Candidate> {
    let mut found = Vec::new();
    let is_number = seen.kinds.whole || seen.kinds.fraction;
    let held = u8::try_from(digits.max(scale)).ok().zip(i8::try_from(scale).ok());
    if let Some((precision, scale)) = held.filter(|(precision, scale)| (1..=38).contains(precision) && *scale >= 0) {
        let column_type = ColumnType::Decimal { precision, scale };
        if !is_number {
            found.push(Candidate::new(column_type, Encoding::Base64));
        }
        // Up to 15 digits come through a double unharmed.
        if seen.is_text() || precision <= 15 {
            let mode = if seen.is_text() { "string" } else { "double" };
            let about = format!("decimal.handling.mode={mode}");
            found.push(Candidate::new(column_type, Encoding::Native).about(about));
        }
        let wider = ColumnType::Decimal { precision: 38, scale };
        let outgrown =
            "its values have more digits than were declared; it is taken to have been widened, with the same scale";
        if !is_number {
            found.push(Candidate::new(wider, Encoding::Base64).ambiguous(outgrown));
        }
    } else if let Some(scale) = u32::try_from(scale).ok().filter(|_| !is_number) {
        let about = "no Iceberg decimal holds its digits, so they become text";
        if !seen.is_text() || !seen.texts().all(|text| is_decimal(&text)) {
            let digits = Encoding::Digits { scale: Some(scale) };
            found.push(Candidate::new(ColumnType::String, digits).about(about));
        }
        found.push(Candidate::plain(ColumnType::String).about("as it is sent: decimal.handling.mode=string"));
    } else if !is_number {
        let about = "no Iceberg decimal holds its digits, so it stays as it is sent; with decimal.handling.mode=precise \
                     that is base64";
        found.push(Candidate::plain(ColumnType::String).ambiguous(about));
    }
    let lossy = "sent as a number (decimal.handling.mode=double), which has lost digits already where there were many";
    found.push(Candidate::plain(ColumnType::Double).ambiguous(lossy));
    found
}

/// Base64 unless `binary.handling.mode` says hex, which is often base64 to the eye.
fn bytes(seen: &Seen<'_>) -> Vec<Candidate> {
    let is_hex =
        |text: &str| text.len().is_multiple_of(2) && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let mut base64 = Candidate::new(ColumnType::Binary, Encoding::Base64);
    if seen.texts().any(|text| !text.is_empty()) && seen.texts().all(|text| is_hex(&text)) {
        base64 =
            base64.ambiguous("every value could be hex as well (binary.handling.mode=hex); that would be a `string`");
    }
    vec![base64, Candidate::plain(ColumnType::String).about("no base64, so as it is sent: binary.handling.mode=hex?")]
}

fn date(seen: &Seen<'_>) -> Vec<Candidate> {
    if seen.is_text() {
        let about = "time.precision.mode=isostring";
        return vec![Candidate::new(ColumnType::Date, Encoding::Iso).about(about)];
    }
    vec![Candidate::new(ColumnType::Date, Encoding::Days)]
}

const DAY_S: i64 = 86_400;

/// Decimal digits, as `decimal.handling.mode=string` sends them. Base64 of a short number can be that, too, but hardly
/// that of every one.
fn is_decimal(text: &str) -> bool {
    let is_part = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let digits = text.strip_prefix('-').unwrap_or(text);
    match digits.split_once('.') {
        Some((whole, fraction)) => is_part(whole) && is_part(fraction),
        None => is_part(digits),
    }
}

/// A time of day, for which Athena has no type: text. `most_s` is the last second there is.
fn clock(unit: Encoding, most_s: i64, seen: &Seen<'_>) -> Vec<Candidate> {
    let (sent, coarser, own) = match unit {
        Encoding::Millis => (Encoding::TimeMillis, None, 1_000),
        Encoding::Micros => (Encoding::TimeMicros, Some(1_000), 1_000_000),
        _ => (Encoding::TimeNanos, Some(1_000_000), 1_000_000_000),
    };
    let sent_as = format!("its type is sent as {unit} since midnight unless time.precision.mode says otherwise");
    let most = seen.numbers().map(i64::unsigned_abs).max().unwrap_or(0);
    let lasts = |per_second: i64| u64::try_from(most_s.saturating_mul(per_second)).is_ok_and(|last| most <= last);
    if !lasts(own) {
        let doubt = format!(
            "{sent_as}, and {most} is past its end then; set `string` and the encoding of what the connector sends"
        );
        return vec![Candidate::plain(ColumnType::Long).ambiguous(doubt)];
    }
    let mut time = Candidate::new(ColumnType::String, sent);
    time = if most > 0 && coarser.is_some_and(lasts) {
        time.ambiguous(format!("{sent_as}, and no value is so large that it has to be"))
    } else {
        time.about("time of day, as text")
    };
    vec![time, Candidate::plain(ColumnType::String).about("time.precision.mode=isostring")]
}

/// What is no single value, and the text that a connector may make of it.
fn structure(kind: &str) -> Vec<Candidate> {
    vec![Candidate::json().about(format!("{} {kind}, as JSON text", if kind == "array" { "an" } else { "a" }))]
}

fn duration() -> Vec<Candidate> {
    vec![
        Candidate::plain(ColumnType::Long).about("microseconds, a month being 30.4375 days"),
        Candidate::plain(ColumnType::String).about("interval.handling.mode=string"),
    ]
}

fn instant() -> Vec<Candidate> {
    vec![
        Candidate::new(ColumnType::Timestamptz, Encoding::Iso),
        Candidate::plain(ColumnType::String).about("as it is sent"),
    ]
}

fn timestamp(unit: Encoding, seen: &Seen<'_>) -> Vec<Candidate> {
    if seen.is_text() {
        let about = "time.precision.mode=isostring";
        return vec![Candidate::new(ColumnType::Timestamp, Encoding::Iso).about(about)];
    }
    let as_number = Candidate::plain(ColumnType::Long).about(format!("{unit} since 1970"));
    let mut sent = Candidate::new(ColumnType::Timestamp, unit);
    let other = |number: i64| UNITS.iter().any(|other| *other != unit && is_plausible(number, *other));
    let against: Vec<i64> = seen.numbers().filter(|number| other(*number) && !is_plausible(*number, unit)).collect();
    if let Some(number) = against.first() {
        let doubt = format!(
            "its type is sent as {unit} unless time.precision.mode says otherwise, and {number} is {}; set type and \
             encoding to what the connector sends",
            in_units(*number).join(", ")
        );
        let in_favour = seen.numbers().filter(|number| is_plausible(*number, unit) && !other(*number)).count();
        if against.len() > in_favour {
            return vec![Candidate::plain(ColumnType::Long).ambiguous(doubt)];
        }
        sent = sent.ambiguous(doubt);
    }
    if unit == Encoding::Nanos {
        let doubt =
            "a value with digits below the microsecond would be rejected; a `string` sent as `nanos` holds every one";
        sent = sent.ambiguous(doubt);
        let as_text =
            Candidate::new(ColumnType::String, unit).about("as text, which keeps what is below the microsecond");
        return vec![sent, as_text, as_number];
    }
    vec![sent, as_number]
}

const UNITS: [Encoding; 3] = [Encoding::Millis, Encoding::Micros, Encoding::Nanos];

/// Whether a count of units since 1970 is a time between 1971 and the year 10000, which often stands for infinity. From
/// 1979 on that is so in one unit only: taken for a smaller one it ends in early 1970, for a larger one past 10000.
///
/// A number close to the largest there is is infinity itself.
fn is_plausible(count: i64, unit: Encoding) -> bool {
    const FIRST_MS: i64 = 31_536_000_000;
    const LAST_MS: i64 = 253_402_300_799_999;
    const LARGEST: i64 = 9_000_000_000_000_000_000;
    let millis = match unit {
        Encoding::Millis => count,
        Encoding::Nanos => count / 1_000_000,
        _ => count / 1000,
    };
    count < LARGEST && (FIRST_MS..=LAST_MS).contains(&millis)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is taken where no value was seen: the connector's default.
    #[test]
    fn defaults_of_each_connector() {
        let told = |connector: &str, types: &[&str]| -> String {
            let dialect = super::super::ddl::Dialect::of_connector(connector);
            let columns: Vec<String> =
                types.iter().enumerate().map(|(index, kind)| format!("c{index} {kind}")).collect();
            let text = format!("CREATE TABLE t ({});", columns.join(", "));
            let ddl = super::super::ddl::read(&text, dialect);
            let one = |sql: &SqlType| {
                let first = candidates(connector, sql, &Seen::default()).remove(0);
                format!("{sql} → {} as {}\n", first.column_type, first.encoding)
            };
            ddl.tables[0].columns.iter().map(|column| one(&column.sql_type)).collect()
        };
        let sqlserver = [
            "tinyint",
            "bigint",
            "bit",
            "decimal",
            "numeric(10,2)",
            "money",
            "smallmoney",
            "real",
            "float",
            "datetime",
            "smalldatetime",
            "datetime2",
            "datetime2(3)",
            "datetime2(6)",
            "datetimeoffset",
            "date",
            "time(3)",
            "time",
            "rowversion",
            "varbinary(max)",
            "uniqueidentifier",
            "nvarchar(max)",
            "xml",
        ];
        insta::assert_snapshot!(told("sqlserver", &sqlserver), @"
        tinyint → int as native
        bigint → long as native
        bit → boolean as native
        decimal → decimal(18,0) as base64
        numeric(10,2) → decimal(10,2) as base64
        money → decimal(19,4) as base64
        smallmoney → decimal(10,4) as base64
        real → float as native
        float → double as native
        datetime → timestamp as millis
        smalldatetime → timestamp as millis
        datetime2 → timestamp as nanos
        datetime2(3) → timestamp as millis
        datetime2(6) → timestamp as micros
        datetimeoffset → timestamptz as iso
        date → date as days
        time(3) → string as time-millis
        time → string as time-nanos
        rowversion → binary as base64
        varbinary(max) → binary as base64
        uniqueidentifier → string as native
        nvarchar(max) → string as native
        xml → string as native
        ");
        let oracle = [
            "NUMBER",
            "NUMBER(5)",
            "NUMBER(9,0)",
            "NUMBER(10)",
            "NUMBER(18)",
            "NUMBER(19)",
            "NUMBER(10,2)",
            "NUMBER(5,-2)",
            "NUMBER(38,-2)",
            "INTEGER",
            "FLOAT(63)",
            "BINARY_FLOAT",
            "BINARY_DOUBLE",
            "DATE",
            "TIMESTAMP",
            "TIMESTAMP(3)",
            "TIMESTAMP(9)",
            "TIMESTAMP(6) WITH TIME ZONE",
            "TIMESTAMP(6) WITH LOCAL TIME ZONE",
            "INTERVAL DAY(2) TO SECOND(6)",
            "VARCHAR2(20 CHAR)",
            "CLOB",
            "BLOB",
            "RAW(16)",
        ];
        insta::assert_snapshot!(told("oracle", &oracle), @"
        number → decimal(38,9) as base64
        number(5) → int as native
        number(9,0) → int as native
        number(10) → long as native
        number(18) → long as native
        number(19) → decimal(19,0) as base64
        number(10,2) → decimal(10,2) as base64
        number(5,-2) → int as native
        number(38,-2) → string as digits(0)
        integer → decimal(38,0) as base64
        float(63) → decimal(38,9) as base64
        binary_float → float as native
        binary_double → double as native
        date → timestamp as millis
        timestamp → timestamp as micros
        timestamp(3) → timestamp as millis
        timestamp(9) → timestamp as nanos
        timestamp(6) with time zone → timestamptz as iso
        timestamp(6) with time zone → timestamptz as iso
        interval(2) → long as native
        varchar2(20) → string as native
        clob → string as native
        blob → binary as base64
        raw(16) → binary as base64
        ");
        let mysql =
            ["serial", "float(10,3)", "float(30)", "decimal", "decimal(65,30)", "bit", "bit(8)", "json", "year"];
        insta::assert_snapshot!(told("mysql", &mysql), @"
        serial → long as native
        float(10,3) → double as native
        float(30) → double as native
        decimal → decimal(10,0) as base64
        decimal(65,30) → string as digits(30)
        bit → boolean as native
        bit(8) → binary as base64
        json → string as native
        year → int as native
        ");
        let postgres =
            ["serial", "bigserial", "float(24)", "float(25)", "numeric", "money", "time(3) with time zone", "bit"];
        insta::assert_snapshot!(told("postgresql", &postgres), @"
        serial → int as native
        bigserial → long as native
        float(24) → float as native
        float(25) → double as native
        numeric → decimal(38,9) as base64
        money → decimal(19,2) as base64
        time(3) with time zone → string as native
        bit → boolean as native
        ");
    }

    #[test]
    fn a_number_is_a_time_in_one_unit() {
        let check = |count: i64, expected: &[Encoding]| {
            let found: Vec<Encoding> = UNITS.into_iter().filter(|unit| is_plausible(count, *unit)).collect();
            assert_eq!(found, expected, "{count}");
        };
        check(0, &[]);
        check(1_735_689_600_123, &[Encoding::Millis]);
        check(1_735_689_600_123_456, &[Encoding::Micros]);
        check(1_735_689_600_123_456_789, &[Encoding::Nanos]);
        check(253_402_300_799_999, &[Encoding::Millis, Encoding::Micros]);
        check(i64::MAX, &[]);
        check(i64::MIN, &[]);
        check(9_223_372_036_825_200_000, &[]);
    }
}
