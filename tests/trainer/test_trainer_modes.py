"""`FocalSAMTrainer` in the modes that a Trainer's user may switch on, against the algorithm written naively."""

import copy
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import transformers
from sharpness.models import BACKBONES, NUM_CLASSES, make_model, naive_update, relative_error
from test_trainer import Images, arguments
from torch import Tensor, nn
from torchvision.transforms import v2

from ft_focalsam import FocalSAMTrainer

pytestmark = pytest.mark.slow

COUNTS = torch.tensor([10, 6, 4, 3, 1], dtype=torch.float64)  # of `Images`
METHODS = {
    "sam": {"sharpness": "sam"},
    "imbsam": {"sharpness": "imbsam", "imbsam_eta": 5},
    "focal_sam": {"sharpness": "focal_sam", "focal_gamma": 1.5, "focal_lambda": 0.7},
    "focal_sam above 1": {"sharpness": "focal_sam", "focal_gamma": 0.5, "focal_lambda": 1.1},
}


def class_weights_of(args) -> Tensor:
    """c as in the papers."""
    return {
        "sam": torch.ones_like(COUNTS),
        "imbsam": COUNTS.lt(args.imbsam_eta).double(),
        "focal_sam": args.focal_lambda * (1 - COUNTS / COUNTS.sum()) ** args.focal_gamma,
    }[args.sharpness]


class NaiveTrainer(transformers.Trainer):
    """The Trainer on the paper's gradient: three backward passes over all batches of an optimizer step, at its end.

    They go sample by sample; with `replay`, where what a sample gets depends on the others (random masks, batch
    statistics), a micro-batch at a time, with the random numbers that one training pass draws.
    """

    def __init__(self, model, args, *, replay=False, **others):
        super().__init__(model, args, **others)
        self.replay = replay
        self.class_weights = class_weights_of(args)
        self.micro_batches: list[list] = []  # of the step under way, each in parts as `naive_update` takes them

    def training_step(self, model, inputs, num_items_in_batch=None):
        model.train()
        self.micro_batches.append(self._parts(model, **self._prepare_inputs(inputs)))
        if not self.accelerator.sync_gradients:
            return torch.tensor(0.0)
        everything = [part for parts in self.micro_batches for part in parts]
        size = sum(len(weights) for _, weights in everything)
        after = torch.get_rng_state()
        buffers = copy.deepcopy(dict(model.named_buffers()))
        for parts in self.micro_batches if self.args.perturbation_scope == "local" else [everything]:
            share = sum(len(weights) for _, weights in parts) / size
            update = naive_update(model, parts, self.args.rho, adaptive=self.args.adaptive_rho)
            for name, parameter in model.named_parameters():
                if update.get(name) is not None:
                    kept = 0 if parameter.grad is None else parameter.grad
                    parameter.grad = kept + share * update[name]
        loss = sum(losses().detach().sum() for losses, _ in everything) / size
        model.load_state_dict(buffers, strict=False)
        torch.set_rng_state(after)
        self.micro_batches.clear()
        return loss

    def _parts(self, model, pixel_values, labels):
        """(losses, c(n)) of each sample, or of the batch."""
        targets = (F.one_hot(labels, NUM_CLASSES) if labels.ndim == 1 else labels).to(pixel_values)
        weights = targets @ self.class_weights
        smoothing = self.args.label_smoothing_factor
        targets = targets * (1 - smoothing) + smoothing / NUM_CLASSES
        state = None
        if self.replay:
            state = torch.get_rng_state()
            self._losses(model, None, pixel_values, targets)  # draws the numbers, moves the running statistics
        in_a_part = len(weights) if self.replay else 1
        parts = zip(*(values.split(in_a_part) for values in (pixel_values, targets, weights)), strict=True)
        return [(partial(self._losses, model, state, x, target), c) for x, target, c in parts]

    @staticmethod
    def _losses(model, state, pixel_values, targets):
        if state is not None:
            torch.set_rng_state(state)
        outputs = model(pixel_values=pixel_values)
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        return -(targets * logits.log_softmax(dim=1)).sum(dim=1)


