"""The C extension: cffi's view of the C library, and the types that own its handles. Documented in C."""

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, Self, SupportsIndex, TypeAlias, TypeVar, overload

from typing_extensions import Buffer

S = TypeVar("S", bound="ShMem", covariant=True)

# id, size, holder, user, is_alive, command, age, is_kept, is_ours
Listed: TypeAlias = tuple[str, int, int, int, bool, str, int, bool, bool]

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
    SHMP_ESERVICE: int
    SHMP_FD_IDS: int
    SHMP_KEEP_LEFTOVERS: int
    SHMP_SERVE: int
    SHMP_READ_ONLY: int
    SHMP_RESERVE: int
    SHMP_INHERIT: int
    SHMP_WHOLE: int
    SHMP_ANY_USER: int
    SHMP_UNMAPPED: int
    SHMP_LINGER: int
    SHMP_KEEP: int
    SHMP_OWNER: int
    SHMP_EXIST_OK: int
    SHMP_POSIX_NAMES: int
    SHMP_AFL_SIZE: int
    SHMP_DRY_RUN: int

    def shmp_error_text(self, code: int) -> Any: ...
    def shmp_provider_open(self, name: Any, options: Any, ret_provider: Any, reterr: Any) -> int: ...
    def shmp_provider_ref(self, provider: Any) -> Any: ...
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
    def shmp_attach_fd(
        self, provider: Any, fd: int, description: Any, flags: int, ret_shmem: Any, reterr: Any
    ) -> int: ...
    def shmp_attach_name(self, provider: Any, name: Any, size: int, flags: int, ret_shmem: Any, reterr: Any) -> int: ...
    def shmp_unlink(self, provider: Any, name: Any, reterr: Any) -> int: ...
    def shmp_clone(self, shmem: Any, flags: int, ret_shmem: Any, reterr: Any) -> int: ...
    def shmp_close(self, shmem: Any, reterr: Any) -> int: ...
    def shmp_data(self, shmem: Any) -> Any: ...
    def shmp_size(self, shmem: Any) -> int: ...
    def shmp_fileno(self, shmem: Any) -> int: ...
    def shmp_flags(self, shmem: Any) -> int: ...
    def shmp_backend(self, shmem: Any) -> Any: ...
    def shmp_describe(self, shmem: Any, ret_description: Any, reterr: Any) -> int: ...
    def shmp_locate(self, shmem: Any, ret_description: Any, reterr: Any) -> int: ...
    def shmp_open_fd(self, provider: Any, id: Any, flags: int, ret_fd: Any, reterr: Any) -> int: ...
    def shmp_persist(self, shmem: Any, reterr: Any) -> int: ...
    def shmp_to_env(self, shmem: Any, name: Any, reterr: Any) -> int: ...
    def shmp_env_pairs(
        self, shmem: Any, name: Any, flags: int, ret_id: Any, ret_size: Any, room: int, reterr: Any
    ) -> int: ...
    def shmp_from_env(self, provider: Any, name: Any, flags: int, ret_shmem: Any, reterr: Any) -> int: ...
    def shmp_unset_env(self, name: Any, reterr: Any) -> int: ...
    def shmp_list(self, provider: Any, visit: Any, context: Any, reterr: Any) -> int: ...
    def shmp_reap(self, provider: Any, flags: int, visit: Any, context: Any, reterr: Any) -> int: ...
    def shmp_users(self, shmem: Any, visit: Any, context: Any, reterr: Any) -> int: ...
    def shmp_service_start(self, inner: Any, options: Any, ret_service: Any, reterr: Any) -> int: ...
    def shmp_service_stop(self, service: Any, reterr: Any) -> int: ...
    def shmp_service_address(self, service: Any) -> Any: ...
    def shmp_service_wait(self, service: Any, timeout_ms: int) -> int: ...
    def shmp_service_pre_fork(self, service: Any, reterr: Any) -> int: ...
    def shmp_service_post_fork(self, service: Any, is_child: int, reterr: Any) -> int: ...
    def shmp_service_get_stats(self, service: Any, ret_stats: Any, reterr: Any) -> int: ...
    def shmp_abi_version(self) -> int: ...
    def shmp_version(self) -> Any: ...

lib: _Lib
ffi: Any
std_is_served: int  # whether "std" needs a service on this platform

def _before_fork() -> None: ...
def _after_fork(is_child: bool, /) -> None: ...

