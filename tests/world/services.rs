//! The services that `tests/services/up` started.

use std::path::PathBuf;
use std::sync::Arc;

use icestream::aws::AwsOptions;
use icestream::clock::Clock;
use icestream::table::Lake;
use icestream::table::catalog::glue::{GlueCatalog, GlueOptions};
use icestream::table::catalog::rest::{RestAuth, RestCatalog, RestOptions};
use icestream::table::storage::{S3Options, Storage, StorageOptions};
use serde::Deserialize;
use uuid::Uuid;

use crate::support::World;

#[derive(Debug, Clone, Default, Deserialize)]
pub struct Services {
    pub s3_endpoint: String,
    pub glue_endpoint: String,
    pub region: String,
    pub access_key: String,
    pub secret_key: String,
    pub bucket: String,
    pub rest_uri: String,
    pub rest_warehouse: String,
    pub rest_credential: Option<String>,
    pub rest_command: Vec<String>,
    pub python: PathBuf,
}

pub fn services() -> Services {
    let file = services_file();
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    serde_json::from_str(&text).unwrap()
}

pub fn services_file() -> PathBuf {
    std::env::var_os("ICESTREAM_SERVICES_FILE").expect("run these tests with `tests/run`").into()
}

impl Services {
    /// The same services with object storage at another address.
    pub fn with_s3_at(&self, endpoint: &str) -> Services {
        Services { s3_endpoint: endpoint.to_string(), ..self.clone() }
    }
}

pub fn storage(services: &Services) -> Storage {
    Storage::new(StorageOptions {
        s3: S3Options {
            endpoint: Some(services.s3_endpoint.clone()),
            region: Some(services.region.clone()),
            access_key_id: Some(services.access_key.clone()),
            secret_access_key: Some(services.secret_key.clone()),
            path_style: true,
            ..S3Options::default()
        },
    })
    .unwrap()
}

/// A namespace nobody else has.
pub fn namespace() -> String {
    format!("t{}", Uuid::new_v4().simple())
}

pub async fn glue_lake(services: &Services, endpoint: &str) -> Lake {
    let storage = storage(services);
    let options = GlueOptions {
        endpoint: Some(endpoint.to_string()),
        catalog_id: None,
        aws: AwsOptions {
            region: Some(services.region.clone()),
            profile: None,
            access_key_id: Some(services.access_key.clone()),
            secret_access_key: Some(services.secret_key.clone()),
            session_token: None,
        },
        warehouse: format!("s3://{}/glue", services.bucket),
    };
    let catalog = GlueCatalog::open(options, storage.clone()).await.unwrap();
    Lake::new(Arc::new(catalog), storage, Clock::system())
}

pub async fn rest_lake(services: &Services, uri: &str) -> Lake {
    let auth = match &services.rest_credential {
        Some(credential) => RestAuth::OAuth2 { credential: credential.clone(), scope: None, server: None },
        None => RestAuth::None,
    };
    try_rest_lake(services, uri, auth).await.unwrap()
}

pub async fn try_rest_lake(services: &Services, uri: &str, auth: RestAuth) -> icestream::table::error::Result<Lake> {
    let options =
        RestOptions { uri: uri.to_string(), warehouse: Some(services.rest_warehouse.clone()), prefix: None, auth };
    let catalog = RestCatalog::open(options, Clock::system()).await?;
    Ok(Lake::new(Arc::new(catalog), storage(services), Clock::system()))
}

pub async fn glue_world() -> World {
    let services = services();
    World { lake: glue_lake(&services, &services.glue_endpoint).await, namespace: namespace(), keep: None }
}

pub async fn rest_world() -> World {
    let services = services();
    World { lake: rest_lake(&services, &services.rest_uri).await, namespace: namespace(), keep: None }
}
