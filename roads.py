"""Synthetic road scenes in the KITTI Road benchmark's folder layout:

    python roads.py --out DIR

A scene is what a pinhole camera sees of a flat ground plane. The road is a function of ground
metres, so perspective, truth and calibration all come from one geometry and cannot disagree.
Nothing here is downloaded; the pictures only have to be varied enough that neither colour alone
nor position alone tells road from not road, so that a network has to learn to see.

Frames. Ground (KITTI's "road" frame): x right, y DOWN, z ahead, metres, y = 0 is the ground, the
camera stands at (0, -height, 0). Image: an "edge" coordinate e, where pixel c covers [c, c + 1).

Same seed, same scene, under one numpy and Pillow: whole pictures see only + - * / and square root,
which every processor rounds alike, and all chance comes from np.random.default_rng.
"""
import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

HEIGHT, WIDTH = 96, 320   # a quarter of KITTI's 375 x 1242: trains on a laptop, roads still readable
TRAIN, TEST = 200, 12     # KITTI Road has 289 and 290; testing has no truth, so a few to look at do
SEED = 0                  # any number does; a fixed one makes two runs comparable
SMALLEST = 16             # fewer pixels a side leave no road to see
FINE = 2                  # each pixel is drawn as FINE x FINE ones and averaged, against jagged edges
FAR = 90.0                # metres; beyond, the road is a few flat pixels nobody could mark: not valid
NEAR = 0.2                # metres; what lies nearer than this to the camera is cut off before dividing
CATEGORIES = ("um", "umm", "uu")  # marked two-way, multiple marked lanes, unmarked (KITTI's names)
ROAD, NOT_ROAD, NOT_VALID = (255, 0, 255), (255, 0, 0), (0, 0, 0)  # truth colours, also KITTI's


class Scene(NamedTuple):
    image: np.ndarray        # uint8 [H, W, 3]
    road: np.ndarray         # uint8 [H, W, 3], only the three truth colours
    lane: np.ndarray | None  # the same for the lane the camera drives in, `um` only
    calib: str               # the text of KITTI's calibration file


# ---- the ground plan: which ground metres are road -------------------------------------------

class Plan(NamedTuple):
    """One road seen from above. Lengths in metres, x and z in the ground frame."""
    offset: float    # x of the centre line abreast of the camera
    slope: float     # dx/dz there: the camera's yaw against the road
    bend: float      # curvature, 1/m
    twist: float     # change of curvature, 1/m^2: makes an S
    half: float      # half the road's width
    lanes: int       # 0: unmarked
    side: int        # +1: traffic keeps right of the centre line, -1: left
    cross: tuple | None  # side road: (z, half width, skew dz/dx, arm: -1 left, +1 right, 0 both)
    ends: bool       # the road ends at the side road (a T junction)

    def centre(self, z):
        """x and slope of the centre line at z. Past the range of the cubic it goes on straight."""
        reach = min(80.0, 1.2 / (abs(self.bend) + 40 * abs(self.twist) + 1e-9))
        near = np.clip(z, -10.0, reach)
        x = self.offset + near * (self.slope + near * (self.bend / 2 + near * (self.twist / 6)))
        slope = self.slope + near * (self.bend + near * (self.twist / 2))
        return x + slope * (z - near), slope

    def across(self, x, z):
        """Signed metres right of the centre line, square to it."""
        centre, slope = self.centre(z)
        return (x - centre) / np.sqrt(1 + slope * slope)

    def branch(self, x, z, across):
        """Metres inside the side road's edge, negative outside."""
        if self.cross is None:
            return np.full_like(across, -1e3)
        at, half, skew, arm = self.cross
        inside = half - np.abs(z - at - skew * x) / math.sqrt(1 + skew * skew)
        return np.minimum(inside, across * arm + self.half) if arm else inside

    def inside(self, x, z):
        """Metres inside the edge of any road (negative: outside), for arrays x and z."""
        across = self.across(x, z)
        main = self.half - np.abs(across)
        if self.ends:
            main = np.minimum(main, self.cross[0] - z)
        side = self.branch(x, z, across)
        # A smooth maximum joins the two: it rounds the corners of the junction as kerbs do.
        near = np.maximum(4.0 - np.abs(main - side), 0)
        return np.maximum(main, side) + near * near / 16


