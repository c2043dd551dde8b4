"""Tuning of the text tower: starts, places of the context, gradients per class, saving, errors."""

import families
import other_libraries
import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel
from safetensors.torch import load_file
from transformers import CLIPTextModelWithProjection

from ft_focalsam import LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.models import TextHead, init_head, load_text_tower
from ft_focalsam.tuning.text_side import CONTEXT_POSITIONS, ContextEmbedding, insert_places

NAMES = ("owl", "red_fox", "newt", "moth")
WITH_TEXTS = ("clip", "siglip", "open_clip", "open_clip_coca", "open_clip_timm")
every_backbone = pytest.mark.parametrize("backbone", WITH_TEXTS)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("text_side")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {**families.save_families(root), **other_libraries.save_others(root)}


def build(backbone: str, tuning: str, *, templates=("a photo of {}.",), head="cosine", **options):
    torch.manual_seed(1)
    model = LongTailClassifier.from_backbone(backbone, NAMES, head=head, head_scale=10)
    if head == "cosine":
        init_head(model, "text", templates=templates)
    apply_tuning(model, tuning, TuningOptions(**{"lora_rank": 2} | options))
    return model.eval()


def make_images(backbone: str) -> torch.Tensor:
    side = other_libraries.side_of(backbone)
    return torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def logits_of(model: LongTailClassifier, backbone: str) -> torch.Tensor:
    return model(make_images(backbone)).logits


def assert_same(actual, expected, *, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=atol)


@every_backbone
def test_lora_starts_as_the_zero_shot_head(folders, backbone):
    """Also with an ensemble of templates."""
    templates = ("a photo of {}.", "{}!")
    model = build(folders[backbone], "text_lora", templates=templates)
    assert isinstance(model.head, TextHead)
    plain = LongTailClassifier.from_backbone(folders[backbone], NAMES, head_scale=10).eval()
    init_head(plain, "text", templates=templates)
    assert_same(logits_of(model, backbone), logits_of(plain, backbone))


@every_backbone
def test_a_context_of_words_starts_as_their_template(folders, backbone):
    model = build(folders[backbone], "context_prompts", context_init="a photo of")
    plain = LongTailClassifier.from_backbone(folders[backbone], NAMES, head_scale=10).eval()
    init_head(plain, "text", templates=["a photo of {}."])
    assert_same(logits_of(model, backbone), logits_of(plain, backbone))
    with torch.no_grad():
        context = next(p for p in model.parameters() if p.requires_grad)
        context += torch.randn_like(context)
    assert (logits_of(model, backbone) - logits_of(plain, backbone)).abs().max() > 1e-3


@pytest.mark.parametrize("position", CONTEXT_POSITIONS)
@pytest.mark.parametrize("backbone", ["open_clip", "open_clip_coca", "open_clip_timm"])
def test_a_context_of_words_equals_these_words_around_the_name(folders, backbone, position):
    """With open_clip's tokenizer, in which a word has the same tokens wherever it is; each of these has one."""
    words = "big old house party"
    start, end = {"end": (words, ""), "middle": ("big old", "house party"), "front": ("", words)}[position]
    texts = [" ".join(part for part in (start, name.replace("_", " "), end) if part) + "." for name in NAMES]
    expected = F.normalize(load_text_tower(folders[backbone]).encode(texts), dim=-1)
    model = build(folders[backbone], "context_prompts", context_init=words, context_position=position)
    assert model.head.tower.embedding.context.shape == (4, 16)
    with torch.no_grad():
        assert_same(model.head.class_vectors(), expected)


def test_places_by_hand(folders):
    tower = load_text_tower(folders["open_clip"])
    bare = tower.tokenize(["red fox."])["text"][0].tolist()
    assert bare[:5] == [49406, 736, 3240, 269, 49407]
    filler = tower.tokenize(["a"])["text"][0, 1].item()
    for position, before in (("front", 0), ("middle", 1), ("end", 3)):
        tokens, places = insert_places(tower, ["red fox"], length=3, position=position)
        row = [49406, *[filler] * before, 736, 3240, *[filler] * (3 - before), 269, 49407]
        assert tokens["text"][0].tolist() == row + [0] * (16 - len(row))
        assert places[0].tolist() == [i for i, token in enumerate(row) if token == filler]


@pytest.mark.parametrize("per_class", [False, True])
def test_a_context_for_all_classes_or_one_for_each(folders, per_class):
    model = build(folders["open_clip"], "context_prompts", context_length=3, context_per_class=per_class)
    context = model.head.tower.embedding.context
    assert context.shape == ((len(NAMES), 3, 16) if per_class else (3, 16))
    assert 0.01 < context.std() < 0.04
    before = model.head.class_vectors().detach()
    with torch.no_grad():
        context[0] += torch.randn_like(context[0])
    moved = (model.head.class_vectors() - before).abs().amax(dim=1) > 1e-4
    assert moved.tolist() == ([True, False, False, False] if per_class else [True] * 4)


