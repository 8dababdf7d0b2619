"""The command line and the examples, run as a user runs them. list, reap and inspect: tests/reliability/."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from shmem_providers import available_providers

ROOT = Path(__file__).parent.parent


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


def shmem_providers(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-W", "error", "-m", "shmem_providers", *arguments, **options)


def test_doctor_tries_every_provider() -> None:
    result = shmem_providers("doctor", "--json")
    assert (result.returncode, result.stderr) == (0, "")
    report = json.loads(result.stdout)
    assert [provider["name"] for provider in report["providers"]] == available_providers()
    assert report["std"] == available_providers()[0]
    for provider in report["providers"]:
        assert provider["works"]
        assert bool(provider["id"]) == (provider["name"] != "nop")
        assert provider["create_us"] > 0
        assert provider["attach_us"] > 0
        assert provider["largest_bytes"] > 0


def test_doctor_shows_a_table_of_80_columns() -> None:
    result = shmem_providers("doctor", env=os.environ | {"COLUMNS": "80"})
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "…" not in result.stdout  # nothing is cut
    for name in available_providers():
        assert any(re.match(rf" {name} +(shared|private) ", line) for line in lines)


@pytest.mark.needs("linux")
@pytest.mark.parametrize(
    ("where", "status", "says"),
    [
        (["--mount", "sh", "-c", 'mount -t tmpfs -o size=8m shm /dev/shm && exec "$@"'], 0, r"posix: .*--shm-size"),
        (["--mount", "sh", "-c", 'mount -t tmpfs -o ro shm /dev/shm && exec "$@"'], 1, r"posix: .*Read-only"),
        (["--ipc", "sh", "-c", 'sysctl -q kernel.shmmax=100 && exec "$@"'], 1, r"sysv: .*kernel\.shmmax"),
    ],
)
def test_doctor_says_what_is_missing(
    where: list[str], status: int, says: str, missing: Callable[[str], NoReturn]
) -> None:
    if os.getuid():
        missing("needs root, to change /dev/shm and kernel.shmmax in namespaces of its own")
    result = run("unshare", *where, "_", sys.executable, "-m", "shmem_providers", "doctor")
    assert result.returncode == status, result.stderr
    assert re.search(says, result.stdout)


def test_inspect_refuses() -> None:
    result = shmem_providers("inspect", "/there-is-none")
    assert result.returncode == 1
    assert "there-is-none" in result.stdout


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from shmem_providers.__main__ import main; main()"
    result = run(sys.executable, "-c", code)
    assert result.returncode == 1
    assert result.stderr == "shmem-providers: needs typer: pip install 'shmem_providers[cli]'\n"
