"""python data.py DIR: what was understood of a data set, and everything that is amiss, before
anybody trains on it.
"""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, kitti, picture
from PIL import Image

import data
from support.datasets.check import describe, extent, read_everything
from support.datasets.images import Reader


def streets(root, classes="road\nsky\ncar\n", size=(8, 10), images=5, ids=3):
    rng = np.random.default_rng(0)
    for i in range(images):
        picture(root / f"images/{i}.png", rng.integers(0, 256, (*size, 3)))
        picture(root / f"masks/{i}.png", np.arange(size[0] * size[1]).reshape(size) % ids)
    (root / "classes.txt").write_text(classes)
    return root


def checked(capsys, *arguments):
    status = data.main([*map(str, arguments)])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_check_says_parts_sizes_ids_names_pixels_and_images(tmp_path, capsys):
    streets(tmp_path, images=10, ids=2)
    picture(tmp_path / "images/0.png", np.zeros((20, 30, 3)))
    picture(tmp_path / "masks/0.png", np.full((20, 30), 2))
    status, said, wrong = checked(capsys, tmp_path)
    assert status == 0 and not wrong
    assert re.search(r"training +8 +8x10 +8x10 +(20x30|8x10)", said) and re.search(
        r"held out +2 +8x10", said
    )
    total = 9 * 80 + 600
    assert re.search(rf"  0  road +{100 * 360 / total:.2f} % +9\n", said)
    assert re.search(rf"  1  sky +{100 * 360 / total:.2f} % +9\n", said)
    assert re.search(rf"  2  car +{100 * 600 / total:.2f} % +1\n", said)
    assert re.search(r"ignored +0.00 %", said)


def test_ids_that_no_name_covers_are_said_with_their_share_by_the_check_and_by_a_run(
    tmp_path, capsys
):
    streets(tmp_path, classes="road\nsky\n", ids=4)
    said = checked(capsys, tmp_path)[1]
    assert "ignored, since no class has these ids: 2 25.00 %, 3 25.00 %; together 50.00 %" in said
    assert re.search(r"ignored +50.00 %", said)


def test_colours_that_no_name_covers_are_said_and_many_of_them_are_taken_for_smoothed_edges(
    tmp_path, capsys
):
    streets(tmp_path, classes="road 0 0 0\nsky 0 0 255\n")
    for i in range(5):
        pixels = np.zeros((8, 10, 3), np.uint8)
        pixels[:4] = (0, 0, 255)
        pixels[4, 0] = (9, 9, 9)
        picture(tmp_path / f"masks/{i}.png", pixels)
    said = checked(capsys, tmp_path)[1]
    assert "no class has this colour: (9, 9, 9) 1.25 %" in said and "anti-aliasing" not in said
    for i in range(5):
        mask = (
            Image.open(tmp_path / f"masks/{i}.png")
            .resize((100, 80), Image.Resampling.BICUBIC)
            .rotate(20, Image.Resampling.BICUBIC)
        )
        mask.save(tmp_path / f"masks/{i}.png")
        picture(tmp_path / f"images/{i}.png", np.zeros((80, 100, 3)))
    said = checked(capsys, tmp_path)[1]
    assert re.search(
        r"warning: \d+ colours or more are none of classes.txt: edges that were smoothed \(anti-aliasing\)",
        said,
    )


@pytest.mark.parametrize("ids", [[0, 255], [255, 255], [3, 3], [0, 0]])
def test_masks_with_nothing_to_tell_apart_do_not_pass(tmp_path, capsys, ids):
    streets(tmp_path)
    (tmp_path / "classes.txt").unlink()
    for file in (tmp_path / "masks").iterdir():
        picture(file, np.resize(ids, (8, 10)))
    status, said, wrong = checked(capsys, tmp_path)
    assert status == 2 and not said and wrong.count("\n") == 1
    assert (
        f"hold {' and '.join(map(str, dict.fromkeys(ids)))} alone" in wrong
        and "'road 255 255 255'" in wrong
    )
    (tmp_path / "classes.txt").write_text("background 0 0 0\nroad 255 255 255\n")  # the mend
    status, said, wrong = checked(capsys, tmp_path)
    assert (status == 0) == (ids == [0, 255])


