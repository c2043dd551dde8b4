"""Every combination of choices that is offered, against its formula in float64."""

import copy
from functools import partial

import choices
import pytest
import torch
from choices import NaiveUpdate, make_evaluation, run_update
from models import BACKBONES, COUNTS, losses_of, make_batch, make_model, relative_error

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


EVALUATED = [
    ("norms", "friendly", "two_point"),
    ("merged", "gradient", "two_point"),
    ("merged", "momentum", "one_pass"),
    ("trained", "momentum", "one_pass"),
    ("trained", "gaussian", "one_pass"),
]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(("perturb", "direction", "evaluation"), EVALUATED)
def test_under_activation_checkpointing(perturb, direction, evaluation, reentrant):
    def enable(model):
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        return model

    check("vit", perturb, "lora", direction, "focal_sam", evaluation, wrap=enable)


def test_what_acts_beside_the_layers_is_refused_in_a_compiled_model():
    model = torch.compile(make_model("vit", "lora"), backend="aot_eager")
    with pytest.raises(ValueError, match=r"perturb is 'merged', .* the model is compiled"):
        SharpnessStep(model, METHODS["sam"], perturb="merged")
    step = SharpnessStep(model, METHODS["sam"], direction=make_direction("gaussian"))
    with pytest.raises(ValueError, match=r"evaluation is 'one_pass', .* the model is compiled"):
        make_evaluation("one_pass", step)


def test_norms_in_a_compiled_model():
    torch._dynamo.reset()
    compiled = partial(torch.compile, backend="aot_eager")
    check("vit", "norms", "lora", "friendly", "focal_sam", "two_point", wrap=compiled)


@pytest.mark.parametrize(("perturb", "direction", "evaluation"), EVALUATED[:-1])  # noise depends on the precision
def test_in_bfloat16(perturb, direction, evaluation):
    """Frozen weights in bfloat16 and autocast: the gradient of the perturbed loss differs from that of a plain one as
    it does in float64, but for rounding."""
    changes = []
    for dtype in (torch.float64, torch.bfloat16):
        model = make_model("vit", "lora").to(dtype)
        for p in model.parameters():
            p.data = p.data.float() if p.requires_grad and dtype == torch.bfloat16 else p.data
        direction_of = make_direction(direction, SETTINGS)
        step = SharpnessStep(model, METHODS["sam"], rho=1.0, perturb=perturb, direction=direction_of)
        update = make_evaluation(evaluation, step)
        images, labels = make_batch(16)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            for number in range(3):
                perturbed = run_update(update, model, images.to(dtype), labels, number=number)
            model.zero_grad()
            losses_of(model, images.to(dtype), labels).mean().backward()
        changes.append({n: (perturbed[n] - p.grad).double() for n, p in model.named_parameters() if p.requires_grad})
    assert relative_error(changes[1], changes[0]) < 0.2


def check(backbone, perturb, tuning, direction, method, evaluation, micro_batches=1, wrap=lambda model: model):
    model = make_model(backbone, tuning)
    naive = NaiveUpdate(copy.deepcopy(model), perturb, METHODS[method], RHO, getattr(choices, direction, None))
    wrapped = wrap(model)
    direction_of = make_direction(direction, SETTINGS)
    step = SharpnessStep(wrapped, METHODS[method], rho=RHO, perturb=perturb, direction=direction_of)
    update = make_evaluation(evaluation, step)
    if direction == "gaussian":
        naive.direction = gaussian_of(step)
    requires = {name: p.requires_grad for name, p in model.named_parameters()}
    for number in range(4):
        images, labels = make_batch(seed=number)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        actual = run_update(update, wrapped, images, labels, number=number, micro_batches=micro_batches)
        assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
        assert {name: p.requires_grad for name, p in model.named_parameters()} == requires
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
        expected = getattr(naive, evaluation)(images, labels)
        assert relative_error(actual, expected) <= 1e-10
        descend(model, expected)
        descend(naive.model, expected)
    assert step.separate_reason is None and step.backward_passes == 1
