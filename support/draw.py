"""Pictures for a person to look at: class colours, overlays with a legend, contact sheets, curves.

Nothing is measured or learnt here. Pillow draws, numpy blends.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from support.labels import IGNORE, only_road

# Fixed colours, which people with weak colour vision can tell apart too.
COLOURS = [(128, 128, 128), (214, 39, 40), (255, 210, 60), (148, 80, 200), (64, 120, 220), (44, 140, 50),
           (255, 127, 14), (23, 190, 207), (140, 86, 75), (240, 110, 190), (190, 220, 60), (20, 40, 120)]
ROAD = (230, 0, 230)


def colours_for(classes: list[str]) -> np.ndarray:
    """uint8 [C, 3], the colour of each class: the same at every call. Beyond the fixed colours, hues go on turning."""
    road = only_road(classes)
    if road is not None:
        return np.array([ROAD if c == road else (70, 70, 70) for c in (0, 1)], np.uint8)
    more = [tuple(Image.new("HSV", (1, 1), (i * 67 % 256, 160 + i % 3 * 40, 230 - i % 4 * 40)).convert("RGB")
                  .getpixel((0, 0))) for i in range(len(COLOURS), len(classes))]
    return np.array((COLOURS + more)[:len(classes)], np.uint8)


def tint(image: np.ndarray, label: np.ndarray, classes: list[str]) -> np.ndarray:
    """The picture uint8 [H, W, 3] with classes uint8 [H, W] as colours over it; IGNORE is shown black.

    Where the classes are road and not road, only the road is tinted. A class named background never is.
    """
    colours, opacity = np.zeros((256, 3), np.float32), np.full(256, 0.65, np.float32)
    colours[:len(classes)] = colours_for(classes)
    opacity[IGNORE] = 0.8
    if classes[0] == "background":
        opacity[0] = 0
    road = only_road(classes)
    if road is not None:
        opacity[road], opacity[1 - road] = 0.5, 0
    shown = np.empty_like(image)
    for rows in (slice(top, top + 256) for top in range(0, len(image), 256)):  # as floats a large picture would take gigabytes
        weight = opacity[label[rows]][..., None]
        shown[rows] = image[rows] * (1 - weight) + colours[label[rows]] * weight
    return shown


def font(size: int):
    return ImageFont.load_default(size)


def overlay(image: np.ndarray, label: np.ndarray, classes: list[str]) -> Image.Image:
    """`tint`, and a legend with the colours and names of the classes in the picture, unless they are road and not road.

    The legend lies over the bottom of the picture, the most frequent class first; a picture too small for it has none.
    """
    shown = Image.fromarray(tint(image, label, classes))
    counts = np.bincount(label.ravel(), minlength=256)[:len(classes)]
    present = [c for c in np.argsort(-counts, kind="stable") if counts[c]]
    if only_road(classes) is not None or not present:
        return shown
    height, width = label.shape
    text = font(max(11, min(28, round(min(height, width) / 28))))
    line = round(text.size * 1.5)
    cell = round(max(text.getlength(classes[c]) for c in present)) + 2 * line
    per_line = max(1, width // cell)
    top = height - line * -(-len(present) // per_line)
    if cell > width or top < height / 2:
        return shown
    panel = Image.new("RGB", (width, height - top), "black")
    shown.paste(Image.blend(shown.crop((0, top, width, height)), panel, 0.6), (0, top))
    draw, colours = ImageDraw.Draw(shown), colours_for(classes).tolist()
    for i, c in enumerate(present):
        x, y = i % per_line * cell, top + i // per_line * line
        draw.rectangle((x + 4, y + 4, x + line - 4, y + line - 4), fill=tuple(colours[c]), outline="white")
        draw.text((x + line + 2, y + line / 2), classes[c], fill="white", font=text, anchor="lm")
    return shown


def palette_mask(label: np.ndarray, classes: list[str]) -> Image.Image:
    """Class ids uint8 [H, W] as a palette picture: the stored numbers are the ids, shown in the classes' colours."""
    colours = np.zeros((256, 3), np.uint8)
    colours[:len(classes)] = colours_for(classes)
    mask = Image.fromarray(label)
    mask.putpalette(colours.tobytes())
    return mask


