"""FCN-8s: output sizes, grids that coincide, the loss, checkpoints, and a reference."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import PADS, STRIDES, randomise_scores, small
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_vgg import reference as vgg_reference
from torch.utils.flop_counter import FlopCounterMode

from fcn import FCN8s, bilinear_kernel, cross_entropy, fuse
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


def test_a_kitti_image_takes_the_fewest_possible_operations():
    """The published network takes 618.7 GFLOP. Counted on the device meta, without computing."""

    def operations(pad):
        with torch.device("meta"), FlopCounterMode(display=False) as counter:
            assert FCN8s(2, pad=pad)(torch.empty(1, 3, 375, 1242)).shape == (1, 2, 375, 1242)
        return counter.get_total_flops()

    assert operations(100) == pytest.approx(618.7e9, rel=1e-4)
    assert operations(1) <= 405.2e9
    # By hand: two operations for each weight at each position of a layer's output, or of its input
    # for a transposed convolution, which has C x C kernels and uses C of them: the only surplus.
    sizes = [(375, 1242)]
    while len(sizes) < 6:
        sizes.append(tuple(math.ceil(side / 2) for side in sizes[-1]))
    cells = [height * width for height, width in sizes]
    channels = [
        [3, 64, 64],
        [64, 128, 128],
        [128, 256, 256, 256],
        [256, 512, 512, 512],
        [512, 512, 512, 512],
    ]
    least = sum(
        9 * a * b * count
        for block, count in zip(channels, cells[:5], strict=True)
        for a, b in zip(block[:-1], block[1:], strict=True)
    )
    least += (
        (49 * 512 * 4096 + 4096 * 4096 + 4096 * 2) * cells[5]
        + 512 * 2 * cells[4]
        + 256 * 2 * cells[3]
    )
    least += 2 * (16 * cells[5] + 16 * cells[4] + 256 * cells[3])
    assert operations(1) / (2 * least) == pytest.approx(1, abs=2e-4)


@given(seed=st.integers(0, 2**31), height=st.integers(1, 70), width=st.integers(1, 70), pad=PADS)
@settings(max_examples=6)
def test_recomputing_activations_gives_the_same_gradients(seed, height, width, pad):
    """Bit for bit, with dropout too."""
    torch.manual_seed(seed)
    net = randomise_scores(FCN8s(2, pad, width=1 / 32, fc_channels=16)).train()
    image, labels = torch.randn(1, 3, height, width), torch.randint(0, 2, (1, height, width))

    def gradients():
        torch.manual_seed(seed)
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

    plain, compiled = (
        gradients(net),
        gradients(torch.compile(net, backend=backend, fullgraph=True)),
    )
    assert any(gradient.any() for gradient in plain)
    assert all(
        torch.allclose(a, b, rtol=1e-4, atol=1e-7) for a, b in zip(plain, compiled, strict=True)
    )


@pytest.mark.parametrize(
    "pad, crops", [(1, (0, 0, 0)), (100, (5, 9, 31)), (97, (5, 9, 28)), (120, (5, 9, 51))]
)
def test_crops_match_those_of_the_authors_network(pad, crops):
    net = small(pad=pad)
    assert net.crop == dict(zip(("pool4", "pool3", "image"), crops, strict=True))
    assert small(pad=pad, stride=16).crop["image"] == (27 + pad - 100 if pad > 1 else 0)
    assert small(pad=pad, stride=32).crop["image"] == (19 + pad - 100 if pad > 1 else 0)


@given(height=SIZES, width=SIZES)
@settings(max_examples=10)
def test_crops_of_the_authors_network_fit_every_size(height, width):
    """Hard-coded crops of 5, 9 and 31, as in the authors' files, give the same scores."""
    torch.manual_seed(height * 1000 + width)
    net = randomise_scores(small(pad=100))
    x = torch.randn(1, 3, height, width)
    with torch.no_grad():
        pool3, pool4, fc7 = net.vgg(x)
        a = net.upscore2(net.score_fr(fc7))
        b = net.score_pool4(pool4)[:, :, 5 : 5 + a.shape[2], 5 : 5 + a.shape[3]]
        c = net.upscore_pool4(a + b)
        d = net.score_pool3(pool3)[:, :, 9 : 9 + c.shape[2], 9 : 9 + c.shape[3]]
        e = net.upscore8(c + d)[:, :, 31 : 31 + height, 31 : 31 + width]
        assert b.shape == a.shape and d.shape == c.shape and e.shape[2:] == x.shape[2:]
        torch.testing.assert_close(net(x), e)


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


def test_bilinear_kernels_match_those_computed_by_hand():
    row = torch.tensor([0.25, 0.75, 0.75, 0.25])
    torch.testing.assert_close(bilinear_kernel(4), row[:, None] * row[None, :])
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


