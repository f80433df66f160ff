"""python train.py --data DIR: train FCN-8s on KITTI Road, PASCAL VOC, or pictures and masks (layouts: data.py).
python train.py: the same on synthetic roads (roads.py), with a network reduced to a size for two processor cores.

In the folder --out (default runs/NAME): config.json, log.csv, curves.png, samples.png, best.pt, and last.pt, from which
--resume goes on with the very steps that a run without interruption would have made.
Exit status: 0 done, 2 input that cannot be used, 130 or 143 stopped by SIGINT (Ctrl-C) or SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from signal import Signals

import numpy as np
import PIL
import torch
from torch import nn

import roads
from batches import batches, class_weights, on_device, training_batches
from data import Reader, find
from draw import draw_curves, draw_samples
from fcn import IGNORE, FCN8s, classify, loss
from metrics import TITLES, RoadScores, columns, confusion, report, scores
from ranks import Ranks
from run import (Progress, Stop, Stopped, Waiting, check_images, choose_folder, is_whole, keep_memory, like, load_checkpoint,
                 one_line, open_run, pick_device, settle, size, use_bf16, write_log, write_text)
from start import build
from vgg import InputError, read_tensors, save_tensors

HERE = Path(__file__).resolve().parent

# Every default, once. The first value holds with --data. The second holds for the synthetic roads, which must train from
# scratch in a few minutes on a processor. The third is that of the networks that the authors released with the paper's
# longer version (Shelhamer, Long and Darrell 2017; solver.prototxt of voc-fcn8s-atonce), for --recipe paper.
#                     real        synthetic   paper
DEFAULTS = {
    "recipe":        ("default", "default",  "paper"),
    "epochs":        ("auto",     22,         "auto"),     # by the device and the number of images, see GPU_EPOCHS
    "batch_size":    (1,          2,          1),          # 1: least memory, and the most steps per epoch
    "crop":          ("384x1248", "96x320",   "none"),     # largest part of an image to train on: here the whole, since what
                                                           # an image's edges look like is part of what is learnt
    "lr":            (2e-3,       2e-2,       1e-10),      # of the mean loss, of which a small fresh network bears more; paper:
                                                           # of the sum
    "width":         (1.0,        0.25,       1.0),        # factor on the channels of VGG16
    "fc_channels":   ("auto",     256,        4096),       # of fc6 and fc7. auto: as the weights have them; 512 where those are
                                                           # convolutions alone, see start.suited_channels
    "weights":       ("auto",     "none",     "auto"),     # ImageNet is worth many thousand labels; the demo needs no download
    "dropout":       (0.1,        0.1,        0.5),        # 0.5 is made for trained fc6 and fc7; of fresh ones the scores with
                                                           # and without dropout then disagree
    "skip_scale":    ("auto",     "auto",     "0.01,0.0001"),  # factors on pool4 and pool3, see start.balance
    "task":          ("road",     "road",     "road"),     # KITTI's ground truth: road or lane
    "classes":       ("all",      "all",      "all"),      # or names with commas between; the others become background
    "class_weights": ("auto",     "auto",     "none"),     # sqrt, rare classes count more (batches.class_weights), where mean
                                                           # IoU is the goal; none for a road: MaxF finds its own threshold
    "flip":          ("auto",     "auto",     "no"),       # yes: half the views mirrored; no for lane: in a mirror the own lane
                                                           # is the left one, and a network taught both marks both
    "pad":           (1,          1,          100),        # 1, no border: the same network with a third less work (fcn.py)
    "stride":        (8,          8,          8),          # FCN-8s
    "learn_upsampling": (False,   False,      False),      # bilinear and fixed, as in the authors' networks
    "amp":           ("auto",     "auto",     "off"),      # bf16 where the hardware computes in it
    "device":        ("auto",     "auto",     "auto"),     # CUDA if there is one
    "workers":       (2,          2,          2),          # threads that read and augment
    "seed":          (0,          0,          0),          # initialisation, order, augmentation, dropout
    "save_every":    (500,        500,        500),        # steps; besides every SAVE_SECONDS. A full network's takes seconds
    "recompute":     (False,      False,      False),      # less memory in training for a third more time (vgg.py)
    "compile":       (False,      False,      False),      # torch.compile; needs a C++ compiler, and minutes to begin with
    "split_seed":    (0,          0,          0),          # held-out images: not `seed`, so that runs are scored on the same
    # Not options, since they belong together:
    "loss":          ("mean",     "mean",     "sum"),      # over the valid pixels
    "momentum":      (0.9,        0.9,        0.99),
    "weight_decay":  (5e-4,       5e-4,       5e-4),       # of weights; biases are not decayed and learn at twice the rate
    "warmup":        (0.05,       0.05,       0.0),        # share of the steps in which the rate grows from 0: fresh layers
                                                           # start with huge gradients
    "power":         (0.9,        0.9,        0.0),        # then it falls as (1 - progress) ** power
    "clip":          (5.0,        5.0,        0.0),        # largest norm of the gradient, 0: any
    "augment":       (True,       True,       False),      # random views of the training images (batches.augment)
    "colours":       (True,       False,      False),      # other colours too; the demo has no time to learn those
}
# What --resume may change: how long (the rate then follows the new length) and where, and the path of the same images.
FREE_ON_RESUME = {"epochs", "device", "workers", "save_every", "data", "recompute"}
# What --epochs auto comes to:
GPU_EPOCHS = 60     # KITTI Road: 60 x 231 steps
CPU_EPOCHS = 14     # on a processor, where 60 of KITTI Road would take 17 hours
LEAST_STEPS = 1200  # few images are seen more often than that
PAPER_STEPS = {"at once": 300_000, "stage": 100_000}  # of --recipe paper
SAVE_SECONDS = 300  # a checkpoint at least as often: no more work is lost, for about a hundredth of the time
SYNTHETIC = HERE / "runs" / "synthetic-roads"  # drawn there once, read from there by every run without --data


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (above). What went wrong is one line on stderr."""
    options, ranks = parse(argv), Ranks()
    try:
        with Stop() as stop:
            train(options, stop, ranks)
        ranks.leave()
    except Stopped as stopped:
        ranks.leave()
        if ranks.first:
            quote = shlex.quote if os.name != "nt" else '"{}"'.format
            print(f"stopped by {Signals(stopped.signal).name}; go on with: python train.py --resume --out "
                  f"{quote(str(stopped.out))}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:  # while setting up: nothing has been learnt that could be lost
        print("stopped before the first step", file=sys.stderr)
        return 130
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        message = one_line(error, "--recompute needs less" if options["resume"] else
                           "a smaller --crop or --batch-size needs less, and so does --recompute") or ranks.lost(error)
        if options["debug"] or not message:
            raise
        print(f"train.py: error: {message}", file=sys.stderr)
        return 2
    return 0


def train(options: dict, stop: Stop, ranks: Ranks):
    """The whole of training, top to bottom. `options` are the command line's, None where nothing was said.

    `ranks` are the processes in which it runs at the same time, usually one.
    """
    ranks.join(first=False)
    out = choose_folder(options["out"], options["resume"], options["data"])
    lock = open_run(out, resume=True) if options["resume"] and ranks.first else None
    saved = load_checkpoint(out) if options["resume"] else None
    settings = settle(options, saved, DEFAULTS, FREE_ON_RESUME)
    if settings["crop"] != "none" and not settings["augment"]:
        raise InputError("--crop: --recipe paper trains on whole images; leave it out")
    if settings["batch_size"] < ranks.size:
        raise InputError(f"--batch-size {settings['batch_size']}: is divided among {ranks.size} processes, each needs an image")
    if ranks.size > 1 and settings["device"].startswith("cuda:"):
        raise InputError(f"--device {settings['device']}: each process takes a GPU of its own; say --device cuda")
    if not saved and settings["weights"] not in ("auto", "none") and not Path(settings["weights"]).is_file():
        raise InputError(f"{settings['weights']}: no such file of weights; see weights/README.md, or --weights none")
    device = pick_device(settings["device"], ranks.local)
    give_back = keep_memory(device)
    amp = use_bf16(settings["amp"], device)
    settings["amp"] = "bf16" if amp else "off"  # a run goes on as it began, on whatever machine
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16)) if amp else nullcontext
    torch.manual_seed(settings["seed"])

    # Data
    folder = settings["data"] or synthetic_roads(SYNTHETIC)
    data = find(folder, settings["task"], settings["split_seed"], settings["classes"])
    print(data.found)
    names = [[sample.image.name for sample in part] for part in (data.train, data.val)]
    if saved and data.classes != saved["classes"]:
        raise InputError(f"{folder}: has the classes {data.classes}, the run to resume {saved['classes']}")
    if saved and names != saved["images"]:
        raise InputError(f"{folder}: has {len(names[0])} + {len(names[1])} images, the run to resume "
                         f"{len(saved['images'][0])} + {len(saved['images'][1])}, or others; begin a new run with these")
    reader = Reader(data.read_label)
    crop, counts = size(settings["crop"]), None
    if ranks.first:
        counts = check_images(data, reader, crop if options["crop"] else None)

    if settings["flip"] == "auto":
        settings["flip"] = "no" if settings["task"] == "lane" else "yes"
    if settings["class_weights"] == "auto":
        settings["class_weights"] = "sqrt" if data.road is None else "none"

    # Network and optimizer
    net = build(settings, data, reader, saved).to(device)  # weights stay contiguous; the images are channels_last
    net.vgg.recompute = settings["recompute"]
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    optimizer = sgd(net, settings)

    steps_per_epoch = math.ceil(len(data.train) / settings["batch_size"])
    if settings["epochs"] == "auto":
        settings["epochs"] = suited_epochs(settings, steps_per_epoch, device)
    total_steps = settings["epochs"] * steps_per_epoch
    if saved and total_steps < saved["step"]:
        raise InputError(f"--epochs {settings['epochs']}: the run has done "
                         f"{math.ceil(saved['step'] / steps_per_epoch)} already")
    step, best, log, loss_sum = 0, -1.0, [], torch.zeros((), device=device)
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        step, best, log, loss_sum = saved["step"], saved["best"], saved["log"], saved["loss_sum"].to(device)
        if log and not is_whole(out / "best.pt"):
            if step >= total_steps:
                raise InputError(f"{out / 'best.pt'}: is lost, and the run has no epoch left to find another; last.pt has the "
                                 f"last network; or go on with --epochs {settings['epochs'] + 1}")
            print(f"{out / 'best.pt'}: is lost; the best of the epochs to come takes its place")
            best = -1.0
        print(f"{out}: going on after step {step}")
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__,
                "pillow": PIL.__version__}
    about = {"config": net.config, "classes": data.classes, "images": names, "settings": settings,
             "versions": versions}
    if ranks.first:
        lock = lock or open_run(out, resume=False)  # only now: a mistyped command leaves nothing behind
        write_text(out / "config.json", json.dumps({**about, "device": str(device)}, indent=2) + "\n")
    ranks.join(first=True)
    out, counts = ranks.gather((out, counts))[0]
    weights = class_weights(counts).to(device) if settings["class_weights"] == "sqrt" else None
    model = net
    if settings["compile"]:
        torch._dynamo.config.optimize_ddp = False  # older releases cannot split a compiled network with checkpoints in it
        model = torch.compile(net)
    if ranks.size > 1:
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    where = f"{ranks.size} times {device.type}" if ranks.size > 1 else device
    print(f"{trained:,} trainable parameters on {where}{', bf16' if amp else ''}; "
          f"{settings['epochs']} epochs of {steps_per_epoch} steps; results in {out}")

    diverged = torch.zeros((), dtype=torch.int64, device=device)  # the step at which something was not finite

    def refuse_divergence():
        """Raise if the loss or its gradient was not finite in any step so far: nothing of that shall reach the disk."""
        if diverged.item():
            if not ranks.first:
                raise SystemExit(2)  # all processes know it, one says it
            rate = learning_rate(diverged.item() - 1, total_steps, settings)
            raise InputError(f"the loss was not finite at step {diverged.item()}, at a rate of {rate:.2g}; nothing of it is "
                             f"saved. Start again with a smaller --lr than {settings['lr']:g} and another --out")

    def save_checkpoint():
        refuse_divergence()
        if ranks.first:
            save_tensors({**about, "model": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "best": best,
                          "log": log, "loss_sum": loss_sum}, out / "last.pt", before=out / "before.pt")

    measure = partial(evaluate, net, data, reader=reader, device=device, autocast=autocast, workers=settings["workers"],
                      ranks=ranks, stop=stop)
    shown = sorted({i * len(data.val) // 4 for i in range(4)})
    progress = Progress(total_steps, step, images=settings["batch_size"])
    saved_at = time.perf_counter()
    stop.listen()
    for epoch in range(len(log) + 1, settings["epochs"] + 1):
        net.train()
        torch.backends.cudnn.benchmark = settings["augment"]  # on a GPU, try all algorithms for each size: views have few
        started = time.perf_counter()
        done = step - (epoch - 1) * steps_per_epoch  # not 0 in an epoch that was interrupted
        waiting = Waiting(on_device(training_batches(reader, data.train, epoch, crop, settings, ranks, done), device))
        for images, labels in waiting:
            # Dropout follows from the step: there is no random state to save.
            torch.manual_seed(seed_of(settings["seed"], step, ranks.rank))
            rate = learning_rate(step, total_steps, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["times"]

            value, norm = learn(model, optimizer, images, labels, settings, autocast, ranks, weights)
            give_back(images.shape)

            step += 1
            loss_sum += value
            diverged = torch.where(torch.isfinite(value + norm) | (diverged > 0), diverged, step)
            asked = ranks.largest(stop.asked)
            if asked or step % settings["save_every"] == 0 or time.perf_counter() > saved_at + SAVE_SECONDS:
                save_checkpoint()
                saved_at = time.perf_counter()
            if asked:
                raise Stopped(asked, out)
            if progress.due():  # seldom: reading the loss makes the device wait
                progress.show(f"epoch {epoch}  step {step}/{total_steps}  loss {value.item():.4f}  rate {rate:.2e}")

        trained_at = time.perf_counter()
        result, pictures = measure(data.val, shown=shown, weights=weights)
        refuse_divergence()
        if asked := ranks.largest(stop.asked):
            save_checkpoint()
            raise Stopped(asked, out)
        rate = learning_rate(step - 1, total_steps, settings)
        row = {"epoch": epoch, "step": step, "lr": rate, "seconds": round(time.perf_counter() - started, 1),
               "evaluation_seconds": round(time.perf_counter() - trained_at, 1),
               "data_wait": round(waiting.seconds / max(trained_at - started, 1e-9), 4),
               "train_loss": loss_sum.item() / steps_per_epoch, "val_loss": result["loss"],
               **columns(result, data.classes)}
        log.append(row)
        loss_sum = torch.zeros((), device=device)
        goal, score = TITLES.get(result["goal"], result["goal"]), result[result["goal"]]
        better = len(log) == 1 or score > best
        iou = f"IoU {data.classes[1]} {100 * result['iou'][1]:.2f} %, " if data.road else ""
        progress.line(f"epoch {epoch}/{settings['epochs']}: loss {row['train_loss']:.4f}, held out: loss {row['val_loss']:.4f}, "
                      f"{iou}{goal} {100 * score:.2f} %{', the best so far' if better else ''}")
        if better:
            best = score
        if ranks.first:
            write_log(out / "log.csv", log)
            draw_curves(out / "curves.png", log, data.classes)
            if better:
                draw_samples(out / "samples.png", pictures, data.classes, f"held out, epoch {epoch}")
                save_tensors({**about, "model": net.state_dict(), "epoch": epoch, "best": best, "result": result},
                             out / "best.pt")
    save_checkpoint()

    # The final word is the best network's: on the held-out images and, to show how much of it is memory, on some of
    # those it was trained on; and there the last network's, to show how much memory there can be.
    some = data.train[::math.ceil(len(data.train) / 100)]
    last, _ = measure(some)
    if ranks.first:
        checkpoint = read_tensors(out / "best.pt")
        net.load_state_dict(checkpoint["model"])
    ranks.spread(net)
    known, _ = measure(some)
    if asked := ranks.largest(stop.asked):
        raise Stopped(asked, out)
    if ranks.first:
        print(f"\nbest network, of epoch {checkpoint['epoch']}, per cent:\n"
              f"{report({'held out': checkpoint['result'], 'training': known}, data.classes)}\n"
              f"training: {len(some)} of the {len(data.train)} images, as a sample\n\n"
              f"last network, of epoch {len(log)}, IoU on training images: "
              f"{', '.join(f'{name} {100 * iou:.2f}' for name, iou in zip(data.classes, last['iou']))}\n"
              f"pictures: {out / 'samples.png'} and {out / 'curves.png'}\n"
              f"to see what it sees in others: python predict.py {out / 'best.pt'} PICTURE")
        lock.close()


def sgd(net: FCN8s, settings: dict) -> torch.optim.SGD:
    """The optimizer (section 4.3): each group's rate is `times` the schedule's, twice for biases."""
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name.endswith("weight")], "times": 1, "weight_decay": settings["weight_decay"]},
        {"params": [p for name, p in trained if name.endswith("bias")], "times": 2, "weight_decay": 0.0},
    ]
    # fused: one pass over 134 M numbers, not five. On a GPU, where that is little, PyTorch 2.4 would refuse the strides that
    # channels_last gives to gradients of 1x1 convolutions.
    fused = True if trained[0][1].device.type == "cpu" else None
    return torch.optim.SGD(groups, lr=0.0, momentum=settings["momentum"], fused=fused)


