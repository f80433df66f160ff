"""Synthetic scenes: the properties that other files and their readers rely on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kitti import homography
from support.datasets import synthetic
from support.datasets.synthetic import CATEGORIES, NOT_ROAD, NOT_VALID, ROAD, draw, survey, write

SEEDS, SIDES = st.integers(0, 2**63), st.integers(16, 200)


def is_road(truth):
    return (truth == ROAD).all(-1)


def best_iou(scores, truth, valid):
    """The IoU of the best of 15 thresholds; `scores` broadcasts to `truth`."""
    answers = [scores > level for level in np.linspace(0.1, 0.8, 15)]
    return max((a & truth & valid).sum() / ((a | truth) & valid).sum() for a in answers)


@given(SEEDS, st.sampled_from(CATEGORIES), SIDES, SIDES)
def test_scenes_of_any_size_have_valid_ground_truth(seed, category, height, width):
    scene = draw(seed, category, height, width)
    truths = [truth for truth in (scene.road, scene.lane) if truth is not None]
    assert len(truths) == (2 if category == "um" else 1)
    for pixels in (scene.image, *truths):
        assert pixels.shape == (height, width, 3) and pixels.dtype == np.uint8
    for truth in truths:
        colours = set(map(tuple, truth.reshape(-1, 3).tolist()))
        assert colours <= {ROAD, NOT_ROAD, NOT_VALID}
    assert not (is_road(truths[-1]) & ~is_road(scene.road)).any()
    assert np.array_equal((truths[-1] == 0).all(-1), (scene.road == 0).all(-1))


def test_neither_position_nor_colour_alone_predicts_road():
    scenes = [draw(seed, CATEGORIES[seed % 3], 48, 160) for seed in range(60)]
    images, truths = np.array([s.image for s in scenes]), np.array([s.road for s in scenes])
    road, valid = is_road(truths), (truths != NOT_VALID).any(-1)
    assert road.any((1, 2)).all()  # every scene shows road
    assert best_iou(1.0, road, valid) < 0.5
    assert best_iou(road.mean(0), road, valid) < 0.65
    codes, road = images[2::3] // 16 @ np.array([256, 16, 1]), road[2::3]  # uu: no markings
    seen, of_road = (np.bincount(codes.ravel(), of, 4096) for of in (None, road.ravel()))
    assert best_iou((of_road / np.maximum(seen, 1))[codes], road, True) < 0.65


def off_the_plan(scene, plan, to_image, down=0, right=0):
    """Road pixels nearer than 40 m that touch no planned road, and the share of road among pixels
    wholly on planned road. Pixel corners (1-based, like KITTI's) are projected onto the ground.
    """
    row, column = np.mgrid[: scene.road.shape[0] + 1, : scene.road.shape[1] + 1] + 1.0
    rays = np.stack([column + right, row + down, np.ones_like(row)])
    x, z, one = np.tensordot(np.linalg.inv(to_image), rays, 1)
    planned, near = plan.inside(x / one, z / one) > 0, ((z / one > 0) & (z / one < 40))[:-1, :-1]
    corners = np.stack([planned[:-1, :-1], planned[1:, :-1], planned[:-1, 1:], planned[1:, 1:]])
    road = is_road(scene.road)
    return (road & near & ~corners.any(0)).sum(), road[near & corners.all(0)].mean()


@pytest.mark.parametrize("category", CATEGORIES)
def test_calibration_matches_the_drawn_ground_to_the_pixel(tmp_path, category):
    scenes = []
    for seed in range(10):
        scene, file = draw(seed, category), tmp_path / f"{seed}.txt"
        file.write_text(scene.calib)
        scenes.append((scene, survey(seed, category), homography(file)))
    for scene in scenes:
        off, share = off_the_plan(*scene)
        assert off == 0 and share > 0.4  # objects hide the rest of the planned road
    for down, right in ((0, 1), (0, -1), (-1, 0)):  # a shift of one pixel shows
        assert sum(off_the_plan(*scene, down, right)[0] for scene in scenes) > 0


def test_the_files_depend_only_on_the_seed(tmp_path):
    for name, seed in zip("abc", (1, 1, 2), strict=True):
        write(tmp_path / name, 3, 3, 16, 32, seed)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    a, b, c = [[(tmp_path / name / file).read_bytes() for file in files] for name in "abc"]
    assert a == b and a != c
    images = {path.read_bytes() for path in (tmp_path / "a").rglob("image_2/*.png")}
    assert len(images) == 6  # none is in both splits


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*arguments, **more):
        raise OSError("No space left on device")

    monkeypatch.setattr(synthetic.Path, "write_text", full)
    with pytest.raises(OSError):
        write(tmp_path / "data", 6, 0, 16, 32)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_files_is_left_unchanged(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/mine.txt").write_text("mine")
    with pytest.raises(OSError):
        write(tmp_path / "data", 1, 0, 16, 32)
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "mine.txt"]
