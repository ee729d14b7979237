//! A world outside that is not as it should be.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use super::*;

/// An address at which nobody listens.
fn closed() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

/// A server that takes connections and never says a word.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    (listener, address)
}

/// A server that gives every request the same answer, for as long as the tests run.
fn answering(status: &'static str, body: &'static str) -> String {
    let (listener, address) = silent();
    let answer = move |mut stream: TcpStream| {
        let mut request = Vec::new();
        let mut some = [0; 4096];
        let is_whole = |request: &[u8]| {
            let text = String::from_utf8_lossy(request).to_lowercase();
            let Some((head, rest)) = text.split_once("\r\n\r\n") else { return false };
            let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
            rest.len() >= length.and_then(|length| length.parse().ok()).unwrap_or(0)
        };
        while !is_whole(&request) {
            match stream.read(&mut some) {
                Ok(0) | Err(_) => return,
                Ok(length) => request.extend_from_slice(&some[..length]),
            }
        }
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    };
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    address
}

fn on_s3(endpoint: &str) -> TempDir {
    project(&format!("name: shop\nwarehouse: s3://lake/shop\n{}", s3(endpoint)))
}

fn s3(endpoint: &str) -> String {
    format!(
        "storage: {{ s3: {{ endpoint: \"{endpoint}\", region: us-east-1, access_key_id: AKIA, \
         secret_access_key: \"${{THE_SECRET}}\", path_style: true }} }}\n"
    )
}

fn project(settings: &str) -> TempDir {
    folder_with(&[("icestream.yaml", settings)])
}

#[track_caller]
fn told(project: &TempDir, args: &str, code: i32) -> String {
    let started = Instant::now();
    let error = run(project.path(), args).error(code);
    assert!(started.elapsed() < Duration::from_secs(25), "nobody waits that long");
    // Retries are timed.
    match error.split_once(": Error performing PUT ") {
        Some((before, after)) => format!("{before}: …{}", after.split_once('\n').map_or("", |(_, rest)| rest)),
        None => error,
    }
}

