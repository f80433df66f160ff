"""KITTI Road: its files, its bird's-eye view against points projected by hand, its measures against
their plain definitions, and the command that scores a folder of maps.
"""

import math
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import NOT_ROAD, NOT_VALID, ROAD, kitti, picture
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from kitti import (
    CATEGORIES,
    bird_cells,
    bird_view,
    calibration_of,
    find,
    histogram,
    homography,
    maxf_ap,
    read_label,
    road_scores,
    score_folder,
    write_submission,
)
from metrics import Scores
from support.console import InputError
from support.datasets import synthetic
from support.labels import IGNORE

CALIBRATION = "training/calib/um_000000.txt"
ROAD_TASK = SimpleNamespace(task="road")
TRUTH = "training/gt_image_2/um_road_000000.png"


# ---- files ----


@pytest.mark.parametrize("task, images", [("road", 12), ("lane", 4)])
def test_each_image_comes_once_with_the_truth_of_the_task(tmp_path, task, images):
    found = find(kitti(tmp_path, um=4, umm=3, uu=5), SimpleNamespace(task=task))
    assert len({sample.image for sample in found.train}) == len(found.train) == images
    for image, label, group in found.train:
        category, number = image.stem.split("_")
        assert label.stem == f"{group}_{number}" and group == f"{category}_{task}"
    assert found.classes == [f"not {task}", task] and not found.val and found.kitti


def test_a_folder_without_truth_of_the_task_is_named(tmp_path):
    with pytest.raises(InputError, match="gt_image_2: no ground truth for --task lane"):
        find(kitti(tmp_path, um=0), SimpleNamespace(task="lane"))


def test_magenta_is_road_red_is_not_and_black_is_ignored(tmp_path):
    file = picture(tmp_path / "gt.png", [[ROAD, NOT_ROAD, NOT_VALID], [NOT_VALID, ROAD, NOT_ROAD]])
    assert read_label(file).tolist() == [[1, 0, IGNORE], [IGNORE, 1, 0]]
    assert read_label(file).dtype == np.uint8


@pytest.mark.parametrize("colour", [(255, 255, 255), (255, 0, 128), (0, 0, 255), (1, 0, 0)])
def test_other_colours_in_the_ground_truth_are_refused(tmp_path, colour):
    file = picture(tmp_path / "gt.png", [[ROAD, colour]])
    with pytest.raises(InputError) as error:
        read_label(file)
    assert f"{file}: has the colour {colour}" in str(error.value)


def test_a_submission_holds_the_maps_without_folders(tmp_path):
    maps = [picture(tmp_path / "bev" / f"{name}.png", [[i]]) for i, name in enumerate("ab")]
    write_submission(tmp_path / "s.zip", maps)
    with zipfile.ZipFile(tmp_path / "s.zip") as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            file.name: file.read_bytes() for file in maps
        }
    whole = (tmp_path / "s.zip").read_bytes()
    with pytest.raises(InputError):
        write_submission(tmp_path / "s.zip", [*maps, tmp_path / "c.png"])
    assert (tmp_path / "s.zip").read_bytes() == whole  # all or nothing
    assert not list(tmp_path.glob("*.part"))


# ---- bird's-eye view ----


def project(path, x, z):
    """The 1-based image point of the ground point (x, 0, z), without a matrix inverse."""
    matrices = {}
    for line in filter(str.strip, path.read_text().splitlines()):
        name, values = line.split(":")
        matrices[name] = np.array(values.split(), float)
    pose = matrices["Tr_cam_to_road"].reshape(3, 4)
    camera = pose[:, :3].T @ (np.array([x, 0, z]) - pose[:, 3])  # a rotation: transpose = inverse
    rectified = matrices["R0_rect"].reshape(3, 3) @ camera
    u, v, w = matrices["P2"].reshape(3, 4) @ [*rectified, 1]
    return u / w, v / w


