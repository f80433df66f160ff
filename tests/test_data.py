"""Finding a data set: layouts, the validation set, classes, and unusable folders."""

from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data import HELD_OUT_SHARE, DataOptions, find, hold_out, keep_classes
from support.console import InputError
from support.datasets.images import Reader
from support.labels import IGNORE, DataSet, Sample


def own(folder, stems, ids=4, size=(5, 7)):
    rng = np.random.default_rng(0)
    for stem in stems:
        picture(folder / "images" / f"{stem}.jpg", rng.integers(0, 256, (*size, 3)))
        picture(folder / "masks" / f"{stem}.png", rng.integers(0, ids, size))
    return folder


def stems(samples):
    return [sample.image.stem for sample in samples]


# ---- the validation set ----


@given(
    counts=st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(lambda c: sum(c) >= 2),
    seed=st.integers(0, 99),
    turn=st.integers(0, 50),
)
def test_hold_out_is_stratified_and_ignores_order_and_folder(counts, seed, turn):
    groups = dict(zip(("um", "umm", "uu"), counts, strict=True))

    def samples(root):
        return [
            Sample(root / f"{group}_{i}.png", root / "gt", group)
            for group, count in groups.items()
            for i in range(count)
        ]

    here, there = samples(Path("/here")), samples(Path("/elsewhere"))
    train, val = hold_out(here, seed)
    assert sorted(train + val) == sorted(here) and train and val
    for group, count in groups.items():
        held = sum(sample.group == group for sample in val)
        assert abs(held - HELD_OUT_SHARE * count) <= 0.5 or held == len(val) == 1
    moved = there[turn % len(there) :] + there[: turn % len(there)]
    assert set(stems(hold_out(moved, seed)[1])) == set(stems(val))


def test_each_split_seed_draws_another_validation_set(tmp_path):
    own(tmp_path, map(str, range(12)))
    found = [find(tmp_path, DataOptions(split_seed=seed)) for seed in range(5)]
    assert {(len(f.train), len(f.val)) for f in found} == {(10, 2)}
    assert len({tuple(stems(f.val)) for f in found}) > 1
    assert found[0].summary.endswith(": 10 training + 2 validation images, drawn by --split-seed")


def test_images_with_the_same_name_are_also_drawn_by_seed(tmp_path):
    own(tmp_path / "set", [f"{i}/img" for i in range(20)])

    def draws():
        root = next(tmp_path.iterdir())
        found = [find(root, DataOptions(split_seed=seed)).val for seed in range(4)]
        return [[sample.image.relative_to(root) for sample in val] for val in found]

    before = draws()
    assert len(set(map(tuple, before))) == 4
    (tmp_path / "set").rename(tmp_path / "moved")
    assert draws() == before


# ---- own pictures and masks ----


def test_classes_and_parts_come_from_the_folder(tmp_path):
    own(tmp_path / "train", "ab")
    own(tmp_path / "val", "c")
    (tmp_path / "classes.txt").write_text("road\nsky\nweg und straße\n\n", encoding="utf-8")
    found = find(tmp_path)
    assert (stems(found.train), stems(found.val)) == (["a", "b"], ["c"])
    assert found.classes == ["road", "sky", "weg und straße"]
    label = found.read_label(picture(tmp_path / "m.png", [[0, 1, 2, 3, 254, 255]]))
    assert label.tolist() == [[0, 1, 2, IGNORE, IGNORE, IGNORE]] and label.dtype == np.uint8


def test_without_classes_txt_the_ids_in_the_masks_are_counted(tmp_path):
    own(tmp_path, "abcdefghij", ids=7)
    picture(tmp_path / "masks/a.png", np.full((5, 7), IGNORE))
    assert find(tmp_path).classes == [f"class {i}" for i in range(7)]


def test_camvid_has_eleven_classes_and_ignores_unlabelled_pixels():
    folder = SHARED / "data" / "camvid"
    if not folder.is_dir():
        pytest.skip(f"needs CamVid in {folder}")
    found = find(folder)
    assert (len(found.train), len(found.val), len(found.classes)) == (367, 101, 11)
    assert found.classes[3] == "road"
    label = found.read_label(found.val[0].label)
    assert set(np.unique(label)) <= {*range(11), IGNORE} and (label == IGNORE).any()


# ---- some of the classes ----

CLASSES = ["sky", "car", "hedge", "background", "house"]


