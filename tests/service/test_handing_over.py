"""Segments of a service that are sent to other processes: as all others are, and past a SIGKILL."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_handover import CHANNELS, HEAD, run

from shmem_providers import ServedShMemProvider, ShMemService

pytestmark = [pytest.mark.needs("served", "linux"), pytest.mark.usefixtures("nothing_leaks")]


@pytest.fixture
def address() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="shmp") as folder:
        yield f"{folder}/service"


@pytest.mark.parametrize("channel", ["arguments", "queue", "pipe", "pool", "manager"])
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_nothing_is_lost(method: str, channel: str, address: str, tmp_path: Path) -> None:
    """Without lingering: what its sender leaves unread, a keeper asks the service for."""
    program = tmp_path / "program.py"
    program.write_text(CHANNELS)
    with ShMemService(address=address) as service:
        result = run(program, method, channel, "served,rc(served(posix))", 20)
        assert result.stderr == ""
        assert result.stdout == "served ok\nrc(served(posix)) ok\n"
        assert service.stats().refused == 0


def test_a_plain_pickle_has_the_address(address: str, run_python: Callable[..., str]) -> None:
    """Its reader's own environment says something else."""
    code = (
        HEAD
        + """
with ServedShMemProvider(address=sys.argv[2]).new_shmem(5000) as shm:
    data = pickle.dumps(shm)
    assert data == pickle.dumps(shm)
    shm[0] = 7
    os.environ["SHMEM_SERVICE"] = "/somewhere/else"
    with pickle.loads(data) as again:
        assert (again[0], again.provider_name, len(again)) == (7, "served", 5000)
until(lambda: pickle.loads(data).closed) # it is gone, says its first use
assert type(raised(lambda: pickle.loads(data)[0])) is FileNotFoundError
"""
    )
    with ShMemService(address=address):
        run_python(code, "nop", address)


SENDER = """
import os, signal, sys, multiprocessing.reduction
from shmem_providers import *
shm = ServedShMemProvider().new_shmem(5000)
shm[:4] = b"sent"
data = bytes(multiprocessing.reduction.ForkingPickler.dumps(shm))
os.write(1, data.hex().encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("linger", [0, 60])
def test_a_killed_sender(address: str, linger: int, start_peer: Callable[[], Any]) -> None:
    """What it has sent is there for the reader, if the service lets it linger; else the reader is told."""
    import subprocess
    import sys

    with ShMemService(address=address, linger=linger) as service:
        sender = subprocess.run([sys.executable, "-c", SENDER], capture_output=True, timeout=60)
        assert (sender.returncode, sender.stderr) == (-signal.SIGKILL, b"")
        peer = start_peer()
        peer("import os, pickle; os.environ['SHMEM_SERVICE'] = '/somewhere/else'")
        peer("shm = pickle.loads(bytes.fromhex(data))", data=sender.stdout.decode())
        if linger:
            assert peer("shm[:4]") == b"sent"
            assert service.stats().refused == 0
        else:
            raised, message = peer.raises("shm[0]")
            assert (raised, "was killed" in message) == ("FileNotFoundError", True)
        peer("shm.close()")


def test_a_lost_service_is_told(address: str, start_peer: Callable[[], Any]) -> None:
    peer = start_peer()
    peer("import pickle, multiprocessing.reduction")
    with ShMemService(address=address):
        peer("shm = ServedShMemProvider(address=address).new_shmem(10)", address=address)
        peer("data = bytes(multiprocessing.reduction.ForkingPickler.dumps(shm))")
        plain = peer("pickle.dumps(shm)")
    assert os.path.dirname(address) not in os.environ["SHMEM_SERVICE"]
    peer("other = pickle.loads(plain)", plain=plain)
    raised, message = peer.raises("other[0]")
    assert (raised, address in message) == ("ServiceError", True)
    peer("shm.close(); from shmem_providers import _handover; _handover._outbox.empty(lambda page: page.close())")


def test_subclasses_survive(address: str, run_python: Callable[..., str]) -> None:
    code = (
        HEAD
        + """
class Mine(ShMem):
    pass


class Provider(ServedShMemProvider):
    _shmem_type = Mine


shm = filled(Provider(address=sys.argv[2]), 7)
shm.note = "kept"
for dumps in (pickle.dumps, sent):
    with pickle.loads(dumps(shm)) as again:
        assert (type(again), again.note, again[0]) == (Mine, "kept", 7)
shm.close()
"""
    )
    with ShMemService(address=address):
        assert ServedShMemProvider().name == "served(memfd)"
        run_python(code, "nop", address)
