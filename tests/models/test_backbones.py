"""Every architecture against plain transformers: features, preprocessing, text, tuning, saving, exact gradients."""

import numpy as np
import pytest
import torch
from families import FAMILIES, LETTERS, REGISTERS, TEXT, make_images, plain_features, save_families
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel, SiglipModel

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.data import eval_transform
from ft_focalsam.models import (
    BACKBONE_FAMILIES,
    choose_head_start,
    init_head,
    load_backbone,
    load_image_processor,
    text_features,
)

NAMES = ("owl", "red_fox", "Newt", "moth", "carp")
INTERPOLATED = ("vit", "deit", "vit_mae", "clip", "siglip", "siglip_vision_model")
WITHOUT_PROMPTS = ("beit", "data2vec-vision")
TUNINGS = ("lora", "adaptformer", "adapter", "vpt_shallow", "vpt_deep", "full", "linear_probe")
OPTIONS = TuningOptions(lora_rank=2, lora_alpha=4, adapter_width=4, prompt_length=3)

every_family = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return save_families(tmp_path_factory.mktemp("families"))


def build(backbone: str, tuning: str = "linear_probe", **options) -> LongTailClassifier:
    """A classifier in evaluation mode, everything that trains moved away from where it started."""
    torch.manual_seed(1)
    model = LongTailClassifier.from_backbone(backbone, NAMES, **options)
    apply_tuning(model, tuning, OPTIONS)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return model.eval()


@torch.no_grad()
def logits_of(model: LongTailClassifier, images: torch.Tensor) -> torch.Tensor:
    return model(images).logits


def assert_same(actual, expected, *, atol: float = 1e-6) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


# ---- features ----


def test_every_entry_of_the_table_is_tested():
    assert set(BACKBONE_FAMILIES) - set(FAMILIES) == {"clip_vision_model"}  # of tests/models/test_classifier.py


@every_family
def test_features_are_those_of_plain_transformers(folders, family):
    model = build(folders[family])
    features = model.features(make_images())
    assert features.shape == (6, model.config.feature_size)
    assert_same(features, plain_features(folders[family], family, make_images()), atol=1e-5)
    assert features.std(dim=0).min() > 1e-3


def test_beit_without_mean_pooling_has_the_class_token(folders):
    path = folders["beit_shared"]
    expected = AutoModel.from_pretrained(path).eval()(make_images()).last_hidden_state[:, 0]
    assert_same(build(path).features(make_images()), expected)


@every_family
def test_features_of_another_image_size(folders, family):
    options = {"interpolate_pos_encoding": True} if family in INTERPOLATED else {}
    expected = plain_features(folders[family], family, make_images(16), **options)
    assert_same(build(folders[family], image_size=16).features(make_images(16)), expected, atol=1e-5)


READINGS = [
    ("ijepa", "mean", lambda output: output.last_hidden_state.mean(dim=1)),
    ("vit_msn", "cls", lambda output: output.last_hidden_state[:, 0]),
    ("vit_msn", "mean", lambda output: output.last_hidden_state[:, 1:].mean(dim=1)),
    ("aimv2_vision_model", "pooler", lambda output: output.pooler_output),
    ("swin", "pooler", lambda output: output.last_hidden_state.mean(dim=1)),
    ("dinov2_with_registers", "mean", lambda output: output.last_hidden_state[:, 1 + REGISTERS :].mean(dim=1)),
    ("dinov3_vit", "pooler", lambda output: output.last_hidden_state[:, 0]),
]


@pytest.mark.parametrize(("name", "features", "read"), READINGS, ids=[f"{n}-{f}" for n, f, _ in READINGS])
def test_any_model_by_a_choice_of_features(folders, tmp_path, name, features, read):
    model = build(folders[name], features=features)
    with torch.no_grad():
        expected = read(AutoModel.from_pretrained(folders[name]).eval()(make_images()))
    assert_same(model.features(make_images()), expected)
    assert model.config.feature_size == expected.shape[1]
    model.save_pretrained(tmp_path)
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert loaded.config.backbone_features == features
    assert_same(logits_of(loaded, make_images()), logits_of(model, make_images()))
    assert choose_head_start(folders[name]) == "class_means"


