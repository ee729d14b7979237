//! A token endpoint as `sasl.oauthbearer.method: oidc` describes it: OAuth 2's client credentials grant.
//!
//! The properties are librdkafka's, so that what works elsewhere can be pasted. Its own implementation needs libcurl,
//! which is not built in.

use std::collections::BTreeMap;
use std::time::Duration;

use reqwest::{Certificate, Client, StatusCode, Url};
use serde::Deserialize;

use super::error::{Error, Reason, Result};
use super::token::Token;
use crate::clock::Clock;

const URL: &str = "sasl.oauthbearer.token.endpoint.url";
const ID: &str = "sasl.oauthbearer.client.id";
const SECRET: &str = "sasl.oauthbearer.client.secret";
const OTHER_ID: &str = "sasl.oauthbearer.client.credentials.client.id";
const OTHER_SECRET: &str = "sasl.oauthbearer.client.credentials.client.secret";
const SCOPE: &str = "sasl.oauthbearer.scope";
const METHOD: &str = "sasl.oauthbearer.method";
const GRANT: &str = "sasl.oauthbearer.grant.type";
const EXTENSIONS: &str = "sasl.oauthbearer.extensions";
const METADATA: &str = "sasl.oauthbearer.metadata.authentication.type";
const ASSERTION: &str = "sasl.oauthbearer.assertion.";
const CA_FILE: &str = "https.ca.location";
const CA: &str = "https.ca.pem";

/// How long a token is taken to be good for that does not say.
const LIFETIME_S: i64 = 300;

/// How much of what an endpoint says is shown.
const SHOWN_CHARS: usize = 300;

/// Where a client shows its secret and gets a token.
pub(super) struct Endpoint {
    http: Client,
    url: Url,
    id: String,
    secret: String,
    scope: Option<String>,
}

impl Endpoint {
    pub(super) fn new(properties: &BTreeMap<String, String>) -> Result<Self> {
        let get = |name: &str| properties.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let refused = |name: &str, problem| Error::Property { name: name.to_string(), problem };
        let needed = |name: &str, other: &str| {
            let found = get(name).or_else(|| get(other)).map(str::to_string);
            found.ok_or_else(|| refused(name, "`sasl.oauthbearer.method: oidc` needs it"))
        };
        if get(GRANT).is_some_and(|grant| grant != "client_credentials") {
            return Err(refused(GRANT, "`client_credentials` is the one there is"));
        }
        if get(METADATA).is_some_and(|kind| kind != "none") {
            return Err(refused(METADATA, "tokens are got by `client_credentials` alone"));
        }
        if let Some(name) = properties.keys().find(|name| name.starts_with(ASSERTION)) {
            return Err(refused(name, "tokens are got by `client_credentials` alone"));
        }
        if get(EXTENSIONS).is_some() {
            return Err(refused(EXTENSIONS, "the Kafka client's binding has no way to send them"));
        }
        let url = Url::parse(&needed(URL, URL)?).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
        let mut http = Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .timeout(Duration::from_secs(10))
            .user_agent(concat!("icestream/", env!("CARGO_PKG_VERSION")))
            // A secret is shown to the one it was given for.
            .redirect(reqwest::redirect::Policy::none());
        let authorities = match (get(CA), get(CA_FILE).filter(|file| *file != "probe")) {
            (Some(pem), _) => Some((CA, Some(pem.as_bytes().to_vec()))),
            (None, Some(file)) => Some((CA_FILE, std::fs::read(file).ok())),
            (None, None) => None,
        };
        if let Some((name, pem)) = authorities {
            let certificates = pem.and_then(|pem| Certificate::from_pem_bundle(&pem).ok());
            let certificates = certificates.filter(|certificates| !certificates.is_empty());
            let certificates = certificates.ok_or_else(|| refused(name, "there are no certificates in PEM format"))?;
            http = http.tls_built_in_root_certs(false);
            http = certificates.into_iter().fold(http, reqwest::ClientBuilder::add_root_certificate);
        }
        Ok(Endpoint {
            http: http.build().map_err(|error| Error::Setup { problem: error.without_url().to_string() })?,
            url: url.ok_or_else(|| refused(URL, "it is not the address of a token endpoint"))?,
            id: needed(ID, OTHER_ID)?,
            secret: needed(SECRET, OTHER_SECRET)?,
            scope: get(SCOPE).map(str::to_string),
        })
    }

    pub(super) fn takes(property: &str) -> bool {
        let ours = [URL, ID, SECRET, OTHER_ID, OTHER_SECRET, SCOPE, METHOD, GRANT, EXTENSIONS, METADATA, CA_FILE, CA];
        ours.contains(&property)
    }

