"""What a process holds that could leak, on every platform. No tests; their programs import it, too."""

from __future__ import annotations

import os
import sys

IS_WINE = False

if sys.platform == "win32":
    import ctypes
    import mmap
    import struct
    from ctypes import wintypes

    _kernel32, _ntdll = ctypes.WinDLL("kernel32"), ctypes.WinDLL("ntdll")
    IS_WINE = hasattr(_ntdll, "wine_get_version")
    _THIS_PROCESS = wintypes.HANDLE(-1)
    _MEM_MAPPED = 0x40000
    _SNAPSHOT_OF_THREADS = 4
    _EXTENDED_HANDLE_INFORMATION, _TOO_SHORT = 64, 0xC0000004
    _COUNT, _HANDLE = struct.Struct("NN"), struct.Struct("NNNIHHII")

    class _Region(ctypes.Structure):
        _fields_ = [
            ("start", ctypes.c_size_t),
            ("allocation", ctypes.c_size_t),
            ("first_protection", wintypes.DWORD),
            ("partition", wintypes.WORD),
            ("size", ctypes.c_size_t),
            ("state", wintypes.DWORD),
            ("protection", wintypes.DWORD),
            ("type", wintypes.DWORD),
        ]

    class _Memory(ctypes.Structure):
        _fields_ = [("size", wintypes.DWORD), ("faults", wintypes.DWORD), ("counts", ctypes.c_size_t * 8)]

    def _handle_types() -> list[int]:
        """Give the number of the type of each handle that this process has, out of the list of the machine's."""
        size, needed = 1 << 16, wintypes.ULONG()
        while True:
            listing = ctypes.create_string_buffer(size)
            status = _ntdll.NtQuerySystemInformation(_EXTENDED_HANDLE_INFORMATION, listing, size, ctypes.byref(needed))
            if status & 0xFFFFFFFF != _TOO_SHORT:
                break
            size *= 2
        assert status == 0
        count, _ = _COUNT.unpack_from(listing)
        handles = _HANDLE.iter_unpack(memoryview(listing)[_COUNT.size : _COUNT.size + count * _HANDLE.size])
        return [kind for _, pid, _, _, _, kind, _, _ in handles if pid == os.getpid()]

    def _find_section_type() -> int:
        before = _handle_types()
        with mmap.mmap(-1, 1):
            made = _handle_types()
        for kind in before:
            made.remove(kind)
        (kind,) = made
        return kind

    _SECTION = _find_section_type()

    def held() -> set[str]:
        """Give this process's mappings of what is no file, and its sections, which can only be counted.

        No other handles: each lock of Python before 3.13 is one.
        """
        found, region, name = set(), _Region(), ctypes.create_unicode_buffer(260)
        at = 0
        while _kernel32.VirtualQuery(ctypes.c_void_p(at), ctypes.byref(region), ctypes.c_size_t(ctypes.sizeof(region))):
            at = region.start + region.size
            if region.type == _MEM_MAPPED and not _kernel32.K32GetMappedFileNameW(
                _THIS_PROCESS, ctypes.c_void_p(region.start), name, len(name)
            ):
                found.add(f"mapping at {region.start:#x} of {region.size} bytes")
        return found | {f"section number {number}" for number in range(_handle_types().count(_SECTION))}

    def make_private() -> None:
        """Do nothing: what a process holds here is its own."""

    def ownerless_names() -> set[str]:
        """Give none: a section's name ends with its last handle."""
        return set()

    def held_in_all() -> set[str]:
        """Give more, for who has this process for himself: all its handles."""
        count = wintypes.DWORD()
        assert _kernel32.GetProcessHandleCount(_THIS_PROCESS, ctypes.byref(count))
        handles = count.value or len(_handle_types())  # Wine always says 0
        return held() | {f"handle number {number}" for number in range(handles)}

    def threads() -> int:
        """Give the number of threads, those that Python does not know included."""
        snapshot = _kernel32.CreateToolhelp32Snapshot
        snapshot.restype = wintypes.HANDLE
        listing = wintypes.HANDLE(snapshot(_SNAPSHOT_OF_THREADS, 0))
        entry = (wintypes.DWORD * 7)(28)
        count, found = 0, _kernel32.Thread32First(listing, entry)
        while found:
            count += entry[3] == os.getpid()
            found = _kernel32.Thread32Next(listing, entry)
        _kernel32.CloseHandle(listing)
        return count

    def memory() -> int:
        """Give the bytes of private memory."""
        counters = _Memory(ctypes.sizeof(_Memory))
        assert _kernel32.K32GetProcessMemoryInfo(_THIS_PROCESS, ctypes.byref(counters), counters.size)
        private: int = counters.counts[6]
        return private

