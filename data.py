"""How the samples of a data set are found and read.

    python data.py DIR          check a data set before training: what was found, sizes, classes, what is ignored or broken
    python data.py DIR --show FILE     a picture of samples with their labels over them, to be looked at

A sample is a picture and its label map: class ids 0 ... C-1, or IGNORE (255) for pixels that are
left out of training and scores. Which kind of data set a folder holds is told by the folders inside
it, see LAYOUTS. KITTI Road is read here; the other layouts are in support/own.py and
support/published.py.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import SUPPRESS
from functools import partial
from pathlib import Path

import numpy as np

from support.console import DATA_OPTIONS, InputError, Parser, closed_pipe, counted
from support.datasets.check import check_counts, describe, extent, read_everything
from support.datasets.folders import find_masks, hold_out
from support.datasets.images import Reader, allow_large_pictures, files_in, open_picture
from support.datasets.published import find_cityscapes, find_voc
from support.draw import draw_labels
from support.labels import IGNORE, DataSet, Sample

SHOWN = 24  # samples in the picture that --show draws, at most


def find(
    root,
    task: str = "road",
    split_seed: int = 0,
    classes: str = "all",
    images: str = "auto",
    masks: str = "auto",
) -> DataSet:
    """The DataSet in folder `root`. Raises InputError in one line if there is none, or if something
    in it is amiss.

    task        "road" or "lane": which ground truth of KITTI Road to use; other layouts have only
                one
    split_seed  decides which images are held out where the folder has no split of its own
    classes     "all", or names of classes separated by commas: the others become one class,
                background
    images      "auto", or a pattern that the paths of the pictures below `root` fit; `masks`
                likewise (support/pairs.py)
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(
            f"{root}: {'is a file; unpack it, or name its folder' if root.exists() else 'no such folder'}"
        )
    if (images == "auto") != (masks == "auto"):
        raise InputError("--images and --masks: go together; say both patterns, or neither")
    if "{split}" in masks and "{split}" not in images:
        raise InputError(f"--images {images}: has no {{split}}, --masks has; write it into both")
    layout = next(
        (find_layout for marker, find_layout in LAYOUTS.items() if (root / marker).is_dir()), None
    )
    if images != "auto":
        layout = partial(find_masks, patterns=(images, masks))
    if task != "road" and layout is not find_kitti:
        raise InputError(
            f"--task {task}: {root} is not a folder of KITTI Road; to learn some classes of a data set, name them "
            "with --classes"
        )
    if layout:
        return keep_classes(layout(root, task, split_seed), classes)
    near = [
        *root.resolve().parents[:3],
        *sorted(folder for folder in root.iterdir() if folder.is_dir()),
    ]
    meant = next(
        (folder for folder in near if any((folder / marker).is_dir() for marker in LAYOUTS)), None
    )
    hint = (
        f"did you mean {meant}?"
        if meant
        else f"known layouts are {KNOWN}; for others say --images and --masks"
    )
    raise InputError(f"{root}: no data set found here; {hint}")


def find_kitti(root: Path, task: str, split_seed: int) -> DataSet:
    """KITTI Road (Fritsch, Kuehnl and Geiger 2013). um images have two ground truths, lane and
    road: one of them is used.

    Taking every file in gt_image_2 would train um images twice, on labels that contradict each
    other.
    """
    categories = {"road": ("um", "umm", "uu"), "lane": ("um",)}[task]
    wanted = re.compile(rf"({'|'.join(categories)})_{task}_(\d+)\.png")
    samples = []
    for label in files_in(root / "training" / "gt_image_2"):
        match = wanted.fullmatch(label.name)
        if match:
            category, index = match.groups()
            image = root / "training" / "image_2" / f"{category}_{index}.png"
            if not image.is_file():
                raise InputError(f"{label}: its image {image} is missing")
            samples.append(Sample(image, label, f"{category}_{task}"))
    if not samples:
        raise InputError(
            f"{root / 'training' / 'gt_image_2'}: no ground truth named "
            f"{' or '.join(f'{c}_{task}_000000.png' for c in categories)} for --task {task}"
        )
    train, val = hold_out(samples, split_seed)
    parts = ", ".join(
        f"{c} "
        + "+".join(str(sum(s.group == f"{c}_{task}" for s in part)) for part in (train, val))
        for c in categories
    )
    summary = f"{root}: KITTI Road, task {task}: {len(train)} training + {len(val)} held-out images ({parts})"
    return DataSet(summary, [f"not {task}", task], train, val, read_kitti_label, kitti=True)


