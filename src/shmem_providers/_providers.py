"""The providers: one class a mechanism."""

from __future__ import annotations

import io
import os

from shmem_providers import _binding
from shmem_providers._binding import ffi, lib
from shmem_providers._errors import ServiceError, error_from
from shmem_providers._ids import ShMemDescription
from shmem_providers._shmem import ShMem, size_of_ctype

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, Self

    from typing_extensions import Buffer


def milliseconds(method: str, name: str, seconds: float) -> int:
    """Give a time limit as the C library has it; what is not 0 does not become it."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"{method}: {name} {seconds!r}: a number of seconds")
    if not 0 <= seconds <= 4_000_000:
        raise ValueError(f"{method}: {name} {seconds!r}: from 0 to 4,000,000 seconds")
    return max(round(seconds * 1000), seconds > 0)


class ShMemProvider(_binding.Provider[ShMem]):
    """A way to get shared memory. Open one of its subclasses, or call `open_provider`.

    May be used from any thread, at the same time. Segments outlive their provider.

    All of ``new_shmem(size, *, reserve=False, mode=None, linger=False)``, ``shmem_from_id_and_size(id, size, *,
    read_only=False, any_user=False)`` and what is built on them raise `TypeError` for a size that is
    no int (a bool is none), `ValueError` for 0 and less, `OverflowError` beyond the address space,
    and `OSError` when a call of the system fails. Attaching, to which ``attach(id)`` belongs, raises
    `InvalidIdError` for garbage and for what is no shared memory, `SizeMismatchError` when the segment
    is smaller, `FileNotFoundError` when it is gone, and `PermissionError` when it is another user's
    (neither this one's nor root's), unless ``any_user=True`` says that this user is trusted.
    """

    __slots__ = ("__weakref__",)

    _shmem_type = ShMem

    def shmem_from_description(
        self, description: ShMemDescription, *, read_only: bool = False, any_user: bool = False
    ) -> ShMem:
        """Attach to the segment that was described."""
        if not isinstance(description, ShMemDescription):
            raise TypeError(f"shmem_from_description: {description!r} is no ShMemDescription")
        return self.shmem_from_id_and_size(description.id, description.size, read_only=read_only, any_user=any_user)

    def existing_from_env(self, name: str, *, read_only: bool = False, any_user: bool = False) -> ShMem:
        """Attach to what `ShMem.write_to_env` wrote, in this process or one it descends from.

        Raises:
            KeyError: ``name`` or ``name + "_SIZE"`` is not set.
            ValueError: the size is no plain decimal number, or the id is garbage.

        """
        return self._from_env(name, os.environ.get(name), os.environ.get(name + "_SIZE"), read_only, any_user)

    def new_on_shmem(self, value: Buffer) -> ShMem:
        """Create a segment that holds a copy of a buffer's bytes: of ``bytes``, an array, a ctypes instance, ...

        The buffer may be read-only. One that is not contiguous is copied in the order of its items.

        Raises:
            TypeError: `value` is no buffer, or holds references to Python objects.
            ValueError: it has no bytes.

        """
        try:
            view = memoryview(value)
        except TypeError:
            raise TypeError(f"new_on_shmem: {type(value).__name__} is no buffer: give bytes or the like") from None
        with view:
            if "O" in "".join(view.format.split(":")[::2]):  # between colons are names of fields
                raise TypeError("new_on_shmem: references to Python objects mean nothing to another process")
            data = view if view.c_contiguous else view.tobytes()
            shm = self.new_shmem(view.nbytes)
            shm[:] = data
        return shm

    def uninit_on_shmem(self, ctype: type[Any]) -> ShMem:
        """Create a segment with room for one instance of a ctypes type. Its bytes are zero."""
        return self.new_shmem(size_of_ctype("uninit_on_shmem", ctype))

    def release_shmem(self, shm: ShMem) -> None:
        """Close the segment: the crate's name for `ShMem.close`."""
        if not isinstance(shm, ShMem):
            raise TypeError(f"release_shmem: {shm!r} is no ShMem")
        shm.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self.name, self.fd_ids)


