"""What a network begins with: weights that come over whole or are refused by name, and new layers
of comparable lengths.
"""

import pytest
import torch
from conftest import lively, load, randomise_scores, same
from hypothesis import given
from hypothesis import strategies as st

from fcn import FCN8s
from support.console import InputError
from support.training.initialise import balance, take_over
from vgg import VGG16

# ---- ImageNet's weights ----


def small():
    return VGG16(width=1 / 64, fc_channels=3)


def write(path, state):
    torch.save(state, path)
    return path


def test_a_whole_file_loads_and_of_a_features_only_file_the_convolutions(tmp_path):
    source, whole, features = small(), small(), small()
    line = load(whole, write(tmp_path / "whole.pth", source.state_dict()))
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), source.state_dict().values())
    )
    assert "fc6 and fc7 from ImageNet" in line and "\n" not in line

    convolutions = {name: p for name, p in source.state_dict().items() if name.startswith("conv")}
    line = load(features, write(tmp_path / "features.pth", convolutions))
    assert all(torch.equal(features.state_dict()[name], p) for name, p in convolutions.items())
    assert "fresh" in line and "\n" not in line


@pytest.mark.parametrize("pad, channels", [(1, 32), (1, 16), (1, 80), (100, 32)])
def test_with_the_convolutions_alone_fc7_begins_as_pool5(pad, channels, tmp_path):
    torch.manual_seed(0)
    net = VGG16(pad, width=1 / 16, fc_channels=channels).eval()
    convolutions = {name: p for name, p in net.state_dict().items() if name.startswith("conv")}
    pools = []
    net.pool5.register_forward_hook(lambda layer, inputs, output: pools.append(output))

    def distance():  # of fc7 from pool5, as a share of pool5, in the channels that both have
        *_, fc7 = net(torch.randn(1, 3, 160, 224, generator=torch.Generator().manual_seed(1)))
        pool5 = pools[-1] if pad == 1 else pools[-1][:, :, 3:-3, 3:-3]  # fc6 has no padding then
        common = min(channels, pool5.shape[1])
        return (fc7[:, :common] - pool5[:, :common]).norm() / pool5[:, :common].norm()

    with torch.no_grad():
        assert distance() > 0.8
        load(net, write(tmp_path / "features.pth", convolutions))
        assert distance() < 0.4


def spoil(state, how):
    if how == "missing":
        del state["conv3_2.bias"]
    elif how == "fc7 missing":
        del state["fc7.weight"]
    elif how == "extra":
        state["conv6_1.weight"] = torch.zeros(1)
    elif how == "shape":
        state["conv2_1.weight"] = state["conv2_1.weight"][:, :1, :1]
    elif how == "integers":
        state["conv1_1.bias"] = state["conv1_1.bias"].long()
    elif how == "nan":
        state["conv5_3.weight"][0, 0, 0, 0] = float("nan")
    elif how == "too large":
        state["conv1_2.bias"] = torch.full((1,), 1e300, dtype=torch.double)
    return state


@pytest.mark.parametrize(
    "how, named",
    [
        ("missing", "conv3_2.bias is missing"),
        ("fc7 missing", "fc7.weight is missing"),
        ("extra", "'conv6_1.weight'"),
        ("shape", "conv2_1.weight is"),
        ("integers", "conv1_1.bias"),
        ("nan", "conv5_3.weight"),
        ("too large", "conv1_2.bias"),
    ],
)
def test_wrong_weights_are_refused_by_the_name_of_the_tensor_and_change_nothing(
    tmp_path, how, named
):
    net = small()
    before = {name: p.clone() for name, p in net.state_dict().items()}
    file = write(tmp_path / "w.pth", spoil(small().state_dict(), how))
    with pytest.raises(InputError, match=named) as error:
        load(net, file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())


# ---- another training's ----


def test_a_network_of_other_classes_gives_its_vgg16_and_of_another_size_nothing(tmp_path):
    def content(net):
        return {
            "model": net.state_dict(),
            "config": net.config,
            "classes": list("abcdefg"[: net.config["num_classes"]]),
        }

    old, new = (
        FCN8s(5, width=1 / 32, fc_channels=8, skip_scale=(0.5, 0.25)),
        FCN8s(2, width=1 / 32, fc_channels=8),
    )
    line = take_over(new, content(old), "best.pt", ["road", "sky"])
    assert (
        "score_fr, score_pool3, score_pool4 starts fresh, since its classes are others: a, b, c, d, e"
        in line
        and new.scale_pool4 == 0.5
    )
    assert same(old.vgg.state_dict(), new.vgg.state_dict())
    for other, said in (
        (FCN8s(2, width=1 / 16, fc_channels=8), "--width 0.0625"),
        (FCN8s(2, width=1 / 32, fc_channels=9), "--fc-channels 9"),
        (FCN8s(2, pad=100, width=1 / 32, fc_channels=8), "--pad 100"),
    ):
        with pytest.raises(InputError, match=f"best.pt: was trained with {said}"):
            take_over(new, content(other), "best.pt", ["a", "b"])
    broken = content(old)
    broken["model"]["vgg.fc7.bias"] = torch.full((8,), float("nan"))
    for wrong in (
        broken,
        {"model": {}, "config": old.config},
        {"model": old.state_dict()},
        {"model": 1, "config": {}},
    ):
        with pytest.raises(InputError, match="best.pt: "):
            take_over(new, wrong, "best.pt", ["a", "b"])
    assert same(old.vgg.state_dict() | {"fc7.bias": new.vgg.fc7.bias}, new.vgg.state_dict())


@pytest.mark.parametrize("classes", [["sky", "road"], ["road", "tree"], ["not lane", "lane"]])
def test_scores_are_taken_over_for_the_same_classes_in_the_same_order_alone(classes):
    old = randomise_scores(FCN8s(2, width=1 / 32, fc_channels=8))
    content = {"model": old.state_dict(), "config": old.config, "classes": ["road", "sky"]}
    known, others = (FCN8s(2, width=1 / 32, fc_channels=8) for _ in range(2))
    assert "nothing starts fresh" in take_over(known, content, "best.pt", ["road", "sky"])
    assert same(known.state_dict(), old.state_dict())
    line = take_over(others, content, "best.pt", classes)
    assert "starts fresh, since its classes are others: road, sky" in line
    assert same(others.vgg.state_dict(), old.vgg.state_dict()) and not others.score_fr.weight.any()


# ---- new layers ----


@given(st.integers(0, 20), st.floats(0.01, 1000))
def test_balance_makes_both_skips_twice_as_long_as_fc7_and_changes_the_features_by_a_factor_alone(
    seed, size
):
    torch.manual_seed(seed)
    net = lively(1, 8)
    net.vgg.conv3_3.weight.data *= size  # weights of another size, as Caffe's are
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = net.vgg(image)
        balance(net, image)
        pool3, pool4, fc7 = net.vgg(image)
    for features, length in ((pool3 * net.scale_pool3, 2), (pool4 * net.scale_pool4, 2), (fc7, 1)):
        assert features.pow(2).sum(1).mean().item() == pytest.approx(
            length**2 * fc7.shape[1], rel=1e-3
        )  # fc7's size is 1
    assert torch.equal(pool3, before[0]) and torch.equal(pool4, before[1])
    torch.testing.assert_close(
        fc7 * before[2].norm() / fc7.norm(),
        before[2],
        rtol=1e-3,
        atol=1e-4 * before[2].max().item(),
    )
