"""Segments that are sent: whoever ends first, they arrive, or the reader is told why not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import pytest

from shmem_providers import ShMemProvider, available_providers

FORK = pytest.mark.needs("fork")
METHODS = ["spawn", *(pytest.param(name, marks=FORK) for name in ("fork", "forkserver"))]
NAMES = [name for name in available_providers() if name != "nop"]
COUNT = 1000 if os.environ.get("SHMP_LONG") else 20

# Its arguments: a start method, a scenario, providers, how many segments. Whatever waits has a limit.
CHANNELS = r'''
import concurrent.futures, faulthandler, multiprocessing, os, sys, time
from shmem_providers import open_provider

LIMIT, AT_ONCE = 30, 20


def make(name, number):
    shm = open_provider(name).new_shmem(5000)
    shm[:4] = number.to_bytes(4, "little")
    return shm


def make_one(argument):
    return make(*argument)


def check(shm, number):
    assert int.from_bytes(shm[:4], "little") == number, (shm[:4], number)
    assert len(shm) == 5000
    try:
        assert shm.id == shm.description.id
    except FileNotFoundError:  # it went with the sender's end, as it had been read
        assert shm.provider_name == "posix" and shm.fileno() > 2
    shm.close()


def check_all(all, first, results):
    for number, shm in enumerate(all, first):
        check(shm, number)
    results.put(len(all))


def send_all(send, name, numbers):
    """Sends, closes, and ends at once."""
    for number in numbers:
        with make(name, number) as shm:
            send(shm)


def put_all(queue, name, numbers):
    """The queue's thread pickles: what it holds is closed only when this process ends."""
    global held
    held = [make(name, number) for number in numbers]
    for shm in held:
        queue.put(shm)


def joined(process):
    process.join(LIMIT)
    assert process.exitcode == 0, process.exitcode


def rounds(count):
    return [range(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE)]


def from_ended(context, target, channel, read, name, count):
    """The sender has ended before the first one is read."""
    for numbers in rounds(count):
        process = context.Process(target=target, args=(channel, name, numbers))
        process.start()
        joined(process)
        for number in numbers:
            check(read(), number)


def arguments(context, name, count):
    results = context.SimpleQueue()
    for numbers in rounds(count):
        all = [make(name, number) for number in numbers]
        process = context.Process(target=check_all, args=(all, numbers[0], results))
        process.start()
        for shm in all:
            shm.close()
        joined(process)
        assert results.get() == len(numbers)


def queue(context, name, count):
    queue = context.Queue()
    from_ended(context, put_all, queue, lambda: queue.get(timeout=LIMIT), name, count)


def simple_queue(context, name, count):
    queue = context.SimpleQueue()
    from_ended(context, send_by_put, queue, queue.get, name, count)


def send_by_put(queue, name, numbers):
    send_all(queue.put, name, numbers)


def send_by_pipe(end, name, numbers):
    send_all(end.send, name, numbers)


def pipe(context, name, count):
    reading, writing = context.Pipe(duplex=False)
    from_ended(context, send_by_pipe, writing, reading.recv, name, count)


def pool(context, name, count):
    with context.Pool(2, maxtasksperchild=1) as pool:
        for number, shm in enumerate(pool.imap(make_one, [(name, number) for number in range(count)])):
            check(shm, number)
        pool.close()
        pool.join()


def executor(context, name, count):
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        arguments = [(name, number) for number in range(count)]
        for number, shm in enumerate(executor.map(make_one, arguments, timeout=LIMIT + count)):
            check(shm, number)


def manager(context, name, count):
    with context.Manager() as manager:
        queue = manager.Queue()
        from_ended(context, send_by_put, queue, lambda: queue.get(timeout=LIMIT), name, count)


if __name__ == "__main__":
    method, scenario, names, count = sys.argv[1:]
    faulthandler.dump_traceback_later(50 + int(count), exit=True)
    for name in names.split(","):
        globals()[scenario](multiprocessing.get_context(method), name, int(count))
        print(name, "ok", flush=True)
