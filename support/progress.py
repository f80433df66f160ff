"""What a loop tells about itself: how far it is."""

from __future__ import annotations

import sys
import time
from datetime import timedelta


class Progress:
    """One line that moves on a terminal; elsewhere a plain line every half minute. Counts steps of some images each."""

    def __init__(self, total: int, done: int = 0, images: int = 1):
        self.total, self.done, self.first, self.images = total, done, done, images
        self.start = self.shown = time.perf_counter()
        self.live = sys.stdout.isatty()

    def due(self) -> bool:
        """One more step is done. Returns whether it is time to show something."""
        self.done += 1
        return self.late()

    def late(self) -> bool:
        """Whether it is time to show something."""
        return time.perf_counter() - self.shown >= (0.5 if self.live else 30)

    def show(self, text: str, part: float = 0.0):
        """Show a text, the speed and the time left. `part` is the share of the step under way, 0 to 1, that is done."""
        self.shown = time.perf_counter()
        each = (self.shown - self.start) / max(self.done - self.first + part, 1e-9)
        left = timedelta(seconds=round(each * (self.total - self.done - part)))
        text += f"  {self.images / each:.2f} images/s  {left} left"
        print(f"\r{text}\033[K" if self.live else text, end="" if self.live else "\n", flush=True)

    def line(self, text: str):
        """Print a line that stays."""
        print(f"\r\033[K{text}" if self.live else text, flush=True)
