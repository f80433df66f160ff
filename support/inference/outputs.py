"""The pictures that predict.py is to predict: which, under what names, and read ahead of the
network.
"""

from __future__ import annotations

import os
import re
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Callable, Iterable, Iterator, NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data import find
from kitti import calibration_of, homography
from support.console import DATA_OPTIONS, InputError, counted, warn
from support.datasets.images import (
    IMAGE_ENDINGS,
    OTHER_ENDINGS,
    VIDEO_ENDINGS,
    Reader,
    files_below,
    files_in,
    read_picture,
)
from support.labels import DataSet, Sample, only_road, paths_below

# Folders of masks, and the folder of images that they lie beside: these are no pictures to predict.
LABELS = {
    "masks": "images",
    "gtFine": "leftImg8bit",
    "SegmentationClass": "JPEGImages",
    "SegmentationClassAug": "JPEGImages",
    "SegmentationObject": "JPEGImages",
}


class Job(NamedTuple):
    """A picture to predict, the path of its results below each folder of --out, and its labelled
    sample if it has one.

    given    the folder that it comes from, as the user named it, or the folder of the picture that
             was named
    """

    picture: Path
    name: Path
    sample: Sample | None = None
    given: Path | None = None


def choose_jobs(
    options, saved: dict, road: int | None
) -> tuple[list[Job], Callable, DataSet | None]:
    """(jobs, read, data): read(job) gives (image, label), the label None without ground truth;
    `data` with --data alone.

    Raises InputError, for a calibration that cannot be used too: better now than after an hour.
    """
    if options.kitti:
        jobs, data = (
            kitti_jobs(options.kitti, options.split or "testing", saved["classes"][road]),
            None,
        )
    elif options.data:
        data = data_set(options.data, saved)
        samples = getattr(data, options.split or "val")
        # KITTI's results are named as the ground truth, so that metrics.py can score them.
        names = [Path((sample.label if data.kitti else sample.image).stem) for sample in samples]
        paths = paths_below(options.data, samples)
        if len({str(name).casefold() for name in names}) < len(names):
            names = [Path(path).with_suffix("") for path in paths]
        jobs = [Job(sample.image, name, sample) for sample, name in zip(samples, names)]
        known = set(
            saved.get("images", [[]])[0]
        )  # paths; names alone in checkpoints of earlier versions
        trained = [path for path in paths if path in known or path.rpartition("/")[2] in known]
        if options.split != "train" and trained:
            warn(
                "predict.py",
                f"{options.data}: {len(trained)} of these {counted(len(samples), 'image')} have the names of "
                f"images that the network was trained on, as {Path(trained[0]).name}; their scores are too good",
            )
        if not jobs:
            raise InputError(
                f"{options.data}: has no test images, for --split test; "
                + (
                    "KITTI Road's have no ground truth: --kitti predicts them"
                    if data.kitti
                    else "they go into a folder test, or test.txt names them"
                )
            )
    else:
        jobs, data = picture_jobs(options.inputs, options.out), None
    folders = [
        *options.only,
        *confidence_folders(options, saved["classes"], road).values(),
        *["bev"] * bool(options.kitti),
    ]
    refuse_foreign(options.out / folder / f"{job.name}.png" for job in jobs for folder in folders)
    for job in jobs:
        if options.kitti or data and data.kitti and calibration_of(job.picture).is_file():
            homography(calibration_of(job.picture))
    if not data:
        return jobs, read_photo, None
    reader = Reader(data.read_label, cache_bytes=0)
    return jobs, lambda job: reader(job.sample), data


