"""Backbones of open_clip and timm against these libraries alone: features, preprocessing, texts, sizes, errors."""

import json
import shutil

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from other_libraries import OPEN_CLIP, TIMM, save_others, side_of
from PIL import Image
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.data import eval_transform
from ft_focalsam.models import (
    choose_head_start,
    init_head,
    load_backbone,
    load_image_processor,
    load_text_tower,
    text_features,
)
from ft_focalsam.models.backbones import find_family
from ft_focalsam.models.backbones.split_attention import SplitAttention, join_projections, split_attention
from ft_focalsam.models.backbones.timm_models import split_qkv_biases

pytestmark = pytest.mark.slow

NAMES = ("owl", "red_fox", "newt")
every_open_clip = pytest.mark.parametrize("name", OPEN_CLIP)
every_timm = pytest.mark.parametrize("name", TIMM)


@pytest.fixture(scope="module")
def names(tmp_path_factory) -> dict[str, str]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save_others(tmp_path_factory.mktemp("others"))


def make_images(side: int) -> torch.Tensor:
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(2))


def plain_open_clip(name: str, **options) -> nn.Module:
    path = name.removeprefix("open_clip:")
    return open_clip.create_model(f"local-dir:{path}", require_pretrained=True, **options).eval()


def plain_timm(name: str, **options) -> nn.Module:
    return timm.create_model(f"local-dir:{name.removeprefix('timm:')}", pretrained=True, **options).eval()


def assert_same(actual, expected, *, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=atol)


# ---- features ----


@every_open_clip
@torch.no_grad()
def test_features_are_those_of_open_clip(names, name):
    model = LongTailClassifier.from_backbone(names[name], NAMES).eval()
    images = make_images(side_of(name))
    expected = plain_open_clip(names[name]).encode_image(images, normalize=True)
    features = model.features(images)
    assert_same(F.normalize(features, dim=-1), expected)
    assert features.shape == (4, model.config.feature_size) and features.std(dim=0).min() > 1e-4
    assert not any(isinstance(module, nn.MultiheadAttention) for module in model.modules())
    assert not any(p.requires_grad for p in model.backbone.parameters())


@every_timm
@torch.no_grad()
def test_features_are_those_of_timm(names, name):
    model = LongTailClassifier.from_backbone(names[name], NAMES).eval()
    images = make_images(side_of(name))
    assert_same(model.features(images), plain_timm(names[name])(images))
    assert model.config.feature_size == model.features(images).shape[1]


@pytest.mark.parametrize("name", ["timm", "timm_eva", "timm_map", "open_clip", "open_clip_timm"])
@torch.no_grad()
def test_another_image_size_is_what_the_library_makes_of_it(names, name):
    side = 2 * side_of(name)
    images = make_images(side)
    if name.startswith("timm"):
        expected = plain_timm(names[name], img_size=side)(images)
    else:
        expected = plain_open_clip(names[name], force_image_size=side).encode_image(images)
    model = LongTailClassifier.from_backbone(names[name], NAMES, image_size=side).eval()
    assert_same(model.features(images), expected)


def test_image_size_is_kept_in_a_checkpoint(names, tmp_path):
    model = LongTailClassifier.from_backbone(names["timm"], NAMES, image_size=16).eval()
    model.save_pretrained(tmp_path)
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert_same(loaded(make_images(16)).logits, model(make_images(16)).logits)


def test_weights_from_a_file_behind_the_name(names, tmp_path):
    whole = timm.create_model("test_vit", num_classes=0)
    path = tmp_path / "weights.safetensors"
    save_file(whole.state_dict(), path)
    images = torch.randn(2, 3, 160, 160)
    assert_same(load_backbone(f"timm:test_vit@{path}")(images), whole.eval()(images))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["timm", "timm_eva", "open_clip", "open_clip_coca"])
@torch.no_grad()
def test_half_precision(names, name, dtype):
    images = make_images(side_of(name))
    half = LongTailClassifier.from_backbone(names[name], NAMES, dtype=dtype).features(images)
    full = LongTailClassifier.from_backbone(names[name], NAMES).features(images)
    assert half.dtype == getattr(torch, dtype)
    assert (half.float() - full).norm() <= (0.1 if dtype == "bfloat16" else 0.02) * full.norm()


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", ["timm", "open_clip", "open_clip_timm"])
def test_activation_checkpointing_runs_blocks_twice_and_changes_nothing(names, name):
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone(names[name], NAMES)
    apply_tuning(model, "adaptformer", TuningOptions(adapter_width=2))
    model.train()
    runs = []
    norm = next(m for m in model.family.blocks(model.backbone)[1].modules() if isinstance(m, nn.LayerNorm))
    norm.register_forward_hook(lambda *args: runs.append(1))
    images, labels = make_images(side_of(name)), torch.tensor([0, 1, 2, 0])

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        runs.clear()
        model(images, labels=labels).loss.backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    expected = gradients()
    assert len(runs) == 1
    model.gradient_checkpointing_enable()
    actual = gradients()
    assert len(runs) == 2
    for one, other in zip(actual, expected, strict=True):
        assert_same(one, other)


