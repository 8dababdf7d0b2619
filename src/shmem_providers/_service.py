"""Services: who creates segments for clients, and hands out their descriptors. ``docs/service.md``."""

from __future__ import annotations

import os
from _thread import allocate_lock
from _warnings import warn

from shmem_providers import _binding
from shmem_providers._binding import lib
from shmem_providers._providers import ShMemProvider, milliseconds

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

LIBAFL_SERVICE_ADDRESS = "@libafl_unix_shmem_server"  # the Rust crate's; on macOS "./libafl_unix_shmem_server"

VARIABLE = "SHMEM_SERVICE"


class _Announced:
    """What stands in the environment, for processes that are started from now on: the youngest service's address."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.before: str | None = None

    def add(self, address: str) -> None:
        if not self.addresses:
            self.before = os.environ.get(VARIABLE)
        self.addresses.append(address)
        os.environ[VARIABLE] = address

    def remove(self, address: str) -> None:
        self.addresses.remove(address)
        if os.environ.get(VARIABLE) != address:  # somebody's else, or a younger service's
            return
        if back := self.addresses[-1] if self.addresses else self.before:
            os.environ[VARIABLE] = back
        else:
            del os.environ[VARIABLE]


_announced = _Announced()
_lock = allocate_lock()  # whoever starts or stops a service
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)


def _number(name: str, number: int, limit: int) -> int:
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"ShMemService: {name} {number!r}: an int")
    if not 0 <= number < limit:
        raise ValueError(f"ShMemService: {name} {number}: from 0, the default, to {limit - 1}")
    return number


class ServiceStats:
    """What a service has now, and what it did since it was started."""

    __slots__ = ("accepted", "bytes", "clients", "refused", "requests", "segments")

    clients: int  # now
    segments: int
    bytes: int
    accepted: int  # connections since it was started
    requests: int
    refused: int  # those that failed

    def __init__(self, clients: int, segments: int, bytes: int, accepted: int, requests: int, refused: int) -> None:
        self.clients, self.segments, self.bytes = clients, segments, bytes
        self.accepted, self.requests, self.refused = accepted, requests, refused

    def __repr__(self) -> str:
        return (
            f"ServiceStats(clients={self.clients}, segments={self.segments}, bytes={self.bytes}, "
            f"accepted={self.accepted}, requests={self.requests}, refused={self.refused})"
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ServiceStats):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in type(self).__slots__)

    __hash__ = None  # type: ignore[assignment]


class ShMemService:
    """Creates segments for clients, `ServedShMemProvider` and those of the Rust crate, in a thread of C.

    Use it in a ``with`` block, or `start` and `stop` it. It keeps descriptors and no mappings, and drops what a client
    held when that one ends. While it runs, ``SHMEM_SERVICE`` in ``os.environ`` is its address, so that processes that
    are started find it; then it is what it was before.

    Args:
        inner: makes the segments: memfd, posix or ashmem; None is the best that has descriptors.
        address: a path, or ``@name`` for an abstract socket (Linux); None is this user's own.
        linger: seconds that a segment stays after its last client let go of it, or was killed.
        idle: seconds without any client after which it ends by itself; 0 is never.
        any_user: serve all users, and not this one and root alone.
        fork_timeout: seconds that it keeps what a client that forks announced for its child; 0 is the default.
        max_clients: connections at once; 0 is the default, here and for the others.
        max_frame: bytes of a request.
        max_segments: references that one client may hold.
        max_bytes: in all segments that one client made.

    """

    def __init__(
        self,
        inner: ShMemProvider | None = None,
        address: str | None = None,
        *,
        linger: float = 0.0,
        idle: float = 0.0,
        any_user: bool = False,
        fork_timeout: float = 0.0,
        max_clients: int = 0,
        max_frame: int = 0,
        max_segments: int = 0,
        max_bytes: int = 0,
    ) -> None:
        if inner is not None and not isinstance(inner, ShMemProvider):
            raise TypeError(f"ShMemService: inner {inner!r}: a ShMemProvider")
        if address is not None and not isinstance(address, str):
            raise TypeError(f"ShMemService: address {address!r}: a str")
        self._running: _binding.Service | None = None
        self._pid = 0
        self._inner = inner
        self._address = address
        self._options = {
            "flags": lib.SHMP_ANY_USER if any_user else 0,
            "linger_ms": milliseconds("ShMemService", "linger", linger),
            "idle_ms": milliseconds("ShMemService", "idle", idle),
            "fork_timeout_ms": milliseconds("ShMemService", "fork_timeout", fork_timeout),
            "max_clients": _number("max_clients", max_clients, 2**32),
            "max_frame": _number("max_frame", max_frame, 2**32),
            "max_segments": _number("max_segments", max_segments, 2**32),
            "max_bytes": _number("max_bytes", max_bytes, 2**64),
        }

    @property
    def address(self) -> str | None:
        """Where it runs, or shall run."""
        return self._running.address if self._running else self._address

    @property
    def is_running(self) -> bool:
        """Whether it was started in this process, and has not ended."""
        return self._running is not None and self._pid == os.getpid() and not self._running.wait(0)

    def start(self) -> Self:
        """Start it; one that runs is left alone.

        Raises:
            ServiceError: a living service has that address, which clients then use.
            io.UnsupportedOperation: `inner` has no descriptors.
            OSError: the address cannot be had.

        """
        with _lock:
            if not self.is_running:
                self._end()
                self._running = _binding.Service(self._inner, self._address, **self._options)
                self._pid = os.getpid()
                _announced.add(self._running.address)
        return self

    def stop(self) -> None:
        """Stop it, if it runs. Its clients keep what they have mapped.

        In a forked child this lets go of the child's copies, and the service runs on.
        """
        with _lock:
            self._end()

    def _end(self) -> None:
        running, self._running = self._running, None
        if not running:
            return
        if self._pid == os.getpid():
            _announced.remove(running.address)
        running.stop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it has ended by itself: idle, or told to by a client of this process. True if it has.

        Args:
            timeout: seconds; None is for ever.

        """
        running = self._running
        return not running or running.wait(-1 if timeout is None else milliseconds("wait", "timeout", timeout))

    def stats(self) -> ServiceStats:
        """Give what it has and has done.

        Raises:
            ValueError: it does not run.

        """
        running = self._running
        if not running or self._pid != os.getpid():
            raise ValueError("stats: this service does not run: start() it")
        return ServiceStats(*running.stats())

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__} {'at' if self.is_running else 'not running, for'} {self.address or 'this user'}>"
        )

    def __del__(self) -> None:
        if getattr(self, "_running", None) and self.is_running:
            text = f"unstopped {self!r}"
            self._end()
            warn(text, ResourceWarning, 1, self)


class StdShMemService(ShMemService):
    """The service that `StdShMemProvider` needs, where it needs one: on macOS and Android. Elsewhere it does nothing.

    A provider that finds none starts one by itself: this is for who wants it in this process.
    """

    def start(self) -> Self:
        """Start it, where `StdShMemProvider` is served.

        Raises:
            ServiceError: a living service has that address, which clients then use.

        """
        return super().start() if _binding.std_is_served else self


class DummyShMemService:
    """A service where none is needed: it does nothing."""

    address: None = None

    def start(self) -> Self:
        """Do nothing."""
        return self

    def stop(self) -> None:
        """Do nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass
