"""Two processes on the CPU do what one does: the same steps, the same counts, one writer, and they
stop and resume together.
"""

import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, log_of
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import train
from data import find, read_kitti_label
from fcn import FCN8s, cross_entropy
from support.checkpoint import read_tensors
from support.labels import IGNORE
from support.training.batches import training_batches
from support.training.distributed import Ranks

TINY = [
    "--width",
    "0.0625",
    "--fc-channels",
    "16",
    "--crop",
    "16x32",
    "--weights",
    "none",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--amp",
    "off",
    "--dropout",
    "0",
    "--batch-size",
    "4",
    "--epochs",
    "2",
    "--lr",
    "0.02",
    "--save-every",
    "2",
]

# What runs twice: train.py. At the step `at` SIGTERM reaches one process only, and not the one that
# writes.
SCRIPT = """
import os, signal, sys
at, *argv = sys.argv[1:]
import train
cross_entropy, calls = train.cross_entropy, []
def disturbed(*args):
    calls.append(1)
    if len(calls) == int(at) and os.environ["RANK"] == "1":
        signal.raise_signal(signal.SIGTERM)
    return cross_entropy(*args)
train.cross_entropy = disturbed
sys.exit(train.main(argv))
"""


class Share(Ranks):
    """One of several processes, without the others."""

    def __init__(self, rank, size):
        self.rank, self.size, self.first = rank, size, rank == 0


@pytest.fixture(scope="module")
def two(scenes, two_forks, tmp_path_factory):
    """A folder with two runs in two processes, `whole`, which torchrun has started, and `cut`; of
    the latter the statuses and what it printed until and after the cut. They train on `streets`:
    the scenes with sky, which makes three classes.
    """
    folder = tmp_path_factory.mktemp("ranks")
    streets = folder / "streets"
    for part in ("images", "masks"):
        (streets / part).mkdir(parents=True)
    for sample in [*find(scenes).train, *find(scenes).val]:
        label = read_kitti_label(sample.label)
        label[:8] = 2
        Image.fromarray(label).save(streets / "masks" / sample.image.name)
        shutil.copy(sample.image, streets / "images")

    def cut(at, *argv):
        both = two_forks(SCRIPT, at, "--out", folder / "cut", *argv)
        return [process.wait() for process in both], both[0].said + both[1].said

    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            ROOT / "train.py",
            "--data",
            streets,
            "--out",
            folder / "whole",
            *TINY,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as whole:  # as the forks have it; meanwhile, since starting takes long
        runs = cut(4, "--data", streets, *TINY), cut(0, "--resume")
        error = whole.communicate()[1]
    assert whole.returncode == 0, error[-3000:]
    return folder, *runs


