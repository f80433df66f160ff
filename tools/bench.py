"""How fast this project predicts and trains on this machine, beside the network as published.

    python tools/bench.py [--device cuda] [--task prediction] [--compile] [--peers]

The image is 375 x 1242, as KITTI's, with two classes. On a GPU, a training step takes 8 images of
352 x 1216. The weights are fresh; the time does not depend on them.

    published          the authors' network: a border of 100, fp32, a plain convolution for fc6, and
                       PyTorch's defaults for the rest. All layers learn; in ours two blocks are
                       frozen, as train.py does for a road
    from files         a step with all that train.py does for it: PNGs are read, decoded and
                       augmented in threads, and copied while the step before is computed
    ONNX Runtime,      our network as export.py writes it; with --peers
    OpenVINO

Machines differ, and the same machine differs from minute to minute; the ratios count. So all cases
take turns, round by round, each in a process of its own, which tells its memory. Shares and ratios
are medians over the rounds.
"""

from __future__ import annotations

import importlib.util
import json
import math
import platform
import subprocess
import sys
import time
from argparse import SUPPRESS
from contextlib import suppress
from itertools import count, repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data import find
from fcn import FCN8s, cross_entropy
from support.console import InputError, Parser
from support.datasets import synthetic
from support.datasets.images import Reader
from support.device import (
    autocast_for,
    checkpoint_activations,
    default_amp,
    default_workers,
    on_device,
    pick_device,
    tune_malloc,
)
from support.inference.predictor import Predictor, prepare
from support.training.batches import Batches
from support.training.distributed import Ranks
from support.training.initialise import freeze
from support.training.optimizer import sgd
from vgg import normalise

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 7  # that count; in one more before them memory is allocated and algorithms are chosen
PEERS = {"onnxruntime": ("ONNX Runtime fp32",), "openvino": ("OpenVINO fp32", "OpenVINO bf16")}
PREDICTION = ("published", "fp32", "bf16")
TRAINING = ("published", "fp32", "bf16", "bf16 --recompute", "bf16 from files")
PICTURES = 24  # on the disk


def main():
    parser = Parser("bench.py", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default %(default)s)")
    parser.add_argument("--task", choices=("prediction", "training"), help="only this one")
    parser.add_argument(
        "--compile", action="store_true", help="train with torch.compile too; needs a C++ compiler"
    )
    parser.add_argument(
        "--peers", action="store_true", help="ONNX Runtime and OpenVINO too, if installed"
    )
    parser.add_argument("--worker", help=SUPPRESS)
    parser.add_argument("--file", type=Path, help=SUPPRESS)
    options = parser.parse_args()
    try:
        device = pick_device(options.device)
        if options.worker:
            return work(options.worker, device, options.file)
        with TemporaryDirectory() as folder:
            options.file = Path(folder) / "network.onnx"
            prediction = [*PREDICTION, *(write_peers(options.file) if options.peers else [])]
            with suppress(InputError):  # without the instructions there is no such row
                from support.inference.int8 import require_int8

                require_int8(device)
                prediction.append("int8")
            training = [*TRAINING, *["bf16 --compile"] * options.compile]
            for task, cases in (("prediction", prediction), ("training", training)):
                if options.task in (None, task):
                    print(measure([f"{task}: {case}" for case in cases], options), flush=True)
    except InputError as error:
        parser.error(str(error))


