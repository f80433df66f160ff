"""What an H100 could reach with this network at best, layer by layer: the cost model behind docs/gpu.md.

    python -m support.roofline > docs/gpu.md

Each operation has to start, to compute, and to move bytes between the GPU and its memory. It takes at least the longest of
these times: that is the roofline (Williams, Waterman and Patterson 2009). No kernel reaches it in full, so a measured time
is longer; one that is far longer shows where something is to be gained.

This is for bf16, images in channels_last, and PyTorch without its compiler: every ReLU, cast and copy is an operation of its
own, which reads and writes its map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from fcn import FCN8s
from support.arguments import Parser
from support.dense import DenseConv2d
from support.start import FROZEN_ROAD, freeze
from vgg import size_after

COMPUTE = 790e12  # operations a second in bf16, of 989e12 on paper: what large matrix products are said to reach on an H100
MEMORY = 3.3e12   # bytes a second
START = 3e-6      # seconds that an operation takes at least, however small
HALF, FULL = 2, 4  # bytes of a bf16 and of an fp32 number


class Operation(NamedTuple):
    """One operation: its layer, what it is, how many floating point operations, and how many bytes it reads and writes."""
    layer: str
    what: str
    flop: float
    bytes: float

    @property
    def seconds(self) -> float:
        return max(self.flop / COMPUTE, self.bytes / MEMORY, START)

    @property
    def bound(self) -> str:
        return {self.flop / COMPUTE: "compute", self.bytes / MEMORY: "memory", START: "start"}[self.seconds]


class Count:
    """Collects the operations of some layers on a batch, in `found`. A shape is (channels, height, width) of a map."""

    def __init__(self, batch: int, training: bool):
        self.batch, self.training, self.found = batch, training, []
        self.learning = False  # whether a layer before this one learns, so that the gradient has to be passed back to it

    def add(self, layer: str, what: str, flop: float, bytes: float):
        self.found.append(Operation(layer, what, flop, bytes))

    def convolution(self, name, layer, shape):
        """A convolution, transposed or not, of a map of this shape. Returns the shape of its output."""
        channels, height, width = shape
        out = layer.out_channels, size_after(layer, height), size_after(layer, width)
        kernel, weights = layer.kernel_size[0], layer.weight.numel()
        cells = height * width if isinstance(layer, nn.ConvTranspose2d) else out[1] * out[2]
        flop = 2 * self.batch * cells * weights
        read, written = self.batch * channels * height * width * HALF, self.batch * out[0] * out[1] * out[2] * HALF
        rows = self.batch * cells * channels * kernel ** 2 * HALF if kernel == 7 else 0  # fc6: its windows, written and read
        product = isinstance(layer, DenseConv2d)  # it adds its bias itself; a convolution leaves that to a second operation
        if self.training:  # the weights are kept in fp32; a prediction holds them in bf16
            self.add(name, "weight to bf16", 0, weights * (FULL + HALF))
        if rows:
            self.add(name, "windows", 0, read + rows)
        if kernel == 3:  # cuDNN wants it in channels_last, as the images are
            self.add(name, "weight to channels_last", 0, weights * 2 * HALF * (2 if self.training else 1))
        self.add(name, "forward", flop, (rows or read) + weights * HALF + written)
        if layer.bias is not None and not product:
            self.add(name, "bias", 0, 2 * written)
        if self.training and layer.weight.requires_grad:
            self.add(name, "gradient of the weight", flop, (rows or read) + written + weights * HALF)
            self.add(name, "gradient to fp32", 0, weights * (HALF + FULL))
            if kernel == 3:
                self.add(name, "gradient laid out as its weight", 0, weights * 2 * FULL)
            if layer.bias is not None:
                self.add(name, "gradient of the bias", 0, written)
        if self.learning:
            self.add(name, "gradient of the input", flop, written + weights * HALF + (rows or read))
        if self.learning and rows:
            self.add(name, "gradient of the windows", 0, rows + read)
        self.learning = self.learning or self.training and layer.weight.requires_grad
        return out

    def relu(self, name, shape):
        numbers = self.batch * torch.Size(shape).numel()
        self.add(name, "ReLU", 0, 2 * numbers * HALF)
        if self.learning:
            self.add(name, "ReLU backward", 0, 3 * numbers * HALF)
            if name.startswith("fc"):  # the mask has a byte for each number
                self.add(name, "dropout", 0, numbers * (2 * HALF + 1))
                self.add(name, "dropout backward", 0, numbers * (2 * HALF + 1))

    def scale(self, name, shape):
        """A skip times its factor; and backward, where its gradient is added to that of the next block."""
        numbers = self.batch * torch.Size(shape).numel()
        self.add(name, "times its factor", 0, 2 * numbers * HALF)
        if self.learning:
            self.add(name, "times its factor, backward", 0, 2 * numbers * HALF)
            self.add(name, "sum of two gradients", 0, 3 * numbers * HALF)

    def pool(self, name, layer, shape):
        out = shape[0], size_after(layer, shape[1]), size_after(layer, shape[2])
        before, after = (self.batch * torch.Size(s).numel() for s in (shape, out))
        self.add(name, "forward", 0, before * HALF + after * (HALF + 8))  # 8: where each maximum was
        if self.learning:
            self.add(name, "backward", 0, after * (HALF + 8) + before * HALF)
        return out


def operations(net: FCN8s, batch: int, size: tuple[int, int], training: bool) -> list[Operation]:
    """All operations of a prediction, or of a training step, on `batch` images of this size (height, width)."""
    count, maps, learning = Count(batch, training), {}, {}  # of each layer's output: the shape, and whether it has a gradient
    shape = (3, *size)
    for what, width in (("to fp32", 1), ("minus the mean", FULL), ("over the deviation", FULL)):
        count.add("image", what, 0, batch * torch.Size(shape).numel() * (width + FULL))
    count.add("image", "to bf16", 0, batch * torch.Size(shape).numel() * (FULL + HALF))
    for name, layer in net.vgg.named_children():
        if isinstance(layer, nn.Conv2d):
            shape = count.convolution(name, layer, shape)
            count.relu(name, shape)
        else:
            shape = count.pool(name, layer, shape)
        maps[name], learning[name] = shape, count.learning
    shape = count.convolution("score_fr", net.score_fr, shape)
    count.convolution("upscore2", net.upscore2, shape)
    count.learning = learning["pool4"]
    count.scale("pool4", maps["pool4"])
    count.convolution("score_pool4", net.score_pool4, maps["pool4"])
    count.learning = training
    count.convolution("upscore_pool4", net.upscore_pool4, (shape[0], *maps["pool4"][1:]))  # cut to the size of pool4
    count.learning = learning["pool3"]
    count.scale("pool3", maps["pool3"])
    count.convolution("score_pool3", net.score_pool3, maps["pool3"])
    count.learning = training
    count.convolution("upscore8", net.upscore8, (shape[0], *maps["pool3"][1:]))
    pixels = batch * size[0] * size[1]
    scores = shape[0] * pixels
    if training:
        count.add("loss", "labels to int64", 0, pixels * (1 + 8))
        count.add("loss", "scores to fp32", 0, scores * (HALF + FULL))
        count.add("loss", "log-softmax", 0, scores * 2 * FULL)
        count.add("loss", "its entry of the true class", 0, pixels * (FULL + 8))
        count.add("loss", "gradient of the entry", 0, scores * FULL + pixels * 8)
        count.add("loss", "log-softmax backward", 0, scores * 3 * FULL)
        count.add("loss", "gradient to bf16", 0, scores * (FULL + HALF))
        learnt = sum(p.numel() for p in net.parameters() if p.requires_grad)
        count.add("update", "norm of the gradient", 0, learnt * FULL)
        count.add("update", "clipping", 0, learnt * 2 * FULL)
        count.add("update", "fused SGD", 0, learnt * 5 * FULL)  # reads weight, gradient, momentum; writes weight and momentum
    else:
        count.add("result", "most probable class", 0, scores * HALF + pixels * 8)
        count.add("result", "class to a byte", 0, pixels * (8 + 1))
    return count.found


def table(found: list[Operation]) -> str:
    """Layer by layer: work, time at the roofline, and the share of it in which the GPU computes at its rate."""
    total = sum(o.seconds for o in found)
    lines = ["| | GFLOP | MB | ms | of the time | of the rate | most of its time goes to |", "| --- " * 7 + "|"]
    for layer in [*dict.fromkeys(o.layer for o in found), "all"]:
        mine = [o for o in found if layer in ("all", o.layer)]
        seconds, flop = sum(o.seconds for o in mine), sum(o.flop for o in mine)
        longest = max(mine, key=lambda o: o.seconds)
        most = f"{longest.what} ({longest.bound})" if layer != "all" else ", ".join(
            f"{bound} {sum(o.seconds for o in mine if o.bound == bound) / seconds:.0%}"
            for bound in ("compute", "memory", "start"))
        lines.append(f"| {layer} | {flop / 1e9:,.1f} | {sum(o.bytes for o in mine) / 1e6:,.0f} | {1000 * seconds:.3f} | "
                     f"{seconds / total:.1%} | {flop / COMPUTE / seconds:.0%} | {most} |")
    return "\n".join(lines)


def page() -> str:
    with torch.device("meta"):  # shapes alone
        net, learning = FCN8s(2), FCN8s(2)
    freeze(net.vgg, FROZEN_ROAD)  # as train.py does for a road
    learnt = sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6
    parts = []
    for title, batch, size, training in (("A training step, 8 images of 352 x 1216", 8, (352, 1216), True),
                                         ("A training step, 1 image of 352 x 1216", 1, (352, 1216), True),
                                         ("A prediction, 1 image of 375 x 1242", 1, (375, 1242), False)):
        found = operations(net, batch, size, training)
        seconds, flop = sum(o.seconds for o in found), sum(o.flop for o in found)
        memory = sum(o.seconds for o in found if o.bound == "memory")
        all_learn = sum(o.seconds for o in operations(learning, batch, size, training))
        all_learn = f" If all layers learnt (--freeze 0), it would be {1000 * all_learn:.2f} ms." * training
        parts.append(f"## {title}\n\nAt least {1000 * seconds:.2f} ms, at most {batch / seconds:,.0f} images a second and "
                     f"{flop / COMPUTE / seconds:.0%} of the rate.\n{memory / seconds:.0%} of the time goes to operations that "
                     f"the memory limits.{all_learn}\n\n{table(found)}\n")
    return TEXT.format(compute=COMPUTE / 1e12, memory=MEMORY / 1e12, start=START * 1e6, learnt=learnt) + "\n" + "\n".join(parts)


TEXT = """# What a GPU could reach

Made by `python -m support.roofline`. Nothing on this page has been measured. It assumes an H100 that computes
{compute:.0f} TFLOP/s in bf16 (the rate; on paper it is 989), moves {memory} TB/s between the GPU and its memory, and
takes {start:.0f} microseconds to start an operation. Each operation takes at least the longest of its three times.
`make gpu` measures what is really reached.

**What takes more time than its computing needs.** conv1_1 and conv1_2 with their ReLUs and pool1: their maps are as large
as the image with 64 channels, and there is little to compute for each number. Training computes them forward alone, since
the first blocks stay as ImageNet left them (`--freeze`). And the update: it moves {learnt:.0f} million
weights, whatever the batch, so a batch of 1 spends far more of its time on it than a batch of 8. fc6 has three quarters
of the weights. With one image, moving them takes most of its time; with eight, computing does.

**What would help.** `--compile` fuses bias, ReLU and their neighbours into one operation; that saves less than half of
the traffic of the first block. A larger batch shares the update, the casts and the start of the operations. 512 channels
in fc6 and fc7, as without ImageNet's dense layers, save four fifths of the update.
"""


if __name__ == "__main__":
    Parser("roofline.py", description=__doc__).parse_args()
    print(page(), end="")
