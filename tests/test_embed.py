"""The fuzzer of examples/embed finds what is planted, and leaves nothing, however it ends."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from shmem_providers import ShMemProvider, available_providers, lib

Missing = Callable[[str], NoReturn]
LeftNothing = Callable[..., bool]

SHARING = [name for name in available_providers() if name != "nop"]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and /dev/shm")

EXAMPLE = Path(__file__).parent.parent / "examples/embed"
SHM = Path("/dev/shm")
SHM_DEST = 0o1000  # in a segment's mode: IPC_RMID was called
COVERAGE = {"gcc": "trace-pc", "clang": "trace-pc-guard"}
WARNINGS = ["-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Wstrict-prototypes", "-Werror"]
SANITIZED = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
ENTRY = "#include <unistd.h>\nint LLVMFuzzerTestOneInput(const void *data, size_t size) { (void)data; %s }\n"
HANGING = ENTRY % 'if (size > 1) { (void)!write(2, "hangs\\n", 6); for (;;) pause(); } return 0;'
NO_SUCH = "host: no/such: No such file or directory\nhost: no/such is not ready: is it linked with runtime.c?\n"
HARMLESS = ENTRY % "return (int)size & 0;"
GREEDY = "void __sanitizer_cov_trace_pc_guard(const unsigned *edge);\n" + ENTRY % (
    "unsigned edge = (unsigned)size * 61 + (size ? *(const unsigned char *)data : 0u);"
    "__sanitizer_cov_trace_pc_guard(&edge); return 0;"  # nearly every input is news, and the longer the better
)


def run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def build(*command: str | Path) -> None:
    result = run(*command)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def program_of(pid: int) -> str:
    """Give the path of a process's program; "" when it has none any more."""
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return ""


class Fuzzer:
    """The programs that one compiler made, in a folder of their own."""

    def __init__(self, compiler: str, folder: Path, *options: str) -> None:
        self.compile = [compiler, "-g", *WARNINGS, *options]
        self.coverage = f"-fsanitize-coverage={COVERAGE[compiler]}"
        self.flags = shlex.split(run(sys.executable, "-m", "shmem_providers", "--cflags", "--libs", check=True).stdout)
        self.folder = folder
        self.c = [str(folder / "host"), "-t", "60000"]
        self.python = [sys.executable, "-W", "error", "-u", "-P", str(EXAMPLE / "host.py")]
        build(*self.compile, EXAMPLE / "host.c", *self.flags, "-o", folder / "host")
        self.target = self.build_target("target", EXAMPLE / "target.c", self.coverage)

    def build_target(self, name: str, source: str | Path, *coverage: str, runtime: Sequence[str] = ()) -> str:
        if isinstance(source, str):
            code, source = source, self.folder / f"{name}.c"
            source.write_text(code)
        compiled, program = self.folder / f"{name}.o", self.folder / name
        build(*self.compile, *coverage, "-c", source, "-o", compiled)
        build(*self.compile, *runtime, EXAMPLE / "runtime.c", compiled, *self.flags, "-o", program)
        return str(program)

    def processes(self) -> list[int]:
        """Give the processes of this folder's programs."""
        pids = [int(name) for name in os.listdir("/proc") if name.isdecimal()]
        return [pid for pid in pids if os.path.dirname(program_of(pid)) == str(self.folder)]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, missing: Missing) -> Iterator[Make]:
    """Give a function that has a compiler build what a `Fuzzer` is."""
    made = []

    def make(compiler: str, *options: str) -> Fuzzer:
        if not shutil.which(compiler):
            missing(f"needs {compiler}: apt install {compiler}")
        made.append(Fuzzer(compiler, tmp_path_factory.mktemp(compiler), *options))
        return made[-1]

    yield make
    for pid in [pid for fuzzer in made for pid in fuzzer.processes()]:
        os.kill(pid, signal.SIGKILL)  # of a test that failed


@pytest.fixture(scope="module")
def gcc(make: Make) -> Fuzzer:
    return make("gcc")


@pytest.fixture(scope="module")
def hanging(gcc: Fuzzer) -> str:
    return gcc.build_target("hanging", HANGING)


@pytest.fixture(scope="module")
def harmless(gcc: Fuzzer) -> str:
    return gcc.build_target("harmless", HARMLESS, gcc.coverage)


