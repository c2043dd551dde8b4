"""The losses in the Focal-SAM step and in `FocalSAMTrainer`, against the paper's three backward passes."""

import copy
from functools import partial

import pytest
import torch
from sharpness.models import make_model, naive_update, relative_error, run_step
from test_losses import COUNTS, SETTINGS
from test_trainer import WEIGHTS, Images, Recorded, arguments, train_recorded, trainer_for
from torch import nn

from ft_focalsam import FocalSAMTrainer, LongTailClassifier, class_weights
from ft_focalsam.losses import loss_hyperparameters, make_loss
from ft_focalsam.sharpness import SharpnessStep
from ft_focalsam.sharpness.classifier_input import ClassifierInput

C = class_weights("focal_sam", COUNTS, {"gamma": 1.5, "lam": 0.7})
IMAGES = [10, 6, 4, 3, 1]  # of the classes in `Images`


class Net(nn.Module):
    """Two layers; the second is the classifier, and what reaches it the features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.classifier = nn.Linear(6, 8), nn.Linear(8, len(COUNTS))
        self.double()

    def forward(self, x):
        return self.classifier(self.hidden(x).tanh())


def batch(kind, *, size=10):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(size, 6, generator=generator, dtype=torch.float64)
    y = torch.randint(len(COUNTS), (size,), generator=generator)
    if kind == "hard":
        return x, y
    return x, torch.rand(size, len(COUNTS), generator=generator, dtype=torch.float64).pow(3).softmax(dim=1)


def losses_by_hand(loss, net, x, y):
    """With the features that `Net` computes, taken from inside it."""
    features = net.hidden(x).tanh()
    return loss(net.classifier(features), y, features=features, progress=0.9)


def losses_by_hook(loss, net, x, y):
    classifier_input = ClassifierInput(net)
    with classifier_input.watch():
        logits = net(x)
        return loss(logits, y, features=classifier_input.find(logits), progress=0.9)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("name", SETTINGS)
def test_the_step_with_every_loss_equals_the_naive_one(name, kind):
    """For LADE the step finds out by its comparison that one backward pass is not exact; for the others it is."""
    net, (x, y) = Net(), batch(kind)
    loss = make_loss(name, COUNTS, SETTINGS[name], drw_start=0.5)
    of_samples = y @ C if kind == "soft" else C[y]
    expected = naive_update(net, [(partial(losses_by_hand, loss, net, x, y), of_samples)], 0.1)
    step = SharpnessStep(net, C, rho=0.1)
    for _ in range(5):
        actual = run_step(step, net, x, y, losses_of=partial(losses_by_hook, loss))
        assert relative_error(actual, expected) <= 1e-10
    assert (step.separate_reason is None) == (name != "lade")
    assert step.backward_passes == (2 if name == "lade" else 1)


def test_a_step_that_is_told_of_the_interaction_needs_no_comparison():
    net, (x, y) = Net(), batch("hard")
    loss = make_loss("lade", COUNTS)
    expected = naive_update(net, [(partial(losses_by_hand, loss, net, x, y), C[y])], 0.1)
    step = SharpnessStep(net, C, rho=0.1, separate_reason="the loss makes the samples of a batch interact")
    actual = run_step(step, net, x, y, losses_of=partial(losses_by_hook, loss))
    assert relative_error(actual, expected) <= 1e-10
    assert step.separate_reason == "the loss makes the samples of a batch interact"
    assert step.backward_passes == 2


# ---- in the Trainer ----


def features_of(model, pixel_values):
    """What reaches `model.classifier`, a linear layer: by a hook of the test's own."""
    found = []
    classifier = next(m for n, m in model.named_modules() if n.endswith(("classifier", "classifier.original_module")))
    hook = classifier.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    logits = model(pixel_values=pixel_values).logits
    hook.remove()
    return logits, found[0]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_trainer_trains_with_every_loss_and_its_arguments(name, tmp_path):
    model = make_model("vit", "full")
    start = copy.deepcopy(model)
    settings = {"ib_start": 0.0} if name == "influence_balanced" else {}
    trainer = trainer_for(
        model, tmp_path, dataset=Images(torch.float64), max_steps=1, per_device_train_batch_size=24, loss=name,
        label_smoothing_factor=0.1, **{**SETTINGS[name], **settings},
    )  # fmt: skip
    batches, gradients = train_recorded(trainer)
    x, y = batches[0]["pixel_values"], batches[0]["labels"]
    loss = make_loss(name, IMAGES, {**SETTINGS[name], **settings}, label_smoothing=0.1)

    def losses():
        logits, features = features_of(start, x)
        return loss(logits, y, features=features)

    expected = naive_update(start, [(losses, WEIGHTS[y])], 0.1)
    expected = {name: torch.zeros_like(gradients[0][name]) if g is None else g for name, g in expected.items()}
    assert relative_error(gradients[0], expected) <= 1e-10
    reason = "the loss 'lade' makes the samples of a batch interact" if name == "lade" else None
    assert trainer.sharpness_step.separate_reason == reason
    assert trainer.evaluate()["eval_loss"] > 0


