"""FCN-8s: output sizes, grids that coincide, the loss, checkpoints, and a reference."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PADS, STRIDES, lively, randomise_scores, small
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_vgg import reference_pools

from fcn import FCN8s, bilinear_kernel, cross_entropy, derivation, fuse
from support.checkpoint import write_checkpoint
from support.console import InputError
from support.device import checkpoint_activations
from support.labels import IGNORE

SIZES = st.integers(1, 200)


@settings(max_examples=60)
@given(
    n=st.integers(1, 3),
    height=SIZES,
    width=SIZES,
    classes=st.integers(1, 24),
    pad=PADS,
    stride=STRIDES,
)
@example(n=1, height=1, width=1, classes=2, pad=1, stride=8)
@example(n=1, height=1, width=1, classes=2, pad=97, stride=8)
@example(n=1, height=375, width=1242, classes=2, pad=1, stride=8)
@example(n=1, height=375, width=1242, classes=2, pad=100, stride=8)
def test_output_shape_equals_input_shape(n, height, width, classes, pad, stride):
    output = small(classes, pad, stride)(torch.zeros(n, 3, height, width))
    assert output.shape == (n, classes, height, width)


def test_recomputing_activations_gives_the_same_gradients():
    """Bit for bit, with dropout too."""
    net = randomise_scores(small(fc_channels=16)).train()
    image, labels = torch.randn(1, 3, 40, 50), torch.randint(0, 2, (1, 40, 50))

    def gradients():
        torch.manual_seed(0)
        net.zero_grad()
        cross_entropy(net(image), labels).backward()
        return [p.grad for p in net.parameters() if p.requires_grad]

    kept = gradients()
    assert any(gradient.any() for gradient in kept)
    checkpoint_activations(net.vgg)
    assert all(torch.equal(a, b) for a, b in zip(kept, gradients(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("again, backend", [(False, "aot_eager"), (True, "eager")])
def test_compiling_gives_one_graph_and_the_same_gradients(again, backend):
    """Traced by torch.compile, but without compiling C++ kernels."""
    net = randomise_scores(FCN8s(3, width=1 / 32, fc_channels=8, dropout=0)).train()
    if again:
        checkpoint_activations(net.vgg)
    image, labels = torch.randn(1, 3, 40, 50), torch.randint(0, 3, (1, 40, 50))

    def gradients(model):
        net.zero_grad()
        cross_entropy(model(image), labels).backward()
        return [p.grad for p in net.parameters() if p.requires_grad]

    plain = gradients(net)
    found = gradients(torch.compile(net, backend=backend, fullgraph=True))
    assert any(gradient.any() for gradient in plain)
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(plain, found, strict=True)
    )


@pytest.mark.parametrize(
    "pad, stride, crops",
    [
        (1, 8, {"pool4": 0, "pool3": 0, "image": 0}),
        (97, 8, {"pool4": 5, "pool3": 9, "image": 28}),
        (100, 8, {"pool4": 5, "pool3": 9, "image": 31}),
        (100, 16, {"pool4": 5, "image": 27}),
        (100, 32, {"image": 19}),
    ],
)
def test_crops_match_those_of_the_authors_network(pad, stride, crops):
    net = small(pad=pad, stride=stride)
    assert net.crop == crops
    printed = re.findall(r"crop .* at (\d+)", derivation(net))
    assert list(map(int, printed)) == list(crops.values())


def paint(net, layer, cell):
    """Scores for an image of 256 x 320 if one cell of one score map is 1 and all others are 0."""

    def hook(module, inputs, output):
        blank = torch.zeros_like(output)
        if module is getattr(net, layer):
            blank[:, :, cell[0], cell[1]] = 1
        return blank

    handles = [
        m.register_forward_hook(hook)
        for name, m in net.named_children()
        if name.startswith("score")
    ]
    with torch.no_grad():
        output = net(torch.zeros(1, 3, 256, 320))[0, 0]
    for handle in handles:
        handle.remove()
    return output


@pytest.mark.parametrize("pad", [1, 100])
@pytest.mark.parametrize(
    "layer, map_name, stride",
    [
        ("score_fr", "fc7", 8),
        ("score_pool4", "pool4", 8),
        ("score_pool3", "pool3", 8),
        ("score_fr", "fc7", 16),
        ("score_pool4", "pool4", 16),
        ("score_fr", "fc7", 32),
    ],
)
def test_a_painted_cell_appears_where_its_grid_says(pad, layer, map_name, stride):
    net = small(pad=pad, stride=stride)
    grid = net.vgg.grid[map_name]
    # A cell near the middle of the image, so that the whole painted patch lies inside it.
    cell = tuple(round((n / 2 - grid.offset) / grid.stride) for n in (256, 320))
    output = paint(net, layer, cell)
    rows, columns = output.sum(1), output.sum(0)
    assert output.min() >= 0 and output.sum() > 0
    for weights, c in ((rows, cell[0]), (columns, cell[1])):
        centre = (weights * torch.arange(len(weights))).sum() / weights.sum()
        assert centre.item() == pytest.approx(grid.stride * c + grid.offset, abs=1e-3)
        torch.testing.assert_close(weights[weights > 0], weights[weights > 0].flip(0))  # symmetric


@given(stride=st.integers(1, 16).map(lambda n: 2 * n), size=st.integers(3, 9))
def test_the_bilinear_kernel_interpolates_as_torch_does(stride, size):
    x = torch.randn(1, 1, size, size)
    ours = F.conv_transpose2d(
        x, bilinear_kernel(2 * stride)[None, None], stride=stride, padding=stride // 2
    )
    theirs = F.interpolate(x, scale_factor=stride, mode="bilinear", align_corners=False)
    # Beyond the border torch repeats the last cell, but a convolution sees zeros.
    inside = slice(stride, -stride)
    torch.testing.assert_close(
        ours[..., inside, inside], theirs[..., inside, inside], rtol=1e-4, atol=1e-5
    )


def test_a_bilinear_kernel_of_odd_size_is_one_at_its_centre():
    odd = torch.tensor([0.5, 1.0, 0.5])
    torch.testing.assert_close(bilinear_kernel(3), odd[:, None] * odd[None, :])


@given(h=st.integers(1, 9), w=st.integers(1, 9), more=st.integers(0, 9), crop=st.integers(0, 5))
def test_fusing_adds_cell_j_to_cell_j_plus_crop(h, w, more, crop):
    """Without a border the coarse map may be larger by one row or column. With a border the fine
    map may be larger by any number.
    """
    more = more if crop else -(more % 2)
    coarse, fine = (
        torch.randn(1, 2, h, w),
        torch.randn(1, 2, max(h + more, 1) + crop, max(w + more, 1) + crop),
    )
    fused = fuse(coarse, fine, crop)
    assert fused.shape[2:] == (min(h, fine.shape[2] - crop), min(w, fine.shape[3] - crop))
    y, x = fused.shape[2] - 1, fused.shape[3] - 1
    assert torch.equal(fused[:, :, y, x], coarse[:, :, y, x] + fine[:, :, y + crop, x + crop])


def test_the_network_matches_an_independent_reference():
    """The reference uses none of our layers. It interpolates instead of using transposed
    convolutions; both agree away from the border.
    """
    net, x = lively(1, 8), torch.randn(1, 3, 224, 288)
    state = {name.removeprefix("vgg."): p.detach() for name, p in net.named_parameters()}

    def convolved(name, features, padding=0):
        return F.conv2d(features, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)

    def up(t, factor):
        # A transposed convolution sees zeros around the map.
        t = F.interpolate(
            F.pad(t, (1, 1, 1, 1)), scale_factor=factor, mode="bilinear", align_corners=False
        )
        return t[:, :, factor:-factor, factor:-factor]

    with torch.no_grad():
        ours = net(x)
        pools = reference_pools(state, x)
        fc6 = convolved("fc6", pools["pool5"], padding=3).clamp(min=0)
        fc7 = convolved("fc7", fc6).clamp(min=0)
        theirs = up(convolved("score_fr", fc7), 2) + convolved("score_pool4", pools["pool4"])
        theirs = up(up(theirs, 2) + convolved("score_pool3", pools["pool3"]), 8)
    assert ours.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * ours.std().item())


def test_upsampling_is_fixed_by_default_and_learns_on_request():
    for learn in (False, True):
        net = randomise_scores(small(learn_upsampling=learn))
        net(torch.randn(1, 3, 64, 64)).pow(2).sum().backward()
        for name, p in net.named_parameters():
            assert (p.grad is not None and p.grad.abs().sum() > 0) == (
                "upscore" not in name or learn
            ), name


def test_skip_gain_scales_the_pools_before_the_score_layers():
    net = randomise_scores(small(skip_gain={"pool4": 0.01, "pool3": 0.0001}))
    plain = small()
    plain.load_state_dict(net.state_dict())
    assert plain.skip_gain == net.skip_gain  # saved with the weights
    plain.set_skip_gain({"pool4": 1, "pool3": 1})
    plain.score_pool4.weight.data *= 0.01
    plain.score_pool3.weight.data *= 0.0001
    x = torch.randn(1, 3, 70, 90)
    torch.testing.assert_close(net(x), plain(x))


# ---- checkpoints


@pytest.mark.parametrize("pad, stride", [(1, 8), (100, 32)])
def test_a_saved_network_loads_unchanged(tmp_path, pad, stride):
    net = randomise_scores(small(2, pad, stride, skip_gain={"pool4": 0.5}))
    net.classes, net.resize_factor = ["sky", "road"], 0.5
    net.save(tmp_path / "net.pt")
    again = FCN8s.load(tmp_path / "net.pt")
    assert (again.classes, again.resize_factor, again.config) == (["sky", "road"], 0.5, net.config)
    assert not again.training and [p.requires_grad for p in again.parameters()] == [
        p.requires_grad for p in net.parameters()
    ]
    x = torch.randn(1, 3, 33, 47)
    assert torch.equal(net(x), again(x))


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda saved: saved["config"].update(pad=100), "pad=1"),
        (lambda saved: saved["config"].update(pad=50), "pad is 50"),
        (lambda saved: saved["config"].update(fc_channels=5), "size mismatch for score_fr.weight"),
        (lambda saved: saved["config"].update(depth=5), "depth"),
        (lambda saved: saved["model"].pop("score_fr.bias"), "Missing.*score_fr.bias"),
    ],
)
def test_mismatched_weights_raise_an_error_naming_the_file(tmp_path, change, reason):
    net = small()
    net.classes = ["sky", "road"]
    saved = net.to_checkpoint()
    change(saved)
    write_checkpoint(saved, tmp_path / "net.pt")
    with pytest.raises(InputError, match=f"net.pt: the weights do not fit.*{reason}") as error:
        FCN8s.load(tmp_path / "net.pt")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("classes", [None, ["road"], ["a", "b", "c"]])
def test_a_network_is_saved_only_with_a_name_for_every_class(tmp_path, classes):
    net = small(2)
    net.classes = classes
    with pytest.raises(ValueError, match="must name 2 classes"):
        net.save(tmp_path / "net.pt")
    assert not (tmp_path / "net.pt").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_classes": 0},
        {"stride": 12},
        {"skip_gain": {"pool5": 1}},
        {"pad": 0},
        {"pad": 2},
        {"pad": 96},
        {"width": 0},
        {"fc_channels": 0},
        {"dropout": -1},
    ],
)
def test_invalid_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        small(**wrong)


# ---- loss ----


@given(st.integers(1, 6), st.integers(0, 2**31), st.booleans())
def test_the_loss_is_the_mean_over_valid_pixels_of_weighted_terms(classes, seed, weighted):
    rng = np.random.default_rng(seed)
    labels = rng.choice([*range(classes), IGNORE], (2, 3, 4))
    scores = rng.normal(size=(2, classes, 3, 4))
    weights = rng.uniform(0.1, 5, classes) if weighted else np.ones(classes)
    value = cross_entropy(
        torch.from_numpy(scores),
        torch.from_numpy(labels).long(),
        class_weights=torch.from_numpy(weights).float() if weighted else None,
    )
    terms = [
        weights[label] * (np.log(np.exp(scores[n, :, y, x]).sum()) - scores[n, label, y, x])
        for (n, y, x), label in np.ndenumerate(labels)
        if label != IGNORE
    ]
    assert value.item() == pytest.approx(np.mean(terms), rel=1e-5, abs=1e-6)


def test_a_batch_without_valid_pixels_has_zero_loss_and_gradients():
    scores = torch.randn(1, 2, 4, 4, requires_grad=True)
    value = cross_entropy(scores, torch.full((1, 4, 4), IGNORE))
    value.backward()
    assert value.item() == 0 and torch.equal(scores.grad, torch.zeros(1, 2, 4, 4))
