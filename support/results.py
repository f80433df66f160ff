"""What predict.py writes: which folders, how a file shows that it is a result, and where the results of each input are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterable

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from support.errors import InputError, counted
from support.labels import only_road

RESULTS = ("overlay", "mask")                       # of every picture, unless --only says less
FOLDERS = (*RESULTS, "confidence", "bev")           # below --out
SIGNATURE = "FCN-8s predict.py"                     # in every result, as its PNG field Software


def parse_only(text: str) -> tuple[str, ...]:
    """The kinds of --only."""
    return () if text == "none" else tuple(dict.fromkeys(text.split(",")))


def signature() -> PngInfo:
    """What is written into each result, so that a later run knows it as one."""
    fields = PngInfo()
    fields.add_text("Software", SIGNATURE)
    return fields


def refuse_foreign(files: Iterable[Path]):
    """Raise InputError if one of these files is there and is no result of predict.py: it would be written over."""
    for file in files:
        if file.exists() and not is_ours(file):
            raise InputError(f"{file}: is no result of predict.py, and would be written over; choose another --out, or remove "
                             "it")


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
    return [f"  {given}: {counted(len(those), 'picture')}, {out / kinds[-1] / those[0]}.png{' ...' if len(those) > 1 else ''}"
            for given, those in names.items()] if len(names) > 1 and kinds else []


def confidence_folders(options, classes: list[str], road: int | None) -> dict[int, str]:
    """The folder below --out for the confidence of each class that is wanted: several classes get a folder each."""
    if options.kitti or options.confidence == "" and only_road(classes) is not None:
        return {road: "confidence"}
    if options.confidence:
        return {classes.index(options.confidence): "confidence"}
    safe = [re.sub(r"[^\w -]", "_", name).strip() or "_" for name in classes]
    folded = [name.casefold() for name in safe]
    return {i: f"confidence/{name}" if folded.count(name.casefold()) == 1 else f"confidence/{i} {name}"
            for i, name in enumerate(safe)} if options.confidence is not None else {}