def test_every_hyperparameter_of_a_loss_is_a_training_argument_with_the_same_default(tmp_path):
    args = arguments(tmp_path)
    for name in SETTINGS:
        for hyperparameter, default in loss_hyperparameters(name).items():
            if hyperparameter != "ldam_scale":  # by default the head's
                assert getattr(args, hyperparameter) == default


def test_ldam_takes_the_scale_of_the_head(tmp_path):
    names = [str(k) for k in range(5)]
    for head, changes, scale in [("cosine", {}, 30.0), ("linear", {}, 1.0), ("cosine", {"ldam_scale": 7.0}, 7.0)]:
        model = LongTailClassifier.from_backbone("tiny_clip", names, head=head, head_scale=30.0)
        trainer = trainer_for(model, tmp_path, loss="ldam", **changes)
        z, y = torch.randn(6, 5, dtype=torch.float64), torch.arange(6) % 5
        expected = make_loss("ldam", IMAGES, {"ldam_scale": scale})(z, y)
        assert torch.equal(trainer._loss((z,), y, progress=0.0), expected)


def test_reweighting_starts_at_its_share_of_training_also_in_a_resumed_run(tmp_path):
    """8 steps, from the fifth on with weights; a run that is cut at the sixth resumes bit for bit."""
    common = {"max_steps": 8, "optim": "adamw_torch", "loss": "ldam", "drw_start": 0.5, "effective_number_beta": 0.9}
    models = {name: make_model("vit", "lora", dtype=torch.float32) for name in ("whole", "without", "cut", "resumed")}
    logs = {}
    for name, changes in [("whole", {}), ("without", {"drw_start": None})]:
        trainer = trainer_for(models[name], tmp_path / name, **{**common, **changes})
        trainer.train()
        logs[name] = [entry["loss"] for entry in trainer.state.log_history if "sharpness" in entry]
    same = [a == b for a, b in zip(logs["whole"], logs["without"], strict=True)]
    assert same == [True] * 4 + [False] * 4
    trainer_for(models["cut"], tmp_path / "cut", save_strategy="steps", save_steps=5, **common).train()
    trainer_for(models["resumed"], tmp_path / "cut", **common).train(str(tmp_path / "cut" / "checkpoint-5"))
    pairs = zip(models["whole"].parameters(), models["resumed"].parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_influence_balanced_in_cc_sam_and_accumulated(tuning, tmp_path):
    """Wherever the loss is computed it gets the features of its own forward pass."""
    gradients = []
    for accumulation in (1, 3):
        model = make_model("dinov2", tuning)
        trainer = trainer_for(
            model, tmp_path, dataset=Images(torch.float64), max_steps=1, loss="influence_balanced", ib_start=0.0,
            per_device_train_batch_size=24 // accumulation, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        recorded = Recorded(model)
        trainer.add_callback(recorded)
        trainer.train()
        gradients.append(recorded.gradients[0])
    assert relative_error(gradients[1], gradients[0]) <= 1e-10
    trainer = trainer_for(
        make_model("dinov2", tuning, dtype=torch.float32), tmp_path, loss="influence_balanced", ib_start=0.0,
        sharpness="cc_sam", ib_alpha=1.0,
    )  # fmt: skip
    assert trainer.train().training_loss > 0


def test_a_model_without_a_classifier_is_refused_before_anything_is_trained(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3 * 64, len(COUNTS))

        def forward(self, pixel_values):
            return (self.layer(pixel_values.flatten(1)) * 2,)

    model = Odd()
    before = copy.deepcopy(model.state_dict())
    trainer = FocalSAMTrainer(model, arguments(tmp_path, loss="influence_balanced"), train_dataset=Images())
    message = "The loss 'influence_balanced' needs the features that reach the classifier, and no module of Odd gives"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
