"""Label maps, samples and data sets.

A label map is a uint8 array [H, W] that says what each pixel of an image shows: a class id 0 ...
C-1, in the order of the data set's class names, or IGNORE where the class is not known. Labels are
copied or picked, never blended: between class 1 and class 3 there is no class 2.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

IGNORE = 255  # pixels with this label neither train nor count
VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse "
    "motorbike person pottedplant sheep sofa train tvmonitor"
).split()


class Sample(NamedTuple):
    """An image and its label map.

    image    path of the image
    label    path of the label map
    group    for KITTI Road um_lane, um_road, umm_road or uu_road (see kitti.py), else "". Every
             group gives the same share of its images to the validation set, and the road is scored
             for each group
    """

    image: Path
    label: Path
    group: str


class DataSet(NamedTuple):
    """The samples of a folder.

    summary       one line on what was found
    classes       the names of classes 0 ... C-1
    train, val    the training set and the validation set
    read_label    from the path of a label file to its label map; raises InputError. It may be given
                  a Counter as a second argument, to which it adds the pixels of each id or colour
                  that belongs to no class, and those of id 0
    kitti         whether the folder has KITTI Road's layout
    test          the test set, which training never reads; most data sets have none
    ids           how many ids of the masks, from 0 on, have a name in classes.txt, whichever of
                  these classes are kept; 0 if the masks mean something else
    """

    summary: str
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    read_label: Callable[..., np.ndarray]
    kitti: bool = False
    test: list[Sample] = []
    ids: int = 0

    @property
    def road(self) -> int | None:
        """`only_road`: if it is 1, the road is scored as KITTI Road scores it."""
        return only_road(self.classes)


def is_background(name: str) -> bool:
    """Whether a class of this name is all that the other classes are not."""
    return name.casefold() == "background"


def road_class(classes: list[str]) -> int | None:
    """The id of the class "road" or "lane", or of the one class besides background; else None."""
    if len(classes) == 2 and is_background(classes[0]):
        return 1
    return next((classes.index(name) for name in ("road", "lane") if name in classes), None)


def only_road(classes: list[str]) -> int | None:
    """1 if class 1 is the road, or the one class sought, and class 0 is all else; or None."""
    return 1 if len(classes) == 2 and road_class(classes) == 1 else None


def paths_below(root: Path, samples: list[Sample]) -> list[str]:
    """The images' paths relative to the folder of their data set, as checkpoints hold them."""
    return [Path(os.path.relpath(sample.image, root)).as_posix() for sample in samples]
