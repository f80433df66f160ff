"""What a sample is, and how the samples of a data set are found and read.

    python data.py DIR [road|lane]     print what train.py would read from a folder, and where every image would go

A sample is a picture and its label map: class ids 0 ... C-1, or IGNORE (255) for pixels that are left out of training and
scores. Which kind of data set a folder holds is told by the folders inside it, see LAYOUTS.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np

from support.errors import InputError
from support.labels import IGNORE, only_road
from support.pictures import IMAGE_ENDINGS, files_in, open_picture, read_mask
from support.split import hold_out

VOC_CLASSES = ("background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person "
               "pottedplant sheep sofa train tvmonitor").split()


class Sample(NamedTuple):
    """One labelled picture: the paths of its image and its label, and the group it belongs to.

    Images are held out in the same proportion from every group, and roads are scored by group. For KITTI Road the group is
    the benchmark's category: um_lane, um_road, umm_road or uu_road. Elsewhere it is "".
    """
    image: Path
    label: Path
    group: str


class DataSet(NamedTuple):
    """What was found in a folder.

    summary      one line on what was found
    classes      the names of classes 0 ... C-1
    train, val   the training set and the validation set (the held-out images)
    read_label   from the path of a label file to class ids uint8 [H, W]; raises InputError
    kitti        whether the layout is KITTI Road's
    test         images that training never looks at, for predict.py --split test; most data sets have none
    """
    summary: str
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    read_label: Callable[[Path], np.ndarray]
    kitti: bool = False
    test: list[Sample] = []

    @property
    def road(self) -> int | None:
        """1 where class 1 is the road (or the one thing sought) and class 0 all else: then the benchmark's measures apply."""
        return 1 if only_road(self.classes) == 1 else None


def find(root, task: str = "road", split_seed: int = 0, keep: str = "all") -> DataSet:
    """The DataSet in folder `root`. Raises InputError in one line if there is none, or if something in it is amiss.

    task        "road" or "lane": which ground truth of KITTI Road to use; other layouts have only one
    split_seed  decides which images are held out where the folder has no split of its own
    keep        "all", or names of classes separated by commas: the others become one class, background
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    layout = next((find_layout for marker, find_layout in LAYOUTS.items() if (root / marker).is_dir()), None)
    if task != "road" and layout is not find_kitti:
        raise InputError(f"--task {task}: {root} is not a folder of KITTI Road; to learn some classes of a data set, name them "
                         "with --classes")
    if layout:
        return keep_classes(layout(root, task, split_seed), keep)
    above = root.resolve().parent
    meant = any(root.name in Path(marker).parts and (above / marker).is_dir() for marker in LAYOUTS)
    hint = f"did you mean {above}?" if meant else f"known layouts are {KNOWN}"
    raise InputError(f"{root}: no data set found here; {hint}")


def find_kitti(root: Path, task: str, split_seed: int) -> DataSet:
    """KITTI Road (Fritsch, Kuehnl and Geiger 2013). um images have two ground truths, lane and road: one of them is used.

    Taking every file in gt_image_2 would train um images twice, on labels that contradict each other.
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
    summary = f"{root}: KITTI Road, task {task}: {len(train)} training + {len(val)} held-out images ({parts})"
    return DataSet(summary, [f"not {task}", task], train, val, read_kitti_label, kitti=True)


def read_kitti_label(path: Path) -> np.ndarray:
    """0 not road, 1 road, IGNORE: uint8 [H, W] from KITTI's colours. Raises InputError.

    Magenta (255, 0, 255) is road, red (255, 0, 0) is not road, black is not valid. Black is neither: a pixel is valid where
    red is set, and road where blue is set too.
    """
    image = open_picture(path)
    if image.mode != "RGB":
        raise InputError(f"{path}: KITTI ground truth is RGB, this picture is {image.mode}")
    pixels = np.asarray(image)
    red, green, blue = np.moveaxis(pixels, 2, 0)
    odd = (green > 0) | (red % 255 > 0) | (blue % 255 > 0) | (blue > red)
    if odd.any():  # such as the colours that a resize with a blending filter leaves
        raise InputError(f"{path}: has the colour {tuple(pixels[odd][0].tolist())}; KITTI's ground truth has magenta "
                         "(255, 0, 255), red (255, 0, 0) and black alone")
    return np.where(red == 0, IGNORE, blue > 0).astype(np.uint8)


