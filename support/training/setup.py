"""Prepares everything that the training loop works with: settings, data, network, optimizer, and
the folder of the run.

A new run begins at step 0. On --resume, the settings and the state come from the run's last.pt. The
first process makes the checks, reads all files and writes; others wait until it is through
(support/ranks.py).
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, TextIO

import numpy as np
import PIL
import torch
from torch import nn

from data import find
from fcn import FCN8s
from support.checkpoint import holds_network, load_last, restored_network
from support.console import DATA_OPTIONS, InputError, one_line, parse_size
from support.datasets import synthetic as roads
from support.datasets.check import check_counts, describe, extent, read_everything, weigh_classes
from support.datasets.images import Reader
from support.device import autocast_for, keep_memory, pick_device, recompute
from support.files import write_text
from support.labels import DataSet, paths_below
from support.training.batches import suited_workers
from support.training.distributed import Ranks
from support.training.initialise import begin_network, freeze, read_weights
from support.training.loss_scale import LossScale
from support.training.optimizer import sgd
from support.training.options import check_settings, resolve_auto, settle, suited_scale
from support.training.run_dir import Saving, choose_folder, give_up, lock_folder

SYNTHETIC = (
    Path(__file__).resolve().parents[2] / "runs" / "synthetic-roads"
)  # drawn once, read by every run without --data


@dataclass
class Run:
    """What the loop works with. The last five are the state that the loop takes over and saves
    again.
    """

    out: Path  # the folder of the run
    lock: TextIO | None  # open while this run holds the lock of its folder
    about: dict  # what every checkpoint says besides weights and state
    settings: dict  # every option and default, after `resolve_auto`
    ranks: Ranks
    device: torch.device
    data: DataSet
    reader: Reader
    crop: tuple[int, int] | None  # the largest training view at scale 1, (height, width)
    workers: int  # threads that load images
    saving: Saving  # writes the checkpoints
    steps_per_epoch: int
    total_steps: int
    net: FCN8s
    model: nn.Module  # what the loop calls: net, compiled or shared among processes
    optimizer: torch.optim.SGD
    autocast: Callable  # the context of the forward pass
    loss_scale: LossScale  # of training in fp16
    class_weights: torch.Tensor | None
    give_back: Callable  # called after each step with the shape of its images
    step: int  # steps done
    best: float  # the value of the measure by which the best network so far was kept
    log: list[dict]  # a row for each epoch
    loss_sum: torch.Tensor  # the losses of the epoch so far
    spent: float  # its seconds so far, before the run was interrupted


def set_up(options: dict, defaults: dict[str, tuple], ranks: Ranks) -> Run:
    """The Run that the options ask for, and lines on standard output that say what it is.

    Raises InputError for what cannot be used; then no folder of a new run has been made. ImageNet's
    weights may have been downloaded, and synthetic roads drawn.
    """
    ranks.silence_others()
    ranks.wait_for_first()
    out = choose_folder(options["out"], options["resume"], options["data"], claim=ranks.first)
    try:
        return prepare(options, defaults, ranks, out)
    except BaseException:
        if not options["out"] and ranks.first:
            give_up(out)
        raise


def prepare(options: dict, defaults: dict[str, tuple], ranks: Ranks, out: Path) -> Run:
    """`set_up` in the folder that has been chosen."""
    lock = lock_folder(out, resume=True) if options["resume"] and ranks.first else None
    saved = load_last(out) if options["resume"] else None
    settings = settle(options, saved, defaults)
    check_settings(settings, ranks, options["resume"])
    device = pick_device(settings["device"], ranks.local)
    give_back = keep_memory(device)

    folder = settings["data"] or synthetic_roads(SYNTHETIC)
    if saved and not Path(folder).is_dir():
        raise InputError(
            f"{folder}: no such folder; if the run's data lies elsewhere now, say where with --data"
        )
    data = find(folder, **{name: settings[name] for name in DATA_OPTIONS})
    print(data.summary)
    images = [paths_below(folder, part) for part in (data.train, data.val)]
    if saved:
        refuse_other_data(folder, data.classes, images, saved)
    reader, crop, pixels, sizes = Reader(data.read_label), parse_size(settings["crop"]), None, None
    if ranks.first:
        counts = read_everything(data.train + data.val, data, reader)
        print(describe(counts, data))
        pixels, sizes = (
            counts.pixels[: len(data.train)].sum(0),
            extent(counts.sizes[: len(data.train)]),
        )
        check_counts(counts, data, crop if options["crop"] else None)
        settings["scale"] = suited_scale(settings, data, sizes)
        if settings["scale"] != 1:
            print(f"the network sees the images at {settings['scale']:g} times their size")
    elif settings["scale"] == "auto":
        settings["scale"] = 1.0  # until the first process says what it is, below

    weights, path = (
        read_weights(settings["weights"], settings["width"]) if not saved else (None, None)
    )
    steps_per_epoch = math.ceil(len(data.train) / settings["batch_size"])
    resolve_auto(settings, data, device, weights, steps_per_epoch)
    net = (
        restored_network(saved)
        if saved
        else begin_network(settings, data, reader, crop, weights, path)
    )
    freeze(net.vgg, settings["freeze"])
    if settings["freeze"]:
        print(f"blocks 1 to {settings['freeze']} of VGG16 stay as they are (--freeze)")
    net = net.to(device)  # the weights stay contiguous; the images are channels_last
    optimizer = sgd(net, settings)
    total_steps = settings["epochs"] * steps_per_epoch
    step, best, log, loss_sum, spent = 0, -1.0, [], torch.zeros((), device=device), 0.0
    if saved:
        step, best, log, loss_sum = (
            saved["step"],
            saved["best"],
            saved["log"],
            saved["loss_sum"].to(device),
        )
        spent = saved.get("spent", 0.0)  # checkpoints of earlier versions have none
        if total_steps < step:
            raise InputError(
                f"--epochs {settings['epochs']}: the run has done {math.ceil(step / steps_per_epoch)} already"
            )
        try:
            optimizer.load_state_dict(saved["optimizer"])
            for (
                group
            ) in optimizer.param_groups:  # the checkpoint brings those of the machine that wrote it
                group.update({name: optimizer.defaults[name] for name in ("fused", "foreach")})
        except (KeyError, ValueError) as error:
            raise InputError(
                f"{out}: the checkpoint's momentum is not that of its weights ({one_line(error)})"
            ) from None
        if log and not holds_network(out / "best.pt"):
            best = best_is_lost(out / "best.pt", settings["epochs"], left=total_steps - step)
        print(f"{out}: going on after step {step}")

    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
    }
    about = {
        "config": net.config,
        "classes": data.classes,
        "images": images,
        "sizes": sizes,
        "settings": settings,
        "versions": versions,
    }
    if ranks.first:
        lock = lock or lock_folder(
            out, resume=False
        )  # only now: a mistyped command leaves nothing behind
        write_text(
            out / "config.json", json.dumps({**about, "device": str(device)}, indent=2) + "\n"
        )
    ranks.let_others_in()
    out, pixels, skip_scale, settings["scale"] = ranks.gather(
        (out, pixels, net.config["skip_scale"], settings["scale"])
    )[0]
    net.set_skip_scale(*skip_scale)  # as the first process has measured it
    class_weights = (
        torch.from_numpy(weigh_classes(pixels)).to(device)
        if settings["class_weights"] == "sqrt"
        else None
    )
    model = callable_model(net, settings, ranks)
    autocast = autocast_for(settings["amp"], device)
    loss_scale = LossScale(settings["amp"], saved.get("loss_scale") if saved else None)
    workers, saving = (
        suited_workers(settings["workers"], device),
        Saving(settings["save_every"], device),
    )
    return Run(
        out,
        lock,
        about,
        settings,
        ranks,
        device,
        data,
        reader,
        crop,
        workers,
        saving,
        steps_per_epoch,
        total_steps,
        net,
        model,
        optimizer,
        autocast,
        loss_scale,
        class_weights,
        give_back,
        step,
        best,
        log,
        loss_sum,
        spent,
    )


def synthetic_roads(folder: Path) -> Path:
    """The folder of synthetic roads, drawn if it is not there."""
    if not folder.is_dir():
        print(f"drawing synthetic roads into {folder}")
        roads.write(folder)
    return folder


def refuse_other_data(folder, classes: list[str], images: list[list[str]], saved: dict):
    """Raise InputError if a run to resume had other classes or images."""
    if classes != saved["classes"]:
        raise InputError(
            f"{folder}: has the classes {classes}, the run to resume {saved['classes']}"
        )
    if not any(
        "/" in name for part in saved["images"] for name in part
    ):  # a checkpoint of earlier versions has names alone
        images = [[Path(name).name for name in part] for part in images]
    if images != saved["images"]:
        raise InputError(
            f"{folder}: has {len(images[0])} + {len(images[1])} images, the run to resume "
            f"{len(saved['images'][0])} + {len(saved['images'][1])}, or others; begin a new run with these"
        )


def best_is_lost(path: Path, epochs: int, left: int) -> float:
    """Say that best.pt is lost. Returns the value that the next network has to beat: -1, which any
    does.

    Raises InputError if no step is `left` in which another network could be found.
    """
    if not left:
        raise InputError(
            f"{path}: is lost, and the run has no epoch left to find another; last.pt has the last network; or go "
            f"on with --epochs {epochs + 1}"
        )
    print(f"{path}: is lost; the best of the epochs to come takes its place")
    return -1.0


def callable_model(net: FCN8s, settings: dict, ranks: Ranks) -> nn.Module:
    """The network as the loop calls it: with activations recomputed, compiled, or shared among
    processes.
    """
    if settings["recompute"]:
        recompute(net.vgg)
    model = net
    if settings["compile"]:
        torch._dynamo.config.optimize_ddp = (
            False  # older releases cannot split a compiled network with checkpoints in it
        )
        model = torch.compile(net)
    if ranks.size > 1:
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    return model
