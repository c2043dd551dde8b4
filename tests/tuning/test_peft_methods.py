"""LoRA's variants, IA3, and any other peft configuration: their formulas, their places, errors."""

import json

import pytest
import torch
from peft import PeftModel
from peft.tuners.ia3 import IA3Layer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from tuning.tiny import FAMILIES, NAMES, PlainBackbone, build, inserted, logits_of, make_images, randomise

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.models import load_backbone

every_family = pytest.mark.parametrize("family", FAMILIES)


def layers_of(model: LongTailClassifier, kind: type) -> dict[str, BaseTunerLayer]:
    """By their name in the plain backbone."""
    found = {name: m for name, m in model.backbone.named_modules() if isinstance(m, kind)}
    return {name.removeprefix("base_model.model."): m for name, m in found.items()}


def plain_weights(path: str, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    layer = load_backbone(path).get_submodule(name)
    return layer.weight.detach().double(), layer.bias.detach().double()


def inputs(size: int = 16) -> torch.Tensor:
    return torch.randn(5, size, generator=torch.Generator().manual_seed(3))


def product(layer: LoraLayer) -> torch.Tensor:
    """B A"""
    return (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach().double()


# ---- LoRA's variants ----


@every_family
@pytest.mark.parametrize(("rslora", "scale"), [(False, 6 / 4), (True, 6 / 2)], ids=["lora", "rslora"])
def test_scale_of_the_update(tiny_backbones, family, rslora, scale):
    path = tiny_backbones[family]
    model = randomise(build(path, "lora", lora_rank=4, lora_alpha=6.0, lora_rslora=rslora))
    layers = layers_of(model, LoraLayer)
    assert len(layers) == 6
    for name, layer in layers.items():
        weight, bias = plain_weights(path, name)
        expected = inputs().double() @ (weight + scale * product(layer)).T + bias
        torch.testing.assert_close(layer(inputs()).double(), expected, rtol=0, atol=1e-4)


@every_family
def test_dora_scales_the_directions(tiny_backbones, family):
    """m (W + s B A) / |W + s B A| by rows; m starts as the norms of the rows of W."""
    path = tiny_backbones[family]
    model = build(path, "lora", lora_rank=2, lora_alpha=4.0, lora_dora=True)
    for name, layer in layers_of(model, LoraLayer).items():
        start = layer.lora_magnitude_vector["default"].weight.double()
        torch.testing.assert_close(start, plain_weights(path, name)[0].norm(dim=1), rtol=1e-5, atol=0)
    randomise(model)
    for name, layer in layers_of(model, LoraLayer).items():
        weight, bias = plain_weights(path, name)
        changed = weight + 2 * product(layer)
        magnitude = layer.lora_magnitude_vector["default"].weight.detach().double()
        expected = inputs().double() @ (magnitude / changed.norm(dim=1) * changed.T) + bias
        torch.testing.assert_close(layer(inputs()).double(), expected, rtol=0, atol=1e-4)
    names = set(inserted(model))
    assert {name.split(".")[-3] for name in names} == {"lora_A", "lora_B", "lora_magnitude_vector"}


@every_family
def test_pissa_takes_the_principal_part_out_of_the_weights(tiny_backbones, family):
    path = tiny_backbones[family]
    for name, layer in layers_of(build(path, "lora", lora_rank=2, lora_init="pissa"), LoraLayer).items():
        weight, _ = plain_weights(path, name)
        u, s, v = torch.linalg.svd(weight)
        principal = u[:, :2] * s[:2] @ v[:2]
        scaling = layer.scaling["default"]
        torch.testing.assert_close(scaling * product(layer), principal, rtol=0, atol=1e-5)
        rest = layer.get_base_layer().weight.detach().double()
        torch.testing.assert_close(rest, weight - principal, rtol=0, atol=1e-5)


@pytest.mark.parametrize("init", ["default", "gaussian", "orthogonal", "pissa", "olora"])
def test_start_arrives_and_round_trips(tiny_backbones, tmp_path, init):
    path = tiny_backbones["vit"]
    model = build(path, "lora", lora_rank=2, lora_init=init)
    assert model.backbone.active_peft_config.init_lora_weights == (True if init == "default" else init)
    untouched = LongTailClassifier.from_backbone(path, NAMES).eval()
    untouched.head.load_state_dict(model.head.state_dict())
    torch.testing.assert_close(logits_of(model), logits_of(untouched), rtol=0, atol=1e-4)
    randomise(model).save_pretrained(tmp_path)
    torch.testing.assert_close(
        logits_of(LongTailClassifier.from_pretrained(tmp_path)), logits_of(model), rtol=0, atol=1e-6
    )


@every_family
@pytest.mark.parametrize("tuning", ["lora", "ia3"])
def test_only_chosen_blocks(tiny_backbones, tmp_path, family, tuning):
    model = build(tiny_backbones[family], tuning, tuned_layers=[2, 0])
    layers = layers_of(model, BaseTunerLayer)
    assert len(layers) == (4 if tuning == "lora" else 6)
    assert all(".0." in name or ".2." in name for name in layers)
    whole = layers_of(build(tiny_backbones[family], tuning), BaseTunerLayer)
    assert set(layers) == {name for name in whole if ".1." not in name}
    randomise(model).save_pretrained(tmp_path)
    assert torch.equal(logits_of(LongTailClassifier.from_pretrained(tmp_path)), logits_of(model))


# ---- IA3 ----


@every_family
def test_ia3_scales_keys_values_and_the_input_of_the_last_mlp_layer(tiny_backbones, family):
    path = tiny_backbones[family]
    model = randomise(build(path, "ia3"))
    layers = layers_of(model, IA3Layer)
    kinds = {name.rpartition(".")[2] for name in layers}
    assert kinds in ({"k_proj", "v_proj", "fc2"}, {"key", "value", "fc2"}, {"k_proj", "v_proj", "down_proj"})
    assert len(layers) == 9
    assert len(inserted(model)) == 9
    for name, layer in layers.items():
        weight, bias = plain_weights(path, name)
        scale = layer.ia3_l["default"].detach().double().flatten()
        x = inputs(weight.shape[1])
        if name.endswith(("fc2", "down_proj")):
            expected = (x.double() * scale) @ weight.T + bias
        else:
            expected = (x.double() @ weight.T + bias) * scale
        torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-4)


def test_ia3_on_a_backbone_with_other_names(tiny_backbones):
    model = LongTailClassifier.from_backbone(tiny_backbones["vit"], NAMES)
    model.backbone = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 16))
    with pytest.raises(
        ValueError, match=r"has no linear layers called k_proj, .* for ia3; name its own in peft_config"
    ):
        apply_tuning(model, "ia3")


