"""`ShMemCursor`: a segment as a file."""

from __future__ import annotations

import errno
import io
import os
from operator import index

from shmem_providers._shmem import ShMem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]


class ShMemCursor(io.RawIOBase):
    """Raw binary I/O over a segment, which stays the caller's to close.

    Writes stop at the segment's end: a write that has room for some bytes gives their number, one
    that has room for none is ``OSError(ENOSPC)`` (0, as the Rust crate gives, would make
    `io.BufferedWriter` try for ever). The position may be beyond the end; reads there are empty.
    It exports no view: closing the segment is never refused because of it.
    """

    def __init__(self, shm: ShMem) -> None:
        super().__init__()
        self._shm = shm
        self._position = 0

    def readable(self) -> bool:
        """Give True."""
        return True

    def writable(self) -> bool:
        """Tell whether the segment is."""
        return not self._shm.readonly

    def seekable(self) -> bool:
        """Give True."""
        return True

    def tell(self) -> int:
        """Give the position in bytes."""
        self._checkClosed()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position and give it; one before the start is a `ValueError`."""
        self._checkClosed()
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._shm)}
        if whence not in bases:
            raise ValueError(f"ShMemCursor.seek: whence {whence!r}: 0, 1 or 2")
        position = bases[whence] + index(offset)
        if position < 0:
            raise ValueError(f"ShMemCursor.seek: position {position} is before the start")
        self._position = position
        return position

    def readinto(self, buffer: Buffer) -> int:
        """Fill `buffer` from the position on and give the number of bytes."""
        self._checkClosed()
        with memoryview(buffer).cast("B") as target:
            part = self._shm[self._position : self._position + len(target)]
            target[: len(part)] = part
        self._position += len(part)
        return len(part)

    def write(self, data: Buffer) -> int:
        """Write what fits, and give the number of bytes."""
        self._checkClosed()
        if self._shm.readonly:
            raise io.UnsupportedOperation("ShMemCursor.write: the segment is attached read-only")
        with memoryview(data).cast("B") as source:
            size = len(self._shm)
            count = min(len(source), max(size - self._position, 0))
            if count == 0 and len(source):
                raise OSError(
                    errno.ENOSPC,
                    f"ShMemCursor.write: {len(source)} bytes at {self._position}: the segment ends at {size}",
                )
            with source[:count] as part:
                self._shm[self._position : self._position + count] = part
        self._position += count
        return count
