"""The Rust crate's drivers.

$SHMP_SEED is one, built by cargo if not given: tools/windows.sh seed builds the one for Wine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from seeds import build, rust_version


def own_copy(program: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tests of another checkout, at the same time, may build theirs in its place."""
    return Path(shutil.copy(program, tmp_path_factory.mktemp("seed")))


@pytest.fixture(scope="session")
def seed_program(missing: Callable[[str], NoReturn], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if "SHMP_SEED" in os.environ:
        return Path(os.environ["SHMP_SEED"])
    return own_copy(build("seed", missing), tmp_path_factory)


@pytest.fixture(scope="session")
def newest_seed_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the one with the crate that later Rusts have."""
    if rust_version() < (1, 93, 1):
        pytest.skip("the newest seed crate needs rustc 1.93.1: rustup update")

    def missing(reason: str) -> NoReturn:
        pytest.skip(reason)

    return own_copy(build("seed_0_16", missing), tmp_path_factory)
