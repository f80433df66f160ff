"""Prefetching: threads compute results before a loop needs them. Needs no PyTorch."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

ROOM = 2**30  # bytes: seven 24-megapixel photos and their views, or 128 Cityscapes images


def prefetch(
    items: Iterable,
    load: Callable,
    workers: int,
    initializer: Callable[[], object] | None = None,
    room: int = ROOM,
) -> Iterator:
    """Yields load(item) for each item, in order.

    workers        threads that call `load`; 0: call it when the result is needed. Threads are
                   enough, since Pillow and numpy release Python's global lock
    initializer    called once in each thread
    room           bytes for the arrays of results that are loading or waiting. Their number, from 1
                   to workers + 1, assumes that all are as large as the largest so far

    The results do not depend on the number of workers. An error in `load` is raised at the turn of
    its item.
    """
    if workers == 0:
        yield from map(load, items)
        return
    with ThreadPoolExecutor(workers, initializer=initializer) as pool:
        waiting, largest = deque(), None
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if largest is None:  # the first result shows how many fit
                    largest = bytes_in(waiting[0].result())
                while len(waiting) > max(1, min(workers + 1, room // (largest or 1))):
                    largest = max(largest, bytes_in(waiting[0].result()))
                    yield waiting.popleft().result()  # no name: the memory is free after its use
            while waiting:
                yield waiting.popleft().result()
        finally:  # an error, or a consumer that stops early
            for future in waiting:
                future.cancel()


def bytes_in(result) -> int:
    """Bytes of the arrays and tensors in nested lists and tuples."""
    if isinstance(result, (list, tuple)):
        return sum(map(bytes_in, result))
    return getattr(result, "nbytes", 0)
