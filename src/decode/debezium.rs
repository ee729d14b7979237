//! Debezium's change events in JSON: the envelope, and the flattened form (`flattened.rs`).

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

use super::connect::{Layout, Shapes};
use super::flattened;
use super::payload::{self, Fields, Reason};
use super::position::{self, Position};
use super::skeleton::Skeletons;
use crate::change::{ChangeEvent, Consumed, Decoded, Image, Op, RawRecord, Rejected};
use crate::json;
use crate::row::RowShape;

/// What the payload turned out to be.
#[allow(clippy::large_enum_variant, reason = "it nearly always is the large one, and lives for one call")]
enum Reading {
    Change(Event),
    Consumed(Consumed),
}

/// The parts of an event that come from the payload.
pub(super) struct Event {
    pub(super) op: Op,
    pub(super) source: SourceBlock,
    pub(super) before: Option<Image>,
    pub(super) after: Option<Image>,
    pub(super) shape: Option<Arc<RowShape>>,
}

#[derive(Debug, Default)]
pub(super) struct SourceBlock {
    pub(super) ts_us: Option<i64>,
    pub(super) position: Option<String>,
    pub(super) tx_id: Option<String>,
    pub(super) rest: Option<Arc<str>>,
}

/// What the columns that bronze has for a source block hold of it.
pub(super) struct Lifted {
    pub(super) ts_us: Option<i64>,
    pub(super) position: Option<Position>,
    pub(super) tx_id: Option<String>,
}

pub(super) fn decode(record: RawRecord, shapes: &mut Shapes, skeletons: &mut Skeletons) -> Decoded {
    let Some(payload) = &record.payload else {
        return Decoded::Consumed(record, Consumed::Tombstone);
    };
    let key = match record.key.as_deref().map(payload::key_text).transpose() {
        Ok(key) => key.flatten(),
        Err(kept) => {
            return Decoded::Rejected(Rejected { record, key: Some(kept), reason: Reason::KeyNotJson.to_string() });
        }
    };
    match read(payload, &record, key.as_deref(), shapes, skeletons) {
        Ok(Reading::Consumed(what)) => Decoded::Consumed(record, what),
        Ok(Reading::Change(event)) => Decoded::Change(event.of(record, key)),
        Err(reason) => Decoded::Rejected(Rejected { record, key, reason: reason.to_string() }),
    }
}

impl Event {
    pub(super) fn of(self, record: RawRecord, key: Option<String>) -> ChangeEvent {
        let Event { op, source, before, after, shape } = self;
        ChangeEvent {
            record,
            key,
            op,
            source_ts_us: source.ts_us,
            position: source.position,
            tx_id: source.tx_id,
            source: source.rest,
            before,
            after,
            shape,
        }
    }
}

fn read(
    payload: &Bytes,
    record: &RawRecord,
    key: Option<&str>,
    shapes: &mut Shapes,
    skeletons: &mut Skeletons,
) -> Result<Reading, Reason> {
    let payload = &payload::text(payload)?;
    let text: &str = payload;
    let (schema, inner) = match shapes.strip_known(&record.topic, text) {
        Some((schema, inner)) => (Some(schema), inner),
        None => (None, text),
    };
    if let Some(event) = skeletons.read(payload, inner) {
        let shape = schema.and_then(|schema| shapes.shape(&record.topic, schema, Layout::Envelope));
        return Ok(Reading::Change(Event { shape, ..event }));
    }
    let Some(mut object) = payload::open(text, |_| schema.map(|schema| (schema, inner)))? else {
        return Ok(Reading::Consumed(Consumed::Tombstone));
    };
    if flattened::is_flattened(&object.fields) {
        return flattened::read(&object, &record.topic, shapes).map(Reading::Change);
    }
    let fields = &mut object.fields;
    let Some(op) = fields.get("op") else {
        return consumed(fields, record, key).map(Reading::Consumed).ok_or(Reason::NoOp);
    };
    let op = op_of(op)?;
    let source = Source::of_envelope(fields)?;
    let before = image(payload, fields, "before", &source)?;
    let after = image(payload, fields, "after", &source)?;
    // MongoDB sends an update as its description where the connector does not look the document up.
    let describes = source.is_mongodb() && op == Op::Update;
    if after.is_none() && matches!(op, Op::Create | Op::Update | Op::Read) && !describes {
        return Err(Reason::NoAfter { op: op.letter() });
    }
    let shape = object.schema.and_then(|schema| shapes.shape(&record.topic, schema, Layout::Envelope));
    let event = Event { op, source: source.lift(), before, after, shape };
    skeletons.learn(object.text, &event);
    Ok(Reading::Change(event))
}

pub(super) fn op_of(json: &str) -> Result<Op, Reason> {
    json::string(json).as_deref().and_then(Op::from_letter).ok_or_else(|| unknown_op(json))
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
    let only_time = has("ts_ms") && fields.iter().all(|(name, _)| is_time(name));
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
    payload: &ByteString,
    fields: &Fields<'_>,
    name: &'static str,
    source: &Source<'_>,
) -> Result<Option<Image>, Reason> {
    let what = if name == "before" { "`before`" } else { "`after`" };
    match fields.get(name) {
        None | Some("null") => Ok(None),
        Some(object) if object.starts_with('{') => Ok(Some(payload.slice_ref(object).into())),
        Some(string) if source.is_mongodb() => {
            let document = json::string(string).ok_or(Reason::NotAnObject { what })?;
            Fields::parse(document.trim_ascii(), what)?;
            Ok(Some(ByteString::from(document.into_owned()).into()))
        }
        Some(_) => Err(Reason::NotAnObject { what }),
    }
}

