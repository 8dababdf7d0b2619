"""Segments that are sent: whoever ends first, they arrive, or the reader is told why not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shmem_providers import available_providers

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
    limit = {} if context.get_start_method() == "fork" else {"max_tasks_per_child": 5}
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context, **limit) as executor:
        for number, shm in enumerate(executor.map(make_one, [(name, number) for number in range(count)], timeout=LIMIT * count)):
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
        [sys.executable, "-W", "error", "-W", "ignore::ResourceWarning", "-W", "ignore::DeprecationWarning", program, *map(str, arguments)],
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
