"""Training batches, read, augmented, padded and copied to the device while the network computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from support.datasets.augment import SCALE_RANGE, augment, draw_size, view_size
from support.device import on_device, on_host, thread_initializer
from support.labels import IGNORE, Sample
from support.prefetch import prefetch
from support.training.distributed import Ranks
from vgg import IMAGE_MEAN


class Batches:
    """Iterates over this process's shard of every batch of an epoch, on the device.

    reader     maps a sample to its image and label map, see Reader
    samples    the training set; each sample comes once, in random order and as a random view
    sizes      height and width of each sample, [N, 2]. From them, every process computes the
               size of the largest view in the whole batch, and pads its shard to it
    skip       number of batches at the start of the epoch that an interrupted run has already done
    config     of train.py: seed, batch_size, resize, crop, augment, colours and flip

    Yields images float32 [n, 3, h, w], normalised, and labels int64 [n, h, w]. All randomness
    follows from the seed, the epoch and the sample: there is no random state to save, and the views
    are the same for any number of workers and processes.
    `waited` counts the seconds that the loop has waited for batches.
    """

    def __init__(
        self,
        reader: Callable,
        samples: list[Sample],
        sizes: Sequence[Sequence[int]],
        epoch: int,
        config,
        ranks: Ranks,
        workers: int,
        device: torch.device,
        skip: int = 0,
    ):
        order = np.random.default_rng([config.seed, epoch]).permutation(len(samples)).tolist()
        count, pin = config.batch_size, device.type == "cuda"
        groups = [order[i : i + count] for i in range(skip * count, len(order), count)]
        crop = None if config.crop == "none" else config.crop
        if crop and config.resize != 1:
            crop = view_size(*crop, config.resize)
        scale_range = config.resize * SCALE_RANGE[0], config.resize * SCALE_RANGE[1]

        def chance(i: int) -> np.random.Generator:
            return np.random.default_rng([config.seed, epoch, i])

        def size_of_view(i: int) -> tuple[int, int]:
            return draw_size(*sizes[i], chance(i), crop, scale_range)[1:]

        def view(i: int) -> tuple[np.ndarray, np.ndarray]:
            image, label = reader(samples[i])
            if not config.augment:
                return image, label
            flip = config.flip == "yes"
            return augment(image, label, chance(i), crop, scale_range, config.colours, flip)

        def load(group: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            views = [size_of_view(i) if config.augment else sizes[i] for i in group]
            size = np.max(views, axis=0).tolist()
            shard = ranks.shard(group)
            if shard:
                return collate([view(i) for i in shard], size, pin)
            # The last batch has no image for this process, but all processes must take part.
            image, label = view(group[0])
            return collate([(image, np.full_like(label, IGNORE))], size, pin)

        batches = prefetch(groups, load, workers, initializer=thread_initializer(device))
        self.source, self.waited = iter(on_device(batches, device)), 0.0

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return self

    def __next__(self) -> tuple[torch.Tensor, torch.Tensor]:
        started = time.perf_counter()
        try:
            return next(self.source)
        finally:
            self.waited += time.perf_counter() - started


def collate(
    pairs: list[tuple[np.ndarray, np.ndarray]], size: Sequence[int], pin: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """One batch of (image, label map) pairs: images uint8 [N, 3, H, W] in channels_last, labels
    uint8 [N, H, W].

    Images are padded with the ImageNet mean, which normalisation turns into about 0; labels with
    IGNORE.

    size    (H, W), at least the size of every image
    pin     use pinned memory, from which a GPU can copy while the CPU goes on
    """
    mean = np.round(255 * np.array(IMAGE_MEAN))
    images = stack([image for image, _ in pairs], size, mean, pin)
    return images.permute(0, 3, 1, 2), stack([label for _, label in pairs], size, IGNORE, pin)


def stack(arrays: list[np.ndarray], size: Sequence[int], fill, pin: bool) -> torch.Tensor:
    """Stack uint8 arrays [h, w, ...] to a tensor [N, H, W, ...], padded below and on the right."""
    stacked = np.full((len(arrays), *size, *arrays[0].shape[2:]), fill, np.uint8)
    for array, place in zip(arrays, stacked, strict=True):
        place[: array.shape[0], : array.shape[1]] = array
    return on_host(stacked, pin)
