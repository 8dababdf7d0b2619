"""A segment as a file: against io.BytesIO where that is the same, against the words of the docs where it ends."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmem_providers import ShMem, ShMemCursor, open_provider

pytestmark = pytest.mark.usefixtures("nothing_leaks")

SIZE = 100


@pytest.fixture
def shm() -> Iterator[ShMem]:
    with open_provider("std").new_shmem(SIZE) as shm:
        shm[:] = bytes(range(SIZE))
        yield shm


def test_it_is_a_raw_binary_file(shm: ShMem) -> None:
    cursor = ShMemCursor(shm)
    assert isinstance(cursor, io.RawIOBase)
    assert (cursor.readable(), cursor.writable(), cursor.seekable(), cursor.closed) == (True, True, True, False)
    assert not cursor.isatty()
    assert cursor.flush() is None  # type: ignore[func-returns-value]
    for call in (cursor.fileno, cursor.truncate):
        with pytest.raises(io.UnsupportedOperation):
            call()
    with cursor:
        assert cursor.read(3) == b"\0\1\2"
    assert cursor.closed
    assert not shm.closed
    for name, arguments in (
        ("read", (1,)),
        ("readinto", (bytearray(1),)),
        ("write", (b"x",)),
        ("seek", (0,)),
        ("tell", ()),
        ("readall", ()),
    ):
        with pytest.raises(ValueError, match="closed"):
            getattr(cursor, name)(*arguments)
    cursor.close()


def test_reading_and_seeking_are_as_bytesio(shm: ShMem) -> None:
    cursor, model = ShMemCursor(shm), io.BytesIO(shm[:])
    dice = random.Random(2)

    for _ in range(5000):
        calls: list[tuple[Any, ...]] = [
            ("read", dice.randrange(-1, SIZE + 9)),
            ("read", dice.randrange(5)),
            ("read",),
            ("tell",),
            ("readline",),
            ("seek", dice.randrange(SIZE + 9)),
            ("seek", dice.randrange(SIZE), os.SEEK_SET),
            ("seek", dice.randrange(-9, 20), os.SEEK_CUR),
            ("seek", dice.randrange(-SIZE - 9, 9), os.SEEK_END),
        ]
        name, *arguments = dice.choice(calls)
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: model.tell(), os.SEEK_END: SIZE}
        if name == "seek" and bases[[*arguments, 0][1]] + arguments[0] < 0:
            with pytest.raises(ValueError, match="before the start"):  # where BytesIO goes to 0
                cursor.seek(*arguments)
        else:
            assert getattr(cursor, name)(*arguments) == getattr(model, name)(*arguments), (name, arguments)
        assert cursor.tell() == model.tell()
    cursor.seek(3)
    assert cursor.readall() == model.getvalue()[3:]


def test_seek_refuses(shm: ShMem) -> None:
    cursor: Any = ShMemCursor(shm)
    cursor.seek(7)
    for arguments, error in (
        ((-1,), ValueError),
        ((-8, os.SEEK_CUR), ValueError),
        ((-SIZE - 1, os.SEEK_END), ValueError),
        ((0, 3), ValueError),
        ((0, -1), ValueError),
        ((1.5,), TypeError),
        ((0.0, os.SEEK_CUR), TypeError),
        (("1",), TypeError),
        ((None,), TypeError),
        ((), TypeError),
    ):
        with pytest.raises(error):
            cursor.seek(*arguments)
        assert cursor.tell() == 7
    assert cursor.seek(2**40) == 2**40
    assert cursor.read(1) == b""
    assert cursor.readinto(bytearray(9)) == 0


def test_writing_stops_at_the_end(shm: ShMem) -> None:
    cursor = ShMemCursor(shm)
    assert cursor.write(b"abc") == 3
    assert cursor.write(b"") == 0
    assert (cursor.tell(), shm[:4]) == (3, b"abc\3")
    cursor.seek(-2, os.SEEK_END)
    assert cursor.write(b"wxyz") == 2
    assert (cursor.tell(), shm[-3:]) == (SIZE, bytes([SIZE - 3]) + b"wx")
    assert cursor.write(b"") == 0
    for position in (SIZE, SIZE + 1, 2**40):
        cursor.seek(position)
        with pytest.raises(OSError, match=str(position)) as full:
            cursor.write(b"x")
        assert (full.value.errno, cursor.tell()) == (errno.ENOSPC, position)
    assert shm[:3] + shm[-2:] == b"abcwx"


@pytest.mark.parametrize(
    "data", [bytearray(b"ab"), memoryview(b"ab"), memoryview(b"xaabb")[1:3], memoryview(b"abcd").cast("H")[:1]]
)
def test_writing_takes_buffers(shm: ShMem, data: Any) -> None:
    cursor = ShMemCursor(shm)
    assert cursor.write(data) == 2
    assert shm[:2] == bytes(data)
    target = memoryview(bytearray(4)).cast("H")
    cursor.seek(0)
    assert cursor.readinto(target) == 4
    assert bytes(target) == shm[:4]


def test_wrong_types(shm: ShMem) -> None:
    cursor: Any = ShMemCursor(shm)
    before = shm[:]
    for name, wrong in (
        ("write", "text"),
        ("write", 5),
        ("write", None),
        ("readinto", b"constant"),
        ("readinto", "text"),
        ("read", "1"),
    ):
        with pytest.raises((TypeError, BufferError)):
            getattr(cursor, name)(wrong)
    for strided in (memoryview(b"abcdef")[::2], memoryview(bytearray(6))[::2]):
        with pytest.raises((TypeError, BufferError)):
            cursor.write(strided)
    assert (cursor.tell(), shm[:]) == (0, before)


def test_two_cursors_and_the_segment_itself(shm: ShMem) -> None:
    """Reading a segment into itself is as if it were copied first."""
    one, two = ShMemCursor(shm), ShMemCursor(shm)
    one.write(b"one")
    assert two.read(4) == b"one\3"
    assert (one.tell(), two.tell()) == (3, 4)
    before = shm[:]
    with memoryview(shm) as view:
        one.seek(0)
        assert one.readinto(view[1:]) == SIZE - 1
    assert shm[:] == before[:1] + before[:-1]
    one.seek(0)
    assert one.write(shm) == SIZE


def test_a_read_only_segment(shm: ShMem) -> None:
    with open_provider("std").shmem_from_id_and_size(shm.id, SIZE, read_only=True) as reader:
        cursor = ShMemCursor(reader)
        assert (cursor.readable(), cursor.writable()) == (True, False)
        assert cursor.read(3) == b"\0\1\2"
        for data in (b"x", b""):
            with pytest.raises(io.UnsupportedOperation):
                cursor.write(data)
        assert io.BufferedReader(cursor).read() == bytes(range(3, SIZE))
        with pytest.raises(io.UnsupportedOperation):
            io.BufferedWriter(cursor)
    assert shm[:3] == b"\0\1\2"


def test_a_closed_segment(shm: ShMem) -> None:
    with open_provider("std").clone_ref(shm) as clone:
        cursor = ShMemCursor(clone)
        cursor.read(1)
        clone.close()  # a cursor holds no view between calls
    calls: list[Callable[[], object]] = [lambda: cursor.read(1), lambda: cursor.write(b"x"), cursor.readall]
    calls.append(lambda: cursor.seek(0, os.SEEK_END))
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()
    cursor.close()


@pytest.mark.parametrize("buffer_size", [1, 7, SIZE, 8192])
def test_buffered(shm: ShMem, buffer_size: int) -> None:
    reader = io.BufferedReader(ShMemCursor(shm), buffer_size)
    assert reader.peek(1)[:1] == b"\0"
    assert (reader.read(60), reader.readinto(bytearray(30)), reader.read()) == (
        bytes(range(60)),
        30,
        bytes(range(90, 100)),
    )
    assert reader.seek(-3, os.SEEK_END) == 97
    assert reader.read(9) == b"abc"

    writer = io.BufferedWriter(ShMemCursor(shm), buffer_size)
    for start in range(0, SIZE, 10):
        writer.write(b"%010d" % start)
    writer.flush()
    assert shm[:] == b"".join(b"%010d" % start for start in range(0, SIZE, 10))
    writer.detach()

    both = io.BufferedRandom(ShMemCursor(shm), buffer_size)
    both.seek(5)
    both.write(b"both")
    both.seek(0)
    assert both.read(10) == b"00000both0"
    both.close()
    assert shm[:10] == b"00000both0"
    assert not shm.closed


def test_a_buffered_writer_that_runs_full(shm: ShMem) -> None:
    """It must end with an error, not try for ever."""
    writer = io.BufferedWriter(ShMemCursor(shm), 8192)
    writer.write(b"z" * (SIZE + 1))
    with pytest.raises(OSError, match="ends at 100") as full:
        writer.flush()
    assert full.value.errno == errno.ENOSPC
    assert shm[:] == b"z" * SIZE
    with pytest.raises(OSError, match="ends at 100"):
        writer.close()
    assert writer.closed
    assert not shm.closed


def test_what_is_built_on_files() -> None:
    with open_provider("std").new_shmem(10_000) as shm:
        cursor = ShMemCursor(shm)
        pickle.dump({"key": [1, 2.5, "three"]}, cursor)
        cursor.seek(0)
        assert pickle.load(io.BufferedReader(cursor)) == {"key": [1, 2.5, "three"]}
        shutil.copyfileobj(io.BytesIO(b"line 1\nline 2\n"), ShMemCursor(shm))
        with io.TextIOWrapper(io.BufferedReader(ShMemCursor(shm)), "ascii", errors="replace") as text:
            assert [text.readline(), text.readline()] == ["line 1\n", "line 2\n"]
        lines = ShMemCursor(shm)
        lines.writelines([b"a\n", b"b\n"])
        lines.seek(0)
        assert lines.readline() == b"a\n"
        assert next(lines) == b"b\n"
        assert len(shm) == 10_000
