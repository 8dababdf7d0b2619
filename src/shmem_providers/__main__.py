"""The command line: ``shmem-providers``, or ``python -m shmem_providers``."""

from __future__ import annotations

import io
import os
import sys

from shmem_providers import _library


def _open_outputs() -> None:
    """Whatever is printed, printing it does not fail: an output can be closed, or know fewer letters."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - until the end
        elif isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="replace")


def main() -> None:
    """Run the command line, which needs the extra ``[cli]`` for all but ``serve`` and the C library's flags."""
    _open_outputs()
    if sys.argv[1:] and sys.argv[1].startswith(_library.FLAGS):
        _library.print_flags()
        return
    if sys.argv[1:2] == ["serve"]:
        from shmem_providers import _serve

        sys.exit(_serve.main(sys.argv[2:]))
    try:
        from shmem_providers._cli import app
    except ModuleNotFoundError as missing:
        if missing.name not in ("rich", "typer"):
            raise
        sys.exit(f"shmem-providers: needs {missing.name}: pip install 'shmem_providers[cli]'")
    app()


if __name__ == "__main__":
    main()
