"""Compare this library with the bare system calls and multiprocessing.shared_memory: see README.md."""

import argparse
import ctypes
import functools
import itertools
import json
import math
import os
import platform
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from mmap import PAGESIZE, mmap
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from statistics import median

import shmem_providers

ROOT = Path(__file__).resolve().parent.parent
CFLAGS = ("-std=c11", "-O2", "-fPIC", "-shared", "-fvisibility=hidden")
MECHANISMS = [name for name in shmem_providers.available_providers() if name not in ("nop", "served")]
BARE, AGAIN, CAREFUL, CORE, BASE, PYTHON, WITH, STDLIB = (
    "bare", "bare again", "careful", "core", "base", "python", "python, with", "multiprocessing",
)  # fmt: skip

Block = Callable[[int], float]
"""Does a thing so many times and gives the nanoseconds it took."""


@dataclass(frozen=True)
class Job:
    size: int
    repeat: int
    statements: dict[str, str]
    mechanisms: list[str] = field(default_factory=lambda: MECHANISMS)


JOBS = {
    "create": Job(
        4096,
        100,
        {
            PYTHON: "provider.new_shmem(size).close()",
            WITH: "with provider.new_shmem(size): pass",
            STDLIB: "shm = SharedMemory(create=True, size=size); shm.close(); shm.unlink()",
        },
    ),
    "attach": Job(
        4096,
        100,
        {
            PYTHON: "provider.shmem_from_description(description).close()",
            WITH: "with provider.shmem_from_description(description): pass",
            STDLIB: "SharedMemory(name).close()",
        },
    ),
    "attach other": Job(
        4096,
        100,
        {
            PYTHON: "provider.shmem_from_description(other).close()",
            STDLIB: "SharedMemory(name).close()",
        },
        [name for name in MECHANISMS if name == "memfd"],  # with the others it is the same as attach
    ),
    "clone": Job(4096, 100, {PYTHON: "provider.clone_ref(original).close()"}),
    "touch": Job(
        64 << 20,
        1,
        {
            PYTHON: "shm = provider.new_shmem(size); touch(byte(shm), size); shm.close()",
            STDLIB: "shm = SharedMemory(create=True, size=size); touch(byte(shm.buf), size); shm.close(); shm.unlink()",
        },
    ),
}


@dataclass(frozen=True)
class Target:
    """`contender` takes at most `limit` times as long as `against`; `aim` is what is hoped for."""

    job: str
    contender: str
    against: str
    limit: float | None
    aim: float | None = None
    mechanism: str | None = None


TARGETS = (
    Target("create", PYTHON, BARE, 1.25, mechanism="memfd"),
    Target("create", PYTHON, BARE, 1.25, mechanism="posix"),
    Target("create", PYTHON, BARE, 1.25, mechanism="sysv"),
    Target("create", PYTHON, BARE, 1.3, mechanism="win32"),
    Target("create", PYTHON, CAREFUL, None, 1.12),
    Target("create", PYTHON, STDLIB, 1 / 2.5, mechanism="memfd"),
    Target("create", PYTHON, STDLIB, 1 / 2.0, mechanism="sysv"),
    Target("create", PYTHON, STDLIB, 1 / 1.3, mechanism="posix"),
    Target("create", PYTHON, STDLIB, 1.0, mechanism="win32"),
    Target("create", CORE, CAREFUL, 1.05),
    Target("attach", PYTHON, BARE, 1.5, 1.3),
    Target("attach", PYTHON, BARE, 1.3, mechanism="win32"),
    Target("attach", PYTHON, STDLIB, 1.0, mechanism="win32"),
    Target("attach", CORE, CAREFUL, 1.05),
    Target("attach other", CORE, CAREFUL, 1.05),
    Target("create", CORE, BASE, 1.02),
    Target("attach", CORE, BASE, 1.02, mechanism="memfd"),
    Target("attach", CORE, BASE, 1.02, mechanism="sysv"),
    Target("attach", CORE, BASE, 1.12, mechanism="posix"),
    Target("attach other", CORE, BASE, 1.75),
    Target("touch", PYTHON, BARE, 1.0),
    Target("touch", CORE, BARE, 1.0),
)
AGAINST = (BARE, CAREFUL, BASE, STDLIB)
IMPORT_LIMIT_MS = 15.0
CLONE_LIMITS_US = {CORE: 0.1, PYTHON: 0.4}


@dataclass
class Row:
    job: str
    mechanism: str
    contender: str
    us: float
    noise: float
    ratios: dict[str, float]
    missed: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def compile_calls(library: Path, root: Path) -> None:
    """Compile the C half with the library's sources of `root`."""
    here = Path(__file__).parent
    sources = [here / "calls.c", here / f"calls_{sys.platform}.c"]
    sources += [
        file for folder in ("core", "backend", "os", "service") for file in sorted((root / "csrc" / folder).glob("*.c"))
    ]
    compiler = shlex.split(os.environ.get("CC", "cc"))
    folders = (f"-I{root}/csrc", f"-I{root}/csrc/include")
    subprocess.run([*compiler, *CFLAGS, *folders, *map(str, sources), "-o", str(library)], check=True)


