//! The tokens that brokers ask for with `OAUTHBEARER`.
//!
//! A Kafka client asks for one on whichever thread listens to it, and cannot wait there: the thread may be one that the
//! answer needs. So a task fetches tokens ahead of time, and the clients of a source are handed what there is.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::client::OAuthToken;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::error::{Error, Result};
use super::kafka::KafkaConfig;
use super::msk::Msk;
use super::oidc::Endpoint;
use crate::clock::Clock;
use crate::error::Situation;

/// How many times a token is asked for before clients are told that there is none.
const ATTEMPTS: u32 = 3;

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How often to look whether a token is due. The clock of a machine that slept has jumped.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A token with how long it is good for.
#[derive(Clone)]
pub(super) struct Token {
    pub(super) text: String,
    /// Who it is for, as the client's own log names them.
    pub(super) principal: String,
    pub(super) until_ms: i64,
}

/// Who gives out tokens.
pub(super) enum Issuer {
    Endpoint(Endpoint),
    Msk(Msk),
}

impl Issuer {
    /// The one the configuration speaks of, if it speaks of any.
    pub(super) fn new(config: &KafkaConfig) -> Result<Option<Self>> {
        let property = |name: &str| config.properties.get(name).map_or("", String::as_str);
        let refused = |name: &str, problem| Err(Error::Property { name: name.to_string(), problem });
        let name = if property("sasl.mechanism").is_empty() { "sasl.mechanisms" } else { "sasl.mechanism" };
        let mechanism = property(name).to_ascii_uppercase();
        let issuer = match (&config.msk_iam, mechanism.as_str(), property("sasl.oauthbearer.method")) {
            (Some(identity), "" | "OAUTHBEARER" | "AWS_MSK_IAM", _) => {
                Issuer::Msk(Msk::new(identity.clone(), &config.brokers))
            }
            (Some(_), ..) => return refused(name, "`auth: aws-msk-iam` has a mechanism of its own"),
            (None, "AWS_MSK_IAM", _) => return refused(name, "write `auth: aws-msk-iam` beside `properties` for it"),
            (None, "OAUTHBEARER", "oidc") => Issuer::Endpoint(Endpoint::new(&config.properties)?),
            (None, _, "oidc") => return refused("sasl.oauthbearer.method", "it needs `sasl.mechanism: OAUTHBEARER`"),
            (None, "OAUTHBEARER", _) if property("enable.sasl.oauthbearer.unsecure.jwt") != "true" => {
                return refused(name, "it needs `sasl.oauthbearer.method: oidc`, or `auth: aws-msk-iam`");
            }
            (None, ..) => return Ok(None),
        };
        let protocol = property("security.protocol").to_ascii_uppercase();
        let is_by_default = protocol.is_empty() && matches!(issuer, Issuer::Msk(_));
        if !is_by_default && !protocol.starts_with("SASL_") {
            return refused(
                "security.protocol",
                "tokens need `SASL_SSL`, or `SASL_PLAINTEXT` in a network of your own",
            );
        }
        Ok(Some(issuer))
    }

    /// Whether a property is for the issuer, and not for the Kafka client.
    pub(super) fn takes(&self, property: &str) -> bool {
        match self {
            Issuer::Endpoint(_) => Endpoint::takes(property),
            Issuer::Msk(_) => matches!(property, "sasl.mechanism" | "sasl.mechanisms"),
        }
    }

    async fn issue(&self, clock: &Clock) -> Result<Token> {
        match self {
            Issuer::Endpoint(endpoint) => endpoint.issue(clock).await,
            Issuer::Msk(msk) => msk.issue(clock).await,
        }
    }
}

/// The newest token, renewed for as long as somebody holds this.
pub(super) struct Tokens {
    state: watch::Receiver<State>,
    task: JoinHandle<()>,
    clock: Clock,
}

#[derive(Clone, Default)]
struct State {
    token: Option<Token>,
    /// Why there is no newer one.
    failure: Option<Error>,
}

