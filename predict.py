"""Predict with a trained network: overlays, masks, scores, and KITTI Road's submission.

    python predict.py best.pt PICTURE_OR_FOLDER...     an overlay and a mask of each picture
    python predict.py best.pt --data DIR --split val   the same for a data set that train.py reads,
                                                       and the scores
    python predict.py best.pt --kitti DIR              the same for KITTI Road's test images, and
                                                       submission.zip for its server

Results go into the folder --out: overlay/, mask/ and, with --confidence, confidence/. Files are
named like the pictures (for KITTI Road like the ground truth: um_road_000000.png for
um_000000.png). Masks are palette PNGs of class ids. Confidences are 8-bit grey: brighter is more
confident. Exit status 1: some pictures, named at the end, failed; all others are done.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fcn import FCN8s
from kitti import TASKS, bird_cells, bird_view, calibration_of, is_submission, write_submission
from metrics import Scores, report
from support.checkpoint import read_checkpoint
from support.console import (
    InputError,
    Parser,
    Progress,
    add_options,
    counted,
    explanation,
    option,
    out_of_memory,
    positive,
    share,
    shortened,
    warn,
    whole,
    word_or,
)
from support.datasets.images import Reader, allow_large_pictures, as_rgb, read_picture
from support.device import (
    default_amp,
    default_workers,
    pick_device,
    thread_initializer,
    tune_malloc,
)
from support.draw import overlay, palette_mask
from support.files import require_ours, write_csv
from support.inference.outputs import (
    Job,
    confidence_folders,
    kitti_jobs,
    labelled_jobs,
    picture_jobs,
    require_results,
    result_path,
    write_result,
)
from support.inference.predictor import MIN_TILE, NO_TTA, TILE, TTA, Predictor, prepare
from support.labels import only_road, road_class
from support.prefetch import prefetch

FAR_FACTOR = 2  # warn of pictures this many times larger or smaller than every training image
CALIBRATION_PICTURES = 8
SPLITS, RESULTS = ("train", "val", "test"), ("overlay", "mask", "none")
AMP = ("auto", "bf16", "fp16", "int8", "off")


def tta(text: str) -> TTA:
    """A converter for argparse: "0.75,1,1.25,flip" to TTA."""
    words = [word_or("flip", positive)(word) for word in text.split(",")]
    return TTA(tuple(word for word in words if word != "flip") or (1.0,), "flip" in words)


@dataclass
class Options:
    """Inputs, results and settings. Each `option` is also a command-line option."""

    checkpoint: Path
    inputs: list[Path]
    out: Path = option(Path("predictions"), "folder for the results", Path, metavar="DIR")

    # ---- a data set instead of pictures
    data: Path | None = option(
        None, "predict and score a data set with ground truth", Path, metavar="DIR"
    )
    split: str | None = option(
        None, "part of --data, by default val; of --kitti, train or (default) test", choices=SPLITS
    )
    images: str | None = option(
        None, "with --data: pattern of the images, if not as in training", metavar="PATTERN"
    )
    masks: str | None = option(
        None, "with --data: pattern of the masks, if not as in training", metavar="PATTERN"
    )
    scores: Path | None = option(
        None,
        "with --data: CSV file for pixels and IoU by picture and class, worst first",
        Path,
        metavar="FILE",
    )
    kitti: Path | None = option(
        None,
        "predict KITTI Road: confidences, bird's-eye views and, for the test images, the zip file",
        Path,
        metavar="DIR",
    )

    # ---- results
    confidence: str | None = option(
        None,
        "also write the confidence of CLASS; without a name: of the road if it is the only class "
        "sought, else of every class, each in its own folder",
        metavar="CLASS",
        nargs="?",
        const="all",
    )
    only: str | None = option(
        None, "write only overlays, only masks, or neither (default: both)", choices=RESULTS
    )
    threshold: float | None = option(
        None,
        "mark a pixel as road (or the class sought) if its confidence (not its probability) is at "
        "least T, such as the threshold that train.py prints beside MaxF (default: the most "
        "probable class)",
        share,
        metavar="T",
    )

    # ---- computation
    resize: float | str | None = option(
        None,
        "picture size factor (default: as in training), or fit: the median size of the training "
        "images; results keep the picture's size",
        word_or("fit", positive),
        metavar="FACTOR",
    )
    tta: TTA | None = option(
        None,
        "test-time augmentation: average the probabilities over these size factors and, with flip, "
        "over mirror images too, such as 0.75,1,1.25,flip",
        tta,
        metavar="F,F,...,flip",
    )
    tile: int = option(
        TILE,
        "process pictures in tiles of at most N x N pixels; 1536 takes 3 GiB. With --tta, the "
        "probabilities of a whole picture are in memory too",
        whole(MIN_TILE),
        metavar="N",
    )
    workers: int | str = option(
        "auto",
        "threads that read pictures, and as many that write; auto: 2, or with a GPU one per core, "
        "up to 16",
        word_or("auto", whole(0)),
        metavar="N",
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:N or mps", metavar="NAME")
    amp: str = option(
        "auto",
        "number format; off: fp32; auto: bf16 if the hardware has it; int8: twice as fast as bf16, "
        "on x86 CPUs with VNNI",
        choices=AMP,
    )
    debug: bool = option(False, "show the traceback of an error")

    @property
    def folders(self) -> tuple[str, ...]:
        """The result folders, apart from confidences."""
        return {None: ("overlay", "mask"), "none": ()}.get(self.only, (self.only,))


def segment(
    net: FCN8s,
    picture: Image.Image | np.ndarray | str | Path,
    confidence: int | str | None = None,
    tile: int = TILE,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """The class ids uint8 [H, W] of a picture, for your own programs.

    net           such as FCN8s.load("runs/NAME/best.pt"), in evaluation mode, on any device
    picture       a PIL image of any mode and size, or uint8 [H, W, 3] RGB, both used as they are;
                  or the path of a picture, which is turned upright by its EXIF tag
    confidence    a class id or name: then the result is (class ids, confidence), both uint8
                  [H, W], as `confidence` in support/inference/predictor.py computes it
    tile          bounds the memory, see Predictor

    Several threads may share one network. Raises ValueError for any other picture, an unknown
    class, a network in training mode, and scores that are not finite; InputError for an unreadable
    file.
    """
    if net.training:
        raise ValueError("the network is in training mode, with dropout: call net.eval() first")
    if isinstance(picture, (str, Path)):
        pixels = read_picture(Path(picture)).pixels
    else:
        pixels = as_rgb(picture) if isinstance(picture, Image.Image) else np.asarray(picture)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"the picture is {pixels.dtype} {list(pixels.shape)}: it must be a PIL image, uint8 "
            "[H, W, 3], or a path"
        )
    wanted, names = [confidence] if confidence is not None else [], net.classes or []
    if confidence in names:
        wanted = [names.index(confidence)]
    ids = range(net.config["num_classes"])
    if not all(isinstance(c, (int, np.integer)) and c in ids for c in wanted):
        raise ValueError(f"there is no class {confidence!r}; net.classes is {net.classes}")
    labels, confidences, _ = Predictor(net, tile=tile)(pixels, confidences_of=wanted)
    return (labels, confidences[0]) if wanted else labels


def predict(options: Options, failed: list[str]):
    """Predict every picture, write the results, and print the scores or pack the submission.

    Appends a message to `failed` for each picture that fails. Raises InputError.
    """
    # ---- the network
    saved = read_checkpoint(options.checkpoint)
    net = FCN8s.from_checkpoint(saved, options.checkpoint)
    require_suited(options, net, saved)
    device = pick_device(options.device)
    trim_memory = tune_malloc(device)

    # ---- the pictures, and their results
    classes, road = net.classes, road_class(net.classes)
    class_of = confidence_folders(options.confidence, classes)  # by folder
    data = archive = None
    if options.kitti:
        split = "training" if options.split == "train" else "testing"
        jobs = kitti_jobs(options.kitti, classes[road], split)
        class_of = {"confidence": road, "bev": road}
        if split == "testing":
            archive = options.out / "submission.zip"
            require_ours(archive, "submission", is_submission)
    elif options.data:
        patterns = {"images": options.images, "masks": options.masks}
        jobs, data = labelled_jobs(options.data, options.split or "val", saved, patterns)
        print(data.summary)
    else:
        jobs = picture_jobs(options.inputs)
    folders = [*options.folders, *class_of]
    require_results(options.out, folders, jobs)

    # ---- the loop; threads read the pictures and write the results
    predictor = make_predictor(net, options, device, jobs, saved)
    reader = Reader(data.read_label, cache_bytes=0) if data else None
    scores = Scores(classes, data.road) if data else None
    needed = {road} if options.threshold is not None else {data.road} if data else set()
    wanted = sorted({*class_of.values(), *needed} - {None})  # classes
    workers, start = default_workers(options.workers, device), thread_initializer(device)
    progress, far = Progress(len(jobs)), []

    def predicted():
        """The arguments of `write` for each picture."""
        contents = prefetch(jobs, partial(read_job, predictor, reader), workers, start)
        for done, (job, content) in enumerate(zip(jobs, contents, strict=True), 1):
            try:
                if isinstance(content, str):  # an error message
                    raise InputError(content)
                picture, views, truth = content
                if warning := far_from_training(views, picture.shape, saved):
                    far.append(job.picture.name)
                    if len(far) == 1:  # at once: the run may take an hour
                        warn("predict.py", f"{job.picture}: {warning}")
                with naming(job.picture):
                    labels, found, _ = predictor((views, picture.shape[:2]), confidences_of=wanted)
                confidence = dict(zip(wanted, found, strict=True))  # by class
                if options.threshold is not None:
                    is_road = confidence[road] >= round(255 * options.threshold)
                    labels = is_road.astype(np.uint8)
                if data:
                    scores.update(job.sample, labels, truth, confidence.get(data.road))
                trim_memory(views[0][0].shape)
                maps = {folder: confidence[c] for folder, c in class_of.items()}
                yield job, picture, labels, maps
            except InputError as error:
                failed.append(str(error))
            if progress.due():
                progress.show(f"{done}/{len(jobs)} pictures")

    # A deque of length 0 keeps no result.
    deque(prefetch(predicted(), partial(write, classes, options), workers), maxlen=0)

    # ---- summary
    if len(far) > 1:
        warn("predict.py", f"also far from the training sizes: {shortened(far[1:])}")
    where = f"; results in {options.out}" if folders else ""
    progress.line(f"{len(jobs) - len(failed)} of {len(jobs)} pictures done{where}")
    if failed and (data or archive):  # partial results would look complete
        missing = "there are no scores" if data else f"{archive} is not written"
        missing += "; the one there is from an earlier run" if archive and archive.exists() else ""
        failed.append(f"{len(failed)} of {len(jobs)} pictures are missing, so {missing}")
    elif data:
        print(report({options.split or "val": scores.result()}, classes))
        if options.scores:
            write_csv(options.scores, scores.rows())
    elif archive:
        write_submission(archive, [result_path(options.out, "bev", job) for job in jobs])
        print(f"to upload: {archive}")


def require_suited(options: Options, net: FCN8s, saved: dict):
    """Raise InputError if an option does not suit the network."""
    classes = net.classes
    if options.tta and options.tta.flip and saved.get("settings", {}).get("flip") == "no":
        raise InputError("--tta: the network was trained without mirrored views; leave out flip")
    if options.threshold is not None and not only_road(classes):
        raise InputError(
            f"--threshold: is for networks that look for one class; {options.checkpoint} has "
            f"the classes {shortened(classes, 5)}"
        )
    road = road_class(classes)
    if options.kitti and (road is None or classes[road] not in TASKS):
        raise InputError(
            f"{options.checkpoint}: --kitti needs a class called {' or '.join(TASKS)}; the "
            f"classes are {', '.join(map(repr, classes))}"
        )
    if options.resize == "fit" and "sizes" not in saved:
        raise InputError(
            f"{options.checkpoint}: does not hold the training sizes that --resize fit needs; "
            "give a number"
        )
    if options.scores and not options.scores.absolute().parent.is_dir():
        raise InputError(f"{options.scores}: its folder does not exist")


def make_predictor(
    net: FCN8s, options: Options, device: torch.device, jobs: list[Job], saved: dict
) -> Predictor:
    """The Predictor for these options; for int8, calibrated on some of the pictures."""
    at = {"resize": options.resize}
    if options.resize == "fit":
        at = {"longer": net.resize_factor * max(saved["sizes"]["median"])}
    amp = options.amp
    if amp == "int8":
        from support.inference.int8 import calibrate, require_int8, to_int8

        require_int8(device)
        some = jobs[:: -(-len(jobs) // CALIBRATION_PICTURES)]
        print(f"int8: calibrating on {counted(len(some), 'picture')} first")
        amax = calibrate(net.eval(), readable(some), tile=options.tile, **at)
        if not amax:
            raise InputError("--amp int8: no picture can be used for calibration")
        to_int8(net, amax)
        amp = "auto"  # for the layers that are not in int8
    amp = default_amp(amp, device)
    return Predictor(
        prepare(net, amp, device), amp, tile=options.tile, tta=options.tta or NO_TTA, **at
    )


def readable(jobs: list[Job]) -> Iterator[np.ndarray]:
    """The readable pictures uint8 [H, W, 3] of these jobs; the others are named later."""
    for job in jobs:
        with suppress(InputError):
            yield read_picture(job.picture).pixels


@contextmanager
def naming(picture: Path) -> Iterator[None]:
    """A context that turns errors about one picture into InputErrors that name it."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{picture}: {error}") from None
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise InputError(f"{picture}: out of memory; shrink it, or try a smaller --tile") from None


