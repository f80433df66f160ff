"""python train.py --data DIR: train FCN-8s on KITTI Road, PASCAL VOC, Cityscapes or your images.
python train.py: the same on synthetic roads, with a network small enough for two CPU cores and
other defaults (DEMO in this file).

The folder --out (default runs/NAME) gets config.json, log.csv, curves.png, samples.png, best.pt and
last.pt, from which --resume continues with exactly the steps of an uninterrupted run.
auto stands for a value that suits data, weights and machine (docs/runs.md).
Exit status: 0 done, 2 unusable input, 130 or 143 stopped by SIGINT (Ctrl-C) or SIGTERM.
"""

from __future__ import annotations

import math
import platform
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import PIL
import torch
from torch import nn

from data import DataOptions, find, synthetic_roads
from fcn import FCN8s, cross_entropy
from metrics import epoch_line, log_columns
from support.console import (
    InputError,
    Parser,
    Progress,
    add_options,
    counted,
    filled,
    option,
    positive,
    share,
    size,
    whole,
    word_or,
)
from support.datasets.check import check_counts, describe, extent, read_everything, weigh_classes
from support.datasets.images import Reader, allow_large_pictures
from support.device import (
    autocast_for,
    checkpoint_activations,
    default_workers,
    pick_device,
    tune_malloc,
)
from support.labels import IGNORE, paths_below
from support.training.batches import Batches
from support.training.config import configure, gains, resolve
from support.training.distributed import Ranks
from support.training.evaluation import Evaluation
from support.training.initialise import freeze, initialise, new_network, read_weights
from support.training.optimizer import Divergence, divergence_warning, learning_rate, sgd
from support.training.run_dir import (
    RunDir,
    keep_best,
    lock_folder,
    new_folder,
    read_last,
    require_best,
    require_no_run,
    require_same_data,
    restore,
)
from support.training.signals import ENDINGS, Stop, Stopped, exit_status

RECIPES = ("default", "paper")
CLASS_WEIGHTS = ("auto", "none", "sqrt")
FREEZE = ("auto", 0, 1, 2, 3)
AMP = ("auto", "bf16", "fp16", "off")
auto_or, none_or = partial(word_or, "auto"), partial(word_or, "none")


