"""Every loss against the formula of its paper, written out in Python floats as a loop over the samples."""

import math

import pytest
import torch

from ft_focalsam.losses import (
    LOSSES,
    effective_number_weights,
    loss_hyperparameters,
    make_loss,
    register_loss,
    same_kind,
)

COUNTS = [500, 120, 30, 7, 1]
PRIOR = [n / sum(COUNTS) for n in COUNTS]
BATCH = 12

# Values other than the defaults, so that a loss that leaves them unused is found out.
SETTINGS = {
    "cross_entropy": {},
    "class_balanced": {"effective_number_beta": 0.99},
    "grw": {"grw_exponent": 0.7},
    "focal": {"focal_loss_gamma": 1.5},
    "ldam": {"ldam_max_margin": 0.3, "ldam_scale": 8.0},
    "balanced_softmax": {},
    "logit_adjusted": {"logit_adjustment_tau": 0.6},
    "vs": {"vs_gamma": 0.2, "logit_adjustment_tau": 1.3},
    "lade": {"lade_alpha": 0.4, "lade_lambda": 0.05},
    "influence_balanced": {"ib_alpha": 20.0, "ib_start": 0.25},
}
every_loss = pytest.mark.parametrize("name", SETTINGS)
both_kinds = pytest.mark.parametrize("kind", ["hard", "soft"])


