"""What every test can ask for: a provider to run over, a second interpreter, a look at what leaked."""

from __future__ import annotations

import ast
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest
from held import held, make_private, ownerless_names
from mechanisms import AVAILABLE, CAPABILITIES, SHARING, WRAPPING
from mechanisms import can as has_capability

from shmem_providers import ShMemProvider, open_provider
from shmem_providers._providers import probe_providers

TESTS = os.path.dirname(__file__)

# What else @pytest.mark.needs(...) may name: whether this platform has it, and what it is that another lacks.
PLATFORM = {
    "fork": (hasattr(os, "fork"), "there is no fork here"),
    "linux": (sys.platform == "linux", "it looks into /proc, /dev/shm or ELF files"),
    "users": (hasattr(os, "setuid"), "no process can become another user here: test_windows.py reads who may open"),
    "limits": (find_spec("resource") is not None, "there are no limits of descriptors here"),
    "unix": (os.name == "posix", "it is for Unix, its shell and its compilers"),
    "signals": (sys.platform != "win32", "no signal asks a process to end here: an ended one was killed"),
}
for _name in CAPABILITIES:
    PLATFORM[_name] = (_name in dict(probe_providers()), f"{_name} is a mechanism of other systems")

# What tools/test_wheel.sh says, in SHMP_LACKS, that its Python lacks; parts of the names of tests that want it; and why
# they would tell nothing about this library.
_COMPILER = "this machine's C compiler makes programs for another libc or CPU than this Python's"
_NUMPY = "NumPy has no wheel that works here"
_ADVICE = "qemu follows no advice: to wipe a page on fork, to reserve System V memory"
_MARKS = "qemu does not pass on the hint in which posix says what a name is"
_ITS_OWN = "qemu has threads, memory and mappings of its own"
LACKS = {
    "compiler": {"tests/consumers/": _COMPILER, "tests/test_embed.py": _COMPILER, "tests/test_readme.py": _COMPILER},
    "numpy": {"numpy": _NUMPY},
    "cpu": {  # qemu-user emulates one, and does the calls of the system as it thinks best
        "::test_a_forked_child_with_its_parents_pid_is_no_owner": _ADVICE,
        "::test_a_name_without_size_goes_by_reap_when_old": _COMPILER,
        "::test_a_shortage_is_an_error_at_creation[address_space": "qemu passes on no limit of the address space",
        "::test_a_shortage_is_an_error_at_creation[mappings": _ITS_OWN,
        "::test_a_leftover_is_made_anew_and_a_kept_one_stays": _MARKS,
        "::test_cycles_leave_nothing": _ITS_OWN,
        "::test_only_some_can_linger[posix": _MARKS,
        "::test_importing_is_light": _ITS_OWN,
        "::test_only_reserved_memory_is_there_for_sure[sysv-True": _ADVICE,
        "::test_reserved_memory_is_taken_at_once[sysv]": _ADVICE,
        "::test_reserving_more_than_a_container_has[sysv": _ADVICE,
        "::test_threads_fork_": "qemu can hang in the child of a process that has threads",
    },
}


def pytest_configure(config: pytest.Config) -> None:
    make_private()
    os.environ["SHMEM_SERVICE"] = "/nowhere/service"  # no test asks this user's own
    config.addinivalue_line(
        "markers", "needs(what, ...): skip where the platform lacks the provider, or what PLATFORM has"
    )


@pytest.hookimpl(tryfirst=True)  # before any fixture
def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for what in marker.args:
            is_here, reason = PLATFORM[what]
            if not is_here:
                pytest.skip(reason)


def pytest_collection_finish() -> None:
    """What is alive now stays: without this, each of the many collections below takes 30 ms."""
    gc.collect()
    gc.freeze()


def _is_too_much(item: pytest.Item) -> bool:
    """Whether it is one over what wraps, of another suite than that which is for every provider."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    return params.get("provider", params.get("sharing")) in WRAPPING and item.path.parent.name != "conformance"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = [item for item in items if not _is_too_much(item)]
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


@pytest.fixture(scope="session")
def service_address() -> Iterator[str]:
    """Where a service runs, as a process of its own, which is to end well."""
    with tempfile.TemporaryDirectory(prefix="shmp") as folder:
        address, log = f"{folder}/service", Path(folder, "log")
        with log.open("w") as stderr:
            command = [sys.executable, "-W", "error", "-m", "shmem_providers", "serve", "--address", address]
            process = subprocess.Popen(command, stderr=stderr)
        deadline = time.monotonic() + 60
        while "serving at" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield address
        process.terminate()
        assert process.wait(60) == 0
        assert "Traceback" not in log.read_text()


def _open(request: pytest.FixtureRequest) -> Iterator[ShMemProvider]:
    if "served" not in request.param:
        yield open_provider(request.param)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHMEM_SERVICE", request.getfixturevalue("service_address"))  # for second processes, too
        yield open_provider(request.param)


@pytest.fixture(params=[*AVAILABLE, "std", *WRAPPING])
def provider(request: pytest.FixtureRequest) -> Iterator[ShMemProvider]:
    """Every provider that works here."""
    yield from _open(request)


@pytest.fixture(params=[*SHARING, "std", *WRAPPING])
def sharing(request: pytest.FixtureRequest) -> Iterator[ShMemProvider]:
    """Every provider that works here and whose segments another process can attach to."""
    yield from _open(request)


@pytest.fixture
def can() -> Callable[[ShMemProvider, str], bool]:
    """Tell whether a provider's mechanism has a capability."""
    return has_capability


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
        path = os.pathsep.join([TESTS, *filter(None, [os.environ.get("PYTHONPATH")])])  # for held.py
        result = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, *map(str, args)],
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
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
        self.is_killed = False

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
        self.is_killed = True
        self.process.kill()
        self.process.communicate()

    def end(self) -> None:
        if self.is_killed:
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


@pytest.fixture
def nothing_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Check that a test that passed has left no descriptor, handle, mapping, name or segment."""

    def state() -> set[str]:
        gc.collect()
        return held()

    failures, before, names = request.session.testsfailed, state(), ownerless_names()
    yield
    request.node.funcargs.clear()  # a closed segment whose memory was exported keeps it
    if request.session.testsfailed > failures:
        return  # its traceback keeps its segments alive
    deadline = time.monotonic() + 2
    while state() - before and time.monotonic() < deadline:
        time.sleep(0.01)  # multiprocessing closes what it has sent in a thread
    assert state() - before == set()
    while ownerless_names() - names and time.monotonic() < deadline:
        time.sleep(0.01)  # another process's that is about to lock it
    assert ownerless_names() <= names
