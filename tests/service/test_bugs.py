"""What the Rust crate's service and its clients get wrong, by the number under which this project has noted it.

Each test here fails where things are done as the crate does them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from held import held
from wire import (
    EXIT,
    HELLO,
    LIBAFL,
    PATIENCE,
    PRE_FORK,
    Closed,
    Service,
    deregister,
    existing_map,
    new_map,
    own_network,
    post_fork_child_hello,
    same_file,
    serving,
)

from shmem_providers import (
    MemfdShMemProvider,
    MmapShMemProvider,
    RcShMemProvider,
    ServedShMemProvider,
    ServiceError,
    ShMemProvider,
    UnixShMemProvider,
    ffi,
    lib,
)

pytestmark = [
    pytest.mark.needs("linux", "limits", "fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

SIZE = 4096
NOBODY = 65534
MIB = 1 << 20

Start = Callable[..., Service]


@pytest.fixture
def as_root(missing: Callable[[str], Any]) -> None:
    if os.getuid():
        missing("needs root, to become another user")


def as_nobody(function: Callable[[], bool]) -> bool:
    """Tell what the function says in a child that is another user."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            code = int(not function())
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, 1), f"the child ended with {code}"
    return code == 0


def cannot_start(address: str) -> int | None:
    """Give the errno with which a service does not start."""
    try:
        Service(address).kill()
    except OSError as problem:
        return problem.errno
    pytest.fail("it has started")


def is_well(service: Service) -> bool:
    """Tell whether a new client gets what it asks for, in time."""
    start = time.monotonic()
    with service.connect(PATIENCE) as client:
        id = client.new()
        client.attach(id)
        client.ask(deregister(id))
        assert client.ask(deregister(id)).number == 1
    return time.monotonic() - start < PATIENCE


# ---- The service ends or stops answering


def test_b1_a_service_over_names(start: Start) -> None:
    service = start(provider="posix")
    names = set(os.listdir("/dev/shm"))
    with service.connect() as client:
        ids = [client.new() for _ in range(3)]
        assert len(set(ids)) == 3
        assert same_file(client.attach(ids[1]), client.fds[1])
        assert set(os.listdir("/dev/shm")) == names  # what nobody can find by name
    assert is_well(service)


def test_b2_an_id_that_was_let_go(service: Service) -> None:
    with service.connect() as one, service.connect() as two:
        id = one.new()
        assert one.ask(deregister(id)).number == 1
        one.refused(existing_map(id))
        two.refused(existing_map(id))
    assert is_well(service)


def test_b3_an_id_of_garbage(service: Service) -> None:
    chance = random.Random(3)
    with service.connect() as client:
        for _ in range(300):
            client.refused(existing_map(bytes([chance.randrange(58, 256)]) + chance.randbytes(chance.randrange(20))))
        for id in (b"", b" ", b"-", b"+", b"7 ", b"0x7", b"9" * 20, b"18446744073709551617", b"-2147483649"):
            client.refused(existing_map(id))
    assert is_well(service)


def test_b4_a_child_of_nobody(service: Service) -> None:
    with service.connect() as client:
        mine = client.hello()
        for id in (mine, mine + 1, -1, 0, 2**31 - 1, -(2**31)):
            client.refused(post_fork_child_hello(id))
        client.ask(PRE_FORK)
        client.ask(post_fork_child_hello(mine))
        client.refused(post_fork_child_hello(mine))  # it was taken
    assert is_well(service)


def test_b5_errors_are_answered(service: Service) -> None:
    for request in (new_map(0), new_map(1 << 63), existing_map(b"x"), existing_map(1 << 30), post_fork_child_hello(-1)):
        with service.connect(PATIENCE) as client:
            client.refused(request)
            client.refused(request)
            client.hello()


