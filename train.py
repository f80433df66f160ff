"""python train.py --data DIR: train FCN-8s on KITTI Road, or on pictures and masks (data.py shows the layouts).
python train.py: the same on synthetic roads (roads.py), with a network reduced to a size for two processor cores.

In the folder --out (default runs/NAME): config.json, log.csv, curves.png, samples.png, last.pt and best.pt.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import re
import sys
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import nn

import roads
from data import Reader, augment, batches, collate, find, normalise, on_device
from draw import draw_curves, draw_samples
from fcn import FCN8s, balanced_skip_scale, classify, loss
from metrics import RoadScores, columns, confusion, report, scores
from vgg import InputError, load_imagenet, read_tensors, save_tensors
from weights.convert import convert, download

HERE = Path(__file__).resolve().parent
WEIGHTS = HERE / "weights" / "vgg16.pth"

# Every default, once. The first value holds with --data, the second for the synthetic roads, which must train from
# scratch in a few minutes on a processor.
#                 real        synthetic
DEFAULTS = {
    "epochs":      (60,         20),        # KITTI Road: 60 x 231 steps
    "batch_size":  (1,          2),         # 1, as the authors: least memory, and the most steps per epoch
    "crop":        ("320x960",  "none"),    # a random window of each image; evaluation is on whole images
    "lr":          (2e-3,       2e-2),      # for the mean loss; a small fresh network bears more
    "width":       (1.0,        0.25),      # factor on the channels of VGG16
    "fc_channels": (4096,       256),       # channels of fc6 and fc7
    "weights":     ("auto",     "none"),    # ImageNet is worth many thousand labelled roads; the demo needs no download
    "skip_scale":  ("auto",     "auto"),    # factors on pool4 and pool3, see build
    "task":        ("road",     "road"),    # KITTI's ground truth: road or lane
    "pad":         (1,          1),         # no border: the same network with a third less work (fcn.py)
    "stride":      (8,          8),         # FCN-8s
    "learn_upsampling": (False, False),     # bilinear and fixed, as in the authors' networks
    "amp":         ("auto",     "auto"),    # bf16 where the hardware computes in it
    "device":      ("auto",     "auto"),    # CUDA if there is one
    "workers":     (2,          2),         # threads that read and augment
    "seed":        (0,          0),         # initialisation, order, augmentation, dropout
    "split_seed":  (0,          0),         # held-out images: not `seed`, so that runs are scored on the same images
}
# The recipe behind the options.
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4    # of weights; biases are not decayed and learn at twice the rate (section 4.3)
WARMUP = 0.05          # share of all steps in which the rate grows from 0: fresh layers start with huge gradients
POWER = 0.9            # then it falls as (1 - progress) ** POWER
CLIP = 5.0             # largest norm of the gradient
# What --resume may change: how long and where, not what is learnt.
FREE_ON_RESUME = {"epochs", "device", "amp", "workers", "data"}
SYNTHETIC = HERE / "runs" / "synthetic-roads"  # drawn there once, read from there by every run without --data


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for input that cannot be used (one line on stderr)."""
    try:
        train(parse(argv))
    except InputError as error:
        print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    return 0


