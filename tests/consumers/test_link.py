"""A stranger's C program, built against the installed package and against the sources, in every documented way."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

import shmem_providers
from shmem_providers import get_cmake_dir, get_include, get_library_dir

ROOT = Path(__file__).parent.parent.parent
PROGRAM = Path(__file__).parent / "program.c"
STRICT = ["-Wall", "-Wextra", "-Werror", "-Wpedantic"]

Run = Callable[..., subprocess.CompletedProcess[str]]
Check = Callable[..., str]
Works = Callable[[Path], None]
Tool = Callable[..., str]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads ELF files")


@pytest.fixture(scope="module")
def library() -> Path:
    return Path(get_library_dir(), "libshmem_providers.so")


def flags(check: Check, *which: str) -> list[str]:
    return check(sys.executable, "-m", "shmem_providers", *which).split()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory, check: Check, tool: Tool) -> Path:
    """The program, linked to the installed shared library."""
    path = tmp_path_factory.mktemp("program") / "program"
    check(tool("cc", "gcc"), *STRICT, "-g", PROGRAM, *flags(check, "--cflags", "--libs"), "-o", path)
    return path


def needed(check: Check, tool: Tool, path: Path) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", check(tool("readelf", "binutils"), "-d", path)))


def exported(check: Check, tool: Tool, path: Path) -> list[str]:
    lines = check(tool("nm", "binutils"), "-D", "--defined-only", path).splitlines()
    return [line.split()[2] for line in lines]


# ---- the installed package


@pytest.mark.parametrize("compiler", ["gcc -std=c99", "clang -std=c99", "g++ -std=c++11", "clang++ -std=c++11"])
def test_the_command_line_gives_the_flags(
    compiler: str, tmp_path: Path, check: Check, works: Works, tool: Tool
) -> None:
    name, standard = compiler.split()
    tool(name, name.replace("clang++", "clang"))
    language = "c++" if "++" in name else "c"
    check(
        "sh", "-c",
        f'{name} {standard} {" ".join(STRICT)} -x {language} "$1" -x none '
        '$("$2" -m shmem_providers --cflags --libs) -o program',
        "sh", PROGRAM, sys.executable, cwd=tmp_path,
    )  # fmt: skip
    works(tmp_path / "program")


@pytest.mark.parametrize("tool_name", ["pkg-config", "pkgconf"])
def test_pkg_config(tool_name: str, tmp_path: Path, check: Check, works: Works, tool: Tool) -> None:
    (folder,) = flags(check, "--pkgconfigdir")
    environment = os.environ | {"PKG_CONFIG_PATH": folder}
    command = [tool(tool_name), "--cflags", "--libs", "shmem_providers"]
    words = check(*command, env=environment).split()
    check(tool("cc", "gcc"), *STRICT, PROGRAM, *words, "-o", tmp_path / "program")
    works(tmp_path / "program")
    assert check(tool(tool_name), "--modversion", "shmem_providers", env=environment).strip() == (
        shmem_providers.__version__
    )


def test_the_entry_point_for_pkgconf(
    tmp_path: Path, check: Check, works: Works, tool: Tool, missing: Callable[[str], NoReturn]
) -> None:
    """PyPI's pkgconf finds the .pc files of installed packages."""
    if find_spec("pkgconf") is None:
        missing("needs PyPI's pkgconf: pip install pkgconf")
    # not imported here: the free-threaded 3.14 cannot fork after that
    found = check(sys.executable, "-c", "import pkgconf; print(*pkgconf.get_pkg_config_path(), sep='\\n')")
    assert str(Path(get_library_dir(), "pkgconfig")) in found.splitlines()
    arguments = ["--cflags", "--libs", "shmem_providers"]
    words = check(sys.executable, "-m", "pkgconf", *arguments, env=os.environ | {"FORCE_PKGCONF_PYPI": "1"}).split()
    check(tool("cc", "gcc"), *STRICT, PROGRAM, *words, "-o", tmp_path / "program")
    works(tmp_path / "program")


def test_valgrind_finds_nothing(program: Path, check: Check, tool: Tool) -> None:
    valgrind = [tool("valgrind"), "-q", "--error-exitcode=9", "--leak-check=full", "--show-leak-kinds=all"]
    assert check(*valgrind, "--errors-for-leak-kinds=all", program) == "shared shared\n"


def test_the_static_library(tmp_path: Path, check: Check, works: Works, tool: Tool) -> None:
    archive = Path(get_library_dir(), "libshmem_providers.a")
    path = tmp_path / "program"
    check(tool("cc", "gcc"), *STRICT, "-rdynamic", PROGRAM, *flags(check, "--cflags"), archive, "-lrt", "-o", path)
    works(path)
    assert not [name for name in needed(check, tool, path) if "shmem_providers" in name]
    assert not [name for name in exported(check, tool, path) if name.startswith("shmp")]


