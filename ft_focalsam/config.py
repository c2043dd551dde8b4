"""What a run is described by: a YAML file of defaults, overridden on the command line."""

import argparse
import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from transformers import HfArgumentParser


@dataclass
class DataArguments:
    """Which images, how unbalanced, and how they are augmented.

    Args:
        dataset (`str`): "digits", a Hub name, a folder (parquet, Arrow, images by class, binary CIFAR), a file (.txt
            with `path label` lines, .csv, .jsonl, iNaturalist's .json, .npz), or torchvision:cifar10 or
            torchvision:cifar100.
        test_dataset (`str`, *optional*): File to test on, where the data set is a file.
        image_root (`str`, *optional*): Folder that the paths in a file start from; by default the file's own.
        class_names (`str`, *optional*): File of class names in index order: one a line, or a JSON list.
        dataset_config (`str`, *optional*): Configuration of a Hub data set that has several.
        image_column, label_column (`str`, *optional*): By default found by their types and usual names.
        train_split, test_split (`str`): Splits to train and to test on; the test split is found by default.
        test_fraction (`float`, *optional*): Cut the test set from the training split instead.
        imbalance_factor (`float`, >= 1, *optional*): Cut the training set to a long-tail profile with this ratio of
            the most frequent to the rarest class; by default it is used as it is.
        imbalance_profile (`str`): Shape of that profile: exponential, step or pareto.
        max_train_per_class (`int`, *optional*): Images of the most frequent class.
        max_test_per_class (`int`, *optional*): Test images a class.
        long_tail_seed (`int`): Which images the cut takes.
        augmentation (`str`): none, crop, crop_flip, randaugment, imagenet, cifar or minimalist.
        image_size (`int`, *optional*): Side of the pictures in pixels; by default the backbone's own.
        on_bad_image (`str`): What to do about pictures that cannot be read, which are looked for before training:
            fail, skip or unchecked (stop when one is met).
        fast_decode (`bool`): Decode JPEGs for training at 1/2, 1/4 or 1/8 where the crop stays as large as what the
            model sees. Test images are always decoded in full.
        cache_resized (`str`, *optional*): Folder that keeps smaller copies of the training images (JPEG), made once.
        cache_resized_side (`int`, >= 16): Shorter side of these copies in pixels; no smaller than image_size.
        streaming (`bool`): Read the training images as a stream, for data sets too large for the disk; needs
            max_steps.
        class_counts (`str`, *optional*): JSON file of a stream's class counts (name: images), written if missing.
        shuffle_buffer (`int`, >= 0): Images of a stream among which the next one is drawn.
    """

    dataset: str = field(
        default="digits",
        metadata={
            "help": "digits, a Hub name, a folder (parquet, Arrow, images by class, binary CIFAR), a file (.txt with "
            "`path label` lines, .csv, .jsonl, iNaturalist's .json, .npz), or torchvision:cifar10 or "
            "torchvision:cifar100."
        },
    )
    test_dataset: str | None = field(default=None, metadata={"help": "File to test on, where the data set is a file."})
    image_root: str | None = field(
        default=None, metadata={"help": "Folder that the paths in a file start from; the file's own by default."}
    )
    class_names: str | None = field(
        default=None, metadata={"help": "File of class names in index order: one a line, or a JSON list."}
    )
    dataset_config: str | None = field(
        default=None, metadata={"help": "Configuration of a Hub data set that has several."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found by default."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the classes; found by default."})
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    test_split: str | None = field(default=None, metadata={"help": "Split to test on; found by default."})
    test_fraction: float | None = field(
        default=None, metadata={"help": "Cut this share of each class from the training split to test on."}
    )
    imbalance_factor: float | None = field(
        default=None,
        metadata={
            "help": "Cut the training set to a long-tail profile with this ratio of the most frequent to the rarest "
            "class; by default it is used as it is."
        },
    )
    imbalance_profile: str = field(
        default="exponential", metadata={"help": "Shape of that profile: exponential, step or pareto."}
    )
    max_train_per_class: int | None = field(default=None, metadata={"help": "Images of the most frequent class."})
    max_test_per_class: int | None = field(default=None, metadata={"help": "Test images a class."})
    long_tail_seed: int = field(default=0, metadata={"help": "Which images the long-tail cut takes."})
    augmentation: str = field(
        default="crop_flip",
        metadata={"help": "Training augmentation: none, crop, crop_flip, randaugment, imagenet, cifar or minimalist."},
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Side of the pictures in pixels; the backbone's own by default."}
    )
    on_bad_image: str = field(
        default="fail",
        metadata={
            "help": "What to do about pictures that cannot be read, which are looked for before training: fail, skip "
            "or unchecked; the last stops when one is met."
        },
    )
    fast_decode: bool = field(
        default=True,
        metadata={
            "help": "Decode JPEGs for training at 1/2, 1/4 or 1/8 where the crop stays as large as what the model "
            "sees. Test images are always decoded in full."
        },
    )
    cache_resized: str | None = field(
        default=None,
        metadata={"help": "Folder that keeps smaller copies of the training images (JPEG), made once."},
    )
    cache_resized_side: int = field(
        default=256,
        metadata={"help": "Shorter side of these copies in pixels; no smaller than image_size."},
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the training images as a stream, for data sets too large for the disk; needs max_steps."
        },
    )
    class_counts: str | None = field(
        default=None,
        metadata={"help": "JSON file of a stream's class counts (name: images), written if missing."},
    )
    shuffle_buffer: int = field(
        default=1000, metadata={"help": "Images of a stream among which the next one is drawn."}
    )


