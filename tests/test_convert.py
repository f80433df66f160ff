"""Each public format becomes the same network, other files are refused, and a failure keeps the old
file.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHARED
from torch import nn

from fcn import FCN8s
from support.checkpoint import read_tensors
from support.console import InputError
from support.labels import VOC_CLASSES
from vgg import IMAGE_MEAN, IMAGE_STD, VGG16
from weights import convert as module
from weights.convert import convert, download

REAL = SHARED / "weights/vgg16-conv-imagenet.pth"
SMALL = dict(width=1 / 16, fc_channels=8)
WIDTHS = (4, 4, "pool", 8, 8, "pool", 16, 16, 16, "pool", 32, 32, 32, "pool", 32, 32, 32, "pool")


def rgb_column(values):
    return torch.tensor(values, dtype=torch.float64).view(3, 1, 1)


CAFFE_MEAN = rgb_column([122.67892, 116.66877, 104.00699])
MEAN, STD = rgb_column(IMAGE_MEAN), rgb_column(IMAGE_STD)


# ---- The foreign networks, built from layers with the tensor names of their files.


def features() -> nn.Sequential:
    layers, channels = [], 3
    for width in WIDTHS:
        if width == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)
            channels = width
    return nn.Sequential(*layers)


class Torchvision(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = features()
        first, second, last = nn.Linear(32 * 49, 8), nn.Linear(8, 8), nn.Linear(8, 1000)
        self.classifier = nn.Sequential(
            first, nn.ReLU(), nn.Dropout(), second, nn.ReLU(), nn.Dropout(), last
        )

    def fc7(self, x):
        return self.classifier[:5](self.features(x).flatten(1))


class Timm(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = features()
        self.pre_logits = nn.ModuleDict({"fc1": nn.Conv2d(32, 8, 7), "fc2": nn.Conv2d(8, 8, 1)})
        self.head = nn.ModuleDict({"fc": nn.Linear(8, 1000)})

    def fc7(self, x):
        hidden = self.pre_logits["fc1"](self.features(x)).relu()
        return self.pre_logits["fc2"](hidden).relu().flatten(1)


def authors(classes=3) -> FCN8s:
    """A small FCN-8s in which every layer affects the scores; conv1_1 takes Caffe's input."""
    net = FCN8s(classes, pad=100, **SMALL).eval()
    for name, parameter in net.named_parameters():
        if name.startswith("score"):
            nn.init.normal_(parameter)
        elif name.startswith("upscore") or name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return net


def caffe_state(net: FCN8s) -> dict:
    """The parameters of `net` under pytorch-fcn's names."""
    return {name.removeprefix("vgg."): tensor for name, tensor in net.named_parameters()}


def write(path: Path, tensors: dict) -> Path:
    if path.suffix == ".safetensors":
        pytest.importorskip("safetensors.torch").save_file(tensors, path)
    else:
        torch.save(tensors, path)
    return path


def converted(tmp_path, tensors, name="a.pth", **options) -> dict:
    options.setdefault("network", VGG16(**SMALL))
    convert(write(tmp_path / name, tensors), tmp_path / "out.pth", **options)
    return read_tensors(tmp_path / "out.pth")


def images(rgb):
    """RGB [1, 3, H, W] in 0..255 as input for our networks, and for Caffe's."""
    return ((rgb / 255 - MEAN) / STD).float(), (rgb - CAFFE_MEAN).flip(1).float()


# ---- The same network


@pytest.mark.parametrize(
    "theirs, name",
    [(Torchvision, "a.pth"), (Timm, "a.pth"), (Torchvision, "a.safetensors")],
)
def test_a_converted_vgg16_computes_the_same_features(tmp_path, theirs, name):
    theirs, ours = theirs().eval(), VGG16(**SMALL).eval()
    ours.load_state_dict(converted(tmp_path, theirs.state_dict(), name))
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():  # the middle one of our 7 x 7 cells sees what the dense layer sees
        expected, found = theirs.fc7(image), ours(image)[2][:, :, 3, 3]
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_vgg16_from_caffe_computes_the_same_on_our_images(tmp_path):
    theirs, ours = Torchvision().eval(), VGG16(**SMALL).eval()
    ours.load_state_dict(converted(tmp_path, theirs.state_dict(), caffe=True))
    our_input, caffe_input = images(torch.randint(0, 256, (1, 3, 320, 320)).double())
    with torch.no_grad():
        expected, found = theirs.features[:24](caffe_input), ours(our_input)[1]
    inside = slice(None), slice(None), slice(6, -6), slice(6, -6)  # away from the border
    torch.testing.assert_close(found[inside], expected[inside], rtol=1e-3, atol=1e-2)
    assert expected.std() > 1


