"""Compare this library's client and service with the Rust crate's: see README.md."""

import argparse
import os
import random
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import NoReturn

from shmem_providers import LIBAFL_SERVICE_ADDRESS, MemfdShMemProvider, ServedShMemProvider

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import seeds  # noqa: E402

SIZE, REPEAT = 4096, 200
CRATE, AGAIN, SERVED, RC, PYTHON = "crate", "crate again", "served", "rc(served)", "python, served"
JOBS = ("new", "attach")
LIMIT, AIM = 1 / 2, 1 / 3  # of the crate's time; each has to have a CPU for client and service: see the load it prints

Block = Callable[[str], float]
"""Does one of the jobs so many times and gives the nanoseconds that each took."""


class Program:
    """A process that says that it has started, and then answers lines, until its stdin ends."""

    def __init__(self, *command: object) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([str(word) for word in command], stdin=pipe, stdout=pipe, text=True)
        answer = self._answer()
        if not answer.startswith("started"):
            raise SystemExit(f"{command}: {answer}")

    def _answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().rstrip("\n")

    def time(self, job: str, separator: str) -> float:
        assert self.process.stdin
        print("time", job, REPEAT, SIZE, sep=separator, file=self.process.stdin, flush=True)
        return float(self._answer())


def missing(reason: str) -> NoReturn:
    raise SystemExit(reason)


def compiled(folder: Path) -> Path:
    program = folder / "service"
    sources = [path for part in ("core", "backend", "os", "service") for path in (ROOT / "csrc" / part).glob("*.c")]
    command = [*shlex.split(os.environ.get("CC", "cc")), "-std=c11", "-O2", "-DSHMP_STATIC"]
    command += [f"-I{ROOT / 'csrc' / 'include'}", f"-I{ROOT / 'csrc'}", str(ROOT / "benchmarks" / "service.c")]
    subprocess.run([*command, *map(str, sources), "-o", str(program), "-pthread", "-lrt"], check=True)
    return program


def in_python(provider: ServedShMemProvider) -> Block:
    import time

    kept = provider.new_shmem(SIZE)

    def block(job: str) -> float:
        start = time.perf_counter_ns()
        if job == "new":
            for _ in range(REPEAT):
                provider.new_shmem(SIZE).close()
        else:
            for _ in range(REPEAT):
                provider.shmem_from_description(kept.description).close()
        return (time.perf_counter_ns() - start) / REPEAT

    return block


@contextmanager
def contenders() -> Iterator[dict[str, Block]]:
    with ExitStack() as stack:
        ours = compiled(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        seed = seeds.build("seed", missing, "--release")
        address = f"@shmp_bench_{os.getpid()}"

        def start(*command: object) -> Program:
            program = Program(*command)
            stack.enter_context(program.process)
            return program

        for service in ((seed, "serve"), (ours, "serve", address)):
            stack.enter_context(Program(*service).process)
        os.environ["AFL_SHMEM_SERVICE_STARTED"] = "true"

        def fresh(*command: object, separator: str) -> Block:
            """Each block has a client of its own: the crate's keeps what others have, too, mapped and open for ever."""

            def block(job: str) -> float:
                program = Program(*command)
                with program.process:
                    return program.time(job, separator)

            return block

        crate = fresh(seed, "client", separator="\t")
        yield {
            CRATE: crate,
            AGAIN: crate,
            SERVED: fresh(ours, "client", "served", address, separator=" "),
            RC: fresh(ours, "client", "rc", address, separator=" "),
            PYTHON: in_python(ServedShMemProvider(MemfdShMemProvider(), address)),
        }


def measure(blocks: dict[str, Block], job: str, rounds: int) -> dict[str, list[float]]:
    """One block of each contender a round, in an order of its own."""
    times: dict[str, list[float]] = {name: [] for name in blocks}
    for number in range(rounds + 1):
        for name in random.Random(number).sample(list(blocks), len(blocks)):
            taken = blocks[name](job)
            if number:
                times[name].append(taken)
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--gate", action="store_true", help="exit with 1 if a target is missed")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load {load:.1f}, {os.cpu_count()} CPUs; the crate is at {LIBAFL_SERVICE_ADDRESS}")
    missed = 0
    with contenders() as blocks:
        for job in JOBS:
            times = measure(blocks, job, arguments.rounds)
            for name, own in times.items():
                ratio = median(one / other for one, other in zip(own, times[CRATE], strict=True))
                verdict = ""
                if name in (SERVED, RC):
                    verdict = "MISSED" if ratio > LIMIT else "aim met" if ratio <= AIM else "met"
                    missed += ratio > LIMIT
                print(
                    f"{job + ' and release':20} {name:16} {median(own) / 1000:8.1f} us {ratio:6.3f} x crate  {verdict}"
                )
    print(f"{missed} targets missed" if missed else "all targets met")
    return 1 if missed and arguments.gate else 0


if __name__ == "__main__":
    sys.exit(main())