@pytest.mark.parametrize("name", ["ijepa", "vit_msn"])
def test_any_model_takes_another_image_size_where_it_interpolates(folders, name):
    tokens = AutoModel.from_pretrained(folders[name]).eval()(make_images(16), interpolate_pos_encoding=True)
    expected = tokens.last_hidden_state[:, -16:].mean(dim=1)
    assert_same(build(folders[name], features="mean", image_size=16).features(make_images(16)), expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@every_family
def test_half_precision_features(folders, family, dtype):
    features = build(folders[family], dtype=dtype).features(make_images())
    expected = plain_features(folders[family], family, make_images())
    assert features.dtype == getattr(torch, dtype)
    assert (features.float() - expected).norm() <= (0.1 if dtype == "bfloat16" else 0.02) * expected.norm()


# ---- preprocessing ----


@every_family
def test_evaluation_normalises_as_the_image_processor(folders, family):
    processor = load_image_processor(folders[family])
    transform = eval_transform(processor)
    mean, std = FAMILIES[family][2]
    even = transform(Image.new("RGB", (40, 30), (200, 100, 50)))
    expected = (torch.tensor([200, 100, 50]) / 255 - torch.tensor(mean)) / torch.tensor(std)
    assert_same(even, expected[:, None, None].expand(3, 8, 8), atol=1e-4)
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((80, 60), Image.Resampling.BICUBIC)
    theirs = processor(image, return_tensors="pt")["pixel_values"][0]
    assert_same(transform(image), theirs, atol=3 / 255 / min(std))


# ---- text ----


def ids_of(prompt: str) -> list[int]:
    """SigLIP's tokenisation by hand: lower case, a token a letter, padded to the full length."""
    tokens = [LETTERS.index(letter) for letter in prompt.lower().replace(" ", "▁")]
    return tokens + [LETTERS.index("<pad>")] * (TEXT["max_position_embeddings"] - len(tokens))


@torch.no_grad()
def siglip_text_features(path: str, prompts: list[str]) -> torch.Tensor:
    ids = torch.tensor([ids_of(prompt) for prompt in prompts])
    features = SiglipModel.from_pretrained(path).eval().get_text_features(input_ids=ids).pooler_output
    return features / features.square().sum(dim=1, keepdim=True).sqrt()


def test_text_features_of_siglip_are_those_of_its_model(folders):
    actual = text_features(folders["siglip"], NAMES, templates=["A photo of {}."])
    prompts = ["a photo of owl.", "a photo of red fox.", "a photo of newt.", "a photo of moth.", "a photo of carp."]
    assert_same(actual, siglip_text_features(folders["siglip"], prompts))
    assert torch.pdist(actual).min() > 1e-2


def test_text_start_of_siglip_answers_as_the_model_zero_shot(folders):
    path = folders["siglip"]
    assert choose_head_start(path) == "text"
    model = LongTailClassifier.from_backbone(path, NAMES).eval()
    init_head(model, "text", templates=["{}!"])
    ids = torch.tensor([ids_of(f"{name.replace('_', ' ')}!") for name in NAMES])
    with torch.no_grad():
        whole = SiglipModel.from_pretrained(path).eval()
        output = whole(input_ids=ids, pixel_values=make_images())
        cosines = (output.logits_per_image - whole.logit_bias) / whole.logit_scale.exp()
        assert_same(model(make_images()).logits, 25 * cosines, atol=1e-4)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("clip", "siglip")])
def test_families_without_text_tower(folders, family):
    assert choose_head_start(folders[family]) == "class_means"
    with pytest.raises(ValueError, match=rf"\({family}\) has no text tower to start a head .*; set head_start to"):
        choose_head_start(folders[family], "text")


def test_other_features_of_clip_are_not_in_the_space_of_its_texts(folders):
    model = LongTailClassifier.from_backbone(folders["clip"], NAMES, features="cls")
    with pytest.raises(ValueError, match="has no text tower to start a head"):
        init_head(model, "text")


def test_tokenizer_that_needs_another_package(folders, tmp_path):
    try:
        import sentencepiece  # noqa: F401
    except ImportError:
        pass
    else:
        pytest.skip("sentencepiece is installed")
    SiglipModel.from_pretrained(folders["siglip"]).save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    with pytest.raises(ValueError, match=rf"'{tmp_path}' needs the package sentencepiece .*; install it, or set"):
        text_features(str(tmp_path), NAMES)


# ---- tuning ----


@pytest.mark.parametrize("tuning", TUNINGS)
def test_real_dinov2_takes_every_tuning_method(shared, tmp_path, tuning):
    torch.manual_seed(0)
    path = str(shared / "models" / "dinov2_vits14")
    model = LongTailClassifier.from_backbone(path, NAMES, image_size=56)
    apply_tuning(model, tuning, OPTIONS)
    images = make_images(56, count=2)
    expected = logits_of(model.eval(), images)
    if tuning == "linear_probe":
        plain = AutoModel.from_pretrained(path, dtype=torch.float32).eval()(images).pooler_output
        assert_same(model.features(images), plain, atol=1e-4)
    model.save_pretrained(tmp_path)
    assert_same(logits_of(LongTailClassifier.from_pretrained(tmp_path), images), expected, atol=1e-5)


