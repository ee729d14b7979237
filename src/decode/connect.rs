//! Kafka Connect's schema blocks, as JSON converters write them, into row shapes.
//!
//! What Iceberg and Athena have no type for becomes text, and the column's documentation says what it was. Nothing is
//! guessed: a block that says less than a column's exact type gives text, or no shape at all.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use serde_json::value::RawValue;

use super::flattened;
use super::payload::Fields;
use crate::row::{Column, ColumnType, Encoding, RowShape};

/// Where in a block the columns of the row are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// In the structs of `after` and `before`.
    Envelope,
    /// In the block itself, before the added fields.
    Flattened,
    /// In the block itself.
    Row,
}

/// The shapes of the schema blocks seen last, so that a block is read once and not with every record.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    by_topic: HashMap<Arc<str>, VecDeque<Known>>,
    bytes: usize,
}

#[derive(Debug)]
struct Known {
    block: Box<str>,
    layout: Layout,
    shape: Option<Arc<RowShape>>,
}

/// Blocks of one topic: while a table's columns change, the old and the new ones, and a few of tables that share it.
const MOST_PER_TOPIC: usize = 8;
/// Blocks of all topics. A block has a few kilobytes, and some hundred tables fit.
const MOST_BYTES: usize = 16 << 20;

impl Shapes {
    /// Takes a known block off the text of a payload that begins with it: the block, and what it is wrapped around.
    pub(super) fn strip_known<'a>(&self, topic: &str, text: &'a str) -> Option<(&'a str, &'a str)> {
        let rest = text.strip_prefix(r#"{"schema":"#)?;
        self.by_topic.get(topic)?.iter().find_map(|known| {
            let (block, rest) = rest.split_at_checked(known.block.len())?;
            let payload = rest.strip_prefix(r#","payload":"#)?.strip_suffix('}')?;
            (block == &*known.block).then_some((block, payload))
        })
    }

    pub(super) fn shape(&mut self, topic: &Arc<str>, block: &str, layout: Layout) -> Option<Arc<RowShape>> {
        let is = |known: &Known| known.layout == layout && *known.block == *block;
        let of_topic = self.by_topic.get_mut(topic);
        if let Some(known) = of_topic {
            match known.iter().position(is) {
                Some(0) => return known[0].shape.clone(),
                Some(index) => {
                    let found = known.remove(index)?;
                    let shape = found.shape.clone();
                    known.push_front(found);
                    return shape;
                }
                None => {}
            }
        }
        let shape = row_shape(block, layout).map(Arc::new);
        if block.len() <= MOST_BYTES / 4 {
            self.remember(topic, Known { block: block.into(), layout, shape: shape.clone() });
        }
        shape
    }

    fn remember(&mut self, topic: &Arc<str>, known: Known) {
        if self.bytes + known.block.len() > MOST_BYTES {
            self.by_topic.clear();
            self.bytes = 0;
        }
        self.bytes += known.block.len();
        let of_topic = self.by_topic.entry(topic.clone()).or_default();
        of_topic.push_front(known);
        if of_topic.len() > MOST_PER_TOPIC {
            self.bytes -= of_topic.pop_back().map_or(0, |oldest| oldest.block.len());
        }
    }
}

/// The columns a block says the row images have; `None` where it says none.
fn row_shape(block: &str, layout: Layout) -> Option<RowShape> {
    let mut fields = struct_fields(&Fields::read(block)?)?;
    match layout {
        Layout::Row => {}
        Layout::Flattened => {
            let names: Vec<_> = fields.iter().map(|field| field.text("field")).collect::<Option<_>>()?;
            fields.truncate(flattened::first_added(names.iter().map(|name| &**name)));
        }
        Layout::Envelope => {
            let image = |name: &str| fields.iter().find(|field| field.text("field").as_deref() == Some(name));
            fields = ["after", "before"].into_iter().find_map(|name| struct_fields(image(name)?))?;
        }
    }
    let columns: Vec<Column> = fields.iter().map(column).collect::<Option<_>>()?;
    let mut names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    names.sort_unstable();
    let is_table = !columns.is_empty() && names.windows(2).all(|pair| pair[0] != pair[1]) && !names[0].is_empty();
    is_table.then_some(RowShape { columns })
}

fn struct_fields<'a>(schema: &Fields<'a>) -> Option<Vec<Fields<'a>>> {
    if schema.text("type").as_deref() != Some("struct") {
        return None;
    }
    let fields: Vec<&'a RawValue> = serde_json::from_str(schema.get("fields")?).ok()?;
    fields.into_iter().map(|field| Fields::read(field.get())).collect()
}

