"""Threads on shared handles, garbage collection, and the end of an interpreter.

The storm lasts SHMP_STORM_SECONDS a provider. Much of it says something only without the GIL or under a sanitizer.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import io
import os
import pickle
import random
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import pytest

from shmem_providers import ShMem, ShMemDescription, ShMemProvider, available_providers, open_provider

pytestmark = pytest.mark.usefixtures("nothing_leaks")

THREADS = 8
PART = 64  # bytes that belong to one thread
SIZE = 8192
CONSTANT = bytes(range(256)) * 8  # in the second half, which nobody writes
SECONDS = float(os.environ.get("SHMP_STORM_SECONDS", "0.3"))


@pytest.fixture(autouse=True)
def switch_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_threads(target: Callable[[int], None]) -> None:
    """Run target(0) to target(THREADS - 1) at once; what comes out of one comes out of here."""
    failures: list[BaseException] = []
    together = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            together.wait()
            target(number)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_the_gil_stays_off() -> None:
    """On a free-threaded interpreter a module that did not say that it can do without would turn it on."""
    if not hasattr(sys, "_is_gil_enabled") or "free-threading" not in sys.version:
        pytest.skip("this interpreter always has a GIL: tools/python.sh 314t builds one without")
    assert not sys._is_gil_enabled()


class Deliberate(Exception):
    pass


class Storm:
    """Operations that threads do at random to handles they share.

    A handle's own part is written by one thread only, so that what it reads there is known.
    """

    def __init__(self, provider: ShMemProvider) -> None:
        self.provider = provider
        self.made: list[weakref.ref[ShMem]] = []
        self.gone: list[object] = []
        self.handles = [self.new() for _ in range(4)]
        self.replacing = threading.Lock()

    def watch(self, shm: ShMem) -> ShMem:
        self.made.append(weakref.ref(shm, self.gone.append))
        return shm

    def new(self) -> ShMem:
        shm = self.watch(self.provider.new_shmem(SIZE))
        shm[SIZE // 2 : SIZE // 2 + len(CONSTANT)] = CONSTANT
        return shm

    def index(self, shm: ShMem, mine: int) -> None:
        shm[mine] = value = random.randrange(256)
        assert shm[mine] == value
        with pytest.raises((IndexError, ValueError)):
            shm[SIZE]

    def slice(self, shm: ShMem, mine: int) -> None:
        shm[mine : mine + PART] = data = random.randbytes(PART)
        assert shm[mine : mine + PART] == data
        shm[mine : mine + PART : 2] = data[::2]
        assert shm[mine : mine + PART : 3] == data[::3]

    def view(self, shm: ShMem, mine: int) -> None:
        with memoryview(shm) as memory, memory[mine : mine + PART] as part:
            part[:] = data = random.randbytes(PART)
            assert bytes(part) == data

    def constant(self, shm: ShMem, mine: int) -> None:
        assert shm[SIZE // 2 : SIZE // 2 + len(CONSTANT)] == CONSTANT
        with memoryview(shm) as memory:
            assert memory[SIZE // 2 : SIZE // 2 + 256] == CONSTANT[:256]

    def attach(self, shm: ShMem, mine: int) -> None:
        with self.watch(self.provider.shmem_from_description(shm.description)) as other:
            self.check(other, bytes(256) if other.provider_name == "nop" else CONSTANT[:256])

    def clone(self, shm: ShMem, mine: int) -> None:
        with self.watch(self.provider.clone_ref(shm)) as other:
            self.check(other)

    def pickle(self, shm: ShMem, mine: int) -> None:
        try:
            with pickle.loads(pickle.dumps(shm)) as other:
                self.check(other)
        except TypeError:
            assert shm.provider_name == "nop"

    def check(self, other: ShMem, expected: bytes = CONSTANT[:256]) -> None:
        assert other[SIZE // 2 : SIZE // 2 + 256] == expected

    def describe(self, shm: ShMem, mine: int) -> None:
        assert shm.id == shm.description.id
        assert (len(shm), shm.is_owner) == (SIZE, True)
        assert repr(shm).startswith("<ShMem ")

    def close(self, shm: ShMem, mine: int) -> None:
        shm.close()
        assert shm.closed

    def leave(self, shm: ShMem, mine: int) -> None:
        try:
            with shm:
                raise Deliberate
        except Deliberate:
            assert shm.closed

    def replace(self, shm: ShMem, mine: int) -> None:
        """Drop one of the handles, open or closed, that others may be using."""
        with self.replacing:
            self.handles[random.randrange(len(self.handles))] = self.new()

    def collect(self, shm: Any, mine: int) -> None:
        shm = self.watch(self.provider.new_shmem(10))
        cycle: list[object] = [shm, memoryview(shm)]
        cycle.append(cycle)
        del shm
        if random.random() < 0.1:
            del cycle
            gc.collect(0)

    def blow(self, number: int) -> None:
        operations = [
            self.index, self.slice, self.view, self.constant, self.attach, self.clone, self.pickle,
            self.describe, self.close, self.leave, self.replace, self.replace, self.collect,
        ]  # fmt: skip
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            for operation in random.sample(operations, len(operations)):
                shm = random.choice(self.handles)
                try:
                    operation(shm, number * PART)
                except (ValueError, BufferError, FileNotFoundError):
                    # closed; viewed; closed between asking for its id and attaching
                    if operation == self.replace or operation == self.collect:
                        raise


def test_a_storm_of_operations_on_shared_handles(provider: ShMemProvider) -> None:
    storm = Storm(provider)
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it drops open handles on purpose
        run_threads(storm.blow)
        storm.handles.clear()
        gc.collect()
    assert len(storm.gone) == len(storm.made) > 5 * THREADS


SENDERS = r"""
import multiprocessing.reduction, pickle, sys, threading
from held import held
from shmem_providers import *
provider = open_provider(sys.argv[1])
failures = []

