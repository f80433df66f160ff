"""FCN-32s, FCN-16s and FCN-8s: class scores from three depths of VGG16, aligned, added, upsampled.

    python fcn.py [HxW] [--pad N] [--stride N]    print every map and derive every crop

Long, Shelhamer and Darrell 2015, section 4 and figure 3. fc7 tells best what is in the image, but
has only one cell per 32 x 32 pixels. pool4 (16 x 16) and pool3 (8 x 8) tell better where it is.
Convolutions of 1 x 1 turn each map into class scores. The coarse scores are upsampled by two and
added to the finer ones, twice, and then upsampled to the size of the image.

Two maps can only be added if their cells lie on the same pixels. This takes a crop, and the crop
follows from the grids alone. docs/walkthrough.md works it out by hand, docs/exercises.md breaks it.
"""

from __future__ import annotations

import os
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from support.labels import IGNORE
from vgg import IMAGE, VGG16, Grid, geometry


def crop_offset(cropped: Grid, kept: Grid) -> int:
    """The cell of the map on grid `cropped` that lies where cell 0 of the map on grid `kept` lies.

    Both maps have the same stride S by now, since the coarser one has been upsampled. Cell k of the
    one map lies on cell k + crop of the other if both are centred on the same pixel:

        S*(k + crop) + cropped.offset = S*k + kept.offset
        crop = (kept.offset - cropped.offset) / S

    k has dropped out, and no size of an image or a map occurs: the crop is the same for every
    image. Raises ValueError if the cells of the two maps never coincide.
    """
    crop = (kept.offset - cropped.offset) / kept.stride
    if kept.stride != cropped.stride or crop < 0 or crop != int(crop):
        raise ValueError(f"the cells of {cropped} and {kept} do not coincide")
    return int(crop)


def cut(scores: torch.Tensor, crop: int, height: int, width: int) -> torch.Tensor:
    """The part [N, C, height, width] of a score map that starts at row and column `crop`."""
    if torch.compiler.is_exporting():
        # An exported slice would be valid for maps of this size only.
        rows, columns = (
            torch.arange(length, device=scores.device) + crop for length in (height, width)
        )
        return scores.index_select(2, rows).index_select(3, columns)
    return scores[:, :, crop : crop + height, crop : crop + width]


def fuse(coarse: torch.Tensor, fine: torch.Tensor, crop: int) -> torch.Tensor:
    """The sum of two score maps [N, C, h, w] and [N, C, h', w'], where cell k of `coarse` lies on
    cell k + crop of `fine`.

    The sum keeps only the cells that both maps have. With a border (pad=100), `fine` is larger on
    every side. Without one (pad=1), the crop is 0, but `coarse` has one more row or column at the
    far end wherever a pool has rounded up.
    """
    if crop == 0:
        return cut(coarse, 0, fine.shape[2], fine.shape[3]) + fine
    return coarse + cut(fine, crop, coarse.shape[2], coarse.shape[3])


def bilinear_kernel(size: int) -> torch.Tensor:
    """Weights float [size, size] of a bilinear transposed convolution of stride (size + 1) // 2.

    They form a tent: 1 at the centre, falling linearly to 0 one stride (f) away, in both
    directions.
    """
    f = (size + 1) // 2
    centre = f - 1 if size % 2 else f - 0.5
    tent = 1 - (torch.arange(size) - centre).abs() / f
    return tent[:, None] * tent[None, :]


