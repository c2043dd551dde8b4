"""How the attention of a backbone is computed: a choice of the machine that runs it, not saved with the weights."""

from transformers import PreTrainedModel

from ..base.errors import one_line
from .classifier import LongTailClassifier

# Names of transformers. Kernels of the Hub, which it also takes here, are code from elsewhere.
ATTENTION_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


def set_attention(model: LongTailClassifier, implementation: str) -> None:
    """Let the backbone, before it is tuned, compute attention in another way.

    Args:
        model (`LongTailClassifier`): Its backbone is of transformers.
        implementation (`str`): A name in `ATTENTION_IMPLEMENTATIONS`.

    Raises:
        ValueError: If the backbone is of another library, or does not have it on this machine.
    """
    where, name = f"attn_implementation is {implementation!r}", type(model.backbone).__name__
    if not isinstance(model.backbone, PreTrainedModel):
        raise ValueError(f"{where}, which only backbones of transformers take, and {name} is none; leave it out.")
    try:
        model.backbone.set_attn_implementation(implementation)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{where}, which the backbone {name} cannot use: {one_line(error)}") from error
