"""What people get wrong, one row each: one line on standard error that names the file and the mend,
and status 2.
"""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

import data
import train
from support.console import InputError
from support.datasets import images as pictures
from support.datasets import synthetic as roads
from support.datasets.images import read_picture
from vgg import VGG16

OPTIONS = [
    "--epochs",
    "1",
    "--width",
    "0.03125",
    "--fc-channels",
    "8",
    "--weights",
    "none",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--amp",
    "off",
]


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """A small data set of each layout, to be copied and spoilt."""
    root = tmp_path_factory.mktemp("errors")
    roads.write(root / "kitti", train=6, test=0, height=32, width=64)
    rng = np.random.default_rng(0)
    for i in range(3):
        for part, pixels in (
            ("images", rng.integers(0, 256, (20, 30, 3), np.uint8)),
            ("masks", rng.integers(0, 3, (20, 30), np.uint8)),
        ):
            (root / "own" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(root / "own" / part / f"{i}.png")
    (root / "own/classes.txt").write_text("road\nsky\ncar\n")
    shutil.copytree(root / "own", root / "listed")
    (root / "listed/train.txt").write_text("0\n2\n")
    (root / "listed/val.txt").write_text("1\n")
    shutil.copytree(root / "own", root / "colours")
    (root / "colours/classes.txt").write_text("road 0 0 0\nsky 1 1 1\ncar 2 2 2\n")
    for part, city, i in (("train", "aachen", 0), ("train", "bonn", 1), ("val", "ulm", 2)):
        for folder, end in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds")):
            (root / "city" / folder / part / city).mkdir(parents=True)
            shutil.copy(
                root / f"own/{'images' if end == folder else 'masks'}/{i}.png",
                root / "city" / folder / part / city / f"{city}_0_{end}.png",
            )
    return root


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def recolour(colour):
    def change(file):
        picture = Image.open(file).convert("RGB")
        picture.putpixel((5, 5), colour)
        picture.save(file)

    return change


def holding(content):
    return lambda file: (
        file.write_text(content) if isinstance(content, str) else file.write_bytes(content)
    )


def saved_as(kind):
    return lambda file: Image.open(file).convert("L").save(file, format=kind)


def tagged(file):
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.open(file).save(file, exif=exif)


def calibration(text):
    return lambda file: file.write_bytes(text)


TRUTH, PICTURE, CALIB = (
    "training/gt_image_2/um_road_000000.png",
    "training/image_2/um_000000.png",
    "training/calib/um_000000.txt",
)
# layout, the file, what happens to it, and what the line says besides the file's name
FILES = [
    ("kitti", TRUTH, cut, "cannot be read as a picture"),
    ("kitti", TRUTH, lambda f: f.write_bytes(b""), "cannot be read as a picture"),
    ("kitti", TRUTH, lambda f: Image.new("RGB", (60, 32)).save(f), "60x32"),
    ("kitti", TRUTH, lambda f: Image.new("L", (64, 32)).save(f), "is RGB, this picture is L"),
    ("kitti", TRUTH, recolour((255, 255, 255)), "(255, 255, 255)"),
    ("kitti", TRUTH, recolour((255, 0, 128)), "(255, 0, 128)"),
    ("kitti", TRUTH, recolour((0, 0, 255)), "(0, 0, 255)"),
    ("kitti", PICTURE, cut, "cannot be read as a picture"),
    ("kitti", PICTURE, lambda f: f.write_bytes(b""), "cannot be read as a picture"),
    ("kitti", PICTURE, lambda f: f.write_text("not a picture"), "cannot be read as a picture"),
    ("kitti", PICTURE, lambda f: f.unlink(), "is missing"),
    ("kitti", CALIB, calibration(b""), "P2 is missing"),
    ("kitti", CALIB, calibration(b"P2: 1 2 3\n"), "not 12 numbers"),
    ("kitti", CALIB, calibration(b"P2: one two\n"), "NAME: NUMBERS"),
    ("kitti", CALIB, calibration(b"\xff\xfe"), "cannot be read as a calibration file"),
    ("kitti", "training/gt_image_2", shutil.rmtree, "no such folder"),
    ("kitti", "training/image_2", shutil.rmtree, "no data set found"),
    ("own", "masks/1.png", lambda f: f.unlink(), "there is no mask named 1 in"),
    ("own", "images/1.png", lambda f: f.unlink(), "there is no image named 1 in"),
    ("own", "masks/1.png", lambda f: f.rename(f.with_suffix(".jpg")), "masks must be PNG"),
    (
        "own",
        "masks/1.png",
        lambda f: Image.new("RGB", (30, 20)).save(f),
        "class ids, this one is RGB",
    ),
    ("own", "masks/1.png", lambda f: Image.new("L", (3, 2)).save(f), "3x2"),
    ("own", "masks/1.png", cut, "cannot be read as a picture"),
    ("own", "images/1.png", lambda f: shutil.copy(f, f.with_suffix(".bmp")), "same stem"),
    ("own", "images/1.png", cut, "cannot be read as a picture"),
    ("own", "classes.txt", lambda f: f.write_text("a\nb\na\n"), "named twice"),
    ("own", "classes.txt", lambda f: f.write_text("\n"), "0 classes"),
    ("own", "classes.txt", lambda f: f.write_bytes(b"\xff\xff"), "text in UTF-8"),
    ("own", "images", shutil.rmtree, "no data set found"),
    ("own", "masks", shutil.rmtree, "no such folder"),
    # classes.txt, of which every line is a class
    ("own", "classes.txt", holding("road\n\nsky\n"), "line 2 is empty"),
    ("own", "classes.txt", holding("# my classes\nroad\nsky\n"), "line 1 is a comment"),
    ("own", "classes.txt", holding("0 road\n1 sky\n"), "line 1 begins with a number"),
    ("own", "classes.txt", holding("0 0 0 road\n1 1 1 sky\n"), "line 1 begins with a colour"),
    ("own", "classes.txt", holding("road 0 0 0\nsky\n"), "line 2 has no colour"),
    ("own", "classes.txt", holding("road 0 0 0\nsky 0 0 300\n"), "line 2 has the colour 0 0 300"),
    (
        "own",
        "classes.txt",
        holding("road 0 0 0\nsky 0 0 0\n"),
        "line 2 gives the colour 0 0 0 to another class",
    ),
    # what a file is inside
    ("own", "masks/1.png", saved_as("JPEG"), "is JPEG inside, and must be PNG"),
    ("own", "masks/1.png", saved_as("BMP"), "is BMP inside, and must be PNG"),
    ("own", "masks/1.png", saved_as("GIF"), "is GIF inside, and must be PNG"),
    (
        "kitti",
        TRUTH,
        lambda f: Image.open(f).save(f, format="JPEG"),
        "is JPEG inside, and must be PNG",
    ),
    ("own", "images/1.png", holding(b"8BPS\x00\x01" + bytes(60)), "it is none of PNG, JPEG"),
    ("own", "images/1.png", holding("%!PS-Adobe-3.0 EPSF-3.0\n"), "it is none of PNG, JPEG"),
    (
        "own",
        "images/1.png",
        holding(b"\x00\x00\x00\x18ftypheic" + bytes(40)),
        "it is none of PNG, JPEG",
    ),
    (
        "own",
        "masks/1.png",
        lambda f: Image.fromarray(np.full((20, 30), 300, np.uint16)).save(f),
        "has the id 300",
    ),
    ("own", "masks/1.png", lambda f: Image.new("LA", (30, 20)).save(f), "this one is LA"),
    # which way up
    ("own", "images/1.png", tagged, "its EXIF tag turns it (orientation 3)"),
    ("own", "masks/1.png", tagged, "has an EXIF tag that turns it"),
    # colours
    ("colours", "masks/1.png", cut, "cannot be read as a picture"),
    ("colours", "masks/1.png", saved_as("JPEG"), "is JPEG inside, and must be PNG"),
    (
        "colours",
        "masks",
        lambda f: [Image.new("RGB", (30, 20), "red").save(file) for file in f.iterdir()],
        "no pixel of a training image",
    ),
    (
        "colours",
        "masks",
        lambda f: [Image.new("RGB", (30, 20)).save(file) for file in f.iterdir()],
        "is of one class, road",
    ),
    # lists
    ("listed", "train.txt", holding("0\n9\n"), "names '9', and no image has this name"),
    ("listed", "train.txt", holding("\n"), "names no images"),
    ("listed", "val.txt", holding(b"\xff\xfe"), "cannot be read as a list of images"),
    ("listed", "train.txt", holding("0\n1\n"), "1 of its images is in val.txt too, as 1"),
    ("listed", "masks/1.png", lambda f: f.unlink(), "there is no mask named 1 in"),
    # Cityscapes
    ("city", "gtFine/train", shutil.rmtree, "holds no masks named"),
    ("city", "leftImg8bit/train", shutil.rmtree, "no data set found"),
    (
        "city",
        "gtFine/val/ulm/ulm_0_gtFine_labelTrainIds.png",
        lambda f: Image.new("L", (3, 2)).save(f),
        "is 3x2, its image",
    ),
    (
        "city",
        "gtFine/val/ulm/ulm_0_gtFine_labelTrainIds.png",
        lambda f: Image.new("RGB", (30, 20)).save(f),
        "this one is RGB",
    ),
    (
        "city",
        "leftImg8bit/val/ulm/ulm_0_leftImg8bit.png",
        lambda f: (f.parents[3] / "gtFine/val/ulm/ulm_0_gtFine_labelTrainIds.png").unlink(),
        "there is no mask named ulm/ulm_0",
    ),
    (
        "city",
        "gtFine/train/bonn/bonn_0_gtFine_labelTrainIds.png",
        lambda f: (f.parents[3] / "leftImg8bit/train/bonn/bonn_0_leftImg8bit.png").unlink(),
        "there is no image named bonn/bonn_0",
    ),
]


@pytest.mark.parametrize("layout, name, spoil, said", FILES)
def test_a_file_that_cannot_be_used_is_named_before_the_first_step(
    originals, tmp_path, capsys, layout, name, spoil, said
):
    shutil.copytree(originals / layout, tmp_path / "set")
    spoil(tmp_path / "set" / name)
    assert (
        train.main(["--data", str(tmp_path / "set"), "--out", str(tmp_path / "out"), *OPTIONS]) == 2
    )
    error = capsys.readouterr().err
    assert error.startswith("train.py: error: ") and error.count("\n") == 1 and said in error
    file = tmp_path / "set" / name
    swapped = (
        str(file).replace("/images/", "/masks/")
        if "/images/" in str(file)
        else str(file).replace("/masks/", "/images/")
    )
    named = {str(file), swapped, str(file.with_suffix(".jpg")), str(file.with_suffix(".bmp"))}
    assert any(f"{path}:" in error or f"{path} is" in error for path in named) or (
        f"{tmp_path / 'set'}: no data set" in error and spoil is shutil.rmtree
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything"
)
@pytest.mark.parametrize(
    "layout, name",
    [
        ("kitti", TRUTH),
        ("kitti", PICTURE),
        ("kitti", CALIB),
        ("own", "classes.txt"),
        ("own", "masks"),
        ("own", "images/1.png"),
    ],
)
def test_what_may_not_be_read_is_named(originals, tmp_path, capsys, layout, name):
    shutil.copytree(originals / layout, tmp_path / "set")
    (tmp_path / "set" / name).chmod(0)
    assert (
        train.main(["--data", str(tmp_path / "set"), "--out", str(tmp_path / "out"), *OPTIONS]) == 2
    )
    (tmp_path / "set" / name).chmod(0o700)
    error = capsys.readouterr().err
    assert (
        error.startswith("train.py: error: ")
        and error.count("\n") == 1
        and name in error
        and "ermi" in error
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read and write everything"
)
def test_a_folder_that_may_not_be_written_to_is_named(originals, tmp_path, capsys):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert (
        train.main(
            ["--data", str(originals / "own"), "--out", str(tmp_path / "locked/run"), *OPTIONS]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "locked" in error and "choose another --out" in error


def test_masks_without_a_class_that_counts_are_refused(originals, tmp_path, capsys):
    shutil.copytree(originals / "own", tmp_path / "set")
    for file in (tmp_path / "set/masks").iterdir():
        Image.new("L", (30, 20), 77).save(file)
    assert (
        train.main(["--data", str(tmp_path / "set"), "--out", str(tmp_path / "out"), *OPTIONS]) == 2
    )
    assert "classes.txt" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("--crop 0x0", "--crop"),
        ("--crop 64", "--crop"),
        ("--crop 900x900", "every image is smaller"),
        ("--lr nan", "--lr"),
        ("--scale 0", "--scale"),
        ("--scale big", "--scale"),
        ("--scale 1e9", "take a smaller one"),
        ("--freeze 4", "--freeze"),
        ("--freeze 1 --weights none", "random ones have to learn"),
        ("--recipe paper --scale 2 --crop none", "images as they are"),
        ("--lr 0", "--lr"),
        ("--lr 0.0e5", "--lr"),
        ("--epochs -1", "--epochs"),
        ("--epochs 1.5", "--epochs"),
        ("--batch-size 0", "--batch-size"),
        ("--width 0", "--width"),
        ("--stride 7", "--stride"),
        ("--pad 50", "pad is 50"),
        ("--task walk", "--task"),
        ("--amp fp8", "--amp"),
        ("--device tpu", "no such device"),
        ("--color", "--color"),
        ("--dropout 1", "--dropout"),
        ("--dropout -0.1", "--dropout"),
        ("--save-every 0", "--save-every"),
        ("--seed -1", "--seed"),
        ("--skip-scale 1", "--skip-scale"),
        ("--skip-scale 1,0", "--skip-scale"),
        ("--fc-channels 0", "--fc-channels"),
        ("--data nowhere", "nowhere: no such folder"),
        ("--out file", "choose another --out"),
        ("--out file/run", "choose another --out"),
        ("--resume --out nothing", "last.pt"),
        ("--weights nothing.pth", "nothing.pth"),
        ("--weights auto", "--weights none"),
        ("--weights file", "file"),
        ("--images photos/*.png", "--images and --masks: go together"),
        ("--masks labels/*.png", "--images and --masks: go together"),
        ("--images a/*.png --masks b/**/*.png", "have different wildcards"),
        ("--images a/1.png --masks b/1.png", "give a pattern"),
        ("--images a/*.png --masks b/*.png", "a/*.png: no picture has such a path"),
        ("--images /a/*.png --masks b/*.png", "--images /a/*.png: give a pattern"),
        ("--classes pavement", "no class 'pavement'"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(
    originals, tmp_path, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    try:
        status = train.main(
            ["--data", str(originals / "own"), "--out", "run", *OPTIONS, *arguments.split()]
        )
    except SystemExit as exit:
        status = exit.code
    error = capsys.readouterr().err
    assert (
        status == 2
        and error.startswith("train.py: error: ")
        and error.count("\n") == 1
        and said in error
    )
    assert {file.name for file in tmp_path.iterdir()} == {"file"}  # nothing is left behind


class Evil:
    """Unpickled as Python does it, this would make a file."""

    def __reduce__(self):
        return open, ("made by a pickle", "w")


@pytest.mark.parametrize(
    "change, said",
    [
        (
            lambda state, f: torch.save(
                {**state, "conv1_1.weight": state["conv1_1.weight"] * float("nan")}, f
            ),
            "not finite",
        ),
        (
            lambda state, f: torch.save({**state, "conv9_9.weight": torch.zeros(1)}, f),
            "conv9_9.weight",
        ),
        (
            lambda state, f: torch.save({k: v for k, v in state.items() if k != "conv3_2.bias"}, f),
            "conv3_2.bias",
        ),
        (lambda state, f: torch.save({**state, "conv4_1.bias": torch.zeros(3)}, f), "conv4_1.bias"),
        (lambda state, f: torch.save({}, f), "conv1_1.weight is missing"),
        (lambda state, f: f.write_bytes(pickle.dumps(Evil())), "not a whole file of torch.save"),
        (lambda state, f: torch.save(Evil(), f), "not a whole file of torch.save"),
        (
            lambda state, f: (torch.save(state, f), f.write_bytes(f.read_bytes()[:-2000])),
            "not a whole file of torch.save",
        ),
    ],
)
def test_weights_that_cannot_be_used_are_named_and_run_no_code(
    originals, tmp_path, monkeypatch, capsys, change, said
):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    change(VGG16(width=1 / 32, fc_channels=8).state_dict(), file)
    assert (
        train.main(
            [
                "--data",
                str(originals / "own"),
                "--out",
                str(tmp_path / "out"),
                *OPTIONS,
                "--weights",
                str(file),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "weights.pth" in error and said in error
    assert [f.name for f in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize("name", ["with space", "ümlaut", "new\nline", "quo'te\"s", "-dash"])
def test_any_name_of_a_folder_trains_and_is_said_in_one_line_when_it_is_wrong(
    originals, tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(originals / "own", tmp_path / name)
    assert train.main([f"--data={name}", f"--out={name}/run", *OPTIONS]) == 0
    cut(tmp_path / name / "masks/1.png")
    capsys.readouterr()
    assert train.main([f"--data={name}", f"--out={name}/run2", *OPTIONS]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_is_resumed_only_as_what_it_is(originals, tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    assert train.main(["--data", str(originals / "own"), *out, *OPTIONS]) == 0
    for change, said in (
        (["--pad", "100"], ("--pad 100", "has 1")),
        (["--width", "0.5"], ("--width 0.5", "has 0.03125")),
        (["--data", str(originals / "kitti")], ("not road", "sky")),
    ):
        capsys.readouterr()
        assert train.main(["--resume", *out, *change]) == 2
        error = capsys.readouterr().err
        assert all(word in error for word in said)
    assert (
        train.main(["--resume", *out, "--amp", "auto", "--flip", "auto", "--fc-channels", "auto"])
        == 0
    )  # whatever that was


@pytest.mark.parametrize(
    "script, arguments, said",
    [
        ("data.py", [], "DIR"),
        ("data.py", ["nowhere"], "nowhere: no such folder"),
        ("data.py", [".", "--task", "pavement"], "--task"),
        ("tools/bench.py", ["--device", "tpu"], "--device tpu"),
        ("tools/bench.py", ["--rounds"], "--rounds"),
        ("tools/gpu.py", ["--device", "tpu"], "--device tpu"),
        ("support/roofline.py", ["4"], "4"),
        ("support/roads.py", ["--size", "8"], "--size"),
        ("weights/convert.py", ["--size"], "--size"),
        ("weights/convert.py", ["nowhere.pth"], "nowhere.pth"),
        ("metrics.py", [], "RESULTS_DIR"),
        ("predict.py", [], "CHECKPOINT"),
    ],
)
def test_every_script_says_in_one_line_what_it_cannot_do_and_ends_with_status_2(
    tmp_path, monkeypatch, command, script, arguments, said
):
    monkeypatch.chdir(tmp_path)
    status, out, error = command(script, *arguments)
    assert status == 2 and not out and said in error
    assert error.startswith(f"{script.rpartition('/')[2]}: error: ") and error.count("\n") == 1


def test_a_picture_made_to_fill_the_memory_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST", 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    pictures.allow_large_pictures()
    Image.new("L", (15, 15)).save(tmp_path / "bomb.png")
    with pytest.raises(
        InputError,
        match="bomb.png: cannot be read as a picture .Image size .225 pixels. exceeds limit of 200",
    ):
        read_picture(tmp_path / "bomb.png").pixels


@given(st.binary(max_size=60))
@example(b"\xef\xbb\xbfroad\r\nsky")
@example(b"\x00\n\x00")
def test_any_bytes_as_classes_are_names_or_an_input_error(tmp_path_factory, originals, content):
    root = tmp_path_factory.mktemp("classes") / "set"
    shutil.copytree(originals / "own", root)
    (root / "classes.txt").write_bytes(content)
    try:
        names = data.find(root).classes
    except InputError as error:
        assert "classes.txt" in str(error)
    else:
        assert names and len(set(names)) == len(names)