def draw_samples(path: Path, rows: list[tuple[np.ndarray, np.ndarray, np.ndarray]], classes: list[str], caption: str):
    """A contact sheet: for each (image [H, W, 3], truth [H, W], prediction [H, W]), all uint8, the three side by side.

    A truth of IGNORE is black; the classes' colours stand at the bottom.
    """
    width = 480 if len(rows) > 1 else 640
    strips = []
    for image, truth, prediction in rows:
        panels = [image, tint(image, truth, classes), tint(image, prediction, classes)]
        height = max(1, round(image.shape[0] * width / image.shape[1]))
        strips.append([Image.fromarray(panel).resize((width, height)) for panel in panels])

    gap, head, text = 6, 30, font(16)
    entries = list(zip(classes, colours_for(classes), strict=True)) + [("ignored", (0, 0, 0))]
    per_line = max(1, 3 * width // 170)
    foot = 24 * -(-len(entries) // per_line) + gap
    sheet = Image.new("RGB", (3 * width + 4 * gap, head + foot + sum(s[0].height + gap for s in strips)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate((f"picture ({caption})", "truth", "prediction")):
        draw.text((gap + column * (width + gap), 6), title, fill="black", font=text)
    y = head
    for strip in strips:
        for column, panel in enumerate(strip):
            sheet.paste(panel, (gap + column * (width + gap), y))
        y += strip[0].height + gap
    for i, (name, colour) in enumerate(entries):
        left, top = gap + i % per_line * 170, y + i // per_line * 24
        draw.rectangle((left, top + 2, left + 18, top + 18), fill=tuple(int(c) for c in colour))
        draw.text((left + 24, top), name[:17], fill="black", font=text)
    sheet.save(path, compress_level=1)  # a third of the time: training waits for it


def draw_curves(path: Path, rows: list[dict], classes: list[str]):
    """Loss and IoU over epochs from the rows of log.csv (numbers by column name), as two charts one below the other."""
    epochs = [row["epoch"] for row in rows]
    losses = [("training", (31, 119, 180), [row["train_loss"] for row in rows]),
              ("held out", (214, 39, 40), [row["val_loss"] for row in rows])]
    ious = [("mean", (0, 0, 0), [row["mean_iou"] for row in rows])]
    title = "IoU on held-out images"
    if "MaxF" in rows[0]:  # the measure that chooses the best network where one class is sought
        ious += [("MaxF", (31, 119, 180), [row["MaxF"] for row in rows])]
        title = "IoU and MaxF on held-out images"
    ious += [(name, tuple(colour), [row[f"iou_{name}"] for row in rows])
             for name, colour in zip(classes, colours_for(classes).tolist(), strict=True)]
    bottom = max(740, 440 + 20 * len(ious))  # room for every class in the legend
    sheet = Image.new("RGB", (900, bottom + 20), "white")
    highest = max([v for _, _, line in losses for v in line if np.isfinite(v)], default=1.0)
    draw_chart(sheet, (0, 0, 900, 360), "loss (mean cross-entropy)", epochs, losses, highest or 1.0)
    draw_chart(sheet, (0, 380, 900, bottom), title, epochs, ious, 1.0)
    sheet.save(path, compress_level=1)


def round_step(length, most):
    """The smallest of ..., 0.1, 0.2, 0.5, 1, 2, 5, 10, ... of which at most `most` steps make up the length."""
    base = 10.0 ** np.floor(np.log10(length / most))
    return next(base * m for m in (1, 2, 5, 10) if length / (base * m) <= most + 0.001)


def draw_chart(sheet, box, title, xs, lines, highest):
    """One line chart inside box (left, top, right, bottom): y from 0 to `highest` rounded up, x over the epochs.

    lines: (name, colour, values) of each.
    """
    draw, small = ImageDraw.Draw(sheet), font(14)
    left, top, right, bottom = box[0] + 70, box[1] + 40, box[2] - 190, box[3] - 40
    step = round_step(highest, 6)
    ticks = [step * i for i in range(int(np.ceil(highest / step - 1e-9)) + 1)]
    first, last = xs[0], max(xs[-1], xs[0] + 1)  # a single epoch is a dot at the left

    def at(x, y):
        return (left + (right - left) * (x - first) / (last - first), bottom - (bottom - top) * y / ticks[-1])

    draw.text((left, box[1] + 10), title, fill="black", font=font(18))
    for tick in ticks:
        draw.line([at(first, tick), at(last, tick)], fill=(225, 225, 225))
        draw.text((left - 8, at(first, tick)[1]), f"{tick:.4g}", fill="black", font=small, anchor="rm")
    every = max(1, round(round_step(last, 10)))
    for x in (x for x in range(0, last + 1, every) if x >= first):
        draw.text((at(x, 0)[0], bottom + 6), str(x), fill="black", font=small, anchor="mt")
    draw.text(((left + right) / 2, bottom + 22), "epoch", fill="black", font=small, anchor="mt")
    draw.line([(left, top), (left, bottom), (right, bottom)], fill="black")
    for i, (name, colour, ys) in enumerate(lines):
        points = [at(x, min(y, ticks[-1])) for x, y in zip(xs, ys, strict=True) if np.isfinite(y)]
        if len(points) > 1:
            draw.line(points, fill=colour, width=3 if name == "mean" else 2)
        for x, y in points if len(points) < 30 else points[-1:]:
            draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        y = top + 20 * i
        draw.line([(right + 14, y + 8), (right + 34, y + 8)], fill=colour, width=3)
        draw.text((right + 40, y), f"{name[:12]} {ys[-1]:.3f}", fill="black", font=small)
