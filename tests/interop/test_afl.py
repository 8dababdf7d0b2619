"""The hosts of examples/afl drive real AFL++ targets of four generations, and leave nothing, however they end."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import pytest

pytestmark = [
    pytest.mark.needs("linux", "sysv"),
    pytest.mark.skipif("SHMP_AFL" not in os.environ, reason="takes five minutes: set SHMP_AFL=1, or .ci/run afl"),
]

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples/afl"
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror"]
# The releases of Debian whose AFL++ it is. The first two have the old hand-shake, the others the new one.
RELEASES = ["bullseye", "bookworm", "trixie", "sid"]
OLD_HELLO = 0xC200001B  # of a target that offers nothing, and has 14 edges
FAKE = """#!{python}
import os, struct, sys, time
word, = struct.unpack("I", os.write(199, struct.pack("I", {hello})) and os.read(198, 4)) if {runs} else (0,)
for run in range({runs}):
    print(word, file=open("said", "a"))
    pid = os.fork()
    while not pid: time.sleep(100)
    os.write(199, struct.pack("i", pid))
    os.write(199, struct.pack("i", os.waitpid(pid, 0)[1]))
    word, = struct.unpack("I", os.read(198, 4) or bytes(4))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, missing: Callable[[str], NoReturn]) -> Path:
    """Give where the targets and the host in C are."""
    for tool, package in (("clang", "clang"), ("apt-get", "Debian"), ("setpriv", "util-linux")):
        if not shutil.which(tool):
            missing(f"needs {tool}: {package}")
    folder = tmp_path_factory.mktemp("afl")
    made = run(str(ROOT / "tools/afl_targets.sh"), str(folder))
    if made.returncode and "needs " in made.stderr:
        missing(made.stderr)
    assert made.returncode == 0, made.stderr
    flags = shlex.split(run(sys.executable, "-m", "shmem_providers", "--cflags", "--libs", check=True).stdout)
    built = run("clang", "-g", "-O1", *WARNINGS, str(EXAMPLE / "host.c"), *flags, "-o", str(folder / "host"))
    assert (built.returncode, built.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def example(missing: Callable[[str], NoReturn]) -> ModuleType:
    """Give examples/afl/host.py."""
    if not importlib.util.find_spec("numpy"):
        missing("needs NumPy: pip install numpy")
    spec = importlib.util.spec_from_file_location("afl_host", EXAMPLE / "host.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(params=["c", "python"])
def host(request: pytest.FixtureRequest, folder: Path, example: ModuleType) -> list[str]:
    """Give the command of either host."""
    if request.param == "c":
        return [str(folder / "host")]
    return [sys.executable, "-W", "error", "-P", str(EXAMPLE / "host.py")]


def run(*command: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def processes(folder: Path) -> set[int]:
    """Give the processes of the programs in a folder."""
    found = set()
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            found |= {int(pid)} if os.readlink(f"/proc/{pid}/exe").startswith(f"{folder}/") else set()
    return found


def segments_of(pid: int) -> list[str]:
    """Give the System V segments that a process created."""
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    return [row[1] for row in rows if int(row[4]) == pid]


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


@pytest.fixture(autouse=True)
def no_process_is_left(folder: Path) -> Iterator[None]:
    yield
    try:
        assert until(lambda: not processes(folder), 5)
    finally:
        for pid in processes(folder):
            os.kill(pid, signal.SIGKILL)


# ---- what they find


def crashed(host: list[str], command: list[str], folder: Path) -> bytes:
    """Give what crashed a target."""
    result = run(*host, *command, cwd=folder)
    print(result.stdout[-200:], result.stderr)
    assert result.returncode == 1
    assert "bytes in crash" in result.stdout + result.stderr
    assert re.search(r"^1 runs, [1-9]\d* edges", result.stdout, re.MULTILINE)
    return (folder / "crash").read_bytes()


@pytest.mark.parametrize("target", ["plain", "plain @@", "loop", "shared", "large"])
@pytest.mark.parametrize("release", RELEASES)
def test_the_crash_is_found(release: str, target: str, host: list[str], folder: Path, tmp_path: Path) -> None:
    name, *arguments = target.split()
    assert crashed(host, [str(folder / release / name), *arguments], tmp_path).startswith(b"BUG")
    alone = subprocess.run([folder / release / "plain"], input=(tmp_path / "crash").read_bytes(), timeout=60)
    assert alone.returncode == -signal.SIGABRT


@pytest.mark.parametrize("target", ["plain", "loop", "shared"])
def test_of_what_afl_cc_made(target: str, host: list[str], folder: Path, tmp_path: Path) -> None:
    programs = list(folder.glob(f"*/{target}-afl-cc"))
    if not programs:
        pytest.skip("this machine's release has no afl-cc that is known here")
    assert crashed(host, [str(programs[0])], tmp_path).startswith(b"BUG")


@pytest.mark.parametrize("release", RELEASES)
def test_the_dictionary_is_used(release: str, host: list[str], folder: Path, tmp_path: Path) -> None:
    found = [crashed(host, [str(folder / release / "dictionary")], tmp_path) for _ in range(3)]
    assert b"\x7fKEYWORD" in {data[:8] for data in found}, "which no eight random bytes are"


@pytest.mark.parametrize("target", ["plain", "loop", "shared"])
@pytest.mark.parametrize("release", RELEASES)
def test_runs_one_by_one(release: str, target: str, folder: Path, example: ModuleType) -> None:
    with contextlib.closing(example.ForkServer([str(folder / release / target)], 0.3)) as server:
        assert bool(server.shares) == (target == "shared")
        reached = []
        for data in b"abcd", b"Babc", b"BUab", b"abcd":
            status = server.run(data)
            assert os.WIFEXITED(status) if target == "plain" else os.WIFSTOPPED(status)
            reached.append(frozenset(server.hits.nonzero()[0]))
        assert len(set(reached[:3])) == 3
        for _ in range(2):
            assert server.run(b"HANG") is None
            assert os.WTERMSIG(server.run(b"BUG")) == signal.SIGABRT
            assert os.WTERMSIG(server.run(b"\x7fKEYWORD")) == signal.SIGSEGV
            server.run(b"abcd")
            assert not os.WIFSIGNALED(server.run(b"abcd"))
            assert {*server.hits.nonzero()[0]} <= reached[0] | reached[3]


# ---- what they refuse


def fake(folder: Path, hello: int, runs: int) -> str:
    """Make a target that says a word, and hangs at each run."""
    path = folder / "fake"
    path.write_text(FAKE.format(python=sys.executable, hello=hello, runs=runs or 1))
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("hello", [0xEFFE0001, 0xEFFE0008, 0xEFFE0010, 0xF800018F, 0xF800088F, 0x41464C02])
def test_a_word_of_error(hello: int, host: list[str], tmp_path: Path) -> None:
    result = run(*host, fake(tmp_path, hello, 1), cwd=tmp_path)
    assert result.returncode in (1, 2)
    assert f"{hello:#x}" in result.stderr
    assert not (tmp_path / "said").exists(), "nothing is to be answered"


@pytest.mark.parametrize("release", RELEASES)
def test_a_map_without_room(release: str, folder: Path) -> None:
    code = "import sys, host; host.MAP_SIZE = 65536; host.ForkServer(sys.argv[1:])"
    result = run(sys.executable, "-c", code, str(folder / release / "large"), cwd=EXAMPLE)
    assert re.search(r"map of 800\d\d bytes is larger than MAP_SIZE", result.stderr)


@pytest.mark.parametrize("program", ["/bin/true", "/bin/cat"])
def test_what_is_no_target(program: str, host: list[str], tmp_path: Path) -> None:
    result = run(*host, program, cwd=tmp_path)
    assert result.returncode in (1, 2)
    assert "the target does not answer: was it made by afl-cc, and does it start by hand?" in result.stderr


def test_a_hang_is_saved_and_said(folder: Path, tmp_path: Path) -> None:
    result = run(str(folder / "host"), "-t", "200", "-n", "2", fake(tmp_path, OLD_HELLO, 3), cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert (tmp_path / "hang").exists()
    assert (tmp_path / "said").read_text().split() == ["0", "1"], "the second time that the first was killed"


# ---- what they leave


@pytest.mark.parametrize("target", ["plain", "loop", "shared"])
@pytest.mark.parametrize("release", RELEASES)
def test_a_killed_host_leaves_nothing(release: str, target: str, host: list[str], folder: Path, tmp_path: Path) -> None:
    nohup = ["sh", "-c", 'trap "" HUP; exec "$@"', "sh"]  # nor may the kernel's SIGHUP to what is stopped be needed
    for moment in range(3):
        command = [*nohup, *host, str(folder / release / target)]
        with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            while "edges" not in process.stdout.readline():
                pass
            assert segments_of(process.pid)
            assert len(processes(folder / release)) >= 1
            time.sleep(moment / 100)
            process.kill()
        assert until(lambda: not processes(folder), 5), "a process stays"
        assert until(lambda pid=process.pid: not segments_of(pid), 5), "a segment stays"  # type: ignore[misc]
