"""A fuzzer for what AFL++'s afl-cc made: `python host.py ./target`, or `./target @@` for one that reads a file."""

import os
import select
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from random import choice, randbytes, random
from struct import pack, unpack

import numpy as np

from shmem_providers import UnixShMemProvider

MAP_SIZE, MOST_BYTES = 8 << 20, 1 << 20  # as afl-fuzz has them; only what is touched becomes memory
BUCKETS = np.array([0, 1, 2, 4, *[8] * 4, *[16] * 8, *[32] * 16, *[64] * 96, *[128] * 128], np.uint8)
# Dies with us, and with it all its group: also a process that is stopped between two runs, and would stay for ever.
KEEPER = 'ulimit -c 0; trap "kill -KILL 0" TERM; exec 3<&0; "$@" <&3 3<&- & wait; kill -KILL 0'


class ForkServer:
    """A started target, which runs each input in a fork of itself; `hits` then says where the input led."""

    def __init__(self, command: list[str], timeout: float = 1) -> None:
        self.map, self.input = map(UnixShMemProvider().new_shmem, (MAP_SIZE, 4 + MOST_BYTES))
        env = os.environ | self.map.env("__AFL_SHM_ID", afl=True) | self.input.env("__AFL_SHM_FUZZ_ID", afl=True)
        env |= {"LD_BIND_NOW": "1", "ASAN_OPTIONS": "abort_on_error=1:detect_leaks=0:symbolize=0"}
        program = Path(command[0]).resolve()
        for mark, name in (b"PERSISTENT", "__AFL_PERSISTENT"), (b"DEFER_FORKSRV", "__AFL_DEFER_FORKSRV"):
            env |= {name: "1"} if b"##SIG_AFL_%b##" % mark in program.read_bytes() else {}
        self.was_killed, self.file, self.milliseconds = False, os.memfd_create("input"), timeout * 1000
        (hear, self.say), (answer, say) = os.pipe(), os.pipe()
        self.answer, self.poll = os.fdopen(answer, "rb", 4), select.poll()  # of four bytes, or it would read ahead
        self.poll.register(answer, select.POLLIN)
        os.dup2(hear, 198)
        os.dup2(say, 199)
        keeper = ["setpriv", "--pdeathsig", "TERM", "sh", "-c", KEEPER, "sh", str(program), *command[1:]]
        words = ["/dev/stdin" if word == "@@" else word for word in keeper]
        self.keeper = subprocess.Popen(words, stdin=self.file, pass_fds=(198, 199), process_group=0, env=env)
        for number in hear, say, 198, 199:
            os.close(number)
        self._shake_hands()

    def _shake_hands(self) -> None:
        if not self.poll.poll(10 * self.milliseconds) or len(word := self.answer.read(4)) < 4:  # a start takes longer
            raise ConnectionError("the target does not answer: was it made by afl-cc, and does it start by hand?")
        self.tokens, (hello,) = list[bytes](), unpack("I", word)
        if hello >> 16 == 0xEFFE or hello & 0xF80000FF == 0xF800008F or 0 < hello ^ 0x41464C01 < 256:
            raise ConnectionError(f"the target cannot work with this host and says why: {hello:#x}")
        if is_new := hello == 0x41464C01:  # AFL++ 4.20 and later
            os.write(self.say, pack("I", hello ^ 0xFFFFFFFF))
            offers, size = unpack("II", self.answer.read(8))
            self.shares, has_dictionary = offers & 0x2, offers & 0x800
        else:  # all is in the hello, which is answered only if it offers something
            size = (hello >> 1 & 0x7FFFFF) + 1 if hello & 0x40000000 else 65536
            self.shares, has_dictionary = hello & 0x1000000, hello & 0x10000000
            os.write(self.say, pack("I", 0x80000001 | self.shares | has_dictionary) if hello & 0x11000000 else b"")
        text = self.answer.read(*unpack("I", self.answer.read(4))) if has_dictionary else b""
        while text:
            self.tokens, text = [*self.tokens, text[1 : 1 + text[0]]], text[1 + text[0] :]
        if size > MAP_SIZE or (is_new and self.answer.read(4) != word):
            raise ConnectionError(f"its map of {size} bytes is larger than MAP_SIZE, or it is not understood")
        self.hits = np.frombuffer(memoryview(self.map), np.uint8, -(-size // 64) * 64)

    def run(self, data: bytes) -> int | None:
        """Run the target on an input; give its status as `os.wait` does, or None after a hang."""
        if self.shares:
            self.input[: 4 + len(data)] = pack("I", len(data)) + data
        else:
            os.truncate(self.file, os.pwrite(self.file, data, 0))
            os.lseek(self.file, 0, os.SEEK_SET)
        self.hits.fill(0)
        os.write(self.say, pack("I", self.was_killed))
        if len(answer := self.answer.read(4)) < 4 or (pid := unpack("i", answer)[0]) <= 0:
            raise ConnectionError("the target has ended, or can fork no more")
        self.was_killed = not self.poll.poll(self.milliseconds)
        if self.was_killed:
            os.kill(pid, signal.SIGKILL)
        (status,) = unpack("i", self.answer.read(4))
        return None if self.was_killed else status

    def close(self) -> None:
        """End the target and all that it has started."""
        os.killpg(self.keeper.pid, signal.SIGKILL)
        self.keeper.wait()
        del self.hits
        for opened in self.map, self.input, self.answer, os.fdopen(self.say), os.fdopen(self.file):
            opened.close()


def fuzz(target: ForkServer, runs: int = sys.maxsize) -> str:
    """Run a target on ever new inputs until it crashes; what led to new code, or more often there, is kept."""
    corpus, tokens, data = [b"\n"], target.tokens or [b"\0"], b"\n"
    unseen, words = ~np.zeros_like(hits := target.hits.reshape(-1, 8)), target.hits.view(np.uint64)
    for run in range(1, runs + 1):
        if (status := target.run(data)) is None or os.WIFSIGNALED(status):
            Path("hang" if status is None else "crash").write_bytes(data)
            if status:
                return f"{signal.strsignal(os.WTERMSIG(status))}, on the {len(data)} bytes in crash, after {run} runs"
        elif np.count_nonzero((buckets := BUCKETS[hits[led := words.nonzero()[0]]]) & unseen[led]):  # few are not 0
            unseen[led] &= ~buckets
            corpus.append(data)
            print(f"{run} runs, {np.count_nonzero(~unseen)} edges, {len(corpus)} inputs", flush=True)
        changed = bytearray(corpus[int(len(corpus) * max(random(), random()))])  # a new one rather than an old one
        for _ in range(1 + int(3 * random())):
            at, few, way = int((len(changed) + 1) * random()), int(8 * random()), int(8 * random())
            added = randbytes(1) if way < 5 else b"" if way == 5 else choice(tokens) if way == 6 else choice(corpus)[:9]
            changed[at : at + (way < 3 or (few if way == 5 else 0))] = added
        data = bytes(changed[:MOST_BYTES])
    return f"no crash in {runs} runs"


if __name__ == "__main__":
    with closing(ForkServer(sys.argv[1:])) as server:
        sys.exit(fuzz(server))
