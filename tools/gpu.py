"""What one GPU can show, in one report: make gpu, or make gpu DATA=camvid

    python -m tools.gpu [--data DIR]     about eight minutes and as long as DIR takes; the report is runs/gpu/report.txt

It runs the tests of the CUDA code, times the choices that could not be made without a GPU, runs the
benchmark, trains on synthetic roads at full width and on the data set that is given, and kills a
run to resume it. Each part has a time limit; if one fails, the others still run. Exit status 1:
some part failed, as the end of the report says.
"""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fcn import FCN8s
from support.console import InputError, Parser, one_line
from support.device import pick_device
from tools.bench import timed

ROOT = Path(__file__).resolve().parents[1]
ROADS = [
    "--width",
    "1",
    "--fc-channels",
    "4096",
    "--lr",
    "5e-3",
]  # the demo's roads with VGG16 at its full size
SMALL = ["--width", "0.0625", "--fc-channels", "16", "--epochs", "2"]


class Report:
    """What is said goes to standard output and into a file."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file, self.failed = open(path, "w", encoding="utf-8"), []

    def say(self, text: str):
        for place in (sys.stdout, self.file):
            print(text, file=place, flush=True)

    def part(self, title: str, do):
        """Do one part under a title, and note whether it failed, and how long it took."""
        self.say(f"\n## {title}\n")
        started = time.monotonic()
        try:
            do()
            outcome = "done"
        except (OSError, RuntimeError, subprocess.SubprocessError, ValueError) as error:
            outcome = f"FAILED: {one_line(error, 300)}"
            self.failed.append(title)
        self.say(f"\n[{title}: {outcome}, {time.monotonic() - started:.0f} s]")

    def run(self, *command: str, limit: int):
        """Run a Python command; what it prints goes into the report. Raises SubprocessError if it
        fails or takes too long.
        """
        self.say("$ python " + " ".join(command))
        with tempfile.TemporaryFile(
            "w+", encoding="utf-8", errors="replace"
        ) as said:  # kept however it ends
            try:
                done = subprocess.run(
                    [sys.executable, *command],
                    cwd=ROOT,
                    stdout=said,
                    stderr=subprocess.STDOUT,
                    timeout=limit,
                )
            finally:
                said.seek(0)
                self.say(said.read()[-8000:].rstrip())
        done.check_returncode()


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    try:
        device = pick_device(options.device)
    except InputError as error:
        print(f"gpu.py: error: {error}", file=sys.stderr)
        return 2
    report = Report(options.out / "report.txt")
    report.say(
        f"PyTorch {torch.__version__}, "
        + (
            f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}, {torch.cuda.get_device_name(device)}"
            if device.type == "cuda"
            else f"no GPU: {device}"
        )
    )
    size = SMALL if options.small else ROADS
    machine = ["--device", options.device]
    report.part(
        "tests", lambda: report.run("-m", "pytest", "-q", "-rs", "tests/test_cuda.py", limit=120)
    )
    report.part("choices", lambda: report.say(choices(device, options.small)))
    if not options.small:
        report.part("benchmark", lambda: report.run("-m", "tools.bench", *machine, limit=180))
        report.part(
            "benchmark, compiled",
            lambda: report.run(
                "-m", "tools.bench", "--compile", "--task", "training", *machine, limit=240
            ),
        )
    report.part(
        "synthetic roads",
        lambda: trained(report, options.out / "roads", *size, *machine, limit=120),
    )
    if options.data:
        report.part(
            "data set",
            lambda: trained(
                report, options.out / "data", "--data", options.data, *machine, limit=400
            ),
        )
    report.part("kill and resume", lambda: killed(report, options.out, *size, *machine))
    report.say(f"\nfailed: {', '.join(report.failed) or 'nothing'}")
    return 1 if report.failed else 0


def trained(report: Report, out: Path, *options: str, limit: int):
    """A whole run, and from its log the speed of each epoch and how long the device waited for
    images.
    """
    report.run("train.py", *options, "--out", str(out), limit=limit)
    log, before = rows(out), 0
    for row in log:
        steps, before = int(row["step"]) - before, int(row["step"])
        seconds = float(row["seconds"]) - float(row["evaluation_seconds"])
        report.say(
            f"epoch {row['epoch']}: {steps / max(seconds, 1e-9):.1f} steps/s, {float(row['data_wait']):.1%} of the time "
            f"waiting for images, evaluation {row['evaluation_seconds']} s"
        )


def killed(report: Report, out: Path, *options: str):
    """Kill a run once it has a checkpoint, resume it, and compare its end with that of a run that
    nothing happened to.

    Raises RuntimeError if they differ by more than a twentieth of the loss.
    """
    for name in ("whole", "killed"):
        command = [
            sys.executable,
            "train.py",
            *options,
            "--epochs",
            "4",
            "--save-every",
            "100",
            "--out",
            str(out / name),
        ]
        with (
            open(out / f"{name}.txt", "w") as said,
            subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said) as process,
        ):
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                if name == "killed" and (out / name / "last.pt").exists():
                    break
                time.sleep(0.05)
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
        if name == "whole" and process.returncode:
            raise RuntimeError(
                f"the undisturbed run ended with status {process.returncode}: {out / 'whole.txt'}"
            )
    if process.returncode == 0:
        raise RuntimeError("the run was through before it could be killed")
    report.run("train.py", "--resume", "--out", str(out / "killed"), limit=120)
    for name in ("whole", "killed"):
        report.say(
            f"{name}: loss of each epoch {', '.join(row['train_loss'][:7] for row in rows(out / name))}"
        )
    whole, resumed = (float(rows(out / name)[-1]["train_loss"]) for name in ("whole", "killed"))
    if not abs(whole - resumed) <= 0.05 * whole:
        raise RuntimeError(
            "the resumed run did not end as the undisturbed one; the GPU's sums have no order, but this is more"
        )


def rows(out: Path) -> list[dict]:
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def choices(device: torch.device, small: bool) -> str:
    """Two ways to compute the same, forward and backward, timed side by side: which one is faster
    on this device?
    """
    torch.backends.cudnn.benchmark = True  # as in training
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    batch, channels, classes = (1, 16, 5) if small else (8, 4096, 150)
    pool5 = torch.randn(batch, 512, 11, 38, device=device, dtype=kind).contiguous(
        memory_format=torch.channels_last
    )
    net = FCN8s(2, fc_channels=channels).to(device, kind).train()
    scores = torch.randn(batch, classes, 44, 152, device=device, dtype=kind).contiguous(
        memory_format=torch.channels_last
    )
    with torch.device(device):
        upscore = FCN8s(classes, width=1 / 64, fc_channels=1).upscore8.weight.to(kind)
    each = (
        upscore.diagonal().permute(2, 0, 1)[:, None].contiguous()
    )  # [C, 1, 16, 16]: every class by itself

    def both_ways(compute, x):
        x = x.detach().requires_grad_()

        def once():
            y = compute(x)
            y.backward(y)

        once()  # algorithms are chosen
        return timed(once, device)

    lines = [f"{'':46} {'ms':>8}"]
    for what, compute, x in (
        ("fc6 as one matrix product (as it is)", net.vgg.fc6, pool5),
        ("fc6 as PyTorch's convolution", lambda x: nn.Conv2d.forward(net.vgg.fc6, x), pool5),
        (
            f"upscore8 of {classes} classes, C x C (as it is)",
            lambda x: F.conv_transpose2d(x, upscore, stride=8, padding=4),
            scores,
        ),
        (
            f"upscore8 of {classes} classes, each by itself",
            lambda x: F.conv_transpose2d(x, each, stride=8, padding=4, groups=classes),
            scores,
        ),
    ):
        lines.append(f"{what:46} {1000 * both_ways(compute, x):8.3f}")
    return "\n".join(lines)


def parse(argv: list[str] | None):
    parser = Parser("gpu.py", description=__doc__)
    parser.add_argument(
        "--data", metavar="DIR", help="a data set to train on as well, such as CamVid"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs/gpu"), help="default %(default)s"
    )
    parser.add_argument("--device", default="cuda", metavar="NAME", help="default %(default)s")
    parser.add_argument(
        "--small",
        action="store_true",
        help="everything in small, without the benchmark, on any device",
    )
    options = parser.parse_args(argv)
    options.out = options.out.resolve()
    if options.out.exists() and any(options.out.iterdir()):
        parser.error(f"{options.out}: is not empty; choose another --out, or remove it")
    return options


if __name__ == "__main__":
    sys.exit(main())
