//! Debezium's envelope in JSON, with or without the schema block around it.

use std::borrow::Cow;
use std::collections::HashSet;

use bytes::Bytes;

use super::position::position;
use crate::change::{ChangeEvent, Consumed, Decoded, Op, RawRecord, Rejected};
use crate::json::{self, Stopped};

/// Why a record is no change event. Says nothing of the values in it, since it is shown and logged.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Reason {
    #[error("the key is not JSON")]
    KeyNotJson,
    #[error("the payload is empty")]
    Empty,
    #[error("the payload is not UTF-8 text")]
    NotText,
    #[error("{what} is not JSON: {problem}")]
    NotJson { what: &'static str, problem: String },
    #[error("{what} is not a JSON object")]
    NotAnObject { what: &'static str },
    #[error("field `{name}` is given twice")]
    GivenTwice { name: String },
    #[error("the payload has no `op`, so it is not a Debezium change event")]
    NoOp,
    #[error("`op` is {found}, and not one of c, u, d, r, t, m")]
    UnknownOp { found: String },
    #[error("an event with op `{op}` has no `after`")]
    NoAfter { op: &'static str },
}

/// The fields of one JSON object, their values as JSON text.
#[derive(Debug, Default)]
pub(super) struct Fields<'a>(Vec<(Cow<'a, str>, &'a str)>);

/// What the payload turned out to be.
enum Reading {
    Change(Envelope),
    Consumed(Consumed),
}

/// The parts of an event that come from the payload.
struct Envelope {
    op: Op,
    source: SourceBlock,
    before: Option<Bytes>,
    after: Option<Bytes>,
}

#[derive(Debug, Default)]
struct SourceBlock {
    ts_us: Option<i64>,
    position: Option<String>,
    tx_id: Option<String>,
    rest: Option<String>,
    is_mongodb: bool,
}

pub(super) fn decode(record: RawRecord) -> Decoded {
    let Some(payload) = record.payload.clone() else {
        return Decoded::Consumed(record, Consumed::Tombstone);
    };
    let key = match record.key.as_deref().map(key_text).transpose() {
        Ok(key) => key.flatten(),
        Err(kept) => {
            return Decoded::Rejected(Rejected { record, key: Some(kept), reason: Reason::KeyNotJson.to_string() });
        }
    };
    match read(&payload, &record, key.as_deref()) {
        Ok(Reading::Consumed(what)) => Decoded::Consumed(record, what),
        Ok(Reading::Change(Envelope { op, source, before, after })) => Decoded::Change(ChangeEvent {
            record,
            key,
            op,
            source_ts_us: source.ts_us,
            position: source.position,
            tx_id: source.tx_id,
            source: source.rest,
            before,
            after,
            shape: None,
        }),
        Err(reason) => Decoded::Rejected(Rejected { record, key, reason: reason.to_string() }),
    }
}

fn read(payload: &Bytes, record: &RawRecord, key: Option<&str>) -> Result<Reading, Reason> {
    if payload.is_empty() {
        return Err(Reason::Empty);
    }
    let text = std::str::from_utf8(payload).map_err(|_| Reason::NotText)?.trim_ascii();
    let mut fields = match text {
        "null" => return Ok(Reading::Consumed(Consumed::Tombstone)),
        _ => Fields::parse(text, "the payload")?,
    };
    if let Some(inner) = fields.schema_block_payload() {
        fields = match inner {
            "null" => return Ok(Reading::Consumed(Consumed::Tombstone)),
            _ => Fields::parse(inner, "`payload`")?,
        };
    }
    let Some(op) = fields.get("op") else {
        return consumed(&fields, record, key).map(Reading::Consumed).ok_or(Reason::NoOp);
    };
    let op = json::string(op).as_deref().and_then(Op::from_letter).ok_or_else(|| unknown_op(op))?;
    let source = source_block(&fields)?;
    let before = image(payload, &fields, "before", &source)?;
    let after = image(payload, &fields, "after", &source)?;
    // MongoDB sends an update as its description where the connector does not look the document up.
    let describes = source.is_mongodb && op == Op::Update;
    if after.is_none() && matches!(op, Op::Create | Op::Update | Op::Read) && !describes {
        return Err(Reason::NoAfter { op: op.letter() });
    }
    Ok(Reading::Change(Envelope { op, source, before, after }))
}

fn unknown_op(json: &str) -> Reason {
    let found = match json::string(json) {
        Some(text) if text.chars().count() <= 8 => format!("`{}`", text.escape_default()),
        Some(_) => "a longer text".to_string(),
        None => "not text".to_string(),
    };
    Reason::UnknownOp { found }
}

/// Which of Debezium's side topics a payload without `op` comes from.
///
/// Strict, because a consumed record is not kept: the fields have to be the ones Debezium writes, and a heartbeat, which
/// has nothing but a time, has to have the right topic or key as well.
fn consumed(fields: &Fields<'_>, record: &RawRecord, key: Option<&str>) -> Option<Consumed> {
    let has = |name: &str| fields.get(name).is_some();
    let is_time = |name: &str| matches!(name, "ts_ms" | "ts_us" | "ts_ns");
    let only_time = has("ts_ms") && fields.0.iter().all(|(name, _)| is_time(name));
    if only_time && (record.topic.contains("heartbeat") || key.is_some_and(|key| key.starts_with("{\"serverName\":"))) {
        return Some(Consumed::Heartbeat);
    }
    let status = fields.text("status");
    if matches!(status.as_deref(), Some("BEGIN" | "END")) && has("id") && has("event_count") {
        return Some(Consumed::Transaction);
    }
    (has("ddl") && has("databaseName") && has("source")).then_some(Consumed::SchemaChange)
}

/// A row image: a slice of the payload, except for MongoDB, which sends its documents as JSON in a string.
fn image(
    payload: &Bytes,
    fields: &Fields<'_>,
    name: &'static str,
    source: &SourceBlock,
) -> Result<Option<Bytes>, Reason> {
    let what = if name == "before" { "`before`" } else { "`after`" };
    match fields.get(name) {
        None | Some("null") => Ok(None),
        Some(object) if object.starts_with('{') => Ok(Some(payload.slice_ref(object.as_bytes()))),
        Some(string) if source.is_mongodb => {
            let document = json::string(string).ok_or(Reason::NotAnObject { what })?;
            Fields::parse(document.trim_ascii(), what)?;
            Ok(Some(Bytes::from(document.into_owned())))
        }
        Some(_) => Err(Reason::NotAnObject { what }),
    }
}

/// Lifts what bronze has columns for out of the source block, and keeps the rest.
///
/// What a column holds exactly is left out of the rest, which thereby is the same text for most events of a table and
/// costs next to nothing in a file.
fn source_block(envelope: &Fields<'_>) -> Result<SourceBlock, Reason> {
    let source = match envelope.get("source") {
        None | Some("null") => Fields::default(),
        Some(text) => Fields::parse(text, "`source`")?,
    };
    let connector = source.text("connector").unwrap_or_default();
    let whole = |name: &str| source.get(name).and_then(|text| text.parse::<i64>().ok());
    let millis = whole("ts_ms");
    let ts_us = whole("ts_us").or_else(|| millis?.checked_mul(1000));
    let position = position(&connector, &source);
    let transaction = envelope.get("transaction").filter(|text| text.starts_with('{'));
    let source_tx = source.scalar("txId");
    let tx_id = match (&source_tx, transaction) {
        (Some(id), _) => Some(id.to_string()),
        (None, Some(text)) => Fields::parse(text, "`transaction`")?.scalar("id").map(Cow::into_owned),
        (None, None) => None,
    };
    let held = |name: &str| match name {
        "ts_us" => ts_us.is_some() && whole("ts_us") == ts_us,
        "ts_ms" => millis.is_some() && millis == ts_us.map(|us| us.div_euclid(1000)),
        "ts_ns" => ts_us.is_some() && whole("ts_ns") == ts_us.and_then(|us| us.checked_mul(1000)),
        "txId" => source_tx.is_some(),
        _ => position.as_ref().is_some_and(|position| position.holds.contains(&name)),
    };
    let mut rest = "{".to_string();
    for (name, value) in source.0.iter().filter(|(name, _)| !held(name)) {
        json::push_field(&mut rest, name, value);
    }
    if let Some(unexpected) = unexpected(envelope) {
        json::push_field(&mut rest, "envelope", &unexpected);
    }
    rest.push('}');
    Ok(SourceBlock {
        ts_us,
        position: position.map(|position| position.text),
        tx_id,
        rest: (rest.len() > 2).then_some(rest),
        is_mongodb: connector == "mongodb",
    })
}

/// The envelope's fields that no bronze column is made for: a logical decoding message, the place in a transaction,
/// an update's description, and whatever a later Debezium adds. The time the connector handled the event is left out.
fn unexpected(envelope: &Fields<'_>) -> Option<String> {
    let known = |name: &str| matches!(name, "before" | "after" | "source" | "op" | "ts_ms" | "ts_us" | "ts_ns");
    let mut object = "{".to_string();
    for (name, value) in envelope.0.iter().filter(|(name, value)| !known(name) && *value != "null") {
        json::push_field(&mut object, name, value);
    }
    object.push('}');
    (object.len() > 2).then_some(object)
}

/// The key as compact JSON, out of its schema block if it has one; `None` when it is JSON's `null`. A key that is not
/// JSON comes back as JSON that holds it, for the rejected row.
fn key_text(bytes: &[u8]) -> Result<Option<String>, String> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return Err(format!("{{\"base64\":\"{}\"}}", base64(bytes)));
    };
    let text = text.trim_ascii();
    if !json::is_value(text) {
        let mut kept = String::new();
        json::push_string(&mut kept, text);
        return Err(kept);
    }
    let mut key = text;
    // A look for the word spares most keys a second reading.
    if text.starts_with('{') && text.contains("\"payload\"") {
        key = Fields::read(text).and_then(|fields| fields.schema_block_payload()).unwrap_or(text);
    }
    Ok((key != "null").then(|| json::compact(key)))
}

fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().fold(0u32, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = (group >> (18 - 6 * digit)) & 63;
            text.push(if digit <= chunk.len() { char::from(ALPHABET[index as usize]) } else { '=' });
        }
    }
    text
}

impl<'a> Fields<'a> {
    fn parse(text: &'a str, what: &'static str) -> Result<Self, Reason> {
        if !text.starts_with('{') {
            // Random bytes are more often no JSON at all than JSON of another kind.
            return Err(match serde_json::from_str::<&serde_json::value::RawValue>(text) {
                Ok(_) => Reason::NotAnObject { what },
                Err(error) => Reason::NotJson { what, problem: error.to_string() },
            });
        }
        let mut fields = Vec::with_capacity(16);
        json::each_field(text, |name, value| {
            fields.push((name, value));
            Ok(())
        })
        .map_err(|stopped: Stopped<Reason>| match stopped {
            Stopped::Syntax(error) => Reason::NotJson { what, problem: error.to_string() },
            Stopped::Field(reason) => reason,
        })?;
        match repeated(&fields) {
            Some(name) => Err(Reason::GivenTwice { name: name.chars().take(64).collect() }),
            None => Ok(Fields(fields)),
        }
    }

    pub(super) fn read(text: &'a str) -> Option<Self> {
        Fields::parse(text, "").ok()
    }

