"""Python's services, and the providers that ask them."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shmem_providers import (
    LIBAFL_SERVICE_ADDRESS,
    DummyShMemService,
    MemfdShMemProvider,
    MmapShMemProvider,
    RcShMemProvider,
    ServedShMemProvider,
    ServiceError,
    ServiceStats,
    ShMemError,
    ShMemProvider,
    ShMemService,
    StdShMemProvider,
    StdShMemService,
    UnixShMemProvider,
    available_providers,
    open_provider,
)
from shmem_providers._binding import std_is_served

pytestmark = [pytest.mark.needs("served"), pytest.mark.usefixtures("nothing_leaks")]

VARIABLE = "SHMEM_SERVICE"


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="shmp") as folder:
        yield f"{folder}/service"


@pytest.fixture
def service(address: str) -> Iterator[ShMemService]:
    with ShMemService(address=address) as service:
        yield service


def until(condition: Callable[[], object], limit: float = 10) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


# ---- the service


def test_what_it_makes_others_attach_to(service: ShMemService, address: str, run_python: Callable[..., str]) -> None:
    assert (service.address, os.environ[VARIABLE], service.is_running) == (address, address, True)
    provider = ServedShMemProvider()
    code = (
        "import sys; from shmem_providers import *\n"
        "with open_provider(sys.argv[1]).shmem_from_id_and_size(sys.argv[2], 5000) as shm: shm[0] = shm[1] + 1\n"
    )
    with provider.new_shmem(5000) as shm:
        assert (shm.provider_name, shm.is_owner, len(shm), shm[:]) == ("served", True, 5000, bytes(5000))
        for name in ("served", "rc(served(memfd))", "std"):
            shm[0], shm[1] = 0, 7
            run_python(code, name, shm.id)
            assert shm[0] == 8, name
        stats = service.stats()
        assert (stats.segments, stats.bytes, stats.refused) == (1, 5000, 0)
        assert stats.clients >= 1
        assert stats.accepted >= 4
        assert stats.requests >= 8
        assert f"bytes={stats.bytes}" in repr(stats)
        assert stats == ServiceStats(*(getattr(stats, name) for name in repr_names(stats)))
    until(lambda: service.stats().segments == 0)


def repr_names(stats: ServiceStats) -> list[str]:
    return [part.partition("=")[0] for part in repr(stats).partition("(")[2].rstrip(")").split(", ")]


def test_the_environment_is_what_it_was(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for before in (None, "/before"):
        monkeypatch.delenv(VARIABLE)
        if before:
            monkeypatch.setenv(VARIABLE, before)
        for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]):
            services = [ShMemService(address=f"{address}{number}").start() for number in range(3)]
            left = services[:]
            for number in order:
                assert os.environ[VARIABLE] == left[-1].address
                services[number].stop()
                left.remove(services[number])
            assert os.environ.get(VARIABLE) == before
        with ShMemService(address=address):
            os.environ[VARIABLE] = "/somebody's"
        assert os.environ[VARIABLE] == "/somebody's"
        monkeypatch.setenv(VARIABLE, "")


def test_a_stopped_one_is_started_anew(address: str) -> None:
    service = ShMemService(address=address)
    assert (service.is_running, service.address, service.wait(0)) == (False, address, True)
    service.stop()
    with service.start():
        provider = ServedShMemProvider()
    for _ in range(3):
        assert service.start() is service
        assert service.start() is service
        until(lambda: _creates(provider))
        assert "at" in repr(service)
        service.stop()
        service.stop()
        assert not os.path.exists(address)
        with pytest.raises(ValueError, match="start"):
            service.stats()
        with pytest.raises(ServiceError, match=address):
            provider.new_shmem(10)
        assert "not running" in repr(service)


def _creates(provider: ShMemProvider) -> bool:
    try:
        provider.new_shmem(10).close()
    except ServiceError:
        return False
    return True


def test_what_is_mapped_outlives_the_service(address: str) -> None:
    with ShMemService(address=address):
        provider = RcShMemProvider(ServedShMemProvider())
        shm = provider.new_shmem(100)
        shm[:3] = b"old"
    with pytest.raises(ServiceError) as lost:
        provider.new_shmem(100)
    assert isinstance(lost.value, (ShMemError, OSError))
    assert "shmem-providers serve" in str(lost.value)
    with ShMemService(address=address), provider.new_shmem(100) as new:
        assert (shm[:3], new[:3]) == (b"old", bytes(3))
    shm.close()


def test_a_second_one_says_that_there_is_one(service: ShMemService, address: str) -> None:
    second = ShMemService(address=address)
    with pytest.raises(ServiceError, match="there already") as refused:
        second.start()
    assert refused.value.errno == errno.EADDRINUSE
    assert os.environ[VARIABLE] == address
    second.stop()
    ServedShMemProvider().new_shmem(1).close()


def test_waiting(address: str) -> None:
    with ShMemService(address=address, idle=0.2) as service:
        provider = ServedShMemProvider()
        assert not service.wait(0.5)
        del provider
        assert service.wait()
        assert not service.is_running
    service = ShMemService(address=address).start()
    waiting = threading.Thread(target=service.wait)
    waiting.start()
    time.sleep(0.05)
    service.stop()
    waiting.join(10)
    assert not waiting.is_alive()


def test_a_dropped_one_is_stopped(address: str) -> None:
    before = os.environ[VARIABLE]
    services = [ShMemService(address=address).start()]
    with pytest.warns(ResourceWarning, match="unstopped <ShMemService at"):
        services.clear()
    assert (os.environ[VARIABLE], os.path.exists(address)) == (before, False)


@pytest.mark.parametrize("make", [MemfdShMemProvider, MmapShMemProvider, lambda: MmapShMemProvider(fd_ids=True)])
def test_whatever_makes_its_segments(address: str, make: Callable[[], ShMemProvider]) -> None:
    with ShMemService(make(), address):
        for inner in (None, make()):
            with ServedShMemProvider(inner).new_shmem(10) as shm, ServedShMemProvider().attach(shm.id) as other:
                other[9] = 7
                assert (shm[9], len(other)) == (7, 10)
        assert not any(name.startswith("shmp_") for name in os.listdir("/dev/shm"))


def test_lingering(address: str) -> None:
    with ShMemService(address=address, linger=1) as service:
        first, second = ServedShMemProvider(), ServedShMemProvider()
        shm = first.new_shmem(10)
        shm[0], id = 7, shm.id
        shm.close()
        with second.attach(id) as again:
            assert again[0] == 7
        until(lambda: not service.stats().segments)
        with pytest.raises(FileNotFoundError, match=id.as_str()):
            second.attach(id)


def test_limits(address: str) -> None:
    with ShMemService(address=address, max_segments=2, max_bytes=10_000) as service:
        provider, other = ServedShMemProvider(), ServedShMemProvider()
        with provider.new_shmem(5000), provider.new_shmem(100):
            with pytest.raises(ServiceError, match="share"):
                provider.new_shmem(1)
            other.new_shmem(10_000).close()
            with pytest.raises(ServiceError, match="share"):
                other.new_shmem(10_001)
        provider.new_shmem(10_000).close()
        assert service.stats().refused == 2


WRONG: list[tuple[dict[str, Any], type[Exception]]] = [
    ({"inner": "memfd"}, TypeError),
    ({"inner": MemfdShMemProvider}, TypeError),
    ({"address": b"/x"}, TypeError),
    ({"address": 5}, TypeError),
    ({"linger": "1"}, TypeError),
    ({"linger": True}, TypeError),
    ({"linger": -1}, ValueError),
    ({"idle": float("nan")}, ValueError),
    ({"idle": float("inf")}, ValueError),
    ({"fork_timeout": 1e9}, ValueError),
    ({"max_clients": -1}, ValueError),
    ({"max_clients": 1.5}, TypeError),
    ({"max_frame": True}, TypeError),
    ({"max_segments": 2**32}, ValueError),
    ({"max_bytes": 2**64}, ValueError),
    ({"other": 1}, TypeError),
]


@pytest.mark.parametrize(("options", "error"), WRONG)
def test_wrong_arguments_of_a_service(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(options))):
        ShMemService(**options)


def test_addresses_that_cannot_be() -> None:
    before = os.environ[VARIABLE]
    wrong: tuple[tuple[str, Any], ...] = (
        ("/nowhere/service", OSError),
        ("x" * 104, (OSError, ValueError)),
        ("a\0b", ValueError),
        ("\ud800", ValueError),
    )
    for address, error in wrong:
        with pytest.raises(error):
            ShMemService(address=address).start()
        with pytest.raises(error):
            ServedShMemProvider(address=address)
    with pytest.raises(OSError, match="descriptors"):
        ShMemService(UnixShMemProvider()).start()
    assert os.environ[VARIABLE] == before


def test_services_where_none_is_needed() -> None:
    before = os.environ[VARIABLE]
    for service in (StdShMemService(), DummyShMemService()):
        if std_is_served and isinstance(service, StdShMemService):
            continue
        with service as entered:
            assert entered is service is service.start()
            assert (service.address, os.environ[VARIABLE]) == (None, before)
        service.stop()
    assert LIBAFL_SERVICE_ADDRESS == "@libafl_unix_shmem_server"


# ---- its clients


def test_providers_that_wrap(service: ShMemService, address: str) -> None:
    for provider, name in (
        (open_provider("served"), "served(memfd)"),
        (open_provider("served", address=address, timeout=1), "served(memfd)"),
        (open_provider("served(posix)"), "served(posix)"),
        (open_provider("rc"), "rc(memfd)"),
        (open_provider("rc", inner=MmapShMemProvider()), "rc(posix)"),
        (open_provider("rc(sysv)"), "rc(sysv)"),
        (open_provider("rc(served(memfd))", address=address), "rc(served(memfd))"),
        (RcShMemProvider(RcShMemProvider()), "rc(rc(memfd))"),
        (StdShMemProvider(served=True), "rc(served(memfd))"),
    ):
        for again in (provider, pickle.loads(pickle.dumps(provider))):
            assert (again.name, type(again)) == (name, type(provider))
            again.new_shmem(10).close()
    for wrong in ("rc(", "rc()", "served(x)", "rc(served(x))", "memfd(posix)", "(rc)"):
        with pytest.raises(ValueError, match="no provider"):
            open_provider(wrong)
    wrong_inner: Any = "memfd"
    for call in (lambda: ServedShMemProvider(wrong_inner), lambda: RcShMemProvider(wrong_inner)):
        with pytest.raises(TypeError, match="inner"):
            call()
    with pytest.raises(OSError, match="descriptors"):
        ServedShMemProvider(UnixShMemProvider())
    for timeout in (-1, "5", 1e9):
        with pytest.raises((TypeError, ValueError), match="timeout"):
            ServedShMemProvider(timeout=timeout)  # type: ignore[arg-type]


def test_an_address_travels_with_its_provider(address: str) -> None:
    with ShMemService(address=address):
        given = pickle.dumps(ServedShMemProvider(address=address)), pickle.dumps(open_provider("served"))
        os.environ[VARIABLE] = "/somewhere/else"
        pickle.loads(given[0]).new_shmem(1).close()
        with pytest.raises(ServiceError, match="/somewhere/else"):
            pickle.loads(given[1])
        os.environ[VARIABLE] = address


def test_what_is_available(service: ShMemService) -> None:
    assert "served" in available_providers()
    assert "rc" not in available_providers()
    service.stop()
    assert "served" not in available_providers()


def test_a_silent_service_keeps_nobody_else_waiting(address: str) -> None:
    """The call ends in time, and other threads run meanwhile."""
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(address)
        silent.listen()
        ticks, is_over = [0], threading.Event()

        def tick() -> None:
            while not is_over.wait(0.01):
                ticks[0] += 1

        thread = threading.Thread(target=tick)
        thread.start()
        start = time.monotonic()
        with pytest.raises(ServiceError, match="does not answer"):
            ServedShMemProvider(address=address, timeout=0.5)
        took = time.monotonic() - start
        is_over.set()
        thread.join()
    assert 0.4 < took < 5
    assert ticks[0] > 5


# ---- forks


FORKS = """
import os, sys, traceback
from shmem_providers import *


