"""Find the samples of a data set, and check them before training.

    python data.py DIR                 print sizes, classes, and what is ignored or broken
    python data.py DIR --show FILE     also draw samples, overlaid with their labels
    python data.py DIR --list          print which image is in which part

A sample is an image and its label map: class ids 0 ... C-1, or IGNORE (255) for pixels that are
left out of training and scores. The folders inside DIR determine its layout (docs/data.md).
kitti.py reads KITTI Road, support/datasets/ reads the other layouts.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import kitti
from support.console import InputError, Parser, add_options, closed_pipe, counted, option, whole
from support.datasets import folders
from support.datasets.check import check_counts, describe, extent, read_everything
from support.datasets.images import Reader, allow_large_pictures
from support.datasets.published import find_cityscapes, find_voc
from support.draw import draw_labels
from support.labels import IGNORE, DataSet, Sample

SYNTHETIC = Path(__file__).resolve().parent / "runs" / "synthetic-roads"
HELD_OUT_SHARE = 0.2  # for validation, if the data set has no validation set
MAX_SHOWN = 24  # samples drawn by --show


@dataclass
class DataOptions:
    """How to read a data set. Options of data.py and train.py."""

    task: str = option(
        "road",
        "ground truth of KITTI Road: the road or the ego lane",
        choices=("road", "lane"),
    )
    classes: str = option(
        "all",
        "classes to keep, separated by commas; all others become background",
        metavar="A,B",
    )
    images: str = option(
        "auto",
        "for unknown layouts: pattern of the image paths below DIR, such as "
        "'photos/{split}/**/*_cam.png'. *, ** and ? match the same text in --masks; {split} stands "
        "for train, val and test",
        metavar="PATTERN",
    )
    masks: str = option(
        "auto",
        "pattern of the mask paths, such as 'labels/{split}/**/*_ids.png'",
        metavar="PATTERN",
    )
    split_seed: int = option(
        0,
        "random seed for the validation set, if the data set has none",
        whole(0),
        metavar="N",
    )


DEFAULTS = DataOptions()

# The folder inside DIR that marks a layout, and the function that reads it: (DIR, DataOptions) to a
# DataSet, whose `val` may be empty. The first match counts.
LAYOUTS = {
    "training/image_2": kitti.find,
    "train/images": folders.find,
    "images": folders.find,
    "JPEGImages": find_voc,
    "leftImg8bit/train": find_cityscapes,
}
KNOWN = (
    "KITTI Road: DIR/training/image_2 and gt_image_2; or DIR/images and DIR/masks; or DIR/train "
    "and DIR/val, each with images and masks; or PASCAL VOC: DIR/JPEGImages, SegmentationClass and "
    "ImageSets; or Cityscapes: DIR/leftImg8bit and gtFine"
)


def find(root: str | Path, options: DataOptions = DEFAULTS) -> DataSet:
    """The data set in folder `root`, with a validation set.

    If the data set has none, a fifth of the training set is held out. Raises InputError if there is
    no data set, or if it cannot be used.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if (options.images == "auto") != (options.masks == "auto"):
        raise InputError("--images and --masks: go together; give both or neither")
    fitting = (layout for marker, layout in LAYOUTS.items() if (root / marker).is_dir())
    layout = folders.find if options.images != "auto" else next(fitting, None)
    if not layout:
        raise InputError(
            f"{root}: no data set found here; known layouts are {KNOWN}; for others, give "
            "--images and --masks"
        )
    if options.task != "road" and layout is not kitti.find:
        raise InputError(
            f"--task {options.task}: {root} is not KITTI Road; to choose classes, use --classes"
        )
    data, drawn = layout(root, options), ""
    if not data.train:
        raise InputError(f"{root}: no image is left for the training set")
    if not data.val:
        train, val = hold_out(data.train, options.split_seed)
        data, drawn = data._replace(train=train, val=val), ", drawn by --split-seed"
    part_of = {}
    for part, samples in parts_of(data).items():
        for sample in samples:
            other = part_of.setdefault(sample.image, part)
            if other != part:
                raise InputError(
                    f"{sample.image}: is listed for {other} and for {part}; remove it from one "
                    "list, otherwise the scores are too good"
                )
    test = f" + {len(data.test)} test" if data.test else ""
    parts = f"{len(data.train)} training + {len(data.val)} validation{test} images{drawn}"
    return keep_classes(data._replace(summary=f"{data.summary}: {parts}"), options.classes)


def synthetic_roads() -> Path:
    """The folder of synthetic roads, in KITTI Road's layout; drawn if it does not exist."""
    if not SYNTHETIC.is_dir():
        from support.datasets import synthetic  # only once: the images stay on disk

        print(f"drawing synthetic roads into {SYNTHETIC}")
        try:
            synthetic.write(SYNTHETIC)
        except OSError as error:
            if not SYNTHETIC.is_dir():  # otherwise another process has drawn them
                raise InputError(f"{SYNTHETIC}: cannot be drawn ({error.strerror})") from None
    return SYNTHETIC


