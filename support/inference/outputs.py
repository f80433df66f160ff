"""The pictures that predict.py predicts, and the names and files of their results.

Results go to overlay/, mask/, confidence/ and bev/ below --out, under the same names in each.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from data import DataOptions, find
from kitti import TASKS, calibration_of, homography
from support.console import InputError, counted, quoted, warn
from support.datasets.images import IMAGE_ENDINGS, OTHER_ENDINGS, files_below
from support.files import SIGNATURE, require_ours, save_png
from support.labels import DataSet, Sample, only_road, paths_below

FOLDERS = ("overlay", "mask", "confidence", "bev")  # below --out

# Each mask folder and the image folder beside it. Masks are not predicted.
MASKS = {
    "masks": "images",
    "gt_image_2": "image_2",
    "gtFine": "leftImg8bit",
    "SegmentationClass": "JPEGImages",
    "SegmentationClassAug": "JPEGImages",
    "SegmentationObject": "JPEGImages",
}


class Job(NamedTuple):
    """A picture to predict.

    name      path of its results in each folder, without .png
    sample    the sample of the picture, if it has ground truth
    """

    picture: Path
    name: Path
    sample: Sample | None = None


def picture_jobs(inputs: list[Path]) -> list[Job]:
    """Jobs for pictures and for all pictures in folders, each picture once.

    In a folder, results of predict.py and the masks of a data set are skipped. A KITTI Road folder
    stands for its test images. Raises InputError if an input does not exist or holds no pictures.
    """
    folder_of = {}  # by picture: the given folder that holds it, or its parent
    for given in (Path(os.path.abspath(path)) for path in inputs):
        if given.is_dir():
            for picture in pictures_in(given):
                folder_of.setdefault(picture, given)
        elif given.is_file():
            folder_of.setdefault(given, given.parent)
        else:
            raise InputError(f"{given}: no such file or folder")
    return [Job(*pair) for pair in zip(folder_of, unique_names(folder_of), strict=True)]


def pictures_in(given: Path) -> list[Path]:
    """The pictures to predict in a folder, see `picture_jobs`. Raises InputError if there are none;
    warns of pictures and videos in other formats.
    """
    kitti_test = given / "testing" / "image_2"
    folder = kitti_test if kitti_test.is_dir() else given

    def left_out(picture):
        above = picture.parents[: len(picture.relative_to(folder).parts) - 1]
        return any(
            place.name in MASKS and (place.parent / MASKS[place.name]).is_dir() for place in above
        ) or (any(place.name in FOLDERS for place in above) and is_result(picture))

    pictures = [picture for picture in files_below(folder) if not left_out(picture)]
    others = Counter(file.suffix.lower() for file in files_below(folder, OTHER_ENDINGS))
    kinds = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
    if not pictures:
        raise InputError(
            f"{folder}: holds no pictures ({', '.join(sorted(IMAGE_ENDINGS))})"
            + (f", but {kinds}; save these as PNG or JPEG first" if kinds else "")
        )
    if kinds:
        warn("predict.py", f"{folder}: not predicted: {kinds}; save them as PNG or JPEG first")
    return pictures


def unique_names(folder_of: dict[Path, Path]) -> list[Path]:
    """A name for each picture, unique even if case is ignored: its path below its folder in
    `folder_of`, without the suffix.

    If two names were the same, all become paths below the deepest common folder, or keep their
    suffixes, or both.
    """
    short = [picture.relative_to(folder) for picture, folder in folder_of.items()]
    drives = {folder.anchor for folder in folder_of.values()}  # Windows has several
    root = os.path.commonpath(folder_of.values()) if len(drives) == 1 else ""
    long = [picture.relative_to(root or picture.anchor) for picture in folder_of]
    short_stems, long_stems = ([name.with_suffix("") for name in names] for names in (short, long))
    for names in (short_stems, long_stems, short, long):
        if len({str(name).casefold() for name in names}) == len(names):
            break
    return names


def labelled_jobs(
    root: Path, split: str, saved: dict, patterns: dict[str, str | None]
) -> tuple[list[Job], DataSet]:
    """Jobs for a split of a data set, "train", "val" or "test", and the data set, read with the
    options of the training.

    saved       the checkpoint
    patterns    "images" and "masks", if the layout differs from that in training

    KITTI's results are named after the ground truth, so that kitti.py can score them; others after
    the images. Warns of images that the network was trained on. Raises InputError if the classes
    differ or the split is empty.
    """
    settings = saved.get("settings", {})
    settings = {f.name: settings[f.name] for f in fields(DataOptions) if f.name in settings}
    if any(patterns.values()):
        settings |= {name: pattern or "auto" for name, pattern in patterns.items()}
    kept = [
        f"--{name.replace('_', '-')} {quoted(str(value))}"
        for name, value in settings.items()
        if value != getattr(DataOptions, name) and not patterns.get(name)
    ]
    if kept:
        print(f"as in training: {' '.join(kept)}")
    data = find(root, DataOptions(**settings))
    if data.classes != saved["classes"]:
        raise InputError(
            f"{root}: has the classes {', '.join(data.classes)}; the network has "
            f"{', '.join(saved['classes'])}; classes.txt must name the same"
        )
    samples = getattr(data, split)
    if not samples:
        hint = "for KITTI Road's test images, use --kitti" if data.kitti else data.summary
        raise InputError(f"--split {split}: has no images with ground truth in {root}; {hint}")
    paths = paths_below(root, samples)
    for sample in samples if data.kitti else ():
        if calibration_of(sample.image).is_file():
            homography(calibration_of(sample.image))
    trained = set(saved["images"][0] if "images" in saved else ()).intersection(paths)
    if trained and split != "train":
        warn(
            "predict.py",
            f"{root}: the network was trained on {len(trained)} of these "
            f"{counted(len(samples), 'image')}, such as {min(trained)}; the scores are too good",
        )
    names = [Path((sample.label if data.kitti else sample.image).stem) for sample in samples]
    if len({str(name).casefold() for name in names}) < len(names):
        names = [Path(path).with_suffix("") for path in paths]
    jobs = [Job(sample.image, name, sample) for sample, name in zip(samples, names, strict=True)]
    return jobs, data


def kitti_jobs(root: Path, task: str, split: str) -> list[Job]:
    """Jobs for KITTI Road's "training" or "testing" images, named as the benchmark requires.

    Raises InputError if there are none or a calibration file cannot be used.
    """
    folder, jobs = root / split / "image_2", []
    for picture in sorted(folder.glob("*.png")):
        category, _, number = picture.stem.rpartition("_")
        if category in TASKS[task]:
            homography(calibration_of(picture))
            jobs.append(Job(picture, Path(f"{category}_{task}_{number}")))
    if not jobs:
        raise InputError(f"{folder}: no picture is named like {TASKS[task][0]}_000000.png")
    return jobs


def confidence_folders(wanted: str | None, classes: list[str]) -> dict[str, int]:
    """The class id for each confidence folder, by the folder's path below --out.

    wanted    --confidence: the name of a class, or "all": a folder for each class, or for the road
              alone if it is the only class sought

    Raises InputError for an unknown class.
    """
    if wanted is None:
        return {}
    if wanted in classes:
        return {"confidence": classes.index(wanted)}
    if wanted != "all":
        raise InputError(
            f"--confidence {wanted}: not a class; the classes are {', '.join(map(repr, classes))}; "
            "put pictures before --confidence"
        )
    if only_road(classes):
        return {"confidence": 1}
    safe = [re.sub(r"[^\w -]", "_", name).strip() or "_" for name in classes]
    if len({name.casefold() for name in safe}) < len(safe):
        safe = [f"{i} {name}" for i, name in enumerate(safe)]
    return {f"confidence/{name}": i for i, name in enumerate(safe)}


# ---- files ----


def result_path(out: Path, folder: str, job: Job) -> Path:
    return out / folder / f"{job.name}.png"


def require_results(out: Path, folders: list[str], jobs: list[Job]):
    """Raise InputError if a result would lie outside `out` or replace a file that predict.py did
    not write.
    """
    for file in (result_path(out, folder, job) for job in jobs for folder in folders):
        if ".." in file.relative_to(out).parts:  # from a list file of a data set
            raise InputError(f"{file}: would lie outside {out}; give the pictures other paths")
        require_ours(file, "result", is_result)


def is_result(file: Path) -> bool:
    try:
        with Image.open(file, formats=["PNG"]) as picture:
            return picture.info.get("Software") == SIGNATURE
    except Exception:  # whatever Pillow raises on an unknown file
        return False


def write_result(picture: Image.Image, path: Path):
    """Write a picture as a PNG that `is_result` recognises. Raises InputError."""
    fields = PngInfo()
    fields.add_text("Software", SIGNATURE)
    save_png(picture, path, pnginfo=fields)
