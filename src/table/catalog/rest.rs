//! A catalog behind the Iceberg REST protocol.
//!
//! The server keeps the pointer and writes the metadata files; we send updates with the requirements they stand on.
//! The storage settings and credentials that a server may hand out with a table are ignored: files are reached the way
//! the configuration says.
//!
//! **What the protocol cannot promise.** A server compares requirements, not heads, and no requirement speaks of
//! properties. Everything else about the base is required, so commits that add a snapshot or a schema race as the
//! contract says; of two commits that only set properties, the second is applied on top of the first.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use aws_sigv4::http_request::{PayloadChecksumKind, SignableBody, SignableRequest, SigningSettings, sign as signature};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use iceberg::spec::{MAIN_BRANCH, Schema, SortOrder, TableMetadata, UnboundPartitionSpec};
use iceberg::{TableRequirement, TableUpdate};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Request, StatusCode, Url};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::sync::Mutex;

use super::{Catalog, Head, NewTable, Swap, backoff, pointer};
use crate::aws::{self, AwsOptions, CachedCredentials};
use crate::clock::Clock;
use crate::ids::{TableName, check_part};
use crate::table::error::{Error, Result};

/// How to reach a REST catalog.
#[derive(Debug, Clone, Default)]
pub struct RestOptions {
    /// The address before `/v1`.
    pub uri: String,
    /// Which of the server's warehouses, where it has several.
    pub warehouse: Option<String>,
    /// The path part after `/v1`, when the server does not say it itself.
    pub prefix: Option<String>,
    pub auth: RestAuth,
}

/// Who we are to a REST catalog.
#[derive(Clone, Default)]
pub enum RestAuth {
    #[default]
    None,
    /// A bearer token that somebody else renews.
    Token(String),
    /// OAuth2 client credentials.
    OAuth2 {
        /// `id:secret`, or a secret alone.
        credential: String,
        /// `catalog` when it is not set.
        scope: Option<String>,
        /// Where tokens come from; the catalog itself when it is not set.
        server: Option<String>,
    },
    /// Requests signed as AWS does, for Glue's and S3 Tables' REST endpoints.
    SigV4 {
        /// `glue` or `s3tables`.
        service: String,
        aws: AwsOptions,
    },
}

impl fmt::Debug for RestAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RestAuth::None => f.write_str("None"),
            RestAuth::Token(_) => f.write_str("Token(***)"),
            RestAuth::OAuth2 { scope, server, .. } => {
                f.debug_struct("OAuth2").field("scope", scope).field("server", server).finish_non_exhaustive()
            }
            RestAuth::SigV4 { service, aws } => {
                f.debug_struct("SigV4").field("service", service).field("aws", aws).finish()
            }
        }
    }
}

/// A connection to a REST catalog.
pub struct RestCatalog {
    client: Client,
    /// The address as it may be shown.
    shown: String,
    base: Url,
    credentials: Credentials,
    clock: Clock,
}

