"""Pull the plug, fill the disk, start it twice: nothing is lost, and the run ends as if nothing had
happened.
"""

import csv
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from conftest import ROOT, TIMES, kill_at_evaluation, picture

import train
from fcn import cross_entropy
from support import console as errors
from support.checkpoint import read_tensors, save_tensors
from support.console import InputError
from support.datasets import synthetic as roads
from support.training import run_dir as folder
from support.training import run_dir as saving
from support.training import setup
from support.training.signals import Stop

KILLS = int(os.environ.get("KILLS", 21))  # make soak sets more
TINY = [
    "--epochs",
    "3",
    "--width",
    "0.03125",
    "--fc-channels",
    "8",
    "--crop",
    "none",
    "--weights",
    "none",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--amp",
    "off",
    "--save-every",
    "2",
]

# Runs train.py with every chance to be killed counted: a step, and the moments inside the write of
# a file. At a given one the process kills itself, with no chance to clean up; half of what it is
# writing is on the disk. A moment with a decimal point is a time in seconds instead, after which
# the kernel kills it wherever it is. Each line of input is such a run, in a process of its own that
# need not import PyTorch again; each line of output is its exit status.
KILLER = """
import io, json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import torch
import train
left = 0

def chance():
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def watched(function):
    def call(*args, **kwargs):
        chance()
        return function(*args, **kwargs)
    return call

def half_saved(content, file, save=torch.save):
    if left == 1:
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[:len(whole.getvalue()) // 2])
        file.flush()
    chance()
    save(content, file)

torch.save = half_saved
os.fsync, os.replace = watched(os.fsync), watched(os.replace)
torch.optim.SGD.step = watched(torch.optim.SGD.step)
print("ready", flush=True)
for line in sys.stdin:
    left, *arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        if isinstance(left, float):
            signal.setitimer(signal.ITIMER_REAL, left)
        os._exit(train.main(arguments))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs processes that can be killed and forked"
)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crash") / "scenes"
    roads.write(folder, train=9, test=0, height=32, width=64)
    return folder


@contextmanager
def killer(scenes, errors):
    """killed_at(moment, out, *options) begins or goes on with the run in `out`: False if it came to
    its end unharmed.
    """
    with (
        open(errors, "w") as stderr,
        subprocess.Popen(
            [sys.executable, "-c", KILLER, str(ROOT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        ) as process,
    ):
        assert process.stdout.readline() == "ready\n"

        def killed_at(moment, out, *options):
            go_on = any((out / name).exists() for name in ("last.pt", "before.pt"))
            arguments = (
                ["--resume", "--out", str(out)]
                if go_on
                else ["--data", str(scenes), "--out", str(out), *TINY, *options]
            )
            process.stdin.write(json.dumps([moment, *arguments]) + "\n")
            process.stdin.flush()
            status = int(process.stdout.readline())
            assert status in (0, -signal.SIGKILL, -signal.SIGALRM), errors.read_text()[-2000:]
            return status < 0

        yield killed_at


@pytest.fixture(scope="module")
def here_undisturbed(scenes, tmp_path_factory):
    """A run in this process that nothing happened to."""
    out = tmp_path_factory.mktemp("crash") / "here"
    assert train.main(["--data", str(scenes), "--out", str(out), *TINY]) == 0
    return out


def log_of(out):
    """As text: to the last digit, and what is not a number too."""
    with open(out / "log.csv", newline="") as file:
        return [
            {name: value for name, value in row.items() if name not in TIMES}
            for row in csv.DictReader(file)
        ]


def assert_same_end(out, other):
    assert not list(out.glob("*.part"))
    assert log_of(out) == log_of(other)
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(folder / name, weights_only=True)["model"] for folder in (out, other))
        assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_run_killed_at_any_moments_ends_with_the_weights_of_one_that_was_not(scenes, tmp_path):
    """KILLS kills, a third in each of three runs: one thread, several, and several killed by the
    clock.
    """

    def again_and_again(seed, by_the_clock, *options):
        folder = tmp_path / str(seed)
        folder.mkdir()
        rng, kills, out, undisturbed = (
            random.Random(seed),
            0,
            folder / "run",
            folder / "undisturbed",
        )
        with killer(scenes, folder / "errors") as killed_at:
            started = time.monotonic()
            assert not killed_at(0, undisturbed, *options)
            time_it_takes = time.monotonic() - started
            moments = (
                (lambda: rng.uniform(0.001, time_it_takes))
                if by_the_clock
                else (lambda: rng.randint(1, 24))
            )
            while kills < KILLS / 3:
                if killed_at(moments(), out, *options):
                    kills += 1
                else:  # it was through before its moment came: begin again
                    assert_same_end(out, undisturbed)
                    shutil.rmtree(out)
            assert not killed_at(0, out, *options)
        assert_same_end(out, undisturbed)

    threads = "--workers", "2", "--batch-size", "4"
    with ThreadPoolExecutor() as pool:  # side by side, since they take long
        list(
            pool.map(
                lambda case: again_and_again(*case),
                [(0, False), (1, False, *threads), (2, True, *threads)],
            )
        )


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_ends_the_run_at_once_and_it_goes_on_from_the_checkpoint_before(
    scenes, here_undisturbed, tmp_path, fork, first
):
    """The step in which both come is never ended; that the second has its usual effect can only be
    seen from outside.
    """
    twice = f"""