@dataclass
class Config(DataOptions):
    """Every setting of a run with its default. Each `option` is also a command-line option.

    `resolve` (support/training/config.py) replaces "auto" by a value. DataOptions (data.py) has the
    settings for reading a data set.
    """

    # ---- the run
    data: str | None = option(None, "folder of the data set (default: synthetic roads)", filled)
    out: str | None = option(None, "folder of this run (default: the first free runs/NAME)", filled)
    resume: bool = option(False, "continue the run in --out from its last checkpoint")
    recipe: str = option("default", "paper: the authors' training; takes days", choices=RECIPES)
    seed: int = option(0, "random seed for weights, order, augmentation and dropout", whole(0))
    # last.pt is written every five minutes in any case; auto: only then
    save_every: int | str = option("auto", "steps between two checkpoints", auto_or(whole()))

    # ---- the network
    # Pretraining is worth thousands of labels. auto: weights/vgg16.pth, downloaded if missing
    weights: str = option("auto", "auto (ImageNet), a file, a best.pt, or none (random)", filled)
    stride: int = option(8, "8: FCN-8s; 16: FCN-16s; 32: FCN-32s", int, choices=FCN8s.STRIDES)
    # 1 takes a third fewer operations (docs/network.md)
    pad: int = option(1, "padding of conv1_1: 1, or the authors' 100", whole())
    # auto: 1, as ImageNet's weights need, or the width of the best.pt in --weights
    width: float | str = option("auto", "multiplies the channels of VGG16", auto_or(positive))
    # auto: as in the weights, or 512 if these are convolutions only
    fc_channels: int | str = option("auto", "channels of fc6 and fc7", auto_or(whole()))
    # bilinear and fixed, as in the authors' networks
    learn_upsampling: bool = option(False, "train the transposed convolutions too")
    # auto: measured on a training image (`balance` in initialise.py)
    skip_gain: str | dict = option("auto", "A,B: factors on pool4 and pool3", auto_or(gains))
    # auto: 3 for several classes, 2 for a road alone, 0 for random weights (docs/results.md)
    freeze: int | str = option("auto", "VGG16 blocks to freeze", auto_or(whole(0)), choices=FREEZE)
    # 0.5 suits pretrained fc6 and fc7; with new ones, evaluation (no dropout) would differ too much
    dropout: float = option(0.1, "dropout probability of fc6 and fc7", share)

    # ---- training
    # auto: 60, or 14 on a CPU, where 14 on KITTI Road already take hours; at least 1,200 steps
    epochs: int | str = option("auto", "passes over the training set", auto_or(whole()))
    # 1 takes the least memory and gives the most steps per epoch
    batch_size: int = option(1, "images per step", whole())
    lr: float = option(2e-3, "peak learning rate, for the mean loss", positive)
    # The network computes one score per 8 x 8 pixels; enlarged, a pole covers whole cells.
    # auto: 1.5 for small images with several classes, else 1
    resize: float | str = option("auto", "image size factor", auto_or(positive))
    # large enough for whole KITTI images: the network also learns how their edges look
    crop: tuple | str = option((384, 1248), "largest crop in a step, or none", none_or(size))
    # auto: yes, except for --task lane: mirrored, the ego lane is on the left
    flip: str = option("auto", "mirror half of the training images", choices=("auto", "yes", "no"))
    # auto: sqrt if mean IoU is the score, none for a road: MaxF finds its own threshold
    class_weights: str = option("auto", "sqrt: rare classes weigh more", choices=CLASS_WEIGHTS)

    # ---- the machine
    device: str = option("auto", "auto, cpu, cuda, cuda:N, or mps (Apple's GPUs; untested)")
    # auto: bf16 if the hardware has it; fp16 is for GPUs without bf16
    amp: str = option("auto", "number format of the forward pass; off: fp32", choices=AMP)
    # auto: 2, or with a GPU one per core, up to 16
    workers: int | str = option("auto", "threads that read images", auto_or(whole(0)))
    recompute: bool = option(False, "activation checkpointing: less memory, a quarter more time")
    debug: bool = option(False, "show the traceback of an error")

    # ---- not options, because these values depend on each other
    reduction: str = "mean"  # of the loss over the pixels; or "sum"
    momentum: float = 0.9
    weight_decay: float = 5e-4  # of weights, not of biases
    warmup: float = 0.05  # share of the steps in which the learning rate rises: new layers need it
    power: float = 0.9  # then the learning rate falls as (1 - progress) ** power
    clip: float = 5.0  # largest norm of the gradient; 0: no limit
    augment: bool = True  # random views of the training images (support/datasets/augment.py)
    colours: bool = True  # augment colours too


# Other defaults without --data: training from random weights takes minutes on two CPU cores.
DEMO = dict(
    epochs=22, batch_size=2, crop=(96, 320), resize=1.0, lr=2e-2, width=0.25, fc_channels=256,
    weights="none", freeze=0, colours=False,
)  # fmt: skip

# Changes with --recipe paper, from solver.prototxt and train.prototxt of voc-fcn8s-atonce. The
# authors released them with the paper's longer version (Shelhamer, Long and Darrell 2017).
PAPER = dict(
    pad=100, skip_gain={"pool4": 0.01, "pool3": 0.0001}, fc_channels=4096, dropout=0.5, freeze=0,
    resize=1.0, crop="none", augment=False, flip="no", class_weights="none", amp="off",
    lr=1e-10, reduction="sum", momentum=0.99, warmup=0.0, power=0.0, clip=0.0,
)  # fmt: skip


