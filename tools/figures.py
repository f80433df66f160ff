"""Draw the README's figures from the network itself.

python tools/figures.py [DIR]              write architecture.png and border.png (default: assets)
python tools/figures.py [DIR] --strides    write strides.png too: the paper's figure 4, on synthetic
                                           roads. Trains three small networks in runs/strides, which
                                           takes ten minutes on two cores
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from data import find, synthetic_roads
from fcn import FCN8s, centre, maps
from metrics import class_iou, confusion
from support.console import Parser
from support.datasets.images import Reader
from support.draw import draw_sheet, painted, palette_mask
from support.inference.predictor import Predictor
from vgg import IMAGE, geometry

INK, GREY, RED = (40, 40, 40), (110, 110, 110), (200, 30, 30)
# Colours of features, of scores, and of cells that a crop cuts off.
MAPS, SCORES, CUT = (206, 222, 242), (250, 226, 180), (240, 190, 190)


def write(pen, x, y, text, size=15, fill=INK, anchor="mm"):
    """Write a text of one or more lines; `anchor` is Pillow's."""
    align = "left" if anchor[0] == "l" else "center"
    font = ImageFont.load_default(size)
    pen.text((x, y), text, fill, font, anchor, spacing=3, align=align)


def arrow(pen, *points):
    """An arrow through the points; its last part is horizontal or vertical."""
    pen.line(points, INK, 2)
    (x0, y0), (x, y) = points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    sides = ((x - 9 * dx - 4 * dy * s, y - 9 * dy - 4 * dx * s) for s in (1, -1))
    pen.polygon([(x, y), *sides], INK)


def architecture(net: FCN8s, height: int = 375, width: int = 1242) -> Image.Image:
    """Draw the maps of FCN-8s: the encoder, below it the scores, and the way back to the image."""
    sheet, found = Image.new("RGB", (1200, 595), "white"), maps(net, height, width)
    pen = ImageDraw.Draw(sheet)
    top, middle, bottom = 80, 270, 440
    x_of = {
        top: {
            "image": 95,
            "conv1_2": 290,
            "pool1": 470,
            "pool2": 610,
            "pool3": 735,
            "pool4": 865,
            "pool5": 980,
            "fc7": 1110,
        },
        middle: {"score_pool3": 610, "score_pool4": 865, "score_fr": 1110},
        bottom: {
            "upscore2": 1000,
            "sum_pool4": 865,
            "upscore_pool4": 735,
            "sum_pool3": 610,
            "upscore8": 430,
            "scores": 130,
        },
    }
    titles = {"conv1_2": "conv1_1, conv1_2", "fc7": "fc6, fc7", "scores": "class scores"}
    edges = {}  # left, above, right, below
    for y, row in x_of.items():
        for name, x in row.items():
            _, rows, columns = found[name].shape
            w, h = 2.3 * columns**0.5, 2.3 * rows**0.5
            if name.startswith("sum"):
                w = h = 10
            edges[name] = x - w, y - h, x + w, y + h

    for y in (top, bottom):
        for a, b in pairwise(x_of[y]):
            right = edges[a][2] < edges[b][0]
            arrow(pen, (edges[a][2 if right else 0], y), (edges[b][0 if right else 2], y))
    for source, score in (("pool4", "score_pool4"), ("pool3", "score_pool3"), ("fc7", "score_fr")):
        x, start, end = x_of[top][source], edges[source][3] + 45, edges[score][1]
        there = x_of[middle][score]
        arrow(pen, (x, start), (x, start + 30), (there, start + 30), (there, end))
        write(pen, there + 8, end - 22, "1 x 1", 13, GREY, "lm")
        if source in net.crop:
            end = edges[f"sum_{source}"][1]
            arrow(pen, (there, edges[score][3] + 42), (there, end))
            write(pen, there + 8, end - 22, f"crop at {net.crop[source]}", fill=RED, anchor="lm")
    x = x_of[middle]["score_fr"]
    arrow(pen, (x, edges["score_fr"][3] + 42), (x, bottom), (edges["upscore2"][2], bottom))
    for name in ("upscore2", "upscore_pool4", "upscore8"):
        factor = f"up by {geometry(found[name].layer)[1]}"
        write(pen, edges[name][2] + 12, bottom - 14, factor, 13, GREY, "lm")
    x = (edges["upscore8"][0] + edges["scores"][2]) / 2
    write(pen, x, bottom - 14, f"crop at {net.crop['image']}", fill=RED)

    # For each cropped map: its crop, and the map that has the cropped size.
    cropped = {
        f"score_{skip}": (net.crop[skip], f"sum_{skip}") for skip in net.crop if skip != "image"
    }
    cropped["upscore8"] = net.crop["image"], "scores"
    for name, (left, above, right, below) in edges.items():
        if name.startswith("sum"):
            pen.ellipse((left, above, right, below), "white", INK)
            write(pen, (left + right) / 2, (above + below) / 2 - 1, "+", 18)
            continue
        channels, rows, columns = found[name].shape
        title = f"{titles.get(name, name)}\n{channels} x {rows} x {columns}"
        fill = CUT if name in cropped else SCORES if "score" in name else MAPS
        pen.rectangle((left, above, right, below), fill, INK)
        if name in cropped:
            crop, kept = cropped[name]
            sx, sy = (right - left) / columns, (below - above) / rows
            x, y = left + crop * sx, above + crop * sy
            _, rows, columns = found[kept].shape
            pen.rectangle((x, y, x + columns * sx, y + rows * sy), SCORES, INK)
        write(pen, (left + right) / 2, below + 5, title, anchor="ma")
    write(
        pen,
        20,
        568,
        f"FCN-8s with pad={net.config['pad']}, for an image of {height} x {width}. Below each map: "
        "channels x rows x columns. Large maps are drawn smaller than to scale.\n"
        "Two or three 3 x 3 convolutions stand before each pool. Red: what a crop cuts off.",
        13,
        GREY,
        "lm",
    )
    return sheet


