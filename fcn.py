"""python fcn.py: print where the crops of FCN-8s come from, as arithmetic to check with a pencil.

FCN-32s, FCN-16s and FCN-8s (Long, Shelhamer and Darrell 2015, section 4 and figure 3): scores for each class from
three depths of VGG16, each finer map added where its cells meet those of the coarser one, back to the image's size.
"""

from __future__ import annotations

import math
from typing import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from vgg import IMAGE, VGG16, Grid, InputError

TILE = 1536   # images of more than TILE x TILE pixels are computed in parts of at most as many, see `tiled`
IGNORE = 255  # label of pixels that neither train nor count


def bilinear_kernel(size: int) -> torch.Tensor:
    """Weights [size, size] float with which a transposed convolution of stride size/2 interpolates bilinearly.

    A tent: 1 at the centre of the kernel, falling in a straight line to 0 one stride (f) away, in both directions.
    """
    f = (size + 1) // 2
    centre = f - 1 if size % 2 else f - 0.5
    tent = 1 - (torch.arange(size) - centre).abs() / f
    return tent[:, None] * tent[None, :]


def meeting_point(inner: Grid, outer: Grid) -> int:
    """The cell of the map on grid `outer` on which cell 0 of the map on grid `inner` lies.

    Both maps have the same stride S, so that cell j + crop of the one lies on cell j of the other for every j:
    S*(j + crop) + outer.offset = S*j + inner.offset. No size of an image or a map is in it. Raises ValueError if the
    grids do not meet.
    """
    crop = (inner.offset - outer.offset) / inner.stride
    if inner.stride != outer.stride or crop < 0 or crop != int(crop):
        raise ValueError(f"{inner} and {outer} do not meet")
    return int(crop)


def fuse(coarse: torch.Tensor, fine: torch.Tensor, crop: int) -> torch.Tensor:
    """Sum of two score maps [N, C, h, w] and [N, C, h', w'], where cell j of `coarse` lies on cell j + crop of `fine`.

    Only the cells that both have are kept. With a border (pad=100) `fine` is the larger on every side; without one
    (pad=1) `coarse` is, by a row or column at the end, where a pool had rounded up.
    """
    height = min(coarse.shape[2], fine.shape[2] - crop)
    width = min(coarse.shape[3], fine.shape[3] - crop)
    return coarse[:, :, :height, :width] + fine[:, :, crop:crop + height, crop:crop + width]


