"""python metrics.py RESULTS_DIR TRAINING_DIR [--space image|bev]: score confidence maps as the KITTI Road benchmark does.

RESULTS_DIR holds 8-bit grey maps, from any method, named as the ground truth in TRAINING_DIR/gt_image_2 and of the size
of the image, or 400 wide and 800 high: these are bird's-eye views already. TRAINING_DIR is KITTI Road's training folder.

The second half of this file is the benchmark. The first is one confusion matrix, and what training prints follows from
it. The measures are those of Long, Shelhamer and Darrell 2015, section 5: with n[t, p] the number of pixels of true class
t predicted as class p, and t_i the sum of row i,

    pixel accuracy            sum_i n[i, i] / sum_i t_i
    mean accuracy             mean over i of n[i, i] / t_i
    mean IoU                  mean over i of n[i, i] / (t_i + sum_j n[j, i] - n[i, i])
    frequency-weighted IoU    sum_i t_i * IoU_i / sum_i t_i

A class that is neither in the truth nor predicted has no IoU, one that is not in the truth no accuracy: it is nan, and
does not count in the means.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from pathlib import Path

import numpy as np
import torch

from data import Sample, calibration_of, files_in, open_picture, read_kitti_label
from fcn import IGNORE
from vgg import InputError

# Bird's-eye view of the benchmark: metres right of the camera and ahead of it, in square cells.
RIGHT, AHEAD, CELL = (-10.0, 10.0), (6.0, 46.0), 0.05
BEV = (800, 400)  # rows (the first is the farthest) and columns, which follow from these
URBAN = ("um_road", "umm_road", "uu_road")  # the sets that the benchmark's headline pools


def confusion(predicted: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Confusion matrix int64 [C, C] on the tensors' device: row = truth, column = prediction, exact integers.

    predicted, labels: integer tensors of one shape, values 0 ... C-1; pixels labelled IGNORE are left out.
    Matrices of several images add up.
    """
    pairs = labels.long() * num_classes + predicted.long()
    # Ignored pixels go to a bin of their own at the end, which is cut off: cheaper than selecting the others first.
    pairs = torch.where(labels == IGNORE, num_classes * num_classes, pairs)
    counts = torch.bincount(pairs.flatten(), minlength=num_classes * num_classes + 1)
    return counts[:-1].view(num_classes, num_classes)


def scores(matrix: torch.Tensor) -> dict:
    """The measures of a confusion matrix: floats in 0..1 or nan where nothing counts, and `iou`, a list of C floats."""
    n = matrix.double().cpu()
    hit, truth, predicted = n.diagonal(), n.sum(1), n.sum(0)
    iou = hit / (truth + predicted - hit)      # 0/0 = nan: absent from both
    accuracy = hit / truth                     # 0/0 = nan: absent from the truth
    return {
        "pixel_acc": (hit.sum() / truth.sum()).item(),
        "mean_acc": accuracy.nanmean().item(),
        "mean_iou": iou.nanmean().item(),
        "fw_iou": ((truth * iou.nan_to_num()).sum() / truth.sum()).item(),
        "iou": iou.tolist(),
    }


TITLES = {"pixel_acc": "pixel accuracy", "mean_acc": "mean accuracy", "mean_iou": "mean IoU",
          "fw_iou": "frequency-weighted IoU"}


def table(columns: dict[str, dict], classes: list[str]) -> str:
    """Text table of `scores` results in per cent: one column for each entry, one line for each measure and class."""
    width = max(len(title) for title in [*TITLES.values(), *(f"IoU {name}" for name in classes)])
    lines = [" " * width + "".join(f"  {name:>10}" for name in columns)]
    for key, title in TITLES.items():
        lines.append(f"{title:{width}}" + "".join(f"  {100 * column[key]:10.2f}" for column in columns.values()))
    for i, name in enumerate(classes):
        cells = ("absent" if math.isnan(column["iou"][i]) else f"{100 * column['iou'][i]:.2f}"
                 for column in columns.values())
        lines.append(f"{'IoU ' + name:{width}}" + "".join(f"  {cell:>10}" for cell in cells))
    return "\n".join(lines)


