"""The rules of module types, called as they are: the forward pass of the module, and gradients sample by sample."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from ft_focalsam.sharpness.gradients.rules import find_rule, make_buffer

NORMS = {
    "scale and shift": lambda: nn.LayerNorm(8),
    "without bias": lambda: nn.LayerNorm(8, bias=False),
    "without parameters": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "over two dimensions": lambda: nn.LayerNorm((5, 8)),
    "large eps": lambda: nn.LayerNorm(8, eps=0.5),
}
SAMPLES, TOKENS = 4, 5
SHAPES = {"tokens": (SAMPLES, TOKENS, 8), "no tokens": (SAMPLES, 8), "flattened": (SAMPLES * TOKENS, 8)}
CASES = [(norm, shape) for norm in NORMS for shape in SHAPES if norm != "over two dimensions" or shape == "tokens"]


def make_norm(norm: str, dtype: torch.dtype = torch.float64) -> nn.LayerNorm:
    torch.manual_seed(0)
    module = NORMS[norm]().to(dtype)
    for parameter in module.parameters():
        nn.init.normal_(parameter, mean=1.0)
    return module


def by_rule(module: nn.Module, buffers: dict[str, Tensor], weights: Tensor, x: Tensor) -> Tensor:
    return find_rule(module)(module, buffers, weights, x)


def sample_by_sample(module: nn.Module, x: Tensor, delta: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """sum_n u_n (d module / d p)^T delta_n for each parameter p."""
    total = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    for u, x_n, delta_n in zip(weights, x.chunk(SAMPLES), delta.chunk(SAMPLES), strict=True):
        for name, parameter in module.named_parameters():
            total[name] += u * torch.autograd.grad(module(x_n), parameter, delta_n)[0]
    return total


@pytest.mark.parametrize(("norm", "shape"), CASES)
def test_gradients_of_a_layer_norm_are_those_of_a_loop_over_samples(norm, shape):
    module = make_norm(norm)
    x = torch.randn(SHAPES[shape], dtype=torch.float64, requires_grad=True)
    delta, weights = torch.randn_like(x), torch.rand(SAMPLES, dtype=torch.float64)
    buffers = {name: make_buffer(p) for name, p in module.named_parameters()}
    expected = sample_by_sample(module, x, delta, torch.ones_like(weights))
    expected_weighted = sample_by_sample(module, x, delta, weights)
    (expected_x,) = torch.autograd.grad(module(x), x, delta)
    by_rule(module, buffers, weights, x).backward(delta)
    assert x.grad.equal(expected_x)
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(buffers[name].grad, expected_weighted[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("x_needs", [False, True])
@pytest.mark.parametrize("parameters", [(), ("weight",), ("bias",), ("weight", "bias")])
@pytest.mark.parametrize("with_buffer", [(), ("weight",), ("bias",), ("weight", "bias")])
def test_a_layer_norm_gives_the_gradients_that_are_asked_for_and_no_others(x_needs, parameters, with_buffer):
    """Among them those of a frozen scale with a buffer."""
    module = make_norm("scale and shift")
    x = torch.randn(SHAPES["tokens"], dtype=torch.float64)
    delta, weights = torch.randn_like(x), torch.rand(SAMPLES, dtype=torch.float64)
    expected = sample_by_sample(module, x, delta, torch.ones_like(weights))
    expected_weighted = sample_by_sample(module, x, delta, weights)
    x.requires_grad_(x_needs)
    buffers = {name: make_buffer(getattr(module, name)) for name in with_buffer}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in parameters)
    output = by_rule(module, buffers, weights, x)
    assert output.requires_grad == bool(x_needs or parameters or with_buffer)
    if output.requires_grad:
        output.backward(delta)
    assert (x.grad is not None) == x_needs
    for name, parameter in module.named_parameters():
        if name in parameters:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-10, atol=1e-12)
        else:
            assert parameter.grad is None
    for name, buffer in buffers.items():
        torch.testing.assert_close(buffer.grad, expected_weighted[name], rtol=1e-10, atol=1e-12)


HALF = [torch.bfloat16, torch.float16]
PRECISIONS = [  # of the input, of the weights, of autocast
    (torch.float32, torch.float32, None),
    *[(dtype, dtype, None) for dtype in HALF],
    *[(dtype, torch.float32, None) for dtype in HALF],
    *[(torch.float32, torch.float32, dtype) for dtype in HALF],
    *[(dtype, torch.float32, dtype) for dtype in HALF],
    *[(dtype, dtype, dtype) for dtype in HALF],
]
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", PRECISIONS, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_a_layer_norm_by_its_rule_is_that_of_torch_bit_for_bit(norm, precision, device):
    """Output, and gradients of L, in the precision that autocast chooses for the device or without it."""
    input_dtype, dtype, autocast = precision
    if torch.device(device).type == "cuda" and autocast is None and input_dtype != dtype:
        pytest.skip("torch has no layer norm of two precisions there")
    module = make_norm(norm, dtype).to(device)
    x = torch.randn(SHAPES["tokens"], dtype=input_dtype, device=device, requires_grad=True)
    leaves = [x, *module.parameters()]
    weights = torch.rand(SAMPLES, device=device)
    buffers = {name: make_buffer(p) for name, p in module.named_parameters()}
    with torch.autocast(device, autocast, enabled=True) if autocast else nullcontext():
        expected, actual = module(x), by_rule(module, buffers, weights, x)
    assert actual.dtype == expected.dtype
    assert actual.equal(expected)
    delta = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, leaves, delta, retain_graph=True),
        torch.autograd.grad(expected, leaves, delta),
        strict=True,
    ):
        assert a.dtype == b.dtype
        assert a.equal(b)
    if buffers:
        actual.backward(delta)
    with torch.autocast(device, enabled=False):
        whole = sample_by_sample(module.double(), x.double(), delta.double(), weights.double())
    tolerance = 1e-5 if input_dtype == torch.float32 and autocast is None else 1e-2
    for name, buffer in buffers.items():
        assert buffer.grad.dtype == torch.float32
        assert (buffer.grad.double() - whole[name]).norm() <= tolerance * whole[name].norm()


def test_a_subclass_that_overrides_forward_has_no_rule():
    class InFloat32(nn.LayerNorm):
        def forward(self, x):
            return super().forward(x.float()).to(x.dtype)

    assert find_rule(InFloat32(8)) is None
    assert find_rule(nn.LayerNorm(8)) is not None
