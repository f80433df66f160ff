"""What predict.py writes: for every kind of picture, under its own name, at its own size, and
nothing that is half done.
"""

import csv
import errno
import shutil
import zipfile

import numpy as np
import pytest
import torch
from conftest import randomise_scores
from PIL import Image

import predict
import train
from data import find
from fcn import FCN8s
from support.checkpoint import read_tensors, save_tensors
from support.datasets import synthetic as roads
from support.datasets.images import read_mask, read_picture
from support.device import normalise

NARROW = {"width": 1 / 32, "fc_channels": 8}


def checkpoint(path, classes, seed=0, **config):
    """A checkpoint as train.py writes it, of a network with arbitrary weights that uses all its
    classes.
    """
    torch.manual_seed(seed)
    net = FCN8s(len(classes), **{**NARROW, **config})
    randomise_scores(net)
    noise = normalise(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        net.score_fr.bias -= net(noise).mean((0, 2, 3))  # no class is above all others everywhere
    save_tensors(
        {
            "config": net.config,
            "classes": classes,
            "settings": {"task": "road", "split_seed": 0},
            "model": net.state_dict(),
        },
        path,
    )
    return path


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("net") / "best.pt", ["not road", "road"])


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    return checkpoint(
        tmp_path_factory.mktemp("net") / "best.pt", [f"class {i}" for i in range(10)] + ["road"]
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "scenes"
    roads.write(folder, train=12, test=6, height=48, width=160)
    return folder


def photo(path, size=(50, 40), mode="RGB", **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return path


def run(*arguments):
    return predict.main([*map(str, arguments), "--device", "cpu", "--amp", "off"])


def files(folder):
    return {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()}


def whole_scores(path, picture):
    saved = read_tensors(path)
    net = FCN8s(**saved["config"]).eval()
    net.load_state_dict(saved["model"])
    image = torch.tensor(read_picture(picture).pixels).permute(2, 0, 1)[None]
    with torch.no_grad():
        return net(normalise(image))[0]


@pytest.mark.parametrize("which", ["road", "streets"])
def test_mask_and_confidence_are_those_of_the_networks_scores(which, road, streets, tmp_path):
    path = road if which == "road" else streets
    picture = photo(tmp_path / "a.png")
    assert run(path, picture, "--out", tmp_path / "out", "--confidence", "road") == 0
    assert files(tmp_path / "out") == {"overlay/a.png", "mask/a.png", "confidence/a.png"}
    scores = whole_scores(path, picture)
    mask = read_mask(tmp_path / "out/mask/a.png")
    assert np.array_equal(mask, scores.argmax(0).byte().numpy()) and len(np.unique(mask)) > 1
    confidence = np.asarray(Image.open(tmp_path / "out/confidence/a.png"))
    wanted = 255 * scores.softmax(0)[1 if which == "road" else 10]
    assert confidence.dtype == np.uint8 and np.abs(confidence - wanted.numpy()).max() < 0.51


def test_a_large_picture_in_tiles_gives_the_same_files_as_in_one_piece(streets, tmp_path):
    picture = photo(tmp_path / "a.png", (900, 700))
    for name, more in (("whole", ()), ("tiles", ("--tile", "600"))):
        assert run(streets, picture, "--out", tmp_path / name, "--confidence", "road", *more) == 0
    for name in ("mask/a.png", "confidence/a.png"):
        whole, tiles = (
            np.asarray(Image.open(tmp_path / where / name)) for where in ("whole", "tiles")
        )
        assert (whole != tiles).mean() < 1e-4 and len(np.unique(whole)) > 5


PICTURES = {
    "grey.png": {"mode": "L"},
    "black and white.png": {"mode": "1"},
    "alpha.png": {"mode": "RGBA"},
    "grey alpha.png": {"mode": "LA"},
    "palette.png": {"mode": "P"},
    "clear palette.png": {"mode": "P", "transparency": 3},
    "palette.gif": {"mode": "P"},
    "print.jpg": {"mode": "CMYK"},
    "grey.jpg": {"mode": "L"},
    "photo.webp": {},
    "photo.bmp": {},
    "photo.tif": {},
    "luma.jpg": {"mode": "YCbCr"},
    "float.tif": {"mode": "F"},
    "16.png": {"mode": "I;16"},
    "16.tif": {"mode": "I;16"},
    "32.tif": {"mode": "I"},
    "pixel.png": {"size": (1, 1)},
    "thin.png": {"size": (20, 2000)},
    "wide.png": {"size": (2000, 20)},
    "with space, ümlaut.png": {},
    "no ending": {"format": "PNG"},
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture_gets_a_mask_of_its_size(road, tmp_path, name):
    size = PICTURES[name].get("size", (50, 40))
    mode = PICTURES[name].get("mode")
    if mode == "I;16":
        Image.fromarray((np.arange(2000).reshape(40, 50) * 32).astype(np.uint16)).save(
            tmp_path / name
        )
    else:
        photo(tmp_path / name, **PICTURES[name])
    assert run(road, tmp_path / name, "--out", tmp_path / "out") == 0
    for part in ("mask", "overlay"):
        assert (
            Image.open(tmp_path / "out" / part / f"{name.rpartition('.')[0] or name}.png").size
            == size
        )


@pytest.mark.parametrize(
    "name, values, wanted",
    [
        ("a.png", np.array([0, 257, 32896, 65535], np.uint16), [0, 1, 128, 255]),
        ("a.tif", np.array([0, 257, 32896, 65535], np.uint16), [0, 1, 128, 255]),
        ("dark.png", np.array([0, 257, 514], np.uint16), [0, 1, 2]),
        ("a.tif", np.array([0, 128, 255], np.int32), [0, 128, 255]),
        ("a.tif", np.array([0, 65535], np.int32), [0, 255]),
        ("a.tif", np.array([-1, 0, 0.5, 1], np.float32), [0, 0, 128, 255]),
        ("a.tif", np.array([0, 128.4, 255], np.float32), [0, 128, 255]),
    ],
)
def test_grey_of_more_than_8_bits_is_scaled_not_clipped(tmp_path, name, values, wanted):
    Image.fromarray(values[None]).save(tmp_path / name)
    assert read_picture(tmp_path / name).pixels[0].tolist() == [[v, v, v] for v in wanted]


@pytest.mark.parametrize(
    "name, mode",
    [
        ("a.png", "RGB"),
        ("a.png", "L"),
        ("a.png", "RGBA"),
        ("a.bmp", "RGB"),
        ("a.tif", "CMYK"),
        ("a.png", "P"),
        ("a.png", "1"),
        ("a.png", "LA"),
    ],
)
def test_a_picture_keeps_its_colours_whatever_its_mode(tmp_path, name, mode):
    pixels = np.array([[(255, 0, 0), (0, 0, 255)], [(255, 255, 255), (0, 0, 0)]], np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    picture.save(tmp_path / name)
    assert np.array_equal(read_picture(tmp_path / name).pixels, np.asarray(picture.convert("RGB")))


def test_a_picture_turned_by_its_exif_tag_is_predicted_upright(road, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = photo(tmp_path / "a.jpg", exif=exif)
    assert run(road, picture, "--out", tmp_path / "out") == 0
    assert Image.open(tmp_path / "out/mask/a.png").size == (40, 50)


def test_pictures_of_one_name_never_overwrite_each_other(road, tmp_path):
    for name in (
        "x/a.png",
        "x/a.jpg",
        "y/a.png",
        "x/deep/er/a.png",
        "b.png",
        "x/A.bmp",
        "x/a.jpg.png",
        "b.jpg/c.png",
    ):
        photo(tmp_path / "in" / name)
    out = tmp_path / "out"
    assert run(road, tmp_path / "in", "--out", out) == 0
    assert files(out / "mask") == {
        "x/a.png.png",
        "x/a.jpg.png",
        "x/A.bmp.png",
        "y/a.png",
        "x/deep/er/a.png",
        "b.png.png",
        "x/a.jpg.png.png",
        "b.jpg/c.png",
    }
    shutil.rmtree(out)
    assert (
        run(road, tmp_path / "in/x/deep", tmp_path / "in/y/a.png", tmp_path / "in/y", "--out", out)
        == 0
    )
    assert files(out / "overlay") == {"er/a.png", "a.png"}


@pytest.mark.parametrize("out", ["out", ".", ".."])
def test_results_of_an_earlier_run_are_not_predicted_again_wherever_they_lie(road, tmp_path, out):
    photo(tmp_path / "in/a.png")
    out = tmp_path / "in" / out
    for _ in range(2):
        assert run(road, tmp_path / "in", "--out", out) == 0
        assert files(out / "overlay") == files(out / "mask") == {"a.png"}


def test_no_result_is_written_over_a_picture_that_was_given(road, tmp_path, capsys):
    picture = photo(tmp_path / "mask/a.png")
    before = picture.read_bytes()
    assert run(road, picture, "--out", tmp_path) == 2
    assert "written over" in capsys.readouterr().err and picture.read_bytes() == before


@pytest.mark.parametrize(
    "only, folders",
    [("mask", {"mask"}), ("overlay", {"overlay"}), ("mask,overlay", {"mask", "overlay"})],
)
def test_only_what_is_asked_for_is_written_and_a_second_time_too(
    road, tmp_path, capsys, only, folders
):
    photo(tmp_path / "image/a.png"), photo(tmp_path / "image/b.png")
    assert run(road, tmp_path / "image", "--out", tmp_path / "whole", "--workers", "1") == 0
    for _ in range(2):
        assert (
            run(
                road,
                tmp_path / "image",
                "--out",
                tmp_path / "out",
                "--only",
                only,
                "--workers",
                "3",
            )
            == 0
        )
    assert {folder.name for folder in (tmp_path / "out").iterdir()} == folders
    for file in (tmp_path / "out").rglob("*.png"):
        assert (
            file.read_bytes()
            == (tmp_path / "whole" / file.relative_to(tmp_path / "out")).read_bytes()
        )
    assert len(list((tmp_path / "out").rglob("*.png"))) == 2 * len(folders)


def test_scores_need_no_pictures_and_nothing_to_do_is_refused(road, tmp_path, scenes, capsys):
    assert (
        run(
            road,
            "--data",
            scenes,
            "--out",
            tmp_path / "out",
            "--only",
            "none",
            "--scores",
            tmp_path / "scores.csv",
        )
        == 0
    )
    assert (tmp_path / "scores.csv").is_file() and not list(tmp_path.rglob("*.png"))
    with pytest.raises(SystemExit):
        run(road, photo(tmp_path / "a.png"), "--only", "none")
    assert "nothing to write" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, options",
    [
        ("mask/a.png", []),
        ("overlay/a.png", []),
        ("mask/a.png", ["--only", "mask"]),
        ("confidence/a.png", ["--confidence"]),
        ("confidence/a.png", ["--only", "none", "--confidence"]),
    ],
)
def test_no_result_is_written_over_a_file_of_somebodys_own(road, tmp_path, capsys, name, options):
    """Whatever else is in --out: the folders of earlier results, and files of other names."""
    photo(tmp_path / "image/a.png")
    out = tmp_path / "out"
    assert run(road, tmp_path / "image", "--out", out, "--confidence") == 0
    photo(out / "mask/mine.png")
    assert run(road, tmp_path / "image", "--out", out, *options) == 0
    mine = out / name
    for content in (photo(tmp_path / "mine.png").read_bytes(), b"no picture"):
        mine.write_bytes(content)
        before = {file: file.read_bytes() for file in out.rglob("*.png")}
        assert run(road, tmp_path / "image", "--out", out, *options) == 2
        assert (
            f"{mine}: is no result of predict.py, and would be written over"
            in capsys.readouterr().err
        )
        assert {file: file.read_bytes() for file in out.rglob("*.png")} == before
    mine.unlink()
    assert run(road, tmp_path / "image", "--out", out, *options) == 0


def test_a_result_is_written_whole_or_not_at_all(road, tmp_path, monkeypatch, capsys):
    photo(tmp_path / "image/a.png")
    assert run(road, tmp_path / "image", "--out", tmp_path / "out") == 0
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    save = Image.Image.save

    def full(picture, path, *more, **options):
        save(picture, path, *more, **options)
        with open(path, "r+b") as file:
            file.truncate(20)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert run(road, tmp_path / "image", "--out", tmp_path / "out") == 2
    assert (
        "cannot be written (No space left on device); make room, or choose another place"
        in capsys.readouterr().err
    )
    assert {
        file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()
    } == before


def test_scores_of_images_that_the_network_was_trained_on_are_called_too_good(tmp_path, capsys):
    for i in range(4):
        photo(tmp_path / f"d/images/{i}.png")
        (tmp_path / "d/masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(40, 50, dtype=np.uint8)).save(tmp_path / f"d/masks/{i}.png")
    (tmp_path / "d/val.txt").write_text("0\n1\n")
    path = checkpoint(tmp_path / "best.pt", ["class 0", "class 1"])
    save_tensors(
        {**read_tensors(path), "images": [["images/1.png", "images/2.png"], ["images/0.png"]]}, path
    )
    assert run(path, "--data", tmp_path / "d", "--out", tmp_path / "out") == 0
    assert (
        "1 of these 2 images have the names of images that the network was trained on, as 1.png"
        in capsys.readouterr().err
    )
    assert run(path, "--data", tmp_path / "d", "--out", tmp_path / "out", "--split", "train") == 0
    assert not capsys.readouterr().err


def test_held_out_images_that_share_no_more_than_a_number_with_training_images_are_not_called_known(
    tmp_path, capsys
):
    for part, i in (("train", 1), ("train", 2), ("val", 1)):
        photo(tmp_path / f"d/{part}/images/{i}.png")
        (tmp_path / f"d/{part}/masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(40, 50, dtype=np.uint8)).save(tmp_path / f"d/{part}/masks/{i}.png")
    path = checkpoint(tmp_path / "best.pt", ["class 0", "class 1"])
    save_tensors(
        {
            **read_tensors(path),
            "images": [["train/images/1.png", "train/images/2.png"], ["val/images/1.png"]],
        },
        path,
    )
    assert run(path, "--data", tmp_path / "d", "--out", tmp_path / "out") == 0
    assert not capsys.readouterr().err


def test_the_ground_truth_and_hidden_files_of_a_folder_are_not_pictures_to_predict(
    road, scenes, tmp_path
):
    assert run(road, scenes / "training", "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out/mask") == {
        f"image_2/{f.name}" for f in (scenes / "training/image_2").iterdir()
    }
    for name in (".thumbnails/a.png", ".b.png", "c.png"):
        photo(tmp_path / "in" / name)
    assert run(road, tmp_path / "in", "--out", tmp_path / "out2") == 0
    assert files(tmp_path / "out2/mask") == {"c.png"}


@pytest.mark.parametrize(
    "images, masks",
    [
        ("images", "masks"),
        ("train/images", "train/masks"),
        ("leftImg8bit/val", "gtFine/val"),
        ("JPEGImages", "SegmentationClass"),
    ],
)
def test_the_masks_of_a_data_set_are_not_pictures_to_predict(road, tmp_path, images, masks):
    photo(tmp_path / "set" / images / "x/a.png")
    photo(tmp_path / "set" / masks / "x/a.png")
    photo(tmp_path / "masks only/masks/b.png")
    assert run(road, tmp_path / "set", tmp_path / "masks only", "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out/mask") == {f"{images}/x/a.png", "masks/b.png"}


def test_broken_pictures_are_named_at_the_end_and_all_others_are_done(
    road, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("support.inference.scale.MOST", 50 * 40)
    for i in range(12):
        photo(tmp_path / "in" / f"{i:02}.png", (50, 41) if i == 10 else (50, 40))
    (tmp_path / "in/03.png").write_bytes(b"")
    (tmp_path / "in/07.png").write_bytes((tmp_path / "in/08.png").read_bytes()[:200])
    (tmp_path / "in/09.png").write_text("not a picture")
    assert run(road, tmp_path / "in", "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "8 of 12 pictures done" in said.out
    broken = ("03.png", "07.png", "09.png", "10.png: would be computed at 41x50")
    assert all(start in line for start, line in zip(broken, said.err.splitlines(), strict=True))
    assert files(tmp_path / "out/mask") == {
        f"{i:02}.png" for i in range(12) if i not in (3, 7, 9, 10)
    }


def test_a_kitti_folder_as_input_means_its_test_images(road, scenes, tmp_path):
    assert run(road, scenes, "--out", tmp_path) == 0
    assert files(tmp_path / "mask") == {
        f"testing/image_2/{f.name}" for f in (scenes / "testing/image_2").iterdir()
    }


def test_the_submission_has_the_names_and_sizes_that_the_server_takes(road, scenes, tmp_path):
    assert run(road, "--kitti", scenes, "--out", tmp_path) == 0
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert sorted(archive.namelist()) == [
            f"{c}_road_00000{i}.png" for c in ("um", "umm", "uu") for i in (0, 1)
        ]
        for name in archive.namelist():
            with archive.open(name) as file, Image.open(file) as picture:
                assert picture.size == (400, 800) and picture.mode == "L"
                assert np.asarray(picture).max() > 0


def test_a_lane_network_submits_the_lanes_of_um_alone(scenes, tmp_path):
    lane = checkpoint(tmp_path / "best.pt", ["not lane", "lane"])
    assert run(lane, "--kitti", scenes, "--out", tmp_path) == 0
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        assert archive.namelist() == ["um_lane_000000.png", "um_lane_000001.png"]


def test_a_test_image_without_calibration_is_named_before_anything_is_computed(
    road, scenes, tmp_path, capsys
):
    shutil.copytree(scenes, tmp_path / "k")
    (tmp_path / "k/testing/calib/uu_000001.txt").unlink()
    assert run(road, "--kitti", tmp_path / "k", "--out", tmp_path / "out") == 2
    assert "uu_000001.txt" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_broken_test_image_leaves_no_zip_that_looks_whole(road, scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "k")
    assert (
        run(road, "--kitti", tmp_path / "k", "--out", tmp_path / "out") == 0
    )  # its zip must not pass for the next one's
    (tmp_path / "k/testing/image_2/uu_000001.png").write_bytes(b"")
    assert run(road, "--kitti", tmp_path / "k", "--out", tmp_path / "out") == 1
    assert (
        "uu_000001.png" in capsys.readouterr().err
        and not (tmp_path / "out/submission.zip").exists()
    )


def test_maps_of_the_training_split_can_be_scored_by_metrics_in_both_spaces(
    road, scenes, tmp_path, capsys
):
    import metrics

    assert run(road, "--kitti", scenes, "--split", "training", "--out", tmp_path) == 0
    tables = []
    for arguments in (["confidence"], ["confidence", "--space", "bev"], ["bev"]):
        capsys.readouterr()
        assert metrics.main([str(tmp_path / arguments[0]), str(scenes), *arguments[1:]]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[1] == tables[2] != tables[0] and "URBAN" in tables[0]
    assert metrics.main([str(tmp_path), str(scenes)]) == 2
    assert f"holds no confidence maps; {tmp_path / 'bev'} does" in capsys.readouterr().err


def test_scores_of_the_held_out_images_are_those_that_training_printed(scenes, tmp_path, capsys):
    train.main(
        [
            "--data",
            str(scenes),
            "--out",
            str(tmp_path / "run"),
            "--epochs",
            "1",
            "--width",
            "0.03125",
            "--fc-channels",
            "8",
            "--crop",
            "none",
            "--weights",
            "none",
            "--device",
            "cpu",
            "--amp",
            "off",
            "--split-seed",
            "3",
        ]
    )
    trained = capsys.readouterr().out
    assert (
        run(tmp_path / "run/best.pt", "--data", scenes, "--split", "val", "--out", tmp_path / "out")
        == 0
    )
    said = capsys.readouterr().out
    measures = [
        line
        for line in said.splitlines()
        if any(word in line for word in ("URBAN", "_road", "IoU", "accuracy"))
    ]
    assert len(measures) == 6 + 2 * 4  # in training's table other columns follow
    assert all(
        any(line.startswith(measure) for line in trained.splitlines()) for measure in measures
    )
    assert {name.rsplit("_", 1)[0] for name in files(tmp_path / "out/mask")} == {
        "um_road",
        "umm_road",
        "uu_road",
    }


def test_own_masks_are_scored_and_other_classes_refused(streets, tmp_path, capsys):
    for i in range(4):
        photo(tmp_path / "d/images" / f"{i}.jpg")
        (tmp_path / "d/masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 50), i, np.uint8)).save(tmp_path / "d/masks" / f"{i}.png")
    (tmp_path / "d/classes.txt").write_text("\n".join([f"class {i}" for i in range(10)] + ["road"]))
    assert (
        run(streets, "--data", tmp_path / "d", "--split", "train", "--out", tmp_path / "out") == 0
    )
    assert (
        "mean IoU" in (said := capsys.readouterr().out)
        and "IoU road" in said
        and "URBAN" not in said
    )
    (tmp_path / "d/classes.txt").write_text("\n".join("abcd"))
    assert run(streets, "--data", tmp_path / "d", "--out", tmp_path / "out") == 2
    assert "a, b, c, d" in (error := capsys.readouterr().err) and "class 9, road" in error


def test_test_images_are_scored_when_asked_for_and_never_trained_or_held_out(
    streets, tmp_path, capsys
):
    for i in range(6):
        part = tmp_path / "d" / ("test" if i > 3 else "train")
        photo(part / "images" / f"{i}.jpg")
        (part / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.full((40, 50), i, np.uint8)).save(part / "masks" / f"{i}.png")
    (tmp_path / "d/classes.txt").write_text("\n".join([f"class {i}" for i in range(10)] + ["road"]))
    data = find(tmp_path / "d")
    assert sorted(s.image.stem for s in data.train + data.val) == ["0", "1", "2", "3"]
    assert run(streets, "--data", tmp_path / "d", "--split", "test", "--out", tmp_path / "out") == 0
    assert "mean IoU" in capsys.readouterr().out and files(tmp_path / "out/mask") == {
        "4.png",
        "5.png",
    }
    shutil.rmtree(tmp_path / "d/test/masks")  # pictures alone may lie there
    assert run(streets, "--data", tmp_path / "d", "--split", "test", "--out", tmp_path / "out") == 2
    assert "has no test images, for --split test" in capsys.readouterr().err


def broken_checkpoint(path, how):
    saved = read_tensors(path.parent / "good.pt")
    if how == "weights":
        del saved["model"]["vgg.fc6.weight"]
    elif how == "config":
        saved["config"]["colour"] = 3
    elif how == "other":
        saved = saved["model"]
    save_tensors(saved, path)


def test_a_picture_or_folder_in_the_place_of_the_checkpoint_is_said(tmp_path, capsys):
    for wrong, said in (
        (photo(tmp_path / "a.png"), "a.png: is a picture; the checkpoint comes first"),
        (tmp_path, f"did you mean {tmp_path / 'best.pt'}"),
    ):
        assert run(wrong, photo(tmp_path / "b.png")) == 2
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


@pytest.mark.parametrize("how", ["weights", "config", "other", "absent", "cut"])
def test_a_checkpoint_that_cannot_be_used_is_named(road, tmp_path, capsys, how):
    shutil.copy(road, tmp_path / "good.pt")
    if how == "cut":
        (tmp_path / "bad.pt").write_bytes(road.read_bytes()[:1000])
    elif how != "absent":
        broken_checkpoint(tmp_path / "bad.pt", how)
    assert run(tmp_path / "bad.pt", photo(tmp_path / "a.png")) == 2
    assert (error := capsys.readouterr().err).count("\n") == 1 and "bad.pt" in error


@pytest.mark.parametrize(
    "arguments, said",
    [
        ([], "say what to predict"),
        (["{pictures}", "--data", "x"], "say what to predict"),
        (["none.png"], "no such file"),
        (["{empty}"], "holds no pictures"),
        (["{pictures}", "--tile", "543"], "at least 544"),
        (["{pictures}", "--split", "val"], "goes with --data"),
        (["--data", "{empty}"], "no data set"),
        (["--data", "{empty}", "--split", "testing"], "choose train or val"),
        (["--kitti", "{empty}"], "no such folder"),
        (["{pictures}", "--device", "tpu"], "no such device"),
        (["{pictures}", "--out", "{file}"], "cannot be written"),
        (["{pictures}", "--scale", "0"], "--scale"),
        (["{pictures}", "--scale", "-1"], "--scale"),
        (["{pictures}", "--scale", "big"], "--scale"),
        (["{pictures}", "--size", "100"], "--size"),
        (["{pictures}", "--size", "0x9"], "--size"),
        (["{pictures}", "--size", "999999x999999"], "at most 268,435,456 pixels are possible"),
        (["{pictures}", "--size", "9x9", "--scale", "2"], "use --scale or --size, not both"),
        (["{pictures}", "--threshold", "1.5"], "--threshold"),
        (["{pictures}", "--threshold", "x"], "--threshold"),
        (["{pictures}", "--scores", "s.csv"], "--scores: goes with --data"),
        (["--data", "{pictures}", "--scores", "{empty}/none/s.csv"], "there is no folder"),
        (["{pictures}", "--conf", "road"], "not an option"),
        (["{pictures}", "--confidence", "sky"], "the classes are not road, road"),
        (["{pictures}", "--colour"], "not an option"),
    ],
)
def test_a_command_that_cannot_be_done_is_one_line_and_status_2(
    road, tmp_path, capsys, arguments, said
):
    photo(tmp_path / "in/a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    names = {"pictures": tmp_path / "in", "empty": tmp_path / "empty", "file": tmp_path / "file"}
    try:
        status = predict.main([str(road), *(a.format(**names) for a in arguments)])
    except SystemExit as exit:
        status = exit.code
    error = capsys.readouterr().err
    assert (
        status == 2
        and error.count("\n") == 1
        and error.startswith("predict.py: error: ")
        and said in error
    )


def test_real_test_images_of_four_sizes_get_masks_of_their_sizes(road, kitti_sample, tmp_path):
    assert run(road, kitti_sample, "--out", tmp_path) == 0
    pictures = sorted((kitti_sample / "testing/image_2").iterdir())
    assert len(pictures) == 7
    sizes = [Image.open(tmp_path / "mask/testing/image_2" / p.name).size for p in pictures]
    assert sizes == [Image.open(p).size for p in pictures] and len(set(sizes)) == 4


# ---- what people ask for ----


def test_options_may_stand_anywhere(road, tmp_path):
    picture = photo(tmp_path / "in/a.png")
    out = ["--out", tmp_path / "out"]
    for words in (
        [road, "--confidence", *out, picture],
        ["--confidence", road, picture, *out],
        [*out, road, picture, "--confidence"],
        [road, "--tile", "600", "--confidence", picture, *out],
        [road, picture, *out, "--confidence=road"],
    ):
        assert run(*words) == 0
        assert files(tmp_path / "out") == {"overlay/a.png", "mask/a.png", "confidence/a.png"}
        shutil.rmtree(tmp_path / "out")


def test_the_confidence_of_any_class_can_be_written_or_of_all(tmp_path):
    path = checkpoint(tmp_path / "best.pt", ["cat", "dog/wolf", "Cat", "fish"])
    picture = photo(tmp_path / "a.png")
    wanted = 255 * whole_scores(path, picture).softmax(0).numpy()
    assert run(path, picture, "--out", tmp_path / "one", "--confidence", "dog/wolf") == 0
    assert run(path, picture, "--out", tmp_path / "all", "--confidence") == 0
    assert files(tmp_path / "one/confidence") == {"a.png"}
    assert files(tmp_path / "all/confidence") == {
        "0 cat/a.png",
        "dog_wolf/a.png",
        "2 Cat/a.png",
        "fish/a.png",
    }
    for folder, c in (
        ("one/confidence", 1),
        ("all/confidence/0 cat", 0),
        ("all/confidence/dog_wolf", 1),
        ("all/confidence/2 Cat", 2),
        ("all/confidence/fish", 3),
    ):
        assert np.abs(np.asarray(Image.open(tmp_path / folder / "a.png")) - wanted[c]).max() < 0.51


def test_the_submission_is_of_the_road_whatever_confidence_is_asked_for(scenes, tmp_path, capsys):
    path = checkpoint(tmp_path / "best.pt", ["sky", "road", "car"])
    zips = []
    for more in ([], ["--confidence"], ["--confidence", "road"]):
        assert run(path, "--kitti", scenes, "--out", tmp_path / "out", *more) == 0
        with zipfile.ZipFile(tmp_path / "out/submission.zip") as archive:
            zips.append([archive.read(name) for name in archive.namelist()])
    assert zips[0] == zips[1] == zips[2]
    assert run(path, "--kitti", scenes, "--out", tmp_path / "out", "--confidence", "sky") == 2
    assert (
        "--confidence sky: --kitti writes the confidence of road; leave it out"
        in capsys.readouterr().err
    )


def test_a_word_that_is_a_class_and_a_file_has_to_be_said_more_exactly(
    road, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "road/b.png")
    assert run(road, "--confidence", "road", photo(tmp_path / "a.png"), "--out", "out") == 2
    assert (
        "is the name of a class and of a file; write --confidence=road or --confidence ./road"
        in capsys.readouterr().err
    )
    assert run(road, "--confidence=road", "a.png", "--out", "out") == 0 and files(
        tmp_path / "out/mask"
    ) == {"a.png"}
    assert run(road, "--confidence", "./road", "--out", "out2") == 0 and files(
        tmp_path / "out2/mask"
    ) == {"b.png"}


def test_a_class_that_does_not_exist_is_said_with_those_that_do(streets, tmp_path, capsys):
    assert (
        run(streets, photo(tmp_path / "a.png"), "--confidence", "bus", "--out", tmp_path / "out")
        == 2
    )
    error = capsys.readouterr().err
    assert (
        "--confidence bus: there is no such class" in error
        and "class 9, road" in error
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize("threshold", [0, 0.25, 0.502, 0.8, 1])
def test_a_threshold_makes_road_what_is_at_least_as_probable(road, tmp_path, threshold):
    picture = photo(tmp_path / "a.png")
    assert (
        run(road, picture, "--out", tmp_path / "out", "--confidence", "--threshold", threshold) == 0
    )
    mask, confidence = (
        np.asarray(Image.open(tmp_path / "out" / part / "a.png")) for part in ("mask", "confidence")
    )
    assert np.array_equal(mask, confidence >= round(255 * threshold))


def test_the_threshold_that_training_prints_gives_the_precision_and_recall_beside_it(
    road, scenes, tmp_path, capsys
):
    assert run(road, "--data", scenes, "--split", "train", "--out", tmp_path / "a") == 0
    line = next(
        line for line in capsys.readouterr().out.splitlines() if line.startswith("URBAN     image")
    ).split()
    precision, recall, threshold = float(line[5]), float(line[6]), line[-1]
    assert (
        run(
            road,
            "--data",
            scenes,
            "--split",
            "train",
            "--out",
            tmp_path / "b",
            "--threshold",
            threshold,
        )
        == 0
    )
    data, hits, positives, called = find(scenes), 0, 0, 0
    for sample in data.train:
        label, mask = (
            data.read_label(sample.label),
            read_mask(tmp_path / "b/mask" / f"{sample.label.stem}.png"),
        )
        hits, positives = hits + ((label == 1) & (mask == 1)).sum(), positives + (label == 1).sum()
        called += ((mask == 1) & (label != 255)).sum()
    assert 100 * hits / positives == pytest.approx(
        recall, abs=0.006
    ) and 100 * hits / called == pytest.approx(precision, abs=0.006)


def test_a_threshold_for_many_classes_is_refused(streets, tmp_path, capsys):
    assert run(streets, photo(tmp_path / "a.png"), "--threshold", "0.4") == 2
    assert "--threshold: is for networks that look for one class" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option, value", [("--scale", "0.5"), ("--scale", "2"), ("--size", "33x47")]
)
def test_results_keep_the_size_of_the_picture_at_every_scale(road, tmp_path, option, value):
    picture = photo(tmp_path / "a.png", (101, 75))
    assert run(road, picture, "--out", tmp_path / "out", "--confidence", option, value) == 0
    for part in ("overlay", "mask", "confidence"):
        assert Image.open(tmp_path / "out" / part / "a.png").size == (101, 75)
    assert run(road, picture, "--out", tmp_path / "plain", "--confidence") == 0
    there, plain = (
        np.asarray(Image.open(tmp_path / name / "confidence/a.png")).astype(int)
        for name in ("out", "plain")
    )
    assert np.abs(there - plain).max() > 2  # it was computed at another size


def test_scores_of_a_data_set_can_be_taken_at_another_scale(road, scenes, tmp_path, capsys):
    tables = []
    for more in ([], ["--scale", "1"], ["--scale", "0.5"]):
        assert run(road, "--data", scenes, "--split", "val", "--out", tmp_path / "out", *more) == 0
        tables.append(capsys.readouterr().out.partition("val")[2])
    assert tables[0] == tables[1] != tables[2]


def test_names_of_results_stay_short_unless_they_collide_and_the_report_says_where_they_went(
    road, tmp_path, capsys
):
    for name in ("x/deep/1.png", "x/deep/2.png", "y/3.png", "y/er/4.png"):
        photo(tmp_path / name)
    assert run(road, tmp_path / "x/deep", tmp_path / "y", "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out/mask") == {"1.png", "2.png", "3.png", "er/4.png"}
    said = capsys.readouterr().out
    assert (
        f"{tmp_path}/x/deep: 2 pictures, {tmp_path}/out/mask/1.png" in said
        and f"{tmp_path}/y: 2 pictures" in said
    )
    photo(tmp_path / "y/1.jpg")
    photo(tmp_path / "y/1.png")
    assert run(road, tmp_path / "x/deep", tmp_path / "y", "--out", tmp_path / "out2") == 0
    assert files(tmp_path / "out2/mask") == {
        "x/deep/1.png",
        "x/deep/2.png",
        "y/3.png",
        "y/er/4.png",
        "y/1.jpg.png",
        "y/1.png.png",
    }
    capsys.readouterr()
    assert run(road, tmp_path / "x/deep", "--out", tmp_path / "out3") == 0
    assert str(tmp_path / "x") not in capsys.readouterr().out  # one folder: nothing to tell apart


def test_a_large_picture_tells_how_far_it_is_part_by_part(road, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict.Progress, "late", lambda self: True)
    assert (
        run(road, photo(tmp_path / "a.png", (900, 700)), "--out", tmp_path / "out", "--tile", "600")
        == 0
    )
    parts = [line for line in capsys.readouterr().out.splitlines() if "part" in line]
    total = int(parts[0].split(" of ")[1].split()[0])
    assert total > 2 and [int(line.split("part ")[1].split()[0]) for line in parts] == list(
        range(1, total)
    )
    assert all("left" in line for line in parts)


@pytest.mark.parametrize("name", ["a.gif", "a.tif"])
def test_frames_that_are_left_out_are_said(road, tmp_path, capsys, name):
    frames = [Image.new("RGB", (20, 16), (i, 90, 90)) for i in (0, 100, 200)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    assert run(road, tmp_path / name, "--out", tmp_path / "out") == 0
    error = capsys.readouterr().err
    assert (
        f"{name}: has 3 frames or pages; the first is predicted" in error and error.count("\n") == 1
    )


def test_videos_and_pictures_of_telephones_get_a_sentence_that_says_what_to_do(
    road, tmp_path, capsys
):
    for name in ("in/a.mp4", "in/b.HEIC", "only/a.MOV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(99))
    assert run(road, tmp_path / "in/a.mp4", "--out", tmp_path / "out") == 2
    assert (
        "a.mp4: is a video; make pictures of it first, such as with: ffmpeg -i"
        in capsys.readouterr().err
    )
    assert run(road, tmp_path / "only", "--out", tmp_path / "out") == 2
    assert (
        "holds no pictures" in (error := capsys.readouterr().err)
        and "but 1 .mov; save those" in error
    )
    photo(tmp_path / "in/c.png")
    assert run(road, tmp_path / "in", "--out", tmp_path / "out") == 0
    assert "not predicted: 1 .heic, 1 .mp4" in capsys.readouterr().err and files(
        tmp_path / "out/mask"
    ) == {"c.png"}


def test_a_picture_of_a_size_that_the_network_has_not_learnt_is_said(tmp_path, capsys):
    path = checkpoint(tmp_path / "best.pt", ["not road", "road"])
    saved = {
        **read_tensors(path),
        "sizes": {"smallest": (40, 50), "median": (40, 50), "largest": (45, 60)},
    }
    save_tensors(saved, path)
    assert run(path, photo(tmp_path / "a.png", (200, 160)), "--out", tmp_path / "out") == 0
    assert "--scale 0.25 computes at the size of the training" in capsys.readouterr().err
    assert run(path, tmp_path / "a.png", "--out", tmp_path / "out", "--scale", "0.25") == 0
    assert not capsys.readouterr().err


def test_the_scores_of_each_picture_are_written_the_worst_first(streets, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(5):
        photo(tmp_path / "d/images" / f"{i}.png")
        mask = rng.integers(0, 11, (40, 50)).astype(np.uint8)
        mask[:, : 9 * i] = 255
        (tmp_path / "d/masks").mkdir(exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "d/masks" / f"{i}.png")
    (tmp_path / "d/classes.txt").write_text("\n".join([f"class {i}" for i in range(10)] + ["road"]))
    assert (
        run(
            streets,
            "--data",
            tmp_path / "d",
            "--split",
            "train",
            "--out",
            tmp_path / "out",
            "--scores",
            tmp_path / "s.csv",
        )
        == 0
    )
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 and [float(row["iou"]) for row in rows] == sorted(
        float(row["iou"]) for row in rows
    )
    for row in rows:
        name = row["picture"].rpartition("/")[2]
        truth, seen = (
            read_mask(tmp_path / "d/masks" / name),
            read_mask(tmp_path / "out/mask" / name),
        )
        valid = truth != 255
        for c, label in ((0, "class 0"), (10, "road")):
            assert int(row[f"pixels_{label}"]) == (truth == c).sum()
            both, either = (
                ((truth == c) & (seen == c)).sum(),
                (((truth == c) | (seen == c)) & valid).sum(),
            )
            assert float(row[f"iou_{label}"]) == pytest.approx(both / either)


def test_pictures_of_one_name_in_nested_folders_of_a_data_set_get_a_mask_each(streets, tmp_path):
    for name in ("x/1", "y/1", "y/2"):
        photo(tmp_path / f"d/images/{name}.jpg")
        (tmp_path / f"d/masks/{name}.png").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / f"d/masks/{name}.png")
    (tmp_path / "d/classes.txt").write_text("\n".join([f"class {i}" for i in range(10)] + ["road"]))
    (tmp_path / "d/val.txt").write_text("x/1\ny/1\n")
    assert run(streets, "--data", tmp_path / "d", "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out/mask") == {"images/x/1.png", "images/y/1.png"}