def border(net: FCN8s) -> Image.Image:
    """Draw where the cells lie at the image's first row or column, and the crops that follow."""
    sheet = Image.new("RGB", (1200, 640), "white")
    pen = ImageDraw.Draw(sheet)
    # The first pixel shown, drawing pixels per image pixel, and the left margin.
    first, scale, left = -102, 7, 20

    def at(pixel):
        return left + (pixel - first) * scale

    pen.rectangle((at(-0.5), 34, 1200, 592), (246, 246, 246))
    write(pen, at(-0.5) + 6, 20, "the image: pixels 0, 1, 2, ...", anchor="lm")
    write(pen, at(-0.5) - 6, 20, "the border", anchor="rm")
    for pixel in range(-100, 70, 10):
        write(pen, at(pixel), 48, str(pixel), 12, GREY)
        pen.line((at(pixel), 56, at(pixel), 62), GREY)

    def row(y, name, grid, letter, crop=0):
        """The cells of a map as boxes; the crop cuts off the first `crop` of them."""
        what = "pixel" if grid == IMAGE else f"cell {letter} at pixel"
        write(pen, left, y - 14, f"{name}: {what} {centre(letter, grid)}", anchor="lm")
        cell = 0
        while at(edge := grid.stride * (cell - 0.5) + grid.offset) < 1200:
            fill = CUT if cell < crop else SCORES if "upscore" in name else MAPS
            pen.rectangle((at(edge), y, at(edge + grid.stride), y + 34), fill, INK)
            if grid.stride > 1:  # otherwise there is no room
                number = f"{letter}={cell}" if cell == 0 or grid.stride > 8 else str(cell)
                write(pen, at(edge + grid.stride / 2), y + 17, number, 14)
            cell += 1

    def meeting(y, pixel, text):
        x = at(pixel)
        pen.line((x, y - 38, x, y), RED, 2)
        pen.line((x, y + 34, x, y + 52, x + 10, y + 52), RED, 2)
        write(pen, x + 14, y + 52, text, 15, RED, "lm")

    ways = (("pool4", "m", "upscore2", "k"), ("pool3", "p", "upscore_pool4", "n"))
    for y, (skip, other, coarse, cell) in zip((92, 272), ways, strict=True):
        crop = net.crop[skip]
        row(y, skip, net.grid[skip], other, crop)
        row(y + 72, coarse, net.grid[coarse], cell)
        text = f"cell 0 of {coarse} lies on cell {crop} of {skip}: crop {skip} at {crop}"
        meeting(y + 72, net.grid[coarse].offset, text)
    crop = net.crop["image"]
    row(452, "upscore8", net.grid["upscore8"], "q", crop)
    row(524, "image", IMAGE, "x")
    meeting(524, 0, f"pixel 0 lies on cell {crop} of upscore8: crop the output at {crop}")
    write(
        pen,
        left,
        618,
        "Each box is one cell. It is as wide as the stride and lies around the pixel on which the "
        "cell is centred. Red cells are cut off.",
        13,
        GREY,
        "lm",
    )
    return sheet


