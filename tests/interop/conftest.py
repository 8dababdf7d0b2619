"""The Rust crate's drivers.

$SHMP_SEED is one, built by cargo if not given: tools/windows.sh seed builds the one for Wine.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from seeds import build, rust_version


@pytest.fixture(scope="session")
def seed_program(missing: Callable[[str], NoReturn]) -> Path:
    return Path(os.environ["SHMP_SEED"]) if "SHMP_SEED" in os.environ else build("seed", missing)


@pytest.fixture(scope="session")
def newest_seed_program() -> Path:
    """Give the one with the crate that later Rusts have."""
    if rust_version() < (1, 93, 1):
        pytest.skip("the newest seed crate needs rustc 1.93.1: rustup update")

    def missing(reason: str) -> NoReturn:
        pytest.skip(reason)

    return build("seed_0_16", missing)