@given(
    classes=st.lists(st.sampled_from(CLASSES), min_size=1, unique=True),
    names=st.lists(st.sampled_from(CLASSES), min_size=1, max_size=4),
    ids=st.lists(st.sampled_from([*range(5), IGNORE]), min_size=1, max_size=20),
)
def test_classes_that_are_not_kept_become_background(classes, names, ids):
    label = np.array([i for i in ids if i < len(classes) or i == IGNORE], np.uint8)
    everything = DataSet("here", classes, [], [], lambda path: label)
    if not set(names) <= set(classes) or set(names) == {"background"}:
        with pytest.raises(InputError, match="choose from the classes "):
            keep_classes(everything, ",".join(names))
        return
    kept = keep_classes(everything, ", ".join(names))
    assert kept.classes == list(dict.fromkeys(["background", *names]))
    for old, new in zip(label.tolist(), kept.read_label(None).tolist(), strict=True):
        if old == IGNORE:
            assert new == IGNORE
        else:
            assert kept.classes[new] == (classes[old] if classes[old] in names else "background")
    assert keep_classes(everything, "all") is everything


@pytest.mark.parametrize(
    "text, classes, road",
    [
        ("sky\ncar\nhouse\nhedge\n", "all", None),
        ("sky\ncar\nhouse\nhedge\n", "car,sky", None),
        ("sky\ncar\nhouse\nhedge\n", "car", 1),
        ("Background\npond\n", "all", 1),
    ],
)
def test_one_class_besides_background_is_scored_like_road(tmp_path, text, classes, road):
    own(tmp_path, "abcdef", ids=2)
    (tmp_path / "classes.txt").write_text(text)
    assert find(tmp_path, DataOptions(classes=classes)).road == road


# ---- PASCAL VOC ----


def voc(root, **lists):
    """A small PASCAL VOC tree. Masks are palette PNGs with a border of 255; stems with an x have
    masks of SBD.
    """
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, members in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(members) + "\n")
        for stem in members:
            picture(root / f"JPEGImages/{stem}.jpg", np.zeros((4, 5, 3)))
            label = np.full((4, 5), 255, np.uint8)
            label[1:-1, 1:-1] = [[0, 15, 20]] * 2
            mask = Image.fromarray(label)
            mask.putpalette(list(range(256)) * 3)
            folder = root / ("SegmentationClassAug" if "x" in stem else "SegmentationClass")
            folder.mkdir(exist_ok=True)
            mask.save(folder / f"{stem}.png")
    return root


def test_voc_is_read_with_its_split_classes_masks_and_border(tmp_path):
    root = voc(tmp_path, train=["2007_1", "2007_2"], val=["2007_3"], trainval=["2007_1", "2007_3"])
    found = find(root)
    assert (stems(found.train), stems(found.val)) == (["2007_1", "2007_2"], ["2007_3"])
    assert len(found.classes) == 21
    assert [found.classes[i] for i in (0, 1, 15, 20)] == [
        "background",
        "aeroplane",
        "person",
        "tvmonitor",
    ]
    _, label = Reader(found.read_label)(found.val[0])
    assert label.tolist() == [[255] * 5, *[[255, 0, 15, 20, 255]] * 2, [255] * 5]
    person = find(root, DataOptions(classes="person"))
    assert person.read_label(found.val[0].label)[1].tolist() == [255, 0, 1, 0, 255]


@pytest.mark.parametrize("name", ["trainaug", "train_aug"])
def test_a_trainaug_list_adds_sbd_masks_to_those_of_voc(tmp_path, name):
    root = voc(tmp_path, train=["1"], val=["3"], **{name: ["1", "2x"]})
    picture(root / "SegmentationClassAug/1.png", [[0]])  # VOC's own mask comes first
    folders = [sample.label.parent.name for sample in find(root).train]
    assert folders == ["SegmentationClass", "SegmentationClassAug"]


def test_own_data_in_voc_layout_takes_classes_from_classes_txt(tmp_path):
    root = voc(tmp_path, train=["1"], val=["2"])
    (root / "classes.txt").write_text("background 0 1 2\nroad 45 46 47\n")
    found = find(root)
    assert found.classes == ["background", "road"] and found.road == 1
    # The border and the third id have colours without a name.
    assert found.read_label(found.val[0].label)[1].tolist() == [255, 0, 1, 255, 255]


# ---- folders that cannot be used ----


def ids_with_gaps(root):
    picture(own(root, "ab") / "masks/a.png", [[0, 200]])


@pytest.mark.parametrize(
    "make, options, says",
    [
        (lambda root: None, {}, "no data set found here; known layouts are KITTI Road"),
        (lambda root: own(root, "a"), {}, "a.jpg: is the only labelled image; at least two"),
        (ids_with_gaps, {}, "ids up to 200.*classes.txt"),
        (lambda root: own(root, "abc"), {"task": "lane"}, "--task lane"),
        (lambda root: own(root, "abc"), {"classes": "cat"}, "--classes cat"),
        (lambda root: own(root, "abc"), {"images": "a/*.jpg"}, "--images and --masks: go together"),
        (lambda root: voc(root, train="12"), {}, "val.txt: cannot be read as a list"),
    ],
)
def test_an_unusable_folder_is_refused_in_one_line(tmp_path, make, options, says):
    make(tmp_path)
    with pytest.raises(InputError, match=says) as error:
        find(tmp_path, DataOptions(**options))
    assert "\n" not in str(error.value)
