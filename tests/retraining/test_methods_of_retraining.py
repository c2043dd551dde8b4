"""Each way to retrain a head against its formula in NumPy and loops over classes, in float64."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from retraining.features import COUNTS, GivenFeatures, classifier, given_features, sgd, softmax
from torch import nn
from torch.nn import functional as F
from tuning.tiny import build

from ft_focalsam.models import HEADS
from ft_focalsam.retraining import RETRAINING
from ft_focalsam.retraining.cc_sam import class_weights, shifted_loss
from ft_focalsam.retraining.features import mean_class_accuracy
from ft_focalsam.retraining.heads import new_head
from ft_focalsam.retraining.registry import BalancedTraining
from ft_focalsam.retraining.training import train_balanced

LENGTHS_COUNT = ("linear", "l2_normalized", "layer_norm")


def state_of(model) -> dict[str, np.ndarray]:
    return {name: value.double().numpy().copy() for name, value in model.head.state_dict().items()}


def layer_of(state: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    prefix = "" if "weight" in state else "linear."
    return state[f"{prefix}weight"], state[f"{prefix}bias"]


def quiet(text: object) -> None:
    pass


@pytest.fixture
def clip(tiny_backbones) -> str:
    return tiny_backbones["clip"]


@pytest.mark.parametrize("tau", [0.0, 0.7, 1.0, 2.5])
@pytest.mark.parametrize("head", LENGTHS_COUNT)
def test_tau_normalisation(head, tau, clip):
    model = classifier(clip, head)
    before, frozen = state_of(model), {name: p.clone() for name, p in model.backbone.named_parameters()}
    data = given_features(12)
    assert RETRAINING["tau_norm"](tau=tau).retrain(model, data, say=quiet) == {}
    after = state_of(model)
    weight, _ = layer_of(before)
    expected = np.stack([row / np.sqrt((row**2).sum()) ** tau for row in weight])
    np.testing.assert_allclose(layer_of(after)[0], expected, rtol=1e-6)
    assert not layer_of(after)[1].any() and data.asked == []
    assert all(np.array_equal(before[name], after[name]) for name in before if name.startswith("norm."))
    assert all(torch.equal(p, frozen[name]) for name, p in model.backbone.named_parameters())


@pytest.mark.parametrize("seed", range(4))
def test_tau_is_the_best_on_held_out_images(seed, clip):
    model, data = classifier(clip, "linear", seed=seed), given_features(12, seed=seed)
    weight, _ = layer_of(state_of(model))
    x, y = (each.double().numpy() for each in data.parts["validation"])
    found = {}
    for tau in np.linspace(0, 2, 21):
        answers = (x @ (weight / np.linalg.norm(weight, axis=1, keepdims=True) ** tau).T).argmax(axis=1)
        found[round(tau, 1)] = np.mean([(answers[y == c] == c).mean() for c in range(5)])
    best = min(tau for tau, accuracy in found.items() if accuracy == max(found.values()))
    said = []
    notes = RETRAINING["tau_norm"]().retrain(model, data, say=said.append)
    assert notes["tau"] == best and data.asked == ["validation"]
    assert notes["accuracies"] == pytest.approx({f"{tau:g}": accuracy for tau, accuracy in found.items()})
    assert said[-1] == f"tau {best:g} is taken." and len(said) == 22
    expected = weight / np.linalg.norm(weight, axis=1, keepdims=True) ** best
    np.testing.assert_allclose(layer_of(state_of(model))[0], expected, rtol=1e-5)
    assert len(set(found.values())) > 1  # there is something to choose by


@pytest.mark.parametrize("head", LENGTHS_COUNT)
def test_only_scales_move_in_lws(head, clip):
    model, data = classifier(clip, head), given_features(12)
    before = state_of(model)
    method = RETRAINING["lws"](epochs=3, train_batch_size=16, learning_rate=0.05, seed=4)
    with torch.no_grad():
        logits = model.head(data.parts["train"][0])

    def gradient_of(weights, z, y):
        rows = softmax(weights[0] * z) - np.eye(5)[y]
        return [(rows * z).mean(axis=0)]

    (scales,) = sgd([np.ones(5)], gradient_of, logits, data.parts["train"][1], method)
    notes = method.retrain(model, data, say=quiet)
    assert notes["scales"] == pytest.approx(scales.tolist(), rel=1e-4)
    assert max(abs(scales - 1)) > 0.05
    after, (weight, bias) = state_of(model), layer_of(before)
    np.testing.assert_allclose(layer_of(after)[0], scales[:, None] * weight, rtol=1e-4)
    np.testing.assert_allclose(layer_of(after)[1], scales * bias, rtol=1e-4)
    assert all(np.array_equal(before[name], after[name]) for name in before if name.startswith("norm."))


def test_crt_is_sgd_from_a_new_head(clip):
    model, data = classifier(clip, "linear"), given_features(12)
    method = RETRAINING["crt"](epochs=4, train_batch_size=20, seed=7)
    start = new_head(model, seed=7)

    def gradient_of(weights, x, y):
        rows = (softmax(x @ weights[0].T + weights[1]) - np.eye(5)[y]) / len(y)
        return [rows.T @ x, rows.sum(axis=0)]

    weight, bias = sgd(
        [start.weight.detach().numpy(), start.bias.detach().numpy()], gradient_of, *data.parts["train"], method
    )
    method.retrain(model, data, say=quiet)
    np.testing.assert_allclose(model.head.weight.detach().numpy(), weight, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(model.head.bias.detach().numpy(), bias, rtol=1e-3, atol=1e-4)
    other = classifier(clip, "linear", seed=5)  # what the head was before counts for nothing
    method.retrain(other, given_features(12), say=quiet)
    assert torch.equal(other.head.weight, model.head.weight)


@pytest.mark.parametrize("head", sorted(HEADS))
def test_crt_and_cc_sam_learn_the_rare_classes_with_every_head(head, clip):
    for name, settings in (("crt", {"epochs": 20, "train_batch_size": 16}), ("cc_sam", {"learning_rate": 0.05})):
        model, data = classifier(clip, head), given_features(12)
        flags = [p.requires_grad for p in model.parameters()]
        features, labels = data.parts["train"]
        before = mean_class_accuracy(model.head(features), labels)
        RETRAINING[name](**settings).retrain(model, data, say=quiet)
        assert mean_class_accuracy(model.head(features), labels) > max(before, 0.8)
        assert [p.requires_grad for p in model.parameters()] == flags
        assert all(p.grad is None for p in model.parameters())


def test_classes_are_drawn_alike():
    labels = torch.arange(5).repeat_interleave(torch.tensor(COUNTS))
    parameter, drawn = nn.Parameter(torch.zeros(())), []

    def loss_of(features, batch, epoch):
        assert torch.equal(features[:, 0].long(), batch) and len(batch) <= 16
        drawn.append(batch)
        return parameter * epoch

    options = BalancedTraining(epochs=40, train_batch_size=16)
    train_balanced([parameter], loss_of, labels[:, None].float(), labels, options)
    counts = np.bincount(torch.cat(drawn), minlength=5)
    assert counts.sum() == 40 * 55
    assert abs(counts / counts.sum() - 0.2).max() < 5 * np.sqrt(0.2 * 0.8 / counts.sum())


def loss_by_loops(head, features, labels, counts, *, strength, share):
    """As the authors' code: one gradient a class, divided by its norm."""
    omega = [np.log(max(counts) / n + 0.01) / 2 for n in counts]
    plain = [F.cross_entropy(head(f[None]), y[None]) for f, y in zip(features, labels, strict=True)]
    shifted, lengths = [], {}
    for label in sorted(set(labels.tolist())):
        members = [n for n in range(len(labels)) if labels[n] == label]
        rows = features[members].detach().clone().requires_grad_()
        mean = sum(F.cross_entropy(head(f[None]), torch.tensor([label])) for f in rows) / len(members)
        (gradient,) = torch.autograd.grad(mean, rows)
        shift = strength * omega[label] * gradient / gradient.norm()
        lengths[label] = float(shift.norm())
        for f in features[members].detach() + shift:
            shifted.append(omega[label] * F.cross_entropy(head(f[None]), torch.tensor([label])))
    loss = (1 - share) * torch.stack(plain).mean() + share * torch.stack(shifted).mean()
    return loss, lengths, omega