def send(number):
    try:
        for shm in segments:
            try:
                data = multiprocessing.reduction.ForkingPickler.dumps(shm)
            except (ValueError, FileNotFoundError): # closed; closed between two steps
                continue
            if number % 2:
                shm.close() # on its way it stays
            with pickle.loads(data) as received:
                assert received[0] == 7
    except BaseException as failure:
        failures.append(failure)

for turn in range(3):
    if turn:
        before = held()
    segments = [provider.new_shmem(4096) for _ in range(20)]
    for shm in segments:
        shm[0] = 7
    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    for shm in segments: shm.close()
provider.new_shmem(1).close() # looks at what was received
assert failures == [], failures
assert held() - before == set()
"""


def test_threads_pickle_for_multiprocessing(sharing: ShMemProvider, run_python: Any) -> None:
    run_python(SENDERS, sharing.name)


def test_one_of_many_releases(provider: ShMemProvider) -> None:
    """Close, leave a `with` block, release the last view: whoever is last lets go, once, and the others see it closed.

    A second release would be an error of the system (of close, munmap or shmdt), or free() ending the process.
    """
    segments = list[ShMem]()
    together = threading.Barrier(THREADS)

    def let_go(number: int) -> None:
        for shm in segments:
            together.wait()
            try:
                if number < 3:
                    shm.close()
                elif number < 5:
                    shm.__exit__(None, None, None)
                else:
                    with memoryview(shm) as view:
                        view[number] = shm[number]
            except (ValueError, BufferError):
                pass  # closed; viewed
            together.wait()
            assert shm.closed
            with pytest.raises(ValueError, match="closed"):
                shm[0]

    for _ in range(1 + int(SECONDS)):
        segments[:] = [provider.new_shmem(4096) for _ in range(200)]
        run_threads(let_go)


def test_a_close_waits_for_copies_under_way(provider: ShMemProvider) -> None:
    size = 4_000_000
    segments = [provider.new_shmem(size) for _ in range(4)]

    def copy(number: int) -> None:
        for shm in segments:
            if number == 0:
                time.sleep(0.0003)
                shm.close()
            else:
                with contextlib.suppress(ValueError):  # closed
                    assert not shm[:: number % 2 + 1].strip(b"\0")

    run_threads(copy)
    assert all(shm.closed for shm in segments)


def test_a_dropped_handle_is_released_by_its_last_view(provider: ShMemProvider) -> None:
    views = []
    for number in range(100):
        with provider.new_shmem(4096) as shm:
            shm[0] = number
            views.append([memoryview(shm) for _ in range(THREADS)])
    del shm

    def release(number: int) -> None:
        for value, shared in enumerate(views):
            view = shared[number]
            assert view[0] == value
            view.release()

    run_threads(release)


def test_a_provider_is_opened_and_dropped_by_all(provider: ShMemProvider) -> None:
    def use(number: int) -> None:
        for _ in range(20):
            with open_provider(provider.name).new_shmem(10) as shm:
                shm[9] = number
                assert shm[:] == bytes([0] * 9 + [number])

    run_threads(use)


LOOK = """
import gc, sys, threading, time
from shmem_providers import *

class Mine(ShMem): # has a dict, and so gc knows its objects
    pass

class Provider(ShMemProvider):
    _shmem_type = Mine
    def __init__(self, *arguments): pass

