"""The optimizer, the learning rate of every step, and checks for divergence."""

from __future__ import annotations

import math

import torch

from support.console import InputError
from support.training.distributed import Ranks

DIVERGED = 1.5  # times ln C. With class weights, the first loss differs from ln C by up to a third


def sgd(
    net: torch.nn.Module, momentum: float, weight_decay: float, fp16: bool = False
) -> torch.optim.SGD:
    """SGD over the parameters that are not frozen (paper, section 4.3).

    Biases have no weight decay and twice the learning rate (`lr_mult`), a convention of Caffe that
    the authors follow.

    fp16    GradScaler will skip steps whose gradients overflow
    """
    learnt = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    weights = [p for name, p in learnt if name.endswith("weight")]
    biases = [p for name, p in learnt if name.endswith("bias")]
    groups = [
        {"params": weights, "lr_mult": 1, "weight_decay": weight_decay},
        {"params": biases, "lr_mult": 2, "weight_decay": 0.0},
    ]
    device = learnt[0][1].device.type
    # fused: one pass over 134 million parameters instead of five
    fused = device in ("cpu", "cuda") or None
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=fused)
    if fp16:
        # If the first step is skipped, a fused update never initialises its momentum.
        for p in weights + biases:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)
    if device == "cuda":
        optimizer.register_step_pre_hook(match_strides)
    return optimizer


def match_strides(optimizer: torch.optim.SGD, *_):
    """Give gradients and momenta the strides of their weights where a size is 1.

    With images in channels_last, the gradient [C, I, 1, 1] of a score layer may have the strides
    (I, 1, I, I), while its weight has (I, 1, 1, 1). Both describe the same layout, since the last
    two sizes are 1. But CUDA's fused update refuses different strides (PyTorch issue 106951). A
    momentum takes the strides of the first gradient and keeps them in a checkpoint.
    """
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if p.ndim == 4 and 1 in p.shape and p.grad is not None:
            p.grad = p.grad.as_strided(p.shape, p.stride())
            momentum = optimizer.state[p].get("momentum_buffer")
            if momentum is not None:
                optimizer.state[p]["momentum_buffer"] = momentum.as_strided(p.shape, p.stride())


def learning_rate(step: int, total: int, config) -> float:
    """The learning rate for step 0 ... total - 1.

    It rises linearly to `config.lr` over the first `config.warmup` share of the steps, then falls
    as (1 - progress) ** `config.power`.
    """
    warmup = max(1, round(config.warmup * total))
    if step < warmup:
        return config.lr * (step + 1) / warmup
    return config.lr * (1 - (step - warmup) / max(1, total - warmup)) ** config.power


class Divergence:
    """Remembers the first step whose loss or gradient was not finite: no checkpoint may follow it.

    The step number stays on the device, so that no step waits for the GPU.
    """

    def __init__(self, device: torch.device, ranks: Ranks):
        self.ranks = ranks
        self.step = torch.zeros((), dtype=torch.int64, device=device)  # 0: none so far

    def watch(self, step: int, *values: torch.Tensor):
        """Check scalars of step `step` (1, 2, ...)."""
        finite = torch.isfinite(sum(values))
        self.step = torch.where(finite | (self.step > 0), self.step, step)

    def require_none(self, config, scaler: torch.amp.GradScaler):
        """Raise InputError if there was such a step. Waits for the device.

        With fp16, a step whose gradients overflow is skipped and the loss scale is halved. A scale
        below 1 means that they overflow at any scale: the run has diverged too.
        """
        step = self.step.item()
        if step or scaler.is_enabled() and scaler.get_scale() < 1:
            if not self.ranks.first:
                raise SystemExit(2)  # all processes have the same step; the first one reports it
            where = f" at step {step}" if step else ""
            fp16 = ", or --amp off (fp16 holds numbers up to 65504)" * scaler.is_enabled()
            raise InputError(
                f"the loss was not finite{where}; no checkpoint has it. Start again with another "
                f"--out and a smaller --lr than {config.lr:g}{fp16}"
            )


def divergence_warning(loss: float, num_classes: int, lr: float) -> str:
    """A warning if the mean loss of an epoch is far above ln C, that of an untrained network.

    "" for any other loss.
    """
    untrained = math.log(num_classes)
    if loss <= DIVERGED * untrained:
        return ""
    return (
        f"warning: the loss is {loss:.3g}, that of an untrained network {untrained:.3g}: the run "
        f"has diverged; start again with a smaller --lr than {lr:g}"
    )
