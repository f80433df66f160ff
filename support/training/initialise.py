"""What a network begins with: ImageNet's weights, those of another training, or random ones.

And what is done to its new layers, so that a few hundred images are enough to train them: fc6 and
fc7 begin by passing on what was learnt on ImageNet, and the three maps that are scored are scaled
to comparable norms.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

from fcn import FCN8s
from support.checkpoint import read_tensors
from support.console import InputError, parse_scale, shortened
from support.datasets.images import Reader
from support.device import as_batch, normalise
from support.inference.scale import at_scale
from support.labels import DataSet
from vgg import VGG16
from weights.convert import convert, download

WEIGHTS = Path(__file__).resolve().parents[2] / "weights" / "vgg16.pth"
FROZEN, FROZEN_ROAD = (
    3,
    2,
)  # blocks of trained weights that stay as they are, for several classes and for a road alone
SKIP_LENGTH = 2.0  # how much longer pool4 and pool3 are made than fc7, see `balance`


def read_weights(name: str, width: float) -> tuple[dict | None, Path | None]:
    """The content and the path of the weights file that a network begins with, (None, None) for the
    name "none".

    name     a path, "none", or "auto": weights/vgg16.pth, which is downloaded and converted if it
             is not there
    width    of the network, which must be 1 for ImageNet's weights

    Raises InputError.
    """
    if name == "none":
        return None, None
    if name == "auto":
        if width != 1:
            raise InputError(
                "ImageNet weights have no reduced width; add --weights none, or leave out --width"
            )
        if not WEIGHTS.is_file():
            print(convert(download(), WEIGHTS))
    path = WEIGHTS if name == "auto" else Path(name)
    return read_tensors(path), path


def begin_network(
    settings: dict,
    data: DataSet,
    reader: Reader,
    crop: tuple[int, int] | None,
    weights: dict | None,
    path: Path | None,
) -> FCN8s:
    """A new network with the weights that the settings name; says which. Raises InputError if they
    do not fit.
    """
    torch.manual_seed(settings["seed"])
    net = new_network(len(data.classes), settings)
    if is_checkpoint(weights):
        print(take_over(net, weights, path, data.classes))
        scale = (weights.get("settings") or {}).get("scale", 1.0)
        if scale != settings["scale"]:
            print(
                f"{path}: saw its images at {scale:g} times their size, this network at {settings['scale']:g} (--scale)"
            )
    elif weights is not None:
        print(load_imagenet(net.vgg, weights, path))
    if settings["skip_scale"] != "auto":
        net.set_skip_scale(*parse_scale(settings["skip_scale"]))
    elif not is_checkpoint(weights):
        image, _ = reader(data.train[0])
        height, width = crop or image.shape[:2]  # a photo of 12 megapixels, whole, would take 7 GiB
        balance(net, normalise(as_batch(at_scale(image[-height:, :width], settings["scale"]))))
    print(f"skips: pool4 times {net.scale_pool4:.2g}, pool3 times {net.scale_pool3:.2g}")
    return net


def suited_channels(weights: dict | None) -> int:
    """The channels of fc6 and fc7 that suit a weights file: a checkpoint, ImageNet's weights, or
    None.
    """
    if weights is None:
        return 4096
    if isinstance(weights.get("config"), dict) and isinstance(
        weights["config"].get("fc_channels"), int
    ):
        return weights["config"]["fc_channels"]
    if isinstance(weights.get("fc6.bias"), torch.Tensor):
        return weights["fc6.bias"].numel()
    return 512  # convolutions alone: as many as pool5 has, which identity_init copies; more scored no better


def new_network(num_classes: int, settings: dict) -> FCN8s:
    """A network with fresh weights. Raises InputError if the settings make none."""
    try:
        return FCN8s(
            num_classes,
            settings["pad"],
            settings["stride"],
            settings["width"],
            settings["fc_channels"],
            settings["learn_upsampling"],
            dropout=settings["dropout"],
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    except TypeError:
        raise InputError(
            f"--width {settings['width']:g}: makes more channels than can be counted"
        ) from None


def is_checkpoint(weights: dict | None) -> bool:
    """Whether these are the weights of a whole FCN, as train.py saves them, and not ImageNet's."""
    return weights is not None and "model" in weights


