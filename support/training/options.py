"""From the command line of train.py to the settings of a run.

An option that is not given has its default, or, on --resume, what the run began with. Every default
stands in train.py. Some are "auto": `resolve_auto` replaces them by what suits the data, the
weights and the machine.

A new option takes a line in DEFAULTS (train.py) and one in `parse`. If it may be "auto", it takes a
case in `resolve_auto`; if it may change on --resume, it is named in FREE_ON_RESUME; if it excludes
other options, `check_settings` says so.
"""

from __future__ import annotations

import math
from argparse import BooleanOptionalAction
from pathlib import Path

import torch

from support.console import (
    DATA_OPTIONS,
    POSITIVE,
    WORKERS,
    InputError,
    Parser,
    matching,
    natural,
    parse_scale,
)
from support.device import suited_amp
from support.inference.scale import MOST
from support.labels import DataSet
from support.training.distributed import Ranks
from support.training.initialise import FROZEN, FROZEN_ROAD, suited_channels
from weights.convert import AT_ONCE

REAL, SYNTHETIC, PAPER = range(
    3
)  # the columns of the defaults: with --data, without it, with --recipe paper
# What --resume may change: the length of the run (the rate follows), where the same images lie, and
# what depends on the machine and changes rounding at most.
FREE_ON_RESUME = {
    "epochs",
    "data",
    "device",
    "workers",
    "save_every",
    "amp",
    "recompute",
    "compile",
}
# What --epochs auto comes to:
GPU_EPOCHS = 60  # KITTI Road: 60 x 231 steps
CPU_EPOCHS = 14  # on a processor, where 60 epochs of KITTI Road would take 5 to 14 hours
LEAST_STEPS = 1200  # small data sets get more epochs, to make as many steps
# What --scale auto enlarges, and how many times. CamVid's images have 172,800 pixels; on them it
# was measured (docs/results.md). VOC's have about as many, and are enlarged too; there it was not
# measured. KITTI's have 465,750, and its road is not thin.
SMALL, ENLARGED = 250_000, 1.5
PAPER_STEPS = {"at once": 300_000, "stage": 100_000}  # of --recipe paper


def resolve_auto(
    settings: dict, data: DataSet, device: torch.device, weights: dict | None, steps_per_epoch: int
):
    """Replace each "auto" by a value, in place. On --resume a run keeps these values, on whatever
    machine.

    weights    the content of the weights file that the network begins with, or None

    Some are not decided here. `device` and `workers` are picked anew on each machine
    (support/device.py, support/batches.py), and `save_every` follows the clock (support/saving.py).
    `weights` is a file to be found or downloaded, `skip_scale` is measured on the network
    (support/start.py), and `scale` depends on sizes that the first process alone has read
    (`suited_scale`).
    """
    settings["amp"] = suited_amp(settings["amp"], device)
    if settings["flip"] == "auto":
        settings["flip"] = "no" if settings["task"] == "lane" else "yes"
    if settings["class_weights"] == "auto":
        settings["class_weights"] = "sqrt" if data.road is None else "none"
    if settings["fc_channels"] == "auto":
        settings["fc_channels"] = suited_channels(weights)
    if settings["freeze"] == "auto":
        settings["freeze"] = 0 if weights is None else FROZEN if data.road is None else FROZEN_ROAD
    if settings["epochs"] == "auto":
        settings["epochs"] = suited_epochs(settings, steps_per_epoch, device)


def suited_scale(settings: dict, data: DataSet, sizes: dict[str, tuple[int, int]]) -> float:
    """At how many times the size of its images a run computes: as told, or for "auto" ENLARGED if
    the median training image has fewer than SMALL pixels and more than one class is sought.

    sizes    of the training images (counts.extent)

    Raises InputError if the largest image would be too large.
    """
    scale = settings["scale"]
    if scale == "auto":
        small = math.prod(sizes["median"]) < SMALL
        scale = ENLARGED if small and data.road is None and settings["augment"] else 1.0
    if scale**2 * math.prod(sizes["largest"]) > MOST:
        raise InputError(
            f"--scale {scale:g}: makes more than {MOST:,} pixels of the largest image; take a smaller one"
        )
    return scale


def suited_epochs(settings: dict, steps_per_epoch: int, device: torch.device) -> int:
    """The length of a run in epochs, where nobody has said it."""
    if settings["recipe"] == "paper":
        at_once = settings["stride"] == 8 and parse_scale(settings["skip_scale"]) == AT_ONCE
        return math.ceil(PAPER_STEPS["at once" if at_once else "stage"] / steps_per_epoch)
    epochs = CPU_EPOCHS if device.type == "cpu" else GPU_EPOCHS
    return max(epochs, math.ceil(LEAST_STEPS / steps_per_epoch))


