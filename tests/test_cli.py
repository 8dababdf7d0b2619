"""The command line and the examples, run as a user runs them. list, reap and inspect: tests/reliability/."""

from __future__ import annotations

import getpass
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from shmem_providers import MmapShMemProvider, __version__, available_providers, open_provider

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
    assert report["no_service"]
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
    assert "there-is-none" in result.stderr
    assert "shm_open" not in result.stderr
    assert result.stdout == ""


def test_version_and_help() -> None:
    result = shmem_providers("--version")
    assert (result.returncode, result.stdout) == (0, f"shmem_providers {__version__}\n")
    for arguments in ([], ["doctor"], ["list"], ["reap"], ["inspect"]):
        short, long = shmem_providers(*arguments, "-h"), shmem_providers(*arguments, "--help")
        assert (short.returncode, short.stdout, short.stderr) == (0, long.stdout, "")
        assert "Usage" in short.stdout


@pytest.mark.needs("posix", "linux")
def test_list_shows_who_holds_what() -> None:
    """Notes are on stderr, and only those that apply."""
    posix, sysv = MmapShMemProvider(), open_provider("sysv")
    command = Path("/proc/self/comm").read_text().strip()
    name = f"/shmptest_{os.getpid()}"
    with posix.new_shmem_with_id(5000, name, keep=True) as kept, posix.new_shmem(4096) as shm:
        result = shmem_providers("list")
        rows = {line.split()[1]: re.split(r"  +", line.strip()) for line in result.stdout.splitlines() if "/" in line}
        user, holder = getpass.getuser(), f"{os.getpid()} ({command})"
        assert rows[name][:5] == ["posix", name, user, holder, "5,000"]
        assert rows[name][-1] == "alive, kept"
        assert rows[shm.id][-1] == "alive"
        assert re.fullmatch(r"\d+ s", rows[name][5])
        assert ("other users" in result.stderr) == (os.getuid() != 0)
        assert "shm_" not in result.stderr
        assert "shmp_" not in result.stderr
    assert kept.closed
    try:
        assert re.search(rf"{name} .* - .* kept *$", shmem_providers("list").stdout, re.MULTILINE)
    finally:
        posix.unlink(name)
    with sysv.new_shmem(4096) as shm:
        result = shmem_providers("list")
        assert re.search(rf"sysv +{shm.id} .*not known whose", result.stdout)
        assert "may be other programs'" in result.stderr


@pytest.mark.needs("posix", "linux")
def test_reap_removes_a_name_that_nobody_uses() -> None:
    provider, name = MmapShMemProvider(), f"/shmptest_{os.getpid()}"
    path = Path("/dev/shm" + name)
    with provider.new_shmem_with_id(4096, name):
        result = shmem_providers("reap", name)
        assert (result.returncode, result.stdout, path.exists()) == (1, "", True)
        assert re.search(rf"{name} is mapped by {os.getpid()} \(.+\): --force", result.stderr)
        forced = shmem_providers("reap", name, "--force", "--dry-run")
        assert (forced.returncode, path.exists()) == (0, True)
        assert f"Would remove {name}, which is mapped by {os.getpid()}" in forced.stdout
        assert shmem_providers("reap", name, "--force").returncode == 0
        assert not path.exists()
    provider.new_shmem_with_id(4096, name, keep=True).close()
    result = shmem_providers("reap", name)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"Removed {name}, which nobody holds.\n", "")
    assert not path.exists()
    for wrong, says in (
        (name, "No such"),
        ("/", "begin with /"),
        ("12", "ipcrm -m 12"),
        ("x", "begin with /"),
    ):
        result = shmem_providers("reap", wrong)
        assert (result.returncode, result.stdout) == (1, "")
        assert re.search(says, result.stderr), result.stderr


@pytest.mark.needs("posix", "linux")
def test_reap_removes_others_names_of_any_length() -> None:
    name = f"/psm_{os.getpid()}_{'n' * 200}"
    path = Path("/dev/shm" + name)
    path.write_bytes(b"theirs")
    assert shmem_providers("reap", name).returncode == 0
    assert not path.exists()


@pytest.mark.needs("unix")
@pytest.mark.parametrize("closed", ["", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize("command", ["doctor", "list", "reap"])
def test_closed_stdio(command: str, closed: str) -> None:
    result = run("sh", "-c", f'exec "$@" {closed}', "_", sys.executable, "-m", "shmem_providers", command)
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
    assert bool(result.stdout) == (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.needs("linux")
@pytest.mark.parametrize("mount", ["umount -l /proc", "mount -t proc -o subset=pid proc /proc"])
def test_a_machine_with_less_of_proc(mount: str, missing: Callable[[str], NoReturn]) -> None:
    if os.getuid():
        missing("needs root, to mount in a namespace of its own")
    program = (
        f"mount --make-rprivate / && {mount} && mount -t tmpfs -o size=64m shm /dev/shm && shift 0 || exit 77\n"
        f'"$1" -c "from shmem_providers import *; MmapShMemProvider().new_shmem_with_id(5, \'/kept\', keep=True)"\n'
        'for command in doctor list reap "inspect /kept" "reap /kept --force"; do\n'
        '    echo "- $command"; "$1" -m shmem_providers $command; echo "- $?"\n'
        "done\n"
    )
    result = run("unshare", "--mount", "--ipc", "--pid", "--fork", "sh", "-c", program, "_", sys.executable)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    is_bare = mount.startswith("umount")
    doctor, looked, reaped, inspected, removed = (
        result.stdout.split("\n- 0\n", 4)
        if not is_bare
        else ["", *result.stdout.partition("\n- 1\n")[2].split("\n- 0\n", 3)]
    )
    assert is_bare or re.search(r"^ memfd +shared .* - +[\d,]+ *$", doctor, re.MULTILINE)
    assert is_bare or "/kept" in looked
    assert ("names that programs chose" in result.stderr) == is_bare
    assert "Nothing was left over" in reaped
    assert "5 bytes" in inspected
    assert "Removed /kept" in removed
    assert ("/proc" in result.stderr) == is_bare


def test_without_the_extra_it_says_what_to_install() -> None:
    code = "import sys; sys.modules['typer'] = None; from shmem_providers.__main__ import main; main()"
    result = run(sys.executable, "-c", code)
    assert result.returncode == 1
    assert result.stderr == "shmem-providers: needs typer: pip install 'shmem_providers[cli]'\n"
