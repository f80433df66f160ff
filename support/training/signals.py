"""How a run ends: done, stopped by a signal, or with a one-line error.

Ctrl-C (SIGINT) or SIGTERM, which preempted machines receive, ends the run after the current step,
with a checkpoint. A second Ctrl-C ends it at once. During set-up, the first signal does.
Exit status: 0 done, 2 input that cannot be used, 130 or 143 stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable

from support.console import InputError, explanation, quoted
from support.training.distributed import Ranks


class Stopped(Exception):
    """A signal has ended the run. Arguments: its number, the folder of the run, a message."""


# The errors that `exit_status` explains.
ENDINGS = (Stopped, KeyboardInterrupt, InputError, OSError, MemoryError, RuntimeError)


class Stop:
    """Handles SIGINT and SIGTERM in a with block. They raise KeyboardInterrupt; after `listen`,
    they are only recorded, see `requested`.

    Further SIGTERMs have no effect: schedulers send one to every process of a job, and torchrun
    passes on its own. A second Ctrl-C ends the run at once, if there is only one process.
    """

    def __init__(self, ranks: Ranks):
        self.ranks, self.asked, self.handlers = ranks, 0, {}

    def __enter__(self) -> Stop:
        if self.ranks.first:  # the others wait for it in a call that runs no handlers
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
            again = b"; Ctrl-C now stops at once, without one" if alone else b""
            os.write(2, b"\nstopping after this step, with a checkpoint" + again + b"\n")
        elif alone and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def requested(self) -> int:
        """The number of the signal that any process has received, or 0.

        All processes call this at the same step and get the same answer. If there are several, the
        exchange also detects a lost process.
        """
        return self.asked if self.ranks.size == 1 else self.ranks.max(self.asked)

    def __exit__(self, *error):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


def interrupt(number, frame):
    raise KeyboardInterrupt(number)


def exit_status(error: BaseException, debug: bool, resume: bool, ranks: Ranks) -> int:
    """Print in one line why train.py ends, and return its exit status.

    Raises the error again if the user cannot fix it, or with --debug.
    """
    if isinstance(error, Stopped):
        ranks.leave()
        number, out, told = error.args
        if ranks.first:
            command = f"python train.py --resume --out {quoted(out)}"
            print(f"stopped by {signal.Signals(number).name}; {told}: {command}", file=sys.stderr)
        return 128 + number
    if isinstance(error, KeyboardInterrupt):  # in set-up, before the first step
        if ranks.first:
            print("stopped during set-up", file=sys.stderr)
        ranks.end()
        return 128 + (error.args or [signal.SIGINT])[0]
    needs_less = "add --recompute"
    if not resume:
        needs_less = "choose a smaller --crop or --batch-size, or add --recompute"
    message = explanation(error, needs_less) or ranks.lost(error)
    if debug or not message:
        raise error
    print(f"train.py: error: {message}", file=sys.stderr, flush=True)
    ranks.end()  # last: leaving GPUs that have lost each other may take long
    return 2
