"""Segments shared with the Rust crate that this project is compatible with, both ways and to the byte."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from seeds import Seed, SeedError

from shmem_providers import ShMem, SizeMismatchError, StdShMemProvider, open_provider

WINDOWS = sys.platform == "win32"
pytestmark = pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="the ids of the seed's providers there")
linux = pytest.mark.skipif(WINDOWS, reason="a mechanism of Linux: on Windows the seed has one")

SHM = Path("/dev/shm")
NAME = "SEED_MAP"
EXACT, ODD = 65536, 4097
KNOWN = 8192 if WINDOWS else ODD  # as others know the size of an odd one: Windows tells whole pages

REVERSE = (
    "import sys, shmem_providers; "
    "shm = shmem_providers.open_provider(sys.argv[1]).existing_from_env(sys.argv[2]); "
    "shm[:] = shm[:][::-1]; print(len(shm)); shm.close()"
)


@pytest.fixture
def seed(seed_program: Path) -> Iterator[Callable[..., Seed]]:
    with contextlib.ExitStack() as stack:

        def remove_names(pid: int) -> None:
            for path in SHM.glob(f"libafl_{pid}_*"):
                path.unlink()

        def start(*args: object, pass_fds: tuple[int, ...] = ()) -> Seed:
            process = subprocess.Popen(
                [seed_program, *map(str, args)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=pass_fds,
            )
            stack.callback(remove_names, process.pid)
            return Seed(stack.enter_context(process))

        yield start


@pytest.fixture
def clean_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what write_to_env sets."""
    for name in (NAME, f"{NAME}_SIZE"):
        monkeypatch.setenv(name, "")


def assert_shared(shm: ShMem, peer: Seed) -> None:
    assert len(shm) == peer.size
    data = os.urandom(peer.size)
    shm[:] = data
    assert peer.read() == data
    peer.write(data[::-1])
    assert shm[:] == data[::-1]


@pytest.mark.parametrize("size", [EXACT, ODD])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("std", "win32"), ("std", "std")]
    if WINDOWS
    else [("sysv", "sysv"), ("sysv", "std"), ("std", "sysv"), ("std", "std"), ("mmap", "posix"), ("mmap", "std")],
)
def test_attach_by_id(seed: Callable[..., Seed], theirs: str, ours: str, size: int) -> None:
    peer = seed("create", theirs, size)
    with open_provider(ours).shmem_from_id_and_size(peer.id, size) as shm:
        assert shm[:] == bytes(size)
        assert_shared(shm, peer)


@pytest.mark.parametrize("size", [EXACT, ODD])
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("std", "win32"), ("std", "std")]
    if WINDOWS
    else [
        ("sysv", "sysv"),
        ("std", "std"),
        ("mmap", "posix"),
        ("mmap", "std"),
        ("memfd", "memfd"),
        ("memfd", "posix"),
        ("mmap-fd", "memfd"),
        ("mmap-fd", "posix"),
        pytest.param("ashmem", "ashmem", marks=pytest.mark.needs("ashmem")),
    ],
)
def test_attach_from_env_of_seed(seed: Callable[..., Seed], theirs: str, ours: str, size: int) -> None:
    peer = seed("create", theirs, size)
    data = os.urandom(size)
    peer.write(data)
    assert peer.ask("exec", NAME, sys.executable, "-W", "error", "-c", REVERSE, ours, NAME) == str(size)
    assert peer.read() == data[::-1]


@pytest.mark.usefixtures("clean_env")
@pytest.mark.parametrize("size", [EXACT, ODD])
@pytest.mark.parametrize("how", ["attach", "attach-env"])
@pytest.mark.parametrize(
    ("ours", "fd_ids", "theirs"),
    [("win32", False, "std"), ("std", False, "std")]
    if WINDOWS
    else [
        ("sysv", False, "sysv"),
        ("sysv", False, "std"),
        ("posix", False, "mmap"),
        ("posix", True, "memfd"),  # the only one of the seed's that attaches a descriptor on Linux
        ("memfd", True, "memfd"),
        pytest.param("ashmem", True, "ashmem", marks=pytest.mark.needs("ashmem")),
    ],
)
def test_give(seed: Callable[..., Seed], ours: str, fd_ids: bool, theirs: str, how: str, size: int) -> None:
    provider = open_provider(ours, fd_ids=True) if fd_ids else open_provider(ours)
    with provider.new_shmem(size) as shm:
        shm.write_to_env(NAME)
        what = (shm.id, size) if how == "attach" else (NAME,)
        peer = seed(how, theirs, *what, pass_fds=(shm.fileno(),) if fd_ids else ())
        assert peer.id == shm.id
        assert_shared(shm, peer)


