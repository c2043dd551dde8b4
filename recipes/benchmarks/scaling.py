"""What a Focal-SAM step sends between processes, and how far that carries.

    accelerate launch --config_file accelerate_configs/multi_cpu.yaml recipes/benchmarks/scaling.py --image_size 70

Counts the collective operations of a step, be they called from Python or by DDP's reducer, in plain training and in
`--perturbation_scope local` and `global`. Times the step with one process at work while the others wait, with all at
work and no communication, and with communication; measures what an all-reduce takes, and compares the sum of both with
what was timed. From the counted bytes and the assumptions that it prints, it works out the throughput on many GPUs.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from accelerate import PartialState
from step_cost import CLASSES, COUNTS, HYPERPARAMETERS, RHO, VISION_MODELS, build_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ft_focalsam import FocalSAM
from ft_focalsam.tuning import TUNING_METHODS

PASSES = {"plain": 1, "local": 2, "global": 2}  # forward and backward passes of a step, by scope
WARM_UP = 6  # steps, in which the step makes sure that one backward pass is exact, and DDP lays out its buckets


class Collectives(TorchDispatchMode):
    """Notes (elements, bytes) of each collective operation on tensors."""

    def __init__(self, calls: list[tuple[int, int]]):
        super().__init__()
        self.calls = calls

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "c10d" and function is not torch.ops.c10d.barrier.default:
            tensors = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            self.calls.append((sum(t.numel() for t in tensors), sum(t.nbytes for t in tensors)))
        return function(*args, **(kwargs or {}))


@dataclass
class Link:
    """What an all-reduce of S bytes takes over a ring of N processes: 2 (N - 1) (latency + S / (N bandwidth))."""

    latency: float  # seconds
    bandwidth: float  # bytes a second

    @classmethod
    def measured(cls, repeats: int) -> "Link":
        """Of the processes of this run, from all-reduces of 4 KiB to 64 MiB."""
        sizes = [2**power for power in range(12, 27, 2)]
        tensors = [torch.zeros(size // 4) for size in sizes]
        times = [seconds(lambda tensor=tensor: dist.all_reduce(tensor), repeats) for tensor in tensors]
        slope = float(np.polyfit(sizes[-3:], times[-3:], 1)[0])
        processes = dist.get_world_size()
        return cls(times[0] / (2 * (processes - 1)), 2 * (processes - 1) / (processes * slope))

    def seconds(self, sizes: list[int], processes: int) -> float:
        return sum(2 * (processes - 1) * (self.latency + size / (processes * self.bandwidth)) for size in sizes)


@dataclass
class Row:
    """What was counted and timed of a way to tune, in a scope."""

    tuning: str
    scope: str
    trained: int  # parameters
    flops: int  # of a forward and backward pass over an image of 224 x 224
    sizes: list[int]  # bytes of each collective operation of a step
    alone: float  # seconds of a step with one process at work
    apart: float  # of a step with all at work, without communication
    together: float  # of a step with communication


def make_step(model: nn.Module, scope: str, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], object]:
    """One update of SGD on fixed images."""
    base = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)
    optimizer = FocalSAM(
        base,
        model,
        class_counts=COUNTS,
        rho=0.0 if scope == "plain" else RHO,
        perturbation_scope="global" if scope == "global" else "local",
        **HYPERPARAMETERS,
    )
    return lambda: optimizer.step(lambda: F.cross_entropy(model(images).logits, labels, reduction="none"), labels)


def seconds(step: Callable[[], object], repeats: int) -> float:
    """Median duration."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def pass_flops(name: str, tuning: str) -> int:
    """Floating-point operations of a forward and backward pass over an image of 224 x 224."""
    model = build_model(name, tuning, side=224).to("meta")
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, 224, 224, device="meta")).logits.sum().backward()
    return counter.get_total_flops()


