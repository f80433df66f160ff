"""Checkpoints: what they hold, and how they are written and read.

    best.pt      the best network so far by its score on the validation set
    last.pt      the newest state of the run, for --resume
    before.pt    the last.pt before that

Each is one dictionary, written by torch.save. All of them hold the network:

    format           FORMAT
    config           keyword arguments of FCN8s
    classes          the names of classes 0 ... C-1
    resize_factor    the network was trained on images resized by this factor
    model            the state dict

train.py adds `settings` (every option), `images` (paths of the training and the validation set,
below the data set), `sizes` (smallest, median and largest training image, (height, width) each),
`versions` and `best` (the best score so far). best.pt also has `epoch` and `result` (all scores);
last.pt has `optimizer` (momentum), `scaler` (of fp16), `step`, `log` (the rows of log.csv),
`loss_sum` (the losses of the current epoch so far) and `elapsed` (its seconds so far).

There is no random state: the order of the images, the augmentation and the dropout masks follow
from the seed, the epoch and the step.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from pathlib import Path

import torch

from support.console import InputError
from support.files import atomic

FORMAT = 1  # to be raised when a checkpoint changes in a way that older code would misread
NETWORK = {"config": dict, "classes": list, "resize_factor": float, "model": dict}


def read_tensors(path: str | os.PathLike) -> dict:
    """The dictionary in a file written by torch.save: tensors by name, or a whole checkpoint.

    Nothing in the file can run code (`weights_only`). Raises InputError if it is not such a file.
    """
    try:
        # torch.load would judge a path by its ending, and warn of bytes that it then refuses.
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # torch.load does not compare checksums: a block that the disk has lost loads as zeros.
            if zipfile.is_zipfile(file) and zipfile.ZipFile(file).testzip():
                raise ValueError
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # a damaged file raises nearly anything
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise
        raise InputError(
            f"{path}: is damaged, or not a file of torch.save; fetch or make it again"
        ) from None
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{path}: holds no dictionary of tensors by name")
    return content


def read_checkpoint(path: str | os.PathLike) -> dict:
    """The content of a checkpoint, with tensors on the CPU; see above for what it holds.

    The types of what belongs to the network are checked; whether the weights fit the configuration
    is for FCN8s.from_checkpoint to say. Raises InputError.
    """
    path = Path(path)
    if path.is_dir():
        inside = next((name for name in ("best.pt", "last.pt") if (path / name).is_file()), "")
        hint = f"did you mean {path / inside}?" if inside else "a checkpoint is a file best.pt"
        raise InputError(f"{path}: is a folder; {hint}")
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        raise InputError(f"{path}: is a picture; the checkpoint comes first, as runs/NAME/best.pt")
    saved = read_tensors(path)
    require_checkpoint(saved, path)
    return saved


def require_checkpoint(saved: dict, path: Path):
    """Raise InputError unless what was read from `path` is a checkpoint, see `read_checkpoint`."""
    if "format" not in saved:
        raise InputError(f"{path}: is not a checkpoint of train.py, such as runs/NAME/best.pt")
    if saved["format"] != FORMAT:
        raise InputError(
            f"{path}: is a checkpoint of format {saved['format']!r:.20}, this version reads "
            f"{FORMAT}; use the version that wrote it, or train again"
        )
    for name, kind in NETWORK.items():
        if not isinstance(saved.get(name), kind):
            raise InputError(f"{path}: is damaged: {name} is missing or no {kind.__name__}")
    classes = saved["classes"]
    if not all(isinstance(name, str) for name in classes) or (
        len(classes) != saved["config"].get("num_classes")
    ):
        raise InputError(f"{path}: is damaged: classes are not the names of num_classes classes")
    if not 0 < saved["resize_factor"] < 100:
        raise InputError(f"{path}: is damaged: resize_factor is {saved['resize_factor']}")


def write_checkpoint(content: dict, path: str | os.PathLike, before: Path | None = None):
    """Write a dictionary with `read_checkpoint`'s content; the same content gives the same bytes.

    before    name under which the file that it replaces is kept, see `atomic`

    Raises InputError if the file cannot be written.
    """
    with atomic(Path(path), before) as file:  # torch.save would write a path's name into the bytes
        torch.save({"format": FORMAT, **content}, file)
