"""From samples to what the network takes: random views, batches, and the way to the device.

Images travel as bytes and are normalised on the device; image and label go through one and the same window. Labels are
class ids 0 ... C-1, or IGNORE (255), and are only ever copied or picked, never blended.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import chain
from typing import Callable, Iterable, Iterator

import numpy as np
import torch
from PIL import Image, ImageEnhance

from fcn import IGNORE
from vgg import IMAGE_MEAN, IMAGE_STD

SCALE = (0.75, 1.35)       # random scale; the network meets each car nearer and farther than it was
STEP = 32                  # views are multiples of so many pixels high and wide: of some ten sizes, not of hundreds. For each
                           # size the libraries prepare their kernels and find memory anew, which made a step a tenth slower
# Another street lies in another light, and has cars and houses of other colours. On a street that no training image shows
# colours are worth three points of mean IoU.
SATURATION = 0.5           # how far colours are from grey, times 0.5 ... 1.5
LIGHT = 0.15               # red, green and blue, each times 0.85 ... 1.15
GAMMA = 0.4                # exponent of e**-0.4 ... e**0.4: dark parts lighter or darker
CONTRAST = 0.3             # contrast times 0.7 ... 1.3, around mid-grey
BRIGHTNESS = 40            # plus or minus this many of 255 levels
RAREST = 1e-4              # share of the pixels: rarer classes weigh no more than this (class_weights)


def augment(image: np.ndarray, label: np.ndarray, rng: np.random.Generator,
            crop: tuple[int, int] | None = None, scale: tuple[float, float] = SCALE, colours: bool = True,
            flip: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A random view of a sample: scaled, cropped to at most crop = (height, width), flipped, in another light.

    image uint8 [H, W, 3] and label uint8 [H, W] to the same types at [h, w]. Image and label go through one window
    and one size, the image interpolated, the label by nearest neighbour. Without `colours` only contrast and brightness
    change, without `flip` left stays left.
    """
    height, width = label.shape
    factor = np.exp(rng.uniform(np.log(scale[0]), np.log(scale[1])))  # even in the logarithm: as often larger as smaller
    h, w = (max(STEP, STEP * round(side * factor / STEP)) for side in (height, width))
    if crop:
        h, w = min(h, crop[0]), min(w, crop[1])
    # The window of the original that becomes h x w: crop and scale are one resampling, of no more than is needed.
    window_h, window_w = min(height, h / factor), min(width, w / factor)
    # Of the windows a quarter lies at each edge: an even draw would show a network the outermost rows, where the
    # nearest road is, far more seldom than it will meet them.
    down, across = np.clip(rng.uniform(-0.5, 1.5, 2), 0, 1)
    top, left = down * (height - window_h), across * (width - window_w)
    window = (left, top, left + window_w, top + window_h)
    picture = Image.fromarray(image).resize((w, h), Image.Resampling.BILINEAR, box=window)
    label = np.asarray(Image.fromarray(label).resize((w, h), Image.Resampling.NEAREST, box=window))

    light, gamma = np.ones((3, 1)), 1.0
    if colours:
        picture = ImageEnhance.Color(picture).enhance(rng.uniform(1 - SATURATION, 1 + SATURATION))
        light, gamma = rng.uniform(1 - LIGHT, 1 + LIGHT, (3, 1)), np.exp(rng.uniform(-GAMMA, GAMMA))
    contrast, brightness = rng.uniform(1 - CONTRAST, 1 + CONTRAST), rng.uniform(-BRIGHTNESS, BRIGHTNESS)
    levels = 255 * np.minimum(light * np.arange(256) / 255, 1) ** gamma  # [3, 256]: what becomes of each level
    levels = np.clip((levels - 127.5) * contrast + 127.5 + brightness, 0, 255).astype(np.uint8)
    image = np.asarray(picture.point(levels.ravel().tolist()))

    return (image[:, ::-1], label[:, ::-1]) if flip and rng.random() < 0.5 else (image, label)