@dataclass
class ModelArguments:
    """Backbone, head, and what of the backbone is tuned.

    Args:
        backbone (`str`): "tiny_clip" (ships with the package), a Hub name or a path of a model of transformers, or
            "timm:" or "open_clip:" and a name there.
        backbone_dtype (`str`): Of the frozen weights: float32, bfloat16 or float16; what trains is float32.
        backbone_features (`str`, *optional*): Which output of the backbone is the feature vector of a picture: cls,
            mean or pooler; needed for architectures that are not in `BACKBONE_FAMILIES`.
        tuning (`str`, or list of `str` in YAML): adapter, adaptformer, bias, clip_adapter, context_prompts, ia3,
            last_blocks, lora, norms, peft, sparse, ssf, text_lora, vpt_deep, vpt_shallow, linear_probe, zero_shot or
            full; several, joined by commas, are combined.
        head (`str`): cosine, l2_normalized, layer_norm or linear.
        head_scale (`float`, > 0): Scale of the logits of every head but the linear one.
        head_start (`str`): text, class_means, linear_probe or random; by default text where the backbone has a text
            tower, else class_means.
        prompt_templates (`list[str]`): Prompts for text starts, with {} where the class name goes; or "imagenet" for
            the 80 of CLIP, or "imagenet_simple" for 7 of them.
        prompt_names (`str`, *optional*): Names of the classes in prompts: a text file with one a line, or "imagenet";
            by default those of the data.
    """

    backbone: str = field(
        default="tiny_clip",
        metadata={
            "help": "tiny_clip (ships with the package), a Hub name or a path of a model of transformers, or timm: or "
            "open_clip: and a name there."
        },
    )
    backbone_dtype: str = field(
        default="float32",
        metadata={
            "help": "Of the frozen weights; what trains is float32.",
            "choices": ["float32", "bfloat16", "float16"],
        },
    )
    backbone_features: str | None = field(
        default=None,
        metadata={
            "help": "Which output of the backbone is the feature vector of a picture: cls, mean or pooler; by default "
            "the usual one of its architecture."
        },
    )
    tuning: str = field(
        default="lora",
        metadata={
            "help": "What trains beside the head, one or several joined by commas: adapter, adaptformer, bias, "
            "clip_adapter, context_prompts, ia3, last_blocks, lora, norms, peft, sparse, ssf, text_lora, vpt_deep, "
            "vpt_shallow, linear_probe, zero_shot or full."
        },
    )
    head: str = field(
        default="cosine", metadata={"help": "Classification head: cosine, l2_normalized, layer_norm or linear."}
    )
    head_scale: float = field(default=25.0, metadata={"help": "Scale of the logits of every head but the linear one."})
    head_start: str | None = field(
        default=None,
        metadata={
            "help": "Start of the head: text, class_means, linear_probe or random; by default text where the backbone "
            "has a text tower, else class_means."
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

    def __post_init__(self) -> None:
        if isinstance(self.tuning, list):
            self.tuning = ",".join(map(str, self.tuning))


# In a YAML file: another one that it inherits from, by its path relative to the folder of the file.
BASE_KEY = "base"


class ConfigError(ValueError):
    """A run description that cannot be used; the message says what to change."""


def parse_config(argument_types: Sequence[type], argv: Sequence[str] | None = None) -> tuple:
    """Read `[config.yaml] [--key value ...]` into dataclasses: YAML sets the defaults, the command line wins.

    With the line `base: other.yaml` a file inherits from another one in or near its folder, and its own keys win.

    Args:
        argument_types (sequence of dataclass types): Their fields are the keys.
        argv (sequence of `str`, *optional*): Defaults to the arguments of the running script.

    Returns:
        One instance of each type.

    Raises:
        ConfigError: If the file or one it inherits from is missing or no mapping, files inherit from each other in a
            circle, a key is unknown (with the nearest known one), or a value is not of the kind its key takes.
        ValueError: What the dataclasses themselves raise.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = HfArgumentParser(argument_types, allow_abbrev=False, usage="%(prog)s [config.yaml] [--key value ...]")
    actions = {action.dest: action for action in reversed(parser._actions) if action.dest != "help"}
    keys = set(actions)
    if argv and not argv[0].startswith("-"):
        defaults = {}
        for path, content in _read_with_bases(argv.pop(0), keys | {BASE_KEY}):
            defaults |= {k: _convert(parser, actions[k], v, where=path) for k, v in content.items()}
        parser.set_defaults(**defaults)
    *parsed, remaining = parser.parse_args_into_dataclasses(args=argv, return_remaining_strings=True)
    if remaining and not remaining[0].startswith("-"):
        raise ConfigError(f"Stray '{remaining[0]}' on the command line; write [config.yaml] [--key value ...].")
    if remaining:
        raise ConfigError(_unknown(remaining[0].lstrip("-").partition("=")[0], keys, where="on the command line"))
    return tuple(parsed)


def _read_with_bases(path: str, keys: set[str], *, heirs: tuple[str, ...] = ()) -> list[tuple[str, dict]]:
    """Path and content of a file and of all it inherits from, these first; `heirs` are the files that led to it."""
    if Path(path).resolve() in [Path(heir).resolve() for heir in heirs]:
        circle = "' -> '".join([*heirs, path])
        raise ConfigError(f"Configuration files inherit in a circle: '{circle}'; take '{BASE_KEY}' out of one.")
    content = _read_yaml(path, keys, whose=f", the base of '{heirs[-1]}'," if heirs else "")
    if BASE_KEY not in content:
        return [(path, content)]
    base = content.pop(BASE_KEY)
    if not isinstance(base, str):
        raise ConfigError(f"The key '{BASE_KEY}' in '{path}' cannot be {base!r}; set it to the path of one YAML file.")
    return [*_read_with_bases(str(Path(path).parent / base), keys, heirs=(*heirs, path)), (path, content)]


def _read_yaml(path: str, keys: set[str], *, whose: str) -> dict:
    if not Path(path).is_file():
        raise ConfigError(f"The configuration file '{path}'{whose} does not exist; check the path.")
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"The configuration file '{path}' is not valid YAML: {error}".replace("\n", " ")) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"The configuration file '{path}' holds a {type(content).__name__}; write `key: value` lines."
        )
    for key in content:
        if key not in keys:
            raise ConfigError(_unknown(str(key), keys, where=f"in '{path}'"))
    return content


def _convert(parser: argparse.ArgumentParser, action: argparse.Action, value, *, where: str):
    """A value from YAML, checked and converted as the same one on the command line would be."""
    is_list = action.nargs == "+"
    if isinstance(value, dict) or (isinstance(value, list) and action.type is str and not is_list):
        return value  # of the Trainer's own arguments that take more than the command line can say
    if value is None and action.default is None:
        return None
    values = value if isinstance(value, list) else [value]
    try:
        if value is None or (isinstance(value, list) and not is_list):
            raise argparse.ArgumentError(action, "it takes one value" if value else "it has no value")
        return parser._get_values(action, [str(v) for v in values]) if values else []
    except argparse.ArgumentError as error:
        raise ConfigError(
            f"The key '{action.dest}' in '{where}' cannot be {value!r}: {error.message}; correct it, or leave the key "
            "out for its default."
        ) from error


def _unknown(key: str, keys: set[str], *, where: str) -> str:
    nearest = difflib.get_close_matches(key.replace("-", "_"), keys, n=1, cutoff=0.0)[0]
    return f"Unknown key '{key}' {where}; did you mean '{nearest}'? --help lists all keys."
