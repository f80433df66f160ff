"""Finding and reading data sets: every layout, the split, labels that are never bent, and what is
said of a broken one.
"""

import zlib

import numpy as np
import pytest
from conftest import NOT_ROAD, NOT_VALID, ROAD, SHARED, kitti, picture
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import data
from data import find
from support.console import InputError
from support.datasets import folders as split
from support.datasets.images import Reader, read_mask, read_picture
from support.labels import IGNORE


def masks(folder, stems, ids=4, size=(5, 7)):
    rng = np.random.default_rng(0)
    for stem in stems:
        picture(folder / "images" / f"{stem}.jpg", rng.integers(0, 256, (*size, 3)))
        picture(folder / "masks" / f"{stem}.png", rng.integers(0, ids, size))
    return folder


# ---- KITTI Road ----


@pytest.mark.parametrize("task, images", [("road", 12), ("lane", 4)])
def test_each_kitti_image_comes_once_and_with_the_truth_of_the_task_alone(tmp_path, task, images):
    found = find(kitti(tmp_path), task)
    samples = found.train + found.val
    assert len(samples) == images == len({s.image for s in samples})
    for s in samples:
        category, number = s.image.stem.split("_")
        assert s.label.name == f"{category}_{task}_{number}.png"
    assert found.classes == [f"not {task}", task]


def test_kitti_colours_magenta_is_road_red_is_not_and_black_is_neither(tmp_path):
    file = picture(tmp_path / "gt.png", [[ROAD, NOT_ROAD, NOT_VALID], [NOT_VALID, ROAD, NOT_ROAD]])
    assert data.read_kitti_label(file).tolist() == [[1, 0, IGNORE], [IGNORE, 1, 0]]
    with pytest.raises(InputError, match="gt.png"):
        data.read_kitti_label(picture(tmp_path / "gt.png", [[1, 2], [3, 4]]))


def test_real_kitti_labels_hold_the_counts_of_their_colours(kitti_sample):
    found = find(kitti_sample, "lane")
    assert len(found.train) + len(found.val) == 11
    label = data.read_kitti_label(kitti_sample / "training/gt_image_2/um_lane_000010.png")
    assert [(label == v).sum() for v in (0, 1, IGNORE)] == [395265, 33373, 37112]
    label = data.read_kitti_label(kitti_sample / "training/gt_image_2/um_road_000001.png")
    assert [(label == v).sum() for v in (0, 1, IGNORE)] == [388113, 69165, 8472]


@given(
    counts=st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(lambda c: sum(c) >= 2),
    seed=st.integers(0, 99),
    turn=st.integers(0, 50),
)
def test_the_split_holds_out_each_category_in_proportion_whatever_the_order_and_folder(
    counts, seed, turn
):
    def samples(root):
        return [
            data.Sample(root / f"{g}_{i}.png", root / "gt", g)
            for g, n in zip(("um", "umm", "uu"), counts)
            for i in range(n)
        ]

    here, there = (samples(data.Path(root)) for root in ("/here", "/elsewhere"))
    train, val = split.hold_out(here, seed)
    assert sorted(train + val) == sorted(here)
    assert train and val
    for group, count in zip(("um", "umm", "uu"), counts):
        held = sum(s.group == group for s in val)
        assert abs(held - split.HELD_OUT * count) <= 0.5 or (held == 1 == len(val))
    moved = there[turn % len(there) :] + there[: turn % len(there)]
    assert {s.image.name for s in split.hold_out(moved, seed)[1]} == {s.image.name for s in val}


def test_another_split_seed_holds_out_other_images(tmp_path):
    root = kitti(tmp_path, um=20, umm=0, uu=0)
    splits = {
        tuple(sorted(s.image.name for s in find(root, "road", seed).val)) for seed in range(5)
    }
    assert len(splits) > 1


# ---- images and masks ----


def test_classes_and_split_of_images_and_masks_come_from_the_folder(tmp_path):
    masks(tmp_path / "train", ["a", "b"])
    masks(tmp_path / "val", ["c"])
    (tmp_path / "classes.txt").write_text("road\nsky\nweg und straße\n\n", encoding="utf-8")
    found = find(tmp_path)
    assert [s.image.stem for s in found.train] == ["a", "b"] and [
        s.image.stem for s in found.val
    ] == ["c"]
    assert found.classes == ["road", "sky", "weg und straße"]
    label = found.read_label(picture(tmp_path / "m.png", [[0, 1, 2, 3, 254, 255]]))
    assert label.tolist() == [[0, 1, 2, IGNORE, IGNORE, IGNORE]] and label.dtype == np.uint8


