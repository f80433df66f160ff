"""The folder of a run: chosen, and locked for one process.

A run never writes into the folder of another run, and a lock keeps a second process out while the first is at work.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from support.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has other locks
    import msvcrt
    fcntl = None


def choose_folder(out: str | None, resume: bool, data: str | None, claim: bool) -> Path:
    """The folder of this run: `out`, or the first of runs/NAME, runs/NAME-2 ... that is free.

    claim    make a folder of the latter kind at once, so that no other run takes it; `give_up` removes it again

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
            raise InputError(f"{folder}: cannot be written to ({error.strerror}); choose a folder with --out") from None
        return folder


def give_up(out: Path):
    """Remove the folder of a run that could not begin, and the folder runs, if there is nothing in them."""
    for folder in (out, out.parent):
        with suppress(OSError):
            folder.rmdir()


def refuse_run(out: Path):
    """Raise InputError if there is a run in the folder that could be resumed."""
    if (out / "last.pt").exists() or (out / "before.pt").exists():
        raise InputError(f"{out}: holds a run already; go on with --resume, or choose another --out")


def lock_folder(out: Path, resume: bool):
    """Lock the folder of a run until the process ends, however it ends; make the folder if the run is new.

    Returns the open lock file; the lock is gone when it is closed. Raises InputError if another process has the lock, or if
    there is no such run to resume.
    """
    if resume and not out.is_dir():
        raise InputError(f"{out / 'last.pt'}: there is no such run to resume")
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
    except (BlockingIOError, PermissionError):
        lock.close()
        raise InputError(f"{out}: another process is training in this folder; wait for it, or choose another --out") from None
    except OSError as error:  # some network file systems have no locks
        print(f"warning: {out} cannot be locked ({error.strerror}); do not train twice in it", file=sys.stderr)
    if not resume:
        refuse_run(out)  # again: another process may have been quicker
    for left in out.glob("*.part"):  # of writes that were killed
        left.unlink()
    return lock
