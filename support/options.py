"""From the command line of train.py to the settings of a run.

An option that is not given has its default, or, on --resume, what the run began with. Every default stands in train.py. Some
are "auto": `resolve_auto` replaces them by what suits the data, the weights and the machine.

A new option takes a line in DEFAULTS (train.py) and one in `parse`. If it may be "auto", it takes a case in `resolve_auto`; if
it may change on --resume, it is named in FREE_ON_RESUME; if it excludes other options, `check_settings` says so.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from data import DataSet
from support.arguments import Parser, matching, parse_scale
from support.device import use_bf16
from support.errors import InputError
from support.ranks import Ranks
from support.start import suited_channels
from weights.convert import AT_ONCE

REAL, SYNTHETIC, PAPER = range(3)  # the columns of the defaults: with --data, without it, with --recipe paper
# What --resume may change: the length of the run (the rate follows), the machine, and where the same images lie.
FREE_ON_RESUME = {"epochs", "device", "workers", "save_every", "data", "recompute"}
# What --epochs auto comes to:
GPU_EPOCHS = 60     # KITTI Road: 60 x 231 steps
CPU_EPOCHS = 14     # on a processor, where 60 epochs of KITTI Road would take 17 hours
LEAST_STEPS = 1200  # small data sets get more epochs, to make as many steps
PAPER_STEPS = {"at once": 300_000, "stage": 100_000}  # of --recipe paper


def resolve_auto(settings: dict, data: DataSet, device: torch.device, weights: dict | None, steps_per_epoch: int):
    """Replace each "auto" by a value, in place. On --resume a run keeps these values, on whatever machine.

    weights    the content of the weights file that the network begins with, or None

    Three are not decided here. `device` is picked anew on each machine (support/device.py). `weights` is a file to be found
    or downloaded, `skip_scale` is measured on the network (support/start.py).
    """
    settings["amp"] = "bf16" if use_bf16(settings["amp"], device) else "off"
    if settings["flip"] == "auto":
        settings["flip"] = "no" if settings["task"] == "lane" else "yes"
    if settings["class_weights"] == "auto":
        settings["class_weights"] = "sqrt" if data.road is None else "none"
    if settings["fc_channels"] == "auto":
        settings["fc_channels"] = suited_channels(weights)
    if settings["epochs"] == "auto":
        settings["epochs"] = suited_epochs(settings, steps_per_epoch, device)


def suited_epochs(settings: dict, steps_per_epoch: int, device: torch.device) -> int:
    """The length of a run in epochs, where nobody has said it."""
    if settings["recipe"] == "paper":
        at_once = settings["stride"] == 8 and parse_scale(settings["skip_scale"]) == AT_ONCE
        return math.ceil(PAPER_STEPS["at once" if at_once else "stage"] / steps_per_epoch)
    epochs = CPU_EPOCHS if device.type == "cpu" else GPU_EPOCHS
    return max(epochs, math.ceil(LEAST_STEPS / steps_per_epoch))


def settle(options: dict, saved: dict | None, defaults: dict[str, tuple]) -> dict:
    """The settings: the options that were given, else those of the checkpoint `saved`, else the defaults.

    defaults    for each setting its values for REAL, SYNTHETIC and PAPER

    Raises InputError if, on resuming, an option was given that is not in FREE_ON_RESUME and differs from the run's.
    """
    column = PAPER if options["recipe"] == "paper" else REAL if options["data"] else SYNTHETIC
    settings = {"data": options["data"], **{name: values[column] for name, values in defaults.items()}}
    settings.update(saved["settings"] if saved else {})
    for name, value in options.items():
        if name in settings and value is not None:
            if saved and name not in FREE_ON_RESUME:
                if value not in ("auto", settings[name]):  # it goes on with what auto came to
                    raise InputError(f"--{name.replace('_', '-')} {value}: the run to resume has {settings[name]}")
            else:
                settings[name] = value
    return settings


def check_settings(settings: dict, ranks: Ranks, resume: bool):
    """Raise InputError for settings that do not go together, or that name a file of weights that is not there."""
    if settings["crop"] != "none" and not settings["augment"]:
        raise InputError("--crop: --recipe paper trains on whole images; leave it out")
    if settings["batch_size"] < ranks.size:
        raise InputError(f"--batch-size {settings['batch_size']}: is divided among {ranks.size} processes, each needs an image")
    if ranks.size > 1 and settings["device"].startswith("cuda:"):
        raise InputError(f"--device {settings['device']}: each process takes a GPU of its own; say --device cuda")
    if not resume and settings["weights"] not in ("auto", "none") and not Path(settings["weights"]).is_file():
        raise InputError(f"{settings['weights']}: no such file of weights; see weights/README.md, or --weights none")


def parse(argv: list[str] | None, defaults: dict[str, tuple], description: str) -> dict:
    """The options of train.py's command line by name, None where nothing was said. Exits with one line if one is wrong."""
    number = r"(?!0*\.?0*(e|,|$))\d*\.?\d+(e[+-]?\d{1,2})?"  # not nought, in any spelling
    whole = matching(r"[1-9]\d{0,17}", "a whole number from 1 up", int)
    whole_or_auto = matching(r"auto|[1-9]\d{0,17}", "auto or a whole number from 1 up",
                             lambda text: text if text == "auto" else int(text))
    natural = matching(r"\d{1,18}", "a whole number", int)
    positive = matching(number, "a positive number", float)
    parser = Parser("train.py", description=description,
                    unknown="the folder goes after --data; not an option")

    def add(name, help, **kind):
        real, synthetic, paper = defaults[name]
        said = f" (default {real}" + (f"; synthetic roads: {synthetic}" if synthetic != real else "") + (
            f"; paper: {paper}" if paper != real else "") + ")"
        parser.add_argument("--" + name.replace("_", "-"), default=None, **kind,
                            help=help + (said if real is not False and name != "recipe" else ""))

    parser.add_argument("--data", metavar="DIR", type=matching("(?s).+", "a folder"),
                        help="KITTI Road, PASCAL VOC, or images and masks (default: synthetic roads)")
    parser.add_argument("--out", metavar="DIR", help="folder of this run (default runs/NAME, the first free)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out from its last.pt")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    add("recipe", "where the values of all other options come from: this project's defaults, or the paper's authors",
        choices=("default", "paper"))
    add("task", "KITTI ground truth", choices=("road", "lane"))
    add("classes", "names of the classes to tell apart, with commas between, the others as background; or all", metavar="A,B")
    add("weights", "to begin with: ImageNet's converted (auto: weights/vgg16.pth, else a download), a best.pt, or none",
        metavar="PATH")
    add("epochs", f"passes over the training images; auto is {GPU_EPOCHS}, on a processor {CPU_EPOCHS}, of few images as many "
        f"as make {LEAST_STEPS} steps, and with --recipe paper as many as the authors' steps", type=whole_or_auto, metavar="N")
    add("batch_size", "images in a step", type=whole, metavar="N")
    add("crop", "largest training window, HxW, or none", metavar="HxW",
        type=matching(r"none|[1-9]\d{0,6}x[1-9]\d{0,6}", "none or a size, HxW"))
    add("lr", "largest learning rate", type=positive)
    add("seed", "of everything random but the split", type=natural, metavar="N")
    add("save_every", "steps between checkpoints: at most so many are lost", type=whole, metavar="N")
    add("split_seed", "of the held-out images, where the folder does not name them", type=natural, metavar="N")
    add("device", "auto, cpu, cuda or cuda:N", metavar="NAME")
    add("amp", "bf16 arithmetic", choices=("auto", "bf16", "off"))
    add("pad", "padding of conv1_1: 1, or 100 for the authors' network", type=whole, metavar="N")
    add("stride", "FCN-8s, FCN-16s or FCN-32s", type=int, choices=(8, 16, 32))
    add("width", "factor on the channels of VGG16", type=positive)
    add("fc_channels", "channels of fc6 and fc7, or auto: as the weights have them", type=whole_or_auto, metavar="N")
    add("dropout", "share of fc6 and fc7 set to zero in training", type=matching(r"0?\.\d+|0", "a number from 0 to 1", float))
    add("skip_scale", "factors on pool4 and pool3: A,B or auto: so that both weigh twice as much as fc7", metavar="A,B",
        type=matching(f"auto|{number},{number}", "auto or two positive numbers, A,B"))
    add("class_weights", "what a pixel counts in the loss: alike, by 1 / sqrt(frequency of its class), or auto: sqrt where "
        "mean IoU is the goal", choices=("auto", "none", "sqrt"))
    add("flip", "mirror half the training views, or auto: not where --task is lane", choices=("auto", "yes", "no"))
    add("recompute", "compute activations twice instead of keeping them", action="store_const", const=True)
    add("compile", "compile the network with torch.compile", action="store_const", const=True)
    add("learn_upsampling", "train the transposed convolutions too", action="store_const", const=True)
    add("workers", "threads that read images", type=natural, metavar="N")
    return vars(parser.parse_args(argv))