# ---- preprocessing ----


@pytest.mark.parametrize("name", ["timm", "timm_eva", "timm_resnet", "open_clip", "open_clip_timm"])
def test_preprocessing_is_the_library_s_own(names, name):
    noise = np.random.default_rng(0).integers(0, 256, (45, 60, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((90, 70), Image.Resampling.BICUBIC)
    if name.startswith("timm"):
        data = timm.data.resolve_model_data_config(plain_timm(names[name]))
        theirs = timm.data.create_transform(**data, is_training=False)(image)
        std = min(data["std"])
    else:
        path = names[name].removeprefix("open_clip:")
        theirs = open_clip.create_model_and_transforms(f"local-dir:{path}")[2](image)
        std = 0.2
    processor = load_image_processor(names[name])
    ours = eval_transform(processor)(image)
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 3 / 255 / std  # two roundings of a resize
    assert (ours - theirs).abs().mean() <= 0.5 / 255 / std


@pytest.mark.parametrize("mode", ["squash", "longest"])
def test_other_ways_to_resize(names, tmp_path, mode):
    shutil.copytree(names["open_clip"].removeprefix("open_clip:"), tmp_path / "copy")
    path = tmp_path / "copy" / "open_clip_config.json"
    config = json.loads(path.read_text())
    config["preprocess_cfg"]["resize_mode"] = mode
    path.write_text(json.dumps(config))
    if mode == "longest":
        with pytest.raises(ValueError, match=r"wants images resized by 'longest' .*; choose another checkpoint"):
            load_image_processor(f"open_clip:{tmp_path / 'copy'}")
        return
    image = Image.linear_gradient("L").resize((70, 40)).convert("RGB")
    theirs = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'copy'}")[2](image)
    ours = eval_transform(load_image_processor(f"open_clip:{tmp_path / 'copy'}"))(image)
    assert (ours - theirs).abs().max() <= 3 / 255 / 0.2


# ---- texts ----


@every_open_clip
@torch.no_grad()
def test_text_features_and_zero_shot_logits_are_those_of_open_clip(names, name):
    whole = plain_open_clip(names[name])
    tokenize = open_clip.get_tokenizer(f"local-dir:{names[name].removeprefix('open_clip:')}")
    templates = ("a photo of a {}.", "art of the {}!")
    expected = 0
    for template in templates:
        prompts = [template.format(text) for text in ("owl", "red fox", "newt")]
        expected = expected + whole.encode_text(tokenize(prompts), normalize=True)
    expected = F.normalize(expected, dim=-1)
    assert_same(text_features(names[name], NAMES, templates=templates), expected)
    assert choose_head_start(names[name]) == "text"
    model = LongTailClassifier.from_backbone(names[name], NAMES, head_scale=10).eval()
    init_head(model, "text", templates=templates)
    images = make_images(side_of(name))
    logits = 10 * whole.encode_image(images, normalize=True) @ expected.T
    assert_same(model(images).logits, logits, atol=1e-4)
    assert torch.pdist(expected).min() > 1e-3


def test_timm_has_no_text_tower(names):
    assert choose_head_start(names["timm"]) == "class_means"
    with pytest.raises(ValueError, match="has no text tower to start a head"):
        choose_head_start(names["timm"], "text")
    with pytest.raises(ValueError, match="has no text tower"):
        load_text_tower(names["timm"])


# ---- the rewritten attention ----


@pytest.mark.parametrize("mask", [None, "float", "bool", "heads"])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("sizes", [{}, {"bias": False}, {"kdim": 6, "vdim": 10}], ids=["plain", "no_bias", "kdim"])
def test_split_attention_equals_multihead_attention(mask, batch_first, sizes):
    torch.manual_seed(0)
    whole = nn.MultiheadAttention(8, 2, batch_first=batch_first, **sizes).double().eval()
    for parameter in whole.parameters():
        nn.init.normal_(parameter)
    split = SplitAttention(whole)
    query = torch.randn(3, 5, 8).double()
    key, value = (torch.randn(3, 7, sizes.get(size, 8)).double() for size in ("kdim", "vdim"))
    masks = {
        "float": torch.randn(5, 7).double(),
        "bool": torch.rand(5, 7) > 0.6,
        "heads": torch.randn(6, 5, 7).double(),
    }
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    expected = whole(query, key, value, need_weights=False, attn_mask=masks.get(mask))[0]
    actual, weights = split(query, key, value, need_weights=False, attn_mask=masks.get(mask))
    assert weights is None
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_split_attention_refuses_what_it_does_not_do():
    with pytest.raises(ValueError, match="bias_k or add_zero_attn; choose another"):
        SplitAttention(nn.MultiheadAttention(4, 2, add_bias_kv=True))
    split, x = SplitAttention(nn.MultiheadAttention(4, 2)), torch.randn(1, 2, 4)
    with pytest.raises(NotImplementedError):
        split(x, x, x, need_weights=True)


@every_open_clip
def test_joined_projections_are_those_of_the_checkpoint(names, name):
    whole = plain_open_clip(names[name])
    expected = whole.state_dict()
    joined = join_projections(split_attention(plain_open_clip(names[name])).state_dict(), set(expected))
    assert joined.keys() == expected.keys()
    for key, value in joined.items():  # CoCa has parameters that its constructor leaves uninitialised
        torch.testing.assert_close(value, expected[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["timm_eva", "timm_beit", "timm"])
def test_split_biases_are_those_of_the_checkpoint(names, name):
    expected = plain_timm(names[name]).state_dict()
    own = load_backbone(names[name]).state_dict()
    assert (own.keys() == expected.keys()) == (name == "timm")
    plain = split_qkv_biases(own, set(expected))
    assert plain.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in plain.items())


# ---- errors ----


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "timm:vit_tiny_patch17_224",
            r"no usable model 'vit_tiny_patch17_224': it has no such architecture \(but vit_tiny_patch16_224, .*"
            r"; timm.list_models",
        ),
        ("scratch:resnet5O", r"'resnet5O': it has no such architecture \(but resnet50, .*; timm.list_models"),
        ("scratch:resnet_32", r"'resnet_32': it has no such architecture \(but resnet32, "),
        ("timm:vit_tiny_patch16_224.mae", r"no weights 'mae'; write vit_tiny_patch16_224.TAG .* augreg_in21k"),
        ("timm:resnet50@gone.safetensors", r"'gone.safetensors' of the backbone .* do not exist; check the path"),
        ("timn:resnet50", r"'timn:resnet50' begins with 'timn:'; the libraries of backbones are .*timm:"),
        ("timm:/no/such/folder", r"The backbone folder '/no/such/folder' does not exist; check the path"),
        ("timm:no/folder", r"The backbone folder 'no/folder' does not exist; .* or write timm:hf-hub:no/folder"),
        (
            "open_clip:ViT-B-17@openai",
            r"no usable model 'ViT-B-17@openai': it has no 'ViT-B-17' \(but .*; open_clip.list_pretrained",
        ),
        ("open_clip:ViT-B-16", r"'open_clip:ViT-B-16' names no weights; write open_clip:ViT-B-16@TAG .*openai"),
        ("open_clip:ViT-B-16@opnai", r"names the weights 'opnai', which do not exist; write .* \(openai, "),
        ("open_clip:ViT-B-16@/no/file.safetensors", r"'/no/file.safetensors' does not exist; check the path"),
    ],
    ids=[
        "timm_name", "scratch", "scratch_own", "timm_tag", "timm_file", "library", "timm_folder",
        "timm_short_folder", "open_clip_name", "open_clip_weights", "open_clip_tag", "open_clip_file",
    ],
)  # fmt: skip
def test_names_that_lead_nowhere(name, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        LongTailClassifier.from_backbone(name, NAMES)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        find_family(name)  # what recipes ask before they load images


@pytest.mark.parametrize("library", ["timm", "open_clip"])
def test_other_features_are_refused(names, library):
    with pytest.raises(ValueError, match=f"are {library}'s own; leave backbone_features out"):
        LongTailClassifier.from_backbone(names[library], NAMES, features="cls")


def test_running_statistics_that_move_are_saved(names, tmp_path):
    model = LongTailClassifier.from_backbone(names["timm_resnet"], NAMES)
    apply_tuning(model, "linear_probe")
    model.train()(make_images(32) + 1)  # which moves them, although none of these layers trains
    model.save_pretrained(tmp_path)
    images = make_images(32)
    assert torch.equal(LongTailClassifier.from_pretrained(tmp_path)(images).logits, model.eval()(images).logits)


@pytest.mark.parametrize("name", ["timm_resnet", "timm_convnext"])
@torch.no_grad()
def test_convolutional_networks_take_images_of_any_size(names, tmp_path, name):
    model, images = LongTailClassifier.from_backbone(names[name], NAMES, image_size=48).eval(), make_images(48)
    assert_same(model.features(images), plain_timm(names[name])(images))
    model.save_pretrained(tmp_path)
    assert torch.equal(LongTailClassifier.from_pretrained(tmp_path)(images).logits, model(images).logits)


def test_image_size_of_a_model_that_takes_one_only(tmp_path):
    save_for_hf(timm.create_model("mixer_s32_224", num_classes=0), tmp_path, safe_serialization=True)
    with pytest.raises(ValueError, match=r"image_size is 64, and .* takes no other size than its own; leave"):
        LongTailClassifier.from_backbone(f"timm:{tmp_path}", NAMES, image_size=64)


def test_weights_that_a_folder_does_not_hold(names, tmp_path):
    shutil.copytree(names["open_clip"].removeprefix("open_clip:"), tmp_path / "copy")
    (tmp_path / "copy" / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"open_clip has no usable model .*weights .*could not be loaded"):
        LongTailClassifier.from_backbone(f"open_clip:{tmp_path / 'copy'}", NAMES)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("timm_convnext", "ConvNeXt"), ("timm_resnet", "ResNet"), ("open_clip_resnet", "ModifiedResNet")],
)
def test_without_blocks_there_are_no_adapters_but_other_methods(names, name, kind):
    model = LongTailClassifier.from_backbone(names[name], NAMES)
    with pytest.raises(ValueError, match=rf"a {kind}, has no transformer blocks .*; choose another tuning method"):
        apply_tuning(model, "adaptformer")
    apply_tuning(model, "bias")
    model(make_images(side_of(name)), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())


