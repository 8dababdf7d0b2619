"""The service's wire by hand: frames, a client of bare sockets, and services in processes of their own. No tests.

It knows the library only as what starts a service: `python wire.py OPTIONS` is one, which obeys lines of its stdin.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import itertools
import json
import os
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

LIBAFL = "@libafl_unix_shmem_server"
PATIENCE = 2.0  # seconds in which an honest client is answered, whatever others do

# ---- Frames: a length, big-endian, then tag and values as postcard writes them


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def zigzag(number: int) -> bytes:
    return varint(2 * number if number >= 0 else -2 * number - 1)


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def new_map(size: int) -> bytes:
    return frame(b"\x00" + varint(size))


def existing_map(id: int | bytes, size: int = 0) -> bytes:
    text = str(id).encode() if isinstance(id, int) else id
    return frame(b"\x01" + varint(size) + text.ljust(20, b"\0"))


def deregister(id: int) -> bytes:
    return frame(b"\x02" + zigzag(id))


def post_fork_child_hello(parent: int) -> bytes:
    return frame(b"\x05" + zigzag(parent))


HELLO, PRE_FORK, EXIT = frame(b"\x03"), frame(b"\x04"), frame(b"\x06")

# ---- A client


class Reply(NamedTuple):
    number: int
    fds: list[int]

    @property
    def fd(self) -> int:
        (fd,) = self.fds
        return fd


class Closed(Exception):
    """The service has closed the connection."""


def socket_address(address: str) -> str:
    return "\0" + address[1:] if address.startswith("@") else address


class Client:
    """A connection. It reads replies as the seed does: in one call, 20 bytes and one descriptor at most."""

    def __init__(self, address: str, timeout: float = 5) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.fds: list[int] = []
        try:
            self.socket.connect(socket_address(address))
        except BaseException:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()
        while self.fds:
            os.close(self.fds.pop())

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> tuple[bytes, list[int]]:
        """Give what one call of recvmsg does."""
        room = socket.CMSG_LEN(4)
        try:
            text, ancillary, flags, _ = self.socket.recvmsg(20, room, getattr(socket, "MSG_CMSG_CLOEXEC", 0))
        except ConnectionResetError:
            raise Closed from None
        if not text:
            raise Closed
        assert not flags & socket.MSG_CTRUNC, "more than one descriptor"
        fds = array.array("i")
        for level, kind, data in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            fds.frombytes(data)
        self.fds += fds
        return text, list(fds)

    def reply(self) -> Reply:
        text, fds = self.receive()
        assert re.fullmatch(rb"-?(0|[1-9][0-9]{0,9})", text), text
        number = int(text)
        assert -(2**31) <= number < 2**31
        if number < 0:
            assert fds == [], "an error with a descriptor"
        return Reply(number, fds)

    def ask(self, request: bytes) -> Reply:
        self.send(request)
        return self.reply()

    def hello(self) -> int:
        """Give the id of this client."""
        number, fds = self.ask(HELLO)
        assert number >= 0
        assert fds == []
        return number

    def new(self, size: int = 4096) -> int:
        """Give the id of a new map; its descriptor is the last of `fds`."""
        reply = self.ask(new_map(size))
        assert reply.number >= 0, f"refused: {reply.number}"
        assert len(reply.fds) == 1
        return reply.number

    def attach(self, id: int, size: int = 4096) -> int:
        """Give the descriptor."""
        reply = self.ask(existing_map(id, size))
        assert reply.number == id
        return reply.fd

    def refused(self, request: bytes) -> int:
        """Ask for what is refused; the connection is kept."""
        number, _ = self.ask(request)
        assert number < 0, f"granted: {number}"
        return number

    def is_closed(self, timeout: float = 5) -> bool:
        """Tell whether the service closes the connection within that time, and says nothing before."""
        self.socket.settimeout(timeout)
        try:
            self.receive()
        except Closed:
            return True
        except TimeoutError:
            pass
        return False

    def says_nothing(self, timeout: float = 0.1) -> bool:
        self.socket.settimeout(timeout)
        try:
            self.receive()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(5)
        return False


def same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


# ---- A service in a process of its own

PROGRAM = __file__
_numbers = itertools.count()


class Service:
    """`Service(provider="posix", linger_ms=50)`; the keywords are the fields of shmp_service_options."""

    def __init__(self, address: str | None = "new", provider: str | None = None, **options: int) -> None:
        self._directory = None
        if address == "new":
            address = f"@shmp_test_{os.getpid()}_{next(_numbers)}"
            if sys.platform != "linux":
                self._directory = tempfile.TemporaryDirectory(dir="/tmp")
                address = self._directory.name + "/service"
        how = json.dumps({"address": address, "provider": provider, **options})
        command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", PROGRAM, how]  # of its fork
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.pid = self.process.pid
        self.address = ""
        answer = self._answer()
        if "error" in answer:
            self.process.communicate()
            self._clean_up()
            raise OSError(answer["os_error"], answer["error"])
        self.address = answer["address"]

    def _answer(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, f"the service's process has ended: {self.process.wait()}"
        return json.loads(line)

    def ask(self, *request: object) -> Any:
        assert self.process.stdin
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return self._answer()

    def stats(self) -> dict[str, int]:
        answer: dict[str, int] = self.ask("stats")
        return answer

    def connect(self, timeout: float = 5) -> Client:
        return Client(self.address, timeout)

    def descriptors(self) -> list[str]:
        """Give what it has open; nothing where there is no /proc."""
        found: list[str] = []
        if sys.platform != "linux":
            return found
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                found.append(f"{link.name} {os.readlink(link)}")
        return sorted(found)

    def memory(self) -> int:
        """Give the bytes that it has in RAM for itself alone; 0 with a sanitizer, which keeps what was freed."""
        if "san.so" in os.environ.get("LD_PRELOAD", ""):
            return 0
        status = Path(f"/proc/{self.pid}/status").read_text()
        return 1024 * int(re.findall(r"RssAnon:\s+(\d+) kB", status)[0])

    def address_space(self) -> int:
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")

    def cpu(self) -> float:
        """Give the seconds that it has computed."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def is_idle(self, seconds: float = 0.5) -> bool:
        """Tell whether it computes next to nothing for so long."""
        before = self.cpu()
        time.sleep(seconds)
        return self.cpu() - before <= seconds / 5

    def wait_until(self, condition: Callable[[], bool], timeout: float = 5) -> bool:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def is_empty(self) -> bool:
        stats = self.stats()
        return not (stats["clients"] or stats["segments"] or stats["bytes"])

    def _clean_up(self) -> None:
        if self._directory:
            self._directory.cleanup()

    def stop(self) -> float:
        """Give the seconds it took. Its process has nothing to say and ends well."""
        start = time.monotonic()
        with self.process:
            assert self.process.stdin
            self.process.stdin.close()
            code = self.process.wait(timeout=30)
        self._clean_up()
        assert code == 0
        return time.monotonic() - start

    def kill(self) -> None:
        with self.process:
            self.process.kill()
        self._clean_up()


