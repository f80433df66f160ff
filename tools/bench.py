"""How fast this project trains and predicts on this machine, beside the network as it was
published.

    python -m tools.bench        print a table of predictions and one of training steps

The image is 375x1242, as KITTI's, with two classes. The weights are fresh; the time does not depend
on them. On a GPU (--device cuda) a step takes 8 images of 352x1216. `published` is the authors'
network: a border of 100, fp32, a plain convolution for fc6, memory as PyTorch asks for it, an
update that goes over the weights one tensor after the other. In it all layers learn; in ours two
blocks stay as they are, as in train.py for a road. `from files` is a step as train.py makes it:
PNGs read and decoded anew each time, random views of many sizes, put together and copied while the
last step is computed. Only checkpoints are left out; they take 2 % at most (support/saving.py).

Machines differ, and the same machine differs from minute to minute: what counts is the ratio. All
cases take turns, round by round, each in a process of its own, so that its memory is known. Each
share and ratio is the median over the rounds.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
import sys
import time
from argparse import SUPPRESS
from contextlib import suppress
from functools import partial
from itertools import count, repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data import find
from fcn import FCN8s, cross_entropy
from support.console import InputError, Parser
from support.datasets import synthetic as roads
from support.datasets.images import Reader
from support.device import (
    autocast_for,
    keep_memory,
    normalise,
    on_device,
    pick_device,
    prepare_prediction,
    recompute,
)
from support.inference.int8 import Largest, refuse_without_int8
from support.inference.predictor import predict_image
from support.training.batches import suited_workers, training_batches
from support.training.distributed import Ranks
from support.training.initialise import FROZEN_ROAD, freeze
from support.training.optimizer import sgd
from tools.bench_peers import installed, peer, write

ROUNDS = 7  # counted ones; one more before them is not, in which memory is fetched and algorithms are chosen
CASES = (
    "published",
    "fp32",
    "bf16",
    "bf16 --recompute",
    "bf16 from files",
)  # of training: after the published, ours
PICTURES = 24  # on the disk


def main():
    options = parse()
    if options.worker:
        return work(options)
    folder = TemporaryDirectory()
    try:
        device = pick_device(options.device)
        peers = installed() if options.peers else []
        options.file = peers and write(network("fp32"), Path(folder.name))
        with suppress(InputError):  # no such instructions: no such row
            refuse_without_int8(device)
            peers.append("int8")
    except InputError as error:
        print(f"bench.py: error: {error}", file=sys.stderr)
        return 2
    compiled = ["bf16 --compile"] * options.compile
    for task, cases in (
        ("prediction", ["published", "fp32", "bf16", *peers, *compiled]),
        ("training", [*CASES, *compiled]),
    ):
        if options.task in (None, task):
            print(measure([f"{task}: {case}" for case in cases], options), flush=True)
    return 0


def measure(cases: list[str], options) -> str:
    """The table of some cases. All of them hold their memory at the same time."""
    workers = {case: start(case, options) for case in ["ceiling", *cases]}
    about = {
        case: answer(worker, case) for case, worker in workers.items()
    }  # what it is, once it is set up
    rounds = []
    for i in range(ROUNDS + 1):
        rounds.append({case: ask(worker, case) for case, worker in workers.items()})
        print(f"\rround {i} of {ROUNDS}", end="", file=sys.stderr, flush=True)
    print("\r\033[K", end="", file=sys.stderr)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return table(cases, about, rounds[1:])


def table(cases: list[str], about: dict, rounds: list[dict]) -> str:
    ceilings = {kind: median(row["ceiling"][kind] for row in rounds) for kind in ("fp32", "bf16")}
    lines = [
        about["ceiling"]["machine"],
        f"median of {len(rounds)} rounds (fastest to slowest); ceiling: {about['ceiling']['what']}, "
        + ", ".join(f"{kind} {ceiling / 1e9:,.0f} GFLOP/s" for kind, ceiling in ceilings.items()),
        "",
        f"{'':30} {'seconds':^24} {'images/s':>8} {'GFLOP':>8} {'of ceiling':>11} {'memory':>9} {'against published':>18}",
    ]
    for case in cases:
        seconds = [row[case]["seconds"] for row in rounds]
        kind = "bf16" if "bf16" in case or "int8" in case else "fp32"
        flop, speed = (
            about[case]["flop"],
            median(about[case]["images"] / row[case]["seconds"] for row in rounds),
        )
        share = median(
            (flop or math.nan) / row[case]["seconds"] / row["ceiling"][kind] for row in rounds
        )
        work = f"{flop / 1e9:8.1f} {share:11.0%}" if flop else f"{'varies':>8} {'':11}"
        published = case.split(":")[0] + ": published"
        ratio = median(row[published]["seconds"] / row[case]["seconds"] for row in rounds)
        spread = f"{median(seconds):.4g} ({min(seconds):.4g} to {max(seconds):.4g})"
        lines.append(
            f"{case:30} {spread:^24} {speed:8.3g} {work} "
            f"{rounds[-1][case]['memory'] / 2**30:5.2f} GiB {ratio:17.2f}x"
        )
    return "\n".join(lines) + "\n"


# ---- the processes
# --------------------------------------------------------------------------------------------------


def start(case: str, options) -> subprocess.Popen:
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tools.bench",
            "--worker",
            case,
            "--device",
            options.device,
            "--file",
            str(options.file),
        ],
        cwd=Path(__file__).resolve().parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(worker: subprocess.Popen, case: str) -> dict:
    with suppress(BrokenPipeError):  # it has ended
        worker.stdin.write("\n")
        worker.stdin.flush()
    return answer(worker, case)


def answer(worker: subprocess.Popen, case: str) -> dict:
    line = worker.stdout.readline()
    if not line:
        print(
            f"bench.py: error: {case} has ended; what it said is above, or the memory is full",
            file=sys.stderr,
        )
        sys.exit(2)
    return json.loads(line)


def work(options):
    """One case: say what it is, then for each line that is read do it once, and say how long it
    took.
    """
    device = pick_device(options.device)
    if "published" in options.worker:
        torch.backends.cudnn.allow_tf32 = (
            True  # PyTorch's default; the other cases in fp32 have none
        )
    give_back = keep_memory(device) if "published" not in options.worker else lambda shape: None
    torch.manual_seed(0)
    task, _, case = options.worker.partition(": ")
    torch.backends.cudnn.benchmark = task == "training"  # as train.py and predict.py have it
    compute = peer(case, options.file) if case.startswith(("ONNX", "OpenVINO")) else None
    about, once = {
        "ceiling": ceiling,
        "prediction": partial(prediction, compute=compute),
        "training": training,
    }[task](case, device, give_back)
    print(json.dumps(about), flush=True)
    for i, _ in enumerate(sys.stdin):
        print(json.dumps({**once(), "memory": memory(device)}), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # room for the other cases
            if i == 0:
                torch.cuda.reset_peak_memory_stats()  # in which algorithms were tried


def timed(do, device) -> float:
    """Seconds that `do` takes; on a GPU a few in a row, as they come in a loop."""
    times = 1 if device.type == "cpu" else 10
    torch.cuda.synchronize() if device.type == "cuda" else None
    started = time.perf_counter()
    for _ in range(times):
        do()
    torch.cuda.synchronize() if device.type == "cuda" else None
    return (time.perf_counter() - started) / times


def memory(device) -> int:
    """The most memory that this process has had, in bytes: on a GPU its tensors, else all that is
    resident.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )


