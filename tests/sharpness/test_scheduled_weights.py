"""Class weights that change between steps, each step against the paper's three-backward algorithm for its own."""

import copy

import pytest
import torch
from models import COUNTS, losses_of, make_batch, make_model, naive_gradient, relative_error, run_step
from torch import nn

from ft_focalsam import FocalSAM
from ft_focalsam.sharpness import LossContractError, SharpnessStep, class_weights, scheduled_weights

RHO, STEPS = 0.1, 6
ENDS = {
    "sam to imbsam": ("sam", "imbsam"),
    "imbsam to sam": ("imbsam", "sam"),
    "none to focal_sam": ("none", "focal_sam"),
    "focal_sam to none": ("focal_sam", "none"),
    "weighted_sam to sam": ("weighted_sam", "sam"),
    "focal_sam to imbsam": ("focal_sam", "imbsam"),
}


def course(ends: str, schedule: str) -> list[torch.Tensor]:
    """c of each step."""
    initial, final = (class_weights(name, COUNTS, {"eta": 30, "gamma": 2.0, "lam": 0.6}) for name in ENDS[ends])
    return [scheduled_weights(schedule, final, progress=t / STEPS, initial=initial) for t in range(STEPS)]


def note_passes(model: nn.Module) -> list[int]:
    """The size of the batch of each forward pass to come."""
    sizes: list[int] = []
    model.register_forward_hook(
        lambda module, args, kwargs, output: sizes.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return sizes


@pytest.mark.parametrize("schedule", ["linear", "step"])
@pytest.mark.parametrize("ends", ENDS)
def test_every_step_is_exact_for_its_own_class_weights(ends, schedule):
    model = make_model("vit", "lora")
    weights = course(ends, schedule)
    step = SharpnessStep(model, weights[0], rho=RHO)
    for seed, c in enumerate(weights):
        images, labels = make_batch(seed=seed)
        expected = naive_gradient(model, images, labels, c, RHO)
        step.set_class_weights(c)
        if step.is_plain:
            assert not c.any()
            continue
        assert relative_error(run_step(step, model, images, labels), expected) <= 1e-10
        assert step.backward_passes == 1
    assert step.separate_reason is None


@pytest.mark.parametrize(
    ("ends", "schedule", "extra"),
    [("focal_sam to imbsam", "linear", 0), ("sam to imbsam", "linear", 1), ("weighted_sam to sam", "linear", 0)],
)
def test_the_gradient_is_verified_once_for_all_class_weights(ends, schedule, extra):
    """Passes in excess of two a step: none for one weight for all classes; else as many as for weights that stay."""
    numbers = []
    for weights in (course(ends, schedule), [course(ends, schedule)[extra]] * STEPS):
        model = make_model("vit", "lora")
        step = SharpnessStep(model, weights[0], rho=RHO)
        sizes = note_passes(model)
        for seed, c in enumerate(weights):
            step.set_class_weights(c)
            run_step(step, model, *make_batch(seed=seed))
        numbers.append(len(sizes) - 2 * STEPS)
    assert numbers[0] == numbers[1]
    assert (numbers[0] == 0) == (ends == "weighted_sam to sam")


def test_a_batch_normalisation_costs_a_backward_pass_only_where_classes_differ():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, len(COUNTS))).double()
    weights = course("sam to imbsam", "step")
    step, passes = SharpnessStep(model, weights[0], rho=RHO), []

    def losses(model, x, y):
        return nn.functional.cross_entropy(model(x), y, reduction="none")

    for seed, c in enumerate(weights):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(6, 6, dtype=torch.float64, generator=generator)
        y = torch.tensor([0, 1, 2, 3, 4, 0])
        fresh = SharpnessStep(copy.deepcopy(model), c, rho=RHO)
        expected = run_step(fresh, fresh.model, x, y, losses_of=losses)
        step.set_class_weights(c)
        assert relative_error(run_step(step, model, x, y, losses_of=losses), expected) <= 1e-12
        passes.append(step.backward_passes)
    assert passes == [1] * 3 + [2] * 3


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["sam to imbsam", "imbsam to sam"])
def test_a_compiled_model_changes_its_class_weights(ends):
    model = make_model("vit", "lora")
    compiled = torch.compile(model, backend="aot_eager")
    weights = course(ends, "step")
    step = SharpnessStep(compiled, weights[-1], rho=RHO)
    for seed, c in enumerate(weights):
        images, labels = make_batch(seed=seed)
        expected = naive_gradient(model, images, labels, c, RHO)
        step.set_class_weights(c)
        actual = run_step(step, compiled, images, labels)
        actual = {name.removeprefix("_orig_mod."): gradient for name, gradient in actual.items()}
        assert relative_error(actual, expected) <= 1e-10
    torch._dynamo.reset()


@pytest.mark.parametrize("has_closure", [True, False])
def test_the_optimizer_takes_class_weights_between_steps(has_closure):
    model = make_model("vit", "lora")
    twin = copy.deepcopy(model)
    weights = course("sam to imbsam", "linear")
    optimizer = FocalSAM(torch.optim.SGD(model.parameters(), lr=0.05), model, class_weights=weights[0], rho=RHO)
    for seed, c in enumerate(weights):
        images, labels = make_batch(seed=seed)
        optimizer.set_class_weights(c)
        if has_closure:
            optimizer.step(lambda x=images, y=labels: losses_of(model, x, y), labels)
        else:
            optimizer.zero_grad()
            for each in (lambda y=labels: optimizer.first_pass(y), optimizer.second_pass):
                with each():
                    optimizer.reduce(losses_of(model, images, labels)).backward()
            optimizer.step()
        expected = naive_gradient(twin, images, labels, c, RHO)
        with torch.no_grad():
            for name, parameter in twin.named_parameters():
                if name in expected:
                    parameter -= 0.05 * expected[name]
    for parameter, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=1e-10, atol=1e-12)


def test_a_copied_optimizer_has_the_class_weights_of_its_moment():
    model = make_model("vit", "lora")
    weights = course("sam to imbsam", "step")
    optimizer = FocalSAM(torch.optim.SGD(model.parameters(), lr=0.05), model, class_weights=weights[0])
    optimizer.set_class_weights(weights[-1])
    assert torch.equal(copy.deepcopy(optimizer).sharpness_step.class_weights, weights[-1])


def test_class_weights_that_cannot_be_set_are_refused():
    model = make_model("vit", "lora")
    base = torch.optim.SGD(model.parameters(), lr=0.05)
    with pytest.raises(ValueError, match="from class_counts, gamma and lam; change those"):
        FocalSAM(base, model, class_counts=COUNTS).set_class_weights(torch.ones(5))
    optimizer = FocalSAM(base, model, class_weights=torch.ones(5))
    with pytest.raises(ValueError, match=r"shape \(4,\) and were of shape \(5,\)"):
        optimizer.set_class_weights(torch.ones(4))
    images, labels = make_batch()
    with optimizer.first_pass(labels):
        optimizer.reduce(losses_of(model, images, labels)).backward()
    with pytest.raises(LossContractError, match="between the passes of a step"):
        optimizer.set_class_weights(torch.zeros(5))


def test_changed_in_place_they_are_seen_when_they_are_set():
    model = make_model("vit", "lora")
    c = torch.ones(len(COUNTS), dtype=torch.float64)
    step = SharpnessStep(model, c, rho=RHO)
    images, labels = make_batch()
    run_step(step, model, images, labels)
    c[:2] = 0.25
    step.set_class_weights(c)
    expected = naive_gradient(model, images, labels, c, RHO)
    assert relative_error(run_step(step, model, images, labels), expected) <= 1e-10
