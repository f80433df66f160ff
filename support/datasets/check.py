"""Before the first step: every file is read once, and the pixels of each class are counted.

A run must not fail after hours because of a file that cannot be read. The counts tell whether there
is anything to learn, what is ignored, and which classes are rare. `python data.py` shows the same.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from kitti import calibration_of, homography
from support.console import InputError, Progress, counted
from support.datasets.images import Reader
from support.labels import IGNORE, DataSet, Sample
from support.prefetch import prefetch

MIN_FREQUENCY = 1e-4  # classes with a smaller share of the pixels weigh no more (weigh_classes)


class Counts(NamedTuple):
    """What the files of N samples hold.

    pixels      int64 [N, C], how many pixels of each sample show each class
    sizes       int64 [N, 2], height and width of each sample; zeros for one that cannot be read
    unmapped    pixels of each id (int) or colour (tuple) that belongs to no class, and of id 0
    looks       uint8 [N, 16, 16], each picture in grey, made very small
    """

    pixels: np.ndarray
    sizes: np.ndarray
    unmapped: Counter
    looks: np.ndarray


def read_everything(
    samples: list[Sample], data: DataSet, reader: Reader, faults: list[str] | None = None
) -> Counts:
    """Read every picture, label and calibration once, and count.

    Raises InputError for the first file that cannot be used; with `faults`, the messages of all
    such files are added there.
    """
    progress = Progress(len(samples))
    pixels = np.zeros((len(samples), len(data.classes)), np.int64)
    sizes = np.zeros((len(samples), 2), np.int64)
    looks = np.zeros((len(samples), 16, 16), np.uint8)
    unmapped = Counter()

    def read(sample):
        found, calibration = Counter(), calibration_of(sample.image)
        try:
            if data.kitti and calibration.is_file():
                homography(calibration)
            image, label = reader(sample, found)
        except InputError as error:
            if faults is None:
                raise
            return error
        counts = np.bincount(label.ravel(), minlength=256)[: len(data.classes)]
        look = Image.fromarray(image).convert("L").resize((16, 16), Image.Resampling.BOX)
        return label.shape, counts, look, found

    for i, result in enumerate(prefetch(samples, read, os.cpu_count() or 1)):
        if isinstance(result, InputError):
            faults.append(str(result))
        else:
            sizes[i], pixels[i], looks[i], found = result
            unmapped.update(found)
        if progress.due():
            progress.show(f"reading {i + 1}/{len(samples)} images")
    read_sizes = sizes[sizes.all(1)]
    height, width = extent(read_sizes)["largest"] if len(read_sizes) else (0, 0)
    progress.line(
        f"{counted(len(read_sizes), 'image')} read, the largest {height}x{width} (height x width)"
    )
    return Counts(pixels, sizes, unmapped, looks)


def describe(counts: Counts, data: DataSet) -> str:
    """A table of id, name, share of the pixels and images of each class, and what is ignored, over
    all samples.
    """
    total = max(int(counts.sizes.prod(1).sum()), 1)
    width = max(map(len, [*data.classes, "ignored"]))
    lines = [f" id  {'class':{width}}   pixels   images"]
    for i, name in enumerate(data.classes):
        pixels = counts.pixels[:, i]
        share = per_cent(pixels.sum() / total)
        lines.append(f"{i:3}  {name:{width}}  {share:>8}  {(pixels > 0).sum():7}")
    lines.append(f"     {'ignored':{width}}  {per_cent(1 - counts.pixels.sum() / total):>8}")
    kinds = [(kind, pixels) for kind, pixels in counts.unmapped.most_common() if kind != 0]
    if kinds:
        noun = "id" if isinstance(kinds[0][0], int) else "colour"
        named = ", ".join(f"{kind} {per_cent(pixels / total)}" for kind, pixels in kinds[:5])
        lines.append(
            f"ignored, since no class has {f'this {noun}' if len(kinds) == 1 else f'these {noun}s'}"
            f": {named}" + (f" and {len(kinds) - 5} more" if len(kinds) > 5 else "")
        )
        if noun == "colour" and len(kinds) > max(16, 2 * len(data.classes)):
            lines.append(
                f"warning: {len(kinds)} colours are none of classes.txt: edges that were "
                "smoothed (anti-aliasing)? Save the masks with hard edges"
            )
        if 2 * sum(pixels for _, pixels in kinds) > total:
            lines.append(
                "warning: most pixels have no class: they neither train nor count; compare the "
                "masks with classes.txt"
            )
    return "\n".join(lines)


def per_cent(share: float) -> str:
    """A share from 0 to 1 in per cent."""
    return "<0.01 %" if 0 < share < 5e-5 else f"{100 * share:.2f} %"


def extent(sizes: np.ndarray) -> dict[str, tuple[int, int]]:
    """The smallest, median and largest of some sizes [N, 2], by the longer side: (height, width)
    each.
    """
    ordered = sizes[np.argsort(sizes.max(1), kind="stable")]
    places = {"smallest": 0, "median": len(ordered) // 2, "largest": -1}
    return {name: tuple(ordered[i].tolist()) for name, i in places.items()}


def check_counts(counts: Counts, data: DataSet):
    """Raise InputError if there is nothing to learn or to score, or if the ids count from 1. Print
    which classes no image of a part shows, and whether images of the validation set are in the
    training set too, or look like some there.

    counts    of the training set, the validation set and perhaps the test set, in this order
    """
    masks, first_val = data.train[0].label.parent, len(data.train)
    check_first_id(counts, data)
    training = counts.pixels[:first_val].sum(0)
    validation = counts.pixels[first_val : first_val + len(data.val)].sum(0)
    parts = {"training": training, "validation": validation}
    for part, pixels in parts.items():
        if not pixels.any():
            raise InputError(
                f"{masks}: no pixel of a {part} image has a class; compare the masks with "
                "classes.txt; if they hold ids, write names without colours there"
            )
    if (training > 0).sum() == 1:
        raise InputError(
            f"{masks}: every training pixel with a class is {data.classes[training.argmax()]}, so "
            f"there is nothing to tell apart; {IGNORE} is ignored, and so is every id or colour "
            "that classes.txt does not name. For black-and-white masks write there 'background 0 0 "
            "0' and 'road 255 255 255'; for masks of ids, write names without colours"
        )
    for part, pixels in parts.items():
        if unseen := [name for name, count in zip(data.classes, pixels, strict=True) if not count]:
            print(f"no {part} image shows: {', '.join(unseen)}", flush=True)
    looks = [look.tobytes() for look in counts.looks]
    known = dict(zip(looks, data.train, strict=False))
    held_out = zip(data.val, looks[first_val:], strict=False)
    twice = [(sample.image, known[look].image) for sample, look in held_out if look in known]
    if twice:
        print(
            f"warning: {counted(len(twice), 'validation image')} in the training set too, as "
            f"{twice[0][0]} and {twice[0][1]}: their scores are too good",
            flush=True,
        )
    alike = 0 if data.kitti else count_alike(counts, data)
    if alike > len(data.val) / 4:
        print(
            "warning: much like the training image before or after them, as frames of a video are: "
            f"{alike} of {counted(len(data.val), 'validation image')}; their scores are too good, "
            "so name whole scenes or folders in val.txt",
            flush=True,
        )


def check_first_id(counts: Counts, data: DataSet):
    """Raise InputError, or print a line, if the ids seem to count from 1: each would get the name
    of the next.
    """
    first, after_last = counts.unmapped[0], counts.unmapped[data.ids]
    if not data.ids or not after_last:
        return
    share = first / counts.sizes.prod(1).sum()
    text = (
        f"{data.train[0].label.parent}: the masks hold id {data.ids}, classes.txt names ids 0 to "
        f"{data.ids - 1}, and id 0 ({data.classes[0]}) shows on {per_cent(share)} of the pixels; "
        "if the ids count from 1, write a line for id 0 before the others"
    )
    if not first:
        raise InputError(
            f"{text}; if they count from 0, name id {data.ids} too, or save it as {IGNORE}"
        )
    if after_last > first:
        print(f"warning: {text}", flush=True)


def count_alike(counts: Counts, data: DataSet) -> int:
    """How many validation images look like a training image beside them, in the order of the paths:
    they differ less than half as much as any two images of the data set do.
    """
    samples = [*data.train, *data.val]
    order = sorted(range(len(samples)), key=lambda i: samples[i].image)
    held_out, looks = np.array(order) >= len(data.train), counts.looks[order].astype(np.int16)
    far = np.median(np.abs(looks - np.roll(looks, len(order) // 2, axis=0)).mean((1, 2)))
    near = np.abs(np.diff(looks, axis=0)).mean((1, 2)) < far / 2
    across = near & (held_out[1:] != held_out[:-1])
    return int((held_out & (np.append(across, False) | np.append(False, across))).sum())


def weigh_classes(pixels: np.ndarray) -> np.ndarray:
    """float32 [C]: the weight of a pixel of each class in the loss, so that rare classes are not
    lost among the others.

    pixels    [C], the pixels of each class in all training images

    A class of frequency f has weight 1 / sqrt(f), times a factor that makes the mean over all
    pixels 1. That lies between equal weights of all pixels (1) and of all classes (1 / f). Below
    MIN_FREQUENCY the weight grows no more, or a few wrong pixels would outweigh all others. A class
    that no image shows has weight 1.
    """
    frequency = pixels / max(pixels.sum(), 1)
    weights = 1 / np.sqrt(np.maximum(frequency, MIN_FREQUENCY))
    weights /= (frequency * weights).sum() or 1
    return np.where(pixels > 0, weights, 1).astype(np.float32)
