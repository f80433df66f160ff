"""The class of each id or colour in a mask, from classes.txt or from the ids themselves.

Each line of classes.txt is a class:

    NAME          the number of the line, from 0 up, is the id in the masks
    NAME R G B    this is the colour in the masks; a class may have several lines
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
MAX_LINE = 200  # characters; COLOURED would take minutes for a line of 100,000 commas
MAX_UNNAMED = 40  # classes without classes.txt; photos instead of masks have more shades
MAX_UNMAPPED = 64  # ids or colours without a class that are counted in a mask


def read_classes(path: Path) -> tuple[list[str], dict[int, int]]:
    """(names, colours): names of classes 0 ... C-1, class of each colour 65536 R + 256 G + B.

    `colours` is empty if masks hold ids. Raises InputError naming the line: a stray line would
    shift the ids of all classes after it.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip().splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text ({error})") from None
    entries = []
    for number, line in enumerate(map(str.strip, lines), 1):
        match = COLOURED.fullmatch(line[:MAX_LINE])
        name, rgb = (match[1], tuple(map(int, match.groups()[1:]))) if match else (line, ())
        unreadable = len(line) > MAX_LINE or CONTROL.search(name)
        if NO_NAME.match(line) or max(rgb, default=0) > 255 or unreadable:
            raise InputError(
                f"{path}: line {number} is {line[:40]!r}, but must be NAME or NAME R G B, with at "
                f"most {MAX_LINE} characters; line 1 is class 0, line 2 is class 1: remove empty "
                "lines, comments and numbers before names"
            )
        entries.append((name, rgb))
    names = list(dict.fromkeys(name for name, _ in entries))
    plain = [i for i, (_, rgb) in enumerate(entries, 1) if not rgb]
    if plain and len(plain) < len(entries):
        raise InputError(
            f"{path}: line {plain[0]} has no colour, but others do; write NAME R G B on every line "
            "or on none"
        )
    if plain and len(names) < len(entries):
        name = Counter(name for name, _ in entries).most_common(1)[0][0]
        raise InputError(f"{path}: more than one line names class {name[:40]!r}")
    if not 1 <= len(names) <= IGNORE:
        raise InputError(f"{path}: names {len(names)} classes; 1 to {IGNORE} are possible")
    colours = {}
    for name, rgb in () if plain else entries:
        class_id = names.index(name)
        if colours.setdefault(int.from_bytes(rgb), class_id) != class_id:
            raise InputError(f"{path}: colour {rgb} has two classes, one of them {name[:40]!r}")
    return names, colours


def mask_reader(
    names: list[str], colours: dict[int, int]
) -> Callable[[Path, Counter | None], np.ndarray]:
    """A function read(path, unmapped=None) that returns the class ids uint8 [H, W] of a mask.
    Pixels without a class are IGNORE.

    read counts in `unmapped` the pixels of each id (int) or colour (tuple, or "transparent")
    without a class, for the MAX_UNMAPPED most frequent ones of each mask. In masks of ids, it also
    counts those of id 0, but not of id 255, which marks ignored pixels. Raises InputError; with
    `unmapped`, also for a photo instead of a mask.
    """
    palette = {}  # colour of each id in the palettes so far

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
    """Add the pixels of the MAX_UNMAPPED most frequent ids or colours `found` to `unmapped`.

    size    pixels of the mask

    Raises InputError if there are more, and they fill most of the mask.
    """
    if len(found) > MAX_UNMAPPED and 2 * pixels.sum() > size:
        raise InputError(
            f"{path}: looks like a photo, not a mask: {len(found):,} of its ids or colours are not "
            "in classes.txt; check that no photos lie among the masks, and that --images and "
            "--masks are not swapped"
        )
    for i in np.argsort(-pixels, kind="stable")[:MAX_UNMAPPED]:
        unmapped[int(found[i])] += int(pixels[i])


def count_classes(samples: list[Sample], file: Path) -> list[str]:
    """Class names for the ids from 0 to the largest in all masks: "class 0", "class 1", ...

    file    classes.txt, for the InputError message

    Skips masks that cannot be read: `read_everything` (check.py) names them.
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
            f"{file.parent}: the masks hold ids up to {largest}, as photos would; "
            f"if these are classes, name them in {file}, one a line, or by their shades of grey, "
            f"such as NAME {largest} {largest} {largest}"
        )
    return [f"class {i}" for i in range(largest + 1)]