fn column(schema: &Fields<'_>) -> Option<Column> {
    let name = schema.text("field")?.into_owned();
    let (column_type, encoding, doc) = type_of(schema)?;
    Some(Column { name, column_type, encoding, doc })
}

/// The column type of a schema, how its values are written, and what has to be said of it where it is not that type.
fn type_of(schema: &Fields<'_>) -> Option<(ColumnType, Encoding, Option<String>)> {
    let plain = schema.text("type")?;
    let name = schema.text("name").unwrap_or_default();
    Some(match (&*plain, &*name) {
        ("bytes", "org.apache.kafka.connect.data.Decimal") => decimal(schema),
        ("array", _) => {
            let items = schema.get("items").and_then(Fields::read);
            let doc =
                format!("array as JSON text; each element is {}", items.as_ref().map_or_else(String::new, called));
            (ColumnType::String, Encoding::Json, Some(doc))
        }
        (plain, name) => {
            let (column_type, encoding, doc) = match named_type(plain, name) {
                Some(known) => known,
                // The name is all there is to say of a value that is kept as it was sent.
                None => {
                    let (column_type, encoding, doc) = plain_type(plain)?;
                    (column_type, encoding, doc.or((!name.is_empty()).then_some(name)))
                }
            };
            (column_type, encoding, doc.map(str::to_string))
        }
    })
}

/// A column's type, how its values are written, and its documentation.
type Found<'d> = (ColumnType, Encoding, Option<&'d str>);

/// Types that Debezium and Connect give names to, with a word on those whose column has another type.
fn named_type<'d>(plain: &str, name: &str) -> Option<Found<'d>> {
    use ColumnType::{Binary, Date, Int, Long, String, Timestamp, Timestamptz};
    use Encoding::{Base64, Days, Digits, Iso, Json, Micros, Millis, Nanos, Native, TimeMicros, TimeMillis, TimeNanos};
    let short = ["io.debezium.time.", "io.debezium.data.", "org.apache.kafka.connect.data."]
        .into_iter()
        .find_map(|prefix| name.strip_prefix(prefix))?;
    Some(match (plain, short) {
        ("int32", "Date") => (Date, Days, None),
        ("string", "IsoDate") => (Date, Iso, None),
        ("int64", "Timestamp") => (Timestamp, Millis, None),
        ("int64", "MicroTimestamp") => (Timestamp, Micros, None),
        ("string", "IsoTimestamp") => (Timestamp, Iso, None),
        ("string", "ZonedTimestamp") => (Timestamptz, Iso, None),
        ("int64", "NanoTimestamp") => {
            (String, Nanos, Some("timestamp in nanoseconds, which Iceberg's own type does not hold"))
        }
        ("int32", "Time") => (String, TimeMillis, Some("time of day, for which Athena has no type")),
        ("int64", "MicroTime") => (String, TimeMicros, Some("time of day or time span, for which Athena has no type")),
        ("int64", "NanoTime") => (String, TimeNanos, Some("time of day or time span, for which Athena has no type")),
        ("string", "IsoTime") => (String, Native, Some("time of day without a zone, although a Z stands behind it")),
        ("string", "ZonedTime") => (String, Native, Some("time of day in UTC")),
        ("int32", "Year") => (Int, Native, None),
        ("int64", "MicroDuration") => (Long, Native, Some("interval in microseconds, a month being 30.4375 days")),
        ("int64", "NanoDuration") => (Long, Native, Some("interval in nanoseconds, a month being 30.4375 days")),
        ("string", "Interval") => (String, Native, Some("interval as ISO 8601 text")),
        ("struct", "VariableScaleDecimal") => {
            (String, Digits { scale: None }, Some("decimal number whose digits the source does not limit"))
        }
        ("bytes", "Bits") => (Binary, Base64, Some("bit string, its last eight bits first")),
        ("string", "Json") => (String, Native, Some("JSON text")),
        ("string", "Xml") => (String, Native, Some("XML text")),
        ("string", "Uuid") => (String, Native, Some("UUID")),
        ("string", "Enum") => (String, Native, Some("label of an enum")),
        ("string", "EnumSet") => (String, Native, Some("labels of a set, with commas between them")),
        ("struct", _) if short.starts_with("geometry.") => {
            (String, Json, Some("geometry as JSON text; `wkb` is in base64"))
        }
        _ => return None,
    })
}

