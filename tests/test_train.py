"""Runs of train.py: learning, the files of a run, and options."""

import contextlib
import io
import json
import math
from collections import namedtuple

import numpy as np
import pytest
import torch
from conftest import TINY, log_of, picture, run, same
from PIL import Image

import train
from data import find
from fcn import FCN8s, cross_entropy
from metrics import Scores
from support.checkpoint import read_checkpoint
from support.console import InputError
from support.datasets.images import Reader
from support.draw import draw_curves
from support.inference.predictor import Predictor
from support.labels import IGNORE
from support.training.distributed import Ranks
from support.training.evaluation import Evaluation
from support.training.optimizer import sgd
from support.training.signals import Stop
from vgg import VGG16

Finished = namedtuple("Finished", "out said")


@pytest.fixture(scope="module")
def finished(scenes, tmp_path_factory):
    """A run of four epochs, and its output."""
    out, said = tmp_path_factory.mktemp("runs") / "finished", io.StringIO()
    with contextlib.redirect_stdout(said):
        assert run(scenes, out, "--epochs", 4, "--lr", 0.05) == 0
    return Finished(out, said.getvalue())


@pytest.fixture
def seen():
    """(training, (height, width)) of each batch that reaches VGG16."""
    sizes = []

    def look(module, inputs):
        if isinstance(module, VGG16):
            sizes.append((module.training, tuple(inputs[0].shape[2:])))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    yield sizes
    handle.remove()


def own(root, size=(32, 48), images=5, classes="road\nsky\ncar\n"):
    """Own pictures and masks of three ids; the first is the validation set."""
    rng = np.random.default_rng(0)
    for i in range(images):
        picture(root / f"images/{i}.png", rng.integers(0, 256, (*size, 3)))
        picture(root / f"masks/{i}.png", rng.integers(0, 3, size))
    (root / "classes.txt").write_text(classes)
    (root / "val.txt").write_text("0\n")
    return root


def scored(data, samples, checkpoint):
    """Scores.result of a checkpoint, and the IoU of each image."""
    net, read, scores = FCN8s.load(checkpoint).eval(), Reader(data.read_label), None
    scores = Scores(data.classes, data.road)
    for sample in samples:
        image, truth = read(sample)
        probabilities = [] if data.road is None else [data.road]
        labels, confidences = Predictor(net)(image, probabilities=probabilities).to_host()
        scores.update(sample, labels, truth, *confidences)
    return scores.result(), scores.iou_by_image


# ---- learning ----


def test_the_loss_falls(scenes, tmp_path):
    wide = "--epochs 4 --lr 0.02 --width 0.125 --fc-channels 16"
    assert run(scenes, tmp_path, *wide.split()) == 0
    losses = [row["train_loss"] for row in log_of(tmp_path)]
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize("rate, status", [("10", 0), ("1e+30", 2)])
def test_divergence_is_reported(scenes, tmp_path, capsys, rate, status):
    assert run(scenes, tmp_path, "--epochs", 1, "--lr", rate) == status
    out, error = capsys.readouterr()
    said = error if status else next(x for x in out.splitlines() if x.startswith("warning"))
    assert f"a smaller --lr than {rate}" in said
    assert (tmp_path / "last.pt").exists() == (status == 0)


def test_the_same_seed_gives_the_same_run_for_any_workers(scenes, tmp_path):
    logs, nets = {}, {}
    for seed, workers in ((1, 0), (1, 2), (2, 0)):
        out = tmp_path / f"{seed}-{workers}"
        run(scenes, out, "--epochs", 1, "--seed", seed, "--workers", workers)
        logs[seed, workers] = log_of(out)
        nets[seed, workers] = read_checkpoint(out / "last.pt")["model"]
    assert logs[1, 0] == logs[1, 2] and same(nets[1, 0], nets[1, 2])
    assert logs[1, 0] != logs[2, 0]


def test_biases_have_twice_the_learning_rate_and_no_weight_decay(finished):
    weights, biases = read_checkpoint(finished.out / "last.pt")["optimizer"]["param_groups"]
    assert biases["lr"] == 2 * weights["lr"] > 0
    assert (weights["weight_decay"], biases["weight_decay"]) == (5e-4, 0)
    # 15 layers of VGG16 and 3 of scores
    assert (len(weights["params"]), len(biases["params"])) == (18, 18)


def test_class_weights_apply_to_both_losses(scenes, tmp_path):
    losses = {}
    for weights in ("none", "sqrt"):
        # Scores that stay 0 cost log 2 per pixel, times weights with a mean of 1.
        options = f"--epochs 1 --lr 1e-30 --class-weights {weights}"
        run(scenes, tmp_path / weights, *options.split())
        row = log_of(tmp_path / weights)[0]
        losses[weights] = [row["train_loss"], row["val_loss"]]
    assert losses["none"] == pytest.approx([np.log(2)] * 2)
    for plain, weighted in zip(losses["none"], losses["sqrt"], strict=True):
        assert weighted != plain and weighted == pytest.approx(plain, rel=0.3)