sys.setswitchinterval(1e-6)
until = time.monotonic() + max(float(sys.argv[2]), 1)

def make():
    while time.monotonic() < until:
        with Provider(sys.argv[1]).new_shmem(4096) as shm, shm_of(shm) as other:
            repr(other)

def shm_of(shm):
    return provider.shmem_from_description(shm.description)

provider = Provider(sys.argv[1])
threads = [threading.Thread(target=make) for _ in range(3)]
for thread in threads: thread.start()
looked = 0
while time.monotonic() < until or not looked: # a busy machine may take all of that time to start
    for each in gc.get_objects(): # as memory profilers do
        if isinstance(each, (ShMem, ShMemProvider)):
            repr(each), each.fd_ids if isinstance(each, ShMemProvider) else (each.closed, each.size, each.readonly)
            looked += 1
for thread in threads: thread.join()
assert looked
"""


def test_who_looks_at_all_objects_finds_no_half_made_one(provider: ShMemProvider, run_python: Any) -> None:
    run_python(LOOK, provider.name, SECONDS)


# Calls that must let other threads run. A segment that is made is given back, for its end lets them run, too.
OUTSIDE_THE_GIL: dict[str, Callable[[ShMemProvider, ShMem, ShMemDescription], object]] = {
    "new_shmem": lambda provider, shm, what: provider.new_shmem(1),
    "shmem_from_id_and_size": lambda provider, shm, what: provider.shmem_from_id_and_size(what.id, 1),
    "close": lambda provider, shm, what: provider.clone_ref(shm).close(),
    "open": lambda provider, shm, what: ShMemProvider(provider.name),
    "open std": lambda provider, shm, what: open_provider("std"),
    "describe": lambda provider, shm, what: shm.description,
    "env": lambda provider, shm, what: shm._env_description("X"),
    "users": lambda provider, shm, what: shm._users(),
    "limits": lambda provider, shm, what: provider._limits(),
    "list": lambda provider, shm, what: provider._list(),
    "reap": lambda provider, shm, what: provider._reap(True),
}


@pytest.mark.parametrize("call", OUTSIDE_THE_GIL)
def test_a_call_lets_other_threads_run(call: str) -> None:
    """A thread that wants the GIL, and is given it by nobody else: this one keeps it for an hour, but in the call."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        pytest.skip("there is no GIL to let go of")
    provider = open_provider("posix" if "posix" in available_providers() else available_providers()[0])
    wanted, had, made = threading.Event(), threading.Event(), list[ShMem]()
    with provider.new_shmem(4096) as shm:
        act, what = OUTSIDE_THE_GIL[call], shm.description
        try:
            if isinstance(result := act(provider, shm, what), ShMem):
                made.append(result)
        except io.UnsupportedOperation as reason:
            pytest.skip(str(reason))

        def want() -> None:
            wanted.wait()
            had.set()

        waiting = threading.Thread(target=want)
        waiting.start()
        sys.setswitchinterval(3600)
        until = time.monotonic() + 5
        wanted.set()
        while not had.is_set() and time.monotonic() < until and len(made) < 500:
            if isinstance(result := act(provider, shm, what), ShMem):
                made.append(result)
        was_given = had.is_set()
        sys.setswitchinterval(1e-6)
        waiting.join()
        for each in made:
            each.close()
    assert was_given


# ---- the end of an interpreter

