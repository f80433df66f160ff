"""Pictures to look at: class colours, overlays with a legend, contact sheets, curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from support.files import save_png
from support.labels import IGNORE, is_background, only_road

# Colour-blind people can tell these apart. None is grey, the colour of roads.
COLOURS = [
    (230, 0, 230),
    (214, 39, 40),
    (255, 210, 60),
    (148, 80, 200),
    (64, 120, 220),
    (44, 140, 50),
    (255, 127, 14),
    (23, 190, 207),
    (140, 86, 75),
    (240, 110, 190),
    (190, 220, 60),
    (20, 40, 120),
]
ROAD, NOT_ROAD, BACKGROUND = (230, 0, 230), (70, 70, 70), (128, 128, 128)
RED, BLUE, GREY = (214, 39, 40), (31, 119, 180), (150, 150, 150)


def colours_for(classes: list[str]) -> np.ndarray:
    """The colour of each class, uint8 [C, 3]: the same at every call."""
    if only_road(classes):
        return np.array([NOT_ROAD, ROAD], np.uint8)
    more = [  # more hues, for classes beyond COLOURS
        ImageColor.getrgb(f"hsv({i * 67 % 360}, {60 + i % 3 * 15}%, {90 - i % 4 * 15}%)")
        for i in range(len(COLOURS), len(classes))
    ]
    colours = np.array([*COLOURS, *more][: len(classes)], np.uint8)
    if is_background(classes[0]):
        colours[0] = BACKGROUND
    return colours


def opacities(classes: list[str]) -> list[int]:
    """For each of 256 ids, the opacity of its colour over the picture, 0 to 255."""
    opacity = [166] * 256
    opacity[IGNORE] = 204
    if is_background(classes[0]):
        opacity[0] = 0
    if only_road(classes):
        opacity[:2] = 0, 128
    return opacity


def tint(image: np.ndarray, label: np.ndarray, classes: list[str]) -> np.ndarray:
    """Blend the colours of class ids uint8 [H, W] over a picture uint8 [H, W, 3]; IGNORE is black.

    If the classes are road and not road, only the road is tinted. Class 0 is not tinted if its name
    is background.
    """
    picture, opacity = Image.fromarray(image), Image.fromarray(label).point(opacities(classes))
    picture.paste(palette_mask(label, classes).convert("RGB"), mask=opacity)
    return np.asarray(picture)


def palette_mask(label: np.ndarray, classes: list[str]) -> Image.Image:
    """Class ids uint8 [H, W] to a palette image that stores the ids and shows the class colours."""
    mask = Image.fromarray(label)
    mask.putpalette(colours_for(classes).tobytes().ljust(3 * 256, b"\0"))
    return mask


def overlay(image: np.ndarray, label: np.ndarray, classes: list[str]) -> Image.Image:
    """`tint` with a legend below: the classes in the picture, the most frequent first.

    The classes road and not road get no legend. A wide legend makes the result wider than the
    picture.
    """
    picture = Image.fromarray(tint(image, label, classes))
    counts, opacity = np.bincount(label.ravel(), minlength=256)[: len(classes)], opacities(classes)
    present = [c for c in np.argsort(-counts, kind="stable") if counts[c] and opacity[c]]
    if only_road(classes) or not present:
        return picture
    colours = colours_for(classes)
    entries = [(classes[c], colours[c]) for c in present]
    strip = legend(picture.width, entries, max(12, max(picture.size) // 60), dark=True)
    sheet = Image.new("RGB", (strip.width, picture.height + strip.height))
    sheet.paste(picture, (0, 0))
    sheet.paste(strip, (0, picture.height))
    return sheet


def legend(width: int, entries: list[tuple], size: int, dark: bool = False) -> Image.Image:
    """A strip of colours and their names, on as many lines as needed.

    width      minimum width; a long name makes the strip wider
    entries    (name, colour) pairs
    size       font size in pixels
    """
    font, line = ImageFont.load_default(size), round(size * 1.5)
    cell = round(max(font.getlength(name) for name, _ in entries)) + 2 * line
    per_line = max(1, width // cell)
    paper, ink = ("black", "white") if dark else ("white", "black")
    strip = Image.new("RGB", (max(width, cell), line * -(-len(entries) // per_line)), paper)
    draw = ImageDraw.Draw(strip)
    for i, (name, colour) in enumerate(entries):
        x, y = i % per_line * cell, i // per_line * line
        near, far = line // 4, line * 3 // 4
        box = (x + near, y + near, x + far, y + far)
        draw.rectangle(box, fill=tuple(map(int, colour)), outline=ink)
        draw.text((x + line, y + line / 2), name, fill=ink, font=font, anchor="lm")
    return strip


def draw_samples(path: Path, rows: list[tuple], classes: list[str], caption: str):
    """Write a contact sheet as PNG: image, ground truth and prediction side by side.

    rows    (name, image [H, W, 3], truth [H, W], prediction [H, W]) each, all uint8
    """
    cells = [
        [(name, image), *(("", tint(image, label, classes)) for label in labels)]
        for name, image, *labels in rows
    ]
    titles = f"image ({caption})", "ground truth", "prediction"
    draw_sheet(path, cells, 480 if len(rows) > 1 else 640, titles, painted(classes, classes))


def draw_labels(path: Path, cells: list[tuple[str, np.ndarray, np.ndarray]], classes: list[str]):
    """Write a contact sheet as PNG: labels over images, three in a row, with ids in the legend.

    cells    (name, image [H, W, 3], label [H, W]) each
    """
    panels = [(name, tint(image, label, classes)) for name, image, label in cells]
    rows = [panels[i : i + 3] for i in range(0, len(panels), 3)]
    draw_sheet(path, rows, 480, (), painted(classes, [f"{i} {c}" for i, c in enumerate(classes)]))


def painted(classes: list[str], names: list[str]) -> list[tuple]:
    """Legend entries (name, colour) of the colours of `tint`; `names` are the names to show."""
    entries = zip(names, colours_for(classes), opacities(classes), strict=False)
    return [
        *((name, colour) for name, colour, opacity in entries if opacity),
        ("ignored", (0,) * 3),
    ]


def draw_sheet(path: Path, rows: list[list[tuple]], width: int, titles: tuple, entries: list):
    """Write a contact sheet of pictures, with texts above them and a legend below.

    rows       lists of (text, picture uint8 [H, W, 3])
    width      of every picture, in pixels
    titles     of the columns
    entries    of the legend, see `legend`
    """
    gap, line, font = 6, 22, ImageFont.load_default(16)

    def scaled(pixels):
        height = max(1, round(pixels.shape[0] * width / pixels.shape[1]))
        return Image.fromarray(pixels).resize((width, height))

    rows = [[(text, scaled(pixels)) for text, pixels in row] for row in rows]
    heights = [line + max(picture.height for _, picture in row) + gap for row in rows]
    foot = legend(max(map(len, rows)) * (width + gap), entries, 16)
    y = 30 if titles else 0
    sheet = Image.new("RGB", (foot.width + gap, y + sum(heights) + foot.height + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((gap + column * (width + gap), 6), title, fill="black", font=font)
    for row, height in zip(rows, heights, strict=True):
        for column, (text, picture) in enumerate(row):
            left, letters = gap + column * (width + gap), width // 9
            text = text if len(text) <= letters else f"…{text[-letters:]}"
            draw.text((left, y), text, fill="black", font=font)
            sheet.paste(picture, (left, y + line))
        y += height
    sheet.paste(foot, (0, y))
    save_png(sheet, path)


def draw_curves(path: Path, rows: list[dict], classes: list[str]):
    """Plot loss and IoU over the epochs as two charts, one below the other. Written as PNG.

    rows    of log.csv: numbers by column name

    A vertical line marks the epoch of best.pt: the last one with a true `is_best`. The numbers in
    the legend are those of this epoch.
    """

    def line(name, colour, column):
        return name, tuple(map(int, colour)), [row[column] for row in rows]

    losses = [line("training", BLUE, "train_loss"), line("validation", RED, "val_loss")]
    ious, title = [line("mean", (0, 0, 0), "mean_iou")], "IoU on validation images"
    if "MaxF" in rows[0]:  # selects best.pt if there is one class to find
        ious.append(line("MaxF", BLUE, "MaxF"))
        title = "IoU and MaxF on validation images"
    ious += [
        line(name, colour, f"iou_{name}")
        for name, colour in zip(classes, colours_for(classes), strict=True)
    ]
    epochs = [row["epoch"] for row in rows]
    best = max((row["epoch"] for row in rows if row.get("is_best")), default=None)
    highest = max([v for _, _, line in losses for v in line if np.isfinite(v)], default=1.0) or 1.0
    above = chart("loss (mean cross-entropy)", epochs, losses, highest, best)
    below = chart(title, epochs, ious, 1.0, best)
    size = max(above.width, below.width), above.height + 20 + below.height
    sheet = Image.new("RGB", size, "white")
    sheet.paste(above, (0, 0))
    sheet.paste(below, (0, above.height + 20))
    save_png(sheet, path)


def chart(title, xs, lines, highest, marked) -> Image.Image:
    """A line chart with its legend on the right.

    xs         epochs
    lines      (name, colour, values) each; values that are not finite are left out
    highest    end of the y axis, rounded up; it starts at 0
    marked     the epoch to mark with a vertical line, or None

    The legend gives the values at the marked epoch, otherwise the last ones.
    """
    shown = -1 if marked is None else xs.index(marked)
    entries = [(f"{ys[shown]:.3f}  {name}", colour) for name, colour, ys in lines]
    if marked is not None:
        entries.append((f"best.pt: epoch {marked}", GREY))
    names = legend(0, entries, 14)
    size = max(900, 724 + names.width), max(360, names.height + 60)
    sheet = Image.new("RGB", size, "white")
    sheet.paste(names, (724, 40))
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    left, top, right, bottom = 70, 40, 710, sheet.height - 40  # of the plot
    step = float(f"{highest / 5:.0e}")  # rounded to one digit
    ticks = [step * i for i in range(int(np.ceil(highest / step - 1e-9)) + 1)]
    first, last = xs[0], max(xs[-1], xs[0] + 1)  # a single epoch is a dot at the left

    def at(x, y):
        across, up = (x - first) / (last - first), y / ticks[-1]
        return left + (right - left) * across, bottom - (bottom - top) * up

    draw.text((left, 10), title, fill="black", font=ImageFont.load_default(18))
    for tick in ticks:
        draw.line([at(first, tick), at(last, tick)], fill=(225, 225, 225))
        place = left - 8, at(first, tick)[1]
        draw.text(place, f"{tick:.4g}", fill="black", font=font, anchor="rm")
    every = -(-last // 10)
    for x in range(every, last + 1, every):
        draw.text((at(x, 0)[0], bottom + 6), str(x), fill="black", font=font, anchor="mt")
    draw.text(((left + right) / 2, bottom + 22), "epoch", fill="black", font=font, anchor="mt")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill="black")
    if marked is not None:
        draw.line([at(marked, 0), at(marked, ticks[-1])], fill=GREY, width=2)
    for name, colour, ys in lines:
        points = [at(x, min(y, ticks[-1])) for x, y in zip(xs, ys, strict=True) if np.isfinite(y)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=3 if name == "mean" else 2)
        for x, y in points if len(points) < 30 else points[-1:]:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
    return sheet
