//! Which partitions are this process's to read, and what of that was told.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::offsets::TopicPartition;

/// Each partition with the number of the gain that brought it: one that was lost and gained again has another.
pub(super) type Owned = BTreeMap<TopicPartition, u64>;

/// What is owned, as whoever decides it says: the group, or the topics there are.
#[derive(Debug, Default)]
pub(super) struct Ownership {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    owned: Owned,
    gains: u64,
}

impl Ownership {
    pub(super) fn gain(&self, partitions: impl IntoIterator<Item = TopicPartition>) {
        let mut state = self.lock();
        state.gains += 1;
        let (gain, before) = (state.gains, state.owned.len());
        for partition in partitions {
            state.owned.entry(partition).or_insert(gain);
        }
        let has_changed = state.owned.len() != before;
        drop(state);
        if has_changed {
            self.changed.notify_one();
        }
    }

    pub(super) fn lose(&self, partitions: impl IntoIterator<Item = TopicPartition>) {
        let mut state = self.lock();
        for partition in partitions {
            state.owned.remove(&partition);
        }
        drop(state);
        self.changed.notify_one();
    }

    pub(super) fn owned(&self) -> Owned {
        self.lock().owned.clone()
    }

    /// Waits for a change that nobody waited for yet.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The partitions in `of` that are not in `others`, or came to it by another gain.
pub(super) fn difference(of: &Owned, others: &Owned) -> Vec<TopicPartition> {
    of.iter().filter(|(at, gain)| others.get(at) != Some(gain)).map(|(at, _)| at.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_lost_and_gained_again_is_another() {
        let at = |partition| TopicPartition::new("t", partition);
        let ownership = Ownership::default();
        ownership.gain([at(0), at(1)]);
        let told = ownership.owned();
        ownership.gain([at(0)]);
        assert_eq!(ownership.owned(), told, "what is owned is not gained");
        ownership.lose([at(0)]);
        ownership.gain([at(0), at(2)]);
        let owned = ownership.owned();
        assert_eq!(difference(&told, &owned), [at(0)]);
        assert_eq!(difference(&owned, &told), [at(0), at(2)]);
    }
}
