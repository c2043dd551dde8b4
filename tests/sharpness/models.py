"""Tiny models of the real architectures, and the update written naively, for the tests of the step."""

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


def _vit() -> nn.Module:
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_labels=NUM_CLASSES,
    )  # fmt: skip
    return ViTForImageClassification(config)


def _dinov2() -> nn.Module:
    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=8, patch_size=4,
        num_labels=NUM_CLASSES,
    )  # fmt: skip
    return Dinov2ForImageClassification(config)


def _clip() -> nn.Module:
    tower = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = CLIPConfig(
        vision_config={**tower, "image_size": 8, "patch_size": 4, "projection_dim": 8},
        text_config={**tower, "vocab_size": 32, "max_position_embeddings": 8, "projection_dim": 8},
        projection_dim=8, num_labels=NUM_CLASSES,
    )  # fmt: skip
    return CLIPForImageClassification(config)


BACKBONES = {"vit": (_vit, ["query", "value", "q_proj", "v_proj"]), "dinov2": (_dinov2, None), "clip": (_clip, None)}


def make_model(backbone: str, tuning: str, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A tiny model with random weights (LoRA's B too, so that every trained parameter has a gradient)."""
    torch.manual_seed(seed)
    model = BACKBONES[backbone][0]()
    if tuning == "lora":
        leaves = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
        targets = sorted(leaves & {"query", "value", "q_proj", "v_proj", "fc1"})
        model = get_peft_model(model, LoraConfig(r=4, target_modules=targets, modules_to_save=["classifier"]))
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
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    parameters = list(trained.values())

    def gradient(sample_weights) -> list[Tensor]:
        total = [torch.zeros_like(p) for p in parameters]
        for image, label, weight in zip(images, labels, sample_weights, strict=True):
            loss = losses_of(model, image[None], label[None])[0] * weight / len(images)
            for sum_, g in zip(total, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
                if g is not None:
                    sum_ += g
        return total

    c = [float(class_weights[label]) for label in labels]
    rest = gradient([1 - value for value in c])
    ascent = gradient(c)
    norm = sum(float((g.double() ** 2).sum()) for g in ascent) ** 0.5
    with torch.no_grad():
        before = [p.clone() for p in parameters]
        for p, g in zip(parameters, ascent, strict=True):
            p += rho * g / norm
    perturbed = gradient(c)
    with torch.no_grad():
        for p, value in zip(parameters, before, strict=True):
            p.copy_(value)
    return {name: a + b for name, a, b in zip(trained, rest, perturbed, strict=True)}


def relative_error(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """||actual - expected|| / ||expected|| over all tensors."""
    difference = sum(float(((actual[name] - expected[name]).double() ** 2).sum()) for name in expected)
    return (difference / sum(float((value.double() ** 2).sum()) for value in expected.values())) ** 0.5
