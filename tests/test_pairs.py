"""Which mask belongs to which picture, wherever they lie: nested folders, patterns, Cityscapes,
lists of names.
"""

import itertools

import numpy as np
import pytest
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st

from data import find
from support.console import InputError
from support.labels import IGNORE


def pair(image, mask, ids=3):
    picture(image, np.full((4, 6, 3), 90))
    picture(mask, np.arange(24).reshape(4, 6) % ids)


def names(samples):
    return [
        (sample.image.as_posix().split("/set/")[-1], sample.label.as_posix().split("/set/")[-1])
        for sample in samples
    ]


# ---- folders ----


@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "c.d", "ü"]), min_size=1, max_size=3),
        min_size=2,
        max_size=6,
        unique_by="/".join,
    )
)
def test_images_and_masks_at_any_depth_are_matched_by_path_and_stem(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp("nested") / "set"
    for i, path in enumerate(paths):
        path[-1] += str(i)  # no file has the name of a folder
        pair(
            root / "images" / f"{'/'.join(path)}.{['png', 'jpg', 'bmp'][i % 3]}",
            root / "masks" / f"{'/'.join(path)}.png",
        )
    found = find(root)
    samples = found.train + found.val
    assert len(samples) == len(paths) == len(set(samples))
    for sample in samples:
        assert sample.image.relative_to(root / "images").with_suffix(
            ""
        ) == sample.label.relative_to(root / "masks").with_suffix("")


@pytest.mark.parametrize("form", ["{part}/{kind}/x/{i}", "{kind}/{part}/x/{i}"])
def test_folders_of_parts_may_lie_above_or_below_images_and_masks(tmp_path, form):
    for part, i in (("train", 1), ("train", 2), ("val", 3), ("test", 4)):
        pair(
            tmp_path / "set" / f"{form.format(part=part, kind='images', i=i)}.jpg",
            tmp_path / "set" / f"{form.format(part=part, kind='masks', i=i)}.png",
        )
    found = find(tmp_path / "set")
    assert [[int(s.image.stem) for s in part] for part in (found.train, found.val, found.test)] == [
        [1, 2],
        [3],
        [4],
    ]


def test_the_same_name_in_two_folders_is_two_samples_and_hidden_files_are_none(tmp_path):
    for name in ("x/1", "y/1", "1"):
        pair(tmp_path / f"set/images/{name}.jpg", tmp_path / f"set/masks/{name}.png")
    pair(tmp_path / "set/images/.cache/2.jpg", tmp_path / "set/masks/._3.png")
    pair(tmp_path / "set/images/@eaDir/1.jpg", tmp_path / "set/masks/__MACOSX/1.png")
    found = find(tmp_path / "set")
    assert sorted(names(found.train + found.val)) == [
        ("images/1.jpg", "masks/1.png"),
        ("images/x/1.jpg", "masks/x/1.png"),
        ("images/y/1.jpg", "masks/y/1.png"),
    ]


@pytest.mark.parametrize(
    "wrong, right",
    [
        ("valid/{}", "val"),
        ("validation/{}", "val"),
        ("{}/valid", "val"),
        ("{}/training", "train"),
        ("testing/{}", "test"),
        ("training/{}", "train"),
        ("{}/val", "goes beside a folder train"),
        ("Val/{}", "val"),
        ("{}/Train", "train"),
        ("{}/test", "goes beside a folder train"),
    ],
)
def test_folders_of_parts_under_other_names_are_refused_not_mixed_or_left_out(
    tmp_path, wrong, right
):
    plain = "{}" if wrong.startswith("{}") else "train/{}"
    for place, i in ((plain, 1), (plain, 2), (wrong, 3)):
        pair(
            tmp_path / place.format("images") / f"{i}.jpg",
            tmp_path / place.format("masks") / f"{i}.png",
        )
    with pytest.raises(
        InputError,
        match=f"is called {right} here; rename it" if right in ("train", "val", "test") else right,
    ):
        find(tmp_path)


@pytest.mark.parametrize(
    "name", ["validation.txt", "Train.txt", "classes.csv", "Classes.TXT", "classes.txt.txt"]
)
def test_files_that_are_nearly_named_as_the_project_reads_them_are_said(tmp_path, name):
    for i in range(3):
        pair(tmp_path / f"images/{i}.jpg", tmp_path / f"masks/{i}.png")
    (tmp_path / name).write_text("1\n")
    with pytest.raises(
        InputError,
        match=f"{name}: is (called (val|train).txt here; rename it|not read; the names of the classes go)",
    ):
        find(tmp_path)


@pytest.mark.parametrize("form", ["{part}/{kind}", "{kind}/{part}"])
def test_a_validation_set_without_masks_is_not_left_out_in_silence(tmp_path, form):
    for part, i in (("train", 1), ("train", 2), ("val", 3)):
        pair(
            tmp_path / form.format(part=part, kind="images") / f"{i}.jpg",
            tmp_path / form.format(part=part, kind="masks") / f"{i}.png",
        )
    (tmp_path / form.format(part="val", kind="masks") / "3.png").unlink()
    (tmp_path / form.format(part="val", kind="masks")).rmdir()
    with pytest.raises(InputError, match="3.jpg: there is no mask|masks: no such folder"):
        find(tmp_path)


def test_folders_that_are_links_are_entered_and_loops_of_links_end(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for i in (1, 2):
        pair(tmp_path / f"disk/i/{i}.jpg", tmp_path / f"disk/m/{i}.png")
    (tmp_path / "set/images/b").symlink_to(tmp_path / "disk/i")
    (tmp_path / "set/masks/b").symlink_to(tmp_path / "disk/m")
    (tmp_path / "disk/i/again").symlink_to(tmp_path / "disk/i")
    found = find(tmp_path / "set")
    assert sorted(names(found.train + found.val)) == [
        ("images/b/1.jpg", "masks/b/1.png"),
        ("images/b/2.jpg", "masks/b/2.png"),
    ]


def test_images_of_one_name_in_many_folders_are_drawn_by_the_seed_too(tmp_path):
    for i in range(20):
        pair(tmp_path / f"set/images/{i}/img.jpg", tmp_path / f"set/masks/{i}/img.png")
    splits = {
        tuple(sorted(s.image for s in find(tmp_path / "set", split_seed=seed).val))
        for seed in range(4)
    }
    assert len(splits) == 4
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = {
        tuple(sorted(s.image for s in find(tmp_path / "moved", split_seed=seed).val))
        for seed in range(4)
    }
    assert {tuple(str(p).replace("/moved/", "/set/") for p in split) for split in moved} == {
        tuple(map(str, s)) for s in splits
    }


def test_every_file_without_a_partner_is_named_or_counted(tmp_path):
    for name in "abcdefg":
        pair(tmp_path / f"images/{name}.jpg", tmp_path / f"masks/{name}.png")
    for name in "bcdef":
        (tmp_path / f"masks/{name}.png").unlink()
    (tmp_path / "images/a.jpg").unlink()
    with pytest.raises(
        InputError,
        match=r"images/b.jpg: there is no mask named b in .*; without a partner, too: c.jpg, d.jpg, "
        "e.jpg and 2 more",
    ):
        find(tmp_path)


# ---- patterns ----


def test_patterns_take_a_data_set_where_it_lies_with_its_suffixes_and_parts(tmp_path):
    for part, name in (("train", "x/1"), ("train", "y/1"), ("val", "z/1"), ("test", "z/2")):
        pair(
            tmp_path / f"set/cam/{part}/{name}_cam.jpg",
            tmp_path / f"set/gt/{part}/{name}_gt_ids.png",
        )
        picture(
            tmp_path / f"set/gt/{part}/{name}_gt_colours.png", np.zeros((4, 6, 3))
        )  # fits no pattern
    found = find(
        tmp_path / "set", images="cam/{split}/**/*_cam.jpg", masks="gt/{split}/**/*_gt_ids.png"
    )
    assert names(found.train) == [
        ("cam/train/x/1_cam.jpg", "gt/train/x/1_gt_ids.png"),
        ("cam/train/y/1_cam.jpg", "gt/train/y/1_gt_ids.png"),
    ]
    assert (
        names(found.val) == [("cam/val/z/1_cam.jpg", "gt/val/z/1_gt_ids.png")]
        and len(found.test) == 1
    )


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "a/", "a/b/", "_x/"]),
            st.sampled_from(["1", "2", "3_cam", "_", "x.y"]),
        ),
        min_size=2,
        max_size=8,
        unique=True,
    )
)
def test_what_the_wildcards_stand_for_is_what_matches(tmp_path_factory, keys):
    root = tmp_path_factory.mktemp("patterns") / "set"
    for folder, name in keys:
        pair(root / f"photos/{folder}{name}_cam.png", root / f"labels/{folder}m-{name}.png")
    found = find(root, images="photos/**/*_cam.png", masks="labels/**/m-*.png")
    assert sorted(names(found.train + found.val)) == sorted(
        (f"photos/{folder}{name}_cam.png", f"labels/{folder}m-{name}.png") for folder, name in keys
    )


