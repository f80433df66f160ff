"""Lower peak memory, and faster allocation, with the same results."""

from __future__ import annotations

import ctypes
import math
import os
import time
from functools import partial
from typing import Callable

import torch
from torch.utils.checkpoint import checkpoint

from vgg import VGG16


def recompute(net: VGG16):
    """Keep only the pools from the forward pass, and compute the rest a second time in the backward pass.

    The gradients are the same bit for bit. A training step takes less memory and about a quarter more time.
    """
    for name in ("block1", "block2", "block3", "block4", "block5", "dense"):
        setattr(net, name, partial(kept_input, getattr(net, name)))


def kept_input(block: Callable, x: torch.Tensor) -> torch.Tensor:
    """block(x), keeping only x for the backward pass."""
    return checkpoint(block, x, use_reentrant=False) if torch.is_grad_enabled() else block(x)


def keep_memory(device: torch.device) -> Callable[[tuple], object]:
    """Let the process keep the memory that it frees, and use it again: the system hands out new memory page by page.

    A step frees and fetches gigabytes, most of it in pieces too large for the C library to keep by default. On a CPU this
    makes a prediction 1.2 times as fast and a training step 1.1 times. It works with Linux's usual C library only;
    elsewhere nothing happens.

    Returns a function to be called after each step with the shape of its images. If the shape is new, the function gives
    free memory back to the system: with images of many sizes, more and more lies in gaps too small to be used, and a run
    would grow from 2.8 to 5 GiB. It does so after the first step, when what reading the checkpoint took lies free, and then
    once in 30 seconds at most: fetching a gigabyte again takes a quarter of a second.
    """
    before, given = None, -math.inf

    def give_back(shape):
        nonlocal before, given
        if shape != before and time.monotonic() > given + 30:
            c.malloc_trim(0)
            given = time.monotonic()
        before = shape

    if device.type != "cpu":
        return lambda shape: None
    try:
        c = ctypes.CDLL(None)
        if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):  # else somebody has decided
            c.mallopt(-4, 0)   # M_MMAP_MAX: every piece lies in the heap; outside it would go back when it is freed
            c.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the end of the heap does not go back either
        c.malloc_trim  # not every C library has it
        return give_back
    except (OSError, AttributeError, TypeError):
        return lambda shape: None
