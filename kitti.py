"""KITTI Road (Fritsch, Kuehnl and Geiger 2013): its files, its bird's-eye view and its measures.

    python kitti.py RESULTS_DIR TRAINING_DIR     score confidence maps as the benchmark does

RESULTS_DIR holds 8-bit grey confidence maps from any method: brighter is more likely road. Each
is named like its ground truth in TRAINING_DIR/gt_image_2. It has the size of its image, or is a
bird's-eye view of 800x400 (height x width). TRAINING_DIR is KITTI Road's folder training.

The images have three categories: um (urban marked) has one marked lane in each direction, umm
(urban multiple marked) has several, and uu (urban unmarked) has no lane markings. The ground truth
of um_000000.png is um_road_000000.png. Images of um have a second one, um_lane_000000.png, in which
the ego lane is the "road". The score URBAN pools the road of all three categories.
"""

from __future__ import annotations

import math
import re
import zipfile
from collections import defaultdict
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np

from support.console import InputError, Parser, shown
from support.datasets.images import open_mask
from support.files import SIGNATURE, atomic
from support.labels import IGNORE, DataSet, Sample

TASKS = {"road": ("um", "umm", "uu"), "lane": ("um",)}  # the categories with this ground truth

# ---- files ----


def find(root: Path, options) -> DataSet:
    """The DataSet of the folder that holds `training`; its validation set is empty.

    options.task    the ground truth to use: "road" or "lane"

    Raises InputError if there is no such ground truth.
    """
    task = options.task
    samples = samples_of(root / "training", task)
    if not samples:
        raise InputError(
            f"{root / 'training' / 'gt_image_2'}: no ground truth for --task {task}, such as "
            f"um_{task}_000000.png"
        )
    groups = [sample.group for sample in samples]
    counts = ", ".join(f"{name} {groups.count(f'{name}_{task}')}" for name in TASKS[task])
    summary = f"{root}: KITTI Road, task {task} ({counts})"
    return DataSet(summary, [f"not {task}", task], samples, [], read_label, kitti=True)


def samples_of(training: Path, task: str) -> list[Sample]:
    """The samples of a task, sorted by name, each image once.

    The two ground truths of um images contradict each other, so a task has only one of them.
    """
    name = re.compile(rf"({'|'.join(TASKS[task])})_{task}_(\d+)\.png")
    samples = []
    for label in sorted((training / "gt_image_2").glob("*.png")):
        if match := name.fullmatch(label.name):
            category, number = match.groups()
            image = training / "image_2" / f"{category}_{number}.png"
            samples.append(Sample(image, label, f"{category}_{task}"))
    return samples


def read_label(path: Path, unmapped=None) -> np.ndarray:
    """Label map uint8 [H, W] of a ground truth: 0 not road, 1 road, or IGNORE. Raises InputError.

    Magenta (255, 0, 255) is road, red (255, 0, 0) is not road, and black is ignored. Any other
    colour is an error, so `unmapped`, which readers of other data sets fill, stays empty.
    """
    image = open_mask(path)
    if image.mode != "RGB":
        raise InputError(f"{path}: KITTI ground truth is RGB, this picture is {image.mode}")
    pixels = np.asarray(image)
    red, green, blue = np.moveaxis(pixels, 2, 0)
    odd = (green > 0) | (red % 255 > 0) | (blue % 255 > 0) | (blue > red)
    if odd.any():  # for example after a resize that blends colours
        raise InputError(
            f"{path}: has the colour {tuple(pixels[odd][0].tolist())}; KITTI's ground truth has "
            "only magenta (255, 0, 255), red (255, 0, 0) and black"
        )
    return np.where(red == 0, IGNORE, blue > 0).astype(np.uint8)


def read_confidence(path: Path) -> np.ndarray:
    """A confidence map uint8 [H, W]: higher is more likely road. Raises InputError."""
    image = open_mask(path)
    if image.mode != "L":  # a mask of class ids is a palette picture
        raise InputError(f"{path}: a confidence map must be 8-bit grey, this one is {image.mode}")
    return np.asarray(image)