def read_kitti_label(path: Path, strays=None) -> np.ndarray:
    """0 not road, 1 road, IGNORE: uint8 [H, W] from KITTI's colours. Raises InputError.

    Magenta (255, 0, 255) is road, red (255, 0, 0) is not road, black is not valid. Black is
    neither: a pixel is valid where red is set, and road where blue is set too.
    """
    image = open_picture(path, mask=True)
    if image.mode != "RGB":
        raise InputError(f"{path}: KITTI ground truth is RGB, this picture is {image.mode}")
    pixels = np.asarray(image)
    red, green, blue = np.moveaxis(pixels, 2, 0)
    odd = (green > 0) | (red % 255 > 0) | (blue % 255 > 0) | (blue > red)
    if odd.any():  # such as the colours that a resize with a blending filter leaves
        raise InputError(
            f"{path}: has the colour {tuple(pixels[odd][0].tolist())}; KITTI's ground truth has magenta "
            "(255, 0, 255), red (255, 0, 0) and black alone"
        )
    return np.where(red == 0, IGNORE, blue > 0).astype(np.uint8)


# A folder inside DIR that marks a layout, and the function that reads it. A new layout is a
# function from (root, task, split_seed) to a DataSet and a line here; the first line that fits
# counts. KNOWN is what an error message lists.
LAYOUTS = {
    "training/image_2": find_kitti,
    "train/images": find_masks,
    "images": find_masks,
    "JPEGImages": find_voc,
    "leftImg8bit/train": find_cityscapes,
}
KNOWN = (
    "KITTI Road: DIR/training/image_2 and gt_image_2; or DIR/train and DIR/val, each with images and masks; "
    "or DIR/images and DIR/masks; or PASCAL VOC: DIR/JPEGImages, SegmentationClass and ImageSets/Segmentation; "
    "or Cityscapes: DIR/leftImg8bit and gtFine"
)


def keep_classes(data: DataSet, keep: str) -> DataSet:
    """The data set with only the named classes; all others become class 0, background. Raises
    InputError.
    """
    if keep == "all":
        return data
    names = list(dict.fromkeys(name.strip() for name in keep.split(",")))
    for name in names:
        if name not in data.classes:
            raise InputError(
                f"--classes {keep}: there is no class {name!r}; there are {', '.join(data.classes)}"
            )
    classes = ["background", *(name for name in names if name != "background")]
    if len(classes) == 1:
        raise InputError(
            f"--classes {keep}: name what is to be told from the background; there are {', '.join(data.classes)}"
        )
    new = np.zeros(256, np.uint8)  # old id -> new id
    new[IGNORE] = IGNORE
    for i, name in enumerate(data.classes):
        new[i] = classes.index(name) if name in names else 0
    return data._replace(
        summary=f"{data.summary}; of these {', '.join(classes[1:])}, the others are background",
        classes=classes,
        read_label=lambda path, *strays: new[data.read_label(path, *strays)],
    )