def test_each_wildcard_is_compared_by_itself(tmp_path):
    """cam1/frame12 and cam11/frame2 spell the same letters."""
    for camera, frame in ((1, 12), (11, 2)):
        pair(
            tmp_path / f"set/cam{camera}/frame{frame}.jpg",
            tmp_path / f"set/gt{camera}/mask{frame}.png",
        )
    found = find(tmp_path / "set", images="cam*/frame*.jpg", masks="gt*/mask*.png")
    assert sorted(names(found.train + found.val)) == [
        ("cam1/frame12.jpg", "gt1/mask12.png"),
        ("cam11/frame2.jpg", "gt11/mask2.png"),
    ]
    (tmp_path / "set/gt1/mask12.png").unlink()
    (tmp_path / "set/cam11/frame2.jpg").unlink()
    with pytest.raises(InputError, match="frame12.jpg: there is no mask"):
        find(tmp_path / "set", images="cam*/frame*.jpg", masks="gt*/mask*.png")


def test_masks_beside_their_pictures_are_not_pictures(tmp_path):
    for i in range(3):
        pair(tmp_path / f"set/all/{i}.png", tmp_path / f"set/all/{i}_mask.png")
    found = find(tmp_path / "set", images="all/*.png", masks="all/*_mask.png")
    assert sorted(names(found.train + found.val)) == [
        (f"all/{i}.png", f"all/{i}_mask.png") for i in range(3)
    ]


