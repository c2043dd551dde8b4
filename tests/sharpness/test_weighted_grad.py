"""The collector on all a model may do with a parameter: exact by a rule, by an enclosing module, or announced."""

import logging
import shutil
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from models import COUNTS
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from ft_focalsam.sharpness import WeightedGradient
from ft_focalsam.sharpness.gradients import BatchLosses, ScaledGradient

C = len(COUNTS)


class Pooled(nn.Module):
    """Tokens (B, T, 8) through a body, the mean over T, and a head."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body
        self.head = nn.Linear(8, C)

    def forward(self, x):
        return self.head(self.body(x).mean(dim=1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


class KeywordCall(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(input=x)


class ScaledLinear(nn.Linear):
    def forward(self, input):
        return F.linear(input, self.weight * 2, self.bias)


class ParentOwned(nn.Module):
    """Class token and position embedding of a parent with children, as in a ViT."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 6, 8))
        self.projection = nn.Linear(8, 8)

    def forward(self, x):
        return torch.cat([self.token.expand(len(x), -1, -1), self.projection(x)], dim=1) + self.position


class PositionTable(nn.Module):
    """An embedding whose output has no batch dimension, as in CLIP."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 8)

    def forward(self, x):
        return torch.tanh(x) + self.table(torch.arange(5)[None])


class FunctionalUse(nn.Module):
    """A child whose weight its parent uses without calling the child."""

    def __init__(self):
        super().__init__()
        self.child = nn.Linear(8, 8)

    def forward(self, x):
        return F.linear(x, self.child.weight.tanh(), self.child.bias)


class SequenceFirst(nn.Module):
    """A layer that sees (T, B, 8)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


class Flattened(nn.Module):
    """A layer that sees (B * T, 8)."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


class Attention(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.batch_first = batch_first

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        x = self.attention(x, x, x, need_weights=False)[0]
        return x if self.batch_first else x.transpose(0, 1)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.layer(x.transpose(1, 2)).transpose(1, 2)


class Tied(nn.Module):
    """Two layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.block = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8))
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.block, x.requires_grad_(), use_reentrant=self.reentrant)


class LateGradient(nn.Module):
    """A weight behind a gate that starts at zero: no gradient until the gate moves, and then used functionally."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(8))
        self.child = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.gate * F.linear(x, self.child.weight)


class ImageConvolution(nn.Module):
    """Convolutions over images (B, channels, 5, 8), one of them depthwise."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.GELU(), nn.Conv2d(8, 8, 3, padding=1, groups=8))

    def forward(self, x):
        return self.layers(x[:, None]).mean(dim=3).transpose(1, 2)


class PatchEmbedding(nn.Module):
    """A strided convolution whose output is flattened to tokens, as in a ViT."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Conv2d(1, 8, kernel_size=(5, 2), stride=(5, 2), bias=False)

    def forward(self, x):
        return self.projection(x[:, None]).flatten(2).transpose(1, 2)


class TokenTable(nn.Module):
    """An embedding of tokens (B, T)."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(4, 8)

    def forward(self, x):
        return self.table((x[..., 0] > 0) + 2 * (x[..., 1] > 0)) * torch.tanh(x)


class ChannelNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(2, 8)

    def forward(self, x):
        return self.norm(x.transpose(1, 2)).transpose(1, 2)


class Prompts(nn.Module):
    """A leaf that puts its prompts before the tokens."""

    def __init__(self):
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(3, 8))

    def forward(self, x):
        return torch.cat([self.prompts.expand(len(x), -1, -1), x], dim=1).tanh()


class PromptSource(nn.Module):
    def __init__(self):
        super().__init__()
        self.prompts = nn.Parameter(torch.randn(6, 8))

    def forward(self):
        return self.prompts * 2


class AsManyPromptsAsSamples(nn.Module):
    """A leaf whose output, (6, 8), passes for one with a batch of six in front."""

    def __init__(self):
        super().__init__()
        self.source = PromptSource()

    def forward(self, x):
        return torch.tanh(x + self.source().mean(dim=0))


