//! Where the owner of a table stops, so that another one can go on or this one can die.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;

#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<AtomicBool>);

impl Gate {
    /// Gives up the turn once.
    pub async fn pass(&self) {
        let mut waited = false;
        poll_fn(|context| {
            if std::mem::replace(&mut waited, true) {
                return Poll::Ready(());
            }
            self.0.store(true, Ordering::SeqCst);
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }

    /// Whether the turn was given up since this was asked last.
    pub fn was_reached(&self) -> bool {
        self.0.swap(false, Ordering::SeqCst)
    }
}
