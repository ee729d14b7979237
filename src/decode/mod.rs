//! Records into change events.
//!
//! In: a [`RawRecord`] and the [`Format`] of its topic. Out: a [`Decoded`]: a change event whose row images are slices of
//! the record, a rejected record with the reason, or a record that is read and done with because it holds no change of a
//! row. Where a record brings a schema block, the event says the types of its row's columns.
//!
//! Decoding is a pure function of one record: a [`Decoder`] remembers schema blocks, and nothing that could change what
//! comes out. It cannot fail and cannot stop a pipeline: **whatever the bytes are, the record comes out again**.
//!
//! It does not know the Kafka client, which columns a table has, Arrow or Iceberg.

mod connect;
mod debezium;
mod flattened;
mod payload;
mod plain;
mod position;
mod skeleton;

use std::fmt;
use std::str::FromStr;

use self::connect::Shapes;
use self::skeleton::Skeletons;
use crate::change::{Decoded, RawRecord};
use crate::error::{Kind, Situation};

/// How the records of a topic are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Debezium's change events as JSON, with or without the schema block, in their envelope or flattened.
    DebeziumJson,
    /// Rows as JSON objects, with or without a schema block. Each is an upsert, and a record without a payload the delete
    /// of its key.
    Json,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a format of records; there are {}", Format::NAMES)]
pub struct UnknownFormat {
    text: String,
}

/// Decodes records of one format. Keep it from record to record: schema blocks that come again are not read again, events
/// with the same block share one shape, and events written like those before are read by what they have in common.
#[derive(Debug)]
pub struct Decoder {
    format: Format,
    shapes: Shapes,
    skeletons: Skeletons,
}

impl Decoder {
    pub fn new(format: Format) -> Self {
        Decoder { format, shapes: Shapes::default(), skeletons: Skeletons::default() }
    }

    pub fn decode(&mut self, record: RawRecord) -> Decoded {
        match self.format {
            Format::DebeziumJson => debezium::decode(record, &mut self.shapes, &mut self.skeletons),
            Format::Json => plain::decode(record, &mut self.shapes),
        }
    }
}

/// Decodes one record by itself.
pub fn decode(record: RawRecord, format: Format) -> Decoded {
    Decoder::new(format).decode(record)
}

impl Format {
    pub const NAMES: &'static str = "debezium-json, json";
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "debezium-json" => Ok(Format::DebeziumJson),
            "json" => Ok(Format::Json),
            _ => Err(UnknownFormat { text: text.to_string() }),
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Format::DebeziumJson => "debezium-json",
            Format::Json => "json",
        })
    }
}

impl Situation for UnknownFormat {
    fn kind(&self) -> Kind {
        Kind::Config
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_format_is_named_as_in_the_configuration() {
        for name in Format::NAMES.split(", ") {
            assert_eq!(name.parse::<Format>().unwrap().to_string(), name);
        }
        let error = "debezium".parse::<Format>().unwrap_err();
        insta::assert_snapshot!(error, @"`debezium` is not a format of records; there are debezium-json, json");
    }

    proptest! {
        #[test]
        fn any_bytes_come_out_as_the_record_they_were(
            key in prop::option::of(any_bytes()),
            payload in prop::option::of(any_bytes()),
            offset in any::<i64>(),
        ) {
            let (key, payload) = (key.map(Bytes::from), payload.map(Bytes::from));
            let record =
                RawRecord { topic: "t".into(), partition: 0, offset, timestamp_ms: None, key, payload };
            for format in [Format::DebeziumJson, Format::Json] {
                let mut decoder = Decoder::new(format);
                let decoded = decoder.decode(record.clone());
                prop_assert_eq!(decoded.record(), &record);
                // What the decoder remembers makes no difference.
                prop_assert_eq!(&decoder.decode(record.clone()), &decoded);
            }
        }
    }

    /// Random bytes, and Debezium events in which a few bytes were changed, cut out or doubled.
    fn any_bytes() -> impl Strategy<Value = Vec<u8>> {
        let seeds = vec![
            r#"{"schema":{"type":"struct","fields":[]},"payload":{"before":null,"after":{"id":1,"n":"\u00e4"},"source":{"connector":"postgresql","ts_ms":1,"ts_us":1000,"sequence":"[\"1\",\"2\"]","lsn":2,"txId":5},"op":"c","transaction":{"id":"5:2"}}}"#,
            r#"{"before":{"id":1},"after":null,"source":{"connector":"mysql","file":"bin.000001","pos":4,"row":0},"op":"d"}"#,
            r#"{"after":"{\"_id\":1}","source":{"connector":"mongodb","ord":1,"ts_ms":1000},"op":"u"}"#,
            r#"{"status":"BEGIN","id":"5","event_count":null}"#,
            r#"{"id":1}"#,
            r#"{"id":1,"n":null,"__deleted":"false","__op":"u","__table":"t","__source_ts_us":1,"__source_sequence":"[null,\"5\"]"}"#,
            r#"{"schema":{"type":"struct","fields":[{"type":"struct","fields":[{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"2","connect.decimal.precision":"5"},"field":"a"},{"type":"array","items":{"type":"int32"},"field":"b"}],"field":"after"}]},"payload":{"op":"c","after":{"a":"BOI=","b":[1]}}}"#,
            r#"{"schema":{"type":"struct","fields":[{"type":"int32","field":"id"},{"type":"string","field":"__op"}]},"payload":{"id":1,"__op":"c"}}"#,
        ];
        let edit = (any::<prop::sample::Index>(), any::<u8>(), 0..3);
        let changed = (prop::sample::select(seeds), prop::collection::vec(edit, 0..4)).prop_map(|(seed, edits)| {
            let mut bytes = seed.as_bytes().to_vec();
            for (at, byte, how) in edits {
                let at = at.index(bytes.len());
                match how {
                    0 => bytes[at] = byte,
                    1 => bytes.truncate(at.max(1)),
                    _ => bytes.insert(at, byte),
                }
            }
            bytes
        });
        prop_oneof![1 => prop::collection::vec(any::<u8>(), 0..64), 3 => changed]
    }
}