def write_submission(archive: Path, maps: list[Path]):
    """Write the zip file for the benchmark's server: bird's-eye views, without folders.

    Raises InputError if it cannot be written.
    """
    with atomic(archive) as file, zipfile.ZipFile(file, "w") as content:
        content.comment = SIGNATURE.encode()
        for path in maps:  # PNGs are already compressed
            content.write(path, path.name)


def is_submission(archive: Path) -> bool:
    """Whether `write_submission` wrote this file."""
    with suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(archive) as content:
        return content.comment == SIGNATURE.encode()
    return False


# ---- bird's-eye view ----
#
# The benchmark's server scores the road as seen from above. The view shows the ground from 6 to 46
# m ahead of the camera and 10 m to either side, in cells of 5 cm.

RIGHT = (-10.0, 10.0)  # metres right of the camera
AHEAD = (6.0, 46.0)  # metres ahead of it
CELL = 0.05  # side of a cell, metres
BEV = (800, 400)  # rows, the farthest first, and columns


def calibration_of(image: Path) -> Path:
    """The path of the calibration file of an image in image_2; the file may not exist."""
    return image.parent.parent / "calib" / f"{image.stem}.txt"


def homography(calibration: Path) -> np.ndarray:
    """Float64 [3, 3], the homography from the ground to the image: (x, z, 1) to (u, v, w).

    The point x metres right of the camera and z metres ahead is seen in pixel (u/w, v/w), counted
    from 1. Inverse(Tr_cam_to_road) maps the road's coordinates to the camera's, R0_rect rectifies
    and P2 projects them. The road is the plane y = 0, so the column of y drops out. Raises
    InputError.
    """

    def matrix(name, rows, columns):
        full = np.eye(4)
        full[:rows, :columns] = np.array(numbers[name].split(), float).reshape(rows, columns)
        return full

    try:
        lines = calibration.read_text(encoding="ascii").splitlines()
        numbers = dict(line.split(":", 1) for line in lines if line.strip())
        from_road = np.linalg.inv(matrix("Tr_cam_to_road", 3, 4))
        to_image = matrix("P2", 3, 4) @ matrix("R0_rect", 3, 3) @ from_road
    except OSError as error:
        raise InputError(
            f"{calibration}: cannot be read ({error.strerror}); the bird's-eye view needs "
            "KITTI Road's folder calib"
        ) from None
    except (KeyError, ValueError):
        raise InputError(
            f"{calibration}: is not a calibration of KITTI Road with the lines P2: (12 numbers), "
            "R0_rect: (9) and Tr_cam_to_road: (12); unpack the data set again"
        ) from None
    return to_image[:3, [0, 2, 3]]


def bird_cells(calibration: Path, height: int, width: int) -> np.ndarray:
    """Int64 [800, 400], read-only: for each cell, the image's pixel (counted row by row) that shows
    its centre, or -1.

    height, width    of the image

    Raises InputError.
    """
    return cells_of(homography(calibration).tobytes(), height, width)


@lru_cache(maxsize=8)  # 2.4 MiB each; the images of one drive share a calibration
def cells_of(to_image: bytes, height: int, width: int) -> np.ndarray:
    """`bird_cells` for the bytes of a homography."""
    x = RIGHT[0] + CELL * (np.arange(BEV[1]) + 0.5)  # of each column
    z = AHEAD[1] - CELL * (np.arange(BEV[0]) + 0.5)[:, None]  # of each row
    u, v, w = (a * x + b * z + c for a, b, c in np.frombuffer(to_image).reshape(3, 3))
    with np.errstate(all="ignore"):  # w may be 0; comparisons with nan are False
        u, v = u / w, v / w
        seen = (w > 0) & (1 <= u) & (u <= width) & (1 <= v) & (v <= height)
        pixel = (np.floor(v) - 1) * width + np.floor(u) - 1
    cells = np.where(seen, pixel, -1).astype(np.int64)
    cells.setflags(write=False)  # all callers share it
    return cells


