"""Compute the tables of docs/walkthrough.md and draw its pictures.

    python tools/walkthrough.py runs/synthetic/best.pt

Writes the tables into the page and the pictures into assets/. Only the pictures depend on the
checkpoint, which is that of `make demo`.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fcn import FCN8s, bilinear_kernel, cross_entropy, maps, plus
from metrics import class_iou, confusion
from support import draw
from support.console import InputError, Parser
from support.datasets import synthetic
from support.device import as_batch
from support.files import write_text
from support.labels import IGNORE
from vgg import normalise

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/walkthrough.md"
SCENE = 13, "um"  # testing/image_2/um_000002.png: training never reads it
FIVE = np.array([4.0, 8.0, 8.0, 0.0, 4.0])  # input of the transposed convolution
WIDE, SHOWN = 70, 9  # pixels of the row in the crop example, and the most cells to print
STEPS = (1, 2, 10, 100, 500)
TERMS = ("score_fr", "score_pool4", "score_pool3")
RED, WHITE, BLUE = np.array([draw.RED, (255, 255, 255), draw.BLUE], np.float32)


def scene() -> tuple[np.ndarray, np.ndarray]:
    """The picture uint8 [96, 320, 3] and its labels uint8 [96, 320]: 1 road, 0 not road, IGNORE."""
    drawn = synthetic.draw(*SCENE)
    label = (drawn.road == synthetic.ROAD).all(-1).astype(np.uint8)
    label[(drawn.road == synthetic.NOT_VALID).all(-1)] = IGNORE
    return drawn.image, label


def tensors(image: np.ndarray, label: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Picture and labels as the network and the loss take them: [1, 3, H, W] and [1, H, W]."""
    return normalise(as_batch(image)), torch.from_numpy(label).long()[None]


def small_network() -> FCN8s:
    """A network of the demo's size, with random weights."""
    torch.manual_seed(0)
    return FCN8s(2, width=0.25, fc_channels=256, dropout=0.0)


# ---- numbers ----


def sizes() -> str:
    """Table of the maps from the picture to the scores and back."""
    height, width = scene()[1].shape
    lines = ["map              channels  rows x columns  cell i lies on pixel"]
    for name, (_, shape, grid) in maps(small_network(), height, width).items():
        if name == "fc7" or not name.startswith(("conv", "fc")):
            cell = plus(f"{grid.stride} i" if grid.stride > 1 else "i", grid.offset)
            lines.append(f"{name:15}  {shape[0]:8}  {shape[1]:4} x {shape[2]:<7}  {cell}")
    return "\n".join(lines)


def transposed_convolution() -> str:
    """Five numbers through a transposed convolution, kernel 4 and stride 2, product by product."""
    kernel = bilinear_kernel(4).sum(0).numpy() / 2  # along one direction
    total = np.zeros(2 * len(FIVE) + 2)

    def row(title, values):
        return f"{title:10}" + "".join(f"{v:7}" for v in values)

    lines = [row("output", range(len(total)))]
    for i, number in enumerate(FIVE):
        products = number * kernel
        total[2 * i : 2 * i + 4] += products
        lines.append(row(f"input {number:g}", [*[""] * 2 * i, *products]))
    lines.append(row("sum", total))
    lines.append(row("padding 1", ["", *total[1:-1]]))
    return "\n".join(lines)


