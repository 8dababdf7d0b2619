"""Fork: whatever children do with what they inherited, in whatever order, it is their parent's to destroy.

Each case is a program in which every warning is an error and nothing may appear on stderr.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from shmem_providers import ShMemProvider

pytestmark = pytest.mark.usefixtures("nothing_leaks")
FORK = pytest.mark.needs("fork")

SECONDS = float(os.environ.get("SHMP_STORM_SECONDS", "0.3"))

COMMON = r"""
import faulthandler, gc, itertools, os, signal, sys, threading, time, traceback, warnings
from shmem_providers import *

faulthandler.register(signal.SIGALRM, chain=True) # what hangs says where, and ends
signal.alarm(50)
provider = open_provider(sys.argv[1])
GONE = FileNotFoundError, InvalidIdError


def fork(act, *arguments):
    # Gives the pid of a child that calls act(), which may end it in any way; an exception makes its status 1.
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(20)
    try:
        act(*arguments)
    except Exception:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def check_end(pid, status=0):
    got = os.waitpid(pid, 0)[1]
    assert got == status, got
"""

ORDERS = r"""
def drop():
    global shm
    del shm

def drop_viewed():
    view = memoryview(shm)
    drop()
    assert view[1] == 7
    view.release()

def leave_block():
    with shm, memoryview(shm)[1:] as view:
        assert view[0] == 7

def fork_again():
    for act in shm.close, drop, sys.exit:
        check_end(fork(act))
    assert shm[1] == 7

def make_own():
    with provider.new_shmem(10) as own, memoryview(own):
        assert own.is_owner
    try:
        with provider.clone_ref(shm) as clone:
            assert clone[1] == 7 and not clone.is_owner
    except FileNotFoundError:
        assert provider.name == "posix" # its owner has closed it, and with it its name
    shm.close()

WAYS = [
    lambda: shm.close(),
    drop,
    drop_viewed,
    leave_block,
    fork_again,
    make_own,
    lambda: os._exit(0),
    lambda: sys.exit(0),
    lambda: os.kill(os.getpid(), signal.SIGKILL),
    lambda: os.execv(sys.executable, [sys.executable, "-S", "-c", ""]),
]

def be_child(way, cue, place):
    os.read(cue, 1)
    assert not shm.is_owner and shm[1] == 7
    shm[place] = 1
    WAYS[way]()

def is_there():
    try:
        provider.shmem_from_id_and_size(id, 4096).close()
    except GONE:
        return False
    return True

KILLED = 8
fds = len(os.listdir("/proc/self/fd"))
for way in range(len(WAYS)):
    ways = way, (way + 1) % len(WAYS)
    for order in itertools.permutations([0, 1, "parent"]):
        shm = provider.new_shmem(4096)
        shm[1] = 7
        id = shm.id
        cues = [os.pipe(), os.pipe()]
        children = [fork(be_child, ways[i], cues[i][0], 10 + i) for i in (0, 1)]
        for turn in order:
            if turn == "parent":
                assert shm.is_owner and is_there()
                shm.close()
            else:
                os.write(cues[turn][1], b"x")
                check_end(children[turn], signal.SIGKILL if ways[turn] == KILLED else 0)
            if not shm.closed:
                assert shm.is_owner and is_there() and shm[1] == 7 and shm[10 + turn] == 1
            elif provider.name == "posix": # the others are there as long as a child has them
                assert not is_there()
        assert not is_there()
        for fd in itertools.chain(*cues):
            os.close(fd)
assert len(os.listdir("/proc/self/fd")) == fds
"""


@FORK
def test_children_and_parent_let_go_in_every_order(sharing: ShMemProvider, run_python: Any) -> None:
    run_python(COMMON + ORDERS, sharing.name)


THREADS = r"""
# Two threads fork while two others create, attach and close, and one holds a segment that all children inherit.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
sys.setswitchinterval(1e-6)
shared = provider.new_shmem(4096)
shared[1] = 7
kept = []
failures = []
until = time.monotonic() + float(sys.argv[2])
count = itertools.count()


def be_child(number, inherited):
    assert shared[1] == 7
    own = provider.new_shmem(100)
    own[:] = bytes([number]) * 100
    with open_provider(provider.name).shmem_from_description(own.description) as again:
        assert again[99] == number or provider.name == "nop"
    with provider.clone_ref(shared) as clone:
        assert clone[1] == 7 or provider.name == "nop"
    own.close()
    for shm in inherited: # any may have been closed, or be closing, when this child was made
        if number % 2:
            shm.__exit__(None, None, None)
    if number % 3 == 0:
        shared.close()
    if number % 5 == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def forking(number):
    turn = 0
    while turn <= 5 or time.monotonic() < until: # on a slow machine, too, children of both ends
        turn = next(count) % 240 + 1
        inherited = tuple(kept) # without the GIL, a list that another thread was changing stays locked in the child
        check_end(fork(be_child, turn, inherited), signal.SIGKILL if turn % 5 == 0 else 0)


