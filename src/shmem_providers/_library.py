"""Where the C library, its header, and its pkg-config and CMake files are; the flags to compile and link with it."""

from __future__ import annotations

import os
import sys

_PACKAGE = os.path.dirname(__file__)

FLAGS = ("--cflags", "--libs", "--pkgconfigdir", "--cmakedir")


def _find(*parts: str) -> str:
    path = os.path.join(_PACKAGE, *parts)
    if not os.path.exists(path):
        raise FileNotFoundError(
            f"shmem_providers was installed without its C library, there is no {path}: install a wheel for a "
            "system other than iOS, or compile csrc/ of the sources into your program"
        )
    return path


def get_include() -> str:
    """Give the folder that holds ``shmem_providers.h``.

    FileNotFoundError: this installation has no C library, as on iOS.
    """
    return _find("include")


def get_library_dir() -> str:
    """Give the folder that holds the shared library and, but for Windows, the static one.

    FileNotFoundError: this installation has no C library, as on iOS.
    """
    return _find("lib")


def get_cmake_dir() -> str:
    """Give the folder for CMake's ``shmem_providers_DIR``, so that ``find_package(shmem_providers)`` works.

    FileNotFoundError: this installation has no C library, as on iOS.
    """
    return _find("lib", "cmake", "shmem_providers")


def _libs() -> list[str]:
    lib = get_library_dir()
    if sys.platform == "win32":
        return [os.path.join(lib, "shmem_providers.lib")]  # for every compiler
    return [f"-L{lib}", f"-Wl,-rpath,{lib}", "-lshmem_providers"]


def print_flags() -> None:
    """Print what the command line asks for, such as ``--cflags --libs``: flags in one line, folders in one each."""
    import argparse

    parser = argparse.ArgumentParser("python -m shmem_providers", description="Where the C library is.")
    parser.add_argument("--cflags", action="store_true", help="flags to compile with")
    parser.add_argument("--libs", action="store_true", help="flags to link with; the program finds the library later")
    parser.add_argument("--pkgconfigdir", action="store_true", help="the folder for PKG_CONFIG_PATH")
    parser.add_argument("--cmakedir", action="store_true", help="the folder for CMake's shmem_providers_DIR")
    wanted = parser.parse_args()
    try:
        flags = [f"-I{get_include()}"] if wanted.cflags else []
        if wanted.libs:
            flags += _libs()
        if flags:
            print(_quoted(flags))
        if wanted.pkgconfigdir:
            print(_find("lib", "pkgconfig"))
        if wanted.cmakedir:
            print(get_cmake_dir())
    except FileNotFoundError as missing:
        sys.exit(str(missing))


def _quoted(flags: list[str]) -> str:
    if sys.platform == "win32":
        import subprocess

        return subprocess.list2cmdline(flags)
    import shlex

    return shlex.join(flags)
