"""The folder of a run: its name, its lock and its checkpoints.

A new run never writes into a folder that holds a run to resume.
"""

from __future__ import annotations

import json
import os
import time
from itertools import chain, count
from pathlib import Path

import torch

from support.checkpoint import read_checkpoint, write_checkpoint
from support.console import InputError, warn
from support.draw import draw_curves
from support.files import write_csv, write_text

try:
    import fcntl
except ImportError:  # Windows has other locks
    import msvcrt

    fcntl = None

SAVE_SECONDS = 300  # last.pt is due after this many seconds


class RunDir:
    """The folder of one run.

    path          the folder
    save_every    write last.pt every so many steps too; "auto": only every five minutes

    best.pt is always written before the last.pt that has its score, so a run can be resumed
    whenever it is killed. Raises InputError if a write fails.
    """

    def __init__(self, path: Path, save_every: int | str):
        self.path, self.save_every = path, save_every
        self.saved = time.perf_counter()  # when last.pt was written

    def write_config(self, content: dict):
        """Write config.json: settings, images and package versions."""
        write_text(self.path / "config.json", json.dumps(content, indent=2) + "\n")

    def write_log(self, log: list[dict], classes: list[str]):
        """Write log.csv, one row per epoch, and draw its curves."""
        write_csv(self.path / "log.csv", log)
        draw_curves(self.path / "curves.png", log, classes)

    def due(self, step: int) -> bool:
        """Whether last.pt should be written after step `step` (1, 2, ...)."""
        late = time.perf_counter() - self.saved > SAVE_SECONDS
        return late or (self.save_every != "auto" and step % self.save_every == 0)

    def save_best(self, content: dict):
        """Write best.pt."""
        write_checkpoint(to_host(content), self.path / "best.pt")

    def save_last(self, content: dict):
        """Write last.pt. The previous one becomes before.pt."""
        write_checkpoint(to_host(content), self.path / "last.pt", self.path / "before.pt")
        self.saved = time.perf_counter()


def to_host(content):
    """Nested dictionaries and lists with their tensors on the CPU, so that a plain torch.load reads
    the file on a machine without a GPU too.
    """
    if isinstance(content, dict):
        return {name: to_host(value) for name, value in content.items()}
    if isinstance(content, list):
        return [to_host(value) for value in content]
    return content.cpu() if isinstance(content, torch.Tensor) else content


def new_folder(out: str | None, data: str | None) -> Path:
    """Create the folder of a new run: `out`, or the first free one of runs/NAME, runs/NAME-2 ...

    data    the folder of the data set, whose name is NAME; for None, NAME is "synthetic"

    Raises InputError if the folder already holds a run, is the data set's, or cannot be created.
    """
    if out:
        folder = Path(out)
        require_no_run(folder)
        if data and folder.resolve() == Path(data).resolve():
            raise InputError(f"--out {out}: is the folder of the data set; choose another")
    else:
        stem = Path(data).resolve().name if data else "synthetic"
        names = chain([stem], (f"{stem}-{i}" for i in count(2)))
        folder = next(path for name in names if not (path := Path("runs", name)).exists())
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be created ({error.strerror}); choose another --out"
        ) from None
    return folder


def require_no_run(out: Path):
    """Raise InputError if the folder holds a run that could be resumed."""
    if (out / "last.pt").exists() or (out / "before.pt").exists():
        raise InputError(f"{out}: holds a run already; add --resume, or choose another --out")


def keep_best(out: Path):
    """Rename a best.pt of an earlier run in the locked folder of a new one."""
    best = out / "best.pt"
    if best.exists():
        free = (out / f"best-{i}.pt" for i in count(1))
        aside = next(path for path in free if not path.exists())
        os.rename(best, aside)
        print(f"{best}: is from an earlier run, renamed to {aside.name}")


