"""Sums of low-rank updates: w_1 s_1 B_1 A_1 + w_2 s_2 B_2 A_2 + ... as one B A.

LoRA's factors do not average: the mean of B A is not the product of the means of B and A. Side by side they do:
[w_1 s_1 B_1, w_2 s_2 B_2] times A_1 on top of A_2 is the weighted sum, of the sum of the ranks.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.tuners.lora.layer import Conv2d, Linear, LoraLayer
from torch import Tensor, nn

ADAPTER = "default"  # the name that peft gives the only adapter
UNCHANGED_BASE = (
    True,
    False,
    "gaussian",
)  # values of init_lora_weights that leave the layer's own weights as they are


def is_plain_lora(model: nn.Module) -> bool:
    """Whether a module is peft's LoRA, and each of its updates of a weight W is s B A and nothing else."""
    if not isinstance(model, PeftModel) or model.active_peft_config.peft_type.value != "LORA":
        return False
    config = model.active_peft_config
    is_plain = config.init_lora_weights in UNCHANGED_BASE and not (config.use_dora or config.lora_bias)
    return is_plain and all(type(layer) in (Linear, Conv2d) for layer in lora_layers(model).values())


def lora_layers(model: nn.Module) -> dict[str, LoraLayer]:
    """The layers that have a LoRA update, by their names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def add_updates(factors: Sequence[tuple[Tensor, Tensor]], scales: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Factors A and B of sum_k scale_k B_k A_k, in float64.

    Args:
        factors (sequence of (A, B)): A of shape (r, in, ...) and B of shape (out, r, ...), as peft has them.
        scales (sequence of `float`): One an update: its weight in the average times LoRA's own scale.

    Returns:
        A of shape (R, in, ...) and B of shape (out, R, ...), with R the sum of the ranks. Updates that are 0 and
        scales of 0 add nothing to it, and where all A are the same, B is the sum of the scaled B, of their rank.
    """
    pairs = [(a.double(), scale * b.double()) for (a, b), scale in zip(factors, scales, strict=True)]
    kept = [(a, b) for a, b in pairs if b.any()] or pairs[:1]
    first = kept[0][0]
    if all(a.shape == first.shape and torch.equal(a, first) for a, _ in kept):
        return first, torch.stack([b for _, b in kept]).sum(0)
    return torch.cat([a for a, _ in kept], dim=0), torch.cat([b for _, b in kept], dim=1)


def truncate(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The nearest update of at most a rank (Eckart and Young), by a singular value decomposition of B A.

    Args:
        a (`Tensor` of shape (R, in, ...)), b (`Tensor` of shape (out, R, ...)): In float64.
        rank (`int`, >= 1): r.

    Returns:
        A of shape (r, in, ...), B of shape (out, r, ...), r no larger than B A needs, and the Frobenius norm of what
        is left out over that of B A.
    """
    q_b, r_b = torch.linalg.qr(b.flatten(1))
    q_a, r_a = torch.linalg.qr(a.flatten(1).T)
    u, s, v = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept = min(rank, len(s))
    root = s[:kept].sqrt()
    new_b, new_a = (q_b @ u[:, :kept]) * root, root[:, None] * (v[:kept] @ q_a.T)
    total = float(s.norm())
    error = float(s[kept:].norm()) / total if total else 0.0
    return new_a.reshape(kept, *a.shape[1:]), new_b.reshape(b.shape[0], kept, *b.shape[2:]), error


def set_updates(model: PeftModel, updates: dict[LoraLayer, tuple[Tensor, Tensor]]) -> None:
    """Give LoRA layers other factors, of one rank R for all: the largest, with zeros where a layer has less. LoRA's
    scale becomes 1, in the layers and in the configuration that is saved."""
    rank = max(a.shape[0] for a, _ in updates.values())
    for layer, (a, b) in updates.items():
        a = F.pad(a.flatten(1), (0, 0, 0, rank - a.shape[0])).reshape(rank, *a.shape[1:])
        b = F.pad(b.flatten(1), (0, rank - b.shape[1])).reshape(b.shape[0], rank, *b.shape[2:])
        for module, value in ((layer.lora_A[ADAPTER], a), (layer.lora_B[ADAPTER], b)):
            module.weight = nn.Parameter(value.to(module.get_parameter("weight")))
        down, up = layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]
        ends = ("in_channels", "out_channels") if isinstance(layer, Conv2d) else ("in_features", "out_features")
        setattr(down, ends[1], rank)
        setattr(up, ends[0], rank)
        layer.r[ADAPTER], layer.lora_alpha[ADAPTER], layer.scaling[ADAPTER] = rank, rank, 1.0
    config = model.active_peft_config
    config.r, config.lora_alpha, config.use_rslora = rank, rank, False
    config.rank_pattern, config.alpha_pattern = {}, {}
