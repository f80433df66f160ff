"""Reading picture files: photos of the common formats as RGB, upright; and masks as the numbers or
colours that are stored.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
from PIL import Image

from support.console import InputError

IMAGE_ENDINGS = {
    ".png",
    ".jpg",
    ".jpeg",
    ".jfif",
    ".bmp",
    ".gif",
    ".pgm",
    ".ppm",
    ".tif",
    ".tiff",
    ".webp",
}
VIDEO_ENDINGS = {".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"}
OTHER_ENDINGS = {".heic", ".heif", ".avif"}  # pictures that are not read
# What a file may be inside, whatever its name says. Pillow knows some forty formats more; their
# decoders are rarely used, and a file that reaches one of them is no photo. JPEG covers the MPO of
# telephones, PPM covers PGM.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
HIDDEN = (
    ".",
    "@eaDir",
    "__MACOSX",
)  # what names begin with that people do not see: thumbnails, and traces of other systems
TRANSPARENT = 2**24  # stands for all colours that are not opaque
ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held: 1 upright, 2 to 8 as below
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

LARGEST = (
    2**28
)  # pixels of a picture: telephones reach 200 million. A larger file is assumed to be an attack on the memory


def allow_large_pictures():
    """Let Pillow open pictures of up to LARGEST pixels without a warning. Called by scripts that
    are run: the limit is one for all of a program, and what only imports this file keeps Pillow's,
    179 million.
    """
    Image.MAX_IMAGE_PIXELS = (
        LARGEST // 2
    )  # Pillow warns above this number, and refuses above twice this number
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Room:
    """Lets threads decode pictures at once as long as these have no more than `total` pixels
    together.

    The others wait. A picture larger than that waits until it is alone.
    """

    def __init__(self, total: int = LARGEST):
        self.total = self.left = total
        self.changed = threading.Condition()

    @contextmanager
    def of(self, pixels: int):
        with self.changed:
            self.changed.wait_for(lambda: pixels <= self.left or self.left == self.total)
            self.left -= pixels
        try:
            yield
        finally:
            with self.changed:
                self.left += pixels
                self.changed.notify_all()


ROOM = Room()


class Picture(NamedTuple):
    """A photo, uint8 [H, W, 3], turned upright; the EXIF orientation (1 to 8) it was stored with;
    and how many frames or pages its file has, of which this is the first.
    """

    pixels: np.ndarray
    orientation: int
    frames: int


def files_in(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted by name, without hidden files. Raises InputError if there is
    no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return sorted(
        f
        for f in folder.iterdir()
        if f.suffix.lower() in IMAGE_ENDINGS and not f.name.startswith(".")
    )


def files_below(folder: Path, endings: set[str] = IMAGE_ENDINGS) -> list[Path]:
    """The pictures in a folder and all folders in it, or the files of other endings, sorted by
    path, without what is hidden.

    Raises InputError if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found, seen = [], set()
    for place, folders, names in os.walk(
        folder, followlinks=True
    ):  # data sets are often links to another disk
        real = os.path.realpath(place)
        folders[:] = [name for name in folders if not name.startswith(HIDDEN) and real not in seen]
        if real not in seen:
            found += [
                Path(place, name)
                for name in names
                if Path(name).suffix.lower() in endings and not name.startswith(".")
            ]
        seen.add(real)
    return sorted(found)


def open_picture(path: Path, mask: bool = False) -> Image.Image:
    """A decoded Pillow image, as it is stored. Raises InputError naming the file.

    mask    its numbers mean something: refuse what is no PNG inside, what Pillow would stretch, and
            what a tag would turn
    """
    with decoded(path, mask) as (image, _, _):
        if mask and orientation_of(image) != 1:
            raise InputError(
                f"{path}: has an EXIF tag that turns it; save it as it is to be read, without the tag"
            )
    return image


