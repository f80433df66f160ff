"""The weights that a network starts with: ImageNet's, those of another training, or random ones.

A few hundred images are enough to train the new layers because of two things done here. fc6 and fc7
start by passing on what was learnt on ImageNet (`identity_init`). The maps that are scored are
brought to comparable norms (`balance`).
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fcn import FCN8s
from support.checkpoint import read_tensors, require_checkpoint, require_numbers
from support.console import InputError, shortened
from support.inference.predictor import Predictor
from vgg import VGG16, normalise

WEIGHTS = Path(__file__).resolve().parents[2] / "weights" / "vgg16.pth"
SKIP_NORM = 2.0  # norm of a scored skip, as a multiple of fc7's, see `balance`


def read_weights(name: str, width: float | str) -> tuple[dict | None, Path | None]:
    """(content, path) of the file of weights that a network starts with.

    name     a path; "auto": weights/vgg16.pth, downloaded and converted if it is not there; or
             "none": then (None, None) is returned
    width    of the network, or "auto"; ImageNet's weights need 1

    The content is a checkpoint if it has "model"; else tensors by name. Raises InputError.
    """
    if name == "none":
        return None, None
    if name == "auto":
        if width not in (1, "auto"):
            raise InputError(
                "--width: ImageNet's weights have the full width; add --weights none, or leave out "
                "--width"
            )
        if not WEIGHTS.is_file():
            from weights.convert import convert, download  # once: the file stays

            print(convert(download(), WEIGHTS))
    path = WEIGHTS if name == "auto" else Path(name)
    content = read_tensors(path)
    if "model" in content:
        require_checkpoint(content, path)
    return content, path


def new_network(config, classes: list[str]) -> FCN8s:
    """A network with random weights. Raises InputError if the settings make none."""
    torch.manual_seed(config.seed)
    names = ("pad", "stride", "width", "fc_channels", "learn_upsampling", "dropout")
    try:
        net = FCN8s(len(classes), **{name: getattr(config, name) for name in names})
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from None
    net.classes, net.resize_factor = classes, config.resize
    return net


def initialise(net: FCN8s, config, weights: dict | None, path: Path, image: np.ndarray):
    """Load the weights that the network starts with, and set the skip gains.

    image    uint8 [H, W, 3], a training image
    """
    trained = weights is not None and "model" in weights
    if trained:
        print(load_trained(net, weights, path, net.classes))
        factor = weights["resize_factor"]
        if factor != config.resize:
            print(f"{path}: was trained with --resize {factor:g}, this run has {config.resize:g}")
    elif weights is not None:
        print(load_imagenet(net.vgg, weights, path))
    if config.skip_gain != "auto":  # typed, or measured by the first process
        net.set_skip_gain(config.skip_gain)
    elif not trained:
        # Not the whole of a large photo, which would take gigabytes.
        height, width = image.shape[:2] if config.crop == "none" else config.crop
        balance(net, image[-height:, :width], config.resize)
    gains = ", ".join(f"{name} times {gain:.2g}" for name, gain in net.skip_gain.items())
    print(f"skips: {gains}")
    if config.freeze:
        print(f"blocks 1 to {config.freeze} of VGG16 are frozen (--freeze)")


def load_imagenet(net: VGG16, weights: dict, path: Path) -> str:
    """Load converted ImageNet weights into `net`. Returns one line on what was loaded.

    weights    tensors by name, as `python weights/convert.py` writes them; `path` is for messages

    Strict: a tensor that is missing, extra, of the wrong shape or not finite raises InputError with
    its name and leaves `net` as it was. One exception: a file of the thirteen convolutions alone is
    completed by `identity_init`.
    """
    expected = net.state_dict()
    features_only = not any(name.startswith("fc") for name in weights)
    if features_only:
        expected = {name: t for name, t in expected.items() if not name.startswith("fc")}
    for name in expected.keys() ^ weights.keys():
        what = "is missing" if name in expected else "is none of VGG16's"
        raise InputError(
            f"{path}: tensor {name!r:.80} {what}; convert it: python weights/convert.py"
        )
    for name, tensor in weights.items():
        require_fitting(tensor, expected[name], f"{path}: {name}")
    net.load_state_dict(weights, strict=False)  # strict by the checks above, but for fc6 and fc7
    if features_only:
        identity_init(net)
        return f"{path}: 13 convolutions from ImageNet; fc6 and fc7 are new and pass pool5 on"
    return f"{path}: 13 convolutions, fc6 and fc7 from ImageNet"


def require_fitting(tensor, expected: torch.Tensor, where: str):
    """Raise InputError unless `tensor` is dense, finite and of the expected shape."""
    require_numbers(tensor, where)
    if tensor.shape != expected.shape:
        raise InputError(
            f"{where} is {list(tensor.shape)}, the network has {list(expected.shape)}; leave out "
            "--width and --fc-channels, or train with --weights none"
        )


@torch.no_grad()
def identity_init(net: VGG16):
    """Let new fc6 and fc7 start by passing pool5 on: channel i is channel i of pool5.

    Identity initialisation (Yu and Koltun 2016, section 3). With He-normal weights, the scores
    would start from a random mixture of the 512*7*7 numbers that fc6 sees, and a few hundred images
    would have to sort it out. Instead they start from features learnt on a million images. A tenth
    of the He-normal weights stays, for what is to be learnt from the rest of the window, and for
    channels that pool5 does not have.
    """
    for layer in (net.fc6, net.fc7):
        layer.weight *= 0.1
        layer.weight += nn.init.dirac_(torch.empty_like(layer.weight))


def load_trained(net: FCN8s, saved: dict, path: Path, classes: list[str]) -> str:
    """Start from another training: the authors' stages 32s, 16s, 8s (section 4.2), or fine-tuning.

    saved      the content of a checkpoint; `path` is for messages
    classes    the names of the classes of `net`

    VGG16's layers and the skip gains are copied. The score layers are copied too if the checkpoint
    has the same classes in the same order, and the upsampling if the stride is also the same.
    Returns one line on what is new. Raises InputError, and leaves `net` as it was, if the networks
    differ in size.
    """
    state, config = saved["model"], saved["config"]
    for name in ("pad", "width", "fc_channels"):
        if config.get(name) != net.config[name]:
            option = f"--{name.replace('_', '-')} {config.get(name)}"
            raise InputError(
                f"{path}: was trained with {option}, this network has {net.config[name]}; "
                f"add {option}"
            )
    copied = ("vgg",)
    if saved["classes"] == classes:
        same_stride = config.get("stride") == net.stride
        copied = ("vgg", "score", "upscore") if same_stride else ("vgg", "score")
    new = {}
    for name, tensor in net.state_dict().items():
        # A coarser stage has no score layer for the skips that come later.
        if name.startswith(copied) and (name in state or not name.startswith("score")):
            require_fitting(state.get(name), tensor, f"{path}: {name}")
            new[name] = state[name]
    net.load_state_dict(new, strict=False)
    net.set_skip_gain(config["skip_gain"])
    layers = {name.partition(".")[0] for name in net.state_dict() if name.startswith("score")}
    layers -= {name.partition(".")[0] for name in new}
    why = ""
    if "score" not in copied:
        why = f", since its classes are different: {shortened(saved['classes'], 5)}"
    return f"{path}: fine-tuned from there; new: {', '.join(sorted(layers)) or 'nothing'}{why}"


def freeze(vgg: VGG16, blocks: int):
    """Freeze blocks 1 ... `blocks` of VGG16: they get no gradient, and pass none back.

    Edges and textures are the same on ImageNet as on a street, and a million images have taught
    them better than a few hundred can. A third frozen block helped eleven classes on streets that
    no training image showed, and cost KITTI's lane three points (docs/results.md). The maps of the
    first two blocks are the largest, so without their backward pass a step takes three quarters of
    the time; without that of three blocks, half. (Girshick 2015, section 4.5, trains VGG16 from
    conv3_1 on for the same reasons.)
    """
    frozen = tuple(f"conv{i}_" for i in range(1, blocks + 1))
    for name, layer in vgg.named_children():
        if name.startswith(frozen):
            layer.requires_grad_(False)


@torch.no_grad()
def balance(net: FCN8s, image, resize: float):
    """Scale the maps that are scored: fc7 to a root mean square of 1 on `image`, uint8 [H, W, 3],
    and each skip to SKIP_NORM times its norm.

    resize    the factor by which images are resized before the network

    A step of a score layer changes the scores by the squared norm of its input: the sum of squares
    over the channels. With Caffe's VGG16 that is some 80,000 for a new fc7 and 80,000,000 for
    pool3; with other weights it is other numbers. The largest of them limits the learning rate for
    all. With comparable norms, all score layers learn at about the same pace. The skips may learn
    somewhat faster, since the fine detail that they add is learnt last: on CamVid, twice the norm
    of fc7 was worth up to 0.6 points of mean IoU on two streets that no training image showed, and
    1.7 on the validation set; a third of fc7's norm cost 4.

    The skips are scaled by skip_gain, fc7 in the weights. ReLU passes factors on, so dividing fc6's
    weights and both biases by a number divides fc7 by that number and changes nothing else.
    """
    ((pixels, _),) = Predictor(net, resize=resize).views(image)
    maps = net.eval().vgg(normalise(pixels))
    norms = {
        name: features.pow(2).sum(1).mean().sqrt().item()
        for name, features in zip(VGG16.OUTPUTS, maps, strict=True)
    }
    if min(norms.values()) == 0:  # a very narrow network may pass nothing on: nothing to go by
        return
    norm = math.sqrt(net.vgg.channels["fc7"])
    for scaled in (net.vgg.fc6.weight, net.vgg.fc6.bias, net.vgg.fc7.bias):
        scaled /= norms["fc7"] / norm
    net.set_skip_gain({name: SKIP_NORM * norm / norms[name] for name in net.SKIPS})