def lock_folder(out: Path):
    """Lock the folder of a run until the process ends, however it ends, and delete partial files.

    Returns the open lock file; closing it releases the lock. Raises InputError if the folder does
    not exist or another process holds the lock.
    """
    if not out.is_dir():
        raise InputError(f"{out}: there is no such run to resume")
    try:
        lock = open(out / ".lock", "a+")
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written to ({error.strerror}); choose another --out"
        ) from None
    try:
        if fcntl:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        lock.close()
        raise InputError(
            f"{out}: another process is training in this folder; wait, or choose another --out"
        ) from None
    except OSError as error:  # some network file systems have no locks
        warn("train.py", f"{out} cannot be locked ({error.strerror}); train only one run in it")
    for name in ("config.json", "log.csv", "curves.png", "samples.png", "best.pt", "last.pt"):
        # Partial files of `atomic` after a kill. No other file matches.
        for left in out.glob(f"{name}.{'[0-9a-f]' * 8}.part"):
            left.unlink()
    return lock


def read_last(out: Path) -> dict:
    """The content of last.pt or, with a warning, of before.pt if last.pt is damaged or missing.

    A damaged last.pt is renamed to damaged.pt, or it would replace the intact before.pt at the next
    checkpoint. Raises InputError if neither is intact.
    """
    if not any((out / name).exists() for name in ("last.pt", "before.pt")):
        raise InputError(
            f"{out / 'last.pt'}: the run was stopped before its first checkpoint; start it again "
            "without --resume"
        )
    reasons = []
    for name in ("last.pt", "before.pt"):
        try:
            if not (out / name).exists():  # read_checkpoint would suggest best.pt
                raise InputError(f"{out / name}: is missing")
            saved = read_checkpoint(out / name)
            if "optimizer" not in saved:  # a renamed best.pt
                raise InputError(f"{out / name}: holds only a network, so it cannot be resumed")
        except InputError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            warn("train.py", f"{reason}; going on from {out / name}")
            if (out / "last.pt").exists():
                os.replace(out / "last.pt", out / "damaged.pt")
        return saved
    raise InputError("; ".join(reasons))


def require_same_data(folder, classes: list[str], images: list[list[str]], saved: dict):
    """Raise InputError if the run to resume had other classes or images."""
    if classes != saved["classes"]:
        raise InputError(
            f"{folder}: has the classes {', '.join(classes)}; the run to resume has "
            f"{', '.join(saved['classes'])}"
        )
    if images != saved["images"]:
        raise InputError(f"{folder}: has other images than the run to resume; start a new run")


def restore(optimizer: torch.optim.SGD, scaler: torch.amp.GradScaler, saved: dict):
    """Restore the momentum and the gradient scaler.

    The momentum is removed from `saved`, so that it is in memory only once.
    """
    optimizer.load_state_dict(saved.pop("optimizer"))
    for group in optimizer.param_groups:  # the checkpoint has those of the machine that wrote it
        group.update({name: optimizer.defaults[name] for name in ("fused", "foreach")})
    if scaler.is_enabled() and saved["scaler"]:
        scaler.load_state_dict(saved["scaler"])


def require_best(out: Path, best: float, log: list, epochs: int, steps_left: int) -> float:
    """The score that a new best network has to beat: the lower one of last.pt and best.pt, or -1 if
    best.pt is lost.

    Raises InputError if best.pt is lost and no step is left to find another, or if the run is
    already longer than `epochs`.
    """
    if steps_left < 0:
        raise InputError(f"--epochs {epochs}: the run has already done {len(log)}; choose more")
    if not log:
        return best
    try:
        # A best.pt from elsewhere, such as a backup, may score less than this run's best. One of an
        # epoch that will be repeated may score more.
        kept = read_checkpoint(out / "best.pt")
        if not {"best", "epoch", "result"} <= kept.keys():
            raise InputError(f"{out / 'best.pt'}: is not from this run")
        return min(best, kept["best"])
    except InputError as error:
        if not steps_left:
            raise InputError(
                f"{error}; no epoch is left to find another: use the last network in last.pt, or "
                f"go on with --epochs {epochs + 1}"
            ) from None
        warn("train.py", f"{error}; the best of the remaining epochs will replace it")
        return -1.0