@pytest.mark.parametrize("head", sorted(HEADS))
def test_adversarial_features_are_those_of_a_loop_over_classes(head, clip):
    model = classifier(clip, head).double()
    features, labels = given_features(12).parts["train"]
    rows = torch.tensor([0, 1, 2, 31, 32, 45, 46, 52, 54])
    features, labels = features[rows].double(), labels[rows]
    parameters = list(model.head.parameters())
    expected, lengths, omega = loss_by_loops(model.head, features, labels, COUNTS, strength=1.7, share=0.4)
    weights = class_weights(torch.tensor(COUNTS).double())
    np.testing.assert_allclose(weights.numpy(), omega, rtol=1e-12)
    assert lengths == pytest.approx({i: 1.7 * omega[i] for i in range(5)})
    loss = shifted_loss(model.head, features, labels, weights, strength=1.7, share=0.4)
    assert float(loss) == pytest.approx(float(expected), rel=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_without_a_gradient_features_stay():
    head = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1e4, 0.0], [-1e4, 0.0]]))
    features, labels = torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), torch.tensor([0, 1])
    loss = shifted_loss(head, features, labels, torch.ones(2), strength=1.0, share=0.5)
    assert float(loss) == 0


def test_cc_sam_raises_the_share_from_epoch_to_epoch(clip, monkeypatch):
    shares = []

    def noted(*args, share, **settings):
        shares.append(share)
        return shifted_loss(*args, share=share, **settings)

    monkeypatch.setattr("ft_focalsam.retraining.cc_sam.shifted_loss", noted)
    RETRAINING["cc_sam"](epochs=5).retrain(classifier(clip, "cosine"), given_features(12), say=quiet)
    assert shares == pytest.approx([0.2, *[0.3] * 4])


