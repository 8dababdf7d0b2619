"""LibAFL on this library, by examples/libafl: as fast as on its own provider, and nothing stays of what is killed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

pytestmark = [
    pytest.mark.needs("linux", "memfd", "posix", "sysv"),
    pytest.mark.skipif("SHMP_LIBAFL" not in os.environ, reason="takes minutes: set SHMP_LIBAFL=1, or .ci/run libafl"),
]

EXAMPLE = Path(__file__).parents[2] / "examples/libafl"
NEEDED = (1, 93, 1)
ROW = re.compile(r"^(\w+) +([\d.]+) +([\d.]+)x +(\d+) +([\d.]+)x +(\d+) +(\d+), (\d+) MiB$", re.MULTILINE)


def version(cargo: str) -> tuple[int, ...]:
    said = subprocess.run([cargo, "--version"], capture_output=True, text=True, check=True).stdout
    return tuple(map(int, re.findall(r"\d+", said)[:3]))


@pytest.fixture(scope="module")
def environment(missing: Callable[[str], NoReturn]) -> dict[str, str]:
    """Give the environment in which the example is built."""
    cargo = shutil.which("cargo")
    if not cargo or version(cargo) < NEEDED:  # also in CI: no distribution has one that is new enough
        pytest.skip("LibAFL 0.16.1 needs Rust 1.93.1 or later: https://rustup.rs, or rustup update")
    if not shutil.which("unshare"):
        missing("needs unshare: util-linux")
    libs = [sys.executable, "-m", "shmem_providers", "--libs"]
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    environment = os.environ | {
        "CARGO_TARGET_DIR": str(Path(cache, "shmem-providers", "libafl")),
        "SHMEM_PROVIDERS_LIBS": subprocess.run(libs, capture_output=True, text=True, check=True).stdout.strip(),
    }
    fetch = [cargo, "fetch", "--locked", "--quiet"]
    fetched = subprocess.run(fetch, cwd=EXAMPLE, env=environment, capture_output=True, text=True)
    if fetched.returncode:
        missing(f"cargo can't fetch LibAFL: {fetched.stderr}")
    return environment


def test_compared_with_its_own_provider(environment: dict[str, str]) -> None:
    result = subprocess.run([EXAMPLE / "run.sh"], env=environment, capture_output=True, text=True, timeout=1500)
    print(result.stdout, result.stderr, sep="\n")
    assert result.returncode == 0, result.stderr
    rows = {row[0]: [float(field) for field in row[1:]] for row in ROW.findall(result.stdout)}
    assert list(rows) == ["posix", "sysv", "std", "seed"]
    for name, (starts, _, messages, _, lost, left, _) in rows.items():
        assert starts > 0, name
        assert messages > 0, name
        assert lost == 0 or name == "std", "who is killed takes the broker along"
        assert left == 0 or name in ("sysv", "seed"), "these leave segments: for a minute, for good"
    assert rows["seed"][5] > 0, "LibAFL's own leaves some: else nobody looked"
    assert re.search(
        r"\b[1-9]\d* segments and [1-9]\d* names linger; a minute later 0 and 0$", result.stdout, re.MULTILINE
    )


def test_the_manual_s_numbers_are_the_examples() -> None:
    """The example spells out what C would include."""
    header = (EXAMPLE.parents[1] / "csrc/include/shmem_providers.h").read_text()
    source = (EXAMPLE / "src/provider.rs").read_text()
    for name in ("ABI_VERSION", "LINGER"):
        (theirs,) = re.findall(rf"const {name}: c_uint = (\w+);", source)
        (ours,) = re.findall(rf"#define SHMP_{name} (\w+?)u?\b", header)
        assert int(theirs, 0) == int(ours, 0)
    declared = set(re.findall(r"pub fn (shmp_\w+)\(", source))
    assert declared <= set(shlex.split((EXAMPLE.parents[1] / "csrc/exports.txt").read_text()))
