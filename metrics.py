"""The confusion matrix, and every measure that follows from it; and KITTI Road's measures, from
confidences.

    python metrics.py RESULTS_DIR TRAINING_DIR [--space image|bev]     score confidence maps as the benchmark does

RESULTS_DIR holds 8-bit grey maps, from any method, named as the ground truth in
TRAINING_DIR/gt_image_2. They have the size of the image, or are 400 wide and 800 high: then they
are bird's-eye views. TRAINING_DIR is KITTI Road's training folder.

The first half of this file is the confusion matrix, the second half is the benchmark.
"""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import numpy as np
import torch

from data import read_kitti_label
from kitti import BEV, bird_cells, bird_view, calibration_of
from support.console import InputError, Parser
from support.datasets.images import allow_large_pictures, files_in, open_picture
from support.files import write_csv
from support.labels import IGNORE, DataSet, Sample

TITLES = {
    "pixel_acc": "pixel accuracy",
    "mean_acc": "mean accuracy",
    "mean_iou": "mean IoU",
    "fw_iou": "frequency-weighted IoU",
}
URBAN = ("um_road", "umm_road", "uu_road")  # pooled into the benchmark's URBAN score
SPACES = {"image": "image", "bev": "bird's eye"}


def confusion(predicted: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Confusion matrix int64 [C, C] on the tensors' device: n[t, p] pixels of true class t are
    predicted as class p.

    predicted, labels: integer tensors of one shape, values 0 ... C-1; pixels labelled IGNORE are
    left out. The counts are exact, and the matrices of several images add up.
    """
    pairs = labels.long() * num_classes + predicted.long()
    # Ignored pixels go to a bin of their own at the end, which is cut off: cheaper than selecting
    # the others first.
    pairs = torch.where(labels == IGNORE, num_classes * num_classes, pairs)
    counts = torch.bincount(pairs.flatten(), minlength=num_classes * num_classes + 1)
    return counts[:-1].view(num_classes, num_classes)


def measures(matrix: torch.Tensor) -> dict:
    """The measures of the paper (section 5) from a confusion matrix n. With t_i the sum of row i:

        pixel_acc    sum_i n[i, i] / sum_i t_i
        mean_acc     mean over i of n[i, i] / t_i
        iou          a list: n[i, i] / (t_i + sum_j n[j, i] - n[i, i]) for each i
        mean_iou     mean over i of iou[i]
        fw_iou       sum_i t_i * iou[i] / sum_i t_i

    Floats in 0..1. A class that is neither in the truth nor predicted has no IoU, and one that is
    not in the truth has no accuracy: it is nan, and does not count in the means.
    """
    n = matrix.cpu().double()
    hit, truth = n.diagonal(), n.sum(1)
    iou = iou_of(n)
    accuracy = hit / truth  # 0/0 = nan: absent from the truth
    return {
        "pixel_acc": (hit.sum() / truth.sum()).item(),
        "mean_acc": accuracy.nanmean().item(),
        "mean_iou": iou.nanmean().item(),
        "fw_iou": ((truth * iou.nan_to_num()).sum() / truth.sum()).item(),
        "iou": iou.tolist(),
    }


def iou_of(n: torch.Tensor) -> torch.Tensor:
    """[C]: the IoU of each class from a confusion matrix [C, C], in its float type; nan where it is
    absent from both.
    """
    return n.diagonal() / (n.sum(1) + n.sum(0) - n.diagonal())  # 0/0 = nan


def image_iou(n: torch.Tensor, road: int | None) -> torch.Tensor:
    """How well one image was predicted, from its confusion matrix of floats: the IoU of class
    `road`, or the mean IoU if that is None. A scalar on the matrix's device, which is not waited
    for: 0..1, or nan if neither truth nor prediction shows the class.
    """
    iou = iou_of(n)
    return iou.nanmean() if road is None else iou[road]


def image_row(path: Path, matrix: torch.Tensor, classes: list[str], road: int | None) -> dict:
    """One image as a row of predict.py --scores: `image_iou`, then the valid pixels and the IoU of
    each class.
    """
    row = {"picture": str(path), "iou": image_iou(matrix.double(), road).item()}
    for name, pixels, iou in zip(
        classes, matrix.sum(1).tolist(), iou_of(matrix.double()).tolist(), strict=True
    ):
        row.update({f"pixels_{name}": pixels, f"iou_{name}": iou})
    return row


def table(results: dict[str, dict], classes: list[str]) -> str:
    """Text table of some `measures` by name, in per cent: one column for each name, one line for
    each measure and class.
    """
    width = max(len(title) for title in [*TITLES.values(), *(f"IoU {name}" for name in classes)])
    lines = [" " * width + "".join(f"  {name:>10}" for name in results)]
    for key, title in TITLES.items():
        lines.append(
            f"{title:{width}}"
            + "".join(f"  {100 * result[key]:10.2f}" for result in results.values())
        )
    for i, name in enumerate(classes):
        cells = (iou_cell(result["iou"][i]) for result in results.values())
        lines.append(f"{'IoU ' + name:{width}}" + "".join(f"  {cell:>10}" for cell in cells))
    return "\n".join(lines)


def iou_cell(iou: float) -> str:
    """An IoU in per cent; "absent" for a class that is neither in the truth nor predicted."""
    return "absent" if math.isnan(iou) else f"{100 * iou:.2f}"


def report(results: dict[str, dict], classes: list[str]) -> str:
    """All tables of some results by name: of `measures` and, where a result has them under "road",
    of RoadMeasures.
    """
    roads = [
        road_table(result["road"], name) for name, result in results.items() if "road" in result
    ]
    return "\n\n".join([table(results, classes), *roads])


def log_columns(result: dict, classes: list[str]) -> dict[str, float]:
    """Such a result as columns of log.csv, one measure each."""
    row = {key: result[key] for key in TITLES}
    if "MaxF" in result:
        row["MaxF"] = result["MaxF"]
    row.update({f"iou_{name}": value for name, value in zip(classes, result["iou"], strict=True)})
    for (space, category), values in result.get("road", {}).items():
        row.update({f"{name}_{category}_{space}": values[name] for name in ("MaxF", "AP")})
    return row


def epoch_line(row: dict, epochs: int, result: dict, data: DataSet) -> str:
    """One line on an epoch: its row of the log, and the measure by which the best network is chosen
    (`goal` of a result).
    """
    goal = result["goal"]
    iou = f"IoU {data.classes[1]} {100 * result['iou'][1]:.2f} %, " if data.road else ""
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, held out: loss {row['val_loss']:.4f}, "
        f"{iou}{TITLES.get(goal, goal)} {100 * result[goal]:.2f} %"
    )


# ---- KITTI Road: confidences
# ----------------------------------------------------------------------------------------


def histogram(confidence: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """int64 [2, 256]: how often each confidence occurs among valid pixels that are not road (row 0)
    and road (row 1).

    confidence: uint8, 255 times the probability of road; labels: 0, 1 or IGNORE; tensors of one
    shape, on one device. All 256 thresholds of the benchmark follow from it. The histograms of
    several images add up: pixels are pooled.
    """
    bins = torch.where(labels == IGNORE, 512, labels.long() * 256 + confidence.long())
    return torch.bincount(bins.flatten(), minlength=513)[:512].view(2, 256)


def benchmark(counts: torch.Tensor) -> dict:
    """The benchmark's measures (Fritsch, Kuehnl and Geiger 2013, section IV) from a histogram [2,
    256].

    A pixel is called road where its confidence is at least a threshold i/255, i = 0 ... 255. MaxF
    is the largest F = 2 PRE REC / (PRE + REC) of all thresholds. PRE, REC, FPR and FNR are those at
    `threshold`, the lowest one that reaches it. AP is the mean over r = 0, 0.1 ... 1 of the largest
    PRE at which REC >= r. Floats in 0..1; all nan if no pixel is road, FPR also if all are.
    """
    names = ("MaxF", "AP", "PRE", "REC", "FPR", "FNR", "threshold")
    # Pixels at or above each threshold: sums from the top. Exact integers.
    false, true = np.cumsum(counts.cpu().numpy()[:, ::-1], axis=1)[:, ::-1]
    negative, positive = false[0], true[0]
    if positive == 0:
        return dict.fromkeys(names, float("nan"))
    precision = true / np.maximum(true + false, 1)  # 0 where nothing is called road
    f = 2 * true / (true + false + positive)  # 2 PRE REC / (PRE + REC), without its 0/0
    best = int(f.argmax())
    ap = np.mean([precision[10 * true >= r * positive].max() for r in range(11)])
    fpr = false[best] / negative if negative else float("nan")
    values = (
        f[best],
        ap,
        precision[best],
        true[best] / positive,
        fpr,
        1 - true[best] / positive,
        best / 255,
    )
    return {name: float(value) for name, value in zip(names, values, strict=True)}


class RoadMeasures:
    """The benchmark's measures over many images, by space ("image" or "bev") and category
    ("um_road" ...).
    """

    def __init__(self):
        self.counts, self.images = {}, {}

    def add(self, space: str, category: str, confidence: torch.Tensor, labels: torch.Tensor):
        """Add the confidences and labels of an image, see `histogram`."""
        key = space, category
        self.counts[key] = self.counts.get(key, 0) + histogram(confidence, labels).cpu()
        self.images[key] = self.images.get(key, 0) + 1

    def add_sample(self, sample: Sample, confidence: torch.Tensor, labels: torch.Tensor):
        """Add the maps [H, W] of a sample: in the image and, if it is KITTI's and has a
        calibration, in bird's-eye view.
        """
        category, calibration = sample.group or "all", calibration_of(sample.image)
        self.add("image", category, confidence, labels)
        if sample.group and calibration.is_file():
            cells = bird_cells(calibration, *labels.shape).to(labels.device)
            self.add(
                "bev", category, bird_view(confidence, cells, 0), bird_view(labels, cells, IGNORE)
            )

    def __add__(self, other: RoadMeasures) -> RoadMeasures:
        """The measures over the images of both."""
        both = RoadMeasures()
        for total, a, b in (
            (both.counts, self.counts, other.counts),
            (both.images, self.images, other.images),
        ):
            total.update({key: a.get(key, 0) + b.get(key, 0) for key in a | b})
        return both

    def pooled(self, space: str = "image") -> dict:
        """`benchmark` of all that was added in a space."""
        return benchmark(
            sum(counts for (where, _), counts in self.counts.items() if where == space)
        )

    def results(self) -> dict[tuple[str, str], dict]:
        """`benchmark` and the number of `images` by (space, category), and URBAN if all three road
        categories are there.
        """
        counts, images = dict(self.counts), dict(self.images)
        for space in SPACES:
            keys = [(space, category) for category in URBAN]
            if all(key in counts for key in keys):
                counts[space, "URBAN"] = sum(counts[key] for key in keys)
                images[space, "URBAN"] = sum(images[key] for key in keys)
        order = ("um_lane", *URBAN, "URBAN")
        place = {
            category: i for i, category in enumerate(order)
        }  # others, such as those of own classes, come first
        return {
            key: {**benchmark(counts[key]), "images": images[key]}
            for key in sorted(
                counts, key=lambda key: (key[0] != "image", place.get(key[1], -1), key[1])
            )
        }


def road_table(results: dict[tuple[str, str], dict], title: str = "") -> str:
    """Text table of RoadMeasures.results in per cent, one line for each space and category; the
    threshold as it is.
    """
    lines = [f"{title:20}  images    MaxF      AP     PRE     REC     FPR     FNR  threshold"]
    for (space, category), values in results.items():
        cells = " ".join(
            f"{100 * values[name]:7.2f}" for name in ("MaxF", "AP", "PRE", "REC", "FPR", "FNR")
        )
        lines.append(
            f"{category:10}{SPACES[space]:10}{values['images']:8} {cells}  {values['threshold']:9.3f}"
        )
    return "\n".join(lines)


def score_folder(results: Path, training: Path, space: str | None = None) -> RoadMeasures:
    """The measures of all maps in a folder. If a single map is amiss, InputError: a partial score
    would look like a whole one.

    The task (road or lane) is that of the maps, and every ground truth of the task must have its
    map. By default `space` is "bev" if the maps are bird's-eye views, else "image".
    """
    if (training / "training").is_dir():
        training = training / "training"
    maps = {file.name: file for file in files_in(results)}
    truths = {
        file.name: file
        for file in files_in(training / "gt_image_2")
        if re.fullmatch(r"(um_lane|um_road|umm_road|uu_road)_\d+\.png", file.name)
    }
    if not truths:
        raise InputError(f"{training / 'gt_image_2'}: no ground truth such as um_road_000000.png")
    if not maps:
        below = next(
            (
                f"; {results / name} does"
                for name in ("bev", "confidence")
                if (results / name).is_dir()
            ),
            "",
        )
        raise InputError(f"{results}: holds no confidence maps{below}")
    for name in maps:
        if name not in truths:
            raise InputError(
                f"{maps[name]}: there is no ground truth of this name in {training / 'gt_image_2'}"
            )
    tasks = {name.split("_")[1] for name in maps}
    truths = {name: file for name, file in truths.items() if name.split("_")[1] in tasks}
    missing = [name for name in truths if name not in maps]
    if missing:
        more = f" and for {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{results / missing[0]}: there is no map for this ground truth{more}; the "
            f"held-out images alone are scored by predict.py --data {training.parent} --split val"
        )

    total, asked = RoadMeasures(), space
    for name, file in truths.items():
        category, task, number = file.stem.split("_")
        calibration = calibration_of(training / "image_2" / f"{category}_{number}.png")
        truth, confidence = torch.from_numpy(read_kitti_label(file)), read_confidence(maps[name])
        if confidence.shape not in (truth.shape, BEV):
            raise InputError(
                f"{maps[name]}: is {confidence.shape[1]}x{confidence.shape[0]}; its ground truth is "
                f"{truth.shape[1]}x{truth.shape[0]}, a bird's-eye view 400x800"
            )
        above = confidence.shape == BEV != truth.shape
        if above and asked == "image":
            raise InputError(
                f"{maps[name]}: is a bird's-eye view; it cannot be scored with --space image"
            )
        space = space or ("bev" if above else "image")
        if not asked and above != (space == "bev"):
            raise InputError(
                f"{maps[name]}: bird's-eye views and maps of the image's size are mixed; say --space bev"
            )
        if space == "bev":
            cells = bird_cells(calibration, *truth.shape)
            truth = bird_view(truth, cells, IGNORE)
            confidence = confidence if above else bird_view(confidence, cells, 0)
        total.add(space, f"{category}_{task}", confidence, truth)
    return total


def read_confidence(path: Path) -> torch.Tensor:
    """An 8-bit grey picture as uint8 [H, W]. Raises InputError."""
    picture = open_picture(path, mask=True)
    if picture.mode != "L":
        raise InputError(f"{path}: a confidence map must be 8-bit grey, this one is {picture.mode}")
    return torch.from_numpy(np.array(picture))


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for input that cannot be used (one
    line on stderr).
    """
    parser = Parser("metrics.py", description=__doc__.split("The first half")[0])
    parser.add_argument(
        "results", metavar="RESULTS_DIR", type=Path, help="folder of maps, um_road_000000.png ..."
    )
    parser.add_argument(
        "training", metavar="TRAINING_DIR", type=Path, help="KITTI's training folder"
    )
    parser.add_argument(
        "--space",
        choices=("image", "bev"),
        help="where to score: in the image (default for maps of its size), or from above as the server",
    )
    parser.add_argument(
        "--csv", metavar="FILE", type=Path, help="write the table there, too, as fractions"
    )
    parser.add_argument(
        "--debug", action="store_true", help="show where in the code an error arose"
    )
    options = parser.parse_args(argv)
    allow_large_pictures()
    try:
        results = score_folder(options.results, options.training, options.space).results()
        print(road_table(results))
        if options.csv:
            rows = [
                {"category": category, "space": space, **values}
                for (space, category), values in results.items()
            ]
            write_csv(options.csv, rows)
    except (InputError, OSError) as error:
        if options.debug:
            raise
        print(f"metrics.py: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
