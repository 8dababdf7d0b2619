"""What this library's segments on this machine are: the data behind ``list``, ``reap`` and ``inspect``."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import TypedDict

from shmem_providers._binding import lib
from shmem_providers._errors import ProviderUnavailableError
from shmem_providers._providers import ShMemProvider, StdShMemProvider, probe_providers
from shmem_providers._shmem import ShMem


class Segment(TypedDict):
    """One segment. `owner_pid` is a process that holds it, 0 when none can be seen; `user` a number."""

    provider: str
    id: str
    size: int
    owner_pid: int
    user: int
    alive: bool


class Listing(TypedDict):
    """Segments, and what could not be looked at, with the reason."""

    segments: list[Segment]
    unseen: list[str]


class Inspection(TypedDict):
    """One segment from close by. `first_bytes` is hexadecimal; `user`, `mapped_by`: None where the system is silent."""

    provider: str
    id: str
    size: int
    user: int | None
    first_bytes: str
    mapped_by: list[int] | None


OTHER_USERS = "segments and processes of other users are shown to root only"


def _segments(provider: str, found: list[tuple[str, int, int, int, bool]]) -> list[Segment]:
    return [
        {"provider": provider, "id": id, "size": size, "owner_pid": owner, "user": user, "alive": alive}
        for id, size, owner, user, alive in found
    ]


def _providers() -> Iterator[ShMemProvider]:
    """Open each provider of this platform; posix without reaping, so that leftovers are still to be seen."""
    for name, reason in probe_providers():
        if not isinstance(reason, ProviderUnavailableError):
            yield ShMemProvider(name, lib.SHMP_KEEP_LEFTOVERS)


def list_segments() -> Listing:
    """Find the segments that any process made with this library."""
    listing: Listing = {"segments": [], "unseen": [OTHER_USERS] if hasattr(os, "geteuid") else []}
    for provider in _providers():
        try:
            listing["segments"] += _segments(provider.name, provider._list())
            if provider.name == "posix":
                listing["unseen"].append("posix segments under names that a program chose")
        except OSError as reason:
            listing["unseen"].append(str(reason))
    return listing


def reap_segments(*, dry_run: bool) -> list[Segment]:
    """Remove what killed processes left over, or find what would be removed."""
    return [segment for provider in _providers() for segment in _segments(provider.name, provider._reap(dry_run))]


def _user_of(shm: ShMem) -> int | None:
    """Tell whose a segment is."""
    if shm.provider_name in ("memfd", "posix"):
        return os.fstat(shm.fileno()).st_uid
    with contextlib.suppress(FileNotFoundError), open("/proc/sysvipc/shm") as segments:
        heading = next(segments).split()
        for line in segments:
            row = dict(zip(heading, line.split(), strict=True))
            if shm.provider_name == "sysv" and row["shmid"] == shm.id.as_str():
                return int(row["cuid"])  # who made it can give it to anybody
    return None


def inspect_segment(id: str, *, bytes_shown: int) -> Inspection:
    """Attach to a segment read-only and look."""
    with StdShMemProvider().attach(id, read_only=True, any_user=True) as shm:
        mapped_by: list[int] | None
        try:
            mapped_by = [pid for pid in shm._users() if pid != os.getpid()]
        except io.UnsupportedOperation:
            mapped_by = None
        return {
            "provider": shm.provider_name,
            "id": id,
            "size": shm.size,
            "user": _user_of(shm),
            "first_bytes": shm[:bytes_shown].hex(" "),
            "mapped_by": mapped_by,
        }
