"""The Rust crate's clients with this project's service, and its service with this project's clients, over memfd."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import seeds
import wire
from wire import (
    LIBAFL,
    PRE_FORK,
    Service,
    deregister,
    existing_map,
    new_map,
    own_network,
    post_fork_child_hello,
    serving,
)

from shmem_providers import (
    MemfdShMemProvider,
    RcShMemProvider,
    ServedShMemProvider,
    ServiceError,
    ShMem,
)

pytestmark = [
    pytest.mark.needs("linux"),  # memfd, and the crate's abstract name
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

SIZE = 4096


@pytest.fixture(params=["seed_program", "newest_seed_program"])
def program(request: pytest.FixtureRequest) -> Path:
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def network(program: Path) -> Iterator[None]:
    """What else runs on this machine may have the crate's name."""
    with own_network():
        yield


@pytest.fixture
def service(network: None) -> Iterator[Service]:
    with serving(LIBAFL, "memfd") as service:
        before = service.descriptors()
        yield service
        assert service.wait_until(service.is_empty)
        assert service.wait_until(lambda: service.descriptors() == before)


@pytest.fixture
def seeds_service(network: None, program: Path) -> Iterator[seeds.Served]:
    served = seeds.Served(program)
    assert served.answer == "started"
    yield served
    served.end()


@pytest.fixture(params=[{}, {"AFL_SHMEM_SERVICE_STARTED": "true"}], ids=["tries to serve", "knows of a service"])
def client(request: pytest.FixtureRequest, program: Path, network: None) -> Iterator[Callable[[], seeds.Client]]:
    """Give a function that starts a client of the crate's, which finds a service at its address."""
    with contextlib.ExitStack() as stack:

        def start() -> seeds.Client:
            started = seeds.Client(program, request.param)
            stack.enter_context(started.process)
            return started

        yield start


# ---- The crate's clients


def test_a_seed_is_served(service: Service, client: Callable[[], seeds.Client]) -> None:
    seed = client()
    number, id = seed.new(SIZE)
    server_id = id.partition(":")[0]
    seed.write(number, b"from the crate")
    with service.connect() as other:
        with mmap.mmap(other.attach(int(server_id)), SIZE) as memory:
            assert memory[:14] == b"from the crate"
            memory[:7] = b"answer!"
        assert seed.read(number, 14) == b"answer! crate"[:7] + b"e crate"
        assert other.ask(deregister(int(server_id))).number == 2
    seed.ask("drop", number)
    assert service.wait_until(lambda: service.stats()["segments"] == 0)
    seed.end()


def test_a_seed_attaches(service: Service, client: Callable[[], seeds.Client]) -> None:
    seed, second = client(), client()
    with service.connect() as other:
        id = other.new(SIZE)
        with mmap.mmap(other.fds[0], SIZE) as memory:
            memory[:2] = b"hi"
            one, two = seed.attach(str(id), SIZE), second.attach(f"{id}:99", SIZE)
            seed.write(one, b"HI")
            assert second.read(two, 2) == memory[:2] == b"HI"
        assert other.ask(deregister(id)).number == 3
    second.ask("drop", two)
    assert seed.read(one, 2) == b"HI"
    seed.end()
    second.end()


def test_seeds_share(service: Service, client: Callable[[], seeds.Client]) -> None:
    seed, second = client(), client()
    number, id = seed.new(SIZE)
    other = second.attach(id, SIZE)
    second.write(other, b"shared")
    assert seed.read(number, 6) == b"shared"
    seed.end()
    assert second.read(other, 6) == b"shared"
    second.end()


def test_a_seed_forks(service: Service, client: Callable[[], seeds.Client]) -> None:
    seed = client()
    number, _ = seed.new(SIZE)
    for turn in range(5):
        data = bytes([turn]) * 8
        assert seed.ask("fork", number, data.hex()) == "0"
        assert seed.read(number, 8) == data
    assert service.wait_until(lambda: service.stats()["clients"] == 1)
    assert service.stats()["segments"] == 1
    seed.ask("drop", number)
    assert service.wait_until(lambda: service.stats()["segments"] == 0)
    seed.end()


def test_a_seed_has_a_thousand_maps(service: Service, client: Callable[[], seeds.Client]) -> None:
    seed = client()
    assert seed.ask("many", 1000, SIZE) == "done"
    assert service.wait_until(lambda: service.stats()["segments"] == 0)
    seed.end()


def test_a_seed_that_is_refused_goes_on(service: Service, client: Callable[[], seeds.Client]) -> None:
    seed = client()
    with pytest.raises(seeds.SeedError, match="Failed to map"):
        seed.attach("12345", SIZE)
    with pytest.raises(seeds.SeedError):
        seed.new(1 << 62)
    number, _ = seed.new(SIZE)
    seed.write(number, b"on")
    assert seed.read(number, 2) == b"on"
    seed.end()


def test_a_killed_seed_leaves_nothing(service: Service, client: Callable[[], seeds.Client]) -> None:
    seed = client()
    for _ in range(10):
        seed.new(SIZE)
    assert service.stats()["segments"] == 10
    seed.process.kill()
    seed.process.wait()
    assert service.wait_until(service.is_empty)


