"""A thousand clients of thirty-odd kinds that mean no good, and an honest one, which is answered all the time."""

from __future__ import annotations

import array
import contextlib
import os
import random
import resource
import signal
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterator
from typing import NoReturn

import pytest
from wire import (
    EXIT,
    HELLO,
    PATIENCE,
    PRE_FORK,
    Client,
    Closed,
    Service,
    deregister,
    existing_map,
    frame,
    new_map,
    post_fork_child_hello,
    socket_address,
    varint,
)

pytestmark = [
    pytest.mark.needs("linux", "limits"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

CLIENTS = 1000
NOBODY = 65534
Steps = Generator[None, None, None]
GONE = (BrokenPipeError, ConnectionResetError, ConnectionRefusedError, socket.timeout)

# ---- The kinds. Each is a function of steps, of which a process takes one after the other of hundreds of clients.


class Hostile:
    """A connection that never waits: what cannot be sent now is dropped, and nothing need be there to be read."""

    def __init__(self, address: str) -> None:
        self.address, self.socket = address, socket.socket()
        self.connect()

    def connect(self) -> None:
        self.socket.close()
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self.socket.connect(socket_address(self.address))

    def send(self, data: bytes, fds: tuple[int, ...] = (), flags: int = 0) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        with contextlib.suppress(BlockingIOError, *GONE, OSError):
            self.socket.sendmsg([data], rights, flags)

    def read(self) -> int | None:
        """Give the reply if there is one by now."""
        with contextlib.suppress(BlockingIOError, *GONE, ValueError):
            text, ancillary, _, _ = self.socket.recvmsg(20, socket.CMSG_LEN(4))
            for _, _, data in ancillary:
                for fd in array.array("i", data):
                    os.close(fd)
            return int(text)
        return None

    def is_closed(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            try:
                return not self.socket.recv(1, socket.MSG_PEEK)
            except OSError:
                return True
        return False


def silent(client: Hostile) -> Steps:
    while True:
        yield


def half_a_header(client: Hostile) -> Steps:
    client.send(HELLO[:2])
    yield from silent(client)


def half_a_frame(client: Hostile) -> Steps:
    client.send(new_map(4096)[:-1])
    yield from silent(client)


def one_byte_at_a_time(client: Hostile) -> Steps:
    while True:
        for byte in existing_map(1):
            client.send(bytes([byte]))
            yield
        client.read()


def four_gib(client: Hostile) -> Steps:
    client.send(struct.pack(">I", 0xFFFFFFFF))
    while True:
        client.send(bytes(65536))
        if client.is_closed():
            client.connect()
            client.send(struct.pack(">I", 0xFFFFFFFF))
        yield


def a_body_without_end(client: Hostile) -> Steps:
    client.send(struct.pack(">I", 1000) + b"\x03")
    while True:
        client.send(b"\x03")
        yield


def garbage(client: Hostile) -> Steps:
    while True:
        client.send(random.randbytes(random.randrange(1, 500)))
        if client.is_closed():
            client.connect()
        yield


def garbage_tags(client: Hostile) -> Steps:
    while True:
        client.send(frame(bytes([random.randrange(256)]) + random.randbytes(random.randrange(30))))
        if client.is_closed():
            client.connect()
        yield


def varints_without_end(client: Hostile) -> Steps:
    while True:
        client.send(frame(bytes([random.choice([0, 1, 2, 5])]) + b"\xff" * random.randrange(20)))
        if client.is_closed():
            client.connect()
        yield


def empty_frames(client: Hostile) -> Steps:
    while True:
        client.send(frame(b"") * 10)
        if client.is_closed():
            client.connect()
        yield


def wrong_end_first(client: Hostile) -> Steps:
    while True:
        client.send(struct.pack("<I", 1) + b"\x03")
        if client.is_closed():
            client.connect()
        yield


def much_after_a_request(client: Hostile) -> Steps:
    while True:
        client.send(frame(b"\x03" + bytes(1000)))
        yield
        client.read()


def ids_of_others(client: Hostile) -> Steps:
    while True:
        id = random.randrange(5000)
        client.send(existing_map(id))
        yield
        client.read()
        client.send(deregister(id))
        yield
        client.read()


def freed_ids(client: Hostile) -> Steps:
    while True:
        client.send(new_map(4096))
        yield
        id = client.read()
        if id is not None:
            client.send(deregister(id))
            yield
            client.send(existing_map(id))
            yield
            client.read()
            client.send(deregister(id))
        yield
        client.read()


def garbage_ids(client: Hostile) -> Steps:
    while True:
        client.send(frame(b"\x01" + varint(4096) + random.randbytes(20)))
        yield
        client.read()


def random_deregistrations(client: Hostile) -> Steps:
    while True:
        client.send(b"".join(deregister(random.randrange(-(2**31), 2**31)) for _ in range(20)))
        yield
        for _ in range(20):
            client.read()


def huge_maps(client: Hostile) -> Steps:
    while True:
        client.send(new_map(random.choice([0, 1 << 40, 1 << 46, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])))
        yield
        client.read()


def many_maps(client: Hostile) -> Steps:
    for _ in range(20):
        client.send(new_map(4096))
        yield
        client.read()
    yield from silent(client)


def forks_without_children(client: Hostile) -> Steps:
    client.send(new_map(4096))
    while True:
        client.send(PRE_FORK * 5)
        yield
        client.read()


def children_of_others(client: Hostile) -> Steps:
    while True:
        client.send(post_fork_child_hello(random.choice([-1, random.randrange(3000)])))
        yield
        client.read()


def brings_descriptors(client: Hostile) -> Steps:
    with open("/dev/null") as file:
        while True:
            client.send(HELLO, (file.fileno(),) * random.choice([1, 5, 50]))
            yield
            client.read()


def brings_itself(client: Hostile) -> Steps:
    """A socket that is sent through itself goes only when the kernel looks for such circles."""
    while True:
        client.send(HELLO[:3], (client.socket.fileno(),))
        yield
        client.connect()
        yield


def comes_and_goes(client: Hostile) -> Steps:
    while True:
        client.connect()
        yield


def asks_and_goes(client: Hostile) -> Steps:
    while True:
        client.send(new_map(4096) + PRE_FORK)
        client.connect()
        yield


def never_reads_maps(client: Hostile) -> Steps:
    while True:
        client.send(new_map(4096) + deregister(1))
        yield


def never_reads_numbers(client: Hostile) -> Steps:
    while True:
        client.send(HELLO * 50)
        yield


def reads_late(client: Hostile) -> Steps:
    while True:
        client.send(HELLO * 20)
        for _ in range(20):
            yield
        for _ in range(20):
            client.read()


def writes_no_more(client: Hostile) -> Steps:
    client.send(new_map(4096))
    client.socket.shutdown(socket.SHUT_WR)
    yield from silent(client)


def reads_no_more(client: Hostile) -> Steps:
    client.send(new_map(4096))
    client.socket.shutdown(socket.SHUT_RD)
    while True:
        client.send(HELLO)
        yield


def neither_reads_nor_writes(client: Hostile) -> Steps:
    client.send(HELLO[:3])
    client.socket.shutdown(socket.SHUT_RDWR)
    yield from silent(client)


def exit_first(client: Hostile) -> Steps:
    while True:
        client.send(EXIT)
        yield
        client.connect()
        yield


def exit_later(client: Hostile) -> Steps:
    client.send(HELLO)
    while True:
        yield
        client.read()
        client.send(EXIT * 3)
        if client.is_closed():
            client.connect()
            client.send(HELLO)


def out_of_band(client: Hostile) -> Steps:
    while True:
        client.send(HELLO, flags=socket.MSG_OOB)
        yield
        client.read()
        if client.is_closed():
            client.connect()


KINDS: list[Callable[[Hostile], Steps]] = [
    silent,
    half_a_header,
    half_a_frame,
    one_byte_at_a_time,
    four_gib,
    a_body_without_end,
    garbage,
    garbage_tags,
    varints_without_end,
    empty_frames,
    wrong_end_first,
    much_after_a_request,
    ids_of_others,
    freed_ids,
    garbage_ids,
    random_deregistrations,
    huge_maps,
    many_maps,
    forks_without_children,
    children_of_others,
    brings_descriptors,
    brings_itself,
    comes_and_goes,
    asks_and_goes,
    never_reads_maps,
    never_reads_numbers,
    reads_late,
    writes_no_more,
    reads_no_more,
    neither_reads_nor_writes,
    exit_first,
    exit_later,
    out_of_band,
]


def attack(address: str, kinds: list[Callable[[Hostile], Steps]], count: int) -> None:
    """Be so many of them until somebody ends it."""
    os.nice(5)  # the service is under test, not the machine's scheduler
    clients = []
    for number in range(count):
        with contextlib.suppress(*GONE):
            client = Hostile(address)
            clients.append((client, kinds[number % len(kinds)](client)))
    while True:
        start = time.monotonic()
        for _, steps in clients:
            with contextlib.suppress(*GONE, OSError, StopIteration):
                next(steps)
        time.sleep(max(0.0, 0.1 - (time.monotonic() - start)))


def become_nobody_and(attack: Callable[..., None], *arguments: object) -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    attack(*arguments)


PHASES = [
    [],
    [HELLO[:3]],
    [HELLO],
    [HELLO, new_map(4096)[:4]],
    [new_map(4096), new_map(4096)],
    [new_map(4096), PRE_FORK],
    [new_map(4096), PRE_FORK, deregister(1)[:5]],
]


def die_in_a_phase(address: str) -> None:
    """Be killed with requests under way and replies unread."""
    client = Client(address, PATIENCE)
    with contextlib.suppress(*GONE, Closed):
        for request in random.choice(PHASES):
            client.send(request)
            if random.random() < 0.5 and len(request) > 4:
                client.reply()
    os.kill(os.getpid(), signal.SIGKILL)


# ---- Processes of them


def _be(function: Callable[..., None], arguments: tuple[object, ...]) -> NoReturn:
    soft = min(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, soft))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        function(*arguments)
    finally:
        os._exit(0)


def fork(function: Callable[..., None], *arguments: object) -> int:
    pid = os.fork()
    if pid == 0:
        _be(function, arguments)
    return pid


@contextlib.contextmanager
def attackers(address: str) -> Iterator[None]:
    """All kinds at once: in four processes, of which one is another user's and one is stopped."""
    others = 40
    pids = [
        fork(attack, address, KINDS, CLIENTS // 2 - others),
        fork(attack, address, KINDS[::-1], CLIENTS // 2 - others),
        fork(attack, address, KINDS, others),
    ]
    if not os.getuid():
        pids.append(fork(become_nobody_and, attack, address, KINDS, others))
    try:
        time.sleep(0.5)
        os.kill(pids[2], signal.SIGSTOP)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def be_honest(service: Service, seconds: float) -> list[float]:
    """Do what clients do for so long, with a connection that stays and new ones. Give the times of the answers."""
    times = []

    def timed(client: Client, request: bytes) -> int:
        start = time.monotonic()
        number, fds = client.ask(request)
        times.append(time.monotonic() - start)
        assert number >= 0
        for fd in fds:
            client.fds.remove(fd)
            os.close(fd)
        return number

    deadline = time.monotonic() + seconds
    with service.connect(PATIENCE) as steady:
        id = steady.new()
        while time.monotonic() < deadline:
            dying = fork(die_in_a_phase, service.address)
            start = time.monotonic()
            with service.connect(PATIENCE) as fresh:
                fresh.hello()
                times.append(time.monotonic() - start)
                timed(fresh, existing_map(id))
                assert timed(fresh, deregister(id)) >= 2
            made = timed(steady, new_map(4096))
            assert timed(steady, deregister(made)) >= 1
            os.waitpid(dying, 0)
    return times


def test_an_honest_client_among_hostile_ones(start: Callable[..., Service], capsys: pytest.CaptureFixture[str]) -> None:
    service = start(fork_timeout_ms=1000, max_clients=4096)
    service.ask("limit", 8192)

    def settled() -> int:
        assert service.wait_until(service.is_empty, 10)
        assert service.wait_until(lambda: service.descriptors() == before, 10)
        assert service.is_idle(1)
        return service.memory()

    before = service.descriptors()
    with attackers(service.address):
        be_honest(service, 1)
    memory = settled()

    busiest = 0
    with attackers(service.address):
        times = be_honest(service, 6)
        busiest = service.stats()["clients"]
    assert settled() <= memory + (4 << 20)

    stats = service.stats()
    times.sort()
    slowest, typical = times[-1], times[len(times) // 2]
    with capsys.disabled():
        print(f" {len(times)} answers, half in {1000 * typical:.1f} ms, all in {1000 * slowest:.0f} ms, among", end="")
        print(f" {busiest} clients of {stats['accepted']}, {stats['requests']} requests, {stats['refused']} refused")
    assert slowest < PATIENCE
    assert len(KINDS) >= 30
    assert busiest > CLIENTS // 2
    assert stats["accepted"] > 2 * CLIENTS
