//! S3 and what speaks its protocol.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3, AmazonS3Builder, AmazonS3ConfigKey, AwsCredential};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, CopyOptions, CredentialProvider, GetOptions, GetResult, ListResult, MultipartUpload,
    ObjectMeta, ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, RetryConfig,
    WriteMultipart,
};
use tokio::sync::OnceCell;

use super::{S3Options, find, storage_error};
use crate::aws::{CachedCredentials, region, sdk_config};
use crate::clock::Clock;
use crate::error::Kind;
use crate::table::error::{Error, Result};

/// From this size on an object is uploaded in parts of this size. Equal parts, because not every server takes others;
/// 10,000 parts are allowed, so the largest file is 80 GiB.
const PART_BYTES: usize = 8 << 20;

/// How many parts of one file are under way at once. With the part that is being filled this bounds a writer's memory
/// to 32 MiB, whatever the size of the file.
const PARTS_IN_FLIGHT: usize = 3;

/// What can be said about the options without asking anybody.
pub(super) fn check(options: &S3Options) -> Result<()> {
    options.identity().keys()?;
    for key in options.extra.keys() {
        AmazonS3ConfigKey::from_str(key).map_err(|_| Error::Misconfigured {
            what: format!("`{key}` is not an S3 setting"),
            hint: "see the configuration keys of object_store's `AmazonS3ConfigKey`".to_string(),
        })?;
    }
    Ok(())
}

/// A bucket's client, made when it is first used: finding the region and the credentials means asking around, and
/// [`super::Storage::store`] has to answer at once.
pub(super) struct LazyS3 {
    bucket: Arc<Bucket>,
}

struct Bucket {
    name: String,
    options: S3Options,
    client: OnceCell<AmazonS3>,
}

impl LazyS3 {
    pub(super) fn new(name: String, options: S3Options) -> Self {
        LazyS3 { bucket: Arc::new(Bucket { name, options, client: OnceCell::new() }) }
    }

    /// A stream that is opened when the client is there.
    fn later<T: Send + 'static>(
        &self,
        open: impl FnOnce(AmazonS3) -> BoxStream<'static, object_store::Result<T>> + Send + 'static,
    ) -> BoxStream<'static, object_store::Result<T>> {
        let bucket = self.bucket.clone();
        futures::stream::once(async move { bucket.client().await.map(open) }).try_flatten().boxed()
    }
}

impl Bucket {
    async fn client(&self) -> object_store::Result<AmazonS3> {
        let made = self.client.get_or_try_init(|| connect(&self.name, &self.options)).await;
        made.cloned().map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })
    }
}

async fn connect(bucket: &str, options: &S3Options) -> Result<AmazonS3> {
    let identity = options.identity();
    let config = sdk_config(&identity, options.endpoint.as_deref()).await?;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(bucket)
        .with_region(region(&config)?)
        .with_credentials(Arc::new(Credentials(CachedCredentials::new(&config, Clock::system())?)))
        .with_client_options(
            ClientOptions::new()
                .with_connect_timeout(Duration::from_secs(5))
                // One request moves at most a part or a few row groups.
                .with_timeout(Duration::from_secs(120)),
        )
        .with_retry(RetryConfig {
            backoff: BackoffConfig {
                init_backoff: Duration::from_millis(100),
                max_backoff: Duration::from_secs(10),
                base: 2.0,
            },
            max_retries: 7,
            retry_timeout: Duration::from_secs(150),
        });
    let address = address(bucket, config.endpoint_url(), options.path_style);
    builder = builder.with_virtual_hosted_style_request(address.virtual_hosted);
    if let Some(endpoint) = address.endpoint {
        builder = builder.with_allow_http(endpoint.starts_with("http://")).with_endpoint(endpoint);
    }
    for (key, value) in &options.extra {
        if let Ok(key) = AmazonS3ConfigKey::from_str(key) {
            builder = builder.with_config(key, value);
        }
    }
    builder.build().map_err(|error| Error::Misconfigured {
        what: format!("bucket `{bucket}` cannot be reached with these settings: {error}"),
        hint: "check the `s3` settings of the storage".to_string(),
    })
}

