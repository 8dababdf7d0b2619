"""Clients, services, children and parents that are killed or stopped at any instant."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from held import held
from wire import Service, serving

from shmem_providers import (
    MemfdShMemProvider,
    RcShMemProvider,
    ServedShMemProvider,
    ServiceError,
    ShMem,
    ShMemProvider,
)

pytestmark = [
    pytest.mark.needs("linux", "limits", "fork"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]

SIZE = 4096
Start = Callable[..., Service]


def client_of(service: Service, timeout: float = 5) -> ServedShMemProvider:
    return ServedShMemProvider(MemfdShMemProvider(), service.address, timeout=timeout)


def server_id(shm: ShMem) -> int:
    return int(str(shm.id).partition(":")[0])


def in_child(function: Callable[[], object]) -> int:
    """Give the pid of a child that does this."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        function()
        code = 0
    finally:
        os._exit(code)


def end_of(pid: int) -> int:
    """Give the exit status, or the signal as a negative number."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert end_of(pid) == -signal.SIGKILL


# ---- Clients


def churn(service: Service, known: str) -> NoReturn:
    provider = client_of(service)
    rc = RcShMemProvider(client_of(service))
    held: list[ShMem] = []
    while True:
        maker: ShMemProvider = random.choice([provider, rc])
        held.append(maker.new_shmem(SIZE))
        held.append(maker.shmem_from_id_and_size(known, SIZE))
        held[-1][:8] = b"a client"
        if random.random() < 0.1:
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
        while len(held) > 20:
            held.pop(random.randrange(len(held))).close()


def kill_200(service: Service) -> None:
    with client_of(service).new_shmem(SIZE) as shm:
        for _ in range(200):
            pid = in_child(lambda: churn(service, shm.id))
            time.sleep(random.uniform(0, 0.03))
            kill(pid)
        assert service.wait_until(lambda: service.stats()["segments"] == 1)
        assert service.wait_until(lambda: service.stats()["clients"] == 1)
        with service.connect() as other:
            other.attach(server_id(shm))
        shm[0] = 7


def test_a_killed_client_leaves_nothing(start: Start) -> None:
    service = start(fork_timeout_ms=500)
    before = service.descriptors()
    kill_200(service)
    assert service.wait_until(service.is_empty)
    assert service.wait_until(lambda: service.descriptors() == before)


def test_what_a_killed_client_announced_lingers(start: Start) -> None:
    service = start(linger_ms=1000)
    ids, told = os.pipe()

    def announce() -> None:
        shm = client_of(service).new_shmem(SIZE)
        shm[:5] = b"hello"
        os.write(told, str(shm.id).encode())
        time.sleep(60)

    pid = in_child(announce)
    id = os.read(ids, 100).decode()
    kill(pid)
    os.close(ids)
    os.close(told)
    provider = client_of(service)
    with provider.shmem_from_id_and_size(id, SIZE) as shm:
        assert shm[:5] == b"hello"
        time.sleep(1.2)  # who has it keeps it
        with provider.shmem_from_id_and_size(id, SIZE) as again:
            assert again[:5] == b"hello"
    assert service.wait_until(lambda: service.stats()["segments"] == 0)
    with pytest.raises(FileNotFoundError):
        provider.shmem_from_id_and_size(id, SIZE)


# ---- Services


def test_a_killed_service_is_an_error_and_the_next_one_is_found() -> None:
    with serving() as service:
        provider = client_of(service)
        kept = [provider.new_shmem(SIZE)]
        for turn in range(10):
            service.kill()
            with pytest.raises(ServiceError):
                provider.new_shmem(SIZE)
            with pytest.raises(ServiceError):
                provider.shmem_from_id_and_size(kept[0].id, SIZE)
            for number, shm in enumerate(kept):
                shm[0] = number + turn
            assert [shm[0] for shm in kept] == list(range(turn, turn + len(kept)))
            with serving(service.address) as next:
                kept.append(provider.new_shmem(SIZE))
                with client_of(next).shmem_from_id_and_size(kept[-1].id, SIZE) as again:
                    again[1] = turn
                assert kept[-1][1] == turn
                next.kill()
        for shm in kept:
            shm.close()


def test_a_service_is_killed_while_threads_ask(start: Start) -> None:
    service = start()
    errors: list[BaseException] = []
    goes_on = True

    def ask() -> None:
        provider = client_of(service, timeout=2)
        while goes_on:
            try:
                with provider.new_shmem(SIZE) as shm, provider.clone_ref(shm) as again:
                    shm[0] = 7
                    assert again[0] == 7
            except ServiceError:
                time.sleep(0.01)
            except BaseException as problem:
                errors.append(problem)
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        address, current = service.address, service
        for _ in range(8):
            time.sleep(random.uniform(0.02, 0.1))
            current.kill()
            current = start(address)
        provider = client_of(current)
        provider.new_shmem(SIZE).close()
    finally:
        goes_on = False
        for thread in threads:
            thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert errors == []


def states_of(service: Service) -> set[str]:
    """Give the states of its threads, a letter each."""
    tasks = Path(f"/proc/{service.pid}/task").iterdir()
    return {(task / "stat").read_text().rpartition(")")[2].split()[0] for task in tasks}


def test_a_stopped_service_is_an_error_in_time(start: Start) -> None:
    service = start()
    provider = client_of(service, timeout=0.5)
    shm = provider.new_shmem(SIZE)
    os.kill(service.pid, signal.SIGSTOP)
    assert service.wait_until(lambda: states_of(service) == {"T"})
    try:
        for _ in range(3):
            begin = time.monotonic()
            with pytest.raises(ServiceError):
                provider.new_shmem(SIZE)
            assert 0.1 < time.monotonic() - begin < 5
            shm[0] = 7
        begin = time.monotonic()
        shm.close()
        assert time.monotonic() - begin < 5
    finally:
        os.kill(service.pid, signal.SIGCONT)
    with provider.new_shmem(SIZE) as shm:
        assert shm[:] == bytes(SIZE)
    assert service.wait_until(lambda: service.stats()["segments"] == 0)


# ---- Forks


@pytest.fixture(params=["memfd", "served"])
def rc(request: pytest.FixtureRequest, start: Start) -> tuple[RcShMemProvider, Service]:
    service = start(fork_timeout_ms=500)
    inner: ShMemProvider = client_of(service) if request.param == "served" else MemfdShMemProvider()
    return RcShMemProvider(inner), service


def test_a_storm_of_forks(rc: tuple[RcShMemProvider, Service]) -> None:
    """Children that are killed before, in and after their hand-shake, and such as go on."""
    provider, service = rc
    with provider.new_shmem(SIZE) as shm:
        for turn in range(100):

            def use(turn: int = turn) -> None:
                with provider.clone_ref(shm) as again, provider.new_shmem(SIZE) as own:
                    own[0] = again[0] = turn
                    assert shm[0] == turn

            begin = time.monotonic()
            pid = in_child(use)
            assert time.monotonic() - begin < 10
            if turn % 2:
                time.sleep(random.uniform(0, 0.005))
                os.kill(pid, signal.SIGKILL)
                assert end_of(pid) in (0, -signal.SIGKILL)
            else:
                assert end_of(pid) == 0
                assert shm[0] == turn
        with provider.clone_ref(shm) as again:
            assert again[0] == shm[0]
    assert service.wait_until(lambda: service.stats()["segments"] == 0)


def test_children_that_die_before_their_handshake(rc: tuple[RcShMemProvider, Service]) -> None:
    provider, service = rc
    before = held()
    with provider.new_shmem(SIZE) as shm:
        for turn in range(50):
            provider.pre_fork()
            pid = os.fork()
            if pid == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            begin = time.monotonic()
            provider.post_fork(False)
            assert time.monotonic() - begin < 10
            assert end_of(pid) == -signal.SIGKILL
            shm[0] = turn
        with provider.clone_ref(shm), provider.new_shmem(SIZE):
            pass
    assert service.wait_until(lambda: service.stats()["segments"] == 0)
    assert held() == before


def test_threads_fork_at_once(rc: tuple[RcShMemProvider, Service]) -> None:
    provider, service = rc
    ends: list[int] = []

    def fork_often() -> None:
        with provider.new_shmem(SIZE) as shm:
            for turn in range(10):

                def use(turn: int = turn) -> None:
                    with provider.clone_ref(shm):
                        shm[0] = turn + 1

                ends.append(end_of(in_child(use)))
                if shm[0] != turn + 1:
                    ends.append(-1000)

    threads = [threading.Thread(target=fork_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert ends == [0] * 40
    assert service.wait_until(lambda: service.stats()["segments"] == 0)


def test_children_of_children(rc: tuple[RcShMemProvider, Service]) -> None:
    provider, service = rc

    def descend(depth: int) -> None:
        with provider.clone_ref(shm) as again:
            again[depth] = depth
        if depth < 8:
            assert end_of(in_child(lambda: descend(depth + 1))) == 0

    with provider.new_shmem(SIZE) as shm:
        descend(1)
        assert shm[1:9] == bytes(range(1, 9))
    assert service.wait_until(lambda: service.stats()["segments"] == 0)


def test_a_child_lives_longer_than_its_parent(rc: tuple[RcShMemProvider, Service]) -> None:
    provider, service = rc
    result, told = os.pipe()

    def be_parent() -> None:
        shm = provider.new_shmem(SIZE)
        shm[:5] = b"hello"

        def be_child() -> None:
            time.sleep(0.3)
            with provider.clone_ref(shm) as again, provider.new_shmem(SIZE):
                os.write(told, again[:5])

        in_child(be_child)
        os.kill(os.getpid(), signal.SIGKILL)

    assert end_of(in_child(be_parent)) == -signal.SIGKILL
    os.close(told)
    assert os.read(result, 10) == b"hello"
    os.close(result)
    assert service.wait_until(lambda: service.stats()["segments"] == 0)


def test_the_service_is_lost_between_pre_fork_and_post_fork(start: Start) -> None:
    service = start()
    provider = RcShMemProvider(client_of(service, timeout=1))
    shm = provider.new_shmem(SIZE)
    shm[0] = 7
    provider.pre_fork()
    service.kill()
    begin = time.monotonic()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(OSError):
            provider.post_fork(True)
        os._exit(0 if shm[0] == 7 else 1)
    with contextlib.suppress(OSError):
        provider.post_fork(False)
    assert end_of(pid) == 0
    assert time.monotonic() - begin < 20
    assert shm[0] == 7
    shm.close()
