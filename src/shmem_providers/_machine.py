"""What this library's segments on this machine are: the data behind ``list``, ``reap`` and ``inspect``."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypedDict

from shmem_providers._binding import lib
from shmem_providers._errors import ProviderUnavailableError
from shmem_providers._providers import WRAPPERS, ShMemProvider, StdShMemProvider, probe_providers
from shmem_providers._shmem import ShMem

if TYPE_CHECKING:
    from shmem_providers._binding import Listed


class Segment(TypedDict):
    """One segment. `holder_pid` is a process that holds it, 0 when none can be seen; `command` is its.

    `user` is a number, `age` seconds (-1: unknown). `ours` is False where another program may have made it.
    """

    provider: str
    id: str
    size: int
    holder_pid: int
    command: str
    user: int
    age: int
    alive: bool
    kept: bool
    ours: bool


class Findings(TypedDict):
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
CHOSEN_NAMES = "posix: names that programs chose are shown where there is /proc only"
NOT_KNOWN_WHOSE = "System V segments that are marked for removal may be other programs', too"


class HeldError(Exception):
    """A name was not removed, as it is used."""


def reason_of(problem: OSError | ValueError) -> str:
    """Give what went wrong without the C function that found it."""
    text = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return text.partition(": ")[2] or text


def _segments(provider: str, found: Iterable[Listed]) -> list[Segment]:
    return [
        {
            "provider": provider,
            "id": id,
            "size": size,
            "holder_pid": holder,
            "command": command,
            "user": user,
            "age": age,
            "alive": alive,
            "kept": kept,
            "ours": ours,
        }
        for id, size, holder, user, alive, command, age, kept, ours in found
    ]


def _look(look: Callable[[ShMemProvider], list[Listed]]) -> Findings:
    """Have a look with each provider of this platform; posix without reaping, so that leftovers are still to be seen.

    Nothing can be left over or hidden of nop, and of what this platform lacks; those that wrap have what the others
    have.
    """
    findings: Findings = {"segments": [], "unseen": []}
    for name, reason in probe_providers():
        if name in ("nop", *WRAPPERS) or isinstance(reason, ProviderUnavailableError):
            continue
        try:
            findings["segments"] += _segments(name, look(ShMemProvider(name, lib.SHMP_KEEP_LEFTOVERS)))
        except OSError as problem:
            findings["unseen"].append(f"{name}: {reason_of(problem)}")
    return findings


def list_segments() -> Findings:
    """Find the segments that any process made with this library."""
    listing = _look(lambda provider: provider._list())
    if hasattr(os, "geteuid") and os.geteuid() != 0:
        listing["unseen"].append(OTHER_USERS)
    if sys.platform == "linux" and not os.path.exists("/proc/self"):
        listing["unseen"].append(CHOSEN_NAMES)
    if not all(segment["ours"] for segment in listing["segments"]):
        listing["unseen"].append(NOT_KNOWN_WHOSE)
    return listing


def reap_segments(*, dry_run: bool) -> Findings:
    """Remove what killed processes left over, or find what would be removed."""
    return _look(lambda provider: provider._reap(dry_run))


def command_of(pid: int) -> str:
    """Give the name of a program that runs, or nothing. Programs choose it: no terminal is to obey it."""
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            return "".join(letter if letter.isprintable() else "?" for letter in file.read().rstrip("\n"))
    except OSError:
        return ""


def shown_holder(pid: int, command: str) -> str:
    """Give a process as it is shown."""
    if not pid:
        return "-"
    return f"{pid} ({command})" if command else str(pid)


def _users_of(shm: ShMem) -> list[int] | None:
    """Give the other processes that have it mapped; None: this system does not tell."""
    try:
        return [pid for pid in shm._users() if pid != os.getpid()]
    except OSError:
        return None


def _holders_of(name: str, provider: ShMemProvider) -> str:
    """Tell who holds a name, as a sentence; "" is nobody."""
    listed: list[Segment] = []
    with contextlib.suppress(OSError):  # it is looked at before this process attaches, which holds it too
        listed = [segment for segment in _segments("posix", provider._list()) if segment["id"] == name]
    with provider.attach(name, read_only=True, any_user=True) as shm:
        users = _users_of(shm)
    held = [segment for segment in listed if segment["alive"]]
    if users:
        return "is mapped by " + ", ".join(shown_holder(pid, command_of(pid)) for pid in users)
    if held:
        who = shown_holder(held[0]["holder_pid"], held[0]["command"])
        return "is held by a process that cannot be seen" if who == "-" else f"is held by {who}"
    return "" if listed or users is not None else "may be used: this system does not tell by whom"


def remove_name(name: str, *, force: bool, dry_run: bool) -> str:
    """Remove a posix name and tell who holds it.

    Raises:
        HeldError: somebody does, or that cannot be told, and `force` is not given.
        OSError: it is gone, or another user's.
        ValueError: it is no name of shared memory.

    """
    provider = ShMemProvider("posix", lib.SHMP_KEEP_LEFTOVERS)
    try:
        holders = _holders_of(name, provider)
    except ValueError:  # such as one without a size
        if not force:
            raise
        holders = ""
    if holders and not force:
        raise HeldError(f"{name} {holders}: --force removes it all the same")
    if not dry_run:
        provider._unlink(name)
    return holders


def _user_of(shm: ShMem) -> int | None:
    """Tell whose a segment is."""
    if shm.provider_name in ("memfd", "posix"):
        return os.fstat(shm.fileno()).st_uid
    with contextlib.suppress(OSError), open("/proc/sysvipc/shm") as segments:
        heading = next(segments).split()
        for line in segments:
            row = dict(zip(heading, line.split(), strict=True))
            if shm.provider_name == "sysv" and row["shmid"] == shm.id.as_str():
                return int(row["cuid"])  # who made it can give it to anybody
    return None


def inspect_segment(id: str, *, bytes_shown: int) -> Inspection:
    """Attach to a segment read-only and look."""
    with StdShMemProvider().attach(id, read_only=True, any_user=True) as shm:
        return {
            "provider": shm.provider_name,
            "id": id,
            "size": shm.size,
            "user": _user_of(shm),
            "first_bytes": shm[:bytes_shown].hex(" "),
            "mapped_by": _users_of(shm),
        }