@pytest.mark.parametrize("method", ["tau_norm", "lws"])
def test_a_head_that_does_not_see_lengths_is_refused(method, clip):
    with pytest.raises(ValueError, match=f"The head 'cosine' does not depend .* all that {method} changes; choose"):
        RETRAINING[method]().check(classifier(clip, "cosine").head, "cosine")
    for head in LENGTHS_COUNT:
        RETRAINING[method]().check(classifier(clip, head).head, head)


@pytest.mark.parametrize("method", sorted(RETRAINING))
def test_a_head_that_is_computed_from_texts_is_refused(method, clip):
    with pytest.raises(ValueError, match=r"computed from texts .* no weights to retrain; give a run"):
        RETRAINING[method]().check(build(clip, "context_prompts").head, "cosine")


def test_values_out_of_range_are_named(clip):
    with pytest.raises(ValueError, match="tau is -1; set it to"):
        RETRAINING["tau_norm"](tau=-1)
    with pytest.raises(ValueError, match="epochs is 0; set it to 1 or more"):
        RETRAINING["crt"](epochs=0)
    with pytest.raises(ValueError, match=r"max_share is 1.5; set it to a number from 0 to 1"):
        RETRAINING["cc_sam"](max_share=1.5)
    data = GivenFeatures({"train": given_features(12).parts["train"]})
    data.parts["train"][0][3] = float("inf")
    with pytest.raises(ValueError, match=r"The loss is nan in epoch 1 at learning_rate 0.2; set it to less"):
        RETRAINING["crt"]().retrain(classifier(clip, "linear"), data, say=quiet)


def test_the_options_are_listed_without_torch():
    code = "import sys, ft_focalsam.retraining; assert 'torch' not in sys.modules, 'torch'"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
