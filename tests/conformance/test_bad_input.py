"""Garbage in every argument: the exception that the design names, the value in its message, no leak."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mechanisms import AVAILABLE, mechanism

from shmem_providers import (
    InvalidIdError,
    MmapShMemProvider,
    ProviderUnavailableError,
    ServiceError,
    ShMem,
    ShMemDescription,
    ShMemError,
    ShMemId,
    ShMemProvider,
    SizeMismatchError,
    StdShMemProvider,
    available_providers,
    open_provider,
)
from shmem_providers._providers import probe_providers

pytestmark = pytest.mark.usefixtures("nothing_leaks")


def refusal(call: Callable[[], object]) -> BaseException | None:
    """Give what was raised."""
    try:
        call()
    except Exception as raised:
        return raised
    return None


def test_the_exception_classes() -> None:
    for error, builtin in (
        (InvalidIdError, ValueError),
        (SizeMismatchError, ValueError),
        (ProviderUnavailableError, OSError),
        (ServiceError, OSError),
    ):
        assert issubclass(error, ShMemError)
        assert issubclass(error, builtin)
    assert issubclass(ShMemError, Exception)
    assert not issubclass(ShMemError, (ValueError, OSError))


# ---- sizes


class Index:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


SIZES: dict[type[Exception], list[object]] = {
    TypeError: [1.0, 4096.0, "4096", b"4096", True, False, None, [1], (1,), {}, 1j, object(), int],
    ValueError: [0, -1, -4096, -(2**31), -(2**63), -(2**63) - 1, -(2**100), -(10**5000), Index(0), Index(-1)],
    OverflowError: [2**63, 2**63 + 4096, 2**64, 2**64 + 1, 2**100, 10**5000, Index(2**64)],
}


@pytest.mark.parametrize("method", ["create", "attach", "describe"])
def test_bad_sizes(provider: ShMemProvider, method: str) -> None:
    with provider.new_shmem(4096) as shm:
        id = shm.id
        call: Callable[[Any], object] = {
            "create": provider.new_shmem,
            "attach": lambda size: provider.shmem_from_id_and_size(id, size),
            "describe": lambda size: provider.shmem_from_description(ShMemDescription(size, id)),
        }[method]
        wrong = {}
        for error, sizes in SIZES.items():
            for size in sizes:
                raised = refusal(lambda: call(size))  # noqa: B023
                names_it = isinstance(size, Index) or _text(size) in str(raised)
                if type(raised) is not error or not names_it:
                    wrong[_text(size)] = repr(raised)
        assert wrong == {}
        call(Index(100)).close()  # type: ignore[attr-defined]


def _text(value: object) -> str:
    """Give what a message should show of a value: nothing where Python itself refuses to print it."""
    try:
        return repr(value)
    except ValueError:
        return ""


def test_numpy_sizes(provider: ShMemProvider, numpy: Any) -> None:
    for size, error in (
        (numpy.float64(4), TypeError),
        (numpy.True_, (TypeError, DeprecationWarning)),  # NumPy 1 warns only
        (numpy.zeros(3), TypeError),
        (numpy.int64(0), ValueError),
        (numpy.int8(-1), ValueError),
        (numpy.uint64(2**63), OverflowError),
    ):
        assert isinstance(refusal(lambda: provider.new_shmem(size)), error), repr(size)  # noqa: B023
    with provider.new_shmem(numpy.uint8(200)) as shm:
        assert (len(shm), type(shm.size)) == (200, int)


# ---- ids

IDS = [
    "x",
    "/",
    "//",
    "//x",
    "/../etc/passwd",
    "/etc/passwd",
    "/a/b",
    "/.",
    "/..",
    "./x",
    "x" * 20,
    "/" + "x" * 19,
    "1" * 20,
    "x" * 100_000,
    "-1",
    "+1",
    "00",
    "01",
    "0x10",
    "1e3",
    "1_000",
    "2147483648",
    "99999999999",
    "9" * 19,
    "1.2",
    "1.2.",
    "1.2.zzzzzzz",  # a check of more than 32 bits
    "zzzzzz.2.3",  # a pid beyond INT_MAX
    ".2.3abcd",
    "1..3abcd",
    "1.2.abc-",
    "1.2.ABCD",
    "-1.2.abcd",
    "1.-2.abcd",
    "1.2.abcd.5",
    "01.2.abcd",
    "1.2.0xabcd",
    "1.99999999999.abcd",
    "0:1",
    "Global\\x",
    "Local\\x",
    "\\",
]
# Not even printable ASCII: no provider's, nor a ShMemId.
UNPRINTABLE_IDS = [
    " ",
    " 1",
    "1 ",
    "1\n",
    "\t",
    "a b",
    "\0",
    "1\0",
    "/x\0y",
    "\x7f",
    "é",
    "/é",
    "\u0661",  # Arabic, and int() takes it
    "\uff11\uff12",  # full width, likewise
    "²",
    "\U0001f9e0",
    "\ud800",
    "/\udcff",
]


def test_bad_ids(provider: ShMemProvider, can: Callable[[ShMemProvider, str], bool]) -> None:
    wrong = {}
    any_name = can(provider, "any_name")
    for id in [*IDS, *UNPRINTABLE_IDS]:
        for read_only in (False, True):
            raised = refusal(lambda: provider.shmem_from_id_and_size(id, 4096, read_only=read_only))  # noqa: B023
            if mechanism(provider) == "posix" and id in ("/etc/passwd", "/a/b"):
                assert isinstance(raised, InvalidIdError)  # it has a second slash
            is_name = any_name and id in IDS and len(id) < 20 and "\\" not in id
            if id == "0:1" and isinstance(provider, StdShMemProvider) and not any_name:  # a service was asked
                assert isinstance(raised, (ServiceError, InvalidIdError))
                continue
            is_name |= id == "0:1" and mechanism(provider) == "served"
            expected = FileNotFoundError if is_name else InvalidIdError
            if type(raised) is not expected or (id in IDS and id[:40] not in str(raised)):
                wrong[id] = repr(raised)
    assert wrong == {}


def test_an_empty_id_is_nops_alone(provider: ShMemProvider) -> None:
    for id in ("", ShMemId()):
        if mechanism(provider) == "nop":
            provider.shmem_from_id_and_size(id, 10).close()
        else:
            with pytest.raises(InvalidIdError):
                provider.shmem_from_id_and_size(id, 10)


def test_a_provider_takes_no_others_ids(provider: ShMemProvider) -> None:
    with provider.new_shmem(64) as shm:
        for other in AVAILABLE:
            if other == mechanism(provider):
                continue
            raised = refusal(lambda: open_provider(other).shmem_from_id_and_size(shm.id, 64))  # noqa: B023
            # a System V id that is given to memfd or posix by name is the number of a descriptor
            is_number = shm.id.isdecimal() and other in ("memfd", "posix")
            assert isinstance(raised, (InvalidIdError, FileNotFoundError) if is_number else InvalidIdError), other


@pytest.mark.needs("memfd", "sysv")
def test_a_clone_is_of_the_same_segment_whichever_provider_is_asked(peer: Any) -> None:
    """The bare descriptor or number of one mechanism may be the valid id of another's segment."""
    peer("memfd, sysv, bare = MemfdShMemProvider(), UnixShMemProvider(), MemfdShMemProvider(fd_ids=True)")
    for origin in ("sysv", "bare"):
        peer(f"wanted = {origin}.new_shmem(100); wanted[0] = 7")
        for provider in ("memfd", "sysv", "bare", "StdShMemProvider()"):
            peer(
                f"with {provider}.clone_ref(wanted) as clone:\n    clone[1] = clone[0] + 1; name = clone.provider_name"
            )
            assert peer("wanted[:2], name == wanted.provider_name") == (b"\x07\x08", True)
        peer("wanted.close()")