def crop(pad: int) -> str:
    """The cells of score_pool4 and upscore2 for a row of WIDE pixels, and their pixels."""
    with torch.device("meta"):
        net = FCN8s(2, pad=pad)
    found = maps(net, 1, WIDE)
    lines = []
    for name, kept in (("score_pool4", ""), ("upscore2", " " * 8 * net.crop["pool4"])):
        _, (_, _, columns), grid = found[name]
        cells = range(min(columns, SHOWN - len(kept) // 8))
        pixels = (grid.stride * i + grid.offset for i in cells)
        lines += [
            f"{name:12}{kept}" + "".join(f"{i:8}" for i in cells),
            f"{'on pixel':12}{kept}" + "".join(f"{pixel:8}" for pixel in pixels),
        ]
    return "\n".join(lines)


def first_steps() -> str:
    """Loss and gradients of the first two steps on one picture."""
    net, (image, label) = small_network(), tensors(*scene())
    valid, road = int((label != IGNORE).sum()), int((label == 1).sum())
    layers = ("conv1_1", "conv5_3", "fc6", "fc7")
    norms = {name: [] for name in (*layers, *TERMS)}
    for loss in training(net, image, label, 2):
        for name in norms:
            layer = net.get_submodule(name if name in TERMS else f"vgg.{name}")
            norms[name].append(layer.weight.grad.norm().item())
        if len(norms["fc7"]) == 1:
            lines = [
                f"loss                     {loss:.4f}    ln 2 = {math.log(2):.4f}",
                f"road                     {road} of {valid} pixels = {road / valid:.3f}",
                f"a road pixel's gradient  (0.5 - 1) / {valid} = {-0.5 / valid:.2e}",
                f"any other pixel's        (0.5 - 0) / {valid} = {0.5 / valid:.2e}",
                f"their sum                0.5 - {road / valid:.3f} = {0.5 - road / valid:.3f}",
                f"gradient of the bias     {net.score_fr.bias.grad[1]:.3f}",
            ]
    lines += ["", "norm of the gradient     step 1    step 2"]
    lines += [f"{name:20}  {one:9.1e} {two:9.1e}" for name, (one, two) in norms.items()]
    return "\n".join(lines)


def losses(steps: tuple[int, ...] = STEPS) -> str:
    """The loss at these steps of a training on one picture."""
    found = list(training(small_network(), *tensors(*scene()), max(steps)))
    row = "".join(f"{step:9}" for step in steps)
    return f"step{row}\nloss" + "".join(f"{found[step - 1]:9.4f}" for step in steps)


def training(net: FCN8s, image: torch.Tensor, label: torch.Tensor, steps: int):
    """The shortest training loop: one picture, SGD with momentum. Yields the loss of each step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(net(image), label)
        loss.backward()
        yield loss.item()
        optimizer.step()


BLOCKS = {
    "sizes": sizes,
    "transposed convolution": transposed_convolution,
    "crop, pad 100": lambda: crop(100),
    "crop, pad 1": lambda: crop(1),
    "first steps": first_steps,
    "losses": losses,
}


def filled_in(page: str, names=BLOCKS) -> str:
    """The page with the named blocks computed again. A block follows <!-- its name -->."""
    for name in names:
        before, mark, rest = page.partition(f"<!-- {name} -->\n```text\n")
        page = before + mark + BLOCKS[name]() + rest[rest.index("\n```") :]
    return page


# ---- pictures ----


@torch.no_grad()
def way_in(net: FCN8s, path: Path):
    """Draw the pools: two channels of each at the picture's size, one also at its own size."""
    picture, label = scene()
    height, width = label.shape
    x, _ = tensors(picture, label)
    road = Image.fromarray(np.float32(label == 1))
    blank = np.full_like(picture, 255)
    rows = [[("image", picture), ("ground truth", grey(np.asarray(road))), ("", blank)]]
    for number in range(1, 6):
        name, x = f"pool{number}", getattr(net.vgg, f"block{number}")(x)
        channels = x[0]
        _, h, w = channels.shape
        where = np.asarray(road.resize((w, h), Image.Resampling.BOX))
        # the correlation of each channel with the road; 0 if the channel is constant
        apart = where - where.mean(), channels.numpy() - channels.mean((1, 2), True).numpy()
        likeness = (apart[0] * apart[1]).mean((1, 2)) / (where.std() * apart[1].std((1, 2)) + 1e-9)
        most, least = (grey(channels[i].numpy()) for i in (likeness.argmax(), likeness.argmin()))
        small = blank.copy()
        small[:h, :w] = most
        large = (
            np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.NEAREST))
            for cells in (most, least)
        )
        texts = f"{name}: {h} x {w}", f"channel {likeness.argmax()}", f"channel {likeness.argmin()}"
        rows.append(list(zip(texts, (small, *large), strict=True)))
    titles = "at its own size", "most like the road", "least like it"
    draw.draw_sheet(path, rows, width, titles, [("strongest response", WHITE), ("none", 0 * WHITE)])


def grey(values: np.ndarray) -> np.ndarray:
    """Non-negative numbers [H, W] as grey uint8 [H, W, 3]."""
    levels = 255 * values / max(values.max(), 1e-6)
    return np.repeat(levels.astype(np.uint8)[..., None], 3, axis=2)


@torch.no_grad()
def way_back(net: FCN8s, path: Path):
    """Draw the score maps at the picture's size, each alone and added up."""
    picture, label = scene()
    image, _ = tensors(picture, label)

    def margin(*names):
        """Score of road minus score of not road [H, W], from these score layers alone."""
        hooks = [
            net.get_submodule(name).register_forward_hook(lambda _, __, out: 0 * out)
            for name in TERMS
            if name not in names
        ]
        scores = net(image)[0]
        for hook in hooks:
            hook.remove()
        return (scores[1] - scores[0]).numpy()

    limit = np.quantile(np.abs(margin(*TERMS)), 0.75)

    def coloured(values):
        share = np.clip(values / limit, -1, 1)[..., None]
        mixed = WHITE + np.abs(share) * (np.where(share > 0, RED, BLUE) - WHITE)
        return mixed.astype(np.uint8)

    rows = []
    for i, name in enumerate(TERMS, 1):
        total = margin(*TERMS[:i])
        iou = class_iou(confusion((total > 0).astype(np.uint8), label, 2))[1]
        added = f"{'+ ' * (i > 1)}{name}: IoU {100 * iou:.1f}"
        answer = np.where((total > 0)[..., None], RED, BLUE).astype(np.uint8)
        panels = (name, coloured(margin(name))), (added, coloured(total)), ("", answer)
        rows.append(list(panels))
    truth = np.where(label[..., None] == 1, RED, BLUE) * (label[..., None] != IGNORE)
    rows.append([("image", picture), ("", np.full_like(picture, 255))])
    rows[-1].append(("ground truth", truth.astype(np.uint8)))
    titles = "one score map alone", "added up", "the larger score"
    draw.draw_sheet(path, rows, picture.shape[1], titles, [("road", RED), ("not road", BLUE)])


def main():
    parser = Parser("walkthrough.py", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="of `make demo`")
    options = parser.parse_args()
    try:
        net = FCN8s.load(options.checkpoint)
    except InputError as error:
        parser.error(str(error))
    if net.classes != ["not road", "road"]:
        parser.error(f"{options.checkpoint}: must be a network of `make demo`, for roads")
    way_in(net, ROOT / "assets/way-in.png")
    way_back(net, ROOT / "assets/way-back.png")
    write_text(PAGE, filled_in(PAGE.read_text(encoding="utf-8")))
    print(f"wrote {PAGE}, and way-in.png and way-back.png in {ROOT / 'assets'}")


if __name__ == "__main__":
    main()
