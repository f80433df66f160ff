"""Runs of train.py: learning, the files of a run, and options."""

import contextlib
import csv
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
    """The calls of VGG16, in training and in evaluation mode: the network, the size of the images
    and the types of the weights.
    """
    calls = [], []

    def look(module, inputs):
        if isinstance(module, VGG16):
            dtypes = {p.dtype for p in module.parameters()}
            calls[not module.training].append((module, tuple(inputs[0].shape[2:]), dtypes))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(look)
    yield calls
    handle.remove()


def own(root, images=5, classes="road\nsky\ncar\n"):
    """Own pictures and masks of three ids; the first is the validation set."""
    rng = np.random.default_rng(0)
    for i in range(images):
        picture(root / f"images/{i}.png", rng.integers(0, 256, (32, 48, 3)))
        picture(root / f"masks/{i}.png", rng.integers(0, 3, (32, 48)))
    (root / "classes.txt").write_text(classes)
    (root / "val.txt").write_text("0\n")
    return root


def scored(data, checkpoint):
    """The scores of a checkpoint on the validation set."""
    net, read = FCN8s.load(checkpoint).eval(), Reader(data.read_label)
    scores = Scores(data.classes, data.road)
    for sample in data.val:
        image, truth = read(sample)
        labels, confidences, _ = Predictor(net)(image, confidences_of=[data.road])
        scores.update(sample, labels, truth, *confidences)
    return scores.result()


# ---- learning ----


def test_the_loss_falls(finished):
    losses = [row["train_loss"] for row in log_of(finished.out)]
    assert losses[-1] < 0.95 * losses[0]


def test_divergence_is_reported(scenes, tmp_path, capsys):
    assert run(scenes, tmp_path, "--epochs", 1, "--lr", "10") == 0
    said = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("warning"))
    assert "a smaller --lr than 10" in said


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
    # Scores that stay 0 cost log 2 per pixel, times weights with a mean of 1.
    run(scenes, tmp_path, *"--epochs 1 --lr 1e-30 --class-weights sqrt".split())
    row = log_of(tmp_path)[0]
    for loss in (row["train_loss"], row["val_loss"]):
        assert loss == pytest.approx(np.log(2), rel=0.3)
        assert loss != pytest.approx(np.log(2), rel=1e-3)


def test_the_summed_loss_matches_a_scaled_learning_rate(tmp_path, monkeypatch):
    """With the paper's recipe, a mean loss takes the same steps with the learning rate times the
    pixels, and the weight decay divided by them. No clipping; several steps, because of momentum.
    """
    data = own(tmp_path / "own")
    for i in range(5):
        mask = np.array(Image.open(data / f"masks/{i}.png"))
        mask[:3] = IGNORE
        picture(data / f"masks/{i}.png", mask)
    pixels, nets, losses = 29 * 48, {}, {}
    for name, lr, decay in (("sum", 1e-4, 0.01), ("mean", 1e-4 * pixels, 0.01 / pixels)):
        monkeypatch.setitem(train.PAPER, "reduction", name)
        monkeypatch.setitem(train.PAPER, "weight_decay", decay)
        options = f"--recipe paper --lr {lr} --dropout 0 --skip-gain auto --pad 1"
        assert run(data, tmp_path / name, *options.split()) == 0
        saved = read_checkpoint(tmp_path / name / "last.pt")
        assert {group["momentum"] for group in saved["optimizer"]["param_groups"]} == {0.99}
        nets[name] = saved["model"]
        losses[name] = [row["train_loss"] for row in log_of(tmp_path / name)]
    assert losses["sum"] == pytest.approx(losses["mean"], rel=1e-4)
    for layer in ("score_fr", "score_pool4", "score_pool3"):  # from zero: all values are learnt
        a, b = (net[f"{layer}.weight"] for net in nets.values())
        assert a.norm() > 0 and (a - b).norm() <= 1e-2 * a.norm()


# ---- the files of a run ----


def test_a_run_leaves_its_files_and_no_others(finished):
    pictures, networks = ["curves.png", "samples.png"], ["best.pt", "last.pt"]
    texts = ["config.json", "log.csv", "before.pt", ".lock"]
    assert {file.name for file in finished.out.iterdir()} == {*pictures, *networks, *texts}
    for name in pictures:
        assert Image.open(finished.out / name).size[0] > 600
    sizes = dict.fromkeys(("smallest", "median", "largest"), (32, 64))  # of the training images
    for name in networks:
        assert FCN8s.load(finished.out / name).classes == ["not road", "road"]
        assert read_checkpoint(finished.out / name)["sizes"] == sizes
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
        result = scored(data, finished.out / name)
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


def test_an_evaluation_converts_the_weights_once(scenes, tmp_path, seen):
    """Autocast alone would convert those of frozen layers, fc6 and fc7 again for each image."""
    assert run(scenes, tmp_path, "--epochs", 1, "--amp", "bf16", "--skip-gain", "1,1") == 0
    trained, evaluated = seen
    assert [dtypes for *_, dtypes in trained] == 9 * [{torch.float32}]
    assert all(dtypes == {torch.bfloat16} for *_, dtypes in evaluated)
    # The validation set, the samples, and some training images with the best network.
    assert len({id(net) for net, *_ in evaluated}) == 3 < len(evaluated) - 10


