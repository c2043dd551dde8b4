"""Several tuning methods at once: together they train what each trains; pairs that exclude each other."""

import itertools
import json

import pytest
import torch
from peft import PeftModel
from tuning.tiny import FAMILIES, NAMES, build, inserted, logits_of, make_images, randomise

from ft_focalsam import LongTailClassifier, apply_tuning
from ft_focalsam.models import load_backbone
from ft_focalsam.tuning import TUNING_METHODS, choose_methods

pytestmark = pytest.mark.slow

TEXT_METHODS = ("text_lora", "context_prompts")
SIZES = {"context_length": 3, "adapter_width": 4, "prompt_length": 3, "lora_rank": 2, "sparse_ratio": 0.1}
SIZES["peft_config"] = {"peft_type": "LOHA", "r": 2, "target_modules": ["fc1", "fc2", "up_proj", "down_proj"]}
EXCLUDING = [
    {"adaptformer", "adapter"},
    {"vpt_shallow", "vpt_deep"},
    {"lora", "ia3"},
    {"lora", "peft"},
    {"ia3", "peft"},
    *({whole, other} for whole in ("full", "linear_probe", "zero_shot") for other in TUNING_METHODS if other != whole),
]
PAIRS = [set(pair) for pair in itertools.combinations(TUNING_METHODS, 2)]
ALLOWED = sorted(",".join(sorted(pair)) for pair in PAIRS if pair not in EXCLUDING)

every_family = pytest.mark.parametrize("family", FAMILIES)


def trained(model: LongTailClassifier) -> set[str]:
    """Names of what trains of the backbone, without the parts that peft and inserted modules put in between."""
    between = {"base_model", "model", "base_layer", "mlp", "block"}
    return {".".join(part for part in name.split(".") if part not in between) for name in inserted(model)}


@pytest.mark.parametrize("pair", ALLOWED)
def test_pair_trains_what_each_trains_and_round_trips(tiny_backbones, tmp_path, pair):
    family = FAMILIES[ALLOWED.index(pair) % len(FAMILIES)]  # a family in turn
    if any(method in pair for method in TEXT_METHODS):
        family = "clip"
    path = tiny_backbones[family]
    first, second = pair.split(",")
    model = build(path, pair, dtype="bfloat16", **SIZES)
    assert trained(model) == trained(build(path, first, **SIZES)) | trained(build(path, second, **SIZES))
    assert all(p.dtype == torch.float32 for p in inserted(model).values())
    randomise(model).save_pretrained(tmp_path)
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert {n: (p.dtype, p.requires_grad) for n, p in loaded.named_parameters()} == {
        n: (p.dtype, p.requires_grad) for n, p in model.named_parameters()
    }


@every_family
@pytest.mark.parametrize("names", ["ssf,lora,vpt_deep", "norms,adapter,sparse,ia3", "last_blocks,bias,ssf"])
def test_order_means_nothing(tiny_backbones, family, names):
    parts = names.split(",")
    models = [build(tiny_backbones[family], order, **SIZES) for order in (parts, parts[::-1], [names])]
    states = [model.state_dict() for model in models]
    assert states[0].keys() == states[1].keys() == states[2].keys()
    assert set(inserted(models[0])) == set(inserted(models[1])) == set(inserted(models[2]))
    for model in models[1:]:
        model.load_state_dict(states[0])
        assert torch.equal(logits_of(model), logits_of(models[0]))


def test_spaces_around_commas(tiny_backbones):
    assert choose_methods(" lora , norms ") == choose_methods(["norms", "lora"]) == choose_methods("lora,norms")


def test_every_insertion_is_noted_in_order(tiny_backbones, tmp_path):
    model = build(tiny_backbones["vit"], "vpt_shallow,ssf,adapter,sparse", **SIZES)
    model.save_pretrained(tmp_path)
    note = json.loads((tmp_path / "config.json").read_text())["inserted"]
    assert note["format"] == 2
    assert [module["name"] for module in note["modules"]] == ["adapter", "sparse", "ssf", "prompts"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own use
def test_peft_loads_its_part_of_a_combination(tiny_backbones, tmp_path):
    path = tiny_backbones["vit"]
    model = randomise(build(path, "lora,norms,adapter", **SIZES))
    model.save_pretrained(tmp_path)
    alone = build(path, "lora", **SIZES)
    saved = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert saved.keys() == {f"backbone.{name}" for name in inserted(alone)}
    alone.load_state_dict(saved, strict=False)
    loaded = PeftModel.from_pretrained(load_backbone(path), str(tmp_path)).eval()
    with torch.no_grad():
        features = loaded(pixel_values=make_images()).last_hidden_state[:, 0]
        torch.testing.assert_close(features, alone.features(make_images()), rtol=0, atol=1e-6)


# ---- errors ----


@pytest.mark.parametrize("pair", [sorted(pair) for pair in EXCLUDING], ids="-".join)
def test_pairs_that_exclude_each_other(tiny_backbones, pair):
    model = LongTailClassifier.from_backbone(tiny_backbones["vit"], NAMES)
    names = [name for name, _ in model.named_parameters()]
    for first, second in (pair, pair[::-1]):
        with pytest.raises(ValueError, match=rf"methods '{first}' and '{second}' exclude each other: .*; name one"):
            apply_tuning(model, [first, second])
    assert [name for name, _ in model.named_parameters()] == names


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("lora,lora", r"methods 'lora' and 'lora' exclude each other: they are the same; name one"),
        ("lora,nroms", r"Unknown tuning method 'nroms'; choose one of .*norms"),
        ("", r"tuning names no method; choose among .*lora"),
        ([], r"tuning names no method; choose among .*lora"),
    ],
    ids=["twice", "unknown", "empty", "none"],
)
def test_names_that_mean_nothing(tiny_backbones, names, message):
    with pytest.raises(ValueError, match=message):
        apply_tuning(LongTailClassifier.from_backbone(tiny_backbones["vit"], NAMES), names)


def test_second_tuning_names_all_that_is_there(tiny_backbones):
    model = build(tiny_backbones["vit"], "adapter,ssf,lora", **SIZES)
    with pytest.raises(ValueError, match="is tuned already, by lora and adapter and ssf; start from a new one"):
        apply_tuning(model, "bias")
