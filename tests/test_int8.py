"""Quantisation to 8 bits: each layer rounds once, the network predicts nearly the same, and int8 is
refused where it would be slow.
"""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import lively, needs_int8, small
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from support.console import InputError
from support.inference import int8
from support.inference.int8 import (
    IMAGE_SCALE,
    IMAGE_ZERO_POINT,
    Int8Conv2d,
    Int8Dense,
    Int8VGG16,
    calibrate,
    require_int8,
    to_int8,
)
from support.inference.predictor import Predictor
from vgg import normalise


def random_bytes(shape, seed):
    values = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
    return torch.from_numpy(values).to(memory_format=torch.channels_last)


def picture_of(images):
    """A batch of one image uint8 [1, 3, H, W] as a picture [H, W, 3]."""
    return images[0].permute(1, 2, 0).numpy()


@needs_int8
@given(
    channels=st.integers(1, 40),
    out=st.integers(1, 40),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    kernel=st.sampled_from([1, 3, 7]),
    zero_point=st.sampled_from([0, IMAGE_ZERO_POINT]),
    images=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_a_quantised_layer_is_an_integer_convolution_rounded_once(
    channels, out, height, width, kernel, zero_point, images, seed
):
    torch.manual_seed(seed)
    layer, scale = nn.Conv2d(channels, out, kernel, padding=kernel // 2), 0.03
    x = random_bytes((images, channels, height, width), seed)
    weight = layer.weight.detach()
    weight_scales = weight.abs().amax((1, 2, 3)) / 127
    whole = (weight / weight_scales[:, None, None, None]).round().double()
    sums = F.conv2d(x.double() - zero_point, whole, padding=kernel // 2)  # exact
    numbers = sums * scale * weight_scales[:, None, None] + layer.bias.detach()[:, None, None]
    numbers = F.relu(numbers)
    out_scale = max(numbers.max().item(), 1e-3) / 255
    for kind in [Int8Conv2d] + [Int8Dense] * (kernel == 1):
        y = kind(layer, scale, zero_point, out_scale)(x)
        assert y.dtype == torch.uint8 and y.shape == numbers.shape
        assert (y.double() - numbers / out_scale).abs().max() <= 0.5 + 1e-3


@needs_int8
@given(height=st.integers(1, 33), width=st.integers(1, 33), seed=st.integers(0, 99))
def test_pooling_bytes_matches_a_max_pool_that_rounds_up(height, width, seed):
    x = random_bytes((2, 8, height, width), seed)
    assert torch.equal(int8.pool(x).float(), F.max_pool2d(x.float(), 2, 2, ceil_mode=True))


@needs_int8
@settings(max_examples=8)
@given(height=st.integers(1, 90), width=st.integers(1, 90), pad=st.sampled_from([1, 100]))
def test_maps_have_the_shapes_of_the_network_at_every_size(height, width, pad):
    net, images = small(pad=pad), random_bytes((1, 3, height, width), 0)
    maps = Int8VGG16(net.vgg, calibrate(net, [picture_of(images)]))(normalise(images))
    for ours, theirs in zip(maps, net.vgg(normalise(images)), strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype


@needs_int8
@pytest.mark.parametrize("pad, dtype", [(1, torch.float32), (100, torch.bfloat16)])
def test_the_maps_match_those_of_the_network_up_to_rounding(pad, dtype):
    net, images = lively(pad, 8), random_bytes((1, 3, 120, 200), 0)
    with torch.no_grad():
        plain = net.vgg(normalise(images))
    quantised = Int8VGG16(net.vgg, calibrate(net, [picture_of(images)]))
    for ours, theirs in zip(quantised(normalise(images).to(dtype)), plain, strict=True):
        assert ours.dtype == dtype and ours.is_contiguous(memory_format=torch.channels_last)
        assert (ours.float() - theirs).norm() < 0.05 * theirs.norm()


def test_quantising_an_image_errs_by_at_most_half_a_step():
    image = normalise(torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16))
    quantised = (image / IMAGE_SCALE + IMAGE_ZERO_POINT).round()
    assert quantised.min() >= 0 and quantised.max() <= 255
    error = ((quantised - IMAGE_ZERO_POINT) * IMAGE_SCALE - image).abs().max()
    assert error <= IMAGE_SCALE / 2 + 1e-6


def test_activation_ranges_cover_all_calibration_pictures():
    net = lively(1, 8)
    pictures = [
        picture_of(random_bytes((1, 3, 40, 50), i)) // part for i, part in enumerate((2, 1, 3))
    ]
    found = calibrate(net, pictures, resize=1.5)
    assert set(found) == {name for name in dict(net.vgg.named_children()) if "pool" not in name}
    largest = []
    layer = net.vgg.conv1_1
    hook = layer.register_forward_hook(lambda *args: largest.append(F.relu(args[2]).max().item()))
    for picture in pictures:
        Predictor(net, resize=1.5)(picture)
    hook.remove()
    assert found["conv1_1"] == max(largest) and largest[-1] < max(largest)
    assert not any(layer._forward_hooks for layer in net.vgg.children())


def test_int8_is_refused_where_it_would_not_be_faster(monkeypatch):
    monkeypatch.setattr(int8, "cpu_has", lambda *flags: False)
    for attempt in (require_int8, partial(to_int8, small(), {})):
        with pytest.raises(InputError, match="--amp int8: this CPU has no VNNI"):
            attempt()
    with pytest.raises(InputError, match="needs --device cpu, not cuda"):
        require_int8(torch.device("cuda"))