# ---- what the library is


def test_exports(library: Path, check: Check, tool: Tool) -> None:
    """A difference here is a change of the ABI: make it on purpose."""
    header = Path(get_include(), "shmem_providers.h").read_text()
    region = header.partition("/* cffi: begin")[2].partition("/* cffi: end */")[0]
    declared = sorted(re.findall(r"^SHMP_API [^;(]*?(\w+)\(", region, re.MULTILINE))
    listed = (ROOT / "csrc/exports.txt").read_text().split()
    assert listed == declared
    assert exported(check, tool, library) == listed


def test_it_needs_libc_only(library: Path, check: Check, tool: Tool) -> None:
    libc = {"libc.so.6", "libc.so", f"libc.musl-{platform.machine()}.so.1"}
    libc |= {"libpthread.so.0", "librt.so.1"}  # before glibc 2.34, for which wheels are built, parts of their own
    assert needed(check, tool, library) - libc == set()


def test_it_is_small(library: Path, check: Check, tool: Tool) -> None:
    if ".debug_info" in check(tool("readelf", "binutils"), "-S", "-W", library):
        pytest.skip("it was built with CFLAGS=-g")
    assert library.stat().st_size <= (128_000 if platform.machine() == "x86_64" else 160_000)


def test_they_look_for_libraries_nowhere_else(library: Path, check: Check, tool: Tool) -> None:
    """The folder of the Python that built them may be anybody's, where they are used."""
    for path in (library, Path(shmem_providers._binding.__file__)):
        assert not re.search(r"\((RPATH|RUNPATH)\)", check(tool("readelf", "binutils"), "-d", path))


def test_the_binding_exports_its_init_function_only(check: Check, tool: Tool) -> None:
    assert exported(check, tool, Path(shmem_providers._binding.__file__)) == ["PyInit__binding"]


# ---- another library in the place of ours


@pytest.fixture
def impostor(tmp_path: Path, check: Check, tool: Tool) -> dict[str, str]:
    """Give an environment that preloads a library which defines all functions in another way."""
    names = (ROOT / "csrc/exports.txt").read_text().split()
    code = [f"unsigned {name}(void) {{ return 999; }}" for name in names if name != "shmp_error_text"]
    code.append('const char *shmp_error_text(int code) { (void)code; return "impostor"; }')
    (tmp_path / "impostor.c").write_text("\n".join(code))
    path = tmp_path / "impostor.so"
    check(tool("cc", "gcc"), "-shared", "-fPIC", tmp_path / "impostor.c", "-o", path)
    return os.environ | {"LD_PRELOAD": str(path)}


USE = """
from shmem_providers import StdShMemProvider, lib
with StdShMemProvider().new_shmem(10) as shm:
    shm[:] = b"0123456789"
    with StdShMemProvider().shmem_from_description(shm.description) as other:
        print(lib.shmp_abi_version(), bytes(other))
"""


def test_a_preloaded_library_does_not_hijack_the_binding(
    impostor: dict[str, str], library: Path, program: Path, check: Check, run: Run
) -> None:
    usual = check(sys.executable, "-c", USE)
    assert check(sys.executable, "-c", USE, env=impostor) == usual
    assert check(sys.executable, "-c", USE, env=os.environ | {"LD_PRELOAD": str(library)}) == usual
    # it does take the place of a shared library: the impostor is a real one
    assert "impostor: the shmem_providers library in use has ABI 999" in run(program, env=impostor).stderr


@pytest.mark.parametrize("abi", [1, 3])
@pytest.mark.parametrize("compiler", ["cc", "c++"])
def test_a_library_of_another_abi_is_refused(
    compiler: str, abi: int, tmp_path: Path, check: Check, run: Run, tool: Tool
) -> None:
    """A program that was compiled with the header of an earlier or later version."""
    header = Path(get_include(), "shmem_providers.h").read_text()
    later, changed = re.subn("#define SHMP_ABI_VERSION 2u", f"#define SHMP_ABI_VERSION {abi}u", header)
    assert changed == 1
    (tmp_path / "shmem_providers.h").write_text(later)
    language = ["-x", "c++", "-std=c++11"] if compiler == "c++" else ["-x", "c", "-std=c99"]
    words = [*STRICT, f"-I{tmp_path}", *language, PROGRAM, "-x", "none", *flags(check, "--libs")]
    check(tool(compiler, "g++"), *words, "-o", tmp_path / "program")
    result = run(tmp_path / "program")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("shmp_check_abi: ")
    sentence = f"the shmem_providers library in use has ABI 2, and this program was compiled for ABI {abi}: "
    assert sentence in result.stderr
    assert result.stderr.endswith(
        "compile it again with the library's header, or let it find the library it was compiled for\n"
    )


# ---- CMake