#[derive(Debug, PartialEq, Eq)]
struct Address {
    virtual_hosted: bool,
    endpoint: Option<String>,
}

/// Where a bucket's requests go. `object_store` wants the bucket's name inside a virtual-hosted endpoint.
fn address(bucket: &str, endpoint: Option<&str>, path_style: bool) -> Address {
    // A certificate for `*.s3.amazonaws.com` does not cover a name with a dot.
    let virtual_hosted = !path_style && !bucket.contains('.');
    let endpoint = endpoint.map(|endpoint| endpoint.trim_end_matches('/'));
    let endpoint = endpoint.map(|endpoint| match endpoint.split_once("://") {
        Some((scheme, host)) if virtual_hosted => format!("{scheme}://{bucket}.{host}"),
        _ => endpoint.to_string(),
    });
    Address { virtual_hosted, endpoint }
}

/// The default AWS chain as `object_store` asks for it.
#[derive(Debug)]
struct Credentials(CachedCredentials);

#[async_trait]
impl CredentialProvider for Credentials {
    type Credential = AwsCredential;

    async fn get_credential(&self) -> object_store::Result<Arc<AwsCredential>> {
        let got = self.0.get().await.map_err(Error::from);
        let credentials = got.map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?;
        Ok(Arc::new(AwsCredential {
            key_id: credentials.access_key_id().to_string(),
            secret_key: credentials.secret_access_key().to_string(),
            token: credentials.session_token().map(str::to_string),
        }))
    }
}

#[async_trait]
impl ObjectStore for LazyS3 {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        self.bucket.client().await?.put_opts(location, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.bucket.client().await?.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.bucket.client().await?.get_opts(location, options).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[std::ops::Range<u64>]) -> object_store::Result<Vec<Bytes>> {
        self.bucket.client().await?.get_ranges(location, ranges).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        self.later(move |client| client.delete_stream(locations))
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let prefix = prefix.cloned();
        self.later(move |client| client.list(prefix.as_ref()))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        let (prefix, offset) = (prefix.cloned(), offset.clone());
        self.later(move |client| client.list_with_offset(prefix.as_ref(), &offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.bucket.client().await?.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> object_store::Result<()> {
        self.bucket.client().await?.copy_opts(from, to, options).await
    }
}

impl fmt::Display for LazyS3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3({})", self.bucket.name)
    }
}

impl fmt::Debug for LazyS3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3({})", self.bucket.name)
    }
}

/// An object being written. It appears when [`Writer::close`] returns; dropped before, its parts are given up.
pub(super) struct Writer {
    store: Arc<LazyS3>,
    path: Path,
    location: String,
    state: State,
}

enum State {
    Small { pending: Vec<Bytes>, bytes: usize },
    Large(WriteMultipart),
    Closed,
}

impl Writer {
    pub(super) fn new(store: Arc<LazyS3>, path: Path, location: &str) -> Self {
        let state = State::Small { pending: Vec::new(), bytes: 0 };
        Writer { store, path, location: location.to_string(), state }
    }

    pub(super) async fn write(&mut self, bytes: Bytes) -> Result<()> {
        let outcome = self.take(bytes).await;
        if outcome.is_err() {
            self.give_up().await;
        }
        outcome.map_err(|error| self.failed(error))
    }

    async fn take(&mut self, bytes: Bytes) -> object_store::Result<()> {
        match &mut self.state {
            State::Small { pending, bytes: size } => {
                *size += bytes.len();
                pending.push(bytes);
                if *size >= PART_BYTES {
                    let pending = std::mem::take(pending);
                    let upload = self.store.put_multipart(&self.path).await?;
                    self.state = State::Large(WriteMultipart::new_with_chunk_size(upload, PART_BYTES));
                    for bytes in pending {
                        self.upload(bytes).await?;
                    }
                }
                Ok(())
            }
            State::Large(_) => self.upload(bytes).await,
            State::Closed => Err(closed()),
        }
    }

    async fn upload(&mut self, mut bytes: Bytes) -> object_store::Result<()> {
        let State::Large(upload) = &mut self.state else { return Err(closed()) };
        while !bytes.is_empty() {
            upload.wait_for_capacity(PARTS_IN_FLIGHT).await?;
            upload.put(bytes.split_to(bytes.len().min(PART_BYTES)));
        }
        Ok(())
    }