def making(number):
    while time.monotonic() < until:
        shm = provider.new_shmem(10_000 + number)
        with provider.clone_ref(shm) as clone, memoryview(clone) as view:
            view[9999] = 1
        kept.append(shm)
        if len(kept) > 20:
            old = kept.pop(0)
            with provider.clone_ref(old): # its owner has it, whatever children do
                old.close()


def noting_failures(act, number):
    try:
        act(number)
    except BaseException as failure:
        failures.append(failure)
        traceback.print_exc()


threads = [
    threading.Thread(target=noting_failures, args=(act, number)) for act in (forking, making) for number in range(2)
]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with shared, provider.clone_ref(shared) as clone:
    assert shared.is_owner and shared[1] == 7
for shm in kept:
    provider.clone_ref(shm).close()
    shm.close()
os._exit(1 if failures else 0)
"""


@FORK
def test_threads_fork_while_others_create_and_close(provider: ShMemProvider, run_python: Any) -> None:
    run_python(COMMON + THREADS, provider.name, SECONDS)


INSIDE = r"""
# Children are forked while threads are inside calls on a segment. What they close is released.
import io
from held import held
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
shm = provider.new_shmem(4096)
clone = provider.clone_ref(shm)
is_over = False

def use():
    while not is_over:
        shm.description, clone.description, provider.clone_ref(shm).close()
        try:
            shm._users()
        except io.UnsupportedOperation:
            pass

def left():
    return {what for what in held() if "shm" in what or "SYSV" in what}

def be_child():
    assert shm[1] == 7
    shm.close()
    clone.close()
    time.sleep(0.001)
    assert shm.closed and clone.closed
    os._exit(10 if left() else 0)

shm[1] = 7
assert left()
threads = [threading.Thread(target=use) for _ in range(4)]
for thread in threads:
    thread.start()
ends = [os.waitpid(fork(be_child), 0)[1] for _ in range(int(sys.argv[2]))]
is_over = True
for thread in threads:
    thread.join()
shm.close()
clone.close()
# a thread that was making a clone, or listing, when its process was forked: that is lost, and rare
os._exit(0 if ends.count(0) >= 0.95 * len(ends) else 1)
"""


@FORK
@pytest.mark.needs("linux")
def test_a_child_releases_what_others_were_using(sharing: ShMemProvider, run_python: Any) -> None:
    run_python(COMMON + INSIDE, sharing.name, 60)


MULTIPROCESSING = r"""
import faulthandler, multiprocessing, os, sys
from shmem_providers import *

LIMIT = 20


def be_child(shm, end):
    assert not shm.is_owner and shm[1] == 7
    shm[2] += 1
    if end == "kill":
        os.kill(os.getpid(), 9)
    if end != "leave":
        shm.close()
    if end == "exit":
        sys.exit(3)
    if end == "_exit":
        os._exit(3)


def be_child_of_fork(end):
    be_child(inherited, end)


def main(method, name):
    global inherited
    context = multiprocessing.get_context(method)
    provider = open_provider(name)
    inherited = provider.new_shmem(4096)
    inherited[1] = 7
    ends = {"close": 0, "exit": 3, "_exit": 3, "kill": 9 if sys.platform == "win32" else -9}
    if method == "fork":
        ends["leave"] = 0
    processes = [
        context.Process(target=be_child_of_fork, args=(end,))
        if method == "fork"
        else context.Process(target=be_child, args=(inherited, end))
        for end in ends
    ]
    for number, (process, status) in enumerate(zip(processes, ends.values())):
        process.start()
        process.join(LIMIT)
        assert process.exitcode == status, process.exitcode
        with provider.clone_ref(inherited) as clone:
            assert (inherited.is_owner, clone[1], clone[2]) == (True, 7, number + 1)
    if method == "fork":
        with context.Pool(2, initializer=be_child_of_fork, initargs=("leave",)) as pool:
            pool.map_async(be_child_of_fork, ["leave", "leave", "close"]).get(LIMIT)
            pool.close()
            pool.join()
        with provider.clone_ref(inherited):
            assert inherited.is_owner
    id = inherited.id
    inherited.close()
    try:
        provider.shmem_from_id_and_size(id, 4096)
    except (FileNotFoundError, InvalidIdError):
        print("ok")


if __name__ == "__main__":
    faulthandler.dump_traceback_later(50, exit=True)
    main(*sys.argv[1:])
"""


@pytest.mark.parametrize("method", ["spawn", *(pytest.param(name, marks=FORK) for name in ("fork", "forkserver"))])
def test_multiprocessing_children_end_in_every_way(sharing: ShMemProvider, method: str, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(MULTIPROCESSING)
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", str(program), method, sharing.name]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", "")
