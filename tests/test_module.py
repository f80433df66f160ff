"""FCN-8s in programs of one's own: weights that define it, one call to load and to use it, and the
manners of an nn.Module.
"""

import copy
import io
import pickle
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from conftest import PADS, ROOT, STRIDES, lively, randomise_scores, saved, small
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.export import Dim

from fcn import FCN8s, cross_entropy
from support.checkpoint import read_tensors, save_tensors
from support.console import InputError
from support.device import normalise
from support.inference.segment import segment

IMAGE = torch.randn(2, 3, 45, 70, generator=torch.Generator().manual_seed(0))
CLASSES = ["sky", "road", "car"]


# ---- weights that define the network ----


@settings(max_examples=40)
@given(
    pads=st.tuples(PADS, PADS),
    strides=st.tuples(STRIDES, STRIDES),
    classes=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    scale=st.tuples(st.floats(1e-5, 10), st.floats(1e-5, 10)),
)
def test_a_strict_load_gives_the_same_scores_or_raises(pads, strides, classes, scale):
    net = randomise_scores(small(classes[0], pads[0], strides[0], skip_scale=scale))
    other = small(classes[1], pads[1], strides[1])
    try:
        other.load_state_dict(net.state_dict())
    except RuntimeError:
        assert (pads[0], strides[0], classes[0]) != (pads[1], strides[1], classes[1])
    else:
        image = torch.randn(1, 3, 33, 47)
        assert torch.equal(other(image), net(image)) and other.config == net.config


def test_weights_of_another_border_are_refused_with_the_mend():
    with pytest.raises(
        RuntimeError, match=r"pad=100, this one has pad=1; build it with FCN8s\(\*\*config\)"
    ):
        small(pad=1).load_state_dict(small(pad=100).state_dict())


def test_weights_of_earlier_versions_do_not_pass_as_whole_and_load_by_load(tmp_path):
    net = randomise_scores(small(3, skip_scale=(0.5, 0.25)))
    path = saved(tmp_path / "best.pt", net)
    content = read_tensors(path)
    del content["model"]["_extra_state"]
    save_tensors(content, path)
    with pytest.raises(RuntimeError, match="_extra_state"):
        small(3).load_state_dict(content["model"])
    assert torch.equal(FCN8s.load(path)(IMAGE), net(IMAGE))


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_load_gives_the_network_in_evaluation_mode_with_the_names_of_its_classes(tmp_path, kind):
    net = randomise_scores(small(3, skip_scale=(0.5, 0.25)))
    again = FCN8s.load(kind(saved(tmp_path / "best.pt", net)))
    assert not again.training and again.classes == CLASSES and torch.equal(again(IMAGE), net(IMAGE))


def test_load_says_in_one_line_what_is_no_checkpoint(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"no")
    for path in (tmp_path / "best.pt", tmp_path / "none.pt", tmp_path):
        with pytest.raises(InputError) as error:
            FCN8s.load(path)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


# ---- one call to use it ----


@pytest.mark.parametrize(
    "mode, size",
    [
        ("RGB", (50, 40)),
        ("L", (50, 40)),
        ("RGBA", (50, 40)),
        ("P", (50, 40)),
        ("1", (50, 40)),
        ("array", (50, 40)),
        ("array", (1, 1)),
        ("RGB", (700, 560)),
    ],
)
def test_segment_gives_the_classes_and_confidences_of_the_scores_for_any_picture(mode, size):
    net = lively(1, 8)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    picture = pixels if mode == "array" else Image.fromarray(pixels).convert(mode)
    net.classes = ["no", "yes"]
    mask, confidence = segment(net, picture, "yes", tile=600)
    shown = pixels if mode == "array" else np.asarray(picture.convert("RGB"))
    with torch.no_grad():
        scores = net(normalise(torch.tensor(shown).permute(2, 0, 1)[None]))[0]
    assert (
        mask.dtype == confidence.dtype == np.uint8 and mask.shape == confidence.shape == size[::-1]
    )
    assert (mask != scores.argmax(0).numpy()).mean() < 1e-3  # in tiles a tie may fall either way
    assert np.abs(confidence - 255 * scores.softmax(0)[1].numpy()).max() < 1.01
    assert np.array_equal(segment(net, picture, tile=600), mask)


