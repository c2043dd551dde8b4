"""Economies: what each optimizer step is, against formulas over naive gradients, in float64."""

import copy

import pytest
import torch
from models import COUNTS, gradients_of, losses_of, make_batch, make_model, naive_gradient, relative_error
from torch import nn

from ft_focalsam.sharpness import Economy, FocalSAM, SharpnessStep, SharpnessUpdate, class_weights
from ft_focalsam.sharpness.economy import perturbed_probabilities, systematic_draw
from ft_focalsam.sharpness.update import Run

RHO = 0.1
C = class_weights("focal_sam", COUNTS, {"gamma": 1.5, "lam": 0.7})
PLAIN = torch.zeros_like(C)


def make_update(model, economy, c=C, **settings):
    return SharpnessUpdate(SharpnessStep(model, c, rho=RHO, **settings), economy)


def run(update, model, images, labels, number, micro_batches=1):
    """The gradient of one optimizer step; the weights stay."""
    model.zero_grad()
    parts = list(zip(images.chunk(micro_batches), labels.chunk(micro_batches), strict=True))
    for index, (x, y) in enumerate(parts):

        def backward(chosen, x=x, y=y):
            x, y = (x, y) if chosen is None else (x[chosen], y[chosen])
            loss = update.step.reduce(losses_of(model, x, y), None if micro_batches == 1 else len(labels))
            loss.backward()
            return loss

        update.micro_batch(y, Run(backward, backward), number=number, is_last=index == len(parts) - 1)
    return gradients_of(model)


def descend(model, gradient):
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name in gradient:
                p -= 0.1 * gradient[name]


def flat(gradient):
    return torch.cat([gradient[name].flatten() for name in sorted(gradient)])


def test_every_k_perturbs_one_step_in_k():
    model = make_model("vit", "lora")
    update = make_update(model, Economy("every_k", interval=3))
    for number in range(7):
        images, labels = make_batch(seed=number)
        c = C if number % 3 == 0 else PLAIN
        expected = naive_gradient(model, images, labels, c, RHO) if c.any() else plain_gradient(model, images, labels)
        actual = run(update, model, images, labels, number)
        assert relative_error(actual, expected) <= 1e-10
        descend(model, actual)


def plain_gradient(model, images, labels):
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(losses_of(model, images, labels).mean(), list(trained.values()))
    return dict(zip(trained, gradients, strict=True))


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_look_sam_adds_the_orthogonal_part_of_the_last_exact_step(tuning, micro_batches):
    model = make_model("vit", tuning)
    update = make_update(model, Economy("look_sam", interval=3, look_alpha=0.5))
    for number in range(7):
        images, labels = make_batch(seed=number)
        plain = plain_gradient(model, images, labels)
        if number % 3 == 0:
            expected = naive_gradient(model, images, labels, C, RHO)
            g, p = flat(expected), flat(plain)
            part = g - (g @ p) / (p @ p) * p
            direction = part / part.norm()
            assert abs(direction @ p) < 1e-10 * p.norm()
        actual = run(update, model, images, labels, number, micro_batches)
        if number % 3 == 0:
            assert relative_error(actual, expected) <= 1e-10
        else:
            expected = flat(plain) + 0.5 * flat(plain).norm() * direction
            assert float((flat(actual) - expected).norm() / expected.norm()) <= 1e-8
        descend(model, actual)


def split_step(model, update, images, labels, seed):
    twin = copy.deepcopy(update._direction)
    torch.manual_seed(seed)
    gradient = run(update, model, images, labels, number=1)
    after, update._direction = update._direction, twin
    return gradient, after