def survey(seed, category):
    """The ground plan of scene (seed, category), an own stream of chance: tests may ask for it."""
    rng = np.random.default_rng([seed, CATEGORIES.index(category), 0])
    side = 1 if rng.random() < 0.7 else -1
    width = rng.uniform(2.8, 3.7)
    if category == "um":
        lanes, half = 2, width
        stand = side * (width / 2 + rng.uniform(-0.7, 0.7))
    elif category == "umm":
        lanes = int(rng.integers(3, 5))
        half = width * lanes / 2
        stand = width * (rng.integers(lanes) + 0.5) - half + rng.uniform(-0.7, 0.7)
    else:  # one lane to two and a half; now and then the camera stands beside the road, as in a drive
        lanes, half = 0, rng.uniform(1.5, 4.2)
        stand = rng.uniform(-1, 1) * (half - 0.8 if rng.random() < 0.8 else half + 2.5)
    slope = rng.uniform(-1, 1) * (0.08 if rng.random() < 0.5 else 0.4)
    bend = rng.uniform(-1, 1) * (0.003 if rng.random() < 0.4 else 0.022)
    twist = rng.uniform(-1, 1) * (0 if rng.random() < 0.6 else 0.0006)
    cross = None
    if rng.random() < 0.4:
        cross = (rng.uniform(13, 42), rng.uniform(2, 4.5), rng.uniform(-0.3, 0.3),
                 int(rng.integers(-1, 2)))
    ends = cross is not None and rng.random() < 0.35
    if ends:
        cross = cross[:3] + (0,)
    return Plan(-stand * math.sqrt(1 + slope * slope), slope, bend, twist, half, lanes, side,
                cross, ends)


# ---- the camera ------------------------------------------------------------------------------

class Camera(NamedTuple):
    focal: float         # pixels
    centre: tuple        # principal point (x, y) in edge coordinates
    height: float        # metres above the ground
    turn: np.ndarray     # [3, 3] rotation from camera axes (x right, y down, z ahead) to the ground's

    def rays(self, height, width):
        """Ground-frame direction (x, y, z) of every FINE pixel, each [FINE*height, FINE*width]."""
        a = (((np.arange(width * FINE) + 0.5) / FINE - self.centre[0]) / self.focal)[None, :]
        b = (((np.arange(height * FINE) + 0.5) / FINE - self.centre[1]) / self.focal)[:, None]
        return [(r[0] * a + r[1] * b + r[2]).astype(np.float32) for r in self.turn]

    def calibration(self):
        """KITTI's text. A bird's-eye view takes floor(P2 . R0 . inverse(Tr_cam_to_road) . point)
        for a 1-BASED pixel, so edge coordinate e is u = e + 1: hence the + 1 on both centres."""
        lens = [self.focal, 0, self.centre[0] + 1, 0,
                0, self.focal, self.centre[1] + 1, 0,
                0, 0, 1, 0]
        t = self.turn
        rows = {f"P{i}": lens for i in range(4)}  # one camera stands in for KITTI's four
        rows["R0_rect"] = np.eye(3).ravel()
        # There is no laser and no inertial unit: only the usual axes, so that readers find the keys.
        rows["Tr_velo_to_cam"] = [0, -1, 0, 0, 0, 0, -1, 0, 1, 0, 0, 0]
        rows["Tr_imu_to_velo"] = np.eye(3, 4).ravel()
        rows["Tr_cam_to_road"] = np.column_stack([t, [0, -self.height, 0]]).ravel()
        return "".join(f"{key}: {' '.join(f'{v:.12e}' for v in row)}\n" for key, row in rows.items())


def mount(rng, height, width):
    """A camera for a picture of this size, with the horizon somewhere in its middle third."""
    # A tall picture gets a narrow view instead of a fish-eye one.
    focal = max(width, 2 * height) * rng.uniform(0.5, 0.68)
    centre = (width * rng.uniform(0.47, 0.53), height * rng.uniform(0.44, 0.52))
    pitch = math.atan((centre[1] - height * rng.uniform(0.26, 0.56)) / focal)
    roll = rng.uniform(-0.02, 0.02)
    cp, sp, cr, sr = math.cos(pitch), math.sin(pitch), math.cos(roll), math.sin(roll)
    tilt = np.array([[1, 0, 0], [0, cp, sp], [0, -sp, cp]])
    return Camera(focal, centre, rng.uniform(1.2, 2.3),
                  tilt @ np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]]))


# ---- what the scene looks like ---------------------------------------------------------------

def grey(rng, low, high, tint=6):
    """A nearly grey colour, float [3], 0-255."""
    return rng.uniform(low, high) + rng.uniform(-tint, tint, 3)


def near(rng, rgb, spread=14):
    """A colour near a given one: brightness varies more than hue."""
    return np.array(rgb) + rng.uniform(-spread, spread) + rng.uniform(-spread, spread, 3) / 2


LAND = [(88, 112, 56), (70, 92, 44), (140, 134, 88), (122, 102, 78), (150, 140, 122), (128, 126, 122)]
WALLS = [(196, 182, 156), (150, 84, 66), (206, 204, 198), (120, 118, 116), (176, 150, 110), (92, 84, 80)]
PAINTS = [(34, 34, 38), (200, 202, 206), (120, 124, 130), (150, 24, 26), (30, 52, 110), (84, 88, 92)]
LEAVES = [(58, 84, 36), (44, 66, 34), (92, 104, 44), (120, 92, 40)]
MAIN, KERB, MARK, PATCH, STRIP, FIELD = 0, 1, 2, 3, 4, 6  # palette rows; STRIP, FIELD: left, + 1 right


