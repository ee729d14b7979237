//! Memory that nobody counts: what was freed and is kept by the allocator.
//!
//! Giving memory back to the system and touching it anew costs a page fault for every 4 KiB: a tenth of the processor
//! where much is read or merged. Keeping it makes the process larger than its budget. So it is kept while the process is
//! well within the budget, and all of it is given back when it comes near: `keep_within` says what the budget is.

use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Freed memory is given back when less than this part of the budget is left. That is for what is taken until the next
/// look, and for what was freed by a thread that did not take it, which nobody can give back but the one that did.
const LEFT: f64 = 0.25;

/// With less left than this it is given back as well, but not before half of the budget is taken.
const LEFT_BYTES: u64 = 256 << 20;

/// How fast a process may grow: no machine touches new memory faster, with the few cores that a budget of this size has.
const GROWTH_PER_SECOND: f64 = 4e9;

/// How long the allocator keeps what was freed where nobody asks for it back, in milliseconds: longer than a commit takes
/// that has little to do, so that the next one finds it.
const KEPT_MS: libc::c_long = 10_000;

/// Looking costs microseconds, so a process at rest is looked at now and then, and one that is near its budget often.
const LOOKS: std::ops::Range<Duration> = Duration::from_millis(5)..Duration::from_millis(500);

/// One that stays near its budget and has nothing to give back is looked at less and less often, up to this.
const LOOK_WHERE_NOTHING_IS_FREED: Duration = Duration::from_millis(50);

/// A thread's allocations that were not the quick ones, until it looks for what others have freed: near the budget, and as
/// often as it can be had.
const COLLECT_OFTEN: libc::c_long = 1000;

/// `mi_option_purge_delay`, which has had this number since the option is there.
static PURGE_DELAY: AllocatorOption = AllocatorOption::new(15, 1000, KEPT_MS);

/// `mi_option_generic_collect`.
static COLLECT_EVERY: AllocatorOption = AllocatorOption::new(34, 10_000, COLLECT_OFTEN);

static BUDGET: AtomicU64 = AtomicU64::new(u64::MAX);

/// Has the allocator give back what was freed whenever the process takes nearly so many bytes, from now on. Said again, the
/// last budget counts.
pub fn keep_within(budget: u64) {
    static WATCHING: Once = Once::new();
    BUDGET.store(budget, Ordering::Relaxed);
    WATCHING.call_once(|| {
        take_small_pages();
        // Where nobody watches, freed memory goes back after a second, as the allocator has it by itself.
        let _ = std::thread::Builder::new().name("memory".to_string()).spawn(watch);
    });
}

/// A runtime whose threads for system calls end soon when they have nothing to do: what they took and others have freed goes
/// with them. Without a number of workers, it has as many as there are cores.
pub fn runtime(workers: Option<usize>) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(workers) = workers {
        builder.worker_threads(workers);
    }
    builder.thread_keep_alive(Duration::from_millis(500)).enable_all().build()
}

fn watch() {
    // Where the system does not say it once, it never does.
    if resident().is_none() {
        return;
    }
    PURGE_DELAY.set(true);
    let mut last_pause = LOOKS.start;
    loop {
        let budget = BUDGET.load(Ordering::Relaxed);
        let near = near(budget);
        let taken = resident().unwrap_or(0);
        // A thread gives back what others have freed of its own only when it looks, and nobody can look for it.
        COLLECT_EVERY.set(taken >= near);
        let given_back = match taken >= near {
            true => {
                give_back();
                taken.saturating_sub(resident().unwrap_or(taken))
            }
            false => 0,
        };
        last_pause = match taken >= near && given_back < budget / 256 {
            true => (last_pause * 2).min(LOOK_WHERE_NOTHING_IS_FREED),
            false => pause(near.saturating_sub(taken)),
        };
        std::thread::sleep(last_pause);
    }
}

/// From where on freed memory is given back.
fn near(budget: u64) -> u64 {
    budget - ((budget as f64 * LEFT) as u64).max(LEFT_BYTES).min(budget / 2)
}

/// How long a process cannot come near its budget that is so many bytes away from it.
fn pause(distance: u64) -> Duration {
    Duration::from_secs_f64(distance as f64 / GROWTH_PER_SECOND).clamp(LOOKS.start, LOOKS.end)
}