def fork(act):
    pid = os.fork()
    if pid:
        return pid
    try:
        act()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def ends(pid):
    assert os.waitpid(pid, 0)[1] == 0


service = ShMemService(address=sys.argv[1]).start()
"""


def test_a_child_of_who_serves(address: str, run_python: Callable[..., str]) -> None:
    """It is a client like any other, and stopping what it has inherited stops nothing."""
    code = """
shm = ServedShMemProvider().new_shmem(10)


def child():
    assert not service.is_running
    sockets = [name for fd in os.listdir("/proc/self/fd") if (name := link(fd)).startswith("socket:")]
    assert len(sockets) <= 1, sockets # the child's own connection
    with ServedShMemProvider().attach(shm.id) as other:
        other[0] = 7
    service.stop()
    service.start
    assert os.environ["SHMEM_SERVICE"] == sys.argv[1] and os.path.exists(sys.argv[1])
    with ShMemService(address=sys.argv[1] + "2"):
        ServedShMemProvider().new_shmem(10).close()
    assert os.environ["SHMEM_SERVICE"] == sys.argv[1]


def link(fd):
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


for _ in range(3):
    ends(fork(child))
    assert service.is_running and shm[0] == 7
shm.close()
service.stop()
"""
    run_python(FORKS + code, address)


@pytest.mark.parametrize("wrapped", ["served", "rc(served(posix))"])
@pytest.mark.parametrize("keeps", [True, False])
def test_a_child_holds_what_it_inherits(
    address: str, wrapped: str, keeps: bool, run_python: Callable[..., str]
) -> None:
    """Whether or not the provider's Python object is still there, and however often the fork is announced."""
    code = """
provider = open_provider(sys.argv[2])
shm = provider.new_shmem(10)
shm[0] = 7
id = shm.id
if sys.argv[3] == "False":
    del provider
from_parent, to_child = os.pipe()
from_child, to_parent = os.pipe()


def child():
    os.close(to_child)
    os.write(to_parent, b"1")
    os.read(from_parent, 1) # until the parent has let go
    shm.close()


if sys.argv[3] == "True":
    provider.pre_fork()
pid = fork(child)
if sys.argv[3] == "True":
    provider.post_fork(False)
os.read(from_child, 1)
shm.close()
with open_provider("served").attach(id) as other:
    assert other[0] == 7
os.close(to_child)
ends(pid)
stats = service.stats()
assert (stats.segments, stats.refused) == (0, 0), stats
service.stop()
"""
    run_python(FORKS + code, address, wrapped, keeps)


