"""Images of any size: the scores tile by tile, so that the memory stays bounded, and what follows from the scores.

A tile is computed with a halo: pixels around it that are computed too and then cut off. The halo is 256 pixels wide. A
score of FCN-8s depends on pixels up to 245 away (`reach` of FCN8s), so with 245 pixels around it a tile has all that its
scores depend on. 256 is the next multiple of 32: every part must start at a multiple of 32, so that the five pools pair the
same rows and columns as in the whole image. (FCN-16s and FCN-32s have a reach of 241 and 233, and the same halo.)
"""

from __future__ import annotations

import math
from typing import Callable, Iterator, NamedTuple

import torch

from fcn import cross_entropy
from support.labels import IGNORE

TILE = 1536  # images of more than TILE x TILE pixels are computed in tiles of at most as many pixels


def halo_for(reach: float) -> int:
    """The width of the halo in pixels: `reach`, rounded up to a multiple of 32."""
    return 32 * math.ceil(reach / 32)


def smallest_tile(reach: float) -> int:
    """The smallest `tile` that `tiled` takes: two halos, and 32 pixels between them."""
    return 2 * halo_for(reach) + 32


def tiled(compute: Callable, image: torch.Tensor, reach: float, tile: int = TILE) -> Iterator[tuple]:
    """The scores of a large image, part by part: yields (rows, columns, scores [N, C, h, w] of that part), with two slices.

    compute    FCN8s, or a function that ends in one: from a part [N, 3, h, w] of the image [N, 3, H, W] to its scores
    reach      that of the network
    tile       bounds the memory: no more than tile x tile pixels are computed at a time

    The parts cover the image once, and their scores are those of the whole image up to rounding. There is no halo where the
    image itself ends; there the network pads as usual. Raises ValueError if the image has to be cut and `tile` is smaller than
    `smallest_tile`.
    """
    height, width = image.shape[2:]
    halo = halo_for(reach)
    # An image that is narrow in one direction leaves the rest of its tile to the other. But it counts as no narrower than
    # the halo, since the border of pad=100 and the windows of fc6 take memory however narrow it is.
    if max(height, halo) * max(width, halo) <= tile * tile:
        yield slice(0, height), slice(0, width), compute(image)
        return
    if tile < smallest_tile(reach):
        raise ValueError(f"tile is {tile}: it must be at least {smallest_tile(reach)}, {halo} on each side are halo")
    wide = min(width, tile * tile // max(min(height, tile), halo))
    tall = min(height, tile * tile // max(wide, halo))
    for top, bottom, above, below in spans(height, tall, halo):
        for left, right, before, behind in spans(width, wide, halo):
            scores = compute(image[:, :, above:below, before:behind])
            yield (slice(top, bottom), slice(left, right),
                   scores[:, :, top - above:bottom - above, left - before:right - before])


def spans(length: int, window: int, halo: int) -> list[tuple[int, int, int, int]]:
    """0 ... length in parts [start, stop), each with its halo in [first, last), which is at most `window` long."""
    if length <= window:
        return [(0, length, 0, length)]
    step = (window - 2 * halo) // 32 * 32
    return [(start, min(start + step, length), max(start - halo, 0), min(start + step + halo, length))
            for start in range(0, length, step)]


class Prediction(NamedTuple):
    """What the scores of one image say, on the image's device.

    classes      uint8 [H, W], the most probable class
    confidence   uint8 [H, W], 255 times the probability of the road, zeros if there is none
    loss         float scalar, the mean over the valid pixels, None without labels
    """
    classes: torch.Tensor
    confidence: torch.Tensor
    loss: torch.Tensor | None


@torch.no_grad()
def predict_image(compute: Callable, image: torch.Tensor, reach: float, tile: int = TILE, road: int | None = None,
                  labels: torch.Tensor | None = None, class_weights: torch.Tensor | None = None) -> Prediction:
    """The Prediction of one image [1, 3, H, W] of any size, tile by tile.

    road            the class whose confidence is wanted
    labels          int64 [1, H, W], class ids or IGNORE; with them the loss is computed too
    class_weights   of the loss, see `cross_entropy`
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
            total, valid = total + cross_entropy(scores, part, class_weights=class_weights) * pixels, valid + pixels
    return Prediction(classes, confidence, None if labels is None else total / valid.clamp(min=1))
