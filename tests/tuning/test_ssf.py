"""Scale and shift: its formula, its places, its start."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from tuning.tiny import (
    FAMILIES,
    HIDDEN_SIZE,
    LAYERS,
    PlainBackbone,
    build,
    inserted,
    logits_of,
    make_images,
    randomise,
)

from ft_focalsam.tuning.ssf import ScaleAndShift

every_family = pytest.mark.parametrize("family", FAMILIES)


def layers_of(plain: PlainBackbone) -> dict[str, nn.Module]:
    """What the paper puts a scale and a shift behind."""
    return {n: m for n, m in plain.model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.LayerNorm))}


@torch.no_grad()
def logits_by_formula(path: str, model) -> torch.Tensor:
    """The plain backbone, with hooks that write out gamma y + beta by the names of the saved tensors."""
    plain = PlainBackbone(path)
    values = {name: p.detach() for name, p in inserted(model).items()}
    for name, layer in layers_of(plain).items():
        if f"{name}.ssf.weight" not in values:
            continue
        gamma, beta = values[f"{name}.ssf.weight"], values[f"{name}.ssf.bias"]
        equation = "bdhw,d->bdhw" if isinstance(layer, nn.Conv2d) else "...d,d->...d"

        def replace(module, args, output, gamma=gamma, beta=beta, equation=equation):
            return torch.einsum(equation, output, gamma) + torch.einsum(equation, torch.ones_like(output), beta)

        layer.register_forward_hook(replace)
    features = plain.features_of(make_images())
    return 25 * F.normalize(features, dim=1) @ F.normalize(model.head.weight, dim=1).T


@every_family
@pytest.mark.parametrize("layers", [[], [0, 2], [1]], ids=["all", "first_and_last", "middle"])
def test_logits_equal_the_formula(tiny_backbones, family, layers):
    path = tiny_backbones[family]
    model = build(path, "ssf", tuned_layers=layers)
    start = logits_of(model)
    randomise(model)
    actual = logits_of(model)
    assert (actual - start).abs().max() > 0.1
    torch.testing.assert_close(actual, logits_by_formula(path, model), rtol=0, atol=2e-4)


@every_family
def test_a_pair_behind_every_layer(tiny_backbones, family):
    path = tiny_backbones[family]
    expected = {f"{name}.ssf.{part}" for name in layers_of(PlainBackbone(path)) for part in ("weight", "bias")}
    found = inserted(build(path, "ssf"))
    assert set(found) == expected and len(expected) > 2 * 8 * LAYERS
    assert all((p == (1 if name.endswith("weight") else 0)).all() for name, p in found.items())


@every_family
def test_only_chosen_blocks(tiny_backbones, family):
    names = set(inserted(build(tiny_backbones[family], "ssf", tuned_layers=[1])))
    assert names and all(".1." in name for name in names)
    assert len(names) == 2 * (9 if family == "dinov2_swiglu" else 8)


def test_layers_behind_an_adapter_and_lora_are_left_alone(tiny_backbones):
    both = set(inserted(build(tiny_backbones["vit"], "ssf,adaptformer,lora", adapter_width=4)))
    scaled = {name for name in both if ".ssf." in name}
    assert len(scaled) == len(inserted(build(tiny_backbones["vit"], "ssf")))
    assert not any(part in name for name in scaled for part in ("lora_", "adapter."))
    assert any(name.endswith("q_proj.base_layer.ssf.weight") for name in scaled)


@pytest.mark.parametrize(("shape", "channel_dim"), [((2, 5, 3), -1), ((2, 3, 4, 4), 1), ((2, 3), -1)])
def test_channels_and_dtype(shape, channel_dim):
    """Computed in float32, so that a gamma close to 1 is not rounded away; the result has the dtype of the input."""
    module = ScaleAndShift(3, channel_dim=channel_dim)
    module.weight.data = torch.tensor([1.001, 2.0, -1.0])
    module.bias.data = torch.tensor([0.5, 0.0, 3.0])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    moved = x.movedim(channel_dim, -1)
    expected = torch.stack([moved[..., 0] * 1.001 + 0.5, moved[..., 1] * 2, 3 - moved[..., 2]], dim=-1)
    torch.testing.assert_close(module(x), expected.movedim(-1, channel_dim))
    half = module((1000 * x).bfloat16())
    assert half.dtype == torch.bfloat16
    exact = module((1000 * x).bfloat16().float())
    assert torch.equal(half, exact.bfloat16())


def test_sizes_follow_the_layers(tiny_backbones):
    shapes = {name: p.shape[0] for name, p in inserted(build(tiny_backbones["clip"], "ssf")).items()}
    assert shapes["visual_projection.ssf.weight"] == 12
    assert shapes["vision_model.embeddings.patch_embedding.ssf.bias"] == HIDDEN_SIZE
    assert shapes["vision_model.encoder.layers.0.mlp.fc1.ssf.weight"] == 32
