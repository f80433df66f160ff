"""How a run ends: done, stopped by a signal, or with one line that says what was wrong.

Ctrl-C (SIGINT) or SIGTERM, which preempted machines receive, ends the run after the step under way,
with a checkpoint. A second Ctrl-C ends it at once, and so does the first one before the first step.
Exit status: 0 done, 2 input that cannot be used, 130 or 143 stopped by SIGINT or SIGTERM.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import Callable

from support.console import InputError, explanation
from support.training.distributed import Ranks


class Stopped(Exception):
    """A run has ended because a signal asked for it: its number, the folder of the run, and whether
    all steps were done.
    """

    def __init__(self, number: int, out: Path, trained: bool):
        self.signal, self.out, self.trained = number, out, trained


ENDINGS = (
    Stopped,
    KeyboardInterrupt,
    InputError,
    OSError,
    MemoryError,
    RuntimeError,
)  # what `exit_status` explains


class Stop:
    """From `listen` to the end of the with block, SIGINT and SIGTERM only set `asked` to the number
    of the first one.

    The loop looks at it between two steps. A repeated signal is the same request: schedulers send
    SIGTERM to every process of a job, and torchrun passes what it gets on to processes that have it
    already. Only a second Ctrl-C ends at once, and only where the process is `alone`.
    """

    def __init__(self, alone: bool = True):
        self.alone = alone

    def __enter__(self) -> Stop:
        self.asked, self.usual = 0, {}
        return self

    def listen(self):
        self.usual = {
            number: signal.signal(number, self.ask) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def ask(self, number, frame):
        if not self.asked:
            self.asked = number
            os.write(
                2,
                b"\nstopping after this step, with a checkpoint"
                + (b"; Ctrl-C once more stops at once, without one\n" if self.alone else b"\n"),
            )
        elif self.alone and number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def end_if_asked(self, ranks: Ranks, out: Path, save: Callable[[], None] | None = None):
        """If any process was asked to stop: call `save`, then raise Stopped. Called by all
        processes at the same step.

        Without `save`, the training is over and everything is saved.
        """
        asked = ranks.largest(self.asked)
        if asked:
            if save:
                save()
            raise Stopped(asked, out, trained=not save)

    def __exit__(self, *error):
        for number, handler in self.usual.items():
            signal.signal(number, handler)


def exit_status(error: BaseException, options: dict, ranks: Ranks) -> int:
    """Say on stderr, in one line, why train.py ends, and return its exit status. Raises errors that
    no user can mend.

    `options` are the command line's; with --debug every error is raised.
    """
    if isinstance(error, Stopped):
        ranks.leave()
        if ranks.first:
            quote = shlex.quote if os.name != "nt" else '"{}"'.format
            told = "go on with:"
            if error.trained:
                told = f"training is complete, {error.out / 'best.pt'} is the result; for the last scores:"
            print(
                f"stopped by {signal.Signals(error.signal).name}; {told} python train.py --resume --out "
                f"{quote(str(error.out))}",
                file=sys.stderr,
            )
        return 128 + error.signal
    if isinstance(
        error, KeyboardInterrupt
    ):  # while setting up: nothing has been learnt that could be lost
        if ranks.first:
            print("stopped before the first step", file=sys.stderr)
        ranks.end()
        return 130
    needs_less = (
        "--recompute needs less"
        if options["resume"]
        else "a smaller --crop or --batch-size needs less, and so does --recompute"
    )
    message = explanation(error, needs_less) or ranks.lost(error)
    if options["debug"] or not message:
        raise error
    print(f"train.py: error: {message}", file=sys.stderr, flush=True)
    ranks.end()  # only now: parting from GPUs that have lost each other may take long
    return 2
