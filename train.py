"""python train.py --data DIR: train FCN-8s on KITTI Road, PASCAL VOC, or pictures and masks
(layouts: data.py). python train.py: the same on synthetic roads (support/roads.py), with a network
small enough for two processor cores.

In the folder --out (default runs/NAME): config.json, log.csv, curves.png, samples.png, best.pt, and
last.pt, from which --resume goes on with the very steps that a run without interruption would have
made. Exit status: 0 done, 2 input that cannot be used, 130 or 143 stopped by SIGINT (Ctrl-C) or
SIGTERM.
"""

from __future__ import annotations

import math
import sys
import time

import numpy as np
import torch
from torch import nn

from fcn import cross_entropy
from metrics import (
    RoadMeasures,
    confusion,
    epoch_line,
    image_iou,
    iou_cell,
    log_columns,
    measures,
    report,
)
from support.checkpoint import read_tensors, state_of
from support.console import Progress, counted
from support.datasets.images import allow_large_pictures
from support.device import as_batch, normalise, on_device
from support.draw import draw_curves, draw_samples
from support.files import write_csv
from support.inference.int8 import Largest
from support.inference.predictor import predict_image
from support.inference.scale import at_scale
from support.labels import IGNORE
from support.training.batches import load_batches, training_batches
from support.training.distributed import Ranks
from support.training.optimizer import Divergence, learning_rate
from support.training.options import parse
from support.training.setup import Run, set_up
from support.training.signals import ENDINGS, Stop, exit_status
from support.training.waiting import Waiting

# Every default, once. The first value holds with --data. The second holds for the synthetic roads,
# which must train from scratch in a few minutes on a processor. The third, for --recipe paper, is
# that of the networks that the authors released with the paper's longer version (Shelhamer, Long
# and Darrell 2017; solver.prototxt of voc-fcn8s-atonce).
#                     real        synthetic   paper
DEFAULTS = {
    "recipe": ("default", "default", "paper"),
    "epochs": ("auto", 22, "auto"),  # by the device and the number of images: support/options.py
    "batch_size": (1, 2, 1),  # 1: least memory, and the most steps per epoch
    "scale": (
        "auto",
        1.0,
        1.0,
    ),  # of images before the network. auto: small ones of many classes are
    # enlarged (options.suited_scale), so that poles cover whole scores
    "crop": (
        "384x1248",
        "96x320",
        "none",
    ),  # largest part of an image to train on: here the whole image, since
    # what its edges look like is part of what is learnt
    "lr": (2e-3, 2e-2, 1e-10),  # of the mean loss; a small new network tolerates more. paper: of
    # the sum
    "width": (1.0, 0.25, 1.0),  # factor on the channels of VGG16
    "fc_channels": (
        "auto",
        256,
        4096,
    ),  # of fc6 and fc7. auto: as the weights have them, or 512 if those
    # are convolutions alone (start.suited_channels)
    "weights": (
        "auto",
        "none",
        "auto",
    ),  # ImageNet is worth thousands of labels; the demo downloads nothing
    "freeze": ("auto", 0, 0),  # blocks of VGG16 that stay as they are. auto: 3, for a road
    # alone 2, of random weights 0 (start.freeze)
    "dropout": (0.1, 0.1, 0.5),  # 0.5 suits trained fc6 and fc7. With new ones the scores with and
    # without dropout then disagree
    "skip_scale": ("auto", "auto", "0.01,0.0001"),  # factors on pool4 and pool3 (start.balance)
    "task": ("road", "road", "road"),  # KITTI's ground truth: road or lane
    "classes": ("all", "all", "all"),  # or names separated by commas; the others become background
    "images": (
        "auto",
        "auto",
        "auto",
    ),  # or a pattern for the paths of the pictures (support/pairs.py),
    "masks": ("auto", "auto", "auto"),  # with one for those of the masks
    "class_weights": (
        "auto",
        "auto",
        "none",
    ),  # sqrt: rare classes count more (counts.weigh_classes), if mean IoU
    # is the goal; none for a road: MaxF finds its own threshold
    "flip": (
        "auto",
        "auto",
        "no",
    ),  # yes: half the views mirrored. no for lane: in a mirror the own lane
    # is the left one, and a network that learns both marks both
    "pad": (1, 1, 100),  # 1, no border: a third fewer operations (docs/network.md)
    "stride": (8, 8, 8),  # FCN-8s
    "learn_upsampling": (False, False, False),  # bilinear and fixed, as in the authors' networks
    "amp": ("auto", "auto", "off"),  # bf16 if the hardware computes in it
    "device": ("auto", "auto", "auto"),  # CUDA if there is one
    "workers": ("auto", "auto", "auto"),  # threads that read and augment (support/batches.py)
    "seed": (0, 0, 0),  # of weights, order, views and dropout
    "save_every": (
        "auto",
        "auto",
        "auto",
    ),  # steps between checkpoints. auto: by steps and by their cost
    # (support/saving.py)
    "recompute": (False, False, False),  # less memory for a quarter more time (support/memory.py)
    "compile": (
        False,
        False,
        False,
    ),  # torch.compile; needs a C++ compiler, and minutes to begin with
    "split_seed": (0, 0, 0),  # of the held-out images: apart from `seed`, so that runs with other
    # seeds are scored on the same images
    # Not options, since they belong together:
    "loss": ("mean", "mean", "sum"),  # over the valid pixels
    "momentum": (0.9, 0.9, 0.99),
    "weight_decay": (
        5e-4,
        5e-4,
        5e-4,
    ),  # of weights; biases are not decayed and learn at twice the rate
    "warmup": (
        0.05,
        0.05,
        0.0,
    ),  # share of the steps in which the rate rises: new layers begin with
    # huge gradients
    "power": (0.9, 0.9, 0.0),  # then the rate falls as (1 - progress) ** power
    "clip": (5.0, 5.0, 0.0),  # largest norm of the gradient, 0: any
    "augment": (True, True, False),  # random views of the training images (support/views.py)
    "colours": (True, False, False),  # with other colours too; the demo has no time to learn those
}


