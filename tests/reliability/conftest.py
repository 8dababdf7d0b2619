"""Processes to kill, and machines of their own for tests that fill, count or break what all processes share.

All that is Linux. On Windows there are no namespaces to have a machine of one's own in, no limits to lower, no users to
become, and nothing that is left over: what is promised there is in test_cycles.py and in ../test_windows.py.

SHMP_LONG=1 in the environment runs the long forms.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import gc
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pytest
from held import held_in_all

T = TypeVar("T", int, float)

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID = 0x20000, 0x8000000, 0x10000000, 0x20000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000


class NotOfThisSystem(pytest.Module):
    """A file of tests that is skipped as a whole: to import it would fail."""

    def collect(self) -> NoReturn:
        pytest.skip("it lowers limits, mounts, becomes other users or counts leftovers: Windows has none of it")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if sys.platform != "win32" or module_path.name == "test_cycles.py":
        return None
    return NotOfThisSystem.from_parent(parent, path=module_path)


@pytest.fixture
def as_root(missing: Callable[[str], NoReturn]) -> None:
    if os.getuid():
        missing("needs root, to become two other users and to make devices")


@pytest.fixture(scope="session")
def scale() -> Callable[[T, T], T]:
    """Choose between the size of a test's short and its long form."""
    return lambda short, long: long if os.environ.get("SHMP_LONG") else short


@pytest.fixture
def a_minute_later(tmp_path: Path, missing: Callable[[str], NoReturn]) -> dict[str, str]:
    """Give the environment of a program whose clock is a minute ahead: no call sets a file's ctime."""
    compiler = shutil.which("cc")
    if not compiler:
        missing("needs a C compiler: apt install gcc")
    source, library = tmp_path / "later.c", tmp_path / "later.so"
    source.write_text(
        "#define _GNU_SOURCE\n#include <time.h>\ntime_t time(time_t *unused) {\n"
        "(void)unused; struct timespec now; clock_gettime(CLOCK_REALTIME, &now); return now.tv_sec + 61; }\n"
    )
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()}


class ChildError(AssertionError):
    """What went wrong in a child, or how it was ended."""


def _serve(link: Connection, function: Callable[..., Any], args: tuple[Any, ...]) -> NoReturn:
    faulthandler.disable()  # a child that is to die dies quietly
    try:
        value = function(*args)
        for step in value if isinstance(value, Iterator) else [value]:
            link.send((None, step))
            link.recv()
        link.send((None, None))
    except EOFError:
        pass  # nobody listens any more
    except ChildError as problem:
        link.send((str(problem), None))
    except BaseException:
        link.send((traceback.format_exc(), None))
    os._exit(0)


class Child:
    """A forked process that runs a function.

    What the function returns, or each value that it yields, is the child's next; having given one,
    the child waits until it is asked for another.
    """

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self._link, link = Pipe()
        self._asked = True
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            self._link.close()
            _serve(link, function, args)
        link.close()

    def ask(self) -> None:
        if not self._asked:
            self._link.send(None)
        self._asked = True

    def next(self, timeout: float = 60) -> Any:
        self.ask()
        self._asked = False
        if not self._link.poll(timeout):
            self.kill()
            raise ChildError(f"the child was still busy after {timeout} s")
        try:
            problem, value = self._link.recv()
        except EOFError:
            status = self.wait()
            end = signal.Signals(-status).name if status < 0 else f"status {status}"
            raise ChildError(f"the child was ended by {end}") from None
        if problem:
            raise ChildError(problem)
        return value

    def wait(self) -> int:
        """Give its exit status once it has ended: a negative number is the signal that ended it."""
        if self._status is None:
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self._link.close()
        return self._status

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.wait()


@pytest.fixture(scope="session")
def fork() -> type[Child]:
    """`fork(function, *args)` gives a `Child`."""
    return Child


def _held() -> set[str]:
    gc.collect()
    return held_in_all()


@pytest.fixture(scope="session")
def held() -> Callable[[], set[str]]:
    """Give a function that tells what can leak: to be called on a machine of one's own."""
    return _held


def _call(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _unshare(flags: int) -> None:
    _call(_libc().unshare(flags))


@pytest.fixture(scope="session")
def unshare_pids() -> Callable[[], None]:
    """Give a function after which the caller's children live in a pid namespace of their own."""
    return lambda: _unshare(CLONE_NEWPID)


def _mount(kind: str, path: str, options: str = "") -> None:
    _call(_libc().mount(kind.encode(), path.encode(), kind.encode(), 0, options.encode()))


def _boot(shm: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    _call(_libc().mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None))
    _mount("proc", "/proc")
    _mount("tmpfs", "/dev/shm", shm)
    return function(*args)


def _leave(timeout: float, shm: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    os.setsid()
    uid, gid = os.getuid(), os.getgid()
    _unshare(CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | (CLONE_NEWUSER if uid else 0))
    if uid:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {uid} 1")
        Path("/proc/self/gid_map").write_text(f"0 {gid} 1")
    return Child(_boot, shm, function, args).next(timeout)


def _isolated(function: Callable[..., Any], *args: Any, shm: str = "mode=1777,size=256m", timeout: float = 60) -> Any:
    machine = Child(_leave, timeout, shm, function, args)
    try:
        return machine.next(timeout + 5)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(machine.pid, signal.SIGKILL)
        machine.kill()


def _not_isolated(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Call it where it is: on Windows all that a process has is its own."""
    return function(*args)


@pytest.fixture(scope="session")
def _why_not_isolated() -> str:
    if sys.platform == "win32":
        return ""
    try:
        _isolated(bool)
    except ChildError as problem:
        return str(problem).splitlines()[-1]
    return ""


@pytest.fixture
def isolated(_why_not_isolated: str, missing: Callable[[str], NoReturn]) -> Callable[..., Any]:
    """`isolated(function, *args, shm="size=1m")` runs it as root of a machine of its own.

    Its processes, /dev/shm (`shm` are the mount options) and System V segments are its own, and
    end with it.
    """
    if _why_not_isolated:
        missing(f"needs root, or user namespaces (unshare -r): {_why_not_isolated}")
    return _not_isolated if sys.platform == "win32" else _isolated
