"""Devices by name; and Apple's GPUs as far as a stand-in shows them, since none was at hand."""

import ctypes
import os
import re
from pathlib import Path

import pytest
import torch
from conftest import small

from support import device as module
from support.console import InputError
from support.device import (
    autocast_for,
    keep_memory,
    on_device,
    pick_device,
    prepare_prediction,
    suited_amp,
)

MPS = torch.device("mps")


def test_apples_gpu_is_taken_by_name_alone(monkeypatch):
    zeros = torch.zeros
    monkeypatch.setattr(
        torch,
        "zeros",
        lambda *size, device=None: (
            zeros(*size) if str(device) == "mps" else zeros(*size, device=device)
        ),
    )
    assert pick_device("mps") == MPS
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("auto").type in ("cpu", "cuda")


def test_a_device_that_is_not_there_is_said(monkeypatch):
    if not torch.backends.mps.is_available():
        with pytest.raises(InputError, match="--device mps: PyTorch has no such device here"):
            pick_device("mps")
    with pytest.raises(InputError, match="--device meta: the devices here are cpu, cuda and mps"):
        pick_device("meta")


def test_apples_gpu_computes_in_fp32_without_streams_of_cuda(monkeypatch):
    """The batches go to the CPU instead; any use of a stream or of pinned memory would fail."""
    for name in ("Stream", "current_stream", "stream"):
        monkeypatch.setattr(torch.cuda, name, lambda *args: pytest.fail("a stream of CUDA"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pytest.fail("pinned memory"))
    monkeypatch.setattr(
        "ctypes.CDLL", lambda name: pytest.fail("settings for the memory of a processor")
    )
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda tensor, place, *more: tensor if place == MPS else to(tensor, place, *more),
    )
    monkeypatch.setattr(module, "normalise", lambda images: images.float())
    batch = torch.ones(1, 3, 4, 5, dtype=torch.uint8), torch.zeros(1, 4, 5, dtype=torch.uint8)
    ((images, labels),) = on_device([batch], MPS)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64
    assert suited_amp("auto", MPS) == "off" and suited_amp("bf16", MPS) == "bf16"
    with autocast_for("off", MPS)():
        assert not torch.is_autocast_enabled("mps")
    assert keep_memory(MPS)((1, 3, 4, 5)) is None


def test_prediction_on_a_named_device_takes_the_network_there(monkeypatch):
    net, places = small(), []
    monkeypatch.setattr(net, "to", lambda *place: places.append(place) or net)
    prepare_prediction(net, "auto", MPS)
    assert places == [(MPS, None)]


def test_what_reading_a_network_took_goes_back_to_the_system_after_the_first_picture():
    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    give_back = keep_memory(torch.device("cpu"))
    if (
        not Path("/proc/self/status").exists()
        or not hasattr(ctypes.CDLL(None), "malloc_trim")
        or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    ):
        pytest.skip("needs Linux's usual C library, with its usual settings")
    pieces = [torch.ones(2**18) for _ in range(200)]  # 200 MiB, in pieces that the process keeps
    held = resident()
    del pieces
    assert held - resident() < 100 * 2**20
    give_back((1, 3, 4, 5))
    assert held - resident() > 150 * 2**20
