"""The gradients of L and of the class-weighted loss L_c, from one backward pass.

Samples of a batch do not interact, so the signal delta_n that reaches a module for sample n is the same in the
gradient of L = 1/B sum_n l_n and in that of L_c = 1/B sum_n c(n) l_n, up to the factor c(n). While autograd
accumulates the gradient of L into `p.grad`, every module that owns trained parameters therefore also forms

    sum_n c(n) (d module / d p)^T delta_n

which arrives in the gradient of a *shadow* of p: a tensor of its shape that holds no memory. Two kinds of rule do so:

- a rule of its own for a module type (`rules.py`), which stands in for the module's forward;
- the general local rule for every other type: when delta reaches the module's output, a local backward pass with
  c(n) delta_n from that output to the module's own parameters.

Nothing here is trusted unseen. Before the first steps what is collected, for random weights in the place of c(n), is
compared with autograd's own gradient. A parameter that disagrees is handed to the enclosing module, whose general rule
sees more (a position table without batch dimension, a projection that its parent uses functionally).
Where no enclosing module is left, or batch statistics make samples interact, the run uses a separate backward pass for
L_c: exact too, slower, and announced once with the name of the cause.

Where c(n) is the same number for all samples, as in SAM, nothing of this is needed (`collector.py`).
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.utils._pytree import tree_leaves

from .collector import GradientCollector, sum_of
from .comparison import PATIENCE, random_weights, tolerances
from .perturbation import is_sharded, total_norm
from .rules import find_rule, has_batch, is_shadow_of, make_shadow, spread, sum_dtype
from .survey import enclosing

logger = logging.getLogger(__name__)


class WeightedGradient(GradientCollector):
    """Collects for any weights. Without `compare`, the comparison is made along with the first passes that are
    collected, which then give L_c from a backward pass of its own.

    Args:
        model (`nn.Module`): As for `GradientCollector`.
        separate_reason (`str`, *optional*): Why L_c needs a backward pass of its own whatever the model is: say, a
            loss by which the samples of a batch interact.
    """

    def __init__(self, model: nn.Module, *, separate_reason: str | None = None):
        super().__init__(model)
        _keep_compiled_graphs()
        self._given_reason = separate_reason
        self._names: dict[Tensor, str] = {}  # trained parameter -> its name
        self._owners: dict[Tensor, str] = {}  # trained parameter -> name of the module that collects for it
        self._shadows: dict[Tensor, Tensor] = {}  # trained parameter -> its shadow
        self._forwards: dict[nn.Module, Callable] | None = None  # modules with a rule -> what stands in for forward
        self._without_rule: dict[nn.Module, list[Tensor]] = {}  # modules that the general rule collects at
        self._unchecked: set[Tensor] = set()  # parameters not compared yet
        self._comparison_is_due = False
        self._patience = 0
        # The pass under way:
        # One backward pass ("single"), a "separate" one for L_c, the comparison of the two ways for random weights
        # ("compare"), or that comparison beside a separate pass ("both").
        self._mode = "single"
        self._weights: Tensor | None = None  # what the rules weigh by: c(n), or random weights in a comparison, (B,)
        self._class_weights: Tensor | None = None  # c(n), (B,)
        self._reference: dict[Tensor, Tensor] = {}  # autograd's gradient in a comparison
        self._set_aside: dict[Tensor, Tensor | None] = {}  # gradients that this pass is not to touch
        self._lost: set[Tensor] = set()  # parameters whose module showed no batch dimension
        self._reduced_precision = False
        self._in_nested_backward = False

    # ---- what a step uses ----

    @property
    def parameters(self) -> list[Tensor]:
        return list(self._names)

    @property
    def backward_passes(self) -> int:
        return {"single": 1, "separate": 2, "both": 3}[self._mode]

    def clear(self) -> None:
        super().clear()
        if self._unchecked and self._patience > 0:
            self._patience -= 1
            self._comparison_is_due = True

    def release(self) -> None:
        super().release()
        for shadow in self._shadows.values():
            shadow.grad = None

    def gradients(self) -> list[Tensor]:
        if self._unchecked and self._patience == 0 and self._gradients_woke():
            self._patience = PATIENCE
        return [
            sum_of(self._sums.get(parameter), shadow.grad, like=parameter if is_sharded([parameter]) else shadow)
            for parameter, shadow in self._shadows.items()
        ]

    @contextmanager
    def collect(self, weights: Tensor) -> Iterator[None]:
        compares = self.needs_comparison(len(weights))
        separate = self.separate_reason is not None or self._comparison_is_due
        with self._pass("both" if compares else "separate" if separate else "single", weights):
            yield
            if compares:
                self._compare()

    def needs_comparison(self, batch_size: int) -> bool:
        # One sample alone cannot show whether samples are told apart, so it is no batch to compare on.
        return self.separate_reason is None and self._comparison_is_due and batch_size > 1

    @contextmanager
    def compare(self, weights: Tensor) -> Iterator[None]:
        """Watch one forward and backward pass and compare the two ways to the gradient; nothing of it remains.

        Args:
            weights (`Tensor` of shape (B,)): As for `collect`; random ones take their place, which tell samples apart.
        """
        kept = {parameter: parameter.grad for parameter in self._names}
        for parameter in kept:
            parameter.grad = None
        try:
            with self._pass("compare", weights):
                yield
                self._compare()
        finally:
            for parameter, gradient in kept.items():
                parameter.grad = gradient

    def mean(self, losses: Tensor, count: Tensor | float) -> Tensor:
        """As in `GradientCollector`. Where L_c needs a backward pass of its own, that pass runs when the one of L
        begins, with the factor that arrives there: loss scaling and gradient accumulation act on both alike, whoever
        applies them."""
        mean = super().mean(losses, count)
        if self._mode == "single" and self._lost:
            self._mode = "separate"
            self._hand_over(list(self._lost))
        if self._mode == "single":
            return mean
        self._set_aside = {parameter: shadow.grad for parameter, shadow in self._shadows.items()}
        for shadow in self._shadows.values():
            shadow.grad = None
        wanted = []
        if self._mode != "separate":
            wanted.append((self._weights, self._reference))
        if self._mode != "compare":
            wanted.append((self._class_weights, self._sums))
        for weights, sums in wanted:
            weighted = losses @ weights.to(losses.dtype) / count
            mean.grad_fn.register_prehook(partial(self._separate_backward, weighted, sums))
        return mean

    @contextmanager
    def _pass(self, mode: str, weights: Tensor) -> Iterator[None]:
        self._mode, self._class_weights = mode, weights
        self._weights = weights if mode == "single" else random_weights(weights)
        try:
            with ExitStack() as stack:
                if mode != "separate":
                    self._install(stack)
                yield
        finally:
            for parameter, gradient in self._set_aside.items():
                self._shadows[parameter].grad = gradient
            for kept in (self._set_aside, self._reference, self._lost):
                kept.clear()
            self._weights = self._class_weights = None

    # ---- which module collects for which parameter ----

    def plan(self) -> None:
        super().plan()
        unchanged = self.survey.trained.keys() == self._names.keys()
        if not unchanged or not all(is_shadow_of(shadow, p) for p, shadow in self._shadows.items()):
            self._plan_anew()
        if self._given_reason and self.separate_reason is None:
            self._separate(self._given_reason)
        if self.survey.batch_norms and self.separate_reason is None:
            norm = self.survey.batch_norms[0]
            name = next(name for name, module in self.model.named_modules() if module is norm)
            self._separate(f"{name} ({type(norm).__name__}) makes the samples of a batch interact")

    def _plan_anew(self) -> None:
        trained = {p: name for name, p in self.model.named_parameters() if p.requires_grad}
        self._names = trained
        self._owners = {parameter: enclosing(self.model, name) for parameter, name in trained.items()}
        self._shadows = {parameter: make_shadow(parameter) for parameter in trained}
        self._forwards = None
        self._unchecked = set(trained)
        self._comparison_is_due = True
        self._patience = PATIENCE
        self.separate_reason = None

    def _hand_over(self, parameters: list[Tensor]) -> None:
        """Let the enclosing module collect for each parameter, or give up where there is none but the whole model."""
        for parameter in parameters:
            owner = enclosing(self.model, self._owners[parameter])
            if not owner:
                self._separate(f"no module's output gives the gradient of {self._names[parameter]}")
                return
            self._owners[parameter] = owner
        self._forwards = None
        self._unchecked.update(parameters)
        self._comparison_is_due = True
        self._patience = PATIENCE

    def _separate(self, reason: str) -> None:
        self.separate_reason = reason
        logger.warning(
            "One backward pass is not exact for this model: %s. The class-weighted gradient gets a backward pass of "
            "its own: as exact, but slower.",
            reason,
        )

    # ---- the single backward pass ----

    def _install(self, stack: ExitStack) -> None:
        """Put the rules in place until `stack` closes."""
        if self._forwards is None:
            self._choose_rules()
        for module, forward in self._forwards.items():
            module.forward = forward
            stack.callback(delattr, module, "forward")
        for module, parameters in self._without_rule.items():
            hook = partial(self._by_local_backward, stack, self._weights, parameters)
            stack.callback(module.register_forward_hook(hook).remove)

    def _choose_rules(self) -> None:
        """Sort the modules that collect into those with a rule of their own, and those for the general one."""
        groups: dict[str, list[Tensor]] = {}
        for parameter, owner in self._owners.items():
            groups.setdefault(owner, []).append(parameter)
        self._forwards, self._without_rule = {}, {}
        for owner, parameters in groups.items():
            module = self.model.get_submodule(owner)
            own = {p: name for name, p in module.named_parameters(recurse=False)}
            rule = find_rule(module)
            if rule is not None and all(p in own for p in parameters):
                shadows = {own[p]: self._shadows[p] for p in parameters}
                self._forwards[module] = partial(self._by_rule, rule, module, shadows, parameters)
            else:
                self._without_rule[module] = parameters

    def _by_rule(self, rule, module, shadows, parameters, input, *args, **kwargs):
        if not has_batch(input, self._weights):
            self._lost.update(parameters)
            return type(module).forward(module, input, *args, **kwargs)
        self._note_precision(input)
        return rule(module, shadows, self._weights, input, *args, **kwargs)

    def _by_local_backward(self, stack, weights, parameters, module, args, output) -> None:
        """Forward hook of the general rule; see the top of this file."""
        outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor) and t.requires_grad]
        if not outputs:
            return  # a forward pass without gradient, as the first one under activation checkpointing
        if not all(has_batch(tensor, weights) for tensor in outputs):
            self._lost.update(parameters)
            return
        for tensor in outputs:
            self._note_precision(tensor)
            edge = get_gradient_edge(tensor)
            handle = tensor.register_hook(partial(self._local_backward, edge, weights, parameters))
            # Removing the hook also breaks the cycle from the graph node over the hook to its edge.
            stack.callback(handle.remove)

    def _local_backward(self, edge, weights, parameters, delta: Tensor) -> None:
        if self._in_nested_backward:
            return
        self._in_nested_backward = True
        try:
            found = torch.autograd.grad(
                edge, parameters, delta * spread(weights, delta), retain_graph=True, allow_unused=True
            )
        finally:
            self._in_nested_backward = False
        for parameter, gradient in zip(parameters, found, strict=True):
            if gradient is not None:
                shadow = self._shadows[parameter]
                shadow.grad = sum_of(shadow.grad, gradient.to(shadow.dtype), like=shadow)

    # ---- the separate backward pass, and the comparison with it ----

    def _separate_backward(self, loss: Tensor, sums: dict[Tensor, Tensor], factors: tuple[Tensor]) -> None:
        """Add factor * (gradient of `loss`) to `sums`; `p.grad` and the shadows stay as they are."""
        kept = {parameter: parameter.grad for parameter in self._names}
        kept_shadows = {parameter: shadow.grad for parameter, shadow in self._shadows.items()}
        for tensor in (*self._names, *self._shadows.values()):
            tensor.grad = None
        self._in_nested_backward = True
        try:
            # backward() and not autograd.grad(): reentrant activation checkpointing knows only the former.
            loss.backward(factors[0], retain_graph=True)
            for parameter in self._names:
                if parameter.grad is not None:
                    gradient = parameter.grad.to(sum_dtype(parameter))
                    sums[parameter] = sum_of(sums.get(parameter), gradient, like=gradient)
        finally:
            self._in_nested_backward = False
            for parameter, shadow in self._shadows.items():
                parameter.grad, shadow.grad = kept[parameter], kept_shadows[parameter]

    def _compare(self) -> None:
        """Compare what the single backward pass collected with autograd's own gradient, and draw the consequences."""
        self._comparison_is_due = False
        scale = _norm(self._reference.values())
        if not scale < float("inf"):  # loss scaling overflowed: no comparison, but one is due as long as it does
            self._patience = PATIENCE
            return
        tolerance, floor = tolerances(self._names, self._reduced_precision)
        wrong = []
        for parameter in list(self._unchecked):
            reference = self._reference.get(parameter)
            shadow = self._shadows[parameter]
            expected = 0.0 if reference is None else _norm([reference])
            error = _norm([sum_of(shadow.grad, None if reference is None else -reference, like=shadow)])
            if expected > 0 and error <= tolerance * expected:
                self._unchecked.discard(parameter)
            elif not error <= floor * scale:
                wrong.append(parameter)
        if wrong:
            self._hand_over(wrong)

    def _gradients_woke(self) -> bool:
        """Whether a parameter that could not be compared has a gradient of L by now that is more than noise."""
        unchecked = [p.grad for p in self._unchecked if p.grad is not None]
        if not unchecked:
            return False
        whole = torch.stack(torch._foreach_norm([p.grad for p in self._names if p.grad is not None]))
        largest = torch.stack(torch._foreach_norm(unchecked)).max()
        return bool(largest > tolerances(self._names, self._reduced_precision)[1] * torch.linalg.vector_norm(whole))

    def _note_precision(self, tensor: Tensor) -> None:
        half = tensor.dtype in (torch.float16, torch.bfloat16)
        self._reduced_precision |= half or torch.is_autocast_enabled(tensor.device.type)


def _norm(tensors) -> float:
    tensors = list(tensors)
    return float(total_norm(tensors)) if tensors else 0.0


def _keep_compiled_graphs() -> None:
    """Let backward passes that torch.compile builds leave intact what a second one over the same graph reads; what it
    has built otherwise is built anew."""
    if torch._functorch.config.donated_buffer:
        torch._functorch.config.donated_buffer = False
        torch._dynamo.reset()
