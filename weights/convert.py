"""Convert public weights to this project's.

    python weights/convert.py [FILE] [--out PATH] [--features-only] [--caffe] [--at-once]

FILE has tensors with one of these sets of names (README.md beside this script says where to get
them):

    torchvision VGG16      features.N, classifier.0 (fc6), classifier.3 (fc7)
    timm VGG16             features.N, pre_logits.fc1 (fc6), pre_logits.fc2 (fc7)
    VGG16 convolutions     features.N only
    pytorch-fcn's FCN-8s   conv1_1 ... fc7, score_*, upscore*: the authors' complete network

Without FILE, torchvision's VGG16 is downloaded (528 MiB). VGG16 becomes weights/vgg16.pth, from
which train.py starts. FCN-8s becomes weights/fcn8s.pth, a checkpoint for predict.py and train.py
--weights. Both take RGB images normalised as in vgg.py.

The authors' FCN-8s takes Caffe's input: BGR in 0..255 minus a mean. So does a VGG16 from Caffe; its
tensor names do not show this, so it needs --caffe. `fold_caffe_input` folds the difference into
conv1_1. The fold is exact where the window of conv1_1 lies inside the image. It cannot be exact at
the padding: a zero there stands for Caffe's mean in their network and for IMAGE_MEAN in ours, and
the two differ by up to one level of 255. Measured at full width with pad=100 (the VGG group's
convolutions, He-normal fc and score layers, seven crops of road photos), the scores differ by
||ours - theirs|| / ||theirs|| =

    4e-3 ... 8e-3    from 224 x 224 to 375 x 500
    1e-4 ... 3e-4    32 pixels and more from the image's edge
    under 5e-7       with a border painted in Caffe's mean: apart from the padding, only rounding
"""

from __future__ import annotations

import http.client
import re
import sys
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a script

from fcn import FCN8s
from support.checkpoint import read_tensors, require_numbers
from support.console import InputError, Parser, one_line
from support.files import atomic, sha256
from support.labels import VOC_CLASSES
from vgg import IMAGE_MEAN, IMAGE_STD, VGG16

HERE = Path(__file__).resolve().parent
URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
# The start of the SHA-256 of torchvision's other VGG16 (IMAGENET1K_FEATURES). Its tensor names are
# the same, but it takes images in 0..255; to it, normalised images are nearly uniform grey.
OTHER_INPUT = "88682ab5"

AT_ONCE = {"pool4": 0.01, "pool3": 0.0001}  # skip_gain of the authors' at-once network
CAFFE_MEAN = (104.00699, 116.66877, 122.67892)  # blue, green, red in 0..255

# Their layer -> our layer, or None if dropped. The gaps in torchvision's numbers are its ReLUs and
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
SCORES = ("score_fr", "score_pool4", "score_pool3", "upscore2", "upscore_pool4", "upscore8")
LAYERS = {
    **CONVOLUTIONS,
    **{"classifier.0": "fc6", "classifier.3": "fc7", "classifier.6": None},  # torchvision's
    **{"pre_logits.fc1": "fc6", "pre_logits.fc2": "fc7", "head.fc": None},  # timm's
    **{layer: f"vgg.{layer}" for layer in (*CONVOLUTIONS.values(), "fc6", "fc7")},
    **{layer: layer for layer in SCORES},
}


