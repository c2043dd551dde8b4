"""What is averaged: the weights of classifiers of one architecture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peft import PeftModel
from torch import Tensor

from ..export import merge
from ..models import LongTailClassifier
from ..models.inserted import read_inserted
from .low_rank import is_plain_lora, lora_layers

# What two classifiers must agree on: keys of config.json.
ARCHITECTURE = (
    *("backbone", "backbone_family", "backbone_features", "backbone_dtype", "feature_size", "image_size"),
    *("head", "head_scale", "head_options", "id2label", "inserted"),
)
TEXT_SIDE = (
    "prompt_templates",
    "prompt_names",
)  # of which the class vectors are computed where the text side is tuned
TEXT_KINDS = ("text_lora", "context")
LINEAR_PEFT = ("IA3",)  # the merged weight is linear in the parameters, whose mean therefore gives the mean of it


@dataclass(frozen=True)
class Ingredient:
    """The weights of one classifier.

    Args:
        name (`str`): What to call it: its folder.
        state (`dict[str, Tensor]`): The head and what trained, by name, as `trained_state_dict` gives them.
        scales (`dict[str, float]`): Name of each layer with a LoRA update -> the scale s of it.
        architecture (`dict`): What has to be the same of all that are averaged.
    """

    name: str
    state: dict[str, Tensor]
    scales: dict[str, float]
    architecture: dict

    @classmethod
    def of(cls, name: str, model: LongTailClassifier) -> "Ingredient":
        """A copy of the weights of a classifier."""
        state = {key: value.detach().cpu().clone() for key, value in model.trained_state_dict().items()}
        scales = {}
        if is_plain_lora(model.backbone):
            scales = {f"backbone.{key}": m.scaling["default"] for key, m in lora_layers(model.backbone).items()}
        kinds = inserted_kinds(model)
        keys = ARCHITECTURE + (TEXT_SIDE if any(kind in TEXT_KINDS for kind in kinds) else ())
        architecture = {key: getattr(model.config, key) for key in keys}
        architecture["peft"] = peft_kind(model)
        return cls(name, state, scales, architecture)

    def check_same_architecture(self, other: "Ingredient") -> None:
        """Raise a `ValueError` that names the first thing in which two are not alike."""
        for key, value in self.architecture.items():
            if other.architecture.get(key) != value:
                raise ValueError(
                    f"'{other.name}' and '{self.name}' are not of one architecture: {key} is "
                    f"{_short(other.architecture.get(key))}, not {_short(value)}; average runs that differ in their "
                    "data, seed or hyperparameters alone."
                )
        shapes, others = (each.shapes() for each in (self, other))
        odd = [key for key in {**shapes, **others} if shapes.get(key) != others.get(key)]
        if odd or self.scales.keys() != other.scales.keys():
            where = odd or sorted(self.scales.keys() ^ other.scales.keys())
            raise ValueError(
                f"'{other.name}' and '{self.name}' did not train the same weights: they differ at '{where[0]}' (and "
                f"{len(where) - 1} others); average runs of the same tuning."
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all that trained but the factors of LoRA, whose ranks may differ."""
        return {key: tuple(value.shape) for key, value in self.state.items() if not self.is_factor(key)}

    def is_factor(self, key: str) -> bool:
        """Whether a tensor is one of the two of a LoRA update."""
        return bool(self.scales) and key.partition(".lora_")[0] in self.scales

    def factors(self, layer: str) -> tuple[Tensor, Tensor]:
        """A and B of the update of a layer."""
        return self.state[f"{layer}.lora_A.default.weight"], self.state[f"{layer}.lora_B.default.weight"]


def read_ingredients(
    names: Sequence[str], *, merged: bool = False, say: Callable[[str], object] = lambda text: None
) -> tuple[LongTailClassifier, list[Ingredient]]:
    """Load classifiers to average.

    Args:
        names (sequence of `str`): Folders of runs or of their checkpoints, or Hub repositories.
        merged (`bool`): Fold what was tuned into plain weights first; so it is in any case with adapters of peft that
            are neither LoRA nor IA3.
        say (`Callable`): Is told where weights are merged without having been asked for.

    Returns:
        The first one as a model, to be filled with averages, and the weights of all.

    Raises:
        FileNotFoundError, ValueError: As `LongTailClassifier.from_pretrained` and `merge`; if there are none, or they
            are not of one architecture.
    """
    template: LongTailClassifier | None = None
    found: list[Ingredient] = []
    for name in names:
        model = LongTailClassifier.from_pretrained(name)
        if not merged and needs_merging(model):
            say(f"{peft_kind(model)} has no sum of its own kind: the merged weights are averaged.")
            merged = True
        model = merge(model, keep=True) if merged else model
        refuse_text_factors(model)
        found.append(Ingredient.of(str(name), model))
        found[0].check_same_architecture(found[-1])
        template = template or model
    if template is None:
        raise ValueError("No classifier is given to average; name one or more folders of runs.")
    return template, found


def needs_merging(model: LongTailClassifier) -> bool:
    """Whether the backbone has an adapter of peft whose updates can be averaged as merged weights alone."""
    kind = peft_kind(model)
    return kind is not None and kind not in LINEAR_PEFT and not is_plain_lora(model.backbone)


def peft_kind(model: LongTailClassifier) -> str | None:
    """The kind of the backbone's adapter as peft calls it; "DORA" for LoRA with `use_dora`."""
    if not isinstance(model.backbone, PeftModel):
        return None
    config = model.backbone.active_peft_config
    return "DORA" if getattr(config, "use_dora", False) else config.peft_type.value


def inserted_kinds(model: LongTailClassifier) -> list[str]:
    """Names in `INSERTED_MODULES` of what was inserted, in order."""
    return [name for name, _ in read_inserted(model.config.inserted, source=model.config.backbone)]


def refuse_text_factors(model: LongTailClassifier) -> None:
    """Raise a `ValueError` where the text tower has LoRA factors, which do not average."""
    if "text_lora" in inserted_kinds(model):
        raise ValueError(
            "The classifier has modules of the kind 'text_lora', whose factors do not average; set --merged, which "
            "averages the class vectors that the text tower gives."
        )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
