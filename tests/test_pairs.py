"""Folders, patterns and lists assign masks to pictures, and pairs to parts."""

import itertools
import re

import numpy as np
import pytest
from conftest import picture
from hypothesis import given
from hypothesis import strategies as st

from data import DataOptions, find
from support.console import InputError
from support.labels import IGNORE


def pair(image, mask):
    picture(image, np.full((4, 6, 3), 90))
    picture(mask, np.arange(24).reshape(4, 6) % 3)


def by_pattern(root, images, masks):
    return find(root, DataOptions(images=images, masks=masks))


def names(samples, root):
    return [tuple(p.relative_to(root).as_posix() for p in sample[:2]) for sample in samples]


# ---- folders ----


@pytest.mark.parametrize("form", ["{part}/{kind}/x/{i}", "{kind}/{part}/x/{i}"])
def test_part_folders_may_be_above_or_below_images_and_masks(tmp_path, form):
    for part, i in (("train", 1), ("train", 2), ("val", 3), ("test", 4)):
        image, mask = (form.format(part=part, kind=kind, i=i) for kind in ("images", "masks"))
        pair(tmp_path / f"{image}.jpg", tmp_path / f"{mask}.png")
    found = find(tmp_path)
    parts = [[s.image.stem for s in part] for part in (found.train, found.val, found.test)]
    assert parts == [["1", "2"], ["3"], ["4"]]
    assert found.summary.endswith(": 2 training + 1 validation + 1 test images")


def test_lists_select_from_the_images_in_the_folders(tmp_path):
    for part, i in (("train", 1), ("train", 2), ("train", 3), ("val", 4), ("val", 5)):
        pair(tmp_path / f"{part}/images/{i}.jpg", tmp_path / f"{part}/masks/{i}.png")
    (tmp_path / "train.txt").write_text("1\n3\n")
    found = find(tmp_path)
    assert [[s.image.stem for s in part] for part in (found.train, found.val)] == [
        ["1", "3"],
        ["4", "5"],
    ]
    assert "by folders, 2 of 3 pictures as train.txt says" in found.summary
    (tmp_path / "val.txt").write_text("2\n")  # an image of the other folder
    with pytest.raises(InputError, match="val.txt: names '2', which must match exactly one image"):
        find(tmp_path)


def test_only_test_images_may_lack_masks(tmp_path):
    for folder, i in (("train", 1), ("train", 2), ("val", 3)):
        pair(tmp_path / f"{folder}/images/{i}.jpg", tmp_path / f"{folder}/masks/{i}.png")
    picture(tmp_path / "test/images/4.jpg", np.zeros((4, 6, 3)))
    found = find(tmp_path)
    assert not found.test and "(1 test picture without masks left out)" in found.summary
    (tmp_path / "val/masks/3.png").unlink()
    with pytest.raises(InputError, match="3.jpg: there is no mask"):
        find(tmp_path)


def test_equal_names_are_kept_apart_and_hidden_files_skipped(tmp_path):
    for name in ("x/1", "y/1", "1"):
        pair(tmp_path / f"images/{name}.jpg", tmp_path / f"masks/{name}.png")
    pair(tmp_path / "images/.cache/2.jpg", tmp_path / "masks/._3.png")
    pair(tmp_path / "images/@eaDir/1.jpg", tmp_path / "masks/__MACOSX/1.png")
    found = find(tmp_path)
    assert sorted(names(found.train + found.val, tmp_path)) == [
        ("images/1.jpg", "masks/1.png"),
        ("images/x/1.jpg", "masks/x/1.png"),
        ("images/y/1.jpg", "masks/y/1.png"),
    ]


def test_linked_folders_are_followed_and_link_loops_end(tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "set" / kind).mkdir(parents=True)
    for i in (1, 2):
        pair(tmp_path / f"disk/i/{i}.jpg", tmp_path / f"disk/m/{i}.png")
    (tmp_path / "set/images/b").symlink_to(tmp_path / "disk/i")
    (tmp_path / "set/masks/b").symlink_to(tmp_path / "disk/m")
    (tmp_path / "disk/i/again").symlink_to(tmp_path / "disk/i")
    found = find(tmp_path / "set")
    assert sorted(s.image.name for s in found.train + found.val) == ["1.jpg", "2.jpg"]


def test_composed_and_decomposed_unicode_names_match(tmp_path):
    for i in range(2):
        pair(
            tmp_path / f"images/stra\u00dfe u\u0308{i}.jpg",
            tmp_path / f"masks/stra\u00dfe \u00fc{i}.png",
        )
    assert len(find(tmp_path).train) == 1