    pub(super) async fn issue(&self, clock: &Clock) -> Result<Token> {
        #[derive(Deserialize)]
        struct Granted {
            access_token: String,
            expires_in: Option<f64>,
        }
        let asked_ms = clock.now_ms();
        let mut form = vec![("grant_type", "client_credentials")];
        form.extend(self.scope.as_deref().map(|scope| ("scope", scope)));
        let request = self.http.post(self.url.clone()).basic_auth(&self.id, Some(&self.secret)).form(&form);
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        let status = response.status();
        let body = response.bytes().await.map_err(|error| self.unreachable(error))?;
        if !status.is_success() {
            return Err(self.refusal(status, &body));
        }
        let granted: Granted = match serde_json::from_slice(&body) {
            Ok(granted) => granted,
            Err(_) => return Err(self.refused("no token is in its answer".to_string())),
        };
        let lifetime_s = granted.expires_in.map_or(LIFETIME_S, |seconds| seconds as i64).clamp(0, 365 * 24 * 3600);
        Ok(Token { text: granted.access_token, principal: self.id.clone(), until_ms: asked_ms + lifetime_s * 1000 })
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> Error {
        #[derive(Deserialize)]
        struct Answer {
            error: String,
            error_description: Option<String>,
        }
        let answer = match serde_json::from_slice::<Answer>(body) {
            Ok(Answer { error, error_description: Some(about) }) => format!("{status}, {error}: {about}"),
            Ok(Answer { error, error_description: None }) => format!("{status}, {error}"),
            Err(_) => status.to_string(),
        };
        let may_pass =
            status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        if may_pass {
            return Error::TokenUnreachable { endpoint: self.shown(), source: Reason::new(self.harmless(&answer)) };
        }
        self.refused(answer)
    }

    fn refused(&self, answer: String) -> Error {
        Error::TokenRefused { endpoint: self.shown(), answer: self.harmless(&answer) }
    }

    fn unreachable(&self, error: reqwest::Error) -> Error {
        let error = error.without_url();
        let mut lines = vec![error.to_string()];
        let mut next = std::error::Error::source(&error);
        while let Some(error) = next {
            lines.push(error.to_string());
            next = error.source();
        }
        lines.dedup();
        let text = lines.join(": ");
        // Waiting does not heal a certificate.
        if text.contains("certificate") {
            return Error::TokenUntrusted { endpoint: self.shown(), source: Reason::new(text) };
        }
        Error::TokenUnreachable { endpoint: self.shown(), source: Reason::new(text) }
    }

    /// The address without what may be secret in it.
    fn shown(&self) -> String {
        let mut url = self.url.clone();
        // They fail for addresses without a host, which have no user either.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.set_query(None);
        url.set_fragment(None);
        url.to_string()
    }

    /// What was said, short, and without the secret should it be repeated.
    fn harmless(&self, text: &str) -> String {
        let text = text.replace(&self.secret, "***");
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN_CHARS).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted_server::Server;

    fn endpoint(url: &str) -> Endpoint {
        let properties = [(URL, url), (OTHER_ID, "me"), (SECRET, "s3cret"), (SCOPE, "read write")];
        Endpoint::new(&properties.map(|(name, value)| (name.to_string(), value.to_string())).into()).unwrap()
    }

    #[tokio::test]
    async fn the_secret_is_shown_to_the_endpoint_and_the_token_lasts_as_long_as_it_says() {
        let check = async |answer: &'static str, lifetime_s: i64| {
            let server = Server::start(move |_| Some((200, answer.to_string()))).await;
            let (clock, _) = Clock::manual(1_700_000_000_000_000);
            let token = endpoint(&format!("{}/token?tenant=7", server.uri)).issue(&clock).await.unwrap();
            assert_eq!((token.text.as_str(), token.principal.as_str()), ("abc", "me"));
            assert_eq!(token.until_ms, 1_700_000_000_000 + lifetime_s * 1000);
            let seen = server.last();
            assert!(seen.line.starts_with("POST /token?tenant=7"), "{}", seen.line);
            assert!(seen.headers.contains("basic bwu6cznjcmv0"), "{}", seen.headers);
            assert_eq!(seen.body, "grant_type=client_credentials&scope=read+write");
        };
        check(r#"{"access_token":"abc","token_type":"Bearer","expires_in":3600}"#, 3600).await;
        check(r#"{"access_token":"abc","expires_in":59.9}"#, 59).await;
        check(r#"{"access_token":"abc"}"#, LIFETIME_S).await;
        check(r#"{"access_token":"abc","expires_in":-5}"#, 0).await;
    }

    #[tokio::test]
    async fn what_the_endpoint_says_instead_is_told_without_the_secret() {
        let check = async |status: u16, answer: &'static str| {
            let server = Server::start(move |_| Some((status, answer.to_string()))).await;
            let address = server.uri.replace("://", "://user:pass@");
            let error = endpoint(&format!("{address}/token?key=k3y")).issue(&Clock::system()).await.map(|_| ());
            server.hide(crate::error::Error::from(error.unwrap_err()).render())
        };
        insta::assert_snapshot!(
            check(401, r#"{"error":"invalid_client","error_description":"`s3cret` is not\nit"}"#).await,
            @r"
            error: the token endpoint `http://server/token` gave no token: 401 Unauthorized, invalid_client: `***` is not it
              hint: check `sasl.oauthbearer.client.id`, `.client.secret`, `.scope` and `.token.endpoint.url` in `source.kafka.properties`
            "
        );
        insta::assert_snapshot!(check(404, "<html>").await, @r"
        error: the token endpoint `http://server/token` gave no token: 404 Not Found
          hint: check `sasl.oauthbearer.client.id`, `.client.secret`, `.scope` and `.token.endpoint.url` in `source.kafka.properties`
        ");
        insta::assert_snapshot!(check(200, "<html>").await, @r"
        error: the token endpoint `http://server/token` gave no token: no token is in its answer
          hint: check `sasl.oauthbearer.client.id`, `.client.secret`, `.scope` and `.token.endpoint.url` in `source.kafka.properties`
        ");
        insta::assert_snapshot!(check(503, r#"{"error":"busy"}"#).await, @r"
        error: the token endpoint `http://server/token` does not answer
          caused by: 503 Service Unavailable, busy
          hint: check `sasl.oauthbearer.token.endpoint.url` in `source.kafka.properties`, and the network
        ");
        let nobody = endpoint("http://127.0.0.1:1/token").issue(&Clock::system()).await.map(|_| ()).unwrap_err();
        assert!(matches!(nobody, Error::TokenUnreachable { .. }), "{nobody:?}");
    }
}
