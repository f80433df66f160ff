"""The confusion matrix and its measures against slow plain definitions, and pictures that can be read."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn import IGNORE
from metrics import colours_for, confusion, draw_curves, draw_samples, scores, table, tint


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
    result = scores(confusion(torch.tensor(predicted), torch.tensor(truth), classes))
    wanted = {"pixel_acc": sum(t == p for t, p in pairs) / len(pairs) if pairs else math.nan,
              "mean_acc": mean(accuracy), "mean_iou": mean(iou),
              "fw_iou": weighted / len(pairs) if pairs else math.nan}
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
    result = scores(torch.tensor([[8, 2, 0], [0, 10, 0], [0, 0, 0]]))
    assert result["mean_iou"] == pytest.approx((8 / 10 + 10 / 12) / 2)
    assert math.isnan(result["iou"][2]) and "absent" in table({"held out": result}, ["a", "b", "c"])


def test_the_table_has_every_measure_and_class_by_name():
    text = table({"held out": scores(torch.tensor([[3, 1], [0, 4]]))}, ["not road", "road"])
    assert text.splitlines()[-1].split() == ["IoU", "road", "80.00"]
    for title in ("pixel accuracy", "mean accuracy", "mean IoU", "frequency-weighted IoU", "IoU not road"):
        assert title in text


@given(st.integers(1, 255))
def test_every_class_has_a_colour_that_never_changes(classes):
    colours = colours_for(classes)
    assert colours.shape == (classes, 3) and np.array_equal(colours, colours_for(classes))
    assert len({tuple(c) for c in colours[:12].tolist()}) == min(classes, 12)


def test_tint_shows_road_and_leaves_the_rest_of_the_picture():
    image = np.full((1, 3, 3), 100, np.uint8)
    shown = tint(image, np.array([[0, 1, IGNORE]], np.uint8), 2)
    assert shown[0, 0].tolist() == [100, 100, 100]
    assert shown[0, 1, 0] > 120 > 80 > shown[0, 1, 1]  # magenta
    assert shown[0, 2].max() < 40


@pytest.mark.parametrize("classes, sizes", [(2, [(375, 1242), (370, 1226)]), (11, [(36, 48)]), (30, [(1, 1), (400, 20)])])
def test_samples_show_picture_truth_and_prediction_of_any_size(tmp_path, classes, sizes):
    rng = np.random.default_rng(0)
    rows = [(np.full((*s, 3), 90, np.uint8), rng.integers(0, classes, s, np.uint8), np.zeros(s, np.uint8))
            for s in sizes]
    draw_samples(tmp_path / "s.png", rows, [f"class {i}" for i in range(classes)], "epoch 1")
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    assert sheet.shape[1] > 1400 and (sheet == 255).mean() < 0.98


@pytest.mark.parametrize("epochs", [1, 2, 60])
@pytest.mark.parametrize("losses", [(2.0, 0.1), (0.0, 0.0), (math.nan, math.inf), (1e9, 3e-7)])
def test_curves_can_be_drawn_for_any_log(tmp_path, epochs, losses):
    rows = [{"epoch": e + 1, "train_loss": losses[e % 2], "val_loss": losses[0], "mean_iou": 0.5,
             "iou_road": math.nan, "iou_not road": 1.0} for e in range(epochs)]
    draw_curves(tmp_path / "c.png", rows, ["not road", "road"])
    assert len(np.unique(np.asarray(Image.open(tmp_path / "c.png")).reshape(-1, 3), axis=0)) > 5
