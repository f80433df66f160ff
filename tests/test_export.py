"""A network as a file that runs without this project, and agrees with it at every size, or is not
left behind.
"""

import hashlib
import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import lively, saved
from PIL import Image
from support.inference.segment import segment

import export
from fcn import FCN8s
from support.checkpoint import read_tensors, save_tensors
from support.device import normalise

SIZES = ((1, 33, 47), (2, 70, 90), (1, 97, 131), (1, 128, 160), (3, 200, 333), (1, 32, 32))
FORMATS = [
    pytest.param(
        ".onnx",
        marks=pytest.mark.skipif(
            any(importlib.util.find_spec(name) is None for name in export.ONNX),
            reason=f"needs {', '.join(export.ONNX)}",
        ),
    ),
    ".pt2",
]


def read(path):
    """(run, metadata) of an exported file, without this project."""
    if path.suffix == ".pt2":
        extra = {"metadata.json": ""}
        module = torch.export.load(path, extra_files=extra).module()
        return (lambda image: module(torch.from_numpy(image)).detach().numpy()), json.loads(
            extra["metadata.json"]
        )
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return (
        lambda image: session.run(["scores"], {"image": image})[0]
    ), session.get_modelmeta().custom_metadata_map


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("pad, stride", [(1, 8), (100, 8), (1, 32)])
def test_an_exported_file_computes_the_scores_of_decoded_pictures_of_every_size(
    tmp_path, capsys, ending, pad, stride
):
    net = lively(pad, stride)
    net.set_skip_scale(0.5, 0.25)
    checkpoint, out = saved(tmp_path / "best.pt", net, ["road", "sky"]), tmp_path / f"out{ending}"
    assert export.main([str(checkpoint), str(out)]) == 0
    assert "scores differ by at most" in capsys.readouterr().out and {
        f.name for f in tmp_path.iterdir()
    } == {"best.pt", out.name}
    run, metadata = read(out)
    for n, height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (n, 3, height, width), np.uint8)
        with torch.no_grad():
            wanted = net(normalise(torch.from_numpy(image))).numpy()
        scores = run(image)
        assert scores.dtype == np.float32 and scores.shape == wanted.shape
        assert np.abs(scores - wanted).max() <= 1e-3 * np.abs(wanted).max() > 0
    assert json.loads(metadata["classes"]) == ["road", "sky"]
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406] and json.loads(
        metadata["std"]
    ) == [0.229, 0.224, 0.225]
    assert metadata["sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()


@pytest.mark.parametrize("ending", FORMATS)
def test_an_exported_file_enlarges_pictures_as_segment_does(tmp_path, ending):
    checkpoint, out = (
        saved(tmp_path / "best.pt", lively(1, 8), ["road", "sky"]),
        tmp_path / f"out{ending}",
    )
    save_tensors({**read_tensors(checkpoint), "settings": {"scale": 1.5}}, checkpoint)
    assert export.main([str(checkpoint), str(out)]) == 0
    run, _ = read(out)
    net = FCN8s.load(checkpoint)
    for size in ((60, 84), (97, 131), (200, 120)):
        pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
        picture = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        scores = run(picture.transpose(2, 0, 1)[None])
        assert scores.shape == (1, 2, *picture.shape[:2])
        same = (
            scores[0].argmax(0) == segment(net, picture)
        ).mean()  # the file does not round the enlarged picture to bytes
        net.image_scale = 1.0
        assert (
            same > 0.995
            and (scores[0].argmax(0) == segment(net, picture)).mean() < 0.9
            and len(np.unique(scores[0].argmax(0))) == 2
        )
        net.image_scale = 1.5


def test_a_network_of_reduced_pictures_is_not_exported(tmp_path, capsys):
    checkpoint = saved(tmp_path / "best.pt", lively(1, 8), ["road", "sky"])
    save_tensors({**read_tensors(checkpoint), "settings": {"scale": 0.5}}, checkpoint)
    assert export.main([str(checkpoint), str(tmp_path / "out.pt2")]) == 2
    assert (
        "was trained at 0.5 times the size" in (error := capsys.readouterr().err)
        and error.count("\n") == 1
    )


@pytest.mark.parametrize("difference", [0.01, float("nan")])
def test_a_file_that_does_not_agree_is_not_left_behind_and_the_one_before_stays(
    tmp_path, monkeypatch, capsys, difference
):
    checkpoint, out = (
        saved(tmp_path / "best.pt", lively(1, 8), ["road", "sky"]),
        tmp_path / "out.pt2",
    )
    out.write_text("the one before")
    writing = export.write_pt2

    def spoilt(model, path, metadata):
        run = writing(model, path, metadata)
        return lambda image: run(image) * (1 + difference)

    monkeypatch.setattr(export, "write_pt2", spoilt)
    assert export.main([str(checkpoint), str(out)]) == 2
    error = capsys.readouterr().err
    assert "out.pt2: its scores differ from those of" in error and error.count("\n") == 1
    assert out.read_text() == "the one before" and {f.name for f in tmp_path.iterdir()} == {
        "best.pt",
        "out.pt2",
    }


@pytest.mark.parametrize(
    "error", [RuntimeError("no space left on the device"), OSError(28, "No space left on device")]
)
def test_a_writer_that_fails_midway_leaves_nothing(tmp_path, monkeypatch, capsys, error):
    def failing(model, path, metadata):
        path.write_text("half")
        raise error

    monkeypatch.setattr(export, "write_pt2", failing)
    assert (
        export.main(
            [
                str(saved(tmp_path / "best.pt", lively(1, 8), ["road", "sky"])),
                str(tmp_path / "out.pt2"),
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert "out.pt2: cannot be written" in said and "pace left" in said and said.count("\n") == 1
    assert [f.name for f in tmp_path.iterdir()] == ["best.pt"]


@pytest.mark.parametrize(
    "found", [torch.zeros(1, 2, 33, 46), torch.zeros(1, 2, 33, 47, dtype=torch.float64)]
)
def test_scores_of_another_shape_or_type_do_not_agree(found):
    assert export.compare(
        export.Deployed(lively(1, 8)), lambda image: found, (1, 3, 33, 47)
    ) == float("inf")


@pytest.mark.parametrize(
    "checkpoint, out, says",
    [
        ("best.pt2", "best.pt2", "is the checkpoint itself"),
        ("best.pt", "out.tflite", "must end in .onnx or .pt2"),
        ("best.pt", "none/out.pt2", "there is no folder"),
        ("none.pt", "out.pt2", "none.pt: cannot be read"),
        ("photo.png", "out.pt2", "photo.png: is a picture"),
    ],
)
def test_what_cannot_be_exported_is_one_line(tmp_path, capsys, checkpoint, out, says):
    for name in ("best.pt", "best.pt2"):
        saved(tmp_path / name, lively(1, 8), ["road", "sky"])
    (tmp_path / "photo.png").write_bytes(b"")
    assert export.main([str(tmp_path / checkpoint), str(tmp_path / out)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("export.py: error: ") and error.count("\n") == 1 and says in error


@pytest.mark.parametrize("more", [0, 1])
def test_more_weights_than_one_onnx_file_holds_are_refused_before_anything_is_written(
    tmp_path, monkeypatch, capsys, more
):
    net = lively(1, 8)
    monkeypatch.setattr(export, "LARGEST_ONNX", sum(p.nbytes for p in net.parameters()) - more)
    monkeypatch.setattr(export, "ONNX", ())
    monkeypatch.setattr(
        export,
        "write_onnx",
        lambda *args: pytest.fail("too large") if more else export.Deployed(net),
    )
    status = export.main(
        [str(saved(tmp_path / "best.pt", net, ["road", "sky"])), str(tmp_path / "out.onnx")]
    )
    assert status == 2 and ("at most 2 GB of weights" in capsys.readouterr().err) == bool(more)


def test_a_missing_package_is_one_line_that_says_what_to_install(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: None if name in export.ONNX[1:] else find(name) or True,
    )
    assert (
        export.main(
            [
                str(saved(tmp_path / "best.pt", lively(1, 8), ["road", "sky"])),
                str(tmp_path / "out.onnx"),
            ]
        )
        == 2
    )
    error = capsys.readouterr().err
    assert (
        error.count("\n") == 1
        and "needs onnxscript and onnxruntime: pip install onnxscript onnxruntime" in error
    )
