"""Batch normalisation that keeps its running statistics while the model trains: a choice of a run, not saved with the
weights."""

from torch.nn.modules.batchnorm import _BatchNorm

from .backbones import is_pretrained
from .classifier import LongTailClassifier


def keep_batch_norms_in_eval(model: LongTailClassifier) -> None:
    """Let the batch normalisations of the backbone stay in evaluation mode when the model goes into training mode.

    They normalise by the running statistics of pretraining, which do not move, so that the samples of a batch do not
    interact; their weights and biases train where they are tuned.

    Args:
        model (`LongTailClassifier`): Its backbone is pretrained.

    Raises:
        ValueError: If the backbone has no batch normalisation, or random weights and so no statistics yet.
    """
    name, is_random = model.config.backbone, not is_pretrained(model.config.backbone_family)
    if is_random or not any(isinstance(module, _BatchNorm) for module in model.backbone.modules()):
        lacks = "running statistics of images yet" if is_random else "batch normalisation"
        raise ValueError(f"batch_norm_eval is true, and the backbone '{name}' has no {lacks}; set it to false.")
    model.batch_norm_eval = True
    model.train(model.training)
