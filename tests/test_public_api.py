"""FCN-8s in other programs: one call to load it and one to use it, the behaviour of an nn.Module,
and the programs in README.md and docs/programs.md.
"""

import copy
import importlib.util
import pickle
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import (
    PADS,
    ROOT,
    STRIDES,
    exact_confidences,
    lively,
    needs_int8,
    randomise_scores,
    saved,
    small,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import export
import fcn
from fcn import FCN8s, cross_entropy
from predict import segment
from support.console import InputError
from vgg import normalise

IMAGE = torch.randn(2, 3, 45, 70, generator=torch.Generator().manual_seed(0))


def batch_of(picture):
    return normalise(torch.tensor(np.asarray(picture)).permute(2, 0, 1)[None])


def noise(height=40, width=50, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


# ---- weights that define the network ----


@settings(max_examples=40)
@given(
    pads=st.tuples(PADS, PADS),
    strides=st.tuples(STRIDES, STRIDES),
    classes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    gain=st.tuples(st.floats(1e-5, 10), st.floats(1e-5, 10)),
)
def test_a_strict_load_gives_the_same_scores_or_raises(pads, strides, classes, gain):
    gain = dict(zip(FCN8s.SKIPS, gain, strict=True))
    net = randomise_scores(small(classes[0], pads[0], strides[0], skip_gain=gain))
    other = small(classes[1], pads[1], strides[1])
    try:
        other.load_state_dict(net.state_dict())
    except RuntimeError:
        assert (pads[0], strides[0], classes[0]) != (pads[1], strides[1], classes[1])
    else:
        image = torch.randn(1, 3, 33, 47)
        assert torch.equal(other(image), net(image)) and other.config == net.config


@pytest.mark.parametrize("given", ["best.pt", ""])
def test_load_suggests_a_checkpoint_in_the_same_folder(tmp_path, given):
    there = saved(tmp_path / "last.pt", small(3))
    with pytest.raises(InputError) as error:
        FCN8s.load(tmp_path / given)
    assert str(there) in str(error.value)
    there.unlink()
    with pytest.raises(InputError) as error:
        FCN8s.load(tmp_path / given)
    assert str(tmp_path / given) in str(error.value) and "last.pt" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), 1e300])
def test_load_refuses_weights_that_are_not_finite(tmp_path, value):
    net = small(3).double()
    net.vgg.conv3_2.weight.data[0, 0, 1, 1] = value
    with pytest.raises(InputError, match="vgg.conv3_2.weight' holds values that are not finite"):
        FCN8s.load(saved(tmp_path / "best.pt", net))


def test_an_image_without_a_batch_dimension_is_refused():
    with pytest.raises(ValueError, match=r"\[3, 64, 64\]: they must be \[N, 3, H, W\]"):
        small()(torch.rand(3, 64, 64))


# ---- one call to use it ----


@pytest.mark.parametrize("mode", ["array", "RGB", "L", "RGBA", "P", "1"])
def test_segment_gives_labels_and_confidence_for_any_picture(mode):
    net, pixels = lively(1, 8), noise()
    net.classes = ["no", "yes"]
    picture = pixels if mode == "array" else Image.fromarray(pixels).convert(mode)
    rgb = pixels if mode == "array" else picture.convert("RGB")
    mask, yes = segment(net, picture, "yes")
    with torch.no_grad():
        scores = net(batch_of(rgb))[0]
    assert mask.dtype == yes.dtype == np.uint8
    assert np.array_equal(mask, scores.argmax(0))
    assert np.abs(yes - exact_confidences(scores.double().softmax(0))[1]).max() < 0.51
    assert np.array_equal(segment(net, picture), mask)
    assert np.array_equal(segment(net, picture, np.int64(1))[1], yes)


def test_segment_takes_a_path_and_turns_the_picture_upright(tmp_path):
    net, exif = lively(1, 8), Image.Exif()
    exif[0x0112] = 6  # the picture is stored on its side
    stored = Image.fromarray(noise())
    stored.save(tmp_path / "photo.png", exif=exif)
    upright = np.asarray(stored.transpose(Image.Transpose.ROTATE_270))
    found = segment(net, tmp_path / "photo.png")
    assert np.array_equal(found, segment(net, upright))
    assert not np.array_equal(found.T, segment(net, noise()))
    with pytest.raises(InputError, match="none.png: no such file"):
        segment(net, tmp_path / "none.png")


def test_segment_refuses_scores_that_are_not_finite():
    net = lively(1, 8)
    net.score_fr.bias.data[0] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        segment(net, noise())