@pytest.mark.parametrize("classes, at_once", [(21, True), (3, False)])
def test_the_authors_fcn8s_becomes_a_checkpoint(tmp_path, classes, at_once):
    theirs = authors(classes)
    small = FCN8s(classes, pad=100, **SMALL)
    converted(tmp_path, caffe_state(theirs), network=small, at_once=at_once)
    net = FCN8s.load(tmp_path / "out.pth")
    assert net.classes == (VOC_CLASSES if classes == 21 else ["class 0", "class 1", "class 2"])
    assert net.resize_factor == 1 and net.config["pad"] == 100
    gain = {"pool4": 0.01, "pool3": 0.0001} if at_once else {"pool4": 1, "pool3": 1}
    assert net.skip_gain == net.config["skip_gain"] == gain
    for name, tensor in theirs.named_parameters():
        assert torch.equal(tensor, net.get_parameter(name)) == ("conv1_1" not in name), name
    # A wrong colour order or scale changes the scores far more than the border does.
    theirs.set_skip_gain(gain)
    our_input, caffe_input = images(torch.randint(0, 256, (1, 3, 60, 90)).double())
    with torch.no_grad():
        expected = theirs(caffe_input)
        for image, near in ((our_input, True), (our_input.flip(1), False)):
            assert ((net(image) - expected).norm() < 0.1 * expected.norm()) == near


def test_weights_of_another_dtype_become_float32(tmp_path):
    theirs = {name: tensor.bfloat16() for name, tensor in Timm().state_dict().items()}
    state = converted(tmp_path, theirs)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert torch.equal(state["conv5_3.weight"], theirs["features.28.weight"].float())


def test_the_file_holds_no_more_than_the_tensors(tmp_path):
    """A view is saved without the rest of its storage."""
    theirs, large = Torchvision().state_dict(), torch.zeros(10_000_000)
    theirs["features.28.bias"] = large[:32]
    theirs["features.28.weight"] = theirs["features.28.weight"].to(
        memory_format=torch.channels_last
    )
    state = converted(tmp_path, theirs)
    assert (tmp_path / "out.pth").stat().st_size < 1_000_000
    assert all(tensor.is_contiguous() for tensor in state.values())


def test_features_only_leaves_out_fc6_and_fc7_of_any_width(tmp_path):
    theirs, other = Torchvision().state_dict(), VGG16(width=1 / 16, fc_channels=5)
    with pytest.raises(InputError, match="--features-only"):
        converted(tmp_path, theirs, network=other)
    with pytest.raises(InputError, match="--at-once is for an FCN-8s"):
        converted(tmp_path, theirs, network=other, features_only=True, at_once=True)
    state = converted(tmp_path, theirs, network=other, features_only=True)
    assert len(state) == 26 and not any("fc" in name for name in state)
    alone = {name: tensor for name, tensor in theirs.items() if name.startswith("features")}
    again = converted(tmp_path, alone)
    assert all(torch.equal(state[name], again[name]) for name in state | again)


def test_the_report_names_both_files_and_is_reproducible(tmp_path):
    source, out = write(tmp_path / "a.pth", Torchvision().state_dict()), tmp_path / "out.pth"
    first, second = (convert(source, out, network=VGG16(**SMALL)) for _ in range(2))
    for path in (source, out):
        assert str(path) in first and hashlib.sha256(path.read_bytes()).hexdigest() in first
    assert first == second and "VGG16, 30 tensors" in first


@pytest.mark.skipif(not REAL.exists(), reason="../shared has no VGG16 convolutions")
def test_real_convolutions_are_converted(tmp_path):
    report = convert(REAL, tmp_path / "out.pth")
    assert "VGG16 without fc6 and fc7, 26 tensors" in report


# ---- Other files


