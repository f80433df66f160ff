"""What surrounds training and prediction and is not learning: settings, device, progress, images, checkpoints, signals.

A run can be stopped at any moment and loses little. last.pt is the newest checkpoint and before.pt the one before it:
whatever happens while one is written, the other is whole. A lock keeps a second process out of the folder. A first
Ctrl-C (or SIGTERM, which machines that are taken away send) ends the run after the step under way, with a checkpoint; a
second one ends it at once.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import io
import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from data import DataSet, Reader, calibration_of
from metrics import homography
from vgg import InputError, read_tensors

try:
    import fcntl
except ImportError:  # Windows has other locks
    import msvcrt
    fcntl = None

# What a checkpoint holds, and of what kind.
PARTS = {"settings": dict, "config": dict, "classes": list, "images": list, "model": dict, "optimizer": dict, "step": int,
         "loss_sum": torch.Tensor, "best": float, "log": list}


# ---- command line and device ----------------------------------------------------------------------------------------

def like(pattern: str, what: str, kind=str):
    """For argparse: a text of this form, as `kind`; else one line that says what it should be."""
    def convert(text):
        if not re.fullmatch(pattern, text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
        return kind(text)
    return convert


def size(text: str) -> tuple[int, int] | None:
    """"HxW" to (H, W), "none" to None."""
    return None if text == "none" else tuple(int(side) for side in text.split("x"))


def settle(options: dict, saved: dict | None, defaults: dict[str, tuple], free: set[str]) -> dict:
    """Settings in force: what was said, else (on resuming) what the run was started with, else the `defaults`.

    Each has three: with --data, for synthetic roads, and for --recipe paper. Raises InputError if on resuming something
    was said that is not `free` and not as it was.
    """
    column = 2 if options["recipe"] == "paper" else 0 if options["data"] else 1
    settings = {"data": options["data"], **{name: values[column] for name, values in defaults.items()}}
    settings.update(saved["settings"] if saved else {})
    for name, value in options.items():
        if name in settings and value is not None:
            if saved and name not in free:
                if value not in ("auto", settings[name]):  # it goes on with what auto came to
                    raise InputError(f"--{name.replace('_', '-')} {value}: the run to resume has {settings[name]}")
            else:
                settings[name] = value
    return settings


def one_line(error: Exception, needs_less: str) -> str:
    """What to say of an error that a user can mend; `needs_less` is the mend if memory ran out. "" of any other error."""
    if isinstance(error, (InputError, OSError)):
        return str(error)  # both show a file's name without line ends
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return f"--compile: {str(error).splitlines()[0]}; leave it out, or install a C++ compiler"
    if out_of_memory(error):
        return f"out of memory: {needs_less} ({(str(error) or 'no room').splitlines()[0]})"
    return ""


def out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. PyTorch says so in several ways, with and without a class of its own."""
    return isinstance(error, MemoryError) or bool(
        re.search("out of memory|can't allocate|not enough memory|ALLOC_FAILED|size calculation overflowed", str(error)))


