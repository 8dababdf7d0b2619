"""Other users, and processes that lie: what they offer is not opened, not believed, and breaks nothing."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import platform
import random
import resource
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from other_users import Abi, base_36, become, contents, descriptors_of_memfds, memfd_id

from shmem_providers import ShMemProvider, lib, open_provider

SHM = Path("/dev/shm")
SIZE = 4096
SEALS_OF_SIZE = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
GIVER, TAKER = 54321, 12345
IPC_PRIVATE, IPC_CREAT, IPC_SET, IPC_STAT = 0, 0o1000, 1, 2

Fork = Callable[..., Any]
Isolated = Callable[..., Any]
Missing = Callable[[str], NoReturn]
Scale = Callable[[int, int], int]
pytestmark = pytest.mark.usefixtures("as_root")


def as_user(fork: Fork, uid: int, function: Callable[..., Any], *args: Any) -> Any:
    """Give a child that is that user."""
    return fork(become, uid, lambda: function(*args))


# ---- what is offered is looked at before it is opened


class Tripwire:
    """A file of root's that tells whether anybody has opened it."""

    def __init__(self, kind: str, fork: Fork) -> None:
        self.path = SHM / "precious"
        self.kind = kind
        if kind == "fifo":
            os.mkfifo(self.path, 0o600)
            self._writer = fork(self._write)  # it is inside open() until somebody opens the other end
        elif kind == "device":
            os.mknod(self.path, 0o600 | stat.S_IFCHR, os.makedev(10, 237))  # loop-control, or nothing
        else:
            self.path.write_bytes(bytes(SIZE))
            self.path.chmod(0o600)
            signal.signal(signal.SIGIO, signal.SIG_IGN)
            self._leased = self.path.open("r+b")
            fcntl.fcntl(self._leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # who opens it breaks the lease

    def _write(self) -> None:
        self.path.open("wb").close()

    def is_hit(self) -> bool:
        if self.kind == "fifo":
            return bool(self._writer._link.poll(0.05))
        if self.kind == "device":
            return False  # its message tells
        return bool(fcntl.fcntl(self._leased, fcntl.F_GETLEASE) != fcntl.F_WRLCK)


def offer_path(path: Path) -> Iterator[str]:
    fd = os.open(path, os.O_PATH)  # needs no right to the file, only to its folder
    yield memfd_id(os.getpid(), fd, os.fstat(fd).st_ino)


def take_what_is_offered(fork: Fork, kind: str, giver: int) -> list[str]:
    """Give what is said by each way to attach."""
    wire = Tripwire(kind, fork)
    liar = as_user(fork, giver, offer_path, wire.path)
    id = liar.next()
    said = []
    for provider in "memfd", "std":
        for flags in 0, lib.SHMP_READ_ONLY, lib.SHMP_WHOLE, lib.SHMP_ANY_USER:
            with pytest.raises(ValueError, match="id") as raised:
                Abi(provider).attach(id, SIZE, flags)
            said.append(raised.value.args[1])
            assert not wire.is_hit()
        with pytest.raises(ValueError, match="no shared memory"):
            open_provider(provider).shmem_from_id_and_size(id, SIZE)
    command = [sys.executable, "-m", "shmem_providers", "inspect", id]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "500"})
    assert result.returncode == 1
    assert not wire.is_hit()
    liar.kill()
    return [*said, result.stdout]


@pytest.mark.parametrize("giver", [0, GIVER])
@pytest.mark.parametrize("kind", ["fifo", "device", "file"])
def test_attaching_opens_nothing_but_memfds(kind: str, giver: int, isolated: Isolated, fork: Fork) -> None:
    for message in isolated(take_what_is_offered, fork, kind, giver):
        assert "is no shared memory" in message


def swap(path: Path, count: int) -> Iterator[None]:
    """Have numbers that are now a segment, now that path."""
    segment = os.memfd_create("shmem_providers", os.MFD_ALLOW_SEALING)
    os.ftruncate(segment, SIZE)
    fcntl.fcntl(segment, fcntl.F_ADD_SEALS, SEALS_OF_SIZE)
    precious = os.open(path, os.O_PATH)
    numbers = [os.dup(segment) for _ in range(count)]
    yield
    while True:
        for source in precious, segment:
            for number in numbers:
                os.dup2(source, number)


