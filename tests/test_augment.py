"""Augmentation keeps image and label aligned, and varies size, position and colour."""

import numpy as np
import pytest
from conftest import kitti
from hypothesis import given
from hypothesis import strategies as st

from data import find
from support.datasets.augment import augment
from support.datasets.images import Reader
from support.labels import IGNORE

crops = st.none() | st.tuples(st.integers(1, 70), st.integers(1, 70))
seeds = st.integers(0, 10**6)


@given(seeds, st.integers(1, 90), st.integers(1, 90), crops)
def test_views_keep_dtypes_and_classes_and_fit_the_crop(seed, height, width, crop):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    label = rng.choice(np.array([0, 1, 5, IGNORE], np.uint8), (height, width))
    view, view_label = augment(image, label, rng, crop)
    assert view.dtype == view_label.dtype == np.uint8
    assert view.shape == (*view_label.shape, 3)
    assert crop is None or (np.array(view_label.shape) <= crop).all()
    assert set(np.unique(view_label)) <= set(np.unique(label))  # ids are never blended


@given(seeds, st.sampled_from([None, (40, 60), (17, 90)]))
def test_image_and_label_stay_aligned(seed, crop):
    """The image shows its label, and still does after any flip, scale and crop."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 2, (5, 6), np.uint8), np.ones((16, 16), np.uint8))
    view, view_label = augment(np.repeat(60 + 120 * label[..., None], 3, 2), label, rng, crop)
    if len(np.unique(view_label)) == 2:
        middle = (view.min((0, 1)).astype(int) + view.max((0, 1))) / 2
        agree = ((view > middle) == view_label[..., None]).mean((0, 1))
        assert (agree > 0.93).all()  # all but the blended edges


def views(colour=(100, 100, 100), **options):
    """Forty views (image, label) of an image of one colour; its left part has class 1."""
    image = np.full((256, 256, 3), colour, np.uint8)
    label = np.zeros((256, 256), np.uint8)
    label[:, :80] = 1
    return [augment(image, label, np.random.default_rng(i), **options) for i in range(40)]


def test_views_vary_in_position_and_in_scale_by_steps_of_32():
    heights = {label.shape[0] for _, label in views()}
    assert heights == {192, 224, 256, 288, 320, 352}  # 0.75 to 1.35 times 256
    assert {label.shape for _, label in views(scale_range=(2, 2))} == {(512, 512)}
    assert len({label.tobytes() for _, label in views(crop=(64, 64))}) > 4


def test_tint_and_saturation_vary_unless_colours_are_fixed():
    lights = np.array([image[0, 0] for image, _ in views(crop=(8, 8))], int)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (lights[:, a] > lights[:, b]).any() and (lights[:, a] < lights[:, b]).any()
    greys = np.array([image[0, 0] for image, _ in views(colours=False, crop=(8, 8))])
    assert (greys == greys[:, :1]).all() and len(np.unique(greys)) > 10
    reds = np.array([image[0, 0] for image, _ in views((180, 100, 100), crop=(8, 8))], int)
    redness = (reds[:, 0] - reds[:, 1]) / np.maximum(lights[:, 0], 1)
    assert redness.min() > 0 and redness.max() > 2 * redness.min()


@pytest.mark.parametrize("room, kept", [(10**6, 12), (0, 0), (3 * 6 * 9 * 4, 3)])
def test_the_reader_cache_obeys_its_limit_and_alters_nothing(tmp_path, room, kept):
    found = find(kitti(tmp_path))
    reader, plain = Reader(found.read_label, room), Reader(found.read_label, 0)
    for sample in 2 * (found.train + found.val):
        for ours, theirs in zip(reader(sample), plain(sample), strict=True):
            assert np.array_equal(ours, theirs)
    assert len(reader.cache) == kept
    assert sum(a.nbytes for pair in reader.cache.values() for a in pair) <= room
