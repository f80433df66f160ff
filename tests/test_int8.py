"""8-bit integers: each layer computes what the arithmetic says, the network sees what it saw, and
nothing slow runs in silence.
"""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import lively, needs_int8, picture, saved, small
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import predict
import train
from support.checkpoint import read_tensors, save_tensors
from support.console import InputError
from support.device import normalise
from support.inference import int8
from support.inference.int8 import (
    IMAGE_STEP,
    IMAGE_ZERO,
    Int8Conv2d,
    Int8Dense,
    Int8VGG16,
    Largest,
    refuse_without_int8,
    to_int8,
)


def random_bytes(shape, seed):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).to(
        memory_format=torch.channels_last
    )


@needs_int8
@given(
    channels=st.integers(1, 40),
    out=st.integers(1, 40),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel=st.sampled_from([1, 3, 7]),
    zero=st.sampled_from([0, IMAGE_ZERO]),
    images=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_a_layer_is_the_convolution_of_whole_numbers_and_one_rounding(
    channels, out, height, width, kernel, zero, images, seed
):
    torch.manual_seed(seed)
    layer, before = nn.Conv2d(channels, out, kernel, padding=kernel // 2), 0.03
    x = random_bytes((images, channels, height, width), seed)
    steps = layer.weight.detach().abs().amax((1, 2, 3)) / 127
    whole = (layer.weight.detach() / steps[:, None, None, None]).round()
    sums = F.conv2d(
        x.double() - zero, whole.double(), padding=kernel // 2
    )  # exact; the padding stands for 0
    numbers = F.relu(sums * before * steps[:, None, None] + layer.bias.detach()[:, None, None])
    after = max(numbers.max().item(), 1e-3) / 255
    for kind in [Int8Conv2d] + [Int8Dense] * (kernel == 1):
        y = kind(layer, before, zero, after)(x)
        assert y.dtype == torch.uint8 and y.shape == numbers.shape
        assert (y.double() - numbers / after).abs().max() <= 0.5 + 1e-3  # the nearest whole number


@needs_int8
@given(height=st.integers(1, 33), width=st.integers(1, 33), seed=st.integers(0, 99))
def test_pools_take_the_largest_of_the_bytes_and_round_up(height, width, seed):
    x = random_bytes((2, 8, height, width), seed)
    assert torch.equal(int8.pool(x).float(), F.max_pool2d(x.float(), 2, 2, ceil_mode=True))


@needs_int8
@given(height=st.integers(1, 90), width=st.integers(1, 90), pad=st.sampled_from([1, 100]))
def test_maps_have_the_shapes_of_the_network_at_every_size(height, width, pad):
    net = small(pad=pad)
    image = torch.randn(1, 3, height, width)
    with torch.no_grad(), Largest(net) as largest:
        plain = net.vgg(image)
    for ours, theirs in zip(Int8VGG16(net.vgg, largest)(image), plain, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype


@needs_int8
@pytest.mark.parametrize("pad", [1, 100])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_maps_are_those_of_the_network_up_to_a_few_steps(pad, kind):
    net = lively(pad, 8)
    image = normalise(random_bytes((1, 3, 120, 200), 0))
    with torch.no_grad(), Largest(net) as largest:
        plain = net.vgg(image)
    for ours, theirs in zip(Int8VGG16(net.vgg, largest)(image.to(kind)), plain, strict=True):
        assert ours.dtype == kind and ours.is_contiguous(memory_format=torch.channels_last)
        assert (ours.float() - theirs).norm() < 0.05 * theirs.norm()


def test_every_byte_of_a_normalised_image_is_within_one_step_of_itself():
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    image = normalise(every)
    steps = (image / IMAGE_STEP + IMAGE_ZERO).round()
    assert steps.min() >= 0 and steps.max() <= 255
    assert ((steps - IMAGE_ZERO) * IMAGE_STEP - image).abs().max() <= IMAGE_STEP / 2 + 1e-6


def test_the_largest_numbers_are_those_of_all_images_and_the_network_is_left_as_it_was():
    net = lively(1, 8)
    images = [torch.randn(1, 3, 40, 50) * factor for factor in (1, 3, 2)]
    with torch.no_grad(), Largest(net) as largest:
        for image in images:
            net(image)
    seen = [F.relu(net.vgg.conv1_1(image)).max().item() for image in images]
    assert largest["conv1_1"] == max(seen) and set(largest) == {
        name for name, layer in net.vgg.named_children() if isinstance(layer, nn.Conv2d)
    }
    assert not any(layer._forward_hooks for layer in net.vgg.children())


@needs_int8
def test_a_run_leaves_what_int8_needs_and_both_predict_nearly_the_same(scenes, tmp_path, capsys):
    assert (
        train.main(
            [
                "--data",
                str(scenes),
                "--out",
                str(tmp_path / "run"),
                "--width",
                "0.125",
                "--fc-channels",
                "32",
                "--crop",
                "none",
                "--weights",
                "none",
                "--epochs",
                "8",
                "--lr",
                "0.02",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    best = tmp_path / "run/best.pt"
    content = read_tensors(best)
    assert len(content["largest"]) == 15 and all(
        0 < value < math.inf for value in content["largest"].values()
    )
    masks = {}
    del content["largest"]
    save_tensors(content, tmp_path / "earlier.pt")
    for name, path, amp in (
        ("off", best, "off"),
        ("int8", best, "int8"),
        ("earlier", tmp_path / "earlier.pt", "int8"),
    ):
        capsys.readouterr()
        assert (
            predict.main(
                [
                    str(path),
                    "--data",
                    str(scenes),
                    "--out",
                    str(tmp_path / name),
                    "--amp",
                    amp,
                    "--device",
                    "cpu",
                ]
            )
            == 0
        )
        assert ("found on" in capsys.readouterr().out) == (name == "earlier")
        masks[name] = np.stack(
            [np.asarray(Image.open(file)) for file in sorted((tmp_path / name / "mask").iterdir())]
        )
    assert 0.05 < masks["off"].mean() < 0.95  # it sees both classes
    for name in ("int8", "earlier"):
        assert (masks[name] == masks["off"]).mean() > 0.97


def test_where_there_is_no_int8_one_line_says_so_and_nothing_is_begun(
    tmp_path, monkeypatch, capsys
):
    path, photo = (
        saved(tmp_path / "net.pt", small(3)),
        picture(tmp_path / "a.png", np.zeros((40, 50, 3))),
    )
    flags = int8.Path.read_text
    monkeypatch.setattr(
        int8.Path,
        "read_text",
        lambda file, *more, **options: (
            "flags: avx2" if str(file) == "/proc/cpuinfo" else flags(file, *more, **options)
        ),
    )
    assert (
        predict.main(
            [
                str(path),
                str(photo),
                "--out",
                str(tmp_path / "out"),
                "--amp",
                "int8",
                "--device",
                "cpu",
            ]
        )
        == 2
    )
    assert (
        "--amp int8: this processor has no instructions for it (VNNI)" in capsys.readouterr().err
        and not (tmp_path / "out").exists()
    )
    with pytest.raises(InputError, match="is for processors, not for cuda"):
        refuse_without_int8(torch.device("cuda"))
    with pytest.raises(InputError, match="VNNI"):
        to_int8(small(), {})
