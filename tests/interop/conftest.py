from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

import pytest


@pytest.fixture(scope="session")
def missing() -> Callable[[str], NoReturn]:
    """Skip for want of a tool; where CI must have it, fail."""

    def missing(reason: str) -> NoReturn:
        if os.environ.get("SHMP_CI"):
            pytest.fail(reason)
        pytest.skip(reason)

    return missing
