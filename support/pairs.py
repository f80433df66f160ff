"""Which mask belongs to which picture: by folders, by patterns of names, and by lists.

A pair has a key: what the path of the picture and that of the mask have in common.
"""

from __future__ import annotations

import re
from glob import escape
from pathlib import Path
from typing import NamedTuple
from unicodedata import normalize

from support.errors import InputError, shortened
from support.pictures import IMAGE_ENDINGS, files_below

BETWEEN = "\0"  # between the parts of a key that several wildcards stand for


class Pairs(NamedTuple):
    """Files by key, and where they were looked for, for messages: a folder or a pattern each."""
    images: dict[str, Path]
    masks: dict[str, Path]
    images_in: Path
    masks_in: Path


def pair_folders(folder: Path) -> Pairs:
    """Pictures anywhere below folder/images and masks below folder/masks. The key is the path there, without its ending."""
    found = []
    for name in ("images", "masks"):
        files = {}
        for file in files_below(folder / name):
            add(files, file.relative_to(folder / name).with_suffix("").as_posix(), file)
        found.append(files)
    return Pairs(*found, folder / "images", folder / "masks")


def pair_patterns(root: Path, images: str, masks: str) -> Pairs:
    """Pictures and masks whose paths below `root` fit a pattern each. The key is what the wildcards stand for, each by itself.

    * stands for any part of a name, **/ for any number of folders, and ? for one letter. A pattern without an ending fits
    pictures of every ending. What fits `masks` is no picture, even if it fits `images` too. Raises InputError.
    """
    pictures, wildcards = fitting(root, "--images", images)
    labels, others = fitting(root, "--masks", masks)
    if wildcards != others:
        raise InputError(f"--images {images} and --masks {masks}: have different wildcards; both patterns need the same ones "
                         "in the same order, since what they stand for tells which mask belongs to which picture")
    taken = set(labels.values())
    pictures = {key: file for key, file in pictures.items() if file not in taken}
    return Pairs(pictures, labels, root / images, root / masks)


def fitting(root: Path, option: str, pattern: str) -> tuple[dict[str, Path], list[str]]:
    """The pictures below `root` that fit the pattern of an option, by key, and its wildcards. Raises InputError."""
    pattern = pattern.removeprefix("./")
    if re.search(r"\*\*(?!/)|[^/]\*\*", pattern):
        raise InputError(f"{option} {pattern}: write ** between slashes, as in 'photos/**/*.jpg'; it stands for any folders")
    if pattern.startswith(("/", "~", "..")) or "*" not in pattern:
        raise InputError(f"{option} {pattern}: give a pattern below {root} with a *, such as '{option[2:]}/**/*.png'")
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
        raise InputError(f"{option} {pattern}: mixes the folders train and val; write {{split}} in their place, or one of them")
    return files, parts[1::2]


def add(files: dict[str, Path], key: str, file: Path):
    """Add a file under its key. Raises InputError if there is one already."""
    key = normalize("NFC", key)  # macOS writes ü as two letters, other systems as one
    if key in files:
        raise InputError(f"{file}: has the same stem as {files[key].name}; one of them must go")
    files[key] = file


def matched(pairs: Pairs, keys: list[str] | None = None) -> list[tuple[Path, Path]]:
    """The (image, mask) of all keys, or of these. Raises InputError, naming those that lack a partner."""
    images, masks = pairs.images, pairs.masks
    patterns = "*" in str(pairs.images_in)
    hint = ("; the wildcards must stand for the same in both: write out what differs, as in 'a/*_cam.jpg' and 'b/*_ids.png'"
            if patterns else "; if the names differ by more than their endings, say --images and --masks")
    lone = sorted(images.keys() ^ masks.keys(), key=lambda key: (key not in images, key)) if keys is None else [
        key for key in keys if key not in masks]
    if lone:
        file, missing, where = ((images[lone[0]], "mask", pairs.masks_in) if lone[0] in images else
                                (masks[lone[0]], "image", pairs.images_in))
        others = [(images.get(key) or masks[key]).name for key in lone[1:]]
        beside = [] if patterns else sorted((where / lone[0]).parent.glob(f"{escape((where / lone[0]).name)}.*"))
        if beside:
            hint = f"; {beside[0].name} is of a format that is not read, save it as {'PNG' if missing == 'mask' else 'JPEG'}"
        raise InputError(f"{file}: there is no {missing} named {lone[0].replace(BETWEEN, '')} in {where}"
                         + (f"; without a partner, too: {shortened(others)}" if others else "")
                         + ("" if images.keys() & masks.keys() and not beside else hint))
    for mask in masks.values():
        if mask.suffix.lower() != ".png":
            raise InputError(f"{mask}: masks must be PNG; save it as one (from JPEG, which blends the class ids, export it "
                             "anew)")
    if not images:
        raise InputError(f"{pairs.images_in}: " + ("no picture has such a path; **/ stands for any folders" if patterns else
                                                   f"holds no pictures ({', '.join(sorted(IMAGE_ENDINGS))})"))
    return [(images[key], masks[key]) for key in (sorted(images) if keys is None else keys)]


def chosen(pairs: Pairs, names: list[str], file: Path, root: Path) -> list[str]:
    """The keys of the images that a list names, each once, in the order of the keys. Raises InputError.

    A name may be the image's path below images/ or below the data set, or its file name alone if no other has it, with or
    without the ending.
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
            raise InputError(f"{file}: names {name[:60]!r}, and {'several images have' if fits else 'no image has'} this name "
                             f"in {pairs.images_in}; write the path there, one a line")
        keys |= fits
    return sorted(keys)
