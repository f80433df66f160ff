"""Your own pictures and masks: pairing, and the split into training, validation and test set."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from unicodedata import normalize

from support.console import InputError, counted, shortened
from support.datasets.classes import count_classes, mask_reader, read_classes
from support.datasets.images import IMAGE_ENDINGS, files_below
from support.labels import DataSet, Sample

PARTS = ("train", "val", "test")
OTHER_NAMES = {"training", "valid", "validation", "testing"}  # names of the parts in other projects
BETWEEN = "\0"  # joins the texts that the wildcards of a pattern match
WILDCARDS = "the wildcards are *, ?, **/ and {split}"


def find(root: Path, options) -> DataSet:
    """The data set of pictures and masks below `root`, found in folders or by path patterns.

    options    of data.py: `images` and `masks` are "auto" or a pattern each, see `fitting`

    "auto" reads everything in folders images and masks. Folders train, val and test, above or below
    these or at {split} in a pattern, define the parts. Without such folders, the lists train.txt,
    val.txt and test.txt define them. With both, a list selects images from its folder. Raises
    InputError.
    """
    patterns = options.images, options.masks
    if options.images == "auto":
        patterns = "images/**/*", "masks/**/*"
        if (root / "images" / "train").is_dir():
            patterns = "images/{split}/**/*", "masks/{split}/**/*"
        elif (root / "train" / "images").is_dir():
            patterns = "{split}/images/**/*", "{split}/masks/**/*"
    by_folder = "{split}" in patterns[0]
    require_names_of_parts(root, options.images == "auto", by_folder)
    parts, how = (parts_by_folder if by_folder else parts_by_list)(root, *patterns)
    table = root / "classes.txt"
    if table.is_file():
        classes, colours = read_classes(table)
        named = f"named{' by colours' if colours else ''} in classes.txt"
    else:
        classes, colours = count_classes(parts["train"] + parts["val"], table), {}
        named = "counted in the masks"
    summary = f"{root}: images and masks{how}, {counted(len(classes), 'class')} {named}"
    ids = [] if colours else classes
    return DataSet(summary, classes, read_label=mask_reader(classes, colours), ids=ids, **parts)


def parts_by_folder(root: Path, images: str, masks: str) -> tuple[dict[str, list[Sample]], str]:
    """The samples of each part for patterns with {split}, and a phrase for the summary."""
    for other in sorted(OTHER_NAMES):
        if wrong := fitting(root, images.replace("{split}", other)):
            raise InputError(
                f"{min(wrong.values())}: is not read; {{split}} stands for train, val and test: "
                f"rename the folder {other} and the folder of its masks"
            )
    parts, how = {}, ", by folders"
    for part in PARTS:
        pairs = find_pairs(root, images.replace("{split}", part), masks.replace("{split}", part))
        file, pictures = root / f"{part}.txt", len(pairs.images)
        parts[part] = []
        if part == "test" and pictures and not pairs.masks:  # test masks are often not published
            how += f" ({counted(pictures, 'test picture')} without masks left out)"
        elif file.is_file():
            parts[part] = matched(pairs, chosen(pairs, file, root))
            how += f", {len(parts[part])} of {counted(pictures, 'picture')} as {file.name} says"
        elif part == "train" or pictures or pairs.masks:
            parts[part] = matched(pairs)
    return parts, how


def parts_by_list(root: Path, images: str, masks: str) -> tuple[dict[str, list[Sample]], str]:
    """The samples of each part by lists, and a phrase for the summary.

    Without train.txt, the training set is all images that are in no list.
    """
    pairs = find_pairs(root, images, masks)
    if not pairs.images:
        matched(pairs)  # raises InputError for this, before a list is blamed
    lists = [root / f"{part}.txt" for part in PARTS if (root / f"{part}.txt").is_file()]
    if not lists:
        return {"train": matched(pairs), "val": [], "test": []}, ""
    keys = {file.stem: chosen(pairs, file, root) for file in lists}
    unused = pairs.images.keys() - set().union(*keys.values())
    how = f", as {', '.join(file.name for file in lists)} list them"
    if "train" not in keys:
        keys["train"] = unused
    elif unused:
        how += f" ({counted(len(unused), 'picture')} in no list)"
    return {part: matched(pairs, keys.get(part, set())) for part in PARTS}, how


def require_names_of_parts(root: Path, auto: bool, by_folder: bool):
    """Raise InputError for a folder or list with another name for a part, such as validation.

    It would be left out or, below images, mixed into the training set.

    auto    whether the folders are images and masks; a pattern already names the folders to read
    """
    places = [*root.glob("*.txt")]
    if auto:
        places += [*root.glob("images/*/"), *(path.parent for path in root.glob("*/images/"))]
    for path in places:
        known = path.stem in PARTS and (by_folder or path.suffix == ".txt")
        if path.stem.casefold() in OTHER_NAMES.union(PARTS) and not known:
            raise InputError(
                f"{path}: is not read; the parts must be called train, val and test, and be in the "
                "same place: rename or move it and the folder of its masks"
            )


class Pairs(NamedTuple):
    """Files by key, and their folders or patterns for messages. An image and its mask have the same
    key.
    """

    images: dict[str, Path]
    masks: dict[str, Path]
    images_in: str
    masks_in: str


def find_pairs(root: Path, images: str, masks: str) -> Pairs:
    """Pictures and masks whose paths below `root` match the patterns. A file that matches both is a
    mask. Raises InputError.
    """
    pictures, labels = fitting(root, images), fitting(root, masks)
    taken = set(labels.values())
    pictures = {key: file for key, file in pictures.items() if file not in taken}
    places = (str(root / pattern).removesuffix("/**/*") for pattern in (images, masks))
    return Pairs(pictures, labels, *places)


def fitting(root: Path, pattern: str) -> dict[str, Path]:
    """The pictures below `root` whose paths match a pattern, by key.

    * matches any part of a name, **/ any number of folders, and ? one character. A pattern without
    an extension matches pictures of every format. The key joins the texts that the wildcards match.
    Raises InputError.
    """
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise InputError(f"{pattern}: give a pattern of paths below {root}")
    pattern = pattern.removeprefix("./")
    pieces = re.split(r"(\*\*/|\*|\?)", pattern)  # every second piece is a wildcard
    stands_for = {"**/": "((?:[^/]+/)*)", "*": "([^/]*)", "?": "([^/])"}
    fits = re.compile("".join(stands_for.get(piece) or re.escape(piece) for piece in pieces))
    folder, any_ending = root / pieces[0].rpartition("/")[0], "." not in PurePosixPath(pattern).name
    files = {}
    for file in files_below(folder) if folder.is_dir() else []:
        path = file.relative_to(root)
        match = fits.fullmatch((path.with_suffix("") if any_ending else path).as_posix())
        if match:
            key = normalize("NFC", BETWEEN.join(match.groups()))  # macOS writes ü as two characters
            if key in files:
                raise InputError(
                    f"{file}: has the same stem as {files[key].name}; remove one of them"
                )
            files[key] = file
    if {"train", "val"} <= {name for key in files for name in re.split(f"[/{BETWEEN}]", key)}:
        raise InputError(
            f"{root / pattern}: mixes the folders train and val; write {{split}} in their place in "
            "--images and --masks"
        )
    return files


def matched(pairs: Pairs, keys: set[str] | None = None) -> list[Sample]:
    """The samples of these keys, or of all, sorted by path. Raises InputError naming the files
    without a partner.
    """
    images, masks = pairs.images, pairs.masks
    keys = images.keys() | masks.keys() if keys is None else keys
    by_pattern = "*" in pairs.images_in + pairs.masks_in
    if not images:
        raise InputError(
            f"{pairs.images_in}: "
            + (f"no picture matches; {WILDCARDS}" if by_pattern else "holds no pictures")
            + f"; the extensions are {', '.join(sorted(IMAGE_ENDINGS))}"
        )
    if lone := sorted(keys - (images.keys() & masks.keys())):
        files = [images.get(key) or masks[key] for key in lone]
        missing = "mask" if lone[0] in images else "image"
        others = f"; also without a partner: {shortened([f.name for f in files[1:]])}"
        cure = "; or list the images with a mask in train.txt" if missing == "mask" else ""
        raise InputError(
            f"{files[0]}: there is no {missing} named {lone[0].replace(BETWEEN, '')} in "
            f"{pairs.masks_in if missing == 'mask' else pairs.images_in}"
            + (others if len(files) > 1 else "")
            + (
                f"; * and **/ must match the same text in both paths; {WILDCARDS}"
                if by_pattern
                else "; if the names differ in more than the extension, give patterns, such as "
                "--images 'a/*_cam.jpg' --masks 'b/*_ids.png'"
            )
            + cure
        )
    ordered = sorted(keys, key=lambda key: images[key].with_suffix("").as_posix())
    return [Sample(images[key], masks[key], "") for key in ordered]


def chosen(pairs: Pairs, file: Path, root: Path) -> set[str]:
    """The keys of the images in a list. Raises InputError for a name that matches none or several.

    A name is a path below the data set or its folder images, or a unique file name, with or without
    the extension. Of a path from another machine, only the file name counts. A folder stands for
    all images below it.
    """
    by_name, by_path, below = {}, {}, {}
    above = os.path.commonpath([image.parent for image in pairs.images.values()] or [root])
    for key, image in pairs.images.items():
        mask, path = pairs.masks.get(key, image), image.relative_to(root)
        short = PurePosixPath(key.replace(BETWEEN, ""))
        for name in (image.name, image.stem, mask.name, mask.stem):
            by_name.setdefault(name, set()).add(key)
        for name in (path, path.with_suffix(""), short, f"{short}{image.suffix}"):
            by_path.setdefault(str(PurePosixPath(name)), set()).add(key)
        for folder in (*path.parents[:-1], *image.relative_to(above).parents[:-1]):
            below.setdefault(folder.as_posix(), set()).add(key)
    keys = set()
    for line in read_list(file):
        name = line.replace("\\", "/").removeprefix("./")
        fits = by_name.get(PurePosixPath(name).name, set())
        # Folders of another machine do not count, folders of the data set do.
        if len(fits) > 1 or str(PurePosixPath(name).parent) in below:
            fits = fits & by_path.get(name, set())
        if len(fits) != 1 or name.endswith("/"):
            fits = below.get(name.rstrip("/"))
        if not fits:
            raise InputError(
                f"{file}: names {line[:60]!r}, which must match exactly one image in "
                f"{pairs.images_in}; write its path there, or the path of a folder, one a line"
            )
        keys |= fits
    return keys


def read_list(file: Path) -> list[str]:
    """The distinct lines of a list of images, such as train.txt. Raises InputError."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as a list of images ({error})") from None
    names = list(dict.fromkeys(filter(None, map(str.strip, lines))))
    if not names:
        raise InputError(f"{file}: names no images")
    return names
