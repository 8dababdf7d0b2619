"""Other users, and processes that lie: what they offer is not opened, not believed, and breaks nothing."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
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
from other_users import Abi, become, contents, descriptors_of_memfds, memfd_id

from shmem_providers import MmapShMemProvider, ShMemProvider, lib, open_provider

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


def command(*arguments: str) -> str:
    result = subprocess.run([sys.executable, "-m", "shmem_providers", *arguments], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


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
    return [*said, result.stderr]


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
def test_listing_opens_nothing_but_memfds(kind: str, giver: int, isolated: Isolated, fork: Fork, scale: Scale) -> None:
    assert isolated(list_while_swapped, fork, kind, giver, scale(1000, 20_000)) > 0


def lease_segment() -> Iterator[None]:
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    writable = os.memfd_create("shmem_providers", os.MFD_ALLOW_SEALING)
    os.ftruncate(writable, SIZE)
    fcntl.fcntl(writable, fcntl.F_ADD_SEALS, SEALS_OF_SIZE)
    leased = os.open(f"/proc/self/fd/{writable}", os.O_RDONLY)
    os.close(writable)  # none has a lease who can write
    fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    yield


def list_beside_lease(fork: Fork) -> int:
    holder = as_user(fork, GIVER, lease_segment)
    holder.next()
    with open_provider("memfd").new_shmem(SIZE) as shm:
        listed = [id for id, *_ in open_provider("memfd")._list()]
        assert shm.id in listed
    holder.kill()
    return len(listed)


def test_a_lease_of_a_stranger_does_not_end_the_listing(isolated: Isolated, fork: Fork) -> None:
    assert isolated(list_beside_lease, fork) == 1


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
    assert isolated(take_while_it_shrinks, fork, scale(60_000, 500_000), timeout=300) >= 60_000


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


def try_to_take(name: str, id: str) -> tuple[list[str], bytes]:
    """Give the refusals, and what is there for who trusts."""
    refused = []
    for taker in name, "std":
        for flags in 0, lib.SHMP_READ_ONLY, lib.SHMP_WHOLE:
            with pytest.raises(PermissionError) as raised:
                Abi(taker).attach(id, SIZE, flags)
            refused.append(str(raised.value))
        with pytest.raises(PermissionError):
            open_provider(taker).shmem_from_id_and_size(id, SIZE)
        with pytest.raises(PermissionError):
            open_provider(taker).attach(id)
    provider = open_provider(name)
    with provider.shmem_from_id_and_size(id, SIZE, any_user=True) as shm, provider.clone_ref(shm) as clone:
        assert clone[:4] == b"mine"
    abi = Abi(name)
    trusting = abi.attach(id, SIZE, lib.SHMP_ANY_USER)
    abi.clone(trusting)
    return refused, contents(abi.clone(trusting, lib.SHMP_READ_ONLY), 4)


def take_of_another(fork: Fork, what: str, taker: int) -> tuple[list[str], bytes]:
    name, give = GIVEN[what]
    giver = as_user(fork, GIVER, give)
    id = giver.next()
    got: tuple[list[str], bytes] = as_user(fork, taker, try_to_take, name, id).next()
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


def show_to_root(fork: Fork) -> tuple[list[Any], list[Any]]:
    """Give the users that list and inspect show."""
    givers = [as_user(fork, GIVER, give) for give in (give_memfd, give_posix, lambda: give_sysv(0))]
    ids = [giver.next() for giver in givers]
    listed = [segment["user"] for segment in json.loads(command("list", "--json"))["segments"]]
    inspected = [json.loads(command("inspect", "--json", id))["user"] for id in ids]
    for giver in givers:
        giver.kill()
    return listed, inspected


def test_list_and_inspect_show_whose_it_is(isolated: Isolated, fork: Fork) -> None:
    listed, inspected = isolated(show_to_root, fork)
    assert listed == [GIVER, GIVER]
    assert inspected == [GIVER, GIVER, GIVER]


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


# ---- names that are not ours


FOREIGN = [
    b"shmp_backup.txt",
    b"shmp_",
    b"shmp_abcdefghijklM",
    b"shmp_abcdefghijkl1",
    b"shmp_abcdefghijkl",
    b"shmp_abcdefghijklmn",
    b"shmp_abcdefgh\xff\xfeklm",
    b"shmp_abc\x1b]0;x\x07lm",
    b"shmp_abc\x1b[31mlm",
    b"shmp_abcdefg\nhijkl",
    b"shmp_" + b"a" * 250,
]


def meet_foreign_names(fork: Fork, uid: int) -> tuple[set[bytes], list[str], str]:
    """Give what is left of the names, what was listed and reaped, and what a terminal got."""

    def make() -> None:
        for name in FOREIGN:
            Path(os.fsdecode(b"/dev/shm/" + name)).write_bytes(b"precious")

    as_user(fork, uid, make).next()
    live = ShMemProvider("posix", lib.SHMP_KEEP_LEFTOVERS).new_shmem(SIZE)
    shown = command("list") + command("reap")
    found = [id for id, *_ in open_provider("posix")._list()]
    found += [id for id, *_ in open_provider("posix")._reap(False)]
    names = set(os.listdir(b"/dev/shm")) - {live.id[1:].encode()}
    found.remove(live.id)
    return names, found, shown


@pytest.mark.parametrize("uid", [0, GIVER])
def test_a_name_of_another_shape_is_not_ours(uid: int, isolated: Isolated, fork: Fork) -> None:
    names, found, shown = isolated(meet_foreign_names, fork, uid)
    assert names == set(FOREIGN)
    assert found == []
    assert "\x1b" not in shown
    assert "backup" not in shown


def swap_with_folder() -> Iterator[None]:
    """Have a name that is now a leftover, now a folder."""
    renameat2, AT_FDCWD, RENAME_EXCHANGE = {"x86_64": 316, "aarch64": 276}[platform.machine()], -100, 2
    name, other = SHM / "shmp_aaaaaaaaaaaaa", SHM / "other"
    other.mkdir()
    first, second = bytes(name), bytes(other)
    yield
    while True:
        # musl's libc has no function for it
        if libc().syscall(renameat2, AT_FDCWD, first, AT_FDCWD, second, RENAME_EXCHANGE) < 0:  # it was reaped
            name.write_bytes(b"left over")


def reap_while_swapped(fork: Fork, tries: int) -> int:
    swapper = as_user(fork, GIVER, swap_with_folder)
    swapper.next()
    swapper.ask()
    provider = ShMemProvider("posix", lib.SHMP_KEEP_LEFTOVERS)
    reaped = sum(len(provider._reap(False)) for _ in range(tries))
    swapper.kill()
    return reaped


def test_a_name_that_becomes_a_folder_does_not_end_the_reaping(isolated: Isolated, fork: Fork, scale: Scale) -> None:
    assert isolated(reap_while_swapped, fork, scale(20_000, 200_000)) > 0


# ---- std, the environment, and flock


def attach_to_number(fork: Fork) -> list[str]:
    """Give what std says of a descriptor's number, and of the same one when it is a stranger's sysv segment."""
    shm = open_provider("memfd").new_shmem(SIZE)
    provider = open_provider("std")
    said = []
    while True:
        with pytest.raises(OSError) as raised:  # noqa: PT011 # the test looks at which
            provider.shmem_from_id_and_size(str(shm.fileno()), SIZE)
        said.append(type(raised.value).__name__)
        if len(said) == 2:
            return said
        Path("/proc/sys/kernel/shm_next_id").write_text(str(shm.fileno()))
        stranger = as_user(fork, GIVER, lambda: iter([make_sysv(0o666)]))
        assert stranger.next() == shm.fileno()


def test_std_takes_no_number_for_a_descriptor_nor_a_strangers_segment(isolated: Isolated, fork: Fork) -> None:
    assert isolated(attach_to_number, fork) == ["FileNotFoundError", "PermissionError"]


def forbid_flock(error: int) -> None:
    """As a container's filter may."""
    number = {"x86_64": 73, "aarch64": 32}[platform.machine()]
    LOAD, JUMP_IF_EQUAL, GIVE = 0x20, 0x15, 0x06
    ALLOW, FAIL = 0x7FFF0000, 0x00050000
    steps = [(LOAD, 0, 0, 0), (JUMP_IF_EQUAL, 0, 1, number), (GIVE, 0, 0, FAIL | error), (GIVE, 0, 0, ALLOW)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    PR_SET_SECCOMP, SECCOMP_MODE_FILTER, PR_SET_NO_NEW_PRIVS = 22, 2, 38
    assert libc().prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc().prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) == 0