# ---- descriptors that are no shared memory


@contextlib.contextmanager
def _files(tmp_path: Path) -> Iterator[dict[str, int]]:
    """Give open descriptors of everything else, by what they are."""
    import fcntl

    with contextlib.ExitStack() as stack:

        def own(*fds: int) -> tuple[int, ...]:
            for fd in fds:
                stack.callback(os.close, fd)
            return fds

        program, on_disk = Path(sys.executable).resolve(), tmp_path / "file"
        on_disk.write_bytes(bytes(8192))
        tmpfs = stack.enter_context(tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="shmptest"))
        tmpfs.truncate(8192)
        (tmp_path / "fifo").unlink(missing_ok=True)
        os.mkfifo(tmp_path / "fifo")
        one, two = socket.socketpair()
        stack.enter_context(one), stack.enter_context(two)
        reading, writing = own(*os.pipe())
        os.write(writing, b"content")
        (unsealed,) = own(os.memfd_create("unsealed", os.MFD_ALLOW_SEALING))
        (half_sealed,) = own(os.memfd_create("half sealed", os.MFD_ALLOW_SEALING))
        for fd in (unsealed, half_sealed):
            os.ftruncate(fd, 8192)
        fcntl.fcntl(half_sealed, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW)
        epoll = stack.enter_context(select.epoll())
        controller, terminal = own(*os.openpty())
        files = {
            "socket": one.fileno(),
            "pipe's reading end": reading,
            "pipe's writing end": writing,
            "fifo": own(os.open(tmp_path / "fifo", os.O_RDWR))[0],
            "directory": own(os.open(tmp_path, os.O_RDONLY))[0],
            "/dev/null": own(os.open("/dev/null", os.O_RDWR))[0],
            "/dev/zero": own(os.open("/dev/zero", os.O_RDWR))[0],
            "terminal": terminal,
            "terminal's controller": controller,
            "epoll": epoll.fileno(),
            "/proc file": own(os.open("/proc/self/status", os.O_RDONLY))[0],
            "O_PATH": own(os.open(on_disk, os.O_PATH))[0],
            "file on disk": own(os.open(on_disk, os.O_RDWR))[0],
            "running program": own(os.open(program, os.O_RDONLY))[0],
            "file on tmpfs": tmpfs.fileno(),
            "unsealed memfd": unsealed,
            "half-sealed memfd": half_sealed,
        }
        yield files
        assert os.read(reading, 100) == b"content"  # nobody has read from it