class FCN8s(nn.Module):
    """Normalised images [N, 3, H, W] float to class scores [N, C, H, W], for every H and W >= 1.

    num_classes        C, at least 1
    pad                padding of conv1_1: 1 (no border) or from 97 up; 100 is the authors' network (see VGG16)
    stride             8: FCN-8s. 16 and 32: FCN-16s and FCN-32s, the paper's steps on the way (section 4.2)
    width              factor on the channels of the convolutions, for tests and small machines
    fc_channels        channels of fc6 and fc7
    learn_upsampling   False: the transposed convolutions stay bilinear, as in the authors' networks
    skip_scale         factors on pool4 and pool3 before they are scored; (1, 1), the default, leaves them as they are.
                       The authors' at-once network has (0.01, 0.0001): Caffe's VGG16 has activations of tens and hundreds
                       there, which would swamp score_fr. `balance` in start.py measures them instead
    dropout            share of the elements of fc6 and fc7 that training sets to zero, as in VGG16

    Where the crops come from. Cell i of a map lies at pixel stride*i + offset of the image (class Grid in vgg.py), and
    cell j of the coarser map lies on cell m of the finer one:

                         pad=1                                   pad=100
        score_fr         32 j + 15.5                             32 j + 12.5
        upscore2         16 j + 15.5 - 16*0.5 = 16 j + 7.5       16 j + 12.5 - 16*1.5 = 16 j - 11.5
        score_pool4      16 m +  7.5               m = j         16 m - 91.5              m = j + 80/16 = j + 5
        upscore_pool4     8 j +  7.5 -  8*0.5 =  8 j + 3.5        8 j - 11.5 -  8*1.5 =  8 j - 23.5
        score_pool3       8 m +  3.5               m = j          8 m - 95.5              m = j + 72/8  = j + 9
        upscore8            m +  3.5 -  1*3.5 =    m                m - 23.5 -  1*7.5 =    m - 31
        image               j                      m = j            j                     m = j + 31

    In the last two lines it is the image whose pixel j is looked up in the finer map.

    Hence the numbers 5, 9 and 31 of the authors' network, and 0, 0, 0 without the border. The score layers start at
    zero (section 4.3), so that an untrained network scores every class alike.

    A pixel's scores depend on what is up to `reach` = 245 pixels away: 201.5 at fc7 and, on the way back, 16*1.5 + 8*1.5
    + 1*7.5 more. `tiled` goes by it.

    Raises ValueError for settings that make no network.
    """

    def __init__(self, num_classes: int, pad: int = 1, stride: int = 8, width: float = 1.0, fc_channels: int = 4096,
                 learn_upsampling: bool = False, skip_scale: tuple[float, float] = (1.0, 1.0), dropout: float = 0.5):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}: at least 1 is needed")
        if stride not in (8, 16, 32):
            raise ValueError(f"stride is {stride}: it must be 8, 16 or 32")
        self.stride = stride
        # All it takes to build this network again: FCN8s(**config). Checkpoints carry it.
        self.config = dict(num_classes=num_classes, pad=pad, stride=stride, width=width, fc_channels=fc_channels,
                           learn_upsampling=learn_upsampling, dropout=dropout)
        self.set_skip_scale(*skip_scale)

        def score(channels):
            layer = nn.Conv2d(channels, num_classes, kernel_size=1)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            return layer

        def upscore(factor):
            # Without a border, padding of half a stride makes the output exactly `factor` times the input.
            layer = nn.ConvTranspose2d(num_classes, num_classes, kernel_size=2 * factor, stride=factor,
                                       padding=factor // 2 if pad == 1 else 0, bias=False)
            with torch.no_grad():
                layer.weight.zero_()
                for c in range(num_classes):  # each class is interpolated by itself: the diagonal of C x C
                    layer.weight[c, c] = bilinear_kernel(2 * factor)
            return layer.requires_grad_(learn_upsampling)

        self.vgg = VGG16(pad, width, fc_channels, dropout)
        self.score_fr = score(self.vgg.channels["fc7"])
        grid = self.vgg.grid["fc7"].after(self.score_fr)
        if stride <= 16:
            self.upscore2 = upscore(2)
            self.score_pool4 = score(self.vgg.channels["pool4"])
            grid = grid.after(self.upscore2)
            self.crop_pool4 = meeting_point(grid, self.vgg.grid["pool4"])
        if stride == 8:
            self.upscore_pool4 = upscore(2)
            self.score_pool3 = score(self.vgg.channels["pool3"])
            grid = grid.after(self.upscore_pool4)
            self.crop_pool3 = meeting_point(grid, self.vgg.grid["pool3"])
        # upscore8, upscore16 or upscore32: what is left of the way back to the image
        self.last = f"upscore{stride}"
        self.add_module(self.last, upscore(stride))
        grid = grid.after(self.get_submodule(self.last))
        self.crop_image = meeting_point(IMAGE, grid)
        self.reach = grid.reach  # the way by fc7 is the longest; the skips see less

    def set_skip_scale(self, pool4: float, pool3: float):
        self.scale_pool4, self.scale_pool3 = pool4, pool3
        self.config["skip_scale"] = (pool4, pool3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[2:]
        pool3, pool4, fc7 = self.vgg(image)

        score = self.score_fr(fc7)
        if self.stride <= 16:
            score = fuse(self.upscore2(score), self.score_pool4(pool4 * self.scale_pool4), self.crop_pool4)
        if self.stride == 8:
            score = fuse(self.upscore_pool4(score), self.score_pool3(pool3 * self.scale_pool3), self.crop_pool3)
        score = self.get_submodule(self.last)(score)

        crop = self.crop_image
        return score[:, :, crop:crop + height, crop:crop + width]


def halo(reach: float) -> int:
    """`reach` in whole pixels, up to a multiple of 32: by so much the windows of `tiled` overlap their tiles."""
    return 32 * math.ceil(reach / 32)


def tiled(compute: Callable, image: torch.Tensor, reach: float, tile: int = TILE) -> Iterator[tuple]:
    """The scores of a large image piece by piece: yields (rows, columns, scores [N, C, h, w] of that part), two slices.

    compute    FCN8s, or what ends in one: a part [N, 3, h, w] of the image [N, 3, H, W] to its scores
    reach      that of the network
    tile       bounds the memory: no more than tile x tile pixels are computed at a time

    The parts cover the image once, and their scores are those of the whole image up to rounding. Two conditions make
    it so. A part is computed with a halo around it as wide as `reach`, since nothing farther away has an influence;
    only where the image itself ends is there none, and the same padding as ever. And every part starts on a multiple
    of 32, so that the pools pair the same rows and columns as in the whole image. Raises ValueError if a tile would
    hold nothing but halo.
    """
    height, width = image.shape[2:]
    margin = halo(reach)
    # An image that is narrow in one direction leaves its share of the tile to the other; but it counts as no less than
    # the halo, since the border of pad=100 and the windows of fc6 take room however narrow it is.
    if max(height, margin) * max(width, margin) <= tile * tile:
        yield slice(0, height), slice(0, width), compute(image)
        return
    if tile < 2 * margin + 32:
        raise ValueError(f"tile is {tile}: it must be at least {2 * margin + 32}, {margin} on each side are halo")
    wide = min(width, tile * tile // max(min(height, tile), margin))
    tall = min(height, tile * tile // max(wide, margin))
    for top, bottom, above, below in spans(height, tall, margin):
        for left, right, before, behind in spans(width, wide, margin):
            scores = compute(image[:, :, above:below, before:behind])
            yield (slice(top, bottom), slice(left, right),
                   scores[:, :, top - above:bottom - above, left - before:right - before])


def spans(length: int, window: int, margin: int) -> list[tuple[int, int, int, int]]:
    """0 ... length in parts [start, stop), each with `margin` around it in [first, last), at most `window` long."""
    if length <= window:
        return [(0, length, 0, length)]
    step = (window - 2 * margin) // 32 * 32
    return [(start, min(start + step, length), max(start - margin, 0), min(start + step + margin, length))
            for start in range(0, length, step)]


@torch.no_grad()
def classify(compute: Callable, image: torch.Tensor, reach: float, tile: int = TILE, road: int | None = None,
             labels: torch.Tensor | None = None, weights: torch.Tensor | None = None,
             ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """(classes, confidence, loss) of one image [1, 3, H, W] of any size, see `tiled`.

    classes uint8 [H, W]; confidence uint8 [H, W], 255 times the probability of class `road`, zeros if there is none;
    loss as below, with its `weights`, if there are labels [1, H, W]. All on the image's device.
    """
    classes = torch.empty(image.shape[2:], dtype=torch.uint8, device=image.device)
    confidence, total, valid = torch.zeros_like(classes), 0.0, 0
    for rows, columns, scores in tiled(compute, image, reach, tile):
        classes[rows, columns] = scores[0].argmax(0).byte()
        if road is not None:
            confidence[rows, columns] = (255 * scores[0].float().softmax(0)[road]).round().byte()
        if labels is not None:
            part = labels[:, rows, columns]
            pixels = (part != IGNORE).sum()
            total, valid = total + loss(scores, part, weights=weights) * pixels, valid + pixels
    return classes, confidence, None if labels is None else total / valid.clamp(min=1)


def loss(scores: torch.Tensor, labels: torch.Tensor, pixels: torch.Tensor | None = None,
         weights: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy over the valid pixels: scores [N, C, H, W] float, labels [N, H, W] long in 0..C-1 or IGNORE.

    pixels    by how many to divide, where this is a part of a larger batch; else the valid pixels are counted
    weights   [C], by which the pixels of each class count (batches.class_weights); else all count alike

    The sum is divided by the pixels, not by the sum of their weights: what a pixel counts does not depend on its batch.
    A batch without a valid pixel gives 0, with gradients of 0. The authors' released solvers sum over pixels instead, with
    rates smaller by about the number of pixels.
    """
    total = F.cross_entropy(scores.float(), labels, weights, ignore_index=IGNORE, reduction="sum")
    return total / ((labels != IGNORE).sum() if pixels is None else pixels).clamp(min=1)


if __name__ == "__main__":
    for pad in (1, 100):
        for stride in (32, 16, 8):
            net = FCN8s(21, pad=pad, stride=stride, width=1 / 64, fc_channels=1)
            crops = ", ".join(f"{name} at {getattr(net, 'crop_' + name)}" for name in ("pool4", "pool3", "image")
                              if hasattr(net, "crop_" + name))
            print(f"FCN-{stride}s, pad {pad:3}: crop {crops}")
