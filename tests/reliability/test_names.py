"""How long an id works, tried by a process that was not there before; and names that many make at once."""

from __future__ import annotations

import contextlib
import mmap
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmem_providers import MmapShMemProvider, ShMemProvider, UnixShMemProvider, lib, open_provider

pytestmark = pytest.mark.needs("linux", "posix", "sysv")

SHM = Path("/dev/shm")
SIZE = 4096

Scale = Callable[[int, int], int]
Fork = Callable[..., Any]
Isolated = Callable[..., Any]


def keeping(name: str) -> ShMemProvider:
    """Open a provider that leaves leftovers alone."""
    return ShMemProvider(name, lib.SHMP_KEEP_LEFTOVERS)


# ---- how long an id works


def own(name: str) -> Iterator[str]:
    """Make a segment and give its id; the next step closes it."""
    with keeping(name).new_shmem(SIZE) as shm:
        shm[:4] = b"mine"
        yield shm.id.as_str()
    yield ""


def attach(name: str, id: str) -> Iterator[bool]:
    with keeping(name).shmem_from_id_and_size(id, SIZE) as shm:
        yield shm[:4] == b"mine"
    yield True


def clear_up_for_ever(clear: Callable[[], object]) -> Iterator[None]:
    clear()
    yield
    while True:
        clear()


def can_attach(provider: ShMemProvider, id: str) -> bool:
    """Attach by the id, in a process that has nothing to do with the segment."""
    try:
        with provider.shmem_from_id_and_size(id, SIZE) as shm:
            return shm[:4] == b"mine"
    except FileNotFoundError:
        return False


def live(fork: Fork, name: str, is_killed: bool) -> None:
    """One life: its owner ends while somebody is attached, who ends later."""
    owner = fork(own, name)
    id = owner.next()
    assert can_attach(keeping(name), id)
    first = fork(attach, name, id)
    assert first.next()
    if is_killed:
        owner.kill()
    else:
        owner.next()
    goes_with_owner = name == "posix" and not is_killed
    for provider in (keeping(name), keeping("std")):
        assert can_attach(provider, id) != goes_with_owner
    if not goes_with_owner:
        second = fork(attach, name, id)
        assert second.next()
        first.kill()
        assert can_attach(keeping(name), id)  # also when only the second is left
        second.next()
        second.kill()
    first.kill()
    if not is_killed:
        owner.kill()
    if name == "posix":
        open_provider("posix")
    assert not can_attach(keeping(name), id)


def live_many_lives(fork: Fork, name: str, times: int) -> None:
    posix, sysv = keeping("posix"), keeping("sysv")
    walks = (lambda: open_provider("posix"), lambda: posix._reap(False), lambda: sysv._reap(False))
    cleaners = [fork(clear_up_for_ever, walk) for walk in walks]
    for cleaner in cleaners:
        cleaner.next()
        cleaner.ask()
    for turn in range(times):
        live(fork, name, is_killed=bool(turn % 2))
    for cleaner in cleaners:
        os.kill(cleaner.pid, 0)
        cleaner.kill()


@pytest.mark.parametrize("name", ["posix", "sysv"])
def test_how_long_an_id_works(name: str, isolated: Isolated, fork: Fork, scale: Scale) -> None:
    """While somebody opens providers and reaps all the time.

    sysv: as long as any handle is open. posix: until its owner closes it, and after an owner that ended without
    closing as long as any handle is open. The other mechanisms: in ../conformance/.
    """
    isolated(live_many_lives, fork, name, scale(20, 1000), timeout=600)


# ---- a segment that lingers


def linger_and_die(name: str) -> Iterator[str]:
    shm = keeping(name).new_shmem(SIZE, linger=True)
    shm[:4] = b"mine"
    yield shm.id.as_str()
    del shm


def reap_by(name: str, clock: dict[str, str]) -> None:
    """Reap in a process that has another clock."""
    code = f"from shmem_providers import *; open_provider('{name}')._reap(False)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | clock, check=True)


def inherit_from_the_dead(fork: Fork, name: str, later: dict[str, str]) -> None:
    owner = fork(linger_and_die, name)
    id = owner.next()
    owner.kill()
    open_provider("posix")
    keeping(name)._reap(False)
    assert can_attach(keeping(name), id)
    if name == "posix":  # sysv is marked for removal by who attaches, and goes with him
        attached = fork(attach, name, id)
        assert attached.next()
        reap_by(name, later)
        attached.kill()
        assert can_attach(keeping(name), id)
        keeping(name)._reap(False)  # from here on nobody has it, and the minute begins
        assert can_attach(keeping(name), id)
    else:
        assert not can_attach(keeping(name), id)
        owner = fork(linger_and_die, name)
        id = owner.next()
        owner.kill()
    reap_by(name, later)
    assert not can_attach(keeping(name), id)


