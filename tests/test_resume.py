"""A run that is stopped, killed or out of disk space ends as if nothing had happened."""

import csv
import errno
import os
import random
import shutil
import signal
import time
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TIMES, picture
from hypothesis import given
from hypothesis import strategies as st

import train
from support.checkpoint import read_tensors, write_checkpoint
from support.console import InputError
from support.datasets import synthetic
from support.training.run_dir import SAVE_SECONDS, RunDir

KILLS = int(os.environ.get("KILLS", 12))  # make soak sets more
TINY = (
    "--epochs 3 --width 0.03125 --fc-channels 8 --crop none --weights none --workers 0 "
    "--device cpu --amp off --save-every 2"
).split()
EPOCH = 6  # steps in an epoch


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "scenes"
    synthetic.write(folder, train=9, test=0, height=32, width=64)
    return folder


@pytest.fixture(scope="module")
def begin(scenes):
    """begin(out, *options, **more) starts a new run in `out`: the exit status of train.main."""
    return lambda out, *options, **more: train.main(
        ["--data", str(scenes), "--out", str(out), *TINY, *options], **more
    )


def resume(out, *options, **more):
    torch.manual_seed(1)  # a new process lacks the old random state
    return train.main(["--resume", "--out", str(out), *options], **more)


@pytest.fixture(scope="module")
def undisturbed(begin, tmp_path_factory):
    """The folder of an uninterrupted run."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert begin(out) == 0
    return out


@pytest.fixture
def finished(undisturbed, tmp_path):
    """A copy of the uninterrupted run."""
    return shutil.copytree(undisturbed, tmp_path / "finished")


def at(event, step, action):
    """A hook for train.main that calls `action` once: at `event` after `step` steps."""
    return lambda *now: action() if now == (event, step) else None


def kill():
    raise SystemExit("killed")


def rows_of(out):
    """The log as text, to compare every digit, and nan too."""
    with open(out / "log.csv", newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(file)
        ]


def assert_same_end(out, other):
    assert not list(out.glob("*.part"))
    assert rows_of(out) == rows_of(other)
    for name in ("last.pt", "best.pt"):
        a, b = (read_tensors(folder / name)["model"] for folder in (out, other))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def assert_one_line(capsys, *parts):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(part in error for part in parts), error


# ---- killed ----

# train.py that counts its chances to be killed: after each step, and inside each write of a file.
# At chance number `moment` the process kills itself without cleaning up, and leaves half of the
# file that it is writing. If `moment` has a decimal point, the kernel kills the process after that
# many seconds.
KILLED = """
import io, os, signal, sys
import torch, train
moment, *arguments = sys.argv[1:]
left = float(moment)
if "." in moment:
    signal.setitimer(signal.ITIMER_REAL, left)
    left = 0

def chance():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def watched(function):
    return lambda *args: (chance(), function(*args))[1]

def half_saved(content, file, save=torch.save):
    if left == 1:
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
    chance()
    save(content, file)