def settle(options: dict, saved: dict | None, defaults: dict[str, tuple]) -> dict:
    """The settings: the options that were given, else those of the checkpoint `saved`, else the
    defaults.

    defaults    for each setting its values for REAL, SYNTHETIC and PAPER

    Raises InputError if, on resuming, an option was given that is not in FREE_ON_RESUME and differs
    from the run's.
    """
    column = PAPER if options["recipe"] == "paper" else REAL if options["data"] else SYNTHETIC
    settings = {
        "data": options["data"],
        **{name: values[column] for name, values in defaults.items()},
    }
    settings.update(
        {"scale": 1.0, "freeze": 0, **saved["settings"]} if saved else {}
    )  # earlier versions had neither
    for name, value in options.items():
        if name in settings and value is not None:
            if saved and name not in FREE_ON_RESUME:
                if value not in ("auto", settings[name]):  # it goes on with what auto came to
                    raise InputError(
                        f"--{name.replace('_', '-')} {value}: the run to resume has {settings[name]}"
                    )
            else:
                settings[name] = value
    return settings


def check_settings(settings: dict, ranks: Ranks, resume: bool):
    """Raise InputError for settings that do not go together, or that name a file of weights that is
    not there.
    """
    if settings["crop"] != "none" and not settings["augment"]:
        raise InputError("--crop: --recipe paper trains on whole images; leave it out")
    if settings["scale"] not in ("auto", 1) and not settings["augment"]:
        raise InputError("--scale: --recipe paper trains on images as they are; leave it out")
    if settings["weights"] == "none" and settings["freeze"] not in ("auto", 0):
        raise InputError(
            f"--freeze {settings['freeze']}: goes with trained weights; random ones have to learn"
        )
    if settings["batch_size"] < ranks.size:
        raise InputError(
            f"--batch-size {settings['batch_size']}: is divided among {ranks.size} processes, each needs an image"
        )
    if ranks.size > 1 and settings["device"].startswith("cuda:"):
        raise InputError(
            f"--device {settings['device']}: each process takes a GPU of its own; say --device cuda"
        )
    if (
        not resume
        and settings["weights"] not in ("auto", "none")
        and not Path(settings["weights"]).is_file()
    ):
        raise InputError(
            f"{settings['weights']}: no such file of weights; see weights/README.md, or --weights none"
        )


