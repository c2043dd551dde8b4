"""Merging: plain weights that give the logits of the tuned classifier."""

import re

import pytest
import torch
from export.tiny import build
from torch import nn
from tuning.table import CASES

from ft_focalsam import LongTailClassifier
from ft_focalsam.export import merge
from ft_focalsam.export.check import check_same, logits_of, random_images
from ft_focalsam.export.merge import in_float32
from ft_focalsam.models import INSERTED_MODULES, load_backbone, register_inserted
from ft_focalsam.models.heads import CosineHead
from ft_focalsam.models.inserted import InsertedKind
from ft_focalsam.tuning import apply_tuning

LOHA = {"peft_type": "LOHA", "r": 2, "alpha": 4, "target_modules": ["query", "value", "q_proj", "v_proj"]}
ALL = "norms,ssf,bias,sparse,last_blocks,lora"
IN_BLOCKS = {"tuned_layers": [0, 1, 2], "sparse_ratio": 0.1}  # CLIP has layers without bias outside of them
MERGED = {
    **{f"deep_vit-{name}": ("deep_vit", *case) for name, case in CASES.items() if name not in ("everything", "loha")},
    "deep_vit-loha": ("deep_vit", "peft", {"peft_config": LOHA}),
    "deep_vit-ia3+sparse+ssf": ("deep_vit", "ia3,sparse,ssf", {"sparse_ratio": 0.1}),
    "deep_vit-full": ("deep_vit", "full", {}),
    **{f"{name}-all": (name, ALL, IN_BLOCKS) for name in ("deep_dinov2", "deep_clip", "open_clip")},
    "timm-all": ("timm", ALL, {**IN_BLOCKS, "lora_target_modules": ["qkv"]}),
    "deep_dinov2_swiglu-dora": ("deep_dinov2_swiglu", "lora,bias", {"lora_dora": True}),
    "open_clip-lokr": ("open_clip", "peft", {"peft_config": {**LOHA, "peft_type": "LOKR"}}),
}


@pytest.mark.parametrize("case", MERGED)
def test_merged_gives_the_logits_of_the_tuned_one_with_plain_weights(backbones, case):
    name, tuning, options = MERGED[case]
    model = build(backbones[name], tuning, head="cosine", **options)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = random_images(model, count=5)
    untuned = logits_of(build(backbones[name], head="cosine"), images)
    assert (logits_of(model, images) - untuned).abs().max() > 0.05  # or there would be nothing to fold
    merged = merge(model)
    torch.testing.assert_close(logits_of(merged, images), logits_of(model, images), atol=1e-4, rtol=0)
    plain = LongTailClassifier(merged.config, load_backbone(backbones[name])).eval()
    plain.load_state_dict(merged.state_dict())  # strict: no other names than those of the pretrained backbone
    torch.testing.assert_close(logits_of(plain, images), logits_of(model, images), atol=1e-4, rtol=0)
    assert merged.config.inserted is None
    assert not any(module._forward_hooks for module in merged.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("tuning", ["text_lora", "context_prompts", "text_lora,context_prompts,lora"])
def test_a_tuned_text_tower_becomes_a_cosine_head(tuning):
    model = build("tiny_clip", tuning, head="cosine", context_length=3)
    merged = merge(model)
    assert type(merged.head) is CosineHead
    images = random_images(model, count=4)
    torch.testing.assert_close(logits_of(merged, images), logits_of(model, images), atol=1e-4, rtol=0)


def test_half_precision_is_merged_in_float32(backbones):
    torch.manual_seed(1)
    model = LongTailClassifier.from_backbone(backbones["deep_vit"], ("owl", "fox"), dtype="bfloat16")
    apply_tuning(model, "lora,norms,sparse,ssf")
    merged = merge(model)
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert type(merged.backbone.layernorm) is nn.LayerNorm  # and no longer one that casts its weights
    images = random_images(model)
    expected = logits_of(in_float32(model), images)
    torch.testing.assert_close(logits_of(merged, images), expected, atol=1e-4, rtol=0)
    assert model.config.backbone_dtype == "bfloat16"


def test_a_merged_classifier_is_saved_whole(backbones, tmp_path):
    model = build(backbones["deep_vit"], "lora,sparse")
    merge(model).save_pretrained(tmp_path)
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    images = random_images(model)
    torch.testing.assert_close(logits_of(loaded, images), logits_of(model, images), atol=1e-4, rtol=0)


REFUSED = {
    "two kinds": ("deep_vit", "adaptformer,vpt_deep", {}, "modules of the kind 'adaptformer' and 'prompts', which"),
    "adapter": ("deep_vit", "adapter", {}, "'adapter', which cannot be folded into the weights of the backbone"),
    "clip_adapter": ("deep_clip", "clip_adapter", {}, "'clip_adapter'.*; export to onnx"),
    "no bias": ("deep_clip", "lora,ssf", {}, "shift .* behind 'vision_model.embeddings.patch_embedding' cannot be"),
    "dora": ("deep_vit", "lora,sparse", {"lora_dora": True, "sparse_ratio": 0.5}, "differs by .*; export to onnx"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_folded_is_named(backbones, case):
    name, tuning, options, sentence = REFUSED[case]
    model = build(backbones[name], tuning, **options)
    with pytest.raises(ValueError, match=sentence) as error:
        merge(model)
    assert "export to onnx" in str(error.value)


def test_an_adapter_that_peft_cannot_merge_is_named(backbones, monkeypatch):
    model = build(backbones["deep_vit"], "lora")

    def refuse(self, **options):
        raise NotImplementedError("no delta weight.")

    monkeypatch.setattr("peft.tuners.lora.Linear.merge", refuse)
    with pytest.raises(ValueError, match=r"peft cannot merge its adapter 'LORA' \(no delta weight\); export to onnx"):
        merge(model)


def test_kinds_that_stay_and_plain_functions(backbones, monkeypatch):
    class Shift(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(16))

        def forward(self, features):
            return features + self.weight

    def insert_shift(model):
        model.neck = Shift()

    for kind in (insert_shift, InsertedKind(insert_shift)):
        monkeypatch.setitem(INSERTED_MODULES, "shift", kind)
        model = build(backbones["deep_vit"], "sparse")
        model.insert("shift")
        with pytest.raises(ValueError, match="kind 'shift', which cannot be folded"):
            merge(model)
        assert isinstance(merge(model, keep=True).neck, Shift)
    monkeypatch.setitem(INSERTED_MODULES, "shift", InsertedKind(insert_shift, stays=True))
    merged = merge(model)
    assert [module["name"] for module in merged.config.inserted["modules"]] == ["shift"]
    images = random_images(model)
    torch.testing.assert_close(logits_of(merged, images), logits_of(model, images), atol=1e-4, rtol=0)
    with pytest.raises(ValueError, match=re.escape("'sparse' is already registered")):
        register_inserted("sparse")(insert_shift)


def test_a_difference_is_an_error():
    expected = torch.tensor([[100.0, 1.0]])
    check_same(expected, expected + 9e-3, what="it", remedy="stop")
    for wrong in (expected + 2e-2, expected * torch.nan, expected[:, :1]):
        with pytest.raises(ValueError, match=r"What it gives on random images differs by .*; stop"):
            check_same(expected, wrong, what="it", remedy="stop")
