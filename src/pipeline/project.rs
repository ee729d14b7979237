//! From the resolved configuration to the parts a run is made of.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Audit, CommitTriggers, Dialect, KeptFindings, Models, Route};
use crate::aws::AwsOptions;
use crate::clock::Clock;
use crate::config::{self, Brokers, CatalogConfig, Config, KafkaAuth, OnDelete, S3Config};
use crate::decode::Format;
use crate::engine::{Engine, EngineOptions};
use crate::error::Result;
use crate::gold::GoldModel;
use crate::ids::TableName;
use crate::memory;
use crate::quality::FINDINGS_TABLE;
use crate::silver::{self, SilverModel};
use crate::source::{Assignment, FilePlace, FilesConfig, FilesSource, KafkaAdmin, KafkaConfig};
use crate::table::Lake;
use crate::table::catalog::Catalog;
use crate::table::catalog::glue::{GlueCatalog, GlueOptions};
use crate::table::catalog::rest::{RestAuth, RestCatalog, RestOptions};
use crate::table::catalog::sqlite::SqliteCatalog;
use crate::table::storage::{S3Options, Storage, StorageOptions};

/// The clients for the places where files live. None of them is asked for anything yet.
pub fn open_storage(config: &Config) -> Result<Storage> {
    Ok(Storage::new(StorageOptions { s3: s3_options(&config.s3) })?)
}

/// Opens the catalog and the storage. No table is looked at yet.
pub async fn open_lake(config: &Config, clock: Clock) -> Result<Lake> {
    memory::keep_within(config.memory_bytes);
    let storage = open_storage(config)?;
    let catalog: Arc<dyn Catalog> = match &config.catalog {
        CatalogConfig::Sqlite { path } => {
            Arc::new(SqliteCatalog::open(&config.name, path, &config.warehouse, storage.clone()).await?)
        }
        CatalogConfig::Glue { region, endpoint, catalog_id, profile } => {
            let aws = AwsOptions {
                region: region.clone().or_else(|| config.s3.region.clone()),
                profile: profile.clone().or_else(|| config.s3.profile.clone()),
                ..aws_options(&config.s3)
            };
            let options = GlueOptions {
                endpoint: endpoint.clone(),
                catalog_id: catalog_id.clone(),
                aws,
                warehouse: config.warehouse.clone(),
            };
            Arc::new(GlueCatalog::open(options, storage.clone()).await?)
        }
        CatalogConfig::Rest { uri, warehouse, credential, token, scope, oauth2_server_uri, sigv4, prefix } => {
            let auth = match (sigv4, token, credential) {
                (Some(sigv4), _, _) => RestAuth::SigV4 {
                    service: sigv4.service.clone(),
                    aws: AwsOptions {
                        region: sigv4.region.clone().or_else(|| config.s3.region.clone()),
                        ..aws_options(&config.s3)
                    },
                },
                (None, Some(token), _) => RestAuth::Token(token.expose().to_string()),
                (None, None, Some(credential)) => RestAuth::OAuth2 {
                    credential: credential.expose().to_string(),
                    scope: scope.clone(),
                    server: oauth2_server_uri.clone(),
                },
                (None, None, None) => RestAuth::None,
            };
            let options = RestOptions { uri: uri.clone(), warehouse: warehouse.clone(), prefix: prefix.clone(), auth };
            Arc::new(RestCatalog::open(options, clock.clone()).await?)
        }
    };
    Ok(Lake::new(catalog, storage, clock))
}

/// The files the project reads in place of topics, if it does. None of them is looked at yet.
pub fn files_source(config: &Config) -> Result<Option<FilesSource>> {
    let Some(files) = &config.source_files else { return Ok(None) };
    let storage = open_storage(config)?;
    let place = |location: &String| {
        let (store, path) = storage.store(location)?;
        Ok(FilePlace { location: location.clone(), store, path: path.to_string() })
    };
    Ok(Some(FilesSource::new(FilesConfig {
        places: files.locations.iter().map(place).collect::<Result<_>>()?,
        topic: files.topic.clone(),
        discover_every: config.kafka.discover_every,
    })))
}