FIND = f"find_package(shmem_providers {shmem_providers.__version__} REQUIRED)"


def test_find_package(cmake_build: Callable[..., Path], works: Works) -> None:
    works(cmake_build(FIND, f"-Dshmem_providers_DIR={get_cmake_dir()}"))


def test_find_package_with_the_entry_point(cmake_build: Callable[..., Path], works: Works) -> None:
    """scikit-build-core makes <name>_ROOT of the entry points in the group cmake.root."""
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="cmake.root", name="shmem_providers")
    works(cmake_build(FIND, f"-Dshmem_providers_ROOT={Path(entry.load().__file__).parent}"))


def test_find_package_refuses_another_version(
    tmp_path: Path, cmake_project: Callable[[str], Path], run: Run, tool: Tool
) -> None:
    project = cmake_project("find_package(shmem_providers 0.999 REQUIRED)")
    result = run(tool("cmake"), "-S", project, "-B", tmp_path / "binary", f"-Dshmem_providers_DIR={get_cmake_dir()}")
    assert result.returncode == 1
    assert f"version: {shmem_providers.__version__}" in result.stderr


@pytest.mark.parametrize("shared", ["ON", "OFF"])
def test_add_subdirectory(
    shared: str, cmake_build: Callable[..., Path], works: Works, check: Check, tool: Tool
) -> None:
    program = cmake_build(f'add_subdirectory("{ROOT}/csrc" shmem_providers)', f"-DBUILD_SHARED_LIBS={shared}")
    works(program)
    assert ("libshmem_providers.so" in needed(check, tool, program)) == (shared == "ON")


def test_fetch_content(cmake_build: Callable[..., Path], works: Works, sdist: Path) -> None:
    """Of the source distribution, which is a local file here."""
    works(
        cmake_build(
            f'include(FetchContent)\nFetchContent_Declare(shmem_providers URL "{sdist}" SOURCE_SUBDIR csrc)\n'
            "FetchContent_MakeAvailable(shmem_providers)"
        )
    )


@pytest.mark.parametrize("shared", ["ON", "OFF"])
def test_cmake_install(
    shared: str, tmp_path: Path, cmake_build: Callable[..., Path], works: Works, check: Check, tool: Tool
) -> None:
    """What is installed works where it is moved to, by find_package() and by pkg-config."""
    cmake, prefix, library = tool("cmake"), tmp_path / "moved here", tmp_path / "library"
    check(cmake, "-S", ROOT / "csrc", "-B", library, f"-DBUILD_SHARED_LIBS={shared}", "-DCMAKE_INSTALL_LIBDIR=lib/deep")
    check(cmake, "--build", library)
    check(cmake, "--install", library, "--prefix", tmp_path / "prefix")
    shutil.rmtree(library)
    (tmp_path / "prefix").rename(prefix)
    if shared == "ON":
        assert exported(check, tool, prefix / "lib/deep/libshmem_providers.so") == (
            (ROOT / "csrc/exports.txt").read_text().split()
        )
    works(cmake_build(FIND, f"-Dshmem_providers_DIR={prefix}/lib/deep/cmake/shmem_providers"))

    # pkg-config escapes the blank, which is for a shell
    flags = f"$(pkg-config {'' if shared == 'ON' else '--static'} --cflags --libs shmem_providers)"
    compile_ = f'eval "cc {" ".join(STRICT)} \\"$1\\" {flags} -o program"'
    environment = os.environ | {"PKG_CONFIG_PATH": f"{prefix}/lib/deep/pkgconfig"}
    tool("pkg-config")
    check("sh", "-c", compile_, "sh", PROGRAM, cwd=tmp_path, env=environment)
    found = {"LD_LIBRARY_PATH": f"{prefix}/lib/deep"}
    assert check(tmp_path / "program", env=os.environ | found) == "shared shared\n"


def test_a_static_program_with_musl(tmp_path: Path, check: Check, works: Works, tool: Tool) -> None:
    cmake = tool("cmake")
    compiler = tool("musl-gcc", "musl-tools")
    # musl-gcc leaves out the kernel's headers, which are among those of the other libc
    kernel = "-idirafter /usr/include -idirafter /usr/include/" + platform.machine() + "-linux-gnu"
    options = [f"-DCMAKE_C_COMPILER={compiler}", f"-DCMAKE_C_FLAGS={kernel}", "-DBUILD_SHARED_LIBS=OFF"]
    check(cmake, "-S", ROOT / "csrc", "-B", tmp_path, *options)
    check(cmake, "--build", tmp_path)
    words = [*STRICT, "-static", PROGRAM, f"-I{ROOT}/csrc/include", tmp_path / "libshmem_providers.a"]
    check(compiler, *words, "-o", tmp_path / "program")
    assert needed(check, tool, tmp_path / "program") == set()
    works(tmp_path / "program")
