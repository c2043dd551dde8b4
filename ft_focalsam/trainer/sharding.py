"""What FSDP2 has to be told of a model, and of a checkpoint of it, for Accelerate to shard and to load it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_canonicalize_names
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.fsdp import StateDictType

from ..models import LongTailClassifier


def choose_layers_to_shard(plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> None:
    """Name them where the configuration does not (`fsdp_transformer_layer_cls_to_wrap`): Accelerate would take those
    that the model must not split, which of most vision models includes the embeddings that Accelerate shards by
    themselves, so that it would shard some parameters twice (1.15)."""
    layers = layers_to_shard(model)
    if plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = layers


def layers_to_shard(model: nn.Module) -> list[str]:
    """Class names of the transformer blocks of a model, sorted; none where it has none.

    Raises:
        ValueError: If the model does not say what its input embeddings are, which Accelerate asks of it.
    """
    if isinstance(model, LongTailClassifier):
        try:
            return sorted({type(block).__name__ for block in model.family.blocks(model.backbone)})
        except ValueError:  # a ResNet, say
            return []
    try:
        embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    except NotImplementedError as error:
        raise ValueError(
            f"{type(model).__name__} does not name its input embeddings, which FSDP asks for; give it a method "
            "get_input_embeddings that returns None, or use accelerate_configs/multi_gpu.yaml."
        ) from error
    names = getattr(model, "_no_split_modules", None) or ()
    layers = [module for module in model.modules() if type(module).__name__ in names]
    return sorted({type(layer).__name__ for layer in layers if all(m is not embeddings for m in layer.modules())})


def shard_without_optimizer(accelerator: Accelerator, model: nn.Module) -> nn.Module:
    """Shard a model for evaluation before training; Accelerate does so only along with an optimizer (1.15)."""
    model, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    accelerator._optimizers.clear()  # of which there was none
    return model


@contextmanager
def saved_whole(plugin: FullyShardedDataParallelPlugin) -> Iterator[None]:
    """Inside the block, a model is saved as one file, also where checkpoints are sharded."""
    layout, plugin.state_dict_type = plugin.state_dict_type, StateDictType.FULL_STATE_DICT
    try:
        yield
    finally:
        plugin.state_dict_type = layout


@contextmanager
def frozen_without_state(model: nn.Module, checkpoint: Path) -> Iterator[None]:
    """Inside the block, freeze the trained parameters that a checkpoint has no optimizer state of, as no gradient has
    reached them: torch refuses to load what lacks the state of a parameter that trains."""
    saved = _names_with_state(checkpoint)
    without = [
        parameter
        for name, parameter in fsdp2_canonicalize_names(dict(model.named_parameters())).items()
        if parameter.requires_grad and name not in saved
    ]
    for parameter in without:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in without:
            parameter.requires_grad_(True)


def _names_with_state(checkpoint: Path) -> set[str]:
    """Of the parameters whose optimizer state a checkpoint holds, in either of FSDP's layouts."""
    whole, sharded = checkpoint / "optimizer.bin", checkpoint / "optimizer_0"
    if whole.is_file():
        return set(torch.load(whole, weights_only=True, mmap=True)["state"])
    if not sharded.is_dir():
        return set()
    prefix = "optimizer.state."
    keys = FileSystemReader(sharded).read_metadata().state_dict_metadata
    return {key.removeprefix(prefix).rpartition(".")[0] for key in keys if key.startswith(prefix)}
