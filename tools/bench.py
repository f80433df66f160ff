"""Time prediction and training on this machine, and compare with the network as published.

    python tools/bench.py [--device cuda] [--peers]

The image is 375 x 1242, like KITTI's, with two classes. On a GPU, a training step takes 8 images of
352 x 1216. The weights are random; the time does not depend on them.

    published          the authors' network: a border of 100, fp32, a plain convolution for fc6, and
                       otherwise PyTorch's defaults. All layers learn; ours has two frozen blocks,
                       as train.py does for a road
    from files         a step as in train.py: threads read, decode and augment PNGs, and copy them
                       during the previous step
    ONNX Runtime,      our network as written by export.py; with --peers, which needs the packages
    OpenVINO           onnx, onnxscript, onnxruntime and openvino
    ceiling            the speed of the dominant operation: conv3_2 on a CPU, a matrix product of
                       8192 x 8192 on a GPU

Speed varies between machines and from minute to minute, so compare the ratios. All cases take
turns, round by round, each in its own process, which also measures its memory. Shares and ratios
are medians over the rounds.
"""

from __future__ import annotations

import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import repeat
from multiprocessing import get_context
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
from support.inference.int8 import calibrate, require_int8, to_int8
from support.inference.predictor import Predictor, prepare
from support.training.batches import Batches
from support.training.distributed import Ranks
from support.training.initialise import freeze
from support.training.optimizer import sgd
from train import Config
from vgg import normalise

ROOT = Path(__file__).resolve().parents[1]
ROUNDS = 7  # after a warm-up round that allocates memory and chooses algorithms
STEP = {"cpu": (1, 375, 1242), "cuda": (8, 352, 1216)}  # of training: images, height, width
PEERS = ["ONNX Runtime fp32", "OpenVINO fp32", "OpenVINO bf16"]
TRAINING = ["published", "fp32", "bf16", "bf16 --recompute", "bf16 from files"]


def main():
    parser = Parser("bench.py", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=STEP, help="default %(default)s")
    parser.add_argument("--peers", action="store_true", help="also ONNX Runtime and OpenVINO")
    options = parser.parse_args()
    try:
        device = pick_device(options.device)
        machine = torch.cpu.get_capabilities().get("cpu_name")
        if device.type == "cuda":
            machine = torch.cuda.get_device_name(device)
        print(f"{machine}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}")
        prediction = ["published", "fp32", "bf16"]
        with TemporaryDirectory() as folder:
            if options.peers:
                write_network(Path(folder))
                prediction += PEERS
            with suppress(InputError):  # no int8 row without the CPU instructions
                require_int8(device)
                prediction.append("int8")
            for task, cases in (("prediction", prediction), ("training", TRAINING)):
                print(measure(task, cases, device, Path(folder)), flush=True)
    except InputError as error:
        parser.error(str(error))


def measure(task: str, cases: list[str], device: torch.device, folder: Path) -> str:
    """Time the cases, and return their table. All cases hold their memory at the same time."""
    pools = {case: ProcessPoolExecutor(1, get_context("spawn")) for case in cases}
    rounds = []
    for i in range(ROUNDS + 1):
        print(f"\rround {i} of {ROUNDS}", end="", file=sys.stderr, flush=True)
        row = {"fp32": ceiling(device, torch.float32), "bf16": ceiling(device, torch.bfloat16)}
        for case, pool in pools.items():
            row[task, case] = pool.submit(one_round, task, case, device, folder).result()
        rounds.append(row)
    print("\r\033[K", end="", file=sys.stderr)
    for pool in pools.values():
        pool.shutdown()
    shape = STEP[device.type if task == "training" else "cpu"]
    flops = {(task, case): operations(task, case, *shape) for case in cases}
    return table(flops, shape[0], rounds[1:])