class Runs:
    """Runs trainers from the same start, and holds each run's weights, trainer and logs."""

    def __init__(self, folder, start: nn.Module):
        self.folder, self.start = folder, start

    def __call__(self, trainer_type, *, mixing=None, callback=None, **changes):
        own = {name: changes.pop(name) for name in ("replay", "optimizer_cls_and_kwargs") if name in changes}
        model = copy.deepcopy(self.start)
        dtype = next(model.parameters()).dtype
        common = {"perturbation_scope": "global", "max_steps": 4, **changes}
        trainer = trainer_type(
            model, arguments(self.folder, **common), train_dataset=Images(dtype), eval_dataset=Images(dtype),
            data_collator=None if mixing is None else Mixed(mixing), callbacks=callback and [callback(model)], **own,
        )  # fmt: skip
        trainer.train()
        return trainer

    def compare(self, *, tolerance=1e-10, replay=False, **changes):
        """Run both trainers and assert that they did the same; returns them."""
        actual, expected = self(FocalSAMTrainer, **changes), self(NaiveTrainer, replay=replay, **changes)
        assert self.distance(actual, expected) <= tolerance
        frozen = [name for name, p in self.start.named_parameters() if not p.requires_grad]
        before, after = dict(self.start.named_parameters()), dict(actual.model.named_parameters())
        assert all(torch.equal(before[name], after[name]) for name in frozen)
        for ours, theirs in zip(logs_of(actual), logs_of(expected), strict=True):
            for key in ("loss", "grad_norm", "learning_rate"):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-5)
        return actual, expected

    def distance(self, actual, expected) -> float:
        """How far apart the weights of two runs are, relative to how far the second one has come."""
        return relative_error(self.moved(actual), self.moved(expected))

    def moved(self, trainer) -> dict[str, Tensor]:
        start = dict(self.start.named_parameters())
        trained = {name: p.detach() for name, p in trainer.model.named_parameters() if p.requires_grad}
        return {name: p - start[name].detach() for name, p in trained.items()}


class Mixed:
    """Collator that mixes the samples of a batch; its randomness depends on the number of the batch only."""

    def __init__(self, transform):
        self.transform, self.batches = transform, 0

    def __call__(self, items):
        batch = transformers.default_data_collator(items)
        with torch.random.fork_rng([]):
            torch.manual_seed(self.batches)
            images, labels = self.transform(batch["pixel_values"], batch["labels"])
        self.batches += 1
        return {"pixel_values": images, "labels": labels.to(images.dtype)}


def logs_of(trainer) -> list[dict]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture
def runs(tmp_path):
    """`runs(backbone, tuning, **config)`: a `Runs` of a tiny model."""
    return lambda *names, **config: Runs(tmp_path, make_model(*names, **config))


ADAMW = {
    "optim": "adamw_torch", "learning_rate": 0.01, "weight_decay": 0.1, "lr_scheduler_type": "cosine",
    "warmup_steps": 2,
}  # fmt: skip


# ---- what becomes of the gradient ----


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_adamw_with_decay_a_schedule_and_clipping(backbone, tuning, method, runs):
    these = runs(backbone, tuning)
    trainer, _ = these.compare(max_grad_norm=0.05, **ADAMW, **METHODS[method])
    assert all(entry["grad_norm"] > 0.05 for entry in logs_of(trainer))
    assert len({entry["learning_rate"] for entry in logs_of(trainer)}) > 2
    assert trainer.sharpness_step.separate_reason is None


@pytest.mark.parametrize("change", [{"max_grad_norm": 0.0}, {"weight_decay": 0.0}, {"lr_scheduler_type": "constant"}])
def test_each_of_them_acts(change, runs):
    these = runs("vit", "lora")
    assert (
        these.distance(*(these(FocalSAMTrainer, **{"max_grad_norm": 0.05, **ADAMW, **c}) for c in (change, {}))) > 1e-6
    )