@pytest.mark.parametrize("wrong", ["valid/{}", "{}/valid", "{}/val", "val/{}", "Val/{}"])
def test_part_folders_with_other_names_are_refused(tmp_path, wrong):
    plain = "{}" if wrong.startswith("{}") or wrong == "val/{}" else "train/{}"
    for place, i in ((plain, 1), (plain, 2), (wrong, 3)):
        image, mask = place.format("images"), place.format("masks")
        pair(tmp_path / f"{image}/{i}.jpg", tmp_path / f"{mask}/{i}.png")
    with pytest.raises(InputError, match="is not read; .* called train, val and test"):
        find(tmp_path)


@pytest.mark.parametrize("name", ["validation.txt", "Train.txt"])
def test_lists_with_other_names_are_refused(tmp_path, name):
    for i in range(3):
        pair(tmp_path / f"images/{i}.jpg", tmp_path / f"masks/{i}.png")
    (tmp_path / name).write_text("1\n")
    with pytest.raises(InputError, match=f"{name}: is not read"):
        find(tmp_path)


def test_every_file_without_a_partner_is_named_or_counted(tmp_path):
    for name in "abcdefg":
        pair(tmp_path / f"images/{name}.jpg", tmp_path / f"masks/{name}.png")
    for name in "bcdef":
        (tmp_path / f"masks/{name}.png").unlink()
    (tmp_path / "images/g.jpg").unlink()
    says = "images/b.jpg: there is no mask named b in .*/masks; also without a partner: c.jpg, "
    with pytest.raises(InputError, match=f"{says}d.jpg, e.jpg and 2 more; if the names") as error:
        find(tmp_path)
    assert "wildcards" not in str(error.value)  # no pattern was given