class FCN8s(nn.Module):
    """Normalised images [N, 3, H, W] float to class scores [N, C, H, W], for every H and W >= 1.

    The scores are logits: softmax over C gives probabilities.

    num_classes        C, at least 1
    pad                padding of conv1_1: 1 (no border) or at least 97; 100 is the authors' network
                       (see VGG16)
    stride             8 for FCN-8s; 16 and 32 for its predecessors FCN-16s and FCN-32s (section
                       4.2)
    width              multiplies the channels of the convolutions, for tests and small machines
    fc_channels        channels of fc6 and fc7
    learn_upsampling   False: the transposed convolutions stay bilinear, as in the authors' networks
    skip_gain          factor on each of SKIPS before its score layer, 1 by default. The authors'
                       at-once network has 0.01 and 0.0001, because Caffe's VGG16 has activations of
                       tens and hundreds there, which would swamp score_fr. `balance` in
                       support/training/initialise.py measures the factors instead
    dropout            dropout probability of fc6 and fc7, as in VGG16

    Where the crops come from. The cells of each map have their own letter: j in score_fr, k in
    upscore2, m in score_pool4, n in upscore_pool4, p in score_pool3, q in upscore8; the image has
    pixels x. The table gives the pixel on which each cell is centred (class Grid in vgg.py), and
    the cells that coincide:

                         pad=1                           pad=100
        score_fr         32 j + 15.5                     32 j + 12.5
        upscore2         16 k +  7.5  (15.5 - 16*0.5)    16 k - 11.5  (12.5 - 16*1.5)
        score_pool4      16 m +  7.5   m = k             16 m - 91.5   m = k + 80/16 = k + 5
        upscore_pool4     8 n +  3.5  ( 7.5 -  8*0.5)     8 n - 23.5  (-11.5 - 8*1.5)
        score_pool3       8 p +  3.5   p = n              8 p - 95.5   p = n + 72/8 = n + 9
        upscore8            q         ( 3.5 -  1*3.5)       q - 31    (-23.5 - 1*7.5)
        image               x          q = x                x          q = x + 31

    The crops are 5, 9 and 31 in the authors' network, and 0, 0 and 0 without the border. 5 and 9
    hold for every border; the last crop is pad - 69. The first two crop the skip, the last one the
    upsampled scores. FCN-16s goes straight from 16 k - 11.5 to the pixels and crops at 27; FCN-32s
    goes from 32 j + 12.5 and crops at 19.

    31 is not half the surplus. With pad=100 the output of upscore8 is larger than the image by 65
    rows and 62 columns at 375 x 1242, and by 62 to 93 in general, because five pools round up at
    the far end only. At the near end, the surplus is always 31. At this size, fc7 has 12 x 39 cells
    with and without the border.

    Why a border of 100. With it, fc6 has no padding, so its window needs 7 rows of pool5. pool5 has
    ceil((H + 2*pad - 2) / 32) rows: at least 7 for every H >= 1 if pad >= 97. This class refuses
    smaller borders: a pad of 90, for example, needs images of at least 15 x 15 pixels.

    The score layers start at zero (sections 4.2 and 4.3), so an untrained network scores all
    classes alike, and a new skip changes nothing at first. Only these layers can start at zero. The
    gradient of a layer's weights is its input times the gradient at its output, and a score layer
    has both in the first step. VGG16 gets its first gradient in the second step, once the score
    layers are no longer zero. A convolution of VGG16 that started at zero would stay at zero: it
    would output zeros, so the layers after it would have no input to learn from, and would pass no
    gradient back.

    `reach` is the receptive radius: a score depends on pixels up to 245 away with stride 8, 241
    with 16 and 233 with 32. For 8, fc7 contributes 201.5 and the upsampling 16*1.5 + 8*1.5 + 1*7.5.

    Attributes: `grid` maps each layer's name to the Grid of its output, `crop` maps the names of
    the skips and "image" to the crops. `classes` and `resize_factor` are for checkpoints.
    FCN8s(**config) builds the same network again.

    Raises ValueError for invalid settings.
    """

    SKIPS = ("pool4", "pool3")  # from coarse to fine; FCN-16s has only the first, FCN-32s none
    STRIDES = (8, 16, 32)

    def __init__(
        self,
        num_classes: int,
        pad: int = 1,
        stride: int = 8,
        width: float = 1.0,
        fc_channels: int = 4096,
        learn_upsampling: bool = False,
        skip_gain: dict[str, float] | None = None,
        dropout: float = 0.5,
    ):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes is {num_classes}: at least 1 is needed")
        if stride not in self.STRIDES:
            raise ValueError(f"stride is {stride}: it must be one of {self.STRIDES}")
        self.stride = stride
        self.classes = None  # the names of classes 0 ... C-1, once they are known
        self.resize_factor = 1.0  # of the training images
        self.config = dict(
            num_classes=num_classes,
            pad=pad,
            stride=stride,
            width=width,
            fc_channels=fc_channels,
            learn_upsampling=learn_upsampling,
            dropout=dropout,
        )
        self.set_skip_gain(skip_gain or {})

        def score_layer(channels):
            layer = nn.Conv2d(channels, num_classes, kernel_size=1)
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
            return layer

        def upscore_layer(factor):
            # Without a border, a padding of half a stride makes the output exactly `factor` times
            # the input.
            padding = factor // 2 if pad == 1 else 0
            layer = nn.ConvTranspose2d(
                num_classes, num_classes, 2 * factor, stride=factor, padding=padding, bias=False
            )
            if not layer.weight.is_meta:  # as in VGG16
                diagonal = torch.eye(num_classes)[:, :, None, None]  # classes are not mixed
                with torch.no_grad():
                    layer.weight.copy_(diagonal * bilinear_kernel(2 * factor))
            return layer.requires_grad_(learn_upsampling)

        # Each grid follows from the one before. Where two maps meet, their grids give the crop.
        self.vgg = VGG16(pad, width, fc_channels, dropout)
        self.grid = dict(self.vgg.grid)
        self.crop = {}
        self.score_fr = score_layer(self.vgg.channels["fc7"])
        grid = self.grid["score_fr"] = self.grid["fc7"].after(self.score_fr)
        if stride <= 16:
            self.upscore2 = upscore_layer(2)
            self.score_pool4 = score_layer(self.vgg.channels["pool4"])
            grid = self.grid["upscore2"] = grid.after(self.upscore2)
            fine = self.grid["score_pool4"] = self.grid["pool4"].after(self.score_pool4)
            self.crop["pool4"] = crop_offset(fine, grid)
        if stride <= 8:
            self.upscore_pool4 = upscore_layer(2)
            self.score_pool3 = score_layer(self.vgg.channels["pool3"])
            grid = self.grid["upscore_pool4"] = grid.after(self.upscore_pool4)
            fine = self.grid["score_pool3"] = self.grid["pool3"].after(self.score_pool3)
            self.crop["pool3"] = crop_offset(fine, grid)
        # upscore8, upscore16 or upscore32: up to the size of the image
        self.last = f"upscore{stride}"
        self.add_module(self.last, upscore_layer(stride))
        grid = self.grid[self.last] = grid.after(self.get_submodule(self.last))
        self.crop["image"] = crop_offset(grid, IMAGE)
        self.reach = grid.reach  # along fc7, which sees farthest; the skips see less

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if isinstance(image, torch.Tensor) and image.ndim != 4:  # not a proxy of torch.fx
            raise ValueError(f"the images are {list(image.shape)}: they must be [N, 3, H, W]")
        height, width = image.shape[2:]
        pool3, pool4, fc7 = self.vgg(image)
        gain, crop = self.skip_gain, self.crop

        score = self.score_fr(fc7)
        if self.stride <= 16:
            coarse = self.upscore2(score)
            fine = self.score_pool4(pool4 * gain["pool4"])
            score = fuse(coarse, fine, crop["pool4"])
        if self.stride <= 8:
            coarse = self.upscore_pool4(score)
            fine = self.score_pool3(pool3 * gain["pool3"])
            score = fuse(coarse, fine, crop["pool3"])
        score = self.get_submodule(self.last)(score)

        # Pixel x of the image lies on cell x + crop of the scores.
        return cut(score, crop["image"], height, width)

    def set_skip_gain(self, gain: dict[str, float]):
        """Set the skip gains, 1 where left out. Raises ValueError for names other than SKIPS."""
        if not gain.keys() <= set(self.SKIPS):
            raise ValueError(f"skip_gain has {list(gain)}: it may only have {list(self.SKIPS)}")
        self.skip_gain = self.config["skip_gain"] = dict.fromkeys(self.SKIPS, 1.0) | gain

    def get_extra_state(self) -> torch.Tensor:
        """Part of state_dict(): float64 [1 + len(SKIPS)], pad and the skip gains.

        With other values, the same weights give other scores.
        """
        gains = [self.skip_gain[name] for name in self.SKIPS]
        return torch.tensor([self.config["pad"], *gains], dtype=torch.float64, device="cpu")

    def set_extra_state(self, state: torch.Tensor):
        """Called by load_state_dict. Raises RuntimeError if the weights need another pad."""
        pad, *gains = state.tolist()
        if pad != self.config["pad"]:
            raise RuntimeError(
                f"the weights are of a network with pad={pad:g}, this one has "
                f"pad={self.config['pad']}; build it with FCN8s(**checkpoint['config'])"
            )
        self.set_skip_gain(dict(zip(self.SKIPS, gains, strict=True)))

    def save(self, path: str | os.PathLike):
        """Write the network as a checkpoint that `load` and the scripts read.

        Raises ValueError if `classes` does not name every class, InputError if the file cannot be
        written.
        """
        from support.checkpoint import write_checkpoint  # only needed here

        write_checkpoint(self.to_checkpoint(), path)

    @classmethod
    def load(cls, path: str | os.PathLike, device: torch.device | str = "cpu") -> FCN8s:
        """The network of a checkpoint such as runs/NAME/best.pt, in evaluation mode on the device.

        Its attribute `classes` holds the names of classes 0 ... C-1, `resize_factor` the resize
        factor of the training images. Raises InputError (support/console.py) if the file is not a
        checkpoint.
        """
        from support.checkpoint import read_checkpoint

        return cls.from_checkpoint(read_checkpoint(path), path).to(device).eval()

    def to_checkpoint(self) -> dict:
        """The entries of a checkpoint that describe the network, see support/checkpoint.py.

        Raises ValueError if `classes` does not name every class.
        """
        if len(self.classes or ()) != self.config["num_classes"]:
            raise ValueError(
                f"classes is {self.classes}: it must name {self.config['num_classes']} classes"
            )
        return {
            "config": self.config,
            "classes": list(self.classes),
            "resize_factor": float(self.resize_factor),
            "model": self.state_dict(),
        }

    @classmethod
    def from_checkpoint(cls, saved: dict, path: str | os.PathLike = "checkpoint") -> FCN8s:
        """The network in training mode, on the CPU, from the dictionary of read_checkpoint.

        Removes the weights from `saved`, so that memory holds them only once. Raises InputError,
        which names `path`, if the weights do not fit the configuration.
        """
        try:
            with torch.device("meta"):  # no memory for weights that are about to be replaced
                net = cls(**saved["config"])
            net.load_state_dict(saved.pop("model"), assign=True)
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            from support.console import InputError

            # The last line of PyTorch's message names the mismatch.
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise InputError(
                f"{path}: the weights do not fit the configuration ({reason[0].strip()[:200]})"
            ) from None
        net.classes, net.resize_factor = saved["classes"], saved["resize_factor"]
        return net


