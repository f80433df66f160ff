"""A stand-in for a GPU: tensors that claim to be on cuda:0 but compute on the CPU. With it, the
CUDA code runs anywhere.

It checks the following:

- An operation on tensors of both devices fails, and so does a fused update of tensors with
  different strides.
- Autocast converts the same operations as on CUDA, as far as this project uses them.
- `waits` counts operations that make the CPU wait for the GPU: .item(), .cpu(), copies from memory
  that is not pinned, and operations whose output size depends on the values.
- Each stream has a clock, and an event is a time on it. Using a tensor on a stream fails unless it
  has waited for the stream that wrote the tensor. `faults` lists memory that is freed while another
  stream may still use it (`record_stream`).
- `pinning` has the threads that have allocated pinned memory, `chosen` those that have set a GPU.

It cannot test speed, cuDNN's choices and rounding, GPU memory or NCCL. A network that is moved to
it gets new parameters; on a GPU it keeps them.
"""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import contextmanager
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
import torch.utils._device
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from support.device import copy_stream

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
WAIT = {
    *("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "bincount", "equal"),
    *("_unique2", "unique_dim"),
}
# Operations that autocast computes in 16 bits.
CAST = {torch.conv2d, torch.conv_transpose2d, F.linear, torch.matmul}


class Stream:
    def __init__(self, device=None):
        self.now, self.seen = 0, {}  # its own clock, and how far it has waited for other streams

    def record_event(self):
        return self, self.now

    def wait_event(self, event):
        stream, at = event
        self.seen[stream] = max(self.seen.get(stream, -1), at)

    def has(self, stream, at):
        return stream is self or self.seen.get(stream, -1) >= at


class Memory:
    """A block of GPU memory: the streams that used it, and those that the allocator knows of.
    `written` is the last stream that wrote it, and the time.
    """

    def __init__(self):
        self.used, self.recorded = {gpu.current}, {gpu.current}
        self.write()

    def write(self):
        self.written = gpu.current, gpu.current.now

    def __del__(self):
        if self.used - self.recorded:
            gpu.faults.append("memory is freed while another stream may use it: no record_stream")


class OnGpu(torch.Tensor):
    """A tensor on the device `meta` that claims to be on cuda:0. `inner` holds the values."""

    @staticmethod
    def __new__(cls, inner):
        shape = torch.empty_strided(inner.shape, inner.stride(), dtype=inner.dtype, device="meta")
        return torch.Tensor._make_subclass(cls, shape, False, device_for_backend_keys=CUDA)

    def __init__(self, inner):
        self.inner = inner
        self.memory = gpu.memory.setdefault(inner.untyped_storage().data_ptr(), Memory())

    device = property(lambda self: CUDA)
    is_cuda, is_meta = property(lambda self: True), property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return compute(function, args, kwargs or {})

    def record_stream(self, stream):
        self.memory.recorded.add(stream)


class State:
    """The current stream, the waits of the CPU, and the faults."""

    def __init__(self):
        self.default = self.current = Stream()
        self.memory, self.waits, self.faults = WeakValueDictionary(), Counter(), []
        self.pinned = set()  # addresses of pinned memory
        self.pinning, self.chosen = set(), set()  # threads


gpu = State()


def compute(function, args, kwargs):
    """One operation with an input or its result on the GPU."""
    name = function.overloadpacket.__name__
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, OnGpu)]
    copy, in_place = name in ("_to_copy", "copy_"), name.endswith("_")
    if not copy:
        check_devices(function, name, tensors, there)
    if name == "_fused_sgd_":
        for same in zip(*(part for part in args[:3] if part), strict=True):
            if len({x.stride() for x in same}) > 1:
                raise RuntimeError(f"{function}: weights, gradients and momenta differ in strides")
    for x in there:
        if not gpu.current.has(*x.memory.written):
            raise RuntimeError(f"{function}: reads what another stream may not have written yet")
        x.memory.used.add(gpu.current)

    # PyTorch's own code requests the device meta.
    goal = kwargs.get("device")
    to_gpu = bool(there) if goal is None else torch.device(goal).type in ("cuda", "meta")
    if name == "copy_":
        to_gpu = isinstance(args[0], OnGpu)
    if copy:
        note_copy(args[1] if name == "copy_" else args[0], to_gpu, kwargs.get("non_blocking"))
    elif name in WAIT or name.startswith("index") and any(x.dtype == torch.bool for x in there[1:]):
        gpu.waits[name] += 1

    inner = {id(x.inner): x for x in there}
    args, kwargs = tree_map(
        lambda x: x.inner if isinstance(x, OnGpu) else CPU if isinstance(x, torch.device) else x,
        (args, kwargs),
    )
    result = function(*args, **kwargs)
    gpu.current.now += 1
    for x in there if in_place else ():
        x.memory.write()

    def outer(x):
        if not isinstance(x, torch.Tensor) or not to_gpu:
            return x
        return inner[id(x)] if id(x) in inner else OnGpu(x)

    return tree_map(outer, result)