def _may_be_shared(fd: int) -> bool:
    """Tell whether it is what a bare descriptor may be, on its giver's word: memory that has a size."""
    import fcntl

    with contextlib.suppress(OSError):
        return fcntl.fcntl(fd, fcntl.F_GET_SEALS) >= 0
    return False


def _id_of(fd: int) -> str:
    """Give the memfd id that a descriptor of this process would have."""
    return ".".join(map(_base_36, (os.getpid(), fd, os.fstat(fd).st_ino % 2**32)))


def _base_36(number: int) -> str:
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


@pytest.mark.needs("memfd", "posix")
@pytest.mark.parametrize("name", ["memfd", "posix"])
def test_bare_descriptors_of_something_else(name: str, tmp_path: Path) -> None:
    provider = open_provider(name, fd_ids=True)
    with _files(tmp_path) as files:
        before = {what: os.fstat(fd).st_size for what, fd in files.items()}
        shared = {what for what, fd in files.items() if _may_be_shared(fd)}
        assert shared - {"file on disk"} == {"file on tmpfs", "unsealed memfd", "half-sealed memfd"}
        for read_only in (False, True):
            raised = {}
            for what, fd in files.items():
                error = refusal(lambda: provider.shmem_from_id_and_size(str(fd), 100, read_only=read_only).close())  # noqa: B023
                raised[what] = type(error)
                assert error is None or str(fd) in str(error)
            assert raised == {what: type(None) if what in shared else InvalidIdError for what in files}
        for what in shared:
            with pytest.raises(SizeMismatchError):
                provider.shmem_from_id_and_size(str(files[what]), 8193)
        assert {what: os.fstat(fd).st_size for what, fd in files.items()} == before
    for number in (files["unsealed memfd"], 1_000_000, 2**31 - 1):
        with pytest.raises(FileNotFoundError, match=str(number)):
            provider.shmem_from_id_and_size(str(number), 100)


@pytest.mark.needs("memfd")
def test_memfd_ids_of_something_else(tmp_path: Path, peer: Any) -> None:
    """The id would be right, but no sealed memfd is behind it: in this process, and seen from another."""
    provider = open_provider("memfd")
    peer("provider = open_provider('std')")
    attach = "provider.shmem_from_id_and_size(id, 100, read_only=read_only).close()"
    with _files(tmp_path) as files:
        for read_only in (False, True):
            here, there = {}, {}
            for what, fd in files.items():
                id = _id_of(fd)
                raised = refusal(lambda: provider.shmem_from_id_and_size(id, 100, read_only=read_only))  # noqa: B023
                here[what] = type(raised).__name__
                there[what] = peer.raises(attach, id=id, read_only=read_only)[0]
            assert here == dict.fromkeys(files, "InvalidIdError")
            assert there == dict.fromkeys(files, "InvalidIdError")
        gone = _id_of(files["unsealed memfd"])
    assert type(refusal(lambda: provider.shmem_from_id_and_size(gone, 100))) is FileNotFoundError
    assert peer.raises(attach, id=gone, read_only=False)[0] == "FileNotFoundError"


