"""Segments sent to other processes by `multiprocessing`.

A pickle holds provider, id and size. Under `multiprocessing` it also holds what keeps the segment
alive on its way: a descriptor that is inherited by a process being spawned, or else is kept open
by the sender until the receiver fetches it, as `multiprocessing` does for its own connections.
"""

from __future__ import annotations

import contextlib
import os
import sys
import weakref

from shmem_providers._errors import InvalidIdError
from shmem_providers._providers import ShMemProvider, open_provider
from shmem_providers._shmem import ShMem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_defaults: dict[str, ShMemProvider] = {}


def _default_provider(name: str) -> ShMemProvider:
    """Give this process's provider of that name, opened at its first use."""
    provider = _defaults.get(name)
    return provider if provider else _defaults.setdefault(name, open_provider(name))


class _Attached:
    """Keeps a segment that has no descriptor open until its receiver says that it has attached."""

    def __init__(self, shm: ShMem) -> None:
        from multiprocessing import resource_sharer

        clone = _default_provider(shm.provider_name).clone_ref(shm)
        self._id = resource_sharer._resource_sharer.register(  # type: ignore[attr-defined]
            lambda connection, pid: connection.send(None), clone.close
        )

    def received(self) -> None:
        from multiprocessing import resource_sharer

        with resource_sharer._resource_sharer.get_connection(self._id) as connection:  # type: ignore[attr-defined]
            connection.recv()


def _keep(shm: ShMem, has_descriptor: bool) -> Any:
    if "multiprocessing.reduction" not in sys.modules:
        return None  # whoever reads this pickle attaches while the sender is still open, or not at all
    if not has_descriptor:
        return _Attached(shm)
    from multiprocessing import context, reduction

    descriptor, popen = shm._dup(), context.get_spawning_popen()
    if popen is None:
        try:
            return reduction.DupFd(descriptor)
        finally:
            os.close(descriptor)
    weakref.finalize(popen, os.close, descriptor)  # it is passed to the child at the end of its start
    return reduction.DupFd(descriptor)


def reduce_shmem(shm: ShMem) -> tuple[Any, ...]:
    """Give what pickle wants of `ShMem.__reduce__`."""
    id, size = shm._describe()
    has_descriptor = shm.provider_name not in ("sysv", "win32")
    if has_descriptor and id.isdecimal():
        id = ""  # a bare descriptor number: in the process that reads this it is something else
    if shm.provider_name == "nop":
        raise TypeError("cannot pickle a ShMem of nop: its memory is private to this process: open std")
    return _rebuild, (shm.provider_name, id, size, shm.readonly, _keep(shm, has_descriptor))


def _rebuild(name: str, id: str, size: int, readonly: bool, kept: Any) -> ShMem:
    try:
        return _receive(_default_provider(name), id, size, readonly, kept)
    except Exception as failure:
        # Raised here it would hang a pool, whose workers die of it: the first use raises it. A copy, as
        # this one's traceback keeps its callers' variables alive.
        return ShMem._failed(type(failure)(*failure.args))


def _receive(provider: ShMemProvider, id: str, size: int, readonly: bool, kept: Any) -> ShMem:
    if isinstance(kept, _Attached):
        shm = provider.shmem_from_id_and_size(id, size, read_only=readonly)
        with contextlib.suppress(OSError, EOFError):  # its sender has ended, or this was loaded before
            kept.received()
        return shm
    try:
        descriptor = kept.detach()
    except Exception as problem:  # none was kept, or it was fetched before
        if not id:
            raise InvalidIdError(
                "a ShMem of fd_ids=True has no id to attach by: send it by multiprocessing"
            ) from problem
        return provider.shmem_from_id_and_size(id, size, read_only=readonly)
    try:
        return provider.shmem_from_id_and_size(str(descriptor), size, read_only=readonly)
    finally:
        os.close(descriptor)
