"""What the consumers share: running commands, the stranger's program, tools, the sources and their sdist."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parent.parent.parent
PROGRAM = Path(__file__).parent / "program.c"
STRICT = "-Wall -Wextra -Werror -Wpedantic"


def _run(*command: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


@pytest.fixture(scope="session")
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Give a function that runs a command, whatever becomes of it."""
    return _run


@pytest.fixture(scope="session")
def check() -> Callable[..., str]:
    """Give a function that runs a command that has to succeed, and gives what it printed."""

    def check(*command: str | Path, **options: Any) -> str:
        result = _run(*command, **options)
        assert result.returncode == 0, f"{command}\n{result.stdout}{result.stderr}"
        return result.stdout

    return check


@pytest.fixture(scope="session")
def works(check: Callable[..., str]) -> Callable[[Path], None]:
    """Give a function that runs a built stranger's program, which finds its library by itself."""

    def works(program: Path) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
        assert check(program, env=environment) == "shared shared\n"

    return works


@pytest.fixture(scope="session")
def tool(missing: Callable[[str], NoReturn]) -> Callable[..., str]:
    """Give a function that gives the path of a program, or skips."""

    def tool(name: str, package: str = "") -> str:
        return shutil.which(name) or missing(f"needs {name}: apt install {package or name}")

    return tool


@pytest.fixture
def cmake_project(tmp_path: Path) -> Callable[[str], Path]:
    """Give a function that writes a stranger's CMake project, which finds the library by these lines."""

    def cmake_project(lines: str) -> Path:
        project = tmp_path / "project"
        project.mkdir()
        shutil.copy(PROGRAM, project)
        (project / "CMakeLists.txt").write_text(
            f"cmake_minimum_required(VERSION 3.16)\nproject(stranger C)\n{lines}\n"
            "add_executable(program program.c)\n"
            "target_link_libraries(program PRIVATE shmem_providers::shmem_providers)\n"
        )
        return project

    return cmake_project


@pytest.fixture
def cmake_build(
    tmp_path: Path, cmake_project: Callable[[str], Path], check: Callable[..., str], tool: Callable[..., str]
) -> Callable[..., Path]:
    """Give a function that builds such a project and gives its program, without an ending."""

    def cmake_build(lines: str, *options: str) -> Path:
        cmake, binary = tool("cmake"), tmp_path / "binary"
        check(cmake, "-S", cmake_project(lines), "-B", binary, f"-DCMAKE_C_FLAGS={STRICT}", *options)
        check(cmake, "--build", binary)
        return binary / "program"

    return cmake_build


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a copy of the sources, without what was built there."""
    copy = tmp_path_factory.mktemp("sources") / "shmem_providers"
    built = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "*.so", "lib", "include")
    shutil.copytree(ROOT, copy, ignore=built)
    shutil.copytree(ROOT / "csrc/include", copy / "csrc/include")
    return copy


@pytest.fixture(scope="session")
def sdist(sources: Path, check: Callable[..., str]) -> Path:
    """Give the source distribution."""
    check(sys.executable, "setup.py", "-q", "sdist", cwd=sources)
    (path,) = (sources / "dist").glob("*.tar.gz")
    return path
