//! LLMP, LibAFL's messages, between processes: a broker, and its clients.

use std::{
    thread::{sleep, yield_now},
    time::{Duration, Instant},
};

use libafl_bolts::{
    ClientId, Error,
    llmp::{Flags, LlmpBroker, LlmpBrokerInner, LlmpClient, LlmpHook, LlmpMsgHookResult, Tag},
    shmem::{ShMem, ShMemProvider},
    tuples::tuple_list,
};

/// A page of LLMP has 1 MiB: each batch takes a new one.
const BATCH: usize = 1024;
const BATCHES: usize = 200;
const MESSAGE: [u8; 1024] = [0x5a; 1024];

const DATA: Tag = Tag(1);
const TAKEN: Tag = Tag(2);

/// Hands everything on to all clients, without a pause.
pub fn broker<SP: ShMemProvider>(port: u16) -> Result<(), Error> {
    let mut broker = LlmpBroker::create_attach_to_tcp(SP::new()?, tuple_list!(), port)?;
    loop {
        if !broker.broker_once()? {
            yield_now();
        }
    }
}

/// Keeps what comes to itself.
struct Swallow;

impl<SHM: ShMem, SP: ShMemProvider<ShMem = SHM>> LlmpHook<SHM, SP> for Swallow {
    fn on_new_message(
        &mut self,
        _broker: &mut LlmpBrokerInner<SHM, SP>,
        _client: ClientId,
        _tag: &mut Tag,
        _flags: &mut Flags,
        _message: &mut [u8],
        _more: &mut Vec<(Tag, Flags, Vec<u8>)>,
    ) -> Result<LlmpMsgHookResult, Error> {
        Ok(LlmpMsgHookResult::Handled)
    }
}

/// A broker as LibAFL's fuzzers have it, which looks for messages every 5 milliseconds.
pub fn sink<SP: ShMemProvider>(port: u16) -> Result<(), Error> {
    let mut broker = LlmpBroker::create_attach_to_tcp(SP::new()?, tuple_list!(Swallow), port)?;
    broker.loop_forever(Some(Duration::from_millis(5)));
    Ok(())
}

fn wait_for<SP: ShMemProvider>(client: &mut LlmpClient<SP::ShMem, SP>, wanted: Tag) -> Result<(), Error> {
    loop {
        match client.recv_buf()? {
            Some((_, tag, _)) if tag == wanted => return Ok(()),
            Some(_) => {}
            None => yield_now(),
        }
    }
}

/// Sends a batch whenever the receiver has taken the last one, and prints how many messages a second went through.
pub fn send<SP: ShMemProvider>(port: u16) -> Result<(), Error> {
    let mut client = LlmpClient::create_attach_to_tcp(SP::new()?, port)?;
    wait_for(&mut client, TAKEN)?;
    let start = Instant::now();
    for _ in 0..BATCHES {
        for _ in 0..BATCH {
            client.send_buf(DATA, &MESSAGE)?;
        }
        wait_for(&mut client, TAKEN)?;
    }
    println!("{}", (BATCHES * BATCH) as f64 / start.elapsed().as_secs_f64());
    Ok(())
}

pub fn receive<SP: ShMemProvider>(port: u16) -> Result<(), Error> {
    let mut client = LlmpClient::create_attach_to_tcp(SP::new()?, port)?;
    loop {
        client.send_buf(TAKEN, &[])?;
        for _ in 0..BATCH {
            wait_for(&mut client, DATA)?;
        }
    }
}

/// Sends for ever, waiting only for the broker to attach to the page that it was told of last: whoever kills this
/// process will nearly always meet it there.
pub fn stream<SP: ShMemProvider>(port: u16) -> Result<(), Error> {
    let mut client = LlmpClient::create_attach_to_tcp(SP::new()?, port)?;
    println!("sends");
    loop {
        while !client.sender().safe_to_unmap() {
            sleep(Duration::from_micros(100));
        }
        client.send_buf(DATA, &MESSAGE)?;
    }
}
