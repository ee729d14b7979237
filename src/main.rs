//! The program: all it does is choose the allocator and hand over to the command line.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    #[cfg(feature = "failpoints")]
    die_where_told();
    icestream::cli::main()
}

/// Dies as `kill -9` has it when a step is reached for the given time, as in `ICESTREAM_DIE_AT=commit-before-swap=2`. For
/// the tests of crashes.
#[cfg(feature = "failpoints")]
fn die_where_told() {
    let Ok(told) = std::env::var("ICESTREAM_DIE_AT") else { return };
    let Some((step, Ok(times))) = told.split_once('=').map(|(step, times)| (step, times.parse::<u32>())) else {
        panic!("ICESTREAM_DIE_AT is a step and a number, as in `commit-before-swap=2`");
    };
    let reached = std::sync::atomic::AtomicU32::new(0);
    let die = move || {
        if reached.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1 == times {
            std::process::abort();
        }
    };
    if let Err(problem) = fail::cfg_callback(step, die) {
        panic!("{problem}");
    }
}
