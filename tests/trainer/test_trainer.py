"""`FocalSAMTrainer` on untouched transformers models, PEFT models and plain modules."""

import copy
import json

import pytest
import torch
import transformers
from sharpness.models import BACKBONES, COUNTS, losses_of, make_model, naive_gradient, relative_error
from torch import nn
from torch.utils.data import Dataset

from ft_focalsam import FocalSAMTrainer, FocalSAMTrainingArguments, class_weights
from ft_focalsam.sharpness import ClassConditionalSAM

WEIGHTS = class_weights("focal_sam", [10, 6, 4, 3, 1], {"gamma": 1.5, "lam": 0.7})
SETTINGS = {"sharpness": "focal_sam", "rho": 0.1, "focal_gamma": 1.5, "focal_lambda": 0.7}


class Images(Dataset):
    """24 random images of five classes, with 10, 6, 4, 3 and 1 of them."""

    def __init__(self, dtype=torch.float32):
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(24, 3, 8, 8, generator=generator).to(dtype)
        self.targets = [0] * 10 + [1] * 6 + [2] * 4 + [3] * 3 + [4]

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return {"pixel_values": self.images[index], "labels": self.targets[index]}


def arguments(folder, **changes):
    settings = {
        "per_device_train_batch_size": 8, "max_steps": 4, "learning_rate": 0.05, "lr_scheduler_type": "constant",
        "optim": "sgd", "max_grad_norm": 0.0, "save_strategy": "no", "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "logging_steps": 1, **SETTINGS, **changes,
    }  # fmt: skip
    return FocalSAMTrainingArguments(str(folder), **settings)


def trainer_for(model, folder, *, dataset=None, **changes):
    dataset = Images() if dataset is None else dataset
    return FocalSAMTrainer(model, arguments(folder, **changes), train_dataset=dataset, eval_dataset=dataset)


class Recorded(transformers.TrainerCallback):
    """Keeps the batches and the gradients of each optimizer step."""

    def __init__(self, model):
        self.model, self.gradients = model, []

    def on_pre_optimizer_step(self, *args, **kwargs):
        trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.gradients.append(
            {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in trained.items()}
        )


def train_recorded(trainer):
    """Train; returns the batches in their order, and the gradients of each optimizer step."""
    batches, collate, recorded = [], trainer.data_collator, Recorded(trainer.model)
    trainer.data_collator = lambda items: batches.append(collate(items)) or collate(items)
    trainer.add_callback(recorded)
    trainer.train()
    return batches, recorded.gradients


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_optimizer_gets_the_naive_gradient(backbone, tuning, accumulation, tmp_path):
    model = make_model(backbone, tuning)
    start = copy.deepcopy(model)
    trainer = trainer_for(
        model, tmp_path, dataset=Images(torch.float64), max_steps=2,
        per_device_train_batch_size=24 // accumulation, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    recorded = Recorded(model)
    trainer.add_callback(recorded)
    trainer.train()
    data = Images(torch.float64)
    for gradient in recorded.gradients:  # every step sees all 24 images, in some order
        expected = naive_gradient(start, data.images, torch.tensor(data.targets), WEIGHTS, 0.1)
        assert relative_error(gradient, expected) <= 1e-10
        with torch.no_grad():
            for name, p in start.named_parameters():
                if name in gradient:
                    p -= 0.05 * gradient[name]
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad]
    after, before = dict(model.named_parameters()), dict(make_model(backbone, tuning).named_parameters())
    assert all(torch.equal(after[name], before[name]) for name in frozen)
    trained = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or p.grad.any())]
    assert sum(not torch.equal(after[name], before[name]) for name in trained) > len(trained) / 2


def test_an_epoch_that_does_not_divide_evenly_weighs_every_sample_alike(tmp_path):
    """24 images in batches of 10, accumulated by 3: 10 + 10 + 4."""
    model = make_model("vit", "lora")
    start = copy.deepcopy(model)
    trainer = trainer_for(
        model, tmp_path, dataset=Images(torch.float64), max_steps=1, per_device_train_batch_size=10,
        gradient_accumulation_steps=3,
    )  # fmt: skip
    recorded = Recorded(model)
    trainer.add_callback(recorded)
    trainer.train()
    data = Images(torch.float64)
    expected = naive_gradient(start, data.images, torch.tensor(data.targets), WEIGHTS, 0.1)
    assert relative_error(recorded.gradients[0], expected) <= 1e-10


