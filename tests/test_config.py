"""Settings: from the command line, from a saved run, or resolved from "auto"."""

from dataclasses import asdict, fields

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcn import FCN8s
from support.console import InputError
from support.labels import DataSet
from support.training.config import configure, resolve
from support.training.optimizer import learning_rate
from train import DEMO, PAPER, Config
from vgg import VGG16

CPU, GPU = torch.device("cpu"), torch.device("cuda")
ROAD, STREET = ["not road", "road"], ["sky", "road", "car"]
CONVOLUTIONS = {name: p for name, p in VGG16(width=1 / 64).state_dict().items() if "fc" not in name}


def resolved(given=None, classes=ROAD, images=100, sizes=(375, 1242), weights=None, device=CPU):
    """The Config of a new run on a folder of data."""
    config = configure({"data": "d", "amp": "off", **(given or {})}, None, Config, DEMO, PAPER, 1)
    data = DataSet("", classes, [None] * images, [], lambda path: None)
    resolve(config, data, {"median": sizes, "largest": sizes}, weights, device, PAPER)
    return config


# ---- defaults ----


def test_auto_settings_are_resolved_except_those_set_later():
    later = {"device", "workers", "save_every", "weights", "skip_gain", "images", "masks"}
    assert {name for name, value in asdict(resolved()).items() if value == "auto"} == later


@pytest.mark.parametrize(
    "classes, class_weights, frozen, resize", [(ROAD, "none", 2, 1), (STREET, "sqrt", 3, 1.5)]
)
def test_auto_settings_differ_for_road_and_several_classes(classes, class_weights, frozen, resize):
    random = resolved(classes=classes, sizes=(360, 480))
    assert (random.class_weights, random.freeze, random.resize) == (class_weights, 0, resize)
    assert resolved(classes=classes, weights=CONVOLUTIONS).freeze == frozen
    assert resolved({"freeze": 0}, classes, weights=CONVOLUTIONS).freeze == 0
    assert resolved(classes=classes).resize == 1  # large images


@pytest.mark.parametrize(
    "task, flip, mirrored",
    [("road", "auto", "yes"), ("lane", "auto", "no"), ("lane", "yes", "yes"), ("road", "no", "no")],
)
def test_lanes_are_not_mirrored(task, flip, mirrored):
    assert resolved({"task": task, "flip": flip}).flip == mirrored


@pytest.mark.parametrize(
    "device, images, more, epochs",
    [
        (CPU, 100, {}, 14),
        (GPU, 100, {}, 60),
        (GPU, 100, {"batch_size": 10}, 120),  # 1,200 steps
        (CPU, 10, {"epochs": 3}, 3),
        # The authors' iterations: solver.prototxt and solve.py of their four networks
        (CPU, 8498, {"recipe": "paper"}, 36),
        (CPU, 8498, {"recipe": "paper", "stride": 32}, 12),
        (CPU, 8498, {"recipe": "paper", "skip_gain": {"pool4": 1, "pool3": 1}}, 12),
    ],
)
def test_the_default_epochs_depend_on_device_and_data(device, images, more, epochs):
    assert resolved(more, images=images, device=device).epochs == epochs


def test_width_and_fc_channels_default_to_those_of_the_weights():
    checkpoint = FCN8s(2, width=1 / 64, fc_channels=7)
    checkpoint.classes = ROAD
    for weights, width in ((None, 1), (CONVOLUTIONS, 1), (checkpoint.to_checkpoint(), 1 / 64)):
        assert resolved(weights=weights).width == width
        assert resolved({"width": 0.5, "weights": "none"}, weights=weights).width == 0.5
    for weights, channels in (
        (None, 4096),
        (CONVOLUTIONS, 512),
        (VGG16(width=1 / 64, fc_channels=6).state_dict(), 6),
        (checkpoint.to_checkpoint(), 7),
    ):
        assert resolved(weights=weights).fc_channels == channels
        assert resolved({"fc_channels": 9}, weights=weights).fc_channels == 9


def test_the_paper_recipe_has_the_authors_settings():
    """solver.prototxt and train.prototxt of voc-fcn8s-atonce."""
    authors = dict(
        lr=1e-10, momentum=0.99, weight_decay=5e-4, reduction="sum", batch_size=1, clip=0,
        augment=False, flip="no", crop="none", resize=1, warmup=0, power=0, class_weights="none",
        pad=100, stride=8, skip_gain={"pool4": 0.01, "pool3": 0.0001}, fc_channels=4096,
        dropout=0.5, freeze=0,
        learn_upsampling=False, amp="off",
    )  # fmt: skip
    config = asdict(resolved({"recipe": "paper"}, STREET, sizes=(360, 480), weights=CONVOLUTIONS))
    assert {name: config[name] for name in authors} == authors


@given(total=st.integers(1, 500), peak=st.floats(1e-6, 1))
def test_the_learning_rate_warms_up_and_decays(total, peak):
    rates = [learning_rate(step, total, Config(lr=peak)) for step in range(total)]
    top = rates.index(max(rates))
    assert min(rates) > 0 and max(rates) == pytest.approx(peak)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert total < 20 or (top <= 0.05 * total + 1 and rates[-1] < 0.15 * peak)
    paper = Config(**{**PAPER, "lr": peak})
    assert {learning_rate(step, total, paper) for step in range(total)} == {peak}


# ---- a resumed run ----


def test_a_resumed_run_keeps_its_settings():
    saved = asdict(resolved({"lr": 0.5, "seed": 3}, STREET))
    free = {"data": "moved", "epochs": 99, "workers": 5, "amp": "bf16", "recompute": True}
    resumed = configure({"resume": True, **free, "freeze": "auto"}, saved, Config, DEMO, PAPER, 1)
    assert asdict(resumed) == {**saved, **free, "resume": True}
    with pytest.raises(InputError, match=r"--fc-channels 3: the run to resume has 4096"):
        configure({"fc_channels": 3}, saved, Config, DEMO, PAPER, 1)


# ---- the command line ----


def test_the_help_of_train_names_every_option_and_default(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # so that no line is broken
    status, said, error = command("train.py", "--help")
    assert (status, error) == (0, "")
    for field in (field for field in fields(Config) if field.metadata):
        _, option, text = said.partition(f"\n  --{field.name.replace('_', '-')}")
        assert option, field.name
        default = "384x1248" if field.name == "crop" else field.default
        assert default in (None, False) or f"(default {default})" in text.partition("\n  --")[0]


@pytest.mark.parametrize("script", "fcn data kitti train predict export".split())
def test_every_command_answers_help(command, script):
    status, said, error = command(f"{script}.py", "--help")
    assert status == 0 and said.startswith("usage:") and not error
