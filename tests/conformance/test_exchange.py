"""One segment and several processes: hand-off, sharing, fork, exec, other users, and what is left."""

from __future__ import annotations

import io
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from mechanisms import mechanism

from shmem_providers import (
    InvalidIdError,
    MemfdShMemProvider,
    MmapShMemProvider,
    ShMem,
    ShMemDescription,
    ShMemId,
    ShMemProvider,
    SizeMismatchError,
    UnixShMemProvider,
    open_provider,
)

pytestmark = pytest.mark.usefixtures("nothing_leaks")

Can = Callable[[ShMemProvider, str], bool]
NOBODY = 65534
ATTACH = "shm = open_provider(name).shmem_from_id_and_size(id, size)"
IS_THERE = """
try:
    open_provider(name).shmem_from_id_and_size(id, size).close()
    is_there = True
except FileNotFoundError:
    is_there = False
"""
ATTACH_READ_ONLY = "shm = open_provider(name).shmem_from_id_and_size(id, size, read_only=True)"


def name_of(shm: ShMem) -> Path:
    """Give the file of a posix segment."""
    return Path("/dev/shm" + shm.id)


# ---- two processes and three


def test_a_second_process_reads_and_writes(sharing: ShMemProvider, taker: str, peer: Any) -> None:
    with sharing.new_shmem(10_000) as shm:
        shm[:5] = b"hello"
        peer(ATTACH, name=taker, id=shm.id.as_str(), size=10_000)
        assert peer("bytes(shm[:5]), len(shm), shm.is_owner, shm.readonly") == (b"hello", 10_000, False, False)
        assert peer("shm.provider_name") == mechanism(sharing)
        peer("shm[-3:] = b'end'")
        assert shm[-3:] == b"end"
        shm[0] = 1
        assert peer("shm[0]") == 1
        peer("shm.close()")
        assert shm[-3:] == b"end"


def test_each_of_many_is_the_right_one(sharing: ShMemProvider, taker: str, peer: Any) -> None:
    segments = [sharing.new_shmem(4096 + number) for number in range(20)]
    for number, shm in enumerate(segments):
        shm[0] = number
    described = [(shm.id.as_str(), shm.size) for shm in segments]
    peer("provider = open_provider(name)", name=taker)
    peer("all = [provider.shmem_from_id_and_size(*one) for one in described]", described=described)
    assert peer("[shm[0] for shm in all]") == list(range(20))
    peer("for shm in all: shm.close()")
    for shm in segments:
        shm.close()


def test_a_third_attaches_when_the_first_is_gone(
    sharing: ShMemProvider, taker: str, can: Can, start_peer: Callable[[], Any]
) -> None:
    second, third = start_peer(), start_peer()
    with sharing.new_shmem(4096) as shm:
        first_id = shm.id.as_str()
        second(ATTACH, name=taker, id=first_id, size=4096)
        shm[:5] = b"first"
    assert second("bytes(shm[:5])") == b"first"
    if can(sharing, "id_of_any_handle"):
        second_id = second("shm.id.as_str()")
        third(ATTACH, name=taker, id=second_id, size=4096)
        assert third("bytes(shm[:5])") == b"first"
        third("shm[:5] = b'third'")
        assert second("bytes(shm[:5])") == b"third"
        third("shm.close()")
    else:  # its owner has removed the name
        second_id = first_id
        assert second.raises("shm.id") == second.raises("shm.description")
        assert second.raises("shm.id")[0] == "FileNotFoundError"
        assert third.raises(ATTACH, name=taker, id=first_id, size=4096)[0] == "FileNotFoundError"
    second("shm.close()")
    for id in {first_id, second_id}:
        raised, message = third.raises(ATTACH, name=taker, id=id, size=4096)
        assert (raised, id in message) == ("FileNotFoundError", True)


def test_a_reader_cannot_write(sharing: ShMemProvider, taker: str, peer: Any) -> None:
    with sharing.new_shmem(4096) as shm:
        shm[:3] = b"abc"
        peer(ATTACH_READ_ONLY, name=taker, id=shm.id.as_str(), size=4096)
        assert peer("shm.readonly, memoryview(shm).readonly, bytes(shm[:3])") == (True, True, b"abc")
        peer("from ctypes import c_int")
        for write in (
            "shm[0] = 1",
            "shm[:1] = b'x'",
            "memoryview(shm)[0] = 1",
            "shm.as_ptr_of(c_int)",
            "c_int.from_buffer(shm)",
        ):
            assert peer.raises(write)[0] == "TypeError"
        shm[0] = 0x5A
        assert peer("shm[0]") == 0x5A
        # a handle that only reads gives its id on, as a reader again
        peer("with open_provider(name).clone_ref(shm) as clone: assert clone.readonly and clone[0] == 0x5A")
        peer("shm.close()")
        assert shm[:3] == b"Zbc"


