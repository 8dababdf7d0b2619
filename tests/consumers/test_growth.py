"""Programs and libraries of other versions: what may grow works in both directions, what has changed is refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shmem_providers import get_include, get_library_dir

ROOT = Path(__file__).parent.parent.parent
PROGRAM = Path(__file__).parent / "growth.c"
STRICT = ["-Wall", "-Wextra", "-Werror", "-Wpedantic"]

Run = Callable[..., subprocess.CompletedProcess[str]]
Check = Callable[..., str]
Tool = Callable[..., str]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="builds a shared library of ELF")

# What shmp_check_abi() of 0.1's header compiled into its callers.
PROGRAM_OF_0_1 = """
#include <stdio.h>
#define SHMP_ABI_VERSION 1u
unsigned shmp_abi_version(void);
int main(void) {
    unsigned library = shmp_abi_version();
    if (library == SHMP_ABI_VERSION) return 0;
    fprintf(stderr, "ABI %u, compiled for ABI %u", library, SHMP_ABI_VERSION);
    return 1;
}
"""

NOVELTY = "    unsigned long long novelty;\n"
SIZE_OF_NOVELTY = 8


@pytest.fixture(scope="module")
def newer_header(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the header of a later version: one more member in each struct that may grow."""
    header = Path(get_include(), "shmem_providers.h").read_text()
    for name in ("shmp_provider_options", "shmp_limits", "shmp_listed"):
        header, changed = re.subn(rf"^\}} {name};", f"{NOVELTY}}} {name};", header, flags=re.MULTILINE)
        assert changed == 1
    folder = tmp_path_factory.mktemp("newer")
    (folder / "shmem_providers.h").write_text(header)
    return folder


@pytest.fixture(scope="module")
def newer_library(newer_header: Path, check: Check, tool: Tool) -> Path:
    """Give a folder with a library that was compiled with that header."""
    sources = [
        path for folder in ("core", "backend", "os", "service") for path in sorted((ROOT / "csrc" / folder).glob("*.c"))
    ]
    path = newer_header / "libshmem_providers.so"
    words = ["-std=c11", "-shared", "-fPIC", "-pthread", f"-I{newer_header}", f"-I{ROOT}/csrc", "-DSHMP_BUILD"]
    check(tool("cc", "gcc"), *words, *sources, "-lrt", "-o", path)
    return newer_header


def build(check: Check, tool: Tool, folder: Path, include: str | Path, *options: str) -> Path:
    """Compile the program with a header; it is linked to the installed library."""
    library = Path(get_library_dir(), "libshmem_providers.so")
    check(tool("cc", "gcc"), *STRICT, *options, f"-I{include}", PROGRAM, library, "-o", folder / "program")
    return folder / "program"


def environment(library: str | Path) -> dict[str, str]:
    return os.environ | {"LD_LIBRARY_PATH": str(library)}


def test_a_program_of_0_1_is_refused(tmp_path: Path, check: Check, run: Run, tool: Tool) -> None:
    (tmp_path / "program.c").write_text(PROGRAM_OF_0_1)
    library = Path(get_library_dir(), "libshmem_providers.so")
    check(tool("cc", "gcc"), *STRICT, tmp_path / "program.c", library, "-o", tmp_path / "program")
    result = run(tmp_path / "program", env=environment(get_library_dir()))
    assert (result.returncode, result.stderr) == (1, "ABI 2, compiled for ABI 1")


def test_the_same_version(tmp_path: Path, check: Check, tool: Tool) -> None:
    program = build(check, tool, tmp_path, get_include())
    assert check(program, env=environment(get_library_dir())) == "limits 0 listed 0\n"


def test_a_newer_program(newer_header: Path, tmp_path: Path, check: Check, run: Run, tool: Tool) -> None:
    """It learns what was filled in, and is told of the option that this library does not know."""
    program = build(check, tool, tmp_path, newer_header, "-DNEWER")
    result = run(program, env=environment(get_library_dir()))
    assert (result.returncode, result.stdout) == (0, f"limits -{SIZE_OF_NOVELTY} listed -{SIZE_OF_NOVELTY}\n")
    assert re.fullmatch(r"options: byte \d+ is set: library \S+ does not know that option\n", result.stderr)


def test_a_newer_library(newer_library: Path, tmp_path: Path, check: Check, tool: Tool) -> None:
    """It takes the smaller options, fills in no more limits than there is room for, and lists what came later."""
    program = build(check, tool, tmp_path, get_include())
    assert check(program, env=environment(newer_library)) == f"limits 0 listed {SIZE_OF_NOVELTY}\n"
