"""Pictures for a person to look at: class colours, overlays with a legend, contact sheets, curves.

Nothing is measured or learnt here. Pillow draws, numpy blends.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from support.files import save_png
from support.labels import IGNORE, is_background, only_road

# Fixed colours, which people with weak colour vision can tell apart too.
COLOURS = [
    (128, 128, 128),
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
ROAD = (230, 0, 230)


def colours_for(classes: list[str]) -> np.ndarray:
    """uint8 [C, 3], the colour of each class: the same at every call. Beyond the fixed colours,
    hues go on turning.
    """
    road = only_road(classes)
    if road is not None:
        return np.array([ROAD if c == road else (70, 70, 70) for c in (0, 1)], np.uint8)
    more = [
        tuple(
            Image.new("HSV", (1, 1), (i * 67 % 256, 160 + i % 3 * 40, 230 - i % 4 * 40))
            .convert("RGB")
            .getpixel((0, 0))
        )
        for i in range(len(COLOURS), len(classes))
    ]
    return np.array((COLOURS + more)[: len(classes)], np.uint8)


def opacities(classes: list[str]) -> np.ndarray:
    """float32 [256]: how opaque the colour of each id lies over the picture, 0 to 1."""
    opacity = np.full(256, 0.65, np.float32)
    opacity[IGNORE] = 0.8
    if is_background(classes[0]):
        opacity[0] = 0
    road = only_road(classes)
    if road is not None:
        opacity[road], opacity[1 - road] = 0.5, 0
    return opacity


def tint(image: np.ndarray, label: np.ndarray, classes: list[str]) -> np.ndarray:
    """The picture uint8 [H, W, 3] with classes uint8 [H, W] as colours over it; IGNORE is shown
    black.

    Where the classes are road and not road, only the road is tinted. A class named background never
    is.
    """
    colours, opacity = np.zeros((256, 3), np.float32), opacities(classes)
    colours[: len(classes)] = colours_for(classes)
    shown = np.empty_like(image)
    for rows in (
        slice(top, top + 256) for top in range(0, len(image), 256)
    ):  # as floats a large picture would take gigabytes
        weight = opacity[label[rows]][..., None]
        shown[rows] = image[rows] * (1 - weight) + colours[label[rows]] * weight
    return shown


def font(size: int):
    return ImageFont.load_default(size)


def legend(
    width: int, entries: list[tuple[str, tuple]], size: int, dark: bool = False
) -> Image.Image:
    """A strip of colours with their names, in as many lines as it takes: at least `width` wide, in
    letters of `size` pixels.
    """
    text, line = font(size), round(size * 1.5)
    names = [name if len(name) <= 30 else f"{name[:29]}…" for name, _ in entries]
    cell = round(max(map(text.getlength, names))) + 2 * line
    per_line = max(1, width // cell)
    paper, ink = ("black", "white") if dark else ("white", "black")
    strip = Image.new("RGB", (max(width, cell), line * -(-len(entries) // per_line)), paper)
    draw = ImageDraw.Draw(strip)
    for i, (_, colour) in enumerate(entries):
        x, y = i % per_line * cell, i // per_line * line
        draw.rectangle(
            (x + line // 4, y + line // 4, x + line * 3 // 4, y + line * 3 // 4),
            fill=tuple(colour),
            outline=ink,
        )
        draw.text((x + line, y + line / 2), names[i], fill=ink, font=text, anchor="lm")
    return strip


def overlay(image: np.ndarray, label: np.ndarray, classes: list[str]) -> Image.Image:
    """`tint`, and below the picture the colours and names of the classes in it, unless they are
    road and not road.

    The most frequent class comes first. Nothing of the picture is covered; a legend that needs more
    room makes the whole wider.
    """
    shown = Image.fromarray(tint(image, label, classes))
    counts, opacity = np.bincount(label.ravel(), minlength=256)[: len(classes)], opacities(classes)
    present = [c for c in np.argsort(-counts, kind="stable") if counts[c] and opacity[c]]
    if only_road(classes) is not None or not present:
        return shown
    colours = colours_for(classes).tolist()
    strip = legend(
        shown.width,
        [(classes[c], colours[c]) for c in present],
        max(12, max(shown.size) // 60),
        dark=True,
    )
    sheet = Image.new("RGB", (strip.width, shown.height + strip.height))
    sheet.paste(shown, (0, 0))
    sheet.paste(strip, (0, shown.height))
    return sheet


def palette_mask(label: np.ndarray, classes: list[str]) -> Image.Image:
    """Class ids uint8 [H, W] as a palette picture: the stored numbers are the ids, shown in the
    classes' colours.
    """
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(classes)] = colours_for(classes)
    mask = Image.fromarray(label)
    mask.putpalette(colours.tobytes())
    return mask


def draw_samples(
    path: Path,
    rows: list[tuple[str, np.ndarray, np.ndarray, np.ndarray]],
    classes: list[str],
    caption: str,
):
    """A contact sheet: for each (name, image [H, W, 3], truth [H, W], prediction [H, W]) the three
    side by side, all uint8.

    A truth of IGNORE is black; the classes' colours stand at the bottom.
    """
    width = 480 if len(rows) > 1 else 640
    strips = [
        (
            [name],
            [
                scaled(panel, width)
                for panel in (image, *(tint(image, label, classes) for label in labels))
            ],
        )
        for name, image, *labels in rows
    ]
    draw_sheet(
        path,
        strips,
        width,
        (f"picture ({caption})", "truth", "prediction"),
        painted(classes, classes),
    )


def draw_labels(path: Path, cells: list[tuple[str, np.ndarray, np.ndarray]], classes: list[str]):
    """A contact sheet of (name, image [H, W, 3], label [H, W]), three in a row: labels over images,
    ids in the legend.
    """
    width = 480
    panels = [(name, scaled(tint(image, label, classes), width)) for name, image, label in cells]
    rows = [tuple(zip(*panels[i : i + 3])) for i in range(0, len(panels), 3)]
    draw_sheet(
        path, rows, width, (), painted(classes, [f"{i} {name}" for i, name in enumerate(classes)])
    )


def scaled(image: np.ndarray, width: int) -> Image.Image:
    return Image.fromarray(image).resize(
        (width, max(1, round(image.shape[0] * width / image.shape[1])))
    )


def painted(classes: list[str], names: list[str]) -> list[tuple[str, tuple]]:
    """(name, colour) of all that `tint` paints over a picture; `names` are what to call the
    classes.
    """
    shown = zip(names, colours_for(classes).tolist(), opacities(classes))
    return [*((name, colour) for name, colour, opacity in shown if opacity), ("ignored", (0, 0, 0))]


def draw_sheet(
    path: Path,
    rows: list[tuple[list[str], list[Image.Image]]],
    width: int,
    titles: tuple[str, ...],
    entries: list,
):
    """Rows of pictures, all `width` wide, with text above them, titles above all, and a legend
    below.

    rows    (texts, pictures) each: a text for each picture, or a single one for all of them
    """
    gap, line, text = 6, 22, font(16)
    columns = max(len(pictures) for _, pictures in rows)
    foot = legend(columns * (width + gap), entries, 16)
    heights = [line + max(picture.height for picture in pictures) + gap for _, pictures in rows]
    head = 30 if titles else 0
    sheet = Image.new("RGB", (foot.width + gap, head + sum(heights) + foot.height + gap), "white")
    draw, lefts, y = (
        ImageDraw.Draw(sheet),
        [gap + column * (width + gap) for column in range(columns)],
        head,
    )
    for left, title in zip(lefts, titles):
        draw.text((left, 6), title, fill="black", font=text)
    for (texts, pictures), height in zip(rows, heights):
        for left, picture in zip(lefts, pictures):
            sheet.paste(picture, (left, y + line))
        for left, words in zip(lefts, texts):
            most = width // 9 if len(texts) > 1 else 3 * width // 9  # letters that fit
            draw.text(
                (left, y),
                words if len(words) <= most else f"…{words[-most:]}",
                fill="black",
                font=text,
            )
        y += height
    sheet.paste(foot, (0, y))
    save_png(sheet, path)


def draw_curves(path: Path, rows: list[dict], classes: list[str]):
    """Loss and IoU over epochs from the rows of log.csv (numbers by column name), as two charts one
    below the other.

    A line marks the epoch whose network is in best.pt.
    """
    epochs = [row["epoch"] for row in rows]
    losses = [
        ("training", (31, 119, 180), [row["train_loss"] for row in rows]),
        ("held out", (214, 39, 40), [row["val_loss"] for row in rows]),
    ]
    ious = [("mean", (0, 0, 0), [row["mean_iou"] for row in rows])]
    title = "IoU on held-out images"
    if "MaxF" in rows[0]:  # the measure that chooses the best network where one class is sought
        ious += [("MaxF", (31, 119, 180), [row["MaxF"] for row in rows])]
        title = "IoU and MaxF on held-out images"
    ious += [
        (name, tuple(colour), [row[f"iou_{name}"] for row in rows])
        for name, colour in zip(classes, colours_for(classes).tolist(), strict=True)
    ]
    bottom = max(740, 440 + 20 * len(ious))  # room for every class in the legend
    kept = [row["epoch"] for row in rows if row.get("kept")][-1:]
    sheet = Image.new("RGB", (900, bottom + 20), "white")
    highest = max([v for _, _, line in losses for v in line if np.isfinite(v)], default=1.0)
    draw_chart(
        sheet, (0, 0, 900, 360), "loss (mean cross-entropy)", epochs, losses, highest or 1.0, kept
    )
    draw_chart(sheet, (0, 380, 900, bottom), title, epochs, ious, 1.0, kept)
    save_png(sheet, path)


def round_step(length, most):
    """The smallest of ..., 0.1, 0.2, 0.5, 1, 2, 5, 10, ... of which at most `most` steps make up
    the length.
    """
    base = 10.0 ** np.floor(np.log10(length / most))
    return next(base * m for m in (1, 2, 5, 10) if length / (base * m) <= most + 0.001)


def draw_chart(sheet, box, title, xs, lines, highest, kept=()):
    """One line chart inside box (left, top, right, bottom): y from 0 to `highest` rounded up, x
    over the epochs.

    lines: (name, colour, values) of each. kept: epochs that are marked.
    """
    draw, small = ImageDraw.Draw(sheet), font(14)
    left, top, right, bottom = box[0] + 70, box[1] + 40, box[2] - 190, box[3] - 40
    step = round_step(highest, 6)
    ticks = [step * i for i in range(int(np.ceil(highest / step - 1e-9)) + 1)]
    first, last = xs[0], max(xs[-1], xs[0] + 1)  # a single epoch is a dot at the left

    def at(x, y):
        return (
            left + (right - left) * (x - first) / (last - first),
            bottom - (bottom - top) * y / ticks[-1],
        )

    draw.text((left, box[1] + 10), title, fill="black", font=font(18))
    for tick in ticks:
        draw.line([at(first, tick), at(last, tick)], fill=(225, 225, 225))
        draw.text(
            (left - 8, at(first, tick)[1]), f"{tick:.4g}", fill="black", font=small, anchor="rm"
        )
    every = max(1, round(round_step(last, 10)))
    for x in (x for x in range(0, last + 1, every) if x >= first):
        draw.text((at(x, 0)[0], bottom + 6), str(x), fill="black", font=small, anchor="mt")
    draw.text(((left + right) / 2, bottom + 22), "epoch", fill="black", font=small, anchor="mt")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill="black")
    for x in kept:
        draw.line([at(x, 0), at(x, ticks[-1])], fill=(44, 140, 50), width=2)
        fits = at(x, 0)[0] < right - 120
        draw.text(
            (at(x, 0)[0] + (6 if fits else -6), top),
            f"best.pt: epoch {x}",
            fill=(44, 140, 50),
            font=small,
            anchor="lt" if fits else "rt",
        )
    for i, (name, colour, ys) in enumerate(lines):
        points = [at(x, min(y, ticks[-1])) for x, y in zip(xs, ys, strict=True) if np.isfinite(y)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=3 if name == "mean" else 2)
        for x, y in points if len(points) < 30 else points[-1:]:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        y = top + 20 * i
        draw.line([(right + 14, y + 8), (right + 34, y + 8)], fill=colour, width=3)
        draw.text((right + 40, y), f"{name[:12]} {ys[-1]:.3f}", fill="black", font=small)
