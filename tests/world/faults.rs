//! Networks and services that fail while we commit: a commit comes out once, or not at all and says so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arrow::datatypes::{DataType, Field};
use icestream::error::{Kind, Situation};
use icestream::ids::TableName;
use icestream::table::catalog::rest::RestAuth;
use icestream::table::{At, Error, Expiry, Lake, Premise, SchemaChange, Table, TableDefinition};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::canonical::select;
use crate::proxy::{Canned, Fault, Proxy, glue_call, method, nobody, rest_commit};
use crate::services::{Services, glue_lake, namespace, rest_lake, services, storage, try_rest_lake};
use crate::support::*;

fn orders(namespace: &str) -> TableDefinition {
    TableDefinition {
        name: TableName::new(namespace, "orders").unwrap(),
        schema: std::sync::Arc::new(schema()),
        partition: vec!["bucket(2, id)".to_string()],
        properties: Default::default(),
    }
}

/// Every kind of commit, each under the same faults. `lake` goes through the proxy, `direct` does not.
async fn commit_everything(case: &str, lake: &Lake, direct: &Lake, proxy: &Proxy, faults: &[Fault]) {
    let definition = orders(&namespace());
    let strike = || proxy.plan(faults.to_vec());
    let struck = |what: &str| assert!(proxy.struck() > 0, "{case}: no fault met the {what}");
    direct.create(&definition).await.unwrap();
    let table = lake.table(&definition.name).await.unwrap();

    strike();
    let appended = append(&table, (0..10).map(|id| (id, 1))).await;
    struck("append");
    assert_eq!(appended.snapshot_id, appended.table.snapshot_id(), "{case}");
    strike();
    let table = delete(&appended.table, &[3, 4]).await.table;
    struck("delete");
    strike();
    let view = table.view(At::Head).unwrap();
    let old = view.files(None).await.unwrap();
    let live: Vec<(i64, i32)> = read(&table).await.into_iter().map(|(id, qty)| (id, qty as i32)).collect();
    let compacted = write(&table, &rows(live)).await;
    let table = table.change().rewrite(&view, old, compacted).commit().await.unwrap().table;
    struck("rewrite");
    strike();
    let change =
        SchemaChange::new().add(None, Field::new("code", DataType::Utf8, true)).promote("qty", DataType::Int64);
    let evolved = table.evolve(&change).unwrap().unwrap();
    let table = table.change().schema(evolved).set_property("a", "1").commit().await.unwrap().table;
    struck("schema change");
    strike();
    let table = table.change().set_property("b", "2").remove_property("a").commit().await.unwrap().table;
    struck("properties");
    // A range of records, twice.
    for expected in [true, false] {
        strike();
        let files = write(&table, &rows([(20, 2)])).await;
        let premise = Premise::new().marker_moves("icestream.offsets", None, "10".to_string());
        let outcome = table.change().append(files).premise(premise).commit().await;
        match outcome {
            Ok(_) => struck("range"),
            Err(ref error) => assert!(error.is_premise_broken(), "{case}: {error:?}"),
        }
        assert_eq!(outcome.is_ok(), expected, "{case}");
    }
    let audit = async |snapshots: usize| {
        let table = direct.table(&definition.name).await.unwrap();
        let expected: BTreeMap<i64, i64> =
            (0..10).filter(|id| ![3, 4].contains(id)).map(|id| (id, 1)).chain([(20, 2)]).collect();
        assert_eq!(read(&table).await, expected, "{case}");
        assert_eq!(table.snapshots().len(), snapshots, "{case}");
        assert_eq!(total(&table, "total-records"), "9", "{case}");
        assert_eq!(table.marker("icestream.offsets").as_deref(), Some("10"), "{case}");
        assert_eq!((table.properties().get("a"), table.properties()["b"].as_str()), (None, "2"), "{case}");
        assert_eq!(table.schema().unwrap().fields().len(), 4, "{case}");
    };
    audit(5).await;
    strike();
    let mut table = table;
    table.refresh().await.unwrap();
    table.expire(&Expiry { older_than_ms: i64::MAX, retain_last: 1, ..Default::default() }).await.unwrap();
    struck("expiry");
    audit(1).await;
}