def sample_gradients(model, images, labels):
    """Gradient of each sample's loss, (B, number of trained weights)."""
    trained = sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)
    rows = []
    for loss in losses_of(model, images, labels):
        gradients = torch.autograd.grad(loss, [p for _, p in trained], retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def moved_model(model, update):
    """The model at w + epsilon, epsilon = rho direction / ||direction||."""
    names = [name for name, _ in update.step.named_trained_parameters()]
    direction = dict(zip(names, update._direction, strict=True))
    norm = flat(direction).norm()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in moved.named_parameters():
            if name in direction:
                p += RHO * direction[name] / norm
    return moved


SPLITS = {"focal_sam": C, "lambda 1.3": C / 0.7 * 1.3, "sam": torch.ones_like(C)}


@pytest.mark.parametrize("method", SPLITS)
def test_split_batch_has_the_exact_gradient_as_its_expectation(method):
    """The draw depends on one uniform number: with the lengths of the intervals on which it is constant as weights,
    the mean over one run in each is the expectation, with no sampling error."""
    c = SPLITS[method]
    model = make_model("vit", "lora")
    update = make_update(model, Economy("split_batch"), c=c)
    run(update, model, *make_batch(seed=9), number=0)  # the first step is exact, and gives the first direction
    images, labels = make_batch(7, seed=5)
    weights = c[labels]
    q = perturbed_probabilities(weights, float(c.max()))
    at_w, moved = sample_gradients(model, images, labels), sample_gradients(moved_model(model, update), images, labels)

    edges = torch.cat([torch.zeros(1), q.cumsum(0) % 1, torch.ones(1)]).double().sort().values
    lengths, left = edges.diff(), dict(enumerate(edges.diff().tolist()))
    expectation = torch.zeros_like(at_w[0])
    for seed in range(3000):
        torch.manual_seed(seed)
        offset = float(torch.rand((), dtype=torch.float64))
        interval = int(torch.searchsorted(edges, offset, right=True)) - 1
        if left.pop(interval, 0) < 1e-12:
            continue
        gradient, _ = split_step(model, update, images, labels, seed)
        drawn = systematic_draw(q, offset)
        parts = torch.where(drawn[:, None], (weights / q)[:, None] * moved, ((1 - weights) / (1 - q))[:, None] * at_w)
        assert torch.allclose(flat(gradient), parts.mean(dim=0), rtol=1e-9, atol=1e-12)
        expectation += lengths[interval] * flat(gradient)
    assert not any(length > 1e-12 for length in left.values())
    exact = ((1 - weights)[:, None] * at_w + weights[:, None] * moved).mean(dim=0)
    assert float((expectation - exact).norm() / exact.norm()) <= 1e-9
    if method == "focal_sam":
        assert float((flat(gradient) - exact).norm() / exact.norm()) > 1e-3  # one draw alone is not exact


def test_a_draw_has_its_probabilities_and_an_even_number():
    q = torch.tensor([0.1, 0.9, 0.0, 1.0, 0.35, 0.65, 0.5], dtype=torch.float64)
    offsets = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    draws = torch.stack([systematic_draw(q, float(offset)) for offset in offsets])
    torch.testing.assert_close(draws.double().mean(dim=0), q, rtol=0, atol=2e-4)
    assert set(draws.sum(dim=1).tolist()) == {3, 4}


def test_split_batch_keeps_a_running_average_of_unit_gradients_at_the_perturbed_point():
    model = make_model("vit", "lora")
    update = make_update(model, Economy("split_batch", average_decay=0.75))
    images, labels = make_batch(8, seed=9)
    run(update, model, images, labels, number=0)
    first = (C[labels][:, None] * sample_gradients(model, images, labels)).mean(dim=0)
    names = [name for name, _ in update.step.named_trained_parameters()]
    before = flat(dict(zip(names, update._direction, strict=True)))
    assert torch.allclose(before, first / first.norm(), rtol=1e-9, atol=1e-12)
    _, after = split_step(model, update, images, labels, seed=3)
    torch.manual_seed(3)
    drawn = systematic_draw(C[labels], float(torch.rand((), dtype=torch.float64)))
    moved = sample_gradients(moved_model(model, update), images[drawn], labels[drawn]).sum(dim=0)
    expected = 0.75 * before + 0.25 * moved / moved.norm()
    assert torch.allclose(flat(dict(zip(names, after, strict=True))), expected, rtol=1e-9, atol=1e-12)


def test_split_batch_takes_one_forward_pass_over_each_sample():
    model = make_model("vit", "lora")
    seen = []
    update = make_update(model, Economy("split_batch"))
    run(update, model, *make_batch(seed=9), number=0)
    model.register_forward_hook(
        lambda module, args, kwargs, output: seen.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    for number in range(1, 6):
        seen.clear()
        run(update, model, *make_batch(8, seed=number), number=number)
        assert sum(seen) == 8 and len(seen) <= 2


def test_accumulated_split_batches_share_one_epsilon():
    model = make_model("vit", "lora")
    update = make_update(model, Economy("split_batch"))
    run(update, model, *make_batch(seed=9), number=0)
    images, labels = make_batch(8, seed=5)
    moved = sample_gradients(moved_model(model, update), images, labels)
    at_w = sample_gradients(model, images, labels)
    torch.manual_seed(0)
    drawn = torch.cat(
        [systematic_draw(C[part], float(torch.rand((), dtype=torch.float64))) for part in labels.chunk(2)]
    )
    torch.manual_seed(0)
    actual = run(update, model, images, labels, number=1, micro_batches=2)
    expected = torch.where(drawn[:, None], moved, at_w).mean(dim=0)
    assert torch.allclose(flat(actual), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["look_sam", "split_batch"])
def test_what_is_carried_survives_a_round_trip(name):
    model = make_model("vit", "lora")
    update = make_update(model, Economy(name))
    assert update.state_dict() == {}
    for number in range(2):
        run(update, model, *make_batch(seed=number), number=number)
    resumed = make_update(model, Economy(name))
    resumed.load_state_dict(copy.deepcopy(update.state_dict()))
    images, labels = make_batch(seed=7)
    gradients = []
    for each in (update, resumed):
        torch.manual_seed(1)
        gradients.append(flat(run(each, model, images, labels, number=2)))
    assert torch.equal(*gradients)
    with pytest.raises(ValueError, match="does not fit the trained parameters at"):
        make_update(nn.Linear(2, 2), Economy(name)).load_state_dict(update.state_dict())


@pytest.mark.parametrize("name", ["look_sam", "split_batch"])
def test_a_new_direction_is_found_when_other_parameters_train(name):
    model = make_model("vit", "lora")
    update = make_update(model, Economy(name))
    for number in range(2):
        run(update, model, *make_batch(seed=number), number=number)
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    images, labels = make_batch(seed=2)
    expected = naive_gradient(model, images, labels, C, RHO)
    assert relative_error(run(update, model, images, labels, number=2), expected) <= 1e-10
    run(update, model, images, labels, number=3)


def test_an_exception_leaves_the_next_step_whole():
    model = make_model("vit", "lora")
    update = make_update(model, None)

    def interrupted(chosen):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update.micro_batch(torch.tensor([0, 1]), Run(interrupted, interrupted), number=0)
    images, labels = make_batch(seed=2)
    expected = naive_gradient(model, images, labels, C, RHO)
    assert relative_error(run(update, model, images, labels, number=0, micro_batches=2), expected) <= 1e-10


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "lazy"}, "economy is 'lazy'; choose one of none, every_k"),
        ({"name": "every_k", "interval": 0}, "economy_interval is 0"),
        ({"look_alpha": -1.0}, "look_alpha is -1"),
        ({"average_decay": 1.0}, "average_decay is 1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Economy(**settings)


def test_a_carried_direction_needs_global_scope():
    with pytest.raises(ValueError, match="set perturbation_scope to 'global'"):
        make_update(make_model("vit", "lora"), Economy("look_sam"), scope="local")


def test_the_optimizer_takes_economies_and_saves_them():
    model = make_model("vit", "lora")
    parameters = [p for p in model.parameters() if p.requires_grad]

    def build():
        base = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        return FocalSAM(base, model, class_weights=C, rho=RHO, economy=Economy("split_batch"))

    def train(optimizer, seeds):
        for seed in seeds:
            images, labels = make_batch(8, seed=seed)
            torch.manual_seed(seed)
            optimizer.step(lambda index, x=images, y=labels: losses_of(model, x[index], y[index]), labels=labels)
        return [p.detach().clone() for p in parameters]

    optimizer = build()
    train(optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    whole = train(optimizer, range(3, 6))
    model.load_state_dict(saved[1])
    resumed = build()
    resumed.load_state_dict(saved[0])
    assert all(torch.equal(p, q) for p, q in zip(whole, train(resumed, range(3, 6)), strict=True))
