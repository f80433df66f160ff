"""Masks hold ids or colours of classes.txt; all others are counted and ignored."""

from collections import Counter

import numpy as np
import pytest
from conftest import picture
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from support.console import InputError
from support.datasets.classes import MAX_UNMAPPED, mask_reader, read_classes
from support.datasets.images import read_mask
from support.labels import IGNORE


def written(folder, text):
    (folder / "classes.txt").write_text(text, encoding="utf-8")
    return folder / "classes.txt"


NO_NAME = "line {} is .*must be NAME or NAME R G B"


@pytest.mark.parametrize(
    "text, says",
    [
        ("\nroad\n", NO_NAME.format(1)),
        ("road\n# old names\nsky\n", NO_NAME.format(2)),
        ("0 drivable\n1 living\n", NO_NAME.format(1)),
        ("road\n1: sky\n", NO_NAME.format(2)),
        ("7", NO_NAME.format(1)),
        ("128 64 128 Road\n", NO_NAME.format(1)),
        ("road 1 2 256\n", NO_NAME.format(1)),
        ("road 128 64 128\nsky\n", "line 2 has no colour"),
        ("name,r,g,b\nroad,1,2,3\n", "line 1 has no colour"),
        ("road 1 2 3\nsky 1 2 3\n", r"colour \(1, 2, 3\) has two classes, one of them 'sky'"),
        ("road\nsky\nroad\n", "more than one line names class 'road'"),
        ("\n", "names 0 classes"),
        ("\n".join(f"c{i}" for i in range(20_000)), "names 20000 classes; 1 to 255"),
        ("road" + "," * 100_000, NO_NAME.format(1)),
        ("road\nsk\x1by\n", NO_NAME.format(2)),
    ],
)
def test_a_line_that_would_shift_the_ids_is_refused(tmp_path, text, says):
    with pytest.raises(InputError, match=f"classes.txt: {says}"):
        read_classes(written(tmp_path, text))


def test_names_may_hold_spaces_and_digits_and_end_in_blank_lines(tmp_path):
    text = "\ufeffroad 2\n2-wheeler\nC#\n weg und straße \n\n\n"
    names = ["road 2", "2-wheeler", "C#", "weg und straße"]
    assert read_classes(written(tmp_path, text)) == (names, {})


@given(st.binary(max_size=60))
@example(b"\xef\xbb\xbfroad\r\nsky")
@example(b"\x00\n\x00")
@example(b"\xff\xfer\x00")
def test_any_bytes_give_class_names_or_an_input_error(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("classes") / "classes.txt"
    file.write_bytes(content)
    try:
        names, _ = read_classes(file)
    except InputError as error:
        assert "classes.txt" in str(error)
    else:
        assert names and len(set(names)) == len(names)


LINES = st.tuples(st.sampled_from("abcdef"), st.integers(0, 2**24 - 1))


@given(
    st.lists(LINES, min_size=1, max_size=12, unique_by=lambda line: line[1]),
    st.sampled_from([" ", "\t", ", ", ";"]),
)
def test_names_with_colours_get_ids_in_the_order_of_the_lines(tmp_path_factory, lines, between):
    text = "\n".join(between.join([name, *map(str, colour.to_bytes(3))]) for name, colour in lines)
    names, colours = read_classes(written(tmp_path_factory.mktemp("c"), text))
    assert names == list(dict.fromkeys(name for name, _ in lines))
    assert {(names[i], colour) for colour, i in colours.items()} == set(lines)


TEXT = "road 128 64 128\nsky 0 0 255\ncar 255 255 255\nsky 9 9 9\n"


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_a_colour_mask_becomes_class_ids(tmp_path, mode):
    """Sky has two colours; (1, 2, 3) has no class."""
    pixels = [
        [(128, 64, 128), (0, 0, 255), (9, 9, 9)],
        [(255, 255, 255), (1, 2, 3), (1, 2, 3)],
    ]
    image = Image.fromarray(np.array(pixels, np.uint8))
    (image.quantize() if mode == "P" else image.convert(mode)).save(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").mode == mode
    unmapped = Counter()
    label = mask_reader(*read_classes(written(tmp_path, TEXT)))(tmp_path / "m.png", unmapped)
    assert label.tolist() == [[0, 1, 1], [2, IGNORE, IGNORE]] and label.dtype == np.uint8
    assert unmapped == {(1, 2, 3): 2}


def test_transparent_pixels_of_a_mask_are_ignored(tmp_path):
    pixels = np.array([[[0, 0, 255, 255], [0, 0, 255, 0], [0, 0, 255, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    unmapped = Counter()
    label = mask_reader(*read_classes(written(tmp_path, TEXT)))(tmp_path / "m.png", unmapped)
    assert label.tolist() == [[1, IGNORE, IGNORE]] and unmapped == {"transparent": 2}


def test_ids_without_a_name_are_counted_and_255_is_not(tmp_path):
    unmapped = Counter()
    file = picture(tmp_path / "m.png", [[0, 1, 2, 2, 2, 254, 255, 255]])
    assert mask_reader(["a", "b"], {})(file, unmapped).tolist() == [[0, 1] + [IGNORE] * 6]
    assert unmapped == {0: 1, 2: 3, 254: 1}  # id 0 shows whether the ids count from 0


@pytest.mark.parametrize("channels, colours", [((), {}), ((3,), {0: 0})])
def test_a_photo_is_refused_as_a_mask_but_a_noisy_mask_is_not(tmp_path, channels, colours):
    pixels, unmapped = np.random.default_rng(0).integers(1, 255, (200, 200, *channels)), Counter()
    read = mask_reader(["a"], colours)
    with pytest.raises(InputError, match="m.png: looks like a photo, not a mask: "):
        read(picture(tmp_path / "m.png", pixels), unmapped)
    pixels[:101] = 0
    label = read(picture(tmp_path / "m.png", pixels), unmapped)
    assert (label[:101] == 0).all() and (label[101:] == IGNORE).all()
    assert MAX_UNMAPPED <= len(unmapped) <= MAX_UNMAPPED + 1  # and 0; more would fill the memory


@pytest.mark.parametrize("mode", ["L", "P", "1", "I;16"])
def test_grey_and_palette_masks_give_the_stored_ids(tmp_path, mode):
    ids = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    image = Image.fromarray(ids.astype(np.uint16) if mode == "I;16" else ids)
    if mode == "1":
        image = Image.fromarray(ids * 255).convert("1")
    if mode == "P":
        image.putpalette([200, 10, 10, 10, 200, 10])
    image.save(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").mode == mode
    assert read_mask(tmp_path / "m.png").tolist() == ids.tolist()


def test_palettes_that_give_an_id_two_colours_are_refused(tmp_path):
    files, read = [tmp_path / "0.png", tmp_path / "1.png"], mask_reader(["road", "sky"], {})
    for file, palette in zip(files, ([0, 0, 0, 9, 9, 9], [0, 0, 0, 200, 0, 0]), strict=True):
        mask = Image.fromarray(np.array([[0, 1]], np.uint8))
        mask.putpalette(palette)
        mask.save(file)
    assert read(files[0]).tolist() == [[0, 1]] == read(files[0]).tolist()
    with pytest.raises(InputError, match=r"1.png: its palette shows id 1 as \(200, 0, 0\)"):
        read(files[1])
