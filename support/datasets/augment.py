"""Augmentation: random views of the training images.

A view is scaled, cropped, mirrored half of the time, and changed in colour. Image and label get the
same crop. The image is resized bilinearly, the label by nearest neighbour.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

SCALE_RANGE = (0.75, 1.35)  # as if each car were farther away or nearer
# Height and width of a view are multiples of this: some ten sizes instead of hundreds. Preparing
# kernels and memory for every new size made a step a tenth slower.
STEP = 32
# On a new street, the light and the colours of cars and houses are different. On a street outside
# the training set, colour augmentation gained three points of mean IoU.
SATURATION = 0.5  # saturation times 0.5 ... 1.5
LIGHT = 0.15  # red, green and blue, each times 0.85 ... 1.15
GAMMA = 0.4  # exponent of e**-0.4 ... e**0.4: lightens or darkens dark parts
CONTRAST = 0.3  # contrast times 0.7 ... 1.3, around mid-grey
BRIGHTNESS = 40  # plus or minus this many of 255 levels


def view_size(height: int, width: int, factor: float) -> tuple[int, int]:
    """(height, width) of the view of a whole image at scale `factor`."""
    h, w = (max(STEP, STEP * round(side * factor / STEP)) for side in (height, width))
    return h, w


def draw_size(
    height: int,
    width: int,
    rng: np.random.Generator,
    crop: tuple[int, int] | None,
    scale_range: tuple[float, float],
) -> tuple[float, int, int]:
    """(scale, height, width) of the view that `augment` makes of an image of this size.

    rng    in the state in which `augment` gets it: the scale is drawn first
    """
    # Log-uniform: enlarges as often as it shrinks.
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
    """A random view of image uint8 [H, W, 3] and label uint8 [H, W], of size [h, w].

    crop           maximum (height, width) of the view
    scale_range    smallest and largest scale
    colours        False: change only contrast and brightness
    flip           mirror half of the views
    """
    height, width = label.shape
    factor, h, w = draw_size(height, width, rng, crop, scale_range)
    # The window of the original that becomes h x w: one resampling crops and scales.
    window_h, window_w = min(height, h / factor), min(width, w / factor)
    # A quarter of the windows lie at each edge. A uniform draw would show the outermost rows (the
    # nearest road) far less often in training than in prediction.
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
    # [3, 256]: lookup tables for red, green and blue
    levels = 255 * np.minimum(light * np.arange(256) / 255, 1) ** gamma
    levels = np.clip((levels - 127.5) * contrast + 127.5 + brightness, 0, 255).astype(np.uint8)
    image = np.asarray(picture.point(levels.ravel().tolist()))

    return (image[:, ::-1], label[:, ::-1]) if flip and rng.random() < 0.5 else (image, label)