import signal, sys
import train
function, calls = train.cross_entropy, []
def disturbed(*args):
    calls.append(1)
    if len(calls) == 6:
        signal.raise_signal({int(first)})
        signal.raise_signal({int(signal.SIGINT)})
        raise AssertionError("the second signal had no effect")
    return function(*args)
train.cross_entropy = disturbed
sys.exit(train.main(sys.argv[1:]))
"""
    process = fork(twice, "--data", scenes, "--out", tmp_path, *TINY)
    assert process.wait() == -signal.SIGINT, process.said
    assert "Ctrl-C once more stops at once" in process.said
    assert read_tensors(tmp_path / "last.pt")["step"] == 4  # --save-every 2
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    assert_same_end(tmp_path, here_undisturbed)


def test_a_run_killed_in_its_second_epoch_goes_on_however_seldom_checkpoints_are(
    scenes, tmp_path, monkeypatch
):
    def begin(out):
        return train.main(["--data", str(scenes), "--out", str(out), *TINY, "--save-every", "1000"])

    assert begin(tmp_path / "whole") == 0
    kill_at_evaluation(monkeypatch, 2)
    with pytest.raises(SystemExit):
        begin(tmp_path / "cut")
    assert train.main(["--resume", "--out", str(tmp_path / "cut")]) == 0
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


def test_a_run_without_a_checkpoint_is_not_resumed_and_says_what_to_do(tmp_path, capsys):
    assert train.main(["--resume", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert (
        "last.pt: the run has no checkpoint yet" in error
        and "without --resume" in error
        and error.count("\n") == 1
    )


def test_a_run_killed_before_its_first_checkpoint_is_told_so_and_begins_again_by_the_same_command(
    scenes, tmp_path, monkeypatch, capsys
):
    def killed(*args):
        raise SystemExit

    command = ["--data", str(scenes), "--out", str(tmp_path), *TINY]
    monkeypatch.setattr(train, "cross_entropy", killed)
    with pytest.raises(SystemExit):
        train.main(command)
    monkeypatch.undo()
    capsys.readouterr()
    assert (tmp_path / "config.json").exists() and train.main(
        ["--resume", "--out", str(tmp_path)]
    ) == 2
    assert (
        "no checkpoint yet" in (error := capsys.readouterr().err)
        and "the same command without --resume begins it again" in error
    )
    assert train.main(command) == 0


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_in_the_last_scoring_says_that_training_is_complete(
    scenes, tmp_path, monkeypatch, capsys, number, status
):
    summing = train.sum_up

    def disturbed(run, stop, epochs):
        signal.raise_signal(number)
        summing(run, stop, epochs)

    monkeypatch.setattr(train, "sum_up", disturbed)
    assert train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY]) == status
    monkeypatch.undo()
    error = capsys.readouterr().err
    assert (
        f"training is complete, {tmp_path / 'best.pt'} is the result; for the last scores: python train.py --resume"
        in error
    )
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    assert "best network, of epoch" in capsys.readouterr().out


def test_a_run_whose_data_has_moved_says_the_option_that_names_it(scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "data")
    assert (
        train.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *TINY]) == 0
    )
    (tmp_path / "data").rename(tmp_path / "moved")
    capsys.readouterr()
    assert train.main(["--resume", "--out", str(tmp_path / "run"), "--epochs", "4"]) == 2
    error = capsys.readouterr().err
    assert (
        f"{tmp_path / 'data'}: no such folder; if the run's data lies elsewhere now, say where with --data"
        in error
    )
    assert (
        train.main(
            [
                "--resume",
                "--out",
                str(tmp_path / "run"),
                "--epochs",
                "4",
                "--data",
                str(tmp_path / "moved"),
            ]
        )
        == 0
    )


def test_a_repeated_sigterm_does_not_disturb_the_checkpoint_that_the_first_one_asked_for(
    scenes, tmp_path, monkeypatch
):
    def disturbed(*args, **more):
        signal.raise_signal(signal.SIGTERM)  # in the middle of the save
        save_tensors(*args, **more)

    def asked(*args):
        signal.raise_signal(signal.SIGTERM)
        return cross_entropy(*args)

    monkeypatch.setattr(saving, "save_tensors", disturbed)
    monkeypatch.setattr(train, "cross_entropy", asked)
    assert train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY]) == 143
    assert read_tensors(tmp_path / "last.pt")["step"] == 1


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("during", ["cross_entropy", "predict_image"])
@pytest.mark.parametrize("again, alone", [(1, True), (3, False)])
def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(
    scenes, tmp_path, monkeypatch, capsys, number, status, during, again, alone
):
    """Repeated, it is the same request to one of several processes."""
    monkeypatch.setattr(train, "Stop", lambda **more: Stop(alone))

    def begin(out):
        return train.main(["--data", str(scenes), "--out", str(out), *TINY, "--save-every", "1000"])

    assert begin(tmp_path / "whole") == 0
    function, calls = getattr(train, during), []

    def disturbed(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            for _ in range(again):  # torchrun and schedulers repeat it
                signal.raise_signal(number)
        return function(*args, **kwargs)

    usual = signal.getsignal(number)
    monkeypatch.setattr(train, during, disturbed)
    assert begin(tmp_path / "cut") == status
    monkeypatch.undo()
    assert signal.getsignal(number) == usual
    assert f"--resume --out {tmp_path / 'cut'}" in capsys.readouterr().err
    if during == "cross_entropy":
        assert read_tensors(tmp_path / "cut/last.pt")["step"] == 4
    assert train.main(["--resume", "--out", str(tmp_path / "cut")]) == 0
    assert_same_end(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize(
    "broken, good", [("fsync", 4), *(("replace", good) for good in range(4, 12))]
)
def test_a_full_disk_is_said_in_one_line_and_leaves_a_checkpoint_to_go_on_from(
    scenes, here_undisturbed, tmp_path, monkeypatch, capsys, broken, good
):
    function, calls = getattr(os, broken), []

    def full(*args):
        calls.append(1)
        if len(calls) > good:
            raise OSError(errno.ENOSPC, "No space left on device")
        return function(*args)

    monkeypatch.setattr(os, broken, full)
    assert train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY]) == 2
    monkeypatch.undo()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "No space left" in error and str(tmp_path) in error
    assert not list(tmp_path.glob("*.part"))
    assert train.main(["--resume", "--out", str(tmp_path)]) == 0
    assert_same_end(tmp_path, here_undisturbed)


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can make a disk to fill"
)
def test_a_really_full_disk_leaves_a_checkpoint_to_go_on_from(scenes, tmp_path, capsys):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(disk)], capture_output=True
    ).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        out, filler = disk / "run", disk / "filler"
        assert train.main(["--data", str(scenes), "--out", str(out), *TINY, "--epochs", "1"]) == 0
        with open(filler, "wb", buffering=0) as file, pytest.raises(OSError):
            while True:
                file.write(bytes(4096))
        before = (out / "last.pt").read_bytes()
        assert train.main(["--resume", "--out", str(out), "--epochs", "3"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert (out / "last.pt").read_bytes() == before
        filler.unlink()
        assert train.main(["--resume", "--out", str(out), "--epochs", "3"]) == 0
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "gone"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    scenes, tmp_path, capsys, damage
):
    assert train.main(["--data", str(scenes), "--out", str(tmp_path / "whole"), *TINY]) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    last = tmp_path / "run/last.pt"
    content = last.read_bytes()
    last.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "zeros": content[: len(content) // 2] + bytes(64) + content[len(content) // 2 + 64 :],
            "gone": b"",
        }[damage]
    )
    if damage == "gone":
        last.unlink()
    capsys.readouterr()
    assert train.main(["--resume", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "last.pt" in said.err and "before.pt" in said.err and "going on after step" in said.out
    assert_same_end(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run/damaged.pt").exists() == (damage != "gone")
    for name in ("last.pt", "before.pt"):
        (tmp_path / "run" / name).write_bytes(b"")
    assert train.main(["--resume", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_two_runs_begun_at_once_without_out_get_a_folder_each_and_one_that_cannot_begin_leaves_none(
    scenes, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    command, reading, inner = (
        ["--data", str(scenes), *TINY, "--epochs", "1"],
        setup.read_everything,
        [],
    )

    def another_begins(*args):
        if not inner:
            inner.append(None)
            inner.append(train.main(command))  # while the first one reads its images
        return reading(*args)

    monkeypatch.setattr(setup, "read_everything", another_begins)
    assert train.main(command) == 0 and inner[1] == 0
    assert sorted(f.name for f in (tmp_path / "runs").iterdir()) == ["scenes", "scenes-2"]
    shutil.rmtree(tmp_path / "runs")
    assert train.main([*command, "--crop", "900x900"]) == 2 and not (tmp_path / "runs").exists()


def test_what_depends_on_the_machine_may_change_on_resume(scenes, tmp_path, monkeypatch, capsys):
    assert train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY, "--recompute"]) == 0
    saved = read_tensors(tmp_path / "last.pt")
    for group in saved["optimizer"]["param_groups"]:
        group.update(fused=None, foreach=True)  # as a GPU's optimizer has them
    save_tensors(saved, tmp_path / "last.pt")
    runs = []
    monkeypatch.setattr(
        train,
        "train",
        lambda run, stop, function=train.train: runs.append(run) or function(run, stop),
    )
    assert (
        train.main(
            ["--resume", "--out", str(tmp_path), "--epochs", "4", "--amp", "bf16", "--no-recompute"]
        )
        == 0
    )
    assert runs[0].settings["amp"] == "bf16" and runs[0].settings["recompute"] is False
    assert {(group["fused"], group["foreach"]) for group in runs[0].optimizer.param_groups} == {
        (True, None)
    }


def test_two_runs_at_once_into_one_folder_are_refused(scenes, tmp_path, capsys):
    with folder.lock_folder(tmp_path, resume=False):
        assert train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY]) == 2
        assert "another process" in capsys.readouterr().err
    assert (
        train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY]) == 0
    )  # the lock goes with its holder


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_nothing_that_is_not_finite_reaches_the_disk_and_the_step_is_said(
    scenes, tmp_path, monkeypatch, capsys, where
):
    calls = []

    def broken(*args):
        calls.append(1)
        value = cross_entropy(*args)
        if len(calls) == 5:
            value = (
                value * float("nan")
                if where == "loss"
                else (value - value.detach()).sqrt() + value.detach()
            )
        return value

    monkeypatch.setattr(train, "cross_entropy", broken)
    assert train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY]) == 2
    error = capsys.readouterr().err
    assert "at step 5" in error and "--lr" in error and error.count("\n") == 1
    saved = read_tensors(tmp_path / "last.pt")
    assert saved["step"] == 4 and all(value.isfinite().all() for value in saved["model"].values())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
    ],
)
def test_out_of_memory_is_one_line_that_names_what_needs_less(
    scenes, tmp_path, monkeypatch, capsys, error
):
    def full(*args):
        raise error

    monkeypatch.setattr(train, "cross_entropy", full)
    assert train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "--crop" in said and "--batch-size" in said


def test_debug_shows_where_an_error_arose(tmp_path):
    with pytest.raises(InputError):
        train.main(["--data", str(tmp_path / "none"), "--debug"])


def test_a_run_is_not_resumed_on_other_images(scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "data")
    assert (
        train.main(["--data", str(tmp_path / "data"), "--out", str(tmp_path / "run"), *TINY]) == 0
    )
    for file in (tmp_path / "data/training").rglob("uu_*000002.*"):
        file.unlink()
    capsys.readouterr()
    assert train.main(["--resume", "--out", str(tmp_path / "run"), "--epochs", "4"]) == 2
    assert "other" in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_a_run_is_not_resumed_with_its_images_of_one_name_exchanged(tmp_path, capsys):
    for name in ("x/1", "y/1", "x/2", "y/3"):
        for part, pixels in (("images", (32, 48, 3)), ("masks", (32, 48))):
            picture(tmp_path / f"set/{part}/{name}.png", np.indices(pixels)[1] % 2)
    (tmp_path / "set/val.txt").write_text("y/1\n")
    assert train.main(["--data", str(tmp_path / "set"), "--out", str(tmp_path / "run"), *TINY]) == 0
    (tmp_path / "set/val.txt").write_text("x/1\n")
    capsys.readouterr()
    assert train.main(["--resume", "--out", str(tmp_path / "run"), "--epochs", "4"]) == 2
    assert "or others; begin a new run with these" in capsys.readouterr().err


def test_a_checkpoint_of_earlier_versions_which_has_names_alone_goes_on(scenes, tmp_path):
    assert train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY]) == 0
    saved = read_tensors(tmp_path / "last.pt")
    saved["images"] = [[name.rpartition("/")[2] for name in part] for part in saved["images"]]
    for name in ("images", "masks"):
        del saved["settings"][name]
    best = read_tensors(tmp_path / "best.pt")
    del (
        saved["model"]["_extra_state"],
        best["model"]["_extra_state"],
        saved["sizes"],
        saved["spent"],
    )
    save_tensors(saved, tmp_path / "last.pt")
    save_tensors(best, tmp_path / "best.pt")
    assert (
        train.main(["--resume", "--out", str(tmp_path)]) == 0
    )  # nothing is left but the last scores, of this best.pt
    assert train.main(["--resume", "--out", str(tmp_path), "--epochs", "4"]) == 0


def test_a_lost_best_network_is_said_at_once_and_replaced(scenes, tmp_path, capsys):
    assert train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY]) == 0
    (tmp_path / "best.pt").unlink()
    capsys.readouterr()
    assert train.main(["--resume", "--out", str(tmp_path), "--epochs", "4"]) == 0
    assert "best.pt: is lost" in capsys.readouterr().out and (tmp_path / "best.pt").exists()


def test_a_finished_run_whose_best_network_is_lost_says_how_to_find_another(
    scenes, tmp_path, capsys
):
    assert train.main(["--data", str(scenes), "--out", str(tmp_path), *TINY]) == 0
    (tmp_path / "best.pt").unlink()
    capsys.readouterr()
    assert train.main(["--resume", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "best.pt: is lost" in error and "--epochs 4" in error and error.count("\n") == 1


def test_an_illegal_memory_access_is_no_want_of_memory():
    assert not errors.out_of_memory(
        RuntimeError("CUDA error: an illegal memory access was encountered")
    )
    assert (
        errors.explanation(InputError("/data/out of memory: no such folder"), "")
        == "/data/out of memory: no such folder"
    )