def test_give_default_to_default(seed: Callable[..., Seed], monkeypatch: pytest.MonkeyPatch) -> None:
    if not WINDOWS:
        monkeypatch.setenv("SHMEM_PROVIDER", "sysv")
    with StdShMemProvider().new_shmem(ODD) as shm:
        assert_shared(shm, seed("attach", "std", shm.id, ODD))


@linux
def test_seed_wants_the_exact_size_of_a_memfd(seed: Callable[..., Seed]) -> None:
    with open_provider("memfd", fd_ids=True).new_shmem(ODD) as shm:
        for size in (ODD - 1, ODD + 1, 4096, 8192):
            with pytest.raises(SeedError, match="differs from the requested size"):
                seed("attach", "memfd", shm.id, size, pass_fds=(shm.fileno(),))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("std", "win32"), ("std", "std")]
    if WINDOWS
    else [("sysv", "sysv"), ("mmap", "posix"), ("std", "std"), ("mmap", "std")],
)
def test_no_more_than_the_seed_has(seed: Callable[..., Seed], theirs: str, ours: str) -> None:
    peer = seed("create", theirs, ODD)
    with pytest.raises(SizeMismatchError):
        open_provider(ours).shmem_from_id_and_size(peer.id, KNOWN + 1)


@linux
def test_name_of_seed_is_kept(seed: Callable[..., Seed]) -> None:
    peer = seed("create", "mmap", ODD)
    name = SHM / peer.id[1:]
    with open_provider("posix").shmem_from_id_and_size(peer.id, ODD) as shm:
        shm[0] = 7
    assert name.exists()
    peer.process.kill()
    peer.process.wait()
    with open_provider("posix").shmem_from_id_and_size(peer.id, ODD) as shm:
        assert shm[0] == 7
    assert name.exists()


@linux
def test_shmid_of_seed_is_kept(seed: Callable[..., Seed]) -> None:
    peer = seed("create", "sysv", ODD)
    for _ in range(2):
        with open_provider("sysv").shmem_from_id_and_size(peer.id, ODD) as shm:
            assert_shared(shm, peer)


@linux
def test_seed_destroys_nothing_of_ours(seed: Callable[..., Seed]) -> None:
    # The seed marks a shmid for removal when it lets go, though somebody else created it.
    with open_provider("sysv").new_shmem(ODD) as shm:
        for _ in range(2):
            peer = seed("attach", "sysv", shm.id, ODD)
            assert_shared(shm, peer)
            peer.quit()


@pytest.mark.parametrize(("ours", "theirs"), [("win32", "std")] if WINDOWS else [("sysv", "sysv"), ("posix", "mmap")])
def test_closed_id_is_gone(seed: Callable[..., Seed], ours: str, theirs: str) -> None:
    with open_provider(ours).new_shmem(ODD) as shm:
        id_ = shm.id
    with pytest.raises(SeedError, match="0x80070002" if WINDOWS else "OS error"):  # the file is not found
        seed("attach", theirs, id_, ODD)


@pytest.mark.skipif(not WINDOWS, reason="what the seed does on Windows")
def test_names_are_like_those_of_the_seed(seed: Callable[..., Seed]) -> None:
    peer = seed("create", "std", ODD)
    with open_provider("win32").new_shmem(ODD) as shm:
        for name in (shm.id, peer.id):
            assert re.fullmatch("libafl_[0-9a-f]{12}", name)


@pytest.mark.skipif(not WINDOWS, reason="what the seed does on Windows")
def test_a_section_lives_as_long_as_either(seed: Callable[..., Seed]) -> None:
    peer = seed("create", "std", ODD)
    peer.write(b"\x07" * ODD)
    with open_provider("win32").shmem_from_id_and_size(peer.id, ODD) as shm:
        peer.process.kill()
        peer.process.wait()
        assert shm[:] == b"\x07" * ODD
        assert seed("attach", "std", shm.id, ODD).read() == b"\x07" * ODD
    with open_provider("win32").new_shmem(ODD) as shm:
        shm[0] = 8
        peer = seed("attach", "std", shm.id, ODD)
    assert peer.read()[0] == 8