def _reopen(cls: Any, name: str, fd_ids: bool) -> ShMemProvider:
    if cls is ShMemProvider:
        return ShMemProvider(name, lib.SHMP_FD_IDS if fd_ids else 0)
    provider: ShMemProvider = cls(fd_ids=True) if fd_ids else cls()
    return provider


class StdShMemProvider(ShMemProvider):
    """The best provider that works here: on Linux memfd, then posix, then sysv; on Windows win32.

    The choice is made by trying, once; ``SHMEM_PROVIDER=<name>`` in the environment overrides it.
    `name` is the chosen one's. It attaches to every provider's segments, by the shape of the id.

    On macOS and Android it is ``rc(served(...))``, whose segments a service hands out: this user's, which is looked
    for, or started as a process of its own (``shmem-providers serve --idle 10``).

    Args:
        served: do as on macOS on every Unix.

    """

    __slots__ = ("_is_served",)

    _is_served: bool

    def __new__(cls, *, served: bool = False) -> Self:
        """Raise `ProviderUnavailableError` when nothing works here, `ServiceError` when no service can be started."""
        is_served = served or (_binding.std_is_served and not os.environ.get("SHMEM_PROVIDER"))
        self = cls._open_served() if is_served else super().__new__(cls, "std")
        self._is_served = bool(is_served)
        return self

    @classmethod
    def _open_served(cls) -> Self:
        try:
            served = ServedShMemProvider()
        except ServiceError:
            from shmem_providers._serve import start_process

            start_process()
            served = ServedShMemProvider()
        return super().__new__(cls, "std", 0, RcShMemProvider(served))

    def _find_service(self) -> bool:
        """Have a service run again, if this is served: the binding, which then tries again, has lost one."""
        if self._is_served:
            from shmem_providers._serve import start_process

            start_process()
        return self._is_served

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen_std, (type(self), self._is_served and not _binding.std_is_served)