def test_the_summed_loss_matches_a_scaled_learning_rate(tmp_path, monkeypatch):
    """A mean loss takes the same steps with the learning rate times the pixels, and the weight
    decay divided by them. No clipping; several steps, because of momentum.
    """
    data = own(tmp_path / "own")
    for i in range(5):
        mask = np.array(Image.open(data / f"masks/{i}.png"))
        mask[:3] = IGNORE
        picture(data / f"masks/{i}.png", mask)
    pixels, nets, losses = 29 * 48, {}, {}
    recipes = dict(sum=(1e-4, 0.01), mean=(1e-4 * pixels, 0.01 / pixels), start=(1e-30, 0.0))
    for name, (lr, decay) in recipes.items():
        monkeypatch.setitem(train.PAPER, "reduction", "sum" if name == "sum" else "mean")
        monkeypatch.setitem(train.PAPER, "weight_decay", decay)
        options = f"--recipe paper --lr {lr} --dropout 0 --skip-gain auto --pad 1"
        assert run(data, tmp_path / name, *options.split()) == 0
        nets[name] = read_checkpoint(tmp_path / name / "last.pt")["model"]
        losses[name] = [row["train_loss"] for row in log_of(tmp_path / name)]
    assert losses["sum"] == pytest.approx(losses["mean"], rel=1e-4)
    learnt = set()
    for name, start in nets["start"].items():
        move = (nets["sum"][name] - start).norm()
        if move > 1e-3 * start.norm():
            learnt.add(name)
            assert (nets["sum"][name] - nets["mean"][name]).norm() <= 1e-2 * move
    assert {"score_fr.weight", "score_pool4.weight", "score_pool3.weight"} <= learnt


# ---- the files of a run ----


def test_a_run_leaves_its_files_and_no_others(finished):
    pictures, networks = ["curves.png", "samples.png"], ["best.pt", "last.pt"]
    texts = ["config.json", "log.csv", "before.pt", ".lock"]
    assert {file.name for file in finished.out.iterdir()} == {*pictures, *networks, *texts}
    for name in pictures:
        assert Image.open(finished.out / name).size[0] > 600
    for name in networks:
        assert FCN8s.load(finished.out / name).classes == ["not road", "road"]
    about = json.loads((finished.out / "config.json").read_text())
    assert (about["settings"]["width"], about["settings"]["seed"]) == (0.03125, 0)
    assert "torch" in about["versions"]
    for word in ("KITTI Road", "mean IoU", "training", "bird's eye", str(finished.out / "best.pt")):
        assert word in finished.said


def test_best_pt_is_the_network_of_the_best_epoch(finished, scenes):
    rows, data = log_of(finished.out), find(scenes)
    best = read_checkpoint(finished.out / "best.pt")
    scores = [row["MaxF"] for row in rows]
    improved = [i + 1 for i, s in enumerate(scores) if s > max(scores[:i], default=-1)]
    assert [row["epoch"] for row in rows if row["is_best"]] == improved
    assert best["epoch"] == improved[-1] and best["best"] == max(scores)
    assert f"best network (epoch {best['epoch']})," in finished.said
    for name, row in (("best.pt", rows[best["epoch"] - 1]), ("last.pt", rows[-1])):
        result = scored(data, data.val, finished.out / name)[0]
        assert (result["MaxF"], result["mean_iou"]) == (row["MaxF"], row["mean_iou"])


def test_the_log_has_kitti_scores_per_category_in_both_spaces(finished):
    rows = log_of(finished.out)
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    for category in ("um_road", "umm_road", "uu_road", "URBAN"):
        for space in ("image", "bev"):
            assert 0 < rows[-1][f"MaxF_{category}_{space}"] <= 1
            assert 0 < rows[-1][f"AP_{category}_{space}"] <= 1


@pytest.mark.parametrize("kept, monitor", [("all", "mean_iou"), ("car", "MaxF")])
def test_mean_iou_ranks_several_classes_and_maxf_a_single_one(tmp_path, kept, monitor):
    data = own(tmp_path / "own", classes="sky\ncar\nhouse\n")
    picture(data / "calib/0.png", [[0]]).rename(data / "calib/0.txt")  # only KITTI's are read
    assert run(data, tmp_path / "run", "--classes", kept, "--lr", 0.05) == 0
    best, rows = read_checkpoint(tmp_path / "run/best.pt"), log_of(tmp_path / "run")
    assert best["best"] == max(row[monitor] for row in rows)
    assert best["classes"] == (["sky", "car", "house"] if kept == "all" else ["background", "car"])
    assert ("MaxF_all_image" in rows[0]) == (kept == "car")


