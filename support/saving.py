"""When the next checkpoint of a run is due: often enough that little is lost, and seldom enough that it costs little."""

from __future__ import annotations

import time
from contextlib import contextmanager

STEPS = 500       # a checkpoint is due after so many steps
SECONDS = 300     # or after so many seconds, if the steps are slow
TIMES = 50        # but not before so many times the last one's own duration have passed: it takes 2 % of the time at most.
                  # A step of a fast GPU takes a hundredth of a second, a checkpoint of 1 GB some seconds


class Saving:
    """The clock of one run's checkpoints.

    every    steps between them, as a person asked for; or "auto": as above
    """

    def __init__(self, every: int | str):
        self.every, self.done_at, self.took = every, time.perf_counter(), 0.0

    def due(self, step: int) -> bool:
        """Whether a checkpoint should be written after step `step` (1, 2, ...)."""
        passed = time.perf_counter() - self.done_at
        if self.every != "auto":
            return step % self.every == 0 or passed > SECONDS
        return passed > TIMES * self.took and (step % STEPS == 0 or passed > SECONDS)

    @contextmanager
    def one(self):
        """Within it a checkpoint is written."""
        started = time.perf_counter()
        yield
        self.done_at = time.perf_counter()
        self.took = self.done_at - started
