"""predict.py writes whole results for every kind of picture, under unique names and at the size of
the picture.
"""

import csv
import errno
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import lively, needs_int8, picture, png, randomise_scores, saved, small
from PIL import Image

import predict
from data import DataOptions, find
from fcn import FCN8s
from support.checkpoint import read_checkpoint, write_checkpoint
from support.console import InputError
from support.datasets import synthetic
from support.datasets.images import read_mask, read_picture
from support.inference.outputs import Job, picture_jobs, require_results, result_path
from support.inference.predictor import TTA, Predictor
from support.labels import IGNORE
from vgg import normalise

MANY = [f"class {i}" for i in range(10)] + ["road"]


def checkpoint(path, classes, **more):
    """A checkpoint of a network with random weights that predicts all its classes; `more` are the
    entries that train.py adds.
    """
    net = randomise_scores(small(len(classes), fc_channels=8))
    noise = normalise(torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8))
    with torch.no_grad():
        net.score_fr.bias -= net(noise).mean((0, 2, 3))  # no class wins everywhere
    net.classes = list(classes)
    write_checkpoint({**net.to_checkpoint(), **more}, path)
    return path


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    torch.manual_seed(0)
    return checkpoint(tmp_path_factory.mktemp("net") / "best.pt", ["not road", "road"])


@pytest.fixture(scope="module")
def streets(tmp_path_factory):
    torch.manual_seed(0)
    return checkpoint(tmp_path_factory.mktemp("net") / "best.pt", MANY)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict") / "scenes"
    synthetic.write(folder, train=12, test=6, height=48, width=160)
    return folder


def photo(path, size=(50, 40), mode="RGB", **save):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).convert(mode).save(path, **save)
    return path


def own_data(root, labels, classes=MANY):
    """A data set of {path below images and masks, without extension: label}."""
    for name, label in labels.items():
        photo(root / f"images/{name}.png")
        picture(root / f"masks/{name}.png", label)
    (root / "classes.txt").write_text("\n".join(classes))
    return root


def run(*arguments):
    return predict.main([*map(str, arguments), "--device", "cpu", "--amp", "off"])


def files(folder):
    return {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}