'''


def run(program: Path, *arguments: object, limit: float = 60) -> subprocess.CompletedProcess[str]:
    """Every warning is an error there, but for those of forks in a program with threads."""
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-W",
            "ignore::ResourceWarning",
            "-W",
            "ignore::DeprecationWarning",
            program,
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        timeout=limit,
        env=os.environ | {"PYTHONPATH": path},
    )


@pytest.mark.parametrize("channel", ["arguments", "queue", "simple_queue", "pipe", "pool", "executor", "manager"])
@pytest.mark.parametrize("method", METHODS)
def test_nothing_is_lost(method: str, channel: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(CHANNELS)
    result = run(program, method, channel, ",".join(NAMES), COUNT, limit=60 + COUNT)
    assert result.stderr == ""
    assert result.stdout == "".join(f"{name} ok\n" for name in NAMES)


# What programs below begin with
HEAD = """
import multiprocessing, os, pickle, signal, sys, time
from multiprocessing.reduction import ForkingPickler
from held import held
from shmem_providers import *
from shmem_providers import _handover


def raised(call):
    try:
        call()
    except Exception as raised:
        return raised
    raise AssertionError("nothing was raised")


def filled(provider, byte, size=5000):
    shm = provider.new_shmem(size)
    shm[0] = byte
    return shm


def sent(shm):
    return bytes(ForkingPickler.dumps(shm))  # a view of a BytesIO that is freed at the exit says so on stderr


def until(condition, limit=10):
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


name = sys.argv[1]
provider = open_provider(name)
"""


def test_a_plain_pickle_is_a_description(sharing: ShMemProvider, run_python: Callable[..., str]) -> None:
    """Equal each time, and nobody holds anything for it."""
    run_python(
        HEAD
        + """
import threading
before = held()
with filled(provider, 7) as shm:
    with_it = held()
    all = {pickle.dumps(shm) for _ in range(20)}
    assert len(all) == 1 and held() == with_it and threading.active_count() == 1
    with pickle.loads(all.pop()) as again:
        assert again[0] == 7
assert held() == before
""",
        sharing.name,
    )


@pytest.mark.parametrize("pickler", ["cloudpickle", "joblib"])
def test_other_picklers_give_descriptions(pickler: str, sharing: ShMemProvider, run_python: Callable[..., str]) -> None:
    if not find_spec(pickler):
        pytest.skip(f"{pickler} is not installed")
    run_python(
        HEAD
        + f"import {pickler} as pickler"
        + """
with filled(provider, 7) as shm:
    make = pickler.dumps if hasattr(pickler, "dumps") else pickler.hash
    assert make(shm) == make(shm)
    if hasattr(pickler, "dumps"):
        with pickle.loads(make(shm)) as again:
            assert again[0] == 7
    assert not _handover._outbox.unread
""",
        sharing.name,
    )


def test_subclasses_survive(sharing: ShMemProvider, run_python: Callable[..., str]) -> None:
    run_python(
        HEAD
        + """
class Mine(ShMem):
    pass


class Provider(ShMemProvider):
    _shmem_type = Mine


shm = filled(Provider(name), 7)
shm.note = "kept"
for dumps in (pickle.dumps, sent):
    with pickle.loads(dumps(shm)) as again:
        assert (type(again), again.note, again[0]) == (Mine, "kept", 7)
shm.close()
""",
        sharing.name,
    )


@FORK
def test_both_sides_of_a_bare_fork_send(sharing: ShMemProvider, run_python: Callable[..., str]) -> None:
    """Numbers of descriptors and messages are the same on both sides; the segments are not."""
    run_python(
        HEAD
        + """
from_child, to_parent = multiprocessing.Pipe(duplex=False)
before = [filled(provider, 1)]
messages = [sent(before[0])]
child = os.fork()
before.append(filled(provider, 3 if child else 2))
if child == 0:
    to_parent.send_bytes(sent(before[1]))
    to_parent.send(before[1])
    before[1].close()
    sys.exit()
messages.append(sent(before[1]))
early = from_child.recv_bytes()
os.waitpid(child, 0)
late = from_child.recv()
with pickle.loads(early) as first, late as second:
    assert (first[0], second[0]) == (2, 2)
for shm in before:
    shm.close()
for number, message in enumerate(messages):
    with pickle.loads(message) as shm:
        assert shm[0] == (1, 3)[number]
""",
        sharing.name,
    )


def test_a_message_is_read_twice(sharing: ShMemProvider, run_python: Callable[..., str]) -> None:
    """While it is kept; after that, the first use says what is gone."""
    run_python(
        HEAD
        + """
shm = filled(provider, 7)
message = sent(shm)
for _ in range(2):
    pickle.loads(message).close()
shm.close()
gone = pickle.loads(message)
error = raised(lambda: gone[0])
assert type(error) is FileNotFoundError, error
""",
        sharing.name,
    )


def test_unread_messages_take_no_descriptors(sharing: ShMemProvider, run_python: Callable[..., str]) -> None:
    run_python(
        HEAD
        + """
shm = filled(provider, 7)
before = held()
messages = [sent(shm) for _ in range(4100)]  # more than a ledger has room for
assert len(held() - before) <= 8, held() - before  # that is 4 descriptors, with what is mapped
for message in messages:
    pickle.loads(message).close()
shm.close()
assert not _handover._outbox.unread and not _handover._outbox.kept
""",
        sharing.name,
    )


@pytest.mark.needs("posix")
def test_a_name_stays_until_it_was_read(run_python: Callable[..., str]) -> None:
    run_python(
        HEAD
        + """
with filled(provider, 7) as shm:
    messages = [sent(shm) for _ in range(2)]
    id = shm.id.as_str()
first = pickle.loads(messages[0])
assert first.id == id
first.write_to_env("SHM")
with provider.existing_from_env("SHM") as other:
    assert other[0] == 7
second = pickle.loads(messages[1])
provider.new_shmem(1).close()  # a call of the library: it sees that all was read
for shm in (first, second):
    error = raised(lambda: shm.id)
    assert type(error) is FileNotFoundError and id in str(error), error
    assert shm.fileno() > 2
    if sys.platform == "linux":
        for dumps in (pickle.dumps, sent):
            with pickle.loads(dumps(shm)) as third:
                assert third[0] == 7
first.close()
second.close()
""",
        "posix",
    )


@pytest.mark.needs("posix", "linux")
def test_a_name_made_anew_is_not_taken(run_python: Callable[..., str]) -> None:
    """The owner was killed or so, and somebody else took the name that it had chosen."""
    run_python(
        HEAD
        + """
chosen = f"/anew_{os.getpid()}"
mine = provider.new_shmem_with_id(100, chosen)
mine[0] = 1
message = sent(mine)
os.unlink("/dev/shm" + chosen)
with provider.new_shmem_with_id(100, chosen) as other:
    other[0] = 2
    with pickle.loads(message) as shm:
        assert shm[0] == 1
        assert type(raised(lambda: shm.id)) is FileNotFoundError
mine.close()
""",
        "posix",
    )


@pytest.mark.needs("memfd")
def test_a_memfd_id_works_while_anybody_has_it(start_peer: Callable[[], Any]) -> None:
    owner, holder, late = start_peer(), start_peer(), start_peer()
    owner("shm = MemfdShMemProvider().new_shmem(10); shm[0] = 7")
    id = owner("shm.id.as_str()")
    holder("shm = StdShMemProvider().shmem_from_id_and_size(id, 10)", id=id)
    owner("shm.close(); others = [MemfdShMemProvider().new_shmem(10) for _ in range(3)]")  # its number is used again
    late("shm = StdShMemProvider().shmem_from_id_and_size(id, 10)", id=id)
    assert late("shm[0]") == 7
    late("shm.close()")
    holder("shm.close()")
    assert late.raises("StdShMemProvider().shmem_from_id_and_size(id, 10)", id=id)[0] == "FileNotFoundError"
    owner("for shm in others: shm.close()")


KILLS = """
EVERY = 1 if "SHMP_LONG" in os.environ else 9


def killed_at(step):  # ends by SIGKILL before that line of the hand-over
    steps = 0

    def trace(frame, event, argument):
        nonlocal steps
        if frame.f_globals.get("__name__") != "shmem_providers._handover":
            return None
        if event == "line":
            steps += 1
            if steps == step:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def steps():
    return range(1, 1000, EVERY)


def forked(target, *arguments):
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    return process


def outcome(message, byte):
    shm = pickle.loads(message)
    try:
        with shm:
            assert shm[0] == byte
    except FileNotFoundError as error:
        assert "its sender was killed" in str(error), error
        return "its sender was killed"
    return "it arrived"


def is_gone(message):
    open_provider(name) # removes a name that was left over
    return outcome(message, 7) == "its sender was killed"


"""
FILE_HEAD = HEAD.replace("name = sys.argv[1]", "name = sys.argv[1]; method = sys.argv[2]")
# Programs whose children import them
PROGRAMS = {
    "closed_too_early": """
class Slow:
    def __reduce__(self):
        time.sleep(0.3)  # the queue's thread gets to the segment when it is closed
        return int, ()


if __name__ == "__main__":
    queue = multiprocessing.get_context(method).Queue()
    with filled(provider, 7) as shm:
        queue.put(Slow())
        queue.put(shm)
    assert queue.get(timeout=10) == 0
    got = queue.get(timeout=10)
    error = raised(lambda: got[0])
    assert type(error) is ValueError and "queue.put() pickles in a thread" in str(error), error
""",
    "chunks": """
def task(shm):
    with shm:
        return shm[0]


if __name__ == "__main__":
    with filled(provider, 7) as shm, multiprocessing.get_context(method).Pool(1) as pool:
        error = raised(lambda: pool.map(task, [shm] * 20))
        assert type(error) is ValueError and "chunksize=1" in str(error), error
        assert pool.map(task, [shm] * 20, chunksize=1) == [7] * 20
        pool.close()
        pool.join()
""",
    "killed_sender": """
def send(pipe, name):
    shm = filled(open_provider(name), 7)
    pipe.send(shm)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    context = multiprocessing.get_context(method)
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(writing, name))
    process.start()
    process.join(20)
    got = reading.recv()
    error = raised(lambda: got[0])
    assert type(error) is FileNotFoundError and (name == "sysv" or "was killed" in str(error)), error
""",
    "nobody_reads": """
def send(pipe, name, life):
    _handover._KEPT_FOR = life
    all = [filled(open_provider(name), byte) for byte in range(5)]
    for shm in all:
        pipe.send(shm)
        shm.close()


def received(context, life):
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(writing, name, life))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    return reading


def is_gone(message):
    shm = pickle.loads(message)
    try:
        shm[0]
    except FileNotFoundError:
        return True
    shm.close()
    return False


if __name__ == "__main__":
    context = multiprocessing.get_context(method)
    reading = received(context, 60)
    message = reading.recv_bytes()  # what has been read is let go of; the rest is still there
    assert not is_gone(message)
    until(lambda: is_gone(message))
    for byte in range(1, 5):
        with reading.recv() as shm:
            assert shm[0] == byte
    reading = received(context, 0.5)
    message = reading.recv_bytes()
    time.sleep(1)
    assert is_gone(message)
""",
    "sender_is_killed": """
def send(pipe, name, step):
    _handover._GRACE = 0
    shm = filled(open_provider(name), 7)
    killed_at(step)
    pipe.send(shm)
    shm.close()


if __name__ == "__main__":
    messages, ends = [], set()
    for step in steps():
        reading, writing = multiprocessing.Pipe(duplex=False)
        process = forked(send, writing, name, step)
        writing.close()
        process.join(20)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        try:
            messages.append(reading.recv_bytes())
        except EOFError:
            ends.add("nothing was sent")
            continue
        ends.add(outcome(messages[-1], 7))
    assert process.exitcode == 0 and ends == {"nothing was sent", "it arrived", "its sender was killed"}, ends
    assert outcome(reading.recv_bytes(), 7) == "it arrived"
    until(lambda: all(map(is_gone, messages)))
""",
    "keeper_is_killed": """
def send(pipe, name, keeper):
    _handover._GRACE, _handover._PATIENCE, _handover._KEEPER = 0, 0.05, keeper
    shm = filled(open_provider(name), 7)
    pipe.send(shm)
    shm.close()


if __name__ == "__main__":
    lines, messages = _handover._KEEPER.splitlines(), []
    places = [number for number, line in enumerate(lines) if number > 1 and not line.startswith((" ", "except"))]
    for number in places if EVERY == 1 else places[1::3]:
        line = lines[number]
        keeper = chr(10).join([*lines[:number], "os.kill(os.getpid(), signal.SIGKILL)", *lines[number:]])
        reading, writing = multiprocessing.Pipe(duplex=False)
        process = forked(send, writing, name, keeper)
        process.join(20)
        assert process.exitcode == 0
        messages.append(reading.recv_bytes())
        if number == places[-1]:  # all was read
            assert outcome(messages[-1], 7) == "it arrived"
        else:
            until(lambda: is_gone(messages[-1]))
    until(lambda: all(map(is_gone, messages)))
""",
    "reader_is_killed": """
def read(message, step):
    killed_at(step)
    with pickle.loads(message) as shm:
        assert shm[0] == 7


if __name__ == "__main__":
    ends, before = set(), held()
    for step in steps():
        with filled(provider, 7) as shm:
            message = sent(shm)
        process = forked(read, message, step)
        process.join(20)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
        ends.add(outcome(message, 7))  # while it is unread it can be read again
        _handover.look()
        assert not _handover._outbox.unread and not _handover._outbox.kept
    assert process.exitcode == 0 and ends >= {"it arrived"}, ends
    process.close()
    _handover.look()
    _handover._outbox.empty(lambda page: page.close())
    assert held() <= before, held() - before
""",
    "with_its_parent": """
def send(pipe, name):
    shm = filled(open_provider(name), 7)
    pipe.send(shm)
    shm.close()


if __name__ == "__main__":
    context = multiprocessing.get_context(method)
    reading, writing = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(writing, name))
    process.start()
    process.join(20)
    sys.stdout.write(bytes(reading.recv_bytes()).hex())
""",
}


KILLED = ["sender_is_killed", "keeper_is_killed", "reader_is_killed"]
ALONE = [*KILLED, "with_its_parent"]


@pytest.mark.needs("linux")
@pytest.mark.parametrize(
    ("method", "name"), [("spawn", NAMES[0]), *(pytest.param("fork", name, marks=FORK) for name in NAMES)]
)
@pytest.mark.parametrize("program", [name for name in PROGRAMS if name not in ALONE])
def test_programs(program: str, method: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(FILE_HEAD + PROGRAMS[program])
    result = run(path, name, method)
    assert (result.stderr, result.returncode) == ("", 0)


@FORK
@pytest.mark.needs("linux")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("program", KILLED)
def test_kills_at_each_step(program: str, name: str, tmp_path: Path) -> None:
    """The segment arrives, or its reader is told; and nobody is left who holds it."""
    path = tmp_path / "program.py"
    path.write_text(FILE_HEAD + KILLS + PROGRAMS[program])
    result = run(path, name, "fork", limit=300)
    assert (result.stderr, result.returncode) == ("", 0)


@pytest.mark.needs("linux", "memfd")
def test_a_search_is_repeated_while_somebody_has_it(run_python: Callable[..., str]) -> None:
    """No process shows a descriptor that is under way in a socket."""
    run_python(
        HEAD
        + """
import socket, threading
shm = filled(provider, 7)
message = sent(shm)
sending, receiving = socket.socketpair()
socket.send_fds(sending, [b"1"], [shm.fileno()])
shm.close()
for kept in _handover._outbox.kept.values():
    kept.page.close()
got = []
thread = threading.Timer(0.2, lambda: got.extend(socket.recv_fds(receiving, 1, 1)[1]))
thread.start()
with pickle.loads(message) as again:
    assert again[0] == 7 and got
thread.join()
os.close(got[0])
for end in (sending, receiving):
    end.close()
""",
        "memfd",
    )


UNSHARED = ["unshare", "--pid", "--fork", "--mount-proc"]
ELSEWHERE = """
import pickle, sys
shm = pickle.loads(bytes.fromhex(sys.argv[1]))
try:
    print(shm[0])
except FileNotFoundError as error:
    print(error)
"""


@pytest.mark.needs("linux")
def test_from_another_pid_namespace(sharing: ShMemProvider, run_python: Callable[..., str]) -> None:
    if not which("unshare") or subprocess.run([*UNSHARED, "true"], capture_output=True).returncode:
        pytest.skip("no pid namespace can be made here")
    run_python(
        HEAD
        + """
import subprocess
with filled(provider, 7) as shm:
    message = sent(shm).hex()
command = [*sys.argv[3:], sys.executable, "-c", sys.argv[2], message]
said = subprocess.run(command, capture_output=True, text=True, timeout=30)
assert said.stderr == ""
if name in ("memfd", "ashmem"):
    assert all(part in said.stdout for part in ("another pid namespace", "--pid", "posix")), said.stdout
else:
    assert said.stdout.split() == ["7"], said.stdout
_handover.look()
assert bool(_handover._outbox.unread) == (name in ("memfd", "ashmem"))
_handover._outbox.empty(lambda page: page.close())
""",
        sharing.name,
        ELSEWHERE,
        *UNSHARED,
    )


@FORK
@pytest.mark.needs("linux")
def test_what_is_unread_goes_with_the_parent(
    sharing: ShMemProvider, tmp_path: Path, run_python: Callable[..., str]
) -> None:
    path = tmp_path / "program.py"
    path.write_text(FILE_HEAD + PROGRAMS["with_its_parent"])
    result = run(path, sharing.name, "fork")
    assert result.stderr == ""
    run_python(
        HEAD
        + """
until(lambda: pickle.loads(bytes.fromhex(sys.argv[2])).closed)
""",
        sharing.name,
        result.stdout,
    )


FAMILIES = {
    "multiprocess": "import multiprocess as family",
    "billiard": "import billiard as family",
    "loky": "import loky",
    "joblib": "import joblib",
}


@FORK
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_families(family: str, name: str, tmp_path: Path, missing: Callable[[str], Any]) -> None:
    if not find_spec(family):
        pytest.skip(f"{family} is not installed")
    path = tmp_path / "program.py"
    path.write_text(
        HEAD
        + FAMILIES[family]
        + """

def make(number):
    return filled(open_provider(name), number)


def take(shm):
    with shm:
        return shm[0]


if __name__ == "__main__":
    with filled(provider, 9) as shm:
        if "family" in globals():
            with family.Pool(2, maxtasksperchild=1) as pool:
                got = [pool.apply_async(make, (number,)) for number in range(10)]
                got = [take(each.get(30)) for each in got]
                assert pool.apply_async(take, (shm,)).get(30) == 9
                pool.close()
                pool.join()
        elif "joblib" in globals():
            with joblib.Parallel(2) as parallel:
                got = [take(each) for each in parallel(joblib.delayed(make)(number) for number in range(10))]
                assert parallel([joblib.delayed(take)(shm)]) == [9]
        else:
            with loky.ProcessPoolExecutor(2) as executor:
                got = [take(each) for each in executor.map(make, range(10), timeout=30)]
                assert executor.submit(take, shm).result(30) == 9
        assert got == list(range(10)), got
"""
    )
    result = subprocess.run(
        [sys.executable, path, name],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert (result.stderr, result.returncode) == ("", 0)


@FORK
def test_no_thread_and_no_warning(sharing: ShMemProvider, run_python: Callable[..., str]) -> None:
    """A program that has sent can fork without the warning of 3.12: run_python makes errors of warnings."""
    run_python(
        HEAD
        + """
reading, writing = multiprocessing.Pipe(duplex=False)
with filled(provider, 7) as shm:
    writing.send(shm)
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    reading.recv().close()
import threading
assert threading.active_count() == 1
""",
        sharing.name,
    )


@pytest.mark.needs("linux")
@pytest.mark.parametrize("is_read", [True, False])
def test_the_end_is_held_up_by_little(is_read: bool, sharing: ShMemProvider, run_python: Callable[..., str]) -> None:
    took = run_python(
        HEAD
        + """
message = sent(filled(provider, 7))
if sys.argv[2] == "True":
    pickle.loads(message).close()
before = time.monotonic()
_handover._end()
print(time.monotonic() - before)
""".replace("filled(provider, 7))", "shm := filled(provider, 7)); shm.close()"),
        sharing.name,
        is_read,
    )
    assert float(took) < (0.02 if is_read else 0.5)  # 0.1 on a machine with nothing else to do
