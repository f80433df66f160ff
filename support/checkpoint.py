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

from support.console import CONTROL, InputError
from support.files import atomic
from support.labels import IGNORE
from vgg import VGG16

FORMAT = 1  # to be raised when a checkpoint changes in a way that older code would misread

# The types of what is used, see `fits`; "?": may be missing.
CONTENT = {
    "config": {
        "num_classes": int,
        "pad": int,
        "stride": int,
        "width": float,
        "fc_channels": int,
        "learn_upsampling": bool,
        "skip_gain": dict.fromkeys(VGG16.OUTPUTS[:-1], float),
        "dropout": float,
    },
    "classes": [str],
    "resize_factor": float,
    "model": dict,
    "settings?": {"task?": str, "classes?": str, "images?": str, "masks?": str, "split_seed?": int},
    "images?": ([str], [str]),
    "sizes?": dict.fromkeys(("smallest", "median", "largest"), (int, int)),
    "optimizer?": dict,
    "scaler?": dict,
    "step?": int,
    "log?": [dict],
    "loss_sum?": torch.Tensor,
    "elapsed?": float,
    "best?": float,
    "epoch?": int,
    "result?": dict,
}


def read_tensors(path: str | os.PathLike) -> dict:
    """The dictionary in a file written by torch.save: tensors by name, or a whole checkpoint.

    Nothing in the file can run code (`weights_only`). Raises InputError if it is not such a file.
    """
    try:
        # torch.load would judge a path by its ending, and warn of bytes that it then refuses.
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if zipfile.is_zipfile(file):
                archive = zipfile.ZipFile(file)
                # torch.save compresses nothing. What is larger inside could fill the memory.
                if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                    raise ValueError
                # torch.load does not compare checksums: a block that the disk has lost loads as
                # zeros.
                if archive.testzip():
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

    Types and weights are checked; whether the weights fit the configuration is for
    FCN8s.from_checkpoint to say. Raises InputError.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    there = [folder / name for name in ("best.pt", "last.pt") if (folder / name).is_file()]
    if path == folder:
        hint = (
            f"the checkpoint in it is {there[0]}"
            if there
            else "give the checkpoint first, such as runs/NAME/best.pt"
        )
        raise InputError(f"{path}: is a folder; {hint}")
    if there and not path.exists():
        raise InputError(f"{path}: is not there, but {there[0]} is")
    if path.suffix.lower() in (".png", ".jpg", ".jpeg"):
        raise InputError(
            f"{path}: is a picture; give the checkpoint first, such as runs/NAME/best.pt"
        )
    saved = read_tensors(path)
    require_checkpoint(saved, path)
    return saved


def require_checkpoint(saved: dict, path: Path):
    """Raise InputError unless what was read from `path` is a checkpoint, see `read_checkpoint`."""
    if not fits(saved.get("format"), int):
        raise InputError(f"{path}: is not a checkpoint of train.py, such as runs/NAME/best.pt")
    if saved["format"] != FORMAT:
        raise InputError(
            f"{path}: is a checkpoint of format {saved['format']}, this version reads {FORMAT}; "
            "use the version that wrote it, or train again"
        )
    for name, kind in CONTENT.items():
        if not fits(saved, {name: kind}):
            entry = name.rstrip("?")
            raise InputError(f"{path}: is damaged: the entry {entry} is missing or of a wrong type")
    classes = saved["classes"]
    if not 1 <= len(classes) <= IGNORE or len(classes) != saved["config"]["num_classes"]:
        raise InputError(f"{path}: is damaged: classes are not the names of num_classes classes")
    if CONTROL.search("".join(classes)):
        raise InputError(f"{path}: a class has a name with control characters; rename it")
    if not 0 < saved["resize_factor"] < 100:
        raise InputError(f"{path}: is damaged: resize_factor is {saved['resize_factor']}")
    for name, tensor in saved["model"].items():
        require_numbers(tensor, f"{path}: {name!r:.80}")


def fits(value, kind) -> bool:
    """Whether a value is of a type: int and float stand for numbers below 2**63; a dictionary for
    one that has these names; a list for one of any length; a tuple for a list of this length.
    """
    if isinstance(kind, dict):
        return isinstance(value, dict) and all(
            fits(value[name.rstrip("?")], of) if name.rstrip("?") in value else name[-1] == "?"
            for name, of in kind.items()
        )
    if isinstance(kind, list):
        return isinstance(value, list) and all(fits(item, kind[0]) for item in value)
    if isinstance(kind, tuple):
        same = isinstance(value, (list, tuple)) and len(value) == len(kind)
        return same and all(map(fits, value, kind))
    if kind in (int, float):
        return type(value) in (int, kind) and abs(value) < 2**63  # no bool, no nan
    return isinstance(value, kind)


def require_numbers(tensor, where: str):
    """Raise InputError unless `tensor` is dense and holds real floating point numbers, all of them
    finite in float32.
    """
    if (
        not isinstance(tensor, torch.Tensor)
        or not tensor.is_floating_point()
        or tensor.layout != torch.strided
        or tensor.is_meta
    ):
        raise InputError(f"{where} is no dense tensor of floating point numbers")
    if tensor.numel() and not torch.stack(tensor.float().aminmax()).isfinite().all():
        raise InputError(f"{where} holds values that are not finite; the file is damaged")


def write_checkpoint(content: dict, path: str | os.PathLike, before: Path | None = None):
    """Write a dictionary with `read_checkpoint`'s content; the same content gives the same bytes.

    before    name under which the file that it replaces is kept, see `atomic`

    Raises InputError if the file cannot be written.
    """
    with atomic(Path(path), before) as file:  # torch.save would write a path's name into the bytes
        torch.save({"format": FORMAT, **content}, file)
