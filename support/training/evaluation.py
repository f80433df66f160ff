"""Evaluation during training: scores on whole images, the sample sheet, the final table."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from fcn import FCN8s
from metrics import Scores, report
from support.checkpoint import read_checkpoint
from support.console import InputError, counted, quoted
from support.device import on_host, thread_initializer
from support.draw import draw_samples
from support.inference.predictor import Predictor, prepare
from support.labels import DataSet, Sample
from support.prefetch import prefetch
from support.training.distributed import Ranks
from support.training.signals import Stop, Stopped


class Evaluation:
    """evaluation(samples) scores the network on whole images, one at a time.

    reader       maps a Sample to its image and label map, see Reader
    criterion    maps scores [1, C, H, W] and labels [1, H, W] to the mean loss over the pixels
    amp          number format of the forward pass
    workers      threads that read images
    stop         after a signal, the remaining images are skipped, and the result is not used
    """

    def __init__(
        self,
        net: FCN8s,
        data: DataSet,
        reader: Callable,
        criterion: Callable,
        amp: str,
        workers: int,
        ranks: Ranks,
        stop: Stop,
    ):
        self.net, self.data, self.reader, self.criterion = net, data, reader, criterion
        self.amp, self.workers, self.ranks, self.stop = amp, workers, ranks, stop
        self.device = next(net.parameters()).device
        self.iou_by_image: dict[Path, float] = {}  # of the last evaluation

    def predictor(self) -> Predictor:
        """A Predictor with the current weights, converted to `amp` once.

        Autocast would convert the weights of fc6, fc7 and frozen layers for each image.
        """
        net = FCN8s.from_checkpoint(self.net.to_checkpoint())  # shares unconverted weights
        return Predictor(prepare(net, self.amp, self.device), self.amp)

    @torch.no_grad()
    def __call__(self, samples: list[Sample]) -> dict:
        """`Scores.result` and `loss`, the mean over the images."""
        torch.backends.cudnn.benchmark = False  # whole images may have many sizes
        predictor, road = self.predictor(), self.data.road
        scores = Scores(self.data.classes, road)
        loss_sum = torch.zeros((), device=self.device)

        def load(sample: Sample):
            image, truth = self.reader(sample)
            return sample, predictor.views(image), on_host(truth, pin=self.device.type == "cuda")

        def predicted():
            shard, start = self.ranks.shard(samples), thread_initializer(self.device)
            for sample, views, truth in prefetch(shard, load, self.workers, start):
                try:
                    labels, confidences, loss = predictor(
                        (views, truth.shape),
                        confidences_of=[] if road is None else [road],
                        truth=truth.to(self.device, non_blocking=True),
                        criterion=self.criterion,
                    )
                except ValueError as error:
                    raise InputError(f"{sample.image}: {error}") from None
                loss_sum.add_(loss)
                yield sample, labels, truth.numpy(), *confidences
                if self.stop.asked:
                    break

        # A thread counts each image while the network computes the next one.
        for _ in prefetch(predicted(), lambda image: scores.update(*image), min(1, self.workers)):
            pass
        parts = self.ranks.gather((scores, loss_sum.item()))
        scores = sum((part[0] for part in parts), Scores(self.data.classes, road))
        self.iou_by_image = scores.iou_by_image
        return {**scores.result(), "loss": sum(part[1] for part in parts) / len(samples)}

    @torch.no_grad()
    def draw_samples(self, path: Path, epoch: int):
        """Draw four validation images and the two of lowest IoU into a PNG.

        Evaluate the validation set first.
        """
        samples, rows = self.data.val, []
        above = os.path.commonpath([sample.image.parent for sample in samples])
        predictor = self.predictor()
        evenly = [samples[i * len(samples) // 4] for i in range(4)]
        ious = {sample: self.iou_by_image[sample.image] for sample in samples}
        worst = sorted(samples, key=lambda s: (math.isnan(ious[s]), ious[s]))[:2]
        for sample in dict.fromkeys([*evenly, *worst]):
            image, truth = self.reader(sample)
            labels = predictor(image).labels
            iou = "" if math.isnan(ious[sample]) else f"   IoU {100 * ious[sample]:.1f}"
            if sample in worst and len(samples) > 2:
                iou += ", one of the two lowest"
            name = sample.image.relative_to(above).as_posix()  # with folders: names may repeat
            rows.append((f"{name}{iou}", image, truth, labels))
        draw_samples(path, rows, self.data.classes, f"validation, epoch {epoch}")

    def summarise(self, out: Path):
        """Print the scores of the best network on the validation set and on some training images.

        The difference between them shows overfitting. Loads the weights of the best network. Raises
        Stopped after a signal.
        """
        train = self.data.train
        train_subset = train[:: math.ceil(len(train) / 100)]
        if self.ranks.first:
            best = read_checkpoint(out / "best.pt")
            self.net.load_state_dict(best.pop("model"))
        self.ranks.broadcast(self.net)
        training = self(train_subset)
        if number := self.stop.requested():
            done = f"training is complete, {out / 'best.pt'} is the result; for the final scores"
            raise Stopped(number, out, done)
        if not self.ranks.first:
            return
        results = {"validation": best["result"], "training": training}
        print(
            f"\nbest network (epoch {best['epoch']}), in per cent:\n"
            f"{report(results, self.data.classes)}\n"
            f"training: {len(train_subset)} of {counted(len(train), 'image')}\n\n"
            f"pictures: {out / 'samples.png'} and {out / 'curves.png'}\n"
            f"to predict other pictures: python predict.py {quoted(out / 'best.pt')} PICTURE"
        )
