"""Readers of real files: layouts found, labels never bent, image and label kept together, batches of any sizes."""

import zlib

import numpy as np
import pytest
import torch
from conftest import SHARED
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import data
from data import find
from support import split
from support.batches import Reader, batches, collate, training_batches
from support.counts import class_weights, read_everything
from support.device import normalise, on_device
from support.errors import InputError
from support.labels import IGNORE
from support.pictures import read_image
from support.ranks import Ranks
from support.views import augment
from vgg import IMAGE_MEAN, IMAGE_STD

ROAD, NOT_ROAD, NOT_VALID = (255, 0, 255), (255, 0, 0), (0, 0, 0)


def picture(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(array, np.uint8)).save(path)
    return path


def kitti(root, um=4, umm=3, uu=5, size=(6, 9)):
    """A KITTI Road tree: um images with both ground truths, as in the benchmark."""
    rng = np.random.default_rng(0)
    for category, count in (("um", um), ("umm", umm), ("uu", uu)):
        for i in range(count):
            picture(root / f"training/image_2/{category}_{i:06d}.png", rng.integers(0, 256, (*size, 3)))
            for task in ("road", "lane") if category == "um" else ("road",):
                colours = np.array([ROAD, NOT_ROAD, NOT_VALID])[rng.integers(0, 3, size)]
                picture(root / f"training/gt_image_2/{category}_{task}_{i:06d}.png", colours)
    return root


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


@given(counts=st.lists(st.integers(0, 100), min_size=3, max_size=3).filter(lambda c: sum(c) >= 2),
       seed=st.integers(0, 99), turn=st.integers(0, 50))
def test_the_split_holds_out_each_category_in_proportion_whatever_the_order_and_folder(counts, seed, turn):
    def samples(root):
        return [data.Sample(root / f"{g}_{i}.png", root / "gt", g)
                for g, n in zip(("um", "umm", "uu"), counts) for i in range(n)]

    here, there = (samples(data.Path(root)) for root in ("/here", "/elsewhere"))
    train, val = split.hold_out(here, seed)
    assert sorted(train + val) == sorted(here)
    assert train and val
    for group, count in zip(("um", "umm", "uu"), counts):
        held = sum(s.group == group for s in val)
        assert abs(held - split.HELD_OUT * count) <= 0.5 or (held == 1 == len(val))
    moved = there[turn % len(there):] + there[:turn % len(there)]
    assert {s.image.name for s in split.hold_out(moved, seed)[1]} == {s.image.name for s in val}


def test_another_split_seed_holds_out_other_images(tmp_path):
    root = kitti(tmp_path, um=20, umm=0, uu=0)
    splits = {tuple(sorted(s.image.name for s in find(root, "road", seed).val)) for seed in range(5)}
    assert len(splits) > 1


# ---- images and masks ----

def test_classes_and_split_of_images_and_masks_come_from_the_folder(tmp_path):
    masks(tmp_path / "train", ["a", "b"])
    masks(tmp_path / "val", ["c"])
    (tmp_path / "classes.txt").write_text("road\nsky\n\nweg und straße\n", encoding="utf-8")
    found = find(tmp_path)
    assert [s.image.stem for s in found.train] == ["a", "b"] and [s.image.stem for s in found.val] == ["c"]
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
    assert data.read_mask(tmp_path / "m.png").tolist() == ids.tolist()


def test_grey_masks_of_four_bits_are_refused_since_their_ids_would_be_stretched(tmp_path):
    Image.fromarray(np.array([[0, 1], [2, 3]], np.uint8)).save(tmp_path / "m.png", bits=4)
    if Image.open(tmp_path / "m.png").tile[0][3] != "L;4":  # Pillow writes 4 bits for palettes alone
        data_bytes = bytearray((tmp_path / "m.png").read_bytes())
        data_bytes[24] = 4  # the bit depth in the header; its checksum follows
        data_bytes[29:33] = zlib.crc32(bytes(data_bytes[12:29])).to_bytes(4, "big")
        (tmp_path / "m.png").write_bytes(bytes(data_bytes))
    with pytest.raises(InputError, match="4 bits"):
        data.read_mask(tmp_path / "m.png")


def test_camvid_has_eleven_classes_and_ignores_the_unlabelled():
    folder = SHARED / "data" / "camvid"
    if not folder.is_dir():
        pytest.skip(f"needs CamVid in {folder}")
    found = find(folder)
    assert (len(found.train), len(found.val), len(found.classes)) == (367, 101, 11) and found.classes[3] == "road"
    label = found.read_label(found.val[0].label)
    assert set(np.unique(label)) <= {*range(11), IGNORE} and (label == IGNORE).any()


