"""From the command line to the Config of a run.

Each option of train.py is a field of its Config. An option that is not given takes its default or,
with --resume, the value of the saved run. `resolve` replaces each "auto" by a value.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import fields
from pathlib import Path

import numpy as np

from fcn import FCN8s
from support.console import InputError, positive
from support.device import default_amp
from support.inference.predictor import MAX_VIEW
from support.labels import DataSet

# Options that --resume may change: the length of the run (the learning rate follows), the location
# of the images, and machine settings. Machine settings may change rounding; another device also
# changes the dropout masks.
FREE_ON_RESUME = {
    *("data", "out", "resume", "debug", "epochs", "save_every"),
    *("device", "amp", "workers", "recompute"),
}


def gains(text: str) -> dict[str, float]:
    """A converter for argparse: "A,B", positive numbers, to the gain of each skip."""
    values = [positive(word) for word in text.split(",")]
    if len(values) != len(FCN8s.SKIPS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not one number for each of {FCN8s.SKIPS}, such as 0.01,0.0001"
        )
    return dict(zip(FCN8s.SKIPS, values, strict=True))


def configure(
    given: dict, saved: dict | None, config: type, demo: dict, paper: dict, processes: int
):
    """The Config of a run, in which settings may still be "auto".

    given          the options that were typed
    saved          settings of the run to resume, or None
    demo, paper    defaults without --data, and with --recipe paper
    processes      number of processes

    Raises InputError for options that exclude each other or that --resume cannot change.
    """
    if saved:
        if saved.keys() != {field.name for field in fields(config)}:
            raise InputError(
                "--resume: last.pt is from another version of train.py; start a new run"
            )
        for name, value in given.items():
            if name not in FREE_ON_RESUME and value not in ("auto", saved.get(name)):
                flag = f"--{name.replace('_', '-')}"
                raise InputError(
                    f"{flag} {value}: the run to resume has {saved.get(name)}; omit it"
                )
        free = {name: value for name, value in given.items() if name in FREE_ON_RESUME}
        config = config(**{**saved, "debug": False, **free})
    else:
        config = new_config(given, config, demo, paper)
    if config.batch_size < processes:
        raise InputError(
            f"--batch-size {config.batch_size}: must be at least {processes}, one image for each "
            "process"
        )
    if processes > 1 and config.device.startswith("cuda:"):
        raise InputError(f"--device {config.device}: each process has its own GPU; use cuda")
    return config


def new_config(given: dict, config: type, demo: dict, paper: dict):
    """The Config of a new run, see `configure`."""
    differs = demo if not given.get("data") else {}
    if given.get("recipe") == "paper":
        differs = paper
    config = config(**{**differs, **given})
    if not config.augment:
        for name in ("crop", "resize"):
            if name in given:
                raise InputError(
                    f"--{name}: --recipe paper trains on whole, unresized images; omit it"
                )
    if config.weights == "none" and config.freeze not in ("auto", 0):
        raise InputError(f"--freeze {config.freeze}: random weights must be trained; omit --freeze")
    if config.weights == "auto" and config.width not in (1, "auto"):
        raise InputError(
            "--width: ImageNet's weights need the full width; add --weights none or --width 1"
        )
    if config.weights not in ("auto", "none") and not Path(config.weights).is_file():
        raise InputError(
            f"{config.weights}: no such weights file; see weights/README.md, or train with "
            "--weights none"
        )
    return config


def resolve(config, data: DataSet, sizes: dict, weights: dict | None, device, paper: dict):
    """Replace each "auto" in `config` by the value that suits data, weights and machine.

    sizes      "median" and "largest" (height, width) of the training images
    weights    content of the weights file that the network starts from, or None
    paper      settings of --recipe paper

    A resumed run keeps its values on any machine. Other code resolves --device and --workers (on
    each machine anew), --save-every (by the clock), --weights (by finding the file) and --skip-gain
    (by measuring activations). Raises InputError if the resized images would not fit into memory.
    """
    several = data.road is None  # several classes, scored by mean IoU
    steps = math.ceil(len(data.train) / config.batch_size)  # per epoch
    config.amp = default_amp(config.amp, device)
    if config.flip == "auto":
        # A mirrored ego lane is the left lane: a network trained on both would mark both.
        config.flip = "no" if config.task == "lane" else "yes"
    if config.class_weights == "auto":
        config.class_weights = "sqrt" if several else "none"  # MaxF picks its own threshold
    if config.width == "auto":
        config.width = weights["config"]["width"] if "model" in (weights or ()) else 1.0
    if config.fc_channels == "auto":
        config.fc_channels = default_fc_channels(weights)
    if config.freeze == "auto":
        config.freeze = 0 if weights is None else 3 if several else 2
    if config.resize == "auto":
        # Enlarging helps on CamVid, whose images have 172,800 pixels (docs/results.md). KITTI's
        # have 465,750, and its road is not thin.
        small = np.prod(sizes["median"]) < 250_000
        config.resize = 1.5 if small and several and config.augment else 1.0
    if config.resize**2 * np.prod(sizes["largest"]) > MAX_VIEW:
        raise InputError(
            f"--resize {config.resize:g}: the largest image would have more than {MAX_VIEW:,} "
            "pixels; choose a smaller factor"
        )
    if config.epochs == "auto" and config.recipe == "paper":
        # The authors' iterations: 300,000 at once, 100,000 for each of the stages 32s, 16s and 8s.
        at_once = config.stride == 8 and config.skip_gain == paper["skip_gain"]
        config.epochs = math.ceil((300_000 if at_once else 100_000) / steps)
    elif config.epochs == "auto":
        # On a CPU, 60 epochs of KITTI Road would take 5 to 14 hours. Small data sets get more
        # epochs, for at least 1,200 steps.
        config.epochs = max(14 if device.type == "cpu" else 60, math.ceil(1200 / steps))


def default_fc_channels(weights: dict | None) -> int:
    """The number of channels of fc6 and fc7 for these weights, see `read_weights`."""
    if weights is None:
        return 4096
    if "model" in weights:
        return weights["config"]["fc_channels"]
    if "fc6.bias" in weights:
        return weights["fc6.bias"].numel()
    return 512  # no fc6 and fc7: as many as pool5 has, for identity_init; more scored no better