@contextmanager
def decoded(path: Path, mask: bool):
    """Within it there is room for the picture. Yields the decoded image, the number of frames or
    pages in its file, and the EXIF orientation that Pillow has followed already, 1 if none. Raises
    InputError naming the file, also for errors within.
    """
    frames = followed = 1
    try:
        with Image.open(path, formats=FORMATS) as image, ROOM.of(image.width * image.height):
            if mask and image.format != "PNG":
                raise InputError(
                    f"{path}: is {image.format} inside, and must be PNG; a lossy format blends the class ids, and "
                    "other endings do not change what a file is"
                )
            if (
                mask and image.tile and image.tile[0][3] in ("L;2", "L;4")
            ):  # Pillow would stretch the numbers to 0..255
                raise InputError(
                    f"{path}: is grey of {image.tile[0][3][2]} bits a pixel; save it with 8"
                )
            if image.format in (
                "GIF",
                "TIFF",
                "WEBP",
            ):  # the second picture in a telephone's JPEG is a preview
                frames = getattr(image, "n_frames", 1)
            before = orientation_of(image) if image.format == "TIFF" else 1
            image.load()
            if (
                image.format == "TIFF" and orientation_of(image) != before
            ):  # Pillow turns TIFFs by itself
                followed = before
            yield image, frames, followed
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        raise InputError(f"{path}: cannot be read as a picture ({reason(path, error)})") from None


def as_rgb(image: Image.Image) -> np.ndarray:
    """A decoded picture of any mode as uint8 [H, W, 3]."""
    if (
        image.mode[0] in "IF"
    ):  # 16 bits, 32 bits or floats: Pillow would clip them at 255 instead of scaling them
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        largest = next((top for top in (1, 255, 65535) if values.max() <= top), values.max())
        if image.mode.startswith("I;16"):
            largest = 65535  # the file says so, there is no need to guess
        image = Image.fromarray(np.round(255 * values.clip(0) / largest).astype(np.uint8))
    if "transparency" in image.info:  # otherwise Pillow warns about colours that it cannot keep
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def reason(path: Path, error: Exception) -> str:
    """Why a file cannot be read as a picture, and the mend where there is one."""
    ending = path.suffix.lower()
    if ending in VIDEO_ENDINGS:
        return "it is a video; make pictures of it first, such as with: ffmpeg -i VIDEO FOLDER/%06d.png"
    if ending in (".heic", ".heif"):
        return "Pillow does not read HEIC; save it as JPEG, or set the telephone to take JPEG"
    if "cannot identify" in str(error):
        return f"it is none of {', '.join(FORMATS)} inside, or damaged"
    return str(error) or type(error).__name__


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of a decoded picture, 1 to 8; 1 without the tag."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a damaged tag; the picture itself is whole
        return 1
    return value if value in range(1, 9) else 1


def read_picture(path: Path) -> Picture:
    """A photo of any mode as RGB, upright. Raises InputError naming the file."""
    with decoded(path, mask=False) as (image, frames, followed):
        orientation = orientation_of(image)
        if orientation != 1:
            image = image.transpose(TURNS[orientation])
        return Picture(as_rgb(image), orientation if followed == 1 else followed, frames)


def read_mask(path: Path, shown_as: dict[int, tuple] | None = None) -> np.ndarray:
    """Class ids uint8 [H, W] of a grey or palette PNG: the stored numbers, not the colours. Raises
    InputError.

    shown_as    the colour that the palettes of other masks give to each id, which this one's are
                added to. Programs that pick a palette for each picture number the colours anew in
                each: where one id has two colours, the ids mean nothing
    """
    image = open_picture(path, mask=True)
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        colours = sorted(image.convert("RGB").getcolors(2**24) or [], reverse=True)[:3]
        raise InputError(
            f"{path}: a mask must be an 8-bit grey or palette PNG of class ids, this one is {image.mode}; if it "
            "shows classes by colours, name them in classes.txt, beside the data's folders, in lines NAME R G B, "
            f"here for {', '.join(' '.join(map(str, colour)) for _, colour in colours)} and others"
        )
    ids = np.asarray(image)
    if image.mode == "P" and shown_as is not None:
        palette = image.getpalette("RGB")
        for i in np.unique(ids).tolist():
            colour = tuple(palette[3 * i : 3 * i + 3])
            if shown_as.setdefault(i, colour) != colour:
                raise InputError(
                    f"{path}: its palette shows id {i} as {colour}, that of another mask as {shown_as[i]}; if the "
                    "colours mean the classes, list them in classes.txt, NAME R G B; if the ids do, save the "
                    "masks as grey"
                )
    if ids.max(initial=0) > 255:
        raise InputError(
            f"{path}: has the id {ids.max()}; ids go from 0 to 254, and 255 is ignored"
        )
    return ids.astype(np.uint8)