def cross_entropy(
    scores: torch.Tensor,
    labels: torch.Tensor,
    pixels: torch.Tensor | None = None,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The loss: mean cross-entropy over the valid pixels, a float32 scalar.

    scores          [N, C, H, W] of any float type; they are converted to float32
    labels          [N, H, W] int64, class ids 0 ... C-1, or IGNORE
    pixels          the number to divide by, such as the valid pixels of a larger batch; by default
                    the valid pixels of `labels`
    class_weights   [C] float, the weight of a pixel of each class; by default all are 1

    The sum is divided by the number of pixels, not by the sum of their weights, so the class
    weights of the other pixels do not change a pixel's contribution. A batch without a valid pixel
    has loss 0 and gradients of 0.

    The authors sum over the pixels instead, with a much smaller learning rate (docs/recipe.md).
    """
    total = F.cross_entropy(
        scores.float(), labels, class_weights, ignore_index=IGNORE, reduction="sum"
    )
    return total / ((labels != IGNORE).sum() if pixels is None else pixels).clamp(min=1)


# ---- The output of `python fcn.py`.


class Map(NamedTuple):
    """A map of the network: the layer that computes it, its size, and where its cells lie.

    layer    None for the image, for sums and for the output
    shape    (channels, rows, columns)
    """

    layer: nn.Module | None
    shape: tuple[int, int, int]
    grid: Grid


def maps(net: FCN8s, height: int, width: int) -> dict[str, Map]:
    """Every map that `net` computes for an image of this size, by name, in order of computation.

    A map is named after the layer that computes it; "sum_pool4" is the sum at the skip from pool4,
    "image" is the input and "scores" the output. The sizes come from a forward pass on the meta
    device, which takes neither time nor memory.
    """
    with torch.device("meta"):
        net, image = FCN8s(**net.config), torch.empty(1, 3, height, width)
    found = {"image": Map(None, (3, height, width), IMAGE)}

    def record_output(layer, inputs, output, name):
        found[name] = Map(layer, tuple(output.shape[1:]), net.grid[name])

    def record_input(layer, inputs, name, grid):
        found[name] = Map(None, tuple(inputs[0].shape[1:]), grid)

    for name, layer in [*net.vgg.named_children(), *net.named_children()]:
        if layer is not net.vgg:
            layer.register_forward_hook(partial(record_output, name=name))
    # A sum is the input of the next upsampling layer, and lies on the grid of the coarser map.
    coarse = upscore_layers(net)
    for skip, before, after in zip(net.crop, coarse, coarse[1:], strict=False):
        record = partial(record_input, name=f"sum_{skip}", grid=net.grid[before])
        net.get_submodule(after).register_forward_pre_hook(record)
    scores = net(image)
    found["scores"] = Map(None, tuple(scores.shape[1:]), IMAGE._replace(reach=net.reach))
    return found


def upscore_layers(net: FCN8s) -> list[str]:
    """The names of the upsampling layers, coarse to fine, in the order of the crops in net.crop."""
    return [n for n, layer in net.named_children() if isinstance(layer, nn.ConvTranspose2d)]


def centre(letter: str, grid: Grid) -> str:
    """The pixel on which the cell of this letter is centred, such as "16 m - 91.5"."""
    return plus(letter if grid.stride == 1 else f"{grid.stride} {letter}", grid.offset)


def plus(term: str, number: float) -> str:
    """A sum as text: "m - 5" for "m" and -5, "m" for "m" and 0."""
    return f"{term} {'-' if number < 0 else '+'} {abs(number):g}" if number else term


def table(net: FCN8s, height: int, width: int) -> str:
    """The maps of `net` for an image of this size, one line each."""
    lines = [
        "layer          kernel stride padding  [channels, rows, columns]  "
        "cell i is centred on  receptive radius"
    ]
    for name, (layer, shape, grid) in maps(net, height, width).items():
        window = "{:6} {:6} {:7}".format(*geometry(layer)) if layer else ""
        pixel = f"pixel {centre('i', grid)}"
        lines.append(f"{name:14} {window:21}  {list(shape)!s:25}  {pixel:20}  {grid.reach:16g}")
    return "\n".join(lines)


def derivation(net: FCN8s) -> str:
    """The crops derived as with a pencil, in several lines."""
    letters = iter("jkmnpqrstuvw")  # one for the cells of each map
    cell, grid = next(letters), net.grid["score_fr"]
    lines = [f"score_fr: cell {cell} is centred on pixel {centre(cell, grid)}"]
    for name, (place, crop) in zip(upscore_layers(net), net.crop.items(), strict=True):
        kernel, factor, padding = geometry(net.get_submodule(name))
        before, grid, cell = grid, net.grid[name], next(letters)
        shift = grid.stride * ((kernel - 1) / 2 - padding)
        lines += [
            f"{name}: stride {before.stride}/{factor} = {grid.stride}",
            f"    offset {before.offset:g} - {grid.stride} (({kernel} - 1)/2 - {padding}) = "
            f"{before.offset:g} - {shift:g} = {grid.offset:g}",
            f"    cell {cell} is centred on pixel {centre(cell, grid)}",
        ]
        if place == "image":
            lines += [
                f"image: pixel x is cell {cell} where {centre(cell, grid)} = x",
                f"    {cell} = {plus('x', -grid.offset)}: crop the output at {crop}",
            ]
            continue
        fine, other = net.grid[place], next(letters)
        apart = grid.offset - fine.offset
        by = f"/{grid.stride} = {cell} + {crop}" if apart else ""
        lines += [
            f"score_{place}: cell {other} is centred on pixel {centre(other, fine)}",
            f"    the two coincide where {centre(other, fine)} = {centre(cell, grid)}",
            f"    {other} = {plus(cell, apart)}{by}: crop {place} at {crop}",
        ]
    return "\n".join(lines)


def main():
    from support.console import Parser, closed_pipe, size, whole

    parser = Parser("fcn.py", description=__doc__)
    parser.add_argument(
        "size", metavar="HxW", nargs="?", type=size, default=(375, 1242), help="default 375x1242"
    )
    parser.add_argument("--pad", type=whole(), help="padding of conv1_1 (default: both 100 and 1)")
    parser.add_argument(
        "--stride", type=int, choices=FCN8s.STRIDES, default=8, help="default %(default)s"
    )
    options = parser.parse_args()
    text = []
    for pad in (options.pad,) if options.pad else (100, 1):
        try:
            with torch.device("meta"):  # sizes need no weights
                net = FCN8s(21, pad, options.stride)
        except ValueError as error:
            parser.error(str(error))
        count = sum(p.numel() for p in net.parameters() if p.requires_grad)
        title = f"FCN-{options.stride}s with pad={pad}, for 21 classes: {count:,} learnt parameters"
        text += [title, table(net, *options.size), derivation(net)]
    try:
        print("\n\n".join(text), flush=True)
    except BrokenPipeError:
        closed_pipe()


if __name__ == "__main__":
    main()