def test_a_letter_that_systems_write_in_two_ways_is_one(tmp_path):
    for i in range(2):
        pair(
            tmp_path / f"set/images/stra\u00dfe u\u0308{i}.jpg",
            tmp_path / f"set/masks/stra\u00dfe \u00fc{i}.png",
        )
    assert len(find(tmp_path / "set").train) == 1


def test_a_partner_of_a_format_that_is_not_read_is_named(tmp_path):
    for i in range(3):
        pair(tmp_path / f"images/{i}.jpg", tmp_path / f"masks/{i}.png")
    (tmp_path / "images/1.jpg").rename(tmp_path / "images/1.HEIC")
    with pytest.raises(
        InputError,
        match="1.png: there is no image named 1 in .*; 1.HEIC is of a format that is not read, save it as JPEG",
    ):
        find(tmp_path)


def test_a_pattern_without_an_ending_takes_pictures_of_every_ending(tmp_path):
    for name in ("1.jpg", "2.png", "3.bmp"):
        pair(tmp_path / "photos" / name, tmp_path / f"labels/{name[0]}.png")
    found = find(tmp_path, images="photos/*", masks="labels/*.png")
    assert len(found.train + found.val) == 3


@pytest.mark.parametrize(
    "images, masks, says",
    [
        ("photos/**.jpg", "labels/**.png", r"write \*\* between slashes"),
        ("photos/*.jpg", "auto", "--images and --masks: go together"),
        ("auto", "labels/*.png", "--images and --masks: go together"),
        ("photos/1.jpg", "labels/1.png", "--images photos/1.jpg: give a pattern"),
        ("/photos/*.jpg", "labels/*", "--images /photos"),
        ("../photos/*.jpg", "labels/*", "--images ../photos"),
        ("photos/**/*.jpg", "labels/*.png", "have different wildcards"),
        ("photos/*.jpg", "masks/*.png", "there is no mask named 1 in"),
        ("pictures/*", "masks/*", "no picture has such a path"),
        ("photos/*.jpg", "labels/*_ids.png", "there is no mask named 1"),
        ("photos/?*.jpg", "labels/*.png", "have different wildcards"),
    ],
)
def test_a_pattern_that_finds_nothing_or_cannot_match_says_why(tmp_path, images, masks, says):
    pair(tmp_path / "photos/1.jpg", tmp_path / "labels/1.png")
    with pytest.raises(InputError, match=says) as error:
        find(tmp_path, images=images, masks=masks)
    assert "\n" not in str(error.value)