def load_imagenet(net: VGG16, weights: dict, path: Path) -> str:
    """Load converted ImageNet weights (`python weights/convert.py`) into `net`. Returns one line on
    what was loaded.

    weights    tensors by name, as read_tensors gives them; `path` is for messages

    Strict: a tensor that is missing, extra, wrongly shaped or not finite raises InputError with its
    name, and leaves `net` as it was. There is one exception: a file of the thirteen convolutions
    alone is completed by `identity_init`, and the line says so.
    """
    wanted = net.state_dict()
    features_only = not any(name.startswith("fc") for name in weights)
    if features_only:
        wanted = {name: tensor for name, tensor in wanted.items() if not name.startswith("fc")}

    mend = "convert it with: python weights/convert.py FILE"
    for name in wanted:
        if name not in weights:
            raise InputError(f"{path}: tensor {name} is missing; {mend}")
    for name, tensor in weights.items():
        if name not in wanted:
            raise InputError(f"{path}: unexpected tensor {name!r}; {mend}")
        if (
            not isinstance(tensor, torch.Tensor)
            or tensor.layout != torch.strided
            or not tensor.is_floating_point()
        ):
            raise InputError(
                f"{path}: {name} is not a dense tensor of floating point numbers; {mend}"
            )
        if tensor.shape != wanted[name].shape:
            raise InputError(
                f"{path}: {name} is {list(tensor.shape)}, the network has {list(wanted[name].shape)}; "
                "leave out --width and --fc-channels, or train with --weights none; for other --fc-channels "
                "convert with --features-only"
            )
        if not torch.isfinite(tensor.to(wanted[name].dtype)).all():
            raise InputError(
                f"{path}: {name} holds values that are not finite; the file is damaged"
            )
    net.load_state_dict(weights, strict=False)  # strict by the checks above, with the one exception
    if features_only:
        identity_init(net)
        return f"{path}: 13 convolutions from ImageNet; the file has no fc6 and fc7, they start fresh, passing pool5 on"
    return f"{path}: 13 convolutions, fc6 and fc7 from ImageNet"


@torch.no_grad()
def identity_init(net: VGG16):
    """Let fresh fc6 and fc7 begin by passing pool5 on: their channel i is its channel i.

    Identity initialisation (Yu and Koltun 2016, section 3). With He-normal weights, the scores
    would begin from a random mixture of the 512*7*7 numbers that fc6 sees, and a few hundred images
    would have to sort it out. So they begin from features that were learnt from a million images. A
    tenth of the fresh weights stays, for what is to be learnt from the rest of the window, and for
    channels that pool5 does not have.
    """
    for layer in (net.fc6, net.fc7):
        layer.weight *= 0.1
    middle = net.fc6.kernel_size[0] // 2
    for i in range(min(net.fc6.weight.shape[:2])):
        net.fc6.weight[i, i, middle, middle] += 1
    for i in range(net.channels["fc7"]):
        net.fc7.weight[i, i] += 1