def train(run: Run, stop: Stop):
    """The training loop, from the first step (or the one after a checkpoint's) to the last."""
    settings, data, net, optimizer, ranks, out = (
        run.settings,
        run.data,
        run.net,
        run.optimizer,
        run.ranks,
        run.out,
    )
    step, best, log, loss_sum, spent = run.step, run.best, run.log, run.loss_sum, run.spent
    steps_per_epoch, total_steps, loss_scale = run.steps_per_epoch, run.total_steps, run.loss_scale
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    print(
        f"{sum(p.numel() for p in parameters):,} trainable parameters on "
        f"{f'{ranks.size} times {run.device.type}' if ranks.size > 1 else run.device}"
        f"{'' if settings['amp'] == 'off' else ', ' + settings['amp']}; {counted(settings['epochs'], 'epoch')} of "
        f"{counted(steps_per_epoch, 'step')}; "
        f"results in {out}"
    )
    divergence = Divergence(run.device, total_steps, settings, ranks)
    progress, saving = Progress(total_steps, step, images=settings["batch_size"]), run.saving

    def save_last():
        divergence.refuse()
        if ranks.first:
            within = (
                spent + time.perf_counter() - started if step > len(log) * steps_per_epoch else 0.0
            )
            saving.last(
                {
                    **run.about,
                    "model": net.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "best": best,
                    "log": log,
                    "loss_sum": loss_sum,
                    "loss_scale": loss_scale.state(),
                    "spent": within,
                },
                out,
            )

    stop.listen()
    for epoch in range(len(log) + 1, settings["epochs"] + 1):
        net.train()
        torch.backends.cudnn.benchmark = settings[
            "augment"
        ]  # on a GPU, try all algorithms for each size: views have few sizes
        started = time.perf_counter()
        done = step - (epoch - 1) * steps_per_epoch  # not 0 in an epoch that was interrupted
        source = training_batches(
            run.reader, data.train, epoch, run.crop, settings, ranks, run.workers, run.device, done
        )
        source = Waiting(on_device(source, run.device), run.device)
        for (
            images,
            labels,
        ) in source:  # float32 [N, 3, h, w] and int64 [N, h, w]: this process's share of a batch
            rate = learning_rate(step, total_steps, settings)
            for group in optimizer.param_groups:
                group["lr"] = rate * group["times"]
            torch.manual_seed(
                seed_of(settings["seed"], step, ranks.rank)
            )  # dropout follows from the step: no state to save

            optimizer.zero_grad()
            with run.autocast():
                scores = run.model(images)
            pixels = ranks.sum((labels != IGNORE).sum())  # the valid pixels of the whole batch
            loss = cross_entropy(scores, labels, pixels, run.class_weights)
            objective = loss * pixels if settings["loss"] == "sum" else loss
            (
                ranks.size * objective * loss_scale.value
            ).backward()  # times size: the processes' gradients are averaged
            loss_scale.divide(parameters)  # of fp16 alone (support/loss_scale.py)
            norm = nn.utils.clip_grad_norm_(parameters, settings["clip"] or math.inf)
            if taken := loss_scale.accepts(norm):
                optimizer.step()
            run.give_back(images.shape)

            step += 1
            loss = ranks.sum(loss.detach())
            loss_sum += loss
            divergence.watch(step, loss + norm if taken else loss)
            stop.end_if_asked(ranks, out, save_last)
            if ranks.first and saving.due(step):
                save_last()
            if progress.due():  # seldom: reading the loss makes the device wait
                progress.show(
                    f"epoch {epoch}  step {step}/{total_steps}  loss {loss.item():.4f}  rate {rate:.2e}"
                )

        trained_at = time.perf_counter()
        result, each = evaluate(run, data.val, stop)
        divergence.refuse()
        stop.end_if_asked(ranks, out, save_last)
        value = result[result["goal"]]  # of the measure that says which network is better
        better = epoch == 1 or value > best  # the first in any case, even if its value is nan
        best = value if better else best
        log.append(
            {
                "epoch": epoch,
                "step": step,
                "kept": int(better),
                "lr": learning_rate(step - 1, total_steps, settings),
                "seconds": round(spent + time.perf_counter() - started, 1),
                "evaluation_seconds": round(time.perf_counter() - trained_at, 1),
                "data_wait": round(source.seconds() / max(trained_at - started, 1e-9), 4),
                "train_loss": loss_sum.item() / steps_per_epoch,
                "val_loss": result["loss"],
                **log_columns(result, data.classes),
            }
        )
        loss_sum, spent = torch.zeros((), device=run.device), 0.0
        progress.line(
            epoch_line(log[-1], settings["epochs"], result, data)
            + (", the best so far" if better else "")
        )
        if warning := divergence.warning(log[-1]["train_loss"], len(data.classes)):
            progress.line(warning)
        if ranks.first:
            write_csv(out / "log.csv", log)
            if better:
                saving.best(
                    {
                        **run.about,
                        "model": net.state_dict(),
                        "epoch": epoch,
                        "best": best,
                        "result": result,
                    },
                    out,
                )
                draw_samples(
                    out / "samples.png",
                    look_at(run, each),
                    data.classes,
                    f"held out, epoch {epoch}",
                )
            draw_curves(out / "curves.png", log, data.classes)
        if epoch == 1:
            save_last()  # from the first epoch on there is something to resume
    save_last()
    saving.finish()
    sum_up(run, stop, len(log))


