"""Data sets as they are published: PASCAL VOC and Cityscapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from support.console import InputError, counted
from support.datasets.classes import mask_reader, read_classes
from support.datasets.folders import matched, pair_patterns, read_list, refuse_both
from support.datasets.images import read_mask
from support.labels import IGNORE, DataSet, Sample

VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
    "pottedplant sheep sofa train tvmonitor"
).split()
# The classes of Cityscapes' benchmark and their ids in *_labelIds.png; all other ids are ignored.
CITYSCAPES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}


def find_cityscapes(root: Path, task: str, split_seed: int) -> DataSet:
    """Cityscapes (Cordts et al. 2016): leftImg8bit and gtFine beside each other, 19 classes, the
    cities of val held out.

    The masks are *_labelTrainIds.png if the benchmark's scripts have made them, otherwise
    *_labelIds.png, which say the same in other numbers. The published masks of its test images are
    empty; those images are left out. Raises InputError.
    """
    masks = root / "gtFine" / "train"
    kind = next(
        (
            kind
            for kind in ("labelTrainIds", "labelIds")
            if any(masks.glob(f"*/*_gtFine_{kind}.png"))
        ),
        None,
    )
    if not kind:
        raise InputError(
            f"{masks}: holds no masks named *_gtFine_labelTrainIds.png or *_gtFine_labelIds.png"
        )
    images, labels = "leftImg8bit/{}/**/*_leftImg8bit.png", f"gtFine/{{}}/**/*_gtFine_{kind}.png"
    train, val = (
        [
            Sample(*files, "")
            for files in matched(pair_patterns(root, images.format(part), labels.format(part)))
        ]
        for part in ("train", "val")
    )
    class_of = np.full(256, IGNORE, np.uint8)
    class_of[list(CITYSCAPES.values())] = range(len(CITYSCAPES))
    by_train_id = mask_reader(list(CITYSCAPES), {})

    def read_label(path, strays=None):
        return by_train_id(path, strays) if kind == "labelTrainIds" else class_of[read_mask(path)]

    summary = (
        f"{root}: Cityscapes, {len(CITYSCAPES)} classes ({kind}): {len(train)} training + {len(val)} held-out images "
        "(val)"
    )
    return DataSet(summary, list(CITYSCAPES), train, val, read_label)


def find_voc(root: Path, task: str, split_seed: int) -> DataSet:
    """PASCAL VOC 2012 (a folder VOCdevkit/VOC2012), and with it the masks of SBD (Hariharan et al.
    2011) as PNGs.

    val.txt names the held-out images. trainaug.txt (or train_aug.txt) names those to train on, if
    it is there: the 10,582 of both collections, without val's, that most results are given for.
    Otherwise train.txt does: 1,464. Images without a mask in SegmentationClass take it from
    SegmentationClassAug.
    """
    lists = root / "ImageSets" / "Segmentation"
    split = next(
        (name for name in ("trainaug", "train_aug") if (lists / f"{name}.txt").is_file()), "train"
    )
    train, val = voc_samples(root, lists / f"{split}.txt"), voc_samples(root, lists / "val.txt")
    refuse_both(
        [s.image.stem for s in train],
        [s.image.stem for s in val],
        lists / f"{split}.txt",
        lists / "val.txt",
    )

    names = root / "classes.txt"  # of own data in VOC's layout; VOC has none
    if names.is_file():
        classes, colours = read_classes(names)
        summary = (
            f"{root}: in the layout of PASCAL VOC, {counted(len(classes), 'class')} named in classes.txt: {len(train)} "
            f"training ({split}) + {len(val)} held-out images (val)"
        )
        return DataSet(summary, classes, train, val, mask_reader(classes, colours))

    def read_label(path, strays=None):
        mask = read_mask(path)
        odd = (mask >= len(VOC_CLASSES)) & (mask != IGNORE)
        if odd.any():
            raise InputError(
                f"{path}: has the class {mask[odd][0]}; VOC has 0 to 20, and 255 at the borders"
            )
        return mask

    summary = f"{root}: PASCAL VOC, 21 classes: {len(train)} training ({split}) + {len(val)} held-out images (val)"
    return DataSet(summary, list(VOC_CLASSES), train, val, read_label)


def voc_samples(root: Path, names: Path) -> list[Sample]:
    """Samples of PASCAL VOC by a list of image names. Raises InputError."""
    samples = []
    for stem in read_list(names):
        if "/" in stem or "\\" in stem:
            raise InputError(
                f"{names}: names {stem[:60]!r}; a list with paths has to be cut down to names"
            )
        image = root / "JPEGImages" / f"{stem}.jpg"
        masks = [
            root / folder / f"{stem}.png"
            for folder in ("SegmentationClass", "SegmentationClassAug")
        ]
        mask = next((file for file in masks if file.is_file()), None)
        for file in (image, mask or masks[0]):
            if not file.is_file():
                raise InputError(
                    f"{names}: names {stem[:60]!r}, but there is no {file.name[:64]!r} in {file.parent}"
                )
        samples.append(Sample(image, mask, ""))
    return samples