/// What an event says of where it comes from.
pub(super) struct Source<'a> {
    pub(super) connector: Cow<'a, str>,
    pub(super) fields: Fields<'a>,
    /// The transaction's id, where the source block has none.
    pub(super) transaction: Option<String>,
    /// What the event says outside of its source block and its images, as the JSON text of one object.
    pub(super) beside: Option<String>,
}

impl<'a> Source<'a> {
    fn of_envelope(envelope: &mut Fields<'a>) -> Result<Self, Reason> {
        let fields = match envelope.get("source") {
            None | Some("null") => Fields::default(),
            Some(_) => envelope.take_object("source").ok_or(Reason::NotAnObject { what: "`source`" })??,
        };
        let transaction = match envelope.get("transaction").filter(|text| text.starts_with('{')) {
            Some(text) => Fields::parse(text, "`transaction`")?.scalar("id").map(Cow::into_owned),
            None => None,
        };
        let connector = fields.text("connector").unwrap_or_default();
        Ok(Source { connector, fields, transaction, beside: unexpected(envelope) })
    }

    fn is_mongodb(&self) -> bool {
        self.connector == "mongodb"
    }

    /// Lifts what bronze has columns for out of the source block, and keeps the rest.
    ///
    /// What a column holds exactly is left out of the rest, which thereby is the same text for most events of a table and
    /// costs next to nothing in a file.
    pub(super) fn lift(self) -> SourceBlock {
        let Source { connector, fields, transaction, beside } = self;
        let lifted = Lifted::of(&connector, &fields);
        let mut rest = String::with_capacity(256);
        rest.push('{');
        for (name, value) in fields.iter().filter(|(name, value)| !lifted.holds(name, value)) {
            json::push_field(&mut rest, name, value);
        }
        if let Some(beside) = beside {
            json::push_field(&mut rest, "envelope", &beside);
        }
        rest.push('}');
        let Lifted { ts_us, position, tx_id } = lifted;
        SourceBlock {
            ts_us,
            tx_id: tx_id.or(transaction),
            position: position.map(|position| position.text),
            rest: (rest.len() > 2).then(|| rest.into()),
        }
    }
}

impl Lifted {
    pub(super) fn of(connector: &str, fields: &Fields<'_>) -> Self {
        let whole = |name: &str| fields.get(name).and_then(|text| text.parse::<i64>().ok());
        Lifted {
            ts_us: whole("ts_us").or_else(|| whole("ts_ms")?.checked_mul(1000)),
            position: position::position(connector, fields),
            tx_id: fields.scalar("txId").map(Cow::into_owned),
        }
    }

    /// Whether a field of the block makes a difference.
    pub(super) fn is_made_of(name: &str) -> bool {
        matches!(name, "ts_ms" | "ts_us" | "ts_ns" | "txId") || position::IS_MADE_OF.contains(&name)
    }

    /// Whether a field of the block is held exactly.
    pub(super) fn holds(&self, name: &str, value: &str) -> bool {
        let is = |held: Option<i64>| held.is_some() && value.parse().ok() == held;
        match name {
            "ts_us" => is(self.ts_us),
            "ts_ms" => is(self.ts_us.map(|us| us.div_euclid(1000))),
            "ts_ns" => is(self.ts_us.and_then(|us| us.checked_mul(1000))),
            "txId" => self.tx_id.is_some(),
            _ => self.position.as_ref().is_some_and(|position| position.holds.contains(&name)),
        }
    }
}

/// The envelope's fields that no bronze column is made for: a logical decoding message, the place in a transaction,
/// an update's description, and whatever a later Debezium adds. The time the connector handled the event is left out.
fn unexpected(envelope: &Fields<'_>) -> Option<String> {
    let known = |name: &str| matches!(name, "before" | "after" | "source" | "op" | "ts_ms" | "ts_us" | "ts_ns");
    if envelope.iter().all(|(name, value)| known(name) || value == "null") {
        return None;
    }
    let mut object = "{".to_string();
    for (name, value) in envelope.iter().filter(|(name, value)| !known(name) && *value != "null") {
        json::push_field(&mut object, name, value);
    }
    object.push('}');
    (object.len() > 2).then_some(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(record: RawRecord) -> Decoded {
        super::decode(record, &mut Shapes::default(), &mut Skeletons::default())
    }

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

    fn text(image: &Option<Image>) -> &str {
        image.as_ref().unwrap().json()
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
        assert!(payload.contains(&event.after.as_ref().unwrap().json().as_ptr()));
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
    fn the_schema_block_of_an_envelope_says_the_columns() {
        let image =
            |name: &str| format!(r#"{{"type":"struct","fields":[{{"type":"int32","field":"id"}}],"field":"{name}"}}"#);
        let schema = format!(r#"{{"type":"struct","fields":[{},{}]}}"#, image("before"), image("after"));
        let mut shapes = Shapes::default();
        let mut shape = |payload: &str| {
            let record = record(None, &format!(r#"{{"schema":{schema},"payload":{payload}}}"#));
            let Decoded::Change(event) = super::decode(record, &mut shapes, &mut Skeletons::default()) else {
                panic!("not a change: {payload}")
            };
            event.shape.unwrap()
        };
        let first = shape(&envelope("c", "null", r#"{"id":7}"#));
        assert_eq!(first.columns[0].name, "id");
        // The second time the block is known, and the payload found behind it, a delete or not.
        assert!(Arc::ptr_eq(&first, &shape(&envelope("d", r#"{"id":7}"#, "null"))));
        // What looks like the block's end is part of the payload.
        let wrapped = format!(r#"{{"schema":{schema},"payload":{{"op":"c"}},"more":{{"after":{{}}}}}}"#);
        assert!(matches!(
            super::decode(record(None, &wrapped), &mut shapes, &mut Skeletons::default()),
            Decoded::Rejected(_)
        ));
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