def test_a_folder_without_pictures_is_named(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(InputError, match="/images: holds no pictures; the extensions are .bmp"):
        find(tmp_path)


# ---- patterns ----


KEYS = st.tuples(
    st.sampled_from(["", "a/", "a/b/", "_x/"]), st.sampled_from(["1", "2", "3_cam", "_", "x.y"])
)


@given(st.lists(KEYS, min_size=2, max_size=8, unique=True))
def test_masks_are_matched_by_the_text_of_the_wildcards(tmp_path_factory, keys):
    root = tmp_path_factory.mktemp("patterns")
    for folder, name in keys:
        pair(root / f"photos/{folder}{name}_cam.png", root / f"labels/{folder}m-{name}.png")
    found = by_pattern(root, "photos/**/*_cam.png", "labels/**/m-*.png")
    assert sorted(names(found.train + found.val, root)) == sorted(
        (f"photos/{folder}{name}_cam.png", f"labels/{folder}m-{name}.png") for folder, name in keys
    )


def test_wildcards_are_compared_one_by_one(tmp_path):
    """Joined, the wildcards of cam1/frame12 and cam11/frame2 give the same text."""
    pair(tmp_path / "cam1/frame12.jpg", tmp_path / "gt1/mask12.png")
    pair(tmp_path / "cam11/frame2.jpg", tmp_path / "gt11/mask2.png")
    found = by_pattern(tmp_path, "cam*/frame*.jpg", "gt*/mask*.png")
    assert sorted(names(found.train + found.val, tmp_path)) == [
        ("cam1/frame12.jpg", "gt1/mask12.png"),
        ("cam11/frame2.jpg", "gt11/mask2.png"),
    ]
    (tmp_path / "gt1/mask12.png").unlink()
    (tmp_path / "cam11/frame2.jpg").unlink()
    with pytest.raises(InputError, match="frame12.jpg: there is no mask"):
        by_pattern(tmp_path, "cam*/frame*.jpg", "gt*/mask*.png")


def test_masks_next_to_their_pictures_are_not_pictures(tmp_path):
    for i in range(3):
        pair(tmp_path / f"all/{i}.png", tmp_path / f"all/{i}_mask.png")
    found = by_pattern(tmp_path, "all/*.png", "all/*_mask.png")
    pairs = [(f"all/{i}.png", f"all/{i}_mask.png") for i in range(3)]
    assert sorted(names(found.train + found.val, tmp_path)) == pairs


def test_a_list_does_not_take_an_image_of_another_folder(tmp_path):
    for name in ("front/0000", "front/0001", "rear/0005"):
        pair(tmp_path / f"images/{name}.jpg", tmp_path / f"masks/{name}.png")
    (tmp_path / "val.txt").write_text("rear/0001\n")
    with pytest.raises(InputError, match="names 'rear/0001'"):
        find(tmp_path)


@pytest.mark.parametrize(
    "images, masks, says",
    [
        ("/photos/*.jpg", "labels/*", "/photos/.*: give a pattern of paths below"),
        ("photos/../../x/*.jpg", "labels/*", "photos/../../x/.*: give a pattern of paths below"),
        ("photos/**/*.jpg", "labels/*.png", "1.jpg: there is no mask named 1 in .*must match"),
        ("photos/[12].jpg", "labels/*", "12.*: no picture matches; the wildcards are"),
        (
            "photos/*.jpg",
            "{a,labels}/*",
            "no mask .*; the wildcards are \\*, \\?, \\*\\*/ and {split}",
        ),
    ],
)
def test_a_pattern_error_says_why_nothing_matches(tmp_path, images, masks, says):
    pair(tmp_path / "photos/1.jpg", tmp_path / "labels/1.png")
    with pytest.raises(InputError, match=says) as error:
        by_pattern(tmp_path, images, masks)
    assert "\n" not in str(error.value)


def test_parts_that_patterns_would_leave_out_are_refused(tmp_path):
    pair(tmp_path / "cam/train/1.jpg", tmp_path / "gt/train/1.png")
    pair(tmp_path / "cam/valid/2.jpg", tmp_path / "gt/valid/2.png")
    with pytest.raises(InputError, match="cam/valid/2.jpg: is not read; .*train, val and test"):
        by_pattern(tmp_path, "cam/{split}/*.jpg", "gt/{split}/*.png")


def test_a_pattern_that_mixes_training_and_validation_is_refused(tmp_path):
    for part in ("train", "val"):
        pair(tmp_path / f"photos/{part}/1.jpg", tmp_path / f"labels/{part}/1.png")
    with pytest.raises(InputError, match="mixes the folders train and val; write {split}"):
        by_pattern(tmp_path, "photos/**/*.jpg", "labels/**/*.png")
    assert len(by_pattern(tmp_path, "photos/{split}/*.jpg", "labels/{split}/*.png").val) == 1


# ---- Cityscapes ----


def cityscapes(root, kind, ids):
    towns = ("train", "aachen"), ("train", "bonn"), ("train", "bonn"), ("val", "ulm"), ("test", "a")
    for i, (part, town) in enumerate(towns):
        stem = f"{part}/{town}/{town}_00000{i}_000019"
        picture(root / f"leftImg8bit/{stem}_leftImg8bit.png", np.full((4, 6, 3), 90))
        picture(root / f"gtFine/{stem}_gtFine_{kind}.png", np.resize(ids, (4, 6)))
        picture(root / f"gtFine/{stem}_gtFine_color.png", np.zeros((4, 6, 3)))
    return root


@pytest.mark.parametrize(
    "kind, ids",
    [("labelIds", [7, 8, 11, 33, 0, 9]), ("labelTrainIds", [0, 1, 2, 18, IGNORE, IGNORE])],
)
def test_both_kinds_of_cityscapes_masks_give_the_same_labels(tmp_path, kind, ids):
    """Ids 7, 8, 11 and 33 are road, sidewalk, building and bicycle; 0 to 6 and 9 are not scored."""
    found = find(cityscapes(tmp_path, kind, ids))
    assert (len(found.train), len(found.val), len(found.test)) == (3, 1, 0)
    assert [found.classes[i] for i in (0, 18)] == ["road", "bicycle"] and len(found.classes) == 19
    assert found.read_label(found.val[0].label)[0].tolist() == [0, 1, 2, 18, IGNORE, IGNORE]
    assert found.val[0].image.name == "ulm_000003_000019_leftImg8bit.png"


def test_cityscapes_without_masks_is_refused(tmp_path):
    with pytest.raises(InputError, match="gtFine/train: holds no masks named ") as error:
        find(cityscapes(tmp_path, "labellevel3Ids", [0, 1]))
    images, masks = re.findall("'(.*?)'", str(error.value))  # the suggested options
    masks = masks.replace("NAME", "labellevel3Ids")
    assert len(by_pattern(tmp_path, images, masks).val) == 1


# ---- lists ----


@pytest.mark.parametrize(
    "spelling",
    [
        "C:\\data\\images\\{}.jpg",
        "/home/bob/set/images/x/{}.jpg",
        "./x/{}.jpg",
        "images/x/{}.jpg",
        "x/{}",
        "{}.png",
        "{}",
    ],
)
def test_lists_take_any_path_style_and_the_rest_needs_no_mask(tmp_path, spelling):
    for i in range(6):
        pair(tmp_path / f"images/x/{i}.jpg", tmp_path / f"masks/x/{i}.png")
    (tmp_path / "masks/x/5.png").unlink()
    for part, members in (("train", "021"), ("val", "3"), ("test", "4")):
        lines = [spelling.format(i) for i in members]
        text = "\ufeff" + "\r\n".join([*lines, lines[0], "", ""])
        (tmp_path / f"{part}.txt").write_text(text, encoding="utf-8")
    found = find(tmp_path)
    for part, members in ((found.train, "012"), (found.val, "3"), (found.test, "4")):
        pairs = [(f"images/x/{i}.jpg", f"masks/x/{i}.png") for i in members]
        assert names(part, tmp_path) == pairs
    assert ", as train.txt, val.txt, test.txt list them (1 picture in no list)" in found.summary


@pytest.mark.parametrize(
    "name, image", [("1.jpg", "1"), ("x\\1.jpg", "x/1"), ("y/1", "y/1"), ("a.b", "a.b")]
)
def test_a_listed_path_wins_over_equal_names_elsewhere(tmp_path, name, image):
    for path in ("1", "x/1", "y/1", "a.b"):
        pair(tmp_path / f"images/{path}.jpg", tmp_path / f"masks/{path}.png")
    (tmp_path / "val.txt").write_text(name)
    assert names(find(tmp_path).val, tmp_path) == [(f"images/{image}.jpg", f"masks/{image}.png")]


@pytest.mark.parametrize("name", ["rear", "images/rear/", "./rear", "rear\\"])
def test_a_listed_folder_stands_for_all_images_below_it(tmp_path, name):
    for path in ("front/1", "front/2", "rear/1", "rear/x/3"):
        pair(tmp_path / f"images/{path}.jpg", tmp_path / f"masks/{path}.png")
    (tmp_path / "val.txt").write_text(name)
    held_out = [image for image, _ in names(find(tmp_path).val, tmp_path)]
    assert held_out == ["images/rear/1.jpg", "images/rear/x/3.jpg"]


LISTED = [p for n in (1, 2) for p in itertools.combinations(("train", "val", "test"), n)]


@pytest.mark.parametrize("parts", LISTED)
def test_a_part_that_is_not_listed_comes_from_the_rest(tmp_path, parts):
    for i in range(10):
        pair(tmp_path / f"images/{i}.png", tmp_path / f"masks/{i}.png")
    for n, part in enumerate(parts):
        (tmp_path / f"{part}.txt").write_text("\n".join(str(3 * n + i) for i in range(3)))
    found = find(tmp_path)
    sets = {"train": set(found.train), "val": set(found.val), "test": set(found.test)}
    together = set.union(*sets.values())
    assert sets["train"] and sets["val"] and sum(map(len, sets.values())) == len(together)
    for part in parts:
        assert len(sets[part]) == 3 or part == "train" and "val" not in parts
    assert "train" in parts or len(together) == 10


@pytest.mark.parametrize(
    "file, text, says",
    [
        ("train.txt", "1\n9\n", "train.txt: names '9', which must match exactly one image"),
        ("train.txt", "1.5\n", "train.txt: names '1.5', which must match exactly one image"),
        ("train.txt", "7\n", "train.txt: names '7', which must match exactly one image"),
        ("val.txt", "\xff", "val.txt: cannot be read as a list of images"),
        ("val.txt", "3\n1\n", "1.png: is listed for training and for validation"),
        ("test.txt", "3\n", "3.png: is listed for validation and for test"),
        ("train.txt", "5\n", "5.png: there is no mask named 5"),
        ("val.txt", "\n", "val.txt: names no images"),
    ],
)
def test_an_unusable_list_is_refused_by_name(tmp_path, file, text, says):
    for name in ("0", "1", "2", "3", "5", "x/7", "y/7"):
        pair(tmp_path / f"images/{name}.png", tmp_path / f"masks/{name}.png")
    (tmp_path / "masks/5.png").unlink()
    (tmp_path / "train.txt").write_text("0\n1\n2\n")
    (tmp_path / "val.txt").write_text("3\n")
    (tmp_path / file).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=says) as error:
        find(tmp_path)
    assert "\n" not in str(error.value)


def test_lists_that_leave_no_training_images_are_refused(tmp_path):
    for i in range(3):
        pair(tmp_path / f"images/{i}.png", tmp_path / f"masks/{i}.png")
    (tmp_path / "val.txt").write_text("0\n1\n2\n")
    with pytest.raises(InputError, match="no image is left for the training set"):
        find(tmp_path)