class Look(NamedTuple):
    """The scene's materials and weather."""
    palette: np.ndarray   # float32 [8, 3], the rows named above
    grain: np.ndarray     # float32 [8], how strongly each row's texture shows
    strips: np.ndarray    # widths of the strip beside the road, left and right, metres
    kerb: float           # width of the kerb line, metres
    paved: np.ndarray     # whether each strip has joints between slabs
    sun: tuple            # ground metres (x, z) a shadow moves for each metre of height
    shadow: float         # 0 overcast .. 0.6 hard sunshine
    haze: np.ndarray      # colour of the far distance
    clear: float          # metres at which haze has half hidden a thing
    noise: np.ndarray     # float32 [256, 256] smooth noise of about -1..1 that tiles


def smooth_noise(rng):
    """[256, 256] float32 noise in three octaves, seamless: each octave wraps round before it grows."""
    total = np.zeros((256, 256), np.float32)
    for cells, weight in ((16, 0.5), (64, 0.4), (256, 0.35)):
        step = 256 // cells
        rough = np.pad(rng.uniform(-1, 1, (cells, cells)).astype(np.float32), 2, mode="wrap")
        grown = Image.fromarray(rough).resize([rough.shape[0] * step] * 2, Image.Resampling.BICUBIC)
        total += weight * np.asarray(grown)[2 * step:-2 * step, 2 * step:-2 * step]
    return total


def sample(noise, a, b):
    """Noise at array coordinates (a, b), one cell of the tile per unit."""
    return noise[b.astype(np.int32) & 255, a.astype(np.int32) & 255]


def dress(rng):
    """Choose materials and weather. Every strip differs from the road in colour, or has a kerb."""
    road = [grey(rng, 62, 90), grey(rng, 85, 125), grey(rng, 120, 160), near(rng, (122, 108, 94))]
    road = road[rng.integers(4)]
    strips, grains, paved, kerb = [], [], [], 0.0
    for _ in "lr":
        if rng.random() < 0.55:  # a pavement, often of almost the road's own grey
            if rng.random() < 0.6:
                tone = road + rng.choice([-1, 1]) * rng.uniform(8, 30) + rng.uniform(-5, 5, 3)
            else:
                tone = near(rng, [(158, 118, 100), (176, 172, 164)][rng.integers(2)])
            kerb = max(kerb, rng.uniform(0.16, 0.3))
            grains.append(6)
        else:
            tone = near(rng, LAND[rng.integers(len(LAND) - 1)])
            kerb = max(kerb, rng.choice([0, 0.2]))
            grains.append(16)
        strips.append(tone)
        paved.append(grains[-1] == 6)
    edge = road + (45 if road.mean() < 125 else rng.choice([-50, 40])) + rng.uniform(-10, 10)
    fields = [near(rng, LAND[rng.integers(len(LAND))]) for _ in "lr"]
    paint = (226, 222, 214) if rng.random() < 0.9 else (222, 184, 70)
    palette = [road, edge, near(rng, paint, 8), road + rng.choice([-1, 1]) * rng.uniform(8, 18)]
    # Lateral and forward shift keep away from zero, so that every sunny scene shows its shadows.
    sun = tuple(rng.uniform(0.4, 1.8, 2) * rng.choice([-1, 1], 2))
    sunny = rng.random() < 0.65
    haze = np.array([205, 215, 226]) + rng.uniform(-14, 10, 3)
    return Look(np.array(palette + strips + fields, np.float32),
                np.array([rng.uniform(3, 10), 8, 12, 8] + grains + [18, 18], np.float32),
                rng.uniform(1.2, 4.5, 2), kerb, np.array(paved), sun,
                rng.uniform(0.3, 0.6) if sunny else 0.0, haze, rng.uniform(90, 400),
                smooth_noise(rng))


# ---- the ground and the sky, per pixel -------------------------------------------------------

def marks(rng, plan, x, z, across):
    """Where paint lies on the road, bool [N]."""
    if not plan.lanes:
        return np.zeros(across.shape, bool)
    thick, lane = rng.uniform(0.06, 0.1), 2 * plan.half / plan.lanes
    dash, gap = rng.uniform(2, 6), rng.uniform(3, 8)
    dashed = (z + rng.uniform(0, 9)) % (dash + gap) < dash
    solid = np.zeros(across.shape, bool)
    if rng.random() < 0.7:
        solid |= np.abs(np.abs(across) - plan.half + 0.3) < thick
    lines = np.abs((across + plan.half + lane / 2) % lane - lane / 2) < thick
    lines &= np.abs(across) < plan.half - lane / 2
    middle = np.abs(across) < lane / 4
    if rng.random() < 0.3:  # no overtaking: the line in the middle is not broken
        dashed = dashed | middle
    paint = solid | (lines & dashed)
    if plan.cross:  # paint stops short of a junction, at a zebra crossing in half of them
        before = plan.cross[0] + plan.cross[2] * x - z - plan.cross[1]
        paint &= plan.branch(x, z, across) < -1.5
        if plan.ends:
            paint &= before > 0
        if rng.random() < 0.5:
            zebra = (before > 2) & (before < 5.5) & (np.abs(across) < plan.half - 0.2)
            paint = np.where(zebra, across % 1.0 < 0.5, paint)
    return paint


