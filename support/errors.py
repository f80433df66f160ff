"""What a user is told when something cannot be used: one line that names the file or option and the mend."""

from __future__ import annotations

import os
import re
import sys


class InputError(Exception):
    """Something that the user gave cannot be used. The message is one line: what, where, and how to mend it."""

    def __str__(self):
        return super().__str__().replace("\n", "\\n").replace("\r", "\\r")  # the name of a file may contain them


def one_line(error: BaseException, length: int | None = None) -> str:
    """The first line of an error's message, at most `length` characters of it, or the name of its class."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:length]


def counted(count: int, one: str) -> str:
    """"1 image", "2 images", "2 classes"."""
    return f"{count:,} {one}" if count == 1 else f"{count:,} {one}{'es' if one.endswith('s') else 's'}"


def shortened(names: list[str], most: int = 3) -> str:
    """The first of some names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def explanation(error: Exception, needs_less: str) -> str:
    """What to tell the user about an error that they can mend; "" for any other error.

    needs_less    the mend if memory has run out
    """
    if isinstance(error, (InputError, OSError)):
        return str(error)  # both show the name of a file without line ends
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile: {one_line(error)}; leave it out, or install a C++ compiler"
    if out_of_memory(error):
        return f"out of memory: {needs_less} ({(str(error) or 'no room').splitlines()[0]})"
    return ""


def out_of_memory(error: Exception) -> bool:
    """Whether memory has run out. PyTorch says so in several ways, with and without a class of its own."""
    return isinstance(error, MemoryError) or bool(
        re.search("out of memory|can't allocate|not enough memory|ALLOC_FAILED|size calculation overflowed", str(error)))


def warn(script: str, message: str):
    """One line on standard error, for what can be done but may not be meant."""
    print(f"{script}: warning: {message}", file=sys.stderr)


def closed_pipe():
    """Whoever read standard output has enough, as `head` does: end without Python's complaint about it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
