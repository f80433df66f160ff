"""What the settings come to: the learning rate of every step, and how many steps there are."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train
from support.labels import DataSet
from support.training import options
from support.training.optimizer import learning_rate

DEFAULTS, PAPER = (
    {name: values[column] for name, values in train.DEFAULTS.items()} for column in (0, 2)
)


@given(total=st.integers(1, 500), peak=st.floats(1e-6, 1))
def test_the_rate_rises_to_its_peak_and_falls_towards_zero(total, peak):
    settings = {**DEFAULTS, "lr": peak}
    rates = [learning_rate(step, total, settings) for step in range(total)]
    top = rates.index(max(rates))
    assert all(rate > 0 for rate in rates) and max(rates) == pytest.approx(peak)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(
        rates[top:], reverse=True
    )
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
    for stage in (
        {"stride": 32},
        {"stride": 16, "skip_scale": "1,1"},
        {"stride": 8, "skip_scale": "1,1"},
    ):
        assert abs(steps(**stage) - 100_000) < 8498


@pytest.mark.parametrize(
    "classes, class_weights, frozen",
    [(["not road", "road"], "none", 2), (["sky", "road", "car"], "sqrt", 3)],
)
def test_the_recipe_follows_from_whether_a_road_or_several_classes_are_sought(
    classes, class_weights, frozen
):
    for weights, blocks in ((None, 0), ({}, frozen)):  # random ones have to learn
        settings = dict(DEFAULTS)
        options.resolve_auto(
            settings,
            DataSet("", classes, [], [], lambda path: None),
            torch.device("cpu"),
            weights,
            100,
        )
        assert "auto" not in (
            settings["epochs"],
            settings["fc_channels"],
            settings["amp"],
            settings["flip"],
        )
        assert (settings["class_weights"], settings["freeze"]) == (class_weights, blocks)
