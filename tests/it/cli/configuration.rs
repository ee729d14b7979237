use super::*;

fn told(settings: &str, args: &str) -> String {
    let folder = folder_with(&[("icestream.yaml", settings)]);
    run(folder.path(), args).error(2)
}

#[test]
fn from_an_empty_folder_to_a_first_query() {
    let folder = tempfile::tempdir().unwrap();
    let made = run(folder.path(), "init web_shop");
    insta::assert_snapshot!(made.done(), @"
    web_shop/icestream.yaml
    web_shop/catalog/orders.yaml
    web_shop/transforms/orders.sql
    web_shop/sql/gold/revenue_per_day.sql
    web_shop/.gitignore
    ");
    assert_eq!(made.stderr, "project `web_shop` is made; next: cd web_shop && icestream check\n");
    let project = folder.path().join("web_shop");
    // All is well but for the broker, which nobody has started yet.
    let checked = run(&project, "check --set source.kafka.brokers=127.0.0.1:1");
    assert!(checked.error(3).contains("kafka at `127.0.0.1:1` does not answer"));
    insta::assert_snapshot!(checked.normal(&checked.stdout), @"
    files      4 files, no problem
    models     2 models, no problem
    catalog    SQLite catalog `FOLDER/lake/catalog.db`, 0 namespaces
    warehouse  `file://FOLDER/lake/warehouse` can be written to
    brokers    not reached
    ");
    assert_eq!(run(&project, "tables --json").done(), "[]\n");
    let mut command = icestream(folder.path(), "query --format csv --project web_shop");
    command.arg("select 1 as one");
    assert_eq!(Running::start(command).end().done(), "one\n1\n");
    insta::assert_snapshot!(run(folder.path(), "init web_shop").error(2), @"
    error: `web_shop` has files of a project already: `icestream.yaml`, `catalog/orders.yaml`, `transforms/orders.sql`, `sql/gold/revenue_per_day.sql`
      hint: choose another folder; nothing was written
    ");
    let versioned = folder_with(&[(".gitignore", "/target/\n")]);
    assert!(!run(versioned.path(), "init --name shop").done().contains(".gitignore"));
    assert_eq!(std::fs::read_to_string(versioned.path().join(".gitignore")).unwrap(), "/target/\n");
    insta::assert_snapshot!(run(folder.path(), "tables").error(2), @"
    error: there is no `icestream.yaml` in `FOLDER`
      hint: `icestream init` makes a project here; `--project` names one that is elsewhere
    ");
    let (inside, above) = (run(&project.join("catalog"), "tables").error(2), project.canonicalize().unwrap());
    insta::assert_snapshot!(inside.replace(above.to_str().unwrap(), "ABOVE"), @"
    error: there is no `icestream.yaml` in `FOLDER`
      hint: a project is further up: add `--project ABOVE`
    ");
    insta::assert_snapshot!(run(folder.path(), "tables --project nowhere").error(2), @"
    error: there is no folder `nowhere`
      hint: name a project folder with `--project`
    ");
}

#[test]
fn everything_wrong_is_said_at_once() {
    let settings = "nme: shop\ncatalog: { type: sqlit }\nwarehouse: gs://bucket\nmemory: lots\n\
                    commit: { every: 5, rows: 0 }\nsource: { kafka: { brokers: kafka, topics: [\"a b\"] }, format: avro }\n\
                    storage: { s3: { secret_access_key: hunter2-must-not-be-seen } }\n";
    insta::assert_snapshot!(told(settings, "check"), @"
    error: the configuration has 11 problems
      icestream.yaml:1:1 nme: unknown key; did you mean `name`? allowed: `name`, `catalog`, `warehouse`, `storage`, `namespaces`, `source`, `commit`, `rejects`, `memory`, `build`, `maintain`, `metrics`, `evolution`
      icestream.yaml:1:1: `name` is missing, for example `name: shop`
      icestream.yaml:2:18 catalog.type: `sqlit` is not allowed; did you mean `sqlite`? allowed: `sqlite`, `rest`, `glue`
      icestream.yaml:3:12 warehouse: `gs://` is not supported; write a folder, `file:///folder` or `s3://bucket/prefix`
      icestream.yaml:4:9 memory: `lots` is not a size; write a number and a unit, such as `256MiB`, `2GiB` or `500kB`
      icestream.yaml:5:18 commit.every: `5` is not a duration; write a number and a unit, such as `500ms`, `10s`, `1m` or `2h`
      icestream.yaml:5:27 commit.rows: must be at least 1, not 0
      icestream.yaml:6:29 source.kafka.brokers: `kafka` is not a broker; write `host:port`, with commas between, or `embedded`
      icestream.yaml:6:45 source.kafka.topics[0]: `a b` is not a topic; topics have letters, digits, `.`, `_` and `-`, and `*` for any of them
      icestream.yaml:6:63 source.format: `avro` is not allowed; allowed: `debezium-json`, `json`
      icestream.yaml:7:37 storage.s3.secret_access_key: a secret does not belong in a file; write `${VAR}` or `${file:/path}` in its place
      hint: `icestream config reference` describes every key
    ");
    insta::assert_snapshot!(told("name: shop\n  catalog: x\n", "tables"), @"
    error: icestream.yaml:2:10: not valid YAML: mapping values are not allowed in this context
      hint: `icestream config reference` describes every key
    ");
    insta::assert_snapshot!(told("name: shop\nmemory: ${NOT_SET}\n", "tables"), @"
    error: icestream.yaml:2:9 memory: environment variable `NOT_SET` is not set; set it, or give a default with `${NOT_SET:-…}`
      hint: `icestream config reference` describes every key
    ");
    insta::assert_snapshot!(told("name: shop", "tables --set catalog.ury=x --set memory=1KiB"), @"
    error: the configuration has 2 problems
      --set catalog.ury: unknown key; did you mean `catalog.uri`?
      --set memory: must be at least `128MiB`, not `1KiB`
      hint: `icestream config reference` describes every key
    ");
    insta::assert_snapshot!(told("name: shop", "tables --log loud"), @"
    error: `loud` is not a log level or filter
      hint: write one of `error`, `warn`, `info`, `debug`, `trace`, `off`, or a filter such as `info,icestream::table=debug`
    ");
    let folder = folder_with(&[("icestream.yaml", "name: shop")]);
    let mut command = icestream(folder.path(), "tables");
    command.env("ICESTREAM_MEMRY", "1GiB").env("ICESTREAM_WAREHOUSE", "");
    insta::assert_snapshot!(Running::start(command).end().error(2), @"
    error: $ICESTREAM_MEMRY: is no setting; did you mean `ICESTREAM_MEMORY`?
      hint: `icestream config reference` describes every key
    ");
}

#[test]
fn keys_that_nothing_would_act_on_are_refused() {
    let folder = folder_with(&[
        ("icestream.yaml", "name: shop"),
        ("catalog/orders.yaml", "sort: [id]\nmode: strict\nretention: 7d\n"),
    ]);
    insta::assert_snapshot!(run(folder.path(), "check").error(2), @"
    error: the configuration has 3 problems
      catalog/orders.yaml:1:1 sort: unknown key; allowed: `topic`, `key`, `columns`, `partition`, `evolution`, `rejects`, `properties`
      catalog/orders.yaml:2:1 mode: unknown key; allowed: `topic`, `key`, `columns`, `partition`, `evolution`, `rejects`, `properties`
      catalog/orders.yaml:3:1 retention: unknown key; allowed: `topic`, `key`, `columns`, `partition`, `evolution`, `rejects`, `properties`
      hint: `icestream config reference` describes every key
    ");
}

#[test]
fn the_settings_in_force_hide_secrets() {
    let folder = folder_with(&[(
        "icestream.yaml",
        "name: shop\nstorage: { s3: { access_key_id: AKIA, secret_access_key: \"${THE_SECRET}\" } }\n\
         source: { kafka: { properties: { sasl.password: \"${THE_SECRET}\" } } }\n",
    )]);
    let shown = run(folder.path(), "config show");
    assert!(shown.done().contains("secret_access_key: \"***\"") && shown.done().contains("sasl.password: \"***\""));
    assert!(!shown.stdout.contains(SECRET));
}

#[test]
fn the_reference_and_the_schema_are_fresh() {
    let folder = tempfile::tempdir().unwrap();
    for (word, file) in [("reference", "docs/configuration.md"), ("schema", "docs/icestream.schema.json")] {
        let committed = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        assert!(
            run(folder.path(), &format!("config {word}")).done() == committed,
            "`{file}` is stale; refresh it with `cargo run -- config {word} > {file}`"
        );
    }
}