# ---- some of the classes ----

@given(st.data())
def test_classes_that_are_not_kept_become_background_and_ignored_pixels_stay_so(draw):
    classes = [f"c{i}" for i in range(draw.draw(st.integers(1, 6)))] + draw.draw(st.sampled_from([[], ["background"]]))
    names = draw.draw(st.lists(st.sampled_from(classes), min_size=1, max_size=4))
    label = np.array(draw.draw(st.lists(st.sampled_from([*range(len(classes)), IGNORE]), min_size=1, max_size=20)), np.uint8)
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
    assert find(tmp_path).road is None and find(tmp_path, keep="car,sky").road is None
    assert find(tmp_path, keep="car").road == 1 and find(kitti(tmp_path / "kitti")).road == 1
    assert find(tmp_path, keep="car, sky").classes == ["background", "car", "sky"]
    with pytest.raises(InputError, match="'cat'.*sky, car, house, hedge"):
        find(tmp_path, keep="car,cat")


# ---- PASCAL VOC ----

def voc(root, **lists):
    """A small PASCAL VOC tree; masks are palette PNGs with a border of 255, the stems with an x have theirs from SBD."""
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
    root = voc(tmp_path, train=["2007_1", "2007_2"], val=["2007_3"], trainval=["2007_1", "2007_2", "2007_3"])
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
    assert [s.label.parent.name for s in found.train] == ["SegmentationClass", "SegmentationClassAug"]
    assert "2 training (trainaug)" in found.found
    lists = root / "ImageSets/Segmentation"
    (lists / "trainaug.txt").rename(lists / "train_aug.txt")
    assert find(root).train == found.train and "(train_aug)" in find(root).found


def test_the_classes_of_voc_are_in_its_own_order_and_can_be_chosen_among(tmp_path):
    root = voc(tmp_path, train=["1"], val=["2"])
    assert find(root).classes == ["background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
                                  "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa",
                                  "train", "tvmonitor"]
    found = find(root, keep="person")
    assert found.read_label(found.val[0].label)[1].tolist() == [255, 0, 1, 0, 255]


def test_a_list_of_voc_may_have_a_byte_order_mark_and_name_an_image_twice(tmp_path):
    root = voc(tmp_path, train=["1"], val=["2"])
    (root / "ImageSets/Segmentation/train.txt").write_text("\ufeff1\n1\n", encoding="utf-8")
    assert [s.image.stem for s in find(root).train] == ["1"]


@pytest.mark.parametrize("spoilt, says", [
    (lambda root: (root / "ImageSets/Segmentation/val.txt").unlink(), "val.txt: cannot be read"),
    (lambda root: (root / "ImageSets/Segmentation/val.txt").write_text(""), "val.txt: names no images"),
    (lambda root: (root / "ImageSets/Segmentation/val.txt").write_bytes(b"\xff"), "val.txt: cannot be read.*not text"),
    (lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("../1"), "val.txt: names '../1'"),
    (lambda root: (root / "ImageSets/Segmentation/val.txt").write_text("1"), "1 of its images are in val.txt too, as 1"),
    (lambda root: (root / "JPEGImages/2.jpg").unlink(), "names '2', but there is no '2.jpg'"),
    (lambda root: (root / "SegmentationClass/2.png").unlink(), "names '2', but there is no '2.png'"),
    (lambda root: picture(root / "SegmentationClass/2.png", [[21]]), "2.png: has the class 21"),
])
def test_what_is_amiss_in_a_voc_tree_is_named(tmp_path, spoilt, says):
    root = voc(tmp_path, train=["1"], val=["2"])
    spoilt(root)
    with pytest.raises(InputError, match=says):
        found = find(root)
        found.read_label(found.val[0].label)


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


@pytest.mark.parametrize("how", ["mask missing", "image missing", "two of a stem", "lossy mask", "no pictures",
                                 "one image", "nothing known", "kitti truth missing", "kitti image missing",
                                 "no class", "class twice", "no text", "no folder", "lane", "val beside images",
                                 "ids with gaps", "a level too low"])
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
        read_image(file)


