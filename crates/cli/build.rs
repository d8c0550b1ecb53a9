//! Compiles the part of etcd's API that the benchmark calls, and notes the compiler for its report.

use std::process::Command;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/etcd.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_server(false)
        .bytes(".")
        .compile_fds(descriptors)?;
    let compiler = Command::new(std::env::var("RUSTC")?)
        .arg("--version")
        .output()?;
    let version = String::from_utf8_lossy(&compiler.stdout);
    println!("cargo:rustc-env=TWINBFT_RUSTC={}", version.trim());
    println!(
        "cargo:rustc-env=TWINBFT_PROFILE={}",
        std::env::var("PROFILE")?
    );
    Ok(())
}