def train(given: dict, ranks: Ranks, stop: Stop, after: Callable[[str, int], object]):
    """A whole run: configuration, data, network, optimizer, loop, summary.

    given    the options from the command line
    after    called as after(event, step) after each "step", "evaluation" and "save"

    Raises InputError for unusable input, before it makes a folder, and Stopped if a signal has
    ended the run.
    """
    # ---- configuration. The first process checks everything; the others take over its results.
    found = ranks.wait_for_first()
    if found:  # the first process is ready, and has a folder
        stop.listen()
    out, lock, saved = Path(given.get("out") or ""), None, None
    if given.get("resume"):
        if not given.get("out"):
            raise InputError("--resume: name the run with --out runs/NAME")
        lock = lock_folder(out) if ranks.first else None
        saved = read_last(out)
    elif given.get("out"):
        require_no_run(out)
    settings = saved["settings"] if saved else None
    config = configure(given, settings, Config, DEMO, PAPER, ranks.size)
    if found:
        config = found["config"]
    device = pick_device(config.device, ranks.local)
    trim_memory = tune_malloc(device)
    workers = default_workers(config.workers, device)

    # ---- data
    folder = config.data or synthetic_roads()
    data = find(folder, config)
    print(data.summary)
    paths = [paths_below(folder, part) for part in (data.train, data.val)]
    if saved:
        require_same_data(folder, data.classes, paths, saved)
    reader = Reader(data.read_label)
    if ranks.first:
        counts = read_everything([*data.train, *data.val], data, reader)
        print(describe(counts, data))
        check_counts(counts, data)
        n = len(data.train)
        found = {"pixels": counts.pixels[:n].sum(0), "sizes": counts.sizes[:n]}

    # ---- network
    # The weights come after the data: a faulty mask is named before half a gigabyte is downloaded.
    weights, path = (None, None) if saved else read_weights(config.weights)
    # Changes nothing in the other processes: they have the first one's values.
    resolve(config, data, extent(found["sizes"]), weights, device, PAPER)
    if saved:
        net = FCN8s.from_checkpoint(saved, out)
    else:
        net = new_network(config, data.classes)
        initialise(net, config, weights, path, reader(data.train[0])[0])
        config.skip_gain = net.skip_gain
        del weights  # half a gigabyte
    freeze(net.vgg, config.freeze)
    net = net.to(device)  # the weights stay contiguous; the images are channels_last
    autocast = autocast_for(config.amp, device)

    # ---- optimizer, loss and evaluation
    optimizer = sgd(net, config.momentum, config.weight_decay, fp16=config.amp == "fp16")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    scaler = torch.amp.GradScaler(device.type, enabled=config.amp == "fp16")
    class_weights = None
    if config.class_weights == "sqrt":
        class_weights = torch.from_numpy(weigh_classes(found["pixels"])).to(device)
    criterion = partial(cross_entropy, class_weights=class_weights)
    divergence = Divergence(device, ranks)
    evaluation = Evaluation(net, data, reader, criterion, config.amp, workers, ranks, stop)

    # ---- state of the run
    steps_per_epoch = math.ceil(len(data.train) / config.batch_size)
    total_steps = config.epochs * steps_per_epoch
    step, best, log, elapsed = 0, -1.0, [], 0.0
    loss_sum = torch.zeros((), device=device)  # of the current epoch
    if saved:
        step, best, log, elapsed = (saved[name] for name in ("step", "best", "log", "elapsed"))
        loss_sum = saved["loss_sum"].to(device)
        restore(optimizer, scaler, saved)
        best = require_best(out, best, log, config.epochs, steps_left=total_steps - step)
        going = f"going on after step {step}"
        if step == total_steps:
            going = f"training is complete; --epochs above {config.epochs} trains longer"
        print(f"{out}: {going}")

    # ---- folder. From here on, a signal leaves a checkpoint in it.
    stop.listen()
    if ranks.first:
        out = out if saved else new_folder(given.get("out"), config.data)
        found |= {"config": config, "out": out}
        lock = lock or lock_folder(out)
        if not saved:
            keep_best(out)
    ranks.let_others_in(found)
    run_dir = RunDir(found["out"], config.save_every)
    model = callable_model(net, config, ranks)
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    versions |= {"numpy": np.__version__, "pillow": PIL.__version__}
    about = {"settings": asdict(config), "images": paths}
    about |= {"sizes": extent(found["sizes"]), "versions": versions}

    def save_last():
        divergence.require_none(config, scaler)
        if ranks.first:
            in_epoch = step > len(log) * steps_per_epoch
            run_dir.save_last(
                {
                    **net.to_checkpoint(),
                    **about,
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                    "step": step,
                    "best": best,
                    "log": log,
                    "loss_sum": loss_sum,
                    "elapsed": elapsed + time.perf_counter() - started if in_epoch else 0.0,
                }
            )
        after("save", step)

    # ---- loop
    progress = Progress(total_steps, step, images=config.batch_size)
    if ranks.first:
        run_dir.write_config({**about, "config": net.config})
    print(
        f"{sum(p.numel() for p in parameters):,} trainable parameters on "
        f"{f'{ranks.size} times ' if ranks.size > 1 else ''}{device}, "
        f"{'fp32' if config.amp == 'off' else config.amp}; "
        f"{f'images resized by {config.resize:g}; ' if config.resize != 1 else ''}"
        f"{counted(config.epochs, 'epoch')} of {counted(steps_per_epoch, 'step')}; results in {out}"
    )
    with lock or nullcontext():  # only the first process has the lock
        for epoch in range(len(log) + 1, config.epochs + 1):
            net.train()
            # On a GPU, let cuDNN try all algorithms for each size: views have few sizes.
            torch.backends.cudnn.benchmark = config.augment
            started = time.perf_counter()
            skip = step - (epoch - 1) * steps_per_epoch  # above 0 in a resumed epoch
            batches = Batches(
                reader, data.train, found["sizes"], epoch, config, ranks, workers, device, skip
            )
            for images, labels in batches:  # float32 [n, 3, h, w], int64 [n, h, w]
                rate = learning_rate(step, total_steps, config)
                for group in optimizer.param_groups:
                    group["lr"] = rate * group["lr_mult"]
                # Dropout depends only on the step, so there is no random state to save.
                torch.manual_seed(seed_of(config.seed, step, ranks.rank))

                optimizer.zero_grad()
                with autocast():
                    scores = model(images)
                pixels = ranks.sum((labels != IGNORE).sum())  # the valid pixels of the whole batch
                loss = criterion(scores, labels, pixels)
                objective = loss * pixels if config.reduction == "sum" else loss
                # times size: PyTorch averages gradients over the processes, but the sum is needed
                scaler.scale(ranks.size * objective).backward()
                scaler.unscale_(optimizer)
                norm = nn.utils.clip_grad_norm_(parameters, config.clip or math.inf)
                scaler.step(optimizer)
                scaler.update()
                trim_memory(images.shape)

                step += 1
                loss = ranks.sum(loss.detach())
                loss_sum += loss
                divergence.watch(step, loss, *([] if scaler.is_enabled() else [norm]))
                after("step", step)
                if number := stop.requested():
                    save_last()
                    raise Stopped(number, run_dir.path, "go on with")
                if ranks.first and run_dir.due(step):
                    save_last()
                if progress.due():  # rarely: reading the loss waits for the device
                    progress.show(
                        f"epoch {epoch}  step {step}/{total_steps}  loss {loss.item():.4f}  "
                        f"learning rate {rate:.2e}"
                    )

            trained = time.perf_counter()
            divergence.require_none(config, scaler)
            result = evaluation(data.val)
            after("evaluation", step)
            if number := stop.requested():
                save_last()
                raise Stopped(number, run_dir.path, "go on with")
            score = result[result["monitor"]]
            is_best = score > best  # at first -1, below every score
            best = max(best, score)
            log.append(
                {
                    "epoch": epoch,
                    "step": step,
                    "is_best": int(is_best),
                    "lr": learning_rate(step - 1, total_steps, config),
                    "seconds": round(elapsed + time.perf_counter() - started, 1),
                    "evaluation_seconds": round(time.perf_counter() - trained, 1),
                    "data_wait": round(batches.waited / max(trained - started, 1e-9), 4),
                    "train_loss": loss_sum.item() / steps_per_epoch,
                    "val_loss": result["loss"],
                    **log_columns(result, data.classes),
                }
            )
            loss_sum, elapsed = torch.zeros((), device=device), 0.0
            line = epoch_line(log[-1], config.epochs, result, data)
            progress.line(line + (", the best so far" if is_best else ""))
            if line := divergence_warning(log[-1]["train_loss"], len(data.classes), config.lr):
                progress.line(line)
            if ranks.first:
                run_dir.write_log(log, data.classes)
                if is_best:
                    content = {**net.to_checkpoint(), **about, "epoch": epoch, "best": best}
                    run_dir.save_best({**content, "result": result})
                    evaluation.draw_samples(run_dir.path / "samples.png", epoch)
            if epoch == 1:
                save_last()  # so that a run can be resumed from its first epoch on
        save_last()
        evaluation.summarise(run_dir.path)


def callable_model(net: FCN8s, config: Config, ranks: Ranks) -> nn.Module:
    """The network as the loop calls it: with recomputation, or distributed."""
    if config.recompute:
        checkpoint_activations(net.vgg)
    if ranks.size > 1:
        return nn.parallel.DistributedDataParallel(net, gradient_as_bucket_view=True)
    return net


def seed_of(*numbers: int) -> int:
    """A seed for PyTorch, derived from the numbers."""
    return int(np.random.default_rng(numbers).integers(2**63))


def main(argv: list[str] | None = None, after: Callable = lambda event, step: None) -> int:
    """Run the command line. Returns the exit status. `after`: see `train`."""
    stray = "the folder goes after --data; not an option"
    parser = Parser("train.py", stray, description=__doc__)
    add_options(parser, Config)
    given, ranks = vars(parser.parse_args(argv)), Ranks()
    allow_large_pictures()
    stop = Stop(ranks)
    try:
        with stop:
            train(given, ranks, stop, after)
        ranks.leave()
    except ENDINGS as error:
        return exit_status(error, given.get("debug"), given.get("resume"), ranks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