def pick_device(name: str, local: int = 0) -> torch.device:
    """The device of this name; of "auto" or "cuda" the GPU with the number `local`. Raises InputError if it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{local}" if name == "cuda" else name)
        if device.type not in ("cpu", "cuda"):
            raise InputError(f"--device {name}: the devices here are cpu and cuda")
        torch.zeros(1, device=device)
        if device.type == "cuda":
            torch.cuda.set_device(device)  # for what asks for no device by name, as communication between processes
            torch.set_float32_matmul_precision("high")  # fp32: fc6, a matrix product, in TF32 as cuDNN's convolutions are
    except (RuntimeError, AssertionError) as error:  # AssertionError: a PyTorch built without CUDA
        if out_of_memory(error):
            raise  # there is one, but others have filled it
        few = f"; there are {torch.cuda.device_count()} GPUs for the processes of this machine" if local else ""
        raise InputError(f"--device {name}: PyTorch has no such device here{few}; use --device cpu") from None
    return device


def keep_memory(device: torch.device) -> Callable[[tuple], object]:
    """Have memory that is freed within a step kept and used again: the system hands it out anew page by page.

    A step frees and fetches gigabytes, most in pieces too large for what the allocator keeps by itself. On a CPU it makes a
    prediction 1.2 times as fast, and a training step 1.1 times. Linux's usual C library only; elsewhere nothing happens.

    Returns a function, to be called after each step with the shape of its images, that gives back all that is free if the
    shape is another than before: where sizes vary, ever more lies in gaps too small for what is asked, and a run would
    grow from 2.8 to 5 GiB. It does so once in 30 seconds at most: to be fetched again, a gigabyte takes a quarter of one.
    """
    before, given = None, time.monotonic()

    def give_back(shape):
        nonlocal before, given
        if shape != before and time.monotonic() > given + 30:
            c.malloc_trim(0)
            given = time.monotonic()
        before = shape

    if device.type != "cpu":
        return lambda shape: None
    try:
        c = ctypes.CDLL(None)
        if not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):  # else somebody has decided
            c.mallopt(-4, 0)   # M_MMAP_MAX: no piece lies outside the heap, whence it would go back when it is freed
            c.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the end of the heap does not go back either
        c.malloc_trim  # not every C library has it
        return give_back
    except (OSError, AttributeError, TypeError):
        return lambda shape: None


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


class Waiting:
    """What `source` yields; `seconds` is how long it has been waited for."""

    def __init__(self, source):
        self.source, self.seconds = iter(source), 0.0

    def __iter__(self):
        return self

    def __next__(self):
        started = time.perf_counter()
        try:
            return next(self.source)
        finally:
            self.seconds += time.perf_counter() - started


class Progress:
    """One line that moves on a terminal; elsewhere a plain line every half minute. Counts steps of some images each."""

    def __init__(self, total: int, done: int = 0, images: int = 1):
        self.total, self.done, self.first, self.images = total, done, done, images
        self.start = self.shown = time.perf_counter()
        self.live = sys.stdout.isatty()

    def due(self) -> bool:
        """One more step is done; whether it is time to show something."""
        self.done += 1
        return time.perf_counter() - self.shown >= (0.5 if self.live else 30)

    def show(self, text: str):
        self.shown = time.perf_counter()
        each = (self.shown - self.start) / (self.done - self.first)
        left = timedelta(seconds=round(each * (self.total - self.done)))
        text += f"  {self.images / each:.2f} images/s  {left} left"
        print(f"\r{text}\033[K" if self.live else text, end="" if self.live else "\n", flush=True)

    def line(self, text: str):
        print(f"\r\033[K{text}" if self.live else text, flush=True)


# ---- the images, before the first step --------------------------------------------------------------------------------

def check_images(data: DataSet, reader: Reader, crop: tuple[int, int] | None) -> np.ndarray:
    """Read every file once: no run shall die in its third hour of one that could have been read at the start.

    Raises InputError for what cannot be used: a picture, label or calibration; labels without a class that counts, or of
    one class alone; a `crop` larger than all images. Returns the number of training pixels of each class, int64 [C].
    """
    samples = data.train + data.val
    progress, largest = Progress(len(samples)), (0, 0)
    counting = {part: np.zeros(len(data.classes), np.int64) for part in ("training", "held-out")}

    def read(sample):
        if data.kitti and calibration_of(sample.image).is_file():
            homography(calibration_of(sample.image))
        label = reader(sample)[1]
        return label.shape, np.bincount(label.ravel(), minlength=256)[:len(data.classes)]

    with ThreadPoolExecutor() as pool:
        futures = [pool.submit(read, sample) for sample in samples]
        try:
            for i, future in enumerate(futures):
                (height, width), pixels = future.result()
                counting["training" if i < len(data.train) else "held-out"] += pixels
                largest = max(largest[0], height), max(largest[1], width)
                if progress.due():
                    progress.show(f"reading {i + 1}/{len(samples)} images")
        finally:
            pool.shutdown(cancel_futures=True)  # after an error: do not read what nobody will use
    progress.line(f"{len(samples)} images read, the largest {largest[1]}x{largest[0]}")
    for part, pixels in counting.items():
        if not pixels.any():
            raise InputError(f"{samples[0].label.parent}: no pixel of a {part} image has a class that counts; compare the "
                             "ids in the masks with classes.txt")
    if (counting["training"] > 0).sum() == 1:
        raise InputError(f"{samples[0].label.parent}: every training pixel that counts is of one class, "
                         f"{data.classes[counting['training'].argmax()]}; masks hold the ids 0, 1, 2, ..., and 255 is ignored: "
                         "where it marks the object, write 1 instead")
    if unseen := [name for name, pixels in zip(data.classes, counting["training"]) if not pixels]:
        progress.line(f"no training image shows: {', '.join(unseen)}")
    if crop and min(crop[0] - largest[0], crop[1] - largest[1]) > 0:
        raise InputError(f"--crop {crop[0]}x{crop[1]}: every image is smaller, the largest {largest[0]}x{largest[1]}; "
                         "leave it out for whole images")
    return counting["training"]


# ---- the folder of a run --------------------------------------------------------------------------------------------

def choose_folder(out: str | None, resume: bool, data: str | None) -> Path:
    """The folder of this run: `out`, or the first of runs/NAME, runs/NAME-2 ... that is free.

    Raises InputError if it holds a run that is not to be resumed: no run ever writes over another.
    """
    if resume and not out:
        raise InputError("--resume: say which run with --out runs/NAME")
    if out:
        if not resume:
            refuse_run(Path(out))
        return Path(out)
    stem = Path(data).resolve().name if data else "synthetic"
    names = [stem] + [f"{stem}-{i}" for i in range(2, 10000)]
    return next(folder for folder in (Path("runs") / name for name in names) if not folder.exists())


def refuse_run(out: Path):
    """Raise InputError if there is a run in the folder that could be resumed."""
    if (out / "last.pt").exists() or (out / "before.pt").exists():
        raise InputError(f"{out}: holds a run already; go on with --resume, or choose another --out")


def open_run(out: Path, resume: bool):
    """Lock the folder of a run, made if it is a new one, until the process ends, however it ends. Raises InputError.

    Returns the open lock file; the lock is gone when it is closed.
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


