"""Files as they come: what a file is inside counts, not its name; and a picture and its mask are
the same way up.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from support.console import InputError
from support.datasets import images as pictures
from support.datasets.images import LARGEST, Reader, Room, read_mask, read_picture
from support.labels import IGNORE, Sample

ORIENTATION = 0x0112


def turned(path, pixels, orientation, **save):
    """A picture as a camera stores it that was held in this way: upright only once its tag is
    followed.
    """
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, exif=exif, **save)
    return path


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "WEBP", "GIF", "TIFF"])
def test_a_mask_is_a_png_by_its_content_whatever_its_name(tmp_path, kind):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "m.png", format=kind)
    with pytest.raises(InputError, match=f"m.png: is {kind} inside, and must be PNG"):
        read_mask(tmp_path / "m.png")


@pytest.mark.parametrize(
    "kind, ending",
    [("JPEG", "png"), ("PNG", "jpg"), ("WEBP", "jpg"), ("BMP", "jpeg"), ("TIFF", "png")],
)
def test_a_photo_is_read_by_its_content_whatever_its_name(tmp_path, kind, ending):
    Image.new("RGB", (6, 4), (10, 20, 30)).save(tmp_path / f"p.{ending}", format=kind)
    assert (
        np.abs(read_picture(tmp_path / f"p.{ending}").pixels.astype(int) - (10, 20, 30)).max() <= 3
    )


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        b"8BPS\x00\x01" + bytes(60),
        b"SIMPLE  =" + bytes(80),
        b"%PDF-1.4\n",
        b"\x00\x00\x00\x18ftypheic" + bytes(40),
        b"\x00\x00\x01\x00\x01\x00" + bytes(40),
        b"qoif" + bytes(20),
    ],
)
def test_what_only_rarer_decoders_open_does_not_reach_them(tmp_path, monkeypatch, content):
    """PostScript, Photoshop, FITS, PDF, HEIC, icons, QOI, each under the name of a photo."""
    monkeypatch.setattr(
        "PIL.EpsImagePlugin.Ghostscript",
        lambda *args, **more: pytest.fail("ran an interpreter of PostScript"),
    )
    (tmp_path / "photo.png").write_bytes(content)
    with pytest.raises(
        InputError, match="photo.png: cannot be read as a picture .it is none of PNG, JPEG"
    ):
        read_picture(tmp_path / "photo.png").pixels


@pytest.mark.parametrize(
    "name, says",
    [("a.heic", "save it as JPEG"), ("a.mp4", "it is a video; make pictures of it first")],
)
def test_what_telephones_write_gets_the_mend(tmp_path, name, says):
    (tmp_path / name).write_bytes(bytes(99))
    with pytest.raises(InputError, match=says):
        read_picture(tmp_path / name).pixels


def test_threads_decode_no_more_pixels_at_once_than_fit(monkeypatch):
    class Waits(Exception):
        pass

    def wait(fits):
        if not fits():
            raise Waits

    room = Room()
    monkeypatch.setattr(room.changed, "wait_for", wait)
    with room.of(LARGEST // 2), room.of(LARGEST // 2):
        with pytest.raises(Waits), room.of(1):
            pass
    with pytest.raises(ZeroDivisionError), room.of(LARGEST):
        1 / 0
    with room.of(LARGEST):  # what was decoded before has made room again, even where it failed
        pass


def test_a_picture_larger_than_all_the_room_waits_until_it_is_alone_and_is_then_read():
    room = Room(50)
    with room.of(100):
        assert room.left == -50
    assert room.left == 50


def test_many_threads_read_all_pictures_though_few_fit_at_once_and_each_has_its_room(
    tmp_path, monkeypatch
):
    files = [picture(tmp_path / f"{i}.png", np.full((10, 10, 3), i)) for i in range(30)]
    room, as_rgb, taken = Room(250), pictures.as_rgb, []  # two and a half of them

    def watched(image):
        taken.append(
            room.total - room.left
        )  # this picture's room is taken until its pixels are there
        return as_rgb(image)

    monkeypatch.setattr(pictures, "ROOM", room)
    monkeypatch.setattr(pictures, "as_rgb", watched)
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(read_picture, files))
    assert [p.pixels[0, 0, 0] for p in seen] == list(range(30)) and room.left == 250
    assert len(taken) == 30 and set(taken) <= {100, 200}


def test_scripts_open_pictures_of_200_million_pixels_and_programs_that_import_keep_pillows_limit(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1234)
    read_picture(picture(tmp_path / "a.png", np.zeros((2, 2, 3))))
    assert Image.MAX_IMAGE_PIXELS == 1234
    pictures.allow_large_pictures()
    assert 2 * Image.MAX_IMAGE_PIXELS == LARGEST > 16320 * 12240


# ---- which way up ----


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn", ["upright", "as stored"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_picture_and_its_mask_are_turned_alike_or_refused_if_nobody_can_tell(
    tmp_path, orientation, drawn, ending
):
    rng = np.random.default_rng(orientation)
    stored, label = rng.integers(0, 256, (4, 6, 3), np.uint8), rng.integers(0, 3, (4, 6), np.uint8)
    image = turned(tmp_path / f"i.{ending}", stored, orientation)
    upright = np.asarray(
        ImageOps.exif_transpose(Image.open(turned(tmp_path / "u.png", stored, orientation)))
    )
    label_upright = np.asarray(
        ImageOps.exif_transpose(Image.open(turned(tmp_path / "l.png", label, orientation)))
    )
    sample = Sample(
        image, picture(tmp_path / "m.png", label_upright if drawn == "upright" else label), ""
    )
    reader = Reader(lambda path, strays: read_mask(path))
    if orientation in (2, 3, 4):  # height and width stay as they are
        with pytest.raises(
            InputError,
            match=r"i.\w+: its EXIF tag turns it \(orientation .\), its mask .*m.png has no such tag.*save",
        ):
            reader(sample)
    else:
        pixels, ids = reader(sample)
        assert np.array_equal(pixels, upright) and np.array_equal(ids, label_upright)


def test_a_square_picture_with_a_tag_is_refused_since_its_mask_may_lie_either_way(tmp_path):
    sample = Sample(
        turned(tmp_path / "i.jpg", np.zeros((5, 5, 3), np.uint8), 6),
        picture(tmp_path / "m.png", np.zeros((5, 5))),
        "",
    )
    with pytest.raises(InputError, match="i.jpg: its EXIF tag turns it .orientation 6."):
        Reader(lambda path, strays: read_mask(path))(sample)


def test_a_mask_with_a_tag_of_its_own_is_refused(tmp_path):
    with pytest.raises(InputError, match="m.png: has an EXIF tag that turns it"):
        read_mask(turned(tmp_path / "m.png", np.zeros((4, 5), np.uint8), 3))


@given(st.binary(max_size=40))
def test_a_damaged_exif_tag_leaves_the_picture_as_it_is_stored(tmp_path_factory, garbage):
    path = tmp_path_factory.mktemp("exif") / "p.png"
    Image.new("RGB", (6, 4), (10, 20, 30)).save(path, exif=b"Exif\x00\x00" + garbage)
    seen = read_picture(path)
    assert (
        sorted(seen.pixels.shape[:2]) == [4, 6]
        and (seen.pixels == (10, 20, 30)).all()
        and seen.orientation in range(1, 9)
    )


# ---- frames ----


@pytest.mark.parametrize("name", ["a.gif", "a.tif", "a.webp"])
def test_the_frames_of_a_file_are_counted_and_the_first_is_read(tmp_path, name):
    frames = [
        Image.new("RGB", (6, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    ]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    seen = read_picture(tmp_path / name)
    assert seen.frames == 3 and seen.pixels[0, 0].argmax() == 0
    frames[0].save(tmp_path / name)
    assert read_picture(tmp_path / name).frames == 1


def test_the_preview_in_a_telephones_jpeg_is_no_frame(tmp_path):
    Image.new("RGB", (6, 4)).save(
        tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (3, 2))]
    )
    assert (
        Image.open(tmp_path / "a.jpg").n_frames == 2
        and read_picture(tmp_path / "a.jpg").frames == 1
    )


def test_ignored_ids_stay_ignored_when_a_mask_is_turned(tmp_path):
    image = turned(tmp_path / "i.jpg", np.zeros((4, 6, 3), np.uint8), 8)
    mask = picture(tmp_path / "m.png", [[IGNORE] + [0] * 5] + [[1] * 6] * 3)
    _, ids = Reader(lambda path, strays: read_mask(path))(Sample(image, mask, ""))
    assert ids.shape == (6, 4) and ids[5, 0] == IGNORE and (ids == IGNORE).sum() == 1