def test_threads_that_fork(address: str, run_python: Callable[..., str]) -> None:
    """Each child ends well, while other threads create, open and close; and nothing stays with the service."""
    code = """
import faulthandler, threading, time
faulthandler.dump_traceback_later(50, exit=True)
rc = open_provider("rc(served(memfd))")
kept = [rc.new_shmem(10), ServedShMemProvider().new_shmem(10)]
end, failures = time.monotonic() + 1.5, []


def child():
    for shm in kept:
        shm[0] = 1
        shm.close()


def forks():
    while time.monotonic() < end:
        ends(fork(child))


def works():
    while time.monotonic() < end:
        rc.new_shmem(100).close()
        with open_provider("rc(served(posix))").new_shmem(10) as shm, rc.attach(shm.id):
            pass


def told(target):
    try:
        target()
    except BaseException:
        failures.append(traceback.format_exc())


threads = [threading.Thread(target=told, args=(target,)) for target in (forks, forks, works, works)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert not failures, failures[0]
for shm in kept:
    shm.close()
until = time.monotonic() + 5
while service.stats().segments and time.monotonic() < until:
    time.sleep(0.01)
stats = service.stats()
assert stats.segments == 0, stats
service.stop()
faulthandler.cancel_dump_traceback_later()
"""
    subprocess_options = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}  # of forks in programs with threads
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", FORKS + code, address]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, env=os.environ | subprocess_options)
    assert (result.returncode, result.stderr) == (0, "")


def test_providers_end_with_their_last_segment(service: ShMemService) -> None:
    """What hears of forks is not kept for that."""
    segments = [open_provider("rc(served(memfd))").new_shmem(10) for _ in range(3)]
    served = ServedShMemProvider()
    providers = [served, RcShMemProvider(served)]
    assert service.stats().clients == 4
    del served
    while segments:
        segments.pop().close()
    providers.pop(0)
    gc.collect()
    until(lambda: service.stats().clients == 1)
    providers.clear()
    until(lambda: service.stats().clients == 0)
    assert service.stats().segments == 0


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_client_leaves_nothing(service: ShMemService, start_peer: Any, ending: int) -> None:
    peer = start_peer()
    peer("provider = open_provider('served'); all = [provider.new_shmem(10) for _ in range(20)]")
    assert service.stats().segments == 20
    os.kill(peer.process.pid, ending)
    until(lambda: not service.stats().segments)
    peer.kill()
