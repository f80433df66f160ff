"""On a GPU as on the processor: the same batches, steps, runs and predictions. Skipped where there
is no GPU.
"""

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
from support.device import on_device
from support.training.batches import collate

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")

TINY = "--width 0.0625 --fc-channels 16 --weights none --lr 0.01 --workers 1".split()


def run(out, *options):
    assert train.main([str(option) for option in ("--out", out, *options)]) == 0
    return read_tensors(out / "last.pt")


def test_batches_reach_the_gpu_as_they_reach_the_processor():
    rng = np.random.default_rng(0)
    pairs = [
        collate([(rng.integers(0, 256, (h, w, 3), np.uint8), rng.integers(0, 3, (h, w), np.uint8))])
        for h, w in rng.integers(1, 300, (20, 2))
    ]
    here, there = (list(on_device(pairs, torch.device(name))) for name in ("cpu", "cuda"))
    for (image, label), (image_there, label_there) in zip(here, there, strict=True):
        assert image_there.is_cuda and label_there.dtype == torch.int64
        assert torch.allclose(image_there.cpu(), image, atol=1e-5)
        assert torch.equal(label_there.cpu(), label)


@pytest.mark.parametrize(
    "amp, pad, tolerance",
    [("off", 1, 1e-3), ("bf16", 1, 5e-2), ("bf16", 100, 5e-2), ("fp16", 1, 2e-2)],
)
def test_steps_on_the_gpu_are_those_of_the_processor(scenes, tmp_path, amp, pad, tolerance):
    """Up to the digits of fp32 (not TF32), bf16 and fp16, after a few steps on the same views."""
    options = ["--data", scenes, *TINY, "--lr", 0.002, "--dropout", 0, "--pad", pad]
    options += ["--batch-size", 3, "--epochs", 1]
    here = run(tmp_path / "cpu", *options, "--device", "cpu", "--amp", "off")
    there = run(tmp_path / "cuda", *options, "--device", "cuda", "--amp", amp)
    losses = [end["log"][0]["train_loss"] for end in (here, there)]
    assert losses[1] == pytest.approx(losses[0], rel=tolerance)
    for layer in ("score_fr", "score_pool4", "score_pool3"):  # they start at zero
        a, b = (end["model"][f"{layer}.weight"] for end in (here, there))
        assert a.norm() > 0 and (a - b).norm() <= 4 * tolerance * a.norm(), layer


def test_a_run_moves_between_gpu_and_processor(scenes, tmp_path):
    options = ["--data", scenes, *TINY, "--device", "cuda", "--amp", "off", "--epochs", 2]
    run(tmp_path / "run", *options)
    for device, epochs in (("cuda", 3), ("cpu", 4), ("cuda", 5)):
        end = run(tmp_path / "run", "--resume", "--device", device, "--epochs", epochs)
    log = end["log"]
    assert [row["epoch"] for row in log] == [1, 2, 3, 4, 5]
    assert log[-1]["train_loss"] < log[0]["train_loss"]
    masks = []
    for device in ("cpu", "cuda"):
        out = tmp_path / device
        options = [tmp_path / "run/best.pt", "--data", scenes, "--out", out, "--device", device]
        assert predict.main([*map(str, options), "--amp", "off"]) == 0
        masks.append([np.asarray(Image.open(file)) for file in sorted((out / "mask").iterdir())])
    assert np.mean([(a == b).mean() for a, b in zip(*masks, strict=True)]) > 0.99


@pytest.mark.parametrize("more", [[], ["--recompute"], ["--recipe", "paper", "--lr", "1e-7"]])
def test_every_kind_of_run_ends_on_the_gpu(scenes, tmp_path, more):
    run(tmp_path / "run", "--data", scenes, *TINY, "--device", "cuda", "--epochs", 1, *more)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_two_processes_train_with_a_gpu_each(scenes, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [ROOT / "train.py", "--data", scenes, "--out", tmp_path / "run", *TINY]
    command += ["--batch-size", "4", "--epochs", "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run/best.pt").exists()
