"""`FocalSAM` in hand-written loops."""

import copy

import pytest
import pytorch_optimizer
import torch
from accelerate import Accelerator
from lightning import LightningModule, Trainer
from models import COUNTS, losses_of, make_batch, make_model, naive_gradient, relative_error
from torch.utils.data import DataLoader, TensorDataset

from ft_focalsam import FocalSAM, class_weights

WEIGHTS = class_weights("focal_sam", COUNTS, {"gamma": 1.5, "lam": 0.7})
BASES = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=0.01),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.01),
}


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("base", BASES)
def test_updates_equal_the_base_optimizer_on_the_naive_gradient(base):
    model = make_model("vit", "lora")
    twin = copy.deepcopy(model)
    optimizer = FocalSAM(BASES[base](trained(model)), model, class_counts=COUNTS, rho=0.1, gamma=1.5, lam=0.7)
    reference = BASES[base](trained(twin))
    for seed in range(5):
        images, labels = make_batch(seed=seed)
        loss = optimizer.step(lambda x=images, y=labels: losses_of(model, x, y), labels=labels)
        assert not loss.requires_grad
        gradient = naive_gradient(twin, images, labels, WEIGHTS, 0.1)
        torch.testing.assert_close(loss, losses_of(twin, images, labels).mean().detach(), rtol=1e-10, atol=0)
        for name, p in twin.named_parameters():
            p.grad = gradient.get(name)
        reference.step()
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("adaptive", [False, True])
def test_one_weight_for_all_classes_gives_the_updates_of_sam_in_pytorch_optimizer(adaptive):
    model = make_model("vit", "full")
    twin, start = copy.deepcopy(model), {name: p.detach().clone() for name, p in model.named_parameters()}
    sgd = {"lr": 0.1, "momentum": 0.9}
    ours = FocalSAM(
        torch.optim.SGD(trained(model), **sgd), model, class_weights=torch.ones(5), rho=0.1, adaptive=adaptive
    )
    theirs = pytorch_optimizer.SAM(trained(twin), torch.optim.SGD, rho=0.1, adaptive=adaptive, **sgd)
    for seed in range(4):
        images, labels = make_batch(seed=seed)

        def closure(x=images, y=labels):
            theirs.zero_grad()
            losses_of(twin, x, y).mean().backward()

        closure()
        theirs.step(closure)
        ours.step(lambda x=images, y=labels: losses_of(model, x, y), labels=labels)
    moved, expected = ({name: p.detach() - start[name] for name, p in one.named_parameters()} for one in (model, twin))
    assert relative_error(moved, expected) <= 1e-6  # their norm is float32


@pytest.mark.parametrize("settings", [{"lam": 0.0}, {"rho": 0.0}])
def test_without_sharpness_it_is_the_base_optimizer_bit_for_bit(settings):
    model = make_model("vit", "full", dtype=torch.float32)
    twin = copy.deepcopy(model)
    optimizer = FocalSAM(BASES["adamw"](trained(model)), model, class_counts=COUNTS, **settings)
    reference = BASES["adamw"](trained(twin))
    for seed in range(3):
        images, labels = make_batch(seed=seed, dtype=torch.float32)
        optimizer.step(lambda x=images, y=labels: losses_of(model, x, y), labels=labels)
        reference.zero_grad()
        losses_of(twin, images, labels).mean().backward()
        reference.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("base", BASES)