def test_without_classes_txt_the_ids_in_the_masks_are_counted(tmp_path):
    masks(tmp_path, "abcdefghij", ids=7)
    picture(tmp_path / "masks/a.png", np.full((5, 7), IGNORE))
    found = find(tmp_path)
    assert found.classes == [f"class {i}" for i in range(7)]
    assert (len(found.train), len(found.val)) == (8, 2)


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_grey_and_palette_masks_give_the_stored_ids(tmp_path, mode):
    ids = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    image = Image.fromarray(ids * 255).convert("1") if mode == "1" else Image.fromarray(ids)
    if mode == "P":
        image.putpalette([200, 10, 10, 10, 200, 10])
    image.save(tmp_path / "m.png")
    assert Image.open(tmp_path / "m.png").mode == mode
    assert read_mask(tmp_path / "m.png").tolist() == ids.tolist()


def test_grey_masks_of_four_bits_are_refused_since_their_ids_would_be_stretched(tmp_path):
    Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).save(tmp_path / "m.png", bits=4)
    if (
        Image.open(tmp_path / "m.png").tile[0][3] != "L;4"
    ):  # Pillow writes 4 bits for palettes alone
        data_bytes = bytearray((tmp_path / "m.png").read_bytes())
        data_bytes[24] = 4  # the bit depth in the header; its checksum follows
        data_bytes[29:33] = zlib.crc32(bytes(data_bytes[12:29])).to_bytes(4, "big")
        (tmp_path / "m.png").write_bytes(bytes(data_bytes))
    with pytest.raises(InputError, match="4 bits"):
        read_mask(tmp_path / "m.png")


def test_camvid_has_eleven_classes_and_ignores_the_unlabelled():
    folder = SHARED / "data" / "camvid"
    if not folder.is_dir():
        pytest.skip(f"needs CamVid in {folder}")
    found = find(folder)
    assert (len(found.train), len(found.val), len(found.classes)) == (
        367,
        101,
        11,
    ) and found.classes[3] == "road"
    label = found.read_label(found.val[0].label)
    assert set(np.unique(label)) <= {*range(11), IGNORE} and (label == IGNORE).any()


# ---- some of the classes ----


@given(st.data())
def test_classes_that_are_not_kept_become_background_and_ignored_pixels_stay_so(draw):
    classes = [f"c{i}" for i in range(draw.draw(st.integers(1, 6)))] + draw.draw(
        st.sampled_from([[], ["background"]])
    )
    names = draw.draw(st.lists(st.sampled_from(classes), min_size=1, max_size=4))
    label = np.array(
        draw.draw(
            st.lists(st.sampled_from([*range(len(classes)), IGNORE]), min_size=1, max_size=20)
        ),
        np.uint8,
    )
    all_of_them = data.DataSet("here", classes, [], [], lambda path: label)
    if set(names) == {"background"}:
        with pytest.raises(InputError, match="told from the background"):
            data.keep_classes(all_of_them, "background")
        return
    some = data.keep_classes(all_of_them, ",".join(names))
    assert some.classes[0] == "background" and set(some.classes[1:]) == set(names) - {"background"}
    assert len(set(some.classes)) == len(some.classes)
    for old, new in zip(label.tolist(), some.read_label(None).tolist(), strict=True):
        if old == IGNORE:
            assert new == IGNORE
        else:
            assert some.classes[new] == (classes[old] if classes[old] in names else "background")
    assert data.keep_classes(all_of_them, "all") is all_of_them


def test_one_kept_class_is_scored_as_the_road_is(tmp_path):
    masks(tmp_path, "abcdef")
    (tmp_path / "classes.txt").write_text("sky\ncar\nhouse\nhedge\n")
    assert find(tmp_path).road is None and find(tmp_path, classes="car,sky").road is None
    assert find(tmp_path, classes="car").road == 1 and find(kitti(tmp_path / "kitti")).road == 1
    assert find(tmp_path, classes="car, sky").classes == ["background", "car", "sky"]
    with pytest.raises(InputError, match="'cat'.*sky, car, house, hedge"):
        find(tmp_path, classes="car,cat")


# ---- PASCAL VOC ----


