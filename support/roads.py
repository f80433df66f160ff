"""Synthetic road scenes in the folder layout of KITTI Road.

    python -m support.roads --out DIR

A scene is what a pinhole camera sees of a flat ground plane (support/ground.py) with things on it (support/things.py). The
road is a function of ground metres, so perspective, ground truth and calibration come from one geometry and cannot
disagree. Neither colour alone nor position alone tells road from not road: a network has to learn to see. All chance comes
from np.random.default_rng: the same seed gives the same scene, with the same numpy and Pillow.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from support.arguments import Parser, matching, parse_size
from support.ground import CATEGORIES, calibration, forecast, ground_colour, sky_colour, survey
from support.things import furnish

HEIGHT, WIDTH = 96, 320   # a quarter of KITTI's 375 x 1242: trains on a laptop, and roads are still readable
TRAIN, TEST = 300, 12     # KITTI Road has 289 and 290; testing has no ground truth, so a few to look at are enough
SEED = 0                  # any number would do; a fixed one makes two runs comparable
SMALLEST = 16             # fewer pixels a side leave no road to see
FINE = 2                  # each pixel is drawn as FINE x FINE ones and averaged, against jagged edges
FAR = 60.0                # metres; beyond, the road is a few flat pixels that nobody could mark: not valid
NEAR = 3.0                # metres; a thing that comes nearer is out of view, except for its shadow
ROAD, NOT_ROAD, NOT_VALID = (255, 0, 255), (255, 0, 0), (0, 0, 0)  # the colours of the ground truth, also KITTI's


class Scene(NamedTuple):
    image: np.ndarray        # uint8 [H, W, 3]
    road: np.ndarray         # uint8 [H, W, 3], only the three colours of the ground truth
    lane: np.ndarray | None  # the same for the lane the camera drives in, `um` only
    calib: str               # the text of KITTI's calibration file


def shadows(sun, things, x, z):
    """How much of the sun is missing at ground points, float32 0..1. Drawn as a map seen from above:
    8 cells a metre, x from -32 m, z from 0, 64 m square; what lies outside takes the nearest edge."""
    pen = ImageDraw.Draw(chart := Image.new("L", (512, 512)))
    for quads, _ in (patch for thing in things for patch in thing):
        flat = quads[..., (0, 2)] - quads[..., 1:2] * sun  # down the sun's ray until it meets y = 0
        for outline in ((flat + (32, 0)) * 8).reshape(-1, 8).tolist():
            pen.polygon(outline, fill=255)
    chart = np.asarray(chart.filter(ImageFilter.GaussianBlur(1.2)), np.float32) / 255
    column, row = [np.clip(cell * 8, 0, 511).astype(np.int32) for cell in (x + 32, z)]
    return chart[row, column]


def draw_things(size, focal, centre, height, things, weather):
    """uint8 [H, W, 4]: all things on a clear ground; alpha 255 marks what hides the ground."""
    seen = [patch for thing in things if min(quads[..., 2].min() for quads, _ in thing) > NEAR for patch in thing]
    quads = np.concatenate([np.zeros((0, 4, 3))] + [quads for quads, _ in seen]) + (0, height, 0)
    colours = np.concatenate([np.zeros((0, 3))] + [np.broadcast_to(c, (len(quads), 3)) for quads, c in seen])
    corner, normal = quads[:, 0], np.cross(quads[:, 1] - quads[:, 0], quads[:, 2] - quads[:, 0])  # outwards
    light = np.array([-weather.sun[0], -1, -weather.sun[1]])  # towards the sun
    lit = (normal * light).sum(1) / np.sqrt((normal ** 2).sum(1) * (light ** 2).sum())
    colours = weather.veil(colours * (0.8 + 0.3 * np.maximum(lit, -0.4))[:, None], corner[:, 2:])
    outlines = quads[..., :2] / quads[..., 2:] * focal + centre - 0.5  # ImageDraw counts pixels at their middle
    layer = Image.new("RGBA", size)
    fills, pen = np.clip(colours, 0, 255).astype(int).tolist(), ImageDraw.Draw(layer)
    for i in np.nonzero((normal * corner).sum(1) < 0)[0]:  # those facing the camera
        pen.polygon(outlines[i].ravel().tolist(), fill=(*fills[i], 255))
    return np.asarray(layer)


def shrink(fine):
    """Mean over FINE x FINE blocks of [H, W, ...], float32."""
    return sum(fine[i::FINE, j::FINE].astype(np.float32) for i in range(FINE) for j in range(FINE)) / FINE ** 2


def expose(rng, image):
    """From light to the camera's picture, blurred and noisy: float32 [H, W, 3] about 0..255 to uint8."""
    image = image * (rng.uniform(0.75, 1.15) * rng.uniform(0.96, 1.04, 3)).astype(np.float32)
    image = Image.fromarray(np.clip((image - 110) * rng.uniform(0.75, 1.15) + 110, 0, 255).astype(np.uint8))
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6))), np.float32)
    return np.clip(image + rng.standard_normal(image.shape, np.float32) * rng.uniform(0.5, 4), 0, 255).astype(np.uint8)