def test_without_linear_layers_there_is_no_lora(names):
    model = LongTailClassifier.from_backbone(names["timm_resnet"], NAMES)
    with pytest.raises(ValueError, match=r"has no linear layers for lora to act on; .*name its convolutions in peft"):
        apply_tuning(model, "lora")
    apply_tuning(model, "peft", TuningOptions(peft_config={"peft_type": "LORA", "target_modules": ["conv2"]}))
    model(make_images(32), labels=torch.tensor([0, 1, 2, 0])).loss.backward()


@pytest.mark.parametrize("name", ["timm_resnet", "timm_convnext"])
@torch.no_grad()
def test_scale_and_shift_act_on_the_channels_of_convolutional_networks(names, name):
    model, plain, images = (
        LongTailClassifier.from_backbone(names[name], NAMES),
        plain_timm(names[name]),
        make_images(32),
    )
    apply_tuning(model, "ssf")
    for place, layer in plain.named_modules():
        kind = type(layer).__name__
        if kind not in ("Conv2d", "BatchNorm2d", "LayerNorm2d", "LayerNorm", "Linear"):
            assert not hasattr(model.backbone.get_submodule(place), "ssf"), place
            continue
        ssf = model.backbone.get_submodule(place).ssf
        ssf.weight += 0.3 * torch.randn_like(ssf.weight)
        ssf.bias += 0.3 * torch.randn_like(ssf.bias)
        equation = "bdhw,d->bdhw" if kind.endswith("2d") else "...d,d->...d"

        def replace(module, args, output, ssf=ssf, equation=equation):
            return torch.einsum(equation, output, ssf.weight) + torch.einsum(
                equation, torch.ones_like(output), ssf.bias
            )

        layer.register_forward_hook(replace)
    features = model.eval().features(images)
    assert (features - plain_timm(names[name])(images)).abs().max() > 0.1
    assert_same(features, plain(images), atol=1e-4)


