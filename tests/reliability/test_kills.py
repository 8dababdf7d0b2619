"""SIGKILL at any instant leaves nothing behind, and clearing up takes nothing that lives."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmem_providers import (
    InvalidIdError,
    MemfdShMemProvider,
    MmapShMemProvider,
    ShMem,
    ShMemProvider,
    available_providers,
    lib,
    open_provider,
)

SHM = Path("/dev/shm")
SIZE, SEGMENTS = 4096, 1000
SHM_DEST = 0o1000  # in a segment's mode: IPC_RMID was called
PROVIDERS = [name for name in available_providers() if name != "nop"]

Scale = Callable[[int, int], int]
Fork = Callable[..., Any]
Isolated = Callable[..., Any]


def keeping(name: str) -> ShMemProvider:
    """Open a provider that leaves leftovers alone."""
    return ShMemProvider(name, lib.SHMP_KEEP_LEFTOVERS)


def names() -> set[str]:
    return {path.name for path in SHM.iterdir()}


def reap(*, dry_run: bool = False) -> set[str]:
    return {id[1:] for id, *_ in keeping("posix")._reap(dry_run)}


def clear_up() -> set[str]:
    """Open a posix provider, then reap. Give the names that are left."""
    open_provider("posix")
    reap()
    return names()


def make(name: str, count: int) -> Iterator[list[str]]:
    provider = keeping(name)
    segments = [provider.new_shmem(SIZE) for _ in range(count)]
    for shm in segments:
        shm[:4] = b"mine"
    yield [shm.id for shm in segments]


def posix_names(child: Any) -> set[str]:
    return {id[1:] for id in child.next()}


# ---- at any instant


def churn(name: str) -> Iterator[None]:
    """Own SEGMENTS segments, then create, attach and close for good."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4 * SEGMENTS), most))
    provider = keeping(name)
    held: list[ShMem] = []
    for turn in itertools.count():
        held.append(provider.new_shmem(SIZE, linger=name not in UNNAMED and turn % 3 == 0))
        assert held[-1].id  # from here on another process may know it
        provider.clone_ref(random.choice(held)).close()
        if turn == SEGMENTS:
            yield
        if turn >= SEGMENTS:
            held.pop(random.randrange(SEGMENTS)).close()


def left_in_memfd() -> set[str]:
    """Nothing has a minute."""
    left = {id for id, *_ in open_provider("memfd")._list()}
    assert left == set()
    return left


def left_in_sysv() -> set[str]:
    """What lingers, and whose owner was killed between shmget and IPC_RMID."""
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    assert {int(row[6]) for row in rows} <= {0}
    assert not any(int(row[2], 8) & SHM_DEST for row in rows)
    return {row[1] for row in rows}


def left_in_posix() -> set[str]:
    """What lingers, and whose owner was killed before it gave its name a size."""
    return clear_up()


