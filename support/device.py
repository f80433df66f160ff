"""The device that computes, its number format, and the way of a batch to it.

Images travel as bytes, a quarter of the size of floats, and are normalised on the device.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from itertools import chain
from pathlib import Path
from typing import Callable, Iterable, Iterator

import torch

from fcn import FCN8s
from support.errors import InputError, out_of_memory
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
            torch.set_float32_matmul_precision("high")  # fp32: fc6, a matrix product, in TF32 as cuDNN's convolutions are
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch built without CUDA
        if out_of_memory(error):
            raise  # there is one, but others have filled it
        few = f"; there are {torch.cuda.device_count()} GPUs for the processes of this machine" if local else ""
        raise InputError(f"--device {name}: PyTorch has no such device here{few}; use --device cpu") from None
    return device


def use_bf16(amp: str, device: torch.device) -> bool:
    """Whether to compute in bf16: as told, or if the hardware has instructions for it (elsewhere bf16 is slower)."""
    if amp != "auto":
        return amp == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # older ones only emulate it
    if device.type != "cpu":
        return False  # Apple's GPUs: nobody has measured it
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", flags))


def autocast_for(amp: str, device: torch.device) -> Callable:
    """A context manager in which the forward pass computes in bf16, if `amp` is "bf16"; else one that changes nothing."""
    return (lambda: torch.autocast(device.type, torch.bfloat16)) if amp == "bf16" else nullcontext


def prepare_prediction(net: FCN8s, amp: str, device: torch.device) -> Callable:
    """The function from images, uint8 [N, 3, H, W], to scores [N, C, H, W]. It changes `net`: device, mode and type."""
    bf16 = use_bf16(amp, device)
    net.to(device, torch.bfloat16 if bf16 else None).eval()  # autocast alone would convert the weights for each picture

    def compute(images):
        with autocast_for("bf16" if bf16 else "off", device)():
            return net(normalise(images))  # tile by tile: as floats a large picture takes four times its bytes

    return compute


def on_device(source: Iterable, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of bytes to what the network takes: images float32 normalised, labels int64, both on the device.

    On CUDA the next batch is copied while the present one is computed: from pinned memory, on a stream of its own.
    """
    if device.type != "cuda":
        for images, labels in source:
            yield normalise(images.to(device)), labels.to(device).long()
        return
    copying = torch.cuda.Stream(device)
    computing = torch.cuda.current_stream(device)

    def start_copy(batch):
        with torch.cuda.stream(copying):
            images, labels = (tensor.pin_memory().to(device, non_blocking=True) for tensor in batch)
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


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, H, W] RGB to float32: 0..1, minus IMAGE_MEAN, over IMAGE_STD, as the ImageNet weights expect.

    Raises ValueError for other tensors: of floats nobody could tell whether they go from 0 to 1 or to 255.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}: they must be uint8 [N, 3, H, W]")
    mean, deviation = (255 * torch.tensor([IMAGE_MEAN, IMAGE_STD])).to(images.device)[:, None, :, None, None]
    return (images.float() - mean) / deviation
