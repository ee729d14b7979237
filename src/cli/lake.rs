//! What the verbs that work on the lake share.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join3;
use uuid::Uuid;

use super::Context;
use super::check::{Finding, Reached};
use crate::config::{CatalogConfig, Config};
use crate::error::{Error, Kind, Result, Situation};
use crate::ids::TableName;
use crate::layout;
use crate::pipeline;
use crate::table::{self, Lake, Table};

/// A catalog that takes longer over one question is as good as none to somebody who waits for the answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// `check` only wants to know whether somebody is there. Brokers are given longer, so that their client can tell why not.
const PATIENCE_OF_CHECK: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub(super) enum LakeError {
    #[error("{what} did not answer within {} s", .patience.as_secs())]
    Slow { what: String, patience: Duration },

    #[error("there is no table `{table}`")]
    UnknownTable { table: TableName, nearest: Option<TableName> },

    #[error("table `{table}` is not of the bronze layer, which is in `{namespace}`")]
    NotBronze { table: TableName, namespace: String },

    #[error("the warehouse `{warehouse}` cannot be written to")]
    Warehouse {
        warehouse: String,
        #[source]
        source: table::Error,
    },
}

impl Situation for LakeError {
    fn kind(&self) -> Kind {
        match self {
            LakeError::Slow { .. } => Kind::Unavailable,
            LakeError::UnknownTable { .. } | LakeError::NotBronze { .. } => Kind::Config,
            LakeError::Warehouse { source, .. } => source.kind(),
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            LakeError::Slow { .. } => Some("check the address, and whether a firewall is in between".to_string()),
            LakeError::UnknownTable { nearest: Some(nearest), .. } => Some(format!("did you mean `{nearest}`?")),
            LakeError::UnknownTable { .. } => Some("`icestream tables` lists the tables there are".to_string()),
            LakeError::NotBronze { namespace, .. } => {
                Some(format!("name one of `{namespace}`; the namespace may be left out"))
            }
            LakeError::Warehouse { source, .. } => source.hint(),
        }
    }
}

/// Opens the project's lake.
pub(super) async fn open(config: &Config, context: &Context) -> Result<Lake> {
    within(PATIENCE, &named(config), pipeline::open_lake(config, context.clock.clone())).await
}

/// A table by its name, which may be misspelt.
pub(super) async fn table(name: &TableName, config: &Config, lake: &Lake) -> Result<Table> {
    match load(name, config, lake).await? {
        Some(table) => Ok(table),
        None => Err(unknown(name, config, lake).await),
    }
}

/// The bronze table that a person means: `orders` is the one of the project's bronze namespace.
pub(super) fn bronze_name(text: &str, config: &Config) -> Result<TableName> {
    let name = if text.contains('.') { text.parse() } else { TableName::new(config.namespaces.bronze.clone(), text) };
    let name = name.map_err(table::Error::from)?;
    if name.namespace() != config.namespaces.bronze {
        return Err(LakeError::NotBronze { table: name, namespace: config.namespaces.bronze.clone() }.into());
    }
    Ok(name)
}

/// The bronze tables there are, or the one that is named, which has to be there.
pub(super) async fn bronze_tables(named: Option<&str>, config: &Config, lake: &Lake) -> Result<Vec<Table>> {
    if let Some(named) = named {
        return Ok(vec![table(&bronze_name(named, config)?, config, lake).await?]);
    }
    let catalog = self::named(config);
    let names = within(PATIENCE, &catalog, async { Ok(lake.tables(&config.namespaces.bronze).await?) }).await?;
    let mut tables = Vec::new();
    for name in names {
        let table = load(&name, config, lake).await?;
        // Somebody else may keep tables there, too.
        tables.extend(table.filter(|table| table.schema().is_ok_and(|schema| schema.index_of(layout::ERROR).is_ok())));
    }
    Ok(tables)
}

/// The error for a name that no table has.
pub(super) async fn unknown(name: &TableName, config: &Config, lake: &Lake) -> Error {
    let nearest = nearest(name, &known_tables(config, lake).await.unwrap_or_default());
    LakeError::UnknownTable { table: name.clone(), nearest }.into()
}