def test_a_checkpoint_keeps_the_sizes_of_the_training_images(tmp_path):
    data = own(tmp_path / "own")
    for part, pixels in (("images", np.zeros((96, 64, 3))), ("masks", np.zeros((96, 64)))):
        picture(data / part / "1.png", pixels)
    assert run(data, tmp_path / "run", "--epochs", 1) == 0
    for name in ("best.pt", "last.pt"):
        sizes = read_checkpoint(tmp_path / "run" / name)["sizes"]
        assert sizes == {"smallest": (32, 48), "median": (32, 48), "largest": (96, 64)}


def test_an_evaluation_converts_the_weights_once(scenes, tmp_path):
    """Autocast alone would convert those of frozen layers, fc6 and fc7 again for each image."""
    seen = []

    def look(module, inputs):
        if isinstance(module, VGG16):
            seen.append((module, module.training, {p.dtype for p in module.parameters()}))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        assert run(scenes, tmp_path, "--epochs", 1, "--amp", "bf16", "--skip-gain", "1,1") == 0
    finally:
        handle.remove()
    assert [dtypes for _, training, dtypes in seen if training] == 9 * [{torch.float32}]
    evaluated = [(net, dtypes) for net, training, dtypes in seen if not training]
    assert all(dtypes == {torch.bfloat16} for _, dtypes in evaluated)
    # The validation set, the samples, and some training images with the last and the best network.
    assert len({id(net) for net, _ in evaluated}) == 4 < len(evaluated) - 10


def test_non_finite_scores_are_reported_with_their_image(scenes):
    data, ranks = find(scenes), Ranks()
    net = FCN8s(2, width=1 / 32, fc_channels=4)
    net.classes = data.classes
    for p in net.vgg.parameters():
        p.data.fill_(1e30)
    args = Reader(data.read_label), cross_entropy, "off", 0, ranks, Stop(ranks)
    said = f"{data.val[0].image}: the network's scores are not finite"
    with pytest.raises(InputError, match=said):
        Evaluation(net, data, *args)(data.val)


def test_samples_show_four_images_and_the_two_worst(tmp_path):
    data, greys = own(tmp_path / "own", images=16), {}
    for i in range(16):
        greys[f"{i}.png"] = 40 + 13 * i
        picture(data / f"images/{i}.png", np.full((32, 48, 3), greys[f"{i}.png"]))
        mask = np.zeros((32, 48))
        mask[: 2 * i] = 1
        picture(data / f"masks/{i}.png", mask)
    (data / "val.txt").write_text("\n".join(map(str, range(12))))
    assert run(data, tmp_path / "run", "--epochs", 1, "--lr", 0.05, "--batch-size", 4) == 0
    found = find(data)
    ious = scored(found, found.val, tmp_path / "run/best.pt")[1]
    names = [sample.image.name for sample in found.val]
    worst = sorted(found.val, key=lambda sample: ious[sample.image])[:2]
    sheet = np.asarray(Image.open(tmp_path / "run/samples.png").convert("RGB"))
    shown = set(sheet[(sheet == sheet[..., :1]).all(2)][:, 0].tolist())
    column = sheet[:, 60, 0]  # through the pictures, at the left
    runs = {g for g in shown if (column == g).sum() > 100}
    wanted = {*names[::3], *(sample.image.name for sample in worst)}
    assert runs & set(greys.values()) == {greys[name] for name in wanted}


def test_the_curves_mark_the_epoch_of_best_pt(tmp_path):
    losses, sheets = dict(train_loss=1, val_loss=2, mean_iou=0.5, iou_a=0.5), {}
    for best in (None, 3, 9):
        rows = [{"epoch": e, **losses, "is_best": int(e == best)} for e in range(1, 12)]
        draw_curves(tmp_path / "c.png", rows, ["a"])
        sheets[best] = np.asarray(Image.open(tmp_path / "c.png").convert("RGB")).astype(int)
    for best in (3, 9):
        changed = np.abs(sheets[best] - sheets[None]).sum(2)[60:300].astype(bool).mean(0) > 0.9
        columns = changed.nonzero()[0]
        assert len(columns) in (2, 3)
        assert abs(columns.mean() - (70 + 640 * (best - 1) / 10)) < 2


