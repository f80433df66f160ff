"""VGG16 in 8-bit integers for prediction on a CPU: twice as fast as bf16, weights of half the size.

    to_int8(net, calibrate(net, pictures))

The activations of a feature map after a ReLU lie between 0 and amax, its activation range.
Quantisation divides this range into 255 steps and stores an activation x as a byte q, and a weight
W as a signed byte w:

    q = round(x / s),  s = amax / 255,     q in 0 ... 255        one scale s per map
    w = round(W / t),  t = max |W| / 127,  w in -127 ... 127     one scale t per output channel

The convolution of the bytes is exact, since it accumulates in 32 bits. Multiplied by s * t, it
equals the convolution of the numbers that the bytes represent. The same pass adds the bias, applies
the ReLU, divides by the scale of the next map and rounds. So each activation is rounded once, by at
most half a step, and each weight once in advance. Pools need no arithmetic: they pick one of four
bytes.

The first and last layers differ. The image has values of both signs, so its zero point is 114: byte
114 represents 0, also in the padding. The score layers and the upsampling compute in floating
point: they are small, and rounding there could change the class.

Calibration measures the activation ranges on some images. Larger activations are clipped to 255.

PyTorch's compiler uses the same operators for quantised networks on x86, but they are undocumented.
The documented interface (torch.ao) will be removed, and its successor is a separate package. So
`require_int8` checks that the operators exist, and tests check that they compute as described here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress

import numpy as np
import torch
from torch import nn

from fcn import FCN8s
from support.console import InputError
from support.device import cpu_has
from support.inference.predictor import Predictor
from vgg import IMAGE_MEAN, IMAGE_STD, VGG16

CPU = torch.device("cpu")
OPERATORS = ("qconv2d_pointwise", "qlinear_pointwise")


def require_int8(device: torch.device = CPU):
    """Raise InputError unless the device is an x86 CPU with VNNI instructions and this PyTorch has
    the operators.

    Some operators have a silent fallback that is 70 times as slow.
    """
    if device.type != "cpu":
        problem = f"needs --device cpu, not {device}"
    elif not cpu_has("avx512_vnni", "avx_vnni", "amx_int8"):
        problem = "this CPU has no VNNI instructions"
    elif not all(hasattr(torch.ops.onednn, name) for name in OPERATORS):
        problem = f"PyTorch {torch.__version__} lacks the operators for it"
    else:
        return
    raise InputError(f"--amp int8: {problem}; leave out --amp")


def calibrate(net: FCN8s, pictures: Iterable[np.ndarray], **how) -> dict[str, float]:
    """The activation range of each convolution of VGG16, its largest output after the ReLU, by the
    layer's name.

    net         in evaluation mode
    pictures    uint8 [H, W, 3] RGB, like those to be predicted; eight are enough
    how         `resize`, `longer` and `tile` of Predictor, as for prediction
    """
    amax = {}

    def measure(name):
        def hook(layer, inputs, output):
            amax[name] = max(amax.get(name, 0.0), output.max().item())  # at least 0: after the ReLU

        return hook

    hooks = [
        layer.register_forward_hook(measure(name))
        for name, layer in net.vgg.named_children()
        if isinstance(layer, nn.Conv2d)
    ]
    predictor = Predictor(net, **how)
    for picture in pictures:
        with suppress(ValueError):  # too large; the caller reports it when predicting
            predictor(picture)
    for hook in hooks:
        hook.remove()
    return amax


def to_int8(net: FCN8s, amax: dict[str, float]) -> FCN8s:
    """Quantise the VGG16 of a network on the CPU, in place. The other layers keep their type.
    Returns the network in evaluation mode; it can no longer be trained.

    amax    the activation ranges, see `calibrate`

    Raises InputError, see `require_int8`.
    """
    require_int8()
    net.vgg = Int8VGG16(net.vgg, amax)
    return net.eval()


# For an image after vgg.normalise, bytes 0 ... 255 represent the darkest to the brightest value of
# any channel.
DARKEST = min(-mean / std for mean, std in zip(IMAGE_MEAN, IMAGE_STD, strict=True))
BRIGHTEST = max((1 - mean) / std for mean, std in zip(IMAGE_MEAN, IMAGE_STD, strict=True))
IMAGE_SCALE = (BRIGHTEST - DARKEST) / 255
IMAGE_ZERO_POINT = round(-DARKEST / IMAGE_SCALE)  # 114


class Int8VGG16(nn.Module):
    """VGG16 quantised as described above: normalised images [N, 3, H, W] float to the maps
    VGG16.OUTPUTS, of the same type.

    vgg     the network to quantise; its weights are copied
    amax    the activation ranges, see `calibrate`
    """

    def __init__(self, vgg: VGG16, amax: dict[str, float]):
        super().__init__()
        self.layers, self.scales = {}, {}  # by the layer's name
        scale, zero_point = IMAGE_SCALE, IMAGE_ZERO_POINT
        for name, layer in vgg.named_children():
            if isinstance(layer, nn.Conv2d):
                kind = Int8Dense if layer.kernel_size == (1, 1) else Int8Conv2d
                out_scale = max(amax[name], 1e-6) / 255
                self.layers[name] = kind(layer, scale, zero_point, out_scale)
                scale, zero_point = out_scale, 0
            else:
                self.layers[name] = pool
            self.scales[name] = scale

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = (image / IMAGE_SCALE + IMAGE_ZERO_POINT).round().clamp(0, 255).to(torch.uint8)
        maps = {}
        for name, layer in self.layers.items():
            x = layer(x)
            if name in VGG16.OUTPUTS:
                maps[name] = x.to(image.dtype) * self.scales[name]
        return tuple(maps[name] for name in VGG16.OUTPUTS)


class Int8Conv2d:
    """A convolution and its ReLU: bytes to bytes [N, C, H, W] in channels_last.

    scale, zero_point    of the input
    out_scale            of the output, whose zero point is 0
    """

    def __init__(self, layer: nn.Conv2d, scale: float, zero_point: int, out_scale: float):
        weight = torch.empty(layer.weight.shape, dtype=torch.int8)
        self.weight_scales = torch.empty(layer.out_channels)  # t, float [O]
        for o, channel in enumerate(layer.weight.detach()):  # all of fc6 in fp32 takes 0.4 GB
            t = channel.float().abs().max().clamp(min=1e-12) / 127
            self.weight_scales[o], weight[o] = t, (channel.float() / t).round()
        self.weight_zero_points = torch.zeros(layer.out_channels, dtype=torch.int32)
        self.bias = layer.bias.detach().float()
        self.scale, self.zero_point, self.out_scale = scale, zero_point, out_scale
        # The operator's stride, padding, dilation and groups.
        self.geometry = list(layer.stride), list(layer.padding), [1, 1], 1
        self.weight = self.pack(weight)

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        """The weights int8 [O, I, kh, kw] in the layout of the operator."""
        return torch.ops.onednn.qconv_prepack(
            weight, self.weight_scales, self.scale, self.zero_point, *self.geometry
        )

    def compute(self, operator: Callable, x: torch.Tensor, *geometry) -> torch.Tensor:
        weight = self.weight, self.weight_scales, self.weight_zero_points, self.bias
        output = self.out_scale, 0, torch.uint8, "relu", [], ""
        return operator(x, self.scale, self.zero_point, *weight, *geometry, *output)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(torch.ops.onednn.qconv2d_pointwise, x, *self.geometry)


class Int8Dense(Int8Conv2d):
    """The same for a 1 x 1 kernel, as a matrix product: 40 times as fast as the convolution for fc7
    with 4096 channels.
    """

    def pack(self, weight: torch.Tensor) -> torch.Tensor:
        return torch.ops.onednn.qlinear_prepack(weight.flatten(1), None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.permute(0, 2, 3, 1)
        flat = self.compute(torch.ops.onednn.qlinear_pointwise, rows.flatten(0, 2))
        return flat.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)


def pool(x: torch.Tensor) -> torch.Tensor:
    """VGG16's pools, which round sizes up, for bytes."""
    return torch.ops.quantized.max_pool2d(x, [2, 2], [2, 2], [0, 0], [1, 1], True)