#[test]
fn a_bucket_that_cannot_be_had() {
    let wrong = "<Error><Code>NoSuchBucket</Code><Message>The specified bucket does not exist</Message></Error>";
    insta::assert_snapshot!(told(&on_s3(&answering("404 Not Found", wrong)), "check", 2), @"
    error: the warehouse `s3://lake/shop` cannot be written to
      caused by: bucket `lake` does not exist at S3 at `http://127.0.0.1:PORT`
      hint: create the bucket, or correct the `warehouse`
    ");
    let refused = "<Error><Code>InvalidAccessKeyId</Code><Message>The key does not exist.</Message></Error>";
    insta::assert_snapshot!(told(&on_s3(&answering("403 Forbidden", refused)), "check", 2), @"
    error: the warehouse `s3://lake/shop` cannot be written to
      caused by: bucket `lake` of S3 at `http://127.0.0.1:PORT` refused access
      caused by: InvalidAccessKeyId: The key does not exist.
      hint: check the credentials and what they are allowed to do
    ");
    let nobody = told(&on_s3(&closed()), "check", 3);
    insta::assert_snapshot!(nobody.lines().next().unwrap(), @"error: the warehouse `s3://lake/shop` cannot be written to");
    assert!(nobody.contains("Connection refused"), "{nobody}");
}

#[test]
fn a_rest_catalog_that_cannot_be_had() {
    let of = |address: &str, more: &str| {
        project(&format!("name: shop\ncatalog: {{ type: rest, uri: \"{address}\"{more} }}\nwarehouse: lake\n"))
    };
    let (no_catalog, no_token) = std::thread::scope(|scope| {
        let no_token = scope.spawn(|| told(&of(&closed(), ", credential: \"me:${THE_SECRET}\""), "check", 3));
        let no_catalog = told(&of(&closed(), ""), "tables", 3);
        (no_catalog, no_token.join().unwrap())
    });
    insta::assert_snapshot!(no_catalog, @"
    error: REST catalog `http://127.0.0.1:PORT` does not answer
      caused by: error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)
    ");
    insta::assert_snapshot!(no_token, @"
    error: the token server `http://127.0.0.1:PORT/v1/oauth/tokens` does not answer
      caused by: error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)
    ");
    insta::assert_snapshot!(told(&of(&answering("404 Not Found", "nothing"), ""), "tables", 2), @"
    error: REST catalog `http://127.0.0.1:PORT` does not answer like one, but with `404 Not Found`
      hint: check the catalog's `uri`: it is the address before `/v1`
    ");
    let refused = r#"{"error":{"message":"who are you","type":"NotAuthorizedException","code":401}}"#;
    let refusing = answering("401 Unauthorized", refused);
    insta::assert_snapshot!(told(&of(&refusing, ", token: \"${THE_SECRET}\""), "tables", 2), @"
    error: REST catalog `http://127.0.0.1:PORT` refused access
      caused by: NotAuthorizedException: who are you
      hint: check the credentials and what they are allowed to do
    ");
    insta::assert_snapshot!(told(&of(&refusing, ", credential: \"me:${THE_SECRET}\""), "tables", 2), @"
    error: the token server `http://127.0.0.1:PORT/v1/oauth/tokens` refused access
      caused by: NotAuthorizedException: who are you
      hint: check the credentials and what they are allowed to do
    ");
}

#[test]
fn a_glue_catalog_that_cannot_be_had() {
    let of = |address: &str| {
        let catalog = format!("catalog: {{ type: glue, region: us-east-1, endpoint: \"{address}\" }}");
        project(&format!("name: shop\n{catalog}\nwarehouse: s3://lake/shop\n{}", s3(&closed())))
    };
    insta::assert_snapshot!(told(&of(&closed()), "tables", 3), @"
    error: Glue catalog at `http://127.0.0.1:PORT` does not answer
      caused by: dispatch failure: io error: client error (Connect): tcp connect error: Connection refused (os error 111)
    ");
    let refused = r#"{"__type":"AccessDeniedException","Message":"not authorized to perform glue:GetTables"}"#;
    insta::assert_snapshot!(told(&of(&answering("400 Bad Request", refused)), "tables", 2), @"
    error: Glue catalog at `http://127.0.0.1:PORT` refused access
      caused by: AccessDeniedException: not authorized to perform glue:GetTables
      hint: check the credentials and what they are allowed to do
    ");
    let nobody = project("name: shop\ncatalog: { type: glue, region: us-east-1 }\nwarehouse: s3://lake/shop\n");
    insta::assert_snapshot!(told(&nobody, "tables", 2), @"
    error: no AWS credentials were found
      hint: set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` or `AWS_PROFILE`, or run where a role is attached
    ");
}

#[tokio::test]
async fn who_never_answers_is_not_waited_for() {
    let (_listener, address) = silent();
    let rest = project(&format!("name: shop\ncatalog: {{ type: rest, uri: \"{address}\" }}\n"));
    let (sqlite, _) = project_with_history().await;
    let held = rusqlite::Connection::open(sqlite.path().join("catalog.db")).unwrap();
    held.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let (of_warehouse, of_catalog, of_file) = std::thread::scope(|scope| {
        let of_warehouse = scope.spawn(|| told(&on_s3(&address), "check", 3));
        let of_file = scope.spawn(|| told(&sqlite, "tables", 3));
        let of_catalog = told(&rest, "check", 3);
        (of_warehouse.join().unwrap(), of_catalog, of_file.join().unwrap())
    });
    held.execute_batch("ROLLBACK").unwrap();
    run(sqlite.path(), "tables").done();
    insta::assert_snapshot!(of_file.lines().next().unwrap(), @"error: SQLite catalog `FOLDER/catalog.db` does not answer");
    insta::assert_snapshot!(of_warehouse, @"
    error: the warehouse `s3://lake/shop` did not answer within 10 s
      hint: check the address, and whether a firewall is in between
    ");
    insta::assert_snapshot!(of_catalog, @"
    error: REST catalog `http://127.0.0.1:PORT` did not answer within 10 s
      hint: check the address, and whether a firewall is in between
    ");
}

/// Also a verb that would commit what it has read: it has read nothing.
#[test]
fn who_waits_for_an_answer_can_be_ended() {
    for args in ["run", "ingest --drain", "build", "backfill --files *.json", "maintain"] {
        let (listener, address) = silent();
        let settings = "source: { kafka: { brokers: \"127.0.0.1:1\", topics: [\"shop.public.*\"] } }\n";
        let project = project(&format!("name: shop\ncatalog: {{ type: rest, uri: \"{address}\" }}\n{settings}"));
        std::fs::write(project.path().join("shop.public.orders+0+0000000000.json"), "{}\n").unwrap();
        let running = Running::start(icestream(project.path(), args));
        let _held = listener.accept().unwrap();
        let asked = Command::new("kill").args(["-TERM", &running.child.id().to_string()]).status().unwrap();
        assert!(asked.success());
        let at = Instant::now();
        let told = running.end().error(143);
        assert!(at.elapsed() < Duration::from_secs(10), "`{args}` took {:?}", at.elapsed());
        assert_eq!(told, "error: interrupted\n  what was committed stays; safe to run again\n", "{args}");
    }
}

#[test]
fn brokers_that_do_not_answer_are_told_before_a_run() {
    let address = closed().replace("http://", "");
    let project = project(&format!(
        "name: shop\nsource: {{ kafka: {{ brokers: \"{address}\", topics: [\"shop.public.*\"] }} }}\n"
    ));
    let told = told(&project, "check", 3);
    let lines: Vec<&str> = told.lines().filter(|line| !line.contains("caused by")).collect();
    insta::assert_snapshot!(lines.join("\n"), @"
    error: kafka at `127.0.0.1:PORT` does not answer
      hint: check `source.kafka.brokers`, the network, and whether the brokers expect TLS
    ");
    run(project.path(), "check --offline").done();
}

#[test]
fn everything_that_is_wrong_outside_is_told_at_once() {
    let address = answering("404 Not Found", "<Error><Code>NoSuchBucket</Code><Message>x</Message></Error>");
    let project = project(&format!(
        "name: shop\ncatalog: {{ type: rest, uri: \"{address}\" }}\nwarehouse: s3://lake/shop\n{}",
        s3(&address)
    ));
    insta::assert_snapshot!(told(&project, "check", 2), @"
    error: the project has 2 problems
      REST catalog `http://127.0.0.1:PORT` does not answer like one, but with `404 Not Found` (hint: check the catalog's `uri`: it is the address before `/v1`)
      the warehouse `s3://lake/shop` cannot be written to: bucket `lake` does not exist at S3 at `http://127.0.0.1:PORT` (hint: create the bucket, or correct the `warehouse`)
    ");
}

#[test]
fn a_catalog_file_that_is_none() {
    let folder = project("name: shop\n");
    let file = folder.path().join("lake/catalog.db");
    std::fs::create_dir_all(&file).unwrap();
    let error = told(&folder, "tables", 2);
    insta::assert_snapshot!(error.lines().next().unwrap(), @"error: cannot open `FOLDER/lake/catalog.db`");
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, "not a database but a text that is longer than the header of one would be".repeat(3))
        .unwrap();
    insta::assert_snapshot!(told(&folder, "tables", 2), @"
    error: `FOLDER/lake/catalog.db` is not an SQLite file
      hint: name another file as the catalog's `uri`; a missing one is created
    ");
    let nowhere = project("name: shop\ncatalog: { type: sqlite, uri: /proc/nowhere/catalog.db }\n");
    insta::assert_snapshot!(told(&nowhere, "tables", 2), @"
    error: cannot create `/proc/nowhere`
      caused by: No such file or directory (os error 2)
      hint: check that the location exists and that this process may write there
    ");
}

#[test]
fn a_warehouse_that_is_no_folder() {
    let folder = folder_with(&[("icestream.yaml", "name: shop\nwarehouse: icestream.yaml\n")]);
    let error = told(&folder, "check", 2);
    insta::assert_snapshot!(error.replace(".icestream-probe-UUID", "PROBE"), @"
    error: the warehouse `file://FOLDER/icestream.yaml` cannot be written to
      caused by: cannot write `FOLDER/icestream.yaml/PROBE`
      caused by: File exists (os error 17)
      hint: check that the location exists and that this process may write there
    ");
}

/// Replaces a table's newest metadata file, and gives what the person is told.
fn with_metadata(folder: &TempDir, change: impl FnOnce(String) -> Option<String>, code: i32) -> String {
    let metadata = folder.path().join("warehouse/shop/orders/metadata");
    let files = std::fs::read_dir(metadata).unwrap().map(|file| file.unwrap().path());
    let newest = files.filter(|file| file.to_string_lossy().ends_with(".metadata.json")).max().unwrap();
    let before = std::fs::read_to_string(&newest).unwrap();
    match change(before.clone()) {
        Some(text) => std::fs::write(&newest, text).unwrap(),
        None => std::fs::remove_file(&newest).unwrap(),
    }
    let mut command = icestream(folder.path(), "query");
    command.arg("select sum(qty) from shop.orders");
    let told = Running::start(command).end().error(code);
    // The list shows the others all the same, and says how many it could not.
    let list = run(folder.path(), "tables");
    assert!(list.error(1).starts_with("error: 1 of 1 tables cannot be read\n"), "{list:?}");
    assert!(list.stdout.contains("| ! table `shop.orders` "), "{list:?}");
    std::fs::write(&newest, before).unwrap();
    told.replace("00002-UUID.metadata.json", "METADATA")
}

#[tokio::test]
async fn a_table_that_cannot_be_read() {
    let (folder, _) = project_with_history().await;
    let replace = |from: &str, to: &str| {
        let (from, to) = (from.to_string(), to.to_string());
        move |text: String| {
            assert!(text.contains(&from));
            Some(text.replace(&from, &to))
        }
    };
    let version_3 = replace("\"format-version\":2", "\"format-version\":3,\"next-row-id\":0");
    insta::assert_snapshot!(with_metadata(&folder, version_3, 2), @"
    error: table `shop.orders` uses format version 3, which icestream does not read or write
      hint: icestream works on unencrypted format version 2 tables; leave this one to the engine that made it
    ");
    let encrypted = replace("\"properties\":{", "\"properties\":{\"encryption.key-id\":\"k\",");
    insta::assert_snapshot!(with_metadata(&folder, encrypted, 2), @"
    error: table `shop.orders` uses encryption, which icestream does not read or write
      hint: icestream works on unencrypted format version 2 tables; leave this one to the engine that made it
    ");
    insta::assert_snapshot!(with_metadata(&folder, |_| Some("{\"hello\": 1}".to_string()), 1), @"
    error: table `shop.orders` cannot be read: its metadata file `file://FOLDER/warehouse/shop/orders/metadata/METADATA` does not parse
      caused by: DataInvalid => Failed to parse json string, source: data did not match any variant of untagged enum TableMetadataEnum
    ");
    insta::assert_snapshot!(with_metadata(&folder, |text| Some(text[..100].to_string()), 1), @"
    error: table `shop.orders` cannot be read: its metadata file `file://FOLDER/warehouse/shop/orders/metadata/METADATA` does not parse
      caused by: DataInvalid => Failed to parse json string, source: EOF while parsing a string at line 1 column 100
    ");
    insta::assert_snapshot!(with_metadata(&folder, |_| None, 1), @"
    error: table `shop.orders` cannot be read: its metadata file `file://FOLDER/warehouse/shop/orders/metadata/METADATA` is not there
      caused by: cannot read `file://FOLDER/warehouse/shop/orders/metadata/METADATA`
      caused by: Object at location FOLDER/warehouse/shop/orders/metadata/METADATA not found: No such file or directory (os error 2)
    ");
    run(folder.path(), "tables").done();
}

#[tokio::test]
async fn a_file_of_a_table_that_is_gone() {
    let (folder, _) = project_with_history().await;
    let ask = |sql: &str| {
        let mut command = icestream(folder.path(), "query");
        command.arg(sql);
        Running::start(command).end()
    };
    let take = |part: &str, ending: &str| {
        let files = std::fs::read_dir(folder.path().join("warehouse/shop/orders").join(part)).unwrap();
        let files = files.map(|file| file.unwrap().path()).filter(|file| file.to_string_lossy().ends_with(ending));
        for file in files.collect::<Vec<_>>() {
            std::fs::remove_file(file).unwrap();
        }
    };
    take("data", ".parquet");
    let told = ask("select sum(qty) from shop.orders").error(1);
    insta::assert_snapshot!(told, @"
    error: a data file is missing: Object at location FOLDER/warehouse/shop/orders/data/UUID.parquet not found: No such file or directory (os error 2)
      hint: a snapshot needs the files it names; use a newer snapshot, or restore the file
    ");
    take("metadata", ".avro");
    let told = ask("select sum(qty) from shop.orders").error(1);
    insta::assert_snapshot!(told, @"
    error: cannot read `file://FOLDER/warehouse/shop/orders/metadata/snap-ID-1-UUID.avro`
      caused by: Object at location FOLDER/warehouse/shop/orders/metadata/snap-ID-1-UUID.avro not found: No such file or directory (os error 2)
    ");
}