@pytest.mark.parametrize("method", METHODS)
def test_methods_differ_from_each_other_and_from_plain_training(method, runs):
    these = runs("clip", "lora")
    trainers = [these(FocalSAMTrainer, **METHODS[name]) for name in METHODS]
    trainers.append(these(FocalSAMTrainer, sharpness="none"))
    chosen = trainers.pop(list(METHODS).index(method))
    assert all(these.distance(other, chosen) > 1e-4 for other in trainers)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_sgd_with_momentum_and_weight_decay(backbone, runs):
    these = runs(backbone, "lora")
    momentum = (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4})
    trainer, _ = these.compare(optimizer_cls_and_kwargs=momentum)
    plain = (torch.optim.SGD, {"lr": 0.05})
    assert these.distance(these(FocalSAMTrainer, optimizer_cls_and_kwargs=plain), trainer) > 0.1


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_float32(tuning, runs):
    """Against the reference in float64."""
    these = runs("clip", tuning, dtype=torch.float32)
    actual = these(FocalSAMTrainer)
    these.start.double()
    actual.model.double()
    assert 1e-10 < these.distance(actual, these(NaiveTrainer)) <= 1e-5


# ---- the loss and its labels ----


def test_label_smoothing(runs):
    these = runs("dinov2", "lora")
    trainer, _ = these.compare(label_smoothing_factor=0.2)
    assert these.distance(these(FocalSAMTrainer), trainer) > 1e-3


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}, {"label_smoothing_factor": 0.1}], ids=str)
@pytest.mark.parametrize("mixing", [v2.MixUp, v2.CutMix])
def test_mixed_images_with_soft_labels(mixing, changes, runs):
    these = runs("vit", "lora")
    mixing = mixing(num_classes=NUM_CLASSES)
    trainer, _ = these.compare(mixing=mixing, **changes)
    assert these.distance(these(FocalSAMTrainer, **changes), trainer) > 1e-2


@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_adaptive_radius_with_focal_weights(backbone, tuning, runs):
    these = runs(backbone, tuning)
    trainer, _ = these.compare(adaptive_rho=True, rho=0.5, **METHODS["focal_sam above 1"])
    fixed = these(FocalSAMTrainer, rho=0.5, **METHODS["focal_sam above 1"])
    assert these.distance(fixed, trainer) > 1e-3


# ---- accumulation ----


def test_accumulated_batches_do_what_the_joint_batch_does(runs):
    these = runs("dinov2", "full")
    (joint, naive) = these.compare(per_device_train_batch_size=8)
    for accumulation in (2, 4):
        parts = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
        trainer, naive_trainer = these.compare(**parts)
        assert these.distance(trainer, joint) <= 1e-10
        assert these.distance(naive_trainer, naive) <= 1e-10


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_uneven_batches_and_uneven_accumulation(tuning, scope, runs):
    """24 images in batches of 5, accumulated by 2: an epoch is 5 + 5, 5 + 5, 4."""
    these = runs("clip", tuning)
    uneven = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "max_steps": 6}
    trainer, _ = these.compare(perturbation_scope=scope, max_grad_norm=0.1, **uneven, **METHODS["focal_sam above 1"])
    assert trainer.sharpness_step.separate_reason is None


@pytest.mark.parametrize("adaptive", [False, True])
def test_local_scope_perturbs_each_micro_batch_by_its_own_gradient(adaptive, runs):
    these = runs("vit", "lora")
    common = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, "adaptive_rho": adaptive}
    trainer, _ = these.compare(perturbation_scope="local", **common, **METHODS["sam"])
    assert these.distance(these(FocalSAMTrainer, **common, **METHODS["sam"]), trainer) > 1e-3


@pytest.mark.parametrize("scope", ["global", "local"])
def test_batches_without_rare_classes_take_plain_steps(scope, runs):
    """ImbSAM in micro-batches of 2: most have no class of fewer than 3 images, and are not to be perturbed."""
    these = runs("dinov2", "lora")
    common = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "max_steps": 6}
    trainer, _ = these.compare(perturbation_scope=scope, sharpness="imbsam", imbsam_eta=3, **common)
    assert 0 < logs_of(trainer)[-1]["skipped_perturbations"] < 12


# ---- how the passes are run ----


