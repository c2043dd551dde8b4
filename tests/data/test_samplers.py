"""How often images of each class come, in which order, and that a run that stops in between does not notice."""

import itertools

import numpy as np
import pytest
import torch
from datasets import Dataset
from sharpness.models import make_model
from test_trainer import Images, arguments, trainer_for
from torch.utils.data import IterableDataset

from ft_focalsam import FocalSAMTrainer
from ft_focalsam.data import SAMPLERS, ClassSampler

COUNTS = [400, 90, 30, 9, 1]
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), COUNTS))
STRATEGIES = ["instance", "class_balanced", "square_root", "progressively_balanced", "effective_number"]
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES)


def formula(strategy: str, *, epoch: int = 0, epochs: int = 1, beta: float = 0.9999) -> list[float]:
    """p_i of each class, as a loop."""
    total = sum(COUNTS)
    values = []
    for n in COUNTS:
        if strategy == "instance":
            values.append(n / total)
        elif strategy == "class_balanced":
            values.append(1 / len(COUNTS))
        elif strategy == "square_root":
            values.append(n**0.5 / sum(m**0.5 for m in COUNTS))
        elif strategy == "progressively_balanced":
            values.append((1 - epoch / epochs) * n / total + epoch / epochs / len(COUNTS))
        else:
            weighted = {m: m * (1 - beta) / (1 - beta**m) for m in COUNTS}
            values.append(weighted[n] / sum(weighted.values()))
    return values


def orders(strategy, *, epochs, **options):
    sampler = ClassSampler(LABELS, strategy, **options)
    sampler.num_epochs = epochs
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        yield list(sampler)


def test_every_strategy_is_tested():
    assert list(SAMPLERS) == STRATEGIES


@every_strategy
def test_class_probabilities_equal_the_formula(strategy):
    sampler = ClassSampler(LABELS, strategy, beta=0.99)
    sampler.num_epochs = 4
    for epoch in range(4):
        sampler.set_epoch(epoch)
        expected = formula(strategy, epoch=epoch, epochs=4, beta=0.99)
        np.testing.assert_allclose(sampler.class_probabilities(), expected, rtol=1e-12)


@every_strategy
def test_draws_follow_the_probabilities(strategy):
    """Chi-squared over 200 epochs of the same probabilities: below the value that chance exceeds once in 10,000."""
    sampler = ClassSampler(LABELS, strategy, seed=5, beta=0.99)
    sampler.num_epochs = 10**9
    drawn = np.zeros(5)
    for epoch in range(200):
        sampler.set_epoch(epoch)
        drawn += np.bincount(LABELS[list(sampler)], minlength=5)
    expected = 200 * len(LABELS) * np.array(formula(strategy, beta=0.99))
    assert ((drawn - expected) ** 2 / expected).sum() < 23.5


def test_limits_of_the_effective_number():
    near_zero = ClassSampler(LABELS, "effective_number", beta=0.0).class_probabilities()
    np.testing.assert_allclose(near_zero, formula("instance"), rtol=1e-12)
    near_one = ClassSampler(LABELS, "effective_number", beta=1 - 1e-10).class_probabilities()
    np.testing.assert_allclose(near_one, formula("class_balanced"), rtol=1e-6)


@every_strategy
def test_the_images_of_a_class_take_turns(strategy):
    for order in orders(strategy, epochs=3):
        assert len(order) == len(LABELS)
        for k in range(5):
            of_class = [image for image in order if LABELS[image] == k]
            times = np.bincount(of_class, minlength=len(LABELS))[np.equal(LABELS, k)]
            assert times.max() - times.min() <= 1
            size = COUNTS[k]
            assert all(len(set(of_class[i : i + size])) == size for i in range(0, len(of_class) - size + 1, size))


@every_strategy
def test_the_order_follows_from_seed_and_epoch(strategy):
    first = list(orders(strategy, epochs=3, seed=1))
    torch.manual_seed(99), np.random.seed(99)
    assert list(orders(strategy, epochs=3, seed=1)) == first
    assert all(a != b for a, b in itertools.combinations(first, 2))
    assert next(orders(strategy, epochs=3, seed=2)) != first[0]


