"""The extension module: what it exports and is typed as, what importing it does, and threads."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

import shmem_providers
from shmem_providers import ShMem, ShMemProvider, StdShMemProvider, _binding, ffi, lib

pytestmark = pytest.mark.usefixtures("nothing_leaks")

ROOT = Path(__file__).parent.parent
PACKAGE = Path(shmem_providers.__file__).parent


@pytest.fixture
def header(missing: Callable[[str], NoReturn]) -> str:
    path = ROOT / "csrc/include/shmem_providers.h"
    if not path.exists():
        missing("needs the sources: run the tests in a checkout")
    return path.read_text()


# ---- generated and typed


def test_the_generated_binding_is_current(header: str, tmp_path: Path) -> None:
    path = ROOT / "tools/generate_binding.py"
    spec = importlib.util.spec_from_file_location("generate_binding", path)
    assert spec
    assert spec.loader
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    generator.generate(tmp_path / "_binding.c")
    assert (tmp_path / "_binding.c").read_text() == (ROOT / "csrc/python/_binding.c").read_text(), (
        "the header has changed: python tools/generate_binding.py"
    )


def test_the_versions_agree(header: str) -> None:
    (version,) = re.findall(r'#define SHMP_VERSION "(.+)"', header)
    (abi,) = re.findall(r"#define SHMP_ABI_VERSION (\d+)u", header)
    assert shmem_providers.__version__ == version
    assert ffi.string(lib.shmp_version()).decode() == version
    assert lib.shmp_abi_version() == int(abi)
    assert importlib.metadata.version("shmem_providers") == version


def _public_of(node: ast.ClassDef) -> dict[str, ast.stmt]:
    """Give the names that a class of the stub declares."""
    names: dict[str, ast.stmt] = {}
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef):
            names[statement.name] = statement
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            names[statement.target.id] = statement
    return names


@pytest.fixture
def stub() -> dict[str, dict[str, ast.stmt]]:
    """Give the classes of _binding.pyi, and what each declares."""
    tree = ast.parse((PACKAGE / "_binding.pyi").read_text())
    return {node.name: _public_of(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def test_the_stub_types_all_of_c(header: str, stub: dict[str, dict[str, ast.stmt]]) -> None:
    region = header.partition("/* cffi: begin")[2].partition("/* cffi: end */")[0]
    region = re.sub(r"/\*.*?\*/", "", region, flags=re.DOTALL)
    functions = {
        name: [] if parameters.strip() == "void" else re.findall(r"(\w+)\s*(?:,|$)", parameters)
        for name, parameters in re.findall(r"^SHMP_API [^;(]*?(\w+)\(([^;]*)\);", region, re.MULTILINE)
    }
    constants = set(re.findall(r"#define (SHMP_\w+)", region)) | set(re.findall(r"\b(SHMP_\w+) = ", region))
    assert len(functions) > 20
    assert len(constants) > 10
    assert set(dir(lib)) == set(functions) | constants
    assert set(stub["_Lib"]) == set(functions) | constants
    for name, parameters in functions.items():
        declared = stub["_Lib"][name]
        assert isinstance(declared, ast.FunctionDef)
        assert [argument.arg for argument in declared.args.args] == ["self", *parameters], name
        value = getattr(lib, name)
        assert len(ffi.typeof(value).args) == len(parameters)
    for name in constants:
        assert isinstance(getattr(lib, name), int)


@pytest.mark.parametrize("name", ["Provider", "ShMem", "Service"])
def test_the_stub_types_all_of_a_type(name: str, stub: dict[str, dict[str, ast.stmt]]) -> None:
    runtime = getattr(_binding, name)
    own = {member for member in vars(runtime) if not re.fullmatch(r"__\w+__", member)}
    declared = {member for member in stub[name] if not re.fullmatch(r"__\w+__", member)}
    assert declared - {"_shmem_type"} == own  # which is the subclass's
    for member in stub[name]:
        assert (
            hasattr({"ShMem": ShMem, "Provider": ShMemProvider}.get(name, runtime), member) or "buffer__" in member
        ), member
    properties = {
        member
        for member, statement in stub[name].items()
        if isinstance(statement, ast.FunctionDef)
        and [ast.unparse(each) for each in statement.decorator_list] == ["property"]
    }
    assert properties == {member for member in own if inspect.isgetsetdescriptor(vars(runtime)[member])}


@pytest.mark.parametrize("name", ["Provider", "ShMem", "Service"])
def test_the_stub_says_what_c_says(name: str, stub: dict[str, dict[str, ast.stmt]]) -> None:
    """Editors show the docstrings of the stub for all that is implemented in C."""
    runtime = getattr(_binding, name)
    said, shown = {}, {}
    for member, statement in stub[name].items():
        if not isinstance(statement, ast.FunctionDef) or member.startswith("__"):
            continue
        said[member], shown[member] = inspect.getdoc(vars(runtime)[member]), ast.get_docstring(statement)
    assert shown == said
    assert [member for member, text in said.items() if not text and not member.startswith("_")] == []


def test_what_is_exported() -> None:
    names = shmem_providers.__all__
    assert len(set(names)) == len(names)
    assert sorted(names, key=lambda name: (not name.isupper(), name)) == names  # constants first
    for name in names:
        value = getattr(shmem_providers, name)
        if name in ("ffi", "lib") or name.isupper():
            continue
        assert inspect.getdoc(value), name
        assert vars(value)["__doc__"] if isinstance(value, type) else value.__doc__, name  # its own
        assert value.__module__.startswith("shmem_providers")
        if isinstance(value, type):
            assert (value.__module__, value.__qualname__) == ("shmem_providers", name)
            for attribute, member in vars(value).items():
                if not attribute.startswith("_") and callable(member):
                    assert inspect.getdoc(member), f"{name}.{attribute}"
    public = {name for name in vars(shmem_providers) if not name.startswith("_")}
    submodules = {module.name for module in pkgutil.iter_modules([str(PACKAGE)])}
    assert public - submodules == set(names)


# ---- importing


IMPORT = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
before, environment = set(sys.modules), dict(os.environ)
import shmem_providers
print(json.dumps(sorted(set(sys.modules) - before)))
assert os.environ == environment
"""
IMPORT_AND_LOOK = """
import json, sys, threading
sys.path[:0] = json.loads(sys.argv[1])
from held import held, threads
import _cffi_backend
before = held()
import shmem_providers
assert held() == before
assert threads() == threading.active_count() == 1
"""
HEAVY = [
    "dataclasses",
    "typing",
    "re",
    "enum",
    "ctypes",
    "multiprocessing",
    "collections",
    "subprocess",
    "inspect",
    "functools",
]


