//! The `leasehold` program; everything is in the library.

/// A call allocates some dozens of small things and a grant is a few more: this one wastes less on each than the system's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    leasehold::cli::run()
}
