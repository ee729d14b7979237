//! Every message a person can meet, as they meet it.

use std::path::PathBuf;

use super::*;
use crate::error::Error;
use crate::row::{ColumnType, Encoding};

struct Project {
    folder: tempfile::TempDir,
    environment: Environment,
    assignments: Vec<String>,
}

impl Project {
    fn new(yaml: &str) -> Self {
        let project =
            Project { folder: tempfile::tempdir().unwrap(), environment: Environment::new(), assignments: vec![] };
        project.file(FILE_NAME, yaml)
    }

    fn file(self, path: &str, text: &str) -> Self {
        let path = self.folder.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_string(), value.to_string());
        self
    }

    fn set(mut self, assignment: &str) -> Self {
        self.assignments.push(assignment.to_string());
        self
    }

    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(self.folder.path(), &self.environment, &self.assignments)
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|error| panic!("{}", Error::from(error).render()))
    }

    /// What `main` would print, without the hint that is always the same.
    fn error(&self) -> String {
        let error = Error::from(self.load().expect_err("this configuration has problems"));
        assert_eq!(error.kind().exit_code(), 2);
        let text = error.render().replace(self.folder.path().canonicalize().unwrap().to_str().unwrap(), "PROJECT");
        text.strip_suffix("\n  hint: `icestream config reference` describes every key").unwrap_or(&text).to_string()
    }
}

/// The problems of an `icestream.yaml` with a name and this besides.
fn error(yaml: &str) -> String {
    Project::new(&format!("name: shop\n{yaml}")).error()
}

/// The problems of a table's file.
fn table_error(yaml: &str) -> String {
    Project::new("name: shop").file("catalog/orders.yaml", yaml).error()
}

fn model_error(sql: &str) -> String {
    Project::new("name: shop").file("transforms/orders.sql", sql).error()
}

#[test]
fn a_name_is_enough() {
    let project = Project::new("name: shop\n");
    let config = project.config();
    let folder = project.folder.path().canonicalize().unwrap();
    assert_eq!(config.warehouse, format!("file://{}/lake/warehouse", folder.display()));
    assert_eq!(config.catalog, CatalogConfig::Sqlite { path: folder.join("lake/catalog.db") });
    assert_eq!(config.namespaces.silver, "shop_silver");
    assert_eq!(config.kafka.group, "icestream-shop");
    assert_eq!(config.kafka.brokers, None);
    assert_eq!(config.commit, CommitConfig { every: Duration::from_secs(10), rows: 500_000, bytes: 256 << 20 });
    assert_eq!((config.memory_bytes, config.build_every), (2 << 30, Duration::from_secs(60)));
    assert!(config.tables.is_empty() && config.silver.is_empty() && config.gold.is_empty());
}

#[test]
fn everything_can_be_set() {
    let project = Project::new(
        r#"
name: shop
catalog:
  type: rest
  uri: http://localhost:8181/api
  warehouse: shop
  credential: ${CREDENTIAL}
  scope: PRINCIPAL_ROLE:ALL
  oauth2_server_uri: http://localhost:8181/token
  prefix: main
warehouse: s3://lake/shop/
storage:
  s3: { endpoint: "http://minio:9000", region: eu-central-1, access_key_id: key, secret_access_key: "${file:s3.key}", path_style: true }
namespaces: { bronze: raw, silver: clean, gold: marts }
source:
  kafka:
    brokers: a:9092, b:9092
    group: loader
    topics: ["shop.public.*", other]
    properties: { security.protocol: SASL_SSL, sasl.password: "${CREDENTIAL}", fetch.min.bytes: 100000, enable.ssl.certificate.verification: true }
  format: debezium-json
commit: { every: 1m, rows: 1000, bytes: 1MiB }
memory: 512MiB
metrics: { listen: "[::1]:9464" }
build: { every: 5m }
"#,
    )
    .file("s3.key", "s3cr3t\n")
    .variable("CREDENTIAL", "id:0123");
    let config = project.config();
    let CatalogConfig::Rest { credential: Some(credential), prefix, .. } = &config.catalog else { panic!("REST") };
    assert_eq!((credential.expose(), prefix.as_deref()), ("id:0123", Some("main")));
    assert_eq!(config.warehouse, "s3://lake/shop");
    assert_eq!(config.s3.secret_access_key.as_ref().map(Secret::expose), Some("s3cr3t"));
    assert!(config.s3.path_style);
    assert_eq!(config.kafka.brokers, Some(Brokers::At("a:9092, b:9092".to_string())));
    assert!(config.reads_topic("shop.public.orders") && config.reads_topic("other") && !config.reads_topic("another"));
    let properties: Vec<_> = config.kafka.properties.expose().collect();
    assert!(properties.contains(&("sasl.password", "id:0123")) && properties.contains(&("fetch.min.bytes", "100000")));
    assert_eq!(config.namespaces.gold, "marts");
    assert_eq!(config.metrics_listen.as_deref(), Some("[::1]:9464"));
}

#[test]
fn a_flag_wins_over_a_variable_over_the_file_over_the_default() {
    let project = Project::new("name: shop\ncommit: { rows: 1 }\n");
    assert_eq!(project.config().commit.rows, 1);
    let project = project.variable("ICESTREAM_COMMIT__ROWS", "2").variable("ICESTREAM_COMMIT__EVERY", "2s");
    assert_eq!(project.config().commit.rows, 2);
    assert_eq!(project.config().commit.every, Duration::from_secs(2));
    let project = project.set("commit.rows=3");
    assert_eq!(project.config().commit.rows, 3);
    let project = Project::new("name: shop\n")
        .variable("ICESTREAM_WAREHOUSE", "s3://lake/$HOME/${x}")
        .variable("ICESTREAM_CATALOG__URI", "other.db")
        .variable("ICESTREAM_SOURCE__KAFKA__TOPICS", "a.*, b")
        .variable("ICESTREAM_SOURCE__KAFKA__PROPERTIES__SASL_PASSWORD", "pw")
        .set("source.kafka.properties.client.id=me");
    let config = project.config();
    assert_eq!(config.warehouse, "s3://lake/$HOME/${x}");
    assert!(matches!(&config.catalog, CatalogConfig::Sqlite { path } if path.ends_with("other.db")));
    assert_eq!(config.kafka.topics.iter().map(TopicPattern::as_str).collect::<Vec<_>>(), ["a.*", "b"]);
    assert_eq!(config.kafka.properties.expose().collect::<Vec<_>>(), [("client.id", "me"), ("sasl.password", "pw")]);
}