def learn(model, optimizer, images, labels, settings, autocast, ranks, weights=None) -> tuple[torch.Tensor, torch.Tensor]:
    """One step: (mean loss of the whole batch, norm of the gradient before clipping), still on the device: reading
    them would wait for it.

    images, labels    this process's share of the batch, as `on_device` gives them
    weights           of the classes, None if all count alike
    """
    optimizer.zero_grad()
    with autocast():
        output = model(images)
    pixels = ranks.sum((labels != IGNORE).sum())
    value = loss(output, labels, pixels, weights)  # this share's part in the mean over all valid pixels of the batch
    goal = value * pixels if settings["loss"] == "sum" else value
    (ranks.size * goal).backward()        # DistributedDataParallel takes the mean of the shares' gradients, not the sum
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, settings["clip"] or math.inf)
    optimizer.step()
    return ranks.sum(value.detach()), norm


def learning_rate(step: int, total: int, settings: dict) -> float:
    """Rate of step 0 ... total - 1: up in a straight line during the `warmup` share of them, then poly down to 0."""
    warmup = max(1, round(settings["warmup"] * total))
    if step < warmup:
        return settings["lr"] * (step + 1) / warmup
    return settings["lr"] * (1 - (step - warmup) / max(1, total - warmup)) ** settings["power"]


