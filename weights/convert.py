"""python weights/convert.py [FILE] [--out PATH] [--caffe] [--at-once]: turn public weights into
this project's.

FILE is one of these, told apart by the names of its tensors (README.md beside this script says
where to get them):

    torchvision VGG16      features.N, classifier.0 (fc6), classifier.3 (fc7); classifier.6 (1000 classes) is dropped
    timm VGG16             features.N, pre_logits.fc1 (fc6), pre_logits.fc2 (fc7); head.fc is dropped
    VGG16 convolutions     features.N alone; --features-only makes them of the two above
    pytorch-fcn's FCN-8s   conv1_1 ... fc7, score_*, upscore*: the authors' complete network, with Caffe's input

Without FILE, torchvision's is downloaded (528 MiB). VGG16 becomes weights/vgg16.pth, which
`load_imagenet` in support/start.py loads. FCN-8s becomes weights/fcn8s.pth, a checkpoint that
predict.py and train.py --weights take. Both take RGB images normalised as vgg.py says.

For that, Caffe's input (BGR in 0..255 minus a mean) is folded into conv1_1. For a VGG16 that takes
--caffe, since no name tells what input it has. The fold is exact wherever conv1_1 sees image alone.
It cannot be exact at the padding: a zero there stands for Caffe's mean in their network and for
IMAGE_MEAN in this one. The two colours differ by up to one level of 255, and no weights can tell
padding from image. Measured at full width with pad=100 (the VGG group's convolutions, He-normal fc
and score layers, seven crops of road photos), the scores differ from Caffe's by ||ours - theirs|| /
||theirs|| =

    4e-3 ... 8e-3   224x224 to 375x500; with one of the three score layers alone 4e-3 ... 1.5e-2
    1e-4 ... 3e-4   32 pixels and more from the border: 99 % of the squared difference lies in the outer 16 pixels
    under 5e-7      if the border is painted in Caffe's mean: only rounding is left, so the padding explains all of it
"""

from __future__ import annotations

import http.client
import math
import re
import sys
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":  # run as a script: the rest of the project lies one folder up
    sys.path.insert(0, str(HERE.parent))

from fcn import FCN8s  # noqa: E402
from support.checkpoint import read_tensors, save_tensors
from support.console import InputError, Parser, one_line
from support.datasets.published import VOC_CLASSES
from support.files import sha256
from support.labels import IGNORE
from support.safetensors import read_safetensors
from vgg import IMAGE_MEAN, IMAGE_STD, VGG16  # noqa: E402

URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
# torchvision's other VGG16 (IMAGENET1K_FEATURES) has the same names but takes 0..255: by its names
# alone it would be converted, and would then see nearly uniform grey. Only its SHA-256 tells.
OTHER_INPUT = "88682ab5"

AT_ONCE = (0.01, 0.0001)  # factors on pool4 and pool3 in the authors' at-once network
CAFFE_MEAN = (
    104.00699,
    116.66877,
    122.67892,
)  # blue, green, red in 0..255, subtracted by the authors' network

# Their layer -> our layer; None: dropped. The gaps in torchvision's numbers are its ReLUs and
# pools.
CONVOLUTIONS = {
    "features.0": "conv1_1",
    "features.2": "conv1_2",
    "features.5": "conv2_1",
    "features.7": "conv2_2",
    "features.10": "conv3_1",
    "features.12": "conv3_2",
    "features.14": "conv3_3",
    "features.17": "conv4_1",
    "features.19": "conv4_2",
    "features.21": "conv4_3",
    "features.24": "conv5_1",
    "features.26": "conv5_2",
    "features.28": "conv5_3",
}
TORCHVISION, TIMM, FEATURES, FCN = (
    "torchvision VGG16",
    "timm VGG16",
    "VGG16 convolutions",
    "pytorch-fcn's FCN-8s",
)
FORMATS = {
    TORCHVISION: {
        **CONVOLUTIONS,
        "classifier.0": "fc6",
        "classifier.3": "fc7",
        "classifier.6": None,
    },
    TIMM: {**CONVOLUTIONS, "pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": None},
    FEATURES: CONVOLUTIONS,
    FCN: {
        **{layer: f"vgg.{layer}" for layer in (*CONVOLUTIONS.values(), "fc6", "fc7")},
        **{
            layer: layer
            for layer in (
                "score_fr",
                "score_pool4",
                "score_pool3",
                "upscore2",
                "upscore_pool4",
                "upscore8",
            )
        },
    },
}


