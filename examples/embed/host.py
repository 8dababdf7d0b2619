"""The host in Python: `python host.py TARGET SEED`. Writes what crashes the target, or takes a second, to "crash"."""

import contextlib
import random
import socket
import subprocess
import sys
from pathlib import Path

from shmem_providers import StdShMemProvider

MAP_SIZE, MOST_BYTES = 8192, 1024
BUCKETS = bytes([0, 1, 2, 4, *[8] * 4, *[16] * 8, *[32] * 16, *[64] * 96, *[128] * 128])  # as in host.c


def mutate(rng: random.Random, corpus: list[bytes]) -> bytes:
    """Change an input, a new one rather than an old one, in up to three places."""
    data, other = (bytearray(corpus[-1 - rng.randrange(1 + rng.randrange(len(corpus)))]) for _ in range(2))
    for _ in range(1 + rng.randrange(3)):
        at, start, few = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1), rng.randrange(8)
        byte = bytes([rng.randrange(rng.choice((17, 256)))])
        changes = (0, byte), (1, byte), (1, byte), (few, b""), (0, other[start : start + few])
        removed, added = rng.choice(changes)
        data[at : at + removed] = added
    return bytes(data[:MOST_BYTES])


def fuzz(target: str, seed: int) -> str:
    """Run the target until something goes wrong."""
    rng, corpus, data, seen, runs, problem = random.Random(seed), [b""], b"", 0, 0, "crash"
    (here, there), new_shmem = socket.socketpair(), StdShMemProvider().new_shmem
    here.settimeout(1)
    with here, there, new_shmem(MAP_SIZE, reserve=True) as hits, new_shmem(4 + MOST_BYTES, reserve=True) as shared:
        hits.write_to_env("FUZZ_MAP")
        shared.write_to_env("FUZZ_INPUT")
        with subprocess.Popen([target], stdin=there.fileno(), process_group=0) as process:  # a ^C is for us alone
            try:
                there.close()  # only the target has it now, so that we see its end
                while here.recv(1):  # once when it is ready, and after each run
                    if news := int.from_bytes(hits[:].translate(BUCKETS)) & ~seen:
                        seen, corpus = seen | news, [*corpus, data]
                        print(f"{runs} runs, {MAP_SIZE - seen.to_bytes(MAP_SIZE).count(0)} edges, {len(corpus)} inputs")
                    data, runs = mutate(rng, corpus), runs + 1
                    shared[: 4 + len(data)] = len(data).to_bytes(4, sys.byteorder) + data
                    hits[:] = bytes(MAP_SIZE)
                    with contextlib.suppress(BrokenPipeError):  # it has ended, and recv says so
                        here.send(b"\0")
            except (TimeoutError, ConnectionResetError) as error:
                problem = "hang" if isinstance(error, TimeoutError) else problem
            finally:
                process.kill()
    if not runs:
        return f"{target} is not ready: is it linked with runtime.c?"
    Path("crash").write_bytes(data)
    return f"{problem} after {runs} runs, on the {len(data)} bytes in crash"


if __name__ == "__main__":
    sys.exit(fuzz(sys.argv[1], int(sys.argv[2])))