def train(options: dict):
    """The whole of training, top to bottom. `options` are the command line's, None where nothing was said."""
    out, saved = run_folder(options)
    settings = settle(options, saved)
    device = pick_device(settings["device"])
    amp = use_bf16(settings["amp"], device)
    autocast = (lambda: torch.autocast(device.type, torch.bfloat16)) if amp else nullcontext
    torch.manual_seed(settings["seed"])

    # Data
    folder = settings["data"] or synthetic_roads(SYNTHETIC)
    data = find(folder, settings["task"], settings["split_seed"])
    print(data.found)
    if saved and data.classes != saved["classes"]:
        raise InputError(f"{folder}: has the classes {data.classes}, the run to resume {saved['classes']}")
    reader = Reader(data.read_label)
    crop = size(settings["crop"])

    # Network and optimizer
    net = build(settings, data, reader, saved).to(device)  # weights stay contiguous; the images are channels_last
    trained = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name.endswith("weight")], "times": 1, "weight_decay": WEIGHT_DECAY},
        {"params": [p for name, p in trained if name.endswith("bias")], "times": 2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=MOMENTUM, fused=True)  # one pass over 134 M numbers, not five

    steps_per_epoch = math.ceil(len(data.train) / settings["batch_size"])
    total_steps = settings["epochs"] * steps_per_epoch
    first_epoch, best, log = 1, -1.0, []
    if saved:
        optimizer.load_state_dict(saved["optimizer"])
        first_epoch, best, log = saved["epoch"] + 1, saved["best"], saved["log"]
        print(f"{out / 'last.pt'}: going on after epoch {saved['epoch']}")
    versions = {"python": platform.python_version(), "torch": str(torch.__version__), "numpy": np.__version__,
                "pillow": PIL.__version__}
    recipe = {"momentum": MOMENTUM, "weight_decay": WEIGHT_DECAY, "warmup": WARMUP, "power": POWER, "clip": CLIP}
    about = {"config": net.config, "classes": data.classes, "settings": settings, "recipe": recipe,
             "versions": versions}
    try:
        out.mkdir(parents=True, exist_ok=True)  # only now: a mistyped command leaves nothing behind
    except OSError as error:
        raise InputError(f"{out}: cannot be made ({error.strerror})") from None
    (out / "config.json").write_text(json.dumps({**about, "device": str(device), "bf16": amp}, indent=2) + "\n")
    print(f"{sum(p.numel() for _, p in trained):,} trainable parameters on {device}{', bf16' if amp else ''}; "
          f"{settings['epochs']} epochs of {steps_per_epoch} steps; results in {out}")

    shown = sorted({i * len(data.val) // 4 for i in range(4)})
    progress = Progress(settings["epochs"] * len(data.train), (first_epoch - 1) * len(data.train))
    for epoch in range(first_epoch, settings["epochs"] + 1):
        net.train()
        torch.manual_seed(1000 * settings["seed"] + epoch)  # dropout too follows from (seed, epoch): nothing to save
        started, loss_sum = time.time(), torch.zeros((), device=device)
        step = (epoch - 1) * steps_per_epoch
        for images, labels in on_device(training_batches(reader, data.train, epoch, crop, settings), device):
            rate = learning_rate(step, total_steps, settings["lr"])
            for group in optimizer.param_groups:
                group["lr"] = rate * group["times"]

            with autocast():
                output = net(images)
            value = loss(output, labels)
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_([p for _, p in trained], CLIP)
            optimizer.step()

            step += 1
            loss_sum += value.detach()
            if progress.due(len(images)):  # seldom: reading the loss makes the device wait
                progress.show(f"epoch {epoch}  step {step}/{total_steps}  loss {value.item():.4f}  rate {rate:.2e}")

        if not math.isfinite(loss_sum.item()):
            raise InputError(f"epoch {epoch}: the loss is not finite; try a smaller --lr than {settings['lr']} (the last "
                             "whole epoch is kept in last.pt)")
        result, pictures = evaluate(net, data, data.val, reader, device, autocast, settings["workers"], shown)
        row = {"epoch": epoch, "step": step, "lr": rate, "seconds": round(time.time() - started, 1),
               "train_loss": loss_sum.item() / steps_per_epoch, "val_loss": result["loss"],
               **columns(result, data.classes)}
        log.append(row)
        write_log(out / "log.csv", log)
        draw_curves(out / "curves.png", log, data.classes)
        progress.line(f"epoch {epoch}/{settings['epochs']}: loss {row['train_loss']:.4f}, held out: loss "
                      f"{row['val_loss']:.4f}, {result['goal']} {100 * result[result['goal']]:.2f} %")

        if len(log) == 1 or result[result["goal"]] > best:
            best = result[result["goal"]]
            progress.line(report({"held out": result}, data.classes))
            draw_samples(out / "samples.png", pictures, data.classes, f"held out, epoch {epoch}")
            save_tensors({**about, "model": net.state_dict(), "epoch": epoch, "best": best,
                          "result": result}, out / "best.pt")
        save_tensors({**about, "model": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch,
                      "best": best, "log": log}, out / "last.pt")

    # The final word is the best network's: on the held-out images and, to show how much of it is memory, on some of
    # those it was trained on.
    checkpoint = read_tensors(out / "best.pt")
    net.load_state_dict(checkpoint["model"])
    some = data.train[::math.ceil(len(data.train) / 100)]
    known, _ = evaluate(net, data, some, reader, device, autocast, settings["workers"])
    print(f"\nbest network, of epoch {checkpoint['epoch']}, per cent:\n"
          f"{report({'held out': checkpoint['result'], 'training': known}, data.classes)}\n"
          f"pictures: {out / 'samples.png'} and {out / 'curves.png'}; weights: {out / 'best.pt'}")


def learning_rate(step: int, total: int, peak: float) -> float:
    """Rate of step 0 ... total - 1: up in a straight line during the first WARMUP of them, then poly down to 0."""
    warmup = max(1, round(WARMUP * total))
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (1 - (step - warmup) / max(1, total - warmup)) ** POWER


def training_batches(reader, samples, epoch: int, crop, settings):
    """The batches of one epoch: every sample once, in a random order, each seen in a random way.

    All that is random here follows from (seed, epoch, sample) alone, so it needs no state to be saved, and is the
    same for any number of workers.
    """
    seed = settings["seed"]
    order = np.random.default_rng([seed, epoch]).permutation(len(samples))

    def load(i):
        return augment(*reader(samples[i]), np.random.default_rng([seed, epoch, i]), crop)

    return batches(order.tolist(), load, settings["batch_size"], settings["workers"])


def evaluate(net, data, samples, reader, device, autocast, workers, keep=()) -> tuple[dict, list]:
    """(result, pictures) over whole images at their own size, one at a time.

    result    `scores` of the pooled confusion matrix; `loss`, the mean over images; for KITTI `road`, the results of
              RoadScores, and the benchmark's `MaxF` in the image; `goal`: which of them says that a network is better
    pictures  (image, truth, prediction), uint8 arrays, of the samples with the indices in `keep`
    """
    net.eval()
    matrix = torch.zeros(len(data.classes), len(data.classes), dtype=torch.int64, device=device)
    loss_sum, road, pictures = torch.zeros((), device=device), RoadScores(), []
    for i, (images, labels) in enumerate(on_device(batches(samples, reader, 1, workers), device)):
        with autocast():
            predicted, confidence, value = classify(net, images, net.reach, road=1 if data.kitti else None,
                                                    labels=labels)
        matrix += confusion(predicted, labels[0], len(data.classes))
        loss_sum += value
        if data.kitti:
            road.add_sample(samples[i], confidence, labels[0])
        if i in keep:
            pictures.append((*reader(samples[i]), predicted.cpu().numpy()))
    if matrix.sum() == 0:
        raise InputError(f"{samples[0].label}: in it and the {len(samples) - 1} like it no pixel has a class that counts; "
                         "compare the ids in the masks with classes.txt")
    result = {**scores(matrix), "loss": loss_sum.item() / len(samples), "goal": "mean_iou"}
    if data.kitti:
        result["road"] = road.results()
        pooled = result["road"].get(("image", "URBAN")) or result["road"]["image", "um_lane"]
        result.update(MaxF=pooled["MaxF"], goal="MaxF")
    return result, pictures


# ---- setting up -----------------------------------------------------------------------------------------------------

def build(settings, data, reader, saved) -> FCN8s:
    """The network: as it was saved, or fresh with ImageNet weights where the settings say so."""
    if saved:
        net = FCN8s(**saved["config"])
        net.load_state_dict(saved["model"])
        return net
    try:
        net = FCN8s(len(data.classes), settings["pad"], settings["stride"], settings["width"], settings["fc_channels"],
                    settings["learn_upsampling"])
    except ValueError as error:
        raise InputError(str(error)) from None
    if settings["weights"] == "auto":
        if settings["width"] != 1:
            raise InputError("ImageNet weights have no reduced width; add --weights none, or leave out --width")
        if not WEIGHTS.is_file():
            print(convert(download(), WEIGHTS))
        print(load_imagenet(net.vgg, WEIGHTS))
    elif settings["weights"] != "none":
        print(load_imagenet(net.vgg, settings["weights"]))
    if settings["skip_scale"] == "auto":
        # How large the pools are depends on the weights: around 600 at pool3 in Caffe's VGG16, 1 in a fresh network.
        # Both are brought to the size of fc7, so that one rate suits the three score layers.
        image, _ = collate([reader(data.train[0])])
        net.set_skip_scale(*balanced_skip_scale(net, normalise(image)))
    else:
        net.set_skip_scale(*map(float, settings["skip_scale"].split(",")))
    print(f"skips: pool4 times {net.scale_pool4:.2g}, pool3 times {net.scale_pool3:.2g}")
    return net


def synthetic_roads(folder: Path) -> Path:
    if not folder.is_dir():
        print(f"drawing synthetic roads into {folder}")
        roads.write(folder)
    return folder


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):  # AssertionError: a PyTorch built without CUDA
        raise InputError(f"--device {name}: PyTorch has no such device here; use --device cpu") from None
    return device


def use_bf16(amp: str, device: torch.device) -> bool:
    """Whether to compute in bf16: as told, or where the hardware has instructions for it (elsewhere it is slower)."""
    if amp != "auto":
        return amp == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # older ones only emulate it
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", flags))


def run_folder(options) -> tuple[Path, dict | None]:
    """The folder of this run and, with --resume, the checkpoint in it. A run never writes over another."""
    if options["resume"] and not options["out"]:
        raise InputError("--resume: say which run with --out runs/NAME")
    if options["out"]:
        out = Path(options["out"])
    else:
        stem = Path(options["data"]).resolve().name if options["data"] else "synthetic"
        names = [stem] + [f"{stem}-{i}" for i in range(2, 10000)]
        out = next(folder for folder in (Path("runs") / name for name in names) if not folder.exists())
    if options["resume"]:
        saved = read_tensors(out / "last.pt")
        if not {"settings", "config", "classes", "model", "optimizer", "epoch", "best", "log"} <= saved.keys():
            raise InputError(f"{out / 'last.pt'}: is not a checkpoint of train.py")
        return out, saved
    if (out / "last.pt").exists() or (out / "log.csv").exists():
        raise InputError(f"{out}: holds a run already; go on with --resume, or choose another --out")
    return out, None


def settle(options, saved) -> dict:
    """Settings in force: what was said, else (on resuming) what the run was started with, else DEFAULTS."""
    column = 0 if options["data"] else 1
    settings = {"data": options["data"], **{name: values[column] for name, values in DEFAULTS.items()}}
    settings.update(saved["settings"] if saved else {})
    for name, value in options.items():
        if name in settings and value is not None:
            if saved and name not in FREE_ON_RESUME and value != settings[name]:
                raise InputError(f"--{name.replace('_', '-')} {value}: the run to resume has {settings[name]}")
            settings[name] = value
    return settings


def parse(argv) -> dict:
    number = r"(?!0*\.?0*(e|,|$))\d*\.?\d+(e[+-]?\d{1,2})?"  # not nought, in any spelling
    whole = like(r"[1-9]\d{0,17}", "a whole number from 1 up", int)
    natural = like(r"\d{1,18}", "a whole number", int)
    positive = like(number, "a positive number", float)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"train.py: error: {message}\n")  # one line, without the usage

    def add(name, help, **kind):
        real, synthetic = DEFAULTS[name]
        said = f"{real}" if real == synthetic else f"{real}; synthetic roads: {synthetic}"
        parser.add_argument("--" + name.replace("_", "-"), default=None, help=f"{help} (default {said})", **kind)

    parser.add_argument("--data", metavar="DIR", help="KITTI Road, or images and masks (default: synthetic roads)")
    parser.add_argument("--out", metavar="DIR", help="folder of this run (default runs/NAME, the first free)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out from its last.pt")
    add("task", "KITTI ground truth", choices=("road", "lane"))
    add("weights", "ImageNet weights: a converted file, auto (weights/vgg16.pth, else download) or none", metavar="PATH")
    add("epochs", "passes over the training images", type=whole, metavar="N")
    add("batch_size", "images in a step", type=whole, metavar="N")
    add("crop", "largest training window, HxW, or none", type=like(r"none|[1-9]\d{0,6}x[1-9]\d{0,6}", "none or a size, HxW"),
        metavar="HxW")
    add("lr", "peak learning rate", type=positive)
    add("seed", "of everything random but the split", type=natural, metavar="N")
    add("split_seed", "of the held-out images, where the folder does not name them", type=natural, metavar="N")
    add("device", "auto, cpu, cuda or cuda:N", metavar="NAME")
    add("amp", "bf16 arithmetic", choices=("auto", "bf16", "off"))
    add("pad", "padding of conv1_1: 1, or 100 for the authors' network", type=whole, metavar="N")
    add("stride", "FCN-8s, FCN-16s or FCN-32s", type=int, choices=(8, 16, 32))
    add("width", "factor on the channels of VGG16", type=positive)
    add("fc_channels", "channels of fc6 and fc7", type=whole, metavar="N")
    add("skip_scale", "factors on pool4 and pool3: A,B or auto (as large as fc7)", metavar="A,B",
        type=like(f"auto|{number},{number}", "auto or two positive numbers, A,B"))
    add("learn_upsampling", "train the transposed convolutions too", action="store_const", const=True)
    add("workers", "threads that read images", type=natural, metavar="N")
    return vars(parser.parse_args(argv))


