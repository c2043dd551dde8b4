"""Classifiers for several classes an image: saved, exported, started, and their losses."""

import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig

from ft_focalsam import LongTailClassifier
from ft_focalsam.export import FORMATS
from ft_focalsam.models import init_head
from ft_focalsam.models.head_start import class_means

IMAGES = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
ROWS = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [0, 0, 1.0]])


def classifier(**options) -> LongTailClassifier:
    return LongTailClassifier.from_backbone("tiny_clip", ["a", "b", "c"], multi_label=True, **options).eval()


@pytest.fixture
def size():
    return classifier().backbone.config.image_size


def test_a_saved_one_gives_the_same_logits_and_knows_its_kind(tmp_path, size):
    model, images = classifier(head="l2_normalized"), F.interpolate(IMAGES, size)
    model.save_pretrained(tmp_path)
    again = LongTailClassifier.from_pretrained(tmp_path)
    assert again.is_multi_label and torch.equal(again(images).logits, model(images).logits)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    (tmp_path / "config.json").write_text(json.dumps({**config, "problem_type": "regression"}))
    with pytest.raises(ValueError, match="problem_type"):
        LongTailClassifier.from_pretrained(tmp_path)


def test_its_loss_is_binary_cross_entropy(size):
    model, images = classifier(), F.interpolate(IMAGES, size)
    outputs = model(images, labels=ROWS.long())
    assert torch.allclose(outputs.loss, F.binary_cross_entropy_with_logits(outputs.logits, ROWS))


def test_class_means_are_over_the_images_that_have_the_class(size):
    model, images = classifier(), F.interpolate(IMAGES, size)
    batches = [{"pixel_values": images[rows], "labels": ROWS[rows]} for rows in (slice(0, 4), slice(4, 6))]
    with torch.no_grad():
        directions = F.normalize(model.features(images), dim=-1)
    expected = [directions[ROWS[:, k] > 0].mean(dim=0) for k in range(3)]
    torch.testing.assert_close(class_means(model, batches), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_a_linear_probe_is_refused():
    with pytest.raises(ValueError, match="head_start is 'linear_probe', which fits one class an image"):
        init_head(classifier(), "linear_probe", batches=lambda: [])


def test_exports_keep_the_kind(tmp_path):
    FORMATS["transformers"](classifier(head="linear", features="mean"), tmp_path / "transformers")
    assert AutoConfig.from_pretrained(tmp_path / "transformers").problem_type == "multi_label_classification"
    with pytest.raises(ValueError, match=r"for several classes an image.*export to onnx or transformers"):
        FORMATS["open_clip"](classifier(), tmp_path / "open_clip")


@pytest.mark.slow
def test_the_onnx_note_names_the_kind(tmp_path):
    FORMATS["onnx"](classifier(), tmp_path / "onnx")
    assert json.loads((tmp_path / "onnx" / "model.json").read_text())["problem_type"] == "multi_label_classification"
