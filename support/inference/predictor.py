"""Images of any size: the scores tile by tile, so that the memory stays bounded, and what follows
from the scores.

A tile is computed with a halo: pixels around it that are computed too and then cut off. The halo is
256 pixels wide. A score of FCN-8s depends on pixels up to 245 away (`reach` of FCN8s), so with 245
pixels around it a tile has all that its scores depend on. 256 is the next multiple of 32: every
part must start at a multiple of 32, so that the five pools pair the same rows and columns as in the
whole image. (FCN-16s and FCN-32s have a reach of 241 and 233, and the same halo.)
"""

from __future__ import annotations

import math
from itertools import product
from typing import Callable, Iterable, Iterator, NamedTuple, Sequence

import torch
import torch.nn.functional as F

from fcn import cross_entropy
from support.inference.average import averaged
from support.labels import IGNORE

TILE = (
    1536  # images of more than TILE x TILE pixels are computed in tiles of at most as many pixels
)
STRIP = 256  # rows that are interpolated at once


def halo_for(reach: float) -> int:
    """The width of the halo in pixels: `reach`, rounded up to a multiple of 32."""
    return 32 * math.ceil(reach / 32)


def smallest_tile(reach: float) -> int:
    """The smallest `tile` that `tiled` takes: two halos, and 32 pixels between them."""
    return 2 * halo_for(reach) + 32


def tiled(
    compute: Callable,
    image: torch.Tensor,
    reach: float,
    tile: int = TILE,
    tell: Callable[[int, int], None] | None = None,
) -> Iterator[tuple]:
    """The scores of a large image, part by part: yields (rows, columns, scores [N, C, h, w] of that
    part), with two slices.

    compute    FCN8s, or a function that ends in one: from a part [N, 3, h, w] of the image [N, 3,
               H, W] to its scores
    reach      that of the network
    tile       bounds the memory: no more than tile x tile pixels are computed at a time
    tell       is called before each part, with the number of parts done and the number of all parts

    The parts cover the image once, and their scores are those of the whole image up to rounding.
    There is no halo where the image itself ends; there the network pads as usual. Raises ValueError
    if the image has to be cut and `tile` is smaller than `smallest_tile`.
    """
    height, width = image.shape[2:]
    halo = halo_for(reach)
    # An image that is narrow in one direction leaves the rest of its tile to the other. But it
    # counts as no narrower than the halo, since the border of pad=100 and the windows of fc6 take
    # memory however narrow it is.
    if max(height, halo) * max(width, halo) <= tile * tile:
        yield slice(0, height), slice(0, width), compute(image)
        return
    if tile < smallest_tile(reach):
        raise ValueError(
            f"tile is {tile}: it must be at least {smallest_tile(reach)}, {halo} on each side are halo"
        )
    wide = min(width, tile * tile // max(min(height, tile), halo))
    tall = min(height, tile * tile // max(wide, halo))
    parts = list(product(spans(height, tall, halo), spans(width, wide, halo)))
    for done, ((top, bottom, above, below), (left, right, before, behind)) in enumerate(parts):
        if tell:
            tell(done, len(parts))
        scores = compute(image[:, :, above:below, before:behind])
        yield (
            slice(top, bottom),
            slice(left, right),
            scores[:, :, top - above : bottom - above, left - before : right - before],
        )


def spans(length: int, window: int, halo: int) -> list[tuple[int, int, int, int]]:
    """0 ... length in parts [start, stop), each with its halo in [first, last), which is at most
    `window` long.
    """
    if length <= window:
        return [(0, length, 0, length)]
    step = (window - 2 * halo) // 32 * 32
    return [
        (start, min(start + step, length), max(start - halo, 0), min(start + step + halo, length))
        for start in range(0, length, step)
    ]


def stretched(
    parts: Iterable[tuple], height: int, width: int, size: tuple[int, int]
) -> Iterator[tuple]:
    """The parts that `tiled` yields of an image [N, 3, height, width], interpolated bilinearly to
    `size` (H, W), strip by strip.

    As F.interpolate does it to the whole, whose result may be too large for the memory.
    """
    whole = None
    for rows, columns, scores in parts:
        if whole is None:
            whole = scores.new_empty(*scores.shape[:2], height, width)
        whole[:, :, rows, columns] = scores
    for top in range(0, size[0], STRIP):
        rows = torch.arange(top, min(top + STRIP, size[0]), device=whole.device)
        place = ((rows + 0.5) * (height / size[0]) - 0.5).clamp(0, height - 1)  # in rows of `whole`
        above = place.long()
        weight = (place - above)[:, None]
        strip = (
            whole[:, :, above].float() * (1 - weight)
            + whole[:, :, (above + 1).clamp(max=height - 1)].float() * weight
        )
        yield (
            slice(top, top + len(rows)),
            slice(0, size[1]),
            F.interpolate(strip, size=(len(rows), size[1]), mode="bilinear", align_corners=False),
        )


class Prediction(NamedTuple):
    """What the scores of one image say, on the image's device.

    classes        uint8 [H, W], the most probable class
    confidences    uint8 [K, H, W], 255 times the probability of each of the K classes that were
                   asked for
    loss           float scalar, the mean over the valid pixels, None without labels
    """

    classes: torch.Tensor
    confidences: torch.Tensor
    loss: torch.Tensor | None


@torch.no_grad()
def predict_image(
    compute: Callable,
    image: torch.Tensor,
    reach: float,
    tile: int = TILE,
    sought: Sequence[int] = (),
    labels: torch.Tensor | None = None,
    class_weights: torch.Tensor | None = None,
    size: tuple[int, int] | None = None,
    tell: Callable[[int, int], None] | None = None,
    more: Sequence[tuple[torch.Tensor, bool]] = (),
) -> Prediction:
    """The Prediction of one image [1, 3, H, W] of any size, tile by tile.

    sought          the classes whose confidences are wanted
    labels          int64 [1, H, W], class ids or IGNORE; with them the loss is computed too
    class_weights   of the loss, see `cross_entropy`
    size            (H, W) of the result and the labels, if it is not that of the image
    tell            see `tiled`; with `more`, parts of all views are counted, as if each had as many
                    as the present one
    more            other views of the same picture, (image, whether it is mirrored); the
                    probabilities of all are averaged
    """
    size = tuple(size or image.shape[2:])
    views = [(image, False), *more]

    def scored(number, view):
        count = tell and (lambda done, parts: tell(number * parts + done, len(views) * parts))
        parts = tiled(compute, view, reach, tile, count)
        return parts if size == view.shape[2:] else stretched(parts, *view.shape[2:], size)

    each = [(scored(number, view), mirrored) for number, (view, mirrored) in enumerate(views)]
    parts = averaged(each, *size) if more else each[0][0]
    classes = torch.empty(size, dtype=torch.uint8, device=image.device)
    confidences, total, valid = classes.new_empty(len(sought), *classes.shape), 0.0, 0
    for rows, columns, scores in parts:
        classes[rows, columns] = scores[0].argmax(0).byte()
        if len(sought):
            confidences[:, rows, columns] = (
                (255 * scores[0].float().softmax(0)[list(sought)]).round().byte()
            )
        if labels is not None:
            part = labels[:, rows, columns]
            pixels = (part != IGNORE).sum()
            total, valid = (
                total + cross_entropy(scores, part, class_weights=class_weights) * pixels,
                valid + pixels,
            )
    return Prediction(classes, confidences, None if labels is None else total / valid.clamp(min=1))
