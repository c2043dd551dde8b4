"""Every format and architecture, loaded in another process that cannot import this package."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import torch
from export.tiny import NAMES, build, make_image, processor
from other_libraries import side_of
from PIL import Image

from ft_focalsam.data import eval_transform
from ft_focalsam.export import FORMATS
from ft_focalsam.models import load_image_processor

pytestmark = pytest.mark.slow

READ = Path(__file__).with_name("load_exported.py")
LORA = {"tuning": "lora"}
EVERYTHING = {"tuning": "norms,vpt_deep,ssf,bias,sparse,adaptformer,last_blocks,lora,clip_adapter", "head": "cosine"}

# (format, backbone, of `build`); images of open_clip and ONNX have the size of the model, as other libraries resize
# in another way.
CASES: dict[str, tuple[str, str, dict]] = {
    "vit larger": ("transformers", "vit", {**LORA, "image_size": 16}),
    "deit larger": ("transformers", "deit", {"tuning": "bias", "image_size": 12}),
    "beit": ("transformers", "beit", {"tuning": "lora,norms"}),
    "data2vec larger": ("transformers", "data2vec-vision", {**LORA, "image_size": 16}),
    "vit_mae larger": ("transformers", "vit_mae", {**LORA, "image_size": 16}),
    "dinov2": ("transformers", "dinov2", {"tuning": "sparse,ssf,lora"}),
    "dinov2 mean larger": ("transformers", "dinov2", {**LORA, "features": "mean", "image_size": 16}),
    "dinov2 registers": ("transformers", "dinov2_with_registers", LORA),
    "dinov2 registers mean": ("transformers", "dinov2_with_registers", {"features": "mean"}),
    "clip mean larger": ("transformers", "clip", {**LORA, "features": "mean", "image_size": 16}),
    "clip vision mean": ("transformers", "deep_clip_vision_model", {**LORA, "features": "mean"}),
    "siglip mean larger": ("transformers", "siglip", {**LORA, "features": "mean", "image_size": 16}),
    "ijepa": ("transformers", "ijepa", {"features": "mean"}),
    "vit_msn": ("transformers", "vit_msn", {"features": "cls"}),
    "swin": ("transformers", "swin", {"features": "pooler", "tuning": "full"}),
    "timm": ("transformers", "timm", {"tuning": "sparse,bias"}),
    "timm map": ("transformers", "timm_map", {"tuning": "lora", "lora_target_modules": ["qkv"]}),
    "timm beit": ("transformers", "timm_beit", {"tuning": "lora", "lora_target_modules": ["qkv"]}),
    "timm eva": ("transformers", "timm_eva", {"tuning": "sparse,norms"}),
    "timm convnext": ("transformers", "timm_convnext", {"tuning": "full"}),
    "timm resnet": ("transformers", "timm_resnet", {"tuning": "full"}),
    "timm larger": ("transformers", "timm", {"tuning": "norms", "image_size": 16}),
    "open_clip cosine": ("open_clip", "open_clip", {**LORA, "head": "cosine"}),
    "open_clip coca": ("open_clip", "open_clip_coca", {"tuning": "sparse,bias", "head": "cosine"}),
    "open_clip timm": ("open_clip", "open_clip_timm", {"tuning": "bias", "head": "cosine"}),
    "open_clip larger": ("open_clip", "open_clip", {**LORA, "head": "linear", "image_size": 16}),
    "tiny_clip cosine": ("open_clip", "tiny_clip", {"tuning": "lora,context_prompts", "head": "cosine"}),
    "tiny_clip larger": ("open_clip", "tiny_clip", {"tuning": "bias", "head": "layer_norm", "image_size": 48}),
    "onnx everything larger": ("onnx", "deep_vit", {**EVERYTHING, "image_size": 16}),
    "onnx open_clip": ("onnx", "open_clip", {"tuning": "adapter", "head": "l2_normalized"}),
}


def _export(backbones, case, folder):
    """Write a case and its image; returns the case for the other process, and its logits here."""
    kind, backbone, options = CASES[case]
    model = build(backbones[backbone], **options)
    has_own = backbone.startswith(("open_clip", "tiny_clip"))
    own = load_image_processor(backbones[backbone]) if has_own else processor(side_of(backbone))
    with redirect_stdout(io.StringIO()) as said:
        FORMATS[kind](model, folder / "model", image_processor=own)
    assert said.getvalue() == ""
    transform = eval_transform(own, image_size=options.get("image_size"))
    size = transform(make_image(50, 50)).shape[-1]
    image = make_image(37, 29) if kind == "transformers" else make_image(size, size)
    if kind == "onnx" and not has_own:  # of the size to which `processor` resizes before the crop
        image = make_image(size * 10 // 8, size * 10 // 8)
    image.save(folder / "image.png")
    with torch.no_grad():
        logits = model(transform(Image.open(folder / "image.png"))[None]).logits[0]
    return {"format": kind, "folder": str(folder / "model"), "image": str(folder / "image.png")}, logits


@pytest.fixture(scope="module")
def results(backbones, tmp_path_factory):
    """Case -> (logits here, what the other process gives)."""
    root = tmp_path_factory.mktemp("exported")
    made = {}
    for number, case in enumerate(CASES):
        (root / str(number)).mkdir()
        made[case] = _export(backbones, case, root / str(number))
    (root / "cases.json").write_text(json.dumps({case: entry for case, (entry, _) in made.items()}))
    command = [sys.executable, str(READ), str(root / "cases.json"), str(root / "results.json")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        command, cwd=root, env={**environment, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr[-3000:]
    read = json.loads((root / "results.json").read_text())
    return {case: (logits, read[case]) for case, (_, logits) in made.items()}


@pytest.mark.parametrize("case", CASES)
def test_exported_gives_the_same_logits_without_the_package(results, case):
    expected, (labels, *got) = results[case]
    assert labels == list(NAMES)
    assert expected.abs().max() > 0.01
    assert len(got) == (4 if CASES[case][0] == "onnx" else 1)
    torch.testing.assert_close(torch.tensor(got), expected.expand(len(got), -1), atol=1e-4, rtol=1e-4)
