"""A service as a process of its own: ``shmem-providers serve``, and starting it for who needs one."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys

from shmem_providers._errors import ServiceError
from shmem_providers._providers import ServedShMemProvider, open_with_descriptors
from shmem_providers._service import VARIABLE, ShMemService

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace
    from types import FrameType

IDLE = 10  # seconds that a process which was started for who needed it waits for the next client
PATIENCE = 20  # seconds until such a process answers
FAILED, IN_USE = 1, 3  # exit codes
_READY = b"+"


def _arguments(arguments: list[str]) -> Namespace:
    import argparse

    parser = argparse.ArgumentParser(
        "shmem-providers serve",
        description="Run a service, which hands out segments to served providers and to the Rust crate's, until "
        "SIGTERM or SIGINT. SIGUSR1 prints what it has. Exits with 0; 3: a living service has the address; 1: it "
        "cannot be started.",
    )
    parser.add_argument(
        "--provider", choices=["memfd", "posix", "ashmem"], help="what makes the segments (the best by itself)"
    )
    parser.add_argument("--address", help="a path, or @name for an abstract socket (Linux); this user's own by itself")
    parser.add_argument("--idle", type=float, default=0.0, metavar="S", help="end after S seconds without a client")
    parser.add_argument(
        "--linger", type=float, default=0.0, metavar="S", help="keep a segment for S seconds after its last client"
    )
    parser.add_argument("--any-user", action="store_true", help="serve all users, and not this one and root alone")
    for name, what in (
        ("clients", "connections at once"),
        ("segments", "references that one client may hold"),
        ("bytes", "bytes in all segments that one client made"),
    ):
        parser.add_argument(f"--max-{name}", type=int, default=0, metavar="N", help=what)
    parser.add_argument("--detach", action="store_true", help="go on in the background, once it answers")
    return parser.parse_args(arguments)


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # a log that nobody can read any more is no reason to end
        print(f"shmem-providers: {text}", file=sys.stderr, flush=True)


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _stats(service: ShMemService) -> str:
    stats = service.stats()
    return (
        f"{_counted(stats.clients, 'client')}, {_counted(stats.segments, 'segment')} of {stats.bytes:,} bytes; so far "
        f"{_counted(stats.accepted, 'connection')}, {_counted(stats.requests, 'request')}, {stats.refused:,} refused"
    )


def _start(wanted: Namespace) -> ShMemService:
    service = ShMemService(
        open_with_descriptors(wanted.provider) if wanted.provider else None,
        wanted.address,
        linger=wanted.linger,
        idle=wanted.idle,
        any_user=wanted.any_user,
        max_clients=wanted.max_clients,
        max_segments=wanted.max_segments,
        max_bytes=wanted.max_bytes,
    )
    return service.start()


def _run(service: ShMemService) -> None:
    """Serve until a signal, or until it ends by itself."""
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, note)
    _log(f"serving at {service.address}, as process {os.getpid()}")
    while True:
        has_ended = service.wait(0.2)
        while asked and asked[0] == signal.SIGUSR1:
            del asked[0]
            _log(_stats(service))
        if has_ended or asked:
            break
    _log(f"ends {'by ' + signal.Signals(asked[0]).name if asked else 'as it had no client'}: {_stats(service)}")
    service.stop()


def _failure(problem: Exception) -> tuple[int, str]:
    """Give the exit code and the sentence."""
    is_in_use = isinstance(problem, ServiceError) and problem.errno == errno.EADDRINUSE
    text = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
    return IN_USE if is_in_use else FAILED, f"cannot serve: {text}"


def _detach() -> int:
    """Go on in a child, whose parent ends when that answers; give the child's end of a pipe to tell so."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        os.close(reading)
        os.setsid()
        os.chdir("/")
        return writing
    os.close(writing)
    with open(reading, "rb") as file:
        said = file.read()
    if said == _READY:
        os._exit(0)
    _log(said[1:].decode(errors="replace") or "cannot serve: the process ended")
    os._exit(said[0] if said else FAILED)


def _let_go_of_the_starter(ready: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in range(3):
        os.dup2(null, fd)
    os.close(null)
    os.write(ready, _READY)
    os.close(ready)


def main(arguments: list[str]) -> int:
    """Run ``shmem-providers serve``; give its exit code."""
    wanted = _arguments(arguments)
    ready = _detach() if wanted.detach else -1
    try:
        service = _start(wanted)
    except (OSError, ValueError) as problem:
        code, sentence = _failure(problem)
        if wanted.detach:
            os.write(ready, bytes([code]) + sentence.encode())
        else:
            _log(sentence)
        return code
    if wanted.detach:
        _let_go_of_the_starter(ready)
    _run(service)
    return 0


# ---- For who needs one


def _environment() -> dict[str, str]:
    """Give this process's without what tells where it is. The package is found wherever it was found here."""
    import _cffi_backend

    package, cffi = os.path.dirname(os.path.dirname(__file__)), os.path.dirname(_cffi_backend.__file__)
    kept = {name: value for name, value in os.environ.items() if name not in ("PWD", "OLDPWD", "_", VARIABLE)}
    return kept | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, dict.fromkeys([package, cffi])))}


def _is_answered() -> bool:
    try:
        ServedShMemProvider()
    except ServiceError:
        return False
    return True


def start_process() -> None:
    """Have a service at the default address: the one that answers there, or one that is started. Several may try.

    It is a process of its own, in a session of its own, without anything of this one's, and ends when it had no client
    for 10 seconds.

    Raises:
        ServiceError: it does not start.

    """
    if _is_answered():
        return
    import subprocess
    from multiprocessing import spawn

    executable = spawn.get_executable()
    if getattr(sys, "frozen", False) or not executable:
        raise ServiceError(
            errno.ECONNREFUSED,
            "no service answers, and this program has no Python to start one with: run shmem-providers serve, or a "
            "ShMemService in this process",
        )
    address = os.environ.get(VARIABLE)
    command = [executable, "-P", "-m", "shmem_providers", "serve", "--idle", str(IDLE), "--detach"]
    problem = ""
    try:
        result = subprocess.run(
            command + (["--address", address] if address else []),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=_environment(),
            cwd="/",
            start_new_session=True,
            timeout=PATIENCE,
        )
    except (OSError, subprocess.TimeoutExpired) as failure:
        problem = str(failure)
    else:
        if result.returncode not in (0, IN_USE):
            lines = result.stderr.decode(errors="replace").strip().splitlines()
            problem = lines[-1] if lines else f"it ended with {result.returncode}"
    if problem:
        raise ServiceError(errno.ECONNREFUSED, f"no service answers, and none can be started: {problem}")
