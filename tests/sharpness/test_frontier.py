"""The frozen prefix is computed once, and everything is as if it were computed twice."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from models import COUNTS, make_batch, make_model, run_step
from torch import nn

from ft_focalsam.sharpness import SharpnessStep, class_weights

C = class_weights("focal_sam", COUNTS, {"gamma": 2.0, "lam": 1.1})


def only(model, *names):
    for name, p in model.named_parameters():
        p.requires_grad_(any(part in name for part in names))
    return model


CASES = {
    "head": lambda **k: only(make_model("vit", "full", **k), "classifier"),
    "last block": lambda **k: only(make_model("vit", "full", **k), "layers.1.", "classifier"),
    "last block, dinov2": lambda **k: only(make_model("dinov2", "full", **k), "layer.1.", "classifier"),
    "lora in the last block": lambda **k: only(make_model("vit", "lora", **k), "layers.1.attention.q_proj.lora_"),
    "everything": lambda **k: make_model("vit", "full", **k),
}


class Counted:
    """Calls of a model's modules that compute something."""

    def __init__(self, model):
        self.calls = 0
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                forward = module.forward
                module.forward = lambda *args, forward=forward: self._count(forward, *args)

    def _count(self, forward, *args):
        self.calls += 1
        return forward(*args)


def steps(model, *, reuses, autocast=False, micro_batches=1, number=5):
    """The gradients of some steps, between which the weights move."""
    step = SharpnessStep(model, C, rho=0.1)
    if not reuses:
        step._prefix.turn_off("")

    def losses(model, x, y):
        with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
            return F.cross_entropy(model(pixel_values=x).logits.float(), y, reduction="none")

    found = []
    torch.manual_seed(3)
    for seed in range(number):
        x, y = make_batch(6, seed=seed, dtype=next(model.parameters()).dtype)
        found.append(run_step(step, model, x, y, micro_batches, losses_of=losses))
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in found[-1]:
                    p -= 0.1 * found[-1][name]
    return found, step


@pytest.mark.parametrize("mode", ["plain", "dropout", "autocast", "accumulated"])
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_the_same_bit_for_bit(case, mode):
    config = {"hidden_dropout_prob": 0.3} if mode == "dropout" else {}
    model = CASES[case](dtype=torch.float32, **config).train()
    settings = {"autocast": mode == "autocast", "micro_batches": 3 if mode == "accumulated" else 1}
    expected, _ = steps(copy.deepcopy(model), reuses=False, **settings)
    actual, step = steps(model, reuses=True, **settings)
    for a, b in zip(actual, expected, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)
    assert step._prefix.is_replayed or case == "everything"
    assert step.statistics.skipped_steps == 0
