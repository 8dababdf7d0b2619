//! The crate's service and its client, over memfd: what `ServedShMemProvider` is for, where the kernel could do it, too.

use std::{collections::BTreeMap, env, io, process, time::Instant};

use shmem_providers::{
    RcShMem, RcShMemProvider, ServedShMem, ServedShMemProvider, ShMem, ShMemDescription,
    ShMemProvider, ShMemService,
    unix_shmem::memfd::{MemfdShMem, MemfdShMemProvider},
};

use crate::{Result, hex, unhex};

type Served = ServedShMemProvider<MemfdShMemProvider>;
type Map = RcShMem<ServedShMem<MemfdShMem>, Served>;

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
}

/// Runs the service until stdin ends.
pub fn run() -> Result<()> {
    let service = ShMemService::<MemfdShMemProvider>::start();
    if let ShMemService::Failed { err_msg, .. } = service {
        return Err(err_msg.into());
    }
    println!("started");
    io::stdin().lines().for_each(drop);
    Ok(())
}

/// A client with any number of maps, which requests name by numbers.
struct Client {
    provider: RcShMemProvider<Served>,
    maps: BTreeMap<usize, Map>,
    made: usize,
}

impl Client {
    fn keep(&mut self, map: Map) -> String {
        self.made += 1;
        let answer = format!("{} {} {}", self.made, map.id(), map.len());
        self.maps.insert(self.made, map);
        answer
    }

    fn map(&mut self, number: &str) -> Result<&mut Map> {
        Ok(self.maps.get_mut(&number.parse()?).ok_or("no such map")?)
    }

    fn attach(&mut self, id: &str, size: usize) -> Result<Map> {
        Ok(self
            .provider
            .shmem_from_description(ShMemDescription::from_string_and_size(id, size))?)
    }

    /// A child that writes to a map of its parent's, makes one of its own and lets go of all.
    fn fork(&mut self, number: &str, bytes: &[u8]) -> Result<i32> {
        self.provider.pre_fork()?;
        // SAFETY: this program has one thread, but for the crate's own.
        let pid = unsafe { fork() };
        if pid == 0 {
            let mut child = || -> Result<()> {
                self.provider.post_fork(true)?;
                self.map(number)?[..bytes.len()].copy_from_slice(bytes);
                let mut own = self.provider.new_shmem(bytes.len())?;
                own.copy_from_slice(bytes);
                let (id, size) = (own.id().to_string(), own.len());
                if self.attach(&id, size)?[..] != *bytes {
                    return Err("the child reads what it has not written".into());
                }
                self.maps.clear();
                Ok(())
            };
            process::exit(match child() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("child: {error}");
                    1
                }
            });
        }
        self.provider.post_fork(false)?;
        let mut status = -1;
        // SAFETY: `status` outlives the call.
        unsafe { waitpid(pid, &raw mut status, 0) };
        Ok(status)
    }

    /// So many maps at once, each attached to by its id.
    fn many(&mut self, count: usize, size: usize) -> Result<()> {
        let mut maps = Vec::new();
        for number in 0..count {
            let mut map = self.provider.new_shmem(size)?;
            map[..8].copy_from_slice(&number.to_le_bytes());
            maps.push(map);
        }
        for (number, map) in maps.iter().enumerate() {
            let again = self.attach(&map.id().to_string(), size)?;
            if again[..8] != number.to_le_bytes() {
                return Err(format!("map {number} is another one").into());
            }
        }
        Ok(())
    }

    /// Nanoseconds for each of so many new maps, or attachments to one, let go of at once.
    fn time(&mut self, what: &str, count: u32, size: usize) -> Result<u128> {
        let id = self.provider.new_shmem(size)?;
        let name = id.id().to_string();
        let start = Instant::now();
        for _ in 0..count {
            match what {
                "new" => drop(self.provider.new_shmem(size)?),
                _ => drop(self.attach(&name, size)?),
            }
        }
        Ok(start.elapsed().as_nanos() / u128::from(count))
    }

    fn answer(&mut self, line: &str) -> Result<String> {
        Ok(match line.split('\t').collect::<Vec<_>>()[..] {
            ["new", size] => {
                let map = self.provider.new_shmem(size.parse()?)?;
                self.keep(map)
            }
            ["attach", id, size] => {
                let map = self.attach(id, size.parse()?)?;
                self.keep(map)
            }
            ["read", number, len] => hex(&self.map(number)?[..len.parse()?]),
            ["write", number, bytes] => {
                let bytes = unhex(bytes)?;
                self.map(number)?[..bytes.len()].copy_from_slice(&bytes);
                "written".into()
            }
            ["drop", number] => {
                self.maps.remove(&number.parse()?).ok_or("no such map")?;
                "dropped".into()
            }
            ["fork", number, bytes] => self.fork(number, &unhex(bytes)?)?.to_string(),
            ["many", count, size] => {
                self.many(count.parse()?, size.parse()?)?;
                "done".into()
            }
            ["time", what, count, size] => {
                self.time(what, count.parse()?, size.parse()?)?.to_string()
            }
            _ => return Err(format!("no such request: {line}").into()),
        })
    }
}

/// A failed request is answered with its error, and the next one is read.
pub fn client() -> Result<()> {
    let mut client = Client {
        provider: RcShMemProvider::new()?,
        maps: BTreeMap::new(),
        made: 0,
    };
    println!("started {}", env::var("AFL_SHMEM_SERVICE_STARTED").is_ok());
    for line in io::stdin().lines() {
        println!(
            "{}",
            client
                .answer(&line?)
                .unwrap_or_else(|error| format!("error: {error}"))
        );
    }
    Ok(())
}