def test_b6_who_says_nothing_stops_nobody() -> None:
    with serving() as service:
        silent = [service.connect() for _ in range(20)]
        for number, client in enumerate(silent):
            client.send(existing_map(1, SIZE)[:number])
        assert is_well(service)
        assert service.stop() < 5
        for client in silent:
            client.close()


def test_b7_no_memory_for_what_a_header_says(service: Service) -> None:
    assert is_well(service)
    before = service.address_space()
    clients = [service.connect() for _ in range(50)]
    for client in clients:
        client.send((128 * MIB).to_bytes(4, "big") + b"\x03")
    assert is_well(service)
    assert service.address_space() - before < 100 * MIB
    for client in clients:
        client.close()


def test_b8_a_client_holds_so_much_and_no_more(start: Start) -> None:
    service = start(max_bytes=MIB, max_segments=20)
    with service.connect() as client, service.connect() as other:
        client.refused(new_map(MIB + 1))
        ids = [client.new(MIB // 4) for _ in range(4)]
        client.refused(new_map(SIZE))
        other.new(MIB)  # what one holds is no other's business
        client.ask(deregister(ids.pop()))
        client.new(MIB // 4)
        for _ in range(16):
            client.attach(ids[0])
        client.refused(existing_map(ids[0]))  # references are counted, too
        client.ask(deregister(ids[0]))
        client.attach(ids[0])
    assert is_well(service)


def test_b9_letting_go_of_what_is_not_held_takes_no_memory(service: Service) -> None:
    with service.connect() as client:
        for id in range(1000):
            client.ask(deregister(id + (1 << 20)))
        before = service.memory()
        for id in range(20000):
            assert client.ask(deregister(id + (1 << 21))).number == 0
        assert service.memory() - before < MIB


BAD_ADDRESSES = ["./", "@" + 200 * "x", 200 * "x", "/no/such/directory/service", "/proc/service", "/"]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_b10_a_service_that_cannot_start_says_so(address: str) -> None:
    start = time.monotonic()
    cannot_start(address)
    assert time.monotonic() - start < 10


def test_b10_and_another_one_can(tmp_path: Path) -> None:
    cannot_start(str(tmp_path / "none" / "s"))
    with serving(str(tmp_path / "s")) as service:
        assert is_well(service)


def test_b11_a_half_closed_connection_computes_nothing(service: Service) -> None:
    clients = [service.connect() for _ in range(9)]
    for number, client in enumerate(clients):
        client.new()
        client.socket.shutdown([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR][number % 3])
    assert is_well(service)
    assert service.is_idle()
    for client in clients:
        client.close()


def test_b11_no_descriptor_for_a_connection_computes_nothing(start: Start) -> None:
    service = start()
    with service.connect() as client:
        client.hello()
        service.ask("limit", len(service.descriptors()) + 4)
        waiting = [service.connect() for _ in range(20)]
        for other in waiting:
            other.socket.setblocking(False)
            with suppress(OSError):  # one that found no room may be closed
                other.send(HELLO)
        time.sleep(0.2)
        assert service.is_idle()
        client.hello()
        for other in waiting:
            other.close()
        assert service.wait_until(lambda: service.stats()["clients"] == 1)
    assert is_well(service)


def test_b11_unread_replies_compute_nothing(service: Service) -> None:
    clients = [service.connect() for _ in range(100)]
    for number, client in enumerate(clients):
        client.send(HELLO * (1 + number % 3) + new_map(SIZE) * (number % 2))
    assert is_well(service)
    assert service.is_idle()
    for client in clients:
        client.close()


def test_b11_requests_before_the_end_are_obeyed(service: Service) -> None:
    with service.connect() as child:
        with service.connect() as parent:
            id, mine = parent.new(), parent.hello()
            parent.send(PRE_FORK)
        child.hello()
        assert service.wait_until(lambda: service.stats()["clients"] == 1)
        child.ask(post_fork_child_hello(mine))
        assert child.ask(deregister(id)).number == 1


# ---- Security


@pytest.mark.usefixtures("as_root")
def test_b12_other_users_are_served_nothing(service: Service) -> None:
    with service.connect() as client:
        id, mine = client.new(), client.hello()
        client.ask(PRE_FORK)
        requests = [HELLO, new_map(SIZE), existing_map(id), post_fork_child_hello(mine), deregister(id), EXIT]

        def gets_nothing() -> bool:
            for request in requests:
                try:
                    with service.connect(PATIENCE) as stranger:
                        stranger.send(request)
                        text, fds = stranger.receive()
                        if fds or not text.startswith(b"-"):
                            return False
                except (Closed, OSError):
                    pass
            return True

        assert as_nobody(gets_nothing)
        assert client.ask(deregister(id)).number == 2
        assert client.ask(post_fork_child_hello(mine)).number >= 0
        assert client.ask(deregister(id)).number == 1


@pytest.mark.usefixtures("as_root")
def test_b12_but_those_that_are_to_be(start: Start) -> None:
    service = start(flags=lib.SHMP_ANY_USER)
    assert as_nobody(lambda: is_well(service))


@pytest.mark.usefixtures("as_root")
def test_b12_nobody_else_can_be_the_service() -> None:
    address = f"@shmp_squat_{os.getpid()}"
    listening, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.bind("\0" + address[1:])
            server.listen()
            os.write(told, b"x")
            while True:
                connection, _ = server.accept()
                connection.settimeout(2)
                try:
                    if connection.recv(100):
                        connection.sendall(b"5")
                except OSError:
                    pass
        finally:
            os._exit(0)
    os.read(listening, 1)
    try:
        with pytest.raises((ServiceError, PermissionError), match="user"):
            ServedShMemProvider(MemfdShMemProvider(), address).new_shmem(SIZE)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(listening)
        os.close(told)


@pytest.mark.usefixtures("as_root")
def test_b12_a_path_is_the_users_own(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with serving(str(tmp_path / "s")) as service:
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) & 0o077 == 0
        assert is_well(service)


def test_b13_the_default_address_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHMEM_SERVICE", raising=False)
    with own_network(), serving(None) as service:
        assert service.address != LIBAFL
        if service.address.startswith("@"):
            assert str(os.getuid()) in service.address
        else:
            status = Path(service.address).parent.stat()
            assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (os.getuid(), 0o700)
        assert is_well(service)


def test_b13_services_are_independent(start: Start) -> None:
    one, two = start(), start()
    assert one.address != two.address
    with one.connect() as client, two.connect() as other:
        for _ in range(5):
            client.new()
        other.refused(existing_map(client.new()))
        one.stop()
        assert client.is_closed()
        assert is_well(two)
        other.hello()


def test_b14_no_id_comes_again(service: Service) -> None:
    maps, clients = set(), set()
    for _ in range(300):
        with service.connect() as client:
            clients.add(client.hello())
            for _ in range(3):
                id = client.new()
                client.ask(deregister(id))
                client.refused(existing_map(id))
                maps.add(id)
    assert len(maps) == 900
    assert len(clients) == 300


# ---- Lifecycle


def test_b15_a_child_of_the_service_keeps_nothing_of_it() -> None:
    with serving() as service, service.connect() as client:
        client.new()
        child = service.ask("fork")["pid"]
        try:
            links = [os.readlink(link) for link in Path(f"/proc/{child}/fd").iterdir()]
            assert not [link for link in links if link.startswith(("socket:", "/memfd:", "anon_inode:"))]
            service.stop()
            assert client.is_closed()
            with pytest.raises(OSError, match="refused"):
                service.connect()
            with serving(service.address) as next:
                assert is_well(next)
        finally:
            os.kill(child, signal.SIGKILL)


def test_b16_what_no_child_comes_for_goes(start: Start) -> None:
    service = start(fork_timeout_ms=200)
    with service.connect() as parent:
        id, mine = parent.new(), parent.hello()
        for _ in range(100):
            parent.ask(PRE_FORK)
        assert parent.ask(deregister(id)).number == 2
        assert service.wait_until(lambda: service.stats()["segments"] == 0)
        parent.refused(post_fork_child_hello(mine))
    with service.connect() as parent:
        parent.new()
        parent.ask(PRE_FORK)
    assert service.wait_until(service.is_empty)


def rc_over(service: Service) -> RcShMemProvider:
    served = ServedShMemProvider(MemfdShMemProvider(), service.address)
    return RcShMemProvider(served)


def test_b17_a_child_that_dies_before_its_handshake(service: Service) -> None:
    provider = rc_over(service)
    with provider.new_shmem(SIZE) as shm:
        for _ in range(5):
            start = time.monotonic()
            provider.pre_fork()
            pid = os.fork()
            if pid == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            provider.post_fork(False)
            assert time.monotonic() - start < 10
            os.waitpid(pid, 0)
        shm[0] = 7
        with provider.new_shmem(SIZE), provider.clone_ref(shm) as again:
            assert again[0] == 7


def test_b17_a_parent_that_dies_before_its_handshake(service: Service) -> None:
    provider = rc_over(service)
    result, told = os.pipe()
    with provider.new_shmem(SIZE) as shm:
        shm[0] = 7
        parent = os.fork()
        if parent == 0:
            provider.pre_fork()
            if os.fork():
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                provider.post_fork(True)
            except OSError:
                pass  # it may say so; it may not wait for ever
            finally:
                os.write(told, b"x" if shm[0] == 7 else b"-")
                os._exit(0)
        os.waitpid(parent, 0)
        os.close(told)
        start = time.monotonic()
        assert os.read(result, 1) == b"x"
        assert time.monotonic() - start < 15
        os.close(result)


def test_b18_letting_go_when_the_service_has_gone(start: Start) -> None:
    service = start()
    provider = ServedShMemProvider(MemfdShMemProvider(), service.address)
    kept, closed = provider.new_shmem(SIZE), provider.new_shmem(SIZE)
    service.kill()
    closed.close()
    kept[0] = 7
    assert kept[0] == 7
    provider.release_shmem(kept)


def test_b18_who_lost_the_race_stops_nobody(start: Start) -> None:
    service = start()
    assert cannot_start(service.address) == errno.EADDRINUSE
    assert is_well(service)


def test_b18_and_b19_a_relative_path_may_be_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    with serving("./service") as service:
        service.ask("chdir", str(tmp_path / "b"))
        assert is_well(service)
        service.stop()
    assert not list(tmp_path.glob("*/service*"))


def test_b19_a_stale_socket_is_replaced_and_a_live_one_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(str(path)) as service:
        service.kill()
        assert path.is_socket()
    with serving(str(path)) as service:
        assert is_well(service)
        assert cannot_start(str(path)) == errno.EADDRINUSE
        assert is_well(service)
    assert not path.exists()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_b19_what_is_no_socket_is_left_alone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        (tmp_path / "target").write_text("precious")
        path.symlink_to(tmp_path / "target")
    cannot_start(str(path))
    assert path.is_symlink() or path.exists()
    if kind != "directory":
        assert path.read_text() == "precious"


def test_b19_one_of_many_starters_wins(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with serving(str(path)) as service:
        service.kill()
    reader, writer = os.pipe()
    pids = []
    for _ in range(6):
        pid = os.fork()
        if pid == 0:
            try:
                os.close(reader)
                try:
                    service = Service(str(path))
                    os.write(writer, b"1")
                    time.sleep(3)
                    service.stop()
                except OSError as problem:
                    os.write(writer, b"0" if problem.errno == errno.EADDRINUSE else b"?")
            finally:
                os._exit(0)
        pids.append(pid)
    os.close(writer)
    for pid in pids:
        os.waitpid(pid, 0)
    assert sorted(os.read(reader, 10)) == sorted(b"100000")
    os.close(reader)


def test_b20_the_library_sets_no_variable(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p

    def environment() -> dict[str, str]:
        names = [b"SHMEM_SERVICE", b"AFL_SHMEM_SERVICE_STARTED"]
        return {**os.environ, **{str(name): str(libc.getenv(name)) for name in names}}

    before = environment()
    options = ffi.new("shmp_service_options *")
    options.struct_size = ffi.sizeof(options[0])
    address = ffi.new("char[]", bytes(tmp_path / "s"))
    options.address = address
    started = ffi.new("shmp_service **")
    assert lib.shmp_service_start(ffi.NULL, options, started, ffi.NULL) == 0
    assert environment() == before
    assert lib.shmp_service_stop(started[0], ffi.NULL) == 0
    assert environment() == before


# ---- Leaks


@pytest.fixture
def leaks_nothing(service: Service) -> Iterator[Callable[[], None]]:
    """Give a function that checks that this process and the service hold what they held."""

    def all_held() -> tuple[set[str], list[str], dict[str, int]]:
        now = {name: service.stats()[name] for name in ("segments", "bytes")}
        return held(), service.descriptors(), now

    before = all_held()

    def check() -> None:
        assert service.wait_until(lambda: all_held()[2] == before[2])
        assert held() == before[0]

    yield check
    assert service.wait_until(lambda: service.descriptors() == before[1])


def test_b21_release_unmaps_whoever_else_has_it(service: Service) -> None:
    one, two = (ServedShMemProvider(MemfdShMemProvider(), service.address) for _ in range(2))
    with one.new_shmem(SIZE) as shm:
        before = held()
        for _ in range(10):
            other = two.shmem_from_id_and_size(shm.id, SIZE)
            two.release_shmem(other)
            two.shmem_from_id_and_size(shm.id, SIZE).close()
        assert held() == before
    del one, two


def test_b22_no_descriptor_is_left_of_a_posix_segment(start: Start) -> None:
    service = start(provider="posix")
    provider = ServedShMemProvider(MmapShMemProvider(fd_ids=True), service.address)
    provider.new_shmem(SIZE).close()
    assert service.wait_until(lambda: service.stats()["segments"] == 0)
    before, theirs = held(), service.descriptors()
    for _ in range(500):
        provider.new_shmem(SIZE).close()
    assert held() == before
    assert service.wait_until(lambda: service.descriptors() == theirs)


def test_b23_no_name_is_left(start: Start) -> None:
    before = set(os.listdir("/dev/shm"))
    service = start(provider="posix")
    provider = ServedShMemProvider(MmapShMemProvider(fd_ids=True), service.address)
    shms = [provider.new_shmem(SIZE) for _ in range(20)]
    service.kill()
    assert set(os.listdir("/dev/shm")) <= before
    for shm in shms:
        shm.close()


@pytest.mark.parametrize("inner", [MemfdShMemProvider, MmapShMemProvider, UnixShMemProvider])
def test_b24_rc_lets_go_of_all(inner: Callable[[], ShMemProvider]) -> None:
    provider = RcShMemProvider(inner())
    provider.new_shmem(SIZE).close()
    before = held()
    for _ in range(20):
        shm = provider.new_shmem(SIZE)
        again = provider.clone_ref(shm)
        shm.close()
        again[0] = 7
        again.close()
        provider.release_shmem(provider.new_shmem(SIZE))
    assert held() == before


def test_b24_to_release_and_to_close_is_once(service: Service) -> None:
    provider = rc_over(service)
    with provider.new_shmem(SIZE) as shm, service.connect() as client:
        id = int(str(shm.id).partition(":")[0])
        client.attach(id)
        for _ in range(5):
            again = provider.shmem_from_id_and_size(shm.id, SIZE)
            provider.release_shmem(again)
            again.close()
            provider.release_shmem(again)
            del again
        shm[0] = 7
        assert client.ask(deregister(id)).number == 2