def table(flops: dict[tuple[str, str], int], images: int, rounds: list[dict]) -> str:
    """The results as a text table.

    flops     operations of each (task, case), for `images` images
    rounds    for each round, (seconds, memory in bytes) of each (task, case), and the ceilings
              "fp32" and "bf16" in operations per second
    """
    ceilings = [
        f"{kind} {median(row[kind] for row in rounds) / 1e9:,.0f} GFLOP/s"
        for kind in ("fp32", "bf16")
    ]
    lines = [
        f"median of {len(rounds)} rounds (fastest to slowest); ceiling: {', '.join(ceilings)}",
        f"{'':30} {'seconds':^24} images/s  of ceiling     memory  against published",
    ]
    for (task, case), flop in flops.items():
        kind = "bf16" if "bf16" in case or "int8" in case else "fp32"
        seconds = [row[task, case][0] for row in rounds]
        share = median(flop / row[task, case][0] / row[kind] for row in rounds)
        share = "" if "files" in case else f"{share:.0%}"  # crops of many sizes
        ratio = median(row[task, "published"][0] / row[task, case][0] for row in rounds)
        spread = f"{median(seconds):.4g} ({min(seconds):.4g} to {max(seconds):.4g})"
        speed, memory = images / median(seconds), rounds[-1][task, case][1] / 2**30
        lines.append(
            f"{f'{task}: {case}':30} {spread:^24} {speed:8.3g} {share:>11} {memory:6.2f} GiB "
            f"{ratio:17.2f}x"
        )
    return "\n".join(lines) + "\n"


def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """The ceiling in operations per second, see above."""
    if device.type == "cuda":
        a = torch.randn(8192, 8192, device=device, dtype=dtype)
        return 2 * 8192**3 / timed(lambda: a @ a, device)
    x, w = (
        torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)
        for shape in ((1, 256, 94, 311), (256, 256, 3, 3))
    )
    seconds = min(timed(lambda: F.conv2d(x, w, padding=1), device) for _ in range(5))
    return 2 * w.numel() * 94 * 311 / seconds


def timed(do, device: torch.device) -> float:
    """Seconds that `do` takes; on a GPU the mean of ten calls in a row, after twenty that use up
    the images loaded during the turns of the other cases.
    """
    before, times = (20, 10) if device.type == "cuda" else (0, 1)
    wait = torch.get_device_module(device).synchronize
    for _ in range(before):
        do()
    wait()
    started = time.perf_counter()
    for _ in range(times):
        do()
    wait()
    return (time.perf_counter() - started) / times


def network(case: str) -> FCN8s:
    """The network with two classes, as train.py trains it for a road or as published."""
    net = FCN8s(2, pad=100 if case == "published" else 1, dropout=0.1)
    if case == "published":
        net.vgg.fc6 = nn.Conv2d(512, 4096, kernel_size=7)
        net.vgg.fc7 = nn.Conv2d(4096, 4096, kernel_size=1)
    else:
        freeze(net.vgg, 2)
    return net


def operations(task: str, case: str, images: int, height: int, width: int) -> int:
    """Floating point operations of a prediction, or of a step's forward and backward pass, counted
    on the meta device.
    """
    with torch.device("meta"):
        net, image = network(case), torch.empty(images, 3, height, width)
    with FlopCounterMode(display=False) as counter:
        scores = net(image)
        if task == "training":
            scores.sum().backward()
    return counter.get_total_flops()


# ---- in the process of one case ----


def one_round(task, case, device, folder) -> tuple[float, int]:
    """Seconds of a case, and the peak memory in bytes: of its tensors on a GPU, else of its process
    (on Linux).
    """
    seconds = timed(begin(task, case, device, folder), device)
    if device.type == "cpu":
        import resource  # not on Windows

        return seconds, 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()  # room for the other cases
    torch.cuda.reset_peak_memory_stats()  # the first round tried algorithms
    return seconds, peak


