//! What can happen to an ingestion, done to the program itself on a real broker: each test ends in the auditor, or in the
//! error that spells out the choice, with nothing lost.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use icestream::offsets::{MARKER, Offsets};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rdkafka::admin::{AdminOptions, NewPartitions};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::auditor::{self, Tally, UpTo};
use crate::foreign::Pyiceberg;
use crate::project::{OwnBroker, PARTITIONS, Place, Project, TABLES};
use crate::proxy::{Canned, Fault, Proxy, rest_commit};
use crate::scrape;
use crate::services::services;

/// What a verb says when it fails, which it must.
fn refusal(output: &std::process::Output) -> String {
    let words = String::from_utf8_lossy(&output.stderr).to_string();
    assert!(!output.status.success(), "{words}");
    assert!(words.contains("error: ") && !words.contains("panicked"), "{words}");
    words
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_at_any_step_loses_and_doubles_nothing() {
    let project = &Project::new().await;
    project.send(40);
    project.drain(1);
    for step in [
        "bronze-after-files",
        "commit-after-manifests",
        "commit-after-manifest-list",
        "commit-before-swap",
        "commit-after-metadata",
        "commit-after-swap",
        "ingest-before-durable",
    ] {
        project.send(160);
        let mut command = project.command(&["ingest", "--drain"]);
        command.env("ICESTREAM_DIE_AT", format!("{step}=2")).env("ICESTREAM_COMMIT__ROWS", "40");
        let output = tokio::task::block_in_place(|| command.output().unwrap());
        let words = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.signal().is_some(), "{step}: {:?} {words}", output.status);
        let produced = tokio::task::block_in_place(|| project.log());
        project.audit(&produced, UpTo::Marker).await;
    }
    project.drain(1);
    project.audit_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_killed_at_random_moments_lose_and_double_nothing() {
    let seed: u64 =
        std::env::var("ICESTREAM_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("ICESTREAM_SEED={seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let project = Project::new().await;
    project.send(50);
    for _ in 0..6 {
        let passed = project.passed().await;
        let mut command = project.command(&["ingest"]);
        command.env("ICESTREAM_COMMIT__ROWS", "20");
        let mut pod = project.pod_of(command);
        project.send(random.random_range(50..300));
        project.wait_for(passed + random.random_range(1..40)).await;
        tokio::time::sleep(Duration::from_millis(random.random_range(0..100))).await;
        pod.process.kill().unwrap();
    }
    project.drain(1);
    project.audit_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_pods_started_at_once_share_or_race_and_double_nothing() {
    let project = Project::new().await;
    project.send(600);
    let started = || {
        let mut command = project.command(&["ingest"]);
        command.env("ICESTREAM_COMMIT__ROWS", "30");
        project.pod_of(command)
    };
    let pods = [started(), started(), started()];
    project.wait_for(200).await;
    project.send(600);
    project.wait_for_all().await;
    pods.into_iter().for_each(|pod| pod.end());
    project.drain(2);
    project.audit_all().await;
}

/// A process that was stopped for longer than its session wakes up with batches in its hands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zombie_changes_nothing() {
    const SESSION: Duration = Duration::from_secs(6);
    let project = Project::new().await;
    project.send(200);
    let (zombie, other) = (project.pod(), project.pod());
    project.wait_for(100).await;
    project.send(300);
    zombie.signal("STOP");
    let stopped = Instant::now();
    project.send(300);
    project.wait_for_all().await;
    while stopped.elapsed() < SESSION + Duration::from_secs(2) {
        project.send(20);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    zombie.signal("CONT");
    project.send(300);
    project.wait_for_all().await;
    zombie.end();
    other.end();
    project.drain(1);
    project.audit_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_rebalances_loses_and_doubles_nothing() {
    let project = Project::new().await;
    let mut pods = std::collections::VecDeque::new();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(9) {
        pods.push_back(project.pod());
        project.send(60);
        tokio::time::sleep(Duration::from_millis(700)).await;
        if pods.len() > 2 {
            pods.pop_front().unwrap().end();
        }
    }
    project.wait_for_all().await;
    pods.into_iter().for_each(|pod| pod.end());
    project.drain(1);
    project.audit_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_restarts_does_not_show() {
    let mut broker = tokio::task::block_in_place(OwnBroker::start);
    let project = Project::at(&broker.brokers, Place::Folder).await;
    project.send(200);
    let pod = project.pod();
    project.wait_for(50).await;
    project.send(200);
    broker.kill();
    tokio::task::block_in_place(|| broker.restart());
    project.send(200);
    project.wait_for_all().await;
    pod.end();
    project.drain(1);
    project.audit_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_the_catalog_that_are_lost_do_not_show() {
    let services = services();
    let proxy = Proxy::start(&services.rest_uri, rest_commit).await;
    let project = Project::at(&crate::project::shared_broker(), Place::Rest { uri: proxy.uri.clone() }).await;
    let mut count = 0;
    proxy.judge(move || {
        count += 1;
        match count % 4 {
            1 => Some(Fault::LoseAnswer),
            2 => Some(Fault::ApplyAndAnswer(Canned::rest(503, "ServiceUnavailableException"))),
            3 => Some(Fault::ArriveLate { before_next: count % 8 == 3 }),
            _ => None,
        }
    });
    for _ in 0..5 {
        project.send(60);
        project.drain(3);
    }
    assert!(proxy.struck() >= 6, "{} answers lost", proxy.struck());
    proxy.plan([]);
    project.audit_all().await;
}

/// More comes in that minute than the process may hold.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catalog_that_is_away_for_a_minute_does_not_show() {
    const AWAY: Duration = Duration::from_secs(60);
    const BUDGET: u64 = 192 << 20;
    const LARGE: usize = 100_000;
    let services = services();
    let proxy = Proxy::start(&services.rest_uri, |_| true).await;
    let project = Project::at(&crate::project::shared_broker(), Place::Rest { uri: proxy.uri.clone() }).await;
    project.send(200);
    let mut command = project.command(&["ingest", "--metrics", "127.0.0.1:0"]);
    command.env("ICESTREAM_MEMORY", "192MiB");
    let mut pod = project.pod_of(command);
    let monitored = pod.metrics_address().await;
    let lag = || -> f64 {
        // What is away is no reason to start the process anew.
        assert_eq!(scrape::ask(monitored, "GET", "/livez"), (200, "ok\n".to_string()));
        let numbers = scrape::scrape(monitored);
        numbers.iter().filter(|(name, _)| name.starts_with("icestream_lag_records{")).map(|(_, number)| number).sum()
    };
    project.wait_for(200).await;
    let mut count = 0;
    proxy.judge(move || {
        count += 1;
        Some(match count % 2 {
            0 => Fault::LoseRequest,
            _ => Fault::Refuse(Canned::rest(503, "ServiceUnavailableException")),
        })
    });
    let (away, producer) = (Instant::now(), project.producer());
    let (mut sent, mut most) = (0, 0);
    while away.elapsed() < AWAY || sent * LARGE <= BUDGET as usize {
        if sent * LARGE < 300 << 20 {
            for id in sent..sent + 10 {
                let note = format!("{id} {}", "large ".repeat(LARGE / 6));
                let event = json!({"op": "c", "before": null, "after": {"id": id, "note": note}}).to_string();
                project.put(&producer, TABLES[id % 2], (id % 4 / 2) as i32, b"{}", Some(event.as_bytes()));
            }
            rdkafka::producer::Producer::flush(&producer, Duration::from_secs(30)).unwrap();
            sent += 10;
        }
        assert!(pod.process.try_wait().unwrap().is_none(), "it gave up: {}", pod.words());
        most = most.max(pod.memory());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(sent * LARGE > BUDGET as usize && proxy.struck() > 0);
    let waiting = lag();
    assert!(waiting > 0.0 && waiting <= sent as f64, "{waiting} of {sent} records");
    proxy.plan([]);
    let all = 200 + sent as i64;
    project.send(20);
    project.wait_longer_for(all + 20, 2 * AWAY).await;
    let deadline = Instant::now() + Duration::from_secs(30);
    while lag() > 0.0 {
        assert!(Instant::now() < deadline, "{:#?}", scrape::scrape(monitored));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    most = most.max(pod.memory());
    println!("at most {} MiB of {} MiB", most >> 20, BUDGET >> 20);
    // What the budget does not count is what it asks to be left free besides.
    assert!(most < BUDGET + BUDGET / 4, "{} MiB of {} MiB", most >> 20, BUDGET >> 20);
    assert!(pod.words().contains("no answer to a commit"), "{}", pod.words());
    pod.end();
    project.audit_all().await;
}

/// Not a request of a kind gets through until the program has given up on a commit more than once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_refused_writes_does_not_show_and_leaves_nothing_behind() {
    let services = &services();
    let check = async |folder: &'static str| {
        let is_written = move |head: &str| head.starts_with("PUT ") && head.lines().next().unwrap().contains(folder);
        let proxy = Proxy::start(&services.s3_endpoint, is_written).await;
        let place = Place::Glue { s3_endpoint: proxy.uri.clone() };
        let project = Project::at(&crate::project::shared_broker(), place).await;
        // Two files in each commit.
        for table in TABLES {
            let declared = project.path().join(format!("catalog/{table}.yaml"));
            let text = std::fs::read_to_string(&declared)
                .unwrap_or_else(|_| json!({"topic": project.topic(table)}).to_string());
            let mut settings: Value = serde_json::from_str(&text).unwrap();
            settings["partition"] = json!(["_topic_partition"]);
            std::fs::write(&declared, settings.to_string()).unwrap();
        }
        project.send(100);
        let mut pod = project.pod();
        project.wait_for(100).await;
        let mut count = 0;
        proxy.judge(move || {
            count += 1;
            match count % 4 {
                // The other file of a commit may get through.
                0 if folder == "/data/" => None,
                1 => Some(Fault::Refuse(Canned::s3(500, "InternalError"))),
                _ => Some(Fault::Refuse(Canned::s3(503, "SlowDown"))),
            }
        });
        let deadline = Instant::now() + Duration::from_secs(240);
        while pod.words().matches("a table failed; trying again").count() < 3 {
            project.send(20);
            assert!(Instant::now() < deadline, "{folder}: {}", pod.words());
            assert!(pod.process.try_wait().unwrap().is_none(), "it gave up: {}", pod.words());
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert!(proxy.struck() >= 20, "{folder}: {} requests struck", proxy.struck());
        proxy.plan([]);
        project.send(20);
        let all = tokio::task::block_in_place(|| project.log()).0.values().map(|log| log.end()).sum();
        project.wait_longer_for(all, Duration::from_secs(120)).await;
        pod.end();
        project.audit_all().await;
        for table in TABLES {
            assert_eq!(project.table(table).await.orphans(i64::MAX).await.unwrap(), vec![], "{folder}");
        }
    };
    tokio::join!(check("/data/"), check("/metadata/"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn storage_that_stumbles_and_throttles_does_not_show() {
    let services = services();
    let proxy = Proxy::start(&services.s3_endpoint, |_| true).await;
    let project = Project::at(&crate::project::shared_broker(), Place::Glue { s3_endpoint: proxy.uri.clone() }).await;
    let mut random = SmallRng::seed_from_u64(7);
    proxy.judge(move || match random.random_range(0..20) {
        0 => Some(Fault::Refuse(Canned::s3(500, "InternalError"))),
        1 | 2 => Some(Fault::Refuse(Canned::s3(503, "SlowDown"))),
        3 => Some(Fault::LoseAnswer),
        _ => None,
    });
    for _ in 0..2 {
        project.send(150);
        project.drain(3);
    }
    assert!(proxy.struck() >= 3, "{} requests struck", proxy.struck());
    proxy.plan([]);
    project.audit_all().await;
}

/// A file system of a few megabytes, where that may be made; else files that may not grow.
struct SmallDisk {
    folder: std::path::PathBuf,
    is_mounted: bool,
}

impl SmallDisk {
    fn at(folder: std::path::PathBuf) -> Self {
        std::fs::create_dir(&folder).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(&folder).status();
        SmallDisk { is_mounted: mount.is_ok_and(|status| status.success()), folder }
    }

    fn preparation(&self) -> &'static str {
        // In blocks of 512 bytes.
        if self.is_mounted { "true" } else { "trap '' XFSZ; ulimit -f 600" }
    }

    fn grow(&self) {
        if self.is_mounted {
            let grown = Command::new("mount").args(["-o", "remount,size=256m"]).arg(&self.folder).status().unwrap();
            assert!(grown.success());
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if self.is_mounted {
            let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_an_error_and_loses_nothing() {
    let project = Project::new().await;
    let disk = SmallDisk::at(project.path().join("lake"));
    project.send(60);
    project.drain(1);
    let producer = project.producer();
    let mut random = SmallRng::seed_from_u64(3);
    for id in 0..60 {
        // Text that does not get smaller.
        let note: String = (0..100_000).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
        let event = json!({"op": "c", "before": null, "after": {"id": id, "note": note}}).to_string();
        project.put(&producer, TABLES[id % 2], (id % 4 / 2) as i32, b"{}", Some(event.as_bytes()));
    }
    rdkafka::producer::Producer::flush(&producer, Duration::from_secs(30)).unwrap();
    let full = tokio::task::block_in_place(|| {
        project.command_after(disk.preparation(), &["ingest", "--drain"]).output().unwrap()
    });
    let words = refusal(&full);
    assert!(words.contains("No space left on device") || words.contains("File too large"), "{words}");
    let produced = tokio::task::block_in_place(|| project.log());
    project.audit(&produced, UpTo::Marker).await;
    disk.grow();
    project.drain(1);
    project.audit_all().await;
    for table in TABLES {
        assert_eq!(project.table(table).await.orphans(i64::MAX).await.unwrap(), vec![]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_whose_snapshots_another_engine_expired_is_still_there() {
    let project = Project::new().await;
    let uri = format!("sqlite:///{}", project.path().join("lake/catalog.db").display());
    let warehouse = format!("file://{}", project.path().join("lake/warehouse").display());
    project.send(100);
    project.drain(1);
    let mut foreign = Pyiceberg::start(&["--name", &project.prefix, "--uri", &uri, "--warehouse", &warehouse]);
    for name in TABLES {
        let table = project.table_name(name);
        foreign.run_with(&table, "append", &json!([]));
        foreign.run(&table, &["expire"]);
        let table = project.table(name).await;
        let summaries: Vec<_> = table.snapshots().into_iter().map(|snapshot| snapshot.summary).collect();
        assert_eq!(summaries.len(), 1);
        assert!(!summaries[0].contains_key(MARKER), "{summaries:?}");
    }
    project.send(100);
    project.drain(1);
    let produced = tokio::task::block_in_place(|| project.log());
    let ours = project.audit(&produced, UpTo::End).await;
    let theirs = project.audit_by(&produced, UpTo::End, async |table| {
        auditor::named(&crate::canonical::columns(table), foreign.rows(table.name()))
    });
    assert_eq!(theirs.await, ours);
}

/// Deletes topics and makes them anew, and sends so many records to all.
pub async fn remake(project: &Project, tables: &[&str], records: u64) {
    let names: Vec<String> = tables.iter().map(|table| project.topic(table)).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for deleted in project.admin().delete_topics(&names, &AdminOptions::new()).await.unwrap() {
        deleted.unwrap();
    }
    let client: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &project.brokers).create().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let is_there = |name: &str| {
        let metadata = client.fetch_metadata(None, Duration::from_secs(5)).unwrap();
        metadata.topics().iter().any(|topic| topic.name() == name)
    };
    while tokio::task::block_in_place(|| names.iter().any(|name| is_there(name))) {
        assert!(Instant::now() < deadline, "the topics are still there");
    }
    project.make_topics(tables).await;
    project.send(records);
}

async fn a_topic_made_anew_stops(records: u64) {
    let project = Project::new().await;
    project.send(200);
    project.drain(1);
    let produced = tokio::task::block_in_place(|| project.log());
    project.audit(&produced, UpTo::End).await;
    remake(&project, &TABLES, records).await;
    let words = refusal(&project.ingest());
    assert!(words.contains(&project.prefix) && words.contains("made anew") && words.contains("hint: "), "{words}");
    // What was committed stays as it was, and nothing of the new topics was mixed into it.
    project.audit(&produced, UpTo::End).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_and_shorter_stops_with_the_choice_spelled_out() {
    a_topic_made_anew_stops(20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_and_longer_stops_with_the_choice_spelled_out() {
    a_topic_made_anew_stops(400).await;
}

/// The new topic is filled past the position before anybody looks, so that reading goes on as if nothing had been.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_made_anew_during_a_run_stops_its_table_alone_and_for_good() {
    let project = Project::new().await;
    let settings = project.path().join("icestream.yaml");
    let text = std::fs::read_to_string(&settings).unwrap();
    let rare = text
        .replace(r#""topic.metadata.refresh.interval.ms":"1000""#, r#""topic.metadata.refresh.interval.ms":"60000""#);
    assert_ne!(rare, text);
    std::fs::write(&settings, rare).unwrap();
    project.send(200);
    let mut command = project.command(&["ingest", "--metrics", "127.0.0.1:0"]);
    command.env("ICESTREAM_SOURCE__KAFKA__DISCOVER_EVERY", "1s");
    let mut pod = project.pod_of(command);
    let monitored = pod.metrics_address().await;
    let stopped = |table: &str| {
        let table = format!("icestream_table_stopped{{layer=\"bronze\",table=\"{}\"}}", project.table_name(table));
        scrape::scrape(monitored).get(&table).copied()
    };
    project.wait_for_all().await;
    assert_eq!((stopped("orders"), stopped("customers")), (Some(0.0), Some(0.0)));
    let old_rows = auditor::rows_by_engine(&project.table("orders").await).await;
    pod.signal("STOP");
    remake(&project, &["orders"], 800).await;
    pod.signal("CONT");
    let topic = project.topic("orders");
    let is_told = |words: &str| {
        words.contains(&format!("topic `{topic}` partition")) && words.contains("is not the one that was read there")
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_told(&pod.words()) {
        assert!(Instant::now() < deadline, "{}", project.words());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The other table goes on, and the process with it.
    project.send(200);
    let produced = tokio::task::block_in_place(|| project.log());
    let is_whole = async || {
        let marker = project.table("customers").await.marker(MARKER).unwrap();
        let offsets = Offsets::parse(&marker).unwrap();
        let mut logs = produced.0.iter().filter(|((topic, _), _)| *topic == project.topic("customers"));
        logs.all(|((topic, partition), log)| offsets.next(topic, *partition) == Some(log.end()))
    };
    while !is_whole().await {
        assert!(Instant::now() < deadline, "{}", project.words());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!((stopped("orders"), stopped("customers")), (Some(1.0), Some(0.0)));
    assert_eq!(scrape::ask(monitored, "GET", "/livez").0, 200, "the others go on");
    // A pod that is asked to end says what happened.
    pod.signal("TERM");
    let ended = tokio::task::block_in_place(|| pod.process.wait().unwrap());
    assert_eq!(ended.code(), Some(1), "{}", pod.words());
    let words = pod.words();
    assert!(
        words.lines().any(|line| line.starts_with("error: ") && is_told(line)) && words.contains("--epoch"),
        "{words}"
    );
    // So does whoever starts again, though the table may hold records of the new topic by then.
    for _ in 0..2 {
        let words = refusal(&project.ingest());
        assert!(is_told(&words) && words.contains("made anew"), "{words}");
    }
    let rows = auditor::rows_by_engine(&project.table("orders").await).await;
    assert!(old_rows.iter().all(|row| rows.contains(row)), "what was there before is as it was");
    // The way out: the topic's next life from its beginning, beside what was read of it as the first.
    let reset = ["offsets", "reset", "orders", "--to", "earliest", "--epoch", "--yes"];
    let output = tokio::task::block_in_place(|| project.command(&reset).output().unwrap());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    project.drain(1);
    let epoch = |table: &str| i64::from(table == "orders");
    let tally = project.audit_by(&produced, UpTo::End, async |table| {
        let mut rows = auditor::rows_by_engine(table).await;
        rows.retain(|row| row.get("_epoch").and_then(Value::as_i64).unwrap_or(0) == epoch(table.name().name()));
        rows
    });
    tally.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retention_past_the_marker_stops_with_the_choice_spelled_out() {
    let project = Project::new().await;
    project.send(200);
    project.drain(1);
    let mut produced = tokio::task::block_in_place(|| project.log());
    project.send(200);
    let mut cut = TopicPartitionList::new();
    cut.add_partition_offset(&project.topic("orders"), 1, Offset::Offset(70)).unwrap();
    project.admin().delete_records(&cut, &AdminOptions::new()).await.unwrap();
    let words = refusal(&project.ingest());
    let place =
        format!("topic `{}` partition 1: offset 50 is no longer there, the oldest is 70", project.topic("orders"));
    assert!(words.contains(&place) && words.contains("hint: "), "{words}");
    // The other table has read on meanwhile.
    let now = tokio::task::block_in_place(|| project.log());
    let others = now.0.into_iter().filter(|((topic, _), _)| *topic != project.topic("orders"));
    produced.0.extend(others);
    project.audit(&produced, UpTo::End).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_added_meanwhile_are_read_from_their_beginning() {
    let project = Project::new().await;
    project.send(100);
    let pod = project.pod();
    project.wait_for(50).await;
    let names = TABLES.map(|table| project.topic(table));
    let more: Vec<NewPartitions> = names.iter().map(|name| NewPartitions::new(name, PARTITIONS as usize + 2)).collect();
    for made in project.admin().create_partitions(&more, &AdminOptions::new()).await.unwrap() {
        made.unwrap();
    }
    project.send_over(200, PARTITIONS + 2);
    project.wait_for(150).await;
    pod.end();
    project.send_over(100, PARTITIONS + 2);
    project.drain(1);
    project.audit_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_and_senseless_messages_are_rows_like_others() {
    let project = Project::new().await;
    let producer = project.producer();
    project.send(20);
    let note = "twenty megabytes ".repeat((20 << 20) / 17);
    let large = json!({"op": "c", "before": null, "after": {"id": 1, "note": note}}).to_string();
    assert!(large.len() > 20_000_000);
    project.put(&producer, "orders", 0, b"{}", Some(large.as_bytes()));
    let mut random = SmallRng::seed_from_u64(5);
    let noise: Vec<u8> = (0..5_000).map(|_| random.random()).collect();
    for table in TABLES {
        project.put(&producer, table, 1, &noise[..20], Some(&noise));
        project.put(&producer, table, 1, b"{}", Some(b""));
    }
    rdkafka::producer::Producer::flush(&producer, Duration::from_secs(30)).unwrap();
    project.send(20);
    project.drain(1);
    let tally = project.audit_all().await;
    assert_eq!(tally.changes + tally.rejected + tally.consumed, 45);
    assert!(tally.rejected >= 4, "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_of_bad_records_alone_is_committed_as_rejected_rows() {
    let project = Project::new().await;
    let producer = project.producer();
    for number in 0..300 {
        let bad = format!("bad {number}");
        project.put(&producer, TABLES[number % 2], (number % 4 / 2) as i32, b"{\"id\":1}", Some(bad.as_bytes()));
    }
    rdkafka::producer::Producer::flush(&producer, Duration::from_secs(30)).unwrap();
    project.drain(1);
    assert_eq!(project.audit_all().await, Tally { changes: 0, rejected: 300, consumed: 0 });
}