# ---- the cases: each gives what it is, and what to do once a round
# ---------------------------------------------------


def ceiling(case, device, give_back):
    """The best that this machine does with what the network mostly consists of: on a CPU two of its
    3x3 convolutions, on a GPU a large matrix product.
    """

    def rate(kind):
        with torch.no_grad():
            if device.type == "cuda":
                a = torch.randn(8192, 8192, device=device, dtype=kind)
                return 2 * 8192**3 / timed(lambda: a @ a, device)
            best = 0
            for channels, height, width in ((256, 94, 311), (512, 47, 156)):
                maps = torch.randn(1, channels, height, width, dtype=kind).to(
                    memory_format=torch.channels_last
                )
                weight = torch.randn(channels, channels, 3, 3, dtype=kind).to(
                    memory_format=torch.channels_last
                )
                flop = 2 * channels * channels * 9 * height * width
                best = max(
                    [best]
                    + [
                        flop / timed(lambda: F.conv2d(maps, weight, padding=1), device)
                        for _ in range(5)
                    ]
                )
            return best

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        cpuinfo = Path("/proc/cpuinfo")
        names = [
            line.partition(":")[2].strip()
            for line in (cpuinfo.read_text() if cpuinfo.exists() else "").splitlines()
            if line.startswith("model name")
        ]
        name = f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} threads"
    return (
        {
            "machine": f"{name}, {platform.system()}, Python {platform.python_version()}, PyTorch {torch.__version__}",
            "what": "8192 x 8192 matrix product"
            if device.type == "cuda"
            else "the faster of two 3x3 convolutions of VGG16",
        },
        lambda: {"fp32": rate(torch.float32), "bf16": rate(torch.bfloat16)},
    )


