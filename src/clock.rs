//! The wall clock, handed in so that tests can set it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// Tells the time in microseconds since 1970.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl Clock {
    pub fn system() -> Self {
        Clock(Arc::new(|| {
            #[allow(clippy::disallowed_methods, reason = "the one place that asks the system")]
            chrono::Utc::now().timestamp_micros()
        }))
    }

    /// A clock that stands still until it is set.
    pub fn manual(start_us: i64) -> (Self, Arc<AtomicI64>) {
        let hand = Arc::new(AtomicI64::new(start_us));
        let shown = hand.clone();
        (Clock(Arc::new(move || shown.load(Ordering::SeqCst))), hand)
    }

    pub fn now_us(&self) -> i64 {
        (self.0)()
    }

    pub fn now_ms(&self) -> i64 {
        self.now_us().div_euclid(1000)
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}
