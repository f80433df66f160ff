"""On a stand-in for a GPU (standin.py), the CUDA code gives the same results, does not wait, and
copies in the right order.
"""

import signal
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import small
from PIL import Image
from standin import OnGpu, standin

import predict
import train
from support.checkpoint import read_tensors
from support.device import default_amp, pick_device
from support.training.batches import Batches
from support.training.distributed import Ranks
from support.training.optimizer import sgd

TINY = (
    "--width 0.0625 --fc-channels 16 --weights none --workers 1 --batch-size 2 --dropout 0 "
    "--amp off --epochs 1"
).split()
CUDA = torch.device("cuda:0")


def trained(out, scenes, *options, device="cuda", **more):
    run = ["--data", str(scenes), "--out", str(out), *TINY, "--device", device, *options]
    assert train.main(run, **more) == 0
    return read_tensors(out / "last.pt")


def tensors_of(content, path=()):
    """All tensors in nested dictionaries, by the path of names to each."""
    if isinstance(content, torch.Tensor):
        return {path: content}
    parts = content.items() if isinstance(content, dict) else ()
    return {k: v for name, part in parts for k, v in tensors_of(part, (*path, name)).items()}


class Waits:
    """A hook for train.main that counts waits of the CPU: `steps` has those between two steps,
    `evaluations` those between a step and the end of an evaluation.
    """

    def __init__(self, gpu):
        self.gpu, self.last, self.steps, self.evaluations = gpu, None, [], []

    def __call__(self, event, step):
        if event != "save" and self.last is not None:
            found = self.steps if event == "step" else self.evaluations
            found.append(self.gpu.waits - self.last)
        self.last = Counter(self.gpu.waits) if event == "step" else None


@pytest.mark.parametrize(
    "options, tolerance",
    [
        ("--learn-upsampling --class-weights sqrt --recompute", 1e-5),
        ("--amp fp16", 1e-2),
    ],
)
def test_a_run_matches_the_cpu_and_waits_once_per_image(
    scenes, tmp_path, monkeypatch, options, tolerance
):
    options = options.split()
    here = trained(tmp_path / "cpu", scenes, *options, "--amp", "off", device="cpu")
    with standin(monkeypatch) as gpu:
        waits = Waits(gpu)
        there = trained(tmp_path / "cuda", scenes, *options, after=waits)
    assert len(waits.steps) >= 4 and not any(waits.steps), waits.steps
    # Three images, the loss, the first step that was not finite, and the scale of fp16.
    assert waits.evaluations[0].total() <= 3 + 3, waits.evaluations
    assert not gpu.faults
    losses = [saved["log"][0]["train_loss"] for saved in (there, here)]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    for name, tensor in here["model"].items():
        assert not isinstance(there["model"][name], OnGpu)
        assert (there["model"][name] - tensor).norm() <= 10 * tolerance * tensor.norm(), name


def test_a_run_moves_between_devices_and_both_predict_the_same(scenes, tmp_path, monkeypatch):
    def stop_at(step):
        return lambda *now: signal.raise_signal(signal.SIGTERM) if now == ("step", step) else None

    here, run, masks = tmp_path / "here", tmp_path / "run", []
    trained(here, scenes, "--epochs", "2", device="cpu")
    with standin(monkeypatch) as gpu:
        begin = ["--data", str(scenes), *TINY, "--epochs", "2", "--device", "cuda"]
        assert train.main(["--out", str(run), *begin], stop_at(3)) == 143
        go_on = ["--resume", "--out", str(run), "--device"]
        assert train.main([*go_on, "cpu"], stop_at(6)) == 143
        assert train.main([*go_on, "cuda"]) == 0
        for device in ("cpu", "cuda"):
            out = tmp_path / device
            command = [run / "best.pt", "--data", scenes, "--out", out, "--device", device]
            assert predict.main([*map(str, command), "--amp", "off"]) == 0
            masks.append(np.stack([Image.open(file) for file in sorted(out.glob("mask/*"))]))
        assert not gpu.faults
    assert (masks[0] == masks[1]).mean() > 0.999
    a, b = (tensors_of(read_tensors(folder / "last.pt")) for folder in (here, run))
    assert a.keys() == b.keys() and len(a) > 60  # weights and momenta
    for name in a:
        assert (a[name] - b[name]).norm() <= 1e-3 * a[name].norm(), name


