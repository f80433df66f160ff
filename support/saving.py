"""When and how the checkpoints of a run are written: often enough that little is lost, and so that they cost little."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from support.files import save_tensors

STEPS = 500       # last.pt is due after so many steps
SECONDS = 300     # or after so many seconds, if the steps are slow
TIMES = 50        # but a file is not written again before 50 times as long has passed as writing it took: so each takes 2 % of
                  # the time at most. A step of a fast GPU takes a hundredth of a second, a checkpoint of 1 GB some seconds


class Saving:
    """The checkpoints of one run: last.pt, from which it is resumed, and best.pt, its best network so far.

    every    steps between two last.pt, as a person asked for; or "auto": as above
    device   where the tensors are. From a GPU they are copied, and a thread writes them while the loop goes on; a processor
             writes them at once, since a copy would take the memory that the next step needs

    One file is written after the other, and a best.pt always before the last.pt that counts with it: so the pair on the disk
    is one from which a run can go on, whenever it is killed.
    """

    def __init__(self, every: int | str, device: torch.device):
        self.every, self.waiting, self.under_way = every, None, None
        self.writer = None if device.type == "cpu" else ThreadPoolExecutor(1)
        self.written_at = {"best.pt": -float("inf"), "last.pt": time.perf_counter()}
        self.took = {"best.pt": 0.0, "last.pt": 0.0}

    def affordable(self, name: str) -> bool:
        if self.under_way and not self.under_way.done():
            return False
        return time.perf_counter() - self.written_at[name] > TIMES * self.took[name]

    def due(self, step: int) -> bool:
        """Whether last.pt should be written after step `step` (1, 2, ...)."""
        late = time.perf_counter() - self.written_at["last.pt"] > SECONDS
        if self.every != "auto":
            return step % self.every == 0 or late
        return self.affordable("last.pt") and (step % STEPS == 0 or late)

    def best(self, content: dict, out: Path):
        """Write best.pt; or, if the last one was written a moment ago, keep a copy of the network until `last` or `finish`.

        Raises InputError if this file, or the one before, cannot be written; so do `last` and `finish`.
        """
        self.waiting = None
        if self.affordable("best.pt"):
            self.write(content, out / "best.pt")
        else:
            self.waiting = on_host(content), out

    def last(self, content: dict, out: Path):
        """Write last.pt; the one before stays as before.pt until the next."""
        self.write_waiting()
        self.write(content, out / "last.pt", before=out / "before.pt")

    def write_waiting(self):
        if self.waiting:
            self.wait()  # if it raises, what waits is still there
            (content, out), self.waiting = self.waiting, None
            self.write(content, out / "best.pt")

    def write(self, content: dict, path: Path, before: Path | None = None):
        if self.writer:
            self.wait()
            self.written_at[path.name] = time.perf_counter()
            self.under_way = self.writer.submit(self.write_now, on_host(content), path, before)
        else:
            self.write_now(content, path, before)

    def write_now(self, content: dict, path: Path, before: Path | None):
        started = time.perf_counter()
        save_tensors(content, path, before)
        self.written_at[path.name] = time.perf_counter()
        self.took[path.name] = self.written_at[path.name] - started

    def wait(self):
        """Until the file under way is written. Raises InputError if it cannot be."""
        under_way, self.under_way = self.under_way, None
        if under_way:
            under_way.result()

    def finish(self):
        """Write what still waits, and wait for it. Raises InputError."""
        self.write_waiting()
        self.wait()

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, *error):
        """However the run ends, the best network that is known is on the disk."""
        try:
            self.finish()
        finally:
            if self.writer:
                self.writer.shutdown()


def on_host(content):
    """A dictionary with all tensors within copied to the processor's memory."""
    if isinstance(content, dict):
        return {name: on_host(value) for name, value in content.items()}
    if isinstance(content, list):
        return [on_host(value) for value in content]
    return content.to("cpu", copy=True) if isinstance(content, torch.Tensor) else content