def logits(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (4 * torch.randn(BATCH, len(COUNTS), generator=torch.Generator().manual_seed(0))).to(dtype)


def labels(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if kind == "hard":
        return torch.randint(len(COUNTS), (BATCH,), generator=generator)
    return torch.rand(BATCH, len(COUNTS), generator=generator).pow(4).softmax(dim=1)


def features(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(BATCH, 7, generator=torch.Generator().manual_seed(2)).to(dtype)


# ---- the formulas ----


def log_softmax(row: list[float]) -> list[float]:
    log_sum = max(row) + math.log(sum(math.exp(value - max(row)) for value in row))
    return [value - log_sum for value in row]


def one_minus_softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(row)) for value in row]
    return [sum(e for j, e in enumerate(exponentials) if j != k) / sum(exponentials) for k in range(len(row))]


def of_class(name: str, z: list[float], k: int, h: list[float], s: dict) -> float:
    """l(z, k), the loss of a sample of class k."""
    classes = range(len(z))
    if name == "cross_entropy":
        return -log_softmax(z)[k]
    if name == "class_balanced":
        beta = s["effective_number_beta"]
        weights = [(1 - beta) / (1 - beta**n) for n in COUNTS]
        return -len(z) * weights[k] / sum(weights) * log_softmax(z)[k]
    if name == "grw":
        weights = [(1 / pi) ** s["grw_exponent"] for pi in PRIOR]
        return -len(z) * weights[k] / sum(weights) * log_softmax(z)[k]
    if name == "focal":
        return -(one_minus_softmax(z)[k] ** s["focal_loss_gamma"]) * log_softmax(z)[k]
    if name == "ldam":
        margins = [n**-0.25 for n in COUNTS]
        margin, scale = s["ldam_max_margin"] * margins[k] / max(margins), s["ldam_scale"] or 1
        cosines = [value / scale - (margin if j == k else 0) for j, value in enumerate(z)]
        return -log_softmax([scale * value for value in cosines])[k]
    if name == "balanced_softmax":
        return -math.log(COUNTS[k] * math.exp(z[k]) / sum(COUNTS[j] * math.exp(z[j]) for j in classes))
    if name == "logit_adjusted":
        return -log_softmax([z[j] + s["logit_adjustment_tau"] * math.log(PRIOR[j]) for j in classes])[k]
    if name == "vs":
        scales = [(n / max(COUNTS)) ** s["vs_gamma"] for n in COUNTS]
        return -log_softmax([scales[j] * z[j] + s["logit_adjustment_tau"] * math.log(PRIOR[j]) for j in classes])[k]
    assert name == "influence_balanced"
    p = [math.exp(value) for value in log_softmax(z)]
    distance = one_minus_softmax(z)[k] + sum(p[j] for j in classes if j != k)  # ||p - e_k||_1
    influence = distance * sum(abs(value) for value in h)
    rarity = len(z) * (1 / COUNTS[k]) / sum(1 / n for n in COUNTS)
    return -s["ib_alpha"] * rarity / (influence + 1e-3) * log_softmax(z)[k]


def formula(name: str, z, y, *, smoothing: float = 0.0, h=None, **settings) -> list[float]:
    """l_n = sum_k q_k l(z_n, k) with q = (1 - a) y + a / C; for LADE, the regulariser beside it."""
    s = {**loss_hyperparameters(name), **settings}
    rows, size = z.double().tolist(), z.shape[1]
    h = (features() if h is None else h).double().tolist()
    targets = []
    for label in y.tolist():
        target = label if isinstance(label, list) else [float(k == label) for k in range(size)]
        targets.append([(1 - smoothing) * value + smoothing / size for value in target])
    base = "balanced_softmax" if name == "lade" else name
    losses = [
        sum(q * of_class(base, row, k, h[n], s) for k, q in enumerate(target) if q)
        for n, (row, target) in enumerate(zip(rows, targets, strict=True))
    ]
    if name == "lade":
        for n, addend in enumerate(lade_regulariser(rows, targets, s)):
            losses[n] += s["lade_alpha"] * addend
    return losses


def lade_regulariser(rows, targets, s) -> list[float]:
    """sum_c pi_c (-1/N_c sum_{y_n = c} z_nc + S_c + lambda S_c^2), the first part where it belongs."""
    size, shared, own = len(PRIOR), 0.0, [0.0] * len(rows)
    for c in range(size):
        importances = [sum(q * (1 / size) / PRIOR[k] for k, q in enumerate(target)) for target in targets]
        mean = sum(w * math.exp(row[c]) for w, row in zip(importances, rows, strict=True)) / len(rows)
        shared += PRIOR[c] * (math.log(mean) + s["lade_lambda"] * math.log(mean) ** 2)
        present = sum(target[c] for target in targets)
        for n, (row, target) in enumerate(zip(rows, targets, strict=True)):
            own[n] += PRIOR[c] * target[c] * row[c] / present if target[c] else 0
    return [shared - len(rows) * part for part in own]


def run(name: str, z, y, *, h=None, **options) -> torch.Tensor:
    loss = make_loss(name, COUNTS, **options)
    return loss(z, y, features=features(z.dtype) if h is None else h, progress=0.5)


def assert_losses(actual: torch.Tensor, expected: list[float], *, rtol: float, atol: float = 0.0) -> None:
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=rtol, atol=atol)


def test_every_registered_loss_is_tested():
    assert set(same_kind(multi_label=False)) == set(SETTINGS)
    assert all(set(loss_hyperparameters(name)) == set(settings) for name, settings in SETTINGS.items())


@every_loss
@both_kinds
@pytest.mark.parametrize("smoothing", [0.0, 0.1], ids=["plain", "smoothed"])
def test_losses_equal_the_formula(name, kind, smoothing):
    y = labels(kind)
    for settings in ({}, SETTINGS[name]):
        actual = run(name, logits(), y, hyperparameters=settings, label_smoothing=smoothing)
        assert actual.dtype == torch.float32
        assert_losses(actual, formula(name, logits(), y, smoothing=smoothing, **settings), rtol=2e-5, atol=1e-5)


