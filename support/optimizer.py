"""The optimizer, and the learning rate of every step."""

from __future__ import annotations

import torch

from fcn import FCN8s


def sgd(net: FCN8s, settings: dict) -> torch.optim.SGD:
    """The optimizer (paper, section 4.3). `times` of a group is what its rate is multiplied by: 2 for biases, a convention of
    Caffe's networks that the authors followed.

    settings    momentum and weight_decay; biases are not decayed
    """
    learnt = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in learnt if name.endswith("weight")], "times": 1, "weight_decay": settings["weight_decay"]},
        {"params": [p for name, p in learnt if name.endswith("bias")], "times": 2, "weight_decay": 0.0},
    ]
    place = learnt[0][1].device.type
    # fused: one pass over 134 M numbers instead of five.
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=settings["momentum"], fused=place in ("cpu", "cuda") or None)
    if place == "cuda":
        optimizer.register_step_pre_hook(lay_out_alike)
    return optimizer


def lay_out_alike(optimizer: torch.optim.SGD, *_):
    """Give gradients and momenta the strides of their weights where a size is 1; the numbers stay where they are.

    With images in channels_last, the gradient [C, I, 1, 1] of a score layer may have the strides (I, 1, I, I), and its weight
    (I, 1, 1, 1). Both describe the same layout, since the last two sizes are 1. CUDA's fused update compares the strides all
    the same, and refuses them (PyTorch's issue 106951). A momentum has the strides of the first gradient, and keeps them in a
    checkpoint.
    """
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if p.ndim == 4 and 1 in p.shape and p.grad is not None:
            p.grad = p.grad.as_strided(p.shape, p.stride())
            if optimizer.state[p].get("momentum_buffer") is not None:
                optimizer.state[p]["momentum_buffer"] = optimizer.state[p]["momentum_buffer"].as_strided(p.shape, p.stride())


def learning_rate(step: int, total: int, settings: dict) -> float:
    """The rate of step 0 ... total - 1: it rises in a straight line in the first `warmup` share of the steps, then falls.

    settings    lr, the highest rate; warmup; power: after the warm-up the rate is lr * (1 - progress) ** power
    """
    warmup = max(1, round(settings["warmup"] * total))
    if step < warmup:
        return settings["lr"] * (step + 1) / warmup
    return settings["lr"] * (1 - (step - warmup) / max(1, total - warmup)) ** settings["power"]
