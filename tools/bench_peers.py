"""What a user might take instead of PyTorch: the same network as an ONNX file, in ONNX Runtime and
OpenVINO.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from fcn import FCN8s
from support.checkpoint import save_tensors
from support.console import InputError

PEERS = {"onnxruntime": ("ONNX Runtime fp32",), "openvino": ("OpenVINO fp32", "OpenVINO bf16")}
ROOT = Path(__file__).resolve().parents[1]


def installed() -> list[str]:
    """The cases that can run here. Raises InputError if none can."""
    cases = [
        case
        for package, cases in PEERS.items()
        if importlib.util.find_spec(package)
        for case in cases
    ]
    if not cases or not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise InputError(
            "--peers: needs onnx, onnxscript and onnxruntime, and for more rows openvino: pip install onnx "
            "onnxscript onnxruntime openvino"
        )
    return cases


def write(net: FCN8s, folder: Path) -> Path:
    """Export a network as a user does, with export.py. Returns the file. Raises InputError."""
    save_tensors(
        {"config": net.config, "model": net.state_dict(), "classes": ["background", "road"]},
        folder / "best.pt",
    )
    done = subprocess.run(
        [sys.executable, "export.py", folder / "best.pt", folder / "network.onnx"],
        cwd=ROOT,
        text=True,
        capture_output=True,
    )
    if done.returncode:
        raise InputError(f"--peers: {done.stderr.strip()}")
    return folder / "network.onnx"


def peer(case: str, file: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    """The function from images, uint8 [N, 3, H, W], to scores [N, C, H, W] float32, with as many
    threads as PyTorch has.
    """
    threads = torch.get_num_threads()
    if "OpenVINO" in case:
        import openvino

        model = openvino.Core().compile_model(
            file,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "bf16" if "bf16" in case else "f32",
                "INFERENCE_NUM_THREADS": threads,
                "PERFORMANCE_HINT": "LATENCY",
            },
        )
        return lambda images: torch.from_numpy(np.array(model(images.contiguous().numpy())[0]))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(
        session.run(None, {"image": images.contiguous().numpy()})[0]
    )
