"""Every measure against its slow plain definition, and the command that scores a folder of
confidence maps.
"""

import csv
import math
import shutil

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import metrics
from kitti import bird_cells, bird_view
from metrics import RoadMeasures, benchmark, confusion, histogram, measures, table
from support.datasets import synthetic as roads
from support.labels import IGNORE


@st.composite
def maps(draw):
    """(classes, prediction, truth) with ignored pixels, absent classes and empty truths among them."""
    classes = draw(st.integers(1, 6))
    size = draw(st.integers(1, 40))
    predicted = draw(st.lists(st.integers(0, classes - 1), min_size=size, max_size=size))
    truth = draw(st.lists(st.sampled_from([*range(classes), IGNORE]), min_size=size, max_size=size))
    return classes, predicted, truth


def mean(values):
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else math.nan


@given(maps())
def test_every_measure_is_its_plain_definition(drawn):
    classes, predicted, truth = drawn
    pairs = [(t, p) for t, p in zip(truth, predicted) if t != IGNORE]
    iou, accuracy, weighted = [], [], 0.0
    for c in range(classes):
        both = sum(t == c and p == c for t, p in pairs)
        either = sum(t == c or p == c for t, p in pairs)
        real = sum(t == c for t, p in pairs)
        iou.append(both / either if either else None)
        accuracy.append(both / real if real else None)
        weighted += real * (both / either if either else 0)
    result = measures(confusion(torch.tensor(predicted), torch.tensor(truth), classes))
    wanted = {
        "pixel_acc": sum(t == p for t, p in pairs) / len(pairs) if pairs else math.nan,
        "mean_acc": mean(accuracy),
        "mean_iou": mean(iou),
        "fw_iou": weighted / len(pairs) if pairs else math.nan,
    }
    for name, value in wanted.items():
        assert result[name] == pytest.approx(value, nan_ok=True), name
    assert result["iou"] == pytest.approx([math.nan if v is None else v for v in iou], nan_ok=True)


@given(maps())
def test_the_matrix_counts_truth_in_rows_and_adds_up_over_images(drawn):
    classes, predicted, truth = drawn
    matrix = torch.zeros(classes, classes, dtype=torch.int64)
    for p, t in zip(predicted, truth):
        matrix += confusion(torch.tensor([p]), torch.tensor([t]), classes)
    whole = confusion(torch.tensor(predicted), torch.tensor(truth), classes)
    assert torch.equal(matrix, whole) and whole.dtype == torch.int64
    for t in range(classes):
        for p in range(classes):
            assert whole[t, p] == sum(a == t and b == p for a, b in zip(truth, predicted))


def test_a_class_absent_from_truth_and_prediction_does_not_count_in_the_means():
    result = measures(torch.tensor([[8, 2, 0], [0, 10, 0], [0, 0, 0]]))
    assert result["mean_iou"] == pytest.approx((8 / 10 + 10 / 12) / 2)
    assert math.isnan(result["iou"][2]) and "absent" in table({"held out": result}, ["a", "b", "c"])


def test_the_table_has_every_measure_and_class_by_name():
    text = table({"held out": measures(torch.tensor([[3, 1], [0, 4]]))}, ["not road", "road"])
    assert text.splitlines()[-1].split() == ["IoU", "road", "80.00"]
    for title in (
        "pixel accuracy",
        "mean accuracy",
        "mean IoU",
        "frequency-weighted IoU",
        "IoU not road",
    ):
        assert title in text


# ---- KITTI Road
# -----------------------------------------------------------------------------------------------------