def check_devices(function, name, tensors, there):
    here = [x for x in tensors if not isinstance(x, OnGpu)]
    if there and any(x.dim() for x in here) and name.startswith("index"):
        gpu.waits["indices from the processor"] += 1  # allowed
    elif (
        any(x.is_meta for x in here)
        or there
        and (any(x.dim() for x in here) or here and name.endswith("_") and tensors[0] is here[0])
    ):
        raise RuntimeError(f"{function}: some tensors are on cuda:0 and some on the processor")


def note_copy(source, to_gpu, non_blocking):
    if isinstance(source, OnGpu) == to_gpu:
        return
    if not to_gpu:
        if non_blocking:
            raise RuntimeError("a copy to the processor whose numbers may not be there yet")
        gpu.waits["copy to the processor"] += 1
    elif not non_blocking:
        gpu.waits["copy to the GPU"] += 1
    elif source.numel() > 1000 and source.untyped_storage().data_ptr() not in gpu.pinned:
        gpu.waits["copy from memory that is not pinned"] += 1


class Dispatch(TorchDispatchMode):
    """Catches operations without an input on the GPU: torch.zeros(3, device="cuda"),
    tensor.to("cuda").
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = any(isinstance(x, OnGpu) for x in tree_leaves((args, kwargs)))
        if there or torch.device(kwargs.get("device") or "cpu").type == "cuda":
            return compute(function, args, kwargs)
        return function(*args, **kwargs)


class Functions(TorchFunctionMode):
    """Autocast, and functions that would lose a plain number by putting it on `meta`."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        def number(x, dtype):
            return x if isinstance(x, torch.Tensor) else torch.full((), x, dtype=dtype, device=CUDA)

        first, args = any(isinstance(x, OnGpu) for x in args[:1]), list(args)
        if function is torch.where and first:
            dtype = next(x.dtype for x in args[1:] if isinstance(x, torch.Tensor))
            args = [number(x, dtype) for x in args]
        if function is torch.Tensor.__setitem__ and first:
            args[2] = number(args[2], args[0].dtype)
        if function in CAST and first and torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            args = [
                x.to(dtype) if isinstance(x, OnGpu) and x.is_floating_point() else x for x in args
            ]
        return function(*args, **(kwargs or {}))


@contextmanager
def standin(monkeypatch, capability=(9, 0)):
    """Simulate one GPU inside the with block; yields its State."""
    gpu.__init__()
    copy_stream.cache_clear()
    # PyTorch makes this list of functions only once; it must hold the real torch.empty.
    torch.utils._device._device_constructors()
    empty = torch.empty

    @contextmanager
    def stream(chosen):
        before, gpu.current = gpu.current, chosen
        yield
        gpu.current = before

    def pinning(*size, pin_memory=False, **more):
        tensor = empty(*size, **more)
        if pin_memory:
            gpu.pinned.add(tensor.untyped_storage().data_ptr())
            gpu.pinning.add(threading.get_ident())
        return tensor

    for name, value in {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "set_device": lambda device: gpu.chosen.add(threading.get_ident()),
        "get_device_capability": lambda device=None: capability,
        "is_bf16_supported": lambda *more: True,
        "Stream": Stream,
        "current_stream": lambda device=None: gpu.current,
        "stream": stream,
        "manual_seed_all": lambda seed: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch, "empty", pinning)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with Dispatch(), Functions():
            yield gpu
    finally:
        copy_stream.cache_clear()
        torch.__future__.set_overwrite_module_params_on_conversion(before)
