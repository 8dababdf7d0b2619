"""The extension module. Everything else about the package is in pyproject.toml."""

import os
import re
import sysconfig
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

HEADER = Path("csrc/include/shmem_providers.h")

# The generated part has its own name for "no limited API"; a free-threaded CPython before 3.15 has none.
free_threaded = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
python_api = ("_CFFI_NO_LIMITED_API", "1") if free_threaded else ("Py_LIMITED_API", "0x030b0000")

setup(
    version=re.findall(r'#define SHMP_VERSION "(.+)"', HEADER.read_text())[0],
    ext_modules=[
        Extension(
            "shmem_providers._binding",
            # python_module.c includes _binding.c, the generated one
            sorted(set(glob("csrc/*/*.c")) - {"csrc/python/_binding.c"}),
            include_dirs=["csrc/include", "csrc"],
            depends=[*glob("csrc/*/*.h"), "csrc/python/_binding.c"],
            # SHMP_STATIC hides the core: a copy of the library that is loaded elsewhere must not replace it
            define_macros=[("SHMP_STATIC", None), python_api],
            extra_compile_args=["-std=c11", "-fvisibility=hidden"] if os.name == "posix" else ["/std:c11"],
            py_limited_api=not free_threaded,
        )
    ],
    options={} if free_threaded else {"bdist_wheel": {"py_limited_api": "cp311"}},
)
