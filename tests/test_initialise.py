"""Initial weights: from ImageNet, from another checkpoint, and with balanced skips."""

import numpy as np
import pytest
import torch
from conftest import lively, randomise_scores, run, same, saved
from hypothesis import given
from hypothesis import strategies as st

import train
from fcn import FCN8s
from support.checkpoint import read_checkpoint
from support.console import InputError
from support.training.initialise import balance, load_imagenet, load_trained
from vgg import VGG16, normalise

# ---- ImageNet's weights ----


def small():
    return VGG16(width=1 / 64, fc_channels=3)


def convolutions(net):
    return {name: p for name, p in net.state_dict().items() if name.startswith("conv")}


def test_weights_load_with_or_without_fc6_and_fc7():
    source, whole, features = small(), small(), small()
    assert "fc6 and fc7 from ImageNet" in load_imagenet(whole, source.state_dict(), "w.pth")
    assert same(whole.state_dict(), source.state_dict())
    assert "fc6 and fc7 are new" in load_imagenet(features, convolutions(source), "w.pth")
    assert same(convolutions(features), convolutions(source))


@pytest.mark.parametrize("pad, channels", [(1, 16), (1, 80), (100, 32)])
def test_with_convolutions_alone_fc7_starts_close_to_pool5(pad, channels):
    net = VGG16(pad, width=1 / 16, fc_channels=channels).eval()
    pools = []
    net.pool5.register_forward_hook(lambda layer, inputs, output: pools.append(output))

    @torch.no_grad()
    def distance():  # from fc7 to pool5, relative to pool5, in the channels that both have
        *_, fc7 = net(torch.randn(1, 3, 160, 224, generator=torch.Generator().manual_seed(1)))
        pool5 = pools[-1] if pad == 1 else pools[-1][:, :, 3:-3, 3:-3]  # fc6 has no padding here
        common = min(channels, pool5.shape[1])
        return (fc7[:, :common] - pool5[:, :common]).norm() / pool5[:, :common].norm()

    assert distance() > 0.8
    load_imagenet(net, convolutions(net), "w.pth")
    assert distance() < 0.4


@pytest.mark.parametrize(
    "name, change",
    [
        ("conv3_2.bias", None),
        ("fc7.weight", None),
        ("conv6_1.weight", lambda _: torch.zeros(1)),
        ("conv2_1.weight", lambda p: p[:, :1, :1]),
        ("conv5_3.weight", lambda p: p * float("nan")),
    ],
)
def test_the_error_for_wrong_weights_names_the_tensor(name, change):
    net, weights = small(), small().state_dict()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    if change:
        weights[name] = change(weights.get(name))
    else:
        del weights[name]
    with pytest.raises(InputError, match=rf"w.pth: .*{name}"):
        load_imagenet(net, weights, "w.pth")
    assert same(net.state_dict(), before)


def test_a_run_from_convolutions_has_512_fc_channels(scenes, tmp_path):
    source = VGG16(width=1 / 32)
    torch.save(convolutions(source), tmp_path / "w.pth")
    argv = f"--data {scenes} --out {tmp_path / 'run'} --weights {tmp_path / 'w.pth'} --epochs 1"
    assert train.main(f"{argv} --width {1 / 32} --workers 0 --device cpu --amp off".split()) == 0
    content = read_checkpoint(tmp_path / "run/best.pt")
    assert content["config"]["fc_channels"] == content["settings"]["fc_channels"] == 512
    assert torch.equal(content["model"]["vgg.conv1_1.weight"], source.conv1_1.weight)  # frozen


# ---- another checkpoint ----


def trained(path, classes="abcde", **more):
    """(network, content of its checkpoint)"""
    net = randomise_scores(FCN8s(len(classes), **{"width": 1 / 32, "fc_channels": 8, **more}))
    return net, read_checkpoint(saved(path / "best.pt", net, classes))


def test_for_other_classes_only_vgg16_and_skip_gains_are_loaded(tmp_path):
    old, content = trained(tmp_path, skip_gain={"pool4": 0.5, "pool3": 0.25})
    for classes in (["road", "sky"], list("edcba")):  # another order, too
        new = FCN8s(len(classes), width=1 / 32, fc_channels=8)
        line = load_trained(new, content, "best.pt", classes)
        assert "new layers: score_fr, score_pool3, score_pool4, because its classes differ" in line
        assert same(new.vgg.state_dict(), old.vgg.state_dict())
        assert new.skip_gain == old.skip_gain and not new.score_fr.weight.any()


