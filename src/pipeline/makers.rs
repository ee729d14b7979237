//! Threads that make columns of records, as many as there are cores.
//!
//! They are few and always the same, because a thread holds on to the memory that it handed out and that others gave
//! back: on a pool of threads, which takes whichever is idle, every one of them would come to hold a chunk's worth.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// Hands out work; the threads end when the last of these is gone.
#[derive(Debug, Clone)]
pub(super) struct Makers {
    jobs: mpsc::Sender<Job>,
}

impl Makers {
    pub(super) fn start() -> std::io::Result<Self> {
        let (jobs, given) = mpsc::channel::<Job>();
        let given = Arc::new(Mutex::new(given));
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            let given = given.clone();
            std::thread::Builder::new().name("columns".to_string()).spawn(move || {
                loop {
                    // Released before the work begins.
                    let job = given.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    match job {
                        Ok(job) => job(),
                        Err(_) => return,
                    }
                }
            })?;
        }
        Ok(Makers { jobs })
    }

    /// What the work gives; `None` when no thread is left to do it. A panic goes on in who asked for it.
    pub(super) async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (tell, told) = oneshot::channel();
        let job = move || drop(tell.send(catch_unwind(AssertUnwindSafe(work))));
        self.jobs.send(Box::new(job)).ok()?;
        match told.await.ok()? {
            Ok(made) => Some(made),
            Err(panic) => resume_unwind(panic),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_elsewhere_and_a_panic_comes_back() {
        let makers = Makers::start().unwrap();
        let here = std::thread::current().id();
        assert!(makers.run(move || std::thread::current().id() != here).await.unwrap());
        let asked = makers.clone();
        let panicked = tokio::spawn(async move { asked.run(|| panic!("on purpose")).await }).await;
        assert!(panicked.unwrap_err().is_panic());
        let many = (0..100).map(|number| makers.run(move || number * 2));
        let sum: i32 = futures::future::join_all(many).await.into_iter().flatten().sum();
        assert_eq!(sum, 9900);
    }
}
