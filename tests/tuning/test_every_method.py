"""Every tuning method on every family: unchanged at the start, checkpointing, half precision; see `test_table.py`."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from sharpness.models import COUNTS, naive_gradient, relative_error, run_step
from torch.nn import functional as F
from tuning.table import CASES
from tuning.test_inserted import LABELS
from tuning.tiny import FAMILIES, NAMES, PlainBackbone, build, inserted, logits_of, make_images, randomise

from ft_focalsam import LongTailClassifier, class_weights
from ft_focalsam.sharpness import SharpnessStep

pytestmark = pytest.mark.slow

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
        expected = PlainBackbone(path).features_of(make_images())
        torch.testing.assert_close(model.features(make_images()), expected, rtol=0, atol=1e-5)
    assert not torch.equal(logits_of(randomise(make(path, case))), logits_of(model))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
@every_case
def test_gradient_under_activation_checkpointing(tiny_backbones, case):
    model = randomise(make(tiny_backbones["vit"], case)).train()
    weights = class_weights("focal_sam", COUNTS).float()
    expected = naive_gradient(model, make_images(), LABELS, weights, 0.1)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    step = SharpnessStep(model, weights, rho=0.1)
    for _ in range(2):
        assert relative_error(run_step(step, model, make_images(), LABELS), expected) <= 1e-4
    assert step.backward_passes == 1 and step.separate_reason is None


@every_case
@every_family
def test_round_trip_in_half_precision(tiny_backbones, tmp_path, family, case):
    """In float32: `test_table.py`."""
    path = tiny_backbones[family]
    model = make(path, case, dtype="bfloat16")
    model.train()(make_images(), labels=LABELS).loss.backward()
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)
    assert all(p.dtype == torch.bfloat16 for p in model.parameters() if not p.requires_grad)
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
    features, expected = model.features(make_images()).float(), reference.features(make_images())
    assert ((features - expected).norm() / expected.norm()).item() < 0.06
    for one in (model, reference):
        F.cross_entropy(one(make_images()).logits, LABELS).backward()
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
        gradient = run_step(step, model, make_images(), LABELS)
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
