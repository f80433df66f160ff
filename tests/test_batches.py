"""From samples to batches: image and label kept together, classes counted, batches of any sizes,
any number of workers.
"""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import kitti, picture
from hypothesis import given
from hypothesis import strategies as st

import data
from data import find
from support.console import InputError
from support.datasets.augment import augment
from support.datasets.check import Counts, check_counts, read_everything, weigh_classes
from support.datasets.images import Reader, read_mask
from support.device import normalise, on_device
from support.labels import IGNORE
from support.training.batches import collate, load_batches, training_batches
from support.training.distributed import Ranks
from vgg import IMAGE_MEAN, IMAGE_STD

# ---- reading ----


def test_image_and_label_of_different_sizes_are_refused_with_both_sizes(tmp_path):
    sample = data.Sample(
        picture(tmp_path / "i.png", np.zeros((5, 7, 3))), picture(tmp_path / "m.png", [[0]]), ""
    )
    with pytest.raises(InputError, match="1x1.*7x5"):
        Reader(lambda path, strays: read_mask(path))(sample)


@pytest.mark.parametrize("room, kept", [(10**6, 12), (0, 0), (3 * 6 * 9 * 4, 3)])
def test_the_cache_stays_within_its_bytes_and_changes_nothing(tmp_path, room, kept):
    found = find(kitti(tmp_path))
    reader, plain = Reader(found.read_label, room), Reader(found.read_label, 0)
    for _ in range(2):
        for sample in found.train + found.val:
            for ours, theirs in zip(reader(sample), plain(sample)):
                assert np.array_equal(ours, theirs)
    assert len(reader.cache) == kept
    assert sum(a.nbytes for pair in reader.cache.values() for a in pair) <= room


# ---- the pixels of each class ----


@given(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=200))
def test_class_weights_fall_with_the_root_of_frequency_and_have_mean_one_over_the_pixels(pixels):
    weights = weigh_classes(np.array([pixels.count(c) for c in range(5)])).tolist()
    assert weights[4] == 1 and all(0 < weight < float("inf") for weight in weights)
    for a in set(pixels):
        for b in set(pixels):
            assert weights[a] / weights[b] == pytest.approx(
                (pixels.count(b) / pixels.count(a)) ** 0.5
            )
    if pixels:
        assert sum(weights[label] for label in pixels) / len(pixels) == pytest.approx(1)


def test_training_pixels_are_counted_and_ignored_ones_are_not(tmp_path):
    for i, part in enumerate(("train", "train", "val")):
        picture(tmp_path / f"{part}/images/{i}.png", np.zeros((2, 3, 3)))
        picture(tmp_path / f"{part}/masks/{i}.png", [[0, 1, 1], [IGNORE, 0, 7]])
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    found = find(tmp_path)
    assert read_everything(found.train, found, Reader(found.read_label)).pixels.sum(0).tolist() == [
        4,
        4,
        0,
    ]


def test_stray_pixels_of_a_class_weigh_no_more_than_those_of_a_rare_one():
    none, stray, rare = weigh_classes(np.array([999_899, 1, 100])).tolist()
    assert none == pytest.approx(1, abs=0.02) and stray == rare == pytest.approx(100, rel=0.02)


# ---- random views ----


@given(
    seed=st.integers(0, 10**6),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    crop=st.none() | st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
def test_augmentation_keeps_size_type_and_classes(seed, height, width, crop):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    label = rng.choice(np.array([0, 1, 5, IGNORE], np.uint8), (height, width))
    view, view_label = augment(image, label, rng, crop)
    assert view.dtype == view_label.dtype == np.uint8
    assert view.shape == (*view_label.shape, 3)
    if crop:
        assert view_label.shape[0] <= crop[0] and view_label.shape[1] <= crop[1]
    assert set(np.unique(view_label)) <= set(np.unique(label))  # nearest: no id that was not there


@given(height=st.integers(20, 90), width=st.integers(20, 90), seed=st.integers(0, 10**6))
def test_a_crop_is_refused_only_if_no_view_is_as_large(height, width, seed):
    """Views are up to 1.35 times as large as their image."""
    samples = [data.Sample(Path("i.png"), Path("m.png"), "")]
    counts = Counts(
        np.array([[1, 1]] * 2),
        np.array([(height, width), (20, 20)]),
        Counter(),
        [b"training", b"held out"],
    )
    found = data.DataSet("", ["a", "b"], samples, samples, None)
    check_counts(
        counts, found, augment(*blank(height, width), np.random.default_rng(seed))[1].shape
    )
    with pytest.raises(InputError, match="every image is smaller"):
        check_counts(
            counts, found, (int(1.35 * height) + 17, int(1.35 * width) + 17)
        )  # a view's sides are rounded to 32


def blank(height, width):
    return np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8)


