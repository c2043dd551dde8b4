"""The four choices of an update, written naively: sample by sample, in float64, from the formulas alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from models import losses_of
from torch import Tensor, nn

from ft_focalsam.sharpness.evaluations import EVALUATIONS, Run

Named = dict[str, Tensor]


class NaiveUpdate:
    """Updates of a model with explicit weights V = 0 beside its adapted layers: y + x V^T.

    Args:
        model: Changed: it gets hooks, and what is perturbed requires a gradient.
        perturb: "trained", "norms" or "merged".
        c: Class weights, shape (C,).
        direction: (names and gradients of L_c, state) -> d; the state is a dictionary of its own.
        losses: (model, images, labels) -> losses of the samples.
    """

    def __init__(self, model: nn.Module, perturb: str, c: Tensor, rho: float, direction: Callable, losses=losses_of):
        self.model, self.c, self.rho, self.direction, self.losses = model, c, rho, direction, losses
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.target = dict(self.trained)
        if perturb == "norms":
            self.target = {
                f"{path}.{name}": p
                for path, module in model.named_modules()
                if isinstance(module, (nn.LayerNorm, nn.GroupNorm))
                for name, p in module.named_parameters(recurse=False)
            }
        elif perturb == "merged":
            adapted = {n: m for n, m in model.named_modules() if hasattr(m, "base_layer")}
            inside = tuple(f"{name}." for name in adapted)
            self.target = {name: p for name, p in self.trained.items() if not name.startswith(inside)}
            for name, layer in adapted.items():
                weight = torch.zeros(layer.out_features, layer.in_features, dtype=torch.float64)
                layer.register_forward_hook(lambda m, args, output, v=weight: output + F.linear(args[0], v))
                self.target[f"{name}.merged"] = weight
        for tensor in self.target.values():
            tensor.requires_grad_(True)
        self.state: dict = {}

    def two_point(self, images: Tensor, labels: Tensor) -> Named:
        size = len(labels)
        weights = torch.tensor([weight_of(self.c, label) for label in labels], dtype=torch.float64)
        ascent = self._gradient(self.target, images, labels, weights / size)
        epsilon = self._epsilon(ascent)
        rest = self._gradient(self.trained, images, labels, (1 - weights) / size)
        with self._moved(epsilon, 1.0):
            moved = self._gradient(self.trained, images, labels, weights / size)
        return {name: rest[name] + moved[name] for name in self.trained}

    def one_pass(self, images: Tensor, labels: Tensor) -> Named:
        epsilon = self._epsilon(None)
        total = {name: torch.zeros_like(p) for name, p in self.trained.items()}
        weighted = {name: torch.zeros_like(p) for name, p in self.target.items()}
        for image, label in zip(images, labels, strict=True):
            c = weight_of(self.c, label)
            one = torch.ones(1, dtype=torch.float64) / len(labels)
            with self._moved(epsilon, c):
                for into, share in ((total, one), (weighted, c * one)):
                    names = self.trained if into is total else self.target
                    for name, g in self._gradient(names, image[None], label[None], share).items():
                        into[name] = into[name] + g
        self.direction(weighted, self.state, learn=True)
        return total

    def _epsilon(self, ascent: Named | None) -> Named:
        d = self.direction(ascent, self.state)
        if d is None:
            return {name: torch.zeros_like(t) for name, t in self.target.items()}
        norm = sum(float((v**2).sum()) for v in d.values()) ** 0.5
        return {name: self.rho * v / norm for name, v in d.items()}

    def _gradient(self, tensors: Named, images: Tensor, labels: Tensor, weights: Tensor) -> Named:
        total = {name: torch.zeros_like(t) for name, t in tensors.items()}
        for image, label, weight in zip(images, labels, weights, strict=True):
            loss = self.losses(self.model, image[None], label[None]).sum() * weight
            found = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
            for name, g in zip(tensors, found, strict=True):
                total[name] = total[name] if g is None else total[name] + g
        return total

    @contextmanager
    def _moved(self, epsilon: Named, factor: float) -> Iterator[None]:
        kept = {name: t.detach().clone() for name, t in self.target.items()}
        with torch.no_grad():
            for name, t in self.target.items():
                t += factor * epsilon[name]
        yield
        with torch.no_grad():
            for name, t in self.target.items():
                t.copy_(kept[name])


def weight_of(c: Tensor, label: Tensor) -> float:
    """c(n) by the label of a sample: a class, probabilities, or 0 and 1 for several classes."""
    if label.ndim == 0:
        return float(c[label])
    if set(label.tolist()) <= {0.0, 1.0}:
        present = [float(c[k]) for k, y in enumerate(label.tolist()) if y]
        of_none = float(c[0]) if len(set(c.tolist())) == 1 else 0.0  # SAM perturbs by every sample
        return sum(present) / len(present) if present else of_none
    return float(label.double() @ c)


def gradient(ascent, state, learn=False):
    return None if learn else ascent


def friendly(ascent, state, learn=False, sigma=0.7, decay=0.8):
    state["m"] = {n: decay * state.get("m", {}).get(n, 0) + (1 - decay) * g for n, g in ascent.items()}
    return {n: g - sigma * state["m"][n] for n, g in ascent.items()}


def momentum(ascent, state, learn=False, decay=0.8):
    before = state.get("m")
    if ascent is not None:
        state["m"] = {n: decay * (0 if before is None else before[n]) + (1 - decay) * g for n, g in ascent.items()}
    return before


def run_update(evaluation, model, images, labels, *, number=0, micro_batches=1, losses=losses_of) -> Named:
    """One optimizer step of an evaluation; returns the gradient left for the base optimizer, by name."""
    model.zero_grad()
    parts = list(zip(images.chunk(micro_batches), labels.chunk(micro_batches), strict=True))
    for index, (x, y) in enumerate(parts):

        def forward(rows=None, x=x, y=y):
            x, y = (x, y) if rows is None else (x[rows], y[rows])
            return evaluation.step.reduce(losses(model, x, y), len(labels))

        def whole(forward=forward):
            loss = forward()
            loss.backward()
            return loss

        run = Run(whole, forward, takes_rows=True)
        evaluation.micro_batch(y, run, number=number, is_last=index == len(parts) - 1)
    named = {name.removeprefix("_orig_mod."): p for name, p in model.named_parameters()}
    trained = {name: p for name, p in named.items() if p.requires_grad}
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}


def make_evaluation(name: str, step, **settings):
    return EVALUATIONS[name](step, **settings)
