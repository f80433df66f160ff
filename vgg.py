"""VGG16 as a fully convolutional network, layer by layer: the encoder of FCN-8s.

VGG16 (Simonyan and Zisserman 2015, table 1, column D) classifies images of 224 x 224. Its first
dense layer reads all of pool5, which is 7 x 7 at that size, so the image size is fixed. A dense
layer on a 7 x 7 map equals a 7 x 7 convolution at one position. As a convolution, with the same
weights, it works at every position of a map of any size. This turns the classifier into a network
that labels every part of an image (Long, Shelhamer and Darrell 2015, section 3.1). The last dense
layer, which scores ImageNet's 1000 classes, is dropped. docs/walkthrough.md draws the pools.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from support.dense import DenseConv2d

# The ImageNet weights expect RGB in 0..1, minus this mean, divided by this standard deviation.
IMAGE_MEAN = (0.485, 0.456, 0.406)
IMAGE_STD = (0.229, 0.224, 0.225)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, H, W] RGB to float32: scaled to 0..1, minus IMAGE_MEAN, over IMAGE_STD.

    Raises ValueError for other tensors: floats could range from 0 to 1 or from 0 to 255.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}: they must be uint8 [N, 3, H, W]"
        )
    # A blocking copy would wait until the GPU has finished all earlier work.
    numbers = 255 * torch.tensor([IMAGE_MEAN, IMAGE_STD])
    numbers = numbers.to(images.device, non_blocking=images.is_cuda)
    mean, deviation = numbers[:, None, :, None, None]
    return (images.float() - mean) / deviation


class Grid(NamedTuple):
    """Where the cells of a map lie in the image: cell i is centred on pixel `stride * i + offset`.

    `reach` is how far a cell sees: no pixel farther than `reach` from its centre has an influence
    on it. Twice the reach, plus one pixel, is the receptive field.

    The same numbers hold for rows and columns, and for every size of image. Pixel 0 has its centre
    at 0, so the image itself is Grid(1, 0, 0). Offsets and reaches are whole or half pixels, which
    floats represent exactly.

    Output i of a convolution or pool with kernel k, stride s and padding p reads the inputs s*i - p
    ... s*i - p + k-1. Their middle is s*i + (k-1)/2 - p. A transposed convolution is the same
    picture with input and output swapped: its input i writes to the outputs s*i - p ... s*i - p +
    k-1. With m = (k-1)/2 - p, a layer turns Grid(S, O, R) into

        convolution or pool      Grid(S*s, O + S*m,   R + S*(k-1)/2)
        transposed convolution   Grid(S/s, O - S/s*m, R + S/s*(k-1)/2)
    """

    stride: int
    offset: float
    reach: float

    def after(self, layer: nn.Module) -> Grid:
        """The grid of a layer's output if this is the grid of its input."""
        kernel, stride, padding = geometry(layer)
        half = (kernel - 1) / 2
        if isinstance(layer, nn.ConvTranspose2d):
            finer = self.stride // stride
            return Grid(finer, self.offset - finer * (half - padding), self.reach + finer * half)
        return Grid(
            self.stride * stride,
            self.offset + self.stride * (half - padding),
            self.reach + self.stride * half,
        )


IMAGE = Grid(stride=1, offset=0, reach=0)


def geometry(layer: nn.Module) -> tuple[int, int, int]:
    """(kernel, stride, padding) of a layer with square windows."""
    return tuple(
        v if isinstance(v, int) else v[0] for v in (layer.kernel_size, layer.stride, layer.padding)
    )


