"""What a sample is, and what a data set is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np

from support.labels import only_road


class Sample(NamedTuple):
    """One labelled picture: the paths of its image and its label, and the group it belongs to.

    Images are held out in the same proportion from every group, and roads are scored by group. For KITTI Road the group is
    the benchmark's category: um_lane, um_road, umm_road or uu_road. Elsewhere it is "".
    """
    image: Path
    label: Path
    group: str


class DataSet(NamedTuple):
    """What was found in a folder.

    summary      one line on what was found
    classes      the names of classes 0 ... C-1
    train, val   the training set and the validation set (the held-out images)
    read_label   from the path of a label file to class ids uint8 [H, W]; raises InputError. The pixels of each id or colour
                 without a class are added to the Counter that may be given as its second argument
    kitti        whether the layout is KITTI Road's
    test         images that training never looks at, for predict.py --split test; most data sets have none
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
        """1 where class 1 is the road (or the one thing sought) and class 0 all else: then the benchmark's measures apply."""
        return 1 if only_road(self.classes) == 1 else None


def paths_below(root: Path, samples: list[Sample]) -> list[str]:
    """The images' paths below the folder of their data set, as checkpoints hold them."""
    return [Path(os.path.relpath(sample.image, root)).as_posix() for sample in samples]
