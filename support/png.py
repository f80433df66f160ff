"""Writing a picture as PNG, all or nothing: the picture that it replaces is there until the new one is whole."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from PIL import Image

from support.errors import InputError


def save_png(picture: Image.Image, path: Path, **options):
    """Write a picture; its folder is made if it is not there. Raises InputError if that cannot be done.

    options    of Pillow's writer
    """
    beside = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(beside, "PNG", compress_level=1, **options)  # a third of the time, and some per cent more space
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise InputError(f"{path}: cannot be written ({error.strerror or error}); make room, or choose another "
                         "place") from None
