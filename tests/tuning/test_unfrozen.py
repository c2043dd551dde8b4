"""Biases, norms, last blocks: which parameters train, and that they act where they did."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import BeitConfig, BeitModel, SiglipVisionConfig, SiglipVisionModel
from tuning.tiny import (
    FAMILIES,
    LAYERS,
    NAMES,
    VISION,
    PlainBackbone,
    build,
    inserted,
    logits_of,
    make_images,
    randomise,
)

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning

METHODS = ("bias", "norms", "last_blocks")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_method = pytest.mark.parametrize("tuning", METHODS)


def expected_names(path: str, tuning: str, *, layers=range(LAYERS), last: int = 1) -> set[str]:
    """Names of parameters of the plain backbone, by what they are called."""
    plain = PlainBackbone(path)
    names = dict(plain.model.named_parameters())
    in_block = {
        n: i for n, p in names.items() for i, b in enumerate(plain.blocks) if any(p is q for q in b.parameters())
    }
    whole = len(layers) == LAYERS
    if tuning == "last_blocks":
        final = {n for n in names if "layernorm." in n and n not in in_block}
        final |= {n for n in names if "post_layernorm." in n}
        return final | {n for n, i in in_block.items() if i >= LAYERS - last}
    part = "norm" if tuning == "norms" else ".bias"
    return {n for n in names if part in n and (in_block.get(n) in layers or (whole and n not in in_block))}


@every_method
@every_family
@pytest.mark.parametrize("layers", [[], [2, 0]], ids=["all", "first_and_last"])
def test_exactly_the_named_parameters_train(tiny_backbones, family, tuning, layers):
    path = tiny_backbones[family]
    model = build(path, tuning, tuned_layers=layers)
    expected = expected_names(path, tuning, layers=sorted(layers) or range(LAYERS))
    assert len(expected) >= 4
    assert set(inserted(model)) == expected
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "head.weight",
        *(f"backbone.{name}" for name in expected),
    }


@every_family
@pytest.mark.parametrize("last", [1, 2, LAYERS])
def test_number_of_last_blocks(tiny_backbones, family, last):
    path = tiny_backbones[family]
    assert set(inserted(build(path, "last_blocks", last_blocks=last))) == expected_names(
        path, "last_blocks", last=last
    )


@every_method
@every_family
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_saved_weights_are_those_of_the_plain_backbone(tiny_backbones, tmp_path, family, tuning, dtype):
    """The checkpoint of a plain transformers model with the tuned tensors in it gives the same logits."""
    path = tiny_backbones[family]
    model = randomise(build(path, tuning, dtype=dtype))
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float32}
    plain = PlainBackbone(path)
    tensors = {n.removeprefix("backbone."): v for n, v in saved.items() if n.startswith("backbone.")}
    assert not plain.model.load_state_dict(tensors, strict=False).unexpected_keys
    with torch.no_grad():
        features = plain.features_of(make_images())
        expected = 25 * torch.nn.functional.normalize(features) @ torch.nn.functional.normalize(saved["head.weight"]).T
    if dtype == "float32":
        torch.testing.assert_close(logits_of(model), expected, rtol=0, atol=1e-4)
    else:
        assert ((logits_of(model) - expected).norm() / expected.norm()).item() < 0.1


@pytest.mark.parametrize("kind", ["linear", "conv", "norm", "layer_scale"])
def test_layer_with_float32_weights_computes_in_the_dtype_of_its_input(tiny_backbones, kind):
    """The same function as the half-precision layer with the tuned weight rounded; its gradient arrives unrounded."""
    model = randomise(build(tiny_backbones["dinov2"], "bias,norms,last_blocks", dtype="bfloat16"))
    block = model.family.blocks(model.backbone)[-1]
    layer, x = {
        "linear": (model.family.blocks(model.backbone)[0].mlp.fc1, torch.randn(2, 5, 16)),
        "conv": (model.backbone.embeddings.patch_embeddings.projection, torch.randn(2, 3, 8, 8)),
        "norm": (block.norm1, torch.randn(2, 5, 16)),
        "layer_scale": (block.layer_scale1, torch.randn(2, 5, 16)),
    }[kind]
    x = x.bfloat16()
    before = {name: (p.dtype, p.data_ptr()) for name, p in layer.named_parameters()}
    output = layer(x)
    output.float().square().sum().backward()
    assert {name: (p.dtype, p.data_ptr()) for name, p in layer.named_parameters()} == before
    rounded = {name: p.detach().bfloat16() for name, p in layer.named_parameters()}
    if kind == "linear":
        expected = torch.nn.functional.linear(x, rounded["weight"], rounded["bias"])
    elif kind == "conv":
        expected = torch.nn.functional.conv2d(x, rounded["weight"], rounded["bias"], stride=4)
    elif kind == "norm":
        expected = torch.nn.functional.layer_norm(x, (16,), rounded["weight"], rounded["bias"], layer.eps)
    else:
        expected = x * rounded["lambda1"]
    assert output.dtype == torch.bfloat16 and torch.equal(output, expected)
    tuned = [p for p in layer.parameters() if p.requires_grad]
    assert tuned and all(p.dtype == torch.float32 and p.grad.dtype == torch.float32 and p.grad.any() for p in tuned)


@pytest.mark.parametrize(
    ("model_type", "config", "tuning"),
    [
        # Its pooling head is an nn.MultiheadAttention, which uses the weights of a child without calling it.
        (SiglipVisionModel, SiglipVisionConfig(**VISION), "bias,ssf"),
        # The module that owns its table of position biases is called with sizes alone.
        (BeitModel, BeitConfig(**VISION, use_relative_position_bias=True, use_mask_token=False), "last_blocks,sparse"),
    ],
    ids=["siglip", "beit"],
)
def test_modules_that_are_used_in_other_ways(tmp_path, model_type, config, tuning):
    torch.manual_seed(0)
    model_type(config).save_pretrained(tmp_path / "backbone")
    model = build(str(tmp_path / "backbone"), tuning, dtype="bfloat16", sparse_ratio=0.1)
    model(make_images()).logits.square().sum().backward()
    assert [name for name, p in inserted(model).items() if p.grad is None] == []
    assert {p.dtype for p in inserted(model).values()} == {torch.float32}
    reference = build(str(tmp_path / "backbone"), tuning, sparse_ratio=0.1)
    reference.load_state_dict(randomise(model).state_dict())
    actual, expected = model.features(make_images()).float(), reference.features(make_images())
    assert ((actual - expected).norm() / expected.norm()).item() < 0.06
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits_of(LongTailClassifier.from_pretrained(tmp_path / "saved")), logits_of(model))


def test_weights_are_there_again_after_an_error(tiny_backbones):
    model = build(tiny_backbones["vit"], "norms", dtype="bfloat16")
    norm = model.family.blocks(model.backbone)[0].layernorm_before
    with pytest.raises(RuntimeError):
        norm(torch.randn(2, 7).bfloat16())
    assert norm.weight.dtype == torch.float32 and norm.weight.requires_grad


# ---- errors ----


@pytest.mark.parametrize("count", [LAYERS + 1, 12])
def test_more_last_blocks_than_there_are(tiny_backbones, count):
    path = tiny_backbones["clip"]
    model = LongTailClassifier.from_backbone(path, NAMES)
    with pytest.raises(ValueError, match=rf"last_blocks is {count}, .*'{path}' has 3 blocks; set it to 3 or less"):
        apply_tuning(model, "last_blocks", TuningOptions(last_blocks=count))


@every_method
def test_backbone_without_such_parameters(tiny_backbones, tuning):
    model = LongTailClassifier.from_backbone(tiny_backbones["vit"], NAMES)
    model.backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 16, bias=False))
    with pytest.raises(ValueError, match=r"has no (biases|normalisation layers|transformer blocks) .*choose another"):
        apply_tuning(model, tuning)


@pytest.mark.parametrize("tuning", ["bias", "norms"])
def test_layer_that_does_not_exist(tiny_backbones, tuning):
    model = LongTailClassifier.from_backbone(tiny_backbones["vit"], NAMES)
    with pytest.raises(ValueError, match=r"tuned_layers names 3, .*has the blocks 0 to 2; choose among"):
        apply_tuning(model, tuning, TuningOptions(tuned_layers=[3]))
