//! What the verbs that work on the lake share.

use uuid::Uuid;

use super::check::{self, Finding};
use crate::clock::Clock;
use crate::config::Config;
use crate::error::Result;
use crate::ids::TableName;
use crate::pipeline;
use crate::table::Lake;

/// Every table of the project's namespaces, by name. What cannot be listed is left out.
pub(super) async fn known_tables(config: &Config, lake: &Lake) -> Vec<TableName> {
    let mut names = Vec::new();
    for namespace in [&config.namespaces.bronze, &config.namespaces.silver, &config.namespaces.gold] {
        match lake.tables(namespace).await {
            Ok(found) => names.extend(found),
            Err(error) => tracing::warn!(%namespace, %error, "tables could not be listed"),
        }
    }
    names
}

/// Looks at the catalog and the warehouse a project points to.
pub(super) async fn reach(config: &Config) -> Vec<Finding> {
    let lake = match pipeline::open_lake(config, Clock::system()).await {
        Ok(lake) => lake,
        Err(error) => return vec![Finding { what: "catalog", found: Err(error) }],
    };
    let probe = async || -> Result<()> {
        let location = format!("{}/.icestream-probe-{}", config.warehouse, Uuid::new_v4().simple());
        lake.storage().write(&location, bytes::Bytes::from_static(b"probe")).await?;
        lake.storage().delete_many([location]).await?;
        Ok(())
    };
    check::connectivity(lake.catalog().clone(), &config.warehouse, probe).await
}
