"""Before the first step: every file is read once, and the pixels of each class are counted.

A run must not fail after hours because of a file that cannot be read. And the counts tell whether there is anything to learn,
and which classes are rare.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from data import DataSet
from support.batches import Reader
from support.birdseye import calibration_of, homography
from support.errors import InputError
from support.progress import Progress

RAREST = 1e-4  # share of the pixels: classes that are rarer weigh no more than this one (weigh_classes)


class Counts(NamedTuple):
    """Pixels of each class, int64 [C], in the training set and in the validation set; the largest height and width."""
    training: np.ndarray
    held_out: np.ndarray
    largest: tuple[int, int]


def read_everything(data: DataSet, reader: Reader) -> Counts:
    """Read every picture, label and calibration once, and count. Raises InputError for a file that cannot be used."""
    samples = data.train + data.val
    progress, largest = Progress(len(samples)), (0, 0)
    training, held_out = np.zeros((2, len(data.classes)), np.int64)

    def read(sample):
        if data.kitti and calibration_of(sample.image).is_file():
            homography(calibration_of(sample.image))
        label = reader(sample)[1]
        return label.shape, np.bincount(label.ravel(), minlength=256)[:len(data.classes)]

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(read, sample) for sample in samples]
        try:
            for i, future in enumerate(futures):
                (height, width), pixels = future.result()
                part = training if i < len(data.train) else held_out
                part += pixels
                largest = max(largest[0], height), max(largest[1], width)
                if progress.due():
                    progress.show(f"reading {i + 1}/{len(samples)} images")
        finally:
            pool.shutdown(cancel_futures=True)  # after an error: do not read what nobody will use
    progress.line(f"{len(samples)} images read, the largest {largest[0]}x{largest[1]} (height x width)")
    return Counts(training, held_out, largest)


def check_counts(counts: Counts, data: DataSet, crop: tuple[int, int] | None):
    """Raise InputError if there is nothing to learn or to score, or if `crop` is larger than all images.

    Classes that no training image shows are named on standard output.
    """
    masks = data.train[0].label.parent
    for part, pixels in (("training", counts.training), ("held-out", counts.held_out)):
        if not pixels.any():
            raise InputError(f"{masks}: no pixel of a {part} image has a class that counts; compare the ids in the masks with "
                             "classes.txt")
    if (counts.training > 0).sum() == 1:
        raise InputError(f"{masks}: every training pixel that counts is of one class, "
                         f"{data.classes[counts.training.argmax()]}; masks hold the ids 0, 1, 2, ..., and 255 is ignored: "
                         "where it marks the object, write 1 instead")
    if unseen := [name for name, pixels in zip(data.classes, counts.training) if not pixels]:
        print(f"no training image shows: {', '.join(unseen)}", flush=True)
    height, width = counts.largest
    if crop and min(crop[0] - height, crop[1] - width) > 0:
        raise InputError(f"--crop {crop[0]}x{crop[1]}: every image is smaller, the largest {height}x{width}; "
                         "leave it out for whole images")


def weigh_classes(pixels: np.ndarray) -> torch.Tensor:
    """float32 [C]: the weight of a pixel of each class in the loss, so that rare classes are not lost among the others.

    pixels    [C], the pixels of each class in all training images

    A class of frequency f has weight 1 / sqrt(f), times a factor that makes the mean over all pixels 1. That lies between
    all pixels alike (weight 1) and all classes alike (1 / f), however few pixels show them. Below RAREST the weight grows no
    more, or a few stray pixels would outweigh all else. A class that no image shows has weight 1.
    """
    frequency = pixels / max(pixels.sum(), 1)
    weights = 1 / np.sqrt(np.maximum(frequency, RAREST))
    weights /= (frequency * weights).sum() or 1
    return torch.tensor(np.where(pixels > 0, weights, 1), dtype=torch.float32)