def test_batches_are_pinned_in_threads_that_set_their_gpu(monkeypatch):
    """Without workers and with two, the batches are the same and in order."""

    def reader(i):
        return np.full((40, 60, 3), i, np.uint8), np.full((40, 60), i, np.uint8)

    config = train.Config(batch_size=2, resize=1.0, crop="none", flip="no")
    with standin(monkeypatch) as gpu:
        pick_device("cuda")
        for workers in (0, 2):
            args = reader, range(9), [(40, 60)] * 9, 1, config, Ranks(), workers
            here, there = (Batches(*args, torch.device(name)) for name in ("cpu", "cuda:0"))
            for (images, labels), (images_there, labels_there) in zip(here, there, strict=True):
                assert images_there.is_cuda and labels_there.is_cuda
                assert torch.equal(images_there.inner, images)
                assert torch.equal(labels_there.inner, labels)
        assert not gpu.waits and not gpu.faults
        assert len(gpu.pinning) > 1 and gpu.pinning <= gpu.chosen


def test_the_fused_update_takes_gradients_of_any_strides(monkeypatch):
    """CUDA gives the gradient of a 1 x 1 convolution other strides than its weight has."""
    with standin(monkeypatch):
        net = small().to(CUDA)
        optimizer = sgd(net, momentum=0.9, weight_decay=0.0)
        optimizer.param_groups[0]["lr"] = 1.0
        weight = net.score_fr.weight  # [2, 4, 1, 1], zeros
        for _ in range(2):
            weight.grad = torch.ones(2, 1, 1, 4, device=CUDA).permute(0, 3, 1, 2)
            optimizer.step()
        assert weight.inner.unique().tolist() == pytest.approx([-1 - 1.9])


def test_fp32_is_not_tf32_and_bf16_is_for_new_gpus(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True
    for capability, amp in (((7, 5), "off"), ((8, 0), "bf16")):
        with standin(monkeypatch, capability):
            assert default_amp("auto", pick_device("cuda")) == amp
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32


# ---- the stand-in itself: mistakes that give a wrong number on a GPU once in a thousand steps ----


def test_the_stand_in_counts_waits(monkeypatch):
    with standin(monkeypatch) as gpu:
        x = torch.ones(40, 40, device=CUDA)
        for wait in (
            lambda: x.sum().item(),
            lambda: x.cpu(),
            lambda: x[x > 0],
            lambda: torch.ones(40, 40).to(CUDA),
            lambda: torch.ones(40, 40).to(CUDA, non_blocking=True),  # not pinned
        ):
            before = gpu.waits.total()
            wait()
            assert gpu.waits.total() == before + 1
        torch.empty(40, 40, pin_memory=True).to(CUDA, non_blocking=True)
        assert gpu.waits.total() == before + 1


def test_the_stand_in_refuses_what_a_gpu_would(monkeypatch):
    with standin(monkeypatch) as gpu:
        x, copying = torch.ones(3, 4, 1, 1, device=CUDA), torch.cuda.Stream(CUDA)
        with pytest.raises(RuntimeError, match="some on the processor"):
            x + torch.ones(3, 4, 1, 1)
        with pytest.raises(RuntimeError, match="may not be there yet"):
            x.to("cpu", non_blocking=True)
        weight = torch.nn.Parameter(torch.ones(3, 4, 1, 1, device=CUDA))
        weight.grad = torch.ones(3, 1, 1, 4, device=CUDA).permute(0, 3, 1, 2)
        with pytest.raises(RuntimeError, match="differ in strides"):
            torch.optim.SGD([weight], lr=1.0, fused=True).step()
        with torch.cuda.stream(copying):
            y = torch.ones(3, device=CUDA)
            copied = copying.record_event()
        with pytest.raises(RuntimeError, match="may not have written yet"):
            y + 1
        gpu.current.wait_event(copied)
        y + 1
        assert not gpu.faults
        del y
        assert gpu.faults == ["memory is freed while another stream may use it: no record_stream"]
