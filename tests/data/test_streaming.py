"""Streams of real images: the same data as stored, class counts counted once or given, mistakes in one sentence."""

import json

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments
from ft_focalsam.data import (
    DataArguments,
    label_array,
    read_class_counts,
    stream_images,
    train_transform,
    training_set,
)
from ft_focalsam.data.images import StoredImage
from ft_focalsam.models import load_image_processor

TRAIN, TEST = 26, 10


@pytest.fixture
def folder(shared, tmp_path):
    """A parquet folder of CIFAR-10 images, the training split in three files."""
    root = tmp_path / "stream ü"
    root.mkdir()
    source = str(shared / "data" / "cifar10" / "test-00000-of-00001.parquet")
    images = datasets.Dataset.from_parquet(source, cache_dir=str(tmp_path / "cache"))
    for number in range(3):
        rows = range(number, TRAIN, 3)
        images.select(rows).to_parquet(str(root / f"train-{number:05}-of-00003.parquet"))
    images.select(range(TRAIN, TRAIN + TEST)).to_parquet(str(root / "test-00000-of-00001.parquet"))
    return root


def opened(folder, tmp_path, recount=True, **options):
    args = DataArguments(dataset=str(folder), streaming=True, **options)
    said = []
    return stream_images(args, counts_path=tmp_path / "out" / "counts.json", recount=recount, say=said.append), said


def test_a_stream_is_the_stored_data(folder, tmp_path):
    data, said = opened(folder, tmp_path)
    stored = datasets.load_dataset(str(folder))
    labels = label_array(stored["train"], "label")
    assert data.class_names == stored["train"].features["label"].names and data.num_classes == 10
    assert data.class_counts.tolist() == np.bincount(labels, minlength=10).tolist() and data.num_train == TRAIN
    items = list(data.train)
    assert [item["labels"] for item in items] == labels.tolist()
    raw = stored["train"].cast_column("img", datasets.Image(decode=False))
    assert [item["image"]["bytes"] for item in items] == [record["bytes"] for record in raw["img"]]
    assert label_array(data.test).tolist() == label_array(stored["test"], "label").tolist()
    assert data.test[3]["image"].tobytes() == stored["test"][3]["img"].tobytes()
    assert len(said) == 1 and "Counting the classes of the stream once; --class_counts" in said[0]


def test_a_folder_of_images_is_streamed_in_parts(tmp_path):
    for row in range(12):
        path = tmp_path / "images" / ("train" if row < 9 else "test") / f"class {row % 3}" / "deeper" / f"{row}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (row, 0, 0)).save(path)
    data, _ = opened(tmp_path / "images", tmp_path)
    assert data.class_names == ["class 0", "class 1", "class 2"] and data.class_counts.tolist() == [3, 3, 3]
    assert data.train.num_shards == 9  # for as many processes
    shown = [StoredImage.read(item["image"], row=0).open().getpixel((0, 0))[0] for item in data.train]
    assert (
        shown == [0, 3, 6, 1, 4, 7, 2, 5, 8] and [item["labels"] for item in data.train] == [0] * 3 + [1] * 3 + [2] * 3
    )
    assert label_array(data.test).tolist() == [0, 1, 2]


def test_counts_are_counted_once_kept_and_taken_as_given(folder, tmp_path):
    data, _ = opened(folder, tmp_path)
    kept = tmp_path / "out" / "counts.json"
    assert json.loads(kept.read_text()) == dict(zip(data.class_names, data.class_counts.tolist(), strict=True))
    again, said = opened(folder, tmp_path, recount=False)
    assert again.class_counts.tolist() == data.class_counts.tolist() and not said
    given = tmp_path / "given.json"
    given.write_text(json.dumps({name: 7 + index for index, name in enumerate(reversed(data.class_names))}))
    with_given, said = opened(folder, tmp_path, class_counts=str(given))
    assert with_given.class_counts.tolist() == list(range(16, 6, -1)) and not said
    written, said = opened(folder, tmp_path, class_counts=str(tmp_path / "new.json"))
    assert said and json.loads((tmp_path / "new.json").read_text()) == json.loads(kept.read_text())
    assert written.num_train == TRAIN


