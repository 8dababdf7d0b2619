"""Building from the sources: what cannot work stops at once and says what to do; an sdist has all that is needed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shmem_providers import _library

ROOT = Path(__file__).parent.parent.parent
Run = Callable[..., subprocess.CompletedProcess[str]]
Check = Callable[..., str]

# A stand-in for the free-threaded Python 3.13, for which there is no cffi: it is this one, which says that it is that.
FAKE_313T = """
import runpy, setuptools, sys, sysconfig
real = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: 1 if name == "Py_GIL_DISABLED" else real(name)
sys.version_info = (3, 13, 5, "final", 0)
runpy.run_path("setup.py", run_name="__main__")
"""


def setup(run: Run, sources: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, *arguments, cwd=sources, env=os.environ | environment)


def refuses(result: subprocess.CompletedProcess[str], sources: Path, *words: str) -> None:
    """Its last line is the sentence, without a traceback, and nothing was compiled."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr.splitlines()[-1]
    assert not list(sources.glob("build/temp*/**/*.o"))


# Another stand-in: what setup.py makes of a platform and Python that are not here.
ASK = """
import runpy, setuptools, sys, sysconfig
real = sysconfig.get_config_var
sysconfig.get_config_var = lambda name: FREE_THREADED if name == "Py_GIL_DISABLED" else real(name)
sysconfig.get_platform = lambda: SYSTEM
sys.version_info = VERSION
def setup(*, ext_modules, options, **other):
    (module,) = ext_modules
    api = [name + "=" + value for name, value in module.define_macros if value]
    print(*api, module.py_limited_api, options.get("bdist_wheel", {}).get("py_limited_api"), *module.libraries)
setuptools.setup = setup
runpy.run_path("setup.py", run_name="__main__")
"""

BUILD = ("setup.py", "-q", "bdist_wheel")


@pytest.fixture
def fresh(sources: Path, tmp_path: Path) -> Path:
    """Give sources of which nothing was built."""
    return Path(shutil.copytree(sources, tmp_path / "fresh", ignore=shutil.ignore_patterns("build", "dist")))


@pytest.mark.needs("unix")
def test_without_a_compiler(fresh: Path, run: Run) -> None:
    result = setup(run, fresh, *BUILD, CC="/nonexistent/cc -pthread")
    refuses(result, fresh, "/nonexistent/cc is not there", "install gcc or clang", "set CC")


@pytest.mark.needs("unix")
@pytest.mark.parametrize("system", ["emscripten-4.0.9-wasm32", "wasi-0.0.0-wasm32", "haiku-1-x86_64"])
def test_on_an_unsupported_system(system: str, fresh: Path, run: Run) -> None:
    result = setup(run, fresh, *BUILD, _PYTHON_HOST_PLATFORM=system)
    refuses(result, fresh, f"does not support {system}", "csrc/os/platform.h")


@pytest.mark.needs("unix")
def test_with_a_free_threaded_313(fresh: Path, run: Run) -> None:
    refuses(
        setup(run, fresh, "-c", FAKE_313T, *BUILD[1:]), fresh, "free-threaded Python 3.13", "use the free-threaded 3.14"
    )


@pytest.mark.needs("unix")
@pytest.mark.parametrize(
    ("system", "version", "free_threaded", "expected"),
    [
        ("linux-x86_64", (3, 11), 0, "Py_LIMITED_API=0x030b0000 True cp311 rt pthread"),
        ("manylinux2014_x86_64", (3, 15), 0, "Py_LIMITED_API=0x030b0000 True cp311 rt pthread"),
        ("linux-x86_64", (3, 14), 1, "_CFFI_NO_LIMITED_API=1 False None rt pthread"),
        ("musllinux_1_2_x86_64", (3, 15), 1, "Py_LIMITED_API=0x030f0000 True cp315 rt pthread"),
        ("macosx-11.0-arm64", (3, 15), 1, "Py_LIMITED_API=0x030f0000 True cp315"),
        ("freebsd-14.1-RELEASE-amd64", (3, 13), 0, "Py_LIMITED_API=0x030b0000 True cp311 pthread"),
        ("netbsd-10.0-amd64", (3, 13), 0, "Py_LIMITED_API=0x030b0000 True cp311 rt pthread"),
        ("android-24-arm64_v8a", (3, 13), 0, "_CFFI_NO_LIMITED_API=1 False None dl"),
        ("ios-13.0-arm64-iphoneos", (3, 14), 0, "_CFFI_NO_LIMITED_API=1 False None"),
        ("win-amd64", (3, 11), 0, "Py_LIMITED_API=0x030b0000 False cp311 python3"),
        ("win32", (3, 11), 0, "Py_LIMITED_API=0x030b0000 False cp311 python3"),
    ],
)
def test_which_stable_abi(
    system: str, version: tuple[int, int], free_threaded: int, expected: str, fresh: Path, check: Check
) -> None:
    values = {"SYSTEM": system, "VERSION": (*version, 0, "final", 0), "FREE_THREADED": free_threaded}
    code = "".join(f"{name} = {value!r}\n" for name, value in values.items()) + ASK
    assert check(sys.executable, "-c", code, cwd=fresh).strip() == expected


