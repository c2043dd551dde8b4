"""What each tuning method trains, and that its options arrive."""

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from ft_focalsam.models import LongTailClassifier
from ft_focalsam.tuning import TUNING_METHODS, TuningOptions, apply_tuning, describe_parameters, register_tuning

FAMILIES = ("vit", "dinov2", "clip")
# hidden size, layers
SHAPE = {"vit": (32, 2), "dinov2": (32, 3), "clip": (128, 4)}
NAMES = ("owl", "fox", "newt")

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory) -> dict[str, str]:
    """Two tiny random models, and the embedded CLIP."""
    root = tmp_path_factory.mktemp("tuning_backbones")
    size = {"num_attention_heads": 2, "image_size": 32, "patch_size": 8, "intermediate_size": 64, "mlp_ratio": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for family, config_type, model_type in (("vit", ViTConfig, ViTModel), ("dinov2", Dinov2Config, Dinov2Model)):
            hidden_size, layers = SHAPE[family]
            config = config_type(hidden_size=hidden_size, num_hidden_layers=layers, initializer_range=0.2, **size)
            model_type(config).save_pretrained(root / family)
    return {"vit": str(root / "vit"), "dinov2": str(root / "dinov2"), "clip": "tiny_clip"}


def build(backbone: str, **options) -> LongTailClassifier:
    torch.manual_seed(1)
    return LongTailClassifier.from_backbone(backbone, NAMES, **options).eval()


def make_images() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def trainable(model: LongTailClassifier) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def lora_layers(model: LongTailClassifier) -> dict[str, LoraLayer]:
    return {name: module for name, module in model.backbone.named_modules() if isinstance(module, LoraLayer)}


@every_family
def test_linear_probe_trains_the_head_alone(backbones, family):
    model = build(backbones[family])
    model.backbone.requires_grad_(True)
    apply_tuning(model, "linear_probe")
    assert trainable(model) == {"head.weight"}


@every_family
def test_full_trains_everything_in_float32(backbones, family):
    model = build(backbones[family], dtype="bfloat16")
    apply_tuning(model, "full")
    assert trainable(model) == {name for name, _ in model.named_parameters()}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model(make_images()).logits.dtype == torch.float32


@every_family
def test_lora_trains_query_and_value_of_every_layer_and_the_head(backbones, family):
    model = build(backbones[family], head="linear")
    apply_tuning(model, "lora")
    hidden_size, layers = SHAPE[family]
    adapted = lora_layers(model)
    assert len(adapted) == 2 * layers
    assert {name.rpartition(".")[2] for name in adapted} in ({"q_proj", "v_proj"}, {"query", "value"})
    names = {f"backbone.{name}.lora_{matrix}.default.weight" for name in adapted for matrix in "AB"}
    assert trainable(model) == names | {"head.weight", "head.bias"}
    shapes = {tuple(p.shape) for name, p in model.named_parameters() if ".lora_" in name}
    assert shapes == {(8, hidden_size), (hidden_size, 8)}


@every_family
def test_options_arrive_in_the_peft_config_and_the_layers(backbones, family):
    model = build(backbones[family])
    names = {name.rpartition(".")[2] for name, _ in model.backbone.named_modules()}
    target = "k_proj" if "k_proj" in names else "key"
    options = TuningOptions(lora_rank=3, lora_alpha=12.0, lora_dropout=0.25, lora_target_modules=[target])
    apply_tuning(model, "lora", options)
    config = model.backbone.active_peft_config
    assert (config.r, config.lora_alpha, config.lora_dropout) == (3, 12.0, 0.25)
    assert set(config.target_modules) == {target}
    adapted = lora_layers(model)
    assert len(adapted) == SHAPE[family][1] and all(name.endswith(target) for name in adapted)
    for layer in adapted.values():
        assert layer.scaling["default"] == pytest.approx(4.0)
        assert layer.lora_dropout["default"].p == 0.25


@every_family
def test_fresh_lora_gives_the_same_logits(backbones, family):
    model = build(backbones[family])
    with torch.no_grad():
        before = model(make_images()).logits
        apply_tuning(model, "lora")
        torch.testing.assert_close(model(make_images()).logits, before, rtol=0, atol=1e-6)
        for layer in lora_layers(model).values():
            layer.lora_B["default"].weight.fill_(0.1)
        assert (model(make_images()).logits - before).abs().max() > 1e-2


def test_lora_update_is_alpha_over_rank_times_b_a(backbones):
    model = build(backbones["vit"])
    apply_tuning(model, "lora", TuningOptions(lora_rank=2, lora_alpha=6.0))
    assert isinstance(model.backbone, PeftModel)
    layer = next(iter(lora_layers(model).values()))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        layer.lora_B["default"].weight.normal_(generator=torch.Generator().manual_seed(4))
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight = layer.get_base_layer().weight.double() + 6.0 / 2 * (b.double() @ a.double())
        expected = x.double() @ weight.T + layer.get_base_layer().bias.double()
        torch.testing.assert_close(layer(x).double(), expected, rtol=0, atol=1e-4)


@every_family
@pytest.mark.parametrize("tuning", ["lora", "linear_probe", "full"])
def test_parameters_are_counted(backbones, family, tuning):
    model = build(backbones[family], head="linear")
    backbone = sum(value.numel() for value in model.backbone.state_dict().values())
    hidden_size, layers = SHAPE[family]
    head = 3 * model.config.feature_size + 3
    apply_tuning(model, tuning, TuningOptions(lora_rank=5))
    lora = layers * 2 * 5 * (hidden_size + hidden_size) if tuning == "lora" else 0
    trained = head + lora + (backbone if tuning == "full" else 0)
    total = backbone + lora + head
    expected = f"Trained parameters: {trained:,} of {total:,} ({100 * trained / total:.2f}%)"
    assert describe_parameters(model) == expected


def test_unknown_method(backbones):
    with pytest.raises(ValueError, match=r"Unknown tuning method 'lora_plus'; choose one of .*lora"):
        apply_tuning(build(backbones["vit"]), "lora_plus")


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_out_of_range(backbones, rank):
    with pytest.raises(ValueError, match=rf"{rank}"):
        apply_tuning(build(backbones["vit"]), "lora", TuningOptions(lora_rank=rank))


def test_second_tuning_is_refused(backbones):
    model = build(backbones["vit"])
    apply_tuning(model, "lora")
    with pytest.raises(ValueError, match=r"is tuned already, by lora; start from a new one: from_backbone"):
        apply_tuning(model, "linear_probe")


def test_method_name_is_taken_once():
    with pytest.raises(ValueError, match=r"'lora' is already registered by .*; choose another name"):
        register_tuning("lora")(lambda model, options: None)
    assert {"lora", "linear_probe", "full"} <= set(TUNING_METHODS)


def test_what_apply_tuning_takes():
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
    with pytest.raises(TypeError, match=r"options is a dict; give TuningOptions"):
        apply_tuning(model, "lora", {"lora_rank": 4})
    with pytest.raises(TypeError, match="model is a Linear, and apply_tuning takes a LongTailClassifier"):
        apply_tuning(torch.nn.Linear(2, 2), "lora")
    for nothing in ("", None, []):
        with pytest.raises(ValueError, match="tuning names no method; choose among"):
            apply_tuning(model, nothing)