def create_without_flock(error: int) -> Iterator[str]:
    forbid_flock(error)
    try:
        with ShMemProvider("posix", lib.SHMP_KEEP_LEFTOVERS).new_shmem(SIZE) as shm:
            yield shm.id
    except OSError as problem:
        yield str(problem)


def reap_without_flock(error: int) -> None:
    forbid_flock(error)
    open_provider("posix")
    with contextlib.suppress(OSError):
        open_provider("posix")._reap(False)


def live_without_flock(fork: Fork, error: int) -> str:
    """Give what is said to who creates; nobody's live segment is lost."""
    with open_provider("posix").new_shmem(SIZE) as shm:
        creator = fork(create_without_flock, error)
        said: str = creator.next()
        fork(reap_without_flock, error).next()
        open_provider("posix")
        expected = {shm.id[1:]} | {said[1:] for _ in range(1) if said.startswith("/shmp_")}
        assert set(os.listdir(SHM)) == expected
        creator.kill()
        return said


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64"), reason="knows the number of flock there only")
@pytest.mark.parametrize("error", [errno.ENOSYS, errno.EPERM])
def test_without_flock_no_live_segment_is_lost(error: int, isolated: Isolated, fork: Fork) -> None:
    said = isolated(live_without_flock, fork, error)
    assert "without locks it would be taken for a leftover: allow flock, or open memfd" in said