def test_the_text_tower_is_not_saved_but_what_is_tuned_of_it(folders, tmp_path):
    model = build(folders["clip"], "context_prompts,text_lora,lora")
    model.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names == {name for name, p in model.named_parameters() if p.requires_grad}
    assert sum("context" in name for name in names) == 1
    assert {name.split(".")[0] for name in names if "lora" in name} == {"backbone", "head"}
    assert (tmp_path / "model.safetensors").stat().st_size < 40_000
    loaded = LongTailClassifier.from_pretrained(tmp_path)
    assert_same(logits_of(loaded, "clip"), logits_of(model, "clip"))
    assert {n for n, p in loaded.named_parameters() if p.requires_grad} == names


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft's own use
def test_peft_loads_the_adapter_of_the_text_tower_alone(folders, tmp_path):
    model = build(folders["clip"], "text_lora")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    plain = CLIPTextModelWithProjection.from_pretrained(folders["clip"])
    loaded = PeftModel.from_pretrained(plain, str(tmp_path / "text_adapter")).eval()
    tokens = load_text_tower(folders["clip"]).tokenize(["a photo of owl.", "a photo of red fox."])
    with torch.no_grad():
        expected = model.head.class_vectors()[:2]
        assert_same(F.normalize(loaded(**tokens).text_embeds, dim=-1), expected)


def test_padding_that_is_left_out_had_no_influence(folders):
    tower = load_text_tower(folders["clip"])
    tokens = tower.tokenize(["a photo of an owl.", "newt"])
    assert tokens["input_ids"].shape == (2, 48)
    trimmed = tower.trim(tokens)
    assert trimmed["input_ids"].shape == (2, 2 + len("aphotoofanowl."))
    with torch.no_grad():
        assert_same(tower(**trimmed), tower(**tokens), atol=1e-6)


def test_other_names_in_the_prompts(folders, tmp_path):
    model = LongTailClassifier.from_backbone(folders["open_clip"], NAMES, head_scale=10)
    init_head(model, "text", class_names=["bird", "dog", "frog", "bug"], templates=["{}"])
    apply_tuning(model, "text_lora", TuningOptions(lora_rank=2))
    tower = load_text_tower(folders["open_clip"])
    expected = F.normalize(tower.encode(["bird", "dog", "frog", "bug"]), dim=-1)
    with torch.no_grad():
        assert_same(model.eval().head.class_vectors(), expected)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert_same(LongTailClassifier.from_pretrained(tmp_path).head.class_vectors(), expected)


# ---- errors ----


@pytest.mark.parametrize("tuning", ["text_lora", "context_prompts"])
def test_tuned_texts_need_a_cosine_head(folders, tuning):
    with pytest.raises(ValueError, match=r"The head is 'linear', and tuned texts .*; set head to cosine"):
        build(folders["clip"], tuning, head="linear")


def test_context_that_is_too_long(folders):
    with pytest.raises(
        ValueError, match=r"class name 'owl' and a context of 14 do not fit into the 16 tokens .*lower"
    ):
        build(folders["open_clip"], "context_prompts", context_length=14)
    build(folders["open_clip"], "context_prompts", context_length=9)
    with pytest.raises(ValueError, match="is longer than the text tower takes; shorten it"):
        build(folders["open_clip"], "context_prompts", context_init=" ".join(["word"] * 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"context_position": "back"}, "context_position is 'back'; choose one of end, middle, front"),
        ({"context_length": 0}, "context_length is 0; set it to 1 or more"),
        ({"clip_adapter_ratio": 1.5}, "clip_adapter_ratio is 1.5; set it to a number from 0 to 1"),
        ({"clip_adapter_reduction": 0}, "clip_adapter_reduction is 0; set it to 1 or more"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        TuningOptions(**options)


def test_a_context_embedding_by_hand():
    embedding = torch.nn.Embedding(9, 2)
    context = torch.tensor([[10.0, 11.0], [20.0, 21.0]])
    module = ContextEmbedding(embedding, torch.tensor([[0, 2], [1, 3]]), context)
    ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    expected = embedding(ids).detach()
    expected[0, 0], expected[0, 2], expected[1, 1], expected[1, 3] = context[0], context[1], context[0], context[1]
    assert torch.equal(module(ids), expected)


def test_clip_adapter_by_hand(folders):
    model = build(folders["clip"], "clip_adapter", clip_adapter_ratio=0.3, clip_adapter_reduction=3)
    down, up = model.neck.down.weight, model.neck.up.weight
    assert down.shape == (4, 12) and up.shape == (12, 4)
    plain = LongTailClassifier.from_backbone(folders["clip"], NAMES).eval()
    with torch.no_grad():
        features = plain.features(make_images("clip"))
        expected = 0.3 * torch.relu(torch.relu(features @ down.T) @ up.T) + 0.7 * features
        assert_same(model.features(make_images("clip")), expected)
    assert TuningOptions().clip_adapter_ratio == 0.2 and TuningOptions().clip_adapter_reduction == 4
