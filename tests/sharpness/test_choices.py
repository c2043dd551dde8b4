"""Every combination of choices that is offered, against its formula in float64."""

import copy

import choices
import pytest
import torch
from choices import NaiveUpdate, make_evaluation, run_update
from models import BACKBONES, COUNTS, make_batch, make_model, relative_error

from ft_focalsam.sharpness import SharpnessStep, class_weights
from ft_focalsam.sharpness.directions import make_direction

pytestmark = pytest.mark.slow

RHO = 0.1
SETTINGS = {"sigma": 0.7, "decay": 0.8, "seed": 3}
METHODS = {
    "sam": class_weights("sam", COUNTS),
    "imbsam": class_weights("imbsam", COUNTS, {"eta": 30}),
    "focal_sam": class_weights("focal_sam", COUNTS, {"gamma": 2.0, "lam": 1.1}),
}
TUNINGS = {"trained": ("lora", "full"), "norms": ("lora", "full"), "merged": ("lora",)}
CASES = [(perturb, tuning) for perturb, tunings in TUNINGS.items() for tuning in tunings]


def descend(model, gradient):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in gradient:
                p -= 0.05 * gradient[name]


def gaussian_of(step):
    """The noise that the step drew, as a direction for the naive update."""

    def direction(ascent, state, learn=False):
        if learn:
            return None
        count = state["draws"] = state.get("draws", -1) + 1
        twin = make_direction("gaussian", SETTINGS)
        twin.draws = count
        return {step.target.names[t]: d for t, d in twin.choose(step.target, None).items()}

    return direction


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("direction", ["gradient", "friendly", "momentum", "gaussian"])
@pytest.mark.parametrize(("perturb", "tuning"), CASES)
def test_two_points(perturb, tuning, direction, method):
    check("vit", perturb, tuning, direction, method, "two_point")


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("direction", ["momentum", "gaussian"])
@pytest.mark.parametrize("perturb", ["trained", "norms", "merged"])
def test_one_pass(perturb, direction, backbone, micro_batches):
    check(backbone, perturb, "lora", direction, "focal_sam", "one_pass", micro_batches)


@pytest.mark.parametrize("method", ["sam", "imbsam"])
@pytest.mark.parametrize("direction", ["momentum", "gaussian"])
def test_one_pass_of_other_methods(direction, method):
    check("vit", "trained", "lora", direction, method, "one_pass")


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("perturb", ["norms", "merged"])
def test_other_backbones(backbone, perturb):
    check(backbone, perturb, "lora", "gradient", "focal_sam", "two_point", micro_batches=2)


def check(backbone, perturb, tuning, direction, method, evaluation, micro_batches=1):
    model = make_model(backbone, tuning)
    naive = NaiveUpdate(copy.deepcopy(model), perturb, METHODS[method], RHO, getattr(choices, direction, None))
    step = SharpnessStep(
        model, METHODS[method], rho=RHO, perturb=perturb, direction=make_direction(direction, SETTINGS)
    )
    update = make_evaluation(evaluation, step)
    if direction == "gaussian":
        naive.direction = gaussian_of(step)
    requires = {name: p.requires_grad for name, p in model.named_parameters()}
    for number in range(4):
        images, labels = make_batch(seed=number)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        actual = run_update(update, model, images, labels, number=number, micro_batches=micro_batches)
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
        assert {name: p.requires_grad for name, p in model.named_parameters()} == requires
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        expected = getattr(naive, evaluation)(images, labels)
        assert relative_error(actual, expected) <= 1e-10
        descend(model, expected)
        descend(naive.model, expected)
    assert step.separate_reason is None and step.backward_passes == 1
