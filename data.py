"""python data.py DIR: say what train.py would read from a folder, and where every image would go.

Readers of real files. A data set is found by looking at the folder; a sample is a picture and its label map: class ids
0 ... C-1, or IGNORE (255) for pixels that neither train nor count.
"""

from __future__ import annotations

import hashlib
import re
import sys
import threading
import warnings
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from fcn import IGNORE
from vgg import InputError

HELD_OUT = 0.2             # share of the images that are kept out of training where the folder does not say
CACHE_BYTES = 2 * 2**30    # decoded pictures and labels kept in memory by each process: KITTI Road (0.5 GB), CamVid (0.3) fit
IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}

# Pillow's own limit against pictures made to exhaust the memory stops at 179 million pixels, which telephones reach.
# It refuses more than twice this number, and would warn from here on.
Image.MAX_IMAGE_PIXELS = 2**28
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

LAYOUTS = ("KITTI Road: DIR/training/image_2 and gt_image_2; or DIR/train and DIR/val, each with images and masks; "
           "or DIR/images and DIR/masks; or PASCAL VOC: DIR/JPEGImages, SegmentationClass and ImageSets/Segmentation")
VOC_CLASSES = ("background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
               "pottedplant sheep sofa train tvmonitor").split()


class Sample(NamedTuple):
    """One labelled picture: its files, and the group in whose proportion images are held out and by which road is scored.

    For KITTI Road that is the benchmark's set: um_lane, um_road, umm_road or uu_road.
    """
    image: Path
    label: Path
    group: str


class DataSet(NamedTuple):
    """What was found: a line that says it, the names of classes 0 ... C-1, the split, and the reader of label files.

    read_label(path) gives uint8 [H, W] class ids and raises InputError. kitti: the layout is KITTI Road's. test: images that
    training never looks at, for predict.py --split test; most data sets have none.
    """
    found: str
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    read_label: Callable[[Path], np.ndarray]
    kitti: bool = False
    test: list[Sample] = []

    @property
    def road(self) -> int | None:
        """1 where the classes are all else and one thing sought, as KITTI's road or lane: the benchmark's measures apply."""
        return 1 if len(self.classes) == 2 and road_class(self.classes) == 1 else None


# ---- finding a data set ---------------------------------------------------------------------------------------------

