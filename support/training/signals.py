"""How a run ends: done, stopped by a signal, or with one line that says what was wrong.

Ctrl-C (SIGINT) or SIGTERM, which preempted machines receive, ends the run after the current step,
with a checkpoint. A second Ctrl-C ends it at once. In set-up, before there is a folder, so does the
first signal.
Exit status: 0 done, 2 input that cannot be used, 130 or 143 stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from support.console import InputError, explanation, from_compiler, quoted
from support.training.distributed import Ranks


class Stopped(Exception):
    """A signal has ended the run: its number, the folder of the run, and what is to be said."""


# The errors that `exit_status` explains.
ENDINGS = (Stopped, KeyboardInterrupt, InputError, OSError, MemoryError, RuntimeError)


class Stop:
    """From `listen` to the end of the with block, signals only set a mark, see `requested`. Before,
    they raise KeyboardInterrupt.

    Further SIGTERMs have no effect: schedulers send one to every process of a job, and torchrun
    passes its own on to processes that already have one. A second Ctrl-C ends at once, but only
    where there is one process.
    """

    def __init__(self, ranks: Ranks):
        self.ranks, self.asked, self.handlers = ranks, 0, {}

    def __enter__(self) -> Stop:
        if self.ranks.first:  # the others wait for it, where Python handles no signal
            self.set_handler(interrupt)
        return self

    def listen(self):
        self.set_handler(self.handle)

    def set_handler(self, handler: Callable):
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.signal(number, handler)
            self.handlers.setdefault(number, before)

    def handle(self, number, frame):
        alone = self.ranks.size == 1
        if not self.asked:
            self.asked = number
            again = b"; Ctrl-C once more stops at once, without one" if alone else b""
            os.write(2, b"\nstopping after this step, with a checkpoint" + again + b"\n")
        elif alone and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def requested(self) -> int:
        """The number of the signal that any process has received, else 0.

        Called by all processes at the same step; all get the same answer. Several processes ask
        each other, which also shows when one is lost.
        """
        return self.asked if self.ranks.size == 1 else self.ranks.max(self.asked)

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


def interrupt(number, frame):
    raise KeyboardInterrupt(number)


def exit_status(error: BaseException, debug: bool, resume: bool, stop: Stop) -> int:
    """Print in one line why train.py ends, and return its exit status.

    Raises the error again if the user cannot fix it, or with --debug.
    """
    ranks = stop.ranks
    if isinstance(error, Stopped):
        ranks.leave()
        number, out, told = error.args
        if ranks.first:
            command = f"python train.py --resume --out {quoted(out)}"
            print(f"stopped by {signal.Signals(number).name}; {told}: {command}", file=sys.stderr)
        return 128 + number
    if isinstance(error, KeyboardInterrupt):  # in set-up: nothing has been learnt
        if ranks.first:
            print("stopped during set-up", file=sys.stderr)
        ranks.end()
        return 128 + (error.args or [signal.SIGINT])[0]
    needs_less = "--recompute needs less"
    if not resume:
        needs_less = "a smaller --crop or --batch-size needs less, and so does --recompute"
    message = explanation(error, needs_less) or ranks.lost(error)
    if debug or not message:
        raise error
    status = 2
    if stop.asked and from_compiler(error):  # the signal has ended the compiler too
        status = 128 + stop.asked
        message = (
            f"{signal.Signals(stop.asked).name} has ended the compiler, so this step has no "
            "checkpoint; --resume goes on from the last one, if there is one"
        )
    print(f"train.py: error: {message}", file=sys.stderr, flush=True)
    ranks.end()  # only now: parting from GPUs that have lost each other may take long
    return status
