"""Before the first step: every file is read once, and the pixels of each class are counted.

A run must not fail after hours because of a file that cannot be read. The counts tell whether there
is anything to learn, what is ignored, and which classes are rare. `python data.py` shows the same.
No PyTorch is needed.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from support.console import InputError, Progress, counted
from support.datasets.augment import SCALE, view_size
from support.datasets.classes import OTHERS
from support.datasets.images import Reader
from support.labels import IGNORE, DataSet, Sample

RAREST = (
    1e-4  # share of the pixels: classes that are rarer weigh no more than this one (weigh_classes)
)


class Counts(NamedTuple):
    """What the files of some samples hold.

    pixels    int64 [N, C], how many pixels of each sample show each class
    sizes     int64 [N, 2], height and width of each sample; zeros for one that cannot be read
    strays    pixels of ids (int) or colours (tuple) that no class covers
    digests   of the pixels of each picture: where two are equal, so are the pictures
    """

    pixels: np.ndarray
    sizes: np.ndarray
    strays: Counter
    digests: list[bytes]


def read_everything(
    samples: list[Sample], data: DataSet, reader: Reader, faults: list[str] | None = None
) -> Counts:
    """Read every picture, label and calibration once, and count.

    Raises InputError for the first file that cannot be used; with `faults`, the messages of all
    such files are added there.
    """
    progress = Progress(len(samples))
    pixels, sizes = (
        np.zeros((len(samples), len(data.classes)), np.int64),
        np.zeros((len(samples), 2), np.int64),
    )
    strays, digests = Counter(), [b""] * len(samples)

    def read(sample):
        found = Counter()
        if data.kitti:
            check_calibration(sample)
        image, label = reader(sample, found)
        digest = hashlib.blake2b(np.ascontiguousarray(image), digest_size=16).digest()
        return (
            label.shape,
            np.bincount(label.ravel(), minlength=256)[: len(data.classes)],
            digest,
            found,
        )

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(read, sample) for sample in samples]
        try:
            for i, future in enumerate(futures):
                try:
                    sizes[i], pixels[i], digests[i], found = future.result()
                    strays.update(found)
                except InputError as error:
                    if faults is None:
                        raise
                    faults.append(str(error))
                if progress.due():
                    progress.show(f"reading {i + 1}/{len(samples)} images")
        finally:
            pool.shutdown(cancel_futures=True)  # after an error: do not read what nobody will use
    read = sizes[sizes.all(1)]
    height, width = extent(read)["largest"] if len(read) else (0, 0)
    progress.line(
        f"{counted(len(read), 'image')} read, the largest {height}x{width} (height x width)"
    )
    return Counts(pixels, sizes, strays, digests)


def check_calibration(sample: Sample):
    """Raise InputError if KITTI's calibration of a sample is there and cannot be used."""
    from kitti import calibration_of, homography

    if calibration_of(sample.image).is_file():
        homography(calibration_of(sample.image))


def describe(counts: Counts, data: DataSet) -> str:
    """A table of id, name, share of the pixels and images of each class, and what is ignored, over
    all samples.
    """
    total = max(int(counts.sizes.prod(1).sum()), 1)
    width = max(map(len, [*data.classes, "ignored"]))
    lines = [f" id  {'class':{width}}   pixels   images"]
    for i, name in enumerate(data.classes):
        pixels = counts.pixels[:, i]
        lines.append(
            f"{i:3}  {name:{width}}  {per_cent(pixels.sum() / total):>8}  {(pixels > 0).sum():7}"
        )
    lines.append(f"     {'ignored':{width}}  {per_cent((total - counts.pixels.sum()) / total):>8}")
    if counts.strays:
        kinds = [kind for kind, _ in counts.strays.most_common() if kind != OTHERS]
        what = "id" if isinstance(kinds[0], int) else "colour"
        named = ", ".join(f"{kind} {per_cent(counts.strays[kind] / total)}" for kind in kinds[:5])
        lines.append(
            f"ignored, since no class has {f'this {what}' if len(kinds) == 1 else f'these {what}s'}: {named}"
            + (f" and {len(kinds) - 5} more" if len(kinds) > 5 else "")
            + (
                f"; together {per_cent(sum(counts.strays.values()) / total)}"
                if len(kinds) > 1
                else ""
            )
        )
        if what == "colour" and len(kinds) > max(16, 2 * len(data.classes)):
            lines.append(
                f"warning: {len(kinds)} colours or more are none of classes.txt: edges that were smoothed "
                "(anti-aliasing)? Save the masks with hard edges"
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
    return {
        name: tuple(ordered[i].tolist())
        for name, i in (("smallest", 0), ("median", len(ordered) // 2), ("largest", -1))
    }


def check_counts(counts: Counts, data: DataSet, crop: tuple[int, int] | None):
    """Raise InputError if there is nothing to learn or to score, or if `crop` is larger than all
    views.

    counts    of the training set and the validation set, in this order

    Classes that no training image shows are named on standard output.
    """
    masks = data.train[0].label.parent
    training, held_out = (
        part.sum(0)
        for part in np.split(counts.pixels[: len(data.train) + len(data.val)], [len(data.train)])
    )
    for part, pixels in (("training", training), ("held-out", held_out)):
        if not pixels.any():
            raise InputError(
                f"{masks}: no pixel of a {part} image has a class that counts; compare what the masks hold with "
                "classes.txt"
            )
    if (training > 0).sum() == 1:
        raise InputError(
            f"{masks}: every training pixel that counts is of one class, {data.classes[training.argmax()]}; "
            f"{IGNORE} is ignored, and so is what classes.txt does not name: name there what else the masks show, "
            f"by colours if {IGNORE} marks the object, such as 'background 0 0 0' and 'road {IGNORE} {IGNORE} "
            f"{IGNORE}'"
        )
    for part, pixels in (("training", training), ("held-out", held_out)):
        if unseen := [name for name, count in zip(data.classes, pixels) if not count]:
            print(f"no {part} image shows: {', '.join(unseen)}", flush=True)
    known = dict(zip(counts.digests, data.train))
    twice = [
        (sample, known[digest])
        for sample, digest in zip(data.val, counts.digests[len(data.train) :])
        if digest in known
    ]
    if twice:
        print(
            f"warning: {counted(len(twice), 'held-out image')} {'is' if len(twice) == 1 else 'are'} in the training set too, "
            f"as {twice[0][0].image} and {twice[0][1].image}: their scores are too good",
            flush=True,
        )
    height, width = counts.sizes.max(0)
    tall, wide = view_size(height, width, SCALE[1])
    if crop and crop[0] > tall and crop[1] > wide:
        raise InputError(
            f"--crop {crop[0]}x{crop[1]}: every image is smaller, the largest {height}x{width}, and {tall}x{wide} "
            "in the largest view; leave it out for whole images"
        )


def weigh_classes(pixels: np.ndarray) -> np.ndarray:
    """float32 [C]: the weight of a pixel of each class in the loss, so that rare classes are not
    lost among the others.

    pixels    [C], the pixels of each class in all training images

    A class of frequency f has weight 1 / sqrt(f), times a factor that makes the mean over all
    pixels 1. That lies between all pixels alike (weight 1) and all classes alike (1 / f), however
    few pixels show them. Below RAREST the weight grows no more, or a few stray pixels would
    outweigh all else. A class that no image shows has weight 1.
    """
    frequency = pixels / max(pixels.sum(), 1)
    weights = 1 / np.sqrt(np.maximum(frequency, RAREST))
    weights /= (frequency * weights).sum() or 1
    return np.where(pixels > 0, weights, 1).astype(np.float32)
