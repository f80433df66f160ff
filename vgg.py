"""python vgg.py: print the network's layers, their shapes, and where each one looks.

VGG16 (Simonyan and Zisserman 2015, configuration D) as a fully convolutional network: the trunk of FCN-8s.

The classification network ends in dense layers, which fix the size of the input to 224 x 224. A dense layer that
reads a 512 x 7 x 7 map is a 7 x 7 convolution that happens to be applied once; written as a convolution (fc6, fc7) it
can be applied at every position of a map of any size. That is the step from a classifier to a segmenter (Long,
Shelhamer and Darrell 2015, section 3.1). The last dense layer, which names ImageNet's 1000 classes, is dropped.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Callable, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

# What the ImageNet weights expect: RGB in 0..1, minus this mean, divided by this standard deviation.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)
PART = 512  # outputs of a dense layer whose weights are turned to bf16 at a time, see `Product`


class InputError(Exception):
    """Something given by the user cannot be used. The message is one line: what, where, and how to mend it."""

    def __str__(self):
        return super().__str__().replace("\n", "\\n").replace("\r", "\\r")  # a file's name may have them


class Grid(NamedTuple):
    """Where the cells of a map lie in the image, and how far they see: cell i is centred on pixel
    `stride * i + offset`, and no pixel farther than `reach` from there has a part in it (half the receptive field).

    The same holds for rows and columns, for every input size. Pixel 0 has its centre at 0; the image itself is
    Grid(1, 0, 0). Offsets and reaches are whole or half pixels, so that floats hold them exactly.

    Output i of a convolution or pool with kernel k, stride s and padding p reads the inputs s*i - p ... s*i - p + k-1;
    the middle of these is s*i + (k-1)/2 - p. A transposed convolution is the same picture seen from the other side:
    its input i paints the outputs s*i - p ... s*i - p + k-1. With m = (k-1)/2 - p, on a map with Grid(S, O, R):

        convolution or pool      Grid(S*s, O + S*m,   R + S*(k-1)/2)
        transposed convolution   Grid(S/s, O - S/s*m, R + S/s*(k-1)/2)
    """

    stride: int
    offset: float
    reach: float

    def after(self, layer: nn.Module) -> Grid:
        """The grid of the layer's output, where this is the grid of its input. Geometry is read off the layer."""
        kernel, stride, padding = (v if isinstance(v, int) else v[0]
                                   for v in (layer.kernel_size, layer.stride, layer.padding))
        half = (kernel - 1) / 2
        if isinstance(layer, nn.ConvTranspose2d):
            finer = self.stride // stride
            return Grid(finer, self.offset - finer * (half - padding), self.reach + finer * half)
        return Grid(self.stride * stride, self.offset + self.stride * (half - padding), self.reach + self.stride * half)


IMAGE = Grid(stride=1, offset=0, reach=0)


