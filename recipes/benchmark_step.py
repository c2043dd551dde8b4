"""What a training step costs: plain, SAM, Focal-SAM as the paper computes it (three backward passes), and ours (two).

    python recipes/benchmark_step.py --model vit_b16 --tuning lora --batch_size 8 --steps 15

The four are interleaved in one process on the same random batch and random weights. Prints the median CPU time (CUDA
time on a GPU) of a step relative to plain training, and the peak memory of a step beyond the weights.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import Dinov2Config, Dinov2ForImageClassification, ViTConfig, ViTForImageClassification

from ft_focalsam import FocalSAM, class_weights

MODELS = {
    "vit_b16": lambda classes: ViTForImageClassification(ViTConfig(num_labels=classes)),
    "vit_s14": lambda classes: Dinov2ForImageClassification(
        Dinov2Config(hidden_size=384, num_attention_heads=6, patch_size=14, image_size=224, num_labels=classes)
    ),
}
CLASSES, RHO = 100, 0.05
COUNTS = [max(1, int(500 * 100 ** (-i / (CLASSES - 1)))) for i in range(CLASSES)]
HYPERPARAMETERS = {"gamma": 5.5, "lam": 0.8}


def build_model(name: str, tuning: str, device: str) -> nn.Module:
    """A model with random float32 weights."""
    torch.manual_seed(0)
    model = MODELS[name](CLASSES).to(device)
    if tuning == "lora":
        targets = ["q_proj", "v_proj", "query", "value"]
        present = [t for t in targets if any(n.endswith(t) for n, _ in model.named_modules())]
        model = get_peft_model(model, LoraConfig(r=8, target_modules=present, modules_to_save=["classifier"]))
        for parameter_name, parameter in model.named_parameters():
            if "lora_B" in parameter_name:
                nn.init.normal_(parameter, std=0.02)
    for parameter_name, parameter in model.named_parameters():
        if "mask_token" in parameter_name:
            parameter.requires_grad_(False)  # of masked pretraining, not used here
    return model.train()


def move(parameters: list[torch.Tensor], gradients: list[torch.Tensor], sign: float) -> None:
    """w += sign * rho * g / ||g||."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    with torch.no_grad():
        torch._foreach_add_(parameters, torch._foreach_mul(gradients, sign * RHO / norm))


def make_steps(model: nn.Module, losses: Callable, labels: torch.Tensor) -> dict[str, Callable[[], None]]:
    """One update each, by name; all with the same base optimizer."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
    weights = class_weights("focal_sam", COUNTS, HYPERPARAMETERS).to(labels.device, torch.float32)[labels]
    focal_sam = FocalSAM(optimizer, model, class_counts=COUNTS, rho=RHO, **HYPERPARAMETERS)

    def plain() -> None:
        optimizer.zero_grad()
        losses().mean().backward()
        optimizer.step()

    def sam() -> None:
        gradients = torch.autograd.grad(losses().mean(), parameters)
        move(parameters, gradients, 1)
        optimizer.zero_grad()
        losses().mean().backward()
        move(parameters, gradients, -1)
        optimizer.step()

    def three_backward() -> None:
        first = losses()
        rest = torch.autograd.grad(((1 - weights) * first).mean(), parameters, retain_graph=True)
        gradients = torch.autograd.grad((weights * first).mean(), parameters)
        move(parameters, gradients, 1)
        optimizer.zero_grad()
        (weights * losses()).mean().backward()
        move(parameters, gradients, -1)
        torch._foreach_add_([p.grad for p in parameters], rest)
        optimizer.step()

    return {
        "plain": plain,
        "SAM": sam,
        "Focal-SAM, three backwards": three_backward,
        "Focal-SAM, ours": lambda: focal_sam.step(losses, labels=labels),
    }


def seconds(step: Callable[[], None], device: str) -> float:
    """CPU time of one step, or its time on the GPU."""
    if device == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    step()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def peak_bytes(step: Callable[[], None], device: str) -> int:
    """Most memory that a step holds at once beyond what was held before it."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="vit_b16", help="architecture, with random weights")
    parser.add_argument("--tuning", choices=["lora", "full"], default="lora", help="what trains")
    parser.add_argument("--batch_size", type=int, default=8, help="images a step")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each kind")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the computation")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(args.model, args.tuning, device)
    images = torch.randn(args.batch_size, 3, 224, 224, device=device)
    labels = torch.randint(CLASSES, (args.batch_size,), device=device)

    def losses() -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            logits = model(pixel_values=images).logits
        return F.cross_entropy(logits.float(), labels, reduction="none")

    steps = make_steps(model, losses, labels)
    for step in steps.values():
        for _ in range(3):
            step()
    times = {name: [] for name in steps}
    for _ in range(args.steps):
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    memory = {name: peak_bytes(step, device) for name, step in steps.items()}
    median = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{args.model}, {args.tuning}, batch {args.batch_size}, {args.dtype}, {device}; medians of {args.steps} steps"
    )
    print(f"{'step':<28}{'seconds':>10}{'/ plain':>10}{'/ SAM':>10}{'peak MiB':>10}{'/ plain':>10}")
    for name, value in median.items():
        print(
            f"{name:<28}{value:>10.3f}{value / median['plain']:>10.2f}{value / median['SAM']:>10.2f}"
            f"{memory[name] / 2**20:>10.0f}{memory[name] / memory['plain']:>10.2f}"
        )
    print(f"three backwards / ours: {median['Focal-SAM, three backwards'] / median['Focal-SAM, ours']:.2f}")


if __name__ == "__main__":
    main()
