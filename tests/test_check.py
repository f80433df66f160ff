"""python data.py DIR reports the contents of a data set, and all faults in it."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, kitti, picture
from PIL import Image

from data import find
from support.datasets.check import extent


def streets(root, classes="road\nsky\ncar\n", size=(8, 10), images=5, ids=3):
    rng = np.random.default_rng(0)
    for i in range(images):
        picture(root / f"images/{i}.png", rng.integers(0, 256, (*size, 3)))
        picture(root / f"masks/{i}.png", np.arange(size[0] * size[1]).reshape(size) % ids)
    (root / "classes.txt").write_text(classes)
    return root


@pytest.fixture
def check(command):
    """check(DIR, ...): (status, standard output, lines of standard error) of data.py."""

    def run(*arguments):
        status, out, error = command("data.py", *arguments)
        return status, out, error.splitlines()

    return run


def test_the_report_lists_sizes_by_part_and_pixels_by_class(tmp_path, check):
    streets(tmp_path, images=10, ids=2)
    picture(tmp_path / "images/0.png", np.zeros((20, 30, 3)))
    picture(tmp_path / "masks/0.png", np.full((20, 30), 2))
    status, out, faults = check(tmp_path)
    assert status == 0 and not faults
    assert re.search(r"training +8 +8x10 +8x10 +(20x30|8x10)", out)
    assert re.search(r"validation +2 +8x10", out)
    for class_id, name, pixels, images in (
        (0, "road", 360, 9),
        (1, "sky", 360, 9),
        (2, "car", 600, 1),
    ):
        share = f"{100 * pixels / (9 * 80 + 600):.2f} %"
        assert re.search(rf"  {class_id}  {name} +{share} +{images}\n", out)
    assert re.search(r"ignored +0.00 %", out)


def test_ids_without_a_class_are_listed_with_their_share(tmp_path, check):
    streets(tmp_path, classes="road\nsky\n", ids=4)
    out = check(tmp_path)[1]
    assert "ignored ids or colours, which no class has: 2 25.00 %, 3 25.00 %\n" in out
    assert re.search(r"ignored +50.00 %", out)


def test_many_unknown_colours_are_reported_as_anti_aliasing(tmp_path, check):
    streets(tmp_path, classes="road 0 0 0\nsky 0 0 255\n")
    pixels = np.zeros((80, 100, 3), np.uint8)
    pixels[:40] = (0, 0, 255)
    pixels[40, :10] = (9, 9, 9)
    mask = Image.fromarray(pixels)
    for smoothed in (mask, mask.rotate(20, Image.Resampling.BICUBIC)):
        for i in range(5):
            smoothed.save(tmp_path / f"masks/{i}.png")
            picture(tmp_path / f"images/{i}.png", np.zeros((80, 100, 3)))
        out = check(tmp_path)[1]
        if smoothed is mask:
            assert "which no class has: (9, 9, 9) 0.12 %" in out and "anti-aliasing" not in out
        else:
            assert re.search(r"warning: \d+ colours are not in classes.txt, .*anti-aliasing", out)


FROM_ONE = r"id 0 \(\w+\) covers 0.00 % of the pixels; if the ids count from 1, insert"


@pytest.mark.parametrize(
    "ids, more, status, says",
    [
        ([1, 2, 3], [], 2, FROM_ONE),
        ([1, 2, 3], ["--classes", "sky"], 2, FROM_ONE.replace(r"\w+", "road")),
        ([1, 2, 3, 3, 0], [], 0, r"warning: .*id 3, classes.txt names ids 0 to 2, and id 0 \(road"),
        ([0, 1, 2, 3, 4], [], 0, None),
        ([1, 2, 200], [], 0, None),
    ],
)
def test_ids_that_count_from_one_are_detected(tmp_path, check, ids, more, status, says):
    streets(tmp_path, size=(20, 20))
    for file in (tmp_path / "masks").iterdir():
        picture(file, np.resize(ids, (20, 20)))
    result, out, faults = check(tmp_path, *more)
    assert result == status
    assert re.search(says or "", "\n".join([out, *faults]))
    assert says or "count from 1" not in out
    (tmp_path / "classes.txt").write_text("background\nroad\nsky\ncar\n")
    _, out, faults = check(tmp_path, *more)
    assert not says or "count from 1" not in "\n".join([out, *faults])


@pytest.mark.parametrize("classes", ["road 1 2 3\nsky 3 2 1\n", "road 0 0 0\nsky 3 2 1\n"])
def test_colours_in_classes_txt_for_id_masks_are_reported(tmp_path, check, classes):
    _, _, (fault,) = check(streets(tmp_path, classes=classes))
    assert "write names without colours" in fault


def test_a_warning_says_that_most_pixels_have_no_class(tmp_path, check):
    assert "most pixels have no class" in check(streets(tmp_path, classes="a\nb\n", ids=5))[1]
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    assert "most pixels have no class" not in check(tmp_path)[1]


@pytest.mark.parametrize("ids", [[0, 255], [255, 255], [3, 3]])
def test_masks_with_fewer_than_two_classes_are_refused(tmp_path, check, ids):
    streets(tmp_path)
    (tmp_path / "classes.txt").unlink()
    for file in (tmp_path / "masks").iterdir():
        picture(file, np.resize(ids, (8, 10)))
    status, _, (fault,) = check(tmp_path)
    assert status == 2 and f"{tmp_path / 'masks'}: " in fault and "classes.txt" in fault
    (tmp_path / "classes.txt").write_text("background 0 0 0\nroad 255 255 255\n")
    assert (check(tmp_path)[0] == 0) == (ids == [0, 255])


def test_a_validation_set_without_a_class_is_refused(tmp_path, check):
    streets(tmp_path / "set/train")
    streets(tmp_path / "set/val", ids=1)
    (tmp_path / "set/classes.txt").write_text("road\nsky\ncar\n")
    assert check(tmp_path / "set")[0] == 0
    for file in (tmp_path / "set/val/masks").iterdir():
        picture(file, np.full((8, 10), 255))
    status, _, (fault,) = check(tmp_path / "set")
    assert status == 2 and f"{tmp_path / 'set/val/masks'}: the validation images must" in fault


def test_each_unusable_file_is_named_in_a_line_of_its_own(tmp_path, check):
    streets(tmp_path, images=8)
    (tmp_path / "images/1.png").write_bytes(b"")
    Image.new("RGB", (10, 8)).save(tmp_path / "masks/3.png")
    picture(tmp_path / "masks/5.png", np.zeros((3, 3)))
    Image.new("L", (10, 8)).save(tmp_path / "masks/6.png", format="JPEG")
    status, out, faults = check(tmp_path)
    assert status == 2 and len(faults) == 4
    for name in ("images/1.png", "masks/3.png", "masks/5.png", "masks/6.png"):
        assert sum(f"data.py: error: {tmp_path / name}: " in fault for fault in faults) == 1
    assert "  0  road" in out and "4 images of 8 cannot be used" in out  # the others are counted


def test_three_faults_of_a_kind_are_named_and_the_rest_counted(tmp_path, check):
    streets(tmp_path / "a set", images=12)
    for i, file in enumerate((tmp_path / "a set/masks").iterdir()):
        picture(file, np.zeros((8, 10, 3) if i < 6 else (5 + i, 9)))
    status, _, faults = check(tmp_path / "a set", "--show", tmp_path / "sheet.png")
    assert status == 2 and len(faults) == 8 and not (tmp_path / "sheet.png").exists()
    for kind in ("this one is RGB", "they must have the same size"):
        assert sum(kind in fault for fault in faults) == 3
    assert faults.count("data.py: error: and 3 more like the last") == 2


def test_show_draws_samples_of_every_class_with_their_labels(tmp_path, check):
    streets(tmp_path / "set", images=9, ids=2)
    picture(tmp_path / "set/masks/4.png", np.full((8, 10), 2))  # the one car
    status, out, _ = check(tmp_path / "set", "--show", tmp_path / "sheet.png")
    assert status == 0 and "drawn into" in out
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).reshape(-1, 3).astype(int)
    yellow = (np.abs(sheet - (255, 210, 60)).max(1) <= 3).sum()  # at full strength in the legend
    tinted = ((sheet[:, 0] - sheet[:, 2] > 60) & (sheet[:, 1] - sheet[:, 2] > 50)).sum()
    assert yellow > 20 and tinted > 480 * 300  # the car fills a picture


def test_show_draws_every_part_even_with_many_classes(tmp_path, check):
    names = "".join(f"c{i}\n" for i in range(1, 30))
    streets(tmp_path / "set", classes=f"background\n{names}", images=40)
    for i in range(40):
        picture(tmp_path / f"set/masks/{i}.png", np.full((8, 10), i % 39 % 30))
    picture(tmp_path / "set/images/39.png", np.full((8, 10, 3), (0, 0, 255)))
    (tmp_path / "set/val.txt").write_text("39\n")
    check(tmp_path / "set", "--show", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    assert (sheet == (0, 0, 255)).all(2).sum() > 10_000  # the validation image


@pytest.mark.parametrize("target", ["set/images/0.png", "notes.txt"])
def test_show_overwrites_nothing_and_stays_out_of_the_data(tmp_path, check, target):
    streets(tmp_path / "set")
    (tmp_path / "notes.txt").write_text("mine")
    before = {file: file.read_bytes() for file in tmp_path.rglob("*.*")}
    status, _, (fault,) = check(tmp_path / "set", "--show", tmp_path / target)
    assert status == 2 and f"--show {tmp_path / target}: " in fault
    assert {file: file.read_bytes() for file in tmp_path.rglob("*.*")} == before


def test_validation_images_copied_from_training_are_reported(tmp_path, check):
    streets(tmp_path)
    for kind in ("images", "masks"):  # a copy under another name
        picture(tmp_path / kind / "9.png", Image.open(tmp_path / kind / "0.png"))
    (tmp_path / "val.txt").write_text("9\n4\n")
    says = "1 validation image may be copies of training images, such as {0}/9.png of {0}/0"
    assert says.format(tmp_path / "images") in check(tmp_path)[1]
    (tmp_path / "val.txt").write_text("4\n")
    assert "copies of training images" not in check(tmp_path)[1]


@pytest.mark.parametrize("video", [True, False])
def test_video_frames_on_both_sides_of_the_split_are_reported(tmp_path, check, video):
    streets(tmp_path, images=0)
    scenes = np.random.default_rng(0).integers(0, 256, (30, 8, 10, 3))
    for i, scene in enumerate(scenes):
        shown = 0.9 * scenes[i // 10] + 0.1 * scene if video else scene
        folder = "abc"[i // 10]
        picture(tmp_path / f"images/{folder}/{i}.png", shown)
        picture(tmp_path / f"masks/{folder}/{i}.png", np.resize([0, 1, 2], (8, 10)))
    says = r"warning: \d of 6 validation images look like a training image"
    assert bool(re.search(says, check(tmp_path)[1])) == video
    (tmp_path / "val.txt").write_text("b\n")  # a whole folder
    assert "look like" not in check(tmp_path)[1]


def test_classes_missing_from_the_validation_set_are_reported(tmp_path, check):
    streets(tmp_path)
    picture(tmp_path / "masks/4.png", np.resize([0, 1], (8, 10)))
    (tmp_path / "val.txt").write_text("4\n")
    assert "no validation image shows: car\n" in check(tmp_path)[1]


def test_list_prints_part_image_and_label_of_every_sample(tmp_path, check):
    streets(tmp_path)
    status, out, _ = check(tmp_path, "--list")
    found = find(tmp_path)
    parts = (("training", found.train), ("validation", found.val))
    lines = [f"{part}\t{s.image}\t{s.label}" for part, samples in parts for s in samples]
    assert status == 0 and out.splitlines() == lines


def test_the_check_takes_the_data_options_of_training(tmp_path, check):
    streets(tmp_path)
    assert "  1  car " in check(tmp_path, "--classes", "car")[1]
    (tmp_path / "images").rename(tmp_path / "photos")
    assert check(tmp_path)[0] == 2
    assert check(tmp_path, "--images", "photos/*.png", "--masks", "masks/*.png")[0] == 0
    assert "task lane" in check(kitti(tmp_path / "kitti"), "--task", "lane")[1]


def test_ctrl_c_ends_the_check_in_one_line(tmp_path, check, monkeypatch):
    def stopped(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(Image, "open", stopped)
    status, _, lines = check(streets(tmp_path))
    assert status == 130 and lines == ["stopped"]


@pytest.mark.parametrize("arguments", [[], ["--list"]])
def test_unprintable_names_do_not_stop_the_check(tmp_path, arguments):
    """A Latin-1 file name, as in old archives, and a Chinese class name for a cp1252 output."""
    streets(tmp_path, classes="road\nsky\ncar\n")
    (tmp_path / "classes.txt").write_text("\u9053\u8def\nsky\ncar\n", encoding="utf-8")
    for kind in (b"images", b"masks"):
        folder = os.path.join(os.fsencode(tmp_path), kind)
        try:
            os.rename(os.path.join(folder, b"0.png"), os.path.join(folder, b"stra\xdfe.png"))
        except OSError:
            pytest.skip("needs a file system that takes any name")
    command = [sys.executable, ROOT / "data.py", tmp_path, *arguments]
    env = {**os.environ, "PYTHONIOENCODING": "cp1252"}
    done = subprocess.run(command, env=env, capture_output=True)
    assert done.returncode == 0 and not done.stderr


def test_a_closed_pipe_ends_the_command_quietly(tmp_path):
    command = [sys.executable, ROOT / "data.py", streets(tmp_path), "--list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()  # like head after its last line
        assert process.stderr.read() == b"" and process.wait() == 0


def test_smallest_and_largest_go_by_the_longer_side():
    sizes = np.array([[10, 10], [1, 300], [20, 20], [2, 2], [9, 9]])
    assert extent(sizes) == {"smallest": (2, 2), "median": (10, 10), "largest": (1, 300)}
