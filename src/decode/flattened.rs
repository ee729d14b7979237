//! Debezium's flattened form: a row with fields of the event added behind its columns (`ExtractNewRecordState`).
//!
//! The transformation writes `__deleted` where deletes are rewritten, and each of its `add.fields` under a name that
//! begins with two underscores: `op` becomes `__op`, `lsn` and `source.lsn` become `__lsn` and `__source_lsn`. A row
//! without any of them is told from other JSON by nobody; its topic has to be declared as plain JSON.

use std::borrow::Cow;
use std::sync::Arc;

use bytestring::ByteString;

use super::connect::{Layout, Shapes};
use super::debezium::{Event, Source, op_of};
use super::payload::{Fields, Object, Reason};
use crate::change::{Image, Op};
use crate::json;

const PREFIX: &str = "__";

/// What a field of the source block or the envelope is called, for those that are added without `source.` before them.
const ADDED: [&str; 41] = [
    "op",
    "deleted",
    "ts_ms",
    "ts_us",
    "ts_ns",
    "version",
    "connector",
    "name",
    "snapshot",
    "db",
    "schema",
    "table",
    "collection",
    "sequence",
    "lsn",
    "txId",
    "xmin",
    "origin",
    "origin_lsn",
    "server_id",
    "gtid",
    "file",
    "pos",
    "row",
    "thread",
    "query",
    "change_lsn",
    "commit_lsn",
    "event_serial_no",
    "ord",
    "rs",
    "scn",
    "commit_scn",
    "ssn",
    "redo_sql",
    "rs_id",
    "user_name",
    "lcr_position",
    "id",
    "total_order",
    "data_collection_order",
];

/// Whether an object is a row with fields of its event. No envelope has fields of these names.
pub(super) fn is_flattened(fields: &Fields<'_>) -> bool {
    fields.iter().any(|(name, _)| matches!(name, "__op" | "__deleted") || name.starts_with("__source_"))
}

/// Where the added fields begin: with the first one known among the names at the end that begin with two underscores. A
/// column of the row may begin with them as well.
pub(super) fn first_added<'n>(names: impl Iterator<Item = &'n str>) -> usize {
    let (mut first, mut count) = (None, 0);
    for name in names {
        match name.strip_prefix(PREFIX) {
            None => first = None,
            Some(rest) => {
                let is_known = rest.starts_with("source_") || rest.starts_with("transaction_") || ADDED.contains(&rest);
                if is_known && first.is_none() {
                    first = Some(count);
                }
            }
        }
        count += 1;
    }
    first.unwrap_or(count)
}

pub(super) fn read(object: &Object<'_>, topic: &Arc<str>, shapes: &mut Shapes) -> Result<Event, Reason> {
    let fields = &object.fields;
    let added = first_added(fields.iter().map(|(name, _)| name));
    let deleted = fields.get("__deleted");
    let op = match fields.get("__op").filter(|json| *json != "null") {
        _ if matches!(deleted, Some("\"true\"" | "true")) => Op::Delete,
        Some(json) => op_of(json)?,
        // Only an upsert is certain: the row is there now.
        None => Op::Update,
    };
    let row = Some(Image::from(row(object, added)));
    let (before, after) = if op == Op::Delete { (row, None) } else { (None, row) };
    let shape = object.schema.and_then(|schema| shapes.shape(topic, schema, Layout::Flattened));
    Ok(Event { op, source: source(fields, added).lift(), before, after, shape })
}

/// The row without the added fields. They stand behind it, so that it is cut off and closed.
fn row(object: &Object<'_>, added: usize) -> ByteString {
    let last = added.checked_sub(1).and_then(|last| object.fields.iter().nth(last));
    let end = last.map_or(1, |(_, value)| value.as_ptr() as usize + value.len() - object.text.as_ptr() as usize);
    let mut row = String::with_capacity(end + 1);
    row.push_str(object.text.get(..end).unwrap_or("{"));
    row.push('}');
    ByteString::from(row)
}

/// The added fields under the names they have in an envelope.
fn source<'a>(fields: &Fields<'a>, added: usize) -> Source<'a> {
    let mut source = Fields::default();
    let mut beside = "{".to_string();
    for (name, value) in fields.iter().skip(added) {
        let plain = name.strip_prefix(PREFIX).unwrap_or(name);
        let is_held = match plain {
            "op" => true,
            "deleted" => matches!(value, "\"true\"" | "\"false\"" | "true" | "false"),
            // Without `source.` these are the connector's own, and the transaction's.
            "ts_ms" | "ts_us" | "ts_ns" | "id" | "total_order" | "data_collection_order" => false,
            _ if plain.starts_with("transaction_") => false,
            _ => source.add(plain.strip_prefix("source_").unwrap_or(plain), value),
        };
        if !is_held {
            json::push_field(&mut beside, plain, value);
        }
    }
    beside.push('}');
    Source {
        connector: source.text("connector").map_or_else(|| connector(&source).into(), |name| name.into_owned().into()),
        transaction: fields.scalar("__transaction_id").map(Cow::into_owned),
        fields: source,
        beside: (beside.len() > 2).then_some(beside),
    }
}

