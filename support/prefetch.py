"""Results of slow work, read ahead of the loop that uses them. No PyTorch here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

ROOM = 2**30  # bytes: seven photos of 24 megapixels and their views, or 128 images of Cityscapes


def prefetch(
    items: Iterable,
    load: Callable,
    workers: int,
    initializer: Callable[[], object] | None = None,
    room: int = ROOM,
) -> Iterator:
    """Yields load(item) for each item, in the order of the items.

    workers        threads that call `load`; 0: it is called when its result is asked for. Threads
                   are enough, since Pillow and numpy release Python's lock
    initializer    called once in each thread
    room           for the arrays in the results that are loading or waiting, in bytes: there are
                   as many as fit if all are as large as the largest so far; one at least, and
                   workers + 1 at most

    The results are the same for any number of workers. What `load` raises is raised when the turn
    of that item comes.
    """
    if workers == 0:
        yield from map(load, items)
        return
    with ThreadPoolExecutor(workers, initializer=initializer) as pool:
        waiting, largest = deque(), None
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if largest is None:  # the first one tells how many there is room for
                    largest = bytes_in(waiting[0].result())
                while len(waiting) > max(1, min(workers + 1, room // (largest or 1))):
                    result = waiting.popleft().result()
                    largest = max(largest, bytes_in(result))
                    yield result
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