def voc(root, **lists):
    """A small PASCAL VOC tree; masks are palette PNGs with a border of 255, the stems with an x
    have theirs from SBD.
    """
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, stems in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(stems) + "\n")
        for stem in stems:
            picture(root / f"JPEGImages/{stem}.jpg", np.zeros((4, 5, 3)))
            label = np.full((4, 5), 255, np.uint8)
            label[1:-1, 1:-1] = [[0, 15, 20]] * 2
            mask = Image.fromarray(label)
            mask.putpalette(list(range(256)) * 3)
            folder = root / ("SegmentationClassAug" if "x" in stem else "SegmentationClass")
            folder.mkdir(exist_ok=True)
            mask.save(folder / f"{stem}.png")
    return root


def test_voc_is_read_with_its_own_split_palette_masks_and_border(tmp_path):
    root = voc(
        tmp_path,
        train=["2007_1", "2007_2"],
        val=["2007_3"],
        trainval=["2007_1", "2007_2", "2007_3"],
    )
    found = find(root)
    assert [s.image.name for s in found.train] == ["2007_1.jpg", "2007_2.jpg"]
    assert [s.label.name for s in found.val] == ["2007_3.png"]
    assert len(found.classes) == 21 and found.classes[15] == "person"
    image, label = Reader(found.read_label)(found.val[0])
    assert image.shape == (4, 5, 3)
    assert label.tolist() == [[255] * 5, [255, 0, 15, 20, 255], [255, 0, 15, 20, 255], [255] * 5]


def test_masks_of_sbd_join_those_of_voc_where_the_list_names_them(tmp_path):
    root = voc(tmp_path, train=["1"], val=["3"], trainaug=["1", "2x"])
    picture(root / "SegmentationClassAug/1.png", [[0]])  # VOC's own mask of an image comes first
    found = find(root)
    assert [s.label.parent.name for s in found.train] == [
        "SegmentationClass",
        "SegmentationClassAug",
    ]
    assert "2 training (trainaug)" in found.summary
    lists = root / "ImageSets/Segmentation"
    (lists / "trainaug.txt").rename(lists / "train_aug.txt")
    assert find(root).train == found.train and "(train_aug)" in find(root).summary


def test_the_classes_of_voc_are_in_its_own_order_and_can_be_chosen_among(tmp_path):
    root = voc(tmp_path, train=["1"], val=["2"])
    assert find(root).classes == [
        "background",
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ]
    found = find(root, classes="person")
    assert found.read_label(found.val[0].label)[1].tolist() == [255, 0, 1, 0, 255]


def test_a_list_of_voc_may_have_a_byte_order_mark_and_name_an_image_twice(tmp_path):
    root = voc(tmp_path, train=["1"], val=["2"])
    (root / "ImageSets/Segmentation/train.txt").write_text("\ufeff1\n1\n", encoding="utf-8")
    assert [s.image.stem for s in find(root).train] == ["1"]


