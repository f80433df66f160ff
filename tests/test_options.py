"""What the settings come to: the learning rate of every step, and how many steps there are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train
from support import options
from support.optimizer import learning_rate

DEFAULTS, PAPER = ({name: values[column] for name, values in train.DEFAULTS.items()} for column in (0, 2))


@given(total=st.integers(1, 500), peak=st.floats(1e-6, 1))
def test_the_rate_rises_to_its_peak_and_falls_towards_zero(total, peak):
    settings = {**DEFAULTS, "lr": peak}
    rates = [learning_rate(step, total, settings) for step in range(total)]
    top = rates.index(max(rates))
    assert all(rate > 0 for rate in rates) and max(rates) == pytest.approx(peak)
    assert rates[:top + 1] == sorted(rates[:top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert total < 20 or (top <= 0.05 * total + 1 and rates[-1] < 0.15 * peak)
    paper = {**PAPER, "lr": peak}
    assert {learning_rate(step, total, paper) for step in range(total)} == {peak}


def test_the_authors_recipe_makes_their_steps():
    """solver.prototxt and solve.py of voc-fcn32s, -16s, -8s and -8s-atonce."""
    def steps(**more):
        settings = {**PAPER, **more}
        return 8498 * options.suited_epochs(settings, 8498, torch.device("cpu"))

    assert PAPER["fc_channels"] == 4096
    assert abs(steps() - 300_000) < 8498
    for stage in ({"stride": 32}, {"stride": 16, "skip_scale": "1,1"}, {"stride": 8, "skip_scale": "1,1"}):
        assert abs(steps(**stage) - 100_000) < 8498