@pytest.mark.parametrize(
    "content", ["[1, 2]", '{"a": 1, "c": 2}', '{"a": 1}', '{"a": 1, "b": 2.5}', '[1, "2"]', "7", '{"a": 1,'], ids=str
)
def test_counts_of_other_classes(tmp_path, content):
    path = tmp_path / "counts.json"
    path.write_text(content)
    if content == "[1, 2]":
        assert read_class_counts(path, ["a", "b"]).tolist() == [1, 2]
        return
    with pytest.raises(
        ValueError, match=r"class counts '.*counts.json' are not (those of the 2 classes 'a'|valid JSON)"
    ):
        read_class_counts(path, ["a", "b"])


@pytest.mark.parametrize(
    "options",
    [
        {"imbalance_factor": 10.0},
        {"test_fraction": 0.5},
        {"max_train_per_class": 5},
        {"cache_resized": "x"},
        {"on_bad_image": "skip"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_needs_a_stored_data_set(folder, tmp_path, options):
    with pytest.raises(
        ValueError, match=rf"--{next(iter(options))}.* needs a stored data set; drop it, or --streaming"
    ):
        opened(folder, tmp_path, **options)


def test_mistakes_are_one_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match="--dataset digits needs a stored data set"):
        opened("digits", tmp_path)
    with pytest.raises(ValueError, match="set --train_split to one of 'train', 'test'"):
        opened(folder, tmp_path, train_split="all")
    with pytest.raises(ValueError, match="needs a split to test on; set --test_split to another one of"):
        opened(folder, tmp_path, test_split="train")
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"Row \d of the stream has the label \d, outside 0\.\.1 .*, or --class_n"):
        opened(folder, tmp_path, class_names=str(tmp_path / "names.txt"))
    with pytest.raises(FileNotFoundError, match=r"could not be opened as a stream .*; check its name"):
        opened(tmp_path / "nowhere", tmp_path)


def test_changed_test_images_are_read_anew(folder, tmp_path):
    opened(folder, tmp_path)
    file = folder / "test-00000-of-00001.parquet"
    datasets.Dataset.from_parquet(str(file), cache_dir=str(tmp_path / "c")).select(range(4)).to_parquet(str(file))
    assert len(opened(folder, tmp_path)[0].test) == 4


class Linear(nn.Module):
    """Logits of 10 classes from an image of 8 x 8."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(192, 10)
        self.seen = []

    def forward(self, pixel_values):
        if self.training:
            self.seen.append(pixel_values.detach().clone())
        return (self.layer(pixel_values.flatten(1)),)


def test_the_trainer_reads_a_stream_as_often_as_it_takes_and_each_pass_anew(folder, tmp_path):
    data, _ = opened(folder, tmp_path)
    transform = train_transform(load_image_processor("tiny_clip"), image_size=8)
    train = training_set(data.train, transform, seed=1, shuffle_buffer=16)
    counts = np.maximum(data.class_counts, 1)
    options = {"per_device_train_batch_size": 13, "report_to": "none", "save_strategy": "no", "sharpness": "sam"}
    model = Linear()
    args = FocalSAMTrainingArguments(str(tmp_path / "run"), max_steps=6, use_cpu=True, **options)
    FocalSAMTrainer(model, args, class_counts=counts, train_dataset=train).train()
    batches = model.seen[1::2]  # each is seen twice, at w and at w + epsilon, and the first once more for the check
    passes = [torch.cat(batches[start : start + 2]) for start in (0, 2, 4)]
    assert all(len(part) == TRAIN for part in passes)
    for epoch, part in enumerate(passes):
        train.set_epoch(epoch)
        expected = torch.stack([item["pixel_values"] for item in train])
        assert torch.equal(part, expected)
    assert not torch.equal(passes[0], passes[1])
    with pytest.raises(ValueError, match="max_steps has to be specified"):
        FocalSAMTrainer(
            model, FocalSAMTrainingArguments(str(tmp_path / "run"), use_cpu=True, **options), train_dataset=train
        )
