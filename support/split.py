"""Which images are held out: the validation set, where a data set does not say."""

from __future__ import annotations

import hashlib

from support.errors import InputError

HELD_OUT = 0.2  # share of the images that are kept out of training


def hold_out(samples: list, seed: int) -> tuple[list, list]:
    """(train, val) of some samples (class Sample in data.py): about HELD_OUT of each group goes to val, one image at least.

    Images are drawn by a hash of the seed and their file name. So the draw is the same on every machine, for every path and
    order of the files. An image that is added later moves one other image of its group at most. Raises InputError for fewer
    than two samples.
    """
    if len(samples) < 2:
        raise InputError(f"{samples[0].image}: is the only labelled image; two at least are needed, one of them held out")
    drawn = sorted(samples, key=lambda s: hashlib.sha256(f"{seed} {s.image.name}".encode()).hexdigest())
    val = set()
    for group in sorted({s.group for s in samples}):
        members = [s for s in drawn if s.group == group]
        val.update(members[:round(HELD_OUT * len(members))])
    val = val or {drawn[0]}
    return [s for s in samples if s not in val], [s for s in samples if s in val]