def picture_jobs(inputs: list[str], out: Path) -> list[Job]:
    """Jobs for pictures, folders with all that is in them, and KITTI Road folders. Raises
    InputError.

    A result is named by the path of its picture below the folder that was given. If two names would
    be the same, all are named by their paths below the deepest common folder. What --out holds is
    left out.
    """
    pictures = {}  # the folder that was given by picture
    results = tuple(os.path.abspath(out / folder) for folder in FOLDERS)
    for given in (Path(os.path.abspath(path)) for path in inputs):
        if given.suffix.lower() in VIDEO_ENDINGS and given.is_file():
            raise InputError(
                f"{given}: is a video; make pictures of it first, such as with: ffmpeg -i VIDEO FOLDER/%06d.png"
            )
        if not given.is_dir() and not given.is_file():
            raise InputError(f"{given}: no such file or folder")
        for picture in pictures_in(given, results) if given.is_dir() else [given]:
            pictures.setdefault(picture, given if given.is_dir() else given.parent)

    names = [picture.relative_to(folder) for picture, folder in pictures.items()]
    if len({str(name).casefold() for name in names}) < len(names):
        try:
            root = Path(os.path.commonpath(pictures.values()))
        except ValueError:
            raise InputError(
                f"{names[0]}: and other inputs on other drives have the same names; predict them "
                "one by one"
            ) from None
        names = [picture.relative_to(root) for picture in pictures]
    # a.jpg gives a.png, but beside an a.png, or a folder a.png, a.jpg.png.
    taken = Counter(str(path).casefold() for name in names for path in {name, name.with_suffix("")})
    taken.update(
        {
            str(folder.with_suffix("")).casefold()
            for name in names
            for folder in name.parents
            if folder.suffix
        }
    )
    jobs = [
        Job(
            picture,
            name if taken[str(name.with_suffix("")).casefold()] > 1 else name.with_suffix(""),
            None,
            given,
        )
        for (picture, given), name in zip(pictures.items(), names, strict=True)
    ]
    for job in jobs:
        for folder in results:
            if Path(f"{folder}/{job.name}.png") in pictures:
                raise InputError(
                    f"{folder}/{job.name}.png: is one of the inputs and would be written over; "
                    "choose another --out"
                )
    return jobs


def pictures_in(given: Path, results: tuple[str, ...]) -> list[Path]:
    """The pictures in a folder, but not in the folders `results`, and of a data set its images, not
    the masks beside them.

    Says which videos and pictures of other formats it leaves out. Raises InputError if nothing is
    left.
    """
    folders = [given / "testing" / "image_2", given / "training" / "image_2", given / "image_2"]
    folder = next((f for f in folders if f.is_dir()), given)

    @cache
    def holds_masks(place):
        """Whether a folder within `folder`, or one above it there, lies beside the images that its
        masks belong to.
        """
        if place == folder:
            return False
        return (
            place.name in LABELS
            and (place.parent / LABELS[place.name]).is_dir()
            or holds_masks(place.parent)
        )

    found = [
        file
        for file in files_below(folder)
        if not holds_masks(file.parent)
        and not any(file.is_relative_to(result) for result in results)
    ]
    others = Counter(
        file.suffix.lower() for file in files_below(folder, VIDEO_ENDINGS | OTHER_ENDINGS)
    )
    left_out = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
    if not found:
        raise InputError(
            f"{folder}: holds no pictures ({', '.join(sorted(IMAGE_ENDINGS))})"
            + (
                f", but {left_out}; save those as PNG or JPEG first, videos with ffmpeg"
                if left_out
                else ""
            )
        )
    if left_out:
        warn("predict.py", f"{folder}: not predicted: {left_out}; save them as PNG or JPEG first")
    return found


def read_photo(job: Job) -> tuple[np.ndarray, None]:
    """The picture uint8 [H, W, 3] of a job. Warns if the file has more frames or pages. Raises
    InputError.
    """
    picture = read_picture(job.picture)
    if picture.frames > 1:
        warn(
            "predict.py",
            f"{job.picture}: has {picture.frames} frames or pages; the first is predicted, the others are left "
            "out: save them as pictures of their own",
        )
    return picture.pixels, None


def kitti_jobs(root: Path, split: str, task: str) -> list[Job]:
    """Jobs for a split of KITTI Road, under the benchmark's names. Raises InputError if there is
    none.
    """
    folder = root / split / "image_2"
    wanted = ("um",) if task == "lane" else ("um", "umm", "uu")
    parts = [(image, *image.stem.rpartition("_")[::2]) for image in files_in(folder)]
    jobs = [
        Job(image, Path(f"{category}_{task}_{number}"))
        for image, category, number in parts
        if category in wanted
    ]
    if not jobs:
        raise InputError(
            f"{folder}: no picture is named {' or '.join(f'{category}_000000.png' for category in wanted)}"
        )
    return jobs


