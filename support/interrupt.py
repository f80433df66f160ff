"""Ctrl-C while a script is still importing PyTorch, which takes seconds: one line instead of a traceback.

A script imports this first, and only if it is run, not if it is imported.
"""

from __future__ import annotations

import sys


def say_stopped(kind, error, trace):
    """In place of Python's own report of an error that nobody has caught. The exit status stays that of an interrupt."""
    if issubclass(kind, KeyboardInterrupt):
        print("\nstopped before anything was done", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


sys.excepthook = say_stopped
