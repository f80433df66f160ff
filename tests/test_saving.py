"""Checkpoints come often enough, and cost little: on a fake clock, with disks and steps of any speed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support import saving
from support.saving import SECONDS, STEPS, TIMES, Saving


def steps_of(monkeypatch, every, step_takes, save_takes, steps):
    """(the steps after which a checkpoint was written, when it was begun, the time of the whole run)."""
    now = [0.0]
    monkeypatch.setattr(saving.time, "perf_counter", lambda: now[0])
    clock, written = Saving(every), []
    for step in range(1, steps + 1):
        now[0] += step_takes
        if clock.due(step):
            written.append((step, now[0]))
            with clock.one():
                now[0] += save_takes
    return written, now[0]


@given(step_takes=st.floats(0.005, 20), save_takes=st.floats(0.01, 30))
def test_checkpoints_take_a_fiftieth_of_the_time_at_most_and_come_as_often_as_that_allows(step_takes, save_takes):
    with pytest.MonkeyPatch.context() as monkeypatch:
        written, took = steps_of(monkeypatch, "auto", step_takes, save_takes, 6000)
    times = [0.0] + [at for _, at in written]
    assert (len(written) - 1) * save_takes <= took / TIMES  # before the first one nobody knows what it costs
    longest = max(b - a for a, b in zip(times, times[1:])) if len(times) > 1 else took
    # As soon as 500 steps are full, or five minutes, unless the last one was too costly; then at the next such moment.
    assert longest <= max(min(STEPS * step_takes, SECONDS), TIMES * save_takes) + save_takes + min(STEPS * step_takes, SECONDS) + step_takes


@given(every=st.integers(1, 700), step_takes=st.floats(0.005, 1), save_takes=st.floats(0.01, 30))
def test_what_a_person_asks_for_is_done_whatever_it_costs(every, step_takes, save_takes):
    with pytest.MonkeyPatch.context() as monkeypatch:
        written, _ = steps_of(monkeypatch, every, step_takes, save_takes, 2000)
    assert {every * i for i in range(1, 2000 // every + 1)} <= {step for step, _ in written}


def test_a_slow_machine_loses_five_minutes_at_most(monkeypatch):
    written, _ = steps_of(monkeypatch, "auto", 7.0, 1.0, 1000)
    times = [0.0] + [at for _, at in written]
    assert max(b - a for a, b in zip(times, times[1:])) <= SECONDS + 7 + 1 + 1e-6 and len(written) > 20