impl RestCatalog {
    /// Asks the server for its configuration.
    pub async fn open(options: RestOptions, clock: Clock) -> Result<Self> {
        let client = Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(60))
            .user_agent(concat!("icestream/", env!("CARGO_PKG_VERSION")))
            // Following a redirect would turn a commit into a look at the table.
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| Error::unreachable("the HTTP client", error))?;
        let base = base_url(&options.uri, None)?;
        let shown = shown(&base).trim_end_matches("/v1").to_string();
        let credentials = Credentials::new(&options.auth, &base, &clock).await?;
        let mut catalog = RestCatalog { client, shown, base, credentials, clock };
        let config = catalog.config(options.warehouse.as_deref()).await?;
        let (uri, prefix) = config.resolve(&options);
        catalog.base = base_url(&uri, prefix.as_deref())?;
        Ok(catalog)
    }

    async fn config(&self, warehouse: Option<&str>) -> Result<Config> {
        let mut url = self.url(&["config"])?;
        if let Some(warehouse) = warehouse {
            url.query_pairs_mut().append_pair("warehouse", warehouse);
        }
        let answer = match self.ask(Method::GET, url, None).await {
            Ok(answer) => answer,
            Err(Failed::Refused(refusal))
                if refusal.kind.starts_with("NoSuch") || refusal.kind == "NotFoundException" =>
            {
                return Err(Error::Misconfigured {
                    what: format!("{} has no warehouse `{}`", self.describe(), warehouse.unwrap_or_default()),
                    hint: "check the catalog's `warehouse`".to_string(),
                });
            }
            Err(failed) => return Err(self.failure("answer", failed)),
        };
        serde_json::from_slice(&answer).map_err(|_| self.not_a_catalog("another kind of page"))
    }

    fn url(&self, path: &[&str]) -> Result<Url> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            Ok(mut segments) => {
                segments.pop_if_empty().extend(path);
            }
            Err(()) => return Err(not_a_uri(&self.shown)),
        }
        Ok(url)
    }

    fn table_url(&self, table: &TableName) -> Result<Url> {
        self.url(&["namespaces", table.namespace(), "tables", table.name()])
    }

    /// Sends a request once, or twice when the token turns out to have run out before its time.
    async fn send(&self, method: Method, url: Url, body: Option<&[u8]>) -> Result<Bytes, Failed> {
        let mut refused_token = None;
        loop {
            let mut request = Request::new(method.clone(), url.clone());
            if let Some(body) = body {
                request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                *request.body_mut() = Some(body.to_vec().into());
            }
            let token = self.authorize(&mut request, body, refused_token.as_deref()).await.map_err(Failed::Known)?;
            let answer = receive(&self.client, request).await;
            match answer {
                Err(Failed::Refused(refusal))
                    if refused_token.is_none() && token.is_some() && matches!(refusal.status.as_u16(), 401 | 419) =>
                {
                    refused_token = token;
                }
                answer => return answer,
            }
        }
    }

    /// Sends a request that may be sent twice, until there is an answer.
    async fn ask(&self, method: Method, url: Url, body: Option<&[u8]>) -> Result<Bytes, Failed> {
        let mut attempt = 0;
        loop {
            let failed = match self.send(method.clone(), url.clone(), body).await {
                Ok(answer) => return Ok(answer),
                Err(failed) => failed,
            };
            if !failed.may_pass() || attempt + 1 == backoff::ATTEMPTS {
                return Err(failed);
            }
            tracing::debug!(attempt, error = %failed.told(), "the catalog is asked again");
            backoff::pause(attempt).await;
            attempt += 1;
        }
    }

    /// Puts on a request what proves who sends it. Gives the token back that a refusal would be about.
    async fn authorize(
        &self,
        request: &mut Request,
        body: Option<&[u8]>,
        refused_token: Option<&str>,
    ) -> Result<Option<String>> {
        match &self.credentials {
            Credentials::None => Ok(None),
            Credentials::Token(token) => {
                request.headers_mut().insert(AUTHORIZATION, bearer(token)?);
                Ok(None)
            }
            Credentials::OAuth2(oauth) => {
                let token = oauth.token(&self.client, &self.clock, refused_token).await?;
                request.headers_mut().insert(AUTHORIZATION, bearer(&token)?);
                Ok(Some(token))
            }
            Credentials::SigV4(signer) => {
                signer.sign(request, body.unwrap_or_default(), &self.clock).await?;
                Ok(None)
            }
        }
    }

    fn not_a_catalog(&self, found: &str) -> Error {
        Error::Misconfigured {
            what: format!("{} does not answer like one, but with {found}", self.describe()),
            hint: "check the catalog's `uri`: it is the address before `/v1`".to_string(),
        }
    }

    fn missing(&self, table: &TableName) -> Error {
        Error::TableMissing { table: table.clone(), catalog: self.describe() }
    }

    /// What a failed request means where nothing more is known about it.
    fn failure(&self, action: &str, failed: Failed) -> Error {
        if failed.may_pass() {
            return Error::unreachable(self.describe(), failed.told());
        }
        match failed {
            Failed::Known(error) => error,
            Failed::Refused(refusal) => match refusal.status.as_u16() {
                401 | 403 | 419 => Error::denied(self.describe(), Failed::Refused(refusal).told()),
                404 if refusal.kind.is_empty() => self.not_a_catalog("`404 Not Found`"),
                _ => Error::Misconfigured {
                    what: format!("{} refused to {action}: {}", self.describe(), Failed::Refused(refusal).told()),
                    hint: "check the names and what the server allows".to_string(),
                },
            },
            failed => Error::unreachable(self.describe(), failed.told()),
        }
    }

    /// The same for a request about a table.
    fn table_failure(&self, action: &str, table: &TableName, failed: Failed) -> Error {
        match &failed {
            Failed::Refused(refusal) => match (refusal.status.as_u16(), refusal.kind.as_str()) {
                (404, "NoSuchTableException") => self.missing(table),
                (404, "NoSuchIcebergTableException") => {
                    Error::NotIceberg { table: table.clone(), catalog: self.describe(), found: refusal.message.clone() }
                }
                (404, "NoSuchNamespaceException") => {
                    Error::NamespaceMissing { namespace: table.namespace().to_string(), catalog: self.describe() }
                }
                (400 | 406 | 422, _) => {
                    let problem = format!("{} refused to {action}: {}", self.describe(), failed.told());
                    Error::Change { table: table.clone(), problem }
                }
                _ => self.failure(action, failed),
            },
            _ => self.failure(action, failed),
        }
    }

    fn head_of(&self, table: &TableName, answer: &[u8], known: Option<&Head>) -> Result<Head> {
        let unexpected = || Error::Protocol {
            what: self.describe(),
            answer: format!("what it says of table `{table}` names no metadata"),
        };
        let loaded: Loaded<'_> = serde_json::from_slice(answer).map_err(|_| unexpected())?;
        let metadata_location = loaded.metadata_location.ok_or_else(unexpected)?;
        if let Some(known) = known.filter(|known| known.metadata_location == metadata_location) {
            return Ok(known.clone());
        }
        let text = loaded.metadata.get();
        let metadata: TableMetadata = serde_json::from_str(text).map_err(|error| {
            let newer = pointer::newer_format(table, text.as_bytes());
            newer.unwrap_or_else(|| Error::corrupt(table, "its metadata does not parse", error))
        })?;
        pointer::check_supported(table, &metadata)?;
        Ok(Head::new(table, Arc::new(metadata), metadata_location))
    }

    /// All pages of a listing.
    async fn pages<P: Page>(&self, url: Url) -> Result<Vec<P::Item>, Failed> {
        let (mut items, mut token) = (Vec::new(), None::<String>);
        loop {
            let mut page_url = url.clone();
            if let Some(token) = &token {
                page_url.query_pairs_mut().append_pair("pageToken", token);
            }
            let answer = self.ask(Method::GET, page_url, None).await?;
            let page: P = serde_json::from_slice(&answer).map_err(|_| Failed::Known(self.not_a_catalog("no list")))?;
            let (more, next) = page.into_parts();
            items.extend(more);
            // A server that does not page may repeat itself.
            if next.is_none() || next.as_deref() == Some("") || next == token {
                return Ok(items);
            }
            token = next;
        }
    }
}

