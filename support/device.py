"""The compute device: its number format, the transfer of batches to it, and its memory.

Images are transferred as bytes, a quarter of the size of floats, and normalised on the device.
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
    """The device `name`. "cuda" is GPU number `local_rank`; "auto" is "cuda" if there is a GPU.

    Raises InputError if PyTorch cannot use the device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local_rank}" if name == "cuda" else name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise InputError(f"--device {name}: not supported; use cpu, cuda or mps (Apple GPUs)")
        torch.zeros(1, device=device)
        if device.type == "cuda":
            # For operations without a device argument, such as communication between processes.
            torch.cuda.set_device(device)
            # No TF32, PyTorch's default for convolutions: it keeps 10 of fp32's 23 mantissa bits.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    except (RuntimeError, AssertionError) as error:  # AssertionError: PyTorch without CUDA
        if out_of_memory(error):
            raise  # the device exists, but its memory is full
        few = f"; this machine has {torch.cuda.device_count()} GPUs" if local_rank else ""
        raise InputError(
            f"--device {name}: PyTorch finds no such device{few}; use --device cpu"
        ) from None
    return device


# ---- number formats ----

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of --amp; "off" is float32


def default_amp(amp: str, device: torch.device) -> str:
    """The number format "bf16", "fp16" or "off": `amp`, unless it is "auto".

    "auto" is bf16 if the hardware has instructions for it; elsewhere bf16 is slower. fp16 is never
    the default: its largest number is 65504, and activations of VGG16 with Caffe's weights reach
    16,000 on nine images of KITTI and CamVid.
    """
    if amp != "auto":
        return amp
    if device.type == "cuda":
        # GPUs below compute capability 8.0 only emulate bf16.
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "off"
    if device.type == "cpu":
        return "bf16" if cpu_has("avx512_bf16", "amx_bf16") else "off"
    return "off"  # bf16 has not been measured on Apple's GPUs


def cpu_has(*flags: str) -> bool:
    """Whether the CPU has one of these instruction sets."""
    return any(map(torch.cpu.get_capabilities().get, flags))


def autocast_for(amp: str, device: torch.device) -> Callable:
    """A function that returns an autocast context for `amp`; "off" gives one without effect."""
    return nullcontext if amp == "off" else partial(torch.autocast, device.type, DTYPES[amp])


# ---- batches ----

MAX_WORKERS = 16  # eight read 350 KITTI images a second (docs/speed.md)


def default_workers(workers: int | str, device: torch.device) -> int:
    """The number of threads that load images: `workers`, unless it is "auto".

    "auto" is two on a CPU. On a GPU it is one per core, divided among the machine's processes.
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
    """The function to call in a new thread before it allocates pinned memory, or None.

    PyTorch's current GPU is per thread. Without the call, pinned memory would take memory of the
    first GPU.
    """
    return partial(torch.cuda.set_device, device) if device.type == "cuda" else None


def as_batch(image: np.ndarray, pin: bool = False) -> torch.Tensor:
    """Copy an image uint8 [H, W, 3] to a batch [1, 3, H, W], with `pin` in pinned memory.

    Adding the batch dimension before the permute makes the strides channels_last, the fastest
    layout for convolutions and pools.
    """
    return on_host(image[None], pin).permute(0, 3, 1, 2)


def on_host(array: np.ndarray, pin: bool) -> torch.Tensor:
    """Copy an array of bytes to a tensor. With `pin` it is in pinned memory, from which a GPU can
    copy asynchronously.
    """
    tensor = torch.empty(array.shape, dtype=torch.uint8, pin_memory=pin)
    tensor.numpy()[:] = array
    return tensor


def on_device(
    source: Iterable, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Copy batches to the device and prepare them for the network.

    source    yields images uint8 [N, 3, H, W] and labels uint8 [N, H, W] on the host

    Yields normalised images float32 and labels int64 of the same shapes, on the device. On CUDA, a
    separate stream copies the next batch during the computation. This overlap needs batches in
    pinned memory.
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
    # One extra turn yields the last batch.
    for batch in chain(source, [None]):
        following = start_copy(batch) if batch else None
        if ahead:
            images, labels, copied = ahead
            computing.wait_event(copied)
            for tensor in (images, labels):
                # The memory must not be reused before the computation is done.
                tensor.record_stream(computing)
            yield normalise(images), labels.long()
        ahead = following


@cache
def copy_stream(device: torch.device) -> torch.cuda.Stream:
    """The only stream for copying batches: PyTorch keeps separate memory for each stream."""
    return torch.cuda.Stream(device)


# ---- memory: a lower peak and faster allocation, with the same results ----


def checkpoint_activations(vgg: VGG16):
    """Keep only the pools from the forward pass, and recompute the rest in the backward pass.

    The gradients are the same bit for bit. A training step takes less memory and about a quarter
    more time.
    """

    def keep_input(block, x):
        return checkpoint(block, x, use_reentrant=False) if torch.is_grad_enabled() else block(x)

    for name in ("block1", "block2", "block3", "block4", "block5", "dense"):
        setattr(vgg, name, partial(keep_input, getattr(vgg, name)))


def tune_malloc(device: torch.device) -> Callable[[tuple], object]:
    """Make the C library keep freed memory for reuse, because mapping new pages is slow.

    A step frees and allocates gigabytes, mostly in blocks too large to be kept by default. On a
    CPU, keeping them makes a prediction 1.2 times as fast and a training step 1.1 times. This works
    only with glibc, Linux's usual C library; elsewhere nothing happens.

    Returns trim_memory, to be called after each step with the shape of its images. It returns free
    memory to the system if the shape has changed since the previous step: images of many sizes
    fragment the memory, and a run would grow from 2.8 to 5 GiB. It trims after the first step, when
    the memory used to read the checkpoint is free, and then at most every 30 seconds, since
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
            # Respect the user's settings in environment variables.
            if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
                # M_MMAP_MAX: keep all blocks on the heap; others go back to the system when freed.
                c.mallopt(-4, 0)
                # M_TRIM_THRESHOLD: keep the free end of the heap too.
                c.mallopt(-1, -1)
            if c.malloc_trim:  # AttributeError in other C libraries
                return trim_memory
        except (OSError, AttributeError, TypeError):
            pass
    return lambda shape: None
