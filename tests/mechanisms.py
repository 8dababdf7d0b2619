"""What each provider can do, and which there are to test. No tests."""

from __future__ import annotations

import os
import sys

from shmem_providers import ShMemProvider, available_providers
from shmem_providers._providers import probe_providers

# What each mechanism can do; what it cannot, the suite checks to be refused. A new one needs a row here. driver: what a
# segment's descriptor is, with the driver's inode, owner and mode.
CAPABILITIES = {
    "memfd": {
        "any_user",
        "shares",
        "fileno",
        "persist",
        "reserve",
        "sparse",
        "exact_size",
        "fd_ids",
        "id_of_any_handle",
    },
    "posix": {
        "any_user",
        "shares",
        "fileno",
        "persist",
        "reserve",
        "sparse",
        "exact_size",
        "fd_ids",
        "named",
        "mode",
        "linger",
    },
    "sysv": {"any_user", "shares", "reserve", "sparse", "exact_size", "id_of_any_handle", "mode", "linger"},
    "win32": {"shares", "persist", "reserve", "any_name", "id_of_any_handle"},
    "ashmem": {
        "any_user",
        "shares",
        "fileno",
        "persist",
        "sparse",
        "exact_size",
        "fd_ids",
        "id_of_any_handle",
        "driver",
    },
    "served": {"shares", "fileno", "persist", "sparse", "exact_size", "id_of_any_handle"},  # lingers by its service
    "nop": set[str](),
}
if sys.platform not in ("linux", "win32"):
    for _name in ("posix", "sysv"):
        CAPABILITIES[_name] -= {"reserve", "id_of_any_handle"}
if sys.platform == "darwin":
    CAPABILITIES["posix"] -= {"exact_size"}
    CAPABILITIES["served"] -= {"exact_size"}

# That are asked by themselves
AVAILABLE = [name for name in available_providers() if name != "served"]
SHARING = [name for name in AVAILABLE if "shares" in CAPABILITIES[name]]

# That wrap others. The last is what "std" is on macOS; of Android's, rc(served(ashmem)), see tests/ashmem.sh.
# SHMP_PLAIN leaves them out where time is short: on emulated CPUs, and other Pythons.
WRAPPING = ["rc(memfd)", "served(posix)", "rc(served(memfd))", "rc(served(posix))"]
if os.environ.get("SHMP_PLAIN") or "served" not in dict(probe_providers()) or "memfd" not in AVAILABLE:
    WRAPPING = []


def mechanism(provider: ShMemProvider | str) -> str:
    """Give what the segments of a provider are of: `ShMem.provider_name`."""
    name = provider if isinstance(provider, str) else provider.name
    while name.startswith("rc("):
        name = name[3:-1]
    return name.partition("(")[0]


def can(provider: ShMemProvider | str, capability: str) -> bool:
    """Tell whether a provider's mechanism has a capability."""
    return capability in CAPABILITIES[mechanism(provider)]
