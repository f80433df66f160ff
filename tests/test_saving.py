"""Checkpoints come often enough, cost little, and lie on the disk in their order: on a fake clock,
with disks of any speed.
"""

import math
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from support.checkpoint import read_tensors, save_tensors
from support.console import InputError
from support.training import run_dir as saving
from support.training.run_dir import SECONDS, STEPS, TIMES, Saving

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def steps_of(monkeypatch, every, step_takes, save_takes, steps, epoch=None):
    """(name and time of each file that was begun to be written, the time of the whole run), with a
    best.pt each `epoch` steps.
    """
    now, written = [0.0], []

    def save(content, path, before):
        written.append((path, now[0]))
        now[0] += save_takes

    class Path(str):
        name = property(str)

        def __truediv__(self, name):
            return Path(name)

    monkeypatch.setattr(saving.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(saving, "save_tensors", save)
    files = Saving(every, CPU)
    for step in range(1, steps + 1):
        now[0] += step_takes
        if files.due(step):
            files.last({"step": step}, Path())
        if epoch and step % epoch == 0:
            files.best({"model": {}}, Path())
    files.finish()
    return written, now[0]


@given(step_takes=st.floats(0.005, 20), save_takes=st.floats(0.01, 30))
def test_checkpoints_take_a_fiftieth_of_the_time_at_most_and_come_as_often_as_that_allows(
    step_takes, save_takes
):
    with pytest.MonkeyPatch.context() as monkeypatch:
        written, took = steps_of(monkeypatch, "auto", step_takes, save_takes, 6000)
    times = [0.0] + [at for _, at in written]
    assert (
        len(written) - 1
    ) * save_takes <= took / TIMES  # before the first one nobody knows what it costs
    longest = max(b - a for a, b in zip(times, times[1:])) if len(times) > 1 else took
    # As soon as 500 steps are full, or five minutes, unless the last one was too costly; then at
    # the next such moment.
    assert (
        longest
        <= max(min(STEPS * step_takes, SECONDS), TIMES * save_takes)
        + save_takes
        + min(STEPS * step_takes, SECONDS)
        + step_takes
    )


@given(every=st.integers(1, 700), step_takes=st.floats(0.005, 1), save_takes=st.floats(0.01, 30))
def test_what_a_person_asks_for_is_done_whatever_it_costs(every, step_takes, save_takes):
    with pytest.MonkeyPatch.context() as monkeypatch:
        written, took = steps_of(monkeypatch, every, step_takes, save_takes, 2000)
    assert len(written) >= 2000 // every


def test_a_slow_machine_loses_five_minutes_at_most(monkeypatch):
    written, _ = steps_of(monkeypatch, "auto", 7.0, 1.0, 1000)
    times = [0.0] + [at for _, at in written]
    assert (
        max(b - a for a, b in zip(times, times[1:])) <= SECONDS + 7 + 1 + 1e-6 and len(written) > 20
    )


@given(step_takes=st.floats(0.005, 1), save_takes=st.floats(0.01, 30), epoch=st.integers(10, 400))
def test_a_network_that_improves_in_every_short_epoch_costs_a_few_per_cent(
    step_takes, save_takes, epoch
):
    with pytest.MonkeyPatch.context() as monkeypatch:
        written, took = steps_of(monkeypatch, "auto", step_takes, save_takes, 6000, epoch)
    best = [at for name, at in written if name == "best.pt"]
    lasts = sum(name == "last.pt" for name, _ in written)
    # One on its own account for 50 times its duration, one with each last.pt, the first, and the
    # one at the end.
    assert (len(best) - lasts - 2) * save_takes <= took / TIMES


@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_best_network_is_on_the_disk_before_the_checkpoint_that_counts_with_it_and_at_the_end(
    tmp_path, device
):
    files = Saving("auto", device)
    weights = torch.zeros(3)
    for value in (1, 2):  # the second comes a moment after the first
        files.took["best.pt"] = 1e6
        files.best({"model": {"w": weights.fill_(value)}, "epoch": value}, tmp_path)
        weights.fill_(9)  # the next step changes them
    files.wait()
    assert read_tensors(tmp_path / "best.pt")["epoch"] == 1
    files.last({"step": 7}, tmp_path)
    files.wait()
    assert read_tensors(tmp_path / "last.pt")["step"] == 7
    kept = read_tensors(tmp_path / "best.pt")
    assert kept["epoch"] == 2 and kept["model"]["w"].tolist() == [2, 2, 2]
    files.took["best.pt"] = 1e6
    with files:
        files.best({"model": {"w": weights}, "epoch": 3}, tmp_path)
    assert read_tensors(tmp_path / "best.pt")["epoch"] == 3


def test_a_run_on_a_gpu_goes_on_while_its_checkpoint_is_written_and_writes_one_after_the_other(
    tmp_path, monkeypatch
):
    disk, begun, order = threading.Event(), threading.Event(), []

    def slow(content, path, before):
        begun.set()
        assert disk.wait(60)
        order.append(content["step"])

    monkeypatch.setattr(saving, "save_tensors", slow)
    with Saving(1, GPU) as files:
        files.last({"step": 1}, tmp_path)  # comes back although the disk does not
        assert begun.wait(60) and order == []
        disk.set()
        files.last({"step": 2}, tmp_path)
    assert order == [1, 2]


@pytest.mark.parametrize("device", [CPU, GPU])
def test_the_best_network_is_written_although_the_checkpoint_before_it_could_not_be(
    tmp_path, monkeypatch, device
):
    def full(content, path, before):
        if path.name == "last.pt":
            raise InputError(f"{path}: cannot be written (no space left)")
        save_tensors(content, path, before)

    monkeypatch.setattr(saving, "save_tensors", full)
    with pytest.raises(InputError, match="no space left"), Saving(1, device) as files:
        if device == GPU:
            files.last({"step": 1}, tmp_path)  # fails in its thread, later
            files.under_way.exception()
        files.took["best.pt"] = math.inf
        files.best({"model": {"w": torch.ones(2)}, "epoch": 3}, tmp_path)  # waits
        files.last({"step": 2}, tmp_path)
    assert read_tensors(tmp_path / "best.pt")["epoch"] == 3


def test_what_the_disk_refuses_ends_the_run_on_a_gpu_too(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match="last.pt: cannot be written"), Saving(1, GPU) as files:
        files.last({"step": 1}, tmp_path / "file")
