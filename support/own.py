"""Own pictures and masks: how they are found, paired, split, and what classes they have."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from support.classes import mask_reader, read_classes
from support.errors import InputError, number
from support.labels import IGNORE
from support.pairs import Pairs, chosen, matched, pair_folders, pair_patterns
from support.pictures import read_mask
from support.samples import DataSet, Sample
from support.split import hold_out, read_list, refuse_both

PARTS = ("train", "val", "test")  # the training set, the validation set, and images for predict.py --split test alone


def find_masks(root: Path, task: str, split_seed: int, images: str = "", masks: str = "") -> DataSet:
    """Pictures and masks in folders images and masks, at any depth, or by the patterns `images` and `masks` (pairs.py).

    The parts are folders train, val and test, above or below images and masks, or what {split} stands for in the patterns. Or
    lists name their images: train.txt, val.txt and test.txt. Without a validation set, a fifth of the training set is held out.
    Raises InputError.
    """
    if not images and (root / "images" / "train").is_dir() and (root / "masks" / "train").is_dir():
        images, masks = "images/{split}/**/*", "masks/{split}/**/*"
    in_folders = "{split}" in images if images else (root / "train" / "images").is_dir()
    if not images and not in_folders and (root / "val" / "images").is_dir():
        raise InputError(f"{root / 'val'}: goes beside a folder train; move {root / 'images'} and {root / 'masks'} into "
                         f"{root / 'train'}")

    def pairs(part):
        if images:
            return pair_patterns(root, images.replace("{split}", part), masks.replace("{split}", part))
        return pair_folders(root / part if in_folders else root)

    def is_there(part):
        return bool(pairs(part).masks) if images else (root / part / "masks" if part == "test" else root / part).is_dir()

    lists = [] if in_folders else [root / f"{part}.txt" for part in PARTS if (root / f"{part}.txt").is_file()]
    if lists:
        train, val, test = listed(pairs("train"), lists, root)
    else:
        train = matched(pairs("train"))
        val, test = (matched(pairs(part)) if in_folders and is_there(part) else [] for part in ("val", "test"))
    train, val, test = ([Sample(*files, "") for files in part] for part in (train, val, test))
    how_split = f", as {', '.join(file.name for file in lists)} list them" if lists else ""
    unused = len(pairs("train").images) - len(train + val + test) if lists else 0
    how_split += f"; {number(unused, 'picture')} in no list" if unused else ""
    if not val:
        train, val = hold_out(train, split_seed)
        how_split += ", drawn by --split-seed"

    file = root / "classes.txt"
    classes, colours = read_classes(file) if file.is_file() else (count_classes(root, train + val), {})
    named = f"named{' with their colours' if colours else ''} in classes.txt" if file.is_file() else "counted in the masks"
    summary = (f"{root}: images and masks, {number(len(classes), 'class')} {named}: {len(train)} training + {len(val)} held-out "
               f"images{f' + {len(test)} for --split test' if test else ''}"
               f"{how_split}")
    return DataSet(summary, classes, train, val, mask_reader(classes, colours), test=test)


def listed(pairs: Pairs, lists: list[Path], root: Path) -> list[list[tuple[Path, Path]]]:
    """The pairs of each of PARTS that the lists name. Without train.txt, all others are trained on. Raises InputError."""
    keys = {file.stem: chosen(pairs, read_list(file), file, root) for file in lists}
    for i, file in enumerate(lists):
        for other in lists[i + 1:]:
            refuse_both(keys[file.stem], keys[other.stem], file, other)
    if "train" not in keys:
        keys["train"] = sorted(pairs.images.keys() - set().union(*keys.values()))
        if not keys["train"]:
            raise InputError(f"{lists[0]}: no image is left to train on; name those in {root / 'train.txt'}")
    return [matched(pairs, keys[part]) if part in keys else [] for part in PARTS]


def count_classes(root: Path, samples: list[Sample]) -> list[str]:
    """Names for as many classes as the ids in all masks call for. Raises InputError."""
    ids = np.unique(np.concatenate([np.unique(read_mask(sample.label)) for sample in samples]))
    named = root / "classes.txt"
    if len(ids[ids != IGNORE]) < 2:
        raise InputError(f"{root}: the masks hold {' and '.join(map(str, ids))} alone, and {IGNORE} is ignored, so there is nothing "
                         f"to tell apart; if {IGNORE} marks the object, say so in {named}, in two lines such as "
                         "'background 0 0 0' and 'road 255 255 255'")
    ids = ids[ids != IGNORE]
    if ids.max() >= 2 * len(ids) and ids.max() > 20:
        raise InputError(f"{root}: the masks hold {len(ids)} ids, {', '.join(map(str, ids[:4]))} ..., the largest {ids.max()}; "
                         f"number them 0, 1, 2, or say in {named} what the ids from 0 on are called, or NAME {ids.max()} "
                         f"{ids.max()} {ids.max()} for each of these shades of grey")
    return [f"class {i}" for i in range(int(ids.max()) + 1)]