def test_birds_eye_cells_match_a_projection_by_hand(kitti_sample):
    path, height, width = kitti_sample / CALIBRATION, 375, 1242
    cells, outside = bird_cells(path, height, width), 0
    for row in range(0, 800, 37):
        for column in range(0, 400, 13):
            u, v = project(path, -10 + 0.025 + 0.05 * column, 46 - 0.025 - 0.05 * row)
            if min(abs(u - round(u)), abs(v - round(v))) < 1e-3:
                continue  # on a pixel edge, where rounding decides
            seen = 1 <= u <= width and 1 <= v <= height
            pixel = (math.floor(v) - 1) * width + math.floor(u) - 1
            assert cells[row, column] == (pixel if seen else -1)
            outside += not seen
    assert outside > 5, "near the camera the image does not show the corners"


def test_a_real_road_seen_from_above_keeps_its_width(kitti_sample):
    truth = read_label(kitti_sample / TRUTH)
    above = bird_view(truth, bird_cells(kitti_sample / CALIBRATION, *truth.shape), IGNORE)
    assert above.dtype == np.uint8 and set(np.unique(above)) == {0, 1, IGNORE}
    widths = (above[200:700] == 1).sum(1) * 0.05
    assert 5 < np.median(widths) < 12, "two lanes are some eight metres wide, near and far alike"


SINGULAR = "P2:" + " 1" * 12 + "\nR0_rect:" + " 1" * 9 + "\nTr_cam_to_road:" + " 0" * 12


@given(st.binary(max_size=200))
@example(b"")
@example(b"P2: 1 2 3\n")
@example(b"P2: a b\n")
@example(b"P2 1 2 3\n")
@example(b"\xff\xfe")
@example(SINGULAR.encode())
def test_a_file_that_is_not_a_calibration_is_named(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("calib") / "um_000000.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="um_000000.txt: is not a calibration"):
        homography(path)


# ---- measures ----


def plain_maxf_ap(pixels):
    """The measures from (confidence, truth) pairs, threshold by threshold, by definition."""
    road, rest = ([c for c, truth in pixels if truth == kind] for kind in (1, 0))
    if not road:
        return dict.fromkeys(("MaxF", "AP", "PRE", "REC", "FPR", "FNR", "threshold"), math.nan)
    points = []
    for i in range(256):
        tp, fp = sum(c / 255 >= i / 255 for c in road), sum(c / 255 >= i / 255 for c in rest)
        fn, tn = len(road) - tp, len(rest) - fp
        pre, rec = tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn)
        points.append(
            {
                "MaxF": 2 * pre * rec / (pre + rec) if pre + rec else 0.0,
                "PRE": pre,
                "REC": rec,
                "FPR": fp / (fp + tn) if rest else math.nan,
                "FNR": fn / (tp + fn),
                "threshold": i / 255,
            }
        )
    best = max(points, key=lambda p: round(p["MaxF"], 12))  # the first of equals
    ap = sum(max(p["PRE"] for p in points if round(p["REC"], 12) >= r / 10) for r in range(11)) / 11
    return {**best, "AP": ap}


PIXELS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 128, 255])),
        st.sampled_from([0, 1, IGNORE]),
    ),
    max_size=60,
)


def histogram_of(pixels):
    return histogram(*np.array(pixels, np.uint8).reshape(-1, 2).T)


@given(PIXELS)
@example([])
@example([(200, 0), (10, 0)])  # no road at all
@example([(200, 1), (10, 1)])  # nothing but road
@example([(255, IGNORE), (0, IGNORE)])  # nothing valid
@example([(0, 1), (255, 0)])  # the wrong way round
@example([(c, c % 2) for c in range(256)])  # every threshold counts
def test_maxf_and_ap_match_their_definitions(pixels):
    assert maxf_ap(histogram_of(pixels)) == pytest.approx(plain_maxf_ap(pixels), nan_ok=True)


@given(st.lists(st.tuples(st.sampled_from(CATEGORIES[:-1]), PIXELS), max_size=8))
def test_categories_pool_their_images_and_urban_pools_all_roads(images):
    scores = road_scores([("image", name, histogram_of(pixels)) for name, pixels in images])
    members = {name: [pixels for other, pixels in images if other == name] for name, _ in images}
    urban = [members.get(f"{name}_road") for name in ("um", "umm", "uu")]
    if all(urban):
        members["URBAN"] = sum(urban, [])
    assert scores.keys() == {("image", name) for name in members}
    for name, parts in members.items():
        wanted = {**maxf_ap(histogram_of(sum(parts, []))), "images": len(parts)}
        assert scores["image", name] == pytest.approx(wanted, nan_ok=True)


