"""Nobody else gets at a segment, by its mode, its name, or what he plants under a name."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from other_users import become, memfd_id

from shmem_providers import InvalidIdError, MemfdShMemProvider, MmapShMemProvider, available_providers, open_provider

SHM = Path("/dev/shm")
SIZE = 4096
SEALED = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
PROVIDERS = [name for name in available_providers() if name != "nop"]

Fork = Callable[..., Any]
Isolated = Callable[..., Any]


# ---- modes


def modes_under(umask: int) -> set[int]:
    """Create with every provider that has modes."""
    os.umask(umask)
    posix, sysv = MmapShMemProvider(), open_provider("sysv")
    segments = [posix.new_shmem(SIZE), posix.new_shmem_with_id(SIZE, "/chosen"), sysv.new_shmem(SIZE)]
    for shm in segments:
        assert shm.id  # what a umask took from the user is given back where others first hear of the name
    modes = {stat.S_IMODE(path.stat().st_mode) for path in SHM.iterdir()}
    modes |= {int(line.split()[2], 8) & 0o777 for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}
    for shm in segments:
        with open_provider(shm.provider_name).clone_ref(shm) as clone:
            clone[0] = 1
        shm.close()
    return modes


@pytest.mark.parametrize(
    "umask",
    [0, 0o022, 0o077, 0o177, 0o777],
)
def test_the_mode_is_0600_whatever_the_umask(umask: int, isolated: Isolated) -> None:
    assert isolated(modes_under, umask) == {0o600}


# ---- names


def make_names(count: int) -> list[str]:
    provider = MmapShMemProvider()
    made: list[str] = []
    for _ in range(count):
        with provider.new_shmem(1) as shm:
            made.append(shm.id)
    return made


def make_names_across_forks(fork: Fork, count: int) -> list[str]:
    children = [fork(make_names, count) for _ in range(2)]
    made = make_names(count)
    for child in children:
        made += child.next()
    return made + [name for _ in range(count) for name in fork(make_names, 1).next()]


def test_names_are_never_the_same_nor_alike(isolated: Isolated, fork: Fork) -> None:
    made = isolated(make_names_across_forks, fork, 250)
    assert len(set(made)) == len(made) == 1000
    for letters in list(zip(*made, strict=True))[len("/shmp_") :]:
        assert len(set(letters)) == 32
        assert max(map(letters.count, letters)) < 80  # 31 on average


# ---- what is planted under a name


def plant_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


PLANTS: dict[str, Callable[[Path], object]] = {
    "link to a file": lambda path: path.symlink_to(SHM / "target"),
    "link to a pipe": lambda path: path.symlink_to(SHM / "pipe"),
    "link to nothing": lambda path: path.symlink_to("nothing"),
    "link to itself": lambda path: path.symlink_to(path),
    "pipe": os.mkfifo,
    "directory": Path.mkdir,
    "socket": plant_socket,
    "device": lambda path: os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 5)),
}


def meet(plant: Callable[[Path], object], read_only: bool) -> list[str]:
    """Attach to the plant, then reap. Give the exceptions of attaching."""
    signal.signal(signal.SIGIO, signal.SIG_IGN)
    os.mkfifo(SHM / "pipe")
    (SHM / "target").write_bytes(bytes(SIZE))
    name = "shmp_planted"
    plant(SHM / name)
    planted = os.lstat(SHM / name)
    raised = []
    with (SHM / "target").open("r+b") as target:
        fcntl.fcntl(target, fcntl.F_SETLEASE, fcntl.F_WRLCK)  # who opens it breaks the lease
        for provider in "posix", "std":
            for name_or_id in f"/{name}", f"/../shm/{name}":
                try:
                    open_provider(provider).shmem_from_id_and_size(name_or_id, SIZE, read_only=read_only)
                except (ValueError, OSError) as problem:
                    raised.append(type(problem).__name__)
        assert open_provider("posix")._reap(False) == []
        assert open_provider("posix")._list() == []
        assert fcntl.fcntl(target, fcntl.F_GETLEASE) == fcntl.F_WRLCK
    assert os.lstat(SHM / name) == planted
    return raised


@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("kind", PLANTS)
def test_a_plant_is_refused_and_left_alone(
    kind: str, read_only: bool, isolated: Isolated, request: pytest.FixtureRequest
) -> None:
    if kind == "device":
        request.getfixturevalue("as_root")
    assert isolated(meet, PLANTS[kind], read_only, timeout=10) == ["InvalidIdError"] * 4


# ---- other users


def attach(name: str, id: str, read_only: bool) -> str:
    try:
        with open_provider(name).shmem_from_id_and_size(id, SIZE, read_only=read_only) as shm:
            return shm[:4].decode()
    except PermissionError as problem:
        return f"PermissionError: {problem}"


def own(name: str) -> Any:
    with open_provider(name).new_shmem(SIZE) as shm:
        shm[:4] = b"mine"
        yield shm.id


def intrude(fork: Fork, name: str, owner_uid: int, read_only: bool) -> tuple[str, str]:
    """Give what another user and what the owner himself gets."""
    owner = fork(become, owner_uid, lambda: own(name)) if owner_uid else fork(own, name)
    id = owner.next()

    def as_user(uid: int) -> str:
        got: str = fork(become, uid, lambda: attach(name, id, read_only)).next()
        return got

    return as_user(12345), as_user(owner_uid)


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("read_only", [False, True])
@pytest.mark.parametrize("owner_uid", [0, 54321])
@pytest.mark.parametrize("name", PROVIDERS)
def test_another_user_cannot_attach(name: str, owner_uid: int, read_only: bool, isolated: Isolated, fork: Fork) -> None:
    other, owner = isolated(intrude, fork, name, owner_uid, read_only)
    assert other.startswith("PermissionError")
    assert "another user's" in other
    assert owner == "mine"


def reap_as_another(fork: Fork, mode: int) -> list[str]:
    owner = fork(own, "posix")
    owner.next()
    owner.kill()
    (left,) = SHM.iterdir()
    left.chmod(mode)
    found: list[str] = fork(become, 12345, lambda: open_provider("posix")._reap(False)).next()
    assert left.exists()
    return found


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_another_user_cannot_reap(mode: int, isolated: Isolated, fork: Fork) -> None:
    assert isolated(reap_as_another, fork, mode) == []


# ---- memfd


@pytest.mark.parametrize("attached", [False, True])
def test_the_size_of_a_memfd_is_sealed(attached: bool) -> None:
    provider = MemfdShMemProvider()
    with provider.new_shmem(SIZE) as shm, provider.clone_ref(shm) as clone:
        fd = (clone if attached else shm).fileno()
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & SEALED == SEALED
        for size in (0, SIZE - 1, 2 * SIZE):
            with pytest.raises(PermissionError):
                os.ftruncate(fd, size)
        with pytest.raises(PermissionError):
            os.posix_fallocate(fd, 0, 2 * SIZE)
        with pytest.raises(PermissionError):
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0x8)  # F_SEAL_WRITE
        assert os.fstat(fd).st_size == len(shm) == SIZE


def test_a_memfd_of_another_program_is_refused_unless_sealed() -> None:
    provider = MemfdShMemProvider()
    with provider.new_file() as file:
        file.truncate(SIZE)
        id = memfd_id(os.getpid(), file.fileno(), os.fstat(file.fileno()).st_ino)
        with pytest.raises(InvalidIdError):
            provider.shmem_from_id_and_size(id, SIZE)
        fcntl.fcntl(file.fileno(), fcntl.F_ADD_SEALS, SEALED)
        with provider.shmem_from_id_and_size(id, SIZE) as shm:
            assert len(shm) == SIZE