class Returning(nn.Module):
    """A leaf whose output is a structure that `pack` makes of two tensors, and `unpack` takes apart."""

    class Leaf(nn.Module):
        def __init__(self, pack, dependent):
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.randn(8)), nn.Parameter(torch.randn(8))
            self.pack, self.dependent = pack, dependent

        def forward(self, x):
            first = torch.tanh(x * self.scale)
            return self.pack(first, (first if self.dependent else x) * self.shift)

    def __init__(self, pack, unpack, *, dependent=False):
        super().__init__()
        self.leaf = Returning.Leaf(pack, dependent)
        self.unpack = unpack

    def forward(self, x):
        first, second = self.unpack(self.leaf(x))
        return first + second.sin()


class Recurrent(nn.Module):
    """A module that also returns its last state, (1, B, 8)."""

    def __init__(self):
        super().__init__()
        self.layer = nn.GRU(8, 8, batch_first=True)

    def forward(self, x):
        output, last = self.layer(x)
        return output + last[0][:, None]


class InPlace(nn.Module):
    """Outputs that the parent changes in place."""

    def __init__(self):
        super().__init__()
        self.norm, self.layer = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(self.norm(x).tanh_()).mul_(x).relu_()


BODIES = {
    "linear": lambda: nn.Linear(8, 8),
    "linear without bias": lambda: nn.Linear(8, 8, bias=False),
    "wide linear": lambda: nn.Sequential(nn.Linear(8, 80), nn.Linear(80, 80), nn.Linear(80, 8)),
    "frozen weight, trained bias": lambda: _bias_only(nn.Linear(8, 8)),
    "layer norm": lambda: nn.LayerNorm(8),
    "layer norm without bias": lambda: nn.LayerNorm(8, bias=False),
    "layer norm over tokens": lambda: nn.LayerNorm((5, 8)),
    "layer norm with a frozen scale": lambda: _bias_only(nn.LayerNorm(8)),
    "convolution": Convolution,
    "called twice": Twice,
    "keyword call": KeywordCall,
    "subclass with its own forward": lambda: ScaledLinear(8, 8),
    "parent-owned parameters": ParentOwned,
    "position table": PositionTable,
    "functional use": FunctionalUse,
    "flattened batch": lambda: Flattened(nn.Linear(8, 8)),
    "flattened batch of a layer norm": lambda: Flattened(nn.LayerNorm(8)),
    "attention": lambda: Attention(batch_first=True),
    "attention, sequence first": lambda: Attention(batch_first=False),
    "sequence first": SequenceFirst,
    "tied weights": Tied,
    "checkpointing": lambda: Checkpointed(reentrant=False),
    "reentrant checkpointing": lambda: Checkpointed(reentrant=True),
    "late gradient": LateGradient,
    "convolution over images": ImageConvolution,
    "patch embedding": PatchEmbedding,
    "token table": TokenTable,
    "group norm": ChannelNorm,
    "encoder layer in evaluation mode": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(),
    "prompts": Prompts,
    "as many prompts as samples": AsManyPromptsAsSamples,
    "tuple": lambda: Returning(lambda a, b: (a, b), lambda output: output),
    "dictionary": lambda: Returning(lambda a, b: {"a": a, "b": [b]}, lambda output: (output["a"], output["b"][0])),
    "object": lambda: Returning(lambda a, b: SimpleNamespace(a=a, b=b), lambda output: (output.a, output.b)),
    "the same tensor twice": lambda: Returning(lambda a, b: 2 * (a + b,), lambda output: output),
    "one output made of the other": lambda: Returning(lambda a, b: (a, b), lambda output: output, dependent=True),
    "recurrent": Recurrent,
    "in-place": InPlace,
    "weight norm": lambda: weight_norm(nn.Linear(8, 8)),
}


def _bias_only(layer):
    layer.weight.requires_grad_(False)
    return layer


def collect(collector, model, x, y, weights):
    """The gradients of L (accumulated by autograd) and L_c (collected), by name."""
    model.zero_grad()
    collector.start()
    while collector.needs_verification(len(y)):
        with collector.watch(weights):
            collector.verify(BatchLosses(F.cross_entropy(model(x), y, reduction="none"), weights, len(y)))
    with collector.watch(weights):
        collector.backward(BatchLosses(F.cross_entropy(model(x), y, reduction="none"), weights, len(y)))
    names = {p: name for name, p in model.named_parameters()}
    weighted = {names[p]: gradient for p, gradient in collector.gradients().items()}
    return {name: p.grad for name, p in model.named_parameters()}, weighted


