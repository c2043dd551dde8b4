"""peft around a module, without its noise; its adapters in files."""

import dataclasses
import math
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from peft import (
    PEFT_TYPE_TO_CONFIG_MAPPING,
    PeftConfig,
    PeftModel,
    PromptLearningConfig,
    get_peft_model,
    get_peft_model_state_dict,
)
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor, nn

from ..base.errors import one_line, printable
from .checkpoints import save_tensors
from .precision import HALF

# Of an adapter's configuration: what it says of where it comes from, and what would load other models or import code.
NOTES = ("auto_mapping", "base_model_name_or_path", "revision", "peft_version", "megatron_core", "task_type")
LOADS_OTHERS = ("XLORA", "SHADOW")
# Starts that loading could not repeat, as they are random or made from data: values of `init_lora_weights`.
NOT_REPEATABLE = ("pissa_niter", "eva", "corda", "loftq", "lora_ga")
PATTERNS = ("target_modules", "exclude_modules", "feedforward_modules")  # where a text is a regular expression
MAX_PATTERN = 1000  # characters
MAX_RANK = 2**12
MAX_SIZE = 2**20
_PLAIN = re.compile(r"[\w.:/ -]{0,300}")  # a name; to a regular expression, too


def adapter_types() -> dict[str, type[PeftConfig]]:
    """Name of a kind of adapter -> its configuration, of those that adapt a vision model by themselves."""
    return {
        kind.value: config
        for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if not issubclass(config, PromptLearningConfig) and kind.value not in LOADS_OTHERS
    }


def check_adapter_fields(fields: Mapping[str, Any], *, where: str) -> None:
    """See that the fields of an adapter's configuration are numbers, names and lists of them.

    Args:
        fields (mapping): Name -> value.
        where (`str`): What they are in, for error messages.

    Raises:
        ValueError: If one is not: a mapping that peft would import a module for, a rank that no memory has room for, a
            pattern where a name belongs.
    """
    for name, value in fields.items():
        if not _is_plain_field(name, value):
            raise ValueError(
                f"The field '{printable(name)}' in {where} is {printable(repr(value))[:80]}, which is not read; set "
                "it to numbers or names within bounds, or leave it out."
            )


def _is_plain_field(name: str, value: Any) -> bool:
    if name in ("megatron_config", "layer_replication"):
        return value is None
    if name == "init_lora_weights" and isinstance(value, str):
        return not value.lower().startswith(NOT_REPEATABLE) and _PLAIN.fullmatch(value) is not None
    if name in PATTERNS and isinstance(value, str):
        return len(value) <= MAX_PATTERN
    if isinstance(value, Mapping):
        numbers = [each for entry in value.values() for each in (entry if isinstance(entry, list) else [entry])]
        return all(_is_number(name, each) for each in numbers) and all(_is_name(key) for key in value)
    return all(
        each is None or _is_number(name, each) or _is_name(each)
        for each in (value if isinstance(value, (list, tuple, set)) else [value])
    )


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _PLAIN.fullmatch(value) is not None


def _is_number(name: str, value: Any) -> bool:
    if type(value) is int:
        is_rank = name in ("r", "alpha_r") or "rank" in name or name.endswith("_r")
        is_seed = "seed" in name or "key" in name
        return abs(value) <= (2**63 if is_seed else MAX_RANK if is_rank else MAX_SIZE)
    return isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value))


def read_adapter_config(content: Mapping[str, Any], *, where: str) -> PeftConfig:
    """The configuration of an adapter from a file; what this version of peft does not know is left out.

    Args:
        content (mapping): Of adapter_config.json.
        where (`str`): What it is, for error messages.

    Raises:
        ValueError: If it is of no kind that adapts a vision model, or as in [`check_adapter_fields`].
    """
    config = adapter_types().get(str(content.get("peft_type")))
    if config is None:
        raise ValueError(
            f"The field 'peft_type' in {where} is {printable(repr(content.get('peft_type')))[:80]}; set it to one of "
            f"{', '.join(sorted(adapter_types()))}."
        )
    known = {field.name for field in dataclasses.fields(config) if field.init} - {"peft_type", *NOTES}
    fields = {name: value for name, value in content.items() if name in known}
    check_adapter_fields(fields, where=where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return config(**fields)


def resolve_patterns(module: nn.Module, config: PeftConfig) -> None:
    """Put the names of the layers in the place of the regular expressions of a configuration.

    peft matches these by backtracking, which some patterns never end; RE2, which pyarrow brings, takes linear time.

    Raises:
        ValueError: If a pattern is none, uses what RE2 does not know, or fits no layer.
    """
    names = [name for name, _ in module.named_modules() if name]
    for field in PATTERNS:
        pattern = getattr(config, field, None)
        if isinstance(pattern, str) and pattern.lower() != "all-linear":
            found = set(_matching(pattern, names, field=field))
            also = [n for n in names if n not in found and any(n.endswith(f".{full}") for full in found)]
            if also or (not found and field == "target_modules"):
                raise ValueError(
                    f"{field} is '{printable(pattern)}', which fits "
                    + (f"some layers whose names end that of another one, '{also[0]}'" if also else "no layer")
                    + "; list the names of the layers."
                )
            setattr(config, field, found or None)


def _matching(pattern: str, names: list[str], *, field: str) -> Iterator[str]:
    if len(pattern) > MAX_PATTERN:
        raise ValueError(
            f"{field} is a pattern of more than {MAX_PATTERN:,} characters; list the names of the layers."
        )
    try:
        fits = pc.match_substring_regex(pa.array(names, pa.string()), rf"\A(?:{pattern})\z")
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{field} is '{printable(pattern)[:80]}', no regular expression that is read ({one_line(error)[:200]}); "
            "list the names of the layers."
        ) from error
    return (name for name, fit in zip(names, fits.to_pylist(), strict=True) if fit)


def wrap_with_peft(module: nn.Module, config: PeftConfig, *, base: str) -> PeftModel:
    """A PEFT adapter, in float32, around a module; what trains of the module goes on training.

    Args:
        module (`nn.Module`): Changed in place, too.
        config (`PeftConfig`): Of the adapter.
        base (`str`): Name of the pretrained model that the module is of, to be noted in the configuration.

    Raises:
        ValueError: As in [`resolve_patterns`].
    """
    resolve_patterns(module, config)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    config.base_model_name_or_path = None  # peft would warn of a name that is not the path it was loaded from
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")  # peft's own use
        wrapped = get_peft_model(module, config)
    config.base_model_name_or_path = base
    for parameter in wrapped.parameters():
        if parameter.requires_grad and parameter.dtype in HALF:
            parameter.data = parameter.data.float()
    for parameter in trained:
        parameter.requires_grad_(True)
    return wrapped


def save_peft_adapter(model: PeftModel, state: dict[str, Tensor], folder: Path) -> None:
    """Write the adapter in PEFT's own format, for `PeftModel.from_pretrained`; `state` has the weights of `model`."""
    # Without False, peft asks the Hub whether a vocabulary was resized.
    adapter = get_peft_model_state_dict(model, state_dict=state, save_embedding_layers=False)
    model.active_peft_config.save_pretrained(folder)
    save_tensors(adapter, folder / SAFETENSORS_WEIGHTS_NAME)
