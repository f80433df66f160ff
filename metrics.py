"""The confusion matrix, and every measure computed from it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

import kitti
from support.labels import IGNORE, DataSet, Sample

TITLES = {
    "pixel_acc": "pixel accuracy",
    "mean_acc": "mean accuracy",
    "mean_iou": "mean IoU",
    "fw_iou": "frequency-weighted IoU",
}


def confusion(prediction: np.ndarray, truth: np.ndarray, num_classes: int) -> np.ndarray:
    """Confusion matrix int64 [C, C]: n[t, p] pixels of true class t are predicted as class p.

    prediction, truth    integer arrays of the same shape, values 0 ... C-1; pixels whose truth is
                         IGNORE are left out

    The counts are exact; matrices of several images can be added.
    """
    # Cell (t, p) of the matrix is bin t * C + p. Ignored pixels go to an extra last bin, which is
    # dropped.
    bins = truth.astype(np.int64) * num_classes + prediction
    bins[truth == IGNORE] = num_classes**2
    counts = np.bincount(bins.ravel(), minlength=num_classes**2 + 1)
    return counts[:-1].reshape(num_classes, num_classes)


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Float64 [C]: the IoU of each class, n[i, i] / (t_i + sum_j n[j, i] - n[i, i]), 0..1.

    It is nan for a class that is neither in the ground truth nor predicted.
    """
    hits = matrix.diagonal()
    with np.errstate(invalid="ignore"):  # 0/0 is nan
        return hits / (matrix.sum(1) + matrix.sum(0) - hits)


