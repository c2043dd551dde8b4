"""Every way to compute attention that runs here gives the same logits and gradients; the others are refused."""

import pytest
import torch

from ft_focalsam import LongTailClassifier, apply_tuning
from ft_focalsam.models import ATTENTION_IMPLEMENTATIONS, set_attention


def gradients(implementation: str | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b", "c"])
    if implementation is not None:
        set_attention(model, implementation)
        assert model.backbone.config._attn_implementation == implementation
    apply_tuning(model, "lora,norms")
    model.double().config.backbone_dtype = "float64"
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = model(images).logits
    logits.square().sum().backward()
    return logits.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_changes_nothing_but_its_cost(implementation):
    """Up to what the softmax of transformers' eager attention rounds, which is in float32."""
    logits, by_default = gradients(None)
    same_logits, same = gradients(implementation)
    torch.testing.assert_close(same_logits, logits, rtol=1e-5, atol=1e-5)
    assert by_default.keys() == same.keys() and by_default
    for name, gradient in by_default.items():
        torch.testing.assert_close(same[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_attention_that_is_not_installed_is_refused():
    model = LongTailClassifier.from_backbone("tiny_clip", ["a", "b"])
    with pytest.raises(ValueError, match=r"flash_attention_3', which the backbone CLIP.* cannot use"):
        set_attention(model, "flash_attention_3")
    assert "flash_attention_3" in ATTENTION_IMPLEMENTATIONS


def test_backbones_of_other_libraries_have_no_choice():
    model = LongTailClassifier.from_backbone("scratch:resnet32", ["a", "b"])
    with pytest.raises(ValueError, match="only backbones of transformers take"):
        set_attention(model, "eager")
