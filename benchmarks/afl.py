"""Runs a second of the hosts of examples/afl, beside a host that does nothing else.

``python benchmarks/afl.py FOLDER``, where ``tools/afl_targets.sh FOLDER`` has put the targets, and the compiler
``FOLDER/host``: ``cc -O2 examples/afl/host.c $(python -m shmem_providers --cflags --libs) -o FOLDER/host``.
"""

import contextlib
import ctypes
import importlib.util
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 15  # the best of which nothing else has disturbed
_spec = importlib.util.spec_from_file_location("host", Path(__file__).parents[1] / "examples/afl/host.py")
assert _spec
assert _spec.loader
host = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(host)


class Bare:
    """A host of AFL++ targets with nothing but ctypes: it clears the map, and runs one input for ever."""

    def __init__(self, program: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.shmat.restype = ctypes.c_void_p
        ids = [libc.shmget(0, size, 0o1600) for size in (8 << 20, 4 + (1 << 20))]
        self.map, self.input = (libc.shmat(id, None, 0) for id in ids)
        for id in ids:
            libc.shmctl(id, 0, None)
        env = os.environ | {"__AFL_SHM_ID": str(ids[0]), "AFL_MAP_SIZE": str(8 << 20), "LD_BIND_NOW": "1"}
        marks = b"##SIG_AFL_PERSISTENT##" in program.read_bytes(), b"##SIG_AFL_DEFER_FORKSRV##" in program.read_bytes()
        env |= {"__AFL_PERSISTENT": "1"} if marks[0] else {}
        env |= {"__AFL_DEFER_FORKSRV": "1", "__AFL_SHM_FUZZ_ID": str(ids[1])} if marks[1] else {}
        (hear, self.say), (self.hear, say), self.file = os.pipe(), os.pipe(), os.memfd_create("input")
        os.dup2(hear, 198)
        os.dup2(say, 199)
        self.process = subprocess.Popen([program], stdin=self.file, pass_fds=(198, 199), env=env)
        for number in hear, say, 198, 199:
            os.close(number)
        (hello,) = struct.unpack("I", os.read(self.hear, 4))
        if hello == 0x41464C01:
            os.write(self.say, struct.pack("I", hello ^ 0xFFFFFFFF))
            self.size = struct.unpack("III", os.read(self.hear, 4) + os.read(self.hear, 4) + os.read(self.hear, 4))[1]
        else:
            self.size = (hello >> 1 & 0x7FFFFF) + 1
            if hello & 0x1000000:
                os.write(self.say, struct.pack("I", 0x81000001))
        self.shares = marks[1]

    def rate(self, runs: int) -> float:
        start, data = time.perf_counter(), b"abcdefgh"
        for _ in range(runs):
            if self.shares:
                ctypes.memmove(self.input, struct.pack("I", len(data)) + data, 4 + len(data))
            else:
                os.pwrite(self.file, data, 0)
                os.ftruncate(self.file, len(data))
                os.lseek(self.file, 0, 0)
            ctypes.memset(self.map, 0, self.size)
            os.write(self.say, bytes(4))
            pid = os.read(self.hear, 4)
            os.read(self.hear, 4)
        self.pid = struct.unpack("i", pid)[0]
        return runs / (time.perf_counter() - start)

    def close(self) -> None:
        libc = ctypes.CDLL(None)
        if self.shares:
            os.kill(self.pid, signal.SIGKILL)
        for number in self.say, self.hear, self.file:
            os.close(number)
        self.process.wait()
        for address in self.map, self.input:
            libc.shmdt(ctypes.c_void_p(address))


def rates(folder: Path, release: str, target: str) -> dict[str, float]:
    """Give the best rates of one target: all that a fuzzer does, and the mere runs of one input."""
    program, runs = folder / release / target, 300 if target == "plain" else 1500
    best = {"bare": 0.0, "c": 0.0, "python": 0.0}
    for _ in range(ROUNDS):
        with contextlib.closing(Bare(program)) as bare:
            best["bare"] = max(best["bare"], bare.rate(runs))
        told = subprocess.run([folder / "host", "-n", str(runs), program], capture_output=True, text=True, check=True)
        best["c"] = max(best["c"], float(re.findall(r"(\d+) runs a second", told.stdout)[0]))
        with contextlib.closing(host.ForkServer([str(program)])) as server:
            start = time.perf_counter()
            made = int(re.findall(r"(\d+) runs", host.fuzz(server, runs))[0])
            best["python"] = max(best["python"], made / (time.perf_counter() - start))
    return best


def main(folder: Path) -> None:
    """Print a line for each target."""
    with tempfile.TemporaryDirectory() as work, contextlib.chdir(work):
        for release in sorted(path.name for path in folder.iterdir() if (path / "plain").exists()):
            for target in ("plain", "shared"):
                best = rates(folder, release, target)
                ratios = ", ".join(f"{name} {best[name] / best['bare']:.2f}" for name in ("c", "python"))
                print(f"{release} {target}: bare {best['bare']:,.0f} runs a second; {ratios} of that")


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
