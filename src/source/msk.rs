//! Tokens for Amazon MSK: an address of its service, signed with AWS credentials. Nobody has to be asked for them.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use std::borrow::Cow;
use std::time::{Duration, UNIX_EPOCH};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{SignableBody, SignableRequest, SignatureLocation, SigningSettings, sign};
use aws_sigv4::sign::v4;
use reqwest::Url;
use tokio::sync::OnceCell;

use super::error::{Error, Result};
use super::token::Token;
use crate::aws::{self, AwsOptions, CachedCredentials};
use crate::clock::Clock;

/// As long as brokers take it at most.
const LIFETIME: Duration = Duration::from_secs(900);

const USER_AGENT: &str = concat!("icestream/", env!("CARGO_PKG_VERSION"));

/// Somebody at AWS, and where the brokers are.
pub(super) struct Msk {
    identity: AwsOptions,
    signer: OnceCell<Signer>,
}

struct Signer {
    region: String,
    credentials: CachedCredentials,
}

impl Msk {
    /// The brokers' names tell the region, where the identity does not.
    pub(super) fn new(mut identity: AwsOptions, brokers: &str) -> Self {
        identity.region = identity.region.or_else(|| region_of(brokers).map(str::to_string));
        Msk { identity, signer: OnceCell::new() }
    }

    pub(super) async fn issue(&self, clock: &Clock) -> Result<Token> {
        let signer = self.signer.get_or_try_init(|| self.signer(clock)).await?;
        let credentials = signer.credentials.get().await?;
        let now_us = clock.now_us();
        let expiry = credentials.expiry().and_then(|expiry| expiry.duration_since(UNIX_EPOCH).ok());
        let expiry_ms = expiry.map_or(i64::MAX, |expiry| i64::try_from(expiry.as_millis()).unwrap_or(i64::MAX));
        Ok(Token {
            text: URL_SAFE_NO_PAD.encode(signed(&signer.region, credentials, now_us)?.as_str().as_bytes()),
            principal: "aws-msk-iam".to_string(),
            // The signature has whole seconds.
            until_ms: expiry_ms.min((now_us.div_euclid(1_000_000) + LIFETIME.as_secs().cast_signed()) * 1000),
        })
    }

    async fn signer(&self, clock: &Clock) -> Result<Signer> {
        let config = aws::sdk_config(&self.identity, None).await?;
        let region = config.region().map(ToString::to_string).ok_or_else(|| aws::Error::Misconfigured {
            what: "the brokers' AWS region is not known".to_string(),
            hint: "set `source.kafka.aws_region`, or `AWS_REGION` in the environment".to_string(),
        })?;
        Ok(Signer { region, credentials: CachedCredentials::new(&config, clock.clone())? })
    }
}

/// The region in names such as `b-1.shop.abc123.c2.kafka.eu-central-1.amazonaws.com`.
fn region_of(brokers: &str) -> Option<&str> {
    let host = brokers.split(',').next()?.trim().rsplit_once(':')?.0;
    let (_, after) = host.split_once(".kafka.").or_else(|| host.split_once(".kafka-serverless."))?;
    let (region, domain) = after.split_once('.')?;
    domain.starts_with("amazonaws.com").then_some(region)
}