@pytest.mark.needs("memfd")
def test_a_reused_descriptor_number_is_refused(peer: Any) -> None:
    """Close A, open B under A's descriptor number: A's id must not give B."""
    provider = open_provider("memfd")
    peer("provider = open_provider('memfd')")
    old = provider.new_shmem(4096)
    id, fd = old.id, old.fileno()
    old.close()
    with provider.new_shmem(4096) as new:
        assert new.fileno() == fd
        for read_only in (False, True):
            with pytest.raises(FileNotFoundError, match=id.as_str()):
                provider.shmem_from_id_and_size(id, 4096, read_only=read_only)
            raised, message = peer.raises("provider.shmem_from_id_and_size(id, 4096)", id=id.as_str())
            assert (raised, id.as_str() in message) == ("FileNotFoundError", True)
        with provider.shmem_from_id_and_size(_id_of(fd), 4096) as right:
            right[0] = 1
        assert new[0] == 1
        assert new.id == _id_of(fd)
        start, check = id.rpartition(".")[0], _id_of(fd).rpartition(".")[2]
        for at, digit in enumerate(check):  # any digit of the check that is wrong
            wrong = check[:at] + ("2" if digit == "1" else "1") + check[at + 1 :]
            with pytest.raises((FileNotFoundError, InvalidIdError)):
                provider.shmem_from_id_and_size(f"{start}.{wrong}", 4096)


@pytest.mark.needs("memfd")
def test_a_read_only_descriptor_is_not_mapped_for_writing() -> None:
    provider = open_provider("memfd", fd_ids=True)
    with provider.new_shmem(4096) as shm:
        fd = os.open(f"/proc/self/fd/{shm.fileno()}", os.O_RDONLY)
        try:
            with pytest.raises(PermissionError, match="read_only"):
                provider.shmem_from_id_and_size(str(fd), 4096)
            with provider.shmem_from_id_and_size(str(fd), 4096, read_only=True) as reader:
                shm[0] = 5
                assert reader[0] == 5
        finally:
            os.close(fd)


@pytest.mark.needs("posix", "linux")
@pytest.mark.parametrize("kind", ["directory", "fifo", "link", "link to a segment", "socket"])
def test_posix_names_of_something_else(kind: str, run_python: Callable[..., str]) -> None:
    """Somebody may put anything into a directory that is open to all; none of it is waited for."""
    code = (
        "import sys, shmem_providers as s\n"
        "provider = s.open_provider('posix')\n"
        "for read_only in (False, True):\n"
        "    try:\n"
        "        provider.shmem_from_id_and_size(sys.argv[1], 1, read_only=read_only)\n"
        "    except Exception as raised:\n"
        "        print(type(raised).__name__)\n"
        "with provider.new_shmem(10) as shm:\n"
        "    shm[0] = 1\n"
    )
    like_ours = "shmp_" + "".join(random.choices("abcdefghijklm", k=13))  # reaping meets it
    for name in (f"shmptest_{os.getpid()}", like_ours):
        path = Path("/dev/shm", name)
        with MmapShMemProvider().new_shmem(4096) as shm, socket.socket(socket.AF_UNIX) as listener:
            if kind == "directory":
                path.mkdir()
            elif kind == "fifo":
                os.mkfifo(path)
            elif kind == "socket":
                listener.bind(str(path))
            else:
                path.symlink_to("/etc/passwd" if kind == "link" else "/dev/shm" + shm.id)
            try:
                printed = run_python(code, "/" + name, timeout=20)
                assert path.is_symlink() or path.exists()
            finally:
                path.rmdir() if kind == "directory" else path.unlink()
        assert printed.split() == ["InvalidIdError"] * 2


# ---- types and keywords


Raised = type[Exception] | tuple[type[Exception], ...]
DUCK = (TypeError, AttributeError)