/// Which connector has a source block with these fields, where it does not say so itself.
fn connector(source: &Fields<'_>) -> &'static str {
    let has = |name: &str| source.get(name).is_some();
    match () {
        () if has("commit_lsn") => "sqlserver",
        () if has("lsn") || has("sequence") => "postgresql",
        () if has("file") && has("pos") => "mysql",
        () if has("scn") => "oracle",
        () if has("ord") => "mongodb",
        () => "",
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::change::{ChangeEvent, Decoded, RawRecord};
    use crate::decode::debezium;

    fn decode(payload: &str) -> Decoded {
        let payload = Some(Bytes::copy_from_slice(payload.as_bytes()));
        let record = RawRecord { topic: "t".into(), partition: 0, offset: 0, timestamp_ms: None, key: None, payload };
        debezium::decode(record, &mut Shapes::default(), &mut Default::default())
    }

    fn change(payload: &str) -> ChangeEvent {
        match decode(payload) {
            Decoded::Change(event) => event,
            other => panic!("not a change: {other:?}"),
        }
    }

    fn text(image: &Option<Image>) -> Option<&str> {
        image.as_ref().map(|image| image.json())
    }

    #[test]
    fn a_flattened_row_comes_apart_as_its_event_does() {
        let row = r#"{"id":4,"c_value":"four"}"#;
        let event = change(
            r#"{"id":4,"c_value":"four","__deleted":"false","__op":"c","__table":"keys","__lsn":28189576,"__source_ts_us":1795181843293154,"__source_txId":1099,"__source_sequence":"[\"28076832\",\"28189576\"]","__source_snapshot":null}"#,
        );
        assert_eq!((event.op, text(&event.before), text(&event.after)), (Op::Create, None, Some(row)));
        assert_eq!(event.source_ts_us, Some(1_795_181_843_293_154));
        assert_eq!(event.position.as_deref(), Some("00000000000028076832:00000000000028189576"));
        assert_eq!(event.tx_id.as_deref(), Some("1099"));
        assert_eq!(event.source.as_deref(), Some(r#"{"table":"keys","snapshot":null}"#));
        let event = change(
            r#"{"id":4,"c_value":"four","__deleted":"true","__op":"d","__source_ts_ms":5,"__source_file":"binlog.000001","__source_pos":48950,"__source_row":0}"#,
        );
        assert_eq!((event.op, text(&event.before), text(&event.after)), (Op::Delete, Some(row), None));
        assert_eq!(event.position.as_deref(), Some("00000000000000000001:00000000000000048950:00000000000000000000"));
        assert_eq!(event.source.as_deref(), Some(r#"{"file":"binlog.000001"}"#));
        assert_eq!(event.source_ts_us, Some(5000));
    }

    #[test]
    fn the_op_is_what_the_added_fields_say() {
        let op = |payload: &str| change(payload).op.letter();
        assert_eq!(op(r#"{"id":1,"__op":"r"}"#), "r");
        assert_eq!(op(r#"{"id":1,"__deleted":"false"}"#), "u");
        assert_eq!(op(r#"{"id":1,"__deleted":"true"}"#), "d");
        assert_eq!(op(r#"{"id":1,"__deleted":true}"#), "d");
        assert_eq!(op(r#"{"id":1,"__op":null,"__source_lsn":5}"#), "u");
        assert_eq!(op(r#"{"id":1,"__source_lsn":5}"#), "u");
        let Decoded::Rejected(rejected) = decode(r#"{"id":1,"__op":"x"}"#) else { panic!("taken") };
        assert_eq!(rejected.reason, "`op` is `x`, and not one of c, u, d, r, t, m");
    }

    #[test]
    fn columns_stay_columns_whatever_they_are_called() {
        let check = |payload: &str, row: &str, source: Option<&str>| {
            let event = change(payload);
            assert_eq!((text(&event.after), event.source.as_deref()), (Some(row), source), "{payload}");
        };
        check(r#"{"__op":"c"}"#, "{}", None);
        check(r#"{ "a" : [1, {"b":2}] , "__op" : "c" }"#, r#"{ "a" : [1, {"b":2}]}"#, None);
        check(r#"{"__id":1,"a":2,"__op":"c"}"#, r#"{"__id":1,"a":2}"#, None);
        check(r#"{"a":2,"__v":3,"__op":"c"}"#, r#"{"a":2,"__v":3}"#, None);
        check(r#"{"op":"x","source":1,"__op":"c"}"#, r#"{"op":"x","source":1}"#, None);
        check(r#"{"a":2,"__op":"c","__new":3}"#, r#"{"a":2}"#, Some(r#"{"new":3}"#));
        check(
            r#"{"a":2,"__op":"c","__ts_ms":3,"__transaction_id":"5:6","__lsn":1,"__source_lsn":2}"#,
            r#"{"a":2}"#,
            Some(r#"{"envelope":{"ts_ms":3,"transaction_id":"5:6","source_lsn":2}}"#),
        );
        assert_eq!(change(r#"{"a":2,"__op":"c","__transaction_id":"5:6"}"#).tx_id.as_deref(), Some("5:6"));
    }
}
