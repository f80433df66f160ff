"""Own pictures and masks: how they are found, paired, split, and what classes they have."""

from __future__ import annotations

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from glob import escape
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

import numpy as np

from support.console import InputError, counted, shortened
from support.datasets.classes import mask_reader, read_classes
from support.datasets.images import IMAGE_ENDINGS, files_below, read_mask
from support.labels import IGNORE, DataSet, Sample

PARTS = (
    "train",
    "val",
    "test",
)  # the training set, the validation set, and images for predict.py --split test alone
# Other names for the folders and lists of these parts. Taken for folders like any other, their
# images would be mixed or left out.
MISNAMED = {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}
COUNTED = 40  # classes that are counted in masks without classes.txt, at most: a photo in place of a mask has more shades


def find_masks(
    root: Path, task: str, split_seed: int, patterns: tuple[str, str] | None = None
) -> DataSet:
    """Pictures and masks in folders images and masks, at any depth, or by `patterns` for the paths
    of both (pairs.py).

    The parts are folders train, val and test, above or below images and masks, or what {split}
    stands for in the patterns. Or lists name their images: train.txt, val.txt and test.txt. Without
    a validation set, a fifth of the training set is held out. Raises InputError.
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
    if not table.is_file() and (
        similar := [file for file in root.iterdir() if file.name.casefold().startswith("classes")]
    ):
        raise InputError(
            f"{similar[0]}: is not read; the names of the classes go into a text file {table}, one a line"
        )
    classes, colours = (
        read_classes(table) if table.is_file() else (count_classes(root, train + val), {})
    )
    named = (
        f"named{' by colours' if colours else ''} in classes.txt"
        if table.is_file()
        else "counted in the masks"
    )
    summary = (
        f"{root}: images and masks, {counted(len(classes), 'class')} {named}: {len(train)} training + {len(val)} "
        f"held-out images{f' + {len(test)} for --split test' if test else ''}{how}"
    )
    return DataSet(summary, classes, train, val, mask_reader(classes, colours), test=test)


def refuse_misnamed(root: Path, by_folder: bool):
    """Raise InputError if folders or lists of the parts have other names than train, val and test,
    or lie elsewhere.
    """
    if not by_folder and (root / "val" / "images").is_dir():
        raise InputError(
            f"{root / 'val'}: goes beside a folder train; move {root / 'images'} and {root / 'masks'} into "
            f"{root / 'train'}"
        )
    images = root / "images"
    parts = [folder for folder in root.iterdir() if (folder / "images").is_dir()]
    parts += [folder for folder in images.iterdir() if folder.is_dir()] if images.is_dir() else []
    for found in [*parts, *root.glob("*.txt")]:
        name = found.name.removesuffix(".txt").casefold()
        right = MISNAMED.get(name) or (name if name in PARTS else None)
        if right and found.name.removesuffix(".txt") != right:
            raise InputError(
                f"{found}: is called {right}{found.suffix} here; rename it"
                + (", and the folder of its masks if they lie elsewhere" if found.is_dir() else "")
            )
    for part in ("val", "test"):
        if (images / part).is_dir():
            raise InputError(
                f"{images / part}: goes beside a folder train; move the other images into {images / 'train'}, and "
                f"their masks into {root / 'masks' / 'train'}"
            )


def parts_listed(pairs: Pairs, lists: list[Path], root: Path) -> list[list[tuple[Path, Path]]]:
    """The pairs of each of PARTS that the lists name. Without train.txt, all others are trained on.
    Raises InputError.
    """
    keys = {file.stem: chosen(pairs, read_list(file), file, root) for file in lists}
    for i, file in enumerate(lists):
        for other in lists[i + 1 :]:
            refuse_both(keys[file.stem], keys[other.stem], file, other)
    if "train" not in keys:
        keys["train"] = sorted(pairs.images.keys() - set().union(*keys.values()))
        if not keys["train"]:
            raise InputError(
                f"{lists[0]}: no image is left to train on; name those in {root / 'train.txt'}"
            )
    return [matched(pairs, keys[part]) if part in keys else [] for part in PARTS]


def count_classes(root: Path, samples: list[Sample]) -> list[str]:
    """Names for as many classes as the ids in all masks call for. Raises InputError.

    A mask that cannot be read is left out here, unless none can: read_everything (counts.py) names
    them all.
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
        raise InputError(
            f"{root}: the masks hold {' and '.join(map(str, ids))} alone, and {IGNORE} is ignored, so there is "
            f"nothing to tell apart; if {IGNORE} marks the object, say so in {named}, in two lines such as "
            "'background 0 0 0' and 'road 255 255 255'"
        )
    ids = ids[ids != IGNORE]
    if len(ids) > COUNTED:
        raise InputError(
            f"{root}: the masks hold {len(ids)} ids, as photos in their place would; if these are classes, name "
            f"them in {named}, one a line"
        )
    if ids.max() >= 2 * len(ids) and ids.max() > 20:
        raise InputError(
            f"{root}: the masks hold {len(ids)} ids, {', '.join(map(str, ids[:4]))} ..., the largest {ids.max()}; "
            f"number them 0, 1, 2, or say in {named} what the ids from 0 on are called, or NAME {ids.max()} "
            f"{ids.max()} {ids.max()} for each of these shades of grey"
        )
    return [f"class {i}" for i in range(int(ids.max()) + 1)]


