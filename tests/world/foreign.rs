//! Other programs commit to the same tables in between, and make tables that we then open.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;

use aws_sdk_glue::types::{StorageDescriptor, TableInput};
use iceberg::spec::{
    DataContentType, DataFileBuilder, DataFileFormat, MAIN_BRANCH, ManifestListWriter, ManifestWriterBuilder,
    Operation, Snapshot, SnapshotReference, SnapshotRetention, Struct, Summary,
};
use iceberg::{TableRequirement, TableUpdate};
use icestream::error::Kind;
use icestream::ids::TableName;
use icestream::table::{At, Broken, Error, Expiry, Premise, Table};
use serde_json::{Value, json};

use crate::canonical::{Row, columns, json_rows, query, select, sorted};
use crate::services::{glue_world, rest_world, services, services_file};
use crate::subject::{Subject, columns_of};
use crate::support::*;

const MARKER: &str = "icestream.offsets";

fn script(name: &str) -> String {
    format!("{}/tests/readers/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// pyiceberg as another program on the catalog.
pub struct Pyiceberg {
    process: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    folder: tempfile::TempDir,
}

impl Pyiceberg {
    pub fn start(arguments: &[&str]) -> Pyiceberg {
        let mut process = Command::new(services().python)
            .arg(script("pyiceberg_catalog.py"))
            .args(arguments)
            .arg("session")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let (commands, answers) = (process.stdin.take(), BufReader::new(process.stdout.take().unwrap()));
        Pyiceberg { process, commands, answers, folder: tempfile::tempdir().unwrap() }
    }

    fn on_sqlite(folder: &Path) -> Pyiceberg {
        let uri = format!("sqlite:///{}", folder.join("catalog.db").display());
        let warehouse = format!("file://{}/warehouse", folder.display());
        Pyiceberg::start(&["--name", "lake", "--uri", &uri, "--warehouse", &warehouse])
    }

    fn on_services(kind: &str) -> Pyiceberg {
        Pyiceberg::start(&["--services", services_file().to_str().unwrap(), "--type", kind])
    }

    pub fn run(&mut self, table: &TableName, words: &[&str]) -> Value {
        let name = table.to_string();
        let mut command = vec![words[0], &name];
        command.extend(&words[1..]);
        writeln!(self.commands.as_mut().unwrap(), "{}", json!(command)).unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        let answer: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("{words:?}: {line}"));
        assert!(answer.get("error").is_none(), "{words:?}: {answer}");
        answer
    }

    /// Runs a command whose last word is a file with this content.
    pub fn run_with(&mut self, table: &TableName, command: &str, content: &Value) -> Value {
        let file = self.folder.path().join("content.json");
        std::fs::write(&file, content.to_string()).unwrap();
        self.run(table, &[command, file.to_str().unwrap()])
    }

    pub fn rows(&mut self, table: &TableName) -> Vec<Value> {
        sorted(self.run(table, &["read"])["tables"][0]["rows"].as_array().unwrap().clone())
    }
}

impl Drop for Pyiceberg {
    fn drop(&mut self) {
        self.commands.take();
        let _ = self.process.wait();
    }
}

/// Both sides see the same rows, and those that must be there; and the head's totals say how many there are.
async fn check(subject: &mut Subject, foreign: &mut Pyiceberg) {
    subject.table.refresh().await.unwrap();
    assert_eq!(select(&subject.table, None).await, subject.expected());
    assert_eq!(foreign.rows(subject.table.name()), subject.expected());
    let files = subject.table.files().await.unwrap();
    let rows = |content: &str| files.iter().filter(|file| file.content == content).map(|file| file.rows).sum::<u64>();
    assert_eq!(total(&subject.table, "total-records"), rows("data").to_string());
    assert_eq!(total(&subject.table, "total-position-deletes"), rows("position deletes").to_string());
    assert_eq!(
        total(&subject.table, "total-data-files"),
        files.iter().filter(|file| file.content == "data").count().to_string()
    );
}

/// Appends rows as an ingestion does, with a marker that moves.
async fn ingest(subject: &mut Subject, rows: Value, from: Option<&str>, to: &str) {
    let rows = json_rows(rows);
    let files = subject.write(&rows).await;
    let premise = Premise::new().marker_moves(MARKER, from.map(str::to_string), to.to_string());
    subject.table = subject.table.change().append(files).premise(premise).commit().await.unwrap().table;
    subject.expect(&rows);
    assert_eq!(total(&subject.table, MARKER), to);
}

async fn pyiceberg_in_between(world: World, mut foreign: Pyiceberg) {
    let types = columns_of(&[("id", "long"), ("qty", "int"), ("note", "string")]);
    let mut subject = Subject::new(&world, "orders", types, &["bucket(2, id)"], &[("owner.team", "sales")]).await;
    let name = subject.table.name().clone();
    ingest(&mut subject, (0..10).map(|id| json!({"id": id, "qty": id, "note": "ours"})).collect(), None, "10").await;
    check(&mut subject, &mut foreign).await;

    // Rows of theirs, and ours on top of them from a head that is old by now.
    let theirs = json!([{"id": 100, "qty": 1, "note": "theirs"}, {"id": 101, "qty": null, "note": null}]);
    foreign.run_with(&name, "append", &theirs);
    subject.expect(&json_rows(theirs));
    ingest(&mut subject, json!([{"id": 10, "qty": 10, "note": "ours"}]), Some("10"), "20").await;
    check(&mut subject, &mut foreign).await;

    // Their delete rewrites a file that ours stands on.
    let view = subject.table.view(At::Head).unwrap();
    let deletes = subject.table.write_deletes(&positions_of(&subject.table, &[4]).await).await.unwrap();
    foreign.run(&name, &["delete", "id = 3 or id = 4"]);
    let error = subject.table.change().row_delta(&view, vec![], deletes).commit().await.unwrap_err();
    assert!(matches!(error, Error::PremiseBroken { broken: Broken::FileGone { .. }, .. }), "{error:?}");
    subject.rows.retain(|id, _| ![3, 4].contains(id));
    check(&mut subject, &mut foreign).await;
    assert_eq!(subject.table.marker(MARKER).as_deref(), Some("20"));
    assert_eq!(total(&subject.table, MARKER), "-");
    subject.delete(&[5, 100]).await;
    assert_eq!(total(&subject.table, MARKER), "20");
    check(&mut subject, &mut foreign).await;

    // Their columns: one more, another name, a wider type. Ours under the old schema still fits.
    let old = subject.table.clone();
    let files = write(&old, &rows([(11, 11)])).await;
    foreign.run(&name, &["add-column", "extra", "string"]);
    foreign.run(&name, &["widen", "qty", "long"]);
    foreign.run(&name, &["rename-column", "note", "remark"]);
    subject.table = old.change().append(files).commit().await.unwrap().table;
    subject.expect(&json_rows(json!([{"id": 11, "qty": 11, "note": "note 11/11"}])));
    subject.rename("note", Some("remark"));
    check(&mut subject, &mut foreign).await;
    assert_eq!(columns(&subject.table), ["id", "qty", "remark", "extra"]);
    subject.append(json!([{"id": 12, "qty": 5_000_000_000i64, "remark": "ours", "extra": "e"}])).await;
    subject.check_conditions(&[("qty < 5000000000 and qty > 9", &[10, 11]), ("extra = 'e'", &[12])]).await;
    check(&mut subject, &mut foreign).await;

    // Their properties stay, and so do ours with them.
    foreign.run(&name, &["set-property", "their.key", "their value"]);
    subject.append(json!([{"id": 13}])).await;
    assert_eq!(subject.table.properties()["their.key"], "their value");
    assert_eq!(subject.table.properties()["owner.team"], "sales");

    // They forget all but the head, which is theirs and has no marker.
    let theirs = json!([{"id": 102, "qty": 2, "remark": "theirs"}]);
    foreign.run_with(&name, "append", &theirs);
    subject.expect(&json_rows(theirs));
    foreign.run(&name, &["expire"]);
    check(&mut subject, &mut foreign).await;
    assert_eq!(subject.table.snapshots().len(), 1);
    assert_eq!(total(&subject.table, MARKER), "-");
    assert_eq!(subject.table.marker(MARKER).as_deref(), Some("20"));
    ingest(&mut subject, json!([{"id": 14}]), Some("20"), "30").await;
    check(&mut subject, &mut foreign).await;

    // They partition by one more column. Deletes and a compaction then span both layouts.
    foreign.run(&name, &["partition-by", "remark", "truncate[2]"]);
    subject.table.refresh().await.unwrap();
    assert_eq!(subject.table.summary().partition, "bucket(2, id), truncate(2, remark)");
    subject.append(json!([{"id": 20, "remark": "new"}, {"id": 21, "remark": "new"}, {"id": 22}])).await;
    let theirs = json!([{"id": 103, "remark": "new"}, {"id": 104, "remark": "other"}]);
    foreign.run_with(&name, "append", &theirs);
    subject.expect(&json_rows(theirs));
    subject.table.refresh().await.unwrap();
    subject.delete(&[0, 1, 13, 20, 103]).await;
    check(&mut subject, &mut foreign).await;
    subject.check_conditions(&[("remark = 'new'", &[21]), ("remark is null", &[14, 22, 101])]).await;
    subject.compact().await;
    check(&mut subject, &mut foreign).await;
    assert_eq!(total(&subject.table, "total-delete-files"), "0");
    foreign.run(&name, &["delete", "remark = 'ours'"]);
    subject.rows.retain(|_, row| row.get("remark") != Some(&json!("ours")));
    check(&mut subject, &mut foreign).await;

    // A snapshot with a name of theirs stays when ours are forgotten.
    foreign.run(&name, &["tag", "audit"]);
    subject.table.refresh().await.unwrap();
    let (tagged, at_tag) = (subject.table.snapshot_id().unwrap(), subject.rows.clone());
    ingest(&mut subject, json!([{"id": 15}]), Some("30"), "40").await;
    subject.append(json!([{"id": 16}])).await;
    subject.table.expire(&Expiry { older_than_ms: i64::MAX, retain_last: 1, ..Default::default() }).await.unwrap();
    subject.table.refresh().await.unwrap();
    assert_eq!(subject.table.snapshots().iter().map(|snapshot| snapshot.id).collect::<Vec<_>>().len(), 2);
    assert_eq!(
        query(&subject.table, At::Snapshot(tagged), "SELECT id FROM {table}").await.unwrap().len(),
        at_tag.len()
    );
    check(&mut subject, &mut foreign).await;
    assert_eq!(subject.table.marker(MARKER).as_deref(), Some("40"));
}

/// They take the table back to an earlier snapshot: its rows and its marker go back together.
async fn rolled_back(world: World, mut foreign: Pyiceberg) {
    let types = columns_of(&[("id", "long"), ("qty", "int")]);
    let mut subject = Subject::new(&world, "rolled_back", types, &[], &[]).await;
    let name = subject.table.name().clone();
    ingest(&mut subject, json!([{"id": 1, "qty": 1}]), None, "10").await;
    let (first, rows) = (subject.table.snapshot_id().unwrap(), subject.rows.clone());
    ingest(&mut subject, json!([{"id": 2, "qty": 2}]), Some("10"), "20").await;
    foreign.run(&name, &["roll-back", &first.to_string()]);
    // Whoever goes on from the later state learns of it.
    let files = subject.write(&json_rows(json!([{"id": 3, "qty": 3}]))).await;
    let premise = Premise::new().marker_moves(MARKER, Some("20".to_string()), "30".to_string());
    let error = subject.table.change().append(files).premise(premise).commit().await.unwrap_err();
    assert!(matches!(error, Error::PremiseBroken { broken: Broken::Marker { .. }, .. }), "{error:?}");
    subject.rows = rows;
    check(&mut subject, &mut foreign).await;
    assert_eq!(subject.table.marker(MARKER).as_deref(), Some("10"));
    ingest(&mut subject, json!([{"id": 2, "qty": 22}]), Some("10"), "20").await;
    check(&mut subject, &mut foreign).await;
}

/// A table they made, with types we do not make.
async fn made_by_pyiceberg(world: World, mut foreign: Pyiceberg) {
    let name = world.table("theirs");
    foreign.run_with(
        &name,
        "create",
        &json!({
            "columns": [
                {"name": "id", "type": "long", "required": true},
                {"name": "note", "type": "string"},
                {"name": "moment", "type": "time"},
                {"name": "uid", "type": "uuid"},
                {"name": "code", "type": "fixed[4]"},
                {"name": "tags", "type": {"type": "list", "element-id": 20, "element": "string", "element-required": false}},
                {"name": "counts", "type": {
                    "type": "map", "key-id": 21, "key": "string", "value-id": 22, "value": "long", "value-required": false,
                }},
                {"name": "at", "type": "timestamptz"},
                {"name": "price", "type": "decimal(9, 2)"},
            ],
            "partition": [{"column": "at", "transform": "day"}, {"column": "id", "transform": "bucket[3]"}],
            "properties": {"their.key": "their value", "write.metadata.compression-codec": "gzip"},
        }),
    );
    let row = |id: i64, note: &str| {
        json!({
            "id": id, "note": note, "moment": "23:59:59.999999", "uid": "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "code": "00ff10aa",
            "tags": ["a", null], "counts": [["x", 1], ["y", null]], "at": "2024-02-29T12:34:56.789012Z", "price": "-1.25",
        })
    };
    let theirs = json!([row(1, "one"), row(2, "two"), {"id": 3}]);
    foreign.run_with(&name, "append", &theirs);
    let mut subject = Subject::on(world.lake.table(&name).await.unwrap());
    subject.expect(&json_rows(theirs));
    assert_eq!(world.lake.tables(&world.namespace).await.unwrap(), std::slice::from_ref(&name));
    check(&mut subject, &mut foreign).await;
    subject
        .check_conditions(&[("at >= '2024-02-29T00:00:00Z'", &[1, 2]), ("note = 'two'", &[2]), ("price < 0", &[1, 2])])
        .await;
    // Back again through our writer, which knows the types from the rows it read.
    let files = rewrite_with_ids(&subject.table, 10).await;
    subject.table = subject.table.change().append(files).commit().await.unwrap().table;
    let ours: Vec<Row> = subject.rows.values().cloned().collect();
    let ours: Vec<Row> = ours
        .into_iter()
        .map(|mut row| {
            row.insert("id".to_string(), json!(row["id"].as_i64().unwrap() + 10));
            row
        })
        .collect();
    subject.expect(&ours);
    check(&mut subject, &mut foreign).await;
    subject.delete(&[2, 11]).await;
    check(&mut subject, &mut foreign).await;
    foreign.run(&name, &["delete", "id = 1"]);
    subject.rows.remove(&1);
    check(&mut subject, &mut foreign).await;
    assert_eq!(subject.table.properties()["their.key"], "their value");
    assert_eq!(subject.table.properties().get("write.metadata.delete-after-commit.enabled"), None);
}

/// The head's rows once more, under other ids.
async fn rewrite_with_ids(table: &Table, offset: i64) -> Vec<icestream::table::WrittenFile> {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::Int64Type;
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

    let mut writer = table.writer(None).unwrap();
    for file in table.view(At::Head).unwrap().files(None).await.unwrap() {
        let bytes = table.lake().storage().read(&file.path).await.unwrap();
        for batch in ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap() {
            let batch = batch.unwrap();
            let ids = batch.column(0).as_primitive::<Int64Type>().unary::<_, Int64Type>(|id| id + offset);
            let mut columns = batch.columns().to_vec();
            columns[0] = Arc::new(ids) as Arc<dyn Array>;
            writer.write(&arrow::array::RecordBatch::try_new(batch.schema(), columns).unwrap()).await.unwrap();
        }
    }
    writer.finish().await.unwrap()
}

macro_rules! on_every_catalog {
    ($($case:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    let world = crate::support::sqlite_world().await;
                    let foreign = super::Pyiceberg::on_sqlite(world.keep.as_ref().unwrap().path());
                    super::$case(world, foreign).await;
                }
            )*
        }
        mod glue {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case(super::glue_world().await, super::Pyiceberg::on_services("glue")).await;
                }
            )*
        }
        mod rest {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    super::$case(super::rest_world().await, super::Pyiceberg::on_services("rest")).await;
                }
            )*
        }
    };
}

