"""Checkpoints: what they hold, and how a network or a run comes back from one.

    best.pt    the best network so far by the measure of the held-out images: all that prediction needs
    last.pt    the newest state of the run: all that --resume needs
    before.pt  the last.pt before; whatever happens while last.pt is replaced, one of the two is whole

All three hold `config` (FCN8s(**config) builds the network), `model` (its state dict), `classes`, `images` (those of the
training set and the validation set, as paths below the data set), `sizes` (of the training images: smallest, median and
largest, (height, width) each), `settings` (every option) and `versions`. best.pt adds `epoch`, `best` (the value of the
measure) and `result` (all measures). last.pt adds `optimizer` (momentum), `step`, `best`, `log` (the rows of log.csv),
`loss_sum` (the losses of the epoch so far), `spent` (its seconds so far) and `loss_scale` (of fp16, or None).

The checkpoint that weights/convert.py makes of the published network has `config`, `model`, `classes` and what prediction needs
of `settings`.

There is no random state in them. The order of the images, the views and the dropout masks follow from the seed, the epoch
and the step, so a resumed run draws the same numbers as one that never stopped (with the same number of processes).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from fcn import FCN8s
from support.errors import InputError, one_line, warn
from support.files import read_tensors
from support.pictures import IMAGE_ENDINGS

# What last.pt holds, and of what kind.
PARTS = {"settings": dict, "config": dict, "classes": list, "images": list, "model": dict, "optimizer": dict, "step": int,
         "loss_sum": torch.Tensor, "best": float, "log": list}


def load_last(out: Path) -> dict:
    """The newest whole last.pt of a run. If it is damaged, that is said on stderr, and before.pt is taken.

    The damaged file gets another name, or the next checkpoint would put it in the place of the whole one. Raises InputError
    if neither is whole.
    """
    if not any((out / name).exists() for name in ("last.pt", "before.pt")):
        raise InputError(f"{out / 'last.pt'}: the run has no checkpoint yet, it was stopped before the first one; the same "
                         "command without --resume begins it again")
    reasons = []
    for name in ("last.pt", "before.pt"):
        try:
            saved = read_tensors(out / name)
            if not all(isinstance(saved.get(part), kind) for part, kind in PARTS.items()):
                raise InputError(f"{out / name}: is not a checkpoint of train.py")
        except InputError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warn("train.py", f"{reason}; going on from {out / name}")
            if (out / "last.pt").exists():
                os.replace(out / "last.pt", out / "damaged.pt")
        return saved
    raise InputError(reasons[0] if not (out / "before.pt").exists() else "; ".join(reasons))


def state_of(saved: dict) -> dict:
    """Takes the state dict out of a checkpoint. Earlier versions kept pad and the factors on the skips only in `config`; these
    are added."""
    state, config = saved.pop("model"), saved["config"]
    if isinstance(state, dict) and "_extra_state" not in state:
        state["_extra_state"] = torch.tensor([config.get("pad", 1), *config.get("skip_scale", (1, 1))], dtype=torch.float64)
    return state


def restored_network(saved: dict) -> FCN8s:
    """The network of the run to resume. Its weights are taken out of `saved`. Raises InputError if they do not fit."""
    try:
        net = FCN8s(**saved["config"])
        net.load_state_dict(state_of(saved))  # half a gigabyte less from here on
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"the checkpoint's weights are not those of its settings ({one_line(error)})") from None
    return net


def holds_network(path: Path) -> bool:
    """Whether there is a whole checkpoint at this path."""
    try:
        return "model" in read_tensors(path)
    except InputError:
        return False


def load_network(path: Path) -> tuple[FCN8s, dict]:
    """The network of a checkpoint, on the CPU in training mode, and what else the checkpoint holds. Raises InputError."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, no checkpoint; did you mean {path / 'best.pt'}?")
    if path.suffix.lower() in IMAGE_ENDINGS:
        raise InputError(f"{path}: is a picture; the checkpoint comes first, such as runs/NAME/best.pt")
    saved = read_tensors(path)
    try:
        if len(saved["classes"]) != saved["config"]["num_classes"]:
            raise KeyError
        # another program's file has none, and those of earlier versions have no scale
        saved["settings"] = {"task": "road", "split_seed": 0, "scale": 1.0, **saved.get("settings", {})}
        with torch.device("meta"):  # no memory for weights that are about to be replaced
            net = FCN8s(**saved["config"])
        net.load_state_dict(state_of(saved), assign=True)  # and kept nowhere else: bf16 may take its place
    except (KeyError, IndexError):
        raise InputError(f"{path}: is not a checkpoint of train.py, such as runs/NAME/best.pt, with `config`, `model` and the "
                         "names of all `classes`") from None
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: the weights are not those of its own settings ({one_line(error)})") from None
    return net, saved