def data_set(root: Path, saved: dict) -> DataSet:
    """The data set as train.py read it: the same task, the same split. Raises InputError if its
    classes are others.
    """
    settings = saved["settings"]
    data = find(
        root, **{name: settings[name] for name in DATA_OPTIONS if name in settings}
    )  # earlier versions had fewer
    if data.classes != saved["classes"]:
        raise InputError(
            f"{root}: has the classes {', '.join(data.classes)}; the network knows "
            f"{', '.join(saved['classes'])}: classes.txt must name the same"
        )
    print(data.summary)
    return data


def read_ahead(
    threads: ThreadPoolExecutor, read: Callable, jobs: list[Job], ahead: int
) -> Iterator[tuple]:
    """(job, read(job), or the message of the InputError it raised) in order, `ahead` of them read
    in advance.
    """

    def attempt(job):
        try:
            return read(job)
        except InputError as error:
            return str(error)  # not the error itself: it would keep the picture's memory

    waiting = deque()
    for job in jobs:
        waiting.append((job, threads.submit(attempt, job)))
        if len(waiting) > ahead:
            job, content = waiting.popleft()
            yield job, content.result()
    for job, content in waiting:
        yield job, content.result()


# ---- What predict.py writes: which folders, how a file shows that it is a result, and where the

RESULTS = ("overlay", "mask")  # of every picture, unless --only says less
FOLDERS = (*RESULTS, "confidence", "bev")  # below --out
SIGNATURE = "FCN-8s predict.py"  # in every result, as its PNG field Software


def parse_only(text: str) -> tuple[str, ...]:
    """The kinds of --only."""
    return () if text == "none" else tuple(dict.fromkeys(text.split(",")))


def signature() -> PngInfo:
    """What is written into each result, so that a later run knows it as one."""
    fields = PngInfo()
    fields.add_text("Software", SIGNATURE)
    return fields


def refuse_foreign(files: Iterable[Path]):
    """Raise InputError if one of these files is there and is no result of predict.py: it would be
    written over.
    """
    for file in files:
        if file.exists() and not is_ours(file):
            raise InputError(
                f"{file}: is no result of predict.py, and would be written over; choose another --out, or remove "
                "it"
            )


def is_ours(file: Path) -> bool:
    try:
        with Image.open(file) as picture:
            return picture.info.get("Software") == SIGNATURE
    except OSError:
        return False


def where_results_went(jobs: list, out: Path, kinds: tuple[str, ...]) -> list[str]:
    """If pictures of several folders were predicted: for each folder how many, and the first file.

    jobs     see class Job (support/jobs.py)
    kinds    the folders of results that were written for every picture: the last one is named
    """
    names = {}
    for job in jobs:
        names.setdefault(job.given, []).append(job.name)
    return (
        [
            f"  {given}: {counted(len(those), 'picture')}, {out / kinds[-1] / those[0]}.png{' ...' if len(those) > 1 else ''}"
            for given, those in names.items()
        ]
        if len(names) > 1 and kinds
        else []
    )


def confidence_folders(options, classes: list[str], road: int | None) -> dict[int, str]:
    """The folder below --out for the confidence of each class that is wanted: several classes get a
    folder each.
    """
    if options.kitti or options.confidence == "" and only_road(classes) is not None:
        return {road: "confidence"}
    if options.confidence:
        return {classes.index(options.confidence): "confidence"}
    safe = [re.sub(r"[^\w -]", "_", name).strip() or "_" for name in classes]
    folded = [name.casefold() for name in safe]
    return (
        {
            i: f"confidence/{name}"
            if folded.count(name.casefold()) == 1
            else f"confidence/{i} {name}"
            for i, name in enumerate(safe)
        }
        if options.confidence is not None
        else {}
    )