/// How many bytes the process has in memory, where the system says so.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Of a page of 2 MiB much may never be used, and no part of it can be given back by itself.
#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn take_small_pages() {
    let [yes, unused]: [libc::c_ulong; 2] = [1, 0];
    // SAFETY: it takes numbers only. A kernel that does not know of it refuses, and changes nothing.
    unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, yes, unused, unused, unused) };
}

#[cfg(not(target_os = "linux"))]
fn take_small_pages() {}

#[allow(unsafe_code)]
fn give_back() {
    // SAFETY: it takes no pointer, may be called by any thread, and touches nothing but what was freed.
    unsafe { libmimalloc_sys::mi_collect(true) }
}

/// An option of the allocator that its crate has no name for.
struct AllocatorOption {
    number: libmimalloc_sys::mi_option_t,
    by_itself: libc::c_long,
    ours: libc::c_long,
    is_ours: AtomicBool,
}

impl AllocatorOption {
    const fn new(number: libmimalloc_sys::mi_option_t, by_itself: libc::c_long, ours: libc::c_long) -> Self {
        AllocatorOption { number, by_itself, ours, is_ours: AtomicBool::new(false) }
    }

    /// Sets it to our value or back. Where it is neither the allocator's own nor ours, somebody has set it, or the number
    /// means something else: it stays.
    fn set(&self, to_ours: bool) {
        let was_ours = self.is_ours.load(Ordering::Relaxed);
        let value = |is_ours| if is_ours { self.ours } else { self.by_itself };
        if was_ours == to_ours || self.get() != value(was_ours) {
            return;
        }
        // SAFETY: it takes numbers only. Other threads may read the old one or the new one, and either does no harm.
        #[allow(unsafe_code)]
        unsafe {
            libmimalloc_sys::mi_option_set(self.number, value(to_ours));
        }
        self.is_ours.store(to_ours, Ordering::Relaxed);
    }

    fn get(&self) -> libc::c_long {
        // SAFETY: it takes a number only.
        #[allow(unsafe_code)]
        unsafe {
            libmimalloc_sys::mi_option_get(self.number)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_allocator_is_told_how_long_to_keep_what_was_freed_and_how_often_to_look_for_it() {
        if std::env::vars_os().any(|(name, _)| name.to_string_lossy().starts_with("MIMALLOC_")) {
            return;
        }
        for option in [&PURGE_DELAY, &COLLECT_EVERY] {
            option.set(true);
            assert_eq!(option.get(), option.ours);
            option.set(false);
            assert_eq!(option.get(), option.by_itself);
        }
    }

    #[test]
    #[allow(unsafe_code)]
    fn what_somebody_else_has_set_stays() {
        // How many errors it tells, which it asks for once, at its start.
        const MAX_ERRORS: libmimalloc_sys::mi_option_t = 19;
        let not_known = AllocatorOption::new(MAX_ERRORS, 7, 8);
        not_known.set(true);
        assert_eq!(not_known.get(), 32);
        let option = AllocatorOption::new(MAX_ERRORS, 32, 8);
        option.set(true);
        // SAFETY: it takes numbers only, and nobody else looks at this one.
        unsafe { libmimalloc_sys::mi_option_set(MAX_ERRORS, 5) };
        option.set(false);
        assert_eq!(option.get(), 5);
    }

    #[test]
    fn the_larger_the_budget_the_less_of_it_is_left() {
        let near_mib = [100, 512, 640, 1024, 4096].map(|mib| near(mib << 20) >> 20);
        assert_eq!(near_mib, [50, 256, 384, 768, 3072]);
    }

    #[test]
    fn the_nearer_the_budget_the_sooner_the_next_look() {
        assert_eq!(pause(0), LOOKS.start);
        assert_eq!(pause(400_000_000), Duration::from_millis(100));
        assert_eq!(pause(u64::MAX), LOOKS.end);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_says_how_much_is_taken() {
        let before = resident().unwrap();
        let taken = std::hint::black_box(vec![1_u8; 256 << 20]);
        let after = resident().unwrap();
        // Other tests take and give back as well.
        assert!(after.saturating_sub(before) >= 128 << 20, "{before} and {after}, with {} taken", taken.len());
    }
}
