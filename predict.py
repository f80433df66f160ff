"""python predict.py runs/NAME/best.pt INPUT... --out DIR: see what a trained network sees.

    python predict.py best.pt PICTURE_OR_FOLDER...     an overlay and a mask of each; of a KITTI Road folder, its test images
    python predict.py best.pt --data DIR --split val   the same for a data set that train.py reads, with its scores
    python predict.py best.pt --kitti DIR              KITTI Road's test images, and submission.zip for its server

In the folder --out: overlay/, mask/ and, with --confidence, confidence/, each with the folders and names of the input.
Masks are palette PNGs of class ids; confidences are 8-bit grey, 255 times the probability of road.
Exit status 1: some pictures could not be read. They are named at the end, all others are done.
"""

from __future__ import annotations

import argparse
import os
import sys
import zipfile
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch
from PIL import Image

from batches import normalise
from data import IMAGE_ENDINGS, Reader, Sample, calibration_of, files_in, find, read_image, road_class
from draw import overlay, palette_mask
from fcn import TILE, FCN8s, classify, halo
from metrics import RoadScores, bird_cells, bird_view, confusion, homography, report, scores
from run import Progress, keep_memory, like, one_line, pick_device, use_bf16
from vgg import InputError, read_tensors

OUT = "predictions"
FOLDERS = ("overlay", "mask", "confidence", "bev")  # below --out
WAITING = 3  # pictures that are read ahead, and that wait to be written, while the network computes: bounds the memory


class Job(NamedTuple):
    """A picture to predict, the path of its results below each folder of --out, and its labelled sample if it has one."""
    picture: Path
    name: Path
    sample: Sample | None = None


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, 1 if some pictures could not be read, 2 if it ended early."""
    options = parse(argv)
    failed = []
    try:
        predict(options, failed)
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        message = one_line(error, f"a smaller --tile than {options.tile} needs less")
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


def predict(options, failed: list[str]):
    """The network, the pictures one after the other, and what was asked for of all of them.

    A message for each picture that cannot be read is added to `failed`.
    """
    net, saved = load(options.checkpoint)
    classes = saved["classes"]
    road = road_class(classes)
    if road is None and (options.confidence or options.kitti):
        raise InputError(f"{options.checkpoint}: no class is called road or lane, so there is no road confidence; "
                         f"the classes are {', '.join(classes)}")
    if options.kitti and classes[road] not in ("road", "lane"):
        raise InputError(f"{options.checkpoint}: was trained to find {classes[road]}; KITTI Road takes road or lane")
    if options.tile < 2 * halo(net.reach) + 32:
        raise InputError(f"--tile {options.tile}: at least {2 * halo(net.reach) + 32} are needed, since a tile has a margin of "
                         f"{halo(net.reach)} pixels on each side")
    device = pick_device(options.device)
    give_back = keep_memory(device)
    compute = prepared(net, options.amp, device)

    data, read = None, lambda job: (read_image(job.picture), None)
    if options.kitti:
        jobs = kitti_jobs(options.kitti, options.split or "testing", classes[road])
    elif options.data:
        data = data_set(options.data, saved)
        reader = Reader(data.read_label, cache_bytes=0)
        # KITTI's results are named as the ground truth, so that metrics.py can score them.
        jobs = [Job(sample.image, Path((sample.label if data.kitti else sample.image).stem), sample)
                for sample in getattr(data, options.split or "val")]
        if not jobs:
            raise InputError(f"{options.data}: has no images and masks in a folder test, for --split test")
        for job in jobs:
            if data.kitti and calibration_of(job.picture).is_file():
                homography(calibration_of(job.picture))  # raises what is wrong with it now, not in an hour
        read = lambda job: reader(job.sample)  # noqa: E731
    else:
        jobs = picture_jobs(options.inputs, options.out)

    archive = options.out / "submission.zip"
    if options.kitti:
        archive.unlink(missing_ok=True)  # it would look like this run's
    matrix, road_scores = 0, RoadScores()
    progress = Progress(len(jobs))
    with ThreadPoolExecutor(2) as pool:
        writing = deque()
        for job, picture in ahead(pool, read, jobs):
            due = progress.due()
            if isinstance(picture, str):
                failed.append(picture)
                continue
            image, label = picture
            pixels = torch.tensor(image).permute(2, 0, 1)[None].to(device)
            predicted, confidence, _ = classify(compute, pixels, net.reach, options.tile, road)
            predicted, confidence = predicted.cpu(), confidence.cpu()
            if data:
                label = torch.from_numpy(label)
                matrix = matrix + confusion(predicted, label, len(classes))
                if data.road:
                    road_scores.add_sample(job.sample, confidence, label)
            writing.append(pool.submit(write, job, options, image, predicted, confidence, classes))
            if len(writing) > WAITING:
                writing.popleft().result()
            give_back(pixels.shape)
            if due:
                progress.show(f"{progress.done}/{len(jobs)} pictures")
        for written in writing:
            written.result()

    progress.line(f"{len(jobs) - len(failed)} of {len(jobs)} pictures done; results in {options.out}")
    if failed and (data or options.kitti):  # a part would be taken for the whole
        failed.append(f"{len(failed)} of {len(jobs)} pictures are missing, so there "
                      f"{'are no scores' if data else 'is nothing to upload'}")
    elif data:
        result = {**scores(matrix), **({"road": road_scores.results()} if data.road else {})}
        print(report({options.split or "val": result}, classes))
    elif options.kitti and options.split != "training":
        pack(archive, [options.out / "bev" / f"{job.name}.png" for job in jobs])
        print(f"to upload: {archive}")


def load(path: Path) -> tuple[FCN8s, dict]:
    """The network of a checkpoint of train.py, and what else the checkpoint says. Raises InputError."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder, no checkpoint; did you mean {path / 'best.pt'}?")
    if path.suffix.lower() in IMAGE_ENDINGS:
        raise InputError(f"{path}: is a picture; the checkpoint comes first, such as runs/NAME/best.pt")
    saved = read_tensors(path)
    try:
        if len(saved["classes"]) != saved["config"]["num_classes"] or not {"task", "split_seed"} <= saved["settings"].keys():
            raise KeyError
        with torch.device("meta"):  # no memory for weights that are about to be replaced
            net = FCN8s(**saved["config"])
        net.load_state_dict(saved.pop("model"), assign=True)  # and kept nowhere else: bf16 will take its place
    except (KeyError, IndexError):
        raise InputError(f"{path}: is not a checkpoint of train.py, such as runs/NAME/best.pt") from None
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: the weights are not those of its own settings ({str(error).splitlines()[0]})") from None
    return net, saved