def evaluate(run: Run, samples: list, stop: Stop | None = None) -> tuple[dict, dict]:
    """(result, each) over whole images at their own size, one at a time. Ends early, with a part,
    once `stop` is asked.

    result    `measures` of the pooled confusion matrix; `loss`, the mean over images; where one
              class is sought (KITTI's road) `road`, the results of RoadMeasures, and `MaxF` of all
              of them in the image; `goal`, the name of the measure that says which network is
              better
    each      the mean IoU of every sample by its index, or the IoU of the one class that is sought;
              nan if it is not there
    """
    net, data, ranks = run.net.eval(), run.data, run.ranks
    torch.backends.cudnn.benchmark = False  # whole images may have many sizes
    matrix = torch.zeros(len(data.classes), len(data.classes), dtype=torch.int64, device=run.device)
    loss_sum, road, each = torch.zeros((), device=run.device), RoadMeasures(), {}
    sought = [data.road] if data.road else []
    mine = ranks.share(list(range(len(samples))))

    def load(sample):
        image, label = run.reader(sample)
        return at_scale(image, run.settings["scale"]), label  # scored at the size of the label

    source = on_device(
        load_batches([[samples[i]] for i in mine], load, run.workers, run.device), run.device
    )
    with (
        run.autocast()
    ):  # around all images, so that the convolutions' weights are converted to bf16 once
        for i, (images, labels) in zip(mine, source):
            seen = predict_image(
                net,
                images,
                net.reach,
                sought=sought,
                labels=labels,
                class_weights=run.class_weights,
                size=labels.shape[1:],
            )
            counts = confusion(seen.classes, labels[0], len(data.classes))
            matrix += counts
            each[i] = image_iou(counts.float(), data.road)  # Apple's GPUs have no float64
            loss_sum += seen.loss
            if data.road:
                road.add_sample(samples[i], seen.confidences[0], labels[0])
            if stop and stop.asked:
                break
    each = {i: iou.item() for i, iou in each.items()}
    parts = ranks.gather((matrix.cpu(), loss_sum.item(), road, each))
    matrix, loss_sum = sum(part[0] for part in parts), sum(part[1] for part in parts)
    road = sum((part[2] for part in parts), RoadMeasures())
    each = {i: value for part in parts for i, value in part[3].items()}
    result = {**measures(matrix), "loss": loss_sum / len(samples), "goal": "mean_iou"}
    if data.road:
        result.update(road=road.results(), MaxF=road.pooled()["MaxF"])
        result["goal"] = (
            "mean_iou" if math.isnan(result["MaxF"]) else "MaxF"
        )  # nan: no pixel is road
    return result, each


