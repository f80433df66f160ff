"""The optimizer, and the learning rate of every step."""

from __future__ import annotations

import math

import torch

from fcn import FCN8s
from support.console import InputError
from support.training.distributed import Ranks


def sgd(net: FCN8s, settings: dict) -> torch.optim.SGD:
    """The optimizer (paper, section 4.3). `times` of a group is what its rate is multiplied by: 2
    for biases, a convention of Caffe's networks that the authors followed.

    settings    momentum and weight_decay; biases are not decayed
    """
    learnt = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for name, p in learnt if name.endswith("weight")],
            "times": 1,
            "weight_decay": settings["weight_decay"],
        },
        {
            "params": [p for name, p in learnt if name.endswith("bias")],
            "times": 2,
            "weight_decay": 0.0,
        },
    ]
    place = learnt[0][1].device.type
    # fused: one pass over 134 M numbers instead of five.
    optimizer = torch.optim.SGD(
        groups, lr=0.0, momentum=settings["momentum"], fused=place in ("cpu", "cuda") or None
    )
    if place == "cuda":
        optimizer.register_step_pre_hook(lay_out_alike)
    return optimizer


def lay_out_alike(optimizer: torch.optim.SGD, *_):
    """Give gradients and momenta the strides of their weights where a size is 1; the numbers stay
    where they are.

    With images in channels_last, the gradient [C, I, 1, 1] of a score layer may have the strides
    (I, 1, I, I), and its weight (I, 1, 1, 1). Both describe the same layout, since the last two
    sizes are 1. CUDA's fused update compares the strides all the same, and refuses them (PyTorch's
    issue 106951). A momentum has the strides of the first gradient, and keeps them in a checkpoint.
    """
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if p.ndim == 4 and 1 in p.shape and p.grad is not None:
            p.grad = p.grad.as_strided(p.shape, p.stride())
            if optimizer.state[p].get("momentum_buffer") is not None:
                optimizer.state[p]["momentum_buffer"] = optimizer.state[p][
                    "momentum_buffer"
                ].as_strided(p.shape, p.stride())


def learning_rate(step: int, total: int, settings: dict) -> float:
    """The rate of step 0 ... total - 1: it rises in a straight line in the first `warmup` share of
    the steps, then falls.

    settings    lr, the highest rate; warmup; power: after the warm-up the rate is lr * (1 -
                progress) ** power
    """
    warmup = max(1, round(settings["warmup"] * total))
    if step < warmup:
        return settings["lr"] * (step + 1) / warmup
    return settings["lr"] * (1 - (step - warmup) / max(1, total - warmup)) ** settings["power"]


# ---- A run that diverges ends before anything of it is saved, and says at which step and what t

WORSE = 1.5  # times the loss of an untrained network: with class weights, images differ by up to a third


class Divergence:
    """The first step at which the loss or its gradient was not finite. It stays on the device, so
    that no step waits.
    """

    def __init__(self, device: torch.device, total_steps: int, settings: dict, ranks: Ranks):
        self.total_steps, self.settings, self.ranks = total_steps, settings, ranks
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # 0: none so far

    def watch(self, step: int, value: torch.Tensor):
        """Look at a value of step `step` (1, 2, ...)."""
        self.step = torch.where(torch.isfinite(value) | (self.step > 0), self.step, step)

    def warning(self, loss: float, classes: int) -> str:
        """What to say of the mean loss of an epoch: "", unless it is far above log C, that of
        scores that are all alike.
        """
        if loss <= WORSE * math.log(classes):
            return ""
        return (
            f"warning: a loss of {loss:.3g} is worse than that of an untrained network, {math.log(classes):.3g}: the run "
            f"has diverged; begin again with a smaller --lr than {self.settings['lr']:g}"
        )

    def refuse(self):
        """Raise InputError if there was such a step. Called before anything is saved; it waits for
        the device.
        """
        step = self.step.item()
        if step:
            if not self.ranks.first:
                raise SystemExit(2)  # all processes know it, one says it
            rate = learning_rate(step - 1, self.total_steps, self.settings)
            other = (
                ", or with --amp off, since fp16 holds numbers up to 65504,"
                if self.settings["amp"] == "fp16"
                else ""
            )
            raise InputError(
                f"the loss was not finite at step {step}, at a rate of {rate:.2g}; nothing of it is saved. Start "
                f"again with a smaller --lr than {self.settings['lr']:g}{other} and another --out"
            )