fn plain_type<'d>(plain: &str) -> Option<Found<'d>> {
    Some(match plain {
        "boolean" => (ColumnType::Boolean, Encoding::Native, None),
        "int8" | "int16" | "int32" => (ColumnType::Int, Encoding::Native, None),
        "int64" => (ColumnType::Long, Encoding::Native, None),
        "float" | "float32" => (ColumnType::Float, Encoding::Native, None),
        "double" | "float64" => (ColumnType::Double, Encoding::Native, None),
        "string" => (ColumnType::String, Encoding::Native, None),
        "bytes" => (ColumnType::Binary, Encoding::Base64, None),
        "map" => (ColumnType::String, Encoding::Json, Some("map as JSON text")),
        "struct" => (ColumnType::String, Encoding::Json, Some("struct as JSON text; bytes in it are in base64")),
        _ => return None,
    })
}

/// A number whose scale the schema knows, and its precision where it is not left open (`money`).
fn decimal(schema: &Fields<'_>) -> (ColumnType, Encoding, Option<String>) {
    let parameters = schema.get("parameters").and_then(Fields::read).unwrap_or_default();
    let number = |name: &str| parameters.scalar(name)?.parse::<u32>().ok();
    let (scale, precision) = (number("scale"), number("connect.decimal.precision"));
    // numeric(3,5) has three digits behind two zeros: five behind the point.
    if let (Some(scale), Some(precision)) = (scale, precision)
        && let Some(precision) = Some(precision.max(scale)).filter(|precision| (1..=38).contains(precision))
    {
        let column_type = ColumnType::Decimal { precision: precision as u8, scale: scale as i8 };
        return (column_type, Encoding::Base64, None);
    }
    let doc = match precision {
        Some(precision) => format!("decimal number of {precision} digits, which Iceberg's own type does not hold"),
        None => "decimal number whose digits the source does not limit".to_string(),
    };
    (ColumnType::String, Encoding::Digits { scale }, Some(doc))
}