@torch.no_grad()
def look_at(run: Run, each: dict[int, float]) -> list[tuple]:
    """Four held-out images and the two of the lowest IoU: (name and IoU, image [H, W, 3], truth [H,
    W], prediction [H, W]), uint8.

    each    the IoU of each held-out image, see `evaluate`
    """
    samples, net, rows = run.data.val, run.net.eval(), []
    fixed = sorted({i * len(samples) // 4 for i in range(4)})
    worst = sorted(each, key=lambda i: (math.isnan(each[i]), each[i]))[:2]
    with run.autocast():
        for i in dict.fromkeys([*fixed, *worst]):
            image, truth = run.reader(samples[i])
            images = normalise(as_batch(at_scale(image, run.settings["scale"])).to(run.device))
            predicted = (
                predict_image(net, images, net.reach, size=truth.shape).classes.cpu().numpy()
            )
            lowest = ", one of the two lowest" if i in worst and len(each) > 2 else ""
            iou = (
                f"   IoU {100 * each[i]:.1f}{lowest}" if each[i] >= 0 else ""
            )  # nan: it shows no road
            rows.append((f"{samples[i].image.name}{iou}", image, truth, predicted))
    return rows


def sum_up(run: Run, stop: Stop, epochs: int):
    """Print what the best network scores on the held-out images and on some training images: the
    difference shows how much it has memorised. And what the last network scores on those training
    images. The best network's weights are loaded for it.
    """
    ranks, out, classes = run.ranks, run.out, run.data.classes
    some = run.data.train[:: math.ceil(len(run.data.train) / 100)]
    last, _ = evaluate(run, some, stop)
    if ranks.first:
        checkpoint = read_tensors(out / "best.pt")
        run.net.load_state_dict(state_of(checkpoint))
    ranks.spread(run.net)
    with Largest(run.net) as largest:
        known, _ = evaluate(run, some, stop)
    stop.end_if_asked(ranks, out)
    parts = ranks.gather(dict(largest))
    if ranks.first:
        largest = {
            name: max(part.get(name, 0.0) for part in parts) for name in largest
        }  # for predict.py --amp int8
        run.saving.best({**checkpoint, "model": run.net.state_dict(), "largest": largest}, out)
        print(
            f"\nbest network, of epoch {checkpoint['epoch']}, per cent:\n"
            f"{report({'held out': checkpoint['result'], 'training': known}, classes)}\n"
            f"training: {len(some)} of {counted(len(run.data.train), 'image')}\n\n"
            f"last network, of epoch {epochs}, IoU on training images: "
            f"{', '.join(f'{name} {iou_cell(iou)}' for name, iou in zip(classes, last['iou']))}\n"
            f"pictures: {out / 'samples.png'} and {out / 'curves.png'}\n"
            f"to see what it sees in others: python predict.py {out / 'best.pt'} PICTURE"
        )


def seed_of(*numbers: int) -> int:
    """A seed for PyTorch that follows from some numbers."""
    return int(np.random.default_rng(numbers).integers(2**63))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (above). What went wrong is one line on stderr."""
    options, ranks = parse(argv, DEFAULTS, __doc__), Ranks()
    allow_large_pictures()
    try:
        with Stop(alone=ranks.size == 1) as stop:
            run = set_up(options, DEFAULTS, ranks)
            with run.saving:
                train(run, stop)
        if run.lock:
            run.lock.close()
        ranks.leave()
    except ENDINGS as error:
        return exit_status(error, options, ranks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
