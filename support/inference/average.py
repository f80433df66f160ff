"""Several views of one picture: enlarged, reduced, mirrored. Their probabilities are averaged.

The network errs differently on each view, and some of the errors cancel out. Each view is a
prediction of its own: at factor F it takes F x F times as long as at 1. Published scores are often
taken so; a comparison must say it.
"""

from __future__ import annotations

from typing import Iterable, Iterator, NamedTuple

import numpy as np
import torch

from support.device import as_batch
from support.inference.scale import resized

STRIP = 256  # rows of the mean that are passed on at once


class Views(NamedTuple):
    """The views that are averaged: each of `factors` times the size at which the picture is
    computed and, if `mirrored`, the mirror image of each too.
    """

    factors: tuple[float, ...] = (1.0,)
    mirrored: bool = False


def parse_views(text: str) -> Views:
    """ "0.75,1,1.25,flip" to Views. Raises ValueError for other text."""
    words = text.split(",")
    factors = tuple(float(word) for word in words if word != "flip")
    return Views(factors or (1.0,), "flip" in words)


def views_of(
    image: np.ndarray, height: int, width: int, views: Views
) -> Iterator[tuple[torch.Tensor, bool]]:
    """The views of an image uint8 [H, W, 3] that is computed at [height, width]: uint8 [1, 3, h,
    w], and whether mirrored.
    """
    for factor in views.factors:
        view = as_batch(
            resized(image, max(1, round(height * factor)), max(1, round(width * factor)))
        )
        yield view, False
        if views.mirrored:
            yield view.flip(3), True


def averaged(views: list[tuple[Iterable[tuple], bool]], height: int, width: int) -> Iterator[tuple]:
    """The mean of some views of an image, strip by strip: yields (rows, columns, scores [1, C, h,
    width]).

    views    of each view its parts (rows, columns, scores), stretched to [height, width], and
             whether it is mirrored

    The scores are the logarithms of the mean probabilities, so their softmax gives these.
    """
    mean = None
    for parts, mirrored in views:
        for rows, columns, scores in parts:
            probabilities = scores.float().softmax(1) / len(views)
            if mirrored:  # column x of the mirror image is column width - 1 - x of the image
                probabilities, columns = (
                    probabilities.flip(3),
                    slice(width - columns.stop, width - columns.start),
                )
            if mean is None:
                mean = probabilities.new_zeros(*probabilities.shape[:2], height, width)
            mean[:, :, rows, columns] += probabilities
    for top in range(0, height, STRIP):
        rows = slice(top, min(top + STRIP, height))
        yield rows, slice(0, width), mean[:, :, rows].log()