def test_image_and_label_of_different_sizes_are_refused_with_both_sizes(tmp_path):
    sample = data.Sample(picture(tmp_path / "i.png", np.zeros((5, 7, 3))), picture(tmp_path / "m.png", [[0]]), "")
    with pytest.raises(InputError, match="1x1.*7x5"):
        Reader(data.read_mask)(sample)


# ---- class weights ----

@given(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=200))
def test_class_weights_fall_with_the_root_of_frequency_and_have_mean_one_over_the_pixels(pixels):
    weights = class_weights(np.array([pixels.count(c) for c in range(5)])).tolist()
    assert weights[4] == 1 and all(0 < weight < float("inf") for weight in weights)
    for a in set(pixels):
        for b in set(pixels):
            assert weights[a] / weights[b] == pytest.approx((pixels.count(b) / pixels.count(a)) ** 0.5)
    if pixels:
        assert sum(weights[label] for label in pixels) / len(pixels) == pytest.approx(1)


def test_training_pixels_are_counted_and_ignored_ones_are_not(tmp_path):
    for i, part in enumerate(("train", "train", "val")):
        picture(tmp_path / f"{part}/images/{i}.png", np.zeros((2, 3, 3)))
        picture(tmp_path / f"{part}/masks/{i}.png", [[0, 1, 1], [IGNORE, 0, 7]])
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    found = find(tmp_path)
    assert read_everything(found, Reader(found.read_label)).training.tolist() == [4, 4, 0]


def test_stray_pixels_of_a_class_weigh_no_more_than_those_of_a_rare_one():
    none, stray, rare = class_weights(np.array([999_899, 1, 100])).tolist()
    assert none == pytest.approx(1, abs=0.02) and stray == rare == pytest.approx(100, rel=0.02)


# ---- augmentation ----

@given(seed=st.integers(0, 10**6), height=st.integers(1, 90), width=st.integers(1, 90),
       crop=st.none() | st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_augmentation_keeps_size_type_and_classes(seed, height, width, crop):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), np.uint8)
    label = rng.choice(np.array([0, 1, 5, IGNORE], np.uint8), (height, width))
    view, view_label = augment(image, label, rng, crop)
    assert view.dtype == view_label.dtype == np.uint8
    assert view.shape == (*view_label.shape, 3)
    if crop:
        assert view_label.shape[0] <= crop[0] and view_label.shape[1] <= crop[1]
    assert set(np.unique(view_label)) <= set(np.unique(label))  # nearest: no id that was not there


@given(seed=st.integers(0, 10**6), crop=st.sampled_from([None, (40, 60), (17, 90)]))
def test_augmentation_keeps_image_and_label_together(seed, crop):
    """The label is drawn into the picture: after any flip, scale and crop it is still found there."""
    rng = np.random.default_rng(seed)
    label = np.kron(rng.integers(0, 2, (5, 6), np.uint8), np.ones((16, 16), np.uint8))
    image = np.repeat(60 + 120 * label[..., None], 3, axis=2)
    view, view_label = augment(image, label, rng, crop)
    if len(np.unique(view_label)) == 2:  # light and contrast may shift both greys, not their order
        for channel in range(3):
            seen = view[..., channel].astype(int)
            agree = ((seen > (seen.min() + seen.max()) / 2) == view_label).mean()
            assert agree > 0.93  # all but the blended edges


@pytest.mark.parametrize("flip, left", [("yes", {False, True}), ("no", {True})])
def test_training_views_are_mirrored_only_where_that_is_wanted(flip, left):
    label = np.zeros((64, 64), np.uint8)
    label[:, :16] = 1  # what is at the left
    image = np.full((64, 64, 3), 100, np.uint8)
    settings = {"seed": 0, "batch_size": 1, "workers": 0, "augment": True, "colours": True, "flip": flip}
    views = training_batches(lambda _: (image, label), list(range(40)), 1, None, settings, Ranks())
    labels = [labels[0] for _, labels in views]
    sides = {bool((seen[:, 0] == 1).all()) for seen in labels if (seen == 1).any()}
    assert sides == left