def left_in_ashmem() -> set[str]:
    """Nobody has a region open or mapped."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            assert "/dev/ashmem" not in Path(f"/proc/{pid}/maps").read_text()
            for fd in Path(f"/proc/{pid}/fd").iterdir():
                assert not os.readlink(fd).startswith("/dev/ashmem")
    return set()


# None of these can linger
UNNAMED = ("memfd", "ashmem")
LEFT = {"memfd": left_in_memfd, "ashmem": left_in_ashmem, "posix": left_in_posix, "sysv": left_in_sysv}


def kill_at_random(fork: Fork, name: str, rounds: int, later: dict[str, str]) -> list[int]:
    """Give how much each round left until a minute later, when it all goes."""
    counts = []
    before: set[str] = set()
    for turn in range(rounds):
        owner = fork(churn, name)
        if turn % 2:
            owner.next()
            owner.ask()
        time.sleep(random.uniform(0, 0.05))
        owner.kill()
        if name == "posix" and turn % 2:
            assert len(names()) >= SEGMENTS
        left = LEFT[name]()
        counts.append(len(left - before))
        before = left
        if len(left) > 2 * SEGMENTS or turn == rounds - 1:
            cli("reap", env=later)
            before = LEFT[name]()
            assert before == set(), f"round {turn}"
    return counts


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_killed_owner_leaves_nothing(
    name: str, isolated: Isolated, fork: Fork, scale: Scale, a_minute_later: dict[str, str]
) -> None:
    """What lingers and what a killed call left goes a minute later, and nothing else is there in the meantime."""
    counts = isolated(kill_at_random, fork, name, scale(10, 200), a_minute_later, timeout=900)
    assert max(counts) < SEGMENTS // 2
    assert (max(counts) > SEGMENTS // 4) == (name not in UNNAMED)
    print(f"of {SEGMENTS} segments of {len(counts)} killed owners, {sum(counts)} stayed for a minute")


# ---- what lives stays


def check_lives(shm: ShMem) -> None:
    assert os.stat(f"/dev/shm{shm.id}").st_ino == os.fstat(shm.fileno()).st_ino
    assert shm[:4] == b"mine"


def create(provider: ShMemProvider) -> ShMem:
    shm = provider.new_shmem(random.randint(4, 3 * SIZE))
    shm[:4] = b"mine"
    check_lives(shm)
    return shm


def use_until(end: float) -> int:
    provider = keeping("posix")
    lasting = create(provider)
    turns = 0
    while time.monotonic() < end:
        shm = create(provider)
        with provider.shmem_from_description(shm.description) as other:
            check_lives(shm)
            assert other[:4] == b"mine"
        check_lives(shm)
        check_lives(lasting)
        shm.close()
        turns += 1
    lasting.close()
    return turns


def reap_until(end: float, clear: Callable[[], object]) -> int:
    turns = 0
    while time.monotonic() < end:
        clear()
        turns += 1
    return turns


def die_until(end: float, fork: Fork) -> int:
    deaths = 0
    while time.monotonic() < end:
        owner = fork(make, "posix", 20)
        owner.next()
        owner.kill()
        deaths += 1
    return deaths


def live_among_reapers(fork: Fork, seconds: float) -> list[int]:
    end = time.monotonic() + seconds
    children = [fork(use_until, end) for _ in range(10)]
    children += [fork(reap_until, end, clear) for clear in (reap, lambda: open_provider("posix"))]
    children.append(fork(die_until, end, fork))
    turns = [child.next(seconds + 30) for child in children]
    assert clear_up() == set()
    return turns


def test_reapers_take_nothing_that_lives(isolated: Isolated, fork: Fork, scale: Scale) -> None:
    seconds = scale(4, 120)
    *users, reaper, opener, deaths = isolated(live_among_reapers, fork, seconds, timeout=seconds + 60)
    print(f"{sum(users)} segments were used while {deaths} owners of 20 died and {reaper} + {opener} walks reaped")
    assert min(*users, reaper, opener, deaths) > 0


def reap_when_asked() -> Iterator[set[str]]:
    yield set()
    yield reap()


def race(fork: Fork) -> None:
    owner = fork(make, "posix", SEGMENTS // 2)
    left = posix_names(owner)
    owner.kill()
    reapers = [fork(reap_when_asked) for _ in range(2)]
    for reaper in reapers:
        reaper.next()
    for reaper in reapers:
        reaper.ask()
    first, second = (reaper.next() for reaper in reapers)
    assert first | second == left
    assert first & second == set()
    assert names() == set()


def test_two_reapers_share_the_work(isolated: Isolated, fork: Fork) -> None:
    isolated(race, fork)


FOREIGN = ["libafl_77_0123456789", "psm_01234567", "shmp", "shmpx_abc", "sem.shmp_abc", "shmp_" + "a" * 15, ".shmp_abc"]


def die_with_a_chosen_name() -> Iterator[None]:
    segments = [MmapShMemProvider().new_shmem_with_id(SIZE, name) for name in ("/mine", "/libafl_1")]
    yield
    del segments


def spare_foreign_names(fork: Fork) -> None:
    for name in FOREIGN:
        (SHM / name).write_bytes(b"foreign")
    owner = fork(die_with_a_chosen_name)
    owner.next()
    owner.kill()
    os.utime(SHM / FOREIGN[0], (0, 0))
    assert clear_up() == {*FOREIGN, "mine", "libafl_1"}


def test_foreign_names_stay(isolated: Isolated, fork: Fork) -> None:
    isolated(spare_foreign_names, fork)


# ---- forks and namespaces


def bequeath(share: str) -> Iterator[tuple[str, int]]:
    """Leave a segment to a forked child that outlives this process. Give its name and the heir's pid."""
    shm = keeping("posix").new_shmem(SIZE)
    reading, writing = os.pipe()
    heir = os.fork()
    if heir == 0:
        if share == "mapping":
            os.close(shm.fileno())
        elif share == "nothing":
            shm.close()
        os.write(writing, b".")
        while True:
            signal.pause()
    os.read(reading, 1)
    yield shm.id[1:], heir


