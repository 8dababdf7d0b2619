"""The command line: ``shmem-providers``, or ``python -m shmem_providers``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, which needs the extra ``[cli]``."""
    try:
        from shmem_providers._cli import app
    except ModuleNotFoundError as missing:
        if missing.name not in ("rich", "typer"):
            raise
        sys.exit(f"shmem-providers: needs {missing.name}: pip install 'shmem_providers[cli]'")
    app()


if __name__ == "__main__":
    main()
