"""Segments sent to other processes: what a pickle of one says, and who keeps it until it has been read.

A plain pickle is a description and nothing else. A pickle that `multiprocessing` makes to send is a message: its sender
keeps the segment, with the name if it has one, in its outbox until the message was read. Whoever reads it writes a byte
at the message's number into the sender's *ledger*, a page of shared memory, and the sender looks there at its next call
of this library. There is no thread. A process that ends while something has not been read leaves that to a *keeper*, a
small process that ends when all was read, after a minute, or with the sender's parent.

A segment is opened through ``/proc/<pid>/fd/<fd>``, that of its sender or whoever else has it (shmp_open_fd). Another
one is never taken for it: the message tells its inode (ashmem: a hash of its name).
"""

from __future__ import annotations

import io
import os
import sys
import time
from _thread import RLock

from shmem_providers import _binding
from shmem_providers._errors import InvalidIdError
from shmem_providers._providers import ShMemProvider, open_provider, open_with_descriptors
from shmem_providers._shmem import ShMem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import Any
else:
    from _collections import deque  # collections takes longer to import than all of this package

_FAMILIES = ("multiprocessing", "multiprocess", "billiard")
_LOKY = ("loky.backend.reduction", "joblib.externals.loky.backend.reduction")
# Where pickles that are sent are made
_SENDERS = frozenset([f"{family}.reduction" for family in _FAMILIES] + [*_LOKY, "torch.multiprocessing.queue"])

_LEDGER_SIZE = 4096  # bytes, and so messages
_LOOKS = 16  # unread messages that one call looks at
_GRACE = 0.02  # seconds that a process's end waits for what is just being read
_PATIENCE = 2.0  # the same where there can be no keeper
_SEARCHED_FOR = 1.0  # seconds that a reader looks for what somebody must have
_KEPT_FOR = 60  # seconds after the sender's end

# Whose ids are what `_locate` gives, when they are no bare numbers
_LOCATED = ("memfd", "ashmem")

# Who can reach a segment must reach its ledger, which is of the same mechanism; but names stay behind when a process is
# killed. Containers that share /dev/shm share System V memory, too.
_LEDGERS = {"posix": ("sysv", "memfd", "posix")} if sys.platform == "linux" else {}

_CLOSED = ValueError(
    "this ShMem is closed. If a task of a Pool says so: tasks that are sent in one chunk share one object, which the "
    "first one's `with` or close() closes for all: pass chunksize=1, or do not close it in the task"
)
_CLOSED_EARLY = (
    "this ShMem was closed before it was sent: queue.put() pickles in a thread, after it has returned: close it when "
    "it has been received"
)
_LOST = "its sender was killed or ended long before this was read, or has let go of it after it was read once"
_OTHER_NAMESPACE = (
    "its sender lives in another pid namespace, where this process cannot look: share that (docker run --pid), or send "
    "segments of posix"
)

_providers: dict[tuple[str, type[ShMem]], ShMemProvider] = {}


def _source(shm: _binding.ShMem) -> str:
    """Give who has it: the provider's name; of what a service has, ``served(<inner>)@<address>``."""
    asked = shm._service()
    if not asked:
        return shm.provider_name
    name, address = asked
    return f"{name}@{address if address.startswith('@') else os.path.abspath(address)}"


def _provider(source: str, cls: type[ShMem] | None = None) -> ShMemProvider:
    """Give this process's provider for that, opened at its first use, that makes segments of that class."""
    key = source, cls or ShMem
    if key not in _providers:
        name, _, address = source.partition("@")
        if key[1] is not ShMem:
            made = type("_Provider", (ShMemProvider,), {"_shmem_type": cls, "__slots__": ()})
            inner = open_with_descriptors(name[len("served(") : -1]) if address else None
            opened = made("served", 0, inner, address) if inner else made(name)
        else:
            opened = open_provider(name, address=address) if address else open_provider(name)
        return _providers.setdefault(key, opened)
    return _providers[key]


def _pid_namespace() -> int:
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def _locate(shm: _binding.ShMem) -> str:
    """Give what `_open_fd` takes, or "" where there is no such thing."""
    if shm.provider_name not in (*_LOCATED, "posix"):
        return ""
    try:
        return shm._locate()[0]
    except OSError:  # no /proc
        if shm.provider_name in _LOCATED:
            raise
        return ""


def _check_of(locator: str) -> str:
    """Give the part that is the segment's, whatever process and descriptor it is located by."""
    return locator.replace("-", ".").rpartition(".")[2]