def test_local_scope_perturbs_each_micro_batch_by_its_own_gradient(tmp_path):
    model = make_model("vit", "lora")
    start = copy.deepcopy(model)
    trainer = trainer_for(
        model, tmp_path, dataset=Images(torch.float64), max_steps=1, per_device_train_batch_size=12,
        gradient_accumulation_steps=2, perturbation_scope="local",
    )  # fmt: skip
    batches, gradients = train_recorded(trainer)
    parts = [naive_gradient(start, b["pixel_values"], b["labels"], WEIGHTS, 0.1) for b in batches[:2]]
    expected = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    assert relative_error(gradients[0], expected) <= 1e-10


@pytest.mark.parametrize("changes", [{"sharpness": "none"}, {"focal_lambda": 0.0}, {"rho": 0.0}])
def test_without_sharpness_it_is_the_plain_trainer_bit_for_bit(changes, tmp_path):
    model = make_model("vit", "full", dtype=torch.float32)
    twin = copy.deepcopy(model)
    common = {"optim": "adamw_torch", "gradient_accumulation_steps": 2, "max_grad_norm": 1.0, "num_train_epochs": 3}
    trainer_for(model, tmp_path, max_steps=-1, **common, **changes).train()
    plain = transformers.TrainingArguments(
        str(tmp_path), per_device_train_batch_size=8, learning_rate=0.05, lr_scheduler_type="constant",
        save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, **common,
    )  # fmt: skip
    transformers.Trainer(twin, plain, train_dataset=Images()).train()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


def test_a_plain_module_that_returns_a_tuple_trains(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3 * 64, len(COUNTS))

        def forward(self, pixel_values):
            return (self.layer(pixel_values.flatten(1)),)

    trainer = trainer_for(Net(), tmp_path, max_steps=30)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])


