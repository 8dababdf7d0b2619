"""Every line of README is typed, in order, as somebody types it who knows nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="its commands are those of Linux"),
    pytest.mark.skipif(not (ROOT / "csrc").is_dir(), reason="these tests are apart from the sources"),
]


@pytest.fixture
def shell(tmp_path: Path) -> Callable[[str], str]:
    """Give a function that types commands in a copy of the repository, whose .venv is the Python of these tests."""
    clone = tmp_path / "clone"
    shutil.copytree(ROOT / "examples", clone / "examples")
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / ".venv/bin/activate").write_text(f"PATH={Path(sys.executable).parent}:$PATH\n")
    environment = {**os.environ, "PATH": os.environ["PATH"].replace(str(Path(sys.executable).parent), "/nowhere")}

    def shell(script: str) -> str:
        result = subprocess.run(
            ["bash", "-euc", script], cwd=clone, env=environment, capture_output=True, text=True, timeout=300
        )
        assert result.returncode == 0, f"{script}\n{result.stdout}{result.stderr}"
        return result.stdout

    return shell


def typed(block: str) -> list[tuple[str, str]]:
    """Give the commands of a console block, and what it shows of their output."""
    return [(command, shown) for command, shown in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)]


def masked(text: str) -> str:
    """Without the numbers that differ between runs, and trailing spaces."""
    return re.sub(r"\d[\d.,]*", "0", re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)).strip()


def test_what_it_says_to_type(shell: Callable[[str], str], numpy: Any, missing: Callable[[str], NoReturn]) -> None:
    if not shutil.which("cc"):
        missing("needs a C compiler: apt install gcc")
    assert numpy
    entered, environments = ":", 0
    for language, block in BLOCKS:
        if language == "console":
            for command, shown in typed(block):
                if command.startswith("python3 -m venv"):
                    environments += 1  # .ci/run types these two
                elif command.startswith(". "):
                    entered = command
                else:
                    printed = shell(f"{entered}\n{command}")
                    assert command.startswith("pip ") or masked(printed) == masked(shown), command
        elif language == "python":
            expected = re.findall(r"print\(.*#\s*(.+)", block)
            printed = shell(f"{entered}\npython - <<'END'\n{block}\nEND")
            assert printed.split("\n")[:-1] == expected
        elif language == "c":
            head = "#include <shmem_providers.h>\nint fail(const shmp_error *);\nint use(void);\n"
            shell(
                f"{entered}\ncat >fragment.c <<'END'\n{head}int use(void) {{\n{block}return 0;\n}}\nEND\n"
                "cc -Wall -Wextra -Werror -c fragment.c $(python -m shmem_providers --cflags)"
            )
        else:
            assert language in ("text", "cmake"), f"nobody types {language}"  # cmake: tests/consumers
    assert (entered, environments) == (". .venv/bin/activate", 2)


def test_the_commands_for_newcomers_work_without_the_environments_names() -> None:
    text = (ROOT / "README.md").read_text() + (ROOT / "examples/embed/README.md").read_text()
    assert "pip install shmem_providers" not in text  # no index has it