@given(seed=st.integers(0, 10**6), crop=st.sampled_from([None, (40, 60), (17, 90)]))
def test_augmentation_keeps_image_and_label_together(seed, crop):
    """The label is drawn into the picture: after any flip, scale and crop it is still found there."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 2, (5, 6), np.uint8), np.ones((16, 16), np.uint8))
    image = np.repeat(60 + 120 * label[..., None], 3, axis=2)
    view, view_label = augment(image, label, rng, crop)
    if len(np.unique(view_label)) == 2:  # light and contrast may shift both greys, not their order
        for channel in range(3):
            seen = view[..., channel].astype(int)
            agree = ((seen > (seen.min() + seen.max()) / 2) == view_label).mean()
            assert agree > 0.93  # all but the blended edges


@pytest.mark.parametrize("flip, left", [("yes", {False, True}), ("no", {True})])
def test_training_views_are_mirrored_only_where_that_is_wanted(flip, left):
    label = np.zeros((64, 64), np.uint8)
    label[:, :16] = 1  # what is at the left
    image = np.full((64, 64, 3), 100, np.uint8)
    settings = {
        "seed": 0,
        "batch_size": 1,
        "augment": True,
        "colours": True,
        "flip": flip,
        "scale": 1.0,
    }
    views = training_batches(
        lambda _: (image, label), list(range(40)), 1, None, settings, Ranks(), workers=0
    )
    labels = [labels[0] for _, labels in views]
    sides = {bool((seen[:, 0] == 1).all()) for seen in labels if (seen == 1).any()}
    assert sides == left


def test_augmentation_flips_scales_crops_and_changes_light():
    label = np.zeros((512, 512), np.uint8)
    label[:, :160] = 1
    image = np.full((512, 512, 3), 100, np.uint8)
    views = [augment(image, label, np.random.default_rng(i)) for i in range(40)]
    assert {bool(v[0, 0]) for _, v in views} == {False, True}
    heights = {v.shape[0] for _, v in views}
    assert min(heights) == 384 and max(heights) >= 672 and len(heights) > 5  # 0.75 to 1.35 times
    assert all(side % 32 == 0 for side in heights)  # few sizes
    assert len({int(v[0, 0, 0]) for v, _ in views}) > 10
    grey = np.array([v[0, 0] for v, _ in views], int)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert (grey[:, i] > grey[:, j]).any() and (
            grey[:, i] < grey[:, j]
        ).any()  # its light has a colour, of any kind
    plain = np.array(
        [augment(image, label, np.random.default_rng(i), colours=False)[0][0, 0] for i in range(40)]
    )
    assert (plain == plain[:, :1]).all() and len({int(p[0]) for p in plain}) > 10  # grey stays grey
    image[:, :, 0] = 180  # a red: of other light, and nearer to grey or farther from it
    reds = np.array(
        [augment(image, label, np.random.default_rng(i))[0][0, 0] for i in range(40)], int
    )
    redness = (reds[:, 0] - reds[:, 1]) / np.maximum(grey[:, 0], 1)
    assert (reds[:, 0] > reds[:, 1:].max(1)).all() and redness.max() > 2 * redness.min()
    windows = {
        v.tobytes()
        for _, v in (augment(image, label, np.random.default_rng(i), (128, 128)) for i in range(40))
    }
    assert len(windows) > 4


# ---- batches ----


@given(sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4))
def test_a_batch_of_images_of_different_sizes_is_padded_with_ignore(sizes):
    pairs = [(np.full((h, w, 3), 7, np.uint8), np.full((h, w), 1, np.uint8)) for h, w in sizes]
    images, labels = collate(pairs)
    assert images.shape == (len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
    for n, (h, w) in enumerate(sizes):
        assert (images[n, :, :h, :w] == 7).all() and (labels[n, :h, :w] == 1).all()
        assert (labels[n] == 1).sum() == h * w and (labels[n] == IGNORE).sum() == labels[
            n
        ].numel() - h * w
    padding = normalise(images)[labels[:, None].expand_as(images) == IGNORE]
    assert (padding.abs() < 0.01).all()  # the mean colour: next to nothing


@given(count=st.integers(0, 9), batch_size=st.integers(1, 4), workers=st.integers(0, 3))
def test_batches_bring_every_sample_once_in_order_for_any_number_of_workers(
    count, batch_size, workers
):
    def load(i):
        return np.full((1, 1, 3), i, np.uint8), np.full((1, 1), i, np.uint8)

    groups = [list(range(count))[i : i + batch_size] for i in range(0, count, batch_size)]
    loaded = [labels.flatten().tolist() for _, labels in load_batches(groups, load, workers)]
    assert loaded == groups


@pytest.mark.parametrize("workers, size", [(8, 1), (8, 2), (3, 5), (1, 4)])
def test_all_workers_have_something_to_do_at_once(workers, size):
    together = threading.Barrier(workers)

    def load(i):
        together.wait(timeout=60)  # passes once as many loads are under way as there are workers
        return np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)

    groups = [list(range(size))] * (4 * workers)
    assert len(list(load_batches(groups, load, workers))) == len(groups)


def test_a_loop_that_stops_early_leaves_no_thread_behind():
    before = threading.active_count()
    batches = load_batches(
        [[i, i] for i in range(100)],
        lambda i: (np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), np.uint8)),
        4,
    )
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_an_error_in_a_worker_reaches_the_loop():
    def load(i):
        raise InputError(f"sample {i}")

    with pytest.raises(InputError, match="sample 0"):
        list(load_batches([[0], [1], [2], [3]], load, 2))


def test_images_reach_the_network_normalised_in_rgb():
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0], image[..., 2] = 255, 51  # red 1.0, blue 0.2
    pair = collate([(image, np.zeros((2, 2), np.uint8))])
    images, labels = next(on_device([pair], torch.device("cpu")))
    wanted = [(v - m) / s for v, m, s in zip((1.0, 0.0, 0.2), IMAGE_MEAN, IMAGE_STD)]
    assert images[0, :, 1, 1].tolist() == pytest.approx(wanted, abs=1e-5)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