def test_sizes_are_checked(sharing: ShMemProvider, taker: str, peer: Any, can: Can) -> None:
    with sharing.new_shmem(5000) as shm:
        shm[4095:4098] = b"xyz"
        id = shm.id.as_str()
        known = 5000 if can(sharing, "exact_size") else 8192  # whole pages
        for size in (known + 1, 2 * known, 2**40, 2**63 - 1):
            raised, message = peer.raises(ATTACH, name=taker, id=id, size=size)
            assert raised == "SizeMismatchError"
            assert id in message or mechanism(sharing) == "served"  # whose client has a descriptor
            assert str(known) in message
            assert str(size) in message
            with pytest.raises(SizeMismatchError):
                sharing.shmem_from_id_and_size(id, size)
        for size in (1, 4096, 4097, known):
            peer(ATTACH, name=taker, id=id, size=size)
            assert peer("len(shm), shm.description.size") == (size, size)
            assert peer("shm[-1]") == (shm[size - 1] if size <= 5000 else 0)
            assert peer.raises("shm[size]")[0] == "IndexError"
            peer("shm.close()")


def test_a_gone_segment_is_not_found(sharing: ShMemProvider, taker: str, peer: Any) -> None:
    shm = sharing.new_shmem(4096)
    id, description = shm.id, shm.description
    shm.close()
    attempts: list[Callable[[], object]] = [
        lambda: sharing.shmem_from_id_and_size(id, 4096),
        lambda: sharing.shmem_from_description(description),
        lambda: open_provider(taker).shmem_from_id_and_size(id, 4096, read_only=True),
    ]
    for attach in attempts:
        with pytest.raises(FileNotFoundError, match=id.as_str()) as gone:
            attach()
        assert gone.value.errno == 2
    peer(f"theirs = open_provider({taker!r}).new_shmem(10)")
    ended = peer("theirs.id.as_str()")
    peer("theirs.close()")
    peer.end()
    with pytest.raises(FileNotFoundError):
        open_provider(taker).shmem_from_id_and_size(ended, 10)


# ---- through the environment


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> str:
    """Give the name of a variable that is unset again afterwards."""
    name = "SHMP_TEST_MAP"
    for each in (name, name + "_SIZE"):
        monkeypatch.setenv(each, "")
        del os.environ[each]
    return name


def test_hand_off_through_the_environment(
    sharing: ShMemProvider, taker: str, variable: str, run_python: Callable[..., str]
) -> None:
    code = (
        "import sys, shmem_providers as s\n"
        "with s.open_provider(sys.argv[1]).existing_from_env(sys.argv[2]) as shm:\n"
        "    assert (len(shm), shm[:2]) == (4097, b'ab')\n"
        "    shm[-1] = 200\n"
    )
    with sharing.new_shmem(4097) as shm:
        shm[:2] = b"ab"
        run_python(code, taker, "OTHER", env={"OTHER": shm.id.as_str(), "OTHER_SIZE": "4097"})
        assert shm[-1] == 200
        shm[-1] = 0
        shm.write_to_env(variable)
        assert (os.environ[variable], os.environ[variable + "_SIZE"]) == (shm.id.as_str(), "4097")
        run_python(code, taker, variable)
        assert shm[-1] == 200
        with (
            sharing.existing_from_env(variable) as again,
            sharing.existing_from_env(variable, read_only=True) as reader,
        ):
            assert (again[-1], again.readonly, reader[-1], reader.readonly) == (200, False, 200, True)
    with pytest.raises(FileNotFoundError):
        sharing.existing_from_env(variable)


def test_the_environment_of_one_process(sharing: ShMemProvider, variable: str, run_python: Callable[..., str]) -> None:
    code = (
        "import os, sys; from shmem_providers import *\n"
        "with StdShMemProvider().existing_from_env(sys.argv[1]) as shm: print(len(shm), shm[4999])\n"
    )
    with sharing.new_shmem(5000) as shm:
        shm[4999] = 9
        given = shm.env(variable)
        assert given == {variable: shm.id, variable + "_SIZE": "5000"}
        assert {type(text) for text in given.values()} == {str}
        assert variable not in os.environ
        assert run_python(code, variable, env=given) == "5000 9\n"
        for wrong in ("", "A=B", "A\0B"):
            with pytest.raises(ValueError, match=r"."):
                shm.env(wrong)


def test_a_missing_variable_is_named(provider: ShMemProvider, variable: str) -> None:
    with pytest.raises(KeyError) as missing_id:
        provider.existing_from_env(variable)
    assert missing_id.value.args == (variable,)
    os.environ[variable] = "id"
    with pytest.raises(KeyError) as missing_size:
        provider.existing_from_env(variable)
    assert missing_size.value.args == (variable + "_SIZE",)
    del os.environ[variable]
    os.environ[variable + "_SIZE"] = "4096"
    with pytest.raises(KeyError) as missing_id:
        provider.existing_from_env(variable)
    assert missing_id.value.args == (variable,)


MALFORMED_SIZES = [
    "",
    " 1",
    "1 ",
    "1\n",
    "+1",
    "-1",
    "0x10",
    "1_0",
    "\uff11",
    "1.0",
    "1e3",
    "01",
    "0",
    "ten",
    "0" * 300,
    "\udcff",
]
HUGE_SIZES = ["9223372036854775808", "18446744073709551616", "9" * 30]


def refusal(call: Callable[[], object]) -> BaseException | None:
    """Give what was raised."""
    try:
        call()
    except Exception as raised:
        return raised
    return None