@every_loss
@both_kinds
def test_float64_logits_stay_float64(name, kind):
    z, h = logits().double(), features().double()
    y = labels(kind) if kind == "hard" else labels(kind).double()
    actual = run(name, z, y, h=h, hyperparameters=SETTINGS[name])
    assert actual.dtype == torch.float64
    assert_losses(actual, formula(name, z, y, h=h, **SETTINGS[name]), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "limit", "limit_settings"),
    [
        ("logit_adjusted", {"logit_adjustment_tau": 0.0}, "cross_entropy", {}),
        ("focal", {"focal_loss_gamma": 0.0}, "cross_entropy", {}),
        ("class_balanced", {"effective_number_beta": 0.0}, "cross_entropy", {}),
        ("grw", {"grw_exponent": 0.0}, "cross_entropy", {}),
        ("ldam", {"ldam_max_margin": 0.0, "ldam_scale": 25.0}, "cross_entropy", {}),
        ("vs", {"vs_gamma": 0.0, "logit_adjustment_tau": 1.0}, "logit_adjusted", {"logit_adjustment_tau": 1.0}),
        ("vs", {"vs_gamma": 0.0, "logit_adjustment_tau": 0.0}, "cross_entropy", {}),
        ("lade", {"lade_alpha": 0.0}, "balanced_softmax", {}),
        ("balanced_softmax", {}, "logit_adjusted", {"logit_adjustment_tau": 1.0}),
        ("influence_balanced", {"ib_start": 0.75}, "cross_entropy", {}),
        ("class_balanced", {"effective_number_beta": 1 - 1e-9}, "grw", {"grw_exponent": 1.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else "_".join(map(str, value.values())),
)
@both_kinds
def test_known_limits(name, settings, limit, limit_settings, kind):
    z, y, h = logits().double(), labels(kind), features().double()
    actual = run(name, z, y, h=h, hyperparameters=settings)
    expected = run(limit, z, y, h=h, hyperparameters=limit_settings)
    torch.testing.assert_close(actual, expected, rtol=1e-6 if limit == "grw" else 1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["balanced_softmax", "logit_adjusted", "vs", "class_balanced", "grw"])
def test_balanced_counts_are_cross_entropy(name):
    actual = make_loss(name, [9] * 5)(logits(), labels("hard"))
    assert_losses(actual, formula("cross_entropy", logits(), labels("hard")), rtol=1e-5, atol=1e-6)


# ---- numbers ----


@every_loss
@both_kinds
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_logits_give_float32_losses_without_overflow(name, kind, dtype):
    """Losses of 60000 and more are beyond float16; those near 1 would be rounded to 3 or 2 digits."""
    z, h = logits(dtype), features(dtype)
    z[0], z[1] = torch.tensor([6e4, -6e4, 0.0, 0.0, 0.0]).to(dtype), torch.tensor([-6e4, 6e4, 0, 0, 6e4]).to(dtype)
    z[2] = torch.tensor([6e4, -6e4, -6e4, -6e4, -6e4]).to(dtype)
    y = labels(kind)
    if kind == "hard":
        y[:3] = torch.tensor([1, 0, 0])
    z.requires_grad_()
    actual = run(name, z, y, h=h, hyperparameters=SETTINGS[name])
    assert actual.dtype == torch.float32
    assert actual.isfinite().all() and actual.max() > 1e3
    actual.sum().backward()
    assert z.grad.isfinite().all()
    wide = run(name, z.detach().double(), y, h=h.double(), hyperparameters=SETTINGS[name])
    torch.testing.assert_close(actual.double(), wide, rtol=1e-5, atol=1e-5)
    plain = slice(3, None)  # math.exp of 60000 overflows
    if name != "lade":
        expected = formula(name, z[plain], y[plain], h=h[plain], **SETTINGS[name])
        assert_losses(actual[plain], expected, rtol=2e-5, atol=1e-5)


@every_loss
def test_gradient_equals_finite_differences(name):
    """Also of a sample whose probability is 1 to within 1e-15, where 1 - p is all rounding."""
    z, h = logits().double(), features().double()
    z[0, 2] += 40
    y = labels("hard")
    y[0] = 2
    z.requires_grad_(), h.requires_grad_()
    loss = make_loss(name, COUNTS, SETTINGS[name])
    assert torch.autograd.gradcheck(lambda a, b: loss(a, y, features=b, progress=1.0), (z, h), rtol=1e-5, atol=1e-7)


def test_ldam_is_exact_where_the_probability_rounds_to_one():
    """In float32 p = 1 and 1 - p = 0 here, of which a margin of 4.2 would make a loss of 0; it is 2.6e-11."""
    z, margin = torch.tensor([[30.0, 0.0, 0.0, 0.0, 0.0]]), 40 * 0.5 * (1 / 500) ** 0.25
    expected = math.log1p(4 * math.exp(margin - 30))
    actual = make_loss("ldam", COUNTS, {"ldam_scale": 40.0})(z, torch.tensor([0]))
    assert float(actual) == pytest.approx(expected, rel=1e-4)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64], ids=["float16", "float64"])