def mean(values: np.ndarray) -> float:
    """The mean of the values that are not nan; nan if there are none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else math.nan


def measures(matrix: np.ndarray) -> dict:
    """The measures of the paper (section 5) from a confusion matrix n. With t_i the sum of row i:

        pixel_acc    sum_i n[i, i] / sum_i t_i
        mean_acc     mean over i of n[i, i] / t_i
        iou          a list: n[i, i] / (t_i + sum_j n[j, i] - n[i, i]) for each i
        mean_iou     mean over i of iou[i]
        fw_iou       sum_i t_i * iou[i] / sum_i t_i

    Floats, 0..1. The IoU of a class that is neither in the ground truth nor predicted is nan, as is
    the accuracy of a class that is not in the ground truth. The means leave out nan.
    """
    hits, truth, iou = matrix.diagonal(), matrix.sum(1), class_iou(matrix)
    with np.errstate(invalid="ignore"):  # 0/0 is nan
        return {
            "pixel_acc": float(hits.sum() / truth.sum()),
            "mean_acc": mean(hits / truth),
            "mean_iou": mean(iou),
            "fw_iou": float((truth * np.nan_to_num(iou)).sum() / truth.sum()),
            "iou": iou.tolist(),
        }


class Scores:
    """The scores of many images.

    classes    the names of classes 0 ... C-1
    road       the class whose confidence is scored as KITTI Road scores it, or None (DataSet.road)

    Pixels are pooled: the confusion matrices and histograms of all images are added before any
    measure is computed. So large images count for more, and a class has one IoU over all images;
    `iou_by_image` has the IoU of each image.

    Scores can be pickled, and those of two sets of images can be added: a + b.
    """

    def __init__(self, classes: list[str], road: int | None = None):
        self.classes, self.road = classes, road
        self.matrix = np.zeros((len(classes), len(classes)), np.int64)
        self.images = {}  # path of each image: pixels int64 [C] and IoU float64 [C] of each class
        self.histograms = []  # (space, category, histogram), see kitti.road_scores

    def update(
        self,
        sample: Sample,
        prediction: np.ndarray,
        truth: np.ndarray,
        confidence: np.ndarray | None = None,
    ):
        """Add an image.

        prediction, truth    label maps uint8 [H, W]
        confidence           uint8 [H, W], the predictor's `confidence` of class `road`; None if
                             there is no such class

        Raises InputError if the image's calibration cannot be used.
        """
        counts = confusion(prediction, truth, len(self.classes))
        self.matrix += counts
        self.images[sample.image] = counts.sum(1), class_iou(counts)
        if self.road is not None:
            self.histograms += kitti.histograms_of(sample, confidence, truth)

    def __add__(self, other: Scores) -> Scores:
        both = Scores(self.classes, self.road)
        both.matrix = self.matrix + other.matrix
        both.images = self.images | other.images
        both.histograms = self.histograms + other.histograms
        return both

    def result(self) -> dict:
        """`measures`, and "monitor": the name of the score that selects the best network.

        If a road is scored, also "road" (`kitti.road_scores`) and "MaxF" over all images.
        """
        result = {**measures(self.matrix), "monitor": "mean_iou"}
        if self.road is not None:
            result["road"] = kitti.road_scores(self.histograms)
            counts = [counts for space, _, counts in self.histograms if space == "image"]
            result["MaxF"] = kitti.maxf_ap(sum(counts, np.zeros((2, 256), np.int64)))["MaxF"]
            if not math.isnan(result["MaxF"]):  # nan: no pixel is road
                result["monitor"] = "MaxF"
        return result

    @property
    def iou_by_image(self) -> dict[Path, float]:
        """By path, the IoU of the road in each image, or the mean IoU if no road is scored: 0..1,
        or nan if the class is neither in the ground truth nor predicted.
        """
        return {
            path: mean(iou) if self.road is None else float(iou[self.road])
            for path, (_, iou) in self.images.items()
        }

    def rows(self) -> list[dict]:
        """One row per image, worst first: picture, iou (`iou_by_image`), and the ground truth
        pixels and IoU of each class.
        """
        rows = []
        for path, image_iou in self.iou_by_image.items():
            row = {"picture": str(path), "iou": image_iou}
            for name, pixels, iou in zip(self.classes, *self.images[path], strict=True):
                row.update({f"pixels_{name}": int(pixels), f"iou_{name}": float(iou)})
            rows.append(row)
        return sorted(rows, key=lambda row: (math.isnan(row["iou"]), row["iou"]))


# ---- tables ----


def iou_cell(iou: float) -> str:
    """An IoU in per cent, or "absent" if the class is neither in the ground truth nor predicted."""
    return "absent" if math.isnan(iou) else f"{100 * iou:.2f}"


def table(results: dict[str, dict], classes: list[str]) -> str:
    """Text table of `measures` in per cent: one column per named result, one line per measure and
    class.
    """
    rows = {
        title: [f"{100 * r[key]:.2f}" for r in results.values()] for key, title in TITLES.items()
    }
    for i, name in enumerate(classes):
        rows[f"IoU {name}"] = [iou_cell(r["iou"][i]) for r in results.values()]
    width = max(map(len, rows))
    return "\n".join(
        f"{title:{width}}" + "".join(f"  {cell:>10}" for cell in cells)
        for title, cells in {"": results, **rows}.items()
    )


def report(results: dict[str, dict], classes: list[str]) -> str:
    """All tables of several results of `Scores`, by name."""
    roads = [kitti.road_table(r["road"], name) for name, r in results.items() if "road" in r]
    return "\n\n".join([table(results, classes), *roads])


def log_columns(result: dict, classes: list[str]) -> dict[str, float]:
    """A result of `Scores` as columns of log.csv, one per measure."""
    row = {key: result[key] for key in (*TITLES, "MaxF") if key in result}
    row.update({f"iou_{name}": iou for name, iou in zip(classes, result["iou"], strict=True)})
    for (space, category), values in result.get("road", {}).items():
        row.update({f"{name}_{category}_{space}": values[name] for name in ("MaxF", "AP")})
    return row


def epoch_line(row: dict, epochs: int, result: dict, data: DataSet) -> str:
    """One line of text about an epoch.

    row       its row of log.csv, with epoch, train_loss and val_loss
    epochs    of the whole run
    result    of `Scores` on the validation set
    """
    monitor = result["monitor"]
    iou = f"IoU {data.classes[1]} {100 * result['iou'][1]:.2f} %, " if data.road else ""
    return (
        f"epoch {row['epoch']}/{epochs}: loss {row['train_loss']:.4f}, validation: loss "
        f"{row['val_loss']:.4f}, {iou}{TITLES.get(monitor, monitor)} {100 * result[monitor]:.2f} %"
    )
