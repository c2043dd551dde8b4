"""Features computed once against the backbone, image by image, and training on them against training on images."""

import logging

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, ViTConfig, ViTImageProcessor, ViTModel

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments, LongTailClassifier, TuningOptions, apply_tuning
from ft_focalsam.data import CachedFeatures, TransformedImages, collate_ready, eval_transform, train_transform
from ft_focalsam.models import FeatureCache, init_head, load_image_processor
from ft_focalsam.models.encoding import encode_images, own_batches

NAMES = ("owl", "fox", "newt")
LABELS = [0] * 12 + [1] * 7 + [2] * 4
FEATURES = datasets.Features({"image": datasets.Image(), "labels": datasets.Value("int64")})


def images_of(seed: int = 0) -> datasets.Dataset:
    """Coloured noise of 23 images, of three classes."""
    rng = np.random.default_rng(seed)
    pixels = [Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)) for _ in LABELS]
    return datasets.Dataset.from_dict({"image": pixels, "labels": LABELS}, features=FEATURES)


@pytest.fixture(scope="module")
def dataset() -> datasets.Dataset:
    return images_of()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ft_focalsam"


@pytest.fixture(scope="module")
def processor(backbones):
    return load_image_processor(str(backbones["clip"]))


def build(backbone, tuning="linear_probe", *, head="cosine") -> LongTailClassifier:
    torch.manual_seed(2)
    model = LongTailClassifier.from_backbone(str(backbone), NAMES, head=head)
    apply_tuning(model, tuning, TuningOptions())
    return model


def plain(dataset, processor) -> TransformedImages:
    return TransformedImages(dataset, eval_transform(processor))


def augmented(dataset, processor, *, num_views=3, seed=5, augmentation="crop_flip") -> TransformedImages:
    transform = train_transform(processor, augmentation=augmentation)
    return TransformedImages(dataset, transform, seed=seed, num_epochs=20, num_views=num_views)


@torch.no_grad()
def one_by_one(model, images) -> torch.Tensor:
    return torch.cat([model.eval().image_features(images[row]["pixel_values"][None]) for row in range(len(images))])


def fetched(features: CachedFeatures) -> torch.Tensor:
    return features.__getitems__(range(len(features)))["image_features"]


def test_cached_features_are_those_of_the_backbone_image_by_image(backbones, dataset, processor):
    model, images = build(backbones["clip"]), plain(dataset, processor)
    features = FeatureCache(model, batch_size=5).features(images)
    torch.testing.assert_close(fetched(features), one_by_one(model, images), rtol=1e-5, atol=1e-6)
    batch = features.__getitems__([20, 3])
    assert batch["labels"].tolist() == [2, 0] and features.targets.tolist() == LABELS
    assert torch.equal(batch["image_features"], fetched(features)[[20, 3]])
    assert [len(batch["labels"]) for batch in features.batches(10)] == [10, 10, 3]


@pytest.mark.parametrize("augmentation", ["crop_flip", "minimalist", "randaugment"])
def test_each_epoch_has_the_features_of_its_view(augmentation, backbones, dataset, processor):
    model, images = build(backbones["clip"]), augmented(dataset, processor, augmentation=augmentation)
    features = FeatureCache(model, batch_size=8).features(images, num_views=3)
    seen = []
    for epoch in (4, 0, 2, 6):
        features.set_epoch(epoch)
        images.set_epoch(epoch)
        torch.testing.assert_close(fetched(features), one_by_one(model, images), rtol=1e-5, atol=1e-6)
        seen.append(fetched(features))
    assert torch.equal(seen[1], seen[3]) and not torch.allclose(seen[0], seen[1], atol=1e-3)


def test_views_are_the_augmentations_of_the_first_epochs(dataset, processor):
    fixed, drawn = augmented(dataset, processor), augmented(dataset, processor, num_views=None)
    for epoch in range(7):
        fixed.set_epoch(epoch)
        drawn.set_epoch(epoch % 3)
        assert torch.equal(fixed[4]["pixel_values"], drawn[4]["pixel_values"])
    drawn.set_epoch(3)
    assert not torch.equal(augmented(dataset, processor)[4]["pixel_values"], drawn[4]["pixel_values"])


def test_what_is_in_the_cache_is_not_computed_again(backbones, dataset, processor, monkeypatch):
    images = plain(dataset, processor)
    expected = fetched(FeatureCache(build(backbones["clip"]), batch_size=8).features(images))
    model = build(backbones["clip"], "clip_adapter", head="linear")  # the same backbone
    monkeypatch.setattr("ft_focalsam.models.feature_cache.encode_images", None)
    assert torch.equal(fetched(FeatureCache(model, batch_size=3).features(plain(dataset, processor))), expected)