def test_logs_hold_the_sharpness_beside_the_loss(tmp_path):
    trainer = trainer_for(make_model("vit", "lora", dtype=torch.float32), tmp_path)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 4
    for entry in logs:
        assert entry["rho"] == 0.1
        assert entry["perturbation_norm"] == pytest.approx(0.1, rel=1e-4)
        assert entry["sharpness"] > 0
        assert entry["skipped_perturbations"] == 0
    metrics = trainer.evaluate()
    assert {"eval_accuracy", "eval_mean_class_accuracy", "eval_few"} <= set(metrics)
    assert "rho" not in trainer.state.log_history[-1]


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(backbone, tuning, tmp_path):
    common = {"max_steps": 8, "optim": "adamw_torch", "lr_scheduler_type": "cosine"}
    whole = make_model(backbone, tuning, dtype=torch.float32)
    trainer_for(whole, tmp_path / "whole", **common).train()
    first = make_model(backbone, tuning, dtype=torch.float32)
    trainer_for(first, tmp_path / "cut", save_strategy="steps", save_steps=5, **common).train()
    resumed = make_model(backbone, tuning, seed=9, dtype=torch.float32)
    if tuning == "lora":  # the checkpoint holds what was trained; the frozen backbone is the same one
        resumed.load_state_dict({n: p for n, p in whole.state_dict().items() if "lora" not in n}, strict=False)
    trainer_for(resumed, tmp_path / "cut", **common).train(str(tmp_path / "cut" / "checkpoint-5"))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    model = make_model("vit", "full", dtype=torch.float32)
    trainer = trainer_for(
        model, tmp_path, learning_rate=5.0, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="loss",
    )  # fmt: skip
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    assert losses[-1] > min(losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.parametrize("cut_at", [None, 2])
def test_training_stops_where_nothing_gets_better_also_when_it_was_resumed(cut_at, tmp_path):
    common = {
        "learning_rate": 0.0, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "loss", "early_stopping_patience": 3, "max_steps": 9,
    }  # fmt: skip
    checkpoint = None
    if cut_at is not None:
        trainer = trainer_for(make_model("vit", "full", dtype=torch.float32), tmp_path, **common)
        trainer.add_callback(StopsAt(cut_at))
        trainer.train()
        checkpoint = str(tmp_path / f"checkpoint-{cut_at}")
    trainer = trainer_for(make_model("vit", "full", dtype=torch.float32), tmp_path, **common)
    trainer.train(checkpoint)
    assert trainer.state.global_step == 1 + 3
    with pytest.raises(ValueError, match="early_stopping_patience is 3, which waits for a better checkpoint"):
        arguments(tmp_path, early_stopping_patience=3)


class StopsAt(transformers.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


def test_bfloat16_autocast_stays_close_to_float32(tmp_path):
    gradients = []
    for bf16 in (False, True):
        model = make_model("vit", "lora", dtype=torch.float32)
        trainer = trainer_for(model, tmp_path, max_steps=1, per_device_train_batch_size=24, bf16=bf16)
        recorded = Recorded(model)
        trainer.add_callback(recorded)
        trainer.train()
        gradients.append(recorded.gradients[0])
        assert trainer.sharpness_step.separate_reason is None
        assert all(p.dtype == torch.float32 for p in model.parameters())
    assert 1e-5 < relative_error(gradients[1], gradients[0]) < 0.05


def test_label_smoothing_reaches_the_per_sample_loss(tmp_path):
    model = make_model("vit", "lora", dtype=torch.float64)
    twin = copy.deepcopy(model)
    trainer = trainer_for(
        model, tmp_path, dataset=Images(torch.float64), sharpness="none", max_steps=1,
        per_device_train_batch_size=24, label_smoothing_factor=0.2,
    )  # fmt: skip
    recorded = Recorded(model)
    trainer.add_callback(recorded)
    trainer.train()
    data = Images(torch.float64)
    logits = twin(pixel_values=data.images).logits
    nn.functional.cross_entropy(logits, torch.tensor(data.targets), label_smoothing=0.2).backward()
    expected = {name: p.grad for name, p in twin.named_parameters() if p.requires_grad}
    assert relative_error(recorded.gradients[0], expected) <= 1e-10


def test_a_loss_function_of_the_users_own(tmp_path):
    def loss(outputs, labels):
        return losses_of(lambda pixel_values: outputs, None, labels) * 3

    model = make_model("vit", "lora", dtype=torch.float32)
    args = arguments(tmp_path, max_steps=1)
    trainer = FocalSAMTrainer(model, args, train_dataset=Images(), compute_loss_func=loss)
    trainer.train()
    other = trainer_for(make_model("vit", "lora", dtype=torch.float32), tmp_path, max_steps=1)
    other.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(3 * other.state.log_history[0]["loss"], rel=1e-4)
    reduced = FocalSAMTrainer(
        make_model("vit", "lora", dtype=torch.float32), args, train_dataset=Images(),
        compute_loss_func=lambda outputs, labels: nn.functional.cross_entropy(outputs.logits, labels),
    )  # fmt: skip
    with pytest.raises(ValueError, match="return one loss per sample"):
        reduced.train()


class Relabelled(Images):
    def __init__(self, targets):
        super().__init__()
        self.targets = targets


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Relabelled([0, 1, 2, 3] * 6), "Class 4 has no training sample"),
        (Relabelled([0, 1, 2, 3, 4, 5] * 4), r"Row 5 of the training set has the label 5, outside 0\.\.4"),
        (Relabelled([0, 1, 2, 3, 4, -1] * 4), r"Row 5 of the training set has the label -1"),
    ],
    ids=["empty class", "too large", "negative"],
)
def test_bad_labels_are_refused_before_training(dataset, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_for(make_model("vit", "lora", dtype=torch.float32), tmp_path, dataset=dataset)


def test_class_counts_of_another_length_are_refused(tmp_path):
    with pytest.raises(ValueError, match="class_counts has 3 entries and the model 5 classes"):
        FocalSAMTrainer(make_model("vit", "lora"), arguments(tmp_path), class_counts=[3, 2, 1])


def test_data_parallel_is_refused_with_the_remedy(tmp_path):
    model = nn.DataParallel(make_model("vit", "lora", dtype=torch.float32))
    with pytest.raises(ValueError, match="accelerate launch"):
        trainer_for(model, tmp_path)


def test_the_training_set_is_told_the_epoch(tmp_path):
    class Epochs(Images):
        def __init__(self):
            super().__init__()
            self.epochs = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

    dataset = Epochs()
    trainer = trainer_for(make_model("vit", "lora", dtype=torch.float32), tmp_path, dataset=dataset, max_steps=7)
    trainer.callback_handler.on_epoch_begin(trainer.args, transformers.TrainerState(epoch=5.0), trainer.control)
    assert dataset.epochs == [5]  # by the Trainer itself, which Accelerate does not do with several processes
    trainer.train()
    assert sorted(set(dataset.epochs)) == [0, 1, 2, 5]


def test_plain_training_arguments_are_refused(tmp_path):
    args = transformers.TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(TypeError, match="args is a TrainingArguments; use FocalSAMTrainingArguments"):
        FocalSAMTrainer(make_model("vit", "lora", dtype=torch.float32), args, train_dataset=Images())


def test_given_class_counts_are_used_instead_of_counting(tmp_path):
    trainer = FocalSAMTrainer(
        make_model("vit", "lora", dtype=torch.float32), arguments(tmp_path), train_dataset=Images(),
        class_counts=[50, 40, 30, 20, 10],
    )  # fmt: skip
    trainer.train()
    expected = class_weights("focal_sam", [50, 40, 30, 20, 10], {"gamma": 1.5, "lam": 0.7})
    assert torch.equal(trainer.sharpness_step.class_weights, expected)


def test_trainer_state_is_written_as_json(tmp_path):
    trainer = trainer_for(
        make_model("vit", "lora", dtype=torch.float32), tmp_path, save_strategy="steps", save_steps=4
    )
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-4" / "trainer_state.json").read_text())
    assert state["log_history"][0]["perturbation_norm"] == pytest.approx(0.1, rel=1e-4)


# ---- schedules, cheaper steps, CC-SAM, gradients that are not finite ----


def test_rho_follows_its_schedule(tmp_path):
    courses = {
        "constant": [0.1, 0.1, 0.1, 0.1],
        "linear": [0.02, 0.04, 0.06, 0.08],
        "step": [0.02, 0.02, 0.1, 0.1],
    }
    for schedule, course in courses.items():
        model = make_model("vit", "lora", dtype=torch.float32)
        trainer = trainer_for(model, tmp_path, rho_schedule=schedule, rho_initial=0.02)
        trainer.train()
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert [entry["rho"] for entry in logs] == pytest.approx(course)
        assert [entry["perturbation_norm"] for entry in logs] == pytest.approx(course, rel=1e-4)


def test_a_step_schedule_from_zero_begins_with_plain_training(tmp_path):
    common = {"dataset": Images(torch.float64), "per_device_train_batch_size": 24, "max_steps": 4}
    models = [make_model("vit", "lora") for _ in range(2)]
    recorded = []
    for model, changes in zip(models, ({"rho_schedule": "step"}, {"sharpness": "none"}), strict=True):
        trainer = trainer_for(model, tmp_path, **common, **changes)
        recorded.append(Recorded(model))
        trainer.add_callback(recorded[-1])
        trainer.train()
    late, plain = (r.gradients for r in recorded)
    assert all(relative_error(a, b) == 0 for a, b in zip(late[:2], plain[:2], strict=True))
    assert relative_error(late[2], plain[2]) > 1e-4


CARRIED = {
    "interval": {"ascent_interval": 4},
    "friendly": {"ascent": "friendly"},
    "momentum": {"ascent": "momentum", "perturb": "merged"},
    "gaussian": {"ascent": "gaussian", "perturb": "norms"},
    "momentum in one pass": {"ascent": "momentum", "evaluation": "one_pass"},
    "gaussian in one pass": {"ascent": "gaussian", "evaluation": "one_pass", "gradient_accumulation_steps": 2},
}


@pytest.mark.parametrize("choice", CARRIED)
def test_another_perturbation_resumes_bit_for_bit(choice, tmp_path):
    common = {"max_steps": 9, "optim": "adamw_torch", **CARRIED[choice]}
    whole = make_model("vit", "lora", dtype=torch.float32)
    trainer = trainer_for(whole, tmp_path / "whole", **common)
    trainer.train()
    exact = make_model("vit", "lora", dtype=torch.float32)
    trainer_for(exact, tmp_path / "exact", max_steps=9, optim="adamw_torch").train()
    assert not all(torch.equal(p, q) for p, q in zip(whole.parameters(), exact.parameters(), strict=True))
    trainer_for(
        make_model("vit", "lora", dtype=torch.float32), tmp_path / "cut", save_strategy="steps", save_steps=6, **common
    ).train()
    resumed = make_model("vit", "lora", seed=9, dtype=torch.float32)
    resumed.load_state_dict({n: p for n, p in whole.state_dict().items() if "lora" not in n}, strict=False)
    trainer_for(resumed, tmp_path / "cut", **common).train(str(tmp_path / "cut" / "checkpoint-6"))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_cc_sam_trains_on_its_own_loss(tuning, tmp_path):
    model = make_model("vit", tuning)
    start = copy.deepcopy(model)
    trainer = trainer_for(
        model, tmp_path, dataset=Images(torch.float64), sharpness="cc_sam", max_steps=2, cc_sam_ratio=0.4,
        per_device_train_batch_size=12, gradient_accumulation_steps=2,
    )  # fmt: skip
    batches, gradients = train_recorded(trainer)
    cc_sam = ClassConditionalSAM(start, class_counts=[10, 6, 4, 3, 1], rho=0.1, ratio=0.4)
    start.zero_grad()
    for batch in batches[:2]:
        with cc_sam.watch():
            losses = cc_sam.losses(
                start(pixel_values=batch["pixel_values"]).logits, batch["labels"],
                lambda z, y=batch["labels"]: nn.functional.cross_entropy(z, y, reduction="none"),
            )  # fmt: skip
        (losses.sum() / 24).backward()
    expected = {name: p.grad for name, p in start.named_parameters() if p.requires_grad and p.grad is not None}
    assert relative_error(gradients[0], expected) <= 1e-10
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert all(entry["perturbation_norm"] > 0 and entry["rho"] == 0.1 for entry in logs)
    trainer.evaluate()


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [({"bf16": True}, 0.05), ({"torch_compile": True, "torch_compile_backend": "aot_eager"}, 1e-6)],
    ids=["bf16", "compiled"],
)
def test_cc_sam_finds_the_classifier_under_autocast_and_in_a_compiled_model(changes, tolerance, tmp_path):
    gradients = []
    for settings in ({}, changes):
        model = make_model("vit", "lora", dtype=torch.float32)
        trainer = trainer_for(model, tmp_path, sharpness="cc_sam", max_steps=1, rho=1.0, **settings)
        gradients.append(Recorded(model))
        trainer.add_callback(gradients[-1])
        trainer.train()
    torch._dynamo.reset()
    assert relative_error(gradients[1].gradients[0], gradients[0].gradients[0]) <= tolerance