# ---- Which mask belongs to which picture: by folders, by patterns of names, and by lists. A pai

BETWEEN = "\0"  # between the parts of a key that several wildcards stand for


class Pairs(NamedTuple):
    """Files by key, and where they were looked for, for messages: a folder or a pattern each."""

    images: dict[str, Path]
    masks: dict[str, Path]
    images_in: Path
    masks_in: Path


def pair_folders(folder: Path) -> Pairs:
    """Pictures anywhere below folder/images and masks below folder/masks. The key is the path
    there, without its ending.
    """
    found = []
    for name in ("images", "masks"):
        files = {}
        for file in files_below(folder / name):
            add(files, file.relative_to(folder / name).with_suffix("").as_posix(), file)
        found.append(files)
    return Pairs(*found, folder / "images", folder / "masks")


def pair_patterns(root: Path, images: str, masks: str) -> Pairs:
    """Pictures and masks whose paths below `root` fit a pattern each. The key is what the wildcards
    stand for, each by itself.

    * stands for any part of a name, **/ for any number of folders, and ? for one letter. A pattern
    without an ending fits pictures of every ending. What fits `masks` is no picture, even if it
    fits `images` too. Raises InputError.
    """
    pictures, wildcards = fitting(root, "--images", images)
    labels, others = fitting(root, "--masks", masks)
    if wildcards != others:
        raise InputError(
            f"--images {images} and --masks {masks}: have different wildcards; both patterns need the same ones "
            "in the same order, since what they stand for tells which mask belongs to which picture"
        )
    taken = set(labels.values())
    pictures = {key: file for key, file in pictures.items() if file not in taken}
    return Pairs(pictures, labels, root / images, root / masks)


def fitting(root: Path, option: str, pattern: str) -> tuple[dict[str, Path], list[str]]:
    """The pictures below `root` that fit the pattern of an option, by key, and its wildcards.
    Raises InputError.
    """
    pattern = pattern.removeprefix("./")
    if re.search(r"\*\*(?!/)|[^/]\*\*", pattern):
        raise InputError(
            f"{option} {pattern}: write ** between slashes, as in 'photos/**/*.jpg'; it stands for any folders"
        )
    if pattern.startswith(("/", "~", "..")) or "*" not in pattern:
        raise InputError(
            f"{option} {pattern}: give a pattern below {root} with a *, such as '{option[2:]}/**/*.png'"
        )
    parts = re.split(r"(\*\*/|\*|\?)", pattern)  # every second one is a wildcard
    stands_for = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}
    fits = re.compile("".join(stands_for.get(part) or re.escape(part) for part in parts))
    folder, ending = root / parts[0].rpartition("/")[0], "." in pattern.rpartition("/")[2]
    files = {}
    for file in files_below(folder) if folder.is_dir() else []:
        path = file.relative_to(root)
        match = fits.fullmatch((path if ending else path.with_suffix("")).as_posix())
        if match:
            add(files, BETWEEN.join(match.groups()), file)
    if {"train", "val"} <= {part for key in files for part in re.split(f"[/{BETWEEN}]", key)}:
        raise InputError(
            f"{option} {pattern}: mixes the folders train and val; write {{split}} in their place, or one of them"
        )
    return files, parts[1::2]


def add(files: dict[str, Path], key: str, file: Path):
    """Add a file under its key. Raises InputError if there is one already."""
    key = normalize("NFC", key)  # macOS writes ü as two letters, other systems as one
    if key in files:
        raise InputError(f"{file}: has the same stem as {files[key].name}; one of them must go")
    files[key] = file