def find(root, task: str = "road", split_seed: int = 0, keep: str = "all") -> DataSet:
    """Look at folder `root` and return its DataSet. Raises InputError in one line if nothing known is there.

    task        "road" or "lane": which ground truth of KITTI Road; other layouts have only one
    split_seed  draws the held-out images where the folder has no split of its own
    keep        "all", or names of classes with commas between: the others become one, background
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    if (root / "training" / "image_2").is_dir():
        return keep_classes(find_kitti(root, task, split_seed), keep)
    if task != "road":
        raise InputError(f"--task {task}: {root} is not a folder of KITTI Road; to learn some classes of a data set, name them "
                         "with --classes")
    if (root / "train" / "images").is_dir() or (root / "images").is_dir():
        return keep_classes(find_masks(root, split_seed), keep)
    if (root / "JPEGImages").is_dir():
        return keep_classes(find_voc(root), keep)
    above = root.resolve().parent
    meant = root.name in ("training", "train", "images", "JPEGImages") and any(
        (above / inner).is_dir() for inner in ("training/image_2", "train/images", "images", "JPEGImages"))
    hint = f"did you mean {above}?" if meant else f"known layouts are {LAYOUTS}"
    raise InputError(f"{root}: no data set found here; {hint}")


def keep_classes(data: DataSet, keep: str) -> DataSet:
    """The data set with only the named classes; all others are class 0, background. Raises InputError."""
    if keep == "all":
        return data
    names = list(dict.fromkeys(name.strip() for name in keep.split(",")))
    for name in names:
        if name not in data.classes:
            raise InputError(f"--classes {keep}: there is no class {name!r}; there are {', '.join(data.classes)}")
    classes = ["background", *(name for name in names if name != "background")]
    if len(classes) == 1:
        raise InputError(f"--classes {keep}: name what is to be told from the background; there are {', '.join(data.classes)}")
    new = np.zeros(256, np.uint8)
    new[IGNORE] = IGNORE
    for i, name in enumerate(data.classes):
        new[i] = classes.index(name) if name in names else 0
    return data._replace(found=f"{data.found}; of these {', '.join(classes[1:])}, the others are background",
                         classes=classes, read_label=lambda path: new[data.read_label(path)])


def find_kitti(root: Path, task: str, split_seed: int) -> DataSet:
    """KITTI Road (Fritsch et al. 2013). um images have two ground truths, lane and road: exactly one of them is used.

    Globbing every file in gt_image_2 would train um images twice, on labels that contradict each other.
    """
    categories = {"road": ("um", "umm", "uu"), "lane": ("um",)}[task]
    wanted = re.compile(rf"({'|'.join(categories)})_{task}_(\d+)\.png")
    samples = []
    for label in files_in(root / "training" / "gt_image_2"):
        match = wanted.fullmatch(label.name)
        if match:
            category, number = match.groups()
            image = root / "training" / "image_2" / f"{category}_{number}.png"
            if not image.is_file():
                raise InputError(f"{label}: its image {image} is missing")
            samples.append(Sample(image, label, f"{category}_{task}"))
    if not samples:
        raise InputError(f"{root / 'training' / 'gt_image_2'}: no ground truth named "
                         f"{' or '.join(f'{c}_{task}_000000.png' for c in categories)} for --task {task}")
    train, val = hold_out(samples, split_seed)
    parts = ", ".join(f"{c} " + "+".join(str(sum(s.group == f"{c}_{task}" for s in part)) for part in (train, val))
                      for c in categories)
    found = f"{root}: KITTI Road, task {task}: {len(train)} training + {len(val)} held-out images ({parts})"
    return DataSet(found, [f"not {task}", task], train, val, read_kitti_label, kitti=True)


def road_class(classes: list[str]) -> int | None:
    """The class that is the road, by its name; or whatever there is besides background, if it is one class."""
    if len(classes) == 2 and classes[0] == "background":
        return 1
    return next((classes.index(name) for name in ("road", "lane") if name in classes), None)


def calibration_of(image: Path) -> Path:
    """The calibration file of a picture in a folder image_2 of KITTI Road; it need not exist."""
    return image.parent.parent / "calib" / f"{image.stem}.txt"


def find_masks(root: Path, split_seed: int) -> DataSet:
    """Pictures and masks of class ids, matched by stem; names from classes.txt if it is there, one a line."""
    if (root / "train" / "images").is_dir():
        train = matched(root / "train")
        val = matched(root / "val") if (root / "val").is_dir() else []
    elif (root / "val" / "images").is_dir():
        raise InputError(f"{root / 'val'}: goes beside a folder train; move {root / 'images'} and {root / 'masks'} into "
                         f"{root / 'train'}")
    else:
        train, val = matched(root), []
    if not val:
        train, val = hold_out(train, split_seed)
    test = matched(root / "test") if (root / "test" / "masks").is_dir() else []

    names = root / "classes.txt"
    if names.is_file():
        try:
            classes = [line.strip() for line in names.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{names}: cannot be read as text in UTF-8 ({error})") from None
        if len(set(classes)) < len(classes):
            raise InputError(f"{names}: a class is named twice; each line must be another name")
        if not 1 <= len(classes) <= IGNORE:
            raise InputError(f"{names}: {len(classes)} classes named; 1 to {IGNORE} are possible, one name a line")
    else:
        # The ids in use say how many classes there are: every mask has to be read once.
        ids = [np.unique(read_mask(s.label)) for s in train + val]
        ids = np.unique(np.concatenate(ids))
        ids = ids[ids != IGNORE]
        if not len(ids):
            raise InputError(f"{root}: every pixel of every mask is {IGNORE} (ignored); there is nothing to learn")
        if ids.max() >= 2 * len(ids) and ids.max() > 20:
            raise InputError(f"{root}: the masks hold {len(ids)} ids, {', '.join(map(str, ids[:4]))} ..., the largest "
                             f"{ids.max()}; number them 0, 1, 2, or say in {names} what the ids from 0 on are called")
        classes = [f"class {i}" for i in range(int(ids.max()) + 1)]

    def read_label(path):
        mask = read_mask(path)
        return np.where(mask < len(classes), mask, np.uint8(IGNORE))  # ids without a name are not counted

    named = "named in classes.txt" if names.is_file() else "counted in the masks"
    found = (f"{root}: images and masks, {len(classes)} classes {named}: "
             f"{len(train)} training + {len(val)} held-out images{f' + {len(test)} for --split test' if test else ''}")
    return DataSet(found, classes, train, val, read_label, test=test)


def find_voc(root: Path) -> DataSet:
    """PASCAL VOC 2012 (a folder VOCdevkit/VOC2012), and with it the masks of SBD (Hariharan et al. 2011) as PNGs.

    val.txt names the held-out images. trainaug.txt (or train_aug.txt) those to train on, if it is there: the 10,582 of both
    collections, less val's, that results are mostly given for; else train.txt, 1,464. Images without a mask in
    SegmentationClass take it from SegmentationClassAug.
    """
    lists = root / "ImageSets" / "Segmentation"

    def named(split):
        try:
            stems = dict.fromkeys((lists / f"{split}.txt").read_text(encoding="utf-8-sig").split())  # a name twice is one
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{lists / split}.txt: cannot be read as a list of images "
                             f"({getattr(error, 'strerror', 'not text')})") from None
        samples = []
        for stem in stems:
            if "/" in stem or "\\" in stem:
                raise InputError(f"{lists / split}.txt: names {stem[:60]!r}; a list with paths has to be cut down to names")
            image = root / "JPEGImages" / f"{stem}.jpg"
            masks = [root / folder / f"{stem}.png" for folder in ("SegmentationClass", "SegmentationClassAug")]
            mask = next((file for file in masks if file.is_file()), None)
            for file in (image, mask or masks[0]):
                if not file.is_file():
                    raise InputError(f"{lists / split}.txt: names {stem[:60]!r}, but there is no {file.name[:64]!r} in "
                                     f"{file.parent}")
            samples.append(Sample(image, mask, ""))
        if not samples:
            raise InputError(f"{lists / split}.txt: names no images")
        return samples

    split = next((name for name in ("trainaug", "train_aug") if (lists / f"{name}.txt").is_file()), "train")
    train, val = named(split), named("val")
    if both := {s.image for s in train} & {s.image for s in val}:
        raise InputError(f"{lists / split}.txt: {len(both)} of its images are in val.txt too, as {min(both).stem}; take them "
                         "out, or what is held out is what was learnt")

    def read_label(path):
        mask = read_mask(path)
        odd = (mask >= len(VOC_CLASSES)) & (mask != IGNORE)
        if odd.any():
            raise InputError(f"{path}: has the class {mask[odd][0]}; VOC has 0 to 20, and 255 at the borders")
        return mask

    found = f"{root}: PASCAL VOC, 21 classes: {len(train)} training ({split}) + {len(val)} held-out images (val)"
    return DataSet(found, list(VOC_CLASSES), train, val, read_label)


def files_in(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted by name, hidden files left out. Raises InputError if the folder is not there."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_ENDINGS and not f.name.startswith("."))


def matched(folder: Path) -> list[Sample]:
    """Samples of folder/images and folder/masks by stem. A picture or mask without its partner is an error."""
    images, masks = {}, {}
    for found, name in ((images, "images"), (masks, "masks")):
        for file in files_in(folder / name):
            if file.stem in found:
                raise InputError(f"{file}: has the same stem as {found[file.stem].name}; one of them must go")
            if name == "masks" and file.suffix.lower() != ".png":
                raise InputError(f"{file}: masks must be PNG; a lossy format blends the class ids")
            found[file.stem] = file
    for stem in sorted(images.keys() ^ masks.keys()):
        lone, missing = (images[stem], "mask") if stem in images else (masks[stem], "image")
        raise InputError(f"{lone}: there is no {missing} named {stem} in {folder / (missing + 's')}")
    if not images:
        raise InputError(f"{folder / 'images'}: holds no pictures ({', '.join(sorted(IMAGE_ENDINGS))})")
    return [Sample(images[stem], masks[stem], "") for stem in sorted(images)]


def hold_out(samples: list[Sample], seed: int) -> tuple[list[Sample], list[Sample]]:
    """(train, val): about HELD_OUT of each group, and one image at least, go to val.

    The draw is by a hash of seed and file name, so it is the same on every machine, whatever the folder's path or
    order, and an image that is added later leaves the others where they were in the draw.
    """
    if len(samples) < 2:
        raise InputError(f"{samples[0].image}: is the only labelled image; two at least are needed, one of them held out")
    drawn = sorted(samples, key=lambda s: hashlib.sha256(f"{seed} {s.image.name}".encode()).hexdigest())
    val = set()
    for group in sorted({s.group for s in samples}):
        members = [s for s in drawn if s.group == group]
        val.update(members[:round(HELD_OUT * len(members))])
    val = val or {drawn[0]}
    return [s for s in samples if s not in val], [s for s in samples if s in val]


# ---- reading pictures and labels ------------------------------------------------------------------------------------

def open_picture(path: Path, whole_bytes: bool = False) -> Image.Image:
    """A decoded Pillow image, turned upright by its EXIF tag. Raises InputError naming the file.

    With whole_bytes also if it is grey of 2 or 4 bits: Pillow would stretch its numbers to 0..255.
    """
    try:
        with Image.open(path) as image:
            if whole_bytes and image.tile and image.tile[0][3] in ("L;2", "L;4"):
                raise InputError(f"{path}: is grey of {image.tile[0][3][2]} bits a pixel; save it with 8")
            image.load()
            try:
                return ImageOps.exif_transpose(image)
            except Exception:  # a damaged tag; the picture itself is whole
                return image
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise many kinds on damaged files
        raise InputError(f"{path}: cannot be read as a picture ({str(error) or type(error).__name__})") from None


def read_image(path: Path) -> np.ndarray:
    """RGB uint8 [H, W, 3]. Raises InputError."""
    image = open_picture(path)
    if image.mode[0] in "IF":  # 16 bits, 32 bits or floats: Pillow would clip them at 255 instead of scaling
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        largest = next((top for top in (1, 255, 65535) if values.max() <= top), values.max())
        if image.mode.startswith("I;16"):
            largest = 65535  # said by the file, need not be guessed
        image = Image.fromarray(np.round(255 * values.clip(0) / largest).astype(np.uint8))
    if "transparency" in image.info:  # else Pillow warns of colours that it cannot keep
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """Class ids uint8 [H, W] of an 8-bit grey or palette PNG: the stored numbers, not the colours. Raises InputError."""
    image = open_picture(path, whole_bytes=True)
    if image.mode not in ("L", "P", "1"):
        raise InputError(f"{path}: a mask must be an 8-bit grey or palette PNG of class ids, this one is {image.mode}")
    return np.asarray(image).astype(np.uint8)


def read_kitti_label(path: Path) -> np.ndarray:
    """0 not road, 1 road, IGNORE: uint8 [H, W] of KITTI's colours. Raises InputError.

    Magenta (255, 0, 255) is road, red (255, 0, 0) not road, black not valid. Black is never road and never not-road:
    valid is where red is set, and road where blue is set too.
    """
    image = open_picture(path)
    if image.mode != "RGB":
        raise InputError(f"{path}: KITTI ground truth is RGB, this picture is {image.mode}")
    pixels = np.asarray(image)
    red, green, blue = np.moveaxis(pixels, 2, 0)
    odd = (green > 0) | (red % 255 > 0) | (blue % 255 > 0) | (blue > red)
    if odd.any():  # such as what a resize with a blending filter leaves
        raise InputError(f"{path}: has the colour {tuple(pixels[odd][0].tolist())}; KITTI's ground truth has magenta "
                         "(255, 0, 255), red (255, 0, 0) and black alone")
    return np.where(red == 0, IGNORE, blue > 0).astype(np.uint8)


class Reader:
    """reader(sample) gives (image uint8 [H, W, 3], label uint8 [H, W]); decoded pairs stay in memory up to CACHE_BYTES.

    What does not fit is decoded again each time. Nothing is evicted: each image is used once per epoch in random
    order, so the ones already here are as good as any others. May be called from several threads.
    """

    def __init__(self, read_label: Callable[[Path], np.ndarray], cache_bytes: int = CACHE_BYTES):
        self.read_label = read_label
        self.room = cache_bytes
        self.cache = {}
        self.lock = threading.Lock()

    def __call__(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        if sample in self.cache:
            return self.cache[sample]
        image, label = read_image(sample.image), self.read_label(sample.label)
        if image.shape[:2] != label.shape:
            raise InputError(f"{sample.label}: is {label.shape[1]}x{label.shape[0]}, its image {sample.image} is "
                             f"{image.shape[1]}x{image.shape[0]}; they must be of one size")
        with self.lock:
            if image.nbytes + label.nbytes <= self.room and sample not in self.cache:
                self.room -= image.nbytes + label.nbytes
                self.cache[sample] = image, label
        return image, label


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status: 0, or 2 for input that cannot be used (one line on stderr)."""
    try:
        if len(arguments) not in (1, 2) or arguments[1:] not in ([], ["road"], ["lane"]):
            raise InputError("say which folder: python data.py DIR [road|lane]")
        data = find(*arguments)
    except (InputError, OSError) as error:
        print(f"data.py: error: {error}", file=sys.stderr)
        return 2
    print(data.found)
    for part, members in (("train", data.train), ("held out", data.val), ("test", data.test)):
        for sample in members:
            print(f"{part}\t{sample.image}\t{sample.label}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
