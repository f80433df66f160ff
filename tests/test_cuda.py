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

TINY = [
    "--width",
    "0.0625",
    "--fc-channels",
    "16",
    "--crop",
    "32x64",
    "--weights",
    "none",
    "--lr",
    "0.01",
    "--workers",
    "1",
]


def test_batches_reach_the_gpu_as_they_reach_the_processor_and_in_order():
    rng = np.random.default_rng(0)
    pairs = [
        collate([(rng.integers(0, 256, (h, w, 3), np.uint8), rng.integers(0, 3, (h, w), np.uint8))])
        for h, w in rng.integers(1, 300, (20, 2))
    ]
    here, there = (list(on_device(pairs, torch.device(name))) for name in ("cpu", "cuda"))
    for (image, label), (image_there, label_there) in zip(here, there, strict=True):
        assert image_there.is_cuda and label_there.dtype == torch.int64
        assert torch.allclose(image_there.cpu(), image, atol=1e-5) and torch.equal(
            label_there.cpu(), label
        )


@pytest.mark.parametrize(
    "amp, pad, tolerance",
    [("off", 1, 1e-3), ("bf16", 1, 5e-2), ("bf16", 100, 5e-2), ("fp16", 1, 2e-2)],
)
def test_steps_on_the_gpu_are_those_of_the_processor(scenes, tmp_path, amp, pad, tolerance):
    """Up to the digits of fp32 (not TF32), bf16 and fp16: a few steps on the same views, and where
    they have led.
    """
    ends = []
    for device in ("cpu", "cuda"):
        assert (
            train.main(
                [
                    "--data",
                    str(scenes),
                    "--out",
                    str(tmp_path / device),
                    *TINY,
                    "--lr",
                    "0.002",
                    "--dropout",
                    "0",
                    "--pad",
                    str(pad),
                    "--batch-size",
                    "3",
                    "--epochs",
                    "1",
                    "--device",
                    device,
                    "--amp",
                    amp if device == "cuda" else "off",
                ]
            )
            == 0
        )
        ends.append(read_tensors(tmp_path / device / "last.pt"))
    here, there = ends
    assert there["log"][0]["train_loss"] == pytest.approx(
        here["log"][0]["train_loss"], rel=tolerance
    )
    for layer in (
        "score_fr",
        "score_pool4",
        "score_pool3",
    ):  # they start at zero: what they hold was learnt
        a, b = (end["model"][f"{layer}.weight"] for end in ends)
        assert a.norm() > 0 and (a - b).norm() <= 4 * tolerance * a.norm(), layer


def test_a_run_learns_resumes_and_moves_between_gpu_and_processor(scenes, tmp_path, capsys):
    argv = [
        "--data",
        str(scenes),
        "--out",
        str(tmp_path / "run"),
        *TINY,
        "--device",
        "cuda",
        "--amp",
        "off",
        "--epochs",
        "2",
    ]
    assert train.main(argv) == 0
    for device, epochs in (("cuda", 3), ("cpu", 4), ("cuda", 5)):
        assert (
            train.main(
                [
                    "--resume",
                    "--out",
                    str(tmp_path / "run"),
                    "--device",
                    device,
                    "--epochs",
                    str(epochs),
                ]
            )
            == 0
        )
    log = read_tensors(tmp_path / "run/last.pt")["log"]
    assert [row["epoch"] for row in log] == [1, 2, 3, 4, 5] and log[-1]["train_loss"] < log[0][
        "train_loss"
    ]
    capsys.readouterr()
    seen = []
    for device in ("cpu", "cuda"):
        assert (
            predict.main(
                [
                    str(tmp_path / "run/best.pt"),
                    "--data",
                    str(scenes),
                    "--out",
                    str(tmp_path / device),
                    "--device",
                    device,
                    "--amp",
                    "off",
                ]
            )
            == 0
        )
        seen.append(
            [
                np.asarray(Image.open(file))
                for file in sorted((tmp_path / device / "mask").iterdir())
            ]
        )
    assert np.mean([(a == b).mean() for a, b in zip(*seen, strict=True)]) > 0.99


@pytest.mark.parametrize(
    "more", [[], ["--recompute"], ["--recipe", "paper", "--crop", "none", "--lr", "1e-7"]]
)
def test_every_kind_of_run_ends_on_the_gpu(scenes, tmp_path, more):
    assert (
        train.main(
            [
                "--data",
                str(scenes),
                "--out",
                str(tmp_path),
                *TINY,
                "--device",
                "cuda",
                "--epochs",
                "1",
                *more,
            ]
        )
        == 0
    )


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_two_processes_train_with_a_gpu_each(scenes, tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            ROOT / "train.py",
            "--data",
            scenes,
            "--out",
            tmp_path / "run",
            *TINY,
            "--batch-size",
            "4",
            "--epochs",
            "1",
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run/best.pt").exists()
