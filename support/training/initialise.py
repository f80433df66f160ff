"""The initial weights of a network: ImageNet's, another run's, or random.

Two steps here let the new layers learn from a few hundred images. New fc6 and fc7 start by passing
pool5 on (`identity_init`). The feature maps that are scored get comparable norms (`balance`).
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


def read_weights(name: str) -> tuple[dict | None, Path | None]:
    """(content, path) of the weights file that a network starts from, or (None, None).

    name    a path; "auto": weights/vgg16.pth, downloaded and converted if missing; "none": no file

    The content is a checkpoint if it has "model", otherwise tensors by name. Raises InputError.
    """
    if name == "none":
        return None, None
    if name == "auto" and not WEIGHTS.is_file():
        from weights.convert import convert, download  # runs once: the file stays

        print(convert(download(), WEIGHTS))
    path = WEIGHTS if name == "auto" else Path(name)
    content = read_tensors(path)
    if "model" in content:
        require_checkpoint(content, path)
    return content, path


def new_network(config, classes: list[str]) -> FCN8s:
    """A network with random weights. Raises InputError for invalid settings."""
    torch.manual_seed(config.seed)
    names = ("pad", "stride", "width", "fc_channels", "learn_upsampling", "dropout")
    try:
        net = FCN8s(len(classes), **{name: getattr(config, name) for name in names})
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from None
    net.classes, net.resize_factor = classes, config.resize
    return net


def initialise(net: FCN8s, config, weights: dict | None, path: Path, image: np.ndarray):
    """Load the initial weights and set the skip gains.

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
        # Only a part: a whole large photo would take gigabytes.
        height, width = image.shape[:2] if config.crop == "none" else config.crop
        balance(net, image[-height:, :width], config.resize)
    gains = ", ".join(f"{name} {gain:.2g}" for name, gain in net.skip_gain.items())
    print(f"skip gains: {gains}")
    if config.freeze:
        print(f"blocks 1 to {config.freeze} of VGG16 are frozen (--freeze)")


def load_imagenet(net: VGG16, weights: dict, path: Path) -> str:
    """Load converted ImageNet weights into `net`. Returns one line that says what was loaded.

    weights    tensors by name, from `python weights/convert.py`; `path` is for messages

    A tensor that is missing, extra, of the wrong shape or not finite raises InputError with its
    name and leaves `net` unchanged. One exception: if the file holds only the thirteen
    convolutions, `identity_init` adds fc6 and fc7.
    """
    expected = net.state_dict()
    features_only = not any(name.startswith("fc") for name in weights)
    if features_only:
        expected = {name: t for name, t in expected.items() if not name.startswith("fc")}
    for name in expected.keys() ^ weights.keys():
        what = "is missing" if name in expected else "is not part of VGG16"
        raise InputError(
            f"{path}: tensor {name!r:.80} {what}; make the file with python weights/convert.py"
        )
    for name, tensor in weights.items():
        require_fitting(tensor, expected[name], f"{path}: {name}")
    net.load_state_dict(weights, strict=False)  # checked above; fc6 and fc7 may be missing
    if features_only:
        identity_init(net)
        return f"{path}: 13 convolutions from ImageNet; fc6 and fc7 are new and pass pool5 on"
    return f"{path}: 13 convolutions, fc6 and fc7 from ImageNet"


def require_fitting(tensor, expected: torch.Tensor, where: str):
    """Raise InputError unless `tensor` is dense, finite and of the expected shape."""
    require_numbers(tensor, where)
    if tensor.shape != expected.shape:
        raise InputError(
            f"{where}: shape {list(tensor.shape)}, but the network needs {list(expected.shape)}; "
            "use --width 1 --fc-channels auto, convert with --features-only, or train with "
            "--weights none"
        )


@torch.no_grad()
def identity_init(net: VGG16):
    """Initialise new fc6 and fc7 to pass pool5 on, channel by channel.

    This is identity initialisation (Yu and Koltun 2016, section 3). The scores start from features
    learnt on a million images. With He-normal weights they would start from random mixtures of the
    512*7*7 numbers that fc6 sees, which a few hundred images would have to untangle. The He-normal
    weights are kept, times 0.1, for the rest of the window and for channels that pool5 lacks.
    """
    for layer in (net.fc6, net.fc7):
        layer.weight *= 0.1
        layer.weight += nn.init.dirac_(torch.empty_like(layer.weight))