def naive(model, x, y, weights):
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for n in range(len(y)):
        loss = F.cross_entropy(model(x[n : n + 1].clone()), y[n : n + 1]) * weights[n] / len(y)
        gradients = (
            torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            if not _reentrant(model)
            else _gradients_by_backward(loss, parameters)
        )
        for name, gradient in zip(parameters, gradients, strict=True):
            total[name] += 0 if gradient is None else gradient
    return total


def _reentrant(model):
    return isinstance(model.body, Checkpointed) and model.body.reentrant


def _gradients_by_backward(loss, parameters):
    for p in parameters.values():
        p.grad = None
    loss.backward()
    return [p.grad for p in parameters.values()]


@pytest.mark.parametrize("body", BODIES)
def test_both_gradients_are_exact_in_every_step(body):
    torch.manual_seed(0)
    model = Pooled(BODIES[body]()).double()
    collector = WeightedGradient(model)
    for step in range(8):
        batch = 6 if step != 2 else 1  # a batch of one in between must not pass for a comparison
        x = torch.randn(batch, 5, 8, dtype=torch.float64)
        y, weights = torch.randint(C, (batch,)), torch.rand(batch, dtype=torch.float64)
        expected, expected_weighted = naive(model, x, y, torch.ones_like(weights)), naive(model, x, y, weights)
        plain, weighted = collect(collector, model, x.clone(), y, weights)
        for name, value in expected_weighted.items():
            torch.testing.assert_close(weighted[name], value, rtol=1e-9, atol=1e-12)
            actual = torch.zeros_like(value) if plain[name] is None else plain[name]
            torch.testing.assert_close(actual, expected[name], rtol=1e-9, atol=1e-12)
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * (p.grad if p.grad is not None else 0)
    assert collector.separate_reason is None
    assert collector.backward_passes == 1


class Shifted(nn.Sequential):
    """A container with a forward pass and a parameter of its own."""

    def __init__(self):
        super().__init__(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, C))
        self.shift = nn.Parameter(torch.zeros(8))
        self.body = None

    def forward(self, x):
        return super().forward(x + self.shift)


def test_a_container_with_a_parameter_of_its_own_gets_exact_gradients():
    torch.manual_seed(0)
    model = Shifted().double()
    collector = WeightedGradient(model)
    x, y, weights = torch.randn(6, 8, dtype=torch.float64), torch.arange(6) % C, torch.rand(6, dtype=torch.float64)
    for _ in range(2):
        _, weighted = collect(collector, model, x, y, weights)
        expected = naive(model, x, y, weights)
        assert weighted.keys() == expected.keys() and "shift" in expected
        for name, value in expected.items():
            torch.testing.assert_close(weighted[name], value, rtol=1e-9, atol=1e-12)


def test_a_compiled_model_is_unwrapped_to_itself_whatever_its_modules_are_called():
    model = nn.Module()
    model.module = nn.Linear(8, C)
    assert WeightedGradient(torch.compile(model)).model is model


@pytest.mark.parametrize("body", ["wide linear", "layer norm", "attention"])
@pytest.mark.slow
def test_a_compiled_model_gives_the_same_gradients(body):
    torch.manual_seed(0)
    model = Pooled(BODIES[body]()).double()
    compiled = torch.compile(model, backend="aot_eager")
    collector = WeightedGradient(compiled)
    for step in range(4):
        x, y = torch.randn(6, 5, 8, dtype=torch.float64), torch.randint(C, (6,))
        weights = torch.rand(6, dtype=torch.float64)
        with torch._dynamo.config.patch(error_on_recompile=step > 1):
            _, weighted = collect(collector, compiled, x, y, weights)
        for name, value in naive(model, x, y, weights).items():
            torch.testing.assert_close(weighted[f"_orig_mod.{name}"], value, rtol=1e-9, atol=1e-12)
    torch._dynamo.reset()


