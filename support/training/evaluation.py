"""Scores of the network during training: whole images, the sample sheet, the final table."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from metrics import Scores, iou_cell, report
from support.checkpoint import read_checkpoint
from support.console import counted, quoted
from support.device import autocast_for, thread_initializer
from support.draw import draw_samples
from support.inference.predictor import Predictor
from support.labels import DataSet, Sample
from support.prefetch import prefetch
from support.training.distributed import Ranks
from support.training.signals import Stop, Stopped


class Evaluation:
    """evaluation(samples) scores the network on whole images, one at a time.

    reader       from a Sample to its image and label map, see Reader
    criterion    from scores [1, C, H, W] and labels [1, H, W] to the mean loss over the pixels
    amp          number format of the forward pass
    workers      threads that read images
    stop         once a signal has come, the remaining images are left out: the result is not used
    """

    def __init__(
        self,
        net: torch.nn.Module,
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

    @torch.no_grad()
    def __call__(self, samples: list[Sample]) -> dict:
        """Scores.result, and `loss`, the mean over the images."""
        torch.backends.cudnn.benchmark = False  # whole images may have many sizes
        predictor = Predictor(self.net.eval(), self.amp)
        road = self.data.road
        scores = Scores(self.data.classes, road)
        loss_sum = torch.zeros((), device=self.device)

        def load(sample: Sample):
            image, truth = self.reader(sample)
            return sample, predictor.views(image), truth

        shard, start = self.ranks.shard(samples), thread_initializer(self.device)
        # One autocast around all images: the weights are converted to bf16 once.
        with autocast_for(self.amp, self.device)():
            for sample, views, truth in prefetch(shard, load, self.workers, initializer=start):
                prediction = predictor(
                    (views, truth.shape),
                    probabilities=[] if road is None else [road],
                    truth=truth,
                    criterion=self.criterion,
                )
                loss_sum += prediction.loss
                labels, confidences = prediction.to_host()
                scores.update(sample, labels, truth, *confidences)
                if self.stop.asked:
                    break
        parts = self.ranks.gather((scores, loss_sum.item()))
        scores = sum((part[0] for part in parts), Scores(self.data.classes, road))
        self.iou_by_image = scores.iou_by_image
        return {**scores.result(), "loss": sum(part[1] for part in parts) / len(samples)}

    @torch.no_grad()
    def draw_samples(self, path: Path, epoch: int):
        """Draw four images of the validation set, and the two of the lowest IoU, into a PNG.

        Called after an evaluation of the validation set.
        """
        samples, rows = self.data.val, []
        predictor = Predictor(self.net.eval(), self.amp)
        evenly = [samples[i * len(samples) // 4] for i in range(4)]
        ious = {sample: self.iou_by_image[sample.image] for sample in samples}
        worst = sorted(samples, key=lambda s: (math.isnan(ious[s]), ious[s]))[:2]
        for sample in dict.fromkeys([*evenly, *worst]):
            image, truth = self.reader(sample)
            labels, _ = predictor(image).to_host()
            iou = "" if math.isnan(ious[sample]) else f"   IoU {100 * ious[sample]:.1f}"
            if sample in worst and len(samples) > 2:
                iou += ", one of the two lowest"
            rows.append((f"{sample.image.name}{iou}", image, truth, labels))
        draw_samples(path, rows, self.data.classes, f"validation, epoch {epoch}")

    def summarise(self, out: Path):
        """Print the scores of the best network on the validation set and on some training images.

        The difference shows how much it has memorised. Loads the best network's weights. Raises
        Stopped if a signal has come.
        """
        train = self.data.train
        train_subset = train[:: math.ceil(len(train) / 100)]
        last = self(train_subset)
        if self.ranks.first:
            best = read_checkpoint(out / "best.pt")
            self.net.load_state_dict(best.pop("model"))
        self.ranks.broadcast(self.net)
        training = self(train_subset)
        if number := self.stop.requested():
            raise Stopped(number, out, trained=True)
        if not self.ranks.first:
            return
        classes = self.data.classes
        ious = (f"{name} {iou_cell(x)}" for name, x in zip(classes, last["iou"], strict=True))
        print(
            f"\nbest network, of epoch {best['epoch']}, per cent:\n"
            f"{report({'validation': best['result'], 'training': training}, classes)}\n"
            f"training: {len(train_subset)} of {counted(len(train), 'image')}\n\n"
            f"last network, IoU on training images: {', '.join(ious)}\n"
            f"pictures: {out / 'samples.png'} and {out / 'curves.png'}\n"
            f"to predict other pictures: python predict.py {quoted(out / 'best.pt')} PICTURE"
        )
