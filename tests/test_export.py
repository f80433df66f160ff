"""An exported file runs without this project and agrees at every size, or it is not written."""

import hashlib
import importlib.util
import json

import numpy as np
import pytest
import torch
from conftest import lively, saved
from PIL import Image

import export
from fcn import FCN8s
from predict import segment
from support.device import as_batch
from vgg import normalise

SIZES = ((1, 33, 47), (2, 70, 90), (1, 128, 160), (3, 200, 333), (1, 33, 33))
FORMATS = [
    pytest.param(
        ".onnx",
        marks=pytest.mark.skipif(
            not all(map(importlib.util.find_spec, export.ONNX_PACKAGES)),
            reason=f"needs {', '.join(export.ONNX_PACKAGES)}",
        ),
    ),
    ".pt2",
]


@pytest.fixture
def checkpoint(tmp_path):
    return saved(tmp_path / "best.pt", lively(1, 8), ["road", "sky"])


def read(path):
    """(run, metadata) of an exported file, without this project."""
    if path.suffix == ".pt2":
        extra = {"metadata.json": ""}
        module = torch.export.load(path, extra_files=extra).module()
        metadata = json.loads(extra["metadata.json"])
        return lambda image: module(torch.from_numpy(image)).detach().numpy(), metadata
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    assert session.get_outputs()[0].shape == ["batch", 2, "height", "width"]
    metadata = session.get_modelmeta().custom_metadata_map
    return lambda image: session.run(["scores"], {"image": image})[0], metadata


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_an_exported_file_computes_the_same_scores_at_any_size(exported, ending):
    folder = exported(ending)
    assert {file.name for file in folder.iterdir()} == {"best.pt", f"streets{ending}"}
    net, (run, metadata) = FCN8s.load(folder / "best.pt"), read(folder / f"streets{ending}")
    for n, height, width in SIZES:
        image = np.random.default_rng(0).integers(0, 256, (n, 3, height, width), np.uint8)
        with torch.no_grad():
            wanted = net(normalise(torch.from_numpy(image))).numpy()
        scores = run(image)
        assert scores.dtype == np.float32 and scores.shape == wanted.shape
        assert np.abs(scores - wanted).max() <= 1e-3 * np.abs(wanted).max() > 0
    assert json.loads(metadata["classes"]) == ["not road", "road"]
    assert json.loads(metadata["mean"]) == [0.485, 0.456, 0.406]
    assert json.loads(metadata["std"]) == [0.229, 0.224, 0.225]
    digest = hashlib.sha256((folder / "best.pt").read_bytes()).hexdigest()
    assert metadata["sha256"] == digest


@pytest.mark.slow
@pytest.mark.parametrize("ending", FORMATS)
def test_an_exported_file_enlarges_pictures_as_segment_does(tmp_path, capsys, ending):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    pictures = [
        np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
        for size in ((60, 84), (97, 131), (200, 120))
    ]
    net, out = lively(100, 16), tmp_path / f"out{ending}"
    with torch.no_grad():  # neither class wins everywhere
        net.score_fr.bias -= net(normalise(as_batch(pictures[0]))).mean((0, 2, 3))
    net.resize_factor = 1.5
    assert export.main([str(saved(tmp_path / "best.pt", net, ["a", "b"])), str(out)]) == 0
    said = capsys.readouterr().out
    assert "scores differ by at most" in said and "docs/programs.md" in said
    run, _ = read(out)
    for factor, alike in ((1.5, True), (1.0, False)):
        net.resize_factor = factor
        for picture in pictures:
            labels = run(picture.transpose(2, 0, 1)[None])[0].argmax(0)
            same = (labels == segment(net, picture)).mean()
            # The file does not round the enlarged picture to bytes.
            assert same > 0.99 if alike else same < 0.9


def test_a_network_for_downscaled_images_is_not_exported(tmp_path, capsys):
    net = lively(1, 8)
    net.resize_factor = 0.5
    checkpoint = saved(tmp_path / "best.pt", net, ["road", "sky"])
    assert export.main([str(checkpoint), str(tmp_path / "out.pt2")]) == 2
    error = capsys.readouterr().err
    assert "was trained on images resized by 0.5" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    "factor, says",
    [
        (1.01, "its scores differ from those of"),
        (float("nan"), "its scores differ from those of"),
        (None, "cannot be written"),
    ],
)
def test_a_failed_export_does_not_replace_the_old_file(
    checkpoint, monkeypatch, capsys, factor, says
):
    out = checkpoint.with_name("out.pt2")
    out.write_text("the one before")

    def spoilt(model, path, metadata):
        path.write_text("the new one")
        if factor is None:
            raise OSError(28, "No space left on device")
        # Of the three comparisons, only the second has two images.
        return lambda image: model(image) * (factor if len(image) > 1 else 1)

    monkeypatch.setattr(export, "write_pt2", spoilt)
    assert export.main([str(checkpoint), str(out)]) == 2
    error = capsys.readouterr().err
    assert f"out.pt2: {says}" in error and error.count("\n") == 1
    assert out.read_text() == "the one before"
    assert {file.name for file in out.parent.iterdir()} == {"best.pt", "out.pt2"}


@pytest.mark.parametrize(
    "name, out, says",
    [
        ("best.pt", "out.tflite", "must end in .onnx or .pt2"),
        ("best.pt", "none/out.pt2", "out.pt2: cannot be written"),
        ("none.pt", "out.pt2", "none.pt: no such file; did you mean "),
        ("best.pt", "out.onnx", "ONNX needs other packages: pip install"),
    ],
)
def test_an_impossible_export_is_refused_in_one_line(
    checkpoint, command, monkeypatch, name, out, says
):
    find = importlib.util.find_spec
    absent = export.ONNX_PACKAGES[1:]
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in absent else find(n))
    folder = checkpoint.parent
    status, _, error = command("export.py", folder / name, folder / out)
    assert status == 2 and error.count("\n") == 1 and says in error
    assert error.startswith("export.py: error: ")