def names() -> set[str]:
    return {path.name for path in SHM.glob("shmp_*")}


def sysv_segments() -> set[str]:
    return {line.split()[1] for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]}


def reap() -> None:
    ShMemProvider("posix", lib.SHMP_KEEP_LEFTOVERS)._reap(False)


def until(condition: Callable[[], bool], seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return condition()


def remove_what_is_excepted(host: int, new_names: set[str]) -> None:
    """Remove what one leaves that is killed in the few microseconds that docs/reliability.md excepts."""
    rows = [line.split() for line in Path("/proc/sysvipc/shm").read_text().splitlines()[1:]]
    for row in rows:
        if int(row[4]) == host and not int(row[2], 8) & SHM_DEST and row[6] == "0":
            subprocess.run(["ipcrm", "-m", row[1]], check=True)
    for path in [SHM / name for name in new_names]:
        if path.exists() and path.stat().st_size == 0:
            path.unlink()


@pytest.fixture
def left_nothing() -> LeftNothing:
    """Give a function that checks that a host that has ended left no process, no segment and no name.

    Of a host that was killed (its pid is given), posix names are left until they are reaped. Segments of other
    programs come and go meanwhile.
    """
    names_before, segments_before = names(), sysv_segments()

    def nothing() -> bool:
        return names() <= names_before and sysv_segments() <= segments_before

    def reaped_all() -> bool:
        reap()  # more than once: a child of the host that is not the target yet has its segments, too, for a moment
        return nothing()

    def left_nothing(fuzzer: Fuzzer, killed: int = 0) -> bool:
        """Tell whether names had to be reaped."""
        assert until(lambda: not fuzzer.processes()), "the target lives on"
        stayed = bool(names() - names_before)
        if killed and not until(reaped_all, 2):
            remove_what_is_excepted(killed, names() - names_before)
        assert until(nothing), (names() - names_before, sysv_segments() - segments_before)
        return stayed

    return left_nothing


Make = Callable[..., Fuzzer]
Host = Callable[[Fuzzer, str, int], list[str]]


@pytest.fixture(params=["c", "python"])
def host(request: pytest.FixtureRequest) -> Callable[[Fuzzer, str, int], list[str]]:
    """`host(fuzzer, target, seed)` gives the command of either host."""

    def command(fuzzer: Fuzzer, target: str, seed: int) -> list[str]:
        if request.param == "c":
            return [*fuzzer.c, "-s", str(seed), target]
        return [*fuzzer.python, target, str(seed)]

    return command


# ---- what it finds


def edges(output: str) -> list[int]:
    return [int(number) for number in re.findall(r"(\d+) edges", output)]


@pytest.mark.parametrize("compiler", COVERAGE)
def test_the_crash_is_found(compiler: str, host: Host, make: Make, tmp_path: Path, left_nothing: LeftNothing) -> None:
    fuzzer = make(compiler)
    start = time.monotonic()
    result = run(*host(fuzzer, fuzzer.target, 4), cwd=tmp_path)
    print(f"{time.monotonic() - start:.1f} s\n{result.stdout[-200:]}{result.stderr}")
    assert result.returncode == 1
    assert edges(result.stdout) == sorted(edges(result.stdout))
    assert edges(result.stdout)[-1] > 2 * edges(result.stdout)[1] > 0
    crash = tmp_path / "crash"
    assert f"on the {len(crash.read_bytes())} bytes in crash\n" in result.stdout + result.stderr
    alone = run(fuzzer.target, crash)
    assert alone.returncode < 0
    crash.write_bytes(b"SPRT")
    assert run(fuzzer.target, crash).returncode == 0
    left_nothing(fuzzer)


def test_a_seed_is_a_run_over_any_provider(host: Host, gcc: Fuzzer, tmp_path: Path, left_nothing: LeftNothing) -> None:
    def outcome(provider: str, seed: int) -> tuple[str, bytes]:
        environment = os.environ | {"SHMEM_PROVIDER": provider}
        result = run(*host(gcc, gcc.target, seed), cwd=tmp_path, env=environment)
        left_nothing(gcc)
        return re.sub(r" in .* a second", "", result.stdout), (tmp_path / "crash").read_bytes()

    expected = outcome("std", 4)
    assert [outcome(provider, 4) for provider in SHARING] == [expected] * len(SHARING)
    assert outcome("std", 7)[1] != expected[1]


def test_without_coverage_it_finds_nothing(gcc: Fuzzer, tmp_path: Path) -> None:
    blind = gcc.build_target("blind", EXAMPLE / "target.c")
    result = run(*gcc.c, "-s", "1", "-n", "200000", blind, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "host: no coverage: compile with -fsanitize-coverage\n")
    assert edges(result.stdout) == [0]
    assert not (tmp_path / "crash").exists()


def test_a_hang_is_found(host: Host, gcc: Fuzzer, hanging: str, tmp_path: Path, left_nothing: LeftNothing) -> None:
    command = [word.replace("60000", "300") for word in host(gcc, hanging, 1)]
    result = run(*command, cwd=tmp_path)
    assert result.returncode == 1
    assert re.search(r"^hang\b.* on the (\d+) bytes in crash$", result.stdout + result.stderr, re.MULTILINE)
    assert len((tmp_path / "crash").read_bytes()) > 1
    left_nothing(gcc)


@pytest.mark.parametrize("compiler", COVERAGE)
def test_under_sanitizers(compiler: str, make: Make, tmp_path: Path, left_nothing: LeftNothing) -> None:
    fuzzer = make(compiler, *SANITIZED)
    result = run(*fuzzer.c, "-s", "4", "-o", "found", fuzzer.target, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert result.stdout.endswith(f"exit, on the {(tmp_path / 'found').stat().st_size} bytes in found\n")
    assert result.stderr.count("ERROR: AddressSanitizer: attempting double-free") == 1
    assert len(re.findall("ERROR|runtime error", result.stderr)) == 1
    alone = run(fuzzer.target, tmp_path / "found")
    assert "attempting double-free" in alone.stderr

    greedy = fuzzer.build_target("greedy", GREEDY, fuzzer.coverage)
    hanging = fuzzer.build_target("hanging", HANGING, fuzzer.coverage)
    for arguments, status, says in (
        (["-n", "20000", greedy], 0, ""),
        (["-n", "0", greedy], 0, ""),
        (["-t", "300", hanging], 1, "hangs\n"),
        (["-t", "300", "-o", "no/such", hanging], 2, "hangs\nhost: no/such: No such file or directory\n"),
        (["no/such"], 2, NO_SUCH),
    ):
        result = run(*fuzzer.c, *arguments, cwd=tmp_path)
        assert (result.returncode, result.stderr) == (status, says)
        if "20000" in arguments:
            assert edges(result.stdout)[-1] > 4096, "no more inputs than are kept"
    left_nothing(fuzzer)


# ---- what it refuses


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage: "),
        (["-s", "1x", "target"], "usage: "),
        (["-t", "0", "target"], "usage: "),
        (["-x", "target"], "usage: "),
        (["no/such"], NO_SUCH),
        (["/bin/true"], "host: /bin/true is not ready: is it linked with runtime.c?\n"),
        (["-t", "100", "/bin/cat"], "host: /bin/cat is not ready: is it linked with runtime.c?\n"),
    ],
)
def test_what_is_no_target(
    arguments: list[str], says: str, gcc: Fuzzer, tmp_path: Path, left_nothing: LeftNothing
) -> None:
    result = run(*gcc.c, *arguments, cwd=tmp_path, env=os.environ | {"SHMEM_PROVIDER": "posix"})
    assert result.returncode == 2
    assert says in result.stderr
    assert list(tmp_path.iterdir()) == []
    left_nothing(gcc)


