"""What the evaluations do around the passes: intervals, rows, what is carried, and what is refused."""

import copy

import pytest
import torch
import torch.nn.functional as F
from choices import make_evaluation, run_update
from models import COUNTS, gradients_of, losses_of, make_batch, make_model, naive_gradient, relative_error
from torch import nn

from ft_focalsam.sharpness import FocalSAM, SharpnessStep, class_weights
from ft_focalsam.sharpness.directions import make_direction
from ft_focalsam.sharpness.evaluations import Run
from ft_focalsam.sharpness.per_sample import NotPerSampleError

RHO = 0.1
C = class_weights("focal_sam", COUNTS, {"gamma": 1.5, "lam": 0.7})
IMBSAM = class_weights("imbsam", COUNTS, {"eta": 30})
LEARNING = ("friendly", "momentum")


def make(model, evaluation="two_point", direction="gradient", c=C, interval=1, **settings):
    step = SharpnessStep(model, c, rho=RHO, direction=make_direction(direction), **settings)
    return make_evaluation(evaluation, step, interval=interval)


def plain_gradient(model, images, labels):
    model.zero_grad()
    losses_of(model, images, labels).mean().backward()
    return gradients_of(model)


def test_an_interval_perturbs_one_step_in_so_many():
    model = make_model("vit", "lora")
    update = make(model, interval=3)
    for number in range(7):
        images, labels = make_batch(seed=number)
        if number % 3:
            expected = plain_gradient(model, images, labels)
        else:
            expected = naive_gradient(model, images, labels, C, RHO)
        assert relative_error(run_update(update, model, images, labels, number=number), expected) <= 1e-10


# ---- ImbSAM: the second pass runs over the rare rows ----


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_second_pass_of_imbsam_runs_over_its_rows_alone(tuning):
    model = make_model("vit", tuning)
    update = make(model, c=IMBSAM)
    seen = []
    model.register_forward_hook(lambda m, a, kw, out: seen.append(len(kw["pixel_values"])), with_kwargs=True)
    for number in range(6):
        images, labels = make_batch(10, seed=number)
        labels[:8], labels[8:] = labels[:8] % 2, 2 + number % 3  # two samples are rare
        expected = naive_gradient(model, images, labels, IMBSAM, RHO)
        seen.clear()
        assert relative_error(run_update(update, model, images, labels, number=number), expected) <= 1e-10
    assert seen == [10, 2]
    labels[:] = 0  # none is rare: a plain step in one pass
    expected = plain_gradient(model, images, labels)
    seen.clear()
    assert relative_error(run_update(update, model, images, labels), expected) <= 1e-12
    assert seen == [10]


def test_all_rows_are_run_where_fewer_would_draw_other_masks():
    model = make_model("vit", "lora", lora_dropout=0.5)
    update = make(model, c=IMBSAM)
    other = copy.deepcopy(model)
    step = SharpnessStep(other, IMBSAM, rho=RHO)
    images, labels = make_batch(10)
    labels[:8], labels[8:] = labels[:8] % 2, 3
    for number in range(4):
        torch.manual_seed(number)
        actual = run_update(update, model, images, labels)
        torch.manual_seed(number)
        other.zero_grad()
        step.start()
        step.verify_gradients(labels, lambda: step.reduce(losses_of(other, images, labels)).backward())
        with step.first_pass(labels):
            step.reduce(losses_of(other, images, labels)).backward()
        step.ascend()
        with step.second_pass(0):
            step.reduce(losses_of(other, images, labels)).backward()
        assert relative_error(actual, gradients_of(other)) <= 1e-12


# ---- what is carried from step to step ----


@pytest.mark.parametrize("direction", ["friendly", "momentum", "gaussian"])
def test_what_is_carried_survives_a_round_trip(direction):
    model = make_model("vit", "lora")
    update = make(model, direction=direction)
    for number in range(2):
        run_update(update, model, *make_batch(seed=number), number=number)
    resumed = make(model, direction=direction)
    resumed.load_state_dict(copy.deepcopy(update.state_dict()))
    images, labels = make_batch(seed=7)
    first, second = (run_update(each, model, images, labels, number=2) for each in (update, resumed))
    assert relative_error(first, second) == 0
    fresh = run_update(make(model, direction=direction), model, images, labels, number=2)
    assert relative_error(fresh, first) > 1e-4


