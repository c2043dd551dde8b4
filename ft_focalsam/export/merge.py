"""Folding what was tuned into the plain weights of the backbone.

Layers are nested: peft's adapter is around a layer, and what was inserted later, S of sparse tuning and the scale and
shift of SSF, acts inside of it, on the layer itself. So merging goes from the inside to the outside: what was
inserted, in the order of insertion, then peft. Parameters that were trained in place are where they belong.
"""

import copy

import torch
from peft import PeftModel

from ..base.errors import one_line
from ..models import LongTailClassifier
from ..models.inserted import add_inserted, choose_inserted, read_inserted
from ..models.precision import forget_half
from .check import check_same, logits_of, random_images

REMEDY = "export to onnx, which needs no merging"


def merge(model: LongTailClassifier, *, keep: bool = False) -> LongTailClassifier:
    """A copy, on the CPU and in float32, that gives the same logits with plain weights.

    All of its parameters require a gradient: `save_pretrained` saves it whole.

    Args:
        model (`LongTailClassifier`): A tuned classifier; it is not changed.
        keep (`bool`): Whether inserted modules that cannot be folded may stay in the copy, as they are.

    Raises:
        ValueError: If something of it cannot be folded, or the logits of the copy differ.
    """
    if not keep:
        check_can_merge(model)
    merged = in_float32(model)
    images = random_images(merged)
    expected = logits_of(merged, images)
    note, merged.config.inserted = merged.config.inserted, None
    for name, settings in read_inserted(note, source=merged.config.backbone):
        kind = choose_inserted(name)
        if kind.merge is None:
            merged.config.inserted = add_inserted(merged.config.inserted, name, settings)
        else:
            kind.merge(merged)
    if isinstance(merged.backbone, PeftModel):
        merged.backbone = _merge_peft(merged.backbone)
    check_same(expected, logits_of(merged, images), what="the merged classifier", remedy=REMEDY)
    return merged.requires_grad_(True)


def check_can_merge(model: LongTailClassifier) -> None:
    """Raise a `ValueError` that names the inserted modules which cannot be folded into weights, if there are any."""
    names = [name for name, _ in read_inserted(model.config.inserted, source=model.config.backbone)]
    kinds = {name: choose_inserted(name) for name in names}
    stuck = [name for name, kind in kinds.items() if kind.merge is None and not kind.stays]
    if stuck:
        raise ValueError(
            f"The classifier has modules of the kind {' and '.join(map(repr, stuck))}, which cannot be folded into "
            f"the weights of the backbone; {REMEDY}."
        )


def in_float32(model: LongTailClassifier) -> LongTailClassifier:
    """A copy on the CPU, in evaluation mode, all of it in float32."""
    copied = forget_half(copy.deepcopy(model).cpu()).eval()
    copied.config.backbone_dtype = "float32"
    return copied


@torch.no_grad()
def _merge_peft(backbone: PeftModel) -> torch.nn.Module:
    """The model inside of peft's adapter, which is merged into it."""
    kind = backbone.active_peft_config.peft_type.value
    try:
        return backbone.merge_and_unload()
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(f"peft cannot merge its adapter {kind!r} ({one_line(error)}); {REMEDY}.") from error
