"""Logits are float32 at least, whatever the backbone, autocast and the head's own weights are in."""

import pytest
import torch
from torch import nn

from ft_focalsam import LongTailClassifier, apply_tuning
from ft_focalsam.models.heads import HEADS, full_precision_logits

D, C, SCALE = 512, 1000, 25.0


def clip_like(num: int, *, seed: int = 0):
    """Class vectors with a large common part, as texts of CLIP have, and features around them."""
    generator = torch.Generator().manual_seed(seed)
    common = 13 * nn.functional.normalize(torch.randn(D, generator=generator), dim=0)
    vectors = 0.1 * torch.randn(C, D, generator=generator) + common
    labels = torch.randint(C, (num,), generator=generator)
    features = vectors[labels] + 0.4 * torch.randn(num, D, generator=generator)
    return vectors, features, labels


def build(name, vectors):
    torch.manual_seed(0)
    head = HEADS[name](D, C, SCALE)
    head.start_from(vectors)
    return head


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("autocasts", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_heads_give_float32_logits_of_what_they_are_given(name, autocasts, weights):
    vectors, features, _ = clip_like(64)
    features = features.bfloat16()  # of a backbone in half precision
    head = build(name, vectors).to(weights)
    expected = build(name, vectors).to(weights).double()(features.double())
    with torch.autocast("cpu", torch.bfloat16, enabled=autocasts):
        logits = full_precision_logits(head, features)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)
    assert (logits.argmax(dim=1) == expected.argmax(dim=1)).all()
    assert [p.dtype for p in head.parameters()] == [weights] * len(list(head.parameters()))


def test_no_class_wins_by_its_index_alone():
    """In bfloat16, cosine logits tie: 0.125 apart, and `argmax` takes the class of the lower index, a frequent one."""
    vectors, features, labels = clip_like(1000)
    head = build("cosine", vectors)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = head(features)
        logits = full_precision_logits(head, features)
    exact = head.double()(features.double())
    changed = (rounded.argmax(dim=1) != exact.argmax(dim=1)).float().mean()
    assert rounded.dtype == torch.bfloat16 and changed > 0.02  # what it would cost
    assert (logits.argmax(dim=1) == exact.argmax(dim=1)).float().mean() > 0.999
    accuracies = [(z.argmax(dim=1) == labels).float().mean() for z in (rounded, logits)]
    assert accuracies[0] + 0.02 < accuracies[1]


@pytest.mark.parametrize("tuning", ["lora", "text_lora"])
def test_a_classifier_under_autocast_gives_float32_logits_and_gradients(tuning):
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b", "c"])
    apply_tuning(model, tuning)
    images = torch.randn(4, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(pixel_values=images).logits
    assert logits.dtype == torch.float32
    steps = logits.detach() * 8  # multiples of 0.125 would be whole numbers here
    assert (steps - steps.round()).abs().max() > 0.01
    logits.sum().backward()
    reached = [p for p in model.parameters() if p.grad is not None]
    assert reached and all(torch.isfinite(p.grad).all() for p in reached)