def read_colours(path: Path) -> np.ndarray:
    """The colours of a mask: uint32 [H, W], 65536 R + 256 G + B, or TRANSPARENT. Raises InputError."""
    image = open_picture(path, mask=True)
    if image.mode.startswith("I"):  # Pillow would clip the values
        image = Image.fromarray(read_mask(path))
    rgba = np.asarray(image.convert("RGBA")).astype(np.uint32)
    colours = (rgba[..., 0] << 16) | (rgba[..., 1] << 8) | rgba[..., 2]
    return np.where(rgba[..., 3] == 255, colours, np.uint32(TRANSPARENT))


# ---- One sample read: its picture and its label map, of one size and the same way up, kept in R

CACHE_BYTES = (
    2 * 2**30
)  # decoded pictures and labels kept in RAM by each process; KITTI Road (0.5 GB) and CamVid (0.3) fit


class Reader:
    """reader(sample) gives (image uint8 [H, W, 3], label uint8 [H, W]). Decoded pairs stay in RAM
    up to `cache_bytes`.

    read_label    that of the DataSet

    What does not fit is decoded again each time. Nothing is evicted: each image is used once per
    epoch in random order, so any cached image is as useful as any other. May be called from several
    threads. Raises InputError naming the file.
    """

    def __init__(
        self,
        read_label: Callable[[Path, Counter | None], np.ndarray],
        cache_bytes: int = CACHE_BYTES,
    ):
        self.read_label = read_label
        self.room = cache_bytes
        self.cache = {}
        self.lock = threading.Lock()

    def __call__(self, sample, strays: Counter | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The image uint8 [H, W, 3] and the label map uint8 [H, W] of a sample.

        Its pixels without a class are added to `strays`, unless it is in the cache.
        """
        if sample in self.cache:
            return self.cache[sample]
        picture = read_picture(sample.image)
        label = same_way_up(sample, picture, self.read_label(sample.label, strays))
        image = picture.pixels
        if image.shape[:2] != label.shape:
            raise InputError(
                f"{sample.label}: is {label.shape[1]}x{label.shape[0]}, its image {sample.image} is "
                f"{image.shape[1]}x{image.shape[0]}; they must be of one size"
            )
        with self.lock:
            if image.nbytes + label.nbytes <= self.room and sample not in self.cache:
                self.room -= image.nbytes + label.nbytes
                self.cache[sample] = image, label
        return image, label


def same_way_up(sample, picture, label: np.ndarray) -> np.ndarray:
    """The label map uint8 [H, W] of a sample, turned upright with its picture (class Picture) if it
    was drawn on the picture as it is stored. Raises InputError.

    Cameras store what the sensor saw and note in an EXIF tag how they were held. Pictures are
    turned by it; masks have no such tag. Some labelling tools show the picture turned, others as it
    is stored. Where the turn swaps height and width, the mask's size tells which. Where both sizes
    are alike, nobody can tell.
    """
    if picture.orientation == 1:
        return label
    upright = picture.pixels.shape[:2]
    stored = upright[::-1] if picture.orientation >= 5 else upright
    if label.shape == stored == upright:
        raise InputError(
            f"{sample.image}: its EXIF tag turns it (orientation {picture.orientation}), its mask {sample.label} "
            "has no such tag, and their sizes do not show whether it was drawn before or after the turn; save "
            "the picture as it was labelled, without the tag"
        )
    return (
        np.asarray(Image.fromarray(label).transpose(TURNS[picture.orientation]))
        if label.shape == stored
        else label
    )