def prepared(net: FCN8s, amp: str, device: torch.device) -> Callable:
    """The function from pixels, uint8 [N, 3, H, W], to scores [N, C, H, W]. It changes `net`: device, mode and type."""
    bf16 = use_bf16(amp, device)
    net.to(device, torch.bfloat16 if bf16 else None).eval()  # autocast alone would turn the weights for each picture again

    def compute(pixels):
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            return net(normalise(pixels))  # part by part: as floats a large picture is four times its bytes

    return compute


# ---- which pictures -------------------------------------------------------------------------------------------------

def picture_jobs(inputs: list[str], out: Path) -> list[Job]:
    """Jobs for pictures, folders with all that is in them, and KITTI Road folders. Raises InputError.

    Results are named as the inputs are, from the deepest folder that holds all of them; what --out holds is left out.
    """
    pictures, roots = {}, []
    results = tuple(os.path.abspath(out / folder) for folder in FOLDERS)
    for given in (Path(os.path.abspath(path)) for path in inputs):
        found = [given]
        if given.is_dir():
            # Of KITTI Road the pictures, not the ground truth beside them.
            folders = [given / "testing" / "image_2", given / "training" / "image_2", given / "image_2"]
            folder = next((f for f in folders if f.is_dir()), given)
            found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS and file.is_file()
                           and not any(part.startswith(".") for part in file.relative_to(folder).parts)
                           and not any(file.is_relative_to(result) for result in results))
            if not found:
                raise InputError(f"{folder}: holds no pictures ({', '.join(sorted(IMAGE_ENDINGS))})")
        elif not given.is_file():
            raise InputError(f"{given}: no such file or folder")
        roots.append(given if given.is_dir() else given.parent)
        pictures.update(dict.fromkeys(found))
    try:
        root = Path(os.path.commonpath(roots))
    except ValueError:
        raise InputError(f"{roots[0]} and the other inputs have no folder in common; predict them one by one") from None

    # a.jpg gives a.png, but beside an a.png, or a folder a.png, a.jpg.png.
    names = [picture.relative_to(root) for picture in pictures]
    taken = Counter(str(path).casefold() for name in names for path in {name, name.with_suffix("")})
    taken.update({str(folder.with_suffix("")).casefold() for name in names for folder in name.parents if folder.suffix})
    jobs = [Job(picture, name if taken[str(name.with_suffix("")).casefold()] > 1 else name.with_suffix(""))
            for picture, name in zip(pictures, names, strict=True)]
    for job in jobs:
        for folder in results:
            if Path(f"{folder}/{job.name}.png") in pictures:
                raise InputError(f"{folder}/{job.name}.png: is one of the inputs and would be written over; "
                                 "choose another --out")
    return jobs