on_every_catalog!(pyiceberg_in_between, rolled_back, made_by_pyiceberg);

/// A file that pyiceberg made, from the first byte.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_file_of_pyiceberg_is_opened_under_the_same_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut foreign = Pyiceberg::on_sqlite(folder.path());
    let name: TableName = "shop.orders".parse().unwrap();
    foreign.run_with(&name, "create", &json!({"columns": [{"name": "id", "type": "long", "required": true}]}));
    foreign.run_with(&name, "append", &json!([{"id": 1}]));
    let lake = sqlite_lake(folder.path()).await;
    assert_eq!(lake.catalog().namespaces().await.unwrap(), ["shop"]);
    let mut subject = Subject::on(lake.table(&name).await.unwrap());
    subject.expect(&json_rows(json!([{"id": 1}])));
    subject.append(json!([{"id": 2}])).await;
    check(&mut subject, &mut foreign).await;
    let world = World { lake, namespace: "shop".to_string(), keep: None };
    let mut other = Subject::new(&world, "other", columns_of(&[("id", "long")]), &[], &[]).await;
    other.append(json!([{"id": 3}])).await;
    check(&mut other, &mut foreign).await;
    // Under another name the same file holds another catalog.
    let uri = format!("sqlite:///{}", folder.path().join("catalog.db").display());
    let warehouse = format!("file://{}/warehouse", folder.path().display());
    let mut elsewhere = Pyiceberg::start(&["--name", "elsewhere", "--uri", &uri, "--warehouse", &warehouse]);
    let third: TableName = "shop.third".parse().unwrap();
    elsewhere.run_with(&third, "create", &json!({"columns": [{"name": "id", "type": "long", "required": true}]}));
    assert!(world.lake.table_if_exists(&third).await.unwrap().is_none());
    assert_eq!(world.lake.tables("shop").await.unwrap().len(), 2);
}

