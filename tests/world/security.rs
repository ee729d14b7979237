//! A real broker behind its doors: passwords, TLS, certificates of clients, and tokens. Who has what the door asks for reads
//! to the end, who has not is told what is missing, and nothing that is secret is ever said.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use icestream::error::{Kind, Situation};
use icestream::source::{Assignment, KafkaAdmin, KafkaConfig, KafkaSource, Source};
use serde_json::Value;

use crate::groups::{Broker, Reader, until};

/// How long being turned away may take.
const BOUND: Duration = Duration::from_secs(60);

/// The shared broker with a topic `orders` of three records.
async fn broker() -> Broker {
    let broker = Broker::new();
    broker.create("orders", 1).await;
    let rows = (0..3).map(|id| format!(r#"{{"id":{id}}}"#).into_bytes());
    broker.send(&broker.at("orders", 0), rows).await;
    broker
}

fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_else(|| panic!("no {path}"))
}

fn with(broker: &Broker, brokers: &str, properties: &[(&str, String)]) -> KafkaConfig {
    let mut config = KafkaConfig { brokers: brokers.to_string(), ..broker.config(Assignment::Everything) };
    config.properties.extend(properties.iter().map(|(name, value)| (name.to_string(), value.clone())));
    config
}

/// Reads all there is, as a member of a group and without one, and asks what only an administrator asks.
async fn enters(config: &KafkaConfig, broker: &Broker) {
    for assignment in [Assignment::Everything, Assignment::Group] {
        let mut config = KafkaConfig { assignment, ..config.clone() };
        config.group = format!("{}-{assignment:?}", config.group);
        let mut reader = Reader::new(config.clone());
        if assignment == Assignment::Everything {
            reader.all().await;
        }
        until("the records are read", &mut [&mut reader], |readers| {
            readers[0].positions.get(&broker.at("orders", 0)) == Some(&3)
        })
        .await;
        assert!(reader.error.is_none(), "{:?}", reader.error);
    }
    let bounds = KafkaAdmin::connect(config).unwrap().bounds(vec![broker.at("orders", 0)]).await.unwrap();
    assert_eq!(bounds[&broker.at("orders", 0)].end, 3);
}

/// The error that both kinds of client turn away with, as it is printed.
async fn refused(config: &KafkaConfig, kind: Kind) -> String {
    let asked = Instant::now();
    let error = match KafkaSource::connect(config.clone()) {
        Ok(mut source) => source.partitions().await.unwrap_err(),
        Err(error) => error,
    };
    // What can be known at once does not wait for answers that may still come.
    let bound = if kind == Kind::Config { BOUND / 3 } else { BOUND };
    assert!(asked.elapsed() < bound, "{:?}", asked.elapsed());
    assert_eq!(error.kind(), kind, "{error:?}");
    let asked = match KafkaAdmin::connect(config) {
        Ok(admin) => admin.partitions().await.unwrap_err(),
        Err(error) => error,
    };
    assert_eq!(std::mem::discriminant(&asked), std::mem::discriminant(&error), "{asked:?}");
    let shown = icestream::error::Error::from(error.clone()).render();
    let said = format!("{error:?} {asked:?} {shown} {config:?}");
    for (name, value) in &config.properties {
        let is_secret = ["password", "secret", ".pem"].iter().any(|part| name.contains(part));
        assert!(!is_secret || !said.contains(value.trim()), "{name} is shown: {said}");
    }
    shown
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_open_the_door_and_stay_secret() {
    let broker = broker().await;
    let sasl = &broker.kafka["sasl"];
    let [brokers, user, password] = ["/brokers", "/user", "/password"].map(|path| text(sasl, path));
    for (mechanism, password, may_enter) in [
        ("PLAIN", password, true),
        ("SCRAM-SHA-256", password, true),
        ("SCRAM-SHA-512", password, true),
        ("PLAIN", "guessed", false),
        ("SCRAM-SHA-512", "guessed", false),
    ] {
        let config = with(
            &broker,
            brokers,
            &[
                ("security.protocol", "SASL_PLAINTEXT".to_string()),
                ("sasl.mechanism", mechanism.to_string()),
                ("sasl.username", user.to_string()),
                ("sasl.password", password.to_string()),
            ],
        );
        if may_enter {
            enters(&config, &broker).await;
        } else {
            let shown = refused(&config, Kind::Config).await;
            assert!(shown.contains("refused access"), "{shown}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_are_checked_on_both_sides() {
    let broker = broker().await;
    let tls = &broker.kafka["tls"];
    let file = |name: &str| format!("{}/{name}", text(tls, "/certificates"));
    let content = |name: &str| std::fs::read_to_string(file(name)).unwrap();
    let ssl = ("security.protocol", "SSL".to_string());
    let ours = ("ssl.ca.location", file("ours-ca.pem"));

    let one_sided = |more: &[(&'static str, String)]| {
        with(&broker, text(tls, "/brokers"), &[std::slice::from_ref(&ssl), more].concat())
    };
    enters(&one_sided(std::slice::from_ref(&ours)), &broker).await;
    enters(&one_sided(&[("ssl.ca.pem", content("ours-ca.pem"))]), &broker).await;
    for authority in [Some(("ssl.ca.location", file("theirs-ca.pem"))), None] {
        let shown = refused(&one_sided(authority.as_slice()), Kind::Config).await;
        assert!(shown.contains("has no certificate that is trusted") && shown.contains("`ssl.ca.location`"), "{shown}");
    }
    let mut plain = one_sided(&[]);
    plain.properties.remove("security.protocol");
    let shown = refused(&plain, Kind::Unavailable).await;
    assert!(shown.contains("whether the brokers expect TLS"), "{shown}");
    let shown = refused(&one_sided(&[("ssl.ca.location", file("missing.pem"))]), Kind::Config).await;
    assert!(shown.contains("ssl.ca.location failed"), "{shown}");

    let mutual = |more: &[(&'static str, String)]| {
        with(&broker, text(tls, "/mutual_brokers"), &[&[ssl.clone(), ours.clone()], more].concat())
    };
    let password = text(tls, "/key_password");
    let certificate = ("ssl.certificate.location", file("ours-client.pem"));
    let locked = ("ssl.key.location", file("ours-client-locked.key"));
    enters(&mutual(&[certificate.clone(), ("ssl.key.location", file("ours-client.key"))]), &broker).await;
    enters(&mutual(&[certificate.clone(), locked.clone(), ("ssl.key.password", password.to_string())]), &broker).await;
    let pem = [("ssl.certificate.pem", content("ours-client.pem")), ("ssl.key.pem", content("ours-client.key"))];
    enters(&mutual(&pem), &broker).await;
    let theirs =
        [("ssl.certificate.location", file("theirs-client.pem")), ("ssl.key.location", file("theirs-client.key"))];
    for without in [&[][..], &theirs] {
        let shown = refused(&mutual(without), Kind::Config).await;
        assert!(shown.contains("does not take this client's certificate"), "{shown}");
        assert!(shown.contains("`ssl.certificate.location`"), "{shown}");
    }
    let guessed = ("ssl.key.password", "guessed".to_string());
    let shown = refused(&mutual(&[certificate, locked, guessed]), Kind::Config).await;
    assert!(shown.contains("ssl.key.location failed"), "{shown}");
}

/// The properties somebody has who knows another client made with librdkafka.
fn oidc(token: &Value, url: &str, secret: &str) -> Vec<(&'static str, String)> {
    let properties = [
        ("security.protocol", "SASL_PLAINTEXT"),
        ("sasl.mechanism", "OAUTHBEARER"),
        ("sasl.oauthbearer.method", "oidc"),
        ("sasl.oauthbearer.token.endpoint.url", url),
        ("sasl.oauthbearer.client.id", text(token, "/client")),
        ("sasl.oauthbearer.client.secret", secret),
        ("sasl.oauthbearer.scope", text(token, "/scope")),
    ];
    properties.map(|(name, value)| (name, value.to_string())).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_an_endpoint_open_the_door() {
    let broker = broker().await;
    let token = &broker.kafka["token"];
    let config = |base: &str, audience: &str, secret: &str, more: &[(&'static str, String)]| {
        let properties = oidc(token, &format!("{base}/60/{audience}"), secret);
        with(&broker, text(token, "/brokers"), &[&properties, more].concat())
    };
    let [http, https, secret] = ["/http", "/https", "/secret"].map(|path| text(token, path));
    let authority =
        |name: &str| [("https.ca.location", format!("{}/{name}", text(&broker.kafka, "/tls/certificates")))];
    enters(&config(http, "kafka", secret, &[]), &broker).await;
    enters(&config(https, "kafka", secret, &authority("ours-ca.pem")), &broker).await;

    let shown = refused(&config(http, "kafka", "guessed", &[]), Kind::Config).await;
    let refusal = format!(
        "error: the token endpoint `{http}/60/kafka` gave no token: 401 Unauthorized, invalid_client: no such client, or \
         another secret\n  hint: check `sasl.oauthbearer.client.id`"
    );
    assert!(shown.starts_with(&refusal), "{shown}");
    let shown = refused(&config(https, "kafka", secret, &authority("theirs-ca.pem")), Kind::Config).await;
    assert!(shown.contains("has no certificate that is trusted") && shown.contains("`https.ca.location`"), "{shown}");
    let shown = refused(&config("http://127.0.0.1:1", "kafka", secret, &[]), Kind::Unavailable).await;
    assert!(shown.contains("the token endpoint `http://127.0.0.1:1/60/kafka` does not answer"), "{shown}");
    // A token that is not meant for these brokers.
    let shown = refused(&config(http, "others", secret, &[]), Kind::Config).await;
    assert!(shown.contains("refused access"), "{shown}");
}

/// The brokers hang up on whoever stays longer than a token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reading_outlasts_tokens() {
    let broker = broker().await;
    let token = &broker.kafka["token"];
    let url = format!("{}/10/kafka", text(token, "/http"));
    let config = with(&broker, text(token, "/brokers"), &oidc(token, &url, text(token, "/secret")));
    let mut alone = Reader::new(config.clone());
    alone.all().await;
    let mut member = Reader::new(KafkaConfig { assignment: Assignment::Group, ..config });
    let (at, started) = (broker.at("orders", 0), Instant::now());
    let mut sent = 3;
    while started.elapsed() < Duration::from_secs(30) {
        until("what was sent is read", &mut [&mut alone, &mut member], |readers| {
            readers.iter().all(|reader| reader.positions.get(&at) == Some(&sent))
        })
        .await;
        broker.send(&at, [b"{}".to_vec()]).await;
        sent += 1;
    }
    assert!(alone.error.is_none() && member.error.is_none(), "{:?} {:?}", alone.error, member.error);
}

/// `icestream ingest --drain` of the topic, by a project whose secrets come as variables.
fn drain(broker: &Broker, brokers: &str, properties: &[(&str, String)]) -> Output {
    drain_as("properties", &[], broker, brokers, properties)
}

fn drain_as(
    auth: &str,
    variables: &[(&str, &str)],
    broker: &Broker,
    brokers: &str,
    properties: &[(&str, String)],
) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let mut settings = format!("name: doors\nsource:\n  format: json\n  kafka:\n    brokers: {brokers}\n");
    settings.push_str(&format!("    auth: {auth}\n"));
    settings.push_str(&format!("    topics: [{}]\n    properties:\n", broker.topic("orders")));
    let mut command = Command::new(env!("CARGO_BIN_EXE_icestream"));
    command.args(["--log", "debug", "--project"]).arg(folder.path()).args(["ingest", "--drain"]);
    for (number, (name, value)) in properties.iter().enumerate() {
        settings.push_str(&format!("      {name}: ${{PROPERTY_{number}}}\n"));
        command.env(format!("PROPERTY_{number}"), value);
    }
    std::fs::write(folder.path().join("icestream.yaml"), settings).unwrap();
    // Who runs the tests may be somebody at AWS.
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"] {
        command.env_remove(name);
    }
    command.env("HOME", folder.path()).env("AWS_EC2_METADATA_DISABLED", "true").envs(variables.iter().copied());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for (name, value) in properties {
        let is_secret = name.contains("password") || name.contains("secret");
        assert!(!is_secret || !said.contains(value), "{name} is shown: {said}");
    }
    output
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_through_each_door_commits_all_or_says_what_is_missing() {
    let broker = broker().await;
    let (tls, token) = (&broker.kafka["tls"], &broker.kafka["token"]);
    let file = |name: &str| format!("{}/{name}", text(tls, "/certificates"));
    let mutual = |password: &str| {
        vec![
            ("security.protocol", "SSL".to_string()),
            ("ssl.ca.location", file("ours-ca.pem")),
            ("ssl.certificate.location", file("ours-client.pem")),
            ("ssl.key.location", file("ours-client-locked.key")),
            ("ssl.key.password", password.to_string()),
        ]
    };
    let url = format!("{}/60/kafka", text(token, "/http"));
    let [mutual_brokers, token_brokers] = [text(tls, "/mutual_brokers"), text(token, "/brokers")];
    let may_enter = [
        (mutual_brokers, mutual(text(tls, "/key_password"))),
        (token_brokers, oidc(token, &url, text(token, "/secret"))),
    ];
    for (brokers, properties) in may_enter {
        let output = drain(&broker, brokers, &properties);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(result["ingested"]["rows"], 3, "{result}");
    }
    let may_not = [
        (mutual_brokers, mutual("guessed"), 2, "ssl.key.location failed"),
        (mutual_brokers, mutual("guessed")[..2].to_vec(), 2, "does not take this client's certificate"),
        (token_brokers, oidc(token, &url, "guessed"), 2, "invalid_client"),
        (token_brokers, oidc(token, "http://127.0.0.1:1/token", "guessed"), 3, "does not answer"),
    ];
    for (brokers, properties, code, reason) in may_not {
        let output = drain(&broker, brokers, &properties);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(reason) && said.contains("hint: "), "{said}");
    }
}

/// These brokers know nothing of MSK's tokens, so the way ends where they look at one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_signed_for_msk_reach_the_brokers() {
    let broker = broker().await;
    let brokers = text(&broker.kafka, "/token/brokers");
    let plaintext = [("security.protocol", "SASL_PLAINTEXT".to_string())];
    let keys = [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")];
    let region = ("AWS_REGION", "eu-central-1");
    for (variables, reason) in [
        (&[keys[0], keys[1], region][..], "refused access"),
        (&[region], "no AWS credentials were found"),
        (&keys, "the brokers' AWS region is not known"),
    ] {
        let output = drain_as("aws-msk-iam", variables, &broker, brokers, &plaintext);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(reason) && said.contains("hint: ") && !said.contains("wJalrXUtnFEMI"), "{said}");
    }
}
