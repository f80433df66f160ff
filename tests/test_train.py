"""The loop: it learns, resumes, keeps to its settings, and says in one line what it cannot do."""

import csv
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, kill_at_evaluation, log_of, same
from PIL import Image
from support.inference.segment import segment

import predict
import train
from data import find, read_kitti_label
from fcn import FCN8s, cross_entropy
from support.checkpoint import read_tensors, save_tensors
from support.console import InputError
from support.draw import draw_curves
from support.labels import IGNORE
from support.training import initialise as start
from support.training import options
from vgg import VGG16

TINY = [
    "--width",
    "0.03125",
    "--fc-channels",
    "8",
    "--crop",
    "none",
    "--weights",
    "none",
    "--workers",
    "0",
    "--device",
    "cpu",
    "--amp",
    "off",
]


def run(scenes, out, *more):
    return train.main(["--data", str(scenes), "--out", str(out), "--epochs", "2", *TINY, *more])


def weights_of(file):
    return torch.load(file, weights_only=True)["model"]


def own_of(scenes, folder):
    """The same scenes as own pictures and masks: class ids instead of KITTI's colours."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for file in sorted((scenes / "training/gt_image_2").glob("*_road_*.png")):
        name = file.name.replace("_road", "")
        shutil.copy(scenes / "training/image_2" / name, folder / "images" / name)
        Image.fromarray(read_kitti_label(file)).save(folder / "masks" / name)
    return folder


@pytest.mark.parametrize(
    "pad, stride, amp", [(1, 8, False), (100, 8, False), (1, 32, False), (1, 16, True)]
)
def test_a_training_step_lowers_the_loss(pad, stride, amp):
    net = FCN8s(3, pad, stride, width=1 / 16, fc_channels=16).eval()
    optimizer = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad], lr=0.05, momentum=0.9
    )
    x = torch.randn(2, 3, 64, 96)
    labels = (
        torch.tensor([[0, 1, 2], [2, 2, 0]])
        .repeat_interleave(32, 0)
        .repeat_interleave(32, 1)
        .repeat(2, 1, 1)
    )
    values = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16, enabled=amp):
            value = cross_entropy(net(x), labels)
        values.append(value.item())
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert values[0] == pytest.approx(
        torch.tensor(3.0).log().item(), rel=1e-3
    )  # all classes alike at first
    assert values[1] < values[0] and values[-1] < 0.99 * values[0]


def test_a_run_of_the_loop_lowers_the_loss_of_its_log(scenes, tmp_path):
    assert (
        run(
            scenes,
            tmp_path,
            "--epochs",
            "12",
            "--lr",
            "0.02",
            "--width",
            "0.125",
            "--fc-channels",
            "32",
        )
        == 0
    )
    rows = log_of(tmp_path)
    assert rows[-1]["train_loss"] < 0.85 * rows[0]["train_loss"]
    assert weights_of(tmp_path / "last.pt")["score_fr.weight"].abs().sum() > 0  # it started at zero


def test_a_rate_that_diverges_stops_with_the_mend_and_leaves_no_bad_weights(
    scenes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(train, "cross_entropy", lambda *args: cross_entropy(*args) * float("inf"))
    assert run(scenes, tmp_path) == 2
    assert "--lr" in capsys.readouterr().err and not (tmp_path / "last.pt").exists()


def test_a_run_leaves_settings_log_pictures_and_both_checkpoints(scenes, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(scenes, out) == 0
    said = capsys.readouterr().out
    for word in (
        "KITTI Road",
        "mean IoU",
        "IoU road",
        "frequency-weighted IoU",
        "training",
        str(out / "samples.png"),
    ):
        assert word in said
    about = json.loads((out / "config.json").read_text())
    assert about["classes"] == ["not road", "road"]
    assert (
        about["settings"]["width"] == 0.03125
        and about["settings"]["seed"] == 0
        and "torch" in about["versions"]
    )
    rows = log_of(out)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert {
        "train_loss",
        "val_loss",
        "pixel_acc",
        "mean_acc",
        "mean_iou",
        "fw_iou",
        "iou_road",
    } <= rows[0].keys()
    for name in ("curves.png", "samples.png"):
        assert Image.open(out / name).size[0] > 600
    for name in ("last.pt", "best.pt"):
        checkpoint = torch.load(out / name, weights_only=True)
        FCN8s(**checkpoint["config"]).load_state_dict(checkpoint["model"])
        assert checkpoint["classes"] == ["not road", "road"]
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "log.csv",
        "curves.png",
        "samples.png",
        "last.pt",
        "before.pt",
        "best.pt",
        ".lock",
    }  # and no half-written file beside them


def test_the_best_checkpoint_is_that_of_the_best_row_of_the_log(scenes, tmp_path):
    run(scenes, tmp_path, "--epochs", "4", "--lr", "0.05")
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    rows = log_of(tmp_path)
    assert (
        best["best"] == max(row["MaxF_URBAN_image"] for row in rows) > 0
        and best["settings"]["class_weights"] == "none"
    )
    assert rows[best["epoch"] - 1]["MaxF_URBAN_image"] == best["best"] == best["result"]["MaxF"]


def test_own_pictures_and_masks_are_judged_by_mean_iou(scenes, tmp_path):
    assert (
        run(own_of(scenes, tmp_path / "own"), tmp_path / "run", "--epochs", "3", "--lr", "0.05")
        == 0
    )
    best, rows = torch.load(tmp_path / "run/best.pt", weights_only=True), log_of(tmp_path / "run")
    assert best["best"] == max(row["mean_iou"] for row in rows) and not any(
        "MaxF" in name for name in rows[0]
    )
    assert (
        best["settings"]["class_weights"] == "sqrt"
    )  # for mean IoU all classes count alike, the rare ones too


def test_masks_of_one_class_are_refused_and_a_class_without_pixels_is_named(
    scenes, tmp_path, capsys
):
    """255 for the object is the commonest slip: it is ignored, and there is nothing left to tell
    apart.
    """
    for i in range(6):
        for part, picture in (("images", np.full((32, 32, 3), 9)), ("masks", np.eye(32) * 255)):
            (tmp_path / "own" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / f"own/{part}/{i}.png")
    assert run(tmp_path / "own", tmp_path / "run") == 2
    assert "the masks hold 0 and 255 alone" in capsys.readouterr().err
    (tmp_path / "own/classes.txt").write_text("ground\nlion\n")
    assert run(tmp_path / "own", tmp_path / "run") == 2
    assert (
        "one class, ground; 255 is ignored, and so is what classes.txt does not name"
        in capsys.readouterr().err
    )
    (tmp_path / "own/classes.txt").write_text("ground\ntree\nlion\n")
    for i in range(6):
        Image.fromarray(np.eye(32, dtype=np.uint8)).save(tmp_path / f"own/masks/{i}.png")
    assert run(tmp_path / "own", tmp_path / "run", "--epochs", "1") == 0
    assert "no training image shows: lion\n" in capsys.readouterr().out


def test_the_log_of_kitti_has_the_benchmarks_measures_by_category_and_from_above(
    scenes, tmp_path, capsys
):
    run(scenes, tmp_path)
    row = log_of(tmp_path)[-1]
    for category in ("um_road", "umm_road", "uu_road", "URBAN"):
        for space in ("image", "bev"):
            assert (
                0 <= row[f"MaxF_{category}_{space}"] <= 1
                and 0 <= row[f"AP_{category}_{space}"] <= 1
            )
    assert "URBAN" in (said := capsys.readouterr().out) and "bird's eye" in said


class Unplugged(Exception):
    """Not an error that train.py knows."""


def test_an_interrupted_run_resumes_and_ends_as_if_it_never_stopped(scenes, tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(scenes, whole, "--epochs", "4", "--batch-size", "3", "--save-every", "3")

    evaluate, calls = train.evaluate, []

    def unplugged(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise Unplugged
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(train, "evaluate", unplugged)
    with pytest.raises(Unplugged):
        run(scenes, cut, "--epochs", "4", "--batch-size", "3", "--save-every", "3")
    monkeypatch.undo()
    assert len(log_of(cut)) == 2
    torch.manual_seed(999)  # another process has other chance
    assert train.main(["--out", str(cut), "--resume"]) == 0
    assert log_of(cut) == log_of(whole)
    assert same(weights_of(cut / "last.pt"), weights_of(whole / "last.pt"))


def test_resuming_with_more_epochs_goes_on_and_with_another_network_is_refused(
    scenes, tmp_path, capsys
):
    run(scenes, tmp_path)
    assert train.main(["--out", str(tmp_path), "--resume", "--pad", "100"]) == 2
    assert "--pad 100" in (error := capsys.readouterr().err) and "has 1" in error
    assert train.main(["--out", str(tmp_path), "--resume", "--epochs", "3"]) == 0
    assert [row["epoch"] for row in log_of(tmp_path)] == [1, 2, 3]


def test_the_same_seed_gives_the_same_run_for_any_number_of_workers_and_another_seed_another(
    scenes, tmp_path
):
    logs = {}
    for name, more in (
        ("a", ["--seed", "1"]),
        ("b", ["--seed", "1", "--workers", "2"]),
        ("c", ["--seed", "2"]),
    ):
        run(scenes, tmp_path / name, *more)
        logs[name] = log_of(tmp_path / name)
    assert logs["a"] == logs["b"]
    assert same(weights_of(tmp_path / "a/last.pt"), weights_of(tmp_path / "b/last.pt"))
    assert logs["a"] != logs["c"]


@pytest.mark.parametrize(
    "more, setting, value",
    [
        (["--pad", "100"], "pad", 100),
        (["--stride", "16"], "stride", 16),
        (["--stride", "32"], "stride", 32),
        (["--learn-upsampling"], "learn_upsampling", True),
        (["--batch-size", "5"], "batch_size", 5),
        (["--task", "lane"], "task", "lane"),
        (["--task", "lane"], "flip", "no"),
        (["--task", "lane", "--flip", "yes"], "flip", "yes"),
        (["--task", "road"], "flip", "yes"),
        (["--flip", "no"], "flip", "no"),
        (["--amp", "bf16"], "amp", "bf16"),
        (["--class-weights", "sqrt"], "class_weights", "sqrt"),
        (["--dropout", "0.3"], "dropout", 0.3),
        (["--recompute"], "recompute", True),
        (["--skip-scale", "0.01,0.0001"], "skip_scale", (0.01, 0.0001)),
    ],
)
def test_every_option_trains_and_is_kept_in_the_checkpoint(scenes, tmp_path, more, setting, value):
    assert run(scenes, tmp_path, "--epochs", "1", *more) == 0
    checkpoint = torch.load(tmp_path / "best.pt", weights_only=True)
    assert {**checkpoint["settings"], **checkpoint["config"]}[setting] == value


def test_no_more_than_the_crop_reaches_the_network_before_and_in_training(
    scenes, tmp_path, monkeypatch
):
    seen = []

    def watched(module, name, image):
        function = getattr(module, name)

        def call(*args):
            seen.append((name, *args[image].shape[2:]))
            return function(*args)

        monkeypatch.setattr(module, name, call)

    watched(start, "balance", image=1)
    watched(train, "cross_entropy", image=0)  # scores have the size of their images
    assert run(scenes, tmp_path, "--epochs", "1", "--crop", "24x40") == 0
    assert {name for name, *_ in seen} == {"balance", "cross_entropy"}
    assert all(
        (height, width) == (24, 40) or name == "cross_entropy" and height <= 24 and width <= 40
        for name, height, width in seen
    )


def test_a_network_trained_at_a_scale_is_scored_and_used_at_that_scale(
    scenes, tmp_path, monkeypatch, capsys
):
    """Training, its evaluation, predict.py and segment: the network sees pictures twice as large,
    results have their size.
    """
    seen, forward = [], FCN8s.forward
    monkeypatch.setattr(
        FCN8s, "forward", lambda net, images: seen.append(images.shape[2:]) or forward(net, images)
    )
    assert run(scenes, tmp_path / "run", "--scale", "2", "--lr", "0.05") == 0
    sample = find(scenes).val[0]
    picture = Image.open(sample.image)
    height, width = picture.height, picture.width
    steps = [size for size in seen if size != (2 * height, 2 * width)]
    assert all(
        1.5 * height - 16 <= h <= 2.7 * height + 16 and 1.5 * width - 16 <= w <= 2.7 * width + 16
        for h, w in steps
    )
    assert len(steps) > len(set(steps)) > 1 and (2 * height, 2 * width) in seen

    best = torch.load(tmp_path / "run/best.pt", weights_only=True)
    assert best["settings"]["scale"] == 2 and best["sizes"]["median"] == (height, width)
    tables = {}
    for more in ([], ["--scale", "2"], ["--scale", "1"]):
        seen.clear()
        capsys.readouterr()
        assert (
            predict.main(
                [
                    str(tmp_path / "run/best.pt"),
                    "--data",
                    str(scenes),
                    "--out",
                    str(tmp_path / "out"),
                    "--device",
                    "cpu",
                    "--amp",
                    "off",
                    "--scores",
                    str(tmp_path / "scores.csv"),
                    *more,
                ]
            )
            == 0
        )
        tables[tuple(more)] = (tmp_path / "scores.csv").read_text()
        assert set(seen) == {
            (height, width) if more == ["--scale", "1"] else (2 * height, 2 * width)
        }
        if not more:
            assert f"{100 * best['result']['mean_iou']:.2f}" in capsys.readouterr().out
            mask = np.asarray(Image.open(tmp_path / "out/mask" / sample.label.name))
            assert np.array_equal(segment(FCN8s.load(tmp_path / "run/best.pt"), picture), mask)
    assert tables[()] == tables["--scale", "2"] != tables["--scale", "1"]


def test_fine_tuning_at_another_scale_is_said(scenes, tmp_path, capsys):
    assert run(scenes, tmp_path / "first", "--epochs", "1", "--scale", "2") == 0
    for scale, said in (("1", True), ("2", False)):
        capsys.readouterr()
        assert (
            run(
                scenes,
                tmp_path / scale,
                "--epochs",
                "1",
                "--scale",
                scale,
                "--weights",
                str(tmp_path / "first/best.pt"),
            )
            == 0
        )
        assert (
            "best.pt: saw its images at 2 times their size, this network at 1"
            in capsys.readouterr().out
        ) == said


def test_balance_and_the_crop_follow_the_scale(scenes, tmp_path, monkeypatch):
    seen, forward = [], VGG16.forward
    monkeypatch.setattr(
        VGG16,
        "forward",
        lambda net, images: seen.append((net.training, *images.shape[2:])) or forward(net, images),
    )
    assert run(scenes, tmp_path, "--epochs", "1", "--scale", "2", "--crop", "32x48") == 0
    assert seen[0] == (False, 64, 96)  # `balance`, on the part of an image of 32 x 48
    views = [size for training, *size in seen if training]
    assert all(height <= 64 and width <= 96 for height, width in views) and [64, 96] in views


@pytest.mark.parametrize(
    "more, frozen",
    [([], 2), (["--freeze", "3"], 3), (["--freeze", "1"], 1), (["--freeze", "0"], 0)],
)
def test_the_first_blocks_of_a_trained_network_stay_as_they_are_and_all_others_learn(
    scenes, tmp_path, more, frozen
):
    assert run(scenes, tmp_path / "first", "--lr", "0.02") == 0
    assert (
        run(
            scenes,
            tmp_path / "second",
            "--lr",
            "0.02",
            "--weights",
            str(tmp_path / "first/best.pt"),
            *more,
        )
        == 0
    )
    before, after = (weights_of(tmp_path / name / "best.pt") for name in ("first", "second"))
    layers = [
        name.removesuffix(".weight")
        for name in before
        if name.startswith("vgg.") and name.endswith(".weight")
    ]
    kept = {
        name for name in layers if torch.equal(before[f"{name}.weight"], after[f"{name}.weight"])
    }
    assert kept == {
        name
        for name in layers
        if name.startswith(tuple(f"vgg.conv{i + 1}_" for i in range(frozen)))
    }
    assert (
        read_tensors(tmp_path / "first/best.pt")["settings"]["freeze"] == 0
    )  # random weights have to learn
    assert read_tensors(tmp_path / "second/best.pt")["settings"]["freeze"] == frozen
    assert train.main(["--resume", "--out", str(tmp_path / "second"), "--epochs", "3"]) == 0
    later = weights_of(tmp_path / "second/last.pt")
    assert {
        name for name in layers if torch.equal(before[f"{name}.weight"], later[f"{name}.weight"])
    } == kept


def test_a_run_of_an_earlier_version_goes_on_at_the_size_of_its_images(
    scenes, tmp_path, monkeypatch
):
    whole, cut, own = tmp_path / "whole", tmp_path / "cut", own_of(scenes, tmp_path / "own")
    run(own, whole, "--scale", "1")
    kill_at_evaluation(monkeypatch, 2)
    with pytest.raises(SystemExit):
        run(own, cut, "--scale", "1")
    last = read_tensors(cut / "last.pt")
    for name in ("scale", "freeze"):
        del last["settings"][name]
    save_tensors(last, cut / "last.pt")
    assert train.main(["--resume", "--data", str(own), "--out", str(cut)]) == 0
    assert log_of(cut) == log_of(whole)


def test_a_run_is_short_on_a_processor_and_long_on_few_images_unless_epochs_are_said(
    scenes, tmp_path, monkeypatch, capsys
):
    def epochs(out, *more):
        assert (
            train.main(
                [
                    "--data",
                    str(scenes),
                    "--out",
                    str(tmp_path / out),
                    *TINY,
                    "--batch-size",
                    "9",
                    *more,
                ]
            )
            == 0
        )
        return json.loads((tmp_path / out / "config.json").read_text())["settings"]["epochs"]

    steps = -(-len(find(scenes).train) // 9)  # of an epoch
    monkeypatch.setattr(options, "CPU_EPOCHS", 2)
    monkeypatch.setattr(options, "LEAST_STEPS", 3 * steps)
    assert epochs("default") == 3
    assert "last network, of epoch 3, IoU on training images: not road " in capsys.readouterr().out
    assert epochs("said", "--epochs", "1") == 1
    monkeypatch.setattr(options, "LEAST_STEPS", 1)
    assert epochs("many") == 2


def test_fc6_has_as_many_channels_as_the_weights_unless_they_are_said(scenes, tmp_path):
    def channels(name, weights, *options):
        argv = [
            "--data",
            str(scenes),
            "--out",
            str(tmp_path / name),
            "--epochs",
            "1",
            "--weights",
            str(weights),
            "--width",
            "0.03125",
            "--workers",
            "0",
            "--device",
            "cpu",
            *options,
        ]
        assert train.main(argv) == 0
        config = json.loads((tmp_path / name / "config.json").read_text())
        assert config["settings"]["fc_channels"] == config["config"]["fc_channels"]
        return config["config"]["fc_channels"]

    whole = VGG16(width=1 / 32, fc_channels=6).state_dict()
    torch.save(whole, tmp_path / "whole.pth")
    torch.save(
        {name: p for name, p in whole.items() if "fc" not in name}, tmp_path / "features.pth"
    )
    assert channels("whole", tmp_path / "whole.pth") == 6
    assert channels("features", tmp_path / "features.pth") == 512
    assert channels("said", tmp_path / "features.pth", "--fc-channels", "7") == 7
    assert channels("checkpoint", tmp_path / "said" / "best.pt") == 7


def test_class_weights_reach_the_loss_of_training_and_the_held_out_one(scenes, tmp_path):
    for weights in ("none", "sqrt"):
        run(
            scenes, tmp_path / weights, "--epochs", "1", "--class-weights", weights, "--lr", "1e-30"
        )
    gradients = [
        torch.load(tmp_path / weights / "last.pt", weights_only=True)["optimizer"]["state"]
        for weights in ("none", "sqrt")
    ]
    assert any(
        (a["momentum_buffer"] != b["momentum_buffer"]).any()
        for a, b in zip(*(g.values() for g in gradients))
    )
    plain, weighted = (log_of(tmp_path / weights)[0] for weights in ("none", "sqrt"))
    # Scores of an untrained network are 0 everywhere: log 2 for each pixel, times weights that have
    # mean 1.
    assert plain["val_loss"] == pytest.approx(np.log(2)) and plain["train_loss"] == pytest.approx(
        np.log(2)
    )
    assert (
        weighted["train_loss"] != plain["train_loss"] and weighted["val_loss"] != plain["val_loss"]
    )
    assert weighted["train_loss"] == pytest.approx(np.log(2), rel=0.3)


def test_weights_learn_at_the_rate_and_are_decayed_biases_at_twice_the_rate_and_are_not(
    scenes, tmp_path
):
    run(scenes, tmp_path)
    weights, biases = torch.load(tmp_path / "last.pt", weights_only=True)["optimizer"][
        "param_groups"
    ]
    assert biases["lr"] == 2 * weights["lr"] > 0
    assert (weights["weight_decay"], biases["weight_decay"]) == (5e-4, 0)
    assert (len(weights["params"]), len(biases["params"])) == (
        18,
        18,
    )  # 15 layers of VGG16 and 3 of scores


def test_one_class_of_many_trains_and_is_scored_as_road_is_and_predict_knows(
    scenes, tmp_path, capsys
):
    rng = np.random.default_rng(0)
    for i in range(6):
        for name, picture in (
            ("images", rng.integers(0, 256, (24, 40, 3))),
            ("masks", rng.integers(0, 3, (24, 40))),
        ):
            (tmp_path / "own" / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "own" / name / f"{i}.png")
    (tmp_path / "own/classes.txt").write_text("sky\ncar\nhouse\n")
    (tmp_path / "own/calib").mkdir()
    for picture in (
        tmp_path / "own/images"
    ).iterdir():  # calibrations are KITTI's: nobody reads these
        (tmp_path / f"own/calib/{picture.stem}.txt").write_text("another camera's")
    assert run(tmp_path / "own", tmp_path / "run", "--classes", "car") == 0
    assert {"iou_background", "iou_car", "MaxF_all_image"} <= log_of(tmp_path / "run")[0].keys()
    trained = capsys.readouterr().out
    assert (
        predict.main(
            [
                str(tmp_path / "run/best.pt"),
                "--data",
                str(tmp_path / "own"),
                "--out",
                str(tmp_path / "seen"),
                "--device",
                "cpu",
                "--amp",
                "off",
            ]
        )
        == 0
    )
    scored = [line for line in capsys.readouterr().out.splitlines() if line.startswith("all ")]
    assert len(scored) == 1 and scored[0] in trained
    assert (
        predict.main(
            [str(tmp_path / "run/best.pt"), "--kitti", str(scenes), "--out", str(tmp_path / "zip")]
        )
        == 2
    )
    assert "was trained to find car; KITTI Road takes road or lane" in capsys.readouterr().err


# ---- what a run says of itself ----


def own(root, size=(32, 48), ids=3, images=5, classes="road\nsky\ncar\n"):
    rng = np.random.default_rng(0)
    for i in range(images):
        for part, pixels in (
            ("images", rng.integers(0, 256, (*size, 3))),
            ("masks", np.arange(size[0] * size[1]).reshape(size) % ids),
        ):
            (root / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / part / f"{i}.png")
    (root / "classes.txt").write_text(classes)
    return root


def test_a_run_prints_ids_names_and_shares_and_what_no_name_covers(tmp_path, capsys):
    assert (
        run(own(tmp_path / "own", ids=4, classes="road\nsky\n"), tmp_path / "run", "--epochs", "1")
        == 0
    )
    said = capsys.readouterr().out
    assert (
        "  0  road      25.00 %        5\n" in said and "  1  sky       25.00 %        5\n" in said
    )
    assert "no class has these ids: 2 25.00 %, 3 25.00 %; together 50.00 %" in said
    assert "1 epoch of 4 steps" in said and "1 epochs" not in said and "1 classes" not in said


def test_a_checkpoint_keeps_the_sizes_of_its_training_images_for_predict(tmp_path, capsys):
    own(tmp_path / "own", images=6)
    for name, size in (("images", (96, 64, 3)), ("masks", (96, 64))):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / "own" / name / "0.png")
    (tmp_path / "own/val.txt").write_text("1\n")
    assert run(tmp_path / "own", tmp_path / "run") == 0
    for name in ("best.pt", "last.pt"):
        sizes = torch.load(tmp_path / "run" / name, weights_only=True)["sizes"]
        assert sizes == {"smallest": (32, 48), "median": (32, 48), "largest": (96, 64)}
    Image.new("RGB", (800, 600)).save(tmp_path / "photo.jpg")
    capsys.readouterr()
    command = [
        str(tmp_path / "run/best.pt"),
        str(tmp_path / "photo.jpg"),
        "--out",
        str(tmp_path / "seen"),
        "--device",
        "cpu",
    ]
    assert predict.main(command) == 0
    assert (
        "in training the longer side had at most 144 pixels" in (warned := capsys.readouterr().err)
        and "--scale 0.09" in warned
    )
    assert predict.main([*command, "--scale", "0.09"]) == 0 and not capsys.readouterr().err


def test_a_run_whose_loss_outgrows_that_of_an_untrained_network_is_told_that_it_has_diverged(
    scenes, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(
        train, "cross_entropy", lambda scores, *more: cross_entropy(scores, *more) + 2
    )
    assert run(scenes, tmp_path / "bad") == 0
    said = capsys.readouterr().out
    assert (
        said.count(
            "than that of an untrained network, 0.693: the run has diverged; begin again with a smaller --lr"
        )
        == 2
    )
    monkeypatch.undo()
    assert run(scenes, tmp_path / "good") == 0
    assert "diverged" not in capsys.readouterr().out


def test_the_log_and_the_curves_mark_the_epoch_that_is_kept(scenes, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        train, "draw_curves", lambda path, rows, classes: drawn.append([dict(row) for row in rows])
    )
    run(scenes, tmp_path, "--epochs", "4", "--lr", "0.05")
    best = torch.load(tmp_path / "best.pt", weights_only=True)
    kept = [row["epoch"] for row in log_of(tmp_path) if row["kept"]]
    assert kept[-1] == best["epoch"] and kept[0] == 1
    assert [row["epoch"] for row in drawn[-1] if row["kept"]] == kept


def test_the_line_of_the_kept_epoch_stands_over_its_place_on_the_axis(tmp_path):
    rows = [
        {"epoch": e, "train_loss": 1, "val_loss": 2, "mean_iou": 0.5, "iou_a": 0.5, "kept": 0}
        for e in range(1, 12)
    ]
    sheets = {}
    for kept in (None, 3, 9):
        draw_curves(
            tmp_path / "c.png",
            [{**row, "kept": int(row["epoch"] in (1, kept))} if kept else row for row in rows],
            ["a"],
        )
        sheets[kept] = np.asarray(Image.open(tmp_path / "c.png").convert("RGB")).astype(int)
    for kept in (3, 9):
        changed = (
            np.abs(sheets[kept] - sheets[None]).sum(2)[60:300].astype(bool).mean(0) > 0.9
        )  # columns that changed over their height
        changed = changed.nonzero()[0]
        assert len(changed) in (2, 3) and abs(changed.mean() - (70 + 640 * (kept - 1) / 10)) < 2


def test_samples_show_the_worst_held_out_images_beside_the_usual_ones_with_names_and_scores(
    tmp_path, monkeypatch
):
    rng = np.random.default_rng(0)
    own(tmp_path / "own", images=30)
    for i in range(30):
        Image.fromarray(rng.integers(0, 3, (32, 48), np.uint8)).save(
            tmp_path / f"own/masks/{i}.png"
        )
    (tmp_path / "own/val.txt").write_text("\n".join(map(str, range(11, 23))))
    evaluate, values, sheets = train.evaluate, [], []

    def watched(run, samples, *more):
        values.append(
            {
                sample.image.name: iou
                for sample, iou in zip(samples, evaluate(run, samples, *more)[1].values())
            }
        )
        return evaluate(run, samples, *more)

    monkeypatch.setattr(train, "evaluate", watched)
    monkeypatch.setattr(
        train, "draw_samples", lambda path, rows, classes, caption: sheets.append(rows)
    )
    assert run(tmp_path / "own", tmp_path / "run", "--epochs", "1", "--lr", "0.05") == 0
    each, rows = values[0], {name.split()[0]: (name, *row) for name, *row in sheets[0]}
    lowest = sorted(each, key=each.get)[:2]
    assert len(each) == 12 and set(rows) == {"11.png", "14.png", "17.png", "20.png", *lowest}
    for name, (text, image, truth, seen) in rows.items():
        ious = [
            ((truth == c) & (seen == c)).sum() / ((truth == c) | (seen == c)).sum()
            for c in (0, 1, 2)
            if ((truth == c) | (seen == c)).any()
        ]
        assert f"IoU {100 * np.mean(ious):.1f}" in text and ("one of the two lowest" in text) == (
            name in lowest
        )
        assert np.array_equal(image, np.asarray(Image.open(tmp_path / "own/images" / name)))


def test_the_seconds_of_an_epoch_that_was_interrupted_count_both_parts(
    scenes, tmp_path, monkeypatch
):
    now, unplugged = [0.0], None
    monkeypatch.setattr(train.time, "perf_counter", lambda: now[0])
    function, calls = train.cross_entropy, []

    def slow(*args):
        now[0] += 10  # each step takes ten seconds
        calls.append(1)
        if len(calls) == unplugged:
            raise Unplugged
        return function(*args)

    monkeypatch.setattr(train, "cross_entropy", slow)
    assert (
        run(scenes, tmp_path / "whole", "--epochs", "1", "--batch-size", "2", "--save-every", "3")
        == 0
    )
    unplugged = len(calls) + 3  # after the checkpoint of step 2
    with pytest.raises(Unplugged):
        run(scenes, tmp_path / "cut", "--epochs", "1", "--batch-size", "2", "--save-every", "2")
    now[0] += 1000  # the night between
    assert train.main(["--resume", "--out", str(tmp_path / "cut")]) == 0
    seconds = []
    for name in ("whole", "cut"):
        with open(tmp_path / name / "log.csv", newline="") as file:
            seconds += [float(row["seconds"]) for row in csv.DictReader(file)]
    assert seconds[0] == seconds[1] > 40


def test_colour_masks_train_the_very_weights_that_id_masks_train(tmp_path):
    own(tmp_path / "ids", images=6)
    shutil.copytree(tmp_path / "ids", tmp_path / "colours")
    colours = np.zeros((256, 3), np.uint8)
    colours[:3] = [(128, 64, 128), (70, 130, 180), (0, 0, 142)]
    (tmp_path / "colours/classes.txt").write_text("road 128 64 128\nsky 70 130 180\ncar 0 0 142\n")
    for file in (tmp_path / "colours/masks").iterdir():
        Image.fromarray(colours[np.asarray(Image.open(file))]).save(file)
    for name in ("ids", "colours"):
        assert run(tmp_path / name, tmp_path / f"run {name}") == 0
    assert same(
        weights_of(tmp_path / "run ids/last.pt"), weights_of(tmp_path / "run colours/last.pt")
    )


@pytest.mark.parametrize(
    "script",
    [
        "vgg",
        "fcn",
        "data",
        "train",
        "predict",
        "metrics",
        "export",
        "weights/convert",
        "tools/bench",
        "support/roads",
        "tools/figures",
    ],
)
def test_every_script_that_a_person_runs_answers_help(monkeypatch, capsys, script):
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--help"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored afterwards
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
    said = capsys.readouterr()
    assert end.value.code == 0 and said.out.startswith("usage:") and not said.err


def test_the_help_of_train_is_in_groups_the_most_needed_first_and_says_every_default(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    places = [
        said.index(f"{group}: --") for group in ("data", "run", "network", "training", "machine")
    ]
    assert places == sorted(places)
    options = {
        name: re.compile(rf" --{name.replace('_', '-')}[ ,]").search(said, places[0] - 1).start()
        for name in train.DEFAULTS
        if name
        not in ("loss", "momentum", "weight_decay", "warmup", "power", "clip", "augment", "colours")
    }
    for name, place in options.items():
        real, end = (
            train.DEFAULTS[name][0],
            min([p for p in options.values() if p > place], default=len(said)),
        )
        assert real is False or name == "recipe" or f"(default {real}" in said[place:end], name


@pytest.mark.parametrize("script", ["train.py", "predict.py", "metrics.py"])
def test_ctrl_c_while_importing_is_one_line(tmp_path, script):
    (tmp_path / "torch.py").write_text(
        "raise KeyboardInterrupt\n"
    )  # as if it came while PyTorch is being imported
    done = subprocess.run(
        [sys.executable, ROOT / script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (
        done.stderr.strip().count("\n") == 0
        and "stopped" in done.stderr
        and done.returncode in (-signal.SIGINT, 130)
    )


# ---- the authors' recipe, and beginning where another run ended ----


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_step_of_the_summed_loss_is_one_of_the_mean_loss_at_the_rate_times_the_pixels(
    tmp_path, monkeypatch, seed
):
    """With the weight decay divided by them; with momentum, hence several steps. No clipping, which
    knows no scale.
    """
    rng = np.random.default_rng(seed)
    height, width = rng.integers(16, 40, 2).tolist()
    for i in range(5):
        ids = rng.integers(0, 3, (height, width))
        ids[:3] = IGNORE
        for part, picture in (("images", rng.integers(0, 256, (height, width, 3))), ("masks", ids)):
            (tmp_path / "own" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / "own" / part / f"{i}.png")
    pixels, rate, ends = (height - 3) * width, 1e-4, []
    for name, lr, decay in (
        ("sum", rate, 0.01),
        ("mean", rate * pixels, 0.01 / pixels),
        ("start", 1e-30, 0.0),
    ):
        monkeypatch.setitem(
            train.DEFAULTS, "loss", (None, None, name if name != "start" else "mean")
        )
        monkeypatch.setitem(train.DEFAULTS, "weight_decay", (None, None, decay))
        assert (
            train.main(
                [
                    "--data",
                    str(tmp_path / "own"),
                    "--out",
                    str(tmp_path / name),
                    "--recipe",
                    "paper",
                    "--lr",
                    str(lr),
                    "--epochs",
                    "2",
                    "--seed",
                    str(seed),
                    "--dropout",
                    "0",
                    *TINY,
                    "--skip-scale",
                    "auto",
                ]
            )
            == 0
        )
        ends.append((log_of(tmp_path / name), weights_of(tmp_path / name / "last.pt")))
    (summed, a), (mean, b), (_, start) = ends
    assert [row["train_loss"] for row in summed] == pytest.approx(
        [row["train_loss"] for row in mean], rel=1e-4
    )
    moved = [name for name in start if (a[name] - start[name]).norm() > 1e-3 * start[name].norm()]
    assert {"score_fr.weight", "score_pool4.weight", "score_pool3.weight"} <= set(moved)
    for name in moved:
        assert (a[name] - b[name]).norm() <= 1e-2 * (
            a[name] - start[name]
        ).norm()  # of what was learnt


def test_the_authors_recipe_is_theirs_and_options_still_count(scenes, tmp_path):
    argv = [
        "--data",
        str(scenes),
        "--out",
        str(tmp_path),
        "--recipe",
        "paper",
        "--epochs",
        "1",
        "--width",
        "0.03125",
        "--fc-channels",
        "8",
        "--weights",
        "none",
        "--device",
        "cpu",
        "--workers",
        "0",
    ]
    assert train.main(argv) == 0
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    for name, value in {
        "lr": 1e-10,
        "momentum": 0.99,
        "weight_decay": 5e-4,
        "loss": "sum",
        "batch_size": 1,
        "clip": 0.0,
        "augment": False,
        "amp": "off",
        "dropout": 0.5,
        "epochs": 1,
        "warmup": 0.0,
        "power": 0.0,
        "crop": "none",
        "class_weights": "none",
        "learn_upsampling": False,
        "stride": 8,
    }.items():
        assert saved["settings"][name] == value, name
    assert saved["config"]["pad"] == 100 and saved["config"]["skip_scale"] == (0.01, 0.0001)
    assert {group["momentum"] for group in saved["optimizer"]["param_groups"]} == {0.99}
    assert {row["lr"] for row in log_of(tmp_path)} == {1e-10}


def test_stages_32s_16s_8s_begin_where_the_one_before_ended(scenes, tmp_path, capsys):
    """As the new score layers start at zero, a finer stage begins with the coarser one's scores,
    upsampled in two steps.
    """
    assert run(scenes, tmp_path / "32s", "--stride", "32", "--lr", "0.01") == 0
    before = weights_of(tmp_path / "32s/best.pt")
    for stride, fresh, coarser in (("16", "score_pool4", "32s"), ("8", "score_pool3", "16s")):
        capsys.readouterr()
        out = tmp_path / f"{stride}s"
        assert (
            run(
                scenes,
                out,
                "--epochs",
                "1",
                "--stride",
                stride,
                "--lr",
                "1e-30",
                "--weights",
                str(tmp_path / coarser / "best.pt"),
            )
            == 0
        )
        assert f"taken over from a trained network; {fresh} starts fresh" in capsys.readouterr().out
        after = weights_of(out / "best.pt")
        assert all(
            torch.allclose(after[name], before[name], rtol=0, atol=1e-20)
            for name in before
            if "upscore" not in name
        )
        assert after[f"{fresh}.weight"].abs().max() < 1e-20
        before = after
    scale = [
        torch.load(tmp_path / name / "best.pt", weights_only=True)["config"]["skip_scale"]
        for name in ("32s", "8s")
    ]
    assert scale[0] == scale[1] != (1.0, 1.0)


def test_real_kitti_files_of_lane_train(kitti_sample, tmp_path):
    assert (
        train.main(
            [
                "--data",
                str(kitti_sample),
                "--task",
                "lane",
                "--out",
                str(tmp_path),
                "--epochs",
                "1",
                *TINY,
                "--crop",
                "64x128",
            ]
        )
        == 0
    )
    assert (
        log_of(tmp_path)[0]["pixel_acc"] > 0.5
    )  # at a score of zero for all, everything is "not lane"


# ---- what cannot be used ----


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--data", "nowhere"], "nowhere: no such folder"),
        (["--crop", "0x0"], "--crop"),
        (["--crop", "100"], "--crop"),
        (["--crop", "axb"], "--crop"),
        (["--lr", "nan"], "--lr"),
        (["--lr", "-1"], "--lr"),
        (["--lr", "inf"], "--lr"),
        (["--epochs", "-1"], "--epochs"),
        (["--epochs", "0"], "--epochs"),
        (["--batch-size", "x"], "--batch-size"),
        (["--width", "0"], "--width"),
        (["--stride", "4"], "--stride"),
        (["--pad", "50"], "pad is 50"),
        (["--task", "sidewalk"], "--task"),
        (["--amp", "fp8"], "--amp"),
        (["--skip-scale", "1"], "--skip-scale"),
        (["--device", "tpu"], "--device"),
        (["--colour"], "--colour"),
        (["--weights", "none.pth"], "none.pth"),
        (["--resume"], "--out"),
    ],
)
def test_input_that_cannot_be_used_is_one_line_and_status_2(
    scenes, tmp_path, monkeypatch, capsys, arguments, said
):
    monkeypatch.chdir(tmp_path)
    base = ["--data", str(scenes), "--epochs", "1", *TINY] if arguments[0] != "--resume" else []
    try:
        status = train.main(base + arguments)
    except SystemExit as stop:  # argparse's own way out
        status = stop.code
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("train.py: error: ") and error.count("\n") == 1 and said in error
    assert not (tmp_path / "runs").exists()  # nothing is left behind


def test_a_run_is_not_resumed_for_fewer_epochs_than_it_has_done(scenes, tmp_path, capsys):
    run(scenes, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    assert train.main(["--resume", "--out", str(tmp_path), "--epochs", "1"]) == 2
    assert "--epochs 1: the run has done 2 already" in capsys.readouterr().err
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_second_run_into_a_folder_is_refused_and_leaves_the_first(scenes, tmp_path, capsys):
    run(scenes, tmp_path)
    before = (tmp_path / "last.pt").read_bytes()
    assert run(scenes, tmp_path) == 2
    assert "--resume" in capsys.readouterr().err and (tmp_path / "last.pt").read_bytes() == before


def test_without_out_each_run_gets_a_folder_of_its_own(scenes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        train.main(["--data", str(scenes), "--epochs", "1", *TINY])
    assert sorted(f.name for f in (tmp_path / "runs").iterdir()) == ["scenes", "scenes-2"]


def test_weights_that_cannot_be_downloaded_are_said_with_the_ways_out(
    scenes, tmp_path, monkeypatch, capsys
):
    def no_network():
        raise InputError("cannot be downloaded; train with --weights none")

    monkeypatch.setattr(start, "WEIGHTS", tmp_path / "absent.pth")
    monkeypatch.setattr(start, "download", no_network)
    assert run(scenes, tmp_path / "run", "--weights", "auto", "--width", "1") == 2
    assert "--weights none" in capsys.readouterr().err