def plain_benchmark(pixels):
    """The benchmark's measures from (confidence, label) pairs, threshold by threshold, as they are
    defined.
    """
    pixels = [(c, label) for c, label in pixels if label != IGNORE]
    road, rest = [c for c, label in pixels if label == 1], [c for c, label in pixels if label == 0]
    if not road:
        return None
    points = []
    for i in range(256):
        tp, fp = sum(c / 255 >= i / 255 for c in road), sum(c / 255 >= i / 255 for c in rest)
        fn, tn = len(road) - tp, len(rest) - fp
        pre, rec = tp / (tp + fp) if tp + fp else 0.0, tp / (tp + fn)
        points.append(
            {
                "F": 2 * pre * rec / (pre + rec) if pre + rec else 0.0,
                "PRE": pre,
                "REC": rec,
                "FPR": fp / (fp + tn) if rest else math.nan,
                "FNR": fn / (tp + fn),
                "threshold": i / 255,
            }
        )
    best = max(points, key=lambda p: round(p["F"], 12))  # the first of equals
    ap = sum(max(p["PRE"] for p in points if round(p["REC"], 12) >= r / 10) for r in range(11)) / 11
    return {
        "MaxF": best["F"],
        "AP": ap,
        **{name: best[name] for name in ("PRE", "REC", "FPR", "FNR", "threshold")},
    }


PIXELS = st.lists(
    st.tuples(
        st.one_of(st.integers(0, 255), st.sampled_from([0, 127, 128, 255])),
        st.sampled_from([0, 1, IGNORE]),
    ),
    max_size=60,
)


@given(PIXELS)
@example([])
@example([(200, 0), (10, 0)])  # no road at all
@example([(200, 1), (10, 1)])  # nothing but road
@example([(255, IGNORE), (0, IGNORE)])  # nothing valid
@example([(0, 1), (255, 0)])  # the wrong way round
@example([(c, c % 2) for c in range(256)])  # every threshold counts
def test_the_benchmark_is_its_plain_definition(pixels):
    confidence, labels = (torch.tensor([p[i] for p in pixels], dtype=torch.uint8) for i in (0, 1))
    result, wanted = benchmark(histogram(confidence, labels)), plain_benchmark(pixels)
    if wanted is None:
        assert all(math.isnan(value) for value in result.values())
    else:
        assert result == pytest.approx(wanted, nan_ok=True)


@given(PIXELS, PIXELS)
def test_pixels_of_all_images_are_pooled_not_averaged(first, second):
    pooled, apart = RoadMeasures(), RoadMeasures()
    for pixels in (first, second):
        apart.add(
            "image",
            "uu_road",
            *(torch.tensor([p[i] for p in pixels], dtype=torch.uint8) for i in (0, 1)),
        )
    pooled.add(
        "image",
        "uu_road",
        *(torch.tensor([p[i] for p in first + second], dtype=torch.uint8) for i in (0, 1)),
    )
    a, b = (r.results()["image", "uu_road"] for r in (apart, pooled))
    assert a.pop("images") == 2 and b.pop("images") == 1
    assert a == pytest.approx(b, nan_ok=True)


def test_urban_is_not_said_of_a_part_of_its_sets():
    found = RoadMeasures()
    found.add("image", "um_road", torch.tensor([255]).byte(), torch.tensor([1]).byte())
    assert list(found.results()) == [("image", "um_road")] and found.pooled()["MaxF"] == 1


def test_urban_pools_the_three_road_sets_and_not_the_lane():
    found, right, wrong = (
        RoadMeasures(),
        torch.tensor([255, 0]).byte(),
        torch.tensor([0, 255]).byte(),
    )
    labels = torch.tensor([1, 0]).byte()
    for category in ("um_road", "umm_road", "uu_road"):
        found.add("image", category, right, labels)
    found.add("image", "um_lane", wrong, labels)
    results = found.results()
    assert results["image", "URBAN"]["MaxF"] == 1 and results["image", "URBAN"]["images"] == 3
    assert results["image", "um_lane"]["MaxF"] == pytest.approx(2 / 3)  # call everything road
    assert list(results) == [
        ("image", c) for c in ("um_lane", "um_road", "umm_road", "uu_road", "URBAN")
    ]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("metrics") / "scenes"
    roads.write(folder, train=6, test=0, height=120, width=400)
    return folder


@pytest.fixture
def results(scenes, tmp_path):
    """A folder of perfect confidence maps for the scenes' road ground truth."""
    folder = tmp_path / "results"
    folder.mkdir()
    for file in (scenes / "training/gt_image_2").glob("*_road_*.png"):
        Image.fromarray(((metrics.read_kitti_label(file) == 1) * 255).astype(np.uint8)).save(
            folder / file.name
        )
    return folder


