"""The commands of the README work for every kind of data set, from its folder to predictions."""

import numpy as np
import pytest
from conftest import ROOT, picture, turned
from PIL import Image

from data import DataOptions, find
from support.datasets.images import read_mask
from support.labels import IGNORE

TINY = "--epochs 1 --width 0.03125 --fc-channels 8 --weights none --workers 0".split()
CPU = "--device cpu --amp off".split()
NAMES, COLOURS = ["road", "sky", "car"], np.array([(128, 64, 128), (70, 130, 180), (0, 0, 142)])
PARTS = ["train"] * 4 + ["val"] * 2
PATTERNS = {"images": "photos/{split}/**/*_cam.jpg", "masks": "labels/{split}/**/*_ids.png"}


def scene(i, size=(24, 40)):
    """An image and its label: three bands of ids."""
    ids = np.repeat(np.arange(size[0]) * 3 // size[0], size[1]).reshape(size).astype(np.uint8)
    noise = np.random.default_rng(i).integers(0, 60, (*size, 3))
    return (60 * ids[..., None] + noise).astype(np.uint8), ids


def named(root, colours=False):
    root.mkdir(parents=True, exist_ok=True)
    lines = [
        f"{name} {' '.join(map(str, colour))}" if colours else name
        for name, colour in zip(NAMES, COLOURS.tolist(), strict=True)
    ]
    (root / "classes.txt").write_text("\n".join(lines) + "\n")


def colour_masks(root, i, part):
    """Nested folders, colour masks."""
    named(root, colours=True)
    image, ids = scene(i)
    picture(root / f"images/{'ab'[i % 2]}/{i}.jpg", image)
    picture(root / f"masks/{'ab'[i % 2]}/{i}.png", COLOURS[ids])


def cityscapes(root, i, part):
    image, ids = scene(i)
    stem = f"{part}/town{i % 2}/town{i % 2}_{i}"
    picture(root / f"leftImg8bit/{stem}_leftImg8bit.png", image)
    picture(root / f"gtFine/{stem}_gtFine_labelIds.png", np.array([7, 23, 26])[ids])


def suffixes(root, i, part):
    """Parts with nested folders, suffixes in the names."""
    named(root)
    image, ids = scene(i)
    picture(root / f"photos/{part}/day{i % 2}/{i}_cam.jpg", image)
    picture(root / f"labels/{part}/day{i % 2}/{i}_ids.png", ids)


def phone_photos(root, i, part):
    """Upright photos, stored on their side with an EXIF tag. Half of the masks are drawn upright,
    half as stored.
    """
    named(root)
    image, ids = scene(i, (40, 24))
    turned(root / f"images/{i}.jpg", np.rot90(image).copy(), 6)
    picture(root / f"masks/{i}.png", ids if i % 2 else np.rot90(ids))


@pytest.mark.parametrize("make", [colour_masks, cityscapes, suffixes, phone_photos])
def test_every_kind_of_data_set_trains_and_predicts(tmp_path, command, make):
    root, best = tmp_path / "set", tmp_path / "run/best.pt"
    options = PATTERNS if make is suffixes else {}
    arguments = [text for name, value in options.items() for text in (f"--{name}", value)]
    for i, part in enumerate(PARTS):
        make(root, i, part)
    found = find(root, DataOptions(**options))
    samples = found.train + found.val
    assert len(samples) == len({sample.image for sample in samples}) == 6

    sheet = tmp_path / "sheet.png"
    status, out, error = command("data.py", root, *arguments, "--show", sheet)
    assert status == 0 and not error and Image.open(sheet).width > 900
    for name in NAMES:  # a third of the pixels, in all six images
        (line,) = [line for line in out.splitlines() if line.split()[1:2] == [name]]
        assert 32 < float(line.split()[2]) < 36 and line.split()[4] == "6"

    run = ["--data", root, *arguments, "--out", best.parent, *TINY, *CPU]
    assert command("train.py", *run)[0] == 0
    scores = ["--data", root, "--out", tmp_path / "a", "--scores", tmp_path / "scores.csv"]
    status, out, _ = command("predict.py", best, *scores, *CPU)
    assert status == 0 and "mean IoU" in out
    assert (tmp_path / "scores.csv").read_text().count("\n") == len(found.val) + 1
    photo = found.val[0].image
    assert command("predict.py", best, photo, "--out", tmp_path / "b", *CPU)[0] == 0
    mask = read_mask(tmp_path / f"b/mask/{photo.stem}.png")
    assert mask.shape == ((40, 24) if make is phone_photos else (24, 40))
    assert mask.max() < len(found.classes)


def snippet(i):
    """Python block `i` of docs/data.md, counted from 0."""
    text = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    return text.split("```python\n")[1 + i].split("```")[0]


def test_the_snippet_that_turns_photos_upright_makes_a_data_set(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for i, (orientation, turns) in enumerate({1: 0, 3: 2, 6: 1, 8: 3}.items()):
        image, ids = scene(i)
        stored = np.rot90(image, turns).copy()
        turned(tmp_path / f"streets/images/{i}.jpg", stored, orientation)
        picture(tmp_path / f"streets/masks/{i}.png", ids)
    assert command("data.py", "streets")[0] == 2
    exec(snippet(0), {})
    assert command("data.py", "streets")[0] == 0
    for i in range(4):
        upright = np.asarray(Image.open(f"streets/images/{i}.jpg")).astype(float)
        assert np.abs(upright - scene(i)[0]).mean() < 20


def test_the_shrinking_snippet_keeps_ids_and_orientation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, ids = scene(0, (900, 1500))
    picture(tmp_path / "streets/images/a/1.jpg", image)
    picture(tmp_path / "streets/masks/a/1.png", COLOURS[ids])
    turned(tmp_path / "streets/images/2.jpg", image, 6)
    picture(tmp_path / "streets/masks/2.png", COLOURS[ids])
    named(tmp_path / "small", colours=True)
    exec(snippet(1), {})
    found = find(tmp_path / "small")
    assert len(found.train + found.val) == 2
    for sample in found.train + found.val:
        assert Image.open(sample.image).size == Image.open(sample.label).size == (1200, 720)
        counts = np.bincount(found.read_label(sample.label).ravel(), minlength=256)
        assert counts[IGNORE] == 0 and (counts[:3] == 1200 * 240).all()
    assert Image.open(tmp_path / "small/images/2.jpg").getexif()[0x0112] == 6
