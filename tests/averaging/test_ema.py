"""The moving average of a run against the formula written out, in float64."""

import copy

import pytest
import torch
import transformers
from safetensors.torch import load_file
from sharpness.models import make_model
from test_trainer import Images, arguments, trainer_for
from torch import nn

from ft_focalsam import FocalSAMTrainer
from ft_focalsam.averaging.ema import EMA_NAME, WeightEMA

DECAY = 0.6


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


class Kept(transformers.TrainerCallback):
    """The weights after each optimizer step, before anything else is done with them."""

    def __init__(self, model):
        self.model, self.weights = model, [trained(model)]

    def on_step_end(self, *args, **kwargs):
        self.weights.append(trained(self.model))


def average_by_hand(weights: list[dict], decay: float) -> dict[str, torch.Tensor]:
    """sum over steps of (1 - d_t) prod_{s > t} d_s w_t, with the start in the place of step 0."""
    decays = [min(decay, (1 + t) / (10 + t)) for t in range(1, len(weights))]
    shares = [1.0] + [1 - d for d in decays]
    for t, d in enumerate(decays, start=1):
        for earlier in range(t):
            shares[earlier] *= d
    assert sum(shares) == pytest.approx(1)
    return {n: sum(s * w[n].double() for s, w in zip(shares, weights, strict=True)) for n in weights[0]}


def assert_equal(found: dict, expected: dict):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_the_model_ends_as_the_average_of_all_steps(tuning, tmp_path):
    model = make_model("dinov2", tuning)
    trainer = trainer_for(model, tmp_path, max_steps=6, ema_decay=DECAY)
    kept = Kept(model)
    trainer.add_callback(kept)
    trainer.train()
    expected, found = average_by_hand(kept.weights, DECAY), trained(model)
    assert max(float((expected[n] - kept.weights[-1][n]).abs().max()) for n in expected) > 1e-3  # it is another thing
    for name in expected:
        torch.testing.assert_close(found[name].double(), expected[name], rtol=0, atol=1e-6)


def test_the_warm_up_reaches_the_decay_and_stays():
    ema = WeightEMA(nn.Linear(1, 1), 0.5)
    assert [ema.decay_at(t) for t in (1, 2, 7, 8, 9, 1000)] == [2 / 11, 3 / 12, 8 / 17, 0.5, 0.5, 0.5]


def test_half_precision_weights_are_averaged_in_float32():
    model = nn.Linear(3, 2, dtype=torch.bfloat16)
    ema, weights = WeightEMA(model, 0.999), [trained(model)]
    assert all(value.dtype == torch.float32 for value in ema.averages.values())
    for step in range(1, 400):  # whose changes, times 1 - d, are below the resolution of bfloat16
        with torch.no_grad():
            model.weight += 0.01
        ema.update(step)
        weights.append(trained(model))
    expected = average_by_hand(weights, 0.999)["weight"]
    torch.testing.assert_close(ema.averages["weight"].double(), expected, rtol=1e-5, atol=0)
    ema.apply()
    assert torch.equal(model.weight, expected.bfloat16())


def test_statistics_of_batch_normalisation_are_averaged_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    ema, seen = WeightEMA(model, 0.5), [model[1].running_mean.clone()]
    for step in range(1, 4):
        model(torch.randn(8, 2))
        ema.update(step)
        seen.append(model[1].running_mean.clone())
    expected = average_by_hand([{"mean": value} for value in seen], 0.5)["mean"]
    torch.testing.assert_close(ema.averages["1.running_mean"].double(), expected)
    assert "1.num_batches_tracked" not in ema.averages


def test_an_evaluation_is_of_the_average_and_leaves_training_as_it_is(tmp_path):
    runs = {}
    for name, strategy in (("with", "steps"), ("without", "no")):
        model = make_model("dinov2", "lora")
        trainer = trainer_for(
            model,
            tmp_path / name,
            max_steps=4,
            ema_decay=DECAY,
            eval_strategy=strategy,
            eval_steps=2,
            save_strategy="no",
        )
        kept = Kept(model)
        trainer.add_callback(kept)
        trainer.train()
        runs[name] = trainer, kept.weights
    for step, (one, other) in enumerate(zip(runs["with"][1], runs["without"][1], strict=True)):
        assert all(torch.equal(one[n], other[n]) for n in one), step
    losses = [log["eval_loss"] for log in runs["with"][0].state.log_history if "eval_loss" in log]
    assert len(losses) == 2
    for step, loss in zip((2, 4), losses, strict=True):
        model = make_model("dinov2", "lora")
        model.load_state_dict(average_by_hand(runs["with"][1][: step + 1], DECAY), strict=False)
        other = FocalSAMTrainer(model, arguments(tmp_path / "other"), train_dataset=Images(), eval_dataset=Images())
        assert other.evaluate()["eval_loss"] == pytest.approx(loss, rel=1e-5)
    raw = make_model("dinov2", "lora")
    raw.load_state_dict(runs["with"][1][-1], strict=False)
    other = FocalSAMTrainer(raw, arguments(tmp_path / "other"), train_dataset=Images(), eval_dataset=Images())
    assert other.evaluate()["eval_loss"] != pytest.approx(losses[-1], rel=1e-4)


@pytest.mark.parametrize("at", [2, 5])
def test_a_resumed_run_ends_with_the_same_average_bit_for_bit(at, tmp_path):
    settings = {"max_steps": 7, "ema_decay": 0.9, "save_strategy": "steps", "save_steps": at, "optim": "adamw_torch"}
    whole = make_model("dinov2", "full")
    trainer_for(copy.deepcopy(whole), tmp_path / "cut", **settings).train()
    trainer_for(whole, tmp_path / "whole", **settings).train()
    checkpoint = tmp_path / "cut" / f"checkpoint-{at}"
    raw, averaged = load_file(checkpoint / "model.safetensors"), load_file(checkpoint / EMA_NAME)
    names = [name for name in raw if name in averaged]
    assert names and not all(torch.equal(raw[name], averaged[name]) for name in names)
    resumed = make_model("dinov2", "full")
    trainer_for(resumed, tmp_path / "cut", **settings).train(resume_from_checkpoint=str(checkpoint))
    assert_equal(trained(resumed), trained(whole))


def test_the_best_checkpoint_is_loaded_as_the_average_that_was_evaluated(tmp_path):
    model = make_model("dinov2", "lora")
    trainer = trainer_for(
        model, tmp_path, max_steps=6, ema_decay=DECAY, learning_rate=2.0, eval_strategy="steps", eval_steps=1,
        save_strategy="steps", save_steps=1, load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    best = losses.index(min(losses)) + 1
    assert trainer.state.best_model_checkpoint.endswith(f"checkpoint-{best}") and best < 6
    assert_equal(trained(model), load_file(tmp_path / f"checkpoint-{best}" / EMA_NAME))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)


def test_a_checkpoint_without_an_average_begins_one(tmp_path, caplog):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer_for(make_model("dinov2", "lora"), tmp_path, **settings).train()
    model = make_model("dinov2", "lora")
    trainer = trainer_for(model, tmp_path, **settings, ema_decay=DECAY, resume_changed=True)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert "has no ema.safetensors: the average begins with its weights" in caplog.text


@pytest.mark.parametrize("decay", [1.0, -0.1, 1.5])
def test_a_decay_out_of_range_is_named(decay, tmp_path):
    with pytest.raises(ValueError, match=f"ema_decay is {decay}; set it to"):
        arguments(tmp_path, ema_decay=decay)
