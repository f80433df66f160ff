"""The device that computes, its number format, and the way of a batch to it.

Images travel as bytes, a quarter of the size of floats, and are normalised on the device.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Callable, Iterable, Iterator

import numpy as np
import torch

from fcn import FCN8s
from support.errors import InputError, out_of_memory
from support.int8 import to_int8
from vgg import IMAGE_MEAN, IMAGE_STD


def pick_device(name: str, local: int = 0) -> torch.device:
    """The device of this name; for "auto" or "cuda" the GPU with the number `local`. Raises InputError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local}" if name == "cuda" else name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise InputError(f"--device {name}: the devices here are cpu, cuda and mps (Apple's GPUs)")
        torch.zeros(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # for what asks for no device by name, such as communication between processes
            # No TF32: by default PyTorch's convolutions keep 10 of the 23 binary digits of fp32.
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch built without CUDA
        if out_of_memory(error):
            raise  # there is one, but others have filled it
        few = f"; there are {torch.cuda.device_count()} GPUs for the processes of this machine" if local else ""
        raise InputError(f"--device {name}: PyTorch has no such device here{few}; use --device cpu") from None
    return device


TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # of --amp; off: float32


def suited_amp(amp: str, device: torch.device) -> str:
    """What --amp comes to, "bf16", "fp16" or "off": as told, or for "auto" bf16 if the hardware has instructions for it.

    Elsewhere bf16 is slower. fp16 is never chosen by itself, since it has no numbers above 65504, and VGG16 with Caffe's
    weights comes to 16,000 on nine images of KITTI and CamVid.
    """
    if amp != "auto":
        return amp
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "off"  # older ones only emulate it
    if device.type != "cpu":
        return "off"  # Apple's GPUs: nobody has measured it
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "off"
    return "bf16" if re.search(r"\b(avx512_bf16|amx_bf16)\b", flags) else "off"


def autocast_for(amp: str, device: torch.device) -> Callable:
    """A function that makes a context manager in which the forward pass computes in the type of `amp`; in that for "off"
    nothing changes."""
    return nullcontext if amp == "off" else lambda: torch.autocast(device.type, TYPES[amp])


def prepare_prediction(net: FCN8s, amp: str, device: torch.device, largest: dict[str, float] | None = None) -> Callable:
    """The function from images, uint8 [N, 3, H, W], to scores [N, C, H, W]. It changes `net`: device, mode and type.

    amp        that of predict.py; for "int8" with the largest numbers of its maps (support/int8.py)

    Raises InputError where there is no int8.
    """
    int8, amp = amp == "int8", suited_amp("auto" if amp == "int8" else amp, device)
    if int8:
        to_int8(net, largest)  # first, from the weights as they are: a copy in bf16 would stay in the memory of the process
    net.to(device, TYPES.get(amp)).eval()  # autocast alone would convert the weights for each picture

    def compute(images):
        with autocast_for(amp, device)():
            return net(normalise(images))  # tile by tile: as floats a large picture takes four times its bytes

    return compute


def on_device(source: Iterable, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of bytes to what the network takes.

    source    yields images uint8 [N, 3, H, W] and labels uint8 [N, H, W], on the processor

    Yields images float32, normalised, and labels int64, of the same shapes, on the device. On CUDA the next batch is copied
    while the present one is computed, on a stream of its own, from the pinned memory in which `load_batches` has put it
    together. Only from there can a copy run while the processor does something else.
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
    for batch in chain(source, [None]):  # one more turn at the end, for the batch that is still ahead
        following = start_copy(batch) if batch else None
        if ahead:
            images, labels, copied = ahead
            computing.wait_event(copied)
            for tensor in (images, labels):
                tensor.record_stream(computing)  # its memory must not be reused before the computation is done
            yield normalise(images), labels.long()
        ahead = following


@cache
def copying_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream on which batches are copied: one, since PyTorch keeps memory for each stream that it has made."""
    return torch.cuda.Stream(device)


def as_batch(image: np.ndarray) -> torch.Tensor:
    """An image uint8 [H, W, 3] as a batch [1, 3, H, W], a copy.

    The new dimension comes first: so the strides say channels_last, in which convolutions and pools are fastest.
    """
    return torch.tensor(image)[None].permute(0, 3, 1, 2)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, H, W] RGB to float32: 0..1, minus IMAGE_MEAN, over IMAGE_STD, as the ImageNet weights expect.

    Raises ValueError for other tensors: of floats nobody could tell whether they go from 0 to 1 or to 255.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}: they must be uint8 [N, 3, H, W]")
    # non_blocking: without it, the processor waits here until the GPU has done all that it was told before.
    numbers = (255 * torch.tensor([IMAGE_MEAN, IMAGE_STD])).to(images.device, non_blocking=images.is_cuda)
    mean, deviation = numbers[:, None, :, None, None]
    return (images.float() - mean) / deviation
