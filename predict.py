"""From a trained network to pictures, scores, and KITTI Road's submission.

    python predict.py best.pt PICTURE_OR_FOLDER...     an overlay and a mask of each; of a KITTI Road folder, its test images
    python predict.py best.pt --data DIR --split val   the same for a data set that train.py reads, with its measures
    python predict.py best.pt --kitti DIR              KITTI Road's test images, and submission.zip for its server

The results are in the folder --out: overlay/, mask/ and, with --confidence, confidence/, each with
the folders and names of the input (of KITTI Road, of the ground truth: um_road_000000.png for
um_000000.png). Masks are palette PNGs of class ids; confidences are 8-bit grey, 255 times the
probability of a class. Exit status 1: some pictures could not be read or were too large. They are
named at the end, all others are done.
"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fcn import FCN8s
from kitti import bird_cells, bird_view, calibration_of
from metrics import RoadMeasures, confusion, image_row, measures, report
from support.checkpoint import load_network
from support.console import (
    POSITIVE,
    WORKERS,
    InputError,
    Parser,
    Progress,
    counted,
    explanation,
    matching,
    parse_size,
    shortened,
)
from support.datasets.check import per_cent
from support.datasets.images import allow_large_pictures
from support.device import as_batch, keep_memory, pick_device, prepare_prediction
from support.draw import overlay, palette_mask
from support.files import save_png, write_csv
from support.inference.average import Views, parse_views, views_of
from support.inference.int8 import Largest, refuse_without_int8
from support.inference.outputs import (
    RESULTS,
    Job,
    choose_jobs,
    confidence_folders,
    parse_only,
    read_ahead,
    signature,
    where_results_went,
)
from support.inference.predictor import TILE, halo_for, predict_image, smallest_tile
from support.inference.scale import Scale, resized
from support.labels import only_road, road_class
from support.training.batches import suited_workers

OUT = "predictions"


def predict(options, failed: list[str]):
    """Run the network on every picture, write the results, and print or pack what was asked for.

    A message for each picture that cannot be done is added to `failed`. Raises InputError.
    """
    if options.scores and not options.scores.parent.is_dir():  # better now than after an hour
        raise InputError(
            f"{options.scores}: there is no folder {options.scores.parent} to write into"
        )
    net, saved = load_network(options.checkpoint)
    classes, road = saved["classes"], road_class(saved["classes"])
    check_options(options, classes, road, net.reach)
    if options.views.mirrored and saved["settings"].get("flip") == "no":
        raise InputError(
            "--views: the network was trained without mirrored views (--flip no); leave out flip"
        )
    device = pick_device(options.device)
    if options.amp == "int8":
        refuse_without_int8(device)
    give_back = keep_memory(device)
    jobs, read, data = choose_jobs(options, saved, road)
    if options.amp == "int8" and set(saved.get("largest", ())) != {
        name for name, _ in Largest(net).layers
    }:
        size = Scale(None, saved["settings"]["scale"], options.scale, options.size)
        saved["largest"] = largest_in_pictures(net, jobs, read, size)
    compute = prepare_prediction(net, options.amp, device, saved.get("largest"))
    folders = confidence_folders(
        options, classes, road
    )  # of the classes whose confidences are written
    sought = sorted({*folders, *([] if road is None else [road])})

    archive = options.out / "submission.zip"
    if options.kitti and options.split != "training":
        archive.unlink(missing_ok=True)  # it would look like this run's
    matrix, pixels, road_measures, rows = 0, 0, RoadMeasures(), []
    own = saved["settings"]["scale"]
    scale = Scale(saved.get("sizes"), own, options.scale, options.size, options.views.factors)
    progress = Progress(len(jobs))

    def tell(part, parts):
        if part and progress.late():
            progress.show(
                f"{progress.done}/{len(jobs)} pictures, part {part} of {parts}", part / parts
            )

    workers = max(1, suited_workers(options.workers, device))
    with ThreadPoolExecutor(workers) as threads:
        writing = deque()
        for job, content in read_ahead(threads, read, jobs, ahead=workers + 1):
            if isinstance(content, str):  # why it cannot be read
                failed.append(content)
                progress.due()
                continue
            image, label = content
            try:
                views = views_of(image, *scale(job.picture, image), options.views)
            except InputError as error:  # it would be too large
                failed.append(str(error))
                progress.due()
                continue
            (first, _), *more = [(view.to(device), mirrored) for view, mirrored in views]
            seen = predict_image(
                compute,
                first,
                net.reach,
                options.tile,
                sought,
                size=image.shape[:2],
                tell=tell,
                more=more,
            )
            predicted, confidences = seen.classes.cpu(), dict(zip(sought, seen.confidences.cpu()))
            if options.threshold is not None:
                predicted = torch.where(
                    confidences[road] >= round(255 * options.threshold), road, 1 - road
                ).byte()
            if data:
                label = torch.tensor(label)
                counts = confusion(predicted, label, len(classes))
                matrix, pixels = matrix + counts, pixels + label.numel()
                rows.append(image_row(job.picture, counts, classes, data.road))
                if data.road:
                    road_measures.add_sample(job.sample, confidences[road], label)
            maps = {folder: confidences[c] for c, folder in folders.items()}
            writing.append(threads.submit(write, job, options, image, predicted, maps, classes))
            if len(writing) > workers + 1:
                writing.popleft().result()
            give_back(first.shape)
            if progress.due():
                progress.show(f"{progress.done}/{len(jobs)} pictures")
        for written in writing:
            written.result()

    where = f"; results in {options.out}" if options.only or folders or options.kitti else ""
    progress.line(f"{len(jobs) - len(failed)} of {len(jobs)} pictures done{where}")
    for line in where_results_went(jobs, options.out, options.only):
        print(line)
    scale.sum_up()
    if failed and (data or options.kitti):  # a part would be taken for the whole
        failed.append(
            f"{len(failed)} of {len(jobs)} pictures are missing, so there "
            f"{'are no scores' if data else 'is nothing to upload'}"
        )
    elif data:
        result = {**measures(matrix), **({"road": road_measures.results()} if data.road else {})}
        print(
            f"{report({options.split or 'val': result}, classes)}\n"
            f"ignored: {per_cent((pixels - matrix.sum().item()) / pixels)} of the pixels, which have no class"
        )
        if options.scores:
            write_csv(
                options.scores, sorted(rows, key=lambda row: (row["iou"] != row["iou"], row["iou"]))
            )  # nan at the end
    elif options.kitti and options.split != "training":
        pack(archive, [options.out / "bev" / f"{job.name}.png" for job in jobs])
        print(f"to upload: {archive}")


def largest_in_pictures(net: FCN8s, jobs: list[Job], read, size: Scale) -> dict[str, float]:
    """What --amp int8 needs and a checkpoint of an unfinished or earlier run does not have, from
    the pictures themselves.
    """
    some = jobs[:: -(-len(jobs) // 8)]
    print(f"int8: the largest number of each map is found on {counted(len(some), 'picture')} first")
    compute = prepare_prediction(net, "off", torch.device("cpu"))
    with Largest(net) as largest:
        for job in some:
            with suppress(InputError):  # said when its turn comes
                image, _ = read(job)
                predict_image(
                    compute, as_batch(resized(image, *size(job.picture, image))), net.reach
                )
    return dict(largest)  # not the hooks' layers, whose weights would stay in memory


def check_options(options, classes: list[str], road: int | None, reach: float):
    """Raise InputError for options that do not suit the network."""
    if options.kitti and options.confidence and options.confidence != classes[road]:
        raise InputError(
            f"--confidence {options.confidence}: --kitti writes the confidence of {classes[road]}; leave it out"
        )
    if options.either in classes:
        raise InputError(
            f"--confidence {options.either}: is the name of a class and of a file; write "
            f"--confidence={options.either} or --confidence ./{options.either}"
        )
    if options.confidence and options.confidence not in classes:
        raise InputError(
            f"--confidence {options.confidence}: there is no such class, nor such a file; the classes are "
            f"{', '.join(classes)}"
        )
    if options.threshold is not None and only_road(classes) is None:
        raise InputError(
            f"--threshold: is for networks that look for one class; {options.checkpoint} tells apart "
            f"{shortened(classes, 5)}"
        )
    if road is None and options.kitti:
        raise InputError(
            f"{options.checkpoint}: no class is called road or lane; the classes are {', '.join(classes)}"
        )
    if options.kitti and classes[road] not in ("road", "lane"):
        raise InputError(
            f"{options.checkpoint}: was trained to find {classes[road]}; KITTI Road takes road or lane"
        )
    if options.tile < smallest_tile(reach):
        raise InputError(
            f"--tile {options.tile}: at least {smallest_tile(reach)} are needed, since a tile has a halo of "
            f"{halo_for(reach)} pixels on each side"
        )


def write(
    job: Job,
    options,
    image: np.ndarray,
    predicted: torch.Tensor,
    confidences: dict[str, torch.Tensor],
    classes: list[str],
):
    """The pictures of one job into the folders of --out; `confidences` by folder."""
    label = predicted.numpy()
    draw = {
        "overlay": lambda: overlay(image, label, classes),
        "mask": lambda: palette_mask(label, classes),
    }
    results = {folder: draw[folder]() for folder in options.only}
    results.update(
        {folder: Image.fromarray(confidence.numpy()) for folder, confidence in confidences.items()}
    )
    if options.kitti:
        cells = bird_cells(calibration_of(job.picture), *label.shape)
        results["bev"] = Image.fromarray(bird_view(confidences["confidence"], cells, 0).numpy())
    for folder, picture in results.items():
        save_png(picture, options.out / folder / f"{job.name}.png", pnginfo=signature())


def pack(archive: Path, maps: list[Path]):
    """The zip that the benchmark's server takes: these files, without folders. All or nothing."""
    beside = archive.with_suffix(".part")
    with zipfile.ZipFile(beside, "w") as content:  # PNGs are compressed already
        for file in maps:
            content.write(file, file.name)
    os.replace(beside, archive)


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if some pictures could not be done, 2 if
    it ended early, 130 if it was stopped.
    """
    options = parse(argv)
    failed = []
    allow_large_pictures()
    try:
        predict(options, failed)
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        message = explanation(error, f"a smaller --tile than {options.tile} needs less")
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


def parse(argv: list[str] | None):
    """The options of the command line. They may stand anywhere, before, between and after the
    pictures.
    """
    parser = Parser("predict.py", description=__doc__)
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="best.pt of a run of train.py; always first",
    )
    parser.add_argument(
        "inputs", metavar="INPUT", nargs="*", help="pictures, folders, or a KITTI Road folder"
    )
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=Path,
        default=Path(OUT),
        help="where results go (default %(default)s)",
    )
    group = parser.add_argument_group("a data set instead of pictures")
    group.add_argument(
        "--data", metavar="DIR", type=Path, help="predict and score a data set with ground truth"
    )
    group.add_argument(
        "--kitti",
        metavar="DIR",
        type=Path,
        help="predict KITTI Road, write bird's-eye views and the zip",
    )
    group.add_argument(
        "--split",
        choices=("train", "val", "test", "training", "testing"),
        help="of --data: train, val (default) or test; of --kitti: training or testing (default)",
    )
    group.add_argument(
        "--scores",
        metavar="FILE",
        type=Path,
        help="with --data: pixels and IoU of each picture and class, the worst picture first, as CSV",
    )
    group = parser.add_argument_group("results")
    group.add_argument(
        "--confidence",
        metavar="CLASS",
        nargs="?",
        const="",
        help="also write how probable CLASS is; without a name: the road, if the network looks for it alone, "
        "otherwise every class, in a folder each",
    )
    group.add_argument(
        "--only",
        metavar="KINDS",
        type=matching(
            r"none|(overlay|mask)(,(overlay|mask))?",
            "overlay, mask, overlay,mask or none",
            parse_only,
        ),
        default=RESULTS,
        help="write overlays or masks alone, or with none neither, such as for scores (default: overlay,mask)",
    )
    group.add_argument(
        "--threshold",
        metavar="T",
        type=matching(r"0?\.\d+|[01](\.0*)?", "a number from 0 to 1", float),
        help="call a pixel road (or the class sought) from this confidence on, such as the threshold that "
        "train.py prints beside MaxF (default: the most probable class, 0.5)",
    )
    group = parser.add_argument_group("computation")
    group.add_argument(
        "--scale",
        metavar="FACTOR",
        type=matching(POSITIVE, "a positive number", float),
        help="compute at FACTOR times the size of each picture (default: as in training); results keep the "
        "picture's size",
    )
    group.add_argument(
        "--size",
        metavar="HxW",
        type=matching(r"[1-9]\d{0,5}x[1-9]\d{0,5}", "a size, HxW", parse_size),
        help="compute at this size instead, height x width",
    )
    group.add_argument(
        "--views",
        metavar="F,F,...,flip",
        default=Views(),
        type=matching(
            f"({POSITIVE}|flip)(,({POSITIVE}|flip))*",
            "factors and flip, such as 0.75,1,1.25,flip",
            parse_views,
        ),
        help="average the probabilities of several views: at these factors of the size at which the picture is "
        "computed, and with flip of the mirror image of each too",
    )
    group.add_argument(
        "--tile",
        metavar="N",
        type=matching(r"[1-9]\d{0,5}", "a whole number", int),
        default=TILE,
        help="largest part computed at once, N x N pixels: bounds the memory (default %(default)s: 3 GiB). "
        "With --views, or at another size than the picture's, all its scores are in memory besides",
    )
    group.add_argument(
        "--workers",
        **WORKERS,
        default="auto",
        help="threads that read pictures and write results; auto: 2, for a GPU one for each core, up to 16",
    )
    group.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="auto, cpu, cuda, cuda:N or mps (default %(default)s)",
    )
    group.add_argument(
        "--amp",
        choices=("auto", "bf16", "fp16", "int8", "off"),
        default="auto",
        help="compute in 16 bits, or off: in 32 (default %(default)s: bf16 where the hardware computes in it); "
        "int8: in 8, about twice as fast as bf16, on x86 processors with VNNI",
    )
    group.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    # In "--confidence a.png" the word is a picture, not a class; --confidence=NAME is a class in
    # any case.
    words, either = list(sys.argv[1:] if argv is None else argv), ""
    for i, word in enumerate(words[:-1]):
        if word == "--confidence" and Path(words[i + 1]).exists():
            words[i], either = "--confidence=", words[i + 1]
    options = parser.parse_intermixed_args(words, argparse.Namespace(either=either))
    if bool(options.inputs) + bool(options.data) + bool(options.kitti) != 1:
        parser.error(
            "say what to predict: either pictures and folders, or --data DIR, or --kitti DIR"
        )
    splits = (
        ("train", "val", "test")
        if options.data
        else ("training", "testing")
        if options.kitti
        else ()
    )
    if options.split and options.split not in splits:
        parser.error(
            f"--split {options.split}: "
            + (f"choose {' or '.join(splits)}" if splits else "goes with --data or --kitti")
        )
    if not (options.only or options.data or options.kitti or options.confidence is not None):
        parser.error(
            "--only none: then there is nothing to write; it goes with --data, --kitti or --confidence"
        )
    if options.scores and not options.data:
        parser.error("--scores: goes with --data, which has the ground truth")
    if options.scale and options.size:
        parser.error("--scale: use --scale or --size, not both")
    return options


if __name__ == "__main__":
    sys.exit(main())