def matched(pairs: Pairs, keys: list[str] | None = None) -> list[tuple[Path, Path]]:
    """The (image, mask) of all keys, or of these. Raises InputError, naming those that lack a
    partner.
    """
    images, masks = pairs.images, pairs.masks
    patterns = "*" in str(pairs.images_in)
    hint = (
        "; the wildcards must stand for the same in both: write out what differs, as in 'a/*_cam.jpg' and 'b/*_ids.png'"
        if patterns
        else "; if the names differ by more than their endings, say --images and --masks"
    )
    lone = (
        sorted(images.keys() ^ masks.keys(), key=lambda key: (key not in images, key))
        if keys is None
        else [key for key in keys if key not in masks]
    )
    if lone:
        file, missing, where = (
            (images[lone[0]], "mask", pairs.masks_in)
            if lone[0] in images
            else (masks[lone[0]], "image", pairs.images_in)
        )
        others = [(images.get(key) or masks[key]).name for key in lone[1:]]
        beside = (
            []
            if patterns
            else sorted((where / lone[0]).parent.glob(f"{escape((where / lone[0]).name)}.*"))
        )
        if beside:
            hint = f"; {beside[0].name} is of a format that is not read, save it as {'PNG' if missing == 'mask' else 'JPEG'}"
        raise InputError(
            f"{file}: there is no {missing} named {lone[0].replace(BETWEEN, '')} in {where}"
            + (f"; without a partner, too: {shortened(others)}" if others else "")
            + ("" if images.keys() & masks.keys() and not beside else hint)
        )
    for mask in masks.values():
        if mask.suffix.lower() != ".png":
            raise InputError(
                f"{mask}: masks must be PNG; save it as one (from JPEG, which blends the class ids, export it "
                "anew)"
            )
    if not images:
        raise InputError(
            f"{pairs.images_in}: "
            + (
                "no picture has such a path; **/ stands for any folders"
                if patterns
                else f"holds no pictures ({', '.join(sorted(IMAGE_ENDINGS))})"
            )
        )
    return [(images[key], masks[key]) for key in (sorted(images) if keys is None else keys)]


def chosen(pairs: Pairs, names: list[str], file: Path, root: Path) -> list[str]:
    """The keys of the images that a list names, each once, in the order of the keys. Raises
    InputError.

    A name may be the image's path below images/ or below the data set, or its file name alone if no
    other has it, with or without the ending.
    """
    exact, loose = {}, {}
    for key, image in pairs.images.items():
        path, shown = image.relative_to(root), key.replace(BETWEEN, "")
        for name in (shown, shown + image.suffix, path.as_posix(), path.with_suffix("").as_posix()):
            exact.setdefault(name, set()).add(key)
        mask = pairs.masks.get(key, image)
        for name in (image.name, image.stem, mask.name, mask.stem):
            loose.setdefault(name, set()).add(key)
    keys = set()
    for name in names:
        name = name.replace("\\", "/").removeprefix("./")
        last = name.rpartition("/")[2]  # of another machine's path
        fits = exact.get(name) or loose.get(name) or loose.get(last, set())
        if len(fits) != 1:
            raise InputError(
                f"{file}: names {name[:60]!r}, and {'several images have' if fits else 'no image has'} this name "
                f"in {pairs.images_in}; write the path there, one a line"
            )
        keys |= fits
    return sorted(keys)


# ---- Which images are held out, the validation set: those that a list names, or a draw.

HELD_OUT = 0.2  # share of the images that are kept out of training


def hold_out(samples: list, seed: int) -> tuple[list, list]:
    """(train, val) of some samples (class Sample in samples.py): about HELD_OUT of each group goes
    to val, one image at least.

    Images are drawn by a hash of the seed and their file name; of one name in several folders, by
    the path from there on. So the draw is the same on every machine, wherever the data set lies,
    and in every order of the files. An image that is added later moves one other image of its group
    at most. Raises InputError for fewer than two samples.
    """
    if len(samples) < 2:
        raise InputError(
            f"{samples[0].image}: is the only labelled image; two at least are needed, one of them held out"
        )
    above = os.path.commonpath([s.image.parent for s in samples])

    def place(s):
        return [
            hashlib.sha256(os.fsencode(f"{seed} {name}")).hexdigest()
            for name in (s.image.name, s.image.relative_to(above).as_posix())
        ]

    drawn = sorted(samples, key=place)
    val = set()
    for group in sorted({s.group for s in samples}):
        members = [s for s in drawn if s.group == group]
        val.update(members[: round(HELD_OUT * len(members))])
    val = val or {drawn[0]}
    return [s for s in samples if s not in val], [s for s in samples if s in val]


def read_list(path: Path) -> list[str]:
    """The lines of a list of images, such as train.txt, each once. Raises InputError if there are
    none.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read as a list of images ({getattr(error, 'strerror', 'not text')})"
        ) from None
    names = dict.fromkeys(line.strip() for line in lines if line.strip())
    if not names:
        raise InputError(f"{path}: names no images")
    return list(names)


def refuse_both(names: list[str], others: list[str], file: Path, other: Path):
    """Raise InputError if two lists name the same images: the network would be scored on what it
    was trained on.
    """
    if both := set(names) & set(others):
        raise InputError(
            f"{file}: {len(both)} of its images {'is' if len(both) == 1 else 'are'} in {other.name} too, as "
            f"{min(both)}; take them out of one, or the network is scored on what it was trained on"
        )