def test_what_is_no_target_in_python(gcc: Fuzzer, tmp_path: Path) -> None:
    result = run(*gcc.python, "/bin/true", "1", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (1, "/bin/true is not ready: is it linked with runtime.c?\n")
    assert list(tmp_path.iterdir()) == []


def test_a_target_without_a_host_says_so(gcc: Fuzzer) -> None:
    result = run(gcc.target, stdin=subprocess.DEVNULL)
    assert (result.returncode, "FUZZ_MAP" in result.stderr) == (2, True)
    result = run(gcc.target, "no/such")
    assert (result.returncode, result.stderr) == (2, "no/such: No such file or directory\n")


# ---- how it ends


@contextlib.contextmanager
def started(command: list[str], folder: Path, provider: str = "std") -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"SHMEM_PROVIDER": provider},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("provider", SHARING)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("state", ["running", "hanging"])
def test_a_signal_ends_it(
    state: str,
    number: signal.Signals,
    provider: str,
    gcc: Fuzzer,
    harmless: str,
    hanging: str,
    tmp_path: Path,
    left_nothing: LeftNothing,
) -> None:
    target = harmless if state == "running" else hanging
    with started([*gcc.c, target], tmp_path, provider) as process:
        line = process.stdout if state == "running" else process.stderr
        assert line
        assert line.readline()
        time.sleep(0.05)
        os.killpg(process.pid, number)  # as a terminal does: to all its processes
        output, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    assert "runs a second\n" in output
    assert list(tmp_path.iterdir()) == []
    left_nothing(gcc)


