"""Checkpoint files: contents, reading and writing.

    best.pt      the network with the best score on the validation set so far
    last.pt      the latest state of the run, for --resume
    before.pt    the previous last.pt

Each file is one dictionary, saved with torch.save. All of them contain:

    format           FORMAT
    config           keyword arguments of FCN8s
    classes          the names of classes 0 ... C-1
    resize_factor    factor by which the training images were resized
    model            the state dict

train.py adds `settings` (its Config), `images` (paths of the training and validation images,
relative to the data set), `sizes` (smallest, median and largest training image, each (height,
width)), `versions` and `best` (the best score so far). best.pt also has `epoch` and `result` (all
scores). last.pt also has `optimizer` (momentum), `scaler` (for fp16), `step`, `log` (the rows of
log.csv), and of the current epoch `loss_sum` and `elapsed` (seconds).

No random state is saved: the order of the images, the augmentation and the dropout masks depend
only on the seed, the epoch and the step.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path

import torch

from support.console import CONTROL, InputError
from support.files import atomic

FORMAT = 1  # increase if older code would misread a new checkpoint


def read_tensors(path: str | os.PathLike) -> dict:
    """Read the dictionary in a torch.save file: tensors by name, or a whole checkpoint.

    The file cannot run code (`weights_only`). Raises InputError for any other file.
    """
    try:
        # Given a path, torch.load would choose the format by its extension. It warns about some
        # files before it rejects them.
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if zipfile.is_zipfile(file):
                archive = zipfile.ZipFile(file)
                # torch.save does not compress. An archive that expands could fill the memory.
                if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                    raise ValueError
                # torch.load ignores the checksums: a lost disk block would load as zeros.
                if archive.testzip():
                    raise ValueError
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged file can raise almost any error
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        raise InputError(
            f"{path}: is damaged, or not a torch.save file; download or create it again"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: does not hold a dictionary of tensors by name")
    return content


def read_checkpoint(path: str | os.PathLike) -> dict:
    """Read a checkpoint: the dictionary described above, with tensors on the CPU.

    Checks the format, and that the weights are finite. FCN8s.from_checkpoint checks whether they
    fit the configuration. Raises InputError.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    there = [folder / name for name in ("best.pt", "last.pt") if (folder / name).is_file()]
    if path == folder:
        hint = (
            f"its checkpoint is {there[0]}"
            if there
            else "give the checkpoint first, such as runs/NAME/best.pt"
        )
        raise InputError(f"{path}: is a folder; {hint}")
    if there and not path.exists():
        raise InputError(f"{path}: no such file; did you mean {there[0]}?")
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        raise InputError(
            f"{path}: is a picture; give the checkpoint first, such as runs/NAME/best.pt"
        )
    saved = read_tensors(path)
    require_checkpoint(saved, path)
    return saved


def require_checkpoint(saved: dict, path: Path):
    """Raise InputError unless `saved`, read from `path`, is a checkpoint of this FORMAT."""
    if not {"format", "config", "classes", "resize_factor", "model"} <= saved.keys():
        raise InputError(f"{path}: is not a checkpoint of train.py, such as runs/NAME/best.pt")
    if saved["format"] != FORMAT:
        raise InputError(
            f"{path}: has checkpoint format {saved['format']}, but this version reads {FORMAT}; "
            "use the version that wrote it, or train again"
        )
    if CONTROL.search("".join(saved["classes"])):  # a terminal would execute them
        raise InputError(f"{path}: a class name has control characters; rename the class")
    for name, tensor in saved["model"].items():
        require_numbers(tensor, f"{path}: {name!r:.80}")


def require_numbers(tensor, where: str):
    """Raise InputError unless `tensor` is dense, with real floating-point values that are finite in
    float32.
    """
    if (
        not isinstance(tensor, torch.Tensor)
        or not tensor.is_floating_point()
        or tensor.layout != torch.strided
        or tensor.is_meta
    ):
        raise InputError(f"{where} is not a dense tensor of floating-point numbers")
    if tensor.numel() and not torch.stack(tensor.float().aminmax()).isfinite().all():
        raise InputError(f"{where} holds values that are not finite; the file is damaged")


def write_checkpoint(content: dict, path: str | os.PathLike, before: Path | None = None):
    """Write `content` and FORMAT to a checkpoint. The same content gives the same bytes.

    before    where to keep the replaced file, see `atomic`

    Raises InputError if the file cannot be written.
    """
    with atomic(Path(path), before) as file:  # given a path, torch.save would store its name
        torch.save({"format": FORMAT, **content}, file)
