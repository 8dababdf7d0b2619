"""Shared memory between processes, through one interface.

    from shmem_providers import StdShMemProvider

    with StdShMemProvider().new_shmem(65536) as shm:
        shm.write_to_env("MY_MAP")          # a child calls existing_from_env("MY_MAP")
        view = memoryview(shm)              # zero-copy, as numpy.frombuffer(shm, "u1")

Modules: `_providers` (the classes that make segments), `_shmem` (the segment), `_service` and `_serve`
(services), `_ids`, `_errors`, `_cursor`, `_handover` (pickles, forks), `__main__` and `_doctor` (the command
line), `_library` (the C library's folders). `_binding` is the C extension.
"""

from shmem_providers import _handover
from shmem_providers._binding import ffi, lib
from shmem_providers._cursor import ShMemCursor
from shmem_providers._errors import (
    InvalidIdError,
    ProviderUnavailableError,
    ServiceError,
    ShMemError,
    SizeMismatchError,
)
from shmem_providers._ids import ShMemDescription, ShMemId
from shmem_providers._library import get_cmake_dir, get_include, get_library_dir
from shmem_providers._providers import (
    AshmemShMemProvider,
    MemfdShMemProvider,
    MmapShMemProvider,
    NopShMemProvider,
    RcShMemProvider,
    ServedShMemProvider,
    ShMemProvider,
    StdShMemProvider,
    UnixShMemProvider,
    Win32ShMemProvider,
    available_providers,
    open_provider,
)
from shmem_providers._service import (
    LIBAFL_SERVICE_ADDRESS,
    DummyShMemService,
    ServiceStats,
    ShMemService,
    StdShMemService,
)
from shmem_providers._shmem import ShMem

_handover.adopt()

__version__: str = ffi.string(lib.shmp_version()).decode()

__all__ = [
    "LIBAFL_SERVICE_ADDRESS",
    "AshmemShMemProvider",
    "DummyShMemService",
    "InvalidIdError",
    "MemfdShMemProvider",
    "MmapShMemProvider",
    "NopShMemProvider",
    "ProviderUnavailableError",
    "RcShMemProvider",
    "ServedShMemProvider",
    "ServiceError",
    "ServiceStats",
    "ShMem",
    "ShMemCursor",
    "ShMemDescription",
    "ShMemError",
    "ShMemId",
    "ShMemProvider",
    "ShMemService",
    "SizeMismatchError",
    "StdShMemProvider",
    "StdShMemService",
    "UnixShMemProvider",
    "Win32ShMemProvider",
    "available_providers",
    "ffi",
    "get_cmake_dir",
    "get_include",
    "get_library_dir",
    "lib",
    "open_provider",
]

for _name in __all__:
    if isinstance(globals()[_name], type):
        globals()[_name].__module__ = __name__  # what a user sees in messages and pickles
