"""What tests of other users, honest or not, have in common. No tests."""

from __future__ import annotations

import ctypes
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmem_providers import ffi, lib

DIGITS = string.digits + string.ascii_lowercase
PR_SET_DUMPABLE = 4


def become(uid: int, and_then: Callable[[], Any]) -> Any:
    """Be that user from now on, in a child."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)  # as a program that the user started is
    return and_then()


def base_36(number: int) -> str:
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 36)
        digits = DIGITS[digit] + digits
    return digits


def memfd_id(pid: int, fd: int, inode: int) -> str:
    """Give the memfd id that a forger writes."""
    return ".".join(map(base_36, (pid, fd, inode & 0xFFFFFFFF)))


def descriptors_of_memfds() -> list[int]:
    """Give this process's descriptors of this library's memfd segments."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(link)
        except FileNotFoundError:
            continue  # of this look itself
        if target == "/memfd:shmem_providers (deleted)":
            found.append(int(link.name))
    return sorted(found)


class Abi:
    """The C ABI: its handles stay open until the process ends."""

    def __init__(self, provider: str) -> None:
        self.error = ffi.new("shmp_error *")
        opened = ffi.new("shmp_provider **")
        assert lib.shmp_provider_open(provider.encode(), ffi.NULL, opened, self.error) == 0
        self.provider = opened[0]

    def message(self) -> str:
        text: str = ffi.string(self.error.message).decode()
        return text

    def _handle(self, call: Callable[..., int], *arguments: Any) -> Any:
        made = ffi.new("shmp_shmem **")
        result = call(*arguments, made, self.error)
        if result == 0:
            return made[0]
        if result == -lib.SHMP_EOS:
            raise OSError(self.error.os_error, self.message())
        raise ValueError(ffi.string(lib.shmp_error_text(result)).decode(), self.message())

    def create(self, size: int, flags: int = 0) -> Any:
        return self._handle(lib.shmp_create, self.provider, size, flags)

    def attach(self, id: str, size: int, flags: int = 0) -> Any:
        description = ffi.new("shmp_description *", {"size": size, "id": id.encode()})
        return self._handle(lib.shmp_attach, self.provider, description, flags)

    def attach_fd(self, fd: int, id: str, size: int, flags: int = 0) -> Any:
        description = ffi.new("shmp_description *", {"size": size, "id": id.encode()})
        return self._handle(lib.shmp_attach_fd, self.provider, fd, description, flags)

    def clone(self, handle: Any, flags: int = 0) -> Any:
        return self._handle(lib.shmp_clone, handle, flags)

    def id(self, handle: Any) -> str:
        description = ffi.new("shmp_description *")
        assert lib.shmp_describe(handle, description, self.error) == 0
        text: str = ffi.string(description.id).decode()
        return text


def contents(handle: Any, length: int) -> bytes:
    return bytes(ffi.buffer(lib.shmp_data(handle), length))
