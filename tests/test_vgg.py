"""VGG16: the outputs of the classification network, the grids, and the initial weights."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from support.dense import CHUNK, DenseConv2d
from vgg import VGG16, Grid

LAYERS = [
    "conv1_1",
    "conv1_2",
    "pool1",
    "conv2_1",
    "conv2_2",
    "pool2",
    "conv3_1",
    "conv3_2",
    "conv3_3",
    "pool3",
    "conv4_1",
    "conv4_2",
    "conv4_3",
    "pool4",
    "conv5_1",
    "conv5_2",
    "conv5_3",
    "pool5",
    "fc6",
    "fc7",
]


def reference(state, x, stop=None):
    """VGG16 up to layer `stop` by the table of the paper, from a plain dict of weights. Even sizes
    only.
    """
    for name in LAYERS[:-2]:
        if name.startswith("pool"):
            x = x.unfold(2, 2, 2).unfold(3, 2, 2).amax(dim=(4, 5))
        else:
            x = F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=1).clamp(min=0)
        if name == stop:
            break
    return x


def test_the_full_network_matches_the_dense_classifier():
    # At 224 x 224 pool5 is 7 x 7, and the 7 x 7 window of fc6 fits once: at the centre of our
    # padded map.
    net = VGG16().eval()
    assert (
        sum(p.numel() for p in net.parameters()) == 134_260_544
    )  # 138,357,544 less the 1000 classes' 4,097,000
    state = net.state_dict()
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        pool3, pool4, fc7 = net(x)
        flat = reference(state, x).flatten(1)
        hidden = F.linear(flat, state["fc6.weight"].view(4096, 25088), state["fc6.bias"]).clamp(
            min=0
        )
        wanted = F.linear(hidden, state["fc7.weight"].view(4096, 4096), state["fc7.bias"]).clamp(
            min=0
        )
    torch.testing.assert_close(fc7[:, :, 3, 3], wanted, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pool3, reference(state, x, "pool3"), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(pool4, reference(state, x, "pool4"), rtol=1e-3, atol=1e-4)
    assert wanted.std() > 0.1  # a comparison of zeros would show nothing


def test_layers_have_the_authors_names_in_the_order_of_the_paper():
    assert [name for name, _ in VGG16(width=1 / 64, fc_channels=1).named_children()] == LAYERS


@given(height=st.integers(1, 150), width=st.integers(1, 150), pad=st.sampled_from([1, 97, 100]))
def test_every_pool_keeps_the_last_row(height, width, pad):
    def halved(n, times):
        n += 2 * pad - 2
        for _ in range(times):
            n = (n + 1) // 2
        return n

    pool3, pool4, fc7 = VGG16(pad, width=1 / 64, fc_channels=2).eval()(
        torch.zeros(1, 3, height, width)
    )
    assert pool3.shape[2:] == (halved(height, 3), halved(width, 3))
    assert pool4.shape[2:] == (halved(height, 4), halved(width, 4))
    lost = 0 if pad == 1 else 6
    assert fc7.shape[2:] == (halved(height, 5) - lost, halved(width, 5) - lost)


def test_grids_match_reference_values():
    border = VGG16(pad=100, width=1 / 64, fc_channels=1).grid
    assert border["conv1_2"] == Grid(1, -99, 2)
    assert [border[f"pool{i}"][:2] for i in (3, 4, 5)] == [(8, -95.5), (16, -91.5), (32, -83.5)]
    assert border["fc7"][:2] == (32, 12.5)
    none = VGG16(width=1 / 64, fc_channels=1).grid
    assert [none[f"pool{i}"] for i in (3, 4, 5)] == [
        Grid(8, 3.5, 21.5),
        Grid(16, 7.5, 49.5),
        Grid(32, 15.5, 105.5),
    ]
    assert none["fc7"] == Grid(
        32, 15.5, 201.5
    )  # the 404 pixels that a neuron of fc6 is known to see


@pytest.mark.parametrize("pad", [1, 100])
@pytest.mark.parametrize("name, index", [("pool3", 0), ("pool4", 1), ("fc7", 2)])
def test_a_cell_sees_the_square_that_its_grid_describes(pad, name, index):
    """The pixels that affect a cell form a square. Its centre is pixel stride * i + offset, and
    half its side is the reach.
    """
    net = VGG16(pad, width=1 / 64, fc_channels=1).double()
    for p in net.parameters():
        p.data.fill_(0.5)  # all positive: no pixel in reach can cancel, no ReLU can close
    x = (
        torch.linspace(1, 2, 640 * 640, dtype=torch.double)
        .view(1, 1, 640, 640)
        .repeat(1, 3, 1, 1)
        .requires_grad_()
    )
    net.eval()
    cells = net(x)[index]
    row, column = cells.shape[2] // 2, cells.shape[3] // 2 + 1
    # A max pool passes on one of its inputs; the cell can see each of them. An average pool passes
    # on all of them at once.
    for i in range(1, 6):
        setattr(net, f"pool{i}", torch.nn.AvgPool2d(2, 2, ceil_mode=True))
    net(x)[index][0, 0, row, column].backward()
    rows, columns = (x.grad[0, 0].abs().sum(d).nonzero().flatten() for d in (1, 0))
    assert 0 < rows[0] and rows[-1] < 639 and 0 < columns[0] and columns[-1] < 639, (
        "the image must not cut the square"
    )
    stride, offset, reach = net.grid[name]
    assert (rows[-1] - rows[0]).item() == (columns[-1] - columns[0]).item() == 2 * reach
    assert (rows[0] + rows[-1]).item() / 2 == stride * row + offset
    assert (columns[0] + columns[-1]).item() / 2 == stride * column + offset


def test_initial_weights_keep_the_scale_of_the_signal():
    net = VGG16(width=0.25, fc_channels=256).eval()
    for name, p in net.named_parameters():
        if name.endswith("weight"):
            he = (2 / p[0].numel()) ** 0.5
            assert 0.75 * he < p.std() < 1.25 * he, name
    with torch.no_grad():
        *_, fc7 = net(torch.randn(2, 3, 96, 96))
    assert 0.05 < fc7.pow(2).mean().sqrt() < 20


@pytest.mark.parametrize(
    "wrong",
    [{"pad": 0}, {"pad": 2}, {"pad": 96}, {"width": 0}, {"fc_channels": 0}, {"dropout": -1}],
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        VGG16(**{"width": 1 / 64, "fc_channels": 1, **wrong})


# ---- fc6 and fc7 as one matrix product


@given(
    n=st.integers(1, 2),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    kernel=st.sampled_from([(1, 0), (7, 3)]),
)
def test_a_dense_layer_matches_a_convolution_in_evaluation(n, height, width, kernel):
    layer, x = (
        DenseConv2d(5, 6, kernel[0], padding=kernel[1]).eval(),
        torch.randn(n, 5, height, width),
    )
    exact = torch.nn.Conv2d.forward(layer.double(), x.double())
    torch.testing.assert_close(layer.float()(x), exact.float(), rtol=1e-4, atol=1e-5)


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
