"""A user's mistake ends a command with status 2 and one line on standard error that names the file
or the option.
"""

import os
import shlex
import shutil

import numpy as np
import pytest
import torch
from conftest import picture

from support.console import warn
from support.datasets import synthetic

TINY = (
    "--epochs 1 --width 0.03125 --fc-channels 8 --weights none --workers 0 --device cpu --amp off"
).split()


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A small data set of each kind, to be copied and spoilt."""
    root = tmp_path_factory.mktemp("errors")
    synthetic.write(root / "kitti", train=6, test=0, height=32, width=64)
    rng = np.random.default_rng(0)
    for i in range(3):
        picture(root / f"own/images/{i}.png", rng.integers(0, 256, (20, 30, 3)))
        picture(root / f"own/masks/{i}.png", rng.integers(0, 3, (20, 30)))
    (root / "own/classes.txt").write_text("road\nsky\ncar\n")
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
# layout, file, damage, and the file that the error names if it is another one
SPOILT = [
    ("kitti", TRUTH, cut, None),
    ("kitti", PHOTO, remove, None),
    ("kitti", CALIBRATION, holding(b"P2: 1 2 3\n"), None),
    ("kitti", "training/image_2", remove, ""),
    ("own", "masks/1.png", remove, "images/1.png"),
    ("own", "images/1.png", lambda file: shutil.copy(file, file.with_suffix(".bmp")), None),
    ("own", "images/1.png", cut, None),
    ("own", "masks/1.png", lambda file: picture(file, np.zeros((2, 3))), None),
    ("own", "classes.txt", holding(b"road\n\nsky\n"), None),
]


@pytest.mark.parametrize("layout, name, spoil, named", SPOILT)
def test_an_unusable_file_is_named_before_the_first_step(
    originals, tmp_path, command, layout, name, spoil, named
):
    root = tmp_path / "set"
    shutil.copytree(originals / layout, root)
    spoil(root / name)
    weights = tmp_path / "empty.pth"  # unusable too, but read after the data
    weights.touch()
    run = ["--data", root, "--out", tmp_path / "out", *TINY, "--weights", weights]
    status, _, error = command("train.py", *run)
    assert status == 2 and error.count("\n") == 1
    file = root / (name if named is None else named)
    files = file, file.with_suffix(".bmp")
    assert error.startswith(tuple(f"train.py: error: {f}: " for f in files))
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
        ("--freeze x", "'x' is not a whole number"),
        ("--batch-size 0", "--batch-size"),
        ("--epochs 1.5", "--epochs"),
        ("--stride 7", "--stride"),
        ("--dropout 2", "--dropout"),
        ("--seed -1", "--seed"),
        ("--skip-gain 1", "--skip-gain"),
        ("--skip-gain 1,0", "--skip-gain"),
        ("--color", "not an option: --color\n"),
        ("--epoch 1 --widht=0.5", "--epoch, --widht; did you mean --epochs, --width?"),
        ("--\x1b[2J", r"--\x1b[2J"),
        ("folder", "the folder goes after --data"),
        ("--data nowhere", "nowhere: no such folder"),
        ("--pad 50", "pad is 50"),
        ("--device tpu", "--device tpu"),
        ("--resize 1e9", "choose a smaller factor"),
        ("--freeze 1", "random weights must be trained"),
        ("--recipe paper --resize 2", "--resize: --recipe paper"),
        ("--weights nothing.pth", "nothing.pth: no such weights file"),
        ("--weights auto", "add --weights none"),
        ("--weights=", "the value is empty"),
        ("--weights file", "make the file with python weights/convert.py"),
        ("--out file", "choose another --out"),
        ("--resume --out nothing", "nothing: there is no such run"),
        ("--resume", "--out runs/NAME"),
    ],
)
def test_an_unusable_option_is_named(originals, tmp_path, monkeypatch, command, arguments, named):
    monkeypatch.chdir(tmp_path)
    torch.save({"conv1_1.bias": torch.zeros(1)}, tmp_path / "file")  # not the weights of VGG16
    run = ["--data", originals / "own", *TINY, *arguments.split()]
    status, _, error = command("train.py", *run)
    assert status == 2 and error.startswith("train.py: error: ") and error.count("\n") == 1
    assert named in error and "\x1b" not in error
    assert {file.name for file in tmp_path.iterdir()} == {"file"}  # nothing is left behind


def test_a_folder_of_any_name_trains_and_is_named_in_one_line(
    originals, tmp_path, monkeypatch, command
):
    monkeypatch.chdir(tmp_path)
    name = "-dash, ümlaut, quo'te\"s and\na new line"
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
