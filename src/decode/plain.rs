//! Rows as plain JSON objects, one for each record, without anything said of the change.
//!
//! Every row is an upsert of its key, and a record without a payload is the delete of its key, as in a compacted topic.

use bytestring::ByteString;

use super::connect::{Layout, Shapes};
use super::debezium::{Event, SourceBlock};
use super::payload::{self, Reason};
use crate::change::{Consumed, Decoded, Op, RawRecord, Rejected};

pub(super) fn decode(record: RawRecord, shapes: &mut Shapes) -> Decoded {
    let key = match record.key.as_deref().map(payload::key_text).transpose() {
        Ok(key) => key.flatten(),
        Err(kept) => {
            return Decoded::Rejected(Rejected { record, key: Some(kept), reason: Reason::KeyNotJson.to_string() });
        }
    };
    let payload = match record.payload.as_ref().map(payload::text).transpose() {
        Ok(payload) => payload,
        Err(reason) => return Decoded::Rejected(Rejected { record, key, reason: reason.to_string() }),
    };
    let object = payload.as_ref().map(|payload| payload::open(payload, |text| shapes.strip_known(&record.topic, text)));
    let source = SourceBlock::default();
    let event = match (object.transpose(), payload.as_ref()) {
        (Err(reason), _) => return Decoded::Rejected(Rejected { record, key, reason: reason.to_string() }),
        (Ok(Some(Some(object))), Some(payload)) => {
            let shape = object.schema.and_then(|schema| shapes.shape(&record.topic, schema, Layout::Row));
            let after = Some(payload.slice_ref(object.text).into());
            Event { op: Op::Update, source, before: None, after, shape }
        }
        // Nobody's delete.
        _ if key.is_none() => return Decoded::Consumed(record, Consumed::Tombstone),
        _ => {
            let columns = key.as_ref().filter(|key| key.starts_with('{'));
            let before = columns.map(|key| ByteString::from(key.as_str()).into());
            Event { op: Op::Delete, source, before, after: None, shape: None }
        }
    };
    Decoded::Change(event.of(record, key))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change::Image;

    fn decode(key: Option<&str>, payload: Option<&str>) -> Decoded {
        let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let (key, payload) = (key.map(bytes), payload.map(bytes));
        let record = RawRecord { topic: "t".into(), partition: 0, offset: 0, timestamp_ms: None, key, payload };
        super::decode(record, &mut Shapes::default())
    }

    #[test]
    fn a_row_is_an_upsert_and_a_tombstone_the_delete_of_its_key() {
        let check = |key: Option<&str>, payload: Option<&str>, expected: (&str, Option<&str>, Option<&str>)| {
            let Decoded::Change(event) = decode(key, payload) else { panic!("not a change: {payload:?}") };
            let text = |image: &Option<Image>| image.as_ref().map(|image| image.json().to_string());
            let (before, after) = (text(&event.before), text(&event.after));
            assert_eq!((event.op.letter(), before.as_deref(), after.as_deref()), expected, "{payload:?}");
        };
        let key = Some(r#"{"id":1}"#);
        check(key, Some(r#"{"id":1,"a":null}"#), ("u", None, Some(r#"{"id":1,"a":null}"#)));
        check(None, Some(r#" {"op":"c"} "#), ("u", None, Some(r#"{"op":"c"}"#)));
        check(key, Some(r#"{"schema":{"type":"struct"},"payload":{"id":1}}"#), ("u", None, Some(r#"{"id":1}"#)));
        check(key, None, ("d", key, None));
        check(key, Some("null"), ("d", key, None));
        check(Some(r#"{"schema":null,"payload":{"id":1}}"#), None, ("d", key, None));
        check(Some("7"), None, ("d", None, None));
    }

    #[test]
    fn what_is_no_row_is_rejected_or_nobodys() {
        assert!(matches!(decode(None, None), Decoded::Consumed(_, Consumed::Tombstone)));
        assert!(matches!(decode(Some("null"), Some("null")), Decoded::Consumed(_, Consumed::Tombstone)));
        let reason = |key, payload| match decode(key, payload) {
            Decoded::Rejected(rejected) => rejected.reason,
            other => panic!("not rejected: {other:?}"),
        };
        assert_eq!(reason(Some("x"), None), "the key is not JSON");
        assert_eq!(reason(None, Some("[1]")), "the payload is not a JSON object");
        assert_eq!(reason(None, Some("")), "the payload is empty");
        assert_eq!(reason(None, Some(r#"{"a":1,"a":2}"#)), "field `a` is given twice");
    }
}
