"""What every test can ask for: a provider to run over, a second interpreter, a look at what leaked."""

from __future__ import annotations

import ast
import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from shmem_providers import ShMemProvider, available_providers, open_provider

# What each mechanism can do; what it cannot, the suite checks to be refused. A new one needs a row here.
CAPABILITIES = {
    "memfd": {"shares", "fileno", "persist", "reserve", "fd_ids", "id_of_any_handle"},
    "posix": {"shares", "fileno", "persist", "reserve", "fd_ids", "named"},
    "sysv": {"shares", "reserve", "id_of_any_handle"},
    "nop": set[str](),
}

# What tools/test_wheel.sh says, in SHMP_LACKS, that its Python lacks; parts of the names of tests that want it; and why
# they would tell nothing about this library.
_COMPILER = "this machine's C compiler makes programs for another libc or CPU than this Python's"
_NUMPY = "NumPy has no wheel that works here"
_ADVICE = "qemu follows no advice: to wipe a page on fork, to reserve System V memory"
_ITS_OWN = "qemu has threads, memory and mappings of its own"
LACKS = {
    "compiler": {"tests/consumers/": _COMPILER, "::test_examples": _COMPILER},
    "numpy": {"numpy": _NUMPY, "::test_the_readme_example": _NUMPY},
    "cpu": {  # qemu-user emulates one, and does the calls of the system as it thinks best
        "::test_a_forked_child_with_its_parents_pid_is_no_owner": _ADVICE,
        "::test_a_name_without_size_goes_by_reap_when_old": _COMPILER,
        "::test_a_shortage_is_an_error_at_creation[address_space": "qemu passes on no limit of the address space",
        "::test_a_shortage_is_an_error_at_creation[mappings": _ITS_OWN,
        "::test_cycles_leave_nothing": _ITS_OWN,
        "::test_importing_is_light": _ITS_OWN,
        "::test_only_reserved_memory_is_there_for_sure[sysv-True": _ADVICE,
        "::test_reserved_memory_is_taken_at_once[sysv]": _ADVICE,
        "::test_reserving_more_than_a_container_has[sysv": _ADVICE,
    },
}

AVAILABLE = available_providers()
SHARING = [name for name in AVAILABLE if "shares" in CAPABILITIES[name]]


def pytest_collection_finish() -> None:
    """What is alive now stays: without this, each of the many collections below takes 30 ms."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for lack in os.environ.get("SHMP_LACKS", "").split():
        for part, reason in LACKS[lack].items():
            for item in items:
                if part in item.nodeid:
                    item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """Skip for want of something; where CI must have it, fail."""

    def missing(reason: str) -> NoReturn:
        if os.environ.get("SHMP_CI"):
            pytest.fail(reason)
        pytest.skip(reason)

    return missing


@pytest.fixture
def numpy(missing: Callable[[str], NoReturn]) -> Any:
    try:
        import numpy
    except ImportError:
        missing("needs NumPy: pip install numpy")
    return numpy


@pytest.fixture(params=[*AVAILABLE, "std"])
def provider(request: pytest.FixtureRequest) -> ShMemProvider:
    """Every provider that works here."""
    return open_provider(request.param)


@pytest.fixture(params=[*SHARING, "std"])
def sharing(request: pytest.FixtureRequest) -> ShMemProvider:
    """Every provider that works here and whose segments another process can attach to."""
    return open_provider(request.param)


@pytest.fixture
def can() -> Callable[[ShMemProvider, str], bool]:
    """Tell whether a provider's mechanism has a capability."""
    return lambda provider, capability: capability in CAPABILITIES[provider.name]


@pytest.fixture(params=["own", "std"])
def taker(request: pytest.FixtureRequest, sharing: ShMemProvider) -> str:
    """The name of the provider with which a second process attaches to segments of `sharing`."""
    return sharing.name if request.param == "own" else "std"


@pytest.fixture
def run_python() -> Callable[..., str]:
    """Give a function that runs a second, unrelated interpreter and gives what it printed.

    Every warning there is an error, and nothing may appear on its stderr: a leaked segment or an
    exception in a destructor would.
    """

    def run_python(
        code: str, *args: object, env: dict[str, str] | None = None, pass_fds: Sequence[int] = (), timeout: float = 60
    ) -> str:
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *map(str, args)],
            env={**os.environ, **(env or {})},
            pass_fds=tuple(pass_fds),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout

    return run_python