    pub(super) async fn close(&mut self) -> Result<()> {
        let outcome = match std::mem::replace(&mut self.state, State::Closed) {
            State::Small { pending, .. } => self.store.put(&self.path, pending.into_iter().collect()).await.map(|_| ()),
            // Gives the parts up itself when it fails.
            State::Large(upload) => upload.finish().await.map(|_| ()),
            State::Closed => Err(closed()),
        };
        outcome.map_err(|error| self.failed(error))
    }

    async fn give_up(&mut self) {
        if let State::Large(upload) = std::mem::replace(&mut self.state, State::Closed)
            && let Err(error) = upload.abort().await
        {
            tracing::warn!(location = self.location, %error, "parts of an upload could not be given up");
        }
    }

    fn failed(&self, error: object_store::Error) -> Error {
        let bucket = &self.store.bucket;
        super::situation(&error)
            .unwrap_or_else(|| failure("write", &self.location, &bucket.name, &bucket.options, error))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let State::Large(upload) = std::mem::replace(&mut self.state, State::Closed)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            // Parts of an unfinished upload are invisible, but they are paid for.
            runtime.spawn(upload.abort());
        }
    }
}

fn closed() -> object_store::Error {
    object_store::Error::Generic { store: "S3", source: "the file is closed".into() }
}

/// What the server said, without the request it repeats.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {message}")]
struct Refusal {
    code: String,
    message: String,
}

/// What a failed request means.
pub(super) fn failure(
    action: &'static str,
    location: &str,
    bucket: &str,
    options: &S3Options,
    error: object_store::Error,
) -> Error {
    let server = match &options.endpoint {
        Some(endpoint) => format!("S3 at `{endpoint}`"),
        None => "S3".to_string(),
    };
    let what = format!("bucket `{bucket}` of {server}");
    let text = error.to_string();
    let other_region = || Error::Misconfigured {
        what: format!("{what} is in another region"),
        hint: "set `region` to the bucket's region".to_string(),
    };
    if text.contains("Received redirect without LOCATION") {
        return other_region();
    }
    if let Some(code) = tagged(&text, "Code") {
        let refusal = Refusal { code: code.to_string(), message: tagged(&text, "Message").unwrap_or("").to_string() };
        match code {
            "NoSuchBucket" => {
                return Error::Misconfigured {
                    what: format!("bucket `{bucket}` does not exist at {server}"),
                    hint: "create the bucket, or correct the `warehouse`".to_string(),
                };
            }
            "PermanentRedirect" | "AuthorizationHeaderMalformed" | "IllegalLocationConstraintException" => {
                return other_region();
            }
            _ => {}
        }
        return match error {
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                Error::denied(what, refusal)
            }
            _ if matches!(code, "ExpiredToken" | "InvalidToken" | "InvalidAccessKeyId") => Error::denied(what, refusal),
            object_store::Error::NotFound { .. } => storage_error(action, location, Kind::Corrupt, refusal),
            _ => storage_error(action, location, Kind::Unavailable, refusal),
        };
    }
    match error {
        object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
            Error::denied(what, error)
        }
        object_store::Error::NotFound { .. } if action == "read" => {
            storage_error(action, location, Kind::Corrupt, error)
        }
        object_store::Error::NotFound { .. } => Error::Misconfigured {
            what: format!("{server} does not answer like S3"),
            hint: "check the `endpoint`, and whether it needs `path_style: true`".to_string(),
        },
        error => match find::<HttpError>(&error).map(HttpError::kind) {
            Some(HttpErrorKind::Connect | HttpErrorKind::Timeout | HttpErrorKind::Request) => {
                Error::unreachable(server, error)
            }
            _ => storage_error(action, location, Kind::Unavailable, error),
        },
    }
}

/// The text of the first XML element with this name.
fn tagged<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.find(&format!("<{name}>"))? + name.len() + 2;
    let length = text[start..].find(&format!("</{name}>"))?;
    Some(&text[start..start + length])
}

#[cfg(test)]
mod tests {
    use super::super::{Storage, StorageOptions};
    use super::*;