def contents(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


# ---- what is written ----


def test_mask_and_confidence_match_the_network(streets, tmp_path):
    file, out = photo(tmp_path / "a.png"), tmp_path / "out"
    assert run(streets, file, "--out", out, "--confidence", "road") == 0
    assert files(out) == {"overlay/a.png", "mask/a.png", "confidence/a.png"}
    wanted = Predictor(FCN8s.load(streets))(
        read_picture(file).pixels, confidences_of=[MANY.index("road")]
    )
    labels = read_mask(out / "mask/a.png")
    assert np.array_equal(labels, wanted.labels) and len(np.unique(labels)) > 1
    assert np.array_equal(pixels(out / "confidence/a.png"), wanted.confidences[0])


@pytest.mark.parametrize(
    "options, how",
    [
        (["--tta", "flip"], {"tta": TTA((1.0,), True)}),
        (["--tta", "flip,0.8", "--resize", "2"], {"tta": TTA((0.8,), True), "resize": 2}),
    ],
)
def test_sizes_and_tta_match_those_of_the_predictor(road, tmp_path, options, how):
    file = photo(tmp_path / "a.png", (101, 75))
    wanted = Predictor(FCN8s.load(road), **how)(read_picture(file).pixels, confidences_of=[1])
    plain = Predictor(FCN8s.load(road))(read_picture(file).pixels, confidences_of=[1])
    assert run(road, file, "--out", tmp_path / "out", "--confidence", "road", *options) == 0
    found = pixels(tmp_path / "out/confidence/a.png")
    assert np.array_equal(found, wanted.confidences[0])
    assert np.abs(found - plain.confidences[0].astype(int)).max() > 2
    assert Image.open(tmp_path / "out/overlay/a.png").size == (101, 75)


def test_tiling_gives_the_same_mask(streets, tmp_path):
    file = photo(tmp_path / "a.png", (2000, 60))
    for name, more in (("whole", ()), ("tiles", ("--tile", "600"))):
        assert run(streets, file, "--out", tmp_path / name, "--only", "mask", *more) == 0
    whole, tiles = (pixels(tmp_path / name / "mask/a.png") for name in ("whole", "tiles"))
    assert (whole != tiles).mean() < 1e-4 and len(np.unique(whole)) > 5


def test_every_kind_of_picture_gets_a_mask_of_its_size(road, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    kinds = {
        "clear palette.png": {"mode": "P", "transparency": 3},
        "print.jpg": {"mode": "CMYK"},
        "pixel.png": {"size": (1, 1)},
        "thin.png": {"size": (20, 2000)},
        "with space, ümlaut.webp": {},
        "no ending": {"format": "PNG"},
        "on its side.jpg": {"exif": turned},
    }
    inputs = [photo(tmp_path / name, **how) for name, how in kinds.items()]
    assert run(road, *inputs, "--out", tmp_path / "out") == 0
    for name, how in kinds.items():
        size = (40, 50) if "exif" in how else how.get("size", (50, 40))
        for folder in ("mask", "overlay"):
            assert Image.open(tmp_path / "out" / folder / f"{Path(name).stem}.png").size == size


def test_any_number_of_workers_writes_the_requested_files(road, tmp_path):
    photo(tmp_path / "in/a.png"), photo(tmp_path / "in/b.png", (60, 30))
    arguments = [road, tmp_path / "in", "--confidence", "road", "--out"]
    assert run(*arguments, tmp_path / "all", "--workers", 0) == 0
    everything = contents(tmp_path / "all")
    for workers, only in ((1, "mask"), (3, "overlay"), (1, "none")):
        out = tmp_path / only
        assert run(*arguments, out, "--only", only, "--workers", workers) == 0
        wanted = {name for name in everything if name.startswith((only, "confidence"))}
        assert contents(out) == {name: everything[name] for name in wanted}


def test_confidence_all_writes_one_folder_per_class(tmp_path):
    for classes, folders in (
        (["cat", "dog/wolf", "fish"], ["cat", "dog_wolf", "fish"]),
        (["cat", "dog/wolf", "Cat"], ["0 cat", "1 dog_wolf", "2 Cat"]),
    ):
        path, out = checkpoint(tmp_path / "best.pt", classes), tmp_path / "".join(classes[2])
        file = photo(tmp_path / "a.png")
        wanted = Predictor(FCN8s.load(path))(read_picture(file).pixels, confidences_of=[0, 1, 2])
        assert run(path, file, "--out", out, "--confidence", "all") == 0
        for folder, confidence in zip(folders, wanted.confidences, strict=True):
            assert np.array_equal(pixels(out / "confidence" / folder / "a.png"), confidence)


@pytest.mark.parametrize("threshold", [0, 0.25, 0.5, 1])
def test_road_is_each_pixel_at_or_above_the_threshold(road, tmp_path, threshold):
    more = ["--confidence", "all", "--threshold", threshold]
    assert run(road, photo(tmp_path / "a.png"), "--out", tmp_path / "out", *more) == 0
    confidence = pixels(tmp_path / "out/confidence/a.png")
    assert np.array_equal(pixels(tmp_path / "out/mask/a.png"), confidence >= round(255 * threshold))


@needs_int8
def test_int8_calibrates_on_the_pictures_and_says_so(tmp_path, capsys):
    path = saved(tmp_path / "net.pt", lively(1, 8), ["not road", "road"])
    for i in range(20):
        photo(tmp_path / f"in/{i}.png", (90, 60))
    confidences = []
    for amp in ("off", "int8"):
        more = ["--confidence", "road", "--device", "cpu", "--amp", amp, "--out", tmp_path / amp]
        assert predict.main([*map(str, [path, tmp_path / "in", *more])]) == 0
        confidences.append(pixels(tmp_path / amp / "confidence/0.png"))
    assert "int8: calibrating on 7 pictures first" in capsys.readouterr().out
    assert 0 < np.abs(confidences[0] - confidences[1]).mean() < 10


# ---- which pictures, and under which names ----


@pytest.mark.parametrize(
    "pictures, inputs, results",
    [
        (["x/deep/1.png", "y/er/4.jpg"], ["x/deep", "y"], {"1.png", "er/4.png"}),
        (["a.png"], ["a.png", ".", "a.png"], {"a.png"}),
        (["x/a.png", "y/a.png"], ["."], {"x/a.png", "y/a.png"}),
        (["x/a.png", "y/a.png"], ["x", "y"], {"x/a.png", "y/a.png"}),
        (["a.png", "a.jpg", "b.png"], ["."], {"a.png.png", "a.jpg.png", "b.png.png"}),
        (["a.png", "A.jpg"], ["."], {"a.png.png", "A.jpg.png"}),
        # Masks next to their images are not predicted.
        (["images/x/a.png", "masks/x/a.png"], ["."], {"images/x/a.png"}),
        (["leftImg8bit/val/a.png", "gtFine/val/a.png"], ["."], {"leftImg8bit/val/a.png"}),
        (["image_2/a.png", "gt_image_2/a.png"], ["."], {"image_2/a.png"}),
        (["masks/b.png"], ["."], {"masks/b.png"}),
        # In KITTI Road, only the test images are predicted.
        (["training/image_2/a.png", "testing/image_2/b.png"], ["."], {"testing/image_2/b.png"}),
    ],
)
def test_each_picture_gets_a_result_with_a_unique_name(tmp_path, pictures, inputs, results):
    for name in pictures:
        photo(tmp_path / name)
    jobs = picture_jobs([tmp_path / name for name in inputs])
    assert sorted(result_path(Path(), "", job).as_posix() for job in jobs) == sorted(results)


def test_results_of_an_earlier_run_are_never_predicted(road, tmp_path):
    photo(tmp_path / "in/a.png")
    for out in ("in/out", "in/out", "in", "elsewhere"):
        assert run(road, tmp_path / "in", "--out", tmp_path / out) == 0
        assert files(tmp_path / out / "overlay") == files(tmp_path / out / "mask") == {"a.png"}
    photo(tmp_path / "in/mask/b.png")  # predicted, whatever its folder is called
    assert len(picture_jobs([tmp_path / "in"])) == 2


def test_a_file_that_is_not_a_result_is_never_overwritten(road, tmp_path, capsys):
    a_picture, out = photo(tmp_path / "in/a.png").read_bytes(), tmp_path / "out"
    arguments = [road, tmp_path / "in", "--out", out, "--confidence", "road"]
    assert run(*arguments) == 0 and run(*arguments) == 0
    results, too_large = contents(out), png(30_000, 30_000, 8, 0, b"")
    for folder, mine in (("mask", a_picture), ("overlay", b"text"), ("confidence", too_large)):
        (out / folder / "a.png").write_bytes(mine)
        assert run(*arguments) == 2
        said = f"{out / folder / 'a.png'}: is not a result of predict.py"
        assert said in capsys.readouterr().err
        assert contents(out) == {**results, f"{folder}/a.png": mine}
        (out / folder / "a.png").write_bytes(results[f"{folder}/a.png"])


def test_a_result_is_written_whole_or_not_at_all(road, tmp_path, monkeypatch, capsys):
    arguments = [road, photo(tmp_path / "a.png"), "--out", tmp_path / "out"]
    assert run(*arguments) == 0
    before = contents(tmp_path / "out")

    def full(picture, file, *more, **options):
        file.write(b"half a picture")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert run(*arguments) == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before


# ---- pictures that cannot be predicted ----


def test_broken_pictures_are_named_and_the_others_predicted(road, tmp_path, capsys):
    for name in "abcde":
        photo(tmp_path / f"in/{name}.png")
    (tmp_path / "in/b.png").write_bytes(b"")
    (tmp_path / "in/d.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:200])
    assert run(road, tmp_path / "in", "--out", tmp_path / "out") == 1
    said = capsys.readouterr()
    assert "3 of 5 pictures done" in said.out
    for name, line in zip(("b.png", "d.png"), said.err.splitlines(), strict=True):
        assert name in line
    assert files(tmp_path / "out/mask") == {"a.png", "c.png", "e.png"}


def test_too_large_pictures_are_named_and_the_others_predicted(road, tmp_path, capsys):
    photo(tmp_path / "in/large.png"), photo(tmp_path / "in/small.png", (1, 1))
    more = ["--resize", "400", "--only", "mask", "--out", tmp_path / "out"]
    assert run(road, tmp_path / "in", *more) == 1
    assert "large.png: would be computed at 16000x20000" in capsys.readouterr().err
    assert files(tmp_path / "out/mask") == {"small.png"}


def test_out_of_memory_on_one_picture_does_not_stop_the_others(road, tmp_path, monkeypatch, capsys):
    forward = FCN8s.forward

    def small_memory(net, images):
        if images.shape[2] > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        return forward(net, images)

    monkeypatch.setattr(FCN8s, "forward", small_memory)
    for name, height in (("a", 40), ("b", 101), ("c", 40)):
        photo(tmp_path / f"in/{name}.png", (50, height))
    assert run(road, tmp_path / "in", "--out", tmp_path / "out") == 1
    assert "b.png: out of memory; shrink it, or try a smaller --tile" in capsys.readouterr().err
    assert files(tmp_path / "out/mask") == {"a.png", "c.png"}


def test_skipped_files_and_frames_are_reported(road, tmp_path, capsys):
    for name in ("in/a.mp4", "in/b.HEIC", "only/a.MOV"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(99))
    assert run(road, tmp_path / "only", "--out", tmp_path / "out") == 2
    assert "holds no pictures" in (error := capsys.readouterr().err) and "but 1 .mov" in error
    frames = [Image.new("RGB", (20, 16), (i, 90, 90)) for i in (0, 100, 200)]
    frames[0].save(tmp_path / "in/c.gif", save_all=True, append_images=frames[1:])
    assert run(road, tmp_path / "in", "--out", tmp_path / "out") == 0
    error = capsys.readouterr().err
    assert "not predicted: 1 .heic, 1 .mp4" in error and "c.gif: has 3 frames" in error
    assert files(tmp_path / "out/mask") == {"c.png"}


@pytest.mark.parametrize(
    "size, more, warned",
    [
        ((37, 124), [], ""),
        ((260, 6), [], ""),
        (
            (270, 6),
            [],
            "6x270; the longer side of the training images had 48 to 130 pixels. --resize fit",
        ),
        ((20, 10), [], "10x20; the longer side"),
        ((20, 10), ["--resize", "4"], ""),
        ((60, 10), ["--tta", "1,0.3"], "3x18 (0.3 times its size); the longer side"),
    ],
)
def test_sizes_far_from_those_of_training_bring_a_warning(tmp_path, capsys, size, more, warned):
    sizes = {"smallest": (36, 48), "median": (37, 124), "largest": (37, 130)}
    path = checkpoint(tmp_path / "best.pt", ["not road", "road"], sizes=sizes)
    for name in ("a", "b", "c"):
        photo(tmp_path / f"in/{name}.png", size)
    assert run(path, tmp_path / "in", "--out", tmp_path / "out", *more) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == (2 if warned else 0)
    if warned:
        assert "a.png: is computed at" in lines[0] and warned in lines[0]
        assert "also far from the training sizes: b.png, c.png" in lines[1]


def test_resize_fit_uses_the_median_size_of_training(tmp_path, capsys):
    sizes = {"smallest": (30, 40), "median": (48, 60), "largest": (60, 80)}
    path = checkpoint(tmp_path / "best.pt", ["not road", "road"], sizes=sizes)
    content = read_checkpoint(path)
    write_checkpoint({**content, "resize_factor": 1.5}, path)
    photo(tmp_path / "in/wide.png", (360, 180)), photo(tmp_path / "in/tall.png", (20, 30))
    more = ["--resize", "fit", "--confidence", "road", "--out", tmp_path / "out"]
    assert run(path, tmp_path / "in", *more) == 0
    assert not capsys.readouterr().err
    for name, factor in (("wide", 90 / 360), ("tall", 90 / 30)):
        image = read_picture(tmp_path / f"in/{name}.png").pixels
        wanted = Predictor(FCN8s.load(path), resize=factor)(image, confidences_of=[1])
        found = pixels(tmp_path / f"out/confidence/{name}.png")
        assert np.array_equal(found, wanted.confidences[0])
    path = checkpoint(tmp_path / "best.pt", ["not road", "road"])
    assert run(path, tmp_path / "in", *more) == 2
    assert "does not hold the training sizes" in capsys.readouterr().err


def test_an_fp16_overflow_gives_no_result(road, tmp_path, capsys):
    content = read_checkpoint(road)
    for layer in ("conv1_1", "conv2_1", "conv3_1"):
        content["model"][f"vgg.{layer}.weight"] *= 1e3
    path = tmp_path / "large.pt"
    write_checkpoint(content, path)
    arguments = [path, photo(tmp_path / "a.png"), "--out", tmp_path / "out", "--device", "cpu"]
    for more in ([], ["--tta", "flip"]):
        assert predict.main([*map(str, arguments), "--amp", "fp16", *more]) == 1
        assert "a.png: the network's scores are not finite" in capsys.readouterr().err
    assert not files(tmp_path / "out") and run(*arguments) == 0


# ---- data sets and scores ----


def test_own_masks_are_scored_with_the_worst_picture_first(streets, tmp_path, capsys):
    rng, labels = np.random.default_rng(0), {}
    for i in range(5):
        labels[i] = rng.integers(0, 11, (40, 50))
        labels[i][:, : 9 * i] = IGNORE
    root = own_data(tmp_path / "d", labels)
    more = ["--split", "train", "--only", "mask", "--scores", tmp_path / "s.csv"]
    assert run(streets, "--data", root, "--out", tmp_path / "out", *more) == 0
    out = capsys.readouterr().out
    assert "mean IoU" in out and "IoU road" in out and "URBAN" not in out
    with open(tmp_path / "s.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    ious = [float(row["iou"]) for row in rows]
    assert len(rows) == 4 and ious == sorted(ious)
    for row in rows:
        name = row["picture"].rpartition("/")[2]
        truth, found = read_mask(root / "masks" / name), read_mask(tmp_path / "out/mask" / name)
        both = ((truth == 10) & (found == 10)).sum()
        either = (((truth == 10) | (found == 10)) & (truth != IGNORE)).sum()
        assert int(row["pixels_road"]) == (truth == 10).sum()
        assert float(row["iou_road"]) == pytest.approx(both / either)


def test_a_data_set_is_read_with_the_options_of_training(scenes, tmp_path, capsys):
    said = []
    for seed in (0, 3):
        settings = {"task": "road", "split_seed": seed, "epochs": 7}
        path = checkpoint(tmp_path / "best.pt", ["not road", "road"], settings=settings)
        out = tmp_path / f"out {seed}"
        assert run(path, "--data", scenes, "--out", out, "--only", "mask") == 0
        held_out = find(scenes, DataOptions(split_seed=seed)).val
        assert files(out / "mask") == {f"{sample.label.stem}.png" for sample in held_out}
        said.append(capsys.readouterr().out)
    assert all("URBAN     image" in text and "URBAN     bird's eye" in text for text in said)
    assert ["as in training: --split-seed 3\n" in text for text in said] == [False, True]
    assert files(tmp_path / "out 0") != files(tmp_path / "out 3")


def test_options_override_the_layout_of_the_training_data(tmp_path, capsys):
    own_data(tmp_path / "d", {i: np.zeros((40, 50)) for i in range(5)})
    settings = {"images": "photos/*", "masks": "masks/*"}
    path = checkpoint(tmp_path / "best.pt", MANY, settings=settings)
    more = ["--data", tmp_path / "d", "--out", tmp_path / "out", "--only", "mask"]
    assert run(path, *more) == 2
    assert "as in training: --images 'photos/*' --masks 'masks/*'" in capsys.readouterr().out
    assert run(path, *more, "--images", "images/*", "--masks", "masks/*") == 0
    assert run(path, *more, "--images", "auto", "--masks", "auto") == 0
    assert len(files(tmp_path / "out/mask")) == 1


def test_no_result_is_written_outside_its_folder(tmp_path):
    job = Job(tmp_path / "a.png", Path("../../x/a"))  # as from a list of a data set
    with pytest.raises(InputError, match="would lie outside"):
        require_results(tmp_path / "out", ["mask"], [job])


def test_the_maxf_threshold_gives_the_printed_precision_and_recall(road, scenes, tmp_path, capsys):
    arguments = [road, "--data", scenes, "--split", "train", "--only", "mask", "--out"]
    assert run(*arguments, tmp_path / "a") == 0
    lines = capsys.readouterr().out.splitlines()
    cells = next(line for line in lines if line.startswith("URBAN     image")).split()
    assert run(*arguments, tmp_path / "b", "--threshold", cells[-1]) == 0
    data, hits, positives, called = find(scenes), 0, 0, 0
    for sample in data.train:
        truth = data.read_label(sample.label)
        found = read_mask(tmp_path / "b/mask" / f"{sample.label.stem}.png")
        hits += ((truth == 1) & (found == 1)).sum()
        positives += (truth == 1).sum()
        called += ((found == 1) & (truth != IGNORE)).sum()
    assert 100 * hits / called == pytest.approx(float(cells[5]), abs=0.006)
    assert 100 * hits / positives == pytest.approx(float(cells[6]), abs=0.006)


def test_scoring_training_images_brings_a_warning(tmp_path, capsys):
    root = own_data(tmp_path / "d", {i: np.eye(40, 50) for i in range(4)}, ["a", "b"])
    (root / "val.txt").write_text("0\n1\n")
    images = [["images/1.png", "images/2.png", "others/0.png"], ["images/0.png"]]
    path = checkpoint(tmp_path / "best.pt", ["a", "b"], images=images)
    for split, warned in (("val", True), ("train", False)):
        assert run(path, "--data", root, "--out", tmp_path / "out", "--split", split) == 0
        error = capsys.readouterr().err
        assert error.count("\n") == warned
        assert ("trained on 1 of these 2 images, such as images/1.png" in error) == warned


def test_equal_names_in_a_data_set_get_one_mask_each(streets, tmp_path):
    labels = dict.fromkeys(["x/1", "y/1", "y/2"], np.zeros((40, 50)))
    root = own_data(tmp_path / "d", labels)
    (root / "val.txt").write_text("x/1\ny/1\n")
    assert run(streets, "--data", root, "--out", tmp_path / "out") == 0
    assert files(tmp_path / "out/mask") == {"images/x/1.png", "images/y/1.png"}


def test_test_images_are_scored_on_request(streets, tmp_path, capsys):
    for i in range(6):
        own_data(tmp_path / "d" / ("test" if i > 3 else "train"), {i: np.full((40, 50), i)})
    (tmp_path / "d/classes.txt").write_text("\n".join(MANY))
    arguments = [streets, "--data", tmp_path / "d", "--split", "test", "--out", tmp_path / "out"]
    assert run(*arguments) == 0
    assert "mean IoU" in capsys.readouterr().out
    assert files(tmp_path / "out/mask") == {"4.png", "5.png"}
    shutil.rmtree(tmp_path / "d/test/masks")  # images without masks are allowed there
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert "--split test: has no images with ground truth" in error
    assert "(2 test pictures without masks left out)" in error


def test_a_data_set_of_other_classes_is_refused(streets, tmp_path, capsys):
    root = own_data(tmp_path / "d", {i: np.full((40, 50), i) for i in range(3)}, ["a", "b", "c"])
    assert run(streets, "--data", root, "--out", tmp_path / "out") == 2
    assert "a, b, c" in (error := capsys.readouterr().err) and "class 9, road" in error


def test_a_broken_image_of_a_data_set_leaves_no_scores(road, scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "k")
    find(tmp_path / "k").val[0].image.write_bytes(b"")
    more = ["--out", tmp_path / "out", "--scores", tmp_path / "s.csv"]
    assert run(road, "--data", tmp_path / "k", *more) == 1
    said = capsys.readouterr()
    assert "so there are no scores" in said.err and "IoU" not in said.out
    assert not (tmp_path / "s.csv").exists()


# ---- KITTI Road's submission ----


@pytest.mark.parametrize(
    "classes, categories",
    [
        (["sky", "road", "car"], ["um_road", "umm_road", "uu_road"]),
        (["not lane", "lane"], ["um_lane"]),
    ],
)
def test_the_submission_has_the_names_and_sizes_of_the_benchmark(
    scenes, tmp_path, classes, categories
):
    path = checkpoint(tmp_path / "best.pt", classes)
    assert run(path, "--kitti", scenes, "--out", tmp_path) == 0
    with zipfile.ZipFile(tmp_path / "submission.zip") as archive:
        names = [f"{category}_00000{i}.png" for category in categories for i in (0, 1)]
        assert sorted(archive.namelist()) == names
        for name in names:
            with archive.open(name) as file, Image.open(file) as above:
                assert above.size == (400, 800) and above.mode == "L"
                assert np.asarray(above).max() > 0


def test_a_missing_calibration_is_named_before_any_prediction(road, scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "k")
    (tmp_path / "k/testing/calib/uu_000001.txt").unlink()
    assert run(road, "--kitti", tmp_path / "k", "--out", tmp_path / "out") == 2
    assert "uu_000001.txt" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_broken_test_image_keeps_the_previous_submission(road, scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "k")
    arguments = [road, "--kitti", tmp_path / "k", "--out", tmp_path / "out"]
    archive = tmp_path / "out/submission.zip"
    assert run(*arguments) == 0 and run(*arguments) == 0
    whole = archive.read_bytes()
    (tmp_path / "k/testing/image_2/uu_000001.png").write_bytes(b"")
    capsys.readouterr()
    assert run(*arguments) == 1
    said = capsys.readouterr()
    assert "uu_000001.png" in said.err
    assert f"{archive} is not written; the one there is from an earlier run" in said.err
    assert archive.read_bytes() == whole and "to upload" not in said.out


def test_a_foreign_zip_file_is_never_overwritten(road, scenes, tmp_path, capsys):
    archive = tmp_path / "submission.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("um_road_000000.png", b"mine")
    for content in (archive.read_bytes(), b"no zip"):
        archive.write_bytes(content)
        assert run(road, "--kitti", scenes, "--out", tmp_path) == 2
        assert f"{archive}: is not a submission" in capsys.readouterr().err
        assert files(tmp_path) == {"submission.zip"} and archive.read_bytes() == content


def test_kitti_py_scores_the_maps_of_training_images(road, scenes, tmp_path, command):
    assert run(road, "--kitti", scenes, "--split", "train", "--out", tmp_path) == 0
    assert not (tmp_path / "submission.zip").exists()
    for folder in ("confidence", "bev"):
        status, out, _ = command("kitti.py", tmp_path / folder, scenes / "training")
        assert status == 0 and "URBAN" in out


# ---- command lines ----


def test_options_may_come_in_any_order():
    found = [
        predict.parse(words.split())
        for words in (
            "--only mask best.pt a.png --out x",
            "--out x best.pt a.png --only mask",
            "best.pt --only mask --out x a.png",
        )
    ]
    assert found[0] == found[1] == found[2]
    assert (found[0].inputs, found[0].only, found[0].out) == ([Path("a.png")], "mask", Path("x"))


@pytest.mark.parametrize(
    "arguments, said",
    [
        ("", "say what to predict"),
        ("a.png --data x", "say what to predict"),
        ("none.png", "no such file"),
        ("a.png --tile 543", "--tile"),
        ("--kitti .", "no picture is named"),
        ("--kitti x --confidence road", "leave it out"),
        ("a.png --out file", "cannot be created"),
        ("a.png --split val", "--split: needs --data or --kitti"),
        ("--kitti x --split val", "--kitti has only train and test"),
        ("a.png --tta 1,flop", "'flop' is not a positive number, nor flip"),
        ("a.png --images x/*", "--images: needs --data"),
        ("--data x --scores a.png", "must end in .csv"),
        ("a.png --confidence sky", "the classes are 'not road', 'road'"),
    ],
)
def test_a_mistake_is_reported_in_one_line_with_status_2(
    road, tmp_path, monkeypatch, command, arguments, said
):
    monkeypatch.chdir(tmp_path)
    photo(tmp_path / "a.png")
    (tmp_path / "file").write_text("")
    status, _, error = command("predict.py", road, *arguments.split())
    assert status == 2 and error.count("\n") == 1 and said in error
    assert error.startswith("predict.py: error: ")


@pytest.mark.parametrize(
    "classes, arguments, said",
    [
        (MANY, ["--threshold", "0.4"], "is for networks that look for one class"),
        (["sky", "car"], ["--kitti", "x"], "needs a class called road or lane"),
        (["not lane", "lane"], ["--tta", "1,flip"], "trained without mirrored views"),
    ],
)
def test_options_that_do_not_suit_the_network_are_refused(
    tmp_path, capsys, classes, arguments, said
):
    path = checkpoint(tmp_path / "best.pt", classes, settings={"flip": "no"})
    inputs = [] if "--kitti" in arguments else [photo(tmp_path / "a.png")]
    assert run(path, *inputs, *arguments) == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_other_sizes_in_tta_need_no_training_with_flips(tmp_path):
    path = checkpoint(tmp_path / "best.pt", ["not lane", "lane"], settings={"flip": "no"})
    assert run(path, photo(tmp_path / "a.png"), "--out", tmp_path, "--tta", "0.5,1") == 0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content["model"].pop("vgg.fc6.weight"),
        lambda content: content["config"].update(colour=3),
    ],
)
def test_weights_that_do_not_fit_the_network_are_refused(road, tmp_path, capsys, spoil):
    content = read_checkpoint(road)
    spoil(content)
    write_checkpoint(content, tmp_path / "bad.pt")
    assert run(tmp_path / "bad.pt", photo(tmp_path / "a.png")) == 2
    assert (error := capsys.readouterr().err).count("\n") == 1 and "bad.pt" in error