def test_segment_refuses_a_network_of_which_a_part_is_in_training_mode_and_takes_any_type_of_weights():
    net = lively(1, 8)
    assert segment(net.bfloat16(), Image.new("RGB", (40, 30))).shape == (30, 40)
    net.vgg.train()
    with pytest.raises(ValueError, match="call net.eval"):
        segment(net, Image.new("RGB", (40, 30)))
    assert net.vgg.training and not net.training


def test_threads_may_segment_with_one_network_and_so_may_inference_mode():
    net = lively(1, 8)
    pictures = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8) for i in range(8)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda picture: segment(net, picture), pictures))
    with torch.inference_mode():
        assert all(
            np.array_equal(segment(net, picture), mask) for picture, mask in zip(pictures, together)
        )


def test_pictures_mean_the_same_after_an_export():
    """An export computes with tensors that hold no numbers; nothing of them may stay behind."""
    said = """
import numpy as np
import torch
from fcn import FCN8s
from support.device import normalise
class Model(torch.nn.Module):
    def forward(self, image):
        return normalise(image)
torch.export.export(Model(), (torch.zeros(1, 3, 8, 8, dtype=torch.uint8),))
assert torch.allclose(normalise(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8))[0, :, 0, 0], torch.tensor([2.2489, 2.4286, 2.6400]),
                      atol=1e-3)
"""
    assert subprocess.run([sys.executable, "-c", said], cwd=ROOT).returncode == 0


def test_a_state_dict_of_shapes_alone_loads_into_a_network_of_shapes_alone():
    with torch.device("meta"):
        net, other = small(), small()
        other.load_state_dict(net.state_dict())


@pytest.mark.parametrize(
    "picture, confidence, says",
    [
        (np.zeros((4, 5, 3), np.float32), None, "float32"),
        (np.zeros((4, 5), np.uint8), None, r"\[4, 5\]"),
        (np.zeros((3, 4, 5), np.uint8), None, r"\[3, 4, 5\]"),
        (np.zeros((4, 5, 3), np.uint8), "bus", "no class 'bus'"),
        (np.zeros((4, 5, 3), np.uint8), 2, "no class 2"),
        (np.zeros((4, 5, 3), np.uint8), -1, "no class -1"),
        (np.zeros((0, 5, 3), np.uint8), None, r"\[0, 5, 3\]"),
    ],
)
def test_segment_refuses_what_it_would_misread(picture, confidence, says):
    with pytest.raises(ValueError, match=says):
        segment(small(), picture, confidence)


# ---- an nn.Module ----


def test_copies_and_pickles_compute_the_same_and_are_apart():
    net = lively(1, 8)
    net.classes = ["a", "b"]
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert (
            torch.equal(other(IMAGE), net(IMAGE))
            and other.classes == net.classes
            and other.config == net.config
        )
        other.score_fr.weight.data += 1
        assert not torch.equal(other(IMAGE), net(IMAGE))


@pytest.mark.parametrize("convert", ["half", "bfloat16", "double"])
def test_other_number_formats_compute_nearly_the_same(convert):
    net = lively(1, 8)
    other = getattr(copy.deepcopy(net), convert)()
    scores = other(IMAGE.to(next(other.parameters()).dtype))
    assert scores.dtype == next(other.parameters()).dtype
    assert (scores.double() - net(IMAGE)).norm() < 0.05 * net(IMAGE).norm()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_holds_for_images_of_its_size_and_can_be_saved():
    net, file = lively(1, 8), io.BytesIO()
    torch.jit.save(torch.jit.trace(net, IMAGE), file)
    file.seek(0)
    other = torch.randn_like(IMAGE)
    torch.testing.assert_close(torch.jit.load(file)(other), net(other))


@pytest.mark.parametrize("training", [False, True])
def test_functional_gradients_are_those_of_backward(training):
    net = lively(1, 8).train(training)
    net.vgg.dropout = 0.0
    labels = torch.randint(0, 2, (2, 45, 70))
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(values):
        return cross_entropy(torch.func.functional_call(net, values, (IMAGE,)), labels)

    gradients = torch.func.grad(loss)(parameters)
    cross_entropy(net(IMAGE), labels).backward()
    assert sum(p.grad is not None for p in net.parameters()) > 30
    for name, p in net.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-6)