fn common_faults() -> Vec<(&'static str, Vec<Fault>)> {
    use Fault::{ApplyAndAnswer, ArriveLate, CutAnswer, LoseAnswer, LoseRequest, Refuse};
    vec![
        ("requests are lost", vec![LoseRequest; 2]),
        ("the answer is lost", vec![LoseAnswer]),
        ("half of the answer arrives", vec![CutAnswer]),
        ("a request is lost, and then an answer", vec![LoseRequest, LoseAnswer]),
        ("the request arrives late, before the next", vec![ArriveLate { before_next: true }]),
        ("the request arrives late, after the next", vec![ArriveLate { before_next: false }]),
        ("a gateway says 503 of nothing", vec![Refuse(Canned::page(503)); 3]),
        ("a gateway says 504 of what was done", vec![ApplyAndAnswer(Canned::page(504))]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn glue_commits_come_out_once() {
    use Fault::{ApplyAndAnswer, Refuse};
    let services = &services();
    let mut cases = common_faults();
    cases.extend([
        ("throttled", vec![Refuse(Canned::json_service(400, "ThrottlingException")); 3]),
        ("throttled by status", vec![Refuse(Canned::page(429)); 2]),
        ("failed", vec![Refuse(Canned::json_service(500, "InternalServiceException")); 2]),
        ("done and failed", vec![ApplyAndAnswer(Canned::json_service(500, "InternalServiceException"))]),
        ("done and timed out", vec![ApplyAndAnswer(Canned::json_service(400, "OperationTimeoutException"))]),
    ]);
    let direct = &glue_lake(services, &services.glue_endpoint).await;
    futures::future::join_all(cases.into_iter().map(|(case, faults)| async move {
        let proxy = Proxy::start(&services.glue_endpoint, glue_call("UpdateTable")).await;
        commit_everything(case, &glue_lake(services, &proxy.uri).await, direct, &proxy, &faults).await;
    }))
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rest_commits_come_out_once() {
    use Fault::{ApplyAndAnswer, Refuse};
    let services = &services();
    let mut cases = common_faults();
    cases.extend([
        ("throttled", vec![Refuse(Canned::rest(429, "TooManyRequestsException")); 3]),
        ("failed", vec![Refuse(Canned::rest(500, "InternalServerError")); 2]),
        ("done and failed", vec![ApplyAndAnswer(Canned::rest(500, "CommitStateUnknownException"))]),
        ("done and unavailable", vec![ApplyAndAnswer(Canned::rest(503, "ServiceUnavailableException"))]),
        ("done and answered by another page", vec![ApplyAndAnswer(Canned::page(200))]),
    ]);
    let direct = &rest_lake(services, &services.rest_uri).await;
    futures::future::join_all(cases.into_iter().map(|(case, faults)| async move {
        let proxy = Proxy::start(&services.rest_uri, rest_commit).await;
        commit_everything(case, &rest_lake(services, &proxy.uri).await, direct, &proxy, &faults).await;
    }))
    .await;
}

/// As long as our patience: half a minute for Glue, a minute for REST. All at once, so that it is one minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_hangs_is_given_up_and_looked_up() {
    let services = &services();
    let check = async |glue: bool, applies: bool| {
        let upstream = if glue { &services.glue_endpoint } else { &services.rest_uri };
        let update = glue_call("UpdateTable");
        let proxy = Proxy::start(upstream, move |head| if glue { update(head) } else { rest_commit(head) }).await;
        let lake = if glue { glue_lake(services, &proxy.uri).await } else { rest_lake(services, &proxy.uri).await };
        let table = lake.create(&orders(&namespace())).await.unwrap();
        proxy.plan([Fault::Hang { applies }]);
        let table = append(&table, [(1, 1), (2, 2)]).await.table;
        assert_eq!(proxy.struck(), 1);
        let table = append(&table, [(3, 3)]).await.table;
        assert_eq!(read(&table).await, BTreeMap::from([(1, 1), (2, 2), (3, 3)]));
        assert_eq!(table.snapshots().len(), 2);
    };
    tokio::join!(check(true, true), check(true, false), check(false, true), check(false, false));
}

/// The table is there after at most one more try, and only one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_is_made_and_dropped_once() {
    use Fault::{ApplyAndAnswer, CutAnswer, LoseAnswer, LoseRequest, Refuse};
    let services = &services();
    let faults = [
        LoseRequest,
        LoseAnswer,
        CutAnswer,
        Refuse(Canned::page(503)),
        ApplyAndAnswer(Canned::page(500)),
        ApplyAndAnswer(Canned::page(504)),
    ];
    let check = async |glue: bool, fault: Fault| {
        let upstream = if glue { &services.glue_endpoint } else { &services.rest_uri };
        let (create, drop) = (glue_call("CreateTable"), glue_call("DeleteTable"));
        let proxy = Proxy::start(upstream, move |head| match glue {
            true => create(head) || drop(head),
            false => {
                (head.starts_with("POST ") && head.lines().next().unwrap().contains("/tables "))
                    || head.starts_with("DELETE ")
            }
        })
        .await;
        let lake = if glue { glue_lake(services, &proxy.uri).await } else { rest_lake(services, &proxy.uri).await };
        let definition = orders(&namespace());
        let name = &definition.name;
        proxy.plan([fault.clone()]);
        if let Err(error) = lake.ensure(&definition).await {
            assert_eq!(error.kind(), Kind::Unavailable, "{fault:?} {error:?}");
        }
        assert_eq!(proxy.struck(), 1);
        let table = lake.ensure(&definition).await.unwrap();
        append(&table, [(1, 1)]).await;
        assert_eq!(lake.tables(name.namespace()).await.unwrap(), std::slice::from_ref(name));

        proxy.plan([fault.clone()]);
        if let Err(error) = lake.drop_table(name, false).await {
            assert_eq!(error.kind(), Kind::Unavailable, "{fault:?} {error:?}");
        }
        assert_eq!(proxy.struck(), 1);
        match lake.drop_table(name, false).await {
            Ok(_) | Err(Error::TableMissing { .. }) => {}
            Err(error) => panic!("{fault:?} {error:?}"),
        }
        assert!(lake.table_if_exists(name).await.unwrap().is_none());
    };
    let both = [true, false].into_iter().flat_map(|glue| faults.iter().map(move |fault| (glue, fault.clone())));
    futures::future::join_all(both.map(|(glue, fault)| check(glue, fault))).await;
}

/// Questions are asked again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_that_stumbles_is_asked_again() {
    use Fault::{CutAnswer, LoseAnswer, LoseRequest, Refuse};
    let services = &services();
    let check = async |glue: bool, faults: Vec<Fault>| {
        let upstream = if glue { &services.glue_endpoint } else { &services.rest_uri };
        let proxy = Proxy::start(upstream, |_| true).await;
        let lake = if glue { glue_lake(services, &proxy.uri).await } else { rest_lake(services, &proxy.uri).await };
        let table = lake.create(&orders(&namespace())).await.unwrap();
        let table = append(&table, [(1, 1)]).await.table;
        proxy.plan(faults.clone());
        let mut table = lake.table(table.name()).await.unwrap();
        assert_eq!(proxy.struck() as usize, faults.len());
        proxy.plan(faults.clone());
        table.refresh().await.unwrap();
        proxy.plan(faults.clone());
        assert_eq!(lake.tables(table.name().namespace()).await.unwrap().len(), 1);
        proxy.plan(faults.clone());
        assert!(!lake.catalog().namespaces().await.unwrap().is_empty());
        assert_eq!(proxy.struck() as usize, faults.len());
    };
    let busy = |glue: bool| match glue {
        true => Canned::json_service(400, "ThrottlingException"),
        false => Canned::rest(503, "ServiceUnavailableException"),
    };
    let plans = [true, false].into_iter().flat_map(|glue| {
        let faults = [
            vec![LoseRequest, LoseAnswer],
            vec![CutAnswer; 2],
            vec![Refuse(busy(glue)); 3],
            vec![Refuse(Canned::page(502)); 2],
        ];
        faults.map(|faults| (glue, faults))
    });
    futures::future::join_all(plans.map(|(glue, faults)| check(glue, faults))).await;
}

/// One storage through a proxy, the rest direct.
async fn glue_lake_over(services: &Services, proxy: &Proxy) -> Lake {
    glue_lake(&services.with_s3_at(&proxy.uri), &services.glue_endpoint).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_that_stumbles_does_not_show() {
    use Fault::{CutAnswer, LoseAnswer, LoseRequest, Refuse};
    let services = &services();
    let slow_down = Refuse(Canned::s3(503, "SlowDown"));
    let failed = Refuse(Canned::s3(500, "InternalError"));
    let check = async |verb: &'static str, faults: Vec<Fault>| {
        let proxy = Proxy::start(&services.s3_endpoint, method(verb)).await;
        let lake = glue_lake_over(services, &proxy).await;
        let strike = || proxy.plan(faults.clone());
        let table = lake.create(&orders(&namespace())).await.unwrap();
        strike();
        let table = append(&table, (0..10).map(|id| (id, 1))).await.table;
        strike();
        let table = delete(&table, &[3]).await.table;
        strike();
        assert_eq!(read(&table).await.len(), 9);
        strike();
        assert_eq!(select(&table, Some("id <> 5")).await.len(), 8);
        strike();
        let view = table.view(At::Head).unwrap();
        let old = view.files(None).await.unwrap();
        let added = write(&table, &rows([(1, 1)])).await;
        let table = table.change().overwrite(&view, old, added).commit().await.unwrap().table;
        strike();
        table.expire(&Expiry { older_than_ms: i64::MAX, retain_last: 1, ..Default::default() }).await.unwrap();
        proxy.plan([]);
        let mut table = table;
        table.refresh().await.unwrap();
        assert_eq!(read(&table).await, BTreeMap::from([(1, 1)]));
        assert_eq!(table.orphans(i64::MAX).await.unwrap(), vec![], "{verb} {faults:?}");
    };
    let plans = ["PUT", "GET", "HEAD", "POST"].into_iter().flat_map(|verb| {
        let faults = [vec![slow_down.clone(); 4], vec![failed.clone(), LoseRequest], vec![LoseAnswer, CutAnswer]];
        faults.map(|faults| (verb, faults))
    });
    futures::future::join_all(plans.map(|(verb, faults)| check(verb, faults))).await;
}

/// A file so large that it goes up in parts, each of which stumbles.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_in_parts_that_stumbles_does_not_show() {
    use Fault::{LoseAnswer, LoseRequest, Refuse};
    let services = &services();
    let check = async |verb: &'static str, faults: Vec<Fault>| {
        let proxy = Proxy::start(&services.s3_endpoint, move |head| {
            method(verb)(head) && head.lines().next().unwrap().contains("upload")
        })
        .await;
        let storage = storage(&services.with_s3_at(&proxy.uri));
        let location = format!("s3://{}/large/{}", services.bucket, namespace());
        let bytes: Vec<u8> = (0..17 << 20).map(|index: u32| (index % 251) as u8).collect();
        proxy.plan(faults.clone());
        storage.write(&location, bytes.clone().into()).await.unwrap();
        assert_eq!(proxy.struck() as usize, faults.len(), "{verb}");
        assert!(storage.read(&location).await.unwrap() == bytes);
        storage.delete_many([location]).await.unwrap();
    };
    let slow_down = Refuse(Canned::s3(503, "SlowDown"));
    tokio::join!(
        check("PUT", vec![slow_down.clone(), LoseRequest, LoseAnswer]),
        check("POST", vec![slow_down, LoseRequest, LoseAnswer]),
    );
}

