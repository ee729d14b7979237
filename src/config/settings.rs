//! The files as their writer sees them. The comments here are the reference: `config reference` and the JSON schema are
//! made from them.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use super::quantity::{Percent, Size, Span};
use super::secret::{MASK, Secret, is_secret_name};
use crate::evolution::Evolution;
use crate::placeholder;

/// The project's settings. Only `name` has to be there.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// The project's name. The default namespaces and the Kafka group are made from it, and the SQLite catalog keeps
    /// its tables under it. Choose it once: another name is another lake.
    #[schemars(extend("format" = "name"), example = &"shop")]
    pub(super) name: String,

    /// Where the tables are registered.
    #[serde(default)]
    pub(super) catalog: CatalogSettings,

    /// Where the tables' files are: a folder (relative to the project folder, absolute, or `file:///…`) or
    /// `s3://bucket/prefix`.
    #[serde(default = "default_warehouse")]
    #[schemars(extend("format" = "location"), example = &"s3://lake/shop")]
    pub(super) warehouse: String,

    /// How to reach the warehouse.
    #[serde(default)]
    pub(super) storage: StorageSettings,

    /// The namespaces (databases) of the three layers.
    #[serde(default)]
    pub(super) namespaces: NamespaceSettings,

    /// Where change events come from.
    #[serde(default)]
    pub(super) source: SourceSettings,

    /// When what was read is committed to bronze. The first of the three limits that is reached triggers a commit.
    #[serde(default)]
    pub(super) commit: CommitSettings,

    /// What to do about records that cannot become rows. Each is kept, with the reason, and can be replayed.
    #[serde(default)]
    pub(super) rejects: RejectSettings,

    /// The memory that queues, writers, merges and queries share. They slow down or spill to disk at the limit. Leave
    /// the container some 25 % more.
    #[serde(default = "default_memory")]
    #[schemars(extend("x-minimum" = "128MiB"), example = &"4GiB")]
    pub(super) memory: Size,

    /// When silver and gold are brought up to date.
    #[serde(default)]
    pub(super) build: BuildSettings,

    /// What `icestream maintain` does to tables.
    #[serde(default)]
    pub(super) maintain: MaintainSettings,

    /// What `icestream run` and `icestream ingest` tell monitoring about themselves.
    #[serde(default)]
    pub(super) metrics: MetricsSettings,

    /// What is done when a record brings other columns than its bronze table has, for tables whose file in `catalog/`
    /// does not say. A table whose columns are declared never takes `json` from here.
    #[serde(default)]
    pub(super) evolution: Evolution,
}

fn default_warehouse() -> String {
    "lake/warehouse".to_string()
}