elif sys.platform == "linux":
    import contextlib
    import ctypes
    from collections.abc import Iterator
    from pathlib import Path

    _libc = ctypes.CDLL(None, use_errno=True)
    _CLONE_NEWNS, _CLONE_NEWIPC, _MS_REC, _MS_PRIVATE = 0x20000, 0x8000000, 0x4000, 0x40000

    def _descriptors() -> Iterator[str]:
        """Give the open descriptors, but for the sockets of multiprocessing's threads and this look itself."""
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(FileNotFoundError):
                target = os.readlink(f"/proc/self/fd/{number}")
                if not target.startswith("socket:"):
                    yield f"descriptor {number} of {target}"

    def _shared_mappings() -> list[str]:
        maps = Path("/proc/self/maps").read_text().splitlines()
        return sorted(line for line in maps if line.split()[1].endswith("s"))

    def _sysv_segments() -> list[str]:
        """Give the ids of the System V segments that this process has created and that exist."""
        lines = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
        return sorted(fields[1] for fields in map(str.split, lines) if int(fields[4]) == os.getpid())

    def held() -> set[str]:
        """Give this process's descriptors, shared mappings and System V segments."""
        return {*_descriptors(), *_shared_mappings(), *_sysv_segments()}

    _is_private = False

    def _call(result: int) -> None:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def make_private() -> None:
        """Give this process and its children a /dev/shm and System V segments of their own, where it may: as root.

        Other programs use the machine's, and what they make and leave is none of the tests' business.
        """
        global _is_private
        with contextlib.suppress(OSError):
            _call(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWIPC))
            _call(_libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None))
            _call(_libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"mode=1777"))
            _is_private = True

    def ownerless_names() -> set[str]:
        """Give our names in /dev/shm that no process holds; none where other programs may have left them."""
        names: dict[str, int] = {}
        if not _is_private:
            return set()
        for path in Path("/dev/shm").glob("shmp_*"):
            with contextlib.suppress(FileNotFoundError):
                names[path.name] = path.stat().st_ino
        locks = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
        held = {
            int(fields[5].rpartition(":")[2])
            for fields in locks
            if fields[1] == "FLOCK" and int(fields[4]) != os.getpid()
        }
        return {name for name, inode in names.items() if inode not in held}

    def held_in_all() -> set[str]:
        """Give more, for who has this machine for himself: all names in /dev/shm and System V segments."""
        return held() | {*os.listdir("/dev/shm"), *Path("/proc/sysvipc/shm").read_text().splitlines()}

    def threads() -> int:
        """Give the number of threads, those that Python does not know included."""
        return len(os.listdir("/proc/self/task"))

    def memory() -> int:
        """Give the bytes of this process's memory that are in RAM."""
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

else:
    import resource
    import threading

    def held() -> set[str]:
        """Give this process's descriptors: macOS and the BSDs do not tell of mappings and names."""
        return {f"descriptor {number}" for number in os.listdir("/dev/fd")}

    def make_private() -> None:
        """Do nothing: names and segments cannot be listed."""

    def ownerless_names() -> set[str]:
        """Give none: they cannot be listed."""
        return set()

    def held_by_anybody() -> set[str]:
        """Give none: see above."""
        return set()

    def threads() -> int:
        """Give the number of threads that Python knows."""
        return threading.active_count()

    def memory() -> int:
        """Give the most bytes that this process ever had in RAM."""
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