/// Storage that is gone for good: an error, nothing half done, and all is well when it is back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_that_is_gone_stops_a_commit_cleanly() {
    let services = &services();
    let check = async |folder: &'static str, fault: Fault| {
        let proxy = Proxy::start(&services.s3_endpoint, move |head| {
            head.starts_with("PUT ") && head.lines().next().unwrap().contains(folder)
        })
        .await;
        let lake = glue_lake_over(services, &proxy).await;
        let table = lake.create(&orders(&namespace())).await.unwrap();
        let table = append(&table, [(1, 1)]).await.table;
        proxy.always(fault);
        let error = async {
            let mut writer = table.writer(None)?;
            writer.write(&rows([(2, 2)])).await?;
            let files = writer.finish().await?;
            let outcome = table.change().append(files.clone()).commit().await;
            if outcome.is_err() {
                table.discard(&files).await;
            }
            outcome
        };
        let error = error.await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
        assert!(!matches!(error, Error::Unresolved { .. }), "{error:?}");
        proxy.plan([]);
        let mut table = lake.table(table.name()).await.unwrap();
        assert_eq!(read(&table).await, BTreeMap::from([(1, 1)]));
        assert_eq!(table.orphans(i64::MAX).await.unwrap(), vec![]);
        table = append(&table, [(3, 3)]).await.table;
        assert_eq!(read(&table).await, BTreeMap::from([(1, 1), (3, 3)]));
        error
    };
    let (data, _) = tokio::join!(
        check("/data/", Fault::Refuse(Canned::s3(503, "SlowDown"))),
        check("/metadata/", Fault::LoseRequest),
    );
    let caused_by = told(data, &[]).lines().nth(1).unwrap_or_default().to_string();
    insta::assert_snapshot!(caused_by, @"  caused by: SlowDown: made up by a test");
}

