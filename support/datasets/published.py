"""Data sets in their published layout: PASCAL VOC and Cityscapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from support.console import InputError, counted
from support.datasets.classes import mask_reader, read_classes
from support.datasets.folders import find_pairs, matched, read_list
from support.datasets.images import read_mask
from support.labels import IGNORE, VOC_CLASSES, DataSet, Sample

# The benchmark's classes and their ids in *_labelIds.png. All other ids are ignored.
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


def find_cityscapes(root: Path, options) -> DataSet:
    """Cityscapes (Cordts et al. 2016): folders leftImg8bit and gtFine in `root`, 19 classes.

    The masks are *_labelTrainIds.png if the benchmark's scripts have made them, otherwise
    *_labelIds.png, the same classes with other ids. The test images are left out, since their
    published masks are empty. Raises InputError.
    """
    masks, kinds = root / "gtFine" / "train", ("labelTrainIds", "labelIds")
    kind = next((k for k in kinds if any(masks.glob(f"*/*_gtFine_{k}.png"))), None)
    if not kind:
        raise InputError(
            f"{masks}: holds no masks named *_gtFine_labelTrainIds.png or *_gtFine_labelIds.png; "
            "for other masks give --images 'leftImg8bit/{split}/**/*_leftImg8bit' --masks "
            "'gtFine/{split}/**/*_gtFine_NAME.png'"
        )
    images, labels = "leftImg8bit/{}/**/*_leftImg8bit.png", f"gtFine/{{}}/**/*_gtFine_{kind}.png"
    train, val = (
        matched(find_pairs(root, images.format(part), labels.format(part)))
        for part in ("train", "val")
    )
    class_of, train_ids = np.full(256, IGNORE, np.uint8), range(len(CITYSCAPES))
    class_of[train_ids if kind == "labelTrainIds" else list(CITYSCAPES.values())] = train_ids

    def read_label(path, unmapped=None):
        return class_of[read_mask(path)]

    summary = f"{root}: Cityscapes, {len(CITYSCAPES)} classes ({kind})"
    return DataSet(summary, list(CITYSCAPES), train, val, read_label)


def find_voc(root: Path, options) -> DataSet:
    """PASCAL VOC 2012 (the folder VOCdevkit/VOC2012), optionally with the masks of SBD (Hariharan
    et al. 2011) as PNGs; or your own data in this layout, with a classes.txt.

    val.txt lists the validation set. trainaug.txt (or train_aug.txt) lists the training set if it
    exists: 10,582 images of both collections, without those in val.txt, as in most published
    results. Otherwise train.txt does: 1,464 images. Masks that are not in SegmentationClass come
    from SegmentationClassAug. Raises InputError.
    """
    lists = root / "ImageSets" / "Segmentation"
    names = ("trainaug", "train_aug")
    split = next((name for name in names if (lists / f"{name}.txt").is_file()), "train")
    train, val = (
        [voc_sample(root, s) for s in read_list(lists / f"{p}.txt")] for p in (split, "val")
    )
    table = root / "classes.txt"
    classes, colours = read_classes(table) if table.is_file() else (list(VOC_CLASSES), {})
    named = " named in classes.txt" if table.is_file() else ""
    summary = f"{root}: PASCAL VOC, {counted(len(classes), 'class')}{named}, parts {split} and val"
    ids = [] if colours else classes
    return DataSet(summary, classes, train, val, mask_reader(classes, colours), ids=ids)


def voc_sample(root: Path, stem: str) -> Sample:
    folders = "SegmentationClass", "SegmentationClassAug"
    masks = [root / folder / f"{stem}.png" for folder in folders]
    mask = next(filter(Path.is_file, masks), masks[0])
    return Sample(root / "JPEGImages" / f"{stem}.jpg", mask, "")
