"""Segments, ids, descriptions and providers through pickle, copy, multiprocessing and concurrent.futures."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmem_providers import (
    InvalidIdError,
    MemfdShMemProvider,
    MmapShMemProvider,
    ProviderUnavailableError,
    ShMemDescription,
    ShMemId,
    ShMemProvider,
    SizeMismatchError,
    StdShMemProvider,
    available_providers,
    open_provider,
)

pytestmark = pytest.mark.usefixtures("nothing_leaks")

FORK = pytest.mark.needs("fork")
PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)

# A user's program. Its argument names a scenario, which is run over every provider that shares. All that can wait has
# a limit, so that a hang is a failure that says where.
PROGRAM = r'''
import concurrent.futures, faulthandler, multiprocessing, os, pickle, subprocess, sys, time
from multiprocessing.util import Finalize
from held import held
from shmem_providers import InvalidIdError, open_provider

LIMIT = 20


def check(shm, readonly=False):
    assert (shm[:4], len(shm), shm.is_owner, shm.readonly) == (b"sent", 5000, False, readonly), repr(shm)


def take(shm, index):
    with shm:
        check(shm)
        shm[index] = index


def take_reader(shm):
    with shm:
        check(shm, readonly=True)
        try:
            shm[0] = 1
        except TypeError:
            return
        raise AssertionError("it is not read-only")


def take_argument(shm, go, done):
    assert go.wait(LIMIT)
    take(shm, 10)
    done.put("taken")


def take_received(receive, go, done):
    assert go.wait(LIMIT)
    before = held()
    take(receive(), 10)
    assert held() - before == set()
    done.put("taken")


def make(provider):
    with provider.new_shmem(10) as shm:
        shm[0] = 1
    shm = provider.new_shmem(5000)
    shm[:4] = b"sent"
    Finalize(None, shm.close, exitpriority=1)  # it is this process's to close, and read after this function has ended
    return shm


def use(shm):
    return shm[0]


class Late:
    """Pickles as what `data` is the pickle of."""

    def __init__(self, data):
        self.data = data

    def __reduce__(self):
        return pickle.loads, (self.data,)


def joined(process):
    process.join(LIMIT)
    assert process.exitcode == 0, process.exitcode


def process_argument(context, provider, shm):
    processes = [context.Process(target=take, args=(shm, 10 + number)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        joined(process)
    assert shm[10:13] == bytes([10, 11, 12])


def sent(context, provider, shm, receive, send):
    """The sender closes as soon as it has sent: nobody but the message has it until the receiver takes it."""
    id = shm.id
    go, done = context.Event(), context.Queue()
    target, arguments = (take_received, (receive,)) if receive else (take_argument, (shm,))
    process = context.Process(target=target, args=(*arguments, go, done))
    process.start()
    send(shm)
    shm.close()
    go.set()
    assert done.get(timeout=LIMIT) == "taken"
    joined(process)
    done.close()
    until = time.monotonic() + LIMIT
    while time.monotonic() < until:
        try:
            provider.shmem_from_id_and_size(id, 1).close()
        except (FileNotFoundError, InvalidIdError):
            return
    raise AssertionError("the sender still keeps it")


def argument_closed_at_once(context, provider, shm):
    sent(context, provider, shm, None, lambda shm: None)


def pipe_closed_at_once(context, provider, shm):
    receiving, sending = context.Pipe(duplex=False)
    with receiving, sending:
        sent(context, provider, shm, receiving.recv, sending.send)


def simple_queue_closed_at_once(context, provider, shm):
    queue = context.SimpleQueue()
    sent(context, provider, shm, queue.get, queue.put)
    queue.close()


def queue_closed_at_once(context, provider, shm):
    queue = context.Queue()

    def send(shm):
        queue.put(shm)
        queue.close()
        queue.join_thread()  # put() pickles in a thread of the queue's own

    sent(context, provider, shm, queue.get, send)


def pool(context, provider, shm):
    with context.Pool(2) as pool:
        # in chunks of 1, for what is in one chunk is one handle, which the first task would close
        pool.starmap_async(take, [(shm, index) for index in range(10, 30)], chunksize=1).get(LIMIT)
        assert shm[10:30] == bytes(range(10, 30))
        with provider.shmem_from_id_and_size(shm.id, 5000, read_only=True) as reader:
            pool.map_async(take_reader, [reader] * 3, chunksize=1).get(LIMIT)
        with pool.apply_async(make, (provider,)).get(LIMIT) as made:
            check(made)
        pool.close()
        pool.join()


def executor(context, provider, shm):
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        list(executor.map(take, [shm] * 20, range(10, 30), timeout=LIMIT))
        assert shm[10:30] == bytes(range(10, 30))
        with executor.submit(make, provider).result(LIMIT) as made:
            check(made)


MAKE_AND_END = """
import pickle, sys
from shmem_providers import open_provider
with open_provider(sys.argv[1]).new_shmem(10) as shm:
    print(pickle.dumps(shm).hex())