def refused(tmp_path, source, match, **options):
    """Assert that a one-line error names the source, and that the old output file stays."""
    source = source if isinstance(source, Path) else write(tmp_path / "a.pth", source)
    out = tmp_path / "out.pth"
    out.write_bytes(b"old")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=match) as caught:
        convert(source, out, network=VGG16(**SMALL), **options)
    assert "\n" not in str(caught.value) and str(source) in str(caught.value)
    assert out.read_bytes() == b"old" and sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "name, tensor, match",
    [
        ("features.7.bias", None, "there is no tensor for conv2_2.bias"),
        ("classifier.0.weight", None, "there is no tensor for fc6.weight"),
        ("features.16.weight", torch.ones(4), "'features.16.weight' is unexpected; .*VGG19"),
        ("features.0.running_mean", torch.ones(4), "'features.0.running_mean' is unexpected"),
        ("features.5.weight", torch.ones(8, 4, 5, 5), r"features.5.weight is \[8, 4, 5, 5\], but"),
        ("classifier.0.weight", torch.ones(8, 32 * 36), r"is \[8, 1152\].*--features-only"),
        ("features.28.bias", torch.full((32,), torch.nan), "features.28.bias holds values that"),
        ("features.28.bias", torch.ones(32).to_sparse(), "features.28.bias is not a dense"),
        ("features.28.bias", torch.ones(32, device="meta"), "features.28.bias is not a dense"),
        ("features.28.bias", torch.ones(32) * 1j, "features.28.bias is not a dense"),
        ("features.0.weight", None, "unknown weights, or converted already: 31 entries"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tmp_path, name, tensor, match):
    theirs = Torchvision().state_dict()
    theirs.pop(name, None)
    refused(tmp_path, theirs if tensor is None else {**theirs, name: tensor}, match)


def test_other_files_are_refused(tmp_path, monkeypatch):
    refused(tmp_path, VGG16(**SMALL).state_dict(), "converted already: 30 entries .'conv1_1")
    refused(tmp_path, {"state_dict": {}}, "weights/README.md lists the files that fit")
    refused(tmp_path, caffe_state(authors()), "is for VGG16", features_only=True)
    refused(tmp_path, tmp_path / "none.pth", "cannot be read")
    fcn32s = {name: tensor for name, tensor in caffe_state(authors()).items() if "pool" not in name}
    with pytest.raises(InputError, match="there is no tensor for score_pool4.weight"):
        converted(tmp_path, fcn32s, network=authors())
    source = write(tmp_path / "b.pth", Torchvision().state_dict())
    monkeypatch.setattr(module, "OTHER_INPUT", hashlib.sha256(source.read_bytes()).hexdigest()[:8])
    refused(tmp_path, source, "takes images in 0..255")


def test_the_hash_in_a_file_name_is_checked(tmp_path):
    source = write(tmp_path / "plain.pth", Torchvision().state_dict())
    digest = hashlib.sha256(source.read_bytes()).hexdigest()
    good = source.rename(tmp_path / f"vgg16-{digest[:8]}.pth")
    convert(good, tmp_path / "out.pth", network=VGG16(**SMALL))
    bad = good.rename(tmp_path / "vgg16-397923af.pth")
    refused(tmp_path, bad, f"SHA-256 {digest}, but its name promises 397923af")


def test_a_file_is_never_replaced_by_its_own_conversion(tmp_path):
    source = write(tmp_path / "a.pth", Torchvision().state_dict())
    before = source.read_bytes()
    with pytest.raises(InputError, match="is the file to convert"):
        convert(source, source, network=VGG16(**SMALL))
    assert source.read_bytes() == before
    with pytest.raises(InputError, match="absent/out.pth: cannot be written"):
        convert(source, tmp_path / "absent/out.pth", network=VGG16(**SMALL))


def test_a_damaged_safetensors_file_is_refused(tmp_path):
    source = write(tmp_path / "a.safetensors", Torchvision().state_dict())
    source.write_bytes(source.read_bytes()[:-1])
    refused(tmp_path, source, "is damaged, fetch it again")


def test_without_safetensors_the_error_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    refused(tmp_path, tmp_path / "a.safetensors", "pip install safetensors")


# ---- The download and the command


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A small VGG16 at a file:// URL with its hash in its name; the weights folder is empty."""
    (tmp_path / "site").mkdir(), (tmp_path / "weights").mkdir()
    plain = write(tmp_path / "site/plain.pth", Torchvision().state_dict())
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    original = plain.rename(plain.with_name(f"vgg16-{digest[:8]}.pth"))
    monkeypatch.setattr(module, "URL", original.as_uri())
    monkeypatch.setattr(module, "HERE", tmp_path / "weights")
    return original


def test_a_download_is_reused_and_converted_next_to_it(site, tmp_path):
    path = download()
    assert path == tmp_path / "weights" / site.name and path.read_bytes() == site.read_bytes()
    site.unlink()
    assert download() == path
    convert(path, network=VGG16(**SMALL))
    assert len(read_tensors(tmp_path / "weights/vgg16.pth")) == 30
    theirs = write(tmp_path / "fcn.pth", caffe_state(authors()))
    convert(theirs, network=FCN8s(3, pad=100, **SMALL))
    assert len(FCN8s.load(tmp_path / "weights/fcn8s.pth").classes) == 3


def test_a_failed_download_says_how_to_get_the_file(site, tmp_path, monkeypatch):
    site.write_bytes(site.read_bytes()[:-1])  # a damaged download
    for url in (site.as_uri(), "http://localhost:1/vgg16-397923af.pth", "nonsense://x/y.pth"):
        monkeypatch.setattr(module, "URL", url)
        with pytest.raises(InputError, match="fetch it by hand") as caught:
            download()
        assert "\n" not in str(caught.value) and url in str(caught.value)
    assert list((tmp_path / "weights").iterdir()) == []


def test_the_command_converts_the_full_width_in_any_folder(tmp_path):
    zero, theirs, channels = torch.zeros(1), {}, 3  # expanded tensors keep the file small
    for name, width in zip(module.CONVOLUTIONS, [w for w in WIDTHS if w != "pool"], strict=True):
        theirs[f"{name}.weight"] = zero.expand(16 * width, channels, 3, 3)
        theirs[f"{name}.bias"], channels = zero.expand(16 * width), 16 * width
    file = write(tmp_path / "a.pth", theirs)
    command = [sys.executable, ROOT / "weights/convert.py", file, "--out", "out.pth"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and "26 tensors" in done.stdout


def test_the_caffe_option_needs_a_file(command):
    status, _, error = command("weights/convert.py", "--caffe")
    assert status == 2 and "--caffe: needs FILE" in error
