"""What surrounds training and prediction and is not learning: options, device, progress, checkpoints, signals.

A run can be stopped at any moment and loses little. last.pt is the newest checkpoint and before.pt the one before it: whatever happens while one is written, the other is
whole. A lock keeps a second process out of the folder. A first Ctrl-C (or SIGTERM, which machines that are taken away
send) ends the run after the step under way, with a checkpoint; a second one ends it at once.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch

from vgg import InputError, read_tensors, save_tensors

try:
    import fcntl
except ImportError:  # Windows has other locks
    import msvcrt
    fcntl = None

PARTS = {"settings", "config", "classes", "model", "optimizer", "step", "loss_sum", "best", "log"}


# ---- command line and device ----------------------------------------------------------------------------------------

def like(pattern: str, what: str, kind=str):
    """For argparse: a text of this form, as `kind`; else one line that says what it should be."""
    def convert(text):
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return kind(text)
    return convert


def pick_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):  # AssertionError: a PyTorch built without CUDA
        raise InputError(f"--device {name}: PyTorch has no such device here; use --device cpu") from None
    return device


def use_bf16(amp: str, device: torch.device) -> bool:
    """Whether to compute in bf16: as told, or where the hardware has instructions for it (elsewhere it is slower)."""
    if amp != "auto":
        return amp == "bf16"
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)  # older ones only emulate it
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", flags))


class Progress:
    """One line that moves on a terminal; elsewhere a plain line every half minute. Counts images."""

    def __init__(self, total: int, done: int = 0):
        self.total, self.done, self.first = total, done, done
        self.start = self.shown = time.time()
        self.live = sys.stdout.isatty()

    def due(self, images: int) -> bool:
        """Counts them as done; whether it is time to show something."""
        self.done += images
        return time.time() - self.shown >= (0.5 if self.live else 30)

    def show(self, text: str):
        self.shown = time.time()
        each = (self.shown - self.start) / (self.done - self.first)
        text += f"  {1 / each:.2f} images/s  {timedelta(seconds=round(each * (self.total - self.done)))} left"
        print(f"\r{text}\033[K" if self.live else text, end="" if self.live else "\n", flush=True)

    def line(self, text: str):
        print(f"\r\033[K{text}" if self.live else text, flush=True)


# ---- the folder of a run --------------------------------------------------------------------------------------------

def choose_folder(out: str | None, resume: bool, data: str | None) -> Path:
    """The folder of this run: `out`, or the first of runs/NAME, runs/NAME-2 ... that is free.

    Raises InputError if it holds a run that is not to be resumed: no run ever writes over another.
    """
    if resume and not out:
        raise InputError("--resume: say which run with --out runs/NAME")
    if out:
        if not resume and any((Path(out) / name).exists() for name in ("last.pt", "before.pt", "log.csv")):
            raise InputError(f"{out}: holds a run already; go on with --resume, or choose another --out")
        return Path(out)
    stem = Path(data).resolve().name if data else "synthetic"
    names = [stem] + [f"{stem}-{i}" for i in range(2, 10000)]
    return next(folder for folder in (Path("runs") / name for name in names) if not folder.exists())


def open_run(out: Path):
    """Make the folder of a run and lock it until the process ends, however it ends. Raises InputError.

    Returns the open lock file; the lock is gone when it is closed.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "a+")
    except OSError as error:
        raise InputError(f"{out}: cannot be written to ({error.strerror}); choose another --out") from None
    try:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
    except OSError:
        lock.close()
        raise InputError(f"{out}: another process is training in this folder; wait for it, or choose another --out") from None
    return lock


def load(out: Path) -> dict:
    """The newest whole checkpoint in a folder. One that is damaged is reported, and the one before it taken."""
    reasons = []
    for name in ("last.pt", "before.pt"):
        try:
            saved = read_tensors(out / name)
            if not PARTS <= saved.keys():
                raise InputError(f"{out / name}: is not a checkpoint of train.py")
        except InputError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            print(f"train.py: warning: {reason}; going on from {out / name}", file=sys.stderr)
        return saved
    raise InputError(reasons[0] if not (out / "before.pt").exists() else "; ".join(reasons))


def save(content: dict, out: Path):
    """Make `content` last.pt, and what was last.pt before.pt. Raises InputError; last.pt or before.pt is whole then."""
    save_tensors(content, out / "last.pt", before=out / "before.pt")


def write_log(path: Path, rows: list[dict]):
    """log.csv from its rows, all or nothing. Raises InputError."""
    beside = path.with_suffix(".part")
    try:
        with open(beside, "w", newline="", encoding="utf-8") as file:
            names = dict.fromkeys(name for row in rows for name in row)  # calibration may have been added meanwhile
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(beside, path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


# ---- signals --------------------------------------------------------------------------------------------------------

class Stopped(Exception):
    """A run has ended as it was asked to. `signal` is the number of the signal, `out` the folder."""

    def __init__(self, number: int, out: Path):
        self.signal, self.out = number, out


class Stop:
    """Between enter and exit, the first SIGINT or SIGTERM only sets `asked` to its number; the second ends at once."""

    def __enter__(self) -> Stop:
        self.asked = 0
        self.usual = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def ask(self, number, frame):
        self.asked = number
        for each in self.usual:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *error):
        for number, handler in self.usual.items():
            signal.signal(number, handler)
