"""fp16: the loss is scaled so that gradients fit, steps that do not fit are left out, and a run
resumes with its scale.
"""

import math

import pytest
import torch
from conftest import kill_at_evaluation, same
from hypothesis import given
from hypothesis import strategies as st

import train
from support.checkpoint import read_tensors
from support.training import loss_scale
from support.training.loss_scale import FIRST, LossScale

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
    "0",
    "--device",
    "cpu",
    "--dropout",
    "0",
]


@given(st.lists(st.floats(-12, 20), min_size=1, max_size=60), st.integers(2, 9))
def test_the_scale_halves_at_each_overflow_and_doubles_after_good_steps(sizes, good):
    """Gradients of size 2**s overflow fp16 where 2**s * scale > 65504."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(loss_scale, "GOOD", good)
        scale, value, row = LossScale("fp16"), FIRST, 0
        for size in sizes:
            fits = 2.0**size * value <= 65504
            assert scale.value == value
            assert scale.accepts(torch.tensor(1.0 if fits else math.inf)) == (fits or value == 1)
            if fits:
                row += 1
                if row == good:
                    value, row = 2 * value, 0
            elif value > 1:
                value, row = value / 2, 0


def test_gradients_come_back_to_their_size_and_other_types_are_left_alone():
    p = torch.nn.Parameter(torch.ones(4))
    p.grad = torch.tensor([1.0, 2, 3, 4]) * FIRST
    LossScale("fp16").divide([p, torch.nn.Parameter(torch.ones(1))])
    assert p.grad.tolist() == [1, 2, 3, 4]
    for amp in ("off", "bf16"):
        plain = LossScale(amp, (4.0, 1))
        plain.divide([p])
        assert p.grad.tolist() == [1, 2, 3, 4] and plain.value == 1 and plain.state() is None
        assert plain.accepts(
            torch.tensor(math.inf)
        )  # what is wrong with it is seen elsewhere, without waiting


def run(out, scenes, *options):
    assert train.main(["--data", str(scenes), "--out", str(out), *TINY, *options]) == 0
    return read_tensors(out / "last.pt")


def test_steps_in_fp16_are_those_of_fp32_up_to_its_digits(scenes, tmp_path):
    ends = [
        run(tmp_path / amp, scenes, "--epochs", "1", "--lr", "0.002", "--amp", amp)
        for amp in ("off", "fp16")
    ]
    a, b = (end["log"][0]["train_loss"] for end in ends)
    assert b == pytest.approx(a, rel=2e-2)
    for layer in (
        "score_fr",
        "score_pool4",
        "score_pool3",
    ):  # they start at zero: what they hold was learnt
        a, b = (end["model"][f"{layer}.weight"] for end in ends)
        assert a.norm() > 0 and (a - b).norm() <= 0.1 * a.norm()


def test_a_step_that_overflows_changes_no_weight(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**60)
    first = run(tmp_path, scenes, "--epochs", "1", "--amp", "fp16")
    steps = first["step"]
    assert (
        first["loss_scale"] == (2.0 ** (60 - steps), 0) and steps > 3
    )  # every step so far was too large
    assert not first["model"]["score_fr.weight"].any() and "momentum_buffer" not in str(
        first["optimizer"]["state"]
    )


def test_a_run_in_fp16_resumes_with_its_scale_bit_for_bit(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(loss_scale, "FIRST", 2.0**40)
    monkeypatch.setattr(loss_scale, "GOOD", 4)
    whole = run(tmp_path / "whole", scenes, "--epochs", "6", "--amp", "fp16")
    kill_at_evaluation(monkeypatch, 5)
    with pytest.raises(SystemExit):
        run(tmp_path / "cut", scenes, "--epochs", "6", "--amp", "fp16", "--save-every", "7")
    assert read_tensors(tmp_path / "cut/last.pt")["step"] < whole["step"]
    assert train.main(["--resume", "--out", str(tmp_path / "cut")]) == 0
    cut = read_tensors(tmp_path / "cut/last.pt")
    assert cut["loss_scale"] == whole["loss_scale"] and 1 < whole["loss_scale"][0] < 2.0**40
    assert same(cut["model"], whole["model"])


def test_numbers_that_never_fit_end_the_run_with_a_word_on_fp16(scenes, tmp_path, capsys):
    assert (
        train.main(
            [
                "--data",
                str(scenes),
                "--out",
                str(tmp_path / "run"),
                *TINY,
                "--epochs",
                "2",
                "--amp",
                "fp16",
                "--lr",
                "1e6",
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert (
        "the loss was not finite" in error
        and "--amp off, since fp16 holds numbers up to 65504" in error
    )