# ---- scoring a folder ----


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kitti") / "scenes"
    synthetic.write(folder, train=6, test=0, height=120, width=400)
    return folder / "training"


@pytest.fixture
def results(scenes, tmp_path):
    """A folder of perfect confidence maps of the scenes' road."""
    for file in (scenes / "gt_image_2").glob("*_road_*.png"):
        picture(tmp_path / "results" / file.name, (read_label(file) == 1) * 255)
    return tmp_path / "results"


def test_perfect_maps_score_perfectly_in_both_spaces(scenes, results, command):
    status, said, _ = command("kitti.py", results, scenes)
    assert status == 0
    rows = [line.split() for line in said.splitlines() if line.startswith(("u", "URBAN"))]
    assert [row[0] for row in rows] == 2 * ["um_road", "umm_road", "uu_road", "URBAN"]
    for row in rows:
        *_, images, maxf, ap, pre, rec, fpr, fnr, _ = row
        assert [maxf, ap, pre, rec, fpr, fnr] == ["100.00"] * 4 + ["0.00"] * 2
    assert images == "6"


def test_scores_match_those_of_training_in_both_spaces(scenes, results, tmp_path):
    rng, scores = np.random.default_rng(0), Scores(["not road", "road"], 1)
    for sample in find(scenes.parent, ROAD_TASK).train:
        file, truth = results / sample.label.name, read_label(sample.label)
        noisy = np.asarray(Image.open(file)) // 4 + rng.integers(0, 192, truth.shape, np.uint8)
        scores.update(sample, noisy // 128, truth, noisy)
        above = bird_view(noisy, bird_cells(calibration_of(sample.image), *truth.shape), 0)
        picture(file, noisy)
        picture(tmp_path / "above" / file.name, above)
    scored, above = score_folder(results, scenes), score_folder(tmp_path / "above", scenes)
    assert scored == scores.result()["road"]
    assert above == {key: values for key, values in scored.items() if key[0] == "bev"} != {}


@pytest.mark.parametrize(
    "spoil, said",
    [
        (Path.unlink, "is missing"),
        (lambda file: Image.new("L", (7, 5)).save(file), "is 5x7 (height x width)"),
        (lambda file: file.write_bytes(file.read_bytes()[:60]), "cannot be read"),
        (lambda file: Image.new("P", (400, 120)).save(file), "must be 8-bit grey"),
        (lambda file: Image.new("L", (400, 800)).save(file), "map of another kind"),
    ],
)
def test_an_unusable_map_is_named_and_nothing_is_scored(scenes, results, command, spoil, said):
    file = max(results.iterdir())  # the last one
    spoil(file)
    status, out, error = command("kitti.py", results, scenes)
    assert status == 2 and not out and error.count("\n") == 1
    assert error.startswith(f"kitti.py: error: {file}: ") and said in error


def test_only_the_birds_eye_view_needs_a_calibration(scenes, results, tmp_path, command):
    shutil.copytree(scenes, tmp_path / "training")
    (tmp_path / "training/calib/umm_000001.txt").unlink()
    assert command("kitti.py", results, tmp_path / "training")[0] == 0
    for file in results.iterdir():
        picture(file, np.zeros((800, 400)))
    status, _, error = command("kitti.py", results, tmp_path / "training")
    assert status == 2 and "umm_000001.txt" in error


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["{}/gt_image_2", "none"], "no such folder"),
        (["{}/image_2", "{}"], "holds no map named like a ground truth"),
    ],
)
def test_missing_maps_are_reported_in_one_line(scenes, command, arguments, said):
    status, out, error = command("kitti.py", *(text.format(scenes) for text in arguments))
    assert status == 2 and not out and said in error
    assert error.startswith("kitti.py: error: ") and error.count("\n") == 1