/// Of the two files of a write, one is there when the other cannot be.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_cannot_be_closed_takes_the_others_along() {
    let services = &services();
    let is_data = |head: &str| head.starts_with("PUT ") && head.lines().next().unwrap().contains("/data/");
    let proxy = Proxy::start(&services.s3_endpoint, is_data).await;
    let lake = glue_lake_over(services, &proxy).await;
    let table = lake.create(&orders(&namespace())).await.unwrap();
    let mut count = 0;
    proxy.judge(move || {
        count += 1;
        (count > 1).then(|| Fault::Refuse(Canned::s3(403, "AccessDenied")))
    });
    let mut writer = table.writer(None).unwrap();
    writer.write(&rows((0..20).map(|id| (id, 1)))).await.unwrap();
    let error = writer.finish().await.unwrap_err();
    assert_eq!((error.kind(), proxy.struck()), (Kind::Config, 1), "{error:?}");
    proxy.plan([]);
    assert_eq!(table.orphans(i64::MAX).await.unwrap(), vec![]);
}

/// A message with what differs from run to run replaced.
fn told(error: Error, replaced: &[(&str, &str)]) -> String {
    let text = icestream::error::Error::from(error).render();
    replaced.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_are_not_there_are_named() {
    let services = &services();
    let (nowhere, space) = (&nobody().await, &namespace());
    let name = &orders(space).name;
    let glue = async { glue_lake(services, nowhere).await.table(name).await.unwrap_err() };
    let oauth = |server: Option<String>| RestAuth::OAuth2 {
        credential: services.rest_credential.clone().unwrap(),
        scope: None,
        server,
    };
    let rest = async { try_rest_lake(services, nowhere, RestAuth::None).await.unwrap_err() };
    let tokens = async {
        let auth = oauth(Some(format!("{nowhere}/tokens")));
        try_rest_lake(services, &services.rest_uri, auth).await.unwrap_err()
    };
    let s3 = async {
        let table = glue_lake(services, &services.glue_endpoint).await.create(&orders(space)).await.unwrap();
        let services = services.with_s3_at(nowhere);
        glue_lake(&services, &services.glue_endpoint).await.table(table.name()).await.unwrap_err()
    };
    let (glue, rest, tokens, s3) = tokio::join!(glue, rest, tokens, s3);
    for error in [&glue, &rest, &tokens, &s3] {
        assert_eq!((error.kind(), error.kind().exit_code()), (Kind::Unavailable, 3), "{error:?}");
    }
    let told = |error| told(error, &[(nowhere, "http://nowhere"), (space, "shop")]);
    insta::assert_snapshot!(told(glue), @"
    error: Glue catalog at `http://nowhere` does not answer
      caused by: dispatch failure: io error: client error (Connect): tcp connect error: Connection refused (os error 111)
    ");
    insta::assert_snapshot!(told(rest), @"
    error: REST catalog `http://nowhere` does not answer
      caused by: error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)
    ");
    insta::assert_snapshot!(told(tokens), @"
    error: the token server `http://nowhere/tokens` does not answer
      caused by: error sending request: client error (Connect): tcp connect error: Connection refused (os error 111)
    ");
    // In between stands how long it was tried.
    let s3 = told(s3);
    let ends: Vec<&str> = [s3.lines().next(), s3.lines().last()].into_iter().flatten().collect();
    insta::assert_snapshot!(ends.join("\n"), @"
    error: S3 at `http://nowhere` does not answer
      caused by: Connection refused (os error 111)
    ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_credentials_are_named() {
    let services = &services();
    let space = &namespace();
    let table = glue_lake(services, &services.glue_endpoint).await.create(&orders(space)).await.unwrap();
    let refused = |code| Fault::Refuse(Canned::json_service(400, code));

    let proxy = Proxy::start(&services.glue_endpoint, |_| true).await;
    let lake = glue_lake(services, &proxy.uri).await;
    proxy.always(refused("UnrecognizedClientException"));
    let glue_question = lake.table(table.name()).await.unwrap_err();
    proxy.plan([]);
    let through = lake.table(table.name()).await.unwrap();
    let files = write(&through, &rows([(1, 1)])).await;
    let update = Proxy::start(&services.glue_endpoint, glue_call("UpdateTable")).await;
    let through = glue_lake(services, &update.uri).await.table(table.name()).await.unwrap();
    update.always(refused("AccessDeniedException"));
    let glue_commit = through.change().append(files).commit().await.unwrap_err();
    assert_eq!(update.struck(), 1);

    let storage_proxy = Proxy::start(&services.s3_endpoint, |_| true).await;
    let lake = glue_lake_over(services, &storage_proxy).await;
    storage_proxy.always(Fault::Refuse(Canned::s3(403, "AccessDenied")));
    let s3_question = lake.table(table.name()).await.unwrap_err();
    storage_proxy.plan([]);
    let through = lake.table(table.name()).await.unwrap();
    storage_proxy.always(Fault::Refuse(Canned::s3(403, "InvalidAccessKeyId")));
    let mut writer = through.writer(None).unwrap();
    let s3_write = match writer.write(&rows([(1, 1)])).await {
        Ok(()) => writer.finish().await.unwrap_err(),
        Err(error) => error,
    };

    let wrong = RestAuth::OAuth2 { credential: "icestream:wrong".to_string(), scope: None, server: None };
    let rest_token = try_rest_lake(services, &services.rest_uri, wrong).await.unwrap_err();
    let stale = RestAuth::Token("stale".to_string());
    let rest_question = try_rest_lake(services, &services.rest_uri, stale).await.unwrap_err();
    let commit = Proxy::start(&services.rest_uri, rest_commit).await;
    let rest_table = rest_lake(services, &commit.uri).await.create(&orders(space)).await.unwrap();
    commit.always(Fault::Refuse(Canned::rest(403, "ForbiddenException")));
    let files = write(&rest_table, &rows([(1, 1)])).await;
    let rest_commit = rest_table.change().append(files).commit().await.unwrap_err();
    assert_eq!(commit.struck(), 1);

    let all = [glue_question, glue_commit, s3_question, s3_write, rest_token, rest_question, rest_commit];
    for error in &all {
        assert_eq!((error.kind(), error.kind().exit_code()), (Kind::Config, 2), "{error:?}");
    }
    let places = [
        (proxy.uri.as_str(), "http://glue"),
        (&update.uri, "http://glue"),
        (&storage_proxy.uri, "http://s3"),
        (&commit.uri, "http://rest"),
        (&services.rest_uri, "http://rest"),
    ];
    let text: Vec<String> = all.into_iter().map(|error| told(error, &places)).collect();
    insta::assert_snapshot!(text.join("\n"), @"
    error: Glue catalog at `http://glue` refused access
      caused by: UnrecognizedClientException: made up by a test
      hint: check the credentials and what they are allowed to do
    error: Glue catalog at `http://glue` refused access
      caused by: AccessDeniedException: made up by a test
      hint: check the credentials and what they are allowed to do
    error: bucket `icestream` of S3 at `http://s3` refused access
      caused by: AccessDenied: made up by a test
      hint: check the credentials and what they are allowed to do
    error: bucket `icestream` of S3 at `http://s3` refused access
      caused by: InvalidAccessKeyId: made up by a test
      hint: check the credentials and what they are allowed to do
    error: the token server `http://rest/v1/oauth/tokens` refused access
      caused by: invalid_client (401)
      hint: check the credentials and what they are allowed to do
    error: REST catalog `http://rest` refused access
      caused by: NotAuthorizedException: token unknown or expired
      hint: check the credentials and what they are allowed to do
    error: REST catalog `http://rest` refused access
      caused by: ForbiddenException: made up by a test
      hint: check the credentials and what they are allowed to do
    ");
}

/// A REST catalog of one test's own, which may die.
struct OwnRest {
    folder: tempfile::TempDir,
    command: PathBuf,
    uri: String,
    process: Child,
}

impl OwnRest {
    /// `services` is where it keeps its files.
    async fn start(services: &Services, token_seconds: u32) -> OwnRest {
        let folder = tempfile::tempdir().unwrap();
        let uri = nobody().await;
        let port = uri.rsplit(':').next().unwrap();
        let given = std::fs::read_to_string(&services.rest_command[1]).unwrap();
        let mut properties: Vec<String> = given
            .lines()
            .filter(|line| !line.starts_with("port=") && !line.starts_with("uri="))
            .map(str::to_string)
            .collect();
        let database = folder.path().join("rest.db");
        properties.push(format!("port={port}\ntoken-seconds={token_seconds}"));
        properties.push(format!("uri=jdbc:sqlite:{}?journal_mode=WAL&busy_timeout=30000", database.display()));
        std::fs::write(folder.path().join("rest.properties"), properties.join("\n")).unwrap();
        let command = PathBuf::from(&services.rest_command[0]);
        let process = OwnRest::spawn(&command, &folder);
        let mut own = OwnRest { folder, command, uri, process };
        own.wait_until_ready().await;
        own
    }

    fn spawn(command: &PathBuf, folder: &tempfile::TempDir) -> Child {
        let mut command = Command::new(command);
        command.arg(folder.path().join("rest.properties")).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    async fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while reqwest::get(format!("{}/v1/config", self.uri)).await.is_err() {
            assert!(Instant::now() < deadline, "the catalog did not start");
            assert!(self.process.try_wait().unwrap().is_none(), "the catalog ended by itself");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    async fn restart(&mut self) {
        self.process = OwnRest::spawn(&self.command, &self.folder);
        self.wait_until_ready().await;
    }
}

impl Drop for OwnRest {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Commits batch after batch as an ingestion does: the marker says which is next, also after an error.
async fn ingest(lake: &Lake, name: &TableName, batches: std::ops::Range<i64>) -> u32 {
    let mut errors = 0;
    loop {
        let attempt = async {
            let table = lake.table(name).await?;
            let next = table.marker("icestream.offsets").map_or(0, |text| text.parse::<i64>().unwrap());
            if next >= batches.end {
                return Ok(false);
            }
            let mut writer = table.writer(None)?;
            writer.write(&rows([(next, next as i32)])).await?;
            let files = writer.finish().await?;
            let from = (next > 0).then(|| next.to_string());
            let premise = Premise::new().marker_moves("icestream.offsets", from, (next + 1).to_string());
            table.change().append(files).premise(premise).commit().await?;
            Ok(true)
        };
        match attempt.await {
            Ok(true) => {}
            Ok(false) => return errors,
            Err(error) => {
                let error: Error = error;
                assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
                errors += 1;
                assert!(errors < 20, "{error:?}");
            }
        }
    }
}

async fn check_ingested(table: &Table, batches: i64) {
    assert_eq!(read(table).await, (0..batches).map(|id| (id, id)).collect());
    assert_eq!(table.snapshots().len() as i64, batches);
    assert_eq!(total(table, "total-records"), batches.to_string());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_that_expire_and_a_catalog_that_restarts_do_not_show() {
    let services = services();
    let mut own = OwnRest::start(&services, 3).await;
    let lake = rest_lake(&services, &own.uri).await;
    let name = orders(&namespace()).name;
    let mut table = lake.create(&orders(name.namespace())).await.unwrap();
    // Tokens live for three seconds; this goes on for three of them.
    let started = Instant::now();
    let mut batches = 0;
    while started.elapsed() < Duration::from_secs(9) {
        batches += 5;
        assert_eq!(ingest(&lake, &name, 0..batches).await, 0);
    }
    table.refresh().await.unwrap();
    check_ingested(&table, batches).await;

    // The server dies while we commit, and forgets its tokens. Tables are still there.
    let total = batches + 40;
    let writer = tokio::spawn({
        let (lake, name) = (lake.clone(), name.clone());
        async move { ingest(&lake, &name, 0..total).await }
    });
    while own_progress(&lake, &name).await < batches + 5 {
        tokio::task::yield_now().await;
    }
    own.kill();
    own.restart().await;
    writer.await.unwrap();
    table.refresh().await.unwrap();
    check_ingested(&table, total).await;
}

async fn own_progress(lake: &Lake, name: &TableName) -> i64 {
    lake.table(name).await.unwrap().snapshots().len() as i64
}

/// Eight writers, and every fifth answer of the catalog is lost.
async fn race_with_losses(upstream: &str, lake_at: impl AsyncFn(String) -> Lake) {
    const WRITERS: i64 = 8;
    const COMMITS: i64 = 6;
    let seed: u64 =
        std::env::var("ICESTREAM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("ICESTREAM_SEED={seed}");
    let proxy = Proxy::start(upstream, |_| true).await;
    let direct = lake_at(upstream.to_string()).await;
    let name = direct.create(&orders(&namespace())).await.unwrap().name().clone();
    let mut lakes = Vec::new();
    for _ in 0..WRITERS {
        lakes.push(lake_at(proxy.uri.clone()).await);
    }
    let mut random = SmallRng::seed_from_u64(seed);
    proxy.judge(move || random.random_bool(0.2).then_some(Fault::LoseAnswer));
    let mut tasks = tokio::task::JoinSet::new();
    for (writer, lake) in (0..).zip(lakes) {
        let name = name.clone();
        let mut table = direct.table(&name).await.unwrap();
        tasks.spawn(async move {
            for commit in 0..COMMITS {
                let files = write(&table, &rows([(writer * 1000 + commit, writer as i32)])).await;
                table = loop {
                    let attempt = async {
                        let table = lake.table(&name).await?;
                        table.change().append(files.clone()).commit().await
                    };
                    match attempt.await {
                        Ok(committed) => break committed.table,
                        // Not one of these says that the commit may have been applied.
                        Err(Error::Unreachable { .. }) => {}
                        Err(error) => panic!("{error:?}"),
                    }
                };
            }
        });
    }
    while let Some(outcome) = tasks.join_next().await {
        outcome.unwrap();
    }
    assert!(proxy.struck() > 20, "{} answers lost", proxy.struck());
    let table = direct.table(&name).await.unwrap();
    let expected: BTreeMap<i64, i64> =
        (0..WRITERS).flat_map(|writer| (0..COMMITS).map(move |commit| (writer * 1000 + commit, writer))).collect();
    assert_eq!(read(&table).await, expected);
    assert_eq!(total(&table, "total-records"), (WRITERS * COMMITS).to_string());
    assert_eq!(table.snapshots().len() as i64, WRITERS * COMMITS);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn glue_writers_that_get_no_answers_lose_and_double_nothing() {
    let services = services();
    race_with_losses(&services.glue_endpoint, async |uri| glue_lake(&services, &uri).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rest_writers_that_get_no_answers_lose_and_double_nothing() {
    let services = services();
    race_with_losses(&services.rest_uri, async |uri| rest_lake(&services, &uri).await).await;
}