def test_a_malformed_size_is_refused(provider: ShMemProvider, variable: str) -> None:
    wrong = {}
    with provider.new_shmem(4096) as shm:
        os.environ[variable] = shm.id
        for text in [*MALFORMED_SIZES, *HUGE_SIZES]:
            os.environ[variable + "_SIZE"] = text
            raised = refusal(lambda: provider.existing_from_env(variable))
            is_right = isinstance(raised, OverflowError if text in HUGE_SIZES else ValueError)
            if not is_right or not (variable in str(raised) or text in str(raised)):
                wrong[text] = repr(raised)
    assert wrong == {}


def test_a_malformed_id_is_refused(provider: ShMemProvider, variable: str, can: Can) -> None:
    os.environ[variable + "_SIZE"] = "4096"
    wrong = {}
    names = () if can(provider, "any_name") else ("garbage", "-1")
    for os.environ[variable] in (*names, "a\\b", "a b", "x" * 20, "é", "\udcff"):
        raised = refusal(lambda: provider.existing_from_env(variable))
        if not isinstance(raised, InvalidIdError):
            wrong[os.environ[variable]] = repr(raised)
    assert wrong == {}


@pytest.mark.parametrize("name", ["", "A=B", "=", "A\0B", "\ud800"])
def test_a_name_that_cannot_be_a_variable(provider: ShMemProvider, name: str) -> None:
    before = dict(os.environ)
    with provider.new_shmem(1) as shm, pytest.raises(ValueError, match=r"."):
        shm.write_to_env(name)
    with pytest.raises((KeyError, ValueError)):
        provider.existing_from_env(name)
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["__AFL_SHM_ID", "__AFL_SHM_FUZZ_ID", "__AFL_"])
def test_afl_gets_only_ids_that_it_reads_right(
    provider: ShMemProvider, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "before")
    monkeypatch.setenv(name + "_SIZE", "before")
    with provider.new_shmem(65536) as shm:
        if mechanism(provider) == "posix":  # a target that was not built for them takes 0, somebody's segment
            for refused in (shm.write_to_env, shm.env):
                with pytest.raises(ValueError, match="posix_names=True"):
                    refused(name)
            assert (os.environ[name], os.environ[name + "_SIZE"]) == ("before", "before")
        if mechanism(provider) in ("sysv", "posix"):
            assert shm.env(name, posix_names=True) == {name: shm.id.as_str(), name + "_SIZE": "65536"}
            shm.write_to_env(name, posix_names=mechanism(provider) == "posix")
            assert (os.environ[name], os.environ[name + "_SIZE"]) == (shm.id.as_str(), "65536")
            return
        for posix_names in (False, True):
            with pytest.raises(ValueError, match="AFL"):
                shm.write_to_env(name, posix_names=posix_names)
        assert (os.environ[name], os.environ[name + "_SIZE"]) == ("before", "before")
        monkeypatch.setenv(name.lower(), "")
        monkeypatch.setenv(name.lower() + "_SIZE", "")
        shm.write_to_env(name.lower())


@pytest.mark.parametrize(
    ("name", "size_name"),
    [
        ("__AFL_SHM_ID", "AFL_MAP_SIZE"),
        ("__AFL_SHM_FUZZ_ID", "__AFL_SHM_FUZZ_MAP_SIZE"),
        ("__AFL_CMPLOG_SHM_ID", "__AFL_CMPLOG_SHM_ID_SIZE"),
    ],
)
def test_afl_reads_sizes_elsewhere(
    provider: ShMemProvider, name: str, size_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "before")
    monkeypatch.setenv(size_name, "before")
    with provider.new_shmem(65536) as shm:
        for unknown in ("MAP", name[:-1], name + "_", "AFL_MAP_SIZE"):
            with pytest.raises(ValueError, match=r"is none of __AFL_SHM_ID, __AFL_SHM_FUZZ_ID and __AFL_CMPLOG"):
                shm.env(unknown, posix_names=True, afl=True)
        if provider.name not in ("sysv", "posix"):
            with pytest.raises(ValueError, match="AFL"):
                shm.write_to_env(name, posix_names=True, afl=True)
            assert (os.environ[name], os.environ[size_name]) == ("before", "before")
            return
        posix_names = provider.name == "posix"
        assert shm.env(name, posix_names=posix_names, afl=True) == {name: shm.id.as_str(), size_name: "65536"}
        shm.write_to_env(name, posix_names=posix_names, afl=True)
        assert (os.environ[name], os.environ[size_name]) == (shm.id.as_str(), "65536")


@pytest.mark.needs("memfd", "posix")
def test_afl_gets_no_descriptor_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("__AFL_SHM_ID", "before")
    for provider in (MemfdShMemProvider(fd_ids=True), MmapShMemProvider(fd_ids=True)):
        for posix_names in (False, True):
            with provider.new_shmem(10) as shm, pytest.raises(ValueError, match="AFL"):
                shm.write_to_env("__AFL_SHM_ID", posix_names=posix_names)
    assert os.environ["__AFL_SHM_ID"] == "before"


# ---- descriptors


