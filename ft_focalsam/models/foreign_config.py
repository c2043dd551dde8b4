"""Configurations of models that others saved, looked through before a library builds anything from them.

transformers, timm and open_clip follow some keys to code, to kernels, to other files or to other repositories, and
allocate whatever sizes they read.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from ..base.errors import printable
from ..base.parsing import read_json_object

ATTENTION = (None, "eager", "sdpa")  # the others are packages or are fetched from the Hub as code
DTYPES = (None, "auto", "float32", "float16", "bfloat16", "float64")
# Of whole numbers, by a part of their key.
MAX_NUMBERS = {"layers": 2**10, "depth": 2**10, "image_size": 2**14, "hidden": 2**16, "intermediate": 2**16}
MAX_NUMBERS |= {"embed": 2**16, "projection": 2**16, "width": 2**16, "": 2**24}
MAX_CLASSES = 2**20
MAX_BYTES = 2**26  # of a file
OWN_TYPE = "long_tail_classifier"
LABELS = ("id2label", "label2id", "label_names")

# Key, anywhere in the file -> the values that are read.
ALLOWED_VALUES: dict[str, tuple] = {
    **dict.fromkeys(("attn_implementation", "_attn_implementation"), ATTENTION),
    **dict.fromkeys(("_attn_implementation_internal", "_attn_implementation_autoset"), (*ATTENTION, True, False)),
    **dict.fromkeys(("experts_implementation", "_experts_implementation"), ATTENTION),
    **dict.fromkeys(("dtype", "torch_dtype"), DTYPES),
    **dict.fromkeys(("trust_remote_code", "use_kernels"), (None, False)),
    **dict.fromkeys(("quantization_config", "kernel_config", "distributed_config", "custom_pipelines"), (None,)),
    **dict.fromkeys(("configuration_files", "transformers_weights", "state_dict"), (None,)),
}


def check_model_config(name: str, file: str = "config.json", *, revision: str | None = None) -> None:
    """Read a configuration of a folder or a Hub repository, and see that it describes a model and does nothing else.

    A configuration that cannot be found is left to what loads it next.

    Args:
        name (`str`): Folder, or repository.
        file (`str`): In it.
        revision (`str`, *optional*): Of the repository.

    Raises:
        ValueError: If it is not JSON, or a key has a value that is not read; names both.
    """
    path = _find(name, file, revision)
    if path is None:
        return
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"The {file} of '{name}' has more than {MAX_BYTES:,} bytes; choose another model.")
    content = read_json_object(path, called=f"The {file} of '{name}'", remedy="choose another model")
    for key, value in _entries(content):
        if not _is_read(key, value):
            raise ValueError(
                f"The key '{printable(key)}' in the {file} of '{name}' is {printable(repr(value))[:80]}, which is not "
                "read from a file of others; choose another model, or take the key out of a copy."
            )
    is_foreign = file == "config.json" and content.get("model_type") != OWN_TYPE
    if is_foreign and _find(name, "adapter_config.json", revision) is not None:  # transformers would load it, too
        raise ValueError(
            f"'{name}' has an adapter of peft (adapter_config.json) beside its model; give the plain model, or one "
            "with the adapter merged."
        )


def _find(name: str, file: str, revision: str | None) -> Path | None:
    if Path(name).exists():
        return Path(name, file) if Path(name, file).is_file() else None
    try:
        found = cached_file(name, file, revision=revision or "main", _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError):
        return None
    return None if found is None else Path(found)


def _entries(content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield key, value
            if key not in LABELS:
                yield from _entries(value)
    elif isinstance(content, list):
        for value in content:
            yield from _entries(value)


def _is_read(key: str, value: Any) -> bool:
    if key in ALLOWED_VALUES:
        return not isinstance(value, (dict, list)) and value in ALLOWED_VALUES[key]
    if key in LABELS:
        return value is None or (isinstance(value, (dict, list)) and len(value) <= MAX_CLASSES)
    if key in ("num_labels", "num_classes"):
        return value is None or (type(value) is int and 0 <= value <= MAX_CLASSES)
    if key == "timm_model_name":
        return isinstance(value, str) and ":" not in value  # a prefix leads to another repository or folder
    numbers = value if isinstance(value, list) else [value]
    limit = next(most for part, most in MAX_NUMBERS.items() if part in key)
    return key == "model_max_length" or all(abs(number) <= limit for number in numbers if type(number) is int)
