//! Makes the types of `proto/` without a compiler for it on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let file = "proto/leasehold/v1/sync.proto";
    println!("cargo:rerun-if-changed={file}");
    let described = protox::compile([file], ["proto"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(described)?;
    Ok(())
}