def seed_of(*numbers: int) -> int:
    """A seed for PyTorch that follows from some numbers."""
    return int(np.random.default_rng(numbers).integers(2 ** 63))


def evaluate(net, data, samples, reader, device, autocast, workers, ranks, shown=(), stop=None, weights=None,
             ) -> tuple[dict, list]:
    """(result, pictures) over whole images at their own size, one at a time. Ends early, with a part, once `stop` is asked.

    result    `scores` of the pooled confusion matrix; `loss`, the mean over images, with the `weights` of training; where one
              class is sought (KITTI's road) `road`, the results of RoadScores, and `MaxF` of all in the image; `goal`:
              which of them says that a network is better
    pictures  (image, truth, prediction), uint8 arrays, of the samples with the indices in `shown`
    """
    net.eval()
    torch.backends.cudnn.benchmark = False  # whole images may have many sizes
    matrix = torch.zeros(len(data.classes), len(data.classes), dtype=torch.int64, device=device)
    loss_sum, road, pictures = torch.zeros((), device=device), RoadScores(), {}
    mine = ranks.share(list(range(len(samples))))
    with autocast():  # around all images: so the convolutions' weights are turned to bf16 once
        for i, (images, labels) in zip(mine, on_device(batches([[samples[i]] for i in mine], reader, workers), device)):
            predicted, confidence, value = classify(net, images, net.reach, road=data.road, labels=labels, weights=weights)
            matrix += confusion(predicted, labels[0], len(data.classes))
            loss_sum += value
            if data.road:
                road.add_sample(samples[i], confidence, labels[0])
            if i in shown:
                pictures[i] = (*reader(samples[i]), predicted.cpu().numpy())
            if stop and stop.asked:
                break
    parts = ranks.gather((matrix.cpu(), loss_sum.item(), road, pictures))
    matrix, loss_sum = sum(part[0] for part in parts), sum(part[1] for part in parts)
    road = sum((part[2] for part in parts), RoadScores())
    pictures = dict(sorted(item for part in parts for item in part[3].items()))
    result = {**scores(matrix), "loss": loss_sum / len(samples), "goal": "mean_iou"}
    if data.road:
        result.update(road=road.results(), MaxF=road.pooled()["MaxF"])
        result["goal"] = "mean_iou" if math.isnan(result["MaxF"]) else "MaxF"  # nan: no pixel is road
    return result, list(pictures.values())