def size(text: str) -> tuple[int, int] | None:
    """"HxW" to (H, W), "none" to None."""
    return None if text == "none" else tuple(int(side) for side in text.split("x"))


def like(pattern: str, what: str, kind=str):
    """For argparse: a text of this form, as `kind`; else one line that says what it should be."""
    def convert(text):
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return kind(text)
    return convert


# ---- what is said and written ---------------------------------------------------------------------------------------

class Progress:
    """One line that moves on a terminal; elsewhere a plain line every half minute. Counts images."""

    def __init__(self, total: int, done: int = 0):
        self.total, self.done, self.first = total, done, done
        self.start = self.shown = time.time()
        self.live = sys.stdout.isatty()

    def due(self, images: int) -> bool:
        """Counts them as done; whether it is time to show something."""
        self.done += images
        return time.time() - self.shown >= (0.5 if self.live else 30)

    def show(self, text: str):
        self.shown = time.time()
        each = (self.shown - self.start) / (self.done - self.first)
        text += f"  {1 / each:.2f} images/s  {timedelta(seconds=round(each * (self.total - self.done)))} left"
        print(f"\r{text}\033[K" if self.live else text, end="" if self.live else "\n", flush=True)

    def line(self, text: str):
        print(f"\r\033[K{text}" if self.live else text, flush=True)


def write_log(path: Path, rows: list[dict]):
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(main())