def check(root: Path, data: DataSet, show: Path | None, faults: list[str]):
    """Read all files of the data set in folder `root`; print what they hold, and draw some into the
    file `show`.

    What is amiss is added to `faults`, a line each. Raises InputError if there is nothing to learn.
    """
    samples, reader = [*data.train, *data.val, *data.test], Reader(data.read_label, cache_bytes=0)
    if show and (show.suffix.lower() != ".png" or not show.absolute().parent.is_dir()):
        raise InputError(f"--show {show}: name a file .png, in a folder that is there")
    folders = (
        {file.parent for sample in samples for file in (sample.image, sample.label)} if show else ()
    )
    if any(show.absolute().is_relative_to(folder.absolute()) for folder in folders):
        raise InputError(
            f"--show {show}: would become a part of the data set; choose another place"
        )
    print(data.summary)
    counts = read_everything(samples, data, reader, faults)
    readable = counts.sizes.all(1)
    if not readable.any():
        return
    print(
        f"\n{'part':10}  images  {'smallest':>10}  {'median':>10}  {'largest':>10}   (height x width, by the longer side)"
    )
    first = 0
    for part, members in (("training", data.train), ("held out", data.val), ("test", data.test)):
        sizes, first = counts.sizes[first : first + len(members)], first + len(members)
        sizes = sizes[sizes.all(1)]
        cells = (
            [f"{f'{height}x{width}':>10}" for height, width in extent(sizes).values()]
            if len(sizes)
            else []
        )
        if members:
            print(f"{part:10}  {len(sizes):6}  {'  '.join(cells)}")
    print(f"\n{describe(counts, data)}")
    if faults:
        print(f"{counted(len(faults), 'image')} of {len(samples)} cannot be used")
    if show:
        # For each class, the rarest first, the sample that shows it most; and a dozen samples from
        # beginning to end.
        rarest = counts.pixels.argmax(0)[counts.pixels.sum(0).argsort(kind="stable")]
        picked = list(
            dict.fromkeys([*rarest.tolist(), *(i * len(samples) // 12 for i in range(12))])
        )[:SHOWN]
        cells = [
            (os.path.relpath(samples[i].image, root), *reader(samples[i]))
            for i in sorted(picked)
            if readable[i]
        ]
        draw_labels(show, cells, data.classes)
        print(f"{counted(len(cells), 'sample')} drawn into {show}")
    if not faults:
        check_counts(counts, data, None)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 2 for data that cannot be used (each fault
    a line on stderr), or 130 if it was stopped.
    """
    parser = Parser("data.py", description=__doc__)
    parser.add_argument(
        "folder", metavar="DIR", type=Path, help="the data set, as for train.py --data"
    )
    parser.add_argument(
        "kitti_task", nargs="?", choices=("road", "lane"), help=SUPPRESS
    )  # as earlier versions took it
    for name, (help, kind) in DATA_OPTIONS.items():
        parser.add_argument("--" + name.replace("_", "-"), help=help, **kind)
    parser.add_argument(
        "--list",
        action="store_true",
        help="print instead where each image goes: part, image, label",
    )
    parser.add_argument(
        "--show",
        metavar="FILE",
        type=Path,
        help="draw samples with their labels over them, as a PNG",
    )
    options = parser.parse_args(argv)
    options.task = options.task or options.kitti_task
    allow_large_pictures()
    faults, status = [], 0
    try:
        given = {
            name: getattr(options, name)
            for name in DATA_OPTIONS
            if getattr(options, name) is not None
        }
        data = find(options.folder, **given)
        if options.list:
            for part, samples in (
                ("training", data.train),
                ("held out", data.val),
                ("test", data.test),
            ):
                for sample in samples:
                    print(f"{part}\t{sample.image}\t{sample.label}")
        else:
            check(options.folder, data, options.show, faults)
        sys.stdout.flush()
    except BrokenPipeError:
        closed_pipe()
    except (InputError, OSError) as error:
        faults.append(str(error))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        status = 130
    for fault in faults:
        print(f"data.py: error: {fault}", file=sys.stderr)
    return 2 if faults else status


if __name__ == "__main__":
    sys.exit(main())