@pytest.mark.parametrize("direction", LEARNING)
def test_a_state_of_another_model_is_refused(direction):
    model = make_model("vit", "lora")
    update = make(model, direction=direction)
    run_update(update, model, *make_batch())
    with pytest.raises(ValueError, match="does not fit what is perturbed, at"):
        make(nn.Linear(2, 2), direction=direction).load_state_dict(update.state_dict())


@pytest.mark.parametrize("direction", LEARNING)
def test_an_average_begins_anew_when_other_parameters_train(direction):
    model = make_model("vit", "lora")
    late = next(p for n, p in model.named_parameters() if "lora_A" in n).requires_grad_(False)
    update = make(model, direction=direction)
    for number in range(2):
        run_update(update, model, *make_batch(seed=number), number=number)
    late.requires_grad_(True)
    images, labels = make_batch(seed=2)
    fresh = run_update(make(model, direction=direction), model, images, labels)
    assert relative_error(run_update(update, model, images, labels, number=2), fresh) <= 1e-12
    assert update.state_dict().keys() == set(update.step.target.names.values())


@pytest.mark.parametrize("direction", LEARNING)
def test_a_gradient_that_is_not_finite_is_not_learned(direction):
    model = make_model("vit", "lora")
    update = make(model, direction=direction)
    run_update(update, model, *make_batch())
    before = copy.deepcopy(update.state_dict())
    images, labels = make_batch(seed=1)
    images[0] = float("nan")
    run_update(update, model, images, labels, number=1)
    after = update.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("direction", LEARNING)
def test_loss_scaling_does_not_reach_what_is_learned(direction):
    """The scale of an fp16 loss changes during training."""
    states = []
    for factors in ((1.0, 1.0), (2.0**10, 2.0**4)):
        model = make_model("vit", "lora")
        update = make(model, direction=direction)
        for number, factor in enumerate(factors):
            images, labels = make_batch(seed=number)

            def forward(rows=None, x=images, y=labels, model=model, step=update.step):
                return step.reduce(losses_of(model, x, y))

            run = Run(lambda f=forward, s=factor: (f() * s).backward(), forward)
            model.zero_grad()
            update.micro_batch(labels, run, number=number)
        states.append(update.state_dict())
    assert relative_error(states[1], states[0]) <= 1e-12


@pytest.mark.parametrize("choice", [{"direction": "momentum", "evaluation": "one_pass"}, {"direction": "friendly"}])
def test_the_optimizer_takes_choices_and_saves_them(choice):
    model = make_model("vit", "lora")
    parameters = [p for p in model.parameters() if p.requires_grad]
    evaluation = choice.get("evaluation", "two_point")

    def build():
        base = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        direction = make_direction(choice["direction"])
        return FocalSAM(base, model, class_weights=C, rho=RHO, direction=direction, evaluation=evaluation)

    def train(optimizer, seeds):
        for seed in seeds:
            images, labels = make_batch(8, seed=seed)
            optimizer.step(lambda x=images, y=labels: losses_of(model, x, y), labels=labels)
        return [p.detach().clone() for p in parameters]

    optimizer = build()
    train(optimizer, range(3))
    saved = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    whole = train(optimizer, range(3, 6))
    model.load_state_dict(saved[1])
    resumed = build()
    resumed.load_state_dict(saved[0])
    assert all(torch.equal(p, q) for p, q in zip(whole, train(resumed, range(3, 6)), strict=True))


# ---- one pass ----


class Bilinear(nn.Module):
    """y = x A B: not linear in A and B together."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.randn(8, 4, dtype=torch.float64))
        self.b = nn.Parameter(torch.randn(4, 8, dtype=torch.float64))

    def forward(self, x):
        return x @ self.a @ self.b


class Elsewhere(nn.Module):
    """A linear layer whose weight its parent uses too."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8).double()

    def forward(self, x):
        return self.inner(x) + F.linear(x, self.inner.weight).tanh()


