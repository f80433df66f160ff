"""KITTI Road's bird's-eye view: the road as seen from above, which is where the benchmark's server
scores it.

The view shows the ground from 6 to 46 m ahead of the camera and 10 m to either side, in cells of 5
cm. The calibration of an image says which pixel sees each cell.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from support.console import InputError

RIGHT, AHEAD, CELL = (
    (-10.0, 10.0),
    (6.0, 46.0),
    0.05,
)  # metres right of the camera and ahead of it, and the side of a cell
BEV = (800, 400)  # rows (the first is the farthest) and columns, which follow from these


def calibration_of(image: Path) -> Path:
    """The calibration file of a picture in a folder image_2 of KITTI Road; it need not exist."""
    return image.parent.parent / "calib" / f"{image.stem}.txt"


def read_calibration(path: Path) -> dict[str, np.ndarray]:
    """The matrices of a KITTI calibration file, by name, as flat float64 arrays. Raises InputError
    naming the file.
    """
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such calibration file; the bird's-eye view needs the benchmark's folder calib"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read as a calibration file ({getattr(error, 'strerror', 'not text')})"
        ) from None
    matrices = {}
    for line in filter(str.strip, lines):
        name, colon, numbers = line.partition(":")
        try:
            matrices[name.strip()] = np.array([float(number) for number in numbers.split()])
        except ValueError:
            colon = ""
        if not colon:
            raise InputError(f"{path}: a line is not NAME: NUMBERS but {line[:60]!r}")
    return matrices


def homography(calibration: Path) -> np.ndarray:
    """[3, 3] float64: (x, z, 1) on the ground, metres right and ahead, to the image's (u, v, w),
    1-based pixels u/w, v/w.

    P2 R0_rect inverse(Tr_cam_to_road), of which the column of the height y falls away: the road is
    the plane y = 0. Raises InputError naming the file.
    """
    matrices = read_calibration(calibration)

    def square(name, *shape):
        values = matrices.get(name)
        if values is None or values.size != shape[0] * shape[1] or not np.isfinite(values).all():
            raise InputError(
                f"{calibration}: {name} is missing or not {shape[0] * shape[1]} numbers"
            )
        full = np.eye(4)
        full[: shape[0], : shape[1]] = values.reshape(shape)
        return full

    camera, rectify = square("P2", 3, 4), square("R0_rect", 3, 3)
    try:
        from_road = np.linalg.inv(square("Tr_cam_to_road", 3, 4))
    except np.linalg.LinAlgError:
        raise InputError(f"{calibration}: Tr_cam_to_road cannot be inverted") from None
    return (camera @ rectify @ from_road)[:3, [0, 2, 3]]


def bird_cells(calibration: Path, height: int, width: int) -> torch.Tensor:
    """int64 [800, 400]: for each cell the image pixel that its centre is seen at, counted row by
    row, or -1 if none is.

    `height` and `width` are those of the image. Raises InputError naming the file.
    """
    x = RIGHT[0] + CELL * (np.arange(BEV[1]) + 0.5)
    z = AHEAD[1] - CELL * (np.arange(BEV[0]) + 0.5)
    x, z = np.meshgrid(x, z)
    with np.errstate(
        all="ignore"
    ):  # a cell in the camera's own plane has w = 0; comparisons with nan are False
        u, v, w = np.moveaxis(
            np.stack([x, z, np.ones_like(x)], axis=-1) @ homography(calibration).T, -1, 0
        )
        u, v = u / w, v / w
        seen = (w > 0) & (1 <= u) & (u <= width) & (1 <= v) & (v <= height)
    pixel = (np.floor(np.where(seen, v, 1)) - 1) * width + np.floor(np.where(seen, u, 1)) - 1
    return torch.from_numpy(np.where(seen, pixel, -1).astype(np.int64))


def bird_view(values: torch.Tensor, cells: torch.Tensor, outside: int) -> torch.Tensor:
    """An image [H, W, 3] or a map [H, W] of it, seen from above: [800, 400, 3] or [800, 400].

    `outside` stands in the cells that the image does not cover.
    """
    above = values.flatten(0, 1)[cells.clamp(min=0)]
    above[cells < 0] = outside
    return above
