"""A user's mistake ends a command with status 2 and one line on standard error that names the file
or the option.
"""

import os
import pickle
import shlex
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from support.console import warn
from support.datasets import synthetic
from vgg import VGG16

TINY = (
    "--epochs 1 --width 0.03125 --fc-channels 8 --weights none --workers 0 --device cpu --amp off"
).split()


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A small data set of each layout, to be copied and spoilt."""
    root = tmp_path_factory.mktemp("errors")
    synthetic.write(root / "kitti", train=6, test=0, height=32, width=64)
    rng = np.random.default_rng(0)
    for i in range(3):
        for kind, shape, highest in (("images", (20, 30, 3), 256), ("masks", (20, 30), 3)):
            (root / "own" / kind).mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, highest, shape, np.uint8)
            Image.fromarray(pixels).save(root / "own" / kind / f"{i}.png")
    (root / "own/classes.txt").write_text("road\nsky\ncar\n")
    shutil.copytree(root / "own", root / "listed")
    (root / "listed/train.txt").write_text("0\n2\n")
    (root / "listed/val.txt").write_text("1\n")
    for part, town, i in (("train", "aachen", 0), ("train", "bonn", 1), ("val", "ulm", 2)):
        for folder, kind, end in (
            ("leftImg8bit", "images", "leftImg8bit"),
            ("gtFine", "masks", "gtFine_labelTrainIds"),
        ):
            (root / "city" / folder / part / town).mkdir(parents=True)
            target = root / "city" / folder / part / town / f"{town}_0_{end}.png"
            shutil.copy(root / f"own/{kind}/{i}.png", target)
    return root


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def remove(file):
    shutil.rmtree(file) if file.is_dir() else file.unlink()


def holding(content):
    return lambda file: file.write_bytes(content)


TRUTH = "training/gt_image_2/um_road_000000.png"
PHOTO = "training/image_2/um_000000.png"
CALIBRATION = "training/calib/um_000000.txt"
ULM = "gtFine/val/ulm/ulm_0_gtFine_labelTrainIds.png"
# layout, file, damage, and the file that the error names if it is another one
SPOILT = [
    ("kitti", TRUTH, cut, None),
    ("kitti", PHOTO, remove, None),
    ("kitti", CALIBRATION, holding(b"P2: 1 2 3\n"), None),
    ("kitti", "training/image_2", remove, ""),
    ("own", "masks/1.png", remove, "images/1.png"),
    ("own", "images/1.png", remove, "masks/1.png"),
    ("own", "images/1.png", lambda file: shutil.copy(file, file.with_suffix(".bmp")), None),
    ("own", "images/1.png", cut, None),
    ("own", "masks/1.png", lambda file: Image.new("L", (3, 2)).save(file), None),
    ("own", "classes.txt", holding(b"road\n\nsky\n"), None),
    ("own", "classes.txt", holding(b"road 7 7 7\nsky 8 8 8\n"), "masks"),  # on no mask
    ("listed", "train.txt", holding(b"0\n1\n"), "images/1.png"),
    ("city", "gtFine/train", remove, None),
    ("city", ULM, remove, "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png"),
    ("city", ULM, lambda file: Image.new("L", (3, 2)).save(file), None),
]


@pytest.mark.parametrize("script", ["data.py", "train.py"])
@pytest.mark.parametrize("layout, name, spoil, named", SPOILT)
def test_an_unusable_file_is_named_before_the_first_step(
    originals, tmp_path, command, script, layout, name, spoil, named
):
    root = tmp_path / "set"
    shutil.copytree(originals / layout, root)
    spoil(root / name)
    run = ["--data", root, "--out", tmp_path / "out", *TINY] if script == "train.py" else [root]
    status, _, error = command(script, *run)
    assert status == 2 and error.count("\n") == 1
    file = root / (name if named is None else named)
    files = {file, file.with_suffix(".bmp")}
    assert any(
        error.startswith(f"{script}: error: {f}: ") or f"{f} is missing" in error for f in files
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything"
)
@pytest.mark.parametrize(
    "layout, name",
    [("kitti", TRUTH), ("kitti", PHOTO), ("own", "classes.txt"), ("own", "masks")],
)
def test_a_file_without_read_permission_is_named(originals, tmp_path, command, layout, name):
    shutil.copytree(originals / layout, tmp_path / "set")
    (tmp_path / "set" / name).chmod(0)
    status, _, error = command("data.py", tmp_path / "set")
    (tmp_path / "set" / name).chmod(0o700)
    assert status == 2 and error.count("\n") == 1 and name in error and "ermi" in error


@pytest.mark.parametrize(
    "arguments, named",
    [
        ("--crop 64", "--crop"),
        ("--lr nan", "--lr"),
        ("--resize 0", "--resize"),
        ("--freeze 4", "--freeze"),
        ("--batch-size 0", "--batch-size"),
        ("--width 0", "--width"),
        ("--stride 7", "--stride"),
        ("--pad 50", "pad"),
        ("--task lane", "--task lane"),
        ("--device tpu", "tpu"),
        ("--color", "not an option: --color\n"),
        ("--epoch 1 --widht=0.5", "--epoch, --widht; did you mean --epochs, --width?"),
        ("--\x1b[2J", r"--\x1b[2J"),
        ("--dropout 2", "--dropout"),
        ("--seed -1", "--seed"),
        ("--skip-gain 1", "--skip-gain"),
        ("--data nowhere", "nowhere: no such folder"),
        ("--out file", "file"),
        ("--resume --out nothing", "nothing"),
        ("--weights nothing.pth", "nothing.pth"),
        ("--images photos/*.png", "--images and --masks: go together"),
        ("--images a/*.png --masks b/*.png", "a/*.png: no picture matches"),
        ("--classes pavement", "--classes pavement"),
    ],
)
def test_an_unusable_option_is_named(originals, tmp_path, monkeypatch, command, arguments, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    run = ["--data", originals / "own", "--out", "run", *TINY, *arguments.split()]
    status, _, error = command("train.py", *run)
    assert status == 2 and error.startswith("train.py: error: ") and error.count("\n") == 1
    assert named in error and "\x1b" not in error
    assert {file.name for file in tmp_path.iterdir()} == {"file"}  # nothing is left behind


class Evil:
    """Python's own unpickling of this object would create a file."""

    def __reduce__(self):
        return open, ("made by a pickle", "w")


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda w: {**w, "conv1_1.weight": w["conv1_1.weight"] * float("nan")}, "not finite"),
        (lambda w: {k: v for k, v in w.items() if k != "conv3_2.bias"}, "conv3_2.bias"),
        (lambda w: {**w, "conv4_1.bias": torch.zeros(3)}, "conv4_1.bias"),
        (lambda w: Evil(), "weights.pth"),
        (lambda w: pickle.dumps(Evil()), "weights.pth"),
    ],
)
def test_unusable_weights_are_named_and_run_no_code(
    originals, tmp_path, monkeypatch, command, change, says
):
    monkeypatch.chdir(tmp_path)
    content = change(VGG16(width=1 / 32, fc_channels=8).state_dict())
    if isinstance(content, bytes):
        (tmp_path / "weights.pth").write_bytes(content)
    else:
        torch.save(content, tmp_path / "weights.pth")
    run = ["--data", originals / "own", "--out", "out", *TINY, "--weights", "weights.pth"]
    status, _, error = command("train.py", *run)
    assert status == 2 and error.count("\n") == 1 and "weights.pth" in error and says in error
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("name", ["with space", "ümlaut", "new\nline", "quo'te\"s", "-dash"])
def test_a_folder_of_any_name_trains_and_is_named_in_one_line(
    originals, tmp_path, monkeypatch, command, name
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(originals / "own", tmp_path / name)
    status, said, _ = command("train.py", f"--data={name}", f"--out={name}/run", *TINY)
    assert status == 0
    suggested = shlex.split(said.rpartition("other pictures: ")[2])
    assert suggested == ["python", "predict.py", f"{name}/run/best.pt", "PICTURE"]
    cut(tmp_path / name / "masks/1.png")
    status, _, error = command("train.py", f"--data={name}", f"--out={name}/run2", *TINY)
    assert status == 2 and error.count("\n") == 1


@pytest.mark.parametrize(
    "script, arguments, named",
    [
        ("data.py", [], "DIR"),
        ("data.py", ["nowhere"], "nowhere: no such folder"),
        ("data.py", [".", "--task", "pavement"], "--task"),
        ("tools/bench.py", ["--device", "tpu"], "tpu"),
        ("tools/gpu.py", ["--device", "tpu"], "not an option: --device"),
        ("weights/convert.py", ["nowhere.pth"], "nowhere.pth"),
        ("kitti.py", [], "RESULTS_DIR"),
        ("predict.py", [], "CHECKPOINT"),
    ],
)
def test_every_script_reports_a_mistake_in_one_line(
    tmp_path, monkeypatch, command, script, arguments, named
):
    monkeypatch.chdir(tmp_path)
    status, out, error = command(script, *arguments)
    assert status == 2 and not out and named in error
    assert error.startswith(f"{script.rpartition('/')[2]}: error: ") and error.count("\n") == 1


def test_a_warning_escapes_control_characters(capsys):
    warn("predict.py", "a\x1b[2J\nb.png")
    assert capsys.readouterr().err == "predict.py: warning: a\\x1b[2J\\nb.png\n"
