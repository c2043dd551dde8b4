"""Mixup, CutMix and Remix: labels against loops, images against what was put in, training for real."""

import numpy as np
import pytest
import torch
from sharpness.models import make_model, naive_update, relative_error
from test_trainer import WEIGHTS, Images, arguments, train_recorded, trainer_for
from torch import nn
from transformers import default_data_collator

from ft_focalsam import FocalSAMTrainer
from ft_focalsam.data import Mixing, MixingCollator

COUNTS = [10, 6, 4, 3, 1]
ITEMS = [Images()[index] for index in (0, 12, 23, 17, 3, 21, 11)]
LABELS = [item["labels"] for item in ITEMS]


def mixed(mixing: Mixing, *, seed: int = 0, items=ITEMS) -> dict:
    return MixingCollator(default_data_collator, mixing, COUNTS, seed=seed)(items)


def shares_in(images: torch.Tensor, *, by_area: bool) -> list[dict[int, float]]:
    """For each mixed image: item -> its share, found by least squares (mixup) or by counting pixels (CutMix)."""
    originals = torch.stack([item["pixel_values"] for item in ITEMS]).flatten(1).double()
    found = []
    for image in images.flatten(1).double():
        if by_area:
            shares = (image == originals).double().mean(dim=1)
        else:
            shares = torch.linalg.lstsq(originals.T, image[:, None]).solution[:, 0]
        found.append({index: float(share) for index, share in enumerate(shares) if share > 1e-6})
    return found


def expected_labels(shares, *, kappa: float = np.inf, tau: float = 0.0) -> list[list[float]]:
    """Remix's labels as a loop; those of mixup and CutMix where kappa is infinite."""
    rows = []
    for index, parts in enumerate(shares):
        lam = parts.get(index, 0.0)
        (partner,) = set(parts) - {index} or {index}
        i, j = LABELS[index], LABELS[partner]
        if COUNTS[i] / COUNTS[j] >= kappa and lam < tau:
            lam = 0.0
        elif COUNTS[i] / COUNTS[j] <= 1 / kappa and 1 - lam < tau:
            lam = 1.0
        row = [0.0] * len(COUNTS)
        row[i] += lam
        row[j] += 1 - lam
        rows.append(row)
    return rows


@pytest.mark.parametrize("remix", [False, True], ids=["plain", "remix"])
@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_are_what_the_images_hold(kind, remix):
    settings = {"kappa": 2.0, "tau": 0.7} if remix else {}
    changed = 0
    for seed in range(20):
        mixing = Mixing(**{f"{kind}_alpha": 1.0}, remix=remix, **settings)
        batch = mixed(mixing, seed=seed)
        shares = shares_in(batch["pixel_values"], by_area=kind == "cutmix")
        assert all(sum(parts.values()) == pytest.approx(1, abs=1e-5) for parts in shares)
        expected = torch.tensor(expected_labels(shares, **settings))
        torch.testing.assert_close(batch["labels"], expected, rtol=0, atol=1e-5)
        changed += not torch.allclose(expected, torch.tensor(expected_labels(shares)))
    assert (changed > 5) == remix


def test_remix_in_its_three_cases():
    shares = torch.tensor([[0.4, 0.6, 0], [0, 0.4, 0.6], [0.6, 0, 0.4]])
    actual = Mixing(mixup_alpha=1.0, remix=True, kappa=3.0, tau=0.5).mixed_labels(
        shares, torch.tensor([0, 3, 4]), torch.tensor([10.0, 6, 4, 3, 1])
    )
    # 10 / 3 >= 3 and 0.4 < 0.5: all of it the rarer; 3 / 1 likewise; 1 / 10 <= 1/3 but 0.6 >= 0.5: as mixed
    expected = torch.tensor([[0, 0, 0, 1.0, 0], [0, 0, 0, 0, 1], [0.6, 0, 0, 0, 0.4]])
    torch.testing.assert_close(actual, expected)
    other = Mixing(mixup_alpha=1.0, remix=True, kappa=3.0, tau=0.7)
    actual = other.mixed_labels(shares, torch.tensor([0, 3, 4]), torch.tensor([10.0, 6, 4, 3, 1]))
    torch.testing.assert_close(actual[2], torch.tensor([0, 0, 0, 0, 1.0]))


def test_both_kinds_take_turns():
    cut = 0
    for seed in range(60):
        images = mixed(Mixing(mixup_alpha=1.0, cutmix_alpha=1.0), seed=seed)["pixel_values"]
        originals = torch.stack([item["pixel_values"] for item in ITEMS])
        cut += bool(((images == originals) | (images == originals.roll(1, 0))).all())
    assert 15 < cut < 45