def ground_colour(rng, plan, look, x, z, inside):
    """Colours [N, 3] of ground points, in even light. `inside` is plan.inside(x, z)."""
    across = plan.across(x, z)
    right = (across > 0).astype(np.int8)
    kind = np.where(-inside < look.kerb + look.strips.astype(np.float32)[right], STRIP, FIELD) + right
    kind[inside > -look.kerb] = KERB
    kind[inside > 0] = MAIN
    for _ in range(rng.integers(4)):  # repaired rectangles: an edge in the road that is not its edge
        at, left = rng.uniform(4, 30), rng.uniform(-plan.half, plan.half)
        patch = (np.abs(z - at) < rng.uniform(0.5, 4)) & (np.abs(across - left) < rng.uniform(0.4, 1.5))
        kind[patch & (inside > 0)] = PATCH
    fine, wide = sample(look.noise, x * 22, z * 22), sample(look.noise, x * 3, z * 1.5)
    worn = rng.uniform(-0.6, 0.1)
    kind[marks(rng, plan, x, z, across) & (inside > 0.05) & (fine + wide > worn - 0.4)] = MARK
    fade = 20 / (20 + z)  # far off, one pixel averages many grains
    shade = look.grain[kind] * (fine * fade + wide)
    if plan.half > 2:  # tyres polish two tracks in every lane
        lane = 2 * plan.half / max(plan.lanes, 2)
        track = np.abs(np.abs((across + plan.half) % lane - lane / 2) - 0.8)
        shade += np.where(kind == MAIN, np.maximum(0.4 - track, 0) * rng.uniform(-25, 25), 0)
    joint = ((inside % 0.6 < 0.04) | (z % 0.6 < 0.04)) & look.paved[right] & (kind - right == STRIP)
    shade -= np.where(joint, 26 * fade, 0)
    return look.palette[kind] + shade[:, None]


def sky_colour(rng, look, dx, dy, dz):
    """Colours [N, 3] along rays that meet no ground: a gradient, clouds, hills at the horizon."""
    rise = -dy / dz
    zenith = look.haze * rng.uniform([0.5, 0.65, 0.85], [1.05, 1.04, 1.02])
    up = np.clip(rise * 2.2, 0, 1)[:, None]
    colour = look.haze + (zenith - look.haze) * up
    far = 30 / (np.maximum(rise, 0) + 0.12)
    cloud = np.clip(sample(look.noise, far * dx / dz + 90, far) + rng.uniform(-0.6, 0.4), 0, 0.6)
    colour += (np.array([248, 248, 250]) - colour) * cloud[:, None] * (0.3 + up)
    for low, tone in ((0.06, 0.25), (0.03, 0.55)):  # two ridges, the nearer one darker
        ridge = rng.uniform(-low / 2, low) + 0.02 * sample(look.noise, dx / dz * 30 + 300 * low, 0 * dx)
        ridge += 0.008 * sample(look.noise, dx / dz * 200, 0 * dx + 9)
        hill = look.haze + (near(rng, LEAVES[rng.integers(4)]) - look.haze) * tone
        colour[rise < ridge] = hill
    return colour


# ---- things that stand on the ground ---------------------------------------------------------

class Patch(NamedTuple):
    """Polygons of one colour, outlines running anticlockwise as seen from outside."""
    shapes: np.ndarray        # [count, corners, 3] in the ground frame
    colour: np.ndarray | None  # None: unseen, only casts a shadow
    casts: bool = True


SIDES = np.array([[0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7], [4, 5, 6, 7]])
REAR, RIGHT, FRONT, LEFT, TOP = range(5)
ANGLES = [k * math.pi / 4 for k in range(8)]
CIRCLE = np.array([[math.cos(a), math.sin(a)] for a in ANGLES])


def beside(plan, z, across, way=1):
    """A place on the ground: (x, z, unit vector along the road), `across` metres off its centre."""
    x, slope = plan.centre(z)
    length = math.sqrt(1 + slope * slope)
    tx, tz = slope / length, 1 / length
    return x + across * tz, z - across * tx, way * tx, way * tz


def block(place, low, high):
    """Five faces [5, 4, 3] of a block at a place. low, high: (rear, front, half width, height), m."""
    x, z, tx, tz = place
    corners = [(x + along * tx + side * tz, -up, z + along * tz - side * tx)
               for rear, front, half, up in (low, high)
               for along, side in ((rear, -half), (rear, half), (front, half), (front, -half))]
    return np.array(corners)[SIDES]


