"""A stand-in for a GPU: tensors that say they are on cuda:0, and compute on the processor. With it
the CUDA code runs anywhere.

It is strict about these things:

- an operation on tensors of both devices fails, and so does a fused update whose tensors differ in
their strides; - autocast converts what CUDA's does, as far as this project uses it; - `waits`
counts what makes the processor wait for the GPU: .item(), .cpu(), copies that are not from pinned
memory, and
  operations whose result has a size that depends on the numbers;
- each stream has a clock, and an event is a time on it. A tensor that was written on one stream,
and is used on another that has
  not waited for it, fails. Memory that another stream used, and that is freed without
  record_stream, is noted in `faults`.

What it cannot show: speed, cuDNN's choices and rounding, the memory of a GPU, NCCL, torch.compile,
and what other threads do with tensors of the GPU. A network that moves there gets new parameters;
on a GPU it keeps them.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import contextmanager
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
import torch.utils._device
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from support.device import copying_stream

CUDA, CPU = torch.device("cuda:0"), torch.device("cpu")
WAIT = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "is_nonzero",
    "bincount",
    "equal",
    "_unique2",
    "unique_dim",
}
CAST = {
    torch.conv2d,
    torch.conv_transpose2d,
    F.linear,
    torch.matmul,
}  # what autocast computes in 16 bits here


class Stream:
    def __init__(self, device=None, **more):
        self.now, self.seen = 0, {}  # its own clock, and how far it has waited for other streams

    def record_event(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        self.seen[event.stream] = max(self.seen.get(event.stream, -1), event.at)

    def has(self, stream, at):
        return stream is self or self.seen.get(stream, -1) >= at


class Event:
    def __init__(self, enable_timing=False, **more):
        self.stream = None

    def record(self, stream=None):
        self.stream = stream or gpu.current
        self.at, self.seconds = self.stream.now, time.perf_counter()

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1000 * (end.seconds - self.seconds)


class Memory:
    """A piece of the GPU's memory: which streams have used it, and of which the allocator knows, as
    of the first. `written` is the stream that wrote it last, and when.
    """

    def __init__(self):
        self.used, self.recorded = {gpu.current}, {gpu.current}

    def __del__(self):
        if self.used - self.recorded:
            gpu.faults.append(
                "memory was freed while another stream may still use it: record_stream is missing"
            )


class OnGpu(torch.Tensor):
    """A tensor without numbers on the device `meta`, which says it is on cuda:0. `inner` has the
    numbers.
    """

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
    """What the stand-in knows: the present stream, what has made the processor wait, and what was
    done wrong.
    """

    def __init__(self):
        self.default = self.current = Stream()
        self.memory, self.waits, self.faults, self.pinned = (
            WeakValueDictionary(),
            Counter(),
            [],
            set(),
        )


gpu = State()


def compute(function, args, kwargs):
    """One operation with a tensor of the GPU in it, or with its result there."""
    name = function.overloadpacket.__name__
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    there = [x for x in tensors if isinstance(x, OnGpu)]
    copy = name in ("_to_copy", "copy_")
    mixed = there and any(x.dim() and not isinstance(x, OnGpu) for x in tensors)
    if mixed and name in (
        "index",
        "index_put_",
    ):  # these take indices from the processor, and wait for them
        gpu.waits["indices from the processor"] += 1
    elif (
        mixed
        and not copy
        or there
        and name.endswith("_")
        and not copy
        and not isinstance(tensors[0], OnGpu)
        or any(x.is_meta and not isinstance(x, OnGpu) for x in tensors)
    ):
        raise RuntimeError(f"{function}: some tensors are on cuda:0 and some on the processor")
    if name == "_fused_sgd_" and any(
        len({x.stride() for x in same}) > 1 for same in zip(*(part for part in args[:3] if part))
    ):
        raise RuntimeError(
            "params, grads, and momentum_buffer_list must have same dtype, device, and layout"
        )
    for x in there:
        if not gpu.current.has(*x.memory.written):
            raise RuntimeError(f"{function}: reads what another stream may not have written yet")
        x.memory.used.add(gpu.current)

    goal = kwargs.get("device")
    result_there = (
        bool(there) if goal is None else torch.device(goal).type in ("cuda", "meta")
    )  # meta: PyTorch's own code
    if name == "copy_":
        result_there = isinstance(args[0], OnGpu)
    if copy:
        source = args[1] if name == "copy_" else args[0]
        note_wait(source, result_there, kwargs.get("non_blocking", False))
    elif (
        name in WAIT
        or name in ("index", "index_put_")
        and any(x.dtype == torch.bool for x in there[1:])
    ):
        gpu.waits[name] += 1

    inner = {id(x.inner): x for x in there}
    plain = tree_map(
        lambda x: x.inner if isinstance(x, OnGpu) else CPU if isinstance(x, torch.device) else x,
        (args, kwargs),
    )
    if plain[1].get("device") is not None:
        plain[1]["device"] = CPU
    result = function(*plain[0], **plain[1])
    gpu.current.now += 1
    for x in there if name.endswith("_") else ():
        x.memory.written = gpu.current, gpu.current.now

    def outer(x):
        if not isinstance(x, torch.Tensor) or not result_there:
            return x
        x = inner.get(id(x)) if id(x) in inner else OnGpu(x)
        if not hasattr(x.memory, "written"):
            x.memory.written = gpu.current, gpu.current.now
        return x

    return tree_map(outer, result)


def note_wait(source, to_gpu, non_blocking):
    from_gpu = isinstance(source, OnGpu)
    if from_gpu and not to_gpu:
        if non_blocking:
            raise RuntimeError(
                "a copy to the processor that nobody waits for: its numbers may not be there yet"
            )
        gpu.waits["copy to the processor"] += 1
    elif to_gpu and not from_gpu and not non_blocking:
        gpu.waits["copy that was waited for"] += 1
    elif (
        to_gpu
        and not from_gpu
        and source.numel() > 1000
        and source.untyped_storage().data_ptr() not in gpu.pinned
    ):
        gpu.waits["copy from memory that is not pinned"] += 1


class Dispatch(TorchDispatchMode):
    """Sees operations that have no tensor of the GPU yet: torch.zeros(3, device="cuda"),
    tensor.to("cuda").
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.device(kwargs.get("device") or "cpu").type == "cuda" or any(
            isinstance(x, OnGpu) for x in tree_leaves((args, kwargs))
        ):
            return compute(function, args, kwargs)
        return function(*args, **kwargs)


