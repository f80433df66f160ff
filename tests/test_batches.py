"""Class weights, and batches: padded, normalised, the same for any number of workers."""

import threading

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.console import InputError
from support.datasets.check import weigh_classes
from support.labels import IGNORE
from support.prefetch import prefetch
from support.training.batches import Batches, collate
from support.training.distributed import Ranks
from train import Config
from vgg import IMAGE_MEAN, IMAGE_STD, normalise

# ---- class weights ----


@given(st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=200))
def test_class_weights_are_inverse_root_frequencies_with_mean_1(pixels):
    counts = np.bincount(pixels, minlength=5)
    weights = weigh_classes(counts)
    assert weights[counts == 0].tolist() == [1] * (counts == 0).sum()
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    weighted = (weights * counts**0.5)[counts > 0]
    assert weighted == pytest.approx(weighted[0])


def test_class_weights_are_capped_for_very_rare_classes():
    usual, stray, rare = weigh_classes(np.array([999_899, 1, 100])).tolist()
    assert usual == pytest.approx(1, abs=0.02) and stray == rare == pytest.approx(100, rel=0.02)


# ---- batches ----


@given(sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4))
def test_images_of_different_sizes_are_padded_with_ignore(sizes):
    pairs = [(np.full((h, w, 3), 7, np.uint8), np.full((h, w), 1, np.uint8)) for h, w in sizes]
    height, width = np.max(sizes, 0).tolist()
    images, labels = collate(pairs, (height, width))
    assert images.shape == (len(sizes), 3, height, width)
    for image, label, (h, w) in zip(images, labels, sizes, strict=True):
        assert (image[:, :h, :w] == 7).all() and (label[:h, :w] == 1).all()
        assert (label == IGNORE).sum() == height * width - h * w
    padding = normalise(images)[labels[:, None].expand_as(images) == IGNORE]
    assert (padding.abs() < 0.01).all()  # the mean colour: almost 0


def batches(count=10, pixels=None, epoch=1, workers=0, skip=0, **settings):
    """The batches of an epoch over samples 0, 1, ..., each labelled with its number."""
    pixels = np.zeros((4, 4, 3), np.uint8) if pixels is None else pixels

    def read(i):
        return pixels, np.full(pixels.shape[:2], i, np.uint8)

    config = Config(**{"resize": 1.0, "flip": "no", **settings})
    cpu = torch.device("cpu")
    sizes = [pixels.shape[:2]] * count
    return list(Batches(read, range(count), sizes, epoch, config, Ranks(), workers, cpu, skip))


def order(epoch):
    return [labels[:, 0, 0].tolist() for _, labels in epoch]


@given(
    st.integers(1, 9), st.integers(1, 4), st.integers(0, 3), st.integers(0, 9), st.integers(0, 3)
)
def test_an_epoch_has_each_sample_once_in_a_reproducible_order(count, size, workers, seed, skip):
    options = dict(batch_size=size, seed=seed)
    plain, threads = batches(count, **options), batches(count, workers=workers, **options)
    assert sorted(sum(order(plain), [])) == list(range(count))
    assert all(len(batch) == size for batch in order(plain)[:-1])
    rest = batches(count, skip=skip, **options)  # of an interrupted epoch
    for wanted, found in ((plain, threads), (plain[skip:], rest)):
        for (images, labels), (others, their_labels) in zip(wanted, found, strict=True):
            assert torch.equal(images, others) and torch.equal(labels, their_labels)


def test_another_seed_or_epoch_gives_another_order_and_other_views():
    cases = [dict(seed=seed, epoch=epoch) for seed, epoch in ((0, 1), (1, 1), (0, 2))]
    orders = [order(batches(**case)) for case in cases]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    views = [batches(1, noise, **case)[0][0].tolist() for case in cases]
    assert views[0] != views[1] != views[2] != views[0]


def test_images_reach_the_network_normalised_in_rgb():
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0], image[..., 2] = 255, 51  # red 1.0, blue 0.2
    ((images, labels),) = batches(1, image, augment=False)
    wanted = [(v - m) / s for v, m, s in zip((1, 0, 0.2), IMAGE_MEAN, IMAGE_STD, strict=True)]
    assert images[0, :, 1, 1].tolist() == pytest.approx(wanted, abs=1e-5)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert images.is_contiguous(memory_format=torch.channels_last)  # fastest for convolutions


@pytest.mark.parametrize("flip, mirrored", [("yes", {True, False}), ("no", {False})])
def test_views_are_mirrored_only_with_flip(flip, mirrored):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = 255  # brighter at the right
    halves = [image.mean((0, 1, 2)) for image, _ in batches(30, pixels, flip=flip)]
    assert {bool(row[0] > row[-1]) for row in halves} == mirrored


@pytest.mark.parametrize("resize, crop", [(1, "none"), (2, "none"), (2, (32, 64))])
def test_views_follow_the_resize_factor_and_the_crop(resize, crop):
    pixels = np.zeros((64, 96, 3), np.uint8)
    sizes = np.array([i.shape[2:] for i, _ in batches(30, pixels, resize=resize, crop=crop)])
    if crop == "none":
        low, high = (np.multiply((64, 96), resize * scale) for scale in (0.75, 1.35))
        assert (abs(sizes - (low + high) / 2) <= (high - low) / 2 + 16).all()
    else:
        assert sizes.max(0).tolist() == [64, 128]


# ---- prefetching ----


@given(st.integers(0, 12), st.integers(1, 4), st.integers(0, 9))
def test_prefetching_stays_within_its_memory_limit(count, workers, fitting):
    """Not counting the result in use. One is always loading, so that the loop seldom waits."""
    begun, ahead = [], []

    def load(i):
        return "a name", [np.zeros(40, np.uint8), (torch.zeros(15), i)]

    items = (begun.append(i) or i for i in range(count))
    for used, _ in enumerate(prefetch(items, load, workers, room=100 * fitting), 1):
        ahead.append(len(begun) - used)
    most = max(1, min(workers + 1, fitting))
    assert max(ahead, default=0) == max(0, min(count - 1, most))


def test_all_workers_load_at_the_same_time():
    """All but the first load, whose result shows how much memory each takes."""
    together = threading.Barrier(3)  # passes once three loads are running
    assert len(list(prefetch(range(13), lambda i: i and together.wait(60), workers=3))) == 13


def test_a_loop_that_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    results = prefetch(range(100), str, 4)
    assert next(results) == "0"
    results.close()
    assert threading.active_count() == before


def test_an_error_is_raised_when_its_turn_comes():
    def load(i):
        if i == 2:
            raise InputError(f"sample {i}")
        return i

    results = prefetch(range(4), load, workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(InputError, match="sample 2"):
        next(results)
