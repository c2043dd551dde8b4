"""Images as bytes until they are on the device, against transforms that give floats; how many processes read them."""

import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tvf
from transformers import CLIPImageProcessor, ViTConfig, ViTForImageClassification, default_data_collator

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments, LongTailClassifier
from ft_focalsam.data import (
    AUGMENTATIONS,
    ByteCollator,
    DeviceImages,
    Mixing,
    MixingCollator,
    TransformedImages,
    choose_num_workers,
    load_image_data,
    read_preprocessing,
    register_augmentation,
    train_transform,
    workers,
)
from ft_focalsam.data.batches import RenamedLabels, finished

PROCESSOR = CLIPImageProcessor(size={"height": 16, "width": 16}, crop_size={"height": 16, "width": 16})
PREPROCESSING = read_preprocessing(PROCESSOR)
COLLATE = ByteCollator(PREPROCESSING)


@pytest.fixture(scope="module")
def digits():
    return load_image_data("digits").train.select(range(0, 1200, 50))


def images(dataset, *, as_bytes, augmentation="crop_flip"):
    return TransformedImages(dataset, train_transform(PROCESSOR, augmentation=augmentation, as_bytes=as_bytes), seed=4)


@pytest.mark.parametrize("augmentation", list(AUGMENTATIONS))
def test_bytes_become_what_the_transform_gives_bit_for_bit(augmentation, digits):
    as_bytes, as_floats = (images(digits, as_bytes=b, augmentation=augmentation) for b in (True, False))
    items = [as_bytes[row] for row in (3, 0, 17)]
    batch = COLLATE(items)
    assert batch["pixel_values"].dtype == torch.uint8 and batch["pixel_values"].is_contiguous()
    got = finished(batch, COLLATE)
    assert got["labels"].tolist() == [digits[row]["labels"] for row in (3, 0, 17)]
    for pixel_values, item, row in zip(got["pixel_values"], items, (3, 0, 17), strict=True):
        assert torch.equal(pixel_values, as_floats[row]["pixel_values"])
        naive = tvf.normalize(item["pixel_values"].double(), list(PREPROCESSING.mean), list(PREPROCESSING.std))
        torch.testing.assert_close(pixel_values.double(), naive, rtol=0, atol=1e-6)
    assert finished(got, COLLATE) is got  # what is normalised stays
    assert torch.equal(finished(batch, pickle.loads(pickle.dumps(COLLATE)))["pixel_values"], got["pixel_values"])


def test_an_augmentation_that_gives_floats_is_normalised_too(digits):
    @register_augmentation("brighter")
    def brighter(preprocessing):
        return [*preprocessing.resize_and_crop(), v2.ToDtype(torch.float32, scale=False), v2.Lambda(lambda x: 1.1 * x)]

    try:
        expected = images(digits, as_bytes=False, augmentation="brighter")[5]["pixel_values"]
        batch = COLLATE([images(digits, as_bytes=True, augmentation="brighter")[5]])
    finally:
        del AUGMENTATIONS["brighter"]
    assert torch.equal(finished(batch, COLLATE)["pixel_values"][0], expected)


@pytest.mark.parametrize("mixing", [Mixing(mixup_alpha=0.4), Mixing(cutmix_alpha=1.0)], ids=["mixup", "CutMix"])
def test_bytes_are_mixed_as_floats(mixing, digits):
    counts = [3] * 10
    as_bytes = MixingCollator(COLLATE, mixing, counts, seed=1)([images(digits, as_bytes=True)[i] for i in range(6)])
    floats = [images(digits, as_bytes=False)[i] for i in range(6)]
    as_floats = MixingCollator(default_data_collator, mixing, counts, seed=1)(floats)
    assert as_bytes["pixel_values"].dtype == torch.float32
    for name in ("pixel_values", "labels"):
        assert torch.equal(finished(as_bytes, COLLATE)[name], as_floats[name])


