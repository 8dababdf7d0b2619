"""`ShMem`: a handle on one mapped segment."""

from __future__ import annotations

import os

from shmem_providers import _binding
from shmem_providers._ids import ShMemDescription, ShMemId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeVar

    T = TypeVar("T")


def size_of_ctype(method: str, ctype: type[Any]) -> int:
    """Give the size of a ctypes type in bytes; raises `TypeError` for anything else."""
    from ctypes import sizeof

    if not (isinstance(ctype, type) and hasattr(ctype, "from_buffer")):
        raise TypeError(f"{method}: {ctype!r} is no ctypes type")
    return sizeof(ctype)


class ShMem(_binding.ShMem):
    """One segment of shared memory, mapped into this process.

    Made by a provider. It is a buffer (``memoryview(shm)``, ``numpy.frombuffer(shm, "u1")``: no
    copy) and is indexed as `mmap.mmap` is: ``shm[0]`` is an int, ``shm[1:4]`` bytes, both can be
    assigned. ``len(shm)`` is exactly the size asked for. Use it in a ``with`` block, or `close` it.

    `close` raises `BufferError` while views are alive; leaving a ``with`` block never raises. Both end
    name, descriptor and every use of this object at once. Memory that was exported (a view,
    `as_ptr_of`) stays as long as this object, so that ``numpy.ndarray(..., buffer=shm)`` and the like,
    which keep it and no view, never read what is gone; other memory goes at once, too.

    Any method may be called from any thread, at the same time as any other. After `close`, every
    use is a `ValueError`, except of `closed`, `size`, `readonly` and `provider_name`.
    """

    __slots__ = ("__weakref__",)

    @property
    def id(self) -> ShMemId:
        """What another process attaches by.

        A memfd id works as long as any process has the segment open. `FileNotFoundError` of posix: its owner has
        closed it, and the name is gone; it can still be sent by `multiprocessing`.
        """
        return ShMemId(self._describe()[0])

    @property
    def description(self) -> ShMemDescription:
        """Id and size in bytes."""
        id, size = self._describe()
        return ShMemDescription(size, id)

    def env(self, name: str, *, posix_names: bool = False, afl: bool = False) -> dict[str, str]:
        """Give ``{name: id, name + "_SIZE": size}``, for ``subprocess.run(..., env=os.environ | shm.env(name))``.

        The process that is started calls `ShMemProvider.existing_from_env`. A name that begins with
        ``__AFL_`` takes sysv ids only: AFL++ misreads any other.

        Args:
            name: the variable's.
            posix_names: the AFL++ target was built for posix names (``USEMMAP``), and takes one.
            afl: the size goes where an AFL++ target reads it: ``AFL_MAP_SIZE`` for ``__AFL_SHM_ID``, and
                ``__AFL_SHM_FUZZ_MAP_SIZE`` for ``__AFL_SHM_FUZZ_ID``. It asks for none of ``__AFL_CMPLOG_SHM_ID``,
                which stays ``name + "_SIZE"``. There are no other names then.

        Raises:
            ValueError: the name cannot be a variable's, or AFL++ could not read the id, or knows no such name.

        """
        id, size, size_name = self._env_description(name, posix_names, afl)
        return {name: id, size_name or name + "_SIZE": str(size)}

    def write_to_env(self, name: str, *, posix_names: bool = False, afl: bool = False) -> None:
        """Set in ``os.environ`` what `env` gives, for all processes that are started from now on.

        Raises:
            ValueError: as `env`.

        """
        os.environ.update(self.env(name, posix_names=posix_names, afl=afl))

    def as_ptr_of(self, ctype: type[T]) -> T | None:
        """Give an instance of a ctypes type that lies in this memory, at its start.

        Assigning to its fields changes the segment. It counts as a view: `close` fails while it is
        alive. None when the segment is smaller than the type.

        Raises:
            TypeError: `ctype` is no ctypes type, or the segment is read-only.
            ValueError: the segment is closed.

        """
        size, room = size_of_ctype("as_ptr_of", ctype), len(self)
        if self.readonly:
            raise TypeError("as_ptr_of: this ShMem is read-only: attach without read_only")
        if size > room:
            return None
        instance: T = ctype.from_buffer(self)  # type: ignore[attr-defined]
        return instance

    def __repr__(self) -> str:
        if not self.provider_name:
            return "<ShMem that could not be attached>"
        state = "closed" if self.closed else "read-only" if self.readonly else "open"
        return f"<ShMem {self.provider_name} of {self.size} bytes, {state}>"

    def __reduce__(self) -> tuple[Any, ...]:
        from shmem_providers._handover import reduce_shmem

        return reduce_shmem(self)