def on_face(face, spots):
    """Shapes [k, n, 3] of spots [k, n, 2] given as fractions (rightwards, up) of a face [4, 3]."""
    a, b = np.asarray(spots, float)[..., :1], np.asarray(spots, float)[..., 1:]
    return (face[0] * (1 - a) + face[1] * a) * (1 - b) + (face[3] * (1 - a) + face[2] * a) * b


def boxes(*edges):
    """Spots for on_face from (left, right, bottom, top) of each rectangle."""
    return [[(l, b), (r, b), (r, t), (l, t)] for l, r, b, t in edges]


def painted(faces, colour, light):
    """The faces of a block as patches, each side in its own light."""
    return [Patch(face[None], colour * light[i]) for i, face in enumerate(faces)]


def building(rng, place, light):
    """A house or a block of flats; its long side lies along the road."""
    half, deep, storeys = rng.uniform(4, 7), rng.uniform(4, 6), int(rng.integers(1, 5))
    high, wall = 3.1 * storeys, near(rng, WALLS[rng.integers(len(WALLS))])
    faces = block(place, (-half, half, deep, 0), (-half, half, deep, high))
    patches = painted(faces, wall, light)
    glass = grey(rng, 40, 110, 10)
    columns = int(rng.integers(3, 6))
    panes = boxes(*[((c + 0.25) / columns, (c + 0.75) / columns, (r + 0.3) / storeys, (r + 0.8) / storeys)
                    for c in range(columns) for r in range(storeys)])
    for face in (faces[REAR], faces[RIGHT], faces[LEFT]):
        patches.append(Patch(on_face(face, panes), glass, False))
    if rng.random() < 0.6:
        roof = block(place, (-half, half, deep, high), (-half, half, 0.05, high + rng.uniform(1.5, 3.5)))
        patches += painted(roof, near(rng, [(120, 62, 48), (82, 80, 84)][rng.integers(2)]), light)
    return patches


def car(rng, place, light):
    """A saloon, an estate or a van, seen from anywhere."""
    long, roof, bonnet, boot = [(2.2, 1.45, 1.2, 0.5), (2.1, 1.5, 1.1, 0.05), (2.5, 2.2, 0.7, 0.0)][
        rng.choice(3, p=[0.45, 0.35, 0.2])]
    paint, dark = near(rng, PAINTS[rng.integers(len(PAINTS))], 10), np.array([24, 24, 26.0])
    under = block(place, (0.3 - long, long - 0.3, 0.75, 0), (0.3 - long, long - 0.3, 0.75, 0.4))
    body = block(place, (-long, long, 0.88, 0.3), (0.08 - long, long - 0.15, 0.84, 0.88))
    cabin = block(place, (boot - long, long - bonnet, 0.8, 0.88),
                  (boot * 1.8 + 0.1 - long, long - bonnet * 1.7, 0.64, roof))
    patches = painted(under, dark, light) + painted(body, paint, light) + painted(cabin, paint, light)
    hull = block(place, (-long, long, 0.9, 0), (-long, long, 0.9, 0.9))
    wheels = [CIRCLE * (0.33 / (2 * long), 0.33 / 0.9) + (at, 0.36) for at in (0.2, 0.8)]
    glass = np.array([58, 66, 76.0]) * rng.uniform(0.6, 1.3)
    for side in (LEFT, RIGHT):
        patches.append(Patch(on_face(hull[side], wheels), dark, False))
        patches.append(Patch(on_face(cabin[side], boxes((0.08, 0.48, 0.1, 0.85), (0.53, 0.92, 0.1, 0.85))),
                             glass, False))
    for end in (REAR, FRONT):
        lamp = np.array([190, 20, 24.0] if end == REAR else [236, 236, 220])
        patches.append(Patch(on_face(cabin[end], boxes((0.07, 0.93, 0.12, 0.88))), glass * 1.1, False))
        patches.append(Patch(on_face(body[end], boxes((0.03, 0.2, 0.5, 0.85), (0.8, 0.97, 0.5, 0.85))),
                             lamp, False))
        patches.append(Patch(on_face(body[end], boxes((0.36, 0.64, 0.25, 0.45))), grey(rng, 200, 230), False))
        patches.append(Patch(on_face(body[end], boxes((0.0, 1.0, 0.0, 0.16))), dark * 1.6, False))
    return patches


