"""Checks before the first step: read every file once and count the pixels of each class.

A run must not fail after hours because of an unreadable file. The counts show whether there is
anything to learn, what is ignored, and which classes are rare. `python data.py` does the same.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import NamedTuple

import numpy as np
from PIL import Image

from kitti import calibration_of, homography
from support.console import InputError, Progress, counted, shortened
from support.datasets.images import Reader
from support.labels import IGNORE, DataSet, Sample
from support.prefetch import prefetch

MIN_FREQUENCY = 1e-4  # share of the pixels below which a class weight stops growing (weigh_classes)


class Counts(NamedTuple):
    """Counts over the files of N samples.

    pixels      int64 [N, C], pixels of each class in each sample
    sizes       int64 [N, 2], height and width of each sample; zeros if it cannot be read
    unmapped    pixels of each id (int) or colour (tuple) without a class, and of id 0
    looks       uint8 [N, 16, 16], a tiny grey copy of each picture
    """

    pixels: np.ndarray
    sizes: np.ndarray
    unmapped: Counter
    looks: np.ndarray


def read_everything(
    samples: list[Sample], data: DataSet, reader: Reader, faults: list[str] | None = None
) -> Counts:
    """Read every picture, label and calibration once, and count.

    Raises InputError for the first file that cannot be used. With `faults`, appends the messages of
    all such files to it instead.
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
    """A table with id, name, share of the pixels and number of images of each class, and the
    ignored pixels.
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
        named = [f"{kind} {per_cent(pixels / total)}" for kind, pixels in kinds]
        lines.append(f"ignored ids or colours, which no class has: {shortened(named, 5)}")
        if not isinstance(kinds[0][0], int) and len(kinds) > max(16, 2 * len(data.classes)):
            lines.append(
                f"warning: {len(kinds)} colours are not in classes.txt, perhaps from smoothed "
                "edges (anti-aliasing); save the masks with hard edges"
            )
        if 2 * sum(pixels for _, pixels in kinds) > total:
            lines.append(
                "warning: most pixels have no class and are ignored; compare the masks with "
                "classes.txt"
            )
    return "\n".join(lines)


def per_cent(share: float) -> str:
    """A share from 0 to 1 as a percentage."""
    return "<0.01 %" if 0 < share < 5e-5 else f"{100 * share:.2f} %"


def extent(sizes: np.ndarray) -> dict[str, tuple[int, int]]:
    """The smallest, median and largest (height, width) of sizes [N, 2], by the longer side."""
    ordered = sizes[np.argsort(sizes.max(1), kind="stable")]
    places = {"smallest": 0, "median": len(ordered) // 2, "largest": -1}
    return {name: tuple(ordered[i].tolist()) for name, i in places.items()}


def check_counts(counts: Counts, data: DataSet):
    """Raise InputError if there is nothing to learn or to score, or if the ids count from 1.

    counts    of the training set, the validation set and perhaps the test set, in this order

    Prints the classes without pixels in the training or validation set, and warns of validation
    images that are in the training set or look like training images.
    """
    first_val = len(data.train)
    check_first_id(counts, data)
    training = counts.pixels[:first_val].sum(0)
    validation = counts.pixels[first_val : first_val + len(data.val)].sum(0)
    parts = ("training", data.train, training, 2), ("validation", data.val, validation, 1)
    for part, samples, pixels, needed in parts:
        unseen = [name for name, count in zip(data.classes, pixels, strict=True) if not count]
        if len(data.classes) - len(unseen) < needed:
            raise InputError(
                f"{samples[0].label.parent}: the {part} images must show at least {needed} of the "
                f"classes; id {IGNORE} and every id or colour that is not in classes.txt are "
                "ignored. For black-and-white masks, write 'background 0 0 0' and 'road 255 255 "
                "255' there; for masks of ids, write names without colours"
            )
        if unseen:
            print(f"no {part} image shows: {', '.join(unseen)}", flush=True)
    looks = [look.tobytes() for look in counts.looks]
    known = dict(zip(looks, data.train, strict=False))
    held_out = zip(data.val, looks[first_val:], strict=False)
    twice = [(sample.image, known[look].image) for sample, look in held_out if look in known]
    if twice:
        print(
            f"warning: {counted(len(twice), 'validation image')} may be copies of training images, "
            f"such as {twice[0][0]} of {twice[0][1]}; then the scores are too good",
            flush=True,
        )
    alike = 0 if data.kitti else count_alike(counts, data)
    if alike > len(data.val) / 4:
        print(
            f"warning: {alike} of {counted(len(data.val), 'validation image')} look like a "
            "training image, perhaps the next frame of a video; if so, the scores are too good: "
            "name whole drives or folders in val.txt",
            flush=True,
        )


def check_first_id(counts: Counts, data: DataSet):
    """Raise InputError, or print a warning, if the ids seem to count from 1: all class names would
    be shifted.
    """
    last = len(data.ids)
    first, after_last = counts.unmapped[0], counts.unmapped[last]
    if not last or not after_last:
        return
    share = first / counts.sizes.prod(1).sum()
    text = (
        f"{data.train[0].label.parent}: the masks hold id {last}, classes.txt names ids 0 to "
        f"{last - 1}, and id 0 ({data.ids[0]}) covers {per_cent(share)} of the pixels; "
        "if the ids count from 1, insert a line for id 0 at the top; if they count from 0, name "
        f"id {last} too, or replace it by {IGNORE}"
    )
    if not first:
        raise InputError(text)
    if after_last > first:
        print(f"warning: {text}", flush=True)


def count_alike(counts: Counts, data: DataSet) -> int:
    """The number of validation images that look like the training image before or after them, in
    the order of the paths: they differ less than half as much as a typical pair of images.
    """
    samples = [*data.train, *data.val]
    order = sorted(range(len(samples)), key=lambda i: samples[i].image)
    held_out, looks = np.array(order) >= len(data.train), counts.looks[order].astype(np.int16)
    far = np.median(np.abs(looks - np.roll(looks, len(order) // 2, axis=0)).mean((1, 2)))
    near = np.abs(np.diff(looks, axis=0)).mean((1, 2)) < far / 2
    across = near & (held_out[1:] != held_out[:-1])
    return int((held_out & (np.append(across, False) | np.append(False, across))).sum())


def weigh_classes(pixels: np.ndarray) -> np.ndarray:
    """The weight of each class in the loss, float32 [C], larger for rare classes.

    pixels    [C], pixels of each class in the training set

    A class of frequency f has weight 1 / sqrt(f), scaled to a mean of 1 over all pixels. This is a
    compromise between counting every pixel equally (1) and every class equally (1 / f). Below
    MIN_FREQUENCY the weight stops growing; otherwise a few mislabelled pixels would outweigh all
    others. A class without pixels has weight 1.
    """
    frequency = pixels / max(pixels.sum(), 1)
    weights = 1 / np.sqrt(np.maximum(frequency, MIN_FREQUENCY))
    weights /= (frequency * weights).sum() or 1
    return np.where(pixels > 0, weights, 1).astype(np.float32)