WHICH_STD = """
#include <shmem_providers.h>
int main(void) {
    shmp_provider *provider;
    shmp_error error = {0};
    if (shmp_provider_open("std", NULL, &provider, &error) < 0) return puts(error.message), 0;
    puts(shmp_provider_name(provider));
    shmp_provider_close(provider);
    return 0;
}
"""


def open_std_with_rights(fork: Fork, folder: Path) -> dict[str, str]:
    """Give what std is to who obeys the environment, and to a program with more rights than its user."""
    said = {}
    for mode in 0o755, 0o4755:
        program = SHM / "program"
        shutil.copy(folder / "program", program)
        program.chmod(mode)
        for wanted in "nop", "posix", "nonsense":
            environment = {"SHMEM_PROVIDER": wanted}

            def run(program: Path = program, environment: dict[str, str] = environment) -> str:
                return subprocess.run([program], env=environment, capture_output=True, text=True, check=True).stdout

            said[f"{mode:o} {wanted}"] = as_user(fork, TAKER, run).next().strip()
    return said


def test_a_setuid_program_does_not_obey_the_environment(
    isolated: Isolated, fork: Fork, tmp_path: Path, missing: Missing
) -> None:
    if not shutil.which("cc"):
        missing("needs a C compiler")
    core = Path(__file__).parents[2] / "csrc"
    (tmp_path / "program.c").write_text(WHICH_STD)
    folders = ("core", "backend", "os", "service")
    sources = [tmp_path / "program.c", *(path for folder in folders for path in core.glob(f"{folder}/*.c"))]
    options = [
        "-std=c11",
        f"-I{core}/include",
        f"-I{core}",
        "-DSHMP_STATIC",
        "-pthread",
        "-o",
        str(tmp_path / "program"),
    ]
    subprocess.run(["cc", *options, *map(str, sources)], check=True)
    said = isolated(open_std_with_rights, fork, tmp_path)
    assert said.pop("755 nop") == "nop is opened by name only: take another one"
    assert 'no provider is called "nonsense"' in said.pop("755 nonsense")
    assert said.pop("755 posix") == "posix"
    assert set(said.values()) == {"memfd"}


# ---- what else looks alike


def close_after(change: Callable[[Path], object]) -> list[str]:
    shm = MmapShMemProvider().new_shmem_with_id(SIZE, "/chosen")
    change(SHM / "chosen")
    shm.close()
    return sorted(os.listdir(SHM))


def rename(path: Path) -> None:
    path.rename(SHM / "elsewhere")
    path.write_bytes(b"another's")


