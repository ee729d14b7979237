//! Records become the same rows however they are pushed: together or one by one, with their fields found or not.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use bytestring::ByteString;
use proptest::prelude::*;

use super::ChangeBatchBuilder;
use super::builder::tests::found;
use crate::change::{ChangeEvent, Consumed, Decoded, FieldNames, Op, RawRecord, Rejected};
use crate::clock::Clock;
use crate::evolution::{Evolution, Form, TableImages};
use crate::row::{Column, ColumnType, RowShape};

/// A column, and values of it: the one that most rows have, others that fit, and some that do not.
struct Kind {
    name: &'static str,
    column_type: &'static str,
    encoding: Option<&'static str>,
    usual: &'static str,
    others: &'static [&'static str],
    misfits: &'static [&'static str],
}

#[rustfmt::skip]
const KINDS: &[Kind] = &[
    Kind { name: "id", column_type: "long", encoding: None, usual: "77",
        others: &["-5", "9223372036854775807", "0"], misfits: &["1.5", "\"x\""] },
    Kind { name: "status", column_type: "string", encoding: None, usual: "\"paid\"",
        others: &[r#""p\u00e4id\n""#, r#""a\"b""#, "\"\"", "\"__debezium_unavailable_value\"", "\"_debezium_unavailable_value_\""],
        misfits: &["7", r#""\ud83d""#] },
    Kind { name: "total", column_type: "decimal(10,2)", encoding: None, usual: "\"BOI=\"",
        others: &["\"AA==\"", "\"__debezium_unavailable_value\"", "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\"", r#"{"scale":2,"value":"BOI="}"#],
        misfits: &["12.5", "\"BOI\""] },
    Kind { name: "image", column_type: "binary", encoding: None, usual: "\"AP8=\"",
        others: &["\"\"", "\"X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==\""], misfits: &["\"AP8\""] },
    Kind { name: "placed_at", column_type: "timestamptz", encoding: None, usual: "\"2025-01-01T00:00:07.123456Z\"",
        others: &["\"infinity\"", "\"2025-01-01 00:00:00+01:00\""], misfits: &["\"never\""] },
    Kind { name: "quantity", column_type: "int", encoding: None, usual: "5",
        others: &["-2147483648"], misfits: &["2147483648", "true"] },
    Kind { name: "weight", column_type: "double", encoding: None, usual: "1.25",
        others: &["\"Infinity\"", "1e3"], misfits: &["\"1\"", "1e400"] },
    Kind { name: "is_gift", column_type: "boolean", encoding: None, usual: "true",
        others: &["false"], misfits: &["1"] },
    Kind { name: "ship_on", column_type: "date", encoding: None, usual: "20089",
        others: &["-1"], misfits: &["\"2025-01-01\""] },
    Kind { name: "updated_at", column_type: "timestamp", encoding: None, usual: "1735689600123456",
        others: &["-1", "-9223372036854775808"], misfits: &["1.5"] },
    Kind { name: "price", column_type: "decimal(10,2)", encoding: Some("native"), usual: "12.50",
        others: &["-1", "\"__debezium_unavailable_value\""], misfits: &["12.505"] },
];

/// What a record is to be like.
#[derive(Debug, Clone)]
struct Sketch {
    partition: usize,
    /// Offsets before it that hold no record.
    gap: i64,
    form: How,
    before: Option<Picture>,
    after: Option<Picture>,
    op: Op,
    number: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum How {
    /// As most are.
    Plain,
    /// It says its columns itself.
    SaysColumns,
    Reversed,
    /// It has a column more.
    Wider,
    /// One of its columns is narrower than the table's.
    Narrower,
    /// It has a field that no column is known for.
    WithMore,
    Consumed,
    Rejected,
}

/// An image whose values are the usual ones, but for one of them.
#[derive(Debug, Clone)]
enum Picture {
    Usual,
    Null(prop::sample::Index),
    Other(prop::sample::Index, prop::sample::Index),
    Misfit(prop::sample::Index, prop::sample::Index),
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let index = any::<prop::sample::Index>;
    let picture = move || {
        prop_oneof![
            20 => Just(Picture::Usual),
            5 => index().prop_map(Picture::Null),
            10 => (index(), index()).prop_map(|(kind, value)| Picture::Other(kind, value)),
            1 => (index(), index()).prop_map(|(kind, value)| Picture::Misfit(kind, value)),
        ]
    };
    let image = move || prop::option::weighted(0.8, picture());
    let form = prop_oneof![
        50 => Just(How::Plain),
        1 => prop::sample::select(vec![
            How::SaysColumns, How::Reversed, How::Wider, How::Narrower, How::WithMore, How::Consumed, How::Rejected,
        ]),
    ];
    let op = prop::sample::select(vec![Op::Create, Op::Update, Op::Update, Op::Update, Op::Read, Op::Delete]);
    let gap = prop_oneof![9 => Just(0), 1 => 1..3_i64];
    (0..2_usize, gap, form, image(), image(), op, any::<u32>()).prop_map(
        |(partition, gap, form, before, after, op, number)| Sketch { partition, gap, form, before, after, op, number },
    )
}

static NAMES: LazyLock<[Arc<FieldNames>; 3]> = LazyLock::new(|| {
    let plain: Vec<Box<str>> = KINDS.iter().map(|kind| kind.name.into()).collect();
    let reversed = plain.iter().rev().cloned().collect();
    let wider = plain.iter().cloned().chain(["more".into()]).collect();
    [plain, reversed, wider].map(|names: Vec<_>| Arc::new(FieldNames(names.into())))
});

/// The table's columns, those and one more, and those with the first one narrower.
static SHAPES: LazyLock<[Arc<RowShape>; 3]> = LazyLock::new(|| {
    let int = |name: &str| Column::new(name, ColumnType::Int, None).unwrap();
    let column = |kind: &Kind| {
        let encoding = kind.encoding.map(|encoding| encoding.parse().unwrap());
        Column::new(kind.name, kind.column_type.parse().unwrap(), encoding).unwrap()
    };
    let plain: Vec<Column> = KINDS.iter().map(column).collect();
    let wider = plain.iter().cloned().chain([int("more")]).collect();
    let narrower = [int("id")].into_iter().chain(plain.iter().skip(1).cloned()).collect();
    [plain, wider, narrower].map(|columns| Arc::new(RowShape { columns }))
});

impl Sketch {
    fn decoded(&self, offset: i64, are_found: bool) -> Decoded {
        // Most, but not all.
        let some = |of: u32| !self.number.is_multiple_of(of);
        let record = RawRecord {
            topic: "shop.public.orders".into(),
            partition: self.partition as i32,
            offset,
            timestamp_ms: some(3).then_some(i64::from(self.number)),
            key: None,
            payload: Some(Bytes::from_static(b"the payload")),
        };
        let (names, shape) = match self.form {
            How::Consumed => return Decoded::Consumed(record, Consumed::Tombstone),
            How::Rejected => return Decoded::Rejected(Rejected { record, key: None, reason: "it is bad".to_string() }),
            How::Plain => (&NAMES[0], None),
            How::SaysColumns => (&NAMES[0], Some(&SHAPES[0])),
            How::Reversed => (&NAMES[1], None),
            How::Wider => (&NAMES[2], Some(&SHAPES[1])),
            How::Narrower => (&NAMES[0], Some(&SHAPES[2])),
            How::WithMore => (&NAMES[2], None),
        };
        let image = |picture: &Picture| {
            let json = self.image(picture);
            if are_found { found(&json, names) } else { ByteString::from(json).into() }
        };
        Decoded::Change(ChangeEvent {
            key: some(5).then(|| format!("{{\"id\":{}}}", self.number)),
            op: self.op,
            source_ts_us: some(7).then_some(i64::from(self.number)),
            position: some(11).then(|| format!("{:020}", self.number)),
            tx_id: some(13).then(|| self.number.to_string()),
            source: some(17).then(|| "{\"table\":\"orders\"}".into()),
            before: self.before.as_ref().map(image),
            after: self.after.as_ref().map(image),
            shape: shape.cloned(),
            record,
        })
    }

    fn image(&self, picture: &Picture) -> String {
        let mut values: Vec<&str> = KINDS.iter().map(|kind| kind.usual).collect();
        let mut set = |kind: &prop::sample::Index, value: &dyn Fn(&Kind) -> &'static str| {
            let kind = kind.index(KINDS.len());
            values[kind] = value(&KINDS[kind]);
        };
        match picture {
            Picture::Usual => {}
            Picture::Null(kind) => set(kind, &|_| "null"),
            Picture::Other(kind, value) => set(kind, &|kind| kind.others[value.index(kind.others.len())]),
            Picture::Misfit(kind, value) => set(kind, &|kind| kind.misfits[value.index(kind.misfits.len())]),
        }
        let field = |(kind, value): (&Kind, &str)| format!("\"{}\":{value}", kind.name);
        let mut fields: Vec<String> = KINDS.iter().zip(values).map(field).collect();
        match self.form {
            How::Reversed => fields.reverse(),
            How::Wider | How::WithMore => fields.push("\"more\":5".to_string()),
            _ => {}
        }
        format!("{{{}}}", fields.join(","))
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn records_are_the_same_rows_however_they_are_pushed(
        sketches in prop::collection::vec(sketch(), 1..300),
        evolution in prop::sample::select(vec![Evolution::Evolve, Evolution::Evolve, Evolution::Strict, Evolution::Json]),
        is_declared in prop::bool::weighted(0.8),
    ) {
        let declared = is_declared.then(|| SHAPES[0].clone());
        let images = match evolution {
            Evolution::Json => TableImages { evolution, declared, form: Form::Open },
            _ => TableImages { evolution, ..TableImages::from(declared) },
        };
        let new = || ChangeBatchBuilder::new(images.clone(), 1, Clock::manual(0).0);
        let (mut together, mut straight, mut careful) = (new(), new(), new());
        let mut offsets = [0; 2];
        let mut records = Vec::new();
        for sketch in &sketches {
            let offset = &mut offsets[sketch.partition];
            *offset += sketch.gap;
            records.push((sketch.decoded(*offset, true), sketch.decoded(*offset, false)));
            *offset += 1;
        }
        for half in [&records[..records.len() / 2], &records[records.len() / 2..]] {
            together.push_all(half.iter().map(|(found, _)| found.clone())).unwrap();
            half.iter().for_each(|(found, _)| straight.push(found.clone()).unwrap());
            half.iter().for_each(|(_, not_found)| careful.push(not_found.clone()).unwrap());
            let bytes = careful.bytes();
            let expected = careful.finish().unwrap();
            for builder in [&mut together, &mut straight] {
                prop_assert_eq!((builder.rows(), builder.bytes()), (expected.rows.num_rows(), bytes));
                let batch = builder.finish().unwrap();
                prop_assert_eq!(&batch.rows, &expected.rows);
                prop_assert_eq!(&batch.counts, &expected.counts);
                prop_assert_eq!(&batch.ranges, &expected.ranges);
                prop_assert_eq!(&batch.dropped, &expected.dropped);
            }
        }
    }
}