    #[test]
    fn the_bucket_goes_into_the_host_or_the_path() {
        let check = |bucket, endpoint, path_style| {
            let address = address(bucket, endpoint, path_style);
            (address.virtual_hosted, address.endpoint.unwrap_or_default())
        };
        assert_eq!(check("lake", None, false), (true, String::new()));
        assert_eq!(check("my.lake", None, false), (false, String::new()));
        assert_eq!(check("lake", Some("http://localhost:9000/"), true), (false, "http://localhost:9000".to_string()));
        assert_eq!(check("lake", Some("https://minio"), false), (true, "https://lake.minio".to_string()));
    }

    #[test]
    fn settings_nobody_knows_are_refused() {
        let options =
            S3Options { extra: [("aws_colour".to_string(), "red".to_string())].into(), ..S3Options::default() };
        insta::assert_snapshot!(check(&options).unwrap_err(), @"`aws_colour` is not an S3 setting");
    }

    #[test]
    fn what_a_server_says_is_told_as_a_situation() {
        let refused = |status: &str, body: &str| {
            let source = format!("Server returned non-2xx status code: {status}: {body}").into();
            let path = "a/b".to_string();
            match status {
                "403" => object_store::Error::PermissionDenied { path, source },
                "404" => object_store::Error::NotFound { path, source },
                _ => object_store::Error::Generic { store: "S3", source },
            }
        };
        let check = |action, status, body| {
            let options = S3Options { endpoint: Some("http://minio:9000".to_string()), ..S3Options::default() };
            let error = failure(action, "s3://lake/a/b", "lake", &options, refused(status, body));
            crate::error::Error::from(error).render()
        };
        insta::assert_snapshot!(check("write", "404", "<Error><Code>NoSuchBucket</Code></Error>"), @"
        error: bucket `lake` does not exist at S3 at `http://minio:9000`
          hint: create the bucket, or correct the `warehouse`
        ");
        insta::assert_snapshot!(check("read", "404", "<Code>NoSuchKey</Code><Message>Gone.</Message>"), @"
        error: cannot read `s3://lake/a/b`
          caused by: NoSuchKey: Gone.
        ");
        insta::assert_snapshot!(
            check("read", "403", "<Code>SignatureDoesNotMatch</Code><Message>No.</Message><StringToSign>x</StringToSign>"),
            @"
        error: bucket `lake` of S3 at `http://minio:9000` refused access
          caused by: SignatureDoesNotMatch: No.
          hint: check the credentials and what they are allowed to do
        "
        );
        insta::assert_snapshot!(check("read", "403", ""), @"
        error: bucket `lake` of S3 at `http://minio:9000` refused access
          caused by: The operation lacked the necessary privileges to complete for path a/b: Server returned non-2xx status code: 403: 
          hint: check the credentials and what they are allowed to do
        ");
        insta::assert_snapshot!(check("write", "301", "<Code>PermanentRedirect</Code>"), @"
        error: bucket `lake` of S3 at `http://minio:9000` is in another region
          hint: set `region` to the bucket's region
        ");
        insta::assert_snapshot!(check("write", "404", "<html>not found</html>"), @"
        error: S3 at `http://minio:9000` does not answer like S3
          hint: check the `endpoint`, and whether it needs `path_style: true`
        ");
        insta::assert_snapshot!(check("write", "500", "<Code>InternalError</Code><Message>Sorry.</Message>"), @"
        error: cannot write `s3://lake/a/b`
          caused by: InternalError: Sorry.
        ");
    }

    #[tokio::test]
    async fn making_a_client_asks_nobody() {
        let s3 = S3Options {
            endpoint: Some("http://127.0.0.1:9".to_string()),
            region: Some("us-east-1".to_string()),
            access_key_id: Some("a".to_string()),
            secret_access_key: Some("b".to_string()),
            path_style: true,
            ..S3Options::default()
        };
        connect("lake", &s3).await.unwrap();
        let storage = Storage::new(StorageOptions { s3 }).unwrap();
        let (store, path) = storage.store("s3://lake/a").unwrap();
        assert_eq!((store.to_string().as_str(), path.as_ref()), ("S3(lake)", "a"));
    }
}