def link(path: Path) -> None:
    os.link(path, SHM / "linked")
    path.unlink()
    path.write_bytes(b"another's")


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


CHANGES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "nothing": (lambda path: None, []),
    "gone": (Path.unlink, []),
    "renamed": (rename, ["chosen", "elsewhere"]),
    "linked": (link, ["chosen", "linked"]),
    "a folder": (replace_by_folder, ["chosen"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_closing_removes_no_name_that_is_anothers_by_now(change: str, isolated: Isolated) -> None:
    how, left = CHANGES[change]
    assert isolated(close_after, how) == left


def users_of_alike(fork: Fork) -> tuple[list[int], list[int], int, int]:
    """Have a sysv segment whose id is the inode of a memfd. Give the users of both."""
    shm = open_provider("memfd").new_shmem(SIZE)
    inode = os.fstat(shm.fileno()).st_ino
    Path("/proc/sys/kernel/shm_next_id").write_text(str(inode))

    def hold() -> Iterator[tuple[int, list[int]]]:
        shm.close()
        sysv = open_provider("sysv").new_shmem(SIZE)
        yield int(sysv.id), sysv._users()

    child = fork(hold)
    id, users_of_sysv = child.next()
    assert id == inode
    users = shm._users()
    child.kill()
    return users, users_of_sysv, os.getpid(), child.pid


def test_users_of_a_memfd_are_not_those_of_a_sysv_segment(isolated: Isolated, fork: Fork) -> None:
    users_of_memfd, users_of_sysv, ours, child = isolated(users_of_alike, fork)
    assert users_of_memfd == [ours]
    assert users_of_sysv == [child]


# ---- many


def hold_memfds(count: int) -> Iterator[None]:
    """Impostors: they have our name, and no seals."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, count + 100), most))
    files = [os.memfd_create("shmem_providers", os.MFD_ALLOW_SEALING) for _ in range(count)]
    yield
    assert files


def list_among(fork: Fork, processes: int) -> float:
    """Give the seconds of the fastest of some listings, which find one's own only."""
    children = [fork(hold_memfds, 2500) for _ in range(processes)]
    for child in children:
        child.next()
    provider, durations = open_provider("memfd"), []
    with provider.new_shmem(SIZE) as shm:
        for _ in range(3):
            start = time.perf_counter()
            assert [id for id, *_ in provider._list()] == [shm.id]
            durations.append(time.perf_counter() - start)
    for child in children:
        child.kill()
    return min(durations)


def test_listing_takes_time_in_proportion(isolated: Isolated, fork: Fork) -> None:
    few, many = isolated(list_among, fork, 1), isolated(list_among, fork, 8)
    assert many < 16 * few


def limits_beside(name: str, count: int) -> list[int]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
    provider = open_provider(name)
    limits = [provider._limits()[1]]
    held = [provider.new_shmem(SIZE) for _ in range(count)]
    limits.append(provider._limits()[1])
    while True:
        try:
            held.append(provider.new_shmem(SIZE))
        except OSError:
            return [*limits, len(held)]


@pytest.mark.parametrize("name", ["memfd", "posix"])
def test_limits_count_what_is_open(name: str, isolated: Isolated) -> None:
    at_first, beside, most = isolated(limits_beside, name, 200)
    assert at_first == most
    assert beside == most - 200


def close_in_children(fork: Fork, count: int) -> list[int]:
    """Fork while another thread is inside a call on the segment; give what each child still has of it."""
    shm = open_provider("memfd").new_shmem(SIZE)
    (fd,) = descriptors_of_memfds()
    stop = threading.Event()

    def call() -> None:
        while not stop.is_set():
            shm._users()  # a clone would keep what it shares

    def close() -> list[str]:
        shm.close()
        try:
            return [os.readlink(f"/proc/self/fd/{fd}")]
        except FileNotFoundError:
            return []

    thread = threading.Thread(target=call)
    thread.start()
    left = []
    for _ in range(count):
        child = fork(close)
        left += child.next()
        child.kill()
    stop.set()
    thread.join()
    return left


def test_a_child_forked_inside_a_call_releases_what_it_closes(isolated: Isolated, fork: Fork) -> None:
    assert isolated(close_in_children, fork, 100) == []