# ---- errors ----


def test_unsupported_architecture_lists_what_is_supported(folders):
    listed = ", ".join(BACKBONE_FAMILIES)
    message = f"'{folders['ijepa']}' is a 'ijepa' model; supported are {listed}, and with features= one of cls, mean, "
    with pytest.raises(ValueError, match=f"{message}pooler any other model of transformers that takes") as error:
        LongTailClassifier.from_backbone(folders["ijepa"], NAMES)
    assert str(error.value).count(". ") == 0


def test_model_of_something_else_than_images(backbones):
    with pytest.raises(ValueError, match="is a 'bert' model, which takes something else than images alone; choose"):
        LongTailClassifier.from_backbone(str(backbones["bert"]), NAMES, features="cls")


def test_unknown_features(folders):
    with pytest.raises(ValueError, match="Unknown features 'first' of a backbone; choose one of cls, mean, pooler"):
        LongTailClassifier.from_backbone(folders["vit"], NAMES, features="first")


def test_features_that_the_model_does_not_have(folders):
    model = LongTailClassifier.from_backbone(folders["vit_msn"], NAMES, features="pooler")
    with pytest.raises(ValueError, match="BaseModelOutput without pooler_output; set its features to cls or mean"):
        model.features(make_images())


def test_image_size_that_the_model_cannot_take(folders):
    path = folders["aimv2_vision_model"]
    with pytest.raises(ValueError, match=r"image_size is 16, .*'aimv2_vision_model' model takes .* 8 pixels only"):
        LongTailClassifier.from_backbone(path, NAMES, features="pooler", image_size=16)
    LongTailClassifier.from_backbone(path, NAMES, features="pooler", image_size=8).features(make_images())


@pytest.mark.parametrize("tuning", ["vpt_shallow", "vpt_deep"])
@pytest.mark.parametrize("family", WITHOUT_PROMPTS)
def test_position_bias_leaves_no_place_for_prompts(folders, family, tuning):
    model = LongTailClassifier.from_backbone(folders[family], NAMES)
    names = [name for name, _ in model.named_parameters()]
    with pytest.raises(ValueError, match=r"takes no prompts: it has a position bias .*; choose another tuning"):
        apply_tuning(model, tuning)
    assert [name for name, _ in model.named_parameters()] == names


def test_mean_of_the_tokens_leaves_no_place_for_prompts(folders):
    model = LongTailClassifier.from_backbone(folders["dinov2"], NAMES, features="mean")
    with pytest.raises(ValueError, match="takes no prompts: it has the mean of its tokens as features"):
        apply_tuning(model, "vpt_deep")


@pytest.mark.parametrize(
    ("name", "message"),
    [("swin", "a SwinModel, has no transformer blocks"), ("aimv2_vision_model", "Aimv2EncoderLayer, have no MLP")],
)
def test_model_that_adapters_do_not_fit(folders, name, message):
    model = LongTailClassifier.from_backbone(folders[name], NAMES, features="pooler")
    with pytest.raises(ValueError, match=rf"{message}.*; choose another tuning method"):
        apply_tuning(model, "adaptformer", OPTIONS)


def remove(folder, part: str) -> int:
    path = folder / "model.safetensors"
    weights = load_file(path)
    left = {name: value for name, value in weights.items() if part not in name}
    save_file(left, path, metadata={"format": "pt"})
    return len(weights) - len(left)


def test_weights_that_the_checkpoint_does_not_hold(folders, tmp_path):
    load_backbone(folders["dinov2"]).save_pretrained(tmp_path)
    assert remove(tmp_path, "layer.1.mlp") == 4
    with pytest.raises(
        ValueError, match=rf"'{tmp_path}' has no weights for '.*layer.1.mlp.* \(and 3 others\) of a Din"
    ):
        load_backbone(str(tmp_path))


@pytest.mark.parametrize(("family", "part"), [("dinov2", "mask_token"), ("beit", "pooler.layernorm")])
def test_weights_that_a_checkpoint_need_not_hold(folders, tmp_path, family, part):
    load_backbone(folders[family]).save_pretrained(tmp_path)
    assert remove(tmp_path, part) > 0
    assert all(parameter.isfinite().all() for parameter in load_backbone(str(tmp_path)).parameters())
