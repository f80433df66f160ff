"""Two processes on the CPU take the same steps as one, write once, and stop and resume together."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, log_of, same
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import train
from data import find
from support.checkpoint import read_tensors
from support.labels import IGNORE
from support.training.batches import Batches
from support.training.distributed import Ranks

TINY = (
    "--width 0.0625 --fc-channels 16 --crop none --weights none --workers 0 --device cpu "
    "--amp off --dropout 0 --batch-size 4 --epochs 2 --lr 0.02 --save-every 2"
).split()

# Both processes run train.py. After step `at`, a signal reaches only the second one; the first one
# writes the files. A process that is `seconds` late in a step is lost.
SCRIPT = """
import os, signal, sys
from datetime import timedelta
at, number, seconds, *argv = sys.argv[1:]
import support.training.distributed, train
support.training.distributed.STEP_TIMEOUT = timedelta(seconds=int(seconds))
def disturb(event, step):
    if (event, step) == ("step", int(at)) and os.environ["RANK"] == "1":
        os.kill(os.getpid(), int(number))
sys.exit(train.main(argv, disturb))
"""


class Alone(Ranks):
    """The ranks of one of several processes, without the others."""

    def __init__(self, rank, size):
        self.rank, self.size, self.first = rank, size, rank == 0


@pytest.fixture(scope="module")
def streets(scenes, tmp_path_factory):
    """The scenes at two sizes, with sky as a third class."""
    folder, data = tmp_path_factory.mktemp("data") / "streets", find(scenes)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i, sample in enumerate([*data.train, *data.val][1:]):
        label, image = data.read_label(sample.label), Image.open(sample.image)
        label[:8] = 2
        name, box = sample.image.name, (0, 0, 64 - 16 * (i % 2), 32)
        image.crop(box).save(folder / "images" / name)
        Image.fromarray(label).crop(box).save(folder / "masks" / name)
    return folder


@pytest.fixture(scope="module")
def two(streets, two_forks, tmp_path_factory):
    """A folder with two runs of two processes each: `whole`, started by torchrun, and `cut`, which
    was stopped and resumed. For each part of `cut`, also the exit statuses and the output.
    """
    folder = tmp_path_factory.mktemp("runs")

    def cut(at, *argv):
        both = two_forks(SCRIPT, at, int(signal.SIGTERM), 60, "--out", folder / "cut", *argv)
        return [process.wait() for process in both], both[0].said + both[1].said

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = ["--data", streets, "--out", folder / "whole", *TINY]
    with subprocess.Popen(
        [*torchrun, ROOT / "train.py", *run],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # as the forks have it
    ) as whole:  # in parallel, since torchrun starts slowly
        parts = cut(4, "--data", streets, *TINY), cut(0, "--resume")
        error = whole.communicate()[1]
    assert whole.returncode == 0, error[-3000:]
    return folder, *parts


@pytest.mark.slow
def test_two_processes_take_the_same_steps_as_one(two, streets, fork, tmp_path):
    """Nine images in batches of four: the last batch has none for the second process. Both enlarge
    and pad the images alike, though only the first has measured them.
    """
    out = two[0] / "whole"
    # In a fork, since another number of threads would round sums differently.
    program = "import sys, train; sys.exit(train.main(sys.argv[1:]))"
    assert fork(program, "--data", streets, "--out", tmp_path, *TINY).wait() == 0
    ours, alone = (read_tensors(folder / "last.pt") for folder in (out, tmp_path))
    assert ours["settings"]["resize"] == alone["settings"]["resize"] == 1.5
    for a, b in zip(log_of(out), log_of(tmp_path), strict=True):
        assert a["step"] == b["step"] and a["lr"] == b["lr"]
        assert a["train_loss"] == pytest.approx(b["train_loss"], rel=1e-4)
        assert a == pytest.approx(b, abs=5e-3)  # rounding may flip a few pixels near a tie
    for name, tensor in alone["model"].items():
        assert (ours["model"][name] - tensor).norm() <= 1e-5 * tensor.norm(), name


def test_two_processes_stop_and_resume_to_the_same_weights(two):
    out, (stopped, _), (ended, printed) = two
    assert stopped == [143, 143] and ended == [0, 0]
    cut, whole = out / "cut", out / "whole"
    assert log_of(cut) == log_of(whole)
    assert same(*(read_tensors(folder / "last.pt")["model"] for folder in (cut, whole)))
    # Only one process prints.
    assert printed.count("going on after step 4") == printed.count("best network") == 1


@pytest.mark.slow
def test_a_lost_process_ends_the_others(scenes, two_forks, tmp_path):
    """The second process hangs after its second step, as if its machine were cut off."""
    run = "--data", scenes, "--out", tmp_path / "run", *TINY
    first, second = two_forks(SCRIPT, 2, int(signal.SIGSTOP), 3, *run)
    try:
        assert first.wait() == 2 and "process 0 lost the others" in first.said
    finally:
        os.kill(second.process, signal.SIGKILL)
        second.wait()


def test_only_the_first_process_reports_an_error(scenes, two_forks, tmp_path):
    run = "--data", scenes, "--out", tmp_path / "run", *TINY, "--batch-size", "1"
    first, second = two_forks(SCRIPT, 0, 0, 60, *run)
    assert first.wait() == second.wait() == 2
    assert "--batch-size 1: must be at least 2, one image for each process" in first.said
    assert first.said.count("\n") == 1 and second.said == "" and not (tmp_path / "run").exists()


def test_odd_strides_of_dimensions_of_size_1_bring_no_warning(two_forks):
    """oneDNN gives a score layer such strides with two threads; cuDNN always does."""
    program = """
import torch
from support.training.distributed import Ranks
ranks, layer = Ranks(), torch.nn.Conv2d(64, 3, kernel_size=1, bias=False)
class Strides(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        return weight.clone()
    @staticmethod
    def backward(ctx, grad):
        return grad.contiguous().as_strided(grad.shape, (64, 1, 64, 64))
layer.forward = lambda x: Strides.apply(layer.weight) * x
net = torch.nn.parallel.DistributedDataParallel(layer, gradient_as_bucket_view=True)
net(torch.ones(())).sum().backward()
ranks.leave()
"""
    for process in two_forks(program):
        assert process.wait() == 0 and process.said == ""


@given(
    st.integers(1, 30), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3), st.integers(1, 3)
)
def test_shards_make_up_the_batches_of_one_process(count, size, batch_size, skip, epoch):
    """For any number of images and processes, any batch size, and from any step on. Images of
    different sizes are padded alike.
    """
    config = train.Config(batch_size=batch_size, resize=1.0, crop="none", flip="yes")
    sizes = [(32 + 16 * (i % 3), 32 + 32 * (i % 2)) for i in range(count)]

    def reader(i):
        return np.full((*sizes[i], 3), i, np.uint8), np.full(sizes[i], i, np.uint8)

    def batches_of(rank, size):
        ranks, device = Alone(rank, size), torch.device("cpu")
        return list(Batches(reader, range(count), sizes, epoch, config, ranks, 0, device, skip))

    whole = batches_of(0, 1)
    for rank in range(size):
        for (images, labels), mine in zip(whole, batches_of(rank, size), strict=True):
            if rank < len(images):
                assert torch.equal(images[rank::size], mine[0])
                assert torch.equal(labels[rank::size], mine[1])
            else:  # a filler, since the batch has no image for this process
                assert mine[0].shape == images[:1].shape and (mine[1] == IGNORE).all()
    if not skip:
        images = [int(label.min()) for _, labels in whole for label in labels]
        assert sorted(images) == list(range(count))
