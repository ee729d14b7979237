//! Every name that `/metrics` answers with. They are part of what users build on: renaming one breaks their dashboards.

use super::text::{Family, counter, gauge};

pub(super) const BUILD_INFO: Family = gauge("icestream_build_info", "1; the label says which version this is.");

// Of a table, with the labels `layer` and `table`.

pub(super) const RECORDS: Family =
    counter("icestream_records_total", "Records of the source that are committed, whatever they were.");
pub(super) const REJECTED_RECORDS: Family = counter(
    "icestream_rejected_records_total",
    "Those of them that could not become rows, and are kept with the reason.",
);
pub(super) const ROWS: Family = counter("icestream_rows_total", "Rows that commits have written.");
pub(super) const DELETED_ROWS: Family =
    counter("icestream_deleted_rows_total", "Rows that merges have deleted or replaced.");
pub(super) const QUARANTINED_ROWS: Family =
    counter("icestream_quarantined_rows_total", "Rows that merges have put into quarantine.");
pub(super) const DROPPED_ROWS: Family = counter("icestream_dropped_rows_total", "Rows that a rule has dropped.");
pub(super) const BYTES: Family = counter("icestream_bytes_total", "Bytes of the data files that commits have added.");
pub(super) const COMMITS: Family = counter("icestream_commits_total", "Commits to the table.");
pub(super) const COMMIT_SECONDS: Family = counter(
    "icestream_commit_seconds_total",
    "Seconds that commits took; of silver and gold tables, with the merge or refresh before it.",
);
pub(super) const LAST_COMMIT: Family =
    gauge("icestream_last_commit_timestamp_seconds", "When this process last committed to the table.");
pub(super) const NEWEST_CHANGE: Family = gauge(
    "icestream_newest_change_timestamp_seconds",
    "When the source made the newest change that this process has committed, by the source's clock.",
);
pub(super) const LAG: Family = gauge(
    "icestream_lag_records",
    "Offsets of the partitions this process reads that are not in the table yet, by what the client last heard.",
);
pub(super) const STOPPED: Family =
    gauge("icestream_table_stopped", "1 where the table has stopped and will not go on by itself.");
pub(super) const FAILING: Family = gauge("icestream_table_failing", "1 where the table failed and is tried again.");
pub(super) const FAILURES: Family =
    counter("icestream_failures_total", "How often the table failed, or its build did.");

// Of a rule or an audit, with the labels `table`, `rule`, `kind` and `severity`.

pub(super) const BROKEN_RULE_ROWS: Family =
    gauge("icestream_broken_rule_rows", "Rows that broke the rule, or that the audit found, when it was last asked.");

// Of the process.

pub(super) const BUILDS: Family = counter("icestream_builds_total", "Passes over silver and gold that have ended.");
pub(super) const FAILED_BUILDS: Family =
    counter("icestream_failed_builds_total", "Those of them in which something failed.");
pub(super) const LAST_BUILD: Family = gauge(
    "icestream_last_build_timestamp_seconds",
    "When a pass over silver and gold last ended in which nothing failed.",
);
pub(super) const IN_HAND_BYTES: Family =
    gauge("icestream_in_hand_bytes", "Memory of records and rows that are read and not in a file yet.");
pub(super) const MEMORY_LIMIT_BYTES: Family =
    gauge("icestream_memory_limit_bytes", "The setting `memory`, which queues, writers, merges and queries share.");
