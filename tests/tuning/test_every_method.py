"""Every tuning method on every family: unchanged at the start, exact gradients, half precision, the round trip."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from sharpness.models import COUNTS, make_batch, naive_gradient, relative_error, run_step
from torch.nn import functional as F
from tuning.table import CASES
from tuning.test_inserted import LABELS
from tuning.tiny import FAMILIES, NAMES, PlainBackbone, build, inserted, logits_of, pictures, randomise

from ft_focalsam import LongTailClassifier, class_weights
from ft_focalsam.sharpness import SharpnessStep

every_family = pytest.mark.parametrize("family", FAMILIES)
every_case = pytest.mark.parametrize("case", CASES)


def make(path: str, case: str, **keywords) -> LongTailClassifier:
    tuning, options = CASES[case]
    return build(path, tuning, **keywords, **options)


def state_of(model) -> dict[str, tuple[torch.dtype, bool]]:
    return {name: (p.dtype, p.requires_grad) for name, p in model.named_parameters()}


@pytest.mark.parametrize("case", [c for c in CASES if c != "everything"])  # which has prompts
@every_family
def test_nothing_changes_at_the_start(tiny_backbones, family, case):
    path = tiny_backbones[family]
    model = make(path, case)
    with torch.no_grad():
        expected = PlainBackbone(path).features_of(pictures())
        torch.testing.assert_close(model.features(pictures()), expected, rtol=0, atol=1e-5)
    assert not torch.equal(logits_of(randomise(make(path, case))), logits_of(model))


@every_case
@every_family
def test_gradient_equals_the_three_backward_algorithm(tiny_backbones, family, case):
    """None needs a backward pass of its own for the class-weighted loss, but DoRA on the first step: peft calls A and
    B on an identity matrix too, which has no batch, and so the layer around them is found to collect for them."""
    model = randomise(make(tiny_backbones[family], case)).double().train()  # in evaluation mode peft caches norms
    weights = class_weights("focal_sam", COUNTS, {"gamma": 2.0, "lam": 1.1})
    step = SharpnessStep(model, weights, rho=0.1)
    for seed in range(3):
        images, labels = make_batch(seed=seed)
        expected = naive_gradient(model, images, labels, weights, 0.1)
        assert relative_error(run_step(step, model, images, labels), expected) <= 1e-10
    assert step.separate_reason is None
    assert step.backward_passes == 1
    assert any(value.any() for name, value in expected.items() if name.startswith("backbone."))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@every_case
def test_gradient_under_activation_checkpointing(tiny_backbones, case):
    model = randomise(make(tiny_backbones["vit"], case)).train()
    weights = class_weights("focal_sam", COUNTS).float()
    expected = naive_gradient(model, pictures(), LABELS, weights, 0.1)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    step = SharpnessStep(model, weights, rho=0.1)
    for _ in range(2):
        assert relative_error(run_step(step, model, pictures(), LABELS), expected) <= 1e-4
    assert step.backward_passes == 1 and step.separate_reason is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@every_case
@every_family
def test_round_trip(tiny_backbones, tmp_path, family, case, dtype):
    path = tiny_backbones[family]
    model = make(path, case, dtype=dtype)
    model.train()(pictures(), labels=LABELS).loss.backward()
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert all(p.dtype == getattr(torch, dtype) for p in model.parameters() if not p.requires_grad)
    randomise(model).eval()
    model.save_pretrained(tmp_path / "first")
    loaded = LongTailClassifier.from_pretrained(tmp_path / "first")
    torch.testing.assert_close(logits_of(loaded), logits_of(model), rtol=0, atol=1e-6)
    assert state_of(loaded) == state_of(model)
    for name, value in model.named_parameters():
        if value.requires_grad:
            assert torch.equal(value, loaded.get_parameter(name)), name
    loaded.save_pretrained(tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert set(first) == {name for name, p in model.named_parameters() if p.requires_grad}
    assert first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@every_case
def test_half_precision_computes_the_same(tiny_backbones, case, dtype):
    """Features, and the gradients of what is tuned, as in float32 but for rounding."""
    path = tiny_backbones["dinov2"]
    model, reference = randomise(make(path, case, dtype=dtype)).train(), randomise(make(path, case)).train()
    reference.load_state_dict(model.state_dict())
    features, expected = model.features(pictures()).float(), reference.features(pictures())
    assert ((features - expected).norm() / expected.norm()).item() < 0.06
    for one in (model, reference):
        F.cross_entropy(one(pictures()).logits, LABELS).backward()
    found = {name: p.grad for name, p in inserted(model).items() if p.grad is not None}
    exact = {name: p.grad for name, p in inserted(reference).items() if p.grad is not None}
    assert found.keys() == exact.keys() and {g.dtype for g in found.values()} == {torch.float32}
    assert relative_error(found, exact) < 0.25


@every_case
def test_one_step_in_half_precision(tiny_backbones, case):
    """The update runs in one backward pass and moves float32 weights by less than half precision could show."""
    model = randomise(make(tiny_backbones["clip"], case, dtype="bfloat16")).train()
    weights = class_weights("focal_sam", COUNTS).float()
    step = SharpnessStep(model, weights, rho=0.01)
    for _ in range(2):
        gradient = run_step(step, model, pictures(), LABELS)
    assert step.backward_passes == 1 and step.separate_reason is None
    before = {name: p.detach().clone() for name, p in inserted(model).items()}
    for p in inserted(model).values():
        p.data -= 1e-5 * p.grad / (1e-12 + p.grad.abs().max())
    moved = [name for name, p in inserted(model).items() if not torch.equal(p, before[name])]
    assert moved and {f"backbone.{name}" for name in moved} <= gradient.keys()


@every_case
def test_a_copy_is_independent(tiny_backbones, case):
    model = make(tiny_backbones["vit"], case, dtype="bfloat16")
    twin = copy.deepcopy(model)
    assert torch.equal(logits_of(twin), logits_of(model))
    before = logits_of(model)
    randomise(twin)
    assert torch.equal(logits_of(model), before)
    assert not torch.equal(logits_of(twin), before)
    assert len(NAMES) == before.shape[1]
