use std::sync::Mutex as StdMutex;

use super::*;
use crate::scripted_server::Server;

async fn open(server: &Server, auth: RestAuth, clock: Clock) -> Result<RestCatalog> {
    let options = RestOptions { uri: server.uri.clone(), auth, ..RestOptions::default() };
    RestCatalog::open(options, clock).await
}

fn ok(body: impl ToString) -> Option<(u16, String)> {
    Some((200, body.to_string()))
}

fn refused(status: u16, kind: &str, message: &str) -> Option<(u16, String)> {
    let error = serde_json::json!({ "error": { "message": message, "type": kind, "code": status } });
    Some((status, error.to_string()))
}

fn orders() -> TableName {
    TableName::new("shop", "orders").unwrap()
}

fn loaded() -> String {
    let metadata = serde_json::to_value(pointer::tests::metadata("s3://lake/shop/orders")).unwrap();
    serde_json::json!({ "metadata-location": "s3://lake/m1.json", "metadata": metadata, "config": {} }).to_string()
}

fn clock() -> Clock {
    Clock::manual(1_700_000_000_000_000).0
}

#[test]
fn the_servers_settings_and_the_users_are_weighed() {
    let check = |config: serde_json::Value, prefix: Option<&str>| {
        let options =
            RestOptions { uri: "http://a/".to_string(), prefix: prefix.map(str::to_string), ..Default::default() };
        let (uri, prefix) = serde_json::from_value::<Config>(config).unwrap().resolve(&options);
        base_url(&uri, prefix.as_deref()).unwrap().to_string()
    };
    use serde_json::json;
    assert_eq!(check(json!({}), None), "http://a/v1");
    assert_eq!(check(json!({"defaults": {"prefix": "d"}}), None), "http://a/v1/d");
    assert_eq!(check(json!({"defaults": {"prefix": "d"}}), Some("mine")), "http://a/v1/mine");
    let both = json!({"defaults": {"prefix": "d"}, "overrides": {"prefix": "catalogs/12", "clients": "4"}});
    assert_eq!(check(both, Some("mine")), "http://a/v1/catalogs/12");
    assert_eq!(check(json!({"overrides": {"uri": "https://b/x"}}), None), "https://b/x/v1");
    assert_eq!(check(json!({"overrides": {"prefix": "arn%3Aaws%2Fx"}}), None), "http://a/v1/arn%3Aaws%2Fx");
}

#[test]
fn addresses_are_checked_and_shown_without_secrets() {
    for bad in ["", "host:8181", "ftp://host", "not a uri"] {
        assert!(base_url(bad, None).is_err(), "{bad}");
    }
    let url = base_url("http://user:secret@host/api", Some("p")).unwrap();
    assert_eq!(shown(&url), "http://host/api/v1/p");
    let auth = RestAuth::OAuth2 { credential: "id:hidden".to_string(), scope: None, server: None };
    let shown = format!("{:?} {:?}", auth, RestAuth::Token("hidden".to_string()));
    assert!(!shown.contains("hidden"), "{shown}");
}