def evaluation_of(data, net):
    net.classes, ranks = data.classes, Ranks()
    return Evaluation(
        net, data, Reader(data.read_label), cross_entropy, "off", 0, ranks, Stop(ranks)
    )


def test_non_finite_scores_are_reported_with_their_image(scenes):
    data, net = find(scenes), FCN8s(2, width=1 / 32, fc_channels=4)
    for p in net.vgg.parameters():
        p.data.fill_(1e30)
    said = f"{data.val[0].image}: the network's scores are not finite"
    with pytest.raises(InputError, match=said):
        evaluation_of(data, net)(data.val)


def test_samples_show_four_images_and_the_two_worst(tmp_path, monkeypatch):
    own(tmp_path, images=14)
    for i in range(14):
        mask = np.zeros((32, 48))
        mask[: 2 * i] = 1
        picture(tmp_path / f"masks/{i}.png", mask)
    (tmp_path / "val.txt").write_text("\n".join(map(str, range(12))))
    data, titles = find(tmp_path), []
    monkeypatch.setattr(
        "support.training.evaluation.draw_samples",
        lambda path, rows, *more: titles.extend(row[0] for row in rows),
    )
    # An untrained network scores all classes alike, and class 0 comes first.
    evaluation = evaluation_of(data, FCN8s(3, width=1 / 32, fc_channels=4))
    evaluation(data.val)
    evaluation.draw_samples(tmp_path / "samples.png", 1)
    wanted = {*[sample.image.name for sample in data.val][::3], "10.png", "11.png"}
    assert {title.split()[0] for title in titles} == wanted
    lowest = {title.split()[0] for title in titles if "one of the two lowest" in title}
    assert lowest == {"10.png", "11.png"}


def test_the_time_of_an_interrupted_epoch_counts_both_parts(scenes, tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def ten_seconds(event, step):
        now[0] += 10 * (event == "step")

    def killed(event, step):
        ten_seconds(event, step)
        if event == "save":
            raise SystemExit

    argv = ["--data", str(scenes), *TINY, *"--epochs 1 --batch-size 2 --save-every 2".split()]
    with pytest.raises(SystemExit):
        train.main([*argv, "--out", str(tmp_path)], killed)
    now[0] += 1000  # the break in between
    assert train.main(["--resume", "--out", str(tmp_path)], ten_seconds) == 0
    (row,) = csv.DictReader((tmp_path / "log.csv").read_text().splitlines())
    assert row["seconds"] == "50.0"  # five steps


# ---- options ----


@pytest.mark.parametrize(
    "more, kept",
    [
        (
            "--pad 100 --stride 16 --batch-size 5 --split-seed 3",
            {"pad": 100, "stride": 16, "batch_size": 5, "split_seed": 3},
        ),
        (
            "--stride 32 --learn-upsampling --class-weights sqrt --dropout 0.3 --amp bf16",
            {
                "stride": 32,
                "learn_upsampling": True,
                "class_weights": "sqrt",
                "dropout": 0.3,
                "amp": "bf16",
            },
        ),
        (
            "--task lane --flip yes --skip-gain 0.01,0.0001 --crop 24x40 --seed 7 --recompute",
            {
                "task": "lane",
                "flip": "yes",
                "skip_gain": {"pool4": 0.01, "pool3": 0.0001},
                "crop": (24, 40),
                "seed": 7,
                "recompute": True,
            },
        ),
    ],
)
def test_every_option_trains_and_is_kept_in_the_checkpoint(scenes, tmp_path, more, kept):
    assert run(scenes, tmp_path, "--epochs", 1, *more.split()) == 0
    saved = read_checkpoint(tmp_path / "best.pt")
    for values in (saved["settings"], saved["settings"] | saved["config"]):
        assert {name: values[name] for name in kept} == kept


def test_training_scoring_and_prediction_use_the_resize_factor(scenes, tmp_path, seen):
    """Only the crop reaches the network, except in evaluations."""
    assert run(scenes, tmp_path, "--resize", 2, "--crop", "32x48", "--lr", 0.05) == 0
    trained, (first, *evaluated) = ([size for _, size, _ in calls] for calls in seen)
    assert first == (64, 96)  # before training, to balance the skips
    assert set(evaluated) == {(64, 128)} and np.max(trained, 0).tolist() == [64, 96]
    best, data = read_checkpoint(tmp_path / "best.pt"), find(scenes)
    assert best["settings"]["resize"] == best["resize_factor"] == 2
    assert scored(data, tmp_path / "best.pt")["MaxF"] == best["result"]["MaxF"]


def test_real_kitti_lanes_train(kitti_sample, tmp_path):
    assert run(kitti_sample, tmp_path, *"--task lane --epochs 1 --resize 0.2".split()) == 0
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