def tree(rng, place, light):
    """A trunk and a crown of leafy discs turned to the camera, darker below."""
    x, z = place[:2]
    trunk, crown, size = rng.uniform(1.8, 3.5), near(rng, LEAVES[rng.integers(4)]), rng.uniform(1.4, 2.8)
    thick = 0.06 * size
    patches = painted(block(place, (-thick, thick, thick, 0), (-thick, thick, thick, trunk + size)),
                      np.array([70, 56, 44.0]), light)
    count = 14
    where = rng.uniform(-1, 1, (count, 3)) * (size * 0.7, size * 0.8, size * 0.7)
    where = where[np.argsort(-where[:, 1])]  # y points down: the lowest, darkest leaves come first
    radius = rng.uniform(0.35, 0.6, count) * size
    for i, (spot, r) in enumerate(zip(where + (x, -trunk - size, z), radius)):
        disc = np.stack([CIRCLE[:, 0], -CIRCLE[:, 1], 0 * CIRCLE[:, 0]], 1) * r + spot
        flat = np.stack([CIRCLE[:, 0], 0 * CIRCLE[:, 0], CIRCLE[:, 1]], 1) * r * 0.8 + spot
        patches.append(Patch(disc[None], crown * (0.65 + 0.6 * i / count) * light[TOP], False))
        patches.append(Patch(flat[None], None))
    return patches


def pole(rng, place, light):
    """A street lamp or a road sign."""
    high, thin = (rng.uniform(5, 8), 0.08) if rng.random() < 0.6 else (2.4, 0.04)
    patches = painted(block(place, (-thin, thin, thin, 0), (-thin, thin, thin, high)), grey(rng, 80, 150), light)
    if high > 3:
        arm = block(place, (-0.1, 0.1, 1.0, high), (-0.1, 0.1, 1.0, high + 0.12))
        return patches + painted(arm, grey(rng, 80, 150), light)
    board = block(place, (-0.02, 0.02, 0.35, high - 0.7), (-0.02, 0.02, 0.35, high))
    return patches + painted(board, near(rng, [(190, 40, 36), (40, 80, 170), (225, 225, 225)][rng.integers(3)]), light)


def person(rng, place, light):
    patches = []
    for colour, half, low, high in ((grey(rng, 30, 90, 15), 0.16, 0, 0.85),
                                    (rng.uniform(30, 210, 3), 0.24, 0.85, 1.45),
                                    (near(rng, (170, 130, 110)), 0.1, 1.48, 1.75)):
        patches += painted(block(place, (-0.12, 0.12, half, low), (-0.12, 0.12, half * 0.9, high)), colour, light)
    return patches


def hedge(rng, place, light):
    """A length of hedge, wall or fence along the road."""
    high, colour = rng.uniform(0.6, 1.9), near(rng, (LEAVES + WALLS)[rng.integers(10)])
    return painted(block(place, (-2.6, 2.6, 0.3, 0), (-2.6, 2.6, 0.25, high)), colour, light)


def furnish(rng, plan, look):
    """Everything standing in the scene: a list of patch lists, the farthest first."""
    # Which sides the sun lights, in the order REAR, RIGHT, FRONT, LEFT, TOP.
    bright = [1.0, 0.7] if look.shadow else [0.9, 0.82]
    light = [bright[int(look.sun[1] < 0)], bright[int(look.sun[0] > 0)], bright[int(look.sun[1] > 0)],
             bright[int(look.sun[0] < 0)], 1.05]
    found = []

    def put(maker, place, room=None):
        """Stand a thing at a place unless, with `room`, it would be within so many metres of a road."""
        x, z, tx, tz = place
        if room is not None:
            reach = np.array([(0, 0), (-1, -1), (-1, 1), (1, -1), (1, 1)]) * room
            px, pz = x + reach @ (tx, tz), z + reach @ (tz, -tx)
            if plan.inside(px, pz).max() > -0.3:
                return
        found.append((x * x + z * z, maker(rng, place, light)))

    town, green, lamps, busy = rng.random(4) * (1.0, 0.8, 0.4, 0.5)
    margin = look.kerb + look.strips
    for side in (-1, 1):
        edge = plan.half + margin[int(side > 0)]
        setback, walled, parked = rng.uniform(0, 8), rng.random() < 0.35, rng.random() < 0.35
        for z in np.arange(-4, 110, 15) + rng.uniform(-1, 1):
            if rng.random() < town:
                put(building, beside(plan, z, side * (edge + setback + 6.3)), 6.5)
        for z in np.arange(-6, 80, 7) + rng.uniform(-2, 2):
            if rng.random() < green:
                put(tree, beside(plan, z, side * (edge + rng.uniform(-0.6, 5))), 0.4)
            if rng.random() < lamps / 2:
                put(pole, beside(plan, z + 3, side * (plan.half + look.kerb + 0.5)), 0.1)
            if rng.random() < busy / 4:
                put(person, beside(plan, max(z, 5), side * (plan.half + rng.uniform(0.6, 2.5))), 0.2)
        if walled:
            for z in np.arange(-4, 70, 5.2):
                put(hedge, beside(plan, z, side * (edge + 0.3)), 0.4)
        stop = plan.cross[0] - plan.cross[1] - 4 if plan.cross else 60
        if parked and plan.half > 2:
            for z in np.arange(6, min(stop, 60), 6.5) + rng.uniform(0, 3):
                place = beside(plan, z, side * (plan.half - rng.uniform(-0.4, 1.1)), rng.choice([-1, 1]))
                if rng.random() < 0.6 and (abs(place[0]) > 2 or z > 9):
                    put(car, place)
    lanes = max(plan.lanes, 2 if plan.half > 2.3 else 1)
    for lane in range(lanes):  # traffic: each lane has its own way to go
        middle = (lane + 0.5) * 2 * plan.half / lanes - plan.half
        z, stop = rng.uniform(9, 30), plan.cross[0] if plan.ends else 90
        while z < stop:
            if rng.random() < busy:
                put(car, beside(plan, z, middle + rng.uniform(-0.3, 0.3), 1 if middle * plan.side > 0 else -1))
            z += rng.uniform(9, 40)
    for _ in range(rng.integers(0, 12)):  # the land behind
        spot = (rng.uniform(-60, 60), rng.uniform(25, 110), 0.0, 1.0)
        if rng.random() < 0.5:
            put(tree, spot, 3)
        else:
            put(building, spot, 8)
    found.sort(key=lambda thing: -thing[0])
    return [patches for _, patches in found]


