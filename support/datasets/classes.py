"""classes.txt: the names of the classes, and what stands for each in a mask, its id or its colours.

One class a line. A line is a name, and the class has the number of the line, from 0 on. Or a line
is a name and a colour, NAME R G B: then masks show the classes by colours, and lines with the same
name are one class of several colours.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Callable

import numpy as np

from support.console import InputError
from support.datasets.images import TRANSPARENT, read_colours, read_mask
from support.labels import IGNORE

COLOUR = re.compile(r"(.*?\S)[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)")
OTHERS = "all others"
MANY = 4096  # stray colours that are counted apart; the pixels of all others are added up, or a photo would fill the memory


def read_classes(path: Path) -> tuple[list[str], dict[int, int]]:
    """(names, colours): the names of classes 0 ... C-1, and the class of each colour 65536 R + 256
    G + B.

    `colours` is empty where masks hold ids. Raises InputError, naming the line: a line that was
    counted wrongly would give all classes after it other ids.
    """
    try:
        lines = [
            line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines()
        ]
        if "\0" in "".join(lines):
            raise ValueError("it holds zero bytes, as UTF-16 does")
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as text in UTF-8 ({error}); save it as UTF-8"
        ) from None
    for number, line in enumerate(lines, 1):
        where = f"{path}: line {number}"
        if not line:
            raise InputError(
                f"{where} is empty, and the ids of the classes are the numbers of their lines; delete it, or "
                "write a name for its id"
            )
        if line.startswith("#"):
            raise InputError(
                f"{where} is a comment, {line[:40]!r}, and each line is a class; delete it"
            )
        if re.match(r"\d+[\s,;]+\d+[\s,;]+\d+[\s,;]+\D", line):
            raise InputError(
                f"{where} begins with a colour, {line[:40]!r}; write the name first: NAME R G B"
            )
        if re.match(r"\d+([\s,;:.)=]|$)", line):
            raise InputError(
                f"{where} begins with a number, {line[:40]!r}; the first line is class 0, the next one class 1: "
                "write the names alone, in this order"
            )
        if other := re.fullmatch(
            r"(.*?\S)\s+(?:#([0-9a-fA-F]{6})|[(\[](\d+,\s*\d+,\s*\d+)[)\]])", line
        ):
            numbers = (
                other[3].replace(",", " ").split()
                if other[3]
                else [str(b) for b in bytes.fromhex(other[2])]
            )
            raise InputError(
                f"{where} writes its colour in another way, {line[:40]!r}; write {other[1]} {' '.join(numbers)}"
            )
        if re.search(r"(\s|^)\d+([\s,;]+\d+){3}$", line):
            raise InputError(
                f"{where} ends in four numbers or more, {line[:40]!r}; a colour is three: NAME R G B"
            )
    if lines and re.fullmatch(
        r"(name|class|label|id)s?([\s,;_]+(name|id|r|g|b|red|green|blue))*", lines[0], re.IGNORECASE
    ):
        raise InputError(
            f"{path}: line 1 is a header, {lines[0][:40]!r}, and each line is a class; delete it"
        )
    coloured = [COLOUR.fullmatch(line) for line in lines]
    endings = [re.fullmatch(r"(.*?\D)[\s,;:=]+\d+", line) for line in lines]
    if (
        len(lines) > 1
        and not any(coloured)
        and all(endings)
        and len({match[1] for match in endings}) == len(lines)
    ):
        raise InputError(
            f"{path}: every line ends in a number, as {lines[0][:40]!r}; ids are not written: the first line is "
            "class 0, the next one class 1. Write the names alone, in this order"
        )
    names = list(
        dict.fromkeys(match.group(1) if match else line for line, match in zip(lines, coloured))
    )
    if listed := next((name for name in names if "," in name), ""):
        raise InputError(
            f"{path}: {listed[:40]!r} has a comma, and --classes separates names by commas; write one name a "
            "line, without commas"
        )
    if any(coloured) and not all(coloured):
        raise InputError(
            f"{path}: line {coloured.index(None) + 1} has no colour, others have; write NAME R G B in every line, "
            "or in none"
        )
    if not any(coloured) and len(names) < len(lines):
        twice = next(i for i, line in enumerate(lines) if line in lines[:i])
        raise InputError(
            f"{path}: a class is named twice, {lines[twice][:40]!r} in line {twice + 1}; each line must be "
            "another name"
        )
    if not 1 <= len(names) <= IGNORE:
        raise InputError(
            f"{path}: {len(names)} classes named; 1 to {IGNORE} are possible, one name a line"
        )
    colours = {}
    for number, match in enumerate(filter(None, coloured), 1):
        red, green, blue = map(int, match.groups()[1:])
        if max(red, green, blue) > 255:
            raise InputError(
                f"{path}: line {number} has the colour {red} {green} {blue}; red, green and blue are 0 to 255"
            )
        name = names.index(match.group(1))
        if colours.setdefault(red << 16 | green << 8 | blue, name) != name:
            raise InputError(
                f"{path}: line {number} gives the colour {red} {green} {blue} to another class; a colour stands "
                "for one class"
            )
    return names, colours


def mask_reader(
    names: list[str], colours: dict[int, int]
) -> Callable[[Path, Counter | None], np.ndarray]:
    """read(path, strays): the class ids uint8 [H, W] in a mask, IGNORE where it shows none of the
    classes.

    The pixels of each id (an int) or colour (a tuple, or "transparent") without a class are added
    to the Counter `strays`, if it is given; those of many more kinds than a person would name
    together, as OTHERS. 255, which says that nobody knows, is no stray id. read raises InputError.
    """
    table = (
        np.full(TRANSPARENT + 1, IGNORE, np.uint8) if colours else None
    )  # class of every colour; the last: transparent
    for colour, name in colours.items():
        table[colour] = name

    shown_as = {}  # the colour of each id in the palettes of the masks

    def read_ids(path, strays=None):
        ids = read_mask(path, shown_as)
        if strays is not None:
            counts = np.bincount(ids.ravel(), minlength=256)
            strays.update({i: int(counts[i]) for i in range(len(names), IGNORE) if counts[i]})
        return np.where(ids < len(names), ids, np.uint8(IGNORE))

    def read_by_colour(path, strays=None):
        shown = read_colours(path)
        label = table[shown]
        if strays is not None:
            colours, pixels = np.unique(shown[label == IGNORE], return_counts=True)
            for i in np.argsort(
                -pixels, kind="stable"
            ):  # the most frequent first, should there be too many
                colour = int(colours[i])
                key = (
                    "transparent"
                    if colour == TRANSPARENT
                    else (colour >> 16, colour >> 8 & 255, colour & 255)
                )
                strays[key if key in strays or len(strays) < MANY else OTHERS] += int(pixels[i])
        return label

    return read_by_colour if colours else read_ids
