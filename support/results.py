"""What predict.py writes: which folders, how a file shows that it is a result, and where the results of each input are."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from support.errors import counted
from support.labels import only_road
from support.pictures import files_below

RESULTS = ("overlay", "mask")                       # of every picture, unless --only says less
FOLDERS = (*RESULTS, "confidence", "bev")           # below --out
SIGNATURE = "FCN-8s predict.py"                     # in every result, as its PNG field Software


def parse_only(text: str) -> tuple[str, ...]:
    """The kinds of --only."""
    return () if text == "none" else tuple(dict.fromkeys(text.split(",")))


def signature() -> PngInfo:
    """What is written into each result, so that `is_ours` knows it."""
    fields = PngInfo()
    fields.add_text("Software", SIGNATURE)
    return fields


def is_ours(folder: Path) -> bool:
    """Whether the files in a folder of results are of an earlier prediction. Those of earlier versions have no signature; they
    have always made both folders, overlay and mask."""
    if all((folder.parent / name).is_dir() for name in RESULTS):
        return True
    first = next(iter(files_below(folder)), None)
    try:
        with Image.open(first) as picture:
            return picture.info.get("Software") == SIGNATURE
    except (AttributeError, OSError):  # no file at all is nobody's; one that cannot be read is not ours
        return first is None


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