def load_checkpoint(out: Path) -> dict:
    """The newest whole checkpoint in a folder. One that is damaged is reported, and the one before it taken.

    The damaged file gets another name: the next checkpoint would else put it in the place of the whole one. Raises InputError.
    """
    reasons = []
    for name in ("last.pt", "before.pt"):
        try:
            saved = read_tensors(out / name)
            if not all(isinstance(saved.get(part), kind) for part, kind in PARTS.items()):
                raise InputError(f"{out / name}: is not a checkpoint of train.py")
        except InputError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            print(f"train.py: warning: {reason}; going on from {out / name}", file=sys.stderr)
            if (out / "last.pt").exists():
                os.replace(out / "last.pt", out / "damaged.pt")
        return saved
    raise InputError(reasons[0] if not (out / "before.pt").exists() else "; ".join(reasons))


def is_whole(checkpoint: Path) -> bool:
    """Whether there is a whole checkpoint of a network."""
    try:
        return "model" in read_tensors(checkpoint)
    except InputError:
        return False


def write_log(path: Path, rows: list[dict]):
    """log.csv from its rows. Raises InputError."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, dict.fromkeys(name for row in rows for name in row))
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_text(path: Path, text: str):
    """Write a file, all or nothing. Raises InputError."""
    beside = path.with_name(f"{path.name}.part")
    try:
        with open(beside, "w", newline="", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


# ---- signals --------------------------------------------------------------------------------------------------------

class Stopped(Exception):
    """A run has ended as it was asked to. `signal` is the number of the signal, `out` the folder."""

    def __init__(self, number: int, out: Path):
        self.signal, self.out = number, out


class Stop:
    """From `listen` to the end of the with block, the first SIGINT or SIGTERM only sets `asked` to its number.

    The loop looks at it and ends in good order. The second signal has its usual effect.
    """

    def __enter__(self) -> Stop:
        self.asked, self.usual = 0, {}
        return self

    def listen(self):
        self.usual = {number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(self, number, frame):
        self.asked = number
        os.write(2, b"\nstopping after this step, with a checkpoint; once more stops at once, without\n")
        for each in self.usual:
            signal.signal(each, signal.SIG_DFL)

    def __exit__(self, *error):
        for number, handler in self.usual.items():
            signal.signal(number, handler)