def list_while_swapped(fork: Fork, kind: str, giver: int, tries: int) -> int:
    wire = Tripwire(kind, fork)
    swapper = as_user(fork, giver, swap, wire.path, 30)
    swapper.next()
    swapper.ask()
    provider = open_provider("memfd")
    listed = 0
    for _ in range(tries):
        listed += len(provider._list())
    assert not wire.is_hit()
    swapper.kill()
    return listed


@pytest.mark.parametrize("giver", [0, GIVER])
@pytest.mark.parametrize("kind", ["fifo", "file"])
def test_listing_opens_nothing_but_memfds(
    kind: str, giver: int, isolated: Isolated, fork: Fork, scale: Scale
) -> None:
    assert isolated(list_while_swapped, fork, kind, giver, scale(1000, 20_000)) > 0


# ---- the size of a memfd is that for ever


def shrink_and_seal(count: int) -> Iterator[list[str]]:
    """Offer memfds whose size goes while they are taken; they are sealed when it has gone."""
    files = [os.memfd_create("shmem_providers", os.MFD_ALLOW_SEALING) for _ in range(count)]
    for fd in files:
        os.ftruncate(fd, SIZE)
    yield [memfd_id(os.getpid(), fd, os.fstat(fd).st_ino) for fd in files]
    for fd in files:
        for _ in range(random.randrange(300)):
            pass
        os.ftruncate(fd, 0)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS_OF_SIZE)
    yield []


def take_while_it_shrinks(fork: Fork, tries: int) -> int:
    """Attach to each until it is decided; touch what was attached."""
    provider = open_provider("memfd")
    tried = 0
    while tried < tries:
        giver = fork(shrink_and_seal, 500)
        ids = giver.next()
        giver.ask()
        for id in ids:
            while True:
                tried += 1
                try:
                    with provider.shmem_from_id_and_size(id, SIZE) as shm:
                        assert shm[SIZE - 1] == 0  # else SIGBUS
                    break
                except ValueError as problem:
                    if "sealed" not in str(problem):
                        break
        giver.kill()
    return tried


def test_a_memfd_that_is_attached_has_its_size(isolated: Isolated, fork: Fork, scale: Scale) -> None:
    assert isolated(take_while_it_shrinks, fork, scale(20_000, 500_000), timeout=300) >= 20_000


# ---- whose it is


def libc() -> ctypes.CDLL:
    library = ctypes.CDLL(None, use_errno=True)
    library.shmat.restype = ctypes.c_void_p
    return library


def make_sysv(mode: int, uid: int | None = None) -> int:
    """Create a segment, and give it to that user."""
    id: int = libc().shmget(IPC_PRIVATE, SIZE, IPC_CREAT | mode)
    assert id >= 0
    address = libc().shmat(id, None, 0)
    ctypes.memmove(address, b"mine", 4)
    if uid is not None:
        state = ctypes.create_string_buffer(256)
        assert libc().shmctl(id, IPC_STAT, state) == 0
        struct.pack_into("I", state, 4, uid)  # after the key
        assert libc().shmctl(id, IPC_SET, state) == 0
    return id


def give_sysv(uid: int | None) -> Iterator[str]:
    yield str(make_sysv(0o666, uid))


def give_posix() -> Iterator[str]:
    with open_provider("posix").new_shmem(SIZE) as shm:
        shm[:4] = b"mine"
        (SHM / shm.id[1:]).chmod(0o666)
        yield shm.id


def give_memfd() -> Iterator[str]:
    """To root only: others cannot look into this process."""
    with open_provider("memfd").new_shmem(SIZE) as shm:
        shm[:4] = b"mine"
        yield shm.id


GIVEN = {
    "posix": ("posix", give_posix),
    "sysv": ("sysv", lambda: give_sysv(None)),
    "sysv given away": ("sysv", lambda: give_sysv(0)),
    "memfd": ("memfd", give_memfd),
}


def try_to_take(name: str, id: str, uid: int) -> tuple[list[str], bytes]:
    """Give the refusals, and what is there for who trusts."""
    refused = []
    for provider in name, "std":
        for flags in 0, lib.SHMP_READ_ONLY, lib.SHMP_WHOLE:
            with pytest.raises(PermissionError) as raised:
                Abi(provider).attach(id, SIZE, flags)
            refused.append(str(raised.value))
        with pytest.raises(PermissionError):
            open_provider(provider).shmem_from_id_and_size(id, SIZE)
    abi = Abi(name)
    trusting = abi.attach(id, SIZE, lib.SHMP_ANY_USER)
    abi.clone(trusting)
    return refused, contents(abi.clone(trusting, lib.SHMP_READ_ONLY), 4)


