"""classes.txt and masks: ids are lines, colours are colours, and what is neither is counted, never
trained on.
"""

from collections import Counter

import numpy as np
import pytest
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from support.console import InputError
from support.datasets.classes import MANY, mask_reader, read_classes
from support.datasets.images import read_mask
from support.labels import IGNORE


def written(folder, text):
    (folder / "classes.txt").write_text(text, encoding="utf-8")
    return folder / "classes.txt"


@pytest.mark.parametrize(
    "text, says",
    [
        ("drivable\n\nliving\n", "line 2 is empty.*delete it"),
        ("\nroad\n", "line 1 is empty"),
        ("a\n \t\nb", "line 2 is empty"),
        ("road\n# old names\nsky\n", "line 2 is a comment.*delete it"),
        ("#road\nsky\n", "line 1 is a comment"),
        ("0 drivable\n1 living\n", "line 1 begins with a number.*write the names alone"),
        ("road\n1: sky\n", "line 2 begins with a number"),
        ("0,road\n1,sky\n", "line 1 begins with a number"),
        ("0\n1\n", "line 1 begins with a number"),
        ("7", "line 1 begins with"),
        ("128 64 128 Road\n", "line 1 begins with a colour.*NAME R G B"),
        (
            "road #804080\nsky #000000\n",
            "line 1 writes its colour in another way.*write road 128 64 128$",
        ),
        (
            "a road (128, 64, 128)\n",
            "line 1 writes its colour in another way.*write a road 128 64 128$",
        ),
        ("x [1,2,3]", "line 1 writes.*write x 1 2 3$"),
        ("road 128 64 128 255\n", "line 1 ends in four numbers"),
        ("sky 2\nroad 0\ncar 1\n", "every line ends in a number.*names alone"),
        ("name,r,g,b\nroad,1,2,3\n", "line 1 is a header"),
        ("Name\nroad\nsky\n", "line 1 is a header"),
        ("road,sky,car\n", ".*has a comma"),
        ("a\0b\0\nc\0", "cannot be read as text in UTF-8 .it holds zero bytes.*save it as UTF-8"),
        ("road 128 64 128\nsky\n", "line 2 has no colour"),
        ("road\nsky 1 2 3\n", "line 1 has no colour"),
        ("road 1 2 256\n", "line 1 has the colour 1 2 256"),
        ("road 1 2 3\nsky 1 2 3\n", "line 2 gives the colour 1 2 3 to another"),
    ],
)
def test_a_line_that_would_shift_the_ids_or_is_no_colour_is_refused_with_the_mend(
    tmp_path, text, says
):
    with pytest.raises(InputError, match=f"classes.txt: {says}"):
        read_classes(written(tmp_path, text))


def test_numbered_names_are_names(tmp_path):
    assert read_classes(written(tmp_path, "class 1\nclass 2\n")) == (["class 1", "class 2"], {})


def test_names_may_hold_spaces_and_digits_and_blank_lines_may_follow_them(tmp_path):
    names, colours = read_classes(
        written(tmp_path, "\ufeffroad 2\n2-wheeler\nC#\n weg und straße \n\n\n")
    )
    assert names == ["road 2", "2-wheeler", "C#", "weg und straße"] and not colours


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 2**24 - 1)),
        min_size=1,
        max_size=12,
        unique_by=lambda line: line[1],
    ),
    st.sampled_from([" ", "\t", ", ", ";"]),
)
def test_names_with_colours_give_each_name_one_id_in_the_order_of_the_lines(
    tmp_path_factory, lines, between
):
    text = "\n".join(
        between.join([name, *map(str, (c >> 16, c >> 8 & 255, c & 255))]) for name, c in lines
    )
    names, colours = read_classes(written(tmp_path_factory.mktemp("c"), text))
    assert names == list(dict.fromkeys(name for name, _ in lines))
    assert {colour: names[i] for colour, i in colours.items()} == {
        colour: name for name, colour in lines
    }


COLOURS = {"road": (128, 64, 128), "sky": (0, 0, 255), "car": (255, 255, 255)}
TEXT = "road 128 64 128\nsky 0 0 255\ncar 255 255 255\nsky 9 9 9\n"


