"""Augmentation: random views of the training images.

A view has another scale, shows another part, is mirrored or not, and lies in another light. Image
and label go through one and the same window. The image is interpolated, labels are picked and never
blended.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

SCALE_RANGE = (0.75, 1.35)  # each car is met nearer and farther than it was
# Height and width of a view are multiples of this: some ten sizes instead of hundreds. The
# libraries prepare kernels and memory for every new size, which made a step a tenth slower.
STEP = 32
# Another street lies in another light, and has cars and houses of other colours. On a street that
# no training image shows, these changes of colour were worth three points of mean IoU.
SATURATION = 0.5  # the distance of colours from grey, times 0.5 ... 1.5
LIGHT = 0.15  # red, green and blue, each times 0.85 ... 1.15
GAMMA = 0.4  # exponent of e**-0.4 ... e**0.4: dark parts lighter or darker
CONTRAST = 0.3  # contrast times 0.7 ... 1.3, around mid-grey
BRIGHTNESS = 40  # plus or minus this many of 255 levels


def view_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """Height and width of a view of a whole image at `factor` times its size."""
    h, w = (max(STEP, STEP * round(side * factor / STEP)) for side in (height, width))
    return h, w


def draw_size(
    height: int,
    width: int,
    rng: np.random.Generator,
    crop: tuple[int, int] | None = None,
    scale_range: tuple[float, float] = SCALE_RANGE,
) -> tuple[float, int, int]:
    """The scale, height and width of the view that `augment` makes of an image of this size.

    rng    in the state that `augment` gets it in: this is the first thing that is drawn
    """
    # Even in the logarithm: as often larger as smaller.
    factor = np.exp(rng.uniform(*np.log(scale_range)))
    h, w = view_size(height, width, factor)
    return (factor, min(h, crop[0]), min(w, crop[1])) if crop else (factor, h, w)


def augment(
    image: np.ndarray,
    label: np.ndarray,
    rng: np.random.Generator,
    crop: tuple[int, int] | None = None,
    scale_range: tuple[float, float] = SCALE_RANGE,
    colours: bool = True,
    flip: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """A random view of image uint8 [H, W, 3] and label uint8 [H, W], in the same types at [h, w].

    crop           (height, width): the view is at most this large
    scale_range    the smallest and the largest scale
    colours        without it, only contrast and brightness change
    flip           whether half the views are mirrored; without it, left stays left
    """
    height, width = label.shape
    factor, h, w = draw_size(height, width, rng, crop, scale_range)
    # The window of the original that becomes h x w: crop and scale are one resampling.
    window_h, window_w = min(height, h / factor), min(width, w / factor)
    # A quarter of the windows lies at each edge. An even draw would show the outermost rows, where
    # the nearest road is, far less often than the network meets them later.
    down, across = np.clip(rng.uniform(-0.5, 1.5, 2), 0, 1)
    top, left = down * (height - window_h), across * (width - window_w)
    window = (left, top, left + window_w, top + window_h)
    picture = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR, box=window)
    label = np.asarray(Image.fromarray(label).resize((w, h), Image.Resampling.NEAREST, box=window))

    light, gamma = np.ones((3, 1)), 1.0
    if colours:
        picture = ImageEnhance.Color(picture).enhance(rng.uniform(1 - SATURATION, 1 + SATURATION))
        light, gamma = rng.uniform(1 - LIGHT, 1 + LIGHT, (3, 1)), np.exp(rng.uniform(-GAMMA, GAMMA))
    contrast = rng.uniform(1 - CONTRAST, 1 + CONTRAST)
    brightness = rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    # [3, 256]: the new level of each of 256 levels of red, green and blue
    levels = 255 * np.minimum(light * np.arange(256) / 255, 1) ** gamma
    levels = np.clip((levels - 127.5) * contrast + 127.5 + brightness, 0, 255).astype(np.uint8)
    image = np.asarray(picture.point(levels.ravel().tolist()))

    return (image[:, ::-1], label[:, ::-1]) if flip and rng.random() < 0.5 else (image, label)