class VGG16(nn.Module):
    """Normalised images [N, 3, H, W] float, H and W >= 1, to three feature maps:

        pool3    [N, 256, h, w]     one cell per 8 x 8 pixels
        pool4    [N, 512, h, w]     one cell per 16 x 16 pixels
        fc7      [N, 4096, h, w]    one cell per 32 x 32 pixels

    pad          padding of conv1_1. VGG16 has 1. The authors of FCN used 100, because their fc6 has
                 no padding: the border makes pool5 large enough for its 7 x 7 window. A pad of 97
                 or more is enough for every image, even of one pixel. With pad=1, fc6 has padding 3
                 instead, and fc7 has as many cells as pool5
    width        multiplies the channels of the thirteen convolutions (64 ... 512), for tests and
                 small machines
    fc_channels  channels of fc6 and fc7
    dropout      dropout probability of fc6 and fc7 (single elements, not whole channels)

    `grid` maps each layer's name to the Grid of its output. Cell i is centred on this pixel:

        layer             pad=1         pad=100
        conv1_1, conv1_2   i             i -  99
        pool1             2i +  0.5     2i -  98.5
        pool2             4i +  1.5     4i -  97.5
        pool3             8i +  3.5     8i -  95.5
        pool4            16i +  7.5    16i -  91.5
        pool5            32i + 15.5    32i -  83.5
        fc6, fc7         32i + 15.5    32i +  12.5

    New weights are He-normal (He et al. 2015, section 2.2), biases zero. Raises ValueError for a
    pad that is neither 1 nor at least 97, for a width or fc_channels that is not positive, and for
    a dropout outside 0..1.
    """

    OUTPUTS = ("pool3", "pool4", "fc7")  # the maps that forward returns, in this order

    def __init__(
        self, pad: int = 1, width: float = 1.0, fc_channels: int = 4096, dropout: float = 0.5
    ):
        super().__init__()
        self.dropout = dropout
        if pad != 1 and pad < 97:
            raise ValueError(
                f"pad is {pad}: it must be 1 (no border) or at least 97 (fc6 then fits every image)"
            )
        if not width > 0 or fc_channels < 1:
            raise ValueError(
                f"width is {width} and fc_channels {fc_channels}: both must be positive"
            )
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout is {dropout}: it must be from 0 to 1")
        c1, c2, c3, c4 = (max(1, round(width * channels)) for channels in (64, 128, 256, 512))

        # In the order of the forward pass: the loop below computes the grids in this order.
        self.conv1_1 = nn.Conv2d(3, c1, kernel_size=3, padding=pad)
        self.conv1_2 = nn.Conv2d(c1, c1, kernel_size=3, padding=1)
        self.pool1 = nn.MaxPool2d(2, stride=2, ceil_mode=True)  # rounds up, so that no row is lost

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

        # The dense layers: 4096 x (512*7*7) and 4096 x 4096 weights in the shape of convolutions.
        # DenseConv2d equals nn.Conv2d, but is one matrix product: faster for such a large kernel.
        self.fc6 = DenseConv2d(c4, fc_channels, kernel_size=7, padding=3 if pad == 1 else 0)
        self.fc7 = DenseConv2d(fc_channels, fc_channels, kernel_size=1)

        self.channels = {"pool3": c3, "pool4": c4, "fc7": fc_channels}
        self.grid = {}
        grid = IMAGE
        for name, layer in self.named_children():
            grid = self.grid[name] = grid.after(layer)
            # On the meta device there is nothing to initialise.
            if isinstance(layer, nn.Conv2d) and not layer.weight.is_meta:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        pool1 = self.block1(image)
        pool2 = self.block2(pool1)
        pool3 = self.block3(pool2)
        pool4 = self.block4(pool3)
        pool5 = self.block5(pool4)
        fc7 = self.dense(pool5)
        return pool3, pool4, fc7

    def block1(self, image: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv1_1(image))
        x = F.relu(self.conv1_2(x))
        return self.pool1(x)

    def block2(self, pool1: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv2_1(pool1))
        x = F.relu(self.conv2_2(x))
        return self.pool2(x)

    def block3(self, pool2: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv3_1(pool2))
        x = F.relu(self.conv3_2(x))
        x = F.relu(self.conv3_3(x))
        return self.pool3(x)

    def block4(self, pool3: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv4_1(pool3))
        x = F.relu(self.conv4_2(x))
        x = F.relu(self.conv4_3(x))
        return self.pool4(x)

    def block5(self, pool4: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.conv5_1(pool4))
        x = F.relu(self.conv5_2(x))
        x = F.relu(self.conv5_3(x))
        return self.pool5(x)

    def dense(self, pool5: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.fc6(pool5))
        x = F.dropout(x, self.dropout, self.training)
        x = F.relu(self.fc7(x))
        return F.dropout(x, self.dropout, self.training)
