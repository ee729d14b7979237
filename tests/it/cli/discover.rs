//! `discover` over events that a real Debezium sent: what it drafts takes every one of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use icestream::offsets::TopicPartition;
use icestream::source::EmbeddedBroker;
use serde_json::Value;

use super::*;
use crate::recorded;

/// A broker that holds recorded topics, and a project that reads them.
struct Recorded {
    _broker: EmbeddedBroker,
    project: TempDir,
}

impl Recorded {
    /// `topics` are files of the variant, without their ending; all tables' when none is named.
    async fn new(connector: &str, variant: &str, topics: &[&str]) -> Self {
        Self::of(connector, variant, topics, |value| value).await
    }

    /// With what `change` makes of each key and value.
    async fn of(connector: &str, variant: &str, topics: &[&str], change: fn(Vec<u8>) -> Vec<u8>) -> Self {
        let broker = EmbeddedBroker::start().unwrap();
        let producer = broker.producer().unwrap();
        for file in recorded::topics(connector, variant) {
            let name = file.file_name().unwrap().to_string_lossy().into_owned();
            let topic = name.strip_suffix(".jsonl.gz").unwrap();
            if !topics.is_empty() && !topics.contains(&topic) {
                continue;
            }
            broker.create_topic(topic, 1).unwrap();
            let at = TopicPartition::new(topic, 0);
            for record in recorded::records(&file) {
                let changed = |bytes: Option<Bytes>| bytes.map(|bytes| change(bytes.to_vec()));
                let (key, value) = (changed(record.key), changed(record.payload));
                producer.send(&at, key.as_deref(), value.as_deref(), record.timestamp_ms.unwrap()).await.unwrap();
            }
        }
        producer.flush().await.unwrap();
        let settings = format!(
            "name: shop\nsource: {{ kafka: {{ brokers: \"{}\", topics: [\"{variant}*\"] }} }}\n",
            broker.brokers()
        );
        let project = folder_with(&[("icestream.yaml", &settings)]);
        Recorded { _broker: broker, project }
    }

    fn path(&self) -> &Path {
        self.project.path()
    }

    /// A schema file of the recorded database's tables.
    fn write_ddl(&self, connector: &str, prelude: &str) {
        let mut text = prelude.to_string();
        for file in recorded::entries(&recorded::root().join(connector).join("expected")) {
            let told: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
            let quote = if connector.contains("postgres") { '"' } else { '`' };
            let columns: Vec<String> = told["columns"]
                .as_object()
                .unwrap()
                .iter()
                .map(|(name, kind)| format!("  {quote}{name}{quote} {}", kind.as_str().unwrap()))
                .collect();
            for suffix in ["", "_full"] {
                let table = told["table"].as_str().unwrap();
                text.push_str(&format!("CREATE TABLE {quote}{table}{suffix}{quote} (\n{}\n);\n", columns.join(",\n")));
            }
        }
        std::fs::write(self.path().join("schema.sql"), text).unwrap();
    }

    fn draft(&self, table: &str) -> String {
        std::fs::read_to_string(self.path().join(format!("catalog/{table}.yaml"))).unwrap()
    }
}

/// A key or value without the schema block around it.
fn without_block(value: Vec<u8>) -> Vec<u8> {
    #[derive(serde::Deserialize)]
    struct Block<'a> {
        #[serde(borrow)]
        payload: &'a serde_json::value::RawValue,
    }
    match serde_json::from_slice::<Block<'_>>(&value) {
        Ok(block) => block.payload.get().as_bytes().to_vec(),
        Err(_) => value,
    }
}

const DOMAINS: &str = "CREATE DOMAIN even AS integer CHECK (VALUE % 2 = 0);
CREATE DOMAIN price AS numeric(12,3);
CREATE DOMAIN short_text AS text;
CREATE DOMAIN moment AS timestamp;
";

/// Each column of the drafts in a line. No record is refused.
fn columns(shown: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    for draft in shown["drafts"].as_array().unwrap() {
        assert_eq!(draft["refused"], serde_json::json!([]), "{}", draft["table"]);
        let table = draft["table"].as_str().unwrap();
        lines.push(format!("{table} {}", draft["key"]));
        for column in draft["columns"].as_array().unwrap() {
            let words = |name: &str| column[name].as_str().unwrap();
            let doubt = if column["ambiguous"] == serde_json::json!([]) { "" } else { "  ?" };
            let (name, origin) = (words("name"), words("origin"));
            lines.push(format!("    {table}.{name}: {} as {}, {origin}{doubt}", words("type"), words("encoding")));
        }
    }
    lines
}