@pytest.mark.parametrize("space", ["image", "bev"])
def test_the_command_scores_perfect_maps_perfectly_in_both_spaces(
    scenes, results, tmp_path, capsys, space
):
    arguments = [
        str(results),
        str(scenes / "training"),
        "--space",
        space,
        "--csv",
        str(tmp_path / "t.csv"),
    ]
    assert metrics.main(arguments) == 0
    assert "URBAN" in (said := capsys.readouterr().out) and "100.00" in said
    with open(tmp_path / "t.csv", newline="") as file:
        rows = {row["category"]: row for row in csv.DictReader(file)}
    assert (
        set(rows) == {"um_road", "umm_road", "uu_road", "URBAN"} and rows["URBAN"]["images"] == "6"
    )
    for row in rows.values():
        assert row["space"] == space
        assert [float(row[name]) for name in ("MaxF", "AP", "PRE", "REC", "FPR", "FNR")] == [
            1,
            1,
            1,
            1,
            0,
            0,
        ]


def test_birds_eye_maps_are_scored_as_they_are_and_agree_with_maps_of_the_image(
    scenes, results, tmp_path, capsys
):
    rng = np.random.default_rng(0)
    above = tmp_path / "above"
    above.mkdir()
    for file in results.iterdir():
        noisy = np.clip(
            np.asarray(Image.open(file)) * 0.5 + rng.integers(0, 128, (120, 400)), 0, 255
        ).astype(np.uint8)
        Image.fromarray(noisy).save(file)
        cells = bird_cells(
            scenes / "training/calib" / f"{file.stem.replace('_road', '')}.txt", 120, 400
        )
        Image.fromarray(bird_view(torch.from_numpy(noisy), cells, 0).numpy()).save(
            above / file.name
        )
    assert metrics.main([str(results), str(scenes), "--space", "bev"]) == 0
    from_image = capsys.readouterr().out
    assert metrics.main([str(above), str(scenes)]) == 0
    assert capsys.readouterr().out == from_image and "bird's eye" in from_image


def amiss(folder, what):
    one = sorted(folder.iterdir())[0]
    if what == "missing":
        one.unlink()
    elif what == "extra":
        shutil.copy(one, folder / "um_road_000999.png")
    elif what == "size":
        Image.new("L", (7, 5)).save(one)
    elif what == "unreadable":
        one.write_bytes(one.read_bytes()[:60])
    elif what == "colour":
        Image.new("RGB", (400, 120)).save(one)
    elif what == "mixed":
        Image.new("L", (400, 800)).save(one)
        one = sorted(folder.iterdir())[1]
    return "um_road_000999.png" if what == "extra" else one.name


@pytest.mark.parametrize("what", ["missing", "extra", "size", "unreadable", "colour", "mixed"])
def test_a_map_that_is_amiss_is_named_and_nothing_is_scored(scenes, results, capsys, what):
    name = amiss(results, what)
    assert metrics.main([str(results), str(scenes / "training")]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and str(results / name) in said.err


def test_seen_from_above_an_image_without_calibration_is_named(scenes, results, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "scenes")
    (tmp_path / "scenes/training/calib/umm_000001.txt").unlink()
    assert metrics.main([str(results), str(tmp_path / "scenes"), "--space", "bev"]) == 2
    assert "umm_000001.txt" in capsys.readouterr().err
    assert metrics.main([str(results), str(tmp_path / "scenes")]) == 0  # not needed in the image


@pytest.mark.parametrize(
    "arguments", [[], ["a"], ["none", "none"], [".", "."], ["a", "b", "--space", "moon"]]
)
def test_a_command_that_names_nothing_to_score_is_one_line_and_status_2(
    tmp_path, monkeypatch, capsys, arguments
):
    monkeypatch.chdir(tmp_path)
    try:
        status = metrics.main(arguments)
    except SystemExit as exit:
        status = exit.code
    assert status == 2 and capsys.readouterr().err.startswith("metrics.py: error: ")