class CountsCalls(transformers.TrainerCallback):
    """Counts the forward passes of the model and of a layer in its first block."""

    def __init__(self, model):
        self.calls = {"model": 0, "layer": 0}
        block = next(m for m in model.modules() if isinstance(m, nn.ModuleList))[0]
        layer = next(m for m in block.modules() if isinstance(m, nn.Linear))
        for name, module in (("model", model), ("layer", layer)):
            module.register_forward_pre_hook(partial(self._count, name))

    def _count(self, name, *_):
        self.calls[name] += 1


class RequiresInputGradients(CountsCalls):
    """As reentrant checkpointing needs it where the first trained parameter is inside a checkpoint."""

    def __init__(self, model):
        super().__init__(model)
        model.enable_input_require_grads()


def callback_of(trainer, callback_type):
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, callback_type))


def checkpointing(reentrant):
    return {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
        "callback": RequiresInputGradients if reentrant else CountsCalls,
    }


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
@pytest.mark.parametrize("tuning", ["lora", "full"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_gradient_checkpointing(backbone, tuning, reentrant, runs):
    these = runs(backbone, tuning)
    trainer = these(FocalSAMTrainer, **checkpointing(reentrant))
    assert these.distance(trainer, these(NaiveTrainer)) <= 1e-10
    calls = callback_of(trainer, CountsCalls).calls
    assert calls["layer"] >= 2 * calls["model"] > 0  # blocks run anew in every backward pass
    assert trainer.sharpness_step.backward_passes == 1


RANDOM = {
    "drop path": ("dinov2", "full", {"drop_path_rate": 0.3}),
    "dropout": ("vit", "full", {"hidden_dropout_prob": 0.2}),
    "dropout in attention": ("vit", "full", {"attention_probs_dropout_prob": 0.2}),
    "dropout in LoRA": ("vit", "lora", {"lora_dropout": 0.3}),
    "all at once": ("dinov2", "lora", {"drop_path_rate": 0.3, "hidden_dropout_prob": 0.2, "lora_dropout": 0.3}),
}


@pytest.mark.parametrize("changes", [{}, {"gradient_accumulation_steps": 2}], ids=["", "accumulated"])
@pytest.mark.parametrize("noise", RANDOM)
def test_both_passes_draw_the_same_masks(noise, changes, runs):
    backbone, tuning, config = RANDOM[noise]
    these = runs(backbone, tuning, **config)
    states = []
    for trainer_type, replay in ((FocalSAMTrainer, {}), (NaiveTrainer, {"replay": True})):
        trainer = these(trainer_type, **changes, **replay)
        states.append(torch.get_rng_state())
        if trainer_type is FocalSAMTrainer:
            actual = trainer
    assert these.distance(actual, trainer) <= 1e-10
    assert torch.equal(*states)
    still = runs(backbone, tuning)
    assert these.distance(still(FocalSAMTrainer, **changes), trainer) > 1e-2


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_recomputed_blocks_draw_the_same_masks_too(reentrant, runs):
    backbone, tuning, config = RANDOM["all at once"]
    these = runs(backbone, tuning, **config)
    trainer = these(FocalSAMTrainer, **checkpointing(reentrant))
    assert these.distance(trainer, these(NaiveTrainer, replay=True)) <= 1e-10


def test_a_compiled_model(runs):
    these = runs("vit", "lora")
    trainer = these(FocalSAMTrainer, torch_compile=True, torch_compile_backend="aot_eager")
    assert isinstance(trainer.model_wrapped, torch._dynamo.OptimizedModule)
    assert trainer.sharpness_step.separate_reason is None
    assert these.distance(trainer, these(NaiveTrainer)) <= 1e-10
    torch._dynamo.reset()


def test_evaluation_between_the_steps(runs):
    """On a model with dropout, which evaluation switches off and training has to switch on again."""
    these = runs("vit", "lora", hidden_dropout_prob=0.2)
    trainer, _ = these.compare(replay=True, eval_strategy="steps", eval_steps=1)
    assert sum("eval_loss" in entry for entry in trainer.state.log_history) == 4


def test_training_goes_on_after_it_has_ended(runs):
    these = runs("clip", "lora")
    trainers = [these(trainer_type) for trainer_type in (FocalSAMTrainer, NaiveTrainer)]
    once = these.moved(trainers[0])
    for trainer in trainers:
        trainer.train()
    assert these.distance(*trainers) <= 1e-10
    assert relative_error(once, these.moved(trainers[0])) > 0.1


@pytest.mark.skipif(find_spec("deepspeed") is not None, reason="deepspeed is installed")
def test_deepspeed_that_is_not_installed_is_named(tmp_path):
    with pytest.raises(PackageNotFoundError, match="deepspeed"):
        arguments(tmp_path, deepspeed={"zero_optimization": {"stage": 2}})


# ---- what a model may do ----


class Branched(nn.Module):
    """A model with a branch that no step uses, and one that only those use that `even` says."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(3 * 64, 16)
        self.sometimes, self.never = nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, NUM_CLASSES)
        self.even = True
        self.double()

    def forward(self, pixel_values):
        x = self.trunk(pixel_values.flatten(1)).tanh()
        return {"logits": self.head(self.sometimes(x) if self.even else x)}


class SetsEven(transformers.TrainerCallback):
    """Sets the model's `even`, and keeps the weights before each step and after the last."""

    def __init__(self, model):
        self.model, self.weights = model, []

    def on_step_begin(self, args, state, control, **_):
        self.model.even = state.global_step % 2 == 0
        self.weights.append(copy.deepcopy(self.model.state_dict()))

    def on_train_end(self, *_, **__):
        self.weights.append(copy.deepcopy(self.model.state_dict()))


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_parameter_without_gradient_is_left_as_it_was_also_under_weight_decay(scope, tmp_path):
    these = Runs(tmp_path, Branched())
    trainer, _ = these.compare(callback=SetsEven, max_steps=6, perturbation_scope=scope, **ADAMW)
    weights = callback_of(trainer, SetsEven).weights
    for number, (before, after) in enumerate(pairwise(weights)):
        moved = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
        if number > 0:  # warming up, the first learning rate is 0
            assert moved == ({"trunk", "head", "sometimes"} if number % 2 == 0 else {"trunk", "head"})


class Normalised(nn.Module):
    """Batch statistics, which make the samples of a batch interact."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.head = nn.Linear(8, NUM_CLASSES)
        self.double()

    def forward(self, pixel_values):
        return (self.head(self.body(pixel_values).flatten(1)),)


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_batch_statistics(accumulation, scope, tmp_path):
    these = Runs(tmp_path, Normalised())
    trainer, naive = these.compare(replay=True, gradient_accumulation_steps=accumulation, perturbation_scope=scope)
    assert "BatchNorm2d" in trainer.sharpness_step.separate_reason
    buffers, start = dict(naive.model.named_buffers()), dict(these.start.named_buffers())
    assert relative_error(dict(trainer.model.named_buffers()), buffers) <= 1e-10
    assert relative_error(start, buffers) > 0.1


class Unfreezes(transformers.TrainerCallback):
    """Trains the head alone at first, and the whole model from the third step on."""

    def __init__(self, model):
        self.model = model

    def on_step_begin(self, args, state, control, **_):
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(state.global_step >= 2 or "classifier" in name)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_parameters_that_a_callback_freezes_and_unfreezes(backbone, runs):
    these = runs(backbone, "full")
    trainer, _ = these.compare(callback=Unfreezes, max_steps=6)
    assert these.distance(these(FocalSAMTrainer, max_steps=6), trainer) > 0.1


class RunsOutOfMemory(transformers.TrainerCallback):
    """Fails in the `at`-th forward pass, and in none after it, as a device that has no room for so large a batch."""

    def __init__(self, model, at):
        self.at = at
        model.register_forward_pre_hook(self._count)

    def _count(self, *_):
        self.at -= 1
        if self.at == 0:
            raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("forward_pass", [1, 2, 3], ids=["comparison", "first pass", "second pass"])
def test_a_batch_size_that_is_found_by_halving(forward_pass, runs):
    these = runs("vit", "lora")
    callback = partial(RunsOutOfMemory, at=forward_pass)
    trainer = these(FocalSAMTrainer, auto_find_batch_size=True, callback=callback)
    size = trainer._train_batch_size
    assert size < 8
    assert these.distance(trainer, these(NaiveTrainer, per_device_train_batch_size=size)) <= 1e-10