def inherit(fork: Fork, share: str) -> None:
    owner = fork(bequeath, share)
    name, heir = owner.next()
    assert clear_up() == {name}
    owner.kill()
    left = {name} - ({name} if share == "nothing" else set())
    assert clear_up() == left
    assert [(id, holder in (0, heir), alive) for id, _, holder, _, alive, *_ in keeping("posix")._list()] == [
        (f"/{name}", True, True) for name in left
    ]
    os.kill(heir, signal.SIGKILL)
    os.waitpid(heir, 0)
    assert clear_up() == set()


@pytest.mark.parametrize("share", ["handle", "mapping", "nothing"])
def test_a_name_lives_as_long_as_a_forked_child(share: str, isolated: Isolated, fork: Fork) -> None:
    isolated(inherit, fork, share)


def test_list_names_nobody_who_has_ended(fork: Fork) -> None:
    owner = fork(bequeath, "handle")
    name, heir = owner.next()
    owner.kill()
    found = [(pid, alive) for id, _, pid, _, alive, *_ in keeping("posix")._list() if id == f"/{name}"]
    os.kill(heir, signal.SIGKILL)
    (SHM / name).unlink()
    assert found in ([(0, True)], [(heir, True)])


def own_elsewhere(fork: Fork, unshare_pids: Callable[[], None]) -> Iterator[list[str]]:
    unshare_pids()
    owner = fork(make, "posix", 3)
    yield owner.next()
    owner.kill()
    yield []


def clear_up_elsewhere(fork: Fork, unshare_pids: Callable[[], None]) -> set[str]:
    unshare_pids()
    left: set[str] = fork(clear_up).next()
    return left


def share_between_namespaces(fork: Fork, unshare_pids: Callable[[], None]) -> None:
    owner = fork(own_elsewhere, fork, unshare_pids)
    theirs = posix_names(owner)
    ours = {shm.id[1:]: shm for shm in [keeping("posix").new_shmem(SIZE)]}
    assert clear_up() == theirs | ours.keys()
    assert fork(clear_up_elsewhere, fork, unshare_pids).next() == theirs | ours.keys()
    for id, _, pid, _, alive, *_ in keeping("posix")._list():
        assert alive
        assert id in Path(f"/proc/{pid}/maps").read_text()
    owner.next()
    assert fork(clear_up_elsewhere, fork, unshare_pids).next() == ours.keys()


def test_owners_in_another_pid_namespace(isolated: Isolated, fork: Fork, unshare_pids: Callable[[], None]) -> None:
    isolated(share_between_namespaces, fork, unshare_pids)


