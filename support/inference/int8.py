"""VGG16 in 8-bit integers: for prediction on a processor, twice as fast as in bf16, with weights of
half the size.

A map after a ReLU holds numbers from 0 to some largest one. Divide that range into 255 steps, and a
byte says how many steps a number has:

    q = round(x / s),  s = largest / 255,    q in 0 ... 255        one step s for each map
    w = round(W / t),  t = largest |W| / 127,  w in -127 ... 127   one step t for each output channel

A convolution of the bytes is exact, since it adds up whole numbers in 32 bits. Times s * t it is
the convolution of the numbers that the bytes stand for. Bias, ReLU and the division by the next
map's step follow in the same pass, and one rounding. So each map is rounded once, by half a step at
most, and each weight once and for all. Pools need no arithmetic: the largest of four bytes is one
of them.

The first and the last layers differ. The image has numbers of both signs, so byte 114 stands for 0
there, also in the padding. The score layers and the upsampling compute in floating point: they
decide between classes, where a step would show, and they are small.

How large the numbers of a map become is found on images (`Largest`). Larger ones are cut off at
255.

The operators are those into which PyTorch's own compiler translates quantised networks for x86.
They have no documented interface; the documented ones (torch.ao) are to be deleted, and their
successor is another package. So this file asks whether they are there, and tests/test_int8.py
whether they compute what is said here.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from fcn import FCN8s
from support.console import InputError
from vgg import IMAGE_MEAN, IMAGE_STD, VGG16


def refuse_without_int8(device: torch.device = torch.device("cpu")):
    """Raise InputError where int8 would not be faster, or not be there: without an x86 processor
    with VNNI instructions, or in a PyTorch without these operators. Some of them have a fallback
    that is 70 times as slow, and says nothing.
    """
    if device.type != "cpu":
        raise InputError(
            f"--amp int8: is for processors, not for {device}; add --device cpu, or leave out --amp"
        )
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        flags = ""
    if not re.search(r"\b(avx512_vnni|avx_vnni|amx_int8)\b", flags):
        raise InputError(
            "--amp int8: this processor has no instructions for it (VNNI); leave out --amp"
        )
    if not all(
        hasattr(torch.ops.onednn, name) for name in ("qconv2d_pointwise", "qlinear_pointwise")
    ):
        raise InputError(
            f"--amp int8: PyTorch {torch.__version__} has no operators for it; leave out --amp"
        )


class Largest(dict):
    """The largest number in the map of each convolution of VGG16, after its ReLU, by the layer's
    name. In a with block: of all images that the network computes there. They should be of the kind
    that it is for; a few dozen are enough.
    """

    def __init__(self, net: FCN8s):
        self.layers = [
            (name, layer)
            for name, layer in net.vgg.named_children()
            if isinstance(layer, nn.Conv2d)
        ]

    def __enter__(self) -> Largest:
        def look(name):
            return lambda layer, inputs, output: self.update(
                {name: max(self.get(name, 0.0), output.max().item())}
            )

        self.hooks = [layer.register_forward_hook(look(name)) for name, layer in self.layers]
        return self

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()


def to_int8(net: FCN8s, largest: dict[str, float]) -> FCN8s:
    """Lets a network on the processor compute VGG16 in 8 bits, in place; the rest stays in the type
    of its weights, float32 or bfloat16. It can predict, not train, and has no state dict any more.

    largest    see `Largest`, or what best.pt holds under this name

    Raises InputError where that would not be faster, or is not there.
    """
    refuse_without_int8()
    net.vgg = Int8VGG16(net.vgg, largest)
    return net.eval()


PART = 128  # output channels whose weights are converted at a time: all of fc6 in float would take 0.4 GB more

# The steps of an image that was normalised: bytes 0 ... 255 stand for the darkest to the brightest
# number of any channel.
DARKEST = min(-mean / std for mean, std in zip(IMAGE_MEAN, IMAGE_STD))
BRIGHTEST = max((1 - mean) / std for mean, std in zip(IMAGE_MEAN, IMAGE_STD))
IMAGE_STEP = (BRIGHTEST - DARKEST) / 255
IMAGE_ZERO = round(-DARKEST / IMAGE_STEP)  # 114


class Int8VGG16(nn.Module):
    """What VGG16 computes, up to the rounding described above: normalised images [N, 3, H, W] float
    to pool3, pool4 and fc7 of the same type.

    vgg        its weights are copied
    largest    see `Largest`
    """

    def __init__(self, vgg: VGG16, largest: dict[str, float]):
        super().__init__()
        self.layers, self.steps, step, zero = [], {}, IMAGE_STEP, IMAGE_ZERO
        for name, layer in vgg.named_children():
            if isinstance(layer, nn.Conv2d):
                after = max(largest[name], 1e-6) / 255
                self.layers.append(
                    (name, (Int8Dense if name == "fc7" else Int8Conv2d)(layer, step, zero, after))
                )
                step, zero = after, 0
            else:
                self.layers.append((name, pool))
            self.steps[name] = step

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, maps = (image / IMAGE_STEP + IMAGE_ZERO).round().clamp(0, 255).to(torch.uint8), {}
        for name, layer in self.layers:
            x = layer(x)
            if name in ("pool3", "pool4", "fc7"):
                maps[name] = x.to(image.dtype) * self.steps[name]
        return maps["pool3"], maps["pool4"], maps["fc7"]


class Int8Conv2d:
    """A convolution and its ReLU: bytes to bytes [N, C, H, W] in channels_last.

    before, zero    the step of the input, and the byte that stands for 0 in it
    after           the step of the output, in which byte 0 stands for 0
    """

    def __init__(self, layer: nn.Conv2d, before: float, zero: int, after: float):
        whole = torch.empty(layer.weight.shape, dtype=torch.int8)
        self.steps = torch.empty(layer.out_channels)  # t, float [O]
        for part, w, t in zip(
            layer.weight.detach().split(PART), whole.split(PART), self.steps.split(PART)
        ):
            t[:] = part.float().abs().amax((1, 2, 3)).clamp(min=1e-12) / 127
            w[:] = (part.float() / t[:, None, None, None]).round()
        self.bias, self.zeros = (
            layer.bias.detach().float(),
            torch.zeros(layer.out_channels, dtype=torch.int32),
        )
        self.before, self.zero, self.after = before, zero, after
        self.stride, self.padding = list(layer.stride), list(layer.padding)
        self.weight = self.packed(whole)

    def packed(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.onednn.qconv_prepack(
            weight, self.steps, self.before, self.zero, self.stride, self.padding, [1, 1], 1
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.onednn.qconv2d_pointwise(
            x,
            self.before,
            self.zero,
            self.weight,
            self.steps,
            self.zeros,
            self.bias,
            self.stride,
            self.padding,
            [1, 1],
            1,
            self.after,
            0,
            torch.uint8,
            "relu",
            [],
            "",
        )


class Int8Dense(Int8Conv2d):
    """The same for a kernel of 1 x 1 as a matrix product: for fc7 with 4096 channels 40 times as
    fast as the convolution.
    """

    def packed(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.onednn.qlinear_prepack(weight.flatten(1), None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.permute(0, 2, 3, 1)
        flat = torch.ops.onednn.qlinear_pointwise(
            rows.flatten(0, 2),
            self.before,
            self.zero,
            self.weight,
            self.steps,
            self.zeros,
            self.bias,
            self.after,
            0,
            torch.uint8,
            "relu",
            [],
            "",
        )
        return flat.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)


def pool(x: torch.Tensor) -> torch.Tensor:
    """VGG16's pools, which round up, for bytes."""
    return torch.ops.quantized.max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], True)