def test_two_processes_take_the_steps_of_one_with_the_same_batch(two, tmp_path):
    """Nine images in batches of four: in the last there is none for the second process. All see the
    images enlarged, though the first process alone has measured how large they are.
    """
    out, *_ = two
    assert train.main(["--data", str(out / "streets"), "--out", str(tmp_path), *TINY]) == 0
    assert read_tensors(tmp_path / "last.pt")["settings"]["scale"] == 1.5
    for ours, alone in zip(log_of(out / "whole"), log_of(tmp_path), strict=True):
        for name in ("epoch", "step", "lr"):
            assert ours[name] == alone[name]
        assert ours["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-4)
        assert ours == pytest.approx(
            alone, abs=5e-3
        )  # of classes near a tie rounding may turn a few
    a, b = (
        torch.load(folder / "last.pt", weights_only=True)["model"]
        for folder in (out / "whole", tmp_path)
    )
    assert all(torch.allclose(a[name], b[name], rtol=1e-2, atol=1e-4) for name in a)


def test_two_processes_stop_together_and_resume_to_the_same_weights(two):
    out, (stopped, _), (ended, printed) = two
    assert stopped == [143, 143] and ended == [0, 0]
    assert log_of(out / "cut") == log_of(out / "whole")
    a, b = (
        torch.load(out / name / "last.pt", weights_only=True)["model"] for name in ("cut", "whole")
    )
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert (
        printed.count("going on after step 4") == printed.count("best network") == 1
    )  # one speaks


def test_a_process_whose_machine_is_lost_ends_the_others_after_a_while_and_they_say_so(
    scenes, two_forks, tmp_path
):
    """The second process stands still at its third step, as if its machine were cut off. The first
    waits two seconds.
    """
    script = """
import os, signal, sys
from datetime import timedelta
import support.training.distributed
support.training.distributed.PROMPT = timedelta(seconds=2)
import train
function, calls = train.cross_entropy, []
def lost(*args):
    calls.append(1)
    if len(calls) == 3 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGSTOP)
    return function(*args)
train.cross_entropy = lost
sys.exit(train.main(sys.argv[1:]))
"""
    first, second = two_forks(script, "--data", scenes, "--out", tmp_path / "run", *TINY)
    try:
        assert first.wait() == 2 and "process 0 lost the others" in first.said
    finally:
        os.kill(second.process, signal.SIGKILL)
        second.wait()


def test_fewer_images_in_a_batch_than_processes_are_refused(scenes, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "Ranks", lambda: Share(0, 8))
    assert train.main(["--data", str(scenes), "--out", str(tmp_path / "run"), *TINY]) == 2
    error = capsys.readouterr().err
    assert "--batch-size 4" in error and "8 processes" in error and not (tmp_path / "run").exists()


@given(
    st.integers(1, 30), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(1, 3)
)
def test_each_image_is_used_once_per_epoch_and_every_process_takes_every_step(
    count, size, batch_size, done, epoch
):
    """For any numbers of images, processes and images in a batch, from any step on."""
    settings = {
        "seed": 3,
        "batch_size": batch_size,
        "augment": True,
        "colours": True,
        "flip": "yes",
        "scale": 1.0,
    }

    def reader(i):
        return np.full((8, 8, 3), i, np.uint8), np.full((8, 8), i, np.uint8)

    def labels_of(ranks):
        return [
            labels
            for _, labels in training_batches(
                reader, list(range(count)), epoch, None, settings, ranks, 0, done=done
            )
        ]

    alone = labels_of(Share(0, 1))
    shares = [labels_of(Share(rank, size)) for rank in range(size)]
    assert all(len(share) == len(alone) for share in shares)
    used = [
        [[int(label.min()) for label in batch] for batch in share] for share in [alone, *shares]
    ]  # the rest is filled
    for whole, *parts in zip(*used, strict=True):
        assert sorted(i for part in parts for i in part if i != IGNORE) == sorted(whole)
    if not done:
        assert sorted(i for whole in used[0] for i in whole) == list(range(count))


@given(st.integers(1, 4), st.integers(0, 2**31))
def test_gradients_of_the_shares_of_a_batch_add_up_to_those_of_the_batch(size, seed):
    generator = torch.Generator().manual_seed(seed)
    net = FCN8s(3, width=1 / 32, fc_channels=4, dropout=0).double()
    torch.nn.init.normal_(net.score_fr.weight, generator=generator)
    images = torch.randn(4, 3, 16, 24, generator=generator).double()
    labels = torch.randint(0, 3, (4, 16, 24), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.3] = IGNORE
    labels[3] = IGNORE  # a share without a pixel that counts
    pixels = (labels != IGNORE).sum()
    cross_entropy(net(images), labels).backward()
    whole = [p.grad.clone() for p in net.parameters() if p.requires_grad]
    net.zero_grad()
    for rank in range(size):
        cross_entropy(net(images[rank::size]), labels[rank::size], pixels).backward()
    for a, p in zip(whole, (p for p in net.parameters() if p.requires_grad), strict=True):
        assert torch.allclose(a, p.grad, rtol=1e-4, atol=1e-6)
