"""The dense layers fc6 and fc7, computed as one matrix product.

A convolution is a matrix product. Each row of the first matrix is the input window of one position;
the second matrix holds the weights. Convolution libraries are tuned for small kernels and large
feature maps. fc6 is the opposite: 102 million weights, applied at a few hundred positions (468 for
an image of 375 x 1242). Here a single product is 2 to 4 times as fast on a CPU, and 1.5 times on an
H200: fc6 takes 3.4 ms as a product and 5.2 ms as a convolution (PyTorch 2.11, bf16, 8 images,
forward and backward).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

CHUNK = 512  # output channels converted to bf16 at a time, see `Product`


class DenseConv2d(nn.Conv2d):
    """nn.Conv2d of stride 1, same parameters and results: [N, C, H, W] to [N, O, H', W']."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_exporting() or isinstance(x, torch.fx.Proxy):
            # A trace would record the shapes below as constants.
            return super().forward(x)
        k, p = self.kernel_size[0], self.padding[0]
        padded = F.pad(x, (p, p, p, p)) if p else x
        windows = padded.unfold(2, k, 1).unfold(3, k, 1)  # [N, C, H', W', k, k]
        rows = windows.permute(0, 2, 3, 1, 4, 5).flatten(3)  # [N, H', W', C*k*k]
        # Product can be differentiated only once, by backward(); a training step needs no more. A
        # GPU has enough memory, and computes one large product faster than eight.
        saves_memory = self.training and torch.is_grad_enabled() and x.device.type == "cpu"
        if not saves_memory and x.device.type == "cpu" and x.dtype == torch.float32:
            # oneDNN computes a 1 x 1 convolution, MKL computes F.linear. On AMD CPUs in fp32, MKL
            # takes 2.2 times as long, and a whole prediction then 1.3 times.
            return F.conv2d(
                rows.permute(0, 3, 1, 2), self.weight.flatten(1)[:, :, None, None], self.bias
            )
        product = Product.apply if saves_memory else F.linear
        flat = product(rows.flatten(0, 2), self.weight.flatten(1), self.bias)
        return flat.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)


class Product(torch.autograd.Function):
    """F.linear with its own backward pass: rows [P, I], weight [O, I] and bias [O] to [P, O].

    With bf16 rows and fp32 weights, only CHUNK rows of the weight are converted to bf16 at a time.
    No bf16 copy of fc6's weight is kept for the backward pass, and none is made of its gradient.
    This lowers the peak memory of a training step by 0.4 GB.
    """

    @staticmethod
    def forward(rows, weight, bias):
        products = [F.linear(rows, chunk.to(rows.dtype)) for chunk in weight.split(CHUNK)]
        return torch.cat(products, dim=1) + bias.to(rows.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        rows, weight, bias = inputs
        ctx.save_for_backward(rows, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        rows, weight = ctx.saved_tensors
        grad_rows = torch.zeros_like(rows, dtype=weight.dtype)
        grad_weight = torch.empty_like(weight)
        chunks = zip(
            weight.split(CHUNK), grad_weight.split(CHUNK), grad.split(CHUNK, 1), strict=True
        )
        for chunk, grad_chunk, g in chunks:
            # output = rows @ weight.T, so d loss / d rows = grad @ weight
            grad_rows += g @ chunk.to(rows.dtype)
            grad_chunk.copy_(g.t() @ rows)  # and d loss / d weight = grad.T @ rows
        return grad_rows.to(rows.dtype), grad_weight, grad.sum(0, dtype=weight.dtype)
