"""Reading picture files: photos of all common formats as RGB, and masks as the numbers that are stored."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from support.errors import InputError

IMAGE_ENDINGS = {".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}

# Pillow's own limit, which guards against pictures made to exhaust the memory, is 179 million pixels. Telephones reach that.
# Pillow warns above this number and refuses above twice this number.
Image.MAX_IMAGE_PIXELS = 2**28
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def files_in(folder: Path) -> list[Path]:
    """The pictures in a folder, sorted by name, without hidden files. Raises InputError if there is no such folder."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in IMAGE_ENDINGS and not f.name.startswith("."))


def open_picture(path: Path, whole_bytes: bool = False) -> Image.Image:
    """A decoded Pillow image, turned upright by its EXIF tag. Raises InputError naming the file.

    With whole_bytes, grey pictures of 2 or 4 bits are refused too: Pillow would stretch their numbers to 0..255.
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
    except Exception as error:  # Pillow's decoders raise many kinds of errors on damaged files
        raise InputError(f"{path}: cannot be read as a picture ({str(error) or type(error).__name__})") from None


def read_image(path: Path) -> np.ndarray:
    """RGB uint8 [H, W, 3]. Raises InputError naming the file."""
    image = open_picture(path)
    if image.mode[0] in "IF":  # 16 bits, 32 bits or floats: Pillow would clip them at 255 instead of scaling them
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        largest = next((top for top in (1, 255, 65535) if values.max() <= top), values.max())
        if image.mode.startswith("I;16"):
            largest = 65535  # the file says so, there is no need to guess
        image = Image.fromarray(np.round(255 * values.clip(0) / largest).astype(np.uint8))
    if "transparency" in image.info:  # otherwise Pillow warns about colours that it cannot keep
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def read_mask(path: Path) -> np.ndarray:
    """Class ids uint8 [H, W] of an 8-bit grey or palette PNG: the stored numbers, not the colours. Raises InputError."""
    image = open_picture(path, whole_bytes=True)
    if image.mode not in ("L", "P", "1"):
        raise InputError(f"{path}: a mask must be an 8-bit grey or palette PNG of class ids, this one is {image.mode}; "
                         "save the ids themselves, not their colours")
    return np.asarray(image).astype(np.uint8)