impl fmt::Debug for RestCatalog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestCatalog").field("uri", &self.shown).finish_non_exhaustive()
    }
}

#[async_trait]
impl Catalog for RestCatalog {
    fn describe(&self) -> String {
        format!("REST catalog `{}`", self.shown)
    }

    async fn namespaces(&self) -> Result<Vec<String>> {
        let found = self.pages::<Namespaces>(self.url(&["namespaces"])?).await;
        let found = found.map_err(|failed| self.failure("list namespaces", failed))?;
        let mut names: Vec<String> = found.into_iter().filter(|levels| levels.len() == 1).flatten().collect();
        names.sort();
        Ok(names)
    }

    async fn create_namespace(&self, namespace: &str) -> Result<()> {
        check_part(namespace)?;
        match self.ask(Method::GET, self.url(&["namespaces", namespace])?, None).await {
            Ok(_) => return Ok(()),
            Err(Failed::Refused(refusal)) if refusal.kind == "NoSuchNamespaceException" => {}
            Err(failed) => return Err(self.failure("read the namespace", failed)),
        }
        let body = serde_json::json!({ "namespace": [namespace], "properties": {} }).to_string();
        // Repeating it is harmless: made twice is made.
        match self.ask(Method::POST, self.url(&["namespaces"])?, Some(body.as_bytes())).await {
            Ok(_) => Ok(()),
            Err(Failed::Refused(refusal)) if refusal.status == StatusCode::CONFLICT => Ok(()),
            Err(failed) => Err(self.failure("make the namespace", failed)),
        }
    }

    async fn tables(&self, namespace: &str) -> Result<Vec<TableName>> {
        match self.pages::<Tables>(self.url(&["namespaces", namespace, "tables"])?).await {
            Ok(found) => Ok(super::nameable(namespace, found.into_iter().map(|table| table.name))),
            Err(Failed::Refused(refusal)) if refusal.kind == "NoSuchNamespaceException" => {
                Err(Error::NamespaceMissing { namespace: namespace.to_string(), catalog: self.describe() })
            }
            Err(failed) => Err(self.failure("list tables", failed)),
        }
    }

