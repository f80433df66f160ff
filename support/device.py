"""The device that computes, its number format, and the way of a batch to it.

Images travel as bytes, a quarter of the size of floats, and are normalised on the device.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import time
from contextlib import nullcontext
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Callable, Iterable, Iterator

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from fcn import FCN8s
from support.console import InputError, out_of_memory
from support.inference.int8 import to_int8
from vgg import VGG16, normalise


def pick_device(name: str, local: int = 0) -> torch.device:
    """The device of this name; for "auto" or "cuda" the GPU with the number `local`. Raises
    InputError if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local}" if name == "cuda" else name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise InputError(
                f"--device {name}: the devices here are cpu, cuda and mps (Apple's GPUs)"
            )
        torch.zeros(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(
                device
            )  # for what asks for no device by name, such as communication between processes
            # No TF32: by default PyTorch's convolutions keep 10 of the 23 binary digits of fp32.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch built without CUDA
        if out_of_memory(error):
            raise  # there is one, but others have filled it
        few = (
            f"; there are {torch.cuda.device_count()} GPUs for the processes of this machine"
            if local
            else ""
        )
        raise InputError(
            f"--device {name}: PyTorch has no such device here{few}; use --device cpu"
        ) from None
    return device


TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of --amp; off: float32


def suited_amp(amp: str, device: torch.device) -> str:
    """What --amp comes to, "bf16", "fp16" or "off": as told, or for "auto" bf16 if the hardware has
    instructions for it.

    Elsewhere bf16 is slower. fp16 is never chosen by itself, since it has no numbers above 65504,
    and VGG16 with Caffe's weights comes to 16,000 on nine images of KITTI and CamVid.
    """
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return (
            "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "off"
        )  # older ones only emulate it
    if device.type != "cpu":
        return "off"  # Apple's GPUs: nobody has measured it
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "off"
    return "bf16" if re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) else "off"


def autocast_for(amp: str, device: torch.device) -> Callable:
    """A function that makes a context manager in which the forward pass computes in the type of
    `amp`; in that for "off" nothing changes.
    """
    return nullcontext if amp == "off" else lambda: torch.autocast(device.type, TYPES[amp])


def prepare_prediction(
    net: FCN8s, amp: str, device: torch.device, largest: dict[str, float] | None = None
) -> Callable:
    """The function from images, uint8 [N, 3, H, W], to scores [N, C, H, W]. It changes `net`:
    device, mode and type.

    amp        that of predict.py; for "int8" with the largest numbers of its maps (support/int8.py)

    Raises InputError where there is no int8.
    """
    int8, amp = amp == "int8", suited_amp("auto" if amp == "int8" else amp, device)
    if int8:
        to_int8(
            net, largest
        )  # first, from the weights as they are: a copy in bf16 would stay in the memory of the process
    net.to(
        device, TYPES.get(amp)
    ).eval()  # autocast alone would convert the weights for each picture

    def compute(images):
        with autocast_for(amp, device)():
            return net(
                normalise(images)
            )  # tile by tile: as floats a large picture takes four times its bytes

    return compute


def on_device(
    source: Iterable, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of bytes to what the network takes.

    source    yields images uint8 [N, 3, H, W] and labels uint8 [N, H, W], on the processor

    Yields images float32, normalised, and labels int64, of the same shapes, on the device. On CUDA
    the next batch is copied while the present one is computed, on a stream of its own, from the
    pinned memory in which `load_batches` has put it together. Only from there can a copy run while
    the processor does something else.
    """
    if device.type != "cuda":
        for images, labels in source:
            yield normalise(images.to(device)), labels.to(device).long()
        return
    copying = copying_stream(device)
    computing = torch.cuda.current_stream(device)

    def start_copy(batch):
        with torch.cuda.stream(copying):
            images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
            return images, labels, copying.record_event()

    ahead = None
    for batch in chain(
        source, [None]
    ):  # one more turn at the end, for the batch that is still ahead
        following = start_copy(batch) if batch else None
        if ahead:
            images, labels, copied = ahead
            computing.wait_event(copied)
            for tensor in (images, labels):
                tensor.record_stream(
                    computing
                )  # its memory must not be reused before the computation is done
            yield normalise(images), labels.long()
        ahead = following


@cache
def copying_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which batches are copied: one, since PyTorch keeps memory for each stream that
    it has made.
    """
    return torch.cuda.Stream(device)


def as_batch(image: np.ndarray) -> torch.Tensor:
    """An image uint8 [H, W, 3] as a batch [1, 3, H, W], a copy.

    The new dimension comes first: so the strides say channels_last, in which convolutions and pools
    are fastest.
    """
    return torch.tensor(image)[None].permute(0, 3, 1, 2)


# ---- Lower peak memory, and faster allocation, with the same results.


def recompute(net: VGG16):
    """Keep only the pools from the forward pass, and compute the rest a second time in the backward
    pass.

    The gradients are the same bit for bit. A training step takes less memory and about a quarter
    more time.
    """
    for name in ("block1", "block2", "block3", "block4", "block5", "dense"):
        setattr(net, name, partial(kept_input, getattr(net, name)))


def kept_input(block: Callable, x: torch.Tensor) -> torch.Tensor:
    """block(x), keeping only x for the backward pass."""
    return checkpoint(block, x, use_reentrant=False) if torch.is_grad_enabled() else block(x)


def keep_memory(device: torch.device) -> Callable[[tuple], object]:
    """Let the process keep the memory that it frees, and use it again: the system hands out new
    memory page by page.

    A step frees and fetches gigabytes, most of it in pieces too large for the C library to keep by
    default. On a CPU this makes a prediction 1.2 times as fast and a training step 1.1 times. It
    works with Linux's usual C library only; elsewhere nothing happens.

    Returns a function to be called after each step with the shape of its images. If the shape is
    new, the function gives free memory back to the system: with images of many sizes, more and more
    lies in gaps too small to be used, and a run would grow from 2.8 to 5 GiB. It does so after the
    first step, when what reading the checkpoint took lies free, and then once in 30 seconds at
    most: fetching a gigabyte again takes a quarter of a second.
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
        if not any(
            name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ
        ):  # else somebody has decided
            c.mallopt(
                -4, 0
            )  # M_MMAP_MAX: every piece lies in the heap; outside it would go back when it is freed
            c.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the end of the heap does not go back either
        c.malloc_trim  # not every C library has it
        return give_back
    except (OSError, AttributeError, TypeError):
        return lambda shape: None