@pytest.mark.parametrize("name", ["posix", "sysv"])
def test_what_lingers_stays_for_a_minute(
    name: str, isolated: Isolated, fork: Fork, a_minute_later: dict[str, str]
) -> None:
    isolated(inherit_from_the_dead, fork, name, a_minute_later)


def close_what_lingers() -> None:
    for provider in (MmapShMemProvider(), UnixShMemProvider()):
        with provider.new_shmem(SIZE, linger=True) as shm:
            id = shm.id
        assert not can_attach(provider, id)
    assert list(SHM.iterdir()) == []


def test_a_normal_close_ends_what_lingers(isolated: Isolated) -> None:
    isolated(close_what_lingers)


# ---- many who make the same names


def allow_many() -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 10_000), most))


def make_or_attach(provider: MmapShMemProvider, name: str) -> Any:
    return provider.new_shmem_with_id(SIZE, name, exist_ok=True)


def make_else_attach(provider: MmapShMemProvider, name: str) -> Any:
    """As programs do that know no `exist_ok`."""
    try:
        return provider.new_shmem_with_id(SIZE, name)
    except FileExistsError:
        return provider.shmem_from_id_and_size(name, SIZE)


def race(
    get: Callable[[MmapShMemProvider, str], Any], number: int, count: int, progress: memoryview
) -> Iterator[list[bool]]:
    """Give which of the names this process made. None is closed before all are made."""
    allow_many()
    provider, held = MmapShMemProvider(), []
    yield []
    for turn in range(count):
        progress[number] = turn
        while progress[1 - number] < turn:
            os.sched_yield()
        shm = get(provider, f"/race_{turn}")
        assert len(shm) == SIZE
        shm[number] = 1
        held.append(shm)
    progress[number] = count
    yield [shm.is_owner for shm in held]
    assert all(shm[:2] == b"\1\1" for shm in held)
    yield []


def race_for_names(fork: Fork, get: Callable[[MmapShMemProvider, str], Any], count: int) -> int:
    progress = memoryview(mmap.mmap(-1, 2 * SIZE)).cast("i")
    racers = [fork(race, get, number, count, progress) for number in range(2)]
    for racer in racers:
        racer.next()
    for racer in racers:
        racer.ask()
    first, second = (racer.next() for racer in racers)
    assert [a != b for a, b in zip(first, second, strict=True)] == [True] * count
    for racer in racers:
        racer.next()
    return sum(first)


@pytest.mark.parametrize("get", [make_or_attach, make_else_attach])
def test_a_name_is_never_seen_half_made(
    get: Callable[[MmapShMemProvider, str], Any], isolated: Isolated, fork: Fork
) -> None:
    """Each of 1,500 names has one maker, and one who attaches to all of it."""
    made = isolated(race_for_names, fork, get, 1500)
    print(f"the first of the two made {made} of 1500 names")


def make_and_close(names: int) -> Iterator[int]:
    """Be one of those who make the same few names and let go of them at once."""
    provider, owned = MmapShMemProvider(), 0
    yield 0
    for turn in range(names):
        with provider.new_shmem_with_id(SIZE, f"/few_{turn % 3}", exist_ok=True) as shm:
            owned += shm.is_owner
            assert len(shm) == SIZE
            shm[-1] = 1
        if turn % 50 == 0:
            with contextlib.suppress(FileNotFoundError):
                provider.unlink(f"/few_{turn % 3}")
    yield owned


def close_while_others_make(fork: Fork, names: int) -> list[int]:
    makers = [fork(make_and_close, names) for _ in range(4)]
    for maker in makers:
        maker.next()
    for maker in makers:
        maker.ask()
    owned = [maker.next() for maker in makers]
    assert not [path for path in SHM.iterdir() if path.name.startswith("shmp_")]
    return owned


def test_names_that_come_and_go(isolated: Isolated, fork: Fork, scale: Scale) -> None:
    owned = isolated(close_while_others_make, fork, scale(500, 5000))
    assert sum(owned) > 0