def test_for_the_same_classes_all_weights_are_loaded(tmp_path):
    old, content = trained(tmp_path)
    new = FCN8s(5, width=1 / 32, fc_channels=8)
    assert load_trained(new, content, "best.pt", list("abcde")).endswith("new layers: none")
    assert same(new.state_dict(), old.state_dict())


@pytest.mark.parametrize("name, value", [("width", 1 / 16), ("fc_channels", 9), ("pad", 100)])
def test_the_error_for_another_size_names_the_option(tmp_path, name, value):
    content = trained(tmp_path, **{name: value})[1]
    new = FCN8s(5, width=1 / 32, fc_channels=8)
    with pytest.raises(InputError, match=f"best.pt: .* --{name.replace('_', '-')} {value}"):
        load_trained(new, content, "best.pt", list("abcde"))


@pytest.mark.parametrize("stride, finer, layer", [(32, 16, "score_pool4"), (16, 8, "score_pool3")])
def test_each_stage_32s_16s_8s_adds_one_layer_of_zeros(tmp_path, stride, finer, layer):
    """So it starts with the scores of the coarser stage."""
    old, content = trained(tmp_path, stride=stride)
    new = FCN8s(5, stride=finer, width=1 / 32, fc_channels=8)
    line = load_trained(new, content, "best.pt", list("abcde"))
    assert line.endswith(f"loaded for fine-tuning; new layers: {layer}")
    before, after = old.state_dict(), new.state_dict()
    kept = [name for name in before if "upscore" not in name]
    assert len(kept) > 30 and all(torch.equal(before[name], after[name]) for name in kept)
    assert not after[f"{layer}.weight"].any() and not after[f"{layer}.bias"].any()


def test_frozen_blocks_stay_and_all_other_layers_learn(scenes, tmp_path, capsys):
    """Also in a resumed run. The skips keep their gains, and weights trained with another --resize
    are reported.
    """
    first = tmp_path / "first/best.pt"
    assert run(scenes, tmp_path / "first", *"--lr 0.02 --epochs 1 --resize 2".split()) == 0
    before = read_checkpoint(first)
    layers = [name for name in before["model"] if name.startswith("vgg.")]
    for options, frozen in (("--resize 2", 2), ("--freeze 3", 3)):
        out = tmp_path / str(frozen)
        capsys.readouterr()
        argv = ["--lr", 0.02, "--epochs", 1, "--weights", first, *options.split()]
        assert run(scenes, out, *argv) == 0
        said = f"{first}: was trained with --resize 2, this run has 1\n"
        assert (said in capsys.readouterr().out) == ("--resize" not in options)
        if frozen == 2:
            assert train.main(["--resume", "--out", str(out), "--epochs", "2"]) == 0
        after = read_checkpoint(out / "last.pt")
        assert after["settings"]["freeze"] == frozen and before["settings"]["freeze"] == 0
        assert after["config"]["skip_gain"] == before["config"]["skip_gain"]
        kept = {name for name in layers if torch.equal(before["model"][name], after["model"][name])}
        blocks = tuple(f"vgg.conv{i + 1}_" for i in range(frozen))
        assert kept == {name for name in layers if name.startswith(blocks)}


# ---- balance ----


@given(st.integers(0, 20), st.floats(0.01, 1000))
def test_balance_makes_skips_twice_as_long_as_fc7(seed, size):
    """Balancing only scales the features."""
    net = lively(1, 8)
    net.vgg.conv3_3.weight.data *= size  # weights of another scale, like Caffe's
    image = np.random.default_rng(seed).integers(0, 256, (64, 96, 3), np.uint8)
    x = normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
    with torch.no_grad():
        before = net.vgg(x)
        balance(net, image, resize=1)
        pool3, pool4, fc7 = net.vgg(x)
    for features, length in (
        (pool3 * net.skip_gain["pool3"], 2),
        (pool4 * net.skip_gain["pool4"], 2),
        (fc7, 1),
    ):
        squares = features.pow(2).sum(1).mean().item()
        assert squares == pytest.approx(length**2 * fc7.shape[1], rel=1e-3)
    assert torch.equal(pool3, before[0]) and torch.equal(pool4, before[1])
    scaled, atol = fc7 * before[2].norm() / fc7.norm(), 1e-4 * before[2].max().item()
    torch.testing.assert_close(scaled, before[2], rtol=1e-3, atol=atol)