@pytest.mark.slow
def test_the_full_network_matches_an_independent_reference():
    """134 M parameters at 224 x 288. The reference uses none of our layers. It interpolates instead
    of using transposed convolutions; both agree away from the border.
    """
    net = randomise_scores(FCN8s(2)).eval()
    named = dict(net.named_parameters())
    assert sum(p.numel() for name, p in named.items() if "upscore" not in name) == 134_270_278
    state = {name.removeprefix("vgg."): p.detach() for name, p in named.items()}
    x = torch.randn(1, 3, 224, 288)

    def score(name, features):
        return F.conv2d(features, state[f"{name}.weight"], state[f"{name}.bias"])

    def up(t, factor):
        # A transposed convolution sees zeros around the map.
        t = F.interpolate(
            F.pad(t, (1, 1, 1, 1)), scale_factor=factor, mode="bilinear", align_corners=False
        )
        return t[:, :, factor:-factor, factor:-factor]

    with torch.no_grad():
        ours = net(x)
        hidden = F.conv2d(
            vgg_reference(state, x), state["fc6.weight"], state["fc6.bias"], padding=3
        ).clamp(min=0)
        hidden = F.conv2d(hidden, state["fc7.weight"], state["fc7.bias"]).clamp(min=0)
        theirs = up(score("score_fr", hidden), 2) + score(
            "score_pool4", vgg_reference(state, x, "pool4")
        )
        theirs = up(up(theirs, 2) + score("score_pool3", vgg_reference(state, x, "pool3")), 8)
    assert ours.std() > 1
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3 * ours.std().item())


def test_the_parameter_count_for_21_classes_is_the_published_one():
    with torch.device("meta"):
        net = FCN8s(21)
    assert (
        sum(p.numel() for name, p in net.named_parameters() if "upscore" not in name) == 134_362_751
    )


@given(pad=PADS, stride=STRIDES)
def test_an_untrained_network_scores_all_classes_alike(pad, stride):
    assert torch.equal(small(3, pad, stride)(torch.randn(1, 3, 40, 50)), torch.zeros(1, 3, 40, 50))


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


@pytest.mark.parametrize("pad", [1, 100])
@pytest.mark.parametrize("stride", FCN8s.STRIDES)
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
        (lambda saved: saved["config"]["skip_gain"].update(pool2=1.0), "pool2"),
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
    "settings", [{"num_classes": 0}, {"stride": 12}, {"pad": 50}, {"skip_gain": {"pool5": 1}}]
)
def test_invalid_settings_are_refused(settings):
    with pytest.raises(ValueError):
        small(**settings)


# ---- loss ----


@given(st.data())
def test_loss_is_the_mean_over_valid_pixels(data):
    classes = data.draw(st.integers(1, 5))
    labels = np.array(
        data.draw(st.lists(st.sampled_from([*range(classes), IGNORE]), min_size=12, max_size=12))
    )
    scores = torch.randn(2, classes, 2, 3, dtype=torch.double)
    flat = scores.permute(0, 2, 3, 1).reshape(-1, classes).numpy()
    terms = [
        np.log(np.exp(s).sum()) - s[t] for s, t in zip(flat, labels, strict=True) if t != IGNORE
    ]
    value = cross_entropy(scores, torch.from_numpy(labels).view(2, 2, 3))
    assert value.item() == pytest.approx(np.mean(terms) if terms else 0.0, rel=1e-5, abs=1e-6)


@given(st.integers(1, 6), st.integers(0, 2**31))
def test_class_weights_scale_the_loss_of_each_pixel(classes, seed):
    rng = np.random.default_rng(seed)
    labels, weights = rng.choice([*range(classes), IGNORE], (1, 4, 5)), rng.uniform(0.1, 5, classes)
    scores = torch.from_numpy(rng.normal(size=(1, classes, 4, 5)))
    value = cross_entropy(
        scores, torch.from_numpy(labels).long(), class_weights=torch.from_numpy(weights).float()
    )
    log = scores[0].permute(1, 2, 0).log_softmax(-1).numpy()
    terms = [
        -weights[labels[0, y, x]] * log[y, x, labels[0, y, x]]
        for y in range(4)
        for x in range(5)
        if labels[0, y, x] != IGNORE
    ]
    assert value.item() == pytest.approx(np.mean(terms) if terms else 0.0, rel=1e-5, abs=1e-6)


def test_a_batch_without_valid_pixels_has_zero_loss_and_gradients():
    scores = torch.randn(1, 2, 4, 4, requires_grad=True)
    value = cross_entropy(scores, torch.full((1, 4, 4), IGNORE))
    value.backward()
    assert value.item() == 0 and torch.equal(scores.grad, torch.zeros(1, 2, 4, 4))