def test_a_pattern_that_would_mix_training_and_validation_images_is_refused(tmp_path):
    for part in ("train", "val"):
        pair(tmp_path / f"photos/{part}/1.jpg", tmp_path / f"labels/{part}/1.png")
    with pytest.raises(
        InputError, match="mixes the folders train and val; write {split} in their place"
    ):
        find(tmp_path, images="photos/**/*.jpg", masks="labels/**/*.png")
    assert len(find(tmp_path, images="photos/{split}/*.jpg", masks="labels/{split}/*.png").val) == 1


# ---- Cityscapes ----


def cityscapes(root, kind, ids):
    for part, city, i in (
        ("train", "aachen", 1),
        ("train", "bonn", 2),
        ("train", "bonn", 3),
        ("val", "ulm", 4),
        ("test", "berlin", 5),
    ):
        stem = f"{part}/{city}/{city}_00000{i}_000019"
        picture(root / f"leftImg8bit/{stem}_leftImg8bit.png", np.full((4, 6, 3), 90))
        picture(root / f"gtFine/{stem}_gtFine_{kind}.png", np.resize(ids, (4, 6)))
        picture(root / f"gtFine/{stem}_gtFine_color.png", np.zeros((4, 6, 3)))
        (root / f"gtFine/{stem}_gtFine_polygons.json").write_text("{}")
    return root


def test_cityscapes_is_found_by_itself_and_both_kinds_of_its_masks_say_the_same(tmp_path):
    """Ids 7, 8, 11 and 33 are road, sidewalk, building and bicycle; 0 to 6 and 9 are not scored."""
    by_id = find(cityscapes(tmp_path / "ids", "labelIds", [7, 8, 11, 33, 0, 9]))
    by_train_id = find(cityscapes(tmp_path / "train ids", "labelTrainIds", [0, 1, 2, 18, 255, 255]))
    for found in (by_id, by_train_id):
        assert (len(found.train), len(found.val), len(found.test)) == (3, 1, 0)
        assert (
            len(found.classes) == 19
            and found.classes[0] == "road"
            and found.classes[18] == "bicycle"
        )
        assert found.read_label(found.val[0].label)[0].tolist() == [0, 1, 2, 18, IGNORE, IGNORE]
        assert found.val[0].image.name == "ulm_000004_000019_leftImg8bit.png"


def test_cityscapes_without_masks_is_said(tmp_path):
    with pytest.raises(InputError, match="gtFine/train: holds no masks named"):
        find(cityscapes(tmp_path, "instanceIds", [0]))


# ---- lists ----

