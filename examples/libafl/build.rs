//! Finds the C library: $SHMEM_PROVIDERS_LIBS, or what pkg-config or the Python package say.

use std::{env, process::Command};

fn said_by(command: &[&str]) -> Option<String> {
    let output = Command::new(command[0]).args(&command[1..]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn main() {
    println!("cargo:rerun-if-env-changed=SHMEM_PROVIDERS_LIBS");
    println!("cargo:rerun-if-env-changed=PKG_CONFIG_PATH");
    let flags = env::var("SHMEM_PROVIDERS_LIBS")
        .ok()
        .or_else(|| said_by(&["pkg-config", "--libs", "shmem_providers"]))
        .or_else(|| said_by(&["python3", "-m", "shmem_providers", "--libs"]))
        .expect("no shmem_providers: set SHMEM_PROVIDERS_LIBS to the flags that link it");
    for flag in flags.split_whitespace() {
        println!("cargo:rustc-link-arg={flag}");
    }
}
