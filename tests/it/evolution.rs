//! What a source's DDL does to a bronze table, read back from a real one through the engine.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Int32Type, Int64Type};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use bytes::Bytes;
use bytestring::ByteString;
use icestream::batch::ChangeBatchBuilder;
use icestream::bronze::{self, BronzeCommit, BronzeDefinition, BronzeTable, Outcome, Staging};
use icestream::change::{ChangeEvent, Decoded, Op, RawRecord, Rejected};
use icestream::clock::Clock;
use icestream::engine::{self, Engine, EngineOptions};
use icestream::error::Situation;
use icestream::evolution::Evolution;
use icestream::row::{Column, ColumnType, RowShape};
use icestream::table::{At, Lake};

use crate::support::sqlite_lake;

const TOPIC: &str = "shop.public.orders";

/// A table of a source in the states it goes through.
struct Case {
    title: &'static str,
    /// Its columns, and a row of that time.
    states: Vec<(String, String)>,
}

impl Case {
    fn new(title: &'static str, states: &[(&str, &str)]) -> Self {
        Case { title, states: states.iter().map(|(columns, row)| (columns.to_string(), row.to_string())).collect() }
    }
}

/// One column gets other types: each with a value as it is sent.
fn retyped(title: &'static str, column: &str, types: &[(&str, &str)]) -> Case {
    let state = |(id, (column_type, value)): (usize, &(&str, &str))| {
        (format!("id int, {column} {column_type}"), format!(r#"{{"id":{id},"{column}":{value}}}"#))
    };
    Case { title, states: (1..).zip(types).map(state).collect() }
}

#[rustfmt::skip]
fn ddl() -> Vec<Case> {
    vec![
        Case::new("add a nullable column", &[
            ("id int, qty int", r#"{"id":1,"qty":5}"#),
            ("id int, qty int, colour string", r#"{"id":2,"qty":6,"colour":null}"#)]),
        Case::new("add a column with a default", &[
            ("id int", r#"{"id":1}"#),
            ("id int, colour string", r#"{"id":2,"colour":"red"}"#)]),
        Case::new("add a column in the middle", &[
            ("id int, qty int", r#"{"id":1,"qty":5}"#),
            ("id int, colour string, qty int", r#"{"id":2,"colour":"red","qty":6}"#)]),
        Case::new("add two columns and widen one", &[
            ("id int, qty int", r#"{"id":1,"qty":5}"#),
            ("id int, qty long, a date, b boolean", r#"{"id":2,"qty":5000000000,"a":20089,"b":true}"#)]),
        Case::new("drop a column", &[
            ("id int, note string", r#"{"id":1,"note":"n"}"#),
            ("id int", r#"{"id":2}"#)]),
        Case::new("drop the first column", &[
            ("note string, id int", r#"{"note":"n","id":1}"#),
            ("id int", r#"{"id":2}"#)]),
        Case::new("drop a column and add it again", &[
            ("id int, note string", r#"{"id":1,"note":"n"}"#),
            ("id int", r#"{"id":2}"#),
            ("id int, note string", r#"{"id":3,"note":"m"}"#)]),
        Case::new("drop a column and add it with another type", &[
            ("id int, note string", r#"{"id":1,"note":"n"}"#),
            ("id int", r#"{"id":2}"#),
            ("id int, note boolean", r#"{"id":3,"note":true}"#)]),
        Case::new("drop a column and add it with a wider type", &[
            ("id int, qty int", r#"{"id":1,"qty":5}"#),
            ("id int", r#"{"id":2}"#),
            ("id int, qty long", r#"{"id":3,"qty":5000000000}"#)]),
        Case::new("rename a column", &[
            ("id int, name string", r#"{"id":1,"name":"n"}"#),
            ("id int, title string", r#"{"id":2,"title":"t"}"#)]),
        Case::new("rename a column and back", &[
            ("id int, name string", r#"{"id":1,"name":"n"}"#),
            ("id int, title string", r#"{"id":2,"title":"t"}"#),
            ("id int, name string", r#"{"id":3,"name":"m"}"#)]),
        Case::new("swap the names of two columns of one type", &[
            ("id int, a int, b int", r#"{"id":1,"a":10,"b":20}"#),
            ("id int, b int, a int", r#"{"id":2,"b":10,"a":20}"#)]),
        Case::new("swap the names of two columns of other types", &[
            ("id int, a int, b string", r#"{"id":1,"a":10,"b":"x"}"#),
            ("id int, b int, a string", r#"{"id":2,"b":10,"a":"x"}"#)]),
        Case::new("reorder columns", &[
            ("id int, a string, b date", r#"{"id":1,"a":"x","b":1}"#),
            ("b date, id int, a string", r#"{"b":2,"id":2,"a":"y"}"#)]),
        retyped("smallint to integer", "n", &[("int", "32767"), ("int", "32768")]),
        retyped("integer to bigint", "n", &[("int", "7"), ("long", "5000000000")]),
        retyped("smallint to integer to bigint", "n", &[("int", "7"), ("int", "70000"), ("long", "5000000000")]),
        retyped("bigint to integer", "n", &[("long", "5000000000"), ("int", "7")]),
        retyped("integer to text", "n", &[("int", "7"), ("string", r#""seven""#)]),
        retyped("text to integer", "n", &[("string", r#""seven""#), ("int", "7")]),
        retyped("integer to text and back", "n", &[("int", "7"), ("string", r#""seven""#), ("int", "8")]),
        retyped("integer to text to bigint", "n", &[("int", "7"), ("string", r#""seven""#), ("long", "5000000000")]),
        retyped("integer to numeric(10,0)", "n", &[("int", "7"), ("decimal(10,0)", r#""Bw==""#)]),
        retyped("numeric(10,2) to numeric(12,2)", "n", &[
            ("decimal(10,2)", r#""BOI=""#), ("decimal(12,2)", r#""F0h26AA=""#)]),
        retyped("numeric(12,2) to numeric(10,2)", "n", &[
            ("decimal(12,2)", r#""F0h26AA=""#), ("decimal(10,2)", r#""BOI=""#)]),
        retyped("numeric(10,2) to numeric(12,4)", "n", &[
            ("decimal(10,2)", r#""BOI=""#), ("decimal(12,4)", r#""BOI=""#)]),
        retyped("numeric(10,2) to (12,2) to (12,4) to unbounded", "n", &[
            ("decimal(10,2)", r#""BOI=""#), ("decimal(12,2)", r#""F0h26AA=""#), ("decimal(12,4)", r#""BOI=""#), ("string", r#""0.1234567""#)]),
        retyped("real to double precision", "n", &[("float", "0.1"), ("double", "0.1")]),
        retyped("double precision to real", "n", &[("double", "0.1"), ("float", "0.5")]),
        retyped("integer to double precision", "n", &[("int", "7"), ("double", "7.5")]),
        retyped("double precision to numeric", "n", &[("double", "7.5"), ("decimal(10,2)", r#""BOI=""#)]),
        retyped("varchar(10) to varchar(50)", "s", &[("string", r#""short""#), ("string", r#""longer than ten""#)]),
        retyped("varchar(50) to varchar(10)", "s", &[("string", r#""longer than ten""#), ("string", r#""short""#)]),
        retyped("an enum gets a value", "s", &[("string", r#""new""#), ("string", r#""paid""#)]),
        retyped("an enum to integer", "s", &[("string", r#""new""#), ("int", "1")]),
        retyped("date to timestamp", "d", &[("date", "20089"), ("timestamp", "1735689600000000")]),
        retyped("timestamp to date", "d", &[("timestamp", "1735689600000000"), ("date", "20089")]),
        retyped("timestamp to timestamptz", "d", &[
            ("timestamp", "1735689600000000"), ("timestamptz", r#""2025-01-01T01:00:00+01:00""#)]),
        retyped("timestamp(3) to timestamp(6)", "d", &[
            ("timestamp millis", "1735689600000"), ("timestamp micros", "1735689600000001")]),
        retyped("timestamp(6) to timestamp(3)", "d", &[
            ("timestamp micros", "1735689600000001"), ("timestamp millis", "1735689600000")]),
        retyped("time.precision.mode from days to text", "d", &[
            ("date days", "20089"), ("date iso", r#""2025-01-02""#)]),
        retyped("decimal.handling.mode from precise to string", "n", &[
            ("decimal(10,2)", r#""BOI=""#), ("string", r#""12.50""#)]),
        retyped("boolean to integer", "f", &[("boolean", "true"), ("int", "1")]),
        retyped("integer to boolean", "f", &[("int", "1"), ("boolean", "true")]),
        retyped("bytea to text", "b", &[("binary", r#""AP8=""#), ("string", r#""AP8=""#)]),
        retyped("an array, which is text, to an array of other elements", "a", &[
            ("string", r#""[1,2]""#), ("string", r#""[\"x\"]""#)]),
        retyped("an array to its first element", "a", &[("string", r#""[1,2]""#), ("int", "1")]),
        retyped("json to text", "j", &[("string", r#""{\"a\":1}""#), ("string", r#""plain""#)]),
        retyped("drop not null", "s", &[("string", r#""x""#), ("string", "null")]),
        retyped("set not null", "s", &[("string", "null"), ("string", r#""x""#)]),
        retyped("a primary key of two columns in place of one", "region", &[
            ("string", r#""eu""#), ("string", r#""us""#)]),
        Case::new("the primary key from integer to bigint", &[
            ("id int, s string", r#"{"id":1,"s":"x"}"#),
            ("id long, s string", r#"{"id":5000000000,"s":"y"}"#)]),
        Case::new("the primary key from integer to uuid", &[
            ("id int, s string", r#"{"id":1,"s":"x"}"#),
            ("id string, s string", r#"{"id":"6f0c","s":"y"}"#)]),
        Case::new("a column's name in other case", &[
            ("ID int, Status string", r#"{"ID":1,"Status":"new"}"#),
            ("id int, status string", r#"{"id":2,"status":"paid"}"#)]),
        Case::new("names that differ in case alone", &[
            ("a int", r#"{"a":1}"#),
            ("a int, A int", r#"{"a":2,"A":20}"#)]),
        Case::new("names in camel case", &[
            ("orderId int", r#"{"orderId":1}"#),
            ("orderId int, customerID int", r#"{"orderId":2,"customerID":3}"#)]),
        Case::new("names with blanks, dots, quotes and letters of other scripts", &[
            ("id int", r#"{"id":1}"#),
            ("id int, unit price int, a.b int, größe int, 数量 int, x\"y int",
             r#"{"id":2,"unit price":3,"a.b":4,"größe":5,"数量":6,"x\"y":7}"#)]),
        Case::new("names that are words of SQL", &[
            ("id int, order int", r#"{"id":1,"order":2}"#),
            ("id int, order int, select int, group int", r#"{"id":2,"order":3,"select":4,"group":5}"#)]),
        Case::new("names that bronze and Iceberg have for themselves", &[
            ("id int, offset int", r#"{"id":1,"offset":2}"#),
            ("id int, offset int, _offset int, _file int, _unexpected int, after int",
             r#"{"id":2,"offset":3,"_offset":4,"_file":5,"_unexpected":6,"after":7}"#)]),
        Case::new("the next version's name is a column's already", &[
            ("id int, s int, s_v2 date", r#"{"id":1,"s":2,"s_v2":20089}"#),
            ("id int, s string, s_v2 date", r#"{"id":2,"s":"x","s_v2":20090}"#)]),
        Case::new("a column gets the name of a version that was made before", &[
            ("id int, s int", r#"{"id":1,"s":2}"#),
            ("id int, s string", r#"{"id":2,"s":"x"}"#),
            ("id int, s string, s_v2 date", r#"{"id":3,"s":"y","s_v2":20090}"#)]),
        Case::new("everything is another", &[
            ("id int", r#"{"id":1}"#),
            ("key string", r#"{"key":"k"}"#)]),
    ]
}

/// `name type` or `name type encoding`, with commas between.
fn shape(text: &str) -> Arc<RowShape> {
    let columns = text.split(", ").map(|column| {
        let (rest, last) = column.rsplit_once(' ').unwrap();
        let (name, column_type, encoding) = match last.parse() {
            Ok(encoding) => {
                let (name, column_type) = rest.rsplit_once(' ').unwrap();
                (name, column_type, Some(encoding))
            }
            Err(_) => (rest, last, None),
        };
        Column::new(name, column_type.parse().unwrap(), encoding).unwrap()
    });
    Arc::new(RowShape { columns: columns.collect() })
}

/// Somebody who reads one partition into a table.
struct Owner {
    bronze: BronzeTable,
    builder: ChangeBatchBuilder,
    partition: i32,
    offset: i64,
    /// Where its partitions stand, when it has several.
    next: BTreeMap<i32, i64>,
}

impl Owner {
    async fn open(lake: &Lake, definition: &BronzeDefinition, partition: i32) -> Self {
        let bronze = BronzeTable::open(lake, definition).await.unwrap();
        let builder = ChangeBatchBuilder::new(bronze.images().unwrap(), 0, Clock::system());
        let offset = bronze.offsets().unwrap().next(TOPIC, partition).unwrap_or(0);
        Owner { bronze, builder, partition, offset, next: BTreeMap::new() }
    }

    fn record(&mut self, payload: &str) -> RawRecord {
        self.offset += 1;
        RawRecord {
            topic: TOPIC.into(),
            partition: self.partition,
            offset: self.offset - 1,
            timestamp_ms: None,
            key: None,
            payload: Some(Bytes::copy_from_slice(payload.as_bytes())),
        }
    }

    fn push(&mut self, shape: Option<&Arc<RowShape>>, after: &str) {
        let event = ChangeEvent {
            record: self.record(after),
            key: None,
            op: Op::Create,
            source_ts_us: None,
            position: None,
            tx_id: None,
            source: None,
            before: None,
            after: Some(ByteString::from(after).into()),
            shape: shape.cloned(),
        };
        self.builder.push(Decoded::Change(event)).unwrap();
    }

    /// Pushes to a partition of the owner's and says where the row stands.
    fn push_in(&mut self, partition: i32, shape: &Arc<RowShape>, after: &str) -> (i32, i64) {
        let of_table = self.bronze.offsets().unwrap().next(TOPIC, partition).unwrap_or(0);
        let offset = self.next.entry(partition).or_insert(of_table);
        (self.partition, self.offset) = (partition, *offset);
        *offset += 1;
        self.push(Some(shape), after);
        (partition, self.offset - 1)
    }

    fn push_rejected(&mut self) {
        let record = self.record("?");
        self.builder.push(Decoded::Rejected(Rejected { record, key: None, reason: "no JSON".to_string() })).unwrap();
    }

    async fn commit(&mut self) -> BronzeCommit {
        match self.try_commit().await {
            Outcome::Committed(commit) => commit,
            Outcome::Behind(offsets) => panic!("behind at {offsets}"),
        }
    }

    async fn try_commit(&mut self) -> Outcome {
        let batch = self.builder.finish().unwrap();
        let before = self.bronze.offsets().unwrap();
        loop {
            if self.bronze.stage(&batch).await.unwrap() == Staging::Stale {
                return Outcome::Behind(self.bronze.offsets().unwrap());
            }
            match self.bronze.commit(&batch.ranges, &BTreeMap::new(), batch.counts).await.unwrap() {
                // Somebody else changed the columns and committed none of these offsets: the rows are still good.
                Outcome::Behind(now)
                    if batch
                        .ranges
                        .keys()
                        .all(|at| now.next(&at.topic, at.partition) == before.next(&at.topic, at.partition)) => {}
                outcome => return outcome,
            }
        }
    }
}

fn definition(name: &str, evolution: Evolution) -> BronzeDefinition {
    BronzeDefinition {
        name: format!("bronze.{name}").parse().unwrap(),
        shape: None,
        evolution,
        partition: vec!["day(_ingested_at)".to_string()],
        properties: Default::default(),
    }
}

struct World {
    lake: Lake,
    engine: Engine,
    _folder: tempfile::TempDir,
}

/// A table as the engine shows it.
struct Found {
    columns: String,
    /// The row of each partition and offset.
    rows: BTreeMap<(i32, i64), String>,
}

impl World {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lake = sqlite_lake(folder.path()).await;
        let options = EngineOptions { memory_bytes: 256 << 20, threads: 2, spill_dir: folder.path().join("spill") };
        World { lake, engine: Engine::new(&options).unwrap(), _folder: folder }
    }

    async fn query(&self, name: &str, select: &str) -> RecordBatch {
        let name = format!("bronze.{name}").parse().unwrap();
        let session = self.engine.session();
        let table = self.lake.table(&name).await.unwrap();
        engine::register(&session, &name, table.view(At::Head).unwrap()).unwrap();
        let frame = engine::plan(&session, &format!("SELECT {select} FROM {name}")).await.unwrap();
        let schema = Arc::new(frame.schema().as_arrow().clone());
        let batches = frame.collect().await.unwrap();
        let schema = batches.first().map_or(schema, RecordBatch::schema);
        concat_batches(&schema, &batches).unwrap()
    }

    async fn read(&self, name: &str) -> Found {
        let batch = self.query(name, "_topic_partition, _offset, _error, after").await;
        let errors = batch.column(2).as_string::<i32>();
        let after = batch.column(3);
        let table = self.lake.table(&format!("bronze.{name}").parse().unwrap()).await.unwrap();
        let columns = match table.schema().unwrap().field_with_name("after").unwrap().data_type() {
            DataType::Struct(fields) => {
                let type_name = |data_type: &DataType| ColumnType::from_arrow(data_type).unwrap();
                let shown = fields.iter().map(|field| format!("{} {}", field.name(), type_name(field.data_type())));
                shown.collect::<Vec<_>>().join(", ")
            }
            _ => "text".to_string(),
        };
        let mut rows = BTreeMap::new();
        for row in 0..batch.num_rows() {
            let partition = batch.column(0).as_primitive::<Int32Type>().value(row);
            let offset = batch.column(1).as_primitive::<Int64Type>().value(row);
            let text = match after.as_struct_opt() {
                _ if errors.is_valid(row) => format!("rejected: {}", errors.value(row)),
                _ if after.is_null(row) => "null".to_string(),
                Some(image) => image.columns().iter().map(|column| value(column, row)).collect::<Vec<_>>().join(" | "),
                None => value(after, row),
            };
            assert!(rows.insert((partition, offset), text).is_none(), "offset {offset} is there twice");
        }
        Found { columns, rows }
    }
}

fn value(array: &dyn Array, row: usize) -> String {
    let options = FormatOptions::default().with_null("-");
    ArrayFormatter::try_new(array, &options).unwrap().value(row).to_string()
}

/// Brings a table through the states of a source. Each state's rows come twice, and with them, in another partition, late
/// ones of the state before; the table is opened anew in between.
async fn cell(world: &World, name: &str, evolution: Evolution, states: &[(String, String)]) -> String {
    let definition = definition(name, evolution);
    let shapes: Vec<Arc<RowShape>> = states.iter().map(|(columns, _)| shape(columns)).collect();
    let mut state_of: BTreeMap<(i32, i64), usize> = BTreeMap::new();
    let mut said: Vec<String> = Vec::new();
    for state in 0..states.len() {
        let before = state.saturating_sub(1);
        let mut owner = Owner::open(&world.lake, &definition, 0).await;
        // The partition has seen the source change, unless this is where it starts.
        for (partition, pushed) in [(0, before), (1, before), (0, state), (1, before), (0, state)] {
            state_of.insert(owner.push_in(partition, &shapes[pushed], &states[pushed].1), pushed);
        }
        let commit = owner.commit().await;
        said.extend(commit.changes.iter().map(ToString::to_string));
        let schema = owner.bronze.table().unwrap().schema_id();
        // Once more, by one who only knows the table.
        let mut owner = Owner::open(&world.lake, &definition, 0).await;
        for (partition, pushed) in [(0, state), (1, before)] {
            state_of.insert(owner.push_in(partition, &shapes[pushed], &states[pushed].1), pushed);
        }
        let commit = owner.commit().await;
        assert_eq!(commit.changes, [], "{name}");
        assert_eq!(owner.bronze.table().unwrap().schema_id(), schema, "{name}");
    }
    let found = world.read(name).await;
    assert!(found.rows.keys().eq(state_of.keys()), "{name}: every row is there once");
    let mut shown: Vec<Option<&String>> = vec![None; states.len()];
    for (place, row) in &found.rows {
        let shown = &mut shown[state_of[place]];
        assert_eq!(*shown.get_or_insert(row), row, "{name}: rows of one state are the same");
    }
    let mut text = format!("{}\n", found.columns);
    for row in shown.into_iter().flatten() {
        let _ = writeln!(text, "           {row}");
    }
    if !said.is_empty() {
        let _ = writeln!(text, "           ({})", said.join("; "));
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ddl_changes() {
    let world = World::new().await;
    let modes = [("evolve", Evolution::Evolve), ("strict", Evolution::Strict), ("json", Evolution::Json)];
    let mut text = String::new();
    let cases = ddl();
    for (number, Case { title, states }) in cases.iter().enumerate() {
        let _ = writeln!(text, "{}. {title}", number + 1);
        for (mode, evolution) in modes {
            let cell = cell(&world, &format!("{mode}_{number}"), evolution, states).await;
            let _ = write!(text, "  {mode:6}  {cell}");
        }
        text.push('\n');
    }
    assert!(cases.len() >= 40);
    insta::assert_snapshot!(text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_waits_for_its_first_image_to_say_what_its_rows_are() {
    let world = World::new().await;
    let waiting = definition("waiting", Evolution::Evolve);
    let mut owner = Owner::open(&world.lake, &waiting, 0).await;
    assert!(owner.bronze.table().is_none());
    owner.push_rejected();
    owner.commit().await;
    assert!(owner.bronze.table().unwrap().schema().unwrap().field_with_name("after").is_err());
    let mut owner = Owner::open(&world.lake, &waiting, 0).await;
    owner.push_rejected();
    owner.push(Some(&shape("id int")), r#"{"id":1}"#);
    assert_eq!(owner.commit().await.changes, []);
    let found = world.read("waiting").await;
    assert_eq!(found.columns, "id int");
    assert_eq!(found.rows.values().collect::<Vec<_>>(), ["rejected: no JSON", "rejected: no JSON", "1"]);
    // Without columns of its own, a record says nothing that a table of columns could be read by.
    owner.push(None, r#"{"id":2}"#);
    owner.commit().await;
    insta::assert_snapshot!(world.read("waiting").await.rows[&(0, 3)], @"rejected: its columns are not known: the record does not say them, and none are declared");

    // Without any columns it is text, and stays so.
    let text = definition("text", Evolution::Evolve);
    let mut owner = Owner::open(&world.lake, &text, 0).await;
    owner.push(None, r#"{"id":1}"#);
    owner.push(Some(&shape("id int")), r#"{"id":2}"#);
    owner.commit().await;
    let mut owner = Owner::open(&world.lake, &text, 0).await;
    owner.push(Some(&shape("id int")), r#"{"id":3}"#);
    owner.commit().await;
    let found = world.read("text").await;
    assert_eq!(found.rows.values().collect::<Vec<_>>(), [r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_and_columns_do_not_become_each_other() {
    let world = World::new().await;
    let mut owner = Owner::open(&world.lake, &definition("text", Evolution::Json), 0).await;
    owner.push(Some(&shape("id int")), r#"{"id":1}"#);
    owner.commit().await;
    let mut owner = Owner::open(&world.lake, &definition("columns", Evolution::Evolve), 0).await;
    owner.push(Some(&shape("id int")), r#"{"id":1}"#);
    owner.commit().await;
    let declared = BronzeDefinition { shape: Some(shape("id int")), ..definition("text", Evolution::Evolve) };
    let refused = |error: bronze::Error| format!("{error}\n{}", error.hint().unwrap());
    insta::assert_snapshot!(refused(BronzeTable::open(&world.lake, &declared).await.unwrap_err()), @"
    bronze table `bronze.text` keeps its rows as JSON text, and columns are declared for it
    text does not become columns: take `columns` out of `catalog/text.yaml`, or drop the table and read its topic again
    ");
    let json = definition("columns", Evolution::Json);
    insta::assert_snapshot!(refused(BronzeTable::open(&world.lake, &json).await.unwrap_err()), @"
    bronze table `bronze.columns` keeps its rows in columns, and `evolution: json` asks for text
    columns do not become text: set `evolution` to `evolve` or `strict`, or drop the table and read its topic again
    ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_field_that_nobody_declared_is_kept_or_rejects_its_row() {
    let world = World::new().await;
    let (plain, odd) = (r#"{"id":1}"#, r#"{"id":2,"colour":{"r":1},"note":"__debezium_unavailable_value"}"#);
    let mut text = String::new();
    for (name, evolution) in [("kept", Evolution::Evolve), ("refused", Evolution::Strict)] {
        let declared = BronzeDefinition { shape: Some(shape("id int")), ..definition(name, evolution) };
        let mut owner = Owner::open(&world.lake, &declared, 0).await;
        for row in [plain, odd, plain] {
            owner.push(None, row);
        }
        let commit = owner.commit().await;
        // Known by now, it is declared, and goes into its column from then on.
        let shape = Some(shape("id int, colour string, note string"));
        let mut owner = Owner::open(&world.lake, &BronzeDefinition { shape, ..declared }, 0).await;
        owner.push(None, r#"{"id":3,"colour":"red","note":"n"}"#);
        owner.commit().await;
        let found = world.read(name).await;
        let _ = writeln!(text, "{} ({} unexpected)", found.columns, commit.counts.unexpected);
        for row in found.rows.values() {
            let _ = writeln!(text, "  {row}");
        }
    }
    insta::assert_snapshot!(text, @r#"
    id int, _unexpected string, colour string, note string (1 unexpected)
      1 | - | - | -
      2 | {"colour":{"r":1},"note":null} | - | -
      1 | - | - | -
      3 | - | red | n
    id int, colour string, note string (0 unexpected)
      1 | - | -
      rejected: `after.colour` is not among the declared columns
      1 | - | -
      3 | red | n
    "#);
    let unavailable = world.query("kept", "array_to_string(_unavailable, ',') AS names").await;
    assert_eq!(unavailable.column(0).as_string::<i32>().iter().flatten().collect::<Vec<_>>(), ["note"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_told_with_the_commit_that_makes_them() {
    let world = World::new().await;
    let mut owner = Owner::open(&world.lake, &definition("told", Evolution::Evolve), 0).await;
    owner.push(Some(&shape("id int, qty int, status int")), r#"{"id":1,"qty":1,"status":1}"#);
    owner.commit().await;
    owner.push(Some(&shape("id int, qty long, status string, unitPrice double")), r#"{"id":2}"#);
    owner.push(Some(&shape("id int, qty long, unitPrice double")), r#"{"id":3}"#);
    let commit = owner.commit().await;
    let snapshots = owner.bronze.table().unwrap().snapshots();
    let said: Vec<&String> = snapshots.iter().filter_map(|row| row.summary.get(bronze::SCHEMA_CHANGES)).collect();
    assert_eq!((said.len(), commit.changes.len()), (1, 4));
    insta::assert_snapshot!(said[0], @"widened `qty` from int to long; added `status_v2` (string) beside `status` (int); added `unit_price` (double) for `unitPrice`; `status` is not sent any more");
    let docs = world.query("told", "after").await;
    let DataType::Struct(fields) = docs.schema().field(0).data_type().clone() else { panic!("no columns") };
    let doc = |name: &str| fields.find(name).unwrap().1.metadata()["doc"].clone();
    assert_eq!(
        (doc("status_v2"), doc("unit_price")),
        (r#"source column "status""#.into(), r#"source column "unitPrice""#.into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn owners_that_change_the_columns_at_once_lose_no_row_and_double_none() {
    let world = World::new().await;
    let first = shape("id int, s int, n int");
    let shapes = [
        ("id int, s string, n long", r#"{"id":7,"s":"__debezium_unavailable_value","n":5000000000}"#),
        ("id int, s boolean, n int, m double", r#"{"id":8,"s":true,"n":3,"m":0.5}"#),
        ("id string, s date, m double", r#"{"id":"nine","s":20089,"m":1.5}"#),
    ];
    for is_known in [true, false] {
        let name = if is_known { "known" } else { "new" };
        let definition = definition(name, Evolution::Evolve);
        if is_known {
            let mut owner = Owner::open(&world.lake, &definition, 9).await;
            owner.push(Some(&first), r#"{"id":1,"s":2,"n":3}"#);
            owner.commit().await;
        }
        let mut owners = Vec::new();
        for partition in 0..3 {
            owners.push(Owner::open(&world.lake, &definition, partition).await);
        }
        // Each has the table as it was before the others changed it.
        for round in 0..3 {
            for (owner, (columns, row)) in owners.iter_mut().zip(shapes) {
                owner.push(Some(&first), r#"{"id":4,"s":5,"n":6}"#);
                owner.push(Some(&shape(columns)), row);
            }
            let outcomes = futures::future::join_all(owners.iter_mut().map(Owner::try_commit)).await;
            assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Committed(_))), "{round}: {outcomes:?}");
        }
        let found = world.read(name).await;
        assert_eq!(found.rows.len(), 3 * 3 * 2 + usize::from(is_known));
        // Which owner was first decides what the columns are called; what is in them does not depend on it.
        let names: Vec<&str> = found.columns.split(", ").collect();
        assert_eq!(names.len(), 8, "{names:?}");
        let type_of = |name: &str| names.iter().find_map(|column| column.strip_prefix(&format!("{name} "))).unwrap();
        assert_eq!((type_of("id"), type_of("s"), type_of("n"), type_of("m")), ("int", "int", "long", "double"));
        let versions: Vec<&str> = ["s_v2", "s_v3", "s_v4"].map(type_of).to_vec();
        for ((partition, offset), text) in found.rows.iter().filter(|((partition, _), _)| *partition < 3) {
            let expected = if offset % 2 == 0 {
                "4 5 6"
            } else {
                ["7 5000000000", "8 true 3 0.5", "nine 2025-01-01 1.5"][*partition as usize]
            };
            let sorted = |values: &mut Vec<&str>| values.sort_unstable();
            let mut values: Vec<&str> = text.split(" | ").filter(|value| *value != "-").collect();
            let mut wanted: Vec<&str> = expected.split(' ').collect();
            sorted(&mut values);
            sorted(&mut wanted);
            assert_eq!(values, wanted, "{text} in {}", found.columns);
        }
        let unavailable = world.query(name, "array_to_string(_unavailable, ',') AS names").await;
        let text_version = ["s_v2", "s_v3", "s_v4"][versions.iter().position(|found| *found == "string").unwrap()];
        let told: Vec<&str> = unavailable.column(0).as_string::<i32>().iter().flatten().collect();
        assert_eq!(told, [text_version; 3]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_whose_rows_cannot_be_kept_as_they_were_read_reads_them_again() {
    let world = World::new().await;
    let strict = definition("strict", Evolution::Strict);
    let evolve = definition("form", Evolution::Evolve);
    for (definition, ours, theirs) in [
        (&strict, Some(shape("id int, a int")), Some(shape("id int, b int"))),
        (&evolve, None, Some(shape("id int"))),
        (&evolve, Some(shape("id int")), None),
    ] {
        let mut one = Owner::open(&world.lake, definition, 0).await;
        let mut two = Owner::open(&world.lake, definition, 1).await;
        one.push(ours.as_ref(), r#"{"id":1}"#);
        one.commit().await;
        two.push(theirs.as_ref(), r#"{"id":1}"#);
        assert!(matches!(two.try_commit().await, Outcome::Behind(offsets) if offsets.next(TOPIC, 1).is_none()));
        let mut two = Owner::open(&world.lake, definition, 1).await;
        two.push(theirs.as_ref(), r#"{"id":1}"#);
        two.commit().await;
        world.lake.drop_table(&definition.name, true).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_made_anew_is_read_from_its_own_start() {
    let world = World::new().await;
    let definition = definition("anew", Evolution::Evolve);
    let mut owner = Owner::open(&world.lake, &definition, 0).await;
    owner.push(Some(&shape("id int")), r#"{"id":1}"#);
    owner.commit().await;
    world.lake.drop_table(&definition.name, false).await.unwrap();
    let mut other = Owner::open(&world.lake, &definition, 1).await;
    other.push(Some(&shape("id int")), r#"{"id":1}"#);
    other.commit().await;
    // What comes next in the old table would leave a gap in the new one.
    owner.push(Some(&shape("id int, note string")), r#"{"id":2,"note":"n"}"#);
    assert!(matches!(owner.try_commit().await, Outcome::Behind(offsets) if offsets.next(TOPIC, 0).is_none()));
    assert_eq!(world.read("anew").await.rows.len(), 1);
}
