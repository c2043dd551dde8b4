"""`FocalSAM` in hand-written loops."""

import copy

import pytest
import torch
from models import COUNTS, losses_of, make_batch, make_model, naive_gradient

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