def test_segment_takes_networks_of_any_dtype_and_resize_factor():
    net = lively(1, 8)
    before = segment(net, noise())
    net.resize_factor = 1.5
    resized = segment(net, noise())
    assert resized.shape == before.shape and (resized != before).any()
    assert (segment(net.bfloat16(), noise()) == resized).mean() > 0.9


@pytest.mark.parametrize(
    "picture, confidence, says",
    [
        (np.zeros((4, 5, 3), np.float32), None, "float32"),
        (np.zeros((4, 5), np.uint8), None, r"\[4, 5\]"),
        (np.zeros((3, 4, 5), np.uint8), None, r"\[3, 4, 5\]"),
        (noise(), "bus", "no class 'bus'"),
    ],
)
def test_segment_refuses_unsuitable_arrays_and_classes(picture, confidence, says):
    with pytest.raises(ValueError, match=says):
        segment(small(), picture, confidence)


def test_segment_refuses_a_network_in_training_mode():
    with pytest.raises(ValueError, match="call net.eval"):
        segment(small().train(), noise())


def test_threads_may_segment_with_one_network():
    net, pictures = lively(1, 8), [noise(seed=i) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: segment(net, picture), pictures))
    for picture, mask in zip(pictures, together, strict=True):
        assert np.array_equal(segment(net, picture), mask)


# ---- an nn.Module ----


def test_copies_and_pickles_compute_the_same_and_are_independent():
    net = lively(1, 8)
    net.classes = ["a", "b"]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(IMAGE), net(IMAGE))
        assert (other.classes, other.config) == (net.classes, net.config)
        other.score_fr.weight.data += 1
        assert not torch.equal(other(IMAGE), net(IMAGE))


def test_half_precision_computes_nearly_the_same():
    net = lively(1, 8)
    scores = copy.deepcopy(net).half()(IMAGE.half())
    assert scores.dtype == torch.half
    assert (scores.double() - net(IMAGE)).norm() < 0.05 * net(IMAGE).norm()


def test_second_derivatives_are_correct_in_evaluation_mode():
    net = lively(1, 8).double()
    image = IMAGE[:1, :, :20, :30].double().requires_grad_()

    def gradient_norm(x):
        return torch.autograd.grad(net(x).pow(2).sum(), x, create_graph=True)[0].pow(2).sum()

    gradient_norm(image).backward()
    step = torch.randn_like(image) * 1e-6
    above, below = (
        gradient_norm((image + sign * step).detach().requires_grad_()) for sign in (1, -1)
    )
    expected = ((above - below) / 2).item()
    assert (image.grad * step).sum().item() == pytest.approx(expected, rel=1e-3)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_hooks_see_the_true_output_of_every_layer():
    """Programs that explain a network use hooks. An in-place activation would change the tensors
    that a hook was given.
    """
    net = lively(1, 8).train()
    backward, forward = [], {}
    layers = {name: layer for name, layer in net.named_modules() if not list(layer.children())}
    for name, layer in layers.items():
        layer.register_full_backward_hook(lambda *args, name=name: backward.append(name))
        layer.register_forward_hook(
            lambda module, args, out, name=name: forward.update({name: (args[0], out)})
        )
    net(IMAGE).sum().backward()
    assert sorted(backward) == sorted(layers)
    for name, layer in layers.items():
        layer._forward_hooks.clear()
        layer._backward_hooks.clear()
        torch.testing.assert_close(layer(forward[name][0]), forward[name][1])


@pytest.mark.slow
def test_evaluation_compiles_as_one_graph():
    net = lively(1, 8)
    with torch.no_grad():
        compiled = torch.compile(net, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(IMAGE), net(IMAGE))


def test_torch_fx_traces_the_network():
    net = lively(1, 8)
    graph = torch.fx.symbolic_trace(net)
    for image in (IMAGE, torch.randn(1, 3, 33, 47)):
        torch.testing.assert_close(graph(image), net(image))


# ---- other programs ----


def runs_alone(program, folder, path=""):
    """Assert that a Python program runs in a process of its own."""
    env = {"PYTHONPATH": str(path), "PATH": ""}
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_importing_changes_nothing_for_the_rest_of_a_program(tmp_path):
    program = """
import warnings
from PIL import Image
before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
import data, predict
from support.datasets.images import read_picture
Image.new("RGB", (4, 3)).save("a.png")
read_picture(predict.Path("a.png"))
assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)[-len(before[1]):]) == before, before
assert not any(f[2] is Image.DecompressionBombWarning for f in warnings.filters)
"""
    runs_alone(program, tmp_path, ROOT)