def read_job(predictor: Predictor, reader: Reader | None, job: Job) -> tuple | str:
    """(picture uint8 [H, W, 3], its views, its truth or None), or an error message."""
    try:
        with naming(job.picture):
            if reader:
                picture, truth = reader(job.sample)
            else:
                photo, truth = read_picture(job.picture), None
                picture = photo.pixels
                if photo.frames > 1:
                    pages = f"{photo.frames} frames or pages"
                    warn("predict.py", f"{job.picture}: has {pages}; only the first is done")
            return picture, predictor.views(picture), truth
    except InputError as error:
        return str(error)  # not the error, which would keep the picture in memory


def far_from_training(views: list[tuple], shape: tuple, saved: dict) -> str:
    """A warning if a view is far from the sizes of the training images, else "".

    A network recognises things only at sizes that it was trained on.
    """
    if "sizes" not in saved:
        return ""
    # Compare the longer sides: things are as large in a portrait photo as in a landscape one.
    smallest, largest = (
        saved["resize_factor"] * max(saved["sizes"][name]) for name in ("smallest", "largest")
    )
    for view, _ in views:
        height, width = view.shape[2:]
        if not smallest / FAR_FACTOR <= max(height, width) <= largest * FAR_FACTOR:
            factor = f" ({height / shape[0]:.2g} times its size)" if height != shape[0] else ""
            sides = f"{smallest:.0f}" + (f" to {largest:.0f}" if largest > smallest else "")
            return (
                f"is computed at {height}x{width}{factor}; the longer side of the training images "
                f"had {sides} pixels. --resize fit computes every picture at their median size"
            )
    return ""