class Functions(TorchFunctionMode):
    """autocast; and functions that would put a plain number on the device `meta`, where it is lost."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.where and isinstance(args[0], OnGpu):
            kind = next(x.dtype for x in args[1:] if isinstance(x, torch.Tensor))
            args = [
                x if isinstance(x, torch.Tensor) else torch.full((), x, dtype=kind, device=CUDA)
                for x in args
            ]
        if (
            function is torch.Tensor.__setitem__
            and isinstance(args[0], OnGpu)
            and not isinstance(args[2], torch.Tensor)
        ):
            args = [*args[:2], torch.full((), args[2], dtype=args[0].dtype, device=CUDA)]
        if (
            function in CAST
            and torch.is_autocast_enabled("cuda")
            and any(isinstance(x, OnGpu) for x in args)
        ):
            kind = torch.get_autocast_dtype("cuda")
            args = [
                x.to(kind) if isinstance(x, OnGpu) and x.is_floating_point() else x for x in args
            ]
        return function(*args, **(kwargs or {}))


@contextmanager
def standin(monkeypatch, capability=(9, 0)):
    """Within it there is one GPU. Gives its State."""
    gpu.__init__()
    copying_stream.cache_clear()
    torch.utils._device._device_constructors()  # a list of functions that is made once: with the true torch.empty
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
        return tensor

    for name, value in {
        "is_available": lambda: True,
        "_lazy_init": lambda: None,
        "set_device": lambda device: None,
        "get_device_capability": lambda device=None: capability,
        "is_bf16_supported": lambda *more: True,
        "Stream": Stream,
        "Event": Event,
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
        copying_stream.cache_clear()
        torch.__future__.set_overwrite_module_params_on_conversion(before)