def test_a_file_stands_for_one_backbone_one_set_one_transform_and_one_view(
    backbones, dataset, processor, own_cache, tmp_path
):
    def files(model, images, **options) -> set[str]:
        before = set(own_cache.glob("features-*"))
        FeatureCache(model, batch_size=8, **options).features(images, num_views=images.num_views or 1)
        return set(own_cache.glob("features-*")) - before

    model = build(backbones["clip"])
    assert len(files(model, plain(dataset, processor))) == 1
    assert len(files(model, augmented(dataset, processor, num_views=2))) == 2
    assert len(files(model, augmented(dataset, processor, num_views=2, seed=6))) == 2
    assert len(files(model, plain(images_of(1), processor))) == 1
    assert len(files(model, plain(dataset.select(range(22)), processor))) == 1
    grey = CLIPImageProcessor(**processor.to_dict() | {"image_mean": [0.5, 0.5, 0.5]})
    assert len(files(model, plain(dataset, grey))) == 1
    assert len(files(model, plain(dataset, processor), autocast=torch.bfloat16)) == 1
    assert not files(model, plain(dataset, processor))
    with torch.no_grad():
        next(model.backbone.parameters()).view(-1)[0] += 1e-3
    assert len(files(model, plain(dataset, processor))) == 1


def spoilt(path, kind: str) -> None:
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"no features at all, and longer than a header")
    elif kind == "foreign":
        save_file({"image_features": torch.zeros(23, 24)}, path, metadata={"key": "other"})
    else:
        key = path.stem.removeprefix("features-")
        save_file({"image_features": torch.zeros(22, 24)}, path, metadata={"key": key})


@pytest.mark.parametrize("kind", ["cut", "empty", "text", "foreign", "short"])
def test_a_spoilt_file_is_told_in_one_line_and_made_anew(kind, backbones, dataset, processor, own_cache, caplog):
    model, images = build(backbones["clip"]), plain(dataset, processor)
    expected = fetched(FeatureCache(model, batch_size=8).features(images)).clone()
    (path,) = own_cache.glob("features-*")
    content = path.read_bytes()
    spoilt(path, kind)
    with caplog.at_level(logging.WARNING):
        features = FeatureCache(model, batch_size=8).features(images)
    assert torch.equal(fetched(features), expected) and path.read_bytes() == content
    (record,) = [record for record in caplog.records if "feature_cache" in record.name]
    assert "cannot be used (" in record.getMessage() and "\n" not in record.getMessage()
    assert [each.name for each in own_cache.iterdir()] == [path.name]
    assert torch.equal(load_file(path)["image_features"], expected)


def test_a_full_disk_leaves_no_file(backbones, dataset, processor, own_cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ft_focalsam.models.feature_cache.write_features", full)
    with pytest.raises(OSError, match=r"cannot be written to .* \(.*No space left on device\); make room there"):
        FeatureCache(build(backbones["clip"]), batch_size=8).features(plain(dataset, processor))
    assert not list(own_cache.glob("features-*"))


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize(("count", "size"), [(23, 4), (24, 4), (1, 8), (9, 1), (5, 3)])
def test_processes_share_the_images_in_order(processes, count, size):
    shares = [own_batches(count, size, processes, process) for process in range(processes)]
    order, read = [], 0
    for parts in zip(*shares, strict=True):
        assert len({len(part) for part in parts}) == 1 and len(parts[0]) <= size
        gathered = [row for part in parts for row in part]
        order += gathered[: count - len(order)]
        read += len(gathered)
    assert order == list(range(count)) and read < count + processes


def test_the_random_state_and_the_mode_stay(backbones, dataset, processor):
    model = build(backbones["clip"]).train()
    torch.manual_seed(9)
    before = torch.get_rng_state()
    FeatureCache(model, batch_size=8).features(augmented(dataset, processor), num_views=2)
    assert torch.equal(torch.get_rng_state(), before) and model.training
    init_head(model, "class_means", batches=lambda: encode_images(model, plain(dataset, processor), batch_size=4))
    assert torch.equal(torch.get_rng_state(), before) and model.training


@pytest.mark.parametrize("tuning", ["lora", "bias", "vpt_shallow", "full"])
def test_a_backbone_that_trains_is_refused(tuning, backbones, dataset, processor):
    cache = FeatureCache(build(backbones["clip"], tuning), batch_size=8)
    with pytest.raises(ValueError, match=r"' of the backbone trains, .* or set cache_features to false\.$"):
        cache.features(plain(dataset, processor))


@pytest.fixture(scope="module")
def with_dropout(tmp_path_factory) -> str:
    torch.manual_seed(0)
    folder = str(tmp_path_factory.mktemp("vit"))
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ViTModel(ViTConfig(**size, image_size=16, patch_size=8, hidden_dropout_prob=0.1)).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_features_are_those_of_evaluation(with_dropout, dataset):
    model = build(with_dropout).train()
    images = plain(dataset, load_image_processor(with_dropout))
    got = [batch["image_features"] for batch in encode_images(model, images, batch_size=10)]
    torch.testing.assert_close(torch.cat(got), one_by_one(model, images), rtol=1e-5, atol=1e-6)


def test_features_that_differ_in_training_are_refused(with_dropout, dataset):
    for backbone in (with_dropout, "scratch:resnet32"):
        model = build(backbone)
        buffers = [buffer.clone() for buffer in model.buffers()]
        images = plain(dataset, load_image_processor(backbone))
        with pytest.raises(ValueError, match="gives other features in training than in evaluation"):
            FeatureCache(model, batch_size=8).features(images)
        assert all(torch.equal(a, b) for a, b in zip(buffers, model.buffers(), strict=True))


@pytest.mark.parametrize("start", ["class_means", "linear_probe"])
def test_a_head_starts_from_cached_features_as_from_images(start, backbones, dataset, processor):
    heads = []
    for is_cached in (False, True):
        model, images = build(backbones["clip"]), plain(dataset, processor)
        if is_cached:
            features = FeatureCache(model, batch_size=8).features(images)
            init_head(model, start, batches=lambda features=features: features.batches(8))
        else:
            loader = torch.utils.data.DataLoader(images, batch_size=8)
            init_head(model, start, batches=lambda loader=loader: loader)
        heads.append(model.head.weight.detach())
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-5, atol=1e-6)