def test_augmentation_flips_scales_crops_and_changes_light():
    label = np.zeros((512, 512), np.uint8)
    label[:, :160] = 1
    image = np.full((512, 512, 3), 100, np.uint8)
    views = [augment(image, label, np.random.default_rng(i)) for i in range(40)]
    assert {bool(v[0, 0]) for _, v in views} == {False, True}
    heights = {v.shape[0] for _, v in views}
    assert min(heights) == 384 and max(heights) >= 672 and len(heights) > 5  # 0.75 to 1.35 times
    assert all(side % 32 == 0 for side in heights)  # few sizes
    assert len({int(v[0, 0, 0]) for v, _ in views}) > 10
    grey = np.array([v[0, 0] for v, _ in views], int)
    for i, j in ((0, 1), (1, 2), (0, 2)):
        assert (grey[:, i] > grey[:, j]).any() and (grey[:, i] < grey[:, j]).any()  # its light has a colour, of any kind
    plain = np.array([augment(image, label, np.random.default_rng(i), colours=False)[0][0, 0] for i in range(40)])
    assert (plain == plain[:, :1]).all() and len({int(p[0]) for p in plain}) > 10  # grey stays grey
    image[:, :, 0] = 180  # a red: of other light, and nearer to grey or farther from it
    reds = np.array([augment(image, label, np.random.default_rng(i))[0][0, 0] for i in range(40)], int)
    redness = (reds[:, 0] - reds[:, 1]) / np.maximum(grey[:, 0], 1)
    assert (reds[:, 0] > reds[:, 1:].max(1)).all() and redness.max() > 2 * redness.min()
    windows = {v.tobytes() for _, v in (augment(image, label, np.random.default_rng(i), (128, 128)) for i in range(40))}
    assert len(windows) > 4


# ---- batches ----

@given(sizes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=4))
def test_a_batch_of_images_of_different_sizes_is_padded_with_ignore(sizes):
    pairs = [(np.full((h, w, 3), 7, np.uint8), np.full((h, w), 1, np.uint8)) for h, w in sizes]
    images, labels = collate(pairs)
    assert images.shape == (len(sizes), 3, max(h for h, _ in sizes), max(w for _, w in sizes))
    for n, (h, w) in enumerate(sizes):
        assert (images[n, :, :h, :w] == 7).all() and (labels[n, :h, :w] == 1).all()
        assert (labels[n] == 1).sum() == h * w and (labels[n] == IGNORE).sum() == labels[n].numel() - h * w
    padding = normalise(images)[labels[:, None].expand_as(images) == IGNORE]
    assert (padding.abs() < 0.01).all()  # the mean colour: next to nothing


@given(count=st.integers(0, 9), batch_size=st.integers(1, 4), workers=st.integers(0, 3))
def test_batches_bring_every_sample_once_in_order_for_any_number_of_workers(count, batch_size, workers):
    def load(i):
        return np.full((1, 1, 3), i, np.uint8), np.full((1, 1), i, np.uint8)

    groups = [list(range(count))[i:i + batch_size] for i in range(0, count, batch_size)]
    loaded = [labels.flatten().tolist() for _, labels in batches(groups, load, workers)]
    assert loaded == groups


def test_an_error_in_a_worker_reaches_the_loop():
    def load(i):
        raise InputError(f"sample {i}")

    with pytest.raises(InputError, match="sample 0"):
        list(batches([[0], [1], [2], [3]], load, 2))


@pytest.mark.parametrize("room, kept", [(10**6, 12), (0, 0), (3 * 6 * 9 * 4, 3)])
def test_the_cache_stays_within_its_bytes_and_changes_nothing(tmp_path, room, kept):
    found = find(kitti(tmp_path))
    reader, plain = Reader(found.read_label, room), Reader(found.read_label, 0)
    for _ in range(2):
        for sample in found.train + found.val:
            for ours, theirs in zip(reader(sample), plain(sample)):
                assert np.array_equal(ours, theirs)
    assert len(reader.cache) == kept
    assert sum(a.nbytes for pair in reader.cache.values() for a in pair) <= room


def test_images_reach_the_network_normalised_in_rgb():
    image = np.zeros((2, 2, 3), np.uint8)
    image[..., 0], image[..., 2] = 255, 51  # red 1.0, blue 0.2
    pair = collate([(image, np.zeros((2, 2), np.uint8))])
    images, labels = next(on_device([pair], torch.device("cpu")))
    wanted = [(v - m) / s for v, m, s in zip((1.0, 0.0, 0.2), IMAGE_MEAN, IMAGE_STD)]
    assert images[0, :, 1, 1].tolist() == pytest.approx(wanted, abs=1e-5)
    assert images.dtype == torch.float32 and labels.dtype == torch.int64


def test_sixteen_bit_grey_is_scaled_and_exif_turned(tmp_path):
    Image.fromarray(np.full((3, 4), 256 * 77, np.uint16)).save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "deep.png") == 77).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (8, 4)).save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").shape == (8, 4, 3)
