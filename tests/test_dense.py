"""fc6 and fc7 as one matrix product: the convolution of the same weights, forwards and backwards."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.dense import PART, DenseConv2d


@given(
    n=st.integers(1, 2),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    kernel=st.sampled_from([(1, 0), (7, 3)]),
)
def test_in_evaluation_in_fp32_too(n, height, width, kernel):
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
    outputs=st.sampled_from([1, 4, PART, PART + 3]),
    bf16=st.booleans(),
)
@settings(max_examples=40)
def test_a_dense_layer_computes_the_convolution_of_its_weights_and_its_gradients(
    n, height, width, kernel, outputs, bf16
):
    """In fp64; in bf16 as near as that is: three digits."""
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
    # The gradient of a bias is the sum of all of `wanted`, which may cancel: it is as near as its
    # terms are.
    assert (layer.bias.grad.double() - conv.bias.grad).norm() <= tolerance * wanted.norm()
