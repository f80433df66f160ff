"""The drawings of the network in the README, drawn from the network itself.

python -m tools.figures [DIR]      write architecture.png and border.png (default: assets)
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont

from fcn import FCN8s
from support.console import Parser
from support.derivation import centre
from vgg import IMAGE, Grid, size_after

FINE = 2  # everything is drawn at twice its size and scaled down, against jagged edges
INK, GREY, RED = (40, 40, 40), (110, 110, 110), (200, 30, 30)
MAPS, SCORES, CUT = (
    (206, 222, 242),
    (250, 226, 180),
    (240, 190, 190),
)  # features, scores, and what a crop cuts off


class Map(NamedTuple):
    """A map of the network: channels, rows, columns, and where its cells lie."""

    channels: int
    rows: int
    columns: int
    grid: Grid


def maps_of(net: FCN8s, height: int, width: int) -> dict[str, Map]:
    """Every map of FCN-8s for an image of this size, by the name of the layer that computes it.

    `sum_pool4` and `sum_pool3` are the sums of scores, `scores` is the output.
    """
    maps = {"image": Map(3, height, width, IMAGE)}

    def add(name, layer, before):
        rows, columns = size_after(layer, before.rows), size_after(layer, before.columns)
        maps[name] = Map(
            getattr(layer, "out_channels", before.channels), rows, columns, before.grid.after(layer)
        )
        return maps[name]

    def fused(name, coarse, fine, crop):
        maps[name] = coarse._replace(
            rows=min(coarse.rows, fine.rows - crop),
            columns=min(coarse.columns, fine.columns - crop),
        )
        return maps[name]

    last = maps["image"]
    for name, layer in net.vgg.named_children():
        last = add(name, layer, last)
    score = add("score_fr", net.score_fr, last)
    score = add("upscore2", net.upscore2, score)
    score = fused(
        "sum_pool4", score, add("score_pool4", net.score_pool4, maps["pool4"]), net.crop_pool4
    )
    score = add("upscore_pool4", net.upscore_pool4, score)
    score = fused(
        "sum_pool3", score, add("score_pool3", net.score_pool3, maps["pool3"]), net.crop_pool3
    )
    score = add("upscore8", net.upscore8, score)
    maps["scores"] = score._replace(rows=height, columns=width, grid=IMAGE)
    return maps


class Sheet:
    """A white picture to draw on, in pixels of its final size."""

    def __init__(self, width: int, height: int):
        self.image = Image.new("RGB", (FINE * width, FINE * height), "white")
        self.pen = ImageDraw.Draw(self.image)

    def text(self, x, y, text, size=15, fill=INK, anchor="mm"):
        self.pen.multiline_text(
            (FINE * x, FINE * y),
            text,
            fill,
            ImageFont.load_default(FINE * size),
            anchor,
            spacing=FINE * 3,
            align="left" if anchor[0] == "l" else "center",
        )

    def box(self, left, top, right, bottom, fill, outline=INK, width=1):
        self.pen.rectangle(
            [FINE * v for v in (left, top, right, bottom)], fill, outline, FINE * width
        )

    def line(self, *points, fill=INK, width=1.5):
        self.pen.line([(FINE * x, FINE * y) for x, y in points], fill, round(FINE * width))

    def circle(self, x, y, radius, text):
        self.pen.ellipse(
            [FINE * v for v in (x - radius, y - radius, x + radius, y + radius)], "white", INK, FINE
        )
        self.text(x, y - 1, text, 18)

    def arrow(self, *points, fill=INK):
        """A line through the points, with a head at its end; its last part is horizontal or
        vertical.
        """
        self.line(*points, fill=fill)
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        self.pen.polygon(
            [
                (FINE * a, FINE * b)
                for a, b in (
                    (x, y),
                    (x - 9 * dx - 4 * dy, y - 9 * dy - 4 * dx),
                    (x - 9 * dx + 4 * dy, y - 9 * dy + 4 * dx),
                )
            ],
            fill,
        )

    def save(self, path: Path):
        width, height = self.image.size
        self.image.resize((width // FINE, height // FINE), Image.Resampling.LANCZOS).save(
            path, optimize=True
        )


def architecture(net: FCN8s, height: int = 375, width: int = 1242) -> Sheet:
    """FCN-8s as the maps that it computes: the encoder above, the three scores, and below them the
    way back to the image.
    """
    sheet, maps = Sheet(1200, 595), maps_of(net, height, width)
    top, middle, bottom = 80, 270, 440
    places = {
        "image": (95, top),
        "conv1_2": (290, top),
        "pool1": (470, top),
        "pool2": (610, top),
        "pool3": (735, top),
        "pool4": (865, top),
        "pool5": (980, top),
        "fc7": (1110, top),
        "score_pool3": (610, middle),
        "score_pool4": (865, middle),
        "score_fr": (1110, middle),
        "upscore2": (1000, bottom),
        "sum_pool4": (865, bottom),
        "upscore_pool4": (735, bottom),
        "sum_pool3": (610, bottom),
        "upscore8": (430, bottom),
        "scores": (130, bottom),
    }
    titles = {"conv1_2": "conv1_1, conv1_2", "fc7": "fc6, fc7", "scores": "class scores"}
    edges = {}
    for name, (x, y) in places.items():
        w, h = (
            (10, 10)
            if name.startswith("sum")
            else (2.3 * maps[name].columns ** 0.5, 2.3 * maps[name].rows ** 0.5)
        )
        edges[name] = x - w, y - h, x + w, y + h

    for row, y in (
        (["image", "conv1_2", "pool1", "pool2", "pool3", "pool4", "pool5", "fc7"], top),
        (["upscore2", "sum_pool4", "upscore_pool4", "sum_pool3", "upscore8", "scores"], bottom),
    ):
        for a, b in zip(row, row[1:]):
            right = edges[a][2] < edges[b][0]
            sheet.arrow((edges[a][2 if right else 0], y), (edges[b][0 if right else 2], y))
    for pool, skip, total, crop in (
        ("pool4", "score_pool4", "sum_pool4", net.crop_pool4),
        ("pool3", "score_pool3", "sum_pool3", net.crop_pool3),
    ):
        x, y = places[skip][0], edges[pool][3] + 45
        sheet.arrow(
            (places[pool][0], y), (places[pool][0], y + 30), (x, y + 30), (x, edges[skip][1])
        )
        sheet.text(x + 8, edges[skip][1] - 22, "1 x 1", 13, GREY, "lm")
        sheet.arrow((x, edges[skip][3] + 42), (x, edges[total][1]))
        sheet.text(x + 8, edges[total][1] - 22, f"crop at {crop}", fill=RED, anchor="lm")
    sheet.arrow((places["fc7"][0], edges["fc7"][3] + 45), (places["fc7"][0], edges["score_fr"][1]))
    sheet.text(places["fc7"][0] + 8, edges["score_fr"][1] - 22, "1 x 1", 13, GREY, "lm")
    sheet.arrow((1110, edges["score_fr"][3] + 42), (1110, bottom), (edges["upscore2"][2], bottom))
    for name, factor in (("upscore2", 2), ("upscore_pool4", 2), ("upscore8", 8)):
        sheet.text(edges[name][2] + 12, bottom - 14, f"up by {factor}", 13, GREY, "lm")
    sheet.text(
        (edges["upscore8"][0] + edges["scores"][2]) / 2,
        bottom - 14,
        f"crop at {net.crop_image}",
        fill=RED,
    )

    # What a crop keeps of a map, as part of its box.
    kept = {
        "score_pool4": ("sum_pool4", net.crop_pool4),
        "score_pool3": ("sum_pool3", net.crop_pool3),
        "upscore8": ("scores", net.crop_image),
    }
    for name, (x, y) in places.items():
        left, above, right, below = edges[name]
        if name.startswith("sum"):
            sheet.circle(x, y, 10, "+")
            continue
        sheet.box(
            left, above, right, below, CUT if name in kept else SCORES if "score" in name else MAPS
        )
        if name in kept:
            inner, crop = maps[kept[name][0]], kept[name][1]
            sx, sy = (right - left) / maps[name].columns, (below - above) / maps[name].rows
            sheet.box(
                left + crop * sx,
                above + crop * sy,
                left + (crop + inner.columns) * sx,
                above + (crop + inner.rows) * sy,
                SCORES,
            )
        shown = maps[name]
        sheet.text(
            x,
            below + 5,
            f"{titles.get(name, name)}\n{shown.channels} x {shown.rows} x {shown.columns}",
            anchor="ma",
        )
    sheet.text(
        20,
        568,
        f"FCN-8s with pad={net.config['pad']}, for an image of {height} x {width}. Below each map: channels x "
        "rows x columns. Large maps are drawn smaller than to scale.\nTwo or three 3 x 3 convolutions stand before each "
        "pool. Red: what a crop cuts off.",
        13,
        GREY,
        "lm",
    )
    return sheet


def border(net: FCN8s) -> Sheet:
    """Where the cells of the maps lie at the image's first row (or column), and why the crops are
    what they are.
    """
    sheet, maps = Sheet(1200, 640), maps_of(net, 375, 1242)
    first, scale, left = (
        -102,
        7,
        20,
    )  # the first pixel shown, pixels of the drawing for one of the image, left margin

    def at(pixel):
        return left + (pixel - first) * scale

    sheet.box(at(-0.5), 34, 1200, 592, (246, 246, 246), (246, 246, 246))
    sheet.text(at(-0.5) + 6, 20, "the image: pixels 0, 1, 2, ...", anchor="lm")
    sheet.text(at(-0.5) - 6, 20, "the border", anchor="rm")
    for pixel in range(-100, 70, 10):
        sheet.text(at(pixel), 48, str(pixel), 12, GREY)
        sheet.line((at(pixel), 56), (at(pixel), 62), fill=GREY)

    def row(y, name, letter, title, cut=0):
        """The cells of a map as boxes; the first `cut` are those that the crop cuts off."""
        grid = maps[name].grid
        sheet.text(left, y - 14, title, anchor="lm")
        cell = 0
        while at(grid.stride * cell + grid.offset - grid.stride / 2) < 1200:
            middle = grid.stride * cell + grid.offset
            sheet.box(
                at(middle - grid.stride / 2),
                y,
                at(middle + grid.stride / 2),
                y + 34,
                CUT if cell < cut else SCORES if "upscore" in name else MAPS,
                width=1,
            )
            if grid.stride * scale > 20:  # else there is no room
                sheet.text(
                    at(middle),
                    y + 17,
                    f"{letter}={cell}" if cell == 0 or grid.stride > 8 else str(cell),
                    14,
                )
            cell += 1

    def meeting(y, pixel, text):
        sheet.line((at(pixel), y - 38), (at(pixel), y), fill=RED, width=2)
        sheet.line(
            (at(pixel), y + 34), (at(pixel), y + 52), (at(pixel) + 10, y + 52), fill=RED, width=2
        )
        sheet.text(at(pixel) + 14, y + 52, text, 15, RED, "lm")

    row(
        92,
        "pool4",
        "m",
        f"pool4: cell m at pixel {centre(maps['pool4'].grid, 'm')}",
        net.crop_pool4,
    )
    row(164, "upscore2", "k", f"upscore2: cell k at pixel {centre(maps['upscore2'].grid, 'k')}")
    meeting(
        164,
        maps["upscore2"].grid.offset,
        f"cell 0 of upscore2 lies on cell {net.crop_pool4} of pool4: crop pool4 at {net.crop_pool4}",
    )
    row(
        272,
        "pool3",
        "p",
        f"pool3: cell p at pixel {centre(maps['pool3'].grid, 'p')}",
        net.crop_pool3,
    )
    row(
        344,
        "upscore_pool4",
        "n",
        f"upscore_pool4: cell n at pixel {centre(maps['upscore_pool4'].grid, 'n')}",
    )
    meeting(
        344,
        maps["upscore_pool4"].grid.offset,
        f"cell 0 of upscore_pool4 lies on cell {net.crop_pool3} of pool3: crop pool3 at {net.crop_pool3}",
    )
    row(
        452,
        "upscore8",
        "q",
        f"upscore8: cell q at pixel {centre(maps['upscore8'].grid, 'q')}",
        net.crop_image,
    )
    row(524, "image", "x", "image: pixel x")
    meeting(
        524,
        0,
        f"pixel 0 lies on cell {net.crop_image} of upscore8: crop the output at {net.crop_image}",
    )
    sheet.text(
        left,
        618,
        "Each box is one cell. It is as wide as the stride and lies around the pixel on which the cell is "
        "centred. Red cells are cut off.",
        13,
        GREY,
        "lm",
    )
    return sheet


if __name__ == "__main__":
    parser = Parser("figures.py", description=__doc__)
    parser.add_argument(
        "folder",
        metavar="DIR",
        nargs="?",
        type=Path,
        default=Path("assets"),
        help="default %(default)s",
    )
    folder = parser.parse_args().folder
    with torch.device("meta"):
        net = FCN8s(2, pad=100)
    folder.mkdir(parents=True, exist_ok=True)
    architecture(net).save(folder / "architecture.png")
    border(net).save(folder / "border.png")