def draw(seed, category="uu", height=HEIGHT, width=WIDTH):
    """One Scene of height x width pixels. The same arguments always give the same scene."""
    if category not in CATEGORIES or min(height, width) < SMALLEST:
        raise ValueError(f"no scene of category {category!r} has {height} x {width} pixels")
    rng, h, w = np.random.default_rng([seed, CATEGORIES.index(category), 1]), height * FINE, width * FINE
    plan, weather = survey(seed, category), forecast(rng)
    things = furnish(rng, plan)
    focal = max(w, 2 * h) * rng.uniform(0.5, 0.68)  # tall pictures: a narrow view, no fish-eye
    centre, tall = (w * rng.uniform(0.47, 0.53), h * rng.uniform(0.26, 0.56)), rng.uniform(1.2, 2.3)  # a level view
    a, down = [(np.arange(n, dtype=np.float32) + 0.5 - middle) / focal for n, middle in zip((w, h), centre)]
    top = int((down <= 1e-3).sum())  # the first ground row; just below the horizon is kilometres off
    z, x = tall / down[top:, None], a * tall / down[top:, None]
    inside, across = plan.inside(x, z), plan.across(x, z)
    ground = ground_colour(rng, plan, weather, x, z, inside, across)
    ground *= 1 - rng.uniform(0.25, 0.5) * shadows(weather.sun, things, x, z)[..., None]  # the sky still lights them
    sky = sky_colour(rng, weather, a, np.maximum(-down[:top, None], 0))
    picture = np.concatenate([sky, weather.veil(ground, z[..., None])])
    layer = draw_things((w, h), focal, centre, tall, things, weather)
    hides = layer[..., 3:] > 0
    # Flat fills would give things away as painted: they get a little grain too.
    grain = 7 * weather.grain(np.arange(w) * 2, np.arange(h)[:, None] * 2)
    picture = np.where(hides, layer[..., :3] + grain[..., None], picture)
    road, lane, far = np.zeros((3, h, w), bool)
    road[top:] = (inside > 0) & ~hides[top:, :, 0]
    lane[top:] = road[top:] & (across * plan.side > 0) & (np.abs(across) < plan.half)
    far[top:] = (z >= FAR) & (inside > -1) & ~hides[top:, :, 0]
    road, lane = [np.array([NOT_ROAD, ROAD, NOT_VALID], np.uint8)[  # a pixel is what most of its area is
        np.where(shrink(far) >= 0.5, 2, shrink(mask) >= 0.5)] for mask in (road, lane)]
    calib = calibration(focal / FINE, (centre[0] / FINE, centre[1] / FINE), tall)
    return Scene(expose(rng, shrink(picture)), road, lane if category == "um" else None, calib)


def write(root, train=TRAIN, test=TEST, height=HEIGHT, width=WIDTH, seed=SEED):
    """Write `train` scenes with truth and `test` without into the new folder `root`. Everything goes to
    a temporary folder beside it first, and gets its name when complete."""
    root = Path(root)
    if min(train - 1, test, seed, height - SMALLEST, width - SMALLEST) < 0:
        raise ValueError(f"need train >= 1, test and seed >= 0, and a size of at least {SMALLEST}x{SMALLEST} pixels")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not an empty folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as beside_it:
        whole = Path(beside_it) / "whole"  # a folder of its own has ordinary permissions
        for part, (split, total) in enumerate({"training": train, "testing": test}.items()):
            for folder in ("image_2", "calib", "gt_image_2")[:3 - part]:
                (whole / split / folder).mkdir(parents=True)
            for i in range(total):
                category, number = CATEGORIES[i % len(CATEGORIES)], f"{i // len(CATEGORIES):06d}"
                scene = draw(2 * (seed * 10 ** 6 + i) + part, category, height, width)  # no seed in both splits
                truths = {"gt_image_2/{}_road_{}.png": scene.road, "gt_image_2/{}_lane_{}.png": scene.lane}
                pictures = {"image_2/{}_{}.png": scene.image, **(truths if split == "training" else {})}
                for name, pixels in pictures.items():
                    if pixels is not None:
                        Image.fromarray(pixels).save(whole / split / name.format(category, number))
                (whole / split / "calib" / f"{category}_{number}.txt").write_text(scene.calib)
        if root.exists():
            root.rmdir()
        whole.rename(root)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for what cannot be drawn or written (one line on stderr)."""
    parser = Parser("roads.py", description="Write synthetic road scenes in the folder layout of KITTI Road.")
    parser.add_argument("--out", required=True, help="new folder for the data set")
    parser.add_argument("--train", type=int, default=TRAIN, help="scenes with ground truth (default %(default)s)")
    parser.add_argument("--test", type=int, default=TEST, help="scenes without ground truth (default %(default)s)")
    parser.add_argument("--size", type=matching(r"[1-9]\d{0,6}x[1-9]\d{0,6}", "a size, HxW", parse_size),
                        default=f"{HEIGHT}x{WIDTH}", help="pixels, HxW (default %(default)s)")
    parser.add_argument("--seed", type=int, default=SEED, help="another one, other scenes (default %(default)s)")
    options = parser.parse_args(argv)
    try:
        write(options.out, options.train, options.test, *options.size, options.seed)
    except (ValueError, OSError) as error:
        print(f"roads.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
