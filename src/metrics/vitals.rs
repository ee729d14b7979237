//! Whether the process lives: whether what goes round in it still does.
//!
//! **Nothing outside counts.** A broker, catalog or bucket that is away fails tables, which are tried again; a restart
//! would mend nothing of it. Each wait for one of them has an end of its own, well within what is allowed here.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use crate::clock::Clock;
use crate::pipeline::Turning;

/// How long nothing may be heard of ingestion. It goes round several times a second; what it waits for itself are answers
/// of brokers (15 s each) and tables that are opened, each of which is a sign of life.
const INGEST_S: i64 = 10 * 60;

/// How long nothing may be heard of building. A sign of life comes with each table, and the first merge of a long history
/// takes hours; whoever ended it for that would have it begin anew for ever. That builds fall behind is for an alert.
const BUILD_S: i64 = 24 * 3600;

/// The last sign of life of each, in microseconds since 1970; `AT_REST` where none is to be expected.
#[derive(Debug)]
pub(super) struct Vitals {
    ingest: AtomicI64,
    build: AtomicI64,
    is_ready: AtomicBool,
}

const AT_REST: i64 = i64::MIN;

impl Vitals {
    /// Of a process that begins, which is a sign of life: it is to read, and may hang before the first table is open.
    pub(super) fn new(clock: &Clock) -> Self {
        Vitals {
            ingest: AtomicI64::new(clock.now_us()),
            build: AtomicI64::new(AT_REST),
            is_ready: AtomicBool::new(false),
        }
    }

    fn of(&self, turning: Turning) -> &AtomicI64 {
        match turning {
            Turning::Ingest => &self.ingest,
            Turning::Build => &self.build,
        }
    }

    pub(super) fn turned(&self, turning: Turning, clock: &Clock) {
        self.of(turning).store(clock.now_us(), Ordering::Relaxed);
    }

    pub(super) fn ended(&self, turning: Turning) {
        self.of(turning).store(AT_REST, Ordering::Relaxed);
    }

    /// Tables are open, and records are asked for.
    pub(super) fn reads(&self) {
        self.is_ready.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Relaxed)
    }

    /// What stands still, and since when.
    pub(super) fn standstill(&self, clock: &Clock) -> Option<String> {
        let now = clock.now_us();
        [(Turning::Ingest, "ingestion", INGEST_S), (Turning::Build, "building", BUILD_S)].into_iter().find_map(
            |(turning, name, most_s)| {
                let last = self.of(turning).load(Ordering::Relaxed);
                let still_s = (last != AT_REST).then(|| now.saturating_sub(last) / 1_000_000)?;
                let since = chrono::DateTime::from_timestamp_micros(last)?;
                let since = since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true);
                (still_s > most_s).then(|| format!("{name} stands still since {since}, for {still_s} s"))
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_round_and_no_longer_does_stands_still() {
        const START_S: i64 = 1_767_225_600;
        let (clock, hand) = Clock::manual(START_S * 1_000_000);
        let vitals = Vitals::new(&clock);
        let check = |at_s: i64, expected: Option<&str>| {
            hand.store((START_S + at_s) * 1_000_000, Ordering::SeqCst);
            assert_eq!(vitals.standstill(&clock).as_deref(), expected, "after {at_s} s");
        };
        check(600, None);
        check(700, Some("ingestion stands still since 2026-01-01T00:00:00Z, for 700 s"));
        check(0, None);
        vitals.turned(Turning::Ingest, &clock);
        vitals.turned(Turning::Build, &clock);
        check(600, None);
        check(601, Some("ingestion stands still since 2026-01-01T00:00:00Z, for 601 s"));
        vitals.turned(Turning::Ingest, &clock);
        // The clock may be set back.
        check(-5, None);
        check(700, None);
        vitals.ended(Turning::Ingest);
        check(86_400, None);
        check(86_401, Some("building stands still since 2026-01-01T00:00:00Z, for 86401 s"));
        vitals.turned(Turning::Build, &clock);
        check(86_402, None);
    }
}