class Poisoned(Images):
    """The second batch of eight holds an image that is not finite."""

    def __getitem__(self, index):
        item = super().__getitem__(index)
        return {**item, "pixel_values": item["pixel_values"] * (float("nan") if index == 12 else 1)}


class InOrder(FocalSAMTrainer):
    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


@pytest.mark.parametrize("sharpness", ["none", "focal_sam", "cc_sam"])
def test_a_step_whose_gradient_is_not_finite_is_skipped_counted_and_logged(sharpness, tmp_path, caplog):
    model = make_model("vit", "lora", dtype=torch.float32)
    weights = []

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            weights.append([p.detach().clone() for p in model.parameters() if p.requires_grad])

    args = arguments(tmp_path, sharpness=sharpness, max_steps=3, optim="adamw_torch", max_grad_norm=1.0)
    trainer = InOrder(model, args, train_dataset=Poisoned(), callbacks=[Watch()])
    trainer.train()
    assert all(torch.equal(p, q) for p, q in zip(weights[0], weights[1], strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(weights[1], weights[2], strict=True))
    assert all(torch.isfinite(p).all() for p in weights[2])
    assert [entry["skipped_steps"] for entry in trainer.state.log_history if "loss" in entry] == [0, 1, 1]
    assert [r.getMessage() for r in caplog.records if "is skipped" in r.getMessage()] == [
        "Step 2 is skipped: its gradient is not finite; the learning rate may be too high."
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rho_schedule": "wave"}, "rho_schedule is 'wave'; choose one of constant"),
        ({"rho_initial": -1.0}, "rho_initial is -1.0"),
        ({"perturb": "heads"}, "perturb is 'heads'; choose one of trained, norms, merged"),
        ({"ascent": "up"}, "ascent is 'up'; choose one of gradient"),
        ({"evaluation": "half"}, "evaluation is 'half'; choose one of two_point"),
        ({"ascent": "momentum", "perturbation_scope": "local"}, "set it to 'global'"),
        ({"ascent_interval": 0}, "ascent_interval is 0"),
        ({"ascent_decay": 1.0}, "ascent_decay is 1.0"),
        ({"ascent": "friendly", "friendly_sigma": -1.0}, "friendly_sigma is -1.0"),
        ({"evaluation": "one_pass"}, "set ascent to 'momentum' or 'gaussian'"),
        ({"evaluation": "one_pass", "ascent": "friendly"}, "set ascent to 'momentum' or 'gaussian'"),
        ({"adaptive_rho": True, "ascent": "gaussian"}, "ascent is 'gaussian'; set it to false"),
        ({"adaptive_rho": True, "perturb": "merged"}, "perturb is 'merged'"),
        ({"perturb": "merged", "torch_compile": True}, "torch_compile is True; set it to False, or perturb"),
        ({"evaluation": "one_pass", "ascent": "gaussian", "torch_compile": True}, "or evaluation to 'two_point'"),
        ({"sharpness": "cc_sam", "ascent_interval": 2}, "leave ascent_interval at 1"),
        ({"sharpness": "cc_sam", "perturb": "norms"}, "leave perturb at 'trained'"),
        ({"sharpness": "cc_sam", "cc_sam_ratio": 2.0}, "cc_sam_ratio is 2.0"),
    ],
)
def test_bad_settings_are_refused_before_training(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)