#[test]
fn an_empty_variable_is_not_set_and_a_broken_file_stays_broken() {
    assert_eq!(Project::new("name: shop\n").variable("ICESTREAM_MEMORY", "").config().memory_bytes, 2 << 30);
    let project = Project::new("name: shop\ncommit: 10s\n").variable("ICESTREAM_COMMIT__ROWS", "7");
    insta::assert_snapshot!(project.error(), @"error: icestream.yaml:2:9 commit: must be a map with the keys `every`, `rows`, `bytes`, not a single value");
}

#[test]
fn the_sample_project_has_no_problems() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = Config::load(root, &Environment::new(), &[]);
    let config = config.unwrap_or_else(|error| panic!("{}", Error::from(error).render()));
    assert_eq!((config.name.as_str(), &config.kafka.brokers), ("shop", &Some(Brokers::Embedded)));
    assert!(config.reads_topic("shop.public.orders"));
}

#[test]
fn variables_of_others_are_left_alone() {
    let project = Project::new("name: \"${ICESTREAM_NAMES:-shop}\"\n")
        .variable("ICESTREAM_NAMES", "mine")
        .variable("ICESTREAM_LOG", "debug")
        .variable("ICESTREAM_SERVICE_HOST", "10.0.0.1")
        .variable("ICESTREAM_PORT_9090_TCP_ADDR", "10.0.0.1")
        .variable("ICESTREAM_WEB_SERVICE_PORT_HTTP", "80")
        .variable("ICESTREAM_RELEASE_CHANNEL", "stable");
    assert_eq!(project.config().name, "mine");
}

#[test]
fn a_null_is_as_good_as_nothing() {
    let config = Project::new("name: shop\ncommit:\n  # every: 1m\nsource:\n  kafka:\n    brokers:\n").config();
    assert_eq!(config.commit.rows, 500_000);
    assert_eq!(config.kafka.brokers, None);
}

#[test]
fn unknown_keys_name_the_nearest() {
    insta::assert_snapshot!(error("commit:\n  evry: 10s\n"), @"error: icestream.yaml:3:3 commit.evry: unknown key; did you mean `every`? allowed: `every`, `rows`, `bytes`");
    insta::assert_snapshot!(error("brokers: a:1\n"), @"error: icestream.yaml:2:1 brokers: unknown key; did you mean `source.kafka.brokers`? allowed: `name`, `catalog`, `warehouse`, `storage`, `namespaces`, `source`, `commit`, `rejects`, `memory`, `build`, `maintain`, `metrics`, `evolution`");
    insta::assert_snapshot!(error("catalog: { type: sqlite, region: eu }\n"), @"error: icestream.yaml:2:26 catalog.region: unknown key for `type: sqlite`; `type: glue` has it; allowed: `type`, `uri`");
    insta::assert_snapshot!(error("zzz: 1\n"), @"error: icestream.yaml:2:1 zzz: unknown key; allowed: `name`, `catalog`, `warehouse`, `storage`, `namespaces`, `source`, `commit`, `rejects`, `memory`, `build`, `maintain`, `metrics`, `evolution`");
    insta::assert_snapshot!(error("storage: { s3: { path-style: true } }\n"), @"error: icestream.yaml:2:18 storage.s3.path-style: unknown key; did you mean `path_style`? allowed: `endpoint`, `region`, `profile`, `access_key_id`, `secret_access_key`, `session_token`, `path_style`");
}

#[test]
fn wrong_values_say_what_is_right() {
    insta::assert_snapshot!(error("memory: 2 elephants\n"), @"error: icestream.yaml:2:9 memory: `2 elephants` is not a size; write a number and a unit, such as `256MiB`, `2GiB` or `500kB`");
    insta::assert_snapshot!(error("metrics: { listen: 9464 }\n"), @"error: icestream.yaml:2:20 metrics.listen: `9464` is no place to listen at; write `address:port`, such as `127.0.0.1:9464`");
    insta::assert_snapshot!(error("memory: 1MiB\n"), @"error: icestream.yaml:2:9 memory: must be at least `128MiB`, not `1MiB`");
    insta::assert_snapshot!(error("commit: { every: 10 }\n"), @"error: icestream.yaml:2:18 commit.every: `10` is not a duration; write a number and a unit, such as `500ms`, `10s`, `1m` or `2h`");
    insta::assert_snapshot!(error("commit: { rows: many }\n"), @"error: icestream.yaml:2:17 commit.rows: `many` is not a whole number");
    insta::assert_snapshot!(error("commit: { rows: 0 }\n"), @"error: icestream.yaml:2:17 commit.rows: must be at least 1, not 0");
    insta::assert_snapshot!(error("storage: { s3: { path_style: yes } }\n"), @"error: icestream.yaml:2:30 storage.s3.path_style: `yes` is not `true` or `false`");
    insta::assert_snapshot!(error("source: { format: debezium-jsn }\n"), @"error: icestream.yaml:2:19 source.format: `debezium-jsn` is not allowed; did you mean `debezium-json`? allowed: `debezium-json`, `json`");
    insta::assert_snapshot!(error("source: { format: xml }\n"), @"error: icestream.yaml:2:19 source.format: `xml` is not allowed; allowed: `debezium-json`, `json`");
    insta::assert_snapshot!(error("namespaces: { bronze: Shop-Raw }\n"), @"error: icestream.yaml:2:23 namespaces.bronze: `Shop-Raw` is not a valid name: use lower-case letters, digits and underscores, starting with a letter; for example `shop_raw`");
    insta::assert_snapshot!(error("warehouse: gs://lake\n"), @"error: icestream.yaml:2:12 warehouse: `gs://` is not supported; write a folder, `file:///folder` or `s3://bucket/prefix`");
    insta::assert_snapshot!(error("warehouse: \"s3://\"\n"), @"error: icestream.yaml:2:12 warehouse: `s3://` names no bucket");
    insta::assert_snapshot!(error("source: { kafka: { brokers: kafka } }\n"), @"error: icestream.yaml:2:29 source.kafka.brokers: `kafka` is not a broker; write `host:port`, with commas between, or `embedded`");
    insta::assert_snapshot!(error("source: { files: { paths: [dump] }, kafka: { topics: [a] } }\n"), @"error: icestream.yaml:2:18 source.files: files are read in place of topics; keep `files` or `kafka.topics`");
    insta::assert_snapshot!(error("source: { files: { paths: [gs://b/dump] } }\n"), @"error: icestream.yaml:2:28 source.files.paths[0]: `gs://` is not supported; write a folder, `file:///folder` or `s3://bucket/prefix`");
    insta::assert_snapshot!(error("source: { kafka: { topics: [shop/*] } }\n"), @"error: icestream.yaml:2:29 source.kafka.topics[0]: `shop/*` is not a topic; topics have letters, digits, `.`, `_` and `-`, and `*` for any of them");
    insta::assert_snapshot!(error("storage: { s3: { endpoint: minio:9000 } }\n"), @"error: icestream.yaml:2:28 storage.s3.endpoint: `minio:9000` is not an address; write `https://host:port/path`");
    insta::assert_snapshot!(error("storage: { s3: { endpoint: \"http://me:pw@minio\" } }\n"), @"error: icestream.yaml:2:28 storage.s3.endpoint: an address must not carry a user or a password");
    insta::assert_snapshot!(error("catalog: { type: sqlite, uri: \"sqlite:///x.db\" }\n"), @"error: icestream.yaml:2:31 catalog.uri: `sqlite:///x.db` is an address; write the path of the file alone");
}

