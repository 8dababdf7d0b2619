//! Runs a fuzzer, and messages between three processes, with LibAFL's own provider and with those of the library, kills
//! them, and looks at what they leave. It counts all segments and names of the machine: run.sh gives it one of its own.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::mpsc::{RecvTimeoutError, channel},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use libafl_bolts::Error;

use crate::{SEED, provider::CShMemProvider};

const MECHANISMS: [&str; 4] = ["posix", "sysv", "std", SEED];
const FUZZING: Duration = Duration::from_secs(5);
const KILLS: usize = 100;
const MINUTE: Duration = Duration::from_secs(62);
const PATIENCE: Duration = Duration::from_secs(20);
/// Of the speed of LibAFL's own provider: below it is no chance, however busy the machine is.
const FLOOR: f64 = 0.2;

fn lingers(mechanism: &str) -> bool {
    matches!(mechanism, "posix" | "sysv")
}

// ---- Processes

/// A process and those that it forks, which are killed with it.
struct Group(Child);

impl Group {
    fn start(mechanism: &str, role: &[&str]) -> Result<Self, Error> {
        let child = Command::new(env::current_exe()?)
            .args(role)
            .env("SHMEM_PROVIDER", mechanism)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        Ok(Self(child))
    }

    /// Starts the one that the others connect to, and gives its port.
    fn serve(mechanism: &str, role: &str, more: &[&str]) -> Result<(Self, String), Error> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let text = port.to_string();
        let mut group = Self::start(mechanism, &[&[role, &text], more].concat())?;
        let end = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > end || !group.lives() {
                return Err(Error::illegal_state(format!("{mechanism}: no {role} at port {port}")));
            }
            sleep(Duration::from_millis(1));
        }
        Ok((group, text))
    }

    fn lives(&mut self) -> bool {
        matches!(self.0.try_wait(), Ok(None))
    }

    /// A line that it prints. None: it ended, or the broker that it needs did.
    fn line(&mut self, broker: &mut Self) -> Option<String> {
        let (sender, receiver) = channel();
        let mut output = BufReader::new(self.0.stdout.take()?);
        spawn(move || {
            let mut line = String::new();
            let _ = output.read_line(&mut line);
            let _ = sender.send(line);
        });
        loop {
            match receiver.recv_timeout(Duration::from_millis(10)) {
                Ok(line) => return (!line.is_empty()).then(|| line.trim().to_string()),
                Err(RecvTimeoutError::Timeout) if broker.lives() => {}
                Err(_) => return None,
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        unsafe { libc::kill(-self.0.id().cast_signed(), libc::SIGKILL) };
        let _ = self.0.wait();
    }
}

// ---- What is left

/// The ids and sizes of all System V segments.
fn segments() -> Result<Vec<(i32, usize)>, Error> {
    let table = fs::read_to_string("/proc/sysvipc/shm")?;
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some((fields.get(1)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    };
    Ok(table.lines().skip(1).filter_map(row).collect())
}

fn names() -> Result<usize, Error> {
    Ok(fs::read_dir("/dev/shm")?.count())
}

/// Removes what killed processes left. The minute that something lingers begins when this first finds it.
fn reap() -> Result<(), Error> {
    for mechanism in ["posix", "sysv"] {
        CShMemProvider::open(mechanism)?.reap()?;
    }
    Ok(())
}

/// Does something, and gives the System V segments that are left of it. LibAFL's own are removed, as nobody else would.
fn leaving<T>(mechanism: &str, act: impl FnOnce() -> Result<T, Error>) -> Result<(T, Vec<usize>), Error> {
    let before = segments()?;
    let result = act()?;
    let left: Vec<_> = segments()?.into_iter().filter(|segment| !before.contains(segment)).collect();
    for (id, _) in left.iter().filter(|_| mechanism == SEED) {
        unsafe { libc::shmctl(*id, libc::IPC_RMID, core::ptr::null_mut()) };
    }
    Ok((result, left.into_iter().map(|(_, size)| size).collect()))
}

// ---- What is measured

/// How often a fuzzer that crashes starts again. None: it, or its broker, ended.
fn starts(mechanism: &str) -> Result<Option<f64>, Error> {
    let file = env::temp_dir().join("libafl_starts");
    let _ = fs::remove_file(&file);
    let path = file.to_string_lossy().into_owned();
    let _reaper = (mechanism == "posix").then(|| Group::start(mechanism, &["open"])).transpose()?;
    let (mut broker, port) = Group::serve(mechanism, "fuzz", &[&path])?;
    let mut fuzzer = Group::start(mechanism, &["fuzz", &port, &path])?;
    sleep(FUZZING);
    let starts = fs::metadata(&file).map_or(0, |file| file.len());
    Ok((broker.lives() && fuzzer.lives()).then(|| starts as f64 / FUZZING.as_secs_f64()))
}

/// Messages a second from one process to another by way of a broker. None: one of them ended.
fn messages(mechanism: &str) -> Result<Option<f64>, Error> {
    let (mut broker, port) = Group::serve(mechanism, "broker", &[])?;
    let mut sender = Group::start(mechanism, &["send", &port])?;
    let _receiver = Group::start(mechanism, &["receive", &port])?;
    Ok(sender.line(&mut broker).and_then(|line| line.parse().ok()))
}

/// How many of the killed senders take the broker along.
fn brokers_lost(mechanism: &str) -> Result<usize, Error> {
    let (mut broker, mut port) = Group::serve(mechanism, "sink", &[])?;
    let mut lost = 0;
    for kill in 0..KILLS {
        let mut sender = Group::start(mechanism, &["stream", &port])?;
        if sender.line(&mut broker).is_some() {
            sleep(Duration::from_micros(371 * (kill as u64 * 29 % 53)));
            drop(sender);
            sleep(Duration::from_millis(15)); // it looks every five
        }
        if !broker.lives() {
            lost += 1;
            (broker, port) = Group::serve(mechanism, "sink", &[])?;
        }
    }
    Ok(lost)
}

#[derive(Default)]
struct Figures {
    starts: f64,
    messages: f64,
    lost: usize,
    left: Vec<usize>,
}

/// Prints the best of some rounds; what a provider must not do fails.
pub fn compare(rounds: usize) -> Result<(), Error> {
    let mut all = MECHANISMS.map(|mechanism| (mechanism, Figures::default()));
    let mut failures = Vec::new();
    let mut lingering_since = Instant::now();
    for round in 0..rounds {
        for (mechanism, figures) in &mut all {
            let (rate, left) = leaving(mechanism, || starts(mechanism))?;
            if rate.is_none() {
                failures.push(format!("{mechanism}: the fuzzer ended"));
            }
            figures.starts = figures.starts.max(rate.unwrap_or_default());
            figures.left = left;
            let (rate, _) = leaving(mechanism, || messages(mechanism))?;
            if rate.is_none() {
                failures.push(format!("{mechanism}: the messages ended"));
            }
            figures.messages = figures.messages.max(rate.unwrap_or_default());
            if round == 0 {
                (figures.lost, _) = leaving(mechanism, || brokers_lost(mechanism))?;
            }
            if lingers(mechanism) {
                reap()?;
                lingering_since = Instant::now();
            }
        }
    }
    let lingering = (segments()?.len(), names()?);
    sleep(MINUTE.saturating_sub(lingering_since.elapsed()));
    reap()?;
    let left = (segments()?.len(), names()?);

    let seed = &all[MECHANISMS.len() - 1].1;
    println!("            starts/s      messages/s   brokers lost of {KILLS}   left by SIGKILL");
    for (mechanism, figures) in &all {
        let [starts, messages] = [figures.starts / seed.starts, figures.messages / seed.messages];
        println!(
            "{mechanism:8} {:7.1} {starts:4.2}x {:10.0} {messages:4.2}x {:10} {:22}, {} MiB",
            figures.starts,
            figures.messages,
            figures.lost,
            figures.left.len(),
            figures.left.iter().sum::<usize>() >> 20,
        );
        if *mechanism != SEED && starts.min(messages) < FLOOR {
            failures.push(format!("{mechanism}: slower by far than LibAFL's own"));
        }
        if lingers(mechanism) && figures.lost > 0 {
            failures.push(format!("{mechanism}: {} brokers lost", figures.lost));
        }
    }
    println!(
        "posix, sysv: {} segments and {} names linger; a minute later {} and {}",
        lingering.0, lingering.1, left.0, left.1
    );
    if left != (0, 0) {
        failures.push("something is left".into());
    }
    if failures.is_empty() { Ok(()) } else { Err(Error::illegal_state(failures.join("; "))) }
}
