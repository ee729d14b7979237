//! What we write, other engines read: every row, and every row a condition asks for.
//!
//! Each table is kept beside the rows that must be in it. Our engine, pyiceberg, DuckDB, ClickHouse and Spark have to
//! answer exactly those. Conditions are there because readers prune by what our metadata says of files: a wrong bound or
//! partition value hides rows from a condition that full reads still show.

use std::process::{Command, Stdio};

use arrow::datatypes::{DataType, Field, Fields, Schema};
use icestream::table::{At, Expiry, SchemaChange};
use serde_json::{Value, json};

use crate::canonical::{columns, json_rows, select, sorted};
use crate::services::{Services, glue_world, rest_world, services};
use crate::subject::{Subject, column, columns_of};
use crate::support::*;

const ENGINES: [&str; 4] = ["pyiceberg", "duckdb", "chdb", "spark"];

/// A table, conditions with the ids they must find, and what an engine cannot do with it.
struct Case {
    subject: Subject,
    conditions: Vec<Condition>,
    unable: Vec<(&'static str, Gap)>,
}

struct Condition {
    text: String,
    ids: Vec<i64>,
    /// Spark and ClickHouse take long for each question, and get only the telling ones.
    is_telling: bool,
}

#[derive(Clone, Copy)]
enum Gap {
    /// It is not asked at all.
    Table,
    /// It is not asked about this column.
    Column(&'static str),
    /// It is not asked with conditions on this column.
    ConditionsOn(&'static str),
}

impl Case {
    fn new(subject: Subject) -> Self {
        Case { subject, conditions: Vec::new(), unable: Vec::new() }
    }

    fn with(mut self, condition: &str, ids: impl IntoIterator<Item = i64>) -> Self {
        self.conditions.push(Condition {
            text: condition.to_string(),
            ids: ids.into_iter().collect(),
            is_telling: true,
        });
        self
    }

    fn also(mut self, condition: &str, ids: impl IntoIterator<Item = i64>) -> Self {
        self.conditions.push(Condition {
            text: condition.to_string(),
            ids: ids.into_iter().collect(),
            is_telling: false,
        });
        self
    }

    /// Only the quick ones are asked with conditions.
    fn quickly(mut self) -> Self {
        self.conditions.iter_mut().for_each(|condition| condition.is_telling = false);
        self
    }

    fn unable(mut self, engine: &'static str, gap: Gap) -> Self {
        self.unable.push((engine, gap));
        self
    }

    fn gaps(&self, engine: &str) -> impl Iterator<Item = Gap> {
        self.unable.iter().filter(move |(unable, _)| *unable == engine).map(|(_, gap)| *gap)
    }

    /// What to ask an engine, and what it has to answer.
    fn questions(&self, engine: &str) -> Vec<Question> {
        if self.gaps(engine).any(|gap| matches!(gap, Gap::Table)) {
            return Vec::new();
        }
        let left_out: Vec<&str> = self
            .gaps(engine)
            .filter_map(|gap| match gap {
                Gap::Column(name) => Some(name),
                _ => None,
            })
            .collect();
        let all = columns(&self.subject.table);
        let kept: Vec<usize> = (0..all.len()).filter(|index| !left_out.contains(&all[*index].as_str())).collect();
        let question = |condition: Option<&str>, ids: Option<&Vec<i64>>| {
            let expected = self.subject.expected_of(|id| ids.is_none_or(|ids| ids.contains(&id)));
            let project = |row: Value| kept.iter().map(|index| row[*index].clone()).collect::<Value>();
            Question {
                name: format!(
                    "{} at {}{}",
                    self.subject.table.name(),
                    self.subject.table.location().split(':').next().unwrap_or_default(),
                    condition.map(|condition| format!(" where {condition}")).unwrap_or_default()
                ),
                location: self.subject.table.metadata_location().to_string(),
                columns: kept.iter().map(|index| all[*index].clone()).collect(),
                condition: condition.map(str::to_string),
                expected: sorted(expected.into_iter().map(project).collect()),
            }
        };
        let whole = std::iter::once(question(None, None));
        let is_slow = matches!(engine, "spark" | "chdb");
        let knows = |condition: &Condition| {
            let speaks_of = |name: &str| condition.text.split(' ').any(|word| word == name);
            !self.gaps(engine).any(|gap| matches!(gap, Gap::ConditionsOn(name) if speaks_of(name)))
        };
        let conditions =
            self.conditions.iter().filter(|condition| knows(condition) && (condition.is_telling || !is_slow));
        whole.chain(conditions.map(|condition| question(Some(&condition.text), Some(&condition.ids)))).collect()
    }
}

async fn wrong_answers_of_our_own(cases: &[Case]) -> Vec<String> {
    let mut wrong = Vec::new();
    for case in cases {
        for question in case.questions("icestream") {
            let found = select(&case.subject.table, question.condition.as_deref()).await;
            wrong.extend(question.verdict("icestream", &found));
        }
    }
    wrong
}

struct Question {
    name: String,
    location: String,
    columns: Vec<String>,
    condition: Option<String>,
    expected: Vec<Value>,
}

impl Question {
    fn verdict(&self, engine: &str, found: &[Value]) -> Option<String> {
        if found == self.expected {
            return None;
        }
        let beside = |left: &[Value], right: &[Value]| {
            let rows = left.iter().filter(|row| !right.contains(row)).take(3);
            rows.map(|row| format!("\n    {row}")).collect::<String>()
        };
        Some(format!(
            "{engine}: {}: {} rows in place of {}\n  unexpected:{}\n  missing:{}",
            self.name,
            found.len(),
            self.expected.len(),
            beside(found, &self.expected),
            beside(&self.expected, found)
        ))
    }
}

/// Asks an engine everything in one process; starting one takes longer than asking.
fn wrong_answers(engine: &str, services: &Services, cases: &[Case]) -> Vec<String> {
    let started = std::time::Instant::now();
    let questions: Vec<Question> = cases.iter().flat_map(|case| case.questions(engine)).collect();
    let tables: Vec<Value> = questions
        .iter()
        .map(|question| {
            json!({
                "name": question.name,
                "metadata_location": question.location,
                "columns": question.columns,
                "filter": question.condition,
            })
        })
        .collect();
    let request = json!({
        "s3": {
            "endpoint": services.s3_endpoint,
            "access_key": services.access_key,
            "secret_key": services.secret_key,
            "region": services.region,
        },
        "tables": tables,
    });
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tables.json");
    std::fs::write(&file, request.to_string()).unwrap();
    let output = Command::new(&services.python)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/readers/read.py"))
        .args(["--engine", engine, "--tables"])
        .arg(&file)
        // ClickHouse reads only what is below its working folder.
        .current_dir("/")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    println!("{engine}: {} questions, done at {:?}", questions.len(), started.elapsed());
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        panic!("{engine} did not answer ({}):\n{}", output.status, String::from_utf8_lossy(&output.stderr))
    });
    let answers = answer["tables"].as_array().unwrap();
    assert_eq!(answers.len(), questions.len());
    questions
        .iter()
        .zip(answers)
        .filter_map(|(question, answer)| match answer["rows"].as_array() {
            Some(rows) => question.verdict(engine, &sorted(rows.clone())),
            None => Some(format!("{engine}: {}: {}", question.name, answer["error"])),
        })
        .collect()
}

const BY_FOUR: &[&str] = &["bucket(4, id)", "day(moment)", "truncate(3, code)", "country"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_engines_read_what_we_wrote() {
    let built = [tokio::spawn(local_cases()), tokio::spawn(glue_cases()), tokio::spawn(rest_cases())];
    let (mut cases, mut worlds) = (Vec::new(), Vec::new());
    for built in built {
        let (world, of_world) = built.await.unwrap();
        worlds.push(world);
        cases.extend(of_world);
    }
    let services = services();
    let runtime = tokio::runtime::Handle::current();
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let (services, cases) = (&services, &cases);
        let asked = ENGINES.map(|engine| scope.spawn(move || wrong_answers(engine, services, cases)));
        let own = scope.spawn(move || runtime.block_on(wrong_answers_of_our_own(cases)));
        let foreign = asked.into_iter().flat_map(|asked| asked.join().unwrap());
        foreign.chain(own.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{} wrong answers\n{}", wrong.len(), wrong.join("\n"));
}

async fn local_cases() -> (World, Vec<Case>) {
    let world = sqlite_world().await;
    let mut cases = vec![
        flat_types(&world).await,
        extremes(&world).await,
        nested(&world).await,
        nested_nulls(&world).await,
        long_texts(&world).await,
        deleted(&world, "file").await,
        deleted(&world, "partition").await,
        emptied(&world).await,
        overwritten(&world).await,
        rewritten(&world).await,
        replaced(&world).await,
        evolved(&world).await,
        renamed(&world).await,
        schema_alone(&world).await,
        merged(&world).await,
        expired(&world).await,
    ];
    for (name, by) in [
        ("by_four", BY_FOUR),
        ("by_value", &["country", "moment", "price", "qty"]),
        ("by_other_value", &["code", "local", "day", "big"]),
        ("by_flag", &["flag", "raw", "bucket(3, country)", "year(moment)"]),
        ("by_bucket", &["bucket(3, moment)", "bucket(3, local)", "bucket(3, day)", "bucket(3, price)"]),
        (
            "by_other_bucket",
            &["bucket(3, qty)", "bucket(3, big)", "bucket(3, raw)", "month(moment)", "truncate(3, code)"],
        ),
        ("by_day", &["day(moment)", "hour(local)", "year(day)", "truncate(50, price)", "truncate(10, qty)"]),
        ("by_hour", &["hour(moment)", "day(local)", "month(day)", "truncate(10, big)"]),
        ("by_day_of_day", &["day(day)"]),
    ] {
        cases.push(partitioned(&world, name, by).await);
    }
    (world, cases)
}

async fn glue_cases() -> (World, Vec<Case>) {
    let world = glue_world().await;
    let mut cases = vec![flat_types(&world).await, nested(&world).await, schema_alone(&world).await];
    cases.extend(common_cases(&world).await);
    (world, cases.into_iter().map(Case::quickly).collect())
}

async fn rest_cases() -> (World, Vec<Case>) {
    let world = rest_world().await;
    let mut cases = vec![renamed(&world).await, deleted(&world, "file").await];
    cases.extend(common_cases(&world).await);
    (world, cases.into_iter().map(Case::quickly).collect())
}

async fn common_cases(world: &World) -> [Case; 4] {
    let partitioned = partitioned(world, "by_four", BY_FOUR).await;
    [evolved(world).await, deleted(world, "partition").await, rewritten(world).await, partitioned]
}

async fn flat_types(world: &World) -> Case {
    let columns = columns_of(&[
        ("id", "long"),
        ("flag", "boolean"),
        ("small", "int"),
        ("big", "long"),
        ("ratio", "float"),
        ("exact", "double"),
        ("price", "decimal(9,2)"),
        ("amount", "decimal(18,4)"),
        ("huge", "decimal(38,9)"),
        ("day", "date"),
        ("local", "timestamp"),
        ("moment", "timestamptz"),
        ("note", "string"),
        ("raw", "binary"),
    ]);
    let mut subject = Subject::new(world, "flat_types", columns, &[], &[]).await;
    subject
        .append(json!([
            {
                "id": 1, "flag": true, "small": 7, "big": 70_000_000_000i64, "ratio": "1.5", "exact": "2.25",
                "price": "12.34", "amount": "1234.5678", "huge": "1.000000001", "day": "2024-02-29",
                "local": "2024-02-29T12:34:56.789012", "moment": "2024-02-29T12:34:56.789012Z", "note": "plain", "raw": "00ff10",
            },
            {
                "id": 2, "flag": false, "small": i32::MIN, "big": i64::MIN + 1, "ratio": "-inf", "exact": "inf",
                "price": "-9999999.99", "amount": "-99999999999999.9999",
                "huge": "-99999999999999999999999999999.999999999", "day": "1969-12-31",
                "local": "1969-12-31T23:59:59.999999", "moment": "1969-12-31T23:59:59.999999Z", "note": "", "raw": "",
            },
            {
                "id": 3, "flag": true, "small": i32::MAX, "big": i64::MAX, "ratio": "nan", "exact": "nan",
                "price": "9999999.99", "amount": "0.0001", "huge": "99999999999999999999999999999.999999999",
                "day": "1912-06-23", "local": "1912-06-23T00:00:00.000001", "moment": "1912-06-23T00:00:00.000001Z",
                "note": "äöü 日本語 🧊\u{10FFFF}\u{0301}\t\n\"'\\", "raw": "ff",
            },
            {"id": 4},
            {
                "id": 5, "flag": false, "small": 0, "big": 0, "ratio": "0.10000000149011612", "exact": "1e-300",
                "price": "-0.05", "amount": "0.0000", "huge": "0.000000000", "day": "1970-01-01",
                "local": "1970-01-01T00:00:00.000000", "moment": "2100-12-31T23:59:59.999999Z", "note": "null", "raw": "00",
            },
        ]))
        .await;
    // A file of nulls, and one whose floats are all NaN.
    subject.append(json!([{"id": 6}, {"id": 7}])).await;
    subject.append(json!([{"id": 8, "ratio": "nan", "exact": "nan"}])).await;
    Case::new(subject)
        .with("small = 7", [1])
        .with("big < 0", [2])
        .with("price < -1", [2])
        .with("amount > 0.0000", [1, 3])
        .with("flag = true", [1, 3])
        .with("day < '1970-01-01'", [2, 3])
        .with("exact <= 1.0 and id <> 3", [5])
        .with("note = ''", [2])
        .with("note is null", [4, 6, 7, 8])
        .with("price is not null", [1, 2, 3, 5])
}

/// Dates and times at the ends of the calendar, which ClickHouse does not have.
async fn extremes(world: &World) -> Case {
    let columns = columns_of(&[("id", "long"), ("day", "date"), ("local", "timestamp"), ("moment", "timestamptz")]);
    let mut subject = Subject::new(world, "extremes", columns, &[], &[]).await;
    subject
        .append(json!([
            {"id": 1, "day": "0001-01-01", "local": "0001-01-01T00:00:00.000000", "moment": "0001-01-01T00:00:00.000001Z"},
            {"id": 2, "day": "9999-12-31", "local": "9999-12-31T23:59:59.999999", "moment": "9999-12-31T23:59:59.999999Z"},
            {"id": 3, "day": "1582-10-10", "local": "1582-10-10T12:00:00.000000", "moment": "1582-10-10T12:00:00.000000Z"},
        ]))
        .await;
    let case = Case::new(subject).with("day <= '1582-10-10'", [1, 3]).unable("chdb", Gap::Table);
    // DataFusion compares instants with texts in nanoseconds, which end in the years 1677 and 2262.
    let case = case.unable("icestream", Gap::ConditionsOn("local")).unable("icestream", Gap::ConditionsOn("moment"));
    case.with("local < '1582-10-10T12:00:00.000000'", [1]).with("moment > '9999-01-01T00:00:00.000000+00:00'", [2])
}

fn nested_columns() -> Schema {
    let of = |fields: Vec<Field>| DataType::Struct(Fields::from(fields));
    let list = |data_type: DataType| DataType::List(Field::new("element", data_type, true).into());
    let place = of(vec![column("city", DataType::Utf8), column("zip", DataType::Int32)]);
    let line = of(vec![column("sku", DataType::Utf8), column("price", DataType::Decimal128(9, 2))]);
    Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        column("address", of(vec![column("street", DataType::Utf8), column("place", place)])),
        column("tags", list(DataType::Utf8)),
        column("numbers", list(DataType::Int64)),
        column("lines", list(line)),
    ])
}

async fn nested(world: &World) -> Case {
    let mut subject = Subject::new(world, "nested", nested_columns(), &["bucket(2, id)"], &[]).await;
    subject
        .append(json!([
            {
                "id": 1, "address": {"street": "Gasse 1", "place": {"city": "Wien", "zip": 1010}},
                "tags": ["a", "b", ""], "numbers": [1, 2, 3], "lines": [{"sku": "x", "price": "1.50"}, {"sku": "y", "price": "-2.00"}],
            },
            {
                "id": 2, "address": {"street": null, "place": {"city": "München", "zip": null}},
                "tags": [], "numbers": [], "lines": [],
            },
        ]))
        .await;
    subject
        .append(json!([{
            "id": 3, "address": {"street": "日本", "place": {"city": null, "zip": -1}},
            "tags": ["x", null], "numbers": [null], "lines": [{"sku": null, "price": null}],
        }]))
        .await;
    subject.delete(&[1]).await;
    Case::new(subject).with("id = 2", [2])
}

/// ClickHouse answers null structs and lists with empty ones.
async fn nested_nulls(world: &World) -> Case {
    let mut subject = Subject::new(world, "nested_nulls", nested_columns(), &[], &[]).await;
    subject
        .append(json!([
            {"id": 1, "address": null, "tags": null, "numbers": null, "lines": null},
            {"id": 2, "address": {"street": "a", "place": null}, "tags": [null], "numbers": [1], "lines": [null]},
            {"id": 3, "address": {"street": null, "place": {"city": null, "zip": null}}, "tags": ["a"], "numbers": null, "lines": []},
        ]))
        .await;
    // pyiceberg makes an empty list of structs of a null one.
    Case::new(subject).unable("chdb", Gap::Table).unable("pyiceberg", Gap::Column("lines"))
}

/// Texts whose bounds are cut: in Parquet's statistics at 64 bytes, in the metadata at 16 characters.
async fn long_texts(world: &World) -> Case {
    let small_groups = [("write.parquet.row-group-size-bytes", "6000"), ("write.parquet.page-row-limit", "8")];
    let columns = columns_of(&[("id", "long"), ("note", "string")]);
    let mut subject = Subject::new(world, "long_texts", columns, &[], &small_groups).await;
    let long = |end: &str| format!("{}{end}", "customer/eu-central/".repeat(5));
    // In one file: groups with cut statistics, groups with exact ones, and ends that cutting must not lose.
    let mut of: Vec<Value> = (0..300).map(|id| json!({"id": id, "note": long(&format!("{id:05}"))})).collect();
    of.extend((300..400).map(|id| json!({"id": id, "note": format!("short {id}")})));
    of.push(json!({"id": 400, "note": format!("{}z", "\u{10FFFF}".repeat(40))}));
    of.push(json!({"id": 401, "note": format!("{}z", "\u{D7FF}".repeat(40))}));
    of.push(json!({"id": 402, "note": format!("{}ü", "é".repeat(33))}));
    subject.append(Value::Array(of)).await;
    subject.append(json!([{"id": 500, "note": long("~")}, {"id": 501, "note": "customer/eu-cent"}])).await;
    subject.append(json!([{"id": 502, "note": format!("{}z", "\u{10FFFF}".repeat(40))}])).await;
    let is = |text: &str| format!("note = '{text}'");
    Case::new(subject)
        .with(&is(&long("00000")), [0])
        .with(&is(&long("00299")), [299])
        .with(&is(&long("~")), [500])
        .with(&is("customer/eu-cent"), [501])
        .with(&is("short 399"), [399])
        .with(&is(&format!("{}z", "\u{10FFFF}".repeat(40))), [400, 502])
        .with(&is(&format!("{}z", "\u{D7FF}".repeat(40))), [401])
        .with(&format!("note >= '{}'", long("00298")), (298..403).chain([500, 502]))
        .with(&format!("note > '{}'", "é".repeat(33)), [400, 401, 402, 502])
}

fn wide_columns() -> Schema {
    columns_of(&[
        ("id", "long"),
        ("country", "string"),
        ("code", "string"),
        ("moment", "timestamptz"),
        ("local", "timestamp"),
        ("day", "date"),
        ("price", "decimal(9,2)"),
        ("qty", "int"),
        ("big", "long"),
        ("flag", "boolean"),
        ("raw", "binary"),
    ])
}

fn wide_row(id: i64, [country, code, time, price, raw]: [&str; 5], qty: i64, flag: bool) -> Value {
    json!({
        "id": id, "country": country, "code": code, "moment": format!("{time}Z"), "local": time, "day": time[..10],
        "price": price, "qty": qty, "big": qty * 1_000_000_000, "flag": flag, "raw": raw,
    })
}

/// The same rows under any partitioning, nulls in every source column among them.
async fn partitioned(world: &World, name: &str, by: &[&str]) -> Case {
    let mut subject = Subject::new(world, name, wide_columns(), by, &[]).await;
    subject
        .append(json!([
            wide_row(1, ["de", "abcdef", "2024-02-29T12:34:56.789012", "12.34", "00ff"], 7, true),
            wide_row(2, ["fr", "abczzz", "2024-03-01T00:00:00.000000", "12.40", "00fe"], 15, false),
            wide_row(3, ["a/b=c %+", "äöüßx", "1969-12-31T23:59:59.999999", "-1.25", "80"], -15, false),
            {"id": 4},
            wide_row(5, ["", "", "1970-01-01T00:00:00.000000", "0.00", ""], 0, true),
        ]))
        .await;
    subject
        .append(json!([
            wide_row(6, ["日本", "日本語テキスト", "1900-01-01T00:00:00.000001", "-9999999.99", "ffff"], -2_000_000_000, true),
            wide_row(7, ["null", "nul", "2024-02-29T23:59:59.999999", "9999999.99", "00"], 2_000_000_000, false),
            wide_row(8, ["__HIVE_DEFAULT_PARTITION__", "..", "2099-12-31T23:00:00.000000", "0.49", "2e2e"], 9, true),
            {"id": 9},
            wide_row(10, ["de", "abc", "1969-12-31T00:00:00.000000", "-0.01", "00ff"], -1, true),
            wide_row(11, ["x/./y//z", &"x".repeat(300), "1969-12-30T23:59:59.500000", "-0.50", "00ff"], -10, true),
        ]))
        .await;
    subject.delete(&[2, 9]).await;
    let conditions: [(&str, &str, &[i64]); 31] = [
        ("country", "country = 'a/b=c %+'", &[3]),
        ("country", "country = 'de'", &[1, 10]),
        ("country", "country is null", &[4]),
        ("country", "country > 'dd'", &[1, 6, 7, 10, 11]),
        ("country", "country = 'x/./y//z'", &[11]),
        ("code", "code = 'äöüßx'", &[3]),
        ("code", "code >= 'abcd'", &[1, 3, 6, 7, 11]),
        ("code", "code is null", &[4]),
        ("code", "code = ''", &[5]),
        ("moment", "moment = '1969-12-30T23:59:59.500000+00:00'", &[11]),
        ("moment", "moment = '1969-12-31T23:59:59.999999+00:00'", &[3]),
        ("moment", "moment < '1970-01-01T00:00:00.000000+00:00'", &[3, 6, 10, 11]),
        ("moment", "moment >= '2024-02-29T23:59:59.999999+00:00'", &[7, 8]),
        ("local", "local = '1969-12-30T23:59:59.500000'", &[11]),
        ("local", "local = '1969-12-31T23:59:59.999999'", &[3]),
        ("local", "local < '1970-01-01T00:00:00.000000'", &[3, 6, 10, 11]),
        ("day", "day = '1969-12-31'", &[3, 10]),
        ("day", "day < '1900-01-02'", &[6]),
        ("day", "day is null", &[4]),
        ("price", "price = -1.25", &[3]),
        ("price", "price > 9.99", &[1, 7]),
        ("price", "price <= -0.01", &[3, 6, 10, 11]),
        ("qty", "qty = -15", &[3]),
        ("qty", "qty >= 9", &[7, 8]),
        ("qty", "qty < 0", &[3, 6, 10, 11]),
        ("big", "big = -15000000000", &[3]),
        ("big", "big >= 9000000000", &[7, 8]),
        ("big", "big < 0", &[3, 6, 10, 11]),
        ("flag", "flag = true", &[1, 5, 6, 8, 10, 11]),
        ("flag", "flag is null", &[4]),
        ("raw", "raw is null", &[4]),
    ];
    let mut case = Case::new(subject);
    let mut sources: Vec<&str> =
        by.iter().map(|field| field.trim_end_matches(')').rsplit(['(', ' ']).next().unwrap()).collect();
    for (source, condition, ids) in conditions {
        if !by.iter().any(|field| field.contains(source)) {
            continue;
        }
        // The first of each column is the telling one.
        let known = sources.len();
        sources.retain(|name| *name != source);
        let ids = ids.iter().copied();
        case = if sources.len() < known { case.with(condition, ids) } else { case.also(condition, ids) };
    }
    // DuckDB and ClickHouse round calendar units before 1970 up, and DuckDB truncates negative decimals to huge ones.
    if by.iter().any(|field| field.starts_with("day(") || field.starts_with("month(")) {
        case = case.unable("duckdb", Gap::ConditionsOn("moment")).unable("duckdb", Gap::ConditionsOn("local"));
    }
    if by.contains(&"truncate(50, price)") {
        case = case.unable("duckdb", Gap::ConditionsOn("price"));
    }
    let of_time = ["moment", "local", "day"].map(Gap::ConditionsOn);
    of_time.into_iter().fold(case, |case, gap| case.unable("chdb", gap))
}

async fn deleted(world: &World, granularity: &str) -> Case {
    let set = [("write.delete.granularity", granularity), ("write.parquet.row-group-size-bytes", "2000")];
    let columns = columns_of(&[("id", "long"), ("qty", "int"), ("note", "string")]);
    let name = format!("deleted_by_{granularity}");
    let mut subject = Subject::new(world, &name, columns, &["bucket(2, id)"], &set).await;
    for batch in 0..3i64 {
        let of =
            (batch * 100..batch * 100 + 100).map(|id| json!({"id": id, "qty": batch, "note": format!("row {id}")}));
        subject.append(of.collect()).await;
    }
    // One row, a run, the first and last, all of one file's, and more beside what is gone already.
    subject.delete(&[7]).await;
    subject.delete(&(20..60).collect::<Vec<_>>()).await;
    subject.delete(&[0, 99, 100, 199, 8]).await;
    subject.update(&[10, 11, 110], |row| row["qty"] = json!(-1)).await;
    subject.update(&[10, 210], |row| row["note"] = json!("again")).await;
    let first_bucket = subject.table.files().await.unwrap()[0].partition.clone();
    subject.append(json!([{"id": 300, "qty": 9, "note": first_bucket}])).await;
    Case::new(subject)
        .with("qty = -1", [10, 11, 110])
        .with("note = 'again'", [10, 210])
        .with("id >= 298", [298, 299, 300])
}

async fn emptied(world: &World) -> Case {
    let mut subject = Subject::new(world, "emptied", columns_of(&[("id", "long"), ("qty", "int")]), &[], &[]).await;
    subject.append(json!([{"id": 1}, {"id": 2}])).await;
    subject.delete(&[1, 2]).await;
    Case::new(subject)
}

async fn overwritten(world: &World) -> Case {
    let columns = columns_of(&[("id", "long"), ("qty", "int")]);
    let mut subject = Subject::new(world, "overwritten", columns, &["bucket(2, id)"], &[]).await;
    subject.append((0..20).map(|id| json!({"id": id, "qty": 1})).collect()).await;
    subject.append((20..40).map(|id| json!({"id": id, "qty": 1})).collect()).await;
    subject.delete(&[3, 4, 23]).await;
    let view = subject.table.view(At::Head).unwrap();
    let doomed = vec![view.files(None).await.unwrap().remove(0)];
    let live = live_rows(&subject.table, At::Head).await;
    let ids: Vec<i64> = live.iter().filter(|(file, ..)| file.path == doomed[0].path).map(|(.., id, _)| *id).collect();
    let rows = subject.changed(&ids, |row| row["qty"] = json!(2));
    let added = subject.write(&rows).await;
    subject.table = subject.table.change().overwrite(&view, doomed, added).commit().await.unwrap().table;
    subject.rows.retain(|id, _| !ids.contains(id));
    subject.expect(&rows);
    Case::new(subject).with("qty = 2", ids)
}

/// Compacted between deletes: an old delete must not reach the new file, and a new one must.
async fn rewritten(world: &World) -> Case {
    let set = [("write.delete.granularity", "partition")];
    let columns = columns_of(&[("id", "long"), ("qty", "int")]);
    let mut subject = Subject::new(world, "rewritten", columns, &["bucket(2, id)"], &set).await;
    for batch in 0..4i64 {
        subject.append((batch * 10..batch * 10 + 10).map(|id| json!({"id": id, "qty": 1})).collect()).await;
        subject.delete(&[batch * 10 + 3, batch * 10 + 4]).await;
    }
    let view = subject.table.view(At::Head).unwrap();
    let old: Vec<_> = view.files(None).await.unwrap().into_iter().take(3).collect();
    let live = live_rows(&subject.table, At::Head).await;
    let of_old = live.iter().filter(|(file, ..)| old.iter().any(|old| old.path == file.path));
    let rows = subject.changed(&of_old.map(|(.., id, _)| *id).collect::<Vec<_>>(), |_| {});
    let added = subject.write(&rows).await;
    // Rows that come in between are younger than the rewrite.
    let table = subject.table.clone();
    subject.append(json!([{"id": 100, "qty": 5}, {"id": 101, "qty": 5}])).await;
    subject.table = table.change().rewrite(&view, old, added).commit().await.unwrap().table;
    subject.delete(&[5, 100]).await;
    subject.append(json!([{"id": 102, "qty": 5}])).await;
    Case::new(subject).with("qty = 5", [101, 102])
}

async fn replaced(world: &World) -> Case {
    let columns = columns_of(&[("id", "long"), ("qty", "int")]);
    let mut subject = Subject::new(world, "replaced", columns, &["bucket(2, id)"], &[]).await;
    subject.append((0..20).map(|id| json!({"id": id, "qty": 1})).collect()).await;
    subject.delete(&[3]).await;
    let rows = json_rows(json!([{"id": 1, "qty": 10}, {"id": 50, "qty": 20}]));
    let added = subject.write(&rows).await;
    subject.table = subject.table.change().replace_all(added).commit().await.unwrap().table;
    subject.rows.clear();
    subject.expect(&rows);
    Case::new(subject).with("qty >= 10", [1, 50])
}

/// Widened columns, with files and bounds of each generation.
async fn evolved(world: &World) -> Case {
    let of = |fields: Vec<Field>| DataType::Struct(Fields::from(fields));
    let mut fields: Vec<Field> = columns_of(&[
        ("id", "long"),
        ("qty", "int"),
        ("ratio", "float"),
        ("price", "decimal(9,2)"),
        ("amount", "decimal(18,2)"),
    ])
    .fields()
    .iter()
    .map(|field| field.as_ref().clone())
    .collect();
    fields.push(Field::new("must", DataType::Int32, false));
    fields.push(column("after", of(vec![column("count", DataType::Int32)])));
    let set = [("commit.manifest.min-count-to-merge", "3")];
    let mut subject = Subject::new(world, "evolved", Schema::new(fields), &["bucket(2, id)"], &set).await;
    subject
        .append(json!([
            {"id": 1, "qty": 10, "ratio": "0.10000000149011612", "price": "5.00", "amount": "-5.00", "must": 1, "after": {"count": 1}},
            {"id": 2, "qty": 20, "ratio": "0.5", "price": "-5.00", "amount": "1.00", "must": 1, "after": {"count": -2}},
            {"id": 3, "ratio": "nan", "must": 1, "after": {"count": null}},
            {"id": 4, "qty": -30, "ratio": "-2.5", "price": "9999999.99", "must": 2, "after": {"count": 4}},
        ]))
        .await;
    subject
        .append(json!([{"id": 5, "qty": 13, "ratio": "0.25", "price": "0.01", "must": 3, "after": {"count": 5}}]))
        .await;
    subject.delete(&[4]).await;
    let change = SchemaChange::new()
        .promote("qty", DataType::Int64)
        .promote("ratio", DataType::Float64)
        .promote("price", DataType::Decimal128(12, 2))
        .promote("amount", DataType::Decimal128(38, 2))
        .make_optional("must")
        .promote("after.count", DataType::Int64)
        .add(Some("after"), column("note", DataType::Utf8))
        .add(None, column("code", DataType::Utf8));
    subject.evolve(change).await;
    for row in subject.rows.values_mut() {
        row["after"]["note"] = Value::Null;
    }
    subject
        .append(json!([
            {
                "id": 6, "qty": 5_000_000_000i64, "ratio": "0.1", "price": "9999999999.99",
                "amount": "999999999999999999999999999999999999.99", "code": "c", "after": {"count": 6_000_000_000i64, "note": "n"},
            },
            {"id": 7, "qty": 20, "ratio": "1e+300", "price": "5.00", "must": 4, "after": {"count": null, "note": null}},
        ]))
        .await;
    subject.delete(&[5]).await;
    // Enough commits for manifests of both generations to be merged.
    for id in 8..12 {
        subject.append(json!([{"id": id, "qty": id, "code": "d", "after": {"count": id, "note": ""}}])).await;
    }
    Case::new(subject)
        .with("qty <= 20", [1, 2, 7, 8, 9, 10, 11])
        .with("qty < 5000000000", [1, 2, 7, 8, 9, 10, 11])
        .with("qty <> 5000000000 and qty is not null", [1, 2, 7, 8, 9, 10, 11])
        .with("qty in (20, 5000000000)", [2, 6, 7])
        .with("qty >= 5000000000", [6])
        .with("ratio <= 0.5 and id <> 3", [1, 2, 6])
        .with("ratio = 0.5", [2])
        .with("ratio < 0.0", [])
        .with("price > 5.00", [6])
        .with("price = 5.00", [1, 7])
        .with("price <= 5.00", [1, 2, 7])
        .with("amount < 0", [1])
        .with("must is null", [6, 8, 9, 10, 11])
        .with("must = 1", [1, 2, 3])
        .with("code = 'd'", [8, 9, 10, 11])
        .with("code is null", [1, 2, 3, 7])
        // ClickHouse reads the four bytes of a float's bound as a double's.
        .unable("chdb", Gap::ConditionsOn("ratio"))
}

/// Names that move between columns: readers that go by name mix them up.
async fn renamed(world: &World) -> Case {
    let columns = columns_of(&[("id", "long"), ("note", "string"), ("state", "string"), ("rank", "int")]);
    let mut subject = Subject::new(world, "renamed", columns, &[], &[]).await;
    subject
        .append(json!([{"id": 1, "note": "n1", "state": "s1", "rank": 1}, {"id": 2, "note": "n2", "rank": 2}]))
        .await;
    subject.evolve(SchemaChange::new().rename("note", "remark")).await;
    subject.rename("note", Some("remark"));
    subject.append(json!([{"id": 3, "remark": "n3", "state": "s3", "rank": 3}])).await;
    subject.evolve(SchemaChange::new().drop_column("state").drop_column("rank")).await;
    subject.rename("state", None);
    subject.rename("rank", None);
    subject.append(json!([{"id": 4, "remark": "n4"}])).await;
    // Back under the same names: one with another type, both without their old values.
    let change =
        SchemaChange::new().add(None, column("state", DataType::Int32)).add(None, column("rank", DataType::Int32));
    subject.evolve(change).await;
    subject.append(json!([{"id": 5, "remark": "n5", "state": 5, "rank": 50}])).await;
    // And two columns change names.
    subject
        .evolve(SchemaChange::new().rename("rank", "passing").rename("state", "rank").rename("passing", "state"))
        .await;
    for row in subject.rows.values_mut() {
        let (state, rank) = (row.shift_remove("state"), row.shift_remove("rank"));
        row.insert("state".to_string(), rank.unwrap_or_default());
        row.insert("rank".to_string(), state.unwrap_or_default());
    }
    subject.append(json!([{"id": 6, "remark": "n6", "state": 60, "rank": 6}])).await;
    subject.delete(&[2]).await;
    Case::new(subject)
        .with("remark = 'n1'", [1])
        .with("rank = 5", [5])
        .with("state = 50", [5])
        .with("state is null", [1, 3, 4])
        .with("rank >= 1", [5, 6])
        .with("state > 50 or remark = 'n3'", [3, 6])
        // ClickHouse looks for bounds by name.
        .unable("chdb", Gap::ConditionsOn("rank"))
        .unable("chdb", Gap::ConditionsOn("state"))
}

async fn schema_alone(world: &World) -> Case {
    let mut subject =
        Subject::new(world, "schema_alone", columns_of(&[("id", "long"), ("qty", "int")]), &[], &[]).await;
    subject.append(json!([{"id": 1, "qty": 1}, {"id": 2}])).await;
    subject.evolve(SchemaChange::new().add(None, column("note", DataType::Utf8)).promote("qty", DataType::Int64)).await;
    Case::new(subject).with("note is null", [1, 2]).with("qty <= 1", [1])
}

async fn merged(world: &World) -> Case {
    let set = [("commit.manifest.min-count-to-merge", "4"), ("write.metadata.previous-versions-max", "2")];
    let columns = columns_of(&[("id", "long"), ("qty", "int")]);
    let mut subject = Subject::new(world, "merged", columns, &["truncate(10, qty)"], &set).await;
    for id in 0..14 {
        subject.append(json!([{"id": id, "qty": id * 3}])).await;
        if id % 4 == 1 {
            subject.delete(&[id]).await;
        }
    }
    subject.compact().await;
    subject.append(json!([{"id": 20, "qty": 1}])).await;
    Case::new(subject).with("qty < 10", [0, 2, 3, 20]).with("qty = 39", [])
}

async fn expired(world: &World) -> Case {
    let set = [("write.metadata.compression-codec", "gzip")];
    let columns = columns_of(&[("id", "long"), ("qty", "int")]);
    let mut subject = Subject::new(world, "expired", columns, &[], &set).await;
    subject.append((0..10).map(|id| json!({"id": id, "qty": 1})).collect()).await;
    subject.delete(&[1]).await;
    subject.compact().await;
    subject.update(&[2, 3], |row| row["qty"] = json!(2)).await;
    let expired =
        subject.table.expire(&Expiry { older_than_ms: i64::MAX, retain_last: 1, ..Default::default() }).await.unwrap();
    assert_eq!(expired.snapshots.len(), 3);
    subject.table.refresh().await.unwrap();
    subject.append(json!([{"id": 20, "qty": 2}])).await;
    assert!(subject.table.metadata_location().ends_with(".gz.metadata.json"), "{}", subject.table.metadata_location());
    Case::new(subject).with("qty = 2", [2, 3, 20])
}