class MemfdShMemProvider(ShMemProvider):
    """memfd_create, of a sealed size. Nothing is left when its users end, however they end.

    Args:
        fd_ids: ids are bare descriptor numbers, as the Rust crate's. Such an id works in a process
            that got the descriptor under that number (``subprocess``'s ``pass_fds``).

    """

    __slots__ = ()

    def __new__(cls, *, fd_ids: bool = False) -> Self:
        """Raise `ProviderUnavailableError` before Linux 3.17."""
        return super().__new__(cls, "memfd", lib.SHMP_FD_IDS if fd_ids else 0)

    def new_file(self) -> io.FileIO:
        """Create an empty, unsealed memfd and give it as a file, which is the caller's to size and close."""
        return io.FileIO(os.memfd_create("libafl_file", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b")


class MmapShMemProvider(ShMemProvider):
    """POSIX shm_open and mmap: segments with names, in /dev/shm on Linux.

    Args:
        fd_ids: the name is unlinked at once, and ids are bare descriptor numbers.

    """

    __slots__ = ()

    def __new__(cls, *, fd_ids: bool = False) -> Self:
        """Raise `ProviderUnavailableError` where there is no shm_open."""
        return super().__new__(cls, "posix", lib.SHMP_FD_IDS if fd_ids else 0)

    def new_shmem_with_id(
        self,
        size: int,
        name: str,
        *,
        reserve: bool = False,
        mode: int | None = None,
        exist_ok: bool = False,
        keep: bool = False,
        linger: bool = False,
    ) -> ShMem:
        """Create a segment under a name: ``/`` and up to 18 characters without another ``/``.

        Names that begin with ``/shmp_`` are the library's own. Others see it with its size, mode and memory or
        not at all. The owner's `close` unlinks it; when the owner is killed, it stays until `unlink`, or until
        somebody says ``exist_ok=True``.

        Args:
            size: bytes.
            name: the name, which is the id.
            reserve: as `new_shmem`.
            mode: who may open it, such as ``0o660``, whatever the umask; others say ``any_user=True``.
            exist_ok: attach to it if it is there, whoever is first: `ShMem.is_owner` tells who made it. What a
                killed owner left and nobody uses is made anew, unless it is kept.
            keep: it outlives its creator, however that ends, until `unlink`.
            linger: as `new_shmem`.

        Raises:
            FileExistsError: the name is taken.
            InvalidIdError: it cannot be a name, or ``exist_ok`` finds something else there.
            SizeMismatchError: ``exist_ok`` finds it with another size.
            PermissionError: ``exist_ok`` finds another user's.
            ValueError: a size below 1, or a mode beyond ``0o666``.

        """
        return self._new_named(size, name, reserve=reserve, mode=mode, exist_ok=exist_ok, keep=keep, linger=linger)

    def unlink(self, name: str) -> None:
        """Remove a name of any length, whoever made it, also while it is used: who is attached keeps the memory.

        Raises:
            FileNotFoundError: there is no such name.
            InvalidIdError: it cannot be one, or is no shared memory.
            PermissionError: it is another user's.

        """
        self._unlink(name)


class UnixShMemProvider(ShMemProvider):
    """System V shmget and shmat: what AFL++ targets and the Rust crate's default on Linux take."""

    __slots__ = ()

    def __new__(cls) -> Self:
        """Raise `ProviderUnavailableError` on a kernel without System V IPC."""
        return super().__new__(cls, "sysv")


class Win32ShMemProvider(ShMemProvider):
    """Windows' CreateFileMapping and MapViewOfFile, in the session's namespace, for this user only.

    A segment lives as long as any process has it open. All of its memory is promised at creation.
    """

    __slots__ = ()

    def __new__(cls) -> Self:
        """Raise `ProviderUnavailableError` on other systems than Windows."""
        return super().__new__(cls, "win32")


class AshmemShMemProvider(ShMemProvider):
    """Android's shared memory: ``ASharedMemory_create``, or the driver of /dev/ashmem, which some Linux have as well.

    The size is fixed, and memory for all of it is counted, at creation. Whose a segment is cannot be told, so
    ``any_user`` says nothing here. ``new_shmem(mode=0o444)`` makes one that nobody else can ever map for writing; no
    other mode is possible.

    Args:
        fd_ids: ids are bare descriptor numbers, as the Rust crate's. Others work in processes that have the
            descriptor under its number and, from Linux 5.6 on, in any of the same user that may ptrace this one.

    """

    __slots__ = ()

    def __new__(cls, *, fd_ids: bool = False) -> Self:
        """Raise `ProviderUnavailableError` where there is no such driver."""
        return super().__new__(cls, "ashmem", lib.SHMP_FD_IDS if fd_ids else 0)


class NopShMemProvider(ShMemProvider):
    """Private memory, for tests and single-process use: attaching gives a fresh buffer."""

    __slots__ = ()

    def __new__(cls) -> Self:
        """Never fails."""
        return super().__new__(cls, "nop")


class ServedShMemProvider(ShMemProvider):
    """The client of a service (`ShMemService`), which makes segments and hands out their descriptors.

    An id works in every process that asks the same service, as long as any client has the segment, and the service's
    ``linger`` after that. What is mapped stays valid whatever becomes of the service; a lost one is a `ServiceError` at
    the next call, and one that runs in its place is found by itself.

    Args:
        inner: maps the descriptors that come: memfd or posix; None is the best that has descriptors.
        address: the service's: a path, or ``@name`` (Linux); None is what ``SHMEM_SERVICE`` says in the environment,
            and without it this user's own.
        timeout: seconds that a call waits for the service.

    """

    __slots__ = ("_arguments",)

    _arguments: tuple[ShMemProvider | None, str | None, float]

    def __new__(cls, inner: ShMemProvider | None = None, address: str | None = None, *, timeout: float = 5.0) -> Self:
        """Raise `ServiceError` when no service answers there."""
        limit = milliseconds("ServedShMemProvider", "timeout", timeout)
        self = super().__new__(cls, "served", 0, inner, address, limit)
        self._arguments = inner, address, timeout
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen_served, (type(self), *self._arguments)


class RcShMemProvider(ShMemProvider):
    """Any provider, counted and made ready for fork: a child holds what it inherits before its parent goes on.

    Args:
        inner: the provider; None is what `StdShMemProvider` chooses.

    """

    __slots__ = ("_inner",)

    _inner: ShMemProvider | None

    def __new__(cls, inner: ShMemProvider | None = None) -> Self:
        """Raise `ProviderUnavailableError` on Windows, which has no fork."""
        self = super().__new__(cls, "rc", 0, inner)
        self._inner = inner
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._inner,)


def _reopen_std(cls: type[StdShMemProvider], served: bool) -> StdShMemProvider:
    return cls(served=True) if served else cls()


def _reopen_served(
    cls: type[ServedShMemProvider], inner: ShMemProvider | None, address: str | None, timeout: float
) -> ServedShMemProvider:
    return cls(inner, address, timeout=timeout)


_CLASSES: dict[str, type[ShMemProvider]] = {
    "std": StdShMemProvider,
    "memfd": MemfdShMemProvider,
    "posix": MmapShMemProvider,
    "sysv": UnixShMemProvider,
    "win32": Win32ShMemProvider,
    "ashmem": AshmemShMemProvider,
    "nop": NopShMemProvider,
    "served": ServedShMemProvider,
    "rc": RcShMemProvider,
}

WRAPPERS = ("served", "rc")


def open_provider(name: str, **options: Any) -> ShMemProvider:
    """Open a provider by its name.

    One of ``std``, ``memfd``, ``posix``, ``sysv``, ``win32``, ``ashmem``, ``nop``, ``served``, ``rc``.

    Args:
        name: the provider, or ``outer(inner)`` as `ShMemProvider.name` has it, such as ``rc(served(memfd))``.
        **options: its class's arguments, such as ``fd_ids=True`` or ``address=...``; those of an ``rc(...)``, which has
            none, are the inner one's.

    Raises:
        ValueError: no provider is called that.
        ProviderUnavailableError: this platform lacks it.

    """
    if name not in _CLASSES:
        outer, _, inner = name.partition("(") if isinstance(name, str) else ("", "", "")
        if outer == "rc" and inner.endswith(")"):
            return RcShMemProvider(open_provider(inner[:-1], **options))
        if outer == "served" and inner.endswith(")"):
            return ServedShMemProvider(open_with_descriptors(inner[:-1]), **options)
        return ShMemProvider(name)
    return _CLASSES[name](**options)


def open_with_descriptors(name: str) -> ShMemProvider:
    """Open one for segments that come as descriptors."""
    return open_provider(name, fd_ids=True) if name in ("memfd", "posix", "ashmem") else open_provider(name)


def probe_providers() -> Iterator[tuple[str, Exception | None]]:
    """Give each provider of this platform, best first, and why it does not work here, if so."""
    name, error = ffi.new("const char **"), ffi.new("shmp_error *")
    index = 0
    while (result := lib.shmp_available(index, name, error)) != -lib.SHMP_EINVAL:
        call, message = ffi.string(error.call).decode() if result else "", ffi.string(error.message).decode()
        reason = error_from(error.code, error.os_error, call, message) if result else None
        yield ffi.string(name[0]).decode(), reason
        index += 1


def available_providers() -> list[str]:
    """Give the names of the providers that work here, best first.

    ``served`` is one of them while a service answers. ``rc``, which wraps any other one, is not told.
    """
    return [name for name, reason in probe_providers() if reason is None and name != "rc"]
