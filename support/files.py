"""Files are written whole or not at all. No PyTorch here."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from PIL import Image

from support.console import InputError, one_line

SIGNATURE = "FCN-8s predict.py"  # in each result of predict.py, which a later run may replace


@contextmanager
def atomic(
    path: Path, before: Path | None = None, durable: bool = True
) -> Iterator[io.BufferedWriter]:
    """Within it, a binary file to write to; afterwards, and only if nothing was raised, `path`.

    The bytes go to a new file beside `path`, which is renamed once it is complete. A rename within
    a folder is atomic, so `path` is whole at every moment. Raises InputError if the file cannot be
    written; what was there before is then still there.

    before     name under which the replaced file is kept. For a moment between two renames, only
               this file is there, and none at `path`
    durable    flush to the disk before the rename, so that the file survives a power cut
    """
    beside = path.with_name(f"{path.name[:50]}.{secrets.token_hex(4)}.part")
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "it is no regular file")
        # "x" fails where the name is taken, also by a link to somebody else's file.
        with open(beside, "xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if before and path.exists():
            os.replace(path, before)
        os.replace(beside, path)
        if durable:
            sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        # torch.save turns a full disk into a RuntimeError.
        error = error.__context__ if isinstance(error.__context__, OSError) else error
        if not isinstance(error, OSError) and "write" not in str(error):
            raise
        reason = getattr(error, "strerror", None) or one_line(error, 200)
        raise InputError(
            f"{path}: cannot be written ({reason}); choose another place, or make room there; what "
            "was written before is whole"
        ) from None
    finally:
        with suppress(OSError):
            beside.unlink()


def sync_folder(folder: Path):
    """Bring a folder's names to the disk: a rename survives a power cut only then."""
    with suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str):
    """Write a text file in UTF-8, see `atomic`. File names in it may hold any bytes."""
    with atomic(path) as file:
        file.write(text.encode("utf-8", errors="surrogateescape"))


def write_csv(path: Path, rows: list[dict]):
    """Write rows as a CSV file with a header of all their keys, see `atomic`."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def save_png(picture: Image.Image, path: Path, **options):
    """Write a picture as PNG, see `atomic`; its folder is made if it is not there.

    options    of Pillow's writer
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made ({error.strerror})") from None
    with atomic(path, durable=False) as file:
        # Level 1 takes a third of the time of Pillow's default, and a few per cent more space.
        picture.save(file, "PNG", compress_level=1, **options)


def require_ours(path: Path, what: str, is_ours: Callable[[Path], bool]):
    """Raise InputError if there is a file of this name that `is_ours` does not know: it would be
    written over.

    what    predict.py writes there, for the message
    """
    if path.exists() and not is_ours(path):
        raise InputError(
            f"{path}: is no {what} of predict.py, and would be written over; choose another --out, "
            "or remove it"
        )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