#[tokio::test]
async fn tables_are_read_with_the_prefix_the_server_asks_for_and_all_pages() {
    let server = Server::start(|seen| match seen.line.as_str() {
        "GET /v1/config?warehouse=s3%3A%2F%2Flake" => ok(r#"{"overrides": {"prefix": "main"}}"#),
        "GET /v1/main/namespaces/shop/tables" => {
            ok(r#"{"identifiers": [{"namespace": ["shop"], "name": "orders"}], "next-page-token": "a b"}"#)
        }
        "GET /v1/main/namespaces/shop/tables?pageToken=a+b" => {
            ok(r#"{"identifiers": [{"namespace": ["shop"], "name": "customers"}, {"namespace": ["shop"], "name": "A-B"}]}"#)
        }
        "GET /v1/main/namespaces" => ok(r#"{"namespaces": [["shop"], ["a", "b"], ["bronze"]], "next-page-token": null}"#),
        "GET /v1/main/namespaces/shop/tables/orders" => ok(loaded()),
        _ => refused(404, "NoSuchTableException", "Table does not exist"),
    })
    .await;
    let options = RestOptions {
        uri: format!("{}/", server.uri),
        warehouse: Some("s3://lake".to_string()),
        ..RestOptions::default()
    };
    let catalog = RestCatalog::open(options, clock()).await.unwrap();
    assert_eq!(catalog.namespaces().await.unwrap(), ["bronze", "shop"]);
    let names: Vec<String> = catalog.tables("shop").await.unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(names, ["shop.customers", "shop.orders"]);
    let head = catalog.head(&orders(), None).await.unwrap();
    assert_eq!(head.metadata.location(), "s3://lake/shop/orders");
    let again = catalog.head(&orders(), Some(&head)).await.unwrap();
    assert!(Arc::ptr_eq(&head.metadata, &again.metadata));
    let missing = catalog.head(&TableName::new("shop", "nothing").unwrap(), None).await.unwrap_err();
    insta::assert_snapshot!(server.hide(missing.to_string()), @"table `shop.nothing` does not exist in REST catalog `http://server`");
}

#[tokio::test]
async fn a_commit_pins_the_base_and_its_refusal_says_what_was_applied() {
    let status = Arc::new(StdMutex::new(Some(200)));
    let next = status.clone();
    let server = Server::start(move |seen| {
        if seen.line.starts_with("GET /v1/config") {
            return ok("{}");
        }
        match (*next.lock().unwrap(), seen.line.starts_with("GET")) {
            (_, true) | (Some(200), _) => ok(loaded()),
            (Some(status), _) => refused(status, "SomeException", "so it is\n\tat line 7"),
            (None, _) => None,
        }
    })
    .await;
    let catalog = open(&server, RestAuth::None, clock()).await.unwrap();
    let head = catalog.head(&orders(), None).await.unwrap();
    let mine = TableRequirement::UuidMatch { uuid: head.metadata.uuid() };
    let updates = [TableUpdate::SetProperties { updates: [("a".to_string(), "1".to_string())].into() }];
    catalog.swap(&head, std::slice::from_ref(&mine), &updates).await.unwrap();
    let sent = server.last();
    assert_eq!(sent.line, "POST /v1/namespaces/shop/tables/orders");
    let body: serde_json::Value = serde_json::from_str(&sent.body).unwrap();
    assert_eq!(body["identifier"], serde_json::json!({ "namespace": ["shop"], "name": "orders" }));
    let kinds: Vec<_> =
        body["requirements"].as_array().unwrap().iter().map(|one| one["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds,
        [
            "assert-table-uuid",
            "assert-ref-snapshot-id",
            "assert-current-schema-id",
            "assert-last-assigned-field-id",
            "assert-default-spec-id",
            "assert-last-assigned-partition-id",
            "assert-default-sort-order-id"
        ]
    );
    assert_eq!(body["requirements"][1]["snapshot-id"], serde_json::Value::Null);
    assert_eq!(body["updates"], serde_json::json!([{ "action": "set-properties", "updates": { "a": "1" } }]));

    for (code, expected) in [
        (Some(409), "lost"),
        (Some(429), "busy"),
        (Some(500), "unknown"),
        (Some(502), "unknown"),
        (Some(503), "unknown"),
        (Some(504), "unknown"),
        (Some(400), "failed"),
        (Some(403), "failed"),
        (Some(404), "failed"),
        (None, "unknown"),
    ] {
        *status.lock().unwrap() = code;
        let before = server.lines().len();
        let found = match catalog.swap(&head, &[], &updates).await.unwrap_err() {
            Swap::Lost => "lost",
            Swap::Busy(_) => "busy",
            Swap::Failed(_) => "failed",
            Swap::Unknown(_) => "unknown",
        };
        assert_eq!(found, expected, "{code:?}");
        assert_eq!(server.lines().len(), before + 1, "a commit is never sent twice");
    }
    *status.lock().unwrap() = Some(400);
    let Err(Swap::Failed(error)) = catalog.swap(&head, &[], &updates).await else { panic!() };
    insta::assert_snapshot!(server.hide(error.to_string()), @"table `shop.orders`: REST catalog `http://server` refused to commit: SomeException: so it is");
    *status.lock().unwrap() = Some(403);
    let Err(Swap::Failed(error)) = catalog.swap(&head, &[], &updates).await else { panic!() };
    insta::assert_snapshot!(server.hide(crate::error::Error::from(error).render()), @"
    error: REST catalog `http://server` refused access
      caused by: SomeException: so it is
      hint: check the credentials and what they are allowed to do
    ");
}

#[tokio::test]
async fn a_server_that_is_gone_was_sent_nothing() {
    let server = Server::start(|_| ok("{}")).await;
    let mut catalog = open(&server, RestAuth::None, clock()).await.unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    catalog.base = base_url(&format!("http://{free}"), None).unwrap();
    let head = Head::new(
        &orders(),
        Arc::new(pointer::tests::metadata("s3://lake/shop/orders")),
        "s3://lake/m1.json".to_string(),
    );
    let outcome = catalog.swap(&head, &[], &[]).await;
    assert!(matches!(outcome, Err(Swap::Busy(Error::Unreachable { .. }))), "{outcome:?}");
}

#[tokio::test]
async fn tokens_are_fetched_renewed_in_time_and_once_more_when_refused() {
    let (clock, now_us) = Clock::manual(1_700_000_000_000_000);
    let given = Arc::new(StdMutex::new(0));
    let server = Server::start(move |seen| {
        let mut given = given.lock().unwrap();
        if seen.line == "POST /v1/oauth/tokens" {
            *given += 1;
            return ok(format!(r#"{{"access_token": "token{given}", "token_type": "bearer", "expires_in": 3600}}"#));
        }
        // The second token is revoked at once.
        let good = seen.headers.contains(&format!("authorization: bearer token{given}")) && *given != 2;
        if good { ok(r#"{"namespaces": []}"#) } else { refused(401, "NotAuthorizedException", "expired") }
    })
    .await;
    let auth = RestAuth::OAuth2 { credential: "id:se:cret".to_string(), scope: None, server: None };
    let catalog = open(&server, auth, clock).await.unwrap();
    catalog.namespaces().await.unwrap();
    let form = server.seen.lock().unwrap()[0].clone();
    assert_eq!(form.body, "grant_type=client_credentials&scope=catalog&client_id=id&client_secret=se%3Acret");
    assert!(form.headers.contains("content-type: application/x-www-form-urlencoded"), "{}", form.headers);
    let after = |seconds: i64| {
        now_us.fetch_add(seconds * 1_000_000, std::sync::atomic::Ordering::SeqCst);
        server.seen.lock().unwrap().clear();
    };
    after(3500);
    catalog.namespaces().await.unwrap();
    assert_eq!(server.lines(), ["GET /v1/namespaces"]);
    after(50);
    catalog.namespaces().await.unwrap();
    let renewed_and_refused =
        ["POST /v1/oauth/tokens", "GET /v1/namespaces", "POST /v1/oauth/tokens", "GET /v1/namespaces"];
    assert_eq!(server.lines(), renewed_and_refused);
}

#[tokio::test]
async fn a_wrong_secret_is_refused_access() {
    let server = Server::start(|_| {
        Some((401, r#"{"error": "invalid_client", "error_description": "Credentials given were invalid"}"#.to_string()))
    })
    .await;
    let auth = RestAuth::OAuth2 { credential: "id:wrong".to_string(), scope: None, server: None };
    let error = open(&server, auth, clock()).await.unwrap_err();
    insta::assert_snapshot!(server.hide(crate::error::Error::from(error).render()), @"
    error: the token server `http://server/v1/oauth/tokens` refused access
      caused by: invalid_client: Credentials given were invalid
      hint: check the credentials and what they are allowed to do
    ");
}

#[tokio::test]
async fn a_bearer_token_that_is_refused_is_not_tried_again() {
    let server = Server::start(|_| refused(401, "NotAuthorizedException", "who are you")).await;
    let error = open(&server, RestAuth::Token("t0k".to_string()), clock()).await.unwrap_err();
    assert_eq!(server.lines(), ["GET /v1/config"]);
    assert!(server.last().headers.contains("authorization: bearer t0k"));
    insta::assert_snapshot!(server.hide(crate::error::Error::from(error).render()), @"
    error: REST catalog `http://server` refused access
      caused by: NotAuthorizedException: who are you
      hint: check the credentials and what they are allowed to do
    ");
}

#[tokio::test]
async fn requests_are_signed_for_the_service_and_region() {
    let server = Server::start(|_| ok(r#"{"defaults": {}, "overrides": {}}"#)).await;
    let aws = AwsOptions {
        region: Some("eu-west-1".to_string()),
        access_key_id: Some("AKIDEXAMPLE".to_string()),
        secret_access_key: Some("secret".to_string()),
        session_token: Some("session".to_string()),
        ..AwsOptions::default()
    };
    let auth = RestAuth::SigV4 { service: "glue".to_string(), aws };
    open(&server, auth, clock()).await.unwrap();
    let headers = server.last().headers;
    let start = "authorization: aws4-hmac-sha256 credential=akidexample/20231114/eu-west-1/glue/aws4_request, \
        signedheaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token, signature=";
    assert!(headers.contains(start), "{headers}");
    assert!(headers.contains("x-amz-date: 20231114t221320z"), "{headers}");
}

#[tokio::test]
async fn another_kind_of_server_is_recognised() {
    let page = Server::start(|_| ok("<html>hello</html>")).await;
    let error = open(&page, RestAuth::None, clock()).await.unwrap_err();
    insta::assert_snapshot!(page.hide(crate::error::Error::from(error).render()), @"
    error: REST catalog `http://server` does not answer like one, but with another kind of page
      hint: check the catalog's `uri`: it is the address before `/v1`
    ");
    let empty = Server::start(|_| Some((404, "not found".to_string()))).await;
    let error = open(&empty, RestAuth::None, clock()).await.unwrap_err();
    insta::assert_snapshot!(empty.hide(crate::error::Error::from(error).render()), @"
    error: REST catalog `http://server` does not answer like one, but with `404 Not Found`
      hint: check the catalog's `uri`: it is the address before `/v1`
    ");
}

#[tokio::test]
async fn reads_are_asked_again_and_creation_finds_the_table_taken() {
    let failures = Arc::new(StdMutex::new(2));
    let server = Server::start(move |seen| match seen.line.as_str() {
        "GET /v1/config" => ok("{}"),
        "GET /v1/namespaces/shop" => {
            let mut failures = failures.lock().unwrap();
            if *failures > 0 {
                *failures -= 1;
                return refused(503, "ServiceUnavailableException", "later");
            }
            refused(404, "NoSuchNamespaceException", "no")
        }
        "POST /v1/namespaces" => ok(r#"{"namespace": ["shop"]}"#),
        "POST /v1/namespaces/shop/tables" => refused(409, "AlreadyExistsException", "taken"),
        _ => None,
    })
    .await;
    let catalog = open(&server, RestAuth::None, clock()).await.unwrap();
    let metadata = pointer::tests::metadata("s3://lake/shop/orders");
    let new = NewTable {
        table: orders(),
        schema: metadata.current_schema().as_ref().clone(),
        partition_spec: UnboundPartitionSpec::builder().build(),
        sort_order: SortOrder::unsorted_order(),
        properties: Default::default(),
        location: None,
    };
    let error = catalog.create(new).await.unwrap_err();
    assert!(matches!(error, Error::TableExists { .. }), "{error:?}");
    let body: serde_json::Value = serde_json::from_str(&server.last().body).unwrap();
    assert_eq!(body["partition-spec"], serde_json::json!({ "spec-id": 0, "fields": [] }));
    let keys: Vec<&String> = body.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["name", "schema", "partition-spec", "write-order", "stage-create", "properties"]);
    let expected = ["GET /v1/config"]
        .into_iter()
        .chain(["GET /v1/namespaces/shop"; 3])
        .chain(["POST /v1/namespaces", "POST /v1/namespaces/shop/tables"]);
    assert_eq!(server.lines(), expected.collect::<Vec<_>>());
}