def test_copying_the_files_that_the_docs_name_is_enough(tmp_path):
    for name in ("fcn.py", "vgg.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "support", tmp_path / "support")
    path = saved(tmp_path / "best.pt", small(3), ["a", "b", "c"])
    program = f"""
import numpy
from fcn import FCN8s, cross_entropy
from support.inference.predictor import Predictor
net = FCN8s.load({str(path)!r})
assert Predictor(net)(numpy.zeros((33, 47, 3), numpy.uint8)).labels.shape == (33, 47)
"""
    runs_alone(program, tmp_path)


# ---- README.md and docs/programs.md ----


def programs(name):
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def net(tmp_path, monkeypatch):
    """The network in runs/NAME/best.pt of the current folder; photo.jpg is there too."""
    monkeypatch.chdir(tmp_path)
    net = lively(1, 8)
    net.set_skip_gain({"pool4": 0.5, "pool3": 0.25})
    for name in ("streets", "NAME"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        saved(tmp_path / "runs" / name / "best.pt", net, ["not road", "road"])
    Image.fromarray(noise(40, 60)).save("photo.jpg")
    return net


def photo_scores(net):
    with torch.no_grad():
        return net(batch_of(Image.open("photo.jpg")))[0]


def test_the_program_in_the_readme_predicts(net):
    names = {}
    (program,) = programs("README.md")
    exec(program, names)
    assert np.array_equal(names["mask"], photo_scores(net).argmax(0))
    assert names["net"].classes == ["not road", "road"]


def test_the_prediction_programs_give_the_probabilities(net, capsys):
    names = {}
    for program in programs("docs/programs.md")[:2]:
        exec(program, names)
    wanted = photo_scores(net)
    torch.testing.assert_close(names["probabilities"][0], wanted.softmax(0))
    exact = exact_confidences(wanted.double().softmax(0))[1]
    assert np.abs(names["road"] - exact).max() < 0.51
    assert "['not road', 'road']" in capsys.readouterr().out


def test_the_fine_tuning_program_starts_from_the_trained_encoder(net, monkeypatch):
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(96), indexing="ij")
    labels = ((rows >= 32).long() + 2 * (columns >= 48).long())[None]
    # Each quarter has a colour of its own.
    images = torch.nn.functional.one_hot(labels, 4)[..., :3].permute(0, 3, 1, 2) * 4.0
    # A higher learning rate, for a small network and few steps.
    program = programs("docs/programs.md")[2].replace("lr=2e-3", "lr=0.03")
    names, losses = {"batches": [(images, labels)] * 60}, []
    monkeypatch.setattr(
        fcn, "cross_entropy", lambda *given: losses.append(loss := cross_entropy(*given)) or loss
    )
    exec(program, names)
    assert losses[0].item() == pytest.approx(np.log(4), rel=1e-3)
    assert losses[-1].item() < 0.95 * losses[0].item()
    again = FCN8s.load("four.pt")
    assert again.classes == names["net"].classes
    assert torch.equal(again(images), names["net"](images))
    exec(program.split("net.train()")[0], names)
    for old, new in zip(net.vgg.parameters(), names["net"].vgg.parameters(), strict=True):
        assert torch.equal(old, new)
    assert names["net"].skip_gain == {"pool4": 0.5, "pool3": 0.25}


@pytest.mark.parametrize(
    "number, ending",
    [
        pytest.param(
            3,
            ".onnx",
            marks=pytest.mark.skipif(
                not all(map(importlib.util.find_spec, export.ONNX_PACKAGES)), reason="needs ONNX"
            ),
        ),
        (4, ".pt2"),
    ],
)
def test_the_programs_for_exported_files_match_the_network(net, exported, capsys, number, ending):
    shutil.copy(exported(ending) / f"streets{ending}", ".")  # the same network
    names = {}
    exec(programs("docs/programs.md")[number], names)
    assert (names["mask"] == photo_scores(net).argmax(0).numpy()).mean() > 0.99
    assert f"['not road', 'road'] {(names['mask'] == 1).mean()}" in capsys.readouterr().out


@needs_int8
def test_the_int8_program_matches_the_network(net):
    names = {}
    exec(programs("docs/programs.md")[5], names)
    scores = photo_scores(net)
    margin = (scores[0] - scores[1]).abs()
    sure = margin > 0.1 * margin.max()
    assert sure.float().mean() > 0.5
    assert (names["mask"] == scores.argmax(0).numpy())[sure].mean() > 0.99
