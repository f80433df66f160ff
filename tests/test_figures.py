"""The drawings show the network as it is."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn import FCN8s
from support.derivation import derivation
from tools.figures import maps_of


@given(height=st.integers(1, 300), width=st.integers(1, 300), pad=st.sampled_from([1, 97, 100]))
def test_every_map_that_is_drawn_has_the_size_that_the_network_computes(height, width, pad):
    net = FCN8s(3, pad, width=1 / 64, fc_channels=2).eval()
    computed = {}
    for name, layer in [*net.vgg.named_children(), *net.named_children()]:
        if name != "vgg":
            layer.register_forward_hook(
                lambda layer, inputs, output, name=name: computed.update({name: output.shape[1:]})
            )
    output = net(torch.zeros(1, 3, height, width))
    drawn = {
        name: (shown.channels, shown.rows, shown.columns)
        for name, shown in maps_of(net, height, width).items()
    }
    assert (
        all(drawn[name] == tuple(shape) for name, shape in computed.items()) and len(computed) == 26
    )
    assert drawn["scores"] == tuple(output.shape[1:])


def test_the_sizes_for_an_image_of_kitti_are_the_published_ones():
    with torch.device("meta"):
        maps = maps_of(FCN8s(2, pad=100), 375, 1242)
    rows = {
        name: (maps[name].rows, maps[name].columns)
        for name in ("pool3", "pool4", "pool5", "fc7", "upscore2", "upscore8")
    }
    assert rows == {
        "pool3": (72, 180),
        "pool4": (36, 90),
        "pool5": (18, 45),
        "fc7": (12, 39),
        "upscore2": (26, 80),
        "upscore8": (440, 1304),
    }


@pytest.mark.parametrize(
    "pad, stride, crops",
    [
        (100, 8, ["pool4 at 5", "pool3 at 9", "the output at 31"]),
        (100, 16, ["pool4 at 5", "the output at 27"]),
        (100, 32, ["the output at 19"]),
        (1, 8, ["pool4 at 0", "pool3 at 0", "the output at 0"]),
    ],
)
def test_the_derivation_ends_in_the_crops_of_the_network(pad, stride, crops):
    text = derivation(FCN8s(2, pad, stride, width=1 / 64, fc_channels=1))
    assert [line.partition("crop ")[2] for line in text.splitlines() if "crop" in line] == crops


@pytest.mark.parametrize(
    "script, said",
    [
        ("vgg.py", "pool3 2 2 0 [256, 72, 180] pixel 8 i -95.5"),
        ("fcn.py", "they coincide where 16 m - 91.5 = 16 k - 11.5"),
    ],
)
def test_the_arithmetic_is_printed(command, script, said):
    status, out, _ = command(script)
    assert status == 0 and said in " ".join(out.split())


def test_the_command_draws_both_pictures(tmp_path, command):
    status, _, error = command("tools/figures.py", tmp_path)
    assert status == 0, error
    for name in ("architecture.png", "border.png"):
        picture = Image.open(tmp_path / name)
        assert picture.width == 1200 and len(picture.getcolors(1 << 24)) > 100
