"""Picture files are read by content, not by name; picture and mask have the same orientation."""

import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from conftest import picture, png, turned
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from support.console import InputError
from support.datasets import images
from support.datasets.images import (
    FORMATS,
    Reader,
    Room,
    files_below,
    read_colours,
    read_mask,
    read_picture,
)
from support.labels import IGNORE, Sample


def read_pair(image, mask):
    return Reader(lambda path, unmapped: read_mask(path))(Sample(image, mask, ""))


# ---- formats ----


def test_a_mask_named_png_must_be_png_inside(tmp_path):
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "m.png", format="JPEG")
    with pytest.raises(InputError, match="m.png: contains JPEG data, but must be PNG"):
        read_mask(tmp_path / "m.png")


def test_a_photo_is_read_by_its_content_not_its_name(tmp_path):
    for kind in FORMATS:
        Image.new("RGB", (6, 4), (10, 20, 30)).save(tmp_path / "p.jpg", format=kind)
        pixels = read_picture(tmp_path / "p.jpg").pixels.astype(int)
        assert np.abs(pixels - (10, 20, 30)).max() <= 3, kind


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        b"8BPS\x00\x01" + bytes(60),
    ],
)
def test_other_formats_never_reach_a_decoder(tmp_path, monkeypatch, content):
    """PostScript and Photoshop, under the name of a photo."""
    ran = lambda *args, **more: pytest.fail("ran an interpreter of PostScript")  # noqa: E731
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ran)
    (tmp_path / "photo.png").write_bytes(content)
    says = "photo.png: cannot be read as a picture .it is damaged, or not a PNG, JPEG"
    with pytest.raises(InputError, match=says):
        read_picture(tmp_path / "photo.png")


def test_four_bit_grey_masks_are_refused(tmp_path):
    """Pillow would stretch their ids."""
    content = bytearray(picture(tmp_path / "m.png", [[0, 1], [2, 3]]).read_bytes())
    content[24] = 4  # the bit depth in the header; its checksum follows
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4)
    (tmp_path / "m.png").write_bytes(content)
    with pytest.raises(InputError, match="m.png: has 4 bits per pixel"):
        read_mask(tmp_path / "m.png")


def test_colour_masks_and_ids_above_255_are_refused(tmp_path):
    Image.fromarray(np.array([[0, 1, 300]], np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match="deep.png: has the id 300"):
        read_mask(tmp_path / "deep.png")
    picture(tmp_path / "rgb.png", np.zeros((2, 2, 3)))
    with pytest.raises(InputError, match="rgb.png: .*this one is RGB.*NAME R G B"):
        read_mask(tmp_path / "rgb.png")


@pytest.mark.parametrize("deep, seen", [(4096, 16), (4095, 255), (200, 12), (0, 0)])
def test_grey_photos_of_16_bits_are_scaled_from_12_or_16_bits(tmp_path, deep, seen):
    Image.fromarray(np.full((3, 4), deep, np.uint16)).save(tmp_path / "deep.png")
    assert (read_picture(tmp_path / "deep.png").pixels == seen).all()


@pytest.mark.parametrize("value, fine", [(4095, False), (0x4D00, True), (0, True)])
def test_colour_photos_of_12_bits_are_refused_as_nearly_black(tmp_path, value, fine):
    row = b"\0" + value.to_bytes(2) * 9  # no filter, three pixels of three channels
    (tmp_path / "deep.png").write_bytes(png(3, 2, 16, 2, row * 2))
    if fine:
        assert (read_picture(tmp_path / "deep.png").pixels == value >> 8).all()
    else:
        with pytest.raises(InputError, match="deep.png: is nearly black, .* 12 bits, multiply"):
            read_picture(tmp_path / "deep.png")


@pytest.mark.parametrize("top", [1, 255, 10**6])
def test_floats_are_scaled_and_nan_is_black(tmp_path, top):
    values = np.array([[top, top / 2, 0, -5, np.nan, np.inf]], np.float32)
    Image.fromarray(values).save(tmp_path / "f.tif")
    assert read_picture(tmp_path / "f.tif").pixels[0, :, 0].tolist() == [255, 128, 0, 0, 0, 255]


def test_broken_links_and_loops_of_links_are_no_error(tmp_path):
    (tmp_path / "d/d").mkdir(parents=True)
    for place in (tmp_path / "d/d", tmp_path):
        (place / "a.png").write_bytes(b"")
    (tmp_path / "b.png").symlink_to(tmp_path / "b.png")
    (tmp_path / "c").symlink_to(tmp_path / "nothing")
    (tmp_path / "d2").symlink_to(tmp_path)
    found = [tmp_path / name for name in ("a.png", "b.png", "d/d/a.png")]
    assert files_below(tmp_path) == found


def test_the_pages_of_a_file_are_counted_and_the_first_is_read(tmp_path):
    pages = [Image.new("RGB", (6, 4), colour) for colour in ("red", "lime", "blue")]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    read = read_picture(tmp_path / "a.tif")
    assert read.frames == 3 and read.pixels[0, 0].tolist() == [255, 0, 0]
    pages[0].save(tmp_path / "a.tif")
    assert read_picture(tmp_path / "a.tif").frames == 1


def test_the_preview_in_a_phone_photo_is_not_a_frame(tmp_path):
    preview = [Image.new("RGB", (3, 2))]
    photo = Image.new("RGB", (6, 4))
    photo.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=preview)
    assert Image.open(tmp_path / "a.jpg").n_frames == 2
    assert read_picture(tmp_path / "a.jpg").frames == 1


