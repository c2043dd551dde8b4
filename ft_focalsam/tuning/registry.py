"""Tuning methods by name. A new method is one file in this folder, imported in `__init__.py`."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from ..base.ranges import Range, check_numbers
from ..base.registry import Registry
from ..models import LongTailClassifier

if TYPE_CHECKING:
    from .options import TuningOptions


@dataclass
class CommonOptions:
    """What several methods read; the options of a method of its own are a subclass with further fields.

    Args:
        tuned_layers (`list[int]`): Numbers, from 0, of the blocks that are tuned; by default all of them, and what is
            outside of blocks too. Shallow prompts, last_blocks, peft and full do not read it.

    Raises:
        ValueError: If a value is out of range.
    """

    tuned_layers: Annotated[list[int], Range(0)] = field(
        default_factory=list, metadata={"help": "Indices, from 0, of the blocks that are tuned; by default all."}
    )

    def __post_init__(self) -> None:
        check_numbers(self)


# What a method acts on, in the order in which methods are applied, whatever the order they are named in: peft gets the
# plain backbone, and what belongs to the backbone is still frozen when modules are put into it. Saving and loading
# rely on that order. Two methods of one stage exclude each other, but for OWN and PARAMETERS.
WHOLE = "the whole backbone"
PEFT = "peft's adapters"
MLP = "an adapter at the MLPs"
WEIGHTS = "the weights of layers"
OUTPUTS = "the outputs of layers"
TOKENS = "prompts in the sequence"
FEATURES = "an adapter at the features"
TEXT = "the text tower's adapters"
CONTEXT = "the context of the class names"
OWN = "modules of its own"
PARAMETERS = "parameters of the backbone"
STAGES = (WHOLE, PEFT, MLP, WEIGHTS, OUTPUTS, TOKENS, FEATURES, TEXT, CONTEXT, OWN, PARAMETERS)


@dataclass(frozen=True)
class TuningMethod:
    """
    Attributes:
        apply (`Callable`): (model, options) -> None; makes exactly what it tunes require a gradient, in float32. It
            finds the backbone frozen, but for what methods before it tune, and the head trainable.
        stage (`str`): What it acts on, one of `STAGES`.
        keeps_backbone (`bool`): Whether the backbone's features of an image stay the same while it trains.
        options (dataclass type): What can be set of it; its fields are fields of `TuningOptions`.
    """

    apply: Callable[[LongTailClassifier, CommonOptions], None]
    stage: str = OWN
    keeps_backbone: bool = False
    options: type[CommonOptions] = CommonOptions


TUNING_METHODS: Registry[TuningMethod] = Registry("tuning method")


def register_tuning(
    name: str, *, stage: str = OWN, keeps_backbone: bool = False, options: type[CommonOptions] = CommonOptions
) -> Callable:
    """Register a function (model, options) as a tuning method; see `TuningMethod`. Options of its own are known to
    `TuningOptions` where the method is registered before that is first used.

    Raises:
        ValueError: If the name is taken.
    """

    def decorate(apply: Callable) -> Callable:
        TUNING_METHODS.register(name)(TuningMethod(apply, stage, keeps_backbone, options))
        return apply

    return decorate


def apply_tuning(model: LongTailClassifier, name: str | Sequence[str], options: "TuningOptions | None" = None) -> None:
    """Choose what of a classifier trains, beside its head.

    Args:
        model (`LongTailClassifier`): A new classifier; changed in place.
        name (`str` or sequence of `str`): Names in `TUNING_METHODS`, one or several, as a list or joined by commas:
            "lora", "lora,norms", ["lora", "norms"]. The order means nothing.
        options (`TuningOptions`, *optional*): Sizes and places; the options of one method will do for it.

    Raises:
        ValueError: If a method is unknown, two exclude each other, an option does not fit the model, or the model was
            tuned before.
    """
    methods = choose_methods(name)
    if not isinstance(model, LongTailClassifier):
        raise TypeError(
            f"model is a {type(model).__name__}, and apply_tuning takes a LongTailClassifier; tune others with peft."
        )
    if options is None:
        from .options import TuningOptions  # made of what is registered by now

        options = TuningOptions()
    for method in methods:
        _check_options(options, method.options)
    model.check_is_new()
    model.backbone.requires_grad_(False)
    for method in methods:
        method.apply(model, options)


def _check_options(options: CommonOptions, needed: type[CommonOptions]) -> None:
    if not isinstance(options, CommonOptions):
        raise TypeError(f"options is a {type(options).__name__}; give TuningOptions(...).")
    if not isinstance(options, needed):
        raise TypeError(
            f"The options have none of {needed.__name__}; give {needed.__name__}(...), or register the tuning method "
            "before TuningOptions is first used."
        )


def choose_methods(name: str | Sequence[str]) -> list[TuningMethod]:
    """The methods of these names, in the order in which they are applied.

    Raises:
        ValueError: If there is none, one is unknown, or two exclude each other.
    """
    if not name:
        raise ValueError(f"tuning names no method; choose among {', '.join(TUNING_METHODS)}.")
    parts = name.split(",") if isinstance(name, str) else [part for item in name for part in item.split(",")]
    names = [part.strip() for part in parts]
    chosen: dict[str, TuningMethod] = {}
    for new in names:
        method = TUNING_METHODS.choose(new)
        for other, there in chosen.items():
            reason = _conflict(new, method, other, there)
            if reason:
                raise ValueError(f"The tuning methods '{other}' and '{new}' exclude each other: {reason}; name one.")
        chosen[new] = method
    return sorted(chosen.values(), key=lambda method: STAGES.index(method.stage))


def check_keeps_backbone(name: str | Sequence[str]) -> None:
    """Raise a `ValueError` where a method of these names trains in the backbone, so that its features of an image
    cannot be computed once."""
    if not all(method.keeps_backbone for method in choose_methods(name)):
        fitting = ", ".join(sorted(known for known, method in TUNING_METHODS.items() if method.keeps_backbone))
        raise ValueError(
            f"tuning is {name!r}, which changes the backbone, and cache_features computes its features once; set "
            f"tuning to one or several of {fitting}, or cache_features to false."
        )


def _conflict(new: str, method: TuningMethod, other: str, there: TuningMethod) -> str | None:
    if new == other:
        return "they are the same"
    for name, one in ((new, method), (other, there)):
        if one.stage == WHOLE:
            return f"'{name}' decides on the whole backbone"
    if method.stage == there.stage and method.stage not in (PARAMETERS, OWN):
        return f"both tune {method.stage}"
    return None


def describe_methods() -> str:
    """One line a method: its name and the first sentence of what it does."""
    lines = ["Ways to tune (--tuning):"]
    for name, method in sorted(TUNING_METHODS.items()):
        summary = " ".join((inspect.getdoc(method.apply) or "").split("\n\n")[0].split())
        lines.append(f"  {name:<17}{summary}")
    return "\n".join(lines)


# ---- for the methods ----


def find_layers(model: LongTailClassifier, options: CommonOptions) -> list[int]:
    """Numbers of the blocks to tune, from 0, in order.

    Raises:
        ValueError: If `tuned_layers` names a block that the backbone does not have.
    """
    count = len(model.family.blocks(model.backbone))
    wrong = [index for index in options.tuned_layers if not 0 <= index < count]
    if wrong:
        raise ValueError(
            f"tuned_layers names {wrong[0]}, and the backbone '{model.config.backbone}' has the blocks 0 to "
            f"{count - 1}; choose among them, or leave it out for all."
        )
    return sorted(set(options.tuned_layers)) or list(range(count))


def find_parts(model: LongTailClassifier, options: CommonOptions) -> dict[str, nn.Module]:
    """What `tuned_layers` leaves to be tuned, by its name in the backbone: all of it (""), or the blocks named."""
    if not options.tuned_layers:
        return {"": model.backbone}
    blocks = model.family.blocks(model.backbone)
    prefix = next(name for name, module in model.backbone.named_modules() if module is blocks)
    return {f"{prefix}.{index}": blocks[index] for index in find_layers(model, options)}


def own_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules and their names as `named_modules` gives them, without those that peft added."""
    yield name, module
    for child_name, child in module.named_children():
        added = isinstance(module, BaseTunerLayer) and child is not module._modules.get("base_layer")
        if not added and not isinstance(child, AuxiliaryTrainingWrapper):
            yield from own_modules(child, f"{name}.{child_name}" if name else child_name)


def describe_parameters(model: nn.Module) -> str:
    """One line: how many parameters are trained, of how many, in percent."""
    total = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"Trained parameters: {trained:,} of {total:,} ({trained / total:.2%})"
