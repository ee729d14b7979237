//! Everything that needs services: object storage, Glue, a REST catalog, other engines. `tests/run` starts them and says
//! where they are in `ICESTREAM_SERVICES_FILE`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a test binary exports nothing")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/auditor.rs"]
mod auditor;

#[path = "../support/canonical.rs"]
mod canonical;

#[path = "../support/conformance.rs"]
mod conformance;

#[path = "../support/proxy.rs"]
mod proxy;

#[path = "../support/recorded.rs"]
mod recorded;

#[path = "../support/scrape.rs"]
mod scrape;

#[path = "../support/subject.rs"]
mod subject;

mod backfill;
mod demo;
mod discover;
mod faults;
mod files;
mod fixtures;
mod foreign;
mod groups;
mod ingest_faults;
mod kafka;
mod project;
mod readers;
mod security;
mod services;
mod verbs;
mod verify;

mod glue {
    crate::conformance!(crate::services::glue_world());
}

mod rest {
    crate::conformance!(crate::services::rest_world());
}
