"""Synthetic road scenes in the folder layout of KITTI Road, see `write`.

A scene is a flat ground plane with things on it, seen by a pinhole camera. The road is defined in
metres on the ground, so perspective, ground truth and calibration come from one geometry and always
agree. Neither colour alone nor position alone tells road from not road. The same seed gives the
same scene, with the same versions of numpy and Pillow.

Lengths are in metres, colours are 0 ... 255. On the ground, x points right and z ahead.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

HEIGHT, WIDTH = 96, 320  # a quarter of KITTI's 375 x 1242: fast on a laptop, roads still visible
TRAIN, TEST = 300, 12  # KITTI Road has 289 and 290; the 12, without ground truth, are to look at
FINE = 2  # supersampling: a pixel is the mean of FINE x FINE, against jagged edges
MAX_DISTANCE = 60.0  # beyond this, the road is too few pixels to label: not valid
MIN_DISTANCE = 3.0  # of nearer things, only the shadow is drawn

CATEGORIES = ("um", "umm", "uu")  # marked two-way, multiple marked lanes, unmarked (KITTI's names)
ROAD, NOT_ROAD, NOT_VALID = (255, 0, 255), (255, 0, 0), (0, 0, 0)  # KITTI's ground truth
ASPHALT = [(70, 70, 73), (92, 92, 94), (112, 112, 112)]
SLABS = [(158, 118, 100), (176, 172, 164)]
LAND = [(88, 118, 52), (70, 98, 42), (108, 124, 58), (150, 134, 84), (134, 106, 70)]
LEAVES = [(58, 84, 36), (44, 66, 34), (92, 104, 44), (120, 92, 40)]
PAINT = [(226, 222, 214)] * 9 + [(222, 184, 70)]
HAZE = [(205, 215, 226)]
ROOFS = [(120, 62, 48), (82, 80, 84)]
WALLS = [(196, 182, 156), (150, 84, 66), (206, 204, 198)]
WALLS += [(120, 118, 116), (176, 150, 110), (92, 84, 80)]
CARS = [(34, 34, 38), (200, 202, 206), (120, 124, 130), (150, 24, 26), (30, 52, 110), (84, 88, 92)]

# ---- geometry: where the road runs, and where the camera sees it ----


class Plan(NamedTuple):
    """A road seen from above. Its methods take arrays x and z that broadcast.

    offset    x of the centre line at z = 0, beside the camera
    slope     dx/dz there: the yaw of the camera relative to the road
    bend      curvature, 1/m
    twist     change of curvature, 1/m^2: makes S-bends
    half      half the road's width
    lanes     number of lanes; 0: unmarked
    side      +1: traffic keeps to the right of the centre line, -1: to the left
    cross     a crossing road: (z, half its width, skew dz/dx); z is too far to see if there is none
    """

    offset: float
    slope: float
    bend: float
    twist: float
    half: float
    lanes: int
    side: int
    cross: tuple

    def centre(self, z):
        """x and slope of the centre line at z. Beyond 50 m it is straight."""
        near = np.clip(z, -10, 50)
        x = self.offset + near * (self.slope + near * (self.bend / 2 + near * (self.twist / 6)))
        slope = self.slope + near * (self.bend + near * (self.twist / 2))
        return x + slope * (z - near), slope

    def across(self, x, z):
        """Signed distance to the right of the centre line, perpendicular to it."""
        centre, slope = self.centre(z)
        return (x - centre) / np.sqrt(1 + slope * slope)

    def inside(self, x, z):
        """Distance from the edge of the nearest road, negative outside."""
        main = self.half - np.abs(self.across(x, z))
        at, half, skew = self.cross
        other = half - np.abs(z - at - skew * x)
        near = np.maximum(4.0 - np.abs(main - other), 0)
        # A smooth maximum rounds the corners, like kerbs.
        return np.maximum(main, other) + near * near / 16

    def beside(self, z, across, way):
        """The place `across` metres off the centre line: (x, z, unit vector along the road)."""
        x, slope = self.centre(z)
        length = math.sqrt(1 + slope * slope)
        return x + across / length, z - across * slope / length, way * slope / length, way / length


def survey(seed: int, category: str) -> Plan:
    """The plan of scene (seed, category). Its own random stream makes it independent of drawing."""
    rng = np.random.default_rng([seed, CATEGORIES.index(category), 0])
    side, width = int(rng.choice([-1, 1], p=[0.3, 0.7])), rng.uniform(2.8, 3.7)
    lanes = {"um": 2, "umm": int(rng.integers(3, 5)), "uu": 0}[category]
    if lanes:  # near the middle of a lane; of two, the ego lane
        half, lane = width * lanes / 2, (1 + side) // 2 if lanes == 2 else int(rng.integers(lanes))
        stand = width * (lane + 0.5) - half + rng.uniform(-0.7, 0.7)
    else:  # 1 to 2.5 cars wide; the camera may stand beside the road
        half = rng.uniform(1.5, 4.2)
        stand = rng.uniform(-1, 1) * (half + (-0.8 if rng.random() < 0.8 else 2.5))
    often_straight = np.where(rng.random(3) < 0.5, (0.08, 0.003, 0), (0.4, 0.022, 0.0006))
    slope, bend, twist = (rng.uniform(-1, 1, 3) * often_straight).tolist()
    cross_at = rng.uniform(11, 30) if rng.random() < 0.12 else 1e6
    cross = cross_at, rng.uniform(2.5, 5), rng.uniform(-0.3, 0.3)
    return Plan(-stand * math.sqrt(1 + slope * slope), slope, bend, twist, half, lanes, side, cross)


def calibration(focal: float, centre: tuple[float, float], height: float) -> str:
    """The text of KITTI's calibration file for a level camera.

    focal, centre    focal length and principal point (x, y) in pixels; pixel 0 covers [0, 1)
    height           metres above the ground

    The principal point gets + 1, since a bird's-eye view counts pixels from 1: the pixel is
    floor(P2 . R0 . inverse(Tr_cam_to_road) . point).
    """
    lens = [focal, 0, centre[0] + 1, 0, 0, focal, centre[1] + 1, 0, 0, 0, 1, 0]
    rows = {f"P{i}": lens for i in range(4)}  # one camera stands in for KITTI's four
    rows["R0_rect"] = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    rows["Tr_velo_to_cam"] = [0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0]  # no laser, only its axes
    rows["Tr_imu_to_velo"] = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    rows["Tr_cam_to_road"] = [1, 0, 0, 0, 0, 1, 0, -height, 0, 0, 1, 0]
    return "".join(f"{key}: {' '.join(f'{v:.12e}' for v in row)}\n" for key, row in rows.items())


# ---- ground and sky ----


def shade(rng, colours, spread=14):
    """A random colour, float32 [3], near one of `colours`. Brightness varies more than hue."""
    shift = rng.uniform(-spread, spread) + rng.uniform(-spread, spread, 3) / 3
    return (shift + colours[rng.integers(len(colours))]).astype(np.float32)


class Weather(NamedTuple):
    """Light and noise of a scene.

    sun      shift (x, z) of a shadow per metre of height
    haze     float32 [3], colour of the far distance
    noise    float32 [256, 256], smooth and seamless, about -1 ... 1
    """

    sun: np.ndarray
    haze: np.ndarray
    noise: np.ndarray

    def grain(self, a, b):
        """Noise at coordinates (a, b), one cell of the tile per unit. Both arrays broadcast."""
        return self.noise[b.astype(np.int32) & 255, a.astype(np.int32) & 255]

    def veil(self, colours, distance):
        """Colours seen through `distance` metres of haze."""
        return colours + (self.haze - colours) * (distance / (distance + 600))


def forecast(rng) -> Weather:
    """Random weather. A third of the scenes are overcast, with shadows right below things."""
    noise = np.zeros((256, 256), np.float32)
    for step, weight in ((16, 0.5), (4, 0.4), (1, 0.35)):  # wrap each octave before enlarging it
        rough = np.pad(rng.integers(0, 256, (256 // step, 256 // step), np.uint8), 2, mode="wrap")
        grown = Image.fromarray(rough).resize([len(rough) * step] * 2, Image.Resampling.BICUBIC)
        inner = slice(2 * step, -2 * step)
        noise += weight * (np.asarray(grown, np.float32)[inner, inner] / 127.5 - 1)
    sun = np.full(2, 0.1)
    if rng.random() < 0.65:
        sun = rng.uniform(0.4, 1.8, 2) * rng.choice([-1, 1], 2)
    return Weather(sun, shade(rng, HAZE), noise)


def ground_colour(rng, plan, weather, x, z, inside, across):
    """Colours, float32 [rows, W, 3], of ground points: road, kerb, a strip on each side, open land.

    x, z              [rows, W] and [rows, 1]
    inside, across    plan.inside(x, z) and plan.across(x, z)
    """
    road, paved = shade(rng, ASPHALT, 10), rng.random(2) < 0.4
    edge = road + (45 if road[0] < 125 else rng.choice([-50, 40]))
    # A pavement may be almost as grey as the road. Then a kerb separates them.
    strips = [
        shade(rng, [road + rng.choice([-20, 20])] + SLABS if slabs else LAND) for slabs in paved
    ]
    paint = shade(rng, PAINT, 8)
    palette = np.array([road, edge, paint, *strips, shade(rng, LAND), shade(rng, LAND)], np.float32)
    rough = np.array([rng.uniform(3, 10), 8, 12, *np.where(paved, 6, 16), 18, 18], np.float32)
    right = (across > 0).astype(np.int8)
    strip = -inside < rng.uniform(1.5, 4.5, 2).astype(np.float32)[right]
    kerb = rng.uniform(0.16, 0.3) if min(np.abs(tone - road).max() for tone in strips) < 40 else 0
    # Rows of the palette.
    kind = np.select([inside > 0, inside > -kerb, strip], [0, 1, 3 + right], 5 + right)
    fine, wide = weather.grain(x * 22, z * 22), weather.grain(x * 3, z * 1.5)
    if plan.lanes:
        lane, dash, thick = 2 * plan.half / plan.lanes, rng.uniform(2, 6), rng.uniform(0.06, 0.1)
        # Dashes between the lanes, often lines along the edges, partly worn off.
        painted = (z + dash * rng.random()) % (dash * rng.uniform(2, 3)) < dash
        painted = painted & (np.abs(across) < plan.half - lane / 2)
        painted &= np.abs((across + plan.half + lane / 2) % lane - lane / 2) < thick
        painted |= np.abs(np.abs(across) - plan.half + 0.3) < thick * (rng.random() < 0.7)
        kind[painted & (fine + wide > rng.uniform(-1, -0.3))] = 2
    fade = 20 / (20 + z)  # far away, a pixel averages many grains
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
    hills = 0.02 * weather.grain(a * 30, a * 0), 0.008 * weather.grain(a * 200, a * 0)
    ridge = rng.uniform(-0.03, 0.05) + hills[0] + hills[1]
    return np.where((rise < ridge)[..., None], weather.veil(shade(rng, LEAVES), 600), colour)


# ---- things: lists of (quadrilaterals [k, 4, 3] in metres with y down, their colours) ----

SIDES = [[0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7], [4, 5, 6, 7]]  # of a block; top
OCTAGON = [(10, 0), (7, -7), (0, -10), (-7, -7), (-10, 0), (-7, 7), (0, 10), (7, 7)]
DISC = np.array([(x, y, 0) for x, y in OCTAGON])[[[0, 1, 2, 3], [0, 3, 4, 7], [4, 5, 6, 7]]] / 10


def block(place, low, high):
    """Five faces [5, 4, 3] of a block at a place: rear, right, front, left, top.

    low, high    (rear, front, half width, height) of the lower and the upper end
    """
    x, z, tx, tz = place
    return np.array(
        [
            (x + along * tx + side * tz, -up, z + along * tz - side * tx)
            for rear, front, half, up in (low, high)
            for along, side in ((rear, -half), (rear, half), (front, half), (front, -half))
        ]
    )[SIDES]


def on_faces(faces, *boxes):
    """Rectangles [n, 4, 3] on each of the faces [k, 4, 3].

    boxes    (left, right, low, high) each, as fractions of a face
    """
    a, b = np.array(boxes)[:, [0, 1, 1, 0], None], np.array(boxes)[:, [2, 2, 3, 3], None]
    p, q, r, s = np.moveaxis(faces[:, None, None], 3, 0)
    return ((p * (1 - a) + q * a) * (1 - b) + (s * (1 - a) + r * a) * b).reshape(-1, 4, 3)


def building(rng, place):
    """A house or a block of flats, its long side along the road."""
    half, deep = rng.uniform(4, 7), rng.uniform(4, 6)
    storeys, columns = rng.integers(1, 5), rng.integers(3, 6)
    high = 3.1 * storeys
    ridge = high + rng.choice([0.1, 1.5, 3.5])
    walls = block(place, (-half, half, deep, 0), (-half, half, deep, high))
    roof = block(place, (-half, half, deep, high), (-half, half, 0.05, ridge))
    windows = [
        ((i + 0.25) / columns, (i + 0.75) / columns, (j + 0.3) / storeys, (j + 0.8) / storeys)
        for i in range(columns)
        for j in range(storeys)
    ]
    panes = on_faces(walls[:4], *windows)
    return [(walls, shade(rng, WALLS)), (roof, shade(rng, ROOFS)), (panes, (70, 74, 80))]


def car(rng, place):
    """A saloon, an estate or a van."""
    kinds = [(2.2, 1.45, 1.2, 0.5), (2.1, 1.5, 1.1, 0.05), (2.5, 2.2, 0.7, 0.0)]
    long, top, bonnet, boot = rng.choice(kinds)
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
    paint, dark, glass = shade(rng, CARS, 10), (26, 26, 28), shade(rng, [(60, 68, 78)])
    shell = [(under, dark), (body, paint), (wheels, dark), (cabin, paint), (panes, glass)]
    return [*shell, (lamps[:2], (190, 20, 24)), (lamps[2:], (236, 236, 220))]


def tree(rng, place):
    """A trunk and a crown of discs that face the camera, darker at the bottom."""
    (x, z), size = place[:2], rng.uniform(1.4, 2.8)
    trunk, thick = rng.uniform(1.8, 3.5), rng.uniform(0.08, 0.18)
    where = rng.uniform(-size, size, (14, 3)) * (0.7, 0.8, 0.7) + (x, -trunk - size, z)
    where = where[np.argsort(-where[:, 1])]  # y points down: the lowest, darkest leaves come first
    crown = DISC * rng.uniform(0.35, 0.6, (14, 1, 1, 1)) * size + where[:, None, None]
    stem = block(place, (-thick, thick, thick, 0), (-thick, thick, thick, trunk + size))
    leaves = np.linspace(0.8, 1.5, 42)[:, None] * shade(rng, LEAVES)
    return [(stem, (70, 56, 44)), (crown.reshape(-1, 4, 3), leaves)]


def furnish(rng, plan):
    """All things in the scene, the farthest first."""
    spots = []  # (maker, place, minimum distance from any road)
    town, green, busy = rng.random(3) * (1.0, 0.7, 0.4)
    for side in (-1, 1):
        rows = (
            (building, town, 15, plan.half + rng.uniform(8, 18), 7.5),
            (tree, green, 7, plan.half + rng.uniform(1, 6), 0.8),
            (car, rng.choice([0, 0, 0.6]), 6.5, plan.half + rng.uniform(-1, 0), -1.5),  # parked
        )
        for maker, share, step, away, room in rows:
            for z in np.arange(-6, 100, step) + rng.uniform(0, 3):
                if rng.random() < share:
                    across = side * (away + rng.uniform(0, 0.8))
                    spots.append((maker, plan.beside(z, across, rng.choice([-1, 1])), room))
    lanes = max(plan.lanes, 2 if plan.half > 2.3 else 1)
    for middle in (np.arange(lanes) + 0.5) * 2 * plan.half / lanes - plan.half:  # traffic by lane
        way = np.sign(middle) * plan.side or 1
        for z in np.cumsum(rng.uniform(9, 36, 4))[rng.random(4) < busy]:
            spots.append((car, plan.beside(z, middle + rng.uniform(-0.3, 0.3), way), -9))
    spots.sort(key=lambda spot: -(spot[1][0] ** 2) - spot[1][1] ** 2)
    return [maker(rng, place) for maker, place, room in spots if plan.inside(*place[:2]) < -room]


# ---- the picture ----


class Scene(NamedTuple):
    """A picture with its ground truth.

    image    uint8 [H, W, 3]
    road     uint8 [H, W, 3], ROAD, NOT_ROAD and NOT_VALID
    lane     the same for the ego lane, only for um, otherwise None
    calib    the text of KITTI's calibration file
    """

    image: np.ndarray
    road: np.ndarray
    lane: np.ndarray | None
    calib: str


def shadows(sun, things, x, z):
    """The share of sunlight missing at ground points, float32 0 ... 1.

    Drawn as a map from above: 8 cells a metre, x from -32 m, z from 0, 64 m square. Points outside
    take the value of the nearest edge.
    """
    chart = Image.new("L", (512, 512))
    pen = ImageDraw.Draw(chart)
    for quads, _ in (patch for thing in things for patch in thing):
        flat = quads[..., (0, 2)] - quads[..., 1:2] * sun  # along the sun's ray to y = 0
        for outline in ((flat + (32, 0)) * 8).reshape(-1, 8).tolist():
            pen.polygon(outline, fill=255)
    chart = np.asarray(chart.filter(ImageFilter.GaussianBlur(1.2)), np.float32) / 255
    column, row = [np.clip(cell * 8, 0, 511).astype(np.int32) for cell in (x + 32, z)]
    return chart[row, column]


def draw_things(size, focal, centre, height, things, weather):
    """All things on a transparent layer, uint8 [H, W, 4]; alpha is 255 where there is a thing."""
    nearest = [min(quads[..., 2].min() for quads, _ in thing) for thing in things]
    patches = [
        patch
        for thing, z in zip(things, nearest, strict=True)
        if z > MIN_DISTANCE
        for patch in thing
    ]
    quads = np.concatenate([np.zeros((0, 4, 3))] + [quads for quads, _ in patches])
    quads = quads + (0, height, 0)
    colours = [np.broadcast_to(colour, (len(quads), 3)) for quads, colour in patches]
    colours = np.concatenate([np.zeros((0, 3))] + colours)
    corner = quads[:, 0]
    normal = np.cross(quads[:, 1] - corner, quads[:, 2] - corner)  # outwards
    light = np.array([-weather.sun[0], -1, -weather.sun[1]])  # towards the sun
    lit = (normal * light).sum(1) / np.sqrt((normal**2).sum(1) * (light**2).sum())
    colours = weather.veil(colours * (0.8 + 0.3 * np.maximum(lit, -0.4))[:, None], corner[:, 2:])
    # ImageDraw's coordinates are those of pixel centres.
    outlines = quads[..., :2] / quads[..., 2:] * focal + centre - 0.5
    layer = Image.new("RGBA", size)
    fills, pen = np.clip(colours, 0, 255).astype(int).tolist(), ImageDraw.Draw(layer)
    for i in np.nonzero((normal * corner).sum(1) < 0)[0]:  # those facing the camera
        pen.polygon(outlines[i].ravel().tolist(), fill=(*fills[i], 255))
    return np.asarray(layer)


def shrink(fine):
    """Mean over FINE x FINE blocks of [H, W, ...], float32."""
    parts = (fine[i::FINE, j::FINE].astype(np.float32) for i in range(FINE) for j in range(FINE))
    return sum(parts) / FINE**2


def expose(rng, image):
    """Simulate the camera: float32 [H, W, 3], about 0 ... 255, to blurred and noisy uint8."""
    image = image * (rng.uniform(0.75, 1.15) * rng.uniform(0.96, 1.04, 3)).astype(np.float32)
    image = np.clip((image - 110) * rng.uniform(0.75, 1.15) + 110, 0, 255).astype(np.uint8)
    blur = ImageFilter.GaussianBlur(rng.uniform(0, 0.6))
    image = np.asarray(Image.fromarray(image).filter(blur), np.float32)
    noise = rng.standard_normal(image.shape, np.float32) * rng.uniform(0.5, 4)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def draw(seed: int, category: str = "uu", height: int = HEIGHT, width: int = WIDTH) -> Scene:
    """Draw a scene of height x width pixels."""
    rng = np.random.default_rng([seed, CATEGORIES.index(category), 1])
    h, w = height * FINE, width * FINE
    plan, weather = survey(seed, category), forecast(rng)
    things = furnish(rng, plan)
    focal = max(w, 2 * h) * rng.uniform(0.5, 0.68)  # a narrow view for tall pictures, no fish-eye
    centre = w * rng.uniform(0.47, 0.53), h * rng.uniform(0.26, 0.56)  # the view is level
    tall = rng.uniform(1.2, 2.3)
    a, down = [
        (np.arange(n, dtype=np.float32) + 0.5 - middle) / focal
        for n, middle in zip((w, h), centre, strict=True)
    ]
    # The first ground row. Rows nearer to the horizon are kilometres away.
    top = int((down <= 1e-3).sum())
    z, x = tall / down[top:, None], a * tall / down[top:, None]
    inside, across = plan.inside(x, z), plan.across(x, z)
    ground = ground_colour(rng, plan, weather, x, z, inside, across)
    shadow = rng.uniform(0.25, 0.5)  # the sky still lights the ground
    ground *= 1 - shadow * shadows(weather.sun, things, x, z)[..., None]
    sky = sky_colour(rng, weather, a, np.maximum(-down[:top, None], 0))
    picture = np.concatenate([sky, weather.veil(ground, z[..., None])])
    layer = draw_things((w, h), focal, centre, tall, things, weather)
    hides = layer[..., 3:] > 0
    # Flat colours would give things away, so they get a little grain too.
    grain = 7 * weather.grain(np.arange(w) * 2, np.arange(h)[:, None] * 2)
    picture = np.where(hides, layer[..., :3] + grain[..., None], picture)
    road, lane, far = np.zeros((3, h, w), bool)
    road[top:] = (inside > 0) & ~hides[top:, :, 0]
    lane[top:] = road[top:] & (across * plan.side > 0) & (np.abs(across) < plan.half)
    far[top:] = (z >= MAX_DISTANCE) & (inside > -1) & ~hides[top:, :, 0]
    # A pixel gets the label of most of its area.
    colours, not_valid = np.array([NOT_ROAD, ROAD, NOT_VALID], np.uint8), shrink(far) >= 0.5
    road, lane = [colours[np.where(not_valid, 2, shrink(mask) >= 0.5)] for mask in (road, lane)]
    calib = calibration(focal / FINE, (centre[0] / FINE, centre[1] / FINE), tall)
    return Scene(expose(rng, shrink(picture)), road, lane if category == "um" else None, calib)


# ---- the data set ----


def write(
    root: str | Path,
    train: int = TRAIN,
    test: int = TEST,
    height: int = HEIGHT,
    width: int = WIDTH,
    seed: int = 0,
):
    """Write `train` scenes with ground truth and `test` without into the new folder `root`.

    The files go to a temporary folder beside it, which is renamed when it is complete. Raises
    OSError if `root` exists.
    """
    root = Path(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as beside:
        whole_set = Path(beside) / "whole"  # a new folder in it has ordinary permissions
        for part, (split, total) in enumerate({"training": train, "testing": test}.items()):
            for folder in ("image_2", "calib", "gt_image_2")[: 3 - part]:
                (whole_set / split / folder).mkdir(parents=True)
            for i in range(total):
                category, number = CATEGORIES[i % len(CATEGORIES)], f"{i // len(CATEGORIES):06d}"
                scene_seed = 2 * (seed * 10**6 + i) + part  # no scene is in both splits
                scene = draw(scene_seed, category, height, width)
                pictures = {f"image_2/{category}_{number}.png": scene.image}
                if split == "training":
                    pictures[f"gt_image_2/{category}_road_{number}.png"] = scene.road
                    pictures[f"gt_image_2/{category}_lane_{number}.png"] = scene.lane
                for name, pixels in pictures.items():
                    if pixels is not None:
                        Image.fromarray(pixels).save(whole_set / split / name)
                file = whole_set / split / "calib" / f"{category}_{number}.txt"
                file.write_text(scene.calib)
        whole_set.rename(root)
