"""Learning rates by layer and for the classifier head, as parameter groups of the base optimizer.

With L blocks, a parameter of depth d has the learning rate lr * decay^(L + 1 - d): d is 0 in front of them, i + 1
in block i = 0 ... L - 1, and L + 1 behind them and in the head (BEiT, arXiv 2106.08254; MAE, arXiv 2111.06377).
"""

from collections.abc import Mapping

from peft import PeftModel
from torch import nn
from torch.optim import Optimizer
from transformers import PreTrainedModel

from ..models import LongTailClassifier
from ..models.backbones.transformers_models import find_blocks
from .arguments import FocalSAMTrainingArguments

BEHIND = ("proj",)  # parameters of a module that holds the blocks but act behind them: open_clip's projection
HEADS = ("classifier", "head", "fc")  # what libraries call it


def has_own_rates(args: FocalSAMTrainingArguments) -> bool:
    """Whether some parameters may have another learning rate than `args.learning_rate`."""
    return args.layer_decay != 1 or args.head_learning_rate is not None


def learning_rates(model: nn.Module, args: FocalSAMTrainingArguments) -> dict[str, float]:
    """The learning rate of each parameter, by name, before the schedule.

    Args:
        model (`nn.Module`): A `LongTailClassifier`, a model of transformers, or a `PeftModel` around one.
        args (`FocalSAMTrainingArguments`): With `learning_rate`, `layer_decay` and `head_learning_rate`.

    Raises:
        ValueError: If the model has no blocks to count, or no head that can be told from its backbone.
    """
    names = [name for name, _ in model.named_parameters()]
    rates = dict.fromkeys(names, args.learning_rate)
    if args.layer_decay != 1:
        depth = depths(model, layer_decay=args.layer_decay)
        last = max(depth.values())
        rates = {name: args.learning_rate * args.layer_decay ** (last - depth[name]) for name in names}
    if args.head_learning_rate is not None:
        rates |= dict.fromkeys(head_parameters(model, args.head_learning_rate), args.head_learning_rate)
    return rates


def depths(model: nn.Module, *, layer_decay: float) -> dict[str, int]:
    """The depth of each parameter, by name: 0 in front of the L blocks, i + 1 in block i, L + 1 behind them.

    What is inserted into a block, as LoRA, adapters and prompts are, has the depth of the block.
    """
    try:
        blocks = model.family.blocks(model.backbone) if isinstance(model, LongTailClassifier) else find_blocks(model)
    except ValueError as error:
        config = getattr(model, "config", None)
        name = getattr(config, "backbone", None) or type(model).__name__
        raise ValueError(
            f"layer_decay is {layer_decay:g}, and '{name}' has no transformer blocks to count; set it to 1."
        ) from error
    place = next(name for name, module in model.named_modules() if module is blocks)
    inside = f"{place}."
    return {
        name: int(name[len(inside) :].partition(".")[0]) + 1
        if name.startswith(inside)
        else (0 if _is_in_front(model, name, place) else len(blocks) + 1)
        for name, _ in model.named_parameters()
    }


def _is_in_front(model: nn.Module, name: str, place: str) -> bool:
    """Whether a parameter acts in front of the blocks: in the innermost module that holds both, it belongs to a part
    that was registered before the part with the blocks, or to no part."""
    module, path, to_blocks = model, name.split("."), place.split(".")
    while path[0] == to_blocks[0]:
        module = getattr(module, path[0])
        path, to_blocks = path[1:], to_blocks[1:]
    if len(path) == 1:
        return path[0] not in BEHIND
    parts = [part for part, _ in module.named_children()]
    return parts.index(path[0]) < parts.index(to_blocks[0])


def head_parameters(model: nn.Module, head_learning_rate: float) -> list[str]:
    """Names of the parameters of the classifier head: of a model of transformers those outside its base model, of
    others those of the child with one of the names in `HEADS`."""
    if isinstance(model, LongTailClassifier):
        return [name for name, _ in model.named_parameters() if name.startswith("head.")]
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    backbone = inner.base_model if isinstance(inner, PreTrainedModel) else inner
    if backbone is inner:
        backbone = nn.ModuleList(child for name, child in inner.named_children() if name not in HEADS)
    of_backbone = {id(p) for p in backbone.parameters()}
    of_backbone |= {id(p) for p in inner.parameters(recurse=False)}
    names = [name for name, p in model.named_parameters() if id(p) not in of_backbone]
    if not names:
        raise ValueError(
            f"head_learning_rate is {head_learning_rate:g}, and the head of a {type(inner).__name__} cannot be told "
            "from its backbone; leave it out, or give FocalSAMTrainer an optimizer."
        )
    return names


def split_groups(optimizer: Optimizer, model: nn.Module, rates: Mapping[str, float], *, first: float) -> None:
    """Split the parameter groups of a new optimizer so that each has one learning rate.

    Args:
        optimizer (`Optimizer`): It has not stepped yet.
        model (`nn.Module`): Whose parameters it steps on.
        rates (mapping): Learning rate by name, as `learning_rates` gives it.
        first (`float`): The groups of this rate come first, for the Trainer to log, or else those of the next lower.
    """
    rate_of = {id(p): rates[name] for name, p in model.named_parameters()}
    groups = []
    for group in optimizer.param_groups:
        for rate in {rate_of[id(p)] for p in group["params"]}:
            params = [p for p in group["params"] if rate_of[id(p)] == rate]
            groups.append({**group, "params": params, "lr": rate})
    optimizer.param_groups.clear()
    for group in sorted(groups, key=lambda group: (group["lr"] > first, -group["lr"], -group["weight_decay"])):
        optimizer.add_param_group(group)