#[test]
fn wrong_shapes_say_what_is_right() {
    insta::assert_snapshot!(error("commit: 10s\n"), @"error: icestream.yaml:2:9 commit: must be a map with the keys `every`, `rows`, `bytes`, not a single value");
    insta::assert_snapshot!(error("source: { kafka: { topics: shop.* } }\n"), @r#"error: icestream.yaml:2:28 source.kafka.topics: must be a list, not a single value; write `["shop.*"]`"#);
    insta::assert_snapshot!(error("warehouse: [a]\n"), @"error: icestream.yaml:2:12 warehouse: must be a single value, such as `s3://lake/shop`, not a list");
    insta::assert_snapshot!(error("source: { kafka: { properties: [a] } }\n"), @"error: icestream.yaml:2:32 source.kafka.properties: must be a map of names and values, not a list");
    insta::assert_snapshot!(error("source: { kafka: { topics: [~] } }\n"), @"error: icestream.yaml:2:29 source.kafka.topics[0]: this entry is empty");
    insta::assert_snapshot!(error("catalog: sqlite\n"), @"error: icestream.yaml:2:10 catalog: must be a map with a `type`, one of `sqlite`, `rest`, `glue`, not a single value");
    insta::assert_snapshot!(error("catalog: { uri: x }\n"), @"error: icestream.yaml:2:10 catalog: `type` is missing; it is one of `sqlite`, `rest`, `glue`");
    insta::assert_snapshot!(error("catalog: { type: hive }\n"), @"error: icestream.yaml:2:18 catalog.type: `hive` is not allowed; allowed: `sqlite`, `rest`, `glue`");
    insta::assert_snapshot!(error("catalog: { type: rest }\n"), @"error: icestream.yaml:2:10 catalog: `uri` is missing, for example `uri: https://polaris.example.com/api/catalog`");
    insta::assert_snapshot!(error("storage: !s3 { region: eu }\n"), @"error: icestream.yaml:2:10 storage: a YAML tag has no meaning here");
    insta::assert_snapshot!(Project::new("- name: shop\n").error(), @"error: icestream.yaml:1:1: must be a map with the keys `name`, `catalog`, `warehouse`, `storage`, `namespaces`, `source`, `commit`, `rejects`, `memory`, `build`, `maintain`, `metrics`, `evolution`, not a list");
    insta::assert_snapshot!(Project::new("").error(), @"error: icestream.yaml: `name` is missing, for example `name: shop`");
}

#[test]
fn yaml_of_more_than_one_meaning_is_refused() {
    insta::assert_snapshot!(error("memory: 1GiB\nmemory: 2GiB\ncommit: { rows: 1, rows: 2 }\n"), @"
    error: the configuration has 2 problems
      icestream.yaml:3:1 memory: is written twice; it stands in line 2 already
      icestream.yaml:4:20 commit.rows: is written twice; it stands in line 4 already
    ");
    insta::assert_snapshot!(error("commit:\n\trows: 1\n"), @"error: icestream.yaml:3:1: a tab cannot indent YAML; use spaces");
    insta::assert_snapshot!(error("source: { kafka: { brokers: ${KAFKA} } }\n"), @"error: icestream.yaml:2:30: while parsing a flow mapping, did not find expected ',' or '}'; inside `{ … }` a value with `${…}` needs double quotes");
    insta::assert_snapshot!(error("a: &a { rows: 1 }\ncommit: { <<: *a }\n"), @"
    error: the configuration has 2 problems
      icestream.yaml:2:1 a: unknown key; allowed: `name`, `catalog`, `warehouse`, `storage`, `namespaces`, `source`, `commit`, `rejects`, `memory`, `build`, `maintain`, `metrics`, `evolution`
      icestream.yaml:3:11 commit: YAML merge keys (`<<`) are not read; write the keys out
    ");
}

#[test]
fn references_that_lead_nowhere_are_named() {
    insta::assert_snapshot!(error("memory: ${MEMORY}\nwarehouse: ${file:nowhere}\n"), @"
    error: the configuration has 2 problems
      icestream.yaml:2:9 memory: environment variable `MEMORY` is not set; set it, or give a default with `${MEMORY:-…}`
      icestream.yaml:3:12 warehouse: file `PROJECT/nowhere` cannot be read: there is no such file
    ");
    let project = Project::new("name: shop\nmemory: ${MEMORY}\ncommit: { every: \"${file:every}\" }\n")
        .variable("MEMORY", "lots")
        .file("every", "hunter2");
    insta::assert_snapshot!(project.error(), @"
    error: the configuration has 2 problems
      icestream.yaml:2:9 memory: `lots` is not a size; write a number and a unit, such as `256MiB`, `2GiB` or `500kB`
      icestream.yaml:3:18 commit.every: what `${file:every}` holds is not a duration
    ");
}

#[test]
fn problems_of_variables_and_flags_name_them() {
    let project = Project::new("name: shop\n")
        .variable("ICESTREAM_MEMORY", "lots")
        .variable("ICESTREAM_CATALOG__URL", "x")
        .variable("ICESTREAM_SOURCE__KAFKA__SERVER__LIST", "x")
        .variable("ICESTREAM_COMMIT__ROWS", "none")
        .set("commit.evry=1s")
        .set("memory")
        .set("commit.rows=-1")
        .set("storage.s3.secret_access_key=hunter2");
    insta::assert_snapshot!(project.error(), @"
    error: the configuration has 7 problems
      $ICESTREAM_CATALOG__URL: is no setting; did you mean `ICESTREAM_CATALOG__URI`?
      $ICESTREAM_MEMORY memory: `lots` is not a size; write a number and a unit, such as `256MiB`, `2GiB` or `500kB`
      $ICESTREAM_SOURCE__KAFKA__SERVER__LIST: is no setting; the path of a key is written with `__` between
      --set commit.evry: unknown key; did you mean `commit.every`?
      --set commit.rows: `-1` is not a whole number
      --set memory: write `KEY=VALUE`, such as `commit.every=5s`
      --set storage.s3.secret_access_key: a secret on the command line is seen by everybody on the machine; set it by environment
    ");
}

#[test]
fn keys_that_do_not_go_together() {
    insta::assert_snapshot!(
        Project::new(
            "name: shop\nnamespaces: { bronze: a, silver: a }\nstorage: { s3: { access_key_id: x } }\n\
             source: { kafka: { properties: { group.id: x, enable.auto.commit: true } } }\n\
             catalog: { type: rest, uri: \"http://h\", token: \"${T}\", credential: \"${T}\" }\n"
        )
        .variable("T", "hunter2")
        .error(),
        @"
        error: the configuration has 6 problems
          icestream.yaml:2:13 namespaces: two layers share a namespace, and their tables would share names; give each its own
          icestream.yaml:3:33 storage.s3.access_key_id: needs `secret_access_key` beside it
          icestream.yaml:4:44 source.kafka.properties.group.id: cannot be set here: write it as `source.kafka.group`
          icestream.yaml:4:67 source.kafka.properties.enable.auto.commit: cannot be set here: icestream keeps its offsets in the tables
          icestream.yaml:5:10 catalog: `credential`, `token` and `sigv4` exclude one another; keep one
          icestream.yaml:5:68 catalog.credential: must have the form `client_id:client_secret`
        "
    );
}

#[test]
fn msk_needs_one_word_and_may_have_more() {
    let kafka = |lines: &str| Project::new(&format!("name: shop\nsource: {{ kafka: {{ {lines} }} }}\n"));
    assert_eq!(kafka("auth: aws-msk-iam").config().kafka.auth, KafkaAuth::AwsMskIam);
    let config =
        kafka("auth: aws-msk-iam, aws_region: eu-central-1").variable("ICESTREAM_SOURCE__KAFKA__AWS_PROFILE", "p");
    let config = config.config().kafka;
    assert_eq!((config.aws_region.as_deref(), config.aws_profile.as_deref()), (Some("eu-central-1"), Some("p")));
    insta::assert_snapshot!(kafka("aws_region: eu-central-1").error(), @"error: icestream.yaml:2:32 source.kafka.aws_region: is for `auth: aws-msk-iam` alone");
    insta::assert_snapshot!(kafka("auth: aws-msk").error(), @"error: icestream.yaml:2:26 source.kafka.auth: `aws-msk` is not allowed; allowed: `properties`, `aws-msk-iam`");
}

#[test]
fn secrets_are_never_shown() {
    let secret = "hunter2";
    insta::assert_snapshot!(
        error("catalog: { type: rest, uri: \"http://h\", token: hunter2 }\nsource: { kafka: { properties: { sasl.password: hunter2 } } }\n"),
        @"
        error: the configuration has 2 problems
          icestream.yaml:2:48 catalog.token: a secret does not belong in a file; write `${VAR}` or `${file:/path}` in its place
          icestream.yaml:3:49 source.kafka.properties.sasl.password: a secret does not belong in a file; write `${VAR}` or `${file:/path}` in its place
        "
    );
    let project = Project::new(
        "name: shop\ncatalog: { type: rest, uri: \"http://h\", token: \"${SECRET}\" }\n\
         storage: { s3: { access_key_id: id, secret_access_key: \"${SECRET}\", session_token: \"${file:secret}\" } }\n\
         source: { kafka: { properties: { sasl.password: \"${SECRET}\", sasl.username: me } } }\n",
    )
    .variable("SECRET", secret)
    .file("secret", secret);
    let config = project.config();
    assert!(!format!("{config:?}").contains(secret));
    assert!(!format!("{config:#?}").contains(secret));
    assert!(!config.show().contains(secret));
    assert_eq!(config.show().matches(MASK).count(), 4);
    let broken = project.set("catalog.credential=hunter2").set("memory=0").set("storage.s3.session_token=hunter2");
    assert!(!broken.error().contains(secret), "{}", broken.error());
    assert!(!format!("{:?}", broken.load()).contains(secret));
}

#[test]
fn a_table_is_what_its_file_says() {
    let config = Project::new("name: shop\n")
        .file(
            "catalog/orders.yaml",
            "topic: shop.public.orders\nkey: [id]\ncolumns:\n  - { name: id, type: int }\n  \
             - { name: total_amount, type: \"decimal(10,2)\", encoding: base64, doc: \"with tax\" }\n  \
             - { name: created_at, type: timestamptz }\n\
             partition: [\"day(_ingested_at)\", \"bucket(16, id)\"]\n\
             properties: { write.parquet.compression-codec: zstd }\n",
        )
        .file("catalog/customers.yaml", "")
        .file("catalog/README.md", "not a table")
        .config();
    let [customers, orders] = config.tables.as_slice() else { panic!("two tables") };
    assert_eq!((customers.name.as_str(), &customers.shape, &customers.topic), ("customers", &None, &None));
    assert_eq!(customers.partition[0].to_string(), "day(_ingested_at)");
    let shape = orders.shape.as_ref().unwrap();
    assert_eq!(shape.columns[1].column_type, ColumnType::Decimal { precision: 10, scale: 2 });
    assert_eq!(shape.columns[1].encoding, Encoding::Base64);
    assert_eq!(shape.columns[1].doc.as_deref(), Some("with tax"));
    assert_eq!(shape.columns[2].encoding, Encoding::Iso);
    let partition: Vec<String> = orders.partition.iter().map(PartitionField::to_string).collect();
    assert_eq!(partition, ["day(_ingested_at)", "bucket(16, after.id)"]);
    assert_eq!(config.table_of_topic("shop.public.orders").map(|t| t.name.as_str()), Some("orders"));
    assert_eq!(config.table_of_topic("shop.public.customers").map(|t| t.name.as_str()), Some("customers"));
    assert_eq!(config.table_of_topic("other.public.orders").map(|t| t.name.as_str()), None);
}

#[test]
fn a_table_evolves_as_its_file_says_or_else_as_the_project_does() {
    let of = |project: &str, table: &str| {
        let project = Project::new(&format!("name: shop\n{project}")).file("catalog/orders.yaml", table);
        project.config().tables[0].evolution
    };
    let columns = "columns: [{ name: id, type: int }]";
    assert_eq!(of("", ""), Evolution::Evolve);
    assert_eq!(of("evolution: strict", ""), Evolution::Strict);
    assert_eq!(of("evolution: strict", "evolution: json"), Evolution::Json);
    assert_eq!(of("evolution: json", ""), Evolution::Json);
    assert_eq!(of("evolution: json", columns), Evolution::Evolve);
    insta::assert_snapshot!(table_error(&format!("evolution: json\n{columns}")), @"error: catalog/orders.yaml:1:12 evolution: `json` keeps rows as text, and `columns` are declared; leave one of them out");
    insta::assert_snapshot!(error("evolution: strickt"), @"error: icestream.yaml:2:12 evolution: `strickt` is not allowed; did you mean `strict`? allowed: `evolve`, `strict`, `json`");
}

#[test]
fn problems_of_tables() {
    insta::assert_snapshot!(
        table_error(
            "columns:\n  - { name: id, type: integer }\n  - { name: Total, type: \"decimal(40,2)\" }\n  \
             - { type: int }\n  - { name: a, type: int, encoding: b64, typ: x }\n"
        ),
        @"
        error: the configuration has 6 problems
          catalog/orders.yaml:2:23 columns[0].type: `integer` is not a column type; there are boolean, int, long, float, double, decimal(P,S), date, timestamp, timestamptz, string, binary
          catalog/orders.yaml:3:13 columns[1].name: `Total` is not a valid name: use lower-case letters, digits and underscores, starting with a letter; for example `total`
          catalog/orders.yaml:3:26 columns[1].type: `decimal(40,2)`: a decimal has 1 to 38 digits, and not more of them behind the point than in all
          catalog/orders.yaml:4:5 columns[2]: `name` is missing, for example `name: total_amount`
          catalog/orders.yaml:5:37 columns[3].encoding: `b64` is not allowed; allowed: `native`, `days`, `millis`, `micros`, `nanos`, `iso`, `base64`, `json`, `time-millis`, `time-micros`, `time-nanos`, `digits`
          catalog/orders.yaml:5:42 columns[3].typ: unknown key; did you mean `type`? allowed: `name`, `type`, `encoding`, `doc`
        "
    );
    insta::assert_snapshot!(
        table_error("columns:\n  - { name: id, type: int }\n  - { name: id, type: int, encoding: micros }\n  - { name: _offset, type: long }\n"),
        @"
        error: the configuration has 3 problems
          catalog/orders.yaml:3:13 columns[1].name: `id` is there already
          catalog/orders.yaml:3:38 columns[1].encoding: an int cannot be encoded as `micros`; it can be `native`
          catalog/orders.yaml:4:13 columns[2].name: `_offset` is the name of a column of icestream's own
        "
    );
    insta::assert_snapshot!(
        table_error(
            "key: [idd]\ncolumns: [{ name: id, type: int }, { name: at, type: timestamptz }, { name: ok, type: boolean }]\n\
             partition: [\"day(id)\", \"bucket(4, ok)\", \"day(_ingestd_at)\", \"day(at)\", \"hour(at)\", id, id, xyzzy]\n"
        ),
        @"
        error: the configuration has 7 problems
          catalog/orders.yaml:1:7 key[0]: there is no declared column `idd`; did you mean `id`?
          catalog/orders.yaml:3:13 partition[0]: `day(id)`: `id` has the type int, which this transform does not take
          catalog/orders.yaml:3:24 partition[1]: `bucket(4, ok)`: `ok` has the type boolean, which this transform does not take
          catalog/orders.yaml:3:41 partition[2]: there is no bronze or declared column `_ingestd_at`; did you mean `_ingested_at`?
          catalog/orders.yaml:3:72 partition[4]: `hour(at)` and `day(at)` are both times of one column; keep the finer one
          catalog/orders.yaml:3:88 partition[6]: `id` is there already
          catalog/orders.yaml:3:92 partition[7]: there is no bronze or declared column `xyzzy`; there are `id`, `at`, `ok`, `_topic`, `_topic_partition`, `_offset`, `_timestamp`, `_ingested_at`, `_key`, `_op`, `_source_ts`, `_position`, `_epoch`, `_tx_id`, `_source`, `_error`, `_raw`, `_replayed_at`
        "
    );
    insta::assert_snapshot!(
        table_error("partition: [\"days(id)\", \"bucket(id)\", \"day(\"]\nsort: [\"id up\"]\nengine: loose\ntopic: \"a b\"\nkey: id\n"),
        @"
        error: the configuration has 7 problems
          catalog/orders.yaml:1:13 partition[0]: `days(id)`: there is no transform `days`; write `column`, `year(column)`, `month(column)`, `day(column)`, `hour(column)`, `bucket(N, column)` or `truncate(N, column)`
          catalog/orders.yaml:1:25 partition[1]: `bucket(id)`: `bucket` needs a number from 1 up and a column, such as `bucket(16, id)`
          catalog/orders.yaml:1:39 partition[2]: `day(` is not a partition; write `column`, `year(column)`, `month(column)`, `day(column)`, `hour(column)`, `bucket(N, column)` or `truncate(N, column)`
          catalog/orders.yaml:2:1 sort: unknown key; allowed: `topic`, `key`, `columns`, `partition`, `evolution`, `rejects`, `properties`
          catalog/orders.yaml:3:1 engine: unknown key; allowed: `topic`, `key`, `columns`, `partition`, `evolution`, `rejects`, `properties`
          catalog/orders.yaml:4:8 topic: `a b` is not a topic; topics have letters, digits, `.`, `_` and `-`
          catalog/orders.yaml:5:6 key: must be a list, not a single value; write `[id]`
        "
    );
    let project = Project::new("name: shop")
        .file("catalog/Orders.yaml", "")
        .file("catalog/a.yaml", "topic: t")
        .file("catalog/a.yml", "")
        .file("catalog/b.yaml", "topic: t")
        .file("catalog/c.yaml", "key: [\n");
    std::fs::write(project.folder.path().join("catalog/d.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    insta::assert_snapshot!(project.error(), @"
    error: the configuration has 5 problems
      catalog/Orders.yaml: the file's name is the table's name: `Orders` is not a valid name: use lower-case letters, digits and underscores, starting with a letter
      catalog/a.yml: table `a` has a file already: `a.yaml`
      catalog/b.yaml:1:8 topic: table `a` has this topic already
      catalog/c.yaml:2:1: not valid YAML: while parsing a node, did not find expected node content
      catalog/d.yaml: the file is not UTF-8 text
    ");
}

#[test]
fn a_model_is_its_front_matter_and_its_sql() {
    let config = Project::new("name: shop\n")
        .file("catalog/orders.yaml", "key: [id]")
        .file("transforms/orders.sql", "-- all of it\nSELECT * FROM changes;\n")
        .file(
            "transforms/clients.sql",
            "/* icestream\ntable: customers\nfrom: customer\nkeys: [id]\non_delete: mark\nscd: 2\ntrack_history: [name]\nignore_null_updates: true\n*/\n\nSELECT id\nFROM changes\n",
        )
        .file("sql/gold/revenue.sql", "/* icestream { refresh: full } */ SELECT 1")
        .config();
    let [clients, orders] = config.silver.as_slice() else { panic!("two models") };
    assert_eq!(
        (clients.table.to_string(), clients.from.to_string()),
        ("shop_silver.customers".into(), "shop_bronze.customer".into())
    );
    assert_eq!((clients.keys.as_slice(), clients.on_delete), (["id".to_string()].as_slice(), OnDelete::Mark));
    assert_eq!((clients.keeps_versions, clients.track_history.as_slice()), (true, ["name".to_string()].as_slice()));
    assert!(clients.ignore_null_updates && clients.ignore_null_updates_columns.is_empty());
    assert!(!orders.keeps_versions && !orders.ignore_null_updates);
    assert_eq!((clients.sql.text.as_str(), clients.sql.first_line), ("SELECT id\nFROM changes", 11));
    assert_eq!(
        (orders.table.to_string(), orders.from.to_string()),
        ("shop_silver.orders".into(), "shop_bronze.orders".into())
    );
    assert_eq!(
        (orders.keys.as_slice(), orders.sql.text.as_str()),
        (["id".to_string()].as_slice(), "-- all of it\nSELECT * FROM changes")
    );
    let [revenue] = config.gold.as_slice() else { panic!("one model") };
    assert_eq!((revenue.table.to_string(), revenue.refresh), ("shop_gold.revenue".into(), Refresh::Full));
    assert_eq!((revenue.sql.text.as_str(), revenue.sql.first_line), ("SELECT 1", 1));
}

#[test]
fn problems_of_models() {
    insta::assert_snapshot!(model_error("/* icestream\ntable: orders\nkey: [id]\non_delete: drop\nscd: two\n*/ SELECT 1"), @"
    error: the configuration has 3 problems
      transforms/orders.sql:3:1 key: unknown key; did you mean `keys`? allowed: `table`, `from`, `keys`, `on_delete`, `scd`, `track_history`, `ignore_null_updates`, `ignore_null_updates_columns`, `expect`
      transforms/orders.sql:4:12 on_delete: `drop` is not allowed; allowed: `remove`, `mark`
      transforms/orders.sql:5:6 scd: `two` is not a whole number
    ");
    insta::assert_snapshot!(model_error("/* icestream { scd: 3 } */ SELECT 1"), @"error: transforms/orders.sql scd: there are 1 and 2");
    insta::assert_snapshot!(model_error("/* icestream { track_history: [a] } */ SELECT 1"), @"error: transforms/orders.sql track_history: only a table of versions has a history: set `scd: 2` as well");
    insta::assert_snapshot!(model_error("/* icestream { ignore_null_updates_columns: [a] } */ SELECT 1"), @"error: transforms/orders.sql ignore_null_updates_columns: nulls are not ignored: set `ignore_null_updates: true` as well");
    insta::assert_snapshot!(model_error("/* icestream\ntable: orders\nSELECT 1"), @"error: transforms/orders.sql:1:1: the comment `/* icestream` has no closing `*/`");
    insta::assert_snapshot!(model_error("/* icestream\ntable: orders\n*/\n-- SELECT 1\n/* nothing */ ;\n"), @"error: transforms/orders.sql:5:16: there is no SQL in this file; write a SELECT");
    insta::assert_snapshot!(model_error("SELECT 1\n/* icestream\ntable: orders\n*/\n"), @"error: transforms/orders.sql:2:1: the comment `/* icestream` must come first in the file, and only once");
    insta::assert_snapshot!(model_error("/* icestream\n  table: [orders\n*/\nSELECT 1\n"), @"error: transforms/orders.sql:3:1: not valid YAML: while parsing a flow sequence, expected ',' or ']'");
    let project = Project::new("name: shop")
        .file("sql/gold/Revenue.sql", "SELECT 1")
        .file("sql/gold/a.sql", "/* icestream\ntable: b\nrefresh: sometimes\n*/ SELECT 1")
        .file("sql/gold/b.sql", "SELECT 1")
        .file("sql/gold/c.sql", "/* icestream { refresh: incremental } */ SELECT 1")
        .file("sql/gold/d.sql", "/* icestream { group_by: [day] } */ SELECT 1")
        .file("transforms/a.sql", "/* icestream\ntable: b\n*/ SELECT 1")
        .file("transforms/b.sql", "SELECT 1");
    insta::assert_snapshot!(project.error(), @"
    error: the configuration has 5 problems
      sql/gold/Revenue.sql table: `Revenue` is not a valid name: use lower-case letters, digits and underscores, starting with a letter
      sql/gold/a.sql:3:10 refresh: `sometimes` is not allowed; allowed: `full`, `incremental`
      sql/gold/c.sql group_by: `refresh: incremental` needs the columns that tell a row's group
      sql/gold/d.sql group_by: only `refresh: incremental` goes by groups
      transforms/b.sql table: `transforms/a.sql` makes table `shop_silver.b` already
    ");
}

#[test]
fn the_rules_of_a_model_have_names_and_places() {
    let config = Project::new("name: shop\n")
        .file(
            "transforms/orders.sql",
            "/* icestream\nexpect:\n  - { name: total_not_negative, that: \"total >= 0\", else: quarantine }\n  \
             - not_null: [customer_id, status]\n    else: drop\n  - accepted_values: { status: [paid, 1] }\n    else: warn\n  \
             - { name: one_email, unique: [email, country] }\n  \
             - relationship: { customer_id: shop_silver.customers.id }\n  - { freshness: 90m, else: warn }\n*/ SELECT 1",
        )
        .file("sql/gold/a.sql", "/* icestream { expect: [{ freshness: 1h, column: day }] } */ SELECT 1")
        .config();
    let rules = config.silver[0].expect.iter().chain(&config.gold[0].expect);
    let shown: Vec<String> =
        rules.map(|of| format!("{} {}: {:?} {:?}", of.place, of.path, of.rule.name, of.rule)).collect();
    insta::assert_snapshot!(shown.join("\n"), @r#"
    transforms/orders.sql:3:39 expect[0].that: "total_not_negative" Rule { name: "total_not_negative", test: That("total >= 0"), action: Quarantine }
    transforms/orders.sql:4:15 expect[1].not_null: "not_null_customer_id" Rule { name: "not_null_customer_id", test: NotNull { column: "customer_id" }, action: Drop }
    transforms/orders.sql:4:15 expect[1].not_null: "not_null_status" Rule { name: "not_null_status", test: NotNull { column: "status" }, action: Drop }
    transforms/orders.sql:6:22 expect[2].accepted_values: "accepted_values_status" Rule { name: "accepted_values_status", test: AcceptedValues { column: "status", values: ["paid", "1"] }, action: Warn }
    transforms/orders.sql:8:32 expect[3].unique: "one_email" Rule { name: "one_email", test: Unique { columns: ["email", "country"] }, action: Fail }
    transforms/orders.sql:9:19 expect[4].relationship: "relationship_customer_id" Rule { name: "relationship_customer_id", test: Relationship { column: "customer_id", table: TableName { namespace: "shop_silver", name: "customers" }, to: "id" }, action: Fail }
    transforms/orders.sql:10:18 expect[5].freshness: "freshness" Rule { name: "freshness", test: Freshness { column: None, within: 5400s }, action: Warn }
    sql/gold/a.sql:1:38 expect[0].freshness: "freshness_day" Rule { name: "freshness_day", test: Freshness { column: Some("day"), within: 3600s }, action: Fail }
    "#);
}

#[test]
fn problems_of_rules() {
    insta::assert_snapshot!(model_error("/* icestream\nexpect:\n  - { that: \"a > 0\" }\n  - { name: a, else: warn }\n  - { name: b, that: \"a\", not_null: [a] }\n  - { name: b, that: \"b\" }\n  - { unique: [a], else: drop }\n  - { freshness: soon }\n  - { relationship: { a: customers } }\n  - { accepted_values: { a: [] } }\n  - { not_nul: [a] }\n  - { name: null_key, that: x, esle: warn }\n*/ SELECT 1"), @"
    error: the configuration has 3 problems
      transforms/orders.sql:8:18 expect[5].freshness: `soon` is not a duration; write a number and a unit, such as `500ms`, `10s`, `1m` or `2h`
      transforms/orders.sql:11:7 expect[8].not_nul: unknown key; did you mean `not_null`? allowed: `name`, `that`, `not_null`, `accepted_values`, `unique`, `relationship`, `freshness`, `column`, `else`
      transforms/orders.sql:12:32 expect[9].esle: unknown key; did you mean `else`? allowed: `name`, `that`, `not_null`, `accepted_values`, `unique`, `relationship`, `freshness`, `column`, `else`
    ");
    insta::assert_snapshot!(model_error("/* icestream\nexpect:\n  - { that: \"a > 0\" }\n  - { name: a, else: warn }\n  - { name: b, that: \"a\", not_null: [a] }\n  - { name: c, that: \"b\" }\n  - { name: c, that: \"b\" }\n  - { unique: [a], else: drop }\n  - { relationship: { a: customers } }\n  - { accepted_values: { a: [] } }\n  - { name: null_key, that: x, column: y }\n*/ SELECT 1"), @"
    error: the configuration has 9 problems
      transforms/orders.sql:3:5 expect[0]: `name` is missing: counts and messages say it, for example `name: total_not_negative`
      transforms/orders.sql:4:5 expect[1]: says nothing to test; it takes one of `that`, `not_null`, `accepted_values`, `unique`, `relationship`, `freshness`
      transforms/orders.sql:5:5 expect[2]: takes one of `that`, `not_null`, `accepted_values`, `unique`, `relationship`, `freshness`; write the others as rules of their own
      transforms/orders.sql:7:13 expect[4].name: `expect[3]` has the name `c` already
      transforms/orders.sql:8:26 expect[5].else: `unique` is about the whole table, not about a row: it can only `warn` or `fail`
      transforms/orders.sql:9:21 expect[6].relationship: `customers` names no column of a table; write `namespace.table.column`
      transforms/orders.sql:10:24 expect[7].accepted_values: no value is accepted for `a`; list those that are
      transforms/orders.sql:11:13 expect[8].name: `null_key` is what events without a value for a key are in quarantine for
      transforms/orders.sql:11:40 expect[8].column: only `freshness` has a column that says when
    ");
    let project = Project::new("name: shop")
        .file(
            "sql/gold/a.sql",
            "/* icestream\nexpect:\n  - { not_null: [a], else: quarantine }\n  - { freshness: 1h }\n*/ SELECT 1",
        )
        .file("transforms/a__quarantine.sql", "SELECT 1");
    insta::assert_snapshot!(project.error(), @"
    error: the configuration has 3 problems
      sql/gold/a.sql:3:28 expect[0].else: a gold table has the rows its query gives: `quarantine` has no meaning here; leave rows out by the query, or keep them out of silver
      sql/gold/a.sql:4:18 expect[1].freshness: name the column that says when, for example `column: updated_at`
      transforms/a__quarantine.sql table: a name that ends so is for the rows that a table keeps in quarantine
    ");
}

#[test]
fn a_project_that_is_not_there() {
    let project = Project::new("name: shop");
    let missing = |folder: PathBuf| {
        let error = Error::from(Config::load(&folder, &Environment::new(), &[]).unwrap_err()).render();
        error.replace(project.folder.path().canonicalize().unwrap().to_str().unwrap(), "PROJECT")
    };
    insta::assert_snapshot!(missing(PathBuf::from("/no/such/folder")), @"
    error: there is no folder `/no/such/folder`
      hint: name a project folder with `--project`
    ");
    std::fs::create_dir(project.folder.path().join("inside")).unwrap();
    insta::assert_snapshot!(missing(project.folder.path().join("inside")), @"
    error: there is no `icestream.yaml` in `PROJECT/inside`
      hint: a project is further up: add `--project PROJECT`
    ");
    let empty = tempfile::tempdir().unwrap();
    let error = Error::from(Config::load(empty.path(), &Environment::new(), &[]).unwrap_err()).render();
    let error = error.replace(empty.path().canonicalize().unwrap().to_str().unwrap(), "EMPTY");
    insta::assert_snapshot!(error, @"
    error: there is no `icestream.yaml` in `EMPTY`
      hint: `icestream init` makes a project here; `--project` names one that is elsewhere
    ");
}

#[test]
fn the_settings_in_force_name_their_origin() {
    let project = Project::new(
        "name: shop\ncommit:\n  rows: 7\nstorage: { s3: { access_key_id: id, secret_access_key: \"${SECRET}\" } }\n\
         source: { kafka: { topics: [\"shop.*\"], properties: { client.id: \"a b\" } } }\n",
    )
    .variable("SECRET", "hunter2")
    .variable("ICESTREAM_BUILD__EVERY", "90s")
    .set("memory=4GiB");
    let shown = project.config().show();
    let shown = shown.replace(project.folder.path().canonicalize().unwrap().to_str().unwrap(), "PROJECT");
    insta::assert_snapshot!(shown, @r#"
    # project folder: PROJECT
    # files read: 1 (catalog/: 0, transforms/: 0, sql/gold/: 0)
    name: shop                                           # line 1
    catalog:
      type: sqlite                                       # default
      uri: lake/catalog.db                               # default
    warehouse: lake/warehouse                            # default
    storage:
      s3:
        access_key_id: id                                # line 4
        secret_access_key: "***"                         # line 4
        path_style: false                                # default
    namespaces:
      bronze: shop_bronze                                # default
      silver: shop_silver                                # default
      gold: shop_gold                                    # default
    source:
      kafka:
        group: icestream-shop                            # default
        topics: ["shop.*"]                               # line 5
        discover_every: 30s                              # default
        properties:
          client.id: "a b"                               # line 5
        auth: properties                                 # default
      format: debezium-json                              # default
      unavailable_placeholder: "__debezium_unavailable_value" # default
    commit:
      every: 10s                                         # default
      rows: 7                                            # line 3
      bytes: 256MiB                                      # default
    rejects: {}                                          # default
    memory: 4GiB                                         # --set memory
    build:
      every: 1m30s                                       # $ICESTREAM_BUILD__EVERY
      keep_findings: 30days                              # default
    maintain:
      target_size: 128MiB                                # default
      keep_snapshots_for: 1day                           # default
      keep_snapshots: 10                                 # default
      max_snapshots: 500                                 # default
      orphans_after: 3days                               # default
    metrics: {}                                          # default
    evolution: evolve                                    # default
    "#);
}

fn check_committed(path: &str, made: &str, command: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == made, "`{path}` is stale; refresh it with `cargo run -- {command} > {path}`");
}

#[test]
fn the_reference_page_is_fresh() {
    check_committed("docs/configuration.md", &reference(), "config reference");
}

#[test]
fn the_json_schema_is_fresh() {
    check_committed("docs/icestream.schema.json", &json_schema(), "config schema");
}
