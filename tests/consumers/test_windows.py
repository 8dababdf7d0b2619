"""The stranger's C program for Windows, built here against a Windows wheel and against the sources; Wine runs it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import shmem_providers

ROOT = Path(__file__).parent.parent.parent
PROGRAM = Path(__file__).parent / "program.c"
STRICT = ["-Wall", "-Wextra", "-Werror", "-Wpedantic"]
ZIG_CC = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-windows-gnu"]
MINGW = ["x86_64-w64-mingw32-gcc"]

Run = Callable[..., subprocess.CompletedProcess[str]]
Check = Callable[..., str]
Works = Callable[..., None]
Tool = Callable[..., str]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the Linux side of Wine")


@pytest.fixture(scope="module")
def windows(tool: Tool) -> str:
    tool("wine", "wine wine64")
    tool("x86_64-w64-mingw32-gcc", "gcc-mingw-w64-x86-64-win32")
    return str(ROOT / "tools/windows.sh")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory, windows: str) -> Path:
    """Give the folder shmem_providers of a wheel for Windows."""
    wheels = list((ROOT / "build/wheels").glob("*-win_amd64.whl"))
    if not wheels:
        pytest.skip("needs a wheel for Windows: tools/wheel.sh win_amd64, as .ci/run windows does")
    folder = tmp_path_factory.mktemp("windows")
    with zipfile.ZipFile(wheels[0]) as archive:
        archive.extractall(folder)
    return folder / "shmem_providers"


@pytest.fixture
def works(check: Check, windows: str) -> Works:
    """Give a function that runs a stranger's program with the DLL beside it."""

    def works(program: Path, dll: Path | None) -> None:
        if dll:
            shutil.copy(dll, program.parent)
        assert check(windows, "program", program, cwd=program.parent) == "shared shared\n"

    return works


def exported(check: Check, tool: Tool, dll: Path) -> list[str]:
    lines = check(tool("llvm-readobj", "llvm"), "--coff-exports", dll).splitlines()
    return [line.split()[1] for line in lines if line.startswith("  Name: ")]


@pytest.mark.parametrize(
    ("compiler", "language"),
    [(ZIG_CC, "-xc -std=c99"), (ZIG_CC, "-xc++ -std=c++11"), (MINGW, "-xc -std=c99")],
    ids=["zig", "zig-c++", "mingw"],
)
def test_the_command_line_gives_the_flags(
    compiler: list[str], language: str, tmp_path: Path, package: Path, windows: str, check: Check, works: Works
) -> None:
    """A Windows Python prints them, for the folders as it sees them: Z: is this system's root."""
    if compiler is ZIG_CC and find_spec("ziglang") is None:
        pytest.skip("needs zig: pip install ziglang, as .ci/run windows does")
    code = "import _library; _library.print_flags()"
    environment = os.environ | {"PYTHONPATH": check(windows, "path", package).strip()}
    printed = check(windows, "run", "311", "-c", code, "--cflags", "--libs", env=environment)
    words = printed.replace("Z:", "").replace("\\", "/").split()
    assert words == [f"-I{package}/include", f"{package}/lib/shmem_providers.lib"]
    check(*compiler, *STRICT, *language.split(), PROGRAM, "-xnone", *words, "-o", tmp_path / "program.exe")
    works(tmp_path / "program.exe", package / "lib/shmem_providers.dll")


def test_pkg_config(tmp_path: Path, package: Path, check: Check, works: Works, tool: Tool) -> None:
    environment = os.environ | {"PKG_CONFIG_PATH": f"{package}/lib/pkgconfig"}
    words = check(tool("pkg-config"), "--cflags", "--libs", "shmem_providers", env=environment).split()
    assert not any("rpath" in word for word in words)
    check(*MINGW, *STRICT, PROGRAM, *words, "-o", tmp_path / "program.exe")
    works(tmp_path / "program.exe", package / "lib/shmem_providers.dll")


def test_what_the_wheel_has(package: Path, check: Check, tool: Tool) -> None:
    assert sorted(path.name for path in (package / "lib").iterdir()) == [
        "cmake", "pkgconfig", "shmem_providers.dll", "shmem_providers.lib"
    ]  # fmt: skip
    assert exported(check, tool, package / "lib/shmem_providers.dll") == (ROOT / "csrc/exports.txt").read_text().split()
    assert exported(check, tool, package / "_binding.pyd") == ["PyInit__binding"]


# ---- CMake


@pytest.fixture
def build(windows: str, cmake_build: Callable[..., Path]) -> Callable[..., Path]:
    """Give a function that builds a stranger's CMake project and gives its program."""
    cross = ["-DCMAKE_SYSTEM_NAME=Windows", f"-DCMAKE_C_COMPILER={MINGW[0]}"]
    return lambda lines, *options: cmake_build(lines, *cross, *options).with_suffix(".exe")


def test_find_package(build: Callable[..., Path], package: Path, works: Works) -> None:
    find = f"find_package(shmem_providers {shmem_providers.__version__} REQUIRED)"
    program = build(find, f"-Dshmem_providers_DIR={package}/lib/cmake/shmem_providers")
    works(program, package / "lib/shmem_providers.dll")


@pytest.mark.parametrize("shared", ["ON", "OFF"])
def test_add_subdirectory(shared: str, build: Callable[..., Path], works: Works, check: Check, tool: Tool) -> None:
    program = build(f'add_subdirectory("{ROOT}/csrc" library)', f"-DBUILD_SHARED_LIBS={shared}")
    dll = program.parent / "library/shmem_providers.dll"
    assert dll.exists() == (shared == "ON")
    if dll.exists():
        assert exported(check, tool, dll) == (ROOT / "csrc/exports.txt").read_text().split()
    works(program, dll if dll.exists() else None)