def test_everything_that_cannot_be_read_is_named_a_line_each(tmp_path, capsys):
    streets(tmp_path, images=8)
    (tmp_path / "images/1.png").write_bytes(b"")
    Image.new("RGB", (10, 8)).save(tmp_path / "masks/3.png")
    picture(tmp_path / "masks/5.png", np.zeros((3, 3)))
    Image.new("L", (10, 8)).save(tmp_path / "masks/6.png", format="JPEG")
    status, said, wrong = checked(capsys, tmp_path)
    lines = wrong.splitlines()
    assert (
        status == 2
        and len(lines) == 4
        and all(line.startswith("data.py: error: ") for line in lines)
    )
    for name in ("images/1.png", "masks/3.png", "masks/5.png", "masks/6.png"):
        assert sum(str(tmp_path / name) in line for line in lines) == 1
    assert "  0  road" in said  # the others are counted


def test_a_data_set_of_which_nothing_can_be_read_names_every_file_and_draws_nothing(
    tmp_path, capsys
):
    streets(tmp_path)
    (tmp_path / "classes.txt").unlink()
    for file in (tmp_path / "masks").iterdir():
        picture(file, np.resize([[128, 64, 128], [0, 0, 142]], (8, 10, 3)))
    status, said, wrong = checked(capsys, tmp_path, "--show", tmp_path / "sheet.png")
    assert (
        status == 2
        and "NAME R G B, here for 128 64 128, 0 0 142" in wrong
        and "Traceback" not in wrong
    )
    (tmp_path / "classes.txt").write_text("road\ncar\n")
    status, said, wrong = checked(capsys, tmp_path, "--show", tmp_path / "sheet.png")
    assert status == 2 and wrong.count("\n") == 5 and not (tmp_path / "sheet.png").exists()


def test_ctrl_c_ends_the_check_in_one_line(tmp_path, monkeypatch, capsys):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "read_everything", stopped)
    status, _, wrong = checked(capsys, streets(tmp_path))
    assert status == 130 and wrong == "stopped\n"


def test_the_task_may_stand_alone_as_in_earlier_versions(tmp_path, capsys):
    kitti(tmp_path)
    assert (
        "task lane: " in checked(capsys, tmp_path, "lane")[1]
        and "task lane: " in checked(capsys, tmp_path, "--task", "lane")[1]
    )


def test_a_calibration_that_cannot_be_used_is_found_too(tmp_path, capsys):
    kitti(tmp_path)
    (tmp_path / "training/calib").mkdir()
    (tmp_path / "training/calib/um_000001.txt").write_text("P2: 1 2 3\n")
    status, _, wrong = checked(capsys, tmp_path)
    assert status == 2 and "um_000001.txt: P2 is missing" in wrong and wrong.count("\n") == 1


def test_show_draws_samples_of_every_class_with_their_labels(tmp_path, capsys):
    streets(tmp_path / "set", images=9, ids=2)
    picture(tmp_path / "set/masks/4.png", np.full((8, 10), 2))  # the one car
    status, said, _ = checked(capsys, tmp_path / "set", "--show", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3).astype(int)
    assert status == 0 and "drawn into" in said
    yellow = (
        np.abs(sheet - (255, 210, 60)).max(1) <= 3
    ).sum()  # the legend's box alone has that colour at full strength
    tinted = ((sheet[:, 0] - sheet[:, 2] > 60) & (sheet[:, 1] - sheet[:, 2] > 50)).sum()
    assert yellow > 20 and tinted > 480 * 300  # the car fills a picture


@pytest.mark.parametrize(
    "target",
    [
        "set/images/0.png",
        "set/images/new.png",
        "set/masks/sheet.png",
        "set/classes.txt",
        "none/sheet.png",
    ],
)
def test_show_writes_over_nothing_and_not_into_the_data(tmp_path, capsys, target):
    streets(tmp_path / "set")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    status, _, wrong = checked(capsys, tmp_path / "set", "--show", tmp_path / target)
    assert status == 2 and wrong.count("\n") == 1 and f"--show {tmp_path / target}: " in wrong
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


def test_held_out_images_that_are_in_the_training_set_too_are_said(tmp_path, capsys):
    streets(tmp_path)
    picture(
        tmp_path / "images/9.png", Image.open(tmp_path / "images/0.png")
    )  # a copy under another name
    picture(tmp_path / "masks/9.png", Image.open(tmp_path / "masks/0.png"))
    (tmp_path / "val.txt").write_text("9\n4\n")
    said = checked(capsys, tmp_path)[1]
    assert (
        "1 held-out image is in the training set too" in said
        and "images/9.png and " in said
        and "images/0.png: " in said
    )
    (tmp_path / "val.txt").write_text("4\n")
    assert "training set too" not in checked(capsys, tmp_path)[1]


