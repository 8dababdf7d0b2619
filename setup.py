"""Build the extension module, and the C library that is shipped beside it. The rest is in pyproject.toml.

To build for another machine, set CC, LDSHARED, AR and _PYTHON_HOST_PLATFORM (and SETUPTOOLS_EXT_SUFFIX for Windows).
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HEADER = Path("csrc/include/shmem_providers.h")
VERSION = re.findall(r'#define SHMP_VERSION "(.+)"', HEADER.read_text())[0]
CORE = sorted(glob("csrc/core/*.c") + glob("csrc/backend/*.c") + glob("csrc/os/*.c") + glob("csrc/service/*.c"))

PLATFORM = sysconfig.get_platform()
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
WINDOWS = PLATFORM.startswith("win")
# glibc before 2.34 and NetBSD have shm_open in a library of its own; they and the BSDs have threads in one
LINUX = PLATFORM.startswith(("linux", "manylinux", "musllinux"))
SYSTEM_LIBRARIES = ["rt"] if LINUX or PLATFORM.startswith("netbsd") else []
SYSTEM_LIBRARIES += ["pthread"] if LINUX or PLATFORM.startswith(("freebsd", "dragonfly", "netbsd", "openbsd")) else []
SYSTEM_LIBRARIES += ["dl"] if PLATFORM.startswith("android") else []  # libandroid.so is looked for at run time

if not re.match(r"(linux|manylinux|musllinux|android|macosx|ios|win|freebsd|dragonfly|netbsd|openbsd)[-_\d]", PLATFORM):
    sys.exit(
        f"shmem_providers does not support {PLATFORM}: build it for Linux, Android, macOS, iOS, Windows or a BSD, "
        "or add this system, beginning at csrc/os/platform.h"
    )
if FREE_THREADED and sys.version_info < (3, 14):
    sys.exit(
        "shmem_providers does not support the free-threaded Python 3.13, since cffi does not: "
        "use the free-threaded 3.14 or later, or an ordinary Python 3.11 or later"
    )

# The limited API: none for a free-threaded CPython before 3.15, nor where setuptools links a versioned libpython.
if PLATFORM.startswith(("android", "ios")) or (FREE_THREADED and sys.version_info < (3, 15)):
    LIMITED_API = 0
else:
    LIMITED_API = 15 if FREE_THREADED else 11

# What CFLAGS says is left as it is: it may ask for debugging
CFLAGS = os.environ.get("CFLAGS", "")
DEBUG = "-g" in CFLAGS


def without_search_path(command: list[str]) -> list[str]:
    """Leave out where the builder has its libraries (-Wl,-rpath): some Pythons have all that they build look there."""
    kept: list[str] = []
    is_path = False
    for word in command:
        if not word.startswith("-Wl,"):
            kept.append(word)
            continue
        for option in word.split(",")[1:]:
            if not is_path and not re.match(r"(--?rpath|-R.*)(=|$)", option):
                kept.append(f"-Wl,{option}")
            is_path = not is_path and option in ("-rpath", "--rpath", "-R")
    return kept


class BuildAll(build_ext):
    """Builds shmem_providers/include and shmem_providers/lib, too."""

    def build_extensions(self) -> None:
        """Build all of it, beginning with a look at the compiler."""
        if self.compiler.compiler_type == "msvc":
            compile_args, link_args = ["/std:c11"], []
        else:
            command = self.compiler.compiler_so[0]
            if not shutil.which(command):
                sys.exit(
                    f"shmem_providers needs a C compiler, and {command} is not there: install gcc or clang (Debian: "
                    "apt install gcc; Fedora: dnf install gcc; macOS: xcode-select --install), or set CC to one"
                )
            compile_args = [
                "-std=c11",
                "-fvisibility=hidden",
                *([] if WINDOWS else ["-fno-plt"]),
                *([] if DEBUG else ["-g0"]),
            ]
            if "-O" not in CFLAGS:
                compile_args.append("-O2")  # the -O3 of most Pythons makes it a tenth larger, and not faster
            # a compiler's own runtime comes whole otherwise (zig's for 32-bit ARM: 200 KB)
            link_args = [] if DEBUG or PLATFORM.startswith(("macosx", "ios")) else ["-s", "-Wl,--gc-sections"]
            self.compiler.linker_so = without_search_path(self.compiler.linker_so)
            os.environ.pop("LD_RUN_PATH", None)  # what GNU's linker takes in its place
        (extension,) = self.extensions
        extension.extra_compile_args = compile_args
        if self._wants_libatomic(compile_args):
            extension.libraries = [*extension.libraries, "atomic"]
        extension.extra_link_args = [*link_args, *self._import_library("_binding")]
        super().build_extensions()

        package = Path(self.build_lib, "shmem_providers")
        for folder in ("include", "lib"):
            shutil.rmtree(package / folder, ignore_errors=True)
        if PLATFORM.startswith("ios"):
            return  # an app there has frameworks, and no loose libraries
        (package / "include").mkdir(parents=True)
        shutil.copy(HEADER, package / "include")
        lib = package / "lib"
        self._build_shared(lib, compile_args, link_args)
        if not WINDOWS:
            objects = self.compiler.object_filenames(CORE, output_dir=self.build_temp)  # the extension's
            self.compiler.create_static_lib(objects, "shmem_providers", output_dir=str(lib))
        self._write_metadata(lib)

    def _wants_libatomic(self, compile_args: list[str]) -> bool:
        """Whether the machine has no atomics of 64 bits, as an i486 or ARMv5: the extension, not the core, has one."""
        if WINDOWS:
            return False
        ask = [*self.compiler.compiler_so, *compile_args, "-E", "-x", "c", "-"]
        code = "#include <stdatomic.h>\nATOMIC_LLONG_LOCK_FREE\n"
        return subprocess.run(ask, input=code, check=True, capture_output=True, text=True).stdout.split()[-1] != "2"

    def _import_library(self, name: str) -> list[str]:
        """Say where a linker other than MSVC's shall leave its import library, which MSVC leaves there by itself."""
        if not WINDOWS or self.compiler.compiler_type == "msvc":
            return []
        return [f"-Wl,--out-implib={Path(self.build_temp, name)}.lib"]

    def _build_shared(self, lib: Path, compile_args: list[str], link_args: list[str]) -> None:
        temp = Path(self.build_temp, "shared")
        objects = self.compiler.compile(
            CORE,
            output_dir=str(temp),
            macros=[("SHMP_BUILD", None)],
            include_dirs=["csrc/include", "csrc"],
            # a seventh smaller than by -O2, and 50 ns slower in what takes microseconds
            extra_postargs=[*compile_args, "-Os"] if "-O2" in compile_args else compile_args,
        )
        link_args = list(link_args)
        if WINDOWS:
            name = "shmem_providers.dll"
            link_args += self._import_library("shmem_providers")
        elif PLATFORM.startswith("macosx"):
            name = "libshmem_providers.dylib"
            bundle = self.compiler.linker_so
            self.compiler.linker_so = ["-dynamiclib" if word == "-bundle" else word for word in bundle]
            link_args.append(f"-Wl,-install_name,@rpath/{name}")
        else:
            name = "libshmem_providers.so"
            exports = temp / "exports.map"  # keeps in what compilers add, such as their runtime's functions
            names = "; ".join(Path("csrc/exports.txt").read_text().split())
            exports.write_text(f"{{ global: {names}; local: *; }};\n")
            link_args += [f"-Wl,-soname,{name}", f"-Wl,--version-script={exports}"]
        self.compiler.link_shared_object(
            objects,
            str(lib / name),
            libraries=SYSTEM_LIBRARIES,
            export_symbols=[],  # the header names them; without this MSVC leaves the import library beside the DLL
            extra_postargs=link_args,
        )
        if WINDOWS:
            beside = temp / Path(CORE[0]).parent if self.compiler.compiler_type == "msvc" else Path(self.build_temp)
            shutil.copy(beside / "shmem_providers.lib", lib)

    def _write_metadata(self, lib: Path) -> None:
        values = {
            "VERSION": VERSION,
            "INCLUDE": "../include",
            "LIBRARIES": "".join(f" -l{name}" for name in SYSTEM_LIBRARIES),
            "RPATH": "" if WINDOWS else " -Wl,-rpath,${libdir}",
        }
        for template, folder in (
            ("csrc/shmem_providers.pc.in", lib / "pkgconfig"),
            ("csrc/cmake/shmem_providers-config.cmake.in", lib / "cmake/shmem_providers"),
            ("csrc/cmake/shmem_providers-config-version.cmake.in", lib / "cmake/shmem_providers"),
        ):
            folder.mkdir(parents=True, exist_ok=True)
            text = re.sub(r"@(\w+)@", lambda match: values[match[1]], Path(template).read_text())
            (folder / Path(template).name.removesuffix(".in")).write_text(text)

    def copy_extensions_to_source(self) -> None:
        """Copy the folders as well: this is for ``pip install -e``."""
        super().copy_extensions_to_source()
        for folder in ("include", "lib"):
            built, wanted = Path(self.build_lib, "shmem_providers", folder), Path("src/shmem_providers", folder)
            shutil.rmtree(wanted, ignore_errors=True)
            if built.exists():
                shutil.copytree(built, wanted)


# The Python that builds a Windows module on another system names no library, and its suffix of the stable ABI is wrong.
cross_windows = WINDOWS and os.name != "nt"

setup(
    version=VERSION,
    cmdclass={"build_ext": BuildAll},
    ext_modules=[
        Extension(
            "shmem_providers._binding",
            # python_module.c includes _binding.c, the generated one
            CORE + sorted(set(glob("csrc/python/*.c")) - {"csrc/python/_binding.c"}),
            include_dirs=["csrc/include", "csrc"],
            depends=[*glob("csrc/*/*.h"), "csrc/python/_binding.c"],
            libraries=["python3"] if cross_windows else SYSTEM_LIBRARIES,
            # SHMP_STATIC hides the core: a copy of the library that is loaded elsewhere must not replace it.
            # The generated part has its own name for "no limited API".
            define_macros=[
                ("SHMP_STATIC", None),
                ("Py_LIMITED_API", f"0x03{LIMITED_API:02x}0000") if LIMITED_API else ("_CFFI_NO_LIMITED_API", "1"),
            ],
            py_limited_api=bool(LIMITED_API) and not cross_windows,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": f"cp3{LIMITED_API}"}} if LIMITED_API else {},
)