def test_soft_labels_of_another_dtype(name, dtype):
    y = labels("soft").to(dtype)
    actual = run(name, logits(), y)
    assert actual.dtype == torch.float32
    assert_losses(actual, formula(name, logits(), y), rtol=2e-5, atol=1e-5)


# ---- deferred re-weighting ----


@every_loss
@both_kinds
def test_deferred_reweighting_weighs_by_the_effective_number_from_its_start_on(name, kind):
    z, y, h = logits().double(), labels(kind), features().double()
    settings = {**SETTINGS[name], "effective_number_beta": 0.98}
    plain = make_loss(name, COUNTS, settings, label_smoothing=0.1)
    deferred = make_loss(name, COUNTS, settings, label_smoothing=0.1, drw_start=0.8)
    weights = [(1 - 0.98) / (1 - 0.98**n) for n in COUNTS]
    weights = [w * len(COUNTS) / sum(weights) for w in weights]
    rows = [row if isinstance(row, list) else [float(k == row) for k in range(5)] for row in y.tolist()]
    of_samples = torch.tensor([sum(q * w for q, w in zip(row, weights, strict=True)) for row in rows]).double()
    for progress in (0.0, 0.79, 0.8, 1.0):
        before = plain(z, y, features=h, progress=progress)
        expected = before * of_samples if progress >= 0.8 else before
        actual = deferred(z, y, features=h, progress=progress)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_effective_number_weights_have_mean_one_and_approach_the_inverse_frequency():
    counts = torch.tensor(COUNTS, dtype=torch.float64)
    for beta in (0.0, 0.9, 0.9999, 1 - 1e-12):
        assert float(effective_number_weights(counts, beta).mean()) == pytest.approx(1)
    assert torch.equal(effective_number_weights(counts, 0.0), torch.ones(5, dtype=torch.float64))
    inverse = (1 / counts) / (1 / counts).mean()
    torch.testing.assert_close(effective_number_weights(counts, 1 - 1e-12), inverse, rtol=1e-8, atol=0)


# ---- what a loss is and takes ----


def test_only_lade_makes_samples_interact_and_only_influence_balanced_needs_features():
    losses = [make_loss(name, COUNTS) for name in LOSSES]
    assert [loss.name for loss in losses if loss.samples_interact] == ["lade"]
    assert [loss.name for loss in losses if loss.needs_features] == ["influence_balanced"]
    assert not make_loss("lade", COUNTS, {"lade_alpha": 0.0}).samples_interact


def test_lade_without_a_class_in_the_batch():
    z, y = logits().double(), torch.tensor([0, 1] * 6)
    assert_losses(make_loss("lade", COUNTS)(z, y), formula("lade", z, y), rtol=1e-11)


def test_influence_balanced_without_features_is_refused():
    with pytest.raises(ValueError, match="'influence_balanced' needs the features that reach the classifier"):
        make_loss("influence_balanced", COUNTS)(logits(), labels("hard"))


