"""CC-SAM against its definition: a loop over classes with a backward pass each, in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from models import BACKBONES, COUNTS, gradients_of, make_batch, make_model, relative_error
from torch import nn

from ft_focalsam.sharpness import ClassConditionalSAM

RHO, RATIO = 0.3, 0.4


class Cosine(nn.Module):
    """A classifier that is no linear layer, behind a body that trains."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(3 * 64, 12)
        self.head = CosineHead()

    def forward(self, pixel_values):
        return self.head(torch.tanh(self.body(pixel_values.flatten(1))))


class CosineHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(len(COUNTS), 12))

    def forward(self, features):
        return 5 * F.normalize(features, dim=-1) @ F.normalize(self.weight, dim=-1).T


def logits_of(model, images):
    output = model(pixel_values=images)
    return getattr(output, "logits", output)


def naive(model, classifier_of, images, labels):
    """Gradient of (1 - r) L + r L_perturbed, class by class, and the radii."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = [p for p in classifier_of(model).parameters() if p.requires_grad]
    plain = F.cross_entropy(logits_of(model, images), labels)
    parts, radii = [(1 - RATIO, torch.autograd.grad(plain, list(trained.values()), allow_unused=True))], {}
    for i in labels.unique().tolist():
        mine = labels == i
        gradient = torch.autograd.grad(F.cross_entropy(logits_of(model, images)[mine], labels[mine]), weights)
        norm = torch.cat([g.flatten() for g in gradient]).norm()
        length = torch.cat([w.detach().flatten() for w in weights]).norm()
        radii[i] = float(RHO * (length / norm).sqrt() / max(COUNTS[i] - 1, 1) ** 0.25)
        twin = copy.deepcopy(model)
        with torch.no_grad():
            for w, g in zip((p for p in classifier_of(twin).parameters() if p.requires_grad), gradient, strict=True):
                w += radii[i] * g / norm
        loss = F.cross_entropy(logits_of(twin, images)[mine], labels[mine], reduction="sum") / len(labels)
        twin_trained = [p for p in twin.parameters() if p.requires_grad]
        parts.append((RATIO, torch.autograd.grad(loss, twin_trained, allow_unused=True)))
    total = [torch.zeros_like(p) for p in trained.values()]
    for share, gradients in parts:
        total = [t if g is None else t + share * g for t, g in zip(total, gradients, strict=True)]
    return dict(zip(trained, total, strict=True)), radii


MODELS = {
    **{f"{b}-{t}": (lambda b=b, t=t: make_model(b, t)) for b in BACKBONES for t in ("lora", "full")},
    "cosine head": lambda: Cosine().double(),
}


def classifier_of(model):
    """The layer that gives the logits; peft keeps a frozen copy of it beside the one that trains."""
    if hasattr(model, "head"):
        return model.head
    classifier = model.get_submodule("base_model.model.classifier" if hasattr(model, "peft_config") else "classifier")
    return classifier.modules_to_save["default"] if hasattr(classifier, "modules_to_save") else classifier


@pytest.mark.parametrize("name", MODELS)
def test_loss_gradient_and_radii_are_those_of_a_loop_over_classes(name):
    torch.manual_seed(0)
    model = MODELS[name]()
    cc_sam = ClassConditionalSAM(model, class_counts=COUNTS, rho=RHO, ratio=RATIO)
    for seed, size in ((1, 9), (2, 1), (3, 12)):
        images, labels = make_batch(size, seed=seed)
        expected, radii = naive(model, classifier_of, images, labels)
        model.zero_grad()
        with cc_sam.watch():
            losses = cc_sam.losses(
                logits_of(model, images), labels, lambda z, y=labels: F.cross_entropy(z, y, reduction="none")
            )
        losses.mean().backward()
        assert relative_error(gradients_of(model), expected) <= 1e-10
        mean_radius = sum(radii.values()) / len(radii)
        assert cc_sam.statistics.pop()["perturbation_norm"] == pytest.approx(mean_radius, rel=1e-10)
    assert not any(module._forward_hooks for module in model.modules())


def test_rare_classes_get_the_larger_radius_for_the_same_gradient():
    model = nn.Linear(4, 5).double()
    with torch.no_grad():
        model.weight[:] = 1.0
        model.bias[:] = 0.0
    x = torch.ones(5, 4, dtype=torch.float64)
    radii = []
    for counts in ([100] * 5, [10] * 5, [2] * 5, [1] * 5):
        cc_sam = ClassConditionalSAM(model, class_counts=counts)
        labels = torch.arange(5)
        with cc_sam.watch():
            cc_sam.losses(model(x), labels, lambda z, y=labels: F.cross_entropy(z, y, reduction="none"))
        radii.append(cc_sam.statistics.pop()["perturbation_norm"])
    assert radii[0] == pytest.approx(radii[2] / 99**0.25, rel=1e-9)
    assert radii[1] == pytest.approx(radii[2] / 9**0.25, rel=1e-9)
    assert radii[2] == radii[3]


def test_one_forward_and_one_backward_pass_go_through_the_backbone():
    model = make_model("vit", "full")
    cc_sam = ClassConditionalSAM(model, class_counts=COUNTS)
    layer = next(m for n, m in model.named_modules() if n.endswith("layernorm_before"))
    calls = {"forward": 0, "backward": 0}
    layer.register_forward_hook(lambda *_: calls.update(forward=calls["forward"] + 1))
    layer.register_full_backward_hook(lambda *_: calls.update(backward=calls["backward"] + 1))
    images, labels = make_batch(12)
    with cc_sam.watch():
        losses = cc_sam.losses(
            logits_of(model, images), labels, lambda z: F.cross_entropy(z, labels, reduction="none")
        )
    losses.mean().backward()
    assert calls == {"forward": 1, "backward": 1}


def test_a_class_without_gradient_is_not_perturbed():
    model = nn.Linear(4, 3).double()
    x, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    cc_sam = ClassConditionalSAM(model, class_counts=[5, 4, 3])

    def losses(z):
        return F.cross_entropy(z, labels, reduction="none") * (labels > 0)

    with cc_sam.watch():
        total = cc_sam.losses(model(x), labels, losses)
    total.sum().backward()
    assert torch.isfinite(model.weight.grad).all()
    assert torch.equal(total[:2], torch.zeros(2, dtype=torch.float64))


def test_what_cannot_be_done_is_refused():
    model = make_model("vit", "lora")
    images, labels = make_batch()
    cc_sam = ClassConditionalSAM(model, class_counts=COUNTS)
    with pytest.raises(ValueError, match="train it without mixup"), cc_sam.watch():
        cc_sam.losses(logits_of(model, images), F.one_hot(labels, len(COUNTS)).double(), lambda z: z.sum(1))
    with pytest.raises(ValueError, match="return one loss per sample"), cc_sam.watch():
        cc_sam.losses(logits_of(model, images), labels, lambda z: F.cross_entropy(z, labels))
    with pytest.raises(ValueError, match="No module with trained parameters gives"), cc_sam.watch():
        logits = logits_of(model, images) * 2
        cc_sam.losses(logits, labels, lambda z: F.cross_entropy(z, labels, reduction="none"))
    for settings, message in (
        ({"rho": -1.0}, "rho is -1"),
        ({"ratio": 1.5}, "ratio is 1.5; set it to a number from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            ClassConditionalSAM(model, class_counts=COUNTS, **settings)