def test_the_mixture_follows_from_seed_and_batch_and_leaves_the_random_state():
    mixing = Mixing(mixup_alpha=0.4)
    torch.manual_seed(7)
    first, state = mixed(mixing), torch.get_rng_state()
    torch.manual_seed(8)
    again = mixed(mixing)
    assert torch.equal(first["pixel_values"], again["pixel_values"]) and torch.equal(first["labels"], again["labels"])
    torch.manual_seed(7)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first["labels"], mixed(mixing, seed=1)["labels"])
    other = [ITEMS[-1], *ITEMS[:-1]]
    assert float(mixed(mixing, items=other)["labels"].max()) != float(first["labels"].max())


def test_a_batch_of_one_is_left_as_it_is():
    batch = mixed(Mixing(cutmix_alpha=1.0, remix=True), items=ITEMS[1:2])
    assert torch.equal(batch["pixel_values"][0], ITEMS[1]["pixel_values"])
    assert batch["labels"].tolist() == [[0, 1, 0, 0, 0]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup_alpha": -0.1}, r"mixup_alpha is -0\.1; set it to 0 \(off\) or more"),
        ({"cutmix_alpha": float("nan")}, "cutmix_alpha is nan"),
        ({"mixup_alpha": 1.0, "remix_kappa": 0.5}, r"remix_kappa is 0\.5; set it to a ratio of class counts"),
        ({"mixup_alpha": 1.0, "remix_tau": 2.0}, r"remix_tau is 2\.0; set it to a share"),
        ({"remix": True}, "remix changes the labels of mixed images; set mixup_alpha or cutmix_alpha above 0"),
        ({"mixup_alpha": 1.0, "sharpness": "cc_sam"}, "cc_sam perturbs by one class per image; set mixup_alpha and"),
    ],
)
def test_bad_settings_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **settings)


# ---- in the Trainer ----


@pytest.mark.parametrize("loss", ["cross_entropy", "ldam"])
def test_the_step_on_mixed_batches_equals_the_naive_one(loss, tmp_path):
    model = make_model("vit", "lora")
    start = make_model("vit", "lora")
    trainer = trainer_for(
        model, tmp_path, dataset=Images(torch.float64), max_steps=1, mixup_alpha=1.0, cutmix_alpha=1.0, remix=True,
        remix_kappa=1.5, per_device_train_batch_size=24, loss=loss, learning_rate=0.0,
    )  # fmt: skip
    batches, gradients = train_recorded(trainer)
    mixing = Mixing(1.0, 1.0, remix=True, kappa=1.5)
    batch = MixingCollator(lambda items: items, mixing, COUNTS, seed=42)(batches[0])
    assert (batch["labels"].max(dim=1).values < 1).any()
    per_sample = trainer.args.make_loss(COUNTS)

    def losses():
        return per_sample(start(pixel_values=batch["pixel_values"]).logits, batch["labels"])

    expected = naive_update(start, [(losses, batch["labels"].double() @ WEIGHTS)], 0.1)
    assert relative_error(gradients[0], expected) <= 1e-10
    assert {"eval_accuracy", "eval_few"} <= set(trainer.evaluate())  # on class indices
    if loss == "cross_entropy":
        data = Images(torch.float64)
        plain = nn.functional.cross_entropy(model(data.images).logits, torch.tensor(data.targets)).detach()
        assert trainer.evaluate()["eval_loss"] == pytest.approx(float(plain), rel=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.slow
def test_a_resumed_run_mixes_the_same(accumulation, tmp_path):
    common = {
        "max_steps": 7, "optim": "adamw_torch", "mixup_alpha": 0.8, "cutmix_alpha": 1.0, "remix": True,
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": accumulation,
    }  # fmt: skip
    whole = make_model("vit", "lora", dtype=torch.float32)
    trainer_for(whole, tmp_path / "whole", **common).train()
    trainer_for(
        make_model("vit", "lora", dtype=torch.float32), tmp_path / "cut", save_strategy="steps", save_steps=4, **common
    ).train()
    resumed = make_model("vit", "lora", seed=9, dtype=torch.float32)
    resumed.load_state_dict({n: p for n, p in whole.state_dict().items() if "lora" not in n}, strict=False)
    trainer_for(resumed, tmp_path / "cut", **common).train(str(tmp_path / "cut" / "checkpoint-4"))
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_batches_without_images_are_refused(tmp_path):
    class Vectors(Images):
        def __getitem__(self, index):
            return {"x": self.images[index], "labels": self.targets[index]}

    trainer = FocalSAMTrainer(
        make_model("vit", "lora"), arguments(tmp_path, mixup_alpha=1.0), train_dataset=Vectors(), class_counts=COUNTS
    )
    with pytest.raises(ValueError, match=r"A batch has \['labels', 'x'\]; mixup and CutMix need its 'pixel_values'"):
        trainer.train()
