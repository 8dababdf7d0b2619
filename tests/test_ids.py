"""Ids and descriptions: what they accept, give and refuse, as the Rust crate's or stricter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shmem_providers import InvalidIdError, ShMemDescription, ShMemError, ShMemId

GOOD = [
    "",
    "7",
    "0",
    "2147483647",
    "/shmp_abcdefghijklm",
    "libafl_0123456789ab",
    "4194304.1023.00ab",
    "a",
    "~!#$%&'()*+,-:;",
]
BAD = [
    "x" * 20,
    "x" * 1000,
    " ",
    "a b",
    "a\n",
    "\t",
    "a\0",
    "\0" * 20,
    "\x7f",
    "é",
    "\uff11",
    "\u0661",
    "\ud800",
    "\x80",
]
NOT_TEXT: list[Any] = [None, 5, 5.0, b"5", bytearray(b"5"), ["5"], ("5",), object()]


@pytest.mark.parametrize("text", GOOD)
def test_a_good_id(text: str) -> None:
    id = ShMemId(text)
    assert id == text == str(id) == f"{id}" == id.as_str() == ShMemId.from_string(text)
    assert (type(id.as_str()), type(str(id)), type(id)) == (str, str, ShMemId)
    assert hash(id) == hash(text)
    assert {text: 1}[id] == 1
    assert repr(id) == f"ShMemId({text!r})"
    assert eval(repr(id)) == id
    array = id.as_array()
    assert array == bytes(id) == text.encode().ljust(20, b"\0")
    assert (len(array), type(array)) == (20, bytes)
    assert id.null_pos() == len(id) == array.index(0)
    assert id.is_empty() == (text == "")
    for data in (array, bytearray(array), memoryview(array)):
        assert ShMemId.from_array(data) == id
        assert ShMemId.try_from_slice(bytes(data) + b"more") == id
    assert ShMemId.from_array(array[: len(id) + 1] + b"\xff" * (19 - len(id))) == id  # what follows NUL is no matter
    if text.isdecimal():
        assert int(id) == int(text)
    else:
        with pytest.raises(InvalidIdError, match="decimal"):
            int(id)


@pytest.mark.parametrize("make", [ShMemId, ShMemId.from_string, lambda id: ShMemDescription(1, id)])
def test_a_bad_id(make: Callable[[Any], object]) -> None:
    for text in BAD:
        with pytest.raises(InvalidIdError) as refused:
            make(text)
        assert isinstance(refused.value, ShMemError)
        assert repr(text)[1:-1] in str(refused.value)
    for value in NOT_TEXT:
        with pytest.raises(TypeError):
            make(value)


def test_ids_of_numbers() -> None:
    for number in (0, 1, 1023, 2**31 - 1):
        assert ShMemId.from_int(number) == str(number)
        assert int(ShMemId.from_int(number)) == number
    for number in (-1, -(2**31), 2**31, 2**100):
        with pytest.raises(InvalidIdError, match=str(number)):
            ShMemId.from_int(number)
    for value in (True, 1.0, "1", None, b"1"):
        with pytest.raises(TypeError):
            ShMemId.from_int(value)  # type: ignore[arg-type]
    for text in ("", "-1", "+1", "0x1", "1.0", "/1", "1_0"):
        with pytest.raises(InvalidIdError):
            int(ShMemId(text))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 19,
        b"\0" * 21,
        b"x" * 20,
        b"x" * 19,
        b"a b".ljust(20, b"\0"),
        b"\xff".ljust(20, b"\0"),
        b"\n".ljust(20, b"\0"),
    ],
)
def test_a_bad_array(data: bytes) -> None:
    for kind in (bytes, bytearray, memoryview):
        with pytest.raises(InvalidIdError):
            ShMemId.from_array(kind(data))
        if len(data) < 21:
            with pytest.raises(InvalidIdError):
                ShMemId.try_from_slice(kind(data))


@pytest.mark.parametrize("value", [None, "x" * 20, 5, 20, 20.0, True])
def test_an_array_is_bytes(value: Any) -> None:
    for make in (ShMemId.from_array, ShMemId.try_from_slice):
        with pytest.raises(TypeError):
            make(value)


def test_an_id_cannot_change() -> None:
    id: Any = ShMemId("abc")
    with pytest.raises(AttributeError):
        id.text = "x"
    with pytest.raises(TypeError):
        id[0] = "x"
    assert id + "d" == "abcd"  # and is a plain str, which may be too long for an id
    assert type(id + "d") is str


def test_a_description() -> None:
    description = ShMemDescription(4096, "7")
    assert (description.size, description.id, type(description.id)) == (4096, "7", ShMemId)
    assert (
        description == ShMemDescription.from_string_and_size("7", 4096) == ShMemDescription(id=ShMemId("7"), size=4096)
    )
    assert hash(description) == hash(ShMemDescription(4096, "7"))
    assert description not in (ShMemDescription(4097, "7"), ShMemDescription(4096, "8"), (4096, "7"), "7", 4096, None)
    assert eval(repr(description)) == description
    anything: Any = description
    for name in ("size", "id", "other"):
        with pytest.raises(AttributeError):
            setattr(anything, name, 1)
    for name in ("size", "id"):
        with pytest.raises(AttributeError):
            delattr(anything, name)
    assert (description.size, description.id) == (4096, "7")
    make: Any = ShMemDescription
    for arguments in ((), (1,), (1, "x", 2)):
        with pytest.raises(TypeError):
            make(*arguments)