def _table(provider: Any, shm: Any) -> dict[str, tuple[Raised, Callable[[], object]]]:
    """Calls that cannot be right, and what each must raise."""
    id = shm.id
    return {
        "new_shmem()": (TypeError, lambda: provider.new_shmem()),
        "new_shmem(4, 5)": (TypeError, lambda: provider.new_shmem(4, 5)),
        "new_shmem(size twice)": (TypeError, lambda: provider.new_shmem(4, size=4)),
        "new_shmem(other=)": (TypeError, lambda: provider.new_shmem(4, other=1)),
        "new_shmem(read_only=)": (TypeError, lambda: provider.new_shmem(4, read_only=True)),
        "new_shmem(reserve=broken)": (ZeroDivisionError, lambda: provider.new_shmem(4, reserve=Broken())),
        "new_shmem(mode=0)": (ValueError, lambda: provider.new_shmem(4, mode=0)),
        "new_shmem(mode=0o1000)": (ValueError, lambda: provider.new_shmem(4, mode=0o1000)),
        "new_shmem(mode=-1)": (ValueError, lambda: provider.new_shmem(4, mode=-1)),
        "new_shmem(mode=2**64)": (ValueError, lambda: provider.new_shmem(4, mode=2**64 + 0o600)),
        "new_shmem(mode=10**5000)": (ValueError, lambda: provider.new_shmem(4, mode=10**5000)),
        "new_shmem(mode=True)": (TypeError, lambda: provider.new_shmem(4, mode=True)),
        "new_shmem(mode=str)": (TypeError, lambda: provider.new_shmem(4, mode="0660")),
        "new_shmem(mode=broken)": (ZeroDivisionError, lambda: provider.new_shmem(4, mode=BrokenIndex())),
        "whole()": (TypeError, lambda: provider.attach()),
        "whole(None)": (TypeError, lambda: provider.attach(None)),
        "whole(bytes)": (TypeError, lambda: provider.attach(b"1")),
        "whole(id, 4)": (TypeError, lambda: provider.attach(id, 4)),
        "whole(size=)": (TypeError, lambda: provider.attach(id, size=4)),
        "whole(garbage)": (ValueError, lambda: provider.attach("a b")),
        "whole(any_user=broken)": (ZeroDivisionError, lambda: provider.attach(id, any_user=Broken())),
        "attach()": (TypeError, lambda: provider.shmem_from_id_and_size()),
        "attach(id)": (TypeError, lambda: provider.shmem_from_id_and_size(id)),
        "attach(size=)": (TypeError, lambda: provider.shmem_from_id_and_size(size=4)),
        "attach(id, 4, True)": (TypeError, lambda: provider.shmem_from_id_and_size(id, 4, True)),
        "attach(reserve=)": (TypeError, lambda: provider.shmem_from_id_and_size(id, 4, reserve=True)),
        "attach(None)": (TypeError, lambda: provider.shmem_from_id_and_size(None, 4)),
        "attach(5)": (TypeError, lambda: provider.shmem_from_id_and_size(5, 4)),
        "attach(bytes)": (TypeError, lambda: provider.shmem_from_id_and_size(b"1", 4)),
        "attach(description)": (TypeError, lambda: provider.shmem_from_id_and_size(shm.description, 4)),
        "attach(read_only=broken)": (
            ZeroDivisionError,
            lambda: provider.shmem_from_id_and_size(id, 4, read_only=Broken()),
        ),
        "from_description()": (TypeError, lambda: provider.shmem_from_description()),
        "from_description(str)": (DUCK, lambda: provider.shmem_from_description(id)),
        "from_description(None)": (DUCK, lambda: provider.shmem_from_description(None)),
        "from_description(other=)": (TypeError, lambda: provider.shmem_from_description(shm.description, other=1)),
        "from_env()": (TypeError, lambda: provider.existing_from_env()),
        "from_env(5)": (TypeError, lambda: provider.existing_from_env(5)),
        "from_env(None)": (TypeError, lambda: provider.existing_from_env(None)),
        "from_env(bytes)": (TypeError, lambda: provider.existing_from_env(b"X")),
        "from_env(other=)": (TypeError, lambda: provider.existing_from_env("X", other=1)),
        "clone_ref()": (TypeError, lambda: provider.clone_ref()),
        "clone_ref(5)": (DUCK, lambda: provider.clone_ref(5)),
        "clone_ref(id)": (DUCK, lambda: provider.clone_ref(id)),
        "release_shmem(5)": (DUCK, lambda: provider.release_shmem(5)),
        "pre_fork(1)": (TypeError, lambda: provider.pre_fork(1)),
        "post_fork()": (TypeError, lambda: provider.post_fork()),
        "post_fork(broken)": (ZeroDivisionError, lambda: provider.post_fork(Broken())),
        "close(1)": (TypeError, lambda: shm.close(1)),
        "fileno(1)": (TypeError, lambda: shm.fileno(1)),
        "persist(1)": (TypeError, lambda: shm.persist(1)),
        "write_to_env()": (TypeError, lambda: shm.write_to_env()),
        "write_to_env(5)": (TypeError, lambda: shm.write_to_env(5)),
        "write_to_env(None)": (TypeError, lambda: shm.write_to_env(None)),
        "write_to_env(bytes)": (TypeError, lambda: shm.write_to_env(b"X")),
        "as_ptr_of()": (TypeError, lambda: shm.as_ptr_of()),
        "setattr(name)": (AttributeError, lambda: setattr(provider, "name", "x")),
        "setattr(other)": (AttributeError, lambda: setattr(provider, "other", "x")),
    }