/// What a schema is called in the documentation of a list of it.
fn called(schema: &Fields<'_>) -> String {
    let plain = schema.text("type").unwrap_or_default();
    let scale = schema.get("parameters").and_then(Fields::read).and_then(|parameters| {
        let scale = parameters.scalar("scale")?;
        Some(format!(", scale {scale}"))
    });
    match schema.text("name") {
        Some(name) => format!("{plain} ({name}{})", scale.unwrap_or_default()),
        None => plain.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(columns: &str) -> String {
        let image =
            |name: &str| format!(r#"{{"type":"struct","fields":[{columns}],"optional":true,"field":"{name}"}}"#);
        format!(
            r#"{{"type":"struct","fields":[{},{},{{"type":"struct","fields":[],"field":"source"}},{{"type":"string","field":"op"}}],"name":"t.Envelope"}}"#,
            image("before"),
            image("after")
        )
    }

    /// The column of a schema, without its name.
    fn check(schema: &str, expected: &str) {
        let shape = row_shape(&envelope(&schema.replacen('{', r#"{"field":"c","#, 1)), Layout::Envelope);
        let shown = shape.map(|shape| {
            let Column { column_type, encoding, doc, .. } = &shape.columns[0];
            assert!(Column::new("c", *column_type, Some(*encoding)).is_ok(), "{schema}");
            let doc = doc.as_ref().map(|doc| format!(": {doc}")).unwrap_or_default();
            format!("{column_type} {encoding}{doc}")
        });
        assert_eq!(shown.as_deref(), (!expected.is_empty()).then_some(expected), "{schema}");
    }

    fn named(plain: &str, name: &str, expected: &str) {
        check(&format!(r#"{{"type":"{plain}","optional":true,"name":"{name}","version":1}}"#), expected);
    }

    #[test]
    fn plain_types() {
        for (plain, expected) in [
            ("boolean", "boolean native"),
            ("int8", "int native"),
            ("int16", "int native"),
            ("int32", "int native"),
            ("int64", "long native"),
            ("float", "float native"),
            ("double", "double native"),
            ("string", "string native"),
            ("bytes", "binary base64"),
            ("map", "string json: map as JSON text"),
            ("struct", "string json: struct as JSON text; bytes in it are in base64"),
            ("array", "string json: array as JSON text; each element is "),
            ("int128", ""),
        ] {
            check(&format!(r#"{{"type":"{plain}"}}"#), expected);
        }
    }

    #[test]
    fn dates_and_times_keep_their_unit() {
        let time =
            |plain: &str, name: &str, expected: &str| named(plain, &format!("io.debezium.time.{name}"), expected);
        time("int32", "Date", "date days");
        time("string", "IsoDate", "date iso");
        time("int64", "Timestamp", "timestamp millis");
        time("int64", "MicroTimestamp", "timestamp micros");
        time("string", "IsoTimestamp", "timestamp iso");
        time("string", "ZonedTimestamp", "timestamptz iso");
        time("int32", "Year", "int native");
        let athena = ", for which Athena has no type";
        time("int32", "Time", &format!("string time-millis: time of day{athena}"));
        time("int64", "MicroTime", &format!("string time-micros: time of day or time span{athena}"));
        time("int64", "NanoTime", &format!("string time-nanos: time of day or time span{athena}"));
        time("string", "ZonedTime", "string native: time of day in UTC");
        time(
            "int64",
            "NanoTimestamp",
            "string nanos: timestamp in nanoseconds, which Iceberg's own type does not hold",
        );
        time("int64", "MicroDuration", "long native: interval in microseconds, a month being 30.4375 days");
        time("string", "Interval", "string native: interval as ISO 8601 text");
        // A name with another type than it has had is not taken at its word.
        time("int64", "Date", "long native: io.debezium.time.Date");
        let connect = |plain: &str, name: &str, expected: &str| {
            named(plain, &format!("org.apache.kafka.connect.data.{name}"), expected)
        };
        connect("int32", "Date", "date days");
        connect("int32", "Time", &format!("string time-millis: time of day{athena}"));
        connect("int64", "Timestamp", "timestamp millis");
    }

    #[test]
    fn decimals_are_decimals_as_far_as_iceberg_has_them() {
        let decimal = |parameters: &str, expected: &str| {
            check(
                &format!(
                    r#"{{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{{{parameters}}}}}"#
                ),
                expected,
            );
        };
        let unlimited = "decimal number whose digits the source does not limit";
        decimal(r#""scale":"2","connect.decimal.precision":"10""#, "decimal(10,2) base64");
        decimal(r#""scale":"10","connect.decimal.precision":"38""#, "decimal(38,10) base64");
        decimal(r#""scale":"5","connect.decimal.precision":"3""#, "decimal(5,5) base64");
        decimal(r#""scale":"2""#, &format!("string digits(2): {unlimited}"));
        decimal("", &format!("string digits: {unlimited}"));
        decimal(
            r#""scale":"20","connect.decimal.precision":"60""#,
            "string digits(20): decimal number of 60 digits, which Iceberg's own type does not hold",
        );
        decimal(
            r#""scale":"2046","connect.decimal.precision":"5""#,
            "string digits(2046): decimal number of 5 digits, which Iceberg's own type does not hold",
        );
        named("struct", "io.debezium.data.VariableScaleDecimal", &format!("string digits: {unlimited}"));
    }

    #[test]
    fn what_is_kept_as_it_was_sent_says_what_it_was() {
        let data =
            |plain: &str, name: &str, expected: &str| named(plain, &format!("io.debezium.data.{name}"), expected);
        data("string", "Json", "string native: JSON text");
        data("string", "Uuid", "string native: UUID");
        data("string", "Enum", "string native: label of an enum");
        data("string", "Ltree", "string native: io.debezium.data.Ltree");
        data("bytes", "Bits", "binary base64: bit string, its last eight bits first");
        data("struct", "geometry.Point", "string json: geometry as JSON text; `wkb` is in base64");
        named("struct", "io.example.Anything", "string json: struct as JSON text; bytes in it are in base64");
        check(
            r#"{"type":"array","items":{"type":"int32","name":"io.debezium.time.Date"}}"#,
            "string json: array as JSON text; each element is int32 (io.debezium.time.Date)",
        );
        check(
            r#"{"type":"array","items":{"type":"bytes","name":"org.apache.kafka.connect.data.Decimal","parameters":{"scale":"2"}}}"#,
            "string json: array as JSON text; each element is bytes (org.apache.kafka.connect.data.Decimal, scale 2)",
        );
    }

    #[test]
    fn a_block_that_describes_no_row_gives_no_shape() {
        let none = |block: &str, layout| assert_eq!(row_shape(block, layout), None, "{block}");
        for block in
            ["", "null", "[]", "{}", r#"{"type":"string"}"#, r#"{"type":"struct"}"#, r#"{"type":"struct","fields":5}"#]
        {
            none(block, Layout::Envelope);
            none(block, Layout::Row);
        }
        none(r#"{"type":"struct","fields":[]}"#, Layout::Row);
        none(r#"{"type":"struct","fields":[{"type":"int32","field":"a"},{"type":"int64","field":"a"}]}"#, Layout::Row);
        none(r#"{"type":"struct","fields":[{"type":"int32"}]}"#, Layout::Row);
        none(r#"{"type":"struct","fields":[{"type":"int32","field":""}]}"#, Layout::Row);
        none(&envelope(""), Layout::Envelope);
        // A document of MongoDB is JSON in a string.
        none(
            r#"{"type":"struct","fields":[{"type":"string","name":"io.debezium.data.Json","field":"after"}]}"#,
            Layout::Envelope,
        );
    }

    #[test]
    fn the_added_fields_are_no_columns() {
        let block = r#"{"type":"struct","fields":[{"type":"int32","field":"id"},{"type":"string","field":"__v"},{"type":"string","field":"__deleted"},{"type":"int64","field":"__lsn"}]}"#;
        let names = |layout| {
            row_shape(block, layout).unwrap().columns.into_iter().map(|column| column.name).collect::<Vec<_>>()
        };
        assert_eq!(names(Layout::Flattened), ["id", "__v"]);
        assert_eq!(names(Layout::Row), ["id", "__v", "__deleted", "__lsn"]);
    }

    #[test]
    fn a_block_is_read_once_and_its_shape_shared() {
        let topic: Arc<str> = "t".into();
        let block = |name: &str| envelope(&format!(r#"{{"type":"int32","field":"{name}"}}"#));
        let mut shapes = Shapes::default();
        let first = shapes.shape(&topic, &block("a"), Layout::Envelope).unwrap();
        let other = shapes.shape(&topic, &block("b"), Layout::Envelope).unwrap();
        let again = shapes.shape(&topic, &block("a"), Layout::Envelope).unwrap();
        assert!(Arc::ptr_eq(&first, &again) && !Arc::ptr_eq(&first, &other));
        let text = format!(r#"{{"schema":{},"payload":{{"x":1}}}}"#, block("a"));
        assert_eq!(shapes.strip_known("t", &text), Some((&*block("a"), r#"{"x":1}"#)));
        assert_eq!(shapes.strip_known("u", &text), None);
        assert_eq!(shapes.strip_known("t", &text.replace("},\"payload", "}, \"payload")), None);
        assert_eq!(shapes.strip_known("t", &text.replace("int32", "int64")), None);
        for number in 0..100 {
            shapes.shape(&topic, &block(&number.to_string()), Layout::Envelope);
        }
        let kept = &shapes.by_topic["t"];
        assert_eq!(kept.len(), MOST_PER_TOPIC);
        assert_eq!(shapes.bytes, kept.iter().map(|known| known.block.len()).sum::<usize>());
        let large = envelope(&format!(r#"{{"type":"int32","field":"{}"}}"#, "x".repeat(1 << 20)));
        for number in 0..40 {
            shapes.shape(&format!("t{number}").into(), &large, Layout::Envelope);
        }
        assert!(shapes.bytes <= MOST_BYTES, "{}", shapes.bytes);
    }
}
