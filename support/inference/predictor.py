"""From a picture of any size to labels and confidences, in bounded memory.

A large picture is processed in tiles, each with a halo: pixels around it whose scores are cut off
afterwards. A score of FCN-8s depends on pixels up to 245 away (`reach` of FCN8s), so a halo of 256
pixels holds everything that the scores of the tile depend on. 256 is the next multiple of 32: every
tile starts at a multiple of 32, so that the five pools pair the same rows and columns as in the
whole picture.

FCN-8s computes one score of each class per 8 x 8 pixels. In a small picture, poles and signs are
thinner than 8 pixels; enlarging the picture helps. So a network is trained and used on pictures
resized by `resize_factor`, and the scores are interpolated back.

Test-time augmentation (TTA) averages the probabilities of several views of a picture: enlarged,
reduced, mirrored. The network makes different errors on each view, and some cancel out. A view at
factor F takes F x F times as long as one at 1. Many published scores use TTA, so a comparison must
say whether it was used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from support.device import DTYPES, as_batch, autocast_for
from support.labels import IGNORE
from vgg import normalise

TILE = 1536  # a tile has at most TILE x TILE pixels, with its halo
HALO = 256  # pixels around a tile, a multiple of 32
MIN_TILE = 2 * HALO + 32
MAX_VIEW = 2**28  # pixels of a view; more would not fit into memory
MAX_MEAN = 2**30  # values in the mean of several views: 4 GiB
STRIP_ROWS = 256  # rows interpolated or averaged at once


class TTA(NamedTuple):
    """Test-time augmentation: the views whose probabilities are averaged.

    factors    size of each view, as a multiple of the size without TTA
    flip       whether the mirror image of each view is averaged too
    """

    factors: tuple[float, ...] = (1.0,)
    flip: bool = False


NO_TTA = TTA()


class Prediction(NamedTuple):
    """The prediction for one picture.

    labels         uint8 [H, W], the most probable class of each pixel
    confidences    uint8 [K, H, W], the `confidence` of each requested class
    loss           float scalar on the device, the mean over the valid pixels; None without a
                   criterion
    """

    labels: np.ndarray
    confidences: np.ndarray
    loss: torch.Tensor | None


def prepare(net: nn.Module, amp: str, device: torch.device) -> nn.Module:
    """The network, converted in place: in evaluation mode, on the device, with weights in the type
    of `amp` ("bf16" or "fp16"; "off" keeps theirs).

    Autocast alone would convert the weights again for each picture.
    """
    return net.to(device, DTYPES.get(amp)).eval()


class Predictor:
    """Predicts pictures with a network, on the device and in the type of its weights.

    net       an FCN8s; the caller sets evaluation mode
    amp       "off", or the type of the forward pass under autocast: "bf16" or "fp16"
    resize    size factor of pictures before the network, by default net.resize_factor
    longer    or the resized length of the longer side
    tile      at most tile x tile pixels are computed at a time. This bounds the memory; the result
              is the same up to rounding
    tta       the views that are averaged

    Several threads may use one Predictor. Raises ValueError for a tile below MIN_TILE, and for a
    network whose `reach` exceeds HALO.
    """

    def __init__(
        self,
        net: nn.Module,
        amp: str = "off",
        *,
        resize: float | None = None,
        longer: float | None = None,
        tile: int = TILE,
        tta: TTA = NO_TTA,
    ):
        if net.reach > HALO:
            raise ValueError(f"a score depends on pixels up to {net.reach} away: raise HALO")
        if tile < MIN_TILE:
            raise ValueError(f"tile is {tile}: it must be at least {MIN_TILE}, halo included")
        self.net, self.tile, self.tta, self.longer = net, tile, tta, longer
        self.resize = net.resize_factor if resize is None else resize
        weight = next(net.parameters())
        self.device = weight.device
        self.dtype = weight.dtype if amp == "off" else torch.float32  # autocast converts by itself
        self.autocast = autocast_for(amp, self.device)

    def views(self, picture: np.ndarray) -> list[tuple[torch.Tensor, bool]]:
        """The views of a picture uint8 [H, W, 3] RGB: each a tensor uint8 [1, 3, h, w] on the host,
        in pinned memory if the device is CUDA, and whether to mirror it.

        This runs on the CPU, for example in a thread that reads pictures ahead. Raises ValueError
        for a view of more than MAX_VIEW pixels or a mean of more than MAX_MEAN values.
        """
        if len(self.tta.factors) > 1 or self.tta.flip:
            numbers = self.net.config["num_classes"] * picture.shape[0] * picture.shape[1]
            if numbers > MAX_MEAN:
                raise ValueError(
                    f"the mean of its views would take {4 * numbers / 2**30:.0f} GiB; leave out "
                    "test-time augmentation, or reduce the picture"
                )
        times, by = (self.longer, max(picture.shape[:2])) if self.longer else (self.resize, 1)
        # Rounded down, as in an exported file. Not times the quotient: 312 * (720 / 312) < 720.
        height, width = (max(1, int(length * times / by)) for length in picture.shape[:2])
        if height * width * max(self.tta.factors) ** 2 > MAX_VIEW:
            raise ValueError(
                f"would be computed at {height}x{width}, times {max(self.tta.factors):g} on each "
                f"side; at most {MAX_VIEW:,} pixels are possible; choose a smaller size"
            )
        views = []
        for factor in self.tta.factors:
            resized = resize(picture, max(1, round(height * factor)), max(1, round(width * factor)))
            view = as_batch(resized, pin=self.device.type == "cuda")
            views += [(view, flipped) for flipped in ([False, True] if self.tta.flip else [False])]
        return views

    @torch.no_grad()
    def __call__(
        self,
        picture: np.ndarray | tuple[list[tuple[torch.Tensor, bool]], tuple[int, int]],
        *,
        confidences_of: Sequence[int] = (),
        truth: torch.Tensor | None = None,
        criterion: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> Prediction:
        """The Prediction for a picture. Raises ValueError if some scores are not finite.

        picture           uint8 [H, W, 3] RGB, or (`views` of it, (H, W))
        confidences_of    ids of the classes whose confidences are returned
        truth             class ids or IGNORE, uint8 [H, W] on the device, for the criterion
        criterion         maps scores [1, C, h, w] and labels int64 [1, h, w] of a part of the
                          picture to the mean loss over its valid pixels
        """
        if isinstance(picture, np.ndarray):
            views, size = self.views(picture), picture.shape[:2]
        else:
            views, size = picture
        scored = [(self.scores(view, flipped, size), flipped) for view, flipped in views]
        parts = average(scored, size) if len(views) > 1 else scored[0][0]
        maps = torch.empty((1 + len(confidences_of), *size), dtype=torch.uint8, device=self.device)
        total, valid = 0.0, 0
        for rows, columns, scores in parts:
            finite = scores[0].isfinite().all(0)
            maps[0, rows, columns] = scores[0].argmax(0).masked_fill(~finite, IGNORE).byte()
            if len(confidences_of):
                maps[1:, rows, columns] = confidence(scores[0], confidences_of)
            if criterion:
                labels = truth[None, rows, columns].long()
                pixels = (labels != IGNORE).sum()
                total, valid = total + criterion(scores, labels) * pixels, valid + pixels
        maps = maps.cpu().numpy()  # one copy, which waits for a GPU
        if (maps[0] == IGNORE).any():
            raise ValueError(
                "the network's scores are not finite: its weights are damaged, or too large for "
                "fp16; try --amp off"
            )
        return Prediction(maps[0], maps[1:], total / valid.clamp(min=1) if criterion else None)

    def scores(self, view, flipped, size) -> Iterator[tuple]:
        """The scores of a view, part by part (see `tiled`), at the picture's size."""
        image = view.to(self.device, non_blocking=True)
        image = image.flip(3) if flipped else image
        parts = tiled(self.compute, image, self.tile)
        height, width = image.shape[2:]
        same = (height, width) == tuple(size)
        yield from parts if same else stretch(parts, height, width, size)

    def compute(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 [N, 3, h, w] to scores [N, C, h, w]. Normalises tile by tile, since floats take
        four times the memory of bytes.
        """
        with self.autocast():
            return self.net(normalise(images).to(self.dtype))


def confidence(scores: torch.Tensor, classes: Sequence[int]) -> torch.Tensor:
    """How confident the scores [C, H, W] are in each of the K `classes`: uint8 [K, H, W].

    It is 255 * sigmoid(x / 4), where x = log(p / (1 - p)) are the log-odds of the probability p. It
    ranks pixels as p does, and is 128 where p is 0.5. 255 * p would be 255 from p = 0.998 (x = 6)
    on, where most of a road lies, and MaxF and AP could not rank these pixels. A quarter moves this
    limit to x = 25; the price is coarser steps near p = 0.5, of 1.6 per cent instead of 0.4
    (docs/results.md, "Road against the rest").
    """
    scores = scores.float()
    top, best = scores.max(0)
    # The best class is left out of the sum: subtracted later, it would cancel out all others.
    weights = (scores - top).exp_().scatter_(0, best[None], 0)
    rest = weights.sum(0)  # of all classes but the best, whose own weight is 1
    maps = []
    for c in classes:
        others = torch.where(best == c, rest, 1 + rest - weights[c])
        maps.append((255 * ((scores[c] - top - others.log()) / 4).sigmoid()).round().byte())
    return torch.stack(maps)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image uint8 [H, W, 3] interpolated to [height, width, 3]."""
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


# ---- Parts: (rows, columns, scores [1, C, h, w]), two slices and the scores there. Together the
# parts cover the picture once.


def tiled(
    compute: Callable, image: torch.Tensor, tile: int
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """The scores of an image [1, 3, H, W] in parts, each computed with its halo.

    compute    maps a part [1, 3, h, w] of the image to its scores

    At the border of the image there is no halo, and the network pads as usual.
    """
    height, width = image.shape[2:]
    # Tiles of a narrow image are longer, with the same area. But a side counts as at least HALO,
    # since the border of pad=100 and the windows of fc6 take memory however narrow the image is.
    if max(height, HALO) * max(width, HALO) <= tile * tile:
        yield slice(0, height), slice(0, width), compute(image)
        return
    wide = min(width, tile * tile // max(min(height, tile), HALO))
    tall = min(height, tile * tile // max(wide, HALO))
    parts = product(spans(height, tall), spans(width, wide))
    for (top, bottom, above, below), (left, right, before, behind) in parts:
        scores = compute(image[:, :, above:below, before:behind])
        inner = scores[:, :, top - above : bottom - above, left - before : right - before]
        yield slice(top, bottom), slice(left, right), inner


def spans(length: int, window: int) -> list[tuple[int, int, int, int]]:
    """Split 0 ... length into spans (start, stop, first, last): [start, stop), or with its halo
    [first, last), at most `window` long.
    """
    if length <= window:
        return [(0, length, 0, length)]
    step = (window - 2 * HALO) // 32 * 32
    return [
        (start, min(start + step, length), max(start - HALO, 0), min(start + step + HALO, length))
        for start in range(0, length, step)
    ]


def stretch(
    parts: Iterable[tuple], height: int, width: int, size: tuple[int, int]
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Interpolate the parts of an image [1, 3, height, width] bilinearly to `size`, strip by strip.

    F.interpolate computes the same, but needs all scores in memory. Here only one row of parts is
    kept.
    """
    done, last = 0, None  # finished rows of the result, and the last row of scores so far
    for rows, columns, scores in parts:
        if columns.start == 0:
            # A row of the result may lie between `last` and the first row of this part.
            top = rows.start if last is None else rows.start - 1
            band = scores.new_empty(*scores.shape[:2], rows.stop - top, width)
            if last is not None:
                band[:, :, :1] = last
        band[:, :, rows.start - top : rows.stop - top, columns] = scores
        if columns.stop < width:
            continue
        # Row y of the result lies at (y + 0.5) * height / size[0] - 0.5 in rows of the scores.
        ready = math.ceil((rows.stop - 0.5) * size[0] / height - 0.5)
        ready = size[0] if rows.stop == height else ready
        for strip in strips(done, ready):
            y = torch.arange(strip.start, strip.stop, device=band.device)
            place = ((y + 0.5) * (height / size[0]) - 0.5).clamp(0, height - 1) - top
            above = place.long()
            weight = (place - above)[:, None]
            scores = (
                band[:, :, above].float() * (1 - weight)
                + band[:, :, (above + 1).clamp(max=band.shape[2] - 1)].float() * weight
            )
            scores = F.interpolate(scores, size=(len(y), size[1]), mode="bilinear")
            yield strip, slice(0, size[1]), scores
        done, last = ready, band[:, :, -1:].clone()
        del band, scores  # before the next row of parts is computed


def average(
    views: list[tuple[Iterable[tuple], bool]], size: tuple[int, int]
) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Average the probabilities of several views, strip by strip.

    views    for each view, its parts at `size` and whether it is mirrored

    The scores are the logarithms of the mean probabilities, so their softmax restores the mean.
    """
    height, width = size
    mean = None
    for parts, flipped in views:
        for rows, columns, scores in parts:
            probabilities = scores.float().softmax(1) / len(views)
            if flipped:  # column x of the mirror image is column width - 1 - x of the picture
                probabilities = probabilities.flip(3)
                columns = slice(width - columns.stop, width - columns.start)
            if mean is None:
                mean = probabilities.new_zeros(*probabilities.shape[:2], height, width)
            mean[:, :, rows, columns] += probabilities
    for strip in strips(0, height):
        # A probability may be 0, but a score must be finite.
        yield strip, slice(0, width), mean[:, :, strip].clamp(min=1e-30).log()


def strips(start: int, stop: int) -> Iterator[slice]:
    """Slices of rows that cover start ... stop."""
    for top in range(start, stop, STRIP_ROWS):
        yield slice(top, min(top + STRIP_ROWS, stop))