_PEER = """
import ast, os, sys, traceback
from shmem_providers import *
names = globals()
for line in sys.stdin:
    source, values = ast.literal_eval(line)
    names.update(values)
    try:
        try:
            code = compile(source, "<asked>", "eval")
        except SyntaxError:
            code = compile(source, "<asked>", "exec")
        answer = "", eval(code, names)
    except Exception as raised:
        answer = type(raised).__name__, str(raised)
        del raised
    print(repr(answer), flush=True)
"""


class Peer:
    """A second, unrelated process that runs what it is asked: `peer("shm[:5]")` gives the value.

    What it ends with on its stderr, such as a ResourceWarning, fails the test.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-W", "error", "-c", _PEER]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)

    def _ask(self, source: str, values: dict[str, object]) -> tuple[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        print(repr((source, values)), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        assert answer, "the second process has ended"
        raised, value = ast.literal_eval(answer)
        return raised, value

    def __call__(self, source: str, **values: object) -> Any:
        raised, value = self._ask(source, values)
        assert not raised, f"{raised}: {value}"
        return value

    def raises(self, source: str, **values: object) -> tuple[str, str]:
        """Give the name and message of the exception."""
        raised, value = self._ask(source, values)
        assert raised, f"nothing was raised; the value is {value!r}"
        return raised, value

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        if self.process.poll() == -signal.SIGKILL:
            return
        errors = self.process.communicate(timeout=60)[1]
        assert errors == ""
        assert self.process.returncode == 0


@pytest.fixture
def start_peer(request: pytest.FixtureRequest) -> Iterator[Callable[[], Peer]]:
    """Give a function that starts a second process, which ends with the test."""
    failures = request.session.testsfailed
    peers: list[Peer] = []

    def start() -> Peer:
        peers.append(Peer())
        return peers[-1]

    yield start
    try:
        for peer in peers:
            if request.session.testsfailed == failures:
                peer.end()
    finally:
        for peer in peers:
            peer.kill()


@pytest.fixture
def peer(start_peer: Callable[[], Peer]) -> Peer:
    """A second process."""
    return start_peer()


def _descriptors() -> Iterator[str]:
    """Give the open descriptors, but for the sockets of multiprocessing's threads and this look itself."""
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = os.readlink(f"/proc/self/fd/{number}")
            if not target.startswith("socket:"):
                yield f"descriptor {number} of {target}"


def _shared_mappings() -> list[str]:
    maps = Path("/proc/self/maps").read_text().splitlines()
    return sorted(line for line in maps if line.split()[1].endswith("s"))


def _sysv_segments() -> list[str]:
    """Give the ids of the System V segments that this process has created and that exist."""
    lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return sorted(fields[1] for fields in map(str.split, lines) if int(fields[4]) == os.getpid())


def _ownerless_names() -> set[str]:
    """Give our names in /dev/shm that no process holds: the live ones may be any other process's."""
    names = {}
    for path in Path("/dev/shm").glob("shmp_*"):
        with contextlib.suppress(FileNotFoundError):
            names[path.name] = path.stat().st_ino
    locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    held = {
        int(fields[5].rpartition(":")[2]) for fields in locks if fields[1] == "FLOCK" and int(fields[4]) != os.getpid()
    }
    return {name for name, inode in names.items() if inode not in held}


@pytest.fixture
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check that a test that passed has left no descriptor, mapping, name or segment."""

    def state() -> set[str]:
        gc.collect()
        return {*_descriptors(), *_shared_mappings(), *_sysv_segments()}

    failures, before, names = request.session.testsfailed, state(), _ownerless_names()
    yield
    if request.session.testsfailed > failures:
        return  # its traceback keeps its segments alive
    deadline = time.monotonic() + 2
    while state() - before and time.monotonic() < deadline:
        time.sleep(0.01)  # multiprocessing closes what it has sent in a thread
    assert state() - before == set()
    while _ownerless_names() - names and time.monotonic() < deadline:
        time.sleep(0.01)  # another process's that is about to lock it
    assert _ownerless_names() <= names
