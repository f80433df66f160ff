"""A run that diverges ends before anything of it is saved, and says at which step and what to do."""

from __future__ import annotations

import math

import torch

from support.errors import InputError
from support.optimizer import learning_rate
from support.ranks import Ranks

WORSE = 1.5  # times the loss of an untrained network: with class weights, images differ by up to a third


class Divergence:
    """The first step at which the loss or its gradient was not finite. It stays on the device, so that no step waits."""

    def __init__(self, device: torch.device, total_steps: int, settings: dict, ranks: Ranks):
        self.total_steps, self.settings, self.ranks = total_steps, settings, ranks
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # 0: none so far

    def watch(self, step: int, value: torch.Tensor):
        """Look at a value of step `step` (1, 2, ...)."""
        self.step = torch.where(torch.isfinite(value) | (self.step > 0), self.step, step)

    def warning(self, loss: float, classes: int) -> str:
        """What to say of the mean loss of an epoch: "", unless it is far above log C, that of scores that are all alike."""
        if loss <= WORSE * math.log(classes):
            return ""
        return (f"warning: a loss of {loss:.3g} is worse than that of an untrained network, {math.log(classes):.3g}: the run "
                f"has diverged; begin again with a smaller --lr than {self.settings['lr']:g}")

    def refuse(self):
        """Raise InputError if there was such a step. Called before anything is saved; it waits for the device."""
        step = self.step.item()
        if step:
            if not self.ranks.first:
                raise SystemExit(2)  # all processes know it, one says it
            rate = learning_rate(step - 1, self.total_steps, self.settings)
            other = ", or with --amp off, since fp16 holds numbers up to 65504," if self.settings["amp"] == "fp16" else ""
            raise InputError(f"the loss was not finite at step {step}, at a rate of {rate:.2g}; nothing of it is saved. Start "
                             f"again with a smaller --lr than {self.settings['lr']:g}{other} and another --out")