def test_batch_statistics_get_a_backward_pass_of_their_own_and_say_so_once(caplog):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, C)).double()
    collector = WeightedGradient(model)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            x, y = torch.randn(6, 8, dtype=torch.float64), torch.randint(C, (6,))
            weights = torch.rand(6, dtype=torch.float64)
            _, weighted = collect(collector, model, x, y, weights)
            loss = (F.cross_entropy(model(x), y, reduction="none") * weights).mean()
            expected = torch.autograd.grad(loss, list(model.parameters()))
            for actual, value in zip(weighted.values(), expected, strict=True):
                torch.testing.assert_close(actual, value, rtol=1e-9, atol=1e-12)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "1 (BatchNorm1d) makes the samples of a batch interact" in messages[0]


@pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor compiles for the CPU by g++, which is not there")
def test_batch_statistics_in_a_model_that_was_compiled_for_one_backward_pass():
    """There Inductor lets the backward pass overwrite what it has read, and a second one would read that."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Sigmoid(), nn.Linear(8, C)).double()
    compiled = torch.compile(model)
    x, y = torch.randn(6, 8, dtype=torch.float64), torch.randint(C, (6,))
    weights = torch.rand(6, dtype=torch.float64)
    with torch._functorch.config.patch(donated_buffer=True):
        F.cross_entropy(compiled(x), y).backward()
        collector = WeightedGradient(compiled)
        _, weighted = collect(collector, compiled, x, y, weights)
    assert collector.backward_passes == 2
    loss = (F.cross_entropy(model(x), y, reduction="none") * weights).mean()
    for actual, value in zip(weighted.values(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(actual, value, rtol=1e-9, atol=1e-12)
    torch._dynamo.reset()


def test_batch_normalisation_in_evaluation_mode_needs_no_second_backward_pass():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, C)).double().eval()
    collector = WeightedGradient(model)
    for _ in range(4):
        collect(collector, model, torch.randn(6, 8).double(), torch.randint(C, (6,)), torch.rand(6).double())
    assert collector.separate_reason is None


def test_a_parameter_used_only_by_the_whole_model_falls_back_by_name(caplog):
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, C)

        def forward(self, x):
            return self.layer(x) @ self.layer.weight @ self.layer.weight.T

    torch.manual_seed(0)
    model = Root().double()
    collector = WeightedGradient(model)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            x, y = torch.randn(6, 8, dtype=torch.float64), torch.randint(C, (6,))
            weights = torch.rand(6, dtype=torch.float64)
            _, weighted = collect(collector, model, x, y, weights)
            loss = (F.cross_entropy(model(x), y, reduction="none") * weights).mean()
            for actual, value in zip(
                weighted.values(), torch.autograd.grad(loss, list(model.parameters())), strict=True
            ):
                torch.testing.assert_close(actual, value, rtol=1e-9, atol=1e-12)
    assert "layer.weight" in caplog.text


def test_the_comparison_does_not_disturb_the_random_state():
    torch.manual_seed(0)
    model = Pooled(nn.Linear(8, 8))
    x, y = torch.randn(6, 5, 8), torch.randint(C, (6,))
    state = torch.get_rng_state()
    collect(WeightedGradient(model), model, x, y, torch.rand(6, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_unfrozen_later_are_taken_up():
    torch.manual_seed(0)
    model = Pooled(nn.Linear(8, 8)).double()
    model.body.requires_grad_(False)
    collector = WeightedGradient(model)
    for unfrozen in (False, True):
        model.body.requires_grad_(unfrozen)
        for _ in range(3):
            x, y = torch.randn(6, 5, 8, dtype=torch.float64), torch.randint(C, (6,))
            weights = torch.rand(6, dtype=torch.float64)
            _, weighted = collect(collector, model, x, y, weights)
            for name, value in naive(model, x, y, weights).items():
                torch.testing.assert_close(weighted[name], value, rtol=1e-9, atol=1e-12)
        assert ("body.weight" in weighted) == unfrozen


# ---- rows that belong to samples in a way that changes ----


class Packed(nn.Module):
    """Sequences of several lengths, packed to rows (sum of lengths, 8), as in variable-length attention."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.head = nn.Linear(8, C)
        self.lengths = None

    def forward(self, x):
        rows = torch.cat([sample[:length] for sample, length in zip(x, self.lengths, strict=True)])
        rows = torch.tanh(self.layer(rows))
        return self.head(torch.stack([part.mean(dim=0) for part in rows.split(self.lengths)]))


