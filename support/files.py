"""Writing files all or nothing, and reading tensors without running code.

A file is written beside its place under another name, and renamed when it is complete. A rename within one folder is
atomic, so under the file's own name there is only ever a whole file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import torch

from support.errors import InputError, one_line


def read_tensors(path) -> dict:
    """The dictionary in a file written by torch.save: tensors by name, or a whole checkpoint.

    Nothing in the file can run code (weights_only). Raises InputError, naming the file, if it is not such a file.
    """
    try:
        # An open file, since torch.load would go by the ending of a path; and no warnings about bytes that it then refuses.
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # PyTorch does not compare the checksums in the file: a block that the disk has lost would load as zeros.
            if zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip():
                raise ValueError
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a cut, foreign or crafted file raises nearly anything: zip, pickle, struct, runtime errors
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise  # nothing is wrong with the file
        raise InputError(f"{path}: is not a whole file of torch.save with tensors and numbers alone; "
                         "fetch or make it again") from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: holds no dictionary of tensors by name")
    return content


def save_tensors(content: dict, path: Path, before: Path | None = None):
    """Write a dictionary that read_tensors reads, all or nothing. The same content gives the same bytes.

    The file is on the disk (fsync) before it gets its name. The file that it replaces is kept under the name `before`, if
    that is given; between the two renames only that one is there. Raises InputError if the file cannot be written; what was
    there is then still there, under one name or the other.
    """
    beside = path.with_name(f"{path.name}.{os.getpid()}.part")  # in the same folder, where a rename is atomic
    try:
        with open(beside, "wb") as file:  # an open file, since torch.save would write the name of a path into the bytes
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if before and path.exists():
            os.replace(path, before)
        os.replace(beside, path)
    except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
        error = error.__context__ if isinstance(error.__context__, OSError) else error
        raise InputError(f"{path}: cannot be written ({one_line(error, 200)}); make room there; what was written before is "
                         "whole") from None
    finally:
        with suppress(OSError):
            beside.unlink()


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hex. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def write_text(path: Path, text: str):
    """Write a text file, all or nothing. Raises InputError."""
    beside = path.with_name(f"{path.name}.part")
    try:
        with open(beside, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:  # any file name
            file.write(text)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


def write_csv(path: Path, rows: list[dict]):
    """Write rows as a CSV file with a header of all their names, all or nothing. Raises InputError."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())