class BrokenIndex:
    def __index__(self) -> NoReturn:
        raise ZeroDivisionError


class Broken:
    def __bool__(self) -> NoReturn:
        raise ZeroDivisionError


def test_wrong_arguments(provider: ShMemProvider) -> None:
    with provider.new_shmem(4) as shm:
        shm[:] = b"1234"
        wrong = {}
        for name, (expected, call) in _table(provider, shm).items():
            raised = refusal(call)
            if not isinstance(raised, expected):
                wrong[name] = repr(raised)
        assert wrong == {}
        assert shm[:] == b"1234"


class WithoutType(ShMemProvider):
    _shmem_type = object  # type: ignore[assignment]


@pytest.mark.parametrize("wrong", [object, int, 5, None, ShMemProvider])
def test_a_provider_makes_segments_only(wrong: Any) -> None:
    """Objects of another layout would be written over."""

    class Wrong(ShMemProvider):
        _shmem_type = wrong

    with pytest.raises(TypeError, match="_shmem_type"):
        Wrong("nop")


def test_a_provider_makes_segments_of_its_class() -> None:
    class Mine(ShMem):
        pass

    class Provider(ShMemProvider):
        _shmem_type = Mine

    provider = Provider("nop")
    with provider.new_shmem(8) as shm, provider.clone_ref(shm) as clone, open_provider("nop").clone_ref(shm) as plain:
        assert (type(shm), type(clone), type(plain)) == (Mine, Mine, ShMem)
        with provider.clone_ref(plain) as back:
            assert type(back) is Mine


@pytest.mark.parametrize("flags", [2**32, 2**32 + 1, 2**64, -1, 0x4000])
def test_flags_are_not_cut(flags: int) -> None:
    with pytest.raises(ValueError, match="flags"):
        ShMemProvider("nop", flags)


def test_flags_are_a_number() -> None:
    for flags in ("0", None, 1.0, True):
        with pytest.raises(TypeError, match="flags"):
            ShMemProvider("nop", flags)  # type: ignore[arg-type]


def test_refused_calls_leak_no_objects(provider: ShMemProvider) -> None:
    """Each instance holds its class, so the class's count tells of those that nobody frees."""
    cls: Any = type(provider)

    def refused() -> None:
        for call in (
            lambda: ShMemProvider("garbage"),
            lambda: provider.new_shmem(0),
            lambda: provider.new_shmem(2**63 - 1),
            lambda: provider.new_shmem(1, mode=2**64),
            lambda: ShMemProvider("nop", 2**32),
            lambda: WithoutType("nop"),
            lambda: provider.shmem_from_id_and_size("garbage", 1),
            lambda: provider.shmem_from_id_and_size("a b", 1),
            lambda: provider._new_named(10, "/shmp_mine"),
            lambda: provider.existing_from_env("SHMP_TEST_NOT_SET"),
            lambda: provider.clone_ref(closed),
        ):
            assert refusal(call) is not None

    closed = provider.new_shmem(1)
    closed.close()
    refused()
    before = [sys.getrefcount(each) for each in (ShMem, ShMemProvider, cls)]
    for _ in range(200):
        refused()
    after = [sys.getrefcount(each) for each in (ShMem, ShMemProvider, cls)]
    assert max(now - then for now, then in zip(after, before, strict=True)) < 100


