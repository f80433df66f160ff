"""The walkthrough and the exercises match the code."""

import re

import pytest
import torch
from conftest import ROOT, lively
from PIL import Image

from tools import walkthrough

PAGE = walkthrough.PAGE.read_text(encoding="utf-8")
EXERCISES = (ROOT / "docs/exercises.md").read_text(encoding="utf-8")


def block(name):
    return re.search(rf"<!-- {name} -->\n```text\n(.*?)\n```", PAGE, re.DOTALL)[1].splitlines()


def numbers(line):
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", line)]


def test_the_page_has_the_numbers_that_the_command_computes():
    assert all(f"<!-- {name} -->" in PAGE for name in walkthrough.BLOCKS)
    exact = [name for name in walkthrough.BLOCKS if name != "losses"]
    assert walkthrough.filled_in(PAGE, exact) == PAGE


def test_the_losses_on_the_page_match_a_training_run():
    steps, losses = (numbers(line) for line in block("losses"))
    assert steps == list(walkthrough.STEPS)
    computed = numbers(walkthrough.losses((1, 2, 10)).splitlines()[1])
    assert computed == pytest.approx(losses[:3], rel=0.02)  # processors round differently
    assert losses[2] > losses[3] > losses[4]


def test_the_numbers_by_hand_match_pytorch():
    inputs = torch.from_numpy(walkthrough.FIVE).float()[None, None]
    kernel = torch.tensor([[[0.25, 0.75, 0.75, 0.25]]])
    for line, padding in (("sum", 0), ("padding 1", 1)):
        printed = next(row for row in block("transposed convolution") if row.startswith(line))
        wanted = torch.nn.functional.conv_transpose1d(inputs, kernel, stride=2, padding=padding)
        assert numbers(printed.removeprefix(line)) == wanted.flatten().tolist()


def test_pictures_are_drawn_at_the_size_that_the_page_shows(tmp_path):
    net, names = lively(pad=1, stride=8), re.findall(r"assets/(way-\w+).png", PAGE)
    assert names == ["way-in", "way-back"]
    for name in names:
        getattr(walkthrough, name.replace("-", "_"))(net, tmp_path / f"{name}.png")
        drawn, shown = Image.open(tmp_path / f"{name}.png"), Image.open(ROOT / f"assets/{name}.png")
        assert drawn.size == shown.size


PATCHES = re.findall(r"```diff\n(.*?)```", EXERCISES, re.DOTALL)


def test_every_patch_of_the_exercises_is_checked():
    assert len(PATCHES) == EXERCISES.count("\n--- ") > 0


@pytest.mark.parametrize("patch", PATCHES)
def test_each_exercise_patch_fits_the_code(patch):
    name, *lines = patch.splitlines()
    code = (ROOT / name.removeprefix("--- ")).read_text(encoding="utf-8")
    kept = [line[1:] for line in lines if line[0] in " -"]
    assert any(line[0] in "+-" for line in lines) and "\n".join(kept) in code