# ---- KITTI Road: confidences in the image ---------------------------------------------------------------------------

def histogram(confidence: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """int64 [2, 256]: how often each confidence occurs among valid pixels that are not road (row 0) and road (row 1).

    confidence: uint8, 255 times the probability of road; labels: 0, 1 or IGNORE; tensors of one shape, on one device.
    All 256 thresholds of the benchmark follow from it. Histograms of several images add up: pixels are pooled.
    """
    bins = torch.where(labels == IGNORE, 512, labels.long() * 256 + confidence.long())
    return torch.bincount(bins.flatten(), minlength=513)[:512].view(2, 256)


def benchmark(counts: torch.Tensor) -> dict:
    """Measures of the benchmark (Fritsch, Kuehnl and Geiger 2013, section IV) from a histogram [2, 256].

    Road is where the confidence is at least a threshold i/255, i = 0 ... 255. MaxF is the largest F = 2 PRE REC /
    (PRE + REC); PRE, REC, FPR, FNR and `threshold` are those where it is reached, the lowest such threshold. AP is
    the mean over r = 0, 0.1 ... 1 of the largest PRE where REC >= r. Floats in 0..1; all nan if no pixel is road,
    FPR also if all are.
    """
    names = ("MaxF", "AP", "PRE", "REC", "FPR", "FNR", "threshold")
    # Pixels at or above each threshold: sums from the top. Exact integers.
    false, true = np.cumsum(counts.cpu().numpy()[:, ::-1], axis=1)[:, ::-1]
    negative, positive = false[0], true[0]
    if positive == 0:
        return dict.fromkeys(names, float("nan"))
    precision = true / np.maximum(true + false, 1)  # 0 where nothing is called road
    f = 2 * true / (true + false + positive)        # 2 PRE REC / (PRE + REC), without its 0/0
    best = int(f.argmax())
    ap = np.mean([precision[10 * true >= r * positive].max() for r in range(11)])
    fpr = false[best] / negative if negative else float("nan")
    values = (f[best], ap, precision[best], true[best] / positive, fpr, 1 - true[best] / positive, best / 255)
    return {name: float(value) for name, value in zip(names, values, strict=True)}


class RoadScores:
    """The benchmark's measures over many images, by space ("image" or "bev") and category ("um_road" ...)."""

    def __init__(self):
        self.counts, self.images = {}, {}

    def add(self, space: str, category: str, confidence: torch.Tensor, labels: torch.Tensor):
        key = space, category
        self.counts[key] = self.counts.get(key, 0) + histogram(confidence, labels).cpu()
        self.images[key] = self.images.get(key, 0) + 1

    def add_sample(self, sample: Sample, confidence: torch.Tensor, labels: torch.Tensor):
        """The maps [H, W] of a sample: in the image and, where it is KITTI's and has a calibration, in bird's-eye view."""
        category, calibration = sample.group or "all", calibration_of(sample.image)
        self.add("image", category, confidence, labels)
        if sample.group and calibration.is_file():
            cells = bird_cells(calibration, *labels.shape).to(labels.device)
            self.add("bev", category, bird_view(confidence, cells, 0), bird_view(labels, cells, IGNORE))

    def __add__(self, other: RoadScores) -> RoadScores:
        """The scores of the images of both."""
        both = RoadScores()
        for total, a, b in ((both.counts, self.counts, other.counts), (both.images, self.images, other.images)):
            total.update({key: a.get(key, 0) + b.get(key, 0) for key in a | b})
        return both

    def pooled(self, space: str = "image") -> dict:
        """`benchmark` of all that was added in a space."""
        return benchmark(sum(counts for (where, _), counts in self.counts.items() if where == space))

    def results(self) -> dict[tuple[str, str], dict]:
        """`benchmark` and the number of `images` by (space, category), and URBAN if all three road sets are there."""
        counts, images = dict(self.counts), dict(self.images)
        for space in ("image", "bev"):
            keys = [(space, category) for category in URBAN]
            if all(key in counts for key in keys):
                counts[space, "URBAN"] = sum(counts[key] for key in keys)
                images[space, "URBAN"] = sum(images[key] for key in keys)
        order = ("um_lane", *URBAN, "URBAN")
        place = {category: i for i, category in enumerate(order)}  # others, as of own classes, come first
        return {key: {**benchmark(counts[key]), "images": images[key]}
                for key in sorted(counts, key=lambda key: (key[0] != "image", place.get(key[1], -1), key[1]))}


SPACES = {"image": "image", "bev": "bird's eye"}


def road_table(results: dict[tuple[str, str], dict], title: str = "") -> str:
    """Text table of RoadScores.results in per cent, one line for each space and category; the threshold as it is."""
    lines = [f"{title:20}  images    MaxF      AP     PRE     REC     FPR     FNR  threshold"]
    for (space, category), values in results.items():
        cells = " ".join(f"{100 * values[name]:7.2f}" for name in ("MaxF", "AP", "PRE", "REC", "FPR", "FNR"))
        lines.append(f"{category:10}{SPACES[space]:10}"
                     f"{values['images']:8} {cells}  {values['threshold']:9.3f}")
    return "\n".join(lines)


def report(results: dict[str, dict], classes: list[str]) -> str:
    """All tables of some results by name: of `scores` and, where a result has them under "road", of RoadScores."""
    roads = [road_table(result["road"], name) for name, result in results.items() if "road" in result]
    return "\n\n".join([table(results, classes), *roads])


def columns(result: dict, classes: list[str]) -> dict[str, float]:
    """Such a result as columns of a log: one measure each."""
    row = {key: result[key] for key in TITLES}
    if "MaxF" in result:
        row["MaxF"] = result["MaxF"]
    row.update({f"iou_{name}": value for name, value in zip(classes, result["iou"], strict=True)})
    for (space, category), values in result.get("road", {}).items():
        row.update({f"{name}_{category}_{space}": values[name] for name in ("MaxF", "AP")})
    return row


# ---- KITTI Road: bird's-eye view ------------------------------------------------------------------------------------

def read_calibration(path: Path) -> dict[str, np.ndarray]:
    """The matrices of a KITTI calibration file, by name, as flat float64 arrays. Raises InputError naming the file."""
    try:
        lines = Path(path).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such calibration file; the bird's-eye view needs the benchmark's folder calib") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a calibration file ({getattr(error, 'strerror', 'not text')})") from None
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
    """[3, 3] float64: (x, z, 1) on the ground, metres right and ahead, to the image's (u, v, w), 1-based pixels u/w, v/w.

    P2 R0_rect inverse(Tr_cam_to_road), of which the column of the height y falls away: the road is the plane y = 0.
    Raises InputError naming the file.
    """
    matrices = read_calibration(calibration)

    def square(name, *shape):
        values = matrices.get(name)
        if values is None or values.size != shape[0] * shape[1] or not np.isfinite(values).all():
            raise InputError(f"{calibration}: {name} is missing or not {shape[0] * shape[1]} numbers")
        full = np.eye(4)
        full[:shape[0], :shape[1]] = values.reshape(shape)
        return full

    camera, rectify = square("P2", 3, 4), square("R0_rect", 3, 3)
    try:
        from_road = np.linalg.inv(square("Tr_cam_to_road", 3, 4))
    except np.linalg.LinAlgError:
        raise InputError(f"{calibration}: Tr_cam_to_road cannot be inverted") from None
    return (camera @ rectify @ from_road)[:3, [0, 2, 3]]


