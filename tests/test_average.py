"""Several views of a picture: what predict.py --views writes are the mean probabilities of all of
them.
"""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import lively, needs_int8, saved
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import predict
from support.checkpoint import read_tensors, save_tensors
from support.inference.average import Views, parse_views, views_of
from support.inference.predictor import predict_image
from support.inference.scale import resized


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    factors=st.lists(st.floats(0.3, 2), min_size=1, max_size=3),
    mirrored=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_confidence_is_the_mean_of_the_probabilities_of_all_views(
    height, width, factors, mirrored, seed
):
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    net = lively(1, 8)

    def compute(batch):
        return net(batch.float() / 100 - 1)

    def probabilities(
        picture,
    ):  # the reference: each view by itself, stretched and turned back as a whole
        scores = compute(torch.tensor(picture.copy()).permute(2, 0, 1)[None])
        return F.interpolate(scores, size=(height, width), mode="bilinear", align_corners=False)[
            0
        ].softmax(0)

    seen = []
    for factor in factors:
        view = resized(image, max(1, round(height * factor)), max(1, round(width * factor)))
        seen += [probabilities(view), *([probabilities(view[:, ::-1]).flip(2)] if mirrored else [])]
    mean = torch.stack(seen).mean(0)

    (first, _), *more = views_of(image, height, width, Views(tuple(factors), mirrored))
    found = predict_image(compute, first, net.reach, sought=[0, 1], size=(height, width), more=more)
    assert (found.confidences - 255 * mean[:2]).abs().max() <= 0.6
    sure = mean.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-3
    assert torch.equal(found.classes[sure], mean.argmax(0).byte()[sure])


def test_views_in_tiles_are_those_of_whole_images():
    net, image = lively(1, 8), torch.randn(1, 3, 700, 580)
    told = []
    whole, tiles = (
        predict_image(
            net,
            image,
            net.reach,
            tile,
            sought=[1],
            more=[(image.flip(3), True)],
            tell=lambda part, parts: told.append(part / parts),
        )
        for tile in (1536, 600)
    )
    assert told == sorted(told) and len(told) > 4 and told[-1] < 1  # how far it is, over both views
    assert (whole.classes != tiles.classes).sum() <= 3
    assert (whole.confidences.int() - tiles.confidences.int()).abs().max() <= 1


def test_with_the_mirror_image_a_mirrored_picture_gets_the_mirrored_mask(tmp_path):
    path = saved(tmp_path / "net.pt", lively(1, 8), ("sky", "road"))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "b.png")
    masks = {}
    for views in ("1", "flip", "0.8,1.2,flip"):
        assert (
            predict.main(
                [
                    str(path),
                    str(tmp_path / "a.png"),
                    str(tmp_path / "b.png"),
                    "--out",
                    str(tmp_path / "out"),
                    "--views",
                    views,
                    "--device",
                    "cpu",
                    "--amp",
                    "off",
                ]
            )
            == 0
        )
        masks[views] = [
            np.asarray(Image.open(tmp_path / "out/mask" / f"{name}.png")) for name in "ab"
        ]
    differ = {views: (a != b[:, ::-1]).mean() for views, (a, b) in masks.items()}
    assert differ["1"] > 0.02 and differ["flip"] < 1e-3 and differ["0.8,1.2,flip"] < 1e-3
    assert (masks["flip"][0] != masks["0.8,1.2,flip"][0]).mean() > 0.02


@pytest.mark.parametrize(
    "more",
    [
        ["--size", "50x70"],
        ["--scale", "1.3"],
        ["--kitti"],
        pytest.param(["--amp", "int8"], marks=needs_int8),
    ],
)
def test_views_go_with_every_other_way_to_predict(scenes, tmp_path, more):
    path = saved(tmp_path / "net.pt", lively(1, 8), ("not road", "road"))
    given = (
        ["--kitti", str(scenes), "--split", "training"]
        if more == ["--kitti"]
        else [str(scenes / "training/image_2"), *more]
    )
    results = []
    for views in ("1", "flip", "0.7,flip"):
        assert (
            predict.main(
                [
                    str(path),
                    *given,
                    "--out",
                    str(tmp_path / views),
                    "--views",
                    views,
                    "--device",
                    "cpu",
                    "--confidence",
                ]
            )
            == 0
        )
        results.append(
            [
                np.asarray(Image.open(file)).astype(int)
                for file in sorted((tmp_path / views / "confidence").rglob("*.png"))
            ]
        )
    for one, flip, small in zip(*results, strict=True):
        assert one.shape == flip.shape == small.shape == (32, 64)
        assert np.abs(one - flip).max() > 2 and np.abs(small - flip).max() > 2


def test_a_network_that_has_seen_no_mirror_image_is_given_none(tmp_path, capsys):
    """In a mirror the own lane is the left one."""
    path = saved(tmp_path / "net.pt", lively(1, 8), ("not lane", "lane"))
    save_tensors({**read_tensors(path), "settings": {"flip": "no"}}, path)
    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    for views, status in (("1,flip", 2), ("0.8,1", 0)):
        assert (
            predict.main(
                [
                    str(path),
                    str(tmp_path / "a.png"),
                    "--out",
                    str(tmp_path / "out"),
                    "--views",
                    views,
                    "--device",
                    "cpu",
                ]
            )
            == status
        )
        assert (
            "--views: the network was trained without mirrored views" in capsys.readouterr().err
        ) == (status == 2)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("flip", Views((1.0,), True)),
        ("1", Views()),
        ("0.75,1,1.25", Views((0.75, 1.0, 1.25))),
        ("flip,2", Views((2.0,), True)),
    ],
)
def test_views_are_read_as_they_are_written(text, wanted):
    assert parse_views(text) == wanted


@pytest.mark.parametrize("text", ["", ",", "0", "1,", "flip,0.0", "-1", "mirror", "1;2", "1,,2"])
def test_views_that_are_none_are_refused_in_one_line(text, capsys):
    with pytest.raises(SystemExit) as end:
        predict.main(["best.pt", "a.png", f"--views={text}"])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "--views" in error