/// The address, signed for a quarter of an hour.
fn signed(region: &str, credentials: Credentials, now_us: i64) -> Result<Url> {
    let failed = |error: &dyn std::error::Error| Error::Setup { problem: format!("nothing can be signed: {error}") };
    let mut url = Url::parse(&format!("https://kafka.{region}.amazonaws.com/?Action=kafka-cluster%3AConnect"))
        .map_err(|_| aws::Error::Misconfigured {
            what: format!("`{region}` is not an AWS region"),
            hint: "correct `source.kafka.aws_region`".to_string(),
        })?;
    let identity = credentials.into();
    let mut settings = SigningSettings::default();
    settings.signature_location = SignatureLocation::QueryParams;
    settings.expires_in = Some(LIFETIME);
    let params = v4::SigningParams::builder()
        .identity(&identity)
        .region(region)
        .name("kafka-cluster")
        .time(UNIX_EPOCH + Duration::from_micros(now_us.try_into().unwrap_or_default()))
        .settings(settings)
        .build()
        .map_err(|error| failed(&error))?
        .into();
    let request = SignableRequest::new("GET", url.as_str(), std::iter::empty(), SignableBody::Bytes(b""));
    let output = sign(request.map_err(|error| failed(&error))?, &params).map_err(|error| failed(&error))?;
    let agent = ("User-Agent", Cow::Borrowed(USER_AGENT));
    url.query_pairs_mut().extend_pairs(output.output().params().iter().chain([&agent]));
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_names_tell_the_region() {
        let check = |brokers: &str, expected: Option<&str>| assert_eq!(region_of(brokers), expected, "{brokers}");
        check("b-1.shop.abc123.c2.kafka.eu-central-1.amazonaws.com:9098,b-2.x:9098", Some("eu-central-1"));
        check("b-1-public.shop.abc123.c2.kafka.us-east-1.amazonaws.com:9198", Some("us-east-1"));
        check("boot-abc.c1.kafka-serverless.us-west-2.amazonaws.com:9098", Some("us-west-2"));
        check("b-1.shop.abc123.c2.kafka.cn-north-1.amazonaws.com.cn:9098", Some("cn-north-1"));
        check("b-1.kafka.example.com:9098", None);
        check("localhost:9092", None);
        check("", None);
    }

    #[test]
    fn bytes_of_any_length_are_written_without_padding() {
        let check = |bytes: &[u8], expected: &str| assert_eq!(URL_SAFE_NO_PAD.encode(bytes), expected);
        check(b"", "");
        check(b"f", "Zg");
        check(b"fo", "Zm8");
        check(b"foo", "Zm9v");
        check(b"foob", "Zm9vYg");
        check(b"\xfb\xef\xff", "--__");
    }

    /// What `aws-msk-iam-sasl-signer-python` 1.0.2 makes of the same credentials at the same time, but for the name of who
    /// asks.
    #[test]
    fn a_token_is_what_amazon_s_own_signer_makes() {
        let check = |session: Option<&str>, signature: &str| {
            let secret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
            let credentials = Credentials::new("AKIDEXAMPLE", secret, session.map(str::to_string), None, "test");
            let url = signed("eu-central-1", credentials, 1_700_000_000_999_999).unwrap();
            assert_eq!(&url[..url::Position::BeforeQuery], "https://kafka.eu-central-1.amazonaws.com/?");
            let mut expected = vec![
                ("Action", "kafka-cluster:Connect"),
                ("User-Agent", USER_AGENT),
                ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
                ("X-Amz-Credential", "AKIDEXAMPLE/20231114/eu-central-1/kafka-cluster/aws4_request"),
                ("X-Amz-Date", "20231114T221320Z"),
                ("X-Amz-Expires", "900"),
                ("X-Amz-Signature", signature),
                ("X-Amz-SignedHeaders", "host"),
            ];
            expected.extend(session.map(|session| ("X-Amz-Security-Token", session)));
            expected.sort_unstable();
            let mut found: Vec<(String, String)> = url.query_pairs().into_owned().collect();
            found.sort_unstable();
            let found: Vec<(&str, &str)> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            assert_eq!(found, expected);
        };
        check(None, "674a7efeeb19a92e44b849bf3ea778a9c78e68ad0bac99e834ab2ea6139ac226");
        let session = "IQoJb3JpZ2luX2VjE+session/token==";
        check(Some(session), "01664c66a447e5bf94869b16a36dd7c16c3674d5b8f7564c8ee5d377b66832ac");
    }

    #[tokio::test]
    async fn a_token_is_good_for_a_quarter_of_an_hour() {
        let identity = AwsOptions {
            access_key_id: Some("AKIDEXAMPLE".to_string()),
            secret_access_key: Some("secret".to_string()),
            ..AwsOptions::default()
        };
        let brokers = "b-1.shop.abc123.c2.kafka.eu-central-1.amazonaws.com:9098";
        let (clock, _) = Clock::manual(1_700_000_000_999_999);
        let token = Msk::new(identity, brokers).issue(&clock).await.unwrap();
        assert_eq!(token.until_ms, 1_700_000_900_000);
        assert!(
            token.text.starts_with(&URL_SAFE_NO_PAD.encode(b"https://kafka.eu-central-1.amazonaws.com/?Action=")[..60]),
            "{}",
            token.text
        );
    }
}