def test_a_seed_and_our_client_share(service: Service, client: Callable[[], seeds.Client]) -> None:
    seed = client()
    provider = our_client()
    number, id = seed.new(SIZE)
    with provider.shmem_from_id_and_size(id, SIZE) as shm:
        seed.write(number, b"crate")
        assert shm[:5] == b"crate"
    with provider.new_shmem(SIZE) as shm:
        other = seed.attach(shm.id, SIZE)
        seed.write(other, b"crate")
        assert shm[:5] == b"crate"
    assert seed.read(other, 5) == b"crate"
    seed.end()
    del provider, shm


# ---- The crate's service


def our_client() -> ServedShMemProvider:
    return ServedShMemProvider(MemfdShMemProvider(), LIBAFL)


@pytest.mark.usefixtures("seeds_service")
def test_the_seed_serves_us() -> None:
    one, two = our_client(), our_client()
    with one.new_shmem(SIZE) as shm:
        assert (len(shm), shm[:]) == (SIZE, bytes(SIZE))
        with two.shmem_from_id_and_size(shm.id, SIZE) as other, one.clone_ref(shm) as third:
            other[:5] = b"hello"
            assert shm[:5] == third[:5] == b"hello"


@pytest.mark.usefixtures("seeds_service")
def test_the_seed_serves_us_after_release() -> None:
    provider = our_client()
    for _ in range(1000):
        with provider.new_shmem(SIZE) as shm, provider.clone_ref(shm) as again:
            shm[0] = 7
            assert again[0] == 7


@pytest.mark.usefixtures("seeds_service")
def test_the_seed_serves_us_a_thousand_maps() -> None:
    provider = our_client()
    with contextlib.ExitStack() as stack:
        maps = [stack.enter_context(provider.new_shmem(SIZE)) for _ in range(1000)]
        for number, shm in enumerate(maps):
            shm[:2] = number.to_bytes(2, "little")
        for number, shm in enumerate(maps):
            with provider.shmem_from_id_and_size(shm.id, SIZE) as again:
                assert again[:2] == number.to_bytes(2, "little")


@pytest.mark.usefixtures("seeds_service")
def test_we_fork_as_the_seed_does() -> None:
    provider = RcShMemProvider(our_client())
    with provider.new_shmem(SIZE) as shm:
        for turn in range(1, 6):
            provider.pre_fork()
            pid = os.fork()
            if pid == 0:
                os._exit(in_child(provider, shm, turn))
            provider.post_fork(False)
            assert os.waitpid(pid, 0)[1] == 0
            assert shm[0] == turn


def in_child(provider: RcShMemProvider, shm: ShMem, turn: int) -> int:
    try:
        provider.post_fork(True)
        shm[0] = turn
        with provider.clone_ref(shm) as again, provider.new_shmem(SIZE) as own:
            own[0] = again[0]
            return int(own[0] != turn)
    except BaseException:
        return 2


def test_the_seeds_service_goes(seeds_service: seeds.Served) -> None:
    provider = our_client()
    with provider.new_shmem(SIZE) as shm:
        seeds_service.process.kill()
        seeds_service.process.wait()
        with pytest.raises(ServiceError):
            provider.new_shmem(SIZE)
        shm[0] = 7
        assert shm[0] == 7
    seeds_service.process.returncode = 0  # it is not to end well


# ---- Both services say the same


def conversation() -> list[object]:
    """Give the replies of the service, where ids are replaced by the order in which they appeared."""
    with contextlib.ExitStack() as stack:
        clients = []
        for _ in range(3):  # the crate's service listens to nobody else from connect to the first request
            client = stack.enter_context(wire.Client(LIBAFL))
            assert client.hello() == client.hello() >= 0
            clients.append(client)
        one, two, child = clients
        said: list[object] = []
        parent = one.hello()
        id, second = one.new(1000), one.new(SIZE)
        for client, request in [
            (one, existing_map(id, 1000)),
            (two, existing_map(id, 1000)),
            (one, deregister(id)),
            (one, PRE_FORK),
            (one, new_map(70000)),
            (child, post_fork_child_hello(parent)),
            (child, existing_map(second, SIZE)),
            (child, deregister(second)),
            (child, deregister(second)),
            (child, deregister(second)),
            (child, deregister(id)),
            (two, deregister(id)),
            (two, deregister(id)),
            (two, deregister(1 << 20)),
            (two, deregister(-1)),
            (one, deregister(id)),
            (one, deregister(id)),
        ]:
            number, fds = client.ask(request)
            body = request[4:5]
            names = {id: "first", second: "second"} if body == b"\x01" else {}
            if body in (b"\x00", b"\x04", b"\x05"):
                names = {number: "some id"}
            said.append((names.get(number, number), [os.fstat(fd).st_size for fd in fds]))
        return said


def test_both_services_say_the_same(program: Path) -> None:
    with own_network():
        with serving(LIBAFL, "memfd"):
            ours = conversation()
        served = seeds.Served(program)
        assert served.answer == "started"
        theirs = conversation()
        served.end()
    assert ours == theirs


def test_two_services_at_one_address(service: Service, program: Path) -> None:
    assert "already be running" in seeds.Served(program).answer
    with pytest.raises(OSError, match="there already"):
        Service(LIBAFL)
