"""Export a trained network to a file that runs without this project.

    python export.py best.pt road.onnx     for ONNX Runtime, OpenVINO, TensorRT and others
    python export.py best.pt road.pt2      for PyTorch: torch.export.load("road.pt2").module()

Input `image`: decoded RGB, uint8 [N, 3, H, W], for any N, and any H and W of at least 33. The file
includes the normalisation and the resize factor of the training: it enlarges the images and
interpolates the scores back to their size. Output `scores`: logits float32 [N, C, H, W]; softmax
over C gives probabilities. Metadata: `classes` (a JSON list of names), `mean` and `std` (JSON
lists, of RGB in 0..1), and `sha256` of the checkpoint. A .pt2 file holds the metadata in an extra
file, metadata.json.

The written file is read again and compared with the network at three other sizes. A file that
disagrees is deleted. ONNX needs the packages onnx, onnxscript and onnxruntime. A .pt2 file is for
the CPU.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from fcn import FCN8s
from support.console import InputError, Parser, explanation, one_line
from support.files import sha256
from vgg import IMAGE_MEAN, IMAGE_STD, normalise

EXAMPLE = (2, 3, 64, 96)  # shape of the example images for the exporter
# The exporter treats maps of one row or column specially, and pool5 has only one for 32 pixels.
SMALLEST = 33
# The file is compared with the network at these sizes, no multiples of 32.
SHAPES = ((1, 3, 33, 47), (2, 3, 70, 90), (1, 3, 97, 131))
TOLERANCE = 1e-3  # largest difference of a score, relative to the largest score
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Deployed(nn.Module):
    """FCN-8s with its preprocessing: uint8 [N, 3, H, W] RGB to scores float32 [N, C, H, W]."""

    def __init__(self, net: FCN8s):
        super().__init__()
        self.net = net

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = normalise(image)
        factor = self.net.resize_factor
        if factor == 1:
            return self.net(image).float()
        # Resized by the ratio of the rounded sizes, as the scores are on the way back.
        resized = F.interpolate(
            image, scale_factor=factor, mode="bilinear", recompute_scale_factor=True
        )
        return F.interpolate(self.net(resized).float(), size=image.shape[2:], mode="bilinear")


def export(checkpoint: str | os.PathLike, out: str | os.PathLike) -> float:
    """Export the network of a checkpoint to `out`, in the format of its suffix, and compare them.

    Returns the largest relative difference of a score. An existing file is replaced only if the new
    one agrees with the network. Raises InputError if the export fails.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    writers = {".onnx": write_onnx, ".pt2": write_pt2}
    ending = out.suffix.lower()
    if ending not in writers:
        raise InputError(f"{out}: must end in {' or '.join(writers)}, which selects the format")
    missing = [name for name in ONNX_PACKAGES if not importlib.util.find_spec(name)]
    if ending == ".onnx" and missing:
        raise InputError(f"{out}: ONNX needs other packages: pip install {' '.join(missing)}")
    net = FCN8s.load(checkpoint).float()
    if out.exists() and out.samefile(checkpoint):
        raise InputError(f"{out}: is the checkpoint; choose another name")
    # Shrinking needs an anti-aliasing filter, and such a graph is not valid for every size.
    if net.resize_factor < 1:
        raise InputError(
            f"{checkpoint}: was trained on images resized by {net.resize_factor:g}; only networks "
            "with a factor of at least 1 can be exported"
        )
    metadata = {
        "classes": json.dumps(net.classes),
        "mean": json.dumps(IMAGE_MEAN),
        "std": json.dumps(IMAGE_STD),
        "sha256": sha256(checkpoint),
    }
    model = Deployed(net).eval()
    try:
        # On the same disk, where a rename is atomic.
        with TemporaryDirectory(dir=out.parent, prefix=".export") as folder:
            written = Path(folder) / f"network{ending}"
            run = writers[ending](model, written, metadata)
            differences = [compare(model, run, shape) for shape in SHAPES]
            difference = torch.tensor(differences).max().item()  # Python's max may lose a nan
            if not difference <= TOLERANCE:  # true for nan too
                raise InputError(
                    f"{out}: its scores differ from those of {checkpoint} by {difference:.1e} of "
                    "the largest, so it was deleted; try another version of the packages that "
                    "wrote it"
                )
            os.replace(written, out)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{out}: cannot be written ({one_line(error, 200)})") from error
    return difference


def exported(model: Deployed) -> torch.export.ExportedProgram:
    """The network as a graph that is valid for every N, and every H and W from SMALLEST on."""
    example = torch.randint(0, 256, EXAMPLE, dtype=torch.uint8)
    side = Dim.DYNAMIC(min=SMALLEST)
    with torch.no_grad():
        return torch.export.export(
            model, (example,), dynamic_shapes={"image": {0: Dim.DYNAMIC, 2: side, 3: side}}
        )


def write_pt2(model: Deployed, out: Path, metadata: dict[str, str]) -> Callable:
    """Write a .pt2 file. Returns a function from images to the scores of this file."""
    # Through a buffer: on a full disk, PyTorch's own writer would abort the process.
    buffer = io.BytesIO()
    torch.export.save(exported(model), buffer, extra_files={"metadata.json": json.dumps(metadata)})
    out.write_bytes(buffer.getvalue())
    return torch.export.load(out).module()


def write_onnx(model: Deployed, out: Path, metadata: dict[str, str]) -> Callable:
    """Write an ONNX file, including the weights. Returns a function from images to its scores."""
    import onnxruntime  # an optional package

    program = torch.onnx.export(
        exported(model),
        dynamo=True,
        input_names=["image"],
        output_names=["scores"],
        dynamic_shapes={"image": {0: "batch", 2: "height", 3: "width"}},  # names of the axes
        verbose=False,
    )
    program.model.metadata_props.update(metadata)
    program.save(out, external_data=False)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["scores"], {"image": images.numpy()})[0])


@torch.no_grad()
def compare(model: Deployed, run: Callable, shape: tuple[int, int, int, int]) -> float:
    """The largest difference of a score for random images [N, 3, H, W], relative to the largest
    score.
    """
    image = torch.randint(
        0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    wanted, found = model(image), run(image)
    return ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-6)).item()


def main(argv: list[str] | None = None) -> int:
    """Run the command line. Returns the exit status: 0, 2 with one line on stderr if the export
    fails, or 130 if stopped.
    """
    parser = Parser("export.py", description=__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="best.pt of a run")
    parser.add_argument(
        "out", metavar="OUT", type=Path, help="file to write: NAME.onnx or NAME.pt2"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    # torch.onnx warns of packages that are not needed here.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            difference = export(options.checkpoint, options.out)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except (InputError, OSError, MemoryError, RuntimeError) as error:
        message = explanation(error, "close other programs")
        if options.debug or not message:
            raise
        print(f"export.py: error: {message}", file=sys.stderr)
        return 2
    print(
        f"wrote {options.out}: {options.out.stat().st_size / 2**20:.1f} MiB; at three other sizes "
        f"the scores differ by at most {difference:.1e} of the largest\n"
        f"input: RGB pictures, uint8 [N, 3, H, W]; docs/programs.md has a program that runs it"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
