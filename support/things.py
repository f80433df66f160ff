"""What stands in a synthetic scene: buildings, cars and trees, as lists of coloured quadrilaterals.

A thing is a list of (quads [k, 4, 3] in ground metres, colour [3] or [k, 3]). A quad runs anticlockwise as seen from
outside. Later patches of a thing lie over earlier ones.
"""

from __future__ import annotations

import math

import numpy as np

from support.ground import LEAVES, shade

ROOFS = [(120, 62, 48), (82, 80, 84)]
WALLS = [(196, 182, 156), (150, 84, 66), (206, 204, 198), (120, 118, 116), (176, 150, 110), (92, 84, 80)]
CARS = [(34, 34, 38), (200, 202, 206), (120, 124, 130), (150, 24, 26), (30, 52, 110), (84, 88, 92)]
SIDES = [[0, 1, 5, 4], [1, 2, 6, 5], [2, 3, 7, 6], [3, 0, 4, 7], [4, 5, 6, 7]]  # rear, right, front, left, top
DISC = np.array([(10, 0, 0), (7, -7, 0), (0, -10, 0), (-7, -7, 0), (-10, 0, 0), (-7, 7, 0), (0, 10, 0), (7, 7, 0)])[
    [[0, 1, 2, 3], [0, 3, 4, 7], [4, 5, 6, 7]]] / 10


def beside(plan, z, across, way=1):
    """A place on the ground: (x, z, unit vector along the road), `across` metres off its centre."""
    x, slope = plan.centre(z)
    length = math.sqrt(1 + slope * slope)
    return x + across / length, z - across * slope / length, way * slope / length, way / length


def block(place, low, high):
    """Five faces [5, 4, 3] of a block at a place. low, high: (rear, front, half width, height), m."""
    x, z, tx, tz = place
    return np.array([(x + along * tx + side * tz, -up, z + along * tz - side * tx)
                     for rear, front, half, up in (low, high)
                     for along, side in ((rear, -half), (rear, half), (front, half), (front, -half))])[SIDES]


def on_faces(faces, *boxes):
    """Rectangles [., 4, 3] on each of the faces [k, 4, 3]: (left, right, low, high) as fractions of it."""
    a, b = np.array(boxes)[:, [0, 1, 1, 0], None], np.array(boxes)[:, [2, 2, 3, 3], None]
    p, q, r, s = np.moveaxis(faces[:, None, None], 3, 0)
    return ((p * (1 - a) + q * a) * (1 - b) + (s * (1 - a) + r * a) * b).reshape(-1, 4, 3)


def building(rng, place):
    """A house or a block of flats; its long side lies along the road."""
    half, deep, storeys, columns = rng.uniform(4, 7), rng.uniform(4, 6), rng.integers(1, 5), rng.integers(3, 6)
    high = 3.1 * storeys
    walls = block(place, (-half, half, deep, 0), (-half, half, deep, high))
    roof = block(place, (-half, half, deep, high), (-half, half, 0.05, high + rng.choice([0.1, 1.5, 3.5])))
    panes = on_faces(walls[:4], *[((i + 0.25) / columns, (i + 0.75) / columns, (j + 0.3) / storeys,
                                   (j + 0.8) / storeys) for i in range(columns) for j in range(storeys)])
    return [(walls, shade(rng, WALLS)), (roof, shade(rng, ROOFS)), (panes, (70, 74, 80))]


def car(rng, place):
    """A saloon, an estate or a van, seen from anywhere."""
    long, top, bonnet, boot = rng.choice([(2.2, 1.45, 1.2, 0.5), (2.1, 1.5, 1.1, 0.05), (2.5, 2.2, 0.7, 0.0)])
    body = block(place, (-long, long, 0.88, 0.3), (0.08 - long, long - 0.15, 0.84, 0.88))
    cabin = block(place, (boot - long, long - bonnet, 0.8, 0.88),
                  (boot * 1.8 + 0.1 - long, long - bonnet * 1.7, 0.64, top))
    under = block(place, (0.3 - long, long - 0.3, 0.75, 0), (0.3 - long, long - 0.3, 0.75, 0.4))
    wheels = on_faces(body[1:4:2], (0.12, 0.26, -0.5, 0.45), (0.74, 0.88, -0.5, 0.45))
    panes = on_faces(cabin[:4], (0.07, 0.49, 0.1, 0.86), (0.52, 0.93, 0.1, 0.86))
    lamps = on_faces(body[0:3:2], (0.03, 0.2, 0.5, 0.85), (0.8, 0.97, 0.5, 0.85))
    paint, dark = shade(rng, CARS, 10), (26, 26, 28)
    return [(under, dark), (body, paint), (wheels, dark), (cabin, paint), (panes, shade(rng, [(60, 68, 78)])),
            (lamps[:2], (190, 20, 24)), (lamps[2:], (236, 236, 220))]


def tree(rng, place):
    """A trunk and a crown of leafy discs turned to the camera, darker below."""
    (x, z), size, trunk, thick = place[:2], rng.uniform(1.4, 2.8), rng.uniform(1.8, 3.5), rng.uniform(0.08, 0.18)
    where = rng.uniform(-size, size, (14, 3)) * (0.7, 0.8, 0.7) + (x, -trunk - size, z)
    where = where[np.argsort(-where[:, 1])]  # y points down: the lowest, darkest leaves come first
    crown = DISC * rng.uniform(0.35, 0.6, (14, 1, 1, 1)) * size + where[:, None, None]
    return [(block(place, (-thick, thick, thick, 0), (-thick, thick, thick, trunk + size)), (70, 56, 44)),
            (crown.reshape(-1, 4, 3), np.linspace(0.8, 1.5, 42)[:, None] * shade(rng, LEAVES))]


def furnish(rng, plan):
    """Everything standing in the scene, the farthest first."""
    spots = []  # (maker, place, metres that it must be away from any road)
    town, green, busy = rng.random(3) * (1.0, 0.7, 0.4)
    for side in (-1, 1):
        for maker, often, step, away, room in (
                (building, town, 15, plan.half + rng.uniform(8, 18), 7.5),
                (tree, green, 7, plan.half + rng.uniform(1, 6), 0.8),
                (car, rng.choice([0, 0, 0.6]), 6.5, plan.half + rng.uniform(-1, 0), -1.5)):  # parked
            for z in np.arange(-6, 100, step) + rng.uniform(0, 3):
                if rng.random() < often:
                    place = beside(plan, z, side * (away + rng.uniform(0, 0.8)), rng.choice([-1, 1]))
                    spots.append((maker, place, room))
    lanes = max(plan.lanes, 2 if plan.half > 2.3 else 1)
    for middle in (np.arange(lanes) + 0.5) * 2 * plan.half / lanes - plan.half:  # traffic, lane by lane
        for z in np.cumsum(rng.uniform(9, 36, 4))[rng.random(4) < busy]:
            spots.append((car, beside(plan, z, middle + rng.uniform(-0.3, 0.3), np.sign(middle) * plan.side or 1), -9))
    spots.sort(key=lambda spot: -spot[1][0] ** 2 - spot[1][1] ** 2)
    return [maker(rng, place) for maker, place, room in spots if plan.inside(*place[:2]) < -room]