def measure(tuning: str, args: argparse.Namespace) -> list[Row]:
    """A row for each scope; times are those of the first process."""
    state, rows, flops = PartialState(), [], pass_flops(args.model, tuning)
    generator = torch.Generator().manual_seed(state.process_index)
    images = torch.randn(args.batch_size, 3, args.image_size, args.image_size, generator=generator)
    labels = torch.randint(CLASSES, (args.batch_size,), generator=generator)
    for scope in PASSES:
        model = build_model(args.model, tuning, side=args.image_size)
        step = make_step(model, "plain" if scope == "plain" else "local", images, labels)
        for _ in range(WARM_UP):
            step()
        alone = 0.0
        for turn in range(state.num_processes):
            state.wait_for_everyone()
            if turn == state.process_index:
                alone = seconds(step, args.steps)
        state.wait_for_everyone()
        apart = seconds(step, args.steps)
        step, calls = make_step(DistributedDataParallel(model), scope, images, labels), []
        for _ in range(WARM_UP):
            step()
        state.wait_for_everyone()
        together = seconds(step, args.steps)
        with Collectives(calls):
            step()
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        rows.append(Row(tuning, scope, trained, flops, [size for _, size in calls], alone, apart, together))
    return rows


def print_table(head: list[str], rows: list[list[str]]) -> None:
    for cells in (head, ["---"] * len(head), *rows):
        print(f"| {' | '.join(cells)} |")


def print_measured(rows: list[Row], link: Link, processes: int) -> None:
    print(
        f"\nAn all-reduce over {processes} processes here: latency {link.latency * 1e6:.0f} us, bandwidth "
        f"{link.bandwidth / 1e9:.2f} GB/s. Seconds of a step:\n"
    )
    head = ["tuning", "step", "trained", "collectives", "MiB", "one process", "no communication", "+ link", "measured"]
    table = []
    for row in rows:
        times = (row.alone, row.apart, row.apart + link.seconds(row.sizes, processes), row.together)
        counted = [f"{row.trained:,}", str(len(row.sizes)), f"{sum(row.sizes) / 2**20:.2f}"]
        table.append([row.tuning, row.scope, *counted, *(f"{value:.3f}" for value in times)])
    print_table(head, table)


def print_projected(rows: list[Row], args: argparse.Namespace) -> None:
    link = Link(args.latency, args.bandwidth)
    print(
        f"\nImages of 224 x 224 a second, worked out for {args.gpu_batch_size} a GPU and step, "
        f"{args.flops / 1e12:.0f} TFLOP/s sustained\non each, a ring of {args.bandwidth / 1e9:g} GB/s and "
        f"{args.latency * 1e6:g} us, and no overlap of communication with computation:\n"
    )
    table = []
    for row in rows:
        compute = PASSES[row.scope] * row.flops * args.gpu_batch_size / args.flops
        times = [compute + link.seconds(row.sizes, gpus) for gpus in args.gpus]
        rates = [gpus * args.gpu_batch_size / each for gpus, each in zip(args.gpus, times, strict=True)]
        table.append([row.tuning, row.scope, *(f"{rate:,.0f}" for rate in rates), f"{compute / times[-1]:.0%}"])
    print_table(["tuning", "step", *(f"{gpus} GPU" for gpus in args.gpus), "efficiency"], table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=list(VISION_MODELS), default="vit_s14", help="with random weights")
    tunings = {"nargs": "+", "choices": sorted(TUNING_METHODS), "default": ["lora", "adaptformer", "full"]}
    parser.add_argument("--tunings", **tunings, help="what trains of it")
    parser.add_argument("--batch_size", type=int, default=4, help="images a process in the steps that are timed")
    parser.add_argument("--image_size", type=int, default=224, help="side of these images in pixels")
    parser.add_argument("--steps", type=int, default=7, help="timed steps of each kind")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="numbers to work out")
    parser.add_argument("--gpu_batch_size", type=int, default=128, help="images a GPU, to work out")
    parser.add_argument("--flops", type=float, default=4e14, help="operations a second that a GPU sustains")
    parser.add_argument("--bandwidth", type=float, default=2.5e10, help="bytes a second from one GPU to the next")
    parser.add_argument("--latency", type=float, default=2e-5, help="seconds from one GPU to the next")
    args = parser.parse_args()
    state = PartialState(cpu=True)
    if state.num_processes < 2:
        parser.error("one process sends nothing; start it with accelerate_configs/multi_cpu.yaml")
    torch.set_num_threads(1)
    rows = [row for tuning in args.tunings for row in measure(tuning, args)]
    link = Link.measured(args.steps)
    if state.is_main_process:
        print(f"{args.model}, {args.batch_size} images of {args.image_size} x {args.image_size} a process, SGD")
        print_measured(rows, link, state.num_processes)
        print_projected(rows, args)


if __name__ == "__main__":
    main()
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()