    async fn head(&self, table: &TableName, known: Option<&Head>) -> Result<Head> {
        let answer = self.ask(Method::GET, self.table_url(table)?, None).await;
        let answer = answer.map_err(|failed| self.table_failure("read the table", table, failed))?;
        self.head_of(table, &answer, known)
    }

    async fn create(&self, new: NewTable) -> Result<Head> {
        let table = new.table;
        self.create_namespace(table.namespace()).await?;
        // Servers written in Java refuse a spec that has no id, although theirs is the one that counts.
        let partition_spec = match new.partition_spec.spec_id() {
            Some(_) => new.partition_spec,
            None => new.partition_spec.with_spec_id(0),
        };
        let creation = Creation {
            name: table.name(),
            location: new.location.as_deref(),
            schema: &new.schema,
            partition_spec: &partition_spec,
            write_order: &new.sort_order,
            stage_create: false,
            properties: &new.properties,
        };
        let body = serialised(&creation)?;
        let url = self.url(&["namespaces", table.namespace(), "tables"])?;
        match self.send(Method::POST, url, Some(&body)).await {
            Ok(answer) => self.head_of(&table, &answer, None),
            Err(Failed::Refused(refusal)) if refusal.status == StatusCode::CONFLICT => {
                Err(Error::TableExists { table, catalog: self.describe() })
            }
            Err(failed) => Err(self.table_failure("make the table", &table, failed)),
        }
    }

    async fn swap(
        &self,
        base: &Head,
        requirements: &[TableRequirement],
        updates: &[TableUpdate],
    ) -> Result<Head, Swap> {
        let table = &base.table;
        let identifier = Identifier { namespace: vec![table.namespace().to_string()], name: table.name().to_string() };
        let commit = Commit { identifier, requirements: pinned(requirements, &base.metadata), updates };
        let body = serialised(&commit).map_err(Swap::Failed)?;
        let url = self.table_url(table).map_err(Swap::Failed)?;
        match self.send(Method::POST, url, Some(&body)).await {
            // Applied, and yet not to be read: the table's history will tell.
            Ok(answer) => self.head_of(table, &answer, None).map_err(Swap::Unknown),
            Err(failed) => Err(match failed.outcome() {
                Outcome::Lost => Swap::Lost,
                Outcome::Busy => Swap::Busy(self.table_failure("commit", table, failed)),
                Outcome::Unknown => Swap::Unknown(self.table_failure("commit", table, failed)),
                Outcome::Failed => Swap::Failed(self.table_failure("commit", table, failed)),
            }),
        }
    }

    async fn drop_table(&self, table: &TableName) -> Result<()> {
        let mut url = self.table_url(table)?;
        url.query_pairs_mut().append_pair("purgeRequested", "false");
        match self.send(Method::DELETE, url, None).await {
            Ok(_) => Ok(()),
            Err(failed) => Err(self.table_failure("forget the table", table, failed)),
        }
    }
}

/// The requirements, and those that pin everything else of the base that the protocol can speak of.
fn pinned(requirements: &[TableRequirement], base: &TableMetadata) -> Vec<TableRequirement> {
    let mut all = requirements.to_vec();
    let pins = [
        TableRequirement::UuidMatch { uuid: base.uuid() },
        TableRequirement::RefSnapshotIdMatch {
            r#ref: MAIN_BRANCH.to_string(),
            snapshot_id: base.current_snapshot_id(),
        },
        TableRequirement::CurrentSchemaIdMatch { current_schema_id: base.current_schema_id() },
        TableRequirement::LastAssignedFieldIdMatch { last_assigned_field_id: base.last_column_id() },
        TableRequirement::DefaultSpecIdMatch { default_spec_id: base.default_partition_spec_id() },
        TableRequirement::LastAssignedPartitionIdMatch { last_assigned_partition_id: base.last_partition_id() },
        TableRequirement::DefaultSortOrderIdMatch { default_sort_order_id: base.default_sort_order_id() },
    ];
    for pin in pins {
        if !all.contains(&pin) {
            all.push(pin);
        }
    }
    all
}