class OverSamples(nn.Module):
    """Adds something that has no batch in front."""

    def __init__(self):
        super().__init__()
        self.table = Table()

    def forward(self, x):
        return x + self.table()


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, dtype=torch.float64))

    def forward(self):
        return self.weight


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (Bilinear, "Bilinear"),
        (Elsewhere, "Linear"),
        (OverSamples, "Table"),
        (lambda: nn.BatchNorm1d(8).double(), "BatchNorm1d"),
    ],
)
def test_what_one_pass_cannot_evaluate_is_refused_by_name_in_the_first_step(module, name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), module(), nn.Linear(8, 5)).double()
    update = make(model, "one_pass", "momentum")
    before = copy.deepcopy(model.state_dict())
    x, labels = torch.randn(6, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 0])
    losses = lambda model, x, y: F.cross_entropy(model(x), y, reduction="none")  # noqa: E731
    with pytest.raises(NotPerSampleError, match=rf"the weights of \S+ \({name}\) cannot be perturbed for each sample"):
        run_update(update, model, x, labels, losses=losses)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_one_pass_runs_the_model_once_a_step():
    model = make_model("vit", "lora")
    for direction in ("momentum", "gaussian"):
        update, calls = make(model, "one_pass", direction), []
        hook = model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        for number in range(5):
            calls.clear()
            run_update(update, model, *make_batch(seed=number), number=number)
        hook.remove()
        assert len(calls) == 1


def test_an_exception_leaves_the_next_step_whole():
    model = make_model("vit", "lora")
    update = make(model)

    def interrupted(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        update.micro_batch(torch.tensor([0, 1]), Run(interrupted, interrupted), number=0)
    images, labels = make_batch(seed=2)
    expected = naive_gradient(model, images, labels, C, RHO)
    assert relative_error(run_update(update, model, images, labels, micro_batches=2), expected) <= 1e-10


# ---- choices that do not go together ----


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"perturb": "heads"}, "perturb is 'heads'; choose one of trained, norms, merged"),
        ({"direction": "momentum", "scope": "local"}, "set it to 'global'"),
        ({"direction": "gaussian", "adaptive": True}, "ascent is 'gaussian'; set it to false"),
        ({"perturb": "merged", "adaptive": True}, "perturb is 'merged'"),
        ({"evaluation": "one_pass"}, "ascent 'gradient', which is not known before the batch"),
        ({"interval": 0}, "ascent_interval is 0"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make(make_model("vit", "lora"), **settings)


@pytest.mark.parametrize(
    ("perturb", "model", "message"),
    [
        ("norms", nn.Linear(8, 5).double(), "no normalisation layer with weights"),
        ("merged", nn.Linear(8, 5).double(), "no linear layer of the model carries an adapter"),
    ],
)
def test_nothing_to_perturb_is_refused(perturb, model, message):
    with pytest.raises(ValueError, match=message):
        make(model, perturb=perturb).step.start()


def test_a_merged_weight_of_half_precision_moves_by_less_than_it_can_hold():
    """The perturbation acts beside the layer: with bfloat16 weights it is what it is in float32."""
    model = make_model("vit", "lora", dtype=torch.float32)
    half = copy.deepcopy(model).bfloat16()
    for p in half.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    images, labels = make_batch(16, dtype=torch.float32)
    update = make(half, perturb="merged")
    with torch.autocast("cpu", torch.bfloat16):
        run_update(update, half, images, labels)
        run_update(update, half, images, labels)
    log = update.step.statistics.pop()
    assert 0.9 * RHO < log["perturbation_norm"] < 1.1 * RHO
    exact = make(model, perturb="merged")
    run_update(exact, model, images, labels)
    run_update(exact, model, images, labels)
    assert log["sharpness"] == pytest.approx(exact.step.statistics.pop()["sharpness"], rel=0.15)
