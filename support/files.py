"""Writing files: completely or not at all. Needs no PyTorch."""

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

SIGNATURE = "FCN-8s predict.py"  # marks the results of predict.py, which a later run may replace


@contextmanager
def atomic(
    path: Path, before: Path | None = None, durable: bool = True
) -> Iterator[io.BufferedWriter]:
    """Context manager that yields a binary file, which becomes `path` if the block succeeds.

    The bytes go to a new file in the same folder, which is renamed when it is complete. Such a
    rename is atomic, so `path` is never half-written. Raises InputError if the file cannot be
    written; an existing file is then kept.

    before     where to keep the replaced file. Between the two renames, `path` is missing for a
               moment
    durable    flush to disk before the rename, so that the file survives a power cut
    """
    beside = path.with_name(f"{path.name[:50]}.{secrets.token_hex(4)}.part")
    try:
        if path.exists() and not path.is_file():
            raise OSError(None, "it is not a regular file")
        # "x" fails if the name exists, even as a link to another file.
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
            f"{path}: cannot be written ({reason}); choose another place, or free some space; "
            "files written before are intact"
        ) from None
    finally:
        with suppress(OSError):
            beside.unlink()


def sync_folder(folder: Path):
    """Flush a folder to disk, so that a rename in it survives a power cut."""
    with suppress(OSError):  # Windows cannot open folders
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_text(path: Path, text: str):
    """Write a text file in UTF-8, see `atomic`. File names in the text may hold any bytes."""
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
    """Write a picture as PNG, see `atomic`. Creates the folder if needed.

    options    for Pillow's PNG writer
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be created ({error.strerror})") from None
    with atomic(path, durable=False) as file:
        # Level 1 takes a third of the default's time and a few per cent more space.
        picture.save(file, "PNG", compress_level=1, **options)


def require_ours(path: Path, what: str, is_ours: Callable[[Path], bool]):
    """Raise InputError if `path` would overwrite a file that `is_ours` rejects.

    what    kind of result, for the message
    """
    if path.exists() and not is_ours(path):
        raise InputError(
            f"{path}: is not a {what} of predict.py and would be overwritten; choose another "
            "--out, or remove the file"
        )


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
