"""From samples to batches of bytes: read, augmented, and put together while the network computes."""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Iterator

import numpy as np
import torch

from support.labels import IGNORE
from support.ranks import Ranks
from support.samples import Sample
from support.views import augment
from vgg import IMAGE_MEAN


def training_batches(reader, samples: list[Sample], epoch: int, crop: tuple[int, int] | None, settings: dict, ranks: Ranks,
                     done: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This process's share of each batch of an epoch, without the first `done` batches: see `collate`.

    Every sample comes once, in a random order, in a random view. All that is random here follows from the seed, the epoch
    and the sample. So there is no random state to save, and the views are the same for any number of workers and processes.
    """
    seed, size = settings["seed"], settings["batch_size"]
    order = np.random.default_rng([seed, epoch]).permutation(len(samples)).tolist()
    groups = [order[i:i + size] for i in range(done * size, len(order), size)]

    def load(task):
        i, counts = task
        image, label = reader(samples[i])
        if settings["augment"]:
            image, label = augment(image, label, np.random.default_rng([seed, epoch, i]), crop, colours=settings["colours"],
                                   flip=settings["flip"] == "yes")
        return image, label if counts else np.full_like(label, IGNORE)

    # If the last batch has fewer images than there are processes, some get one that does not count: all must take part.
    shares = [ranks.share([(i, True) for i in group]) or [(group[0], False)] for group in groups]
    return load_batches(shares, load, settings["workers"])


def load_batches(groups: list[list], load: Callable, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A collated batch of load(item) for each group of items, in order.

    With workers > 0, that many threads load ahead and put the batches together: two items for each thread are under way or
    waiting, and two batches at least. Threads are enough: Pillow and numpy release Python's lock, and one cache serves all.
    The result is the same for any number of workers.
    """
    if workers == 0:
        for group in groups:
            yield collate([load(item) for item in group])
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()  # of each batch the futures of its items, one of which gives the batch
        try:
            for group in groups:
                batch = Batch(group, load)
                waiting.append([pool.submit(batch.add, i) for i in range(len(group))])
                if len(waiting) > max(2, 2 * workers // len(group)):
                    yield finished(waiting.popleft())
            while waiting:
                yield finished(waiting.popleft())
        finally:  # an error, or a consumer that stops early: do not decode what nobody will see
            for future in (f for futures in waiting for f in futures):
                future.cancel()


class Batch:
    """A batch under way. Its items are loaded by any threads; the one that is last puts them together."""

    def __init__(self, items: list, load: Callable):
        self.items, self.load, self.pairs = items, load, [None] * len(items)
        self.left, self.lock = len(items), threading.Lock()

    def add(self, i: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        self.pairs[i] = self.load(self.items[i])
        with self.lock:
            self.left -= 1
            last = self.left == 0
        return collate(self.pairs) if last else None


def finished(futures: list[Future]) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch, once all its items are loaded. Raises what loading one of them has raised."""
    return next(batch for batch in [future.result() for future in futures] if batch is not None)


def collate(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of any sizes to one batch: images uint8 [N, 3, H, W] (channels_last), labels uint8 [N, H, W].

    Smaller pairs are padded below and to the right: images with the ImageNet mean, which is 0 once normalised, labels with
    IGNORE.
    """
    height = max(label.shape[0] for _, label in pairs)
    width = max(label.shape[1] for _, label in pairs)
    images = np.empty((len(pairs), height, width, 3), np.uint8)
    images[:] = np.round(255 * np.array(IMAGE_MEAN))
    labels = np.full((len(pairs), height, width), IGNORE, np.uint8)
    for n, (image, label) in enumerate(pairs):
        h, w = label.shape
        images[n, :h, :w] = image
        labels[n, :h, :w] = label
    return torch.from_numpy(images).permute(0, 3, 1, 2), torch.from_numpy(labels)