def download() -> Path:
    """Download torchvision's VGG16 beside this script, unless it is there. Returns its path.

    Raises InputError if the download fails or is damaged.
    """
    path = HERE / URL.rpartition("/")[2]
    if path.exists():  # complete: a download gets its name at the end
        print(f"using {path}, downloaded before", flush=True)
        return path
    print(f"downloading {URL} (528 MiB) to {path}", flush=True)
    try:
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=hash_in_name(path.name))
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        # RuntimeError: wrong hash.
        raise InputError(
            f"{URL} cannot be downloaded ({one_line(error, 200)}): fetch it by hand, put it into "
            f"{HERE} and run python weights/convert.py, or train with --weights none"
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
    """Convert the weights file `source` to `out`. Returns a report, one line for each file.

    out              by default vgg16.pth, or fcn8s.pth for a complete FCN-8s, beside this script
    features_only    leave out fc6 and fc7, for a network with another fc_channels
    caffe            the VGG16 takes Caffe's input, BGR in 0..255 minus a mean
    at_once          the FCN-8s is the authors' at-once network, which scales its skips
    network          the network that the weights must fit; by default VGG16(), or
                     FCN8s(classes, pad=100) for a complete FCN-8s

    Raises InputError, and leaves `out` as it was, if `source` has none of the formats above or
    `out` cannot be written.
    """
    source = Path(source)
    tensors = read(source)
    complete = "score_fr.weight" in tensors  # the authors' FCN-8s
    if not complete and "features.0.weight" not in tensors:
        names = ", ".join(f"{name!r:.60}" for name in list(tensors)[:4])
        raise InputError(
            f"{source}: unknown weights, or converted already: {len(tensors)} entries ({names}, "
            "...); weights/README.md lists the files that fit"
        )
    if features_only and complete:
        raise InputError(f"{source}: --features-only is for VGG16, this is an FCN-8s")
    if at_once and not complete:
        raise InputError(f"{source}: --at-once is for an FCN-8s, this is VGG16")
    try:
        if network is None:
            with torch.device("meta"):  # only for its shapes
                classes = len(tensors["score_fr.weight"]) if complete else 0
                network = FCN8s(classes, pad=100) if complete else VGG16()
        state = translate(tensors, network, features_only)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    if complete or caffe:
        weight, bias = (name for name in state if "conv1_1" in name)
        state[weight], state[bias] = fold_caffe_input(state[weight], state[bias])

    out = Path(out or HERE / ("fcn8s.pth" if complete else "vgg16.pth"))
    if out.exists() and out.samefile(source):
        raise InputError(f"{out} is the file to convert: give another --out, or rename it")
    if out.suffix != ".pth":
        raise InputError(f"--out {out}: must end in .pth")
    if complete:
        network.load_state_dict(state, strict=False, assign=True)  # all but the extra state
        network.set_skip_gain(AT_ONCE if at_once else {})
        classes = network.config["num_classes"]
        named = classes == len(VOC_CLASSES)
        network.classes = VOC_CLASSES if named else [f"class {c}" for c in range(classes)]
        network.save(out)
    else:
        with atomic(out) as file:
            torch.save(state, file)
    kind = "FCN-8s" if complete else "VGG16"
    if not any("fc6" in name for name in state):
        kind += " without fc6 and fc7"
    return (
        f"{source}: {len(tensors)} tensors, SHA-256 {sha256(source)}\n"
        f"{out}: {kind}, {len(state)} tensors, SHA-256 {sha256(out)}"
    )


def read(path: Path) -> dict:
    """The tensors by name in a safetensors or torch.save file. Raises InputError.

    If the file's name contains the start of a SHA-256, the file must match it.
    """
    try:
        digest = sha256(path)
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    promised = hash_in_name(path.name)
    if not digest.startswith(promised):
        raise InputError(
            f"{path}: has the SHA-256 {digest}, but its name promises {promised}: the download is "
            "damaged; delete it and fetch it again"
        )
    if digest.startswith(OTHER_INPUT):
        raise InputError(f"{path}: this VGG16 takes images in 0..255; use {URL}")
    # The ninth byte of a safetensors file is the first one of its header.
    return read_safetensors(path) if start[8:] == b"{" else read_tensors(path)


def hash_in_name(name: str) -> str:
    """The start of the SHA-256 in a name like vgg16-397923af.pth; "" if there is none."""
    found = re.search(r"-([0-9a-f]{8,64})\.", name)
    return found[1] if found else ""


def read_safetensors(path: Path) -> dict:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError:
        raise InputError(f"{path}: is a safetensors file; first pip install safetensors") from None
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: is damaged, fetch it again ({one_line(error, 200)})") from None


def translate(tensors: dict, network: nn.Module, features_only: bool) -> dict:
    """The parameters of `network` by name, in its order, from tensors with their names (LAYERS).

    Each is float32, contiguous, and has its own memory. Dense layers become convolutions: fc6
    [out, C*7*7] -> [out, C, 7, 7] (both ordered by channel, row, column), fc7 [out, in] -> [out,
    in, 1, 1]. `features_only` leaves out fc6 and fc7, as do files of convolutions alone.

    Raises InputError for the first tensor that is missing, unexpected, misshaped, or not finite.
    """
    other = "VGG16 with batch normalisation, VGG19 and other networks do not fit"
    theirs = {}  # by our name
    for name in tensors:
        layer, _, part = name.rpartition(".")
        ours = f"{LAYERS.get(layer)}.{part}"
        if layer not in LAYERS or part not in ("weight", "bias") or ours in theirs:
            raise InputError(f"tensor {name!r:.80} is unexpected; {other}")
        if LAYERS[layer]:
            theirs[ours] = name
    features_only = features_only or not any(name.startswith("fc") for name in theirs)
    state = {}
    for name, parameter in network.named_parameters():
        if features_only and name.startswith("fc"):
            continue
        if name not in theirs:
            raise InputError(f"there is no tensor for {name}; {other}")
        their, shape = theirs[name], parameter.shape
        tensor = tensors[their]
        require_numbers(tensor, their)
        if tensor.shape not in (shape, (shape[0], shape[1:].numel())):
            hint = "; --features-only leaves out fc6 and fc7" if name.startswith("fc") else ""
            raise InputError(f"{their} is {list(tensor.shape)}, but {name} is {list(shape)}{hint}")
        # A copy, even of float32: torch.save would write the whole storage of a view.
        state[name] = tensor.detach().reshape(shape).to(torch.float32, copy=True).contiguous()
    return state


def fold_caffe_input(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Convert conv1_1 from Caffe's input to ours: weight [C, 3, 3, 3] and bias [C], both float32.

    Caffe's network computes y = bias + sum of weight[k] * v[k], where k runs over the blue, green
    and red of each pixel in the window, and v = 255 rgb - CAFFE_MEAN. Our input is x = (rgb -
    IMAGE_MEAN) / IMAGE_STD. Hence

        v = 255 (IMAGE_STD x + IMAGE_MEAN) - CAFFE_MEAN
        y = bias + sum of weight * (255 IMAGE_MEAN - CAFFE_MEAN)    this is our bias
                 + sum of (weight * 255 IMAGE_STD) * x              and this our weight, in RGB
    """
    mean, std, caffe_mean = (
        torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
        for values in (IMAGE_MEAN, IMAGE_STD, CAFFE_MEAN[::-1])
    )
    weight = weight.double().flip(1)  # BGR -> RGB
    bias = bias.double() + (weight * (255 * mean - caffe_mean)).sum(dim=(1, 2, 3))
    return (weight * 255 * std).float(), bias.float()


def main():
    parser = Parser("convert.py", description=__doc__)
    parser.add_argument(
        "file", metavar="FILE", nargs="?", type=Path, help="default: download torchvision's"
    )
    parser.add_argument(
        "--out", type=Path, metavar="PATH", help="default: vgg16.pth or fcn8s.pth in weights/"
    )
    parser.add_argument("--features-only", action="store_true", help="leave out fc6 and fc7")
    parser.add_argument(
        "--caffe", action="store_true", help="the VGG16 takes BGR in 0..255 minus a mean"
    )
    parser.add_argument(
        "--at-once", action="store_true", help="the FCN-8s is the authors' at-once network"
    )
    options = parser.parse_args()
    if options.caffe and not options.file:
        parser.error("--caffe: needs FILE; the downloaded weights take normalised images")
    try:
        source = options.file or download()
        print(convert(source, options.out, options.features_only, options.caffe, options.at_once))
    except InputError as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "stopped; no weights were converted\n")


if __name__ == "__main__":
    main()
