"""What a process holds that could leak, on every platform. No tests; their programs import it, too."""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":
    import ctypes
    from ctypes import wintypes

    _kernel32, _ntdll = ctypes.WinDLL("kernel32"), ctypes.WinDLL("ntdll")
    _THIS_PROCESS = wintypes.HANDLE(-1)
    _MEM_MAPPED = 0x40000
    _SNAPSHOT_OF_THREADS = 4
    _EXTENDED_HANDLE_INFORMATION, _TOO_SHORT = 64, 0xC0000004

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

    class _Handle(ctypes.Structure):
        _fields_ = [
            ("object", ctypes.c_size_t),
            ("pid", ctypes.c_size_t),
            ("handle", ctypes.c_size_t),
            ("access", wintypes.DWORD),
            ("others", wintypes.WORD * 2),
            ("attributes", wintypes.DWORD),
            ("reserved", wintypes.DWORD),
        ]

    class _Memory(ctypes.Structure):
        _fields_ = [("size", wintypes.DWORD), ("faults", wintypes.DWORD), ("counts", ctypes.c_size_t * 8)]

    def _listed_handles() -> int:
        """Count them in the list of all handles of the machine."""
        size, needed = 1 << 16, wintypes.ULONG()
        while True:
            listing = ctypes.create_string_buffer(size)
            status = _ntdll.NtQuerySystemInformation(_EXTENDED_HANDLE_INFORMATION, listing, size, ctypes.byref(needed))
            if status & 0xFFFFFFFF != _TOO_SHORT:
                break
            size *= 2
        assert status == 0
        count = ctypes.c_size_t.from_buffer(listing).value
        handles = (_Handle * count).from_buffer(listing, 2 * ctypes.sizeof(ctypes.c_size_t))
        return sum(each.pid == os.getpid() for each in handles)

    def _handles() -> int:
        count = wintypes.DWORD()
        assert _kernel32.GetProcessHandleCount(_THIS_PROCESS, ctypes.byref(count))
        return count.value or _listed_handles()  # Wine always says 0

    def held() -> set[str]:
        """Give this process's handles, which have numbers only, and its mappings of what is no file."""
        found, region, name = set(), _Region(), ctypes.create_unicode_buffer(260)
        at = 0
        while _kernel32.VirtualQuery(ctypes.c_void_p(at), ctypes.byref(region), ctypes.c_size_t(ctypes.sizeof(region))):
            at = region.start + region.size
            if region.type == _MEM_MAPPED and not _kernel32.K32GetMappedFileNameW(
                _THIS_PROCESS, ctypes.c_void_p(region.start), name, len(name)
            ):
                found.add(f"mapping at {region.start:#x} of {region.size} bytes")
        return found | {f"handle number {number}" for number in range(_handles())}

    def ownerless_names() -> set[str]:
        """Give none: a section's name ends with its last handle."""
        return set()

    def held_by_anybody() -> set[str]:
        """Give none: see above."""
        return set()

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
    from collections.abc import Iterator
    from pathlib import Path

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

    def ownerless_names() -> set[str]:
        """Give our names in /dev/shm that no process holds: the live ones may be any other process's."""
        names = {}
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

    def held_by_anybody() -> set[str]:
        """Give the names in /dev/shm and the System V segments of the machine."""
        return {*os.listdir("/dev/shm"), *Path("/proc/sysvipc/shm").read_text().splitlines()}

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
