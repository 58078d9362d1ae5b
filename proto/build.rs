//! Compiles the `.proto` files in process: no protoc to install.

use std::{error::Error, path::PathBuf};

const FILES: [&str; 4] = [
    "aegis/cluster/v1/cluster.proto",
    "aegis/runtime/v1/runtime.proto",
    "aegis/storage/v1/storage.proto",
    "aegis/agent/v1/agent.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    // compile_fds knows no paths, so it cannot say this itself.
    println!("cargo:rerun-if-changed=aegis");
    println!("cargo:rerun-if-changed=published");
    let descriptors = protox::compile(FILES, ["."])?;
    tonic_prost_build::configure()
        .emit_rerun_if_changed(false)
        .include_file("protos.rs")
        .compile_fds(descriptors)?;
    // For tests alone.
    if std::env::var_os("CARGO_FEATURE_PUBLISHED").is_some() {
        let files = ["aegis/cluster/v1/cluster.proto", "aegis/runtime/v1/runtime.proto"];
        let descriptors = protox::compile(files, ["published"])?;
        tonic_prost_build::configure()
            .emit_rerun_if_changed(false)
            .build_server(false)
            .include_file("published.rs")
            .out_dir(published_directory()?)
            .compile_fds(descriptors)?;
    }
    Ok(())
}

/// A directory of its own: the generated files bear the names of their packages.
fn published_directory() -> Result<PathBuf, Box<dyn Error>> {
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?;
    let directory = PathBuf::from(out).join("published");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}
