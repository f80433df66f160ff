"""At which size a picture is computed, and what to say if the network was trained on other sizes.

FCN-8s computes one score for 8 x 8 pixels. In a small picture, poles and signs are thinner than
that; in the enlarged picture they are thicker. So a network has a scale: it is trained and used at
this many times the size of its pictures, and its scores are brought back to their size.

A network knows things at the sizes at which it has seen them. The demo's network has an IoU of 90
per cent for the road on held-out scenes. The same scenes computed at half and twice their size give
84 and 82, at a quarter and four times 38 and 55.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

from support.console import InputError, warn

MOST = 2**28  # pixels to compute: more would fill the memory
FAR = 2.0  # times as large as the largest training image, or as small as the smallest: farther off, the user is warned


class Scale:
    """Says at which size pictures are computed, and warns of sizes that the network was not trained
    on.

    sizes             "smallest", "median" and "largest" (height, width) of the training images,
                      None if nobody knows
    own               the scale of the training
    factor, size      --scale and --size, where they are given
    views             how many times as large the views are that are averaged (--views)

    Raises InputError if `size` is too large.
    """

    def __init__(
        self,
        sizes: dict | None,
        own: float = 1.0,
        factor: float | None = None,
        size: tuple[int, int] | None = None,
        views: Sequence[float] = (1.0,),
    ):
        self.trained = {name: own * max(pair) for name, pair in sizes.items()} if sizes else None
        self.factor, self.size, self.views, self.far = factor or own, size, views, 0
        if size:
            self.refuse_too_large("--size", *size)

    def __call__(self, path: Path, image: np.ndarray) -> tuple[int, int]:
        """Height and width at which the picture uint8 [H, W, 3] is computed. Raises InputError if
        they are too large.
        """
        height, width = self.size or scaled_size(image, self.factor)
        self.refuse_too_large(path, height, width)
        self.warn_if_far(path, image, height, width)
        return height, width

    def warn_if_far(self, path: Path, image: np.ndarray, height: int, width: int):
        """Warn of the first picture of which a view is far from the sizes of the training, and
        count all such pictures.

        height, width    at which it is computed
        """
        if not self.trained:
            return
        smallest, median, largest = (
            self.trained[name] for name in ("smallest", "median", "largest")
        )
        sizes = [(round(height * view), round(width * view)) for view in self.views]
        # The longer side, since a picture in portrait format shows things as large as one in
        # landscape format.
        far = [size for size in sizes if not smallest / FAR <= max(size) <= largest * FAR]
        self.far += bool(far)
        if far and self.far == 1:
            tall, wide = far[0]
            limit, how = (
                (f"at most {largest:.0f}", "larger")
                if max(far[0]) > largest
                else (f"at least {smallest:.0f}", "smaller")
            )
            warn(
                "predict.py",
                f"{path}: is computed at {tall}x{wide}, but in training the longer side had {limit} pixels; "
                f"things appear {how} than there. --scale {median / max(image.shape[:2]):.2g} computes at the "
                "size of the training",
            )

    def refuse_too_large(self, what: Path | str, height: int, width: int):
        """Raise InputError if the largest view of a picture computed at [height, width] would fill
        the memory.
        """
        tall, wide = (round(side * max(self.views)) for side in (height, width))
        if tall * wide > MOST:
            raise InputError(
                f"{what}: would be computed at {tall}x{wide}; at most {MOST:,} pixels are possible, take a "
                "smaller --scale, --size or --views"
            )

    def sum_up(self):
        """Say how many pictures the warning was about, if there was more than one."""
        if self.far > 1:
            warn(
                "predict.py",
                f"{self.far} pictures were computed at sizes far from those of the training images",
            )


def at_scale(image: np.ndarray, factor: float) -> np.ndarray:
    """The image uint8 [H, W, 3] at `factor` times its size."""
    return resized(image, *scaled_size(image, factor))


def scaled_size(image: np.ndarray, factor: float) -> tuple[int, int]:
    """Height and width of an image [H, W, 3] at `factor` times its size."""
    height, width = (
        max(1, int(side * factor)) for side in image.shape[:2]
    )  # rounded down, as in an exported file
    return height, width


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The image uint8 [H, W, 3] interpolated to [height, width, 3]."""
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