@pytest.mark.parametrize("mode", ["RGB", "P", "RGBA"])
def test_a_mask_of_colours_gives_the_ids_of_its_names_and_counts_other_colours(tmp_path, mode):
    """Sky has two colours; (1, 2, 3) is nobody's."""
    pixels = np.array(
        [[COLOURS["road"], COLOURS["sky"], (9, 9, 9)], [COLOURS["car"], (1, 2, 3), (1, 2, 3)]],
        np.uint8,
    )
    image = Image.fromarray(pixels)
    (image.quantize() if mode == "P" else image.convert(mode)).save(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").mode == mode
    strays = Counter()
    label = mask_reader(*read_classes(written(tmp_path, TEXT)))(tmp_path / "m.png", strays)
    assert label.tolist() == [[0, 1, 1], [2, IGNORE, IGNORE]] and label.dtype == np.uint8
    assert strays == {(1, 2, 3): 2}


def test_transparent_pixels_of_a_mask_show_no_class(tmp_path):
    pixels = np.array([[[0, 0, 255, 255], [0, 0, 255, 0], [0, 0, 255, 128]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "m.png")
    strays = Counter()
    label = mask_reader(*read_classes(written(tmp_path, TEXT)))(tmp_path / "m.png", strays)
    assert label.tolist() == [[1, IGNORE, IGNORE]] and strays == {"transparent": 2}


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_masks_of_ids_and_of_colours_give_the_same_labels(tmp_path_factory, classes, seed):
    folder, rng = tmp_path_factory.mktemp("m"), np.random.default_rng(seed)
    ids = rng.choice([*range(classes), 200, IGNORE], (7, 9)).astype(np.uint8)
    palette = np.arange(256) * 65_521 + rng.integers(65_521)  # 256 colours
    colours = np.stack([palette >> 16, palette >> 8 & 255, palette & 255], 1).astype(np.uint8)
    names = [f"c{i}" for i in range(classes)]
    text = "\n".join(f"{name} {' '.join(map(str, colours[i]))}" for i, name in enumerate(names))
    by_id = mask_reader(names, {})(picture(folder / "ids.png", ids))
    by_colour = mask_reader(*read_classes(written(folder, text)))(
        picture(folder / "colours.png", colours[ids])
    )
    assert by_id.tolist() == by_colour.tolist() == np.where(ids < classes, ids, IGNORE).tolist()


def test_ids_without_a_name_are_counted_and_255_is_not(tmp_path):
    strays = Counter()
    file = picture(tmp_path / "m.png", [[0, 1, 2, 2, 2, 254, 255, 255]])
    assert mask_reader(["a", "b"], {})(file, strays).tolist() == [[0, 1] + [IGNORE] * 6]
    assert strays == {2: 3, 254: 1}


def test_a_photo_for_a_mask_does_not_fill_the_memory_with_its_colours(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3))
    noise[:100] = (250, 170, 30)  # and one colour that somebody has forgotten
    strays = Counter()
    assert (mask_reader(["a"], {0: 0})(picture(tmp_path / "m.png", noise), strays) == IGNORE).all()
    assert (
        len(strays) == MANY + 1
        and sum(strays.values()) == 40_000
        and strays[250, 170, 30] == 20_000
    )


def test_values_of_16_bits_that_no_colour_has_are_refused_in_masks_of_colours(tmp_path):
    read = mask_reader(["a", "b"], {0: 0, 0xFFFFFF: 1})
    Image.fromarray(np.array([[0, 255]], np.uint16)).save(tmp_path / "m.png")
    assert read(tmp_path / "m.png").tolist() == [[0, 1]]
    Image.fromarray(np.array([[0, 256]], np.uint16)).save(tmp_path / "m.png")
    with pytest.raises(InputError, match="m.png: has the id 256"):
        read(tmp_path / "m.png")


def test_grey_masks_of_16_bits_are_read_if_their_ids_fit(tmp_path):
    for top in (3, 255, 300):
        Image.fromarray(np.array([[0, 1, top]], np.uint16)).save(tmp_path / "m.png")
        if top < 300:
            assert read_mask(tmp_path / "m.png").tolist() == [[0, 1, top]]
    with pytest.raises(InputError, match="m.png: has the id 300"):
        read_mask(tmp_path / "m.png")
