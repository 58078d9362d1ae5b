//! Compiles the `.proto` files in process: no protoc to install.

use std::error::Error;

const FILES: [&str; 4] = [
    "aegis/cluster/v1/cluster.proto",
    "aegis/runtime/v1/runtime.proto",
    "aegis/storage/v1/storage.proto",
    "aegis/agent/v1/agent.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    // compile_fds knows no paths, so it cannot say this itself.
    println!("cargo:rerun-if-changed=aegis");
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .include_file("protos.rs")
        .compile_fds(descriptors)?;
    Ok(())
}
