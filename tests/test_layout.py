"""Images go through the network in channels_last, in which convolutions and pools are fastest:
every map says so by its strides.
"""

import numpy as np
import pytest
import torch
from conftest import kitti, saved, small
from PIL import Image

import predict
import train
from support.inference.segment import segment
from vgg import VGG16

LAYERS = [name for name, _ in VGG16(width=1 / 64, fc_channels=1).named_children()]


@pytest.fixture
def layouts(monkeypatch):
    """A list that gets (layer, whether its output is in channels_last) for each map that any VGG16
    computes.
    """
    seen, build = [], VGG16.__init__

    def watched(net, *args, **more):
        build(net, *args, **more)
        for name in LAYERS:
            net.get_submodule(name).register_forward_hook(
                lambda layer, inputs, output, name=name: seen.append(
                    (
                        name,
                        output.is_contiguous(memory_format=torch.channels_last),
                        min(output.shape[1:]) > 1,
                    )
                )
            )

    monkeypatch.setattr(VGG16, "__init__", watched)
    return seen


def assert_all_channels_last(seen):
    telling = [
        (name, so) for name, so, several in seen if several
    ]  # of one channel or row the strides say nothing
    assert {name for name, _ in telling} == set(LAYERS)
    assert not [name for name, so in telling if not so]


def test_every_map_of_training_evaluation_and_setting_up_is_channels_last(tmp_path, layouts):
    """With one image in a batch and with several, the whole image and parts."""
    kitti(tmp_path / "data", size=(80, 120))
    for batch in ("1", "3"):
        assert (
            train.main(
                [
                    "--data",
                    str(tmp_path / "data"),
                    "--out",
                    str(tmp_path / batch),
                    "--width",
                    "0.0625",
                    "--fc-channels",
                    "8",
                    "--weights",
                    "none",
                    "--epochs",
                    "1",
                    "--batch-size",
                    batch,
                    "--crop",
                    "70x100",
                    "--device",
                    "cpu",
                ]
            )
            == 0
        )
        assert_all_channels_last(layouts)
        layouts.clear()


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_every_map_of_a_prediction_is_channels_last(tmp_path, layouts, amp):
    path = saved(tmp_path / "net.pt", small(3))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 130, 3), np.uint8))
    picture.save(tmp_path / "a.png")
    for scale in ([], ["--scale", "1.5"]):
        assert (
            predict.main(
                [
                    str(path),
                    str(tmp_path / "a.png"),
                    "--out",
                    str(tmp_path / "out"),
                    "--amp",
                    amp,
                    "--device",
                    "cpu",
                    *scale,
                ]
            )
            == 0
        )
        assert_all_channels_last(layouts)
        layouts.clear()
    segment(small(3), picture)
    assert_all_channels_last(layouts)
