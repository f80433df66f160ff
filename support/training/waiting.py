"""How long the device has waited for images, which says whether more workers would help."""

from __future__ import annotations

import time

import torch


class Waiting:
    """Yields what `source` yields. `seconds()` is how long the device has waited for it in all.

    source    what `on_device` yields

    A processor waits as long as the loop does. A GPU does not: the loop tells it what to do ahead
    of time. While the loop waits for a batch, the GPU may still be computing the one before. So two
    marks go to the GPU with its work, one where it has computed all that came before the batch, and
    one where the batch is there. The time between them includes `normalise`.
    """

    def __init__(self, source, device: torch.device):
        self.source, self.waited, self.marks = iter(source), 0.0, []
        self.on_gpu = device.type == "cuda"

    def __iter__(self):
        return self

    def __next__(self):
        before = self.mark()
        batch = next(self.source)
        after = self.mark()
        if self.on_gpu:
            self.marks.append((before, after))
        else:
            self.waited += after - before
        return batch

    def mark(self):
        """Now, on the device: a time in seconds, or an event of CUDA that will have one."""
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self) -> float:
        """Waits until a GPU has done all that it was told."""
        if self.marks:
            self.marks[-1][1].synchronize()
            self.waited += (
                sum(before.elapsed_time(after) for before, after in self.marks) / 1000
            )  # of milliseconds
            self.marks.clear()
        return self.waited
