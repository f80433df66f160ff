"""Pictures that can be read, of any size and any number of classes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.datasets.images import read_mask
from support.draw import colours_for, draw_curves, draw_samples, overlay, palette_mask, tint
from support.labels import IGNORE


@given(st.integers(1, 255))
def test_every_class_has_a_colour_that_never_changes(classes):
    colours = colours_for(["x"] * classes)
    assert colours.shape == (classes, 3) and np.array_equal(
        colours, colours_for(["y"] * 255)[:classes]
    )
    assert len({tuple(c) for c in colours[:12].tolist()}) == min(classes, 12)
    assert colours[0].tolist() == [128, 128, 128] and colours[1:2].tolist() in ([], [[214, 39, 40]])


def test_tint_shows_road_and_leaves_the_rest_of_the_picture():
    image = np.full((1, 3, 3), 100, np.uint8)
    shown = tint(image, np.array([[0, 1, IGNORE]], np.uint8), ["not road", "road"])
    assert np.array_equal(
        shown, tint(image, np.array([[1, 0, IGNORE]], np.uint8), ["road", "background"])
    )
    assert shown[0, 0].tolist() == [100, 100, 100]
    assert shown[0, 1, 0] > 120 > 80 > shown[0, 1, 1]  # magenta
    assert shown[0, 2].max() < 40


@pytest.mark.parametrize(
    "classes, sizes", [(2, [(375, 1242), (370, 1226)]), (11, [(36, 48)]), (30, [(1, 1), (400, 20)])]
)
def test_samples_show_picture_truth_and_prediction_of_any_size(tmp_path, classes, sizes):
    rng = np.random.default_rng(0)
    rows = [
        (
            "a.png",
            np.full((*s, 3), 90, np.uint8),
            rng.integers(0, classes, s, np.uint8),
            np.zeros(s, np.uint8),
        )
        for s in sizes
    ]
    names = [f"class {i}" for i in range(classes)]
    draw_samples(tmp_path / "s.png", rows, names, "epoch 1")
    sheet = np.asarray(Image.open(tmp_path / "s.png")).astype(int)
    width, top = 480 if len(rows) > 1 else 640, 30
    assert sheet.shape[1] >= 3 * width
    for _, image, truth, prediction in rows:
        height = max(1, round(image.shape[0] * width / image.shape[1]))
        for column, panel in enumerate(
            (image, tint(image, truth, names), tint(image, prediction, names))
        ):
            seen = sheet[top + 22 : top + 22 + height, 6 + column * (width + 6) :][:, :width]
            wanted = np.asarray(Image.fromarray(panel).resize((width, height)))
            assert np.array_equal(seen, wanted), f"column {column}"
        top += 22 + height + 6


@pytest.mark.parametrize("epochs", [1, 2, 60])
@pytest.mark.parametrize("losses", [(2.0, 0.1), (0.0, 0.0), (math.nan, math.inf), (1e9, 3e-7)])
def test_curves_can_be_drawn_for_any_log(tmp_path, epochs, losses):
    rows = [
        {
            "epoch": e + 1,
            "train_loss": losses[e % 2],
            "val_loss": losses[0],
            "mean_iou": 0.5,
            "iou_road": math.nan,
            "iou_not road": 1.0,
        }
        for e in range(epochs)
    ]
    draw_curves(tmp_path / "c.png", rows, ["not road", "road"])
    assert len(np.unique(np.asarray(Image.open(tmp_path / "c.png")).reshape(-1, 3), axis=0)) > 5


def test_curves_have_room_for_many_classes_of_any_name(tmp_path):
    classes = ["mean", "held out"] + [f"class {i}" for i in range(40)]
    rows = [
        {
            "epoch": e,
            "train_loss": 1,
            "val_loss": 2,
            "mean_iou": 0.5,
            **{f"iou_{name}": e / 9 for name in classes},
        }
        for e in (1, 2, 3)
    ]
    draw_curves(tmp_path / "c.png", rows, classes)
    picture = Image.open(tmp_path / "c.png").convert("L")
    last = picture.crop((700, 420 + 20 * 42, picture.width, 420 + 20 * 43))
    assert (
        picture.height > 420 + 20 * 43 and np.asarray(last).min() < 100
    )  # the last class's line of the legend


@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([2, 3, 11, 21]))
def test_the_legend_of_an_overlay_stands_below_the_picture_and_covers_nothing_of_it(
    height, width, classes
):
    label = np.arange(height * width, dtype=np.uint8).reshape(height, width) % classes
    names = [f"class {i}" for i in range(classes)]
    image = np.full((height, width, 3), 90, np.uint8)
    shown = np.asarray(overlay(image, label, names))
    assert np.array_equal(shown[:height, :width], tint(image, label, names))
    below = shown[height:]
    assert below.max(initial=255) == 255 and below.shape[1] >= width  # white letters


@pytest.mark.parametrize(
    "width, height, letters", [(320, 227, (6, 16)), (1242, 375, (10, 26)), (6000, 4000, (60, 130))]
)
def test_a_legend_is_readable_at_every_size_and_names_the_classes_in_the_picture_alone(
    width, height, letters
):
    names = [f"class {i}" for i in range(11)]
    label = np.zeros((height, width), np.uint8)
    label[:, width // 2 :] = 7
    shown = overlay(np.full((height, width, 3), 90, np.uint8), label, names)
    below = np.asarray(shown.convert("L"))[height:]
    inked = (below > 200).any(0).nonzero()[0]
    entries = 1 + (np.diff(inked) > below.shape[0]).sum()
    assert shown.width == width and entries == 2
    line = (
        (below > 200).any(1).sum()
    )  # rows with ink: the letters and the frame of the colour beside them
    assert letters[0] <= line <= letters[1] and below.shape[0] < 0.15 * height


@given(st.integers(1, 255), st.integers(1, 40), st.integers(1, 40))
def test_a_mask_reads_back_as_the_ids_it_was_made_of(tmp_path_factory, classes, height, width):
    label = np.random.default_rng(0).integers(0, classes, (height, width)).astype(np.uint8)
    path = tmp_path_factory.mktemp("mask") / "m.png"
    palette_mask(label, ["x"] * classes).save(path)
    assert Image.open(path).mode == "P" and np.array_equal(read_mask(path), label)


def test_two_classes_without_a_road_are_both_coloured_and_named():
    image, label = np.full((200, 300, 3), 90, np.uint8), np.zeros((200, 300), np.uint8)
    label[:, 150:] = 1
    shown = np.asarray(overlay(image, label, ["cat", "dog"]))
    assert (
        (shown[0, 0] != 90).any()
        and (shown[0, 299] != 90).any()
        and (shown[0, 0] != shown[0, 299]).any()
    )
    assert (shown[200:] == 255).any()


def test_curves_show_the_measure_that_chooses_the_network(tmp_path):
    rows = [
        {
            "epoch": i,
            "train_loss": 1.0,
            "val_loss": 1.0,
            "mean_iou": 0.1,
            "iou_not road": 0.1,
            "iou_road": 0.1,
            "MaxF": 0.8,
        }
        for i in (1, 2, 3)
    ]
    draw_curves(tmp_path / "with.png", rows, ["not road", "road"])
    draw_curves(
        tmp_path / "without.png",
        [{**row, "MaxF": float("nan")} for row in rows],
        ["not road", "road"],
    )
    drawn, left_out = (
        np.asarray(Image.open(tmp_path / name).convert("RGB")).astype(int)
        for name in ("with.png", "without.png")
    )
    changed = (
        np.abs(drawn - left_out).sum(2)[380:, 70:710].any(1).nonzero()[0]
    )  # rows of the lower chart, without its legend
    assert changed.size and changed.max() - changed.min() < 10  # one level line


def test_background_is_shown_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    label = np.array([[0, 1, 2, 0, 1, 2]] * 4, np.uint8)
    same = (tint(image, label, ["background", "a", "b"]) == image).all(2)
    assert (same == (label == 0)).all()
