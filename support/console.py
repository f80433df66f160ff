"""Console input and output: one-line errors, command-line options, progress. Needs no PyTorch."""

from __future__ import annotations

import argparse
import dataclasses
import io
import math
import os
import re
import shlex
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from difflib import get_close_matches

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """A text on one line, with control characters escaped: names of files and classes may contain
    some, and a terminal would execute them.
    """
    return CONTROL.sub(lambda c: repr(c[0])[1:-1], text)


class InputError(Exception):
    """The user's input cannot be used.

    The one-line message says what is wrong, in which file or option, and how to fix it.
    """

    def __str__(self):
        return printable(super().__str__())


def one_line(error: BaseException, length: int | None = None) -> str:
    """First line of an error's message, cut to `length` characters, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]


def counted(count: int, noun: str) -> str:
    """A count with its noun: "1 image", "2 images", "2 classes"."""
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{'' if count == 1 else plural}"


def shortened(names: list[str], most: int = 3) -> str:
    """The first `most` names and the number of the others: "a, b, c and 2 more"."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def quoted(path: os.PathLike | str) -> str:
    """A path, quoted for the shell."""
    return shlex.quote(str(path)) if os.name != "nt" else f'"{path}"'


def warn(script: str, message: str):
    """Print a one-line warning to standard error."""
    print(f"{script}: warning: {printable(message)}", file=sys.stderr)


def explanation(error: BaseException, needs_less: str) -> str:
    """One line for an error that the user can fix; "" for any other error.

    needs_less    advice if memory has run out
    """
    if isinstance(error, (InputError, OSError)):
        return str(error)
    if out_of_memory(error):
        return f"out of memory: {needs_less} ({one_line(error)})"
    return ""


def out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: PyTorch raises several kinds of errors for this."""
    said = "out of memory|can't allocate|not enough memory|ALLOC_FAILED|size calculation overflowed"
    return isinstance(error, MemoryError) or bool(re.search(said, str(error)))


def closed_pipe():
    """Call on BrokenPipeError: the reader of standard output, such as `head`, has stopped."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---- command lines ----


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports an error in one line, without the usage, and exits with 2.

    script    file name for messages
    stray     message for arguments that belong to no option
    """

    def __init__(self, script: str, stray: str = "unrecognized arguments", **more):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **more
        )
        self.script, self.stray = script, stray
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A file name that the terminal cannot show must not stop a run.
            sys.stdout.reconfigure(errors="backslashreplace")

    def error(self, message):
        if message.startswith("unrecognized arguments: "):
            arguments = message.partition(": ")[2]
            names = [word.partition("=")[0] for word in arguments.split() if word[0] == "-"]
            known = re.findall(r"--([\w-]+)", self.format_usage())
            close = [get_close_matches(name.lstrip("-"), known, 1) for name in names]
            meant = [f"--{name}" for found in close for name in found]
            message = f"{self.stray}: {arguments}"
            if len(arguments.split()) > 2:  # the shell has expanded a pattern
                message = f"{self.stray}: {arguments:.60} ...; put patterns in quotes"
            if names:
                hint = f"; did you mean {', '.join(meant)}?" if meant else ""
                message = f"not an option: {', '.join(names)}{hint}"
        self.exit(2, f"{self.script}: error: {printable(message)}\n")


def option(default, help: str, convert: Callable | None = None, **more):
    """A dataclass field that is also a command-line option: see `add_options`.

    convert    argparse's `type`: converts text to a value
    more       other arguments of add_argument, such as choices and metavar
    """
    keywords = {"help": help, **({"type": convert} if convert else {}), **more}
    return dataclasses.field(default=default, metadata=keywords)


def add_options(parser: argparse.ArgumentParser, config: type):
    """Add an option for each `option` field of a dataclass. Its help ends with the default.

    Options that are not given are absent from the parsed namespace.
    """
    for field in dataclasses.fields(config):
        if not field.metadata:
            continue
        keywords = dict(field.metadata)
        if field.default is not None and field.default is not False:
            keywords["help"] += f" (default {shown(field.default)})"
        if isinstance(field.default, bool):
            keywords["action"] = argparse.BooleanOptionalAction
        flag = "--" + field.name.replace("_", "-")
        parser.add_argument(flag, default=argparse.SUPPRESS, **keywords)


def shown(value) -> str:
    """A value as written on a command line: (384, 1248) as 384x1248."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def filled(text: str) -> str:
    """argparse type: non-empty text. "$UNSET" in a shell is empty."""
    if not text:
        raise argparse.ArgumentTypeError("the value is empty")
    return text


def whole(lowest: int = 1) -> Callable[[str], int]:
    """argparse type: whole numbers from `lowest` up."""

    def convert(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < lowest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number (at least {lowest})")
        return int(text)

    return convert


def positive(text: str) -> float:
    """argparse type: finite numbers above 0."""
    return number(text, lambda value: 0 < value < math.inf, "a positive number")


def share(text: str) -> float:
    """argparse type: numbers from 0 to 1."""
    return number(text, lambda value: 0 <= value <= 1, "a number from 0 to 1")


def number(text: str, fits: Callable[[float], bool], what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not fits(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return value


def size(text: str) -> tuple[int, int]:
    """argparse type: "HxW" to (height, width) in pixels."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}x[1-9][0-9]{0,5}", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a size (height x width) such as 375x1242"
        )
    height, width = map(int, text.split("x"))
    return height, width


def word_or(word: str, convert: Callable) -> Callable:
    """argparse type: `word` as it is, other text by `convert`."""

    def either(text: str):
        if text == word:
            return text
        try:
            return convert(text)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"{error}, nor {word}") from None

    return either


# ---- progress ----


class Progress:
    """Progress of a loop: one updated line on a terminal, otherwise a line every 30 seconds.

    total     number of steps
    done      steps done in an earlier part of the run
    images    images per step
    """

    def __init__(self, total: int, done: int = 0, images: int = 1):
        self.total, self.done, self.first, self.images = total, done, done, images
        self.start = self.shown = time.perf_counter()
        self.live = sys.stdout.isatty()
        self.pause = 0.5 if self.live else 30  # seconds between updates

    def due(self) -> bool:
        """Count a finished step. Returns whether an update is due."""
        self.done += 1
        return time.perf_counter() - self.shown >= self.pause

    def show(self, text: str):
        """Show a text, the speed and the time left. Call `due` first."""
        self.shown = time.perf_counter()
        each = (self.shown - self.start) / (self.done - self.first)
        left = timedelta(seconds=round(each * (self.total - self.done)))
        text += f"  {self.images / each:.2f} images/s  {left} left"
        print(f"\r{text}\033[K" if self.live else text, end="" if self.live else "\n", flush=True)

    def line(self, text: str):
        """Print a line that is not overwritten."""
        print(f"\r\033[K{text}" if self.live else text, flush=True)
