"""Command lines: every script's options are checked here, and a wrong one is one line."""

from __future__ import annotations

import argparse
import io
import re
import sys


class Parser(argparse.ArgumentParser):
    """A command line whose errors are one line, without the usage, and exit status 2.

    script     the name of the file, for messages
    unknown    what to say before arguments that should have followed an option
    """

    def __init__(self, script: str, unknown: str = "unrecognized arguments", **more):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more)
        self.script, self.unknown = script, unknown
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names that the terminal or a log file cannot show end no run

    def error(self, message):
        if message.startswith("unrecognized arguments: "):
            arguments = message.partition(": ")[2]
            message = f"{'not an option' if arguments.startswith('-') else self.unknown}: {arguments}"
        self.exit(2, f"{self.script}: error: {message}\n")


def matching(pattern: str, what: str, kind=str):
    """A `type` for argparse: text that matches the pattern, as `kind`. Other text is refused as not being `what`."""
    def convert(text):
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return kind(text)
    return convert


WORKERS = {"metavar": "N", "type": matching(r"auto|\d{1,3}", "auto or a whole number up to 999",
                                            lambda text: text if text == "auto" else int(text))}
POSITIVE = r"(?!0*\.?0*(e|,|$))\d*\.?\d+(e[+-]?\d{1,2})?"  # a number above nought, in any spelling
natural = matching(r"\d{1,18}", "a whole number", int)
PATTERN = {"metavar": "GLOB", "type": matching("(?s).+", "a pattern")}
# How a data set is read, the same for train.py and data.py: name, help, and what argparse is told besides.
DATA_OPTIONS = {
    "task": ("which ground truth of KITTI Road: the road, or the lane that the car drives in", {"choices": ("road", "lane")}),
    "classes": ("names of the classes to tell apart, separated by commas; all other classes become one, background. all: as "
                "they are", {"metavar": "A,B"}),
    "images": ("where the pictures lie below DIR, if not in a known layout: a pattern such as "
               "'photos/{split}/**/*_cam.png'. *, ** and ? stand for the same in --masks; {split} stands for train, val "
               "and test", PATTERN),
    "masks": ("where their masks lie, likewise: 'labels/{split}/**/*_ids.png'", PATTERN),
    "split_seed": ("draws the held-out images, where the data set does not name them; another number holds out others",
                   {"metavar": "N", "type": natural}),
}


def parse_size(text: str) -> tuple[int, int] | None:
    """"HxW" to (H, W), "none" to None. Raises ValueError for other text."""
    if text == "none":
        return None
    height, width = text.split("x")
    return int(height), int(width)


def parse_scale(text: str) -> tuple[float, float] | None:
    """"A,B", factors on pool4 and pool3, to (A, B), "auto" to None."""
    if text == "auto":
        return None
    pool4, pool3 = map(float, text.split(","))
    return pool4, pool3