def write(classes: list[str], options: Options, predicted: tuple) -> tuple:
    """Write the results of one picture. Returns its arrays, whose memory `prefetch` bounds.

    predicted    (job, picture uint8 [H, W, 3], labels [H, W], confidences [H, W] by folder)
    """
    job, picture, labels, maps = predicted
    results = {folder: Image.fromarray(confidence) for folder, confidence in maps.items()}
    if "bev" in maps:
        cells = bird_cells(calibration_of(job.picture), *labels.shape)
        results["bev"] = Image.fromarray(bird_view(maps["bev"], cells, 0))
    if "overlay" in options.folders:
        results["overlay"] = overlay(picture, labels, classes)
    if "mask" in options.folders:
        results["mask"] = palette_mask(labels, classes)
    for folder, result in results.items():
        write_result(result, result_path(options.out, folder, job))
    return picture, labels, *maps.values()


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 1 if some pictures failed, 2 if the run
    ended early, 130 if it was stopped.
    """
    options = parse(argv)
    failed = []
    allow_large_pictures()
    try:
        predict(options, failed)
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        message = explanation(error, f"choose a smaller --tile than {options.tile}")
        if options.debug or not message:
            raise
        failed.append(message)
        return 2
    except KeyboardInterrupt:
        failed.append(f"stopped; the pictures done so far are in {options.out}")
        return 130
    finally:
        for message in failed:
            print(f"predict.py: error: {message}", file=sys.stderr)
    return 1 if failed else 0


def parse(argv: list[str] | None) -> Options:
    """The options of the command line. They may stand before, between and after the pictures."""
    parser = Parser("predict.py", description=__doc__)
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", type=Path, help="best.pt of a run; always first"
    )
    parser.add_argument(
        "inputs",
        metavar="INPUT",
        type=Path,
        nargs="*",
        help="pictures and folders; for a KITTI Road folder, its test images",
    )
    add_options(parser, Options)
    options = Options(**vars(parser.parse_intermixed_args(argv)))
    if bool(options.inputs) + bool(options.data) + bool(options.kitti) != 1:
        parser.error(
            "say what to predict, after the checkpoint: pictures and folders, or --data DIR, or "
            "--kitti DIR"
            + (f" (--confidence took {options.confidence})" if options.confidence else "")
        )
    if options.split and not (options.data or options.kitti):
        parser.error("--split: needs --data or --kitti")
    if options.split == "val" and options.kitti:
        parser.error("--split val: --kitti has only train and test; --data has the validation set")
    if options.confidence and options.kitti:
        parser.error("--confidence: leave it out; --kitti always writes the road's confidence")
    if options.scores and options.scores.suffix.lower() != ".csv":
        parser.error(f"--scores {options.scores}: must end in .csv")
    for name in ("scores", "images", "masks"):
        if getattr(options, name) and not options.data:
            parser.error(f"--{name}: needs --data")
    return options


if __name__ == "__main__":
    sys.exit(main())