SPELLINGS = [
    "C:\\data\\images\\{}.jpg",
    "/home/bob/set/images/x/{}.jpg",
    "{}.png",
    "x/{}.jpg",
    "x/{}",
    "images/x/{}.jpg",
    "./x/{}.jpg",
    "{}.jpg",
    "{}",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_lists_name_the_parts_in_any_spelling_and_what_they_do_not_name_needs_no_mask(
    tmp_path, spelling
):
    for i in range(6):
        pair(tmp_path / f"set/images/x/{i}.jpg", tmp_path / f"set/masks/x/{i}.png")
    (tmp_path / "set/masks/x/5.png").unlink()
    for part, members in (("train", "021"), ("val", "3"), ("test", "4")):
        lines = [spelling.format(i) for i in members]
        (tmp_path / f"set/{part}.txt").write_text(
            "\ufeff" + "\r\n".join([*lines, lines[0], "", ""]), encoding="utf-8"
        )
    found = find(tmp_path / "set")
    for part, members in ((found.train, "012"), (found.val, "3"), (found.test, "4")):
        assert names(part) == [(f"images/x/{i}.jpg", f"masks/x/{i}.png") for i in members]
    assert found.summary.endswith(
        ", as train.txt, val.txt, test.txt list them; 1 picture in no list"
    )


def test_a_path_that_a_list_writes_out_is_that_image_even_if_others_have_its_name(tmp_path):
    for name in ("1", "x/1", "y/2"):
        pair(tmp_path / f"set/images/{name}.jpg", tmp_path / f"set/masks/{name}.png")
    (tmp_path / "set/val.txt").write_text("1.jpg\n")
    assert names(find(tmp_path / "set").val) == [("images/1.jpg", "masks/1.png")]
    (tmp_path / "set/val.txt").write_text("x\\1.jpg\n")  # as Windows writes it
    assert names(find(tmp_path / "set").val) == [("images/x/1.jpg", "masks/x/1.png")]


@pytest.mark.parametrize(
    "parts",
    [parts for n in (1, 2) for parts in itertools.combinations(("train", "val", "test"), n)],
)
def test_a_part_that_is_not_listed_comes_from_the_rest_and_no_image_is_in_two_parts(
    tmp_path, parts
):
    for i in range(10):
        pair(tmp_path / f"set/images/{i}.png", tmp_path / f"set/masks/{i}.png")
    for n, part in enumerate(parts):
        (tmp_path / f"set/{part}.txt").write_text("\n".join(str(3 * n + i) for i in range(3)))
    found = find(tmp_path / "set")
    sets = [set(found.train), set(found.val), set(found.test)]
    assert sets[0] and sets[1] and sum(map(len, sets)) == len(set.union(*sets))
    for n, part in enumerate(parts):
        assert (
            part == "train"
            and "val" not in parts
            or len(sets[("train", "val", "test").index(part)]) == 3
        )
    if "train" not in parts:
        assert len(set.union(*sets)) == 10
    if parts == ("train",):
        assert (
            len(sets[0] | sets[1]) == 3
        )  # a part of the three is held out; the others are not used


@pytest.mark.parametrize(
    "spoil, says",
    [
        (
            lambda root: (root / "train.txt").write_text("1\n9\n"),
            "train.txt: names '9', and no image has this name",
        ),
        (lambda root: (root / "train.txt").write_text("\n \n"), "train.txt: names no images"),
        (
            lambda root: (root / "val.txt").write_bytes(b"\xff\xfe"),
            "val.txt: cannot be read.*not text",
        ),
        (
            lambda root: (root / "val.txt").write_text("3\n1\n"),
            "train.txt: 1 of its images is in val.txt too, as 1",
        ),
        (
            lambda root: (root / "train.txt").write_text("0\n1\n2\n3\n"),
            "train.txt: 1 of its images is in val.txt too, as 3",
        ),
        (
            lambda root: (root / "test.txt").write_text("3"),
            "val.txt: 1 of its images is in test.txt too, as 3",
        ),
        (lambda root: (root / "masks/1.png").unlink(), "1.png: there is no mask named 1"),
        (
            lambda root: (
                (root / "train.txt").unlink() or (root / "val.txt").write_text("0\n1\n2\n3\n")
            ),
            "no image is left to train on",
        ),
        (
            lambda root: (
                [
                    pair(root / f"{{}}/{x}/7.png".format("images"), root / f"masks/{x}/7.png")
                    for x in "xy"
                ]
                + [(root / "val.txt").write_text("7")]
            ),
            "names '7', and several images have",
        ),
    ],
)
def test_what_is_amiss_in_a_list_is_named(tmp_path, spoil, says):
    for i in range(4):
        pair(tmp_path / f"set/images/{i}.png", tmp_path / f"set/masks/{i}.png")
    (tmp_path / "set/train.txt").write_text("0\n1\n2\n")
    (tmp_path / "set/val.txt").write_text("3\n")
    spoil(tmp_path / "set")
    with pytest.raises(InputError, match=says) as error:
        find(tmp_path / "set")
    assert "\n" not in str(error.value)