def test_labels_of_another_name_do_not_keep_bytes_from_being_finished(digits):
    collate = RenamedLabels(COLLATE, "labels")
    batch = finished(collate([images(digits, as_bytes=True)[2]]), collate)
    assert torch.equal(batch["pixel_values"][0], images(digits, as_bytes=False)[2]["pixel_values"])


def test_the_classifier_refuses_bytes(digits):
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
    with pytest.raises(ValueError, match=r"The images are torch\.uint8, and the model takes normalised floats; let"):
        model(COLLATE([images(digits, as_bytes=True)[0]])["pixel_values"])


def tiny_vit() -> ViTForImageClassification:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    return ViTForImageClassification(ViTConfig(**size, image_size=16, patch_size=8, num_labels=10))


class FloatsTrainer(FocalSAMTrainer):
    """Sees what a subclass sees of a batch."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        assert inputs["pixel_values"].dtype == torch.float32
        return super().training_step(model, inputs, num_items_in_batch)


def train(dataset, folder, *, collate, **settings) -> tuple[list[torch.Tensor], dict]:
    """Weights after four steps in two epochs, and metrics."""
    args = FocalSAMTrainingArguments(
        str(folder), per_device_train_batch_size=12, per_device_eval_batch_size=8, num_train_epochs=2, optim="sgd",
        learning_rate=0.1, report_to="none", disable_tqdm=True, save_strategy="no", use_cpu=True, **settings,
    )  # fmt: skip
    model = tiny_vit()
    trainer = FloatsTrainer(model, args, train_dataset=dataset, eval_dataset=dataset, data_collator=collate)
    trainer.train()
    metrics = {k: v for k, v in trainer.evaluate().items() if not k.endswith(("time", "second"))}
    return [p.detach().clone() for p in model.parameters()], metrics


@pytest.mark.parametrize("settings", [{}, {"mixup_alpha": 0.3}, {"sharpness": "none"}, {"dataloader_num_workers": 2}])
def test_training_on_bytes_is_training_on_floats_bit_for_bit(settings, digits, tmp_path):
    weights, metrics = train(images(digits, as_bytes=True), tmp_path, collate=COLLATE, **settings)
    expected, expected_metrics = train(images(digits, as_bytes=False), tmp_path, collate=None, **{
        name: value for name, value in settings.items() if name != "dataloader_num_workers"
    })  # fmt: skip
    assert all(torch.equal(p, q) for p, q in zip(weights, expected, strict=True))
    assert metrics == expected_metrics


@pytest.mark.parametrize(
    ("cores", "processes", "count", "expected"),
    [(2, 1, 2000, 2), (16, 8, 2000, 2), (16, 5, 5000, 3), (64, 1, 5000, 16), (1, 1, 5000, 0), (4, 3, 5000, 0),
     (2, 8, 5000, 0), (16, 1, 1999, 0)],
)  # fmt: skip
def test_the_cores_are_divided_by_the_training_processes(cores, processes, count, expected, digits, monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: cores)
    monkeypatch.setattr(TransformedImages, "__len__", lambda self: count)
    assert choose_num_workers(images(digits, as_bytes=True), processes=processes) == expected
    assert choose_num_workers(DeviceImages(digits, PREPROCESSING), processes=processes) == 0
    assert choose_num_workers(None, processes=processes) == 0


def test_the_trainer_chooses_unless_a_number_was_given(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    monkeypatch.setattr(workers, "WORTH_PROCESSES", 20)
    dataset, seen = images(digits, as_bytes=True), {}
    for given in (None, 0, 1):
        args = FocalSAMTrainingArguments(
            str(tmp_path), report_to="none", use_cpu=True, dataloader_num_workers=given, per_device_train_batch_size=5
        )
        model = tiny_vit()
        trainer = FocalSAMTrainer(model, args, train_dataset=dataset, data_collator=COLLATE)
        loader: DataLoader = trainer.get_train_dataloader()
        seen[given] = loader.num_workers
        torch.manual_seed(1)
        assert sorted(np.concatenate([b["labels"] for b in loader])) == sorted(dataset.targets)
    assert seen == {None: 2, 0: 0, 1: 1}