@pytest.mark.needs("posix")
def test_wrong_arguments_for_a_name() -> None:
    provider: Any = MmapShMemProvider()
    calls: list[Callable[[], object]] = [
        lambda: provider.new_shmem_with_id(10),
        lambda: provider.new_shmem_with_id(10, 5),
        lambda: provider.new_shmem_with_id(10, None),
        lambda: provider.new_shmem_with_id(10, b"/shmptest"),
        lambda: provider.new_shmem_with_id("/shmptest", 10),
        lambda: provider.new_shmem_with_id(1.5, "/shmptest"),
        lambda: provider.new_shmem_with_id(True, "/shmptest"),
        lambda: provider.new_shmem_with_id(10, "/shmptest", True),
        lambda: provider.new_shmem_with_id(10, "/shmptest", other=1),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()
    for size, error in ((0, ValueError), (-1, ValueError), (2**63, OverflowError), (2**62, OSError)):
        with pytest.raises(error):
            provider.new_shmem_with_id(size, "/shmptest")


# ---- which provider


@pytest.mark.parametrize(
    ("name", "options", "error"),
    [
        ("", {}, ValueError),
        ("garbage", {}, ValueError),
        ("MEMFD", {}, ValueError),
        (" memfd", {}, ValueError),
        ("memfd ", {}, ValueError),
        ("x" * 10_000, {}, ValueError),
        ("memfd\0", {}, ValueError),
        ("\ud800", {}, ValueError),
        (None, {}, TypeError),
        (5, {}, TypeError),
        (b"memfd", {}, TypeError),
        (["memfd"], {}, TypeError),
        ("memfd", {"other": 1}, TypeError),
        ("memfd", {"FD_IDS": True}, TypeError),
        ("sysv", {"fd_ids": True}, TypeError),
        ("nop", {"fd_ids": True}, TypeError),
        ("std", {"fd_ids": True}, TypeError),
        ("garbage", {"fd_ids": True}, ValueError),
    ],
)
def test_open_provider_refuses(name: Any, options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error) as refused:
        open_provider(name, **options)
    if name in ("garbage", "MEMFD"):
        assert name in str(refused.value)
        assert available_providers()[0] in str(refused.value)  # what there is


@pytest.mark.parametrize("name", ["memfd", "posix", "sysv", "win32", "ashmem"])
def test_a_mechanism_of_other_systems(name: str) -> None:
    reason = dict(probe_providers()).get(name, "of others")
    if reason is None:
        open_provider(name)
        return
    said = f"{name} is a mechanism of other platforms" if reason == "of others" else "ashmem is not there"
    with pytest.raises(ProviderUnavailableError, match=said):
        open_provider(name)


def test_the_environment_chooses_the_provider(run_python: Callable[..., str]) -> None:
    code = (
        "from shmem_providers import StdShMemProvider, ShMemError\n"
        "try:\n"
        "    print(StdShMemProvider().name)\n"
        "except Exception as raised:\n"
        "    print(type(raised).__name__, isinstance(raised, ShMemError), raised)\n"
    )
    best = available_providers()[0]
    assert run_python(code, env={"SHMEM_PROVIDER": "nop"}).startswith(
        "ValueError False SHMEM_PROVIDER: nop is opened by name only"
    )
    for name in set(AVAILABLE) - {"nop"}:
        assert run_python(code, env={"SHMEM_PROVIDER": name}) == f"{name}\n"
    for name in ("", "std"):
        assert run_python(code, env={"SHMEM_PROVIDER": name}) == f"{best}\n"
    for name in ("garbage", "MEMFD", "memfd ", "memfd,posix", "x" * 500, "é"):
        printed = run_python(code, env={"SHMEM_PROVIDER": name})
        assert printed.startswith("ValueError False ")
        assert "SHMEM_PROVIDER" in printed
        if sys.platform != "win32" or (name.isascii() and len(name) < 100):  # where C gets what fits, in a code page
            assert name[:40] in printed


def test_the_environment_changes_creation_alone(sharing: ShMemProvider, run_python: Callable[..., str]) -> None:
    code = (
        "import sys, shmem_providers as s\n"
        "with s.StdShMemProvider().shmem_from_id_and_size(sys.argv[1], 100) as shm:\n"
        "    print(shm.provider_name, shm[0])\n"
    )
    with sharing.new_shmem(100) as shm:
        shm[0] = 77
        for chosen in set(AVAILABLE) - {"nop"}:
            printed = run_python(code, shm.id, env={"SHMEM_PROVIDER": chosen})
            assert printed == f"{mechanism(sharing)} 77\n", chosen
