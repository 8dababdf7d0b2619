"""The C extension: cffi's view of the C library, and the types that own its handles."""

from types import TracebackType
from typing import Any, Generic, Self, SupportsIndex, TypeVar, overload

from typing_extensions import Buffer

S = TypeVar("S", bound="ShMem", covariant=True)

class _Lib:
    """The functions and constants of csrc/include/shmem_providers.h, which documents them."""

    SHMP_EINVAL: int
    SHMP_EID: int
    SHMP_ESIZE: int
    SHMP_EOVERFLOW: int
    SHMP_ENOTFOUND: int
    SHMP_ENOENV: int
    SHMP_EUNAVAILABLE: int
    SHMP_EUNSUPPORTED: int
    SHMP_ENOMEM: int
    SHMP_EOS: int
    SHMP_FD_IDS: int
    SHMP_KEEP_LEFTOVERS: int
    SHMP_READ_ONLY: int
    SHMP_RESERVE: int
    SHMP_INHERIT: int
    SHMP_WHOLE: int
    SHMP_OWNER: int
    SHMP_DRY_RUN: int

    def shmp_error_text(self, code: int) -> Any: ...
    def shmp_provider_open(self, name: Any, options: Any, ret_provider: Any, reterr: Any) -> int: ...
    def shmp_provider_close(self, provider: Any) -> None: ...
    def shmp_provider_name(self, provider: Any) -> Any: ...
    def shmp_available(self, index: int, ret_name: Any, reterr: Any) -> int: ...
    def shmp_provider_limits(self, provider: Any, ret_limits: Any, reterr: Any) -> int: ...
    def shmp_pre_fork(self, provider: Any, reterr: Any) -> int: ...
    def shmp_post_fork(self, provider: Any, is_child: int, reterr: Any) -> int: ...
    def shmp_create(self, provider: Any, size: int, flags: int, ret_shmem: Any, reterr: Any) -> int: ...
    def shmp_create_named(
        self, provider: Any, name: Any, size: int, flags: int, ret_shmem: Any, reterr: Any
    ) -> int: ...
    def shmp_attach(self, provider: Any, description: Any, flags: int, ret_shmem: Any, reterr: Any) -> int: ...
    def shmp_clone(self, shmem: Any, flags: int, ret_shmem: Any, reterr: Any) -> int: ...
    def shmp_close(self, shmem: Any, reterr: Any) -> int: ...
    def shmp_data(self, shmem: Any) -> Any: ...
    def shmp_size(self, shmem: Any) -> int: ...
    def shmp_fileno(self, shmem: Any) -> int: ...
    def shmp_flags(self, shmem: Any) -> int: ...
    def shmp_backend(self, shmem: Any) -> Any: ...
    def shmp_describe(self, shmem: Any, ret_description: Any, reterr: Any) -> int: ...
    def shmp_persist(self, shmem: Any, reterr: Any) -> int: ...
    def shmp_to_env(self, shmem: Any, name: Any, reterr: Any) -> int: ...
    def shmp_from_env(self, provider: Any, name: Any, flags: int, ret_shmem: Any, reterr: Any) -> int: ...
    def shmp_list(self, provider: Any, visit: Any, context: Any, reterr: Any) -> int: ...
    def shmp_reap(self, provider: Any, flags: int, visit: Any, context: Any, reterr: Any) -> int: ...
    def shmp_users(self, shmem: Any, visit: Any, context: Any, reterr: Any) -> int: ...
    def shmp_abi_version(self) -> int: ...
    def shmp_version(self) -> Any: ...

lib: _Lib
ffi: Any

class Provider(Generic[S]):
    """Owns a C provider. `ShMemProvider` is its Python half."""

    _shmem_type: type[S]

    def __new__(cls, name: str, flags: int = 0) -> Self: ...
    @property
    def name(self) -> str:
        """The mechanism; for ``std`` the chosen one."""
    @property
    def fd_ids(self) -> bool:
        """Whether ids are bare descriptor numbers."""
    def new_shmem(self, size: int, *, reserve: bool = False) -> S:
        """Create a segment of `size` bytes, all zero.

        ``reserve=True`` takes all of its memory now, as dear as touching every page, and promises
        that touching it later is never a SIGBUS.
        """
    def _new_named(self, size: int, name: str, *, reserve: bool = False) -> S: ...
    def shmem_from_id_and_size(self, id: str, size: int, *, read_only: bool = False) -> S:
        """Attach to a segment and map `size` bytes of it: no more than it has.

        ``read_only=True`` protects from mistakes, not from an enemy, who could reopen it.
        """
    def clone_ref(self, shm: ShMem, /) -> S:
        """Make another handle on a segment, read-only if that one is."""
    def _attach_whole(self, id: str, /) -> S: ...
    def _from_env(self, name: str, id: str | None, size: str | None, read_only: bool) -> S: ...
    def _list(self) -> list[tuple[str, int, int, bool]]: ...
    def _reap(self, dry_run: bool, /) -> list[tuple[str, int, int, bool]]: ...
    def _limits(self) -> tuple[int, int, str]: ...
    def pre_fork(self) -> None:
        """Announce a fork. The plain providers need no announcement."""
    def post_fork(self, is_child: bool) -> None:
        """Tell that this process has forked, in the parent and in the child."""

class ShMem:
    """Owns a C segment and exports its memory. `shmem_providers.ShMem` is its Python half."""

    @property
    def closed(self) -> bool:
        """Whether it was closed. Live views keep the memory of a closed one."""
    @property
    def is_owner(self) -> bool:
        """Whether this handle created the segment, in this process: a forked child's never did."""
    @property
    def provider_name(self) -> str:
        """The mechanism that holds it, such as ``memfd``."""
    @property
    def readonly(self) -> bool:
        """Whether it was attached read-only."""
    @property
    def size(self) -> int:
        """Bytes, exactly as asked for."""
    def close(self) -> None:
        """Unmap and release it; a second call does nothing. The owner's destroys the segment.

        Raises:
            BufferError: views of it are alive. It stays usable.

        """
    def fileno(self) -> int:
        """Give the file descriptor, which stays this object's; sysv and nop have none."""
    def persist(self) -> None:
        """Let the descriptor survive exec, so that the next program can attach by the same id.

        Raises:
            io.UnsupportedOperation: exec ends such a segment (sysv, nop).

        """
    def _describe(self) -> tuple[str, int]: ...
    def _env_description(self, name: str) -> tuple[str, int]: ...
    def _users(self) -> list[int]: ...
    @classmethod
    def _failed(cls, exception: BaseException) -> Self: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None:
        """Close it, also when views are alive: then its memory goes with the last of them."""
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> bytes: ...
    @overload
    def __setitem__(self, key: SupportsIndex, value: SupportsIndex, /) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: Buffer, /) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, view: memoryview, /) -> None: ...
