"""A machine that has no more to give: an OSError at creation that says what to do, and nothing is lost."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import random
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from shmem_providers import ShMem, available_providers, open_provider

JUNK = Path("/dev/shm/junk")
ROOM = "mode=1777,size=64m,nr_inodes=100"
MIB = 1 << 20
PROVIDERS = [name for name in available_providers() if name != "nop"]

Fork = Callable[..., Any]
Held = Callable[[], set[str]]
Isolated = Callable[..., Any]
Missing = Callable[[str], NoReturn]


# ---- what runs out


@contextlib.contextmanager
def rlimit(kind: int, value: int) -> Iterator[None]:
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (value, before[1]))
    yield
    resource.setrlimit(kind, before)


def descriptors() -> AbstractContextManager[None]:
    lowest = os.dup(0)
    os.close(lowest)
    return rlimit(resource.RLIMIT_NOFILE, lowest + 4)


def address_space() -> AbstractContextManager[None]:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return rlimit(resource.RLIMIT_AS, pages * mmap.PAGESIZE + 32 * MIB)


def file_size() -> AbstractContextManager[None]:
    return rlimit(resource.RLIMIT_FSIZE, MIB - 1)


@contextlib.contextmanager
def mappings() -> Iterator[None]:
    """Use them up but for a few, by making every second page of a region a mapping of its own."""
    page, protect = mmap.PAGESIZE, ctypes.CDLL(None).mprotect
    protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    count = int(Path("/proc/sys/vm/max_map_count").read_text())
    region = mmap.mmap(-1, (count + 2) * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    at = ctypes.addressof(ctypes.c_char.from_buffer(region))
    while protect(at, page, mmap.PROT_READ) == 0:
        at += 2 * page
    for _ in range(3):
        at -= 2 * page
        protect(at, page, mmap.PROT_READ | mmap.PROT_WRITE)
    yield
    region.close()


def sysctl(name: str, value: int) -> Callable[[], AbstractContextManager[None]]:
    @contextlib.contextmanager
    def lowered() -> Iterator[None]:
        path = Path("/proc/sys/kernel", name)
        before = path.read_text()
        path.write_text(str(value))
        yield
        path.write_text(before)

    lowered.__name__ = name
    return lowered


def fill(leaving: int = 0) -> None:
    """Fill the file system of /dev/shm with a file that is none of ours."""
    with JUNK.open("wb", buffering=0) as junk, contextlib.suppress(OSError):
        while True:
            junk.write(bytes(MIB))
    os.truncate(JUNK, JUNK.stat().st_size - leaving)


@contextlib.contextmanager
def space() -> Iterator[None]:
    fill(leaving=3 * MIB)
    yield
    JUNK.unlink()


@contextlib.contextmanager
def inodes() -> Iterator[None]:
    made: list[Path] = []
    with contextlib.suppress(OSError):
        while True:
            made.append(JUNK.with_name(f"junk{len(made)}"))
            made[-1].touch()
    for path in made[-3:]:
        path.unlink(missing_ok=True)
    yield
    for path in made[:-3]:
        path.unlink()


@contextlib.contextmanager
def writing() -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,bind,ro", "/dev/shm"], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,bind,rw", "/dev/shm"], check=True)


# What is short; which provider; the size asked for; how many fit; the error.
SHORTAGES = [
    (descriptors, "memfd", 1, True, errno.EMFILE, r"memfd_create: .*ulimit -n"),
    (descriptors, "posix", 1, True, errno.EMFILE, r"shm_open: .*ulimit -n"),
    (address_space, "memfd", 9 * MIB, True, errno.ENOMEM, r"mmap: .*ulimit -v"),
    (address_space, "posix", 9 * MIB, True, errno.ENOMEM, r"mmap: .*ulimit -v"),
    (address_space, "sysv", 9 * MIB, True, errno.ENOMEM, r"shmat: .*ulimit -v"),
    (mappings, "memfd", 1, True, errno.ENOMEM, r"mmap: .*vm.max_map_count"),
    (mappings, "posix", 1, True, errno.ENOMEM, r"mmap: .*vm.max_map_count"),
    (mappings, "sysv", 1, True, errno.ENOMEM, r"shmat: .*vm.max_map_count"),
    (file_size, "memfd", MIB, False, errno.EFBIG, r"ftruncate: .*1048576 bytes.*ulimit -f"),
    (file_size, "posix", MIB, False, errno.EFBIG, r"ftruncate: .*1048576 bytes.*ulimit -f"),
    (space, "posix", 4 * MIB, False, errno.ENOSPC, r"ftruncate: .*4194304 bytes, /dev/shm has 3145728 free: remount"),
    (inodes, "posix", 1, True, errno.ENOSPC, r"shm_open: .*no inode left"),
    (writing, "posix", 1, False, errno.EROFS, r"shm_open: .*mount a tmpfs"),
    (sysctl("shmmax", MIB - 1), "sysv", MIB, False, errno.EINVAL, r"shmget: .*1048576 bytes.*kernel\.shmmax"),
    (sysctl("shmall", 700), "sysv", MIB, True, errno.ENOSPC, r"shmget: .*kernel\.shmall"),
    (sysctl("shmmni", 3), "sysv", 1, True, errno.ENOSPC, r"shmget: .*kernel\.shmmni"),
]


def run_short(
    held: Held, shortage: Callable[[], AbstractContextManager[None]], name: str, size: int, some_fit: bool
) -> tuple[int | None, str]:
    """Give the error with which creation ends."""
    provider, before = open_provider(name), held()
    segments = []
    error: tuple[int | None, str] = 0, "nothing was short"
    with shortage():
        try:
            for _ in range(100):
                segments.append(provider.new_shmem(size))
        except OSError as problem:
            error = problem.errno, str(problem)
        assert bool(segments) == some_fit
        for _ in range(3 * some_fit):  # what is freed can be had again
            segments.pop().close()
            segments.append(provider.new_shmem(size))
        for shm in segments:
            shm[size - 1] = 1
            shm.close()
    assert held() == before
    provider.new_shmem(size).close()
    return error


@pytest.mark.parametrize(
    ("shortage", "name", "size", "some_fit", "number", "message"),
    SHORTAGES,
    ids=[f"{row[0].__name__}-{row[1]}" for row in SHORTAGES],
)
def test_a_shortage_is_an_error_at_creation(
    shortage: Callable[[], AbstractContextManager[None]],
    name: str,
    size: int,
    some_fit: bool,
    number: int,
    message: str,
    isolated: Isolated,
    held: Held,
) -> None:
    got, text = isolated(run_short, held, shortage, name, size, some_fit, shm=ROOM)
    assert (got, bool(re.search(message, text))) == (number, True), text


def attach_without_descriptors(held: Held, name: str) -> None:
    provider, before = open_provider(name), held()
    with provider.new_shmem(1) as shm:
        attached: list[ShMem] = []
        with descriptors(), pytest.raises(OSError, match="ulimit -n"):
            attached.extend(provider.attach(shm.id) for _ in range(100))
        shm[0] = 7
        assert [other[0] for other in attached] == [7] * len(attached) != []
        for other in attached:
            other.close()
        with provider.attach(shm.id) as other:
            assert other[0] == 7
    assert held() == before


@pytest.mark.parametrize("name", [name for name in PROVIDERS if name != "sysv"])
def test_attaching_without_descriptors(name: str, isolated: Isolated, held: Held) -> None:
    isolated(attach_without_descriptors, held, name)


@pytest.mark.parametrize("reserve", [False, True])
def test_a_file_system_without_a_limit_is_not_full(reserve: bool, isolated: Isolated) -> None:
    isolated(lambda: open_provider("posix").new_shmem(MIB, reserve=reserve).close(), shm="size=0")


# ---- SIGBUS


def touch(name: str, reserve: bool) -> Iterator[str]:
    with open_provider(name).new_shmem(32 * MIB, reserve=reserve) as shm:
        yield "created"
        for at in range(0, len(shm), mmap.PAGESIZE):
            shm[at] = 1
        yield "touched"


def touch_when_full(fork: Fork, name: str, reserve: bool) -> str:
    user = fork(touch, name, reserve)
    assert user.next() == "created"
    fork(fill).next()
    assert os.statvfs("/dev/shm").f_bavail == 0
    try:
        return str(user.next())
    except AssertionError as problem:
        return str(problem)


@pytest.mark.parametrize(
    ("name", "reserve", "outcome"),
    [(name, True, "touched") for name in PROVIDERS] + [("posix", False, "the child was ended by SIGBUS")],
)
def test_only_reserved_memory_is_there_for_sure(
    name: str, reserve: bool, outcome: str, isolated: Isolated, fork: Fork
) -> None:
    assert isolated(touch_when_full, fork, name, reserve, shm=ROOM) == outcome


def fill_until(end: float, path: Path) -> None:
    while time.monotonic() < end:
        with path.open("wb", buffering=0) as junk, contextlib.suppress(OSError):
            for _ in range(random.randrange(64)):
                junk.write(bytes(MIB))
        path.unlink()


def touch_until(end: float) -> tuple[int, int]:
    provider, made, refused = open_provider("posix"), 0, 0
    while time.monotonic() < end:
        size = random.randint(1, 32 * MIB)
        try:
            shm = provider.new_shmem(size, reserve=True)
        except OSError as problem:
            if problem.errno != errno.ENOSPC:
                raise
            refused += 1
            continue
        for at in range(0, size, mmap.PAGESIZE):
            shm[at] = 1
        shm.close()
        made += 1
    return made, refused


def touch_while_filling(fork: Fork, seconds: float) -> tuple[int, int]:
    end = time.monotonic() + seconds
    fillers = [fork(fill_until, end, JUNK.with_name(f"junk{i}")) for i in range(2)]
    made, refused = fork(touch_until, end).next(seconds + 30)
    for filler in fillers:
        filler.next()
    assert os.listdir("/dev/shm") == []
    return made, refused


def test_reserving_while_others_fill(isolated: Isolated, fork: Fork, scale: Callable[[float, float], float]) -> None:
    seconds = scale(2, 60)
    made, refused = isolated(touch_while_filling, fork, seconds, shm=ROOM, timeout=seconds + 60)
    print(f"{made} segments were made and touched, {refused} refused")
    assert made > 0
    assert refused > 0


# ---- a container's limit


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A memory cgroup of 64 MiB."""
    for root, limit in ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max"):
        group = Path(root, f"shmem_providers_test_{os.getpid()}")
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            break
        group.rmdir()
    else:
        pytest.skip("no memory cgroup can be made here: needs root and a memory controller in /sys/fs/cgroup")
    (group / limit).write_text(str(64 * MIB))
    if (group / "memory.swap.max").exists():
        (group / "memory.swap.max").write_text("0")
    yield group
    for _ in range(100):
        try:
            return group.rmdir()
        except OSError:  # the process in it is ending
            time.sleep(0.05)
    raise AssertionError(f"{group} stays")


def reserve_in(cgroup: Path, name: str) -> str:
    (cgroup / "cgroup.procs").write_text(str(os.getpid()))
    provider = open_provider(name)
    with provider.new_shmem(16 * MIB, reserve=True):
        pass
    with pytest.raises(OSError, match="container") as caught:
        provider.new_shmem(128 * MIB, reserve=True)
    assert caught.value.errno == errno.ENOMEM
    with provider.new_shmem(16 * MIB, reserve=True) as shm:
        shm[:] = bytes(len(shm))
    return str(caught.value)


@pytest.mark.parametrize(("name", "call"), [("memfd", "fallocate"), ("posix", "fallocate"), ("sysv", "madvise")])
def test_reserving_more_than_a_container_has(
    name: str, call: str, isolated: Isolated, fork: Fork, cgroup: Path
) -> None:
    assert call in isolated(lambda: fork(reserve_in, cgroup, name).next())