def hash_in_name(name: str) -> str:
    """The start of the SHA-256 that a name like torchvision's vgg16-397923af.pth carries; "" if it
    carries none.
    """
    found = re.search(r"-([0-9a-f]{8,64})\.", name)
    return found[1] if found else ""


def read_any(path: Path) -> dict:
    """What a safetensors file or a file of torch.save holds. Raises InputError, or OSError if it
    cannot be opened.
    """
    with open(path, "rb") as file:
        start = file.read(9)
    # Told by its ninth byte, the header's first: never so in the zip and pickle files of
    # torch.save.
    return read_safetensors(path) if start[8:] == b"{" else read_tensors(path)


def recognise(tensors: dict) -> str:
    """Which of FORMATS these are, by their names alone. Raises InputError if none, or if they are
    already ours.
    """
    if "conv1_1.weight" in tensors and "score_fr.weight" in tensors:
        return FCN
    if not {"conv1_1.weight", "vgg.conv1_1.weight", "model"}.isdisjoint(tensors):
        raise InputError("already converted: it has this project's own names")
    if "features.0.weight" in tensors:
        layers = {name.rpartition(".")[0] for name in tensors} - set(CONVOLUTIONS)
        return next((kind for kind in (TORCHVISION, TIMM) if layers & set(FORMATS[kind])), FEATURES)
    names = ", ".join(f"{name!r:.60}" for name in list(tensors)[:4])
    raise InputError(
        f"unknown weights: {len(tensors)} entries ({names}, ...); expected features.N and classifier.N of "
        "torchvision, features.N and pre_logits.* of timm, features.N alone, or conv1_1 and score_fr of "
        "pytorch-fcn's FCN-8s"
    )


def network_for(kind: str, tensors: dict) -> nn.Module:
    """The network that such tensors must fit, at full width and without memory of its own
    (torch.device "meta").

    FCN-8s has as many classes as score_fr has rows. Raises InputError if that is no number of
    classes.
    """
    with torch.device("meta"):
        if kind != FCN:
            return VGG16()
        score = tensors["score_fr.weight"]
        classes = score.shape[0] if isinstance(score, torch.Tensor) and score.dim() else 0
        if not 1 <= classes <= IGNORE:
            raise InputError(f"score_fr.weight is for {classes} classes, not 1 to {IGNORE}")
        return FCN8s(classes, pad=100)


