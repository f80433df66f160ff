"""One sample read: its picture and its label map, of one size and the same way up, kept in RAM while there is room."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Callable

import numpy as np
from PIL import Image

from support.errors import InputError
from support.pictures import TURNS, read_picture

CACHE_BYTES = 2 * 2**30  # decoded pictures and labels kept in RAM by each process; KITTI Road (0.5 GB) and CamVid (0.3) fit


class Reader:
    """reader(sample) gives (image uint8 [H, W, 3], label uint8 [H, W]). Decoded pairs stay in RAM up to `cache_bytes`.

    read_label    that of the DataSet

    What does not fit is decoded again each time. Nothing is evicted: each image is used once per epoch in random order, so
    any cached image is as useful as any other. May be called from several threads. Raises InputError naming the file.
    """

    def __init__(self, read_label: Callable[[Path, Counter | None], np.ndarray], cache_bytes: int = CACHE_BYTES):
        self.read_label = read_label
        self.room = cache_bytes
        self.cache = {}
        self.lock = threading.Lock()

    def __call__(self, sample, strays: Counter | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The image uint8 [H, W, 3] and the label map uint8 [H, W] of a sample.

        Its pixels without a class are added to `strays`, unless it is in the cache.
        """
        if sample in self.cache:
            return self.cache[sample]
        picture = read_picture(sample.image)
        label = same_way_up(sample, picture, self.read_label(sample.label, strays))
        image = picture.pixels
        if image.shape[:2] != label.shape:
            raise InputError(f"{sample.label}: is {label.shape[1]}x{label.shape[0]}, its image {sample.image} is "
                             f"{image.shape[1]}x{image.shape[0]}; they must be of one size")
        with self.lock:
            if image.nbytes + label.nbytes <= self.room and sample not in self.cache:
                self.room -= image.nbytes + label.nbytes
                self.cache[sample] = image, label
        return image, label


def same_way_up(sample, picture, label: np.ndarray) -> np.ndarray:
    """The label map uint8 [H, W] of a sample, turned upright with its picture (class Picture) if it was drawn on the picture as
    it is stored. Raises InputError.

    Cameras store what the sensor saw and note in an EXIF tag how they were held. Pictures are turned by it; masks have no
    such tag. Some labelling tools show the picture turned, others as it is stored. Where the turn swaps height and width, the
    mask's size tells which. Where both sizes are alike, nobody can tell.
    """
    if picture.orientation == 1:
        return label
    upright = picture.pixels.shape[:2]
    stored = upright[::-1] if picture.orientation >= 5 else upright
    if label.shape == stored == upright:
        raise InputError(f"{sample.image}: its EXIF tag turns it (orientation {picture.orientation}), its mask {sample.label} "
                         "has no such tag, and their sizes do not show whether it was drawn before or after the turn; save "
                         "the picture as it was labelled, without the tag")
    return np.asarray(Image.fromarray(label).transpose(TURNS[picture.orientation])) if label.shape == stored else label
