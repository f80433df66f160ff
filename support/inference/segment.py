"""One call from a picture to its classes, for your own programs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from fcn import FCN8s
from support.datasets.images import as_rgb
from support.device import as_batch, normalise
from support.inference.predictor import TILE, predict_image
from support.inference.scale import at_scale


def segment(
    net: FCN8s,
    picture: Image.Image | np.ndarray,
    confidence: int | str | None = None,
    tile: int = TILE,
):
    """The class ids uint8 [H, W] of a picture, computed on the network's device.

    net           such as FCN8s.load("runs/NAME/best.pt"), in evaluation mode; it computes at
                  net.resize_factor times the size
    picture       a PIL image of any mode and size, or uint8 [H, W, 3] RGB. It is taken as it is,
                  not turned by its EXIF tag
    confidence    a class, by id or by name: then (class ids, confidence) comes back, uint8 [H, W]
                  both, the confidence 255 times the probability of that class
    tile          pictures of more than tile x tile pixels are computed in parts, with the same
                  result (support/tiles.py)

    Several threads may call it with one network. Raises ValueError for another kind of picture, an
    unknown class, a network in training mode, and a tile that is too small for a picture that needs
    it.
    """
    if not isinstance(net, FCN8s):
        raise ValueError(
            f"the network is a {type(net).__name__}: pass the FCN8s itself, such as wrapper.module"
        )
    if any(module.training for module in net.modules()):
        raise ValueError(
            "the network is in training mode, where dropout changes the scores: call net.eval() first"
        )
    pixels = np.ascontiguousarray(
        as_rgb(picture) if isinstance(picture, Image.Image) else picture
    )  # not a mirrored view
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"the picture is {pixels.dtype} {list(pixels.shape)}: it must be a PIL image, or uint8 [H, W, 3]"
        )
    sought = []
    if confidence is not None:
        names = list(net.classes or [])
        sought = [names.index(confidence) if confidence in names else confidence]
        if isinstance(confidence, bool) or sought[0] not in range(net.config["num_classes"]):
            raise ValueError(f"there is no class {confidence!r}; net.classes is {net.classes}")
    weight = next(net.parameters())
    images = as_batch(at_scale(pixels, net.resize_factor)).to(weight.device)
    seen = predict_image(
        lambda part: net(normalise(part).to(weight.dtype)),
        images,
        net.reach,
        tile,
        sought,
        size=pixels.shape[:2],
    )
    mask = seen.classes.cpu().numpy()
    return (mask, seen.confidences[0].cpu().numpy()) if sought else mask