def bird_cells(calibration: Path, height: int, width: int) -> torch.Tensor:
    """int64 [800, 400]: for each cell the image pixel that its centre is seen at, counted row by row, or -1 if none is.

    `height` and `width` are those of the image. Raises InputError naming the file.
    """
    x = RIGHT[0] + CELL * (np.arange(BEV[1]) + 0.5)
    z = AHEAD[1] - CELL * (np.arange(BEV[0]) + 0.5)
    x, z = np.meshgrid(x, z)
    with np.errstate(all="ignore"):  # a cell in the camera's own plane has w = 0; comparisons with nan are False
        u, v, w = np.moveaxis(np.stack([x, z, np.ones_like(x)], axis=-1) @ homography(calibration).T, -1, 0)
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


# ---- KITTI Road: a folder of maps -----------------------------------------------------------------------------------

def score_folder(results: Path, training: Path, space: str | None = None) -> RoadScores:
    """Scores of all maps in a folder; nothing at all if a single one is amiss: a partial score looks like a whole one.

    The task (road or lane) is that of the maps; every ground truth of the task must have its map. `space` is by
    default "bev" if the maps are bird's-eye views, else "image". Raises InputError.
    """
    if (training / "training").is_dir():
        training = training / "training"
    maps = {file.name: file for file in files_in(results)}
    truths = {file.name: file for file in files_in(training / "gt_image_2")
              if re.fullmatch(r"(um_lane|um_road|umm_road|uu_road)_\d+\.png", file.name)}
    if not truths:
        raise InputError(f"{training / 'gt_image_2'}: no ground truth such as um_road_000000.png")
    if not maps:
        raise InputError(f"{results}: holds no confidence maps")
    for name in maps:
        if name not in truths:
            raise InputError(f"{maps[name]}: there is no ground truth of this name in {training / 'gt_image_2'}")
    tasks = {name.split("_")[1] for name in maps}
    truths = {name: file for name, file in truths.items() if name.split("_")[1] in tasks}
    missing = [name for name in truths if name not in maps]
    if missing:
        more = f" and for {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(f"{results / missing[0]}: there is no map for this ground truth{more}; the "
                         f"held-out images alone are scored by predict.py --data {training.parent} --split val")

    found, asked = RoadScores(), space
    for name, file in truths.items():
        category, task, number = file.stem.split("_")
        calibration = calibration_of(training / "image_2" / f"{category}_{number}.png")
        truth, confidence = torch.from_numpy(read_kitti_label(file)), read_confidence(maps[name])
        if confidence.shape not in (truth.shape, BEV):
            raise InputError(f"{maps[name]}: is {confidence.shape[1]}x{confidence.shape[0]}; its ground truth is "
                             f"{truth.shape[1]}x{truth.shape[0]}, a bird's-eye view 400x800")
        above = confidence.shape == BEV != truth.shape
        if above and asked == "image":
            raise InputError(f"{maps[name]}: is a bird's-eye view; it cannot be scored with --space image")
        space = space or ("bev" if above else "image")
        if not asked and above != (space == "bev"):
            raise InputError(f"{maps[name]}: bird's-eye views and maps of the image's size are mixed; say --space bev")
        if space == "bev":
            cells = bird_cells(calibration, *truth.shape)
            truth = bird_view(truth, cells, IGNORE)
            confidence = confidence if above else bird_view(confidence, cells, 0)
        found.add(space, f"{category}_{task}", confidence, truth)
    return found


def read_confidence(path: Path) -> torch.Tensor:
    """An 8-bit grey picture as uint8 [H, W]. Raises InputError."""
    picture = open_picture(path, whole_bytes=True)
    if picture.mode != "L":
        raise InputError(f"{path}: a confidence map must be 8-bit grey, this one is {picture.mode}")
    return torch.from_numpy(np.array(picture))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for input that cannot be used (one line on stderr)."""
    parser = argparse.ArgumentParser(description=__doc__.split("The second half")[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"metrics.py: error: {message}\n")
    parser.add_argument("results", metavar="RESULTS_DIR", type=Path, help="folder of maps, um_road_000000.png ...")
    parser.add_argument("training", metavar="TRAINING_DIR", type=Path, help="KITTI's training folder")
    parser.add_argument("--space", choices=("image", "bev"),
                        help="where to score: in the image (default for maps of its size), or from above as the server")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the table there, too, as fractions")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    options = parser.parse_args(argv)
    try:
        results = score_folder(options.results, options.training, options.space).results()
        print(road_table(results))
        if options.csv:
            rows = [{"category": category, "space": space, **values} for (space, category), values in results.items()]
            with open(options.csv, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    except (InputError, OSError) as error:
        if options.debug:
            raise
        print(f"metrics.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
