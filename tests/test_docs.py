"""The programs in README and docs/programs.md run as they stand."""

import importlib.util
import re

import numpy as np
import pytest
import torch
from conftest import ROOT, lively, needs_int8, saved
from PIL import Image

import export
import fcn
from fcn import cross_entropy
from support.device import normalise


def programs(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a trained network, a photo, and some batches."""
    monkeypatch.chdir(tmp_path)
    net = lively(1, 8)
    net.set_skip_scale(0.5, 0.25)
    for name in ("streets", "NAME"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        saved(tmp_path / "runs" / name / "best.pt", net, ["not road", "road"])
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(
        "photo.jpg"
    )
    return net


def photo():
    return normalise(torch.from_numpy(np.array(Image.open("photo.jpg"))).permute(2, 0, 1)[None])


def test_the_program_of_the_readme_predicts(here):
    names = {}
    (program,) = programs("README.md")
    exec(program, names)
    with torch.no_grad():
        assert np.array_equal(names["mask"], here(photo())[0].argmax(0).numpy()) and names[
            "net"
        ].classes == ["not road", "road"]


def test_the_programs_that_predict_give_the_networks_probabilities(here, capsys):
    names = {}
    for program in programs("docs/programs.md")[:2]:
        exec(program, names)
    with torch.no_grad():
        wanted = here(photo()).softmax(1)
    torch.testing.assert_close(names["probabilities"], wanted)
    assert np.abs(names["road"] - 255 * wanted[0, 1].numpy()).max() < 0.51
    assert "['not road', 'road']" in capsys.readouterr().out


@needs_int8
def test_the_program_in_8_bits_sees_what_the_network_sees(here):
    names = {}
    exec(programs("docs/programs.md")[5], names)
    with torch.no_grad():
        plain = here(photo())[0]
    sure = (plain[0] - plain[1]).abs() > 0.1 * (plain[0] - plain[1]).abs().max()
    assert (
        sure.float().mean() > 0.5 and (names["mask"] == plain.argmax(0).numpy())[sure].mean() > 0.99
    )


def test_the_program_that_fine_tunes_learns_four_classes_from_the_trained_encoder_and_saves_them(
    here, monkeypatch
):
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    labels = ((rows >= 32).long() + 2 * (columns >= 48).long())[None]
    images = (
        torch.nn.functional.one_hot(labels, 4)[..., :3].permute(0, 3, 1, 2) * 4.0
    )  # each quarter in a colour of its own
    program = programs("docs/programs.md")[2].replace(
        "lr=2e-3", "lr=0.03"
    )  # for a network so small, in so few steps
    names, losses = {"batches": [(images, labels)] * 60}, []
    monkeypatch.setattr(
        fcn, "cross_entropy", lambda *given: losses.append(value := cross_entropy(*given)) or value
    )
    exec(program, names)
    losses = [loss.item() for loss in losses]
    assert losses[0] == pytest.approx(np.log(4), rel=1e-3) and losses[-1] < 0.95 * losses[0]
    again = fcn.FCN8s.load("four.pt")
    assert again.classes == names["net"].classes and torch.equal(
        again(images), names["net"](images)
    )
    exec(program.split("net.train()")[0], names)
    old, new = names["old"], names["net"]
    assert all(torch.equal(a, b) for a, b in zip(old.vgg.parameters(), new.vgg.parameters()))
    assert new.config["num_classes"] == 4 and new.config["skip_scale"] == (0.5, 0.25)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in export.ONNX),
    reason=f"needs {', '.join(export.ONNX)}",
)
def test_the_program_that_runs_the_exported_file_sees_what_the_network_sees(here, capsys):
    assert export.main(["runs/streets/best.pt", "streets.onnx"]) == 0
    names = {}
    exec(programs("docs/programs.md")[3], names)
    with torch.no_grad():
        assert (names["mask"] == here(photo())[0].argmax(0).numpy()).mean() > 0.99
    assert names["classes"] == ["not road", "road"]


def test_the_program_that_runs_the_file_for_pytorch_sees_what_the_network_sees(here):
    assert export.main(["runs/streets/best.pt", "streets.pt2"]) == 0
    names = {}
    exec(programs("docs/programs.md")[4], names)
    with torch.no_grad():
        assert (names["mask"].numpy() == here(photo())[0].argmax(0).numpy()).mean() > 0.99
    assert names["classes"] == ["not road", "road"]
