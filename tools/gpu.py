"""Test and time the project on one GPU, in one report:

    python tools/gpu.py > report.txt 2>&1    15 minutes at most

It runs the tests that need CUDA, the benchmark, a training on synthetic roads at full width, and
the same run resumed for one more epoch. If a part fails, the others still run; the last line and
exit status report it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.console import Parser

ROOT = Path(__file__).resolve().parents[1]
RUN = f"train.py --device cuda --out runs/gpu-{time.strftime('%Y%m%d-%H%M%S')}"  # a new folder
# The time limit in seconds, and the arguments of python.
PARTS = {
    "tests": (240, "-m pytest -q -rs tests/test_cuda.py"),
    "benchmark": (300, "tools/bench.py --device cuda"),
    "training": (240, f"{RUN} --width 1 --fc-channels 4096 --lr 5e-3 --epochs 4"),
    "resume": (120, f"{RUN} --resume --epochs 5"),
}


def main() -> int:
    Parser("gpu.py", description=__doc__).parse_args()
    failed = []
    for title, (limit, command) in PARTS.items():
        print(f"\n## {title}\n\n$ python {command}", flush=True)
        started, outcome = time.monotonic(), "done"
        try:
            subprocess.run([sys.executable, *command.split()], cwd=ROOT, timeout=limit, check=True)
        except subprocess.SubprocessError as error:
            outcome = f"FAILED: {error}"
            failed.append(title)
        print(f"\n[{title}: {outcome}, {time.monotonic() - started:.0f} s]", flush=True)
    print(f"\nfailed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