class Dense(nn.Conv2d):
    """A dense layer applied at every position: what nn.Conv2d of stride 1 computes, [N, C, H, W] to [N, O, H', W'].

    A convolution is a matrix product: one row for each position, holding the window seen from there, times the
    weights. For fc6 that is also the fast way to compute it: its 102 million weights meet only a few hundred
    positions, and the library's convolution, made for the reverse, takes two to four times as long on a processor.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, p = self.kernel_size[0], self.padding[0]
        windows = F.pad(x, (p, p, p, p)).unfold(2, k, 1).unfold(3, k, 1)        # [N, C, H', W', k, k]
        rows = windows.permute(0, 2, 3, 1, 4, 5).flatten(3)                     # [N, H', W', C*k*k]
        product = Product.apply(rows.flatten(0, 2), self.weight.flatten(1), self.bias)
        return product.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)


class Product(torch.autograd.Function):
    """rows [P, I] times weight [O, I], transposed, plus bias [O]: [P, O], and how that is differentiated.

    F.linear computes the same. Here rows may be bf16 and the weight fp32, and only a part of the weight is turned to
    bf16 at a time. So neither a copy of fc6's weight in bf16 is kept from the forward to the backward pass, nor one of
    its gradient made: 0.4 GB less at the most memory that a training step takes.
    """

    @staticmethod
    def forward(ctx, rows, weight, bias):
        ctx.save_for_backward(rows, weight)
        products = [F.linear(rows, part.to(rows.dtype)) for part in weight.split(PART)]
        return torch.cat(products, dim=1) + bias.to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        grad_rows, grad_weight = torch.zeros_like(rows, dtype=weight.dtype), torch.empty_like(weight)
        for part, out, g in zip(weight.split(PART), grad_weight.split(PART), grad.split(PART, 1)):
            grad_rows += g @ part.to(rows.dtype)  # out = rows @ weight.T, hence d loss / d rows = grad @ weight
            out.copy_(g.t() @ rows)               # and d loss / d weight = grad.T @ rows
        return grad_rows.to(rows.dtype), grad_weight, grad.sum(0, dtype=weight.dtype)


class VGG16(nn.Module):
    """Image [N, 3, H, W] float, normalised, H and W >= 1, to the maps that FCN scores: (pool3, pool4, fc7).

    pad          padding of conv1_1. 1 is VGG16's own. The authors of FCN used 100, a border so wide that the 7 x 7
                 window of fc6, which has no padding there, fits even an image of one pixel (from 97 on it does).
                 With pad=1 fc6 has padding 3 instead, and computes one cell for each cell of pool5.
    width        factor on the channels of the thirteen convolutions (64 ... 512), for tests and small machines
    fc_channels  channels of fc6 and fc7
    dropout      share of the single elements (not whole channels) after fc6 and fc7 that training sets to zero

    Setting the attribute `recompute` to True trades time for memory in training: each block is computed a second time in
    the backward pass, so that only the pools have to be kept until then. The gradients are the same.

    `grid` maps each layer's name to the Grid of its output:

        layer             pad=1         pad=100
        conv1_1, conv1_2   i             i -  99
        pool1             2i +  0.5     2i -  98.5
        pool2             4i +  1.5     4i -  97.5
        pool3             8i +  3.5     8i -  95.5
        pool4            16i +  7.5    16i -  91.5
        pool5            32i + 15.5    32i -  83.5
        fc6, fc7         32i + 15.5    32i +  12.5

    Fresh weights are He-normal (He et al. 2015, section 2.2) with zero biases. Raises ValueError for any other pad,
    or a width or fc_channels that leaves no channel.
    """

    def __init__(self, pad: int = 1, width: float = 1.0, fc_channels: int = 4096, dropout: float = 0.5):
        super().__init__()
        self.dropout, self.recompute = dropout, False
        if pad != 1 and pad < 97:
            raise ValueError(f"pad is {pad}: it must be 1 (no border) or at least 97 (fc6 fits the smallest image)")
        if not width > 0 or fc_channels < 1:
            raise ValueError(f"width is {width} and fc_channels {fc_channels}: both must be positive")
        c1, c2, c3, c4 = (max(1, round(width * channels)) for channels in (64, 128, 256, 512))

        # In the order of the forward pass: the grids below are accumulated along it.
        self.conv1_1 = nn.Conv2d(3, c1, kernel_size=3, padding=pad)
        self.conv1_2 = nn.Conv2d(c1, c1, kernel_size=3, padding=1)
        self.pool1 = nn.MaxPool2d(2, stride=2, ceil_mode=True)  # Caffe's pools round up: no row is lost

        self.conv2_1 = nn.Conv2d(c1, c2, kernel_size=3, padding=1)
        self.conv2_2 = nn.Conv2d(c2, c2, kernel_size=3, padding=1)
        self.pool2 = nn.MaxPool2d(2, stride=2, ceil_mode=True)

        self.conv3_1 = nn.Conv2d(c2, c3, kernel_size=3, padding=1)
        self.conv3_2 = nn.Conv2d(c3, c3, kernel_size=3, padding=1)
        self.conv3_3 = nn.Conv2d(c3, c3, kernel_size=3, padding=1)
        self.pool3 = nn.MaxPool2d(2, stride=2, ceil_mode=True)

        self.conv4_1 = nn.Conv2d(c3, c4, kernel_size=3, padding=1)
        self.conv4_2 = nn.Conv2d(c4, c4, kernel_size=3, padding=1)
        self.conv4_3 = nn.Conv2d(c4, c4, kernel_size=3, padding=1)
        self.pool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)

        self.conv5_1 = nn.Conv2d(c4, c4, kernel_size=3, padding=1)
        self.conv5_2 = nn.Conv2d(c4, c4, kernel_size=3, padding=1)
        self.conv5_3 = nn.Conv2d(c4, c4, kernel_size=3, padding=1)
        self.pool5 = nn.MaxPool2d(2, stride=2, ceil_mode=True)

        # The dense layers: 4096 x (512*7*7) and 4096 x 4096 numbers, in convolutional shape.
        self.fc6 = Dense(c4, fc_channels, kernel_size=7, padding=3 if pad == 1 else 0)
        self.fc7 = Dense(fc_channels, fc_channels, kernel_size=1)

        self.channels = {"pool3": c3, "pool4": c4, "fc7": fc_channels}
        self.grid = {}
        grid = IMAGE
        for name, layer in self.named_children():
            grid = self.grid[name] = grid.after(layer)
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        compute = recomputed if self.recompute and torch.is_grad_enabled() else lambda block, x: block(x)
        pool1 = compute(self.block1, x)
        pool2 = compute(self.block2, pool1)
        pool3 = compute(self.block3, pool2)
        pool4 = compute(self.block4, pool3)
        pool5 = compute(self.block5, pool4)
        fc7 = compute(self.dense, pool5)
        return pool3, pool4, fc7

    # ReLU works in place: a convolution does not need its own output to learn, and the maps are large.

    def block1(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1_1(image), inplace=True)
        x = F.relu(self.conv1_2(x), inplace=True)
        return self.pool1(x)

    def block2(self, pool1: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv2_1(pool1), inplace=True)
        x = F.relu(self.conv2_2(x), inplace=True)
        return self.pool2(x)

    def block3(self, pool2: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv3_1(pool2), inplace=True)
        x = F.relu(self.conv3_2(x), inplace=True)
        x = F.relu(self.conv3_3(x), inplace=True)
        return self.pool3(x)

    def block4(self, pool3: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv4_1(pool3), inplace=True)
        x = F.relu(self.conv4_2(x), inplace=True)
        x = F.relu(self.conv4_3(x), inplace=True)
        return self.pool4(x)

    def block5(self, pool4: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv5_1(pool4), inplace=True)
        x = F.relu(self.conv5_2(x), inplace=True)
        x = F.relu(self.conv5_3(x), inplace=True)
        return self.pool5(x)

    def dense(self, pool5: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc6(pool5), inplace=True)
        x = F.dropout(x, self.dropout, self.training)
        x = F.relu(self.fc7(x), inplace=True)
        return F.dropout(x, self.dropout, self.training)


def recomputed(block: Callable, x: torch.Tensor) -> torch.Tensor:
    """block(x), of which nothing but x is kept for the backward pass: what else that needs is computed once more then."""
    return checkpoint(block, x, use_reentrant=False)


def read_tensors(path) -> dict:
    """The dictionary in a file written by torch.save: tensors by name, or a whole checkpoint.

    Nothing in the file can run code (weights_only). Raises InputError, naming the file, if it is not such a file.
    """
    try:
        # An open file, since torch.load would go by the ending of a path; and no warnings on bytes that it then refuses.
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # PyTorch does not compare the checksums in the file: a block that the disk has lost would load as zeros.
            if zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip():
                raise ValueError
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a cut, foreign or crafted file raises nearly anything: zip, pickle, struct, runtime errors
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise  # nothing is wrong with the file
        raise InputError(f"{path}: is not a whole file of torch.save with tensors and numbers alone; "
                         "fetch or make it again") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: holds no dictionary of tensors by name")
    return content


def save_tensors(content: dict, path: Path, before: Path | None = None):
    """Write a dictionary that read_tensors reads, all or nothing: the same content gives the same bytes.

    Written beside, flushed to the disk, renamed: whatever happens, the file under this name is a whole one. What it
    replaces is kept under the name `before`, if there is one; between the two renames only that is there. Raises
    InputError if the file cannot be written; what was there before is then still there, under one name or the other.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")  # in the same folder, where a rename is atomic
    try:
        with open(beside, "wb") as file:  # an open file, since torch.save would put the name of a path into the bytes
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if before and path.exists():
            os.replace(path, before)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        error = error.__context__ if isinstance(error.__context__, OSError) else error
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path}: cannot be written ({reason})") from None
    finally:
        with suppress(OSError):
            beside.unlink()


if __name__ == "__main__":
    for pad in (1, 100):
        net = VGG16(pad=pad)
        print(f"VGG16(pad={pad}), {sum(p.numel() for p in net.parameters()):,} parameters")
        for name, layer in net.named_children():
            shape = "x".join(map(str, layer.weight.shape)) if isinstance(layer, nn.Conv2d) else ""
            print(f"  {name:8} {shape:15} cell i lies at pixel {net.grid[name].stride:2} i {net.grid[name].offset:+.1f}")