def find_masks(root: Path, task: str, split_seed: int) -> DataSet:
    """Pictures and masks of class ids, matched by stem; class names from classes.txt if it is there, one a line."""
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
    classes = read_names(names) if names.is_file() else count_classes(root, train + val)

    def read_label(path):
        mask = read_mask(path)
        return np.where(mask < len(classes), mask, np.uint8(IGNORE))  # ids without a name do not count

    named = "named in classes.txt" if names.is_file() else "counted in the masks"
    summary = (f"{root}: images and masks, {len(classes)} classes {named}: "
               f"{len(train)} training + {len(val)} held-out images{f' + {len(test)} for --split test' if test else ''}")
    return DataSet(summary, classes, train, val, read_label, test=test)


def read_names(path: Path) -> list[str]:
    """The class names in classes.txt. Raises InputError."""
    try:
        classes = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text in UTF-8 ({error})") from None
    if len(set(classes)) < len(classes):
        raise InputError(f"{path}: a class is named twice; each line must be another name")
    if not 1 <= len(classes) <= IGNORE:
        raise InputError(f"{path}: {len(classes)} classes named; 1 to {IGNORE} are possible, one name a line")
    return classes


def count_classes(root: Path, samples: list[Sample]) -> list[str]:
    """Names for as many classes as the ids in all masks call for. Raises InputError."""
    ids = np.unique(np.concatenate([np.unique(read_mask(sample.label)) for sample in samples]))
    ids = ids[ids != IGNORE]
    if not len(ids):
        raise InputError(f"{root}: every pixel of every mask is {IGNORE} (ignored); there is nothing to learn")
    if ids.max() >= 2 * len(ids) and ids.max() > 20:
        raise InputError(f"{root}: the masks hold {len(ids)} ids, {', '.join(map(str, ids[:4]))} ..., the largest "
                         f"{ids.max()}; number them 0, 1, 2, or say in {root / 'classes.txt'} what the ids from 0 on are "
                         "called")
    return [f"class {i}" for i in range(int(ids.max()) + 1)]


def matched(folder: Path) -> list[Sample]:
    """Samples of folder/images and folder/masks by stem. Raises InputError if a picture or mask has no partner."""
    images, masks = {}, {}
    for files, name in ((images, "images"), (masks, "masks")):
        for file in files_in(folder / name):
            if file.stem in files:
                raise InputError(f"{file}: has the same stem as {files[file.stem].name}; one of them must go")
            if name == "masks" and file.suffix.lower() != ".png":
                raise InputError(f"{file}: masks must be PNG; a lossy format blends the class ids")
            files[file.stem] = file
    for stem in sorted(images.keys() ^ masks.keys()):
        lone, missing = (images[stem], "mask") if stem in images else (masks[stem], "image")
        raise InputError(f"{lone}: there is no {missing} named {stem} in {folder / (missing + 's')}")
    if not images:
        raise InputError(f"{folder / 'images'}: holds no pictures ({', '.join(sorted(IMAGE_ENDINGS))})")
    return [Sample(images[stem], masks[stem], "") for stem in sorted(images)]


def find_voc(root: Path, task: str, split_seed: int) -> DataSet:
    """PASCAL VOC 2012 (a folder VOCdevkit/VOC2012), and with it the masks of SBD (Hariharan et al. 2011) as PNGs.

    val.txt names the held-out images. trainaug.txt (or train_aug.txt) names those to train on, if it is there: the 10,582 of
    both collections, without val's, that most results are given for. Otherwise train.txt does: 1,464. Images without a mask
    in SegmentationClass take it from SegmentationClassAug.
    """
    lists = root / "ImageSets" / "Segmentation"
    split = next((name for name in ("trainaug", "train_aug") if (lists / f"{name}.txt").is_file()), "train")
    train, val = listed(root, lists / f"{split}.txt"), listed(root, lists / "val.txt")
    if both := {s.image for s in train} & {s.image for s in val}:
        raise InputError(f"{lists / split}.txt: {len(both)} of its images are in val.txt too, as {min(both).stem}; take them "
                         "out, or the network is scored on what it was trained on")

    def read_label(path):
        mask = read_mask(path)
        odd = (mask >= len(VOC_CLASSES)) & (mask != IGNORE)
        if odd.any():
            raise InputError(f"{path}: has the class {mask[odd][0]}; VOC has 0 to 20, and 255 at the borders")
        return mask

    summary = f"{root}: PASCAL VOC, 21 classes: {len(train)} training ({split}) + {len(val)} held-out images (val)"
    return DataSet(summary, list(VOC_CLASSES), train, val, read_label)


