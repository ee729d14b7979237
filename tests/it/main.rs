//! Everything that needs no service: `cargo test`.

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

#[path = "../support/recorded.rs"]
mod recorded;

#[path = "../support/scrape.rs"]
mod scrape;

#[path = "../support/subject.rs"]
mod subject;

mod cli;
mod crash;
mod evolution;
mod gold;
mod maintain;
mod room;
mod silver;
mod simulation;
mod sql;
mod traps;

mod sqlite {
    crate::conformance!(crate::support::sqlite_world());
}
