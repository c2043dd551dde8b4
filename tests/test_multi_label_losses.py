"""The losses for several classes a sample, each against its formula, written out in Python floats."""

import math

import pytest
import torch

from ft_focalsam.losses import LOSSES, is_multi_label, loss_hyperparameters, make_loss, same_kind

COUNTS, NUM_SAMPLES, BATCH = [500, 120, 30, 7, 1], 550, 12
# Values other than the defaults, so that a loss that leaves them unused is found out.
SETTINGS = {
    "bce": {},
    "asymmetric": {"asymmetric_gamma_positive": 0.7, "asymmetric_gamma_negative": 2.5, "asymmetric_margin": 0.1},
    "distribution_balanced": {"db_alpha": 0.2, "db_beta": 7.0, "db_mu": 0.3, "db_kappa": 0.1, "db_lambda": 3.0},
}
every_loss = pytest.mark.parametrize("name", SETTINGS)


def logits(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (3 * torch.randn(BATCH, len(COUNTS), generator=torch.Generator().manual_seed(0))).to(dtype)


def labels() -> torch.Tensor:
    """The second has no class, the third all of them."""
    y = (torch.rand(BATCH, len(COUNTS), generator=torch.Generator().manual_seed(1)) < 0.4).float()
    y[1], y[2] = 0, 1
    return y


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def formula(name: str, z: list[float], y: list[float], s: dict) -> float:
    total = 0.0
    for k, n in enumerate(COUNTS):
        p = sigmoid(z[k])
        if name == "bce":
            total -= y[k] * math.log(p) + (1 - y[k]) * math.log(1 - p)
        elif name == "asymmetric":
            shifted = max(p - s["asymmetric_margin"], 0.0)
            positive = (1 - p) ** s["asymmetric_gamma_positive"] * math.log(p)
            negative = shifted ** s["asymmetric_gamma_negative"] * math.log(1 - shifted)
            total -= y[k] * positive + (1 - y[k]) * negative
        else:
            repeats = sum(own / count for own, count in zip(y, COUNTS, strict=True))
            ratio = (1 / n) / repeats if repeats else math.inf
            weight = s["db_alpha"] + (sigmoid(s["db_beta"] * (ratio - s["db_mu"])) if repeats else 1)
            shift, scale = s["db_kappa"] / s["db_lambda"] * math.log(NUM_SAMPLES / n - 1), s["db_lambda"]
            positive = math.log(1 + math.exp(-(z[k] - shift)))
            negative = math.log(1 + math.exp(scale * (z[k] - shift))) / scale
            total += weight * (y[k] * positive + (1 - y[k]) * negative)
    return total / len(COUNTS)


def test_every_registered_loss_is_tested():
    assert set(SETTINGS) == set(same_kind(multi_label=True))
    assert all(set(SETTINGS[name]) == set(loss_hyperparameters(name)) for name in SETTINGS)
    assert not any(is_multi_label(name) for name in set(LOSSES) - set(SETTINGS))


@every_loss
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("is_default", [False, True])
def test_equals_the_formula(name, smoothing, is_default):
    """Label smoothing spreads its share over having a class and not having it."""
    settings = loss_hyperparameters(name) if is_default else SETTINGS[name]
    loss = make_loss(name, COUNTS, settings, label_smoothing=smoothing, num_samples=NUM_SAMPLES)
    z, y = logits(), labels()
    targets = ((1 - smoothing) * y.double() + smoothing / 2).tolist()
    expected = [formula(name, *row, settings) for row in zip(z.tolist(), targets, strict=True)]
    assert loss(z, y).tolist() == pytest.approx(expected, rel=1e-10)
    assert loss(z.float(), y.long()).dtype == torch.float32
    assert loss(z.float(), y).tolist() == pytest.approx(expected, rel=2e-4)


@every_loss
def test_gradient_equals_finite_differences(name):
    loss = make_loss(name, COUNTS, SETTINGS[name], num_samples=NUM_SAMPLES)
    z, y = logits().requires_grad_(), labels()
    (gradient,) = torch.autograd.grad(loss(z, y).sum(), z)
    step = 1e-6
    for n, k in [(0, 0), (1, 3), (2, 4), (5, 2)]:
        moved = [z.detach().clone() for _ in range(2)]
        moved[0][n, k] += step
        moved[1][n, k] -= step
        slope = float(loss(moved[0], y).sum() - loss(moved[1], y).sum()) / (2 * step)
        assert float(gradient[n, k]) == pytest.approx(slope, rel=1e-6, abs=1e-9)


@every_loss
@pytest.mark.parametrize("size", [40.0, 200.0])
def test_extreme_logits_have_finite_losses_and_gradients(name, size):
    loss = make_loss(name, COUNTS, num_samples=NUM_SAMPLES)
    z = torch.tensor([[size] * 5, [-size] * 5]).requires_grad_()
    for y in (torch.zeros(2, 5), torch.ones(2, 5)):
        losses = loss(z, y)
        (gradient,) = torch.autograd.grad(losses.sum(), z)
        assert losses.isfinite().all() and gradient.isfinite().all()


def test_asymmetric_without_focus_and_margin_is_bce():
    off = dict.fromkeys(SETTINGS["asymmetric"], 0.0)
    z, y = logits(), labels()
    assert torch.allclose(make_loss("asymmetric", COUNTS, off)(z, y), make_loss("bce", COUNTS)(z, y), rtol=1e-12)


def test_a_class_that_every_sample_has_has_a_finite_shift():
    loss = make_loss("distribution_balanced", [BATCH, 3, 1], num_samples=BATCH)
    assert loss(torch.zeros(2, 3), torch.tensor([[1.0, 0, 0], [1, 1, 0]])).isfinite().all()


def test_deferred_reweighting_is_refused():
    with pytest.raises(
        ValueError, match=r"drw_start is 0.8.*'bce' is for several classes a sample; leave drw_start out"
    ):
        make_loss("bce", COUNTS, drw_start=0.8)


@every_loss
def test_samples_do_not_interact(name):
    assert not make_loss(name, COUNTS, num_samples=NUM_SAMPLES).samples_interact
