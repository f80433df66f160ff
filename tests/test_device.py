"""Devices by name. Apple's GPUs are tested with a stand-in, since we had none."""

import ctypes
import os
import re
from pathlib import Path

import pytest
import torch

from support.console import InputError
from support.device import autocast_for, default_amp, default_workers, pick_device, tune_malloc

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


def test_apples_gpu_is_used_only_when_named(monkeypatch):
    zeros = torch.zeros

    def zeros_there(*size, device=None):
        return zeros(*size) if str(device) == "mps" else zeros(*size, device=device)

    monkeypatch.setattr(torch, "zeros", zeros_there)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps") == MPS
    assert pick_device("auto").type in ("cpu", "cuda")
    assert default_amp("auto", MPS) == "off" and default_amp("bf16", MPS) == "bf16"
    with autocast_for("off", MPS)():
        assert not torch.is_autocast_enabled("mps")
    assert tune_malloc(MPS)((1, 3, 4, 5)) is None


@pytest.mark.parametrize("name", ["meta", "tpu", "cuda:99"])
def test_a_missing_device_is_reported_in_one_line(name):
    with pytest.raises(InputError, match=f"--device {name}: ") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "workers, device, processes, wanted",
    [
        (0, CUDA, 1, 0),
        ("auto", CPU, 1, 2),
        ("auto", CUDA, 2, 6),
        ("auto", CUDA, 8, 2),
    ],
)
def test_default_workers_depend_on_device_and_cores(
    monkeypatch, workers, device, processes, wanted
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(12), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers(workers, device) == wanted


def test_memory_for_loading_is_freed_after_the_first_picture():
    def resident():
        return int(re.search(r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    if (
        not Path("/proc/self/status").exists()
        or not hasattr(ctypes.CDLL(None), "malloc_trim")
        or any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    ):
        pytest.skip("needs Linux's usual C library, with its usual settings")
    trim_memory = tune_malloc(CPU)
    pieces = [torch.ones(2**18) for _ in range(200)]  # 200 MiB that malloc keeps after use
    held = resident()
    del pieces
    assert held - resident() < 100 * 2**20
    trim_memory((1, 3, 4, 5))
    assert held - resident() > 150 * 2**20