fn s3_options(s3: &S3Config) -> S3Options {
    S3Options {
        endpoint: s3.endpoint.clone(),
        region: s3.region.clone(),
        profile: s3.profile.clone(),
        access_key_id: s3.access_key_id.clone(),
        secret_access_key: s3.secret_access_key.as_ref().map(|secret| secret.expose().to_string()),
        session_token: s3.session_token.as_ref().map(|secret| secret.expose().to_string()),
        path_style: s3.path_style,
        extra: BTreeMap::new(),
    }
}

fn aws_options(s3: &S3Config) -> AwsOptions {
    AwsOptions {
        region: s3.region.clone(),
        profile: s3.profile.clone(),
        access_key_id: s3.access_key_id.clone(),
        secret_access_key: s3.secret_access_key.as_ref().map(|secret| secret.expose().to_string()),
        session_token: s3.session_token.as_ref().map(|secret| secret.expose().to_string()),
    }
}

/// The query engine under the project's memory budget.
pub fn engine(config: &Config) -> Result<Engine> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    // Sorts and joins that spill make a folder of their own in it, and take it away again.
    let spill_dir = std::env::temp_dir();
    Ok(Engine::new(&EngineOptions { memory_bytes: config.memory_bytes, threads, spill_dir })?)
}

/// A client for questions to the project's brokers; `group` is whose commits it can be asked for, the project's own when
/// not given. `None` where the project names no brokers that are there now.
pub fn kafka_admin(config: &Config, group: Option<&str>) -> Result<Option<KafkaAdmin>> {
    let Some(Brokers::At(brokers)) = &config.kafka.brokers else { return Ok(None) };
    Ok(Some(KafkaAdmin::connect(&KafkaConfig {
        group: group.unwrap_or(&config.kafka.group).to_string(),
        // It reads one record of a partition, now and then.
        queue_bytes: 1 << 20,
        ..kafka_config(config, brokers)
    })?))
}

/// Reading everything the project's topics hold.
pub fn kafka_config(config: &Config, brokers: &str) -> KafkaConfig {
    KafkaConfig {
        brokers: brokers.to_string(),
        group: config.kafka.group.clone(),
        topics: config.kafka.topics.iter().map(|pattern| pattern.as_str().to_string()).collect(),
        assignment: Assignment::Everything,
        discover_every: config.kafka.discover_every,
        properties: config.kafka.properties.expose().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
        // The warehouse's keys are not for the brokers.
        msk_iam: (config.kafka.auth == KafkaAuth::AwsMskIam).then(|| AwsOptions {
            region: config.kafka.aws_region.clone(),
            profile: config.kafka.aws_profile.clone(),
            ..AwsOptions::default()
        }),
        queue_bytes: read_ahead_bytes(config.memory_bytes),
    }
}

/// How much the client reads ahead. It takes a few times as much, since a record keeps all that was packed with it; and as
/// it asks for more when there is room, more than this makes nothing faster.
pub fn read_ahead_bytes(memory_bytes: u64) -> usize {
    usize::try_from((memory_bytes / 32).clamp(1 << 20, 32 << 20)).unwrap_or(usize::MAX)
}

/// Where a topic's records go. A topic no file in `catalog/` speaks of goes to the table of its last part;
/// `None` for one whose last part is no table name.
pub fn route(config: &Config, topic: &str) -> Option<Route> {
    let declared = config.table_of_topic(topic);
    let name = match declared {
        Some(table) => table.name.clone(),
        None => topic.rsplit('.').next()?.to_ascii_lowercase().replace('-', "_"),
    };
    let partition = match declared {
        Some(table) => table.partition.iter().map(ToString::to_string).collect(),
        None => vec!["day(_ingested_at)".to_string()],
    };
    let table = TableName::new(config.namespaces.bronze.clone(), name).ok()?;
    Some(Route {
        topic: topic.to_string(),
        stop_above: config.stop_above(&table),
        table,
        shape: declared.and_then(|table| table.shape.clone()).map(Arc::new),
        evolution: declared.map_or(config.evolution, |table| table.evolution),
        partition,
        properties: declared.map(|table| table.properties.clone()).unwrap_or_default(),
    })
}

