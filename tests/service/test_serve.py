"""``shmem-providers serve``, and the process that std starts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmem_providers import ServedShMemProvider, ServiceError, StdShMemProvider, _serve, open_provider

pytestmark = [pytest.mark.needs("served"), pytest.mark.usefixtures("nothing_leaks")]

SERVE = [sys.executable, "-W", "error", "-m", "shmem_providers", "serve"]
WITHOUT_CLI = (
    "import sys; sys.modules['typer'] = sys.modules['rich'] = None\nfrom shmem_providers.__main__ import main\nmain()"
)


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="shmp") as folder:
        yield f"{folder}/service"


def until(condition: Callable[[], object], limit: float = 20) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# ---- in the foreground


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_serves_until_a_signal(address: str, end: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WITHOUT_CLI, "serve", "--address", address, "--provider", "posix"]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen(command, stderr=stderr, stdout=stderr)
    until(lambda: "serving at" in log.read_text())
    assert log.read_text() == f"shmem-providers: serving at {address}, as process {process.pid}\n"
    with open_provider("served", address=address).new_shmem(5000):
        process.send_signal(signal.SIGUSR1)
        until(lambda: log.read_text().count("\n") == 2)
    process.send_signal(end)
    assert process.wait(20) == 0
    _, second, third = log.read_text().splitlines()
    assert second == ("shmem-providers: 1 client, 1 segment of 5,000 bytes; so far 1 connection, 2 requests, 0 refused")
    assert re.fullmatch(rf"shmem-providers: ends by {end.name}: \d clients?, .*, 0 refused", third)
    assert not os.path.exists(address)


def test_an_idle_one_ends(address: str) -> None:
    result = subprocess.run([*SERVE, "--address", address, "--idle", "0.2"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (0, "")
    assert "ends as it had no client" in result.stderr


def test_why_it_does_not_start(address: str, service_address: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for arguments, status, says in (
        (["--address", service_address], 3, "cannot serve: .* a service is there already"),
        (["--address", "/nowhere/service"], 1, "cannot serve: .*/nowhere"),
        (["--address", str(tmp_path / "file")], 1, "cannot serve: .*file"),
        (["--idle", "-1"], 1, "cannot serve: .*idle"),
        (["--provider", "sysv"], 2, "invalid choice"),
        (["--linger", "x"], 2, "invalid float"),
    ):
        for detach in ([], ["--detach"]):
            result = subprocess.run([*SERVE, *arguments, *detach], capture_output=True, text=True, timeout=60)
            assert (result.returncode, result.stdout) == (status, ""), (arguments, detach, result.stderr)
            assert re.search(says, result.stderr), result.stderr
            assert "Traceback" not in result.stderr
    assert (tmp_path / "file").exists()


def test_help() -> None:
    result = subprocess.run([*SERVE, "--help"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    for option in ("--provider", "--address", "--idle", "--linger", "--any-user", "--detach"):
        assert option in result.stdout


def test_doctor_sees_it(service_address: str) -> None:
    pytest.importorskip("typer", reason="needs the extra [cli]")
    command = [sys.executable, "-W", "error", "-m", "shmem_providers", "doctor"]
    for address, answers in ((service_address, True), ("/nowhere/service", False)):
        env = os.environ | {"SHMEM_SERVICE": address}
        result = subprocess.run([*command, "--json"], capture_output=True, text=True, timeout=100, env=env)
        assert (result.returncode, result.stderr) == (0, "")
        report = json.loads(result.stdout)
        assert (report["no_service"] is None) == answers
        names = [provider["name"] for provider in report["providers"] if provider["works"]]
        assert ("served" in names, "rc" in names) == (answers, False)
    shown = subprocess.run(command, capture_output=True, text=True, timeout=100, env=env).stdout
    assert "no service: " in shown
    assert "/nowhere/service" in shown


# ---- what std starts


def processes(address: str) -> list[int]:
    """Give those that serve at an address."""
    found = []
    for each in Path("/proc").iterdir():
        try:
            arguments = each.joinpath("cmdline").read_text().split("\0") if each.name.isdecimal() else []
        except OSError:
            continue
        if "serve" in arguments and address in arguments:
            found.append(int(each.name))
    return found


@pytest.fixture
def started(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[int]]]:
    """Have std ask at an address of its own; gives a function that gives the processes that serve there."""
    monkeypatch.setenv("SHMEM_SERVICE", address)
    monkeypatch.setattr(_serve, "IDLE", 1)
    yield lambda: processes(address)
    for pid in processes(address):
        os.kill(pid, signal.SIGTERM)
    until(lambda: not processes(address))


@pytest.mark.needs("linux")
def test_it_is_a_process_of_its_own(started: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of its starter's is there, and it ends by itself."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PWD", str(tmp_path))
    (tmp_path / "signal.py").write_text("raise SystemExit('imported from the current folder')")
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    provider = StdShMemProvider(served=True)
    os.close(writing)
    assert os.read(reading, 1) == b""  # nobody else has it
    os.close(reading)
    (pid,) = started()
    process = Path(f"/proc/{pid}")
    status = dict(line.split(":\t", 1) for line in process.joinpath("status").read_text().splitlines() if ":\t" in line)
    assert int(status["PPid"]) != os.getpid()
    assert os.getsid(pid) != os.getsid(0)
    assert [os.readlink(process / f"fd/{fd}") for fd in range(3)] == ["/dev/null"] * 3
    assert os.readlink(process / "cwd") == "/"
    assert str(tmp_path).encode() not in process.joinpath("environ").read_bytes()
    with provider.new_shmem(10) as shm, StdShMemProvider(served=True).attach(shm.id) as other:
        other[0] = 7
        assert (shm[0], shm.provider_name) == (7, "served")
    with open_provider("posix").new_shmem(10) as plain, provider.attach(plain.id) as other:
        assert other.provider_name == "posix"
    assert started() == [pid]
    del provider, shm, other, plain
    until(lambda: not started())


@pytest.mark.needs("linux")
def test_a_killed_one_is_started_anew(started: Any) -> None:
    provider = StdShMemProvider(served=True)
    for _ in range(2):
        (pid,) = started()
        old = provider.new_shmem(10)
        old[0] = 7
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid not in started())  # noqa: B023
        with provider.new_shmem(10) as new:
            assert (old[0], new[0]) == (7, 0)
        with pytest.raises(FileNotFoundError):
            provider.attach(old.id)
        old.close()


@pytest.mark.needs("linux")
def test_of_many_starters_the_first_wins(started: Any) -> None:
    code = (
        "import sys; from shmem_providers import *\n"
        "provider = StdShMemProvider(served=True)\n"
        "shm = provider.new_shmem(10)\n"
        "print(provider.name, flush=True)\n"
        "sys.stdin.read()\n"
        "shm.close()\n"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-W", "error", "-c", code]
    starters = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(5)]
    for each in starters:
        assert each.stdout
        assert each.stdout.readline() == "rc(served(memfd))\n"
    assert len(started()) == 1
    for each in starters:
        assert each.communicate(timeout=60) == ("", "")
        assert each.returncode == 0


@pytest.mark.parametrize("why", ["fails", "is not there", "frozen"])
def test_one_that_cannot_be_started(started: Any, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from multiprocessing import spawn

    program = tmp_path / "python"
    if why == "fails":
        program.write_text("#!/bin/sh\necho this machine is upside down >&2; exit 1\n")
        program.chmod(0o755)
    if why == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(spawn, "_python_exe", os.fsencode(program))
    says = {"fails": "upside down", "is not there": "No such file", "frozen": "shmem-providers serve"}[why]
    with pytest.raises(ServiceError, match=says):
        StdShMemProvider(served=True)
    with pytest.raises(ServiceError, match="no service"):
        ServedShMemProvider()