impl State {
    fn token(&self, clock: &Clock) -> Option<&Token> {
        self.token.as_ref().filter(|token| token.until_ms > clock.now_ms())
    }

    fn is_known(&self, clock: &Clock) -> bool {
        self.failure.is_some() || self.token(clock).is_some()
    }

    fn told(&self, clock: &Clock) -> Result<Token> {
        let none = || Error::Setup { problem: "its token expired before there was another".to_string() };
        self.token(clock).cloned().ok_or_else(|| self.failure.clone().unwrap_or_else(none))
    }
}

impl Tokens {
    /// Has to be called inside a Tokio runtime.
    pub(super) fn start(issuer: Issuer, clock: Clock) -> Arc<Self> {
        let (sender, state) = watch::channel(State::default());
        let task = tokio::spawn(renew(issuer, clock.clone(), sender));
        Arc::new(Tokens { state, task, clock })
    }

    /// Waits until there is a token, or the reason why there is none.
    pub(super) async fn ready(&self) -> Result<()> {
        let mut state = self.state.clone();
        match state.wait_for(|state| state.is_known(&self.clock)).await {
            Ok(state) => state.told(&self.clock).map(drop),
            Err(_) => Err(Error::Setup { problem: "nobody renews its token any more".to_string() }),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.state.borrow().is_known(&self.clock)
    }

    /// What there is now, for a client that cannot wait.
    pub(super) fn now(&self) -> Result<OAuthToken> {
        let Token { text, principal, until_ms } = self.state.borrow().told(&self.clock)?;
        // Brokers want to see a new token before the old one ends, and the client shows what it has then. Told of half the
        // time, it asks for the next one early enough.
        let left_ms = until_ms - self.clock.now_ms();
        Ok(OAuthToken { token: text, principal_name: principal, lifetime_ms: until_ms - left_ms / 2 })
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Replaces tokens a good while before they expire.
async fn renew(issuer: Issuer, clock: Clock, state: watch::Sender<State>) {
    let mut failures = 0;
    loop {
        let issued = issuer.issue(&clock).await.and_then(|token| match token.until_ms - clock.now_ms() {
            left_ms if left_ms > 0 => Ok((token, clock.now_ms() + left_ms / 2)),
            _ => Err(Error::Setup { problem: "the token it was given had expired already".to_string() }),
        });
        match issued {
            Ok((token, renew_ms)) => {
                failures = 0;
                state.send_replace(State { token: Some(token), failure: None });
                loop {
                    let left_ms = u64::try_from(renew_ms - clock.now_ms()).unwrap_or(0);
                    tokio::time::sleep(LOOK_EVERY.min(Duration::from_millis(left_ms.max(100)))).await;
                    if clock.now_ms() >= renew_ms {
                        break;
                    }
                }
            }
            Err(error) => {
                failures += 1;
                if failures >= ATTEMPTS || !error.kind().is_retryable() {
                    let text = crate::error::Error::from(error.clone()).to_string();
                    tracing::warn!(error = text, "there is no new token for kafka");
                    state.send_modify(|state| state.failure = Some(error));
                }
                let pause = FIRST_PAUSE.saturating_mul(1 << failures.min(6));
                tokio::time::sleep(pause.min(LONGEST_PAUSE)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::aws::AwsOptions;
    use crate::scripted_server::Server;
    use crate::source::Assignment;

    fn config(properties: &[(&str, &str)], msk_iam: Option<AwsOptions>) -> KafkaConfig {
        let properties = properties.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        KafkaConfig {
            brokers: "b-1.shop.abc123.c2.kafka.eu-central-1.amazonaws.com:9098".to_string(),
            group: "g".to_string(),
            topics: vec!["t".to_string()],
            assignment: Assignment::Everything,
            discover_every: Duration::from_secs(30),
            properties: BTreeMap::from_iter(properties),
            msk_iam,
            queue_bytes: 1 << 20,
        }
    }

    const OIDC: [(&str, &str); 6] = [
        ("security.protocol", "SASL_SSL"),
        ("sasl.mechanism", "OAUTHBEARER"),
        ("sasl.oauthbearer.method", "oidc"),
        ("sasl.oauthbearer.token.endpoint.url", "http://127.0.0.1:1/token"),
        ("sasl.oauthbearer.client.id", "me"),
        ("sasl.oauthbearer.client.secret", "s3cret"),
    ];

    #[test]
    fn who_gives_out_tokens_follows_from_the_properties() {
        let check = |properties: &[(&str, &str)], has_msk: bool| match Issuer::new(&config(
            properties,
            has_msk.then(AwsOptions::default),
        )) {
            Ok(None) => "nobody".to_string(),
            Ok(Some(Issuer::Endpoint(_))) => "an endpoint".to_string(),
            Ok(Some(Issuer::Msk(_))) => "msk".to_string(),
            Err(error) => error.to_string(),
        };
        let oidc = |name: &str, value: &str| {
            let mut properties = BTreeMap::from(OIDC);
            properties.insert(name, value);
            check(&properties.into_iter().collect::<Vec<_>>(), false)
        };
        assert_eq!(check(&[], false), "nobody");
        assert_eq!(check(&[("sasl.mechanism", "SCRAM-SHA-512")], false), "nobody");
        assert_eq!(check(&OIDC, false), "an endpoint");
        assert_eq!(oidc("sasl.mechanism", "oauthbearer"), "an endpoint");
        assert_eq!(oidc("sasl.oauthbearer.extensions", ""), "an endpoint");
        assert_eq!(check(&[], true), "msk");
        assert_eq!(check(&[("sasl.mechanisms", "AWS_MSK_IAM"), ("security.protocol", "sasl_ssl")], true), "msk");
        let unsecured = [("sasl.mechanism", "OAUTHBEARER"), ("enable.sasl.oauthbearer.unsecure.jwt", "true")];
        assert_eq!(check(&unsecured, false), "nobody");
        insta::assert_snapshot!(check(&[("sasl.mechanism", "OAUTHBEARER")], false), @"kafka property `sasl.mechanism` is not accepted: it needs `sasl.oauthbearer.method: oidc`, or `auth: aws-msk-iam`");
        insta::assert_snapshot!(check(&[("sasl.mechanism", "AWS_MSK_IAM")], false), @"kafka property `sasl.mechanism` is not accepted: write `auth: aws-msk-iam` beside `properties` for it");
        insta::assert_snapshot!(check(&[("sasl.mechanism", "PLAIN")], true), @"kafka property `sasl.mechanism` is not accepted: `auth: aws-msk-iam` has a mechanism of its own");
        insta::assert_snapshot!(check(&[("security.protocol", "ssl")], true), @"kafka property `security.protocol` is not accepted: tokens need `SASL_SSL`, or `SASL_PLAINTEXT` in a network of your own");
        insta::assert_snapshot!(oidc("sasl.mechanism", "PLAIN"), @"kafka property `sasl.oauthbearer.method` is not accepted: it needs `sasl.mechanism: OAUTHBEARER`");
        insta::assert_snapshot!(oidc("security.protocol", ""), @"kafka property `security.protocol` is not accepted: tokens need `SASL_SSL`, or `SASL_PLAINTEXT` in a network of your own");
        insta::assert_snapshot!(oidc("sasl.oauthbearer.client.secret", ""), @"kafka property `sasl.oauthbearer.client.secret` is not accepted: `sasl.oauthbearer.method: oidc` needs it");
        insta::assert_snapshot!(oidc("sasl.oauthbearer.token.endpoint.url", "auth.example.com"), @"kafka property `sasl.oauthbearer.token.endpoint.url` is not accepted: it is not the address of a token endpoint");
        insta::assert_snapshot!(oidc("sasl.oauthbearer.extensions", "logicalCluster=lkc-1"), @"kafka property `sasl.oauthbearer.extensions` is not accepted: the Kafka client's binding has no way to send them");
        insta::assert_snapshot!(oidc("sasl.oauthbearer.grant.type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), @"kafka property `sasl.oauthbearer.grant.type` is not accepted: `client_credentials` is the one there is");
        insta::assert_snapshot!(oidc("sasl.oauthbearer.assertion.private.key.file", "key.pem"), @"kafka property `sasl.oauthbearer.assertion.private.key.file` is not accepted: tokens are got by `client_credentials` alone");
        insta::assert_snapshot!(oidc("sasl.oauthbearer.metadata.authentication.type", "azure_imds"), @"kafka property `sasl.oauthbearer.metadata.authentication.type` is not accepted: tokens are got by `client_credentials` alone");
        insta::assert_snapshot!(oidc("https.ca.pem", "s3cret"), @"kafka property `https.ca.pem` is not accepted: there are no certificates in PEM format");
        insta::assert_snapshot!(oidc("https.ca.location", "/nowhere/ca.pem"), @"kafka property `https.ca.location` is not accepted: there are no certificates in PEM format");
    }

    /// Waits until what clients would be handed is as it should be.
    async fn until(tokens: &Tokens, expected: impl Fn(Result<&str, &Error>) -> bool) {
        let told = async {
            let mut state = tokens.state.clone();
            loop {
                let now = tokens.now();
                if expected(now.as_ref().map(|token| token.token.as_str())) {
                    break;
                }
                // A token that expires does so without a word.
                drop(tokio::time::timeout(Duration::from_millis(50), state.changed()).await);
            }
        };
        tokio::time::timeout(Duration::from_secs(30), told).await.unwrap();
    }

    #[tokio::test]
    async fn tokens_are_renewed_before_they_expire_and_kept_while_nobody_answers() {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let server = Server::start(move |_| {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let granted = format!(r#"{{"access_token":"number {number}","expires_in":2}}"#);
            if (3..9).contains(&number) { Some((503, String::new())) } else { Some((200, granted)) }
        })
        .await;
        let mut properties = BTreeMap::from(OIDC);
        let url = format!("{}/token", server.uri);
        properties.insert("sasl.oauthbearer.token.endpoint.url", &url);
        let config = config(&properties.into_iter().collect::<Vec<_>>(), None);
        let tokens = Tokens::start(Issuer::new(&config).unwrap().unwrap(), Clock::system());
        assert!(!tokens.is_ready());
        tokens.ready().await.unwrap();
        assert_eq!(tokens.now().unwrap().token, "number 1");
        until(&tokens, |token| token.is_ok_and(|token| token == "number 2")).await;
        until(&tokens, |token| token.is_err_and(|error| matches!(error, Error::TokenUnreachable { .. }))).await;
        assert!(tokens.is_ready() && asked.load(Ordering::SeqCst) >= 5);
        until(&tokens, |token| token.is_ok_and(|token| token == "number 9")).await;
    }

    #[tokio::test]
    async fn a_client_hears_at_once_that_there_will_be_no_token() {
        let check = async |status: u16, answer: &'static str| {
            let server = Server::start(move |_| Some((status, answer.to_string()))).await;
            let mut properties = BTreeMap::from(OIDC);
            properties.insert("sasl.oauthbearer.token.endpoint.url", &server.uri);
            let config = config(&properties.into_iter().collect::<Vec<_>>(), None);
            let tokens = Tokens::start(Issuer::new(&config).unwrap().unwrap(), Clock::system());
            let error = tokens.ready().await.unwrap_err();
            assert_eq!(server.lines().len(), 1);
            server.hide(error.to_string())
        };
        insta::assert_snapshot!(check(401, r#"{"error":"invalid_client"}"#).await, @"the token endpoint `http://server/` gave no token: 401 Unauthorized, invalid_client");
        insta::assert_snapshot!(check(200, r#"{"access_token":"old","expires_in":0}"#).await, @"the kafka client cannot be set up: the token it was given had expired already");
    }
}