def fork_as(pid: int, fork: Fork, *call: Any) -> Any:
    """Fork a child whose pid is one that was used before."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    child = fork(*call)
    assert child.pid == pid
    return child


def reuse_pid(fork: Fork, name: str) -> None:
    owner = fork(make, name, 3)
    dead = owner.next()
    owner.kill()
    successor = fork_as(owner.pid, fork, make, name, 3)
    living = successor.next()
    if name == "posix":
        assert {f"/{name}" for name in clear_up()} == set(living)
        assert {pid for _, _, pid, *_ in keeping(name)._list()} == {owner.pid}
    for id in dead:
        with pytest.raises((InvalidIdError, FileNotFoundError)):
            open_provider(name).shmem_from_id_and_size(id, SIZE)
    for id in living:
        with open_provider(name).shmem_from_id_and_size(id, SIZE) as shm:
            assert shm[:4] == b"mine"


@pytest.mark.parametrize("name", PROVIDERS)
def test_a_reused_pid_is_somebody_else(name: str, isolated: Isolated, fork: Fork) -> None:
    isolated(reuse_pid, fork, name)


def close_inherited(shm: ShMem) -> tuple[int, bool]:
    was_owner = shm.is_owner
    shm.close()
    return os.getpid(), was_owner


def fork_a_twin(fork: Fork, unshare_pids: Callable[[], None]) -> None:
    shm = keeping("posix").new_shmem(SIZE)
    shm[:4] = b"mine"
    unshare_pids()
    assert os.getpid() == 1
    assert fork(close_inherited, shm).next() == (1, False)
    check_lives(shm)


def test_a_forked_child_with_its_parents_pid_is_no_owner(
    isolated: Isolated, fork: Fork, unshare_pids: Callable[[], None]
) -> None:
    isolated(fork_a_twin, fork, unshare_pids)


# ---- names that never got a size


def cli(*arguments: str, env: dict[str, str] | None = None) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "shmem_providers", *arguments, "--json"],
        env={**os.environ, **(env or {})},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stderr == ""
    return json.loads(done.stdout)


def grow_old(later: dict[str, str]) -> None:
    (SHM / "shmp_stillbornname").touch(0o600)
    assert clear_up() == {"shmp_stillbornname"}
    assert reap(dry_run=True) == set()
    opening = "from shmem_providers import *; open_provider('posix')"
    subprocess.run([sys.executable, "-c", opening], env={**os.environ, **later}, check=True)
    assert names() == {"shmp_stillbornname"}
    assert [segment["id"] for segment in cli("reap", "--dry-run", env=later)] == ["/shmp_stillbornname"]
    with (SHM / "shmp_stillbornname").open() as owner:
        fcntl.flock(owner, fcntl.LOCK_SH)  # about to give it a size
        assert cli("reap", env=later) == []
    assert names() == {"shmp_stillbornname"}
    assert [segment["size"] for segment in cli("reap", env=later)] == [0]
    assert names() == set()


def test_a_name_without_size_goes_by_reap_when_old(isolated: Isolated, a_minute_later: dict[str, str]) -> None:
    isolated(grow_old, a_minute_later)


# ---- the command line


def ageless(segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    assert all(0 <= segment["age"] < 60 for segment in segments)
    return [{**segment, "age": 0} for segment in segments]


def look_and_clean(fork: Fork) -> None:
    owners = {name: fork(make, name, 1) for name in PROVIDERS}
    ids = {name: owner.next()[0] for name, owner in owners.items()}
    rows = {
        name: {
            "provider": name,
            "id": ids[name],
            "size": SIZE,
            "holder_pid": owners[name].pid,
            "command": Path("/proc/self/comm").read_text().strip(),
            "user": os.geteuid(),
            "age": 0,
            "alive": True,
            "kept": False,
            "ours": name != "sysv",
        }
        for name in PROVIDERS
    }

    listing = cli("list")
    assert ageless(listing["segments"]) == list(rows.values())
    assert listing["unseen"] == ["System V segments that are marked for removal may be other programs', too"]

    with MemfdShMemProvider().shmem_from_id_and_size(ids["memfd"], SIZE):
        assert len(keeping("memfd")._list()) == 1
        for name in PROVIDERS:
            users = [owners[name].pid] + [os.getpid()] * (name == "memfd")
            assert cli("inspect", ids[name], "--bytes", "6") == {
                "provider": name,
                "id": ids[name],
                "size": SIZE,
                "user": os.geteuid(),
                "first_bytes": b"mine\0\0".hex(" "),
                "mapped_by": sorted(users),
            }

    assert cli("reap") == []
    for owner in owners.values():
        owner.kill()
    left = [{**rows["posix"], "holder_pid": 0, "command": "", "alive": False}]
    listing = cli("list")
    assert (ageless(listing["segments"]), listing["unseen"]) == (left, [])
    assert ageless(cli("reap", "--dry-run")) == left
    assert names() == {ids["posix"][1:]}
    assert ageless(cli("reap")) == left
    assert names() == set()
    assert cli("reap") == []


def test_list_inspect_and_reap(isolated: Isolated, fork: Fork) -> None:
    isolated(look_and_clean, fork)
