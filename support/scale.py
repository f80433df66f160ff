"""At which size a picture is computed, and what to say if the network was trained on other sizes.

A network knows things at the sizes at which it has seen them. The demo's network has an IoU of 90 per cent for the road on
held-out scenes. The same scenes computed at half and twice their size give 84 and 82, at a quarter and four times 38 and 55.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from support.errors import InputError, warn

MOST = 2**28  # pixels to compute: more would fill the memory
FAR = 2.0  # times as large as the largest training image, or as small as the smallest: farther off, the user is warned


class Scale:
    """Brings pictures to the size at which they are computed, and warns of sizes that the network was not trained on.

    sizes             "smallest", "median" and "largest" (height, width) of the training images, None if nobody knows
    factor, size      --scale and --size
    """

    def __init__(self, sizes: dict | None, factor: float | None, size: tuple[int, int] | None):
        self.trained = {name: max(pair) for name, pair in sizes.items()} if sizes else None
        self.factor, self.size, self.far = factor, size, 0

    def __call__(self, path: Path, image: np.ndarray) -> np.ndarray:
        """The picture uint8 [H, W, 3] at the size to compute."""
        height, width = self.size or (max(1, round(side * (self.factor or 1))) for side in image.shape[:2])
        if height * width > MOST:
            raise InputError(f"{path}: would be computed at {height}x{width}; at most {MOST:,} pixels are possible, take a "
                             "smaller --scale or --size")
        # The longer side, since a picture in portrait format shows things as large as one in landscape format.
        longer = max(height, width)
        if self.trained and not self.trained["smallest"] / FAR <= longer <= self.trained["largest"] * FAR:
            self.far += 1
            if self.far == 1:
                limit, how = ((f"at most {self.trained['largest']}", "larger") if longer > self.trained["largest"] else
                              (f"at least {self.trained['smallest']}", "smaller"))
                warn("predict.py", f"{path}: is computed at {height}x{width}, but the training images are {limit} pixels on "
                                   f"the longer side; things appear {how} than in training. --scale "
                                   f"{self.trained['median'] / max(image.shape[:2]):.2g} computes at the size of the training "
                                   "images")
        if (height, width) == image.shape[:2]:
            return image
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def sum_up(self):
        """Say how many pictures the warning was about, if there was more than one."""
        if self.far > 1:
            warn("predict.py", f"{self.far} pictures were computed at sizes far from those of the training images")