# ---- drawing ---------------------------------------------------------------------------------

def clipped(corners):
    """The part of a polygon of (x, y, depth) that lies ahead of the NEAR plane."""
    kept = []
    for a, b in zip(corners[-1:] + corners[:-1], corners):
        if (a[2] < NEAR) != (b[2] < NEAR):
            k = (NEAR - a[2]) / (b[2] - a[2])
            kept.append([p + k * (q - p) for p, q in zip(a, b)])
        if b[2] >= NEAR:
            kept.append(b)
    return kept


def paint(canvas, camera, shapes, colours, cull):
    """Fill polygons (each [n, 3], ground frame) in order; `cull` leaves out those seen from behind."""
    if not shapes:
        return
    points = np.concatenate(shapes) + (0, camera.height, 0)
    seen = (points @ camera.turn).tolist()  # the inverse rotation: row vectors times `turn`
    (cx, cy), scale, start = camera.centre, camera.focal * FINE, 0
    for shape, colour in zip(shapes, colours):
        corners = seen[start:start + len(shape)]
        start += len(shape)
        if min(c[2] for c in corners) < NEAR:
            corners = clipped(corners)
            if len(corners) < 3:
                continue
        flat = [(x / d * scale + cx * FINE - 0.5, y / d * scale + cy * FINE - 0.5) for x, y, d in corners]
        if cull and sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(flat, flat[1:] + flat[:1])) >= 0:
            continue
        canvas.polygon(flat, fill=colour)


def shadows(size, camera, things, sun):
    """Float32 0..1 [H, W]: how much of the sun is missing on the ground, were everything ground."""
    mask = Image.new("L", size)
    shapes = []
    for patches in things:
        for patch in patches:
            if patch.casts:  # slide each corner down the sun's ray until it meets y = 0
                up = -patch.shapes[..., 1]
                shapes += list(np.stack([patch.shapes[..., 0] + sun[0] * up, 0 * up,
                                         patch.shapes[..., 2] + sun[1] * up], -1))
    paint(ImageDraw.Draw(mask), camera, shapes, [255] * len(shapes), cull=False)
    return np.asarray(mask.filter(ImageFilter.GaussianBlur(FINE * 0.6)), np.float32) / 255


def draw_things(size, camera, things, look):
    """RGBA picture of all things on a clear ground; alpha 255 marks what hides the ground."""
    shapes, colours = [], []
    for patches in things:
        for patch in patches:
            if patch.colour is None:
                continue
            far = max(float(patch.shapes[0, :, 2].mean()), 0)
            rgb = patch.colour + (look.haze - patch.colour) * (far / (far + 3 * look.clear))
            fill = tuple(int(v) for v in np.clip(rgb, 0, 255)) + (255,)
            shapes += list(patch.shapes)
            colours += [fill] * len(patch.shapes)
    layer = Image.new("RGBA", size)
    paint(ImageDraw.Draw(layer), camera, shapes, colours, cull=True)
    return np.asarray(layer)


def expose(rng, image):
    """From light to the camera's picture: float [H, W, 3] about 0..255 to uint8."""
    height, width = image.shape[:2]
    warm = rng.uniform(-0.1, 0.1)
    image = image * (rng.uniform(0.55, 1.2) * np.array([1 + warm, 1, 1 - warm], np.float32))
    image = (image - 110) * rng.uniform(0.75, 1.15) + 110
    y, x = np.ogrid[-1:1:height * 1j, -1:1:width * 1j]
    image *= (1 - rng.uniform(0, 0.25) * (x * x + y * y))[..., None]
    image = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    image = np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 0.6))), np.float32)
    image = image + rng.standard_normal(image.shape, np.float32) * rng.uniform(0.5, 5)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def shrink(fine):
    """Mean over FINE x FINE blocks of [H, W, ...]."""
    h, w = fine.shape[0] // FINE, fine.shape[1] // FINE
    return fine.reshape(h, FINE, w, FINE, *fine.shape[2:]).mean((1, 3), dtype=np.float32)