class Provider(Generic[S]):
    """Owns a C provider. `ShMemProvider` is its Python half."""

    _shmem_type: type[S]

    def __new__(
        cls,
        name: str,
        flags: int = 0,
        inner: Provider[Any] | None = None,
        address: str | None = None,
        timeout_ms: int = 0,
    ) -> Self: ...
    @property
    def name(self) -> str:
        """The mechanism; for std the chosen one."""
    @property
    def fd_ids(self) -> bool:
        """Whether ids are bare descriptor numbers."""
    def new_shmem(self, size: int, *, reserve: bool = False, mode: int | None = None, linger: bool = False) -> S:
        """Create a segment of `size` bytes, all zero.

        reserve=True takes all of its memory now, as dear as touching every page, and promises that
        touching it later is never a SIGBUS. mode=0o660 and the like (posix, sysv) let other users attach,
        who say any_user=True; without it the segment is this user's alone. linger=True (posix, sysv): if its
        creator is killed, it stays for a minute to be attached to.

        io.UnsupportedOperation: the mechanism has no such thing. ValueError: size 0 or less, a mode
        beyond 0o666. OverflowError: beyond the address space. OSError: a call of the system failed.
        """
    def _new_named(
        self,
        size: int,
        name: str,
        *,
        reserve: bool = False,
        mode: int | None = None,
        exist_ok: bool = False,
        keep: bool = False,
        linger: bool = False,
    ) -> S: ...
    def _unlink(self, name: str, /) -> None: ...
    def attach(self, id: str, *, read_only: bool = False, any_user: bool = False) -> S:
        """Attach to all bytes of a segment whose size is not known.

        A posix name may be of any length that the system takes, such as another library's.
        Arguments and errors are those of shmem_from_id_and_size.
        """
    def shmem_from_id_and_size(self, id: str, size: int, *, read_only: bool = False, any_user: bool = False) -> S:
        """Attach to a segment and map `size` bytes of it: no more than it has.

        read_only=True protects from mistakes, not from an enemy, who could reopen it. any_user=True takes
        one that is neither this user's nor root's, who can change and truncate it.

        InvalidIdError: garbage, or no shared memory. FileNotFoundError: it is gone. SizeMismatchError: it
        is smaller. PermissionError: it is another user's.
        """
    def clone_ref(self, shm: ShMem, /) -> S:
        """Make another handle on a segment, read-only if that one is.

        It shares memory, descriptor and id, which stay until the last of them is closed. It is never the
        owner. ValueError: `shm` is closed.
        """
    def _from_env(self, name: str, id: str | None, size: str | None, read_only: bool, any_user: bool) -> S: ...
    def _list(self) -> list[Listed]: ...
    def _reap(self, dry_run: bool, /) -> list[Listed]: ...
    def _limits(self) -> tuple[int, int, str]: ...
    def pre_fork(self) -> None:
        """Announce a fork, as os.fork() does by itself: both together count as one.

        Until `post_fork`, other threads wait that fork or use the provider. The plain ones need no announcement.
        """
    def post_fork(self, is_child: bool) -> None:
        """Tell that this process has forked, in the parent and in the child; os.fork() does so by itself."""
    def _open_fd(self, locator: str, read_only: bool) -> int: ...
    def _attach_fd(self, fd: int, id: str, size: int, read_only: bool) -> S: ...

class ShMem:
    """Owns a C segment and exports its memory. `shmem_providers.ShMem` is its Python half."""

    @property
    def closed(self) -> bool:
        """Whether it was closed. Its memory stays for whoever it was exported to."""
    @property
    def is_owner(self) -> bool:
        """Whether this handle created the segment, in this process: a forked child's never did."""
    @property
    def provider_name(self) -> str:
        """The mechanism that holds it, such as memfd."""
    @property
    def readonly(self) -> bool:
        """Whether it was attached read-only."""
    @property
    def size(self) -> int:
        """Bytes, exactly as asked for."""
    def close(self) -> None:
        """Release it; a second call does nothing. The owner's destroys the segment.

        Name, descriptor and use end at once. So does the memory if it never was exported (memoryview, NumPy,
        `as_ptr_of`), else with this object, which NumPy and others may hold without a view.

        BufferError: views of it are alive; it stays usable. Leaving a with block closes all the same.
        """
    def fileno(self) -> int:
        """Give the file descriptor, which stays this object's.

        io.UnsupportedOperation: sysv and nop have none.
        """
    def persist(self) -> None:
        """Let the descriptor survive exec, so that the next program can attach by the same id.

        io.UnsupportedOperation: exec ends such a segment (sysv, nop).
        """
    def _describe(self) -> tuple[str, int]: ...
    def _env_description(
        self, name: str, posix_names: bool = False, afl: bool = False
    ) -> tuple[str, int, str | None]: ...
    def _dup(self) -> int: ...
    def _users(self) -> list[int]: ...
    @classmethod
    def _failed(cls, exception: BaseException) -> Self: ...
    def _locate(self) -> tuple[str, int]: ...
    def _service(self) -> tuple[str, str] | None: ...
    @classmethod
    def _keep(cls, shm: ShMem, /) -> Self: ...
    def _has_name(self) -> bool: ...
    def _abandon(self) -> None: ...
    def _say_when_closed(self, exception: BaseException, /) -> None: ...
    @classmethod
    def _watch(cls, whether: bool, /) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def __len__(self) -> int: ...
    def __contains__(self, what: SupportsIndex | Buffer, /) -> bool: ...
    def __iter__(self) -> Iterator[int]: ...
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

class Service:
    """Owns a running C service. `ShMemService` is its Python half."""

    def __new__(
        cls,
        inner: Provider[Any] | None,
        address: str | None,
        flags: int = 0,
        linger_ms: int = 0,
        idle_ms: int = 0,
        fork_timeout_ms: int = 0,
        max_clients: int = 0,
        max_frame: int = 0,
        max_segments: int = 0,
        max_bytes: int = 0,
    ) -> Self: ...
    @property
    def address(self) -> str:
        """Where it is."""
    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
    def wait(self, milliseconds: int, /) -> bool:
        """Wait until it has ended, for ever if the number is negative; tell whether it has."""
    def stats(self) -> tuple[int, int, int, int, int, int]:
        """Give clients, segments, bytes, connections so far, requests and refused ones."""
