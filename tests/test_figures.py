"""The printed maps and the drawn figures match the network."""

import torch
from conftest import STRIDES, small
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcn import FCN8s, maps

SIZES = st.integers(1, 150)


@given(height=SIZES, width=SIZES, pad=st.sampled_from([1, 97, 100]), stride=STRIDES)
def test_maps_match_those_that_the_network_computes(height, width, pad, stride):
    net = small(3, pad, stride, width=1 / 64, fc_channels=2)
    found, computed = maps(net, height, width), {}
    for name, layer in [*net.vgg.named_children(), *net.named_children()]:
        if name != "vgg":
            layer.register_forward_hook(
                lambda layer, inputs, output, name=name: computed.update({name: output.shape[1:]})
            )
    output = net(torch.zeros(1, 3, height, width))
    assert list(found)[0] == "image" and found["scores"].shape == output.shape[1:]
    assert {name: found[name].shape for name in computed} == computed
    assert [name for name in found if name in computed] == list(computed)
    sums = {f"sum_{skip}" for skip in net.crop if skip != "image"}
    assert set(found) == {"image", "scores", *computed, *sums}


def test_map_sizes_for_a_kitti_image_are_the_published_ones():
    found = maps(FCN8s(2, pad=100, width=1 / 64, fc_channels=1), 375, 1242)
    published = {
        "pool3": (72, 180),
        "pool4": (36, 90),
        "pool5": (18, 45),
        "fc7": (12, 39),
        "sum_pool4": (26, 80),
        "sum_pool3": (54, 162),
        "upscore8": (440, 1304),
    }
    assert {name: found[name].shape[1:] for name in published} == published
    assert found["sum_pool4"].grid == found["upscore2"].grid
    assert found["sum_pool3"].grid == found["upscore_pool4"].grid


def test_the_command_prints_maps_and_crops(command):
    status, out, _ = command("fcn.py", "100x50", "--pad", 100)
    out = " ".join(out.split())
    assert status == 0 and "pool3 2 2 0 [256, 38, 31] pixel 8 i - 95.5 21.5" in out
    assert "the two coincide where 16 m - 91.5 = 16 k - 11.5 m = k + 80/16 = k + 5" in out
    assert "134,362,751 learnt parameters" in out and "scores [21, 100, 50] pixel i 245" in out
    status, out, error = command("fcn.py", "--pad", 50)
    assert (status, out) == (2, "") and error.startswith("fcn.py: error: pad is 50")


def test_a_closed_pipe_ends_the_command_quietly(fork):
    """As in `python fcn.py | head`."""
    program = """
import os, fcn
read, write = os.pipe()
os.close(read)
os.dup2(write, 1)
fcn.main()
"""
    run = fork(program, "32x32", "--pad", "1")
    assert run.wait() == 0 and run.said == ""


def test_the_command_draws_both_figures(tmp_path, command):
    status, _, error = command("tools/figures.py", tmp_path)
    assert status == 0, error
    for name in ("architecture.png", "border.png"):
        picture = Image.open(tmp_path / name)
        assert picture.width == 1200 and len(picture.getcolors(1 << 24)) > 100
