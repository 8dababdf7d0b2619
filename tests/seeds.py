"""The Rust crate's driver, interop/seed: how it is built, and asked. No tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

CRATES = Path(__file__).parent / "interop"


class SeedError(Exception):
    pass


class Seed:
    """A process with one segment of the seed crate; see seed/src/main.rs for what it can be asked."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.id, size = self._answer().split(" ")
        self.size = int(size)

    def ask(self, *fields: object) -> str:
        assert self.process.stdin
        print(*fields, sep="\t", file=self.process.stdin, flush=True)
        return self._answer()

    def read(self) -> bytes:
        return bytes.fromhex(self.ask("read", 0, self.size))

    def write(self, data: bytes) -> None:
        self.ask("write", 0, data.hex())

    def quit(self) -> None:
        with self.process:
            pass
        assert self.process.returncode == 0

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().rstrip("\n")
        if not line or line.startswith("error: "):
            raise SeedError(line or f"the seed ended: {self.process.wait()}")
        return line


class Client:
    """A client of a service, with the seed crate's maps over memfd."""

    def __init__(self, program: Path, env: dict[str, str] | None = None) -> None:
        pipe = subprocess.PIPE
        environment = {**os.environ, **(env or {})}
        self.process = subprocess.Popen([program, "client"], stdin=pipe, stdout=pipe, text=True, env=environment)
        try:
            assert self._answer().startswith("started")
        except SeedError:
            self.process.communicate()
            raise

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline().rstrip("\n")
        if not line or line.startswith("error: "):
            raise SeedError(line or f"the seed ended: {self.process.wait()}")
        return line

    def ask(self, *fields: object) -> str:
        assert self.process.stdin
        print(*fields, sep="\t", file=self.process.stdin, flush=True)
        return self._answer()

    def _map(self, *request: object) -> tuple[str, str]:
        number, id, size = self.ask(*request).split()
        assert size == str(request[-1])
        return number, id

    def new(self, size: int) -> tuple[str, str]:
        """Give the number by which it is asked, and its id."""
        return self._map("new", size)

    def attach(self, id: str, size: int) -> str:
        return self._map("attach", id, size)[0]

    def read(self, number: str, length: int) -> bytes:
        return bytes.fromhex(self.ask("read", number, length))

    def write(self, number: str, data: bytes) -> None:
        self.ask("write", number, data.hex())

    def end(self) -> None:
        with self.process:
            pass
        assert self.process.returncode == 0


class Served:
    """The seed crate's service over memfd, at the one address that it knows."""

    def __init__(self, program: Path) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([program, "serve"], stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout
        self.answer = self.process.stdout.readline().rstrip("\n")
        if self.answer != "started":
            self.process.communicate()

    def end(self) -> None:
        with self.process:
            pass
        assert self.process.returncode == 0


def build(crate: str, missing: Callable[[str], NoReturn], *options: str) -> Path:
    """Give the program, which is built once a machine."""
    cargo = shutil.which("cargo")
    if not cargo:
        missing("no cargo: install Rust 1.87 or newer (https://rustup.rs)")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    target = Path(cache, "shmem-providers", crate)

    def run(*command: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"CARGO_TARGET_DIR": str(target)}
        arguments = [cargo, *command, "--locked", "--quiet"]
        return subprocess.run(
            arguments, check=False, cwd=CRATES / crate, env=environment, capture_output=True, text=True
        )

    fetched = run("fetch")
    if fetched.returncode:
        missing(f"cargo can't fetch the seed crate: {fetched.stderr}")
    built = run("build", "--offline", *options)
    assert built.returncode == 0, built.stderr
    profile = "release" if "--release" in options else "debug"
    return target / profile / ("seed.exe" if sys.platform == "win32" else "seed")


def rust_version() -> tuple[int, ...]:
    rustc = shutil.which("rustc")
    if not rustc:
        return ()
    text = subprocess.run([rustc, "--version"], check=False, capture_output=True, text=True).stdout
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", text)
    return tuple(map(int, found.groups())) if found else ()
