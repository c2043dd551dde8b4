"""The step on images of several classes, against loops over the samples in float64."""

import copy
from functools import partial

import pytest
import torch
from choices import NaiveUpdate, gradient, make_evaluation, momentum, run_update, weight_of
from models import COUNTS, make_batch, make_model, relative_error

from ft_focalsam import FocalSAM, class_weights
from ft_focalsam.losses import make_loss
from ft_focalsam.sharpness import SharpnessStep
from ft_focalsam.sharpness.directions import make_direction
from ft_focalsam.sharpness.weights import sample_weights

RHO = 0.1
C = class_weights("focal_sam", COUNTS, {"gamma": 1.5, "lam": 0.7})
LOSSES = ("bce", "asymmetric", "distribution_balanced")


def batch(size=6, *, seed=1):
    """Images with their classes; the first has none, the second all."""
    images, _ = make_batch(size, seed=seed)
    labels = (torch.rand(size, len(COUNTS), generator=torch.Generator().manual_seed(seed)) < 0.4).double()
    labels[0], labels[1] = 0, 1
    return images, labels


def losses_of(model, images, labels, *, loss="bce"):
    return make_loss(loss, COUNTS, num_samples=150)(model(pixel_values=images).logits, labels)


def test_the_weight_of_a_sample_is_the_mean_over_its_classes():
    _, labels = batch()
    expected = torch.tensor([weight_of(C, label) for label in labels], dtype=torch.float64)
    assert expected[0] == 0 and expected[1] == pytest.approx(float(C.mean()))
    for kind in (torch.float32, torch.int64, torch.uint8):
        torch.testing.assert_close(sample_weights(C, labels.to(kind)), expected, rtol=1e-14, atol=0)


def test_one_class_an_image_weighs_as_its_number_does():
    classes = torch.arange(len(COUNTS))
    torch.testing.assert_close(sample_weights(C, torch.eye(len(COUNTS))), sample_weights(C, classes), rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_two_points_and_accumulation(name, tuning):
    model, losses = make_model("vit", tuning), partial(losses_of, loss=name)
    images, labels = batch()
    expected = NaiveUpdate(copy.deepcopy(model), "trained", C, RHO, gradient, losses).two_point(images, labels)
    for micro_batches in (1, 3):
        update = make_evaluation("two_point", SharpnessStep(model, C, rho=RHO))
        for number in range(4):  # the first ones are compared with other ways to the gradient
            found = run_update(
                update, model, images, labels, number=number, micro_batches=micro_batches, losses=losses
            )
            assert relative_error(found, expected) <= 1e-10
        assert update.step.separate_reason is None and update.step.backward_passes == 1


@pytest.mark.parametrize("evaluation", ["two_point", "one_pass"])
def test_one_weight_for_all_classes_is_that_of_every_image_of_no_class_too(evaluation):
    """As in SAM, whose gradient of L_c is that of L times the weight."""
    same, model = torch.full_like(C, 0.7), make_model("vit", "lora")
    direction, name = (gradient, "gradient") if evaluation == "two_point" else (momentum, "momentum")
    naive = NaiveUpdate(copy.deepcopy(model), "trained", same, RHO, direction, losses_of)
    step = SharpnessStep(model, same, rho=RHO, direction=make_direction(name, {"decay": 0.8}))
    update = make_evaluation(evaluation, step)
    for number in range(3):
        images, labels = batch(seed=number)
        expected = getattr(naive, evaluation)(images, labels)
        found = run_update(update, model, images, labels, number=number, losses=losses_of)
        assert relative_error(found, expected) <= 1e-9
    assert step.sample_weights(labels).tolist() == [0.7] * len(labels)


@pytest.mark.parametrize("name", LOSSES)
def test_one_pass(name):
    model, losses = make_model("vit", "lora"), partial(losses_of, loss=name)
    naive = NaiveUpdate(copy.deepcopy(model), "trained", C, RHO, partial(momentum, decay=0.8), losses)
    step = SharpnessStep(model, C, rho=RHO, direction=make_direction("momentum", {"decay": 0.8}))
    update = make_evaluation("one_pass", step)
    for number in range(4):
        images, labels = batch(seed=number)
        expected = naive.one_pass(images, labels)
        found = run_update(update, model, images, labels, number=number, losses=losses)
        assert relative_error(found, expected) <= 1e-9


def test_the_optimizer_steps_on_the_naive_gradient():
    model = make_model("vit", "lora")
    twin, start = copy.deepcopy(model), copy.deepcopy(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = FocalSAM(torch.optim.SGD(trained, lr=0.1), model, class_counts=COUNTS, rho=RHO, gamma=1.5, lam=0.7)
    images, labels = batch()
    expected = NaiveUpdate(twin, "trained", C, RHO, gradient, losses_of).two_point(images, labels)
    optimizer.step(lambda: losses_of(model, images, labels), labels=labels)
    before = dict(start.named_parameters())
    moved = {name: (before[name] - p.detach()) / 0.1 for name, p in model.named_parameters() if p.requires_grad}
    assert relative_error(moved, expected) <= 1e-10