def take_over(net: FCN8s, weights: dict, path: Path, classes: list[str]) -> str:
    """Begin where another training ended: the authors' stages 32s, 16s, 8s (section 4.2), or one
    data set after another.

    weights    the content of a checkpoint of train.py, as read_tensors gives it; `path` is for
               messages
    classes    the names of the classes that `net` is to tell apart

    VGG16's layers are copied, and the factors on the skips, which --skip-scale may then replace.
    The score layers are copied too if the checkpoint has the same classes in the same order, and
    learnt upsampling if the stride is also the same. Returns one line on it. Raises InputError, and
    leaves `net` as it was, if the networks differ in size or something is missing.
    """
    state, config = weights.get("model"), weights.get("config")
    if (
        not isinstance(state, dict)
        or not isinstance(config, dict)
        or len(config.get("skip_scale", ())) != 2
    ):
        raise InputError(f"{path}: is not a checkpoint of train.py, such as runs/NAME/best.pt")
    for name in ("pad", "width", "fc_channels"):
        if config.get(name) != net.config[name]:
            option = f"--{name.replace('_', '-')} {config.get(name)}"
            raise InputError(
                f"{path}: was trained with {option}, this network has {net.config[name]}; add {option}"
            )
    parts = ("vgg",)
    if weights.get("classes") == classes and config.get("num_classes") == net.config["num_classes"]:
        parts = (
            ("vgg", "score", "upscore")
            if config.get("stride") == net.config["stride"]
            else ("vgg", "score")
        )
    wanted = {name: tensor for name, tensor in net.state_dict().items() if name.startswith(parts)}
    for name, tensor in wanted.items():
        if name not in state and name.startswith("score"):
            continue  # the checkpoint is of a coarser stage
        if not isinstance(state.get(name), torch.Tensor) or state[name].shape != tensor.shape:
            raise InputError(
                f"{path}: {name} is missing or not {list(tensor.shape)}; the file is damaged"
            )
        if not torch.isfinite(state[name]).all():
            raise InputError(
                f"{path}: {name} holds values that are not finite; the file is damaged"
            )
    net.load_state_dict({name: state[name] for name in wanted if name in state}, strict=False)
    net.set_skip_scale(*config["skip_scale"])
    fresh = sorted(
        {
            name.partition(".")[0]
            for name in net.state_dict()
            if name.startswith("score") and not (name in wanted and name in state)
        }
    )
    others = shortened(list(map(str, weights.get("classes", []))), 5)
    why = "" if len(parts) > 1 else f", since its classes are others: {others}"
    return f"{path}: taken over from a trained network; {', '.join(fresh) or 'nothing'} starts fresh{why}"


def freeze(vgg: VGG16, blocks: int):
    """Let blocks 1 ... `blocks` of VGG16 stay as they are: they get no gradient, and none is passed
    back through them.

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
def balance(net: FCN8s, image: torch.Tensor):
    """Scale what the score layers see: fc7 to a root mean square of 1 on `image` [N, 3, H, W], and
    pool4 and pool3 to SKIP_LENGTH times its length.

    A step of a score layer changes the scores by the squared length of its input: the sum of
    squares over the channels. With Caffe's VGG16 that is some 80,000 for a fresh fc7 and 80,000,000
    for pool3; with other weights it is other numbers. The largest of them limits the learning rate
    for all three. With comparable lengths, all three learn at about the same pace. The skips may
    learn somewhat faster, since the fine detail that they add is learnt last. On CamVid, twice the
    length was worth up to 0.6 points of mean IoU on two streets that no training image showed, and
    1.7 on the validation set; a third of it cost 4.

    For the pools the factor is skip_scale. For fc7 it is in the weights: ReLU passes factors on, so
    dividing fc6's weights and both biases by a number divides fc7 by that number and changes
    nothing else.
    """
    pool3, pool4, fc7 = (
        features.pow(2).sum(1).mean().sqrt().item() for features in net.eval().vgg(image)
    )
    if (
        min(pool3, pool4, fc7) == 0
    ):  # nothing comes through, as may happen in a very narrow network: nothing to go by
        return
    length = math.sqrt(net.vgg.channels["fc7"])
    for scaled in (net.vgg.fc6.weight, net.vgg.fc6.bias, net.vgg.fc7.bias):
        scaled /= fc7 / length
    net.set_skip_scale(SKIP_LENGTH * length / pool4, SKIP_LENGTH * length / pool3)
