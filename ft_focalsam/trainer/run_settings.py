"""What a run computes: its settings, readable and with one fingerprint, and where two runs differ."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainingArguments

# Arguments that change where and how a run is followed, and nothing of what it computes: by name, and by prefix.
NEUTRAL = {
    *("output_dir", "overwrite", "push_to_hub", "report_to", "run_name", "project", "disable_tqdm", "debug"),
    *("local_rank", "use_cpu", "skip_memory_metrics", "torch_empty_cache_steps", "enable_jit_checkpoint"),
    *("dataloader_num_workers", "dataloader_pin_memory", "dataloader_persistent_workers"),
    *("dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    *("activation_checkpointing", "activation_checkpointing_kwargs", "include_num_input_tokens_seen"),
    *("gradient_checkpointing", "gradient_checkpointing_kwargs", "restore_callback_states_from_checkpoint"),
    *("per_device_eval_batch_size", "prediction_loss_only", "bf16_full_eval", "fp16_full_eval"),
    *("include_for_metrics", "batch_eval_metrics", "many_shot_threshold", "few_shot_threshold"),
    *("max_nonfinite_steps", "on_bad_image", "max_test_per_class", "reuse_frozen_prefix"),
    "cache_features",
    "class_counts",  # of a stream: the file; the counts themselves are noted by the trainer
}
NEUTRAL_PREFIXES = (
    "logging_",
    "log_",
    "save_",
    "hub_",
    "resume_",
    "trackio_",
    "ddp_",
    "do_",
    "torch_compile",
    "eval_",
)
CHOOSES_BEST = ("eval_strategy", "eval_steps", "eval_delay")  # no longer neutral where the best checkpoint is taken
LISTED, LONGEST = 6, 60  # differences in a sentence, letters of a value in it


def settings_of(args: TrainingArguments, options: Sequence[Any] = ()) -> dict[str, Any]:
    """The settings that decide what a run computes, as JSON keeps them; of a path its last part, so that a folder may
    move.

    Args:
        args (`TrainingArguments`): Of the run.
        options (sequence of dataclass instances): What else describes it.
    """
    values = {field.name: getattr(each, field.name) for each in options for field in dataclasses.fields(each)}
    values |= args.to_dict()
    counted = set(CHOOSES_BEST) if args.load_best_model_at_end else set()
    kept = {name: value for name, value in values.items() if name in counted or not is_neutral(name)}
    return json.loads(json.dumps(_portable(kept), sort_keys=True, default=_name_of))


def trained_parameters(model: nn.Module) -> str:
    """The number of parameters that train, with a digest of their names and shapes."""
    trained = {name: list(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"{count:,} in {len(trained):,} tensors ({fingerprint(trained)[:8]})"


def fingerprint(settings: Mapping[str, Any]) -> str:
    """The SHA-256 of settings, in hexadecimal."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, list]:
    """Key -> [before, now], for what both know and do not agree on."""
    return {key: [before[key], now[key]] for key in before if key in now and before[key] != now[key]}


def describe_differences(changed: Mapping[str, list]) -> str:
    """For a sentence: "rho was 0.05 and is 0.1, seed was 0 and is 1"."""
    told = [f"{key} was {_short(before)} and is {_short(now)}" for key, (before, now) in changed.items()]
    others = [f"and {len(told) - LISTED} others"] if len(told) > LISTED else []
    return ", ".join(told[:LISTED] + others)


def is_neutral(name: str) -> bool:
    """Whether a setting changes nothing of what a run computes."""
    return name in NEUTRAL or name.startswith(NEUTRAL_PREFIXES) or "token" in name.split("_")


def _portable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _portable(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_portable(each) for each in value]
    if isinstance(value, Enum):
        return _portable(value.value)
    if isinstance(value, float) and value.is_integer():  # 0.0 is a 0 that was read from a file
        return int(value)
    if isinstance(value, str):
        path = Path(value).expanduser()
        return path.resolve().name if path.is_absolute() or (value and path.exists()) else value
    return value


def _name_of(value: Any) -> str:
    """Of an object that JSON does not know: what it says of itself, where that is the same in every process."""
    text = str(value)
    return type(value).__qualname__ if " at 0x" in text else text


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
