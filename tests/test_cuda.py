"""Batches, steps, runs and predictions match those of the CPU. Skipped without a GPU."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import predict
import train
from support.checkpoint import read_tensors
from support.training.batches import Batches
from support.training.distributed import Ranks

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

TINY = (
    "--width 0.0625 --fc-channels 16 --crop 32x64 --weights none --lr 0.01 --workers 1 --epochs 1"
).split()


def trained(out, scenes, *options):
    assert train.main(["--data", str(scenes), "--out", str(out), *TINY, *options]) == 0
    return read_tensors(out / "last.pt")


@pytest.mark.parametrize("workers", [0, 3])
def test_batches_from_pinned_memory_match_those_of_the_cpu(workers):
    """Many sizes arrive in order, though each is copied during the computation before it."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 300, (20, 2))
    pictures = [
        (rng.integers(0, 256, (h, w, 3), np.uint8), rng.integers(0, 3, (h, w), np.uint8))
        for h, w in sizes
    ]
    config = train.Config(batch_size=2, resize=1.0, crop="none", flip="yes")
    args = pictures.__getitem__, range(20), sizes, 1, config, Ranks(), workers
    here, there = (Batches(*args, torch.device(name)) for name in ("cpu", "cuda:0"))
    busy = torch.zeros(2000, 2000, device="cuda")
    for (images, labels), (images_there, labels_there) in zip(here, there, strict=True):
        for _ in range(20):
            busy = busy @ busy
        assert images_there.is_cuda and labels_there.dtype == torch.int64
        assert torch.allclose(images_there.cpu(), images, atol=1e-5)
        assert torch.equal(labels_there.cpu(), labels)


@pytest.mark.parametrize(
    "amp, pad, tolerance",
    [("off", 1, 1e-3), ("bf16", 100, 5e-2), ("fp16", 1, 2e-2)],
)
def test_steps_match_those_of_the_cpu(scenes, tmp_path, amp, pad, tolerance):
    """Up to the rounding of fp32 (not TF32), bf16 and fp16."""
    few = ["--lr", "0.002", "--dropout", "0", "--batch-size", "3", "--pad", str(pad)]
    here = trained(tmp_path / "cpu", scenes, *few, "--device", "cpu", "--amp", "off")
    there = trained(
        tmp_path / "cuda", scenes, *few, "--device", "cuda", "--amp", amp, "--recompute"
    )
    losses = [saved["log"][0]["train_loss"] for saved in (there, here)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    # These layers start at zero, so all their values are learnt.
    for layer in ("score_fr", "score_pool4", "score_pool3"):
        a, b = (saved["model"][f"{layer}.weight"] for saved in (here, there))
        assert a.norm() > 0 and (a - b).norm() <= 4 * tolerance * a.norm(), layer


def test_a_run_learns_resumes_and_moves_between_devices(scenes, tmp_path):
    run, masks = tmp_path / "run", []
    trained(run, scenes, "--device", "cuda", "--amp", "off", "--epochs", "2")
    for device, epochs in (("cuda", "3"), ("cpu", "4"), ("cuda", "5")):
        go_on = ["--resume", "--out", str(run), "--device", device, "--epochs", epochs]
        assert train.main(go_on) == 0
    log = read_tensors(run / "last.pt")["log"]
    assert [row["epoch"] for row in log] == [1, 2, 3, 4, 5]
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        command = [run / "best.pt", "--data", scenes, "--out", out, "--device", device]
        assert predict.main([*map(str, command), "--amp", "off"]) == 0
        masks.append(np.stack([Image.open(file) for file in sorted(out.glob("mask/*"))]))
    assert (masks[0] == masks[1]).mean() > 0.99


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_two_processes_train_with_a_gpu_each(scenes, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = ["--data", scenes, "--out", tmp_path / "run", *TINY, "--batch-size", "4"]
    done = subprocess.run([*torchrun, ROOT / "train.py", *run], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run/best.pt").exists()
