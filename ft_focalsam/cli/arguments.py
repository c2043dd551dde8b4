"""What describes a run: `TYPES`, of which `ModelArguments` is here."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from ..base.errors import unknown
from ..base.ranges import Range, check_numbers
from ..base.registry import listed
from ..data import DataArguments
from ..models import ATTENTION_IMPLEMENTATIONS, HEAD_STARTS, HEADS
from ..models.text import check_prompts
from ..sharpness.hyperparameters import values_for, with_hyperparameters
from ..trainer import FocalSAMTrainingArguments
from ..tuning import TUNING_METHODS, TuningOptions, choose_methods


@dataclass
class _ModelArguments:
    """Backbone, head, and what of the backbone is tuned.

    Args:
        backbone (`str`): "tiny_clip" (ships with the package), a Hub name or a path of a model of transformers, or
            "timm:" or "open_clip:" and a name there; for random weights "scratch:resnet32", or "scratch:" and an
            architecture of timm.
        backbone_dtype (`str`): Of the frozen weights: float32, bfloat16 or float16; what trains is float32.
        backbone_features (`str`, *optional*): Which output of the backbone is the feature vector of an image: cls,
            mean or pooler; needed for architectures that are not in `BACKBONE_FAMILIES`.
        attn_implementation (`str`, *optional*): How the backbone computes attention: eager, sdpa, flash_attention_2 or
            flash_attention_3, of transformers; its own choice by default.
        batch_norm_eval (`bool`): Keep the batch normalisations of a pretrained backbone in evaluation mode while it
            trains.
        tuning (`str`, or list of `str` in YAML): Names in `TUNING_METHODS`; several, joined by commas, are combined.
        head (`str`): A name in `HEADS`.
        head_scale (`float`, > 0): Scale of the logits of every head but the linear one.
        head_start (`str`): text, class_means, linear_probe, random or kaiming; by default text where the backbone has
            a text tower, kaiming where its weights are random, else class_means.
        prompt_templates (`list[str]`): Prompts for text starts, with {} where the class name goes; or "imagenet" for
            the 80 of CLIP, or "imagenet_simple" for 7 of them.
        prompt_names (`str`, *optional*): Names of the classes in prompts: a text file with one a line, or "imagenet";
            by default those of the data.
    """

    backbone: str = field(
        default="tiny_clip",
        metadata={
            "help": "tiny_clip (ships with the package), a Hub name or a path of a model of transformers, or timm: or "
            "open_clip: and a name there; for random weights scratch:resnet32, or scratch: and one of timm's."
        },
    )
    backbone_dtype: str = field(
        default="float32",
        metadata={
            "help": "Data type of the frozen weights; trainable parameters are float32.",
            "choices": ["float32", "bfloat16", "float16"],
        },
    )
    backbone_features: str | None = field(
        default=None,
        metadata={
            "help": "Which output of the backbone is the feature vector of an image: cls, mean or pooler; by default "
            "the usual one of its architecture."
        },
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "How a backbone of transformers computes attention, by default sdpa where it can; eager is faster "
            "in bf16 on a CPU with small images.",
            "choices": list(ATTENTION_IMPLEMENTATIONS),
        },
    )
    batch_norm_eval: bool = field(
        default=False,
        metadata={
            "help": "Keep the batch normalisations of a pretrained backbone in evaluation mode while it trains: their "
            "running statistics stay, and Focal-SAM needs no third backward pass."
        },
    )
    tuning: str = field(
        default="lora",
        metadata={
            "help": f"What trains beside the head, one or several joined by commas: {listed(sorted(TUNING_METHODS))}."
        },
    )
    head: str = field(default="cosine", metadata={"help": f"Classification head: {listed(sorted(HEADS))}."})
    head_scale: Annotated[float, Range(0, open_low=True)] = field(
        default=25.0, metadata={"help": "Scale of the logits of every head but the linear one."}
    )
    head_start: str | None = field(
        default=None,
        metadata={
            "help": "Start of the head: text, class_means, linear_probe, random or kaiming; by default text where the "
            "backbone has a text tower, kaiming where its weights are random, else class_means."
        },
    )
    prompt_templates: list[str] = field(
        default_factory=lambda: ["a photo of a {}."],
        metadata={
            "help": "Prompts for text starts, with {} where the class name goes; or imagenet for the 80 of CLIP, or "
            "imagenet_simple for 7 of them."
        },
    )
    prompt_names: str | None = field(
        default=None,
        metadata={
            "help": "Names of the classes in prompts: a text file with one a line, or imagenet; by default those of "
            "the data."
        },
    )

    @property
    def head_options(self) -> dict:
        """The hyperparameters of the head, by the names of its parameters."""
        return values_for(HEADS[self.head], self)

    def __post_init__(self) -> None:
        if isinstance(self.tuning, list):
            self.tuning = ",".join(map(str, self.tuning))
        check_numbers(self)
        self._check_choices()

    def _check_choices(self) -> None:
        HEADS.choose(self.head)
        choose_methods(self.tuning)
        check_prompts(self.prompt_templates, self.prompt_names)
        if self.head_start is not None and self.head_start not in HEAD_STARTS:
            raise ValueError(unknown("head_start", self.head_start, HEAD_STARTS))


# Any: what the heads declare is not seen by type checkers.
ModelArguments: Any = with_hyperparameters(_ModelArguments, HEADS.values(), name="ModelArguments")
# What a run is described by, in the order in which `parse_config` gives them.
TYPES = (DataArguments, ModelArguments, TuningOptions, FocalSAMTrainingArguments)