def take_of_another(fork: Fork, what: str, taker: int) -> tuple[list[str], bytes]:
    name, give = GIVEN[what]
    giver = as_user(fork, GIVER, give)
    id = giver.next()
    got: tuple[list[str], bytes] = as_user(fork, taker, try_to_take, name, id, taker).next()
    giver.kill()
    return got


@pytest.mark.parametrize(
    ("what", "taker"),
    [(what, taker) for what in GIVEN for taker in (0, TAKER) if (what, taker) != ("memfd", TAKER)],
)
def test_what_is_another_users_is_taken_by_who_says_so_only(
    what: str, taker: int, isolated: Isolated, fork: Fork
) -> None:
    refused, data = isolated(take_of_another, fork, what, taker)
    for message in refused:
        assert f"user {GIVER}'s" in message
        assert "any_user=True (SHMP_ANY_USER)" in message
    assert data == b"mine"


def take_of_root(fork: Fork, what: str) -> bytes:
    name, give = GIVEN[what]
    giver = fork(give)
    id = giver.next()
    data: bytes = as_user(fork, TAKER, lambda: contents(Abi(name).attach(id, SIZE), 4)).next()
    giver.kill()
    return data


@pytest.mark.parametrize("what", ["posix", "sysv"])
def test_what_is_roots_is_taken_where_its_mode_lets(what: str, isolated: Isolated, fork: Fork) -> None:
    assert isolated(take_of_root, fork, what) == b"mine"


def send_descriptor(link: socket.socket, name: str) -> Iterator[None]:
    shm = open_provider(name).new_shmem(SIZE)
    shm[:4] = b"mine"
    socket.send_fds(link, [b"!"], [shm.fileno()])
    yield


def take_descriptor(link: socket.socket, name: str) -> tuple[list[str], bytes]:
    (fd,) = socket.recv_fds(link, 1, 1)[1]
    abi = Abi(name)
    refused = []
    for attach in (
        lambda: abi.attach(str(fd), SIZE),
        lambda: abi.attach_fd(fd, "", SIZE),
        lambda: abi.attach_fd(fd, "", SIZE, lib.SHMP_WHOLE),
        lambda: open_provider(name).shmem_from_id_and_size(str(fd), SIZE),
    ):
        with pytest.raises(PermissionError) as raised:
            attach()
        refused.append(str(raised.value))
    return refused, contents(abi.attach_fd(fd, "", SIZE, lib.SHMP_ANY_USER), 4)


def send_across(fork: Fork, name: str, taker: int) -> tuple[list[str], bytes]:
    ours, theirs = socket.socketpair()
    giver = as_user(fork, GIVER, send_descriptor, theirs, name)
    giver.next()
    got: tuple[list[str], bytes] = as_user(fork, taker, take_descriptor, ours, name).next()
    giver.kill()
    return got


@pytest.mark.parametrize("taker", [0, TAKER])
@pytest.mark.parametrize("name", ["memfd", "posix"])
def test_a_descriptor_that_another_user_sent(name: str, taker: int, isolated: Isolated, fork: Fork) -> None:
    refused, data = isolated(send_across, fork, name, taker)
    for message in refused:
        assert f"user {GIVER}'s" in message
        assert "any_user=True (SHMP_ANY_USER)" in message
    assert data == b"mine"


def write_by_reading(fd: int) -> str:
    try:
        os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))
    except PermissionError:
        return "refused"
    return "opened for writing"


def hand_out(fork: Fork, name: str, way: str) -> str:
    shm = open_provider(name).new_shmem(SIZE)
    if way == "id":
        assert shm.id
    elif way == "persist":
        shm.persist()
    else:
        shm.fileno()
    (fd,) = descriptors_of_memfds() if name == "memfd" else [shm.fileno()]
    reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    result: str = as_user(fork, TAKER, write_by_reading, reader).next()
    return result


@pytest.mark.parametrize("way", ["id", "fileno", "persist"])
@pytest.mark.parametrize("name", ["memfd", "posix"])
def test_a_reader_does_not_become_a_writer(name: str, way: str, isolated: Isolated, fork: Fork) -> None:
    assert isolated(hand_out, fork, name, way) == "refused"
