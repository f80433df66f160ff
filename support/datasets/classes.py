"""What the numbers or colours in masks mean: classes.txt, or the ids that the masks hold.

Each line of classes.txt is a class. NAME: the line's number, from 0 on, is the id in the masks.
NAME R G B: the masks show the class by this colour; lines of one name are one class of several
colours.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from support.console import CONTROL, InputError
from support.datasets.images import TRANSPARENT, read_colours, read_mask
from support.labels import IGNORE, Sample
from support.prefetch import prefetch

COLOURED = re.compile(r"(.*?\S)[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)")
NO_NAME = re.compile(r"$|#|\d+([\s,;:.)=]|$)")  # an empty line, a comment, a number
MAX_LINE = 200  # letters; a line of 100,000 commas would take COLOURED minutes
MAX_UNNAMED = 40  # classes without classes.txt; photos in the place of masks have more shades
MAX_UNMAPPED = 64  # ids or colours without a class that are told apart in a mask


def read_classes(path: Path) -> tuple[list[str], dict[int, int]]:
    """(names, colours): the names of classes 0 ... C-1, and the class of each colour 65536 R + 256
    G + B.

    `colours` is empty where masks hold ids. Raises InputError naming the line: a line counted
    wrongly would give all classes after it other ids.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as text in UTF-8 ({error})") from None
    entries = []
    for number, line in enumerate(map(str.strip, lines), 1):
        match = COLOURED.fullmatch(line[:MAX_LINE])
        name, rgb = (match[1], tuple(map(int, match.groups()[1:]))) if match else (line, ())
        unreadable = len(line) > MAX_LINE or CONTROL.search(name)
        if NO_NAME.match(line) or max(rgb, default=0) > 255 or unreadable:
            raise InputError(
                f"{path}: line {number} is {line[:40]!r}, and must be NAME or NAME R G B, of at "
                f"most {MAX_LINE} letters: line 1 is class 0, line 2 is class 1, without empty "
                "lines, comments and numbers between"
            )
        entries.append((name, rgb))
    names = list(dict.fromkeys(name for name, _ in entries))
    plain = [i for i, (_, rgb) in enumerate(entries, 1) if not rgb]
    if plain and len(plain) < len(entries):
        raise InputError(
            f"{path}: line {plain[0]} has no colour, others have; write NAME R G B in every line, "
            "or in none"
        )
    if plain and len(names) < len(entries):
        name = Counter(name for name, _ in entries).most_common(1)[0][0]
        raise InputError(f"{path}: a class is named twice, {name[:40]!r}")
    if not 1 <= len(names) <= IGNORE:
        raise InputError(f"{path}: names {len(names)} classes; 1 to {IGNORE} are possible")
    colours = {}
    for name, rgb in () if plain else entries:
        class_id = names.index(name)
        if colours.setdefault(int.from_bytes(rgb), class_id) != class_id:
            raise InputError(f"{path}: gives the colour {rgb} to two classes, one is {name[:40]!r}")
    return names, colours


def mask_reader(
    names: list[str], colours: dict[int, int]
) -> Callable[[Path, Counter | None], np.ndarray]:
    """read(path, unmapped=None): the class ids uint8 [H, W] in a mask, IGNORE where it shows none
    of the classes.

    The pixels of each id (int) or colour (tuple, or "transparent") without a class are added to
    the Counter `unmapped`; of one mask the MAX_UNMAPPED most frequent ones. 255, which marks
    ignored pixels, is not among them; those of id 0 are added in any case. read raises InputError,
    with `unmapped` also for a photo in the place of a mask.
    """
    palette = {}  # the colour of each id in the palettes of all masks

    def read_ids(path, unmapped=None):
        ids = read_mask(path, palette)
        if unmapped is not None:
            pixels = np.bincount(ids.ravel(), minlength=256)
            unmapped[0] += int(pixels[0])
            found = [i for i in range(len(names), IGNORE) if pixels[i]]
            count_unmapped(path, found, pixels[found], ids.size, unmapped)
        return np.where(ids < len(names), ids, np.uint8(IGNORE))

    if not colours:
        return read_ids
    class_of = np.full(TRANSPARENT + 1, IGNORE, np.uint8)
    class_of[list(colours)] = list(colours.values())

    def read_by_colour(path, unmapped=None):
        shown = read_colours(path)
        label = class_of[shown]
        if unmapped is not None:
            found, pixels = np.unique(shown[label == IGNORE], return_counts=True)
            by_colour = Counter()
            count_unmapped(path, found, pixels, label.size, by_colour)
            for colour, count in by_colour.items():
                rgb = tuple(colour.to_bytes(4)[1:])
                unmapped["transparent" if colour == TRANSPARENT else rgb] += count
        return label

    return read_by_colour


def count_unmapped(path: Path, found, pixels: np.ndarray, size: int, unmapped: Counter):
    """Add to `unmapped` the pixels of the MAX_UNMAPPED most frequent ids or colours `found` in a
    mask of `size` pixels. Raises InputError if there are more, and they fill most of the mask.
    """
    if len(found) > MAX_UNMAPPED and 2 * pixels.sum() > size:
        raise InputError(
            f"{path}: looks like a photo, not like a mask: {len(found):,} ids or colours in it are "
            "none of classes.txt; look whether photos lie in the place of masks, or --images and "
            "--masks are swapped"
        )
    for i in np.argsort(-pixels, kind="stable")[:MAX_UNMAPPED]:
        unmapped[int(found[i])] += int(pixels[i])


def count_classes(samples: list[Sample], file: Path) -> list[str]:
    """Names for as many classes as the ids in all masks call for, from 0 to the largest.

    file    where the names could stand, for the message of the InputError

    Masks that cannot be read are left out: `read_everything` (check.py) names them.
    """

    def largest_id(sample):
        try:
            ids = read_mask(sample.label)
        except InputError:
            return 0
        return int(ids.max(initial=0, where=ids != IGNORE))

    largest = max(prefetch(samples, largest_id, os.cpu_count() or 1))
    if largest >= MAX_UNNAMED:
        raise InputError(
            f"{file.parent}: the masks hold ids up to {largest}, as photos in their place would; "
            f"if these are classes, name them in {file}, one a line, or by their shades of grey, "
            f"as NAME {largest} {largest} {largest}"
        )
    return [f"class {i}" for i in range(largest + 1)]
