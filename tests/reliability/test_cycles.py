"""Any number of segments, one after another, costs nothing that stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from held import memory

from shmem_providers import available_providers, open_provider

WARM_UP = 2000
GROWTH = 256 * 1024  # bytes that the interpreter may add: one byte a cycle would be more in the long form

Held = Callable[[], set[str]]


def cycle(held: Held, name: str, options: dict[str, Any], count: int) -> int:
    """Give by how many bytes the process has grown."""
    provider = open_provider(name, **options)

    def turn(times: int) -> None:
        for _ in range(times):
            shm = provider.new_shmem(5000)
            shm[0] = 1
            other = provider.shmem_from_id_and_size(shm.id, 5000)
            other[4999] = 1
            other.close()
            shm.close()

    turn(WARM_UP)
    before, size = held(), memory()
    turn(count)
    assert held() == before
    return memory() - size


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {}) for name in available_providers()),
        pytest.param("memfd", {"fd_ids": True}, marks=pytest.mark.needs("memfd")),
        pytest.param("posix", {"fd_ids": True}, marks=pytest.mark.needs("posix")),
    ],
)
def test_cycles_leave_nothing(
    name: str, options: dict[str, Any], isolated: Callable[..., Any], held: Held, scale: Callable[[int, int], int]
) -> None:
    assert isolated(cycle, held, name, options, scale(20_000, 1_000_000), timeout=1200) < GROWTH