/// A table, where there is one of the name.
pub(super) async fn load(name: &TableName, config: &Config, lake: &Lake) -> Result<Option<Table>> {
    within(PATIENCE, &named(config), async { Ok(lake.table_if_exists(name).await?) }).await
}

fn nearest(name: &TableName, known: &[TableName]) -> Option<TableName> {
    let distance = |other: &TableName| strsim::damerau_levenshtein(&name.to_string(), &other.to_string());
    let near = known.iter().map(|other| (distance(other), other)).min_by_key(|(distance, _)| *distance);
    near.filter(|(distance, _)| *distance <= 3).map(|(_, other)| other.clone())
}

/// Every table of the project's namespaces, by name.
pub(super) async fn known_tables(config: &Config, lake: &Lake) -> Result<Vec<TableName>> {
    let mut names = Vec::new();
    for namespace in [&config.namespaces.bronze, &config.namespaces.silver, &config.namespaces.gold] {
        names.extend(within(PATIENCE, &named(config), async { Ok(lake.tables(namespace).await?) }).await?);
    }
    Ok(names)
}

/// Looks at the catalog, the warehouse and the brokers a project points to, all at once.
pub(super) async fn reach(config: &Config, context: &Context) -> Reached {
    let (catalog, warehouse) = (named(config), format!("the warehouse `{}`", config.warehouse));
    let asked = within(PATIENCE_OF_CHECK, &catalog, async {
        let lake = pipeline::open_lake(config, context.clock.clone()).await?;
        let names = lake.catalog().namespaces().await?;
        Ok((lake, names))
    });
    let written = within(PATIENCE_OF_CHECK, &warehouse, probe(config));
    let (asked, written, brokers) = join3(asked, written, within(PATIENCE, "kafka", topics(config))).await;
    let written = written.map(|()| format!("`{}` can be written to", config.warehouse));
    let (found, lake) = match asked {
        Ok((lake, names)) => {
            let plural = if names.len() == 1 { "" } else { "s" };
            (Ok(format!("{}, {} namespace{plural}", lake.catalog().describe(), names.len())), Some(lake))
        }
        Err(error) => (Err(error), None),
    };
    let mut findings = vec![Finding::new("catalog", found), Finding::new("warehouse", written)];
    findings.extend(brokers.transpose().map(|found| Finding::new("brokers", found)));
    Reached { findings, lake }
}

/// What the brokers have for the project; `None` where it reads from none.
async fn topics(config: &Config) -> Result<Option<String>> {
    if config.source_files.is_some() {
        return Ok(None);
    }
    let Some(kafka) = pipeline::kafka_admin(config, None)? else { return Ok(None) };
    let partitions = kafka.partitions().await?;
    let is_read = |topic: &str| config.kafka.topics.iter().any(|pattern| pattern.matches(topic));
    let topics: BTreeSet<&str> = partitions.iter().map(|at| &*at.topic).filter(|topic| is_read(topic)).collect();
    let plural = if topics.len() == 1 { "" } else { "s" };
    Ok(Some(format!("kafka at `{}`, {} topic{plural} to read", kafka.brokers(), topics.len())))
}

async fn probe(config: &Config) -> Result<()> {
    let refused = |source| LakeError::Warehouse { warehouse: config.warehouse.clone(), source };
    let storage = pipeline::open_storage(config)?;
    let location = format!("{}/.icestream-probe-{}", config.warehouse, Uuid::new_v4().simple());
    storage.write(&location, bytes::Bytes::from_static(b"probe")).await.map_err(refused)?;
    storage.delete_many([location]).await.map_err(refused)?;
    Ok(())
}

async fn within<T>(patience: Duration, what: &str, answer: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(patience, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(Error::from(LakeError::Slow { what: what.to_string(), patience })),
    }
}

fn named(config: &Config) -> String {
    match &config.catalog {
        CatalogConfig::Sqlite { path } => format!("SQLite catalog `{}`", path.display()),
        CatalogConfig::Rest { uri, .. } => format!("REST catalog `{uri}`"),
        CatalogConfig::Glue { endpoint: Some(endpoint), .. } => format!("Glue catalog at `{endpoint}`"),
        CatalogConfig::Glue { .. } => "Glue catalog".to_string(),
    }
}