def translate(
    tensors: dict,
    kind: str,
    network: nn.Module,
    features_only: bool = False,
    caffe: bool = False,
) -> tuple[dict, list[str]]:
    """(state dict of `network`, names that were dropped) from tensors in one of FORMATS.

    The state dict is in the network's order, each tensor float32, contiguous and in memory of its
    own. Dense layers become convolutions: [out, C*7*7] -> [out, C, 7, 7] for fc6 (both count
    channel by channel, then row by row), [out, in] -> [out, in, 1, 1] for fc7. With `features_only`
    fc6 and fc7 are dropped. Caffe's input is folded, which FCN-8s has and VGG16 with `caffe`.

    Raises InputError, naming it, for the first tensor that is missing, unexpected, misshaped, or
    not of finite numbers.
    """

    def dense(name: str) -> bool:  # fc6 and fc7, in either network
        return name.startswith(("fc", "vgg.fc"))

    if features_only and kind == FCN:
        raise InputError(f"--features-only is for VGG16, this is {FCN}")
    features_only = features_only or kind == FEATURES
    shapes = {
        name: tensor.shape
        for name, tensor in network.named_parameters()
        if not (features_only and dense(name))
    }
    theirs = {
        f"{our}.{part}": f"{their}.{part}"
        for their, our in FORMATS[kind].items()
        for part in ("weight", "bias")
    }
    droppable = {
        their for their, our in FORMATS[kind].items() if our is None or features_only and dense(our)
    }
    other = "VGG16 with batch normalisation, VGG19 and other networks do not fit"

    for name in shapes:
        if theirs[name] not in tensors:
            raise InputError(f"read as {kind}, but tensor {theirs[name]} is missing; {other}")
    kept = {theirs[name] for name in shapes}
    dropped = [name for name in tensors if name not in kept]
    for name in dropped:
        if name.rpartition(".")[0] not in droppable:
            raise InputError(f"read as {kind}, but tensor {name!r:.80} is unexpected; {other}")

    state = {}
    for name, shape in shapes.items():
        their, tensor = theirs[name], tensors[theirs[name]]
        if (
            not isinstance(tensor, torch.Tensor)
            or not tensor.is_floating_point()
            or tensor.layout != torch.strided
            or tensor.is_meta
        ):
            raise InputError(f"{their} is not a dense tensor of floating point numbers")
        if dense(name) and tensor.shape == (shape[0], math.prod(shape[1:])):
            tensor = tensor.reshape(shape)
        if tensor.shape != shape:
            hint = "; --features-only leaves out fc6 and fc7" if dense(name) and kind != FCN else ""
            raise InputError(f"{their} is {list(tensor.shape)}, but {name} is {list(shape)}{hint}")
        # A copy, even of float32: torch.save would write all the memory that a view is part of.
        tensor = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        # The extremes are not finite if any number is not; isfinite of all of fc6 would take twice
        # its memory.
        if not torch.isfinite(torch.stack(tensor.aminmax())).all():
            raise InputError(f"{their} holds values that are not finite; the file is damaged")
        state[name] = tensor

    if kind == FCN or caffe:
        first = [name for name in state if "conv1_1" in name]  # weight and bias
        state.update(zip(first, fold_caffe_input(*(state[name] for name in first))))
    return state, dropped


def fold_caffe_input(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """conv1_1 for our input, from conv1_1 for Caffe's: weight [C, 3, 3, 3] and bias [C], both
    float32 in and out.

    Caffe's network computes  y = bias + sum over k of weight[k] * v[k],  k running over the blue, green and red of
    each pixel of the window, v = 255 rgb - CAFFE_MEAN. We give it x = (rgb - IMAGE_MEAN) / IMAGE_STD. Hence

        v = 255 (IMAGE_STD x + IMAGE_MEAN) - CAFFE_MEAN
        y = bias + sum of weight * (255 IMAGE_MEAN - CAFFE_MEAN)    this is our bias
                 + sum of (weight * 255 IMAGE_STD) * x              and this our weight, once its channels are RGB
    """
    mean, std, caffe_mean = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in (IMAGE_MEAN, IMAGE_STD, CAFFE_MEAN[::-1])
    )
    weight = weight.double().flip(1)  # BGR -> RGB
    bias = bias.double() + (weight * (255 * mean - caffe_mean)).sum(dim=(1, 2, 3))
    return (weight * 255 * std).float(), bias.float()


def download() -> Path:
    """Path of torchvision's VGG16 in the weights folder, downloaded unless it is there. Raises
    InputError.
    """
    path = HERE / URL.rpartition("/")[2]
    if (
        path.exists()
    ):  # whole: a download gets its name only at its end, and convert() checks the hash in the name
        print(f"using {path}, downloaded before", flush=True)
        return path
    print(f"downloading {URL} (528 MiB) to {path}", flush=True)
    try:
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=hash_in_name(path.name))
    except (
        OSError,
        RuntimeError,
        http.client.HTTPException,
    ) as error:  # RuntimeError: the hash is another
        raise InputError(
            f"{URL} cannot be downloaded ({one_line(error, 200)}): fetch it by hand, put it into {HERE} and "
            "run python weights/convert.py; other sources: weights/README.md; or train with --weights "
            "none"
        ) from None
    return path


