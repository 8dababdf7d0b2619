"""One segment in one process: its size, its bytes, its views, its end. Over every provider."""

from __future__ import annotations

import array
import ctypes
import errno
import gc
import io
import itertools
import mmap
import os
import pickle
import random
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from held import IS_WINE, held
from mechanisms import mechanism

from shmem_providers import (
    MmapShMemProvider,
    ServiceError,
    ShMem,
    ShMemCursor,
    ShMemDescription,
    ShMemProvider,
    available_providers,
    open_provider,
)

pytestmark = pytest.mark.usefixtures("nothing_leaks")

Can = Callable[[ShMemProvider, str], bool]
PAGE = mmap.PAGESIZE


class Index:
    """An int by __index__ alone."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


class BrokenIndex:
    def __index__(self) -> NoReturn:
        raise ZeroDivisionError


def descriptors() -> set[str]:
    """Give what `held` knows that is not the memory, which a System V segment is."""
    return {what for what in held() if not re.match(r"[0-9a-f]+-|mapping|\d+$", what)}


def address_of(shm: ShMem) -> int:
    """Give where it is mapped."""
    return ctypes.addressof(ctypes.c_uint8.from_buffer(shm))


class Header(ctypes.Structure):
    _fields_ = [("magic", ctypes.c_uint32), ("values", ctypes.c_uint16 * 3), ("tail", ctypes.c_double)]


class FieldO(ctypes.Structure):
    _fields_ = [("O", ctypes.c_uint32)]


# ---- size and first contents


@pytest.mark.parametrize("size", [1, 7, PAGE - 1, PAGE, PAGE + 1, 1_000_003])
def test_new_memory_is_zero_and_exactly_as_long_as_asked(provider: ShMemProvider, size: int) -> None:
    with provider.new_shmem(size) as dirty:
        dirty[:] = b"\xff" * size
    with provider.new_shmem(size) as shm:
        assert shm[:] == bytes(size)
        assert (len(shm), shm.size, shm.description.size, memoryview(shm).nbytes) == (size,) * 4
        shm[-1] = 1
        assert shm[size - 1] == 1
        with pytest.raises(IndexError):
            shm[size]
        with pytest.raises(IndexError):
            shm[size] = 1


@pytest.mark.parametrize("size", [2**31 + 1, 2**32 + 1, 2**40, 2**62, 2**63 - 2 * PAGE, 2**63 - 1])
def test_a_huge_segment_works_or_is_refused(provider: ShMemProvider, size: int) -> None:
    if IS_WINE and provider.name == "nop" and size == 2**40:
        pytest.skip("Wine's heap keeps these addresses for ever: each later look for leaks would take 40 ms more")
    shm = None
    try:
        shm = provider.new_shmem(size)
    except (OSError, MemoryError) as raised:
        refused = raised
    if not shm:
        if isinstance(refused, ServiceError):
            assert mechanism(provider) == "served"
            return
        assert str(size) in str(refused)
        assert isinstance(refused, MemoryError) == (mechanism(provider) == "nop")
        assert getattr(refused, "errno", errno.ENOMEM) in (errno.ENOMEM, errno.ENOSPC, errno.EINVAL, errno.EFBIG)
        return
    with shm:
        assert len(shm) == size
        shm[-1], shm[size - 2] = 7, 6
        shm[size - 5 : size - 2] = b"abc"
        assert shm[size - 6 :] == b"\0abc\x06\x07"
        assert shm[-1 : -(2**64) : -(size - 1)] == b"\x07\0"
        with memoryview(shm) as view:
            assert (len(view), view[size - 1], view[0]) == (size, 7, 0)
        with pytest.raises(IndexError):
            shm[size]


@pytest.mark.needs("posix", "linux")
def test_more_than_the_file_system_holds_is_refused_at_creation() -> None:
    free = os.statvfs("/dev/shm")
    with pytest.raises(OSError, match="remount it larger") as refused:
        MmapShMemProvider().new_shmem((free.f_bavail + free.f_blocks // 2 + 1) * free.f_frsize)
    assert refused.value.errno == errno.ENOSPC


def test_many_segments_at_once(provider: ShMemProvider) -> None:
    segments = [provider.new_shmem(2) for _ in range(300)]
    for number, shm in enumerate(segments):
        shm[:] = number.to_bytes(2, "big")
    assert [int.from_bytes(shm[:], "big") for shm in segments] == list(range(300))
    if mechanism(provider) != "nop":
        assert len({shm.id for shm in segments}) == 300
    for shm in segments:
        shm.close()


def test_reserved_memory_is_taken_at_once(provider: ShMemProvider, can: Can) -> None:
    size = 64 * PAGE
    if not can(provider, "reserve"):
        with pytest.raises(io.UnsupportedOperation, match=mechanism(provider)):
            provider.new_shmem(size, reserve=True)
        return

    if not can(provider, "sparse"):  # all memory is taken at once
        with provider.new_shmem(size, reserve=True) as full:
            assert full[:] == bytes(size)
        return

    def taken(shm: ShMem) -> int:
        if can(provider, "fileno"):
            return os.fstat(shm.fileno()).st_blocks * 512
        titles, *rows = map(str.split, Path("/proc/sysvipc/shm").read_text().splitlines())
        (row,) = (dict(zip(titles, fields, strict=True)) for fields in rows if fields[1] == shm.id)
        return int(row["rss"]) + int(row["swap"])

    with provider.new_shmem(size) as sparse, provider.new_shmem(size, reserve=True) as full:
        assert (taken(sparse), taken(full)) == (0, size)
        assert full[:] == bytes(size)


def test_more_than_there_is_cannot_be_reserved(sharing: ShMemProvider, can: Can) -> None:
    if not can(sharing, "reserve"):
        return  # see test_reserved_memory_is_taken_at_once
    with pytest.raises(OSError) as refused:  # noqa: PT011  # which message depends on the mechanism
        sharing.new_shmem(2**40, reserve=True)
    assert refused.value.errno in (errno.ENOMEM, errno.ENOSPC)


# ---- indexing: whatever mmap.mmap does, on the same bytes

N = 9
INTS = [*range(-N - 2, N + 3), 2**63 - 1, 2**63, -(2**63), 2**100, -(2**100)]
BOUNDS = [None, -N - 3, -N, -N + 1, -1, 0, 1, N - 1, N, N + 3, 2**70, Index(3)]
STEPS = [None, 1, 2, 3, N, -1, -2, 2**70, -(2**70), 0]
SLICES = [slice(*three) for three in itertools.product(BOUNDS, BOUNDS, STEPS)]
ODD_KEYS = ["0", b"0", 1.0, None, (0, 1), [0], ..., True, Index(2), Index(2**80), BrokenIndex(), slice("a"), slice(1.0)]


def outcome(call: Callable[[], object]) -> object:
    """Give the result, or the class of what was raised."""
    try:
        return call()
    except Exception as raised:
        return type(raised)


@pytest.fixture
def twins(provider: ShMemProvider) -> Any:
    """Give a segment and an mmap of the same size and bytes."""
    with provider.new_shmem(N) as shm, mmap.mmap(-1, N) as model:
        shm[:] = model[:] = bytes(range(101, 101 + N))
        yield shm, model


def test_reading_is_as_mmap(twins: tuple[Any, Any]) -> None:
    shm, model = twins
    for key in [*INTS, *SLICES, *ODD_KEYS]:
        assert outcome(lambda: shm[key]) == outcome(lambda: model[key]), key  # noqa: B023
    assert list(shm) == list(model[:])
    assert list(reversed(shm)) == list(reversed(model[:]))
    assert 102 in shm
    assert 99 not in shm
    assert bytes(shm) == model[:]


def test_writing_is_as_mmap(twins: tuple[ShMem, mmap.mmap]) -> None:
    shm, model = twins
    bytes_or_not = [0, 255, 256, -1, True, Index(7), Index(300), BrokenIndex(), "x", b"x", 1.5, None, [1]]
    spans: list[Any] = [b"", b"x", b"xyz", bytes(N), bytes(N + 1), bytearray(b"xyz"), memoryview(b"xyz")]
    spans += [memoryview(b"xxyyzz")[::2], array.array("H", [1, 2]), "xyz", [1, 2, 3], 7, None, 2.5]

    def assign(target: Any, key: Any, value: Any) -> None:
        target[key] = value

    keys_or_not = [(key, 7) for key in [*INTS, *ODD_KEYS]]
    good_keys = itertools.product([0, -1, True, Index(2)], bytes_or_not)
    slices = itertools.product([*SLICES[::7], slice(3), slice(None), slice(4, 1)], spans)
    for key, value in itertools.chain(keys_or_not, good_keys, slices):
        assert outcome(lambda: assign(shm, key, value)) == outcome(lambda: assign(model, key, value)), (key, value)  # noqa: B023
        assert shm[:] == model[:], (key, value)
    with pytest.raises(ValueError, match="int"):  # as bytearray; mmap has TypeError
        shm[0] = 2**100


def test_random_writes_are_as_mmap(twins: tuple[ShMem, mmap.mmap]) -> None:
    shm, model = twins
    dice = random.Random(1)
    for _ in range(3000):
        start, stop = (dice.choice([None, *range(-N - 1, N + 2)]) for _ in range(2))
        key = slice(start, stop, dice.choice([None, 1, 2, 3, -1, -2]))
        value = dice.randbytes(len(model[key]))
        shm[key] = value
        model[key] = value
        index = dice.randrange(-N, N)
        shm[index] = model[index] = dice.randrange(256)
        assert shm[:] == model[:]


def test_a_segment_cannot_change_its_size(twins: tuple[ShMem, mmap.mmap]) -> None:
    shm, model = twins
    for key in (0, slice(0, 1), slice(None), "x"):
        with pytest.raises(TypeError):
            del shm[key]  # type: ignore[attr-defined]
    for call in (lambda: shm + b"x", lambda: shm * 2, lambda: shm.append(1)):  # type: ignore[operator,attr-defined]
        assert outcome(call) in (TypeError, AttributeError)
    assert shm[:] == model[:]


@pytest.mark.parametrize(
    ("key", "part"),
    [
        (slice(1, None), slice(0, -1)),
        (slice(0, -1), slice(1, None)),
        (slice(None, None, -1), slice(None)),
        (slice(0, None, 2), slice(0, 501)),
    ],
    ids=["forward", "backward", "reversed", "spread"],
)
def test_assigning_its_own_bytes_is_as_if_they_were_copied_first(
    provider: ShMemProvider, key: slice, part: slice
) -> None:
    with provider.new_shmem(1001) as shm:
        shm[:] = before = random.Random(3).randbytes(1001)
        expected = bytearray(before)
        expected[key] = before[part]
        with memoryview(shm) as view, view[part] as source:
            shm[key] = source
        assert shm[:] == expected


# ---- views


def test_views_are_the_memory_itself(provider: ShMemProvider) -> None:
    with provider.new_shmem(16) as shm, memoryview(shm) as view:
        assert (view.readonly, view.format, view.itemsize, view.ndim, view.shape) == (False, "B", 1, 1, (16,))
        assert view.c_contiguous
        assert view.obj is shm
        view[3] = 5
        shm[4] = 6
        assert (shm[3], view[4]) == (5, 6)
        with view[8:].cast("Q") as word:
            word[0] = 0x0102030405060708
        assert int.from_bytes(shm[8:], "little" if shm[8] == 8 else "big") == 0x0102030405060708
        assert io.BytesIO(b"sixteen bytes 16").readinto(shm) == 16
        assert bytes(view) == b"sixteen bytes 16"


def test_ctypes_and_numpy_see_the_same_addresses(provider: ShMemProvider, numpy: Any) -> None:
    with provider.new_shmem(4099) as shm:
        first = ctypes.c_uint8.from_buffer(shm)
        seen = numpy.frombuffer(shm, "u1")
        assert seen.ctypes.data == ctypes.addressof(first)
        assert seen.ctypes.data % 8 == 0
        assert (seen.shape, seen.flags.writeable, seen.flags.owndata) == ((4099,), True, False)
        seen[-1] = 9
        assert shm[4098] == 9
        shm[0] = 8
        assert (first.value, seen[0]) == (8, 8)
        words = numpy.frombuffer(shm, "<u4", count=1024)
        words[1] = 0x01020304
        assert shm[4:8] == b"\4\3\2\1"
        del first, seen, words
        gc.collect()


def test_a_read_only_segment_cannot_be_written(provider: ShMemProvider) -> None:
    with provider.new_shmem(64) as shm, provider.shmem_from_id_and_size(shm.id, 64, read_only=True) as reader:
        assert (shm.readonly, reader.readonly) == (False, True)
        before = shm[:]
        writes: list[Any] = [(0, 1), (slice(0, 2), b"ab"), (slice(0, 0), b""), (70, 1), ("x", 1)]
        for write in writes:
            with pytest.raises(TypeError):
                reader.__setitem__(*write)
        with memoryview(reader) as view:
            assert view.readonly
            with pytest.raises(TypeError):
                view[0] = 1
        with pytest.raises(TypeError):
            ctypes.c_uint8.from_buffer(reader)
        for ctype in (Header, ctypes.c_uint8 * 65):  # the second would not fit either
            with pytest.raises(TypeError):
                reader.as_ptr_of(ctype)
        with pytest.raises((TypeError, BufferError)):
            io.BytesIO(b"abc").readinto(reader)
        with (
            provider.clone_ref(reader) as clone,
            provider.shmem_from_description(shm.description, read_only=True) as other,
        ):
            assert clone.readonly
            assert other.readonly
        assert reader[:] == shm[:] == before


# ---- ctypes values


def test_as_ptr_of_lies_in_the_segment(provider: ShMemProvider) -> None:
    size = ctypes.sizeof(Header)
    with provider.new_shmem(size) as shm:
        header = shm.as_ptr_of(Header)
        assert header is not None
        header.magic, header.values[2] = 0xAABBCCDD, 513
        assert shm[:4] == (0xAABBCCDD).to_bytes(4, "little" if shm[0] == 0xDD else "big")
        shm[Header.tail.offset :] = bytes(ctypes.c_double(0.5))
        assert header.tail == 0.5
        with pytest.raises(BufferError):
            shm.close()
        del header
        gc.collect()
    with provider.new_shmem(size - 1) as small:
        assert small.as_ptr_of(Header) is None


def test_new_on_shmem_copies_and_uninit_is_blank(provider: ShMemProvider) -> None:
    value = Header(7, (1, 2, 3), 2.5)
    with provider.new_on_shmem(value) as shm:
        assert (shm[:], len(shm)) == (bytes(value), ctypes.sizeof(Header))
        value.magic = 8
        assert shm[:] != bytes(value)
    with provider.uninit_on_shmem(Header) as blank:
        assert blank[:] == bytes(ctypes.sizeof(Header))
    with provider.new_on_shmem((ctypes.c_uint16 * 5)(1, 2, 3, 4, 5)) as shm:
        assert memoryview(shm).cast("H").tolist() == [1, 2, 3, 4, 5]
        gc.collect()


def test_new_on_shmem_takes_any_buffer(provider: ShMemProvider) -> None:
    data = bytes(range(256)) * 40
    buffers: dict[str, tuple[Any, bytes]] = {
        "bytes": (data, data),
        "bytearray": (bytearray(data), data),
        "read-only view": (memoryview(data), data),
        "array": (array.array("d", [0.5, -1]), array.array("d", [0.5, -1]).tobytes()),
        "of two dimensions": (memoryview(data).cast("B", (40, 256)), data),
        "not contiguous": (memoryview(data)[::-3], data[::-3]),
        "of no dimension": (ctypes.c_uint32(7), bytes(ctypes.c_uint32(7))),
        "with a field that is called O": (FieldO(1), bytes(FieldO(1))),
    }
    for what, (value, expected) in buffers.items():
        with provider.new_on_shmem(value) as shm:
            assert (shm[:], shm.is_owner) == (expected, True), what
    with provider.new_on_shmem(data) as first, provider.new_on_shmem(first) as second:
        first[0] = 77
        assert second[:] == data
    with pytest.raises(TypeError, match="Python objects"):
        provider.new_on_shmem(ctypes.py_object(data))
    with pytest.raises(ValueError, match="at least 1 byte"):
        provider.new_on_shmem(b"")


def test_new_on_shmem_of_numpy(provider: ShMemProvider, numpy: Any) -> None:
    table = numpy.arange(12, dtype="f4").reshape(3, 4)
    for value in (table, table.T, table[:, ::2], numpy.asfortranarray(table), numpy.float64(3)):
        with provider.new_on_shmem(value) as shm:
            assert shm[:] == value.tobytes()
    for value in (numpy.array([object()]), numpy.zeros(2, [("a", "i4"), ("b", "O")])):
        with pytest.raises(TypeError, match="Python objects"):
            provider.new_on_shmem(value)


def test_what_is_in_a_segment(provider: ShMemProvider) -> None:
    """As of bytes."""
    text = b"hello, wor\0ld" + b"ab" * 3000 + b"abc!"
    with provider.new_on_shmem(text) as shm:
        for what in (b"hello", b"", b"\0ld", b"ababc!", b"!", text, bytearray(b"bc"), memoryview(b"o-l")[::2], 0, 33):
            if isinstance(what, memoryview):
                with pytest.raises(BufferError):
                    assert what in shm  # as for bytes
            else:
                assert what in shm, what
        for what in (b"help", b"c!!", text + b"x", b"bb", 255, b"ac", b"abc" * 5000):
            assert what not in shm, what
        wrong: Any
        for wrong, error in (("hello", TypeError), (None, TypeError), (1.5, TypeError), (256, ValueError)):
            with pytest.raises(error):
                assert wrong in shm
        with pytest.raises(ValueError, match="255"):
            assert -1 in shm
        assert shm in shm
    with pytest.raises(ValueError, match="closed"):
        assert b"hello" in shm


def test_only_ctypes_types_are_types(provider: ShMemProvider) -> None:
    results = {}
    with provider.new_shmem(4096) as large, provider.new_shmem(1) as small:
        for wrong in (int, "Header", 4, None, b"x", Header(), ctypes.c_int(1)):
            calls: list[Callable[[Any], Any]] = [large.as_ptr_of, small.as_ptr_of, provider.uninit_on_shmem]
            if not isinstance(wrong, (ctypes.Structure, ctypes.c_int, bytes)):
                calls.append(provider.new_on_shmem)
            for call in calls:
                result = outcome(lambda: call(wrong))  # noqa: B023
                if isinstance(result, ShMem):
                    result.close()
                results[f"{call} of {wrong!r}"] = result
    assert {what: result for what, result in results.items() if result is not TypeError} == {}


# ---- the end of a segment

# Every use of a segment; after close each is a ValueError. `test_the_table_is_complete` says what is left out.
USES: dict[str, Callable[[Any], object]] = {
    "id": lambda shm: shm.id,
    "description": lambda shm: shm.description,
    "is_owner": lambda shm: shm.is_owner,
    "fileno": lambda shm: shm.fileno(),
    "persist": lambda shm: shm.persist(),
    "env": lambda shm: shm.env("SHMP_TEST_CLOSED"),
    "write_to_env": lambda shm: shm.write_to_env("SHMP_TEST_CLOSED"),
    "as_ptr_of": lambda shm: shm.as_ptr_of(Header),
    "as_ptr_of (small)": lambda shm: shm.as_ptr_of(ctypes.c_uint8),
    "__enter__": lambda shm: shm.__enter__(),
    "__len__": len,
    "__bool__": bool,
    "__getitem__": lambda shm: shm[0],
    "__getitem__ (slice)": lambda shm: shm[:],
    "__getitem__ (beyond)": lambda shm: shm[10_000],
    "__setitem__": lambda shm: shm.__setitem__(0, 1),
    "__setitem__ (slice)": lambda shm: shm.__setitem__(slice(0, 1), b"x"),
    "__iter__": list,
    "__contains__": lambda shm: 1 in shm,
    "__reversed__": lambda shm: list(reversed(shm)),
    "__buffer__": memoryview,
    "bytes": bytes,
    "__reduce__": pickle.dumps,
}
NOT_USES = {"closed", "size", "readonly", "provider_name", "close"}


def test_the_table_is_complete() -> None:
    public = {name for name in dir(ShMem) if not name.startswith("_")}
    assert public == {name.split(" ")[0] for name in USES if not name.startswith("_") and name != "bytes"} | NOT_USES


@pytest.mark.parametrize("read_only", [False, True])
def test_use_after_close_is_a_value_error(provider: ShMemProvider, read_only: bool) -> None:
    with provider.new_shmem(4096) as origin:
        shm = provider.shmem_from_id_and_size(origin.id, 4096, read_only=read_only)
        shm.close()
    shm.close()
    assert (shm.closed, shm.size, shm.readonly) == (True, 4096, read_only)
    assert shm.provider_name == mechanism(provider)
    assert "closed" in repr(shm)
    wrong = {name: got for name, use in USES.items() if (got := outcome(lambda: use(shm))) is not ValueError}  # noqa: B023
    assert wrong == {}
    assert "SHMP_TEST_CLOSED" not in os.environ
    for call in (provider.clone_ref, pickle.dumps):
        with pytest.raises(ValueError, match="closed"):
            call(shm)
    provider.release_shmem(shm)


def test_close_with_live_views_is_refused_and_changes_nothing(provider: ShMemProvider) -> None:
    shm = provider.new_shmem(4096)
    view = memoryview(shm)
    part = view[10:20]
    view.release()
    for close in (shm.close, lambda: provider.release_shmem(shm)):
        with pytest.raises(BufferError, match="1 views"):
            close()
    assert not shm.closed
    part[0] = 77
    assert (shm[10], shm.is_owner) == (77, True)
    with provider.clone_ref(shm) as clone:
        assert clone[10] == 77
    part.release()
    shm.close()
    assert shm.closed


def test_a_with_block_ends_with_live_views(provider: ShMemProvider, can: Can) -> None:
    """The segment is gone for all others at once, and its memory stays."""
    before = descriptors()
    with provider.new_shmem(4096) as shm:
        view = memoryview(shm)
        id = shm.id
    assert shm.closed
    with pytest.raises(ValueError, match="closed"):
        shm[0]
    assert descriptors() == before
    if can(provider, "shares") and mechanism(provider) != "sysv":  # which is there as long as it is mapped
        with pytest.raises(FileNotFoundError):
            provider.shmem_from_id_and_size(id, 4096)
    view[0] = 5
    assert view[0] == 5
    shm.close()
    assert view[0] == 5
    view.release()


# How memory is read without a view that is alive: by who keeps the exporter only.
READERS: dict[str, Callable[[Any, Any], Any]] = {
    "ndarray": lambda numpy, shm: numpy.ndarray((4096,), "u1", buffer=shm),
    "ndarray of a memoryview": lambda numpy, shm: numpy.ndarray((4096,), "u1", buffer=memoryview(shm)),
    "slice of ndarray": lambda numpy, shm: numpy.ndarray((4096,), "u1", buffer=shm)[::1],
    "ndarray of ndarray": lambda numpy, shm: numpy.ndarray((4096,), "u1", numpy.ndarray((4096,), "u1", shm)),
    "frombuffer": lambda numpy, shm: numpy.frombuffer(shm, "u1"),
    "asarray": lambda numpy, shm: numpy.asarray(memoryview(shm)),
    "ctypes": lambda numpy, shm: (ctypes.c_uint8 * 4096).from_buffer(shm),
    "ctypes by as_ptr_of": lambda numpy, shm: shm.as_ptr_of(ctypes.c_uint8 * 4096),
    "memoryview": lambda numpy, shm: memoryview(shm),
}
OF_NUMPY = {"ndarray", "ndarray of a memoryview", "slice of ndarray", "ndarray of ndarray", "frombuffer", "asarray"}


def close_or_leave(shm: ShMem) -> None:
    try:
        shm.close()
    except BufferError:
        shm.__exit__(None, None, None)


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("end", [close_or_leave, lambda shm: shm.__exit__(None, None, None)], ids=["close", "leave"])
def test_memory_outlives_whoever_reads_it(
    provider: ShMemProvider,
    can: Can,
    kind: str,
    end: Callable[[ShMem], None],
    request: pytest.FixtureRequest,
) -> None:
    numpy = request.getfixturevalue("numpy") if kind in OF_NUMPY else None
    before = descriptors()
    shm = provider.new_shmem(4096)
    clone = provider.clone_ref(shm)
    reader = READERS[kind](numpy, clone)
    reader[0], shm[4095] = 7, 8
    id = shm.id
    end(clone)
    end(shm)
    assert (shm.closed, clone.closed) == (True, True)
    assert descriptors() == before
    if can(provider, "shares") and mechanism(provider) != "sysv":  # which is there as long as it is mapped
        with pytest.raises(FileNotFoundError):
            provider.shmem_from_id_and_size(id, 4096)
    del shm, clone
    gc.collect()
    others = [provider.new_shmem(4096) for _ in range(3)]  # which would come to lie where it was
    for other in others:
        other[:] = b"x" * 4096
    assert (reader[0], reader[4095]) == (7, 8)
    reader[1] = 9
    assert reader[1] == 9
    for other in others:
        other.close()


def test_memory_goes_at_once_if_never_exported(provider: ShMemProvider) -> None:
    before = held()
    shm = provider.new_shmem(4096)
    clone = provider.clone_ref(shm)
    shm[:4] = b"1234"
    with ShMemCursor(clone) as cursor:
        assert cursor.read(4) == b"1234"
        cursor.write(b"5678")
    clone.close()
    assert shm[4:8] == b"5678"
    shm.close()
    assert held() == before


def test_exported_memory_goes_with_its_object(sharing: ShMemProvider) -> None:
    before = held()
    shm = sharing.new_shmem(4096)
    memoryview(shm).release()
    shm.close()
    assert descriptors() <= before
    del shm
    assert held() == before


def test_a_with_block_keeps_the_users_exception(provider: ShMemProvider) -> None:
    views = []

    def fail(close: bool) -> None:
        with provider.new_shmem(8) as shm:
            if close:
                shm.close()
            else:
                views.append(memoryview(shm))
            raise ZeroDivisionError

    for close in (False, True):
        with pytest.raises(ZeroDivisionError) as caught:
            fail(close)
        assert caught.value.__context__ is None
    (view,) = views
    view.release()
    with provider.new_shmem(8) as shm:
        assert not shm.closed
    with pytest.raises(ValueError, match="closed"), shm:
        pass


def test_a_dropped_segment_warns_and_is_released(provider: ShMemProvider) -> None:
    segments: list[Any] = [provider.new_shmem(4096)]
    with pytest.warns(ResourceWarning, match=f"{mechanism(provider)} of 4096 bytes") as record:
        segments.clear()
    assert len(record) == 1
    del record  # it holds the segment, which came to life once more

    segments.append(provider.new_shmem(4096))
    view = memoryview(segments[0])
    segments.clear()
    view[0] = 1
    segments.append(view)
    del view
    with pytest.warns(ResourceWarning):
        segments.clear()

    with pytest.warns(ResourceWarning):
        provider.new_shmem(3)[0]


def test_a_segment_can_be_weakly_referenced(provider: ShMemProvider) -> None:
    with provider.new_shmem(8) as shm:
        reference = weakref.ref(shm)
        assert reference() is shm
    del shm
    gc.collect()
    assert reference() is None


def test_a_class_with_its_provider_is_collected() -> None:
    def make() -> weakref.ref[type]:
        class Mine(ShMem):
            provider: ShMemProvider

        class Provider(ShMemProvider):
            _shmem_type = Mine
            kept: ShMemProvider

        Mine.provider = Provider.kept = Provider("nop")
        Mine.provider.new_shmem(8).close()
        return weakref.ref(Mine)

    classes = [make() for _ in range(5)]
    gc.collect()
    assert [each() for each in classes] == [None] * 5


def test_the_exception_of_a_failed_one_goes_with_it() -> None:
    class Failure(Exception):
        pass

    failure = Failure("gone")
    reference = weakref.ref(failure)
    shm = ShMem._failed(failure)
    del failure
    with pytest.raises(Failure, match="gone"):
        shm[0]
    assert reference() is not None
    del shm
    gc.collect()
    assert reference() is None


def test_segments_outlive_their_provider() -> None:
    for name in (*available_providers(), "std"):
        provider = open_provider(name)
        gone = weakref.ref(provider)
        shm = provider.new_shmem(10)
        del provider
        gc.collect()
        assert gone() is None
        shm[:] = b"0123456789"
        assert (shm[3:5], shm.is_owner) == (b"34", True)
        assert isinstance(shm.description, ShMemDescription)
        shm.close()


@pytest.mark.needs("linux")
def test_a_provider_ends_with_its_last_segment(provider: ShMemProvider) -> None:
    """Each has a page of its own, which tells a process from its children."""

    def pages() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0])

    def use() -> None:
        shm = open_provider(provider.name).new_shmem(8)
        open_provider(provider.name).clone_ref(shm).close()
        with shm:
            memoryview(shm).release()

    use()
    before = pages()
    for _ in range(1000):
        use()
    assert pages() - before < 500


# ---- handles


def test_clones_share_a_descriptor_and_others_have_their_own(provider: ShMemProvider, can: Can) -> None:
    with provider.new_shmem(10) as shm, provider.clone_ref(shm) as clone:
        if not can(provider, "fileno"):
            with pytest.raises(io.UnsupportedOperation, match=mechanism(provider)):
                shm.fileno()
            return
        assert (clone.fileno(), clone.id) == (shm.fileno(), shm.id)
        other = provider.shmem_from_description(shm.description)
        fds = shm.fileno(), other.fileno()
        assert fds[0] != fds[1]
        ours, theirs = map(os.fstat, fds)
        size = 0 if can(provider, "driver") else 10
        assert (ours.st_ino, ours.st_dev, ours.st_size) == (theirs.st_ino, theirs.st_dev, size)
        assert [os.get_inheritable(fd) for fd in fds] == [False, False]
        other.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fds[1])
        clone.persist()
        assert os.get_inheritable(fds[0])
        shm.close()
        assert os.fstat(fds[0]).st_ino == ours.st_ino
        clone.close()
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fds[0])


def test_a_clone_is_the_same_memory(provider: ShMemProvider) -> None:
    """That of a closed owner is the only one left, and no owner."""
    with provider.new_shmem(4096) as shm:
        clone = provider.clone_ref(shm)
        assert address_of(clone) == address_of(shm)
    clone[0] = 1
    assert (clone[0], clone.is_owner) == (1, False)
    clone.close()


def test_a_clone_of_a_reader_is_one(sharing: ShMemProvider) -> None:
    with sharing.new_shmem(4096) as shm, sharing.shmem_from_id_and_size(shm.id, 4096, read_only=True) as reader:
        shm[0] = 7
        with sharing.clone_ref(reader) as clone:
            assert (clone.readonly, clone[0]) == (True, 7)


def test_clones_share_and_close_alone(sharing: ShMemProvider) -> None:
    with sharing.new_shmem(4096) as shm:
        handles = [sharing.clone_ref(shm), sharing.shmem_from_description(shm.description)]
        handles.append(sharing.clone_ref(handles[0]))
        handles.append(sharing.shmem_from_id_and_size(handles[-1].id.as_str(), 4096))
        assert [handle.is_owner for handle in (shm, *handles)] == [True, False, False, False, False]
        for number, handle in enumerate(handles):
            handle[number] = number + 1
            sharing.release_shmem(handle)
            assert handle.closed
        assert shm[:5] == b"\1\2\3\4\0"


def test_nop_attaches_fresh_memory() -> None:
    provider = open_provider("nop")
    with provider.new_shmem(8) as shm:
        shm[:] = b"12345678"
        assert shm.id == ""
        with provider.shmem_from_description(shm.description) as attached:
            assert attached[:] == bytes(8)
            assert not attached.is_owner


def test_all_of_a_segment_is_attached_to(sharing: ShMemProvider, can: Can) -> None:
    with sharing.new_shmem(12345) as shm:
        shm[-1] = 9
        with sharing.attach(shm.id) as other, sharing.attach(shm.id.as_str(), read_only=True) as reader:
            assert (other[12344], reader[12344]) == (9, 9)
            assert (len(other) == 12345) or not can(sharing, "exact_size")
            assert (other.readonly, reader.readonly, other.is_owner) == (False, True, False)
            other[0] = 1
            assert (shm[0], reader[0]) == (1, 1)
        id = shm.id
    with pytest.raises(FileNotFoundError):
        sharing.attach(id)


def test_fork_hooks_change_nothing_by_themselves(provider: ShMemProvider) -> None:
    with provider.new_shmem(8) as shm:
        for _ in range(2):
            provider.pre_fork()
            provider.post_fork(False)
        shm[0] = 1
        assert (shm[0], shm.is_owner) == (1, True)


def test_what_a_segment_and_a_provider_say_of_themselves(provider: ShMemProvider) -> None:
    with provider.new_shmem(12345) as shm, provider.clone_ref(shm) as clone:
        assert repr(shm) == f"<ShMem {mechanism(provider)} of 12345 bytes, open>"
        assert str(clone) == repr(clone)
        with provider.shmem_from_id_and_size(shm.id, 12345, read_only=True) as reader:
            assert "read-only" in repr(reader)
    assert provider.name in repr(provider)
    assert type(provider).__name__ in repr(provider)
    assert shm.provider_name == mechanism(provider)


def test_objects_of_the_c_types_are_not_made_by_hand() -> None:
    with pytest.raises(TypeError, match="provider"):
        ShMem()
    with pytest.raises(TypeError, match="provider"):
        ShMem.__new__(ShMem)
    shm = open_provider("nop").new_shmem(1)
    with shm, pytest.raises(AttributeError):
        shm.size = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        shm.anything = 2  # type: ignore[attr-defined]
