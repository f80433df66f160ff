"""Imports have no cycles, and reading data needs no PyTorch."""

import ast
import subprocess
import sys
from graphlib import TopologicalSorter

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


def test_only_the_required_packages_are_imported():
    known = {"torch", "numpy", "PIL", *sys.stdlib_module_names}
    known |= {name.partition(".")[0] for name in FILES}
    for name in FILES:
        packages = {module.partition(".")[0] for module in imported(name)}
        assert packages <= known | OPTIONAL.get(name, set()), name


def test_nothing_in_support_imports_the_scripts():
    support = {name: imported(name) for name in FILES if name.startswith("support.")}
    scripts = {"train", "predict", "export"}
    assert not {name: found & scripts for name, found in support.items() if found & scripts}


def test_the_network_imports_almost_nothing():
    ours = {name: imported(name) & FILES.keys() for name in ("vgg", "fcn")}
    assert ours["vgg"] == {"support.dense"}
    assert imported("support.dense").isdisjoint(FILES)
    assert ours["fcn"] == {"vgg", "support.labels", "support.checkpoint", "support.console"}


def test_reading_scoring_and_drawing_need_no_pytorch():
    said = f"import {', '.join(NO_TORCH)}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], cwd=ROOT).returncode == 0
