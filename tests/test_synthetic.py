"""The promises of support/roads.py: what other files and their readers may rely on in its scenes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from support.datasets import synthetic as roads

seeds, categories, sides = (
    st.integers(0, 2**63),
    st.sampled_from(roads.CATEGORIES),
    st.integers(16, 200),
)


def is_road(truth):
    return (truth == roads.ROAD).all(-1)


def iou(answer, truth, valid):
    return (answer & truth & valid).sum() / ((answer | truth) & valid).sum()


@settings(max_examples=8, deadline=None)
@given(seeds, categories)
def test_same_seed_same_scene(seed, category):
    once, again = roads.draw(seed, category), roads.draw(seed, category)
    assert all(np.array_equal(a, b) for a, b in zip(once, again))
    assert not np.array_equal(once.image, roads.draw(seed + 1, category).image)


@settings(max_examples=30, deadline=None)
@given(seeds, categories, sides, sides)
def test_any_category_and_size_has_truth_of_three_colours_and_a_lane_within_the_road(
    seed, category, height, width
):
    scene = roads.draw(seed, category, height, width)
    assert (scene.lane is not None) == (category == "um")
    for picture in scene[:3] if category == "um" else scene[:2]:
        assert picture.shape == (height, width, 3) and picture.dtype == np.uint8
    for truth in scene[1:3] if category == "um" else scene[1:2]:
        assert set(map(tuple, truth.reshape(-1, 3).tolist())) <= {
            roads.ROAD,
            roads.NOT_ROAD,
            roads.NOT_VALID,
        }
    if category == "um":
        assert not (is_road(scene.lane) & ~is_road(scene.road)).any()
        assert np.array_equal((scene.lane == 0).all(-1), (scene.road == 0).all(-1))


@pytest.mark.parametrize("bad", [dict(category="urban"), dict(height=15), dict(width=0)])
def test_what_cannot_be_drawn_is_a_value_error(bad):
    with pytest.raises(ValueError):
        roads.draw(0, **bad)


def test_constant_and_position_only_answers_score_badly():
    truths = np.array([roads.draw(seed, roads.CATEGORIES[seed % 3]).road for seed in range(120)])
    road, valid = is_road(truths), (truths != roads.NOT_VALID).any(-1)
    assert road.any((1, 2)).all()  # every scene shows some
    assert iou(np.ones_like(road), road, valid) < 0.5
    assert max(iou(road.mean(0) > level, road, valid) for level in np.linspace(0.1, 0.8, 15)) < 0.65


def test_colour_alone_scores_badly():
    pairs = [
        (scene.image // 16, is_road(scene.road))
        for scene in (roads.draw(seed, "uu") for seed in range(20))
    ]
    codes = np.concatenate([image @ np.array([256, 16, 1]) for image, _ in pairs]).ravel()
    road = np.concatenate([truth for _, truth in pairs]).ravel()
    share = np.bincount(codes, road, 4096) / np.maximum(np.bincount(codes, minlength=4096), 1)
    assert max(iou(share[codes] > level, road, True) for level in np.linspace(0.1, 0.8, 15)) < 0.65


def bird_view(calib):
    """H [3, 3] of KITTI's bird's-eye view: ground metres (x, z, 1) to 1-based pixels (u w, v w, w)."""
    rows = {
        key: np.array(text.split(), float)
        for key, text in (line.split(":") for line in calib.splitlines())
    }
    assert list(rows) == "P0 P1 P2 P3 R0_rect Tr_velo_to_cam Tr_imu_to_velo Tr_cam_to_road".split()
    rotate, to_road = np.eye(4), np.eye(4)
    rotate[:3, :3], to_road[:3] = (
        rows["R0_rect"].reshape(3, 3),
        rows["Tr_cam_to_road"].reshape(3, 4),
    )
    return (rows["P2"].reshape(3, 4) @ rotate @ np.linalg.inv(to_road))[:, [0, 2, 3]]


def off_the_plan(scene, plan, down=0, right=0):
    """Road pixels nearer than 40 m without any planned road in them, and the share of road among
    wholly planned ones, by sending pixel corners (1-based, as KITTI counts) back to the ground.
    """
    row, column = np.mgrid[: scene.road.shape[0] + 1, : scene.road.shape[1] + 1] + 1.0
    rays = np.stack([column + right, row + down, 0 * row + 1])
    x, z, one = np.tensordot(np.linalg.inv(bird_view(scene.calib)), rays, 1)
    planned, near = plan.inside(x / one, z / one) > 0, ((z / one > 0) & (z / one < 40))[:-1, :-1]
    corners = np.stack([planned[:-1, :-1], planned[1:, :-1], planned[:-1, 1:], planned[1:, 1:]])
    return (is_road(scene.road) & near & ~corners.any(0)).sum(), is_road(scene.road)[
        near & corners.all(0)
    ].mean()


@pytest.mark.parametrize("category", roads.CATEGORIES)
def test_calibration_meets_the_drawn_ground_to_the_pixel(category):
    scenes = [(roads.draw(seed, category), roads.survey(seed, category)) for seed in range(10)]
    for scene, plan in scenes:
        stray, share = off_the_plan(scene, plan)
        assert stray == 0 and share > 0.4  # what is planned but not road hides behind things
    for down, right in ((0, 1), (0, -1), (-1, 0)):  # the measure is fine enough to see one pixel
        assert sum(off_the_plan(*pair, down, right)[0] for pair in scenes) > 0


def test_layout_names_are_kittis(tmp_path):
    roads.write(tmp_path / "data", train=5, test=4, height=16, width=32)
    names = {
        path.relative_to(tmp_path / "data").as_posix() for path in (tmp_path / "data").rglob("*.*")
    }
    training = ["um_000000", "um_000001", "umm_000000", "umm_000001", "uu_000000"]
    testing = ["um_000000", "um_000001", "umm_000000", "uu_000000"]
    assert names == {
        *(f"training/image_2/{name}.png" for name in training),
        *(f"training/calib/{name}.txt" for name in training),
        *(f"testing/image_2/{name}.png" for name in testing),
        *(f"testing/calib/{name}.txt" for name in testing),
        *(f"training/gt_image_2/{name.replace('_', '_road_')}.png" for name in training),
        "training/gt_image_2/um_lane_000000.png",
        "training/gt_image_2/um_lane_000001.png",
    }
    for name in names:
        if name.endswith(".png"):
            assert np.asarray(Image.open(tmp_path / "data" / name)).shape == (16, 32, 3)


def test_same_seed_same_files_and_another_seed_other_ones(tmp_path):
    for name, seed in zip("abc", (1, 1, 2)):
        roads.write(tmp_path / name, 3, 3, 16, 32, seed)
    files = [path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.*")]
    a, b, c = [[(tmp_path / name / file).read_bytes() for file in files] for name in "abc"]
    assert a == b and a != c
    assert (
        len({path.read_bytes() for path in (tmp_path / "a").rglob("image_2/*.png")}) == 6
    )  # none in both splits


def test_nothing_half_written_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(
        roads, "draw", lambda *scene, draw=roads.draw: 1 / 0 if "uu" in scene else draw(*scene)
    )
    with pytest.raises(ZeroDivisionError):
        roads.write(tmp_path / "data", 6, 0, 16, 32)
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_refused_and_left_as_it_was(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError) as refusal:
        roads.write(tmp_path, 1, 0, 16, 32)
    assert len(str(refusal.value).splitlines()) == 1 and [
        path.name for path in tmp_path.iterdir()
    ] == ["mine.txt"]


def test_an_empty_folder_is_filled_and_nothing_is_printed(tmp_path, capfd):
    (tmp_path / "data").mkdir()
    roads.write(tmp_path / "data", 1, 0, 16, 32)
    assert (tmp_path / "data/training/image_2/um_000000.png").exists() and capfd.readouterr() == (
        "",
        "",
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--size", "96"],
        ["--size", "8x320"],
        ["--size", "axb"],
        ["--train", "0"],
        ["--test", "-1"],
        ["--seed", "-1"],
        ["--out", "."],
        [],
    ],
)
def test_command_line_errors_end_with_status_2_and_no_traceback(
    tmp_path, monkeypatch, command, options
):
    (tmp_path / "mine.txt").write_text("mine")
    where = ["--out", "data"] if options else []
    monkeypatch.chdir(tmp_path)
    status, out, error = command("support/roads.py", *where, *options)
    assert status == 2 and error.startswith("roads.py: error: ") and error.count("\n") == 1
    assert not out
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
