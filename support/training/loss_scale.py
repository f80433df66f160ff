"""Training in fp16: the loss is multiplied by a large number, so that small gradients do not become
zero.

fp16 has no positive number below 6e-8, and gradients of VGG16's early layers are smaller than that.
So the loss is scaled up before the backward pass, and the gradients are scaled down after it, in
fp32 (Micikevicius et al. 2018, section 3.2). The right scale is found by trial: if it is too large,
some gradient is infinite; then the step is left out, and the scale is halved. bf16 has the range of
fp32 and needs none of this.
"""

from __future__ import annotations

import math
from typing import Iterable

import torch

FIRST = 2.0**16  # the first steps of a run find what is right
GOOD = 2000  # after so many steps in a row without an infinite gradient, the scale is doubled
LEAST = 1.0  # if a gradient is infinite at this scale, the run has diverged


class LossScale:
    """The scale of one run. Without fp16 it is always 1, and every step is taken.

    state    (scale, steps since it was changed) of a checkpoint, or None
    """

    def __init__(self, amp: str, state: tuple[float, int] | None = None):
        self.used = amp == "fp16"
        self.value, self.good = (state or (FIRST, 0)) if self.used else (1.0, 0)

    def divide(self, parameters: Iterable[torch.nn.Parameter]):
        """Bring the gradients back to their own size, in place."""
        if self.used:
            torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], 1 / self.value)

    def accepts(self, norm: torch.Tensor) -> bool:
        """Whether to take the step whose gradients have this norm, a float32 scalar. Also sets the
        scale of the next step.

        In fp16 the processor has to wait for the norm, as it does not in other types.
        """
        if not self.used:
            return True
        finite = math.isfinite(norm.item())
        if not finite and self.value <= LEAST:
            return True  # and the run ends (support/divergence.py)
        self.good = self.good + 1 if finite else 0
        if not finite:
            self.value /= 2
        elif self.good == GOOD:
            self.value, self.good = 2 * self.value, 0
        return finite

    def state(self) -> tuple[float, int] | None:
        """What a checkpoint needs to go on."""
        return (self.value, self.good) if self.used else None
