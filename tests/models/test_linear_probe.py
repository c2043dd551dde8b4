"""Heads that normalise, and the linear probe that any head can start from, against formulas written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ft_focalsam.models import HEADS, LongTailClassifier, collect_features, fit_linear_probe, init_head
from ft_focalsam.models.linear_probe import PENALTIES, TEMPERATURES

COUNTS = (40, 20, 9, 4, 2)
SIZE = 12
CLASSES = len(COUNTS)

every_head = pytest.mark.parametrize("head", HEADS)


def long_tail(*, seed: int = 0, counts: tuple[int, ...] = COUNTS) -> tuple[torch.Tensor, torch.Tensor]:
    """Features far from centred, most of whose variance says nothing of the class: float32, (N, D), and labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(len(counts), SIZE, generator=torch.Generator().manual_seed(9))
    labels = torch.cat([torch.full((n,), label) for label, n in enumerate(counts)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    common = torch.linspace(-2, 3, SIZE)
    nuisance = torch.randn(len(labels), 2, generator=generator) @ torch.eye(SIZE)[:2] * 4
    noise = 0.35 * torch.randn(len(labels), SIZE, generator=generator)
    return 10 * common + centres[labels] + nuisance + noise, labels


def balanced_accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    right = (logits.argmax(dim=1) == labels).double()
    return float(torch.stack([right[labels == label].mean() for label in range(CLASSES)]).mean())


# ---- heads ----


def test_l2_normalized_logits_equal_the_formula():
    torch.manual_seed(0)
    head, features = HEADS["l2_normalized"](8, 5, 7.0), 10 * torch.randn(6, 8)
    for f, logits in zip(features.double(), head(features).double(), strict=True):
        weight, bias = head.linear.weight.detach().double(), head.linear.bias.detach().double()
        torch.testing.assert_close(logits, 7 * weight @ f / f.square().sum().sqrt() + bias, rtol=0, atol=1e-5)


def test_layer_norm_logits_equal_the_formula():
    torch.manual_seed(0)
    head, features = HEADS["layer_norm"](8, 5, 25.0), 10 * torch.randn(6, 8) + 3
    with torch.no_grad():
        for parameter in head.norm.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    p = {name: value.detach().double() for name, value in head.named_parameters()}
    for f, logits in zip(features.double(), head(features).double(), strict=True):
        normed = (f - f.mean()) / (f.var(correction=0) + 1e-5).sqrt() * p["norm.weight"] + p["norm.bias"]
        torch.testing.assert_close(logits, p["linear.weight"] @ normed + p["linear.bias"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", ["l2_normalized", "layer_norm"])
def test_normalising_heads_do_not_see_the_length_of_a_feature(head):
    torch.manual_seed(0)
    model, features = HEADS[head](8, 5, 25.0), torch.randn(6, 8)
    torch.testing.assert_close(model(100 * features), model(10 * features), rtol=0, atol=1e-4)
    assert (model(-features) - model(features)).abs().max() > 0.1


@pytest.mark.parametrize(("head", "centres"), [("cosine", False), ("l2_normalized", False), ("layer_norm", True)])
def test_start_from_vectors_answers_by_their_cosines(head, centres):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(5, 64, generator=generator) * torch.linspace(0.2, 3, 5)[:, None]
    features = 10 * torch.randn(20, 64, generator=generator) + 4
    model = HEADS[head](64, 5, 25.0)
    model.start_from(vectors)
    if centres:
        features_seen, vectors = features - features.mean(dim=1, keepdim=True), vectors - vectors.mean(dim=1)[:, None]
    else:
        features_seen = features
    expected = 25 * F.cosine_similarity(features_seen[:, None], vectors[None], dim=-1)
    torch.testing.assert_close(model(features), expected, rtol=0, atol=1e-4)


# ---- the fit ----


def ridge_by_hand(x, labels, weights, ridge: float, *, has_bias: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Least squares over rows scaled by the roots of the weights, with rows for the penalty beneath."""
    rows = weights.sqrt()[:, None]
    design = torch.cat([x, torch.ones(len(x), 1)], dim=1).double() if has_bias else x.double()
    penalty = ridge**0.5 * torch.eye(design.shape[1], dtype=torch.float64)[: x.shape[1]]
    targets = F.one_hot(labels, CLASSES).double()
    stacked = torch.cat([rows * targets, torch.zeros(len(penalty), CLASSES, dtype=torch.float64)])
    solution = torch.linalg.lstsq(torch.cat([rows * design, penalty]), stacked, driver="gelsd").solution
    return solution[: x.shape[1]].T, solution[x.shape[1]] if has_bias else torch.zeros(CLASSES).double()


def scale_of_ridge(x, weights, *, has_bias: bool) -> float:
    """Mean eigenvalue of the covariance in which every class weighs the same."""
    x = x.double()
    x = x - weights @ x if has_bias else x
    return float((weights[:, None] * x.square()).sum() / x.shape[1])


@pytest.mark.parametrize("has_bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("seed", [0, 1])
def test_fit_is_the_balanced_ridge_with_the_least_loss_on_left_out_images(has_bias, seed):
    x, labels = long_tail(seed=seed)
    weights = torch.stack([1 / torch.tensor(CLASSES * COUNTS[label]).double() for label in labels])
    unit = scale_of_ridge(x, weights, has_bias=has_bias)
    losses = {}
    for penalty in PENALTIES:
        outputs = []
        for n in range(len(x)):  # a new fit for each image that is left out
            kept = torch.arange(len(x)) != n
            w, b = ridge_by_hand(x[kept], labels[kept], weights[kept], penalty * unit, has_bias=has_bias)
            outputs.append(w @ x[n].double() + b)
        for t in TEMPERATURES:
            log = (t * torch.stack(outputs)).log_softmax(dim=1)[torch.arange(len(x)), labels]
            losses[penalty, t] = float(-(weights * log).sum())
    fit = fit_linear_probe(x, labels, CLASSES, has_bias=has_bias)
    assert (fit.penalty, fit.temperature) == min(losses, key=losses.get)
    weight, bias = ridge_by_hand(x, labels, weights, fit.penalty * unit, has_bias=has_bias)
    torch.testing.assert_close(fit.weight, fit.temperature * weight, rtol=0, atol=1e-6)
    if has_bias:
        torch.testing.assert_close(fit.bias, fit.temperature * bias, rtol=1e-8, atol=1e-6)
    else:
        assert fit.bias is None


def test_fit_does_not_depend_on_how_often_the_same_images_come():
    """All images of one class three times: the class weighs what it weighed."""
    x, labels = long_tail()
    again = torch.cat([torch.arange(len(x)), *[(labels == 0).nonzero()[:, 0]] * 2])
    once, more = fit_linear_probe(x, labels, CLASSES), fit_linear_probe(x[again], labels[again], CLASSES)
    assert more.penalty == once.penalty
    torch.testing.assert_close(more.weight / more.temperature, once.weight / once.temperature, rtol=0, atol=1e-8)


def test_fit_in_chunks_and_on_some_of_the_images(monkeypatch):
    x, labels = long_tail(counts=(900, 700, 500, 300, 200))
    whole = fit_linear_probe(x, labels, CLASSES)
    monkeypatch.setattr("ft_focalsam.models.linear_probe.ROWS", 97)
    monkeypatch.setattr("ft_focalsam.models.linear_probe.CHOOSING", 1)
    parts = fit_linear_probe(x, labels, CLASSES)
    assert (parts.penalty, parts.temperature) == (whole.penalty, whole.temperature)
    torch.testing.assert_close(parts.weight, whole.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("counts", [(30, 1, 1, 1, 1), (1, 1, 1, 1, 1)], ids=["rare", "all"])
def test_classes_of_one_image(counts):
    x, labels = long_tail(counts=counts)
    fit = fit_linear_probe(x, labels, CLASSES)
    assert fit.weight.isfinite().all() and fit.bias.isfinite().all()
    logits = x.double() @ fit.weight.T + fit.bias
    assert torch.equal(logits.argmax(dim=1), labels)


def test_class_without_image():
    x, labels = long_tail()
    with pytest.raises(ValueError, match="Class 3 has no image to fit the head to"):
        fit_linear_probe(x[labels != 3], labels[labels != 3], CLASSES)


def test_features_that_are_not_finite():
    x, labels = long_tail()
    x[5, 3] = float("inf")
    with pytest.raises(ValueError, match="features that are not finite; load it with backbone_dtype float32"):
        fit_linear_probe(x, labels, CLASSES)


# ---- the start of a head ----


class OfFeatures(LongTailClassifier):
    """Its images are the features."""

    def features(self, pixel_values):
        return pixel_values.flatten(1)


def classifier_of_features(backbones, head: str) -> LongTailClassifier:
    torch.manual_seed(0)
    model = OfFeatures.from_backbone(str(backbones["vit"]), [str(i) for i in range(CLASSES)], head=head)
    model.head = HEADS[head](SIZE, CLASSES, 25.0)
    model.config.feature_size = SIZE
    return model


def batches(features: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    parts = zip(features.view(-1, 3, 2, 2).split(16), labels.split(16), strict=True)
    return [{"pixel_values": x, "labels": y} for x, y in parts]


@every_head
def test_linear_probe_starts_better_than_class_means_on_features_that_are_not_centred(backbones, head):
    train, test = long_tail(), long_tail(seed=1, counts=(50,) * CLASSES)
    accuracies = {}
    for start in ("class_means", "linear_probe", "random"):
        model = classifier_of_features(backbones, head)
        init_head(model, start, batches=lambda: batches(*train))
        accuracies[start] = balanced_accuracy(model.head(test[0]), test[1])
    assert accuracies["linear_probe"] > accuracies["class_means"] + 0.1
    assert accuracies["linear_probe"] > 0.7


@pytest.mark.parametrize("head", ["linear", "l2_normalized", "layer_norm"])
def test_logits_of_a_started_head_are_those_of_the_fit(backbones, head):
    x, labels = long_tail()
    model = classifier_of_features(backbones, head)
    init_head(model, "linear_probe", batches=lambda: batches(x, labels))
    seen = {
        "linear": x,
        "l2_normalized": 25 * x / x.norm(dim=1, keepdim=True),
        "layer_norm": F.layer_norm(x, (SIZE,)),
    }[head]
    fit = fit_linear_probe(seen, labels, CLASSES)
    torch.testing.assert_close(model.head(x).double(), seen.double() @ fit.weight.T + fit.bias, rtol=0, atol=2e-3)
    assert all(parameter.requires_grad for parameter in model.head.parameters())


def test_features_are_collected_without_dropout_and_leave_the_mode(backbones):
    model = LongTailClassifier.from_backbone(str(backbones["dinov2"]), ["a", "b"]).eval()
    images = torch.randn(7, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 1, 0, 0, 1, 1, 0])
    expected = torch.stack([model.features(image[None])[0] for image in images])
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    model.train()
    parts = [{"pixel_values": images[a:b], "labels": labels[a:b]} for a, b in ((0, 3), (3, 7))]
    features, found = collect_features(model, iter(parts))
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)
    assert torch.equal(found, labels) and model.training and not features.requires_grad


# ---- errors ----


@pytest.mark.parametrize("start", ["class_means", "linear_probe"])
def test_start_without_images(backbones, start):
    model = LongTailClassifier.from_backbone(str(backbones["vit"]), ["a", "b"])
    with pytest.raises(ValueError, match=f'head_start of "{start}" needs the training images; give `batches`'):
        init_head(model, start)


@pytest.mark.parametrize(
    ("start", "missing"), [("linear_probe", "prepare, has_bias, start_from_fit"), ("class_means", "start_from")]
)
def test_head_without_such_a_start(backbones, monkeypatch, start, missing):
    class Plain(nn.Linear):
        def __init__(self, feature_size, num_classes, scale):
            super().__init__(feature_size, num_classes)

    monkeypatch.setitem(HEADS, "plain", Plain)
    model = LongTailClassifier.from_backbone(str(backbones["vit"]), ["a", "b"], head="plain")
    with pytest.raises(ValueError, match=f"head 'plain' has no start from {start}, for which it needs {missing}; set"):
        init_head(model, start, batches=list)
    init_head(model, "random")
