"""The device that computes, its number format, the way of a batch to it, and its memory.

Images travel as bytes, a quarter of the size of floats, and are normalised on the device.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from itertools import chain

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from support.console import InputError, out_of_memory
from vgg import VGG16, normalise


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of this name; for "auto" or "cuda" the GPU with the number `local_rank`.

    Raises InputError if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise InputError(
                f"--device {name}: the devices here are cpu, cuda and mps (Apple's GPUs)"
            )
        torch.zeros(1, device=device)
        if device.type == "cuda":
            # For operations that take no device, such as communication between processes.
            torch.cuda.set_device(device)
            # No TF32: by default PyTorch's convolutions keep 10 of the 23 binary digits of fp32.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch built without CUDA
        if out_of_memory(error):
            raise  # the device is there, but its memory is full
        few = f"; this machine has {torch.cuda.device_count()} GPUs" if local_rank else ""
        raise InputError(
            f"--device {name}: PyTorch has no such device here{few}; use --device cpu"
        ) from None
    return device


# ---- number formats ----

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of --amp; off: float32


def default_amp(amp: str, device: torch.device) -> str:
    """The number format, "bf16", "fp16" or "off": `amp` itself, or for "auto" bf16 if the hardware
    has instructions for it.

    Elsewhere bf16 is slower. fp16 is never a default, since it has no numbers above 65504, and
    VGG16 with Caffe's weights reaches 16,000 on nine images of KITTI and CamVid.
    """
    if amp != "auto":
        return amp
    if device.type == "cuda":
        # Older GPUs than of capability 8.0 only emulate it.
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "off"
    if device.type == "cpu":
        return "bf16" if cpu_has("avx512_bf16", "amx_bf16") else "off"
    return "off"  # bf16 has not been measured on Apple's GPUs


def cpu_has(*flags: str) -> bool:
    """Whether the processor has one of these instruction sets."""
    return any(map(torch.cpu.get_capabilities().get, flags))


def autocast_for(amp: str, device: torch.device) -> Callable:
    """A function that makes a context manager in which the forward pass computes in the type of
    `amp`; for "off" it changes nothing.
    """
    return nullcontext if amp == "off" else partial(torch.autocast, device.type, DTYPES[amp])


# ---- batches ----

MAX_WORKERS = 16  # eight read 350 of KITTI's images a second (docs/speed.md)


def default_workers(workers: int | str, device: torch.device) -> int:
    """How many threads load images: `workers` itself, or for "auto" two beside a processor that
    computes, and for a GPU one for each core, divided among the processes of this machine.
    """
    if workers != "auto":
        return workers
    if device.type == "cpu":
        return 2
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 2), MAX_WORKERS)


def thread_initializer(device: torch.device) -> Callable[[], object] | None:
    """A function for each new thread that takes pinned memory for this device, or None.

    PyTorch has a current GPU per thread; pinned memory would take some of the first GPU's.
    """
    return partial(torch.cuda.set_device, device) if device.type == "cuda" else None


def as_batch(image: np.ndarray, pin: bool = False) -> torch.Tensor:
    """An image uint8 [H, W, 3] as a batch [1, 3, H, W], a copy; with `pin` in pinned memory.

    The new dimension comes first: so the strides say channels_last, in which convolutions and pools
    are fastest.
    """
    return on_host(image[None], pin).permute(0, 3, 1, 2)


def on_host(array: np.ndarray, pin: bool = False) -> torch.Tensor:
    """A copy of an array of bytes as a tensor; with `pin` in pinned memory, from which a GPU can
    copy while the processor goes on.
    """
    tensor = torch.empty(array.shape, dtype=torch.uint8, pin_memory=pin)
    tensor.numpy()[:] = array
    return tensor


def on_device(
    source: Iterable, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of bytes to what the network takes.

    source    yields images uint8 [N, 3, H, W] and labels uint8 [N, H, W], on the host

    Yields images float32, normalised, and labels int64, of the same shapes, on the device. On CUDA
    the next batch is copied while the present one is computed, on a stream of its own. That takes
    batches in pinned memory: only from there can a copy run while the processor does something
    else.
    """
    if device.type != "cuda":
        for images, labels in source:
            yield normalise(images.to(device)), labels.to(device).long()
        return
    copying = copy_stream(device)
    computing = torch.cuda.current_stream(device)

    def start_copy(batch):
        with torch.cuda.stream(copying):
            images, labels = (tensor.to(device, non_blocking=True) for tensor in batch)
            return images, labels, copying.record_event()

    ahead = None
    # One more turn at the end, for the batch that is still ahead.
    for batch in chain(source, [None]):
        following = start_copy(batch) if batch else None
        if ahead:
            images, labels, copied = ahead
            computing.wait_event(copied)
            for tensor in (images, labels):
                # Its memory must not be reused before the computation is done.
                tensor.record_stream(computing)
            yield normalise(images), labels.long()
        ahead = following


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which batches are copied: one, since PyTorch keeps memory for each stream that
    it has made.
    """
    return torch.cuda.Stream(device)


# ---- memory: a lower peak and faster allocation, with the same results ----


def checkpoint_activations(vgg: VGG16):
    """Keep only the pools from the forward pass, and compute the rest again in the backward pass.

    The gradients are the same bit for bit. A training step takes less memory and about a quarter
    more time.
    """

    def keep_input(block, x):
        return checkpoint(block, x, use_reentrant=False) if torch.is_grad_enabled() else block(x)

    for name in ("block1", "block2", "block3", "block4", "block5", "dense"):
        setattr(vgg, name, partial(keep_input, getattr(vgg, name)))


def tune_malloc(device: torch.device) -> Callable[[tuple], object]:
    """Make the process keep the memory that it frees, to use it again: the system hands out new
    memory page by page.

    A step frees and allocates gigabytes, most of it in pieces too large for the C library to keep
    by default. On a CPU this makes a prediction 1.2 times as fast and a training step 1.1 times. It
    works with Linux's usual C library only; elsewhere nothing happens.

    Returns trim_memory, to be called after each step with the shape of its images. If the shape is
    new, it returns free memory to the system: with images of many sizes, more and more lies in gaps
    too small to be used, and a run would grow from 2.8 to 5 GiB. It does so after the first step,
    when the memory in which the checkpoint was read is free, and then once in 30 seconds at most:
    allocating a gigabyte again takes a quarter of a second.
    """
    before, trimmed = None, -math.inf

    def trim_memory(shape):
        nonlocal before, trimmed
        if shape != before and time.monotonic() > trimmed + 30:
            c.malloc_trim(0)
            trimmed = time.monotonic()
        before = shape

    if device.type == "cpu":
        try:
            c = ctypes.CDLL(None)
            # The user may have tuned it by environment variables.
            if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
                # M_MMAP_MAX: every piece lies in the heap; outside it would go back when freed.
                c.mallopt(-4, 0)
                # M_TRIM_THRESHOLD: the end of the heap does not go back either.
                c.mallopt(-1, -1)
            if c.malloc_trim:  # AttributeError where the C library has none
                return trim_memory
        except (OSError, AttributeError, TypeError):
            pass
    return lambda shape: None
