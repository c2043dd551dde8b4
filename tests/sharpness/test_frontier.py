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
    step = SharpnessStep(model, C, rho=0.1, reuse_prefix=reuses)

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


@pytest.mark.parametrize("case", ["head", "last block", "lora in the last block"])
def test_the_frozen_part_computes_once_a_step(case):
    model = CASES[case](dtype=torch.float32)
    counted = Counted(model)
    step = SharpnessStep(model, C, rho=0.1)
    calls = []
    for seed in range(6):
        before = counted.calls
        run_step(step, model, *make_batch(6, seed=seed, dtype=torch.float32))
        calls.append(counted.calls - before)
    once = Counted(copy.deepcopy(model))
    F.cross_entropy(model(pixel_values=make_batch(6, dtype=torch.float32)[0]).logits, make_batch(6)[1])
    one_forward = counted.calls - sum(calls)
    assert once.calls == 0 and calls[-1] == calls[-2] < 2 * one_forward
    if case == "head":
        assert calls[-1] == one_forward + 1  # the classifier alone


def test_only_what_something_else_reads_is_kept():
    model = CASES["last block"](dtype=torch.float32)
    step = SharpnessStep(model, C, rho=0.1)
    for seed in range(3):
        run_step(step, model, *make_batch(6, seed=seed, dtype=torch.float32))
    assert sum(step._prefix.calls.values()) == 1 < len(step._prefix.calls)


def test_layers_that_are_unfrozen_on_the_way_are_perturbed():
    model = CASES["head"](dtype=torch.float32)
    twin = copy.deepcopy(model)
    results = []
    for each, reuses in ((model, True), (twin, False)):
        found, _ = steps(each, reuses=reuses, number=4)
        only(each, "layers.1.", "classifier")
        more, step = steps(each, reuses=reuses, number=4)
        only(each, "layers.", "classifier")
        for seed in range(4):
            more.append(run_step(step, each, *make_batch(6, seed=seed, dtype=torch.float32)))
        results.append(found + more)
    for a, b in zip(*results, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)


class Restless(nn.Module):
    """A frozen module that does not give the same twice."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) + self.calls


class Rewriting(nn.Module):
    """What a frozen module gives is changed in place by what follows."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(8, 8), nn.Linear(8, len(COUNTS))

    def forward(self, x):
        hidden = self.layer(x)
        hidden += 1
        return self.head(hidden)


@pytest.mark.parametrize(
    ("model", "is_replayed"),
    [
        (lambda: nn.Sequential(Restless(), nn.Linear(8, len(COUNTS))), False),
        (Rewriting, False),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, len(COUNTS))), False),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, len(COUNTS))), True),
    ],
    ids=["restless", "in-place", "in-place activation", "quiet"],
)
def test_what_cannot_be_replayed_is_computed(model, is_replayed, caplog):
    torch.manual_seed(0)
    model = model().double()
    for name, p in model.named_parameters():
        p.requires_grad_(name.startswith(("2", "1", "head")))
    for seed in range(5):
        torch.manual_seed(seed)
        x, y = torch.randn(6, 8, dtype=torch.float64), torch.randint(len(COUNTS), (6,))
        twin = copy.deepcopy(model)
        if seed == 0:
            step = SharpnessStep(model, C, rho=0.1)
        actual = run_step(step, model, x, y, losses_of=plain_losses)
        other = SharpnessStep(twin, C, rho=0.1, reuse_prefix=False)
        assert all(
            torch.allclose(actual[name], value, rtol=1e-12)
            for name, value in run_step(other, twin, x, y, losses_of=plain_losses).items()
        ) or isinstance(model[0] if isinstance(model, nn.Sequential) else None, Restless)
    assert step._prefix.is_replayed == is_replayed
    assert ("does not give the same twice" in caplog.text) == (not is_replayed)


class Detached(nn.Module):
    """A frozen module that reads, without gradient, what a weight gives that moves from the second step on."""

    def __init__(self):
        super().__init__()
        self.trained, self.gate = nn.Linear(8, 8), nn.Parameter(torch.zeros(8))
        self.frozen, self.head = nn.Linear(8, 8).requires_grad_(False), nn.Linear(8, len(COUNTS))

    def forward(self, x):
        hidden = self.trained(x)
        return self.head(self.frozen(hidden.detach()) + self.gate * hidden)


def test_what_depends_on_trained_weights_without_gradient_is_not_replayed():
    torch.manual_seed(0)
    model = Detached().double()
    step, other = (SharpnessStep(model, C, rho=0.1, reuse_prefix=reuses) for reuses in (True, False))
    for seed in range(5):
        torch.manual_seed(seed)
        x, y = torch.randn(6, 8, dtype=torch.float64), torch.randint(len(COUNTS), (6,))
        actual, expected = (run_step(each, model, x, y, losses_of=plain_losses) for each in (step, other))
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p -= 0.1 * actual.get(name, 0)
    assert not step._prefix.is_replayed


def plain_losses(model, x, y):
    return F.cross_entropy(model(x), y, reduction="none")


@pytest.mark.parametrize("reentrant", [True, False])
def test_under_activation_checkpointing_everything_is_computed(reentrant):
    model = CASES["last block"](dtype=torch.float32).train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    expected, _ = steps(copy.deepcopy(model), reuses=False)
    actual, step = steps(model, reuses=True)
    assert not step._prefix.is_replayed
    for a, b in zip(actual, expected, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in b)


@pytest.mark.slow
def test_a_compiled_model_is_computed_twice():
    model = torch.compile(CASES["head"](dtype=torch.float32), backend="aot_eager")
    step = SharpnessStep(model, C, rho=0.1)
    for seed in range(3):
        run_step(step, model, *make_batch(6, seed=seed, dtype=torch.float32))
    assert not step._prefix.is_replayed
    torch._dynamo.reset()


def test_a_gradient_that_is_not_finite_ends_the_replay(caplog):
    model = CASES["last block"](dtype=torch.float32)
    step = SharpnessStep(model, C, rho=0.1)
    for seed in range(3):
        x, y = make_batch(6, seed=seed, dtype=torch.float32)
        run_step(step, model, x * (float("nan") if seed == 2 else 1), y)
        assert step.drop_if_not_finite() == (seed == 2)
    assert not step._prefix.is_replayed and "a gradient was not finite" in caplog.text
    gradients = run_step(step, model, *make_batch(6, dtype=torch.float32)).values()
    assert any(g.any() for g in gradients) and all(torch.isfinite(g).all() for g in gradients)