def strides(runs: Path, file: Path):
    """Draw the paper's figure 4: pictures, masks of FCN-32s, FCN-16s and FCN-8s, ground truth.

    Each network starts from the one before (section 4.2); runs already in `runs` are resumed. The
    figure shows the validation scene of each category that gains most from the skips.
    """
    before, networks = "none", {}
    for stride in FCN8s.STRIDES[::-1]:
        out = runs / f"FCN-{stride}s"
        if (out / "last.pt").is_file():
            options = ["--resume"]  # a complete run is only evaluated
        else:
            # The second and third network start from a trained one.
            epochs = "22" if before == "none" else "8"
            options = ["--stride", str(stride), "--weights", before, "--epochs", epochs]
            options += ["--class-weights", "sqrt"]
        if train.main([*options, "--out", str(out)]):
            sys.exit(f"{out}: the training failed")
        before = str(out / "best.pt")
        networks[out.name] = Predictor(FCN8s.load(before))
    data = find(synthetic_roads())
    read, gains, ious = Reader(data.read_label), {}, []
    for sample in data.val:
        picture, truth = read(sample)
        shown, iou = {}, []
        for name, predict in networks.items():
            labels = predict(picture).labels
            iou.append(class_iou(confusion(labels, truth, 2))[1])
            shown[f"{name}: IoU {100 * iou[-1]:.0f}"] = labels
        shown["ground truth"] = truth
        column = [("picture", picture)]
        for text, labels in shown.items():
            mask = palette_mask(labels, data.classes)
            column.append((text, np.asarray(mask.convert("RGB"))))
        gains.setdefault(sample.group, []).append((iou[-1] - iou[0], column))
        ious.append(iou)
    print("mean IoU of the road by image:", np.mean(ious, axis=0))
    columns = [max(gains[group], key=lambda scene: scene[0])[1] for group in sorted(gains)]
    draw_sheet(file, [*zip(*columns, strict=True)], 320, (), painted(data.classes, data.classes))


if __name__ == "__main__":
    parser = Parser("figures.py", description=__doc__)
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", type=Path, default="assets", help="default %(default)s"
    )
    parser.add_argument("--strides", action="store_true", help="also draw strides.png")
    options = parser.parse_args()
    with torch.device("meta"):
        net = FCN8s(2, pad=100)
    options.folder.mkdir(parents=True, exist_ok=True)
    architecture(net).save(options.folder / "architecture.png", optimize=True)
    border(net).save(options.folder / "border.png", optimize=True)
    if options.strides:
        strides(Path("runs/strides"), options.folder / "strides.png")
