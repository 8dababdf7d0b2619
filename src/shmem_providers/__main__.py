"""The command line: ``shmem-providers``, or ``python -m shmem_providers``."""

from __future__ import annotations

import sys

from shmem_providers import _library


def main() -> None:
    """Run the command line, which needs the extra ``[cli]`` for all but the C library's flags."""
    if sys.argv[1:] and sys.argv[1].startswith(_library.FLAGS):
        _library.print_flags()
        return
    try:
        from shmem_providers._cli import app
    except ModuleNotFoundError as missing:
        if missing.name not in ("rich", "typer"):
            raise
        sys.exit(f"shmem-providers: needs {missing.name}: pip install 'shmem_providers[cli]'")
    app()


if __name__ == "__main__":
    main()
