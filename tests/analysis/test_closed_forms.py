"""Sharpness, eigenvalues, traces and landscapes where they are known exactly, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from models import make_batch, make_model
from problems import Quadratic, Regression, largest_increase
from torch.func import functional_call, hessian

from ft_focalsam.analysis import (
    ClassLoss,
    filter_normalised,
    largest_eigenvalue,
    line,
    measure_sharpness,
    plane,
    standard_error,
    trace_probes,
    weight_norm,
)
from ft_focalsam.sharpness.targets import TARGETS, Target

RHO = 0.3


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_one_sam_step_on_a_quadratic(batch_size):
    """L(rho g / ||g||) - L(0) = rho ||g|| + rho^2 / 2 u A u with u = g / ||g||."""
    problem = Quadratic()
    found = measure_sharpness(problem.loss(batch_size=batch_size), rho=RHO, steps=0)
    unit = problem.gradient / problem.gradient.norm()
    expected = RHO * problem.gradient.norm() + RHO**2 / 2 * unit @ problem.hessian @ unit
    assert found.loss == 0
    assert found.gradient_norm == pytest.approx(float(problem.gradient.norm()), rel=1e-12)
    assert found.first_order == pytest.approx(float(expected), rel=1e-12)
    assert found.ascent == found.first_order
    assert all(not weight.any() for weight in problem.weights)


@pytest.mark.parametrize("rho", [0.01, 0.3, 3.0])
def test_the_ascent_reaches_the_maximum_of_a_quadratic(rho):
    problem = Quadratic()
    found = measure_sharpness(problem.loss(batch_size=5), rho=rho, steps=1500)
    expected = largest_increase(problem.gradient, problem.hessian, rho)
    assert found.ascent == pytest.approx(expected, rel=1e-9)
    assert found.first_order <= found.ascent
    few = measure_sharpness(problem.loss(), rho=rho, steps=5).ascent
    assert found.first_order < few <= expected * (1 + 1e-12)


def test_without_a_gradient_the_ascent_finds_the_top_eigenvector():
    """At a minimum the maximum is rho^2 / 2 lambda_max, and a SAM step has no direction."""
    problem = Quadratic()
    problem.slopes.zero_()
    found = measure_sharpness(problem.loss(batch_size=5), rho=RHO, steps=1500)
    top = torch.linalg.eigvalsh(problem.hessian)[-1]
    assert found.gradient_norm == 0
    assert found.ascent == pytest.approx(float(RHO**2 / 2 * top), rel=1e-9)


def test_at_a_maximum_the_sharpness_is_0():
    problem = Quadratic()
    problem.slopes.zero_()
    problem.curvatures.neg_()
    found = measure_sharpness(problem.loss(), rho=RHO)
    assert found.ascent == 0 > found.first_order


def test_the_perturbation_stays_in_the_ball():
    """Every point that was evaluated, seen by the losses themselves."""
    problem, norms = Quadratic(convex=False), []
    loss = ClassLoss(problem.loss().target, lambda rows: seen(rows), [torch.arange(5)])

    def seen(rows):
        norms.append(float(torch.cat([w.detach().reshape(-1) for w in problem.weights]).norm()))
        return problem.losses_of(rows)

    measure_sharpness(loss, rho=RHO, steps=10)
    assert len(norms) == 12
    assert max(norms) <= RHO * (1 + 1e-12)


@pytest.mark.parametrize("convex", [True, False])
def test_the_hessian_of_a_quadratic(convex):
    problem = Quadratic(convex=convex)
    expected = torch.linalg.eigvalsh(problem.hessian)[-1]
    assert largest_eigenvalue(problem.loss(), tolerance=0) == pytest.approx(float(expected), rel=1e-10)
    probes = trace_probes(problem.loss(batch_size=5), probes=1500)
    assert abs(probes.mean() - float(problem.hessian.trace())) < 3 * standard_error(probes)
    off_diagonal = problem.hessian - problem.hessian.diag().diag()
    assert probes.var() == pytest.approx(float(2 * (off_diagonal**2).sum()), rel=0.15)  # Hutchinson's variance


def test_the_trace_of_a_diagonal_hessian_is_exact():
    problem = Quadratic()
    problem.curvatures = torch.diag_embed(problem.curvatures.diagonal(dim1=1, dim2=2))
    probes = trace_probes(problem.loss(), probes=3)
    assert probes == pytest.approx(float(problem.curvatures.mean(dim=0).trace()), rel=1e-12)
    assert standard_error(probes) < 1e-12
    assert np.isnan(standard_error(probes[:1]))


def test_a_linear_loss_has_no_curvature():
    problem = Quadratic()
    problem.curvatures.zero_()
    assert largest_eigenvalue(problem.loss()) == 0
    weight = torch.zeros(3, dtype=torch.float64, requires_grad=True)  # whose gradient has no graph
    loss = ClassLoss(Target({weight: "w"}), lambda x: x @ weight, [torch.eye(3, dtype=torch.float64)])
    assert largest_eigenvalue(loss) == 0
    assert not trace_probes(loss, probes=2).any()


def test_logistic_regression():
    """The Hessian is the mean of (diag(p) - p p^T) x (x x^T), here with the bias as a feature that is 1."""
    torch.manual_seed(2)
    features, labels = torch.randn(10, 4, dtype=torch.float64), torch.randint(3, (10,))
    model = Regression()
    loss = model.loss(features, labels)
    p = model.layer(features).softmax(dim=1).detach()
    extended = torch.cat([features, torch.ones(10, 1, dtype=torch.float64)], dim=1)
    rows = [5 * i + k for i in range(3) for k in range(4)]  # of the weight, without the bias
    classes = p.diag_embed() - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("nij,nk,nl->ikjl", classes, extended, extended).reshape(15, 15) / 10
    weights = {name: p.detach() for name, p in model.layer.named_parameters()}
    blocks = hessian(lambda w: F.cross_entropy(functional_call(model.layer, w, features), labels))(weights)
    torch.testing.assert_close(blocks["weight"]["weight"].reshape(12, 12), expected[rows][:, rows])
    assert largest_eigenvalue(loss, tolerance=0) == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-9)
    found = trace_probes(loss, probes=1500)
    assert abs(found.mean() - float(expected.trace())) < 3 * standard_error(found)


# ---- transformers ----


def explicit_hessian(model, images, labels, names):
    """Of the mean loss in the parameters of these names, as one matrix. (torch.func.hessian is wrong behind two layer
    normalisations: the batched backward pass of one has no right derivative.)"""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    shapes = [parameters[name].shape for name in names]

    def mean_loss(flat):
        parts = flat.split([shape.numel() for shape in shapes])
        values = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        logits = functional_call(model, {**parameters, **values}, kwargs={"pixel_values": images}).logits
        return F.cross_entropy(logits, labels)

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.functional.hessian(mean_loss, torch.cat([parameters[n].reshape(-1) for n in names]))


def class_loss(model, images, labels, target, batch_size=4):
    batches = list(zip(images.split(batch_size), labels.split(batch_size), strict=True))
    return ClassLoss(
        target,
        lambda batch: F.cross_entropy(model(pixel_values=batch[0]).logits, batch[1], reduction="none"),
        batches,
    )


@pytest.mark.parametrize("backbone", ["vit", "clip"])
@pytest.mark.parametrize("perturb", ["trained", "norms"])
def test_the_hessian_of_a_tuned_transformer(backbone, perturb):
    model = make_model(backbone, "lora").eval()
    images, labels = make_batch(6)
    target = TARGETS[perturb](model)
    if perturb == "trained":  # of which the explicit matrix would be large
        target = Target({p: name for p, name in target.names.items() if "layers.0" in name or "layer.0" in name})
        target = Target(dict(list(target.names.items())[:3]))
    expected = explicit_hessian(model, images, labels, list(target.names.values()))
    loss = class_loss(model, images, labels, target)
    grown = [p.requires_grad for p in model.parameters()]
    top = largest_eigenvalue(loss, tolerance=0)
    assert top == pytest.approx(float(torch.linalg.eigvalsh(expected)[-1]), rel=1e-8)
    vector = {tensor: torch.randn_like(tensor) for tensor in target.names}
    product = torch.cat([part.reshape(-1) for part in loss.hessian_vector(vector).values()])
    flat = torch.cat([part.detach().reshape(-1) for part in vector.values()])
    torch.testing.assert_close(product, expected @ flat, rtol=1e-9, atol=1e-12)
    ends = [loss.gradient({t: sign * 1e-5 * part.detach() for t, part in vector.items()})[1] for sign in (1, -1)]
    slope = torch.cat([(a - b).reshape(-1) for a, b in zip(*(end.values() for end in ends), strict=True)]) / 2e-5
    torch.testing.assert_close(product, slope, rtol=1e-5, atol=1e-8)
    assert [p.requires_grad for p in model.parameters()] == grown
    assert all(p.grad is None for p in model.parameters())


def merged_model():
    """A LoRA model, and the same weights merged, trained as they are."""
    model = make_model("vit", "lora").eval()
    plain = make_model("vit", "lora").eval().merge_and_unload()
    return model, plain


def test_merged_weights_are_those_of_the_merged_model():
    """Value, gradient, Hessian and filter norms around the merged weights, against the model after merge_and_unload,
    where they are ordinary weights."""
    model, plain = merged_model()
    images, labels = make_batch(6)
    target = TARGETS["merged"](model)
    of_plain = dict(plain.named_parameters())

    def counterpart(name):
        name = name.removeprefix("base_model.model.").replace(".modules_to_save.default", "")
        return of_plain[name.replace(".merged", ".weight")]

    pairs = {tensor: counterpart(name) for tensor, name in target.names.items()}
    for parameter in of_plain.values():
        parameter.requires_grad_(False)
    for parameter in pairs.values():
        parameter.requires_grad_(True)
    same = Target({p: str(i) for i, p in enumerate(pairs.values())})
    ours, theirs = class_loss(model, images, labels, target), class_loss(plain, images, labels, same)
    found = measure_sharpness(ours, rho=RHO, steps=3)
    expected = measure_sharpness(theirs, rho=RHO, steps=3)
    assert vars(found) == pytest.approx(vars(expected), rel=1e-9)
    assert largest_eigenvalue(ours, tolerance=0) == pytest.approx(largest_eigenvalue(theirs, tolerance=0), rel=1e-8)
    assert trace_probes(ours, probes=3) == pytest.approx(trace_probes(theirs, probes=3), rel=1e-9)
    assert weight_norm(target) == pytest.approx(weight_norm(same), rel=1e-12)
    at = np.linspace(-1, 1, 5)
    curves = [line(loss, filter_normalised(each, seed=4), at) for loss, each in ((ours, target), (theirs, same))]
    assert curves[0] == pytest.approx(curves[1], rel=1e-9)


# ---- landscapes ----


def test_landscapes_of_a_quadratic():
    problem = Quadratic()
    with torch.no_grad():
        problem.weights[0] += torch.arange(6, dtype=torch.float64).reshape(2, 3) + 1
    loss = problem.loss()
    first, second = (filter_normalised(loss.target, seed=seed) for seed in (0, 1))
    w, d, e = (
        torch.cat([p.detach().reshape(-1) for p in parts]) for parts in (first, first.values(), second.values())
    )
    at = np.linspace(-0.5, 0.5, 5)

    def exact(a, b):
        point = w + a * d + b * e
        return float(problem.gradient @ point + 0.5 * point @ problem.hessian @ point)

    assert line(loss, first, at) == pytest.approx([exact(a, 0) for a in at], rel=1e-12)
    expected = np.array([[exact(a, b) for b in at] for a in at])
    assert plane(loss, first, second, at) == pytest.approx(expected, rel=1e-12)


def test_filters_of_a_direction_have_the_norms_of_the_weights():
    model = make_model("vit", "none")
    target = TARGETS["trained"](model)
    direction = filter_normalised(target, seed=3)
    again, other = (filter_normalised(target, seed=seed) for seed in (3, 4))
    for tensor, part in direction.items():
        if tensor.ndim < 2:
            assert not part.any()
            continue
        norms = [each.detach().flatten(1).norm(dim=1) for each in (part, tensor)]
        torch.testing.assert_close(*norms, rtol=1e-12, atol=0)
        assert torch.equal(part, again[tensor])
        assert not torch.equal(part, other[tensor]) or not part.any()
    with pytest.raises(ValueError, match=r"no filters.*set line_points"):
        filter_normalised(TARGETS["norms"](model), seed=0)


def test_a_loss_that_is_not_finite_is_told():
    weight = torch.ones(2, dtype=torch.float64, requires_grad=True)
    infinite = torch.full((1, 2), torch.inf, dtype=torch.float64)
    loss = ClassLoss(Target({weight: "w"}), lambda x: x @ weight, [infinite], name="class 'owl'")
    with pytest.raises(ValueError, match=r"loss of class 'owl' is inf at the weights or near them; lower rho"):
        loss.value()
    slope = ClassLoss(
        Target({weight: "w"}), lambda x: (x @ (weight - 1)).sqrt(), [torch.ones(1, 2).double()], name="x"
    )
    with pytest.raises(ValueError, match="gradient of x is"):
        measure_sharpness(slope, rho=RHO)
