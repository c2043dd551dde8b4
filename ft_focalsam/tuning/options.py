"""Sizes and places of what is tuned."""

from dataclasses import dataclass, field
from typing import Annotated

from ..parsing import parse_json
from ..ranges import SEED, Range, check_numbers

# How LoRA may start. The others that peft knows are random in a way that loading could not repeat, or need data.
LORA_INITS = ("default", "gaussian", "orthogonal", "pissa", "olora")
# Where the class name is in a prompt with a trained context.
CONTEXT_POSITIONS = ("end", "middle", "front")


@dataclass
class TuningOptions:
    """Sizes and places of what is tuned; each method reads its own.

    Args:
        lora_rank (`int`, >= 1): Rank r of the update.
        lora_alpha (`float`, > 0): The update is scaled by alpha / r.
        lora_dropout (`float`, 0 to 1): Dropout in front of the update.
        lora_target_modules (`list[str]`): Names of the layers to act on; by default the query and value projections.
        lora_rslora (`bool`): Scale by alpha / sqrt(r) instead (rsLoRA, arXiv 2312.03732).
        lora_dora (`bool`): Train the magnitude of each row of the weights apart (DoRA, arXiv 2402.09353).
        lora_init (`str`): default (A random, B zero), gaussian, orthogonal, pissa (the principal singular vectors,
            arXiv 2404.02948) or olora (a QR factorisation, arXiv 2406.01775).
        adapter_width (`int`, >= 1, *optional*): Width r of the bottleneck of an adapter; by default the power of two
            at or below C / 2L, at least 1, for C classes and a backbone of L blocks (LIFT, arXiv 2309.10019).
        adapter_scale (`float`, > 0): First value of the trained scale of AdaptFormer; 1 in LIFT and Focal-SAM, 0.1
            in the paper of AdaptFormer, which does not train it.
        prompt_length (`int`, >= 1): Prompts in front of a block.
        last_blocks (`int`, >= 1): How many of the last blocks the method of that name trains.
        sparse_ratio (`float`, above 0, to 1): Share of the entries of each weight matrix that sparse tuning trains.
        sparse_seed (`int`, >= 0): Which entries these are.
        clip_adapter_reduction (`int`, >= 1): The features are squeezed to 1 / this by a CLIP-Adapter.
        clip_adapter_ratio (`float`, 0 to 1): Share of what the CLIP-Adapter gives in the features.
        context_length (`int`, >= 1): Trained vectors beside a class name; that of `context_init` where it is given.
        context_position (`str`): Place of the class name among them: end, middle or front.
        context_init (`str`, *optional*): Words that the context starts as, e.g. "a photo of a"; by default noise.
        context_per_class (`bool`): One context for each class, not one for all.
        peft_config (`dict`, or `str` of JSON, *optional*): What the method peft puts around the backbone: `peft_type`
            and the fields of that configuration of the peft library.
        tuned_layers (`list[int]`): Numbers, from 0, of the blocks that are tuned; by default all of them, and what is
            outside of blocks too. Shallow prompts, last_blocks, peft and full do not read it.

    Raises:
        ValueError: If a size is out of range.
    """

    lora_rank: Annotated[int, Range(1)] = field(default=8, metadata={"help": "Rank r of the LoRA update."})
    lora_alpha: Annotated[float, Range(0, open_low=True)] = field(
        default=8.0, metadata={"help": "The LoRA update is scaled by alpha / r."}
    )
    lora_dropout: Annotated[float, Range(0, 1, open_high=True)] = field(
        default=0.0, metadata={"help": "Dropout in front of the LoRA update, 0 to 1."}
    )
    lora_target_modules: list[str] = field(
        default_factory=list,
        metadata={"help": "Names of the layers LoRA acts on; by default the query and value projections."},
    )
    lora_rslora: bool = field(default=False, metadata={"help": "Scale the LoRA update by alpha / sqrt(r): rsLoRA."})
    lora_dora: bool = field(
        default=False, metadata={"help": "Train magnitude and direction of the weights separately: DoRA."}
    )
    lora_init: str = field(
        default="default", metadata={"help": "Start of LoRA: default, gaussian, orthogonal, pissa or olora."}
    )
    adapter_width: Annotated[int | None, Range(1)] = field(
        default=None,
        metadata={
            "help": "Width of the bottleneck of an adapter; by default the power of two at or below C / 2L for C "
            "classes and L blocks."
        },
    )
    adapter_scale: Annotated[float, Range(0, open_low=True)] = field(
        default=1.0, metadata={"help": "Initial value of the trained scale of AdaptFormer."}
    )
    prompt_length: Annotated[int, Range(1)] = field(
        default=10, metadata={"help": "Number of prompts in front of a block."}
    )
    last_blocks: Annotated[int, Range(1)] = field(
        default=1, metadata={"help": "Number of blocks that last_blocks trains."}
    )
    sparse_ratio: Annotated[float, Range(0, 1, open_low=True)] = field(
        default=0.01,
        metadata={"help": "Share of the entries of each weight matrix that sparse tuning trains."},
    )
    sparse_seed: Annotated[int, SEED] = field(
        default=0, metadata={"help": "Seed that chooses the entries of sparse tuning."}
    )
    clip_adapter_reduction: Annotated[int, Range(1)] = field(
        default=4, metadata={"help": "Factor by which the bottleneck of a CLIP-Adapter is narrower than the features."}
    )
    clip_adapter_ratio: Annotated[float, Range(0, 1)] = field(
        default=0.2, metadata={"help": "Share of the CLIP-Adapter's output in the features, 0 to 1."}
    )
    context_length: Annotated[int, Range(1)] = field(
        default=16, metadata={"help": "Number of trained vectors beside a class name."}
    )
    context_position: str = field(
        default="end", metadata={"help": "Position of the class name in the context: end, middle or front."}
    )
    context_init: str | None = field(
        default=None,
        metadata={"help": "Words that the context is initialised with, e.g. 'a photo of a'; by default noise."},
    )
    context_per_class: bool = field(
        default=False, metadata={"help": "Train one context per class instead of one for all."}
    )
    peft_config: dict | str | None = field(
        default=None,
        metadata={"help": "Configuration of the tuning method peft: peft_type and its fields."},
    )
    tuned_layers: Annotated[list[int], Range(0)] = field(
        default_factory=list, metadata={"help": "Indices, from 0, of the blocks that are tuned; by default all."}
    )

    def __post_init__(self) -> None:
        check_numbers(self)
        if self.context_position not in CONTEXT_POSITIONS:
            raise ValueError(
                f"context_position is {self.context_position!r}; choose one of {', '.join(CONTEXT_POSITIONS)}."
            )
        if self.lora_init not in LORA_INITS:
            raise ValueError(f"lora_init is {self.lora_init!r}; choose one of {', '.join(LORA_INITS)}.")
        self.peft_config = _read_mapping(self.peft_config)


def _read_mapping(value: dict | str | None) -> dict | None:
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise ValueError(
                f"peft_config is {value[:80]!r}, which is not JSON ({error}); write a mapping in YAML, or JSON as in "
                """'{"peft_type": "LOHA", "target_modules": ["fc1"]}'."""
            ) from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"peft_config is {value!r}; set it to a mapping of peft_type and the fields of its config.")
    return value
