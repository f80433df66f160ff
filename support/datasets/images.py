"""Reading picture files: photos as upright RGB, masks as the stored numbers."""

from __future__ import annotations

import os
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from support.console import InputError, shown
from support.labels import Sample

IMAGE_ENDINGS = set(".png .jpg .jpeg .jfif .bmp .gif .pgm .ppm .tif .tiff .webp".split())
# Videos and unsupported picture formats.
OTHER_ENDINGS = set(".mp4 .mov .avi .mkv .webm .m4v .mpg .mpeg .wmv .heic .heif .avif".split())
# By content, not by file name. Pillow has some forty other formats, but their decoders are rarely
# used and rarely checked. JPEG covers the MPO of phones, PPM covers PGM.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
HIDDEN = (".", "@eaDir", "__MACOSX")  # prefixes of thumbnails and of other systems' files
TRANSPARENT = 2**24  # stands for every colour that is not opaque
ORIENTATION = 0x0112  # EXIF tag: 1 is upright, 2 to 8 need a turn
# Phones reach 200 million pixels. A larger picture is taken for a decompression bomb.
MAX_PIXELS = 2**28
CACHE_BYTES = 2 * 2**30  # KITTI Road takes 0.5 GB, CamVid 0.3 GB


def allow_large_pictures():
    """Let Pillow open pictures of up to MAX_PIXELS without a warning.

    The limit holds for the whole process, so only scripts call this. A program that imports this
    file keeps Pillow's limit, 179 million.
    """
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # Pillow warns above it, refuses above its double
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Room:
    """Limits the memory of decoding threads to `total` pixels at once; other threads wait.

    A larger picture waits until it is the only one.
    """

    def __init__(self, total: int = MAX_PIXELS):
        self.total = self.left = total
        self.changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        pixels = min(pixels, self.total)
        with self.changed:
            self.changed.wait_for(lambda: pixels <= self.left)
            self.left -= pixels
        try:
            yield
        finally:
            with self.changed:
                self.left += pixels
                self.changed.notify_all()


ROOM = Room()


def files_below(folder: Path, endings: set[str] = IMAGE_ENDINGS) -> list[Path]:
    """The files with these extensions in a folder and its subfolders, sorted by path.

    Follows links to folders, since data sets often lie on another disk. Skips hidden files and
    folders. Raises InputError if there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")

    def refuse(error):
        raise InputError(f"{error.filename}: cannot be read ({error.strerror})")

    found, visited = [], set()
    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(place)
        if real in visited:  # a loop of links
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(HIDDEN))
        files = [Path(place, name) for name in names if name[0] != "."]
        found += [file for file in files if file.suffix.lower() in endings]
    return sorted(found)


@contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Context manager that yields the Pillow image of a file, not yet decoded, and reserves memory.

    Raises InputError naming the file, also for errors while the block decodes it.
    """
    try:
        with Image.open(path, formats=FORMATS) as image, ROOM.take(image.width * image.height):
            yield image
    except (InputError, MemoryError):
        raise
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        reason = str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = f"it is damaged, or not a {', '.join(FORMATS)} file"
        raise InputError(f"{path}: cannot be read as a picture ({reason})") from None


class Picture(NamedTuple):
    """An upright photo.

    pixels         uint8 [H, W, 3]
    orientation    EXIF orientation in the file, 1 to 8
    frames         frames or pages in the file; this is the first
    """

    pixels: np.ndarray
    orientation: int
    frames: int


def read_picture(path: Path) -> Picture:
    """Read a photo of any mode as upright RGB. Raises InputError naming the file."""
    with opened(path) as image:
        deep = image.format in ("PNG", "TIFF") and any(";16" in str(tile) for tile in image.tile)
        # The second picture in a phone's JPEG (MPO) is a preview, not a frame.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
        orientation = orientation_of(image)
        image.load()  # Pillow itself turns TIFFs while loading
        pixels = turned(as_rgb(image), orientation_of(image))
        if deep and image.mode[0] != "I" and 0 < pixels.max() < 16:
            raise InputError(
                f"{path}: is nearly black, since only the upper 8 of 16 bits per channel are read; "
                "if the camera stores 12 bits, multiply the values by 16"
            )
        return Picture(pixels, orientation, frames)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of a picture, 1 to 8; 1 without the tag."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # the tag is damaged, the picture itself is intact
        return 1
    return value if value in range(1, 9) else 1


def turned(stored: np.ndarray, orientation: int) -> np.ndarray:
    """A picture [H, W, 3] or label map [H, W] as stored with this EXIF orientation, upright."""
    if orientation == 1:
        return stored
    # A new image without other tags: Pillow fails if one of them is damaged.
    image = Image.fromarray(stored)
    image.getexif()[ORIENTATION] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def as_rgb(image: Image.Image) -> np.ndarray:
    """A decoded picture of any mode as uint8 [H, W, 3]."""
    if image.mode[0] in "IF":  # 16 or 32 bits, or floats: Pillow would clip at 255, not scale
        image = scaled(image)
    if "transparency" in image.info:  # otherwise Pillow warns about colours that it cannot keep
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def scaled(image: Image.Image) -> Image.Image:
    """Scale 16-bit, 32-bit or float values to 8 bits. Negative values and nan become black."""
    values = np.asarray(image)
    largest = np.max(values, where=np.isfinite(values), initial=0)
    # Cameras store 12 bits in 16. A real 16-bit picture is rarely that dark throughout.
    tops = (4095, 65535) if values.itemsize == 2 else (1, 255, 4095, 65535)
    scale = 255 / float(next((top for top in tops if largest <= top), largest))
    return image.convert("F").point(lambda value: value * scale + 0.5).convert("L")


