"""Many segments, many clients and many requests. SHMP_LONG=1 makes ten million of them."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from wire import PATIENCE, PRE_FORK, Client, Closed, Service, deregister, existing_map, new_map, post_fork_child_hello

pytestmark = pytest.mark.needs("linux", "limits")

SIZE, MIB = 4096, 1 << 20
SEGMENTS, CLIENTS = 15_000, 1_000
REQUESTS = 10_000_000 if os.environ.get("SHMP_LONG") else 100_000
Start = Callable[..., Service]


@pytest.fixture
def many_descriptors(missing: Callable[[str], Any]) -> Iterator[int]:
    """Let this process, and the services that it starts, have as many as they may; give how many."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most < SEGMENTS + 500:
        missing(f"needs a hard limit of {SEGMENTS + 500} descriptors: ulimit -Hn {SEGMENTS + 500}, as root")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    yield most
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))


def let_go(client: Client) -> None:
    """Close the descriptors here; the service keeps what this client has."""
    while client.fds:
        os.close(client.fds.pop())


@pytest.mark.usefixtures("many_descriptors")
def test_segments_up_to_the_limit_of_descriptors(start: Start) -> None:
    service = start(max_segments=2 * SEGMENTS)
    with service.connect() as greedy, service.connect() as modest, service.connect() as third:
        known = modest.new(SIZE)
        third.hello()
        service.ask("limit", SEGMENTS + len(service.descriptors()) + 50)
        ids = []
        while True:
            number = greedy.ask(new_map(SIZE)).number
            let_go(greedy)
            if number < 0:
                break
            ids.append(number)
        assert SEGMENTS <= len(ids) <= SEGMENTS + 100
        assert len(set(ids)) == len(ids)
        assert service.stats()["segments"] == len(ids) + 1

        greedy.refused(new_map(SIZE))  # again, and on the same connection
        modest.refused(new_map(SIZE))
        third.attach(known)  # which needs no descriptor of the service
        for id in (ids[0], ids[-1], ids[len(ids) // 2]):
            third.attach(id)
            assert third.ask(deregister(id)).number == 2
        assert third.ask(deregister(known)).number == 2
        with service.connect(PATIENCE) as newcomer, suppress(Closed, BrokenPipeError):
            newcomer.hello()  # or it is told to go, but does not wait
        assert greedy.ask(deregister(ids.pop())).number == 1
        assert greedy.ask(deregister(ids.pop())).number == 1
        modest.ask(deregister(modest.new(SIZE)))
        with service.connect() as newcomer:
            newcomer.hello()
        assert service.is_idle()
    assert service.wait_until(service.is_empty)


@pytest.mark.usefixtures("many_descriptors")
def test_a_thousand_clients_at_once(service: Service) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(service.connect()) for _ in range(CLIENTS)]
        assert len({client.hello() for client in clients}) == CLIENTS
        ids = [client.new(SIZE) for client in clients]
        assert len(set(ids)) == CLIENTS
        for client, id in zip(clients, reversed(ids), strict=True):
            client.attach(id)
            let_go(client)
        assert service.stats()["clients"] == CLIENTS
        for client, id in zip(clients, ids, strict=True):
            assert client.ask(deregister(id)).number in (1, 2)
        for client in clients[::2]:
            client.close()
        assert service.wait_until(lambda: service.stats()["clients"] == CLIENTS // 2)
        assert service.wait_until(lambda: service.stats()["segments"] == CLIENTS // 2)
        for client in clients[1::2]:
            client.hello()


def test_clients_beyond_the_most(start: Start) -> None:
    service = start(max_clients=10)
    with ExitStack() as stack:
        clients = [stack.enter_context(service.connect()) for _ in range(10)]
        for client in clients:
            client.hello()
        for _ in range(5):
            with service.connect(PATIENCE) as more, pytest.raises((Closed, BrokenPipeError)):
                more.hello()
        clients[3].close()
        assert service.wait_until(lambda: service.stats()["clients"] == 9)
        with service.connect() as more:
            more.hello()
        for client in clients:
            if client is not clients[3]:
                client.hello()


def requests_of_a_life(client: Client, other: Client, parent: int) -> int:
    """Make all kinds of them. Give their number."""
    id = client.ask(new_map(SIZE)).number
    client.ask(existing_map(id))
    other.ask(existing_map(id))
    client.ask(existing_map(b"garbage"))
    client.ask(new_map(0))
    client.ask(PRE_FORK)
    other.ask(post_fork_child_hello(parent))
    client.ask(existing_map(id + 1))
    for one, count in ((client, 5), (client, 4), (other, 3), (other, 2), (other, 1), (other, 0)):
        assert one.ask(deregister(id)).number == count
    let_go(client)
    let_go(other)
    return 14


def test_requests_leave_nothing(start: Start) -> None:
    service = start()
    with service.connect(60) as client, service.connect(60) as other:
        parent = client.hello()

        def make(requests: int) -> None:
            while requests > 0:
                requests -= requests_of_a_life(client, other, parent)

        make(REQUESTS // 10)
        memory, descriptors = service.memory(), service.descriptors()
        make(REQUESTS - REQUESTS // 10)
        assert service.memory() - memory < MIB
        assert service.descriptors() == descriptors
        assert service.stats()["segments"] == 0
        assert service.stats()["requests"] >= REQUESTS


def test_connections_leave_nothing(start: Start) -> None:
    service = start()

    def come_and_go(count: int) -> None:
        for _ in range(count):
            with service.connect() as client:
                client.new(SIZE)
                client.ask(PRE_FORK)
                client.ask(post_fork_child_hello(client.hello()))

    come_and_go(500)
    assert service.wait_until(service.is_empty)
    memory, descriptors = service.memory(), service.descriptors()
    come_and_go(REQUESTS // 50)
    assert service.wait_until(service.is_empty)
    assert service.memory() - memory < MIB
    assert service.descriptors() == descriptors