/// Why there is no usable answer.
#[derive(Debug)]
enum Failed {
    /// It never left this machine.
    NotSent(reqwest::Error),
    /// It may have been carried out.
    Doubtful(reqwest::Error),
    Refused(Refusal),
    /// What is wrong is known, and no request stands for it.
    Known(Error),
}

#[derive(Debug, Clone)]
struct Refusal {
    status: StatusCode,
    /// The server's own name for the error; empty where something else than a catalog answered.
    kind: String,
    message: String,
}

/// What a failed commit means for the table.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Lost,
    Busy,
    Failed,
    Unknown,
}

impl Failed {
    fn may_pass(&self) -> bool {
        match self {
            Failed::NotSent(_) | Failed::Doubtful(_) => true,
            Failed::Refused(refusal) => refusal.status == 429 || refusal.status.is_server_error(),
            Failed::Known(_) => false,
        }
    }

    fn outcome(&self) -> Outcome {
        match self {
            Failed::NotSent(_) => Outcome::Busy,
            Failed::Doubtful(_) => Outcome::Unknown,
            Failed::Known(Error::Unreachable { .. }) => Outcome::Busy,
            Failed::Known(_) => Outcome::Failed,
            Failed::Refused(refusal) => match refusal.status.as_u16() {
                409 => Outcome::Lost,
                429 => Outcome::Busy,
                // A proxy in between says 502, 503 and 504 of requests that the server is still working on.
                500.. => Outcome::Unknown,
                _ => Outcome::Failed,
            },
        }
    }

    /// In the words of the server, or of whatever is at the bottom of it.
    fn told(&self) -> std::io::Error {
        let text = match self {
            Failed::NotSent(error) | Failed::Doubtful(error) => {
                let mut lines = vec![error.to_string()];
                let mut next = std::error::Error::source(error);
                while let Some(error) = next {
                    lines.push(error.to_string());
                    next = error.source();
                }
                lines.dedup();
                lines.join(": ")
            }
            Failed::Refused(Refusal { status, kind, message }) => match (kind.as_str(), message.as_str()) {
                ("", _) => status.to_string(),
                (kind, "") => format!("{kind} ({})", status.as_u16()),
                (kind, message) => format!("{kind}: {message}"),
            },
            Failed::Known(error) => error.to_string(),
        };
        std::io::Error::other(text)
    }
}

async fn receive(client: &Client, request: Request) -> Result<Bytes, Failed> {
    // Addresses may hold a user's name and password, and say nothing that the message does not.
    let failed = |error: reqwest::Error| {
        let error = error.without_url();
        if error.is_connect() || error.is_builder() { Failed::NotSent(error) } else { Failed::Doubtful(error) }
    };
    let response = client.execute(request).await.map_err(failed)?;
    let status = response.status();
    let body = response.bytes().await.map_err(|error| Failed::Doubtful(error.without_url()))?;
    if status.is_success() { Ok(body) } else { Err(Failed::Refused(Refusal::parse(status, &body))) }
}

