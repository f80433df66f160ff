"""Synthetic road scenes in the folder layout of KITTI Road.

    python -m support.datasets.synthetic --out DIR

A scene is what a pinhole camera sees of a flat ground plane (support/ground.py) with things on it
(support/things.py). The road is a function of ground metres, so perspective, ground truth and
calibration come from one geometry and cannot disagree. Neither colour alone nor position alone
tells road from not road: a network has to learn to see. All chance comes from
np.random.default_rng: the same seed gives the same scene, with the same numpy and Pillow.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from support.console import Parser, matching, parse_size

HEIGHT, WIDTH = (
    96,
    320,
)  # a quarter of KITTI's 375 x 1242: trains on a laptop, and roads are still readable
TRAIN, TEST = (
    300,
    12,
)  # KITTI Road has 289 and 290; testing has no ground truth, so a few to look at are enough
SEED = 0  # any number would do; a fixed one makes two runs comparable
SMALLEST = 16  # fewer pixels a side leave no road to see
FINE = 2  # each pixel is drawn as FINE x FINE ones and averaged, against jagged edges
FAR = 60.0  # metres; beyond, the road is a few flat pixels that nobody could mark: not valid
NEAR = 3.0  # metres; a thing that comes nearer is out of view, except for its shadow
ROAD, NOT_ROAD, NOT_VALID = (
    (255, 0, 255),
    (255, 0, 0),
    (0, 0, 0),
)  # the colours of the ground truth, also KITTI's


class Scene(NamedTuple):
    image: np.ndarray  # uint8 [H, W, 3]
    road: np.ndarray  # uint8 [H, W, 3], only the three colours of the ground truth
    lane: np.ndarray | None  # the same for the lane the camera drives in, `um` only
    calib: str  # the text of KITTI's calibration file


def shadows(sun, things, x, z):
    """How much of the sun is missing at ground points, float32 0..1. Drawn as a map seen from
    above: 8 cells a metre, x from -32 m, z from 0, 64 m square; what lies outside takes the nearest
    edge.
    """
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
    seen = [
        patch
        for thing in things
        if min(quads[..., 2].min() for quads, _ in thing) > NEAR
        for patch in thing
    ]
    quads = np.concatenate([np.zeros((0, 4, 3))] + [quads for quads, _ in seen]) + (0, height, 0)
    colours = np.concatenate(
        [np.zeros((0, 3))] + [np.broadcast_to(c, (len(quads), 3)) for quads, c in seen]
    )
    corner, normal = (
        quads[:, 0],
        np.cross(quads[:, 1] - quads[:, 0], quads[:, 2] - quads[:, 0]),
    )  # outwards
    light = np.array([-weather.sun[0], -1, -weather.sun[1]])  # towards the sun
    lit = (normal * light).sum(1) / np.sqrt((normal**2).sum(1) * (light**2).sum())
    colours = weather.veil(colours * (0.8 + 0.3 * np.maximum(lit, -0.4))[:, None], corner[:, 2:])
    outlines = (
        quads[..., :2] / quads[..., 2:] * focal + centre - 0.5
    )  # ImageDraw counts pixels at their middle
    layer = Image.new("RGBA", size)
    fills, pen = np.clip(colours, 0, 255).astype(int).tolist(), ImageDraw.Draw(layer)
    for i in np.nonzero((normal * corner).sum(1) < 0)[0]:  # those facing the camera
        pen.polygon(outlines[i].ravel().tolist(), fill=(*fills[i], 255))
    return np.asarray(layer)


def shrink(fine):
    """Mean over FINE x FINE blocks of [H, W, ...], float32."""
    return (
        sum(fine[i::FINE, j::FINE].astype(np.float32) for i in range(FINE) for j in range(FINE))
        / FINE**2
    )


def expose(rng, image):
    """From light to the camera's picture, blurred and noisy: float32 [H, W, 3] about 0..255 to
    uint8.
    """
    image = image * (rng.uniform(0.75, 1.15) * rng.uniform(0.96, 1.04, 3)).astype(np.float32)
    image = Image.fromarray(
        np.clip((image - 110) * rng.uniform(0.75, 1.15) + 110, 0, 255).astype(np.uint8)
    )
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6))), np.float32)
    return np.clip(
        image + rng.standard_normal(image.shape, np.float32) * rng.uniform(0.5, 4), 0, 255
    ).astype(np.uint8)


def draw(seed, category="uu", height=HEIGHT, width=WIDTH):
    """One Scene of height x width pixels. The same arguments always give the same scene."""
    if category not in CATEGORIES or min(height, width) < SMALLEST:
        raise ValueError(f"no scene of category {category!r} has {height} x {width} pixels")
    rng, h, w = (
        np.random.default_rng([seed, CATEGORIES.index(category), 1]),
        height * FINE,
        width * FINE,
    )
    plan, weather = survey(seed, category), forecast(rng)
    things = furnish(rng, plan)
    focal = max(w, 2 * h) * rng.uniform(0.5, 0.68)  # tall pictures: a narrow view, no fish-eye
    centre, tall = (
        (w * rng.uniform(0.47, 0.53), h * rng.uniform(0.26, 0.56)),
        rng.uniform(1.2, 2.3),
    )  # a level view
    a, down = [
        (np.arange(n, dtype=np.float32) + 0.5 - middle) / focal for n, middle in zip((w, h), centre)
    ]
    top = int(
        (down <= 1e-3).sum()
    )  # the first ground row; just below the horizon is kilometres off
    z, x = tall / down[top:, None], a * tall / down[top:, None]
    inside, across = plan.inside(x, z), plan.across(x, z)
    ground = ground_colour(rng, plan, weather, x, z, inside, across)
    ground *= (
        1 - rng.uniform(0.25, 0.5) * shadows(weather.sun, things, x, z)[..., None]
    )  # the sky still lights them
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
    road, lane = [
        np.array([NOT_ROAD, ROAD, NOT_VALID], np.uint8)[  # a pixel is what most of its area is
            np.where(shrink(far) >= 0.5, 2, shrink(mask) >= 0.5)
        ]
        for mask in (road, lane)
    ]
    calib = calibration(focal / FINE, (centre[0] / FINE, centre[1] / FINE), tall)
    return Scene(expose(rng, shrink(picture)), road, lane if category == "um" else None, calib)


def write(root, train=TRAIN, test=TEST, height=HEIGHT, width=WIDTH, seed=SEED):
    """Write `train` scenes with truth and `test` without into the new folder `root`. Everything
    goes to a temporary folder beside it first, and gets its name when complete.
    """
    root = Path(root)
    if min(train - 1, test, seed, height - SMALLEST, width - SMALLEST) < 0:
        raise ValueError(
            f"need train >= 1, test and seed >= 0, and a size of at least {SMALLEST}x{SMALLEST} pixels"
        )
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not an empty folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as beside_it:
        whole = Path(beside_it) / "whole"  # a folder of its own has ordinary permissions
        for part, (split, total) in enumerate({"training": train, "testing": test}.items()):
            for folder in ("image_2", "calib", "gt_image_2")[: 3 - part]:
                (whole / split / folder).mkdir(parents=True)
            for i in range(total):
                category, number = CATEGORIES[i % len(CATEGORIES)], f"{i // len(CATEGORIES):06d}"
                scene = draw(
                    2 * (seed * 10**6 + i) + part, category, height, width
                )  # no seed in both splits
                truths = {
                    "gt_image_2/{}_road_{}.png": scene.road,
                    "gt_image_2/{}_lane_{}.png": scene.lane,
                }
                pictures = {
                    "image_2/{}_{}.png": scene.image,
                    **(truths if split == "training" else {}),
                }
                for name, pixels in pictures.items():
                    if pixels is not None:
                        Image.fromarray(pixels).save(whole / split / name.format(category, number))
                (whole / split / "calib" / f"{category}_{number}.txt").write_text(scene.calib)
        if root.exists():
            root.rmdir()
        whole.rename(root)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for what cannot be drawn or written
    (one line on stderr).
    """
    parser = Parser(
        "roads.py", description="Write synthetic road scenes in the folder layout of KITTI Road."
    )
    parser.add_argument("--out", required=True, help="new folder for the data set")
    parser.add_argument(
        "--train", type=int, default=TRAIN, help="scenes with ground truth (default %(default)s)"
    )
    parser.add_argument(
        "--test", type=int, default=TEST, help="scenes without ground truth (default %(default)s)"
    )
    parser.add_argument(
        "--size",
        type=matching(r"[1-9]\d{0,6}x[1-9]\d{0,6}", "a size, HxW", parse_size),
        default=f"{HEIGHT}x{WIDTH}",
        help="pixels, HxW (default %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=SEED, help="another one, other scenes (default %(default)s)"
    )
    options = parser.parse_args(argv)
    try:
        write(options.out, options.train, options.test, *options.size, options.seed)
    except (ValueError, OSError) as error:
        print(f"roads.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())


# ---- The ground of a synthetic scene: where the road runs, and how ground, sky and weather look

CATEGORIES = ("um", "umm", "uu")  # marked two-way, multiple marked lanes, unmarked (KITTI's names)
ASPHALT = [(70, 70, 73), (92, 92, 94), (112, 112, 112)]  # base colours, 0-255
SLABS = [(158, 118, 100), (176, 172, 164)]
LAND = [(88, 118, 52), (70, 98, 42), (108, 124, 58), (150, 134, 84), (134, 106, 70)]
LEAVES = [(58, 84, 36), (44, 66, 34), (92, 104, 44), (120, 92, 40)]


# ---- geometry: which ground metres are road, and where the camera sees them
# ----------------------------------------


class Plan(NamedTuple):
    """One road seen from above. Lengths in metres, x and z in the ground frame; arrays broadcast."""

    offset: float  # x of the centre line abreast of the camera
    slope: float  # dx/dz there: the camera's yaw against the road
    bend: float  # curvature, 1/m
    twist: float  # change of curvature, 1/m^2: makes an S
    half: float  # half the road's width
    lanes: int  # 0: unmarked
    side: int  # +1: traffic keeps right of the centre line, -1: left
    cross: tuple  # a crossing road: (z, half its width, skew dz/dx); too far to see where there is none

    def centre(self, z):
        """x and slope of the centre line at z. Beyond 50 m it goes on straight."""
        near = np.clip(z, -10, 50)
        x = self.offset + near * (self.slope + near * (self.bend / 2 + near * (self.twist / 6)))
        slope = self.slope + near * (self.bend + near * (self.twist / 2))
        return x + slope * (z - near), slope

    def across(self, x, z):
        """Signed metres right of the centre line, square to it."""
        centre, slope = self.centre(z)
        return (x - centre) / np.sqrt(1 + slope * slope)

    def inside(self, x, z):
        """Metres inside the edge of any road, negative outside."""
        main = self.half - np.abs(self.across(x, z))
        at, half, skew = self.cross
        other = half - np.abs(z - at - skew * x)
        near = np.maximum(
            4.0 - np.abs(main - other), 0
        )  # a smooth maximum rounds the corners, as kerbs do
        return np.maximum(main, other) + near * near / 16


def survey(seed, category):
    """The ground plan of scene (seed, category). It has a random stream of its own, so looks cannot
    move the road.
    """
    rng = np.random.default_rng([seed, CATEGORIES.index(category), 0])
    side, width = int(rng.choice([-1, 1], p=[0.3, 0.7])), rng.uniform(2.8, 3.7)
    lanes = {"um": 2, "umm": int(rng.integers(3, 5)), "uu": 0}[category]
    if lanes:  # near the middle of a lane; of two, the own one
        half, lane = width * lanes / 2, (1 + side) // 2 if lanes == 2 else int(rng.integers(lanes))
        stand = width * (lane + 0.5) - half + rng.uniform(-0.7, 0.7)
    else:  # wide enough for one car to two and a half; the camera may stand beside it, as in a drive
        half = rng.uniform(1.5, 4.2)
        stand = rng.uniform(-1, 1) * (half + (-0.8 if rng.random() < 0.8 else 2.5))
    most = np.where(
        rng.random(3) < 0.5, (0.08, 0.003, 0), (0.4, 0.022, 0.0006)
    )  # often nearly straight
    slope, bend, twist = (rng.uniform(-1, 1, 3) * most).tolist()
    cross = (
        rng.uniform(11, 30) if rng.random() < 0.12 else 1e6,
        rng.uniform(2.5, 5),
        rng.uniform(-0.3, 0.3),
    )
    return Plan(-stand * math.sqrt(1 + slope * slope), slope, bend, twist, half, lanes, side, cross)


def calibration(focal, centre, height):
    """KITTI's text for a camera that looks level: focal length and principal point in pixels, of
    which number c covers [c, c + 1), and metres above the ground. A bird's-eye view takes floor(P2
    . R0 . inverse(Tr_cam_to_road) . point) for a 1-BASED pixel: hence the + 1 on the principal
    point.
    """
    lens = [focal, 0, centre[0] + 1, 0, 0, focal, centre[1] + 1, 0, 0, 0, 1, 0]
    rows = {f"P{i}": lens for i in range(4)}  # one camera stands in for KITTI's four
    rows["R0_rect"] = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    rows["Tr_velo_to_cam"] = [
        0,
        -1,
        0,
        0,
        0,
        0,
        -1,
        0,
        1,
        0,
        0,
        0,
    ]  # no laser here: only its usual axes
    rows["Tr_imu_to_velo"] = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    rows["Tr_cam_to_road"] = [1, 0, 0, 0, 0, 1, 0, -height, 0, 0, 1, 0]
    return "".join(f"{key}: {' '.join(f'{v:.12e}' for v in row)}\n" for key, row in rows.items())


# ---- the look of ground and sky
# ------------------------------------------------------------------------------------


def shade(rng, colours, spread=14):
    """A colour, float32 [3], near one of the given: brightness varies more than hue."""
    shift = rng.uniform(-spread, spread) + rng.uniform(-spread, spread, 3) / 3
    return (shift + colours[rng.integers(len(colours))]).astype(np.float32)


class Weather(NamedTuple):
    sun: np.ndarray  # ground metres (x, z) a shadow moves for each metre of height
    haze: np.ndarray  # float32 [3], colour of the far distance, 0-255
    noise: np.ndarray  # float32 [256, 256], smooth, about -1..1; tiles without a seam

    def grain(self, a, b):
        """Noise at coordinates (a, b), which broadcast: one cell of the tile per unit."""
        return self.noise[b.astype(np.int32) & 255, a.astype(np.int32) & 255]

    def veil(self, colours, far):
        """Colours as they look through `far` metres of haze."""
        return colours + (self.haze - colours) * (far / (far + 600))


def forecast(rng):
    """One scene's Weather; a third of the days are overcast, with shadows only right below things."""
    noise = np.zeros((256, 256), np.float32)
    for step, weight in ((16, 0.5), (4, 0.4), (1, 0.35)):  # each octave wraps round before it grows
        rough = np.pad(rng.integers(0, 256, (256 // step, 256 // step), np.uint8), 2, mode="wrap")
        grown = Image.fromarray(rough).resize([len(rough) * step] * 2, Image.Resampling.BICUBIC)
        noise += weight * (
            np.asarray(grown, np.float32)[2 * step : -2 * step, 2 * step : -2 * step] / 127.5 - 1
        )
    sun = (
        rng.uniform(0.4, 1.8, 2) * rng.choice([-1, 1], 2)
        if rng.random() < 0.65
        else np.full(2, 0.1)
    )
    return Weather(sun, shade(rng, [(205, 215, 226)]), noise)


def ground_colour(rng, plan, weather, x, z, inside, across):
    """Colours, float32 [rows, W, 3], of ground points x [rows, W], z [rows, 1], plan.inside and
    plan.across of which are known: road, then a kerb, then to each side a strip and the open land.
    """
    road, paved = shade(rng, ASPHALT, 10), rng.random(2) < 0.4
    edge = road + (45 if road[0] < 125 else rng.choice([-50, 40]))
    # A pavement may be almost as grey as the road. Then it gets a kerb, by which it can be told
    # from the road.
    strips = [
        shade(rng, [road + rng.choice([-20, 20])] + SLABS if slabs else LAND) for slabs in paved
    ]
    paint = shade(rng, [(226, 222, 214)] * 9 + [(222, 184, 70)], 8)
    palette = np.array([road, edge, paint, *strips, shade(rng, LAND), shade(rng, LAND)], np.float32)
    rough = np.array([rng.uniform(3, 10), 8, 12, *np.where(paved, 6, 16), 18, 18], np.float32)
    right = (across > 0).astype(np.int8)
    strip = -inside < rng.uniform(1.5, 4.5, 2).astype(np.float32)[right]
    kerb = rng.uniform(0.16, 0.3) if min(np.abs(tone - road).max() for tone in strips) < 40 else 0
    kind = np.select(
        [inside > 0, inside > -kerb, strip], [0, 1, 3 + right], 5 + right
    )  # rows of the palette
    fine, wide = weather.grain(x * 22, z * 22), weather.grain(x * 3, z * 1.5)
    if plan.lanes:
        lane, dash, thick = 2 * plan.half / plan.lanes, rng.uniform(2, 6), rng.uniform(0.06, 0.1)
        painted = (z + dash * rng.random()) % (
            dash * rng.uniform(2, 3)
        ) < dash  # dashes, kept between lanes only
        painted = painted & (np.abs(across) < plan.half - lane / 2)
        painted &= np.abs((across + plan.half + lane / 2) % lane - lane / 2) < thick
        painted |= np.abs(np.abs(across) - plan.half + 0.3) < thick * (rng.random() < 0.7)
        kind[painted & (fine + wide > rng.uniform(-1, -0.3))] = 2  # worn off here and there
    fade = 20 / (20 + z)  # far off, one pixel averages many grains
    joints = ((inside % 0.6 < 0.04) | (z % 0.6 < 0.04)) & paved[right] & strip & (kind > 2)
    return palette[kind] + (rough[kind] * (fine * fade + wide) - joints * (26 * fade))[..., None]


def sky_colour(rng, weather, a, rise):
    """Colours, float32 [rows, W, 3], of the rays (a [W], -rise [rows, 1], 1): a gradient, clouds,
    hills.
    """
    up, far = np.clip(rise * 2.2, 0, 1)[..., None], 30 / (rise + 0.12)
    zenith = weather.haze * rng.uniform([0.5, 0.65, 0.85], [1.05, 1.04, 1.02]).astype(np.float32)
    cloud = np.clip(weather.grain(far * a, far) + rng.uniform(-0.6, 0.4), 0, 0.6)[..., None]
    colour = weather.haze + (zenith - weather.haze) * up
    colour = colour + (248 - colour) * (cloud * (0.3 + up))
    ridge = (
        rng.uniform(-0.03, 0.05)
        + 0.02 * weather.grain(a * 30, a * 0)
        + 0.008 * weather.grain(a * 200, a * 0)
    )
    return np.where((rise < ridge)[..., None], weather.veil(shade(rng, LEAVES), 600), colour)


# ---- What stands in a synthetic scene: buildings, cars and trees, as lists of coloured quadrila

ROOFS = [(120, 62, 48), (82, 80, 84)]
WALLS = [
    (196, 182, 156),
    (150, 84, 66),
    (206, 204, 198),
    (120, 118, 116),
    (176, 150, 110),
    (92, 84, 80),
]
CARS = [(34, 34, 38), (200, 202, 206), (120, 124, 130), (150, 24, 26), (30, 52, 110), (84, 88, 92)]
SIDES = [
    [0, 1, 5, 4],
    [1, 2, 6, 5],
    [2, 3, 7, 6],
    [3, 0, 4, 7],
    [4, 5, 6, 7],
]  # rear, right, front, left, top
DISC = (
    np.array(
        [
            (10, 0, 0),
            (7, -7, 0),
            (0, -10, 0),
            (-7, -7, 0),
            (-10, 0, 0),
            (-7, 7, 0),
            (0, 10, 0),
            (7, 7, 0),
        ]
    )[[[0, 1, 2, 3], [0, 3, 4, 7], [4, 5, 6, 7]]]
    / 10
)


def beside(plan, z, across, way=1):
    """A place on the ground: (x, z, unit vector along the road), `across` metres off its centre."""
    x, slope = plan.centre(z)
    length = math.sqrt(1 + slope * slope)
    return x + across / length, z - across * slope / length, way * slope / length, way / length


def block(place, low, high):
    """Five faces [5, 4, 3] of a block at a place. low, high: (rear, front, half width, height), m."""
    x, z, tx, tz = place
    return np.array(
        [
            (x + along * tx + side * tz, -up, z + along * tz - side * tx)
            for rear, front, half, up in (low, high)
            for along, side in ((rear, -half), (rear, half), (front, half), (front, -half))
        ]
    )[SIDES]


def on_faces(faces, *boxes):
    """Rectangles [., 4, 3] on each of the faces [k, 4, 3]: (left, right, low, high) as fractions of
    it.
    """
    a, b = np.array(boxes)[:, [0, 1, 1, 0], None], np.array(boxes)[:, [2, 2, 3, 3], None]
    p, q, r, s = np.moveaxis(faces[:, None, None], 3, 0)
    return ((p * (1 - a) + q * a) * (1 - b) + (s * (1 - a) + r * a) * b).reshape(-1, 4, 3)


def building(rng, place):
    """A house or a block of flats; its long side lies along the road."""
    half, deep, storeys, columns = (
        rng.uniform(4, 7),
        rng.uniform(4, 6),
        rng.integers(1, 5),
        rng.integers(3, 6),
    )
    high = 3.1 * storeys
    walls = block(place, (-half, half, deep, 0), (-half, half, deep, high))
    roof = block(
        place, (-half, half, deep, high), (-half, half, 0.05, high + rng.choice([0.1, 1.5, 3.5]))
    )
    panes = on_faces(
        walls[:4],
        *[
            ((i + 0.25) / columns, (i + 0.75) / columns, (j + 0.3) / storeys, (j + 0.8) / storeys)
            for i in range(columns)
            for j in range(storeys)
        ],
    )
    return [(walls, shade(rng, WALLS)), (roof, shade(rng, ROOFS)), (panes, (70, 74, 80))]


def car(rng, place):
    """A saloon, an estate or a van, seen from anywhere."""
    long, top, bonnet, boot = rng.choice(
        [(2.2, 1.45, 1.2, 0.5), (2.1, 1.5, 1.1, 0.05), (2.5, 2.2, 0.7, 0.0)]
    )
    body = block(place, (-long, long, 0.88, 0.3), (0.08 - long, long - 0.15, 0.84, 0.88))
    cabin = block(
        place,
        (boot - long, long - bonnet, 0.8, 0.88),
        (boot * 1.8 + 0.1 - long, long - bonnet * 1.7, 0.64, top),
    )
    under = block(place, (0.3 - long, long - 0.3, 0.75, 0), (0.3 - long, long - 0.3, 0.75, 0.4))
    wheels = on_faces(body[1:4:2], (0.12, 0.26, -0.5, 0.45), (0.74, 0.88, -0.5, 0.45))
    panes = on_faces(cabin[:4], (0.07, 0.49, 0.1, 0.86), (0.52, 0.93, 0.1, 0.86))
    lamps = on_faces(body[0:3:2], (0.03, 0.2, 0.5, 0.85), (0.8, 0.97, 0.5, 0.85))
    paint, dark = shade(rng, CARS, 10), (26, 26, 28)
    return [
        (under, dark),
        (body, paint),
        (wheels, dark),
        (cabin, paint),
        (panes, shade(rng, [(60, 68, 78)])),
        (lamps[:2], (190, 20, 24)),
        (lamps[2:], (236, 236, 220)),
    ]


def tree(rng, place):
    """A trunk and a crown of leafy discs turned to the camera, darker below."""
    (x, z), size, trunk, thick = (
        place[:2],
        rng.uniform(1.4, 2.8),
        rng.uniform(1.8, 3.5),
        rng.uniform(0.08, 0.18),
    )
    where = rng.uniform(-size, size, (14, 3)) * (0.7, 0.8, 0.7) + (x, -trunk - size, z)
    where = where[np.argsort(-where[:, 1])]  # y points down: the lowest, darkest leaves come first
    crown = DISC * rng.uniform(0.35, 0.6, (14, 1, 1, 1)) * size + where[:, None, None]
    return [
        (
            block(place, (-thick, thick, thick, 0), (-thick, thick, thick, trunk + size)),
            (70, 56, 44),
        ),
        (crown.reshape(-1, 4, 3), np.linspace(0.8, 1.5, 42)[:, None] * shade(rng, LEAVES)),
    ]


def furnish(rng, plan):
    """Everything standing in the scene, the farthest first."""
    spots = []  # (maker, place, metres that it must be away from any road)
    town, green, busy = rng.random(3) * (1.0, 0.7, 0.4)
    for side in (-1, 1):
        for maker, often, step, away, room in (
            (building, town, 15, plan.half + rng.uniform(8, 18), 7.5),
            (tree, green, 7, plan.half + rng.uniform(1, 6), 0.8),
            (car, rng.choice([0, 0, 0.6]), 6.5, plan.half + rng.uniform(-1, 0), -1.5),
        ):  # parked
            for z in np.arange(-6, 100, step) + rng.uniform(0, 3):
                if rng.random() < often:
                    place = beside(
                        plan, z, side * (away + rng.uniform(0, 0.8)), rng.choice([-1, 1])
                    )
                    spots.append((maker, place, room))
    lanes = max(plan.lanes, 2 if plan.half > 2.3 else 1)
    for middle in (
        np.arange(lanes) + 0.5
    ) * 2 * plan.half / lanes - plan.half:  # traffic, lane by lane
        for z in np.cumsum(rng.uniform(9, 36, 4))[rng.random(4) < busy]:
            spots.append(
                (
                    car,
                    beside(
                        plan, z, middle + rng.uniform(-0.3, 0.3), np.sign(middle) * plan.side or 1
                    ),
                    -9,
                )
            )
    spots.sort(key=lambda spot: -(spot[1][0] ** 2) - spot[1][1] ** 2)
    return [maker(rng, place) for maker, place, room in spots if plan.inside(*place[:2]) < -room]