def test_an_interrupt_ends_python(gcc: Fuzzer, harmless: str, tmp_path: Path, left_nothing: LeftNothing) -> None:
    with started([*gcc.python, harmless, "1"], tmp_path, "posix") as process:
        assert process.stdout
        assert process.stdout.readline()
        assert all(os.getpgid(pid) == pid for pid in gcc.processes())  # or the target would die of the signal too
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert list(tmp_path.iterdir()) == []
    left_nothing(gcc)


@pytest.mark.parametrize("provider", SHARING)
def test_a_killed_host_leaves_nothing(
    provider: str, host: Host, gcc: Fuzzer, harmless: str, tmp_path: Path, left_nothing: LeftNothing
) -> None:
    command = host(gcc, harmless, 1)
    longest = (0.003, 0.1) if command[0] in gcc.c else (0.2, 0.4)  # at the start, and in the midst of it
    seen = reaped = 0
    for _ in range(20):
        with started(command, tmp_path, provider) as process:
            time.sleep(random.uniform(0, random.choice(longest)))
            seen += harmless in map(program_of, gcc.processes())
        reaped += left_nothing(gcc, process.pid)
    print(f"{seen} of 20 were killed when the target ran, names of {reaped} were reaped")
    assert seen
    if provider == "posix":
        assert reaped


@pytest.mark.parametrize("provider", SHARING)
def test_a_host_that_is_killed_while_the_target_hangs_leaves_nothing(
    provider: str, host: Host, gcc: Fuzzer, hanging: str, tmp_path: Path, left_nothing: LeftNothing
) -> None:
    with started(host(gcc, hanging, 1), tmp_path, provider) as process:
        assert process.stderr
        while process.stderr.readline() != "hangs\n":
            pass
    left_nothing(gcc, process.pid)


def test_the_end_of_the_socket_ends_a_target(gcc: Fuzzer, tmp_path: Path, left_nothing: LeftNothing) -> None:
    """What every Unix has, where Linux's PR_SET_PDEATHSIG is not."""
    target = gcc.build_target("portable", HARMLESS, runtime=["-U__linux__"])
    with started([*gcc.c, target], tmp_path) as process:
        assert until(lambda: target in map(program_of, gcc.processes()))
        time.sleep(0.1)
    left_nothing(gcc, process.pid)


# ---- what it says of itself


def test_the_commands_of_its_readme(tmp_path: Path, missing: Missing) -> None:
    if not shutil.which("cc"):
        missing("needs a C compiler: apt install gcc")
    folder = shutil.copytree(EXAMPLE, tmp_path / "embed")
    text = (EXAMPLE / "README.md").read_text()
    commands = re.findall(r"^\$ (.+)$", text.replace("python ", f"{sys.executable} "), re.MULTILINE)
    results = [run("sh", "-c", command, cwd=folder) for command in commands]
    assert [result.returncode for result in results] == [0, 0, 1, results[3].returncode, 1]
    assert results[3].returncode > 128  # a signal's
    assert results[2].stdout.startswith("seed 1\n")


def test_it_is_short() -> None:
    for name, most in (("host.c", 250), ("target.c", 150), ("host.py", 60)):
        assert len((EXAMPLE / name).read_text().splitlines()) < most