def listed(root: Path, names: Path) -> list[Sample]:
    """Samples of PASCAL VOC by a list of image names. Raises InputError."""
    try:
        stems = dict.fromkeys(names.read_text(encoding="utf-8-sig").split())  # a name that comes twice counts once
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{names}: cannot be read as a list of images ({getattr(error, 'strerror', 'not text')})") from None
    samples = []
    for stem in stems:
        if "/" in stem or "\\" in stem:
            raise InputError(f"{names}: names {stem[:60]!r}; a list with paths has to be cut down to names")
        image = root / "JPEGImages" / f"{stem}.jpg"
        masks = [root / folder / f"{stem}.png" for folder in ("SegmentationClass", "SegmentationClassAug")]
        mask = next((file for file in masks if file.is_file()), None)
        for file in (image, mask or masks[0]):
            if not file.is_file():
                raise InputError(f"{names}: names {stem[:60]!r}, but there is no {file.name[:64]!r} in {file.parent}")
        samples.append(Sample(image, mask, ""))
    if not samples:
        raise InputError(f"{names}: names no images")
    return samples


# A folder inside DIR that marks a layout, and the function that reads it. A new layout is a function from (root, task,
# split_seed) to a DataSet and a line here; the first line that fits counts. KNOWN is what an error message lists.
LAYOUTS = {
    "training/image_2": find_kitti,
    "train/images": find_masks,
    "images": find_masks,
    "JPEGImages": find_voc,
}
KNOWN = ("KITTI Road: DIR/training/image_2 and gt_image_2; or DIR/train and DIR/val, each with images and masks; "
         "or DIR/images and DIR/masks; or PASCAL VOC: DIR/JPEGImages, SegmentationClass and ImageSets/Segmentation")


def keep_classes(data: DataSet, keep: str) -> DataSet:
    """The data set with only the named classes; all others become class 0, background. Raises InputError."""
    if keep == "all":
        return data
    names = list(dict.fromkeys(name.strip() for name in keep.split(",")))
    for name in names:
        if name not in data.classes:
            raise InputError(f"--classes {keep}: there is no class {name!r}; there are {', '.join(data.classes)}")
    classes = ["background", *(name for name in names if name != "background")]
    if len(classes) == 1:
        raise InputError(f"--classes {keep}: name what is to be told from the background; there are {', '.join(data.classes)}")
    new = np.zeros(256, np.uint8)  # old id -> new id
    new[IGNORE] = IGNORE
    for i, name in enumerate(data.classes):
        new[i] = classes.index(name) if name in names else 0
    return data._replace(summary=f"{data.summary}; of these {', '.join(classes[1:])}, the others are background",
                         classes=classes, read_label=lambda path: new[data.read_label(path)])


def main(arguments: list[str]) -> int:
    """Run the command line; returns the exit status: 0, or 2 for input that cannot be used (one line on stderr)."""
    if arguments in (["-h"], ["--help"]):
        print(__doc__.strip())
        return 0
    try:
        if len(arguments) not in (1, 2) or arguments[1:] not in ([], ["road"], ["lane"]):
            raise InputError("say which folder: python data.py DIR [road|lane]")
        data = find(*arguments)
    except (InputError, OSError) as error:
        print(f"data.py: error: {error}", file=sys.stderr)
        return 2
    print(data.summary)
    for part, members in (("train", data.train), ("held out", data.val), ("test", data.test)):
        for sample in members:
            print(f"{part}\t{sample.image}\t{sample.label}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
