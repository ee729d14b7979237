//! The program: all it does is choose the allocator and hand over to the command line.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    icestream::cli::main()
}