def test_training_goes_on_from_a_saved_state(base, tmp_path):
    def loop(model, optimizer, scheduler, seeds):
        for seed in seeds:
            images, labels = make_batch(seed=seed)
            optimizer.step(lambda x=images, y=labels: losses_of(model, x, y), labels=labels)
            scheduler.step()

    def build(model):
        optimizer = FocalSAM(BASES[base](trained(model)), model, class_counts=COUNTS, rho=0.1)
        return optimizer, torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)

    model = make_model("vit", "lora")
    optimizer, scheduler = build(model)
    loop(model, optimizer, scheduler, range(4))
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
    torch.save(state, tmp_path / "state.pt")
    loop(model, optimizer, scheduler, range(4, 8))

    resumed = make_model("vit", "lora", seed=5)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.load_state_dict(state["model"])
    optimizer, scheduler = build(resumed)
    optimizer.load_state_dict(state["optimizer"])
    scheduler.load_state_dict(state["scheduler"])
    loop(resumed, optimizer, scheduler, range(4, 8))
    for p, q in zip(model.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_rho_is_read_from_the_parameter_groups_in_every_step():
    model = make_model("vit", "lora")
    optimizer = FocalSAM(BASES["sgd"](trained(model)), model, class_counts=COUNTS, rho=0.1)
    images, labels = make_batch()
    for rho in (0.1, 0.02):
        for group in optimizer.param_groups:
            group["rho"] = rho
        optimizer.step(lambda: losses_of(model, images, labels), labels=labels)
        assert optimizer.sharpness_step.statistics.pop()["perturbation_norm"] == pytest.approx(rho)
    optimizer.param_groups[0]["rho"] = -1.0
    with pytest.raises(ValueError, match="rho is -1"):
        optimizer.step(lambda: losses_of(model, images, labels), labels=labels)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "either class_counts or class_weights"),
        ({"class_counts": COUNTS, "class_weights": WEIGHTS}, "either class_counts or class_weights"),
        ({"class_counts": COUNTS, "rho": -0.1}, "rho is -0.1"),
        ({"class_counts": COUNTS, "gamma": -1.0}, "gamma is -1.0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    model = make_model("vit", "lora")
    with pytest.raises(ValueError, match=message):
        FocalSAM(BASES["sgd"](trained(model)), model, **settings)


# ---- the loops of the class's docstring ----

STEPS = 5


def batches():
    return [make_batch(seed=seed) for seed in range(STEPS)]


def focal_sam_for(model, base="adamw"):
    return FocalSAM(BASES[base](trained(model)), model, class_counts=COUNTS, rho=0.1, gamma=1.5, lam=0.7)


def closure_loop(model):
    optimizer = focal_sam_for(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for x, y in batches():
        optimizer.step(lambda x=x, y=y: losses_of(model, x, y), labels=y)
        scheduler.step()
    return optimizer


def loop_without_closure(model):
    optimizer = focal_sam_for(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    for x, y in batches():
        optimizer.zero_grad()
        with optimizer.first_pass(y):
            optimizer.reduce(losses_of(model, x, y)).backward()
        with optimizer.second_pass():
            optimizer.reduce(losses_of(model, x, y)).backward()
        optimizer.step()
        scheduler.step()
    return optimizer


def accelerate_loop(model):
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(model)
    focal_sam = focal_sam_for(model)
    scheduler = torch.optim.lr_scheduler.StepLR(focal_sam, step_size=2, gamma=0.5)
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    loader = DataLoader(TensorDataset(x, y), batch_size=len(x) // STEPS)
    optimizer, loader, scheduler = accelerator.prepare(focal_sam, loader, scheduler)
    for x, y in loader:
        optimizer.zero_grad()
        with focal_sam.first_pass(y):
            accelerator.backward(focal_sam.reduce(losses_of(model, x, y)))
        with focal_sam.second_pass():
            accelerator.backward(focal_sam.reduce(losses_of(model, x, y)))
        optimizer.step()
        scheduler.step()
    return focal_sam


class LightningLoop(LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.automatic_optimization = False

    def configure_optimizers(self):
        optimizer = focal_sam_for(self.model)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)]

    def training_step(self, batch, _):
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        with optimizer.first_pass(y):
            self.manual_backward(optimizer.reduce(losses_of(self.model, x, y)))
        with optimizer.second_pass():
            self.manual_backward(optimizer.reduce(losses_of(self.model, x, y)))
        optimizer.step()
        self.lr_schedulers().step()


def lightning_loop(model):
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=1, accelerator="cpu", enable_model_summary=False, **quiet)
    module = LightningLoop(model)
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=len(x) // STEPS))
    return module.optimizers().optimizer


@pytest.mark.parametrize("loop", [loop_without_closure, accelerate_loop, lightning_loop], ids=lambda f: f.__name__)
def test_every_loop_trains_to_the_same_weights(loop):
    model = make_model("vit", "lora")
    twin = copy.deepcopy(model)
    closure_loop(twin)
    optimizer = loop(model)
    assert optimizer.sharpness_step.backward_passes == 1
    for p, q in zip(trained(model), trained(twin), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_batches_accumulate_without_a_closure():
    model = make_model("vit", "lora")
    optimizer = focal_sam_for(model, "sgd")
    images, labels = make_batch(8)
    for _ in range(2):  # the first step compares, the second trusts
        expected = naive_gradient(model, images, labels, WEIGHTS, 0.1)
        optimizer.zero_grad()
        parts = list(zip(images.chunk(2), labels.chunk(2), strict=True))
        for x, y in parts:
            with optimizer.first_pass(y):
                optimizer.reduce(losses_of(model, x, y), count=8).backward()
        for index, (x, y) in enumerate(parts):
            with optimizer.second_pass(index):
                optimizer.reduce(losses_of(model, x, y), count=8).backward()
        actual = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        assert relative_error(actual, expected) <= 1e-10
        optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_cleared_as_asked(set_to_none):
    model = make_model("vit", "lora")
    optimizer = focal_sam_for(model)
    closure_step(optimizer, model)
    optimizer.zero_grad(set_to_none=set_to_none)
    gradients = [p.grad for p in trained(model)]
    assert all(g is None for g in gradients) if set_to_none else all(g is not None and not g.any() for g in gradients)
    before = [p.detach().clone() for p in trained(model)]
    closure_step(optimizer, model)
    assert any(not torch.equal(p, q) for p, q in zip(trained(model), before, strict=True))


def closure_step(optimizer, model, factor=1.0):
    images, labels = make_batch()
    return optimizer.step(lambda: losses_of(model, images, labels) * factor, labels=labels)


def test_a_step_on_a_gradient_that_is_not_finite_is_skipped_and_counted():
    model = make_model("vit", "lora")
    optimizer = focal_sam_for(model)
    closure_step(optimizer, model)
    before = [p.detach().clone() for p in trained(model)]
    state = copy.deepcopy(optimizer.base_optimizer.state_dict())
    closure_step(optimizer, model, factor=float("nan"))
    assert all(torch.equal(p, q) for p, q in zip(trained(model), before, strict=True))
    assert str(optimizer.base_optimizer.state_dict()) == str(state)
    statistics = optimizer.sharpness_step.statistics.pop()
    assert statistics["skipped_steps"] == statistics["skipped_perturbations"] == 1
    closure_step(optimizer, model)
    assert not all(torch.equal(p, q) for p, q in zip(trained(model), before, strict=True))


def test_without_sharpness_torchs_own_closure_is_run_once_before_the_base_optimizer():
    model = make_model("vit", "lora")
    twin = copy.deepcopy(model)
    images, labels = make_batch()

    def closure(model, optimizer):
        optimizer.zero_grad()
        loss = losses_of(model, images, labels).mean()
        loss.backward()
        return loss

    optimizer = FocalSAM(BASES["adamw"](trained(model)), model, class_counts=COUNTS, lam=0.0)
    plain = BASES["adamw"](trained(twin))
    for _ in range(2):
        assert float(optimizer.step(lambda: closure(model, optimizer))) == float(
            plain.step(lambda: closure(twin, plain))
        )
    assert all(torch.equal(p, q) for p, q in zip(trained(model), trained(twin), strict=True))


def test_an_interval_without_closure_is_refused():
    model = make_model("vit", "lora")
    optimizer = FocalSAM(BASES["sgd"](trained(model)), model, class_counts=COUNTS, ascent_interval=2)
    with pytest.raises(ValueError, match="ascent_interval 2 needs a closure"), optimizer.first_pass(torch.tensor([0])):
        pass


@pytest.mark.slow
def test_half_precision_weights_collect_their_sums_in_float32():
    """A bfloat16 model whose gradient of L_c comes from 32 accumulated batches: no more rounding than from one."""
    model = make_model("vit", "lora", dtype=torch.bfloat16)
    optimizer = FocalSAM(torch.optim.SGD(trained(model), lr=0.0), model, class_counts=COUNTS, rho=0.1)
    images, labels = make_batch(64, dtype=torch.bfloat16)
    for _ in range(2):
        optimizer.zero_grad()
        parts = list(zip(images.chunk(32), labels.chunk(32), strict=True))
        for x, y in parts:
            with optimizer.first_pass(y):
                optimizer.reduce(losses_of(model, x, y).float(), count=64).backward()
        collected = optimizer.sharpness_step.weighted_gradient()
        assert all(gradient.dtype == torch.float32 for gradient in collected)
        for index, (x, y) in enumerate(parts):
            with optimizer.second_pass(index):
                optimizer.reduce(losses_of(model, x, y).float(), count=64).backward()
        optimizer.step()
    exact = copy.deepcopy(model).double()
    weights = class_weights("focal_sam", COUNTS, {"gamma": 1.0, "lam": 0.8})[labels]
    losses = losses_of(exact, images.double(), labels)
    expected = torch.autograd.grad((losses * weights).mean(), trained(exact))
    as_named = dict(enumerate(collected)), dict(enumerate(expected))
    assert relative_error(*as_named) < 0.02
    assert optimizer.sharpness_step.separate_reason is None