/// What was drafted and found, without tables that show nothing new.
fn outline(shown: &Value) -> String {
    let shows_new = |line: &&String| {
        let table = line.trim_start().split(['.', ' ']).next().unwrap();
        !table.ends_with("_full") && !matches!(table, "collections" | "toasted" | "keys" | "keys_" | "the_end")
    };
    let lines: Vec<String> = columns(shown).iter().filter(shows_new).cloned().collect();
    let findings = shown["findings"].as_array().unwrap().iter();
    let told =
        findings.map(|found| format!("{}: {}", found["about"].as_str().unwrap(), found["text"].as_str().unwrap()));
    let told: Vec<String> = told.filter(|line| !line.contains("_full") && !line.contains("JSON text")).collect();
    [lines, told].concat().join("\n")
}

/// Tables whose columns are not declared, because two of them would be one.
fn undeclarable(shown: &Value) -> Vec<&str> {
    let drafts = shown["drafts"].as_array().unwrap().iter();
    drafts.filter(|draft| !draft["undeclarable"].is_null()).map(|draft| draft["table"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drafts_of_postgresql_with_its_tables_take_every_recorded_event() {
    let recorded = Recorded::new("debezium-postgres", "plain", &[]).await;
    recorded.write_ddl("debezium-postgres", DOMAINS);
    let shown = run(recorded.path(), "discover --ddl schema.sql --write --json").json();
    insta::assert_snapshot!(outline(&shown), @r#"
    by_index ["id"]
        by_index.id: int as native, integer
        by_index.code: string as native, text
        by_index.c_value: string as native, text
        by_index.c_other: string as native, text
    composite_key ["region","number"]
        composite_key.region: string as native, text
        composite_key.number: long as native, bigint
        composite_key.c_value: string as native, text
    defaults ["id"]
        defaults.id: int as native, integer
        defaults.c_integer: int as native, integer
        defaults.c_numeric: decimal(6,2) as base64, numeric(6,2)
        defaults.c_text: string as native, text
        defaults.c_timestamptz: timestamptz as iso, timestamp with time zone
        defaults.c_now: timestamptz as iso, timestamp with time zone
        defaults.c_date: date as days, date
        defaults.c_boolean: boolean as native, boolean
    evolving ["id"]
        evolving.id: int as native, integer
        evolving.c_integer: long as native, integer  ?
        evolving.c_renamed: string as native, by its values
        evolving.c_numeric: decimal(38,2) as base64, numeric(6,2)  ?
        evolving.c_added: timestamptz as iso, by its values
        evolving.c_required: string as json, by its values  ?
        evolving.c_gone: string as json, text  ?
        evolving.c_text: string as native, text
    exotic_key ["id","day","price"]
        exotic_key.id: string as native, uuid
        exotic_key.day: date as days, date
        exotic_key.price: decimal(8,3) as base64, numeric(8,3)
        exotic_key.c_value: string as native, text
    generated ["id"]
        generated.id: int as native, integer
        generated.price: int as native, integer
        generated.twice: int as native, integer
    keyless []
        keyless.c_number: int as native, integer
        keyless.c_text: string as native, text
    numbers ["id"]
        numbers.id: int as native, integer
        numbers.c_boolean: boolean as native, boolean
        numbers.c_smallint: int as native, smallint
        numbers.c_integer: int as native, integer
        numbers.c_bigint: long as native, bigint
        numbers.c_oid: long as native, oid
        numbers.c_real: float as native, real
        numbers.c_double: double as native, double precision
        numbers.c_numeric: string as digits, numeric
        numbers.c_numeric_5: decimal(5,0) as base64, numeric(5,0)
        numbers.c_numeric_10_2: decimal(10,2) as base64, numeric(10,2)
        numbers.c_numeric_38_10: decimal(38,10) as base64, numeric(38,10)
        numbers.c_numeric_60_20: string as digits(20), numeric(60,20)  ?
        numbers.c_numeric_5_minus_2: string as native, numeric(5,-2)  ?
        numbers.c_numeric_3_5: decimal(5,5) as base64, numeric(3,5)
        numbers.c_money: decimal(19,2) as base64, money
        numbers.c_domain_integer: int as native, integer
        numbers.c_domain_numeric: decimal(12,3) as base64, numeric(12,3)
    order_lines ["order_id","line"]
        order_lines.order_id: int as native, integer
        order_lines.line: int as native, integer
        order_lines.c_name: string as native, text
    orders ["id"]
        orders.id: int as native, integer
        orders.c_total: decimal(10,2) as base64, numeric(10,2)
    texts ["id"]
        texts.id: int as native, integer
        texts.c_char: string as native, character(5)
        texts.c_varchar_20: string as native, character varying(20)
        texts.c_varchar: string as native, character varying
        texts.c_text: string as native, text
        texts.c_name: string as native, name
        texts.c_internal_char: string as native, char
        texts.c_citext: string as native, citext
        texts.c_domain_text: string as native, text
        texts.c_enum: string as native, mood
        texts.c_uuid: string as native, uuid
        texts.c_json: string as native, json
        texts.c_jsonb: string as native, jsonb
        texts.c_xml: string as native, xml
        texts.c_hstore: string as native, hstore
        texts.c_ltree: string as native, ltree
        texts.c_inet: string as native, inet
        texts.c_cidr: string as native, cidr
        texts.c_macaddr: string as native, macaddr
        texts.c_macaddr8: string as native, macaddr8
        texts.c_bytea: binary as base64, bytea
        texts.c_bit_1: boolean as native, bit(1)
        texts.c_bit_9: binary as base64, bit(9)
        texts.c_varbit_12: binary as base64, bit varying(12)
        texts.c_varbit: binary as base64, bit varying
        texts.c_tsvector: string as native, tsvector
        texts.c_tsquery: string as native, tsquery  ?
    times ["id"]
        times.id: int as native, integer
        times.c_date: date as days, date
        times.c_time: string as time-micros, time
        times.c_time_0: string as time-millis, time(0)
        times.c_time_3: string as time-millis, time(3)
        times.c_timetz: string as native, time with time zone
        times.c_timetz_3: string as native, time(3) with time zone
        times.c_timestamp: timestamp as micros, timestamp
        times.c_timestamp_0: timestamp as millis, timestamp(0)
        times.c_timestamp_3: timestamp as millis, timestamp(3)
        times.c_timestamp_6: timestamp as micros, timestamp(6)
        times.c_timestamptz: timestamptz as iso, timestamp with time zone
        times.c_timestamptz_3: timestamptz as iso, timestamp(3) with time zone
        times.c_interval: long as native, interval
        times.c_interval_day: long as native, interval(3)
        times.c_domain_timestamp: timestamp as micros, timestamp
    plain.message: no draft: it has no change of a row
    plain.public.collections: 1 of 32 columns are ambiguous; see the draft
    plain.public.evolving: 4 of 8 columns are ambiguous; see the draft
    plain.public.keyless: its records have no message key: set `key`, or silver cannot be built
    plain.public.numbers: 2 of 18 columns are ambiguous; see the draft
    plain.public.texts: 1 of 27 columns are ambiguous; see the draft
    "#);
    assert_eq!(undeclarable(&shown), [""; 0]);
    run(recorded.path(), "check --offline").done();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drafts_of_mariadb_with_its_tables_take_every_recorded_event() {
    let recorded = Recorded::new("debezium-mariadb", "plain", &[]).await;
    recorded.write_ddl("debezium-mariadb", "");
    let shown = run(recorded.path(), "discover --ddl schema.sql --write --json").json();
    insta::assert_snapshot!(outline(&shown), @r#"
    evolving ["id"]
        evolving.id: int as native, int(11)
        evolving.c_required: string as json, by its values  ?
        evolving.c_int: long as native, int(11)  ?
        evolving.c_renamed: string as native, by its values
        evolving.c_added: long as native, by its values  ?
        evolving.c_text: string as native, varchar(50)
        evolving.c_gone: string as native, varchar(10)
    keyless []
        keyless.c_number: int as native, int(11)
        keyless.c_text: string as native, text
    numbers ["id"]
        numbers.id: int as native, int(11)
        numbers.c_boolean: int as native, tinyint(1)
        numbers.c_tinyint_1: int as native, tinyint(1)
        numbers.c_tinyint: int as native, tinyint(4)
        numbers.c_tinyint_unsigned: int as native, tinyint(3) unsigned
        numbers.c_smallint: int as native, smallint(6)
        numbers.c_smallint_unsigned: int as native, smallint(5) unsigned
        numbers.c_mediumint: int as native, mediumint(9)
        numbers.c_mediumint_unsigned: int as native, mediumint(8) unsigned
        numbers.c_int: int as native, int(11)
        numbers.c_int_unsigned: long as native, int(10) unsigned
        numbers.c_bigint: long as native, bigint(20)
        numbers.c_bigint_unsigned: long as native, bigint(20) unsigned  ?
        numbers.c_float: float as native, float
        numbers.c_float_10_3: double as native, float(10,3)
        numbers.c_double: double as native, double
        numbers.c_decimal_10_2: decimal(10,2) as base64, decimal(10,2)
        numbers.c_decimal_65_30: string as digits(30), decimal(65,30)  ?
        numbers.c_decimal_unsigned: decimal(8,3) as base64, decimal(8,3) unsigned
        numbers.c_bit_1: boolean as native, bit(1)
        numbers.c_bit_9: binary as base64, bit(9)
        numbers.c_year: int as native, year(4)
    order_lines ["order_id","line"]
        order_lines.order_id: int as native, int(11)
        order_lines.line: int as native, int(11)
        order_lines.c_name: string as native, varchar(50)
    orders ["id"]
        orders.id: int as native, int(11)
        orders.c_total: decimal(10,2) as base64, decimal(10,2)
    texts ["id"]
        texts.id: int as native, int(11)
        texts.c_char: string as native, char(5)
        texts.c_varchar: string as native, varchar(20)
        texts.c_text: string as native, text
        texts.c_longtext: string as native, longtext
        texts.c_latin1: string as native, varchar(20)
        texts.c_enum: string as native, enum
        texts.c_set: string as native, set
        texts.c_json: string as native, longtext
        texts.c_binary: binary as base64, binary(5)
        texts.c_varbinary: binary as base64, varbinary(20)
        texts.c_blob: binary as base64, blob
        texts.c_point: string as json, point
        texts.c_geometry: string as json, geometry
    times ["id"]
        times.id: int as native, int(11)
        times.c_date: date as days, date
        times.c_time: string as time-micros, time
        times.c_time_3: string as time-micros, time(3)
        times.c_time_6: string as time-micros, time(6)
        times.c_datetime: timestamp as millis, datetime
        times.c_datetime_3: timestamp as millis, datetime(3)
        times.c_datetime_6: timestamp as micros, datetime(6)
        times.c_timestamp: timestamptz as iso, timestamp
        times.c_timestamp_3: timestamptz as iso, timestamp(3)
        times.c_timestamp_6: timestamptz as iso, timestamp(6)
    plain: no draft: it has no change of a row
    plain.icestream.evolving: 3 of 7 columns are ambiguous; see the draft
    plain.icestream.keyless: its records have no message key: set `key`, or silver cannot be built
    plain.icestream.numbers: 2 of 22 columns are ambiguous; see the draft
    "#);
    assert_eq!(undeclarable(&shown), [""; 0]);
    run(recorded.path(), "check --offline").done();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drafts_by_values_alone_say_what_they_do_not_know() {
    let topics = ["plain.public.numbers", "plain.public.times", "plain.public.texts", "plain.public.orders"];
    let recorded = Recorded::new("debezium-postgres", "plain", &topics).await;
    let shown = run(recorded.path(), "discover --write --json").json();
    insta::assert_snapshot!(outline(&shown), @r#"
    numbers ["id"]
        numbers.id: long as native, by its values
        numbers.c_boolean: boolean as native, by its values
        numbers.c_smallint: long as native, by its values
        numbers.c_integer: long as native, by its values
        numbers.c_bigint: long as native, by its values
        numbers.c_oid: long as native, by its values
        numbers.c_real: double as native, by its values  ?
        numbers.c_double: double as native, by its values  ?
        numbers.c_numeric: string as digits, by its values
        numbers.c_numeric_5: string as native, by its values  ?
        numbers.c_numeric_10_2: string as native, by its values  ?
        numbers.c_numeric_38_10: string as native, by its values  ?
        numbers.c_numeric_60_20: string as native, by its values  ?
        numbers.c_numeric_5_minus_2: string as native, by its values  ?
        numbers.c_numeric_3_5: string as native, by its values  ?
        numbers.c_money: string as native, by its values  ?
        numbers.c_domain_integer: long as native, by its values
        numbers.c_domain_numeric: string as native, by its values  ?
    orders ["id"]
        orders.id: long as native, by its values
        orders.c_total: string as native, by its values  ?
    texts ["id"]
        texts.id: long as native, by its values
        texts.c_char: string as native, by its values
        texts.c_varchar_20: string as native, by its values
        texts.c_varchar: string as native, by its values
        texts.c_text: string as native, by its values
        texts.c_name: string as native, by its values
        texts.c_internal_char: string as native, by its values
        texts.c_citext: string as native, by its values
        texts.c_domain_text: string as native, by its values
        texts.c_enum: string as native, by its values
        texts.c_uuid: string as native, by its values
        texts.c_json: string as native, by its values
        texts.c_jsonb: string as native, by its values
        texts.c_xml: string as native, by its values
        texts.c_hstore: string as native, by its values
        texts.c_ltree: string as native, by its values
        texts.c_inet: string as native, by its values
        texts.c_cidr: string as native, by its values
        texts.c_macaddr: string as native, by its values
        texts.c_macaddr8: string as native, by its values
        texts.c_bytea: string as native, by its values  ?
        texts.c_bit_1: boolean as native, by its values
        texts.c_bit_9: string as native, by its values  ?
        texts.c_varbit_12: string as native, by its values  ?
        texts.c_varbit: string as native, by its values
        texts.c_tsvector: string as native, by its values
    times ["id"]
        times.id: long as native, by its values
        times.c_date: long as native, by its values  ?
        times.c_time: long as native, by its values
        times.c_time_0: long as native, by its values
        times.c_time_3: long as native, by its values
        times.c_timetz: string as native, by its values
        times.c_timetz_3: string as native, by its values
        times.c_timestamp: long as native, by its values  ?
        times.c_timestamp_0: long as native, by its values  ?
        times.c_timestamp_3: long as native, by its values  ?
        times.c_timestamp_6: long as native, by its values  ?
        times.c_timestamptz: string as native, by its values  ?
        times.c_timestamptz_3: string as native, by its values  ?
        times.c_interval: long as native, by its values  ?
        times.c_interval_day: long as native, by its values
        times.c_domain_timestamp: long as native, by its values  ?
    plain.public.numbers: 10 of 18 columns are ambiguous; see the draft
    plain.public.orders: 1 of 2 columns are ambiguous; see the draft
    plain.public.texts: 3 of 26 columns are ambiguous; see the draft
    plain.public.times: 9 of 16 columns are ambiguous; see the draft
    "#);
    run(recorded.path(), "check --offline").done();
    insta::assert_snapshot!(recorded.draft("times"), @r#"
    # Drafted by `icestream discover` from 25 changes (postgresql, table public.times), for review.
    # Columns to decide: 9; look for `ambiguous`.
    topic: plain.public.times
    key: [id]
    partition: ["day(_ingested_at)"]
    columns:
      # fits `int` as well in the sample
      - { name: id, type: long }                                     # by its values · 109
      # ambiguous: a number, or a date sent as days: 19782 would be 2024-02-29
      - { name: c_date, type: long }                                 # by its values · 0 · 14% null
      - { name: c_time, type: long }                                 # by its values · 0 · 50% null
      # fits `int` as well in the sample
      - { name: c_time_0, type: long }                               # by its values · 0 · 60% null
      # fits `int` as well in the sample
      - { name: c_time_3, type: long }                               # by its values · 0 · 60% null
      - { name: c_timetz, type: string }                             # by its values · "00:00:00Z" · 41% null
      - { name: c_timetz_3, type: string }                           # by its values · "00:00:00Z" · 60% null
      # ambiguous: a number, or a timestamp sent as micros: 1709210096123456 would be 2024-02-29T12:34:56Z
      - { name: c_timestamp, type: long }                            # by its values · 0 · 14% null
      # ambiguous: a number, or a timestamp sent as millis: 1709210096000 would be 2024-02-29T12:34:56Z
      - { name: c_timestamp_0, type: long }                          # by its values · 0 · 41% null
      # ambiguous: a number, or a timestamp sent as millis: 1709210096123 would be 2024-02-29T12:34:56Z
      - { name: c_timestamp_3, type: long }                          # by its values · 0 · 14% null
      # ambiguous: a number, or a timestamp sent as micros: 1709210096123400 would be 2024-02-29T12:34:56Z
      - { name: c_timestamp_6, type: long }                          # by its values · 0 · 41% null
      # ambiguous: most of its values are timestamps, and some are not
      - { name: c_timestamptz, type: string }                        # by its values · "1970-01-01T00:00:00.000000Z" · 14% null
      # ambiguous: most of its values are timestamps, and some are not
      - { name: c_timestamptz_3, type: string }                      # by its values · "1970-01-01T00:00:00.000Z" · 50% null
      # ambiguous: a number, or a timestamp sent as millis: 2629800000000 would be 2053-05-02T12:00:00Z
      - { name: c_interval, type: long }                             # by its values · 0 · 23% null
      - { name: c_interval_day, type: long }                         # by its values · 0 · 60% null
      # ambiguous: a number, or a timestamp sent as micros: 1709210096000001 would be 2024-02-29T12:34:56Z
      - { name: c_domain_timestamp, type: long }                     # by its values · 0 · 69% null
    "#);
}

/// Whatever the schema blocks make of a column, the draft takes its values.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drafts_of_records_with_schema_blocks_take_every_recorded_event() {
    let recorded = Recorded::new("debezium-postgres", "schemas", &[]).await;
    let shown = run(recorded.path(), "discover --write --json").json();
    let tables = columns(&shown).iter().filter(|line| !line.starts_with(' ')).count();
    assert_eq!(tables, 21);
    assert_eq!(undeclarable(&shown), [""; 0]);
    run(recorded.path(), "check --offline").done();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_s_name_is_never_taken_from_another_topic() {
    let recorded = Recorded::new("debezium-postgres", "odd_names", &[]).await;
    let other = recorded.path().join("catalog");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("odd_t_ble_1.yaml"), "topic: shop.odd\n").unwrap();
    let found = run(recorded.path(), "discover --write --overwrite");
    insta::assert_snapshot!(found.done(), @"
    catalog/public_odd_t_ble_1.yaml
    catalog/the_end.yaml
    ");
    insta::assert_snapshot!(found.stderr, @"
    odd_names.message: no draft: it has no change of a row
    odd_names.public.Odd_T_ble.1: its table is called `public_odd_t_ble_1`, because the last part of the topic's name is no table name
    2 drafts written, 0 left alone; next: review, then `icestream check`
    ");
    insta::assert_snapshot!(recorded.draft("public_odd_t_ble_1"), @r#"
    # Drafted by `icestream discover` from 4 changes (postgresql, table public.Odd Täble.1), for review.
    topic: odd_names.public.Odd_T_ble.1
    key: [id]
    partition: ["day(_ingested_at)"]
    columns:
      # `Id` at the source
      - { name: id, type: int }                                      # schema block · 1
      # `with space` at the source
      - { name: with_space, type: string }                           # schema block · "ü"
      # `dotted.name` at the source
      - { name: dotted_name, type: string }                          # schema block · "b"
      # `größe` at the source
      - { name: grosse, type: string }                               # schema block · "c"
      - { name: select, type: string }                               # schema block · "d"
      # `1st` at the source
      - { name: _1st, type: string }                                 # schema block · "e" · 67% null
    "#);
    run(recorded.path(), "check --offline").done();
}

/// The columns that the connector's settings change, and what is drafted for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_of_the_connector_are_read_off_the_values() {
    let mut told = String::new();
    let mut usual: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (variant, table) in [
        ("plain", "numbers"),
        ("plain", "times"),
        ("plain", "texts"),
        ("decimal_string", "numbers"),
        ("decimal_double", "numbers"),
        ("time_isostring", "times"),
        ("time_connect", "times"),
        ("time_nanoseconds", "times"),
        ("interval_string", "times"),
        ("binary_hex", "texts"),
        ("hstore_map", "texts"),
    ] {
        let topic = format!("{variant}.public.{table}");
        let recorded = Recorded::of("debezium-postgres", variant, &[&topic], without_block).await;
        recorded.write_ddl("debezium-postgres", DOMAINS);
        let found = columns(&run(recorded.path(), "discover --ddl schema.sql --json").json());
        if variant == "plain" {
            usual.insert(table, found);
        } else {
            let differ = found.iter().filter(|line| !usual[table].contains(line));
            told.push_str(&format!("{variant}\n{}\n", differ.cloned().collect::<Vec<_>>().join("\n")));
        }
    }
    insta::assert_snapshot!(told, @"
    decimal_string
        numbers.c_numeric: string as native, numeric
        numbers.c_numeric_5: decimal(5,0) as native, numeric(5,0)
        numbers.c_numeric_10_2: decimal(10,2) as native, numeric(10,2)
        numbers.c_numeric_38_10: decimal(38,10) as native, numeric(38,10)
        numbers.c_numeric_60_20: string as native, numeric(60,20)
        numbers.c_numeric_3_5: decimal(5,5) as native, numeric(3,5)
        numbers.c_money: decimal(19,2) as native, money
        numbers.c_domain_numeric: decimal(12,3) as native, numeric(12,3)
    decimal_double
        numbers.c_numeric: double as native, numeric  ?
        numbers.c_numeric_5: decimal(5,0) as native, numeric(5,0)
        numbers.c_numeric_10_2: decimal(10,2) as native, numeric(10,2)
        numbers.c_numeric_38_10: double as native, numeric(38,10)  ?
        numbers.c_numeric_60_20: double as native, numeric(60,20)  ?
        numbers.c_numeric_5_minus_2: double as native, numeric(5,-2)  ?
        numbers.c_numeric_3_5: decimal(5,5) as native, numeric(3,5)
        numbers.c_money: double as native, money  ?
        numbers.c_domain_numeric: decimal(12,3) as native, numeric(12,3)
    time_isostring
        times.c_date: date as iso, date
        times.c_time: string as native, time
        times.c_time_0: string as native, time(0)
        times.c_time_3: string as native, time(3)
        times.c_timestamp: timestamp as iso, timestamp
        times.c_timestamp_0: timestamp as iso, timestamp(0)
        times.c_timestamp_3: timestamp as iso, timestamp(3)
        times.c_timestamp_6: timestamp as iso, timestamp(6)
        times.c_domain_timestamp: timestamp as iso, timestamp
    time_connect
        times.c_time: string as time-micros, time  ?
        times.c_timestamp: long as native, timestamp  ?
        times.c_timestamp_6: long as native, timestamp(6)  ?
        times.c_domain_timestamp: long as native, timestamp  ?
    time_nanoseconds
        times.c_time: long as native, time  ?
        times.c_time_0: long as native, time(0)  ?
        times.c_time_3: long as native, time(3)  ?
        times.c_timestamp: long as native, timestamp  ?
        times.c_timestamp_0: long as native, timestamp(0)  ?
        times.c_timestamp_3: long as native, timestamp(3)  ?
        times.c_timestamp_6: long as native, timestamp(6)  ?
        times.c_domain_timestamp: long as native, timestamp  ?
    interval_string
        times.c_interval: string as native, interval
        times.c_interval_day: string as native, interval(3)
    binary_hex
        texts.c_bytea: string as native, bytea
    hstore_map
        texts.c_hstore: string as json, hstore
    ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_are_there_are_written_over_only_when_asked() {
    let recorded = Recorded::new("debezium-postgres", "plain", &["plain.public.orders", "plain.public.keys"]).await;
    let file = recorded.path().join("catalog/orders.yaml");
    std::fs::create_dir(file.parent().unwrap()).unwrap();
    let own = "topic: plain.public.orders\nkey: [id]\ncolumns:\n  - { name: id, type: long }\n";
    std::fs::write(&file, own).unwrap();
    let files = || {
        let mut found: Vec<String> = std::fs::read_dir(recorded.path().join("catalog"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        found
    };

    let shown = run(recorded.path(), "discover plain.public.orders");
    insta::assert_snapshot!(shown.done(), @r#"
    --- # catalog/orders.yaml
    # Drafted by `icestream discover` from 6 changes (postgresql, table public.orders), for review.
    # Columns to decide: 1; look for `ambiguous`.
    topic: plain.public.orders
    key: [id]
    partition: ["day(_ingested_at)"]
    columns:
      # fits `int` as well in the sample
      - { name: id, type: long }                                     # by its values · 4
      # ambiguous: looks like base64: a decimal (decimal.handling.mode=precise; which scale is not in the record), bytes or text; the source's CREATE TABLE tells
      - { name: c_total, type: string }                              # by its values · "AZA=" · 20% null
    "#);
    insta::assert_snapshot!(shown.stderr, @"
    plain.public.orders: 1 of 2 columns are ambiguous; see the draft
    1 draft; `--write` puts them into `catalog/`
    ");
    assert_eq!(files(), ["orders.yaml"]);

    let written = run(recorded.path(), "discover --write --no-examples");
    insta::assert_snapshot!(written.done(), @"catalog/keys.yaml");
    insta::assert_snapshot!(written.stderr, @"
    plain.public.orders: 1 of 2 columns are ambiguous; see the draft
    catalog/orders.yaml: is there and was left alone; `--overwrite` writes over it
    1 draft written, 1 left alone; next: review, then `icestream check`
    ");
    assert_eq!(
        (std::fs::read_to_string(&file).unwrap().as_str(), files()),
        (own, vec!["keys.yaml".into(), "orders.yaml".into()])
    );
    insta::assert_snapshot!(recorded.draft("keys"), @r#"
    # Drafted by `icestream discover` from 12 changes (postgresql, table public.keys), for review.
    topic: plain.public.keys
    key: [id]
    partition: ["day(_ingested_at)"]
    columns:
      # fits `int` as well in the sample
      - { name: id, type: long }                                     # by its values
      - { name: c_value, type: string }                              # by its values
    "#);

    let over = run(recorded.path(), "discover --write --overwrite --no-examples");
    insta::assert_snapshot!(over.done(), @"catalog/orders.yaml");
    insta::assert_snapshot!(over.stderr, @r#"
    orders.yaml: written over
    + # Drafted by `icestream discover` from 6 changes (postgresql, table public.orders), for review.
    + # Columns to decide: 1; look for `ambiguous`.
    + partition: ["day(_ingested_at)"]
    -   - { name: id, type: long }
    +   # fits `int` as well in the sample
    +   - { name: id, type: long }                                     # by its values
    +   # ambiguous: looks like base64: a decimal (decimal.handling.mode=precise; which scale is not in the record), bytes or text; the source's CREATE TABLE tells
    +   - { name: c_total, type: string }                              # by its values · 20% null
    plain.public.orders: 1 of 2 columns are ambiguous; see the draft
    1 draft written, 1 left alone; next: review, then `icestream check`
    "#);
    assert_eq!(files(), ["keys.yaml", "orders.yaml"]);
    let again = run(recorded.path(), "discover --write --overwrite --no-examples");
    assert_eq!(again.done(), "");
    run(recorded.path(), "check --offline").done();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_sampled_or_read_is_one_error() {
    let recorded = Recorded::new("debezium-postgres", "plain", &["plain.public.orders"]).await;
    insta::assert_snapshot!(run(recorded.path(), "discover other.*").error(2), @"
    error: there is no topic like `other.*`
      hint: name topics or patterns such as `shop.public.*`; Kafka's own (`__…`) are left out
    ");
    insta::assert_snapshot!(run(recorded.path(), "discover --ddl none.sql").error(2), @"
    error: `none.sql` cannot be read
      caused by: No such file or directory (os error 2)
      hint: name a text file with CREATE TABLE statements
    ");
    insta::assert_snapshot!(run(recorded.path(), "discover --overwrite").error(2), @"
    error: the following required arguments were not provided:
      --write

    Usage: icestream discover --write --overwrite [TOPIC]...

    For more information, try '--help'.
    ");
    let project = folder_with(&[("icestream.yaml", "name: shop")]);
    insta::assert_snapshot!(run(project.path(), "discover").error(2), @r#"
    error: the project does not say which Kafka brokers to read from
      hint: set `source.kafka.brokers: "host:9092"` in `icestream.yaml`, or ICESTREAM_SOURCE__KAFKA__BROKERS
    "#);
}