def _name(shm: _binding.ShMem) -> str:
    """Give the posix name, or "/" for none."""
    try:
        id = shm._describe()[0]
    except FileNotFoundError:  # its owner closed it
        return "/"
    return id if id.startswith("/") else "/"


# ---- The sender


class _Ledger:
    """A page in which readers note what they have read."""

    def __init__(self, mechanism: str) -> None:
        for name in _LEDGERS.get(mechanism, (mechanism,)):
            try:
                self._make(_provider(name))
                return
            except OSError as failure:
                reason = failure
        raise reason

    def _make(self, provider: ShMemProvider) -> None:
        try:
            made = provider.new_shmem(_LEDGER_SIZE, reserve=True)
        except io.UnsupportedOperation:
            made = provider.new_shmem(_LEDGER_SIZE)
        with made:
            made[:] = bytes(_LEDGER_SIZE)  # the page is there: no reader can want it in vain
            self.address = _source(made), made.id.as_str()
            self.page = _binding.ShMem._keep(made)
        self.count = 0  # of messages so far
        self.unread = 0


class _Kept:
    """A segment that was sent. `page` shares its descriptor, mapping and id, and keeps its name."""

    __slots__ = ("id", "is_owners", "locator", "page", "unread")

    def __init__(self, shm: ShMem, id: str, locator: str, is_owners: bool) -> None:
        self.page = _binding.ShMem._keep(shm)
        self.id, self.locator, self.is_owners = id, locator, is_owners
        self.unread = 0


def _check_shared(shm: ShMem) -> None:
    if shm.provider_name == "nop" and len(shm):  # a closed one is a ValueError, as everywhere
        raise TypeError("cannot pickle a ShMem of nop: its memory is private to this process: open std")


class _Outbox:
    """What this process has sent, as far as nobody is known to have read it."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.is_busy = False  # closing what has been read, which asks for another look
        self.kept: dict[tuple[str, str, bool], _Kept] = {}
        self.ledgers: dict[str, _Ledger] = {}  # that are written to, by the mechanism of what is sent
        self.unread: deque[tuple[_Ledger, int, tuple[str, str, bool]]] = deque()
        self.namespace = 0

    def keep(self, shm: ShMem, name: str) -> tuple[str, str, int, tuple[str, str], int]:
        """Give the message: id, locator, pid namespace, the ledger's provider and id, and the number in it."""
        _check_shared(shm)
        locator = _locate(shm)
        id = "" if name in _LOCATED else _name(shm) if name == "posix" else shm._describe()[0]
        if id == "/" and not locator:
            raise InvalidIdError("this segment has no name and no id to attach by: send its descriptor")
        key = name, _check_of(locator) or id, shm._has_name()
        with self.lock:
            self.look()
            ledger = self.ledgers.get(name)
            if not ledger or ledger.count == _LEDGER_SIZE:
                full, ledger = ledger, _Ledger(name)
                self.ledgers[name] = ledger
                self.namespace = self.namespace or _pid_namespace()
                if full and not full.unread:
                    full.page.close()
            kept = self.kept.get(key)
            if not kept:
                kept = self.kept[key] = _Kept(shm, id, locator, key[2])
            number = ledger.count
            ledger.count += 1
            ledger.unread += 1
            kept.unread += 1
            self.unread.append((ledger, number, key))
            ShMem._watch(True)
            return kept.id, kept.locator, self.namespace, ledger.address, number

    def look(self, looks: int = _LOOKS) -> int:
        """Let go of what has been read, up to `looks` messages that have not; gives how many those are in all."""
        with self.lock:
            if self.is_busy:
                return len(self.unread)
            self.is_busy = True
            try:
                looks = min(looks, len(self.unread))
                while looks > 0 and self.unread:
                    ledger, number, key = self.unread.popleft()
                    if ledger.page[number]:
                        self._let_go(ledger, key)
                    else:
                        self.unread.append((ledger, number, key))
                        looks -= 1
            finally:
                self.is_busy = False
            if not self.unread:
                ShMem._watch(False)
            return len(self.unread)

    def _let_go(self, ledger: _Ledger, key: tuple[str, str, bool]) -> None:
        kept = self.kept[key]
        kept.unread -= 1
        if not kept.unread:
            self.kept.pop(key).page.close()
        ledger.unread -= 1
        if not ledger.unread and ledger not in self.ledgers.values():
            ledger.page.close()

    def pages(self) -> list[_binding.ShMem]:
        ledgers = {*self.ledgers.values(), *(ledger for ledger, _, _ in self.unread)}
        return [*(ledger.page for ledger in ledgers), *(kept.page for kept in self.kept.values())]

    def empty(self, pages: Callable[[_binding.ShMem], None]) -> None:
        """Forget all, with what is to be done about each page."""
        all = self.pages()
        ShMem._watch(False)
        self.unread.clear()
        self.kept.clear()
        self.ledgers.clear()
        for page in all:
            pages(page)


