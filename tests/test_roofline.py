"""docs/gpu.md: its operations are those of the network, its bytes those of the tensors, and the page is the command's."""

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fcn import FCN8s
from support.roofline import COMPUTE, MEMORY, START, Operation, operations, page
from support.start import freeze


@given(batch=st.integers(1, 8), height=st.integers(33, 400), width=st.integers(33, 400), classes=st.integers(1, 30),
       learnt=st.booleans(), training=st.booleans(), frozen=st.integers(0, 3))
def test_floating_point_operations_are_those_that_pytorch_counts(batch, height, width, classes, learnt, training, frozen):
    with torch.device("meta"):
        net, image = FCN8s(classes, learn_upsampling=learnt, dropout=0), torch.empty(batch, 3, height, width)
    freeze(net.vgg, frozen)
    with torch.set_grad_enabled(training), FlopCounterMode(display=False) as counter:
        scores = net.train(training)(image)
        if training:
            scores.sum().backward()
    assert sum(o.flop for o in operations(net, batch, (height, width), training)) == counter.get_total_flops()


class Bytes(TorchDispatchMode):
    """Adds up what every operation reads and writes; a view moves nothing."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.total += sum(x.nbytes for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor))
        return result


@given(height=st.integers(100, 400), width=st.integers(100, 400), classes=st.integers(2, 20))
def test_bytes_of_a_prediction_are_those_of_the_operations_that_pytorch_runs(height, width, classes):
    """But for what cuDNN does by itself: a convolution's bias, and its weight in another layout."""
    with torch.device("meta"):
        net, image = FCN8s(classes).bfloat16().eval(), torch.empty(1, 3, height, width, dtype=torch.bfloat16)
    net.set_skip_scale(0.5, 0.5)
    with torch.no_grad(), Bytes() as bytes:
        net(image.to(memory_format=torch.channels_last))
    ours = sum(o.bytes for o in operations(net, 1, (height, width), False)
               if o.layer not in ("image", "result") and o.what not in ("bias", "weight to channels_last"))
    assert ours == pytest.approx(bytes.total, rel=0.05)


def test_a_layers_bytes_are_those_of_its_tensors():
    with torch.device("meta"):
        net = FCN8s(2)
    pool = next(o for o in operations(net, 2, (64, 96), False) if o.layer == "pool1")
    assert pool.bytes == 2 * 64 * (64 * 96 * 2 + 32 * 48 * (2 + 8))
    convolution = next(o for o in operations(net, 2, (64, 96), False) if o.layer == "conv1_2" and o.what == "forward")
    assert convolution.bytes == 2 * (2 * 64 * 64 * 96 * 2 + 64 * 64 * 9)
    update = next(o for o in operations(net, 1, (64, 96), True) if o.what == "fused SGD")
    assert update.bytes == 20 * sum(p.numel() for p in net.parameters() if p.requires_grad)


@pytest.mark.parametrize("flop, size, bound", [(COMPUTE, MEMORY / 2, "compute"), (COMPUTE / 2, MEMORY, "memory"), (1, 1, "start")])
def test_an_operation_takes_the_longest_of_its_times(flop, size, bound):
    operation = Operation("", "", flop, size)
    assert operation.bound == bound and operation.seconds == (START if bound == "start" else 1)


def test_the_page_is_what_the_command_prints():
    assert (ROOT / "docs/gpu.md").read_text() == page()