"""


def gone_in_a_pool(context, provider, shm):
    """What cannot be attached fails at its first use, and the pool goes on."""
    command = [sys.executable, "-c", MAKE_AND_END, provider.name]
    data = bytes.fromhex(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    gone = pickle.loads(data)
    assert gone.closed
    for attempt in (use, memoryview, bytes, len, pickle.dumps, lambda gone: gone.id, lambda gone: gone.__enter__()):
        try:
            attempt(gone)
        except FileNotFoundError as raised:
            assert raised.errno == 2
        else:
            raise AssertionError(attempt)
    gone.close()
    with context.Pool(1) as pool:
        for _ in range(2):
            try:
                pool.apply_async(use, (Late(data),)).get(LIMIT)
            except FileNotFoundError as raised:
                assert raised.errno == 2
            else:
                raise AssertionError("it was attached")
        assert pool.apply_async(len, ("abc",)).get(LIMIT) == 3
        pool.close()
        pool.join()
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        error = executor.submit(use, Late(data)).exception(LIMIT)
        assert type(error) is FileNotFoundError, error


if __name__ == "__main__":
    faulthandler.dump_traceback_later(50, exit=True)
    method, scenario, names = sys.argv[1:]
    for name in names.split(","):
        provider = open_provider(name)
        with provider.new_shmem(5000) as shm:
            shm[:4] = b"sent"
            globals()[scenario](multiprocessing.get_context(method), provider, shm)
        print(name, "ok", flush=True)
'''
SCENARIOS = [
    "process_argument",
    "argument_closed_at_once",
    "pool",
    "executor",
    "pipe_closed_at_once",
    "queue_closed_at_once",
    "simple_queue_closed_at_once",
    "gone_in_a_pool",
]


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("method", ["spawn", *(pytest.param(name, marks=FORK) for name in ("fork", "forkserver"))])
def test_multiprocessing(method: str, scenario: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    names = [name for name in available_providers() if name != "nop"]
    # a program that forks while it has threads is warned by Python, and multiprocessing's own are threads
    command: list[str] = [
        sys.executable,
        "-W",
        "error",
        "-W",
        "ignore::DeprecationWarning",
        str(program),
        method,
        scenario,
        ",".join(names),
    ]
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path}
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert result.stderr == ""
    assert result.stdout == "".join(f"{name} ok\n" for name in names)


def test_plain_pickle_reaches_an_open_segment(sharing: ShMemProvider, start_peer: Callable[[], Any]) -> None:
    """Without multiprocessing a pickle is a description: its reader attaches while somebody has it open."""
    sender, receiver = start_peer(), start_peer()
    for each in (sender, receiver):
        each("import pickle; provider = open_provider(name)", name=sharing.name)
    sender("shm = provider.new_shmem(5000); shm[:4] = b'sent'")
    for protocol in PROTOCOLS:
        data = sender("pickle.dumps(shm, protocol)", protocol=protocol)
        receiver("shm = pickle.loads(data)", data=data)
        assert receiver("shm.provider_name, shm.size, shm.readonly, shm.is_owner") == (sharing.name, 5000, False, False)
        receiver("shm[4] = protocol; shm.close()", protocol=protocol)
        assert sender("shm[4]") == protocol
    sender("with provider.shmem_from_id_and_size(shm.id, 99, read_only=True) as reader: data = pickle.dumps(reader)")
    receiver("shm = pickle.loads(data)", data=sender("data"))
    assert receiver("shm.readonly, len(shm)") == (True, 99)
    receiver("shm.close()")
    sender("shm_id = shm.id.as_str(); shm.close()")
    receiver("shm = pickle.loads(data)", data=data)  # does not raise
    assert receiver("shm.closed, shm.readonly") == (True, False)
    for use in ("shm[0]", "len(shm)", "bytes(shm)", "shm.id", "shm.write_to_env('X')", "provider.clone_ref(shm)"):
        raised, message = receiver.raises(use)
        assert raised == "FileNotFoundError"
        assert sender("shm_id") in message
    receiver("shm.close()")
    for each in (sender, receiver):
        assert each("'multiprocessing' in sys.modules") is False


@pytest.mark.needs("memfd", "posix")
@pytest.mark.parametrize("provider", ["MemfdShMemProvider", "MmapShMemProvider"])
def test_a_descriptor_id_is_nobody_elses(provider: str, start_peer: Callable[[], Any]) -> None:
    """The number in such an id is another segment's in the receiver: that one must not be what it gets."""
    sender, receiver = start_peer(), start_peer()
    for each, mark in ((sender, 1), (receiver, 2)):
        each(f"import pickle; all = [{provider}(fd_ids=True).new_shmem(10) for _ in range(5)]")
        each("for shm in all: shm[0] = mark", mark=mark)
    assert sender("[shm.id.as_str() for shm in all]") == receiver("[shm.id.as_str() for shm in all]")
    sender(
        "try:\n"
        "    data = pickle.dumps(all[2])\n"
        "except TypeError as refused:\n"
        "    data = pickle.dumps(refused)\n"  # is a way out: nothing but the descriptor leads to it
    )
    receiver("received = pickle.loads(data); got = None", data=sender("data"))
    receiver(
        "try:\n"
        "    with received as shm: got = shm[0]\n"
        "except (TypeError, AttributeError, OSError, ValueError):\n"
        "    pass\n"
    )
    for each in (sender, receiver):
        each("for shm in all: shm.close()")
    assert receiver("got") in (None, 1)