def kitti_jobs(root: Path, split: str, task: str) -> list[Job]:
    """Jobs for a split of KITTI Road, under the benchmark's names; every image must have its calibration."""
    folder = root / split / "image_2"
    wanted = ("um",) if task == "lane" else ("um", "umm", "uu")
    parts = [(image, *image.stem.rpartition("_")[::2]) for image in files_in(folder)]
    jobs = [Job(image, Path(f"{category}_{task}_{number}")) for image, category, number in parts if category in wanted]
    if not jobs:
        raise InputError(f"{folder}: no picture is named {' or '.join(f'{category}_000000.png' for category in wanted)}")
    for job in jobs:
        homography(calibration_of(job.picture))  # better now than after an hour
    return jobs


def data_set(root: Path, saved: dict):
    """The data set as train.py read it: the same task, the same split. Raises InputError if its classes are others."""
    settings = saved["settings"]
    data = find(root, settings["task"], settings["split_seed"], settings.get("classes", "all"))
    if data.classes != saved["classes"]:
        raise InputError(f"{root}: has the classes {', '.join(data.classes)}; the network knows "
                         f"{', '.join(saved['classes'])}: classes.txt must name the same")
    print(data.found)
    return data


# ---- reading ahead, writing behind ----------------------------------------------------------------------------------

def ahead(pool: ThreadPoolExecutor, read, jobs):
    """(job, read(job), or the message of the InputError it raised) in order, a few of them read in advance."""
    def attempt(job):
        try:
            return read(job)
        except InputError as error:
            return str(error)  # not the error itself: it would keep the picture's memory

    waiting = deque()
    for job in jobs:
        waiting.append((job, pool.submit(attempt, job)))
        if len(waiting) > WAITING:
            job, picture = waiting.popleft()
            yield job, picture.result()
    for job, picture in waiting:
        yield job, picture.result()


def write(job: Job, options, image: np.ndarray, predicted: torch.Tensor, confidence: torch.Tensor, classes: list[str]):
    """The pictures of one job into the folders of --out."""
    label = predicted.numpy()
    results = {"overlay": overlay(image, label, classes), "mask": palette_mask(label, classes)}
    if options.confidence or options.kitti:
        results["confidence"] = Image.fromarray(confidence.numpy())
    if options.kitti:
        cells = bird_cells(calibration_of(job.picture), *confidence.shape)
        results["bev"] = Image.fromarray(bird_view(confidence, cells, 0).numpy())
    for folder, picture in results.items():
        path = options.out / folder / f"{job.name}.png"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path, compress_level=1)  # a third of the time, some per cent of the space
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error}); choose another --out") from None


def pack(archive: Path, maps: list[Path]):
    """The zip that the benchmark's server takes: these files, without folders. All or nothing."""
    beside = archive.with_suffix(".part")
    with zipfile.ZipFile(beside, "w") as content:  # PNGs are compressed already
        for file in maps:
            content.write(file, file.name)
    os.replace(beside, archive)


def parse(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda message: parser.exit(2, f"predict.py: error: {message}\n")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="best.pt of a run of train.py; always first")
    parser.add_argument("inputs", metavar="INPUT", nargs="*", help="pictures, folders, or a KITTI Road folder")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path(OUT), help="where results go (default %(default)s)")
    parser.add_argument("--confidence", action="store_true", help="also write the confidence of class road (or lane)")
    parser.add_argument("--data", metavar="DIR", type=Path, help="predict and score a data set with ground truth")
    parser.add_argument("--kitti", metavar="DIR", type=Path, help="predict KITTI Road, write bird's-eye views and the zip")
    parser.add_argument("--split", choices=("train", "val", "test", "training", "testing"),
                        help="of --data: train, val (default) or test; of --kitti: training or testing (default)")
    parser.add_argument("--tile", metavar="N", type=like(r"[1-9]\d{0,5}", "a whole number", int), default=TILE,
                        help="largest part computed at once, N x N pixels: bounds the memory (default %(default)s: 3 GiB)")
    parser.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda or cuda:N (default %(default)s)")
    parser.add_argument("--amp", choices=("auto", "bf16", "off"), default="auto",
                        help="bf16 arithmetic (default %(default)s: where the hardware computes in it)")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    options = parser.parse_args(argv)
    if bool(options.inputs) + bool(options.data) + bool(options.kitti) != 1:
        parser.error("say what to predict: either pictures and folders, or --data DIR, or --kitti DIR")
    splits = ("train", "val", "test") if options.data else ("training", "testing") if options.kitti else ()
    if options.split and options.split not in splits:
        parser.error(f"--split {options.split}: " + (f"choose {' or '.join(splits)}" if splits else
                                                     "goes with --data or --kitti"))
    return options


if __name__ == "__main__":
    sys.exit(main())