@contextlib.contextmanager
def serving(*arguments: Any, **options: Any) -> Iterator[Service]:
    service = Service(*arguments, **options)
    try:
        yield service
        if service.process.poll() is None:
            service.stop()
    finally:
        service.kill()


CLONE_NEWNET = 0x40000000


@contextlib.contextmanager
def own_network() -> Iterator[None]:
    """Be in a network of one's own meanwhile, where root may: abstract names are those of a network."""
    libc = ctypes.CDLL(None, use_errno=True)
    old = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        is_own = libc.unshare(CLONE_NEWNET) == 0
        try:
            yield
        finally:
            if is_own:
                assert libc.setns(old, CLONE_NEWNET) == 0
    finally:
        os.close(old)


# ---- That process


def _binding() -> tuple[Any, Any]:
    from shmem_providers import ffi, lib

    return ffi, lib


def _start(options: dict[str, Any]) -> Any:
    ffi, lib = _binding()
    error, opened, started = ffi.new("shmp_error *"), ffi.new("shmp_provider **"), ffi.new("shmp_service **")
    name, address = options.pop("provider"), options.pop("address")
    if name:
        assert lib.shmp_provider_open(name.encode(), ffi.NULL, opened, error) == 0, ffi.string(error.message)
    at = ffi.new("char[]", address.encode()) if address else ffi.NULL
    given = ffi.new("shmp_service_options *", {**options, "address": at})
    given.struct_size = ffi.sizeof(given[0])
    result = lib.shmp_service_start(opened[0], given, started, error)
    if name:
        lib.shmp_provider_close(opened[0])
    if result:
        message = ffi.string(error.call).decode() + ": " + ffi.string(error.message).decode()
        return {"error": message, "code": result, "os_error": error.os_error}
    return started[0]


def _fork(service: Any) -> dict[str, int]:
    """Leave a child that lives until somebody kills it."""
    ffi, lib = _binding()
    ready, told = os.pipe()
    assert lib.shmp_service_pre_fork(service, ffi.NULL) == 0
    pid = os.fork()
    if pid == 0:
        lib.shmp_service_post_fork(service, 1, ffi.NULL)
        for fd in (0, 1, ready, told):
            os.close(fd)
        while True:
            time.sleep(60)
    assert lib.shmp_service_post_fork(service, 0, ffi.NULL) == 0
    os.close(told)
    os.read(ready, 1)
    os.close(ready)
    return {"pid": pid}


def _serve() -> None:
    ffi, lib = _binding()
    service = _start(json.loads(sys.argv[1]))
    if isinstance(service, dict):
        print(json.dumps(service), flush=True)
        return
    print(json.dumps({"address": ffi.string(lib.shmp_service_address(service)).decode()}), flush=True)
    for line in sys.stdin:
        match json.loads(line):
            case ["stats"]:
                stats = ffi.new("shmp_service_stats *")
                stats.struct_size = ffi.sizeof(stats[0])
                assert lib.shmp_service_get_stats(service, stats, ffi.NULL) == 0
                names = ("clients", "segments", "bytes", "accepted", "requests", "refused")
                answer: Any = {name: getattr(stats, name) for name in names}
            case ["wait", int(milliseconds)]:
                answer = lib.shmp_service_wait(service, milliseconds)
            case ["exit", str(address)]:
                with Client(address) as client:
                    client.send(EXIT)
                    answer = client.is_closed()
            case ["limit", int(most)]:
                import resource

                resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
                answer = most
            case ["fork"]:
                answer = _fork(service)
            case ["chdir", str(path)]:
                os.chdir(path)
                answer = path
        print(json.dumps(answer), flush=True)
    assert lib.shmp_service_stop(service, ffi.NULL) == 0


if __name__ == "__main__":
    _serve()
