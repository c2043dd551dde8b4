"""Tiny models of the real architectures, and the update written naively, for the tests of the step."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

NUM_CLASSES = 5
COUNTS = [100, 40, 20, 8, 2]


def _vit(**changes) -> nn.Module:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_labels=NUM_CLASSES, **changes,
    )  # fmt: skip
    return ViTForImageClassification(config)


def _dinov2(**changes) -> nn.Module:
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=8, patch_size=4,
        num_labels=NUM_CLASSES, **changes,
    )  # fmt: skip
    return Dinov2ForImageClassification(config)


def _clip(**changes) -> nn.Module:
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPConfig(
        vision_config={**tower, "image_size": 8, "patch_size": 4, "projection_dim": 8},
        text_config={**tower, "vocab_size": 32, "max_position_embeddings": 8, "projection_dim": 8},
        projection_dim=8, num_labels=NUM_CLASSES, **changes,
    )  # fmt: skip
    return CLIPForImageClassification(config)


BACKBONES = {"vit": (_vit, ["query", "value", "q_proj", "v_proj"]), "dinov2": (_dinov2, None), "clip": (_clip, None)}


def make_model(
    backbone: str,
    tuning: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    lora_dropout: float = 0.0,
    **config,
) -> nn.Module:
    """A tiny model with random weights (LoRA's B too, so that every trained parameter has a gradient).

    Args:
        config: Changes of the architecture's configuration, as `drop_path_rate=0.3`.
    """
    torch.manual_seed(seed)
    model = BACKBONES[backbone][0](**config)
    if tuning == "lora":
        leaves = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        targets = sorted(leaves & {"query", "value", "q_proj", "v_proj", "fc1"})
        lora = LoraConfig(r=4, target_modules=targets, lora_dropout=lora_dropout, modules_to_save=["classifier"])
        model = get_peft_model(model, lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return model.to(dtype)


def make_batch(size: int = 6, *, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=generator, dtype=dtype)
    return images, torch.randint(NUM_CLASSES, (size,), generator=generator)


def losses_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(model(pixel_values=images).logits, labels, reduction="none")


def naive_gradient(model: nn.Module, images: Tensor, labels: Tensor, class_weights: Tensor, rho: float) -> dict:
    """The paper's algorithm with three backward passes, sample by sample: name -> gradient for the base optimizer."""
    parts = [
        (partial(losses_of, model, image[None], label[None]), class_weights[label][None])
        for image, label in zip(images, labels, strict=True)
    ]
    parameters = dict(model.named_parameters())
    found = naive_update(model, parts, rho)
    return {name: torch.zeros_like(parameters[name]) if g is None else g for name, g in found.items()}


def naive_update(
    model: nn.Module, parts: list[tuple[Callable[[], Tensor], Tensor]], rho: float, *, adaptive: bool = False
) -> dict[str, Tensor | None]:
    """The paper's algorithm with three backward passes over a batch given in parts.

    Args:
        parts: For each part of the batch (one sample, say) a function that runs the model and returns the losses of
            its samples, shape (n,), and their weights c(n), shape (n,).
        adaptive: ASAM's radius (arXiv 2102.11600): epsilon = rho T^2 g / ||T g|| with T = |w|.

    Returns:
        Name of each trained parameter -> gradient for the base optimizer, None where none arrived.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    size = sum(len(weights) for _, weights in parts)
    rest = _naive_gradient_of(trained, [(losses, (1 - weights) / size) for losses, weights in parts])
    weighted = [(losses, weights / size) for losses, weights in parts]
    ascent = {name: g for name, g in _naive_gradient_of(trained, weighted).items() if g is not None}
    before = {name: p.detach().clone() for name, p in trained.items()}
    scale = {name: before[name].abs() if adaptive else torch.ones_like(before[name]) for name in trained}
    norm = sum(float(((scale[name] * g).double() ** 2).sum()) for name, g in ascent.items()) ** 0.5
    with torch.no_grad():
        for name, g in ascent.items():
            trained[name] += rho * scale[name] ** 2 * g / norm if norm > 0 else 0
    perturbed = _naive_gradient_of(trained, weighted)
    with torch.no_grad():
        for name, p in trained.items():
            p.copy_(before[name])
    return {name: None if rest[name] is None else rest[name] + perturbed[name] for name in trained}


def _naive_gradient_of(parameters: dict[str, Tensor], parts: list) -> dict[str, Tensor | None]:
    """Gradient of the sum of weights times losses over (losses, weights) of `parts`, one backward pass a part."""
    total = dict.fromkeys(parameters)
    for losses, weights in parts:
        found = torch.autograd.grad(losses() @ weights, list(parameters.values()), allow_unused=True)
        for name, g in zip(parameters, found, strict=True):
            if g is not None:
                total[name] = g if total[name] is None else total[name] + g
    return total


def relative_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """||actual - expected|| / ||expected|| over all tensors."""
    difference = sum(float(((actual[name] - expected[name]).double() ** 2).sum()) for name in expected)
    return (difference / sum(float((value.double() ** 2).sum()) for value in expected.values())) ** 0.5


def run_step(
    step,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    micro_batches: int = 1,
    *,
    losses_of: Callable[[nn.Module, Tensor, Tensor], Tensor] = losses_of,
) -> dict[str, Tensor]:
    """Both passes of one update; returns the gradient left for the base optimizer, by name."""
    model.zero_grad()
    parts = list(zip(images.chunk(micro_batches), labels.chunk(micro_batches), strict=True))
    step.start()
    for x, y in parts:
        step.verify_gradients(y, lambda x=x, y=y: step.reduce(losses_of(model, x, y), count=len(labels)).backward())
        with step.first_pass(y):
            step.reduce(losses_of(model, x, y), count=len(labels)).backward()
    step.ascend()
    for index, (x, y) in enumerate(parts):
        with step.second_pass(index):
            step.reduce(losses_of(model, x, y), count=len(labels)).backward()
    return gradients_of(model)


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """`p.grad` of each trained parameter by its name, 0 where there is none."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}
