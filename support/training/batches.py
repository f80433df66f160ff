"""From samples to batches of bytes: read, augmented, and put together while the network computes."""

from __future__ import annotations

import os
import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, Iterator

import numpy as np
import torch

from support.datasets.augment import SCALE, augment, view_size
from support.labels import IGNORE, Sample
from support.training.distributed import Ranks
from vgg import IMAGE_MEAN

CPU = torch.device("cpu")
MOST_WORKERS = (
    16  # eight read 350 of KITTI's images a second (docs/speed.md); no GPU trains on so many
)


def suited_workers(workers: int | str, device: torch.device) -> int:
    """How many threads load images: as told, or for "auto" two beside a processor that computes,
    and for a GPU one for each core, divided among the processes of this machine.
    """
    if workers != "auto":
        return workers
    if device.type == "cpu":
        return 2
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(max(cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)), 2), MOST_WORKERS)


def training_batches(
    reader,
    samples: list[Sample],
    epoch: int,
    crop: tuple[int, int] | None,
    settings: dict,
    ranks: Ranks,
    workers: int,
    device: torch.device = CPU,
    done: int = 0,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """This process's share of each batch of an epoch, without the first `done` batches: see
    `load_batches`.

    crop    (height, width) of the largest view at scale 1, None for whole images; it grows with the
            scale of the run

    Every sample comes once, in a random order, in a random view. All that is random here follows
    from the seed, the epoch and the sample. So there is no random state to save, and the views are
    the same for any number of workers and processes.
    """
    seed, size, scale = settings["seed"], settings["batch_size"], settings["scale"]
    if crop and scale != 1:
        crop = view_size(*crop, scale)
    scales = scale * SCALE[0], scale * SCALE[1]
    order = np.random.default_rng([seed, epoch]).permutation(len(samples)).tolist()
    groups = [order[i : i + size] for i in range(done * size, len(order), size)]

    def load(task):
        i, counts = task
        image, label = reader(samples[i])
        if settings["augment"]:
            image, label = augment(
                image,
                label,
                np.random.default_rng([seed, epoch, i]),
                crop,
                scales,
                settings["colours"],
                settings["flip"] == "yes",
            )
        return image, label if counts else np.full_like(label, IGNORE)

    # If the last batch has fewer images than there are processes, some get one that does not count:
    # all must take part.
    shares = [ranks.share([(i, True) for i in group]) or [(group[0], False)] for group in groups]
    return load_batches(shares, load, workers, device)


def load_batches(
    groups: list[list], load: Callable, workers: int, device: torch.device = CPU
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A collated batch of load(item) for each group of items, in order; for a GPU in pinned memory,
    see `on_device`.

    With workers > 0, that many threads load ahead and put the batches together: about two items for
    each thread, and never fewer than two batches. Threads are enough: Pillow and numpy release
    Python's lock, and one cache serves all. The result is the same for any number of workers.
    """
    pin = device.type == "cuda"
    if workers == 0:
        for group in groups:
            yield collate([load(item) for item in group], pin)
        return
    # PyTorch holds a current GPU for each thread, and begins with the first. Pinning would take
    # memory on that one.
    here = {"initializer": torch.cuda.set_device, "initargs": (device,)} if pin else {}
    with ThreadPoolExecutor(workers, **here) as pool:
        waiting = deque()  # of each batch the futures of its items, one of which gives the batch
        try:
            for group in groups:
                batch = Batch(group, load, pin)
                waiting.append([pool.submit(batch.add, i) for i in range(len(group))])
                if len(waiting) > max(2, 2 * workers // len(group)):
                    yield finished(waiting.popleft())
            while waiting:
                yield finished(waiting.popleft())
        finally:  # an error, or a consumer that stops early: do not decode what nobody will see
            for future in (f for futures in waiting for f in futures):
                future.cancel()


class Batch:
    """A batch under way. Its items are loaded by any threads; the one that is last puts them
    together.
    """

    def __init__(self, items: list, load: Callable, pin: bool):
        self.items, self.load, self.pin, self.pairs = items, load, pin, [None] * len(items)
        self.left, self.lock = len(items), threading.Lock()

    def add(self, i: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        self.pairs[i] = self.load(self.items[i])
        with self.lock:
            self.left -= 1
            last = self.left == 0
        return collate(self.pairs, self.pin) if last else None


def finished(futures: list[Future]) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch, once all its items are loaded. Raises what loading one of them has raised."""
    return next(batch for batch in [future.result() for future in futures] if batch is not None)


def collate(
    pairs: list[tuple[np.ndarray, np.ndarray]], pin: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of any sizes to one batch: images uint8 [N, 3, H, W] (channels_last), labels uint8 [N,
    H, W].

    Smaller images are padded with the ImageNet mean, which is 0 once normalised, smaller labels
    with IGNORE. With `pin`, both lie in pinned memory.
    """
    images = stack([image for image, _ in pairs], np.round(255 * np.array(IMAGE_MEAN)), pin)
    return images.permute(0, 3, 1, 2), stack([label for _, label in pairs], IGNORE, pin)


def stack(arrays: list[np.ndarray], fill, pin: bool) -> torch.Tensor:
    """Arrays uint8 [h, w, ...] as one tensor [N, H, W, ...]. Smaller ones are padded with `fill`
    below and to the right.
    """
    height, width = (max(sides) for sides in zip(*(array.shape[:2] for array in arrays)))
    stacked = torch.empty(
        (len(arrays), height, width, *arrays[0].shape[2:]), dtype=torch.uint8, pin_memory=pin
    )
    for array, place in zip(arrays, stacked.numpy()):
        h, w = array.shape[:2]
        place[:h, :w] = array
        place[h:] = place[:h, w:] = fill
    return stacked
