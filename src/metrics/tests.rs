use super::*;
use std::time::Duration;

use crate::error::Kind;
use crate::gold::Refreshed;
use crate::offsets::Offsets;

fn name(text: &str) -> TableName {
    text.parse().unwrap()
}

fn ingested(rows: u64, rejected: u64, newest_change_us: Option<i64>) -> Event {
    Event::Ingested(BronzeCommit {
        table: name("bronze.orders"),
        snapshot_id: Some(1),
        offsets: Offsets::default(),
        counts: ChangeCounts { changes: rows - rejected, rejected, tombstones: 1, ..Default::default() },
        rows,
        bytes: 100,
        newest_change_us,
        elapsed: Duration::from_millis(250),
        changes: Vec::new(),
    })
}

fn fares(layer: Layer, table: &str, how: Standing) -> Event {
    Event::Fares { layer, table: name(table), how }
}

fn finding(rule: &str, rows_failed: u64) -> Finding {
    Finding {
        table: "silver.orders".to_string(),
        rule: rule.to_string(),
        kind: "that",
        severity: "warn",
        rows_checked: Some(9),
        rows_failed,
        snapshot_id: Some(2),
    }
}

#[test]
fn events_become_numbers() {
    let (clock, _) = Clock::manual(1_767_225_600_500_000);
    let metrics = Arc::new(Metrics::new(clock, 1 << 30));
    let observe = metrics.observer();
    for event in [
        fares(Layer::Bronze, "bronze.orders", Standing::Well),
        fares(Layer::Bronze, "bronze.customers", Standing::Well),
        Event::Reading(InHand { lag: [(name("bronze.orders"), 12)].into(), bytes: 4096 }),
        ingested(10, 2, Some(1_767_225_590_000_000)),
        // History may come behind what is there.
        ingested(5, 0, Some(1_767_225_580_000_000)),
        ingested(1, 0, None),
        fares(Layer::Bronze, "bronze.customers", Standing::TriedAgain(Kind::Unavailable)),
        fares(Layer::Bronze, "bronze.customers", Standing::Stopped(Kind::Input)),
        Event::Merged(SilverCommit {
            table: name("silver.orders"),
            snapshot_id: Some(2),
            bronze_snapshot_id: 1,
            rows_written: 7,
            rows_deleted: 3,
            elapsed: Duration::from_millis(1500),
            findings: Vec::new(),
            rows_quarantined: 2,
            rows_dropped: 1,
            null_keys: 0,
        }),
        fares(Layer::Silver, "silver.orders", Standing::Well),
        Event::Refreshed(GoldCommit {
            table: name("gold.revenue"),
            snapshot_id: Some(3),
            inputs: BTreeMap::new(),
            rows: 4,
            refreshed: Refreshed::Full,
            elapsed: Duration::from_secs(2),
            findings: Vec::new(),
        }),
        fares(Layer::Gold, "gold.revenue", Standing::TriedAgain(Kind::Quality)),
        Event::Checked(vec![finding("positive", 2), finding("named", 0)]),
        Event::Checked(vec![finding("positive", 1)]),
        Event::Built { is_whole: false },
        Event::Built { is_whole: true },
    ] {
        observe(&event);
    }
    let text = metrics.text();
    let numbers: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    insta::assert_snapshot!(numbers.join("\n").replace(env!("CARGO_PKG_VERSION"), "VERSION"), @r#"
    icestream_build_info{version="VERSION"} 1
    icestream_memory_limit_bytes 1073741824
    icestream_records_total{layer="bronze",table="bronze.customers"} 0
    icestream_records_total{layer="bronze",table="bronze.orders"} 19
    icestream_rejected_records_total{layer="bronze",table="bronze.customers"} 0
    icestream_rejected_records_total{layer="bronze",table="bronze.orders"} 2
    icestream_rows_total{layer="bronze",table="bronze.customers"} 0
    icestream_rows_total{layer="bronze",table="bronze.orders"} 16
    icestream_rows_total{layer="silver",table="silver.orders"} 7
    icestream_rows_total{layer="gold",table="gold.revenue"} 4
    icestream_deleted_rows_total{layer="silver",table="silver.orders"} 3
    icestream_quarantined_rows_total{layer="silver",table="silver.orders"} 2
    icestream_dropped_rows_total{layer="silver",table="silver.orders"} 1
    icestream_bytes_total{layer="bronze",table="bronze.customers"} 0
    icestream_bytes_total{layer="bronze",table="bronze.orders"} 300
    icestream_commits_total{layer="bronze",table="bronze.customers"} 0
    icestream_commits_total{layer="bronze",table="bronze.orders"} 3
    icestream_commits_total{layer="silver",table="silver.orders"} 1
    icestream_commits_total{layer="gold",table="gold.revenue"} 1
    icestream_commit_seconds_total{layer="bronze",table="bronze.customers"} 0
    icestream_commit_seconds_total{layer="bronze",table="bronze.orders"} 0.75
    icestream_commit_seconds_total{layer="silver",table="silver.orders"} 1.5
    icestream_commit_seconds_total{layer="gold",table="gold.revenue"} 2
    icestream_last_commit_timestamp_seconds{layer="bronze",table="bronze.orders"} 1767225600.5
    icestream_last_commit_timestamp_seconds{layer="silver",table="silver.orders"} 1767225600.5
    icestream_last_commit_timestamp_seconds{layer="gold",table="gold.revenue"} 1767225600.5
    icestream_newest_change_timestamp_seconds{layer="bronze",table="bronze.orders"} 1767225590
    icestream_lag_records{layer="bronze",table="bronze.orders"} 12
    icestream_table_stopped{layer="bronze",table="bronze.customers"} 1
    icestream_table_stopped{layer="bronze",table="bronze.orders"} 0
    icestream_table_failing{layer="bronze",table="bronze.customers"} 0
    icestream_table_failing{layer="bronze",table="bronze.orders"} 0
    icestream_table_failing{layer="silver",table="silver.orders"} 0
    icestream_table_failing{layer="gold",table="gold.revenue"} 1
    icestream_failures_total{layer="bronze",table="bronze.customers"} 2
    icestream_failures_total{layer="bronze",table="bronze.orders"} 0
    icestream_failures_total{layer="silver",table="silver.orders"} 0
    icestream_failures_total{layer="gold",table="gold.revenue"} 1
    icestream_broken_rule_rows{table="silver.orders",rule="named",kind="that",severity="warn"} 0
    icestream_broken_rule_rows{table="silver.orders",rule="positive",kind="that",severity="warn"} 1
    icestream_builds_total 2
    icestream_failed_builds_total 1
    icestream_last_build_timestamp_seconds 1767225600.5
    icestream_in_hand_bytes 4096
    "#);
    // Whose partitions went to another process has no lag here.
    observe(&Event::Reading(InHand::default()));
    assert!(!metrics.text().contains("icestream_lag_records{"), "{}", metrics.text());
    observe(&fares(Layer::Bronze, "bronze.customers", Standing::Well));
    assert!(metrics.text().contains("icestream_table_stopped{layer=\"bronze\",table=\"bronze.customers\"} 0\n"));
}

#[test]
fn every_name_has_one_help_and_one_type_and_the_form_of_a_name() {
    let text = Metrics::new(Clock::system(), 1).text();
    let types: Vec<(&str, &str)> =
        text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut names: Vec<&str> = types.iter().map(|(name, _)| *name).collect();
    for (name, kind) in &types {
        assert!(name.starts_with("icestream_"), "{name}");
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
        assert!(text.contains(&format!("# HELP {name} ")), "{name}");
    }
    names.sort_unstable();
    let all = names.len();
    names.dedup();
    assert_eq!(names.len(), all, "each comes once");
}
