"""Imports have no cycles, and reading data needs no PyTorch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

FILES = {
    str(path.relative_to(ROOT).with_suffix("")).replace("/", "."): path
    for pattern in ("*.py", "support/**/*.py", "weights/*.py", "tools/*.py")
    for path in ROOT.glob(pattern)
}
NO_TORCH = ["data", "kitti", "metrics", "support.draw", "support.prefetch"]
NO_TORCH += [name for name in FILES if name.startswith("support.datasets.")]
# Packages that a file names in an error if they are missing.
OPTIONAL = {
    "export": {"onnxruntime"},
    "tools.bench": {"onnxruntime", "openvino"},
    "weights.convert": {"safetensors"},
}


def imported(name):
    """The names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return names


def test_imports_have_no_cycle():
    order = TopologicalSorter({name: imported(name) & FILES.keys() for name in FILES})
    assert set(order.static_order()) == FILES.keys()  # raises CycleError


@pytest.mark.parametrize("name", FILES)
def test_only_the_required_packages_are_imported(name):
    ours = {file.partition(".")[0] for file in FILES}
    known = {"torch", "numpy", "PIL", *ours, *OPTIONAL.get(name, ()), *sys.stdlib_module_names}
    assert {module.partition(".")[0] for module in imported(name)} <= known


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("support.")])
def test_nothing_in_support_imports_the_scripts(name):
    assert imported(name).isdisjoint({"train", "predict", "export"})


def test_the_network_imports_almost_nothing():
    ours = {name: imported(name) & FILES.keys() for name in ("vgg", "fcn")}
    assert ours["vgg"] == {"support.dense"}
    assert imported("support.dense").isdisjoint(FILES)
    assert ours["fcn"] == {"vgg", "support.labels", "support.checkpoint", "support.console"}
    said = "import fcn, sys; sys.exit('support.checkpoint' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], cwd=ROOT).returncode == 0


def test_reading_scoring_and_drawing_need_no_pytorch():
    said = f"import {', '.join(NO_TORCH)}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], cwd=ROOT).returncode == 0