def test_what_could_not_be_attached_keeps_nobody_alive(peer: Any) -> None:
    """Its exception has the frames of all who caught it; they must not live as long as the process."""
    peer("import pickle; shm = StdShMemProvider().new_shmem(10)")
    data = peer("pickle.dumps(shm)")
    peer("shm.close()")

    class Local:
        pass

    def use() -> weakref.ref[Local]:
        local, gone = Local(), pickle.loads(data)
        for _ in range(2):
            with pytest.raises((FileNotFoundError, InvalidIdError)):
                gone[0]
        return weakref.ref(local)

    local = use()
    gc.collect()
    assert local() is None


@pytest.mark.parametrize("prelude", ["pass", "import multiprocessing.reduction"])
def test_a_copy_is_another_handle(sharing: ShMemProvider, peer: Any, prelude: str) -> None:
    peer(f"import copy; {prelude}; provider = open_provider(name)", name=sharing.name)
    peer("shm = provider.new_shmem(5000)")
    for make in ("copy.copy(shm)", "copy.deepcopy(shm)"):
        peer(f"other = {make}")
        assert peer("other is not shm, other.is_owner, other.closed, other.size") == (True, False, False, 5000)
        peer("other[7] = 7")
        assert peer("shm[7]") == 7
        peer("shm[7] = 0; other.close()")
    peer("shm.close()")


def test_private_memory_is_not_pickled() -> None:
    with open_provider("nop").new_shmem(8) as shm:
        for call in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="nop"):
                call(shm)


# ---- the small objects


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ids_and_descriptions(protocol: int) -> None:
    for value in (ShMemId(), ShMemId("1.2.abcd"), ShMemDescription(2**40, "/name"), ShMemDescription(1, "")):
        for again in (pickle.loads(pickle.dumps(value, protocol)), copy.copy(value), copy.deepcopy(value)):
            assert (again, type(again), hash(again)) == (value, type(value), hash(value))
            if isinstance(again, ShMemDescription):
                assert isinstance(again.id, ShMemId)


class MyProvider(StdShMemProvider):
    pass


@pytest.mark.parametrize(
    "make",
    [
        *(pytest.param(lambda name=name: open_provider(name), id=name) for name in ("std", *available_providers())),
        pytest.param(lambda: MemfdShMemProvider(fd_ids=True), marks=pytest.mark.needs("memfd"), id="memfd fd_ids"),
        pytest.param(lambda: MmapShMemProvider(fd_ids=True), marks=pytest.mark.needs("posix"), id="posix fd_ids"),
        pytest.param(lambda: ShMemProvider(available_providers()[0]), id="base class"),
        MyProvider,
    ],
)
def test_providers(make: Callable[[], ShMemProvider]) -> None:
    provider = make()
    copies = [pickle.loads(pickle.dumps(provider, protocol)) for protocol in PROTOCOLS]
    for again in (*copies, copy.copy(provider), copy.deepcopy(provider)):
        assert (type(again), again.name, again.fd_ids) == (type(provider), provider.name, provider.fd_ids)
        again.new_shmem(1).close()


def test_std_chooses_where_it_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The receiver uses its own process's choice."""
    data = pickle.dumps(StdShMemProvider())
    other = [name for name in available_providers() if name != "nop"][-1]
    monkeypatch.setenv("SHMEM_PROVIDER", other)
    assert pickle.loads(data).name == other


def test_exceptions() -> None:
    """They travel from a worker to its pool."""
    errors: list[Exception] = []
    with StdShMemProvider().new_shmem(1) as shm:
        gone = shm.description
    calls: list[Callable[[], object]] = [
        lambda: ShMemId("a b"),
        lambda: StdShMemProvider().shmem_from_id_and_size("gar\\bage", 1),
        lambda: StdShMemProvider().shmem_from_description(gone),
        lambda: open_provider("nop").new_shmem(10, reserve=True),
        lambda: open_provider("nop").new_shmem(2**62),
        lambda: open_provider("nop").existing_from_env("SHMP_TEST_NOT_SET"),
    ]
    for call in calls:
        with pytest.raises(Exception) as raised:  # noqa: PT011  # which ones is other tests' matter
            call()
        errors.append(raised.value)
    errors += [SizeMismatchError("text"), ProviderUnavailableError(38, "text")]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), again.args, str(again)) == (type(error), error.args, str(error))
        for number in ("errno", "winerror"):
            assert getattr(again, number, None) == getattr(error, number, None)
