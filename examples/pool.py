"""Give 1 GB to four workers and get results as large back, with no copy: pass the ShMem, not the array.

It needs NumPy: ``python examples/pool.py [MEGABYTES]``.
"""

import multiprocessing
import pickle
import sys
import time

import numpy as np

from shmem_providers import ShMem, StdShMemProvider

WORKERS = 4


def as_array(shm: ShMem) -> np.ndarray:
    """Give the segment as numbers: no copy."""
    return np.frombuffer(memoryview(shm), np.float64)


def square(numbers: ShMem, squares: ShMem, part: slice) -> float:
    """Run in a worker, which attached to both segments when it unpickled its arguments."""
    given, wanted = as_array(numbers)[part], as_array(squares)[part]
    np.multiply(given, given, out=wanted)
    return float(wanted[-1])


def main(megabytes: int) -> None:
    """Square numbers in four processes that were spawned, and so inherit nothing."""
    provider = StdShMemProvider()
    size = megabytes << 20
    with (
        provider.new_shmem(size) as numbers,
        provider.new_shmem(size) as squares,
        multiprocessing.get_context("spawn").Pool(WORKERS) as pool,
    ):
        array = as_array(numbers)
        array[:] = np.arange(len(array))
        print(f"a task has {len(pickle.dumps((numbers, squares)))} bytes; the array itself would be {size:,}")

        start, step = time.perf_counter(), -(-len(array) // WORKERS)
        tasks = [(numbers, squares, slice(at, at + step)) for at in range(0, len(array), step)]
        last = pool.starmap(square, tasks, chunksize=1)[-1]
        print(f"{WORKERS} workers squared {len(array):,} numbers in {time.perf_counter() - start:.2f} s")

        results = as_array(squares)
        assert last == results[-1] == float(len(array) - 1) ** 2
        print(f"the last one is {results[-1]:.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1024)