def test_classes_that_no_held_out_image_shows_are_said(tmp_path, capsys):
    streets(tmp_path)
    picture(tmp_path / "masks/4.png", np.resize([0, 1], (8, 10)))
    (tmp_path / "val.txt").write_text("4\n")
    assert "no held-out image shows: car\n" in checked(capsys, tmp_path)[1]


def test_masks_whose_palettes_give_an_id_two_colours_are_refused(tmp_path, capsys):
    streets(tmp_path)
    for i, palette in enumerate(
        [[0, 0, 0, 9, 9, 9, 200, 0, 0]] * 4 + [[0, 0, 0, 200, 0, 0, 9, 9, 9]]
    ):
        mask = Image.fromarray(np.resize([0, 1, 2], (8, 10)).astype(np.uint8))
        mask.putpalette(palette)
        mask.save(tmp_path / f"masks/{i}.png")
    status, _, wrong = checked(capsys, tmp_path)
    assert (
        status == 2
        and "its palette shows id 1 as" in wrong
        and "list them in classes.txt, NAME R G B" in wrong
    )
    (tmp_path / "classes.txt").write_text("road 0 0 0\nsky 9 9 9\ncar 200 0 0\n")
    assert checked(capsys, tmp_path)[0] == 0


def test_photos_in_the_place_of_masks_are_not_two_hundred_classes(tmp_path, capsys):
    streets(tmp_path)
    (tmp_path / "classes.txt").unlink()
    for file in (tmp_path / "masks").iterdir():
        picture(file, np.random.default_rng(0).integers(0, 200, (8, 10)))
    status, _, wrong = checked(capsys, tmp_path)
    assert status == 2 and "as photos in their place would" in wrong


def test_names_that_the_system_cannot_spell_end_no_command(tmp_path):
    """A file name in Latin-1, as old archives have it, and an output that knows no Chinese."""
    streets(tmp_path)
    (tmp_path / "classes.txt").write_text("\u9053\u8def\nsky\ncar\n", encoding="utf-8")
    try:
        for part in (b"images", b"masks"):
            os.rename(
                os.fsencode(tmp_path) + b"/" + part + b"/0.png",
                os.fsencode(tmp_path) + b"/" + part + b"/stra\xdfe.png",
            )
    except OSError:
        pass  # a file system that takes UTF-8 alone
    for more in ([], ["--list"]):
        done = subprocess.run(
            [sys.executable, ROOT / "data.py", tmp_path, *more],
            env={**os.environ, "PYTHONIOENCODING": "cp1252"},
            capture_output=True,
        )
        assert done.returncode == 0 and not done.stderr


def test_the_list_of_files_comes_when_it_is_asked_for_and_alone(tmp_path, capsys):
    streets(tmp_path)
    status, said, _ = checked(capsys, tmp_path, "--list")
    lines = [line.split("\t") for line in said.splitlines()]
    assert (
        status == 0
        and len(lines) == 5
        and {part for part, _, _ in lines} == {"training", "held out"}
    )
    assert all(image.endswith(".png") and label.endswith(".png") for _, image, label in lines)
    assert str(tmp_path / "images/0.png") not in checked(capsys, tmp_path)[1]


def test_a_closed_pipe_ends_quietly(tmp_path):
    streets(tmp_path, images=3)
    for arguments in ([], ["--list"]):
        run = subprocess.Popen(
            [sys.executable, ROOT / "data.py", tmp_path, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        run.stdout.close()  # as head does once it has enough
        assert run.stderr.read() == b"" and run.wait() == 0


def test_options_that_train_takes_for_its_data_are_taken_here_too(tmp_path, capsys):
    streets(tmp_path)
    assert "  1  car " in checked(capsys, tmp_path, "--classes", "car")[1]
    (tmp_path / "images").rename(tmp_path / "photos")
    assert checked(capsys, tmp_path)[0] == 2
    assert checked(capsys, tmp_path, "--images", "photos/*.png", "--masks", "masks/*.png")[0] == 0


def test_counts_are_those_of_the_labels_sample_by_sample(tmp_path):
    found = data.find(streets(tmp_path, images=4))
    counts = read_everything(found.train, found, Reader(found.read_label))
    for row, size, sample in zip(counts.pixels, counts.sizes, found.train):
        label = found.read_label(sample.label)
        assert row.tolist() == [(label == i).sum() for i in range(3)] and tuple(size) == label.shape
    assert "road" in describe(counts, found)


def test_extent_goes_by_the_longer_side_as_the_warning_of_predict_does():
    sizes = np.array([[10, 10], [1, 300], [20, 20], [2, 2], [9, 9]])
    assert extent(sizes) == {"smallest": (2, 2), "median": (10, 10), "largest": (1, 300)}
