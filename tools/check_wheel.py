"""Judges wheels that tools/wheel.sh has built: ``tools/check_wheel.py WHEEL...``.

Needs abi3audit and auditwheel beside the Python that runs it (``pip install '.[wheels]'``), and readelf.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pefile

ROOT = Path(__file__).parent.parent
PACKAGE = "shmem_providers"
MAX_WHEEL, MAX_LIBRARY = 320_000, 160_000  # bytes

# The C library: the shared one, and what a linker takes in its place.
LIBRARIES = {
    "linux": (f"{PACKAGE}/lib/lib{PACKAGE}.so", f"{PACKAGE}/lib/lib{PACKAGE}.a"),
    "win": (f"{PACKAGE}/lib/{PACKAGE}.dll", f"{PACKAGE}/lib/{PACKAGE}.lib"),
}
SHIPPED = {
    f"{PACKAGE}/include/{PACKAGE}.h",
    f"{PACKAGE}/lib/pkgconfig/{PACKAGE}.pc",
    f"{PACKAGE}/lib/cmake/{PACKAGE}/{PACKAGE}-config.cmake",
    f"{PACKAGE}/lib/cmake/{PACKAGE}/{PACKAGE}-config-version.cmake",
}
METADATA = {"licenses/LICENSE", "METADATA", "WHEEL", "entry_points.txt", "top_level.txt", "RECORD"}

MACHINES = {  # as readelf calls them
    "x86_64": "Advanced Micro Devices X86-64",
    "aarch64": "AArch64",
    "ppc64le": "PowerPC64",
    "s390x": "IBM S/390",
    "i686": "Intel 80386",
    "armv7l": "ARM",
    "riscv64": "RISC-V",
}
SYSTEM_LIBRARIES = {
    "manylinux": r"(libc\.so\.6|librt\.so\.1|libpthread\.so\.0|ld-?linux[-\w]*\.so\.\d|ld64\.so\.[12])",
    "musllinux": r"libc\.so",
}
WINDOWS_MACHINES = {"amd64": 0x8664, "arm64": 0xAA64, "32": 0x14C}  # as PE files number them
WINDOWS_LIBRARIES = r"(ADVAPI32|KERNEL32|python3|api-ms-win-crt-[a-z0-9-]+)\.dll"
# musl has no versions of symbols: these are what it got after the 1.2.0 that musllinux_1_2 promises.
YOUNGER_THAN_MUSL_1_2_0 = {
    *("_Fork", "gettid", "posix_getdents", "preadv2", "pthread_getname_np", "pwritev2", "qsort_r", "reallocarray"),
    *("renameat2", "statx"),
}


def tool(name: str, *args: str | Path) -> tuple[str, str]:
    """Give what a tool printed, or else the first line of what it complained of."""
    beside = Path(sys.executable).with_name(name)
    command = [beside if beside.exists() else name, *args]
    result = subprocess.run(command, capture_output=True, text=True, errors="replace")
    complaint = (result.stderr.strip() or result.stdout.strip() or "it failed") if result.returncode else ""
    return result.stdout, complaint.splitlines()[-1] if complaint else ""


def check_contents(names: set[str], binaries: set[str]) -> Iterator[str]:
    """Check that it has each file that it should have, and no other."""
    sources = (ROOT / "src" / PACKAGE).glob("*py*")
    expected = {f"{PACKAGE}/{path.name}" for path in sources if path.is_file()} | SHIPPED | binaries
    got = {name for name in names if ".dist-info/" not in name}
    metadata = {name.partition(".dist-info/")[2] for name in names - got}
    for what, missing in ("lacks", expected - got), ("has no business with", got - expected):
        if missing:
            yield f"it {what} {', '.join(sorted(missing))}"
    if metadata != METADATA:
        yield f"its .dist-info differs from what is expected in {', '.join(sorted(metadata ^ METADATA))}"


def check_exports(path: Path, exported: set[str], allowed: set[str]) -> Iterator[str]:
    """Check that it exports what it should, and no more."""
    for what, wrong in ("exports", exported - allowed), ("does not export", allowed - exported):
        if wrong:
            yield f"{path.name} {what} {', '.join(sorted(wrong))}"


def check_dll(path: Path, machine: str, allowed: set[str]) -> Iterator[str]:
    """Check who can load it, what it needs, and what it exports."""
    image = pefile.PE(str(path))
    if image.FILE_HEADER.Machine != WINDOWS_MACHINES[machine]:
        yield f"{path.name} is for the machine {image.FILE_HEADER.Machine:#x}, and its tag says {machine}"
    for needed in (entry.dll.decode() for entry in image.DIRECTORY_ENTRY_IMPORT):
        if not re.fullmatch(WINDOWS_LIBRARIES, needed, re.IGNORECASE):
            yield f"{path.name} needs {needed}: it may need what Windows and Python have only"
    exported = {symbol.name.decode() for symbol in image.DIRECTORY_ENTRY_EXPORT.symbols}  # type: ignore[attr-defined]
    yield from check_exports(path, exported, allowed)


def check_object(path: Path, libc: str, machine: str, allowed: set[str]) -> Iterator[str]:
    """Check who can load it, what it needs, and what it exports."""
    text, complaint = tool("readelf", "-W", "-h", "-d", "--dyn-syms", path)
    text = re.sub(r"\[<localentry>: \d+\]", "", text)  # of ppc64le
    if complaint:
        yield f"readelf: {complaint}"
        return
    found = re.findall(r"Machine: +(.+)", text)
    if found != [MACHINES[machine]]:
        yield f"{path.name} is for {found}, and its tag says {machine}"
    for path_of_builder in re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.+)\]", text):
        yield f"{path.name} looks for libraries in {path_of_builder}"
    for needed in re.findall(r"\(NEEDED\).*\[(.+)\]", text):
        if not re.fullmatch(SYSTEM_LIBRARIES[libc], needed):
            yield f"{path.name} needs {needed}: a wheel for {libc} may need its libc only"
    symbols = [line.split() for line in text.splitlines() if re.match(r" +\d+: ", line)]
    named = [fields for fields in symbols if len(fields) >= 8]
    exported = {fields[7].partition("@")[0] for fields in named if fields[6] != "UND"}
    yield from check_exports(path, exported, allowed)
    unversioned = {
        fields[7]
        for fields in named
        if fields[6] == "UND" and fields[4] != "WEAK" and not re.search("^_?Py|@", fields[7])
    }
    if libc == "manylinux" and unversioned:
        yield f"{path.name} needs {', '.join(sorted(unversioned))}, which the glibc it was linked with has not"
    young = YOUNGER_THAN_MUSL_1_2_0 & {fields[7] for fields in named}
    if "(RELR)" in text:
        young.add("DT_RELR")
    if libc == "musllinux" and young:
        yield f"{path.name} needs {', '.join(sorted(young))}, which musl 1.2.0 has not"


def check_tag(wheel: Path, platform: str) -> Iterator[str]:
    """Check that no symbol is younger than the glibc of the tag."""
    text, complaint = tool("auditwheel", "show", "--json", wheel)
    if complaint:
        yield f"auditwheel: {complaint}"
        return
    tag = json.loads(text)["overall_tag"]
    got, wanted = (re.fullmatch(r"manylinux_(\d+)_(\d+)_(.+)", name) for name in (tag, platform))
    if (
        not got
        or not wanted
        or got[3] != wanted[3]
        or tuple(map(int, got.groups()[:2])) > tuple(map(int, wanted.groups()[:2]))
    ):
        yield f"its tag is {platform}, and auditwheel finds it good for {tag} only"


def check_abi(wheel: Path) -> Iterator[str]:
    """Check that it uses nothing of Python but the stable ABI of the version that its tag names."""
    text, complaint = tool("abi3audit", "--report", wheel)
    if not text:
        yield f"abi3audit: {complaint}"
        return
    (report,) = json.loads(text)["specs"].values()
    for library in report["wheel"]:
        result = library["result"]
        wrong = {*result["non_abi3_symbols"], *result["future_abi3_objects"]}
        if wrong or not result["is_abi3_baseline_compatible"]:
            yield f"{library['name']} uses {', '.join(sorted(wrong))}: not in the stable ABI of its tag"


def check_wheel(wheel: Path) -> Iterator[str]:
    """Give all that is wrong with a wheel."""
    abi, platform = wheel.stem.split("-")[3:5]
    libc, *_, machine = re.split(r"_(?:\d+_)*|(?=32$)", platform, maxsplit=1)
    if wheel.stat().st_size > MAX_WHEEL:
        yield f"it has {wheel.stat().st_size} bytes, and {MAX_WHEEL} are allowed"
    suffix = ".pyd" if libc == "win" else ".abi3.so"
    if abi != "abi3":
        suffix = f".{abi.replace('cp', 'cpython-')}-{machine}-linux-gnu.so"
    extension = f"{PACKAGE}/_binding{suffix}"
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        names = set(archive.namelist())
        library, for_linkers = LIBRARIES["win" if libc == "win" else "linux"]
        yield from check_contents(names, {extension, library, for_linkers})
        exports = set((ROOT / "csrc/exports.txt").read_text().split())
        for name, allowed in (extension, {"PyInit__binding"}), (library, exports):
            if name in names and libc == "win":
                yield from check_dll(Path(folder, name), machine, allowed)
            elif name in names:
                yield from check_object(Path(folder, name), libc, machine, allowed)
        if library in names and archive.getinfo(library).file_size > MAX_LIBRARY:
            yield f"its library has {archive.getinfo(library).file_size} bytes, and {MAX_LIBRARY} are allowed"
    if libc == "manylinux":  # auditwheel judges wheels for musl on musl only
        yield from check_tag(wheel, platform)
    if abi == "abi3":
        yield from check_abi(wheel)


def main() -> None:
    """Print a verdict on each; fail if one is bad."""
    wheels = [Path(name) for name in sys.argv[1:]]
    if not wheels:
        sys.exit(f"usage: {sys.argv[0]} WHEEL...")
    wrong = 0
    for wheel in wheels:
        problems = list(check_wheel(wheel))
        wrong += bool(problems)
        print(f"{wheel.name}: {wheel.stat().st_size:,} bytes", *(problems or ["good"]), sep="\n    ", flush=True)
    print(f"{len(wheels) - wrong} passed, {wrong} failed")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
