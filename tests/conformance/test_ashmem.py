"""What is particular to Android's driver. The rest of this folder runs over its provider, too, where it is."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shmem_providers import AshmemShMemProvider, InvalidIdError, StdShMemProvider, open_provider

pytestmark = [pytest.mark.needs("ashmem"), pytest.mark.usefixtures("nothing_leaks")]

CHANGE = """
import sys
from shmem_providers import AshmemShMemProvider
with AshmemShMemProvider().shmem_from_id_and_size(sys.argv[1], 10_000) as shm:
    shm[-1] = shm[0] + 1
"""


@pytest.mark.parametrize("fd_ids", [True, False])
def test_an_id_is_that_of_an_inherited_descriptor(fd_ids: bool) -> None:
    """A number alone with fd_ids, as the Rust crate's."""
    provider = AshmemShMemProvider(fd_ids=fd_ids)
    with provider.new_shmem(10_000) as shm:
        shm[0] = 7
        assert shm.id.as_str() == str(shm.fileno()) if fd_ids else shm.id.as_str().split("-")[1] != ""
        subprocess.run([sys.executable, "-c", CHANGE, shm.id], pass_fds=[shm.fileno()], check=True, timeout=60)
        assert shm[-1] == 8


def test_std_knows_its_ids(run_python: Callable[..., str]) -> None:
    code = (
        "import sys, shmem_providers as s\n"
        "with s.StdShMemProvider().attach(sys.argv[1]) as shm:\n"
        "    print(shm.provider_name, shm.size, shm[9_999])\n"
    )
    with AshmemShMemProvider().new_shmem(10_000) as shm:
        shm[9_999] = 7
        assert run_python(code, shm.id) == "ashmem 10000 7\n"
        assert StdShMemProvider().name != "ashmem"


SERVED = """
import os, subprocess, sys
from multiprocessing.reduction import ForkingPickler
from shmem_providers import *
inner, address = AshmemShMemProvider(), sys.argv[1]
with ShMemService(inner, address), RcShMemProvider(ServedShMemProvider(inner, address)).new_shmem(10_000) as shm:
    assert os.readlink(f"/proc/self/fd/{shm.fileno()}").startswith("/dev/ashmem")
    shm[0] = 7
    sent = bytes(ForkingPickler.dumps(shm)).hex()
    subprocess.run([sys.executable, "-c", sys.argv[2], address, shm.id, sent], check=True)
    assert shm[1] == 8
"""
ASKER = """
import pickle, sys, shmem_providers as s
ours = s.open_provider("rc(served(ashmem))", address=sys.argv[1])
with ours.attach(sys.argv[2]) as shm, pickle.loads(bytes.fromhex(sys.argv[3])) as sent:
    sent[1] = shm[0] + 1
    print(shm.provider_name, len(shm), sent.provider_name, len(sent))
"""


def test_a_service_hands_them_out(tmp_path: Path, run_python: Callable[..., str]) -> None:
    """As Android's default does: to whoever asks by the id, and to whoever is sent the segment."""
    assert run_python(SERVED, tmp_path / "service", ASKER) == "served 10000 served 10000\n"


def test_a_segment_that_only_its_maker_writes() -> None:
    provider = AshmemShMemProvider()
    with provider.new_shmem(10, mode=0o444) as shm:
        shm[0] = 7
        with pytest.raises(PermissionError, match="attach with read_only"):
            provider.attach(shm.id)
        with provider.attach(shm.id, read_only=True) as reader:
            shm[1] = 8
            assert reader[:2] == b"\7\10"
    for mode in (0o600, 0o640, 0o666):
        with pytest.raises(io.UnsupportedOperation, match="permissions"):
            provider.new_shmem(10, mode=mode)


def test_what_a_closed_id_names_is_not_taken() -> None:
    """The number has been used again, by a region of the same size."""
    provider = AshmemShMemProvider()
    shm = provider.new_shmem(10)
    id, number = shm.id, shm.fileno()
    shm.close()
    with provider.new_shmem(10) as other:
        assert other.fileno() == number
        with pytest.raises(FileNotFoundError):
            provider.attach(id)


def test_other_descriptors_are_refused() -> None:
    with open("/dev/null", "rb") as null, open_provider("memfd").new_shmem(10) as memfd:
        for fd in (null.fileno(), memfd.fileno()):
            with pytest.raises(InvalidIdError, match="no ashmem region"):
                AshmemShMemProvider().attach(str(fd))
    with AshmemShMemProvider().new_shmem(10) as shm, pytest.raises(InvalidIdError):
        open_provider("memfd", fd_ids=True).attach(str(shm.fileno()))


def test_what_the_kernel_would_not_promise_is_refused_at_creation() -> None:
    """All of a region is counted when it is made, so that an access fails by the lack of memory alone."""
    with open("/proc/meminfo") as lines:
        total = int(next(lines).split()[1]) * 1024
    provider = AshmemShMemProvider()
    with pytest.raises(OSError, match="mmap") as refused:
        provider.new_shmem(2 * total)
    assert refused.value.errno == errno.ENOMEM
    provider.new_shmem(total // 2).close()