def trained(backbone, images, test, tuning, folder, settings) -> tuple[list[float], dict, LongTailClassifier]:
    """Losses by step, metrics and the model, after six steps over three epochs."""
    model = build(backbone, tuning)
    is_cached = isinstance(images, CachedFeatures)
    args = FocalSAMTrainingArguments(
        str(folder), per_device_train_batch_size=12, num_train_epochs=3, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, learning_rate=0.05, optim="sgd", use_cpu=True, **settings,
    )  # fmt: skip
    trainer = FocalSAMTrainer(
        model, args, train_dataset=images, eval_dataset=test, data_collator=collate_ready if is_cached else None
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, trainer.evaluate(), model


LINEAR_PROBE = (
    {"sharpness": "sam"},
    {"sharpness": "weighted_sam"},
    {"sharpness": "imbsam", "imbsam_eta": 6},
    {"sharpness": "focal_sam", "ascent": "momentum", "ascent_interval": 2},
    {"sharpness": "focal_sam", "gradient_accumulation_steps": 2, "train_sampler": "class_balanced"},
    {"sharpness": "cc_sam"},
)
WAYS = ("linear_probe", "clip_adapter", "text_lora", "context_prompts")
TRAININGS = [("linear_probe", settings) for settings in LINEAR_PROBE]
TRAININGS += [(tuning, {"sharpness": sharpness}) for tuning in WAYS for sharpness in ("none", "focal_sam")]


@pytest.mark.parametrize(("tuning", "settings"), TRAININGS, ids=str)
@pytest.mark.slow
def test_training_on_cached_features_is_training_on_images(tuning, settings, backbones, dataset, processor, tmp_path):
    backbone, settings = backbones["clip"], settings | {"rho": 0.1}
    images, test = augmented(dataset, processor, num_views=2), plain(images_of(1), processor)
    expected = trained(backbone, images, test, tuning, tmp_path / "images", settings)
    cache = FeatureCache(build(backbone, tuning), batch_size=8)
    features, test_features = cache.features(images, num_views=2), cache.features(test)
    losses, metrics, model = trained(backbone, features, test_features, tuning, tmp_path / "features", settings)
    assert losses == pytest.approx(expected[0], rel=1e-5) and len(set(losses)) > 2
    numbers = {name: value for name, value in metrics.items() if not name.endswith(("time", "second"))}
    assert numbers == pytest.approx({name: expected[1][name] for name in numbers}, rel=1e-5)
    for (name, p), q in zip(model.named_parameters(), expected[2].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6, msg=name)
    model.save_pretrained(tmp_path / "saved")
    pixel_values = torch.stack([test[row]["pixel_values"] for row in range(4)])
    with torch.no_grad():
        logits = LongTailClassifier.from_pretrained(tmp_path / "saved")(pixel_values).logits
        torch.testing.assert_close(logits, model.eval()(pixel_values).logits)
        rows = test_features.__getitems__(range(4))["image_features"]
        torch.testing.assert_close(model(image_features=rows).logits, logits, rtol=1e-5, atol=1e-5)
