"""Steps without a finite gradient, one after the other, and the images that are named in the end."""

import re

import datasets
import pytest
import torch
from PIL import Image
from sharpness.models import make_model
from test_trainer import Images, arguments, trainer_for
from torch import nn

from ft_focalsam import FocalSAMTrainer
from ft_focalsam.data import TransformedImages
from ft_focalsam.trainer.nonfinite import image_names, rows_of_step


class Poisoned(Images):
    """Images that are not finite; notes which ones are read."""

    def __init__(self):
        super().__init__()
        self.read = []

    def __getitem__(self, index):
        self.read.append(int(index))
        item = super().__getitem__(index)
        return {**item, "pixel_values": item["pixel_values"] * float("nan")}


def model():
    return make_model("vit", "lora", dtype=torch.float32)


def rows_named(error, folder):
    """What the message says, and the file of all where there are more."""
    shown = [int(row) for row in re.findall(r"row (\d+)", str(error))]
    more = re.search(r"and (\d+) more in '(.*)', or set", str(error))
    if more is None:
        return shown
    rows = [int(line.removeprefix("row ")) for line in (folder / "nonfinite_batch.txt").read_text().splitlines()]
    assert rows[: len(shown)] == shown and len(rows) == len(shown) + int(more[1])
    return rows


@pytest.mark.parametrize("changes", [{}, {"mixup_alpha": 0.5}, {"train_sampler": "class_balanced"}], ids=str)
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("sharpness", ["none", "focal_sam"])
def test_it_stops_with_the_step_the_rate_and_the_rows(sharpness, accumulation, changes, tmp_path):
    """Epochs are of five batches, the last one of four images."""
    dataset = Poisoned()
    trainer = trainer_for(
        model(), tmp_path, dataset=dataset, sharpness=sharpness, max_nonfinite_steps=4, max_steps=9,
        per_device_train_batch_size=5, gradient_accumulation_steps=accumulation, **changes,
    )  # fmt: skip
    dataset.read.clear()  # of the rows that were looked at when the classes were counted
    with pytest.raises(
        ValueError, match=r"finite for 4 steps in a row, up to step 4 at a learning rate of 0.05;"
    ) as e:
        trainer.train()
    assert rows_named(e.value, tmp_path) == (dataset.read[15:20] if accumulation == 1 else dataset.read[24:34])


def test_a_resumed_run_names_its_rows_too(tmp_path):
    settings = {"per_device_train_batch_size": 5, "max_nonfinite_steps": 2}
    trainer_for(model(), tmp_path, save_strategy="steps", save_steps=2, max_steps=2, **settings).train()
    dataset = Poisoned()
    trainer = trainer_for(model(), tmp_path, dataset=dataset, max_steps=9, resume_changed=True, **settings)
    dataset.read.clear()
    with pytest.raises(ValueError, match="for 2 steps in a row, up to step 4 ") as error:
        trainer.train(str(tmp_path / "checkpoint-2"))
    assert rows_named(error.value, tmp_path) == dataset.read[5:10]


class Unseeded(FocalSAMTrainer):
    def _get_train_sampler(self, *args, **kwargs):
        return Anyhow(len(self.train_dataset))


class Anyhow(torch.utils.data.Sampler):
    """Another order each time."""

    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return iter(torch.randperm(self.size).tolist())

    def __len__(self):
        return self.size


def test_rows_that_cannot_be_known_are_not_guessed(tmp_path):
    args = arguments(tmp_path, max_nonfinite_steps=1)
    trainer = Unseeded(model(), args, train_dataset=Poisoned())
    with pytest.raises(ValueError, match="which they are is not known in a stream or with a sampler of one's own"):
        trainer.train()
    assert rows_of_step(trainer, torch.zeros(3)) is None


@pytest.mark.parametrize("limit", [0, 5])
def test_fewer_steps_or_no_limit_do_not_stop_it(limit, tmp_path):
    trainer = trainer_for(model(), tmp_path, dataset=Poisoned(), max_nonfinite_steps=limit, max_steps=4)
    trainer.train()
    assert trainer.state.log_history[-2]["skipped_steps"] == 4 and trainer.state.global_step == 4


def scaled(folder, scale, dataset, **changes):
    """A trainer whose losses are scaled as in fp16, and multiplied by 2^10."""

    def loss(outputs, labels):
        return 2.0**10 * nn.functional.cross_entropy(outputs.logits, labels, reduction="none")

    args = arguments(folder, max_nonfinite_steps=3, **changes)
    trainer = FocalSAMTrainer(model(), args, train_dataset=dataset, compute_loss_func=loss)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=1000)
    return trainer


def test_steps_that_loss_scaling_skips_to_find_its_scale_do_not_count(tmp_path):
    trainer = scaled(tmp_path, 2.0**60, Images(), max_steps=30, learning_rate=1e-5)
    trainer.train()
    skipped = [entry["skipped_steps"] for entry in trainer.state.log_history if "loss" in entry]
    assert 4 <= skipped[-1] <= 20 and skipped[-1] == skipped[-6]  # counted since the start


def test_under_loss_scaling_a_loss_that_is_not_finite_counts(tmp_path):
    with pytest.raises(ValueError, match="for 3 steps in a row, up to step 3 "):
        scaled(tmp_path, 2.0**16, Poisoned(), max_steps=30).train()


def test_images_are_named_by_path_where_they_have_one(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    columns = {"image": [str(tmp_path / "a.png"), Image.new("RGB", (8, 8))], "labels": [0, 1]}
    features = datasets.Features({"image": datasets.Image(), "labels": datasets.Value("int64")})
    stored = datasets.Dataset.from_dict(columns, features=features)
    assert image_names(TransformedImages(stored, None), [1, 0]) == ["row 1", f"'{tmp_path / 'a.png'}'"]
    assert image_names(Images(), [3]) == ["row 3"]


def test_a_limit_below_zero_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_nonfinite_steps is -1; set it to 0 or more"):
        arguments(tmp_path, max_nonfinite_steps=-1)