    /// The JSON text of a field.
    pub(super) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(field, _)| field == name).map(|(_, value)| *value)
    }

    /// The text of a field that is a JSON string.
    pub(super) fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        json::string(self.get(name)?)
    }

    /// A string's text or a number's digits.
    fn scalar(&self, name: &str) -> Option<Cow<'a, str>> {
        match self.get(name)? {
            text if text.starts_with('"') => json::string(text),
            number if number.starts_with(|c: char| c == '-' || c.is_ascii_digit()) => Some(Cow::Borrowed(number)),
            _ => None,
        }
    }

    /// What a schema block is wrapped around. A row with two columns of these names is not taken for one, because a
    /// schema is `null` or an object with a type.
    fn schema_block_payload(&self) -> Option<&'a str> {
        if self.0.len() != 2 {
            return None;
        }
        let (schema, payload) = (self.get("schema")?, self.get("payload")?);
        let is_schema = schema == "null" || Fields::read(schema).is_some_and(|schema| schema.get("type").is_some());
        is_schema.then_some(payload)
    }
}

fn repeated<'a>(fields: &'a [(Cow<'_, str>, &str)]) -> Option<&'a str> {
    // Envelopes are small; a set pays only for input that is made to be large.
    if fields.len() <= 32 {
        let repeats = |index: usize| fields[..index].iter().any(|(earlier, _)| *earlier == fields[index].0);
        return (1..fields.len()).find(|index| repeats(*index)).map(|index| &*fields[index].0);
    }
    let mut seen = HashSet::new();
    fields.iter().map(|(name, _)| &**name).find(|name| !seen.insert(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = r#"{"version":"3.0.8.Final","connector":"postgresql","name":"shop","ts_ms":1735689600123,"snapshot":"false","db":"shop","sequence":"[\"26800000\",\"26800184\"]","ts_us":1735689600123456,"ts_ns":1735689600123456000,"schema":"public","table":"orders","txId":771,"lsn":26800184,"xmin":null}"#;
    const SOURCE_REST: &str = r#"{"version":"3.0.8.Final","connector":"postgresql","name":"shop","snapshot":"false","db":"shop","schema":"public","table":"orders","xmin":null}"#;

    fn record(key: Option<&str>, payload: &str) -> RawRecord {
        RawRecord {
            topic: "shop.public.orders".into(),
            partition: 1,
            offset: 42,
            timestamp_ms: Some(1_735_689_600_200),
            key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
            payload: Some(Bytes::copy_from_slice(payload.as_bytes())),
        }
    }

    fn change(key: &str, payload: &str) -> ChangeEvent {
        match decode(record(Some(key), payload)) {
            Decoded::Change(event) => event,
            other => panic!("not a change: {other:?}"),
        }
    }

    fn reason(payload: &str) -> String {
        match decode(record(None, payload)) {
            Decoded::Rejected(rejected) => rejected.reason,
            other => panic!("not rejected: {other:?}"),
        }
    }

    fn text(image: &Option<Bytes>) -> &str {
        std::str::from_utf8(image.as_ref().unwrap()).unwrap()
    }

    fn envelope(op: &str, before: &str, after: &str) -> String {
        format!(
            r#"{{"before":{before},"after":{after},"source":{SOURCE},"transaction":null,"op":"{op}","ts_ms":1735689600400,"ts_us":1735689600400111,"ts_ns":1735689600400111222}}"#
        )
    }

    #[test]
    fn an_update_of_postgresql_comes_apart_into_its_columns() {
        let payload = envelope("u", r#"{"id":7}"#, r#"{"id":7,"status":"paid"}"#);
        let event = change(r#"{ "id" : 7 }"#, &payload);
        assert_eq!(event.key.as_deref(), Some(r#"{"id":7}"#));
        assert_eq!(event.op, Op::Update);
        assert_eq!(event.source_ts_us, Some(1_735_689_600_123_456));
        assert_eq!(event.position.as_deref(), Some("00000000000026800000:00000000000026800184"));
        assert_eq!(event.tx_id.as_deref(), Some("771"));
        assert_eq!(event.source.as_deref(), Some(SOURCE_REST));
        assert_eq!(text(&event.before), r#"{"id":7}"#);
        assert_eq!(text(&event.after), r#"{"id":7,"status":"paid"}"#);
    }

    #[test]
    fn row_images_are_slices_of_the_record_and_not_copies() {
        let event = change("{}", &envelope("c", "null", r#"{"id":7}"#));
        let payload = event.record.payload.as_ref().unwrap().as_ptr_range();
        assert!(payload.contains(&event.after.as_ref().unwrap().as_ptr()));
        assert_eq!(event.before, None);
    }

    #[test]
    fn a_schema_block_makes_no_difference() {
        let plain = envelope("d", r#"{"id":7}"#, "null");
        let schema = r#"{"type":"struct","fields":[{"type":"int32","optional":false,"field":"id"}],"optional":false}"#;
        let wrapped = format!(r#"{{"schema":{schema},"payload":{plain}}}"#);
        let key = format!(r#"{{"schema":{schema},"payload":{{"id":7}}}}"#);
        let mut event = change(&key, &wrapped);
        let expected = change(r#"{"id":7}"#, &plain);
        event.record = expected.record.clone();
        assert_eq!(event, expected);
        let two_columns = r#"{"schema":"public","payload":1}"#;
        assert_eq!(change(two_columns, &plain).key.as_deref(), Some(two_columns));
    }

    #[test]
    fn every_op_is_read() {
        for (op, before, after) in [
            ("c", "null", "{}"),
            ("r", "null", "{}"),
            ("u", "null", "{}"),
            ("d", "{}", "null"),
            ("d", "null", "null"),
            ("t", "null", "null"),
            ("m", "null", "null"),
        ] {
            assert_eq!(change("{}", &envelope(op, before, after)).op.letter(), op);
        }
    }

    #[test]
    fn fields_that_no_column_is_made_for_are_kept_with_the_source() {
        let payload = r#"{"op":"m","ts_ms":1,"source":{"connector":"postgresql","ts_ms":5,"ts_us":7,"ts_ns":7001,"lsn":9},"message":{"prefix":"audit","content":"aGk="},"transaction":{"id":"771:26800184","total_order":1},"new":[1]}"#;
        let event = change("{}", payload);
        // The milliseconds and nanoseconds say something else than the microseconds here, so they stay.
        let expected = r#"{"connector":"postgresql","ts_ms":5,"ts_ns":7001,"envelope":{"message":{"prefix":"audit","content":"aGk="},"transaction":{"id":"771:26800184","total_order":1},"new":[1]}}"#;
        assert_eq!(event.source.as_deref(), Some(expected));
        assert_eq!(event.source_ts_us, Some(7));
        assert_eq!(event.tx_id.as_deref(), Some("771:26800184"));
        let bare = change("{}", r#"{"op":"c","after":{}}"#);
        assert_eq!((bare.source, bare.source_ts_us, bare.position), (None, None, None));
        let millis = change("{}", r#"{"op":"c","after":{},"source":{"ts_ms":12}}"#);
        assert_eq!((millis.source, millis.source_ts_us), (None, Some(12_000)));
    }

    #[test]
    fn a_document_of_mongodb_is_json_in_a_string() {
        let source = r#"{"connector":"mongodb","ts_ms":1700000000000,"ord":1}"#;
        let event = change("{}", &format!(r#"{{"op":"c","after":"{{\"_id\":1}}","source":{source}}}"#));
        assert_eq!(text(&event.after), r#"{"_id":1}"#);
        let update = format!(r#"{{"op":"u","after":null,"updateDescription":{{"a":1}},"source":{source}}}"#);
        assert_eq!(change("{}", &update).after, None);
    }

    #[test]
    fn records_without_a_change_are_consumed() {
        let check = |topic: &str, key: &str, payload: Option<&str>, expected: Consumed| {
            let mut record = record(Some(key), payload.unwrap_or_default());
            record.topic = topic.into();
            record.payload = record.payload.filter(|_| payload.is_some());
            assert_eq!(decode(record.clone()), Decoded::Consumed(record, expected));
        };
        check("shop.public.orders", "{}", None, Consumed::Tombstone);
        check("shop.public.orders", "{}", Some("null"), Consumed::Tombstone);
        check("shop.public.orders", "{}", Some(r#"{"schema":null,"payload":null}"#), Consumed::Tombstone);
        let time = Some(r#"{"ts_ms":1735689600400}"#);
        check("__debezium-heartbeat.shop", "{}", time, Consumed::Heartbeat);
        check("beats", r#"{"serverName":"shop"}"#, time, Consumed::Heartbeat);
        let end = r#"{"status":"END","id":"771:268","event_count":2,"data_collections":[],"ts_ms":1}"#;
        check("shop.transaction", r#"{"id":"771:268"}"#, Some(end), Consumed::Transaction);
        let ddl = r#"{"source":{},"ts_ms":1,"databaseName":"shop","schemaName":null,"ddl":"ALTER TABLE t ADD c int","tableChanges":[]}"#;
        check("shop", "{}", Some(ddl), Consumed::SchemaChange);
    }

    #[test]
    fn what_is_no_event_is_rejected_with_the_reason() {
        insta::assert_snapshot!(reason(""), @"the payload is empty");
        insta::assert_snapshot!(reason("hello"), @"the payload is not JSON: expected value at line 1 column 1");
        insta::assert_snapshot!(reason("{\"op\":"), @"the payload is not JSON: EOF while parsing a value at line 1 column 6");
        insta::assert_snapshot!(reason("[1]"), @"the payload is not a JSON object");
        insta::assert_snapshot!(reason(r#"{"id":7}"#), @"the payload has no `op`, so it is not a Debezium change event");
        insta::assert_snapshot!(reason(r#"{"ts_ms":7}"#), @"the payload has no `op`, so it is not a Debezium change event");
        insta::assert_snapshot!(reason(r#"{"op":"x"}"#), @"`op` is `x`, and not one of c, u, d, r, t, m");
        insta::assert_snapshot!(reason(r#"{"op":5}"#), @"`op` is not text, and not one of c, u, d, r, t, m");
        insta::assert_snapshot!(reason(r#"{"op":"c","op":"u"}"#), @"field `op` is given twice");
        insta::assert_snapshot!(reason(r#"{"op":"c","after":null}"#), @"an event with op `c` has no `after`");
        insta::assert_snapshot!(reason(r#"{"op":"d","before":[1]}"#), @"`before` is not a JSON object");
        insta::assert_snapshot!(reason(r#"{"op":"d","source":1}"#), @"`source` is not a JSON object");
        insta::assert_snapshot!(
            reason(r#"{"schema":{"type":"struct"},"payload":7}"#), @"`payload` is not a JSON object");
    }

    #[test]
    fn a_rejected_record_keeps_its_key_and_its_bytes() {
        let check = |key: &[u8], payload: &[u8], expected_key: Option<&str>, expected: &str| {
            let mut record = record(None, "");
            record.key = Some(Bytes::copy_from_slice(key));
            record.payload = Some(Bytes::copy_from_slice(payload));
            let expected_key = expected_key.map(str::to_string);
            let rejected = Rejected { record: record.clone(), key: expected_key, reason: expected.to_string() };
            assert_eq!(decode(record), Decoded::Rejected(rejected));
        };
        check(b"{\"id\": 7}", b"\xff\xfe", Some(r#"{"id":7}"#), "the payload is not UTF-8 text");
        check(b"order-7\"", b"{}", Some(r#""order-7\"""#), "the key is not JSON");
        check(b"\xff", b"{}", Some(r#"{"base64":"/w=="}"#), "the key is not JSON");
        check(b"\xff\x00", b"{}", Some(r#"{"base64":"/wA="}"#), "the key is not JSON");
        check(b"\xff\x00\x10\x83", b"{}", Some(r#"{"base64":"/wAQgw=="}"#), "the key is not JSON");
        check(b"null", b"", None, "the payload is empty");
    }
}