def open_mask(path: Path) -> Image.Image:
    """Open and decode a PNG whose stored numbers matter, such as a mask.

    Raises InputError naming the file if its content is not PNG, or if Pillow would scale its
    numbers.
    """
    with opened(path) as image:
        if image.format != "PNG":
            raise InputError(
                f"{path}: contains {image.format} data, but must be PNG; export the mask again, "
                "since JPEG blends class ids"
            )
        if image.tile and image.tile[0][3] in ("L;2", "L;4"):
            raise InputError(f"{path}: has {image.tile[0][3][2]} bits per pixel; save it with 8")
        image.load()
    return image


def read_mask(path: Path, palette: dict[int, tuple] | None = None) -> np.ndarray:
    """Read the class ids uint8 [H, W] stored in a grey or palette PNG.

    palette    colour of each id in earlier masks; those of this mask are added. The ids mean
               nothing if a program makes a new palette, with new numbers, for each mask

    Raises InputError naming the file.
    """
    image = open_mask(path)
    if image.mode not in ("L", "P", "1") and not image.mode.startswith("I"):
        raise InputError(
            f"{path}: a mask must be an 8-bit grey or palette PNG of class ids, but this one is "
            f"{image.mode}; if its colours are the classes, list them in classes.txt as NAME R G B"
        )
    ids = np.asarray(image)
    if ids.max(initial=0) > 255:
        raise InputError(f"{path}: has the id {ids.max()}; the largest possible id is 254")
    if image.mode == "P" and palette is not None:
        colours = image.getpalette("RGB")
        for i in np.unique(ids).tolist():
            colour = tuple(colours[3 * i : 3 * i + 3])
            if palette.setdefault(i, colour) != colour:
                raise InputError(
                    f"{path}: its palette shows id {i} as {colour}, another mask's palette as "
                    f"{palette[i]}; if the colours are the classes, list them in classes.txt as "
                    "NAME R G B; if the ids are, save the masks as grey"
                )
    return ids.astype(np.uint8)


def read_colours(path: Path) -> np.ndarray:
    """Read the colours of a mask as uint32 [H, W]: 65536 R + 256 G + B, or TRANSPARENT. Raises
    InputError naming the file.
    """
    image = open_mask(path)
    if image.mode.startswith("I"):
        raise InputError(f"{path}: a colour mask must have 8 bits per channel, but this one has 16")
    rgba = np.asarray(image.convert("RGBA")).view(">u4")[..., 0]
    colours = rgba >> 8
    colours[(rgba & 255) != 255] = TRANSPARENT
    return colours.astype(np.uint32, copy=False)


class Reader:
    """reader(sample) gives the image and label of a sample, and caches decoded pairs in RAM.

    read_label     of the DataSet
    cache_bytes    size of the cache; pairs that do not fit are decoded again each time

    Nothing is evicted: each image is used once per epoch in random order, so any cached image is as
    useful as any other. Several threads may call a reader.
    """

    def __init__(
        self,
        read_label: Callable[[Path, Counter | None], np.ndarray],
        cache_bytes: int = CACHE_BYTES,
    ):
        self.read_label = read_label
        self.bytes_left = cache_bytes
        self.cache = {}
        self.lock = threading.Lock()

    def __call__(
        self, sample: Sample, unmapped: Counter | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The image uint8 [H, W, 3] and the label map uint8 [H, W] of a sample.

        Adds the pixels of ids or colours without a class to `unmapped`, unless the sample is
        cached. Raises InputError naming the file.
        """
        if sample in self.cache:
            return self.cache[sample]
        picture = read_picture(sample.image)
        image = picture.pixels
        label = same_way_up(sample, picture, self.read_label(sample.label, unmapped))
        if image.shape[:2] != label.shape:
            raise InputError(
                f"{sample.label}: is {shown(label.shape)} (height x width), but its image "
                f"{sample.image} is {shown(image.shape[:2])}; they must have the same size"
            )
        with self.lock:
            if image.nbytes + label.nbytes <= self.bytes_left and sample not in self.cache:
                self.bytes_left -= image.nbytes + label.nbytes
                self.cache[sample] = image, label
        return image, label


def same_way_up(sample: Sample, picture: Picture, label: np.ndarray) -> np.ndarray:
    """The label map uint8 [H, W] of a sample, turned like its picture if it was drawn unturned.

    Cameras store a picture as the sensor saw it, with the orientation in an EXIF tag. Pictures are
    turned by the tag, but masks have none. Some labelling tools show the picture turned, others as
    stored. If the turn swaps height and width, the size of the mask tells how it was drawn. Raises
    InputError if the size does not tell.
    """
    if picture.orientation == 1:
        return label
    upright = picture.pixels.shape[:2]
    stored = upright[::-1] if picture.orientation >= 5 else upright
    if label.shape == stored == upright:
        raise InputError(
            f"{sample.image}: its EXIF tag turns it (orientation {picture.orientation}), but the "
            f"size of its mask {sample.label} does not show whether it was drawn before or after "
            "the turn; save the picture as it was labelled, without the tag"
        )
    if label.shape != stored:
        return label
    return turned(label, picture.orientation)
