"""Label maps, samples and data sets.

A label map is a uint8 array [H, W] with the class of each pixel of an image: an id 0 ... C-1, in
the order of the data set's class names, or IGNORE if the class is unknown. Labels are never
interpolated: the mean of class 1 and class 3 is not class 2.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

IGNORE = 255  # pixels with this label are left out of training and scores
VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
).split()


class Sample(NamedTuple):
    """An image and its label map.

    image    path of the image
    label    path of the label map
    group    for KITTI Road um_lane, um_road, umm_road or uu_road (see kitti.py), otherwise "".
             Each group gives the same share of its images to the validation set, and has its own
             road scores
    """

    image: Path
    label: Path
    group: str


class DataSet(NamedTuple):
    """The classes and samples of a data set.

    summary       one-line description
    classes       names of classes 0 ... C-1
    train, val    training set and validation set
    read_label    reads the label map of a label file; raises InputError. To an optional second
                  argument, a Counter, the readers of your own masks and of VOC add the pixels of
                  each id or colour without a class, and of id 0
    kitti         whether the folder has KITTI Road's layout
    test          test set, which training never reads; most data sets have none
    ids           names of the mask ids from 0 up, before --classes drops any; [] if
                  `check_first_id` does not apply
    """

    summary: str
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    read_label: Callable[..., np.ndarray]
    kitti: bool = False
    test: list[Sample] = []
    ids: list[str] = []

    @property
    def road(self) -> int | None:
        """`only_road`: if it is 1, the road is scored as in KITTI Road."""
        return only_road(self.classes)


def is_background(name: str) -> bool:
    """Whether this class name means "none of the other classes"."""
    return name.casefold() == "background"


def road_class(classes: list[str]) -> int | None:
    """The id of class "road" or "lane", or of the only class besides background, or None."""
    if len(classes) == 2 and is_background(classes[0]):
        return 1
    return next((classes.index(name) for name in ("road", "lane") if name in classes), None)


def only_road(classes: list[str]) -> int | None:
    """1 if there are two classes and class 1 is the `road_class`, otherwise None."""
    return 1 if len(classes) == 2 and road_class(classes) == 1 else None


def paths_below(root: Path, samples: list[Sample]) -> list[str]:
    """The images' paths relative to the data set's folder, as stored in checkpoints."""
    return [Path(os.path.relpath(sample.image, root)).as_posix() for sample in samples]