/// What other programs keep on a Glue table stays through our commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_others_keep_on_a_glue_table_stays() {
    let world = glue_world().await;
    let client = glue_client().await;
    let table = append(&world.create("orders").await, [(1, 1)]).await.table;
    let found = client.get_table().database_name(&world.namespace).name("orders").send().await.unwrap().table.unwrap();
    let mut parameters = found.parameters.clone().unwrap();
    parameters.insert("classification".to_string(), "sales".to_string());
    let descriptor = found.storage_descriptor.clone().unwrap();
    let input = TableInput::builder()
        .name("orders")
        .description("every order")
        .owner("sales")
        .table_type("EXTERNAL_TABLE")
        .set_parameters(Some(parameters))
        .storage_descriptor(descriptor)
        .build()
        .unwrap();
    client.update_table().database_name(&world.namespace).table_input(input).send().await.unwrap();
    let table = append(&table, [(2, 2)]).await.table;
    assert_eq!(read(&table).await.len(), 2);
    let found = client.get_table().database_name(&world.namespace).name("orders").send().await.unwrap().table.unwrap();
    let parameters = found.parameters.unwrap();
    assert_eq!(parameters["classification"], "sales");
    assert_eq!(parameters["metadata_location"], table.metadata_location());
    assert_eq!((found.description.as_deref(), found.owner.as_deref()), (Some("every order"), Some("sales")));
    let columns = found.storage_descriptor.unwrap().columns.unwrap();
    assert_eq!(columns.iter().map(|column| column.r#type().unwrap()).collect::<Vec<_>>(), ["bigint", "int", "string"]);
}

async fn glue_client() -> aws_sdk_glue::Client {
    let services = services();
    let keys = aws_sdk_glue::config::Credentials::new(&services.access_key, &services.secret_key, None, None, "test");
    let config = aws_sdk_glue::config::Builder::new()
        .behavior_version(aws_sdk_glue::config::BehaviorVersion::latest())
        .region(aws_sdk_glue::config::Region::new(services.region))
        .endpoint_url(services.glue_endpoint)
        .credentials_provider(keys)
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .build();
    aws_sdk_glue::Client::from_conf(config)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hive_table_in_glue_is_left_alone() {
    let world = glue_world().await;
    world.lake.catalog().create_namespace(&world.namespace).await.unwrap();
    let descriptor = StorageDescriptor::builder().location("s3://icestream/hive").build();
    let input = TableInput::builder().name("old").table_type("EXTERNAL_TABLE").storage_descriptor(descriptor).build();
    let request = glue_client().await.create_table().database_name(&world.namespace);
    request.table_input(input.unwrap()).send().await.unwrap();
    assert_eq!(world.lake.tables(&world.namespace).await.unwrap(), []);
    let name = world.table("old");
    let definition = icestream::table::TableDefinition {
        name: name.clone(),
        schema: Arc::new(schema()),
        partition: vec![],
        properties: Default::default(),
    };
    let errors = [
        world.lake.table(&name).await.unwrap_err(),
        world.lake.create(&definition).await.unwrap_err(),
        world.lake.drop_table(&name, true).await.unwrap_err(),
    ];
    let endpoint = services().glue_endpoint;
    let replaced = [(world.namespace.as_str(), "shop"), (&endpoint, "http://glue")];
    let told = errors.map(|error| told(error, &replaced));
    insta::assert_snapshot!(told.join("\n"), @"
    error: `shop.old` is in Glue catalog at `http://glue`, but it is not an Iceberg table (its type is `EXTERNAL_TABLE`)
      hint: name a table that is in Iceberg format, or use another namespace
    error: table `shop.old` already exists in Glue catalog at `http://glue`
    error: `shop.old` is in Glue catalog at `http://glue`, but it is not an Iceberg table (its type is `EXTERNAL_TABLE`)
      hint: name a table that is in Iceberg format, or use another namespace
    ");
}

fn told(error: Error, replaced: &[(&str, &str)]) -> String {
    let error = icestream::error::Error::from(error);
    assert_eq!(error.kind(), Kind::Config, "{error:?}");
    replaced.iter().fold(error.render(), |text, (from, to)| text.replace(from, to))
}

/// Equality deletes are what streaming writers leave. Reading around them would show rows that are gone.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equality_deletes_are_refused() {
    let world = sqlite_world().await;
    let table = append(&world.create("orders").await, [(1, 1), (2, 2)]).await.table;
    let catalog = world.lake.catalog();
    let head = catalog.head(table.name(), None).await.unwrap();
    let (metadata, file_io) = (&head.metadata, world.lake.storage().file_io());
    let (snapshot_id, sequence) = (77, metadata.next_sequence_number());
    let place = |name: &str| format!("{}/metadata/{name}.avro", table.location());
    let deletes = DataFileBuilder::default()
        .content(DataContentType::EqualityDeletes)
        .file_path(format!("{}/data/equality.parquet", table.location()))
        .file_format(DataFileFormat::Parquet)
        .partition(Struct::empty())
        .partition_spec_id(0)
        .record_count(1)
        .file_size_in_bytes(100)
        .equality_ids(Some(vec![1]))
        .build()
        .unwrap();
    let output = file_io.new_output(place("theirs")).unwrap();
    let spec = metadata.default_partition_spec().as_ref().clone();
    let builder = ManifestWriterBuilder::new(output, Some(snapshot_id), metadata.current_schema().clone(), spec);
    let mut writer = builder.build_v2_deletes();
    writer.add_file(deletes, -1).unwrap();
    let manifest = writer.write_manifest_file().await.unwrap();
    let parent = metadata.current_snapshot().unwrap();
    let bytes = file_io.new_input(parent.manifest_list()).unwrap().read().await.unwrap();
    let before = iceberg::spec::ManifestList::parse_with_version(&bytes, metadata.format_version()).unwrap();
    let output = file_io.new_output(place("snap-theirs")).unwrap().writer().await.unwrap();
    let mut list = ManifestListWriter::v2(output, snapshot_id, Some(parent.snapshot_id()), sequence);
    list.add_manifests(before.consume_entries().into_iter().chain([manifest])).unwrap();
    list.close().await.unwrap();
    let snapshot = Snapshot::builder()
        .with_snapshot_id(snapshot_id)
        .with_parent_snapshot_id(Some(parent.snapshot_id()))
        .with_sequence_number(sequence)
        .with_timestamp_ms(metadata.last_updated_ms() + 1)
        .with_manifest_list(place("snap-theirs"))
        .with_summary(Summary { operation: Operation::Delete, additional_properties: Default::default() })
        .with_schema_id(0)
        .build();
    let updates = [
        TableUpdate::AddSnapshot { snapshot },
        TableUpdate::SetSnapshotRef {
            ref_name: MAIN_BRANCH.to_string(),
            reference: SnapshotReference::new(snapshot_id, SnapshotRetention::branch(None, None, None)),
        },
    ];
    catalog.swap(&head, &[TableRequirement::UuidMatch { uuid: metadata.uuid() }], &updates).await.unwrap();

    let table = world.lake.table(table.name()).await.unwrap();
    let error = table.view(At::Head).unwrap().files(None).await.unwrap_err();
    insta::assert_snapshot!(told(error, &[]), @"
    error: table `shop.orders` uses equality deletes, which icestream does not read or write
      hint: icestream works on unencrypted format version 2 tables; leave this one to the engine that made it
    ");
    let error = query(&table, At::Head, "SELECT count(*) FROM {table}").await.unwrap_err();
    assert!(error.to_string().contains("equality deletes"), "{error}");
    // The summary they left says nothing; our append counts for itself, and adding rows does no harm.
    let table = append(&table, [(3, 3)]).await.table;
    assert_eq!(total(&table, "total-records"), "3");
    assert_eq!(total(&table, "total-equality-deletes"), "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn encrypted_tables_are_refused() {
    let world = sqlite_world().await;
    let mut foreign = Pyiceberg::on_sqlite(world.keep.as_ref().unwrap().path());
    let name = world.table("secret");
    let columns = json!([{"name": "id", "type": "long", "required": true}]);
    foreign.run_with(&name, "create", &json!({"columns": columns, "properties": {"encryption.key-id": "k1"}}));
    let error = world.lake.table(&name).await.unwrap_err();
    insta::assert_snapshot!(told(error, &[]), @"
    error: table `shop.secret` uses encryption, which icestream does not read or write
      hint: icestream works on unencrypted format version 2 tables; leave this one to the engine that made it
    ");
}

/// Runs statements in Spark on the catalog file of an SQLite world; each must go well.
fn spark(world: &World, statements: &[&str]) {
    let folder = world.keep.as_ref().unwrap().path();
    let file = folder.join("statements.json");
    std::fs::write(&file, json!(statements).to_string()).unwrap();
    let output = Command::new(services().python)
        .arg(script("spark_catalog.py"))
        .args(["--name", "lake", "--database"])
        .arg(folder.join("catalog.db"))
        .args(["--warehouse", &format!("file://{}/warehouse", folder.display())])
        .arg(&file)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let outcomes: Vec<Option<String>> = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    let failed: Vec<String> = outcomes.into_iter().flatten().collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spark_in_between() {
    let world = sqlite_world().await;
    let types = || columns_of(&[("id", "long"), ("qty", "int"), ("note", "string")]);
    let mut subjects = Vec::new();
    for (name, granularity) in [("by_file", "file"), ("by_partition", "partition")] {
        let set = [
            ("write.delete.granularity", granularity),
            ("write.update.mode", "merge-on-read"),
            ("write.merge.mode", "merge-on-read"),
        ];
        let mut subject = Subject::new(&world, name, types(), &["bucket(2, id)"], &set).await;
        for batch in 0..2i64 {
            let of = (batch * 20..batch * 20 + 20).map(|id| json!({"id": id, "qty": 1, "note": "ours"}));
            let from = (batch > 0).then(|| batch.to_string());
            ingest(&mut subject, of.collect(), from.as_deref(), &(batch + 1).to_string()).await;
        }
        subject.delete(&[7]).await;
        subjects.push(subject);
    }
    spark(
        &world,
        &[
            "DELETE FROM shop.by_file WHERE id IN (3, 14, 25)",
            "DELETE FROM shop.by_partition WHERE id IN (3, 14, 25)",
            "UPDATE shop.by_file SET qty = -1 WHERE id = 5",
            "UPDATE shop.by_partition SET qty = -1 WHERE id = 5",
            "INSERT INTO shop.by_file VALUES (100, 9, 'theirs')",
            "ALTER TABLE shop.by_file ALTER COLUMN qty TYPE bigint",
            "ALTER TABLE shop.by_file ADD COLUMN extra string",
            "ALTER TABLE shop.by_file ADD PARTITION FIELD truncate(2, note)",
            "ALTER TABLE shop.by_file CREATE BRANCH audit",
            "INSERT INTO shop.by_file.branch_audit VALUES (999, 9, 'on a branch', null)",
            "CALL lake.system.rewrite_manifests('shop.by_partition')",
            "MERGE INTO shop.by_file t USING (SELECT 6L AS id UNION SELECT 200L) s ON t.id = s.id \
             WHEN MATCHED THEN UPDATE SET t.qty = 6000000000 WHEN NOT MATCHED THEN INSERT (id, qty) VALUES (s.id, 0)",
            "CREATE TABLE shop.one (id bigint) USING iceberg TBLPROPERTIES ('format-version' = '1')",
            "INSERT INTO shop.one VALUES (1)",
            "CREATE TABLE shop.three (id bigint) USING iceberg \
             TBLPROPERTIES ('format-version' = '3', 'write.delete.mode' = 'merge-on-read')",
            "INSERT INTO shop.three VALUES (1), (2)",
            "DELETE FROM shop.three WHERE id = 1",
            "CREATE TABLE shop.orc (id bigint) USING iceberg TBLPROPERTIES ('write.format.default' = 'orc')",
            "INSERT INTO shop.orc VALUES (1)",
            "CREATE VIEW shop.seen AS SELECT id FROM shop.by_file",
        ],
    );
    // What Spark deleted is gone for us, what it added is there, and the markers are found.
    for subject in &mut subjects {
        subject.table.refresh().await.unwrap();
        subject.rows.retain(|id, _| ![3, 14, 25].contains(id));
        subject.rows.get_mut(&5).unwrap()["qty"] = json!(-1);
        assert_eq!(subject.table.marker(MARKER).as_deref(), Some("2"));
        assert!(total(&subject.table, "total-position-deletes").parse::<u64>().unwrap() >= 4);
    }
    let [mut by_file, mut by_partition]: [Subject; 2] = subjects.try_into().ok().unwrap();
    by_file.rows.get_mut(&6).unwrap()["qty"] = json!(6_000_000_000i64);
    by_file.expect(&json_rows(json!([{"id": 100, "qty": 9, "note": "theirs"}, {"id": 200, "qty": 0}])));
    for subject in [&mut by_file, &mut by_partition] {
        assert_eq!(select(&subject.table, None).await, subject.expected());
        // Our deletes beside theirs, in every layout the table has had.
        subject.delete(&[0, 5, 39]).await;
        subject.append(json!([{"id": 300, "qty": 3, "note": "ours"}])).await;
        assert_eq!(total(&subject.table, MARKER), "2");
        assert_eq!(select(&subject.table, None).await, subject.expected());
        subject.compact().await;
        assert_eq!(select(&subject.table, None).await, subject.expected());
    }
    by_file.delete(&[100]).await;
    by_file.check_conditions(&[("qty > 5000000000", &[6]), ("qty <= 0", &[200]), ("note = 'theirs'", &[])]).await;
    // The branch keeps its snapshots.
    by_file.table.expire(&Expiry { older_than_ms: i64::MAX, retain_last: 1, ..Default::default() }).await.unwrap();
    by_file.table.refresh().await.unwrap();
    assert_eq!(by_file.table.snapshots().len(), 2);
    assert_eq!(select(&by_file.table, None).await, by_file.expected());
    let branch = by_file.table.snapshots().into_iter().find(|snapshot| !snapshot.is_current).unwrap();
    let on_branch = query(&by_file.table, At::Snapshot(branch.id), "SELECT count(*) FROM {table} WHERE id = 999").await;
    assert_eq!(on_branch.unwrap(), [json!([1])]);

    // What we do not read or write is named; a view is no table.
    let mut messages = Vec::new();
    for name in ["one", "three", "orc"] {
        let error = match world.lake.table(&world.table(name)).await {
            Ok(table) => table.view(At::Head).unwrap().files(None).await.unwrap_err(),
            Err(error) => error,
        };
        messages.push(told(error, &[]));
    }
    insta::assert_snapshot!(messages.join("\n"), @"
    error: table `shop.one` uses format version 1, which icestream does not read or write
      hint: icestream works on unencrypted format version 2 tables; leave this one to the engine that made it
    error: table `shop.three` uses format version 3, which icestream does not read or write
      hint: icestream works on unencrypted format version 2 tables; leave this one to the engine that made it
    error: table `shop.orc` uses orc data files, which icestream does not read or write
      hint: icestream works on unencrypted format version 2 tables; leave this one to the engine that made it
    ");
    assert!(world.lake.table_if_exists(&world.table("seen")).await.unwrap().is_none());
    let names: Vec<String> =
        world.lake.tables("shop").await.unwrap().iter().map(|name| name.name().to_string()).collect();
    assert_eq!(names, ["by_file", "by_partition", "one", "orc", "three"]);
    // Spark reads what we made of it.
    spark(
        &world,
        &[
            &format!(
                "SELECT assert_true(count(*) = {} AND sum(qty) = {}) FROM shop.by_file",
                by_file.rows.len(),
                sum(&by_file)
            ),
            &format!("SELECT assert_true(count(*) = {}) FROM shop.by_partition", by_partition.rows.len()),
        ],
    );
}

fn sum(subject: &Subject) -> i64 {
    subject.rows.values().filter_map(|row| row.get("qty")?.as_i64()).sum()
}
