"""Ids and descriptions: what one process tells another so that it can attach."""

from __future__ import annotations

from shmem_providers._errors import InvalidIdError


class ShMemId(str):
    """The id of a segment: at most 19 bytes of printable ASCII. It is a `str`.

    Empty for the ``nop`` provider. The methods are those of the Rust crate's type, where an id is
    an array of 20 bytes, padded with NUL.
    """

    __slots__ = ()

    def __new__(cls, text: str = "") -> ShMemId:
        """Check `text`; raises `InvalidIdError`."""
        if not isinstance(text, str):
            raise TypeError(f"ShMemId: {text!r} is not a str")
        if not (len(text) < 20 and text.isascii() and text.isprintable() and " " not in text):
            raise InvalidIdError(f"ShMemId: {text!r}: at most 19 characters of printable ASCII, without blanks")
        return super().__new__(cls, text)

    @classmethod
    def from_string(cls, text: str) -> ShMemId:
        """Make an id of text; raises `InvalidIdError`."""
        return cls(text)

    @classmethod
    def from_int(cls, number: int) -> ShMemId:
        """Make an id of a file descriptor or a System V id, from 0 to 2**31 - 1."""
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"ShMemId.from_int: {number!r} is not an int")
        if not 0 <= number < 2**31:
            raise InvalidIdError(f"ShMemId.from_int: {number}: an id from 0 to 2**31 - 1")
        return cls(str(number))

    @classmethod
    def from_array(cls, array: bytes | bytearray | memoryview) -> ShMemId:
        """Make an id of the crate's 20 bytes: text up to the first NUL, which must be there."""
        data = bytes(memoryview(array))
        text, nul, _ = data.partition(b"\0")
        if len(data) != 20 or not nul:
            raise InvalidIdError(f"ShMemId.from_array: {data!r}: 20 bytes with a NUL at the end of the text")
        return cls(text.decode("latin-1"))

    @classmethod
    def try_from_slice(cls, data: bytes | bytearray | memoryview) -> ShMemId:
        """Make an id of the first 20 bytes of `data`; raises `InvalidIdError` when they are none."""
        return cls.from_array(memoryview(data)[:20])

    def as_str(self) -> str:
        """Give the text."""
        return str(self)

    def as_array(self) -> bytes:
        """Give 20 bytes, padded with NUL."""
        return self.encode("ascii").ljust(20, b"\0")

    def null_pos(self) -> int:
        """Give the position of the first NUL in `as_array`: the length of the text."""
        return len(self)

    def is_empty(self) -> bool:
        """Tell whether this is the empty id."""
        return not self

    def __int__(self) -> int:
        """Give the number that a decimal id is; raises `InvalidIdError` for any other."""
        if not self.isdecimal():
            raise InvalidIdError(f"ShMemId: {self.as_str()!r} is no decimal number")
        return int(self.as_str())

    def __bytes__(self) -> bytes:
        return self.as_array()

    def __str__(self) -> str:
        return str.__str__(self)

    def __repr__(self) -> str:
        return f"ShMemId({str.__repr__(self)})"


class ShMemDescription:
    """Size in bytes and id of a segment: what another process needs to attach. Immutable."""

    __slots__ = ("id", "size")

    size: int
    id: ShMemId

    def __init__(self, size: int, id: str) -> None:
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "id", id if isinstance(id, ShMemId) else ShMemId(id))

    @classmethod
    def from_string_and_size(cls, id: str, size: int) -> ShMemDescription:
        """Make a description, in the crate's order of arguments."""
        return cls(size, id)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"ShMemDescription.{name}: a description cannot change: make another one")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ShMemDescription):
            return NotImplemented
        return self.size == other.size and self.id == other.id

    def __hash__(self) -> int:
        return hash((self.size, self.id))

    def __repr__(self) -> str:
        return f"ShMemDescription(size={self.size}, id={self.id.as_str()!r})"

    def __reduce__(self) -> tuple[type[ShMemDescription], tuple[int, str]]:
        return ShMemDescription, (self.size, self.id)
