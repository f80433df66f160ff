"""The ground of a synthetic scene: where the road runs, and how ground, sky and weather look.

Ground frame (KITTI's "road" frame): x right, y DOWN, z ahead, in metres. y = 0 is the ground, and the camera stands at
(0, -height, 0).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

CATEGORIES = ("um", "umm", "uu")  # marked two-way, multiple marked lanes, unmarked (KITTI's names)
ASPHALT = [(70, 70, 73), (92, 92, 94), (112, 112, 112)]  # base colours, 0-255
SLABS = [(158, 118, 100), (176, 172, 164)]
LAND = [(88, 118, 52), (70, 98, 42), (108, 124, 58), (150, 134, 84), (134, 106, 70)]
LEAVES = [(58, 84, 36), (44, 66, 34), (92, 104, 44), (120, 92, 40)]


# ---- geometry: which ground metres are road, and where the camera sees them ----------------------------------------

class Plan(NamedTuple):
    """One road seen from above. Lengths in metres, x and z in the ground frame; arrays broadcast."""
    offset: float    # x of the centre line abreast of the camera
    slope: float     # dx/dz there: the camera's yaw against the road
    bend: float      # curvature, 1/m
    twist: float     # change of curvature, 1/m^2: makes an S
    half: float      # half the road's width
    lanes: int       # 0: unmarked
    side: int        # +1: traffic keeps right of the centre line, -1: left
    cross: tuple     # a crossing road: (z, half its width, skew dz/dx); too far to see where there is none

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
        near = np.maximum(4.0 - np.abs(main - other), 0)  # a smooth maximum rounds the corners, as kerbs do
        return np.maximum(main, other) + near * near / 16


def survey(seed, category):
    """The ground plan of scene (seed, category). It has a random stream of its own, so looks cannot move the road."""
    rng = np.random.default_rng([seed, CATEGORIES.index(category), 0])
    side, width = int(rng.choice([-1, 1], p=[0.3, 0.7])), rng.uniform(2.8, 3.7)
    lanes = {"um": 2, "umm": int(rng.integers(3, 5)), "uu": 0}[category]
    if lanes:  # near the middle of a lane; of two, the own one
        half, lane = width * lanes / 2, (1 + side) // 2 if lanes == 2 else int(rng.integers(lanes))
        stand = width * (lane + 0.5) - half + rng.uniform(-0.7, 0.7)
    else:  # wide enough for one car to two and a half; the camera may stand beside it, as in a drive
        half = rng.uniform(1.5, 4.2)
        stand = rng.uniform(-1, 1) * (half + (-0.8 if rng.random() < 0.8 else 2.5))
    most = np.where(rng.random(3) < 0.5, (0.08, 0.003, 0), (0.4, 0.022, 0.0006))  # often nearly straight
    slope, bend, twist = (rng.uniform(-1, 1, 3) * most).tolist()
    cross = rng.uniform(11, 30) if rng.random() < 0.12 else 1e6, rng.uniform(2.5, 5), rng.uniform(-0.3, 0.3)
    return Plan(-stand * math.sqrt(1 + slope * slope), slope, bend, twist, half, lanes, side, cross)


def calibration(focal, centre, height):
    """KITTI's text for a camera that looks level: focal length and principal point in pixels, of which
    number c covers [c, c + 1), and metres above the ground. A bird's-eye view takes floor(P2 . R0 .
    inverse(Tr_cam_to_road) . point) for a 1-BASED pixel: hence the + 1 on the principal point."""
    lens = [focal, 0, centre[0] + 1, 0, 0, focal, centre[1] + 1, 0, 0, 0, 1, 0]
    rows = {f"P{i}": lens for i in range(4)}  # one camera stands in for KITTI's four
    rows["R0_rect"] = [1, 0, 0, 0, 1, 0, 0, 0, 1]
    rows["Tr_velo_to_cam"] = [0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0]  # no laser here: only its usual axes
    rows["Tr_imu_to_velo"] = [1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    rows["Tr_cam_to_road"] = [1, 0, 0, 0, 0, 1, 0, -height, 0, 0, 1, 0]
    return "".join(f"{key}: {' '.join(f'{v:.12e}' for v in row)}\n" for key, row in rows.items())


# ---- the look of ground and sky ------------------------------------------------------------------------------------

def shade(rng, colours, spread=14):
    """A colour, float32 [3], near one of the given: brightness varies more than hue."""
    shift = rng.uniform(-spread, spread) + rng.uniform(-spread, spread, 3) / 3
    return (shift + colours[rng.integers(len(colours))]).astype(np.float32)


class Weather(NamedTuple):
    sun: np.ndarray    # ground metres (x, z) a shadow moves for each metre of height
    haze: np.ndarray   # float32 [3], colour of the far distance, 0-255
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
        noise += weight * (np.asarray(grown, np.float32)[2 * step:-2 * step, 2 * step:-2 * step] / 127.5 - 1)
    sun = rng.uniform(0.4, 1.8, 2) * rng.choice([-1, 1], 2) if rng.random() < 0.65 else np.full(2, 0.1)
    return Weather(sun, shade(rng, [(205, 215, 226)]), noise)


def ground_colour(rng, plan, weather, x, z, inside, across):
    """Colours, float32 [rows, W, 3], of ground points x [rows, W], z [rows, 1], plan.inside and plan.across
    of which are known: road, then a kerb, then to each side a strip and the open land."""
    road, paved = shade(rng, ASPHALT, 10), rng.random(2) < 0.4
    edge = road + (45 if road[0] < 125 else rng.choice([-50, 40]))
    # A pavement may be almost as grey as the road. Then it gets a kerb, by which it can be told from the road.
    strips = [shade(rng, [road + rng.choice([-20, 20])] + SLABS if slabs else LAND) for slabs in paved]
    paint = shade(rng, [(226, 222, 214)] * 9 + [(222, 184, 70)], 8)
    palette = np.array([road, edge, paint, *strips, shade(rng, LAND), shade(rng, LAND)], np.float32)
    rough = np.array([rng.uniform(3, 10), 8, 12, *np.where(paved, 6, 16), 18, 18], np.float32)
    right = (across > 0).astype(np.int8)
    strip = -inside < rng.uniform(1.5, 4.5, 2).astype(np.float32)[right]
    kerb = rng.uniform(0.16, 0.3) if min(np.abs(tone - road).max() for tone in strips) < 40 else 0
    kind = np.select([inside > 0, inside > -kerb, strip], [0, 1, 3 + right], 5 + right)  # rows of the palette
    fine, wide = weather.grain(x * 22, z * 22), weather.grain(x * 3, z * 1.5)
    if plan.lanes:
        lane, dash, thick = 2 * plan.half / plan.lanes, rng.uniform(2, 6), rng.uniform(0.06, 0.1)
        painted = (z + dash * rng.random()) % (dash * rng.uniform(2, 3)) < dash  # dashes, kept between lanes only
        painted = painted & (np.abs(across) < plan.half - lane / 2)
        painted &= np.abs((across + plan.half + lane / 2) % lane - lane / 2) < thick
        painted |= np.abs(np.abs(across) - plan.half + 0.3) < thick * (rng.random() < 0.7)
        kind[painted & (fine + wide > rng.uniform(-1, -0.3))] = 2  # worn off here and there
    fade = 20 / (20 + z)  # far off, one pixel averages many grains
    joints = ((inside % 0.6 < 0.04) | (z % 0.6 < 0.04)) & paved[right] & strip & (kind > 2)
    return palette[kind] + (rough[kind] * (fine * fade + wide) - joints * (26 * fade))[..., None]


def sky_colour(rng, weather, a, rise):
    """Colours, float32 [rows, W, 3], of the rays (a [W], -rise [rows, 1], 1): a gradient, clouds, hills."""
    up, far = np.clip(rise * 2.2, 0, 1)[..., None], 30 / (rise + 0.12)
    zenith = weather.haze * rng.uniform([0.5, 0.65, 0.85], [1.05, 1.04, 1.02]).astype(np.float32)
    cloud = np.clip(weather.grain(far * a, far) + rng.uniform(-0.6, 0.4), 0, 0.6)[..., None]
    colour = weather.haze + (zenith - weather.haze) * up
    colour = colour + (248 - colour) * (cloud * (0.3 + up))
    ridge = rng.uniform(-0.03, 0.05) + 0.02 * weather.grain(a * 30, a * 0) + 0.008 * weather.grain(a * 200, a * 0)
    return np.where((rise < ridge)[..., None], weather.veil(shade(rng, LEAVES), 600), colour)
