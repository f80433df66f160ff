"""The recipes of docs/help.md do what the page says."""

import json
import re
import shutil
import subprocess
import sys
from unittest.mock import MagicMock

import pytest
from conftest import ROOT, randomise_scores, saved, small
from PIL import Image

import predict
from data import find
from support.labels import IGNORE

PAGE = (ROOT / "docs/help.md").read_text(encoding="utf-8")
LABELME, COCO, TENSORBOARD = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SQUARE = [[10, 5], [29, 5], [29, 14], [10, 14]]  # x, y


@pytest.fixture
def streets(tmp_path, monkeypatch):
    """The current folder, with pictures of 20 x 40 in streets/images."""
    monkeypatch.chdir(tmp_path)
    for name in ("1.jpg", "2.jpg"):
        (tmp_path / "streets/images/front").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 20), (90, 99, 80)).save(f"streets/images/front/{name}")
    return tmp_path


def labels_of_square(label, inside, outside):
    assert (label[5:15, 10:30] == inside).all()
    label[5:15, 10:30] = outside
    assert (label == outside).all() and label.shape == (20, 40)


def test_polygons_of_labelme_become_a_data_set(streets):
    (streets / "streets/classes.txt").write_text("sky\nroad\n")
    for name in ("1", "2"):
        shapes = [{"label": "road", "points": SQUARE, "shape_type": "polygon"}]
        if name == "2":
            shapes = [{"label": "road", "points": SQUARE[::-2], "shape_type": "rectangle"}]
        content = {"imageWidth": 40, "imageHeight": 20, "shapes": shapes}
        (streets / f"streets/images/front/{name}.json").write_text(json.dumps(content))
    exec(LABELME, {})
    data = find("streets")
    assert data.classes == ["sky", "road"] and len(data.train + data.val) == 2
    for sample in data.train + data.val:
        labels_of_square(data.read_label(sample.label), 1, IGNORE)


def test_polygons_of_coco_become_a_data_set(streets):
    for name in ("1.jpg", "2.jpg"):
        shutil.move(f"streets/images/front/{name}", f"streets/images/{name}")
    content = {
        "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "road"}],
        "images": [{"id": i, "width": 40, "height": 20, "file_name": f"{i}.jpg"} for i in (1, 2)],
        "annotations": [
            {"image_id": i, "category_id": 3, "segmentation": [sum(SQUARE, [])]} for i in (1, 2)
        ],
    }
    (streets / "annotations.json").write_text(json.dumps(content))
    exec(COCO, {})
    data = find("streets")
    assert data.classes == ["background", "car", "road"]
    for sample in data.train + data.val:
        labels_of_square(data.read_label(sample.label), 2, 0)


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs ffmpeg")
def test_a_video_becomes_a_video_of_overlays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise = "testsrc=size=64x48:rate=25:duration=0.2"
    subprocess.run(["ffmpeg", "-f", "lavfi", "-i", noise, "drive.mp4"], check=True)
    (tmp_path / "runs/NAME").mkdir(parents=True)
    saved(tmp_path / "runs/NAME/best.pt", randomise_scores(small(3)))
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith("    ")]
    frames, command, video = [line for line in lines if "drive" in line]
    subprocess.run(frames, shell=True, check=True)
    assert predict.main(command.split()[2:]) == 0
    subprocess.run(video.replace("1280:720", "64:48"), shell=True, check=True)
    assert len(list((tmp_path / "drive/overlay").iterdir())) == 5
    assert (tmp_path / "drive-road.mp4").stat().st_size > 0


def test_the_log_of_a_run_becomes_tensorboard_curves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/a").mkdir(parents=True)
    (tmp_path / "runs/a/log.csv").write_text("epoch,train_loss,iou_sky\n1,0.5,0.25\n2,0.25,0.75\n")
    writer = MagicMock()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", MagicMock(SummaryWriter=writer))
    exec(TENSORBOARD, {})
    writer.assert_called_once_with("runs/a")
    scalars = writer.return_value.__enter__.return_value.add_scalar.call_args_list
    assert sorted(call.args for call in scalars) == [
        ("iou_sky", 0.25, 1),
        ("iou_sky", 0.75, 2),
        ("train_loss", 0.25, 2),
        ("train_loss", 0.5, 1),
    ]


def test_every_option_on_the_page_exists(command):
    known = ""
    for script in ("train.py", "predict.py", "data.py"):
        known += command(script, "--help")[1]
    for option in set(re.findall(r"`(?:predict.py )?(--[a-z-]+)", PAGE)):
        assert option in known, option
