"""The bird's-eye view against points projected by hand, and calibrations that cannot be used."""

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from data import read_kitti_label
from kitti import bird_cells, bird_view, homography, read_calibration
from support.console import InputError
from support.datasets import synthetic as roads
from support.labels import IGNORE


def project(matrices, x, z):
    """The 1-based image point of the ground point (x, 0, z), step by step and without a matrix
    inverse.
    """
    rotation = [matrices["Tr_cam_to_road"][4 * i : 4 * i + 3] for i in range(3)]
    shift = [matrices["Tr_cam_to_road"][4 * i + 3] for i in range(3)]
    ground = [x - shift[0], 0 - shift[1], z - shift[2]]
    camera = [
        sum(rotation[i][j] * ground[i] for i in range(3)) for j in range(3)
    ]  # a rotation's inverse: its transpose
    rectified = [
        sum(matrices["R0_rect"][3 * i + j] * camera[j] for j in range(3)) for i in range(3)
    ] + [1.0]
    u, v, w = (sum(matrices["P2"][4 * i + j] * rectified[j] for j in range(4)) for i in range(3))
    return u / w, v / w


def test_real_calibration_projects_ground_points_where_arithmetic_by_hand_does(kitti_sample):
    path = kitti_sample / "training/calib/um_000000.txt"
    matrices, height, width = read_calibration(path), 375, 1242
    cells = bird_cells(path, height, width)
    assert cells.shape == (800, 400)
    outside = 0
    for row in range(0, 800, 37):
        for column in range(0, 400, 13):
            u, v = project(matrices, -10 + 0.025 + 0.05 * column, 46 - 0.025 - 0.05 * row)
            if min(abs(u - round(u)), abs(v - round(v))) < 1e-3:
                continue  # on the edge of a pixel, where rounding decides
            seen = 1 <= u <= width and 1 <= v <= height
            outside += not seen
            assert cells[row, column] == (
                (math.floor(v) - 1) * width + math.floor(u) - 1 if seen else -1
            )
    assert outside > 5, "near the camera the picture does not cover the corners"


def test_a_real_road_seen_from_above_keeps_its_width_and_uncovered_cells_are_not_valid(
    kitti_sample,
):
    truth = torch.from_numpy(
        read_kitti_label(kitti_sample / "training/gt_image_2/um_road_000000.png")
    )
    above = bird_view(
        truth, bird_cells(kitti_sample / "training/calib/um_000000.txt", *truth.shape), IGNORE
    )
    assert above.dtype == truth.dtype and set(above.unique().tolist()) == {0, 1, IGNORE}
    widths = (above[200:700] == 1).sum(1) * 0.05
    assert 5 < widths.median() < 12, "two lanes are some eight metres wide, near and far alike"
    assert above[-1, 0] == IGNORE


def test_a_picture_from_above_has_the_colours_of_the_pixels_it_is_seen_at(kitti_sample):
    image = torch.tensor(np.asarray(Image.open(kitti_sample / "training/image_2/um_000000.png")))
    cells = bird_cells(kitti_sample / "training/calib/um_000000.txt", *image.shape[:2])
    above = bird_view(image, cells, 0)
    assert above.shape == (800, 400, 3) and above.dtype == torch.uint8
    for channel in range(3):
        assert torch.equal(above[..., channel], bird_view(image[..., channel], cells, 0))
    row, column = divmod(cells[400, 200].item(), image.shape[1])
    assert torch.equal(above[400, 200], image[row, column]) and not above[cells < 0].any()


def test_truth_of_synthetic_scenes_from_above_is_the_road_they_were_drawn_from(tmp_path):
    """Calibration and picture come from one geometry: what is road in the picture is road on the
    ground.
    """
    roads.write(tmp_path / "s", train=3, test=0, height=375, width=1242)
    truth = torch.from_numpy(
        read_kitti_label(tmp_path / "s/training/gt_image_2/um_road_000000.png")
    )
    above = bird_view(
        truth, bird_cells(tmp_path / "s/training/calib/um_000000.txt", *truth.shape), IGNORE
    )
    plan = roads.survey(0, "um")
    x, z = np.meshgrid(-10 + 0.05 * (np.arange(400) + 0.5), 46 - 0.05 * (np.arange(800) + 0.5))
    inside, judged = plan.inside(x, z), above.numpy()
    sure = (np.abs(inside) > 0.3) & (judged != IGNORE)
    # Cars and what else stands on the road hide some of it; what is not road is never road.
    assert ((inside > 0) == (judged == 1))[sure].mean() > 0.8
    assert (judged == 1)[sure & (inside < 0)].mean() < 0.01


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "P2 is missing"),
        ("P2: 1 2 3\n", "P2 is missing or not 12"),
        ("P2: a b\n", "NAME: NUMBERS"),
        ("P2 1 2 3\n", "NAME: NUMBERS"),
        (None, "no such calibration"),
        (
            "P2:" + " 1" * 12 + "\nR0_rect:" + " 1" * 9 + "\nTr_cam_to_road:" + " 0" * 12,
            "cannot be inverted",
        ),
        ("P2:" + " nan" * 12, "P2 is missing or not 12 numbers"),
    ],
)
def test_a_calibration_that_cannot_be_used_is_named(tmp_path, text, said):
    path = tmp_path / "um_000000.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=said) as error:
        homography(path)
    assert str(path) in str(error.value)


@given(st.binary(max_size=200))
@example(b"P2: 1 2\nP2")
@example("Ä: 1".encode())
def test_any_bytes_as_calibration_are_an_input_error_or_numbers(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("c") / "c.txt"
    path.write_bytes(content)
    try:
        homography(path)
    except InputError as error:
        assert str(path) in str(error)