@pytest.mark.needs("unix")
def test_the_core_refuses_an_unsupported_system(run: Run, tool: Callable[..., str]) -> None:
    undefined = [f"-U{name}" for name in ("__linux__", "__APPLE__", "__FreeBSD__", "__NetBSD__", "__OpenBSD__")]
    result = run(tool("cc", "gcc"), *undefined, "-fsyntax-only", ROOT / "csrc/os/platform.h")
    assert result.returncode == 1
    assert "#error" in result.stderr
    assert "operating system" in result.stderr


@pytest.mark.needs("unix")
def test_cmake_refuses_an_unsupported_system(tmp_path: Path, run: Run, tool: Callable[..., str]) -> None:
    options = ["-DCMAKE_SYSTEM_NAME=Haiku", "-DCMAKE_C_COMPILER_WORKS=1"]
    result = run(tool("cmake"), "-S", ROOT / "csrc", "-B", tmp_path, *options)
    assert result.returncode == 1
    assert "shmem_providers does not support Haiku" in result.stderr


# A compiler that notes what it is told, and says that it is for a machine without atomics of 64 bits.
OLD_MACHINE = """#!/bin/sh
echo "$*" >> "$0.log"
case " $* " in *" -E "*) echo 1 ;; *) exec cc "$@" ;; esac
"""


@pytest.mark.needs("unix")
def test_on_a_machine_without_atomics_of_64_bits(fresh: Path, tmp_path: Path, check: Check) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(OLD_MACHINE)
    compiler.chmod(0o755)
    environment = os.environ | {"CC": str(compiler), "LDSHARED": f"{compiler} -shared"}
    check(sys.executable, *BUILD, cwd=fresh, env=environment)
    links = [line for line in Path(f"{compiler}.log").read_text().splitlines() if line.startswith("-shared")]
    assert ["_binding" in line.partition(" -o ")[2] for line in links if "-latomic" in line] == [True]
    assert len(links) == 2  # the C library does without


@pytest.mark.needs("unix")
@pytest.mark.parametrize(
    "flags", ["-Wl,-rpath,{}", "-Wl,-rpath={} -Wl,-z,relro", "-Wl,--as-needed,-rpath -Wl,{}", "-Wl,-R{}"]
)
def test_no_search_path_of_the_builder(flags: str, fresh: Path, check: Check, tool: Callable[..., str]) -> None:
    """Whoever can write to that folder would choose what all users of the wheel load."""
    environment = os.environ | {"LDFLAGS": flags.format("/builder/lib"), "LD_RUN_PATH": "/builder/run"}
    check(sys.executable, *BUILD, cwd=fresh, env=environment)
    built = list(fresh.glob("build/lib*/**/*.so"))
    assert len(built) == 2
    for path in built:
        assert "/builder" not in check(tool("readelf", "binutils"), "-d", path)


def contents(folder: Path) -> dict[str, int]:
    """Give the files of the wheel in a folder, and their checksums."""
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {entry.filename: entry.CRC for entry in archive.infolist()}


@pytest.mark.needs("unix")
def test_the_sdist_gives_the_same_wheel(fresh: Path, sdist: Path, tmp_path: Path, check: Check) -> None:
    check("tar", "xf", sdist, "-C", tmp_path)
    (unpacked,) = tmp_path.glob("shmem_providers-*")
    for folder in (fresh, unpacked):
        check(sys.executable, *BUILD, cwd=folder)
    assert contents(unpacked) == contents(fresh)
    assert "shmem_providers/lib/cmake/shmem_providers/shmem_providers-config.cmake" in contents(fresh)
    for name in ("csrc", "src", "tests", "tools", "examples", "docs", "benchmarks"):
        for path in (fresh / name).rglob("*.*"):
            assert (unpacked / path.relative_to(fresh)).exists() or "egg-info" in str(path), path


def test_without_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on iOS."""
    monkeypatch.setattr(_library, "_PACKAGE", str(tmp_path))
    for get in (_library.get_include, _library.get_library_dir, _library.get_cmake_dir):
        with pytest.raises(FileNotFoundError, match=r"without its C library.*compile csrc/"):
            get()
    monkeypatch.setattr(sys, "argv", ["shmem_providers", "--cflags"])
    with pytest.raises(SystemExit, match="without its C library"):
        _library.print_flags()


def test_the_flags_need_no_extra(check: Check) -> None:
    code = (
        "import sys; sys.modules.update(typer=None, rich=None, numpy=None)\n"
        "from shmem_providers.__main__ import main; sys.argv[1:] = ['--cmakedir', '--libs', '--pkgconfigdir']; main()"
    )
    libs, pkgconfig, cmake = check(sys.executable, "-c", code).splitlines()
    assert cmake == _library.get_cmake_dir()
    assert Path(pkgconfig, "shmem_providers.pc").exists()
    assert libs.endswith((" -lshmem_providers", r"\shmem_providers.lib"))