impl Refusal {
    fn parse(status: StatusCode, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Answer {
            error: Details,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Details {
            Catalog {
                #[serde(default)]
                message: Option<String>,
                r#type: String,
            },
            /// What a token endpoint says.
            OAuth(String),
        }
        #[derive(Deserialize)]
        struct Description {
            error_description: Option<String>,
        }
        let (kind, message) = match serde_json::from_slice::<Answer>(body).map(|answer| answer.error) {
            Ok(Details::Catalog { message, r#type }) => (r#type, message.unwrap_or_default()),
            Ok(Details::OAuth(kind)) => {
                let description = serde_json::from_slice::<Description>(body).ok();
                (kind, description.and_then(|description| description.error_description).unwrap_or_default())
            }
            Err(_) => (String::new(), String::new()),
        };
        // Some servers put a stack trace into the message.
        let message = message.lines().next().unwrap_or_default().to_string();
        Refusal { status, kind, message }
    }
}

enum Credentials {
    None,
    Token(String),
    OAuth2(OAuth2),
    SigV4(Signer),
}

impl Credentials {
    async fn new(auth: &RestAuth, base: &Url, clock: &Clock) -> Result<Self> {
        Ok(match auth {
            RestAuth::None => Credentials::None,
            RestAuth::Token(token) => Credentials::Token(token.clone()),
            RestAuth::OAuth2 { credential, scope, server } => {
                let url = match server {
                    Some(server) => Url::parse(server).map_err(|_| not_a_uri(server))?,
                    None => {
                        let mut url = base.clone();
                        if let Ok(mut segments) = url.path_segments_mut() {
                            segments.pop_if_empty().extend(["oauth", "tokens"]);
                        }
                        url
                    }
                };
                let (id, secret) = match credential.split_once(':') {
                    Some((id, secret)) => (Some(id.to_string()), secret.to_string()),
                    None => (None, credential.clone()),
                };
                let scope = scope.clone().unwrap_or_else(|| "catalog".to_string());
                Credentials::OAuth2(OAuth2 { url, id, secret, scope, last: Mutex::new(None) })
            }
            RestAuth::SigV4 { service, aws } => {
                let config = aws::sdk_config(aws, None).await?;
                Credentials::SigV4(Signer {
                    service: service.clone(),
                    region: aws::region(&config)?,
                    credentials: CachedCredentials::new(&config, clock.clone())?,
                })
            }
        })
    }
}

struct OAuth2 {
    url: Url,
    id: Option<String>,
    secret: String,
    scope: String,
    last: Mutex<Option<Token>>,
}

struct Token {
    text: String,
    renew_at_us: i64,
}

impl OAuth2 {
    /// The current token, or a new one when it is about to expire or is the one that was refused.
    async fn token(&self, client: &Client, clock: &Clock, refused: Option<&str>) -> Result<String> {
        let mut last = self.last.lock().await;
        if let Some(token) = &*last
            && refused != Some(token.text.as_str())
            && clock.now_us() < token.renew_at_us
        {
            return Ok(token.text.clone());
        }
        let token = self.fetch(client, clock).await?;
        let text = token.text.clone();
        *last = Some(token);
        Ok(text)
    }

    async fn fetch(&self, client: &Client, clock: &Clock) -> Result<Token> {
        #[derive(Deserialize)]
        struct Granted {
            access_token: String,
            expires_in: Option<i64>,
        }
        let what = || format!("the token server `{}`", shown(&self.url));
        let mut form = vec![("grant_type", "client_credentials"), ("scope", &self.scope)];
        if let Some(id) = &self.id {
            form.push(("client_id", id));
        }
        form.push(("client_secret", &self.secret));
        let mut attempt = 0;
        let answer = loop {
            let request = client.post(self.url.clone()).form(&form).build();
            let request = request.map_err(|error| Error::unreachable(what(), error.without_url()))?;
            let failed = match receive(client, request).await {
                Ok(answer) => break answer,
                Err(failed) => failed,
            };
            if failed.may_pass() && attempt + 1 < backoff::ATTEMPTS {
                backoff::pause(attempt).await;
                attempt += 1;
                continue;
            }
            return Err(match &failed {
                Failed::Refused(refusal) if matches!(refusal.status.as_u16(), 400 | 401 | 403) => {
                    Error::denied(what(), failed.told())
                }
                Failed::Refused(refusal) if refusal.status == StatusCode::NOT_FOUND => Error::Misconfigured {
                    what: format!("{} is not one: {}", what(), failed.told()),
                    hint: "set where tokens come from with `oauth2_server_uri`".to_string(),
                },
                _ => Error::unreachable(what(), failed.told()),
            });
        };
        let granted: Granted = serde_json::from_slice(&answer)
            .map_err(|_| Error::Protocol { what: what(), answer: "no token".to_string() })?;
        // What does not say when it expires is taken for an hour's; a refusal corrects that.
        let lifetime_s = granted.expires_in.unwrap_or(3600).clamp(0, 365 * 24 * 3600);
        let early_s = (lifetime_s / 4).min(60);
        Ok(Token { text: granted.access_token, renew_at_us: clock.now_us() + (lifetime_s - early_s) * 1_000_000 })
    }
}

struct Signer {
    service: String,
    region: String,
    credentials: CachedCredentials,
}

impl Signer {
    async fn sign(&self, request: &mut Request, body: &[u8], clock: &Clock) -> Result<()> {
        let unsigned = |error: &dyn std::error::Error| Error::Protocol {
            what: "the signing of a request".to_string(),
            answer: error.to_string(),
        };
        let identity = self.credentials.get().await?.into();
        let mut settings = SigningSettings::default();
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let now = UNIX_EPOCH + Duration::from_micros(clock.now_us().try_into().unwrap_or_default());
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name(&self.service)
            .time(now)
            .settings(settings)
            .build()
            .map_err(|error| unsigned(&error))?
            .into();
        let (method, url) = (request.method().to_string(), request.url().to_string());
        let headers = signed_headers(request.headers());
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let signable = SignableRequest::new(&method, &url, headers, SignableBody::Bytes(body));
        let signable = signable.map_err(|error| unsigned(&error))?;
        let (instructions, _) = signature(signable, &params).map_err(|error| unsigned(&error))?.into_parts();
        for (name, value) in instructions.headers() {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| unsigned(&error))?;
            let mut value = HeaderValue::from_str(value).map_err(|error| unsigned(&error))?;
            value.set_sensitive(true);
            request.headers_mut().insert(name, value);
        }
        Ok(())
    }
}

fn signed_headers(headers: &HeaderMap) -> Vec<(String, String)> {
    let texts = headers.iter().map(|(name, value)| (name.to_string(), value.to_str().unwrap_or_default().to_string()));
    texts.collect()
}

fn bearer(token: &str) -> Result<HeaderValue> {
    let value = HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| Error::Misconfigured {
        what: "the token has characters that no token has".to_string(),
        hint: "check for a line break at the token's end".to_string(),
    });
    value.map(|mut value| {
        value.set_sensitive(true);
        value
    })
}

/// Where requests go: `<uri>/v1/<prefix>`. The prefix is taken as the server spells it, slashes and escapes included.
fn base_url(uri: &str, prefix: Option<&str>) -> Result<Url> {
    let mut text = format!("{}/v1", uri.trim_end_matches('/'));
    if let Some(prefix) = prefix.map(|prefix| prefix.trim_matches('/')).filter(|prefix| !prefix.is_empty()) {
        text = format!("{text}/{prefix}");
    }
    Url::parse(&text)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.query().is_none())
        .ok_or_else(|| not_a_uri(uri))
}