# ---- memory ----


@pytest.mark.parametrize(
    "read, dtype, channels, name",
    [
        (read_picture, np.uint16, (), "a.png"),
        (read_picture, np.float32, (), "a.tif"),
        (read_colours, np.uint8, (3,), "a.png"),
    ],
)
def test_reading_a_picture_takes_few_bytes_per_pixel(tmp_path, read, dtype, channels, name):
    pixels = np.resize(np.arange(10**6), (1000, 1000, *channels)).astype(dtype)
    Image.fromarray(pixels).save(tmp_path / name)
    tracemalloc.start()
    read(tmp_path / name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 14 * 10**6  # for a million pixels; a result takes 3 or 4 bytes each


def test_threads_read_all_pictures_though_few_fit_in_memory(tmp_path, monkeypatch):
    files = [picture(tmp_path / f"{i}.png", np.full((10, 10, 3), i)) for i in range(30)]
    files.append(picture(tmp_path / "large.png", np.full((30, 30, 3), 30)))
    room = Room(250)  # two and a half of them
    monkeypatch.setattr(images, "ROOM", room)
    with ThreadPoolExecutor(8) as pool:
        read = list(pool.map(read_picture, files))
    assert [p.pixels[0, 0, 0] for p in read] == list(range(31)) and room.left == room.total


def test_a_thread_waits_until_its_picture_has_room():
    room = Room(250)

    def decode():
        with room.take(100):
            return "decoded"

    with ThreadPoolExecutor(1) as pool:
        with room.take(1000):  # a picture that needs all the room
            waiting = pool.submit(decode)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.05)
        assert waiting.result() == "decoded"
    with pytest.raises(InputError), room.take(250):
        raise InputError("a picture that cannot be decoded")
    assert room.left == 250


def test_a_decompression_bomb_is_refused_by_name(tmp_path, monkeypatch):
    assert images.MAX_PIXELS > 16320 * 12240  # a phone
    monkeypatch.setattr(images, "MAX_PIXELS", 200)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    images.allow_large_pictures()
    Image.new("L", (15, 15)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="bomb.png: .* exceeds limit of 200"):
        read_picture(tmp_path / "bomb.png")


# ---- orientation ----


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("drawn", ["upright", "as stored"])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_picture_and_mask_are_rotated_alike_or_refused(tmp_path, orientation, drawn, ending):
    rng = np.random.default_rng(orientation)
    stored, label = rng.integers(0, 256, (4, 6, 3), np.uint8), rng.integers(0, 3, (4, 6), np.uint8)
    label[0, 0] = IGNORE
    image = turned(tmp_path / f"i.{ending}", stored, orientation)
    upright, label_upright = (
        np.asarray(ImageOps.exif_transpose(Image.open(turned(tmp_path / "u.png", a, orientation))))
        for a in (stored, label)
    )
    mask = picture(tmp_path / "m.png", label_upright if drawn == "upright" else label)
    if orientation in (2, 3, 4):  # height and width stay the same
        says = rf"i.{ending}: its EXIF tag turns it \(orientation {orientation}\).*m.png"
        with pytest.raises(InputError, match=says):
            read_pair(image, mask)
    else:
        pixels, ids = read_pair(image, mask)
        assert np.array_equal(pixels, upright) and np.array_equal(ids, label_upright)


def test_a_square_picture_with_an_exif_tag_is_refused(tmp_path):
    image = turned(tmp_path / "i.jpg", np.zeros((5, 5, 3), np.uint8), 6)
    with pytest.raises(InputError, match="i.jpg: its EXIF tag turns it .orientation 6."):
        read_pair(image, picture(tmp_path / "m.png", np.zeros((5, 5))))


@given(st.binary(max_size=40))
def test_a_damaged_exif_tag_does_not_prevent_reading(tmp_path_factory, garbage):
    path = tmp_path_factory.mktemp("exif") / "p.png"
    Image.new("RGB", (6, 4), (10, 20, 30)).save(path, exif=b"Exif\x00\x00" + garbage)
    read = read_picture(path)
    assert sorted(read.pixels.shape[:2]) == [4, 6] and (read.pixels == (10, 20, 30)).all()