def bird_view(values: np.ndarray, cells: np.ndarray, outside: int) -> np.ndarray:
    """The bird's-eye view [800, 400] of a map [H, W], of the same dtype.

    cells      from `bird_cells`
    outside    value of the cells that the image does not show
    """
    return np.where(cells < 0, values.dtype.type(outside), values.ravel()[cells])


# ---- measures ----

MEASURES = ("MaxF", "AP", "PRE", "REC", "FPR", "FNR", "threshold")
SPACES = {"image": "image", "bev": "bird's eye"}
URBAN = ("um_road", "umm_road", "uu_road")
CATEGORIES = ("all", "um_lane", *URBAN, "URBAN")  # "all": images of other data sets


def histogram(confidence: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Int64 [2, 256]: how many non-road pixels (row 0) and road pixels (row 1) have each
    confidence. Ignored pixels are left out.

    confidence    uint8: higher is more likely road
    truth         uint8 of the same shape: 0, 1 or IGNORE

    Histograms of several images can be added.
    """
    bins = truth.astype(np.int64) * 256 + confidence
    bins[truth == IGNORE] = 512
    return np.bincount(bins.ravel(), minlength=513)[:-1].reshape(2, 256)


def maxf_ap(counts: np.ndarray) -> dict[str, float]:
    """The benchmark's MEASURES of a `histogram`, 0..1.

    A pixel is predicted as road if its confidence is at least the threshold i/255. Each threshold,
    i = 0 ... 255, gives a precision PRE and a recall REC.

    MaxF         the largest F = 2 PRE REC / (PRE + REC) of all thresholds
    threshold    the lowest threshold that reaches MaxF; PRE, REC, FPR and FNR are taken there
    AP           the mean over r = 0, 0.1 ... 1 of the largest PRE at which REC >= r

    All are nan if no pixel is road; FPR is nan if every pixel is.

    Source: Fritsch, Kuehnl and Geiger, A New Performance Measure and Evaluation Benchmark for Road
    Detection Algorithms, ITSC 2013, section IV. The benchmark's development kit computes the same,
    but rounding errors affect its comparisons of REC and r; here they are exact.
    """
    # Pixels at or above each threshold, as exact integers: cumulative sums from the top.
    false, true = counts[:, ::-1].cumsum(axis=1)[:, ::-1]
    negative, positive = false[0], true[0]
    if positive == 0:
        return dict.fromkeys(MEASURES, math.nan)
    precision = true / np.maximum(true + false, 1)  # 0 where no pixel is predicted as road
    recall = true / positive
    f = 2 * true / (true + false + positive)  # the same F, but never 0/0
    best = int(f.argmax())
    values = (
        f[best],
        np.mean([precision[10 * true >= r * positive].max() for r in range(11)]),
        precision[best],
        recall[best],
        false[best] / negative if negative else math.nan,
        1 - recall[best],
        best / 255,
    )
    return {name: float(value) for name, value in zip(MEASURES, values, strict=True)}


def histograms_of(sample: Sample, confidence: np.ndarray, truth: np.ndarray) -> list[tuple]:
    """[(space, category, `histogram`)] of one image: in image space and, for a KITTI sample with a
    calibration, in the bird's-eye view. Raises InputError.

    confidence, truth    uint8 [H, W], as for `histogram`
    """
    found = [("image", sample.group or "all", histogram(confidence, truth))]
    calibration = calibration_of(sample.image)
    if sample.group and calibration.is_file():
        cells = bird_cells(calibration, *truth.shape)
        above = histogram(bird_view(confidence, cells, 0), bird_view(truth, cells, IGNORE))
        found.append(("bev", sample.group, above))
    return found


def road_scores(histograms: list[tuple]) -> dict[tuple[str, str], dict]:
    """{(space, category): `maxf_ap` and the number of "images"} of many images.

    histograms    (space, category, histogram) for each image and space

    The pixels of each category are pooled. URBAN is added if all three road categories are there.
    """
    grouped = defaultdict(list)
    for space, category, counts in histograms:
        grouped[space, category].append(counts)
    for space in SPACES:
        parts = [grouped.get((space, category)) for category in URBAN]
        if all(parts):
            grouped[space, "URBAN"] = sum(parts, [])
    keys = [(space, category) for space in SPACES for category in CATEGORIES]
    return {
        key: {**maxf_ap(sum(grouped[key])), "images": len(grouped[key])}
        for key in keys
        if key in grouped
    }


def road_table(scores: dict[tuple[str, str], dict], title: str = "") -> str:
    """Text table of `road_scores` in per cent, one line per space and category."""
    lines = [f"{title:20}  images    MaxF      AP     PRE     REC     FPR     FNR  threshold"]
    for (space, category), values in scores.items():
        cells = " ".join(f"{100 * values[name]:7.2f}" for name in MEASURES[:-1])
        lines.append(
            f"{category:10}{SPACES[space]:10}{values['images']:8} {cells}"
            f"  {values['threshold']:9.3f}"
        )
    return "\n".join(lines)


# ---- scoring a folder ----


def score_folder(results: Path, training: Path) -> dict[tuple[str, str], dict]:
    """`road_scores` of the confidence maps in a folder.

    results     maps named like the ground truth; the names give the task, road or lane
    training    KITTI Road's folder training

    Bird's-eye views get only bird's-eye scores; maps of the image's size get scores in both spaces,
    as in training. Raises InputError if a file cannot be used, or if a ground truth of the task has
    no map: a partial score would look like a complete one.
    """
    for folder in (results, training / "gt_image_2"):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give RESULTS_DIR and .../training")
    samples = []
    for task in TASKS:
        found = samples_of(training, task)
        if any((results / sample.label.name).exists() for sample in found):
            samples += found
    if not samples:
        raise InputError(
            f"{results}: holds no map named like a ground truth in {training / 'gt_image_2'}; "
            "predict.py --kitti writes maps into the folders confidence and bev below its --out: "
            "give one of them"
        )
    histograms = []
    for sample in samples:
        path = results / sample.label.name
        if not path.exists():
            raise InputError(
                f"{path}: is missing; every ground truth needs a map: predict.py --kitti DIR "
                "--split train writes all, predict.py --data DIR scores only the validation set"
            )
        truth, confidence = read_label(sample.label), read_confidence(path)
        if confidence.shape == BEV:
            cells = bird_cells(calibration_of(sample.image), *truth.shape)
            above = histogram(confidence, bird_view(truth, cells, IGNORE))
            found = [("bev", sample.group, above)]
        elif confidence.shape == truth.shape:
            found = histograms_of(sample, confidence, truth)
        else:
            raise InputError(
                f"{path}: is {shown(confidence.shape)} (height x width), its ground truth is "
                f"{shown(truth.shape)}"
            )
        if histograms and histograms[0][0] != found[0][0]:
            raise InputError(
                f"{path}: is a map of another kind than the maps before it (image or bird's eye)"
            )
        histograms += found
    return road_scores(histograms)


def main():
    """Run the command line. Exits with status 2 for unusable input, 130 if stopped."""
    parser = Parser("kitti.py", description=__doc__)
    parser.add_argument(
        "results", metavar="RESULTS_DIR", type=Path, help="folder of confidence maps"
    )
    parser.add_argument(
        "training", metavar="TRAINING_DIR", type=Path, help="KITTI Road's folder training"
    )
    options = parser.parse_args()
    try:
        print(road_table(score_folder(options.results, options.training)))
    except (InputError, OSError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        parser.exit(130, "stopped\n")


if __name__ == "__main__":
    main()
