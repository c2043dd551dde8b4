"""Every loss against its formula, written out in float64."""

import math

import pytest
import torch

from ft_focalsam.losses import LOSSES, make_loss, register_loss

COUNTS = [500, 120, 30, 7, 1]
BATCH = 12

every_loss = pytest.mark.parametrize("name", ["cross_entropy", "logit_adjusted"])


def logits(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (4 * torch.randn(BATCH, len(COUNTS), generator=torch.Generator().manual_seed(0))).to(dtype)


def labels(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "hard":
        return torch.randint(len(COUNTS), (BATCH,), generator=generator)
    return torch.rand(BATCH, len(COUNTS), generator=generator).pow(4).softmax(dim=1)


def formula(name: str, z: torch.Tensor, y: torch.Tensor, *, tau: float = 1.0, smoothing: float = 0.0) -> list[float]:
    """l_n = -sum_k q_k log softmax(s)_k, s = z + tau log pi, q = (1 - a) y + a / C; in Python floats."""
    losses = []
    for row, label in zip(z.double().tolist(), y.tolist(), strict=True):
        size = len(row)
        target = label if isinstance(label, list) else [float(k == label) for k in range(size)]
        target = [(1 - smoothing) * value + smoothing / size for value in target]
        if name == "logit_adjusted":
            row = [value + tau * math.log(n / sum(COUNTS)) for value, n in zip(row, COUNTS, strict=True)]
        log_sum = max(row) + math.log(sum(math.exp(value - max(row)) for value in row))
        losses.append(-sum(q * (value - log_sum) for q, value in zip(target, row, strict=True)))
    return losses


def assert_losses(actual: torch.Tensor, expected: list[float], *, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=atol)


def test_every_registered_loss_is_tested():
    assert set(LOSSES) == {"cross_entropy", "logit_adjusted"}


@every_loss
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["plain", "smoothed"])
@pytest.mark.parametrize("tau", [0.5, 1.0], ids=["tau_half", "tau_one"])
def test_losses_equal_the_formula(name, kind, smoothing, tau):
    y = labels(kind)
    actual = make_loss(name, COUNTS, tau=tau, label_smoothing=smoothing)(logits(), y)
    assert actual.dtype == torch.float32
    assert_losses(actual, formula(name, logits(), y, tau=tau, smoothing=smoothing), rtol=1e-5, atol=1e-6)


@every_loss
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_float64_logits_stay_float64(name, kind):
    z = logits().double()
    y = labels(kind) if kind == "hard" else labels(kind).double()
    actual = make_loss(name, COUNTS)(z, y)
    assert actual.dtype == torch.float64
    assert_losses(actual, formula(name, z, y), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_tau_zero_is_cross_entropy(kind):
    adjusted = make_loss("logit_adjusted", COUNTS, tau=0.0)(logits(), labels(kind))
    assert torch.equal(adjusted, make_loss("cross_entropy", COUNTS)(logits(), labels(kind)))


def test_balanced_counts_are_cross_entropy():
    adjusted = make_loss("logit_adjusted", [9] * 5, tau=1.0)(logits(), labels("hard"))
    expected = formula("cross_entropy", logits(), labels("hard"))
    assert_losses(adjusted, expected, rtol=1e-5, atol=1e-6)


@every_loss
@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_logits_give_float32_losses_without_overflow(name, kind, dtype):
    """The losses of 60000 and more are beyond float16; those near 1 would be rounded to 3 or 2 digits."""
    z = logits(dtype)
    z[0], z[1] = torch.tensor([6e4, -6e4, 0.0, 0.0, 0.0]).to(dtype), torch.tensor([-6e4, 6e4, 0, 0, 6e4]).to(dtype)
    y = labels(kind)
    if kind == "hard":
        y[0], y[1] = 1, 0
    actual = make_loss(name, COUNTS)(z, y)
    assert actual.dtype == torch.float32
    assert actual.isfinite().all() and actual.max() > 1e4
    assert_losses(actual, formula(name, z, y), rtol=1e-5, atol=1e-6)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
def test_soft_labels_of_another_dtype(name, dtype):
    y = labels("soft").to(dtype)
    assert_losses(make_loss(name, COUNTS)(logits(), y), formula(name, logits(), y), rtol=1e-5, atol=1e-6)


@every_loss
def test_gradient_is_softmax_minus_target(name):
    z = logits().double().requires_grad_()
    y = labels("hard")
    make_loss(name, COUNTS, tau=0.7)(z, y).sum().backward()
    prior = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    scores = z.detach().exp() * (prior**0.7 if name == "logit_adjusted" else 1)
    expected = scores / scores.sum(dim=1, keepdim=True)
    expected[torch.arange(BATCH), y] -= 1
    torch.testing.assert_close(z.grad, expected, rtol=1e-10, atol=1e-12)


@every_loss
@pytest.mark.parametrize("counts", [[5, 0, 1], [5, -2, 1]], ids=["zero", "negative"])
def test_class_without_sample_is_refused(name, counts):
    with pytest.raises(ValueError, match=r"Class 1 has no training sample; give it some, or leave the class out"):
        make_loss(name, counts)


def test_unknown_name():
    with pytest.raises(ValueError, match="Unknown loss 'focal'; choose one of cross_entropy, logit_adjusted"):
        make_loss("focal", COUNTS)


def test_name_is_taken_once():
    with pytest.raises(ValueError, match=r"'cross_entropy' is already registered by .*; choose another name"):
        register_loss("cross_entropy")(lambda logits, labels: logits)