@contextmanager
def loaded_calls(compiled: Path | None, root: Path) -> Iterator[ctypes.CDLL]:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows keeps what is loaded
        library = compiled or Path(folder, "calls.so")
        if not compiled:
            compile_calls(library, root)
        calls = ctypes.CDLL(str(library), use_errno=True)
        calls.set_up.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
        calls.tear_down.argtypes = (ctypes.c_char_p,)
        calls.run.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t)
        calls.run.restype = ctypes.c_longlong
        calls.touch.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        calls.touch.restype = None
        calls.other_id.restype = ctypes.c_char_p
        yield calls


def checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")
    return result


def run_calls(calls: ctypes.CDLL, mechanism: str, name: str, job: str, size: int, repeat: int) -> float:
    taken = calls.run(mechanism.encode(), name.encode(), job.encode(), repeat, size)
    return checked(taken, f"{job}, {mechanism}, {name}")


@contextmanager
def contenders_of(
    name: str, mechanism: str, calls: ctypes.CDLL, base: ctypes.CDLL | None
) -> Iterator[dict[str, Block]]:
    job = JOBS[name]
    with ExitStack() as stack:
        provider = shmem_providers.open_provider(mechanism)
        original = stack.enter_context(provider.new_shmem(job.size))
        other = SharedMemory(create=True, size=job.size)
        stack.callback(other.unlink)
        stack.callback(other.close)
        for library in filter(None, (calls, base)):
            checked(library.set_up(mechanism.encode(), job.size), f"{mechanism}, set up")
            stack.callback(library.tear_down, mechanism.encode())
        other_id = calls.other_id()
        variables = {
            "provider": provider,
            "size": job.size,
            "original": original,
            "description": original.description,
            "other": other_id and shmem_providers.ShMemDescription(job.size, other_id.decode()),
            "SharedMemory": SharedMemory,
            "name": other.name,
            "touch": calls.touch,
            "byte": lambda shm: ctypes.byref(ctypes.c_char.from_buffer(shm)),
        }
        in_c = {BARE: BARE, AGAIN: BARE, CAREFUL: CAREFUL, CORE: CORE}
        blocks: dict[str, Block] = {
            shown: functools.partial(run_calls, calls, mechanism, called, name, job.size)
            for shown, called in in_c.items()
        }
        if base:
            blocks[BASE] = functools.partial(run_calls, base, mechanism, CORE, name, job.size)
        for shown, statement in job.statements.items():
            blocks[shown] = timeit.Timer(statement, timer=time.perf_counter_ns, globals=variables).timeit
        yield blocks


@contextmanager
def layout(mappings: int) -> Iterator[None]:
    """Have so many more mappings: the kernel's mmap is 20 % cheaper or dearer with one more or less."""
    with ExitStack() as stack:
        for _ in range(mappings):
            stack.enter_context(mmap(-1, PAGESIZE))
        yield


def measure(blocks: dict[str, Block], repeat: int, rounds: int) -> dict[str, list[float]]:
    """One block of each contender a round, in an order of its own, so that each has followed every other."""
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for number in range(rounds + 1):
        chance = random.Random(number)
        with layout(chance.randrange(32)):
            for name in chance.sample(list(blocks), len(blocks)):
                taken = blocks[name](repeat)
                if number:
                    times[name].append(taken / repeat)
    return times


def typical_ratio(times: list[float], against: list[float]) -> float:
    return median(one / other for one, other in zip(times, against, strict=True))


def noise_of(times: dict[str, list[float]]) -> float:
    """How far from 1 the typical ratio of the bare calls to themselves may be (95 %, from the order of the ratios)."""
    ratios = sorted(one / other for one, other in zip(times[AGAIN], times[BARE], strict=True))
    middle, reach = len(ratios) // 2, math.ceil(math.sqrt(len(ratios)))
    return max(1 - ratios[max(middle - reach, 0)], ratios[min(middle + reach, len(ratios) - 1)] - 1)


def judge(row: Row) -> None:
    for target in TARGETS:
        if (target.job, target.contender) != (row.job, row.contender) or target.mechanism not in (None, row.mechanism):
            continue
        if target.against not in row.ratios:
            continue
        ratio, limit, aim = row.ratios[target.against], target.limit, target.aim
        if limit and ratio > limit * (1 + row.noise):
            row.missed.append(f"{ratio:.3f} x {target.against}, at most {limit:.2f}")
        elif limit:
            row.remarks.append(f"<= {limit:.2f} x {target.against}" + (" within noise" if ratio > limit else ""))
        if aim:
            row.remarks.append(f"aim {aim:.2f} x {target.against} " + ("met" if ratio <= aim else "not met"))
    if row.job == "clone" and row.contender in CLONE_LIMITS_US:
        most = CLONE_LIMITS_US[row.contender]
        (row.missed if row.us > most * (1 + row.noise) else row.remarks).append(f"at most {most} us")