class Routed(nn.Module):
    """Two experts; each sample's rows go to one of them, in the order of the experts."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])
        self.head = nn.Linear(8, C)
        self.routes = None

    def forward(self, x):
        result = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            chosen = torch.tensor(self.routes) == index
            result[chosen] = torch.tanh(expert(x[chosen]))
        return self.head(result.mean(dim=1))


@pytest.mark.parametrize("batch_weights", ["random", "nearly equal"])
@pytest.mark.parametrize(
    ("build", "attribute", "early", "late"),
    [
        # Four rows a sample where it is compared; later 20 rows of 4 samples that are not five each.
        (Packed, "lengths", [4, 4, 4, 4], [8, 2, 4, 6]),
        # All tokens at one expert where it is compared; later 8 or 4 rows of 4 samples at each.
        (Routed, "routes", [[0] * 6] * 4, [[0, 0, 0, 0, 0, 1], [1] * 6, [0] * 6, [0, 0, 1, 1, 1, 1]]),
    ],
    ids=["packed", "routed"],
)
def test_a_layout_that_appears_later_is_compared(build, attribute, early, late, batch_weights):
    torch.manual_seed(0)
    model = build().double()
    collector = WeightedGradient(model)
    for step in range(16):
        setattr(model, attribute, early if step < 6 or step == 9 else late)
        x, y = torch.randn(4, 8 if build is Packed else 6, 8, dtype=torch.float64), torch.randint(C, (4,))
        weights = torch.rand(4, dtype=torch.float64)
        if batch_weights == "nearly equal":
            weights = 0.8 + 1e-3 * weights
        loss = (F.cross_entropy(model(x), y, reduction="none") * weights).mean()
        expected = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        _, weighted = collect(collector, model, x, y, weights)
        for actual, value in zip(weighted.values(), expected, strict=True):
            # What nearly equal weights tell apart is compared to the tolerance of the comparison.
            tolerance = 1e-9 if batch_weights == "random" or step > 10 else 1e-6
            torch.testing.assert_close(
                actual, torch.zeros_like(actual) if value is None else value, rtol=tolerance, atol=1e-12
            )


def test_a_frozen_normalisation_before_all_that_trains_needs_no_second_backward_pass():
    """Its batch statistics mix the samples, but no gradient goes through it until what is before it is unfrozen."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, C)).double()
    model[:2].requires_grad_(False)
    collector = WeightedGradient(model)
    for is_frozen in (True, False):
        model[0].requires_grad_(not is_frozen)
        for _ in range(4):
            x, y = torch.randn(6, 8, dtype=torch.float64), torch.randint(C, (6,))
            weights = torch.rand(6, dtype=torch.float64)
            _, weighted = collect(collector, model, x, y, weights)
            trained = [p for p in model.parameters() if p.requires_grad]
            loss = (F.cross_entropy(model(x), y, reduction="none") * weights).mean()
            for actual, value in zip(weighted.values(), torch.autograd.grad(loss, trained), strict=True):
                torch.testing.assert_close(actual, value, rtol=1e-9, atol=1e-12)
        assert (collector.separate_reason is None) == is_frozen
        assert collector.backward_passes == (1 if is_frozen else 2)


WAYS = [WeightedGradient, lambda model: ScaledGradient(model, 1.0)]


@pytest.mark.parametrize("way", WAYS, ids=["any weights", "equal weights"])
def test_a_model_over_two_devices_is_refused(way):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, C))
    model[0].to("meta")
    with pytest.raises(ValueError, match=r"are on meta, cpu; .* all of them on one device"):
        way(model).start()


@pytest.mark.parametrize("way", WAYS, ids=["any weights", "equal weights"])
def test_an_optimizer_that_steps_in_the_backward_pass_is_refused(way):
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, C))
    model[1].weight.register_post_accumulate_grad_hook(lambda p: None)
    with pytest.raises(ValueError, match=r"parameter 1\.weight has a hook .*use another optimizer"):
        way(model).start()
