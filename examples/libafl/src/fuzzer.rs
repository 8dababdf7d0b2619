//! A fuzzer that crashes again and again, and starts again with what it knew: LibAFL's restarting manager.

use std::{fs::OpenOptions, io::Write};

use libafl::{
    Fuzzer, StdFuzzer,
    corpus::{Corpus, InMemoryCorpus, Testcase},
    events::{ManagerKind, ShouldSaveState, setup_restarting_mgr_llmp},
    executors::{ExitKind, InProcessExecutor},
    feedbacks::{CrashFeedback, MaxMapFeedback},
    inputs::BytesInput,
    monitors::NopMonitor,
    mutators::{HavocScheduledMutator, havoc_mutations},
    observers::StdMapObserver,
    schedulers::RandScheduler,
    stages::StdMutationalStage,
    state::{HasCorpus, StdState},
};
use libafl_bolts::{Error, current_nanos, rands::StdRand, shmem::ShMemProvider, tuples::tuple_list};

type FuzzerState = StdState<InMemoryCorpus<BytesInput>, BytesInput, StdRand, InMemoryCorpus<BytesInput>>;

static mut EDGES: [u8; 8] = [0; 8];

/// What is fuzzed. A first byte beyond ASCII, which is soon found, makes it write to address 1.
fn target(input: &BytesInput) -> ExitKind {
    let bytes: &[u8] = input.as_ref();
    unsafe { EDGES[bytes.len() % 8] = 1 };
    if bytes.first().is_some_and(|byte| !byte.is_ascii()) {
        unsafe { core::ptr::without_provenance_mut::<u8>(1).write_volatile(1) };
    }
    ExitKind::Ok
}

/// The first process of a port becomes the broker, the others fuzz. Each start of one adds a byte to the file `starts`.
pub fn fuzz<SP: ShMemProvider>(port: u16, starts: &str) -> Result<(), Error> {
    let (state, mut manager) = setup_restarting_mgr_llmp::<(), BytesInput, _, FuzzerState, SP>(
        SP::new()?,
        "example".into(),
        Some(NopMonitor::new()),
        port,
        ManagerKind::Any,
        None,
        ShouldSaveState::OnRestart,
        tuple_list!(),
    )?;
    OpenOptions::new().create(true).append(true).open(starts)?.write_all(b".")?;

    let observer = unsafe { StdMapObserver::from_mut_ptr("edges", (&raw mut EDGES).cast::<u8>(), 8) };
    let mut feedback = MaxMapFeedback::new(&observer);
    let mut objective = CrashFeedback::new();
    let mut state = match state {
        Some(state) => state,
        None => FuzzerState::new(
            StdRand::with_seed(current_nanos()),
            InMemoryCorpus::new(),
            InMemoryCorpus::new(),
            &mut feedback,
            &mut objective,
        )?,
    };
    let mut fuzzer = StdFuzzer::new(RandScheduler::new(), feedback, objective);
    let mut harness = target;
    let mut executor = InProcessExecutor::builder()
        .harness(&mut harness)
        .observers(tuple_list!(observer))
        .fuzzer(&mut fuzzer)
        .state(&mut state)
        .event_mgr(&mut manager)
        .build()?;
    if state.corpus().is_empty() {
        state.corpus_mut().add(Testcase::new(BytesInput::new(b"begin".to_vec())))?;
    }
    let mut stages = tuple_list!(StdMutationalStage::new(HavocScheduledMutator::new(havoc_mutations())));
    fuzzer.fuzz_loop(&mut stages, &mut executor, &mut state, &mut manager)
}
