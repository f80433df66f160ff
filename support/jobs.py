"""The pictures that predict.py is to predict: which, under what names, and read ahead of the network."""

from __future__ import annotations

import os
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterator, NamedTuple

from data import DataSet, Sample, find
from support.batches import Reader
from support.birdseye import calibration_of, homography
from support.errors import InputError
from support.pictures import IMAGE_ENDINGS, files_in, read_image

FOLDERS = ("overlay", "mask", "confidence", "bev")  # of results, below --out
WAITING = 3  # pictures that are read ahead, and that wait to be written, while the network computes: bounds the memory


class Job(NamedTuple):
    """A picture to predict, the path of its results below each folder of --out, and its labelled sample if it has one."""
    picture: Path
    name: Path
    sample: Sample | None = None


def choose_jobs(options, saved: dict, road: int | None) -> tuple[list[Job], Callable, DataSet | None]:
    """(jobs, read, data): read(job) gives (image, label), the label None without ground truth; `data` with --data alone.

    Raises InputError, for a calibration that cannot be used too: better now than after an hour.
    """
    if options.kitti:
        jobs, data = kitti_jobs(options.kitti, options.split or "testing", saved["classes"][road]), None
    elif options.data:
        data = data_set(options.data, saved)
        # KITTI's results are named as the ground truth, so that metrics.py can score them.
        jobs = [Job(sample.image, Path((sample.label if data.kitti else sample.image).stem), sample)
                for sample in getattr(data, options.split or "val")]
        if not jobs:
            raise InputError(f"{options.data}: has no images and masks in a folder test, for --split test")
    else:
        jobs, data = picture_jobs(options.inputs, options.out), None
    for job in jobs:
        if options.kitti or data and data.kitti and calibration_of(job.picture).is_file():
            homography(calibration_of(job.picture))
    if not data:
        return jobs, lambda job: (read_image(job.picture), None), None
    reader = Reader(data.read_label, cache_bytes=0)
    return jobs, lambda job: reader(job.sample), data


def picture_jobs(inputs: list[str], out: Path) -> list[Job]:
    """Jobs for pictures, folders with all that is in them, and KITTI Road folders. Raises InputError.

    Results are named as the inputs are, from the deepest folder that holds all of them. What --out holds is left out.
    """
    pictures, roots = {}, []
    results = tuple(os.path.abspath(out / folder) for folder in FOLDERS)
    for given in (Path(os.path.abspath(path)) for path in inputs):
        found = [given]
        if given.is_dir():
            # Of KITTI Road the pictures, not the ground truth beside them.
            folders = [given / "testing" / "image_2", given / "training" / "image_2", given / "image_2"]
            folder = next((f for f in folders if f.is_dir()), given)
            found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS and file.is_file()
                           and not any(part.startswith(".") for part in file.relative_to(folder).parts)
                           and not any(file.is_relative_to(result) for result in results))
            if not found:
                raise InputError(f"{folder}: holds no pictures ({', '.join(sorted(IMAGE_ENDINGS))})")
        elif not given.is_file():
            raise InputError(f"{given}: no such file or folder")
        roots.append(given if given.is_dir() else given.parent)
        pictures.update(dict.fromkeys(found))
    try:
        root = Path(os.path.commonpath(roots))
    except ValueError:
        raise InputError(f"{roots[0]} and the other inputs have no folder in common; predict them one by one") from None

    # a.jpg gives a.png, but beside an a.png, or a folder a.png, a.jpg.png.
    names = [picture.relative_to(root) for picture in pictures]
    taken = Counter(str(path).casefold() for name in names for path in {name, name.with_suffix("")})
    taken.update({str(folder.with_suffix("")).casefold() for name in names for folder in name.parents if folder.suffix})
    jobs = [Job(picture, name if taken[str(name.with_suffix("")).casefold()] > 1 else name.with_suffix(""))
            for picture, name in zip(pictures, names, strict=True)]
    for job in jobs:
        for folder in results:
            if Path(f"{folder}/{job.name}.png") in pictures:
                raise InputError(f"{folder}/{job.name}.png: is one of the inputs and would be written over; "
                                 "choose another --out")
    return jobs


def kitti_jobs(root: Path, split: str, task: str) -> list[Job]:
    """Jobs for a split of KITTI Road, under the benchmark's names. Raises InputError if there is none."""
    folder = root / split / "image_2"
    wanted = ("um",) if task == "lane" else ("um", "umm", "uu")
    parts = [(image, *image.stem.rpartition("_")[::2]) for image in files_in(folder)]
    jobs = [Job(image, Path(f"{category}_{task}_{number}")) for image, category, number in parts if category in wanted]
    if not jobs:
        raise InputError(f"{folder}: no picture is named {' or '.join(f'{category}_000000.png' for category in wanted)}")
    return jobs


def data_set(root: Path, saved: dict) -> DataSet:
    """The data set as train.py read it: the same task, the same split. Raises InputError if its classes are others."""
    settings = saved["settings"]
    data = find(root, settings["task"], settings["split_seed"], settings.get("classes", "all"))
    if data.classes != saved["classes"]:
        raise InputError(f"{root}: has the classes {', '.join(data.classes)}; the network knows "
                         f"{', '.join(saved['classes'])}: classes.txt must name the same")
    print(data.summary)
    return data


def read_ahead(threads: ThreadPoolExecutor, read: Callable, jobs: list[Job]) -> Iterator[tuple]:
    """(job, read(job), or the message of the InputError it raised) in order, a few of them read in advance."""
    def attempt(job):
        try:
            return read(job)
        except InputError as error:
            return str(error)  # not the error itself: it would keep the picture's memory

    waiting = deque()
    for job in jobs:
        waiting.append((job, threads.submit(attempt, job)))
        if len(waiting) > WAITING:
            job, content = waiting.popleft()
            yield job, content.result()
    for job, content in waiting:
        yield job, content.result()
