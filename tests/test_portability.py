"""What MSVC compiles is free of what it lacks. MSVC is not to be had here: the sources are preprocessed as it would."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="MSVC itself compiles it there")

CSRC = Path(__file__).parent.parent / "csrc"
GENERATED = CSRC / "python/_binding.c"
SOURCES = sorted({*CSRC.glob("*/*.c")} - {GENERATED})  # python_module.c includes it
PLATFORM_FILES = {"include/shmem_providers.h", "backend/win32.c"}  # and all of os/

# Of MSVC's headers those that may be used; another, such as unistd.h, is not found.
HEADERS = (
    *("errno.h", "intrin.h", "limits.h", "malloc.h", "math.h", "stdarg.h", "stddef.h", "stdint.h", "stdio.h"),
    *("stdlib.h", "string.h", "windows.h", "Python.h", "pyconfig.h", "structmember.h"),
)

LACKING = {
    "C11 atomics, but for a switch": r"\b_Atomic\b|\batomic_\w+",
    "attributes of GNU": r"__attribute__",
    "other extensions of GNU": r"\b(__typeof__|typeof|__auto_type|__extension__|__asm__|__int128|__builtin_\w+)\b",
    "statement expressions": r"\(\s*\{",
    "a ?: without its middle": r"\?\s*:",
    "ranges in case and []": r"(\bcase\b[^:]*|\[[^]]*)\.\.\.",
    "empty initializers": r"=\s*\{\s*\}",
    "arrays of length 0": r"\w\s*\[\s*0?\s*\]\s*;\s*\}",
    "types of POSIX": r"\b(ssize_t|off_t|pid_t|mode_t|pthread_\w+)\b",
    "functions of POSIX": r"\b(getpid|getenv|setenv|unsetenv|strtok_r|strdup|usleep)\s*\(",
}
PLANTED = {
    "_Atomic int word;": "C11 atomics",
    "__attribute__((unused)) static int word;": "attributes",
    "int f(int x); int f(int x) { typeof(x) y = x; return y; }": "other extensions",
    "int f(int x); int f(int x) { return __builtin_popcount(x); }": "other extensions",
    "int f(int x); int f(int x) { return ({ x; }); }": "statement expressions",
    "int f(int x); int f(int x) { return x ?: 1; }": "?:",
    "int f(int x); int f(int x) { switch (x) { case 1 ... 5: return 1; } return 0; }": "ranges",
    "static const int word[8] = {[1 ... 3] = 1};": "ranges",
    "struct nothing { int length; char text[0]; };": "length 0",
    "static int words[2] = {};": "empty",
    "ssize_t f(void);": "types",
    "int f(void); int f(void) { return getpid(); }": "functions",
    "#include <unistd.h>": "unistd.h",
}


@pytest.fixture(scope="module")
def preprocess(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Callable[[Path], str]:
    """Give a function that gives what MSVC would compile of a file, or the preprocessor's error."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        missing: Callable[[str], NoReturn] = request.getfixturevalue("missing")
        missing("needs a C compiler: apt install gcc")
    stubs = tmp_path_factory.mktemp("stubs")
    for name in HEADERS:
        (stubs / name).touch()
    environment = ["-undef", "-nostdinc", "-D_WIN32", "-D_WIN64", "-D_M_AMD64", "-D_M_X64", "-D_MSC_VER=1940"]

    def preprocess(path: Path) -> str:
        folders = [f"-I{stubs}", f"-I{CSRC}", f"-I{CSRC}/include", f"-I{CSRC}/{path.parent.name}"]
        command = [compiler, "-E", "-P", "-std=c11", *environment, "-DSHMP_STATIC", *folders, str(path)]
        result = subprocess.run(command, check=False, capture_output=True, text=True)
        return result.stdout if result.returncode == 0 else f"{result.stderr}\n#error"

    return preprocess


def lacking(code: str) -> list[str]:
    if code.endswith("#error"):
        return [code]
    return [f"{what}: {match[0]}" for what, pattern in LACKING.items() for match in re.finditer(pattern, code)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_msvc_has_all_that_it_compiles(path: Path, preprocess: Callable[[Path], str]) -> None:
    code = preprocess(path)
    assert lacking(code) == []
    is_of_unix = path.parent.name in ("backend", "os") and path.name not in ("win32.c", "os_win32.c", "nop.c")
    is_of_unix |= path.name in ("registry.c", "service.c")  # no_service.c is the others'
    assert (len(code.splitlines()) < 5) == is_of_unix, "the file's guard"


@pytest.mark.parametrize("line", PLANTED)
def test_what_msvc_lacks_is_found(line: str, tmp_path: Path, preprocess: Callable[[Path], str]) -> None:
    folder = tmp_path / "core"
    folder.mkdir()
    path = folder / "error.c"
    path.write_text((CSRC / "core/error.c").read_text() + line + "\n")
    assert any(PLANTED[line] in found for found in lacking(preprocess(path)))


def conditions_of_windows(text: str) -> list[str]:
    return re.findall(r"^\s*#\s*(?:el)?if.*(?:_WIN32|_WIN64|_MSC_VER|HAVE_WIN32|__CYGWIN__).*", text, re.MULTILINE)


def test_conditions_of_windows_are_in_their_files() -> None:
    """Elsewhere a function of csrc/os is the place for what differs."""
    found = {
        str(path.relative_to(CSRC))
        for path in CSRC.rglob("*.[ch]")
        if path != GENERATED and conditions_of_windows(path.read_text())
    }
    assert found - {name for name in found if name.startswith("os/")} == PLATFORM_FILES
