"""Every measure matches its definition, and the scores of many images are pooled."""

import math
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics import Scores, confusion, log_columns, measures, report
from support.labels import IGNORE, Sample


@st.composite
def maps(draw, classes=None):
    """(classes, [prediction, truth]), with ignored pixels, absent classes and empty truths too."""
    classes = classes or draw(st.integers(1, 6))
    pixels = st.tuples(st.integers(0, classes - 1), st.sampled_from([*range(classes), IGNORE]))
    pairs = np.array(draw(st.lists(pixels, min_size=1, max_size=40)), np.uint8)
    return classes, pairs.T


def sample(name):
    return Sample(Path(name), Path(name), "")


@given(maps())
def test_every_measure_matches_its_definition(drawn):
    classes, (predicted, truth) = drawn
    pairs = [(int(t), int(p)) for t, p in np.stack([truth, predicted], 1) if t != IGNORE]
    iou, accuracy, weighted = [], [], 0.0
    for c in range(classes):
        both = sum(t == c and p == c for t, p in pairs)
        either = sum(t == c or p == c for t, p in pairs)
        real = sum(t == c for t, p in pairs)
        iou.append(both / either if either else math.nan)
        accuracy.append(both / real if real else math.nan)
        weighted += real * (both / either if either else 0)

    def mean(values):
        values = [v for v in values if not math.isnan(v)]
        return sum(values) / len(values) if values else math.nan

    result = measures(confusion(predicted, truth, classes))
    assert result == pytest.approx(
        {
            "pixel_acc": sum(t == p for t, p in pairs) / len(pairs) if pairs else math.nan,
            "mean_acc": mean(accuracy),
            "mean_iou": mean(iou),
            "fw_iou": weighted / len(pairs) if pairs else math.nan,
            "iou": pytest.approx(iou, nan_ok=True),
        },
        nan_ok=True,
    )


@given(st.lists(maps(classes=2), min_size=2, max_size=4), st.sampled_from([1, None]))
def test_scores_pool_the_pixels_of_all_images(images, road):
    """However images are shared among processes, the scores are those of all their pixels."""

    def scores(**images):
        found = Scores(["not road", "road"], road)
        for name, (predicted, truth) in images.items():
            found.update(sample(name), predicted, truth, predicted * 200)
        return found

    parts = [scores(**{f"image {i}": pixels}) for i, (_, pixels) in enumerate(images)]
    total = sum(pickle.loads(pickle.dumps(parts)), scores())
    result = total.result()
    pooled = scores(all=np.concatenate([pixels for _, pixels in images], axis=1)).result()
    if road:
        assert result["road"]["image", "all"].pop("images") == len(images)
        pooled["road"]["image", "all"].pop("images")
    assert repr(result) == repr(pooled) and len(total.rows()) == len(images)


def test_rows_list_the_worst_images_first():
    scores = Scores(["not road", "road"], 1)
    images = {"none": [[0, 0], [0, IGNORE]], "good": [[1, 0], [1, 0]], "bad": [[1, 1], [1, 0]]}
    for name, maps in images.items():
        predicted, truth = np.array(maps, np.uint8)
        scores.update(sample(name), predicted, truth, predicted)
    rows = scores.rows()
    assert rows[0] == {
        "picture": "bad",
        "iou": 0.5,
        "pixels_not road": 1,
        "iou_not road": 0,
        "pixels_road": 1,
        "iou_road": 0.5,
    }
    assert [row["picture"] for row in rows] == ["bad", "good", "none"]
    assert math.isnan(scores.iou_by_image[Path("none")])


@pytest.mark.parametrize(
    "road, truth, monitor", [(1, 1, "MaxF"), (1, 0, "mean_iou"), (None, 1, "mean_iou")]
)
def test_networks_are_compared_by_maxf_if_there_is_road(road, truth, monitor):
    scores, pixels = Scores(["not road", "road"], road), np.ones((2, 2), np.uint8)
    scores.update(sample("a"), pixels, pixels * truth, pixels)
    result = scores.result()
    assert result["monitor"] == monitor and result[monitor] == truth


def test_the_report_and_the_log_name_every_measure():
    scores, pixels = Scores(["sky", "road", "car"]), np.array([[0, 0, 0, 1, 1]], np.uint8)
    scores.update(sample("a"), pixels, np.array([[0, 0, 1, 1, 1]], np.uint8))
    lines = report({"x": scores.result()}, scores.classes).splitlines()
    assert {line[:22].strip(): line[22:].strip() for line in lines} == {
        "": "x",
        "pixel accuracy": "80.00",
        "mean accuracy": "83.33",
        "mean IoU": "66.67",
        "frequency-weighted IoU": "66.67",
        "IoU sky": "66.67",
        "IoU road": "66.67",
        "IoU car": "absent",
    }
    names = "pixel_acc mean_acc mean_iou fw_iou iou_sky iou_road iou_car"
    assert list(log_columns(scores.result(), scores.classes)) == names.split()