def test_a_gradient_can_be_differentiated_again_in_evaluation_mode():
    net = lively(1, 8).double()
    image = IMAGE[:1, :, :20, :30].double().requires_grad_()
    (gradient,) = torch.autograd.grad(net(image).pow(2).sum(), image, create_graph=True)
    gradient.pow(2).sum().backward()
    step = torch.randn_like(image) * 1e-6

    def size(x):
        x = x.detach().requires_grad_()
        return torch.autograd.grad(net(x).pow(2).sum(), x)[0].pow(2).sum()

    assert (image.grad * step).sum().item() == pytest.approx(
        ((size(image + step) - size(image - step)) / 2).item(), rel=1e-3
    )


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("training", [False, True])
def test_every_layer_takes_backward_hooks_and_shows_its_own_output_to_forward_hooks(training):
    """As programs do that explain a network. An activation that works in place would change what
    the hooks were given.
    """
    net = lively(1, 8).train(training)
    seen, outputs = [], {}
    layers = {name: layer for name, layer in net.named_modules() if not list(layer.children())}
    for name, layer in layers.items():
        layer.register_full_backward_hook(lambda module, into, out, name=name: seen.append(name))
        layer.register_forward_hook(
            lambda module, args, out, name=name: outputs.update({name: (args[0], out)})
        )
    net(IMAGE).sum().backward()
    assert sorted(seen) == sorted(layers)
    for name, layer in layers.items():
        layer._forward_hooks.clear()
        layer._backward_hooks.clear()
        torch.testing.assert_close(layer(outputs[name][0]), outputs[name][1])


def test_evaluation_compiles_as_one_graph():
    net = lively(1, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(net, backend="aot_eager", fullgraph=True)(IMAGE), net(IMAGE)
        )


@pytest.mark.parametrize("pad", [1, 100])
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_an_exported_network_holds_for_every_size(pad, stride):
    net = lively(pad, stride)
    program = torch.export.export(
        net, (IMAGE,), dynamic_shapes={"image": {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}}
    ).module()
    for size in ((1, 33, 47), (3, 64, 96), (1, 97, 131), (1, 200, 333), (2, 128, 34)):
        image = torch.randn(size[0], 3, *size[1:])
        torch.testing.assert_close(
            program(image), net(image), rtol=0, atol=1e-5 * net(image).abs().max().item()
        )


def test_the_network_is_traced_symbolically():
    net = lively(1, 8)
    graph = torch.fx.symbolic_trace(net)
    for image in (IMAGE, torch.randn(1, 3, 33, 47)):
        torch.testing.assert_close(graph(image), net(image))


def test_normalise_in_inference_mode_first_and_with_gradients_later():
    said = """
import torch
from fcn import FCN8s
from support.device import normalise
image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
with torch.inference_mode():
    normalise(image)
FCN8s(2, width=1 / 32, fc_channels=4)(normalise(image)).sum().backward()
weight = torch.ones(1, requires_grad=True)
(normalise(image) * weight).sum().backward()
"""
    assert subprocess.run([sys.executable, "-c", said], cwd=ROOT).returncode == 0


# ---- in other folders ----


def test_importing_changes_nothing_for_the_rest_of_a_program(tmp_path):
    said = """
import warnings
from PIL import Image
before = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
import data, predict
from support.pictures import read_picture
Image.new("RGB", (4, 3)).save("a.png")
read_picture(predict.Path("a.png"))
assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)[-len(before[1]):]) == before, before
assert not any(f[2] is Image.DecompressionBombWarning for f in warnings.filters)
"""
    run = subprocess.run(
        [sys.executable, "-c", said],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr


def test_the_network_alone_works_in_another_folder(tmp_path):
    """With the files that docs/programs.md names, and no others."""
    for name in ("fcn.py", "vgg.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "support", tmp_path / "support")
    path = saved(tmp_path / "best.pt", randomise_scores(small(3)))
    said = f"""
import torch
from fcn import FCN8s, cross_entropy
from support.segment import segment
import numpy
net = FCN8s.load({str(path)!r})
assert segment(net, numpy.zeros((33, 47, 3), numpy.uint8)).shape == (33, 47)
assert net(torch.zeros(1, 3, 33, 47)).shape == (1, 3, 33, 47) and net.classes == {CLASSES}
"""
    run = subprocess.run([sys.executable, "-c", said], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
