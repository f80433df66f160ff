"""FCN-32s, FCN-16s and FCN-8s: class scores from three depths of VGG16, aligned, added, and brought to the image's size.

    python fcn.py        print the derivation of every crop, line by line, with and without the border

Long, Shelhamer and Darrell 2015, section 4 and figure 3. fc7 tells best what is in the image, but has only one cell
for 32 x 32 pixels. pool4 (16 x 16) and pool3 (8 x 8) tell better where it is. Each map is turned into class scores. The
coarse scores are upsampled by two and added to the finer ones, twice; then they are upsampled to the pixels.

To add two maps, their cells must lie on the same pixels. That takes a crop, and the crop follows from the grids alone.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from support.labels import IGNORE
from vgg import IMAGE, VGG16, Grid


def crop_offset(cropped: Grid, kept: Grid) -> int:
    """The cell of the map on grid `cropped` that lies where cell 0 of the map on grid `kept` lies.

    Both maps have the same stride S by now, since the coarser one has been upsampled. Cell k of the one map lies on cell
    k + crop of the other if both are centred on the same pixel:

        S*(k + crop) + cropped.offset  =  S*k + kept.offset,    hence    crop = (kept.offset - cropped.offset) / S

    k has dropped out, and no size of an image or a map occurs: the crop is the same for every image. Raises ValueError if
    the cells of the two maps never coincide.
    """
    crop = (kept.offset - cropped.offset) / kept.stride
    if kept.stride != cropped.stride or crop < 0 or crop != int(crop):
        raise ValueError(f"the cells of {cropped} and {kept} do not coincide")
    return int(crop)


def cut(scores: torch.Tensor, crop: int, height: int, width: int) -> torch.Tensor:
    """The part [N, C, height, width] of a score map that begins at cell `crop`, from above and from the left."""
    if torch.compiler.is_exporting():  # the export of a slice would hold for maps of that size alone
        rows, columns = (torch.arange(length, device=scores.device) + crop for length in (height, width))
        return scores.index_select(2, rows).index_select(3, columns)
    return scores[:, :, crop:crop + height, crop:crop + width]


def fuse(coarse: torch.Tensor, fine: torch.Tensor, crop: int) -> torch.Tensor:
    """The sum of two score maps [N, C, h, w] and [N, C, h', w'], where cell k of `coarse` lies on cell k + crop of `fine`.

    Only the cells that both maps have are kept. With a border (pad=100) `fine` is larger on every side. Without one
    (pad=1) the crop is 0, but `coarse` has a row or column more at the far end wherever a pool has rounded up.
    """
    if crop == 0:
        return cut(coarse, 0, fine.shape[2], fine.shape[3]) + fine
    return coarse + cut(fine, crop, coarse.shape[2], coarse.shape[3])


def bilinear_kernel(size: int) -> torch.Tensor:
    """Weights [size, size] float with which a transposed convolution of stride size/2 interpolates bilinearly.

    A tent: 1 at the centre of the kernel, falling in a straight line to 0 one stride (f) away, in both directions.
    """
    f = (size + 1) // 2
    centre = f - 1 if size % 2 else f - 0.5
    tent = 1 - (torch.arange(size) - centre).abs() / f
    return tent[:, None] * tent[None, :]


class FCN8s(nn.Module):
    """Normalised images [N, 3, H, W] float to class scores [N, C, H, W], for every H and W >= 1.

    num_classes        C, at least 1
    pad                padding of conv1_1: 1 (no border) or at least 97; 100 is the authors' network (see VGG16)
    stride             8 for FCN-8s; 16 and 32 for FCN-16s and FCN-32s, its predecessors (section 4.2)
    width              factor on the channels of the convolutions, for tests and small machines
    fc_channels        channels of fc6 and fc7
    learn_upsampling   False: the transposed convolutions stay bilinear, as in the authors' networks
    skip_scale         factors on pool4 and pool3 before they are scored. The default (1, 1) leaves them as they are. The
                       authors' at-once network has (0.01, 0.0001), because Caffe's VGG16 has activations of tens and
                       hundreds there, which would swamp score_fr. `balance` in support/start.py measures them instead
    dropout            share of the elements of fc6 and fc7 that training sets to zero, as in VGG16

    Where the crops come from. One letter stands for one map: cell j of score_fr, k of upscore2, m of score_pool4, n of
    upscore_pool4, p of score_pool3, q of upscore8, and pixel x of the image. The table gives the pixel on which each cell
    is centred (class Grid in vgg.py), and the cells that coincide:

                         pad=1                                  pad=100
        score_fr         32 j + 15.5                            32 j + 12.5
        upscore2         16 k +  7.5    (15.5 - 16*0.5)         16 k - 11.5    (12.5 - 16*1.5)
        score_pool4      16 m +  7.5     m = k                  16 m - 91.5     m = k + 80/16 = k + 5
        upscore_pool4     8 n +  3.5    ( 7.5 -  8*0.5)          8 n - 23.5    (-11.5 - 8*1.5)
        score_pool3       8 p +  3.5     p = n                   8 p - 95.5     p = n + 72/8 = n + 9
        upscore8            q           ( 3.5 -  1*3.5)            q - 31      (-23.5 - 1*7.5)
        image               x            q = x                     x            q = x + 31

    These are the numbers 5, 9 and 31 of the authors' network, and 0, 0 and 0 without the border. 5 and 9 hold for every
    border; the last crop is pad - 69. In the first two lines the skip is cropped, in the last one the upsampled scores are.
    FCN-16s goes from 16 k - 11.5 straight to the pixels and crops at 27, FCN-32s from 32 j + 12.5 at 19.

    31 is not half of the surplus. With pad=100 the output of upscore8 is larger than the image by 65 rows and 62 columns at
    375 x 1242, and by 62 to 93 in general, because five pools round up at the far end alone. The near end is always 31 away.
    fc7 has 12 x 39 cells at this size, with the border and without.

    Why a border of 100. fc6 has no padding there, so pool5 needs 7 rows for its window. pool5 has
    ceil((H + 2*pad - 2) / 32) rows. That is at least 7 for every H >= 1 if pad >= 97. A pad of 90 would do for images of 15
    pixels a side and more, but not for smaller ones, so this class refuses it.

    The three score layers start at zero (sections 4.2 and 4.3): an untrained network scores all classes alike, and a new
    skip changes nothing at first. Only these layers can start so. The gradient of a layer's weights is its input times the
    gradient at its output, and a score layer has both in the first step. VGG16 gets its first gradient in the second step,
    once the score layers are no longer zero. A convolution of VGG16 that started at zero would output zeros; the layers after
    it would have no input to learn from and would pass no gradient back to it, so it would stay at zero.

    `reach`: a score depends on pixels up to 245 away with stride 8, 241 with 16 and 233 with 32. For 8 that is 201.5 for fc7,
    and 16*1.5 + 8*1.5 + 1*7.5 for the upsampling.

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
        self.classes = None  # the names of the classes, if they are known (FCN8s.load)
        self.image_scale = 1.0  # at which `segment` computes a picture: that of the training (FCN8s.load)
        # FCN8s(**config) builds the same network again. Checkpoints carry it.
        self.config = dict(num_classes=num_classes, pad=pad, stride=stride, width=width, fc_channels=fc_channels,
                           learn_upsampling=learn_upsampling, dropout=dropout)
        self.set_skip_scale(*skip_scale)

        def score_layer(channels):
            layer = nn.Conv2d(channels, num_classes, kernel_size=1)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            return layer

        def upscore_layer(factor):
            # Without a border, a padding of half a stride makes the output exactly `factor` times the input.
            layer = nn.ConvTranspose2d(num_classes, num_classes, kernel_size=2 * factor, stride=factor,
                                       padding=factor // 2 if pad == 1 else 0, bias=False)
            with torch.no_grad():
                layer.weight.zero_()
                for c in range(num_classes):  # each class is interpolated by itself: the diagonal of C x C
                    layer.weight[c, c] = bilinear_kernel(2 * factor)
            return layer.requires_grad_(learn_upsampling)

        self.vgg = VGG16(pad, width, fc_channels, dropout)
        self.score_fr = score_layer(self.vgg.channels["fc7"])
        grid = self.vgg.grid["fc7"].after(self.score_fr)
        if stride <= 16:
            self.upscore2 = upscore_layer(2)
            self.score_pool4 = score_layer(self.vgg.channels["pool4"])
            grid = grid.after(self.upscore2)
            self.crop_pool4 = crop_offset(self.vgg.grid["pool4"], grid)
        if stride == 8:
            self.upscore_pool4 = upscore_layer(2)
            self.score_pool3 = score_layer(self.vgg.channels["pool3"])
            grid = grid.after(self.upscore_pool4)
            self.crop_pool3 = crop_offset(self.vgg.grid["pool3"], grid)
        # upscore8, upscore16 or upscore32: the rest of the way to the pixels
        self.last = f"upscore{stride}"
        self.add_module(self.last, upscore_layer(stride))
        grid = grid.after(self.get_submodule(self.last))
        self.crop_image = crop_offset(grid, IMAGE)
        self.reach = grid.reach  # along fc7, which sees farthest; the skips see less

    def set_skip_scale(self, pool4: float, pool3: float):
        self.scale_pool4, self.scale_pool3 = pool4, pool3
        self.config["skip_scale"] = (pool4, pool3)

    def get_extra_state(self) -> torch.Tensor:
        """What the weights do not say, as a part of state_dict(): float64 [3], pad and the factors on pool4 and pool3."""
        return torch.tensor([self.config["pad"], self.scale_pool4, self.scale_pool3], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: torch.Tensor):
        """Called by load_state_dict. Raises RuntimeError if the weights belong to a network with another border."""
        pad, pool4, pool3 = state.tolist()
        if pad != self.config["pad"]:
            raise RuntimeError(f"the weights are of a network with pad={pad:g}, this one has pad={self.config['pad']}; build "
                               "it with FCN8s(**config), where config is that of the checkpoint")
        self.set_skip_scale(pool4, pool3)

    @staticmethod
    def load(path: str | os.PathLike, device: torch.device | str = "cpu") -> FCN8s:
        """The network of a checkpoint of train.py, such as runs/NAME/best.pt (str or Path), in evaluation mode on the device.

        Its attribute `classes` holds the names of classes 0 ... C-1. `image_scale`: it was trained on images enlarged this many
        times (support/scale.py). Raises InputError (support/errors.py) in one line for a
        file that is no such checkpoint.
        """
        from support.checkpoint import load_network  # here, since it needs this class

        net, saved = load_network(Path(path))
        net.classes, net.image_scale = saved["classes"], saved["settings"]["scale"]
        return net.to(device).eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[2:]
        pool3, pool4, fc7 = self.vgg(image)

        score = self.score_fr(fc7)
        if self.stride <= 16:
            score = fuse(self.upscore2(score), self.score_pool4(pool4 * self.scale_pool4), self.crop_pool4)
        if self.stride == 8:
            score = fuse(self.upscore_pool4(score), self.score_pool3(pool3 * self.scale_pool3), self.crop_pool3)
        score = self.get_submodule(self.last)(score)

        return cut(score, self.crop_image, height, width)  # pixel x of the image lies on cell x + crop_image of the scores


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor, pixels: torch.Tensor | None = None,
                  class_weights: torch.Tensor | None = None) -> torch.Tensor:
    """The loss: mean cross-entropy over the valid pixels, a float32 scalar.

    scores          [N, C, H, W] of any float type; they are converted to float32
    labels          [N, H, W] int64, class ids 0 ... C-1, or IGNORE
    pixels          the number to divide by, where this is a part of a larger batch; by default the valid pixels here
    class_weights   [C] float, the weight of a pixel of each class (support/counts.py); by default all are 1

    The sum is divided by the number of pixels, not by the sum of their weights: so what a pixel contributes does not
    depend on the rest of its batch. A batch without a valid pixel has loss 0 and gradients of 0.

    The authors sum over the pixels instead, with a much smaller rate (docs/recipe.md).
    """
    total = F.cross_entropy(scores.float(), labels, class_weights, ignore_index=IGNORE, reduction="sum")
    return total / ((labels != IGNORE).sum() if pixels is None else pixels).clamp(min=1)


if __name__ == "__main__":
    from support.arguments import Parser
    from support.derivation import derivation

    Parser("fcn.py", description=__doc__).parse_args()
    for pad in (100, 1):
        for stride in (8, 16, 32):
            print(f"FCN-{stride}s with pad={pad}\n\n{derivation(FCN8s(21, pad, stride, width=1 / 64, fc_channels=1))}\n")
