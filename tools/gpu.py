"""What one GPU can show, in one file to read: runs/gpu/report.txt.

    python tools/gpu.py    ten minutes at most

The parts are the tests that need CUDA, the benchmark, a training on synthetic roads at full width,
and the same run resumed for one more epoch. If a part fails, the others still run; the report and
the exit status say so.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.console import Parser, one_line

ROOT = Path(__file__).resolve().parents[1]
ROADS = ["--width", "1", "--fc-channels", "4096", "--lr", "5e-3"]


class Report:
    """A file; what is said goes to standard output too."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.failed = open(path, "w", encoding="utf-8"), []

    def say(self, text: str):
        for place in (sys.stdout, self.file):
            print(text, file=place, flush=True)

    def run(self, title: str, limit: float, *command: object):
        """One part: a Python command of at most `limit` seconds, with its output in the file."""
        self.say(f"\n## {title}\n\n$ python {' '.join(map(str, command))}")
        started, outcome = time.monotonic(), "done"
        try:
            subprocess.run(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                stdout=self.file,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=True,
            )
        except Exception as error:  # whatever it is, the other parts still run
            outcome = f"FAILED: {one_line(error, 300)}"
            self.failed.append(title)
        self.say(f"\n[{title}: {outcome}, {time.monotonic() - started:.0f} s]")


def main(argv: list[str] | None = None) -> int:
    parser = Parser("gpu.py", description=__doc__)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=ROOT / "runs/gpu", help="default runs/gpu"
    )
    options = parser.parse_args(argv)
    out = options.out.resolve()
    if out.exists() and any(out.iterdir()):
        parser.error(f"{out}: is not empty; choose another --out, or remove it")
    if not torch.cuda.is_available():
        parser.error("PyTorch finds no CUDA GPU here")
    report = Report(out / "report.txt")
    report.say(
        f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name()}"
    )
    report.run("tests", 240, "-m", "pytest", "-q", "-rs", "tests/test_cuda.py")
    report.run("benchmark", 300, "tools/bench.py", "--device", "cuda")
    run = ["train.py", "--device", "cuda", "--out", out / "run"]
    report.run("training", 240, *run, *ROADS, "--epochs", "4")
    report.run("resume", 120, *run, "--resume", "--epochs", "5")
    report.say(f"\nfailed: {', '.join(report.failed) or 'nothing'}")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