def test_importing_is_light() -> None:
    """Without site, which may import anything: no slow module, no thread, no file that stays open."""
    cffi = importlib.util.find_spec("_cffi_backend")
    assert cffi
    assert cffi.origin
    paths = json.dumps([str(PACKAGE.parent), str(Path(cffi.origin).parent), str(ROOT / "tests")])
    printed = []
    for program in (IMPORT, IMPORT_AND_LOOK):
        command = [sys.executable, "-I", "-S", "-W", "error", "-c", program, paths]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (result.returncode, result.stderr) == (0, "")
        printed.append(result.stdout)
    imported = set(ast.literal_eval(printed[0]))
    assert "shmem_providers._binding" in imported
    assert imported & set(HEAVY) == set()


def test_using_is_light_too(run_python: Callable[..., str]) -> None:
    """What is imported late is what its user asks for, ctypes for ctypes."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "from shmem_providers import *\n"
        "provider = StdShMemProvider()\n"
        "with provider.new_shmem(10) as shm, provider.shmem_from_description(shm.description) as other:\n"
        "    shm[0] = 1; shm.write_to_env('X'); provider.existing_from_env('X').close()\n"
        "    cursor = ShMemCursor(shm); cursor.read(3); repr(shm); memoryview(shm).release()\n"
        "    try: provider.new_shmem(0)\n"
        "    except ValueError: pass\n"
        "    print(sorted(set(sys.modules) - before))\n"
    )
    imported = set(ast.literal_eval(run_python(code)))
    assert imported & {"dataclasses", "typing", "ctypes", "multiprocessing", "subprocess"} == set()


# ---- the C functions, from Python


def test_a_segment_through_cffi() -> None:
    error, provider, shmem = ffi.new("shmp_error *"), ffi.new("shmp_provider **"), ffi.new("shmp_shmem **")
    other, description, name = ffi.new("shmp_shmem **"), ffi.new("shmp_description *"), ffi.new("const char **")
    assert lib.shmp_available(0, name, error) == 0
    best = ffi.string(name[0])
    assert lib.shmp_provider_open(b"std", ffi.NULL, provider, error) == 0
    assert ffi.string(lib.shmp_provider_name(provider[0])) == best
    assert lib.shmp_create(provider[0], 5000, lib.SHMP_RESERVE, shmem, error) == 0
    assert (lib.shmp_size(shmem[0]), lib.shmp_flags(shmem[0])) == (5000, lib.SHMP_OWNER)
    assert lib.shmp_describe(shmem[0], description, error) == 0
    assert lib.shmp_attach(provider[0], description, lib.SHMP_READ_ONLY, other, error) == 0
    assert lib.shmp_flags(other[0]) == lib.SHMP_READ_ONLY
    assert lib.shmp_provider_ref(provider[0]) == provider[0]
    lib.shmp_provider_close(provider[0])
    assert ffi.string(lib.shmp_provider_name(provider[0])) == best
    lib.shmp_provider_close(provider[0])
    ours, theirs = (ffi.buffer(lib.shmp_data(each[0]), 5000) for each in (shmem, other))
    assert bytes(ours) == bytes(theirs) == bytes(5000)
    ours[4990:] = b"0123456789"
    assert theirs[4990:] == b"0123456789"
    with StdShMemProvider().shmem_from_id_and_size(ffi.string(description.id).decode(), description.size) as shm:
        assert shm[4990:] == b"0123456789"
        shm[0] = 1
    assert theirs[0] == b"\1"
    assert lib.shmp_close(shmem[0], error) == lib.shmp_close(other[0], ffi.NULL) == lib.shmp_close(ffi.NULL, error) == 0

    code = -lib.SHMP_EINVAL
    assert lib.shmp_provider_open(b"garbage", ffi.NULL, provider, error) == code == error.code
    assert b"garbage" in ffi.string(error.message)
    assert ffi.string(lib.shmp_error_text(code)) == ffi.string(lib.shmp_error_text(-code))
    assert lib.shmp_provider_open(best, ffi.NULL, provider, error) == 0
    pairs = [ffi.new("char[40]") for _ in range(2)]
    assert lib.shmp_create(provider[0], 5000, 0, shmem, error) == 0
    assert lib.shmp_describe(shmem[0], description, error) == 0
    assert lib.shmp_env_pairs(shmem[0], b"MAP", 0, pairs[0], pairs[1], 40, error) == 0
    assert list(map(ffi.string, pairs)) == [b"MAP=" + ffi.string(description.id), b"MAP_SIZE=5000"]
    assert lib.shmp_env_pairs(shmem[0], b"MAP" * 10, 0, pairs[0], pairs[1], 40, error) == -lib.SHMP_EINVAL
    assert lib.shmp_close(shmem[0], error) == 0
    assert lib.shmp_create_named(provider[0], b"/shmptest", 10, 0, shmem, error) == -lib.SHMP_EUNSUPPORTED
    assert lib.shmp_create(provider[0], 10, 0x4000, shmem, error) == -lib.SHMP_EINVAL
    assert b"0x4000" in ffi.string(error.message)
    lib.shmp_provider_close(provider[0])
