"""Write csrc/python/_binding.c: cffi's view of the marked region of the public header.

Run it after every change there: ``python tools/generate_binding.py``. A test compares.
"""

from __future__ import annotations

import re
from pathlib import Path

import cffi

ROOT = Path(__file__).parent.parent
HEADER = ROOT / "csrc/include/shmem_providers.h"
GENERATED = ROOT / "csrc/python/_binding.c"


def generate(path: Path) -> None:
    """Write the generated C source to `path`."""
    region = re.search(r"/\* cffi: begin.*?\*/\n(.*)/\* cffi: end \*/", HEADER.read_text(), re.DOTALL)
    assert region, f"{HEADER} has no marked region"
    ffi = cffi.FFI()
    ffi.cdef(region[1].replace("SHMP_API ", ""))
    ffi.set_source("shmem_providers._binding", '#include "shmem_providers.h"')
    ffi.emit_c_code(str(path))
    # a free-threaded Python starts the file with this; it is setup.py's to define
    path.write_text(path.read_text().removeprefix("#define _CFFI_NO_LIMITED_API\n"))


if __name__ == "__main__":
    generate(GENERATED)