# ---- any other ----


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own use
@pytest.mark.parametrize(
    "config",
    [
        {"peft_type": "loha", "r": 2, "target_modules": ["fc1"]},
        {"peft_type": "LOKR", "r": 2, "target_modules": ["fc1", "fc2"]},
        {"peft_type": "OFT", "oft_block_size": 4, "r": 0, "target_modules": ["q_proj"]},
        {"peft_type": "VERA", "r": 4, "target_modules": ["fc1"]},
        {"peft_type": "SHIRA", "r": 2, "target_modules": ["q_proj"]},
        {"peft_type": "RANDLORA", "r": 4, "target_modules": ["fc1"]},
        {"peft_type": "LN_TUNING", "target_modules": ["layernorm_before"]},
        {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "bias": "lora_only"},
        {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "modules_to_save": ["layernorm"]},
    ],
    ids=lambda config: "_".join(str(v) for k, v in config.items() if k in ("peft_type", "bias", "modules_to_save")),
)
def test_round_trip_of_other_configurations(tiny_backbones, tmp_path, config):
    """In our format, and in peft's own, also where peft keeps frozen or random tensors."""
    path = tiny_backbones["vit"]
    model = randomise(build(path, "peft", peft_config=config))
    assert model.backbone.active_peft_config.peft_type.value == config["peft_type"].upper()
    expected = logits_of(model)
    plain = LongTailClassifier.from_backbone(path, NAMES).eval()
    plain.head.load_state_dict(model.head.state_dict())
    assert (expected - logits_of(plain)).abs().max() > 1e-3
    model.save_pretrained(tmp_path)
    torch.manual_seed(77)
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(loaded), expected, rtol=0, atol=1e-6)
    assert set(inserted(loaded)) == set(inserted(model))
    torch.manual_seed(78)
    plain.backbone = PeftModel.from_pretrained(load_backbone(path), str(tmp_path)).eval()
    torch.testing.assert_close(logits_of(plain), expected, rtol=0, atol=1e-5)


