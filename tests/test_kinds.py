"""Every kind of data set that people have goes from its folder to pictures by the commands of the
README.
"""

import numpy as np
import pytest
from conftest import ROOT, picture
from PIL import Image

import data
import predict
import train
from support.checkpoint import read_tensors
from support.datasets.images import read_mask
from support.labels import IGNORE

TINY = [
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
NAMES, COLOURS = ["road", "sky", "car"], np.array([(128, 64, 128), (70, 130, 180), (0, 0, 142)])


def scene(i, size=(24, 40)):
    """An image, and its ids in three bands."""
    ids = np.repeat(np.arange(size[0]) * 3 // size[0], size[1]).reshape(size)
    return (60 * ids[..., None] + np.random.default_rng(i).integers(0, 60, (*size, 3))).astype(
        np.uint8
    ), ids.astype(np.uint8)


def named(root, colours=False):
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{name} {' '.join(map(str, colour))}" if colours else name
        for name, colour in zip(NAMES, COLOURS.tolist())
    ]
    (root / "classes.txt").write_text("\n".join(lines) + "\n")


def colour_masks(root):
    """Nested, and by colour."""
    named(root, colours=True)
    for i in range(6):
        image, ids = scene(i)
        picture(root / f"images/{'ab'[i % 2]}/{i}.jpg", image)
        picture(root / f"masks/{'ab'[i % 2]}/{i}.png", COLOURS[ids])
    return []


def cityscapes(root):
    for i, part in enumerate(["train"] * 4 + ["val"] * 2):
        image, ids = scene(i)
        picture(root / f"leftImg8bit/{part}/town{i % 2}/town{i % 2}_{i}_leftImg8bit.png", image)
        picture(
            root / f"gtFine/{part}/town{i % 2}/town{i % 2}_{i}_gtFine_labelIds.png",
            np.array([7, 23, 26])[ids],
        )
    return []


def suffixes(root):
    """Nested, with names of their own, in parts."""
    named(root)
    for i, part in enumerate(["train"] * 4 + ["val"] * 2):
        image, ids = scene(i)
        picture(root / f"photos/{part}/day{i % 2}/{i}_cam.jpg", image)
        picture(root / f"labels/{part}/day{i % 2}/{i}_ids.png", ids)
    return ["--images", "photos/{split}/**/*_cam.jpg", "--masks", "labels/{split}/**/*_ids.png"]


def listed(root):
    named(root)
    for i in range(6):
        image, ids = scene(i)
        picture(root / f"images/{i}.png", image)
        picture(root / f"masks/{i}.png", ids)
    (root / "train.txt").write_text("0\n1\n2\n3\n")
    (root / "val.txt").write_text("images/4.png\nimages/5.png\n")
    return []


def telephone(root):
    """Held upright: stored lying, with a tag. Half of the masks are drawn upright, half as the
    photo is stored.
    """
    named(root)
    for i in range(6):
        image, ids = scene(i, (40, 24))
        (root / "images").mkdir(exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(np.rot90(image).copy()).save(root / f"images/{i}.jpg", exif=exif)
        picture(root / f"masks/{i}.png", ids if i % 2 else np.rot90(ids))
    return []


@pytest.mark.parametrize("make", [colour_masks, cityscapes, suffixes, listed, telephone])
def test_every_kind_of_data_set_goes_from_its_folder_to_pictures(tmp_path, capsys, make):
    root, run = tmp_path / "set", tmp_path / "run"
    options = make(root)
    assert data.main([str(root), *options, "--show", str(tmp_path / "sheet.png")]) == 0
    checked, wrong = capsys.readouterr()
    assert Image.open(tmp_path / "sheet.png").width > 900 and not wrong
    for name in NAMES:
        (line,) = [line for line in checked.splitlines() if line.split()[1:2] == [name]]
        assert (
            32 < float(line.split()[2]) < 36 and line.split()[4] == "6"
        )  # a third of the pixels, in all six images
    found = data.find(
        root, images=(options or [0, "auto"])[1], masks=(options or [0, 0, 0, "auto"])[3]
    )
    assert (
        len(found.train + found.val) == 6 and len({s.image for s in found.train + found.val}) == 6
    )
    for sample in found.train + found.val:
        assert set(np.unique(found.read_label(sample.label))) <= {
            *range(len(found.classes)),
            IGNORE,
        }

    assert train.main(["--data", str(root), *options, "--out", str(run), *TINY]) == 0
    assert train.main(["--resume", "--out", str(run)]) == 0
    assert (
        predict.main(
            [
                str(run / "best.pt"),
                "--data",
                str(root),
                "--out",
                str(tmp_path / "scored"),
                "--device",
                "cpu",
                "--amp",
                "off",
                "--scores",
                str(tmp_path / "scores.csv"),
            ]
        )
        == 0
    )
    assert (
        "mean IoU" in capsys.readouterr().out
        and (tmp_path / "scores.csv").read_text().count("\n") == len(found.val) + 1
    )
    photo = found.val[0].image
    assert (
        predict.main(
            [str(run / "best.pt"), str(photo), "--out", str(tmp_path / "seen"), "--device", "cpu"]
        )
        == 0
    )
    mask = read_mask(tmp_path / "seen/mask" / f"{photo.stem}.png")
    assert mask.shape == ((40, 24) if make is telephone else (24, 40)) and mask.max() < len(
        found.classes
    )
    assert read_tensors(run / "best.pt")["sizes"]["largest"] == mask.shape


def snippet(i):
    return (
        (ROOT / "docs/data.md")
        .read_text(encoding="utf-8")
        .split("```python\n")[1 + i]
        .split("```")[0]
    )


def test_the_lines_that_turn_photos_upright_make_a_data_set_of_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, orientation in enumerate((1, 3, 6, 8)):
        image, ids = scene(i)
        exif = Image.Exif()
        exif[0x0112] = orientation
        (tmp_path / "streets/images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.rot90(image, {3: 2, 6: 1, 8: 3}.get(orientation, 0)).copy()).save(
            f"streets/images/{i}.jpg", exif=exif
        )
        picture(tmp_path / f"streets/masks/{i}.png", ids)
    assert data.main(["streets"]) == 2
    exec(snippet(0), {})
    assert data.main(["streets"]) == 0
    for i in range(4):
        wanted, _ = scene(i)
        assert (
            np.abs(np.asarray(Image.open(f"streets/images/{i}.jpg")).astype(float) - wanted).mean()
            < 20
        )


def test_the_lines_that_shrink_a_data_set_keep_its_ids_its_colours_and_which_way_up_it_is(
    tmp_path, monkeypatch
):
    code = snippet(1)
    monkeypatch.chdir(tmp_path)
    image, ids = scene(0, (900, 1500))
    picture(tmp_path / "streets/images/a/1.jpg", image)
    picture(tmp_path / "streets/masks/a/1.png", COLOURS[ids])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(tmp_path / "streets/images/2.jpg", exif=exif)
    picture(tmp_path / "streets/masks/2.png", COLOURS[ids])
    named(tmp_path / "small", colours=True)
    exec(code, {})
    found = data.find(tmp_path / "small")
    assert len(found.train + found.val) == 2
    for sample in found.train + found.val:
        assert Image.open(sample.image).size == Image.open(sample.label).size == (1200, 720)
        counts = np.bincount(found.read_label(sample.label).ravel(), minlength=256)
        assert counts[IGNORE] == 0 and (counts[:3] == 1200 * 240).all()
    assert Image.open(tmp_path / "small/images/2.jpg").getexif()[0x0112] == 6