def load_trained(net: FCN8s, saved: dict, path: Path, classes: list[str]) -> str:
    """Load a checkpoint to fine-tune it or to continue the authors' stages 32s, 16s, 8s (section
    4.2). Returns one line that says which layers are new.

    saved      the content of a checkpoint; `path` is for messages
    classes    the names of the classes of `net`

    Copies VGG16's layers and the skip gains; the score layers if the classes and their order are
    the same; the upsampling layers if the stride is the same too. Raises InputError and leaves
    `net` unchanged if pad, width or fc_channels differ.
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
        # A coarser stage lacks the score layers of later skips.
        if name.startswith(copied) and (name in state or not name.startswith("score")):
            require_fitting(state.get(name), tensor, f"{path}: {name}")
            new[name] = state[name]
    net.load_state_dict(new, strict=False)
    net.set_skip_gain(config["skip_gain"])
    layers = {name.partition(".")[0] for name in net.state_dict() if name.startswith("score")}
    layers -= {name.partition(".")[0] for name in new}
    why = ""
    if "score" not in copied:
        why = f", because its classes differ: {shortened(saved['classes'], 5)}"
    return f"{path}: loaded for fine-tuning; new layers: {', '.join(sorted(layers)) or 'none'}{why}"


def freeze(vgg: VGG16, blocks: int):
    """Freeze blocks 1 ... `blocks` of VGG16: they get no gradient and pass none back.

    Edges and textures look the same on ImageNet and on streets, and a million images teach them
    better than a few hundred. Freezing a third block helped with eleven classes on streets that no
    training image showed, but cost three points on KITTI's lane (docs/results.md). The first two
    blocks have the largest feature maps. Without their backward pass, a step takes three quarters
    of the time; without that of three blocks, half. Girshick 2015 (section 4.5) trains VGG16 from
    conv3_1 on for the same reasons.
    """
    frozen = tuple(f"conv{i}_" for i in range(1, blocks + 1))
    for name, layer in vgg.named_children():
        if name.startswith(frozen):
            layer.requires_grad_(False)


@torch.no_grad()
def balance(net: FCN8s, image, resize: float):
    """Scale fc7 to a root mean square of 1 on `image`, uint8 [H, W, 3], and each skip to SKIP_NORM
    times the norm of fc7.

    resize    size factor of images before the network

    A gradient step on a score layer changes the scores in proportion to the squared norm of its
    input: the sum of squares over the channels. With Caffe's VGG16, it is some 80,000 for a new fc7
    and 80,000,000 for pool3; other weights have other norms. The largest norm limits the learning
    rate of all score layers. With comparable norms, all learn at about the same pace. The skips may
    learn somewhat faster, since the fine detail that they add is learnt last. On CamVid, skips of
    twice fc7's norm gained up to 0.6 points of mean IoU on two streets that no training image
    showed, and 1.7 on the validation set; skips of a third of fc7's norm cost 4.

    skip_gain scales the skips; fc7 is scaled in its weights. Positive factors pass through ReLU, so
    dividing fc6's weights and both biases by a number only divides fc7 by that number.
    """
    ((pixels, _),) = Predictor(net, resize=resize).views(image)
    maps = net.eval().vgg(normalise(pixels))
    norms = {
        name: features.pow(2).sum(1).mean().sqrt().item()
        for name, features in zip(VGG16.OUTPUTS, maps, strict=True)
    }
    if min(norms.values()) == 0:  # a very narrow network may output only zeros
        return
    norm = math.sqrt(net.vgg.channels["fc7"])
    for scaled in (net.vgg.fc6.weight, net.vgg.fc6.bias, net.vgg.fc7.bias):
        scaled /= norms["fc7"] / norm
    net.set_skip_gain({name: SKIP_NORM * norm / norms[name] for name in net.SKIPS})