def test_labels_with_gaps():
    """Classes without an image get no draw."""
    labels = np.array([7, 3, 3, 3])
    order = list(ClassSampler(labels, "class_balanced", seed=0))
    assert len(order) == 4 and set(order) <= {0, 1, 2, 3}
    np.testing.assert_allclose(ClassSampler(labels, "class_balanced").class_probabilities(), [0.5, 0.5])


def test_bad_choices():
    with pytest.raises(ValueError, match="Unknown sampler 'balanced'; choose one of instance, class_balanced"):
        ClassSampler(LABELS, "balanced")
    with pytest.raises(ValueError, match=r"effective_number_beta is 1\.0"):
        ClassSampler(LABELS, "effective_number", beta=1.0)


# ---- in the Trainer ----


def seen_by(trainer, checkpoint=None) -> list[int]:
    """Train; returns the images in their order (those of `Images`, whose first values tell them apart)."""
    first = trainer.train_dataset.images.flatten(1)[:, 0].tolist()
    batches, collate = [], trainer.data_collator
    trainer.data_collator = lambda items: batches.append(items) or collate(items)
    trainer.train(checkpoint)
    return [first.index(float(item["pixel_values"].flatten()[0])) for items in batches for item in items]


@every_strategy
@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(strategy, tmp_path):
    """Epochs of 3 steps: 9 in all, cut at the fifth."""
    common = {"num_train_epochs": 3, "max_steps": -1, "optim": "adamw_torch", "train_sampler": strategy}
    whole = make_model("vit", "lora", dtype=torch.float32)
    trainer = trainer_for(whole, tmp_path / "whole", **common)
    seen = seen_by(trainer)
    if strategy != "instance":
        sampler = ClassSampler(Images().targets, strategy, seed=42)
        sampler.num_epochs, expected = 3, []
        for epoch in range(3):
            sampler.set_epoch(epoch)
            expected += list(sampler)
        assert seen == expected
    trainer_for(
        make_model("vit", "lora", dtype=torch.float32), tmp_path / "cut", save_strategy="steps", save_steps=5, **common
    ).train()
    resumed = make_model("vit", "lora", seed=9, dtype=torch.float32)
    resumed.load_state_dict({n: p for n, p in whole.state_dict().items() if "lora" not in n}, strict=False)
    rest = seen_by(trainer_for(resumed, tmp_path / "cut", **common), str(tmp_path / "cut" / "checkpoint-5"))
    assert rest == seen[5 * 8 :]
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_class_counts_stay_those_of_the_training_set(tmp_path):
    trainer = trainer_for(make_model("vit", "lora", dtype=torch.float32), tmp_path, train_sampler="class_balanced")
    seen = np.bincount(np.array(Images().targets)[seen_by(trainer)], minlength=5)
    assert seen[4] > 2  # of 32 draws; there is one such image among 24
    assert trainer.class_counts.tolist() == [10, 6, 4, 3, 1]
    plain = trainer_for(make_model("vit", "lora", dtype=torch.float32), tmp_path)
    plain.train()
    assert torch.equal(trainer.sharpness_step.class_weights, plain.sharpness_step.class_weights)


def test_a_datasets_dataset_and_a_data_seed(tmp_path):
    columns = {"pixel_values": Images().images.tolist(), "labels": Images().targets}
    dataset = Dataset.from_dict(columns).with_format("torch")
    model = make_model("vit", "lora", dtype=torch.float32)
    trainer = trainer_for(model, tmp_path, dataset=dataset, train_sampler="square_root", data_seed=7)
    assert list(trainer._get_train_sampler()) == list(ClassSampler(Images().targets, "square_root", seed=7))
    trainer.train()


def test_a_stream_and_two_ways_to_sample_are_refused(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(Images())

    args = arguments(tmp_path, train_sampler="class_balanced")
    with pytest.raises(ValueError, match="train_sampler is 'class_balanced' and the training set a stream"):
        FocalSAMTrainer(make_model("vit", "lora"), args, train_dataset=Stream(), class_counts=[10, 6, 4, 3, 1])
    with pytest.raises(ValueError, match="train_sampler is 'instance_balanced'; choose one of instance, class_bal"):
        arguments(tmp_path, train_sampler="instance_balanced")
    with pytest.raises(ValueError, match="train_sampler is 'square_root' and train_sampling_strategy 'sequential'"):
        arguments(tmp_path, train_sampler="square_root", train_sampling_strategy="sequential")