fn not_a_uri(uri: &str) -> Error {
    let uri = Url::parse(uri).map_or_else(|_| uri.to_string(), |url| shown(&url));
    Error::Misconfigured {
        what: format!("`{uri}` is not the address of a REST catalog"),
        hint: "write `https://host/path`, the part before `/v1`".to_string(),
    }
}

/// An address without what may be secret in it.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.to_string()
}

fn serialised(body: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(body)
        .map_err(|error| Error::Protocol { what: "a request".to_string(), answer: error.to_string() })
}

/// The server's answer to `/v1/config`. Its defaults yield to the user's settings, its overrides do not.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    defaults: Settings,
    #[serde(default)]
    overrides: Settings,
}

#[derive(Default, Deserialize)]
struct Settings {
    uri: Option<String>,
    prefix: Option<String>,
}

impl Config {
    fn resolve(self, options: &RestOptions) -> (String, Option<String>) {
        let uri = self.overrides.uri.unwrap_or_else(|| options.uri.clone());
        (uri, self.overrides.prefix.or_else(|| options.prefix.clone()).or(self.defaults.prefix))
    }
}

trait Page: for<'a> Deserialize<'a> {
    type Item;
    fn into_parts(self) -> (Vec<Self::Item>, Option<String>);
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Namespaces {
    namespaces: Vec<Vec<String>>,
    next_page_token: Option<String>,
}

impl Page for Namespaces {
    type Item = Vec<String>;

    fn into_parts(self) -> (Vec<Vec<String>>, Option<String>) {
        (self.namespaces, self.next_page_token)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Tables {
    identifiers: Vec<Identifier>,
    next_page_token: Option<String>,
}

impl Page for Tables {
    type Item = Identifier;

    fn into_parts(self) -> (Vec<Identifier>, Option<String>) {
        (self.identifiers, self.next_page_token)
    }
}

#[derive(Serialize, Deserialize)]
struct Identifier {
    namespace: Vec<String>,
    name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Loaded<'a> {
    metadata_location: Option<String>,
    #[serde(borrow)]
    metadata: &'a RawValue,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Creation<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    location: Option<&'a str>,
    schema: &'a Schema,
    partition_spec: &'a UnboundPartitionSpec,
    write_order: &'a SortOrder,
    stage_create: bool,
    properties: &'a std::collections::HashMap<String, String>,
}

#[derive(Serialize)]
struct Commit<'a> {
    identifier: Identifier,
    requirements: Vec<TableRequirement>,
    updates: &'a [TableUpdate],
}

#[cfg(test)]
mod tests;