torch.save, os.fsync, os.replace = half_saved, watched(os.fsync), watched(os.replace)
sys.exit(train.main(arguments, lambda event, step: chance()))
"""


@pytest.mark.slow
def test_killed_at_any_moment_a_run_ends_with_the_same_weights(scenes, fork, tmp_path):
    """A third of KILLS in each of three parallel runs: without threads, with threads, and with
    threads at random times.
    """
    rng = random.Random(0)
    threads = ["--workers", "2", "--batch-size", "4"]
    options = {"plain": [], "threads": threads, "clock": threads}
    kills = dict.fromkeys(options, 0)

    def started(case, moment, out):
        going = any((out / name).exists() for name in ("last.pt", "before.pt"))
        new = ["--data", scenes, *TINY, *options[case]]
        return fork(KILLED, moment, "--out", out, *(["--resume"] if going else new))

    def moment(case):
        return round(rng.uniform(0.001, seconds), 4) if case == "clock" else rng.randint(1, 30)

    clock = time.monotonic()
    for run in [started(case, 0, tmp_path / case / "whole") for case in options]:
        assert run.wait() == 0, run.said
    seconds = time.monotonic() - clock
    while open_cases := [case for case in options if kills[case] < KILLS / 3]:
        runs = {case: started(case, moment(case), tmp_path / case / "run") for case in open_cases}
        for case, run in runs.items():
            status = run.wait()
            assert status in (0, -signal.SIGKILL, -signal.SIGALRM), run.said
            kills[case] += status < 0
            if status == 0:  # the run ended before it was killed: begin again
                assert_same_end(tmp_path / case / "run", tmp_path / case / "whole")
                shutil.rmtree(tmp_path / case / "run")
    for run in [started(case, 0, tmp_path / case / "run") for case in options]:
        assert run.wait() == 0, run.said
    for case in options:
        assert_same_end(tmp_path / case / "run", tmp_path / case / "whole")


def test_the_first_epoch_always_ends_with_a_checkpoint(begin, undisturbed, tmp_path):
    with pytest.raises(SystemExit):
        begin(tmp_path, "--save-every", "1000", after=at("step", EPOCH + 1, kill))
    assert read_tensors(tmp_path / "last.pt")["step"] == EPOCH
    assert resume(tmp_path) == 0
    assert_same_end(tmp_path, undisturbed)


def test_without_a_checkpoint_the_same_command_starts_again(begin, tmp_path, capsys):
    for _ in range(2):
        with pytest.raises(SystemExit):
            begin(tmp_path, after=at("step", 1, kill))
        capsys.readouterr()
        assert resume(tmp_path) == 2
        assert_one_line(capsys, "last.pt: the run was stopped before its", "without --resume")


# ---- stopped ----


@pytest.mark.parametrize(
    "number, status, event, step",
    [(signal.SIGINT, 130, "step", 5), (signal.SIGTERM, 143, "evaluation", EPOCH)],
)
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    begin, undisturbed, tmp_path, capsys, number, status, event, step
):
    usual = signal.getsignal(number)
    stop = at(event, step, partial(signal.raise_signal, number))
    assert begin(tmp_path, "--save-every", "1000", after=stop) == status
    assert signal.getsignal(number) == usual
    assert f"go on with: python train.py --resume --out {tmp_path}" in capsys.readouterr().err
    assert read_tensors(tmp_path / "last.pt")["step"] == step
    assert resume(tmp_path) == 0
    assert_same_end(tmp_path, undisturbed)


def test_further_sigterms_have_no_effect(scenes, fork, tmp_path):
    """torchrun and schedulers repeat it, even while the checkpoint is written."""
    program = """
import signal, sys, torch, train
def stop(*_):
    signal.raise_signal(signal.SIGTERM)
    signal.raise_signal(signal.SIGTERM)
save = torch.save
torch.save = lambda *args: (stop(), save(*args))
sys.exit(train.main(sys.argv[1:], stop))
"""
    run = fork(program, "--data", scenes, "--out", tmp_path, *TINY)
    assert run.wait() == 143, run.said
    assert read_tensors(tmp_path / "last.pt")["step"] == 1


def test_a_second_ctrl_c_ends_the_run_at_once(scenes, fork, tmp_path):
    program = """
import signal, sys, train
def twice(event, step):
    if step == 5:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
sys.exit(train.main(sys.argv[1:], twice))
"""
    run = fork(program, "--data", scenes, "--out", tmp_path, *TINY)
    assert run.wait() == -signal.SIGINT, run.said
    assert "Ctrl-C now stops at once" in run.said
    assert read_tensors(tmp_path / "last.pt")["step"] == 4  # --save-every 2


def test_a_signal_in_the_final_evaluation_says_training_is_done(finished, capsys):
    stop = at("save", 3 * EPOCH, partial(signal.raise_signal, signal.SIGINT))
    assert resume(finished, after=stop) == 130
    best = f"training is complete, {finished / 'best.pt'} is the result"
    assert f"{best}; for the final scores: python train.py --resume" in capsys.readouterr().err
    assert resume(finished) == 0
    printed = capsys.readouterr().out
    assert "training is complete; --epochs above 3 trains longer" in printed
    assert "best network (epoch" in printed


@pytest.mark.parametrize(
    "opened, said",
    [("um_000000.png", "stopped during set-up"), (".lock", "stopped by SIGTERM; go on")],
)
def test_a_sigterm_in_set_up_leaves_a_checkpoint_or_no_folder(scenes, fork, tmp_path, opened, said):
    program = """
