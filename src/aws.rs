//! Who we are to AWS: the default chain with what the configuration sets, shared by S3, Glue, signed REST calls and MSK.

use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};
use aws_smithy_http_client::tls::{self, rustls_provider::CryptoMode};
use tokio::sync::Mutex;

use crate::clock::Clock;
use crate::error::{Kind, Situation};

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Why we are nobody to AWS. Cheap to clone, so that one failure can be told to several waiters.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    #[error("{what}")]
    Misconfigured { what: String, hint: String },

    #[error("{what} does not answer")]
    Unreachable {
        what: String,
        #[source]
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
}

impl Situation for Error {
    fn kind(&self) -> Kind {
        match self {
            Error::Misconfigured { .. } => Kind::Config,
            Error::Unreachable { .. } => Kind::Unavailable,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Error::Misconfigured { hint, .. } => Some(hint.clone()),
            Error::Unreachable { .. } => None,
        }
    }
}

/// An identity at AWS. What is not set comes from the default chain: environment, profile, web identity (IRSA),
/// container and instance roles.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AwsOptions {
    pub region: Option<String>,
    pub profile: Option<String>,
    pub access_key_id: Option<String>,
    pub secret_access_key: Option<String>,
    pub session_token: Option<String>,
}

impl fmt::Debug for AwsOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hidden = |secret: &Option<String>| secret.as_ref().map(|_| "***");
        f.debug_struct("AwsOptions")
            .field("region", &self.region)
            .field("profile", &self.profile)
            .field("access_key_id", &self.access_key_id)
            .field("secret_access_key", &hidden(&self.secret_access_key))
            .field("session_token", &hidden(&self.session_token))
            .finish()
    }
}

impl AwsOptions {
    /// The keys that are written down, if any are.
    pub(crate) fn keys(&self) -> Result<Option<Credentials>> {
        match (&self.access_key_id, &self.secret_access_key) {
            (Some(id), Some(secret)) => {
                Ok(Some(Credentials::new(id, secret, self.session_token.clone(), None, "configuration")))
            }
            (None, None) => Ok(None),
            _ => Err(Error::Misconfigured {
                what: "an access key has two halves, and only one is set".to_string(),
                hint: "set both `access_key_id` and `secret_access_key`, or neither to use the default AWS chain"
                    .to_string(),
            }),
        }
    }
}

/// The configuration for AWS clients.
///
/// `endpoint` says that the service is at an address of its own. Such servers seldom care for the region, so it is not
/// worth the seconds that asking for an instance role takes outside of AWS.
pub(crate) async fn sdk_config(options: &AwsOptions, endpoint: Option<&str>) -> Result<SdkConfig> {
    // aws-config's own HTTPS client is compiled out: it would bring a second TLS library.
    let http =
        aws_smithy_http_client::Builder::new().tls_provider(tls::Provider::Rustls(CryptoMode::Ring)).build_https();
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(std::time::Duration::from_secs(5))
        .read_timeout(std::time::Duration::from_secs(30))
        .operation_attempt_timeout(std::time::Duration::from_secs(60))
        .build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest()).http_client(http).timeout_config(timeouts);
    if let Some(profile) = &options.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(keys) = options.keys()? {
        loader = loader.credentials_provider(keys);
    }
    if let Some(region) = &options.region {
        loader = loader.region(Region::new(region.clone()));
    } else if endpoint.is_some() {
        let mut profile = ProfileFileRegionProvider::builder();
        if let Some(name) = &options.profile {
            profile = profile.profile_name(name);
        }
        loader = loader.region(
            RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
                .or_else(profile.build())
                .or_else("us-east-1"),
        );
    }
    if let Some(endpoint) = endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    Ok(loader.load().await)
}

/// The region of a loaded configuration.
pub(crate) fn region(config: &SdkConfig) -> Result<String> {
    config.region().map(ToString::to_string).ok_or_else(|| Error::Misconfigured {
        what: "no AWS region is set".to_string(),
        hint: "set `region` in the configuration, or `AWS_REGION` in the environment".to_string(),
    })
}

/// Credentials that are fetched again shortly before they expire.
pub(crate) struct CachedCredentials {
    provider: SharedCredentialsProvider,
    clock: Clock,
    last: Mutex<Option<Fetched>>,
}

struct Fetched {
    credentials: Credentials,
    at_us: i64,
}

/// Well before the end, so that a request signed now is still good when its last retry arrives.
const RENEW_BEFORE_US: i64 = 5 * 60 * 1_000_000;

/// Near the end, some sources hand out the old credentials for a while; asking on every request would not help.
const ASK_AGAIN_AFTER_US: i64 = 10 * 1_000_000;

impl CachedCredentials {
    pub(crate) fn new(config: &SdkConfig, clock: Clock) -> Result<Self> {
        let provider = config.credentials_provider().ok_or_else(none_found)?;
        Ok(CachedCredentials { provider, clock, last: Mutex::new(None) })
    }

    pub(crate) async fn get(&self) -> Result<Credentials> {
        let mut last = self.last.lock().await;
        let now_us = self.clock.now_us();
        if let Some(fetched) = &*last {
            let left_us = expiry_us(&fetched.credentials).map_or(i64::MAX, |expiry| expiry.saturating_sub(now_us));
            let asked_just_now = now_us - fetched.at_us < ASK_AGAIN_AFTER_US;
            if left_us > RENEW_BEFORE_US || (left_us > 0 && asked_just_now) {
                return Ok(fetched.credentials.clone());
            }
        }
        match self.provider.provide_credentials().await {
            Ok(credentials) => {
                *last = Some(Fetched { credentials: credentials.clone(), at_us: now_us });
                Ok(credentials)
            }
            Err(error) => match &mut *last {
                Some(fetched) if expiry_us(&fetched.credentials).is_none_or(|expiry| expiry > now_us) => {
                    fetched.at_us = now_us;
                    Ok(fetched.credentials.clone())
                }
                _ => Err(credentials_failure(&error)),
            },
        }
    }
}

