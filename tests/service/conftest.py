"""Services in processes of their own, of which nothing may be left."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest
from wire import Service, serving


class NotOfThisSystem(pytest.Module):
    def collect(self) -> NoReturn:
        pytest.skip("services hand out descriptors: Windows has none")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    return NotOfThisSystem.from_parent(parent, path=module_path) if sys.platform == "win32" else None


@pytest.fixture(scope="module")
def shared_service() -> Iterator[Service]:
    with serving() as service:
        yield service


@pytest.fixture
def service(shared_service: Service) -> Iterator[Service]:
    """A service with the defaults, which is as it was after each test."""
    before = shared_service.descriptors()
    yield shared_service
    assert shared_service.wait_until(shared_service.is_empty)
    assert shared_service.wait_until(lambda: shared_service.descriptors() == before)


@pytest.fixture
def start() -> Iterator[Callable[..., Service]]:
    """Give a function that starts a service, which ends with the test: `start(provider="posix", linger_ms=50)`."""
    with ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> Service:
            started: AbstractContextManager[Service] = serving(*arguments, **options)
            return stack.enter_context(started)

        yield start