def network(case):
    """The network with two classes: ours, as train.py trains it, or as published."""
    net = FCN8s(2, pad=100 if case == "published" else 1, dropout=0.1)
    if case != "published":
        freeze(net.vgg, FROZEN_ROAD)
    else:
        net.vgg.fc6 = nn.Conv2d(512, 4096, kernel_size=7)
        net.vgg.fc7 = nn.Conv2d(4096, 4096, kernel_size=1)
    return net


def operations(case, shape, learning) -> int:
    """Floating point operations of a forward pass, or of that and the backward pass. Counted
    without doing them.
    """
    with torch.device("meta"):
        net, image = network(case), torch.empty(shape)
    with torch.set_grad_enabled(learning), FlopCounterMode(display=False) as counter:
        scores = net(image)
        if learning:
            scores.sum().backward()
    return counter.get_total_flops()


def prediction(case, device, give_back, compute=None):
    """A picture as bytes to its classes and confidences as bytes, as predict.py does it. `compute`:
    not with PyTorch.
    """
    picture = torch.randint(0, 256, (1, 375, 1242, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    net = network(case)
    if case == "published":
        net.to(device).eval()
        compute = lambda pixels: net(normalise(pixels).contiguous())  # noqa: E731
    elif not compute:
        amp = next((amp for amp in ("bf16", "int8") if amp in case), "off")
        with torch.no_grad(), Largest(net) as largest:
            if amp == "int8":
                net.eval()(normalise(picture))
        compute = prepare_prediction(net, amp, device, largest)
        compute = torch.compile(compute) if "compile" in case else compute

    def once():
        seen = predict_image(compute, picture.to(device), net.reach, sought=[1])
        seen.classes.cpu(), seen.confidences.cpu()
        give_back(picture.shape)

    return {"flop": operations(case, picture.shape, False), "images": 1}, lambda: {
        "seconds": timed(once, device)
    }


def training(case, device, give_back):
    """A step from bytes to new weights, with the parts of which train.py makes its steps."""
    shape = (1, 375, 1242) if device.type == "cpu" else (8, 352, 1216)
    images = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(0, 2, shape, dtype=torch.uint8)
    net = network(case).to(device).train()
    about = {
        "flop": 0 if "files" in case else operations(case, images.shape, True),
        "images": len(images),
    }
    parameters = [p for p in net.parameters() if p.requires_grad]
    if case == "published":
        optimizer = torch.optim.SGD(parameters, 1e-5, 0.9, foreach=False)

        def published():
            optimizer.zero_grad()
            cross_entropy(
                net(normalise(images.to(device)).contiguous()), labels.to(device).long()
            ).backward()
            optimizer.step()

        return about, lambda: {"seconds": timed(published, device)}

    if "recompute" in case:
        recompute(net.vgg)
    model = torch.compile(net) if "compile" in case else net
    optimizer = sgd(net, {"momentum": 0.9, "weight_decay": 5e-4})
    autocast = autocast_for("bf16" if "bf16" in case else "off", device)

    source = on_device(
        from_files(device, *shape) if "files" in case else repeat(pinned(images, labels, device)),
        device,
    )

    def once():
        inputs, truth = next(source)
        optimizer.zero_grad()
        with autocast():
            scores = model(inputs)
        cross_entropy(scores, truth).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        give_back(images.shape)

    def from_empty_queues():
        for _ in range(
            20 if "files" in case and device.type == "cuda" else 0
        ):  # what was loaded while others took their turn
            once()
        return {"seconds": timed(once, device)}

    return about, from_empty_queues


def pinned(images, labels, device):
    """A batch as `collate` leaves it for this device."""
    return tuple(
        tensor.pin_memory() if device.type == "cuda" else tensor for tensor in (images, labels)
    )


def from_files(device, batch, height, width):
    """Batches as train.py gets them, from pictures of 375x1242 that are drawn for it, with views of
    at most this size.
    """
    with TemporaryDirectory() as folder:
        roads.write(Path(folder), train=PICTURES, test=0, height=375, width=1242)
        data = find(folder)
        settings = {
            "seed": 0,
            "batch_size": batch,
            "augment": True,
            "colours": True,
            "flip": "yes",
            "scale": 1.0,
        }
        for epoch in count(1):
            yield from training_batches(
                Reader(data.read_label, cache_bytes=0),
                data.train + data.val,
                epoch,
                (height, width),
                settings,
                Ranks(),
                suited_workers("auto", device),
                device,
            )


def parse():
    parser = Parser("bench.py", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument(
        "--compile", action="store_true", help="also with torch.compile, which needs a C++ compiler"
    )
    parser.add_argument("--task", choices=("prediction", "training"), help="only this one")
    parser.add_argument(
        "--peers",
        action="store_true",
        help="also ONNX Runtime and OpenVINO, where they are installed",
    )
    parser.add_argument("--worker", help=SUPPRESS)
    parser.add_argument("--file", type=Path, help=SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
