"""The CUDA code on a stand-in for a GPU (standin.py): the same results, no waiting, and copies in
the right order.
"""

import inspect
import textwrap
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import log_of
from PIL import Image
from standin import OnGpu, standin
from support.training.waiting import Waiting

import predict
import train
from support import device
from support.checkpoint import read_tensors
from support.training import batches, optimizer, setup
from support.training import optimizer as divergence

TINY = [
    "--width",
    "0.0625",
    "--fc-channels",
    "16",
    "--crop",
    "32x64",
    "--weights",
    "none",
    "--workers",
    "1",
    "--batch-size",
    "2",
    "--dropout",
    "0",
    "--amp",
    "off",
    "--epochs",
    "1",
]


def trained(out, scenes, *options, name="cuda"):
    assert (
        train.main(["--data", str(scenes), "--out", str(out), *TINY, "--device", name, *options])
        == 0
    )
    return read_tensors(out / "last.pt")


def tensors_of(content, path=()):
    """All tensors in nested dictionaries, by the path of names to each."""
    if isinstance(content, torch.Tensor):
        return {path: content}
    return (
        {k: v for name in content for k, v in tensors_of(content[name], (*path, name)).items()}
        if isinstance(content, dict)
        else {}
    )


def count_waits_of_steps(monkeypatch, gpu):
    """A list that gets, for each training step, what made the processor wait during it."""
    waits, last, rate = [], [], train.learning_rate

    def begin_step(
        step, total, settings
    ):  # the first thing that a step does; also called for the log after the last one
        if (
            last and step == last[0] + 1 and step % (total // settings["epochs"])
        ):  # between two steps of one epoch
            waits.append(gpu.waits - last[1])
        last[:] = step, Counter(gpu.waits)
        return rate(step, total, settings)

    monkeypatch.setattr(train, "learning_rate", begin_step)
    return waits


@pytest.mark.parametrize(
    "options, tolerance",
    [
        ([], 1e-5),
        (["--pad", "100"], 1e-5),
        (["--recompute"], 1e-5),
        (["--learn-upsampling", "--class-weights", "sqrt"], 1e-5),
        (["--recipe", "paper", "--crop", "none", "--lr", "1e-7", "--epochs", "1"], 1e-5),
        (["--amp", "bf16"], 2e-2),
    ],
)
def test_a_run_on_the_gpu_takes_the_steps_of_the_processor_and_no_step_waits_for_it(
    scenes, tmp_path, monkeypatch, options, tolerance
):
    here = trained(tmp_path / "cpu", scenes, *options, name="cpu")
    with standin(monkeypatch) as gpu:
        waits = count_waits_of_steps(monkeypatch, gpu)
        there = trained(tmp_path / "cuda", scenes, *options)
    assert len(waits) >= 4 and not any(waits), waits
    assert not gpu.faults
    assert there["log"][0]["train_loss"] == pytest.approx(
        here["log"][0]["train_loss"], rel=tolerance
    )
    for name, tensor in here["model"].items():
        assert not isinstance(there["model"][name], OnGpu)
        assert (there["model"][name] - tensor).norm() <= 10 * tolerance * tensor.norm(), name


def test_a_run_moves_between_gpu_and_processor_and_both_predict_the_same(
    scenes, tmp_path, monkeypatch, capsys
):
    here, run, masks = tmp_path / "here", tmp_path / "run", {}
    trained(here, scenes, name="cpu")
    for epochs in ("2", "3"):
        assert train.main(["--resume", "--out", str(here), "--epochs", epochs]) == 0
    with standin(monkeypatch) as gpu:
        trained(run, scenes)
        assert train.main(["--resume", "--out", str(run), "--device", "cpu", "--epochs", "2"]) == 0
        assert train.main(["--resume", "--out", str(run), "--device", "cuda", "--epochs", "3"]) == 0
        for name in ("cpu", "cuda"):
            assert (
                predict.main(
                    [
                        str(run / "best.pt"),
                        "--data",
                        str(scenes),
                        "--out",
                        str(tmp_path / name),
                        "--device",
                        name,
                        "--amp",
                        "off",
                    ]
                )
                == 0
            )
            masks[name] = [
                np.asarray(Image.open(file))
                for file in sorted((tmp_path / name / "mask").iterdir())
            ]
        assert not gpu.faults
    assert (
        np.mean([(a == b).mean() for a, b in zip(masks["cpu"], masks["cuda"], strict=True)]) > 0.999
    )
    assert [row["epoch"] for row in log_of(run)] == [1, 2, 3]
    a, b = (tensors_of(read_tensors(folder / "last.pt")) for folder in (here, run))
    assert a.keys() == b.keys() and len(a) > 60  # weights and momenta
    for name in a:
        assert (a[name] - b[name]).norm() <= 1e-3 * a[name].norm(), name


def test_fp16_waits_once_in_a_step_to_know_whether_its_gradients_fit(scenes, tmp_path, monkeypatch):
    with standin(monkeypatch, capability=(7, 5)) as gpu:
        assert device.suited_amp("auto", torch.device("cuda")) == "off"
        waits = count_waits_of_steps(monkeypatch, gpu)
        end = trained(tmp_path, scenes, "--amp", "fp16")
    assert waits and all(step == {"_local_scalar_dense": 1} for step in waits) and not gpu.faults
    assert end["model"]["score_fr.weight"].any()


def test_32_bits_are_32_bits_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True
    with standin(monkeypatch):
        device.pick_device("cuda")
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


def test_the_share_of_waiting_is_what_the_gpu_waits_and_not_what_the_loop_does(monkeypatch):
    """A loop that is ahead of its GPU waits for images while the GPU still computes."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def source():
        for busy_until, ready_at in (
            (5.0, 3.0),
            (9.0, 12.0),
        ):  # the first batch comes while the GPU computes, the second after
            now[0] = max(
                busy_until, ready_at
            )  # when the second mark is reached in the GPU's own order
            yield None

    with standin(monkeypatch):
        waiting, seen = Waiting(source(), torch.device("cuda")), []
        for busy_until in (5.0, 9.0):
            now[0] = busy_until  # when the GPU comes to the first mark
            seen.append(next(waiting))
        assert waiting.seconds() == pytest.approx((5 - 5) + (12 - 9)) == waiting.seconds()


@pytest.mark.parametrize(
    "name, cores, processes, expected",
    [
        ("cpu", 64, 1, 2),
        ("cuda", 8, 1, 8),
        ("cuda", 8, 4, 2),
        ("cuda", 96, 2, 16),
        ("cuda", 1, 1, 2),
    ],
)
def test_a_gpu_is_fed_by_every_core_and_a_processor_by_two_threads(
    monkeypatch, name, cores, processes, expected
):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert batches.suited_workers("auto", torch.device(name)) == expected
    assert batches.suited_workers(3, torch.device(name)) == 3


@contextmanager
def several_threads():
    """On one thread, the processor lays out the gradient of a 1 x 1 convolution as its weight. CUDA
    does not, nor do two threads.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(max(2, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


# What is told to a GPU is done later and in streams. Each of these lines has a fault as its
# consequence if it is missing; on a real device it would be a wrong number once in a thousand
# steps, or a step twice as long.
LINES = [
    (
        device.on_device,
        "computing.wait_event(copied)",
        "pass",
        "reads what another stream may not have written yet",
    ),
    (device.on_device, "tensor.record_stream(computing)", "pass", "record_stream is missing"),
    (
        device.on_device,
        "tensor.to(device, non_blocking=True)",
        "tensor.to(device)",
        "copy that was waited for",
    ),
    (
        device.normalise,
        "non_blocking=images.is_cuda",
        "non_blocking=False",
        "copy that was waited for",
    ),
    (
        device.on_device,
        "labels.long()",
        "labels.cpu().long()",
        "on cuda:0 and some on the processor",
    ),
    (
        batches.load_batches,
        'pin = device.type == "cuda"',
        "pin = False",
        "copy from memory that is not pinned",
    ),
    (
        optimizer.sgd,
        "optimizer.register_step_pre_hook(lay_out_alike)",
        "pass",
        "must have same dtype, device, and layout",
    ),
    (
        divergence.Divergence.watch,
        "self.step = torch",
        "value.item(); self.step = torch",
        "_local_scalar_dense",
    ),
    (setup.prepare, "net = net.to(device)", "net = net", "on cuda:0 and some on the processor"),
]


@pytest.mark.parametrize(
    "function, line, without, said", LINES, ids=[line for _, line, _, _ in LINES]
)
def test_a_line_that_cuda_needs_is_missed_if_it_is_not_there(
    scenes, tmp_path, monkeypatch, capsys, function, line, without, said
):
    source = textwrap.dedent(inspect.getsource(function))
    assert source.count(line) == 1
    names = dict(function.__globals__)
    exec(
        compile(
            "from __future__ import annotations\n" + source.replace(line, without),
            function.__name__,
            "exec",
        ),
        names,
    )
    monkeypatch.setattr(function, "__code__", names[function.__name__].__code__)
    with standin(monkeypatch) as gpu, several_threads():
        waits = count_waits_of_steps(monkeypatch, gpu)
        try:
            assert (
                train.main(
                    [
                        "--data",
                        str(scenes),
                        "--out",
                        str(tmp_path / "run"),
                        *TINY,
                        "--device",
                        "cuda",
                    ]
                )
                == 0
            )
            complaint = ""
        except RuntimeError as error:
            complaint = str(error)
    assert said in complaint or said in " ".join(gpu.faults) or any(said in step for step in waits)