def test_descriptor_ids(sharing: ShMemProvider, can: Can, run_python: Callable[..., str]) -> None:
    if not can(sharing, "fd_ids"):
        with pytest.raises((TypeError, ValueError)):
            open_provider(sharing.name, fd_ids=True)
        return
    code = (
        "import sys, shmem_providers as s\n"
        "provider = s.open_provider(sys.argv[1], **eval(sys.argv[2]))\n"
        "with provider.shmem_from_id_and_size(sys.argv[3], 4097) as shm:\n"
        "    assert shm[:2] == b'fd' and shm.fileno() != int(sys.argv[3]) and not shm.is_owner\n"
        "    shm[-1] += 1\n"
    )
    names = set(os.listdir("/dev/shm"))
    provider = open_provider(sharing.name, fd_ids=True)
    with provider.new_shmem(4097) as shm:
        assert {name for name in os.listdir("/dev/shm") if name.startswith("shmp_")} <= names
        shm[:2] = b"fd"
        assert shm.id == str(shm.fileno())
        assert int(shm.id) == shm.fileno()
        for options in ("{}", "{'fd_ids': True}"):
            run_python(code, provider.name, options, shm.id, pass_fds=[shm.fileno()])
        assert shm[-1] == 2
        with provider.clone_ref(shm) as clone:
            assert clone.id == shm.id
            assert clone[:2] == b"fd"
        with provider.shmem_from_description(shm.description) as other:
            assert other.id != shm.id
            assert other[:2] == b"fd"
        assert shm[:2] == b"fd"
        with pytest.raises(SizeMismatchError):
            provider.shmem_from_id_and_size(shm.id, 4098)
        id = shm.id
    with pytest.raises(FileNotFoundError):
        provider.shmem_from_id_and_size(id, 4097)


def test_persist_survives_exec(provider: ShMemProvider, can: Can, run_python: Callable[..., str]) -> None:
    if not can(provider, "persist"):
        with provider.new_shmem(8) as shm:
            with pytest.raises(io.UnsupportedOperation, match=mechanism(provider)):
                shm.persist()
            shm[0] = 1
        return
    if not can(provider, "fileno"):
        pytest.skip("there is no exec here: in test_windows.py a child inherits the segment")
    before = (
        "import os, sys, shmem_providers as s\n"
        "provider = s.open_provider(sys.argv[1])\n"
        "kept, lost = provider.new_shmem(4097), provider.new_shmem(10)\n"
        "kept[:4] = b'kept'\n"
        "kept.persist()\n"
        "kept.write_to_env('KEPT'), lost.write_to_env('LOST')\n"
        "fds = f'{kept.fileno()} {lost.fileno()}'\n"
        "os.execv(sys.executable, [sys.executable, '-W', 'error', '-c', sys.argv[2], sys.argv[1], fds])\n"
    )
    after = (
        "import os, sys, shmem_providers as s\n"
        "kept, lost = map(int, sys.argv[2].split())\n"
        "provider = s.open_provider(sys.argv[1])\n"
        "takers = [lambda: provider.existing_from_env('KEPT')]\n"
        "if ':' not in os.environ['KEPT']:  # a service's, which no bare descriptor is the id of\n"
        "    takers.append(lambda: provider.shmem_from_id_and_size(str(kept), 4097))\n"
        "for take in takers:\n"
        "    with take() as shm:\n"
        "        assert shm[:4] == b'kept' and len(shm) == 4097 and not shm.is_owner\n"
        "try:\n"
        "    os.fstat(lost)\n"
        "    print('lost is still open')\n"
        "except OSError:\n"
        "    pass\n"
        "print(os.environ['KEPT'], os.environ['LOST'])\n"
    )
    *complaints, ids = run_python(before, provider.name, after).splitlines()
    assert complaints == []
    if mechanism(provider) == "posix":  # exec has made them nobody's: they are leftovers now
        open_provider("posix")
        assert not any(Path("/dev/shm" + id).exists() for id in ids.split())


# ---- fork

CHILD = {
    "leaves it": "pass",
    "closes it": "shm.close(); provider.release_shmem(shm)",
    "leaves a with block": "with shm: pass",
    "drops it": "del shm",
    "keeps a view": "view = memoryview(shm); view[0] = 1",
    "drops it under a view": "view = memoryview(shm); shm = None; view.release()",
    "hands it on": "clone = provider.clone_ref(shm); clone[0] = 1; clone.close()",
    "makes its own": "with provider.new_shmem(9) as own: assert own.is_owner and (own.id != shm.id or name == 'nop')",
    "calls the hooks": "provider.post_fork(True); provider.pre_fork(); provider.post_fork(False)",
}
FORK = """
provider.pre_fork()
pid = os.fork()
if pid == 0:
    try:
        assert not shm.is_owner
        assert shm[1] == 7
        shm[0] = 1
        {child}
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    {end}
provider.post_fork(False)
status = os.waitpid(pid, 0)[1]
"""