def measure(cases: list[str], options) -> str:
    """The table of some cases. All of them hold their memory at the same time."""
    command = [sys.executable, __file__, "--device", options.device, "--file", options.file]
    workers = {
        case: subprocess.Popen(
            [*map(str, command), "--worker", case],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for case in ["ceiling", *cases]
    }
    about = {case: answer(worker, case) for case, worker in workers.items()}
    rounds = []
    for i in range(ROUNDS + 1):
        print(f"\rround {i} of {ROUNDS}", end="", file=sys.stderr, flush=True)
        row = {}
        for case, worker in workers.items():
            with suppress(BrokenPipeError):  # it has ended
                print(file=worker.stdin, flush=True)
            row[case] = answer(worker, case)
        rounds.append(row)
    print("\r\033[K", end="", file=sys.stderr)
    for worker in workers.values():
        worker.communicate()
    return table(cases, about, rounds[1:])


def answer(worker: subprocess.Popen, case: str) -> dict:
    line = worker.stdout.readline()
    if not line:
        raise InputError(f"{case} has ended; its error is above, or the memory is full")
    return json.loads(line)


def table(cases: list[str], about: dict, rounds: list[dict]) -> str:
    """The table that is printed.

    about     what each case is: "images" and "flop" of a step; of "ceiling", "machine" and "what"
    rounds    for each round and case "seconds" and "memory" in bytes; for "ceiling", operations a
              second in "fp32" and "bf16"
    """
    ceilings = [
        f"{kind} {median(row['ceiling'][kind] for row in rounds) / 1e9:,.0f} GFLOP/s"
        for kind in ("fp32", "bf16")
    ]
    lines = [
        about["ceiling"]["machine"],
        f"median of {len(rounds)} rounds (fastest to slowest)",
        f"ceiling: {about['ceiling']['what']}, {', '.join(ceilings)}",
        "",
        f"{'':30} {'seconds':^24} images/s  of ceiling     memory  against published",
    ]
    for case in cases:
        kind = "bf16" if "bf16" in case or "int8" in case else "fp32"
        published = f"{case.split(':')[0]}: published"
        seconds = [row[case]["seconds"] for row in rounds]
        speed = about[case]["images"] / median(seconds)
        share = median(
            about[case]["flop"] / row[case]["seconds"] / row["ceiling"][kind] for row in rounds
        )
        share = "" if math.isnan(share) else f"{share:.0%}"
        ratio = median(row[published]["seconds"] / row[case]["seconds"] for row in rounds)
        spread = f"{median(seconds):.4g} ({min(seconds):.4g} to {max(seconds):.4g})"
        memory = rounds[-1][case]["memory"] / 2**30
        lines.append(
            f"{case:30} {spread:^24} {speed:8.3g} {share:>11} {memory:6.2f} GiB {ratio:17.2f}x"
        )
    return "\n".join(lines) + "\n"


# ---- in the process of one case ----


def work(name: str, device: torch.device, file: Path):
    """One case: print what it is, then for each line that is read, do it and print its seconds."""
    task, _, case = name.partition(": ")
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = task == "training"  # as in train.py and predict.py
    if case == "published":
        torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    make = {"ceiling": ceiling, "prediction": prediction, "training": training}[task]
    about, once = make(case, device, file)
    print(json.dumps(about), flush=True)
    for i, _ in enumerate(sys.stdin):
        done = once()
        print(json.dumps({**done, "memory": memory(device)}), flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # room for the other cases
            if i == 0:
                torch.cuda.reset_peak_memory_stats()  # algorithms were tried in this round


def timed(do, device) -> float:
    """Seconds that `do` takes; on a GPU the mean of ten in a row, as they come in a loop."""
    times = 10 if device.type == "cuda" else 1
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(times):
        do()
    wait()
    return (time.perf_counter() - started) / times


def memory(device) -> int:
    """The peak memory of this process in bytes: of its tensors on a GPU, else of all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:  # Windows
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def ceiling(case, device, file):
    """The speed of the work that the network mostly consists of: on a CPU one of its 3x3
    convolutions, on a GPU a large matrix product.
    """

    @torch.no_grad()
    def rate(dtype):
        if device.type == "cuda":
            a = torch.randn(8192, 8192, device=device, dtype=dtype)
            return 2 * 8192**3 / timed(lambda: a @ a, device)
        x, w = (
            torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)
            for shape in ((1, 256, 94, 311), (256, 256, 3, 3))
        )
        seconds = min(timed(lambda: F.conv2d(x, w, padding=1), device) for _ in range(5))
        return 2 * w.numel() * 94 * 311 / seconds

    if device.type == "cuda":
        machine, what = torch.cuda.get_device_name(device), "8192 x 8192 matrix product"
    else:
        info = Path("/proc/cpuinfo")
        lines = info.read_text().splitlines() if info.exists() else []
        names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
        machine = f"{(names or [platform.processor()])[0]}, {torch.get_num_threads()} threads"
        what = "conv3_2"
    machine += f", {platform.system()}, Python {platform.python_version()}"
    about = {"machine": f"{machine}, PyTorch {torch.__version__}", "what": what}
    return about, lambda: {"fp32": rate(torch.float32), "bf16": rate(torch.bfloat16)}


def network(case: str) -> FCN8s:
    """The network with two classes: ours as train.py trains it for a road, or as published."""
    net = FCN8s(2, pad=100 if case == "published" else 1, dropout=0.1)
    if case == "published":
        net.vgg.fc6 = nn.Conv2d(512, 4096, kernel_size=7)
        net.vgg.fc7 = nn.Conv2d(4096, 4096, kernel_size=1)
    else:
        freeze(net.vgg, 2)
    return net


def operations(case: str, shape: tuple, learning: bool) -> int:
    """Floating point operations of a forward pass, or of a forward and a backward pass for images
    of this shape; counted on the meta device.
    """
    with torch.device("meta"):
        net, image = network(case), torch.empty(shape)
    with torch.set_grad_enabled(learning), FlopCounterMode(display=False) as counter:
        scores = net(image)
        if learning:
            scores.sum().backward()
    return counter.get_total_flops()


def prediction(case, device, file):
    """A picture as bytes to its labels and probabilities as bytes, in the host's memory."""
    picture = np.random.default_rng(0).integers(0, 256, (375, 1242, 3), np.uint8)
    trim_memory = tune_malloc(device) if case != "published" else lambda shape: None
    if case in ("published", *sum(PEERS.values(), ())):
        compute = published(device) if case == "published" else peer(case, file)

        @torch.no_grad()
        def predict():
            scores = compute(torch.from_numpy(picture).to(device).permute(2, 0, 1)[None])
            labels, road = scores.argmax(1).byte(), (255 * scores.softmax(1)[:, 1]).byte()
            return labels.cpu(), road.cpu()
    else:
        predictor = our_predictor(case, device, picture)

        def predict():
            return predictor(picture, probabilities=[1]).to_host()

    def once():
        predict()
        trim_memory(picture.shape)

    flop = operations(case, (1, 3, 375, 1242), learning=False)
    return {"flop": flop, "images": 1}, lambda: {"seconds": timed(once, device)}


def our_predictor(case: str, device, picture: np.ndarray) -> Predictor:
    """As predict.py makes it."""
    net, amp = network(case).eval(), "bf16" if "bf16" in case else "off"
    if case == "int8":
        from support.inference.int8 import calibrate, to_int8

        amp = default_amp("auto", device)
        to_int8(net, calibrate(net, [picture]))
    return Predictor(prepare(net, amp, device), amp)


def published(device):
    """From uint8 [N, 3, H, W] to scores, with the network as published."""
    net = network("published").to(device).eval()
    return lambda images: net(normalise(images).contiguous())


def training(case, device, file):
    """A step from bytes to new weights."""
    n, height, width = (8, 352, 1216) if device.type == "cuda" else (1, 375, 1242)
    images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(0, 2, (n, height, width), dtype=torch.uint8)
    net = network(case).to(device).train()
    about = {"flop": operations(case, tuple(images.shape), learning=True), "images": n}
    if case == "published":
        optimizer = torch.optim.SGD(net.parameters(), 1e-5, 0.9)

        def once():
            optimizer.zero_grad()
            scores = net(normalise(images.to(device)).contiguous())
            cross_entropy(scores, labels.to(device).long()).backward()
            optimizer.step()

        return about, lambda: {"seconds": timed(once, device)}

    from_files = "files" in case
    if from_files:
        about["flop"] = math.nan  # crops of many sizes
        batches = file_batches(device, n, height, width)
    else:
        pinned = device.type == "cuda"
        host = repeat(tuple(t.pin_memory() if pinned else t for t in (images, labels)))
        batches = on_device(host, device)
    once = our_step(case, net, device, batches)

    def one_round():
        for _ in range(20 if from_files and device.type == "cuda" else 0):
            once()  # uses up what was loaded while the other cases took their turns
        return {"seconds": timed(once, device)}

    return about, one_round


def our_step(case: str, net: FCN8s, device, batches):
    """A function that does one step, as train.py does it."""
    trim_memory = tune_malloc(device)
    if "recompute" in case:
        checkpoint_activations(net.vgg)
    model = torch.compile(net) if "compile" in case else net
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = sgd(net, momentum=0.9, weight_decay=5e-4)
    autocast = autocast_for("bf16" if "bf16" in case else "off", device)

    def once():
        images, labels = next(batches)
        optimizer.zero_grad()
        with autocast():
            scores = model(images)
        cross_entropy(scores, labels).backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        trim_memory(images.shape)

    return once


def file_batches(device, batch: int, height: int, width: int):
    """Batches as train.py makes them, from pictures of 375 x 1242 that are drawn for it."""
    from train import Config

    config = Config(batch_size=batch, crop=(height, width), resize=1.0, flip="yes")
    workers = default_workers(config.workers, device)
    with TemporaryDirectory() as folder:
        synthetic.write(Path(folder), train=PICTURES, test=0, height=375, width=1242)
        data = find(folder)
        # Repeated: the threads start anew with each epoch, which would be a few batches long.
        samples = 100 * (data.train + data.val)
        reader, sizes = Reader(data.read_label, cache_bytes=0), [(375, 1242)] * len(samples)
        for epoch in count(1):
            yield from Batches(reader, samples, sizes, epoch, config, Ranks(), workers, device)


# ---- peers: the same network as an ONNX file ----


def write_peers(file: Path) -> list[str]:
    """Export our network to `file`, as a user does it. Returns the cases that can run here.

    Raises InputError if packages are missing.
    """
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise InputError("--peers: first pip install onnx onnxscript onnxruntime openvino")
    net = network("fp32")
    net.classes = ["background", "road"]
    net.save(file.with_name("best.pt"))
    command = [sys.executable, ROOT / "export.py", file.with_name("best.pt"), file]
    done = subprocess.run(command, text=True, capture_output=True)
    if done.returncode:
        raise InputError(f"--peers: {done.stderr.strip()}")
    return [
        name for package in PEERS if importlib.util.find_spec(package) for name in PEERS[package]
    ]


def peer(case: str, file: Path):
    """From uint8 [N, 3, H, W] to scores, with as many threads as PyTorch has."""
    threads = torch.get_num_threads()
    if "OpenVINO" in case:
        import openvino

        how = {
            "INFERENCE_PRECISION_HINT": "bf16" if "bf16" in case else "f32",
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = openvino.Core().compile_model(file, "CPU", how)
        return lambda images: torch.from_numpy(np.array(model(images.contiguous().numpy())[0]))
    import onnxruntime

    how = onnxruntime.SessionOptions()
    how.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), how, providers=["CPUExecutionProvider"])

    def compute(images):
        return torch.from_numpy(session.run(None, {"image": images.contiguous().numpy()})[0])

    return compute


if __name__ == "__main__":
    main()
