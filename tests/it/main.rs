//! Everything that needs no service: `cargo test`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]
#![allow(unreachable_pub, reason = "a test binary exports nothing")]

#[path = "../support/mod.rs"]
mod support;

#[path = "../support/conformance.rs"]
mod conformance;

mod cli;
mod crash;
mod silver;

mod sqlite {
    crate::conformance!(crate::support::sqlite_world());
}