def hold_out(samples: list[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """(train, val): about HELD_OUT_SHARE of each group goes to val, in all at least one sample.

    Images are ordered by a hash of the seed and their file name, equal names by a hash of the seed
    and their path below the common folder. So the split depends neither on the machine, nor on
    where the data set lies, nor on the order of the files. Adding an image moves at most one other
    image of its group. Raises InputError for fewer than two samples.
    """
    if len(samples) < 2:
        raise InputError(
            f"{samples[0].image}: is the only labelled image; at least two are needed, one of them "
            "for validation"
        )
    above = os.path.commonpath([sample.image.parent for sample in samples])

    def place(sample):
        names = sample.image.name, sample.image.relative_to(above).as_posix()
        return [hashlib.sha256(os.fsencode(f"{seed} {name}")).hexdigest() for name in names]

    drawn = sorted(samples, key=place)
    val = set()
    for group in {sample.group for sample in samples}:
        members = [sample for sample in drawn if sample.group == group]
        val.update(members[: round(HELD_OUT_SHARE * len(members))])
    val = val or {drawn[0]}
    return [s for s in samples if s not in val], [s for s in samples if s in val]


def keep_classes(data: DataSet, keep: str) -> DataSet:
    """The data set with only the named classes; all others become class 0, background.

    keep    names separated by commas, or "all"

    Raises InputError for an unknown name.
    """
    if keep == "all":
        return data
    names = list(dict.fromkeys(name.strip() for name in keep.split(",")))
    classes = ["background", *(name for name in names if name != "background")]
    if not set(names) <= set(data.classes) or len(classes) == 1:
        raise InputError(f"--classes {keep}: choose from the classes {', '.join(data.classes)}")
    new_id = np.zeros(256, np.uint8)
    new_id[IGNORE] = IGNORE
    for old_id, name in enumerate(data.classes):
        new_id[old_id] = classes.index(name) if name in names else 0
    return data._replace(
        summary=f"{data.summary}; only {', '.join(classes[1:])}, all others are background",
        classes=classes,
        read_label=lambda path, *unmapped: new_id[data.read_label(path, *unmapped)],
    )


def parts_of(data: DataSet) -> dict[str, list[Sample]]:
    """The samples of the data set, by the name of their part."""
    return {"training": data.train, "validation": data.val, "test": data.test}


def check(root: Path, data: DataSet, show: Path | None) -> list[str]:
    """Read all files of the data set in folder `root`, and print statistics.

    show    a PNG file to draw samples into, or None

    Returns one line for each file that cannot be used. Raises InputError if there is nothing to
    learn, or if `show` is not a PNG file outside `root`.
    """
    if show and (show.suffix.lower() != ".png" or show.resolve().is_relative_to(root.resolve())):
        raise InputError(f"--show {show}: must be a .png file outside {root}")
    parts, faults = parts_of(data), []
    samples = sum(parts.values(), [])
    reader = Reader(data.read_label, cache_bytes=0)
    print(data.summary)
    counts = read_everything(samples, data, reader, faults)
    readable = counts.sizes.all(1)
    if not readable.any():
        return faults
    print(
        f"\n{'part':10}  images  {'smallest':>10}  {'median':>10}  {'largest':>10}   "
        "(height x width, by the longer side)"
    )
    first, spread, names = 0, [], []
    for part, members in parts.items():
        sizes = counts.sizes[first : first + len(members)]
        few = min(4, len(members))
        spread += [first + i * len(members) // few for i in range(few)]
        names += [f"{os.path.relpath(sample.image, root)} ({part})" for sample in members]
        first += len(members)
        sizes = sizes[sizes.all(1)]
        if len(sizes):
            cells = [f"{f'{height}x{width}':>10}" for height, width in extent(sizes).values()]
            print(f"{part:10}  {len(sizes):6}  {'  '.join(cells)}")
    print(f"\n{describe(counts, data)}")
    if show:
        # Samples spread over each part, and for each class, the rarest first, the sample with most
        # of its pixels.
        rarest = counts.pixels.argmax(0)[counts.pixels.sum(0).argsort(kind="stable")].tolist()
        picked = sorted(list(dict.fromkeys(spread + rarest))[:MAX_SHOWN])
        cells = [(names[i], *reader(samples[i])) for i in picked if readable[i]]
        draw_labels(show, cells, data.classes)
        print(f"{counted(len(cells), 'sample')} drawn into {show}")
    if faults:
        print(f"{counted(len(faults), 'image')} of {len(samples)} cannot be used")
    else:
        check_counts(counts, data)
    return faults


def shortened_by_kind(faults: list[str]) -> list[str]:
    """The first three faults of each kind, and how many more there are.

    Faults of one kind differ only in paths and numbers.
    """
    kinds = {}
    for fault in faults:
        kinds.setdefault(re.sub(r"\S*[/\\]\S*|\d+", "", fault), []).append(fault)
    lines = []
    for alike in kinds.values():
        left_out = len(alike) - 3
        lines += alike[:3] + ([f"and {left_out} more like the last"] if left_out > 0 else [])
    return lines


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 2 for unusable data (faults go to stderr),
    or 130 if stopped.
    """
    parser = Parser("data.py", description=__doc__)
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="the data set, as for train.py --data"
    )
    add_options(parser, DataOptions)
    parser.add_argument(
        "--list", action="store_true", help="only print the part, image and label of each sample"
    )
    parser.add_argument(
        "--show", metavar="FILE", type=Path, help="PNG file for samples overlaid with their labels"
    )
    options = vars(parser.parse_args(argv))
    folder, show, listed = (options.pop(name) for name in ("folder", "show", "list"))
    allow_large_pictures()
    faults = []
    try:
        data = find(folder, DataOptions(**options))
        if listed:
            for part, samples in parts_of(data).items():
                for sample in samples:
                    print(f"{part}\t{sample.image}\t{sample.label}")
        else:
            faults = check(folder, data, show)
        sys.stdout.flush()
    except BrokenPipeError:
        closed_pipe()
    except (InputError, OSError) as error:
        faults = [str(error)]
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    for fault in shortened_by_kind(faults):
        print(f"data.py: error: {fault}", file=sys.stderr)
    return 2 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