fn default_memory() -> Size {
    Size(2 << 30)
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum CatalogSettings {
    /// A SQLite file that icestream keeps itself: nothing to install, one machine. pyiceberg opens the same file.
    Sqlite {
        /// The file, relative to the project folder or absolute. It is made with its folder when missing.
        #[serde(default = "default_catalog_file")]
        #[schemars(extend("format" = "file"))]
        uri: String,
    },
    /// An Iceberg REST catalog: Polaris, Nessie, Lakekeeper, Unity, S3 Tables, …
    Rest {
        /// The catalog's address, without `/v1`.
        #[schemars(extend("format" = "http-url"), example = &"https://polaris.example.com/api/catalog")]
        uri: String,
        /// The name the catalog knows this warehouse by.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(example = &"shop")]
        warehouse: Option<String>,
        /// `client_id:client_secret`, exchanged for a token by OAuth2.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(example = &"${CATALOG_CREDENTIAL}")]
        credential: Option<Secret>,
        /// A bearer token, in place of `credential`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(example = &"${file:/run/secrets/catalog-token}")]
        token: Option<Secret>,
        /// The OAuth2 scope to ask for.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(example = &"PRINCIPAL_ROLE:ALL")]
        scope: Option<String>,
        /// Where tokens are given out, when the catalog does not do it itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(extend("format" = "http-url"), example = &"https://login.example.com/oauth2/token")]
        oauth2_server_uri: Option<String>,
        /// The path prefix, when the catalog does not announce its own.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(example = &"main")]
        prefix: Option<String>,
        /// Sign requests with AWS credentials, for catalogs behind AWS (S3 Tables, Glue's REST endpoint).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sigv4: Option<SigV4Settings>,
    },
    /// AWS Glue, which Athena, EMR, Redshift and Trino read. Credentials come from the default AWS chain.
    Glue {
        /// The AWS region; the default AWS chain's when not set.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(example = &"eu-central-1")]
        region: Option<String>,
        /// Another address of the service, such as a VPC endpoint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(extend("format" = "http-url"), example = &"http://localhost:5000")]
        endpoint: Option<String>,
        /// The Glue catalog; the account's own when not set.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(example = &"123456789012")]
        catalog_id: Option<String>,
        /// The profile of the AWS configuration files.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(example = &"analytics")]
        profile: Option<String>,
    },
}

fn default_catalog_file() -> String {
    "lake/catalog.db".to_string()
}

impl Default for CatalogSettings {
    fn default() -> Self {
        CatalogSettings::Sqlite { uri: default_catalog_file() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SigV4Settings {
    /// The service name in the signature.
    #[serde(default = "default_signing_service")]
    #[schemars(example = &"s3tables")]
    pub(super) service: String,
    /// The region in the signature; the default AWS chain's when not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"eu-central-1")]
    pub(super) region: Option<String>,
}

fn default_signing_service() -> String {
    "glue".to_string()
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct StorageSettings {
    /// S3 and what speaks its protocol. What is not set comes from the default AWS chain: environment, profile, web
    /// identity (IRSA), container and instance roles.
    pub(super) s3: S3Settings,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct S3Settings {
    /// The address of an S3-compatible server; AWS itself when not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "http-url"), example = &"http://minio:9000")]
    pub(super) endpoint: Option<String>,
    /// The region of the bucket.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"eu-central-1")]
    pub(super) region: Option<String>,
    /// The profile of the AWS configuration files.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"analytics")]
    pub(super) profile: Option<String>,
    /// An access key, where the default chain is not wanted. Set together with `secret_access_key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"${S3_ACCESS_KEY_ID}")]
    pub(super) access_key_id: Option<String>,
    /// The access key's secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"${S3_SECRET_ACCESS_KEY}")]
    pub(super) secret_access_key: Option<Secret>,
    /// The token that belongs to temporary keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"${S3_SESSION_TOKEN}")]
    pub(super) session_token: Option<Secret>,
    /// Ask for `http://endpoint/bucket/key` in place of `http://bucket.endpoint/key`. Most S3-compatible servers need
    /// it.
    pub(super) path_style: bool,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct NamespaceSettings {
    /// The change events as they came.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "name", "x-default" = "`<name>_bronze`"), example = &"shop_bronze")]
    pub(super) bronze: Option<String>,
    /// The current rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "name", "x-default" = "`<name>_silver`"), example = &"shop_silver")]
    pub(super) silver: Option<String>,
    /// What is computed from them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "name", "x-default" = "`<name>_gold`"), example = &"shop_gold")]
    pub(super) gold: Option<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SourceSettings {
    /// The Kafka cluster and what to read from it.
    pub(super) kafka: KafkaSettings,
    /// Files to read in place of topics.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) files: Option<FilesSettings>,
    /// What the records hold.
    pub(super) format: Format,
    /// What the connector sends in place of a large value that did not change, as its `unavailable.value.placeholder` has
    /// it: a text, or bytes as hexadecimal digits behind `hex:`. The column is null in that row then, and its name is in
    /// `_unavailable`. Rows of snapshots (op `r`) are whole, and a value that looks like it stays a value there.
    #[schemars(extend("format" = "placeholder"), example = &"hex:00ff")]
    pub(super) unavailable_placeholder: String,
}

impl Default for SourceSettings {
    fn default() -> Self {
        SourceSettings {
            kafka: KafkaSettings::default(),
            files: None,
            format: Format::default(),
            unavailable_placeholder: placeholder::DEFAULT.to_string(),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct KafkaSettings {
    /// The addresses to start from, `host:port` with commas between, or `embedded` for the broker inside the process
    /// that `icestream demo` uses.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "brokers"), example = &"kafka-1:9092,kafka-2:9092")]
    pub(super) brokers: Option<String>,
    /// The consumer group in which processes share partitions, and under which progress is shown to Kafka's own tools.
    /// Progress itself is kept in the tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-default" = "`icestream-<name>`"), example = &"icestream-shop")]
    pub(super) group: Option<String>,
    /// The topics to read, by name or by pattern: `*` stands for any characters.
    #[schemars(extend("items" = { "type": "string", "format": "topic-pattern" }), example = ["shop.public.*"])]
    pub(super) topics: Vec<String>,
    /// How often to look for new topics and partitions.
    #[schemars(extend("x-minimum" = "1s"), example = &"5m")]
    pub(super) discover_every: Span,
    /// Properties handed to librdkafka as they are, such as `security.protocol` and `sasl.username`. Tokens of
    /// `sasl.oauthbearer.method: oidc` are fetched by icestream itself, from `sasl.oauthbearer.token.endpoint.url` with
    /// `sasl.oauthbearer.client.id`, `.client.secret` and `.scope`; `https.ca.location` or `https.ca.pem` names the
    /// authority behind that address, where it is no public one. Secret are those properties whose names contain
    /// `password`, `passphrase`, `secret`, `jaas`, `key.pem`, `private.key`, `user.info` or `oauthbearer.config`.
    #[schemars(extend("x-secret-keys" = true), example = kafka_properties_example())]
    pub(super) properties: KafkaProperties,
    /// How the brokers know who we are.
    pub(super) auth: KafkaAuth,
    /// The AWS region of an MSK cluster; told by the brokers' names or the default AWS chain when not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"eu-central-1")]
    pub(super) aws_region: Option<String>,
    /// The profile of the AWS configuration files whose credentials an MSK cluster is shown; it may name a role to assume.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"ingest")]
    pub(super) aws_profile: Option<String>,
}

/// How Kafka's brokers know who we are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum KafkaAuth {
    /// as `properties` say, with `security.protocol`, `sasl.…` and `ssl.…`.
    #[default]
    Properties,
    /// by IAM, for Amazon MSK: with credentials of the default AWS chain (environment, profile, web identity, container
    /// and instance roles), over TLS. Nothing in `properties` is needed for it.
    AwsMskIam,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct FilesSettings {
    /// Files, folders, or patterns in which `*` stands for any characters, on local disks or S3. A line of a file is a
    /// record: its value alone, or an object with `value` and any of `key`, `topic`, `partition`, `offset`, `timestamp`
    /// and `headers`, as the S3 sinks of Kafka Connect write it. Files may be packed with gzip or zstd. They are read in
    /// the order of their names: new ones have to come behind those that were read.
    #[schemars(length(min = 1), extend("items" = { "type": "string", "format": "location" }), example = ["s3://bucket/topics/shop.public.*.json.gz"])]
    pub(super) paths: Vec<String>,
    /// The topic the files are of. When not set, it is the name of the folder a file is in, but for folders such as
    /// `partition=0`, which say the partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "topic"), example = &"shop.public.orders")]
    pub(super) topic: Option<String>,
}

impl Default for KafkaSettings {
    fn default() -> Self {
        KafkaSettings {
            brokers: None,
            group: None,
            topics: Vec::new(),
            discover_every: Span(Duration::from_secs(30)),
            properties: KafkaProperties::default(),
            auth: KafkaAuth::default(),
            aws_region: None,
            aws_profile: None,
        }
    }
}

fn kafka_properties_example() -> BTreeMap<&'static str, &'static str> {
    [("security.protocol", "SASL_SSL"), ("sasl.password", "${KAFKA_PASSWORD}")].into()
}

/// Properties for the Kafka client by name. Those that carry a secret are masked in `Debug` and when written out.
#[derive(Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
#[schemars(inline)]
pub struct KafkaProperties(BTreeMap<String, String>);

impl KafkaProperties {
    /// Names and values, the secret ones as they are.
    pub fn expose(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    fn masked(&self) -> impl Iterator<Item = (&str, &str)> {
        self.expose().map(|(name, value)| (name, if is_secret_name(name) { MASK } else { value }))
    }
}

impl fmt::Debug for KafkaProperties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.masked()).finish()
    }
}

impl Serialize for KafkaProperties {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.masked())
    }
}

/// What the records of a topic hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum Format {
    /// Debezium change events as JSON, with or without the schema block: in their envelope, or flattened
    /// (`ExtractNewRecordState`) with `op`, `deleted` or fields of `source` added.
    #[default]
    DebeziumJson,
    /// rows as JSON objects, with or without a schema block, as the flattened form is without added fields. Each record is
    /// an upsert of its key; one without a value deletes it.
    Json,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CommitSettings {
    /// Commit at least this often while there is something to commit.
    #[schemars(extend("x-minimum" = "100ms"), example = &"1m")]
    pub(super) every: Span,
    /// Commit when this many rows are waiting.
    #[schemars(range(min = 1), example = 1_000_000)]
    pub(super) rows: u64,
    /// Commit when this many bytes of records are waiting.
    #[schemars(extend("x-minimum" = "64KiB"), example = &"512MiB")]
    pub(super) bytes: Size,
}

impl Default for CommitSettings {
    fn default() -> Self {
        CommitSettings { every: Span(Duration::from_secs(10)), rows: 500_000, bytes: Size(256 << 20) }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RejectSettings {
    /// Stop reading a table when more than this share of its last 10,000 records were rejected; the other tables go on,
    /// and a restart tries again. Fewer than 100 records count as 100. When not set, no table is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(example = &"5%")]
    pub(super) stop_above: Option<Percent>,
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BuildSettings {
    /// Merge into silver and refresh gold this often.
    #[schemars(extend("x-minimum" = "1s"), example = &"5m")]
    pub(super) every: Span,

    /// How long what rules and audits found stays in `<gold>.icestream_quality`. The latest finding of each stays for
    /// good. Older ones go when the table's files are put together.
    #[schemars(extend("x-minimum" = "1s"), example = &"90d")]
    pub(super) keep_findings: Span,
}

impl Default for BuildSettings {
    fn default() -> Self {
        BuildSettings { every: Span(Duration::from_secs(60)), keep_findings: Span(Duration::from_secs(30 * 86_400)) }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MaintainSettings {
    /// The size of data files that small ones are put together to. A table's property `write.target-file-size-bytes` comes
    /// first.
    #[schemars(extend("x-minimum" = "1MiB"), example = &"256MiB")]
    pub(super) target_size: Size,
    /// Snapshots younger than this are kept, for queries that read them and for time travel. A table's property
    /// `history.expire.max-snapshot-age-ms` comes first.
    #[schemars(extend("x-minimum" = "1m"), example = &"5d")]
    pub(super) keep_snapshots_for: Span,
    /// So many snapshots of a table are kept, the newest, however old they are. A table's property
    /// `history.expire.min-snapshots-to-keep` comes first.
    #[schemars(range(min = 1), example = 100)]
    pub(super) keep_snapshots: u64,
    /// No more snapshots of a table than this are kept, however young they are: every commit writes the list of them
    /// anew. A table with the property `history.expire.max-snapshot-age-ms` keeps all that are younger than it says. Those
    /// that silver and gold go on from are always kept.
    #[schemars(range(min = 1), example = 2000)]
    pub(super) max_snapshots: u64,
    /// Files that no snapshot names are removed when they are older than this, and not before: younger ones may belong to
    /// a commit on its way.
    #[schemars(extend("x-minimum" = "1h"), example = &"7d")]
    pub(super) orphans_after: Span,
}

impl Default for MaintainSettings {
    fn default() -> Self {
        MaintainSettings {
            target_size: Size(128 << 20),
            keep_snapshots_for: Span(Duration::from_secs(24 * 3600)),
            keep_snapshots: 10,
            max_snapshots: 500,
            orphans_after: Span(Duration::from_secs(3 * 24 * 3600)),
        }
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct MetricsSettings {
    /// Where to answer `GET /metrics` (Prometheus), `/livez` and `/readyz` (Kubernetes), as `address:port`; port 0 is one
    /// that is free. Nothing listens when not set. There is no password: keep it to this machine (`127.0.0.1`) or to a
    /// network whose members may read the names of tables.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "listen"), example = &"127.0.0.1:9464")]
    pub(super) listen: Option<String>,
}

/// What is known about one captured table. The file's name is the table's name. A table needs
/// no file: without one, its columns are what its records say, or its rows stay JSON text where those say nothing.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct TableSettings {
    /// The topic that carries the table's changes. When not set, it is the topic whose last part (behind the last dot)
    /// is the table's name.
    #[serde(default)]
    #[schemars(extend("format" = "topic"), example = &"shop.public.orders")]
    pub(super) topic: Option<String>,

    /// The columns that identify a row. When not set, the message key's fields are taken.
    #[serde(default)]
    #[schemars(example = ["id"])]
    pub(super) key: Vec<String>,

    /// The captured columns with their types. When not set, rows whose messages carry no schema stay JSON text.
    #[serde(default)]
    pub(super) columns: Vec<ColumnSettings>,

    /// How bronze is partitioned: `identity(column)` or just `column`, `year(…)`, `month(…)`, `day(…)`, `hour(…)`,
    /// `bucket(N, …)`, `truncate(N, …)`, over bronze's own columns (`_ingested_at`, `_source_ts`, `_topic`, …) or
    /// declared ones. `[]` leaves the table unpartitioned.
    #[serde(default = "default_partition")]
    #[schemars(extend("items" = { "type": "string", "format": "partition" }), example = ["day(_ingested_at)", "bucket(16, id)"])]
    pub(super) partition: Vec<String>,

    /// What is done when a record brings other columns than the bronze table has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Evolution", extend("x-default" = "the project's `evolution`"))]
    pub(super) evolution: Option<Evolution>,

    /// What to do about this table's rejected records, in place of the project's `rejects`.
    #[serde(default)]
    pub(super) rejects: RejectSettings,

    /// Iceberg table properties, set when the table is made. Files are written by zstd at level 1, and columns of numbers
    /// that it makes hardly smaller without; another `write.parquet.compression-codec` or a higher
    /// `write.parquet.compression-level` is for all columns.
    #[serde(default)]
    #[schemars(example = table_properties_example())]
    pub(super) properties: BTreeMap<String, String>,
}

fn default_partition() -> Vec<String> {
    vec!["day(_ingested_at)".to_string()]
}

fn table_properties_example() -> BTreeMap<&'static str, &'static str> {
    [("write.parquet.compression-codec", "zstd")].into()
}

#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct ColumnSettings {
    /// The column's name, as the records have it; `order_id` stands for `orderId` and `Order Id` as well.
    #[schemars(extend("format" = "name"), example = &"total_amount")]
    pub(super) name: String,
    /// Its type: `boolean`, `int`, `long`, `float`, `double`, `decimal(P,S)`, `date`, `timestamp`, `timestamptz`,
    /// `string` or `binary`.
    #[serde(rename = "type")]
    #[schemars(extend("format" = "column-type"), example = &"decimal(10,2)")]
    pub(super) column_type: String,
    /// How the records' JSON carries it. When not set, it is what Debezium's PostgreSQL connector sends for the type.
    /// A unit is never guessed.
    #[serde(default)]
    #[schemars(extend("oneOf" = encodings(), "format" = "encoding", "x-default" = "by type"), example = &"base64")]
    pub(super) encoding: Option<String>,
    /// What it means; becomes the column's comment.
    #[serde(default)]
    #[schemars(example = &"with tax, in euro")]
    pub(super) doc: Option<String>,
}

fn encodings() -> serde_json::Value {
    let words = [
        ("native", "JSON's own way: a number, a string, `true` or `false`"),
        ("days", "days since 1970 (`io.debezium.time.Date`)"),
        ("millis", "milliseconds since 1970 (`io.debezium.time.Timestamp`)"),
        ("micros", "microseconds since 1970 (`io.debezium.time.MicroTimestamp`)"),
        ("nanos", "nanoseconds since 1970 (`io.debezium.time.NanoTimestamp`); a `string` keeps all nine digits"),
        ("iso", "ISO 8601 text (`io.debezium.time.ZonedTimestamp`)"),
        ("base64", "base64 of bytes; for a decimal, of its unscaled value (`decimal.handling.mode=precise`)"),
        ("json", "any JSON value, kept as its text: arrays, maps and structs"),
        ("time-millis", "milliseconds since midnight (`io.debezium.time.Time`), which become `12:34:56.789`"),
        ("time-micros", "microseconds since midnight (`io.debezium.time.MicroTime`), which become `12:34:56.789012`"),
        ("time-nanos", "nanoseconds since midnight (`io.debezium.time.NanoTime`), which become `12:34:56.789012345`"),
        (
            "digits",
            "a decimal that no `decimal(P,S)` holds, as `io.debezium.data.VariableScaleDecimal` carries it; `digits(20)` \
             where the scale is not in the records",
        ),
    ];
    let words = words.iter().map(|(word, about)| serde_json::json!({ "const": word, "description": about }));
    let with_scale = serde_json::json!({ "pattern": r"^digits\([0-9]+\)$", "description": "`digits`, with the scale" });
    words.chain([with_scale]).collect()
}

/// The comment `/* icestream … */` on top of `transforms/<table>.sql`: how a silver table is kept. Without it, the file's
/// name is the table's name and the bronze table's.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SilverSettings {
    /// The silver table.
    #[schemars(extend("format" = "name", "x-default" = "the file's name"), example = &"orders")]
    pub(super) table: Option<String>,
    /// The bronze table whose changes are merged; the SQL knows them as `changes`.
    #[schemars(extend("format" = "name", "x-default" = "the table's name"), example = &"orders")]
    pub(super) from: Option<String>,
    /// The columns that identify a row. When not set, the `key` of `catalog/<from>.yaml` or the message key's fields.
    #[schemars(extend("items" = { "type": "string", "format": "name" }), example = ["id"])]
    pub(super) keys: Vec<String>,
    /// What a deleted source row does.
    pub(super) on_delete: OnDelete,
    /// 1 keeps each row as it is now. 2 keeps a row for each version, with `_valid_from`, `_valid_to` and `_is_current`; a
    /// delete ends the version, and with `on_delete: mark` leaves a row that says so.
    #[schemars(range(min = 1, max = 2), extend("x-default" = "1"), example = &2)]
    pub(super) scd: Option<u8>,
    /// With `scd: 2`, the columns whose change begins a version; a change of others changes the version there is. When
    /// not set, all columns but the keys.
    #[schemars(extend("items" = { "type": "string", "format": "name" }), example = ["status"])]
    pub(super) track_history: Vec<String>,
    /// Whether a null in an event about a row that is there says nothing, so that the row keeps the value it had: for
    /// sources that send only what changed. A row that is made anew after a delete or a truncation keeps nothing of the
    /// one before it. A value can be set to null by a delete and a create only.
    pub(super) ignore_null_updates: bool,
    /// With `ignore_null_updates: true`, the columns it is for, as the source names them. When not set, all columns but
    /// the keys.
    #[schemars(extend("items" = { "type": "string", "format": "name" }), example = ["description"])]
    pub(super) ignore_null_updates_columns: Vec<String>,
    /// What the rows must be. A rule looks at the row as the SELECT gives it, at nothing that it does not select, so that
    /// the same question can be asked of the table. With `scd: 2`, it looks at the row of each change: from a change that
    /// breaks a rule to `drop` or `quarantine` until one that does not, the table has no version of the row.
    pub(super) expect: Vec<ExpectSettings>,
}

/// A rule, or several of one kind. A name and one of the tests have to be there; the short forms have names by themselves.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub(super) struct ExpectSettings {
    /// What counts, messages and results call it.
    #[schemars(extend("format" = "name", "x-default" = "made of the test and its column"), example = &"total_not_negative")]
    pub(super) name: Option<String>,
    /// A SQL condition over a row. A row breaks it when it is false. As with SQL's own CHECK, one that is null breaks
    /// nothing: add `x IS NOT NULL` where nothing is not good enough.
    #[schemars(example = &"total_amount >= 0")]
    pub(super) that: Option<String>,
    /// Columns that are never null; each is a rule.
    #[schemars(extend("items" = { "type": "string", "format": "name" }), example = ["customer_id"])]
    pub(super) not_null: Vec<String>,
    /// For each column, the values it may have, compared as text; null is none of them, and allowed. Each column is a rule.
    #[schemars(example = accepted_values_example())]
    pub(super) accepted_values: BTreeMap<String, Vec<String>>,
    /// Columns that no two rows have the same values in, all together. Rows in which one of them is null are not looked
    /// at, nor rows that are marked as deleted; with `scd: 2`, only current rows are. It is asked of the whole table as it
    /// would be, before the commit.
    #[schemars(extend("items" = { "type": "string", "format": "name" }), example = ["email"])]
    pub(super) unique: Vec<String>,
    /// For each column, the column of another table that has all of its values: `customer_id: shop_silver.customers.id`.
    /// Null is allowed. It is asked of the whole table as it would be, before the commit, and of the other table as it is
    /// then; models that others have relationships to are built first. That the other table loses a row is noticed when
    /// this table changes next: ask it by an audit where that matters.
    #[schemars(example = relationship_example())]
    pub(super) relationship: BTreeMap<String, String>,
    /// The longest time that the newest row may be old: in a silver table by `_source_ts`, when the source says that its
    /// change happened. It is asked of the table as it is, in every build, since time passes also where nothing is
    /// committed.
    #[schemars(extend("format" = "duration"), example = &"1h")]
    pub(super) freshness: Option<Span>,
    /// With `freshness`, the column that says how old a row is.
    #[schemars(extend("format" = "name", "x-default" = "`_source_ts` in silver"), example = &"updated_at")]
    pub(super) column: Option<String>,
    /// What becomes of what breaks it.
    #[serde(rename = "else")]
    pub(super) otherwise: Otherwise,
}

fn accepted_values_example() -> BTreeMap<&'static str, Vec<&'static str>> {
    BTreeMap::from([("status", vec!["paid", "shipped"])])
}

fn relationship_example() -> BTreeMap<&'static str, &'static str> {
    BTreeMap::from([("customer_id", "shop_silver.customers.id")])
}

/// What becomes of what breaks a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Otherwise {
    /// It is counted, and told in the log, in `status` and in `icestream_quality`.
    Warn,
    /// The row is in no table while it breaks the rule. Where it breaks one to quarantine as well, it is dropped.
    Drop,
    /// The row is in `<table>__quarantine` while it breaks the rule, with the names of such rules in `_rules` and the
    /// event that made it; a later event that mends it takes it back.
    Quarantine,
    /// Nothing is committed to the table in this run, models that read it are held back, and the exit code is 4.
    #[default]
    Fail,
}

/// What a deleted source row does to its silver row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum OnDelete {
    /// The silver row is removed.
    #[default]
    Remove,
    /// The silver row stays as it last was, with `_is_deleted` true.
    Mark,
}

/// The comment `/* icestream … */` on top of `sql/gold/<model>.sql`: how a gold table is kept.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct GoldSettings {
    /// The gold table.
    #[schemars(extend("format" = "name", "x-default" = "the file's name"), example = &"revenue_per_day")]
    pub(super) table: Option<String>,
    /// How it is brought up to date.
    pub(super) refresh: Refresh,
    /// With `refresh: incremental`, the columns of the gold table that tell which group a row belongs to. A changed input
    /// row must tell at least one of them: directly, by an expression such as `CAST(created_at AS DATE)`, or through a
    /// join on it. Where it cannot, the table is computed in full, and the log says why.
    #[schemars(extend("items" = { "type": "string", "format": "name" }), example = ["order_date"])]
    pub(super) group_by: Vec<String>,
    /// What the result must be, as for `transforms/<table>.sql`, but for `drop` and `quarantine`: rows can be left out by
    /// the query. It is asked before the result is committed; of an incremental refresh, rules about rows are asked of the
    /// groups it computes.
    pub(super) expect: Vec<ExpectSettings>,
}

/// The comment `/* icestream … */` on top of `sql/audits/<audit>.sql`: a query that must find no row. It is asked at the
/// end of a build when a table that it reads has moved since it was last asked.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct AuditSettings {
    /// What it means that the query finds rows.
    pub(super) severity: Severity,
    /// The table that the findings are filed under, in full.
    #[schemars(extend("x-default" = "the tables it reads"), example = &"shop_silver.orders")]
    pub(super) table: Option<String>,
}

/// What it means that an audit finds rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub(super) enum Severity {
    /// They are counted, and told in the log, in `status` and in `icestream_quality`.
    Warn,
    /// The exit code is 4 as well, in every build until the query finds none.
    #[default]
    Fail,
}

/// How a gold table is brought up to date.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum Refresh {
    /// Computed anew and replaced in one commit when an input has moved.
    #[default]
    Full,
    /// Only the groups that changed input rows belong to, or belonged to, are computed anew; groups that vanish are
    /// removed.
    Incremental,
}
