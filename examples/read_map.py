"""Share a map with a program under test, and read what it counted there, without a copy.

    python examples/read_map.py ./target hello

The program is examples/target.c.
"""

import subprocess
import sys

import numpy as np

from shmem_providers import StdShMemProvider


def main(command: list[str]) -> None:
    """Run the command with a map in its environment, and print what it hit."""
    with StdShMemProvider().new_shmem(256) as shm:
        shm.write_to_env("MY_MAP")
        hits = np.frombuffer(memoryview(shm), np.uint8)  # the segment itself: what the program writes appears here
        subprocess.run(command, check=True)
        for edge in np.flatnonzero(hits):
            print(f"{chr(edge)}: {hits[edge]}")


if __name__ == "__main__":
    main(sys.argv[1:])
