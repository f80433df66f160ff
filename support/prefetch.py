"""Results of slow work, read ahead of the loop that uses them. No PyTorch here."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor


def prefetch(
    items: Iterable,
    load: Callable,
    workers: int,
    ahead: int | None = None,
    initializer: Callable[[], object] | None = None,
) -> Iterator:
    """Yields load(item) for each item, in the order of the items.

    workers        threads that call `load`; 0: it is called when its result is asked for. Threads
                   are enough, since Pillow and numpy release Python's lock
    ahead          how many results may be loaded or waiting at once, by default workers + 2
    initializer    called once in each thread

    The results are the same for any number of workers. What `load` raises is raised when the turn
    of that item comes.
    """
    if workers == 0:
        yield from map(load, items)
        return
    ahead = workers + 2 if ahead is None else ahead
    with ThreadPoolExecutor(workers, initializer=initializer) as pool:
        waiting = deque()
        try:
            for item in items:
                waiting.append(pool.submit(load, item))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # an error, or a consumer that stops early
            for future in waiting:
                future.cancel()