# ---- setting up -----------------------------------------------------------------------------------------------------

def suited_epochs(settings: dict, steps_per_epoch: int, device: torch.device) -> int:
    """The length of a run that was not told, in epochs."""
    if settings["recipe"] == "paper":
        at_once = settings["stride"] == 8 and settings["skip_scale"] == DEFAULTS["skip_scale"][2]
        return math.ceil(PAPER_STEPS["at once" if at_once else "stage"] / steps_per_epoch)
    epochs = CPU_EPOCHS if device.type == "cpu" else GPU_EPOCHS
    return max(epochs, math.ceil(LEAST_STEPS / steps_per_epoch))


def synthetic_roads(folder: Path) -> Path:
    if not folder.is_dir():
        print(f"drawing synthetic roads into {folder}")
        roads.write(folder)
    return folder


def parse(argv) -> dict:
    number = r"(?!0*\.?0*(e|,|$))\d*\.?\d+(e[+-]?\d{1,2})?"  # not nought, in any spelling
    whole = like(r"[1-9]\d{0,17}", "a whole number from 1 up", int)
    whole_or_auto = like(r"auto|[1-9]\d{0,17}", "auto or a whole number from 1 up", lambda it: it if it == "auto" else int(it))
    natural = like(r"\d{1,18}", "a whole number", int)
    positive = like(number, "a positive number", float)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(  # one line, without the usage
        2, f"train.py: error: {message.replace('unrecognized arguments: ', 'the folder goes after --data; not an option: ')}\n")

    def add(name, help, **kind):
        real, synthetic, paper = DEFAULTS[name]
        said = f" (default {real}" + (f"; synthetic roads: {synthetic}" if synthetic != real else "") + (
            f"; paper: {paper}" if paper != real else "") + ")"
        parser.add_argument("--" + name.replace("_", "-"), default=None, **kind,
                            help=help + (said if real is not False and name != "recipe" else ""))

    parser.add_argument("--data", metavar="DIR", type=like("(?s).+", "a folder"),
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
    add("crop", "largest training window, HxW, or none", type=like(r"none|[1-9]\d{0,6}x[1-9]\d{0,6}", "none or a size, HxW"),
        metavar="HxW")
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
    add("dropout", "share of fc6 and fc7 set to zero in training", type=like(r"0?\.\d+|0", "a number from 0 to 1", float))
    add("skip_scale", "factors on pool4 and pool3: A,B or auto: so that both weigh twice as much as fc7", metavar="A,B",
        type=like(f"auto|{number},{number}", "auto or two positive numbers, A,B"))
    add("class_weights", "what a pixel counts in the loss: alike, by 1 / sqrt(frequency of its class), or auto: sqrt where "
        "mean IoU is the goal", choices=("auto", "none", "sqrt"))
    add("flip", "mirror half the training views, or auto: not where --task is lane", choices=("auto", "yes", "no"))
    add("recompute", "compute activations twice instead of keeping them", action="store_const", const=True)
    add("compile", "compile the network with torch.compile", action="store_const", const=True)
    add("learn_upsampling", "train the transposed convolutions too", action="store_const", const=True)
    add("workers", "threads that read images", type=natural, metavar="N")
    return vars(parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