@pytest.mark.parametrize(("name", "reason"), [("timm_mean", "mean of its tokens"), ("timm_beit", "position bias")])
def test_models_that_have_no_place_for_prompts(names, name, reason):
    model = LongTailClassifier.from_backbone(names[name], NAMES)
    with pytest.raises(ValueError, match=rf"takes no prompts: it has (the|a) {reason}.*; choose another"):
        apply_tuning(model, "vpt_deep")


@pytest.mark.parametrize(("name", "first"), [("timm", 1), ("timm_distilled", 2), ("timm_registers", 3)])
def test_prompts_come_behind_all_tokens_that_timm_counts_on(names, name, first):
    model = LongTailClassifier.from_backbone(names[name], NAMES)
    apply_tuning(model, "vpt_deep", TuningOptions(prompt_length=5))
    seen = []
    for block in model.family.blocks(model.backbone):
        block.prompts.register_forward_hook(lambda module, args, output: seen.append((module, args[0], output)))
    model(make_images(8))
    assert len(seen) == 3
    for module, tokens, output in seen:
        assert output.shape == (4, first + 5 + 4, 16)
        assert torch.equal(output[:, :first], tokens[:, :first]) and torch.equal(output[:, -4:], tokens[:, -4:])
        assert torch.equal(output[:, first : first + 5], module.weight.expand(4, -1, -1))