@cache
def begin(task, case, device, folder):
    """The function that runs a case once, made in the first round."""
    pick_device(str(device))
    torch.backends.cudnn.benchmark = task == "training"  # as in train.py and predict.py
    if case == "published":
        torch.backends.cudnn.allow_tf32 = True  # PyTorch's default
    return (training if task == "training" else prediction)(case, device, folder)


def prediction(case, device, folder):
    """A function that predicts a uint8 picture: uint8 labels and confidences, on the host."""
    picture = np.random.default_rng(0).integers(0, 256, (375, 1242, 3), np.uint8)
    if case == "published":
        net = network(case).to(device).eval()
        return as_published(lambda images: net(normalise(images).contiguous()), picture, device)
    tune_malloc(device)
    if case in PEERS:
        return as_published(peer(case, folder), picture, device)
    net, amp = network(case).eval(), "bf16" if case == "bf16" else "off"
    if case == "int8":
        amp = default_amp("auto", device)
        to_int8(net, calibrate(net, [picture]))
    predictor = Predictor(prepare(net, amp, device), amp)
    return lambda: predictor(picture, confidences_of=[1])


def as_published(compute, picture, device):
    """A prediction in plain PyTorch; `compute` goes from uint8 [N, 3, H, W] to scores."""

    @torch.no_grad()
    def predict():
        scores = compute(torch.from_numpy(picture).to(device).permute(2, 0, 1)[None])
        labels, road = scores.argmax(1).byte(), (255 * scores.softmax(1)[:, 1]).byte()
        return labels.cpu(), road.cpu()

    return predict


def training(case, device, folder):
    """A function that does a step, from uint8 images to updated weights."""
    n, height, width = STEP[device.type]
    images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(0, 2, (n, height, width), dtype=torch.uint8)
    net = network(case).to(device).train()
    if case == "published":
        optimizer = torch.optim.SGD(net.parameters(), 1e-5, 0.9)

        def step_as_published():
            optimizer.zero_grad()
            scores = net(normalise(images.to(device)).contiguous())
            cross_entropy(scores, labels.to(device).long()).backward()
            optimizer.step()

        return step_as_published
    trim_memory = tune_malloc(device)
    if "recompute" in case:
        checkpoint_activations(net.vgg)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = sgd(net, momentum=0.9, weight_decay=5e-4)
    autocast = autocast_for("bf16" if "bf16" in case else "off", device)
    if "files" in case:
        batches = file_batches(device, folder)
    else:
        pinned = device.type == "cuda"
        host = repeat(tuple(t.pin_memory() if pinned else t for t in (images, labels)))
        batches = on_device(host, device)

    def step():
        images, labels = next(batches)
        optimizer.zero_grad()
        with autocast():
            scores = net(images)
        cross_entropy(scores, labels).backward()
        nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        trim_memory(images.shape)

    return step


def file_batches(device, folder):
    """Batches as in train.py, from synthetic pictures of 375 x 1242."""
    n, *crop = STEP[device.type]
    config = Config(batch_size=n, crop=crop, resize=1.0, flip="yes")
    synthetic.write(folder / "roads", train=24, test=0, height=375, width=1242)
    data = find(folder / "roads")
    samples = 1000 * (data.train + data.val)  # an epoch that never ends
    reader, sizes = Reader(data.read_label, cache_bytes=0), [(375, 1242)] * len(samples)
    workers = default_workers(config.workers, device)
    return Batches(reader, samples, sizes, 1, config, Ranks(), workers, device)


# ---- peers: the same network as an ONNX file ----


def write_network(folder: Path):
    """Export our network with export.py."""
    net = network("fp32")
    net.classes = ["background", "road"]
    net.save(folder / "best.pt")
    command = [sys.executable, ROOT / "export.py", folder / "best.pt", folder / "network.onnx"]
    if subprocess.run(command).returncode:  # export.py has printed the reason
        sys.exit(2)


def peer(case: str, folder: Path):
    """A function from uint8 [N, 3, H, W] to scores, with as many threads as PyTorch."""
    file, threads = folder / "network.onnx", torch.get_num_threads()
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