/// How the topics' records are written.
pub fn format(config: &Config) -> Format {
    match config.format {
        config::Format::DebeziumJson => Format::DebeziumJson,
        config::Format::Json => Format::Json,
    }
}

/// The same, and what stands in them for values that were not sent.
pub fn dialect(config: &Config) -> Dialect {
    Dialect { format: format(config), placeholder: config.placeholder.clone() }
}

/// Every model: the files', and for each declared table without one, all its columns as they are.
pub fn models(config: &Config) -> Result<Models> {
    let mut silver: Vec<SilverModel> = Vec::new();
    for model in &config.silver {
        silver.push(SilverModel {
            table: model.table.clone(),
            from: model.from.clone(),
            keys: model.keys.clone(),
            on_delete: match model.on_delete {
                OnDelete::Remove => silver::OnDelete::Remove,
                OnDelete::Mark => silver::OnDelete::Mark,
            },
            scd: match model.keeps_versions {
                true => silver::Scd::Two { track_history: model.track_history.clone() },
                false => silver::Scd::One,
            },
            ignore_nulls: match (model.ignore_null_updates, model.ignore_null_updates_columns.as_slice()) {
                (false, _) => silver::IgnoreNulls::Nowhere,
                (true, []) => silver::IgnoreNulls::Everywhere,
                (true, columns) => silver::IgnoreNulls::In(columns.to_vec()),
            },
            sql: Some(model.sql.text.clone()),
            expect: model.expect.iter().map(|expected| expected.rule.clone()).collect(),
        });
    }
    for table in config.tables.iter().filter(|table| table.shape.is_some()) {
        let name = |namespace: &str| TableName::new(namespace, &table.name).map_err(crate::table::Error::from);
        let from = name(&config.namespaces.bronze)?;
        let table_name = name(&config.namespaces.silver)?;
        // A history stands beside the rows as they are, and does not take their place.
        let is_made =
            |model: &SilverModel| model.table == table_name || model.from == from && model.scd == silver::Scd::One;
        if silver.iter().any(is_made) {
            continue;
        }
        silver.push(SilverModel {
            table: table_name,
            from,
            keys: table.key.clone(),
            on_delete: silver::OnDelete::Remove,
            scd: silver::Scd::One,
            ignore_nulls: silver::IgnoreNulls::Nowhere,
            sql: None,
            expect: Vec::new(),
        });
    }
    let gold = config.gold.iter().map(|model| GoldModel {
        table: model.table.clone(),
        sql: model.sql.text.clone(),
        group_by: model.group_by.clone(),
        expect: model.expect.iter().map(|expected| expected.rule.clone()).collect(),
    });
    let gold = gold.collect();
    let audits = config.audits.iter().map(|audit| Audit {
        name: audit.name.clone(),
        table: audit.table.clone(),
        action: audit.action,
        sql: audit.sql.text.clone(),
    });
    let table = TableName::new(&config.namespaces.gold, FINDINGS_TABLE).map_err(crate::table::Error::from)?;
    let quality = KeptFindings { table, keep: config.keep_findings };
    Ok(Models { silver, gold, audits: audits.collect(), quality: Some(quality), extent: silver::Extent::New })
}

/// When a batch is committed.
pub fn commit_triggers(config: &Config) -> CommitTriggers {
    // What is being read may take half of the budget: the rest is for the source's queue and for merges.
    let memory = config.memory_bytes / 2;
    CommitTriggers {
        every: config.commit.every,
        rows: usize::try_from(config.commit.rows).unwrap_or(usize::MAX),
        bytes: usize::try_from(config.commit.bytes).unwrap_or(usize::MAX),
        memory: usize::try_from(memory).unwrap_or(usize::MAX),
    }
}
