"""Own pictures and masks: how they are found, paired, split, and what classes they have."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from support.classes import mask_reader, read_classes
from support.errors import InputError, counted
from support.labels import IGNORE
from support.pairs import Pairs, chosen, matched, pair_folders, pair_patterns
from support.pictures import read_mask
from support.samples import DataSet, Sample
from support.split import hold_out, read_list, refuse_both

PARTS = ("train", "val", "test")  # the training set, the validation set, and images for predict.py --split test alone
# Other names for the folders and lists of these parts. Taken for folders like any other, their images would be mixed or left
# out.
MISNAMED = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}
COUNTED = 40  # classes that are counted in masks without classes.txt, at most: a photo in place of a mask has more shades


def find_masks(root: Path, task: str, split_seed: int, patterns: tuple[str, str] | None = None) -> DataSet:
    """Pictures and masks in folders images and masks, at any depth, or by `patterns` for the paths of both (pairs.py).

    The parts are folders train, val and test, above or below images and masks, or what {split} stands for in the patterns. Or
    lists name their images: train.txt, val.txt and test.txt. Without a validation set, a fifth of the training set is held out.
    Raises InputError.
    """
    if not patterns and (root / "images" / "train").is_dir():
        patterns = ("images/{split}/**/*", "masks/{split}/**/*")
    by_folder = "{split}" in patterns[0] if patterns else (root / "train" / "images").is_dir()
    if not patterns:
        refuse_misnamed(root, by_folder)
    lists = [root / f"{part}.txt" for part in PARTS if (root / f"{part}.txt").is_file()]

    def pairs_of(part: str) -> Pairs:
        if patterns:
            return pair_patterns(root, *(pattern.replace("{split}", part) for pattern in patterns))
        return pair_folders(root / part if by_folder else root)

    if by_folder:
        how = f", by folders{', not by lists' if lists else ''}"
        parts = [matched(pairs_of("train")), [], []]
        for i, part in ((1, "val"), (2, "test")):
            # The images of a test set may lie there without masks, which are often not published.
            there = patterns or (root / part / ("masks" if part == "test" else "")).is_dir()
            pairs = pairs_of(part) if there else None
            if pairs and (pairs.masks or pairs.images and part == "val"):
                parts[i] = matched(pairs)
    elif lists:
        pairs = pairs_of("train")
        parts = parts_listed(pairs, lists, root)
        unused = len(pairs.images) - sum(map(len, parts))
        how = f", as {', '.join(file.name for file in lists)} list them"
        how += f"; {counted(unused, 'picture')} in no list" if unused else ""
    else:
        how, parts = "", [matched(pairs_of("train")), [], []]
    train, val, test = ([Sample(*files, "") for files in part] for part in parts)
    if not val:
        train, val = hold_out(train, split_seed)
        how += ", drawn by --split-seed"

    table = root / "classes.txt"
    if not table.is_file() and (similar := [file for file in root.iterdir() if file.name.casefold().startswith("classes")]):
        raise InputError(f"{similar[0]}: is not read; the names of the classes go into a text file {table}, one a line")
    classes, colours = read_classes(table) if table.is_file() else (count_classes(root, train + val), {})
    named = f"named{' by colours' if colours else ''} in classes.txt" if table.is_file() else "counted in the masks"
    summary = (f"{root}: images and masks, {counted(len(classes), 'class')} {named}: {len(train)} training + {len(val)} "
               f"held-out images{f' + {len(test)} for --split test' if test else ''}{how}")
    return DataSet(summary, classes, train, val, mask_reader(classes, colours), test=test)


def refuse_misnamed(root: Path, by_folder: bool):
    """Raise InputError if folders or lists of the parts have other names than train, val and test, or lie elsewhere."""
    if not by_folder and (root / "val" / "images").is_dir():
        raise InputError(f"{root / 'val'}: goes beside a folder train; move {root / 'images'} and {root / 'masks'} into "
                         f"{root / 'train'}")
    images = root / "images"
    parts = [folder for folder in root.iterdir() if (folder / "images").is_dir()]
    parts += [folder for folder in images.iterdir() if folder.is_dir()] if images.is_dir() else []
    for found in [*parts, *root.glob("*.txt")]:
        name = found.name.removesuffix(".txt").casefold()
        right = MISNAMED.get(name) or (name if name in PARTS else None)
        if right and found.name.removesuffix(".txt") != right:
            raise InputError(f"{found}: is called {right}{found.suffix} here; rename it" + (
                ", and the folder of its masks if they lie elsewhere" if found.is_dir() else ""))
    for part in ("val", "test"):
        if (images / part).is_dir():
            raise InputError(f"{images / part}: goes beside a folder train; move the other images into {images / 'train'}, and "
                             f"their masks into {root / 'masks' / 'train'}")


def parts_listed(pairs: Pairs, lists: list[Path], root: Path) -> list[list[tuple[Path, Path]]]:
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
    """Names for as many classes as the ids in all masks call for. Raises InputError.

    A mask that cannot be read is left out here, unless none can: read_everything (counts.py) names them all.
    """
    def ids_in(sample):
        try:
            return np.unique(read_mask(sample.label))
        except InputError as error:
            return error

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(ids_in, samples))
    read = [ids for ids in found if not isinstance(ids, InputError)]
    if not read:
        raise found[0]
    ids = np.unique(np.concatenate(read))
    named = root / "classes.txt"
    if len(ids[ids != IGNORE]) < 2:
        raise InputError(f"{root}: the masks hold {' and '.join(map(str, ids))} alone, and {IGNORE} is ignored, so there is "
                         f"nothing to tell apart; if {IGNORE} marks the object, say so in {named}, in two lines such as "
                         "'background 0 0 0' and 'road 255 255 255'")
    ids = ids[ids != IGNORE]
    if len(ids) > COUNTED:
        raise InputError(f"{root}: the masks hold {len(ids)} ids, as photos in their place would; if these are classes, name "
                         f"them in {named}, one a line")
    if ids.max() >= 2 * len(ids) and ids.max() > 20:
        raise InputError(f"{root}: the masks hold {len(ids)} ids, {', '.join(map(str, ids[:4]))} ..., the largest {ids.max()}; "
                         f"number them 0, 1, 2, or say in {named} what the ids from 0 on are called, or NAME {ids.max()} "
                         f"{ids.max()} {ids.max()} for each of these shades of grey")
    return [f"class {i}" for i in range(int(ids.max()) + 1)]