def rows_of(job: str, mechanism: str, calls: ctypes.CDLL, base: ctypes.CDLL | None, rounds: int) -> Iterator[Row]:
    with contenders_of(job, mechanism, calls, base) as blocks:
        times = measure(blocks, JOBS[job].repeat, rounds)
    noise = noise_of(times)
    for name, own in times.items():
        ratios = {against: typical_ratio(own, times[against]) for against in AGAINST if against in times}
        row = Row(job, mechanism, name, median(own) / 1000, noise, ratios)
        judge(row)
        yield row


def run_python(code: str, repeat: int) -> float:
    start = time.perf_counter_ns()
    for _ in range(repeat):
        subprocess.run([sys.executable, "-I", "-c", code], check=True)
    return time.perf_counter_ns() - start


def import_rows(rounds: int) -> Iterator[Row]:
    codes = {BARE: "pass", AGAIN: "pass", PYTHON: "import shmem_providers"}
    times = measure({name: functools.partial(run_python, code) for name, code in codes.items()}, 1, rounds)
    noise = noise_of(times)
    for name, own in times.items():
        row = Row("import", "", name, median(own) / 1000, noise, {BARE: typical_ratio(own, times[BARE])})
        extra_ms = median(one - bare for one, bare in zip(own, times[BARE], strict=True)) / 1e6
        remark = f"{extra_ms:+.2f} ms, at most {IMPORT_LIMIT_MS:.0f}"
        if name == PYTHON:
            noise_ms = noise * median(times[BARE]) / 1e6
            (row.missed if extra_ms > IMPORT_LIMIT_MS + noise_ms else row.remarks).append(remark)
        yield row


def why_not(job: str, mechanism: str) -> str:
    room = Path("/dev/shm")
    if job == "touch" and room.exists() and shutil.disk_usage(room).free < 4 * JOBS[job].size:
        return "/dev/shm is too small: multiprocessing and the bare calls would die of SIGBUS"
    return ""


def all_rows(jobs: list[str], quick: bool, compiled: Path | None, base_root: Path | None) -> Iterator[Row]:
    with ExitStack() as stack:
        calls = stack.enter_context(loaded_calls(compiled, ROOT))
        base = stack.enter_context(loaded_calls(None, base_root)) if base_root else None
        for job, mechanism in itertools.product(filter(jobs.__contains__, JOBS), MECHANISMS):
            if mechanism not in JOBS[job].mechanisms:
                continue
            if reason := why_not(job, mechanism):
                print(f"{job}, {mechanism}: skipped: {reason}", file=sys.stderr)
            else:
                yield from rows_of(job, mechanism, calls, base, {"touch": (40, 6)}.get(job, (600, 90))[quick])
    if "import" in jobs:
        yield from import_rows((40, 8)[quick])


def cells_of(row: Row) -> list[str]:
    ratios = [f"{row.ratios[against]:.3f}" if against in row.ratios else "" for against in AGAINST]
    noise = f"noise {row.noise:.1%}" if row.contender == AGAIN else ""
    verdict = "; ".join([*(f"MISSED {text}" for text in row.missed), *row.remarks, *filter(None, [noise])])
    return [row.job, row.mechanism, row.contender, f"{row.us:.2f}", *ratios, verdict]


def show(rows: list[Row]) -> None:
    headings = ["job", "mechanism", "contender", "us", f"x {BARE}", f"x {CAREFUL}", f"x {BASE}", "x mp", "targets"]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        for cells in [headings, *map(cells_of, rows)]:
            print(*(cell.ljust(16) for cell in cells))
        return
    table = Table()
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if 3 <= number <= 7 else "left", no_wrap=number < 8)
    for number, row in enumerate(rows):
        last = number + 1 == len(rows) or rows[number + 1].contender == BARE
        table.add_row(*cells_of(row), style="red" if row.missed else None, end_section=last)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: seconds, with more noise")
    parser.add_argument("--gate", action="store_true", help="exit with 1 if a target is missed by more than the noise")
    parser.add_argument("--only", choices=[*JOBS, "import"], help="one job instead of all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")
    parser.add_argument("--calls", type=Path, metavar="DLL", help="the C half, compiled elsewhere: calls*.c and csrc/")
    parser.add_argument("--base", type=Path, metavar="DIR", help="other sources of this library: the C core beside it")
    arguments = parser.parse_args()
    jobs = [arguments.only] if arguments.only else [*JOBS, "import"]
    rows = list(all_rows(jobs, arguments.quick, arguments.calls, arguments.base))
    show(rows)
    if arguments.json:
        about = {"version": shmem_providers.__version__, "python": sys.version, "system": platform.platform()}
        arguments.json.write_text(json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    missed = [text for row in rows for text in row.missed]
    print(f"{len(missed)} targets missed" if missed else "all targets met")
    return 1 if missed and arguments.gate else 0


if __name__ == "__main__":
    sys.exit(main())
