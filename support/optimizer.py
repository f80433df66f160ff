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
    # fused: one pass over 134 M numbers instead of five. On a GPU, where that is little, PyTorch 2.4 would refuse the strides
    # that channels_last gives to the gradients of 1x1 convolutions.
    fused = True if learnt[0][1].device.type == "cpu" else None
    return torch.optim.SGD(groups, lr=0.0, momentum=settings["momentum"], fused=fused)


def learning_rate(step: int, total: int, settings: dict) -> float:
    """The rate of step 0 ... total - 1: it rises in a straight line in the first `warmup` share of the steps, then falls.

    settings    lr, the highest rate; warmup; power: after the warm-up the rate is lr * (1 - progress) ** power
    """
    warmup = max(1, round(settings["warmup"] * total))
    if step < warmup:
        return settings["lr"] * (step + 1) / warmup
    return settings["lr"] * (1 - (step - warmup) / max(1, total - warmup)) ** settings["power"]
