"""A published backbone, on a real photograph."""

import io

import datasets
import pytest
import torch
from export.tiny import NAMES
from PIL import Image
from transformers import pipeline

from ft_focalsam import LongTailClassifier, apply_tuning
from ft_focalsam.data import eval_transform
from ft_focalsam.export import export_transformers
from ft_focalsam.models import load_image_processor

pytestmark = pytest.mark.slow


def test_dinov2_in_the_pipeline(shared, tmp_path):
    backbone = str(shared / "models" / "dinov2_vits14")
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone(backbone, NAMES, head="linear", image_size=126).eval()
    apply_tuning(model, "lora,bias")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += (0.3 if name.startswith("head") else 0.02) * torch.randn_like(parameter)
    export_transformers(model, tmp_path / "out")
    rows = datasets.Dataset.from_parquet(
        str(shared / "data" / "imagenet_sample" / "test-00000-of-00001.parquet"), cache_dir=str(tmp_path)
    )
    image = rows[0]["image"]
    image = (image if isinstance(image, Image.Image) else Image.open(io.BytesIO(image["bytes"]))).convert("RGB")
    answers = pipeline("image-classification", model=str(tmp_path / "out"))(image, function_to_apply="none")
    with torch.no_grad():
        logits = model(eval_transform(load_image_processor(backbone), image_size=126)(image)[None]).logits[0]
    got = {answer["label"]: answer["score"] for answer in answers}
    torch.testing.assert_close(torch.tensor([got[name] for name in NAMES]), logits, atol=1e-4, rtol=1e-4)
