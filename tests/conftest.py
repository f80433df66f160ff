"""Shared by the tests: hypothesis without a deadline (machines differ), real files, and small data
sets, networks and runs.
"""

import csv
import functools
import itertools
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from fcn import FCN8s
from support.console import InputError
from support.datasets import synthetic

settings.register_profile("project", deadline=None, max_examples=20, derandomize=True)
settings.load_profile("project")

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"  # real files, if they are there


@pytest.fixture(autouse=True)
def same_seed_for_every_test():
    torch.manual_seed(0)


@pytest.fixture
def command(monkeypatch, capsys):
    """command("fcn.py", ...) runs a script like `python fcn.py ...`: (exit status, standard output,
    standard error). It stays in this process, since a new one takes seconds to import PyTorch.
    """

    def run(script, *arguments):
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        capsys.readouterr()
        status = 0
        try:
            with warnings.catch_warnings():
                # The module may be imported already.
                warnings.simplefilter("ignore", RuntimeWarning)
                if script.startswith(("support/", "tools/")):
                    module = script.removesuffix(".py").replace("/", ".")
                    runpy.run_module(module, run_name="__main__", alter_sys=True)
                else:
                    runpy.run_path(str(ROOT / script), run_name="__main__")
        except SystemExit as end:
            status = end.code or 0
        return status, *capsys.readouterr()

    return run


# Runs each program in its own process, a fork of one that has imported PyTorch and train.py but
# computed nothing: forking is safe while there are no other threads. Optimizers need torch._dynamo,
# and importing it takes seconds. Each line of input is a program, or a process to wait for.
FORKER = """
import json, os, sys, traceback
sys.path.insert(0, sys.argv[1])
import torch._dynamo, train
print("ready", flush=True)
for line in sys.stdin:
    task = json.loads(line)
    if "wait" in task:
        print(os.waitstatus_to_exitcode(os.waitpid(task["wait"], 0)[1]), flush=True)
        continue
    child = os.fork()
    if child:
        print(child, flush=True)
        continue
    os.environ.update(task["env"])
    said = os.open(task["said"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1), os.dup2(said, 2)
    sys.argv[1:], status = task["arguments"], 0
    try:
        exec(task["program"], {"__name__": "__main__"})
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    os._exit(status)
"""


class Fork:
    """A program running in its own process; `said` is its output."""

    def __init__(self, ask, program, arguments, said, env):
        self.ask, self.file = ask, said
        arguments = list(map(str, arguments))
        self.process = ask(dict(program=program, arguments=arguments, said=str(said), env=env))

    def wait(self):
        """The exit status, or minus the number of the signal that ended the process."""
        return self.ask({"wait": self.process})

    @property
    def said(self):
        return self.file.read_text()


