"""What the numbers in a label map mean.

A label map holds class ids 0 ... C-1, in the order of the data set's class names, and IGNORE where
nobody has said what a pixel shows. Labels are copied or picked, never blended: between class 1 and
class 3 there is no class 2.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np

IGNORE = 255  # pixels with this label neither train nor count


def is_background(name: str) -> bool:
    return name.casefold() == "background"


def road_class(classes: list[str]) -> int | None:
    """The id of the class that is the road, by its name, or of the one class besides background.
    None if there is none.
    """
    if len(classes) == 2 and is_background(classes[0]):
        return 1
    return next((classes.index(name) for name in ("road", "lane") if name in classes), None)


def only_road(classes: list[str]) -> int | None:
    """`road_class` where the only other class is all that is not road; else None."""
    return road_class(classes) if len(classes) == 2 else None


# ---- What a sample is, and what a data set is.


class Sample(NamedTuple):
    """One labelled picture: the paths of its image and its label, and the group it belongs to.

    Images are held out in the same proportion from every group, and roads are scored by group. For
    KITTI Road the group is the benchmark's category: um_lane, um_road, umm_road or uu_road.
    Elsewhere it is "".
    """

    image: Path
    label: Path
    group: str


class DataSet(NamedTuple):
    """What was found in a folder.

    summary      one line on what was found
    classes      the names of classes 0 ... C-1
    train, val   the training set and the validation set (the held-out images)
    read_label   from the path of a label file to class ids uint8 [H, W]; raises InputError. The
                 pixels of each id or colour without a class are added to the Counter that may be
                 given as its second argument
    kitti        whether the layout is KITTI Road's
    test         images that training never looks at, for predict.py --split test; most data sets
                 have none
    """

    summary: str
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    read_label: Callable[..., np.ndarray]
    kitti: bool = False
    test: list[Sample] = []

    @property
    def road(self) -> int | None:
        """1 where class 1 is the road (or the one thing sought) and class 0 all else: then the
        benchmark's measures apply.
        """
        return 1 if only_road(self.classes) == 1 else None


def paths_below(root: Path, samples: list[Sample]) -> list[str]:
    """The images' paths below the folder of their data set, as checkpoints hold them."""
    return [Path(os.path.relpath(sample.image, root)).as_posix() for sample in samples]