def convert(
    source: Path,
    out: Path | None = None,
    features_only: bool = False,
    caffe: bool = False,
    at_once: bool = False,
    network: nn.Module | None = None,
) -> str:
    """Convert the weights in file `source` into file `out`; returns a report on both, several
    lines.

    out            by default vgg16.pth, or fcn8s.pth for a complete FCN-8s, in the folder of this
                   script
    features_only  leave out fc6 and fc7, for a network with another fc_channels
    caffe          the VGG16 takes Caffe's input, BGR in 0..255 minus a mean
    at_once        the FCN-8s is the authors' at-once network, which scales its skips
    network        what the weights must fit; by default VGG16(), or FCN8s(classes, pad=100) for a
                   complete FCN-8s

    Raises InputError if `source` is not what this module's docstring lists, or `out` cannot be
    written. `out` then is as it was before.
    """
    source = Path(source)
    try:
        digest = sha256(source)
        promised = hash_in_name(source.name)
        if not digest.startswith(promised):
            raise InputError(
                f"{source}: its name promises a SHA-256 of {promised}..., but it is {digest}: "
                "a damaged download? Delete it and fetch it again"
            )
        if digest.startswith(OTHER_INPUT):
            raise InputError(
                f"{source}: this VGG16 takes images in 0..255, not normalised ones; use {URL}"
            )
        if caffe and digest.startswith(hash_in_name(URL)):
            raise InputError(
                f"{source}: is torchvision's and takes normalised images; leave out --caffe"
            )
        tensors = read_any(source)
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error.strerror})") from None
    try:
        kind = recognise(tensors)
        if caffe and kind == TIMM:
            raise InputError(f"{kind} takes normalised images; leave out --caffe")
        if at_once and kind != FCN:
            raise InputError(f"--at-once is for {FCN}, this is {kind}; leave it out")
        network = network or network_for(kind, tensors)
        state, dropped = translate(tensors, kind, network, features_only, caffe)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None

    out = Path(out or HERE / ("fcn8s.pth" if kind == FCN else "vgg16.pth"))
    if out.is_dir():
        raise InputError(f"{out} is a folder, --out takes a file")
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is the file to convert: give another --out, or rename it")
    lines = [f"read    {source}: {kind}, {len(tensors)} tensors", f"sha256  {digest}"]
    if dropped:
        lines += [f"dropped {', '.join(dropped)}"]
    if kind == FCN:
        content = f"checkpoint of FCN8s({network.config['num_classes']}, pad=100)"
    elif "fc6.weight" in state:
        content = "13 convolutions, fc6 and fc7 of VGG16"
    else:
        content = "13 convolutions of VGG16, no fc6 and fc7"
    del tensors
    save_tensors(checkpoint(network, state, at_once) if kind == FCN else state, out)
    digest = sha256(out)
    return "\n".join(
        [*lines, f"wrote   {out}: {content}, {len(state)} tensors", f"sha256  {digest}"]
    )


def checkpoint(network: FCN8s, state: dict, at_once: bool) -> dict:
    """What predict.py and train.py want to know of a trained network: how it is built, and what its
    classes are called.
    """
    classes = network.config["num_classes"]
    if at_once:
        network.set_skip_scale(*AT_ONCE)
    model = {**state, "_extra_state": network.get_extra_state()}
    return {
        "config": network.config,
        "model": model,
        "settings": {"task": "road", "split_seed": 0, "classes": "all"},
        "classes": VOC_CLASSES
        if classes == len(VOC_CLASSES)
        else [f"class {c}" for c in range(classes)],
    }


def main() -> None:
    parser = Parser(
        "convert.py", prog="convert.py", description="Turn public weights into this project's."
    )
    parser.add_argument(
        "file",
        metavar="FILE",
        nargs="?",
        type=Path,
        help="VGG16 of torchvision or timm, or pytorch-fcn's FCN-8s (default: download torchvision's)",
    )
    parser.add_argument(
        "--out", type=Path, help="default: vgg16.pth or fcn8s.pth in this script's folder"
    )
    parser.add_argument("--features-only", action="store_true", help="leave out fc6 and fc7")
    parser.add_argument(
        "--caffe",
        action="store_true",
        help="the VGG16 takes BGR in 0..255 minus a mean, as Caffe's does",
    )
    parser.add_argument(
        "--at-once", action="store_true", help="the FCN-8s is the authors' at-once network"
    )
    args = parser.parse_args()
    if args.caffe and not args.file:
        parser.exit(
            2,
            "convert.py: error: --caffe: say which FILE; the one to download takes normalised images\n",
        )
    try:
        print(
            convert(args.file or download(), args.out, args.features_only, args.caffe, args.at_once)
        )
    except InputError as error:
        parser.exit(2, f"convert.py: error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped; nothing is written\n")


if __name__ == "__main__":
    main()