@every_loss
@pytest.mark.parametrize("counts", [[5, 0, 1], [5, -2, 1]], ids=["zero", "negative"])
def test_class_without_sample_is_refused(name, counts):
    with pytest.raises(ValueError, match=r"Class 1 has no training sample; give it some, or leave the class out"):
        make_loss(name, counts)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "class_balanced",
            {"effective_number_beta": 1.0},
            r"effective_number_beta is 1\.0; set it to 0 or more and below",
        ),
        ("cross_entropy", {"effective_number_beta": -0.1}, r"effective_number_beta is -0\.1"),
        ("grw", {"grw_exponent": -1.0}, r"grw_exponent is -1\.0; set it to 0 or more"),
        ("focal", {"focal_loss_gamma": float("nan")}, r"focal_loss_gamma is nan; set it to 0 or more"),
        ("ldam", {"ldam_max_margin": -0.5}, r"ldam_max_margin is -0\.5"),
        ("ldam", {"ldam_scale": 0.0}, r"ldam_scale is 0\.0; set it to a number above 0"),
        ("vs", {"vs_gamma": -0.1}, r"vs_gamma is -0\.1"),
        ("lade", {"lade_alpha": -1.0}, r"lade_alpha is -1\.0"),
        ("lade", {"lade_lambda": -1.0}, r"lade_lambda is -1\.0"),
        ("influence_balanced", {"ib_alpha": 0.0}, r"ib_alpha is 0\.0; set it to a number above 0"),
        ("influence_balanced", {"ib_start": 1.5}, r"ib_start is 1\.5; set it to a number from 0 to 1"),
        ("focal", {"focal_loss_gama": 1.0}, "hyperparameter 'focal_loss_gama'; did you mean 'focal_loss_gamma'"),
    ],
)
def test_bad_hyperparameters_are_refused_before_the_first_batch(name, settings, message):
    with pytest.raises(ValueError, match=message):
        make_loss(name, COUNTS, settings)


def test_drw_start_out_of_range():
    with pytest.raises(ValueError, match=r"drw_start is 80; set it to a share of training, from 0 to 1"):
        make_loss("cross_entropy", COUNTS, drw_start=80)


def test_a_loss_leaves_the_hyperparameters_of_others():
    everything = {name: value for settings in SETTINGS.values() for name, value in settings.items()}
    actual = run("focal", logits(), labels("hard"), hyperparameters=everything)
    assert torch.equal(actual, run("focal", logits(), labels("hard"), hyperparameters=SETTINGS["focal"]))


def test_a_new_loss_is_one_function(monkeypatch):
    for name in list(LOSSES):
        monkeypatch.setitem(LOSSES, name, LOSSES[name])  # so that what is registered here goes away

    @register_loss("brier")
    def brier(logits, targets, *, class_counts, brier_power=2.0):
        return ((logits.softmax(dim=1) - targets).abs() ** brier_power / class_counts).sum(dim=1)

    z, y = logits().double(), labels("hard")
    p, q = z.softmax(dim=1), torch.eye(5, dtype=torch.float64)[y]
    expected = ((p - q).abs() ** 3 / torch.tensor(COUNTS)).sum(dim=1)
    torch.testing.assert_close(make_loss("brier", COUNTS, {"brier_power": 3.0})(z, y), expected)
    LOSSES["brier"] = lambda logits, targets: (logits.softmax(dim=1) - targets).square().mean()
    with pytest.raises(ValueError, match=r"'brier' returns the shape \(\) for 3 samples; let it return one"):
        make_loss("brier", COUNTS)
    del LOSSES["brier"]


def test_unknown_name():
    with pytest.raises(ValueError, match="Unknown loss 'poly'; choose one of cross_entropy, class_balanced"):
        make_loss("poly", COUNTS)


def test_name_is_taken_once():
    with pytest.raises(ValueError, match=r"'cross_entropy' is already registered by .*; choose another name"):
        register_loss("cross_entropy")(lambda logits, labels: logits)
