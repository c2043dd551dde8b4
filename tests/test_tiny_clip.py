import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, CLIPProcessor, CLIPVisionModel

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "ft_focalsam" / "assets" / "tiny_clip"
ZERO_SHOT_FLOOR = 0.9


@pytest.fixture(scope="module")
def recipe():
    """The training script as a module."""
    path = ROOT / "ft_focalsam/assets/tiny_clip/pretrain.py"
    spec = importlib.util.spec_from_file_location("pretrain_tiny_clip", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return CLIPModel.from_pretrained(FOLDER, local_files_only=True).eval()


def test_folder_is_small_and_safe():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    assert {path.suffix for path in files} <= {".json", ".md", ".py", ".safetensors"}


def test_every_part_loads_offline(model, tokenizer):
    vision = CLIPVisionModel.from_pretrained(FOLDER, local_files_only=True)
    images = AutoImageProcessor.from_pretrained(FOLDER, local_files_only=True)
    processor = CLIPProcessor.from_pretrained(FOLDER, local_files_only=True)
    inputs = processor(text=["three"], images=Image.new("L", (8, 8)).convert("RGB"), return_tensors="pt")
    side = model.config.vision_config.image_size
    assert inputs["pixel_values"].shape == (1, 3, side, side)
    assert torch.equal(images(Image.new("RGB", (8, 8)), return_tensors="pt")["pixel_values"], inputs["pixel_values"])
    assert inputs["input_ids"].tolist() == tokenizer(["three"])["input_ids"]
    assert vision(inputs["pixel_values"]).pooler_output.shape == (1, model.config.vision_config.hidden_size)
    assert model(**inputs).logits_per_image.shape == (1, 1)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_names_digits_it_was_never_trained_on(recipe):
    confusion = recipe.zero_shot(FOLDER)
    assert confusion.sum() == 1797
    assert confusion.trace() / confusion.sum() > ZERO_SHOT_FLOOR


def test_renderer_is_reproducible_and_varied(recipe):
    chars = [char for char, _ in recipe.build_classes()]
    images, labels = recipe.Renderer(chars, seed=1).sample(64)
    again, same_labels = recipe.Renderer(chars, seed=1).sample(64)
    other, _ = recipe.Renderer(chars, seed=2).sample(64)
    assert torch.equal(images, again) and torch.equal(labels, same_labels)
    assert not torch.equal(images, other)
    assert images.shape == (64, 1, 32, 32) and images.min() >= 0 and images.max() <= 1
    corners = images[:, 0, 0, 0]
    assert corners.min() < 0.3 and corners.max() > 0.7  # light on dark and dark on light


def test_fonts_and_pen_strokes_differ(recipe):
    assert len(recipe.find_fonts()) >= 15
    renderer = recipe.Renderer("0123456789")
    threes = renderer.glyphs[renderer.labels == 3]
    assert len(threes) == len(recipe.find_fonts()) + len(recipe.PEN_STROKES["3"])
    assert len(threes.flatten(1).unique(dim=0)) == len(threes)
    assert (threes.flatten(1).amax(dim=1) > 0).all()


def test_tokenizer_distinguishes_names(recipe, tokenizer):
    texts = [template.format(name) for template in recipe.TEST_TEMPLATES for name in recipe.DIGIT_NAMES]
    assert len({tuple(ids) for ids in tokenizer(texts)["input_ids"]}) == len(texts)


@pytest.mark.parametrize("name", ["großer Würfel", "寿司", "a🙂b", "Tyrannosaurus rex"])
def test_tokenizer_knows_every_name(tokenizer, name):
    ids = tokenizer(name)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
    assert tokenizer.eos_token_id not in ids[1:-1]  # it stands for the unknown as well
    assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == name.lower().replace(" ", "")


def test_text_features_ignore_padding_and_survive_truncation(model, tokenizer):
    texts = ["three", "a photo of the digit three.", "an endless name " * 20]
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    assert batch["input_ids"].shape[1] == model.config.text_config.max_position_embeddings
    together = model.get_text_features(**batch).pooler_output
    for text, features in zip(texts, together, strict=True):
        alone = tokenizer([text], truncation=True, return_tensors="pt")
        torch.testing.assert_close(model.get_text_features(**alone).pooler_output[0], features, atol=1e-4, rtol=1e-4)


def test_loss_of_perfect_matches_is_lower(recipe):
    labels = torch.tensor([0, 0, 2, 1])
    right = 10 * torch.nn.functional.one_hot(labels, 3).float()
    assert recipe.contrastive_loss(right, labels) < recipe.contrastive_loss(right.roll(1, dims=1), labels)


@pytest.mark.slow
def test_script_end_to_end(recipe, tokenizer, tmp_path, capsys):
    recipe.main(["--output", str(tmp_path), "--steps", "2", "--batch_size", "16"])
    assert "zero-shot accuracy" in capsys.readouterr().out
    CLIPModel.from_pretrained(tmp_path, local_files_only=True)
    remade = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert remade.model_max_length == recipe.MAX_TOKENS
    assert remade.get_vocab() == tokenizer.get_vocab()
