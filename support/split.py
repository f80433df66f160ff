"""Which images are held out, the validation set: those that a list names, or a draw."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from support.errors import InputError

HELD_OUT = 0.2  # share of the images that are kept out of training


def hold_out(samples: list, seed: int) -> tuple[list, list]:
    """(train, val) of some samples (class Sample in samples.py): about HELD_OUT of each group goes to val, one image at least.

    Images are drawn by a hash of the seed and their file name; of one name in several folders, by the path from there on. So
    the draw is the same on every machine, wherever the data set lies, and in every order of the files. An image that is added
    later moves one other image of its group at most. Raises InputError for fewer than two samples.
    """
    if len(samples) < 2:
        raise InputError(f"{samples[0].image}: is the only labelled image; two at least are needed, one of them held out")
    above = os.path.commonpath([s.image.parent for s in samples])

    def place(s):
        return [hashlib.sha256(os.fsencode(f"{seed} {name}")).hexdigest()
                for name in (s.image.name, s.image.relative_to(above).as_posix())]

    drawn = sorted(samples, key=place)
    val = set()
    for group in sorted({s.group for s in samples}):
        members = [s for s in drawn if s.group == group]
        val.update(members[:round(HELD_OUT * len(members))])
    val = val or {drawn[0]}
    return [s for s in samples if s not in val], [s for s in samples if s in val]


def read_list(path: Path) -> list[str]:
    """The lines of a list of images, such as train.txt, each once. Raises InputError if there are none."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a list of images ({getattr(error, 'strerror', 'not text')})") from None
    names = dict.fromkeys(line.strip() for line in lines if line.strip())
    if not names:
        raise InputError(f"{path}: names no images")
    return list(names)


def refuse_both(names: list[str], others: list[str], file: Path, other: Path):
    """Raise InputError if two lists name the same images: the network would be scored on what it was trained on."""
    if both := set(names) & set(others):
        raise InputError(f"{file}: {len(both)} of its images {'is' if len(both) == 1 else 'are'} in {other.name} too, as "
                         f"{min(both)}; take them out of one, or the network is scored on what it was trained on")
