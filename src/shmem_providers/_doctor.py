"""What works on this machine, found by doing it: the data behind ``shmem-providers doctor``."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TypedDict

from shmem_providers._errors import ProviderUnavailableError
from shmem_providers._providers import ShMemProvider, StdShMemProvider, open_provider, probe_providers


class ProviderReport(TypedDict, total=False):
    """One provider. What follows `problem` is there when it works."""

    name: str
    works: bool
    problem: str
    id: str
    create_us: float
    attach_us: float
    largest_bytes: int
    segments: int
    advice: str


class Report(TypedDict):
    """The whole report; `std` is None when nothing works, `no_service` when a service answers."""

    version: str
    platform: str
    std: str | None
    no_service: str | None
    providers: list[ProviderReport]


SIZE = 4096
ASK, ANSWER = b"written by the first process", b"written by a second process"
SMALL = 256 * 2**20  # the Rust crate's usual page, and more than a container's /dev/shm has by default

_SECOND_PROCESS = """
import sys
from shmem_providers import open_provider
name, id, size, ask, answer = sys.argv[1:]
with open_provider(name).shmem_from_id_and_size(id, int(size)) as shm:
    assert shm[: len(ask)] == ask.encode(), bytes(shm[: len(ask)])
    shm[-len(answer) :] = answer.encode()
"""


def _exchange(provider: ShMemProvider) -> str:
    """Have a second, unrelated process change a segment; give the segment's id."""
    with provider.new_shmem(SIZE) as shm:
        shm[: len(ASK)] = ASK
        id = shm.id.as_str()
        command = [
            sys.executable,
            "-P",
            "-c",
            _SECOND_PROCESS,
            provider.name,
            id,
            str(SIZE),
            ASK.decode(),
            ANSWER.decode(),
        ]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        if second.returncode:
            raise RuntimeError(f"the second process failed: {second.stderr.strip().splitlines()[-1]}")
        if shm[-len(ANSWER) :] != ANSWER:
            raise RuntimeError("what the second process wrote did not arrive")
    return id


def _median_us(call: Callable[[], None], times: int = 300) -> float:
    """Give the median duration of a call in microseconds."""
    durations = []
    for _ in range(times):
        start = time.perf_counter_ns()
        call()
        durations.append(time.perf_counter_ns() - start)
    return round(statistics.median(durations) / 1000, 1)


def _examine(name: str) -> ProviderReport:
    provider = open_provider(name)
    report: ProviderReport = {"name": name, "works": True}
    with provider.new_shmem(SIZE) as shm:
        id, size = shm.description.id, shm.size
        report["create_us"] = _median_us(lambda: provider.new_shmem(SIZE).close())
        report["attach_us"] = _median_us(lambda: provider.shmem_from_id_and_size(id, size).close())
    report["id"] = "" if name == "nop" else _exchange(provider)
    report["largest_bytes"], report["segments"], report["advice"] = provider._limits()
    if report["largest_bytes"] < SMALL:
        report["problem"] = f"room for {report['largest_bytes']} bytes only: {report['advice']}"
    return report


def examine_machine(version: str) -> Report:
    """Try every provider of this machine; nothing is left behind."""
    providers: list[ProviderReport] = []
    probed = dict(probe_providers())
    no_service = probed.get("served")
    for name, reason in probed.items():
        if name == "rc" or (name == "served" and reason):  # what wraps the best one; what runs when it is wanted
            continue
        if name == "ashmem" and isinstance(reason, ProviderUnavailableError) and sys.platform == "linux":
            continue  # it is of Android, and most other machines miss nothing without
        try:
            if reason:
                raise reason
            providers.append(_examine(name))
        except Exception as problem:
            providers.append({"name": name, "works": False, "problem": f"{type(problem).__name__}: {problem}"})
    try:
        std = StdShMemProvider().name
    except (OSError, ValueError):
        std = None
    return {
        "version": version,
        "platform": sys.platform,
        "std": std,
        "no_service": None if "served" in probed and not no_service else str(no_service or "not on this platform"),
        "providers": providers,
    }