def class_weights(counts: np.ndarray) -> torch.Tensor:
    """float32 [C]: what a pixel of each class counts in the loss, so that rare classes are not lost among the others.

    counts [C], the pixels of each class in all training images. A class of frequency f counts as 1 / sqrt(f), up to a factor
    that makes the mean over all pixels 1: between all pixels alike (1) and all classes alike however few pixels show them
    (1 / f). Below RAREST the weight grows no more, or a few stray pixels would outweigh all else. A class that no image has
    counts as 1.
    """
    frequency = counts / max(counts.sum(), 1)
    weights = 1 / np.sqrt(np.maximum(frequency, RAREST))
    weights /= (frequency * weights).sum() or 1
    return torch.tensor(np.where(counts > 0, weights, 1), dtype=torch.float32)


def collate(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of any sizes to one batch: images uint8 [N, 3, H, W], labels uint8 [N, H, W].

    Smaller ones are padded below and right, images with the ImageNet mean (0 once normalised), labels with IGNORE.
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


def batches(groups: list[list], load: Callable, workers: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A collated batch of load(item) for each group of items, in order.

    With workers > 0, that many threads load ahead, two batches at most. Threads, not processes: Pillow and numpy work
    outside Python's lock, and one cache serves all. The result is the same for any number of workers.
    """
    if workers == 0:
        for group in groups:
            yield collate([load(item) for item in group])
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        try:
            for group in groups:
                waiting.append([pool.submit(load, item) for item in group])
                if len(waiting) > 2:
                    yield collate([future.result() for future in waiting.popleft()])
            while waiting:
                yield collate([future.result() for future in waiting.popleft()])
        finally:  # an error, or a consumer that stops early: do not decode what nobody will see
            for future in (f for group in waiting for f in group):
                future.cancel()


def training_batches(reader, samples, epoch: int, crop, settings, ranks, done: int = 0):
    """This process's share of each batch of one epoch but the first `done`.

    Every sample comes once, in a random order, seen in a random way. All that is random here follows from (seed, epoch,
    sample) alone, so it needs no state to be saved, and is the same for any number of workers and processes.
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

    # Where the last batch has fewer images than there are processes, some get one that does not count: all must take part.
    shares = [ranks.share([(i, True) for i in group]) or [(group[0], False)] for group in groups]
    return batches(shares, load, settings["workers"])


def on_device(source: Iterable, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of bytes to what the network takes: images float32 normalised, labels long, both on the device.

    On CUDA the next batch is copied on a stream of its own while the present one is computed: from pinned memory, as
    bytes (a quarter of the floats), normalised over there.
    """
    if device.type != "cuda":
        for images, labels in source:
            yield normalise(images.to(device)), labels.to(device).long()
        return
    copying = torch.cuda.Stream(device)
    computing = torch.cuda.current_stream(device)

    def start_copy(batch):
        with torch.cuda.stream(copying):
            images, labels = (tensor.pin_memory().to(device, non_blocking=True) for tensor in batch)
            return images, labels, copying.record_event()

    ahead = None
    for batch in chain(source, [None]):  # one more turn at the end, for the batch still ahead
        following = start_copy(batch) if batch else None
        if ahead:
            images, labels, copied = ahead
            computing.wait_event(copied)
            for tensor in (images, labels):
                tensor.record_stream(computing)  # its memory must not be reused before the computation is done
            yield normalise(images), labels.long()
        ahead = following


@lru_cache
def mean_and_deviation(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    constants = 255 * torch.tensor([IMAGE_MEAN, IMAGE_STD], device=device)
    return constants[0].view(1, 3, 1, 1), constants[1].view(1, 3, 1, 1)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 3, H, W] RGB to float32: 0..1, minus IMAGE_MEAN, over IMAGE_STD, as the ImageNet weights expect."""
    mean, deviation = mean_and_deviation(images.device)
    return (images.float() - mean) / deviation