impl fmt::Debug for CachedCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CachedCredentials")
    }
}

fn expiry_us(credentials: &Credentials) -> Option<i64> {
    let since = credentials.expiry()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(since.as_micros()).ok()
}

fn none_found() -> Error {
    Error::Misconfigured {
        what: "no AWS credentials were found".to_string(),
        hint: "set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` or `AWS_PROFILE`, or run where a role is attached"
            .to_string(),
    }
}

/// What it means that no credentials could be had.
pub(crate) fn credentials_failure(error: &CredentialsError) -> Error {
    match error {
        CredentialsError::CredentialsNotLoaded(_) => none_found(),
        // The instance's role is the last that is asked for, when nothing nearer is set. Outside of AWS nobody answers.
        CredentialsError::ProviderError(_) if cause(error).contains("IMDS") => none_found(),
        CredentialsError::InvalidConfiguration(_) => Error::Misconfigured {
            what: format!("the AWS configuration is not valid{}", cause(error)),
            hint: "check the profile in `~/.aws/config` and `~/.aws/credentials`".to_string(),
        },
        other => {
            let text = format!("{other}{}", cause(other));
            let what = "the source of AWS credentials".to_string();
            Error::Unreachable { what, source: Arc::new(std::io::Error::other(text)) }
        }
    }
}

fn cause(error: &CredentialsError) -> String {
    std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};
    use std::time::Duration;

    use aws_credential_types::provider::future::ProvideCredentials as Answer;

    use super::*;

    /// Credentials that live for an hour from when they are fetched, numbered by fetch; refused from the fourth on.
    #[derive(Debug)]
    struct Counting {
        fetches: Arc<AtomicI64>,
        now_us: Arc<AtomicI64>,
    }

    impl ProvideCredentials for Counting {
        fn provide_credentials<'a>(&'a self) -> Answer<'a>
        where
            Self: 'a,
        {
            let number = self.fetches.fetch_add(1, Ordering::SeqCst) + 1;
            if number > 3 {
                return Answer::ready(Err(CredentialsError::not_loaded_no_source()));
            }
            let expiry_us = self.now_us.load(Ordering::SeqCst) + 3_600_000_000;
            let expiry = UNIX_EPOCH + Duration::from_micros(u64::try_from(expiry_us).unwrap());
            Answer::ready(Ok(Credentials::new(number.to_string(), "secret", None, Some(expiry), "test")))
        }
    }

    #[tokio::test]
    async fn credentials_are_renewed_before_they_expire_and_kept_when_that_fails() {
        let (clock, now_us) = Clock::manual(1_000_000);
        let fetches = Arc::new(AtomicI64::new(0));
        let provider = Counting { fetches: fetches.clone(), now_us: now_us.clone() };
        let config = SdkConfig::builder().credentials_provider(SharedCredentialsProvider::new(provider)).build();
        let cached = CachedCredentials::new(&config, clock).unwrap();
        let minutes = |count: i64| now_us.fetch_add(count * 60_000_000, Ordering::SeqCst);
        let id = async || cached.get().await.map(|credentials| credentials.access_key_id().to_string()).ok();

        assert_eq!((id().await.as_deref(), id().await.as_deref()), (Some("1"), Some("1")));
        minutes(54);
        assert_eq!(id().await.as_deref(), Some("1"));
        minutes(2);
        assert_eq!(id().await.as_deref(), Some("2"));
        minutes(56);
        assert_eq!(id().await.as_deref(), Some("3"));
        minutes(57);
        assert_eq!(id().await.as_deref(), Some("3"), "the old ones are good for three more minutes");
        assert_eq!(fetches.load(Ordering::SeqCst), 4);
        assert_eq!(id().await.as_deref(), Some("3"));
        assert_eq!(fetches.load(Ordering::SeqCst), 4, "not asked again at once");
        minutes(4);
        assert_eq!(id().await, None);
    }

    #[tokio::test]
    async fn half_a_key_is_refused() {
        let options = AwsOptions { access_key_id: Some("AKIA".to_string()), ..AwsOptions::default() };
        let error = sdk_config(&options, Some("http://localhost")).await.unwrap_err();
        insta::assert_snapshot!(crate::error::Error::from(error).render(), @"
        error: an access key has two halves, and only one is set
          hint: set both `access_key_id` and `secret_access_key`, or neither to use the default AWS chain
        ");
        insta::assert_snapshot!(crate::error::Error::from(none_found()).render(), @"
        error: no AWS credentials were found
          hint: set `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY` or `AWS_PROFILE`, or run where a role is attached
        ");
    }

    #[tokio::test]
    async fn what_is_set_wins() {
        let options = AwsOptions {
            region: Some("eu-west-1".to_string()),
            access_key_id: Some("AKIA".to_string()),
            secret_access_key: Some("secret".to_string()),
            ..AwsOptions::default()
        };
        let config = sdk_config(&options, Some("http://localhost:1")).await.unwrap();
        assert_eq!(region(&config).unwrap(), "eu-west-1");
        let credentials = CachedCredentials::new(&config, Clock::system()).unwrap().get().await.unwrap();
        assert_eq!(credentials.access_key_id(), "AKIA");
    }
}
