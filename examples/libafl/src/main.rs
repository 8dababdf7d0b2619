//! LibAFL on shmem_providers, beside LibAFL's own provider: see README.md.

mod compare;
mod fuzzer;
mod messages;
mod provider;

use std::{env, process::exit, thread::sleep, time::Duration};

use libafl_bolts::{
    Error,
    shmem::{ShMemProvider, StdShMemProvider},
};
use provider::CShMemProvider;

const USAGE: &str = "compare [ROUNDS] | fuzz PORT STARTS | broker PORT | sink PORT | send PORT | receive PORT | \
                     stream PORT | open";

/// The name that stands for LibAFL's own provider.
const SEED: &str = "seed";

fn play<SP: ShMemProvider>(role: &[&str]) -> Result<(), Error> {
    let port = |text: &str| text.parse::<u16>().map_err(Error::from);
    match role {
        ["fuzz", at, starts] => fuzzer::fuzz::<SP>(port(at)?, starts),
        ["broker", at] => messages::broker::<SP>(port(at)?),
        ["sink", at] => messages::sink::<SP>(port(at)?),
        ["send", at] => messages::send::<SP>(port(at)?),
        ["receive", at] => messages::receive::<SP>(port(at)?),
        ["stream", at] => messages::stream::<SP>(port(at)?),
        ["open"] => loop {
            SP::new()?;
            sleep(Duration::from_millis(10));
        },
        _ => Err(Error::illegal_argument(USAGE)),
    }
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["compare", ref rest @ ..] => compare::compare(rest.first().map_or(Ok(1), |text| text.parse()).unwrap_or(1)),
        _ if env::var("SHMEM_PROVIDER").is_ok_and(|name| name == SEED) => play::<StdShMemProvider>(&arguments),
        _ => play::<CShMemProvider>(&arguments),
    };
    match result {
        Ok(()) | Err(Error::ShuttingDown) => {}
        Err(error) => {
            eprintln!("{error}");
            exit(1);
        }
    }
}