import os, signal, sys, train
opened, *argv = sys.argv[1:]
def hook(event, args):
    global opened
    if event == "open" and opened and str(args[0]).endswith(opened):
        opened = None
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(hook)
sys.exit(train.main(argv))
"""
    run = fork(program, opened, "--data", scenes, "--out", tmp_path / "run", *TINY)
    assert run.wait() == 143 and said in run.said, run.said
    assert (tmp_path / "run").exists() == (tmp_path / "run/last.pt").exists() == (opened == ".lock")


# ---- disks and other processes ----


# fsync of last.pt at step 4; the renames of best.pt, and of last.pt after it
@pytest.mark.parametrize("broken, good", [("fsync", 4), ("replace", 8), ("replace", 10)])
def test_a_full_disk_ends_in_one_line_and_leaves_a_checkpoint(
    begin, undisturbed, tmp_path, monkeypatch, capsys, broken, good
):
    function, calls = getattr(os, broken), []

    def full(*args):
        calls.append(args)
        if len(calls) > good:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*args)

    monkeypatch.setattr(os, broken, full)
    assert begin(tmp_path) == 2
    monkeypatch.undo()
    assert_one_line(capsys, "No space left", str(tmp_path))
    assert not list(tmp_path.glob("*.part"))
    assert resume(tmp_path) == 0
    assert_same_end(tmp_path, undisturbed)


def test_a_disk_that_fills_during_a_write_leaves_a_checkpoint(begin, undisturbed, tmp_path, capsys):
    resource = pytest.importorskip("resource")
    kind, (soft, hard) = resource.RLIMIT_FSIZE, resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        fill = partial(resource.setrlimit, kind, (20_000, hard))
        assert begin(tmp_path, after=at("step", 3, fill)) == 2
    finally:
        resource.setrlimit(kind, (soft, hard))
    assert_one_line(capsys, f"{tmp_path / 'last.pt'}: cannot be written (File too large)")
    assert read_tensors(tmp_path / "last.pt")["step"] == 2
    assert resume(tmp_path) == 0
    assert_same_end(tmp_path, undisturbed)


@pytest.mark.parametrize("damage", ["cut", "zeros", "gone"])
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(
    undisturbed, finished, capsys, damage
):
    last = finished / "last.pt"
    content, half = last.read_bytes(), last.stat().st_size // 2
    if damage == "gone":
        last.unlink()
    else:
        zeros = bytes(64) + content[half + 64 :]
        last.write_bytes(content[:half] + (zeros if damage == "zeros" else b""))
    assert resume(finished) == 0
    reason = "last.pt: is missing; " if damage == "gone" else "last.pt: is damaged"
    assert_one_line(capsys, reason, f"going on from {finished / 'before.pt'}")
    assert_same_end(finished, undisturbed)
    assert (finished / "damaged.pt").exists() == (damage != "gone")
    for name in ("last.pt", "before.pt"):
        (finished / name).write_bytes(b"")
    capsys.readouterr()
    assert resume(finished) == 2
    assert_one_line(capsys, "last.pt: is damaged", "before.pt: is damaged")


def test_a_lost_best_network_is_replaced_if_an_epoch_remains(finished, capsys):
    (finished / "best.pt").unlink()
    assert resume(finished) == 2
    assert_one_line(capsys, "best.pt", "go on with --epochs 4")
    assert resume(finished, "--epochs", "4") == 0
    assert_one_line(capsys, "best.pt", "the best of the remaining epochs will replace it")
    assert read_tensors(finished / "best.pt")["epoch"] == 4


def test_an_older_best_network_is_compared_by_its_own_score(finished):
    """The lower score of last.pt and best.pt counts: a best.pt from a backup may score less."""
    for name, score in (("last.pt", 2.0), ("best.pt", -1.0)):
        write_checkpoint(read_tensors(finished / name) | {"best": score}, finished / name)
    assert resume(finished, "--epochs", "4") == 0
    assert read_tensors(finished / "best.pt")["epoch"] == 4


def test_two_runs_in_one_folder_are_refused(begin, tmp_path, capsys):
    def refused(run):
        capsys.readouterr()
        assert run(tmp_path) == 2
        assert_one_line(capsys, f"{tmp_path}: another process is training in this folder")

    def after(event, step):
        if event == "step" and step in (1, 3):  # before and after the first checkpoint
            refused({1: begin, 3: resume}[step])

    assert begin(tmp_path, "--epochs", "1", after=after) == 0
    assert begin(tmp_path) == 2
    assert_one_line(capsys, f"{tmp_path}: holds a run already; add --resume")


def test_a_new_run_keeps_the_best_network_of_an_earlier_one(begin, tmp_path, capsys):
    for name in ("best-1.pt", "best.pt"):
        (tmp_path / name).write_text(name)
    assert begin(tmp_path, "--epochs", "1") == 0
    assert "best.pt: is from an earlier run, renamed to best-2.pt" in capsys.readouterr().out
    for name, content in (("best-1.pt", "best-1.pt"), ("best-2.pt", "best.pt")):
        assert (tmp_path / name).read_text() == content


def test_a_run_in_the_data_folder_is_refused(begin, scenes, capsys):
    before = sorted(scenes.iterdir())
    assert begin(scenes) == 2
    assert_one_line(capsys, "is the folder of the data set")
    assert sorted(scenes.iterdir()) == before


def test_two_runs_without_out_get_a_folder_each(scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["--data", str(scenes), *TINY, "--epochs", "1"]
    assert train.main(command, at("step", 1, lambda: train.main(command))) == 0
    assert {path.parent.name for path in tmp_path.rglob("best.pt")} == {"scenes", "scenes-2"}


# ---- changes on --resume ----


def test_the_data_may_move_and_machine_settings_may_change(finished, scenes, tmp_path):
    saved = read_tensors(finished / "last.pt")
    saved["settings"]["data"] = str(tmp_path / "gone")
    for group in saved["optimizer"]["param_groups"]:
        group.update(fused=None, foreach=True)  # as saved on another machine
    write_checkpoint(saved, finished / "last.pt")
    new = ["--data", str(scenes), "--amp", "bf16", "--recompute", "--epochs", "4"]
    assert resume(finished, *new) == 0
    saved = read_tensors(finished / "last.pt")
    assert saved["settings"]["amp"] == "bf16" and saved["settings"]["recompute"]
    groups = saved["optimizer"]["param_groups"]
    assert all(group["fused"] and not group["foreach"] for group in groups)


def test_a_run_is_not_resumed_on_other_images(begin, tmp_path, capsys):
    """Both sets keep their sizes and file names: y/1 leaves the validation set and x/1 joins it."""
    for name in ("x/1", "y/1", "x/2", "y/3"):
        for part, pixels in (("images", (32, 48, 3)), ("masks", (32, 48))):
            picture(tmp_path / f"set/{part}/{name}.png", np.indices(pixels)[1] % 2)
    (tmp_path / "set/val.txt").write_text("y/1\n")
    assert begin(tmp_path / "run", "--data", str(tmp_path / "set"), "--epochs", "1") == 0
    (tmp_path / "set/val.txt").write_text("x/1\n")
    capsys.readouterr()
    assert resume(tmp_path / "run", "--epochs", "4") == 2
    assert_one_line(capsys, "has other images than the run to resume")


# ---- errors in a step ----


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_no_checkpoint_holds_values_that_are_not_finite(
    begin, tmp_path, monkeypatch, capsys, where
):
    function, calls = F.cross_entropy, []

    def broken(*args, **more):
        calls.append(args)
        loss = function(*args, **more)
        if len(calls) != 5:
            return loss
        endless = (loss - loss.detach()).sqrt()  # 0, with an infinite gradient
        return loss * torch.nan if where == "loss" else loss.detach() + endless

    monkeypatch.setattr(F, "cross_entropy", broken)
    assert begin(tmp_path, "--save-every", "1") == 2
    assert_one_line(capsys, "the loss was not finite at step 5", "smaller --lr")
    saved = read_tensors(tmp_path / "last.pt")
    assert saved["step"] == 4 and all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_is_reported_in_one_line(
    begin, finished, tmp_path, monkeypatch, capsys, error
):
    def full(*args, **more):
        raise error

    monkeypatch.setattr(F, "cross_entropy", full)
    assert begin(tmp_path / "run") == 2
    assert_one_line(capsys, "out of memory: choose a smaller --crop or --batch-size", "--recompute")
    assert resume(finished, "--epochs", "4") == 2
    assert_one_line(capsys, "out of memory: add --recompute")


def test_an_unexpected_error_keeps_its_traceback(begin, tmp_path):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal memory access"):
        begin(tmp_path / "run", after=broken)
    with pytest.raises(InputError):
        train.main(["--data", str(tmp_path / "none"), "--debug"])


# ---- times of checkpoints ----


@given(
    save_every=st.integers(1, 2000) | st.just("auto"),
    step_takes=st.floats(0.1, 7),
    save_takes=st.floats(0.01, 30),
)
def test_save_every_is_obeyed_and_at_most_5_minutes_are_lost(
    tmp_path_factory, save_every, step_takes, save_takes
):
    """On a clock that only steps and saves advance."""
    now, times = 0.0, [0.0]

    def save(content, file):
        nonlocal now
        times.append(now)
        now += save_takes

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(time, "perf_counter", lambda: now)
        monkeypatch.setattr(torch, "save", save)
        monkeypatch.setattr(os, "fsync", lambda descriptor: None)
        files = RunDir(tmp_path_factory.getbasetemp(), save_every)
        for step in range(1, 2001):
            now += step_takes
            if files.due(step):
                files.save_last({})
    assert save_every == "auto" or len(times) > 2000 // save_every
    pauses = [b - a for a, b in pairwise([*times, now])]
    assert max(pauses) <= SAVE_SECONDS + step_takes + save_takes + 1e-6
    assert save_every != "auto" or min(pauses[:-1], default=SAVE_SECONDS + 1) > SAVE_SECONDS
