"""Imports go one way, and what reads data can be used where there is no PyTorch."""

import ast
import subprocess
import sys

import pytest
from conftest import ROOT

FILES = sorted([*ROOT.glob("*.py"), *ROOT.glob("support/*.py"), *ROOT.glob("weights/*.py")])


def imported(file):
    """The names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update([node.module, *(f"{node.module}.{alias.name}" for alias in node.names)])
    return names


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_only_the_packages_of_the_requirements_are_imported_and_nothing_imports_the_scripts_at_the_top(
    file,
):
    names = imported(file)
    ours = {path.stem for path in ROOT.glob("*.py")} | {"support", "weights"}
    formats = {"export.py": {"onnxruntime"}, "bench_peers.py": {"onnxruntime", "openvino"}}.get(
        file.name, set()
    )  # asked for by name
    assert {name.split(".")[0] for name in names} <= {
        "torch",
        "numpy",
        "PIL",
        *ours,
        *formats,
        *sys.stdlib_module_names,
    }
    assert names.isdisjoint({"train", "predict", "export"})


@pytest.mark.parametrize(
    "module", ["data", "support.pictures", "support.views", "support.draw", "support.roads"]
)
def test_reading_and_drawing_need_no_pytorch(module):
    said = f"import {module}, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", said], cwd=ROOT).returncode == 0


def test_the_table_of_contents_of_support_names_every_file():
    contents = (ROOT / "support/__init__.py").read_text(encoding="utf-8")
    assert [
        file.name
        for file in ROOT.glob("support/*.py")
        if file.name != "__init__.py" and file.name not in contents
    ] == []
