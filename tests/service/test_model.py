"""Random lives of clients, of which the service thinks what a few lines of Python do; and random answers to ours."""

from __future__ import annotations

import array
import contextlib
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from held import held
from wire import PRE_FORK, Client, Service, deregister, existing_map, post_fork_child_hello, same_file

from shmem_providers import MemfdShMemProvider, ServedShMemProvider

SIZE = 4096
STEPS = 20_000 if os.environ.get("SHMP_LONG") else 2_000


class Model:
    """Who holds how many references on what."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.clients: dict[int, Client] = {}
        self.held: dict[int, Counter[int]] = {}
        self.announced: dict[int, Counter[int]] = {}
        self.files: dict[int, int] = {}  # a descriptor of each segment that there ever was
        self.gone: list[int] = []
        self.most = 0

    def count(self, id: int) -> int:
        return sum(held[id] for held in (*self.held.values(), *self.announced.values()))

    def connect(self) -> None:
        client = self.service.connect()
        number = client.hello()
        assert number not in self.clients
        assert number > self.most
        self.most = number
        self.clients[number] = client
        self.held[number] = Counter()

    def close(self, number: int) -> None:
        self.clients.pop(number).close()
        self.gone.append(number)
        del self.held[number]
        assert self.service.wait_until(lambda: self.service.stats()["clients"] == len(self.clients))

    def new(self, number: int) -> None:
        client = self.clients[number]
        id = client.new(SIZE)
        assert id not in self.files
        self.files[id] = os.dup(client.fds.pop(0))
        self.held[number][id] += 1

    def attach(self, number: int) -> None:
        id = random.choice([*self.files, 1 << 30])
        reply = self.clients[number].ask(existing_map(id))
        assert (reply.number == id) == (self.count(id) > 0)
        if reply.number == id:
            assert same_file(reply.fd, self.files[id])
            self.held[number][id] += 1

    def release(self, number: int) -> None:
        id = random.choice([*self.files, 1 << 30])
        before = self.count(id) if self.held[number][id] else 0
        assert self.clients[number].ask(deregister(id)) == (before, [])
        if before:
            self.held[number][id] -= 1

    def pre_fork(self, number: int) -> None:
        assert self.clients[number].ask(PRE_FORK).number == number
        self.announced[number] = self.held[number].copy()

    def post_fork(self, number: int) -> None:
        """A child is a client that holds nothing yet."""
        if self.held[number].total():
            return
        parent = random.choice([*self.announced, *self.clients, *self.gone, -1])
        reply = self.clients[number].ask(post_fork_child_hello(parent))
        assert (reply.number == number) == (parent in self.announced)
        if reply.number == number:
            self.held[number] = self.announced.pop(parent)

    def step(self) -> None:
        if len(self.clients) < 2 or (len(self.clients) < 8 and random.random() < 0.1):
            self.connect()
        number = random.choice(list(self.clients))
        acts = [self.new, self.attach, self.attach, self.release, self.release, self.release, self.pre_fork]
        random.choice([*acts, self.post_fork, self.post_fork, self.close])(number)
        for client in self.clients.values():
            while client.fds:
                os.close(client.fds.pop())

    def check(self) -> None:
        living = [id for id in self.files if self.count(id)]
        stats = self.service.stats()
        assert (stats["segments"], stats["bytes"]) == (len(living), SIZE * len(living))


@pytest.mark.parametrize("seed", range(4))
def test_lives_of_clients(service: Service, seed: int) -> None:
    random.seed(seed)
    model = Model(service)
    try:
        for step in range(STEPS // 4):
            model.step()
            if step % 20 == 0:
                model.check()
        for parent in list(model.announced):  # children come for all of it, so that nothing stays for a minute
            model.connect()
            assert model.clients[model.most].ask(post_fork_child_hello(parent)).number == model.most
            model.held[model.most] = model.announced.pop(parent)
        model.check()
    finally:
        for client in model.clients.values():
            client.close()
        for fd in model.files.values():
            os.close(fd)


# ---- Random answers to this library's client


TEXTS = [b"-5", b"0", b"-", b"", b"9" * 20, b"2147483648", b"4294967301", b"5x", b"\0", b"5\0\0", b" 5", b"+5"]


def random_text() -> bytes:
    if random.random() < 0.6:
        return b"5"
    return random.choice([*TEXTS, random.randbytes(random.randrange(30)), str(random.getrandbits(31)).encode()])


@contextlib.contextmanager
def random_descriptors() -> Iterator[list[int]]:
    """Give any number of any kind, of which some are right."""
    with ExitStack() as stack:

        def opened(fd: int) -> int:
            stack.callback(os.close, fd)
            return fd

        def memfd() -> int:
            fd = opened(os.memfd_create("random"))
            os.ftruncate(fd, random.choice([0, 1, SIZE - 1, 2 * SIZE, *[SIZE] * 8]))
            return fd

        makers = [
            lambda: opened(os.open("/dev/null", os.O_RDWR)),
            lambda: opened(os.open("/", os.O_RDONLY)),
            lambda: opened(os.open(f"/proc/self/fd/{memfd()}", os.O_RDONLY)),
            lambda: opened(os.open(__file__, os.O_RDONLY)),
            lambda: opened(os.dup(stack.enter_context(socket.socket()).fileno())),
            lambda: opened(os.eventfd(0)),
        ]
        count = random.choice([0, 1, 1, 1, 1, 1, 1, 2, 5])
        yield [memfd() if random.random() < 0.8 else random.choice(makers)() for _ in range(count)]


def answer_at_random(connection: socket.socket) -> None:
    with connection, contextlib.suppress(OSError):
        connection.settimeout(5)
        if random.random() < 0.8:
            connection.recv(100)
            connection.sendall(b"5")  # to hello: else nothing else would be tried
        while request := connection.recv(100):
            if random.random() < 0.1:
                return
            text = b"1" if request[4] == 2 and random.random() < 0.9 else random_text()  # 2: deregister
            with random_descriptors() as fds:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
                if text:
                    connection.sendmsg([text], [] if text == b"1" else rights)


@pytest.mark.needs("linux")
def test_a_client_takes_any_answer_well() -> None:
    random.seed(5)
    address = f"@shmp_random_{os.getpid()}"
    threads: list[threading.Thread] = []
    granted = refused = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0" + address[1:])
        listener.listen()

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    threads.append(threading.Thread(target=answer_at_random, args=[connection]))
                    threads[-1].start()

        threads.append(threading.Thread(target=serve))
        threads[0].start()
        before = held()
        for _ in range(STEPS // 4):
            try:
                provider = ServedShMemProvider(MemfdShMemProvider(), address, timeout=0.2)
                for _ in range(5):
                    attach = random.random() < 0.5
                    with provider.shmem_from_id_and_size("5", SIZE) if attach else provider.new_shmem(SIZE) as shm:
                        assert len(shm) == SIZE
                        assert shm[0] + shm[-1] == 0
                    granted += 1
            except (OSError, ValueError):
                refused += 1
        provider = None  # type: ignore[assignment]
        listener.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)
        assert held() == before
    assert granted > STEPS // 100
    assert refused > STEPS // 20