_outbox = _Outbox()


def look() -> None:
    """Let go of what has been read. The C types call it, while there is something in the outbox."""
    _outbox.look()


def _send(shm: ShMem) -> tuple[Any, ...]:
    """Give what a ForkingPickler wants of a segment that is sent."""
    cls = None if type(shm) is ShMem else type(shm)
    try:
        source = _source(shm)
        message = _outbox.keep(shm, source)
        what = source, shm.size, shm.readonly  # nothing fails from here on: what is kept is sent
    except Exception as failure:
        threading = sys.modules.get("threading")
        if not threading or threading.current_thread().name != "QueueFeederThread":
            raise
        # A queue that cannot pickle drops the message and leaves the reader waiting: tell him instead.
        is_early = type(failure) is ValueError and shm.closed
        return _fail, (cls, type(failure), (_CLOSED_EARLY,) if is_early else failure.args)
    return _with_state(shm, _receive, (cls, *what, *message))


def _with_state(shm: ShMem, rebuild: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    state = None if type(shm) is ShMem else shm.__getstate__()
    return (rebuild, arguments) if state is None else (rebuild, arguments, state)


def _is_sent() -> bool:
    """Whether the pickle under way is made to be sent. ForkingPicklers know ShMem, but not its subclasses."""
    frame = sys._getframe(2)
    for _ in range(4):
        if frame.f_globals.get("__name__") in _SENDERS:
            return True
        if not frame.f_back:
            return False
        frame = frame.f_back
    return False


def reduce_shmem(shm: ShMem) -> tuple[Any, ...]:
    """Give what pickle wants of `ShMem.__reduce__`."""
    adopt()
    if _is_sent():
        return _send(shm)
    _check_shared(shm)
    id, size = (_locate(shm), shm.size) if shm.provider_name in _LOCATED else ("", 0)
    if shm.provider_name == "posix" and _name(shm) == "/":
        id, size = shm._locate()
    if not id:
        id, size = shm._describe()
    cls = None if type(shm) is ShMem else type(shm)
    return _with_state(shm, _rebuild, (cls, _source(shm), id, size, shm.readonly))


# ---- The reader


def _fail(cls: type[ShMem] | None, kind: type[BaseException], arguments: tuple[Any, ...]) -> ShMem:
    """Stand for what could not be attached: raised in unpickling it would hang a pool, so the first use raises it."""
    return (cls or ShMem)._failed(kind(*arguments))


def _attach_found(provider: ShMemProvider, locator: str, id: str, size: int, readonly: bool) -> ShMem:
    fd = provider._open_fd(locator, readonly)
    try:
        return provider._attach_fd(fd, id, size, readonly)
    finally:
        os.close(fd)


def _rebuild(cls: type[ShMem] | None, name: str, id: str, size: int, readonly: bool) -> ShMem:
    try:
        provider = _provider(name, cls)
        if name == "posix" and not id.startswith("/"):
            return _attach_found(provider, id, "/", size, readonly)
        return provider.shmem_from_id_and_size(id, size, read_only=readonly)
    except Exception as failure:
        # A copy, as this one's traceback keeps its callers' variables alive.
        return _fail(cls, type(failure), failure.args)


def _is_kept(address: tuple[str, str], number: int) -> bool:
    """Whether somebody keeps that message's segment: it would be let go of with its ledger, or when it was read."""
    try:
        with _provider(address[0]).shmem_from_id_and_size(address[1], _LEDGER_SIZE, read_only=True) as ledger:
            return not ledger[number]
    except (OSError, ValueError):
        return False


def _attach_kept(address: tuple[str, str], number: int, *what: Any) -> ShMem:
    """Attach it, again and again while somebody has it: it may change hands while this process looks for it."""
    until = time.monotonic() + _SEARCHED_FOR
    while True:
        try:
            return _attach_sent(*what)
        except FileNotFoundError:
            if not _is_kept(address, number) or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _attach_sent(provider: ShMemProvider, name: str, id: str, size: int, readonly: bool, locator: str) -> ShMem:
    if name in _LOCATED:
        return provider.shmem_from_id_and_size(locator, size, read_only=readonly)
    if name != "posix" or not locator:
        return provider.shmem_from_id_and_size(id, size, read_only=readonly)
    if id != "/":
        try:
            shm = provider.shmem_from_id_and_size(id, size, read_only=readonly)
        except (OSError, ValueError):
            pass
        else:
            if _check_of(_locate(shm)) in ("", _check_of(locator)):
                return shm
            shm.close()  # somebody else's by now
    return _attach_found(provider, locator, id, size, readonly)


def _receive(
    cls: type[ShMem] | None,
    name: str,
    size: int,
    readonly: bool,
    id: str,
    locator: str,
    namespace: int,
    address: tuple[str, str],
    number: int,
) -> ShMem:
    try:
        shm = _attach_kept(address, number, _provider(name, cls), name, id, size, readonly, locator)
    except FileNotFoundError as failure:
        reason = _OTHER_NAMESPACE if locator and namespace not in (0, _pid_namespace()) else _LOST
        return _fail(cls, FileNotFoundError, (*failure.args[:1], f"{failure.strerror}; {reason}"))
    except Exception as failure:
        return _fail(cls, type(failure), failure.args)
    shm._say_when_closed(_CLOSED)
    try:
        with _provider(address[0]).shmem_from_id_and_size(address[1], _LEDGER_SIZE) as ledger:
            ledger[number] = 1
    except (OSError, ValueError):
        pass  # nobody wants to know any more
    return shm


# ---- The sender's end


def _end() -> None:
    """Leave what has not been read to somebody else. After a queue's threads have sent what they had."""
    _wait(_GRACE)
    with _outbox.lock:
        if not _outbox.unread:
            _outbox.empty(lambda page: page.close())
        elif _leave():
            _outbox.empty(lambda page: page._abandon())
        else:
            _wait(_PATIENCE)
            _outbox.empty(lambda page: page.close())


def _wait(seconds: float) -> None:
    until = time.monotonic() + seconds
    while _outbox.look(sys.maxsize) and time.monotonic() < until:
        time.sleep(0.001)


def _leave() -> bool:
    """Leave what has not been read to a keeper, or to the parent; False: it cannot be."""
    try:
        if sys.platform == "win32":
            return _leave_to_parent()
        return sys.platform == "linux" and not getattr(sys, "frozen", False) and _start_keeper()
    except (OSError, RuntimeError):  # the latter of an interpreter that is too far gone
        return False


def _leave_to_parent() -> bool:
    if sys.platform == "win32":
        import _winapi

        parent = _winapi.OpenProcess(_winapi.PROCESS_DUP_HANDLE, False, os.getppid())
        own = _winapi.GetCurrentProcess()
        for kept in _outbox.kept.values():
            section = _winapi.OpenFileMapping(_winapi.FILE_MAP_READ, False, kept.id)
            _winapi.DuplicateHandle(own, section, parent, 0, False, _winapi.DUPLICATE_SAME_ACCESS)
    return True


# Of the standard library it takes what starts fast. Each line of its input is what to hold: a descriptor, a System V
# id, or a service's address (quoted) with what it is asked for in hexadecimal; the path to remove at its end, or -; and
# its messages: "<line of the ledger>:<number>". Ledgers have none.
_KEEPER = r"""
import os, select, signal, sys, time
for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTSTP): signal.signal(number, signal.SIG_IGN)
spec, parent, life = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
class Held:
    def __init__(self, line):
        kind, what, self.path, *self.unread = line.split()
        self.fd, self.at = int(what) if kind == "fd" else -1, None
        if kind == "served": self.ask(*what.split("?"))
        if kind == "sysv":
            import ctypes
            self.libc = ctypes.CDLL(None)
            self.libc.shmat.restype = self.pointer = ctypes.c_void_p
            self.at, self.string_at = self.libc.shmat(int(what), None, 0), ctypes.string_at
    def ask(self, address, requests):
        import socket
        from urllib.parse import unquote
        address = unquote(address)
        self.client = socket.socket(socket.AF_UNIX)
        self.client.settimeout(5)
        self.client.connect("\0" + address[1:] if address[0] == "@" else address)
        for request in requests.split("+"):
            self.client.sendall(bytes.fromhex(request))
            fds = socket.recv_fds(self.client, 20, 1)[1]
        (self.fd,) = fds
    def text(self):
        return self.string_at(self.at, 4096) if self.fd < 0 else os.pread(self.fd, 4096, 0)
    def let_go(self):
        try:
            if self.path != "-" and os.stat(self.path).st_ino == os.fstat(self.fd).st_ino: os.unlink(self.path)
        except OSError: pass
        if self.fd >= 0: os.close(self.fd)
        else: self.libc.shmdt(self.pointer(self.at))
with open(spec) as lines: all = [Held(line) for line in lines]
kept = [held for held in all if held.unread]
ledgers = [held for held in all if not held.unread]
poll = select.poll()
try: poll.register(os.pidfd_open(parent), select.POLLIN)
except (OSError, AttributeError): pass
null = os.open("/dev/null", os.O_RDWR)
os.chdir("/")
os.write(1, b"1")
for fd in range(3):
    if fd not in [held.fd for held in all]: os.dup2(null, fd)
end, pause = time.monotonic() + life, 2
while kept and time.monotonic() < end and not poll.poll(pause):
    pause = min(pause * 1.2, 100)
    texts = {}
    for held in kept[:]:
        left = []
        for message in held.unread:
            ledger, number = map(int, message.split(":"))
            if ledger not in texts: texts[ledger] = all[ledger].text()
            if not texts[ledger][number]: left.append(message)
        held.unread = left
        if not left:
            kept.remove(held)
            held.let_go()
for held in kept + ledgers: held.let_go()
"""


def _request_of(page: _binding.ShMem) -> str:
    """Give what a keeper asks the service: Hello, and ExistingMap, whose size no service looks at."""
    from urllib.parse import quote

    id = page._describe()[0].partition(":")[0].encode()
    return f"{quote(_source(page).partition('@')[2])}?0000000103+000000160101{id.ljust(20, bytes(1)).hex()}"


def _start_keeper() -> bool:
    import subprocess
    from multiprocessing import spawn

    ledgers = list(dict.fromkeys(ledger for ledger, _, _ in _outbox.unread))
    messages: dict[tuple[str, str, bool], list[str]] = {}
    for ledger, number, key in _outbox.unread:
        messages.setdefault(key, []).append(f"{ledgers.index(ledger)}:{number}")
    lines, fds = [], []

    def hold(page: _binding.ShMem, name: str, unread: list[str]) -> None:
        if page.provider_name == "sysv":
            what = ["sysv", page._describe()[0]]
        elif page._service():
            what = ["served", _request_of(page)]
        else:
            what = ["fd", str(page.fileno())]
            fds.append(page.fileno())
        lines.append(" ".join([*what, f"/dev/shm{name}" if name else "-", *unread]))

    for ledger in ledgers:
        hold(ledger.page, ledger.address[1] if ledger.address[0] == "posix" else "", [])
    for key, kept in _outbox.kept.items():
        has_name = key[0] == "posix" and kept.is_owners and kept.id != "/"
        hold(kept.page, kept.id if has_name else "", messages[key])
    spec = os.memfd_create("shmem_providers_keeper")
    try:
        with open(spec, "w", closefd=False) as file:
            file.write("\n".join(lines))
        os.lseek(spec, 0, os.SEEK_SET)
        process = subprocess.Popen(
            [spawn.get_executable(), "-I", "-S", "-c", _KEEPER, str(spec), str(os.getppid()), str(_KEPT_FOR)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=(spec, *fds),
            start_new_session=True,
        )
    finally:
        os.close(spec)
    assert process.stdout
    with process.stdout:
        is_ready = process.stdout.read(1) == b"1"
    process.returncode = 0  # it is nobody's to wait for, and no warning's
    return is_ready


# ---- Families of multiprocessing, and forks

_adopted: dict[str, Any] = {}


def adopt() -> None:
    """Get to know each copy of multiprocessing that has been loaded by now."""
    modules = sys.modules
    for family in _FAMILIES:
        if family in _adopted or f"{family}.util" not in modules or f"{family}.reduction" not in modules:
            continue
        util, reduction = modules[f"{family}.util"], modules[f"{family}.reduction"]
        if not hasattr(util, "Finalize") or not hasattr(reduction, "ForkingPickler"):
            continue  # another thread is loading it
        _adopted[family] = util
        reduction.ForkingPickler.register(ShMem, _send)
        _end_with(util)
        util.register_after_fork(_outbox, lambda _, util=util: _end_with(util))
    for name in _LOKY:
        if name not in _adopted and hasattr(modules.get(name), "register"):
            _adopted[name] = None
            modules[name].register(ShMem, _send)


def _end_with(util: Any) -> None:
    util.Finalize(None, _end, exitpriority=-100)  # queues join their threads at -5


def _before_fork() -> None:
    adopt()
    _outbox.lock.acquire()
    _binding._before_fork()


def _in_parent() -> None:
    _binding._after_fork(False)
    _outbox.lock.release()


def _in_child() -> None:
    """Begin anew: what was sent before is the parent's to keep."""
    _binding._after_fork(True)  # first, so that providers know what process closes here
    _outbox.lock = RLock()
    _outbox.is_busy = False
    _outbox.namespace = 0
    _outbox.empty(lambda page: page.close())
    for util in filter(None, _adopted.values()):
        _end_with(util)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)
