"""The folder of a run: chosen, and locked for one process.

A run never writes into the folder of another run, and a lock keeps a second process out while the
first is at work.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import torch

from support.checkpoint import save_tensors
from support.console import InputError

try:
    import fcntl
except ImportError:  # Windows has other locks
    import msvcrt

    fcntl = None


def choose_folder(out: str | None, resume: bool, data: str | None, claim: bool) -> Path:
    """The folder of this run: `out`, or the first of runs/NAME, runs/NAME-2 ... that is free.

    claim    make a folder of the latter kind at once, so that no other run takes it; `give_up`
             removes it again

    Raises InputError if it holds a run that is not to be resumed.
    """
    if resume and not out:
        raise InputError("--resume: say which run with --out runs/NAME")
    if out:
        if not resume:
            refuse_run(Path(out))
        return Path(out)
    stem = Path(data).resolve().name if data else "synthetic"
    names = [stem] + [f"{stem}-{i}" for i in range(2, 10000)]
    for folder in (Path("runs") / name for name in names):
        try:
            if not claim:
                return folder  # the first process chooses
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written to ({error.strerror}); choose a folder with --out"
            ) from None
        return folder


def give_up(out: Path):
    """Remove the folder of a run that could not begin, and the folder runs, if there is nothing in
    them.
    """
    for folder in (out, out.parent):
        with suppress(OSError):
            folder.rmdir()


def refuse_run(out: Path):
    """Raise InputError if there is a run in the folder that could be resumed."""
    if (out / "last.pt").exists() or (out / "before.pt").exists():
        raise InputError(
            f"{out}: holds a run already; go on with --resume, or choose another --out"
        )


def lock_folder(out: Path, resume: bool):
    """Lock the folder of a run until the process ends, however it ends; make the folder if the run
    is new.

    Returns the open lock file; the lock is gone when it is closed. Raises InputError if another
    process has the lock, or if there is no such run to resume.
    """
    if resume and not out.is_dir():
        raise InputError(f"{out / 'last.pt'}: there is no such run to resume")
    try:
        out.mkdir(parents=True, exist_ok=True)
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
            f"{out}: another process is training in this folder; wait for it, or choose another --out"
        ) from None
    except OSError as error:  # some network file systems have no locks
        print(
            f"warning: {out} cannot be locked ({error.strerror}); do not train twice in it",
            file=sys.stderr,
        )
    if not resume:
        refuse_run(out)  # again: another process may have been quicker
    for left in out.glob("*.part"):  # of writes that were killed
        left.unlink()
    return lock


# ---- When and how the checkpoints of a run are written: often enough that little is lost, and s

STEPS = 500  # last.pt is due after so many steps
SECONDS = 300  # or after so many seconds, if the steps are slow
TIMES = 50  # but a file is not written again before 50 times as long has passed as writing it took: so each takes 2 % of
# the time at most. A step of a fast GPU takes a hundredth of a second, a checkpoint of 1 GB some
# seconds


class Saving:
    """The checkpoints of one run: last.pt, from which it is resumed, and best.pt, its best network
    so far.

    every    steps between two last.pt, as a person asked for; or "auto": as above
    device   where the tensors are. From a GPU they are copied, and a thread writes them while the
             loop goes on; a processor writes them at once, since a copy would take the memory that
             the next step needs

    One file is written after the other, and a best.pt always before the last.pt that counts with
    it: so the pair on the disk is one from which a run can go on, whenever it is killed.
    """

    def __init__(self, every: int | str, device: torch.device):
        self.every, self.waiting, self.under_way = every, None, None
        self.writer = None if device.type == "cpu" else ThreadPoolExecutor(1)
        self.written_at = {"best.pt": -float("inf"), "last.pt": time.perf_counter()}
        self.took = {"best.pt": 0.0, "last.pt": 0.0}

    def affordable(self, name: str) -> bool:
        if self.under_way and not self.under_way.done():
            return False
        return time.perf_counter() - self.written_at[name] > TIMES * self.took[name]

    def due(self, step: int) -> bool:
        """Whether last.pt should be written after step `step` (1, 2, ...)."""
        late = time.perf_counter() - self.written_at["last.pt"] > SECONDS
        if self.every != "auto":
            return step % self.every == 0 or late
        return self.affordable("last.pt") and (step % STEPS == 0 or late)

    def best(self, content: dict, out: Path):
        """Write best.pt; or, if the last one was written a moment ago, keep a copy of the network
        until `last` or `finish`.

        Raises InputError if this file, or the one before, cannot be written; so do `last` and
        `finish`.
        """
        self.waiting = None
        if self.affordable("best.pt"):
            self.write(content, out / "best.pt")
        else:
            self.waiting = on_host(content), out

    def last(self, content: dict, out: Path):
        """Write last.pt; the one before stays as before.pt until the next."""
        self.write_waiting()
        self.write(content, out / "last.pt", before=out / "before.pt")

    def write_waiting(self):
        if self.waiting:
            self.wait()  # if it raises, what waits is still there
            (content, out), self.waiting = self.waiting, None
            self.write(content, out / "best.pt")

    def write(self, content: dict, path: Path, before: Path | None = None):
        if self.writer:
            self.wait()
            self.written_at[path.name] = time.perf_counter()
            self.under_way = self.writer.submit(self.write_now, on_host(content), path, before)
        else:
            self.write_now(content, path, before)

    def write_now(self, content: dict, path: Path, before: Path | None):
        started = time.perf_counter()
        save_tensors(content, path, before)
        self.written_at[path.name] = time.perf_counter()
        self.took[path.name] = self.written_at[path.name] - started

    def wait(self):
        """Until the file under way is written. Raises InputError if it cannot be."""
        under_way, self.under_way = self.under_way, None
        if under_way:
            under_way.result()

    def finish(self):
        """Write what still waits, and wait for it. Raises InputError."""
        self.write_waiting()
        self.wait()

    def __enter__(self) -> Saving:
        return self

    def __exit__(self, *error):
        """However the run ends, the best network that is known is on the disk."""
        try:
            self.finish()
        finally:
            if self.writer:
                self.writer.shutdown()


def on_host(content):
    """A dictionary with all tensors within copied to the processor's memory."""
    if isinstance(content, dict):
        return {name: on_host(value) for name, value in content.items()}
    if isinstance(content, list):
        return [on_host(value) for value in content]
    return content.to("cpu", copy=True) if isinstance(content, torch.Tensor) else content