def truth(mine, valid):
    """Truth picture uint8 [H, W, 3] from fine bool masks: a pixel is what most of its area is."""
    out = np.empty((mine.shape[0] // FINE, mine.shape[1] // FINE, 3), np.uint8)
    out[:] = NOT_ROAD
    out[shrink(mine) >= 0.5] = ROAD
    out[shrink(valid) <= 0.5] = NOT_VALID
    return out


def draw(seed, category="uu", height=HEIGHT, width=WIDTH):
    """One Scene of height x width pixels. The same arguments always give the same scene."""
    if category not in CATEGORIES:
        raise ValueError(f"category must be one of {', '.join(CATEGORIES)}, not {category!r}")
    if height < SMALLEST or width < SMALLEST:
        raise ValueError(f"a scene needs at least {SMALLEST} x {SMALLEST} pixels, not {height} x {width}")
    rng = np.random.default_rng([seed, CATEGORIES.index(category), 1])
    plan, camera, look = survey(seed, category), mount(rng, height, width), dress(rng)
    things, size = furnish(rng, plan, look), (width * FINE, height * FINE)

    dx, dy, dz = camera.rays(height, width)
    ground = dy > 1e-3  # the last thousandth below the horizon is kilometres off: leave it to the sky
    reach = camera.height / dy[ground]
    x, z = reach * dx[ground], reach * dz[ground]
    inside = plan.inside(x, z)

    picture = np.empty((*dy.shape, 3), np.float32)
    picture[~ground] = sky_colour(rng, look, dx[~ground], dy[~ground], np.maximum(dz[~ground], 1e-3))
    colour = ground_colour(rng, plan, look, x, z, inside)
    if look.shadow:
        dark = look.shadow * shadows(size, camera, things, look.sun)[ground]
        colour *= 1 - dark[:, None] * np.array([1, 0.95, 0.85], np.float32)  # the sky still lights it
    else:  # overcast: only what hangs low darkens the ground under it
        colour *= 1 - 0.5 * shadows(size, camera, things, (0, 0))[ground][:, None]
    colour += (look.haze.astype(np.float32) - colour) * (z / (z + 3 * look.clear))[:, None]
    picture[ground] = colour

    layer = draw_things(size, camera, things, look)
    hides = layer[..., 3] > 0
    rows, columns = np.nonzero(hides)
    # Flat fills would give things away as painted: they get a little grain too.
    grain = sample(look.noise, columns * 2.0, rows * 2.0) * 7
    picture[hides] = layer[hides][:, :3] + grain[:, None]

    road, lane, valid = (np.zeros(dy.shape, bool) for _ in range(3))
    across = plan.across(x, z)
    road[ground] = inside > 0
    lane[ground] = (inside > 0) & (across * plan.side > 0) & (np.abs(across) < plan.half)
    valid[ground] = (z < FAR) | (inside < -1)
    valid |= hides | ~ground
    return Scene(expose(rng, shrink(picture)), truth(road & ~hides, valid),
                 truth(lane & ~hides, valid) if category == "um" else None, camera.calibration())


# ---- the data set on disk --------------------------------------------------------------------

def write(root, train=TRAIN, test=TEST, height=HEIGHT, width=WIDTH, seed=SEED):
    """Write `train` scenes with truth and `test` without into the new folder `root`.

    Everything goes to a temporary folder beside it first, and gets its name when complete.
    """
    root = Path(root)
    if train < 1 or test < 0:
        raise ValueError(f"need at least 1 training and 0 testing scenes, not {train} and {test}")
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        raise FileExistsError(f"{root} exists and is not an empty folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as beside_it:
        whole = Path(beside_it) / "whole"  # a folder of its own has ordinary permissions
        for part, (split, total) in enumerate((("training", train), ("testing", test))):
            for number, category in enumerate(CATEGORIES):
                count = (total + len(CATEGORIES) - 1 - number) // len(CATEGORIES)
                # Own seeds for each split: no testing scene is also a training scene.
                seeds = np.random.SeedSequence([seed, part, number]).generate_state(count, np.uint64)
                for i in range(count):
                    save(whole / split, f"{category}_%s{i:06d}", split == "training",
                         draw(int(seeds[i]), category, height, width))
        if root.exists():
            root.rmdir()
        whole.rename(root)


def save(folder, name, with_truth, scene):
    """Write one scene's files; `name` has a %s where KITTI's truth files say road_ or lane_."""
    for kind in ("image_2", "calib") + (("gt_image_2",) if with_truth else ()):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    Image.fromarray(scene.image).save(folder / "image_2" / f"{name % ''}.png")
    (folder / "calib" / f"{name % ''}.txt").write_text(scene.calib)
    if with_truth:
        Image.fromarray(scene.road).save(folder / "gt_image_2" / f"{name % 'road_'}.png")
        if scene.lane is not None:
            Image.fromarray(scene.lane).save(folder / "gt_image_2" / f"{name % 'lane_'}.png")