def test_saved_configuration_is_the_given_one(tiny_backbones, tmp_path):
    config = {"peft_type": "LOHA", "r": 3, "alpha": 5, "target_modules": ["fc1"]}
    build(tiny_backbones["vit"], "peft", peft_config=dict(config)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert {name: saved[name] for name in config} == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"peft_config, which names no peft_type; set it to one .*: ADALORA, .*VERA"),
        ({"r": 2}, r"peft_config, which names no peft_type; set it to one"),
        ({"peft_type": "LOHAA"}, r"names the peft_type 'LOHAA'; set it to one that adapts a vision model: .*LOHA"),
        ({"peft_type": "PREFIX_TUNING"}, r"names the peft_type 'PREFIX_TUNING'; set it to one that adapts a vision"),
        ({"peft_type": "LOHA", "rnk_dropout": 0.1}, r"unknown field 'rnk_dropout' for LOHA; did you mean 'rank_drop"),
        ({"peft_type": "OFT", "r": 3, "oft_block_size": 4}, r"peft_config for OFT is refused by peft: .*; correct it"),
        (
            {"peft_type": "LOHA", "target_modules": ["qkv"]},
            r"peft_type 'LOHA' does not fit the backbone '.*': Target modules .*qkv.* not found.*; correct its fields",
        ),
        ({"peft_type": "LOHA"}, r"peft_type 'LOHA' does not fit the backbone '.*target_modules.*; correct its fields"),
        (
            {"peft_type": "LORA", "init_lora_weights": "pissa_niter_4"},
            r"sets init_lora_weights to 'pissa_niter_4', a start that loading could not repeat; choose 'pissa'",
        ),
    ],
    ids=["none", "no_type", "unknown_type", "language_models", "field", "values", "target", "no_target", "start"],
)
def test_configuration_that_cannot_be_used(tiny_backbones, config, message):
    model = LongTailClassifier.from_backbone(tiny_backbones["vit"], NAMES)
    with pytest.raises(ValueError, match=message) as error:
        apply_tuning(model, "peft", TuningOptions(peft_config=config))
    assert "\n" not in str(error.value)
    assert not isinstance(model.backbone, PeftModel)
    assert torch.equal(model.features(make_images()), PlainBackbone(tiny_backbones["vit"]).features_of(make_images()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_rank": 0}, r"lora_rank is 0; set it to 1 or more"),
        ({"lora_alpha": 0.0}, r"lora_alpha is 0\.0; set it to a number above 0"),
        ({"lora_dropout": 1.0}, r"lora_dropout is 1\.0; set it to 0 or more and below 1"),
        ({"lora_init": "eva"}, r"lora_init is 'eva'; choose one of default, gaussian, orthogonal, pissa, olora"),
        ({"last_blocks": 0}, r"last_blocks is 0; set it to 1 or more"),
    ],
    ids=["rank", "alpha", "dropout", "init", "last_blocks"],
)
def test_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TuningOptions(**options)
