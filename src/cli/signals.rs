//! The signals that ask the program to end, listened to from its first moment on.
//!
//! Most verbs are simply dropped: their half-written files go with them, and of a commit they leave what `kill -9` would.
//! One that has something to bring to an end says so for as long as it has ([`Signals::heed`]); the first signal is its own
//! business then, and the second one ends the program all the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

#[derive(Debug, Clone)]
pub struct Signals {
    came: watch::Receiver<Vec<u8>>,
    /// How many signals from the first one on are a verb's own business.
    heeded: Arc<AtomicUsize>,
}

/// As long as it lives, the first signal is its owner's business.
#[derive(Debug)]
pub(super) struct Heed(Signals);

impl Drop for Heed {
    fn drop(&mut self) {
        let heeded = self.0.came.borrow().len().min(1);
        self.0.heeded.store(heeded, Ordering::SeqCst);
    }
}

impl Signals {
    /// Listens from now on, in a runtime. A signal that cannot be listened to ends the process by itself, as it does
    /// everywhere.
    pub(super) fn listen() -> Self {
        let (tell, came) = watch::channel(Vec::new());
        for (kind, number) in [(SignalKind::interrupt(), 2), (SignalKind::terminate(), 15)] {
            let tell = tell.clone();
            if let Ok(mut listening) = signal(kind) {
                tokio::spawn(async move {
                    while listening.recv().await.is_some() {
                        tell.send_modify(|came| came.push(number));
                    }
                });
            }
        }
        Signals { came, heeded: Arc::default() }
    }

    /// For a caller who ends a verb by dropping it.
    pub fn none() -> Self {
        Signals { came: watch::channel(Vec::new()).1, heeded: Arc::default() }
    }

    /// The first signal is the caller's business, until what this returns is dropped.
    pub(super) fn heed(&self) -> Heed {
        self.heeded.store(1, Ordering::SeqCst);
        Heed(self.clone())
    }

    /// The first signal, if it came.
    pub(super) fn came(&self) -> Option<u8> {
        self.came.borrow().first().copied()
    }

    /// Waits for the first signal.
    pub(super) async fn asked(&self) -> u8 {
        self.behind(|| 0).await
    }

    /// Waits for a signal that is no verb's business.
    pub(super) async fn unheeded(&self) -> u8 {
        self.behind(|| self.heeded.load(Ordering::SeqCst)).await
    }

    /// Waits for the signal behind so many others.
    async fn behind(&self, others: impl Fn() -> usize) -> u8 {
        let mut came = self.came.clone();
        let found = came.wait_for(|came| came.len() > others()).await.map(|came| came[others()]);
        match found {
            Ok(signal) => signal,
            // Nobody listens.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn the_first_signal_is_for_who_heeds_it_and_the_second_is_not() {
        let (tell, came) = watch::channel(Vec::new());
        let signals = Signals { came, heeded: Arc::default() };
        let unheeded = || signals.unheeded().now_or_never();
        let heed = signals.heed();
        assert_eq!((signals.came(), unheeded()), (None, None));
        tell.send_modify(|came| came.push(15));
        assert_eq!((signals.came(), signals.asked().now_or_never(), unheeded()), (Some(15), Some(15), None));
        drop(heed);
        assert_eq!(unheeded(), None, "it was heeded");
        tell.send_modify(|came| came.push(2));
        assert_eq!((unheeded(), signals.came()), (Some(2), Some(15)));
    }

    #[test]
    fn a_signal_that_nobody_heeds_any_more_is_unheeded() {
        let (tell, came) = watch::channel(Vec::new());
        let signals = Signals { came, heeded: Arc::default() };
        drop(signals.heed());
        tell.send_modify(|came| came.push(15));
        assert_eq!(signals.unheeded().now_or_never(), Some(15));
        assert_eq!(Signals::none().asked().now_or_never(), None);
    }
}