@pytest.fixture(scope="session")
def fork(tmp_path_factory):
    """fork(program, *arguments, **environment) starts a Python program and returns its Fork."""
    if not hasattr(os, "fork"):
        pytest.skip("needs processes that can be forked")
    folder, lock, number = tmp_path_factory.mktemp("forks"), threading.Lock(), itertools.count()
    with subprocess.Popen(
        [sys.executable, "-c", FORKER, str(ROOT)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdout.readline() == "ready\n"

        def ask(task):
            with lock:
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
                return int(process.stdout.readline())

        yield lambda program, *arguments, **env: Fork(
            ask, program, arguments, folder / str(next(number)), env
        )
        process.stdin.close()


@pytest.fixture(scope="session")
def two_forks(fork):
    """two_forks(program, *arguments) starts a program in two processes that are connected as by
    torchrun, and returns both Forks.
    """

    def begin(program, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        env = dict(WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        return [fork(program, *arguments, RANK=r, LOCAL_RANK=r, **env) for r in "01"]

    return begin


# ---- data ----

ROAD, NOT_ROAD, NOT_VALID = (255, 0, 255), (255, 0, 0), (0, 0, 0)  # KITTI's colours


@pytest.fixture
def kitti_sample():
    """Folder with some real KITTI Road files."""
    folder = SHARED / "data" / "kitti_road_sample"
    if not folder.is_dir():
        pytest.skip(f"needs real KITTI Road files in {folder}")
    return folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Twelve small synthetic scenes in KITTI Road's layout. Some modules override this fixture."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    synthetic.write(folder, train=12, test=0, height=32, width=64)
    return folder


def picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


def turned(path, pixels, orientation):
    """A picture stored with this EXIF orientation; applying the tag turns it upright."""
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


def png(width, height, bits, kind, rows):
    """The bytes of a PNG; Pillow does not write every kind."""

    def chunk(name, content):
        return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)

    header = width.to_bytes(4) + height.to_bytes(4) + bytes([bits, kind, 0, 0, 0])
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def kitti(root, um=4, umm=3, uu=5, size=(6, 9)):
    """A KITTI Road tree: um images with both ground truths, as in the benchmark."""
    rng = np.random.default_rng(0)
    for category, count in (("um", um), ("umm", umm), ("uu", uu)):
        for i in range(count):
            pixels = rng.integers(0, 256, (*size, 3))
            picture(root / f"training/image_2/{category}_{i:06d}.png", pixels)
            for task in ("road", "lane") if category == "um" else ("road",):
                colours = np.array([ROAD, NOT_ROAD, NOT_VALID])[rng.integers(0, 3, size)]
                picture(root / f"training/gt_image_2/{category}_{task}_{i:06d}.png", colours)
    return root


# ---- networks ----

try:
    from support.inference.int8 import require_int8

    require_int8()
    missing = ""
except (ImportError, InputError) as error:
    missing = str(error)
needs_int8 = pytest.mark.skipif(bool(missing), reason=missing)

PADS = st.sampled_from([1, 97, 100, 117])
STRIDES = st.sampled_from([8, 16, 32])


def small(num_classes=2, pad=1, stride=8, width=1 / 32, fc_channels=4, **more):
    return FCN8s(num_classes, pad, stride, width, fc_channels, **more).eval()


def randomise_scores(net):
    """Give the score layers random weights; with their initial zeros, every comparison passes."""
    for name, p in net.named_parameters():
        if name.startswith("score"):
            torch.nn.init.normal_(p)
    return net


def exact_confidences(probabilities):
    """The confidences 0..255, not rounded, of probabilities float64 [C, H, W] (docs/data.md)."""
    return (255 / (1 + (1 / probabilities - 1) ** 0.25)).numpy()


def lively(pad, stride):
    """A narrow network in which every parameter affects the scores."""
    torch.manual_seed(1)
    net = randomise_scores(small(pad=pad, stride=stride, width=1 / 16, fc_channels=16)).eval()
    for name, p in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.uniform_(p, 0, 0.5)
    return net


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a | b)


def saved(path, net, classes=("sky", "road", "car")):
    """Save a checkpoint of the network: its path."""
    net.classes = list(classes)
    net.save(path)
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """exported(".pt2"): a folder with best.pt and, exported from it, streets.pt2. Each format is
    exported only once, since that takes seconds.
    """
    import export

    @functools.cache
    def export_once(ending):
        folder, net = tmp_path_factory.mktemp("export"), lively(1, 8)
        net.set_skip_gain({"pool4": 0.5, "pool3": 0.25})
        checkpoint = saved(folder / "best.pt", net, ["not road", "road"])
        assert export.main([str(checkpoint), str(folder / f"streets{ending}")]) == 0
        return folder

    return export_once


# ---- runs ----

TINY = "--width 0.03125 --fc-channels 8 --weights none --workers 0 --device cpu --amp off".split()
TIMES = {"seconds", "evaluation_seconds", "data_wait"}  # log columns that differ in equal runs


def run(data, out, *more):
    """train.py in this process, with a tiny network: the exit status."""
    import train

    argv = ["--data", data, "--out", out, "--epochs", 2, *TINY, *more]
    return train.main([str(word) for word in argv])


def log_of(out):
    with open(out / "log.csv", newline="") as file:
        return [
            {name: float(value) for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(file)
        ]
