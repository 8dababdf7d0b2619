//! Puts the seed crate under the control of `test_seed.py`: argv says how to get a segment, then stdin brings one
//! request a line until it ends. Tabs separate the fields of a request, so that arguments of a program may hold spaces.

use std::{env, error::Error, io, process};

#[cfg(target_os = "linux")]
use shmem_providers::unix_shmem::ashmem::AshmemShMemProvider;
#[cfg(unix)]
use shmem_providers::{
    MmapShMem, MmapShMemProvider, UnixShMemProvider, unix_shmem::memfd::MemfdShMemProvider,
};
use shmem_providers::{ShMem, ShMemDescription, ShMemProvider, StdShMemProvider};

#[cfg(unix)]
mod service;

const USAGE: &str = "usage: seed create PROVIDER SIZE | attach PROVIDER ID SIZE | attach-env PROVIDER NAME | serve | client";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn open<P: ShMemProvider>(args: &[&str]) -> Result<P::ShMem> {
    let mut provider = P::new()?;
    Ok(match args {
        ["create", _, size] => provider.new_shmem(size.parse()?)?,
        ["attach", _, id, size] => provider
            .shmem_from_description(ShMemDescription::from_string_and_size(id, size.parse()?))?,
        ["attach-env", _, name] => provider.existing_from_env(name)?,
        _ => return Err(USAGE.into()),
    })
}

/// On Linux only [`MmapShMem::new`] gives a descriptor as the id; no provider attaches it.
#[cfg(unix)]
fn create_mmap_fd(size: &str) -> Result<MmapShMem> {
    let name = format!("libafl_{}_fd", process::id());
    Ok(MmapShMem::new(size.parse()?, name, true)?.persist()?)
}

fn unhex(hex: &str) -> Result<Vec<u8>> {
    let byte = |at| Ok(u8::from_str_radix(&hex[at..at + 2], 16)?);
    (0..hex.len()).step_by(2).map(byte).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn serve(shmem: &mut impl ShMem) -> Result<()> {
    println!("{} {}", shmem.id(), shmem.len());
    for line in io::stdin().lines() {
        let line = line?;
        match line.split('\t').collect::<Vec<_>>()[..] {
            ["read", offset, len] => {
                let offset: usize = offset.parse()?;
                let bytes = &shmem[offset..offset + len.parse::<usize>()?];
                println!("{}", hex(bytes));
            }
            ["write", offset, hex] => {
                let (offset, bytes) = (offset.parse::<usize>()?, unhex(hex)?);
                shmem[offset..offset + bytes.len()].copy_from_slice(&bytes);
                println!("written");
            }
            ["exec", name, program, ref args @ ..] => {
                // SAFETY: this program has one thread.
                unsafe { shmem.write_to_env(name)? };
                let output = process::Command::new(program).args(args).output()?;
                if !output.status.success() {
                    let message = String::from_utf8_lossy(&output.stderr);
                    return Err(message.replace('\n', " | ").into());
                }
                println!("{}", String::from_utf8_lossy(&output.stdout).trim_end());
            }
            _ => return Err(format!("no such request: {line}").into()),
        }
    }
    Ok(())
}

fn run() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    #[cfg(unix)]
    match args[..] {
        ["serve"] => return service::run(),
        ["client"] => return service::client(),
        _ => {}
    }
    match args.get(1) {
        #[cfg(unix)]
        Some(&"sysv") => serve(&mut open::<UnixShMemProvider>(&args)?),
        #[cfg(unix)]
        Some(&"mmap") => serve(&mut open::<MmapShMemProvider>(&args)?),
        #[cfg(unix)]
        Some(&"memfd") => serve(&mut open::<MemfdShMemProvider>(&args)?),
        #[cfg(target_os = "linux")]
        Some(&"ashmem") => serve(&mut open::<AshmemShMemProvider>(&args)?),
        Some(&"std") => serve(&mut open::<StdShMemProvider>(&args)?),
        #[cfg(unix)]
        Some(&"mmap-fd") if args[0] == "create" && args.len() == 3 => {
            serve(&mut create_mmap_fd(args[2])?)
        }
        _ => Err(USAGE.into()),
    }
}

fn main() -> process::ExitCode {
    match run() {
        Ok(()) => process::ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            process::ExitCode::FAILURE
        }
    }
}