@pytest.mark.needs("fork")
@pytest.mark.parametrize("end", ["os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_owns_nothing(
    provider: ShMemProvider, end: str, start_peer: Callable[[], Any], can: Can
) -> None:
    parent, third = start_peer(), start_peer()
    parent("provider = open_provider(name)", name=provider.name)
    for does, child in CHILD.items():
        parent("shm = provider.new_shmem(4096); shm[1] = 7")
        parent(FORK.format(child=child, end=end))
        assert parent("status, shm.is_owner, shm[1]") == (0, True, 7), does
        assert parent("shm[0]") == (1 if can(provider, "shares") else 0), does
        if can(provider, "shares"):
            id = parent("shm.id.as_str()")
            third(ATTACH, name=provider.name, id=id, size=4096)
            assert third("shm[1]") == 7, does
            third("shm.close()")
        parent("shm.close()")
        if does == "calls the hooks" and mechanism(provider) == "served":
            continue  # it has announced a fork: its service keeps what that child would want for a minute
        if can(provider, "shares"):
            assert _is_gone_soon(third, name=provider.name, id=id, size=4096), does


def _is_gone_soon(peer: Any, **what: Any) -> bool:
    """Tell whether it cannot be attached to: at once, or when its service has heard of its end."""
    deadline = time.monotonic() + 5 * (mechanism(what["name"]) == "served")
    while peer(IS_THERE, **what) or peer("is_there"):
        if time.monotonic() > deadline:
            return False
    return True


@pytest.mark.needs("fork")
def test_a_forked_child_outlives_its_parents_handle(sharing: ShMemProvider, peer: Any) -> None:
    """The parent closes, and so destroys; the child that inherited it still has its memory."""
    peer("provider = open_provider(name); shm = provider.new_shmem(4096)", name=sharing.name)
    peer("begin, done = os.pipe(), os.pipe()")
    peer(
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try:\n"
        "        os.read(begin[0], 1)\n"
        "        shm[5] = 55\n"
        "        os.write(done[1], bytes([shm[5], shm[6]]))\n"
        "        os._exit(0)\n"
        "    except BaseException:\n"
        "        traceback.print_exc()\n"
        "        os._exit(1)\n"
    )
    peer("shm[6] = 66; shm.close(); os.write(begin[1], b'x')")
    assert peer("os.read(done[0], 2)") == b"7B"
    assert peer("os.waitpid(pid, 0)[1]") == 0


# ---- what is left behind


def test_nothing_is_left_of_a_killed_owner(sharing: ShMemProvider, taker: str, peer: Any, can: Can) -> None:
    peer("provider = open_provider(name); shm = provider.new_shmem(4096); shm[0] = 9", name=sharing.name)
    id = peer("shm.id.as_str()")
    with open_provider(taker).shmem_from_id_and_size(id, 4096) as shm:
        peer.kill()
        shm[1] = 8
        assert shm[:2] == b"\x09\x08"
        if can(sharing, "id_of_any_handle"):  # there is no other way to attach now
            with open_provider(taker).clone_ref(shm) as clone:
                assert clone[:2] == b"\x09\x08"
    if mechanism(sharing) == "posix":  # its name stays until somebody opens posix
        assert Path("/dev/shm" + id).exists()
        open_provider("posix")
        assert not Path("/dev/shm" + id).exists()
    with pytest.raises(FileNotFoundError):
        open_provider(taker).shmem_from_id_and_size(id, 4096)


@pytest.mark.needs("sysv", "linux")
def test_a_sysv_segment_is_marked_for_removal_at_once() -> None:
    provider = UnixShMemProvider()
    with provider.new_shmem(4096) as shm, provider.clone_ref(shm), provider.shmem_from_id_and_size(shm.id, 4096):
        titles, *rows = map(str.split, Path("/proc/sysvipc/shm").read_text().splitlines())
        (row,) = (dict(zip(titles, fields, strict=True)) for fields in rows if fields[1] == shm.id)
        assert (row["perms"], row["nattch"], row["size"]) == ("1600", "2", "4096")  # 1000: SHM_DEST


@pytest.mark.needs("posix", "linux")
def test_a_posix_name_goes_with_its_owner() -> None:
    provider = MmapShMemProvider()
    with provider.new_shmem(4096) as shm:
        attached = provider.clone_ref(shm)
        provider.clone_ref(shm).close()
        path = name_of(shm)
        assert path.stat().st_size == 4096
        attached[0] = 3
    assert not path.exists()
    with pytest.raises(FileNotFoundError, match=path.name):
        assert attached.id
    assert attached[0] == 3
    attached.close()


# ---- other users


@pytest.mark.needs("users")
@pytest.mark.parametrize("attach", [ATTACH, ATTACH_READ_ONLY])
def test_another_user_is_refused(
    sharing: ShMemProvider, taker: str, attach: str, peer: Any, missing: Callable[[str], NoReturn], can: Can
) -> None:
    if os.getuid():
        missing("needs root, to be another user: run the tests as root in a container")
    peer(f"open_provider('nop'); os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})")
    with sharing.new_shmem(4096) as shm:
        raised, message = peer.raises(attach, name=taker, id=shm.id.as_str(), size=4096)
    if can(sharing, "any_user"):
        assert (raised, shm.closed) == ("PermissionError", True)
        assert "another user" in message
    else:  # its service lets no other user in
        assert raised == "ServiceError"


# Every way to attach, in Python; `more` is {"any_user": True} or nothing.
WAYS_TO_ATTACH: dict[str, Callable[[ShMemProvider, ShMemDescription, Any], ShMem]] = {
    "id and size": lambda provider, what, more: provider.shmem_from_id_and_size(what.id, what.size, **more),
    "description": lambda provider, what, more: provider.shmem_from_description(what, **more),
    "environment": lambda provider, what, more: provider.existing_from_env("SHMP_TEST_MAP", **more),
    "id": lambda provider, what, more: provider.attach(what.id, **more),
    "read-only": lambda provider, what, more: provider.attach(what.id, read_only=True, **more),
}


@pytest.mark.needs("users", "linux")
@pytest.mark.parametrize("way", WAYS_TO_ATTACH)
def test_a_strangers_segment_is_taken_if_he_is_trusted(
    sharing: ShMemProvider,
    way: str,
    can: Can,
    peer: Any,
    missing: Callable[[str], NoReturn],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Who could open it, as root can, is not fooled by a segment that somebody else made under that id."""
    if not can(sharing, "any_user"):
        return  # see test_another_user_is_refused
    if os.getuid():
        missing("needs root, to be another user: run the tests as root in a container")
    peer(f"import ctypes; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})")
    peer("ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)")  # PR_SET_DUMPABLE: as a program that always was this user's
    peer("options = {'mode': 0o666} if more else {}", more=can(sharing, "mode"))
    peer("shm = open_provider(name).new_shmem(4096, **options); shm[0] = 7", name=sharing.name)
    what = ShMemDescription(4096, ShMemId(peer("shm.id.as_str()")))
    monkeypatch.setenv("SHMP_TEST_MAP", what.id)
    monkeypatch.setenv("SHMP_TEST_MAP_SIZE", "4096")
    attach = WAYS_TO_ATTACH[way]
    for more in ({}, {"any_user": False}):
        with pytest.raises(PermissionError, match="any_user=True") as refused:
            attach(sharing, what, more)
        assert str(NOBODY) in str(refused.value)
    with attach(sharing, what, {"any_user": True}) as shm, sharing.clone_ref(shm) as clone:
        assert (shm[0], clone[0], shm.readonly) == (7, 7, way == "read-only")
    peer("shm.close()")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o606])
def test_a_mode_lets_others_in(sharing: ShMemProvider, can: Can, mode: int) -> None:
    if not can(sharing, "mode"):
        with pytest.raises(io.UnsupportedOperation, match=mechanism(sharing)):
            sharing.new_shmem(8, mode=mode)
        return
    umask = os.umask(0o077)
    try:
        with sharing.new_shmem(8, mode=mode) as shm:
            assert permissions_of(shm) == mode
        with sharing.new_shmem(8, mode=None) as shm:
            assert permissions_of(shm) == 0o600
    finally:
        os.umask(umask)


def permissions_of(shm: ShMem) -> int:
    """Give what the segment's permissions are once its id was asked for."""
    id = shm.id
    if shm.provider_name == "posix":
        return os.fstat(shm.fileno()).st_mode & 0o777  # the others are the library's marks
    titles, *rows = map(str.split, Path("/proc/sysvipc/shm").read_text().splitlines())
    (perms,) = (row[titles.index("perms")] for row in rows if row[titles.index("shmid")] == id)
    return int(perms, 8) & 0o777


@pytest.mark.needs("posix", "linux")
def test_a_name_with_a_mode(name: str) -> None:
    with MmapShMemProvider().new_shmem_with_id(8, name, mode=0o644) as shm:
        assert permissions_of(shm) == 0o644


@pytest.mark.needs("memfd")
def test_one_that_changed_its_user_is_told_so(
    start_peer: Callable[[], Any], missing: Callable[[str], NoReturn]
) -> None:
    """Nobody may open the descriptors of a process that is not dumpable, not even its own user."""
    if os.getuid():
        missing("needs root, to change the user: run the tests as root in a container")
    first, second = start_peer(), start_peer()
    for peer in (first, second):
        peer(f"provider = MemfdShMemProvider(); os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})")
    first("shm = provider.new_shmem(4096)")
    raised, message = second.raises(ATTACH, name="memfd", id=first("shm.id.as_str()"), size=4096)
    assert raised == "PermissionError"
    assert "dumpable" in message
    first("with provider.clone_ref(shm) as clone: clone[0] = 1")
    assert first("shm[0]") == 1
    first("shm.close()")


@pytest.mark.needs("posix", "linux")
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_a_posix_segment_is_its_users_alone(umask: int, start_peer: Callable[[], Any]) -> None:
    first, second = start_peer(), start_peer()
    first(f"os.umask({umask}); provider = MmapShMemProvider()")
    for create in ("provider.new_shmem(4096)", f"provider.new_shmem_with_id(4096, '/shmptest_{os.getpid()}')"):
        first(f"shm = {create}")
        id = first("shm.id.as_str()")
        mode = os.stat("/dev/shm" + id).st_mode
        second(ATTACH, name="std", id=id, size=4096)
        second("shm.close()")
        first("shm.close()")
        assert oct(stat.S_IMODE(mode)) == oct(0o600)


# ---- names of the caller's choice


@pytest.fixture
def name() -> str:
    return f"/shmptest_{os.getpid()}"


@pytest.mark.needs("posix", "linux")
def test_a_named_segment(name: str, peer: Any) -> None:
    provider = MmapShMemProvider()
    with provider.new_shmem_with_id(5000, name) as shm:
        assert (shm.id, len(shm), shm.is_owner, shm[:]) == (name, 5000, True, bytes(5000))
        with pytest.raises(FileExistsError, match=name):
            provider.new_shmem_with_id(10, name)
        with pytest.raises(FileExistsError):
            provider.new_shmem_with_id(size=10, name=name, reserve=True)
        peer(ATTACH, name="std", id=name, size=5000)
        peer("shm[0] = 4; shm.close()")
        assert shm[0] == 4
    assert not Path("/dev/shm" + name).exists()
    provider.new_shmem_with_id(1, name, reserve=True).close()


@pytest.mark.needs("posix", "linux")
def test_a_name_made_anew_is_not_its_first_owners(name: str) -> None:
    provider = MmapShMemProvider()
    first = provider.new_shmem_with_id(10, name)
    name_of(first).unlink()
    second = provider.new_shmem_with_id(20, name)
    second[0] = 2
    first.close()
    with provider.shmem_from_id_and_size(name, 20) as attached:
        assert attached[0] == 2
    second.close()
    assert not Path("/dev/shm" + name).exists()
    third = provider.new_shmem_with_id(10, name)
    name_of(third).unlink()
    third.close()  # gone already: no error


BAD_NAMES = ["", "/", "no_slash", "//x", "/a/b", "/x/", "/.", "/..", "/../etc/passwd", "/a b", "/a\tb"]
BAD_NAMES += ["/é", "/\uff11", "/a\0b", "/\ud800", "/" + "x" * 19, "/shmp_mine", "/shmp_"]


@pytest.mark.needs("posix")
def test_a_name_that_cannot_be() -> None:
    provider = MmapShMemProvider()
    raised = {bad: type(refusal(lambda: provider.new_shmem_with_id(10, bad))) for bad in BAD_NAMES}  # noqa: B023
    assert raised == dict.fromkeys(BAD_NAMES, InvalidIdError)


@pytest.mark.needs("posix", "linux")
def test_make_or_attach(name: str, peer: Any) -> None:
    provider = MmapShMemProvider()
    with provider.new_shmem_with_id(5000, name, exist_ok=True) as shm:
        peer("shm = open_provider('posix').new_shmem_with_id(5000, name, exist_ok=True)", name=name)
        assert peer("shm.is_owner, shm.id.as_str(), len(shm)") == (False, name, 5000)
        peer("shm[4999] = 5")
        assert (shm.is_owner, shm[4999]) == (True, 5)
        for size in (4999, 5001):
            with pytest.raises(SizeMismatchError, match="5000"):
                provider.new_shmem_with_id(size, name, exist_ok=True)
        with pytest.raises(FileExistsError):
            provider.new_shmem_with_id(5000, name, exist_ok=False)
        peer("shm.close()")
        assert name_of(shm).exists()
    assert not Path("/dev/shm" + name).exists()


@pytest.mark.needs("posix", "linux")
def test_a_leftover_is_made_anew_and_a_kept_one_stays(name: str, start_peer: Callable[[], Any]) -> None:
    provider = MmapShMemProvider()
    for keep in (False, True):
        owner = start_peer()
        owner("shm = open_provider('posix').new_shmem_with_id(10, name, keep=keep)", name=name, keep=keep)
        owner("shm.__setitem__(0, 7)")
        owner.kill()
        with pytest.raises(FileExistsError):
            provider.new_shmem_with_id(10, name)
        with provider.new_shmem_with_id(10, name, exist_ok=True) as shm:
            assert (shm.is_owner, shm[0]) == ((False, 7) if keep else (True, 0))
        assert Path("/dev/shm" + name).exists() == keep
    provider.new_shmem_with_id(10, name, exist_ok=True, keep=True).close()
    assert Path("/dev/shm" + name).exists()
    provider.unlink(name)
    with pytest.raises(FileNotFoundError, match=name):
        provider.unlink(name)


@pytest.mark.needs("posix", "linux")
def test_what_else_has_the_name(name: str) -> None:
    """It is refused, and stays."""
    provider, path = MmapShMemProvider(), Path("/dev/shm" + name)
    path.mkdir()
    try:
        for call in (
            lambda: provider.new_shmem_with_id(10, name, exist_ok=True),
            lambda: provider.unlink(name),
            lambda: provider.attach(name),
        ):
            assert type(refusal(call)) is InvalidIdError
    finally:
        path.rmdir()
    for bad in BAD_NAMES[:-2]:
        expected = (InvalidIdError, FileNotFoundError)
        assert type(refusal(lambda: provider.unlink(bad))) in expected, bad  # noqa: B023
    for wrong in (None, 5, b"/x", Path("/x")):
        assert type(refusal(lambda: provider.unlink(wrong))) is TypeError  # type: ignore[arg-type] # noqa: B023


@pytest.mark.needs("posix", "linux")
@pytest.mark.parametrize("suffix", ["", "_" + "n" * 200, "_größe"])
def test_names_of_any_length_are_attached_to(suffix: str) -> None:
    """Another library's: an id is at most 19 characters of ASCII, a name is not."""
    name = f"/psm_{os.getpid()}{suffix}"
    path = Path("/dev/shm" + name)
    path.write_bytes(b"their data")
    try:
        for provider in (MmapShMemProvider(), open_provider("std")):
            with provider.attach(name) as shm, provider.attach(name, read_only=True) as reader:
                assert (shm[:], shm.is_owner, reader.readonly) == (b"their data", False, True)
                if suffix:
                    with pytest.raises(FileNotFoundError, match="no id"):
                        assert shm.id
                else:
                    assert shm.id == name
                shm[0] = ord("T")
            assert path.read_bytes() == b"Their data"
            path.write_bytes(b"their data")
            for gone in (name + "x", "/" + "n" * 300, name + "\0", name + "/x"):
                assert type(refusal(lambda: provider.attach(gone))) in (FileNotFoundError, InvalidIdError)  # noqa: B023
        MmapShMemProvider().unlink(name)
        assert not path.exists()
    finally:
        path.unlink(missing_ok=True)


def test_only_some_can_linger(provider: ShMemProvider, can: Can) -> None:
    if can(provider, "linger"):
        provider.new_shmem(10, linger=True).close()
        return
    with pytest.raises(io.UnsupportedOperation, match=rf"{mechanism(provider)} .*posix and sysv can linger"):
        provider.new_shmem(10, linger=True)


@pytest.mark.needs("posix")
def test_the_longest_name() -> None:
    name = f"/{os.getpid():x<18}"
    with MmapShMemProvider().new_shmem_with_id(10, name) as shm, open_provider("std").clone_ref(shm) as clone:
        assert clone.id == shm.id == name


def test_only_posix_has_names(provider: ShMemProvider, can: Can) -> None:
    assert hasattr(provider, "new_shmem_with_id") == (can(provider, "named") and type(provider) is MmapShMemProvider)
    if not can(provider, "named"):
        with pytest.raises(io.UnsupportedOperation, match=mechanism(provider)):
            provider._new_named(10, "/shmptest")
        for asked in ({"exist_ok": True}, {"keep": True}, {"linger": True}):
            with pytest.raises(io.UnsupportedOperation, match=f"{mechanism(provider)} has no names"):
                provider._new_named(10, "/shmptest", **asked)


@pytest.mark.needs("memfd")
def test_memfd_new_file_is_a_plain_memfd(run_python: Callable[..., str]) -> None:
    with MemfdShMemProvider().new_file() as file:
        assert os.fstat(file.fileno()).st_size == 0
        assert not os.get_inheritable(file.fileno())
        file.truncate(10)
        file.write(b"0123456789")
        with open_provider("memfd").shmem_from_id_and_size(str(file.fileno()), 10) as shm:
            assert shm[:] == b"0123456789"
        own_id = f"{os.getpid()}.{file.fileno()}.{os.fstat(file.fileno()).st_ino:08x}"
        with pytest.raises(InvalidIdError):  # it is not sealed
            open_provider("memfd").shmem_from_id_and_size(own_id, 10)


@pytest.mark.needs("limits", "linux")
def test_limits_are_reported_as_errors(provider: ShMemProvider, can: Can, peer: Any) -> None:
    """At the descriptor limit: an OSError that says what to do, and nothing is lost."""
    peer("import resource; provider = open_provider(name); all = []", name=provider.name)
    peer("before = len(os.listdir('/proc/self/fd'))")
    peer("resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))")
    fill = "for _ in range(50): all.append(provider.new_shmem(4096))"
    if can(provider, "fileno"):
        raised, message = peer.raises(fill)
        assert raised == "OSError"
        assert "ulimit -n" in message
        raised, message = peer.raises("provider.attach(all[0].id)")
        assert raised == "OSError"
        assert "ulimit -n" in message
        peer("provider.clone_ref(all[0]).close()")  # shares
        peer("all[0][0] = 1")
    else:
        peer(fill)
    peer("for shm in all: shm.close()")
    peer("resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)); shm = provider.new_shmem(1); shm.close()")
    assert peer("len(os.listdir('/proc/self/fd')) - before") == 0


@pytest.mark.needs("signals")
def test_a_terminated_owner_leaves_nothing_when_it_exits(sharing: ShMemProvider) -> None:
    """SIGTERM turned into SystemExit, as a program that cleans up does."""
    code = (
        "import os, signal, sys, time, shmem_providers as s\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n"
        "with s.open_provider(sys.argv[1]).new_shmem(4096) as shm:\n"
        "    print(shm.id.as_str(), flush=True)\n"
        "    while True: time.sleep(0.1)\n"  # one long sleep can miss the signal
    )
    command = [sys.executable, "-W", "error", "-c", code, sharing.name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stderr
        id = process.stdout.readline().strip()
        sharing.shmem_from_id_and_size(id, 4096).close()
        process.send_signal(signal.SIGTERM)
        assert (process.wait(60), process.stderr.read()) == (3, "")
    with pytest.raises(FileNotFoundError):
        sharing.shmem_from_id_and_size(id, 4096)


def test_a_segment_left_open_at_exit_is_removed(sharing: ShMemProvider) -> None:
    code = (
        "import sys, shmem_providers as s\n"
        "shm = s.open_provider(sys.argv[1]).new_shmem(4096)\n"
        "view = memoryview(shm)\n"
        "cycle = [s.open_provider(sys.argv[1]).new_shmem(10)]\n"
        "cycle.append(cycle)\n"
        "print(shm.id.as_str(), cycle[0].id.as_str())\n"
    )
    command = [sys.executable, "-W", "always", "-c", code, sharing.name]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0
    assert result.stderr.count("ResourceWarning: unclosed <ShMem") == result.stderr.count("\n") == 2
    for id in result.stdout.split():
        assert not (id.startswith("/") and Path("/dev/shm" + id).exists())
        with pytest.raises(FileNotFoundError):
            sharing.shmem_from_id_and_size(id, 10)