def parse(argv: list[str] | None, defaults: dict[str, tuple], description: str) -> dict:
    """The options of train.py's command line by name, None where nothing was said. Exits with one
    line if one is wrong.
    """
    whole = matching(r"[1-9]\d{0,17}", "a whole number from 1 up", int)
    whole_or_auto = matching(
        r"auto|[1-9]\d{0,17}",
        "auto or a whole number from 1 up",
        lambda text: text if text == "auto" else int(text),
    )
    positive = matching(POSITIVE, "a positive number", float)
    parser = Parser(
        "train.py", description=description, unknown="the folder goes after --data; not an option"
    )

    def add(name, help, **kind):
        real, synthetic, paper = defaults[name]
        said = (
            f" (default {real}"
            + (f"; synthetic roads: {synthetic}" if synthetic != real else "")
            + (f"; paper: {paper}" if paper != real else "")
            + ")"
        )
        group.add_argument(
            "--" + name.replace("_", "-"),
            default=None,
            **kind,
            help=help + (said if real is not False and name != "recipe" else ""),
        )

    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        metavar="DIR",
        type=matching("(?s).+", "a folder"),
        help="KITTI Road, own images and masks, PASCAL VOC or Cityscapes (default: synthetic roads)",
    )
    for name, (help, kind) in DATA_OPTIONS.items():
        add(name, help, **kind)

    group = parser.add_argument_group("run")
    group.add_argument(
        "--out", metavar="DIR", help="folder of this run (default runs/NAME, the first free)"
    )
    group.add_argument(
        "--resume", action="store_true", help="go on with the run in --out from its last checkpoint"
    )
    add(
        "save_every",
        "steps between two checkpoints: the most that a kill or a power cut can cost. auto: 500 steps or five "
        "minutes, but at most a fiftieth of the time",
        type=whole_or_auto,
        metavar="N",
    )

    group = parser.add_argument_group("network")
    add(
        "weights",
        "what the network begins with: ImageNet's converted weights (auto: weights/vgg16.pth, else a download), "
        "the best.pt of another run, or none: random weights",
        metavar="PATH",
    )
    add(
        "stride",
        "how fine the skips make the output: 8 is FCN-8s, with pool4 and pool3; 16 is FCN-16s, with pool4; 32 is "
        "FCN-32s, without skips",
        type=int,
        choices=(8, 16, 32),
    )
    add(
        "pad",
        "padding of the first convolution: 1 keeps the maps as they are, 100 puts the authors' border around the "
        "image, which costs time and needs crops",
        type=whole,
        metavar="N",
    )
    add(
        "width",
        "factor on the number of channels of each convolution of VGG16; below 1 a smaller, faster network, which "
        "ImageNet's weights do not fit",
        type=positive,
    )
    add(
        "fc_channels",
        "channels of fc6 and fc7: fewer take less memory and time. auto: as many as the weights file has, or "
        "512 if it has none",
        type=whole_or_auto,
        metavar="N",
    )
    add(
        "freeze",
        "blocks of VGG16, from the first, that stay as the weights have them: faster, less memory. auto: "
        f"{FROZEN} for several classes, {FROZEN_ROAD} for a road alone, 0 for random weights",
        metavar="N",
        type=matching(
            "auto|[0-3]", "auto, 0, 1, 2 or 3", lambda text: text if text == "auto" else int(text)
        ),
    )
    add(
        "dropout",
        "share of fc6 and fc7 that is set to zero at random in each training step",
        metavar="P",
        type=matching(r"0?\.\d+|0", "a number from 0 to 1", float),
    )
    add(
        "skip_scale",
        "numbers that pool4 and pool3 are multiplied by before they are scored, so that their score layers "
        "learn as fast as that of fc7. auto: measured on a training image",
        metavar="A,B",
        type=matching(f"auto|{POSITIVE},{POSITIVE}", "auto or two positive numbers, A,B"),
    )
    add(
        "learn_upsampling",
        "train the transposed convolutions too, instead of keeping them bilinear",
        action="store_const",
        const=True,
    )

    group = parser.add_argument_group("training")
    add(
        "recipe",
        "where the defaults come from: default is this project's; paper is that of the authors' published training, "
        "with their border, rate and whole images, and takes days",
        choices=("default", "paper"),
    )
    add(
        "epochs",
        f"passes over the training images; auto is {GPU_EPOCHS}, on a processor {CPU_EPOCHS}, of few images as many "
        f"as make {LEAST_STEPS} steps, and with --recipe paper as many as the authors' steps",
        type=whole_or_auto,
        metavar="N",
    )
    add("batch_size", "images in a step", type=whole, metavar="N")
    add(
        "scale",
        "train and predict at this many times the size of the images: above 1, thin things such as poles cover more "
        f"of the 8 x 8 pixels that share a score. auto: {ENLARGED} if the median image has less than {SMALL:,} pixels "
        "and more than one class is sought, else 1",
        type=matching(
            f"auto|{POSITIVE}",
            "auto or a positive number",
            lambda text: text if text == "auto" else float(text),
        ),
        metavar="FACTOR",
    )
    add(
        "crop",
        "height and width of the largest view of an image that a training step sees; it grows with --scale. Smaller "
        "takes less memory. none: whole images. Held-out images are always scored whole",
        metavar="HxW",
        type=matching(r"none|[1-9]\d{0,6}x[1-9]\d{0,6}", "none or a size, HxW"),
    )
    add("lr", "largest learning rate", type=positive)
    add(
        "class_weights",
        "what an error on a pixel costs: none: the same for all; sqrt: more for rare classes, by 1 / sqrt of "
        "their share of the pixels; auto: sqrt where mean IoU is the goal, none for a road",
        choices=("auto", "none", "sqrt"),
    )
    add(
        "flip",
        "mirror half the training views; auto: not where --task is lane",
        choices=("auto", "yes", "no"),
    )
    add(
        "seed",
        "draws the first weights, the order, the views and the dropout; the same number gives the same run",
        type=natural,
        metavar="N",
    )

    group = parser.add_argument_group("machine")
    add("device", "auto, cpu, cuda, cuda:N, or mps (Apple's GPUs; untested)", metavar="NAME")
    add(
        "amp",
        "bf16: compute in 16-bit floating point (bfloat16), about twice as fast on hardware that has it; fp16: for "
        "GPUs without bf16 (V100, T4); off: in 32 bits, without TF32; auto: bf16 where the hardware has it, else off",
        choices=("auto", "bf16", "fp16", "off"),
    )
    add(
        "workers",
        "threads that read images; auto: 2, for a GPU one for each core, up to 16",
        **WORKERS,
    )
    add(
        "recompute",
        "compute activations twice instead of keeping them: less memory, a quarter more time",
        action=BooleanOptionalAction,
    )
    add("compile", "compile the network with torch.compile", action=BooleanOptionalAction)
    group.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    return vars(parser.parse_args(argv))