@pytest.mark.parametrize(
    "spoilt, says",
    [
        (
            lambda root: (root / "ImageSets/Segmentation/val.txt").unlink(),
            "val.txt: cannot be read",
        ),
        (
            lambda root: (root / "ImageSets/Segmentation/val.txt").write_text(""),
            "val.txt: names no images",
        ),
        (
            lambda root: (root / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff"),
            "val.txt: cannot be read.*not text",
        ),
        (
            lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("../1"),
            "val.txt: names '../1'",
        ),
        (
            lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("1"),
            "1 of its images is in val.txt too, as 1",
        ),
        (lambda root: (root / "JPEGImages/2.jpg").unlink(), "names '2', but there is no '2.jpg'"),
        (
            lambda root: (root / "SegmentationClass/2.png").unlink(),
            "names '2', but there is no '2.png'",
        ),
        (lambda root: picture(root / "SegmentationClass/2.png", [[21]]), "2.png: has the class 21"),
    ],
)
def test_what_is_amiss_in_a_voc_tree_is_named(tmp_path, spoilt, says):
    root = voc(tmp_path, train=["1"], val=["2"])
    spoilt(root)
    with pytest.raises(InputError, match=says):
        found = find(root)
        found.read_label(found.val[0].label)


def test_own_data_in_the_layout_of_voc_has_the_classes_of_its_own_list(tmp_path):
    root = voc(tmp_path, train=["1"], val=["2"])
    (root / "classes.txt").write_text("background 0 1 2\nroad 45 46 47\n")
    found = find(root)
    assert (
        found.classes == ["background", "road"]
        and found.road == 1
        and "named in classes.txt" in found.summary
    )
    assert found.read_label(found.val[0].label)[1].tolist() == [
        255,
        0,
        1,
        255,
        255,
    ]  # id 20 has no name


@pytest.mark.parametrize(
    "given, meant", [("training/image_2", ""), ("training", ""), ("training/gt_image_2", "")]
)
def test_a_folder_one_or_two_levels_too_low_is_said(tmp_path, given, meant):
    kitti(tmp_path / "road")
    with pytest.raises(
        InputError, match=f"{given}: no data set found here; did you mean {tmp_path / 'road'}.$"
    ):
        find(tmp_path / "road" / given)


def test_a_folder_one_level_too_high_is_said_and_so_is_a_file(tmp_path):
    kitti(tmp_path / "road")
    with pytest.raises(InputError, match=f"did you mean {tmp_path / 'road'}"):
        find(tmp_path)
    (tmp_path / "road.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match="road.zip: is a file; unpack it"):
        find(tmp_path / "road.zip")


@pytest.mark.parametrize("name", ["background", "Background"])
def test_one_class_beside_background_is_scored_as_the_road_is(tmp_path, name):
    masks(tmp_path, "abcdef", ids=2)
    (tmp_path / "classes.txt").write_text(f"{name}\npond\n")
    assert find(tmp_path).road == 1


# ---- what cannot be used ----


def spoil(root, how):
    if how == "mask missing":
        (masks(root, "abc") / "masks/b.png").unlink()
        return "b.jpg"
    if how == "image missing":
        (masks(root, "abc") / "images/b.jpg").unlink()
        return "b.png"
    if how == "two of a stem":
        picture(masks(root, "abc") / "images/b.png", np.zeros((5, 7, 3)))
        return "b.png"
    if how == "lossy mask":
        (masks(root, "abc") / "masks/b.png").rename(root / "masks/b.jpg")
        return "b.jpg"
    if how == "no pictures":
        masks(root, "a")
        for part in ("images/a.jpg", "masks/a.png"):
            (root / part).unlink()
        return "images"
    if how == "one image":
        masks(root, "a")
        return "a.jpg"
    if how == "nothing known":
        (root / "pictures").mkdir()
        return "gt_image_2"
    if how == "kitti truth missing":
        kitti(root, um=0)
        return "um_lane_000000.png"
    if how == "kitti image missing":
        (kitti(root) / "training/image_2/um_000001.png").unlink()
        return "um_000001.png"
    if how == "no class":
        (masks(root, "abc") / "classes.txt").write_text("\n")
        return "classes.txt"
    if how == "class twice":
        (masks(root, "abc") / "classes.txt").write_text("road\nsky\nroad\n")
        return "classes.txt"
    if how == "no text":
        (masks(root, "abc") / "classes.txt").write_bytes(b"\xff\xfe\x00road")
        return "classes.txt"
    if how == "lane":
        masks(root, "abc")
        return "--task lane"
    if how == "val beside images":
        masks(root, "abc")
        masks(root / "val", "de")
        return "val: goes beside a folder train"
    if how == "ids with gaps":
        masks(root, "ab")
        picture(root / "masks/a.png", [[0, 200]])
        return r"the largest 200.*classes.txt"
    if how == "a level too low":
        kitti(root)
        return f"training: no data set found here; did you mean {root}"
    return "none"  # no such folder


@pytest.mark.parametrize(
    "how",
    [
        "mask missing",
        "image missing",
        "two of a stem",
        "lossy mask",
        "no pictures",
        "one image",
        "nothing known",
        "kitti truth missing",
        "kitti image missing",
        "no class",
        "class twice",
        "no text",
        "no folder",
        "lane",
        "val beside images",
        "ids with gaps",
        "a level too low",
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line_that_names_the_file(tmp_path, how):
    named = spoil(tmp_path, how)
    with pytest.raises(InputError, match=named) as error:
        folder = {"no folder": "none", "a level too low": "training"}.get(how, "")
        find(tmp_path / folder, "lane" if "kitti" in how or how == "lane" else "road")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not a picture", "cut"])
def test_a_broken_picture_is_said_by_name(tmp_path, content):
    file = picture(tmp_path / "broken.png", np.random.default_rng(0).integers(0, 256, (40, 40, 3)))
    file.write_bytes(file.read_bytes()[:900] if content == "cut" else content)
    with pytest.raises(InputError, match="broken.png"):
        read_picture(file).pixels


def test_sixteen_bit_grey_is_scaled_and_exif_turned(tmp_path):
    Image.fromarray(np.full((3, 4), 256 * 77, np.uint16)).save(tmp_path / "deep.png")
    assert (read_picture(tmp_path / "deep.png").pixels == 77).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").pixels.shape == (8, 4, 3)
