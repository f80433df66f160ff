"""Drawings are readable at any size and with any number of classes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.datasets.images import read_mask
from support.draw import colours_for, draw_curves, draw_samples, overlay, palette_mask, tint
from support.labels import IGNORE


def grey(height, width):
    return np.full((height, width, 3), 90, np.uint8)


def numbered(classes):
    return [f"class {i}" for i in range(classes)]


@given(st.integers(1, 255))
def test_every_class_id_has_a_fixed_colour(classes):
    colours = colours_for(["x"] * classes)
    assert colours.shape == (classes, 3)
    assert np.array_equal(colours, colours_for(["y"] * 255)[:classes])
    assert len(set(map(tuple, colours[:12].tolist()))) == min(classes, 12)
    assert colours[:2].tolist() == [[230, 0, 230], [214, 39, 40]][:classes]


def test_only_background_is_grey():
    """Roads are grey, and class 0 often is the road."""
    for first in ("road", "Background"):
        colours = colours_for([first, *numbered(11)]).astype(int)
        grey = colours.max(1) - colours.min(1) < 60
        assert grey.tolist() == [first == "Background"] + [False] * 11


def test_tint_colours_road_and_darkens_ignored_pixels():
    shown = tint(grey(1, 3), np.array([[0, 1, IGNORE]], np.uint8), ["not road", "road"])[0]
    assert shown[0].tolist() == [90, 90, 90] and shown[2].max() < 40
    assert shown[1, 0] > 120 > 80 > shown[1, 1]  # magenta


def test_tint_leaves_background_unchanged():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    label = np.array([[0, 1, 2, 0, 1, 2]] * 4, np.uint8)
    same = (tint(image, label, ["background", "a", "b"]) == image).all(2)
    assert (same == (label == 0)).all()


@given(st.integers(1, 255), st.integers(1, 40), st.integers(1, 40))
def test_a_palette_mask_reads_back_as_its_ids(tmp_path_factory, classes, height, width):
    label = np.random.default_rng(0).integers(0, classes, (height, width)).astype(np.uint8)
    path = tmp_path_factory.mktemp("mask") / "m.png"
    palette_mask(label, ["x"] * classes).save(path)
    assert Image.open(path).mode == "P" and np.array_equal(read_mask(path), label)


# ---- overlays ----


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([2, 3, 11, 21]))
def test_the_legend_is_below_the_picture_and_covers_nothing(height, width, classes):
    """If neither of two classes is road, both are named."""
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width) % classes
    shown = np.asarray(overlay(grey(height, width), label, numbered(classes)))
    assert np.array_equal(
        shown[:height, :width], tint(grey(height, width), label, numbered(classes))
    )
    below = shown[height:]
    assert below.max() == 255 and below.shape[1] >= width  # white letters


@pytest.mark.parametrize("width, height, letters", [(320, 227, (6, 16)), (3000, 2000, (30, 65))])
def test_a_legend_is_readable_and_names_only_visible_classes(width, height, letters):
    label = np.zeros((height, width), np.uint8)
    label[:, width // 2 :] = 7
    shown = overlay(grey(height, width), label, numbered(11))
    below = np.asarray(shown.convert("L"))[height:] > 200
    inked = below.any(0).nonzero()[0]
    entries = 1 + (np.diff(inked) > below.shape[0]).sum()
    assert shown.width == width and entries == 2
    # Rows with ink: the letters and the frame of the colour beside them.
    assert letters[0] <= below.any(1).sum() <= letters[1] and below.shape[0] < 0.15 * height


def test_a_narrow_legend_has_one_line_per_class():
    label = np.arange(40 * 40, dtype=np.uint16).reshape(40, 40) % 11
    shown = overlay(grey(40, 40), label.astype(np.uint8), numbered(11))
    below = np.asarray(shown.convert("L"))[40:] > 200
    rows = np.diff(below.any(1).astype(int), prepend=0)
    assert (rows == 1).sum() == 11


# ---- sheets and curves ----


@pytest.mark.parametrize(
    "classes, sizes", [(11, [(36, 48)]), (30, [(375, 1242), (1, 1), (60, 20)])]
)
def test_samples_show_image_truth_and_prediction_at_any_size(tmp_path, classes, sizes):
    rng, names = np.random.default_rng(0), numbered(classes)
    rows = [
        ("a.png", grey(*size), rng.integers(0, classes, size, np.uint8), np.zeros(size, np.uint8))
        for size in sizes
    ]
    draw_samples(tmp_path / "s.png", rows, names, "epoch 1")
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    width, top = 480 if len(rows) > 1 else 640, 30
    for _, image, truth, prediction in rows:
        height = max(1, round(image.shape[0] * width / image.shape[1]))
        panels = image, tint(image, truth, names), tint(image, prediction, names)
        for column, panel in enumerate(panels):
            left = 6 + column * (width + 6)
            shown = sheet[top + 22 : top + 22 + height, left : left + width]
            assert np.array_equal(shown, Image.fromarray(panel).resize((width, height)))
        top += 22 + height + 6


def log(epochs, classes=("not road", "road"), **columns):
    row = {"train_loss": 1.0, "val_loss": 1.0, "mean_iou": 0.1, **columns}
    ious = {f"iou_{name}": 0.1 for name in classes}
    return [{"epoch": e + 1, **row, **ious} for e in range(epochs)]


@pytest.mark.parametrize("epochs", [1, 60])
@pytest.mark.parametrize("losses", [(0.0, 0.0), (math.nan, math.inf), (1e9, 3e-7)])
def test_curves_can_be_drawn_for_any_log(tmp_path, epochs, losses):
    rows = log(epochs, val_loss=losses[0], is_best=True)
    for row in rows:
        row.update(train_loss=losses[row["epoch"] % 2], iou_road=math.nan)
    draw_curves(tmp_path / "c.png", rows, ["not road", "road"])
    assert len(Image.open(tmp_path / "c.png").getcolors(2**16)) > 5


def test_curves_fit_many_classes_of_any_name(tmp_path):
    classes = ["mean", "validation", *numbered(40)]
    draw_curves(tmp_path / "c.png", log(3, classes), classes)
    picture = Image.open(tmp_path / "c.png").convert("L")
    assert picture.height > 420 + 21 * 43
    last = picture.crop((724, 420 + 21 * 42, picture.width, 420 + 21 * 43))
    assert np.asarray(last).min() < 100  # the legend's line for the last class


def test_curves_show_long_class_names_in_full(tmp_path):
    drawings = []
    for last in "bd":  # letters of the same width
        classes = ["w" * 39 + last, "x"]
        draw_curves(tmp_path / "c.png", log(3, classes), classes)
        drawings.append(np.asarray(Image.open(tmp_path / "c.png").convert("L")))
    changed = (drawings[0] != drawings[1]).any(0).nonzero()[0]
    assert 750 < changed.min() and changed.max() + 5 < drawings[0].shape[1]  # the IoU follows


def test_the_legend_gives_the_values_of_the_best_network(tmp_path):
    legends = []
    for best, last in ((0.1, 0.1), (0.1, 0.9), (0.9, 0.1)):
        rows = log(3)
        rows[1].update(is_best=True, mean_iou=best)
        rows[2].update(mean_iou=last)
        draw_curves(tmp_path / "c.png", rows, ["not road", "road"])
        legends.append(np.asarray(Image.open(tmp_path / "c.png").convert("L"))[:, 720:])
    assert np.array_equal(legends[0], legends[1])
    assert not np.array_equal(legends[0], legends[2])


def differences(folder, *logs):
    """Where two drawings of the lower chart differ, without the legend: [height, width]."""
    drawings = []
    for rows in logs:
        draw_curves(folder / "c.png", rows, ["not road", "road"])
        drawings.append(np.asarray(Image.open(folder / "c.png").convert("RGB")).astype(int))
    return np.abs(drawings[0] - drawings[1]).sum(2)[380:, 70:710] > 0


def test_curves_show_the_measure_that_chooses_the_network(tmp_path):
    changed = differences(tmp_path, log(3, MaxF=0.8), log(3, MaxF=math.nan)).any(1).nonzero()[0]
    assert changed.size and changed.max() - changed.min() < 10  # one level line


def test_curves_mark_the_last_epoch_with_a_best_network(tmp_path):
    best = [{**row, "is_best": row["epoch"] in (3, 9)} for row in log(11)]
    changed = differences(tmp_path, best, log(11))
    # A line from top to bottom at epoch 9 of 1 to 11; its label covers no curve.
    assert changed.any(1).sum() > 200
    assert np.abs(changed.any(0).nonzero()[0] - 0.8 * 640).max() <= 2
