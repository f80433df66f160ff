"""VGG16: the outputs of the classification network, the grids, and the initial weights."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from support.dense import CHUNK, DenseConv2d
from vgg import VGG16


def reference_pools(state, x):
    """pool1 to pool5 of VGG16 by the table of the paper, from a plain dict of weights. Even sizes
    only.
    """
    pools = {}
    for block, convolutions in enumerate((2, 2, 3, 3, 3), 1):
        for i in range(1, convolutions + 1):
            weight, bias = (state[f"conv{block}_{i}.{part}"] for part in ("weight", "bias"))
            x = F.conv2d(x, weight, bias, padding=1).clamp(min=0)
        x = pools[f"pool{block}"] = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
    return pools


def test_the_network_matches_the_dense_classifier():
    """At 224 x 224 pool5 is 7 x 7, and the 7 x 7 window of fc6 fits once: at the centre of our
    padded map.
    """
    net, x = VGG16(width=1 / 8, fc_channels=512).eval(), torch.randn(1, 3, 224, 224)
    state = net.state_dict()
    with torch.no_grad():
        found = net(x)[-1][:, :, 3, 3]
        wanted = reference_pools(state, x)["pool5"].flatten(1)
        for name in ("fc6", "fc7"):
            weight, bias = state[f"{name}.weight"].flatten(1), state[f"{name}.bias"]
            wanted = F.linear(wanted, weight, bias).clamp(min=0)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    assert wanted.std() > 0.1  # a comparison of zeros would show nothing


@pytest.mark.parametrize("pad", [1, 100])
def test_a_cell_sees_the_square_that_its_grid_describes(pad):
    """The pixels that affect a cell form a square. Its centre is pixel stride * i + offset, and
    half its side is the reach.
    """
    net = VGG16(pad, width=1 / 64, fc_channels=1).double().eval()
    for p in net.parameters():
        p.data.fill_(0.5)  # all positive: no pixel in reach can cancel, no ReLU can close
    # A max pool passes on one of its inputs; the cell can see each of them. An average pool passes
    # on all of them at once.
    for i in range(1, 6):
        setattr(net, f"pool{i}", torch.nn.AvgPool2d(2, 2, ceil_mode=True))
    image = torch.ones(1, 3, 512, 512, dtype=torch.double, requires_grad=True)
    for name, cells in zip(VGG16.OUTPUTS, net(image), strict=True):
        row, column = cells.shape[2] // 2, cells.shape[3] // 2 + 1
        (seen,) = torch.autograd.grad(cells[0, 0, row, column], image, retain_graph=True)
        stride, offset, reach = net.grid[name]
        for cell, across in ((row, 1), (column, 0)):
            pixels = seen[0, 0].sum(across).nonzero()
            first, last = pixels[0].item(), pixels[-1].item()
            assert 0 < first and last < 511, "the image must not cut the square"
            assert ((first + last) / 2, last - first) == (stride * cell + offset, 2 * reach)


def test_initial_weights_keep_the_scale_of_the_signal():
    net = VGG16(width=0.25, fc_channels=256).eval()
    for name, p in net.named_parameters():
        if name.endswith("weight"):
            he = (2 / p[0].numel()) ** 0.5
            assert 0.75 * he < p.std() < 1.25 * he, name
    with torch.no_grad():
        *_, fc7 = net(torch.randn(2, 3, 96, 96))
    assert 0.05 < fc7.pow(2).mean().sqrt() < 20


# ---- fc6 and fc7 as one matrix product


@given(
    n=st.integers(1, 2),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    kernel=st.sampled_from([(1, 0), (7, 3), (7, 0)]),
    outputs=st.sampled_from([4, CHUNK, CHUNK + 3]),
    bf16=st.booleans(),
)
@settings(max_examples=40)
def test_a_dense_layer_matches_a_convolution_and_its_gradients(
    n, height, width, kernel, outputs, bf16
):
    """In fp64, and in bf16 up to its three digits."""
    size, padding = kernel
    if min(height, width) + 2 * padding < size:
        height = width = size
    layer = DenseConv2d(5, outputs, size, padding=padding)
    conv = torch.nn.Conv2d(5, outputs, size, padding=padding).double()
    if not bf16:
        layer.double()
    conv.load_state_dict(layer.state_dict())
    x = torch.randn(n, 5, height, width)
    inputs = x.bfloat16().requires_grad_() if bf16 else x.double().requires_grad_()
    plain = inputs.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = layer(inputs)
    expected = conv(plain)
    wanted = torch.randn_like(expected)
    (output * wanted).sum().backward()
    (expected * wanted).sum().backward()
    assert layer.weight.grad.dtype == layer.weight.dtype
    tolerance = 2e-2 if bf16 else 1e-12
    for got, exact in (
        (output, expected),
        (inputs.grad, plain.grad),
        (layer.weight.grad, conv.weight.grad),
    ):
        assert (got.double() - exact).norm() <= tolerance * exact.norm()
    # The gradient of the bias is the sum of `wanted`, whose terms may cancel. So the error is
    # measured against the terms.
    assert (layer.bias.grad.double() - conv.bias.grad).norm() <= tolerance * wanted.norm()
