"""What is Windows' own: names, lifetime, sizes in pages, rights, errors with winerror, handles, the command line."""

from __future__ import annotations

import ctypes
import errno
import io
import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from held import held

from shmem_providers import (
    InvalidIdError,
    ShMemProvider,
    SizeMismatchError,
    StdShMemProvider,
    Win32ShMemProvider,
    available_providers,
    get_include,
    get_library_dir,
)

if sys.platform != "win32":
    pytest.skip("what Windows promises", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("nothing_leaks")

PAGE = 4096
ATTACH = "shm = StdShMemProvider().shmem_from_id_and_size(id, size)"
NAME = f"shmptest{os.getpid()}"


@pytest.fixture
def win32() -> Win32ShMemProvider:
    return Win32ShMemProvider()


def ended(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", *command], capture_output=True, text=True, **options)


# ---- the tests' own look


def test_a_leak_would_be_seen(win32: ShMemProvider) -> None:
    before = held()
    with win32.new_shmem(5000):
        kinds = sorted(each.split()[0] for each in held() - before)
    assert kinds == ["mapping", "section"]
    assert held() == before


# ---- names


def test_the_best_is_win32() -> None:
    assert available_providers() == ["win32", "nop"]
    assert StdShMemProvider().name == "win32"


def test_a_name_is_fresh_and_as_the_seeds(win32: ShMemProvider) -> None:
    """The seed crate reads any text; it makes 48 random bits of hexadecimal."""
    ids = []
    for _ in range(300):
        with win32.new_shmem(1) as shm:
            ids.append(shm.id.as_str())
    assert all(re.fullmatch("libafl_[0-9a-f]{12}", id) for id in ids)
    assert len(set(ids)) == 300
    for digits in list(zip(*ids, strict=True))[len("libafl_") :]:
        assert len(set(digits)) == 16


# ---- lifetime


@pytest.mark.parametrize("end", ["kill", "close"])
def test_a_section_lives_as_long_as_any_handle(win32: ShMemProvider, start_peer: Callable[[], Any], end: str) -> None:
    first, second = start_peer(), start_peer()
    first("shm = StdShMemProvider().new_shmem(5000); shm[0] = 9")
    id = first("shm.id.as_str()")
    shm = win32.shmem_from_id_and_size(id, 5000)
    first.kill() if end == "kill" else first("shm.close()")
    second(ATTACH, id=id, size=5000)
    shm.close()
    assert second("shm[0]") == 9
    second.kill() if end == "kill" else second("shm.close()")
    with pytest.raises(FileNotFoundError) as gone:
        win32.shmem_from_id_and_size(id, 5000)
    assert (gone.value.winerror, gone.value.errno) == (2, errno.ENOENT)
    assert id in str(gone.value)


def test_a_view_alone_keeps_the_memory_and_not_the_name(win32: ShMemProvider, peer: Any) -> None:
    """Closing ends all but the memory: who was attached shares it, and nobody comes after."""
    with win32.new_shmem(100) as shm:
        id = shm.id.as_str()
        view = memoryview(shm)
        peer(ATTACH, id=id, size=100)
    peer("shm[0] = 5; shm.close()")
    assert view[0] == 5
    assert peer.raises(ATTACH, id=id, size=100)[0] == "FileNotFoundError"
    view.release()
    assert peer.raises(ATTACH, id=id, size=100)[0] == "FileNotFoundError"


# ---- sizes


@pytest.mark.parametrize("size", [2**32, 2**32 + 1, 4 * 2**30 + 5])
def test_a_size_beyond_32_bits(win32: ShMemProvider, peer: Any, size: int) -> None:
    """The seed crate asks for the low 32 bits: nothing, 1 byte, 5 bytes."""
    shm = None
    try:
        shm = win32.new_shmem(size)
    except OSError as problem:
        refused = problem
    if not shm:
        assert refused.winerror
        assert re.search(f"{size} bytes.*page file", str(refused))
        pytest.skip(f"this machine has no room: {refused}")
    with shm:
        shm[size - 1] = 7
        peer(ATTACH, id=shm.id.as_str(), size=size)
        assert peer("len(shm), shm[-1], shm[0], shm[2**32 - 1]") == (size, 7, 0, 7 if size == 2**32 else 0)
        peer("shm.close()")
        with pytest.raises(SizeMismatchError):
            win32.shmem_from_id_and_size(shm.id, size + PAGE)


@pytest.mark.parametrize("size", [2**46, 2**62])
def test_more_than_there_can_be(win32: ShMemProvider, size: int) -> None:
    before = held()
    with pytest.raises(OSError, match=f"{size} bytes.*free memory, or enlarge the page file") as refused:
        win32.new_shmem(size)
    assert refused.value.winerror
    assert held() == before


def test_sizes_are_known_in_whole_pages(win32: ShMemProvider) -> None:
    with win32.new_shmem(PAGE + 1) as shm:
        with win32.shmem_from_id_and_size(shm.id, 2 * PAGE) as whole:
            assert whole[PAGE + 1 :] == bytes(PAGE - 1)
        before = held()
        with pytest.raises(SizeMismatchError, match=rf"has {2 * PAGE} bytes, the description says {2 * PAGE + 1}"):
            win32.shmem_from_id_and_size(shm.id, 2 * PAGE + 1)
        assert held() == before


def test_memory_is_zero(win32: ShMemProvider) -> None:
    for size in (1, PAGE - 1, 1_000_000):
        with win32.new_shmem(size) as shm, win32.shmem_from_id_and_size(shm.id, size) as other:
            assert shm[:] == other[:] == bytes(size)
            shm[:] = b"\xff" * size


# ---- reading only

WRITE = """
import ctypes, sys
from shmem_providers import StdShMemProvider
from shmem_providers import ffi, lib
provider, shmem, error = ffi.new("shmp_provider **"), ffi.new("shmp_shmem **"), ffi.new("shmp_error *")
description = ffi.new("shmp_description *", {"size": 100, "id": sys.argv[1].encode()})
assert lib.shmp_provider_open(b"std", ffi.NULL, provider, error) == 0
assert lib.shmp_attach(provider[0], description, int(sys.argv[2]), shmem, error) == 0
address = int(ffi.cast("uintptr_t", lib.shmp_data(shmem[0])))
assert ctypes.string_at(address, 3) == b"abc"
ctypes.memset(address, 1, 1)
print("written")
"""


def test_a_reader_is_stopped_by_the_system(win32: ShMemProvider) -> None:
    with win32.new_shmem(100) as shm:
        shm[:3] = b"abc"
        stopped = ended("-c", WRITE, shm.id, "1")  # SHMP_READ_ONLY
        assert "access violation" in stopped.stderr
        assert (stopped.returncode, stopped.stdout, shm[0]) == (1, "", ord("a"))
        assert ended("-c", WRITE, shm.id, "0").stdout == "written\n"
        assert shm[0] == 1


# ---- what is no section, or not ours


@pytest.fixture
def objects() -> Iterator[dict[str, str]]:
    """Give the names of objects that are no sections, by what they are."""
    kernel32 = ctypes.WinDLL("kernel32")
    made = {
        "event": kernel32.CreateEventA(None, False, False, f"{NAME}e".encode()),
        "mutex": kernel32.CreateMutexA(None, False, f"{NAME}m".encode()),
        "semaphore": kernel32.CreateSemaphoreA(None, 0, 1, f"{NAME}s".encode()),
    }
    assert all(made.values())
    yield {what: NAME + what[0] for what in made}
    for handle in made.values():
        assert kernel32.CloseHandle(handle)


def test_an_object_that_is_no_section(win32: ShMemProvider, objects: dict[str, str]) -> None:
    for provider in (win32, StdShMemProvider()):
        for id in objects.values():
            for read_only in (False, True):
                with pytest.raises(InvalidIdError, match=f'"{id}" is no shared memory'):
                    provider.shmem_from_id_and_size(id, 1, read_only=read_only)


@pytest.mark.parametrize("id", ["Global\\libafl_1", "Local\\libafl_1", "Session\\1\\x", "\\", "a\\"])
def test_other_namespaces(win32: ShMemProvider, id: str) -> None:
    with pytest.raises(InvalidIdError, match="without a backslash"):
        win32.shmem_from_id_and_size(id, 1)


def test_a_section_of_somebody_elses_making(win32: ShMemProvider, peer: Any) -> None:
    with mmap.mmap(-1, 3 * PAGE, tagname=NAME) as theirs:
        theirs[:5] = b"hello"
        peer(ATTACH, id=NAME, size=3 * PAGE)
        assert peer("bytes(shm[:5]), shm.is_owner") == (b"hello", False)
        peer("shm[-1] = 7; shm.close()")
        assert theirs[-1] == 7
        with pytest.raises(SizeMismatchError):
            win32.shmem_from_id_and_size(NAME, 3 * PAGE + 1)
    with pytest.raises(FileNotFoundError):
        win32.shmem_from_id_and_size(NAME, 1)


def test_a_section_of_multiprocessing_shared_memory(win32: ShMemProvider) -> None:
    from multiprocessing import shared_memory

    theirs = shared_memory.SharedMemory(create=True, size=5000)
    assert theirs.buf
    theirs.buf[:5] = b"hello"
    with win32.shmem_from_id_and_size(theirs.name, 5000) as shm:
        assert shm[:5] == b"hello"
        shm[4999] = 7
    assert theirs.buf[4999] == 7
    theirs.close()


def test_a_section_that_may_be_read_only(win32: ShMemProvider) -> None:
    """Somebody's who lets everybody read it: to write is refused, and that is said."""
    kernel32, advapi32 = ctypes.WinDLL("kernel32"), ctypes.WinDLL("advapi32")
    create, map_and_query = kernel32.CreateFileMappingA, "0x5"
    create.restype = ctypes.c_void_p
    descriptor = ctypes.c_void_p()
    assert advapi32.ConvertStringSecurityDescriptorToSecurityDescriptorA(
        f"D:(A;;{map_and_query};;;WD)".encode(), 1, ctypes.byref(descriptor), None
    )
    attributes = (ctypes.c_void_p * 3)(ctypes.sizeof(ctypes.c_void_p) * 3, descriptor, None)
    section = create(ctypes.c_void_p(-1), attributes, 0x04, 0, PAGE, NAME.encode())
    assert section
    try:
        with win32.shmem_from_id_and_size(NAME, PAGE, read_only=True) as reader:
            assert reader[:] == bytes(PAGE)
        with pytest.raises(PermissionError, match=f'"{NAME}" is another user\'s, or read-only') as refused:
            win32.shmem_from_id_and_size(NAME, PAGE)
        assert (refused.value.winerror, refused.value.errno) == (5, errno.EACCES)
    finally:
        kernel32.CloseHandle(ctypes.c_void_p(section))
        kernel32.LocalFree(descriptor)


# ---- who may open it


def acl_of(name: str) -> list[tuple[int, int, str]]:
    """Give the type, rights and user of each entry of a section's access list, for which there must be one."""
    kernel32, advapi32 = ctypes.WinDLL("kernel32"), ctypes.WinDLL("advapi32")
    kernel32.OpenFileMappingA.restype = ctypes.c_void_p
    read_control, kernel_object, dacl = 0x20000, 6, 4
    handle = ctypes.c_void_p(kernel32.OpenFileMappingA(read_control, False, name.encode()))
    assert handle
    access, descriptor = ctypes.c_void_p(), ctypes.c_void_p()
    assert (
        advapi32.GetSecurityInfo(
            handle, kernel_object, dacl, None, None, ctypes.byref(access), None, ctypes.byref(descriptor)
        )
        == 0
    )
    assert access.value, "everybody may open it"
    entries = []
    for index in range(ctypes.c_uint16.from_address(access.value + 4).value):
        entry = ctypes.c_void_p()
        assert advapi32.GetAce(access, index, ctypes.byref(entry))
        assert entry.value
        kind, rights = ctypes.c_uint8.from_address(entry.value).value, ctypes.c_uint32.from_address(entry.value + 4)
        entries.append((kind, rights.value, text_of_sid(ctypes.c_void_p(entry.value + 8))))
    kernel32.LocalFree(descriptor)
    kernel32.CloseHandle(handle)
    return entries


def text_of_sid(sid: ctypes.c_void_p) -> str:
    kernel32, advapi32 = ctypes.WinDLL("kernel32"), ctypes.WinDLL("advapi32")
    text = ctypes.c_char_p()
    assert advapi32.ConvertSidToStringSidA(sid, ctypes.byref(text))
    assert text.value
    user = text.value.decode()
    kernel32.LocalFree(text)
    return user


def this_user() -> str:
    kernel32, advapi32 = ctypes.WinDLL("kernel32"), ctypes.WinDLL("advapi32")
    token, length, token_query, token_user = ctypes.c_void_p(), ctypes.c_uint32(), 0x8, 1
    assert advapi32.OpenProcessToken(ctypes.c_void_p(-1), token_query, ctypes.byref(token))
    room = (ctypes.c_void_p * 32)()
    assert advapi32.GetTokenInformation(token, token_user, room, ctypes.sizeof(room), ctypes.byref(length))
    kernel32.CloseHandle(token)
    return text_of_sid(ctypes.c_void_p(room[0]))


def test_its_user_alone_may_open_it(win32: ShMemProvider) -> None:
    """No second user can be had in these tests, so that this is what the system would refuse him by."""
    with win32.new_shmem(100) as shm:
        ((kind, rights, user),) = acl_of(shm.id)
    assert (kind, user) == (0, this_user())  # ACCESS_ALLOWED
    all_of_a_section, generic_all = 0xF001F, 0x10000000
    assert rights in (all_of_a_section, generic_all)


# ---- handles and children

CHILD = """
import sys, time
print("started", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("persist", [False, True])
def test_a_child_keeps_what_it_was_given(win32: ShMemProvider, persist: bool) -> None:
    """A handle is inherited after persist() alone: then the child keeps the section, though it knows nothing of it."""
    shm = win32.new_shmem(100)
    shm[0] = 9
    id = shm.id
    if persist:
        shm.persist()
    command, pipe = [sys.executable, "-c", CHILD], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, close_fds=False) as child:
        assert child.stdout
        child.stdout.readline()
        shm.close()
        if persist:
            with win32.shmem_from_id_and_size(id, 100) as kept:
                assert kept[0] == 9
        else:
            with pytest.raises(FileNotFoundError):
                win32.shmem_from_id_and_size(id, 100)
    with pytest.raises(FileNotFoundError):
        win32.shmem_from_id_and_size(id, 100)


def test_there_is_no_descriptor(win32: ShMemProvider) -> None:
    with win32.new_shmem(1) as shm, pytest.raises(io.UnsupportedOperation, match="win32"):
        shm.fileno()


# ---- the environment


def test_the_environment_is_the_one_that_children_get(
    win32: ShMemProvider, run_python: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each C runtime has a copy of it, Python's os.environ is another, and names have no case."""
    for name in ("SHMP_TEST_MAP", "SHMP_TEST_MAP_SIZE", "SHMEM_PROVIDER"):
        monkeypatch.setenv(name, "")
    look = "import os, sys; print([os.environ.get(name) for name in sys.argv[1:]])"
    attach = "from shmem_providers import *; print(StdShMemProvider().existing_from_env('shmp_test_map').close())"
    with win32.new_shmem(5000) as shm:
        shm.write_to_env("SHMP_TEST_MAP")
        seen = [shm.id.as_str(), "5000"]
        assert run_python(look, "SHMP_TEST_MAP", "SHMP_TEST_MAP_SIZE").strip() == str(seen)
        assert run_python(attach) == "None\n"
        os.environ["SHMP_TEST_MAP"] = "a\\b"
        assert "InvalidIdError" in ended("-c", attach).stderr
    os.environ["SHMEM_PROVIDER"] = "nop"
    with pytest.raises(ValueError, match="SHMEM_PROVIDER: nop is opened by name only"):
        StdShMemProvider()
    del os.environ["SHMEM_PROVIDER"]
    assert StdShMemProvider().name == "win32"
    os.environ["SHMEM_PROVIDER"] = "memfd"
    with pytest.raises(OSError, match="SHMEM_PROVIDER: memfd is a mechanism of other platforms"):
        StdShMemProvider()


# ---- the command line


def command_line(*arguments: str) -> str:
    result = ended("-m", "shmem_providers", *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def test_doctor() -> None:
    shown = command_line("doctor")
    assert re.search(r"^ win32 +shared +libafl_[0-9a-f]{12} ", shown, re.MULTILINE)
    assert re.search(r"^ nop +private +- ", shown, re.MULTILINE)
    assert " on win32: std is win32\n" in shown


def test_list_and_reap_have_nothing_to_show(win32: ShMemProvider) -> None:
    with win32.new_shmem(100):
        assert json.loads(command_line("list", "--json")) == {
            "segments": [],
            "unseen": ["win32: the system does not tell which win32 segments are whose"],
        }
        assert command_line("reap") == "Nothing was left over.\n"


def test_inspect(win32: ShMemProvider) -> None:
    with win32.new_shmem(5000) as shm:
        shm[:4] = b"mine"
        assert json.loads(command_line("inspect", shm.id, "--bytes", "6", "--json")) == {
            "provider": "win32",
            "id": shm.id,
            "user": None,
            "size": 2 * PAGE,
            "first_bytes": b"mine\0\0".hex(" "),
            "mapped_by": None,
        }


def test_the_flags_of_the_c_library() -> None:
    include, library = command_line("--cflags", "--libs").split()
    assert include == f"-I{get_include()}"
    assert Path(include[2:], "shmem_providers.h").exists()
    assert Path(library) == Path(get_library_dir(), "shmem_providers.lib")
    assert Path(library).exists()
    dll = ctypes.CDLL(str(Path(library).with_suffix(".dll")))
    dll.shmp_version.restype = ctypes.c_char_p
    assert dll.shmp_version()
    ctypes.WinDLL("kernel32").FreeLibrary(ctypes.c_void_p(dll._handle))
