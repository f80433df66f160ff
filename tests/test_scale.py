"""Pictures of other sizes than the network was trained on: said, and computed at another size if
that is asked for.
"""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import lively
from hypothesis import given
from hypothesis import strategies as st

from support.console import InputError
from support.inference.predictor import predict_image, stretched, tiled
from support.inference.scale import Scale, at_scale
from support.labels import DataSet
from support.training.options import suited_scale

SIZES = {"smallest": (360, 480), "median": (375, 1242), "largest": (376, 1300)}


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 600), st.integers(1, 60))
def test_scores_stretched_strip_by_strip_are_those_stretched_as_a_whole(height, width, tall, wide):
    scores = torch.randn(1, 3, height, width)
    parts = [
        (slice(0, height // 2), slice(0, width), scores[:, :, : height // 2]),
        (slice(height // 2, height), slice(0, width), scores[:, :, height // 2 :]),
    ]
    wanted = F.interpolate(scores, size=(tall, wide), mode="bilinear", align_corners=False)
    got, covered = torch.full_like(wanted, torch.nan), 0
    for rows, columns, part in stretched(parts, height, width, (tall, wide)):
        got[:, :, rows, columns] = part
        covered += part.shape[2]
    assert covered == tall
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_result_of_another_size_has_the_classes_and_confidences_of_the_stretched_scores():
    net, image = lively(1, 8), torch.randn(1, 3, 700, 580)
    seen = predict_image(net, image, net.reach, 600, sought=[1], size=(300, 290))
    assert len(list(tiled(net, image, net.reach, 600))) > 1
    scores = F.interpolate(net(image), size=(300, 290), mode="bilinear", align_corners=False)[0]
    assert seen.classes.shape == (300, 290) and (seen.classes != scores.argmax(0)).sum() <= 3
    assert (seen.confidences[0] - 255 * scores.softmax(0)[1]).abs().max() <= 0.51


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.05, 3))
def test_a_picture_is_computed_at_the_factor_times_its_size(height, width, factor):
    image = np.full((height, width, 3), 77, np.uint8)
    size = max(1, int(height * factor)), max(1, int(width * factor))
    assert Scale(None)("a.png", image) == (height, width) and at_scale(image, 1.0) is image
    assert (
        Scale(None, factor=factor)("a.png", image)
        == Scale(None, own=factor)("a.png", image)
        == size
    )
    assert Scale(None, own=7, size=(20, 31))("a.png", image) == (20, 31)
    seen = at_scale(image, factor)
    assert seen.shape == (*size, 3) and (seen == 77).all()


@pytest.mark.parametrize(
    "size, road, augment, scale",
    [
        ((360, 480), None, True, 1.5),
        ((375, 500), None, True, 1.5),
        ((375, 1242), None, True, 1.0),
        ((360, 480), 1, True, 1.0),
        ((360, 480), None, False, 1.0),
    ],
)
def test_small_images_of_several_classes_are_enlarged_and_others_are_not(
    size, road, augment, scale
):
    """CamVid and VOC; not KITTI's size, not a road alone, not with --recipe paper, which trains on
    images as they are.
    """
    data = DataSet("", ["not road", "road"] if road else ["road", "car", "pole"], [], [], None)
    sizes = {"median": size, "largest": size}
    assert data.road == road
    assert suited_scale({"scale": "auto", "augment": augment}, data, sizes) == scale
    assert suited_scale({"scale": 2.0, "augment": True}, data, sizes) == 2
    with pytest.raises(InputError, match="--scale 50: makes more than"):
        suited_scale({"scale": 50.0, "augment": True}, data, sizes)


@pytest.mark.parametrize(
    "shape, factor, warned",
    [
        ((375, 1242), None, ""),
        ((1242, 375), None, ""),
        ((750, 2600), None, ""),
        ((750, 2700), None, "larger.* --scale 0.46"),
        ((3000, 4000), None, "larger.* --scale 0.31"),
        ((4000, 3000), 0.31, ""),
        ((240, 180), None, ""),
        ((100, 200), None, "smaller.*6.2"),
        ((375, 1242), 4, "larger"),
    ],
)
def test_a_picture_far_from_the_sizes_of_training_is_said_with_the_scale_that_mends_it(
    capsys, shape, factor, warned
):
    Scale(SIZES, factor=factor)("a.png", np.zeros((*shape, 3), np.uint8))
    said = capsys.readouterr().err
    assert said.count("\n") == bool(warned) and re.search(warned, said)


@pytest.mark.parametrize(
    "views, warned",
    [
        ((1.0,), ""),
        ((0.75, 1.25), ""),
        ((1.0, 3.0), "computed at 1125x3726.* larger"),
        ((0.1, 1.0), "computed at 38x124.* smaller"),
        ((0.1, 9.0), "smaller"),
    ],
)
def test_the_views_that_are_averaged_count_as_sizes_too(capsys, views, warned):
    scale = Scale(SIZES, views=views)
    assert scale("a.png", np.zeros((375, 1242, 3), np.uint8)) == (375, 1242)
    said = capsys.readouterr().err
    assert said.count("\n") == bool(warned) == scale.far and re.search(warned, said)


def test_a_picture_is_too_large_if_its_largest_view_is():
    image = np.zeros((100, 100, 3), np.uint8)
    for views, factor in (((1.0,), 200), ((2.0,), 100), ((0.5, 20.0, 1.0), 10)):
        with pytest.raises(InputError, match="a.png: would be computed at 20000x20000; at most"):
            Scale(SIZES, factor=factor, views=views)("a.png", image)
        with pytest.raises(InputError, match="--size: would be computed at 20000x20000"):
            Scale(SIZES, size=(100 * factor, 100 * factor), views=views)
    assert Scale(SIZES, factor=100, views=(1.0, 0.5))("a.png", image) == (10000, 10000)


def test_many_pictures_of_a_far_size_are_said_once_and_counted_at_the_end(capsys):
    scale = Scale(SIZES)
    for _ in range(5):
        scale("a.png", np.zeros((3000, 4000, 3), np.uint8))
    scale.sum_up()
    first, last = capsys.readouterr().err.splitlines()
    assert "a.png" in first and "5 pictures" in last


def test_a_checkpoint_that_does_not_know_its_sizes_warns_of_none(capsys):
    Scale(None)("a.png", np.zeros((3000, 4000, 3), np.uint8))
    assert not capsys.readouterr().err