# How a program holds what it did not close, and whether the end of the program closes it.
HELD_AT_EXIT = {
    "globals": ("keep = shm", True),
    "globals, viewed": ("keep = memoryview(shm); del shm", True),
    "a view of a view": ("keep = [memoryview(shm)[1:].cast('B')]; keep.append(keep[0][2:]); del shm", True),
    "a ctypes instance": ("keep = shm.as_ptr_of(ctypes.c_uint64); del shm", True),
    "a cursor": ("keep = io.BufferedWriter(ShMemCursor(shm)); keep.write(b'unflushed')", True),
    "a cycle": ("cycle = [shm, memoryview(shm)]; cycle.append(cycle); del cycle, shm", True),
    "a cycle of a subclass": ("class Mine(type(shm)): pass\nMine.keep = shm; del shm", True),
    "another module": ("sys.keep = shm; sys.view = memoryview(shm); del shm", True),
    "builtins": ("builtins.keep = shm; builtins.view = memoryview(shm); del shm", True),
    "atexit": ("atexit.register(shm.__exit__, None, None, None); view = memoryview(shm)", True),
    "a weak reference": ("end = weakref.finalize(shm, print); del shm; weakref.ref(provider)", True),
    "a finalizer": ("class F:\n    def __del__(self, shm=shm): shm.close(); assert shm.closed\nf = F(); del shm", True),
    "a thread": ("threading.Thread(target=lambda shm=shm: (time.sleep(0.1), shm[0])).start(); del shm", True),
    "an ndarray": ("keep = shm_array(shm); shm.close(); del shm", True),
    "an ndarray in a cycle": ("keep = [shm_array(shm), shm]; keep.append(keep); del keep, shm", True),
    "an ndarray in a finalizer": (
        "class F:\n    def __del__(self, a=shm_array(shm)): a[0] += 1; assert a[0]\n"
        "f = F(); sys.f = F(); shm.close(); del shm",
        True,
    ),
    "a daemon thread": (
        "def use(shm, view):\n"
        "    while True: view[0] = shm[1]; shm[0:10]; provider.clone_ref(shm).close()\n"
        "threading.Thread(target=use, args=(shm, memoryview(shm)), daemon=True).start(); del shm; time.sleep(0.01)",
        False,
    ),
}
EXIT = """
import atexit, builtins, ctypes, faulthandler, io, sys, threading, time, weakref
from shmem_providers import *
provider = open_provider({name!r})
shm = provider.new_shmem(4096)
print(shm.id, flush=True)
def shm_array(shm):
    import numpy
    return numpy.ndarray((4096,), "u1", buffer=shm)
{held}
"""


@pytest.mark.parametrize("held", HELD_AT_EXIT)
def test_an_interpreter_ends_with_an_open_segment(
    sharing: ShMemProvider, run_python: Any, held: str, request: pytest.FixtureRequest
) -> None:
    """It warns, if told to, and ends as always.

    What a daemon thread holds nobody can release: a posix name stays, as if the process had been killed.
    """
    statement, closes = HELD_AT_EXIT[held]
    if "shm_array" in statement:
        request.getfixturevalue("numpy")
    program = EXIT.format(name=sharing.name, held=statement)
    id = run_python(f"import warnings; warnings.simplefilter('ignore')\n{program}").split()[0]
    if not closes and sharing.name == "posix":
        open_provider("posix")
    with pytest.raises(FileNotFoundError):
        sharing.shmem_from_id_and_size(id, 4096)


def test_an_interpreter_ends_with_a_warning(provider: ShMemProvider, run_python: Any) -> None:
    program = EXIT.format(name=provider.name, held="view = memoryview(shm)")
    with pytest.raises(AssertionError, match=f"ResourceWarning: unclosed <ShMem {provider.name} of 4096 bytes, open>"):
        run_python(program)


# ---- subinterpreters

USE = """
import shmem_providers
provider = shmem_providers.StdShMemProvider()
with provider.new_shmem(100) as shm, provider.clone_ref(shm) as clone, memoryview(clone) as view:
    view[0] = 1
    assert isinstance(clone, shmem_providers.ShMem)
    try:
        clone.close()
    except BufferError:
        view.release()
try:
    provider.shmem_from_id_and_size("a b", 1)
except shmem_providers.InvalidIdError:
    pass
"""
SUBINTERPRETERS = """
{first}
import {module} as interpreters, threading
def run(config, code):
    number = interpreters.create(*config)
    try:
        if failure := interpreters.run_string(number, code):
            print("refused:", failure.formatted)
    except interpreters.RunFailedError as failure:
        print("refused:", failure)
    interpreters.destroy(number)
for config in {configurations}:
    run(config, {use!r})
    other = threading.Thread(target=run, args=(config, {use!r} + "left_open = provider.new_shmem(10)"))
    other.start()
    if not {first!r}.startswith("pass"):
        exec({use!r})
    other.join()
exec({use!r})
"""


@pytest.mark.parametrize("first", ["import shmem_providers", "pass # the first interpreter comes last"])
def test_a_subinterpreter_works_or_is_refused(run_python: Any, missing: Callable[[str], NoReturn], first: str) -> None:
    """Since 3.12 an isolated one refuses such a module, and on a free-threaded Python any; in all others it works."""
    module = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    if not importlib.util.find_spec(module):
        missing("needs CPython's subinterpreters")
    configurations = [("isolated",), ("legacy",)] if module == "_interpreters" else [()]
    refusals = run_python(
        SUBINTERPRETERS.format(first=first, module=module, configurations=configurations, use=USE)
    ).splitlines()
    assert all("ImportError" in refusal for refusal in refusals)
    assert all("does not support loading in subinterpreters" in refusal for refusal in refusals)
    assert len(refusals) in ([0] if sys.version_info < (3, 12) else [2, 4])
