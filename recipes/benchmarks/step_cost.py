"""What a training step costs: plain, SAM, Focal-SAM as the paper computes it (three backward passes), and ours (two).

    python recipes/benchmarks/step_cost.py --model vit_b16 --tuning lora --batch_size 8 --steps 15

The kinds of step are interleaved in one process on the same random batch and random weights. Prints the median CPU
time (CUDA time on a GPU) of a step relative to plain training, images per second, the peak memory of a step beyond the
weights, and, for plain training, the share of the device's measured matrix rate. Other kinds: other choices of the
perturbation, ImbSAM and CC-SAM.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from peer_steps import PEERS, make_peer_step, refuse_missing
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from ft_focalsam import FocalSAM, LongTailClassifier, LongTailClassifierConfig, TuningOptions, apply_tuning
from ft_focalsam.models import ATTENTION_IMPLEMENTATIONS, choose_family, set_attention
from ft_focalsam.models.backbones.timm_models import create_timm
from ft_focalsam.sharpness import EVALUATIONS, ClassConditionalSAM, SharpnessStep, class_weights
from ft_focalsam.sharpness.directions import make_direction
from ft_focalsam.sharpness.evaluations import Run
from ft_focalsam.tuning import TUNING_METHODS, describe_parameters

CLASSES, RHO = 100, 0.05
COUNTS = [max(1, int(500 * 100 ** (-i / (CLASSES - 1)))) for i in range(CLASSES)]
HYPERPARAMETERS = {"gamma": 5.5, "lam": 0.8}
TRAINER_HYPERPARAMETERS = {"focal_gamma": HYPERPARAMETERS["gamma"], "focal_lambda": HYPERPARAMETERS["lam"]}
VIT_S = {"hidden_size": 384, "num_attention_heads": 6}
# name -> family, side of an image in pixels -> vision model
VISION_MODELS = {
    "vit_b16": ("vit", lambda side: ViTModel(ViTConfig(image_size=side), add_pooling_layer=False)),
    "vit_s14": ("dinov2", lambda side: Dinov2Model(Dinov2Config(**VIT_S, patch_size=14, image_size=side))),
    "timm_vit_s16": (
        "timm:timm",
        lambda side: create_timm("vit_small_patch16_224", pretrained=False, img_size=side),
    ),
}
# Other choices of Focal-SAM's perturbation
CHOICES = {
    "no_reuse": {"reuse_prefix": False},
    "norms": {"perturb": "norms"},
    "merged": {"perturb": "merged"},
    "friendly": {"direction": "friendly"},
    "momentum": {"direction": "momentum", "evaluation": "one_pass"},
    "gaussian": {"direction": "gaussian", "evaluation": "one_pass"},
}
KINDS = ["plain", "sam", "three_backward", "focal_sam", *CHOICES, "imbsam", "cc_sam"]
LABELS = {
    "sam": "SAM",
    "no_reuse": "Focal-SAM, all twice",
    "momentum": "momentum, one pass",
    "gaussian": "gaussian, one pass",
    "imbsam": "ImbSAM, 10 % rare",
    "three_backward": "Focal-SAM, 3 backwards",
    "focal_sam": "Focal-SAM, ours",
    "cc_sam": "CC-SAM",
    **PEERS,
}


def build_model(
    name: str, tuning: str, *, side: int, upper_blocks: int | None = None, attention: str | None = None
) -> nn.Module:
    """A model with random float32 weights, for images of a side in pixels, tuned in its upper blocks if given."""
    torch.manual_seed(0)
    if name == "resnet32":
        model = LongTailClassifier.from_backbone("scratch:resnet32", list(map(str, range(CLASSES))), head="linear")
        apply_tuning(model, "full")
        return model.train()
    family, build = VISION_MODELS[name]
    backbone = build(side)
    config = LongTailClassifierConfig(
        backbone_family=family,
        feature_size=choose_family(family).feature_size(backbone),
        id2label={i: str(i) for i in range(CLASSES)},
    )
    model = LongTailClassifier(config, backbone)
    if attention is not None:
        set_attention(model, attention)
    options = TuningOptions()
    if upper_blocks is not None:
        depth = len(model.family.blocks(model.backbone))
        options = TuningOptions(last_blocks=upper_blocks, tuned_layers=list(range(depth - upper_blocks, depth)))
    apply_tuning(model, tuning, options)
    for parameter_name, parameter in model.named_parameters():
        if "mask_token" in parameter_name:
            parameter.requires_grad_(False)  # of masked pretraining, not used here
        elif parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.02)  # what starts at zero, so that every gradient is there from the start
    return model.train()


def move(parameters: list[torch.Tensor], gradients: list[torch.Tensor], sign: float) -> None:
    """w += sign * rho * g / ||g||."""
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    with torch.no_grad():
        torch._foreach_add_(parameters, torch._foreach_mul(gradients, sign * RHO / norm))


def make_steps(
    model: nn.Module, run: Callable, labels: torch.Tensor, *, counts: Sequence[int] = COUNTS
) -> dict[str, Callable[[], None]]:
    """One update each, by name; all with the same base optimizer. `run(index)` gives logits."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)
    weights = class_weights("focal_sam", counts, HYPERPARAMETERS).to(labels.device, torch.float32)[labels]
    cc_sam = ClassConditionalSAM(model, class_counts=counts, rho=RHO)

    def losses(index: torch.Tensor | slice = slice(None)) -> torch.Tensor:
        return F.cross_entropy(run(index), labels[index], reduction="none")

    def ours(direction: str = "gradient", **choices) -> Callable[[], None]:
        choices["direction"] = make_direction(direction)
        focal_sam = FocalSAM(optimizer, model, class_counts=counts, rho=RHO, **choices, **HYPERPARAMETERS)
        return lambda: focal_sam.step(losses, labels=labels)

    def imbsam() -> Callable[[], None]:
        """With a tenth of the images in classes that are perturbed."""
        rare = (torch.arange(len(labels), device=labels.device) < max(1, len(labels) // 10)).long()
        evaluation = EVALUATIONS["two_point"](SharpnessStep(model, torch.tensor([0.0, 1.0]), rho=RHO))

        def forward(rows: torch.Tensor | None = None) -> torch.Tensor:
            return evaluation.step.reduce(losses(slice(None) if rows is None else rows))

        def step() -> None:
            optimizer.zero_grad()
            evaluation.micro_batch(rare, Run(lambda: forward().backward(), forward, takes_rows=True), number=0)
            optimizer.step()

        return step

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

    def class_conditional() -> None:
        optimizer.zero_grad()
        with cc_sam.watch():
            values = cc_sam.losses(run(slice(None)), labels, lambda z: F.cross_entropy(z, labels, reduction="none"))
        values.mean().backward()
        optimizer.step()

    return {
        "plain": plain,
        "sam": sam,
        "three_backward": three_backward,
        "focal_sam": ours(),
        **{name: ours(**choices) for name, choices in CHOICES.items()},
        "imbsam": imbsam(),
        "cc_sam": class_conditional,
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


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """Floating-point operations per second of a large matrix product."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    times = [seconds(lambda: a @ b, device) for _ in range(12)]
    return 2 * size**3 / statistics.median(times[2:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=[*VISION_MODELS, "resnet32"], default="vit_b16", help="with random weights")
    parser.add_argument("--tuning", choices=sorted(TUNING_METHODS), default="lora", help="what trains of a ViT")
    parser.add_argument("--upper_blocks", type=int, help="how many blocks of a ViT are tuned, the last ones; all")
    parser.add_argument("--batch_size", type=int, default=8, help="images a step")
    parser.add_argument("--image_size", type=int, help="side of the images in pixels; by default 224, ResNet's 32")
    parser.add_argument("--steps", type=int, default=15, help="timed steps of each kind")
    parser.add_argument(
        "--kinds", nargs="+", choices=[*KINDS, *PEERS], default=KINDS[:4], help="kinds of step, beside plain"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the computation")
    parser.add_argument(
        "--attn_implementation", choices=ATTENTION_IMPLEMENTATIONS, help="of a ViT of transformers; sdpa by default"
    )
    parser.add_argument("--compile", action="store_true", help="time the model as torch.compile makes it")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--profile", action="store_true", help="list what the operators of plain and our steps take")
    args = parser.parse_args()
    peers = [kind for kind in args.kinds if kind in PEERS]
    for reason in filter(None, map(refuse_missing, peers)):
        parser.error(reason)
    if args.compile and peers:
        parser.error(f"--compile compiles the model of the other steps alone; leave out --compile or {peers[0]}.")
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    side = args.image_size or (32 if args.model == "resnet32" else 224)
    choices = {"upper_blocks": args.upper_blocks, "attention": args.attn_implementation}
    model = build_model(args.model, args.tuning, side=side, **choices)
    model.to(device)
    images = torch.randn(args.batch_size, 3, side, side, device=device)
    labels = torch.randint(CLASSES, (args.batch_size,), device=device)
    is_half = args.dtype == "bfloat16"
    called = model

    def run(index: torch.Tensor | slice) -> torch.Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=is_half):
            logits = called(pixel_values=images[index]).logits
        return logits.float()

    steps = {k: step for k, step in make_steps(model, run, labels).items() if k == "plain" or k in args.kinds}
    inputs, settings = {"pixel_values": images, "labels": labels}, {"rho": RHO, **TRAINER_HYPERPARAMETERS}
    for kind in peers:
        steps[kind] = make_peer_step(kind, model, run, inputs, counts=COUNTS, settings=settings, is_half=is_half)
    with FlopCounterMode(display=False) as counter:
        steps["plain"]()
    if args.compile:  # only now, for what is compiled hides its operations from the counter
        called = torch.compile(model)
    for step in steps.values():
        for _ in range(3):
            step()
    times = {kind: [] for kind in steps}
    for _ in range(args.steps):
        for kind, step in steps.items():
            times[kind].append(seconds(step, device))
    memory = {kind: peak_bytes(step, device) for kind, step in steps.items()}
    median = {kind: statistics.median(values) for kind, values in times.items()}
    tuning = "full" if args.model == "resnet32" else args.tuning
    how = f"{args.dtype}, {device}" + (", compiled" if args.compile else "")
    print(f"{args.model}, {tuning}, batch {args.batch_size}, {how}; medians of {args.steps} steps")
    print(describe_parameters(model))
    print(f"{'step':<24}{'seconds':>9}{'/ plain':>9}{'/ SAM':>9}{'images/s':>10}{'peak MiB':>10}{'/ plain':>9}")
    for kind, value in median.items():
        to_sam = f"{value / median['sam']:>9.2f}" if "sam" in median else f"{'':>9}"
        print(
            f"{LABELS.get(kind, kind):<24}{value:>9.3f}{value / median['plain']:>9.2f}{to_sam}"
            f"{args.batch_size / value:>10.1f}{memory[kind] / 2**20:>10.0f}{memory[kind] / memory['plain']:>9.2f}"
        )
    if {"three_backward", "focal_sam"} <= set(median):
        print(f"three backwards / ours: {median['three_backward'] / median['focal_sam']:.2f}")
    rate = counter.get_total_flops() / median["plain"]
    measured = matrix_rate(torch.bfloat16 if is_half else torch.float32, device)
    print(f"plain: {rate / 1e9:.1f} GFLOP/s, {rate / measured:.0%} of the {measured / 1e9:.0f} of a matrix product")
    for kind in ("plain", "focal_sam") if args.profile else ():
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(5):
                steps[kind]()
        print(f"\n{LABELS.get(kind, kind)}, 5 steps")
        print(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=20, max_name_column_width=45))


if __name__ == "__main__":
    main()