def test_the_time_of_an_interrupted_epoch_counts_both_parts(scenes, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def seconds(name, *argv, kill=False):
        def ten_seconds(event, step):
            now[0] += 10 * (event == "step")
            if kill and event == "save":
                raise SystemExit

        train.main([*argv, "--out", str(tmp_path / name)], ten_seconds)
        return (tmp_path / name / "log.csv").read_text().splitlines()[1].split(",")[4]

    argv = ["--data", str(scenes), *TINY, *"--epochs 1 --batch-size 2 --save-every 2".split()]
    assert seconds("whole", *argv) == "50.0"
    with pytest.raises(SystemExit):
        seconds("cut", *argv, kill=True)
    now[0] += 1000  # the break in between
    assert seconds("cut", "--resume") == "50.0"


def test_a_second_run_into_a_folder_is_refused(finished, scenes, capsys):
    before = (finished.out / "last.pt").read_bytes()
    assert run(scenes, finished.out) == 2
    assert "--resume" in capsys.readouterr().err
    assert (finished.out / "last.pt").read_bytes() == before


# ---- options ----


@pytest.mark.parametrize(
    "more, kept",
    [
        ("--pad 100 --stride 16", {"pad": 100, "stride": 16}),
        ("--stride 32 --learn-upsampling", {"stride": 32, "learn_upsampling": True}),
        ("--batch-size 5 --split-seed 3", {"batch_size": 5, "split_seed": 3}),
        ("--task lane", {"task": "lane", "flip": "no"}),
        ("--task lane --flip yes", {"task": "lane", "flip": "yes"}),
        ("--amp bf16 --recompute", {"amp": "bf16", "recompute": True}),
        ("--class-weights sqrt --dropout 0.3", {"class_weights": "sqrt", "dropout": 0.3}),
        ("--skip-gain 0.01,0.0001", {"skip_gain": {"pool4": 0.01, "pool3": 0.0001}}),
        ("--crop 24x40 --seed 7 --lr 0.01", {"crop": (24, 40), "seed": 7, "lr": 0.01}),
    ],
)
def test_every_option_trains_and_is_kept_in_the_checkpoint(scenes, tmp_path, more, kept):
    assert run(scenes, tmp_path, "--epochs", 1, *more.split()) == 0
    saved = read_checkpoint(tmp_path / "best.pt")
    for values in (saved["settings"], saved["settings"] | saved["config"]):
        assert {name: values[name] for name in kept} == kept


@pytest.mark.parametrize("resize, crop, largest", [(1, "24x40", (24, 40)), (2, "32x48", (64, 96))])
def test_no_more_than_the_crop_reaches_the_network(scenes, tmp_path, seen, resize, crop, largest):
    assert run(scenes, tmp_path, "--epochs", 1, "--resize", resize, "--crop", crop) == 0
    assert seen[0] == (False, largest)  # before training, to balance the skips
    assert np.max([size for training, size in seen if training], 0).tolist() == list(largest)


def test_training_scoring_and_prediction_use_the_resize_factor(scenes, tmp_path, seen):
    assert run(scenes, tmp_path, "--resize", 2, "--lr", 0.05) == 0
    assert {size for training, size in seen if not training} == {(64, 128)}
    views = np.array([size for training, size in seen if training]) / (32, 64)
    assert views.min() >= 1 and views.max() <= 3 and views.mean() > 1.5
    best, data = read_checkpoint(tmp_path / "best.pt"), find(scenes)
    assert best["settings"]["resize"] == best["resize_factor"] == 2
    assert scored(data, data.val, tmp_path / "best.pt")[0]["MaxF"] == best["result"]["MaxF"]


def test_the_paper_recipe_applies_and_options_override_it(scenes, tmp_path):
    assert run(scenes, tmp_path, *"--recipe paper --epochs 1 --pad 1".split()) == 0
    saved = read_checkpoint(tmp_path / "last.pt")
    for name, value in train.PAPER.items():
        if name not in ("pad", "fc_channels", "skip_gain"):
            assert saved["settings"][name] == value, name
    assert saved["config"]["pad"] == 1
    assert saved["config"]["skip_gain"] == {"pool4": 0.01, "pool3": 0.0001}
    assert {group["momentum"] for group in saved["optimizer"]["param_groups"]} == {0.99}
    assert {row["lr"] for row in log_of(tmp_path)} == {1e-10}


def test_real_kitti_lanes_train(kitti_sample, tmp_path):
    assert run(kitti_sample, tmp_path, "--task", "lane", "--epochs", 1, "--crop", "64x128") == 0
    # With scores of zero, every pixel is "not lane".
    assert log_of(tmp_path)[0]["pixel_acc"] > 0.5


def test_an_overflow_in_the_first_fp16_step_changes_nothing():
    net = FCN8s(2, width=1 / 64, fc_channels=4)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    optimizer = sgd(net, 0.9, 5e-4, fp16=True)
    scaler = torch.amp.GradScaler("cpu")
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for factor in (math.inf, 1.0):
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in net.parameters() if p.requires_grad)
        scaler.scale(loss * factor).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    for name, p in net.named_parameters():  # the gradient is 2 p
        assert (p - before[name]).abs().max() <= 0.01 * before[name].abs().max(), name
